"""The shipped command line, end to end on the embedded digits, and every bad input."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from refusal import Refused
from safetensors.torch import save_file

from unidd_pl.cli import main
from unidd_pl.command_options import COMMANDS, distillation_parser
from unidd_pl.distilled import DistilledSet
from unidd_pl.spectral import METHODS, CosineCurriculum, ReversedCurriculum, ShuffledCurriculum

CONFIGS = Path(__file__).parent.parent / "configs"
FIT = ["fit", "--config", str(CONFIGS / "cfm_digits.yaml")]
SHORT_TEACHER = ["--teacher.epochs", "3"]
SHORT = [
    *SHORT_TEACHER, "--tracking.enabled", "false",
    "--model.init_args.iterations", "3", "--model.init_args.ipc", "2",
]  # fmt: skip
EVALUATE = [
    "evaluate", "--config", str(CONFIGS / "eval_digits.yaml"), *SHORT_TEACHER, "--tracking.enabled", "false",
    "--protocol.epochs", "3", "--seeds", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished digits run in runs/cfm_digits; not to be changed."""
    folder = tmp_path_factory.mktemp("workplace")
    before = Path.cwd()
    os.chdir(folder)
    try:
        main([*FIT, *SHORT])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def in_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


class TestCommands:
    def test_help_lists_the_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["--help"])
        printed = capsys.readouterr().out
        assert all(re.search(rf"^  {name} ", printed, re.MULTILINE) for name in COMMANDS)

    def test_fit_writes_a_self_describing_set(self, in_workplace: Path) -> None:
        output = Path("runs/cfm_digits")
        distilled = DistilledSet.load(output / "distilled.safetensors")
        assert distilled.images.dtype == torch.uint8
        assert distilled.labels.tolist() == [*range(10), *range(10)]
        manifest = distilled.manifest
        assert manifest["method"] == "cfm"
        assert manifest["band"] == "low-to-high"
        assert 0 <= manifest["teacher_accuracy"] <= 1
        assert yaml.safe_load(manifest["config"])["model"]["init_args"]["beta"] == 0.1
        assert {"teacher", "statistics", "data", "seed", "environment"} <= manifest.keys()
        with Image.open(output / "distilled.png") as picture:
            assert min(picture.size) > 64

    def test_stages_are_taken_from_the_cache(self, in_workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["statistics", *FIT[1:], *SHORT])
        printed = capsys.readouterr().out
        assert re.search(r"Teacher: convnet-w64-d2 .* from runs/cache/teachers/", printed)
        assert re.search(r"Statistics: 2 layers, signal mean, 1442 images, from runs/cache/statistics/", printed)

    def test_pretrain_finds_the_teacher_of_fit(self, in_workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["pretrain", "--config", str(CONFIGS / "teacher_digits.yaml"), *SHORT_TEACHER])
        assert re.search(r"Teacher: .* from runs/cache/teachers/", capsys.readouterr().out)

    def test_evaluate_ends_with_a_table(
        self, in_workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "scores.json"
        main([*EVALUATE, "--distilled", "runs/cfm_digits/distilled.safetensors", "--output", str(output)])
        printed = capsys.readouterr().out
        assert "Teacher: the one that the set was distilled with" in printed
        for row in ("cfm", "real images"):
            assert re.search(rf"^{row} +convnet-w64-d2 +2 +\d+\.\d ± \d+\.\d +\d+\.\d ± \d+\.\d", printed, re.MULTILINE)
        scores = json.loads(output.read_text())
        assert scores["protocol"]["name"] == "unidd-release"
        assert scores["protocol"]["epochs"] == 3
        assert [len(row["students"]) for row in scores["rows"]] == [2, 2]

    @pytest.mark.parametrize("name", ["hard", "rded"])
    def test_protocol_from_a_file(
        self, name: str, in_workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main([
            "evaluate", "--config", str(CONFIGS / "eval_digits.yaml"), *SHORT_TEACHER, "--tracking.enabled", "false",
            "--protocol", str(CONFIGS / f"protocols/{name}.yaml"), "--protocol.epochs", "2", "--seeds", "1",
            "--distilled", "runs/cfm_digits/distilled.safetensors", "--output", str(tmp_path / "scores.json"),
        ])  # fmt: skip
        assert f"protocol {name}, 2 epochs: top-1" in capsys.readouterr().out
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert scores["protocol"]["labels"] == ("hard" if name == "hard" else "online")
        assert (scores["teacher"]["network"] == "none") is (name == "hard"), "hard labels need no teacher"

    def test_several_sets_make_one_table(
        self, in_workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main([*FIT, *SHORT, "--model.init_args.eta", "0", "--output_dir", str(tmp_path / "other")])
        sets = ["runs/cfm_digits/distilled.safetensors", str(tmp_path / "other/distilled.safetensors")]
        output = tmp_path / "scores.json"
        main([*EVALUATE, "--distilled", *sets, "--seeds", "1", "--precision", "bf16-mixed", "--output", str(output)])
        printed = capsys.readouterr().out
        assert "unidd-release, 3 epochs in bf16-mixed: top-1" in printed
        for row in ("cfm_digits", "other", "real images"):
            assert re.search(rf"^{row} +convnet-w64-d2 +1 +\d", printed, re.MULTILINE)
        scores = json.loads(output.read_text())
        assert scores["precision"] == "bf16-mixed"
        fingerprints = [DistilledSet.load(path).fingerprint() for path in sets]
        assert [row["distilled_set"] for row in scores["rows"]] == [*fingerprints, None]

    def test_networks_times_seeds_in_every_format(
        self, in_workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "scores.json"
        main([
            *EVALUATE, "--distilled", "runs/cfm_digits/distilled.safetensors", "--output", str(output),
            "--networks", "convnet-w8-d1,convnet-w8-d2", "resnet18", "--protocol.epochs", "1",
        ])  # fmt: skip
        printed = capsys.readouterr().out
        networks = ["convnet-w8-d1", "convnet-w8-d2", "resnet18"]
        for network in networks:
            for row in ("cfm", "real images"):
                assert re.search(rf"^{row} +{network} +2 +(\d+\.\d ± \d+\.\d *){{3}}$", printed, re.MULTILINE)
            assert re.search(rf"^cfm +{network} +2 +[+-]\d+\.\d +[+-]\d+\.\d to [+-]\d+\.\d", printed, re.MULTILINE)
        with output.with_suffix(".csv").open() as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == 3 * 2 * 2
        assert {line["network"] for line in lines} == set(networks)
        rows = json.loads(output.read_text())["rows"]
        students = {(row["network"], row["training_set"], one["seed"]): one for row in rows for one in row["students"]}
        for line in lines:
            one = students[line["network"], line["training_set"], int(line["seed"])]
            assert float(line["tail_mean"]) == one["tail_mean"] <= float(line["top5_tail_mean"])
        assert (
            output.with_suffix(".md").read_text().count("| cfm |") == 3 + 3 + 1
        )  # figures, differences, architectures
        assert output.with_suffix(".tex").read_text().count(r"cfm & ") == 3

    def test_export_writes_the_same_pixels(self, in_workplace: Path, tmp_path: Path) -> None:
        main(["export", "--distilled", "runs/cfm_digits/distilled.safetensors", "--output", str(tmp_path / "png")])
        assert len(list((tmp_path / "png").glob("*/*.png"))) == 20

    def test_float_pixels_on_request(self, in_workplace: Path, tmp_path: Path) -> None:
        main([*FIT, *SHORT, "--output_dir", str(tmp_path / "floats"), "--pixel_type", "float32"])
        floats = DistilledSet.load(tmp_path / "floats/distilled.safetensors")
        rounded = DistilledSet.load("runs/cfm_digits/distilled.safetensors")
        assert floats.images.dtype == torch.float32
        assert torch.equal((floats.images * 255).round().to(torch.uint8), rounded.images)

    def test_every_stage_is_tracked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        # An address of its own: MLflow keeps the store of an address open, also where the folder changes below it.
        uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
        where = ["--tracking.enabled", "true", "--tracking.uri", uri]
        main([*FIT, *SHORT, *where, "--trainer.log_every_n_steps", "1"])
        main([*EVALUATE, *where, "--seeds", "1", "--distilled", "runs/cfm_digits/distilled.safetensors"])
        assert f"MLflow: mlflow ui --backend-store-uri {uri}" in capsys.readouterr().out

        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("unidd")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
        assert len(found) == 5  # the real images have an evaluation of their own
        runs = {f"{run.data.tags['stage']} {run.data.tags.get('method', '')}".strip(): run for run in found}
        assert runs.keys() == {
            "teacher", "statistics", "distillation cfm", "evaluation cfm", "evaluation real images"
        }  # fmt: skip
        assert all(run.info.status == "FINISHED" for run in runs.values())
        distillation, evaluation = runs["distillation cfm"], runs["evaluation cfm"]
        assert distillation.data.tags["band"] == evaluation.data.tags["band"] == "low-to-high"
        assert (
            distillation.data.tags["teacher"] == evaluation.data.tags["teacher"] == runs["teacher"].data.tags["teacher"]
        )
        assert distillation.data.tags["statistics"] == runs["statistics"].data.tags["statistics"]
        assert evaluation.data.tags["mlflow.parentRunId"] == distillation.info.run_id
        assert "mlflow.parentRunId" not in runs["evaluation real images"].data.tags
        # From an accuracy one query leads to the images, the config and the teacher.
        made_by = f"tags.distilled_set = '{evaluation.data.tags['distilled_set']}' and tags.stage = 'distillation'"
        assert [run.info.run_id for run in client.search_runs([experiment.experiment_id], made_by)] == [
            distillation.info.run_id
        ]
        betas = [point.value for point in client.get_metric_history(distillation.info.run_id, "beta")]
        assert {round(beta, 6) for beta in betas} == {0.1, 0.05}
        metrics = distillation.data.metrics
        assert {"loss/total", "loss/cross_entropy", "distance/layers.conv.0/resolvent_ffc"} <= metrics.keys()
        assert {"coverage/flc_matched/low", "coverage/variance_ratio/low/layers.conv.1"} <= metrics.keys()
        assert metrics["images_per_second"] > 0
        assert metrics["memory_gib"] > 0.1
        assert metrics["bytes"] == (tmp_path / "runs/cfm_digits/distilled.safetensors").stat().st_size
        assert metrics["images_seen"] == 2 * 3 * 10
        (read,) = distillation.inputs.dataset_inputs
        assert read.dataset.name == "digits"
        assert distillation.data.tags["data"].startswith(read.dataset.digest)
        files = {entry.path for entry in client.list_artifacts(distillation.info.run_id)}
        assert files == {
            "config.yaml", "distilled.png", "distilled.safetensors", "card.md", "spectrum.png", "spectrum.json",
            "rounds",
        }  # fmt: skip
        rounds = [entry.path for entry in client.list_artifacts(distillation.info.run_id, "rounds")]
        assert rounds == ["rounds/round_0000.png", "rounds/round_0001.png"]
        score = evaluation.data.metrics["tail_mean/convnet-w64-d2/seed 0"]
        assert evaluation.data.metrics["tail_mean/convnet-w64-d2"] == score
        assert "tail_mean/convnet-w64-d2" in runs["evaluation real images"].data.metrics
        assert not (tmp_path / "runs/outbox").exists()

    def test_passwords_stay_out_of_the_record(self, in_workplace: Path, tmp_path: Path) -> None:
        main([*FIT, *SHORT, "--tracking.uri", "http://me:secret@server", "--output_dir", str(tmp_path / "out")])
        assert "secret" not in (tmp_path / "out/config.yaml").read_text()
        assert b"secret" not in (tmp_path / "out/distilled.safetensors").read_bytes()

    def test_last_before_any_checkpoint_starts_anew(
        self, in_workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main([*FIT, *SHORT, "--ckpt_path", "last", "--output_dir", str(tmp_path / "out")])
        assert "starting from the beginning" in capsys.readouterr().out
        assert (tmp_path / "out/distilled.safetensors").exists()

    def test_overwrite_leaves_nothing_of_the_run_before(self, in_workplace: Path, tmp_path: Path) -> None:
        out = ["--output_dir", str(tmp_path / "out")]
        main([*FIT, *SHORT, *out, "--model.init_args.ipc", "3"])
        main([*FIT, *SHORT, *out, "--overwrite", "true"])
        assert len(list((tmp_path / "out/chunks").iterdir())) == 2

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("stage", ["pretrain", "evaluate"])
    def test_a_stage_that_is_stopped_says_so(self, workplace: Path, stage: str, number: signal.Signals) -> None:
        arguments = {
            "pretrain": ["pretrain", "--config", str(CONFIGS / "teacher_digits.yaml"), "--teacher.epochs", "100000"],
            "evaluate": [
                *EVALUATE, "--distilled", "runs/cfm_digits/distilled.safetensors", "--protocol.epochs", "100000",
                "--output", "stopped.json",
            ],
        }[stage]  # fmt: skip
        # A shell starts what runs in its background with Ctrl-C ignored, and that is inherited.
        program = (
            "import signal, sys; from unidd_pl.cli import main;"
            "signal.signal(signal.SIGINT, signal.default_int_handler); main(sys.argv[1:])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--tracking.enabled", "false"],
            cwd=workplace, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stderr is not None
        seen = b""
        while not re.search(rb"epoch \d+/", seen):
            seen += process.stderr.read1(4096)  # type: ignore[attr-defined]
            assert process.poll() is None, seen
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert b"stopped in epoch" in rest
        assert b"Traceback" not in rest

    def test_without_a_logger_mlflow_is_not_even_loaded(self, workplace: Path, tmp_path: Path) -> None:
        program = (
            "import sys; from unidd_pl.cli import main;"
            f"main({[*FIT, *SHORT, '--tracking.enabled', 'true', '--trainer.logger=false']!r} + "
            f"['--cache_dir', {str(workplace / 'runs/cache')!r}]);"
            "assert 'mlflow' not in sys.modules and 'ffcv' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)


class TestConfigs:
    @pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_every_config_is_accepted(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        command = {"teacher": "pretrain", "eval": "evaluate"}.get(path.stem.split("_")[0], "fit")
        extra = ["--distilled", "x"] if command == "evaluate" else []
        with pytest.raises(SystemExit) as ended:
            main([command, "--config", str(path), *extra, "--print_config"])
        assert ended.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["data"]["class_path"].startswith("unidd_pl.data.")

    def test_every_distillation_config_builds_its_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        parser = distillation_parser("fit")
        built = {}
        for path in sorted(CONFIGS.glob("*.yaml")):
            if re.fullmatch(r"(?!teacher|eval).*_(cifar10|cifar100|digits)", path.stem):  # not an absent folder's
                objects = parser.instantiate(parser.parse_args(["--config", str(path)]))
                built[path.stem] = (objects.model, objects.trainer.callbacks or [])
        for kind in METHODS:
            for data in ("cifar10", "digits"):
                module, callbacks = built[f"{kind().name}_{data}"]
                assert type(module.method) is kind
                assert bool(callbacks) is kind().scheduled
        controls = {
            name.removesuffix("_digits"): one for name, one in built.items() if re.match(r"control.*digits", name)
        }
        assert len(controls) == 6
        assert controls["control_ce_only"][0].eta == 0
        assert controls["control_ffc_only"][0].method.term_names == ("resolvent_ffc",)
        assert controls["control_flc_only"][0].method.term_names == ("resolvent_flc",)
        assert controls["control_running_off"][0].running == "off"
        bare = parser.parse_args(
            [
                "--config",
                str(CONFIGS / "cfm_digits.yaml"),
                "--model.init_args.running",
                "false",
            ]  # what YAML makes of off
        )
        assert parser.instantiate(bare).model.running == "off"
        for name, kind_of_curriculum in (("reversed", ReversedCurriculum), ("shuffled", ShuffledCurriculum)):
            (callback,) = controls[f"control_{name}"][1]
            assert type(callback.curriculum) is kind_of_curriculum
            assert type(callback.curriculum.curriculum) is CosineCurriculum

    @pytest.mark.parametrize("data", ["cifar10", "digits"])
    def test_methods_and_controls_differ_in_nothing_but_the_method(self, data: str) -> None:
        """What a table compares: same data, teacher, start, iterations and augmentation."""
        own = {"method", "eta", "relative", "signal", "running", "beta"}
        reference = yaml.safe_load((CONFIGS / f"cfm_{data}.yaml").read_text())
        for path in CONFIGS.glob(f"*_{data}.yaml"):
            config = yaml.safe_load(path.read_text())
            if "model" in config:
                assert (config["data"], config["teacher"]) == (reference["data"], reference["teacher"])
                shared, expected = (
                    {key: value for key, value in one["model"]["init_args"].items() if key not in own}
                    for one in (config, reference)
                )
                assert shared == expected, path

    @pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "folder"])
    def test_the_stages_of_a_data_set_agree(self, name: str) -> None:
        configs = [yaml.safe_load((CONFIGS / f"{kind}_{name}.yaml").read_text()) for kind in ("teacher", "cfm", "eval")]
        assert all(config["teacher"] == configs[0]["teacher"] for config in configs)
        assert all(config["data"] == configs[0]["data"] for config in configs)


class TestBadInput:
    def test_unknown_command(self, refused: Refused) -> None:
        assert "unknown command 'distil': expected one of fit, plan, evaluate" in refused("distil")

    def test_unknown_key_in_the_yaml(self, refused: Refused, tmp_path: Path) -> None:
        config = tmp_path / "typo.yaml"
        config.write_text((CONFIGS / "cfm_digits.yaml").read_text().replace("ipc: 10", "icp: 10"))
        assert "Option 'icp' is not accepted" in refused("fit", "--config", str(config))

    def test_unknown_class_in_the_yaml(self, refused: Refused, tmp_path: Path) -> None:
        config = tmp_path / "typo.yaml"
        config.write_text((CONFIGS / "cfm_digits.yaml").read_text().replace("spectral.CFM", "spectral.CMF"))
        assert "CMF" in refused("fit", "--config", str(config))

    @pytest.mark.parametrize(
        ("option", "value"), [("ipc", "0"), ("ipc", "-2"), ("beta", "0"), ("beta", "-0.1"), ("iterations", "0")]
    )
    def test_number_out_of_range(self, refused: Refused, option: str, value: str) -> None:
        assert f"model.init_args.{option}: got {value}" in refused(*FIT, f"--model.init_args.{option}", value)

    def test_missing_config(self, refused: Refused) -> None:
        assert "nowhere.yaml" in refused("fit", "--config", "nowhere.yaml")

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UNIDD_DEBUG", "1")
        with pytest.raises(ValueError, match="unknown command"):
            main(["distil"])

    def test_unwritable_output_folder(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        message = refused(*FIT, *SHORT, "--output_dir", str(tmp_path / "file/run"))
        assert "cannot write in the folder" in message
        assert "give a folder with write permission" in message

    def test_output_is_not_overwritten(self, refused: Refused, in_workplace: Path) -> None:
        before = Path("runs/cfm_digits/distilled.safetensors").read_bytes()
        message = refused(*FIT, *SHORT)
        assert "already holds distilled.safetensors" in message
        assert "--overwrite true" in message
        assert Path("runs/cfm_digits/distilled.safetensors").read_bytes() == before

    def test_class_with_fewer_images_than_ipc(self, refused: Refused, tmp_path: Path) -> None:
        message = refused(*FIT, "--model.init_args.ipc", "500", "--output_dir", str(tmp_path))
        assert "class '8' has 140 training images, expected at least 500" in message

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("max_epochs", "3"),
            ("max_steps", "4"),
            ("accumulate_grad_batches", "2"),
            ("limit_train_batches", "5"),
            ("fast_dev_run", "true"),
            ("devices", "0"),
            ("precision", "64-true"),
        ],
    )
    def test_trainer_arguments_that_change_the_run(
        self, refused: Refused, tmp_path: Path, option: str, value: str
    ) -> None:
        message = refused(*FIT, f"--trainer.{option}", value, "--output_dir", str(tmp_path / "new"))
        assert f"got trainer.{option} " in message

    def test_fixed_method_with_a_moving_curriculum(self, refused: Refused, tmp_path: Path) -> None:
        message = refused(
            *FIT, "--model.init_args.method", "unidd_pl.spectral.HFM", "--output_dir", str(tmp_path / "new")
        )
        assert "method hfm has a fixed β, and the config moves it" in message

    def test_results_of_an_evaluation_are_not_overwritten(
        self, refused: Refused, in_workplace: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "scores.json").write_text("{}")
        message = refused(
            *EVALUATE, "--distilled", "runs/cfm_digits/distilled.safetensors",
            "--output", str(tmp_path / "scores.json"),
        )  # fmt: skip
        assert "already holds results: replace them with --overwrite true" in message

    def test_sets_that_do_not_belong_in_one_table(self, refused: Refused, in_workplace: Path, tmp_path: Path) -> None:
        first = "runs/cfm_digits/distilled.safetensors"
        assert "expected names that differ" in refused(*EVALUATE, "--distilled", first, first)
        main([*FIT, *SHORT, "--model.init_args.ipc", "1", "--output_dir", str(tmp_path / "fewer")])
        message = refused(*EVALUATE, "--distilled", first, str(tmp_path / "fewer/distilled.safetensors"))
        assert "the distilled sets differ in images per class (cfm_digits: 2, fewer: 1)" in message

    def test_unknown_student(self, refused: Refused, in_workplace: Path, tmp_path: Path) -> None:
        message = refused(
            *EVALUATE, "--distilled", "runs/cfm_digits/distilled.safetensors",
            "--output", str(tmp_path / "x.json"), "--networks", "convnut",
        )  # fmt: skip
        assert "convnut" in message

    def test_file_that_is_no_checkpoint(self, refused: Refused, in_workplace: Path, tmp_path: Path) -> None:
        (tmp_path / "torn.ckpt").write_bytes(b"PK torn")
        message = refused(*FIT, *SHORT, "--ckpt_path", str(tmp_path / "torn.ckpt"), "--output_dir", str(tmp_path / "o"))
        assert "cannot read the checkpoint" in message

    def test_accelerator_that_is_not_there(self, refused: Refused, in_workplace: Path, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            return
        message = refused(*FIT, *SHORT, "--trainer.accelerator", "gpu", "--output_dir", str(tmp_path / "o"))
        assert "gpu" in message.lower()

    def test_method_without_its_curriculum(self, refused: Refused, in_workplace: Path, tmp_path: Path) -> None:
        message = refused(*FIT, *SHORT, "--trainer.callbacks", "null", "--output_dir", str(tmp_path / "x"))
        assert "method cfm needs a curriculum on β" in message

    def test_no_checkpoint(self, refused: Refused, in_workplace: Path) -> None:
        message = refused(*FIT, *SHORT, "--ckpt_path", "elsewhere.ckpt")
        assert "no checkpoint at elsewhere.ckpt" in message

    def test_checkpoint_of_another_run(self, refused: Refused, in_workplace: Path, tmp_path: Path) -> None:
        short = [*SHORT, "--checkpoint_every", "1", "--output_dir", str(tmp_path / "run")]
        main([*FIT, *short])
        message = refused(*FIT, *short, "--ckpt_path", "last", "--model.init_args.beta", "0.2")
        assert "the checkpoint was made with another beta: got 0.1, expected 0.2" in message

    def test_set_that_is_not_one(self, refused: Refused, tmp_path: Path) -> None:
        save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
        assert "other.safetensors" in refused(*EVALUATE, "--distilled", str(tmp_path / "other.safetensors"))
        assert "missing.safetensors" in refused(*EVALUATE, "--distilled", str(tmp_path / "missing.safetensors"))

    def test_set_of_another_data_set(self, refused: Refused, in_workplace: Path, image_folder: Path) -> None:
        message = refused(
            "evaluate", "--config", str(CONFIGS / "eval_folder.yaml"), "--data.init_args.root", str(image_folder),
            "--distilled", "runs/cfm_digits/distilled.safetensors",
        )  # fmt: skip
        assert "the distilled set does not fit the data" in message

    def test_statistics_of_another_teacher(self, refused: Refused, in_workplace: Path, tmp_path: Path) -> None:
        statistics = next(Path("runs/cache/statistics").glob("*.safetensors"))
        message = refused(
            *FIT, *SHORT, "--teacher.epochs", "1", "--statistics.file", str(statistics),
            "--output_dir", str(tmp_path), "--cache_dir", str(tmp_path / "cache"),
        )  # fmt: skip
        assert "were made with another teacher" in message

    def test_teacher_of_another_architecture(self, refused: Refused, in_workplace: Path, tmp_path: Path) -> None:
        teacher = next(Path("runs/cache/teachers").glob("*.safetensors"))
        message = refused(
            *FIT, *SHORT, "--teacher.checkpoint", str(teacher), "--teacher.network", "convnet-w64-d1",
            "--output_dir", str(tmp_path),
        )  # fmt: skip
        assert "is a convnet-w64-d2, expected convnet-w64-d1: set --teacher.network convnet-w64-d2" in message


class TestBadFolders:
    """The data folder as a user would have it wrong."""

    @pytest.fixture
    def folder(self, image_folder: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(image_folder, tmp_path / "mine"))

    @pytest.fixture
    def refused_fit(self, refused: Refused, tmp_path: Path) -> Callable[[Path], str]:
        def run(root: Path) -> str:
            return refused(
                "fit", "--config", str(CONFIGS / "cfm_folder.yaml"), "--data.init_args.root", str(root),
                "--model.init_args.ipc", "1", "--tracking.enabled", "false", "--output_dir", str(tmp_path / "out"),
            )  # fmt: skip

        return run

    def test_missing(self, refused_fit: Callable[[Path], str], tmp_path: Path) -> None:
        message = refused_fit(tmp_path / "nowhere")
        assert f"no data folder at {tmp_path / 'nowhere'}" in message
        assert "--data.init_args.root PATH" in message

    def test_empty(self, refused_fit: Callable[[Path], str], tmp_path: Path) -> None:
        (tmp_path / "hollow/train").mkdir(parents=True)
        assert "hollow/train is empty: expected one folder of images for each class" in refused_fit(tmp_path / "hollow")

    def test_corrupted_image_is_named(self, refused_fit: Callable[[Path], str], folder: Path) -> None:
        victim = sorted((folder / "train").rglob("*.png"))[-1]
        victim.write_bytes(victim.read_bytes()[:60])
        assert str(victim) in refused_fit(folder)

    def test_class_missing_from_the_test_images(self, refused_fit: Callable[[Path], str], folder: Path) -> None:
        shutil.rmtree(sorted((folder / "test").iterdir())[0])
        assert "has other classes than the training split" in refused_fit(folder)


def test_any_folder_of_images_from_fit_to_table(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data.init_args.root", str(image_folder), "--tracking.enabled", "false", "--teacher.epochs", "2"]
    short = ["--teacher.network", "convnet-w8-d2"]
    config = ["--config", str(CONFIGS / "cfm_folder.yaml")]
    main(["fit", *config, *data, *short, "--model.init_args.ipc", "1", "--model.init_args.iterations", "2"])
    main(
        [
            "evaluate", "--config", str(CONFIGS / "eval_folder.yaml"), *data, "--networks", "convnet-w8-d2",
            "--distilled", "runs/cfm_folder/distilled.safetensors", "--protocol.epochs", "2", "--seeds", "1",
        ]
    )  # fmt: skip
    assert "1 images per class" in capsys.readouterr().out
