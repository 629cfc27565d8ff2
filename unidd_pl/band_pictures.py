"""What a frequency band of the features looks like: images that hold the low or the high band, and little else.

Legend: n images, c channels, h w space, m directions of a band, l layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from unidd_pl.bands import LIVING_BANDS, LayerSpectrum, SpectralBand
from unidd_pl.distilled import DistilledSet, to_pixels
from unidd_pl.features import FeatureTap
from unidd_pl.files import atomic_write
from unidd_pl.seeding import generator_for
from unidd_pl.specs import DatasetSpec
from unidd_pl.synthetic import clip
from unidd_pl.teachers import Teacher

PICTURED_BANDS: tuple[SpectralBand, ...] = ("low", "high")
MAX_IMAGES = 10  # columns that still fit a screen

ITERATIONS = 300
LEARNING_RATE = 0.25  # of Adam, in normalised pixels, as in the distillation; a cosine takes it to 0

# The other bands are held at the mean, or the pictures would mislead. Left free, the low band of a ConvNet on CIFAR-10
# fixes the whole image (1 % of it unmatched, and 15 % of the high band too), and the image of the high band, a harder
# problem for Adam, comes less close to the high band (40 % unmatched) than that of the low band does.
OTHERS_WEIGHT = 0.3  # of each other band beside the one shown; at 1 the low band loses its colours
START_NOISE = 0.05  # normalised pixels; on even grey all positions have one gradient

_LEAST_ENERGY = 1e-6  # of the real energy of a band; an even image may have none of its own to divide by

TILE = 96  # px, least side of an enlarged image
GAP = 4  # px between tiles
MARGIN = 8  # px around labels
FONT_SIZE = 15  # px


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class BandImages:
    """Images whose features match those of other images in one band.

    Args:
        band: The band.
        images: (n, c, h, w) uint8, pixels in 0-255.
        unmatched: Share of the band's energy that is not matched, by layer, mean over the images: 0 is a perfect
            match, 1 is as far away as features at their mean.
    """

    band: SpectralBand
    images: Tensor
    unmatched: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Target:
    """What one layer's features should be: those of an image in one band, the real mean in the others."""

    basis: Tensor  # (c, c) U
    mean: Tensor  # (c, 1, 1) μ
    wanted: Tensor  # (n, c, h, w), coordinates in U of the features about μ
    weights: Tensor  # (n, c, 1, 1) of each coordinate in the objective
    energy: Tensor  # (n,) of the band
    kept: Tensor  # (c,) bool, the band

    def objective(self, features: Tensor) -> Tensor:
        """Return Σ_b w_b ‖P_b (X̂ − wanted)‖² / ‖P_b (X − 1μᵀ)‖² of each image, (n,), for features X̂ (n, c, h, w)."""
        return (self.weights * self._distance(features)).flatten(1).sum(dim=1)

    def unmatched(self, features: Tensor) -> Tensor:
        """Return ‖P_b (X̂ − X)‖² / ‖P_b (X − 1μᵀ)‖² of the band and each image, (n,)."""
        return self._distance(features)[:, self.kept].flatten(1).sum(dim=1) / self.energy

    def _distance(self, features: Tensor) -> Tensor:
        return (_coordinates(features - self.mean, self.basis) - self.wanted).square()


def hidden(spectra: Sequence[LayerSpectrum]) -> list[LayerSpectrum]:
    """Return the layers that the band pictures match: all but the first convolution, whose input is the pixels.

    To match pixels is to copy the image: of three colour channels the low band is brightness alone, and the picture
    would show that and nothing of the features.
    """
    return list(spectra[1:])


def band_images(
    teacher: Teacher,
    spectra: Sequence[LayerSpectrum],
    images: Tensor,
    band: SpectralBand,
    spec: DatasetSpec,
    *,
    iterations: int = ITERATIONS,
    device: torch.device | str = "cpu",
) -> BandImages | None:
    """Optimise images, from grey, until their features are those of given images, filtered to one band.

    The filter is ideal: features X_l become 1μᵀ + P_b (X_l − 1μᵀ), position by position, where P_b projects on the real
    eigen-directions of the band. The objective is, over layers and bands b' that are not dead,
    Σ w_b' ‖P_b' (X_l(x̂) − filtered)‖² / ‖P_b' (X_l(x) − 1μᵀ)‖², with w = 1 for the band and `OTHERS_WEIGHT` for others.
    No image has exactly such features, as those after a ReLU are not negative: what is left is returned.

    Args:
        teacher: The frozen teacher.
        spectra: Real spectra of the layers to match; those without directions in the band are left out.
        images: (n, c, h, w) the images to match, normalised.
        band: The band.
        spec: Normalisation of `images`.
        iterations: Steps of Adam.
        device: Where to run.

    Returns:
        The images; None where no layer has a direction in the band.
    """
    matched = [one for one in spectra if one.count(band) > 0]
    if not matched:
        return None
    network, names = teacher.network.to(device), [one.layer for one in matched]
    with FeatureTap(network, names) as tap:

        def features(of: Tensor) -> list[Tensor]:
            network(of)
            return tap.features()

        with torch.no_grad():
            of_images = features(images.to(device))
            targets = [_target(one, x, band) for one, x in zip(matched, of_images, strict=True)]
        start = _start(spec, len(images)).to(device)
        pixels = to_pixels(_optimise(start, features, targets, spec, iterations, f"Picture of the {band} band"), spec)
        with torch.no_grad():  # of the pixels as they are shown
            shown = features(spec.normalise(pixels))
            left = [float(target.unmatched(x).mean()) for target, x in zip(targets, shown, strict=True)]
    network.cpu()
    return BandImages(band, pixels.cpu(), dict(zip(names, left, strict=True)))


