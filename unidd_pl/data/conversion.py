"""Image files into a .beton file, with a manifest that says what is in it; and the check of both against the files.

Legend: n images, k classes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from unidd_pl.data.beton import JPEG, LARGEST_SIDE, PAGE_SIZE, PIXELS, Beton, BetonWriter, StoredImage, read_beton
from unidd_pl.data.images import ImageFiles, open_picture
from unidd_pl.files import atomic_write
from unidd_pl.plain_json import parse_json

MANIFEST_FORMAT = "unidd-beton-1"
_ANEW = "write it anew with `unidd convert --config … --overwrite true`"
_BLOCK = 256  # images read ahead of the one that is written
_SHOWN = 50  # unreadable files in a message
_JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG followed by others, as telephones write
_JPEG_QUALITY = 95  # of JPEG images that have to be stored anew; Pillow advises against more


@dataclass(frozen=True)
class BetonManifest:
    """What a .beton file was made from; it lies beside it as JSON.

    Args:
        split: ``train`` or ``test``.
        classes: Class names in the order of the labels.
        counts: Images of each class.
        source: Digest of names, sizes and labels of all files of the split, the skipped ones among them.
        skipped: Unreadable files that were left out, named from the folder of the split.
        max_side: Longer side that larger images were brought to, pixels.
        nbytes: Size of the .beton file.
        index: Digest of its description of the images.
        content: Digest of its images and labels.
        format: Format of this manifest.
    """

    split: str
    classes: list[str]
    counts: list[int]
    source: str
    skipped: list[str]
    max_side: int
    nbytes: int
    index: str
    content: str
    format: str = MANIFEST_FORMAT


def manifest_path(beton: Path) -> Path:
    """Return where the manifest of a .beton file lies."""
    return beton.with_suffix(".json")


def write_beton(
    files: ImageFiles,
    classes: Sequence[str],
    split: str,
    path: Path,
    *,
    max_side: int = 500,
    skip_unreadable: bool = False,
) -> BetonManifest:
    """Write all images of a split to one .beton file and its manifest beside it, atomically.

    A JPEG in colour or grayscale is stored as its bytes, unless it is larger than `max_side`; other JPEG images
    are stored as JPEG of quality 95, and all the rest as pixels. Every image is decoded once to see that it can be.

    Args:
        files: The images.
        classes: Class names in the order of the labels.
        split: ``train`` or ``test``.
        path: The .beton file to write.
        max_side: Larger images are brought to this longer side, pixels.
        skip_unreadable: Leave unreadable images out instead of refusing them.

    Raises:
        ValueError: If images cannot be read (all are listed), a class has none that can be, or the file cannot be
            written. Nothing is left of it then.
    """
    if not 1 <= max_side <= LARGEST_SIDE:
        raise ValueError(f"max_side: got {max_side}, expected 1 to {LARGEST_SIDE} pixels")
    page_size = max(PAGE_SIZE, 1 << (3 * max_side**2 - 1).bit_length())
    with atomic_write(manifest_path(path)) as manifest_file, atomic_write(path) as temporary:
        with temporary.open("r+b") as file:
            writer = BetonWriter(file, len(files), page_size)
            unreadable = _add_all(files, writer, max_side, skip_unreadable)
            if unreadable and not skip_unreadable:
                raise _unreadable(unreadable)
            described = _describe(files, classes, split, max_side, list(unreadable))
            content = writer.finish()
        index, nbytes = read_beton(temporary).index_digest, temporary.stat().st_size
        manifest = replace(described, nbytes=nbytes, index=index, content=content)
        manifest_file.write_text(json.dumps(asdict(manifest), indent=1))
        # No manifest beside a file that it does not describe, not even between the two renames.
        manifest_path(path).unlink(missing_ok=True)
    return manifest


def _add_all(files: ImageFiles, writer: BetonWriter, max_side: int, skip: bool) -> dict[str, str]:
    """Add every image that can be read; return the names of the others, with the reason."""
    unreadable: dict[str, str] = {}

    def stored_or_error(path: Path) -> StoredImage | ValueError:
        try:
            return stored_form(path, max_side)
        except ValueError as error:
            return error

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,  # decoding releases the interpreter lock
        tqdm(total=len(files), desc=f"Converting {files.root}", unit="image", dynamic_ncols=True) as bar,
    ):
        for start in range(0, len(files), _BLOCK):
            block = files.paths[start : start + _BLOCK]
            labels = files.labels[start : start + _BLOCK].tolist()
            for path, label, image in zip(block, labels, pool.map(stored_or_error, block), strict=True):
                if isinstance(image, ValueError):
                    unreadable[str(path.relative_to(files.root))] = str(image)
                elif skip or not unreadable:  # what cannot become a file is only read on, to list the rest
                    writer.add(image, label)
                bar.update()
    return unreadable


def stored_form(path: Path, max_side: int) -> StoredImage:
    """Return an image file in the form in which it is stored.

    Raises:
        ValueError: If it is not a readable image.
    """
    image = open_picture(path)
    is_jpeg = image.format in _JPEG_FORMATS
    fits = max(image.size) <= max_side
    if is_jpeg and fits and image.mode in ("RGB", "L"):
        data = path.read_bytes()
        if len(data) <= 3 * image.width * image.height:  # else it is mostly something other than an image
            return StoredImage(JPEG, *image.size, data)
    image = image.convert("RGB")
    if not fits:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if not is_jpeg:
        return StoredImage(PIXELS, *image.size, image.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return StoredImage(JPEG, *image.size, buffer.getvalue())


def _unreadable(unreadable: dict[str, str]) -> ValueError:
    shown = "\n".join(f"  {reason}" for reason in list(unreadable.values())[:_SHOWN])
    more = f"\n  … and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
    return ValueError(
        f"got {len(unreadable)} unreadable image(s), expected none; replace or remove them, or leave them out with "
        f"--skip_unreadable true:\n{shown}{more}"
    )


def _describe(
    files: ImageFiles, classes: Sequence[str], split: str, max_side: int, skipped: list[str]
) -> BetonManifest:
    counts = torch.bincount(labels_without(files, skipped), minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise ValueError(f"class {name!r} of {files.root} has no readable image: expected at least one")
    source = files.listing()
    return BetonManifest(split, list(classes), counts, source, skipped, max_side, nbytes=0, index="", content="")


def labels_without(files: ImageFiles, skipped: Sequence[str]) -> torch.Tensor:
    """Return the labels of the files that were not skipped, (n,) int64."""
    if not skipped:
        return files.labels
    left_out = set(skipped)
    kept = [str(path.relative_to(files.root)) not in left_out for path in files.paths]
    return files.labels[torch.tensor(kept)]


def load_beton(path: Path, files: ImageFiles, classes: Sequence[str], split: str) -> tuple[Beton, BetonManifest]:
    """Read a .beton file and check it against the image files that it should hold.

    Raises:
        ValueError: If it is truncated or damaged, or holds another split, other classes or other files.
    """
    manifest = _load_manifest(manifest_path(path))
    for what, got, expected in (
        ("split", manifest.split, split),
        ("classes, in order", tuple(manifest.classes), tuple(classes)),
        ("images", sum(manifest.counts) + len(manifest.skipped), len(files)),
        ("names and sizes of the image files (digest)", manifest.source, files.listing()),
    ):
        if got != expected:
            raise ValueError(
                f"{path} does not fit the images in {files.root}; {what}: got {_short(got)}, expected "
                f"{_short(expected)}; {_ANEW}, or give the folder of the right ones with --data.init_args.betons"
            )
    beton = read_beton(path)
    labels = labels_without(files, manifest.skipped)
    got_index = (path.stat().st_size, beton.index_digest)
    if got_index != (manifest.nbytes, manifest.index) or not np.array_equal(beton.samples["f1"], labels.numpy()):
        raise ValueError(
            f"{path} is not the file that {manifest_path(path).name} beside it describes: got {got_index[0]} bytes, "
            f"digest {got_index[1][:12]}, expected {manifest.nbytes}, {manifest.index[:12]}; {_ANEW}"
        )
    return beton, manifest


def _load_manifest(path: Path) -> BetonManifest:
    try:
        fields = parse_json(path.read_bytes(), path)
        if fields["format"] != MANIFEST_FORMAT:
            raise ValueError(f"format {fields['format']!r}")
        manifest = BetonManifest(**fields)
        for name, example in asdict(BetonManifest("", [""], [0], "", [""], 0, 0, "", "")).items():
            _check_type(name, fields[name], example)
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cannot read the manifest {path} ({error}): expected the JSON file that `unidd convert` writes beside a "
            f".beton file; {_ANEW}"
        ) from error


def _check_type(name: str, value: object, example: object) -> None:
    values, kind = (value, type(example[0])) if isinstance(example, list) else ([value], type(example))
    if not isinstance(values, list) or not all(type(one) is kind for one in values):
        raise ValueError(f"{name} is no {'list of ' if isinstance(example, list) else ''}{kind.__name__}")


def _short(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 6:
        return f"({', '.join(map(str, value[:6]))}, … {len(value)} in all)"
    return str(value)
