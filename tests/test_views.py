"""Views: a pure function of (seed, epoch, image), with the distribution of a batch's augmentation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unidd_pl.mixing import cutmix, draw_cutmix_boxes, draw_patch_orders, reorder_patches
from unidd_pl.specs import DatasetSpec
from unidd_pl.views import ViewRecipe, Views

SIZE, COUNT = 12, 10
SPEC = DatasetSpec("colours", ("a", "b", "c"), 3, SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
EVERYTHING = ViewRecipe(2, (0.08, 1.0), True, 1.0)
NOTHING = ViewRecipe(1, None, False, 0.0)
RECIPES = [
    EVERYTHING,
    NOTHING,
    replace(EVERYTHING, patch_shuffle=1),
    replace(NOTHING, cutmix_alpha=0.5),
    replace(NOTHING, flip=True),
]


@pytest.fixture
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (COUNT, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def views(recipe: ViewRecipe = EVERYTHING, **changes: Any) -> Views:
    return replace(Views(recipe, SPEC, COUNT, 3, 0), **changes)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("batch", [1, 3, 4, COUNT])
def test_a_view_depends_on_no_batch(recipe: ViewRecipe, batch: int, pixels: Tensor) -> None:
    whole = views(recipe).images(pixels, range(COUNT), 1)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(batch))
    for chosen in order.split(batch):
        torch.testing.assert_close(views(recipe).images(pixels, chosen, 1), whole[chosen], rtol=0, atol=1e-5)


def test_a_view_is_the_written_out_one(pixels: Tensor) -> None:
    drawn = views().draws(2)
    assert drawn.crops is not None
    assert drawn.flips is not None
    assert drawn.partners is not None
    assert drawn.boxes is not None
    assert drawn.patches is not None

    def alone(index: int) -> Tensor:
        image = (pixels[index].float() / 255 - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(SPEC.std)[
            :, None, None
        ]
        image = reorder_patches(image[None], drawn.patches[index][None])[0]  # type: ignore[index]
        top, left, height, width = drawn.crops[index].tolist()  # type: ignore[index]
        crop = image[:, top : top + height, left : left + width]
        image = F.interpolate(crop[None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        return image.flip(-1) if drawn.flips[index] else image  # type: ignore[index]

    seen = views().images(pixels, range(COUNT), 2)
    for index in range(COUNT):
        expected = alone(index)
        top, left, bottom, right = drawn.boxes[index].tolist()
        expected[:, top:bottom, left:right] = alone(int(drawn.partners[index]))[:, top:bottom, left:right]
        torch.testing.assert_close(seen[index], expected, rtol=0, atol=1e-4)
    assert sorted(drawn.partners.tolist()) == list(range(COUNT))


def test_nothing_done_is_the_image(pixels: Tensor) -> None:
    assert torch.equal(views(NOTHING).images(pixels, [3, 1], 0), SPEC.normalise(pixels[[3, 1]]))


def test_epochs_and_seeds_differ(pixels: Tensor) -> None:
    first = views().images(pixels, range(COUNT), 0)
    assert torch.equal(views().images(pixels, range(COUNT), 0), first)
    assert not torch.equal(views().images(pixels, range(COUNT), 1), first)
    assert not torch.equal(views(seed=1).images(pixels, range(COUNT), 0), first)
    assert views().digest() == views(epochs=9).digest() != views(seed=1).digest()


def test_pixels_in_uint8_and_float_are_seen_alike(pixels: Tensor) -> None:
    torch.testing.assert_close(views().images(pixels.float() / 255, [0, 5], 1), views().images(pixels, [0, 5], 1))


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_boxes_have_the_distribution_of_cutmix_on_batches(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = draw_cutmix_boxes(20000, 32, 24, generator, alpha=alpha).double()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (32 * 24)
    images = torch.stack([torch.zeros(1, 32, 24), torch.ones(1, 32, 24)])
    shared = torch.tensor(
        [
            # Of two images, one pasted onto the other: the box shows where the order is not the identity.
            (cutmix(images, generator, alpha=alpha)[0] != 0).double().mean()
            for _ in range(4000)
        ]
    )
    assert float(areas.mean()) / 2 == pytest.approx(float(shared.mean()), abs=0.02)
    assert float((areas > 0.5).double().mean()) / 2 == pytest.approx(float((shared > 0.5).double().mean()), abs=0.02)
    assert int(boxes.min()) >= 0
    assert int(boxes[:, 2].max()) <= 32
    assert int(boxes[:, 3].max()) <= 24


def test_orders_of_patches_are_permutations() -> None:
    orders = draw_patch_orders(500, torch.Generator().manual_seed(0), grid=3)
    assert torch.equal(orders.sort(dim=2).values, torch.arange(3).expand(500, 2, 3))
    assert len({tuple(one) for one in orders[:, 0].tolist()}) == 6


def test_a_training_goes_through_all_views_in_an_order_of_its_own() -> None:
    many = views(epochs=20)
    orders = [[many.epoch_at(epoch, seed) for epoch in range(60)] for seed in (0, 1)]
    for order in orders:
        passes = [order[:20], order[20:40], order[40:]]
        assert all(sorted(one) == list(range(20)) for one in passes)
        assert passes[0] != passes[1]
    assert orders[0] != orders[1]


def test_a_recipe_survives_json() -> None:
    assert all(ViewRecipe.from_dict(recipe.to_dict()) == recipe for recipe in RECIPES)


def test_what_does_not_fit_is_refused(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"got images of shape \(4, 3, 12, 12\), expected \(10, 3, 12, 12\)"):
        views().images(pixels[:4], [0], 0)
    with pytest.raises(ValueError, match="got epoch 3, expected 0 to 2"):
        views().draws(3)
    with pytest.raises(ValueError, match="got 10 images and 0 epochs"):
        views(epochs=0)
