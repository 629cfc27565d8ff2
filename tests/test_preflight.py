"""Preflight: the teacher is measured once, and a mix-up of classes stops before any training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unidd_pl import preflight
from unidd_pl.cli import main
from unidd_pl.data import ImageFolderData
from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.assembling import encode
from unidd_pl.preflight import check_labels, check_sets, check_teacher, least_accuracy, remember
from unidd_pl.pretraining import TeacherRecipe
from unidd_pl.specs import DatasetSpec
from unidd_pl.stages import teacher_stage
from unidd_pl.teachers import Teacher, save_teacher
from unidd_pl.tracking import Tracking

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parent.parent / "configs"


class Colours(nn.Module):
    """Knows blue, green and red by the channel that is brightest; its classes may be exchanged."""

    def __init__(self, order: tuple[int, ...] = (2, 1, 0)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3)[list(order)], requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) @ self.weight.T


@pytest.fixture
def teacher(folder_data: ImageFolderData, tmp_path: Path) -> Teacher:
    return Teacher(Colours().eval(), "colours", folder_data.spec, None, tmp_path / "colours.pt")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The accuracies that were measured, not looked up."""
    found: list[float] = []
    original = preflight.accuracy_of

    def counted(*arguments: Any) -> float:
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(preflight, "accuracy_of", counted)
    return found


