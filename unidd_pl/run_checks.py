"""What a run asks of the Trainer and its callbacks, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.data.module import ImageData
from unidd_pl.distillation import DistillationModule
from unidd_pl.probe import ProbeCallback
from unidd_pl.sharding import sharded_trainer_arguments
from unidd_pl.spectral import ConstantCurriculum, Curriculum, Method

_WHOLE_RUN = {
    "max_epochs": None,
    "max_steps": -1,
    "max_time": None,
    "accumulate_grad_batches": 1,
    "limit_train_batches": None,
    "overfit_batches": 0.0,
    "fast_dev_run": False,
}
"""Arguments of the Trainer that would end a run early or change its steps, with the value that does not."""

_PRECISIONS = (None, 32, "32", "32-true", "bf16-mixed", "16-mixed")  # the teacher's weights stay float32


def check_trainer(arguments: Mapping[str, Any], ipc: int) -> None:
    """Refuse arguments of Lightning's Trainer that a distillation cannot run with.

    Args:
        arguments: The arguments.
        ipc: Rounds of the run.

    Raises:
        ValueError: If there is one.
    """
    for name, value in _WHOLE_RUN.items():
        got = arguments.get(name, value)
        if got not in (value, None) and not (name == "max_epochs" and got == ipc):
            raise ValueError(
                f"got trainer.{name} {got}: a run makes one image of each class in each of its "
                f"{ipc} rounds, so leave it out and set --model.init_args.ipc and iterations"
            )
    sharded_trainer_arguments(arguments)
    if arguments.get("precision") not in _PRECISIONS:
        raise ValueError(f"got trainer.precision {arguments['precision']}, expected 32-true, bf16-mixed or 16-mixed")


def check_curriculum(method: Method, curriculum: Curriculum | None) -> None:
    """Refuse a curriculum that a method does not follow, and a method without the one it needs.

    Raises:
        ValueError: If they do not belong together.
    """
    moving = curriculum is not None and not isinstance(curriculum, ConstantCurriculum)
    if method.scheduled and curriculum is None:
        raise ValueError(
            f"method {method.name} needs a curriculum on β: add a CurriculumCallback to "
            "trainer.callbacks, or use HFM for a fixed β"
        )
    if moving and not method.scheduled:
        raise ValueError(
            f"method {method.name} has a fixed β, and the config moves it: leave the CurriculumCallback out "
            "(--trainer.callbacks null), or say scheduled: true in a method of your own"
        )


def check_probes(callbacks: list[L.Callback], module: DistillationModule, data: ImageData, teacher: str) -> None:
    """Refuse a probe that does not fit the run, and more than one.

    Args:
        callbacks: The callbacks.
        module: The distillation.
        data: The real data.
        teacher: Architecture of the teacher.

    Raises:
        ValueError: If there is one.
    """
    probes = probes_of(callbacks)
    if len(probes) > 1:
        raise ValueError(f"got {len(probes)} ProbeCallbacks in trainer.callbacks, expected one: leave the others out")
    for probe in probes:
        probe.check(module, data.train, data.spec, teacher)


def probes_of(callbacks: list[L.Callback]) -> list[ProbeCallback]:
    """Return the probes among callbacks."""
    return [one for one in callbacks if isinstance(one, ProbeCallback)]


def callbacks_of(arguments: Mapping[str, Any]) -> list[L.Callback]:
    """Return the callbacks that the Trainer is given."""
    given = arguments.get("callbacks") or []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def curriculum_of(callbacks: list[L.Callback]) -> Curriculum | None:
    """Return the curriculum among callbacks; None where there is none."""
    return next((one.curriculum for one in callbacks if isinstance(one, CurriculumCallback)), None)
