"""Stopping and going on: checkpoints at intervals, and one at Ctrl-C, SIGTERM or SIGUSR1."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from torch.distributed import DistError

from unidd_pl.cluster import requeue_from
from unidd_pl.console import ProcessLost, Stopped, say, stopped_by
from unidd_pl.distillation import DistillationModule
from unidd_pl.distributed import largest_over_ranks
from unidd_pl.files import atomic_write, only_writer, remove_temporary
from unidd_pl.sharding import is_first
from unidd_pl.untrusted import read_torch

_ABANDONED = 3600.0  # seconds after which a temporary file in the cache is no one's
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Stopped):
    """A distillation was stopped by a signal and left a checkpoint.

    Args:
        number: Number of the signal.
        checkpoint: File to resume from.
        place: Where the run was.
    """

    def __init__(self, number: int, checkpoint: Path, place: str) -> None:
        super().__init__(
            number,
            f"Stopped by {signal.Signals(number).name} in {place}. "
            f"Go on with the same command and --ckpt_path {checkpoint}",
        )
        self.checkpoint = checkpoint


class ResumePoint(L.Callback):
    """Writes the checkpoint that ``--ckpt_path`` continues from: at intervals, and at the end of each chunk.

    A signal only raises a flag; the checkpoint is written when the step in hand is complete, so that it never
    holds half of one, and the run ends when Lightning has logged that step too. A second signal finds the handlers of
    before: a second Ctrl-C does not wait.

    Args:
        path: The checkpoint; the latest replaces the one before, atomically.
        every_n_iterations: Iterations between two checkpoints.
        place: Tells where the run is, for the message.
    """

    def __init__(self, path: Path, every_n_iterations: int, place: Callable[[], str]) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"checkpoint_every: got {every_n_iterations}, expected at least 1")
        self.path = path
        self.every_n_iterations = every_n_iterations
        self.place = place
        self.started = False
        """Whether the training has begun: all that a checkpoint holds is taken up by then."""
        self._received: int | None = None
        self._stop: Interrupted | None = None  # to be raised before the next step
        self._previous: dict[int, Any] = {}

    @property
    def stopping(self) -> bool:
        """Whether a signal has come, so that the run ends with the step in hand."""
        return self._received is not None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals; only a main thread may."""
        self.started = True
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}

    def on_train_batch_start(self, *_: Any) -> None:
        """Stop where a signal came in the step before.

        Raises:
            Interrupted: After a signal.
        """
        if self._stop is not None:
            raise self._stop

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write a checkpoint where one is due, or where a signal came."""
        # Lightning takes a checkpoint from here for one in the middle of an epoch, also after its last batch, and
        # would then count that epoch twice in the second resume. There the epoch's end is the place to save.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # Not raised here: Lightning logs a step after this hook, and who goes on never makes the step again.
            self._stop = self._saved(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do the same after the last batch of an epoch.

        Raises:
            Interrupted: After a signal.
        """
        stop = self._saved(trainer, pl_module)
        if stop is not None:
            raise stop

    def on_train_end(self, *_: Any) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, *_: Any) -> None:
        """Give the signals back."""
        self._restore()

    def _saved(self, trainer: L.Trainer, module: L.LightningModule) -> Interrupted | None:
        """Write a checkpoint where one is due, or where a signal came; return what is to be raised then."""
        # A signal that reaches one process stops all of them, after the same step.
        received = largest_over_ranks(self._received or 0, trainer.strategy.root_device)
        if received:
            place = self.place()
            self._save(trainer)
            return Interrupted(received, self.path, place)
        # A finished chunk is never made again; that of a kill between its file and the checkpoint is, and is the same.
        finished = isinstance(module, DistillationModule) and module.position.iteration == 0
        ended = trainer.should_stop  # by a callback
        if finished or ended or trainer.global_step % self.every_n_iterations == 0:
            self._save(trainer)
        return None

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            with atomic_write(self.path) as temporary:
                trainer.save_checkpoint(temporary)
        else:
            trainer.save_checkpoint(self.path)  # gives its rows; the first process writes
        # A launcher ends all processes when one has ended: none may before the file is in its place.
        trainer.strategy.barrier()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End what is done within a run at the first Ctrl-C or SIGUSR1; the run's own handler waits until it is complete.

    SIGTERM is not among them: Lightning's own Trainer, where one runs in the block, ends at it.

    Raises:
        KeyboardInterrupt: Where one comes, after that handler was called.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    previous = {number: handler for number, handler in handlers.items() if callable(handler)}

    def stop(number: int, frame: FrameType | None) -> None:
        previous[signal.Signals(number)](number, frame)
        raise KeyboardInterrupt

    for number in previous:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


@contextmanager
def sole_run(output: Path, cache: Path) -> Iterator[None]:
    """Hold an output folder for one run, and remove the temporary files that killed ones left.

    Args:
        output: Folder of the results, with folders of its own.
        cache: Folder of teachers and statistics, which other runs may be writing to.

    Raises:
        ValueError: If another run writes to the output folder.
    """
    if not is_first():  # the first of several processes holds the folder for all
        yield
        return
    with only_writer(output):
        for folder in (output, *(entry for entry in output.iterdir() if entry.is_dir())):
            remove_temporary(folder)
        for folder in (cache / "teachers", cache / "statistics"):
            remove_temporary(folder, older_than=_ABANDONED)
        yield


@contextmanager
def requeued(checkpoints: Callable[[], Sequence[Path]]) -> Iterator[None]:
    """Let SIGUSR1, by which SLURM announces the end of a job's time, stop the block, and queue the job again.

    It is queued again only where there is a checkpoint: a job that got no further would be queued for ever.

    Args:
        checkpoints: Tells what there is to go on from.
    """
    outside = "stopped by SIGUSR1 outside of the iterations: the same command and --ckpt_path last goes on"
    try:
        with stopped_by(signal.SIGUSR1, outside):
            yield
    except Stopped as stop:
        if stop.number == signal.SIGUSR1 and checkpoints():
            told = requeue_from(first=is_first())
            if told:
                say(told)
        raise


def fit_from(trainer: L.Trainer, module: L.LightningModule, checkpoint: Path | None, point: ResumePoint) -> None:
    """Run a Trainer, from a checkpoint where one is given.

    Raises:
        ValueError: If the checkpoint is one by its form, and its contents cannot be taken up.
        ProcessLost: If another of the processes that share the run has ended.
    """
    try:
        trainer.fit(module, ckpt_path=checkpoint)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError, NotImplementedError) as error:
        # Gloo's errors have no type of their own.
        if trainer.world_size > 1 and (isinstance(error, DistError) or "gloo" in str(error)):
            raise ProcessLost("another of the processes that share the run has ended", error) from error
        if checkpoint is None or point.started:
            raise
        raise ValueError(
            f"got contradictory contents in the checkpoint {checkpoint} ({type(error).__name__}: {error}), expected "
            "one that `unidd fit` wrote: take another one, or start anew with --overwrite true"
        ) from error


def check_checkpoint(path: Path) -> None:
    """Refuse, before any work, a file that is no checkpoint of a distillation.

    Raises:
        ValueError: If it cannot be read or is something else.
    """
    try:
        content = read_torch(path)
    except ValueError as error:
        raise ValueError(f"cannot read the checkpoint {path} ({error}): expected one written by `unidd fit`") from error
    if not isinstance(content, dict) or "distillation" not in content:
        raise ValueError(f"{path} is not a checkpoint of a distillation: expected one written by `unidd fit`")
