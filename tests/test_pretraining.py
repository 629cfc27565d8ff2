"""The teacher: trained, cached, loaded, and refused where it does not fit the data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from unidd_pl import pretraining, teachers
from unidd_pl.data import ImageFolderData, TensorImages
from unidd_pl.pretraining import (
    TeacherModule,
    TeacherRecipe,
    is_cached,
    obtain_teacher,
    recipe_key,
    train_teacher,
)
from unidd_pl.stages import teacher_stage
from unidd_pl.teachers import (
    Teacher,
    accuracy_of,
    find_teacher,
    fingerprint_of,
    load_teacher,
    predictions,
    save_teacher,
)
from unidd_pl.tracking import Tracking

NETWORK = "convnet-w8-d2"


def quick_recipe(**changes: Any) -> TeacherRecipe:
    """Enough for three colours: 24 steps."""
    settings: dict[str, Any] = {"network": NETWORK, "epochs": 8, "batch_size": 10, "lr": 0.05, "crop_padding": 1}
    return TeacherRecipe(**(settings | changes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "teachers"


@pytest.fixture(scope="module")
def trained(folder_data: ImageFolderData, cache: Path) -> Teacher:
    """The teacher of `quick_recipe`, in `cache`."""
    return obtain_teacher(quick_recipe(), folder_data, cache, accelerator="cpu")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained a teacher that was there")

    monkeypatch.setattr(pretraining, "train_teacher", fail)


@pytest.fixture
def copied_data(image_folder: Path, tmp_path: Path) -> Callable[..., ImageFolderData]:
    """Make a data module of a private copy, after a change to its folder; named as the original."""

    def make(change: Callable[[Path], object], **settings: Any) -> ImageFolderData:
        root = Path(shutil.copytree(image_folder, tmp_path / image_folder.name))
        change(root)
        return ImageFolderData(str(root), **settings)

    return make


class TestRecipe:
    @pytest.mark.parametrize("name", ["epochs", "batch_size", "lr"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_refuses_what_trains_nothing(self, name: str, value: int) -> None:
        with pytest.raises(ValueError, match=rf"teacher\.{name}: got {value}, expected > 0"):
            TeacherRecipe(**{name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "change",
        [
            {"network": "convnet-w4-d2"},
            {"epochs": 9},
            {"batch_size": 11},
            {"lr": 0.06},
            {"momentum": 0.8},
            {"nesterov": False},
            {"weight_decay": 0.0},
            {"schedule": "cosine"},
            {"warmup_epochs": 1},
            {"crop_padding": 0},
            {"flip": False},
            {"precision": "bf16-mixed"},
            {"seed": 1},
            {"crop_scale": (0.1, 1.0), "crop_padding": 0},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_key_depends_on_each_setting(self, folder_data: ImageFolderData, change: dict[str, Any]) -> None:
        assert recipe_key(quick_recipe(**change), folder_data) != recipe_key(quick_recipe(), folder_data)

    def test_every_setting_is_tried_above(self) -> None:
        tried = set(TeacherRecipe(crop_padding=0, crop_scale=(0.1, 1.0)).training_settings())
        assert tried == set(vars(TeacherRecipe())) - {"checkpoint", "check"}
        assert len(tried) == 14

    def test_key_does_not_depend_on_how_a_checkpoint_is_loaded(self, folder_data: ImageFolderData) -> None:
        other = quick_recipe(checkpoint="some.pt", check=False)
        assert recipe_key(other, folder_data) == recipe_key(quick_recipe(), folder_data)

    def test_key_depends_on_the_training_images(
        self, folder_data: ImageFolderData, copied_data: Callable[..., ImageFolderData]
    ) -> None:
        other = copied_data(lambda root: Image.new("RGB", (12, 12)).save(root / "train" / "red" / "00.png"))
        assert recipe_key(quick_recipe(), other) != recipe_key(quick_recipe(), folder_data)

    def test_key_depends_on_the_normalisation(self, folder_data: ImageFolderData, image_folder: Path) -> None:
        other = ImageFolderData(str(image_folder), mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
        assert recipe_key(quick_recipe(), other) != recipe_key(quick_recipe(), folder_data)

    def test_key_does_not_depend_on_the_place_or_the_test_images(
        self, folder_data: ImageFolderData, copied_data: Callable[..., ImageFolderData]
    ) -> None:
        moved = copied_data(lambda root: (root / "test" / "red" / "00.png").unlink())
        assert recipe_key(quick_recipe(), moved) == recipe_key(quick_recipe(), folder_data)


class TestTraining:
    def test_learns_the_colours(self, trained: Teacher, folder_data: ImageFolderData) -> None:
        assert trained.accuracy is not None
        assert trained.accuracy >= 0.9
        assert trained.accuracy == accuracy_of(trained.network, folder_data.spec, folder_data.test)
        assert accuracy_of(trained.network, folder_data.spec, folder_data.train) >= 0.9
        assert trained.spec == folder_data.spec

    def test_is_frozen(self, trained: Teacher) -> None:
        assert not any(module.training for module in trained.network.modules())
        assert not any(parameter.requires_grad for parameter in trained.network.parameters())

    def test_gradient_flows_through_it_to_the_images(self, trained: Teacher) -> None:
        images = torch.randn(2, 3, 12, 12, requires_grad=True)
        trained.network(images).square().sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0

    def test_same_recipe_gives_the_same_bits(
        self, trained: Teacher, folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        torch.manual_seed(12345)  # the global seed plays no part
        again = train_teacher(quick_recipe(), folder_data, tmp_path, accelerator="cpu")
        for key, value in trained.network.state_dict().items():
            assert torch.equal(again.network.state_dict()[key], value), key
        assert again.path.name == trained.path.name

    @pytest.mark.parametrize(
        "change",
        [{"schedule": "cosine", "warmup_epochs": 1}, {"schedule": "cosine"}, {"batch_size": 29, "crop_padding": 0}],
        ids=["cosine after a warm-up", "cosine", "one image left over"],
    )
    def test_other_settings_train_too(
        self, trained: Teacher, folder_data: ImageFolderData, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        other = train_teacher(quick_recipe(epochs=2, **change), folder_data, tmp_path, accelerator="cpu")
        assert other.fingerprint != trained.fingerprint
        assert all(value.isfinite().all() for value in other.network.state_dict().values())

    def test_accuracy_is_unknown_without_a_test_split(
        self, copied_data: Callable[..., ImageFolderData], tmp_path: Path
    ) -> None:
        data = copied_data(lambda root: shutil.rmtree(root / "test"))
        teacher = train_teacher(quick_recipe(epochs=1), data, tmp_path / "cache", accelerator="cpu")
        assert teacher.accuracy is None
        assert load_teacher(teacher.path, NETWORK, data).accuracy is None

    @pytest.mark.parametrize(("batch_size", "batches"), [(29, 1), (28, 2), (30, 1), (10, 3)])
    def test_a_last_batch_of_one_image_is_left_out(
        self, folder_data: ImageFolderData, tiny_teacher: Teacher, batch_size: int, batches: int
    ) -> None:
        recipe = quick_recipe(batch_size=batch_size)
        module = TeacherModule(tiny_teacher.network, recipe, folder_data.spec, folder_data.train)
        assert len(list(module.train_dataloader())) == batches


def learning_rates(recipe: TeacherRecipe, data: ImageFolderData, total: int) -> list[float]:
    """Learning rate of each of `total` steps."""
    module = TeacherModule(torch.nn.Linear(2, 2), recipe, data.spec, data.train)
    module._trainer = SimpleNamespace(estimated_stepping_batches=total)  # type: ignore[assignment]
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


class TestSchedule:
    def test_onecycle_goes_up_to_the_rate_and_down_to_nothing(self, folder_data: ImageFolderData) -> None:
        rates = learning_rates(quick_recipe(lr=0.4), folder_data, 20)
        peak = rates.index(max(rates))
        assert max(rates) == pytest.approx(0.4)
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[-1] < 1e-4 * 0.4

    def test_cosine_goes_down_from_the_rate(self, folder_data: ImageFolderData) -> None:
        rates = learning_rates(quick_recipe(lr=0.4, schedule="cosine"), folder_data, 20)
        expected = 0.2 * (1 + torch.cos(torch.pi * torch.arange(20, dtype=torch.float64) / 20))
        assert rates == pytest.approx(expected.tolist())

    def test_warm_up_is_linear(self, folder_data: ImageFolderData) -> None:
        recipe = quick_recipe(lr=0.4, schedule="cosine", epochs=10, warmup_epochs=2)
        rates = learning_rates(recipe, folder_data, 20)
        assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
        expected = 0.2 * (1 + torch.cos(torch.pi * torch.arange(16, dtype=torch.float64) / 16))
        assert rates[4:] == pytest.approx(expected.tolist())


class TestCache:
    @pytest.mark.usefixtures("no_training")
    def test_second_time_nothing_is_trained(self, trained: Teacher, folder_data: ImageFolderData, cache: Path) -> None:
        assert is_cached(quick_recipe(), folder_data, cache)
        teacher = obtain_teacher(quick_recipe(), folder_data, cache)
        assert teacher.fingerprint == trained.fingerprint
        assert (teacher.path, teacher.accuracy, teacher.spec) == (trained.path, trained.accuracy, trained.spec)
        assert not any(parameter.requires_grad for parameter in teacher.network.parameters())

    def test_other_settings_are_not_cached(self, trained: Teacher, folder_data: ImageFolderData, cache: Path) -> None:
        assert trained.path.parent == cache
        assert not is_cached(quick_recipe(seed=1), folder_data, cache)
        assert not is_cached(quick_recipe(), folder_data, cache / "nowhere")

    def test_found_by_its_fingerprint(self, trained: Teacher, cache: Path, tmp_path: Path) -> None:
        assert find_teacher(trained.fingerprint, cache) == trained.path
        assert find_teacher("0" * 64, cache) is None
        assert find_teacher(trained.fingerprint, tmp_path / "nowhere") is None

    @pytest.mark.usefixtures("no_training")
    def test_given_checkpoint_is_copied_into_the_cache_once(
        self, trained: Teacher, folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        given = tmp_path / "given.pt"
        torch.save(trained.network.state_dict(), given)
        recipe = quick_recipe(checkpoint=str(given))
        cache = tmp_path / "cache"
        assert is_cached(recipe, folder_data, cache)
        for _ in range(2):
            teacher = obtain_teacher(recipe, folder_data, cache)
        assert teacher.fingerprint == trained.fingerprint
        (copied,) = cache.iterdir()
        assert find_teacher(trained.fingerprint, cache) == copied
        assert load_teacher(copied, None, folder_data).accuracy is None

    def test_fingerprint_depends_on_name_and_weights(self, tiny_teacher: Teacher, trained: Teacher) -> None:
        network = tiny_teacher.network
        prints = {
            tiny_teacher.fingerprint,
            trained.fingerprint,
            fingerprint_of("other", network),
        }
        assert len(prints) == 3
        assert fingerprint_of(NETWORK, network) == tiny_teacher.fingerprint

    def test_stage_says_whether_it_trained(
        self, folder_data: ImageFolderData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe, tracking = quick_recipe(epochs=1), Tracking(enabled=False)
        first = teacher_stage(recipe, folder_data, tmp_path, tracking, accelerator="cpu")
        said = capsys.readouterr().out
        assert f"none yet for {NETWORK} on colours; training one for 1 epochs" in said
        assert f"kept in {first.path}" in said
        second = teacher_stage(recipe, folder_data, tmp_path, tracking, accelerator="cpu")
        assert f"% on the test images, from {first.path}" in capsys.readouterr().out
        assert second.fingerprint == first.fingerprint


class TestLoading:
    @pytest.fixture
    def resaved(self, trained: Teacher, tmp_path: Path) -> Callable[..., Path]:
        """Write the trained teacher as if it had been made for another spec."""

        def write(**changes: Any) -> Path:
            path = tmp_path / "resaved.safetensors"
            save_teacher(path, replace(trained, spec=replace(trained.spec, **changes)))
            return path

        return write

    def test_name_comes_from_the_file(self, trained: Teacher, folder_data: ImageFolderData) -> None:
        assert load_teacher(trained.path, None, folder_data).name == NETWORK

    def test_other_architecture(self, trained: Teacher, folder_data: ImageFolderData) -> None:
        message = rf"is a {NETWORK}, expected convnet-w4-d2: set --teacher\.network {NETWORK}"
        with pytest.raises(ValueError, match=message):
            load_teacher(trained.path, "convnet-w4-d2", folder_data)

    def test_other_class_count(self, trained: Teacher, copied_data: Callable[..., ImageFolderData]) -> None:
        def another_class(root: Path) -> None:
            for split in ("train", "test"):
                shutil.copytree(root / split / "red", root / split / "violet")

        with pytest.raises(ValueError, match=r"another data set; number of classes: got 3, expected 4"):
            load_teacher(trained.path, NETWORK, copied_data(another_class))

    def test_classes_in_another_order(self, resaved: Callable[..., Path], folder_data: ImageFolderData) -> None:
        path = resaved(classes=("red", "green", "blue"))
        message = r"classes, in order: got \('red', 'green', 'blue'\), expected \('blue', 'green', 'red'\)"
        with pytest.raises(ValueError, match=message):
            load_teacher(path, NETWORK, folder_data)

    def test_other_image_size(self, resaved: Callable[..., Path], folder_data: ImageFolderData) -> None:
        with pytest.raises(ValueError, match=r"image shape: got \(3, 16, 16\), expected \(3, 12, 12\)"):
            load_teacher(resaved(image_size=16), NETWORK, folder_data)

    @pytest.mark.parametrize("what", ["mean", "std"])
    def test_other_normalisation(self, resaved: Callable[..., Path], folder_data: ImageFolderData, what: str) -> None:
        values = getattr(folder_data.spec, what)
        path = resaved(**{what: (values[0], values[1] + 1e-3, values[2])})
        with pytest.raises(ValueError, match=rf"trained with the {what} .*set --data\.init_args\.mean and "):
            load_teacher(path, NETWORK, folder_data)

    def test_rounded_normalisation_is_the_same(
        self, resaved: Callable[..., Path], folder_data: ImageFolderData, trained: Teacher
    ) -> None:
        rounded = {what: tuple(round(v, 4) for v in getattr(folder_data.spec, what)) for what in ("mean", "std")}
        assert load_teacher(resaved(**rounded), NETWORK, folder_data).fingerprint == trained.fingerprint

    def test_truncated_file(self, trained: Teacher, folder_data: ImageFolderData, tmp_path: Path) -> None:
        path = tmp_path / "broken.safetensors"
        path.write_bytes(trained.path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"cannot read the teacher .*broken\.safetensors .*whole safetensors"):
            load_teacher(path, NETWORK, folder_data)

    @pytest.mark.parametrize("name", [NETWORK, None])
    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_missing_file(self, folder_data: ImageFolderData, tmp_path: Path, suffix: str, name: str | None) -> None:
        with pytest.raises(ValueError, match=rf"gone\.{suffix}: got no such file"):
            load_teacher(tmp_path / f"gone.{suffix}", name, folder_data)


class TestPlainStateDict:
    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_is_loaded_and_claims_nothing(
        self, trained: Teacher, folder_data: ImageFolderData, tmp_path: Path, suffix: str
    ) -> None:
        path = tmp_path / f"plain.{suffix}"
        state = {key: value.contiguous() for key, value in trained.network.state_dict().items()}
        (torch.save if suffix == "pt" else safetensors.torch.save_file)(state, path)
        teacher = load_teacher(path, NETWORK, folder_data)
        assert teacher.accuracy is None  # the preflight measures it
        assert teacher.fingerprint == trained.fingerprint
        assert not any(module.training for module in teacher.network.modules())
        assert not any(parameter.requires_grad for parameter in teacher.network.parameters())

    def test_permuted_outputs_are_found(self, trained: Teacher, folder_data: ImageFolderData, tmp_path: Path) -> None:
        state = dict(trained.network.state_dict())
        for key in ("classifier.weight", "classifier.bias"):
            state[key] = state[key].roll(1, dims=0)
        path = tmp_path / "permuted.pt"
        torch.save(state, path)
        message = (
            r"takes \d+ of 10 training images of the class 'blue' \(label 0\) for 'green' \(label 1\): its classes are "
            r"in another order .*--teacher\.check false"
        )
        with pytest.raises(ValueError, match=message):
            load_teacher(path, NETWORK, folder_data)
        unchecked = load_teacher(path, NETWORK, folder_data, check=False)
        assert accuracy_of(unchecked.network, folder_data.spec, folder_data.test) <= 0.1

    def test_needs_the_name_of_its_architecture(
        self, trained: Teacher, folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        path = tmp_path / "plain.pt"
        torch.save(trained.network.state_dict(), path)
        with pytest.raises(ValueError, match=r"does not name its architecture: give it with --teacher\.network"):
            load_teacher(path, None, folder_data)

    def test_of_another_architecture(self, trained: Teacher, folder_data: ImageFolderData, tmp_path: Path) -> None:
        path = tmp_path / "plain.pt"
        torch.save(trained.network.state_dict(), path)
        with pytest.raises(ValueError, match=r"plain\.pt: got the weights of another architecture"):
            load_teacher(path, "convnet-w8-d1", folder_data)


class TestScores:
    def test_predictions_are_those_of_the_network_in_order(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(teachers, "_TEST_BATCH", 5)
        parts = list(predictions(tiny_teacher.network, folder_data.spec, folder_data.test))
        assert [len(labels) for _, labels in parts] == [5, 5, 2]
        logits = torch.cat([part for part, _ in parts])
        expected = tiny_teacher.network(folder_data.spec.normalise(folder_data.test.read(range(12))))
        torch.testing.assert_close(logits, expected)
        assert torch.equal(torch.cat([labels for _, labels in parts]), folder_data.test.labels)

    def test_accuracy_is_the_share_of_images_also_where_classes_are_unbalanced(
        self, tiny_teacher: Teacher, folder_data: ImageFolderData
    ) -> None:
        images = folder_data.train.read(range(30))
        guesses = tiny_teacher.network(folder_data.spec.normalise(images)).argmax(dim=1)
        labels = guesses.clone()
        labels[:6] = (labels[:6] + 1) % 3
        score = accuracy_of(tiny_teacher.network, folder_data.spec, TensorImages(images, labels))
        assert score == pytest.approx(24 / 30)


class TestResizedCrops:
    def test_crops_are_cut_by_the_loader(self, folder_data: ImageFolderData) -> None:
        recipe = TeacherRecipe(batch_size=7, crop_padding=0, crop_scale=(0.3, 0.9), seed=4)
        module = TeacherModule(torch.nn.Identity(), recipe, folder_data.spec, folder_data.train)
        (first, labels), *_ = module.train_dataloader()
        plain = TeacherRecipe(batch_size=7, crop_padding=0, seed=4)
        (whole, same), *_ = TeacherModule(
            torch.nn.Identity(), plain, folder_data.spec, folder_data.train
        ).train_dataloader()
        assert torch.equal(labels, same)
        assert first.shape == whole.shape
        assert not torch.equal(first, whole)

    def test_one_way_to_crop(self) -> None:
        with pytest.raises(ValueError, match=r"expected one of them: set --teacher\.crop_padding 0"):
            TeacherRecipe(crop_scale=(0.1, 1.0))

    def test_settings_of_teachers_without_crops_are_those_of_before(self) -> None:
        assert "crop_scale" not in TeacherRecipe().training_settings()
        cropped = TeacherRecipe(crop_padding=0, crop_scale=(0.1, 1.0)).training_settings()
        assert cropped["crop_scale"] == (0.1, 1.0)
