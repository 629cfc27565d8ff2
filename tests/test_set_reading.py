"""Sets made elsewhere: every form gives one and the same `DistilledSet`, and every mix-up a message."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange import SetDescription, read_set
from unidd_pl.exchange.assembling import encode
from unidd_pl.specs import DatasetSpec

CLASSES = ("cat", "sea lion", "T-shirt")  # not in alphabetical order once case is folded away
SPEC = DatasetSpec("toy", CLASSES, 3, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
IMAGES = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
GREY = DatasetSpec("grey", ("a", "b"), 1, 8, (0.5,), (0.5,))


def write_pictures(root: Path, names: tuple[str, ...], suffix: str = "png") -> Path:
    """Write IMAGES into the folders of these names, in label order."""
    for position, (pixels, label) in enumerate(zip(IMAGES, LABELS.tolist(), strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{position}.{suffix}").write_bytes(encode(pixels))
    return root


def by_class(images: Tensor, labels: Tensor) -> dict[int, set[bytes]]:
    """Return the images of each class, whatever their order."""
    return {label: {one.numpy().tobytes() for one in images[labels == label]} for label in range(3)}


def assert_same_contents(read: DistilledSet) -> None:
    assert by_class(read.images, read.labels) == by_class(IMAGES, LABELS)
    assert read.spec == SPEC


class TestFolders:
    @pytest.mark.parametrize(
        ("names", "rule"),
        [
            (("cat", "sea lion", "T-shirt"), "by name"),
            (("Cat", "sea_lion", "t_shirt"), "by name"),
            (("00000", "00001", "00002"), "by index in the data's order"),
            (("0_cat", "1_sea_lion", "2_T-shirt"), "by number and name"),
        ],
    )
    def test_class_folders(
        self, tmp_path: Path, names: tuple[str, ...], rule: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        read = read_set(write_pictures(tmp_path / "rded", names), SPEC)
        assert_same_contents(read)
        assert read.manifest["method"] == "rded"
        assert read.manifest["source"]["classes"] == rule
        assert f"6 images, folder; classes {rule}" in capsys.readouterr().out

    def test_numbers_are_read_as_numbers(self, tmp_path: Path) -> None:
        """ImageFolder sorts 0, 1, 10, 11, 2: the field's classic."""
        spec = DatasetSpec("twelve", tuple(f"class {i}" for i in range(12)), 1, 8, (0.5,), (0.5,))
        for label in range(12):
            (tmp_path / str(label)).mkdir()
            (tmp_path / str(label) / "x.png").write_bytes(encode(torch.full((1, 8, 8), label, dtype=torch.uint8)))
        read = read_set(tmp_path, spec)
        assert torch.equal(read.images[:, 0, 0, 0].long(), read.labels)

    def test_wordnet_ids(self, tmp_path: Path) -> None:
        wnids = ("n02123045", "n02077923", "n03595614")
        ids = DatasetSpec("toy", wnids, 3, 8, SPEC.mean, SPEC.std)
        folder = write_pictures(tmp_path / "sre2l", wnids)
        assert by_class(*_contents(read_set(folder, ids))) == by_class(IMAGES, LABELS)
        with pytest.raises(ValueError, match=r"n02077923.*expected those of toy.*--set.classes"):
            read_set(folder, SPEC)
        named = SetDescription(classes=dict(zip(wnids, CLASSES, strict=True)))
        read = read_set(folder, SPEC, named)
        assert_same_contents(read)
        assert read.manifest["source"]["classes"] == "as --set.classes says, by name"

    def test_list_names_the_numbers(self, tmp_path: Path) -> None:
        folder = write_pictures(tmp_path / "x", ("2", "0", "1"))  # made with another class order
        read = read_set(folder, SPEC, SetDescription(classes=["sea lion", "T-shirt", "cat"]))
        assert_same_contents(read)

    def test_jpeg_and_grey_pictures(self, tmp_path: Path) -> None:
        folder = write_pictures(tmp_path / "x", CLASSES)
        Image.new("L", (8, 8), 7).save(folder / "cat/grey.jpg")
        read = read_set(folder, SPEC)
        assert (len(read), read.ipc) == (7, 2)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("cat", "dog", "T-shirt"), "got the class names dog, expected those of toy"),
            (("cat", "sea lion", "sea_lion"), "got the classes 'sea lion' and 'sea_lion' for 'sea lion'"),
            (("0_sea lion", "1_cat", "2_T-shirt"), "got the class names 0_sea lion"),  # number against name
            (("00001", "00002", "00003"), "got the class names 00001"),  # counted from 1
        ],
    )
    def test_names_that_do_not_fit(self, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_set(write_pictures(tmp_path / "x", names), SPEC)

    def test_wrong_mappings(self, tmp_path: Path) -> None:
        folder = write_pictures(tmp_path / "x", CLASSES)
        with pytest.raises(ValueError, match="names hat, which the set does not have"):
            read_set(folder, SPEC, SetDescription(classes={"hat": "cat"}))
        with pytest.raises(ValueError, match=r"list in --set\.classes and the folders"):
            read_set(folder, SPEC, SetDescription(classes=list(CLASSES)))

    def test_missing_and_empty_class(self, tmp_path: Path) -> None:
        folder = write_pictures(tmp_path / "x", CLASSES)
        for file in (folder / "cat").iterdir():
            file.unlink()
        with pytest.raises(ValueError, match="no image of the class cat"):
            read_set(folder, SPEC)
        (folder / "cat").rmdir()
        with pytest.raises(ValueError, match="got 2 classes, expected the 3 of toy: cat missing"):
            read_set(folder, SPEC)

    def test_truncated_and_foreign_pictures(self, tmp_path: Path) -> None:
        folder = write_pictures(tmp_path / "x", CLASSES)
        victim = next((folder / "cat").iterdir())
        whole = victim.read_bytes()
        for damaged in (whole[:-30], whole[:20], b"", b"text"):
            victim.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{victim}: cannot read the picture .*copy it again"):
                read_set(folder, SPEC)

    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (Image.new("RGB", (9, 8)), "got 9×8 pixels, expected 8×8 as toy has"),
            (Image.new("RGBA", (8, 8)), "mode RGBA .4 channels., expected 3"),
        ],
    )
    def test_pictures_of_another_form(self, tmp_path: Path, picture: Image.Image, message: str) -> None:
        folder = write_pictures(tmp_path / "x", CLASSES)
        picture.save(folder / "cat/other.png")
        with pytest.raises(ValueError, match=message):
            read_set(folder, SPEC)

    def test_colour_where_grey_is_expected(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"mode RGB .3 channels., expected 1 channel"):
            read_set(write_pictures(tmp_path / "x", ("a", "b", "b")), GREY)

    def test_a_folder_too_high(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "x" / "train", CLASSES)
        with pytest.raises(ValueError, match=rf"expected the class folders: give {tmp_path}/x/train"):
            read_set(tmp_path / "x", SPEC)
        with pytest.raises(ValueError, match="without class folders"):
            read_set(tmp_path / "x" / "train" / "cat", SPEC)
        with pytest.raises(ValueError, match="got no file at"):
            read_set(tmp_path / "y", SPEC)


