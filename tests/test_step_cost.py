"""What a step costs, counted and not timed: operations, waits for the device, and the precision of the moments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from distillation_runs import run
from steps import Case, make_step
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from unidd_pl import distillation
from unidd_pl.data.folder import ImageFolderData
from unidd_pl.distillation import DistillationModule
from unidd_pl.layout import laid_out, memory_format, passings
from unidd_pl.networks import ConvNet
from unidd_pl.real_side import RealSide
from unidd_pl.spectral import Moments, Passing, filters
from unidd_pl.statistics import Statistics
from unidd_pl.teachers import Teacher

CASE = Case("convnet-w16-d2", images=10, image_size=16, num_classes=100, channels_last=True, real_images=50)


@pytest.fixture
def real(tiny_teacher: Teacher, tiny_statistics: Statistics, folder_data: ImageFolderData) -> RealSide:
    return RealSide(tiny_teacher, tiny_statistics, folder_data.train)


# ---- how it grows ----


class Operations(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] = self.calls.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))

    def of(self, *names: str) -> int:
        """Return the calls of these operators."""
        return sum(self.calls.get(f"aten.{name}.default", 0) for name in names)


def onto(_: Any, left: tuple[int, int], right: tuple[int, int], **kwargs: Any) -> int:
    """Return the operations of `addmm_`, of which torch knows only the form that makes a new tensor."""
    return 2 * left[0] * left[1] * right[1]


def cost(case: Case) -> tuple[int, int]:
    """Return floating-point operations of products and convolutions, and calls of operators, of a later step."""
    step = make_step(case)
    step()
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: onto}) as products:
        step()
    with Operations() as operations:
        step()
    return products.get_total_flops(), sum(operations.calls.values())


def test_the_cost_is_linear_in_the_images_of_a_chunk() -> None:
    (ten, calls), (twenty, _), (forty, more_calls) = (cost(replace(CASE, images=n)) for n in (10, 20, 40))
    assert twenty > 1.8 * ten  # the rest, the filters, does not grow
    assert forty - twenty == 2 * (twenty - ten)
    assert more_calls == calls


def test_the_cost_depends_neither_on_ipc_nor_on_the_size_of_the_data() -> None:
    expected = cost(CASE)
    for change in ({"chunks": 10}, {"chunks": 50}, {"real_images": 400}):
        assert cost(replace(CASE, **change)) == expected  # type: ignore[arg-type]


def test_the_loss_adds_few_products_to_the_floor() -> None:
    """One product a layer for the covariance, one for its gradient, and small ones: as docs/performance.md counts."""
    case = Case("convnet-w128-d3", images=10, channels_last=True, real_images=50)
    ours, floor = cost(case)[0], cost(case.without_loss())[0]
    rows = 10 * (16**2 + 8**2)  # of the two layers of 128 channels
    assert 2 * 2 * rows * 128**2 * 0.8 < ours - floor < 2 * 2 * rows * 128**2 * 1.2


# ---- waiting for the device ----

READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")


class Reads(L.Callback):
    """Counts what reads a number of a tensor between the start of each step and the optimiser's."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._operations = Operations()
        self._operations.__enter__()

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._operations.__exit__(None, None, None)
        self.counts.append(self._operations.of(*READS))


@pytest.mark.parametrize("settings", [{}, {"start": "noise", "signal": "mean", "running": "merge"}], ids=str)
def test_a_step_that_is_not_logged_waits_for_nothing(
    settings: dict[str, Any], real: RealSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (distillation, filters):  # as on a device that is not the host
        monkeypatch.setattr(module, "reading_is_free", lambda device: False)
    reads = Reads()
    run(real, tmp_path, reads, trainer={"log_every_n_steps": 5}, iterations=8, chunk_size=3, ipc=1, **settings)
    waited = [number for number, count in enumerate(reads.counts) if count]
    assert waited == [0, 4, 7]  # the chunk's first and last iteration, and the logged one, look whether L is finite


def test_a_failure_between_two_looks_is_found_at_the_next(
    real: RealSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaker(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            if trainer.global_step == 2:
                pl_module.get_parameter("images").data.fill_(torch.nan)

    for module in (distillation, filters):
        monkeypatch.setattr(module, "reading_is_free", lambda device: False)
    with pytest.raises(ValueError, match=r"not finite in round 1, chunk 1, iteration 8, .*layers\.conv\.1"):
        run(real, tmp_path, Breaker(), trainer={"log_every_n_steps": 50}, iterations=8, chunk_size=3)
    assert not list(tmp_path.iterdir())  # before the chunk is stored


@pytest.mark.gpu
def test_a_step_on_a_device_does_not_synchronise() -> None:
    step = make_step(replace(CASE, device="cuda", channels_last=False))
    for _ in range(3):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_matrix_that_cannot_be_filtered_is_nan_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "reading_is_free", lambda device: False)
    good, bad = torch.eye(3), torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    result = filters.Resolvent().matrix(torch.stack([good, bad]), 0.5)
    torch.testing.assert_close(result[0], good / 1.5)
    assert result[1].isnan().any()


# ---- layout and precision ----


def test_a_run_lays_out_the_teacher_for_its_device(real: RealSide, tmp_path: Path) -> None:
    before = real.teacher.fingerprint
    run(real, tmp_path, ipc=1)
    weight = real.teacher.network.get_parameter("layers.conv.1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert Teacher(real.teacher.network, real.teacher.name, real.teacher.spec, None, Path()).fingerprint == before
    assert laid_out(torch.zeros(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    assert memory_format(torch.device("cuda")) == torch.contiguous_format


def test_how_features_pass_follows_from_the_layer_and_its_real_moments() -> None:
    network = ConvNet(width=4, depth=2, channels=3, image_size=8, num_classes=3)
    x = torch.randn(4, 4, 8, 8, dtype=torch.float64)
    layers = ("layers.conv.1", "layers.norm.0", "layers")
    labels = torch.ones(4, 1)
    chosen = passings(network, layers, [Moments.of(x + 1), Moments.of(x + 10, labels), Moments.of(x)])
    assert chosen == {
        "layers.conv.1": Passing(centred=False, owned=True, by_image=False),
        "layers.norm.0": Passing(centred=True, owned=True),
        "layers": Passing(centred=False, owned=False, by_image=False),  # may hand its gradient through
    }


def test_bf16_mixed_keeps_the_moments_in_float32(real: RealSide, tmp_path: Path) -> None:
    _, exact = run(real, tmp_path / "exact", ipc=1, chunk_size=3)
    module, mixed = run(real, tmp_path / "mixed", trainer={"precision": "bf16-mixed"}, ipc=1, chunk_size=3)
    assert isinstance(module, DistillationModule)
    moments = module._chunk_moments
    assert {one.ffc.dtype for one in moments} == {one.mean.dtype for one in moments} == {torch.float32}
    assert module.images.dtype == torch.float32
    assert mixed.losses[0] != exact.losses[0]  # the teacher is in half precision
    assert mixed.losses[0] == pytest.approx(exact.losses[0], rel=0.02)
    angle = torch.cosine_similarity(mixed.gradients[0].flatten(), exact.gradients[0].flatten(), dim=0)
    assert float(angle) > 0.99
