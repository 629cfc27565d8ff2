"""What a kind of file is, and the data, the teacher and the run that the files of all kinds belong to."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import lightning as L
import mutations as m
import torch
from conftest import TINY_NETWORK, write_image_folder

from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.data import ImageFolderData
from unidd_pl.distillation import DistillationModule
from unidd_pl.features import conv_layers
from unidd_pl.networks import build_network
from unidd_pl.real_side import RealSide
from unidd_pl.resume import ResumePoint
from unidd_pl.spectral import CFM, CosineCurriculum
from unidd_pl.statistics import gather_statistics
from unidd_pl.synthetic import ChunkStore
from unidd_pl.teachers import Teacher, freeze
from unidd_pl.training import quiet_lightning

CONFIGS = Path(__file__).parent.parent.parent / "configs"
CLEAR = (ValueError, ArgumentError)
"""What the command line shows as a message."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        name: Its name.
        make: Writes a proper one into a folder.
        read: Reads one; raises `CLEAR` where it is not proper.
        mutations: Ways to spoil it.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    mutations: tuple[m.Mutation, ...]


class World:
    """Data, teacher and statistics that the files belong to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = ImageFolderData(str(write_image_folder(folder / "images")))
        torch.manual_seed(0)
        self.network = build_network(TINY_NETWORK, self.data.spec)
        freeze(self.network)
        self.teacher = Teacher(self.network, TINY_NETWORK, self.data.spec, 0.5, folder / "teacher.safetensors")
        layers = conv_layers(self.network)
        self.statistics = gather_statistics(self.teacher, self.data, layers, "mean", batch_size=16)

    def trainer(self, store: Path, checkpoint: Path) -> tuple[L.Trainer, DistillationModule, ResumePoint]:
        """Return all parts of a distillation of two rounds of two steps."""
        module = DistillationModule(ipc=2, method=CFM(), iterations=2, lr=0.1)
        real = RealSide(self.teacher, self.statistics, self.data.train)
        module.prepare(real, ChunkStore(store, self.data.spec))
        point = ResumePoint(checkpoint, 3, str)
        with quiet_lightning():
            trainer = L.Trainer(
                max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                callbacks=[CurriculumCallback(CosineCurriculum()), point],
                enable_model_summary=False, enable_progress_bar=False,
            )  # fmt: skip
        return trainer, module, point


@cache
def world(folder: Path) -> World:
    return World(folder)
