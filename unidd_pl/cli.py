"""The `unidd` command: dispatch and wiring, no logic."""

from __future__ import annotations

import json
import os
import signal
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from unidd_pl import __version__
from unidd_pl.allocator import keep_large_blocks
from unidd_pl.configs import guard_command_line, load_yaml
from unidd_pl.console import Stopped

COMMANDS = {
    "fit": "distil a training set: teacher and statistics where missing, then the synthetic images",
    "plan": "say what a distillation will hold and cost, before any work",
    "evaluate": "train fresh networks on a distilled set and on real images, and compare them",
    "tune": "choose η and other settings of a distillation on a hold-out of the training set",
    "pretrain": "train a teacher, or check a given one",
    "statistics": "gather the real moments of a teacher",
    "convert": "write a folder of images to the .beton files that FFCV streams",
    "spectrum": "show the frequencies of the real features, what methods keep and what distilled sets match",
    "methods": "list the methods: band, terms, reference",
    "relabel": "write a teacher's soft labels of a distilled set once, for evaluations with stored labels",
    "compare": "show runs of an MLflow experiment beside each other: a page, figures and tables",
    "sweep": "distil and evaluate config files × settings × seeds, and compare them",
    "sync": "send records that wait on this machine to their MLflow server",
    "export": "write a distilled set as others read it: PNG, parquet, tar, two scorers",
}
DEFAULT_CACHE = "runs/cache"

EXIT_BAD_INPUT = 2
EXIT_BY_SIGNAL = 128  # a shell's convention: 128 + number of the signal


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with a message and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_large_blocks()
    try:
        _dispatch(arguments)
    except KeyboardInterrupt:
        _end(EXIT_BY_SIGNAL + signal.SIGINT, "stopped")
    except Stopped as stop:
        _end(EXIT_BY_SIGNAL + stop.number, str(stop))
    except Exception as error:
        if os.environ.get("UNIDD_DEBUG") == "1":
            raise
        # By name: to import Lightning here would cost seconds where it is not needed.
        misconfigured = type(error).__name__ == "MisconfigurationException"
        if misconfigured or isinstance(error, (ValueError, OSError, ArgumentError)):
            _end(EXIT_BAD_INPUT, f"error: {error}")
        raise


def _end(status: int, message: str) -> NoReturn:
    sys.stderr.write(f"unidd: {message}\n")
    sys.exit(status)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"unidd {__version__}\n")
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}; see unidd --help")
    guard_command_line()
    # Each imports what it needs, so that --help and export stay fast.
    if command in ("fit", "statistics"):
        _fit(command, rest)
        return
    runs = {
        "plan": _plan,
        "evaluate": _evaluate,
        "tune": _tune,
        "pretrain": _pretrain,
        "convert": _convert,
        "spectrum": _spectrum,
        "methods": _methods,
        "relabel": _relabel,
        "export": _export,
    }
    if command in runs:
        runs[command](rest)
    else:
        from unidd_pl import study_commands

        if command == "sweep":
            study_commands.sweep(rest, COMMANDS[command], distillation_of, evaluation_of, evaluation_parser)
        else:
            getattr(study_commands, command)(rest, COMMANDS[command])


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return (
        "usage: unidd COMMAND [options]\n\n"
        + "\n".join(lines)
        + "\n\nunidd COMMAND --help lists the options of a command; UNIDD_DEBUG=1 shows tracebacks.\n"
    )


def _fit(command: str, arguments: list[str]) -> None:
    run = distillation_of(arguments, command)
    if command == "fit":
        run.fit()
    else:
        run.statistics()


def _plan(arguments: list[str]) -> None:
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
    config, objects = _parsed(parser, arguments)
    return _distillation_run(
        config,
        objects,
        _shared_data(config, objects, shared),
        Path(config.output_dir or f"runs/{_name_of(config)}"),
        checkpoint=config.ckpt_path,
        checkpoint_every=config.checkpoint_every,
        config=_record(parser, config),
        parent=parent,
    )


