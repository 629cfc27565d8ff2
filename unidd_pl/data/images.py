"""Labelled images of one split, in memory or in files, read in batches of indices.

Legend: n images, c channels, h w space.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler
from tqdm import tqdm

_PROGRESS_FROM = 2000  # images; decoding fewer takes about a second and needs no bar
_DECODE_BLOCK = 256  # images decoded per progress step

Batch = tuple[Tensor, Tensor]


class LabelledImages(Dataset[Batch], ABC):
    """The images of one split with their labels.

    Indexing takes a list of indices and returns a batch: images (n, c, h, w) uint8 in 0-255 and
    labels (n,) int64.

    Args:
        labels: (n,) int64, the position of the class in the data set's class list.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at these positions, (n, c, h, w) uint8."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hexadecimal digest that changes when images, their order or labels change."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        return self.read(indices), self.labels[torch.as_tensor(indices)]

    def positions_of(self, label: int) -> Tensor:
        """Return the positions of the images of one class, in order, (m,) int64."""
        return (self.labels == label).nonzero().flatten()

    def loader(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        workers: int = 0,
        drop_last: bool = False,
    ) -> DataLoader[Batch]:
        """Return a loader of whole batches.

        Args:
            batch_size: Images a batch.
            generator: Draws a new order each epoch; None keeps the order of the split.
            workers: Processes that decode; 0 reads in this process.
            drop_last: Leave an incomplete last batch out.
        """
        sampler = SequentialSampler(self) if generator is None else RandomSampler(self, generator=generator)
        batches = BatchSampler(sampler, batch_size, drop_last)
        # The sampler yields lists of indices and the data set returns batches: no per-image collation.
        return DataLoader(self, sampler=batches, batch_size=None, num_workers=workers)


class TensorImages(LabelledImages):
    """Images held in memory.

    Args:
        images: (n, c, h, w) uint8 in 0-255.
        labels: (n,) int64.

    Raises:
        ValueError: If shapes or types do not fit.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) != len(labels):
            raise ValueError(
                f"got images {tuple(images.shape)} {images.dtype} with {len(labels)} labels, "
                "expected uint8 (n, c, h, w) with n labels"
            )
        super().__init__(labels)
        self.images = images

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at these positions, (n, c, h, w) uint8."""
        return self.images[torch.as_tensor(indices)]

    def fingerprint(self) -> str:
        """Return a digest of pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.numpy().data)  # no copy of what may be gigabytes
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()


class ImageFiles(LabelledImages):
    """Images in files, decoded when they are read.

    An image that is not square or not of the size is resized on its shorter side and cropped at the centre.

    Args:
        paths: n files.
        labels: (n,) int64.
        root: Folder that the paths are named from in the fingerprint, so that a moved folder keeps it.
        channels: 1 (grayscale) or 3 (RGB); files of another mode are converted.
        image_size: Height and width of the decoded images, pixels.
        resize: Shorter side before the centre crop, pixels.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, root: Path, channels: int, image_size: int, resize: int
    ) -> None:
        super().__init__(labels)
        self.paths = list(paths)
        self.root = root
        self.channels = channels
        self.image_size = image_size
        self.resize = resize

    @property
    def nbytes(self) -> int:
        """Memory that all images take when decoded, bytes."""
        return len(self) * self.channels * self.image_size**2

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode the images at these positions, (n, c, h, w) uint8.

        Raises:
            ValueError: If a file is not a readable image; the message names it.
        """
        images = [self._decode(self.paths[int(index)]) for index in indices]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    def fingerprint(self) -> str:
        """Return a digest of names, sizes in bytes and labels; the pixels are not read."""
        digest = hashlib.sha256(repr((self.channels, self.image_size, self.resize)).encode())
        for path, label in zip(self.paths, self.labels.tolist(), strict=True):
            digest.update(f"{path.relative_to(self.root)}\0{path.stat().st_size}\0{label}\n".encode())
        return digest.hexdigest()

    def decode_all(self) -> TensorImages:
        """Decode every image into memory, on all cores."""
        images = torch.empty(len(self), self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        starts = range(0, len(self), _DECODE_BLOCK)

        def decode_block(start: int) -> None:
            stop = min(start + _DECODE_BLOCK, len(self))
            images[start:stop] = self.read(range(start, stop))

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter lock
            blocks = pool.map(decode_block, starts)
            quiet = len(self) < _PROGRESS_FROM
            for _ in tqdm(blocks, f"Reading {self.root}", len(starts), leave=False, disable=quiet):
                pass
        return TensorImages(images, self.labels)

    def _decode(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as file:
                if file.mode.startswith(("I", "F")):  # Pillow would clip these to white
                    raise ValueError(f"{file.mode} pixels; expected 8 bits a channel")
                image = file.convert("L" if self.channels == 1 else "RGB")
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"cannot read the image {path} ({error}): expected a picture that is whole; "
                "replace the file or remove it"
            ) from error
        if image.size != (self.image_size, self.image_size) or self.resize != self.image_size:
            image = _resize_and_crop(image, self.resize, self.image_size)
        return np.asarray(image).reshape(self.image_size, self.image_size, self.channels)


def _resize_and_crop(image: Image.Image, resize: int, size: int) -> Image.Image:
    scale = resize / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))
