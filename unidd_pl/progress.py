"""One progress bar for a whole training: what it is at, how far, how long still."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

_REFRESH_SECONDS = 0.5


class RunProgressBar(ProgressBar):
    """Shows steps of the whole run, so that the remaining time is that of the run, not of an epoch.

    Args:
        label: What is being done, for example ``Distilling``.
        epoch_name: What an epoch is called here, for example ``round``.
        before: Epochs before those of this training.
        of: All epochs, where others than this training make some.
    """

    def __init__(self, label: str, epoch_name: str = "epoch", *, before: int = 0, of: int | None = None) -> None:
        super().__init__()
        self.label = label
        self.epoch_name = epoch_name
        self.before = before
        self.of = of
        self._enabled = True
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the step where the run starts or resumes."""
        self._bar = tqdm(
            total=int(trainer.num_training_batches) * (trainer.max_epochs or 1),
            initial=trainer.global_step,
            desc=self.label,
            unit="it",
            mininterval=_REFRESH_SECONDS,
            disable=not self._enabled,
            dynamic_ncols=True,
        )

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Name the epoch."""
        if self._bar is not None:
            number, count = self.before + trainer.current_epoch + 1, self.of or trainer.max_epochs
            self._bar.set_description(f"{self.label} · {self.epoch_name} {number}/{count}", refresh=False)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Advance by one step and show the last logged figures."""
        bar = self._bar
        if bar is None:
            return
        if bar.update(1):  # true when it is time to draw: figures are fetched only then
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the figures beside the bar; the MLflow version number that Lightning adds is no figure."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.rsplit("/")[-1]: value for name, value in metrics.items()}

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Close the bar, so that a message does not end up in its line."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
