"""How the teacher sees a chunk: logits, and what moments are made of, in one pass, as it is or compiled.

Legend: n images, c channels, h w space, k classes; l layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from unidd_pl.features import FeatureTap, TappedNetwork
from unidd_pl.layout import laid_out
from unidd_pl.spectral import ANY, Observed, Passing, observe

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""Modes of `torch.compile`; the last two record CUDA graphs on a device."""

See = Callable[[Tensor], tuple[Tensor, list[Observed]]]
"""From images (n, c, h, w), normalised and augmented, to logits (n, k) and what is taken of the l layers."""


def observing(
    network: nn.Module,
    layers: Sequence[str],
    passings: Mapping[str, Passing] | None = None,
    *,
    factored: bool = False,
) -> See:
    """Return one pass of a network that takes of the features while they pass into their layers.

    Args:
        network: The teacher, frozen and in eval mode, so that no image has a part in what is made of another.
        layers: Names of the layers whose inputs are matched.
        passings: How the inputs of each layer pass, see `layout.passings`; None for any layer's way.
        factored: Whether the moments of layers with few rows may stay factored, see `observe`.
    """

    def see(images: Tensor) -> tuple[Tensor, list[Observed]]:
        observed: dict[str, Observed] = {}

        def through(name: str, features: Tensor) -> Tensor:
            passing = ANY if passings is None else passings[name]
            passed, observed[name] = observe(features, factored=factored, passing=passing)
            return passed

        with FeatureTap(network, layers, through) as tap:
            logits = network(laid_out(images))
            tap.features()  # complains of layers that were not reached
        return logits, [observed[name] for name in layers]

    return see


class CompiledTeacher:
    """A network whose passes, forward and backward, are compiled, once for each size of a chunk.

    What is taken of the features is taken behind the pass, and their gradients are handed to the compiled backward
    pass all at once: for the time of that pass the step holds them beside the features.

    Args:
        network: As for `observing`.
        layers: As for `observing`.
        mode: Of `torch.compile`.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], mode: CompileMode) -> None:
        self._network, self._layers, self._mode = network, tuple(layers), mode

    def observing(self, passings: Mapping[str, Passing], *, factored: bool) -> See:
        """Return one pass, as the function `observing`.

        The pass raises:
            ValueError: If the network cannot be compiled here.
        """

        def see(images: Tensor) -> tuple[Tensor, list[Observed]]:
            try:
                logits, features = self._compiled(laid_out(images))
            except torch._dynamo.exc.TorchDynamoException as error:
                raise ValueError(_not_compiled(error)) from error
            taken = zip(self._layers, features, strict=True)
            return logits, [observe(x, factored=factored, passing=passings[name])[1] for name, x in taken]

        return see

    @cached_property
    def _compiled(self) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
        # At the first pass, when the network is on its device. Torch compiles a function for at most eight cases in a
        # process, whatever runs they belong to, and leaves the ninth as it is: a run starts anew.
        torch._dynamo.reset()
        tapped = TappedNetwork(self._network, self._layers)
        compiled: Callable[[Tensor], tuple[Tensor, list[Tensor]]] = torch.compile(
            tapped, mode=self._mode, dynamic=False
        )
        return compiled


def _not_compiled(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    return (
        f"model.init_args.compile_mode: torch.compile failed ({reason}). It needs a C++ compiler on a CPU and Triton "
        "on a CUDA device; without compile_mode the teacher runs as it is, with the same result"
    )
