"""`unidd export`: a distilled set in a layout that others read, with its card."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange import ddranking, rethinkdc
from unidd_pl.exchange.assembling import as_levels
from unidd_pl.exchange.card import CARD_NAME, PAGE_NAME, card_of, read_card, write_card
from unidd_pl.exchange.folders import write_folders
from unidd_pl.exchange.parquet import PARQUET_NAME, write_parquet
from unidd_pl.exchange.plain_teacher import PlainTeacher
from unidd_pl.exchange.reading import SET_NAME
from unidd_pl.exchange.tars import write_tars
from unidd_pl.protocols import Protocol

Layout = Literal["png", "parquet", "webdataset", "safetensors", "ddranking", "rethinkdc"]
SCORERS = ("ddranking", "rethinkdc")
_IMAGES = {
    "ddranking": ddranking.IMAGES,
    "rethinkdc": rethinkdc.IMAGES,
}  # folder of the pictures, where it is not the top


@dataclass(frozen=True)
class Companions:
    """What goes with a set to others.

    Args:
        protocol: The protocol that the set is meant for.
        teacher: The teacher, for the scorers.
        dataset: The scorer's name of the data; None to find it by the data's.
        scores: Rows of an evaluation, for the card.
        licence: Licence of the source data; None looks it up by name.
        soft_label_bytes: Size of the soft-label store that belongs to the set.
    """

    protocol: Protocol = field(default_factory=Protocol)
    teacher: PlainTeacher | None = None
    dataset: str | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)
    licence: str | None = None
    soft_label_bytes: int | None = None


def export_set(
    distilled: DistilledSet, folder: Path, layout: Layout, companions: Companions | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write a set and its card into a folder; the card is written last and marks a complete export.

    uint8 sets are written exactly, in every layout. A float32 set is exact in ``safetensors`` alone; elsewhere it is
    rounded to the 256 levels of a picture, and the card says so.

    Args:
        distilled: The set.
        folder: The folder to make or fill.
        layout: ``png`` (class folders by number), ``parquet`` (Hugging Face), ``webdataset``, ``safetensors``, or a
            scorer's: ``ddranking``, ``rethinkdc``.
        companions: What goes with it.
        overwrite: Replace an earlier export in the folder; nothing else is ever deleted.

    Returns:
        The card.

    Raises:
        ValueError: If the folder holds anything, cannot be written, or a scorer cannot take the set or the teacher.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout: got {layout!r}, expected one of {', '.join(get_args(Layout))}")
    companions = companions or Companions()
    written = distilled if layout == "safetensors" else as_levels(distilled)
    scorer = _scorer(written, layout, companions)  # before anything is deleted
    card = card_of(
        written,
        distilled,
        layout,
        protocol=json.loads(json.dumps(vars(companions.protocol))),  # as a reader of the card gets it
        scores=companions.scores,
        licence=companions.licence,
        soft_label_bytes=companions.soft_label_bytes,
    )
    try:
        _make_empty(folder, overwrite)
        if scorer is not None:
            scorer.write(folder)
        else:
            _WRITERS[layout](written, folder)
        card.update(images=_IMAGES.get(layout, "."), **_counted(folder, _IMAGES.get(layout, ".")))
        write_card(folder, card, scorer.usage() if scorer is not None else _USAGE[layout])
    except OSError as error:
        raise ValueError(
            f"could not write the export in folder {folder.absolute()}: got {error}; expected a folder with "
            "write permission and free space: make room, fix its permissions or choose another folder"
        ) from error
    return card


def _scorer(
    written: DistilledSet, layout: str, companions: Companions
) -> ddranking.DDRankingExport | rethinkdc.RethinkDCExport | None:
    if layout == "ddranking":
        return ddranking.DDRankingExport(written, companions.protocol, companions.teacher, companions.dataset)
    if layout == "rethinkdc":
        return rethinkdc.RethinkDCExport(written, companions.protocol, companions.teacher)
    return None


def _save(distilled: DistilledSet, folder: Path) -> None:
    distilled.save(folder / SET_NAME)


_WRITERS = {"png": write_folders, "parquet": write_parquet, "webdataset": write_tars, "safetensors": _save}
_USAGE = {
    "png": "Read it with any ImageFolder: folders are numbered in the order of the classes above.",
    "parquet": f'Read it with `datasets.load_dataset("parquet", data_files="{PARQUET_NAME}")`.',
    "webdataset": 'Read it with `webdataset.WebDataset("set-000000.tar").decode("pil").to_tuple("png", "cls")`.',
    "safetensors": f'Read it with `unidd_pl.distilled.DistilledSet.load("{SET_NAME}")`, or any safetensors reader.',
}


def _make_empty(folder: Path, overwrite: bool) -> None:
    """Create the folder; refuse a filled one, unless it holds only an earlier export that may be replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    present = {entry.name for entry in folder.iterdir()}
    if not present:
        return
    card = read_card(folder)
    earlier = {CARD_NAME, PAGE_NAME, *card.entries} if card is not None else set()
    if not overwrite or not present <= earlier:
        cure = "choose another folder, empty it"
        cure += " or pass --overwrite true" if present <= earlier else " (it holds more than an earlier export)"
        raise ValueError(f"got the folder {folder} with {len(present)} entries, expected an empty one: {cure}")
    (folder / CARD_NAME).unlink()  # first: what is half deleted is no export any more
    for name in present - {CARD_NAME}:
        entry = folder / name
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _counted(folder: Path, images: str) -> dict[str, Any]:
    """Return sizes and digest of all files, and the names at the top of the folder."""
    digest, size = hashlib.sha256(), 0
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        content = file.read_bytes()
        size += len(content)
        digest.update(f"{file.relative_to(folder).as_posix()}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return {
        "image_bytes": sum(file.stat().st_size for file in files if file.is_relative_to(folder / images)),
        "file_bytes": size,
        "checksum": digest.hexdigest(),
        "entries": sorted(entry.name for entry in folder.iterdir()),
    }
