"""`unidd convert` end to end, without FFCV; and a run that streams through it, with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from beton_files import photographs

from unidd_pl.cli import main
from unidd_pl.convert import convert
from unidd_pl.data import DigitsData

CONFIGS = Path(__file__).parent.parent / "configs"
DATA = ["--data.init_args.image_size", "32", "--data.init_args.resize", "36"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return photographs(tmp_path / "photographs")


def arguments(root: Path, config: str = "cfm_folder") -> list[str]:
    return ["--config", str(CONFIGS / f"{config}.yaml"), "--data.init_args.root", str(root), *DATA]


@pytest.mark.parametrize("config", ["cfm_folder", "teacher_folder", "eval_folder"])
def test_takes_the_data_of_any_config(root: Path, capsys: pytest.CaptureFixture[str], config: str) -> None:
    main(["convert", *arguments(root, config)])
    printed = capsys.readouterr()
    assert re.search(
        r"train: 6 images of 2 classes, \d+\.\d MB, written to runs/cache/betons/photographs/train\.b", printed.out
    )
    assert "test: 6 images" in printed.out
    assert "Converting" in printed.err
    assert sorted(path.name for path in Path("runs/cache/betons/photographs").iterdir()) == [
        "train.beton", "train.json", "val.beton", "val.json",
    ]  # fmt: skip


def test_writes_nothing_twice(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", *arguments(root)])
    path = Path("runs/cache/betons/photographs/train.beton")
    before = path.stat().st_ino
    main(["convert", *arguments(root)])
    assert path.stat().st_ino == before
    assert "already in" in capsys.readouterr().out
    main(["convert", *arguments(root), "--overwrite", "true"])
    assert path.stat().st_ino != before


def refused(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["convert", *given])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_unreadable_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train/cat/00.jpg").write_text("not a picture")
    message = refused(capsys, *arguments(root))
    assert "got 1 unreadable image(s), expected none" in message
    assert "train/cat/00.jpg" in message
    main(["convert", *arguments(root), "--skip_unreadable", "true"])
    assert "train: 5 images of 2 classes, 1 unreadable ones left out" in capsys.readouterr().out


def test_other_options_than_a_file_was_made_with_are_not_ignored(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", *arguments(root)])
    message = refused(capsys, *arguments(root), "--max_side", "64")
    assert "was made with --max_side 500, 0 unreadable images left out; expected --max_side 64" in message


def test_stale_files_are_not_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", *arguments(root)])
    (root / "train/cat/00.jpg").unlink()
    assert "--overwrite true" in refused(capsys, *arguments(root))


def test_other_classes_show_before_the_work(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "val/dog").rename(root / "val/wolf")
    assert "has other classes than the training split" in refused(capsys, *arguments(root))
    assert not Path("runs").exists()


def test_bad_configs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in refused(capsys, "--config", "nowhere.yaml")
    Path("empty.yaml").write_text("model: 1")
    assert "names no data: expected a key 'data'" in refused(capsys, "--config", "empty.yaml")
    Path("torn.yaml").write_text("data: [")
    assert "expected a YAML file" in refused(capsys, "--config", "torn.yaml")


def test_data_that_are_no_folder() -> None:
    with pytest.raises(ValueError, match="got DigitsData, expected class folders"):
        convert(DigitsData())


def test_sigterm_leaves_nothing_half_written(root: Path) -> None:
    program = (
        "import time, unidd_pl.data.conversion as c; from unidd_pl.cli import main; form = c.stored_form\n"
        "def slow(*a):\n    time.sleep(5); return form(*a)\n"
        f"c.stored_form = slow; main(['convert', *{arguments(root)!r}])"
    )
    folder = Path("runs/cache/betons/photographs")
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if any(folder.glob(".tmp-*.beton")):
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped; nothing half-written is left" in message
    assert list(folder.iterdir()) == []


def settings_of(config: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    return settings


@pytest.mark.parametrize("other", ["eval", "lfm", "hfm", "dm"])
def test_the_imagenet_configs_agree(other: str) -> None:
    fit, others = settings_of("cfm_imagenet"), settings_of(f"{other}_imagenet")
    assert fit["data"] == others["data"]
    assert fit["teacher"] == others["teacher"]
    assert fit["data"]["init_args"]["loader"] == "auto"


@pytest.mark.parametrize("data", ["tiny_imagenet", "tiny_imagenet_convnet"])
def test_the_tiny_imagenet_configs_agree(data: str) -> None:
    """Else an evaluation or a distillation would not find the teacher that `unidd pretrain` has trained."""
    fit = settings_of(f"cfm_{data}")
    for kind in ("teacher", "eval"):
        others = settings_of(f"{kind}_{data}")
        assert fit["data"] == others["data"]
        assert fit["teacher"] == others["teacher"]


@pytest.mark.ffcv
def test_every_stage_streams_through_ffcv(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [*arguments(root), "--data.init_args.loader", "ffcv"]
    main(["convert", *data])
    teacher = [
        "--teacher.network", "convnet-w8-d2", "--teacher.epochs", "2", "--teacher.crop_padding", "0",
        "--teacher.crop_scale", "[0.3,1.0]", "--teacher.batch_size", "4", "--tracking.enabled", "false",
    ]  # fmt: skip
    main(["fit", *data, *teacher, "--model.init_args.ipc", "1", "--model.init_args.iterations", "2"])
    evaluated = [*arguments(root, "eval_folder"), "--data.init_args.loader", "ffcv", *teacher]
    main(
        [
            "evaluate", *evaluated, "--networks", "convnet-w8-d2", "--protocol.epochs", "2", "--seeds", "1",
            "--distilled", "runs/cfm_folder/distilled.safetensors",
        ]
    )  # fmt: skip
    assert "1 images per class" in capsys.readouterr().out


def test_a_disk_that_is_full(root: Path) -> None:
    """For real: the system refuses files above 20 kB; a .beton file takes at least one page of 8 MiB."""
    script = (
        "import resource, signal, sys\n"
        "from unidd_pl.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error of the write instead of the end of the process\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "main(sys.argv[1:])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, "convert", *arguments(root)], check=False, capture_output=True, text=True
    )
    assert process.returncode == 2
    assert "could not write train.beton in folder" in process.stderr
    assert "make room" in process.stderr
    assert list((root.parent / "runs/cache/betons/photographs").iterdir()) == []


@pytest.mark.parametrize(("kept", "message"), [(-9, "is truncated or damaged"), (10, "is no .beton file")])
def test_a_truncated_file_is_refused_by_the_command(
    root: Path, capsys: pytest.CaptureFixture[str], kept: int, message: str
) -> None:
    main(["convert", *arguments(root)])
    path = root.parent / "runs/cache/betons/photographs/train.beton"
    path.write_bytes(path.read_bytes()[:kept])
    assert message in refused(capsys, *arguments(root))
    main(["convert", *arguments(root), "--overwrite", "true"])
    main(["convert", *arguments(root)])