def _contents(distilled: DistilledSet) -> tuple[Tensor, Tensor]:
    return distilled.images, distilled.labels


Writer = Callable[[Path, Any, Any], None]
WRITERS: dict[str, Writer] = {
    "dict.pt": lambda path, images, labels: torch.save({"images": images, "labels": labels}, path),
    "pair.pth": lambda path, images, labels: torch.save([images, labels], path),
    # DC and DM:
    "dc.pt": lambda path, images, labels: torch.save({"data": [[images, labels]], "accs_all_exps": {"x": [1.0]}}, path),
    "old.pt": lambda path, images, labels: torch.save((images, labels), path, _use_new_zipfile_serialization=False),
    "arrays.npz": lambda path, images, labels: np.savez_compressed(path, x=images.numpy(), y=labels.numpy()),
    "plain.safetensors": lambda path, images, labels: save_file({"images": images, "labels": labels}, path),
}


class TestTensors:
    @pytest.fixture(params=WRITERS)
    def writer(self, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
        def write(images: Tensor = IMAGES, labels: Tensor = LABELS) -> Path:
            path = tmp_path / request.param
            WRITERS[request.param](path, images, labels)
            return path

        return write

    def test_uint8_pixels_are_kept_exactly(self, writer: Callable[..., Path]) -> None:
        read = read_set(writer(), SPEC, SetDescription(classes="data", name="mine"))
        assert torch.equal(read.images, IMAGES)
        assert torch.equal(read.labels, LABELS)
        assert read.manifest["method"] == "mine"

    def test_class_order_has_to_be_said(self, writer: Callable[..., Path]) -> None:
        path = writer()
        with pytest.raises(ValueError, match=r"no class names.*--set\.classes data where they follow toy's order"):
            read_set(path, SPEC)
        read = read_set(path, SPEC, SetDescription(classes=["T-shirt", "cat", "sea lion"]))
        assert torch.equal(read.labels, torch.tensor([2, 0, 1])[LABELS])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (LABELS + 1, "labels from 1 to 3, expected 0 to 2 for 3 classes"),
            (LABELS - 1, "labels from -1 to 1"),
            (LABELS[:5], "got 5 labels, expected 6"),
            (torch.eye(6), "soft ones"),
            (LABELS + 0.5, "no whole numbers"),
            (LABELS % 2, "no image of the class T-shirt"),
        ],
    )
    def test_bad_labels(self, tmp_path: Path, labels: Tensor, message: str) -> None:
        torch.save([IMAGES, labels], tmp_path / "x.pt")
        with pytest.raises(ValueError, match=message):
            read_set(tmp_path / "x.pt", SPEC, SetDescription(classes="data"))

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (torch.zeros(6, 3, 9, 9), "with 8×8 pixels, as toy has"),
            (torch.zeros(6, 1, 8, 8), r"with 3 channel\(s\), as toy has"),
            (torch.zeros(6, 192), "got images of shape"),
            (torch.zeros(0, 3, 8, 8), "got images of shape"),
            (torch.zeros(6, 3, 8, 8, dtype=torch.bool), "got torch.bool images"),
            (torch.full((6, 3, 8, 8), 300), "pixels from 300 to 300, expected 0 to 255"),
            (torch.full((6, 3, 8, 8), torch.nan), "NaN or infinite pixels"),
            (torch.full((6, 3, 8, 8), torch.inf), "NaN or infinite pixels"),
            # one number that stands for a terabyte
            (torch.zeros(1).expand(10**10, 3, 8, 8), "expected a set below 64 GiB"),
        ],
    )
    def test_bad_images(self, tmp_path: Path, images: Tensor, message: str) -> None:
        torch.save({"images": images, "labels": LABELS}, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=message):
            read_set(tmp_path / "x.pt", SPEC, SetDescription(classes="data", pixels="0-1"))

    def test_channels_last(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=IMAGES.permute(0, 2, 3, 1).numpy(), labels=LABELS.numpy())
        assert torch.equal(read_set(tmp_path / "x.npz", SPEC, SetDescription(classes="data")).images, IMAGES)

    def test_grey_images_without_a_channel_axis(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=IMAGES[:, 0].numpy(), labels=LABELS.numpy() % 2)
        assert torch.equal(read_set(tmp_path / "x.npz", GREY, SetDescription(classes="data")).images, IMAGES[:, :1])

    def test_names_in_the_file(self, tmp_path: Path) -> None:
        names = ["T-shirt", "cat", "sea lion"]
        torch.save({"images": IMAGES, "labels": LABELS, "classes": names}, tmp_path / "x.pt")
        read = read_set(tmp_path / "x.pt", SPEC)
        assert torch.equal(read.labels, torch.tensor([2, 0, 1])[LABELS])

    def test_labels_in_a_file_of_their_own(self, tmp_path: Path) -> None:
        """As MTT and DATM save them."""
        np.save(tmp_path / "images_best.npy", IMAGES.numpy())
        torch.save(LABELS, tmp_path / "labels_best.pt")
        with pytest.raises(ValueError, match="images without labels"):
            read_set(tmp_path / "images_best.npy", SPEC)
        about = {"labels": "labels_best.pt", "classes": list(CLASSES), "name": "mtt"}
        (tmp_path / "images_best.npy.yaml").write_text(yaml.safe_dump(about))
        read = read_set(tmp_path / "images_best.npy", SPEC, SetDescription(name="not this"))
        assert torch.equal(read.images, IMAGES)
        assert torch.equal(read.labels, LABELS)
        assert read.manifest["method"] == "mtt"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_normalised_pixels(self, tmp_path: Path, dtype: torch.dtype) -> None:
        mean, std = (0.1, 0.2, 0.3), (0.3, 0.3, 0.4)
        own = DatasetSpec("toy", CLASSES, 3, 8, mean, std)
        torch.save([own.normalise(IMAGES.to(dtype) / 255), LABELS], tmp_path / "x.pt")
        read = read_set(tmp_path / "x.pt", SPEC, SetDescription(classes="data", mean=mean, std=std))
        assert read.images.dtype == torch.float32
        torch.testing.assert_close(read.images, IMAGES / 255)
        assert read.spec == SPEC  # students see it as they see the data

    @pytest.mark.parametrize(("pixels", "scale"), [("0-1", 1), ("0-255", 255), ("normalised", None)])
    def test_float_pixels(self, tmp_path: Path, pixels: Any, scale: float | None) -> None:
        unit = IMAGES / 255
        torch.save([SPEC.normalise(unit) if scale is None else unit * scale, LABELS], tmp_path / "x.pt")
        read = read_set(tmp_path / "x.pt", SPEC, SetDescription(classes="data", pixels=pixels))
        torch.testing.assert_close(read.images, unit)

    @pytest.mark.parametrize(
        ("images", "options", "message"),
        [
            (SPEC.normalise(IMAGES), {}, r"without their normalisation, expected to know it: say --set.pixels 0-1"),
            (SPEC.normalise(IMAGES), {"pixels": "0-1"}, r"brought to \[0, 1\] from --set.pixels 0-1"),
            (IMAGES / 255, {"pixels": "normalised"}, "these look like pixels in 0-1"),
            (IMAGES / 255, {"pixels": "0-255"}, "these look like pixels in 0-1"),
            (IMAGES.float(), {"pixels": "0-1"}, "beyond"),
            (SPEC.normalise(IMAGES), {"mean": [0.1, 0.1, 0.1], "std": [1, 1, 1]}, "beyond.*--set.clip true"),
            (IMAGES, {"pixels": "normalised"}, "expected 0 to 255 and no normalisation"),
        ],
    )
    def test_pixels_that_contradict_their_normalisation(
        self, tmp_path: Path, images: Tensor, options: dict[str, Any], message: str
    ) -> None:
        torch.save([images, LABELS], tmp_path / "x.pt")
        with pytest.raises(ValueError, match=message):
            read_set(tmp_path / "x.pt", SPEC, SetDescription(classes="data", **options))

    def test_clipping_on_request(self, tmp_path: Path) -> None:
        torch.save([IMAGES / 200, LABELS], tmp_path / "x.pt")
        read = read_set(tmp_path / "x.pt", SPEC, SetDescription(classes="data", pixels="0-1", clip=True))
        assert float(read.images.max()) == 1.0

    def test_nothing_is_executed(self, tmp_path: Path) -> None:
        mark = tmp_path / "executed"
        hostile = Hostile(str(mark))
        (tmp_path / "x.pt").write_bytes(pickle.dumps({"images": hostile}, protocol=2))
        torch.save({"images": hostile}, tmp_path / "y.pt")
        np.save(tmp_path / "x.npy", np.array([hostile], dtype=object), allow_pickle=True)
        np.savez(tmp_path / "x.npz", images=np.array([hostile], dtype=object))
        for name in ("x.pt", "y.pt", "x.npy", "x.npz"):
            with pytest.raises(ValueError, match=f"{name}: cannot read it"):
                read_set(tmp_path / name, SPEC)
        assert not mark.exists()

    @pytest.mark.parametrize("keep", [0, 10, 200, -40])
    @pytest.mark.parametrize("name", ["dict.pt", "arrays.npz", "array.npy"])
    def test_truncated_files(self, tmp_path: Path, name: str, keep: int) -> None:
        path = tmp_path / name
        if name == "array.npy":
            np.save(path, IMAGES.numpy())
        else:
            WRITERS[name](path, IMAGES, LABELS)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ValueError, match=f"{name}: cannot read it"):
            read_set(path, SPEC, SetDescription(classes="data"))

    def test_an_array_that_claims_more_than_it_has(self, tmp_path: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 3, 8, 8)}
        )
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("images.npy", header.getvalue() + b"few")
        (tmp_path / "x.npy").write_bytes(header.getvalue() + b"few")
        for name in ("x.npz", "x.npy"):
            with pytest.raises(ValueError, match=name):
                read_set(tmp_path / name, SPEC, SetDescription(classes="data"))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"net.weight": torch.zeros(3)}, "got NoneType where images"),
            ([IMAGES, LABELS, LABELS], "got 3 sets or tensors"),
            ({"images": "x"}, "got str where images"),
        ],
    )
    def test_other_contents(self, tmp_path: Path, content: Any, message: str) -> None:
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=message):
            read_set(tmp_path / "x.pt", SPEC)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.mark, "w"))


