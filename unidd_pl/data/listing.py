"""What lies in a folder of classes: their names, their image files, and what form those have."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from unidd_pl.data.images import open_picture
from unidd_pl.image_files import open_image

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_PROBED_IMAGES = 200  # headers read to learn size and colour; all of them would take minutes on a large set


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders, alphabetically.

    Raises:
        ValueError: If there is none.
    """
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(Path(entry.name))))
    if not names:
        raise ValueError(f"{folder} is empty: expected one folder of images for each class")
    return names


def image_files(folder: Path) -> list[Path]:
    """Return the image files of one class, in folders of it too, sorted by path.

    Raises:
        ValueError: If there is none.
    """
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not _hidden(path.relative_to(folder))
    )
    if not files:
        raise ValueError(f"{folder} holds no images: expected files such as .png or .jpg; fill the folder or remove it")
    return files


def split_files(files: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Divide the files of one class in two, in their order: by a hash of the names, so at random and for ever.

    Args:
        files: The files.
        share: Share of them in the second part; at least one.

    Raises:
        ValueError: If none would be left for the first part.
    """
    count = max(1, round(share * len(files)))
    if count >= len(files):
        raise ValueError(
            f"{files[0].parent} has {len(files)} images, expected enough to keep some beside {count} test images: "
            "lower --data.init_args.test_share, or leave the class out"
        )
    by_hash = sorted(files, key=lambda path: (hashlib.sha256(path.name.encode()).digest(), path))
    second = set(by_hash[:count])
    return [path for path in files if path not in second], [path for path in files if path in second]


def image_form(paths: Sequence[Path], folder: Path, image_size: int | None) -> tuple[int, int]:
    """Return channels and size in pixels of the decoded images, learnt from the headers of some.

    Raises:
        ValueError: If no size is given and they are not all square and alike.
    """
    probed = [form for path in paths[:: max(1, len(paths) // _PROBED_IMAGES)] if (form := _probe(path))]
    if not probed:
        open_picture(paths[0])  # says why it cannot be read
    channels = 1 if all(mode in ("L", "1") for mode, _ in probed) else 3
    sizes = Counter(size for _, size in probed)
    (width, height), _ = sizes.most_common(1)[0]
    if image_size is not None:
        return channels, image_size
    if len(sizes) > 1 or width != height:
        raise ValueError(
            f"the images in {folder} are not all square and of one size (for example {width}×{height}): "
            "say the size to bring them to, for example --data.init_args.image_size 64"
        )
    return channels, width


def _hidden(path: Path) -> bool:
    return any(
        part.startswith(".") for part in path.parts
    )  # such as .ipynb_checkpoints and the ._ files that macOS leaves


def _probe(path: Path) -> tuple[str, tuple[int, int]] | None:
    """Return mode and size, or None where the file cannot be read: who decodes it says so, or leaves it out."""
    try:
        with open_image(path) as image:
            return image.mode, image.size
    except Exception:  # whatever the bytes of a foreign file make Pillow's many decoders stumble over
        return None
