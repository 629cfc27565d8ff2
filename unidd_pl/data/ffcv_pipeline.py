"""FFCV's loader on cuts that are given from outside; the only file that imports FFCV, imported where it is used.

What FFCV brings: threads that decode with libjpeg-turbo, compiled by numba at the first batch, which takes seconds.
They resize as Pillow does (see `resampling`), so the pixels of both loaders differ by one grey level at most.

Legend: n images, h w space.
"""

from __future__ import annotations

import ctypes
import queue
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numba
import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import lib
from ffcv.loader import Loader
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.traversal_order import QuasiRandom
from numpy.typing import NDArray

from unidd_pl.data.beton import IMAGE, JPEG, Beton
from unidd_pl.data.crops import CUT, Integers
from unidd_pl.data.resampling import resample

_STORED = [(name, IMAGE[name]) for name in IMAGE.names or ()]
_CUT_IMAGE = np.dtype([*_STORED, *((f"cut_{name}", "<u4") for name in CUT), ("damaged", "<u1")])
_POLL_SECONDS = 5.0  # between two looks at whether FFCV's thread still lives


_open_decoder = lib.tjInitDecompress  # libjpeg-turbo's, which FFCV's library is linked with
_open_decoder.argtypes, _open_decoder.restype = [], ctypes.c_void_p
_decompress = lib.tjDecompress2
_decompress.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, *(5 * [ctypes.c_int])]
_error_of = lib.tjGetErrorCode
_error_of.argtypes = [ctypes.c_void_p]
_close_decoder = lib.tjDestroy
_close_decoder.argtypes = [ctypes.c_void_p]
_RGB, _EXACT_DCT, _FATAL = 0, 4096, 1  # TJPF_RGB, TJFLAG_ACCURATEDCT and TJERR_FATAL of turbojpeg.h


