"""`unidd plan` on the command line: the config of a fit, with the data where they are and without them where not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unidd_pl.data import ImageData
from unidd_pl.planning import facts_of, make_plan, report
from unidd_pl.stages import device_of

_GIVEN = {
    "num_classes": "number of classes, where the data are not there",
    "image_size": "height and width of the images, pixels, likewise",
    "channels": "1 or 3, likewise",
    "train_images": "number of training images, likewise",
}


def plan(parser: Any, arguments: Sequence[str]) -> None:
    """Print the plan of a distillation.

    Args:
        parser: Parser of everything that a distillation is made from.
        arguments: Words of the command line after the command.

    Raises:
        ValueError: If the config is no distillation, or nothing tells the size of its data.
    """
    for name, text in _GIVEN.items():
        parser.add_argument(f"--{name}", type=int, default=None, help=text)
    parser.add_argument("--timed", type=bool, default=True, help="time some steps on random images")
    parser.add_argument("--json", type=str, default=None, help="also write the plan to this file")
    config = parser.parse_args(list(arguments))
    given = {name: config[name] for name in _GIVEN}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}: got {value}, expected at least 1")
    settings = config.data.init_args.as_dict() if "init_args" in config.data else {}
    without_data = config.clone()
    without_data.data = None
    objects = parser.instantiate(without_data)
    module, recipe = objects.model, objects.teacher
    report(
        make_plan(
            module,
            recipe.network,
            facts_of(_data_at_hand(parser, config, settings), settings, given),
            device_of(str(config.trainer.accelerator)),
            in_memory_gib=float(settings.get("in_memory_gib", 0)),
            timed=config.timed,
        ),
        Path(config.json) if config.json else None,
    )


def _data_at_hand(parser: Any, config: Any, settings: dict[str, Any]) -> ImageData | None:
    """Return the data where their folder is there; nothing is downloaded."""
    root = settings.get("root")
    if "dataset" in settings and not (Path(root or "") / "train").is_dir():
        return None  # torchvision's files, whose sizes are known
    if root is not None and not Path(root).is_dir():
        return None
    data: ImageData = parser.instantiate(config).data
    return data
