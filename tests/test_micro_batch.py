"""A chunk that the teacher sees in parts: the same loss, the same gradient, less memory.

Legend: n images, c channels, h w space, k classes.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from distillation_runs import run
from torch import Tensor, nn

from unidd_pl.augmentation import random_resized_crop, random_roll
from unidd_pl.data.folder import ImageFolderData
from unidd_pl.distillation import DistillationModule
from unidd_pl.features import layers_to_tap
from unidd_pl.moment_pass import gather_moments
from unidd_pl.networks import ConvNet
from unidd_pl.objective import ChunkObjective, look, look_in_parts
from unidd_pl.observing import observing
from unidd_pl.real_side import RealSide
from unidd_pl.run_settings import Running
from unidd_pl.seeding import generator_for
from unidd_pl.spectral import CFM, METHODS, MatchingLoss, Method, RunningMode, RunningMoments, Signal
from unidd_pl.statistics import Statistics, gather_statistics
from unidd_pl.synthetic import ChunkStore
from unidd_pl.teachers import Teacher

CHUNK = 7  # images; parts of 3 leave one of 1
CLASSES = 3


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Teacher) -> Teacher:
    """The tiny teacher in float64 with normalisation that does something."""
    network = copy.deepcopy(tiny_teacher.network).double()
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = 0.2 * torch.randn(layer.num_features, generator=generator, dtype=torch.float64)
            layer.running_var = 0.5 + torch.rand(layer.num_features, generator=generator, dtype=torch.float64)
    return Teacher(network, tiny_teacher.name, tiny_teacher.spec, None, tiny_teacher.path)


@pytest.fixture(scope="module")
def real_sides(teacher: Teacher, folder_data: ImageFolderData) -> Callable[[Method, Signal], RealSide]:
    kept: dict[tuple[str, Signal], RealSide] = {}
    pixels = teacher.spec.normalise(folder_data.train.read(range(30))).double()
    batches = [(teacher.spec.denormalise(pixels), folder_data.train.labels)]

    def real_side(method: Method, signal: Signal) -> RealSide:
        key = (method.layers, signal)
        if key not in kept:
            layers = layers_to_tap(teacher.network, method.layers)
            moments = gather_moments(teacher, batches, layers, signal, teacher.spec)
            kept[key] = RealSide(teacher, Statistics(layers, moments, signal, {}), folder_data.train)
        return kept[key]

    return real_side


def images_of(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 12, 12, generator=generator, dtype=torch.float64)


def augment(images: Tensor) -> Tensor:
    generator = generator_for(0, "one draw for all parts")
    return random_roll(random_resized_crop(images, generator, scale=(0.5, 1.0), shared=True), generator)


def value_and_gradient(
    real: RealSide, method: Method, running: RunningMode | None, micro_batch: int | None
) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of a chunk; with running moments, after another chunk."""
    matching = MatchingLoss(method, real.statistics.moments, 0.05, relative=True)
    accumulated = None if running is None else RunningMoments(running)
    objective = ChunkObjective(real, matching, accumulated, 0.7, micro_batch)
    if accumulated is not None:
        first = images_of(5, seed=1)
        accumulated.update(objective(first, torch.arange(5) % CLASSES, augment, None, "first chunk").moments)
    images = images_of(CHUNK).requires_grad_()
    loss = objective(images, torch.arange(CHUNK) % CLASSES, augment, None, "second chunk")
    (gradient,) = torch.autograd.grad(loss.total, images)
    return loss.total.detach(), gradient


@pytest.mark.parametrize("method", [kind() for kind in METHODS], ids=lambda method: method.name)
@pytest.mark.parametrize("signal", get_args(Signal))
@pytest.mark.parametrize("running", [None, "mean", "merge"])
def test_parts_give_the_loss_and_the_gradient_of_the_whole(
    running: RunningMode | None,
    signal: Signal,
    method: Method,
    real_sides: Callable[[Method, Signal], RealSide],
) -> None:
    real = real_sides(method, signal)
    value, gradient = value_and_gradient(real, method, running, None)
    assert float(gradient.norm()) > 0
    for micro_batch in (1, 3, 4):
        got_value, got_gradient = value_and_gradient(real, method, running, micro_batch)
        torch.testing.assert_close(got_value, value, rtol=1e-9, atol=0)
        assert float((got_gradient - gradient).norm() / gradient.norm()) < 1e-9


def test_smaller_chunks_are_something_else(real_sides: Callable[[Method, Signal], RealSide]) -> None:
    """What parts must not be: the mean gradient of chunks of their size."""
    real = real_sides(CFM(), "mean")
    _, gradient = value_and_gradient(real, CFM(), None, None)
    objective = ChunkObjective(real, MatchingLoss(CFM(), real.statistics.moments, 0.05, relative=True), None, 0.7)
    images = images_of(CHUNK).requires_grad_()
    labels = torch.arange(CHUNK) % CLASSES
    losses = [objective(images[at], labels[at], augment, None, "").total for at in (slice(3), slice(3, CHUNK))]
    (other,) = torch.autograd.grad(losses[0] * 3 / CHUNK + losses[1] * 4 / CHUNK, images)
    assert float((other - gradient).norm() / gradient.norm()) > 1e-2


