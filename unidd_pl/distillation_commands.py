"""The commands around a distillation: fit, statistics, plan, tune, spectrum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unidd_pl.command_options import (
    add_accelerator,
    add_student_options,
    distillation_parser,
    name_of,
    parsed,
    record,
    shared_data,
    split_names,
)


def fit(arguments: list[str]) -> None:
    """Run `unidd fit`."""
    distillation_of(arguments).fit()


def statistics(arguments: list[str]) -> None:
    """Run `unidd statistics`."""
    distillation_of(arguments, "statistics").statistics()


def plan(arguments: list[str]) -> None:
    """Run `unidd plan`."""
    from unidd_pl.plan import plan

    plan(distillation_parser("plan"), arguments)


def distillation_of(
    arguments: list[str],
    command: str = "fit",
    *,
    shared: dict[str, Any] | None = None,
    parent: dict[str, str] | None = None,
) -> Any:
    """Return the run that the arguments of `unidd fit` describe; `shared` holds data that are read once for many."""
    parser = distillation_parser(command)
    config, objects = parsed(parser, arguments)
    return _distillation_run(
        config,
        objects,
        shared_data(config, objects, shared),
        Path(config.output_dir or f"runs/{name_of(config)}"),
        checkpoint=config.ckpt_path,
        checkpoint_every=config.checkpoint_every,
        spread=config.spread,
        config=record(parser, config),
        parent=parent,
    )


def tune(arguments: list[str]) -> None:
    """Run `unidd tune`."""
    from unidd_pl.data.holdout import HoldOutData
    from unidd_pl.fit import DistillationRun
    from unidd_pl.tune import Candidate, Tuning

    parser = distillation_parser("tune")
    add_accelerator(parser)
    add_student_options(parser, seeds=1)
    parser.add_argument("--holdout", type=float, default=0.1, help="share of each class's training images")
    parser.add_argument("--eta", type=float, nargs="+", default=[], help="values of η to try")
    parser.add_argument("--beta", type=float, nargs="+", default=[], help="values of β to try")
    parser.add_argument("--relative", type=bool, nargs="+", default=[], help="false, true or both")
    config, objects = parsed(parser, arguments)

    if config.ckpt_path is not None:
        raise ValueError("got --ckpt_path: a tuning does not resume; leave it out")

    def make_run(candidate: Candidate, data: HoldOutData, folder: Path) -> DistillationRun:
        one = config.clone()
        for name, value in candidate.items():
            one[f"model.init_args.{name}"] = value
        run: DistillationRun = _distillation_run(
            one,
            parser.instantiate(one),
            data,
            folder,
            config=record(parser, one),
            teacher_data=objects.data,
        )
        return run

    Tuning(
        make_run,
        objects.data,
        {name: config[name] for name in ("eta", "beta", "relative") if config[name]},
        protocol=objects.protocol,
        network=_only(split_names(config.networks)),
        seeds=config.seeds,
        holdout=config.holdout,
        tracking=objects.tracking,
        accelerator=config.accelerator,
        output=Path(config.output_dir or f"runs/{name_of(config)}_tuning"),
        precision=config.precision,
        overwrite=config.overwrite,
        config=record(parser, config),
    ).run()


def spectrum(arguments: list[str]) -> None:
    """Run `unidd spectrum`."""
    from unidd_pl.spectrum import SpectrumReport

    parser = distillation_parser("spectrum")
    parser.add_argument("--distilled", type=str, nargs="+", default=[], help="files written by `unidd fit`")
    parser.add_argument("--layers", type=str, nargs="+", default=[], help="layers in the figure; default: up to four")
    parser.add_argument("--pictures", type=bool, default=False, help="draw what each set's low and high band hold")
    config, objects = parsed(parser, arguments)
    SpectrumReport(
        objects.model,
        objects.data,
        objects.teacher,
        objects.statistics,
        objects.tracking,
        objects.trainer.as_dict(),
        Path(config.output_dir or f"runs/{name_of(config)}"),
        Path(config.cache_dir),
        distilled=[Path(path) for path in config.distilled],
        layers=config.layers,
        pictures=config.pictures,
        overwrite=config.overwrite,
        config=record(parser, config),
    ).run()


def _distillation_run(parsed_config: Any, objects: Any, data: Any, output: Path, **options: Any) -> Any:
    """Return the run of a parsed config."""
    from unidd_pl.fit import DistillationRun

    return DistillationRun(
        objects.model,
        data,
        objects.teacher,
        objects.statistics,
        objects.tracking,
        objects.trainer.as_dict(),
        output,
        Path(parsed_config.cache_dir),
        overwrite=parsed_config.overwrite,
        pixel_type=parsed_config.pixel_type,
        **options,
    )


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise ValueError(f"networks: got {names}, expected one: candidates are compared with one architecture")
    return names[0]
