"""EvalModule: its loss against a written-out one, what a student learns, and the real images beside it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unidd_pl.baselines import real_images
from unidd_pl.data.folder import ImageFolderData
from unidd_pl.evaluation import EvalModule, TrainingSet, train_student
from unidd_pl.networks import build_network
from unidd_pl.protocols import Protocol
from unidd_pl.scores import StudentScore
from unidd_pl.teachers import Teacher, accuracy_of, freeze
from unidd_pl.training import quiet_lightning
from unidd_pl.views import ViewRecipe, Views

NETWORK = "convnet-w8-d2"


@pytest.fixture(scope="module")
def teacher(folder_data: ImageFolderData) -> Teacher:
    """A teacher that knows the three colours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(NETWORK, folder_data.spec)
    images = folder_data.spec.normalise(folder_data.train.read(range(len(folder_data.train))))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), folder_data.train.labels).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    freeze(network)
    teacher = Teacher(network, NETWORK, folder_data.spec, None, Path("none"))
    assert accuracy_of(network, folder_data.spec, folder_data.test) == 1.0
    return teacher


@pytest.fixture
def training_set(folder_data: ImageFolderData) -> TrainingSet:
    """Two images of each class."""
    return real_images(folder_data.train, folder_data.spec, 2, seed=0)


@pytest.fixture
def protocol() -> Protocol:
    return Protocol(epochs=4, batch_size={1: 4}, lr=1e-2)


class Looker(L.Callback):
    """Keeps what student and teacher saw, the losses, the rates and the modes."""

    def __init__(self) -> None:
        self.student_inputs: list[Tensor] = []
        self.teacher_inputs: list[Tensor] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.batches: list[list[int]] = []
        self.student_training: list[bool] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        assert isinstance(pl_module, EvalModule)
        self.batches.append(list(batch))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.student_training.append(all(layer.training for layer in pl_module.student.modules()))
        self._hooks = [
            network.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0].detach().clone()))
            for network, kept in (
                (pl_module.student, self.student_inputs),
                (pl_module._teacher[0], self.teacher_inputs),
            )
        ]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        for hook in self._hooks:
            hook.remove()


def module_for(
    teacher: Teacher, training_set: TrainingSet, data: ImageFolderData, protocol: Protocol, seed: int = 0
) -> EvalModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build_network(NETWORK, teacher.spec)
    return EvalModule(student, teacher.network, training_set, data.test, teacher.spec, protocol, seed)


