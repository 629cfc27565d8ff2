"""The data modules: class folders, torchvision's sets, the embedded digits."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from unidd_pl.data import DigitsData, ImageFiles, ImageFolderData, TensorImages, TorchvisionData


@pytest.fixture
def copy(image_folder: Path, tmp_path: Path) -> Path:
    """A private copy of `image_folder`, which a test may change."""
    return Path(shutil.copytree(image_folder, tmp_path / "copy"))


def change_all(root: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            changed = change(image)
        changed.save(path)


class TestImageFolder:
    def test_classes_splits_and_form_come_from_the_folder(self, folder_data: ImageFolderData) -> None:
        spec = folder_data.spec
        assert spec.name == "colours"
        assert spec.classes == ("blue", "green", "red")
        assert spec.image_shape == (3, 12, 12)
        assert folder_data.train.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
        assert folder_data.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert folder_data.has_test

    def test_mean_and_std_are_those_of_the_training_pixels(self, folder_data: ImageFolderData) -> None:
        pixels = folder_data.train.read(range(30)).numpy() / 255
        np.testing.assert_allclose(folder_data.spec.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(folder_data.spec.std, pixels.std(axis=(0, 2, 3)), rtol=1e-10)
        normalised = folder_data.spec.normalise(folder_data.train.read(range(30)))
        torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)

    def test_mean_and_std_over_several_batches(
        self, folder_data: ImageFolderData, image_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("unidd_pl.data.module._NORMALISATION_BATCH", 7)
        spec = ImageFolderData(str(image_folder)).spec
        np.testing.assert_allclose(spec.mean, folder_data.spec.mean, rtol=1e-12)
        np.testing.assert_allclose(spec.std, folder_data.spec.std, rtol=1e-10)

    def test_given_mean_and_std_are_taken(self, image_folder: Path) -> None:
        spec = ImageFolderData(str(image_folder), mean=[0.1, 0.2, 0.3], std=[1, 1, 1], name="other").spec
        assert (spec.name, spec.mean, spec.std) == ("other", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))

    def test_constant_channel_has_a_finite_scale(self, copy: Path) -> None:
        change_all(copy, lambda image: Image.new("RGB", image.size, (0, 255, 7)))
        spec = ImageFolderData(str(copy)).spec
        assert spec.std == pytest.approx((1 / 255,) * 3)
        assert spec.normalise(torch.ones(1, 3, 12, 12)).isfinite().all()

    def test_large_split_stays_in_its_files(self, image_folder: Path, folder_data: ImageFolderData) -> None:
        data = ImageFolderData(str(image_folder), in_memory_gib=0, workers=3)
        assert isinstance(data.train, ImageFiles)
        assert isinstance(folder_data.train, TensorImages)
        assert torch.equal(data.train.read(range(30)), folder_data.train.images)
        assert data.spec == folder_data.spec
        assert data.workers_for(data.train) == 3
        assert folder_data.workers_for(folder_data.train) == 0

    def test_gray_files_make_one_channel(self, copy: Path) -> None:
        change_all(copy, lambda image: image.convert("L"))
        data = ImageFolderData(str(copy))
        assert data.spec.image_shape == (1, 12, 12)
        assert len(data.spec.mean) == 1

    def test_one_coloured_file_makes_three_channels(self, copy: Path) -> None:
        coloured = copy / "train" / "green" / "03.png"
        kept = coloured.read_bytes()
        change_all(copy, lambda image: image.convert("L"))
        coloured.write_bytes(kept)
        data = ImageFolderData(str(copy))
        assert data.spec.channels == 3
        grey, colour = data.train.read([0, 13])
        assert torch.equal(grey[0], grey[2])
        assert not torch.equal(colour[0], colour[2])

    def test_files_that_are_no_images_are_left_out(self, copy: Path) -> None:
        (copy / "train" / "red" / "notes.txt").write_text("reddish")
        assert len(ImageFolderData(str(copy)).train) == 30

    def test_class_folders_may_be_links(self, image_folder: Path, folder_data: ImageFolderData, tmp_path: Path) -> None:
        """So is a subset of a large data set made without copying it."""
        for split in ("train", "test"):
            (tmp_path / split).mkdir()
            for folder in (image_folder / split).iterdir():
                (tmp_path / split / folder.name).symlink_to(folder)
        data = ImageFolderData(str(tmp_path))
        assert data.fingerprint == folder_data.fingerprint
        assert len(data.test) == 12

    def test_val_stands_for_test(self, copy: Path) -> None:
        (copy / "test").rename(copy / "val")
        data = ImageFolderData(str(copy))
        assert data.has_test
        assert len(data.test) == 12

    def test_without_a_test_split(self, copy: Path) -> None:
        shutil.rmtree(copy / "test")
        data = ImageFolderData(str(copy))
        assert not data.has_test
        assert len(data.train) == 30
        with pytest.raises(ValueError, match=r"has no test or val folder: expected .*check --data\.init_args\.root"):
            _ = data.test

    def test_fingerprint_depends_on_pixels_and_names_but_not_on_the_place(
        self, copy: Path, folder_data: ImageFolderData
    ) -> None:
        assert ImageFolderData(str(copy)).fingerprint == folder_data.fingerprint
        (copy / "train" / "red").rename(copy / "train" / "scarlet")
        renamed = ImageFolderData(str(copy)).fingerprint
        (copy / "train" / "scarlet").rename(copy / "train" / "red")
        change_all(copy / "train" / "red", lambda image: image.rotate(180))
        turned = ImageFolderData(str(copy)).fingerprint
        assert len({folder_data.fingerprint, renamed, turned}) == 3

    def test_test_split_is_no_part_of_the_fingerprint(self, copy: Path, folder_data: ImageFolderData) -> None:
        shutil.rmtree(copy / "test")
        assert ImageFolderData(str(copy)).fingerprint == folder_data.fingerprint


class TestImageSizes:
    def test_mixed_sizes_need_a_size(self, copy: Path) -> None:
        Image.new("RGB", (14, 14)).save(copy / "train" / "red" / "00.png")
        with pytest.raises(ValueError, match=r"not all square and of one size .*--data\.init_args\.image_size"):
            _ = ImageFolderData(str(copy)).train

    def test_oblong_images_need_a_size(self, copy: Path) -> None:
        change_all(copy, lambda image: image.resize((12, 9)))
        with pytest.raises(ValueError, match=r"for example 12×9\): say the size to bring them to"):
            _ = ImageFolderData(str(copy)).train

    def test_mixed_sizes_are_brought_to_the_given_one(self, copy: Path) -> None:
        Image.new("RGB", (20, 14), (255, 0, 0)).save(copy / "train" / "red" / "00.png")
        data = ImageFolderData(str(copy), image_size=8, resize=10)
        assert data.spec.image_size == 8
        assert data.train.read(range(30)).shape == (30, 3, 8, 8)
        assert data.train.read([20])[0, :, 4, 4].tolist() == [255, 0, 0]


class TestTestShare:
    """A test split that is made of the training images."""

    @pytest.mark.parametrize("flat", [False, True])
    def test_divides_every_class(self, copy: Path, flat: bool) -> None:
        everything = ImageFolderData(str(copy)).list_split("train").paths
        shutil.rmtree(copy / "test")
        root = copy / "train" if flat else copy
        data = ImageFolderData(str(root), test_share=0.3)
        train, test = data.list_split("train"), data.list_split("test")
        assert sorted(train.paths + test.paths) == sorted(everything)
        assert not set(train.paths) & set(test.paths)
        assert test.labels.bincount().tolist() == [round(0.3 * 10)] * 3
        assert train.paths == sorted(train.paths)
        assert data.has_test
        assert len(data.train) == 21
        assert len(data.test) == 9

    def test_depends_on_the_names_alone(self, copy: Path, tmp_path: Path) -> None:
        shutil.rmtree(copy / "test")
        moved = Path(shutil.copytree(copy, tmp_path / "elsewhere"))

        def names(root: Path) -> list[str]:
            return [path.name for path in ImageFolderData(str(root), test_share=0.3).list_split("test").paths]

        def fingerprint(root: Path, share: float) -> str:
            return ImageFolderData(str(root), test_share=share).fingerprint

        before = names(copy)
        assert names(moved) == before
        assert fingerprint(moved, 0.3) == fingerprint(copy, 0.3)
        assert fingerprint(copy, 0.4) != fingerprint(copy, 0.3)
        next((copy / "train").glob("*/*")).unlink()
        assert len(set(names(copy)) - set(before)) <= 1  # the others stay where they were

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
    def test_share_out_of_range(self, copy: Path, share: float) -> None:
        shutil.rmtree(copy / "test")
        with pytest.raises(ValueError, match=r"test_share: got .*, expected a share between 0 and 1"):
            ImageFolderData(str(copy), test_share=share)

    def test_beside_a_test_split(self, copy: Path) -> None:
        with pytest.raises(ValueError, match=r"test_share: got 0.2, but .* has a test split: leave test_share out"):
            ImageFolderData(str(copy), test_share=0.2)

    def test_a_class_of_one_image(self, copy: Path) -> None:
        shutil.rmtree(copy / "test")
        for path in sorted((copy / "train").glob("*/*"))[1:10]:
            path.unlink()
        with pytest.raises(ValueError, match=r"has 1 images, expected enough to keep some beside 1 test images"):
            ImageFolderData(str(copy), test_share=0.2).list_split("train")


class TestFolderErrors:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no data folder at .*/nowhere: .*--data\.init_args\.root PATH"):
            ImageFolderData(str(tmp_path / "nowhere"))

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no train folder: expected .*/train/<class>/<image>"):
            _ = ImageFolderData(str(tmp_path)).train

    def test_no_class_folders(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        with pytest.raises(ValueError, match=r"train is empty: expected one folder of images for each class"):
            _ = ImageFolderData(str(tmp_path)).train

    def test_empty_class_folder(self, copy: Path) -> None:
        for path in (copy / "train" / "green").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=r"train/green holds no images: .*fill the folder or remove it"):
            _ = ImageFolderData(str(copy)).train

    def test_empty_training_folders_are_found_by_the_test_split_too(self, copy: Path) -> None:
        for path in (copy / "train").rglob("*.png"):
            path.unlink()
        with pytest.raises(ValueError, match="holds no images"):
            _ = ImageFolderData(str(copy)).test

    def test_test_split_with_other_classes(self, copy: Path) -> None:
        (copy / "test" / "red").rename(copy / "test" / "pink")
        message = r"other classes than the training split: only there \['pink'\], missing \['red'\]"
        with pytest.raises(ValueError, match=message):
            _ = ImageFolderData(str(copy)).test

    def test_only_one_class(self, copy: Path) -> None:
        shutil.rmtree(copy / "train" / "red")
        shutil.rmtree(copy / "train" / "green")
        with pytest.raises(ValueError, match=r"copy: got 1 class\(es\), expected at least 2"):
            _ = ImageFolderData(str(copy)).spec

    @pytest.mark.parametrize("content", [b"not a picture", b""])
    def test_damaged_image_is_named(self, copy: Path, content: bytes) -> None:
        (copy / "train" / "blue" / "07.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the image .*train/blue/07\.png .*replace the file"):
            _ = ImageFolderData(str(copy)).train

    @pytest.mark.parametrize("given", ["mean", "std"])
    def test_mean_without_std(self, image_folder: Path, given: str) -> None:
        with pytest.raises(ValueError, match="got only one of mean and std, expected both or neither"):
            ImageFolderData(str(image_folder), **{given: [0.5, 0.5, 0.5]})  # type: ignore[arg-type]

    def test_mean_of_other_channels(self, image_folder: Path) -> None:
        with pytest.raises(ValueError, match="got 1 means and 1 standard deviations, expected 3 of each"):
            _ = ImageFolderData(str(image_folder), mean=[0.5], std=[0.5]).spec


@pytest.fixture
def cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """Four training and two test images in CIFAR-10's own file format, and their training entry."""
    values = np.random.default_rng(0)
    entries = {
        "data_batch_1": {"data": values.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [1, 0, 1, 0]},
        "test_batch": {"data": values.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [0, 1]},
        "batches.meta": {"label_names": ["airplane", "bird"]},
    }
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    for name, entry in entries.items():
        (folder / name).write_bytes(pickle.dumps(entry))
    # torchvision compares no checksum where none is known.
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path, entries["data_batch_1"]