class TestTeacher:
    def test_is_measured_once_and_shown(
        self,
        teacher: Teacher,
        folder_data: ImageFolderData,
        tmp_path: Path,
        measured: list[float],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        for _ in range(2):
            assert check_teacher(teacher, folder_data, tmp_path, CPU).accuracy == 1.0
            assert "Preflight: the teacher knows 100.0 % of the test images\n" in capsys.readouterr().out
        assert measured == [1.0]
        claiming = replace(teacher, accuracy=0.99)
        assert check_teacher(claiming, folder_data, tmp_path, CPU).accuracy == 1.0
        assert "(its file says 99.0 %)" in capsys.readouterr().out

    def test_other_weights_images_or_normalisation_are_measured_anew(
        self, teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path, measured: list[float]
    ) -> None:
        check_teacher(teacher, folder_data, tmp_path, CPU)
        lighter = replace(teacher, spec=replace(teacher.spec, mean=(0.4, 0.4, 0.4)))
        check_teacher(lighter, folder_data, tmp_path, CPU)
        scaled = replace(teacher, network=Colours().eval())
        with torch.no_grad():
            scaled.network.weight.mul_(2)
        check_teacher(scaled, folder_data, tmp_path, CPU)
        assert len(measured) == 3

    def test_what_the_training_measured_is_not_measured_again(
        self, teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path, measured: list[float]
    ) -> None:
        remember(teacher, folder_data, tmp_path, 0.9)
        assert check_teacher(teacher, folder_data, tmp_path, CPU).accuracy == 0.9
        assert measured == []

    def test_damaged_record_is_measured_anew(
        self, teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        check_teacher(teacher, folder_data, tmp_path, CPU)
        (record,) = (tmp_path / "preflight").iterdir()
        record.write_text("{")
        assert check_teacher(teacher, folder_data, tmp_path, CPU).accuracy == 1.0

    def test_far_below_chance_times_five_without_a_claim(
        self, teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        exchanged = replace(teacher, network=Colours((1, 0, 2)).eval())
        for _ in range(2):  # the second time from the record
            with pytest.raises(ValueError, match=r"knows 0.0 % of the 12 test images.*at least 66.7 %.*another order"):
                check_teacher(exchanged, folder_data, tmp_path, CPU)

    def test_far_below_its_claim(self, teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path) -> None:
        exchanged = replace(teacher, network=Colours((1, 0, 2)).eval(), accuracy=1.0)
        with pytest.raises(ValueError, match=r"about the 100.0 % that its file claims.*--teacher.check false"):
            check_teacher(exchanged, folder_data, tmp_path, CPU)

    @pytest.mark.parametrize("content", ["{", "[1]", '{"accuracy": null}', '{"acc": 1}', ""])
    def test_a_damaged_measurement_counts_as_none(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "kept.json").write_text(content)
        assert preflight._kept(tmp_path / "kept.json") is None

    @pytest.mark.parametrize(
        ("claim", "chance", "images", "least"),
        [
            (None, 0.001, 50_000, 0.005),
            (None, 0.1, 10_000, 0.5),
            (None, 1 / 3, 300, 2 / 3),  # five times chance would be 167 %
            (None, 0.5, 300, 0.75),
            (None, 0.9, 300, 0.95),  # one class is most of the images
            (0.848, 0.1, 10_000, 0.798),  # four standard deviations are 1.4 points
            (0.5, 0.5, 100, 0.5 - 4 * (0.25 / 104) ** 0.5),
        ],
    )
    def test_least_accuracy(self, claim: float | None, chance: float, images: int, least: float) -> None:
        assert least_accuracy(claim, chance, images) == pytest.approx(least)

    def test_few_test_images_leave_room_for_chance(self) -> None:
        assert least_accuracy(1.0, 1 / 3, 12) < 0.7


class TestStage:
    @pytest.fixture
    def checkpoint(self, tiny_teacher: Teacher, tmp_path: Path) -> Path:
        """An untrained network as a plain state_dict."""
        path = tmp_path / "given.pt"
        torch.save(tiny_teacher.network.state_dict(), path)
        return path

    def stage(self, data: ImageFolderData, cache: Path, **recipe: Any) -> Teacher:
        made = TeacherRecipe(network="convnet-w8-d2", **recipe)
        return teacher_stage(made, data, cache, Tracking(enabled=False), accelerator="cpu")

    def test_stops_again_and_again(
        self, checkpoint: Path, folder_data: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("unidd_pl.teachers._check_class_order", lambda *_: None)
        for _ in range(2):  # a teacher that is known from before has no better claim
            with pytest.raises(ValueError, match=r"expected at least 66\.7 %"):
                self.stage(folder_data, tmp_path / "cache", checkpoint=str(checkpoint))

    def test_can_be_turned_off(self, checkpoint: Path, folder_data: ImageFolderData, tmp_path: Path) -> None:
        assert self.stage(folder_data, tmp_path, checkpoint=str(checkpoint), check=False).accuracy is None

    def test_a_trained_teacher_is_not_measured_twice(
        self, folder_data: ImageFolderData, tmp_path: Path, measured: list[float]
    ) -> None:
        first = self.stage(folder_data, tmp_path, epochs=1)
        assert self.stage(folder_data, tmp_path, epochs=1).accuracy == first.accuracy is not None
        assert measured == []

    def test_a_claim_of_other_test_images(
        self, folder_data: ImageFolderData, tiny_teacher: Teacher, tmp_path: Path
    ) -> None:
        path = tmp_path / "boasting.safetensors"
        save_teacher(path, replace(tiny_teacher, accuracy=1.0))
        with pytest.raises(ValueError, match="its file claims"):
            self.stage(folder_data, tmp_path, checkpoint=str(path))


def set_of(
    data: ImageFolderData, ipc: int = 6, order: tuple[int, ...] = (0, 1, 2), foreign: bool = True
) -> DistilledSet:
    """Return real images as a set whose labels stand for the classes in this order."""
    chosen = torch.cat([data.train.positions_of(label)[:ipc] for label in range(3)])
    labels = torch.tensor(order)[data.train.labels[chosen]]
    source = {"source": {"path": "mine", "format": "pt", "classes": ""}} if foreign else {}
    return DistilledSet(data.train.read(chosen.tolist()), labels, data.spec, source)


class TestLabels:
    def test_agreement_is_said(
        self, teacher: Teacher, folder_data: ImageFolderData, capsys: pytest.CaptureFixture[str]
    ) -> None:
        check_labels([set_of(folder_data)], teacher, CPU)
        assert "agrees with the labels of 18 of 18 images of mine" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("order", "named"),
        [((1, 0, 2), "blue for green, green for blue"), ((1, 2, 0), "blue for red, green for blue, red for green")],
    )
    def test_exchanged_classes(
        self, teacher: Teacher, folder_data: ImageFolderData, order: tuple[int, ...], named: str
    ) -> None:
        with pytest.raises(
            ValueError, match=rf"the set mine are in another order.*most images of {named} .*set.classes"
        ):
            check_labels([set_of(folder_data, order=order)], teacher, CPU)

    def test_few_images_are_not_judged(self, teacher: Teacher, folder_data: ImageFolderData) -> None:
        check_labels([set_of(folder_data, ipc=4, order=(1, 0, 2))], teacher, CPU)

    def test_a_set_that_is_not_recognised_passes(self, teacher: Teacher, folder_data: ImageFolderData) -> None:
        blue = set_of(folder_data)
        blue.images = blue.images[:1].expand_as(blue.images).clone()  # all classes look blue: no ring
        check_labels([blue], teacher, CPU)

    def test_sets_made_here_are_not_asked_about(
        self, teacher: Teacher, folder_data: ImageFolderData, capsys: pytest.CaptureFixture[str]
    ) -> None:
        check_labels([set_of(folder_data, foreign=False)], teacher, CPU)
        assert capsys.readouterr().out == ""

    def test_rings_among_others(self) -> None:
        votes = torch.diag(torch.full((6,), 10))
        votes[1:4] = 0
        votes[1, 2] = votes[2, 3] = votes[3, 1] = 10  # 1 → 2 → 3 → 1
        votes[4] = torch.tensor([0, 10, 0, 0, 0, 0])  # leads into the ring, but lies not on it
        votes[5] = torch.tensor([6, 0, 0, 0, 0, 4])  # one way only
        assert preflight._ring(votes) == [(1, 2), (2, 3), (3, 1)]


class TestSets:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"classes": ["green", "blue", "red"]},
                "the same 3 classes in another order: label 0 got 'blue', expected",
            ),
            ({"classes": ["blue", "green", "rot"]}, r"got 3 classes, \['red'\] not among the 3 expected.*\['rot'\]"),
            ({"image_size": 24}, r"image shape got \(3, 12, 12\), expected \(3, 24, 24\)"),
        ],
    )
    def test_other_data(self, folder_data: ImageFolderData, change: dict[str, Any], message: str) -> None:
        other = DatasetSpec.from_dict({**folder_data.spec.to_dict(), **change})
        with pytest.raises(ValueError, match=message):
            check_sets({"mine": set_of(folder_data)}, other)

    def test_empty_class(self, folder_data: ImageFolderData) -> None:
        whole = set_of(folder_data)
        part = DistilledSet(whole.images[:12], whole.labels[:12], whole.spec, {})
        with pytest.raises(ValueError, match="the set mine has no image of red"):
            check_sets({"mine": part}, folder_data.spec)

    def test_uneven_sets_are_named(self, folder_data: ImageFolderData, capsys: pytest.CaptureFixture[str]) -> None:
        whole = set_of(folder_data)
        check_sets({"mine": DistilledSet(whole.images[:-2], whole.labels[:-2], whole.spec, {})}, folder_data.spec)
        assert "mine has 4 to 6 images per class" in capsys.readouterr().out


