"""The images of a .beton file, streamed by FFCV or read by position.

Legend: n images, c channels, h w space.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unidd_pl.data.beton import Beton
from unidd_pl.data.crops import Integers, RandomCrops, centre_cuts, random_cuts
from unidd_pl.data.images import Batch, BatchLoader, LabelledImages
from unidd_pl.data.order import WHOLE, Order, Shard

if TYPE_CHECKING:
    from unidd_pl.data.ffcv_pipeline import Stream

_SHARE_OF_MEMORY = 0.8  # of the machine's: a larger file would push itself out of the system's cache
_READ_BLOCK = 16  # images that a thread decodes at a time


class BetonImages(LabelledImages):
    """Images of a .beton file, decoded by FFCV when they are read.

    The shorter side and the crop at the centre are those of `ImageFiles`; the decoder is another one, see
    `unidd_pl.data.ffcv_pipeline`.

    Args:
        beton: The file.
        content: Digest of its images and labels, from its manifest.
        channels: 1 (grayscale, of images that are) or 3 (RGB).
        image_size: Height and width of the decoded images, pixels.
        resize: Shorter side before the centre crop, pixels.
        threads: Threads that decode.
        os_cache: Map the file into memory; None does so where the machine's memory holds it. Else FFCV reads it page
            by page, and a random order becomes one that stays within a few pages at a time.
    """

    def __init__(
        self,
        beton: Beton,
        content: str,
        channels: int,
        image_size: int,
        resize: int,
        threads: int,
        os_cache: bool | None = None,
    ) -> None:
        super().__init__(torch.from_numpy(beton.samples["f1"].astype(np.int64)))
        self.beton = beton
        self.content = content
        self.channels = channels
        self.image_size = image_size
        self.resize = resize
        self.threads = max(1, threads)
        self.os_cache = _fits_memory(beton) if os_cache is None else os_cache
        self._streams: dict[int, Stream] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave open streams and the memory map out: another process opens its own."""
        kept = {name: value for name, value in self.__dict__.items() if name != "_data"}
        return {**kept, "_streams": {}}

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode the images at these positions, (n, c, h, w) uint8."""
        positions = np.asarray(indices, dtype=np.int64)
        return self._decode(positions, self.cuts(positions, None, 0))

    def read_crops(self, indices: Sequence[int], crops: RandomCrops, epoch: int) -> Tensor:
        """Decode a random crop of each of these images, (n, c, h, w) uint8."""
        positions = np.asarray(indices, dtype=np.int64)
        return self._decode(positions, self.cuts(positions, crops, epoch))

    def fingerprint(self) -> str:
        """Return a digest of the stored images, their labels and how they are decoded."""
        form = ("ffcv, as Pillow", self.channels, self.image_size, self.resize, self.content)
        return hashlib.sha256(repr(form).encode()).hexdigest()

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
        """Return FFCV's loader; as for `LabelledImages`, but with `threads` in place of worker processes."""
        return _BetonLoader(self, batch_size, Order(len(self), generator, shard, first), drop_last, crops)

    def cuts(self, positions: Integers, crops: RandomCrops | None, epoch: int) -> Integers:
        """Return the cuts of these images, (n, 8), see `unidd_pl.data.crops.CUT`."""
        images = self.beton.samples["f0"][positions]
        widths, heights = images["width"].astype(np.int64), images["height"].astype(np.int64)
        if crops is None:
            return centre_cuts(widths, heights, self.image_size, self.resize)
        return random_cuts(crops.boxes(positions, widths, heights, epoch), self.image_size)

    def stream(self, batch_size: int) -> Stream:
        """Return the compiled loader for a batch size."""
        from unidd_pl.data.ffcv_pipeline import Stream  # noqa: PLC0415  imports numba, seconds

        if batch_size not in self._streams:
            self._streams[batch_size] = Stream(
                self.beton, self.image_size, batch_size, self.threads, os_cache=self.os_cache
            )
        return self._streams[batch_size]

    def to_tensor(self, images: np.ndarray) -> Tensor:
        """Return decoded images (n, 3, h, w) as a tensor of its own, (n, c, h, w)."""
        return torch.from_numpy(images)[:, : self.channels].clone(memory_format=torch.contiguous_format)

    @cached_property
    def _data(self) -> np.ndarray:
        return np.memmap(self.beton.path, np.uint8, mode="r")

    def _decode(self, positions: Integers, cuts: Integers) -> Tensor:
        from unidd_pl.data.ffcv_pipeline import decode_cuts  # noqa: PLC0415  imports numba, seconds

        def decode_block(start: int) -> np.ndarray:
            part = slice(start, start + _READ_BLOCK)
            return decode_cuts(self.beton, self._data, positions[part], cuts[part], self.image_size)

        starts = range(0, len(positions), _READ_BLOCK)
        with ThreadPoolExecutor(self.threads) as pool:  # decoding releases the interpreter lock
            return self.to_tensor(np.concatenate(list(pool.map(decode_block, starts))))


class _BetonLoader:
    """Batches of one epoch each time it is iterated; the arguments are those of `LabelledImages.loader`."""

    def __init__(
        self,
        images: BetonImages,
        batch_size: int,
        order: Order,
        drop_last: bool,
        crops: RandomCrops | None,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.order = order
        self.drop_last = drop_last
        self.crops = crops
        self.epoch = -1

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        self.epoch += 1
        images = self.images
        stream = images.stream(self.batch_size)
        order = self._drawn(stream)[: len(self) * self.batch_size]
        cuts = images.cuts(np.arange(len(images)), self.crops, self.epoch)
        labels = images.labels[torch.from_numpy(order)]
        start = 0
        for batch in stream.batches(order, cuts):
            yield images.to_tensor(batch), labels[start : start + len(batch)]
            start += len(batch)

    def _drawn(self, stream: Stream) -> Integers:
        generator = self.order.generator
        if generator is None or self.images.os_cache:
            return self.order.draw()
        return self.order.share_of(stream.shuffled_by_pages(int(torch.randint(2**31, (), generator=generator))))


def _fits_memory(beton: Beton) -> bool:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return beton.path.stat().st_size <= _SHARE_OF_MEMORY * memory
