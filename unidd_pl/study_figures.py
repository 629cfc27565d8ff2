"""Figures of `unidd compare`: PNG files that can be told apart with every common colour blindness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
_DPI = 110
_COSTS = {
    "images_seen": "images through the teacher",
    "seconds": "seconds of distillation",
    "bytes": "bytes of the set",
}
_ROW = 0.32  # inches
_MAX_NAMED = 12  # rows of a panel that all have their name beside their point
_WIDE = 5  # ratio of costs from which on their axis is logarithmic


def plain(text: str) -> str:
    """Return a name as matplotlib draws it: a dollar is a dollar, not the start of a formula."""
    return text.replace("$", r"\$")


def draw_accuracy(path: Path, facet: Facet) -> None:
    """Draw accuracy by method, a panel for each number of images per class: mean ± deviation, and every student."""
    groups = _by_ipc(facet)
    height = max(len(rows) for rows in groups.values()) * _ROW + 1.6
    figure, axes = canvas(len(groups), (6.4, max(3.0, height)), sharex=False)
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
    save(figure, path, f"Accuracy by method\n{facet.title}")


def draw_bands(path: Path, facet: Facet) -> None:
    """Draw low- against high-frequency methods and curricula, side by side, a panel for each IPC."""
    groups = _by_ipc(facet)
    figure, axes = canvas(len(groups), (6.4, 4.6), sharey=False)
    present = {row.first.band for row in facet.rows if not row.is_real}
    bands = [*(one for one in BANDS if one in present), *sorted(present - BANDS.keys())]
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
        axis.set_xlim(-0.6, len(bands) - 0.4)
        axis.set_ylabel("top-1, %")
        axis.set_title(f"{ipc} images per class (wide bar: mean of the band's rows)", fontsize=11)
        axis.grid(axis="y", color="#DDDDDD")
    _band_legend(figure, facet)
    save(figure, path, f"Low against high frequency against curriculum\n{facet.title}")


def draw_cost(path: Path, facet: Facet) -> bool:
    """Draw accuracy against compute and against bytes; return False where no run recorded either."""
    costs = {what: _costs(facet, what) for what in _COSTS}
    costs = {what: known for what, known in costs.items() if known}
    if not costs:
        return False
    figure, axes = canvas(len(costs), (5.4, 4.4))
    for axis, (what, known) in zip(axes, costs.items(), strict=True):
        for cost, row in known:
            if len(known) <= _MAX_NAMED:
                _point(axis, row, cost, horizontal=False)
            else:
                axis.plot(cost, PERCENT * row.accuracy[0], "o", color=_colour(row.first.band), markersize=5, alpha=0.7)
        for number, (cost, row) in enumerate(_named(known)):
            # By turns to the right and to the left: names of rows that cost the same are spread over two columns.
            offset, side = ((5, 3), "left") if number % 2 == 0 else ((-5, 3), "right")
            axis.annotate(
                plain(row.label), (cost, PERCENT * row.accuracy[0]), offset, textcoords="offset points", ha=side,
                fontsize=7,
            )  # fmt: skip
        _scale(axis, known[0][0], known[-1][0])
        axis.set_xlabel(_COSTS[what])
        axis.set_ylabel("top-1, %")
        axis.grid(color="#DDDDDD")
    _band_legend(figure, facet, real=False)
    save(figure, path, f"Accuracy against compute and bytes\n{facet.title}")
    return True


def _scale(axis: Axes, least: float, most: float) -> None:
    """Scale an axis of costs: what differs by a few percent is to look alike, and what differs much to be apart."""
    if most > _WIDE * least:
        axis.set_xscale("log")
        axis.margins(x=0.3)
        return
    margin = max(0.35 * (most - least), 0.1 * most)
    axis.set_xlim(least - margin, most + margin)
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter("{x:,.0f}" if most > 20 else "{x:g}")


def _costs(facet: Facet, what: str) -> list[tuple[float, StudyRow]]:
    """Return the rows of which a cost is known, with it, the cheapest first and of those the most accurate."""
    known = [(cost, row) for row in facet.rows if (cost := row.mean_of(what))]
    return sorted(known, key=lambda one: (one[0], -one[1].accuracy[0]))


def _named(known: Sequence[tuple[float, StudyRow]]) -> list[tuple[float, StudyRow]]:
    """Return the rows that have their name beside their point.

    Names of all would lie over each other where there are many: then those of which none is as cheap and better.
    """
    if len(known) <= _MAX_NAMED:
        return list(known)
    front: list[tuple[float, StudyRow]] = []
    for cost, row in known:
        if not front or row.accuracy[0] > front[-1][1].accuracy[0]:
            front.append((cost, row))
    stride = -(-len(front) // (_MAX_NAMED // 2))
    return front[::-1][::stride]  # the best is among them


def _by_ipc(facet: Facet) -> dict[int, list[StudyRow]]:
    groups: dict[int, list[StudyRow]] = {}
    for row in facet.rows:
        groups.setdefault(row.first.ipc, []).append(row)
    return groups


def _name(row: StudyRow, facet: Facet) -> str:
    networks = {one.first.network for one in facet.rows}
    return row.label if len(networks) == 1 else f"{row.label} ({row.first.network})"


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


def canvas(columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of panels beside each other, each of this width and height in inches, and the panels."""
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second, which other commands need not wait

    figure = Figure(figsize=(size[0] * columns, size[1]), dpi=_DPI, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _band_legend(figure: Figure, facet: Facet, *, real: bool = True) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415  as above

    present = {row.first.band for row in facet.rows if not row.is_real}
    handles = [Line2D([], [], color=_colour(one), marker="o", label=_band_name(one).replace("\n", ": ")) for one in
               sorted(present, key=list(BANDS).index if present <= BANDS.keys() else str)]  # fmt: skip
    if real and any(row.is_real for row in facet.rows):
        handles.append(Line2D([], [], color="black", linestyle="--", label="real images, same number"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def save(figure: Figure, path: Path, title: str) -> None:
    """Write a figure as PNG."""
    figure.suptitle(plain(title), fontsize=13)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
