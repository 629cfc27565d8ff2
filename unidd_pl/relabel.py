"""`unidd relabel`: a teacher's labels of a distilled set, written once for all epochs of an evaluation."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unidd_pl.comparison import environment
from unidd_pl.console import say, stopped_by
from unidd_pl.data.module import ImageData
from unidd_pl.ensembles import labelling_teacher
from unidd_pl.exchange import SetDescription, read_set
from unidd_pl.files import check_writable
from unidd_pl.label_codec import LabelCodec, LabelType
from unidd_pl.label_file import LabelFacts, labels_beside, write_labels
from unidd_pl.preflight import check_labels, check_sets
from unidd_pl.pretraining import TeacherRecipe
from unidd_pl.protocols import Protocol
from unidd_pl.stages import device_of
from unidd_pl.tables import size_text
from unidd_pl.teachers import Teacher
from unidd_pl.tracking import Tracking
from unidd_pl.views import Views

_BATCH = 256  # images that the teacher labels at once


class Relabelling:
    """One `unidd relabel`.

    Args:
        distilled: The distilled set, of this project or made elsewhere.
        data: The real data, which the teacher belongs to.
        teacher: The teacher that labels. Without a checkpoint it is the one that the set was distilled with, where
            the cache holds it.
        teachers: Files of several teachers whose logits are averaged; see `labelling_teacher`.
        protocol: The augmentation, the temperature and, by default, the number of epochs.
        cache: Folder that holds ``teachers``.
        tracking: Where the training of a missing teacher is recorded.
        accelerator: Lightning's accelerator.
        output: The file; None for one beside the distilled set, where an evaluation finds it.
        label_type: The numbers that are kept; see `LabelCodec`.
        top_k: How many of the largest logits are kept; None for all.
        epochs: Views of each image that are labelled; None for as many as the protocol has epochs.
        seed: Seed of the views.
        overwrite: Replace the file.
        dry_run: Only say how large it would be.
        description: What a set made elsewhere does not say of itself.
        config: Resolved config as YAML, for the record of a teacher.

    Raises:
        ValueError: If the set does not fit the data, a setting is out of range, or the disk cannot hold the labels.
    """

    def __init__(
        self,
        distilled: Path,
        data: ImageData,
        teacher: TeacherRecipe,
        protocol: Protocol,
        cache: Path,
        tracking: Tracking,
        accelerator: str,
        output: Path | None,
        *,
        teachers: Sequence[str] = (),
        label_type: LabelType = "float16",
        top_k: int | None = None,
        epochs: int | None = None,
        seed: int = 0,
        overwrite: bool = False,
        dry_run: bool = False,
        description: SetDescription | None = None,
        config: str = "",
    ) -> None:
        if protocol.labels == "hard" or protocol.dsa:
            raise ValueError(
                f"protocol {protocol.name}: got labels {protocol.labels} and dsa {protocol.dsa}, expected soft labels "
                "and no dsa, whose strategy is drawn for a batch: take --protocol configs/protocols/sre2l.yaml"
            )
        self.set = read_set(distilled, data.spec, description)
        check_sets({str(distilled): self.set}, data.spec)
        self.distilled = distilled
        self.data = data
        self.teacher_recipe = teacher
        self.teachers = tuple(teachers)
        self.protocol = protocol
        self.cache = cache
        self.tracking = tracking
        self.accelerator = accelerator
        self.output = output or labels_beside(distilled)
        self.dry_run = dry_run
        self.config = config
        self.codec = LabelCodec(label_type, data.spec.num_classes, top_k, protocol.temperature)
        stored = protocol.epochs if epochs is None else epochs
        self.views = Views(protocol.view_recipe, self.set.spec, len(self.set), stored, seed)
        if self.output.exists() and not overwrite and not dry_run:
            raise ValueError(
                f"{self.output} already exists: replace it with --overwrite true, or give another --output FILE"
            )
        if self.output.suffix != ".safetensors":
            raise ValueError(f"output: got {self.output}, expected a name ending in .safetensors")
        if not dry_run:
            check_writable(self.output.parent)
            self._check_space(self._facts(None))

    def run(self) -> int:
        """Label all views; return the size of the file in bytes, as predicted where it is not written."""
        if self.dry_run:
            facts = self._facts(None)
            say(f"Labels: {self._describe(facts)} (not written: dry_run)")
            return facts.file_bytes
        teacher = self._teacher()
        facts = self._facts(teacher)
        say(f"Labels: {self._describe(facts)}")
        self._check_space(facts)
        device = device_of(self.accelerator)
        if self.teacher_recipe.check:
            check_labels([self.set], teacher, device)
        network = teacher.network.to(device).to(memory_format=torch.channels_last)
        with (
            stopped_by(signal.SIGTERM, f"stopped; {self.output} is as it was"),
            tqdm(total=self.views.epochs, desc="Labelling", unit="epoch") as bar,
        ):

            def logits_of(epoch: int) -> Tensor:
                bar.update()
                return self._logits_of(network, epoch, device)

            write_labels(self.output, facts, logits_of)
        written = self.output.stat().st_size
        say(f"Written: {self.output}, {size_text(written)}")
        return written

    @torch.inference_mode()
    def _logits_of(self, network: nn.Module, epoch: int, device: torch.device) -> Tensor:
        """Return the logits (n, k) of all views of an epoch."""
        parts = []
        for first in range(0, len(self.set), _BATCH):
            chosen = range(first, min(first + _BATCH, len(self.set)))
            images = self.views.images(self.set.images, chosen, epoch, device=device)
            parts.append(network(images.contiguous(memory_format=torch.channels_last)).cpu())
        return torch.cat(parts)

    def _describe(self, facts: LabelFacts) -> str:
        kept = "all logits" if self.codec.top_k is None else f"the {self.codec.top_k} largest logits"
        return (
            f"{self.views.epochs} views of each of {len(self.set)} images, {kept} of {self.codec.classes} classes in "
            f"{self.codec.dtype}: {size_text(facts.file_bytes)}, {self.codec.bytes_per_image} bytes a label"
        )

    def _facts(self, teacher: Teacher | None) -> LabelFacts:
        """Return what the file says; for a teacher that is not there yet, something as long."""
        about = {"protocol": self.protocol.name, **environment()}
        described = (
            describe_teacher(teacher) if teacher else {**_UNKNOWN_TEACHER, "network": self.teacher_recipe.network}
        )
        return LabelFacts(self.views, self.codec, self.set.fingerprint(), described, about)

    def _check_space(self, facts: LabelFacts) -> None:
        free = shutil.disk_usage(self.output.parent).free
        if facts.file_bytes > free:
            raise ValueError(
                f"the labels take {size_text(facts.file_bytes)}, and {self.output.parent.absolute()} has "
                f"{size_text(free)} free: give another --output, keep less (--label_type int8, --top_k), or store "
                "fewer --epochs"
            )

    def _teacher(self) -> Teacher:
        return labelling_teacher(
            self.teacher_recipe,
            self.teachers,
            self.set.manifest.get("teacher"),
            self.data,
            self.cache,
            self.tracking,
            accelerator=self.accelerator,
            config=self.config,
        )


_UNKNOWN_TEACHER = {"fingerprint": "0" * 64, "accuracy": 0.1234}


def describe_teacher(teacher: Teacher) -> dict[str, Any]:
    """Return what a store says of the teacher that labelled."""
    accuracy = None if teacher.accuracy is None else round(teacher.accuracy, 4)
    return {"network": teacher.name, "fingerprint": teacher.fingerprint, "accuracy": accuracy}
