"""Figures of `unidd compare`: PNG files that can be told apart with every common colour blindness."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidd_pl.files import atomic_write
from unidd_pl.rows import PERCENT
from unidd_pl.study import Facet, StudyRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette.
BANDS = {"low": "#0072B2", "high": "#D55E00", "low-to-high": "#009E73"}
_OTHER_BAND = "#555555"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
_DASHES = ("-", "--", "-.", ":")
_DPI = 110
CURVES = ("beta", "loss/total", "loss/matching", "loss/cross_entropy")
"""Metrics that are drawn over the iterations."""

_MAX_POINTS = 500  # of a drawn curve
_ROW = 0.32  # inches


@dataclass(frozen=True)
class Curves:
    """What was recorded over the iterations of one distillation.

    Args:
        label: Its row.
        series: (step, value) by metric.
    """

    label: str
    series: Mapping[str, Sequence[tuple[int, float]]]


def plain(text: str) -> str:
    """Return a name as matplotlib draws it: a dollar is a dollar, not the start of a formula."""
    return text.replace("$", r"\$")


def draw_accuracy(path: Path, facet: Facet) -> None:
    """Draw accuracy by method, a panel for each number of images per class: mean ± deviation, and every student."""
    groups = _by_ipc(facet)
    height = max(len(rows) for rows in groups.values()) * _ROW + 1.6
    figure, axes = _canvas(len(groups), (6.4, max(3.0, height)), sharex=False)
    for axis, (ipc, rows) in zip(axes, groups.items(), strict=True):
        made = [row for row in rows if not row.is_real][::-1]
        for place, row in enumerate(made):
            _point(axis, row, place, horizontal=True)
        for row in (row for row in rows if row.is_real):
            _real_line(axis.axvline, axis.axvspan, row)
        axis.set_yticks(range(len(made)), [plain(_name(row, facet)) for row in made], fontsize=9)
        axis.set_ylim(-0.7, len(made) - 0.3)
        axis.set_xlabel("top-1, % (tail mean; bar: ± std, dots: students)")
        axis.set_title(f"{ipc} images per class")
        axis.grid(axis="x", color="#DDDDDD")
    _band_legend(figure, facet)
    _save(figure, path, f"Accuracy by method\n{facet.title}")


def draw_bands(path: Path, facet: Facet) -> None:
    """Draw low- against high-frequency methods and curricula, side by side, a panel for each IPC."""
    groups = _by_ipc(facet)
    figure, axes = _canvas(len(groups), (6.4, 4.6), sharey=False)
    bands = [*BANDS, *sorted({row.first.band for row in facet.rows if not row.is_real} - BANDS.keys())]
    for axis, (ipc, rows) in zip(axes, groups.items(), strict=True):
        for column, band in enumerate(bands):
            members = [row for row in rows if row.first.band == band and not row.is_real]
            for number, row in enumerate(members):
                x = column + (number - (len(members) - 1) / 2) * 0.8 / max(1, len(members))
                _point(axis, row, x, horizontal=False)
                if len(members) <= 6:
                    axis.annotate(plain(row.label), (x, PERCENT * row.accuracy[0]), (4, 4), textcoords="offset points",
                                  fontsize=8, rotation=35)  # fmt: skip
            if members:
                mean = sum(row.accuracy[0] for row in members) / len(members)
                axis.hlines(PERCENT * mean, column - 0.42, column + 0.42, color=_colour(band), alpha=0.5, linewidth=6)
        for row in (row for row in rows if row.is_real):
            _real_line(axis.axhline, axis.axhspan, row)
        axis.set_xticks(range(len(bands)), [_band_name(band) for band in bands])
        axis.set_xlim(-0.6, len(bands) - 0.3)
        axis.set_ylabel("top-1, %")
        axis.set_title(f"{ipc} images per class (wide bar: mean of the band's methods)")
        axis.grid(axis="y", color="#DDDDDD")
    _band_legend(figure, facet)
    _save(figure, path, f"Low against high frequency against curriculum\n{facet.title}")


def draw_cost(path: Path, facet: Facet) -> bool:
    """Draw accuracy against compute and against bytes; return False where no run recorded either."""
    axes_of = {
        "images_seen": "images through the teacher",
        "seconds": "seconds of distillation",
        "bytes": "bytes of the set",
    }
    costs = {what: [row for row in facet.rows if row.mean_of(what)] for what in axes_of}
    if not any(costs.values()):
        return False
    figure, axes = _canvas(len(axes_of), (5.4, 4.4))
    for axis, (what, rows) in zip(axes, costs.items(), strict=True):
        for row in rows:
            x = row.mean_of(what)
            _point(axis, row, float(x or math.nan), horizontal=False)
            axis.annotate(
                plain(row.label), (x, PERCENT * row.accuracy[0]), (4, 4), textcoords="offset points", fontsize=7
            )
        axis.set_xscale("log")
        axis.margins(x=0.2)
        axis.set_xlabel(axes_of[what])
        axis.set_ylabel("top-1, %")
        axis.grid(color="#DDDDDD")
    _band_legend(figure, facet)
    _save(figure, path, f"Accuracy against compute and bytes\n{facet.title}")
    return True


def draw_curves(path: Path, curves: Sequence[Curves]) -> bool:
    """Draw β and losses over the iterations; return False where none was recorded."""
    metrics = [one for one in CURVES if any(curve.series.get(one) for curve in curves)]
    if not metrics:
        return False
    figure, axes = _canvas(len(metrics), (5.2, 4.2))
    for axis, metric in zip(axes, metrics, strict=True):
        for number, curve in enumerate(curves):
            points = _thinned([one for one in curve.series.get(metric, ()) if math.isfinite(one[1])])
            if points:
                style = _line_style(number)
                steps = "steps-post" if metric == "beta" else "default"
                axis.plot(*zip(*points, strict=True), label=plain(curve.label), drawstyle=steps, **style)
        if all(value > 0 for curve in curves for _, value in curve.series.get(metric, ())):
            axis.set_yscale("log")
        axis.set_title("β" if metric == "beta" else metric)
        axis.set_xlabel("iteration")
        axis.grid(color="#DDDDDD")
    _shared_legend(figure, axes)
    _save(figure, path, "β and loss over the iterations, one run a row")
    return True


def draw_responses(path: Path, spectra: Mapping[str, Path]) -> bool:
    """Draw each filter over the real eigenvalues of the last layer; return False where no spectrum was recorded.

    Args:
        path: The PNG file.
        spectra: The file spectrum.json of a run by the label of its row.
    """
    panels: dict[str, list[tuple[str, list[float], list[float]]]] = {}
    for label, file in spectra.items():
        content = json.loads(file.read_text("utf-8"))
        layer = content["layers"][-1]
        about = content["responses"]
        for place in _shown_responses(about):
            if place < len(layer["responses"]):
                values = layer["responses"][place]
                round_index = about[place]["round"]
                name = f"{label}: {about[place]['filter']}" + (
                    "" if round_index is None else f", round {round_index + 1}"
                )
                panels.setdefault(layer["layer"], []).append((name, layer["eigenvalues"][: len(values)], values))
    if not panels:
        return False
    figure, axes = _canvas(len(panels), (7.6, 5.2))
    for axis, (layer_name, lines) in zip(axes, panels.items(), strict=True):
        for number, (name, eigenvalues, values) in enumerate(lines):
            style = _line_style(number)
            axis.plot(eigenvalues, values, label=plain(name), marker=".", markersize=3, **style)
        axis.set_xscale("log")
        axis.invert_xaxis()
        axis.set_title(plain(f"inputs of {layer_name}"))
        axis.set_xlabel("λ, eigenvalue of the real FFC (large = low frequency)")
        axis.set_ylabel("filter response f(λ) / max f")
        axis.legend(fontsize=7, frameon=False)
        axis.grid(color="#DDDDDD")
    _save(figure, path, "Filter responses over the real spectrum")
    return True


def _shown_responses(about: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the fixed filters, and the first and last round of those that follow a curriculum."""
    rounds = [place for place, one in enumerate(about) if one["round"] is not None]
    fixed = [place for place, one in enumerate(about) if one["round"] is None]
    return [*fixed, *dict.fromkeys([*rounds[:1], *rounds[-1:]])]


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    stride = -(-len(points) // _MAX_POINTS) or 1
    return points[::stride]


def _by_ipc(facet: Facet) -> dict[int, list[StudyRow]]:
    groups: dict[int, list[StudyRow]] = {}
    for row in facet.rows:
        groups.setdefault(row.first.ipc, []).append(row)
    return groups


def _name(row: StudyRow, facet: Facet) -> str:
    networks = {one.first.network for one in facet.rows}
    return row.label if len(networks) == 1 else f"{row.label} ({row.first.network})"


def _line_style(number: int) -> dict[str, Any]:
    return {
        "color": _LINES[number % len(_LINES)],
        "linestyle": _DASHES[number // len(_LINES) % len(_DASHES)],
        "linewidth": 1.4,
    }


def _colour(band: str) -> str:
    return BANDS.get(band, _OTHER_BAND)


def _band_name(band: str) -> str:
    return {"low-to-high": "curriculum\nlow-to-high"}.get(band, f"{band} frequency" if band in BANDS else band)


def _point(axis: Axes, row: StudyRow, place: float, *, horizontal: bool) -> None:
    mean, deviation = row.accuracy
    mean, spread = PERCENT * mean, None if deviation is None else PERCENT * deviation
    style: dict[str, Any] = {"color": _colour(row.first.band), "capsize": 3, "marker": "o", "markersize": 6}
    dots = [PERCENT * value for value in row.values]
    places = [place] * len(dots)
    if horizontal:
        axis.errorbar(mean, place, xerr=spread, **style)
        axis.plot(dots, places, ".", color="black", markersize=3, alpha=0.6)
    else:
        axis.errorbar(place, mean, yerr=spread, **style)
        axis.plot(places, dots, ".", color="black", markersize=3, alpha=0.6)


def _real_line(line: Callable[..., Any], span: Callable[..., Any], row: StudyRow) -> None:
    mean, spread = row.accuracy
    line(PERCENT * mean, color="black", linestyle="--", linewidth=1)
    if spread is not None:
        span(PERCENT * (mean - spread), PERCENT * (mean + spread), color="black", alpha=0.07, linewidth=0)


def _canvas(columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second, which other commands need not wait

    figure = Figure(figsize=(size[0] * columns, size[1]), dpi=_DPI, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _band_legend(figure: Figure, facet: Facet) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415  as above

    present = {row.first.band for row in facet.rows if not row.is_real}
    handles = [Line2D([], [], color=_colour(one), marker="o", label=_band_name(one).replace("\n", ": ")) for one in
               sorted(present, key=list(BANDS).index if present <= BANDS.keys() else str)]  # fmt: skip
    if any(row.is_real for row in facet.rows):
        handles.append(Line2D([], [], color="black", linestyle="--", label="real images, same number"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def _shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    known: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    columns = max(1, min(6, 2 * len(axes)))
    figure.legend(
        handles=list(known.values()),
        labels=list(known),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
    )


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(plain(title), fontsize=13)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
