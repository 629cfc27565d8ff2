"""The figure of `unidd spectrum`: what lies where in the spectrum, what the methods keep, what a set matches.

Legend: m eigenvalues λ, from large (low frequency, drawn at the left) to small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unidd_pl.bands import LIVING_BANDS, LayerMatch, LayerSpectrum, SpectralBand
from unidd_pl.files import atomic_write
from unidd_pl.responses import Response

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Matches = Mapping[str, Sequence[LayerMatch]]
"""How far each distilled set, by name, matches each layer."""

# Okabe and Ito's palette, told apart with every common colour blindness.
BAND_COLOURS: dict[SpectralBand, str] = {"low": "#0072B2", "middle": "#777777", "high": "#D55E00"}
_FILTER_STYLES = (("#000000", "--"), ("#0072B2", "-"), ("#009E73", "-"), ("#009E73", "--"), ("#CC79A7", "-."))
_SET_STYLES = (("#56B4E9", "o"), ("#E69F00", "^"), ("#009E73", "s"), ("#CC79A7", "D"))
_SWEEP, _SWEEP_FROM, _SWEEP_TO = "YlOrBr", 0.35, 1.0  # colour map of the rounds: from light to dark

_ALL_SHOWN = 4  # layers; of more, the figure shows three
_GRID_POINTS = 200  # of a response curve
_SHADE = 0.13  # opacity of a band
_LEAST_SHARE = -1.0  # where the axis of matched shares ends; longer bars are cut, with their value beside them
_WORTH_AN_ARROW = 0.15  # of the axis; where the first and the last round differ by less, an arrow would hide them
_WIDTH, _ROW_HEIGHT, _FRAME_HEIGHT = 17.0, 3.7, 2.4  # inches
_DPI = 100
_X_LABEL = "λ, eigenvalue of the real FFC (large = low frequency)"


def shown_layers(count: int) -> list[int]:
    """Return the positions of the layers to draw: all of a few, the first, the middle and the last of many."""
    return list(range(count)) if count <= _ALL_SHOWN else [0, count // 2, count - 1]


def draw_spectrum(
    path: Path,
    title: str,
    spectra: Sequence[LayerSpectrum],
    responses: Sequence[Response],
    matches: Matches,
    shown: Sequence[int],
) -> None:
    """Write the figure as PNG: a row a layer, with variances, filter responses and shares of Φ by band.

    Args:
        path: The file, replaced if it exists.
        title: What the figure is of.
        spectra: Real spectra of all layers.
        responses: Filters of the methods, over all layers.
        matches: How far each distilled set matches each layer; may be empty.
        shown: Positions of the layers to draw.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second, which other commands need not wait

    height = len(shown) * _ROW_HEIGHT + _FRAME_HEIGHT
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontsize=14)
    grid = figure.subplots(len(shown), 3, squeeze=False, width_ratios=(1.0, 1.3, 0.8))
    for row, (axes, index) in enumerate(zip(grid, shown, strict=True)):
        spectrum = spectra[index]
        _draw_variances(axes[0], spectrum, {name: layers[index] for name, layers in matches.items()})
        _draw_responses(axes[1], spectrum, index, responses)
        _draw_shares(axes[2], spectrum, {name: layers[index] for name, layers in matches.items()})
        if row == len(shown) - 1:
            axes[0].set_xlabel(_X_LABEL)
            axes[1].set_xlabel(_X_LABEL)
    heads = ("variance along each real eigen-direction", "filter response f(λ) / max f", _share_head(matches))
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(f"{head}\n\n{axes.get_title(loc='center')}", fontsize=12)
    _legends(figure, grid[0])
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_variances(axes: Axes, spectrum: LayerSpectrum, matches: Mapping[str, LayerMatch]) -> None:
    """Plot the variance along each real direction: the real one on the diagonal, each set's beside it."""
    axes.set_ylabel(f"{spectrum.layer}\n{_directions(spectrum)}", fontsize=10)
    if not _spectral_axis(axes, spectrum):
        return
    alive = spectrum.alive
    axes.plot(alive, alive, color="black", linewidth=1, marker=".", markersize=5, label="real")
    for (name, match), (colour, marker) in zip(matches.items(), cycle(_SET_STYLES), strict=False):
        variances = match.variances[: len(alive)]
        axes.plot(
            alive, variances.where(variances > 0, math.nan), color=colour, marker=marker, markersize=4,
            linestyle="none", alpha=0.8, label=name,
        )  # fmt: skip
    axes.set_yscale("log")


def _draw_responses(axes: Axes, spectrum: LayerSpectrum, layer: int, responses: Sequence[Response]) -> None:
    """Plot what each filter keeps; rounds of a curriculum from light to dark."""
    if not _spectral_axis(axes, spectrum):
        return
    from matplotlib import colormaps  # noqa: PLC0415  as above

    alive = spectrum.alive.log10()
    grid = torch.logspace(float(alive[0]), float(alive[-1]), _GRID_POINTS, dtype=torch.float64)
    rounds = [one for one in responses if one.round_index is not None]
    for number, one in enumerate(rounds):
        place = number / max(1, len(rounds) - 1)
        colour = colormaps[_SWEEP](_SWEEP_FROM + (_SWEEP_TO - _SWEEP_FROM) * place)
        label = _label(one) if number in (0, len(rounds) - 1) else None
        axes.plot(grid, one.at(grid, layer), color=colour, linewidth=2, label=label)
    fixed = [one for one in responses if one.round_index is None]
    for one, (ink, line) in zip(fixed, cycle(_FILTER_STYLES), strict=False):
        axes.plot(grid, one.at(grid, layer), color=ink, linestyle=line, linewidth=2, label=_label(one))
    if rounds:
        _draw_sweep(axes, grid, rounds[0].at(grid, layer), rounds[-1].at(grid, layer))
    axes.set_ylim(0, 1.05)


