"""`unidd tune`: settings of a distillation chosen on a hold-out of the training set, never on test images."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unidd_pl.comparison import environment
from unidd_pl.console import Stopped, say
from unidd_pl.data.holdout import HoldOutData
from unidd_pl.data.module import ImageData
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluation import TrainingSet
from unidd_pl.files import atomic_write, check_writable
from unidd_pl.fit import DistillationRun
from unidd_pl.networks import build_network
from unidd_pl.protocols import Protocol
from unidd_pl.rows import PERCENT, Row, plus_minus
from unidd_pl.scores import StudentScore
from unidd_pl.student_pool import StudentJob, StudentSettings, train_students
from unidd_pl.tables import text_table
from unidd_pl.tracking import Tracking

RESULTS_FILE = "tuning.json"

Candidate = Mapping[str, Any]
"""Settings of the distillation by name, for example {"eta": 0.1}."""

MakeRun = Callable[[Candidate, HoldOutData, Path], DistillationRun]
"""Makes the distillation of a candidate on the kept training images, with its results in a folder."""


@dataclass(frozen=True)
class Trial:
    """A candidate and what its students reached on the hold-out."""

    candidate: Candidate
    row: Row


class Tuning:
    """One `unidd tune`: distils every candidate, scores students on the hold-out, names the best.

    The hold-out is taken out before real moments are gathered and start images chosen. The teacher, being shared
    with the final runs, has seen it (and so have the running statistics of its BatchNorms): scores are a little
    high, for all candidates alike.

    Args:
        make_run: Makes the distillation of a candidate.
        data: The real data.
        grid: Values to try by setting; candidates are all combinations.
        protocol: How to train the students.
        network: Name of the students' architecture.
        seeds: Students per candidate.
        holdout: Share of each class's training images to hold out.
        tracking: Where the tuning is recorded.
        accelerator: Lightning's accelerator of the students.
        precision: Their precision.
        output: Folder of the results.
        overwrite: Replace what it holds.
        config: Resolved config as YAML, for the record.

    Raises:
        ValueError: If there is nothing to choose from, or the folder holds results.
    """

    def __init__(
        self,
        make_run: MakeRun,
        data: ImageData,
        grid: Mapping[str, Sequence[Any]],
        protocol: Protocol,
        network: str,
        seeds: int,
        holdout: float,
        tracking: Tracking,
        accelerator: str,
        output: Path,
        *,
        precision: str = "32-true",
        overwrite: bool = False,
        config: str = "",
    ) -> None:
        self.candidates = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()) if grid]
        if len(self.candidates) < 2:
            raise ValueError(
                f"got {len(self.candidates)} candidate(s), expected at least two values to choose from, for example "
                "--eta 0.01 0.1 1"
            )
        if len({_name(one) for one in self.candidates}) < len(self.candidates):
            raise ValueError(f"got values twice in {dict(grid)}, expected each once")
        if seeds < 1:
            raise ValueError(f"seeds: got {seeds}, expected at least 1")
        if protocol.labels == "stored":
            raise ValueError(
                f"protocol {protocol.name}: got labels stored, expected online or hard, as no candidate has stored "
                "ones: add --protocol.labels online"
            )
        self.results = output / RESULTS_FILE
        if self.results.exists() and not overwrite:
            raise ValueError(
                f"{self.results} already holds results: replace them with --overwrite true, or give "
                "another --output_dir"
            )
        check_writable(output)
        build_network(network, data.spec)
        self.make_run = make_run
        self.data = HoldOutData(data, holdout)
        self.protocol = protocol
        self.network = network
        self.seeds = seeds
        self.holdout = holdout
        self.tracking = tracking
        self.accelerator = accelerator
        self.precision = precision
        self.output = output
        self.config = config
        self.trials: list[Trial] = []

    def run(self) -> Trial:
        """Try all candidates; print the table and the best one."""
        # All of them before the first: what is refused must not show after hours.
        runs = [self.make_run(one, self.data, self.output / _name(one)) for one in self.candidates]
        for run in runs:
            run.check()
        tags = {"dataset": self.data.dataset_name, "method": runs[0].module.method.name, "protocol": self.protocol.name}
        with self.tracking.run("tuning", self.output.name, tags, self.config) as record:
            for number, (candidate, run) in enumerate(zip(self.candidates, runs, strict=True)):
                say(f"\nCandidate {number + 1} of {len(runs)}: {_name(candidate)}")
                try:
                    row = Row(_name(candidate), self.network, self._students(run))
                except Stopped as stop:
                    raise Stopped(
                        stop.number, f"{stop}\nA tuning does not resume: start it anew with --overwrite true"
                    ) from stop
                self.trials.append(Trial(candidate, row))
                record.metrics({"holdout_accuracy": self.trials[-1].row.tail_mean[0]}, step=number)
                self._save()
            record.artifact(self.results)
            best = self.best
            record.params({f"best/{name}": value for name, value in best.candidate.items()})
        say(f"\n{self.table()}\n")
        say("Best on the hold-out: " + " ".join(f"--model.init_args.{n} {v}" for n, v in best.candidate.items()))
        say(f"Figures: {self.results}")
        return best

    @property
    def best(self) -> Trial:
        """The candidate with the highest tail mean on the hold-out; the first of equal ones."""
        return max(self.trials, key=lambda trial: trial.row.tail_mean[0])

    def table(self) -> str:
        """Return the trials as text: top-1 on the hold-out in %, mean ± standard deviation over students."""
        names = list(self.candidates[0])
        rows = [
            [
                *(str(one.candidate[name]) for name in names),
                str(len(one.row.scores)),
                *map(plus_minus, (one.row.tail_mean, one.row.last_epoch)),
            ]
            for one in self.trials
        ]
        title = f"{self.data.dataset_name}, protocol {self.protocol.label}: top-1 on the hold-out, %"
        return f"{title}\n\n{text_table([*names, 'n', 'tail mean', 'last epoch'], rows)}"

    def _students(self, run: DistillationRun) -> list[StudentScore]:
        distilled = DistilledSet.load(run.fit())
        images = TrainingSet(distilled.images, distilled.labels, distilled.ipc)
        settings = StudentSettings(run.teacher, self.data.test, self.protocol, self.accelerator, self.precision)
        jobs = (
            StudentJob(self.network, images, seed, f"Student {seed + 1}/{self.seeds} on {run.output.name}")
            for seed in range(self.seeds)
        )
        return [score for _, score in train_students(jobs, self.seeds, settings)]

    def _save(self) -> None:
        content = {
            "dataset": self.data.dataset_name,
            "holdout": self.holdout,
            "held_out_images": len(self.data.test),
            "protocol": {**vars(self.protocol)},
            "network": self.network,
            "precision": self.precision,
            "environment": environment(),
            "best": dict(self.best.candidate),
            "trials": [
                {
                    **one.candidate,
                    "tail_mean": [PERCENT * score.tail_mean for score in one.row.scores],
                    "last_epoch": [PERCENT * score.last_epoch for score in one.row.scores],
                }
                for one in self.trials
            ],
            "config": self.config,
        }
        with atomic_write(self.results) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def _name(candidate: Candidate) -> str:
    return ",".join(f"{name}={value}" for name, value in candidate.items())
