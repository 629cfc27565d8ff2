"""The stages before a distillation or an evaluation: a teacher, its statistics; said, tracked, cached."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
import torch

from unidd_pl.cluster import launched_rank_here
from unidd_pl.console import say
from unidd_pl.data.module import ImageData
from unidd_pl.features import layers_to_tap
from unidd_pl.files import check_writable
from unidd_pl.preflight import check_teacher, remember
from unidd_pl.pretraining import TeacherRecipe, is_cached, obtain_teacher
from unidd_pl.spectral import Method, Signal
from unidd_pl.statistics import Statistics, running_statistics
from unidd_pl.statistics_cache import StatisticsRecipe, obtain_statistics
from unidd_pl.teachers import Teacher
from unidd_pl.team import launched_team
from unidd_pl.tracking import Tracking
from unidd_pl.training import quiet_lightning


def teacher_stage(
    recipe: TeacherRecipe,
    data: ImageData,
    cache: Path,
    tracking: Tracking,
    *,
    accelerator: str = "auto",
    config: str | None = None,
) -> Teacher:
    """Return the teacher, training it where it is missing; say which it was.

    Args:
        recipe: Which teacher.
        data: The real data.
        cache: Folder that holds ``teachers``.
        tracking: Where a training is recorded; loading is not.
        accelerator: Lightning's accelerator.
        config: Resolved config as YAML, for the record.

    Raises:
        ValueError: If the teacher does not fit the data, or knows too few of the test images.
    """
    folder = cache / "teachers"
    if is_cached(recipe, data, folder):
        teacher = obtain_teacher(recipe, data, folder)
        if recipe.check:
            teacher = check_teacher(teacher, data, cache, device_of(accelerator))
        _say(f"Teacher: {_describe(teacher)}, from {teacher.path}")
        _record_cached_teacher(teacher, data, tracking)
        return teacher
    check_writable(folder)
    if data.has_test:
        _ = data.test  # a test image that cannot be read has to show before the training, not after it
    _say(f"Teacher: none yet for {recipe.network} on {data.dataset_name}; training one for {recipe.epochs} epochs")
    started = time.monotonic()
    tags = {"dataset": data.dataset_name, "network": recipe.network}
    with tracking.run("teacher", f"{recipe.network} on {data.dataset_name}", tags, config) as run:
        teacher = obtain_teacher(recipe, data, folder, accelerator=accelerator, logger=run.logger)
        if teacher.accuracy is not None:
            run.metrics({"accuracy": teacher.accuracy})
        run.tag("teacher", teacher.fingerprint)
        run.input(teacher.spec.name, data.fingerprint, data.dataset_name, "training")
    if teacher.accuracy is not None:  # measured at the end of the training
        remember(teacher, data, cache, teacher.accuracy)
    minutes = (time.monotonic() - started) / 60
    _say(f"Teacher: {_describe(teacher)}, trained in {minutes:.1f} min, kept in {teacher.path}")
    return teacher


def statistics_stage(
    recipe: StatisticsRecipe,
    teacher: Teacher,
    data: ImageData,
    method: Method,
    signal: Signal,
    cache: Path,
    tracking: Tracking,
    *,
    accelerator: str = "auto",
    config: str | None = None,
) -> Statistics:
    """Return the real moments that a method needs, gathering them where they are missing; say which it was.

    Raises:
        ValueError: If given statistics do not fit the teacher or the data, or the teacher has no layers to match.
    """
    layers = layers_to_tap(teacher.network, method.layers)
    if method.layers == "batchnorm" and signal == "mean" and method.needs_only_variances and recipe.file is None:
        _say(f"Statistics: {len(layers)} layers, signal mean, the running statistics of the teacher's BatchNorms")
        return running_statistics(teacher, data, layers)
    folder = cache / "statistics"
    statistics, path, gathered = obtain_statistics(
        recipe, teacher, data, layers, signal, folder, device=own_device(accelerator), team=launched_team()
    )
    about = f"{len(layers)} layers, signal {signal}, {len(data.train)} images"
    _say(f"Statistics: {about}, {'gathered and kept in' if gathered else 'from'} {path}")
    tags = {"dataset": data.dataset_name, "teacher": teacher.fingerprint, "statistics": statistics.fingerprint}
    # Shared statistics are recorded once in every experiment that uses them.
    unless = None if gathered else {"stage": "statistics", "statistics": statistics.fingerprint}
    name = f"{teacher.name} on {data.dataset_name}"
    with tracking.run("statistics", name, tags, config if gathered else None, unless=unless) as run:
        run.input(teacher.spec.name, data.fingerprint, data.dataset_name, "statistics")
        run.artifact(path)
    return statistics


def _record_cached_teacher(teacher: Teacher, data: ImageData, tracking: Tracking) -> None:
    """Record a teacher that was trained before, or elsewhere, once in every experiment that uses it."""
    unless = {"stage": "teacher", "teacher": teacher.fingerprint}
    tags = {
        "dataset": data.dataset_name,
        "network": teacher.name,
        "teacher": teacher.fingerprint,
        "file": str(teacher.path),
        "trained": "before",
    }
    with tracking.run("teacher", f"{teacher.name} on {data.dataset_name}", tags, unless=unless) as run:
        if teacher.accuracy is not None:
            run.metrics({"accuracy": teacher.accuracy})


def device_of(accelerator: str) -> torch.device:
    """Return the first device of Lightning's accelerator."""
    with quiet_lightning():
        return L.Trainer(accelerator=accelerator, devices=1, logger=False).strategy.root_device


def _say(message: str) -> None:
    """Say it once, however many processes find the same."""
    if launched_team().is_first:
        say(message)


def own_device(accelerator: str) -> torch.device:
    """Return the device of this one of the processes that a launcher has started, on machines with one GPU each."""
    device = device_of(accelerator)
    return device if device.type == "cpu" else torch.device(device.type, launched_rank_here())


def _describe(teacher: Teacher) -> str:
    score = "accuracy unknown" if teacher.accuracy is None else f"{100 * teacher.accuracy:.1f} % on the test images"
    return f"{teacher.name} ({teacher.fingerprint[:12]}), {score}"
