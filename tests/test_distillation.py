"""DistillationModule: its loss against a written-out one, its course, and what it leaves behind.

Legend: n images, c channels, k classes, s = n·h·w rows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from distillation_runs import Trace, run
from torch import Tensor, nn

from unidd_pl.data.folder import ImageFolderData
from unidd_pl.data.images import TensorImages
from unidd_pl.distillation import DistillationModule
from unidd_pl.distilled import DistilledSet
from unidd_pl.features import conv_layers
from unidd_pl.networks import ConvNet
from unidd_pl.real_side import RealSide
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import CFM, LFM, Moments, Signal
from unidd_pl.spectral import matching as matching_module
from unidd_pl.statistics import Statistics, gather_statistics
from unidd_pl.synthetic import ChunkStore, Position, real_start
from unidd_pl.teachers import Teacher, freeze
from unidd_pl.training import Iterations

Array = np.ndarray
CLASSES = 3


@pytest.fixture(scope="module")
def statistics_by_signal(
    tiny_teacher: Teacher, tiny_statistics: Statistics, folder_data: ImageFolderData
) -> dict[Signal, Statistics]:
    layers = conv_layers(tiny_teacher.network)
    return {
        "mean": tiny_statistics,
        "class": gather_statistics(tiny_teacher, folder_data, layers, "class", batch_size=16),
        "soft": gather_statistics(tiny_teacher, folder_data, layers, "soft", batch_size=16),
    }


@pytest.fixture(scope="module")
def finished(
    tiny_teacher: Teacher,
    tiny_statistics: Statistics,
    folder_data: ImageFolderData,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[DistillationModule, Trace, Path]:
    """A whole run over chunks that do not divide the classes; only looked at, never changed."""
    folder = tmp_path_factory.mktemp("chunks")
    module, trace = run(RealSide(tiny_teacher, tiny_statistics, folder_data.train), folder)
    return module, trace, folder


# ---- the loss, written out in float64 ----


@dataclass
class Seen:
    """A batch as the teacher sees it, float64."""

    rows: list[Array]
    """(s, c) features of each layer, one row a position."""
    pooled: list[Array]
    """(n, c) features of each layer, averaged over space."""
    weights: Array
    """(n, k) weight of each image for each class."""
    cross_entropy: float


def look(network: nn.Module, images: Tensor, labels: Sequence[int], signal: Signal) -> Seen:
    double = copy.deepcopy(network).double()
    features: list[Array] = []
    for layer in double.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].numpy()))
    with torch.no_grad():
        logits = double(images.double()).numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    return Seen(
        rows=[x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1]) for x in features],
        pooled=[x.mean(axis=(2, 3)) for x in features],
        weights=softmax if signal == "soft" else np.eye(CLASSES)[list(labels)],
        cross_entropy=float(-np.log(softmax[range(len(labels)), list(labels)]).mean()),
    )


def covariance(rows: Array) -> Array:
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / len(rows)


def class_columns(pooled: Array, weights: Array) -> Array:
    """Return Φ (c, k): column k is 1/K times the weighted mean of the pooled features."""
    totals = weights.sum(axis=0)
    return pooled.T @ weights / np.where(totals > 0, totals, 1) / CLASSES


def correlations(seen: Sequence[Seen], layer: int, signal: Signal, mode: str) -> tuple[Array, Array]:
    """Return (Ψ, Φ) of a layer over batches of which each is one chunk, merged or averaged."""
    if mode == "mean":
        psi = np.mean([covariance(one.rows[layer]) for one in seen], axis=0)
        if signal == "mean":
            return psi, np.mean([one.rows[layer].mean(axis=0) for one in seen], axis=0)[:, None]
        columns = np.stack([class_columns(one.pooled[layer], one.weights) for one in seen])
        holds = np.stack([one.weights.sum(axis=0) > 0 for one in seen])[:, None, :]
        return psi, (columns * holds).sum(axis=0) / np.maximum(holds.sum(axis=0), 1)
    rows = np.concatenate([one.rows[layer] for one in seen])
    if signal == "mean":
        return covariance(rows), rows.mean(axis=0)[:, None]
    pooled = np.concatenate([one.pooled[layer] for one in seen])
    return covariance(rows), class_columns(pooled, np.concatenate([one.weights for one in seen]))


def resolvent(psi: Array, beta: float) -> Array:
    eigenvalues, vectors = np.linalg.eigh(psi)
    return vectors / (eigenvalues + beta) @ vectors.T


def matching(
    real: Seen, synthetic: Sequence[Seen], beta: float, signal: Signal, mode: str, columns: slice, relative: bool
) -> float:
    total = 0.0
    for layer in range(len(real.rows)):
        (psi, phi), (psi_s, phi_s) = (
            correlations([real], layer, signal, "merge"),
            correlations(synthetic, layer, signal, mode),
        )
        f, f_s = resolvent(psi, beta), resolvent(psi_s, beta)
        # Φ of normalised pixels is next to zero: no scale is below a hundredth of one standard deviation.
        deviation = np.sqrt(np.trace(psi) / len(psi)) / (1 if signal == "mean" else phi.shape[1])
        least = 0.01 * np.linalg.norm(f @ np.full(phi.shape, deviation))
        for target, value, floor in ((f, f_s, 0.0), ((f @ phi)[:, columns], (f_s @ phi_s)[:, columns], least)):
            total += np.linalg.norm(target - value) / (max(np.linalg.norm(target), floor) if relative else 1)
    return total


@pytest.mark.parametrize(
    ("signal", "chunk_size", "running", "mode", "relative"),
    [
        ("mean", 2, "auto", "merge", False),
        ("mean", 3, "auto", "mean", False),
        ("mean", 2, "mean", "mean", False),
        ("mean", 2, "off", "off", False),
        ("class", 2, "auto", "merge", False),
        ("class", 2, "mean", "mean", True),
        ("class", 2, "off", "off", True),
        ("class", 3, "auto", "mean", False),
        ("soft", 2, "auto", "merge", True),
        ("soft", 2, "mean", "mean", False),
        ("soft", 2, "off", "off", False),
        ("soft", 3, "off", "off", False),
    ],
)
def test_every_loss_of_a_run_is_the_written_out_one(
    signal: Signal,
    chunk_size: int,
    running: str,
    mode: str,
    relative: bool,
    tiny_teacher: Teacher,
    statistics_by_signal: dict[Signal, Statistics],
    folder_data: ImageFolderData,
    tmp_path: Path,
) -> None:
    train = folder_data.train
    network = tiny_teacher.network
    pixels = tiny_teacher.spec.normalise(train.read(range(len(train))))
    everything = look(network, pixels, train.labels.tolist(), signal)
    module, trace = run(
        RealSide(tiny_teacher, statistics_by_signal[signal], train),
        tmp_path,
        signal=signal,
        chunk_size=chunk_size,
        running=running,
        relative=relative,
        beta=0.2,
        eta=0.3,
        iterations=2,
    )
    last_of_chunk: list[Seen] = []
    for step, position in enumerate(trace.positions):
        labels = list(range(CLASSES))[position.chunk_index * chunk_size :][:chunk_size]
        now = look(network, trace.inputs[step], labels, signal)
        if mode == "off":
            batches, columns = [now], slice(labels[0], labels[-1] + 1)
        else:  # the finished chunks as their last forward pass left them, and this one
            batches = [*last_of_chunk, now]
            columns = slice(0, labels[-1] + 1) if position.round_index == 0 else slice(None)
        if signal == "mean":
            columns = slice(None)  # one column, and no classes to choose from
        beta = 0.2 if position.round_index == 0 else 0.1  # ½(1 + cos(π/2))
        distance = matching(everything, batches, beta, signal, mode, columns, relative)
        expected = now.cross_entropy + 0.3 * distance
        assert trace.losses[step] == pytest.approx(expected, rel=1e-4), position
        assert trace.figures[step]["loss/total"] == pytest.approx(expected, rel=1e-4)
        assert trace.figures[step]["loss/cross_entropy"] == pytest.approx(now.cross_entropy, rel=1e-4)
        assert trace.figures[step]["loss/matching"] == pytest.approx(distance, rel=1e-4)
        if position.iteration == 1:
            last_of_chunk.append(now)
    assert len(last_of_chunk) == (4 if chunk_size == 2 else 2)
    assert module.step == len(trace.losses) == 2 * len(last_of_chunk)


def test_relative_terms_are_of_order_one(real: RealSide, tmp_path: Path) -> None:
    # The mean of the normalised pixels, Φ of the first layer, is zero but for rounding: no norm to divide by.
    _, trace = run(real, tmp_path, relative=True, ipc=1)
    largest = max(max(figures.values()) for figures in trace.figures)
    assert largest < 1e3


def test_distances_are_logged_by_layer_and_term(finished: tuple[DistillationModule, Trace, Path]) -> None:
    module, trace, _ = finished
    for figures in trace.figures:
        parts = {name: value for name, value in figures.items() if name.startswith("distance/")}
        assert set(parts) == {
            f"distance/{layer}/{term}"
            for layer in module.real.statistics.layers
            for term in ("resolvent_ffc", "resolvent_flc")
        }
        assert figures["loss/matching"] == pytest.approx(sum(parts.values()), rel=1e-5)


def test_eta_zero_is_the_cross_entropy_alone(real: RealSide, tmp_path: Path) -> None:
    _, trace = run(real, tmp_path, eta=0.0)
    for step, position in enumerate(trace.positions):
        labels = [0, 1] if position.chunk_index == 0 else [2]
        seen = look(real.teacher.network, trace.inputs[step], labels, "mean")
        assert trace.losses[step] == pytest.approx(seen.cross_entropy, rel=1e-5)


def test_eta_changes_the_images(real: RealSide, tmp_path: Path) -> None:
    first, second = (run(real, tmp_path / str(eta), eta=eta)[1] for eta in (0.0, 0.1))
    assert not torch.equal(first.images[-1], second.images[-1])


def test_the_gradient_is_that_of_the_written_out_loss(real: RealSide, tmp_path: Path) -> None:
    # Without augmentation A is the identity, so the loss is a function of the images themselves.
    settings = {"crop_scale": (1.0, 1.0), "flip": False, "max_roll": 0, "chunk_size": 3, "ipc": 1}
    _, trace = run(real, tmp_path, beta=0.2, eta=0.3, **settings)
    start = real_start(real.images, real.teacher.spec, 0, range(3))
    everything = look(
        real.teacher.network,
        real.teacher.spec.normalise(real.images.read(range(len(real.images)))),
        real.images.labels.tolist(),
        "mean",
    )
    assert torch.equal(trace.inputs[0], start)

    def loss(images: Tensor) -> float:
        now = look(real.teacher.network, images, [0, 1, 2], "mean")
        return now.cross_entropy + 0.3 * matching(everything, [now], 0.2, "mean", "mean", slice(None), False)

    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    slope = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    assert float((trace.gradients[0] * direction).sum()) == pytest.approx(slope, rel=1e-3)


# ---- the course of a run ----


def test_rounds_chunks_and_iterations_in_order(finished: tuple[DistillationModule, Trace, Path]) -> None:
    _, trace, _ = finished
    assert trace.positions == [Position(r, c, i) for r in range(2) for c in range(2) for i in range(3)]
    assert [len(images) for images in trace.images] == [2, 2, 2, 1, 1, 1] * 2


def test_images_start_real_move_and_stay_valid_pixels(
    finished: tuple[DistillationModule, Trace, Path], folder_data: ImageFolderData
) -> None:
    module, trace, _ = finished
    black, white = folder_data.spec.pixel_bounds(trace.images[0])
    for step, (position, images) in enumerate(zip(trace.positions, trace.images, strict=True)):
        assert (images >= black).all()
        assert (images <= white).all()
        classes = module.schedule.classes(position.chunk_index)
        before = (
            real_start(folder_data.train, folder_data.spec, position.round_index, classes)
            if position.iteration == 0
            else trace.images[step - 1]
        )
        change = float((images - before).abs().max())
        assert change > 0
        if position.iteration == 0:  # Adam's first step moves a pixel with a gradient by the learning rate
            assert change == pytest.approx(0.1, rel=1e-2)


def test_a_large_rate_is_cut_off_at_black_and_white(
    real: RealSide, tmp_path: Path, folder_data: ImageFolderData
) -> None:
    _, trace = run(real, tmp_path, lr=50.0)
    for images in trace.images:
        black, white = folder_data.spec.pixel_bounds(images)
        assert (images >= black).all()
        assert (images <= white).all()
        assert ((images == black) | (images == white)).any()


def test_the_finished_chunks_are_stored(finished: tuple[DistillationModule, Trace, Path]) -> None:
    module, trace, folder = finished
    assert sorted(file.name for file in folder.iterdir()) == [
        f"round_{r:04d}_chunk_{c:03d}.safetensors" for r in range(2) for c in range(2)
    ]
    product = ChunkStore(folder, module.spec).assemble(module.schedule, {}, module.run_digest)
    assert product.labels.tolist() == [0, 1, 2, 0, 1, 2]
    last = torch.cat([trace.images[step] for step in (2, 5, 8, 11)])
    assert torch.equal(product.images, DistilledSet.from_normalised(last, product.labels, module.spec, {}).images)


def test_the_rate_follows_a_cosine_over_each_chunk(finished: tuple[DistillationModule, Trace, Path]) -> None:
    _, trace, _ = finished
    one_chunk = [0.1 * (1 + math.cos(math.pi * iteration / 3)) / 2 for iteration in range(3)]
    assert trace.rates == pytest.approx(one_chunk * 4)


def test_adam_is_fresh_at_each_chunk(finished: tuple[DistillationModule, Trace, Path]) -> None:
    _, trace, _ = finished
    assert trace.adam_steps == [1, 2, 3] * 4
    for position, moment, gradient in zip(trace.positions, trace.first_moments, trace.gradients, strict=True):
        if position.iteration == 0:
            torch.testing.assert_close(moment, 0.5 * gradient)  # (1 − β₁) of this gradient and nothing else


def test_one_augmentation_for_the_chunk_and_another_each_step(real: RealSide, tmp_path: Path) -> None:
    _, trace = run(real, tmp_path)
    repeated = run(real, tmp_path / "again")[1]
    for first, second in zip(trace.inputs, repeated.inputs, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(trace.inputs[0], trace.inputs[1])


def test_running_moments_are_the_cumulative_mean_over_chunks(real: RealSide, tmp_path: Path) -> None:
    module, trace = run(real, tmp_path, running="mean")
    assert module.running_moments is not None
    state = module.running_moments.state_dict()
    last = [trace.inputs[step] for step in (2, 5, 8, 11)]  # last forward pass of each chunk
    for layer, moments in enumerate(state):
        seen = [look(real.teacher.network, images, [0] * len(images), "mean") for images in last]
        psi, phi = correlations(seen, layer, "mean", "mean")
        assert moments["ffc"].dtype == torch.float64
        np.testing.assert_allclose(moments["ffc"].numpy(), psi, atol=1e-5)
        np.testing.assert_allclose(moments["mean"].numpy(), phi[:, 0], atol=1e-5)


def test_running_moments_merged_are_those_of_all_rows(real: RealSide, tmp_path: Path) -> None:
    module, trace = run(real, tmp_path)
    assert module.running_mode == "merge"
    assert module.running_moments is not None
    last = [trace.inputs[step] for step in (2, 5, 8, 11)]
    for layer, fields in enumerate(module.running_moments.state_dict()):
        seen = [look(real.teacher.network, images, [0] * len(images), "mean") for images in last]
        psi, phi = correlations(seen, layer, "mean", "merge")
        np.testing.assert_allclose(Moments(**fields).ffc.numpy(), psi, atol=1e-5)
        np.testing.assert_allclose(Moments(**fields).mean.numpy(), phi[:, 0], atol=1e-5)


def test_the_real_side_is_filtered_once_a_round(
    real: RealSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    betas: list[float] = []
    original = matching_module.filtered

    def counted(method: Any, moments: Moments, beta: float) -> tuple[Tensor, ...]:
        betas.append(beta)  # the synthetic side is filtered in `term_distances`
        return original(method, moments, beta)

    monkeypatch.setattr(matching_module, "filtered", counted)
    run(real, tmp_path, ipc=3, beta=0.2)
    layers = len(real.statistics.layers)
    rounds = [0.2 * (1 + math.cos(math.pi * i / 3)) / 2 for i in range(3)]
    assert betas == pytest.approx([beta for beta in rounds for _ in range(layers)])


@pytest.mark.parametrize("settings", [{}, {"start": "noise"}, {"signal": "mean", "method": LFM(), "chunk_size": 3}])
def test_the_same_seed_gives_the_same_bits(settings: dict[str, Any], real: RealSide, tmp_path: Path) -> None:
    torch.manual_seed(1)
    run(real, tmp_path / "a", **settings)
    torch.manual_seed(2)  # the global generator has no say
    run(real, tmp_path / "b", **settings)
    run(real, tmp_path / "c", **settings, seed=1)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "c" / file.name).read_bytes()


# ---- the teacher ----


def test_the_teacher_stays_frozen_and_out_of_the_checkpoint(real: RealSide, tmp_path: Path) -> None:
    before = real.teacher.fingerprint
    module, _ = run(real, tmp_path, ipc=1)
    module.train()
    assert not any(layer.training for layer in real.teacher.network.modules())
    assert set(module.state_dict()) == {"images"}
    assert [name for name, _ in module.named_parameters()] == ["images"]
    assert real.teacher.fingerprint == before
    assert all(weight.grad is None and not weight.requires_grad for weight in real.teacher.network.parameters())


# ---- refusals ----


@pytest.mark.parametrize("name", ["ipc", "beta", "iterations", "chunk_size", "lr"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"model\.init_args\.{name}: got {value}, expected > 0"):
        DistillationModule(**{"ipc": 1, "method": CFM(), name: value})  # type: ignore[arg-type]


def test_a_beta_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.init_args\.beta: got nan, expected > 0"):
        DistillationModule(1, CFM(), beta=math.nan)


def test_a_negative_eta_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.init_args\.eta: got -0\.1, expected ≥ 0"):
        DistillationModule(1, CFM(), eta=-0.1)


def test_an_eta_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.init_args\.eta: got nan, expected ≥ 0"):
        DistillationModule(1, CFM(), eta=math.nan)


def test_too_few_images_to_start_from_are_refused_before_work(real: RealSide, tmp_path: Path) -> None:
    module = DistillationModule(11, CFM())
    with pytest.raises(ValueError, match=r"class 'blue' has 10 training images, expected at least 11"):
        module.prepare(real, ChunkStore(tmp_path, real.teacher.spec))
    DistillationModule(11, CFM(), start="noise").prepare(real, ChunkStore(tmp_path, real.teacher.spec))


def broken(real: RealSide, name: str, value: float) -> RealSide:
    """Return the same with one weight of a copy of the teacher replaced."""
    network = copy.deepcopy(real.teacher.network)
    with torch.no_grad():
        weight = network.get_parameter(name)
        weight[(0,) * weight.ndim] = value
    teacher = Teacher(network, real.teacher.name, real.teacher.spec, None, real.teacher.path)
    return RealSide(teacher, real.statistics, real.images)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_features_that_are_not_finite_are_named(value: float, real: RealSide, tmp_path: Path) -> None:
    message = r"not finite in round 1, chunk 1, iteration 1, β = 0\.1: .*layers\.conv\.1; expected finite"
    with pytest.raises(ValueError, match=message) as caught:
        run(broken(real, "layers.conv.0.weight", value), tmp_path)
    assert "layers.conv.0" not in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_term_that_is_not_finite_is_named(value: float, real: RealSide, tmp_path: Path) -> None:
    message = r"in round 1, chunk 1, iteration 1, β = 0\.1: layer layers\.conv\.1 \(linear_ffc\), .*the cross-entropy"
    with pytest.raises(ValueError, match=message):
        run(broken(real, "layers.conv.0.weight", value), tmp_path, method=LFM())


def test_a_cross_entropy_that_is_not_finite_is_named(real: RealSide, tmp_path: Path) -> None:
    message = r"in round 1, chunk 1, iteration 1, β = 0\.1: the cross-entropy; expected finite"
    with pytest.raises(ValueError, match=message):
        run(broken(real, "classifier.weight", math.nan), tmp_path)


class Breaker(L.Callback):
    """Spoils the images before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            pl_module.get_parameter("images").data.fill_(math.nan)


