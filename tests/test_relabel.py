"""`unidd relabel` and evaluations on stored labels, end to end on the embedded digits."""

from __future__ import annotations

import json
import os
import re
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from refusal import Refused

from unidd_pl.baselines import real_images
from unidd_pl.cli import main
from unidd_pl.data import DigitsData
from unidd_pl.distilled import DistilledSet
from unidd_pl.label_store import LabelStore

CONFIGS = Path(__file__).parent.parent / "configs"
PROTOCOL = ["--protocol", str(CONFIGS / "protocols/sre2l.yaml"), "--protocol.flip", "false", "--protocol.epochs", "3"]
COMMON = ["--config", str(CONFIGS / "eval_digits.yaml"), "--teacher.epochs", "2", "--tracking.enabled", "false"]
SET = ["--distilled", "set/distilled.safetensors"]
RELABEL = ["relabel", *COMMON, *PROTOCOL, *SET]
EVALUATE = ["evaluate", *COMMON, *PROTOCOL, *SET, "--seeds", "1", "--output", "scores.json", "--overwrite", "true"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a set of two real digits of each class and two teachers; tests run in it."""
    folder, before = tmp_path_factory.mktemp("workplace"), Path.cwd()
    os.chdir(folder)
    try:
        data = DigitsData()
        images = real_images(data.train, data.spec, 2, seed=0)
        DistilledSet(images.pixels, images.labels, data.spec, {"method": "real"}).save("set/distilled.safetensors")
        for seed in ("0", "1"):
            main(["pretrain", "--config", str(CONFIGS / "teacher_digits.yaml"), "--teacher.epochs", "2",
                  "--teacher.seed", seed, "--tracking.enabled", "false", "--accelerator", "cpu"])  # fmt: skip
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def teachers(workplace: Path) -> list[str]:
    found = sorted(str(path) for path in Path("runs/cache/teachers").glob("*.safetensors"))
    assert len(found) == 2
    return found


def test_relabel_then_evaluate(workplace: Path, teachers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*RELABEL, "--teacher.checkpoint", teachers[0]])
    printed = capsys.readouterr().out
    assert "3 views of each of 20 images, all logits of 10 classes in float16" in printed
    store = LabelStore("set/distilled.labels.safetensors")
    assert store.path.stat().st_size == store.facts.file_bytes
    main(EVALUATE)  # finds labels and teacher by itself
    printed = capsys.readouterr().out
    assert "Labels: float16, 3 views of each image" in printed
    assert "again and again" not in printed
    assert re.search(r"protocol sre2l, 3 epochs", printed)
    assert re.search(r"^real images +convnet-w64-d2 +1 ", printed, re.MULTILINE)
    scores = json.loads(Path("scores.json").read_text())
    labels = scores["teacher"]["labels"][0]
    assert (labels["dtype"], labels["epochs"], labels["seed"]) == ("float16", 3, 0)
    assert labels["teacher"]["fingerprint"] == scores["teacher"]["fingerprint"]


def test_more_epochs_and_other_batches_than_were_stored(
    workplace: Path, teachers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*RELABEL, "--teacher.checkpoint", teachers[0], "--output", "few.safetensors", "--epochs", "2",
          "--label_type", "int8", "--top_k", "3"])  # fmt: skip
    capsys.readouterr()
    main([*EVALUATE, "--labels", "few.safetensors", "--protocol.epochs", "5", "--protocol.batch_size", "{1: 7}",
          "--protocol.temperature", "4"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "Labels: int8, top 3, 2 views" in printed
    assert "5 epochs go over 2 stored views of each image again and again, up to 3 times" in printed
    assert "beyond the top 3 were kept for T = 20; at T = 4" in printed


def test_workers_give_the_same_scores(workplace: Path, teachers: list[str]) -> None:
    main([*RELABEL, "--teacher.checkpoint", teachers[0], "--output", "workers.safetensors"])
    tables = []
    for workers in ("1", "2"):
        main([*EVALUATE, "--labels", "workers.safetensors", "--workers", workers])
        tables.append(json.loads(Path("scores.json").read_text())["rows"])
    assert tables[0] == tables[1]


def test_several_teachers(workplace: Path, teachers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*RELABEL, "--teachers", *teachers, "--output", "both.safetensors"])
    both = LabelStore("both.safetensors")
    assert both.facts.teacher["network"] == "convnet-w64-d2 + convnet-w64-d2"
    singles = []
    for number, teacher in enumerate(teachers):
        main([*RELABEL, "--teacher.checkpoint", teacher, "--output", f"one{number}.safetensors"])
        singles.append(LabelStore(f"one{number}.safetensors").rows(range(20), 1))
    mean = (singles[0] + singles[1]) / 2
    torch.testing.assert_close(both.rows(range(20), 1), mean - mean.amax(dim=1, keepdim=True), rtol=5e-3, atol=5e-2)
    main([*EVALUATE, "--labels", "both.safetensors", "--teachers", *reversed(teachers)])
    main([*EVALUATE, "--protocol.labels", "online", "--teachers", *teachers])  # online likewise
    assert "mean logits of these 2" in capsys.readouterr().out


def test_dry_run_writes_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*RELABEL, "--dry_run", "true", "--output", "nowhere/dry.safetensors", "--epochs", "1000"])
    predicted = re.search(r"float16: ([\d.]+) kB, 20 bytes a label \(not written", capsys.readouterr().out)
    assert predicted
    assert float(predicted[1]) == pytest.approx((20 * 20 * 1000 + 16 * 1000) / 1000, rel=0.02)
    assert not Path("nowhere").exists()
    Path("there.safetensors").write_bytes(b"there")
    main([*RELABEL, "--dry_run", "true", "--output", "there.safetensors"])
    assert Path("there.safetensors").read_bytes() == b"there"


def test_a_disk_that_cannot_hold_them(workplace: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6 - 500, 500))
    message = refused(*RELABEL, "--output", "full.safetensors")
    assert re.search(r"the labels take [\d.]+ kB, and .* has 500 bytes free: give another --output, keep less", message)


def test_bad_input_ends_with_a_message(workplace: Path, teachers: list[str], refused: Refused) -> None:
    given = ["--teacher.checkpoint", teachers[0]]
    main([*RELABEL, *given, "--output", "good.safetensors", "--overwrite", "true"])
    for arguments, message in (
        ([*RELABEL, *given, "--output", "good.safetensors"], "good.safetensors already exists: replace it with"),
        ([*RELABEL, *given, "--output", "labels.npy"], "expected a name ending in .safetensors"),
        ([*RELABEL, *given, "--top_k", "10", "--output", "a.safetensors"], "top_k: got 10, expected 1 to 9"),
        ([*RELABEL, *given, "--epochs", "0", "--output", "a.safetensors"], "got 20 images and 0 epochs"),
        ([*RELABEL, *given, "--teachers", *teachers, "--output", "a.safetensors"], "expected one of them"),
        ([*RELABEL, "--teachers", teachers[0], "--output", "a.safetensors"], "expected at least two that differ"),
        ([*RELABEL, "--protocol.labels", "hard", "--protocol.cutmix_alpha", "0", "--output", "a.safetensors"],
         "got labels hard and dsa [], expected soft labels"),
        ([*EVALUATE, "--labels", "none.safetensors"], "got no file at none.safetensors, expected soft labels"),
        ([*EVALUATE, "--labels", "set/distilled.safetensors"], "without the tag 'unidd_pl.soft_labels'"),
        ([*EVALUATE, "--labels", "good.safetensors", "--protocol.labels", "online"], "expected labels stored: take"),
        ([*EVALUATE, "--labels", "good.safetensors", "--protocol.crop_scale", "[0.5,1.0]"], "do not fit; augmentation"),
        ([*EVALUATE, "--labels", "good.safetensors", "--teacher.checkpoint", teachers[1]], "expected the same: give"),
    ):  # fmt: skip
        assert message in refused(*arguments), arguments


def test_a_missing_store_names_the_command(workplace: Path, refused: Refused) -> None:
    DistilledSet.load("set/distilled.safetensors").save("bare/distilled.safetensors")
    message = refused(*EVALUATE, "--distilled", "bare/distilled.safetensors")
    assert "protocol sre2l trains on stored labels: got none for bare/distilled.safetensors" in message
    assert "`unidd relabel --config … --protocol … --distilled bare/distilled.safetensors`" in message


def test_a_set_made_elsewhere_is_labelled_and_evaluated(
    workplace: Path, teachers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", "--distilled", "set/distilled.safetensors", "--output", "pictures"])
    pictures = ["--distilled", "pictures"]
    main([*RELABEL, *pictures, "--teacher.checkpoint", teachers[0], "--teacher.check", "false"])
    assert Path("pictures.labels.safetensors").is_file()
    main([*EVALUATE, *pictures, "--teacher.check", "false"])
    assert "from pictures.labels.safetensors" in capsys.readouterr().out


def test_a_tuning_has_no_stored_labels(workplace: Path, refused: Refused) -> None:
    message = refused("tune", "--config", str(CONFIGS / "cfm_digits.yaml"), *COMMON, *PROTOCOL, "--eta", "0.1", "1")
    assert "got labels stored, expected online or hard" in message


def test_the_shipped_protocol_is_complete() -> None:
    """SPEC.md section 4."""
    shipped = yaml.safe_load((CONFIGS / "protocols/sre2l.yaml").read_text())
    assert (shipped["labels"], shipped["epochs"], shipped["temperature"]) == ("stored", 300, 20)
    assert (shipped["batch_size"], shipped["half_period"], shipped["crop_scale"]) == ({1: 128}, 2.0, [0.08, 1.0])
    assert (shipped["optimizer"], shipped["lr"], shipped["weight_decay"], shipped["flip"]) == (
        "adamw",
        1e-3,
        0.01,
        True,
    )
