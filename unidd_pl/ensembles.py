"""The teacher that labels a set, which may be several whose logits are averaged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unidd_pl.console import say
from unidd_pl.data.module import ImageData
from unidd_pl.preflight import check_teacher
from unidd_pl.pretraining import TeacherRecipe
from unidd_pl.stages import device_of, teacher_stage
from unidd_pl.teachers import Teacher, accuracy_of, find_teacher, freeze, load_teacher, read_about
from unidd_pl.tracking import Tracking


class AveragedNetworks(nn.Module):
    """The mean of the logits of several networks.

    Its softmax is the normalised geometric mean of theirs, at every temperature; the mean of their softmaxes would
    belong to one temperature and could not be kept as logits.

    Args:
        networks: The networks, of the same classes.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits (n, k) of normalised images (n, c, h, w)."""
        return torch.stack([network(images) for network in self.networks]).mean(dim=0)


def average_teachers(teachers: Sequence[Teacher], data: ImageData) -> Teacher:
    """Return several teachers as one, in an order of their own: equal ones make an equal one.

    Args:
        teachers: The teachers, all of the data's classes.
        data: The real data; on its test images the accuracy is measured.

    Raises:
        ValueError: If there are fewer than two, or one is there twice.
    """
    ordered = sorted(teachers, key=lambda one: one.fingerprint)
    if len({one.fingerprint for one in ordered}) < max(2, len(ordered)):
        raise ValueError(
            f"teachers: got {', '.join(str(one.path) for one in teachers)}, expected at least two that differ; one "
            "alone goes to --teacher.checkpoint"
        )
    network = AveragedNetworks([one.network for one in ordered])
    freeze(network)
    accuracy = accuracy_of(network, data.spec, data.test) if data.has_test else None
    return Teacher(network, " + ".join(one.name for one in ordered), data.spec, accuracy, ordered[0].path)


def labelling_teacher(
    recipe: TeacherRecipe,
    checkpoints: Sequence[str],
    known: str | None,
    data: ImageData,
    cache: Path,
    tracking: Tracking,
    *,
    accelerator: str = "auto",
    config: str | None = None,
) -> Teacher:
    """Return the teacher that labels: given ones, or the one that is known and cached, or that of the recipe.

    Args:
        recipe: The one teacher, and the network of those that do not name theirs.
        checkpoints: Files of several whose logits are averaged, each as ``FILE`` or ``NETWORK=FILE``.
        known: Fingerprint of the teacher that belongs to the set; taken where no file is given.
        data: The real data.
        cache: Folder that holds ``teachers``.
        tracking: Where the training of a missing teacher is recorded.
        accelerator: Lightning's accelerator.
        config: Resolved config as YAML, for the record.

    Raises:
        ValueError: If a teacher does not fit the data.
    """
    if checkpoints and recipe.checkpoint is not None:
        raise ValueError(
            f"got --teacher.checkpoint {recipe.checkpoint} and --teachers {' '.join(checkpoints)}, expected one of "
            "them: give all files to --teachers"
        )
    if not checkpoints:
        cached = find_teacher(known, cache / "teachers") if known else None
        if recipe.checkpoint is None and cached is not None:
            say(f"Teacher: the one that the set was distilled with, from {cached}")
            teacher = load_teacher(cached, None, data)
            return check_teacher(teacher, data, cache, device_of(accelerator)) if recipe.check else teacher
        return teacher_stage(recipe, data, cache, tracking, accelerator=accelerator, config=config)
    recipes = [_recipe_of(recipe, checkpoint) for checkpoint in checkpoints]
    teachers = [teacher_stage(one, data, cache, tracking, accelerator=accelerator, config=config) for one in recipes]
    average = average_teachers(teachers, data)
    score = "" if average.accuracy is None else f", {100 * average.accuracy:.1f} % on the test images"
    say(f"Teacher: the mean logits of these {len(teachers)} ({average.fingerprint[:12]}){score}")
    return average


def _recipe_of(recipe: TeacherRecipe, checkpoint: str) -> TeacherRecipe:
    network, separator, file = checkpoint.rpartition("=")
    one = copy.copy(recipe)
    one.checkpoint = file
    about = read_about(Path(file))
    one.network = network if separator else str(about["network"]) if about else recipe.network
    return one
