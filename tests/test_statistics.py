"""Real moments: their values against a plain computation, their file and their cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unidd_pl import statistics_cache
from unidd_pl.data import ImageFolderData
from unidd_pl.features import FeatureTap
from unidd_pl.moment_pass import label_weights
from unidd_pl.networks import build_network
from unidd_pl.spectral import DM, SIGNALS, Signal
from unidd_pl.stages import device_of, statistics_stage
from unidd_pl.statistics import Statistics, conditions, gather_statistics, load_statistics, save_statistics
from unidd_pl.statistics_cache import StatisticsRecipe, obtain_statistics
from unidd_pl.teachers import Teacher, freeze, save_teacher
from unidd_pl.tracking import Tracking

LAYERS = ("layers.conv.0", "layers.conv.1")


@pytest.fixture
def no_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("gathered statistics that were there")

    monkeypatch.setattr(statistics_cache, "gather_statistics", fail)


@pytest.fixture
def saved(tiny_statistics: Statistics, tmp_path: Path) -> Path:
    path = tmp_path / "saved.safetensors"
    save_statistics(path, tiny_statistics)
    return path


def assert_same(got: Statistics, expected: Statistics, *, atol: float = 0.0) -> None:
    assert got.layers == expected.layers
    assert got.signal == expected.signal
    assert got.made_from == expected.made_from
    for ours, theirs in zip(got.moments, expected.moments, strict=True):
        for name, value in theirs.tensors().items():
            torch.testing.assert_close(
                ours.tensors()[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )


def all_features(teacher: Teacher, data: ImageFolderData) -> tuple[list[Tensor], Tensor]:
    """Features of every training image in one pass, and logits, as float64."""
    images = data.spec.normalise(data.train.read(range(len(data.train))))
    with torch.no_grad(), FeatureTap(teacher.network, LAYERS) as tap:
        logits = teacher.network(images)
        return [x.double() for x in tap.features()], logits.double()


class TestGathering:
    @pytest.mark.parametrize("signal", SIGNALS)
    def test_equals_the_moments_of_all_features_at_once(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, signal: Signal
    ) -> None:
        statistics = gather_statistics(tiny_teacher, folder_data, LAYERS, signal, batch_size=7)
        features, logits = all_features(tiny_teacher, folder_data)
        labels = folder_data.train.labels
        weights = torch.eye(3, dtype=torch.float64)[labels] if signal == "class" else logits.softmax(dim=1)
        for moments, x in zip(statistics.moments, features, strict=True):
            rows = x.permute(0, 2, 3, 1).flatten(end_dim=2)
            assert int(moments.count) == len(rows)
            torch.testing.assert_close(moments.mean, rows.mean(dim=0), rtol=0, atol=1e-6)
            torch.testing.assert_close(moments.ffc, rows.T.cov(correction=0), rtol=0, atol=1e-6)
            pooled = x.mean(dim=(2, 3))
            if signal == "mean":
                torch.testing.assert_close(moments.flc, rows.mean(dim=0)[:, None], rtol=0, atol=1e-6)
                continue
            torch.testing.assert_close(moments.label_weight, weights.sum(dim=0), rtol=0, atol=1e-5)
            by_class = [(weights[:, k, None] * pooled).sum(dim=0) / weights[:, k].sum() for k in range(3)]
            torch.testing.assert_close(moments.label_mean, torch.stack(by_class, dim=1), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("signal", SIGNALS)
    def test_batch_size_does_not_matter(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, signal: Signal
    ) -> None:
        whole, halves, single = (
            gather_statistics(tiny_teacher, folder_data, LAYERS, signal, batch_size=size) for size in (30, 16, 1)
        )
        assert_same(halves, whole, atol=1e-5)
        assert_same(single, whole, atol=1e-5)

    def test_is_float64_and_knows_what_it_was_made_from(
        self, tiny_statistics: Statistics, tiny_teacher: Teacher, folder_data: ImageFolderData
    ) -> None:
        assert tiny_statistics.layers == LAYERS
        assert all(value.dtype == torch.float64 for m in tiny_statistics.moments for value in m.tensors().values())
        assert tiny_statistics.made_from == conditions(tiny_teacher, folder_data, LAYERS, "mean")

    def test_leaves_the_teacher_as_it_was(self, tiny_teacher: Teacher, folder_data: ImageFolderData) -> None:
        before = tiny_teacher.fingerprint
        gather_statistics(tiny_teacher, folder_data, LAYERS, "class", batch_size=30)
        assert tiny_teacher.fingerprint == before
        assert not any(module._forward_pre_hooks for module in tiny_teacher.network.modules())

    def test_gradient_flows_through_the_moments_used_afterwards(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData
    ) -> None:
        """Tensors made in inference mode would refuse to be part of a loss."""
        statistics = gather_statistics(tiny_teacher, folder_data, LAYERS, "mean", batch_size=30)
        weight = torch.ones(8, dtype=torch.float64, requires_grad=True)
        (statistics.moments[1].ffc @ weight).sum().backward()
        assert weight.grad is not None

    def test_gradient_flows_through_a_teacher_that_was_on_another_device(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A move replaces the weights' memory; so does a change of precision, which needs no second device."""
        network = build_network(tiny_teacher.name, folder_data.spec)
        freeze(network)
        monkeypatch.setattr(network, "to", lambda *_, **__: network.double().float())
        teacher = replace(tiny_teacher, network=network)
        gather_statistics(teacher, folder_data, LAYERS, "mean", batch_size=30)
        images = torch.randn(1, 3, 12, 12, requires_grad=True)
        network(images).sum().backward()
        assert images.grad is not None


