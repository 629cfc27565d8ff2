"""Image files into .beton files: what is stored, what is refused, and that nothing half-written stays. Without FFCV."""

from __future__ import annotations

import errno
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from beton_files import convert_all, photographs
from PIL import Image

from unidd_pl.data import BetonImages, ImageFiles, ImageFolderData
from unidd_pl.data.beton import JPEG, PIXELS, BetonWriter, StoredImage, read_beton
from unidd_pl.data.conversion import load_beton, manifest_path, stored_form, write_beton


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photographs(tmp_path / "photographs")


@pytest.fixture
def data(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageFolderData:
    """Photographs with their .beton files, on a machine where FFCV seems to be installed."""
    monkeypatch.setattr("unidd_pl.data.folder._missing_ffcv", lambda: None)
    return convert_all(fresh(root, tmp_path))


def fresh(root: Path, tmp_path: Path, loader: str = "ffcv") -> ImageFolderData:
    return ImageFolderData(str(root), 32, 36, loader=loader, betons=str(tmp_path / "betons"))  # type: ignore[arg-type]


def stored_bytes(path: Path, position: int) -> bytes:
    beton = read_beton(path)
    start = int(beton.samples[position]["f0"]["data_ptr"])
    return path.read_bytes()[start : start + int(beton.sizes[position])]


class TestStoredForm:
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_a_jpeg_stays_as_it_is(self, root: Path, mode: str) -> None:
        path = root / "train/cat" / ("00.jpg" if mode == "RGB" else "01.jpg")
        with Image.open(path) as image:
            assert image.mode == mode
            size = image.size
        assert stored_form(path, 500) == StoredImage(JPEG, *size, path.read_bytes())

    def test_a_cmyk_jpeg_becomes_rgb(self, root: Path) -> None:
        path = root / "train/cat/02.jpg"
        stored = stored_form(path, 500)
        assert stored.mode == JPEG
        with Image.open(path) as original, Image.open(io.BytesIO(stored.data)) as image:
            assert (original.mode, image.mode) == ("CMYK", "RGB")
            np.testing.assert_allclose(
                np.asarray(image, dtype=float), np.asarray(original.convert("RGB"), dtype=float), atol=8
            )

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
    def test_others_are_stored_as_pixels(self, tmp_path: Path, mode: str) -> None:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)).convert(mode)
        image.save(tmp_path / "one.png")
        assert stored_form(tmp_path / "one.png", 500) == StoredImage(PIXELS, 6, 4, image.convert("RGB").tobytes())

    def test_large_images_are_brought_to_the_longer_side(self, root: Path) -> None:
        path = root / "train/cat/00.jpg"
        stored = stored_form(path, 20)
        with Image.open(io.BytesIO(stored.data)) as image:
            assert max(image.size) == 20
            assert image.size == (stored.width, stored.height)

    def test_a_jpeg_that_carries_more_than_its_image_is_stored_anew(self, root: Path) -> None:
        path = root / "train/cat/00.jpg"
        path.write_bytes(path.read_bytes() + bytes(100_000))
        assert len(stored_form(path, 500).data) < 30_000


