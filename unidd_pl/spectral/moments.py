"""Moments of features: the statistics that all methods of the field match.

Legend: n images, c channels, h w space, k classes, s = n·h·w rows.
X features (s, c), Ψ feature–feature correlation (c, c), Φ feature–label correlation (c, k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

Signal = Literal["mean", "class", "soft"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)

RunningMode = Literal["mean", "merge"]


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class Moments:
    """Count, mean, FFC and FLC of the features of one layer.

    The fields are exactly what is needed to merge two sets of rows as if they had been one.

    Args:
        count: () number of rows s.
        mean: (c,) channel means μ.
        ffc: (c, c) feature–feature correlation Ψ = (X−1μᵀ)ᵀ(X−1μᵀ)/s.
        label_weight: (k,) sum over the images of their weight for each class; (0,) where label-free.
        label_mean: (c, k) weighted mean of the pooled features for each class, zero where the weight
            is zero; (c, 0) where label-free.

    References:
        SPEC.md section 1.
    """

    count: Tensor
    mean: Tensor
    ffc: Tensor
    label_weight: Tensor
    label_mean: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor | None = None) -> Moments:
        """Compute the moments of one batch.

        Args:
            features: (n, c, h, w) or (n, c); half precision is widened to float32.
            labels: (n, k) weight of each image for each class: one-hot for the signal ``class``, the
                teacher's softmax for ``soft``; None for ``mean``.

        Returns:
            Moments in the precision of the features; the gradient flows to features and labels.
        """
        n, c = features.shape[:2]
        # Autocast would do the products in half precision, which loses the small eigenvalues.
        with torch.autocast(features.device.type, enabled=False):
            if features.dtype in (torch.float16, torch.bfloat16):
                features = features.float()
            space = features.reshape(n, c, -1)
            pooled = space.mean(dim=2)
            mean = pooled.mean(dim=0)
            rows = space.transpose(0, 1).reshape(c, -1) - mean[:, None]
            ffc = rows @ rows.T / rows.shape[1]
            labels = pooled.new_zeros(n, 0) if labels is None else labels.to(pooled.dtype)
            label_weight = labels.sum(dim=0)
            label_mean = pooled.T @ labels / _one_where_zero(label_weight)
        return cls(mean.new_tensor(rows.shape[1]), mean, ffc, label_weight, label_mean)

    @property
    def flc(self) -> Tensor:
        """Feature–label correlation Φ, (c, k); (c, 1) for the label-free signal ``mean``.

        With labels, column k is (1/K) times the mean of the pooled features of class k, so that a
        balanced batch gives (1/N) Σ pool(x_i) y_iᵀ.
        """
        k = self.label_weight.shape[0]
        return self.label_mean / k if k else self.mean[:, None]

    def merge(self, other: Moments, *, scatter_between: bool = True) -> Moments:
        """Return the moments of the rows of both.

        Args:
            other: Moments of the same layer.
            scatter_between: Include the scatter between the two means, which makes the merge exact;
                False gives the count-weighted mean of the two FFCs.

        Returns:
            Merged moments in the promoted precision of the two; the gradient flows to both.
        """
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        ffc = self.ffc + (other.ffc - self.ffc) * share
        if scatter_between:
            ffc = ffc + torch.outer(delta, delta) * (share * (1 - share))
        label_weight = self.label_weight + other.label_weight
        label_share = other.label_weight / _one_where_zero(label_weight)
        label_mean = self.label_mean + (other.label_mean - self.label_mean) * label_share
        return Moments(count, self.mean + delta * share, ffc, label_weight, label_mean)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Moments:
        """Return a copy in another precision or on another device."""
        return Moments(*(field.to(dtype=dtype, device=device) for field in self.tensors().values()))

    def detach(self) -> Moments:
        """Return the same values without a graph."""
        return Moments(*(field.detach() for field in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name, in the order of the constructor."""
        return {
            "count": self.count,
            "mean": self.mean,
            "ffc": self.ffc,
            "label_weight": self.label_weight,
            "label_mean": self.label_mean,
        }


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

    def combine(self, batch: Sequence[Moments]) -> list[Moments]:
        """Return the moments of the finished chunks with this batch as the next one.

        Args:
            batch: Moments of the current chunk, one a layer.

        Returns:
            Moments, one a layer; the gradient flows through the batch only.
        """
        weighed = [self._weigh(moments) for moments in batch]
        if self._layers is None:
            return weighed
        return [
            # In float64 the finished part would turn the whole loss into float64.
            done.to(dtype=new.ffc.dtype, device=new.ffc.device).merge(new, scatter_between=self.mode == "merge")
            for done, new in zip(self._layers, weighed, strict=True)
        ]

    def update(self, batch: Sequence[Moments]) -> None:
        """Count a finished chunk in, accumulating in float64."""
        wide = [moments.detach().to(dtype=torch.float64) for moments in batch]
        if self._layers is None:
            self._layers = [self._weigh(moments) for moments in wide]
        else:
            self._layers = [
                done.to(device=new.ffc.device).merge(self._weigh(new), scatter_between=self.mode == "merge")
                for done, new in zip(self._layers, wide, strict=True)
            ]

    def state_dict(self) -> list[dict[str, Tensor]]:
        """Return what a checkpoint has to hold: the fields of each layer; empty before any update."""
        return [moments.tensors() for moments in self._layers or []]

    def load_state_dict(self, state: Sequence[dict[str, Tensor]]) -> None:
        """Take up the state of `state_dict`."""
        self._layers = [Moments(**fields) for fields in state] or None

    def _weigh(self, moments: Moments) -> Moments:
        # In mode "mean" a chunk counts once, whatever its size, and once for each class it holds.
        if self.mode == "merge":
            return moments
        return replace(
            moments,
            count=torch.ones_like(moments.count),
            label_weight=(moments.label_weight > 0).to(moments.label_weight.dtype),
        )


def _one_where_zero(weight: Tensor) -> Tensor:
    return torch.where(weight > 0, weight, torch.ones_like(weight))
