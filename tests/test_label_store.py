"""The label store: its size, any way of loading it, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from unidd_pl.baselines import real_images
from unidd_pl.data import ImageFolderData
from unidd_pl.distilled import DistilledSet
from unidd_pl.ensembles import AveragedNetworks
from unidd_pl.evaluation import TrainingSet, train_student
from unidd_pl.label_codec import LabelCodec
from unidd_pl.label_file import LabelFacts, write_labels
from unidd_pl.label_store import LabelledViews, LabelStore
from unidd_pl.labels import distillation_loss
from unidd_pl.protocols import Protocol
from unidd_pl.stored_labels import real_images_alike
from unidd_pl.teachers import Teacher
from unidd_pl.views import ViewRecipe, Views

EPOCHS = 4
RECIPE = ViewRecipe(1, (0.3, 1.0), True, 1.0)


@pytest.fixture(scope="module")
def distilled(folder_data: ImageFolderData) -> DistilledSet:
    """Three real images of each class."""
    images = real_images(folder_data.train, folder_data.spec, 3, seed=0)
    return DistilledSet(images.pixels, images.labels, folder_data.spec, {})


@pytest.fixture(scope="module")
def facts(distilled: DistilledSet, tiny_teacher: Teacher) -> LabelFacts:
    views = Views(RECIPE, distilled.spec, len(distilled), EPOCHS, 7)
    teacher = {"network": tiny_teacher.name, "fingerprint": tiny_teacher.fingerprint, "accuracy": None}
    return LabelFacts(views, LabelCodec("float32", 3), distilled.fingerprint(), teacher, {"torch": torch.__version__})


@pytest.fixture(scope="module")
def logits_of(distilled: DistilledSet, tiny_teacher: Teacher, facts: LabelFacts) -> Callable[[int], Tensor]:
    @torch.inference_mode()
    def label(epoch: int) -> Tensor:
        views = facts.views.images(distilled.images, range(len(distilled)), epoch)
        logits: Tensor = tiny_teacher.network(views)
        return logits

    return label


@pytest.fixture
def written(tmp_path: Path, facts: LabelFacts, logits_of: Callable[[int], Tensor]) -> Path:
    path = tmp_path / "set.labels.safetensors"
    write_labels(path, facts, logits_of)
    return path


def shifted(logits: Tensor) -> Tensor:
    return logits - logits.amax(dim=1, keepdim=True)


# ---- size ----


@pytest.mark.parametrize("codec", [
    LabelCodec("float32", 3), LabelCodec("float16", 3), LabelCodec("int8", 3), LabelCodec("float16", 3, 1),
    LabelCodec("int8", 3, 2),
])  # fmt: skip
@pytest.mark.parametrize("epochs", [1, 5, 100])
def test_the_size_is_known_before(
    codec: LabelCodec, epochs: int, tmp_path: Path, facts: LabelFacts, distilled: DistilledSet
) -> None:
    one = replace(facts, codec=codec, views=replace(facts.views, epochs=epochs))
    path = tmp_path / "labels.safetensors"
    write_labels(path, one, lambda epoch: torch.randn(9, 3, generator=torch.Generator().manual_seed(epoch)))
    assert path.stat().st_size == one.file_bytes
    store = LabelStore(path)
    store.verify()
    assert store.facts == one
    expected = codec.decode(codec.encode(torch.randn(9, 3, generator=torch.Generator().manual_seed(epochs - 1))))
    assert torch.equal(store.rows(range(9), epochs - 1), expected)


def test_any_safetensors_reader_opens_it(written: Path, logits_of: Callable[[int], Tensor]) -> None:
    arrays = load_file(written)
    assert arrays["values"].shape == (EPOCHS, 9, 3)
    torch.testing.assert_close(arrays["values"][2], shifted(logits_of(2)))
    with safe_open(written, framework="pt") as file:
        header = json.loads(file.metadata()["unidd_pl"])
    assert header["spec"]["classes"] == ["blue", "green", "red"]
    assert header["augmentation"] == {"patch_shuffle": 1, "crop_scale": [0.3, 1.0], "flip": True, "cutmix_alpha": 1.0}
    assert (header["seed"], header["labels"]["dtype"], header["labels"]["temperature"]) == (7, "float32", 1.0)


def test_a_teacher_that_fails_leaves_the_old_file(written: Path, facts: LabelFacts) -> None:
    before = written.read_bytes()
    with pytest.raises(ValueError, match="got NaN or infinite logits"):
        write_labels(written, facts, lambda epoch: torch.full((9, 3), float("nan") if epoch else 0.0))
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]


# ---- loading ----


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (4, 0), (9, 0), (4, 2)])
def test_plain_pytorch_loads_it_in_any_batches(
    batch: int, workers: int, written: Path, distilled: DistilledSet, logits_of: Callable[[int], Tensor]
) -> None:
    store = LabelStore(written)
    views = LabelledViews(distilled, store)
    assert len(views) == EPOCHS * 9
    for epoch in (0, EPOCHS - 1, EPOCHS + 1):  # beyond what is stored it begins anew
        loader = DataLoader(views.epoch(epoch), batch_size=batch, num_workers=workers)
        images, logits = (torch.cat(parts) for parts in zip(*loader, strict=True))
        expected = store.views.images(distilled.images, range(9), epoch % EPOCHS)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, shifted(logits_of(epoch % EPOCHS)), rtol=1e-4, atol=1e-5)


def test_items_of_several_epochs_at_once(written: Path, distilled: DistilledSet) -> None:
    views = LabelledViews(distilled, LabelStore(written))
    places = [30, 2, 17, 3]
    for (image, logits), place in zip(views.__getitems__(places), places, strict=True):
        torch.testing.assert_close(image, views[place][0])
        assert torch.equal(logits, views[place][1])
    with pytest.raises(IndexError, match="got item 36, expected 0 to 35"):
        views[36]


def test_it_goes_to_another_process_as_its_path(written: Path) -> None:
    store = LabelStore(written)
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert torch.equal(pickle.loads(data).rows([3, 1], 2), store.rows([3, 1], 2))


# ---- training ----


def student(
    training_set: TrainingSet, teacher: Teacher, data: ImageFolderData, labels: str, **settings: Any
) -> dict[int, float]:
    protocol = Protocol(
        epochs=6, batch_size={1: settings.pop("batch", 4)}, lr=1e-2, crop_scale=(0.3, 1.0), labels=labels, **settings
    )
    return train_student("convnet-w8-d2", training_set, teacher, data.test, protocol, 0, label=None).accuracies


@pytest.mark.parametrize("batch", [2, 4, 9])
def test_a_student_of_exact_labels_is_that_of_the_teacher_on_the_same_views(
    batch: int, written: Path, distilled: DistilledSet, tiny_teacher: Teacher, folder_data: ImageFolderData
) -> None:
    store = LabelStore(written)
    live = TrainingSet(distilled.images, distilled.labels, 3, store.views)
    stored = replace(live, soft_labels=store)
    assert student(stored, tiny_teacher, folder_data, "stored", batch=batch) == student(
        live, tiny_teacher, folder_data, "stored", batch=batch
    )


def test_the_temperature_is_free(written: Path, logits_of: Callable[[int], Tensor]) -> None:
    store, outputs = LabelStore(written), torch.randn(9, 3)
    for temperature in (1.0, 20.0):
        got = distillation_loss(outputs, store.rows(range(9), 1), temperature)
        p = (logits_of(1) / temperature).double().softmax(dim=1)
        q = (outputs / temperature).double().softmax(dim=1)
        assert float(got) == pytest.approx(float((p * (p / q).log()).sum() / 9), rel=1e-3, abs=1e-7)


def test_real_images_have_as_many_views_of_their_own(written: Path, folder_data: ImageFolderData) -> None:
    store = LabelStore(written)
    real = real_images(folder_data.train, folder_data.spec, 4, seed=0)
    assert real_images_alike(real, None, 0) is real
    first, second = (real_images_alike(real, store, seed).views for seed in (0, 1))
    assert first is not None
    assert second is not None
    assert (first.recipe, first.epochs, first.count) == (RECIPE, EPOCHS, 12)
    assert first.seed != second.seed != store.views.seed


def test_several_networks_are_averaged(distilled: DistilledSet, tiny_teacher: Teacher) -> None:
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 3))
    images = distilled.spec.normalise(distilled.images)
    with torch.no_grad():
        both = AveragedNetworks([tiny_teacher.network, other])(images)
        expected = (tiny_teacher.network(images) + other(images)) / 2
        torch.testing.assert_close(both, expected)
        # At every temperature: the normalised geometric mean of the probabilities.
        product = (tiny_teacher.network(images) / 3).softmax(1).sqrt() * (other(images) / 3).softmax(1).sqrt()
        torch.testing.assert_close((both / 3).softmax(1), product / product.sum(1, keepdim=True))


# ---- what is refused ----


def changed_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    arrays = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["unidd_pl"])
    change(header)
    save_file(arrays, path, {"unidd_pl": json.dumps(header)})


def other_spec(distilled: DistilledSet, **changes: Any) -> DistilledSet:
    return DistilledSet(distilled.images, distilled.labels, replace(distilled.spec, **changes), {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "got no file at .* expected soft labels as `unidd relabel` writes them"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "truncated or damaged .* complete label store"),
        (lambda path: path.write_bytes(b"JPEG" * 100), "not a safetensors file .* expected a label store"),
        (lambda path: save_file({"w": torch.zeros(2)}, path), "without the tag 'unidd_pl.soft_labels'"),
        (lambda path: changed_header(path, lambda h: h.update(version=9)), "format version 9, expected at most 1"),
        (lambda path: changed_header(path, lambda h: h.update(epochs=5)), "got contradictory contents .*arrays"),
        (lambda path: changed_header(path, lambda h: h.pop("seed")), "got contradictory contents .*KeyError: 'seed'"),
        (lambda path: changed_header(path, lambda h: h.update(draws="x")), "of other views than are drawn here"),
        (lambda path: changed_header(path, lambda h: h.update(seed=8)), "of other views than are drawn here"),
    ],
)
def test_a_file_that_is_no_store(spoil: Callable[[Path], Any], message: str, written: Path) -> None:
    spoil(written)
    with pytest.raises(ValueError, match=message):
        LabelStore(written)


def test_labels_that_were_changed_or_are_not_finite(written: Path) -> None:
    start = struct.unpack("<Q", written.read_bytes()[:8])[0] + 8
    for place, value, message in (
        (start + 4 * 30, 0.5, "in epoch 1 other labels than were written"),
        (start + 4 * 9 * 3 * 3, float("nan"), "in epoch 3 labels that are NaN or infinite"),
    ):
        content = bytearray(written.read_bytes())
        content[place : place + 4] = struct.pack("<f", value)
        spoiled = written.with_name("spoiled.safetensors")
        spoiled.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            LabelStore(spoiled).verify()


def test_a_class_that_is_not_there(written: Path, facts: LabelFacts, logits_of: Callable[[int], Tensor]) -> None:
    write_labels(written, replace(facts, codec=LabelCodec("float16", 3, 2)), logits_of)
    arrays = load_file(written)
    arrays["indices"][2, 4, 1] = 3
    with safe_open(written, framework="pt") as file:
        metadata = file.metadata()
    save_file(arrays, written, metadata)
    with pytest.raises(ValueError, match="in epoch 2 labels of the classes 0 to 3, expected 0 to 2"):
        LabelStore(written).verify()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda d: other_spec(d, classes=("blue", "red", "green")),
            r"classes, in order: got \('blue', 'green', 'red'\)",
        ),
        (lambda d: other_spec(d, mean=(0.1, 0.2, 0.3)), "normalisation: got"),
        (lambda d: DistilledSet(d.images[:6], d.labels[:6], d.spec, {}), "number of images: got 9, expected 6"),
        (lambda d: DistilledSet(d.images.flip(0), d.labels, d.spec, {}), "distilled set: got [0-9a-f]{12}, expected"),
        (
            lambda d: DistilledSet(d.images[..., :8, :8], d.labels, replace(d.spec, image_size=8), {}),
            r"image shape: got \(3, 12, 12\), expected \(3, 8, 8\)",
        ),
    ],
)
def test_labels_of_another_set(
    make: Callable[[DistilledSet], DistilledSet], message: str, written: Path, distilled: DistilledSet
) -> None:
    with pytest.raises(ValueError, match=f"do not fit; {message}.*write labels for this set and protocol"):
        LabelStore(written).check_fits(make(distilled), RECIPE)


def test_labels_of_another_augmentation(written: Path, distilled: DistilledSet) -> None:
    store = LabelStore(written)
    store.check_fits(distilled, RECIPE)
    with pytest.raises(ValueError, match=r"do not fit; augmentation: got .*0\.3.*, expected .*0\.08"):
        store.check_fits(distilled, replace(RECIPE, crop_scale=(0.08, 1.0)))
