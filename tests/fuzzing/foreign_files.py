"""Distilled sets of others, and exports of ours that others hand on."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import format_mutations as f
import mutations as m
import numpy as np
import torch
from safetensors.torch import save_file
from world import Kind, world

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange import SetDescription, read_set
from unidd_pl.exchange.layouts import export_set


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


def make_foreign_array(folder: Path) -> Path:
    """Write the images alone; their labels lie beside them."""
    arrays = foreign(folder)
    np.save(folder / "labels.npy", arrays["labels"].numpy())
    np.save(folder / "images.npy", arrays["images"].numpy())
    return folder / "images.npy"


def read_images(path: Path) -> None:
    labels = str(path.parent / "labels.npy")
    read_set(path, world(path.parent).data.spec, SetDescription(classes="data", labels=labels))


def make_foreign_old_torch(folder: Path) -> Path:
    """Write what DC and DM save, in the format before PyTorch 1.6: a list of the sets of all experiments."""
    one = foreign(folder)
    sets = {"data": [[one["images"].float() / 255, one["labels"]]], "accs_all_exps": {"ConvNet": [0.5]}}
    torch.save(sets, folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


def read_images_of_dc(path: Path) -> None:
    read_set(path, world(path.parent).data.spec, SetDescription(classes="data", pixels="0-1"))


def exported(folder: Path, layout: str) -> Path:
    """Export a set of two pictures a class."""
    target = folder / layout
    if not target.exists():
        one = foreign(folder)
        spec = world(folder).data.spec
        export_set(DistilledSet(one["images"], one["labels"], spec, {"seed": 1}), target, layout)  # type: ignore[arg-type]
    return target


def make_parquet(folder: Path) -> Path:
    return Path(shutil.copy(next(exported(folder, "parquet").glob("*.parquet")), folder / "foreign.parquet"))


def make_card(folder: Path) -> Path:
    exported(folder, "safetensors")
    return Path(shutil.copy(exported(folder, "png") / "card.json", folder / "card.json"))


def read_card_of_export(path: Path) -> None:
    """Put the card into the export, and into one of another layout, which has to be refused."""
    for layout in ("png", "safetensors"):
        export = exported(path.parent, layout)
        proper = (export / "card.json").read_bytes()
        shutil.copy(path, export / "card.json")
        try:
            read_set(export, world(path.parent).data.spec)
        except ValueError:
            if layout == "png":
                raise
        finally:
            (export / "card.json").write_bytes(proper)


def make_picture_of_set(folder: Path) -> Path:
    """Write a set as class folders, without a card."""
    shutil.copytree(exported(folder, "png"), folder / "classes")
    (folder / "classes/card.json").unlink()
    return Path(shutil.copy(folder / "classes/00000/00000.png", folder / "picture_of_set.png"))


def read_picture_of_set(path: Path) -> None:
    shutil.copy(path, path.parent / "classes/00000/00000.png")
    read_set(path.parent / "classes", world(path.parent).data.spec)


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


FOREIGN = [
    Kind("foreign-torch", make_foreign_torch, read_foreign, m.TORCH),
    Kind("foreign-safetensors", make_foreign_safetensors, read_foreign, m.SAFETENSORS),
    Kind("foreign-npz", make_foreign_arrays, read_foreign, m.ARCHIVE),
    Kind("foreign-old-torch", make_foreign_old_torch, read_images_of_dc, m.TORCH_LEGACY),
    Kind("foreign-npy", make_foreign_array, read_images, f.ARRAY),
    Kind("foreign-tar", make_foreign_shard, read_foreign, f.TAR),
    Kind("foreign-parquet", make_parquet, read_foreign, f.PARQUET),
    Kind("foreign-picture", make_picture_of_set, read_picture_of_set, f.PICTURE),
    Kind("card-of-export", make_card, read_card_of_export, m.JSON),
    Kind("foreign-description", make_description, read_description, m.YAML),
]
