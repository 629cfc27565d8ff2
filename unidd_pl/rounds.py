"""The rounds of a run under Lightning: in order, by processes that share each chunk, or whole ones side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L

from unidd_pl.cluster import launched_processes, slurm_plugins
from unidd_pl.distillation import DistillationModule
from unidd_pl.progress import RunProgressBar
from unidd_pl.resume import ResumePoint, fit_from
from unidd_pl.run_checks import callbacks_of, check_trainer, probes_of
from unidd_pl.run_folder import LAST, RunFolder
from unidd_pl.sharding import is_first, sharded_trainer_arguments
from unidd_pl.stages import own_device
from unidd_pl.team import Team, launched_team
from unidd_pl.training import quiet_lightning

Spread = Literal["chunks", "rounds"]
"""What the processes of a run share: the images of each chunk, or the rounds."""


class Rounds:
    """Makes the rounds of a distillation.

    ``chunks``: one Trainer makes all rounds in order, and its processes share each chunk. ``rounds``: where rounds are
    matched each on its own, no process needs to know of another. Each takes whole rounds in turn, every one with a
    Trainer and a checkpoint of its own, and the images are those of one process to the last bit.

    Args:
        module: The distillation.
        folder: Folder of the run.
        trainer: Arguments of Lightning's Trainer.
        checkpoint_every: Iterations between two checkpoints.
        spread: What several processes share.
    """

    def __init__(
        self,
        module: DistillationModule,
        folder: Path,
        trainer: Mapping[str, Any],
        checkpoint_every: int = 500,
        spread: Spread = "chunks",
    ) -> None:
        self.module = module
        self.apart = spread == "rounds"
        self.folder = RunFolder(folder, self.apart)
        self.trainer_arguments = trainer
        self.checkpoint_every = checkpoint_every

    def check(self, checkpoint: str | None) -> None:
        """Refuse, before any work, what rounds cannot be made with.

        Args:
            checkpoint: What the run is to go on from.

        Raises:
            ValueError: If there is something.
        """
        check_trainer(self.trainer_arguments, self.module.ipc)
        if self.apart:
            check_apart(self.module, self.trainer_arguments, checkpoint)
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every: got {self.checkpoint_every}, expected at least 1")

    def make(self, logger: Any, checkpoint: Path | None, callbacks: list[L.Callback]) -> None:
        """Make those that are missing. The first process returns when those of all processes are made.

        Args:
            logger: Logger of the Trainer where its arguments name none.
            checkpoint: What to go on from; of rounds side by side each has its own, whatever this is.
            callbacks: Callbacks beside those of the Trainer's arguments, which come after them.

        Raises:
            ProcessLost: If another process has ended.
            ValueError: If a checkpoint is of another run.
        """
        if not self.apart:
            self._train(range(self.module.ipc), self.folder.checkpoint, checkpoint, logger, callbacks)
            return
        team = launched_team()
        for rounds in in_turn(team, self.module.ipc):
            own = self.folder.checkpoint_of(rounds.start)
            self._train(rounds, own, own if own.is_file() else None, logger, callbacks)
        team.gathered_by_first("rounds of each")

    @property
    def made(self) -> int:
        """How many rounds are finished, from the first on."""
        schedule = self.module.schedule
        if self.apart:
            return self.module.store.count_rounds(schedule)
        return self.module.step // schedule.steps_per_round

    def _train(
        self, rounds: range, latest: Path, checkpoint: Path | None, logger: Any, callbacks: list[L.Callback]
    ) -> None:
        module, given = self.module, self.trainer_arguments
        module.take_rounds(rounds)
        resume_point = ResumePoint(latest, self.checkpoint_every, lambda: str(module.last_position))
        # Gauges do not count the time of a probe; what stops a run comes last.
        callbacks = [*callbacks, *callbacks_of(given), resume_point]
        shown = given.get("enable_progress_bar") is not False and is_first()
        if shown:
            callbacks.append(RunProgressBar("Distilling", "round", before=rounds.start, of=module.ipc))
        placed = _alone(str(given.get("accelerator", "auto"))) if self.apart else sharded_trainer_arguments(given)
        arguments = {
            **given,
            **placed,
            "max_epochs": len(rounds),
            "logger": logger if given.get("logger") in (None, True) else given["logger"],
            "callbacks": callbacks,
            "enable_checkpointing": False,  # ResumePoint does it
            "enable_model_summary": False,
            "enable_progress_bar": shown,
        }
        with quiet_lightning():
            fit_from(L.Trainer(**arguments), module, checkpoint, resume_point)


def in_turn(team: Team, ipc: int) -> Iterator[range]:
    """Yield the rounds of one of the processes, each as the range that `DistillationModule.take_rounds` takes."""
    for round_index in range(team.rank, ipc, team.size):
        yield range(round_index, round_index + 1)


def check_apart(module: DistillationModule, trainer: Mapping[str, Any], checkpoint: str | None) -> None:
    """Refuse rounds side by side where one depends on another, or nobody has started processes for them.

    Args:
        module: The distillation.
        trainer: Arguments of Lightning's Trainer.
        checkpoint: What the run is to go on from.

    Raises:
        ValueError: If it is so.
    """
    if module.running != "off":
        raise ValueError(
            f"got --spread rounds and running moments ({module.running}), by which a round depends on those before it: "
            "leave --spread out, or match each round on its own with --model.init_args.running off, which changes the "
            "images"
        )
    if probes_of(callbacks_of(trainer)):
        raise ValueError(
            "got --spread rounds and a ProbeCallback, which looks at rounds in their order: leave one of them out"
        )
    if checkpoint not in (None, LAST):
        raise ValueError(
            f"got --spread rounds and --ckpt_path {checkpoint}, expected last: each round has a checkpoint of its own"
        )
    devices, nodes = trainer.get("devices", "auto"), int(trainer.get("num_nodes") or 1)
    if launched_processes() is None and (devices not in ("auto", 1, "1") or nodes > 1):
        raise ValueError(
            f"got --spread rounds and trainer.devices {devices} on {nodes} machine(s), expected processes that "
            "torchrun or srun has started: leave both out, and start the command with torchrun --nproc-per-node N"
        )


def _alone(accelerator: str) -> dict[str, Any]:
    """Return the arguments of a Trainer that knows of no other process, on this process's own device."""
    index = own_device(accelerator).index
    slurm = slurm_plugins()
    plugins = {"plugins": slurm} if slurm else {}
    return {"devices": 1 if index is None else [index], "num_nodes": 1, "strategy": "auto", **plugins}
