"""What distilled sets hold of a real spectrum: for `unidd spectrum`, and beside every distillation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unidd_pl.bands import LIVING_BANDS, LayerMatch, LayerSpectrum
from unidd_pl.distilled import DistilledSet
from unidd_pl.files import atomic_write
from unidd_pl.moment_pass import gather_moments
from unidd_pl.responses import responses
from unidd_pl.spectral import Curriculum, Method
from unidd_pl.spectrum_figure import draw_spectrum, shown_layers
from unidd_pl.spectrum_results import Spectrum
from unidd_pl.statistics import Statistics
from unidd_pl.teachers import Teacher

FIGURE_FILE = "spectrum.png"
RESULTS_FILE = "spectrum.json"


def spectra_of(statistics: Statistics) -> tuple[LayerSpectrum, ...]:
    """Return the real spectrum of each layer."""
    pairs = zip(statistics.layers, statistics.moments, strict=True)
    return tuple(LayerSpectrum.of(layer, moments) for layer, moments in pairs)


def matches_of(
    sets: Mapping[str, DistilledSet],
    teacher: Teacher,
    statistics: Statistics,
    spectra: Sequence[LayerSpectrum],
    batch_size: int,
    device: torch.device,
) -> dict[str, tuple[LayerMatch, ...]]:
    """Return how far each set matches each layer, seen as the real images are: without augmentation."""
    matches = {}
    for name, one in sets.items():
        batches = zip(torch.split(one.images, batch_size), torch.split(one.labels, batch_size), strict=True)
        moments = gather_moments(teacher, batches, statistics.layers, statistics.signal, teacher.spec, device=device)
        matches[name] = tuple(real.compare(synthetic) for real, synthetic in zip(spectra, moments, strict=True))
    return matches


def write_coverage(
    distilled: DistilledSet,
    method: Method,
    beta: float,
    curriculum: Curriculum | None,
    teacher: Teacher,
    statistics: Statistics,
    folder: Path,
    *,
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Write figure and numbers of one set over the layers that its method matches; return the figures to track.

    Returns:
        By ``coverage/<quantity>/<band>``, the mean over layers, and ``coverage/<quantity>/<band>/<layer>``: the share
        of Φ's energy that is matched (``flc_matched``) and synthetic over real variance (``variance_ratio``).
    """
    spectra = spectra_of(statistics)
    filters = responses([method], beta, distilled.ipc, statistics.spectra, curriculum)
    matches = matches_of({method.name: distilled}, teacher, statistics, spectra, batch_size, device)
    spectrum = Spectrum(spectra, filters, matches)
    with atomic_write(folder / RESULTS_FILE) as temporary:
        temporary.write_text(json.dumps({"method": method.name, "beta": beta, **spectrum.to_dict()}) + "\n", "utf-8")
    title = f"{method.name} on {teacher.spec.name}, {teacher.name}, signal {statistics.signal}, β = {beta:g}"
    draw_spectrum(folder / FIGURE_FILE, title, spectra, filters, matches, shown_layers(len(spectra)))
    return _figures(statistics.layers, matches[method.name])


def _figures(layers: Sequence[str], matches: Sequence[LayerMatch]) -> dict[str, float]:
    figures: dict[str, float] = {}
    quantities: dict[str, list[Any]] = {
        "flc_matched": [one.flc_matched for one in matches],
        "variance_ratio": [one.variance_ratio for one in matches],
    }
    for quantity, by_layer in quantities.items():
        for band in LIVING_BANDS:
            values = {layer: one[band] for layer, one in zip(layers, by_layer, strict=True) if one[band] is not None}
            figures |= {f"coverage/{quantity}/{band}/{layer}": value for layer, value in values.items()}
            if values:
                figures[f"coverage/{quantity}/{band}"] = sum(values.values()) / len(values)
    return figures
