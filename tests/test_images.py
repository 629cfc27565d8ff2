"""Labelled images in memory and in files: order, fingerprint, decoding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from unidd_pl.data import ImageFiles, LabelledImages, TensorImages

Files = Callable[..., ImageFiles]


def numbered_images(count: int = 10) -> TensorImages:
    """Image i holds the value i everywhere; its label is i modulo 3."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 2, 2).contiguous()
    return TensorImages(images, torch.arange(count) % 3)


def batches_of(images: LabelledImages, batch_size: int, seed: int | None = None, **options: int) -> list[list[int]]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    loader = images.loader(batch_size, generator=generator, **options)
    return [batch[:, 0, 0, 0].tolist() for batch, _ in loader]


@pytest.fixture
def files(image_folder: Path, tmp_path: Path) -> Files:
    """Make `ImageFiles` of a private copy of the training images, which a test may then change."""
    root = tmp_path / "copy"
    shutil.copytree(image_folder / "train", root)

    def make(root: Path = root, channels: int = 3, image_size: int = 12, resize: int = 12) -> ImageFiles:
        paths = sorted(root.rglob("*.png"))
        names = sorted(entry.name for entry in root.iterdir())
        labels = torch.tensor([names.index(path.parent.name) for path in paths])
        return ImageFiles(paths, labels, root, channels, image_size, resize)

    return make


class TestLoader:
    def test_keeps_the_order_without_a_generator(self) -> None:
        assert batches_of(numbered_images(), 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    def test_leaves_an_incomplete_batch_out_when_told(self) -> None:
        assert batches_of(numbered_images(), 4, drop_last=True) == [[0, 1, 2, 3], [4, 5, 6, 7]]

    def test_labels_stay_with_their_images(self) -> None:
        for images, labels in numbered_images().loader(4, generator=torch.Generator().manual_seed(1)):
            assert torch.equal(images[:, 0, 0, 0].long() % 3, labels)

    def test_order_is_a_function_of_the_generator(self) -> None:
        images = numbered_images()
        first = batches_of(images, 4, seed=1)
        assert first == batches_of(images, 4, seed=1)
        assert first != batches_of(images, 4, seed=2)
        assert sorted(position for batch in first for position in batch) == list(range(10))

    def test_each_epoch_has_another_order(self) -> None:
        loader = numbered_images().loader(10, generator=torch.Generator().manual_seed(1))
        (first,), (second,) = ([images for images, _ in loader] for _ in range(2))
        assert not torch.equal(first, second)

    def test_worker_processes_give_the_same_batches(self, files: Files) -> None:
        images = files()
        here, there = (list(images.loader(7, workers=workers)) for workers in (0, 2))
        assert len(here) == len(there) == 5
        for (ours, our_labels), (theirs, their_labels) in zip(here, there, strict=True):
            assert torch.equal(ours, theirs)
            assert torch.equal(our_labels, their_labels)


class TestTensorImages:
    def test_indexing_gives_a_batch(self) -> None:
        images, labels = numbered_images()[[7, 2]]
        assert images.dtype == torch.uint8
        assert images[:, 0, 0, 0].tolist() == [7, 2]
        assert labels.tolist() == [1, 2]

    def test_positions_of_a_class_in_order(self) -> None:
        assert numbered_images().positions_of(1).tolist() == [1, 4, 7]

    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            (torch.zeros(2, 1, 2, 2), torch.zeros(2)),
            (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2)),
            (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3)),
        ],
        ids=["float", "no channels", "labels missing"],
    )
    def test_refuses_other_shapes_and_types(self, images: Tensor, labels: Tensor) -> None:
        with pytest.raises(ValueError, match=r"expected uint8 \(n, c, h, w\) with n labels"):
            TensorImages(images, labels)

    def test_fingerprint_depends_on_pixels_order_and_labels(self) -> None:
        images = numbered_images()
        brighter = images.images.clone()
        brighter[3, 0, 1, 1] += 1
        order = torch.arange(10).roll(1)
        prints = {
            images.fingerprint(),
            TensorImages(brighter, images.labels).fingerprint(),
            TensorImages(images.images[order], images.labels[order]).fingerprint(),
            TensorImages(images.images, images.labels[order]).fingerprint(),
            TensorImages(images.images.view(10, 1, 1, 4), images.labels).fingerprint(),
        }
        assert len(prints) == 5
        assert numbered_images().fingerprint() == images.fingerprint()