class TestFormat:
    def test_images_lie_on_one_page_each(self, tmp_path: Path) -> None:
        page = 2**12
        images = [StoredImage(JPEG, 1, 1, bytes([number]) * size) for number, size in enumerate((3000, 2000, 4096, 5))]
        with (tmp_path / "x.beton").open("w+b") as file:
            writer = BetonWriter(file, 10, page)
            for label, image in enumerate(images):
                writer.add(image, label)
            writer.finish()
        beton = read_beton(tmp_path / "x.beton")
        starts, sizes = beton.samples["f0"]["data_ptr"].astype(int), beton.sizes.astype(int)
        assert (starts // page == (starts + sizes - 1) // page).all()
        assert beton.samples["f1"].tolist() == [0, 1, 2, 3]
        assert [stored_bytes(tmp_path / "x.beton", position) for position in range(4)] == [one.data for one in images]

    def test_the_manifest_says_what_is_in_it(self, data: ImageFolderData, root: Path) -> None:
        path = data.beton_path("test")
        assert path.name == "val.beton"
        fields = json.loads(manifest_path(path).read_text())
        assert fields["split"] == "test"
        assert fields["classes"] == ["cat", "dog"]
        assert fields["counts"] == [3, 3]
        assert fields["skipped"] == []
        assert fields["nbytes"] == path.stat().st_size
        assert fields["source"] == data.list_split("test").listing()
        assert stored_bytes(path, 3) == (root / "val/dog/00.jpg").read_bytes()

    def test_the_fingerprint_is_of_the_stored_images(self, data: ImageFolderData, root: Path, tmp_path: Path) -> None:
        before = data.train.fingerprint()
        assert fresh(root, tmp_path).train.fingerprint() == before
        assert ImageFolderData(str(root), 32, 36).fingerprint != data.fingerprint  # another decoder, other pixels
        path = root / "train/cat/00.jpg"
        with Image.open(path) as image:
            image.rotate(180).save(path)
        write_beton(data.list_split("train"), ("cat", "dog"), "train", data.beton_path("train"))
        assert fresh(root, tmp_path).train.fingerprint() != before


class TestFolder:
    def test_both_splits_are_read_from_their_files(self, data: ImageFolderData) -> None:
        assert isinstance(data.train, BetonImages)
        assert isinstance(data.test, BetonImages)
        assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert data.train.labels.dtype == torch.int64
        assert data.workers_for(data.train) == 0  # threads, not processes

    def test_a_moved_folder_keeps_its_files(self, data: ImageFolderData, root: Path, tmp_path: Path) -> None:
        moved = root.rename(tmp_path / "elsewhere")
        assert len(fresh(moved, tmp_path).train) == 6

    def test_default_place(self, root: Path) -> None:
        assert ImageFolderData(str(root), name="pets").beton_path("train") == Path("runs/cache/betons/pets/train.beton")

    def test_without_ffcv(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "unidd_pl.data.ffcv_pipeline", None)
        with pytest.raises(ValueError, match=r"got 'ffcv', but FFCV is not installed .*install the extra 'ffcv'"):
            fresh(root, tmp_path)
        data = convert_all(fresh(root, tmp_path, "auto"))
        data.in_memory_gib = 0
        with pytest.warns(UserWarning, match="read by torchvision's loader, which is slower: FFCV is not installed"):
            assert isinstance(data.train, ImageFiles)

    def test_without_the_files(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("unidd_pl.data.folder._missing_ffcv", lambda: None)
        with pytest.raises(ValueError, match=r"there is no .*train\.beton: write it with `unidd convert --config"):
            _ = fresh(root, tmp_path).train
        with pytest.warns(UserWarning, match=r"there is no .*train\.beton: write it with `unidd convert --config"):
            assert len(fresh(root, tmp_path, "auto").train) == 6

    def test_unknown_loader(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"data\.init_args\.loader: got 'dali', expected one of"):
            fresh(root, tmp_path, "dali")

    @pytest.mark.parametrize("loader", ["ffcv", "auto"])
    def test_other_classes_in_the_folder(self, data: ImageFolderData, root: Path, tmp_path: Path, loader: str) -> None:
        for split in ("train", "val"):
            (root / split / "dog").rename(root / split / "wolf")
        message = r"classes, in order: got \('cat', 'dog'\), expected \('cat', 'wolf'\); write it anew with `unidd conv"
        with pytest.raises(ValueError, match=message):
            _ = fresh(root, tmp_path, loader).train

    def test_another_split(self, data: ImageFolderData, root: Path, tmp_path: Path) -> None:
        for suffix in (".beton", ".json"):
            shutil.copy(tmp_path / f"betons/val{suffix}", tmp_path / f"betons/train{suffix}")
        with pytest.raises(ValueError, match="split: got test, expected train"):
            _ = fresh(root, tmp_path).train

    def test_another_file_beside_the_manifest(self, data: ImageFolderData, root: Path, tmp_path: Path) -> None:
        shutil.copy(tmp_path / "betons/val.beton", tmp_path / "betons/train.beton")
        with pytest.raises(ValueError, match=r"train\.beton is not the file that train\.json beside it describes"):
            _ = fresh(root, tmp_path).train

    def test_other_images(self, data: ImageFolderData, root: Path, tmp_path: Path) -> None:
        path = root / "train/cat/00.jpg"
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(ValueError, match=r"names and sizes of the image files \(digest\): got"):
            _ = fresh(root, tmp_path).train
        path.unlink()
        with pytest.raises(ValueError, match="images: got 6, expected 5"):
            _ = fresh(root, tmp_path).train

    @pytest.mark.parametrize("kept", [0, 10, 2000, -1], ids=["empty", "header", "index", "last byte"])
    def test_truncated(self, data: ImageFolderData, root: Path, tmp_path: Path, kept: int) -> None:
        path = tmp_path / "betons/train.beton"
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"train\.beton is (truncated or damaged: got .* bytes|no \.beton file)"):
            _ = fresh(root, tmp_path).train

    @pytest.mark.parametrize("text", [None, "{", '{"format": "other"}', '{"format": "unidd-beton-1"}'])
    def test_damaged_manifest(self, data: ImageFolderData, root: Path, tmp_path: Path, text: str | None) -> None:
        path = tmp_path / "betons/train.json"
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(ValueError, match=r"cannot read the manifest .*train\.json .*write it anew"):
            _ = fresh(root, tmp_path).train


class TestNothingHalfWritten:
    @pytest.fixture
    def files(self, root: Path, tmp_path: Path) -> ImageFiles:
        return fresh(root, tmp_path, "auto").list_split("train")

    @pytest.mark.parametrize("step", ["add", "finish"])
    def test_full_disk(self, files: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(BetonWriter, step, full)
        with pytest.raises(ValueError, match=r"could not write train\.beton .*No space left on device.*make room"):
            write_beton(files, ("cat", "dog"), "train", tmp_path / "out/train.beton")
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_failure_leaves_the_earlier_file(
        self, files: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "out/train.beton"
        manifest = write_beton(files, ("cat", "dog"), "train", path)

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(BetonWriter, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            write_beton(files, ("cat", "dog"), "train", path)
        assert sorted(one.name for one in path.parent.iterdir()) == ["train.beton", "train.json"]
        assert load_beton(path, files, ("cat", "dog"), "train")[1] == manifest

    def test_unreadable_images_are_listed_and_refused(self, files: ImageFiles, tmp_path: Path) -> None:
        torn = files.paths[1]
        torn.write_bytes(torn.read_bytes()[:300])
        files.paths[4].write_text("not a picture")
        with pytest.raises(
            ValueError, match=r"got 2 unreadable image\(s\), expected none; .*--skip_unreadable"
        ) as raised:
            write_beton(files, ("cat", "dog"), "train", tmp_path / "out/train.beton")
        assert all(str(files.paths[position]) in str(raised.value) for position in (1, 4))
        assert list((tmp_path / "out").iterdir()) == []

    def test_unreadable_images_are_left_out_when_told(
        self, files: ImageFiles, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("unidd_pl.data.folder._missing_ffcv", lambda: None)
        files.paths[1].write_text("not a picture")
        path = tmp_path / "betons/train.beton"
        manifest = write_beton(files, ("cat", "dog"), "train", path, skip_unreadable=True)
        assert manifest.skipped == ["cat/01.jpg"]
        assert manifest.counts == [2, 3]
        assert fresh(root, tmp_path).train.labels.tolist() == [0, 0, 1, 1, 1]
        assert stored_bytes(path, 2) == (root / "train/dog/00.jpg").read_bytes()

    def test_a_class_without_a_readable_image(self, files: ImageFiles, tmp_path: Path) -> None:
        for path in files.paths[:3]:
            path.write_text("not a picture")
        with pytest.raises(ValueError, match=r"class 'cat' of .* has no readable image"):
            write_beton(files, ("cat", "dog"), "train", tmp_path / "out/train.beton", skip_unreadable=True)

    @pytest.mark.parametrize("side", [0, 26_755, 70_000])
    def test_side_out_of_range(self, files: ImageFiles, tmp_path: Path, side: int) -> None:
        with pytest.raises(ValueError, match=f"max_side: got {side}, expected 1 to 26754"):
            write_beton(files, ("cat", "dog"), "train", tmp_path / "x.beton", max_side=side)
