"""Opening pictures of strangers: of a few formats, whatever the name of the file says."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import Image

PICTURE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow knows forty more, of which it hands EPS, which is a program, to Ghostscript."""


def open_image(source: Path | IO[bytes]) -> Image.Image:
    """Open a picture of one of `PICTURE_FORMATS`; nothing is decoded yet.

    Raises:
        OSError: If it is none.
        Exception: Whatever else its bytes make Pillow's decoders stumble over.
    """
    return Image.open(source, formats=PICTURE_FORMATS)
