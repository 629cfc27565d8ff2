"""Every kind of file that a stranger may hand over: how to make one, how to spoil it, what reads it.

A kind more is a `Kind` more in `KINDS`.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import mutations as m
import numpy as np
import torch
from conftest import TINY_NETWORK, write_image_folder
from PIL import Image
from safetensors.torch import save_file

from unidd_pl.command_options import distillation_parser, parsed, with_data_of_config
from unidd_pl.configs import guard_command_line
from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.data import ImageFolderData
from unidd_pl.data.beton import read_beton
from unidd_pl.data.conversion import load_beton, manifest_path, write_beton
from unidd_pl.data.images import open_picture
from unidd_pl.data.listing import _probe
from unidd_pl.distillation import DistillationModule
from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange import SetDescription, read_set
from unidd_pl.features import conv_layers
from unidd_pl.label_store import LabelStore
from unidd_pl.networks import build_network, load_weights
from unidd_pl.partial import RUN_FILE, RunRecord, finished_rounds
from unidd_pl.real_side import RealSide
from unidd_pl.resume import ResumePoint, check_checkpoint, fit_from
from unidd_pl.spectral import CFM, CosineCurriculum
from unidd_pl.statistics import gather_statistics, load_statistics, save_statistics
from unidd_pl.synthetic import ChunkStore
from unidd_pl.teachers import Teacher, freeze, load_teacher, save_teacher
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


def make_distilled(folder: Path) -> Path:
    spec = world(folder).data.spec
    images = torch.randint(0, 256, (6, *spec.image_shape), dtype=torch.uint8)
    DistilledSet(images, torch.arange(6) % 3, spec, {"seed": 1}).save(folder / "set.safetensors")
    return folder / "set.safetensors"


def make_statistics(folder: Path) -> Path:
    save_statistics(folder / "statistics.safetensors", world(folder).statistics)
    return folder / "statistics.safetensors"


def make_teacher(folder: Path) -> Path:
    save_teacher(folder / "teacher.safetensors", world(folder).teacher)
    return folder / "teacher.safetensors"


def read_teacher(path: Path) -> object:
    return load_teacher(path, None, world(path.parent).data, check=False)


def make_weights(folder: Path) -> Path:
    torch.save({"state_dict": world(folder).network.state_dict(), "epoch": 3}, folder / "weights.pt")
    return folder / "weights.pt"


def make_old_weights(folder: Path) -> Path:
    state = world(folder).network.state_dict()
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


def read_weights(path: Path) -> None:
    load_weights(build_network(TINY_NETWORK, world(path.parent).data.spec), path, expected_classes=3)


def make_checkpoint(folder: Path) -> Path:
    """Make a checkpoint of the third of four steps."""
    if (folder / "last.ckpt").exists():
        return folder / "last.ckpt"
    trainer, module, _ = world(folder).trainer(folder / "chunks", folder / "last.ckpt")
    with quiet_lightning():
        trainer.fit(module)
    return folder / "last.ckpt"


def read_checkpoint(path: Path) -> None:
    check_checkpoint(path)
    trainer, module, point = world(path.parent).trainer(path.parent / "chunks", path.parent / "next.ckpt")
    with quiet_lightning():
        fit_from(trainer, module, path, point)


def make_chunk(folder: Path) -> Path:
    make_checkpoint(folder)
    return next((folder / "chunks").glob("round_0000*"))


def read_chunk(path: Path) -> None:
    """Read the chunk as a run that goes on does, from a store that holds nothing else."""
    folder = path.parent if path.parent.name != "chunks" else path.parent.parent
    store = folder / "store"
    store.mkdir(exist_ok=True)
    shutil.copy(path, store / "round_0000_chunk_000.safetensors")
    trainer, module, _ = world(folder).trainer(store, folder / "next.ckpt")
    CurriculumCallback(CosineCurriculum()).setup(trainer, module, "fit")
    ChunkStore(store, module.spec).check(module.schedule, 2, module.run_digest)


def make_run_record(folder: Path) -> Path:
    """Write the record of the run whose chunks `make_checkpoint` leaves."""
    make_checkpoint(folder)
    _, module, _ = world(folder).trainer(folder / "chunks", folder / "next.ckpt")
    module.curriculum = "CosineCurriculum()"
    RunRecord(module.run_digest, module.spec, "uint8", module.schedule, {"method": "cfm"}).save(folder)
    return folder / RUN_FILE


def read_run_record(path: Path) -> None:
    """Put it beside the chunks, as in the folder of a run."""
    run = path.parent / "run"
    if not run.exists():
        shutil.copytree(path.parent / "chunks", run / "chunks")
    shutil.copy(path, run / RUN_FILE)
    finished_rounds(run)


def make_beton(folder: Path) -> Path:
    data = world(folder).data
    write_beton(data.list_split("train"), data.read_classes(), "train", folder / "train.beton")
    small = folder / "small.beton"
    whole = (folder / "train.beton").read_bytes()
    small.write_bytes(whole)
    return small


def make_manifest(folder: Path) -> Path:
    make_beton(folder)
    return manifest_path(folder / "train.beton")


def read_manifest(path: Path) -> object:
    """Put the manifest beside the .beton file of another folder."""
    data, elsewhere = world(path.parent).data, path.parent / "betons"
    elsewhere.mkdir(exist_ok=True)
    if not (elsewhere / "train.beton").exists():
        (elsewhere / "train.beton").symlink_to(path.parent / "train.beton")
    shutil.copy(path, elsewhere / "train.json")
    return load_beton(elsewhere / "train.beton", data.list_split("train"), data.read_classes(), "train")


def make_config(folder: Path) -> Path:
    return Path(shutil.copy(CONFIGS / "cfm_digits.yaml", folder / "config.yaml"))


@cache
def parser() -> Any:
    guard_command_line()
    return distillation_parser("fit")


def read_config(path: Path) -> None:
    parsed(parser(), ["--config", str(path)])


def read_config_of_convert(path: Path) -> None:
    with_data_of_config(["--config", str(path)])


def make_labels(folder: Path) -> Path:
    """Write the soft labels of two epochs of a set."""
    from unidd_pl.label_codec import LabelCodec
    from unidd_pl.label_file import LabelFacts, write_labels
    from unidd_pl.views import ViewRecipe, Views

    views = Views(ViewRecipe(1, (0.3, 1.0), True, 1.0), world(folder).data.spec, 6, 2, 7)
    about = {"network": TINY_NETWORK, "fingerprint": "a" * 64, "accuracy": None}
    facts = LabelFacts(views, LabelCodec("float16", 3), "b" * 64, about, {"torch": torch.__version__})
    write_labels(folder / "set.labels.safetensors", facts, lambda epoch: torch.randn(6, 3))
    return folder / "set.labels.safetensors"


def read_labels(path: Path) -> None:
    store = LabelStore(path)
    store.summary()
    store.rows([0, 5], 1)


def foreign(folder: Path) -> dict[str, torch.Tensor]:
    spec = world(folder).data.spec
    return {"images": torch.randint(0, 256, (6, *spec.image_shape), dtype=torch.uint8), "labels": torch.arange(6) % 3}


def make_foreign_torch(folder: Path) -> Path:
    torch.save(foreign(folder), folder / "foreign.pt")
    return folder / "foreign.pt"


def make_foreign_safetensors(folder: Path) -> Path:
    save_file(foreign(folder), folder / "foreign.safetensors", {"a": '{"b": 1}'})
    return folder / "foreign.safetensors"


def make_foreign_arrays(folder: Path) -> Path:
    np.savez(folder / "foreign.npz", **{name: value.numpy() for name, value in foreign(folder).items()})
    return folder / "foreign.npz"


def make_foreign_shard(folder: Path) -> Path:
    """Write a WebDataset of six pictures."""
    with tarfile.open(folder / "foreign.tar", "w") as tar:
        for position, picture in enumerate(sorted((world(folder).data.root / "train").rglob("*.png"))[::5]):
            for suffix, content in (("png", picture.read_bytes()), ("json", b'{"label": %d}' % (position // 2))):
                entry = tarfile.TarInfo(f"{position:04d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return folder / "foreign.tar"


def make_description(folder: Path) -> Path:
    """Describe a foreign set."""
    make_foreign_torch(folder)
    text = "classes: [blue, green, red]\nclip: false\nname: other\n"
    (folder / "foreign.pt.yaml").write_text(text)
    return folder / "foreign.pt.yaml"


def read_description(path: Path) -> None:
    """Read a set that the description lies beside."""
    shutil.copy(path.parent / "foreign.pt", path.parent / "described.pt")
    beside = Path(shutil.copy(path, path.parent / "described.pt.yaml"))
    try:
        read_foreign(path.parent / "described.pt")
    finally:
        beside.unlink()


def read_foreign(path: Path) -> None:
    read_set(path, world(path.parent).data.spec, SetDescription(classes="data"))


def make_png(folder: Path) -> Path:
    return Path(shutil.copy(next((world(folder).data.root / "train").rglob("*.png")), folder / "picture.png"))


def make_jpeg(folder: Path) -> Path:
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 30).convert("RGB").save(folder / "picture.jpg")
    return folder / "picture.jpg"


def read_picture(path: Path) -> None:
    _probe(path)
    open_picture(path)


KINDS = [
    Kind("distilled", make_distilled, DistilledSet.load, m.SAFETENSORS),
    Kind("chunk", make_chunk, read_chunk, m.SAFETENSORS),
    Kind("statistics", make_statistics, load_statistics, m.SAFETENSORS),
    Kind("teacher", make_teacher, read_teacher, m.SAFETENSORS),
    Kind("weights", make_weights, read_weights, m.TORCH),
    Kind("old-weights", make_old_weights, read_weights, m.TORCH_LEGACY),
    Kind("checkpoint", make_checkpoint, read_checkpoint, m.TORCH),
    Kind("run-record", make_run_record, read_run_record, m.JSON),
    Kind("beton", make_beton, read_beton, m.BETON),
    Kind("beton-manifest", make_manifest, read_manifest, m.JSON),
    Kind("config", make_config, read_config, m.YAML),
    Kind("config-of-convert", make_config, read_config_of_convert, m.YAML),
    Kind("soft-labels", make_labels, read_labels, m.SAFETENSORS),
    Kind("foreign-torch", make_foreign_torch, read_foreign, m.TORCH),
    Kind("foreign-safetensors", make_foreign_safetensors, read_foreign, m.SAFETENSORS),
    Kind("foreign-npz", make_foreign_arrays, read_foreign, m.ARCHIVE),
    Kind("foreign-tar", make_foreign_shard, read_foreign, m.ANY),
    Kind("foreign-description", make_description, read_description, m.YAML),
    Kind("png", make_png, read_picture, m.ANY),
    Kind("jpeg", make_jpeg, read_picture, m.ANY),
]
