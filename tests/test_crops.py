"""Where images are cropped: random boxes and the cut at the centre."""

from __future__ import annotations

import numpy as np
import pytest

from unidd_pl.data.crops import RandomCrops, centre_cuts, uniforms

COUNT = 4000


def sizes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(20, 600, COUNT), draw.integers(20, 600, COUNT)


class TestRandomCrops:
    def test_boxes_lie_inside_and_have_the_area_asked_for(self) -> None:
        widths, heights = sizes()
        top, left, height, width = RandomCrops(1, (0.25, 0.5)).boxes(np.arange(COUNT), widths, heights, 0).T
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + height <= heights).all()
        assert (left + width <= widths).all()
        square = (widths / heights > 0.8) & (widths / heights < 1.25)
        share = (width * height / (widths * heights))[square]
        assert share.min() > 0.2
        assert share.max() < 0.55
        assert share.mean() == pytest.approx(0.375, abs=0.01)
        ratio = (width / height)[square & (height > 30)]
        assert ratio.min() > 0.7
        assert ratio.max() < 1.45

    def test_is_a_function_of_seed_epoch_and_position_alone(self) -> None:
        widths, heights = np.full(COUNT, 500), np.full(COUNT, 375)
        crops = RandomCrops(1)
        whole = crops.boxes(np.arange(COUNT), widths, heights, 3)
        some = np.array([7, 3999, 12])
        assert np.array_equal(crops.boxes(some, widths[some], heights[some], 3), whole[some])
        for other in (
            crops.boxes(np.arange(COUNT), widths, heights, 4),
            RandomCrops(2).boxes(np.arange(COUNT), widths, heights, 3),
        ):
            assert (other == whole).all(axis=1).mean() < 0.01

    @pytest.mark.parametrize(
        ("width", "height", "expected"), [(600, 20, (0, 286, 20, 27)), (20, 600, (286, 0, 27, 20))]
    )
    def test_an_image_that_no_draw_fits_is_cropped_at_its_centre(
        self, width: int, height: int, expected: tuple[int, ...]
    ) -> None:
        """As torchvision's RandomResizedCrop does after ten draws."""
        boxes = RandomCrops(0, (1.0, 1.0)).boxes(np.arange(3), np.full(3, width), np.full(3, height), 0)
        assert boxes.tolist() == [list(expected)] * 3

    @pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5)])
    def test_refuses_a_scale_out_of_range(self, scale: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="expected 0 < smallest ≤ largest ≤ 1"):
            RandomCrops(0, scale)

    def test_refuses_a_ratio_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="crop ratio"):
            RandomCrops(0, ratio=(2.0, 1.0))


def test_uniforms_are_uniform_and_independent_of_each_other() -> None:
    draws = np.stack([uniforms(123, np.arange(100_000), draw) for draw in range(2)])
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=1), 0.5, atol=0.005)
    np.testing.assert_allclose(draws.var(axis=1), 1 / 12, atol=0.002)
    assert abs(np.corrcoef(draws)[0, 1]) < 0.01
    assert abs(np.corrcoef(draws[0, 1:], draws[0, :-1])[0, 1]) < 0.01


@pytest.mark.parametrize(
    ("width", "height", "size"), [(500, 375, (256, 341)), (375, 500, (341, 256)), (9, 9, (256, 256))]
)
def test_centre_cut_resizes_the_shorter_side(width: int, height: int, size: tuple[int, int]) -> None:
    (cut,) = centre_cuts(np.array([width]), np.array([height]), 224, 256).tolist()
    offsets = [(side - 224) // 2 for side in size]
    assert cut == [0, 0, height, width, *size, *offsets]
