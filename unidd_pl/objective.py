"""The loss of one chunk, L = CE + η·L_match, from one look of the teacher: whole, or in parts with the same gradient.

Legend: n images, c channels, h w space, k classes; l layers, t terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unidd_pl.diagnosis import non_finite, not_filterable
from unidd_pl.distributed import merge_over_ranks, sum_with_local_gradient
from unidd_pl.layout import passings
from unidd_pl.moment_pass import label_weights
from unidd_pl.observing import CompiledTeacher, CompileMode, See, observing
from unidd_pl.ranks import world_size
from unidd_pl.real_side import RealSide
from unidd_pl.spectral import MatchingLoss, RunningMoments, Signal, StackedMoments, dense, moments_of


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class Look:
    """What the loss of a chunk takes from the teacher's forward pass over some of its images.

    Looks at the parts of a chunk add up to the look at the whole: counts, means and scatter merge exactly, and the
    cross-entropy is a sum, to be divided by the number of images of the whole chunk.

    Args:
        cross_entropy: () sum over the images.
        moments: Moments of the inputs of the l layers.
    """

    cross_entropy: Tensor
    moments: StackedMoments

    def merge(self, other: Look) -> Look:
        """Return the look at the images of both; the gradient flows to both."""
        # Moments.merge keeps nothing of size (c, c) for its backward pass: a further part costs no memory.
        if [layers for layers, _ in self.moments.groups] != [layers for layers, _ in other.moments.groups]:
            raise ValueError("got looks whose layers are stacked in different ways, expected parts of one chunk")
        pairs = zip(self.moments.groups, other.moments.groups, strict=True)
        merged = StackedMoments((layers, dense(mine).merge(dense(theirs))) for (layers, mine), (_, theirs) in pairs)
        return Look(self.cross_entropy + other.cross_entropy, merged)

    def merge_over_ranks(self) -> Look:
        """Return the look at the images of all processes; the gradient flows to this one's."""
        if world_size() == 1:
            return self
        return Look(sum_with_local_gradient(self.cross_entropy), merge_over_ranks(self.moments))


@dataclass(frozen=True, eq=False)
class ChunkLoss:
    """The loss of a chunk and what it is made of.

    Args:
        total: () cross-entropy + η · sum of the distances; the gradient flows to the images.
        cross_entropy: () mean over the images of the chunk.
        distances: (l, t) distance of every term in every layer.
        moments: Moments of the chunk, one a layer, without a graph.
    """

    total: Tensor
    cross_entropy: Tensor
    distances: Tensor
    moments: StackedMoments

    def figures(self, layers: Sequence[str], terms: Sequence[str]) -> dict[str, Tensor]:
        """Return what is logged of it, by name."""
        distances = self.distances.detach()
        figures = {"loss/cross_entropy": self.cross_entropy.detach(), "loss/matching": distances.sum()}
        for layer, row in zip(layers, distances, strict=True):
            figures |= {f"distance/{layer}/{term}": value for term, value in zip(terms, row, strict=True)}
        return figures


