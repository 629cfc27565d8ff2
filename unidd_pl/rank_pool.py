"""Each student over several processes (ranks), on a device each: for networks too large or slow for one.

::

    parent ── job ──▶ rank 0 … rank R−1 ── joint training ──▶ rank 0 ── score ──▶ parent
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import socket
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue

import torch

from unidd_pl.allocator import keep_large_blocks
from unidd_pl.console import stopped_by
from unidd_pl.scores import StudentScore
from unidd_pl.student_pool import StudentJob, StudentSettings, end_with_parent

_LOOK_EVERY = 1.0  # seconds between two looks whether all ranks live

Result = StudentScore | str
"""A score, or what went wrong."""


def train_over_ranks(
    jobs: Iterable[StudentJob], settings: StudentSettings, ranks: int
) -> Iterator[tuple[int, StudentScore]]:
    """Yield (position of the job, score) of students that are each trained by all ranks together, in order.

    Args:
        jobs: The students.
        settings: What they share.
        ranks: Processes, each with a device of its own (or the CPU).

    Raises:
        ValueError: If a batch has fewer images than there are ranks, or a rank was killed.
    """
    context = multiprocessing.get_context("spawn")
    results: Queue[Result] = context.Queue()
    places: list[Queue[StudentJob | None]] = [context.Queue() for _ in range(ranks)]
    port = _free_port()
    processes = [
        context.Process(target=_serve, args=(rank, ranks, port, settings, places[rank], results), daemon=True)
        for rank in range(ranks)
    ]
    with stopped_by(signal.SIGTERM, "stopped; the results hold the students so far"), _started(processes):
        for position, job in enumerate(jobs):
            for place in places:
                place.put(job)
            yield position, _result(results, processes)
        for place in places:
            place.put(None)


@contextmanager
def _started(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Start processes, and end them whatever happens."""
    for process in processes:
        process.start()
    done = False
    try:
        yield
        done = True
    finally:
        for process in processes:
            if done:
                process.join(timeout=20)
            process.terminate()


def _result(results: Queue[Result], processes: Sequence[BaseProcess]) -> StudentScore:
    while True:
        try:
            result = results.get(timeout=_LOOK_EVERY)
        except queue.Empty:
            if all(process.is_alive() for process in processes):
                continue
            raise ValueError(
                "a process that trained a student was killed, most likely for lack of memory: expected it to end by "
                "itself; lower --devices or the batch size"
            ) from None
        if isinstance(result, str):
            raise ValueError(result)
        return result


def _serve(
    rank: int, ranks: int, port: int, settings: StudentSettings, jobs: Queue[StudentJob | None], results: Queue[Result]
) -> None:
    """Train one job after the other together with the other ranks; rank 0 answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends them
    end_with_parent()
    # As Lightning's own launcher sets them: it then starts no processes itself.
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in places.items()})
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    keep_large_blocks()
    try:
        while (job := jobs.get()) is not None:
            score = settings.train(job, show_progress=rank == 0)
            if rank == 0:
                results.put(score)
    except ValueError as error:
        results.put(str(error))
    except Exception:
        results.put(f"rank {rank} of {ranks} failed:\n{traceback.format_exc()}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
