"""Tiny-ImageNet's own layout, on a miniature of it: images, labels and each way in which it can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unidd_pl.cli import main
from unidd_pl.data import ImageFolderData
from unidd_pl.data.conversion import load_beton

CLASSES = ("n01443537", "n01629819", "n01641577")
NUMBERS = {"val_0.JPEG": 2, "val_1.JPEG": 0, "val_10.JPEG": 1, "val_2.JPEG": 0, "val_3.JPEG": 1, "val_4.JPEG": 2}


def write_image(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), grey, dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """tiny-imagenet-200 as it is unpacked, of three classes; the grey level of an image says its class."""
    root = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(CLASSES):
        for index in range(2):
            write_image(root / f"train/{wnid}/images/{wnid}_{index}.JPEG", 80 * label)
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t10\t10\n")
    for name, label in NUMBERS.items():
        write_image(root / "val/images" / name, 80 * label)
    lines = [f"{name}\t{CLASSES[label]}\t0\t32\t44\t62\n" for name, label in NUMBERS.items()]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    write_image(root / "test/images/test_0.JPEG", 9)
    (root / "wnids.txt").write_text("\n".join(reversed(CLASSES)) + "\n")  # as there, in no order
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    return root


def test_both_splits_are_read_as_they_are_unpacked(root: Path) -> None:
    data = ImageFolderData(str(root))
    assert data.spec.classes == CLASSES
    assert data.spec.image_shape == (3, 64, 64)
    for images, count in ((data.train, 2), (data.test, 2)):
        assert images.labels.tolist() == [label for label in range(3) for _ in range(count)]
        assert (images.read(range(len(images)))[:, 0, 0, 0] - 80 * images.labels).abs().max() <= 2
    files = data.list_split("test")
    assert [path.name for path in files.paths[:2]] == ["val_1.JPEG", "val_2.JPEG"]


def test_some_classes(root: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text(f"{CLASSES[2]}\n{CLASSES[0]}\n")
    data = ImageFolderData(str(root), classes=str(tmp_path / "two.txt"))
    assert data.spec.classes == (CLASSES[0], CLASSES[2])
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert [path.name for path in data.list_split("test").paths] == [
        "val_1.JPEG", "val_2.JPEG", "val_0.JPEG", "val_4.JPEG",
    ]  # fmt: skip


def test_convert(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parent.parent / "configs/cfm_tiny_imagenet.yaml"
    main(["convert", "--config", str(config), "--data.init_args.root", str(root)])
    data = ImageFolderData(str(root), 64, name="tiny-imagenet")
    beton, manifest = load_beton(data.beton_path("test"), data.list_split("test"), CLASSES, "test")
    assert manifest.counts == [2, 2, 2]
    assert beton.samples["f1"].tolist() == [0, 0, 1, 1, 2, 2]


def test_class_folders_made_of_the_validation_split(root: Path) -> None:
    """As a script of the field leaves it: the images in folders, the annotations still there."""
    for name, label in NUMBERS.items():
        (root / "val" / CLASSES[label] / "images").mkdir(parents=True, exist_ok=True)
        (root / "val/images" / name).rename(root / "val" / CLASSES[label] / "images" / name)
    (root / "val/images").rmdir()
    (root / "test/images/test_0.JPEG").unlink()
    (root / "test/images").rmdir()
    (root / "test").rmdir()
    assert ImageFolderData(str(root)).test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def lines_of(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "val/val_annotations.txt"
        path.write_text("\n".join(change(path.read_text().splitlines())))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lines_of(lambda lines: lines[1:]), r"got 1 images without an annotation: val_0\.JPEG; expected none"),
        (lambda root: (root / "val/images/val_3.JPEG").unlink(), r"1 annotations of images that are not there: val_3"),
        (lines_of(lambda lines: ["val_0.JPEG\tn09\t0\t0\t1\t1", *lines[1:]]), "1 annotations of unknown classes: n09;"),
        (lines_of(lambda lines: ["val_0.JPEG", *lines[1:]]), r"line 1: got 'val_0\.JPEG', expected a file and"),
        (lines_of(lambda lines: [*lines, lines[0]]), r"line 7: got an image a second time"),
        (
            lines_of(lambda lines: [line.replace(CLASSES[1], CLASSES[0]) for line in lines]),
            "got 1 classes without an image: n01629819",
        ),
        (
            lambda root: (root / "wnids.txt").write_text(f"{CLASSES[0]}\nn02\n"),
            r"other classes than .*wnids\.txt names: missing \['n02'\]",
        ),
    ],
    ids=["annotation missing", "image missing", "unknown WNID", "half a line", "twice", "class missing", "wnids.txt"],
)  # fmt: skip
def test_what_is_wrong_is_said(root: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(root)
    with pytest.raises(ValueError, match=message):
        ImageFolderData(str(root)).list_split("test")
