"""What the first layers of a torchvision network need to see small or grayscale images."""

from __future__ import annotations

from torch import nn
from torchvision.models import ResNet

SMALL_IMAGE = 64
"""Largest height and width in pixels for which ResNets get a 3×3 stem (SPEC.md section 3, row "teacher")."""


def use_small_image_stem(network: ResNet) -> None:
    """Replace the 7×7 stride-2 convolution and the max-pool of a ResNet by a 3×3 stride-1 convolution.

    The ImageNet stem divides height and width by 4, which leaves a 1×1 map of a 32 px image at the end.

    Args:
        network: Changed in place.
    """
    inputs, outputs = network.conv1.in_channels, network.conv1.out_channels
    network.conv1 = _initialised(nn.Conv2d(inputs, outputs, kernel_size=3, stride=1, padding=1, bias=False))
    network.maxpool = nn.Identity()


def use_input_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution of a network by one that reads `channels` channels, otherwise equal.

    Args:
        network: Changed in place.
        channels: Channels of the images.
    """
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == channels:
        return
    network.set_submodule(
        name,
        _initialised(
            nn.Conv2d(
                channels,
                first.out_channels,
                kernel_size=(first.kernel_size[0], first.kernel_size[1]),
                stride=(first.stride[0], first.stride[1]),
                padding=first.padding if isinstance(first.padding, str) else (first.padding[0], first.padding[1]),
                bias=first.bias is not None,
            )
        ),
    )


def _initialised(conv: nn.Conv2d) -> nn.Conv2d:
    """Draw the weights as torchvision's ResNet does for all its other convolutions."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
