"""What has to be said of a set that was made elsewhere and that its file does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from unidd_pl.configs import load_yaml

Pixels = Literal["0-255", "0-1", "normalised"]
AS_DATA = "data"  # the class order of the data


@dataclass(frozen=True)
class SetFacts:
    """The facts of one set; see `SetDescription` for their meaning."""

    name: str | None = None
    labels: str | None = None
    classes: str | list[str] | dict[str, str] | None = None
    pixels: Pixels | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        if self.pixels not in (None, *get_args(Pixels)):
            raise ValueError(f"set.pixels: got {self.pixels!r}, expected one of {', '.join(get_args(Pixels))}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("set.mean and set.std: got only one of them, expected both or neither")
        if self.mean is not None and self.pixels not in (None, "normalised"):
            raise ValueError(
                f"set.pixels: got {self.pixels} with a mean, expected normalised pixels with it: leave one of them out"
            )
        if isinstance(self.classes, str) and self.classes != AS_DATA:
            raise ValueError(
                f"set.classes: got {self.classes!r}, expected a list of names in label order, a mapping of names to "
                f"the data's names, or the word {AS_DATA!r} where the labels follow the data's class order"
            )


class SetDescription:
    """What is to be known of sets made elsewhere; sets written by this project describe themselves.

    A file ``<set>.yaml`` beside a set (``images_best.pt.yaml``, or ``rded.yaml`` beside the folder ``rded``) with
    the same keys goes before these options.

    Args:
        name: What the set is called in the table; its file's name where None.
        labels: File with the labels, (n,) integers, of a tensor that comes without them.
        classes: The class names in the order of the labels or of the numbered folders; a mapping from the set's class
            names to the data's; or ``data`` where the labels follow the data's class order.
        pixels: What floating-point pixels are: ``0-255``, ``0-1`` or ``normalised``.
        mean: Mean per channel that the pixels were normalised with; the data's where None.
        std: Standard deviation per channel that they were normalised with; the data's where None.
        clip: Bring pixels beyond black and white into the range, which changes the set, instead of refusing them.

    Raises:
        ValueError: If the facts contradict each other.
    """

    def __init__(
        self,
        name: str | None = None,
        labels: str | None = None,
        classes: str | list[str] | dict[str, str] | None = None,
        pixels: Pixels | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        clip: bool = False,
    ) -> None:
        self.facts = SetFacts(name, labels, classes, pixels, _floats(mean), _floats(std), clip)

    def of(self, path: Path) -> SetFacts:
        """Return the facts of one set: those of its own file where it has one, over these.

        Raises:
            ValueError: If that file cannot be read or has other keys.
        """
        beside = Path(f"{path}.yaml")
        if not beside.is_file():
            return self.facts
        try:
            content = load_yaml(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {beside} ({error}): expected a YAML file about {path.name}") from error
        known = [one.name for one in fields(SetFacts)]
        if not isinstance(content, dict) or not content.keys() <= set(known):
            got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{beside}: got {got}, expected some of the keys {', '.join(known)}")
        if content.get("labels"):  # named from where the description lies
            content["labels"] = str(beside.parent / str(content["labels"]))
        for key in ("mean", "std"):
            content[key] = _floats(content[key]) if content.get(key) is not None else None
        if isinstance(content.get("classes"), list):
            content["classes"] = [str(name) for name in content["classes"]]
        if isinstance(content.get("classes"), Mapping):
            content["classes"] = {str(name): str(other) for name, other in content["classes"].items()}
        return replace(self.facts, **{key: value for key, value in content.items() if value is not None})


def _floats(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"set.mean and set.std: got {values!r}, expected one number a channel") from error
