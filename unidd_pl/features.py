"""FeatureTap: records the inputs of chosen layers of a network during a forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unidd_pl.spectral import Layers

_SHORTCUT_NAMES = frozenset({"downsample", "shortcut"})  # as torchvision, timm and the field name them


def conv_layers(network: nn.Module) -> tuple[str, ...]:
    """Return the names of all convolutions in the order of registration, shortcuts left out.

    Raises:
        ValueError: If there are none.
    """
    names = tuple(
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and not _SHORTCUT_NAMES & set(name.split("."))
    )
    if not names:
        raise ValueError(
            f"{type(network).__name__} has no Conv2d layers to take features from: use a convolutional "
            "teacher, or name the layers"
        )
    return names


def batchnorm_layers(network: nn.Module) -> tuple[str, ...]:
    """Return the names of all two-dimensional BatchNorms in the order of registration.

    Raises:
        ValueError: If there are none.
    """
    names = tuple(name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d))
    if not names:
        raise ValueError(
            f"{type(network).__name__} has no BatchNorm2d layers to match: use a teacher with BatchNorm, or a method "
            "that matches convolutions"
        )
    return names


def layers_to_tap(network: nn.Module, kind: Layers) -> tuple[str, ...]:
    """Return the names of the layers of a kind whose inputs a method matches.

    Raises:
        ValueError: If there are none.
    """
    return batchnorm_layers(network) if kind == "batchnorm" else conv_layers(network)


class FeatureTap:
    """Records the inputs of layers of one network.

    Used as a context manager, it is filled anew by each forward pass::

        with FeatureTap(teacher, conv_layers(teacher)) as tap:
            logits = teacher(images)
            features = tap.features()

    The network is not changed; the recorded tensors are those of its graph, so gradients flow.

    Args:
        network: The network to listen to.
        layers: Names of its modules, as in ``named_modules``.
        through: Takes the name of a layer and its input, and returns what the layer is given instead: the same values,
            perhaps with more behind their gradient.

    Raises:
        ValueError: If the network has no layer of a name.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], through: Callable[[str, Tensor], Tensor] | None = None
    ) -> None:
        self.layers = tuple(layers)
        try:
            # By name and not from a list of all modules: a tap is made at every step.
            self._modules = [network.get_submodule(name) for name in layers]
        except AttributeError as error:
            known = dict(network.named_modules())
            raise ValueError(
                f"{type(network).__name__} has no layers {[name for name in layers if name not in known]}: expected "
                f"names from its named_modules(), for example {list(known)[-3:]}"
            ) from error
        self._network = network
        self._through = through
        self._recorded: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        self._handles.append(self._network.register_forward_pre_hook(lambda *_: self._recorded.clear()))
        for name, module in zip(self.layers, self._modules, strict=True):
            self._handles.append(module.register_forward_pre_hook(self._recorder(name)))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recorded.clear()

    def features(self) -> list[Tensor]:
        """Return the inputs of the last forward pass, (n, c, h, w) each, in the order of the layers.

        Raises:
            ValueError: If a layer was not reached.
        """
        missing = [name for name in self.layers if name not in self._recorded]
        if missing:
            raise ValueError(f"the forward pass did not reach the layers {missing}")
        return [self._recorded[name] for name in self.layers]

    def take(self) -> list[Tensor]:
        """Return `features`, and keep none of them."""
        features = self.features()
        self._recorded.clear()
        return features

    def _recorder(self, name: str):  # type: ignore[no-untyped-def]  # torch types hooks loosely
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            self._recorded[name] = inputs[0]
            return None if self._through is None else (self._through(name, inputs[0]), *inputs[1:])

        return record


class TappedNetwork(nn.Module):
    """A network that returns the inputs of chosen layers beside its output: one function, which can be compiled.

    It is a copy that shares the weights, so that what listens to its layers is in nobody else's way. Hooks that the
    network has are copied with it, and stay.

    Args:
        network: The network, where it is to stay.
        layers: Names of its modules, as in ``named_modules``.

    Raises:
        ValueError: If the network has no layer of a name.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network, {id(one): one for one in (*network.parameters(), *network.buffers())})
        self._tap = FeatureTap(self.network, layers)
        self._tap.__enter__()

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the output, and the inputs (n, c, h, w) of the layers, in their order; gradients flow through both."""
        output = self.network(images)
        return output, self._tap.take()
