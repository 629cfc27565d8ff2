"""A distilled set for people: one picture of it, its card, and names of classes that are safe as file names."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unidd_pl.distilled import DistilledSet
from unidd_pl.files import atomic_write

MAX_FOLDER_NAME = 80  # characters; file systems stop at 255 bytes, Windows at 260 for the whole path
WINDOWS_DEVICES = ("con", "prn", "aux", "nul")  # names that Windows refuses for files

MAX_SIDE = 4096  # px; beyond it viewers and MLflow's page scale the picture down
GAP = 2  # px between tiles
MARGIN = 8  # px around names and caption
FONT_SIZE = 15  # px
MAX_NAME_WIDTH = 240  # px; longer class names end in an ellipsis
SHORT_NAME_WIDTH = 110  # px; likewise, where classes stand beside each other
_STRIP = 2  # times as high as wide: from there on classes stand beside each other

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def picture(distilled: DistilledSet, path: str | Path, *, per_class: int = 10, min_tile: int = 64) -> None:
    """Draw the set as one PNG: a row a class, with its name at the left, a column an image.

    Where that would be a strip, as of 1,000 classes with an image each, several classes stand in a row.
    Images are enlarged by one whole factor without interpolation, so every tile pixel is a pixel of the set;
    they are never shrunk. Classes and images beyond a side of 4096 px are left out, and a caption says so.

    Args:
        distilled: The set; classes without images get no row.
        path: The file, *.png, replaced if it exists; its folder is created.
        per_class: Most images of a class to show, in the order of the set.
        min_tile: Least side of an enlarged image in pixels.

    Raises:
        ValueError: If a setting is out of range, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"got {path.name}, expected a name ending in .png: other formats may blur pixels")
    if per_class < 1 or min_tile < 1:
        raise ValueError(f"got per_class={per_class} and min_tile={min_tile}, expected at least 1 of each")
    canvas = _draw(distilled, per_class, min_tile)
    with atomic_write(path) as temporary:
        canvas.save(temporary, format="PNG")


def picture_beside(path: Path) -> Path:
    """Return the PNG file beside a set: that of a file has its name, that of a folder its whole name, dots and all."""
    return path.with_name(f"{path.name}.png") if path.is_dir() else path.with_suffix(".png")


def card(distilled: DistilledSet) -> str:
    """Return what a distilled set is, as Markdown: its facts and the config that made it."""
    facts = {
        "data set": distilled.spec.name,
        "images": f"{len(distilled)}, {distilled.ipc} per class of {distilled.spec.num_classes}",
        "pixels": f"{distilled.spec.image_shape}, {str(distilled.images.dtype).removeprefix('torch.')}",
        "fingerprint": distilled.fingerprint(),
        **{key: value for key, value in distilled.manifest.items() if key not in ("config", "environment")},
        **{f"made with {key}": value for key, value in distilled.manifest.get("environment", {}).items()},
    }
    lines = [f"| {key.replace('_', ' ')} | {str(value).replace('|', chr(92) + '|')} |" for key, value in facts.items()]
    config = str(distilled.manifest.get("config", ""))
    title = f"# Distilled set: {distilled.manifest.get('method', 'images')} on {distilled.spec.name}"
    return "\n".join(
        [title, "", "| fact | value |", "| --- | --- |", *lines, "", "```yaml", config.rstrip(), "```", ""]
    )


def folder_names(classes: tuple[str, ...]) -> list[str]:
    """Return a folder name for every class, safe on every common file system and without collisions.

    Names that are safe already stay as they are; accents are dropped, other characters become `_`, and a
    number is added where two names would meet (also when they differ in case only).

    Args:
        classes: Class names in label order.

    Returns:
        Folder names in the same order.
    """
    safe = [_safe_name(name) for name in classes]
    taken = set(WINDOWS_DEVICES)
    names: dict[int, str] = {}
    # Unchanged names choose first: "a_b" keeps its name even where "a/b" stands before it.
    for label in sorted(range(len(classes)), key=lambda label: safe[label] != classes[label]):
        candidate, copy = safe[label], 1
        while candidate.lower() in taken:
            copy += 1
            candidate = f"{safe[label]}_{copy}"
        taken.add(candidate.lower())
        names[label] = candidate
    return [names[label] for label in range(len(classes))]


