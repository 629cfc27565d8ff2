"""A hold-out of the training images: what is kept, what is held out, and that nothing else changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from unidd_pl.data import ImageFolderData
from unidd_pl.data.holdout import HoldOutData, SomeImages


def test_the_last_images_of_each_class_are_held_out(folder_data: ImageFolderData) -> None:
    data = HoldOutData(folder_data, 0.3)
    assert len(data.train) == 3 * 7
    assert len(data.test) == 3 * 3
    for label in range(3):
        whole = folder_data.train.positions_of(label).tolist()
        kept = folder_data.train.read(whole[:7])
        assert torch.equal(data.train.read(data.train.positions_of(label).tolist()), kept)
        held = folder_data.train.read(whole[7:])
        assert torch.equal(data.test.read(data.test.positions_of(label).tolist()), held)


def test_no_real_test_image_is_read(image_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(image_folder, tmp_path / "images")
    data = ImageFolderData(str(root))
    _ = data.train
    for file in (root / "test").glob("*/*.png"):
        file.unlink()
    assert len(HoldOutData(data, 0.1).test) == 3


def test_classes_and_normalisation_stay_the_whole_sets(folder_data: ImageFolderData) -> None:
    data = HoldOutData(folder_data, 0.2)
    assert data.spec == folder_data.spec
    assert data.fingerprint != folder_data.fingerprint
    assert data.fingerprint != HoldOutData(folder_data, 0.3).fingerprint
    assert data.fingerprint == HoldOutData(folder_data, 0.2).fingerprint


def test_at_least_one_image_is_held_out(folder_data: ImageFolderData) -> None:
    assert len(HoldOutData(folder_data, 0.001).test) == 3


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_share_out_of_range(folder_data: ImageFolderData, share: float) -> None:
    with pytest.raises(ValueError, match=rf"holdout: got {share}, expected a share between 0 and 1"):
        HoldOutData(folder_data, share)


def test_something_has_to_be_kept(folder_data: ImageFolderData) -> None:
    with pytest.raises(ValueError, match=r"'blue' has 10 training images, expected enough to hold out 10"):
        HoldOutData(folder_data, 0.99)


def test_some_images_are_read_in_their_own_order(folder_data: ImageFolderData) -> None:
    some = SomeImages(folder_data.train, torch.tensor([20, 3, 11]))
    images, labels = some[[2, 0]]
    assert torch.equal(images, folder_data.train.read([11, 20]))
    assert labels.tolist() == folder_data.train.labels[[11, 20]].tolist()
    assert some.fingerprint() != SomeImages(folder_data.train, torch.tensor([3, 20, 11])).fingerprint()
