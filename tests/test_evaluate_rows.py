"""`unidd evaluate` with all kinds of rows and columns, end to end on three colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unidd_pl.cli import main
from unidd_pl.data import ImageFolderData
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluate import _json_file

CONFIG = Path(__file__).parent.parent / "configs" / "eval_folder.yaml"


@pytest.fixture(scope="module")
def sets(folder_data: ImageFolderData, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two sets of one config and one of another, each two noisy images a class."""
    paths = []
    for name, seed, eta in (("a0", 0, 1), ("a1", 1, 1), ("b0", 0, 2)):
        noise = torch.Generator().manual_seed(seed + 10 * eta)
        images = torch.randint(0, 256, (6, 3, 12, 12), generator=noise, dtype=torch.uint8)
        config = f"model: {{init_args: {{seed: {seed}, eta: {eta}}}}}"
        manifest = {"config": config, "seed": seed, "method": "cfm"}
        path = tmp_path_factory.mktemp("sets") / name / "distilled.safetensors"
        DistilledSet(images, torch.arange(3).repeat(2), folder_data.spec, manifest).save(path)
        paths.append(str(path))
    return paths


def command(image_folder: Path, folder: Path, sets: list[str], *more: str) -> list[str]:
    return [
        "evaluate", "--config", str(CONFIG), "--data.init_args.root", str(image_folder), "--accelerator", "cpu",
        "--teacher.network", "convnet-w8-d2", "--teacher.epochs", "1", "--teacher.batch_size", "15",
        "--tracking.enabled", "false", "--cache_dir", str(folder / "cache"), "--networks", "convnet-w8-d2",
        "--seeds", "2", "--protocol.epochs", "3", "--protocol.batch_size", "{1: 4}", "--distilled", *sets,
        "--output", str(folder / "evaluation.json"), *more,
    ]  # fmt: skip


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    results = json.loads((folder / "evaluation.json").read_text())
    return {row["training_set"]: row for row in results["rows"]}


def test_baselines_grouped_sets_hold_out_and_best_epoch(
    image_folder: Path, sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["--baselines", "k-centre", "herding", "whole", "--whole_epochs", "1", "--group_by", "config"]
    hard = ["--protocol.labels", "hard", "--protocol.cutmix_alpha", "0"]
    main(command(image_folder, tmp_path, sets, *rows, *hard, "--val_split", "0.2", "--best_epoch", "true"))
    printed = capsys.readouterr().out
    assert "Teacher: none yet" in printed, "k-centre and herding need its features, also with hard labels"
    found = rows_of(tmp_path)
    whole = "whole data set, 1 epochs"
    assert list(found) == ["a0 and 1 more", "b0", "real images", "real images, k-centre", "real images, herding", whole]
    grouped = found["a0 and 1 more"]
    fingerprints = [DistilledSet.load(path).fingerprint() for path in sets]
    assert grouped["distilled_set"] == fingerprints[:2]
    assert [(one["distilled_set"], one["seed"]) for one in grouped["students"]] == [
        (fingerprints[0], 0), (fingerprints[0], 1), (fingerprints[1], 0), (fingerprints[1], 1)
    ]  # fmt: skip
    assert grouped["difference_to_real"]["n"] == 2
    assert grouped["std_between_sets"] is not None
    assert set(found[whole]["students"][0]["accuracy_by_epoch"]) == {"1"}
    for row in found.values():
        for one in row["students"]:
            assert set(one["holdout_accuracy_by_epoch"]) == set(one["accuracy_by_epoch"])
    for column in ("epoch chosen on hold-out", "best epoch (chosen on test)", "std between sets", "2 × 2"):
        assert column in printed
    assert "0.2 of the training images held out" in printed
    assert "real images to a0 and 1 more" not in printed
    assert "Difference of paired students (same seed) to a0 and 1 more" in printed
    assert {path.name.split("-2-")[0] for path in (tmp_path / "cache/selections").iterdir()} == {"k-centre", "herding"}


def test_the_same_seed_gives_the_same_table_bit_for_bit(
    image_folder: Path, sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = []
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # the global generator has no say
        main(command(image_folder, tmp_path / name, sets[:1], "--baselines", "herding"))
        contents.append({kind: (tmp_path / name / f"evaluation.{kind}").read_bytes() for kind in ("json", "csv", "md")})
    assert contents[0] == contents[1]


def test_too_much_held_out_is_refused_before_any_training(image_folder: Path, sets: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(command(image_folder, tmp_path, sets, "--val_split", "0.9"))  # leaves one image of each class
    assert not (tmp_path / "cache").exists()


def test_dots_in_names_of_results_stay() -> None:
    assert [str(_json_file(Path(name))) for name in ("a/run_v1.5", "a/run_v1.5.csv", "x.json")] == [
        "a/run_v1.5.json", "a/run_v1.5.json", "x.json",
    ]  # fmt: skip


def test_the_picture_of_a_folder_with_dots_is_named_after_it(
    image_folder: Path, sets: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "cfm_v1.5"
    main(["export", "--distilled", sets[0], "--layout", "png", "--output", str(folder)])
    main(command(image_folder, tmp_path, [str(folder)], "--seeds", "1"))
    assert (tmp_path / "cfm_v1.5.png").exists()