def fit(module: EvalModule) -> Looker:
    looker = Looker()
    trainer = L.Trainer(
        max_epochs=module.protocol.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[looker],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with quiet_lightning():
        trainer.fit(module)
    return looker


def score_of(
    teacher: Teacher, training_set: TrainingSet, data: ImageFolderData, protocol: Protocol, seed: int = 0
) -> StudentScore:
    return train_student(NETWORK, training_set, teacher, data.test, protocol, seed, label="Student", accelerator="cpu")


# ---- loss ----


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_loss_is_the_written_out_one(
    temperature: float, teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData
) -> None:
    protocol = Protocol(epochs=1, batch_size={1: 4}, temperature=temperature)
    module = module_for(teacher, training_set, folder_data, protocol)
    student = copy.deepcopy(module.student).double().train()
    labeller = copy.deepcopy(teacher.network).double()
    looker = fit(module)
    images = looker.student_inputs[0]
    assert torch.equal(images, looker.teacher_inputs[0]), "the teacher labels what the student sees"
    with torch.no_grad():
        p = softmax(labeller(images.double()).numpy() / temperature)
        q = softmax(student(images.double()).numpy() / temperature)
    expected = (p * (np.log(p) - np.log(q))).sum() / len(images)  # mean over the batch, and no T²
    assert looker.losses[0] == pytest.approx(expected, rel=1e-4)


PLAIN = {"crop_scale": None, "flip": False, "cutmix_alpha": 0.0}
HARD = {"labels": "hard", "optimizer": "sgd", "schedule": "step", **PLAIN}


def test_hard_labels_are_a_cross_entropy_without_the_teacher(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData
) -> None:
    protocol = Protocol("hard", epochs=1, batch_size={1: 4}, **HARD)  # type: ignore[arg-type]
    module = module_for(teacher, training_set, folder_data, protocol)
    student = copy.deepcopy(module.student).double().train()
    looker = fit(module)
    assert not looker.teacher_inputs
    indices = looker.batches[0]
    assert torch.equal(looker.student_inputs[0], teacher.spec.normalise(training_set.pixels[indices]))
    with torch.no_grad():
        p = softmax(student(looker.student_inputs[0].double()).numpy())
    expected = -np.log(p[range(4), training_set.labels[indices].numpy()]).mean()
    assert looker.losses[0] == pytest.approx(expected, rel=1e-4)


def test_sgd_with_a_step_in_the_middle(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData
) -> None:
    protocol = Protocol("hard", epochs=4, batch_size={1: 6}, lr=0.02, **HARD)  # type: ignore[arg-type]
    module = module_for(teacher, training_set, folder_data, protocol)
    looker = fit(module)
    assert looker.rates == pytest.approx([0.02, 0.02, 0.002, 0.002])
    optimizer = module.optimizers()
    assert isinstance(optimizer.optimizer, torch.optim.SGD)  # type: ignore[union-attr]
    assert optimizer.param_groups[0]["momentum"] == 0.9  # type: ignore[union-attr]


@pytest.mark.parametrize("settings", [{"dsa": ["cutout"], "labels": "hard", "cutmix_alpha": 0.0}, {"patch_shuffle": 2}])
def test_other_augmentations_reach_the_student(
    settings: dict[str, Any], teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData
) -> None:
    protocol = Protocol(epochs=1, batch_size={1: 6}, **{**PLAIN, **settings})  # type: ignore[arg-type]
    looker = fit(module_for(teacher, training_set, folder_data, protocol))
    images = teacher.spec.normalise(training_set.pixels[looker.batches[0]])
    seen = looker.student_inputs[0]
    assert not torch.equal(seen, images)
    if "patch_shuffle" in settings:
        assert torch.equal(seen.flatten(2).sort().values, images.flatten(2).sort().values)
    else:
        blank = (seen == 0).all(dim=1)
        assert blank.flatten(1).any(dim=1).all()
        assert torch.equal(seen[~blank[:, None].expand_as(seen)], images[~blank[:, None].expand_as(seen)])


def test_the_images_are_cropped_flipped_and_mixed_anew(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData
) -> None:
    plain = Protocol(epochs=1, batch_size={1: 6}, crop_scale=(1.0, 1.0), flip=False, cutmix_alpha=0.0)
    looker = fit(module_for(teacher, training_set, folder_data, plain))
    as_they_are = teacher.spec.normalise(training_set.pixels)[looker.batches[0]]
    torch.testing.assert_close(looker.student_inputs[0], as_they_are, atol=1e-5, rtol=1e-5)
    for changes in ({"crop_scale": (0.08, 0.5)}, {"flip": True}, {"cutmix_alpha": 1.0}):
        settings = {"crop_scale": (1.0, 1.0), "flip": False, "cutmix_alpha": 0.0, **changes}
        protocol = Protocol(epochs=2, batch_size={1: 6}, **settings)  # type: ignore[arg-type]
        looker = fit(module_for(teacher, training_set, folder_data, protocol))
        orders = [torch.tensor(batch).argsort() for batch in looker.batches]
        first, second = (seen[order] for seen, order in zip(looker.student_inputs, orders, strict=True))
        assert not torch.allclose(first, second, atol=1e-3), changes


def test_the_rate_follows_the_protocol(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData, protocol: Protocol
) -> None:
    looker = fit(module_for(teacher, training_set, folder_data, protocol))
    expected = [1e-2 * protocol.lr_factor(epoch) for epoch in range(4) for _ in range(2)]  # two batches an epoch
    assert looker.rates == pytest.approx(expected)
    assert all(looker.student_training), "after a score the student trains on"


def test_each_epoch_sees_every_image_once_in_a_new_order(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData, protocol: Protocol
) -> None:
    batches = fit(module_for(teacher, training_set, folder_data, protocol)).batches
    assert [len(batch) for batch in batches] == [4, 2] * 4
    epochs = [batches[i] + batches[i + 1] for i in range(0, 8, 2)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    other = fit(module_for(teacher, training_set, folder_data, protocol, seed=1)).batches
    assert other != batches


# ---- views and labels of the set ----


def test_a_set_with_views_is_seen_by_them(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData
) -> None:
    views = Views(ViewRecipe(1, (0.08, 1.0), True, 1.0), folder_data.spec, len(training_set.labels), 2, seed=5)
    with_views = replace(training_set, views=views)
    protocol = Protocol(epochs=4, batch_size={1: 6}, labels="stored")
    looker = fit(module_for(teacher, with_views, folder_data, protocol))
    for epoch, batch in enumerate(looker.batches):
        seen = views.images(training_set.pixels, batch, views.epoch_at(epoch, 0))
        torch.testing.assert_close(looker.student_inputs[epoch], seen)
        assert torch.equal(looker.teacher_inputs[epoch], looker.student_inputs[epoch])


def test_stored_labels_need_views(teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData) -> None:
    with pytest.raises(ValueError, match=r"got labels stored and a set without a label store: write one with `unidd"):
        module_for(teacher, training_set, folder_data, Protocol(labels="stored"))


# ---- students ----


def test_a_student_learns_the_tiny_set(teacher: Teacher, folder_data: ImageFolderData) -> None:
    small = real_images(folder_data.train, folder_data.spec, 5, seed=0)
    score = score_of(teacher, small, folder_data, Protocol(epochs=30, batch_size={1: 15}, lr=1e-2))
    assert score.tail_mean > 0.8
    assert set(score.accuracies) == {6, 12, 18, *range(21, 31)}
    assert score.tail_epochs == tuple(range(21, 31))


def test_the_same_seed_gives_the_same_score(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData, protocol: Protocol
) -> None:
    torch.manual_seed(1)
    first = score_of(teacher, training_set, folder_data, protocol)
    torch.manual_seed(2)  # the global generator has no say
    assert score_of(teacher, training_set, folder_data, protocol) == first
    assert first.seed == 0


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData, protocol: Protocol
) -> None:
    modules = [module_for(teacher, training_set, folder_data, protocol) for _ in range(3)]
    modules[2].seed = 1  # the same student in another order and with other augmentation
    losses = [fit(module).losses for module in modules]
    assert losses[0] == losses[1] != losses[2]
    first, second, third = (module.student.state_dict() for module in modules)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], third["classifier.weight"])


