"""The folder of one `unidd fit`: what lies in it, what must not be lost, and where a run goes on from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from unidd_pl.console import say
from unidd_pl.coverage import FIGURE_FILE as COVERAGE_FIGURE
from unidd_pl.coverage import RESULTS_FILE as COVERAGE_FILE
from unidd_pl.partial import CHUNK_FOLDER, DISTILLED_FILE, RUN_FILE
from unidd_pl.resume import check_checkpoint
from unidd_pl.standing import STANDING_FILE

PICTURE_FILE = "distilled.png"
CHECKPOINT_FILE = "last.ckpt"
APART_FOLDER = "rounds_apart"
CONFIG_FILE = "config.yaml"
ROUNDS_FOLDER = "rounds"

LAST = "last"
"""Stands for the checkpoint in the run's own folder."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its chunks and checkpoint, and leaves its results.

    Args:
        path: The folder; it need not exist yet.
        apart: Whether rounds are made side by side, each with a checkpoint of its own.
    """

    path: Path
    apart: bool = False

    @property
    def distilled(self) -> Path:
        """The distilled set, there when the run has ended."""
        return self.path / DISTILLED_FILE

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the run itself."""
        return self.path / CHECKPOINT_FILE

    def checkpoint_of(self, round_index: int) -> Path:
        """Return the checkpoint of a round that is made apart; any number of processes can go on from them."""
        return self.path / APART_FOLDER / f"round_{round_index:04d}.ckpt"

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that there are."""
        return self._apart if self.apart else [path for path in (self.checkpoint,) if path.is_file()]

    @property
    def _apart(self) -> list[Path]:
        return sorted((self.path / APART_FOLDER).glob("round_*.ckpt"))

    def check_replaceable(self) -> None:
        """Refuse to start anew where a run has left something.

        Raises:
            ValueError: If the folder holds a distilled set or a checkpoint.
        """
        holds = [path.name for path in (self.distilled, self.checkpoint) if path.exists()]
        holds += [APART_FOLDER] if self._apart else []
        if holds:
            raise ValueError(
                f"{self.path} already holds {' and '.join(holds)}: go on with --ckpt_path last, start anew with "
                "--overwrite true, or choose another --output_dir"
            )

    def going_on_from(self, given: str | None) -> Path | None:
        """Return the checkpoint to go on from; None to start from the beginning.

        Args:
            given: A path; `LAST` for the one in this folder, which need not be there yet; None to start anew. Of rounds
                that are made apart, one stands for all.

        Raises:
            ValueError: If it is missing, not a checkpoint, or of a run whose processes share something else.
        """
        if given is None:
            return None
        path = Path(given) if given != LAST else next(iter(self.checkpoints), None)
        if path is None:
            self._check_spread()
            if not self.distilled.exists():
                say(f"No checkpoint in {self.path} yet: starting from the beginning")
                return None
            path = self.checkpoint
        if not path.is_file():
            raise ValueError(f"no checkpoint at {path}: expected one written by `unidd fit`")
        check_checkpoint(path)
        return path

    def _check_spread(self) -> None:
        if RunFolder(self.path, not self.apart).checkpoints:
            raise ValueError(
                f"{self.path} holds a run that was begun with --spread {'chunks' if self.apart else 'rounds'}: go on "
                "with that, start anew with --overwrite true, or choose another --output_dir"
            )

    def clear(self, *, anew: bool = True) -> None:
        """Remove what an earlier run left: a part of it must not pass for a part of this one.

        Args:
            anew: Whether another run begins, and not that of before for want of a checkpoint, which keeps its record.
        """
        for folder in (CHUNK_FOLDER, ROUNDS_FOLDER, APART_FOLDER):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        files = (CHECKPOINT_FILE, DISTILLED_FILE, RUN_FILE, PICTURE_FILE, COVERAGE_FIGURE, COVERAGE_FILE)
        for name in (*files, *((STANDING_FILE,) if anew else ())):
            (self.path / name).unlink(missing_ok=True)
