"""How features lie in memory, and how their moments are taken of them there.

Legend: n images, c channels, h w space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unidd_pl.spectral import Moments, Passing

_LARGEST_OFFSET = 16.0  # ‖μ‖²/tr Ψ: the covariance then loses 4 of its 24 bits where it is not centred beforehand
_MAKE_THEIR_GRADIENT = (nn.Conv2d, nn.BatchNorm2d)


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the layout of a frozen teacher and of its images on a device.

    Channels last on a CPU: its kernels are faster, and the rows of the features are in one piece there. Elsewhere
    torch's default.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def lay_out(network: nn.Module, device: torch.device) -> None:
    """Bring a teacher to a device, in the layout that is fast there."""
    network.to(device).to(memory_format=memory_format(device))


def laid_out(images: Tensor) -> Tensor:
    """Return images (n, c, h, w) in the layout of their device; the gradient flows."""
    return images.contiguous(memory_format=memory_format(images.device))


def passings(network: nn.Module, layers: Sequence[str], real: Sequence[Moments]) -> dict[str, Passing]:
    """Return how the inputs of layers pass while their moments are taken.

    Args:
        network: The teacher.
        layers: Names of its layers.
        real: Real moments, one a layer: the synthetic features are alike, and no step has to look at them.
    """
    return {
        name: Passing(
            centred=float(one.mean.square().sum()) > _LARGEST_OFFSET * float(one.ffc.trace()),
            owned=isinstance(network.get_submodule(name), _MAKE_THEIR_GRADIENT),
            by_image=len(one.label_weight) > 0,
        )
        for name, one in zip(layers, real, strict=True)
    }