class TestTorchvision:
    def test_reads_the_files_of_torchvision(self, cifar_files: tuple[Path, dict[str, Any]]) -> None:
        root, entry = cifar_files
        data = TorchvisionData("CIFAR10", str(root), download=False)
        assert data.has_test
        assert data.spec.name == "CIFAR10"
        assert data.spec.classes == ("airplane", "bird")
        assert data.train.labels.tolist() == entry["labels"]
        # A row of the file holds the red plane, then green, then blue, each from left to right and top to bottom.
        assert np.array_equal(data.train.read(range(4)).numpy(), entry["data"].reshape(4, 3, 32, 32))
        assert len(data.test) == 2

    def test_gray_images_of_mnist_get_a_channel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels = torch.arange(3 * 28 * 28, dtype=torch.int32).remainder(256).to(torch.uint8).view(3, 28, 28)

        def mnist(root: str, train: bool, download: bool) -> SimpleNamespace:
            return SimpleNamespace(data=pixels, targets=torch.tensor([0, 1, 0]), classes=["0 - zero", "1 - one"])

        monkeypatch.setattr(datasets, "MNIST", mnist)
        data = TorchvisionData("MNIST", str(tmp_path))
        assert data.spec.image_shape == (1, 28, 28)
        assert torch.equal(data.train.read([0, 1, 2])[:, 0], pixels)
        assert data.train.labels.dtype == torch.int64

    def test_class_folders_stand_for_the_files(self, image_folder: Path, folder_data: ImageFolderData) -> None:
        data = TorchvisionData("CIFAR10", str(image_folder), download=False)
        assert data.spec.name == "CIFAR10"
        assert data.spec.classes == ("blue", "green", "red")
        assert isinstance(data.train, TensorImages)
        assert data.fingerprint == folder_data.fingerprint
        assert len(data.test) == 12
        assert data.has_test

    def test_class_folders_may_lack_a_test_split(self, copy: Path) -> None:
        shutil.rmtree(copy / "test")
        assert not TorchvisionData("CIFAR10", str(copy)).has_test

    def test_missing_files_without_download(self, tmp_path: Path) -> None:
        message = r"cannot get CIFAR10 at .*class folders; give the folder with --data\.init_args\.root PATH"
        with pytest.raises(ValueError, match=message):
            _ = TorchvisionData("CIFAR10", str(tmp_path), download=False).train

    def test_missing_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(root: str, train: bool, download: bool) -> None:
            assert download
            raise URLError("no route to host")

        monkeypatch.setattr(datasets, "CIFAR100", away)
        with pytest.raises(ValueError, match=r"cannot get CIFAR100 at .*no route to host.*a network to download"):
            _ = TorchvisionData("CIFAR100", str(tmp_path)).spec


