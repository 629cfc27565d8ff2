"""`unidd plan`, and the refusal of what cannot fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unidd_pl import planning
from unidd_pl.cli import main
from unidd_pl.data.folder import ImageFolderData
from unidd_pl.distillation import DistillationModule
from unidd_pl.planning import DataFacts, Plan, check_fits, facts_of, make_plan
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import CFM, SRe2L
from unidd_pl.statistics import Statistics, save_statistics
from unidd_pl.workload import Workload

CPU = torch.device("cpu")
NONE: dict[str, int | None] = {}
CONFIGS = Path(__file__).parent.parent / "configs"


def module_of(**settings: Any) -> DistillationModule:
    return DistillationModule(**{"ipc": 2, "method": CFM(), "iterations": 3, **settings})


def plan_of(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    main(["plan", *arguments, "--json", str(tmp_path / "plan.json")])
    return json.loads((tmp_path / "plan.json").read_text()), capsys.readouterr().out


def test_the_plan_of_a_run_on_data_that_are_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan, text = plan_of(capsys, tmp_path, "--config", str(CONFIGS / "cfm_digits.yaml"))
    assert plan["images"] == 100
    assert plan["iterations"] == 2000
    assert plan["chunks_per_round"] == 1
    assert plan["data"]["train_images"] == 1442
    assert plan["optimised_values"] == 10 * 64
    assert plan["fits"] is True
    assert plan["step"]["timed"] in ([10], [2, 10])
    assert plan["total_seconds"] == pytest.approx(2000 * plan["step"]["seconds"])
    assert "1,442 training images, 10 classes, 1×8×8" in text
    assert "An iteration" in text


@pytest.mark.parametrize(
    ("config", "images", "chunks", "iterations", "parameters"),
    [("cfm_cifar10", 100, 1, 10_000, 320_010), ("cfm_imagenet", 10_000, 5, 50_000, 11_689_512)],
)
def test_a_plan_needs_no_data_of_a_known_set(
    config: str, images: int, chunks: int, iterations: int, parameters: int,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    plan, text = plan_of(capsys, tmp_path, "--config", str(CONFIGS / f"{config}.yaml"), "--timed", "false")
    assert (plan["images"], plan["chunks_per_round"], plan["iterations"]) == (images, chunks, iterations)
    assert plan["teacher_parameters"] == parameters
    assert plan["step"] is None
    assert plan["total_seconds"] is None
    assert "(as published)" in text


def test_the_size_of_data_that_are_not_there_can_be_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = ("--config", str(CONFIGS / "cfm_folder.yaml"), "--timed", "false")
    with pytest.raises(SystemExit):
        main(["plan", *config])
    error = capsys.readouterr().err
    assert "nothing tells their size: give --num_classes and --image_size" in error
    given = ("--num_classes", "7", "--image_size", "32", "--train_images", "5000")
    plan, _ = plan_of(capsys, tmp_path, *config, *given)
    assert plan["images"] == 70
    assert plan["data"]["train_images"] == 5000


@pytest.mark.parametrize("option", ["num_classes", "image_size", "channels", "train_images"])
def test_sizes_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--config", str(CONFIGS / "cfm_folder.yaml"), f"--{option}", "0"])
    assert f"--{option}: got 0, expected at least 1" in capsys.readouterr().err


def test_facts_are_read_from_the_data(folder_data: ImageFolderData) -> None:
    facts = facts_of(folder_data, {}, NONE)
    assert (facts.num_classes, facts.channels, facts.image_size, facts.train_images) == (3, 3, 12, 30)
    assert facts.train_bytes == 30 * 3 * 12 * 12
    assert facts_of(folder_data, {}, {"train_images": 9}).train_images == 9


@pytest.mark.parametrize(("kind", "method"), [("conv", CFM()), ("batchnorm", SRe2L())])
def test_the_size_of_the_statistics_is_that_of_their_file(
    kind: str, method: Any, tiny_statistics: Statistics, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    work = Workload(module_of(method=method), "convnet-w8-d2", folder_data.spec, CPU)
    assert work.statistics_bytes == 8 * sum(c * c + c + 1 for c in ((3, 8) if kind == "conv" else (8, 8)))
    if kind == "conv":
        save_statistics(tmp_path / "statistics.safetensors", tiny_statistics)
        file = (tmp_path / "statistics.safetensors").stat().st_size
        assert work.statistics_bytes < file < work.statistics_bytes + 8192  # the header
        tensors = [one for moments in tiny_statistics.moments for one in moments.tensors().values()]
        assert work.statistics_bytes == sum(one.nbytes for one in tensors)


def test_parts_take_less_and_more_images_take_more(folder_data: ImageFolderData) -> None:
    spec = DatasetSpec("many", tuple(map(str, range(100))), 3, 32, (0.5,) * 3, (0.2,) * 3)
    work = Workload(module_of(), "convnet-w16-d2", spec, CPU)
    whole, part = work.need(), work.need(10)
    assert part.features < whole.features / 8
    assert (part.images, part.matching, part.teacher) == (whole.images, whole.matching, whole.teacher)
    for room in (work.need(1).total, work.need(37).total + 1):
        largest = work.largest_part(room)
        assert largest is not None
        assert work.need(largest).total <= room < work.need(largest + 1).total
    assert work.largest_part(work.need(1).total - 1) is None
    assert work.largest_part(1e15) == 100
    assert Workload(module_of(micro_batch=10), "convnet-w16-d2", spec, CPU).need() == part


def test_what_cannot_fit_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DatasetSpec("many", tuple(map(str, range(100))), 3, 32, (0.5,) * 3, (0.2,) * 3)
    network = "convnet-w64-d2"
    whole = Workload(module_of(), network, spec, CPU)
    monkeypatch.setattr(planning, "available_bytes", lambda _: round(whole.need(60).total))
    with pytest.raises(ValueError, match=r"a chunk of 100 images of 32 pixels needs about .*B, got .* free") as caught:
        check_fits(module_of(), network, spec, CPU)
    cure = str(caught.value).partition("--model.init_args.micro_batch ")[2]
    micro_batch = int(cure.partition(",")[0])
    assert 1 <= micro_batch < 60
    check_fits(module_of(micro_batch=micro_batch), network, spec, CPU)  # the cure cures
    with pytest.raises(ValueError, match=r"micro_batch \d+ without compile_mode, which changes time"):
        check_fits(module_of(compile_mode="default"), network, spec, CPU)
    monkeypatch.setattr(planning, "available_bytes", lambda _: 1000)
    with pytest.raises(ValueError, match="not even one image at a time: take fewer classes a chunk"):
        check_fits(module_of(), network, spec, CPU)
    monkeypatch.setattr(planning, "available_bytes", lambda _: None)
    check_fits(module_of(), network, spec, CPU)


def test_fit_refuses_before_it_trains_a_teacher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "available_bytes", lambda _: 10_000)
    output = ("--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(CONFIGS / "cfm_digits.yaml"), *output, "--trainer.logger=false"])
    assert caught.value.code == 2
    assert "a chunk of 10 images of 8 pixels needs about" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_long_chunk_is_not_timed_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DatasetSpec("many", tuple(map(str, range(200))), 3, 32, (0.5,) * 3, (0.2,) * 3)
    work = Workload(module_of(), "convnet-w4-d1", spec, CPU)
    monkeypatch.setattr(work, "_seconds_of", lambda count: 0.1 + 0.05 * count)  # 10.1 s for the chunk
    time = work.step_time()
    assert len(time.timed) == 2
    assert max(time.timed) < 200
    assert time.seconds == pytest.approx(10.1)
    monkeypatch.setattr(work, "_seconds_of", lambda count: 4.0 * count)
    assert work.step_time().timed == (2,)
    assert work.step_time().seconds == pytest.approx(800)
    monkeypatch.setattr(work, "_seconds_of", lambda count: 0.001 * count)
    assert work.step_time().timed == (200,)


def test_data_in_memory_count() -> None:
    facts = DataFacts("big", 3, 3, 12, 2**20, "as given")
    plans: list[Plan] = [
        make_plan(module_of(), "convnet-w8-d2", facts, CPU, in_memory_gib=gib, timed=False) for gib in (0.0, 4.0)
    ]
    assert [plan.data_bytes for plan in plans] == [0, 2**20 * 3 * 144]


def test_a_plan_of_some_classes_of_a_published_set() -> None:
    facts = facts_of(None, {"name": "imagenet", "image_size": 224, "classes": "imagenette"}, NONE)
    assert (facts.name, facts.num_classes, facts.train_images) == ("imagenet-imagenette", 10, 12_812)
