"""A set as pictures in class folders, as every ImageFolder-style reader takes it."""

from __future__ import annotations

from pathlib import Path

import torch

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.assembling import decode, encode, stacked
from unidd_pl.exchange.raw import RawSet
from unidd_pl.specs import DatasetSpec

INDEX_DIGITS = 5  # as both scorers number their folders; sorted by name they are in label order
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def write_folders(distilled: DistilledSet, root: Path) -> None:
    """Write ``<label>/<position in the set>.png``, both zero-padded; uint8 pixels exactly."""
    for position, (pixels, label) in enumerate(zip(distilled.images, distilled.labels.tolist(), strict=True)):
        folder = root / folder_of(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{position:0{INDEX_DIGITS}d}.png").write_bytes(encode(pixels))


def folder_of(label: int) -> str:
    """Return the folder of a class: by number, so that sorting gives the order of the labels."""
    return f"{label:0{INDEX_DIGITS}d}"


def read_folders(root: Path, spec: DatasetSpec) -> RawSet:
    """Read pictures from class folders, in the order of the file names.

    Raises:
        ValueError: If there are no class folders, or a picture is damaged or of another form than the data's.
    """
    names = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    if not names:
        raise ValueError(
            f"{root}: got a folder without class folders, expected <class>/<picture>, *.parquet, *.tar or an export of "
            "`unidd export`: give the folder that holds them"
        )
    found = [
        (file.name, label, file)
        for label, name in enumerate(names)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
    ]
    if len(names) == 1 and not any(file.parent.parent == root for _, _, file in found) and found:
        raise ValueError(
            f"{root}: got one folder, {names[0]}, with folders in it, expected the class folders: give "
            f"{root / names[0]}"
        )
    pictures = [decode(file, spec, str(file)) for _, _, file in found]
    labels = torch.tensor([label for _, label, _ in found], dtype=torch.int64)
    return RawSet(stacked(pictures, spec, str(root)), labels, names, "folder", in_folders=True)


def order_of_export(root: Path) -> torch.Tensor:
    """Return for the pictures of an export, as `read_folders` orders them, their positions in the set."""
    positions = [
        int(file.stem) for folder in sorted(root.iterdir()) if folder.is_dir() for file in sorted(folder.iterdir())
    ]
    return torch.tensor(positions, dtype=torch.int64)
