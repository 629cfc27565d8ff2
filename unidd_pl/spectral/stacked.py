"""Moments of all layers of a network, those of layers of one width stacked, so that one call does for all of them.

Legend: l layers of one width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from unidd_pl.spectral.factored import AnyMoments

Group = tuple[tuple[int, ...], AnyMoments]
"""Numbers of l layers, and their moments, each field with a leading l."""


class StackedMoments(Sequence[AnyMoments]):
    """Moments of all layers, in the order of the layers for whoever reads them one by one.

    Args:
        groups: Layers that are alike, and their moments; every layer once.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups = tuple(groups)

    @classmethod
    def of(cls, moments: Sequence[AnyMoments]) -> StackedMoments:
        """Return moments, one a layer, stacked; as they are if they are stacked already."""
        if isinstance(moments, StackedMoments):
            return moments
        groups = alike((type(one), *(getattr(value, "shape", None) for value in vars(one).values())) for one in moments)
        return cls((layers, _together([moments[layer] for layer in layers])) for layers in groups)

    @property
    def device(self) -> torch.device:
        """Where the moments are."""
        return self.groups[0][1].mean.device

    def map(self, change: Callable[[AnyMoments], AnyMoments]) -> StackedMoments:
        """Return the moments with each group changed."""
        return StackedMoments((layers, change(group)) for layers, group in self.groups)

    def __len__(self) -> int:
        return sum(len(layers) for layers, _ in self.groups)

    def __iter__(self) -> Iterator[AnyMoments]:
        places = {layer: (group, place) for layers, group in self.groups for place, layer in enumerate(layers)}
        return (_one(*places[layer]) for layer in range(len(places)))

    @overload
    def __getitem__(self, index: int) -> AnyMoments: ...

    @overload
    def __getitem__(self, index: slice) -> list[AnyMoments]: ...

    def __getitem__(self, index: int | slice) -> AnyMoments | list[AnyMoments]:
        return list(self)[index]


def alike(keys: Iterable[Hashable]) -> list[tuple[int, ...]]:
    """Return the places of equal keys, in the order of the first of each."""
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return [tuple(equal) for equal in places.values()]


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape as a batch, without a copy where there is only one."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _one(moments: AnyMoments, place: int) -> AnyMoments:
    """Return the moments of one of the stacked layers."""
    fields: dict[str, Any] = {name: None if value is None else value[place] for name, value in vars(moments).items()}
    return type(moments)(**fields)


def _together(members: Sequence[AnyMoments]) -> AnyMoments:
    """Return the moments of layers that are alike, stacked."""
    columns = {name: [vars(one)[name] for one in members] for name in vars(members[0])}
    fields: dict[str, Any] = {name: None if many[0] is None else stack(many) for name, many in columns.items()}
    return type(members[0])(**fields)
