"""`unidd compare`: runs of an MLflow experiment beside each other, as a page, figures and tables."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from PIL import Image

from unidd_pl.console import say
from unidd_pl.files import atomic_write, check_writable
from unidd_pl.image_files import open_image
from unidd_pl.report import Section, html, markdown, students_csv, table
from unidd_pl.study import Facet, Study, StudyRow, read_study
from unidd_pl.study_curves import CURVES, MAX_POINTS, Curves, draw_curves, draw_responses, read_responses
from unidd_pl.study_figures import draw_accuracy, draw_bands, draw_cost
from unidd_pl.tables import text_table
from unidd_pl.tracking import Store, Tracking, without_password

REPORT_FILE = "report.html"
MARKDOWN_FILE = "table.md"
CSV_FILE = "students.csv"

Content = TypeVar("Content")

_MAX_SHOWN = 24  # rows with curves and pictures; more cannot be told apart
_MAX_WIDTH = 1000  # px of a picture of distilled images in the page


class Report:
    """One `unidd compare`.

    Args:
        tracking: The store, and the experiment that is read and that the report is recorded in.
        output: Folder of the results.
        filter_string: MLflow's filter of runs; "" for all.
        run_ids: Ids of runs; empty for all.
        facet: Make a table of each data set and protocol where there are several.
        title: Title of the page; None for the name of the experiment.
        overwrite: Replace what ``output`` holds.
        parent: Tags of the MLflow run to nest the report under.

    Raises:
        ValueError: If tracking is off, or the folder holds a report.
    """

    def __init__(
        self,
        tracking: Tracking,
        output: Path,
        *,
        filter_string: str = "",
        run_ids: Sequence[str] = (),
        facet: bool = False,
        title: str | None = None,
        overwrite: bool = False,
        parent: dict[str, str] | None = None,
    ) -> None:
        if not tracking.enabled:
            raise ValueError("got tracking.enabled false: a comparison reads MLflow runs; turn tracking on")
        if (output / REPORT_FILE).exists() and not overwrite:
            raise ValueError(f"{output / REPORT_FILE} is there already: give --overwrite true, or another --output_dir")
        self.tracking = tracking
        self.output = output
        self.filter_string = filter_string
        self.run_ids = tuple(run_ids)
        self.facet = facet
        self.title = title or f"Study {tracking.experiment}"
        self.parent = parent
        self._damaged: list[str] = []  # artifacts that could not be shown

    def run(self) -> Path:
        """Read, draw, write and record; return the page.

        Raises:
            ValueError: If the store does not answer, or the runs cannot be compared.
        """
        with _answered(self.tracking) as store:
            study = read_study(store, self.tracking.experiment, self.filter_string, self.run_ids)
            self._check_facets(study)
            check_writable(self.output)
            self._write(study, store)
        self._record(study)
        for facet in study.facets:
            say(f"\n{facet.title}: top-1 on the test images, %\n\n{text_table(*table(facet))}\n")
        if study.unscored:
            say(f"Without an accuracy, in no table: {', '.join(run.name for run in study.unscored)}")
        for one in self._damaged:
            say(f"Not shown: {one}")
        say(f"Report: {self.output / REPORT_FILE} ({MARKDOWN_FILE}, {CSV_FILE} and the figures beside it)")
        return self.output / REPORT_FILE

    def _check_facets(self, study: Study) -> None:
        if len(study.facets) > 1 and not self.facet:
            shown = "; ".join(f"{one.title} ({len(one.rows)} rows)" for one in study.facets)
            raise ValueError(
                f"the runs differ in data set or protocol ({shown}), expected one for a table: choose with "
                "--filter, for example \"tags.dataset = 'digits'\", or make a table of each with --facet true"
            )

    def _write(self, study: Study, store: Store) -> None:
        with tempfile.TemporaryDirectory() as folder:
            shown = _shown(study)
            sections = [self._section(one, place, study, store, Path(folder)) for place, one in enumerate(study.facets)]
            shared = self._shared(shown, store, Path(folder))
            page = html(self.title, study, sections, shared, self._damaged)
        for name, content in ((REPORT_FILE, page), (MARKDOWN_FILE, markdown(study)), (CSV_FILE, students_csv(study))):
            with atomic_write(self.output / name) as temporary:
                temporary.write_text(content, "utf-8")

    def _section(self, facet: Facet, place: int, study: Study, store: Store, folder: Path) -> Section:
        section = Section(facet)
        suffix = "" if len(study.facets) == 1 else f"_{place + 1}"
        accuracy, bands, cost = (self.output / f"{name}{suffix}.png" for name in ("accuracy", "bands", "cost"))
        draw_accuracy(accuracy, facet)
        section.figures["Accuracy by method and images per class"] = accuracy
        if any(not row.is_real for row in facet.rows):
            draw_bands(bands, facet)
            section.figures["Low against high frequency against curriculum"] = bands
        if draw_cost(cost, facet):
            section.figures["Accuracy against compute and bytes"] = cost
        made = [row for row in facet.rows if row.first.distillation is not None]
        for number, row in enumerate(made[:_MAX_SHOWN]):
            picture = self._read(store, row, "distilled.png", folder / f"{place}-{number}", _shrunk)
            if picture is not None:
                target = self.output / "images" / f"{place + 1:02d}_{number + 1:02d}.png"
                with atomic_write(target) as temporary:
                    temporary.write_bytes(picture)
                section.pictures[f"{row.label}, IPC {row.first.ipc}"] = target
        if len(made) > _MAX_SHOWN:
            section.notes.append(f"Curves and images of the first {_MAX_SHOWN} of {len(made)} rows.")
        return section

    def _shared(self, shown: Sequence[StudyRow], store: Store, folder: Path) -> dict[str, Path]:
        figures = {}
        responses = {}
        for number, row in enumerate(_one_a_label(shown)):
            lines = self._read(store, row, "spectrum.json", folder / f"spectrum-{number}", read_responses)
            responses[row.label] = lines or []
        if draw_responses(self.output / "responses.png", responses):
            figures["Response of each filter over the real spectrum"] = self.output / "responses.png"
        if draw_curves(self.output / "curves.png", [_curves(store, row) for row in shown]):
            figures["β and loss"] = self.output / "curves.png"
        return figures

    def _read(
        self, store: Store, row: StudyRow, name: str, folder: Path, read: Callable[[Path], Content]
    ) -> Content | None:
        """Return what an artifact of the row's first distillation holds; None without one, and where it is damaged."""
        run = row.first.distillation
        if run is None or name not in store.artifacts(run.run_id):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        file = store.download(run.run_id, name, folder)
        try:
            return read(file)
        except (ValueError, OSError) as error:
            # One damaged file must not cost the report on all others.
            reason = str(error).replace(str(file), name)
            self._damaged.append(f"{name} of {run.name} ({run.run_id}) is damaged: {reason}")
            return None

    def _record(self, study: Study) -> None:
        rows = [row for facet in study.facets for row in facet.rows]
        tags = {
            "dataset": ",".join(dict.fromkeys(facet.dataset for facet in study.facets)),
            "protocol": "; ".join(dict.fromkeys(facet.protocol for facet in study.facets)),
            "method": ",".join(dict.fromkeys(row.first.method for row in rows)),
        }
        with self.tracking.run("report", self.title, tags, parent=self.parent) as run:
            run.params({"filter": self.filter_string, "runs": " ".join(self.run_ids), "rows": len(rows)})
            for path in sorted(self.output.iterdir()):
                if path.suffix in (".html", ".png", ".md", ".csv"):
                    run.artifact(path)