class TestLabelWeights:
    def test_values_of_each_signal(self) -> None:
        labels = torch.tensor([2, 0])
        logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], requires_grad=True)
        assert label_weights("mean", labels, logits) is None
        hard = label_weights("class", labels, logits)
        assert hard is not None
        assert hard.tolist() == [[0, 0, 1], [1, 0, 0]]
        soft = label_weights("soft", labels, logits)
        assert soft is not None
        torch.testing.assert_close(soft, logits.softmax(dim=1))
        soft.square().sum().backward()
        assert logits.grad is not None

    def test_soft_widens_half_precision(self) -> None:
        soft = label_weights("soft", torch.tensor([0]), torch.zeros(1, 3, dtype=torch.bfloat16))
        assert soft is not None
        assert soft.dtype == torch.float32


class TestFile:
    @pytest.mark.parametrize("signal", SIGNALS)
    def test_round_trip_is_exact(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path, signal: Signal
    ) -> None:
        statistics = gather_statistics(tiny_teacher, folder_data, LAYERS[::-1], signal, batch_size=16)
        save_statistics(tmp_path / "s.safetensors", statistics)
        loaded = load_statistics(tmp_path / "s.safetensors")
        assert_same(loaded, statistics)
        assert loaded.fingerprint == statistics.fingerprint

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"cannot read the statistics .*gone\.safetensors .*`unidd statistics`"):
            load_statistics(tmp_path / "gone.safetensors")

    def test_truncated_file(self, saved: Path) -> None:
        saved.write_bytes(saved.read_bytes()[:-10])
        with pytest.raises(ValueError, match=r"cannot read the statistics .*saved\.safetensors"):
            load_statistics(saved)

    def test_text_file(self, saved: Path) -> None:
        saved.write_text("moments")
        with pytest.raises(ValueError, match=r"cannot read the statistics .*saved\.safetensors"):
            load_statistics(saved)

    def test_teacher_in_the_place_of_statistics(self, tiny_teacher: Teacher, tmp_path: Path) -> None:
        path = tmp_path / "teacher.safetensors"
        save_teacher(path, tiny_teacher)
        with pytest.raises(ValueError, match=r"holds no statistics \(format 'unidd-teacher-1', expected 'unidd-stati"):
            load_statistics(path)


