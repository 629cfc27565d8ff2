"""One MLflow run a stage, written to the disk first: a training must outlive its tracking and never wait for it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from lightning_utilities.core.rank_zero import rank_zero_only

from unidd_pl.console import Stopped, say
from unidd_pl.tracking.addresses import is_local, is_server, sqlite_path, without_password
from unidd_pl.tracking.journal import Journal, Start, now
from unidd_pl.tracking.names import MAX_PARAM, MAX_TAG, clean, flatten
from unidd_pl.tracking.sender import BackgroundSender
from unidd_pl.tracking.store import KEY_TAG, Store

if TYPE_CHECKING:
    from unidd_pl.tracking.logger import StageLogger

DEFAULT_URI = "sqlite:///runs/mlflow.db"
DEFAULT_OUTBOX = "runs/outbox"
_CURE = "check --tracking.uri, or turn tracking off with --tracking.enabled=false"


class Tracking:
    """Where the stages of an experiment are recorded.

    Records are written to an outbox on the disk and sent to MLflow beside the work. With the server away a run neither
    waits nor loses anything; `unidd sync` sends what is left.

    Args:
        uri: MLflow tracking URI; None takes MLFLOW_TRACKING_URI from the environment, else a SQLite file
            under runs/.
        experiment: Name of the MLflow experiment that holds the runs, one a study; created if it does not exist.
        enabled: False records nothing and does not need mlflow.
        outbox: Folder of records that are not sent yet; None for runs/outbox, or ``outbox`` beside a SQLite file.

    Raises:
        ValueError: If tracking is enabled and mlflow is not installed.
    """

    def __init__(
        self, uri: str | None = None, experiment: str = "unidd", enabled: bool = True, outbox: str | None = None
    ) -> None:
        if enabled and importlib.util.find_spec("mlflow") is None:
            raise ValueError(
                "tracking is enabled but mlflow is not installed: pip install mlflow, "
                "or turn tracking off with --tracking.enabled=false"
            )
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self.experiment = experiment
        self.enabled = enabled
        file = sqlite_path(self.uri)
        self.outbox = Path(outbox or (file.parent / "outbox" if file else DEFAULT_OUTBOX))
        self._store: Store | None = None
        self._opening = threading.Lock()

    @contextmanager
    def run(
        self,
        stage: str,
        name: str,
        tags: Mapping[str, str] | None = None,
        config: str | None = None,
        *,
        parent: Mapping[str, str] | None = None,
        unless: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Iterator[StageRun]:
        """Record what happens inside the `with` block as one MLflow run.

        The run ends as FINISHED, as FAILED after an exception, as KILLED after Ctrl-C, SIGTERM or `sys.exit`.
        Blocks may follow each other and nest. Of several processes only rank 0 records.

        Args:
            stage: teacher, statistics, distillation, evaluation, …; becomes the tag `stage`.
            name: Name of the run.
            tags: Further tags.
            config: The resolved config as YAML; becomes the artifact config.yaml and the params of the run.
            parent: Tags of the run to nest this one under, the latest that has them; none where there is none.
            unless: Tags of a run; where the experiment has one with them, this one is not recorded.
            key: `StageRun.key` of a run to go on with, which becomes RUNNING again; one that is gone starts anew.

        Yields:
            The run.

        Raises:
            ValueError: If a store on this machine cannot be used or the config is no YAML mapping.
        """
        run = self._start(stage, name, dict(tags or {}), config, parent, unless, key)
        try:
            if config is not None:
                run.params(flatten(yaml.safe_load(config)))
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

    def store(self) -> Store:
        """Return the store, opened when it is first asked for.

        Raises:
            Exception: Whatever the store, the network or a driver raises.
        """
        with self._opening:
            if self._store is None:
                self._store = Store(self.uri)
            return self._store

    @property
    def is_missing(self) -> bool:
        """Whether the store is a SQLite file that is not there: to open it would create it."""
        file = sqlite_path(self.uri)
        return file is not None and not file.exists()

    def ui_command(self) -> str:
        """Return the line that shows the runs: a command, the address of a server, or "" when disabled."""
        if not self.enabled:
            return ""
        if is_server(self.uri):
            return without_password(self.uri)
        return f"mlflow ui --backend-store-uri {shlex.quote(without_password(self.uri))}"

    def _start(
        self,
        stage: str,
        name: str,
        tags: dict[str, str],
        config: str | None,
        parent: Mapping[str, str] | None,
        unless: Mapping[str, str] | None,
        key: str | None,
    ) -> StageRun:
        if not self.enabled:
            return StageRun()
        if config is not None and not isinstance(yaml.safe_load(config), dict):
            raise ValueError(f"config of the {stage} run: expected a YAML mapping, got {config[:80]!r}")
        if getattr(rank_zero_only, "rank", 0) != 0:  # Lightning sets it when it is imported
            # A logger that does nothing, not False: callbacks that insist on one must act alike on all ranks.
            return StageRun(experiment=self.experiment)
        tags = {clean(key): value[:MAX_TAG] for key, value in {**tags, "stage": stage}.items()}
        start = Start(
            without_password(self.uri), self.experiment, name, tags,
            None if parent is None else dict(parent), None if unless is None else dict(unless),
        )  # fmt: skip
        if is_local(self.uri):
            self._check_store()
        try:
            journal = Journal.begin(self.outbox, start, key)
        except OSError as error:
            raise ValueError(
                f"cannot write records to {self.outbox} ({error}): give --tracking.outbox FOLDER"
            ) from error
        sender = BackgroundSender(journal, self.store)
        if is_local(self.uri):
            self._send_start(sender)
        sender.start()
        return StageRun(journal, sender, self.experiment)

    def _check_store(self) -> None:
        try:
            self.store()
        except Exception as error:  # whatever the store or a driver raises, the cure is the same
            raise self._unusable(error) from error

    def _send_start(self, sender: BackgroundSender) -> None:
        """Create the run now: a store on this machine that does not take it is not away but wrong."""
        try:
            sender.send()
        except Exception as error:
            sender.journal.remove()
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> ValueError:
        return ValueError(f"cannot start an MLflow run at {without_password(self.uri)}: {error}; {_CURE}")


class StageRun:
    """One MLflow run; without a journal all its methods do nothing.

    Args:
        journal: Where it is recorded.
        sender: What sends the record.
        experiment: Name of its experiment; None where tracking is disabled.
    """

    def __init__(
        self, journal: Journal | None = None, sender: BackgroundSender | None = None, experiment: str | None = None
    ) -> None:
        self._experiment = experiment
        self._journal = journal
        self._sender = sender
        self._known_params: set[str] = set()
        self._warned = False

    @cached_property
    def logger(self) -> StageLogger | Literal[False]:
        """What to hand to `Trainer(logger=...)`; False where tracking is disabled."""
        if self._experiment is None:
            return False
        from unidd_pl.tracking.logger import StageLogger  # noqa: PLC0415  seconds that a report need not wait

        return StageLogger(self, self._experiment)

    @property
    def run_id(self) -> str | None:
        """Id of the run in the store; None where nothing is recorded or the server has not taken it yet."""
        return None if self._sender is None else self._sender.run_id

    @property
    def key(self) -> str | None:
        """What `Tracking.run(key=…)` goes on with this run by; None where nothing is recorded."""
        return None if self._journal is None else self._journal.folder.name

    @property
    def key_tags(self) -> dict[str, str] | None:
        """Tags by which the store finds this run, for `Tracking.run(parent=…)`."""
        return None if self.key is None else {KEY_TAG: self.key}

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record scalars."""
        time = now()
        self._append({"metrics": [[clean(key), float(value), int(step), time] for key, value in values.items()]})

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; the first value of a name stays, for MLflow refuses to change it."""
        new = {clean(key): str(value)[:MAX_PARAM] for key, value in values.items()}
        new = {key: value for key, value in new.items() if key not in self._known_params}
        self._known_params |= new.keys()
        if new:
            self._append({"params": new})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file as it is now, or the content of a directory, in `folder` of the run's artifacts."""
        self._keep(lambda journal: journal.keep_file(Path(path), folder))

    def text(self, content: str, name: str) -> None:
        """Record a text as the artifact `name`."""
        self._keep(lambda journal: journal.keep_text(content, name))

    def tag(self, key: str, value: str) -> None:
        """Set a tag; a later value replaces an earlier one."""
        self._append({"tag": [clean(key), str(value)[:MAX_TAG]]})

    def input(self, name: str, digest: str, source: str, context: str) -> None:
        """Record a data set that the run reads, as an MLflow dataset.

        Args:
            name: Its name.
            digest: Its fingerprint.
            source: Where it comes from.
            context: What it is read for, for example ``training``.
        """
        self._append({"input": {"name": name, "digest": digest, "source": source, "context": context}})

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the run and send the rest; `Tracking.run` calls this."""
        self._append({"end": [status, now()]})
        if self._sender is not None:
            self._sender.close()

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._keep(lambda journal: journal.append(entry))

    def _keep(self, write: Callable[[Journal], None]) -> None:
        """Write to the journal; a full disk must not end a training either."""
        if self._journal is None:
            return
        try:
            write(self._journal)
        except OSError as error:
            if not self._warned:
                self._warned = True
                say(f"Could not record all of a run ({error}); the stage goes on, further failures are not shown")
