"""A small data set as .beton files, for the tests of conversion and of the FFCV loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unidd_pl.data import ImageFolderData
from unidd_pl.data.conversion import write_beton


def photographs(root: Path, count: int = 3) -> Path:
    """Write smooth JPEG images of many sizes and modes, two classes in ``train`` and ``val``."""
    draw = np.random.default_rng(0)
    modes = ("RGB", "L", "CMYK")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                coarse = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                size = (int(draw.integers(40, 90)), int(draw.integers(40, 90)))
                image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
                image.convert(modes[index % len(modes)]).save(folder / f"{index:02d}.jpg", quality=92)
    return root


def convert_all(data: ImageFolderData) -> ImageFolderData:
    """Write the .beton files of both splits; return the data."""
    for split in ("train", "test"):
        write_beton(data.list_split(split), data.read_classes(), split, data.beton_path(split))
    return data
