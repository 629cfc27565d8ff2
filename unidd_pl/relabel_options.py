"""The options of `unidd relabel`, and those of an evaluation that speak of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unidd_pl.exchange import SetDescription
from unidd_pl.label_codec import LabelType
from unidd_pl.pretraining import TeacherRecipe
from unidd_pl.protocols import Protocol
from unidd_pl.relabel import Relabelling


def add_teachers_option(parser: Any) -> None:
    """Add the option of several teachers."""
    help_text = "several checkpoints whose logits are averaged, FILE or NETWORK=FILE, instead of --teacher.checkpoint"
    parser.add_argument("--teachers", type=str, nargs="+", default=[], help=help_text)


def add_label_options(parser: Any) -> None:
    """Add what an evaluation has to be told of its labels."""
    add_teachers_option(parser)
    help_text = "files of `unidd relabel`, for labels: stored; default: those beside the distilled sets"
    parser.add_argument("--labels", type=str, nargs="+", default=[], help=help_text)


def add_relabel_options(parser: Any) -> None:
    """Add the options of `unidd relabel` that other stages do not have."""
    parser.add_class_arguments(TeacherRecipe, "teacher")
    parser.add_class_arguments(Protocol, "protocol")
    add_teachers_option(parser)
    parser.add_class_arguments(SetDescription, "set")
    parser.add_argument("--distilled", type=str, required=True, help="a set of `unidd fit` or made elsewhere")
    parser.add_argument(
        "--output", type=str, default=None, help="default: <distilled set>.labels.safetensors beside it"
    )
    parser.add_argument("--label_type", type=LabelType, default="float16", help="the numbers that are kept")
    parser.add_argument("--top_k", type=int, default=None, help="keep the largest logits only; default: all")
    parser.add_argument("--epochs", type=int, default=None, help="views of each image; default: the protocol's epochs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the views")
    parser.add_argument("--dry_run", type=bool, default=False, help="only say how large the file would be")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace the file")
    # So that the config of an evaluation can be given as it is.
    parser.add_argument("--networks", type=str, nargs="+", default=[], help="of evaluations; not used here")
    parser.add_argument("--seeds", type=int, default=0, help="of evaluations; not used here")


def relabelling(config: Any, objects: Any, record: str) -> Relabelling:
    """Return the run of a parsed config.

    Args:
        config: The config as given.
        objects: The config with its classes instantiated.
        record: The resolved config as YAML.
    """
    return Relabelling(
        Path(config.distilled),
        objects.data,
        objects.teacher,
        objects.protocol,
        Path(config.cache_dir),
        objects.tracking,
        config.accelerator,
        Path(config.output) if config.output else None,
        teachers=config.teachers,
        label_type=config.label_type,
        top_k=config.top_k,
        epochs=config.epochs,
        seed=config.seed,
        overwrite=config.overwrite,
        dry_run=config.dry_run,
        description=objects.set,
        config=record,
    )
