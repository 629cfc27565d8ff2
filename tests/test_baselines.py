"""Real images beside a distilled set: selections against brute force, their cache, and the whole data set."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unidd_pl.baselines import check_in_memory, selected_images, whole_set
from unidd_pl.data import ImageFolderData
from unidd_pl.data.holdout import HoldOutData
from unidd_pl.selection import herding, k_centre, teacher_features
from unidd_pl.teachers import Teacher


@pytest.fixture
def features() -> Tensor:
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def radius(features: Tensor, chosen: Tensor) -> float:
    """Largest distance of any image to the nearest chosen one."""
    return float(torch.cdist(features, features[chosen]).min(dim=1).values.max())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_k_centre_is_within_twice_the_smallest_radius(features: Tensor, count: int) -> None:
    best = min(radius(features, torch.tensor(some)) for some in itertools.combinations(range(12), count))
    assert radius(features, k_centre(features, count)) <= 2 * best


def test_k_centre_takes_the_farthest_in_turn() -> None:
    line = torch.tensor([[0.0], [1.0], [4.0], [5.0], [10.0]], dtype=torch.float64)  # mean 4
    assert k_centre(line, 4).tolist() == [2, 4, 0, 1]  # 1 and 5 are as far from the chosen: the first


def test_herding_takes_what_keeps_the_mean() -> None:
    line = torch.tensor([[0.0], [1.0], [4.0], [5.0], [10.0]], dtype=torch.float64)  # mean 4
    # 4; then of (4 + x)/2 the nearest to 4 is x = 5; then of (9 + x)/3 it is x = 1 (3.33) before 0 (3) and 10 (6.33).
    assert herding(line, 3).tolist() == [2, 3, 1]


def test_herding_holds_the_mean_better_than_most_choices(features: Tensor) -> None:
    errors = [
        float((features.mean(dim=0) - features[list(some)].mean(dim=0)).norm())
        for some in itertools.combinations(range(12), 4)
    ]
    chosen = herding(features, 4)
    ours = float((features.mean(dim=0) - features[chosen].mean(dim=0)).norm())
    assert sum(error < ours for error in errors) < len(errors) / 5


@pytest.mark.parametrize("select", [k_centre, herding])
def test_a_longer_selection_begins_with_the_shorter_and_has_no_image_twice(select: type, features: Tensor) -> None:
    twice = torch.cat([features, features])  # equal images stand twice, and each is taken once
    longest = select(twice, 24)
    assert sorted(longest.tolist()) == list(range(24))
    assert torch.equal(select(twice, 7), longest[:7])
    with pytest.raises(ValueError, match="got 25 images to choose of 24"):
        select(twice, 25)


def test_the_features_are_what_the_classifier_is_given(tiny_teacher: Teacher, folder_data: ImageFolderData) -> None:
    positions = torch.tensor([3, 17])
    features = teacher_features(tiny_teacher, folder_data.train, positions)
    images = folder_data.spec.normalise(folder_data.train.read(positions.tolist()))
    classifier = tiny_teacher.network.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    torch.testing.assert_close(classifier(features.float()), tiny_teacher.network(images))


@pytest.mark.parametrize("kind", ["k-centre", "herding"])
def test_selected_images_are_balanced_and_kept(
    kind: str, tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = selected_images(kind, tiny_teacher, folder_data, 3, tmp_path)  # type: ignore[arg-type]
    assert torch.bincount(first.labels).tolist() == [3, 3, 3]
    for label in range(3):
        positions = folder_data.train.positions_of(label)
        select = {"k-centre": k_centre, "herding": herding}[kind]
        expected = positions[select(teacher_features(tiny_teacher, folder_data.train, positions), 3)]
        assert torch.equal(first.pixels[first.labels == label], folder_data.train.read(expected.tolist()))
    monkeypatch.setattr("unidd_pl.baselines.teacher_features", None)  # from here on only the file can help
    again = selected_images(kind, tiny_teacher, folder_data, 3, tmp_path)  # type: ignore[arg-type]
    assert torch.equal(again.pixels, first.pixels)
    held = HoldOutData(folder_data, 0.2)
    with pytest.raises(TypeError):  # other training images: not the file's
        selected_images(kind, tiny_teacher, held, 3, tmp_path)  # type: ignore[arg-type]


def test_a_damaged_selection_is_made_anew(tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path) -> None:
    first = selected_images("herding", tiny_teacher, folder_data, 2, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"not a selection")
    again = selected_images("herding", tiny_teacher, folder_data, 2, tmp_path)
    assert torch.equal(again.pixels, first.pixels)
    assert file.stat().st_size > 50


def test_a_teacher_without_a_linear_layer_is_refused(tiny_teacher: Teacher, folder_data: ImageFolderData) -> None:
    teacher = Teacher(nn.Conv2d(3, 3, 12), "conv", folder_data.spec, None, Path("none"))
    with pytest.raises(ValueError, match="without a linear layer"):
        teacher_features(teacher, folder_data.train, torch.tensor([0]))


def test_the_whole_data_set(folder_data: ImageFolderData, image_folder: Path) -> None:
    check_in_memory(folder_data)
    whole = whole_set(folder_data)
    assert (len(whole.pixels), whole.ipc) == (30, 10)
    streamed = ImageFolderData(str(image_folder), in_memory_gib=0)
    with pytest.raises(ValueError, match=r"30 images that are not held in memory.*in_memory_gib"):
        check_in_memory(streamed)
