"""CurriculumCallback: gives each round its β."""

from __future__ import annotations

import statistics as statistics_of_numbers
from typing import Any

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

    def state_dict(self) -> dict[str, Any]:
        """Return what the curriculum is, so that a run is not resumed with another one."""
        return {"curriculum": _describe(self.curriculum)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of another curriculum.

        Raises:
            ValueError: If it differs.
        """
        got, expected = state_dict["curriculum"], _describe(self.curriculum)
        if got != expected:
            raise ValueError(
                f"the checkpoint was made with another curriculum: got {got}, expected {expected}; "
                "resume with the config that it was made with"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set β where a run starts or resumes."""
        self._set_beta(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set β of the round that starts."""
        self._set_beta(trainer, pl_module)

    def _set_beta(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, DistillationModule):
            raise ValueError(f"got a {type(pl_module).__name__}, expected a DistillationModule")
        round_index = min(pl_module.position.round_index, pl_module.ipc - 1)
        statistics = pl_module.real.statistics
        betas = self.curriculum.betas_at(pl_module.beta, round_index, pl_module.ipc, statistics.spectra)
        pl_module.matching.betas = betas
        figures = {"beta": statistics_of_numbers.geometric_mean(betas)}
        if len(set(betas)) > 1:
            figures |= {f"beta/{layer}": beta for layer, beta in zip(statistics.layers, betas, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=pl_module.step)


def _describe(curriculum: Curriculum) -> str:
    settings = ", ".join(
        f"{name}={_describe(value) if isinstance(value, Curriculum) else value}"
        for name, value in sorted(vars(curriculum).items())
    )
    return f"{type(curriculum).__name__}({settings})"
