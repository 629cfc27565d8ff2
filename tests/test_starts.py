"""What images start from: collages of the teacher's favourite crops, and the names of starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distillation_runs import run
from torch import Tensor, nn
from torch.nn import functional as F

from unidd_pl.cli import main
from unidd_pl.data import ImageFolderData, RandomCrops, TensorImages
from unidd_pl.distillation import DistillationModule, RealSide
from unidd_pl.seeding import seed_for
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import CFM
from unidd_pl.starts import Collage, HerdingStart, NoiseStart, RealStart, Start, best_crops, chosen_start, tile
from unidd_pl.statistics import Statistics
from unidd_pl.teachers import Teacher

SPEC = DatasetSpec("levels", ("dark", "light"), 3, 8, (0.0,) * 3, (1.0,) * 3)


class Brightness(nn.Module):
    """Takes bright images for class 1: the logit is the mean of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3)) * self.scale
        return torch.stack([-mean, mean], dim=1)


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(Brightness().eval(), "brightness", SPEC, None, Path("none"))


@pytest.fixture
def levels() -> TensorImages:
    """Ten flat images of each class, image i of grey level 10·i + 5·class."""
    grey = torch.tensor([10 * (index % 10) + 5 * (index // 10) for index in range(20)], dtype=torch.uint8)
    return TensorImages(grey[:, None, None, None].expand(20, 3, 8, 8).contiguous(), torch.arange(20) // 10)


def patches_of(collage: Tensor) -> list[int]:
    """Grey levels of the patches of a 2×2 collage of flat images, row by row."""
    return [round(255 * float(collage[0, row, column])) for row in (0, 7) for column in (0, 7)]


class Colour(nn.Module):
    """Has the colour of an image for its features."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images.mean(dim=(2, 3)))
        return logits


class TestHerding:
    @pytest.fixture
    def teacher(self) -> Teacher:
        return Teacher(Colour().eval(), "colour", SPEC, None, Path("none"))

    @pytest.fixture
    def colours(self) -> TensorImages:
        """Twelve flat images of each class in turn, of random colours."""
        generator = torch.Generator().manual_seed(0)
        flat = torch.randint(256, (24, 3, 1, 1), generator=generator).to(torch.uint8).expand(24, 3, 8, 8)
        return TensorImages(flat.contiguous(), torch.arange(24) % 2)

    def drawn(self, start: Start, teacher: Teacher, images: TensorImages, rounds: int, classes: range) -> Tensor:
        """Colours that a run starts from, (rounds, classes, 3)."""
        start.check(images, SPEC, rounds)
        return torch.stack([start.draw(teacher, images, i, classes, 0).mean(dim=(2, 3)) for i in range(rounds)])

    def test_each_round_brings_the_mean_closer_than_any_other_image_would(
        self, teacher: Teacher, colours: TensorImages
    ) -> None:
        drawn = self.drawn(HerdingStart(), teacher, colours, 5, range(2))
        for label in range(2):
            own = SPEC.normalise(colours.images[colours.labels == label]).mean(dim=(2, 3))
            mean, total = own.mean(dim=0), torch.zeros(3)
            for number in range(5):
                chosen = drawn[number, label]
                after = ((total + chosen) / (number + 1) - mean).norm()
                free = [one for one in own if not any(one.equal(past) for past in drawn[:number, label])]
                assert after <= min(((total + one) / (number + 1) - mean).norm() for one in free) + 1e-6
                total += chosen
            assert len(drawn[:, label].unique(dim=0)) == 5, "no image twice"

    def test_neither_rounds_nor_chunks_change_what_is_chosen(self, teacher: Teacher, colours: TensorImages) -> None:
        whole = self.drawn(HerdingStart(), teacher, colours, 6, range(2))
        for label in range(2):
            chunk = self.drawn(HerdingStart(), teacher, colours, 3, range(label, label + 1))
            assert chunk[:, 0].equal(whole[:3, label])
        resumed = HerdingStart()  # in the middle of a run
        resumed.check(colours, SPEC, 6)
        assert resumed.draw(teacher, colours, 4, range(2), 0).mean(dim=(2, 3)).equal(whole[4])
        assert HerdingStart().draw(teacher, colours, 0, range(0), 0).shape == (0, 3, 8, 8)

    def test_is_asked_of_the_teacher_once_a_run(self, teacher: Teacher, colours: TensorImages) -> None:
        seen: list[int] = []
        handle = teacher.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        self.drawn(HerdingStart(), teacher, colours, 4, range(2))
        handle.remove()
        assert sum(seen) == 24

    def test_takes_candidates_at_random(self, teacher: Teacher, colours: TensorImages) -> None:
        positions = colours.positions_of(1)
        chosen = []
        for seed in (0, 1):
            start = HerdingStart(candidates=4)
            start.check(colours, SPEC, 4)
            start.settle(teacher, colours, range(2), seed)
            chosen.append(set(start.sources(positions, 4, seed, 1).tolist()))
            assert len(chosen[-1]) == 4
            assert chosen[-1] < set(positions.tolist())
        assert chosen[0] != chosen[1], "another seed, other candidates"

    def test_says_which_images_it_takes(self, teacher: Teacher, colours: TensorImages) -> None:
        start = HerdingStart()
        start.check(colours, SPEC, 3)
        positions = colours.positions_of(1)
        assert len(start.sources(positions, 3, 0, 1)) == 3, "as many, before the teacher is known"
        start.settle(teacher, colours, range(2), 0)
        taken = start.sources(positions, 3, 0, 1)
        drawn = [start.draw(teacher, colours, i, range(1, 2), 0)[0] for i in range(3)]
        assert SPEC.normalise(colours.read(taken.tolist())).equal(torch.stack(drawn))

    def test_bad_numbers_are_refused(self, colours: TensorImages) -> None:
        with pytest.raises(ValueError, match="candidates: got 0, expected at least 1"):
            HerdingStart(candidates=0)
        with pytest.raises(ValueError, match="candidates: got 4, expected at least one for each of 5 rounds"):
            HerdingStart(candidates=4).check(colours, SPEC, 5)
        with pytest.raises(ValueError, match="has 12 training images, expected at least 13"):
            HerdingStart().check(colours, SPEC, 13)


class TestCollage:
    def test_holds_the_images_that_the_teacher_is_surest_of(self, teacher: Teacher, levels: TensorImages) -> None:
        dark, light = Collage().draw(teacher, levels, 0, range(2), seed=0)
        assert patches_of(dark) == [0, 10, 20, 30]
        assert patches_of(light) == [95, 85, 75, 65]

    def test_later_rounds_take_the_next_ones(self, teacher: Teacher, levels: TensorImages) -> None:
        (light,) = Collage().draw(teacher, levels, 1, range(1, 2), seed=0)
        assert patches_of(light) == [55, 45, 35, 25]
        (light,) = Collage().draw(teacher, levels, 2, range(1, 2), seed=0)
        assert patches_of(light) == [15, 5, 95, 85], "where images run out, second-best crops follow"

    def test_takes_the_best_crop_of_an_image(self, teacher: Teacher) -> None:
        """One image a class, half black and half white: the best crop of each is the one that suits its class."""
        half = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        half[..., 4:] = 255
        images, seed = TensorImages(half, torch.tensor([0, 1])), 3
        collage = Collage(factor=1, crops=6, crop_scale=(0.1, 0.3)).draw(teacher, images, 0, range(2), seed)
        boxes = RandomCrops(seed_for(seed, "collage"), (0.1, 0.3), (1.0, 1.0))
        for label, pick in ((0, min), (1, max)):
            crops = [SPEC.normalise(images.read_crops([label], boxes, crop))[0] for crop in range(6)]
            expected = pick(crops, key=lambda crop: float(crop.mean()))
            assert torch.equal(collage[label], expected)
            assert len({float(crop.mean()) for crop in crops}) > 1

    def test_is_scored_as_a_patch_within_a_frame(self, teacher: Teacher, levels: TensorImages) -> None:
        seen: list[Tensor] = []
        teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        Collage(factor=3, crops=1).draw(teacher, levels, 0, range(1, 2), seed=0)
        (framed,) = seen
        assert framed.shape == (10, 3, 8, 8)
        assert framed[:, :, 2:5, 2:5].min() > 0
        assert framed.count_nonzero() == 10 * 3 * 9

    def test_follows_from_seed_round_and_class_only(self, tiny_teacher: Teacher, folder_data: ImageFolderData) -> None:
        start, images = Collage(crops=3, candidates=4), folder_data.train
        whole = start.draw(tiny_teacher, images, 0, range(3), seed=1)
        assert whole.shape == (3, 3, 12, 12)
        assert torch.equal(start.draw(tiny_teacher, images, 0, range(1, 3), seed=1), whole[1:]), "not from the chunk"
        for round_index, seed in ((1, 1), (0, 2)):
            other = start.draw(tiny_teacher, images, round_index, range(3), seed)
            assert all(not torch.equal(*pair) for pair in zip(other, whole, strict=True))
        assert not whole.requires_grad

    def test_is_better_known_to_the_teacher_than_real_images(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData
    ) -> None:
        real = RealStart().draw(tiny_teacher, folder_data.train, 0, range(3), 0)
        collage = Collage(factor=1).draw(tiny_teacher, folder_data.train, 0, range(3), 0)
        losses = [F.cross_entropy(tiny_teacher.network(one), torch.arange(3)) for one in (collage, real)]
        assert losses[0] < losses[1]

    def test_too_few_crops(self, folder_data: ImageFolderData) -> None:
        Collage(crops=2).check(folder_data.train, folder_data.spec, 5)
        with pytest.raises(ValueError, match=r"class 'blue' has 20 crops .*expected at least 24 for 6 collage\(s\)"):
            Collage(crops=2).check(folder_data.train, folder_data.spec, 6)
        with pytest.raises(ValueError, match=r"class 'blue' has 3 crops \(3 candidate images"):
            Collage(crops=1, candidates=3).check(folder_data.train, folder_data.spec, 1)
        with pytest.raises(ValueError, match="factor of 13, expected at most 12"):
            Collage(factor=13, crops=40).check(folder_data.train, folder_data.spec, 1)

    @pytest.mark.parametrize("name", ["factor", "crops", "candidates"])
    def test_numbers_out_of_range(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"start\.init_args\.{name}: got 0, expected at least 1"):
            Collage(**{name: 0})
        with pytest.raises(ValueError, match="crop scale: got"):
            Collage(crop_scale=(0.5, 0.1))


def test_best_crops_of_every_image_come_first() -> None:
    losses = torch.tensor([[3.0, 1.0, 9.0], [2.0, 4.0, 8.0]])  # crops × images
    assert best_crops(losses).tolist() == [[0, 1], [1, 0], [1, 2], [0, 0], [1, 1], [0, 2]]


def test_tiles_fill_the_image_where_the_factor_does_not_divide_it() -> None:
    images = torch.arange(9.0)[:, None, None, None].expand(9, 1, 8, 8)
    tiled = tile(images, 3)
    assert tiled.shape == (1, 8, 8)
    assert tiled[0, :, 0].round().tolist() == [0, 0, 0, 3, 3, 3, 6, 6]
    assert tiled[0, 7].round().tolist() == [6, 6, 6, 7, 7, 7, 8, 8]
    assert torch.equal(tile(images[:1], 1), images[0])


class TestNames:
    @pytest.mark.parametrize(
        ("name", "ipc", "expected"),
        [
            ("real", 1, RealStart), ("noise", 1, NoiseStart), ("collage", 10, Collage),
            ("auto", 1, Collage), ("auto", 2, RealStart),
        ],
    )  # fmt: skip
    def test_stand_for_classes(self, name: str, ipc: int, expected: type[Start]) -> None:
        assert type(chosen_start(name, ipc)) is expected  # type: ignore[arg-type]

    def test_unknown(self) -> None:
        with pytest.raises(
            ValueError, match=r"start: got 'grey', expected auto, real, herding, noise, collage or a Start class"
        ):
            DistillationModule(1, CFM(), start="grey")  # type: ignore[arg-type]

    def test_a_run_knows_what_it_started_from(self) -> None:
        texts = {str(one) for one in (RealStart(), NoiseStart(), Collage(), Collage(factor=3), Collage(candidates=9))}
        assert len(texts) == 5


def test_a_run_starts_from_its_collages(
    tiny_teacher: Teacher, tiny_statistics: Statistics, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    start = Collage(crops=2, candidates=5)
    real = RealSide(tiny_teacher, tiny_statistics, folder_data.train)
    _module, trace = run(real, tmp_path, start=start, ipc=1, iterations=1, lr=1e-6, seed=4, running="off")
    expected = start.draw(tiny_teacher, folder_data.train, 0, range(2), seed=4)
    torch.testing.assert_close(trace.images[0], expected, atol=1e-5, rtol=0)


def test_on_the_command_line(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parent.parent / "configs/cfm_folder.yaml"
    arguments = [
        "fit", "--config", str(config), "--data.init_args.root", str(image_folder), "--teacher.epochs", "1",
        "--teacher.network", "convnet-w4-d1", "--model.init_args.iterations", "1", "--tracking.enabled", "false",
        "--trainer.enable_progress_bar", "false", "--model.init_args.ipc", "1",
    ]  # fmt: skip
    collage = ["--model.init_args.start", "unidd_pl.starts.Collage", "--model.init_args.start.crops", "1"]
    main([*arguments, *collage])
    assert (tmp_path / "runs/cfm_folder/distilled.safetensors").is_file()
    with pytest.raises(SystemExit):
        main([*arguments, *collage, "--model.init_args.start.candidates", "2", "--output_dir", "other"])
    assert "class 'blue' has 2 crops" in capsys.readouterr().err
