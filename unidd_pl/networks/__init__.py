"""Teachers and students: the ConvNet of the field, torchvision and timm by name, and checkpoint loading."""

from unidd_pl.networks.checkpoints import load_weights
from unidd_pl.networks.convnet import ConvNet
from unidd_pl.networks.factory import build_network

__all__ = ["ConvNet", "build_network", "load_weights"]
