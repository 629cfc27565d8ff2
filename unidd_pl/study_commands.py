"""The commands about many runs: sync, compare and sweep; parsers and wiring, no logic."""

from __future__ import annotations

from typing import Any

from unidd_pl.command_options import COMMANDS, evaluation_parser


def sync(arguments: list[str]) -> None:
    """Run `unidd sync`."""
    from unidd_pl.tracking import outbox_of, sync

    parser = _parser("sync")
    parser.add_argument("--tracking.uri", type=str, default=None, help="store; default: the one each run was for")
    parser.add_argument("--outbox", type=str, default=None, help="folder of the records; default: runs/outbox")
    config = parser.parse_args(arguments)
    sync(outbox_of(config.outbox, config.tracking.uri), config.tracking.uri)


def compare(arguments: list[str]) -> None:
    """Run `unidd compare`."""
    from pathlib import Path

    from unidd_pl.compare import Report
    from unidd_pl.tracking import Tracking

    parser = _parser("compare")
    parser.add_argument("--experiment", type=str, default="unidd", help="name of the MLflow experiment")
    parser.add_argument("--filter", type=str, default="", help="MLflow's filter of runs: \"tags.ipc = '10'\"")
    parser.add_argument("--runs", type=str, nargs="+", default=[], help="ids of runs; with all that is nested below")
    parser.add_argument("--facet", type=bool, default=False, help="a table of each data set and protocol")
    parser.add_argument("--title", type=str, default=None, help="title of the report")
    parser.add_argument("--tracking.uri", type=str, default=None, help="store; default: as for `unidd fit`")
    parser.add_argument("--output_dir", type=str, default=None, help="default: runs/reports/<experiment>")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace the report that output_dir holds")
    config = parser.parse_args(arguments)
    Report(
        Tracking(config.tracking.uri, config.experiment),
        Path(config.output_dir or f"runs/reports/{config.experiment.replace('/', '_')}"),
        filter_string=config.filter,
        run_ids=config.runs,
        facet=config.facet,
        title=config.title,
        overwrite=config.overwrite,
    ).run()


def sweep(arguments: list[str]) -> None:
    """Run `unidd sweep`."""
    from argparse import ArgumentParser
    from functools import partial
    from pathlib import Path

    from unidd_pl.distillation_commands import distillation_of
    from unidd_pl.evaluation_commands import evaluation_of
    from unidd_pl.grid import parse_grid
    from unidd_pl.sweep import Sweep
    from unidd_pl.tracking import Tracking

    # Plain argparse: here --config names inputs of the sweep, and may stand several times.
    parser = ArgumentParser(prog="unidd sweep", description=COMMANDS["sweep"], allow_abbrev=False)
    parser.add_argument("--config", nargs="+", action="extend", required=True, help="config files of distillations")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=V1,V2",
        help="values to try, or one for all points",
    )
    parser.add_argument("--seeds", type=int, default=1, help="distillations of each combination")
    parser.add_argument("--evaluate", required=True, help="config file of the evaluation")
    parser.add_argument("--students", type=int, default=None, help="students on each set; default: the config's seeds")
    parser.add_argument("--experiment", default="study", help="name of the MLflow experiment")
    parser.add_argument("--output_dir", default=None, help="default: runs/<experiment>")
    parser.add_argument("--tracking.uri", dest="uri", default=None, help="store; default: as for `unidd fit`")
    parser.add_argument("--overwrite", choices=["true", "false"], default="false", help="make anew what differs")
    parser.add_argument("--report", choices=["true", "false"], default="true", help="compare the points at the end")
    given = parser.parse_args(arguments)
    shared: dict[str, Any] = {}
    Sweep(
        [Path(one) for one in given.config],
        parse_grid(given.set),
        given.seeds,
        Path(given.evaluate),
        given.students,
        Tracking(given.uri, given.experiment),
        Path(given.output_dir or f"runs/{given.experiment.replace('/', '_')}"),
        partial(distillation_of, shared=shared),
        partial(evaluation_of, shared=shared),
        lambda options: evaluation_parser().parse_args(options),
        overwrite=given.overwrite == "true",
        report=given.report == "true",
    ).run()


def _parser(command: str) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"unidd {command}", description=COMMANDS[command], exit_on_error=False)
