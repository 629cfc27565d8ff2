"""A chunk over several processes: the one collective that joins what they see.

Every process (rank) holds its own rows of the chunk and nothing of the others'. A step exchanges moments only, so that
neither images nor their gradients travel, and how much is sent depends on the layers alone.

Legend: n images, c channels, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from unidd_pl.ranks import own_rows, world_size
from unidd_pl.spectral import Moments, StackedMoments, dense


class _SumWithLocalGradient(torch.autograd.Function):
    """Sum over ranks whose backward passes the gradient of the sum to the local term, as is.

    Each rank holds the whole loss as a function of its own rows, and the sum depends on the local term with the
    derivative 1. The collective's own derivative, a sum of the ranks' gradients, would count the loss once a rank.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def sum_with_local_gradient(local: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks; the gradient of the sum flows to the local term, as it is."""
    if world_size() == 1:
        return local
    total: Tensor = _SumWithLocalGradient.apply(local)
    return total


def merge_over_ranks(moments: StackedMoments) -> StackedMoments:
    """Return the moments of the rows of all ranks, exactly as if one process had seen them.

    Two sums: counts, means and the FLC of all layers; then the scatter about the joint means, so that nothing is
    lost to cancellation. What a rank sends grows with the channels (c² of the second sum: 4.5 MB for a ResNet-18 in
    float32; c·k of the first with a signal of k classes), not with images or their size.

    Args:
        moments: Moments of the rows of this rank; of count 0 where it has none.

    Returns:
        Moments, the same on every rank; the gradient flows to the moments of this rank.

    References:
        DESIGN.md, several processes.
    """
    # Anew, by width alone: which layers a rank takes as factors depends on its rows.
    alike = StackedMoments.of([dense(one) for one in moments])
    groups = [dense(group) for _, group in alike.groups]
    firsts = _summed_together(
        [
            (
                one.count,
                one.mean * one.count[..., None],
                one.label_weight,
                one.label_mean * one.label_weight[..., None, :],
            )
            for one in groups
        ]
    )
    scatters = []
    for one, (count, total, *_) in zip(groups, firsts, strict=True):
        # The joint mean is held fixed: about it the scatter is least, so its own derivative is zero once summed.
        delta = one.mean - (total / count[..., None]).detach()
        between = delta[..., :, None] * delta[..., None, :]
        scatters.append(((one.ffc + between) * (one.count / count.detach())[..., None, None],))
    merged: list[Moments] = []
    for (count, total, weight, labelled), (ffc,) in zip(firsts, _summed_together(scatters), strict=True):
        label_mean = labelled / torch.where(weight > 0, weight, torch.ones_like(weight))[..., None, :]
        merged.append(Moments(count.detach(), total / count[..., None], ffc, weight, label_mean))
    return StackedMoments((layers, one) for (layers, _), one in zip(alike.groups, merged, strict=True))


def _summed_together(groups: Sequence[tuple[Tensor, ...]]) -> list[list[Tensor]]:
    """Return the sums over ranks of the tensors of all groups, sent as one block."""
    flat = torch.cat([tensor.reshape(-1) for tensors in groups for tensor in tensors])
    sizes = [tensor.numel() for tensors in groups for tensor in tensors]
    blocks = iter(torch.split(sum_with_local_gradient(flat), sizes))
    return [[next(blocks).view(tensor.shape) for tensor in tensors] for tensors in groups]


def bytes_sent(channels: Sequence[int], classes: int, element: int = 4) -> int:
    """Return the bytes of the two sums of a step; a ring sends 2(W−1)/W times as much from each of W ranks.

    Args:
        channels: Channels of each layer.
        classes: Columns of the FLC; 0 for the signal ``mean``.
        element: Bytes a number.
    """
    return element * (1 + sum(1 + c + classes + c * classes + c * c for c in channels))


def all_rows(own: Tensor, count: int) -> Tensor:
    """Return the rows of all ranks in order, on every rank, without a gradient.

    Args:
        own: (m, …) rows of this rank, as `own_rows` says.
        count: Rows of the whole chunk.
    """
    if world_size() == 1:
        return own.detach()
    whole = own.new_zeros(count, *own.shape[1:])
    whole[own_rows(count)] = own.detach()
    dist.all_reduce(whole)  # blocks of unequal length: everyone adds to zeros
    return whole


def largest_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest of the ranks' values, on every rank."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)