class TestImageFiles:
    def test_png_pixels_are_read_as_they_are(self, files: Files) -> None:
        images = files()
        expected = np.stack([np.asarray(Image.open(images.paths[i])) for i in (12, 3)]).transpose(0, 3, 1, 2)
        assert np.array_equal(images.read([12, 3]).numpy(), expected)

    def test_decode_all_equals_read(self, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("unidd_pl.data.images._DECODE_BLOCK", 7)  # several blocks, the last one shorter
        images = files()
        decoded = images.decode_all()
        assert images.nbytes == decoded.images.nbytes
        assert torch.equal(decoded.images, images.read(range(len(images))))
        assert torch.equal(decoded.labels, images.labels)

    @pytest.mark.parametrize("size", [(24, 18), (18, 24), (6, 8), (40, 9)], ids=lambda size: f"{size[0]}x{size[1]}")
    def test_resize_and_centre_crop_are_those_of_torchvision(self, tmp_path: Path, size: tuple[int, int]) -> None:
        width, height = size
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image.save(tmp_path / "one.png")
        files = ImageFiles([tmp_path / "one.png"], torch.tensor([0]), tmp_path, 3, image_size=7, resize=9)
        oracle = tv.center_crop(tv.resize(image, 9, InterpolationMode.BILINEAR), 7)
        assert np.array_equal(files.read([0])[0].permute(1, 2, 0).numpy(), np.asarray(oracle))

    def test_one_channel_is_the_luminance(self, files: Files) -> None:
        images = files(channels=1)
        grey = images.read([0])
        assert grey.shape == (1, 1, 12, 12)
        assert np.array_equal(grey[0, 0].numpy(), np.asarray(Image.open(images.paths[0]).convert("L")))

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
    def test_other_modes_are_converted(self, tmp_path: Path, mode: str) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / "one.png")
        read = ImageFiles([tmp_path / "one.png"], torch.tensor([0]), tmp_path, 3, 4, 4).read([0])
        assert np.array_equal(read[0].permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))

    def test_fingerprint_stays_when_the_folder_moves(self, files: Files, tmp_path: Path) -> None:
        before = files().fingerprint()
        moved = (tmp_path / "copy").rename(tmp_path / "elsewhere")
        assert files(moved).fingerprint() == before

    def test_fingerprint_depends_on_names_sizes_labels_order_and_form(self, files: Files) -> None:
        images = files()
        root, paths, labels = images.root, images.paths, images.labels
        prints = [
            images.fingerprint(),
            ImageFiles(paths[::-1], labels.flip(0), root, 3, 12, 12).fingerprint(),
            ImageFiles(paths, labels.flip(0), root, 3, 12, 12).fingerprint(),
            ImageFiles(paths[1:], labels[1:], root, 3, 12, 12).fingerprint(),
            ImageFiles(paths, labels, root, 1, 12, 12).fingerprint(),
            ImageFiles(paths, labels, root, 3, 8, 12).fingerprint(),
            ImageFiles(paths, labels, root, 3, 12, 16).fingerprint(),
        ]
        paths[4].write_bytes(paths[4].read_bytes() + b"more")
        prints.append(images.fingerprint())
        paths[4].rename(paths[4].with_name("renamed.png"))
        prints.append(files().fingerprint())
        assert len(set(prints)) == len(prints)


class TestDamagedFiles:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
    def test_truncated_image_is_named(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"broken.{suffix}"
        pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 4])
        files = ImageFiles([path], torch.tensor([0]), tmp_path, 3, 12, 12)
        with pytest.raises(ValueError, match=rf"cannot read the image .*broken\.{suffix} .*replace the file"):
            files.read([0])

    def test_text_with_an_image_name_is_named(self, files: Files) -> None:
        images = files()
        images.paths[17].write_text("not a picture")
        with pytest.raises(ValueError, match=rf"cannot read the image {images.paths[17]} .*remove it"):
            images.decode_all()

    def test_missing_image_is_named(self, files: Files) -> None:
        images = files()
        images.paths[5].unlink()
        with pytest.raises(ValueError, match=f"cannot read the image {images.paths[5]}"):
            images.read([5])