class ChunkObjective:
    """L = CE(teacher(A(x)), y) + η · L_match of one chunk.

    Args:
        real: The real side.
        matching: The matching loss against it.
        running: Moments of the finished chunks, or None to match each chunk by itself.
        eta: Weight η of the matching loss.
        micro_batch: Images that the teacher sees at a time, at most; None for all.
        compile_mode: Compile the teacher's passes, by this mode of `torch.compile`; None runs them as they are.
    """

    def __init__(
        self,
        real: RealSide,
        matching: MatchingLoss,
        running: RunningMoments | None,
        eta: float,
        micro_batch: int | None = None,
        compile_mode: CompileMode | None = None,
    ) -> None:
        self.real = real
        self.matching = matching
        self.running = running
        self.eta = eta
        self.micro_batch = micro_batch
        statistics = real.statistics
        network, layers = real.teacher.network, statistics.layers
        self._passings = passings(network, layers, statistics.moments)
        self._compiled = None if compile_mode is None else CompiledTeacher(network, layers, compile_mode)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        augment: Callable[[Tensor], Tensor],
        columns: Tensor | None,
        where: object,
        total: int | None = None,
        *,
        check: bool = True,
    ) -> ChunkLoss:
        """Return the loss.

        Args:
            images: (n, c, h, w) the chunk, normalised; over several processes the rows of this one, perhaps none.
            labels: (n,) int64.
            augment: A; it has to draw the same each time it is called.
            columns: (m,) indices of the classes to compare in the FLC; None compares all of them.
            where: Round, chunk and iteration, for the message.
            total: Images of the chunk over all processes; None for n.
            check: Look whether the loss is finite, for which the host waits for the device.

        Raises:
            ValueError: If the loss is not finite.
        """
        statistics = self.real.statistics
        # A factor is of the whole chunk: parts, and the rows of several ranks, are merged into matrices.
        whole = world_size() == 1 and (self.micro_batch is None or self.micro_batch >= len(images))
        see = self._see(factored=whole and self.matching.takes_factors)

        def look_at(images: Tensor, labels: Tensor) -> Look:
            return look(see, statistics.signal, augment(images), labels)

        seen = look_in_parts(look_at, images, labels, self.micro_batch) if len(images) else self._nothing(images)
        seen = seen.merge_over_ranks()
        cross_entropy = seen.cross_entropy / (total or len(labels))
        distances = self._distances(seen.moments, columns, where)
        loss = cross_entropy + self.eta * distances.sum()
        if check and not torch.isfinite(loss):
            terms = self.matching.method.term_names
            raise ValueError(non_finite(where, self.matching.betas, statistics.layers, terms, distances, cross_entropy))
        return ChunkLoss(loss, cross_entropy, distances, seen.moments.map(lambda group: group.detach()))

    def distances(self, moments: StackedMoments, columns: Tensor | None) -> Tensor:
        """Return the distance of every term in every layer, (l, t); the gradient flows.

        Args:
            moments: Moments of the chunk, one a layer.
            columns: (m,) indices of the classes to compare in the FLC; None compares all of them.
        """
        # Autocast would filter in half precision.
        with torch.autocast(moments.device.type, enabled=False):
            used = self.running.combine(moments) if self.running else moments
            return self.matching.distances(used, columns)

    def _see(self, *, factored: bool) -> See:
        if self._compiled is not None:
            return self._compiled.observing(self._passings, factored=factored)
        teacher, layers = self.real.teacher, self.real.statistics.layers
        return observing(teacher.network, layers, self._passings, factored=factored)

    def _nothing(self, images: Tensor) -> Look:
        """Return the look at no images, of a process that owns no row of the chunk."""
        zeros = [one.to(dtype=images.dtype, device=images.device).zeros() for one in self.real.statistics.moments]
        return Look(images.sum(), StackedMoments.of(zeros))

    def _distances(self, moments: StackedMoments, columns: Tensor | None, where: object) -> Tensor:
        try:
            return self.distances(moments, columns)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            layers = self.real.statistics.layers
            raise ValueError(not_filterable(error, where, self.matching.betas, layers, moments)) from error


LookAt = Callable[[Tensor, Tensor], Look]
"""From images (n, c, h, w) and labels (n,) to a look."""


def look(see: See, signal: Signal, images: Tensor, labels: Tensor) -> Look:
    """Let the teacher see images once.

    Args:
        see: One pass of the teacher.
        signal: Signal of the FLC.
        images: (n, c, h, w), normalised and augmented.
        labels: (n,) int64.

    Returns:
        The look; the gradient flows to the images.
    """
    logits, observed = see(images)
    # Half precision is widened, float64 stays.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    moments = moments_of(observed, label_weights(signal, labels, logits))
    return Look(F.cross_entropy(logits, labels, reduction="sum"), moments)


def look_in_parts(look_at: LookAt, images: Tensor, labels: Tensor, micro_batch: int | None) -> Look:
    """Look at a chunk in parts of which only one is in memory at a time; value and gradient are the whole chunk's.

    ::

        for part in chunk: look, keep its moments and nothing else        # first pass
        L of the merged moments, ∂L/∂moments                              # what the caller does with the result
        for part in chunk: look again, pull ∂L/∂moments back through it   # second pass, within backward()

    So a step costs one more forward pass. Both passes have to see the same: `look_at` draws nothing that it would
    not draw again.

    Args:
        look_at: Looks at some images.
        images: (n, c, h, w) the whole chunk.
        labels: (n,) int64.
        micro_batch: Images of a part, at most; None, or as many as there are, for the whole chunk at once, without
            the second pass.

    Returns:
        The look at the whole chunk; the gradient flows to the images.
    """
    if micro_batch is None or micro_batch >= len(images):
        return look_at(images, labels)
    parts = zip(torch.split(images, micro_batch), torch.split(labels, micro_batch), strict=True)
    # reduce, not a list: the moments of a part are let go as soon as they are merged.
    return reduce(Look.merge, (_look_twice(look_at, *part) for part in parts))


def _look_twice(look_at: LookAt, images: Tensor, labels: Tensor) -> Look:
    seen: Look = checkpoint(look_at, images, labels, use_reentrant=False, preserve_rng_state=False)
    return seen
