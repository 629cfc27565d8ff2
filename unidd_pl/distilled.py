"""The product of a distillation: images, labels and what made them, in one self-describing file."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from unidd_pl.files import atomic_write
from unidd_pl.headers import HEADER_KEY, read_header, to_json, unreadable
from unidd_pl.specs import DatasetSpec
from unidd_pl.untrusted import UnreadableTensorsError, read_metadata, read_safetensors

PixelType = Literal["uint8", "float32"]

FORMAT = "unidd_pl.distilled_set"  # tag that tells a distilled set from other safetensors files
FORMAT_VERSION = 1  # raise when an older reader would misread a newer file
_EXPECTED = "a distilled set: give the file that the distillation wrote"


class DistilledSet(Dataset[tuple[Tensor, int]]):
    """A distilled data set in pixel space, which knows its classes, its normalisation and its origin.

    What is scored is what is shipped: items are made from the stored pixels, so rounding to uint8 is part of
    the evaluation. Tensors are kept detached, on the CPU.

    Args:
        images: (n, c, h, w), uint8 in 0-255 or float32 in [0, 1]; c, h and w are those of the spec.
        labels: (n,) int64, positions in `spec.classes`.
        spec: Classes in label order and normalisation.
        manifest: What made the set (resolved config, versions, seed, fingerprints, …), as JSON types.

    Raises:
        ValueError: If shapes, types, value ranges or the manifest are not as above.
    """

    def __init__(self, images: Tensor, labels: Tensor, spec: DatasetSpec, manifest: dict[str, Any]) -> None:
        _check_images(images, spec)
        _check_labels(labels, len(images), spec)
        self.images = images.detach().cpu().contiguous()
        self.labels = labels.detach().cpu().contiguous()
        self.spec = spec
        # Through JSON at once: what is in memory is what a reader of the file will get, and a copy.
        self.manifest: dict[str, Any] = json.loads(_manifest_json(manifest))

    @classmethod
    def from_normalised(
        cls,
        images: Tensor,
        labels: Tensor,
        spec: DatasetSpec,
        manifest: dict[str, Any],
        dtype: PixelType = "uint8",
    ) -> DistilledSet:
        """Make a set from the normalised pixels that a distillation optimises; see `to_pixels`.

        Args:
            images: (n, c, h, w) floating point, normalised.
            labels: (n,) int64.
            spec: Classes in label order and the normalisation of `images`.
            manifest: What made the set, as JSON types.
            dtype: How to store the pixels.

        Returns:
            The distilled set; no gradient flows.

        Raises:
            ValueError: As for the class.
        """
        return cls(to_pixels(images, spec, dtype), labels, spec, manifest)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.spec.normalise(self.images[index].unsqueeze(0)).squeeze(0), int(self.labels[index])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all images (n, c, h, w), float32, normalised, and their labels (n,), int64."""
        return self.spec.normalise(self.images), self.labels

    @property
    def ipc(self) -> int:
        """Images per class: of the class with the fewest, so that it holds for every class."""
        return int(torch.bincount(self.labels, minlength=self.spec.num_classes).min())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.spec.classes

    @property
    def partial_note(self) -> str | None:
        """What is to be said of a set that holds fewer rounds than its run was planned for; None of a whole one."""
        if "partial" not in self.manifest:
            return None
        return f"{self.manifest['partial']} ({self.manifest.get('stopped', 'why is not known')})"

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the images, labels and class names; the manifest does not enter."""
        facts = {
            "pixels": str(self.images.dtype),
            "shape": list(self.images.shape),
            "classes": list(self.class_names),
        }
        digest = hashlib.sha256(to_json(facts).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().view(-1).numpy().data)
        return digest.hexdigest()

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the set to one safetensors file, whole or not at all; equal sets give equal bytes.

        Args:
            path: The file; its folder is created.
            overwrite: Replace an existing file.

        Raises:
            ValueError: If the file exists, or cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise ValueError(
                f"got the existing file {path}, expected a new one: choose another path or pass overwrite=True"
            )
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "manifest": json.loads(_manifest_json(self.manifest)),
        }
        with atomic_write(path) as temporary:
            try:
                save_file({"images": self.images, "labels": self.labels}, temporary, {HEADER_KEY: to_json(header)})
            except SafetensorError as error:  # how safetensors reports a full disk
                raise OSError(str(error)) from error

    @classmethod
    def load(cls, path: str | Path) -> DistilledSet:
        """Read a set written by `save`.

        Args:
            path: The file.

        Returns:
            The distilled set.

        Raises:
            ValueError: If the file is missing, damaged, of another kind or of a newer format.
        """
        path = Path(path)
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no file"
            raise ValueError(f"got {found} at {path}, expected a distilled set: check the path")
        try:
            header = read_header(path, read_metadata(path), FORMAT, FORMAT_VERSION, _EXPECTED)
            tensors, _ = read_safetensors(path, ("images", "labels"))
        except UnreadableTensorsError as error:
            raise ValueError(unreadable(path, error, "distilled set", "copy it again or distil again")) from error
        try:
            spec = DatasetSpec.from_dict(header["spec"])
            return cls(tensors["images"], tensors["labels"], spec, header["manifest"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"got contradictory contents in {path} ({error}), expected a distilled set as "
                "DistilledSet.save writes it: copy or distil it again"
            ) from error


def to_pixels(images: Tensor, spec: DatasetSpec, dtype: PixelType = "uint8") -> Tensor:
    """Map normalised pixels to the pixels that a distilled set stores.

    uint8 is *rounded*: truncation would darken every image by half a level on average.

    Args:
        images: (n, c, h, w) floating point, normalised; values beyond black and white are clamped.
        spec: The normalisation of `images`.
        dtype: "uint8" for 0-255, "float32" for [0, 1].

    Returns:
        (n, c, h, w) of that type, on the device of `images`; no gradient flows.

    Raises:
        ValueError: If the shape does not fit the spec, a value is not finite, or the type is unknown.
    """
    if dtype not in ("uint8", "float32"):
        raise ValueError(f'got dtype {dtype!r}, expected "uint8" or "float32"')
    _check_shape(images, spec)
    if not images.is_floating_point():
        raise ValueError(
            f"got {images.dtype} images, expected normalised floating-point pixels: "
            "pixels in 0-255 go to DistilledSet(...) directly"
        )
    _finite_range(images)  # clamping would turn an infinity into a white pixel without a word
    images = images.detach()
    if images.dtype != torch.float64:
        images = images.float()  # bfloat16 has 8 bits: denormalised in it, grey levels merge
    pixels = spec.denormalise(images).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8) if dtype == "uint8" else pixels.float()


def _check_images(images: Tensor, spec: DatasetSpec) -> None:
    """Refuse images that are not those of the spec, in uint8 0-255 or float32 [0, 1]."""
    _check_shape(images, spec)
    if images.dtype not in (torch.uint8, torch.float32):
        raise ValueError(
            f"got {images.dtype} images, expected uint8 in 0-255 or float32 in [0, 1]: "
            "normalised pixels go through DistilledSet.from_normalised"
        )
    low, high = _finite_range(images)
    if images.is_floating_point() and (low < 0 or high > 1):
        raise ValueError(
            f"got float32 pixels from {low:.4g} to {high:.4g}, expected [0, 1]: "
            "normalised pixels go through DistilledSet.from_normalised"
        )


def _check_shape(images: Tensor, spec: DatasetSpec) -> None:
    if images.ndim != 4 or tuple(images.shape[1:]) != spec.image_shape or len(images) == 0:
        c, h, w = spec.image_shape
        raise ValueError(
            f"got images of shape {tuple(images.shape)}, expected (n, {c}, {h}, {w}) with n ≥ 1, as the "
            f"spec of {spec.name} says: resize the images or give the spec they were made with"
        )


def _finite_range(images: Tensor) -> tuple[float, float]:
    """Return the least and greatest value; both are NaN where any is, so one pass finds all bad values."""
    low, high = (float(bound) for bound in images.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"got NaN or infinite pixels (from {low} to {high}), expected finite values: the distillation "
            "diverged; lower its learning rate or the weight of the matching loss"
        )
    return low, high


def _check_labels(labels: Tensor, num_images: int, spec: DatasetSpec) -> None:
    """Refuse labels that are not one int64 position in the classes for every image."""
    if labels.dtype != torch.int64:
        raise ValueError(f"got {labels.dtype} labels, expected int64: convert them with .long()")
    if tuple(labels.shape) != (num_images,):
        raise ValueError(
            f"got labels of shape {tuple(labels.shape)}, expected ({num_images},): one label for every image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= spec.num_classes:
        raise ValueError(
            f"got labels from {low} to {high}, expected 0 to {spec.num_classes - 1} for the "
            f"{spec.num_classes} classes of {spec.name}: give the spec that the labels belong to"
        )


def _manifest_json(manifest: dict[str, Any]) -> str:
    if not isinstance(manifest, dict):
        raise ValueError(f"got a manifest of type {type(manifest).__name__}, expected a dictionary")
    try:
        return to_json(manifest)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"got a manifest that JSON cannot hold ({error}), expected dictionaries with text keys, lists, "
            "text, finite numbers, true, false and null: convert paths and tensors first"
        ) from error
