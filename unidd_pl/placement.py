"""Where students are trained: one after the other, side by side, or each over several devices."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from unidd_pl.rank_pool import train_over_ranks
from unidd_pl.scores import StudentScore
from unidd_pl.student_pool import StudentJob, StudentSettings, train_students

Spread = Literal["students", "batches"]


@dataclass(frozen=True)
class Placement:
    """Processes and devices of the students.

    Apart from the order of summation the scores do not depend on it; `batches` without `sync_batchnorm` is the
    exception.

    Args:
        workers: Students trained at once, each in a process of its own.
        devices: GPUs, or processes on a CPU.
        spread: ``students``, whole ones side by side on the devices, or ``batches``, each student over all devices.
        sync_batchnorm: BatchNorm over the batch of all devices, without which ``batches`` is another training.
        compiled: Let torch.compile make the students' code; needs a C++ compiler.

    Raises:
        ValueError: If the settings do not go together.
    """

    workers: int = 1
    devices: int = 1
    spread: Spread = "students"
    sync_batchnorm: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        for what, number in (("workers", self.workers), ("devices", self.devices)):
            if number < 1:
                raise ValueError(f"{what}: got {number}, expected at least 1")
        if self.spread == "batches" and self.workers > 1:
            raise ValueError(
                f"workers: got {self.workers} with --spread batches, expected 1: the devices share each student"
            )
        if self.sync_batchnorm and not self.over_ranks:
            raise ValueError(
                f"sync_batchnorm: got true with {self.devices} device(s) and --spread {self.spread}, expected several "
                "devices for each student: --devices 2 --spread batches"
            )
        if self.compiled and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
            raise ValueError(
                "compile: got no C++ compiler, expected g++ or clang++: install one, or leave --compile out"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"got {os.environ['WORLD_SIZE']} processes, as torchrun starts them, expected one that starts its own: "
                "unidd evaluate … --devices N"
            )

    @property
    def over_ranks(self) -> bool:
        """Whether several processes train each student together."""
        return self.spread == "batches" and self.devices > 1

    def train(
        self, jobs: Iterable[StudentJob], count: int, settings: StudentSettings
    ) -> Iterator[tuple[int, StudentScore]]:
        """Yield (position of the job, score), each as soon as it is there.

        Args:
            jobs: The students.
            count: How many there are.
            settings: What they share.
        """
        settings = replace(settings, compiled=self.compiled)
        if self.over_ranks:
            settings = replace(settings, devices=self.devices, sync_batchnorm=self.sync_batchnorm)
            return train_over_ranks(jobs, settings, self.devices)
        return train_students(jobs, count, settings, max(self.workers, self.devices), self.devices)