class TestObtaining:
    def test_batch_size_below_one(self) -> None:
        with pytest.raises(ValueError, match=r"statistics\.batch_size: got 0, expected at least 1"):
            StatisticsRecipe(batch_size=0)

    def test_gathers_once(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: Any = (tiny_teacher, folder_data, LAYERS, "soft", tmp_path)
        first, path, gathered = obtain_statistics(StatisticsRecipe(), *asked)
        assert gathered
        assert path.parent == tmp_path
        monkeypatch.setattr(statistics_cache, "gather_statistics", None)
        second, same_path, gathered = obtain_statistics(StatisticsRecipe(batch_size=7), *asked)
        assert not gathered
        assert same_path == path
        assert_same(second, first)

    def test_each_condition_has_a_file_of_its_own(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        for layers, signal in ((LAYERS, "mean"), (LAYERS, "class"), (LAYERS[:1], "mean")):
            _, _, gathered = obtain_statistics(
                StatisticsRecipe(),
                tiny_teacher,
                folder_data,
                layers,
                signal,
                tmp_path,  # type: ignore[arg-type]
            )
            assert gathered
        assert len(list(tmp_path.iterdir())) == 3

    @pytest.mark.usefixtures("no_gathering")
    def test_given_file_is_taken(
        self, saved: Path, tiny_statistics: Statistics, tiny_teacher: Teacher, folder_data: ImageFolderData
    ) -> None:
        recipe = StatisticsRecipe(str(saved))
        got, path, gathered = obtain_statistics(recipe, tiny_teacher, folder_data, LAYERS, "mean", saved.parent / "c")
        assert not gathered
        assert path == saved
        assert_same(got, tiny_statistics)

    @pytest.mark.usefixtures("no_gathering")
    def test_given_file_is_missing(self, tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path) -> None:
        recipe = StatisticsRecipe(str(tmp_path / "gone.safetensors"))
        with pytest.raises(ValueError, match=r"cannot read the statistics .*gone\.safetensors"):
            obtain_statistics(recipe, tiny_teacher, folder_data, LAYERS, "mean", tmp_path)

    @pytest.mark.parametrize(
        ("layers", "signal", "message"),
        [
            (LAYERS[:1], "mean", r"made with another layers: got .*leave --statistics\.file out"),
            (LAYERS[::-1], "mean", r"made with another layers: got"),
            (LAYERS, "class", r"made with another signal: got 'mean', expected 'class'; leave --statistics\.file"),
        ],
    )
    def test_other_layers_or_signal(
        self,
        saved: Path,
        tiny_teacher: Teacher,
        folder_data: ImageFolderData,
        layers: tuple[str, ...],
        signal: Signal,
        message: str,
    ) -> None:
        with pytest.raises(ValueError, match=message):
            obtain_statistics(StatisticsRecipe(str(saved)), tiny_teacher, folder_data, layers, signal, saved.parent)

    def test_other_teacher(self, saved: Path, tiny_teacher: Teacher, folder_data: ImageFolderData) -> None:
        network = build_network(tiny_teacher.name, folder_data.spec)  # other weights
        freeze(network)
        other = replace(tiny_teacher, network=network)
        message = f"another teacher: got '{tiny_teacher.fingerprint}', expected '{other.fingerprint}'"
        with pytest.raises(ValueError, match=message):
            obtain_statistics(StatisticsRecipe(str(saved)), other, folder_data, LAYERS, "mean", saved.parent)

    def test_other_images(self, saved: Path, tiny_teacher: Teacher, image_folder: Path, tmp_path: Path) -> None:
        root = Path(shutil.copytree(image_folder, tmp_path / image_folder.name))
        Image.new("RGB", (12, 12)).save(root / "train" / "red" / "00.png")
        data = ImageFolderData(str(root))
        with pytest.raises(ValueError, match=r"gathered on other data \(3 classes, .*--statistics\.file out"):
            obtain_statistics(StatisticsRecipe(str(saved)), tiny_teacher, data, LAYERS, "mean", saved.parent)

    def test_other_normalisation(self, saved: Path, tiny_teacher: Teacher, image_folder: Path) -> None:
        data = ImageFolderData(str(image_folder), mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
        with pytest.raises(ValueError, match=r"gathered on other data .* mean \(0\.5, 0\.5, 0\.5\)\); leave"):
            obtain_statistics(StatisticsRecipe(str(saved)), tiny_teacher, data, LAYERS, "mean", saved.parent)


class TestStage:
    def test_says_whether_it_gathered(
        self,
        tiny_teacher: Teacher,
        folder_data: ImageFolderData,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        asked: Any = (tiny_teacher, folder_data, DM(), "class", tmp_path, Tracking(enabled=False))
        first = statistics_stage(StatisticsRecipe(), *asked, accelerator="cpu")
        assert "2 layers, signal class, 30 images, gathered and kept in" in capsys.readouterr().out
        second = statistics_stage(StatisticsRecipe(), *asked, accelerator="cpu")
        assert "2 layers, signal class, 30 images, from" in capsys.readouterr().out
        assert_same(second, first)

    def test_device_of_an_accelerator(self) -> None:
        assert device_of("cpu") == torch.device("cpu")


class TestGoingOn:
    """A pass that was stopped is taken up where it was last saved, and gives the same bits."""

    def gather(self, teacher: Teacher, data: ImageFolderData, part: Path, **changes: Any) -> Statistics:
        settings: dict[str, Any] = {"batch_size": 7, "part": part, "save_every": 0.0, "signal": "class", **changes}
        return gather_statistics(teacher, data, LAYERS, **settings)

    @pytest.fixture
    def stopped(self, tiny_teacher: Teacher, image_folder: Path, tmp_path: Path) -> Path:
        """The part of a pass that ends in its fourth batch of five."""
        path = tmp_path / "one.part.safetensors"
        seen: list[int] = []

        def stop(*_: object) -> None:
            seen.append(1)
            if len(seen) == 4:
                raise KeyboardInterrupt

        handle = tiny_teacher.network.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            self.gather(tiny_teacher, ImageFolderData(str(image_folder), in_memory_gib=0), path)
        handle.remove()
        return path

    @pytest.mark.parametrize("in_memory_gib", [0.0, 1.0])
    def test_gives_the_same_bits_and_reads_the_rest_only(
        self, tiny_teacher: Teacher, image_folder: Path, stopped: Path, capsys: pytest.CaptureFixture[str],
        in_memory_gib: float,
    ) -> None:  # fmt: skip
        data = ImageFolderData(str(image_folder), in_memory_gib=in_memory_gib)
        whole = gather_statistics(tiny_teacher, data, LAYERS, "class", batch_size=7)
        if in_memory_gib:  # files are known by their names, images in memory by their pixels: another pass
            assert_same(self.gather(tiny_teacher, data, stopped), whole)
            assert "is of another pass; starting this one anew" in capsys.readouterr().out
            return
        sizes: list[int] = []
        handle = tiny_teacher.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        resumed = self.gather(tiny_teacher, data, stopped)
        handle.remove()
        assert sizes == [7, 2], "three of five batches were done"
        assert_same(resumed, whole)
        assert "21 images were done before, going on from" in capsys.readouterr().out

    def test_stopped_after_the_last_batch(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        whole = self.gather(tiny_teacher, folder_data, tmp_path / "one.part.safetensors")
        assert_same(self.gather(tiny_teacher, folder_data, tmp_path / "one.part.safetensors"), whole)

    @pytest.mark.parametrize("changes", [{"batch_size": 6}, {"signal": "mean"}])
    def test_another_pass_is_not_taken_up(
        self, tiny_teacher: Teacher, image_folder: Path, stopped: Path, capsys: pytest.CaptureFixture[str],
        changes: dict[str, Any],
    ) -> None:  # fmt: skip
        data = ImageFolderData(str(image_folder), in_memory_gib=0)
        expected = gather_statistics(
            tiny_teacher, data, LAYERS, changes.get("signal", "class"), batch_size=changes.get("batch_size", 7)
        )
        assert_same(self.gather(tiny_teacher, data, stopped, **changes), expected)
        assert "is of another pass; starting this one anew" in capsys.readouterr().out

    def test_a_damaged_part_is_not_taken_up(
        self, tiny_teacher: Teacher, image_folder: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stopped.write_bytes(stopped.read_bytes()[:-50])
        data = ImageFolderData(str(image_folder), in_memory_gib=0)
        expected = gather_statistics(tiny_teacher, data, LAYERS, "class", batch_size=7)
        assert_same(self.gather(tiny_teacher, data, stopped), expected)
        assert "starting the pass anew" in capsys.readouterr().out

    def test_saves_when_it_is_time_and_removes_what_is_done(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        self.gather(tiny_teacher, folder_data, tmp_path / "late.safetensors", save_every=1000.0)
        assert not (tmp_path / "late.safetensors").exists()
        recipe = StatisticsRecipe(batch_size=7, save_every=0)
        obtain_statistics(recipe, tiny_teacher, folder_data, LAYERS, "class", tmp_path)
        assert [path.suffixes for path in tmp_path.iterdir()] == [[".safetensors"]]

    def test_seconds_out_of_range(self) -> None:
        with pytest.raises(ValueError, match=r"statistics\.save_every: got -1, expected at least 0 seconds"):
            StatisticsRecipe(save_every=-1)


def test_a_killed_command_goes_on(image_folder: Path, tmp_path: Path) -> None:
    """`unidd statistics`, killed outright in the middle of the pass, then the same command: the same bits."""
    script = (
        "import sys, time, unidd_pl.statistics as statistics\n"
        "from unidd_pl.cli import main\n"
        "whole = statistics.running_totals\n"
        "def slow(*arguments):\n"
        "    for total in whole(*arguments):\n"
        "        yield total\n"
        "        time.sleep(float(sys.argv[1]))\n"
        "statistics.running_totals = slow\n"
        "main(sys.argv[2:])\n"
    )
    config = Path(__file__).parent.parent / "configs/cfm_folder.yaml"
    arguments = [
        "statistics", "--config", str(config), "--data.init_args.root", str(image_folder),
        "--data.init_args.in_memory_gib", "0", "--teacher.network", "convnet-w4-d1", "--teacher.epochs", "1",
        "--statistics.batch_size", "7", "--statistics.save_every", "0", "--tracking.enabled", "false",
        "--trainer.accelerator", "cpu",
    ]  # fmt: skip

    def start(pause: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, pause, *arguments], cwd=tmp_path, text=True, stdout=subprocess.PIPE
        )

    folder = tmp_path / "runs/cache/statistics"
    process = start("60")
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.part.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.communicate(timeout=60)
    assert [path.suffixes for path in folder.glob("[!.]*")] == [[".part", ".safetensors"]]
    resumed, _ = start("0").communicate(timeout=120)
    assert "7 images were done before, going on from" in resumed.replace("\n", " ")
    (kept,) = folder.glob("[!.]*")
    moments = load_statistics(kept)
    kept.unlink()
    whole, _ = start("0").communicate(timeout=120)
    assert "done before" not in whole
    assert_same(load_statistics(kept), moments)
