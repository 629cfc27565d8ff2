"""What is kept of logits: how much is lost, at which temperature, and how large it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unidd_pl.label_codec import LabelCodec, LabelType

COUNT = 64


def some_logits(classes: int, scale: float = 5.0) -> Tensor:
    return scale * torch.randn(COUNT, classes, generator=torch.Generator().manual_seed(classes))


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits.double() / temperature).softmax(dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3), ("int8", 2e-2)])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_all_logits_give_the_probabilities_at_every_temperature(
    dtype: LabelType, tolerance: float, temperature: float, classes: int
) -> None:
    codec, logits = LabelCodec(dtype, classes), some_logits(classes)
    kept = codec.decode(codec.encode(logits))
    assert kept.dtype == torch.float32
    torch.testing.assert_close(
        probabilities(kept, temperature), probabilities(logits, temperature), rtol=0, atol=tolerance / temperature
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("classes", "top_k"), [(10, 1), (10, 3), (10, 9), (300, 5), (40000, 4)])
def test_top_k_keeps_the_largest_and_the_mass_of_the_others(dtype: LabelType, classes: int, top_k: int) -> None:
    codec, logits = LabelCodec(dtype, classes, top_k, temperature=4.0), some_logits(classes)
    parts = codec.encode(logits)
    largest = logits.topk(top_k, dim=1)
    assert torch.equal(parts["indices"].long(), largest.indices)
    kept, true = probabilities(codec.decode(parts), 4.0), probabilities(logits, 4.0)
    tolerance = {"float32": 1e-5, "float16": 5e-3, "int8": 0.03}[dtype]
    torch.testing.assert_close(
        kept.gather(1, largest.indices), true.gather(1, largest.indices), rtol=tolerance, atol=1e-5
    )
    others = torch.ones_like(kept).scatter(1, largest.indices, 0).bool()
    rest = kept[others].view(COUNT, -1)
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), rtol=1e-12, atol=0)


def test_a_row_of_equal_logits_and_one_of_extremes() -> None:
    logits = torch.tensor([[2.0, 2.0, 2.0], [1e6, 0.0, -1e6], [5e-4, 0.0, 1e-5]])
    for dtype in ("float16", "int8"):
        codec = LabelCodec(dtype, 3)  # type: ignore[arg-type]
        kept = codec.decode(codec.encode(logits))
        torch.testing.assert_close(kept.softmax(dim=1), logits.softmax(dim=1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_k": 255}])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("classes", [256, 300])
def test_the_size_of_a_label_is_that_of_its_parts(dtype: LabelType, settings: dict[str, Any], classes: int) -> None:
    codec = LabelCodec(dtype, classes, **settings)
    parts = codec.encode(some_logits(classes))
    assert sum(part.numel() * part.element_size() for part in parts.values()) == COUNT * codec.bytes_per_image
    assert {name: (part.dtype, part.shape[1:]) for name, part in parts.items()} == codec.fields


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    logits = some_logits(10)
    logits[5, 3] = bad
    with pytest.raises(ValueError, match="got NaN or infinite logits, expected finite ones: the teacher diverged"):
        LabelCodec("float16", 10).encode(logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float64", 10), "label_type: got 'float64', expected one of float32, float16, int8"),
        (("int8", 10, 10), "top_k: got 10, expected 1 to 9 of the 10 classes"),
        (("int8", 10, 0), "top_k: got 0, expected 1 to 9"),
        (("int8", 10, 1, 0.0), "temperature: got 0.0, expected > 0"),
    ],
)
def test_settings_out_of_range(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelCodec(*arguments)


def test_logits_of_other_classes() -> None:
    with pytest.raises(ValueError, match=r"got logits of shape \(64, 9\), expected \(n, 10\)"):
        LabelCodec("int8", 10).encode(some_logits(9))
