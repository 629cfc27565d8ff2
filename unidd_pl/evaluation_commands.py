"""The commands about a distilled set: evaluate, relabel, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unidd_pl.command_options import (
    COMMANDS,
    DEFAULT_CACHE,
    add_accelerator,
    evaluation_parser,
    parsed,
    record,
    shared_data,
    split_names,
    stage_parser,
)


def evaluate(arguments: list[str]) -> None:
    """Run `unidd evaluate`."""
    evaluation_of(arguments).run()


def evaluation_of(arguments: list[str], *, shared: dict[str, Any] | None = None, **options: Any) -> Any:
    """Return the evaluation that the arguments of `unidd evaluate` describe; `shared` as in `distillation_of`."""
    from unidd_pl.evaluate import Evaluation
    from unidd_pl.evaluate_options import row_options

    parser = evaluation_parser()
    config, objects = parsed(parser, arguments)
    return Evaluation(
        distilled=[Path(name) for name in config.distilled],
        data=shared_data(config, objects, shared),
        teacher=objects.teacher,
        protocol=objects.protocol,
        networks=split_names(config.networks),
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
        config=record(parser, config),
        **options,
    )


def relabel(arguments: list[str]) -> None:
    """Run `unidd relabel`."""
    from unidd_pl.relabel_options import add_relabel_options, relabelling

    parser = stage_parser("relabel")
    add_accelerator(parser)
    add_relabel_options(parser)
    config, objects = parsed(parser, arguments)
    relabelling(config, objects, record(parser, config)).run()


def export(arguments: list[str]) -> None:
    """Run `unidd export`."""
    from unidd_pl.export import run

    run(arguments, COMMANDS["export"], DEFAULT_CACHE)
