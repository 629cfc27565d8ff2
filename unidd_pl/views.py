"""Augmented, mixed images as a pure function of (seed, epoch, image), for labels that are written once.

Legend: n images of the set, b of a batch, c channels, h w space.

A *view* is what a student sees of one image in one epoch. With labels from an online teacher it may depend on the
batch: one CutMix box for all, partners from the batch. A view here depends on no batch: box and partner are drawn for
each image, the partner from the whole set and as that is cropped and flipped itself in the epoch. Each image by itself
is augmented and mixed with the same distribution; only that a batch shares its box is given up, and with it any batch
size is free.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unidd_pl.augmentation import crop_and_resize, draw_crop_boxes, draw_uniform
from unidd_pl.mixing import draw_cutmix_boxes, draw_patch_orders, paste_boxes, reorder_patches
from unidd_pl.seeding import generator_for
from unidd_pl.specs import DatasetSpec


@dataclass(frozen=True)
class ViewRecipe:
    """What is done to an image, in this order; see `Protocol` for the meaning of each.

    Args:
        patch_shuffle: Patches along a side that are shuffled; 1 for none.
        crop_scale: Smallest and largest area of the random resized crop; None for none.
        flip: Random horizontal flips.
        cutmix_alpha: α of λ ~ Beta(α, α); 0 for no CutMix.
    """

    patch_shuffle: int
    crop_scale: tuple[float, float] | None
    flip: bool
    cutmix_alpha: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return {**asdict(self), "crop_scale": list(self.crop_scale) if self.crop_scale else None}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ViewRecipe:
        """Rebuild a recipe from `to_dict`."""
        scale = fields["crop_scale"]
        return cls(
            patch_shuffle=int(fields["patch_shuffle"]),
            crop_scale=(float(scale[0]), float(scale[1])) if scale else None,
            flip=bool(fields["flip"]),
            cutmix_alpha=float(fields["cutmix_alpha"]),
        )


@dataclass(frozen=True)
class Draws:
    """All that is drawn for an epoch; a row belongs to an image, and None stands for what is not done.

    Args:
        patches: (n, 2, grid) orders of columns and rows of patches.
        crops: (n, 4) top, left, height, width in pixels.
        flips: (n,) bool.
        partners: (n,) the image of which a box is pasted.
        boxes: (n, 4) top, left, bottom, right of that box in pixels.
    """

    patches: Tensor | None
    crops: Tensor | None
    flips: Tensor | None
    partners: Tensor | None
    boxes: Tensor | None


@dataclass(frozen=True)
class Views:
    """The views of a set of images: `epochs` of each, drawn from a seed.

    Args:
        recipe: What is done to an image.
        spec: The data set, for image size and normalisation.
        count: Images of the set, n.
        epochs: Different views of each image. Longer trainings go over them again.
        seed: Seed of all draws.

    Raises:
        ValueError: If there is no image or no epoch.
    """

    recipe: ViewRecipe
    spec: DatasetSpec
    count: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.epochs < 1:
            raise ValueError(f"views: got {self.count} images and {self.epochs} epochs, expected at least 1 of each")

    def images(
        self,
        pixels: Tensor,
        indices: Sequence[int] | Tensor,
        epoch: int,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return views of some images of the set.

        Args:
            pixels: (n, c, h, w) all images of the set, uint8 in 0-255 or float in [0, 1], on any device.
            indices: (b,) positions in the set.
            epoch: Which of the views, from 0.
            device: Where the views are made; None for the device of `pixels`.

        Returns:
            (b, c, h, w) floating point, normalised, on that device.

        Raises:
            ValueError: If the pixels are not those of the set, or the epoch is not there.
        """
        if tuple(pixels.shape) != (self.count, *self.spec.image_shape):
            expected = (self.count, *self.spec.image_shape)
            raise ValueError(
                f"views: got images of shape {tuple(pixels.shape)}, expected {expected}: give the whole set"
            )
        draws = self.draws(epoch)
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if draws.partners is None or draws.boxes is None:
            return self._unmixed(pixels, draws, chosen, device)
        both = torch.cat([chosen, draws.partners[chosen]])
        own, others = self._unmixed(pixels, draws, both, device).chunk(2)
        return paste_boxes(own, others, draws.boxes[chosen])

    def draws(self, epoch: int) -> Draws:
        """Return the draws of an epoch.

        Raises:
            ValueError: If the epoch is not there.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"views: got epoch {epoch}, expected 0 to {self.epochs - 1}")
        return _draws(self, epoch)

    def epoch_at(self, epoch: int, seed: int) -> int:
        """Return which of the views a training takes in an epoch: all, in an order of its own, then all again.

        Args:
            epoch: Epoch of the training, from 0; it may be beyond the views.
            seed: Seed of the student.
        """
        passed, place = divmod(epoch, self.epochs)
        order = torch.randperm(self.epochs, generator=generator_for(seed, "views", "order", passed))
        return int(order[place])

    def digest(self) -> str:
        """Return a digest of the draws of the first epoch, which shows another random generator."""
        digest = hashlib.sha256()
        for tensor in vars(self.draws(0)).values():
            digest.update(b"" if tensor is None else tensor.to(torch.int64).contiguous().numpy().data)
        return digest.hexdigest()

    def _unmixed(self, pixels: Tensor, draws: Draws, chosen: Tensor, device: torch.device | None) -> Tensor:
        images = self.spec.normalise(pixels[chosen.to(pixels.device)].to(device or pixels.device))
        if draws.patches is not None:
            images = reorder_patches(images, draws.patches[chosen])
        if draws.crops is not None:
            images = crop_and_resize(images, draws.crops[chosen])
        if draws.flips is not None:
            images = torch.where(draws.flips[chosen].to(images.device)[:, None, None, None], images.flip(-1), images)
        return images


@functools.lru_cache(maxsize=4)  # the epoch in hand, of a few sets
def _draws(views: Views, epoch: int) -> Draws:
    """Draw for all images of the set at once, so that a row does not depend on which images are asked for."""
    recipe, count, size = views.recipe, views.count, views.spec.image_size
    # A generator for each kind: what one of them draws does not depend on whether the others are done.
    patches, crops, flips, partners, boxes = (
        generator_for(views.seed, "views", epoch, kind) for kind in ("patches", "crops", "flips", "partners", "boxes")
    )
    scale, alpha = recipe.crop_scale, recipe.cutmix_alpha
    return Draws(
        patches=draw_patch_orders(count, patches, grid=recipe.patch_shuffle) if recipe.patch_shuffle > 1 else None,
        crops=None if scale is None else draw_crop_boxes(count, size, size, crops, scale=scale),
        flips=draw_uniform((count,), flips) < 0.5 if recipe.flip else None,
        partners=torch.randperm(count, generator=partners) if alpha else None,
        boxes=draw_cutmix_boxes(count, size, size, boxes, alpha=alpha) if alpha else None,
    )
