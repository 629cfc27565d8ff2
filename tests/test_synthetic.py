"""The schedule of chunks, their start images and the store of the finished ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unidd_pl.data.folder import ImageFolderData
from unidd_pl.data.images import TensorImages
from unidd_pl.distilled import DistilledSet, PixelType
from unidd_pl.specs import DatasetSpec
from unidd_pl.synthetic import (
    ChunkStore,
    Position,
    Schedule,
    check_enough_images,
    clip,
    noise_start,
    real_start,
)

SPEC = DatasetSpec("toy", ("cat", "dog", "ship"), 3, 4, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture
def images() -> TensorImages:
    """Return nine images whose classes are mixed; every image is of one level, 10 times its position."""
    labels = torch.tensor([2, 0, 1, 0, 0, 2, 1, 2, 0])
    levels = (10 * torch.arange(9, dtype=torch.uint8)).view(-1, 1, 1, 1)
    return TensorImages(levels.expand(-1, *SPEC.image_shape).contiguous(), labels)


# ---- schedule ----


def test_chunks_that_do_not_divide_the_classes() -> None:
    schedule = Schedule(num_classes=7, chunk_size=3, num_rounds=2, iterations=5)
    assert schedule.chunks_per_round == 3
    assert schedule.steps_per_round == 15
    assert [list(schedule.classes(chunk)) for chunk in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_every_step_has_its_place() -> None:
    schedule = Schedule(num_classes=7, chunk_size=3, num_rounds=2, iterations=5)
    expected = [Position(r, c, i) for r in range(2) for c in range(3) for i in range(5)]
    assert [schedule.at(step) for step in range(30)] == expected
    assert schedule.at(30).round_index == 2  # one past the end


@pytest.mark.parametrize(("classes", "size", "chunks"), [(10, 200, 1), (10, 10, 1), (1000, 200, 5), (3, 1, 3)])
def test_number_of_chunks(classes: int, size: int, chunks: int) -> None:
    schedule = Schedule(classes, size, 1, 1)
    assert schedule.chunks_per_round == chunks
    assert [label for chunk in range(chunks) for label in schedule.classes(chunk)] == list(range(classes))


def test_a_place_is_told_from_one() -> None:
    assert str(Position(0, 1, 2)) == "round 1, chunk 2, iteration 3"


# ---- start images ----


def test_real_start_is_the_ith_image_of_each_class_normalised(images: TensorImages) -> None:
    for round_index, positions in enumerate([(1, 2, 0), (3, 6, 5)]):
        start = real_start(images, SPEC, round_index, range(3))
        levels = torch.tensor(positions).view(-1, 1, 1, 1) * 10 / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SPEC.mean, SPEC.std))
        torch.testing.assert_close(start, ((levels - mean) / std).expand_as(start))
        assert start.is_floating_point()
    last_chunk = real_start(images, SPEC, 1, range(2, 3))
    torch.testing.assert_close(last_chunk, real_start(images, SPEC, 1, range(3))[2:])


def test_real_start_on_a_folder(folder_data: ImageFolderData) -> None:
    start = real_start(folder_data.train, folder_data.spec, 1, range(1, 3))
    for row, label in zip(start, (1, 2), strict=True):
        second = folder_data.train.read([int((folder_data.train.labels == label).nonzero()[1])])
        torch.testing.assert_close(row, folder_data.spec.normalise(second)[0])


def test_a_class_with_too_few_images_is_named(images: TensorImages) -> None:
    message = r"class 'dog' has 2 training images, expected at least 3 \(one a round\): .*ipc"
    with pytest.raises(ValueError, match=message):
        real_start(images, SPEC, 2, range(3))
    with pytest.raises(ValueError, match=message):
        check_enough_images(images, SPEC, 3)
    check_enough_images(images, SPEC, 2)


def test_a_class_without_any_image_counts_too(images: TensorImages) -> None:
    only_first = TensorImages(images.images[:2], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class 'ship' has 0 training images, expected at least 1"):
        check_enough_images(only_first, SPEC, 1)


def test_noise_start_follows_from_seed_round_and_class_only() -> None:
    start = noise_start(SPEC, 0, range(3), seed=0)
    assert start.shape == (3, *SPEC.image_shape)
    assert torch.equal(start, noise_start(SPEC, 0, range(3), seed=0))
    assert torch.equal(start[1:], noise_start(SPEC, 0, range(1, 3), seed=0)), "chunks must not change a class's noise"
    for other in (noise_start(SPEC, 1, range(3), seed=0), noise_start(SPEC, 0, range(3), seed=1)):
        assert not any(torch.equal(a, b) for a, b in zip(start, other, strict=True))
    assert not torch.equal(start[0], start[1])


def test_noise_start_lies_between_black_and_white() -> None:
    black, white = SPEC.pixel_bounds(torch.zeros(1))
    start = noise_start(SPEC, 0, range(3), seed=0)
    assert (start >= black).all()
    assert (start <= white).all()
    assert start.std() > 0.5


def test_clip_stops_at_black_and_white_of_each_channel() -> None:
    wide = torch.stack([torch.full(SPEC.image_shape, value) for value in (-100.0, 0.0, 100.0)])
    pixels = SPEC.denormalise(clip(wide, SPEC))
    torch.testing.assert_close(pixels[0], torch.zeros(SPEC.image_shape))
    torch.testing.assert_close(pixels[2], torch.ones(SPEC.image_shape))
    assert torch.equal(clip(wide, SPEC)[1], wide[1])


# ---- store ----


def filled(folder: Path, schedule: Schedule, dtype: PixelType = "uint8") -> ChunkStore:
    """Return a store with all chunks; the level of an image tells its round and class."""
    store = ChunkStore(folder, SPEC, dtype)
    places = [(r, c) for r in range(schedule.num_rounds) for c in range(schedule.chunks_per_round)]
    for round_index, chunk_index in reversed(places):  # the order of writing must not matter
        classes = schedule.classes(chunk_index)
        pixels = torch.stack([torch.full(SPEC.image_shape, (100 * round_index + label) / 255) for label in classes])
        store.add(Position(round_index, chunk_index, 0), SPEC.normalise(pixels), classes, "this run")
    return store


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_set_is_assembled_by_round_then_class(tmp_path: Path, dtype: PixelType) -> None:
    schedule = Schedule(num_classes=3, chunk_size=2, num_rounds=2, iterations=1)
    product = filled(tmp_path, schedule, dtype).assemble(schedule, {"seed": 5}, "this run")
    assert product.labels.tolist() == [0, 1, 2, 0, 1, 2]
    levels = product.images[:, 0, 0, 0] * (1 if dtype == "uint8" else 255)
    assert levels.float().round().tolist() == [0, 1, 2, 100, 101, 102]
    assert product.manifest == {"seed": 5}
    assert product.spec == SPEC
    assert product.ipc == 2
    assert product.images.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)


def test_the_finished_chunks_alone(tmp_path: Path) -> None:
    schedule = Schedule(num_classes=3, chunk_size=2, num_rounds=2, iterations=5)
    store = filled(tmp_path, schedule)
    for step, count in ((0, 0), (4, 0), (5, 1), (10, 2), (19, 3), (20, 4)):
        assert len(list(store.finished(schedule, range(step), "this run"))) == count
    (second,) = store.finished(schedule, range(10, 19), "this run")
    assert second.labels.tolist() == [0, 1]
    assert second.images.unique().tolist() == [100, 101], "those of the second round alone"


def test_a_chunk_of_another_run_is_refused(tmp_path: Path) -> None:
    schedule = Schedule(num_classes=3, chunk_size=2, num_rounds=2, iterations=1)
    store = filled(tmp_path, schedule)
    pixels = torch.zeros(1, *SPEC.image_shape)
    store.add(Position(1, 1, 0), pixels, range(2, 3), "another run")
    with pytest.raises(ValueError, match=r"round_0001_chunk_001\.safetensors was made by another run"):
        store.assemble(schedule, {}, "this run")


def test_uint8_is_rounded_not_truncated(tmp_path: Path) -> None:
    levels = torch.tensor([100.4, 100.6, -3.0, 300.0, 254.6, 0.4])
    pixels = (levels / 255).repeat(3, 8)[:, :16].reshape(1, 3, 4, 4)
    store = ChunkStore(tmp_path, SPEC)
    store.add(Position(0, 0, 0), SPEC.normalise(pixels).requires_grad_(), range(1), "this run")
    stored = store.assemble(Schedule(1, 1, 1, 1), {}, "this run").images
    assert stored.flatten()[:6].tolist() == [100, 101, 0, 255, 255, 0]
    assert torch.equal(stored, (pixels * 255).round().clamp(0, 255).to(torch.uint8))


def test_a_chunk_made_again_replaces_the_first(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, SPEC)
    for level in (0.2, 0.8):
        store.add(Position(0, 0, 0), SPEC.normalise(torch.full((3, 3, 4, 4), level)), range(3), "this run")
    assert store.assemble(Schedule(3, 3, 1, 1), {}, "this run").images.unique().tolist() == [204]


def test_chunks_are_sets_of_their_own(tmp_path: Path) -> None:
    filled(tmp_path, Schedule(num_classes=3, chunk_size=2, num_rounds=1, iterations=1))
    files = sorted(tmp_path.iterdir())
    assert [DistilledSet.load(file).labels.tolist() for file in files] == [[0, 1], [2]]


def test_a_missing_chunk_is_named(tmp_path: Path) -> None:
    schedule = Schedule(num_classes=3, chunk_size=2, num_rounds=2, iterations=1)
    store = filled(tmp_path, schedule)
    (tmp_path / "round_0001_chunk_000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"got no file at .*round_0001_chunk_000\.safetensors"):
        store.assemble(schedule, {}, "this run")


def test_diverged_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got NaN or infinite pixels"):
        ChunkStore(tmp_path, SPEC).add(Position(0, 0, 0), torch.full((1, 3, 4, 4), torch.nan), range(1), "this run")
    assert list(tmp_path.iterdir()) == []