def _shared_data(config: Any, objects: Any, shared: dict[str, Any] | None) -> Any:
    """Return the data of a config, or the same ones that were made before."""
    if shared is None:
        return objects.data
    return shared.setdefault(json.dumps(config.data.as_dict(), sort_keys=True, default=str), objects.data)


def _tune(arguments: list[str]) -> None:
    from unidd_pl.data.holdout import HoldOutData
    from unidd_pl.fit import DistillationRun
    from unidd_pl.tune import Candidate, Tuning

    parser = distillation_parser("tune")
    _add_accelerator(parser)
    _add_student_options(parser, seeds=1)
    parser.add_argument("--holdout", type=float, default=0.1, help="share of each class's training images")
    parser.add_argument("--eta", type=float, nargs="+", default=[], help="values of η to try")
    parser.add_argument("--beta", type=float, nargs="+", default=[], help="values of β to try")
    parser.add_argument("--relative", type=bool, nargs="+", default=[], help="false, true or both")
    config, objects = _parsed(parser, arguments)

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
            config=_record(parser, one),
            teacher_data=objects.data,
        )
        return run

    Tuning(
        make_run,
        objects.data,
        {name: config[name] for name in ("eta", "beta", "relative") if config[name]},
        protocol=objects.protocol,
        network=_only(_split(config.networks)),
        seeds=config.seeds,
        holdout=config.holdout,
        tracking=objects.tracking,
        accelerator=config.accelerator,
        output=Path(config.output_dir or f"runs/{_name_of(config)}_tuning"),
        precision=config.precision,
        overwrite=config.overwrite,
        config=_record(parser, config),
    ).run()


def distillation_parser(command: str) -> Any:
    """Return a parser of everything that a distillation is made from."""
    import lightning as L

    from unidd_pl.distillation import DistillationModule
    from unidd_pl.distilled import PixelType
    from unidd_pl.pretraining import TeacherRecipe
    from unidd_pl.statistics import StatisticsRecipe

    parser = stage_parser(command)
    parser.add_class_arguments(TeacherRecipe, "teacher")
    parser.add_class_arguments(StatisticsRecipe, "statistics")
    # As an argument, not add_subclass_arguments, whose messages speak of a union with None.
    parser.add_argument("--model", type=DistillationModule, required=True, help="the distillation")
    parser.add_class_arguments(L.Trainer, "trainer", instantiate=False)
    parser.add_argument("--output_dir", type=str, default=None, help="default: runs/<name of the config>")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace what output_dir holds")
    parser.add_argument("--pixel_type", type=PixelType, default="uint8", help="pixels of the distilled set")
    parser.add_argument("--checkpoint_every", type=int, default=500, help="iterations between two checkpoints")
    parser.add_argument("--ckpt_path", type=str, default=None, help="checkpoint to go on from, or 'last'")
    return parser


def _distillation_run(parsed: Any, objects: Any, data: Any, output: Path, **options: Any) -> Any:
    """Return the run of a parsed parsed."""
    from unidd_pl.fit import DistillationRun

    return DistillationRun(
        objects.model,
        data,
        objects.teacher,
        objects.statistics,
        objects.tracking,
        objects.trainer.as_dict(),
        output,
        Path(parsed.cache_dir),
        overwrite=parsed.overwrite,
        pixel_type=parsed.pixel_type,
        **options,
    )


def _split(names: list[str]) -> list[str]:
    return [name for part in names for name in part.split(",") if name]


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise ValueError(f"networks: got {names}, expected one: candidates are compared with one architecture")
    return names[0]


def _name_of(config: Any) -> str:
    """Return the name of the config's file."""
    return Path(str(config.config[0])).stem if config.config else "distillation"


