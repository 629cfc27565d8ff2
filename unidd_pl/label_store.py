"""Soft labels read from a file, for trainings with any batch size, number of epochs and workers.

Legend: n images of the set, b of a batch, c channels, h w space, k classes.

The file is read through a memory map: a batch touches its own rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from unidd_pl.distilled import DistilledSet
from unidd_pl.headers import read_header, unreadable
from unidd_pl.label_codec import Parts
from unidd_pl.label_file import FORMAT, FORMAT_VERSION, LabelFacts, digest_of
from unidd_pl.labels import SoftLabels
from unidd_pl.untrusted import UnreadableTensorsError, read_metadata, read_safetensors
from unidd_pl.views import ViewRecipe, Views

_EXPECTED = "soft labels as `unidd relabel` writes them"
_CURE = "copy it again or write it again with `unidd relabel --overwrite true`"


class LabelStore(SoftLabels):
    """The soft labels of a set, read from a file that `write_labels` has written.

    It goes to other processes as its path, and each maps the file itself.

    Args:
        path: The file.

    Raises:
        ValueError: If it is missing, damaged, of another kind, or of another random generator.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            found = "a folder" if self.path.is_dir() else "no file"
            raise ValueError(f"got {found} at {self.path}, expected {_EXPECTED}: check the path")
        self._open()

    def _open(self) -> None:
        try:
            header = read_header(self.path, read_metadata(self.path), FORMAT, FORMAT_VERSION, _EXPECTED)
            self._arrays: Parts = read_safetensors(self.path)[0]
        except UnreadableTensorsError as error:
            raise ValueError(unreadable(self.path, error, "label store", _CURE)) from error
        try:
            self.facts = LabelFacts.from_header(header)
        except (KeyError, TypeError, ValueError) as error:
            raise self._contradiction(f"{type(error).__name__}: {error}") from error
        got = {name: (array.dtype, tuple(array.shape)) for name, array in self._arrays.items()}
        if got != self.facts.shapes:
            raise self._contradiction(f"arrays {got} where the header says {self.facts.shapes}")
        try:
            draws = self.facts.views.digest()
        except (OverflowError, RuntimeError) as error:  # of images of a size that nothing could draw
            raise self._contradiction(f"{type(error).__name__}: {error}") from error
        if draws != header.get("draws"):
            raise ValueError(
                f"the labels in {self.path} are of other views than are drawn here: expected the random generator that "
                f"they were written with (torch {self.facts.about.get('torch', 'unknown')}, here {torch.__version__}); "
                "write them again with `unidd relabel`"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()

    @property
    def views(self) -> Views:
        """What the labels are of."""
        return self.facts.views

    @property
    def teacher(self) -> str:
        """Fingerprint of the teacher that labelled."""
        return str(self.facts.teacher.get("fingerprint"))

    def summary(self) -> dict[str, Any]:
        """Return what belongs beside a number that was reached with these labels, as JSON types."""
        codec = self.facts.codec
        return {
            "distilled_set": self.facts.distilled,
            "dtype": codec.dtype,
            "top_k": codec.top_k,
            "epochs": self.views.epochs,
            "seed": self.views.seed,
            "label_bytes": self.facts.label_bytes,
            "teacher": dict(self.facts.teacher),
        }

    def logits(self, images: Tensor, indices: Sequence[int], epoch: int) -> Tensor:
        """See `SoftLabels.logits`; the images only say on which device."""
        return self.rows(indices, epoch).to(images.device, non_blocking=True)

    def rows(self, indices: Sequence[int] | Tensor, epoch: int) -> Tensor:
        """Return the logits (b, k), float32, of some images in an epoch."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.facts.codec.decode({name: self._arrays[name][epoch, chosen] for name in self.facts.codec.fields})

    def verify(self) -> None:
        """Read all labels and compare them with their digests.

        Raises:
            ValueError: If a label was changed after it was written, is not finite, or is of a class that is not there.
        """
        for epoch in range(self.views.epochs):
            parts = {name: self._arrays[name][epoch] for name in self.facts.codec.fields}
            try:
                self.facts.codec.check(parts)
            except ValueError as error:
                raise self._contradiction(f"in epoch {epoch} {error}") from error
            if digest_of(parts) != bytes(self._arrays["digests"][epoch].tolist()):
                raise self._contradiction(f"in epoch {epoch} other labels than were written")

    def check_fits(self, distilled: DistilledSet, recipe: ViewRecipe) -> None:
        """Refuse labels of other classes, another image size, another set or another augmentation.

        Args:
            distilled: The set that is trained on.
            recipe: The augmentation of the protocol.

        Raises:
            ValueError: If they differ; the message says in what.
        """
        ours, theirs = self.views.spec, distilled.spec
        for what, got, expected in (
            ("classes, in order", ours.classes, theirs.classes),
            ("image shape", ours.image_shape, theirs.image_shape),
            ("normalisation", (ours.mean, ours.std), (theirs.mean, theirs.std)),
            ("number of images", self.views.count, len(distilled)),
            ("distilled set", self.facts.distilled[:12], distilled.fingerprint()[:12]),
            ("augmentation", asdict(self.views.recipe), asdict(recipe)),
        ):
            if got != expected:
                raise ValueError(
                    f"the labels in {self.path} do not fit; {what}: got {_short(got)}, expected {_short(expected)}: "
                    "write labels for this set and protocol with `unidd relabel`"
                )

    def _contradiction(self, found: str) -> ValueError:
        return ValueError(f"got contradictory contents in {self.path} ({found}), expected {_EXPECTED}: {_CURE}")


class LabelledViews(Dataset[tuple[Tensor, Tensor]]):
    """A distilled set as any PyTorch loop can train on it: augmented, mixed images and the teacher's logits.

    Item `epoch · n + i` is the view of image i in an epoch, so no state has to reach a worker of a DataLoader::

        for epoch in range(views.epochs):
            for images, logits in DataLoader(views.epoch(epoch), batch_size=64, shuffle=True, num_workers=4):
                loss = distillation_loss(student(images), logits, temperature=20)

    Args:
        distilled: The set.
        store: Its labels.

    Raises:
        ValueError: If the labels are of another set.
    """

    def __init__(self, distilled: DistilledSet, store: LabelStore) -> None:
        store.check_fits(distilled, store.views.recipe)
        self._pixels = distilled.images
        self._store = store
        self.epochs = store.views.epochs

    def __len__(self) -> int:
        return self.epochs * len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"got item {index}, expected 0 to {len(self) - 1}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return several items, those of an epoch at once; a DataLoader asks for batches in this way."""
        items: dict[int, tuple[Tensor, Tensor]] = {}
        count = len(self._pixels)
        for epoch in sorted({index // count for index in indices}):
            places = [place for place, index in enumerate(indices) if index // count == epoch]
            chosen = [indices[place] % count for place in places]
            images = self._store.views.images(self._pixels, chosen, epoch)
            items.update(zip(places, zip(images, self._store.rows(chosen, epoch), strict=True), strict=True))
        return [items[place] for place in range(len(indices))]

    def epoch(self, epoch: int) -> Subset[tuple[Tensor, Tensor]]:
        """Return the n items of an epoch."""
        count = len(self._pixels)
        return Subset(self, range(epoch % self.epochs * count, (epoch % self.epochs + 1) * count))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
