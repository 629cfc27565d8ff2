"""Keep large memory blocks for reuse on a CPU.

glibc gives blocks above a threshold back to the kernel when they are freed, and takes them again, page
fault by page fault, for the next tensor. A training step allocates the same large blocks over and over,
and about half of its time can go there.
"""

from __future__ import annotations

import ctypes
import os
import sys

OPT_OUT = "UNIDD_KEEP_MALLOC"
"""Environment variable: set to 1 to leave the allocator as it is."""

# Parameter numbers of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BELOW = 2**30  # bytes; blocks up to 1 GiB are kept


def keep_large_blocks() -> bool:
    """Raise malloc's mmap and trim thresholds; return whether that was done.

    It does nothing where the C library is not glibc or `OPT_OUT` is set.
    """
    if os.environ.get(OPT_OUT) == "1" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEEP_BELOW))