def _optimise(
    images: Tensor,
    features: Callable[[Tensor], list[Tensor]],
    targets: Sequence[_Target],
    spec: DatasetSpec,
    iterations: int,
    label: str,
) -> Tensor:
    """Return images (n, c, h, w), normalised, moved from a start until their features match the targets."""
    images = images.requires_grad_()
    adam = torch.optim.Adam([images], lr=LEARNING_RATE)
    for step in tqdm(range(iterations), label, leave=False, unit="step"):
        adam.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / iterations)) / 2
        adam.zero_grad()
        parts = [target.objective(x) for target, x in zip(targets, features(images), strict=True)]
        torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
        adam.step()
        with torch.no_grad():
            images.copy_(clip(images, spec))
    return images.detach()


def first_of_each_class(distilled: DistilledSet, most: int = MAX_IMAGES) -> list[int]:
    """Return the position of the first image of each class that has one, for `most` classes at most."""
    labels = distilled.labels.tolist()
    return [labels.index(label) for label in sorted(set(labels))[:most]]


def draw_band_pictures(
    path: Path, spec: DatasetSpec, labels: Sequence[int], original: Tensor, bands: Sequence[BandImages]
) -> None:
    """Write one PNG: a column an image, the rows the original and each band.

    Args:
        path: The file, replaced if it exists.
        spec: Class names.
        labels: Label of each image.
        original: (n, c, h, w) uint8, what the bands were matched to.
        bands: What was made of it.
    """
    rows = [("distilled", original), *((_row_label(one), one.images) for one in bands)]
    font = ImageFont.load_default(FONT_SIZE)
    size = spec.image_size * -(-TILE // spec.image_size)
    # Line by line: Pillow measures no text of several lines.
    left = 2 * MARGIN + math.ceil(max(font.getlength(line) for about, _ in rows for line in about.split("\n")))
    top = FONT_SIZE + 2 * MARGIN
    step = size + GAP
    canvas = Image.new("RGB", (left + len(labels) * step, top + len(rows) * step), "white")
    draw = ImageDraw.Draw(canvas)
    for column, label in enumerate(labels):
        name = _fitting(spec.classes[label], font, size)
        draw.text((left + column * step + size // 2, top - MARGIN), name, "black", font, anchor="ms")
    for row, (about, images) in enumerate(rows):
        draw.multiline_text((MARGIN, top + row * step + size // 2), about, "black", font, anchor="lm")
        for column, pixels in enumerate(images):
            array = pixels.permute(1, 2, 0).numpy()
            tile = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).convert("RGB")
            tile = tile.resize((size, size), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + column * step, top + row * step))
    with atomic_write(path) as temporary:
        canvas.save(temporary, format="PNG")


def _start(spec: DatasetSpec, count: int) -> Tensor:
    """Return mid-grey with a little noise, (n, c, h, w), normalised; the same at each call."""
    grey = spec.normalise(torch.full((count, *spec.image_shape), 0.5))
    noise = torch.randn(grey.shape, generator=generator_for(0, "band pictures"))
    return clip(grey + START_NOISE * noise, spec)


def _target(spectrum: LayerSpectrum, features: Tensor, band: SpectralBand) -> _Target:
    """Filter the features (n, c, h, w) of images to one band."""
    basis, mean = spectrum.directions.to(features), spectrum.mean.to(features)[:, None, None]
    coordinates = _coordinates(features - mean, basis)
    weights = torch.zeros_like(coordinates[:, :, :1, :1])
    energies = {}
    for one in LIVING_BANDS:
        members = spectrum.members(one).to(features.device)
        least = _LEAST_ENERGY * float(spectrum.eigenvalues[spectrum.members(one)].sum()) * features[0, 0].numel()
        energies[one] = coordinates[:, members].square().flatten(1).sum(dim=1).clamp_min(least)
        weight = 1 if one == band else OTHERS_WEIGHT
        weights[:, members] = (weight / energies[one])[:, None, None, None]
    kept = spectrum.members(band).to(features.device)
    return _Target(basis, mean, coordinates * kept[:, None, None], weights, energies[band], kept)


def _coordinates(features: Tensor, basis: Tensor) -> Tensor:
    """Return the coordinates (n, c, h, w) of features (n, c, h, w) in a basis (c, c)."""
    return torch.einsum("nchw,cd->ndhw", features, basis)


def _row_label(band: BandImages) -> str:
    left = sum(band.unmatched.values()) / len(band.unmatched)
    return f"{band.band} band only\n({left:.0%} unmatched)"


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut a name to a width in pixels."""
    while font.getlength(name) > width:
        name = name.removesuffix("…")[:-1] + "…"
    return name
