"""Figures of `unidd compare` in which a run is a line: β and losses over the iterations, filters over the spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidd_pl.plain_json import parse_json
from unidd_pl.study_figures import canvas, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and a brown.
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
_DASHES = ("-", "--", "-.", ":")
_LEGEND_LINE = 0.17  # inches
_CHARACTER = 0.075  # inches of a character of a legend, about

CURVES = ("beta", "loss/total", "loss/matching", "loss/cross_entropy")
"""Metrics that are drawn over the iterations."""

MAX_POINTS = 500
"""Points of a drawn curve: about as many as its panel has pixels."""


@dataclass(frozen=True)
class Curves:
    """What was recorded over the iterations of one distillation.

    Args:
        label: Its row.
        series: (step, value) by metric.
    """

    label: str
    series: Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class ResponseLine:
    """One filter over the real eigenvalues of a layer.

    Args:
        layer: The layer.
        name: The filter, with the round where it follows a curriculum.
        eigenvalues: λ, in the order of the values.
        values: f(λ) / max f.
    """

    layer: str
    name: str
    eigenvalues: tuple[float, ...]
    values: tuple[float, ...]


def draw_curves(path: Path, curves: Sequence[Curves]) -> bool:
    """Draw β and losses over the iterations; return False where none was recorded."""
    metrics = [one for one in CURVES if any(curve.series.get(one) for curve in curves)]
    if not metrics:
        return False
    width, height = 5.2, 4.0
    legend = _legend_size([curve.label for curve in curves], width * len(metrics))
    figure, axes = canvas(len(metrics), (width, height + legend[1]))
    for axis, metric in zip(axes, metrics, strict=True):
        for number, curve in enumerate(curves):
            points = [one for one in curve.series.get(metric, ()) if math.isfinite(one[1])]
            if points:
                style = _line_style(number, len(curves))
                steps = "steps-post" if metric == "beta" else "default"
                axis.plot(*zip(*points, strict=True), label=plain(curve.label), drawstyle=steps, **style)
        if all(value > 0 for curve in curves for _, value in curve.series.get(metric, ())):
            axis.set_yscale("log")
        axis.set_title("β" if metric == "beta" else metric)
        axis.set_xlabel("iteration")
        axis.grid(color="#DDDDDD")
    _shared_legend(figure, axes, legend[0])
    save(figure, path, "β and loss over the iterations, one run a row")
    return True


def read_responses(path: Path) -> list[ResponseLine]:
    """Read what spectrum.json says of the last layer: the fixed filters, and of a curriculum the two ends.

    Raises:
        ValueError: If the file is damaged.
    """
    content = parse_json(path.read_bytes(), path.name)
    try:
        layer, about = content["layers"][-1], content["responses"]
        lines = []
        for place in _shown_responses(about):
            if place < len(layer["responses"]):
                values = tuple(float(one) for one in layer["responses"][place])
                round_index = about[place]["round"]
                name = str(about[place]["filter"]) + ("" if round_index is None else f", round {round_index + 1}")
                eigenvalues = tuple(float(one) for one in layer["eigenvalues"][: len(values)])
                lines.append(ResponseLine(str(layer["layer"]), name, eigenvalues, values))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name}: got other JSON ({type(error).__name__}: {error}), expected what `unidd fit` wrote"
        ) from error
    return lines


def draw_responses(path: Path, responses: Mapping[str, Sequence[ResponseLine]]) -> bool:
    """Draw each filter over the real eigenvalues of the last layer; return False where no spectrum was recorded.

    Rows with the same filter over the same spectrum share a line.

    Args:
        path: The PNG file.
        responses: What `read_responses` found, by the label of the row.
    """
    panels: dict[str, dict[ResponseLine, list[str]]] = {}
    for label, lines in responses.items():
        for line in lines:
            panels.setdefault(line.layer, {}).setdefault(line, []).append(label)
    if not panels:
        return False
    width, height = 7.6, 4.6
    names = {line: _shared_name(labels, line.name) for panel in panels.values() for line, labels in panel.items()}
    legend = _legend_size(list(names.values()), width * len(panels))
    figure, axes = canvas(len(panels), (width, height + legend[1]))
    for axis, (layer, panel) in zip(axes, panels.items(), strict=True):
        for line in panel:
            style = _line_style(list(names).index(line), len(names))
            axis.plot(line.eigenvalues, line.values, label=plain(names[line]), marker=".", markersize=3, **style)
        axis.set_xscale("log")
        axis.invert_xaxis()
        axis.set_title(plain(f"inputs of {layer}"))
        axis.set_xlabel("λ, eigenvalue of the real FFC (large = low frequency)")
        axis.set_ylabel("filter response f(λ) / max f")
        axis.grid(color="#DDDDDD")
    _shared_legend(figure, axes, legend[0])
    save(figure, path, "Filter responses over the real spectrum")
    return True


def _shown_responses(about: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the fixed filters, and the first and last round of those that follow a curriculum."""
    rounds = [place for place, one in enumerate(about) if one["round"] is not None]
    fixed = [place for place, one in enumerate(about) if one["round"] is None]
    return [*fixed, *dict.fromkeys([*rounds[:1], *rounds[-1:]])]


def _shared_name(labels: Sequence[str], name: str) -> str:
    more = f" and {len(labels) - 2} more" if len(labels) > 3 else ""
    shown = labels[:2] if more else labels
    return f"{'; '.join(shown)}{more}: {name}"


def _line_style(number: int, count: int) -> dict[str, Any]:
    """Return the style of a line; the first are wider, so that lines over each other are all seen."""
    return {
        "color": _LINES[number % len(_LINES)],
        "linestyle": _DASHES[number // len(_LINES) % len(_DASHES)],
        "linewidth": 1.2 + 1.6 * (1 - number / count),
    }


def _legend_size(labels: Sequence[str], width: float) -> tuple[int, float]:
    """Return columns and height, in inches, of a legend below panels of a width in inches."""
    longest = max((len(label) for label in labels), default=0) * _CHARACTER + 0.6
    columns = max(1, min(6, int(width / longest)))
    return columns, _LEGEND_LINE * -(-len(labels) // columns) + 0.2


def _shared_legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    known: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(
        handles=list(known.values()), labels=list(known), loc="outside lower center", ncols=columns, frameon=False,
        fontsize=8,
    )  # fmt: skip
