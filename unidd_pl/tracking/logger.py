"""What Lightning logs goes to a run; in a file of its own, for commands about many runs need no Lightning."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger

from unidd_pl.tracking.names import flatten

if TYPE_CHECKING:
    from unidd_pl.tracking.runs import StageRun


class StageLogger(Logger):
    """Hands what Lightning logs to a `StageRun`.

    Lightning's own MLFlowLogger does not fit: its calls raise into the training loop when the server is away,
    it ends the run at the end of `fit`, and it sets MLflow's global tracking URI.

    Args:
        run: The run to log to.
        experiment: Name of its experiment.
    """

    def __init__(self, run: StageRun, experiment: str) -> None:
        super().__init__()
        self.run = run
        self._experiment = experiment

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self._experiment

    @property
    def version(self) -> str:
        """Id of the run, "" where nothing is recorded or the server is away."""
        return self.run.run_id or ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record scalars."""
        self.run.metrics(metrics, step or 0)

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the settings that the run's config did not already hold."""
        self.run.params(flatten(vars(params) if isinstance(params, Namespace) else params))
