"""An MLflow store, written to and read from. The only file that imports mlflow, and only when a store is opened."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any

from unidd_pl.tracking.addresses import is_database, is_server, sqlite_path
from unidd_pl.tracking.journal import Start

# To name mlflow's classes for type checkers would make jsonargparse import mlflow at every start: it runs
# TYPE_CHECKING blocks to resolve annotations.
Client = Any

KEY_TAG = "unidd.key"
"""Tag of every run: the name of its journal. What was sent and not noted is found again by it."""

PARENT_TAG = "mlflow.parentRunId"

# mlflow.environment_variables; each is set only where the user has not set it.
_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_NO_BARS = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}  # one for each small file
# MLflow's own values (7 retries with back-off, 120 s each) can block one call for minutes.
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

_MAX_BATCH_PARAMS = 100  # mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH
_MAX_BATCH_METRICS = 1000  # mlflow.utils.validation.MAX_METRICS_PER_BATCH
_MAX_DIGEST = 36  # characters of the digest of an MLflow dataset
# Said although it is all of them: without it SQLite goes through this metric of all runs to answer for one.
_ALL_STEPS = (0, 2**31 - 1)
_SAMPLES = "/api/2.0/mlflow/metrics/get-history-bulk-interval"
_PAGE = 1000  # runs a query; the most that servers give is 50,000


@dataclass(frozen=True)
class StoredRun:
    """What a store says of a run.

    Args:
        run_id: Its id.
        name: Its name.
        status: RUNNING, FINISHED, FAILED or KILLED.
        started: When it began, milliseconds since 1970.
        tags: Its tags.
        params: Its settings.
        metrics: The last value of each metric.
    """

    run_id: str
    name: str
    status: str
    started: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]


class Store:
    """An MLflow tracking store.

    Args:
        uri: Its tracking URI.

    Raises:
        Exception: Whatever the store, the network or a driver raises.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = _connect(uri)

    # ---- writing ----

    def create(self, start: Start, key: str) -> str | None:
        """Create the run that a journal begins with; return its id, None where it is superfluous."""
        experiment = self.experiment_id(start.experiment) or self._create_experiment(start.experiment)
        if known := self._latest(experiment, {KEY_TAG: key}):
            return known
        if start.unless is not None and self._latest(experiment, start.unless):
            return None
        tags = {**start.tags, KEY_TAG: key}
        if start.parent is not None and (parent := self._latest(experiment, start.parent)):
            tags[PARENT_TAG] = parent
        run = self._client.create_run(experiment, start_time=start.time, tags=tags, run_name=start.name)
        return str(run.info.run_id)

    def find(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        """Return the id of the latest run with these tags in an experiment, None where there is none."""
        identity = self.experiment_id(experiment)
        return None if identity is None else self._latest(identity, tags)

    def log_metrics(self, run_id: str, points: Sequence[Sequence[Any]]) -> None:
        """Record points (key, value, step, time)."""
        from mlflow.entities import Metric  # noqa: PLC0415  loaded by the client already

        metrics = [Metric(key, value, time, step) for key, value, step, time in points]
        for first in range(0, len(metrics), _MAX_BATCH_METRICS):
            self._client.log_batch(run_id, metrics=metrics[first : first + _MAX_BATCH_METRICS])

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Record settings; the first value of a name stays: MLflow refuses another, as of a run that goes on."""
        from mlflow.entities import Param  # noqa: PLC0415  loaded by the client already

        known = self._client.get_run(run_id).data.params
        entries = [Param(key, value) for key, value in params.items() if key not in known]
        for first in range(0, len(entries), _MAX_BATCH_PARAMS):
            self._client.log_batch(run_id, params=entries[first : first + _MAX_BATCH_PARAMS])

    def log_tag(self, run_id: str, key: str, value: str) -> None:
        """Set a tag."""
        self._client.set_tag(run_id, key, value)

    def log_artifact(self, run_id: str, path: Path, folder: str) -> None:
        """Store a file, or what a folder holds, under a folder of the run's artifacts."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(run_id, str(path), folder or None)

    def log_input(self, run_id: str, name: str, digest: str, source: str, context: str) -> None:
        """Record a data set that the run read, as an MLflow dataset."""
        from mlflow.entities import Dataset, DatasetInput, InputTag  # noqa: PLC0415  loaded by the client already

        dataset = Dataset(name=name, digest=digest[:_MAX_DIGEST], source_type="local", source=source)
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])

    def reopen(self, run_id: str) -> bool:
        """Say that a run which had ended, or was killed, is running again; return whether it is still there."""
        try:
            self._client.update_run(run_id, status="RUNNING")
        except Exception as error:
            if not is_refusal(error):
                raise
            return False
        return True

    def end(self, run_id: str, status: str, time: int) -> None:
        """End a run."""
        self._client.set_terminated(run_id, status, end_time=time)

    def _create_experiment(self, name: str) -> str:
        path = sqlite_path(self.uri)
        # Beside the database: MLflow's own choice is ./mlruns of wherever the command was typed.
        artifacts = None if path is None else (path.absolute().parent / "mlartifacts").as_uri()
        try:
            return str(self._client.create_experiment(name, artifact_location=artifacts))
        except Exception:
            # Another process may have created it in the meantime.
            if found := self.experiment_id(name):
                return found
            raise

    # ---- reading ----

    def experiment_id(self, name: str) -> str | None:
        """Return the id of an experiment, None where there is none."""
        found = self._client.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    def experiments(self) -> list[str]:
        """Return the names of all experiments."""
        return [one.name for one in self._client.search_experiments()]

    def runs(self, experiment_id: str, filter_string: str = "") -> Iterator[StoredRun]:
        """Yield the runs of an experiment that a filter of MLflow lets through, the latest first."""
        token = None
        while True:
            page = self._client.search_runs([experiment_id], filter_string, max_results=_PAGE, page_token=token)
            yield from map(_stored, page)
            if not (token := page.token):
                return

    def run(self, run_id: str) -> StoredRun:
        """Return one run."""
        return _stored(self._client.get_run(run_id))

    def experiment_of(self, run_id: str) -> str:
        """Return the id of the experiment that holds a run."""
        return str(self._client.get_run(run_id).info.experiment_id)

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric, in the order of the steps."""
        return sorted((point.step, point.value) for point in self._client.get_metric_history(run_id, key))

    def curve(self, run_id: str, key: str, points: int) -> list[tuple[int, float]]:
        """Return (step, value) of a metric at up to so many points, in the order of the steps.

        They are spread evenly over what is recorded, the first and the last among them. Databases and servers choose
        them where they lie: to read 10,000 points for a figure takes ten times as long.
        """
        if is_server(self.uri):
            return self._sampled_by_server(run_id, key, points)
        if self._database is None:
            return _spread(self.history(run_id, key), points)
        found = self._database.get_metric_history_bulk_interval([run_id], key, points, *_ALL_STEPS)
        return [(point.step, point.value) for point in found]

    def _sampled_by_server(self, run_id: str, key: str, points: int) -> list[tuple[int, float]]:
        from mlflow.utils import credentials, rest_utils  # noqa: PLC0415  loaded by the client already

        account: Any = credentials.get_default_host_creds
        ask: Any = rest_utils.http_request
        first, last = _ALL_STEPS
        asked = {"run_ids": run_id, "metric_key": key, "max_results": points, "start_step": first, "end_step": last}
        answer = ask(account(self.uri), _SAMPLES, "GET", params=asked)
        if answer.status_code != HTTPStatus.OK:  # a server that does not know the question
            return _spread(self.history(run_id, key), points)
        return [(int(one.get("step", 0)), float(one["value"])) for one in answer.json().get("metrics", [])]

    @cached_property
    def _database(self) -> Any:
        """MLflow's store of a database; None for other kinds of stores."""
        if not is_database(self.uri):
            return None
        from mlflow.store.tracking import sqlalchemy_store  # noqa: PLC0415  as above

        open_store: Any = sqlalchemy_store.SqlAlchemyStore
        path = sqlite_path(self.uri)
        return open_store(self.uri, "" if path is None else str(path.parent / "mlartifacts"))

    def artifacts(self, run_id: str, folder: str = "") -> list[str]:
        """Return the paths of a run's artifacts in a folder."""
        return [one.path for one in self._client.list_artifacts(run_id, folder or None)]

    def download(self, run_id: str, path: str, target: Path) -> Path:
        """Copy an artifact into a folder; return where it lies."""
        return Path(self._client.download_artifacts(run_id, path, str(target)))

    def _latest(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        """Return the id of the latest run with these tags."""
        conditions = " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in tags.items())
        found = self._client.search_runs([experiment], conditions, max_results=1)
        return str(found[0].info.run_id) if found else None


def quoted(value: str) -> str:
    """Return a value as a filter of MLflow reads it: in the quotes that it does not hold, for there is no escape."""
    return f"'{value}'" if "'" not in value else f'"{value}"'


def is_refusal(error: Exception) -> bool:
    """Return whether a store will refuse the same call again, however often it is made."""
    return getattr(error, "error_code", "") in (
        "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST",
    )  # fmt: skip


def _spread(history: Sequence[tuple[int, float]], points: int) -> list[tuple[int, float]]:
    """Return up to so many points, evenly spread, the first and the last among them."""
    if len(history) <= points:
        return list(history)
    return [history[round(place * (len(history) - 1) / (points - 1))] for place in range(points)]


def _stored(run: Any) -> StoredRun:
    return StoredRun(
        run.info.run_id,
        run.info.run_name or run.info.run_id,
        run.info.status,
        run.info.start_time or 0,
        dict(run.data.tags),
        dict(run.data.params),
        dict(run.data.metrics),
    )


def _connect(uri: str) -> Client:
    defaults = {**_NO_TELEMETRY, **_NO_BARS, **(_IMPATIENT if is_server(uri) else {})}
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    if path := sqlite_path(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        # MLflow retries an unusable file for 100 s; this fails at once.
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")

    from mlflow.tracking import MlflowClient  # noqa: PLC0415  two seconds, and absent where tracking is off

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for library in ("mlflow", "alembic"):  # they announce every table they create
            logger = logging.getLogger(library)
            logger.setLevel(max(logger.level, logging.WARNING))
    return MlflowClient(tracking_uri=uri)
