"""One interface, three readers: images in memory, in files, and in .beton files streamed by FFCV."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from beton_files import convert_all, photographs

from unidd_pl.data import BetonImages, ImageFolderData, LabelledImages, RandomCrops
from unidd_pl.data.conversion import load_beton
from unidd_pl.data.holdout import HoldOutData
from unidd_pl.data.order import Shard

FFCV = pytest.param("ffcv", marks=pytest.mark.ffcv)
LOADERS = ["memory", "files", FFCV]
SIZE, RESIZE, COUNT, BATCH = 32, 36, 14, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("loaders") / "photographs", COUNT // 2)


def data_of(root: Path, name: str) -> ImageFolderData:
    data = ImageFolderData(
        str(root),
        SIZE,
        RESIZE,
        in_memory_gib=1.0 if name == "memory" else 0.0,
        loader="ffcv" if name == "ffcv" else "torchvision",
        betons=str(root.parent / "betons"),
    )
    if name == "ffcv" and not data.betons.exists():
        convert_all(data)
    return data


@pytest.fixture(params=LOADERS)
def images(root: Path, request: pytest.FixtureRequest) -> LabelledImages:
    return data_of(root, request.param).train


@pytest.fixture
def reference(root: Path) -> LabelledImages:
    return data_of(root, "memory").train


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over all pixels of the absolute difference, grey levels of 255."""
    return float((a.float() - b.float()).abs().mean())


class TestContract:
    def test_types_layout_order_and_last_batch(self, images: LabelledImages) -> None:
        loader = images.loader(BATCH)
        batches = list(loader)
        assert len(loader) == len(batches) == 4
        assert [tuple(pixels.shape) for pixels, _ in batches] == [(4, 3, SIZE, SIZE)] * 3 + [(2, 3, SIZE, SIZE)]
        for pixels, labels in batches:
            assert pixels.dtype == torch.uint8
            assert pixels.is_contiguous()
            assert int(pixels.max()) > 100  # 0-255, not 0-1
            assert labels.dtype == torch.int64
        assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 7 + [1] * 7

    def test_batches_are_what_read_gives(self, images: LabelledImages) -> None:
        """All are kept until the end: a loader must not write into a batch that it has handed out."""
        streamed = torch.cat([pixels for pixels, _ in images.loader(BATCH)])
        assert torch.equal(streamed, images.read(range(COUNT)))
        assert torch.equal(streamed[[9, 2]], images.read([9, 2]))

    def test_drop_last(self, images: LabelledImages) -> None:
        loader = images.loader(BATCH, drop_last=True)
        assert len(loader) == 3
        assert [len(labels) for _, labels in loader] == [4, 4, 4]

    def test_a_batch_larger_than_the_split(self, images: LabelledImages) -> None:
        assert [len(labels) for _, labels in images.loader(100)] == [COUNT]
        assert list(images.loader(100, drop_last=True)) == []

    def test_orders_are_those_of_the_generator(self, images: LabelledImages, reference: LabelledImages) -> None:
        loaders = [one.loader(BATCH, generator=seeded()) for one in (images, reference)]
        epochs = []
        for _ in range(2):
            (ours, labels), (theirs, expected) = (map(torch.cat, zip(*loader, strict=True)) for loader in loaders)
            assert torch.equal(labels, expected)
            assert mean_difference(ours, theirs) < 0.5
            epochs.append(ours)
        assert not torch.equal(*epochs)

    def test_stopping_early_leaves_nothing_behind(self, images: LabelledImages) -> None:
        loader = images.loader(2)
        first = next(iter(loader))[0]
        assert torch.equal(next(iter(loader))[0], first)
        assert len(list(loader)) == 7

    def test_two_epochs_at_the_same_time(self, images: LabelledImages) -> None:
        loaders = images.loader(BATCH), images.loader(BATCH, generator=seeded())
        alone = [torch.cat([pixels for pixels, _ in images.loader(BATCH)])]
        alone.append(torch.cat([pixels for pixels, _ in images.loader(BATCH, generator=seeded())]))
        pairs = list(zip(*loaders, strict=True))
        for position, expected in enumerate(alone):
            assert torch.equal(torch.cat([pair[position][0] for pair in pairs]), expected)

    @pytest.mark.parametrize("shuffled", [False, True])
    @pytest.mark.parametrize("pad", [False, True])
    def test_shares_of_processes_make_up_the_whole(self, images: LabelledImages, shuffled: bool, pad: bool) -> None:
        whole, *shares = (
            [
                torch.cat([pixels for pixels, _ in loader])
                for loader in [images.loader(BATCH, generator=seeded() if shuffled else None, shard=shard)]
                for _ in range(2)  # epochs
            ]
            for shard in (Shard(0, 1), *(Shard(rank, 3, pad=pad) for rank in range(3)))
        )
        for epoch, expected in enumerate(whole):
            lengths = [len(share[epoch]) for share in shares]
            assert lengths == ([5, 5, 5] if pad else [5, 5, 4])
            padded = torch.cat([expected, expected[:1]]) if pad else expected
            for rank, share in enumerate(shares):
                assert torch.equal(share[epoch], padded[rank::3])

    def test_going_on_within_a_pass(self, images: LabelledImages) -> None:
        whole, rest = list(images.loader(BATCH)), images.loader(BATCH, first=2 * BATCH)
        assert len(rest) == 2
        for (pixels, labels), (expected, expected_labels) in zip(rest, whole[2:], strict=True):
            assert torch.equal(pixels, expected)
            assert torch.equal(labels, expected_labels)
        assert list(images.loader(BATCH, first=COUNT)) == []


