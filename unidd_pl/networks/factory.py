"""A network by its name, with fresh weights, for the images and classes of a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

from unidd_pl.networks.convnet import ConvNet, default_depth
from unidd_pl.networks.stems import SMALL_IMAGE, use_input_channels, use_small_image_stem
from unidd_pl.specs import DatasetSpec

TIMM_PREFIX = "timm/"
CONVNET_NAME = re.compile(r"convnet(?:-w(?P<width>\d+))?(?:-d(?P<depth>\d+))?")
CONVNET_WIDTH = 128
"""Width of a ConvNet whose name gives none (SPEC.md section 3: ConvNet-W128)."""
SMALL_IMAGE_PATCHES = 8
"""Patches along a side of a small image: 4 px at 32 px, as ViTs on CIFAR have it (16 px would leave 4 tokens)."""


def build_network(name: str, spec: DatasetSpec) -> nn.Module:
    """Build a network for a data set, never with pretrained weights.

    The weights are drawn from torch's global generator: the caller seeds it.

    Args:
        name: `convnet-w128-d3` (any width and depth; without them width 128 and a depth that suits the image
            size), a torchvision classification network such as `resnet18`, or a timm network such as
            `timm/vit_tiny_patch16_224`. Up to 64 px, convolutional networks get a stem that keeps the resolution
            (`use_small_image_stem`), and timm's ViTs patches of an eighth of the image's width.
        spec: Gives channels, image size in pixels and number of classes.

    Returns:
        The network in training mode: normalised images (n, c, h, w) to logits (n, k).

    Raises:
        ValueError: If the name is unknown, or the network does not take images of this size.
    """
    convnet = CONVNET_NAME.fullmatch(name)
    if convnet is not None:
        width = int(convnet["width"] or CONVNET_WIDTH)
        depth = default_depth(spec.image_size) if convnet["depth"] is None else int(convnet["depth"])
        return ConvNet(width, depth, spec.channels, spec.image_size, spec.num_classes)
    build = (_timm_builder if name.startswith(TIMM_PREFIX) else _torchvision_builder)(name, spec)
    return _built_and_tried(build, name, spec)


def _torchvision_builder(name: str, spec: DatasetSpec) -> Callable[[], nn.Module]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise _unknown_name(name, ["convnet", "convnet-w128", "convnet-w128-d3", *known])
    return partial(_build_torchvision, name, spec)


def _build_torchvision(name: str, spec: DatasetSpec) -> nn.Module:
    settings = _torchvision_settings(name, spec)
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=spec.num_classes, **settings)
    use_input_channels(network, spec.channels)
    if spec.image_size <= SMALL_IMAGE:
        use_small_image_stem(network)
    return network


def _torchvision_settings(name: str, spec: DatasetSpec) -> dict[str, Any]:
    """Return the arguments of the families that need more than a number of classes."""
    if name.startswith("vit_"):
        return {"image_size": spec.image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (spec.image_size, spec.image_size)}
    if name in ("googlenet", "inception_v3"):
        # With auxiliary heads they would return a tuple in training mode; without init_weights they warn.
        return {"aux_logits": False, "init_weights": True}
    return {}


def _timm_builder(name: str, spec: DatasetSpec) -> Callable[[], nn.Module]:
    import timm  # noqa: PLC0415  (takes seconds to import, and most runs have no timm network)

    timm_name = name.removeprefix(TIMM_PREFIX)
    # Asked first because create_model would look up an unregistered name of the form "hf-hub:…" online.
    if not timm.is_model(timm_name):
        raise _unknown_name(name, [TIMM_PREFIX + known for known in timm.list_models()])
    return partial(_build_timm, timm_name, spec)


def _build_timm(timm_name: str, spec: DatasetSpec) -> nn.Module:
    import timm  # noqa: PLC0415  (as above)

    settings: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": spec.channels}
    # timm marks the networks whose weights depend on the image size; many others refuse the argument.
    if getattr(timm.get_pretrained_cfg(timm_name), "fixed_input_size", False):
        settings["img_size"] = spec.image_size
    network: nn.Module = timm.create_model(timm_name, pretrained=False, **settings)
    if spec.image_size <= SMALL_IMAGE:
        use_small_image_stem(network)
        if isinstance(network, timm.models.VisionTransformer):
            settings["patch_size"] = max(spec.image_size // SMALL_IMAGE_PATCHES, 1)
            network = timm.create_model(timm_name, pretrained=False, **settings)
    return network


def _built_and_tried(build: Callable[[], nn.Module], name: str, spec: DatasetSpec) -> nn.Module:
    """Build a network of another library and let it classify one blank image.

    Whether such a network takes the image size shows only in its forward pass. In eval mode that draws no
    random number and leaves the running statistics alone.
    """
    try:
        network = build().eval()
        with torch.no_grad():
            logits = network(torch.zeros(1, *spec.image_shape))
    except (AssertionError, RuntimeError, TypeError, ValueError) as err:
        reason = str(err).strip().partition("\n")[0]
        raise ValueError(
            f"network {name!r}: got an error for images of {spec.image_size} px with {spec.channels} "
            f"channel(s) ({reason}), expected logits; choose another image size, or a network that "
            "takes this one, such as 'convnet' or 'resnet18'"
        ) from err
    if logits.shape != (1, spec.num_classes):
        raise ValueError(
            f"network {name!r}: got logits of shape {tuple(logits.shape)} for one image, expected "
            f"{(1, spec.num_classes)}; choose a network for image classification"
        )
    return network.train()


def _unknown_name(name: str, known: Iterable[str]) -> ValueError:
    matches = get_close_matches(name, list(known), n=3, cutoff=0.5)
    cure = f"did you mean {', '.join(matches)}?" if matches else "see torchvision.models and timm.list_models()"
    return ValueError(
        f"network: got {name!r}, expected 'convnet-w<width>-d<depth>', a torchvision classification network "
        f"or '{TIMM_PREFIX}' and the name of a timm network; {cure}"
    )
