"""Processes that torchrun or srun has started, before they have a process group: who goes first, who waits for whom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from torch.distributed import DistError

from unidd_pl.cluster import launched_processes, launched_rank, meeting_store
from unidd_pl.console import ProcessLost

_LONGEST_STAGE = timedelta(days=14)  # the training of a teacher, while the others wait
_LOOK_EVERY = 0.1  # seconds between two looks for a note
_FAREWELL = timedelta(seconds=60)  # for the others to read the first process's last note, before its board goes


class Board(Protocol):
    """Where processes leave each other notes, as torch's TCPStore."""

    def set(self, key: str, value: str, /) -> None:
        """Leave a note."""

    def get(self, key: str, /) -> bytes:
        """Return a note that is there."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether notes are there."""

    def wait(self, keys: list[str], timeout: timedelta, /) -> None:
        """Wait until notes are there."""


@dataclass
class Team:
    """The processes of one launch; a single process is a team of its own, which waits for nobody.

    All of them go through the same stages in the same order.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
        board: Where they leave notes; None for a single one.
    """

    rank: int = 0
    size: int = 1
    board: Board | None = None
    _stages: int = field(default=0, init=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that the others wait for."""
        return self.rank == 0

    @contextmanager
    def first_alone(self, stage: str) -> Iterator[None]:
        """Let the first process do a block before the others, which find it done.

        Args:
            stage: Name of the block.

        Raises:
            ProcessLost: If the first process has ended.
        """
        note = self._named(stage)
        if not self.is_first:
            self._wait(note, "the first process", stage)
        yield
        if self.is_first:
            self._leave(note, "done")

    @contextmanager
    def first_ends_last(self, stage: str) -> Iterator[None]:
        """Keep the other processes after a block until the first has done it too, which may take it longer.

        So one that is lost in the meantime is missed, and its launcher starts all of them again.

        Args:
            stage: Name of the block.

        Raises:
            ProcessLost: If the first process has ended.
        """
        note = self._named(stage)
        yield
        if not self.is_first:
            self._wait(note, "the first process", stage)
            self._leave(f"{note} {self.rank}", "read")
            return
        self._leave(note, "done")
        if self.board is not None:  # it may be this process that serves it
            with suppress(DistError):
                self.board.wait([f"{note} {other}" for other in range(1, self.size)], _FAREWELL)

    def decided_by_first(self, decision: bool, stage: str) -> bool:
        """Return what the first process decides, whatever the others would.

        Args:
            decision: What this process would decide.
            stage: Name of what it is about.

        Raises:
            ProcessLost: If the first process has ended.
        """
        note = self._named(stage)
        if self.is_first:
            self._leave(note, "yes" if decision else "no")
            return decision
        return self._read(note, "the first process", stage) == b"yes"

    def gathered_by_first(self, stage: str) -> None:
        """Tell the first process that this one is done; the first waits for all.

        Args:
            stage: Name of what is done.

        Raises:
            ProcessLost: If the process that has the notes has ended.
        """
        note = self._named(stage)
        self._leave(f"{note} {self.rank}", "done")
        if self.is_first:
            for other in range(1, self.size):
                self._wait(f"{note} {other}", f"process {other}", stage)

    def _named(self, stage: str) -> str:
        # By number, because one process may go through a stage of one name several times.
        self._stages += 1
        return f"unidd: {self._stages} {stage}"

    def _leave(self, note: str, value: str) -> None:
        if self.board is not None:
            self.board.set(note, value)

    def _wait(self, note: str, whose: str, stage: str) -> None:
        if self.board is None:
            return
        try:
            while not self.board.check([note]):
                time.sleep(_LOOK_EVERY)  # the board's own wait would hear no signal
        except DistError as error:
            raise ProcessLost(f"{whose} has ended in the stage {stage}", error) from error

    def _read(self, note: str, whose: str, stage: str) -> bytes:
        self._wait(note, whose, stage)
        return b"" if self.board is None else self.board.get(note)


ALONE = Team()
"""The team of a single process."""

_teams: list[Team] = []


def launched_team() -> Team:
    """Return the processes that torchrun or srun has started together with this one; always the same team.

    Processes that Lightning starts itself do not count: they come later, with the Trainer.

    Raises:
        ValueError: If srun was not told how many tasks a machine gets.
    """
    if not _teams:
        processes = launched_processes()
        size = 1 if processes is None else processes[0] * processes[1]
        _teams.append(Team() if size == 1 else Team(launched_rank(), size, meeting_store(_LONGEST_STAGE)))
    return _teams[0]
