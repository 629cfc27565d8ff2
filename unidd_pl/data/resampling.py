"""Antialiased bilinear resizing as Pillow does it, for threads that numba compiled; imported with FFCV only.

FFCV brings OpenCV's INTER_AREA, which blurs less and takes twice the time. With Pillow's arithmetic (whole numbers, 22
bits after the point, a rounding to 8 bits between the passes) both loaders give the same pixels; where Pillow does its
two passes in the other order, some of them differ by one grey level.

Legend: h w space of the source, s size of the result.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

compiled = numba.njit(nogil=True, error_model="numpy")

_BITS = 22  # after the point of a weight: 8 of the pixel and 2 to spare are left of 32, as in Pillow's Resample.c
_HALF = np.int64(1 << (_BITS - 1))
_index = np.uint64  # numba looks for negative indices in signed ones, which takes a third of the time


@compiled  # type: ignore[untyped-decorator]
def bilinear_taps(start: int, length: int, source: int, resized: int, first: int, count: int) -> Any:
    """Return which pixels of a line make each new pixel, and with which weights.

    Args:
        start: First pixel of the box in the line.
        length: Pixels of the box; it becomes `resized` new ones.
        source: Pixels of the line. The filter looks beyond the box, but not beyond the line.
        resized: New pixels of the whole box.
        first: First new pixel that is wanted.
        count: New pixels that are wanted, s.

    Returns:
        (s,) int64 first pixel, (s,) int64 number of pixels, (s, most) int64 weights, which sum to 2^22.
    """
    scale = length / resized
    support = max(scale, 1.0)
    most = 2 * int(np.ceil(support)) + 1
    lows, numbers = np.empty(count, np.int64), np.empty(count, np.int64)
    weights, line = np.zeros((count, most), np.int64), np.empty(most, np.float64)
    for i in range(count):
        centre = start + (first + i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        number = min(int(centre + support + 0.5), source) - low
        for t in range(number):
            line[t] = max(0.0, 1.0 - abs((t + low - centre + 0.5) * (1.0 / support)))
        total = line[:number].sum()
        for t in range(number):
            weights[i, t] = int(0.5 + line[t] / total * (1 << _BITS))
        lows[i], numbers[i] = low, number
    return lows, numbers, weights


@compiled  # type: ignore[untyped-decorator]
def resample_columns(source: Any, left: int, taps: Any, result: Any) -> None:
    """Make new columns: source (h, w, 3), whose first column is number `left` of the taps, to result (3, h, s)."""
    lows, numbers, weights = taps
    for y in range(_index(len(source))):
        for x in range(_index(len(lows))):
            low = _index(lows[x] - left)
            red = green = blue = _HALF
            for t in range(_index(numbers[x])):
                weight = weights[x, t]
                red += weight * source[y, low + t, _index(0)]
                green += weight * source[y, low + t, _index(1)]
                blue += weight * source[y, low + t, _index(2)]
            result[_index(0), y, x] = red >> _BITS
            result[_index(1), y, x] = green >> _BITS
            result[_index(2), y, x] = blue >> _BITS


@compiled  # type: ignore[untyped-decorator]
def resample_rows(source: Any, top: int, begin: int, taps: Any, result: Any) -> None:
    """Make new rows: source (h, bytes), whose first row is number `top` of the taps, from byte `begin` to result."""
    lows, numbers, weights = taps
    size = _index(result.shape[1])
    sums = np.empty(size, np.int32)
    for y in range(_index(len(lows))):
        sums[:] = _HALF
        low = _index(lows[y] - top)
        for t in range(_index(numbers[y])):
            weight = np.int32(weights[y, t])
            for x in range(size):
                sums[x] += np.int32(weight * np.int32(source[low + t, _index(begin) + x]))
        for x in range(size):
            result[y, x] = sums[x] >> _BITS


@compiled  # type: ignore[untyped-decorator]
def resample(pixels: Any, cut: Any, result: Any) -> None:
    """Make the cut of an image.

    Args:
        pixels: (h, w, 3) uint8, contiguous.
        cut: (8,) integers, see `unidd_pl.data.crops.CUT`.
        result: (3, s, s) uint8, written.
    """
    top, left, tall, wide, resized_height, resized_width, row, column = cut
    height, width, size = pixels.shape[0], pixels.shape[1], result.shape[1]
    across = bilinear_taps(left, wide, width, resized_width, column, size)
    down = bilinear_taps(top, tall, height, resized_height, row, size)
    top, bottom = down[0][0], down[0][-1] + down[1][-1]
    if bottom - top > size:  # rows first: they are many times cheaper, and fewer are left for the columns
        left, right = across[0][0], across[0][-1] + across[1][-1]
        short = np.empty((size, 3 * (right - left)), np.uint8)
        resample_rows(pixels.reshape(height, 3 * width), 0, 3 * left, down, short)
        resample_columns(short.reshape(size, right - left, 3), left, across, result)
    else:
        narrow = np.empty((3, bottom - top, size), np.uint8)
        resample_columns(pixels[top:bottom], 0, across, narrow)
        for channel in range(3):
            resample_rows(narrow[channel], top, 0, down, result[channel])
