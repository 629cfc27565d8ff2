"""For gradients in closed form, which can be taken once."""

from __future__ import annotations

import torch


def refuse_second_derivative() -> None:
    """To be called first in the backward of an autograd function.

    Torch's `once_differentiable` says the same later, when the second derivative is asked for; but entering it behind a
    convolution, with cold caches, takes as long as the rest of a backward's Python.

    Raises:
        RuntimeError: If the gradient is to be differentiated again.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the matching loss can be differentiated once: expected a backward without create_graph=True"
        )
