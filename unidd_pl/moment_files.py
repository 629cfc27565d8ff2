"""Moments in files: as tensors by name, and the saved part of a pass over the images that may be stopped and go on.

Legend: l layers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from unidd_pl.console import say
from unidd_pl.files import atomic_write
from unidd_pl.plain_json import parse_json
from unidd_pl.spectral import Moments
from unidd_pl.untrusted import read_safetensors

PART_FORMAT = "unidd-statistics-part-1"


def pack(moments: Sequence[Moments]) -> dict[str, Tensor]:
    """Return the moments of l layers as tensors by name."""
    return {
        f"{index}.{name}": tensor.contiguous()
        for index, one in enumerate(moments)
        for name, tensor in one.tensors().items()
    }


def unpack(tensors: Mapping[str, Tensor], layers: int) -> tuple[Moments, ...]:
    """Return what `pack` was given, for so many layers.

    Raises:
        KeyError, ValueError: If the tensors are not those.
    """
    if not 0 < layers <= len(tensors):
        raise ValueError(f"got {len(tensors)} tensors for {layers} layers")
    fields = Moments.__dataclass_fields__
    moments = tuple(Moments(*(tensors[f"{index}.{field}"] for field in fields)) for index in range(layers))
    for one in moments:
        one.check()
    return moments


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says of itself, empty where it says nothing, and its tensors.

    Raises:
        ValueError: If it cannot be read.
    """
    tensors, metadata = read_safetensors(path)
    about = parse_json(metadata.get("unidd", "{}"), path)
    return about if isinstance(about, dict) else {}, tensors


class PartialPass:
    """What is done of a pass, in a file that is replaced now and then.

    The moments are kept in float64 as they are, so a pass that went on gives the same bits as one that was not stopped,
    where the network gives the same bits.

    Args:
        path: The file; None keeps nothing.
        fingerprint: Digest of all that the moments and the place in the pass depend on: what was left by another pass
            is not taken up.
        every: Seconds between two savings.
    """

    def __init__(self, path: Path | None, fingerprint: str, every: float) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.every = every
        self._saved = time.monotonic()

    def resume(self) -> tuple[int, tuple[Moments, ...]]:
        """Return the number of batches that are done and their moments; 0 and none where nothing was left."""
        if self.path is None or not self.path.is_file():
            return 0, ()
        try:
            about, tensors = read_tensors(self.path)
            batches, layers = int(about["batches"]), int(about["layers"])
            moments = unpack(tensors, layers)
            found = (about.get("format"), about.get("fingerprint"))
        except (KeyError, TypeError, ValueError) as error:
            say(f"Statistics: cannot read {self.path} ({error}); starting the pass anew")
            return 0, ()
        if found != (PART_FORMAT, self.fingerprint):
            say(f"Statistics: {self.path} is of another pass; starting this one anew")
            return 0, ()
        return batches, moments

    def offer(self, batches: int, moments: Sequence[Moments]) -> None:
        """Save, where it is time, the moments of so many batches.

        Raises:
            ValueError: If the file cannot be written.
        """
        if time.monotonic() - self._saved >= self.every:
            self.save(batches, moments)

    def save(self, batches: int, moments: Sequence[Moments]) -> None:
        """Save the moments of so many batches.

        Raises:
            ValueError: If the file cannot be written.
        """
        if self.path is None:
            return
        about = {
            "format": PART_FORMAT, "fingerprint": self.fingerprint, "batches": batches, "layers": len(moments),
        }  # fmt: skip
        with atomic_write(self.path) as temporary:
            save_file(pack([one.to(device="cpu") for one in moments]), temporary, metadata={"unidd": json.dumps(about)})
        self._saved = time.monotonic()