@pytest.fixture(scope="module")
def digits() -> DigitsData:
    return DigitsData()


class TestDigits:
    def test_sizes(self, digits: DigitsData) -> None:
        assert digits.spec.image_shape == (1, 8, 8)
        assert digits.spec.classes == tuple("0123456789")
        assert len(digits.train) + len(digits.test) == 1797
        assert 350 < len(digits.test) < 360  # a fifth of each class

    def test_splits_cover_the_scans_and_share_none(self, digits: DigitsData) -> None:
        from sklearn.datasets import load_digits

        scans = load_digits()

        def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
            flat = images.reshape(len(images), -1).astype(int)
            return [(*map(int, row), int(label)) for row, label in zip(flat, labels, strict=True)]

        splits = [
            rows(split.read(range(len(split))).numpy(), split.labels.numpy()) for split in (digits.train, digits.test)
        ]
        expected = rows(np.rint(scans.images * 255 / 16), scans.target)
        assert sorted(splits[0] + splits[1]) == sorted(expected)
        assert not set(splits[0]) & set(splits[1])  # scikit-learn has no scan twice

    def test_each_class_is_in_both_splits_in_the_same_share(self, digits: DigitsData) -> None:
        train, test = (torch.bincount(split.labels, minlength=10) for split in (digits.train, digits.test))
        assert torch.equal(test, (train + test) // 5)

    def test_black_and_white_are_the_ends_of_the_range(self, digits: DigitsData) -> None:
        pixels = digits.train.read(range(len(digits.train)))
        assert (int(pixels.min()), int(pixels.max())) == (0, 255)

    def test_is_the_same_for_every_run(self, digits: DigitsData) -> None:
        assert DigitsData().fingerprint == digits.fingerprint
