"""The ConvNet on which data set distillation is compared, with the parameter names its checkpoints have."""

from __future__ import annotations

from torch import Tensor, nn

SMALLEST_MAP = 4
"""Height and width in pixels at which `default_depth` stops halving; 32 px then gives 3 blocks."""


def default_depth(image_size: int) -> int:
    """Return the number of blocks that halve an image down to a map of 4 to 7 pixels, at least 1.

    Args:
        image_size: Height and width in pixels.

    Returns:
        3 for 32 px, 4 for 64 px, 5 for 128 px.
    """
    return max(1, (image_size // SMALLEST_MAP).bit_length() - 1)


class ConvNet(nn.Module):
    """Blocks of convolution, BatchNorm, ReLU and 2×2 average pooling, then a linear classifier.

    The parameters are named `layers.conv.{i}`, `layers.norm.{i}` and `classifier`: the form in which this
    field passes its checkpoints around.

    Args:
        width: Channels of every convolution.
        depth: Number of blocks; each halves height and width, rounding down.
        channels: Channels of the images.
        image_size: Height and width of the images in pixels.
        num_classes: Number of logits.

    Raises:
        ValueError: If a number is below 1, or the blocks leave no pixel of the image.

    References:
        SPEC.md section 3, row "teacher" (ConvNet-W128-D3 and -D4).
    """

    def __init__(
        self, width: int = 128, depth: int = 3, channels: int = 3, image_size: int = 32, num_classes: int = 10
    ) -> None:
        super().__init__()
        sizes = {
            "width": width,
            "depth": depth,
            "channels": channels,
            "image_size": image_size,
            "num_classes": num_classes,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"ConvNet: got {name} {value}, expected at least 1")
        map_size = image_size >> depth
        if map_size < 1:
            raise ValueError(
                f"ConvNet: got depth {depth}, expected at most {image_size.bit_length() - 1} for "
                f"{image_size} px (each block halves it); depth {default_depth(image_size)} suits this size"
            )
        self.layers = ConvBlocks(width, depth, channels)
        self.classifier = nn.Linear(width * map_size**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: (n, c, h, w), normalised.

        Returns:
            Logits (n, k); the gradient flows.
        """
        logits: Tensor = self.classifier(self.layers(images).flatten(start_dim=1))
        return logits


class ConvBlocks(nn.Module):
    """The blocks of `ConvNet`, convolutions and norms in two lists, as its checkpoints name them.

    Args:
        width: Channels of every convolution.
        depth: Number of blocks.
        channels: Channels of the images.
    """

    def __init__(self, width: int, depth: int, channels: int) -> None:
        super().__init__()
        inputs = [channels] + [width] * (depth - 1)
        self.conv = nn.ModuleList(nn.Conv2d(c, width, kernel_size=3, padding=1) for c in inputs)
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (n, c, h, w) to features (n, width, h / 2^depth, w / 2^depth)."""
        features = images
        for conv, norm in zip(self.conv, self.norm, strict=True):
            features = self.pool(self.relu(norm(conv(features))))
        return features