def test_the_teacher_is_untouched(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData, protocol: Protocol
) -> None:
    before = teacher.fingerprint
    module = module_for(teacher, training_set, folder_data, protocol)
    fit(module)
    module.train()
    assert teacher.fingerprint == before
    assert not any(layer.training for layer in teacher.network.modules())
    assert all(weight.grad is None for weight in teacher.network.parameters())
    assert all(name.startswith("student.") for name in module.state_dict())


def test_scoring_does_not_change_the_student(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData
) -> None:
    often, seldom = (
        module_for(teacher, training_set, folder_data, Protocol(epochs=3, batch_size={1: 4})) for _ in range(2)
    )
    seldom._scored = frozenset({3})
    fit(often)
    fit(seldom)
    assert (set(often.accuracies), set(seldom.accuracies)) == ({1, 2, 3}, {3})
    for name, value in often.student.state_dict().items():
        assert torch.equal(value, seldom.student.state_dict()[name])


def test_a_last_batch_of_one_image(teacher: Teacher, folder_data: ImageFolderData) -> None:
    small = real_images(folder_data.train, folder_data.spec, 1, seed=0)
    score = score_of(teacher, small, folder_data, Protocol(epochs=1, batch_size={1: 2}))  # batches of 2 and 1
    assert set(score.accuracies) == {1}


def test_a_last_batch_of_one_image_at_one_position(teacher: Teacher, folder_data: ImageFolderData) -> None:
    # As ResNet-18 has on the 8 px digits: its last layers see one position, where one image has no variance.
    student = nn.Sequential(nn.Conv2d(3, 4, 12), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    small = real_images(folder_data.train, folder_data.spec, 1, seed=0)
    protocol = Protocol(epochs=1, batch_size={1: 2})
    module = EvalModule(student, teacher.network, small, folder_data.test, teacher.spec, protocol, 0)
    fit(module)
    assert set(module.accuracies) == {1}


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_pixels_of_both_forms(
    form: str, teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData, protocol: Protocol
) -> None:
    assert training_set.pixels.dtype == torch.uint8
    as_float = replace(training_set, pixels=training_set.pixels.float() / 255)
    given = training_set if form == "uint8" else as_float
    assert score_of(teacher, given, folder_data, protocol) == score_of(teacher, training_set, folder_data, protocol)


def test_a_set_above_the_budget_gives_the_same_score_from_where_it_is(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData, protocol: Protocol,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    expected = score_of(teacher, training_set, folder_data, protocol)
    monkeypatch.setattr("unidd_pl.evaluation.DEVICE_BUDGET", training_set.pixels.nbytes - 1)
    assert score_of(teacher, training_set, folder_data, protocol) == expected


def test_a_batch_is_never_larger_than_the_set(
    teacher: Teacher, training_set: TrainingSet, folder_data: ImageFolderData
) -> None:
    looker = fit(module_for(teacher, training_set, folder_data, Protocol(epochs=1, batch_size={1: 1000})))
    assert [len(batch) for batch in looker.batches] == [6]


# ---- real images ----


def test_real_images_are_balanced_distinct_and_of_the_training_split(folder_data: ImageFolderData) -> None:
    drawn = real_images(folder_data.train, folder_data.spec, 4, seed=0)
    assert drawn.ipc == 4
    assert torch.bincount(drawn.labels).tolist() == [4, 4, 4]
    assert drawn.pixels.dtype == torch.uint8
    everything = folder_data.train.read(range(len(folder_data.train)))
    places = []
    for pixels, label in zip(drawn.pixels, drawn.labels, strict=True):
        same = (everything == pixels).flatten(1).all(dim=1).nonzero().flatten().tolist()
        assert len(same) == 1
        assert folder_data.train.labels[same[0]] == label
        places.append(same[0])
    assert len(set(places)) == 12


def test_real_images_depend_on_the_seed_alone(folder_data: ImageFolderData) -> None:
    first, again, other = (real_images(folder_data.train, folder_data.spec, 4, seed=seed).pixels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_all_images_of_a_class_may_be_asked_for(folder_data: ImageFolderData) -> None:
    drawn = real_images(folder_data.train, folder_data.spec, 10, seed=0)
    assert len(drawn.labels) == len(folder_data.train)


def test_a_class_with_too_few_images_is_named(folder_data: ImageFolderData) -> None:
    with pytest.raises(ValueError, match="class 'blue' has 10 training images, expected at least 11"):
        real_images(folder_data.train, folder_data.spec, 11, seed=0)
