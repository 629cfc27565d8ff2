"""Partial sets: of runs that a probe ended, and of runs that go on, were stopped or killed; from the command line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from refusal import Refused

from unidd_pl.cli import main
from unidd_pl.distilled import DistilledSet
from unidd_pl.partial import RUN_FILE, RunRecord, finished_rounds
from unidd_pl.tracking import Tracking

CONFIGS = Path(__file__).parent.parent / "configs"
TEACHER = ["--teacher.epochs", "2", "--teacher.check", "false"]
FIT = [
    "fit", "--config", str(CONFIGS / "cfm_digits_probe.yaml"), *TEACHER, "--model.init_args.iterations", "2",
    "--checkpoint_every", "3", "--model.init_args.ipc", "3", "--trainer.callbacks.steps", "2",
    "--trainer.callbacks.every", "1", "--trainer.callbacks.patience", "null", "--trainer.callbacks.min_delta", "0",
]  # fmt: skip
STOP = ["--trainer.callbacks.patience", "1", "--trainer.callbacks.min_delta", "0.999"]  # after two rounds
EVALUATE = ["evaluate", "--config", str(CONFIGS / "eval_digits.yaml"), *TEACHER, "--protocol.epochs", "2"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a whole run and one that its probe has ended; tests run in it."""
    folder, before = tmp_path_factory.mktemp("workplace"), Path.cwd()
    os.chdir(folder)
    try:
        main([*FIT, "--tracking.enabled", "false", "--output_dir", "whole"])
        main([*FIT, *STOP, "--tracking.experiment", "study", "--output_dir", "stopped"])
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def killed(workplace: Path, tmp_path: Path) -> Path:
    """The folder of a run that was killed in its last round."""
    folder = Path(shutil.copytree("whole", tmp_path / "killed"))
    for name in ("distilled.safetensors", "chunks/round_0002_chunk_000.safetensors"):
        (folder / name).unlink()
    return folder


