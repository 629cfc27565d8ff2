"""CurriculumCallback: β of each round as the module really uses it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import Logger

from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.distillation import DistillationModule
from unidd_pl.real_side import RealSide
from unidd_pl.spectral import CFM, ConstantCurriculum, CosineCurriculum, Curriculum, LinearCurriculum
from unidd_pl.synthetic import ChunkStore
from unidd_pl.training import quiet_lightning


class BetaRecorder(L.Callback):
    """Keeps β as each training step has it."""

    def __init__(self) -> None:
        self.betas: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DistillationModule)
        self.betas.append(pl_module.matching.betas[0])


class MetricRecorder(Logger):
    """Keeps what is logged under the name ``beta``."""

    def __init__(self) -> None:
        super().__init__()
        self.betas: list[tuple[int | None, float]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "beta" in metrics:
            self.betas.append((step, metrics["beta"]))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def fit(module: L.LightningModule, max_epochs: int, *callbacks: L.Callback, logger: Logger | bool = False) -> None:
    trainer = L.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with quiet_lightning():
        trainer.fit(module)


@pytest.mark.parametrize(
    ("curriculum", "ipc", "expected"),
    [
        (CosineCurriculum(), 4, [0.2 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]),
        (LinearCurriculum(), 4, [0.2, 0.15, 0.1, 0.05]),
        (ConstantCurriculum(), 3, [0.2, 0.2, 0.2]),
        (CosineCurriculum(), 1, [0.2]),  # one round: no curriculum
        (LinearCurriculum(), 1, [0.2]),
    ],
)
def test_every_iteration_of_a_round_has_its_beta(
    curriculum: Curriculum, ipc: int, expected: list[float], real: RealSide, tmp_path: Path
) -> None:
    module = DistillationModule(ipc, CFM(), beta=0.2, iterations=2, chunk_size=2)
    module.prepare(real, ChunkStore(tmp_path, real.teacher.spec))
    recorder, logger = BetaRecorder(), MetricRecorder()
    fit(module, ipc, CurriculumCallback(curriculum), recorder, logger=logger)
    steps = module.schedule.steps_per_round
    assert recorder.betas == pytest.approx([beta for beta in expected for _ in range(steps)])
    assert dict(logger.betas) == pytest.approx({steps * i: beta for i, beta in enumerate(expected)})


def test_without_the_callback_beta_stays(real: RealSide, tmp_path: Path) -> None:
    module = DistillationModule(2, CFM(), beta=0.2, iterations=1)
    module.prepare(real, ChunkStore(tmp_path, real.teacher.spec))
    recorder = BetaRecorder()
    fit(module, 2, recorder)
    assert recorder.betas == [0.2, 0.2]


def test_another_module_is_refused() -> None:
    with pytest.raises(ValueError, match="got a BoringModel, expected a DistillationModule"):
        fit(BoringModel(), 1, CurriculumCallback(CosineCurriculum()))
