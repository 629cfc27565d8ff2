"""What the first layers of a network made for ImageNet need to see small or grayscale images."""

from __future__ import annotations

from torch import nn

SMALL_IMAGE = 64
"""Largest height and width in pixels for which stems keep the resolution (SPEC.md section 3, row "teacher")."""

STEM_POOLS = ("maxpool", "features.pool0")
"""Names of the max-pool of a stem: ResNets and ShuffleNets of torchvision and timm; DenseNets."""


def use_small_image_stem(network: nn.Module) -> None:
    """Replace the striding first convolution by a 3×3 convolution of stride 1, and the max-pool of the stem by nothing.

    An ImageNet stem divides height and width by 2 or 4, which leaves a 1×1 map of a 32 px image at the end.
    A first convolution that cuts patches (stride equal to kernel: transformers, ConvNeXt) stays as it is, and so does
    one of stride 1 (VGG).

    Args:
        network: Changed in place.
    """
    name, first = _first_convolution(network)
    if first.stride in ((1, 1), first.kernel_size):
        return
    bias = first.bias is not None
    stem = nn.Conv2d(first.in_channels, first.out_channels, kernel_size=3, stride=1, padding=1, bias=bias)
    network.set_submodule(name, _initialised(stem))
    modules = dict(network.named_modules())
    for pool in STEM_POOLS:
        if pool in modules:
            network.set_submodule(pool, nn.Identity())


def use_input_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution of a network by one that reads `channels` channels, otherwise equal.

    Args:
        network: Changed in place.
        channels: Channels of the images.
    """
    name, first = _first_convolution(network)
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


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def _initialised(conv: nn.Conv2d) -> nn.Conv2d:
    """Draw the weights as torchvision's ResNet does for all its other convolutions."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