def test_a_later_failure_names_its_round_and_beta(real: RealSide, tmp_path: Path) -> None:
    # Step 10 is the second iteration of the second chunk of the second round, where β is halved.
    message = r"not finite in round 2, chunk 2, iteration 2, β = 0\.05: .*layers\.conv\.0, layers\.conv\.1"
    with pytest.raises(ValueError, match=message):
        run(real, tmp_path, Breaker(10))


def test_iterations_resume_without_a_state() -> None:
    loader = Iterations(3)
    assert (len(loader), list(loader), list(loader)) == (3, [0, 1, 2], [0, 1, 2])
    loader.load_state_dict(loader.state_dict())
    assert list(loader) == [0, 1, 2]


# ---- golden trace ----

GOLDEN = {  # step: loss/total, loss/matching
    0: (1.4136608, 1.2679408),
    1: (1.4559569, 1.6086256),
    4: (1.4334482, 1.3856659),
    5: (0.8816011, 1.1204214),
    9: (0.8867147, 0.9811373),
    10: (1.5265032, 2.1490941),
    14: (1.5369137, 2.2122562),
    15: (0.9969790, 1.9751436),
    19: (0.9939945, 1.7008828),
}
"""Losses of 20 steps, alike in float32 and float64 to 2e-7. A change of these is a change of the method: explain it
in the commit."""


