"""Augmentations against loops, torchvision's own draws and finite differences."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from unidd_pl.augmentation import (
    crop_and_resize,
    draw_crop_boxes,
    draw_shared_box,
    random_flip,
    random_pad_crop,
    random_resized_crop,
    random_roll,
)
from unidd_pl.mixing import cutmix, shuffle_patches

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": random_resized_crop,
    "shared_crop": lambda images, generator: random_resized_crop(images, generator, shared=True),
    "flip": random_flip,
    "shared_flip": lambda images, generator: random_flip(images, generator, shared=True),
    "roll": random_roll,
    "pad_crop": random_pad_crop,
    "cutmix": cutmix,
    "cutmix_half": lambda images, generator: cutmix(images, generator, alpha=0.5),
}
every_augmentation = pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS.keys())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(99), dtype=dtype)


def slice_and_resize(images: Tensor, boxes: list[list[int]]) -> Tensor:
    crops = [
        image[None, :, top : top + height, left : left + width]
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]
    size = images.shape[-2:]
    return torch.cat([F.interpolate(crop, size=size, mode="bilinear", align_corners=False) for crop in crops])


# ---- every augmentation


@every_augmentation
def test_is_a_function_of_images_and_generator_state(augment: Augmentation) -> None:
    images = make_images(6, 3, 12, 10)
    original = images.clone()
    torch.manual_seed(1)
    first = augment(images, seeded(5))
    torch.manual_seed(2)  # the global state must not matter, nor be moved
    state = torch.get_rng_state()
    assert torch.equal(augment(images, seeded(5)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, original)
    assert any(not torch.equal(augment(images, seeded(seed)), first) for seed in range(6, 14))


@every_augmentation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeps_shape_and_dtype(augment: Augmentation, dtype: torch.dtype) -> None:
    images = make_images(4, 1, 9, 14, dtype=torch.float32).to(dtype)
    augmented = augment(images, seeded())
    assert augmented.shape == images.shape
    assert augmented.dtype == dtype


@every_augmentation
def test_gradient_is_the_numerical_one(augment: Augmentation) -> None:
    images = make_images(3, 2, 5, 6).requires_grad_()
    for seed in range(2):
        assert torch.autograd.gradcheck(lambda x, seed=seed: augment(x, seeded(seed)), (images,))


@pytest.mark.parametrize("name", ["shared_crop", "shared_flip", "roll"])
def test_shared_draws_do_not_depend_on_the_number_of_images(name: str) -> None:
    images = make_images(5, 3, 8, 8)
    for seed in range(4):
        whole = AUGMENTATIONS[name](images, seeded(seed))
        rows = [AUGMENTATIONS[name](part, seeded(seed)) for part in (images[:2], images[2:])]
        torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=0)


# ---- crop


@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_crop_of_each_image_equals_slice_and_interpolate(size: tuple[int, int]) -> None:
    images = make_images(40, 3, *size)
    boxes = draw_crop_boxes(40, *size, seeded(3)).tolist()
    cropped = random_resized_crop(images, seeded(3))
    torch.testing.assert_close(cropped, slice_and_resize(images, boxes), rtol=0, atol=1e-12)


def test_shared_crop_equals_slice_and_interpolate() -> None:
    images = make_images(5, 3, 16, 20)
    for seed in range(5):
        boxes = draw_crop_boxes(1, 16, 20, seeded(seed)).tolist()
        cropped = random_resized_crop(images, seeded(seed), shared=True)
        torch.testing.assert_close(cropped, slice_and_resize(images, boxes * 5), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "scale"), [((32, 32), (0.08, 1.0)), ((20, 90), (0.5, 1.0)), ((90, 20), (0.9, 1.0)), ((1, 1), (0.01, 0.02))]
)
def test_the_shared_box_is_the_one_that_would_be_drawn_for_one_image(
    size: tuple[int, int], scale: tuple[float, float]
) -> None:
    for seed in range(300):
        ours, theirs = seeded(seed), seeded(seed)
        box = draw_shared_box(*size, ours, scale=scale)
        assert [list(box)] == draw_crop_boxes(1, *size, theirs, scale=scale).tolist()
        assert torch.equal(ours.get_state(), theirs.get_state())


def test_crop_handles_extreme_boxes() -> None:
    boxes = torch.tensor([[0, 0, 7, 9], [6, 8, 1, 1], [0, 0, 1, 9], [0, 8, 7, 1], [5, 7, 2, 2]])
    images = make_images(5, 2, 7, 9)
    expected = slice_and_resize(images, boxes.tolist())
    torch.testing.assert_close(crop_and_resize(images, boxes), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(crop_and_resize(images, boxes)[0], images[0], rtol=0, atol=1e-12)
    one_pixel = make_images(1, 3, 1, 1)
    assert torch.equal(crop_and_resize(one_pixel, torch.tensor([[0, 0, 1, 1]])), one_pixel)


def test_crop_never_sees_pixels_outside_its_box() -> None:
    images = torch.full((1, 1, 8, 8), 1e6, dtype=torch.float64)
    images[:, :, 2:5, 3:7] = 1.0
    cropped = crop_and_resize(images, torch.tensor([[2, 3, 3, 4]]))
    torch.testing.assert_close(cropped, torch.ones_like(images), rtol=0, atol=1e-6)


def test_crop_in_half_precision_is_the_rounded_float32_crop() -> None:
    images = make_images(8, 3, 32, 32, dtype=torch.float32).bfloat16()
    expected = random_resized_crop(images.float(), seeded()).bfloat16()
    assert torch.equal(random_resized_crop(images, seeded()), expected)


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((64, 64), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((48, 96), (0.3, 0.9), (0.5, 2.0)),
        ((40, 120), (0.9, 1.0), (3 / 4, 4 / 3)),  # nothing ever fits: the central fallback
        ((120, 40), (0.9, 1.0), (3 / 4, 4 / 3)),
        ((50, 60), (0.995, 1.0), (3 / 4, 4 / 3)),  # most draws do not fit
    ],
)
def test_boxes_have_the_distribution_of_torchvision(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    count = 2500
    image = torch.empty(1, *size)
    torch.manual_seed(0)
    random.seed(0)
    drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
    theirs = torch.tensor(drawn, dtype=torch.float64)
    ours = draw_crop_boxes(count, *size, seeded(), scale=scale, ratio=ratio).double()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()

    def summaries(boxes: Tensor) -> dict[str, Tensor]:
        top, left, height, width = boxes.unbind(1)
        area = height * width / math.prod(size)
        return {"top": top, "left": left, "area": area, "log_ratio": (width / height).log()}

    quantiles = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for name, theirs_values in summaries(theirs).items():
        ours_values = summaries(ours)[name]
        # 5 standard errors for the means; coarse for the quantiles, whose density is unknown.
        error = 5 * theirs_values.std().item() * math.sqrt(2 / count)
        assert ours_values.mean().item() == pytest.approx(theirs_values.mean().item(), abs=error + 1e-12), name
        spread = max(theirs_values.std().item(), 1e-12)
        grain = 1.0 if name in ("top", "left") else 0.0  # positions are whole pixels
        difference = (ours_values.quantile(quantiles) - theirs_values.quantile(quantiles)).abs().max().item()
        assert difference <= 0.15 * spread + grain, name


def test_central_fallback_is_that_of_torchvision() -> None:
    for height, width in ((41, 120), (120, 41)):
        image = torch.empty(1, height, width)
        theirs = RandomResizedCrop.get_params(image, [0.99, 1.0], [0.75, 4 / 3])
        boxes = draw_crop_boxes(3, height, width, seeded(), scale=(0.99, 1.0))
        assert boxes.tolist() == [list(theirs)] * 3
    # Between the bounds the fallback is the whole image.
    whole = draw_crop_boxes(1, 30, 40, seeded(), scale=(1.0, 1.0), ratio=(0.01, 100.0)).tolist()
    assert draw_crop_boxes(1, 1, 1, seeded(), scale=(0.01, 0.02)).tolist() == [[0, 0, 1, 1]]
    assert whole == [[0, 0, 30, 40]]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.5), (math.nan, 1.0)])
def test_crop_refuses_bad_scale(scale: tuple[float, float], shared: bool) -> None:
    with pytest.raises(ValueError, match=r"got scale \(.*\), expected 0 < smallest <= largest <= 1"):
        random_resized_crop(make_images(1, 1, 4, 4), seeded(), scale=scale, shared=shared)


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_crop_refuses_bad_ratio(ratio: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"got ratio \(.*\), expected 0 < smallest <= largest"):
        random_resized_crop(make_images(1, 1, 4, 4), seeded(), ratio=ratio)


# ---- flip and roll


def test_flip_flips_about_half_of_the_images() -> None:
    images = make_images(2000, 1, 2, 3)
    flipped = random_flip(images, seeded())
    is_flipped = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    is_kept = (flipped == images).all(dim=(1, 2, 3))
    assert (is_flipped ^ is_kept).all()
    assert 900 < is_flipped.sum() < 1100


def test_shared_flip_flips_all_or_none_half_of_the_time() -> None:
    images = make_images(3, 1, 2, 3)
    generator = seeded()
    flips = 0
    for _ in range(200):
        result = random_flip(images, generator, shared=True)
        assert torch.equal(result, images) or torch.equal(result, images.flip(-1))
        flips += int(torch.equal(result, images.flip(-1)))
    assert 65 < flips < 135


def test_roll_is_uniform_over_every_pair_of_shifts() -> None:
    images = torch.arange(36.0).reshape(1, 1, 6, 6)
    generator = seeded()
    counts = torch.zeros(3, 3)
    for _ in range(900):
        rolled = random_roll(images, generator, max_shift=2)
        down, right = divmod(int((rolled == 0).flatten().int().argmax()), 6)
        wrapped = [[images[0, 0, (row - down) % 6, (column - right) % 6] for column in range(6)] for row in range(6)]
        if counts[down, right] == 0:
            assert torch.equal(rolled[0, 0], torch.tensor(wrapped))
        counts[down, right] += 1
    assert (counts - 100).abs().max() < 50
    assert torch.equal(random_roll(images, generator, max_shift=0), images)


def test_roll_refuses_a_negative_shift() -> None:
    with pytest.raises(ValueError, match="got max_shift -1, expected at least 0"):
        random_roll(make_images(1, 1, 4, 4), seeded(), max_shift=-1)


# ---- pad and crop


def test_pad_crop_is_a_slice_of_the_padded_image_at_a_uniform_place() -> None:
    padding = 2
    images = make_images(2500, 2, 4, 5)
    cropped = random_pad_crop(images, seeded(), padding=padding)
    padded = F.pad(images, (padding,) * 4)
    counts = torch.zeros(5, 5)
    found = torch.zeros(len(images), dtype=torch.int64)
    for top in range(5):
        for left in range(5):
            window = padded[:, :, top : top + 4, left : left + 5]
            matches = (window == cropped).all(dim=(1, 2, 3))
            counts[top, left] = matches.sum()
            found += matches
    assert (found == 1).all()
    assert (counts - 100).abs().max() < 50


def test_pad_crop_equals_a_loop_over_images() -> None:
    images = make_images(7, 3, 8, 6)
    corners = torch.randint(9, (2, 7, 1), generator=seeded(4))[:, :, 0].t().tolist()
    padded = F.pad(images, (4, 4, 4, 4))
    expected = [image[:, top : top + 8, left : left + 6] for image, (top, left) in zip(padded, corners, strict=True)]
    assert torch.equal(random_pad_crop(images, seeded(4)), torch.stack(expected))
    assert torch.equal(random_pad_crop(images, seeded(4), padding=0), images)


def test_pad_crop_refuses_negative_padding() -> None:
    with pytest.raises(ValueError, match="got padding -2, expected at least 0"):
        random_pad_crop(make_images(1, 1, 4, 4), seeded(), padding=-2)


# ---- CutMix


def labelled_images(count: int, height: int, width: int) -> Tensor:
    """Every pixel of image i is i, so that a mixed pixel shows where it came from."""
    return torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1).expand(count, 1, height, width)


def test_cutmix_pastes_one_box_from_one_permutation() -> None:
    images = labelled_images(16, 12, 20)
    for seed in range(20):
        mixed = cutmix(images, seeded(seed))
        pasted = (mixed != images).any(dim=0)[0]
        rows, columns = pasted.any(dim=1).nonzero().flatten(), pasted.any(dim=0).nonzero().flatten()
        if len(rows) == 0:
            continue
        box = mixed[:, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].flatten(1)
        assert (box == box[:, :1]).all()
        assert torch.equal(box[:, 0].sort().values, images[:, 0, 0, 0])
        assert pasted.sum() == box.shape[1]


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_cutmix_box_has_the_mean_area_of_the_beta_distribution(alpha: float) -> None:
    size, count = 32, 1500
    # Two images: a permutation that swaps them shows the box, the other half of the draws shows nothing.
    images = labelled_images(2, size, size)
    generator = seeded()
    areas = torch.tensor([(cutmix(images, generator, alpha=alpha)[0] != 0).double().mean() for _ in range(count)])

    # The same by the paper's recipe, with Python's draws; half of the permutations of two are the identity.
    draw = random.Random(0)
    expected = []
    for _ in range(4 * count):
        half = int(size * math.sqrt(1 - draw.betavariate(alpha, alpha))) // 2
        middles = [draw.randrange(size), draw.randrange(size)]
        sides = [min(middle + half, size) - max(middle - half, 0) for middle in middles]
        expected.append(math.prod(sides) / size**2 * draw.randrange(2))
    theirs = torch.tensor(expected, dtype=torch.float64)
    error = 5 * theirs.std().item() * math.sqrt(1.25 / count)
    assert areas.mean().item() == pytest.approx(theirs.mean().item(), abs=error)
    assert areas.std().item() == pytest.approx(theirs.std().item(), rel=0.15)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_cutmix_refuses_bad_alpha(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"got alpha .*, expected a positive number"):
        cutmix(make_images(2, 1, 4, 4), seeded(), alpha=alpha)


@pytest.mark.parametrize(("size", "grid"), [(8, 2), (9, 2), (12, 3), (6, 1)])
def test_patches_are_shuffled_as_whole_rows_and_columns(size: int, grid: int) -> None:
    images = torch.arange(size * size, dtype=torch.float64).view(1, 1, size, size).expand(30, 2, -1, -1)
    step, arrangements = size // grid, set()
    for image in shuffle_patches(images, seeded(), grid=grid):
        assert torch.equal(image[0], image[1])
        rows, columns = (image[0] // size)[:, 0].long(), (image[0] % size)[0].long()
        assert torch.equal(image[0], (rows[:, None] * size + columns[None, :]).double())
        for order in (rows.tolist(), columns.tolist()):
            assert sorted(order) == list(range(size))
            breaks = [i for i in range(1, size) if order[i] != order[i - 1] + 1]
            assert len(breaks) <= grid - 1
            assert all(order[i] % step == 0 for i in breaks)
        arrangements.add((tuple(rows.tolist()), tuple(columns.tolist())))
    assert len(arrangements) == 1 if grid == 1 else len(arrangements) > 3


def test_gradient_of_shuffled_patches() -> None:
    images = make_images(2, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: shuffle_patches(x, seeded()), (images,))