def _safe_name(name: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    plain = re.sub(r"[^A-Za-z0-9_. -]", "_", plain)[:MAX_FOLDER_NAME].strip(". ")
    return plain or "class"


def _to_pillow(pixels: Tensor) -> Image.Image:
    """Turn pixels (c, h, w), uint8 in 0-255 or float32 in [0, 1], into a Pillow image (L or RGB)."""
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().to(torch.uint8)
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)


@dataclass(frozen=True)
class _Sheet:
    """Where everything of a picture lies; all but the counts in px.

    Args:
        across: Classes beside each other.
        rows: Rows of classes.
        columns: Images of a class.
        left: Width of the names.
        step: From tile to tile.
    """

    across: int
    rows: int
    columns: int
    left: int
    step: int

    @property
    def block(self) -> int:
        """Width of a class: its name and its images."""
        return self.left + self.columns * self.step

    def corner(self, place: int) -> tuple[int, int]:
        """Return the left and the upper edge of a class."""
        row, column = divmod(place, self.across)
        return column * self.block, row * self.step


def _layout(names: Sequence[str], images: int, step: int, font: Font) -> _Sheet:
    """Choose how many classes stand beside each other: one where that is no strip, else as many as make a square."""
    widest = max(font.getlength(name) for name in names)
    left = round(min(widest, MAX_NAME_WIDTH)) + 2 * MARGIN
    most_rows = max(1, (MAX_SIDE - FONT_SIZE - 2 * MARGIN) // step)
    columns = min(images, max(1, (MAX_SIDE - left) // step))
    across = 1
    if len(names) * step > _STRIP * (left + columns * step):
        left = round(min(widest, SHORT_NAME_WIDTH)) + 2 * MARGIN
        block = left + columns * step
        across = max(1, min(round(math.sqrt(len(names) * step / block)), MAX_SIDE // block))
    return _Sheet(across, min(-(-len(names) // across), most_rows), columns, left, step)


def _draw(distilled: DistilledSet, per_class: int, min_tile: int) -> Image.Image:
    """Draw the picture: names at the left of their images, and a caption where something is left out."""
    font = ImageFont.load_default(FONT_SIZE)
    present = torch.unique(distilled.labels).tolist()
    positions = [torch.nonzero(distilled.labels == label).view(-1).tolist() for label in present]
    names = [" ".join(distilled.class_names[label].split()) for label in present]  # Pillow cannot measure two lines
    size = distilled.spec.image_size
    side = size * -(-min_tile // size)
    step = max(side, FONT_SIZE) + GAP  # never so close that names overlap
    wanted = min(per_class, max(len(row) for row in positions))
    sheet = _layout(names, wanted, step, font)

    shown = min(len(present), sheet.rows * sheet.across)
    caption = _caption(shown, len(present), sheet.columns, wanted)
    width = max(sheet.across * sheet.block, round(font.getlength(caption)) + 2 * MARGIN)
    height = sheet.rows * step + (FONT_SIZE + 2 * MARGIN if caption else 0)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for place in range(shown):
        x, y = sheet.corner(place)
        name = _shorten(names[place], font, sheet.left - 2 * MARGIN)
        draw.text((x + MARGIN, y + (step - GAP) // 2), name, "black", font, anchor="lm")
        for column, position in enumerate(positions[place][: sheet.columns]):
            tile = _to_pillow(distilled.images[position]).convert("RGB")
            tile = tile.resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (x + sheet.left + column * step, y))
    draw.text((MARGIN, sheet.rows * step + MARGIN), caption, "black", font)
    return canvas


def _caption(shown: int, classes: int, columns: int, wanted: int) -> str:
    """Say what is left out; empty where nothing is."""
    parts = []
    if shown < classes:
        parts.append(f"the first {shown} of {classes} classes")
    if columns < wanted:
        parts.append(f"{columns} of {wanted} images a class")
    return f"Shown: {', '.join(parts)}" if parts else ""


def _shorten(name: str, font: Font, width: float) -> str:
    """Cut a name to a width, ending in an ellipsis."""
    if font.getlength(name) <= width + 1:  # the width is rounded
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name + "…"
