"""The validation split of Tiny-ImageNet as it is unpacked: one folder of images, and a file that says their classes.

::

    tiny-imagenet-200/train/<wnid>/images/<wnid>_<number>.JPEG
    tiny-imagenet-200/val/images/val_<number>.JPEG
    tiny-imagenet-200/val/val_annotations.txt       file, WNID and a box, separated by tabs, a line an image
    tiny-imagenet-200/wnids.txt                     the classes
    tiny-imagenet-200/test/images/…                 without labels, not read
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ANNOTATIONS = "val_annotations.txt"
_IMAGES = "images"
_WNIDS = "wnids.txt"
_SHOWN = 5  # names in a message
_LONGEST = 80  # characters of one
_ANEW = "unpack the archive anew, or complete the file"


def annotated_folder(root: Path) -> Path | None:
    """Return the folder of a validation split that is laid out so, or None; class folders may have been made of it."""
    folder = root / "val"
    return folder if (folder / ANNOTATIONS).is_file() and (folder / _IMAGES).is_dir() else None


def check_all_classes(root: Path, classes: Sequence[str]) -> None:
    """Refuse a training split that lacks a class that ``wnids.txt`` names, or has another.

    Raises:
        ValueError: If so.
    """
    path = root / _WNIDS
    if not path.is_file():
        return
    named = set(_text(path).split())
    if named != set(classes):
        raise ValueError(
            f"{root / 'train'} has other classes than {path} names: missing {_some(named - set(classes))}, "
            f"only there {_some(set(classes) - named)}; expected the same; unpack the archive anew"
        )


def annotated_images(folder: Path, classes: Sequence[str], known: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Return the images of a validation split that are of some classes, class by class, and their labels.

    Args:
        folder: The folder of the split.
        classes: The classes wanted, in the order of the labels.
        known: All classes that there are.

    Raises:
        ValueError: If an image has no annotation, an annotation no image or no known class, or a class no image.
    """
    annotations = _read(folder / ANNOTATIONS)
    images = {path.name: path for path in (folder / _IMAGES).glob("*") if not path.name.startswith(".")}
    for what, names in (
        ("annotations of images that are not there", set(annotations) - set(images)),
        ("images without an annotation", set(images) - set(annotations)),
        ("annotations of unknown classes", set(annotations.values()) - set(known)),
        ("classes without an image", set(classes) - set(annotations.values())),
    ):
        if names:
            shown = ", ".join(_some(names))
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ValueError(f"{folder / ANNOTATIONS}: got {len(names)} {what}: {shown}{more}; expected none; {_ANEW}")
    labels = {name: label for label, name in enumerate(classes)}
    chosen = sorted((labels[wnid], name) for name, wnid in annotations.items() if wnid in labels)
    return [images[name] for _, name in chosen], [label for label, _ in chosen]


def _read(path: Path) -> dict[str, str]:
    """Return the class of each image by its name."""
    found: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = line.split("\t")
        if not line.strip():
            continue
        if len(fields) < 2 or fields[0] in found:
            why = "an image a second time" if len(fields) > 1 else f"{line[:60]!r}"
            raise ValueError(f"{path}, line {number}: got {why}, expected a file and its WNID, by tabs; {_ANEW}")
        found[fields[0]] = fields[1].strip()
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got what is no text ({error}), expected names, a line each; {_ANEW}") from error


def _some(names: set[str]) -> list[str]:
    return [name[:_LONGEST] for name in sorted(names)[:_SHOWN]]
