"""What goes to MLflow: one run per stage. The only file that imports mlflow, and only when a run starts.

A training must outlive its tracking: once a run has started, a call that fails warns once and the training
goes on; metrics wait in memory until the server answers again.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shlex
import sqlite3
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from unidd_pl.console import Stopped

# mlflow.tracking.MlflowClient and mlflow.entities.Metric. To name them for type checkers would make jsonargparse
# import mlflow at every start: it runs TYPE_CHECKING blocks to resolve annotations.
Client = Any
Point = Any

DEFAULT_URI = "sqlite:///runs/mlflow.db"
_SQLITE = "sqlite:///"
_CURE = "check --tracking.uri, or turn tracking off with --tracking.enabled=false"

# mlflow.environment_variables; each is set only where the user has not set it.
_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
# MLflow's own values (7 retries with back-off, 120 s each) can block one call for minutes.
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

_MAX_KEY = 250  # characters; mlflow.utils.validation.MAX_ENTITY_KEY_LENGTH
_MAX_PARAM = 500  # characters; 6000 in MLflow itself, older servers accept 500
_MAX_TAG = 5000  # characters; 8000 in MLflow itself, older servers accept 5000
_MAX_BATCH_PARAMS = 100  # mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH
_MAX_BATCH_METRICS = 1000  # mlflow.utils.validation.MAX_METRICS_PER_BATCH
_MAX_WAITING = 100_000  # metrics kept while the server is away, about 50 MB; the oldest go first
_PAUSE = 20  # a failing call of t seconds is followed by 20·t without metrics calls: at most 5% of a training


class Tracking:
    """Where the stages of an experiment are recorded.

    Args:
        uri: MLflow tracking URI; None takes MLFLOW_TRACKING_URI from the environment, else a SQLite file
            under runs/.
        experiment: Name of the MLflow experiment that holds the runs; created if it does not exist.
        enabled: False records nothing and does not need mlflow.

    Raises:
        ValueError: If tracking is enabled and mlflow is not installed.
    """

    def __init__(self, uri: str | None = None, experiment: str = "unidd", enabled: bool = True) -> None:
        if enabled and importlib.util.find_spec("mlflow") is None:
            raise ValueError(
                "tracking is enabled but mlflow is not installed: pip install mlflow, "
                "or turn tracking off with --tracking.enabled=false"
            )
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self.experiment = experiment
        self.enabled = enabled

    @contextmanager
    def run(
        self, stage: str, name: str, tags: Mapping[str, str] | None = None, config: str | None = None
    ) -> Iterator[StageRun]:
        """Record what happens inside the `with` block as one MLflow run.

        The run ends as FINISHED, as FAILED after an exception, as KILLED after Ctrl-C, SIGTERM or `sys.exit`.
        Blocks may follow each other and nest. Of several processes only rank 0 records.

        Args:
            stage: teacher, statistics, distillation, tuning, evaluation or spectrum; becomes the tag `stage`.
            name: Name of the run.
            tags: Further tags.
            config: The resolved config as YAML; becomes the artifact config.yaml and the params of the run.

        Yields:
            The run.

        Raises:
            ValueError: If the run cannot be started or the config is no YAML mapping.
        """
        run = self._start(stage, name, dict(tags or {}), config)
        try:
            if config is not None and run.run_id is not None:
                run.params(_flatten(yaml.safe_load(config)))
                run.text(config, "config.yaml")
            yield run
        except (KeyboardInterrupt, SystemExit, Stopped):
            # Lightning turns Ctrl-C into sys.exit(1) and SIGTERM into a SystemExit.
            run.close("KILLED")
            raise
        except BaseException:
            run.close("FAILED")
            raise
        run.close("FINISHED")

    def ui_command(self) -> str:
        """Return the line that shows the runs: a command, the address of a server, or "" when disabled."""
        if not self.enabled:
            return ""
        if self.uri.startswith(("http://", "https://")):
            return without_password(self.uri)
        return f"mlflow ui --backend-store-uri {shlex.quote(without_password(self.uri))}"

    def _start(self, stage: str, name: str, tags: dict[str, str], config: str | None) -> StageRun:
        if not self.enabled:
            return StageRun()
        if config is not None and not isinstance(yaml.safe_load(config), dict):
            raise ValueError(f"config of the {stage} run: expected a YAML mapping, got {config[:80]!r}")
        if getattr(rank_zero_only, "rank", 0) != 0:  # Lightning sets it when it is imported
            # A logger that does nothing, not False: callbacks that insist on one must act alike on all ranks.
            silent = StageRun()
            silent.logger = StageLogger(silent, self.experiment)
            return silent
        tags = {_clean(key): value[:_MAX_TAG] for key, value in {**tags, "stage": stage}.items()}
        try:
            client = self._connect()
            run_id = client.create_run(self._experiment_id(client), tags=tags, run_name=name).info.run_id
        except Exception as error:  # whatever the store, network or driver raises, the cure is the same
            raise ValueError(f"cannot start an MLflow run at {without_password(self.uri)}: {error}; {_CURE}") from error
        run = StageRun(client, run_id)
        run.logger = StageLogger(run, self.experiment)
        return run

    def _connect(self) -> Client:
        defaults = {**_NO_TELEMETRY, **(_IMPATIENT if self.uri.startswith("http") else {})}
        for key, value in defaults.items():
            os.environ.setdefault(key, value)
        if path := _sqlite_path(self.uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            # MLflow retries an unusable file for 100 s; this fails at once.
            with closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA schema_version")

        from mlflow.tracking import MlflowClient  # noqa: PLC0415  two seconds, and absent where tracking is off

        if "MLFLOW_LOGGING_LEVEL" not in os.environ:
            for library in ("mlflow", "alembic"):  # they announce every table they create
                logger = logging.getLogger(library)
                logger.setLevel(max(logger.level, logging.WARNING))
        return MlflowClient(tracking_uri=self.uri)

    def _experiment_id(self, client: Client) -> str:
        if found := client.get_experiment_by_name(self.experiment):
            return str(found.experiment_id)
        path = _sqlite_path(self.uri)
        # Beside the database: MLflow's own choice is ./mlruns of wherever the command was typed.
        artifacts = None if path is None else (path.absolute().parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(self.experiment, artifact_location=artifacts))
        except Exception:
            # Another process of a sweep may have created it in the meantime.
            if found := client.get_experiment_by_name(self.experiment):
                return str(found.experiment_id)
            raise


class StageRun:
    """One MLflow run; without a client all its methods do nothing.

    Args:
        client: Client of the store that holds the run.
        run_id: Id of the run.

    Attributes:
        run_id: Id of the run, None when nothing is recorded.
        logger: What to hand to `Trainer(logger=...)`; False when tracking is disabled.
    """

    def __init__(self, client: Client | None = None, run_id: str | None = None) -> None:
        self.run_id = run_id
        self.logger: StageLogger | Literal[False] = False
        self._client = client
        self._waiting: list[Point] = []
        self._known_params: set[str] = set()
        self._retry_at = 0.0  # seconds, time.monotonic
        self._warned = False

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record scalars; while the server is away they wait in memory."""
        if self._client is None:
            return
        from mlflow.entities import Metric  # noqa: PLC0415  loaded by the client already

        now = int(time.time() * 1000)
        self._waiting += [Metric(_clean(key), float(value), now, step) for key, value in values.items()]
        del self._waiting[:-_MAX_WAITING]
        if time.monotonic() >= self._retry_at:
            self._send_metrics()

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; the first value of a name stays, for MLflow refuses to change it."""
        new = {_clean(key): str(value)[:_MAX_PARAM] for key, value in values.items()}
        new = {key: value for key, value in new.items() if key not in self._known_params}
        self._known_params |= new.keys()
        if self._client is None or not new:
            return
        from mlflow.entities import Param  # noqa: PLC0415  loaded by the client already

        entries = [Param(key, value) for key, value in new.items()]
        for first in range(0, len(entries), _MAX_BATCH_PARAMS):
            self._log_batch(params=entries[first : first + _MAX_BATCH_PARAMS])

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file, or the content of a directory, into `folder` of the run's artifacts."""
        what = f"artifact {path}"
        if Path(path).is_dir():
            self._try(what, lambda client, run_id: client.log_artifacts(run_id, str(path), folder or None))
        else:
            self._try(what, lambda client, run_id: client.log_artifact(run_id, str(path), folder or None))

    def text(self, content: str, name: str) -> None:
        """Store a text as the artifact `name`."""
        self._try(f"artifact {name}", lambda client, run_id: client.log_text(run_id, content, name))

    def tag(self, key: str, value: str) -> None:
        """Set a tag; a later value replaces an earlier one."""
        value = str(value)[:_MAX_TAG]
        self._try(f"tag {key}", lambda client, run_id: client.set_tag(run_id, _clean(key), value))

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Send what waits and end the run; `Tracking.run` calls this."""
        self._send_metrics()
        self._try(f"status {status}", lambda client, run_id: client.set_terminated(run_id, status))

    def _send_metrics(self) -> None:
        while self._waiting:
            batch = self._waiting[:_MAX_BATCH_METRICS]
            if not self._log_batch(metrics=batch):
                return
            del self._waiting[: len(batch)]

    def _log_batch(self, **entries: Any) -> bool:
        return self._try(" and ".join(entries), lambda client, run_id: client.log_batch(run_id, **entries))

    def _try(self, what: str, call: Callable[[Client, str], object]) -> bool:
        """Call the client; return False only where the same call may succeed later."""
        if self._client is None or self.run_id is None:
            return True
        began = time.monotonic()
        try:
            call(self._client, self.run_id)
        except Exception as error:  # tracking must not end a training, whatever goes wrong in it
            self._retry_at = time.monotonic() + _PAUSE * (time.monotonic() - began)
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"MLflow run {self.run_id}: could not record {what} ({error}); the stage goes on, "
                    "further failures of this run are not shown",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"
        return True


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
        """Id of the run, "" on ranks that record nothing."""
        return self.run.run_id or ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record scalars."""
        self.run.metrics(metrics, step or 0)

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the settings that the run's config did not already hold."""
        self.run.params(_flatten(vars(params) if isinstance(params, Namespace) else params))


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings under dotted names; a list of scalars is one leaf."""
    if isinstance(tree, Mapping) and tree:
        pairs = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in tree):
        pairs = [(str(index), value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree} if prefix else {}
    leaves: dict[str, Any] = {}
    for key, value in pairs:
        leaves |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return leaves


def _clean(key: str) -> str:
    """Return the key with what MLflow refuses in names replaced by "_", cut to its longest length."""
    parts = re.sub(r"[^\w.\- /]", "_", key).split("/")
    # MLflow refuses names that are not normal relative paths.
    return ("/".join(part for part in parts if part not in ("", ".", "..")) or "_")[:_MAX_KEY].rstrip("/")


def _sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI, None for other stores."""
    return Path(uri[len(_SQLITE) :].partition("?")[0]) if uri.startswith(_SQLITE) else None


def without_password(uri: str) -> str:
    """Return the URI without user and password, for messages."""
    return re.sub(r"//[^/@]*@", "//", uri)