class TestParquet:
    @staticmethod
    def write(path: Path, label: str = "label", names: list[str] | None = None, rows: slice = slice(None)) -> Path:
        images = [{"bytes": encode(pixels), "path": None} for pixels in IMAGES[rows]]
        table = pa.table({"image": images, label: LABELS[rows].tolist()})
        if names:
            features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        path.parent.mkdir(exist_ok=True, parents=True)
        pq.write_table(table, path)
        return path

    def test_class_names_of_the_file(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.parquet", names=["sea lion", "cat", "T-shirt"])
        read = read_set(path, SPEC)
        assert torch.equal(read.images, IMAGES)
        assert torch.equal(read.labels, torch.tensor([1, 0, 2])[LABELS])

    def test_shards_of_the_training_split(self, tmp_path: Path) -> None:
        """RethinkDC's sets on the Hub: no names, a column class_id."""
        self.write(tmp_path / "data/train-00000-of-00002.parquet", "class_id", rows=slice(0, 4))
        self.write(tmp_path / "data/train-00001-of-00002.parquet", "class_id", rows=slice(4, 6))
        self.write(tmp_path / "data/test-00000-of-00001.parquet", "class_id")
        with pytest.raises(ValueError, match="no class names"):
            read_set(tmp_path, SPEC)
        read = read_set(tmp_path, SPEC, SetDescription(classes="data"))
        assert torch.equal(read.images, IMAGES)
        assert torch.equal(read.labels, LABELS)

    def test_bad_files(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.parquet", "kind")
        with pytest.raises(ValueError, match="got the columns image, kind, expected one of image"):
            read_set(path, SPEC)
        whole = self.write(tmp_path / "x.parquet").read_bytes()
        for damaged in (whole[:-20], whole[:9], b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"x.parquet: cannot read it .*copy it again"):
                read_set(path, SPEC)
        pq.write_table(pa.table({"image": [{"bytes": None, "path": "a.png"}], "label": [0]}), path)
        with pytest.raises(ValueError, match="image without its bytes"):
            read_set(path, SPEC)
        pq.write_table(pa.table({"image": [encode(IMAGES[0])], "label": ["cat"]}), path)
        with pytest.raises(ValueError, match="row 0: got the label 'cat', expected a whole number"):
            read_set(path, SPEC)


class TestTars:
    @staticmethod
    def write(path: Path, *, named: bool = True, order: tuple[str, ...] = CLASSES) -> Path:
        with tarfile.open(path, "w") as tar:
            for position, (pixels, label) in enumerate(zip(IMAGES, LABELS.tolist(), strict=True)):
                members = {"png": encode(pixels), "cls": str(label).encode()}
                if named:
                    members["json"] = json.dumps({"class": order[label]}).encode()
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"set/{position:03d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return path

    def test_names_in_the_samples(self, tmp_path: Path) -> None:
        read = read_set(self.write(tmp_path / "x.tar", order=("T-shirt", "cat", "sea lion")), SPEC)
        assert torch.equal(read.images, IMAGES)
        assert torch.equal(read.labels, torch.tensor([2, 0, 1])[LABELS])

    def test_numbers_only(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.tar", named=False)
        with pytest.raises(ValueError, match="no class names"):
            read_set(path, SPEC)
        assert torch.equal(read_set(path, SPEC, SetDescription(classes="data")).labels, LABELS)

    def test_bad_files(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.tar", order=("cat", "cat", "cat"))
        with pytest.raises(ValueError, match="got the classes 'cat' and 'cat'"):
            read_set(path, SPEC)
        path.write_bytes(self.write(tmp_path / "x.tar").read_bytes()[:900])
        with pytest.raises(ValueError, match=r"x\.tar"):
            read_set(path, SPEC)


class TestDescription:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pixels": "0-100"}, "set.pixels: got '0-100'"),
            ({"mean": [0.5]}, "only one of them"),
            ({"mean": [0.5], "std": [0.2], "pixels": "0-1"}, "got 0-1 with a mean"),
            ({"classes": "cat"}, "expected a list of names"),
        ],
    )
    def test_contradictions(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SetDescription(**options)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("class: data", r"got \['class'\], expected some of the keys name, labels"),
            ("{", "cannot read"),
            ("5", "int"),
        ],
    )
    def test_bad_file(self, tmp_path: Path, text: str, message: str) -> None:
        torch.save([IMAGES, LABELS], tmp_path / "x.pt")
        (tmp_path / "x.pt.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_set(tmp_path / "x.pt", SPEC)
