"""Many students, one after the other or several at once in processes of their own.

The scores are the same up to the order of summation: a worker has one CPU thread.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized

import torch
from tqdm import tqdm

from unidd_pl.allocator import keep_large_blocks
from unidd_pl.console import stopped_by
from unidd_pl.data.images import LabelledImages
from unidd_pl.evaluation import TrainingSet, train_student
from unidd_pl.protocols import Protocol
from unidd_pl.scores import StudentScore
from unidd_pl.teachers import Teacher


@dataclass(frozen=True)
class StudentJob:
    """One student to train.

    Args:
        network: Name of its architecture.
        training_set: The images.
        seed: Its seed.
        label: What the progress bar says.
        epochs: Epochs of its training where they are not the protocol's.
    """

    network: str
    training_set: TrainingSet
    seed: int
    label: str
    epochs: int | None = None


@dataclass(frozen=True)
class StudentSettings:
    """What all students share.

    Args:
        teacher: The teacher that labels.
        test: Test images.
        protocol: How to train.
        accelerator: Lightning's accelerator.
        precision: Lightning's precision.
        holdout: Images held out of the training set, scored beside the test images to choose an epoch on.
        devices: How many devices each student is trained on, one process each; or the index of the one.
        sync_batchnorm: BatchNorm over the rows of all devices instead of each device's own.
        compiled: Let torch.compile make the students' code.
    """

    teacher: Teacher
    test: LabelledImages
    protocol: Protocol
    accelerator: str = "auto"
    precision: str = "32-true"
    holdout: LabelledImages | None = None
    devices: int | list[int] = 1
    sync_batchnorm: bool = False
    compiled: bool = False

    def train(self, job: StudentJob, *, show_progress: bool) -> StudentScore:
        """Train one student and return its score."""
        return train_student(
            job.network,
            job.training_set,
            self.teacher,
            self.test,
            self.protocol.lasting(job.epochs),
            job.seed,
            label=job.label if show_progress else None,
            accelerator=self.accelerator,
            precision=self.precision,
            holdout=self.holdout,
            devices=self.devices,
            sync_batchnorm=self.sync_batchnorm,
            compiled=self.compiled,
        )

    def on_device(self, number: int, devices: int) -> StudentSettings:
        """Return these settings for the worker of this number, where each GPU has its share of the workers."""
        on_gpu = self.accelerator in ("gpu", "cuda") or (self.accelerator == "auto" and torch.cuda.is_available())
        return replace(self, devices=[number % devices]) if on_gpu and devices > 1 else self


def train_students(
    jobs: Iterable[StudentJob], count: int, settings: StudentSettings, workers: int = 1, devices: int = 1
) -> Iterator[tuple[int, StudentScore]]:
    """Yield (position of the job, score), each as soon as it is there.

    With one worker the students are trained here, in order. Small networks leave most of a machine idle; with
    several workers as many students are trained at once, on one CPU thread each, and come in any order. No more
    jobs are taken than are worked at, so that their images need not be in memory all at once.

    Args:
        jobs: The students.
        count: How many there are.
        settings: What they share.
        workers: Processes.
        devices: GPUs that they are spread over.

    Raises:
        ValueError: If a worker was killed, as by a lack of memory.
    """
    if workers <= 1:
        for position, job in enumerate(jobs):
            yield position, settings.train(job, show_progress=True)
        return
    # Spawned, not forked: a fork would inherit torch's threads and CUDA in an unusable state.
    context = multiprocessing.get_context("spawn")
    started = context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (settings, started, devices))
    numbered = iter(enumerate(jobs))
    running: dict[Future[StudentScore], int] = {}
    try:
        with (
            stopped_by(signal.SIGTERM, "stopped; the results hold the students so far"),
            tqdm(total=count, desc="Students", unit="student") as bar,
        ):
            while True:
                for position, job in itertools.islice(numbered, workers - len(running)):
                    running[pool.submit(_train_here, job)] = position
                if not running:
                    break
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    bar.update()
                    yield running.pop(done), done.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker that trained a student was killed, most likely for lack of memory: expected it to end by "
            "itself; lower --workers"
        ) from error
    finally:
        # Also when the caller stops: what runs is ended, not waited for.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


_settings: StudentSettings  # of a worker process, set once when it starts: the test images are large


def _start_worker(settings: StudentSettings, started: Synchronized[int], devices: int) -> None:
    global _settings  # noqa: PLW0603  the one place where a worker can keep what it was started with
    with started.get_lock():
        number = started.value
        started.value += 1
    _settings = settings.on_device(number, devices)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends them
    end_with_parent()
    torch.set_num_threads(1)
    keep_large_blocks()


def end_with_parent() -> None:
    """From now on end this process when the one that started it is gone, also when that was killed."""

    def wait_and_end() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True).start()


def _train_here(job: StudentJob) -> StudentScore:
    return _settings.train(job, show_progress=False)
