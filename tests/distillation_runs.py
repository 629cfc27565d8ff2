"""Running a DistillationModule with a real Trainer, and looking on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.distillation import DistillationModule
from unidd_pl.real_side import RealSide
from unidd_pl.spectral import CFM, CosineCurriculum
from unidd_pl.synthetic import ChunkStore, Position
from unidd_pl.training import quiet_lightning


@dataclass
class Trace(L.Callback):
    """What each step of a run did."""

    positions: list[Position] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    figures: list[dict[str, float]] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    """What the teacher saw: the augmented images."""
    images: list[Tensor] = field(default_factory=list)
    """The images after the step."""
    betas: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    adam_steps: list[int] = field(default_factory=list)
    first_moments: list[Tensor] = field(default_factory=list)
    """Adam's first moment after the step."""
    gradients: list[Tensor] = field(default_factory=list)

    def __hash__(self) -> int:
        return id(self)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._module = pl_module
        self._hook = pl_module.real.teacher.network.register_forward_pre_hook(
            lambda _, inputs: self.inputs.append(inputs[0].detach().clone())
        )

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self.positions.append(self._module.position)
        self.betas.append(self._module.matching.betas[0])
        assert self._module.images.grad is not None
        self.gradients.append(self._module.images.grad.clone())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.losses.append(float(outputs["loss"]))
        self.figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.images.append(self._module.images.detach().clone())
        self.rates.append(optimizer.param_groups[0]["lr"])
        state = optimizer.state[self._module.images]
        self.adam_steps.append(int(state["step"]))
        self.first_moments.append(state["exp_avg"].clone())

    def on_fit_end(self, *_: Any) -> None:
        self._hook.remove()

    def on_exception(self, *_: Any) -> None:
        self._hook.remove()


def run(
    real: RealSide, folder: Path, *callbacks: L.Callback, trainer: dict[str, Any] | None = None, **settings: Any
) -> tuple[DistillationModule, Trace]:
    """Distil with a real Trainer: two rounds of two chunks of three iterations, unless told otherwise."""
    module = DistillationModule(
        **{"ipc": 2, "method": CFM(), "iterations": 3, "chunk_size": 2, "lr": 0.1, **settings}  # type: ignore[arg-type]
    )
    module.prepare(real, ChunkStore(folder, real.teacher.spec))
    trace = Trace()
    options = {"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, **(trainer or {})}
    with quiet_lightning():
        L.Trainer(
            max_epochs=module.ipc,
            logger=False,
            callbacks=[CurriculumCallback(CosineCurriculum()), trace, *callbacks],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            **options,
        ).fit(module)
    return module, trace