def _decode_jpeg(data: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> bool:
    """Decode a JPEG file's bytes into pixels (h, w, 3), with the DCT that Pillow uses; return whether that worked.

    FFCV's own function asks for the fast DCT, which darkens red and blue by 1.1 and 1.3 grey levels of 255.
    """
    decoder = _open_decoder()
    height, width = pixels.shape[0], pixels.shape[1]
    status = _decompress(decoder, data.ctypes.data, data.size, pixels.ctypes.data, width, 0, height, _RGB, _EXACT_DCT)
    failed = status != 0 and _error_of(decoder) == _FATAL  # else a warning, of an image that Pillow reads as well
    _close_decoder(decoder)
    return not failed


def _set_numba_threads(_: type, count: int) -> None:
    Compiler.num_threads = max(1, min(count, numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(Compiler.num_threads)
    numba.set_parallel_chunksize(1)  # images differ in size: whoever is ready takes the next one


# FFCV sets torch's threads too, to the number of its decoders: the network beside it would run on so many.
Compiler.set_num_threads = classmethod(_set_numba_threads)


class _CutDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]
    """Decodes images and makes the cut that the metadata hold for each, (c, h, w).

    FFCV's own decoders crop before they resize, which moves the crop by up to a pixel, draw random boxes from a
    generator for each thread that nothing seeds, and keep a buffer of the largest image for every image of five
    batches.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, AllocationQuery]:
        """Ask for the memory of the output."""
        shape, dtype = (3, self.image_size, self.image_size), np.dtype(np.uint8)
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that numba compiles."""
        read, images, decode_jpeg = self.memory_read, Compiler.get_iterator(), Compiler.compile(_decode_jpeg)

        def decode(batch_indices, destination, metadata, storage):  # type: ignore[no-untyped-def]
            for k in images(len(batch_indices)):
                record = metadata[batch_indices[k]]
                data = read(record["data_ptr"], storage)
                height, width = np.uint32(record["height"]), np.uint32(record["width"])
                if record["mode"] == JPEG:
                    pixels = np.empty((height, width, 3), np.uint8)
                    record["damaged"] = not decode_jpeg(data, pixels)
                else:
                    pixels = data.reshape(height, width, 3)
                cut = (
                    np.int64(record["cut_top"]), np.int64(record["cut_left"]),
                    np.int64(record["cut_height"]), np.int64(record["cut_width"]),
                    np.int64(record["cut_resized_height"]), np.int64(record["cut_resized_width"]),
                    np.int64(record["cut_crop_top"]), np.int64(record["cut_crop_left"]),
                )  # fmt: skip
                resample(pixels, cut, destination[k])
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class Stream:
    """One compiled FFCV loader over a .beton file, used again for every epoch.

    Args:
        beton: The file.
        image_size: Height and width of the decoded images, pixels.
        batch_size: Images a batch.
        threads: Threads that decode.
        os_cache: Map the file into memory and let the system keep what it can; else read page by page.
    """

    def __init__(self, beton: Beton, image_size: int, batch_size: int, threads: int, *, os_cache: bool) -> None:
        self._beton = beton
        self._loader = Loader(
            str(beton.path),
            batch_size,
            num_workers=threads,
            os_cache=os_cache,
            seed=0,
            pipelines={"image": [_CutDecoder(image_size)], "label": None},
            drop_last=False,
        )
        metadata = self._loader.reader.metadata
        self._metadata = np.zeros(len(metadata), np.dtype([("f0", _CUT_IMAGE)]))
        for name in IMAGE.names or ():
            self._metadata["f0"][name] = metadata["f0"][name]
        self._quasi_random: tuple[QuasiRandom, NDArray[np.int64]] | None = None

    def shuffled_by_pages(self, seed: int) -> Integers:
        """Return a random order that stays within a few pages at a time, a pure function of the seed, (n,)."""
        if self._quasi_random is None:
            order = QuasiRandom(self._loader)
            self._quasi_random = order, order.page_to_samples_array.copy()
        order, by_page = self._quasi_random
        order.seed, order.page_to_samples_array = 0, by_page.copy()  # FFCV shuffles it in place
        return np.asarray(order.sample_order(seed), dtype=np.int64)

    def batches(self, order: Integers, cuts: Integers) -> Iterator[NDArray[np.uint8]]:
        """Yield images (b, 3, h, w) of one epoch; their memory is used again for a later batch.

        Args:
            order: Positions of the images, in the order wanted.
            cuts: (n, 8) the cut of every image of the file, see `unidd_pl.data.crops.CUT`.

        Raises:
            ValueError: If an image is damaged.
        """
        metadata = self._metadata.copy()
        for name, values in zip(CUT, cuts.T, strict=True):
            metadata["f0"][f"cut_{name}"] = values
        self._loader.reader.metadata = metadata
        self._loader.traversal_order = _Given(order)
        epoch, start = iter(self._loader), 0
        try:
            while (result := self._next(epoch)) is not None:
                seen = order[start : start + len(result)]
                self._beton.refuse_damaged(seen[metadata["f0"]["damaged"][seen] > 0])
                start += len(result)
                yield result
        finally:
            epoch.close()

    @staticmethod
    def _next(epoch: Any) -> NDArray[np.uint8] | None:
        """Return the next batch of an epoch; FFCV's own waits for ever where its thread has died."""
        while True:
            try:
                item = epoch.output_queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if epoch.is_alive():
                    continue
                raise RuntimeError("FFCV's thread has ended before its epoch: see its traceback above") from None
            return None if item is None else np.asarray(item[1][0])


class _Given:
    """A traversal order that is given as it is."""

    def __init__(self, order: Integers) -> None:
        self.order = order

    def sample_order(self, epoch: int) -> Integers:
        return self.order


def decode_cuts(
    beton: Beton, data: NDArray[np.uint8], positions: Integers, cuts: Integers, image_size: int
) -> NDArray[np.uint8]:
    """Decode single images by their positions, with the functions that the stream uses: the same bits.

    Args:
        beton: The file.
        data: Its bytes.
        positions: (n,) positions of the images.
        cuts: (n, 8) the cut of each of them, see `unidd_pl.data.crops.CUT`.
        image_size: Height and width of the decoded images, pixels.

    Returns:
        (n, 3, h, w) uint8.

    Raises:
        ValueError: If an image is damaged.
    """
    images = np.empty((len(positions), 3, image_size, image_size), np.uint8)
    for image, position, cut in zip(images, positions.tolist(), cuts.tolist(), strict=True):
        record = beton.samples[position]["f0"]
        start, height, width = int(record["data_ptr"]), int(record["height"]), int(record["width"])
        stored = data[start : start + int(beton.sizes[position])]
        pixels = np.empty((height, width, 3), np.uint8)
        if record["mode"] != JPEG:
            pixels = np.ascontiguousarray(stored).reshape(height, width, 3)
        elif not _decode_jpeg(stored, pixels):
            beton.refuse_damaged([position])
        resample(pixels, tuple(cut), image)
    return images