@pytest.mark.parametrize("micro_batch", [CHUNK, CHUNK + 1, None])
def test_a_chunk_that_fits_is_seen_once(micro_batch: int | None, teacher: Teacher) -> None:
    assert passes_of_a_step(teacher.network, micro_batch) == [CHUNK]


def test_parts_are_seen_twice(teacher: Teacher) -> None:
    # The second time from the last to the first, as the backward pass comes to them.
    assert passes_of_a_step(teacher.network, 3) == [3, 3, 1, 1, 3, 3]


def passes_of_a_step(network: nn.Module, micro_batch: int | None) -> list[int]:
    """Return the images of each forward pass of a step, in order."""
    sizes: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    images = images_of(CHUNK).requires_grad_()
    seen = look_in_parts(
        lambda images, labels: look(observing(network, layers_to_tap(network, "conv")), "mean", images, labels),
        images, torch.arange(CHUNK) % CLASSES, micro_batch,
    )  # fmt: skip
    (seen.cross_entropy + sum(moments.ffc.square().sum() for moments in seen.moments)).backward()  # type: ignore[no-untyped-call, union-attr]
    hook.remove()
    return sizes


def test_only_one_part_is_held_at_a_time() -> None:
    """What autograd keeps for the backward pass at any time is that of one part."""
    network = ConvNet(width=16, depth=2, channels=3, image_size=16, num_classes=4).eval().requires_grad_(False)
    whole, parts = (held_at_most(network, count=32, micro_batch=size) for size in (None, 4))
    assert parts < whole / 4
    # Twice the images in parts of the same size: nothing more, but for the images themselves.
    assert held_at_most(network, count=64, micro_batch=4) < 1.1 * parts


def held_at_most(network: nn.Module, count: int, micro_batch: int | None) -> int:
    """Return the most bytes of features that live at once, of tensors that the network has made."""
    alive: dict[int, int] = {}
    peak = 0

    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal peak
        storage = output.untyped_storage()
        alive[id(storage)] = storage.nbytes()
        weakref.finalize(storage, alive.pop, id(storage), None)
        weakref.finalize(output, alive.pop, id(storage), None)
        peak = max(peak, sum(alive.values()))

    hooks = [layer.register_forward_hook(note) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    images = torch.randn(count, 3, 16, 16, requires_grad=True)
    seen = look_in_parts(
        lambda images, labels: look(observing(network, layers_to_tap(network, "conv")), "mean", images, labels),
        images, torch.arange(count) % 4, micro_batch,
    )  # fmt: skip
    (seen.cross_entropy + sum(moments.ffc.square().sum() for moments in seen.moments)).backward()  # type: ignore[no-untyped-call, union-attr]
    for hook in hooks:
        hook.remove()
    return peak


@pytest.mark.parametrize(("running", "chunk_size"), [("auto", 3), ("merge", 2), ("off", 2)])
def test_a_run_in_parts_takes_the_same_course(
    running: Running, chunk_size: int, tiny_teacher: Teacher, tiny_statistics: Statistics,
    folder_data: ImageFolderData, tmp_path: Path,
) -> None:  # fmt: skip
    real = RealSide(tiny_teacher, tiny_statistics, folder_data.train)
    settings: dict[str, Any] = {"running": running, "chunk_size": chunk_size, "iterations": 2}
    module, whole = run(real, tmp_path / "whole", **settings)
    other, parts = run(real, tmp_path / "parts", **settings, micro_batch=1)
    assert other.run_digest == module.run_digest  # one may go on where the other stopped
    assert parts.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)
    torch.testing.assert_close(parts.gradients[0], whole.gradients[0], rtol=1e-3, atol=1e-6)
    assert parts.positions == whole.positions
    assert parts.losses == pytest.approx(whole.losses, rel=0.05)  # Adam amplifies the rounding


def test_half_precision_is_the_same_in_parts(
    tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    """The second pass runs under the autocast of the first."""
    layers = layers_to_tap(tiny_teacher.network, "conv")
    statistics = gather_statistics(tiny_teacher, folder_data, layers, "soft", batch_size=16)
    real = RealSide(tiny_teacher, statistics, folder_data.train)
    gradients: list[Tensor] = []
    for micro_batch in (None, 2):
        objective = ChunkObjective(real, MatchingLoss(CFM(), statistics.moments, 0.1), None, 0.1, micro_batch)
        images = images_of(6).float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(images, torch.arange(6) % CLASSES, lambda x: x, None, "")
        assert loss.total.dtype == torch.float32
        gradients += torch.autograd.grad(loss.total, images)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=1e-3 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("value", [0, -3])
def test_parts_without_images_are_refused(value: int) -> None:
    message = rf"model\.init_args\.micro_batch: got {value}, expected at least 1 image, or null"
    with pytest.raises(ValueError, match=message):
        DistillationModule(1, CFM(), micro_batch=value)


def test_a_chunk_in_parts_is_stored_whole(
    tiny_teacher: Teacher, tiny_statistics: Statistics, folder_data: ImageFolderData, tmp_path: Path
) -> None:
    real = RealSide(tiny_teacher, tiny_statistics, folder_data.train)
    module, _ = run(real, tmp_path, ipc=1, micro_batch=1)
    product = ChunkStore(tmp_path, module.spec).assemble(module.schedule, {}, module.run_digest)
    assert product.labels.tolist() == [0, 1, 2]