class TestCrops:
    def test_a_crop_is_a_function_of_seed_epoch_and_position(self, images: LabelledImages) -> None:
        crops = RandomCrops(3)
        loader = images.loader(BATCH, crops=crops)
        first, second = (torch.cat([pixels for pixels, _ in loader]) for _ in range(2))
        assert first.shape == (COUNT, 3, SIZE, SIZE)
        assert torch.equal(first, images.read_crops(range(COUNT), crops, 0))
        assert torch.equal(second[[3, 1]], images.read_crops([3, 1], crops, 1))
        assert not torch.equal(first, second)
        assert not torch.equal(first, images.read_crops(range(COUNT), RandomCrops(4), 0))

    def test_the_order_does_not_change_a_crop(self, images: LabelledImages) -> None:
        crops = RandomCrops(3)
        order = torch.randperm(COUNT, generator=seeded())
        shuffled = torch.cat([pixels for pixels, _ in images.loader(BATCH, generator=seeded(), crops=crops)])
        assert torch.equal(shuffled, images.read_crops(order.tolist(), crops, 0))

    def test_worker_processes_cut_the_same(self, root: Path) -> None:
        files, crops = data_of(root, "files").train, RandomCrops(3)
        here, there = (list(files.loader(BATCH, workers=workers, crops=crops)) for workers in (0, 2))
        assert all(torch.equal(ours, theirs) for (ours, _), (theirs, _) in zip(here, there, strict=True))

    def test_whole_images_in_memory_stay_as_they_are(self, reference: LabelledImages) -> None:
        """The box of scale 1 and ratio 1 is the image."""
        crops = RandomCrops(0, (1.0, 1.0), (1.0, 1.0))
        assert torch.equal(reference.read_crops(range(COUNT), crops, 0), reference.read(range(COUNT)))

    def test_a_selection_is_cropped_as_its_split(self, root: Path) -> None:
        data = data_of(root, "files")
        kept, crops = HoldOutData(data, 0.3).train, RandomCrops(3)
        positions = [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
        assert torch.equal(kept.read_crops(range(10), crops, 0), data.train.read_crops(positions, crops, 0))


@pytest.mark.ffcv
class TestFFCV:
    """What only FFCV's loader has."""

    def test_pixels_are_those_of_the_files_but_for_one_rounding(self, root: Path) -> None:
        ours, theirs = (data_of(root, name).train for name in ("ffcv", "files"))
        crops = RandomCrops(3)
        pairs = [[one.read(range(COUNT)) for one in (ours, theirs)]]
        pairs += [[one.read_crops(range(COUNT), crops, epoch) for one in (ours, theirs)] for epoch in range(3)]
        as_stored = [index for index in range(COUNT) if index % 7 % 3 < 2]  # CMYK files are encoded anew
        for pair in pairs:
            difference = torch.sub(*(pixels.int() for pixels in pair)).abs()
            assert int(difference[as_stored].max()) <= 1
            assert float(difference.float().mean()) < 0.5

    @pytest.mark.parametrize(
        ("source", "box", "resized"),
        [
            ((40, 60), (0, 0, 40, 60), (9, 17)),  # (h, w); top, left, height, width; (h, w) it is resized to
            ((40, 60), (3, 5, 30, 40), (9, 9)),
            ((40, 60), (3, 5, 4, 7), (31, 33)),
            ((40, 60), (10, 20, 30, 3), (12, 12)),
            ((1, 60), (0, 0, 1, 60), (8, 8)),
            ((40, 60), (39, 59, 1, 1), (8, 8)),
        ],
    )
    def test_resizing_is_pillows(
        self, source: tuple[int, int], box: tuple[int, int, int, int], resized: tuple[int, int]
    ) -> None:
        from PIL import Image

        from unidd_pl.data.resampling import resample

        pixels = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
        top, left, tall, wide = box
        whole = Image.fromarray(pixels).resize(
            (resized[1], resized[0]), Image.Resampling.BILINEAR, (left, top, left + wide, top + tall)
        )
        size, row, column = min(resized) - 1, 1, resized[1] - min(resized)
        expected = np.asarray(whole)[row : row + size, column : column + size].transpose(2, 0, 1)
        result = np.full((3, size, size), 77, np.uint8)
        resample(pixels, (*box, *resized, row, column), result)
        assert np.abs(result.astype(int) - expected).max() <= 1

    def test_a_damaged_jpeg_is_an_error(self, root: Path, tmp_path: Path) -> None:
        data = ImageFolderData(str(root), SIZE, RESIZE, in_memory_gib=0.0, loader="ffcv", betons=str(tmp_path))
        images = convert_all(data).train
        assert isinstance(images, BetonImages)
        start = int(images.beton.samples[5]["f0"]["data_ptr"])
        with images.beton.path.open("r+b") as file:
            file.seek(start)
            file.write(bytes(64))
        with pytest.raises(ValueError, match=r"its image 5 of 14 is no whole JPEG; write it anew"):
            list(images.loader(BATCH))
        with pytest.raises(ValueError, match=r"its image 5 of 14 is no whole JPEG"):
            images.read([4, 5])

    def test_a_jpeg_is_decoded_to_the_bits_of_the_file_loader(self, root: Path, tmp_path: Path) -> None:
        """Images of the image size are not resized: what is left is the decoder."""
        from PIL import Image

        for path in root.rglob("*.jpg"):
            target = tmp_path / "alike" / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.convert("RGB").resize((SIZE, SIZE)).save(target, quality=90)
        streamed = convert_all(ImageFolderData(str(tmp_path / "alike"), loader="ffcv", betons=str(tmp_path / "b")))
        read = ImageFolderData(str(tmp_path / "alike"), in_memory_gib=0)
        assert torch.equal(streamed.train.read(range(COUNT)), read.train.read(range(COUNT)))

    def test_lossless_images_of_the_size_are_the_same_bits(self, image_folder: Path, tmp_path: Path) -> None:
        data = convert_all(ImageFolderData(str(image_folder), loader="ffcv", betons=str(tmp_path)))
        assert isinstance(data.train, BetonImages)
        expected = ImageFolderData(str(image_folder)).train.read(range(30))
        assert torch.equal(data.train.read(range(30)), expected)
        assert torch.equal(torch.cat([pixels for pixels, _ in data.train.loader(8)]), expected)

    def test_grayscale_images_have_one_channel(self, root: Path, tmp_path: Path) -> None:
        from PIL import Image

        for path in root.rglob("*.jpg"):
            target = tmp_path / "grey" / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.convert("L").save(target)
        data = convert_all(ImageFolderData(str(tmp_path / "grey"), SIZE, loader="ffcv", betons=str(tmp_path / "b")))
        assert data.spec.image_shape == (1, SIZE, SIZE)
        assert mean_difference(
            data.train.read(range(COUNT)), ImageFolderData(str(tmp_path / "grey"), SIZE).train.read(range(COUNT))
        ) < 3  # fmt: skip

    def test_page_by_page_gives_the_same_images(self, root: Path) -> None:
        images = data_of(root, "ffcv").train
        assert isinstance(images, BetonImages)
        assert images.os_cache
        paged = BetonImages(images.beton, images.content, 3, SIZE, RESIZE, threads=2, os_cache=False)
        ours, theirs = (torch.cat([pixels for pixels, _ in one.loader(BATCH)]) for one in (paged, images))
        assert torch.equal(ours, theirs)
        loaders = [paged.loader(BATCH, generator=seeded()) for _ in range(2)]
        first, again = (torch.cat([pixels for pixels, _ in loader]) for loader in loaders)
        assert torch.equal(first, again)
        assert sorted(map(int, first.sum(dim=(1, 2, 3)))) == sorted(map(int, theirs.sum(dim=(1, 2, 3))))
        assert not torch.equal(torch.cat([pixels for pixels, _ in loaders[0]]), first)

    def test_torchs_threads_are_left_alone(self, root: Path) -> None:
        images = data_of(root, "ffcv").train
        before = torch.get_num_threads()
        list(images.loader(BATCH))
        assert torch.get_num_threads() == before

    def test_a_hold_out_reads_by_position(self, root: Path) -> None:
        data = data_of(root, "ffcv")
        held = HoldOutData(data, 0.3)
        assert torch.equal(torch.cat([pixels for pixels, _ in held.test.loader(3)]), data.train.read([5, 6, 12, 13]))

    def test_a_thread_that_dies_is_an_error(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from ffcv.loader.epoch_iterator import EpochIterator

        monkeypatch.setattr("unidd_pl.data.ffcv_pipeline._POLL_SECONDS", 0.05)
        monkeypatch.setattr(EpochIterator, "run", lambda _: None)
        with pytest.raises(RuntimeError, match="FFCV's thread has ended"):
            next(iter(data_of(root, "ffcv").train.loader(BATCH)))

    def test_the_layout_is_ffcvs(self, root: Path) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.reader import Reader
        from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType, get_metadata_type

        from unidd_pl.data import beton

        assert get_metadata_type([RGBImageField(), IntField()]) == beton.SAMPLE
        assert HeaderType.itemsize == beton.HEADER.itemsize
        assert FieldDescType.itemsize == beton.FIELD.itemsize
        assert ALLOC_TABLE_TYPE == beton.ALLOCATION
        images = data_of(root, "ffcv").train
        assert isinstance(images, BetonImages)
        reader = Reader(str(images.beton.path))
        assert list(reader.handlers) == ["image", "label"]
        assert [type(field) for field in reader.handlers.values()] == [RGBImageField, IntField]
        assert np.array_equal(reader.metadata, images.beton.samples)
        assert np.array_equal(reader.alloc_table["size"], images.beton.sizes)


def test_betons_go_to_another_process_without_what_is_open(root: Path, tmp_path: Path) -> None:
    data = ImageFolderData(str(root), SIZE, RESIZE, in_memory_gib=0.0, betons=str(tmp_path))
    convert_all(data)
    beton, manifest = load_beton(data.beton_path("train"), data.list_split("train"), data.read_classes(), "train")
    images = BetonImages(beton, manifest.content, 3, SIZE, RESIZE, 1)
    images._streams[BATCH] = lambda: None  # type: ignore[assignment]  # as a compiled loader, it cannot be pickled
    copy = pickle.loads(pickle.dumps(images))
    assert copy._streams == {}
    assert copy.fingerprint() == images.fingerprint()
    assert torch.equal(copy.labels, images.labels)
