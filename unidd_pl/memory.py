"""How much memory the tensors of a computation take, and how much there is.

Legend: n images, c channels, h w space; l layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # documented, and what torch's own trackers build on
from torch.utils._pytree import tree_leaves

MIB = 2**20

_CGROUPS = (  # limit and use of a container, versions 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the class untyped
    """Counts the tensors that live at once within a block, and keeps the most of them.

    It sees what torch's operators return, on any device; not the scratch memory within an operator.

    Attributes:
        now: Bytes of the tensors that were made within the block and live.
        peak: The most of them so far, bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)


@dataclass(frozen=True)
class LinearBytes:
    """Memory that grows linearly with the number of images: fixed + per_image · n, bytes."""

    fixed: float
    per_image: float

    def at(self, count: int) -> float:
        """Return the bytes for a number of images."""
        return self.fixed + self.per_image * count

    @classmethod
    def measured(cls, compute: Callable[[int], object]) -> LinearBytes:
        """Run a computation on 2 and on 4 images and draw the line through the two peaks.

        Args:
            compute: Does the computation on so many images.
        """
        peaks: list[int] = []
        for count in (2, 4):
            with PeakBytes() as tracker:
                compute(count)
            peaks.append(tracker.peak)
        per_image = (peaks[1] - peaks[0]) / 2
        return cls(max(0.0, peaks[0] - 2 * per_image), per_image)


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device, within the limit of the container; None where nothing tells it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_free_of_machine(Path("/proc/meminfo"))]
    free += [_free_of_container(Path(limit), Path(used)) for limit, used in _CGROUPS]
    return min((one for one in free if one is not None), default=None)


def resident_bytes() -> int | None:
    """Return the memory that this process holds; None where nothing tells it."""
    return _field(Path("/proc/self/status"), "VmRSS:")


def _free_of_machine(meminfo: Path) -> int | None:
    return _field(meminfo, "MemAvailable:")


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


def _free_of_container(limit: Path, used: Path) -> int | None:
    try:
        return int(limit.read_text()) - int(used.read_text())  # "max" is no number: no limit
    except (OSError, ValueError):
        return None
