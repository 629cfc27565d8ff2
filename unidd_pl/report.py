"""The report of `unidd compare` as text: one HTML page without outside resources, a Markdown table, a CSV file."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from unidd_pl.rows import plus_minus
from unidd_pl.study import Facet, Study, StudyRow
from unidd_pl.tables import markdown_table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; overflow-wrap: anywhere; }
body { max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } th, td { padding: .3em .8em; text-align: left; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } img { max-width: 100%; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1em; }
figure { margin: 0; } figcaption { font-weight: 600; } .note { color: #666; } code { font-size: 85%; }
.low::before, .high::before, .low-to-high::before { content: "\\25CF"; padding-right: .4em; }
.low::before { color: #0072B2; } .high::before { color: #D55E00; } .low-to-high::before { color: #009E73; }
.wide { overflow-x: auto; } th { overflow-wrap: normal; } td { overflow-wrap: break-word; max-width: 24em; }
"""
_HEAD = (
    "method",
    "band",
    "IPC",
    "student",
    "sets",
    "students",
    "top-1, tail mean",
    "seconds",
    "bytes",
    "distillation runs",
)
_NUMBERS = {"IPC", "sets", "students", "top-1, tail mean", "seconds", "bytes"}


@dataclass
class Section:
    """A table with its figures.

    Args:
        facet: The rows.
        figures: PNG files by what they show.
        pictures: PNG files of distilled images by the label of their row.
        notes: What a reader has to know about what is left out.
    """

    facet: Facet
    figures: dict[str, Path] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def table(facet: Facet) -> tuple[Sequence[str], list[list[str]]]:
    """Return head and rows of a facet's table."""
    return _HEAD, [_cells(row) for row in facet.rows]


def _cells(row: StudyRow) -> list[str]:
    seconds, size = row.mean_of("seconds"), row.mean_of("bytes")
    made = [one.distillation.run_id[:8] for one in row.entries if one.distillation is not None]
    return [
        row.label,
        row.first.band,
        str(row.first.ipc),
        row.first.network,
        "–" if row.is_real else str(len(row.entries)),
        str(len(row.values)),
        plus_minus(row.accuracy),
        "–" if seconds is None else f"{seconds:.1f}",
        "–" if size is None else f"{size:,.0f}",
        " ".join(made) or "–",
    ]


def markdown(study: Study) -> str:
    """Return all tables as Markdown."""
    parts = [
        f"{_flat(one.title)}: top-1 on the test images, %\n\n{markdown_table(*_flat_table(one))}"
        for one in study.facets
    ]
    if study.unscored:
        lines = [
            f"- {_flat(run.name)} (`{run.run_id}`, {run.tags.get('stage')}, {run.status})" for run in study.unscored
        ]
        parts.append("Without an accuracy, in no table:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _flat(text: str) -> str:
    """Return text on one line, in which Markdown reads no HTML."""
    return escape(" ".join(text.split()), quote=False)


def _flat_table(facet: Facet) -> tuple[Sequence[str], list[list[str]]]:
    head, rows = table(facet)
    return head, [[_flat(cell) for cell in row] for row in rows]


def students_csv(study: Study) -> str:
    """Return a line for each student: accuracies in [0, 1], and the runs behind them."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(
        ["dataset", "protocol", "method", "label", "band", "ipc", "network", "distillation_seed", "student_seed",
         "tail_mean", "last_epoch", "seconds", "bytes", "images_seen", "distilled_set", "teacher",
         "distillation_run", "evaluation_run"]
    )  # fmt: skip
    for facet in study.facets:
        for row in facet.rows:
            for one in row.entries:
                tags, made = one.evaluation.tags, one.distillation
                costs = [made.metrics.get(what, "") if made else "" for what in ("seconds", "bytes", "images_seen")]
                for seed, value in sorted(one.students.items()):
                    last = one.evaluation.metrics.get(f"last_epoch/{one.network}/seed {seed}", "")
                    writer.writerow(
                        [facet.dataset, facet.protocol, one.method, row.label, one.band, one.ipc, one.network,
                         tags.get("seed", ""), seed, value, last, *costs, tags.get("distilled_set", ""),
                         tags.get("teacher", ""), made.run_id if made else "", one.evaluation.run_id]
                    )  # fmt: skip
    return lines.getvalue()


def html(
    title: str, study: Study, sections: Sequence[Section], shared: Mapping[str, Path], damaged: Sequence[str] = ()
) -> str:
    """Return the page: every name escaped, every picture within it.

    Args:
        title: Its title.
        study: What is shown.
        sections: A section for each table.
        shared: PNG files about all rows, by what they show.
        damaged: What could not be shown, and why.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        parts += _section(section)
    parts += [_figure(what, path) for what, path in shared.items()]
    if study.unscored:
        items = "".join(
            f"<li>{escape(run.name)} <code>{escape(run.run_id)}</code>, {escape(run.tags.get('stage', ''))}, "
            f"{escape(run.status)}</li>"
            for run in study.unscored
        )
        parts.append(f"<h2>Without an accuracy</h2><p>Asked for, and in no table above.</p><ul>{items}</ul>")
    if damaged:
        items = "".join(f"<li>{escape(one)}</li>" for one in damaged)
        parts.append(f"<h2>Not shown</h2><ul>{items}</ul>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _section(section: Section) -> list[str]:
    parts = [f"<h2>{escape(section.facet.title)}</h2>", _html_table(section.facet)]
    parts.append(
        '<p class="note">Top-1 on the test images in %, mean ± sample standard deviation over all students of all '
        "sets of a row. The same number of real images, drawn anew for each seed, stands beside where evaluated.</p>"
    )
    parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
    parts += [_figure(what, path) for what, path in section.figures.items()]
    if section.pictures:
        tiles = "".join(
            f"<figure><figcaption>{escape(label)}</figcaption>{_image(label, path)}</figure>"
            for label, path in section.pictures.items()
        )
        parts.append(f'<h3>Distilled images</h3><div class="grid">{tiles}</div>')
    return parts


def _html_table(facet: Facet) -> str:
    head, rows = table(facet)
    top = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = ""
    for row, source in zip(rows, facet.rows, strict=True):
        band = source.first.band if source.first.band in ("low", "high", "low-to-high") else ""
        cells = "".join(
            f'<td class="{"number" if name in _NUMBERS else band if name == "band" else ""}">{escape(cell)}</td>'
            for name, cell in zip(head, row, strict=True)
        )
        body += f"<tr>{cells}</tr>\n"
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _figure(what: str, path: Path) -> str:
    return f"<h3>{escape(what)}</h3>{_image(what, path)}"


def _image(what: str, path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(what)}" src="data:image/png;base64,{content}">'