def _draw_sweep(axes: Axes, grid: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> None:
    """Draw an arrow from the first to the last round where they differ most."""
    widest = int((first - last).abs().argmax())
    if float((first - last).abs()[widest]) < _WORTH_AN_ARROW:
        return
    x, start, end = float(grid[widest]), float(first[widest]), float(last[widest])
    axes.annotate("", (x, end), (x, start), arrowprops={"arrowstyle": "-|>", "color": "#662506", "lw": 2})
    axes.annotate(
        "rounds", (x, (start + end) / 2), (7, 0), textcoords="offset points", color="#662506", fontsize=10, va="center",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )  # fmt: skip


def _draw_shares(axes: Axes, spectrum: LayerSpectrum, matches: Mapping[str, LayerMatch]) -> None:
    """Plot, by band, how much of Φ's energy each set matches; without sets, how much there is."""
    shares = spectrum.flc_share()
    least = 0.0
    for place, band in enumerate(LIVING_BANDS):
        axes.axvspan(place - 0.5, place + 0.5, color=BAND_COLOURS[band], alpha=_SHADE, linewidth=0)
        bars = {name: match.flc_matched[band] for name, match in matches.items()} or {"": shares[band]}
        colours = cycle([colour for colour, _ in _SET_STYLES] if matches else [BAND_COLOURS[band]])
        width = 0.8 / len(bars)
        for number, (value, colour) in enumerate(zip(bars.values(), colours, strict=False)):
            x = place - 0.4 + (number + 0.5) * width
            if value is not None:
                axes.bar(x, max(value, _LEAST_SHARE), width * 0.9, color=colour)
                least = min(least, max(value, _LEAST_SHARE))
            _annotate_bar(axes, x, value)
    ticks = [f"{band}\nΦ: {_percent(shares[band])}" for band in LIVING_BANDS]
    axes.set_xticks(range(len(LIVING_BANDS)), ticks)
    axes.set_xlim(-0.5, len(LIVING_BANDS) - 0.5)
    axes.set_ylim(least * 1.25, 1.15)
    axes.axhline(0, color="black", linewidth=0.8)


def _annotate_bar(axes: Axes, x: float, value: float | None) -> None:
    """Write a bar's value above it, below it where it is negative; n/a where there is none."""
    height = 0.0 if value is None else max(value, _LEAST_SHARE)
    up = height >= 0
    text = "n/a" if value is None else f"{value:.2f}" if value > -10 else f"{value:.0f}"
    axes.annotate(
        text, (x, height), (0, 2 if up else -2), textcoords="offset points",
        ha="center", va="bottom" if up else "top", fontsize=9,
    )  # fmt: skip


def _spectral_axis(axes: Axes, spectrum: LayerSpectrum) -> bool:
    """Make x the logarithm of λ, low frequency at the left, with the bands shaded; False where all is dead."""
    alive = spectrum.alive
    if len(alive) == 0:
        axes.text(0.5, 0.5, "all directions are dead", ha="center", va="center", transform=axes.transAxes)
        return False
    axes.set_xscale("log")
    edges = _edges(spectrum)
    for band, (left, right) in edges.items():
        axes.axvspan(right, left, color=BAND_COLOURS[band], alpha=_SHADE, linewidth=0)
        # At the outer edges, so that names of narrow bands do not meet.
        x, alignment = {"low": (left, "left"), "high": (right, "right")}.get(band, (math.sqrt(left * right), "center"))
        axes.text(
            x, 1.01, band, color=BAND_COLOURS[band], transform=axes.get_xaxis_transform(),
            ha=alignment, va="bottom", fontsize=10, fontweight="bold",
        )  # fmt: skip
    margin = (float(alive[0]) / float(alive[-1])) ** 0.02 * 1.02
    axes.set_xlim(float(alive[0]) * margin, float(alive[-1]) / margin)  # inverted
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    return True


def _edges(spectrum: LayerSpectrum) -> dict[SpectralBand, tuple[float, float]]:
    """Return the largest and smallest λ of each band that has directions, meeting halfway between bands."""
    held = [(band, spectrum.eigenvalues[spectrum.members(band)]) for band in LIVING_BANDS if spectrum.count(band)]
    edges = {}
    left = float(held[0][1][0])
    for (band, values), following in zip(held, [*held[1:], None], strict=True):
        smallest = float(values[-1])
        right = smallest if following is None else math.sqrt(smallest * float(following[1][0]))
        edges[band] = (left, right)
        left = right
    return edges


def _legends(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend for real and synthetic variances, one for the filters, below the panels."""
    style: dict[str, Any] = {"fontsize": 11, "frameon": False}
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", **style)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower right", ncols=2, **style)


def _directions(spectrum: LayerSpectrum) -> str:
    counts = ", ".join(f"{spectrum.count(band)} {band}" for band in LIVING_BANDS)
    dead = spectrum.count("dead")
    return f"{spectrum.channels} channels: {counts}{f', {dead} dead' if dead else ''}"


def _label(response: Response) -> str:
    betas = sorted(set(response.betas))
    beta = "" if not betas else f", β = {betas[0]:.2g}" if len(betas) == 1 else ", β by layer"
    turn = "" if response.round_index is None else f" round {response.round_index + 1}"
    return f"{', '.join(response.users)}{turn}: {response.name}{beta}"


def _share_head(matches: Matches) -> str:
    return "share of Φ's energy that is matched" if matches else "share of Φ's energy"


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f} %"