@contextmanager
def _answered(tracking: Tracking) -> Iterator[Store]:
    """Yield the store; say how to go on where it does not answer."""
    try:
        if tracking.is_missing:
            raise FileNotFoundError("there is no such file")
        yield tracking.store()
    except ValueError:
        raise
    except Exception as error:  # whatever the store, the network or a driver raises, the cure is the same
        raise ValueError(
            f"cannot read MLflow runs at {without_password(tracking.uri)}: {error}; check --tracking.uri"
        ) from error


def _shown(study: Study) -> list[StudyRow]:
    return [row for facet in study.facets for row in facet.rows if row.first.distillation is not None][:_MAX_SHOWN]


def _one_a_label(rows: Sequence[StudyRow]) -> list[StudyRow]:
    """Return one row for each label: filters do not depend on the images per class."""
    return list({row.label: row for row in reversed(rows)}.values())[::-1]


def _curves(store: Store, row: StudyRow) -> Curves:
    run = row.first.distillation
    label = f"{row.label}, IPC {row.first.ipc}"
    if run is None:
        return Curves(label, {})
    return Curves(label, {key: store.curve(run.run_id, key, MAX_POINTS) for key in CURVES if key in run.metrics})


def _shrunk(path: Path) -> bytes:
    """Return a picture as PNG: as it is where it is narrow enough, for to encode it again takes seconds."""
    try:
        with open_image(path) as image:
            image.load()  # as a whole: it may be damaged in the middle
            if image.width <= _MAX_WIDTH and image.format == "PNG":
                return path.read_bytes()
            picture = image.convert("RGB")
    except Exception as error:  # whatever the bytes of a damaged picture make Pillow's decoders stumble over
        raise ValueError(f"{path}: cannot read the picture ({error}), expected a whole one") from error
    picture.thumbnail((_MAX_WIDTH, _MAX_WIDTH * 4), Image.Resampling.BOX)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
