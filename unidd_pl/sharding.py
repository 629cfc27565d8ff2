"""Processes that share a chunk, under Lightning: a strategy that leaves images alone, and a watch over them.

Legend: W processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from unidd_pl.cluster import launched_processes, slurm_plugins
from unidd_pl.console import EXIT_LOST, ProcessLost

GRACE = 30.0  # seconds for a process to end by itself after another was lost, with its checkpoint and records in order
_LOOK_EVERY = 1.0  # seconds between two looks whether all processes live
_PARENT = "UNIDD_FIRST_PROCESS"  # environment variable: the process that started this one


class ShardedStrategy(DDPStrategy):
    """Processes and their group as for DDP, but the module as it is.

    DDP would send the first rank's images to all, and average their gradients; here every rank has its own images.
    """

    def configure_ddp(self) -> None:
        """Wrap nothing and send nothing."""

    def _configure_launcher(self) -> None:
        if self.cluster_environment is not None:
            self._launcher = WatchfulLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


class WatchfulLauncher(_SubprocessScriptLauncher):
    """Starts the processes of this machine as Lightning does; where one is lost, the others end, and say why.

    Lightning's own watch kills the first process within seconds of another's end, in the middle of a checkpoint or of
    a message, and does not notice the loss of the first. A failed exchange tells most processes by itself; the watch
    is for those that hang, before the first exchange or in one of NCCL's.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, call the function in each, and watch until it is done."""
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        done = threading.Event()
        if not environment.creates_processes_externally:
            os.environ[_PARENT] = str(os.getpid())
            self._call_children_scripts()
            _end_if_lost(self._lost_child, done, self.kill)
        elif _PARENT in os.environ:
            parent = int(os.environ[_PARENT])
            _end_if_lost(lambda: "" if os.getppid() == parent else "the first process", done)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        result = function(*args, **kwargs)
        done.set()
        return result

    def _lost_child(self) -> str:
        """Return which process has ended and was not done, "" where there is none."""
        for number, process in enumerate(self.procs, start=1):
            if process.poll():
                return f"process {number} ({process.pid}, status {process.returncode})"
        return ""


def _end_if_lost(
    lost: Callable[[], str], done: threading.Event, end_others: Callable[[int], None] | None = None
) -> None:
    """End this process some time after another was lost, unless it is done or has ended by itself by then."""

    def watch() -> None:
        while not (which := lost()):
            if done.wait(_LOOK_EVERY):
                return
        if done.wait(GRACE):
            return
        sys.stderr.write(f"unidd: {ProcessLost(f'{which} has ended')}\n")
        sys.stderr.flush()
        if end_others is not None:
            end_others(signal.SIGKILL)
        os._exit(EXIT_LOST)

    threading.Thread(target=watch, daemon=True, name="watch over processes").start()


def is_first() -> bool:
    """Return whether this is the process that writes and speaks, before there is a process group too."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


def sharded_trainer_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the Trainer that say where it runs.

    Args:
        arguments: What the config says.

    Raises:
        ValueError: If it says something else than a number of devices, or another strategy for several.
    """
    devices, nodes = arguments.get("devices", "auto"), int(arguments.get("num_nodes") or 1)
    launched = launched_processes()
    if launched is not None:
        if devices not in ("auto", launched[0], str(launched[0])):
            raise ValueError(
                f"got trainer.devices {devices}, but torchrun or srun has started {launched[0]} processes: leave it out"
            )
        devices, nodes = launched
    try:
        count = 1 if devices == "auto" else int(devices)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(f"got trainer.devices {devices}, expected how many processes share a chunk, for example 2")
    slurm = slurm_plugins()
    plugins = {"plugins": slurm} if slurm and not arguments.get("plugins") else {}
    if count * nodes == 1:
        return {"devices": 1, **plugins}
    if arguments.get("strategy") not in (None, "auto"):
        raise ValueError(
            f"got trainer.strategy {arguments['strategy']}: processes that share a chunk bring their own; leave it out"
        )
    strategy = {"strategy": ShardedStrategy(), "use_distributed_sampler": False}
    return {"devices": count, "num_nodes": nodes, **strategy, **plugins}
