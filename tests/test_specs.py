"""The spec of a data set: what it refuses, and the pixel space it defines."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from unidd_pl.specs import DatasetSpec

FIELDS: dict[str, Any] = {
    "name": "toy",
    "classes": ("cat", "dog"),
    "channels": 3,
    "image_size": 4,
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.25, 0.3),
}


@pytest.fixture
def spec() -> DatasetSpec:
    return DatasetSpec(**FIELDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("cat",)}, r"toy: got 1 class\(es\), expected at least 2"),
        ({"classes": ("cat", "dog", "cat")}, "toy: class names are not unique"),
        ({"channels": 2}, "toy: got 2 channels, expected 1 or 3"),
        ({"image_size": 0}, "toy: got image_size 0, expected at least 1"),
        ({"mean": (0.5,)}, "got 1 means and 3 standard deviations, expected 3 of each"),
        ({"std": (0.2, 0.2)}, "got 3 means and 2 standard deviations, expected 3 of each"),
        ({"channels": 1}, "got 3 means and 3 standard deviations, expected 1 of each"),
        ({"std": (0.2, 0.0, 0.3)}, r"std \(0\.2, 0\.0, 0\.3\), expected .* deviations in \(0, 1\]"),
        ({"std": (0.2, float("nan"), 0.3)}, r"expected .* deviations in \(0, 1\]"),
        ({"mean": (125.0, 122.0, 113.0)}, r"got mean \(125\.0, .* expected means in \[0, 1\]"),
    ],
)
def test_refuses_what_no_data_set_has(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetSpec(**(FIELDS | change))


def test_number_of_classes_and_shape(spec: DatasetSpec) -> None:
    assert spec.num_classes == 2
    assert spec.image_shape == (3, 4, 4)


def test_normalise_subtracts_the_mean_and_divides_by_the_std_of_each_channel(spec: DatasetSpec) -> None:
    images = torch.rand(2, 3, 4, 4)
    normalised = spec.normalise(images)
    for channel in range(3):
        expected = (images[:, channel] - spec.mean[channel]) / spec.std[channel]
        torch.testing.assert_close(normalised[:, channel], expected)


def test_bytes_and_fractions_are_the_same_pixels(spec: DatasetSpec) -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(spec.normalise(images), spec.normalise(images.float() / 255))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denormalise_undoes_normalise_in_the_given_precision(spec: DatasetSpec, dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 4, 4, dtype=dtype)
    back = spec.denormalise(spec.normalise(images))
    assert back.dtype == dtype
    torch.testing.assert_close(back, images)


def test_gradient_flows_through_normalise(spec: DatasetSpec) -> None:
    images = torch.rand(1, 3, 4, 4, requires_grad=True)
    spec.normalise(images).sum().backward()
    expected = (1 / torch.tensor(spec.std)).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(images.grad, expected)


def test_pixel_bounds_are_black_and_white(spec: DatasetSpec) -> None:
    like = torch.zeros(5, 3, 4, 4, dtype=torch.float64)
    black, white = spec.pixel_bounds(like)
    assert black.shape == white.shape == (1, 3, 1, 1)
    assert black.dtype == white.dtype == torch.float64
    torch.testing.assert_close(spec.denormalise(black), torch.zeros_like(black))
    torch.testing.assert_close(spec.denormalise(white), torch.ones_like(white))
    assert (black < white).all()


def test_survives_json(spec: DatasetSpec) -> None:
    assert DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
