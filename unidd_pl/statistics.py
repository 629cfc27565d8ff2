"""Real moments of a teacher over a training set, gathered once and cached.

Legend: n images, k classes, l layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from unidd_pl.console import say
from unidd_pl.data.module import ImageData
from unidd_pl.data.order import WHOLE, Shard
from unidd_pl.files import atomic_write
from unidd_pl.moment_files import PartialPass, pack, read_tensors, unpack
from unidd_pl.moment_pass import running_totals
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import Moments, Signal
from unidd_pl.teachers import Teacher

STATISTICS_FORMAT = "unidd-statistics-1"


@dataclass(frozen=True)
class Statistics:
    """Moments of a teacher's features over the training set, one a layer.

    Args:
        layers: Names of the layers.
        moments: Moments of their inputs, float64.
        signal: Signal of the FLC.
        made_from: What the moments depend on; see `conditions`.
    """

    layers: tuple[str, ...]
    moments: tuple[Moments, ...]
    signal: Signal
    made_from: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of what the moments depend on."""
        return digest(self.made_from)

    @cached_property
    def spectra(self) -> tuple[Tensor, ...]:
        """Eigenvalues of the FFC of each layer, (c,), ascending and ≥ 0, float64."""
        return tuple(torch.linalg.eigvalsh(one.ffc.double()).clamp_min(0) for one in self.moments)


def conditions(teacher: Teacher, data: ImageData, layers: Sequence[str], signal: Signal) -> dict[str, Any]:
    """Return all that real moments depend on, as plain JSON types."""
    return {
        "teacher": teacher.fingerprint,
        "data": data.fingerprint,
        "spec": {**data.spec.to_dict(), "name": ""},  # a renamed folder holds the same data
        "layers": list(layers),
        "signal": signal,
        "transform": "none",
    }


def running_statistics(teacher: Teacher, data: ImageData, layers: Sequence[str]) -> Statistics:
    """Return the moments that BatchNorm layers keep of their inputs: channel means and variances, nothing else.

    Args:
        teacher: The frozen teacher.
        data: The real data, for the record: no image of them is read.
        layers: Names of its BatchNorm layers.

    Returns:
        Statistics of the signal ``mean`` with a diagonal FFC.
    """
    modules = dict(teacher.network.named_modules())
    moments = [_running_moments(cast("nn.BatchNorm2d", modules[name]), name) for name in layers]
    made_from = {**conditions(teacher, data, layers, "mean"), "real side": "BatchNorm"}
    return Statistics(tuple(layers), tuple(moments), "mean", made_from)


def _running_moments(layer: nn.BatchNorm2d, name: str) -> Moments:
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError(
            f"layer {name} keeps no running statistics (track_running_stats=False): use another teacher, or another "
            "signal than mean, which gathers moments from the data"
        )
    mean, variance = layer.running_mean.double().cpu(), layer.running_var.double().cpu()
    none = mean.new_zeros(0)
    return Moments(mean.new_ones(()), mean, torch.diag(variance), none, mean.new_zeros(len(mean), 0))


def gather_statistics(
    teacher: Teacher,
    data: ImageData,
    layers: Sequence[str],
    signal: Signal,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    part: Path | None = None,
    save_every: float = 60.0,
    shard: Shard = WHOLE,
) -> Statistics:
    """Run the teacher over the training images once and merge the moments of all batches exactly.

    Args:
        teacher: The frozen teacher.
        data: The real data; its training images are taken as they are, without augmentation.
        layers: Names of the layers whose inputs are described.
        signal: Signal of the FLC.
        batch_size: Images a forward pass.
        device: Where to run.
        part: File of what is done while the pass runs, from which another pass goes on; None for none. The caller
            removes it when the statistics are kept. A share is in it in the end, for who puts the shares together.
        save_every: Seconds between two savings.
        shard: Of which of the training images; of none there are no moments.

    Returns:
        Statistics accumulated in float64; the same bits whether the pass was stopped or not, on a CPU.
    """
    made_from = conditions(teacher, data, layers, signal)
    partial = partial_pass(part, made_from, batch_size, shard, save_every)
    done, before = partial.resume()
    first = min(done * batch_size, shard.count(len(data.train)))
    if done:
        say(f"Statistics: {first} images were done before, going on from {part}")
    loader = data.train.loader(batch_size, workers=data.workers_for(data.train), first=first, shard=shard)
    batches = tqdm(
        loader, "Gathering statistics", leave=False, unit="batch", initial=done, total=done + len(loader),
        disable=shard.rank > 0,
    )  # fmt: skip
    totals = running_totals(teacher, batches, layers, signal, data.spec, device, before)
    moments: Sequence[Moments] = before
    for number, moments in enumerate(totals, start=done + 1):
        partial.offer(number, moments)
    if shard.processes > 1 and moments:
        partial.save(done + len(loader), moments)
    return Statistics(tuple(layers), tuple(one.to(device="cpu") for one in moments), signal, made_from)


def partial_pass(
    part: Path | None, made_from: dict[str, Any], batch_size: int, shard: Shard = WHOLE, save_every: float = 0.0
) -> PartialPass:
    """Return what keeps the done part of a pass of `gather_statistics` in a file, and reads it."""
    share = {"share": f"{shard.rank} of {shard.processes}"} if shard.processes > 1 else {}
    return PartialPass(part, digest({**made_from, "batch size": batch_size, **share}), save_every)


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics and what they were made from into one file, atomically."""
    about = {"format": STATISTICS_FORMAT, "made_from": statistics.made_from}
    with atomic_write(path) as temporary:
        save_file(pack(statistics.moments), temporary, metadata={"unidd": json.dumps(about, sort_keys=True)})


def load_statistics(path: Path) -> Statistics:
    """Read statistics.

    Raises:
        ValueError: If the file is missing, damaged or something else.
    """
    try:
        about, tensors = read_tensors(path)
    except ValueError as error:
        raise ValueError(
            f"cannot read the statistics {path} ({error}): expected a file written by `unidd statistics`"
        ) from error
    if about.get("format") != STATISTICS_FORMAT:
        raise ValueError(
            f"{path} holds no statistics (format {about.get('format')!r}, expected {STATISTICS_FORMAT!r}): "
            "give a file written by `unidd statistics`"
        )
    try:
        made_from = about["made_from"]
        moments = unpack(tensors, len(made_from["layers"]))
        _check_contents(made_from)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(
            f"got contradictory contents in the statistics {path} ({error!r}), expected a file as `unidd statistics` "
            "writes it: gather them anew"
        ) from error
    return Statistics(tuple(made_from["layers"]), moments, made_from["signal"], made_from)


def _check_contents(made_from: dict[str, Any]) -> None:
    """Refuse what `save_statistics` does not write."""
    for what in ("teacher", "data", "signal", "transform"):
        if not isinstance(made_from[what], str):
            raise ValueError(f"{what} is {made_from[what]!r}, expected a text")
    if made_from["signal"] not in get_args(Signal):
        raise ValueError(f"signal {made_from['signal']!r}, expected one of {get_args(Signal)}")
    if not isinstance(made_from["layers"], list) or not all(isinstance(name, str) for name in made_from["layers"]):
        raise ValueError(f"layers {made_from['layers']!r}, expected names")
    DatasetSpec.from_dict(made_from["spec"])


def digest(made_from: dict[str, Any]) -> str:
    """Return the hexadecimal digest of plain JSON types."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
