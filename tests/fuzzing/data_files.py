"""Real data, and the configs that name them."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import format_mutations as f
import mutations as m
import torch
from PIL import Image
from world import CONFIGS, Kind, world

from unidd_pl.command_options import distillation_parser, evaluation_parser, parsed, with_data_of_config
from unidd_pl.configs import guard_command_line
from unidd_pl.data import TorchvisionData
from unidd_pl.data.annotated import annotated_images, check_all_classes
from unidd_pl.data.beton import read_beton
from unidd_pl.data.class_lists import choose_classes
from unidd_pl.data.conversion import load_beton, manifest_path, write_beton
from unidd_pl.data.images import open_picture
from unidd_pl.data.listing import _probe


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


def make_config_of_evaluate(folder: Path) -> Path:
    return Path(shutil.copy(CONFIGS / "eval_digits.yaml", folder / "evaluate.yaml"))


@cache
def parser_of_evaluate() -> Any:
    guard_command_line()
    return evaluation_parser()


def read_config_of_evaluate(path: Path) -> None:
    parsed(parser_of_evaluate(), ["--config", str(path), "--distilled", "set.safetensors"])


def make_protocol(folder: Path) -> Path:
    return Path(shutil.copy(CONFIGS / "protocols/sre2l.yaml", folder / "protocol.yaml"))


def read_protocol(path: Path) -> None:
    config = str(CONFIGS / "eval_digits.yaml")
    parsed(parser_of_evaluate(), ["--config", config, "--distilled", "set.safetensors", "--protocol", str(path)])


def make_class_list(folder: Path) -> Path:
    (folder / "classes.txt").write_text("# three colours\nred\tthe colour of cherries\nblue\n\ngreen\n")
    return folder / "classes.txt"


def read_class_list(path: Path) -> None:
    choose_classes(str(path), ("blue", "green", "red", "white"), path.parent)


def make_annotations(folder: Path) -> Path:
    """Lay out the validation split of Tiny-ImageNet."""
    lines = []
    (folder / "val/images").mkdir(parents=True)
    for number in range(6):
        (folder / f"val/images/val_{number}.JPEG").touch()
        lines.append(f"val_{number}.JPEG\t{('n1', 'n2', 'n3')[number % 3]}\t0\t0\t62\t62\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    return Path(shutil.copy(folder / "val/val_annotations.txt", folder / "annotations.txt"))


def read_annotations(path: Path) -> None:
    shutil.copy(path, path.parent / "val/val_annotations.txt")
    annotated_images(path.parent / "val", ("n1", "n2"), ("n1", "n2", "n3"))


def make_wnids(folder: Path) -> Path:
    (folder / "wnids").mkdir()
    (folder / "wnids.txt").write_text("n1\nn2\nn3\n")
    return folder / "wnids.txt"


def read_wnids(path: Path) -> None:
    shutil.copy(path, path.parent / "wnids/wnids.txt")
    check_all_classes(path.parent / "wnids", ("n1", "n2", "n3"))


def make_digits_of_torchvision(folder: Path) -> Path:
    """Write images as MNIST has them: a magic number, three sizes, bytes."""
    raw = folder / "mnist/MNIST/raw"
    raw.mkdir(parents=True)
    images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8).numpy().tobytes()
    sizes = b"".join(size.to_bytes(4, "big") for size in (0x803, 20, 28, 28))
    for split in ("train", "t10k"):
        labels = bytes(range(10)) * 2
        (raw / f"{split}-labels-idx1-ubyte").write_bytes((0x801).to_bytes(4, "big") + (20).to_bytes(4, "big") + labels)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(sizes + images)
    return Path(shutil.copy(raw / "train-images-idx3-ubyte", folder / "images.idx"))


def read_digits_of_torchvision(path: Path) -> None:
    folder = path.parent / "mnist"
    shutil.copy(path, folder / "MNIST/raw/train-images-idx3-ubyte")
    data = TorchvisionData("MNIST", str(folder), download=False)
    data.read_classes()
    data.read_split("train")


def make_png(folder: Path) -> Path:
    return Path(shutil.copy(next((world(folder).data.root / "train").rglob("*.png")), folder / "picture.png"))


def make_jpeg(folder: Path) -> Path:
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 30).convert("RGB").save(folder / "picture.jpg")
    return folder / "picture.jpg"


def read_picture(path: Path) -> None:
    _probe(path)
    open_picture(path)


DATA = [
    Kind("beton", make_beton, read_beton, m.BETON),
    Kind("beton-manifest", make_manifest, read_manifest, m.JSON),
    Kind("config", make_config, read_config, m.YAML),
    Kind("config-of-convert", make_config, read_config_of_convert, m.YAML),
    Kind("config-of-evaluate", make_config_of_evaluate, read_config_of_evaluate, m.YAML),
    Kind("protocol", make_protocol, read_protocol, m.YAML),
    Kind("class-list", make_class_list, read_class_list, f.TEXT),
    Kind("annotations", make_annotations, read_annotations, f.TEXT),
    Kind("wnids", make_wnids, read_wnids, f.TEXT),
    Kind("digits-of-torchvision", make_digits_of_torchvision, read_digits_of_torchvision, m.ANY),
    Kind("png", make_png, read_picture, f.PICTURE),
    Kind("jpeg", make_jpeg, read_picture, f.PICTURE),
]
