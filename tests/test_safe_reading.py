"""What fuzzing found in files of strangers: each is refused with a message, and nothing of it is run."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import EpsImagePlugin, Image

from unidd_pl.command_options import evaluation_parser, parsed
from unidd_pl.data import ImageFolderData, TorchvisionData
from unidd_pl.data.annotated import check_all_classes
from unidd_pl.data.images import open_picture
from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange import SetDescription, read_set
from unidd_pl.exchange.layouts import export_set
from unidd_pl.exchange.parquet_pages import unpacked_bytes
from unidd_pl.export import _scores
from unidd_pl.grouping import rows_of_sets
from unidd_pl.tracking.journal import DamagedRecordError, Journal, Start


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch {self.path}",)


@pytest.fixture
def distilled(folder_data: ImageFolderData) -> DistilledSet:
    images = torch.zeros(3, *folder_data.spec.image_shape, dtype=torch.uint8)
    return DistilledSet(images, torch.arange(3), folder_data.spec, {})


def test_a_picture_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    shutil.move(tmp_path / "a.eps", tmp_path / "a.png")
    started = []
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "/bin/true")  # Ghostscript, as if it were installed
    monkeypatch.setattr(subprocess, "check_call", lambda *command, **_: started.append(command))
    monkeypatch.setattr(subprocess, "Popen", lambda *command, **_: started.append(command))
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.png \(cannot identify image file"):
        open_picture(tmp_path / "a.png")
    assert not started


def test_a_parquet_file_of_one_picture_a_million_times(
    distilled: DistilledSet, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    export_set(distilled, tmp_path / "set", "parquet")
    (file,) = (tmp_path / "set").glob("*.parquet")
    picture = pq.read_table(file).column("image")[0].as_py()["bytes"]
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array([picture]))
    pq.write_table(pa.table({"image": images, "label": np.zeros(10**6, np.int64)}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"got 1000000 rows of \d+ bytes in a file of \d+, .* whose pictures differ"):
        read_set(tmp_path / "a.parquet", folder_data.spec, SetDescription(classes="data"))


def test_a_parquet_file_of_zeros_that_are_compressed(folder_data: ImageFolderData, tmp_path: Path) -> None:
    table = pa.table({"image": [bytes(10**7)], "label": [0]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(ValueError, match=r"got 1 rows of \d+ bytes in a file of \d+"):
        read_set(tmp_path / "a.parquet", folder_data.spec, SetDescription(classes="data"))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_the_pages_of_a_parquet_file_say_what_its_footer_says(version: str, compression: str, tmp_path: Path) -> None:
    table = pa.table({"image": [bytes([one]) * 500 for one in range(200)], "label": list(range(200))})
    options: Any = {"compression": compression, "data_page_version": version, "data_page_size": 4000}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70, **options)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    chunks = [metadata.row_group(group).column(one) for group in range(3) for one in range(2)]
    footer = sum(chunk.total_uncompressed_size for chunk in chunks)  # with the heads of the pages
    assert 0.9 * footer < unpacked_bytes(tmp_path / "a.parquet") < footer


def footer(column: str) -> bytes:
    """Return the end of a parquet file of one group of one column, from the fields that describe the column."""
    structure = bytes.fromhex("491c191c3c" + column + "00000000")
    return structure + len(structure).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("150015feffffff0f150800", None),  # 2 GiB less one byte, packed into four
        ("15001501150800", "a page of 4 bytes at byte 0 that unpacks to -1"),
        ("15001508158008 00", "a page of 512 bytes at byte 0"),
        ("1c" * 13, "structures deeper than 12"),
        ("16ffffffffffffffffffff00", "a number of more than 64 bits"),
        ("18ffffff7f00", "beyond the file"),
        ("19f1ffffffff7f00", "beyond the file"),
        ("19f7ffffffff7f00", "beyond the file"),
        ("1e00", "of the unknown type 14"),
    ],
)
def test_a_parquet_page_that_lies(head: str, message: str | None, tmp_path: Path) -> None:
    pages = bytes.fromhex(head) + bytes(4)
    (tmp_path / "a").write_bytes(pages + footer(f"76{2 * len(pages):02x}2600"))  # their bytes, and where they begin
    if message is None:
        assert unpacked_bytes(tmp_path / "a") == 2**31 - 1
        return
    with pytest.raises(ValueError, match=message):
        unpacked_bytes(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1", "no footer at the end"),
        (bytes(20), "no footer at the end"),
        (b"\xff\xff\xff\x7fPAR1", "before the beginning of the file"),
        (footer("00"), "a column whose field 9 is no number"),
        (footer("760426010000"), "pages from byte -1 to 1"),
        (bytes.fromhex("0001000000") + b"PAR1", "field 4 is no list of structures"),
    ],
)
def test_a_parquet_footer_that_lies(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        unpacked_bytes(tmp_path / "a")


def test_a_card_of_pictures_that_are_not_there(
    distilled: DistilledSet, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    card = export_set(distilled, tmp_path / "set", "png")
    (tmp_path / "set/card.json").write_text(json.dumps({**card, "images": "elsewhere"}))
    with pytest.raises(ValueError, match=r"its card names the pictures in 'elsewhere', which is no folder of it"):
        read_set(tmp_path / "set", folder_data.spec)


def test_a_card_leads_nowhere_else(distilled: DistilledSet, folder_data: ImageFolderData, tmp_path: Path) -> None:
    card = export_set(distilled, tmp_path / "set", "png")
    for images in ("/", "../.."):
        (tmp_path / "set/card.json").write_text(json.dumps({**card, "images": images}))
        with pytest.raises(ValueError, match=r"damaged card .*outside of the export"):
            read_set(tmp_path / "set", folder_data.spec)


def test_a_damaged_card_is_not_passed_over(
    distilled: DistilledSet, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    export_set(distilled, tmp_path / "set", "png")
    (tmp_path / "set/card.json").write_text("{")
    with pytest.raises(ValueError, match=r"card\.json: got no proper JSON .*copy the export again, or remove the card"):
        read_set(tmp_path / "set", folder_data.spec)


@pytest.mark.parametrize("figure", [{"mean": 0.5}, {"mean": "x", "std": None}, {"mean": 0.5, "std": []}, 1])
def test_an_evaluation_without_figures(figure: Any, distilled: DistilledSet, tmp_path: Path) -> None:
    row = {"network": "resnet18", "n": 1, "tail_mean": figure, "last_epoch": {"mean": 0.5, "std": None}}
    rows = [{**row, "distilled_set": distilled.fingerprint()}]
    (tmp_path / "a.json").write_text(json.dumps({"protocol": {"name": "hard", "epochs": 5}, "rows": rows}))
    with pytest.raises(ValueError, match="cannot read the evaluation"):
        _scores(distilled, tmp_path / "set", str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "entry",
    [
        {"artifact": ["/etc/passwd", ""]}, {"artifact": ["files/../../../secret", ""]}, {"artifact": ["files", ""]},
        {"metrics": [["loss", "x", 0, 0]]}, {"metrics": [["loss", 1.0, 2**70, 0]]}, {"metrics": 3}, {"end": "x"},
        {"params": {"lr": 1}}, {"input": {"name": "x"}}, {"tag": ["a"]}, {"reopen": None}, {"start": {}},
    ],
)  # fmt: skip
def test_a_journal_uploads_its_own_files_alone(entry: dict[str, Any], tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, Start("uri", "unidd", "run", {}))
    journal.append(entry)
    with pytest.raises(DamagedRecordError, match=r"a damaged line at byte .*what belongs to it"):
        list(journal.entries(0))
    journal.unlock()


@pytest.mark.parametrize("sent", ['{"run_id": 1, "offset": 0}', '{"run_id": "a", "offset": "x"}', "[" * 10**5])
def test_what_was_said_to_be_sent_is_sent_again(sent: str, tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, Start("uri", "unidd", "run", {}))
    (journal.folder / "sent.json").write_text(sent)
    assert journal.sent == (None, 0)
    journal.unlock()


def test_class_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "wnids.txt").write_bytes(b"n1\n\xff\n")
    with pytest.raises(ValueError, match=r"wnids\.txt: got what is no text .*; unpack the archive anew"):
        check_all_classes(tmp_path, ["n1"])


def test_a_config_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"data: \xff\n")
    with pytest.raises(ValueError, match=r"a file that the options --config .*a\.yaml name is no text"):
        parsed(evaluation_parser(), ["--config", str(tmp_path / "a.yaml")])


def test_other_digits_than_torchvisions(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"cannot get MNIST at .*expected torchvision's files there"):
        TorchvisionData("MNIST", str(tmp_path), download=False).read_split("train")


def test_a_pickle_in_place_of_cifars_is_not_loaded(tmp_path: Path) -> None:
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (batches / name).write_bytes(pickle.dumps(Touch(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"cannot get CIFAR10 at .*corrupted"):
        TorchvisionData("CIFAR10", str(tmp_path), download=False).read_split("train")
    assert not (tmp_path / "run").exists()


def test_a_set_whose_config_has_names_of_all_kinds(distilled: DistilledSet, tmp_path: Path) -> None:
    config = "{1: a, b: c, model: {init_args: {seed: 1}}}"
    one = DistilledSet(distilled.images, distilled.labels, distilled.spec, {"config": config, "method": "cfm"})
    assert list(rows_of_sets([tmp_path / "a.safetensors"], [one], "config")) == ["cfm"]