def _spectrum(arguments: list[str]) -> None:
    from unidd_pl.spectrum import SpectrumReport

    parser = distillation_parser("spectrum")
    parser.add_argument("--distilled", type=str, nargs="+", default=[], help="files written by `unidd fit`")
    parser.add_argument("--layers", type=str, nargs="+", default=[], help="layers in the figure; default: up to four")
    parser.add_argument("--pictures", type=bool, default=False, help="draw what each set's low and high band hold")
    config, objects = _parsed(parser, arguments)
    SpectrumReport(
        objects.model,
        objects.data,
        objects.teacher,
        objects.statistics,
        objects.tracking,
        objects.trainer.as_dict(),
        Path(config.output_dir or f"runs/{_name_of(config)}"),
        Path(config.cache_dir),
        distilled=[Path(path) for path in config.distilled],
        layers=config.layers,
        pictures=config.pictures,
        overwrite=config.overwrite,
        config=_record(parser, config),
    ).run()


def _methods(arguments: list[str]) -> None:
    from jsonargparse import ArgumentParser

    from unidd_pl.catalogue import method_table

    parser = ArgumentParser(prog="unidd methods", description=COMMANDS["methods"], exit_on_error=False)
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    sys.stdout.write(method_table(markdown=parser.parse_args(arguments).markdown) + "\n")


def _convert(arguments: list[str]) -> None:
    from jsonargparse import ArgumentParser

    from unidd_pl.convert import convert
    from unidd_pl.data import ImageData

    parser = ArgumentParser(prog="unidd convert", description=COMMANDS["convert"], exit_on_error=False)
    parser.add_argument("--config", type=str, help="YAML file of any command; only its data are taken")
    parser.add_argument("--data", type=ImageData, required=True, help="the real data")
    parser.add_argument("--max_side", type=int, default=500, help="longer side that larger images are brought to")
    parser.add_argument("--skip_unreadable", type=bool, default=False, help="leave unreadable images out")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace .beton files that are there")
    config = parser.parse_args(_with_data_of_config(arguments))
    convert(
        parser.instantiate(config).data,
        max_side=config.max_side,
        skip_unreadable=config.skip_unreadable,
        overwrite=config.overwrite,
    )


def _with_data_of_config(arguments: list[str]) -> list[str]:
    """Return arguments with the data of a config file in its place: jsonargparse would refuse the model beside them."""
    from argparse import ArgumentParser

    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        return rest
    try:
        config = load_yaml(Path(known.config).read_text())
    except ValueError as error:
        raise ValueError(f"cannot read the config {known.config} ({error}): expected a YAML file") from error
    if not isinstance(config, dict) or "data" not in config:
        raise ValueError(f"the config {known.config} names no data: expected a key 'data', as in configs/")
    return ["--data", json.dumps(config["data"]), *rest]


def _pretrain(arguments: list[str]) -> None:
    from unidd_pl.pretraining import TeacherRecipe
    from unidd_pl.stages import teacher_stage

    parser = stage_parser("pretrain")
    _add_accelerator(parser)
    parser.add_class_arguments(TeacherRecipe, "teacher")
    config, objects = _parsed(parser, arguments)
    teacher_stage(
        objects.teacher,
        objects.data,
        Path(config.cache_dir),
        objects.tracking,
        accelerator=config.accelerator,
        config=_record(parser, config),
    )


def _relabel(arguments: list[str]) -> None:
    from unidd_pl.relabel_options import add_relabel_options, relabelling

    parser = stage_parser("relabel")
    _add_accelerator(parser)
    add_relabel_options(parser)
    config, objects = _parsed(parser, arguments)
    relabelling(config, objects, _record(parser, config)).run()


def _evaluate(arguments: list[str]) -> None:
    evaluation_of(arguments).run()


