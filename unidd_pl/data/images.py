"""Labelled images of one split, in memory or in files, read in batches of indices.

Legend: n images, c channels, h w space.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset
from tqdm import tqdm

from unidd_pl.data.crops import RandomCrops
from unidd_pl.data.order import WHOLE, Order, Shard
from unidd_pl.image_files import open_image

_PROGRESS_FROM = 2000  # images; decoding fewer takes about a second and needs no bar
_DECODE_BLOCK = 256  # images decoded per progress step

Batch = tuple[Tensor, Tensor]


class BatchLoader(Protocol):
    """What `LabelledImages.loader` returns: batches of one epoch each time it is iterated."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield images (n, c, h, w) uint8 in 0-255 and labels (n,) int64; the caller owns them."""

    def __len__(self) -> int:
        """Return the number of batches."""


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
    def read_crops(self, indices: Sequence[int], crops: RandomCrops, epoch: int) -> Tensor:
        """Return a random crop of each of these images, resized to the size that `read` gives, (n, c, h, w) uint8."""

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
        crops: RandomCrops | None = None,
        shard: Shard = WHOLE,
        first: int = 0,
    ) -> BatchLoader:
        """Return a loader of whole batches.

        Args:
            batch_size: Images a batch.
            generator: Draws a new order each epoch; None keeps the order of the split.
            workers: Processes that decode; 0 reads in this process.
            drop_last: Leave an incomplete last batch out.
            crops: Random crops, others each epoch, instead of the images as they are.
            shard: The share of this process; each gives a generator in the same state.
            first: Images of the share to leave out at the start of every epoch, to go on within a pass.
        """
        batches = BatchSampler(Order(len(self), generator, shard, first), batch_size, drop_last)
        # The sampler yields lists of indices and the data set returns batches: no per-image collation.
        if crops is None:
            return DataLoader(self, sampler=batches, batch_size=None, num_workers=workers)
        return DataLoader(_Crops(self, crops), sampler=_Epochs(batches), batch_size=None, num_workers=workers)


class _Epochs:
    """The batches of a sampler, each with the number of its epoch: workers have no other way to know it."""

    def __init__(self, batches: BatchSampler) -> None:
        self.batches = batches
        self.epoch = -1

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        self.epoch += 1  # at the first batch: a DataLoader with workers asks for two iterators and uses one
        for indices in self.batches:
            yield self.epoch, indices

    def __len__(self) -> int:
        return len(self.batches)


class _Crops(Dataset[Batch]):
    """Random crops of images, indexed by epoch and a list of positions."""

    def __init__(self, images: LabelledImages, crops: RandomCrops) -> None:
        self.images = images
        self.crops = crops

    def __getitem__(self, place: tuple[int, list[int]]) -> Batch:
        epoch, indices = place
        return self.images.read_crops(indices, self.crops, epoch), self.images.labels[torch.as_tensor(indices)]


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

    def read_crops(self, indices: Sequence[int], crops: RandomCrops, epoch: int) -> Tensor:
        """Return a random crop of each of these images, resized bilinearly, (n, c, h, w) uint8."""
        height, width = self.images.shape[2:]
        positions = np.asarray(indices)
        boxes = crops.boxes(positions, np.full(len(positions), width), np.full(len(positions), height), epoch)
        cut = [
            self.images[index : index + 1, :, top : top + tall, left : left + wide].float()
            for index, (top, left, tall, wide) in zip(indices, boxes.tolist(), strict=True)
        ]
        resized = [F.interpolate(one, (height, width), mode="bilinear", antialias=True) for one in cut]
        return torch.cat(resized).round().clamp(0, 255).to(torch.uint8)

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

    def read_crops(self, indices: Sequence[int], crops: RandomCrops, epoch: int) -> Tensor:
        """Return a random crop of each of these files, resized bilinearly, (n, c, h, w) uint8."""
        images = []
        for index in indices:
            image = self._converted(self.paths[int(index)])
            place, width, height = np.array([[int(index)], [image.width], [image.height]])
            ((top, left, height, width),) = crops.boxes(place, width, height, epoch).tolist()
            size, box = (self.image_size, self.image_size), (left, top, left + width, top + height)
            images.append(self._pixels(image.resize(size, Image.Resampling.BILINEAR, box)))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    def fingerprint(self) -> str:
        """Return a digest of names, sizes in bytes and labels; the pixels are not read."""
        return self.listing((self.channels, self.image_size, self.resize))

    def listing(self, form: object = ()) -> str:
        """Return a digest of names, sizes in bytes, labels and of `form`, how the images are to be decoded."""
        digest = hashlib.sha256(repr(form).encode())
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
        image = self._converted(path)
        if image.size != (self.image_size, self.image_size) or self.resize != self.image_size:
            image = _resize_and_crop(image, self.resize, self.image_size)
        return self._pixels(image)

    def _converted(self, path: Path) -> Image.Image:
        return open_picture(path).convert("L" if self.channels == 1 else "RGB")

    def _pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image).reshape(self.image_size, self.image_size, self.channels)


def open_picture(path: Path) -> Image.Image:
    """Decode the whole of one image file, in the file's own mode.

    Raises:
        ValueError: If it is not a readable image of 8 bits a channel; the message names it.
    """
    try:
        with open_image(path) as file:
            if file.mode.startswith(("I", "F")):  # Pillow would clip these to white
                raise ValueError(f"{file.mode} pixels; expected 8 bits a channel")
            file.load()
            return file
    except Exception as error:  # whatever the bytes of a foreign file make Pillow's many decoders stumble over
        raise ValueError(
            f"cannot read the image {path} ({error}): expected a picture that is whole; replace the file or remove it"
        ) from error


def _resize_and_crop(image: Image.Image, resize: int, size: int) -> Image.Image:
    scale = resize / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))
