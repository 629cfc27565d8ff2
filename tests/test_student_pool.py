"""Students one after the other and several at once: the same scores, and nothing left running."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from unidd_pl.baselines import real_images
from unidd_pl.data.folder import ImageFolderData
from unidd_pl.protocols import Protocol
from unidd_pl.student_pool import StudentJob, StudentSettings, train_students
from unidd_pl.teachers import Teacher

NETWORK = "convnet-w8-d2"
COUNT = 4


def jobs(data: ImageFolderData, network: str = NETWORK) -> Iterator[StudentJob]:
    for seed in range(COUNT):
        yield StudentJob(network, real_images(data.train, data.spec, 2, seed), seed, f"Student {seed}")


@pytest.fixture
def settings(tiny_teacher: Teacher, folder_data: ImageFolderData) -> StudentSettings:
    return StudentSettings(tiny_teacher, folder_data.test, Protocol(epochs=3, batch_size={1: 4}), "cpu")


def test_several_workers_give_the_scores_of_one(settings: StudentSettings, folder_data: ImageFolderData) -> None:
    alone = dict(train_students(jobs(folder_data), COUNT, settings))
    together = dict(train_students(jobs(folder_data), COUNT, settings, workers=2))
    assert alone == together
    assert sorted(alone) == list(range(COUNT))
    assert [alone[position].seed for position in range(COUNT)] == list(range(COUNT))


def test_jobs_are_taken_one_by_one_and_nothing_is_left_running_when_the_caller_stops(
    settings: StudentSettings, folder_data: ImageFolderData
) -> None:
    taken: list[int] = []

    def counted() -> Iterator[StudentJob]:
        for job in jobs(folder_data):
            taken.append(job.seed)
            yield job

    students = train_students(counted(), COUNT, settings, workers=2)
    next(students)
    assert len(taken) == 2
    assert multiprocessing.active_children()
    students.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def test_no_students(settings: StudentSettings) -> None:
    assert not list(train_students(iter(()), 0, settings, workers=2))


def test_a_killed_worker_is_explained(settings: StudentSettings, folder_data: ImageFolderData, tmp_path: Path) -> None:
    students = train_students(jobs(folder_data), COUNT, settings, workers=2)
    next(students)
    for process in multiprocessing.active_children():
        process.kill()
    time.sleep(0.5)  # until the pool has noticed, so that it refuses the next job instead of failing one
    with pytest.raises(ValueError, match="a worker that trained a student was killed, most likely for lack of memory"):
        list(students)


SCRIPT = """
import multiprocessing, sys
from unidd_pl.data import ImageFolderData
from unidd_pl.baselines import real_images
from unidd_pl.networks import build_network
from unidd_pl.protocols import Protocol
from unidd_pl.student_pool import StudentJob, StudentSettings, train_students
from unidd_pl.teachers import Teacher, freeze

if __name__ == "__main__":
    data = ImageFolderData(sys.argv[1])
    network = build_network("convnet-w8-d2", data.spec)
    freeze(network)
    protocol = Protocol(epochs=100_000, batch_size={1: 4}, early_scores=0)
    settings = StudentSettings(Teacher(network, "t", data.spec, None, None), data.test, protocol, "cpu")
    def jobs():
        yield StudentJob("convnet-w8-d2", real_images(data.train, data.spec, 2, 0), 0, "long")
        yield StudentJob("convnet-w8-d2", real_images(data.train, data.spec, 2, 1), 1, "long")
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        yield StudentJob("convnet-w8-d2", real_images(data.train, data.spec, 2, 2), 2, "long")
    list(train_students(jobs(), 3, settings, workers=3))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(number: signal.Signals, image_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "students.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, script, image_folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [Path("/proc") / pid for pid in parent.stdout.readline().split()]
        assert len(workers) >= 2
        time.sleep(10)  # until they train
        assert all(worker.exists() for worker in workers)
        parent.send_signal(number)
        parent.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(worker.exists() for worker in workers)
