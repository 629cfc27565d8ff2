"""What torchrun and SLURM say: how many processes there are, where they meet, a new turn in the queue."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from datetime import timedelta

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # exported, but not by name
from torch.distributed.rendezvous import rendezvous

_REQUEUE_PATIENCE = 60.0  # seconds for SLURM's controller to answer

_REQUEUED = "unidd: queued again"

_stores: list[TCPStore] = []
"""Stores that this process has opened: the first process serves its own, so it has to live as long as the others."""


def started_by_slurm() -> bool:
    """Return whether srun has started this process; not so in an interactive job, where a person is at the prompt."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def launched_processes() -> tuple[int, int] | None:
    """Return processes a machine and machines where torchrun or srun has started this process; else None.

    Raises:
        ValueError: If srun was not told how many tasks a machine gets.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        here, everywhere = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
    elif started_by_slurm():
        everywhere = int(environment["SLURM_NTASKS"])
        if everywhere > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
            raise ValueError(f"got {everywhere} tasks from srun, expected --ntasks-per-node beside --nodes: give it")
        here = int(environment.get("SLURM_NTASKS_PER_NODE", everywhere))
    else:
        return None
    return here, everywhere // here


def launched_rank() -> int:
    """Return the number of this process among those that torchrun or srun has started, from 0."""
    return int(os.environ["RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_PROCID"])


def launched_rank_here() -> int:
    """Return the number of this process among those of its machine, from 0; 0 where no launcher has started it."""
    if launched_processes() is None:
        return 0
    return int(os.environ["LOCAL_RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_LOCALID"])


def meeting_store(timeout: timedelta) -> TCPStore:
    """Return the store by which the processes of torchrun or srun find each other, also before their process group.

    Args:
        timeout: How long to wait for the process that serves it.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        address = "env://"
    else:
        slurm = SLURMEnvironment(auto_requeue=False)
        place = f"tcp://{slurm.main_address}:{slurm.main_port}"
        address = f"{place}?rank={slurm.global_rank()}&world_size={slurm.world_size()}"
    store: TCPStore
    store, _, _ = next(iter(rendezvous(address, timeout=timeout)))
    _stores.append(store)
    return store


def slurm_plugins() -> list[SLURMEnvironment]:
    """Return what Lightning's Trainer needs under srun, nothing elsewhere.

    Lightning's own handler of SIGUSR1 writes a checkpoint wherever the program is, in the middle of a step too, where
    it would hold half of one, and processes would wait for each other at different places. `ResumePoint` does it.
    """
    return [SLURMEnvironment(auto_requeue=False)] if started_by_slurm() else []


def requeue_from(first: bool) -> str:
    """Queue the job again, once: the first process asks, the others wait, for srun ends all tasks after one.

    Args:
        first: Whether this is the first process.

    Returns:
        What came of it; "" where there is nothing to say.
    """
    if first:
        told = requeue_job()
        for store in _stores[-1:]:
            store.set(_REQUEUED, "done")
        return told
    with suppress(DistError):  # the first may be gone by now
        for store in _stores[-1:]:
            store.wait([_REQUEUED], timedelta(seconds=_REQUEUE_PATIENCE))
    return ""


def requeue_job() -> str:
    """Ask SLURM to queue this job again, and return what came of it; "" where this is no job of SLURM's."""
    if not started_by_slurm() or "SLURM_JOB_ID" not in os.environ:
        return ""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        command = ["scontrol", "requeue", job]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_REQUEUE_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Could not queue the job {job} again ({error}): submit it anew, it goes on from the checkpoint"
    if ended.returncode:
        reason = ended.stderr.strip() or f"status {ended.returncode}"
        return f"SLURM did not queue the job {job} again ({reason}): submit it anew, it goes on from the checkpoint"
    return f"The job {job} is queued again and goes on from the checkpoint"