def evaluation_of(arguments: list[str], *, shared: dict[str, Any] | None = None, **options: Any) -> Any:
    """Return the evaluation that the arguments of `unidd evaluate` describe; `shared` as in `distillation_of`."""
    from unidd_pl.evaluate import Evaluation
    from unidd_pl.evaluate_options import row_options

    parser = evaluation_parser()
    config, objects = _parsed(parser, arguments)
    return Evaluation(
        distilled=[Path(name) for name in config.distilled],
        data=_shared_data(config, objects, shared),
        teacher=objects.teacher,
        protocol=objects.protocol,
        networks=_split(config.networks),
        seeds=config.seeds,
        cache=Path(config.cache_dir),
        tracking=objects.tracking,
        accelerator=config.accelerator,
        output=Path(config.output) if config.output else None,
        precision=config.precision,
        **row_options(config),
        labels=[Path(name) for name in config.labels],
        teachers=config.teachers,
        overwrite=config.overwrite,
        description=objects.set,
        config=_record(parser, config),
        **options,
    )


def evaluation_parser() -> Any:
    """Return a parser of everything that an evaluation is made from."""
    from unidd_pl.evaluate_options import add_row_options
    from unidd_pl.exchange import SetDescription
    from unidd_pl.pretraining import TeacherRecipe
    from unidd_pl.relabel_options import add_label_options

    parser = stage_parser("evaluate")
    _add_accelerator(parser)
    parser.add_class_arguments(TeacherRecipe, "teacher")
    _add_student_options(parser, seeds=3)
    parser.add_argument("--distilled", type=str, nargs="+", required=True, help="sets of `unidd fit` or made elsewhere")
    parser.add_class_arguments(SetDescription, "set")
    add_label_options(parser)
    parser.add_argument("--output", type=str, default=None, help="JSON file; default: beside the distilled set")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace the JSON file")
    add_row_options(parser)
    return parser


def _export(arguments: list[str]) -> None:
    from unidd_pl.export import run

    run(arguments, COMMANDS["export"], DEFAULT_CACHE)


def _add_accelerator(parser: Any) -> None:
    parser.add_argument("--accelerator", type=str, default="auto", help="Lightning's accelerator: cpu, gpu, …")


def _add_student_options(parser: Any, seeds: int) -> None:
    from unidd_pl.protocols import Protocol

    parser.add_class_arguments(Protocol, "protocol")
    help_text = "architectures of the students, separated by spaces or commas"
    parser.add_argument("--networks", type=str, nargs="+", default=["convnet-w128-d3"], help=help_text)
    parser.add_argument("--seeds", type=int, default=seeds, help="students per row")
    parser.add_argument("--precision", type=str, default="32-true", help="of the students, for example bf16-mixed")


def _parsed(parser: Any, arguments: list[str]) -> tuple[Any, Any]:
    """Return the config as given and with its classes instantiated."""
    try:
        config = parser.parse_args(arguments)
        return config, parser.instantiate(config)
    except (TypeError, AttributeError, KeyError, IndexError, RecursionError, OverflowError, ImportError) as error:
        # jsonargparse's own, where a config has another shape than that of options
        raise ValueError(f"cannot take up the options ({error!r}): expected a config as in configs/") from error


def _record(parser: Any, config: Any) -> str:
    """Return the resolved config as YAML, as it is stored with the results: without passwords."""
    from unidd_pl.tracking import without_password

    shown = config.clone()
    if shown.tracking.uri is not None:
        shown.tracking.uri = without_password(shown.tracking.uri)
    return str(parser.dump(shown))


def stage_parser(command: str) -> Any:
    """Return a parser with the options that every stage has."""
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    from unidd_pl.data import ImageData
    from unidd_pl.tracking import Tracking

    parser = ArgumentParser(prog=f"unidd {command}", description=COMMANDS[command], exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with the options below")
    parser.add_argument("--data", type=ImageData, required=True, help="the real data")
    parser.add_class_arguments(Tracking, "tracking")
    parser.add_argument("--cache_dir", type=str, default=DEFAULT_CACHE, help="teachers and statistics")
    return parser


if __name__ == "__main__":
    main()
