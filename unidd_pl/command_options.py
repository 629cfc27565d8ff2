"""The options of the commands: what each can be told, and what is made of it; no logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unidd_pl.configs import load_yaml

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
_SHOWN = 400  # characters of a command line in a message


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


def distillation_parser(command: str) -> Any:
    """Return a parser of everything that a distillation is made from."""
    import lightning as L

    from unidd_pl.distillation import DistillationModule
    from unidd_pl.distilled import PixelType
    from unidd_pl.pretraining import TeacherRecipe
    from unidd_pl.rounds import Spread
    from unidd_pl.statistics_cache import StatisticsRecipe

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
    spread = (
        "over the processes of torchrun or srun: 'chunks', the images of each, or 'rounds', whole ones side by side, "
        "which needs running off"
    )
    parser.add_argument("--spread", type=Spread, default="chunks", help=spread)
    return parser


def evaluation_parser() -> Any:
    """Return a parser of everything that an evaluation is made from."""
    from unidd_pl.evaluate_options import add_row_options
    from unidd_pl.exchange import SetDescription
    from unidd_pl.pretraining import TeacherRecipe
    from unidd_pl.relabel_options import add_label_options

    parser = stage_parser("evaluate")
    add_accelerator(parser)
    parser.add_class_arguments(TeacherRecipe, "teacher")
    add_student_options(parser, seeds=3)
    parser.add_argument("--distilled", type=str, nargs="+", required=True, help="sets of `unidd fit` or made elsewhere")
    parser.add_class_arguments(SetDescription, "set")
    add_label_options(parser)
    parser.add_argument("--output", type=str, default=None, help="JSON file; default: beside the distilled set")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace the JSON file")
    add_row_options(parser)
    return parser


def add_accelerator(parser: Any) -> None:
    """Add the option of stages that have no Trainer's."""
    parser.add_argument("--accelerator", type=str, default="auto", help="Lightning's accelerator: cpu, gpu, …")


def add_student_options(parser: Any, seeds: int) -> None:
    """Add the options of students; `seeds` is how many there are of a row by default."""
    from unidd_pl.protocols import Protocol

    parser.add_class_arguments(Protocol, "protocol")
    help_text = "architectures of the students, separated by spaces or commas"
    parser.add_argument("--networks", type=str, nargs="+", default=["convnet-w128-d3"], help=help_text)
    parser.add_argument("--seeds", type=int, default=seeds, help="students per row")
    parser.add_argument("--precision", type=str, default="32-true", help="of the students, for example bf16-mixed")


def with_data_of_config(arguments: list[str]) -> list[str]:
    """Return arguments with the data of a config file in its place: jsonargparse would refuse the model beside them."""
    from argparse import ArgumentParser

    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        return rest
    try:
        config = load_yaml(Path(known.config).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read the config {known.config} ({error}): expected a YAML file") from error
    if not isinstance(config, dict) or "data" not in config:
        raise ValueError(f"the config {known.config} names no data: expected a key 'data', as in configs/")
    return ["--data", json.dumps(config["data"]), *rest]


def parsed(parser: Any, arguments: list[str]) -> tuple[Any, Any]:
    """Return the config as given and with its classes instantiated."""
    try:
        config = parser.parse_args(arguments)
        return config, parser.instantiate(config)
    except UnicodeDecodeError as error:
        given = " ".join(arguments)[:_SHOWN]
        raise ValueError(
            f"a file that the options {given} name is no text ({error}): expected YAML in UTF-8"
        ) from error
    except (TypeError, AttributeError, KeyError, IndexError, RecursionError, OverflowError, ImportError) as error:
        # jsonargparse's own, where a config has another shape than that of options
        raise ValueError(f"cannot take up the options ({error!r}): expected a config as in configs/") from error


def record(parser: Any, config: Any) -> str:
    """Return the resolved config as YAML, as it is stored with the results: without passwords."""
    from unidd_pl.tracking import without_password

    shown = config.clone()
    if shown.tracking.uri is not None:
        shown.tracking.uri = without_password(shown.tracking.uri)
    return str(parser.dump(shown))


def shared_data(config: Any, objects: Any, shared: dict[str, Any] | None) -> Any:
    """Return the data of a config, or the same ones that were made before."""
    if shared is None:
        return objects.data
    return shared.setdefault(json.dumps(config.data.as_dict(), sort_keys=True, default=str), objects.data)


def split_names(names: list[str]) -> list[str]:
    """Return names that are separated by spaces or commas."""
    return [name for part in names for name in part.split(",") if name]


def name_of(config: Any) -> str:
    """Return the name of the config's file."""
    return Path(str(config.config[0])).stem if config.config else "distillation"
