"""`unidd convert`: a folder of images into the .beton files that FFCV streams."""

from __future__ import annotations

import signal

from unidd_pl.console import say, stopped_by
from unidd_pl.data import ImageFolderData
from unidd_pl.data.conversion import BetonManifest, load_beton, manifest_path, write_beton
from unidd_pl.data.images import ImageFiles
from unidd_pl.data.module import ImageData, Split
from unidd_pl.files import check_writable

_MB = 1e6


def convert(
    data: ImageData, *, max_side: int = 500, skip_unreadable: bool = False, overwrite: bool = False
) -> dict[Split, BetonManifest]:
    """Write the .beton files of a data set that are not there yet; say what they hold.

    Args:
        data: Class folders.
        max_side: Larger images are brought to this longer side, pixels.
        skip_unreadable: Leave unreadable images out instead of refusing them.
        overwrite: Replace files that are there.

    Raises:
        ValueError: If the data are no class folders, their classes differ between the splits, images cannot be read,
            a file that is there does not fit them, or one cannot be written.
    """
    if not isinstance(data, ImageFolderData):
        raise ValueError(
            f"got {type(data).__name__}, expected class folders: use unidd_pl.data.ImageFolderData; other data sets "
            "are small enough for memory"
        )
    splits: tuple[Split, ...] = ("train", "test") if data.has_test else ("train",)
    listed = {split: data.list_split(split) for split in splits}  # other classes in one show before the work
    check_writable(data.betons)
    with stopped_by(signal.SIGTERM, "stopped; nothing half-written is left"):
        return {
            split: _converted(data, split, files, max_side, skip_unreadable, overwrite)
            for split, files in listed.items()
        }


def _converted(
    data: ImageFolderData, split: Split, files: ImageFiles, max_side: int, skip_unreadable: bool, overwrite: bool
) -> BetonManifest:
    path, classes = data.beton_path(split), data.read_classes()
    kept = not overwrite and manifest_path(path).exists()
    if kept:
        _, manifest = load_beton(path, files, classes, split)
        if manifest.max_side != max_side or (manifest.skipped and not skip_unreadable):
            raise ValueError(
                f"{path} was made with --max_side {manifest.max_side}, {len(manifest.skipped)} unreadable images left "
                f"out; expected --max_side {max_side}, --skip_unreadable {str(skip_unreadable).lower()}: give the "
                "options that it was made with, or write it anew with --overwrite true"
            )
    else:
        manifest = write_beton(files, classes, split, path, max_side=max_side, skip_unreadable=skip_unreadable)
    skipped = f", {len(manifest.skipped)} unreadable ones left out" if manifest.skipped else ""
    say(
        f"{split}: {sum(manifest.counts)} images of {len(classes)} classes{skipped}, {manifest.nbytes / _MB:.1f} MB, "
        f"{'already in' if kept else 'written to'} {path}"
    )
    return manifest
