"""The picture of a set, and folder names that are safe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unidd_pl import pictures
from unidd_pl.distilled import DistilledSet
from unidd_pl.pictures import folder_names, picture
from unidd_pl.specs import DatasetSpec


def make_set(
    classes: tuple[str, ...] = ("zebra", "ant/eater", "猫"), channels: int = 3, size: int = 8, ipc: int = 4
) -> DistilledSet:
    """Return random images in the order a distillation makes them: one of every class a round."""
    spec = DatasetSpec("toy", classes, channels, size, (0.5,) * channels, (0.25,) * channels)
    shape = (ipc * len(classes), *spec.image_shape)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return DistilledSet(pixels, torch.arange(len(classes)).repeat(ipc), spec, {})


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height."""
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("n01440764", "sea lion", "T-shirt"), ["n01440764", "sea lion", "T-shirt"]),
        (("a/b", "a_b", "A_B", "a\\b"), ["a_b_3", "a_b", "A_B_2", "a_b_4"]),
        (("..", ".hidden", "", "trailing. "), ["class", "hidden", "class_2", "trailing"]),
        (("café", "猫", "犬", "con", "nul"), ["cafe", "_", "__2", "con_2", "nul_2"]),
        (("x" * 300, "x" * 301), ["x" * 80, "x" * 80 + "_2"]),
    ],
)
def test_folder_names(classes: tuple[str, ...], expected: list[str]) -> None:
    names = folder_names(classes)
    assert names == expected
    assert len({name.lower() for name in names}) == len(classes)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (3, 40), (3, 100)])
def test_picture_tiles_are_whole_multiples(tmp_path: Path, channels: int, size: int) -> None:
    made = make_set(channels=channels, size=size)
    picture(made, tmp_path / "new" / "p.png", per_class=3)
    canvas = torch.from_numpy(np.array(Image.open(tmp_path / "new" / "p.png"))).permute(2, 0, 1)
    factor = {8: 8, 40: 2, 100: 1}[size]
    tile = size * factor
    step = tile + pictures.GAP
    assert canvas.shape[1] == 3 * step  # no caption: every class is shown
    left = canvas.shape[2] - 3 * step
    assert (canvas[:, :, :left] < 128).any()  # names
    for row in range(3):
        for column in range(3):
            shown = canvas[:, row * step : row * step + tile, left + column * step : left + column * step + tile]
            source = made.images[made.labels == row][column].expand(3, -1, -1)
            enlarged = source.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            assert torch.equal(shown, enlarged)


def test_picture_stays_in_bounds_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_SIDE", 400)
    many = make_set(tuple(f"class {i}" for i in range(12)), ipc=8)
    picture(many, tmp_path / "p.png")
    width, height = size_of(tmp_path / "p.png")
    assert max(width, height) <= 400
    assert pictures._caption(5, 12, 4, 8) == "Shown: the first 5 of 12 classes, 4 of 8 images a class"
    assert pictures._caption(12, 12, 8, 8) == ""


def test_picture_shows_only_classes_with_images(tmp_path: Path) -> None:
    made = make_set()
    some = DistilledSet(made.images[:1], made.labels[:1] + 2, made.spec, {})
    picture(some, tmp_path / "p.png")
    assert size_of(tmp_path / "p.png")[1] == 64 + pictures.GAP


def test_picture_shortens_long_names(tmp_path: Path) -> None:
    made = make_set(("x" * 400, "y\nz"), ipc=1)  # Pillow cannot measure two lines
    picture(made, tmp_path / "p.png")
    assert size_of(tmp_path / "p.png")[0] < pictures.MAX_NAME_WIDTH + 64 + 40


@pytest.mark.parametrize(("classes", "ipc", "across"), [(3, 4, 1), (30, 1, 4), (100, 10, 3), (1000, 1, 21)])
def test_no_picture_is_a_strip(tmp_path: Path, classes: int, ipc: int, across: int) -> None:
    made = make_set(tuple(f"class {i}" for i in range(classes)), ipc=ipc)
    picture(made, tmp_path / "p.png")
    canvas = torch.from_numpy(np.array(Image.open(tmp_path / "p.png"))).permute(2, 0, 1)
    step = 64 + pictures.GAP
    rows = -(-classes // across)
    assert canvas.shape[1] == rows * step  # no caption: every class is shown
    assert canvas.shape[2] % across == 0
    assert 0.4 < canvas.shape[2] / canvas.shape[1] < 2.5
    block = canvas.shape[2] // across
    for label in (0, classes // 2, classes - 1):
        row, column = divmod(label, across)
        x, y = (column + 1) * block - ipc * step, row * step
        source = made.images[made.labels == label][0].repeat_interleave(8, 1).repeat_interleave(8, 2)
        assert torch.equal(canvas[:, y : y + 64, x : x + 64], source)
        assert (canvas[:, y : y + 64, column * block : x] < 128).any()  # its name


def test_a_folder_with_dots_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "sre2l_v1.5").mkdir()
    assert pictures.picture_beside(tmp_path / "sre2l_v1.5").name == "sre2l_v1.5.png"
    assert pictures.picture_beside(tmp_path / "run/distilled.safetensors") == tmp_path / "run/distilled.png"


def test_bad_picture_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got p.jpg, expected a name ending in \.png"):
        picture(make_set(), tmp_path / "p.jpg")
    with pytest.raises(ValueError, match="per_class=0 and min_tile=64, expected at least 1"):
        picture(make_set(), tmp_path / "p.png", per_class=0)
