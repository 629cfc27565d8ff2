"""Running moments: those of the synthetic set so far, over chunks and rounds.

Legend: c channels, k classes; Ψ feature–feature correlation (c, c), Φ feature–label correlation (c, k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from unidd_pl.spectral.factored import AnyMoments, FactoredMoments, dense, kept_part
from unidd_pl.spectral.moments import Moments
from unidd_pl.spectral.stacked import StackedMoments

RunningMode = Literal["mean", "merge"]

_M = TypeVar("_M", bound=AnyMoments)


class RunningMoments:
    """Moments of the synthetic set so far, over chunks and rounds.

    One chunk holds too few images for the statistics of a whole data set. With the finished chunks
    added, a new chunk is optimised for what is still missing::

        for chunk in chunks:                       # b = 1, 2, …
            for iteration in iterations:
                used = running.combine(batch)      # (1−1/b) Ψ̄ + (1/b) Ψ(batch) for mode "mean"
                …                                  # gradient through the batch only
            running.update(batch)                  # Ψ̄ ← (1−1/b) Ψ̄ + (1/b) Ψ(last forward pass)

    Args:
        mode: ``mean``, the cumulative mean over chunks, or ``merge``, the exact moments of all rows
            (the mean of covariances misses the scatter between chunks). In ``mean`` a column of Φ is
            averaged over the chunks that hold its class.

    Raises:
        ValueError: If the mode is neither.

    References:
        SPEC.md section 3, running synthetic moments.
    """

    def __init__(self, mode: RunningMode) -> None:
        if mode not in get_args(RunningMode):
            raise ValueError(f"running moments: got mode {mode!r}, expected one of {get_args(RunningMode)}")
        self.mode = mode
        self._layers: list[Moments] | None = None
        self._narrow: dict[tuple[int, ...], Moments] = {}  # of layers that are alike, see `_narrowed`
        self._bases: dict[tuple[int, ...], tuple[int, Tensor]] = {}  # see `_base`

    def combine(self, batch: Sequence[AnyMoments]) -> StackedMoments:
        """Return the moments of the finished chunks with this batch as the next one.

        Args:
            batch: Moments of the current chunk, one a layer.

        Returns:
            Moments, one a layer, factored where the batch's are; the gradient flows through the batch only.

        Raises:
            ValueError: If the batch has not as many layers as the finished chunks.
        """
        weighed = StackedMoments.of(batch).map(self._weigh)
        if self._layers is None:
            return weighed
        self._check_as_many(weighed)
        return StackedMoments((layers, self._joined(layers, new)) for layers, new in weighed.groups)

    def _check_as_many(self, batch: Sequence[AnyMoments]) -> None:
        if self._layers is not None and len(batch) != len(self._layers):
            raise ValueError(f"got moments of {len(batch)} layers, but the finished chunks have {len(self._layers)}")

    def _joined(self, layers: tuple[int, ...], new: AnyMoments) -> AnyMoments:
        done, between = self._narrowed(layers, new.mean), self.mode == "merge"
        if isinstance(new, FactoredMoments):
            return new.onto(done, self._base(layers, done, new), scatter_between=between)
        return done.merge(new, scatter_between=between)

    def update(self, batch: Sequence[AnyMoments]) -> None:
        """Count a finished chunk in, accumulating in float64.

        Raises:
            ValueError: As for `combine`.
        """
        self._check_as_many(batch)
        wide = [self._weigh(dense(moments).detach().to(dtype=torch.float64)) for moments in batch]
        if self._layers is not None:
            wide = [
                done.to(device=new.ffc.device).merge(new, scatter_between=self.mode == "merge")
                for done, new in zip(self._layers, wide, strict=True)
            ]
        self._take(wide)

    def state_dict(self) -> list[dict[str, Tensor]]:
        """Return what a checkpoint has to hold: the fields of each layer; empty before any update."""
        return [moments.tensors() for moments in self._layers or []]

    def load_state_dict(self, state: Sequence[dict[str, Tensor]], like: Sequence[AnyMoments] | None = None) -> None:
        """Take up the state of `state_dict`.

        Args:
            state: What it returned.
            like: Moments of the same layers, to compare the sizes with.

        Raises:
            ValueError: If it holds no moments, or those of other layers.
        """
        layers = [Moments(**fields) for fields in state]
        for moments in layers:
            moments.check()
        got = [len(moments.mean) for moments in layers]
        if layers and like is not None and got != [len(moments.mean) for moments in like]:
            raise ValueError(f"got running moments of {len(got)} layers of other sizes than the {len(like)} matched")
        self._take(layers or None)

    def _take(self, layers: list[Moments] | None) -> None:
        self._layers = layers
        self._narrow = {}
        self._bases = {}

    def _narrowed(self, layers: tuple[int, ...], like: Tensor) -> Moments:
        """Return the finished part of some layers, stacked, until the next update.

        It is in the precision of the batch: in float64 the whole loss would become float64.
        """
        kept = self._narrow.get(layers)
        if kept is None or kept.mean.dtype != like.dtype or kept.mean.device != like.device:
            done = self._layers or []
            ((_, stacked),) = StackedMoments.of([done[layer] for layer in layers]).groups  # alike, so that it is one
            kept = dense(stacked).to(dtype=like.dtype, device=like.device)
            self._narrow[layers] = kept
            self._bases.pop(layers, None)
        return kept

    def _base(self, layers: tuple[int, ...], done: Moments, new: FactoredMoments) -> Tensor:
        """Return what the finished part of some layers weighs beside a chunk, the same object for the whole chunk."""
        rows = new.factor.shape[-1]
        if layers not in self._bases or self._bases[layers][0] != rows:
            self._bases[layers] = rows, kept_part(done, new.count)
        return self._bases[layers][1]

    def _weigh(self, moments: _M) -> _M:
        # In mode "mean" a chunk counts once, whatever its size, and once for each class it holds.
        if self.mode == "merge":
            return moments
        return replace(
            moments,
            count=torch.ones_like(moments.count),
            label_weight=(moments.label_weight > 0).to(moments.label_weight.dtype),
        )
