"""Files that this project writes: products, caches, and what a run keeps of itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import mutations as m
import torch
from conftest import TINY_NETWORK
from world import Kind, world

from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.distilled import DistilledSet
from unidd_pl.label_store import LabelStore
from unidd_pl.networks import build_network, load_weights
from unidd_pl.partial import RUN_FILE, RunRecord, finished_rounds
from unidd_pl.resume import check_checkpoint, fit_from
from unidd_pl.spectral import CosineCurriculum
from unidd_pl.statistics import load_statistics, save_statistics
from unidd_pl.synthetic import ChunkStore
from unidd_pl.teachers import load_teacher, save_teacher
from unidd_pl.training import quiet_lightning


def make_distilled(folder: Path) -> Path:
    if (folder / "set.safetensors").exists():
        return folder / "set.safetensors"
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
    ChunkStore(store, module.spec).check(module.schedule, range(2), module.run_digest)


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


OWN = [
    Kind("distilled", make_distilled, DistilledSet.load, m.SAFETENSORS),
    Kind("chunk", make_chunk, read_chunk, m.SAFETENSORS),
    Kind("statistics", make_statistics, load_statistics, m.SAFETENSORS),
    Kind("teacher", make_teacher, read_teacher, m.SAFETENSORS),
    Kind("weights", make_weights, read_weights, m.TORCH),
    Kind("old-weights", make_old_weights, read_weights, m.TORCH_LEGACY),
    Kind("checkpoint", make_checkpoint, read_checkpoint, m.TORCH),
    Kind("run-record", make_run_record, read_run_record, m.JSON),
    Kind("soft-labels", make_labels, read_labels, m.SAFETENSORS),
]
