"""One student over several processes (ranks): what has to be joint so that their number does not show in the result.

Legend: n images of the joint batch, c channels; each rank holds some of the rows.

Under DDP each rank has a copy of the weights and a loss of its own, and the gradients are averaged. A statistic that
all ranks share enters the loss of every rank, so its gradient is the sum over the ranks. (In a distillation it is the
reverse: there every rank computes the joint loss.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_ranks(batches: Sequence[int], ranks: int) -> None:
    """Refuse a batch with fewer images than ranks.

    Raises:
        ValueError: If there is one.
    """
    if min(batches) < ranks:
        raise ValueError(
            f"devices: got {ranks} for batches of {max(batches)} images, the smallest of which has {min(batches)}, "
            "expected an image for each device: lower --devices, or --spread students over them"
        )


def sum_with_summed_gradient(values: Tensor) -> Tensor:
    """Return the sum over all ranks; the gradient is summed over the ranks too."""
    summed: Tensor = _SumWithSummedGradient.apply(values)
    return summed


class _SumWithSummedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        joint = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(joint)
        return joint

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        joint = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(joint)
        return joint


class JointBatchNorm(_BatchNorm):
    """BatchNorm over the rows of all ranks, on any device; torch's SyncBatchNorm knows GPUs only.

    In eval mode, and outside a process group, it is the usual one.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs (n, c, …) normalised by the joint mean and variance of each channel."""
        if not (self.training and dist.is_initialized()):
            return super().forward(inputs)
        dims = [dim for dim in range(inputs.dim()) if dim != 1]
        shape = [1, -1] + [1] * (inputs.dim() - 2)
        values = inputs if inputs.dtype == torch.float64 else inputs.float()
        local = torch.cat([values.sum(dims), values.new_tensor([values.numel() / values.shape[1]])])
        joint = sum_with_summed_gradient(local)
        count = joint[-1]
        mean = joint[:-1] / count
        centred = values - mean.view(shape)
        variance = sum_with_summed_gradient(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach(), float(count))
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(inputs.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Update the running statistics as torch does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"got {input.dim()} dimensions, expected at least 2: images and channels")


def with_joint_batchnorm(network: nn.Module) -> nn.Module:
    """Replace every BatchNorm of a network by one over all ranks, with its weights and statistics.

    Raises:
        ValueError: If a layer is a BatchNorm of another make, as some of timm's that hold their activation too.
    """
    for name, child in network.named_children():
        if isinstance(child, JointBatchNorm):
            continue
        if isinstance(child, _BatchNorm):
            if type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                raise ValueError(
                    f"sync_batchnorm: got a layer {name} of type {type(child).__name__}, expected torch's own "
                    "BatchNorm: choose another network, or leave --sync_batchnorm out"
                )
            joint = JointBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            joint.load_state_dict(child.state_dict())
            joint.train(child.training)
            setattr(network, name, joint)
        else:
            with_joint_batchnorm(child)
    return network


def same_buffers(network: nn.Module) -> None:
    """Give every rank the buffers of rank 0: running statistics that each gathered from rows of its own."""
    for buffer in network.buffers():
        dist.broadcast(buffer, 0)


def joint_shares(shares: list[float], count: int, device: torch.device) -> tuple[float, ...]:
    """Return shares over the images of all ranks, from each rank's share of its own `count` images.

    Whole numbers of hits are summed, so the result is exact, and that of one process to the last bit.
    """
    hits = torch.tensor([*(round(share * count) for share in shares), count], dtype=torch.int64, device=device)
    dist.all_reduce(hits)
    return tuple((hits[:-1].float() / hits[-1].float()).tolist())