def golden_real_side() -> RealSide:
    """Return data, teacher and statistics that depend on nothing but this function."""
    generator = torch.Generator().manual_seed(0)
    spec = DatasetSpec("golden", ("a", "b", "c"), 3, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    labels = torch.arange(12) % 3
    pixels = torch.randint(256, (12, 3, 8, 8), generator=generator)
    pixels[torch.arange(12), labels] = pixels[torch.arange(12), labels] // 2 + 128  # class = brightest channel
    images = TensorImages(pixels.to(torch.uint8), labels)
    network = ConvNet(width=6, depth=2, channels=3, image_size=8, num_classes=3)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    freeze(network)
    layers = conv_layers(network)
    features: list[Tensor] = []
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        for name in layers
    ]
    with torch.no_grad():
        network(spec.normalise(images.images))
    for hook in hooks:
        hook.remove()
    moments = tuple(Moments.of(x.double(), nn.functional.one_hot(labels, 3).double()) for x in features)
    teacher = Teacher(network, "convnet-w6-d2", spec, None, Path("golden"))
    return RealSide(teacher, Statistics(layers, moments, "class", {"made": "here"}), images)


def test_golden_trace(tmp_path: Path) -> None:
    _, trace = run(golden_real_side(), tmp_path, iterations=5, signal="class", beta=0.2, eta=0.1, lr=0.05)
    assert len(trace.losses) == 20
    for step, expected in GOLDEN.items():
        got = tuple(trace.figures[step][name] for name in ("loss/total", "loss/matching"))
        assert got == pytest.approx(expected, rel=1e-4), step
