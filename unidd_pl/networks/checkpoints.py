"""Weights from a file into a network: strictly, and with an answer when they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unidd_pl.untrusted import UnreadableTensorsError, read_safetensors, read_torch

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")
SAFETENSORS_SUFFIX = ".safetensors"
CONTAINER_KEYS = ("state_dict", "model", "net")
"""Where training scripts put the state_dict beside their epoch and optimiser (Lightning: state_dict)."""
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "network.", "model.")
"""What DistributedDataParallel, torch.compile and LightningModules put before the names of a network."""
NAMES_SHOWN = 3
"""Parameter names in one message: enough to recognise an architecture."""


def load_weights(network: nn.Module, path: str | Path, *, expected_classes: int) -> None:
    """Load a checkpoint into a network, strictly.

    Names, number of classes and shapes are compared before anything is copied.

    Args:
        network: Receives the weights, in place and on its own device.
        path: A .pt, .pth, .ckpt or .safetensors file with a state_dict, bare or under `state_dict`,
            `model` or `net`, whose names may carry the prefixes of DistributedDataParallel,
            torch.compile or Lightning.
        expected_classes: Number of classes of the data set; checkpoint and network must both have as many.

    Raises:
        ValueError: If the file is missing or no checkpoint, or if architecture, number of classes
            or shapes differ.
    """
    path = Path(path)
    own = network.state_dict()
    loaded = _without_prefixes(_state_dict(_read(path), path), own, path)
    _check_names(loaded, own, path)
    _check_classes(loaded, own, path, expected_classes)
    _check_shapes(loaded, own, path)
    try:
        network.load_state_dict(loaded)
    except RuntimeError as err:
        reason = " ".join(str(err).split())
        raise ValueError(
            f"{path}: got weights that cannot be copied into the network ({reason}), expected dense tensors; "
            "save network.state_dict() of the unquantised network"
        ) from err


def count_outputs(network: nn.Module, path: str | Path) -> int:
    """Return how many classes the checkpoint of an architecture predicts, which may be other ones than the network's.

    Raises:
        ValueError: If the file is missing or no checkpoint, or of another architecture.
    """
    path, own = Path(path), network.state_dict()
    loaded = _without_prefixes(_state_dict(_read(path), path), own, path)
    _check_names(loaded, own, path)
    return loaded[_classifier(own)].shape[0]


def take_outputs(network: nn.Module, whole: nn.Module, outputs: Sequence[int]) -> None:
    """Copy the weights of a network of more classes, with only some of its outputs.

    The logits are those of the whole network at these outputs, in this order.

    Args:
        network: Receives the weights, in place; of the architecture of the whole one, with as many classes as outputs.
        whole: Network of more classes.
        outputs: Which of them, in the order wanted.
    """
    own, rows = network.state_dict(), torch.tensor(outputs)
    chosen = {
        name: weights if weights.shape == own[name].shape else weights.index_select(0, rows)
        for name, weights in whole.state_dict().items()
    }
    network.load_state_dict(chosen)


def _read(path: Path) -> object:
    suffix = path.suffix.lower()
    if suffix not in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX):
        expected = ", ".join((*TORCH_SUFFIXES, SAFETENSORS_SUFFIX))
        raise ValueError(f"{path}: got a file name ending in {suffix!r}, expected {expected}; rename or convert it")
    if not path.is_file():
        raise ValueError(f"{path}: got no such file, expected a checkpoint; correct the path or train one first")
    if suffix == SAFETENSORS_SUFFIX:
        try:
            return read_safetensors(path)[0]
        except UnreadableTensorsError as error:
            raise ValueError(
                f"{path}: got a file that cannot be read as a checkpoint ({error}), expected tensors only; "
                "save network.state_dict() and check that the file is complete"
            ) from error
    content: object = read_torch(path)
    return content


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        containers = (content[key] for key in CONTAINER_KEYS if isinstance(content.get(key), Mapping))
        candidate: Mapping[Any, Any] = next(containers, content)
        if candidate and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items()):
            return dict(candidate)
        got = f"a dictionary with the keys {_some(map(str, content))}"
    else:
        got = f"an object of type {type(content).__name__}"
    raise ValueError(
        f"{path}: got {got}, expected a state_dict, bare or under {', '.join(map(repr, CONTAINER_KEYS))}; "
        "save network.state_dict()"
    )


def _without_prefixes(loaded: dict[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    stripped = {_without_prefix(name, own): tensor for name, tensor in loaded.items()}
    if len(stripped) < len(loaded):
        raise ValueError(
            f"{path}: got {len(loaded) - len(stripped)} names twice once the prefixes "
            f"{', '.join(WRAPPER_PREFIXES)} are off, expected one network; save one state_dict alone"
        )
    return stripped


def _without_prefix(name: str, own: Mapping[str, Tensor]) -> str:
    # Prefixes nest (module._orig_mod.), and a network may itself have a submodule called `model`.
    while name not in own:
        prefix = next((p for p in WRAPPER_PREFIXES if name.startswith(p)), None)
        if prefix is None:
            break
        name = name.removeprefix(prefix)
    return name


def _check_names(loaded: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in own if name not in loaded]
    unexpected = [name for name in loaded if name not in own]
    if missing or unexpected:
        raise ValueError(
            f"{path}: got the weights of another architecture: missing {_some(missing)}; unexpected "
            f"{_some(unexpected)}; expected the {len(own)} tensors of the network; "
            "build the network that the checkpoint was saved from"
        )


def _check_classes(loaded: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, expected_classes: int) -> None:
    classifier = _classifier(own)
    for holder, state in ((str(path), loaded), ("network", own)):
        rows = state[classifier].shape[0] if state[classifier].ndim else 0
        if rows != expected_classes:
            raise ValueError(
                f"{holder}: got {rows} classes (rows of {classifier}), expected {expected_classes}; "
                "checkpoint, network and data set must have the same classes in the same order"
            )


def _classifier(own: Mapping[str, Tensor]) -> str:
    # ConvNet, torchvision and timm networks all register their classifier last.
    return [name for name, tensor in own.items() if tensor.ndim >= 2][-1]


def _check_shapes(loaded: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    differing = [
        f"{name} got {tuple(loaded[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if loaded[name].shape != tensor.shape
    ]
    if differing:
        raise ValueError(
            f"{path}: got tensors of other shapes: {_some(differing, separator='; ')}; "
            "build the network with the width, image size, channels and stem of the checkpoint"
        )


def _some(names: Iterable[str], separator: str = ", ") -> str:
    """Join the first few names and count the rest."""
    listed = list(names)
    shown = separator.join(listed[:NAMES_SHOWN]) or "none"
    return shown if len(listed) <= NAMES_SHOWN else f"{shown} and {len(listed) - NAMES_SHOWN} more"
