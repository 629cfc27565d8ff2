"""Published weights as a teacher: torchvision's, fetched once when they are first needed."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
import torchvision

PUBLISHED = "torchvision"
"""What stands for a file: alone for the weights that torchvision recommends, or before ``:`` and their name."""


def is_published(checkpoint: str) -> bool:
    """Return whether a checkpoint names published weights and not a file."""
    return checkpoint == PUBLISHED or checkpoint.startswith(f"{PUBLISHED}:")


def published_weights(checkpoint: str, network: str) -> Path:
    """Return the file of published weights in torch's cache of downloads, fetching it where it is missing.

    Args:
        checkpoint: ``torchvision``, or ``torchvision:NAME``, for example ``torchvision:IMAGENET1K_V1``.
        network: Name of the architecture.

    Raises:
        ValueError: If torchvision publishes no such weights, or they cannot be fetched.
    """
    name = checkpoint.partition(":")[2] or "DEFAULT"
    try:
        weights = torchvision.models.get_model_weights(network)
    except ValueError as error:
        raise ValueError(f"teacher.checkpoint: got {checkpoint}, but torchvision has no network {network!r}") from error
    if name not in weights.__members__:
        known = ", ".join(weights.__members__) or "none"
        raise ValueError(f"teacher.checkpoint: got {checkpoint}, expected published weights of {network}: {known}")
    url = str(weights[name].value.url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:  # no network, no space, or another file than was published
        raise ValueError(
            f"cannot get torchvision's weights {weights[name]} ({error}): expected a connection, or the file at "
            f"{path}; fetch {url} elsewhere and put it there, or give its place with --teacher.checkpoint FILE"
        ) from error
    return path
