"""CurriculumCallback: gives each round its β."""

from __future__ import annotations

import statistics as statistics_of_numbers

import lightning as L

from unidd_pl.distillation import DistillationModule
from unidd_pl.spectral import Curriculum


class CurriculumCallback(L.Callback):
    """Sets β of the module at the start of each round, from a curriculum.

    ::

        fit start ─ [train start] ─ [round 0] ─ … ─ [round 1] ─ … ─ train end
                        ↑ β            ↑ β             ↑ β

    A run that resumes in the middle of a round gets no call at the start of that round, so β is set at
    the start of the training too. It follows from the module's own place, never from a counter here.

    Logged as ``beta``, the geometric mean over layers, and as ``beta/<layer>`` where layers differ.

    Args:
        curriculum: β as a function of the round.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell the module its curriculum, before a checkpoint is read: its chunks depend on it."""
        expect_distillation(pl_module).curriculum = _describe(self.curriculum)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set β where a run starts or resumes."""
        self._set_beta(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set β of the round that starts."""
        self._set_beta(trainer, pl_module)

    def _set_beta(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = expect_distillation(pl_module)
        round_index = min(module.position.round_index, module.ipc - 1)
        statistics = module.real.statistics
        betas = self.curriculum.betas_at(module.beta, round_index, module.ipc, statistics.spectra)
        module.matching.betas = betas
        figures = {"beta": statistics_of_numbers.geometric_mean(betas)}
        if len(set(betas)) > 1:
            figures |= {f"beta/{layer}": beta for layer, beta in zip(statistics.layers, betas, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=module.step)


def expect_distillation(module: L.LightningModule) -> DistillationModule:
    """Return the module that a callback is for.

    Raises:
        ValueError: If it is another one.
    """
    if not isinstance(module, DistillationModule):
        raise ValueError(f"got a {type(module).__name__}, expected a DistillationModule")
    return module


def _describe(curriculum: Curriculum) -> str:
    settings = ", ".join(
        f"{name}={_describe(value) if isinstance(value, Curriculum) else value}"
        for name, value in sorted(vars(curriculum).items())
    )
    return f"{type(curriculum).__name__}({settings})"