class TestAStoppedRun:
    def test_leaves_a_marked_set(self, workplace: Path) -> None:
        whole, part = (DistilledSet.load(Path(name) / "distilled.safetensors") for name in ("whole", "stopped"))
        assert whole.partial_note is None
        assert "partial" not in whole.manifest
        assert part.ipc == part.manifest["ipc"] == part.manifest["rounds_made"] == 2
        assert part.manifest["rounds_planned"] == 3
        assert part.partial_note is not None
        assert part.partial_note.startswith("2 of 3 rounds (the last 1 probe(s) were not better than")
        assert (part.images == whole.images[:20]).all()
        assert part.labels.tolist() == whole.labels[:20].tolist()

    def test_is_recorded_as_such(self, workplace: Path) -> None:
        main([*EVALUATE, "--tracking.experiment", "study", "--distilled", "stopped/distilled.safetensors",
              "--seeds", "1"])  # fmt: skip
        store = Tracking(experiment="study").store()
        identity = store.experiment_id("study")
        assert identity is not None
        runs = list(store.runs(identity))
        (made,) = [one for one in runs if one.tags["stage"] == "distillation"]
        assert (made.tags["partial"], made.tags["ipc"]) == ("2 of 3 rounds", "2")
        assert made.metrics["images_seen"] == 2 * 2 * 10
        assert 0 <= made.metrics["probe/accuracy"] <= 1
        evaluations = [one for one in runs if one.tags["stage"] == "evaluation"]
        assert sorted(one.tags.get("partial", "") for one in evaluations) == ["", "2 of 3 rounds"]  # real images: none
        rows = json.loads(Path("stopped/evaluation.json").read_text())["rows"]
        assert rows[0]["training_set"] == "cfm (partial, 2 of 3 rounds)"
        main(["compare", "--experiment", "study", "--output_dir", "report"])
        assert "cfm, partial, 2 of 3 rounds" in Path("report/table.md").read_text()

    def test_goes_on_with_the_rest(self, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = shutil.copytree("stopped", tmp_path / "on")
        options = ["--tracking.enabled", "false", "--output_dir", str(folder), "--ckpt_path", "last"]
        main([*FIT, *STOP, *options])  # the same settings: it stays where it was
        assert "Partial: 2 of 3 rounds" in capsys.readouterr().out
        main([*FIT, *options])
        whole, now = (DistilledSet.load(path / "distilled.safetensors") for path in (Path("whole"), folder))
        assert now.fingerprint() == whole.fingerprint()
        assert now.partial_note is None


class TestARunThatIsNotFinished:
    def test_gives_its_rounds(self, killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
        part = finished_rounds(killed)
        whole = DistilledSet.load("whole/distilled.safetensors")
        assert (part.images == whole.images[:20]).all()
        assert part.manifest["stopped"] == "the run was not finished when it was exported"
        expected = {**whole.manifest, "ipc": 2}
        assert {key: part.manifest[key] for key in expected} == expected

    @pytest.mark.parametrize("layout", ["png", "parquet", "webdataset", "safetensors"])
    def test_goes_into_every_layout_and_the_table(
        self, layout: str, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "export"
        main(["export", "--run", str(killed), "--layout", layout, "--output", str(output)])
        assert "Partial: 2 of 3 rounds (the run was not finished" in capsys.readouterr().out
        card = json.loads((output / "card.json").read_text())
        assert card["images_per_class"] == 2
        assert card["manifest"]["partial"] == "2 of 3 rounds"
        assert "| partial | 2 of 3 rounds (the run was not finished" in (output / "README.md").read_text()
        main([*EVALUATE, "--tracking.enabled", "false", "--distilled", str(output), "--seeds", "1",
              "--output", str(tmp_path / "scores.json")])  # fmt: skip
        assert "is partial: 2 of 3 rounds" in capsys.readouterr().out

    @pytest.mark.parametrize("layout", ["ddranking", "rethinkdc"])
    def test_goes_to_the_scorers_as_any_set(self, layout: str, killed: Path, refused: Refused, tmp_path: Path) -> None:
        message = refused("export", "--run", str(killed), "--layout", layout, "--output", str(tmp_path / "export"))
        assert f"layout {layout}: got" in message  # they know no digits

    def test_an_unfinished_round_does_not_count(self, workplace: Path, tmp_path: Path) -> None:
        options = ["--model.init_args.chunk_size", "6", "--tracking.enabled", "false", "--output_dir"]
        main([*FIT, *options, str(tmp_path / "run")])
        chunk = tmp_path / "run/chunks/round_0001_chunk_001.safetensors"
        chunk.unlink()
        part = finished_rounds(tmp_path / "run")  # the third round has its chunks, the second not
        assert part.manifest["partial"] == "1 of 3 rounds"
        assert part.labels.tolist() == list(range(10))

    def test_a_whole_or_stopped_run_gives_what_it_has_left(self, workplace: Path, tmp_path: Path) -> None:
        for name in ("whole", "stopped"):
            product = DistilledSet.load(f"{name}/distilled.safetensors")
            assert finished_rounds(Path(name)).manifest == product.manifest
        on = Path(shutil.copytree("whole", tmp_path / "on"))  # stopped once, and went on since
        shutil.copy("stopped/distilled.safetensors", on)
        assert len(finished_rounds(on)) == 30

    def test_a_run_of_before_there_were_records(self, workplace: Path, tmp_path: Path) -> None:
        old = Path(shutil.copytree("whole", tmp_path / "old"))
        (old / RUN_FILE).unlink()
        assert len(finished_rounds(old)) == 30

    def test_a_checkpoint_that_is_refused_leaves_the_record(
        self, killed: Path, refused: Refused, workplace: Path
    ) -> None:
        options = ["--tracking.enabled", "false", "--output_dir", str(killed), "--ckpt_path", "last"]
        assert "another beta" in refused(*FIT, *options, "--model.init_args.beta", "0.3")
        assert "beta: 0.3" not in (killed / "config.yaml").read_text()
        assert len(finished_rounds(killed)) == 20


class TestBadInput:
    def test_no_run(self, workplace: Path, refused: Refused, tmp_path: Path) -> None:
        out = ["--output", str(tmp_path / "out")]
        assert "got --distilled None and --run None, expected one of them" in refused("export", *out)
        both = ["--run", "whole", "--distilled", "whole/distilled.safetensors"]
        assert "expected one of them" in refused("export", *out, *both)
        assert "got no folder at nowhere, expected the folder of a run" in refused("export", *out, "--run", "nowhere")
        assert "got a file at whole/config.yaml" in refused("export", *out, "--run", "whole/config.yaml")
        assert "runs: got no run.json, expected the folder of a run" in refused("export", *out, "--run", "runs")
        assert not (tmp_path / "out").exists()

    def test_no_round_yet(self, killed: Path) -> None:
        for chunk in (killed / "chunks").iterdir():
            chunk.unlink()
        with pytest.raises(ValueError, match=r"got no finished round of 3, expected at least one: .* wait for it"):
            finished_rounds(killed)

    def test_chunks_of_another_run(self, killed: Path) -> None:
        record = json.loads((killed / RUN_FILE).read_text())
        (killed / RUN_FILE).write_text(json.dumps({**record, "digest": "0" * 64}))
        with pytest.raises(ValueError, match="was made by another run"):
            finished_rounds(killed)

    @pytest.mark.parametrize(
        "change",
        [
            {"format": "other"}, {"version": 2}, {"spec": {}}, {"pixel_type": "int3"}, {"manifest": 1},
            {"schedule": {}}, {"schedule": []}, {"digest": None, "schedule": None},
            {"schedule": {"num_classes": 9, "chunk_size": 10, "num_rounds": 3, "iterations": 2}},
            {"schedule": {"num_classes": 10, "chunk_size": 0, "num_rounds": 3, "iterations": 2}},
            {"schedule": {"num_classes": 10, "chunk_size": 10, "num_rounds": True, "iterations": 2}},
        ],
    )  # fmt: skip
    def test_a_damaged_record(self, change: dict[str, object], killed: Path) -> None:
        record = json.loads((killed / RUN_FILE).read_text())
        (killed / RUN_FILE).write_text(json.dumps({**record, **change}))
        with pytest.raises(ValueError, match=r"cannot read the record .*, expected one that `unidd fit` wrote"):
            finished_rounds(killed)

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'"text"', b"null"])
    def test_a_record_that_is_none(self, content: bytes, killed: Path) -> None:
        (killed / RUN_FILE).write_bytes(content)
        with pytest.raises(ValueError, match="cannot read the record"):
            RunRecord.load(killed)

    def test_probe_settings(self, refused: Refused, workplace: Path, tmp_path: Path) -> None:
        output = ["--output_dir", str(tmp_path / "out"), "--tracking.enabled", "false"]
        for option, value, message in (
            ("every", "0", "probe.every: got 0, expected at least 1"),
            ("every", "9", "probe.every: got 9, expected at most 3, the rounds of the run"),
            ("holdout", "500", "probe.holdout: got 500 images of each class, expected at most"),
            ("target", "90", "probe.target: got 90"),
            ("network", "resnet", "resnet"),
        ):
            assert message in refused(*FIT, *output, f"--trainer.callbacks.{option}", value)
        second = ["--trainer.callbacks+", "unidd_pl.probe.ProbeCallback"]
        assert "got 2 ProbeCallbacks in trainer.callbacks, expected one" in refused(*FIT, *output, *second)
        assert not (tmp_path / "out/config.yaml").exists()