class TestCommand:
    """`unidd evaluate` on sets made elsewhere, as a user gives them."""

    @pytest.fixture
    def arguments(self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        monkeypatch.chdir(tmp_path)
        return [
            "evaluate", "--config", str(CONFIGS / "eval_folder.yaml"), "--data.init_args.root", str(image_folder),
            "--teacher.network", "convnet-w8-d2", "--teacher.epochs", "30", "--networks", "convnet-w8-d2",
            "--tracking.enabled", "false", "--protocol.epochs", "2", "--seeds", "1", "--accelerator", "cpu",
        ]  # fmt: skip

    @pytest.fixture
    def sets(self, folder_data: ImageFolderData, tmp_path: Path) -> Path:
        """sets/right and sets/exchanged, class folders by number, and sets/right.pt."""
        for name, order in (("right", (0, 1, 2)), ("exchanged", (1, 2, 0))):
            made = set_of(folder_data, order=order)
            for position, (pixels, label) in enumerate(zip(made.images, made.labels.tolist(), strict=True)):
                folder = tmp_path / "sets" / name / f"{label:05d}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{position}.png").write_bytes(encode(pixels))
        made = set_of(folder_data)
        normalised = {"images": made.tensors()[0], "labels": made.labels}
        torch.save(normalised, tmp_path / "sets/tensor.pt")
        return tmp_path / "sets"

    def test_folder_and_tensor_score_the_same(
        self, arguments: list[str], sets: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (sets / "tensor.pt.yaml").write_text("classes: [blue, green, red]\npixels: normalised\n")
        main([*arguments, "--distilled", str(sets / "right"), str(sets / "tensor.pt")])
        printed = capsys.readouterr().out
        assert "right: 18 images, folder; classes by index in the data's order" in printed
        assert "tensor.pt: 18 images, pt; classes by name" in printed
        assert "Preflight: the teacher agrees with the labels of" in printed
        rows = json.loads((sets / "evaluation.json").read_text())["rows"]
        assert [row["training_set"] for row in rows] == ["right", "tensor", "real images"]
        assert rows[0]["tail_mean"] == pytest.approx(rows[1]["tail_mean"])

    def test_exchanged_classes_stop_before_any_student(
        self, arguments: list[str], sets: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main([*arguments, "--distilled", str(sets / "exchanged")])
        assert (
            f"classes of the set {sets / 'exchanged'} are in another order than the data's" in capsys.readouterr().err
        )
        assert not (sets / "evaluation.json").exists()
        main([*arguments, "--distilled", str(sets / "exchanged"), "--teacher.check", "false"])
        assert (sets / "evaluation.json").exists()

    def test_options_and_typos(self, arguments: list[str], sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tensor = str(sets / "tensor.pt")
        for options, message in (
            (["--set.pixels", "normalised"], "no class names"),
            (["--set.classes", "data"], "without their normalisation"),
            (["--set.pixels", "0-2"], "set.pixels"),
            (["--set.klasses", "data"], "klasses"),
            (["--set.classes", "[blue, green, pink]", "--set.pixels", "normalised"], "got the class names pink"),
        ):
            with pytest.raises(SystemExit) as ended:
                main([*arguments, "--distilled", tensor, *options])
            assert ended.value.code == 2
            assert message in capsys.readouterr().err
        main([*arguments, "--distilled", tensor, "--set.classes", "[blue, green, red]", "--set.pixels", "normalised"])
