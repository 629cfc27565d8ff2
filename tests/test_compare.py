"""`unidd compare` over fabricated studies: what stands in a table, what is refused, what a page holds."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from unidd_pl.cli import main
from unidd_pl.distilled import DistilledSet
from unidd_pl.pictures import picture
from unidd_pl.specs import DatasetSpec
from unidd_pl.study import Scored, StudyRow, read_study
from unidd_pl.study_curves import _shared_name, read_responses
from unidd_pl.study_figures import _named
from unidd_pl.tracking import Store, StoredRun, Tracking
from unidd_pl.tracking.store import _spread

NETWORK = "convnet-w8-d2"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the file: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture and a spectrum as a distillation leaves them."""
    folder = tmp_path_factory.mktemp("artifacts")
    spec = DatasetSpec(name="tiny", classes=("a", "b"), channels=1, image_size=4, mean=(0.5,), std=(0.5,))
    images = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)
    picture(DistilledSet(images, torch.tensor([0, 1]), spec, {}), folder / "distilled.png")
    responses = [{"filter": "1/(λ+β)", "methods": ["cfm"], "round": one, "betas": [0.1]} for one in (0, 1)]
    layer = {"layer": "conv", "eigenvalues": [1.0, 0.1, 0.0], "responses": [[0.1, 1.0], [0.01, 1.0]]}
    (folder / "spectrum.json").write_text(json.dumps({"responses": responses, "layers": [layer]}))
    return folder


def distil(
    tracking: Tracking, method: str, fingerprint: str, artifacts: Path | None = None, ipc: int = 10,
    params: Mapping[str, Any] | None = None, **tags: str,
) -> None:  # fmt: skip
    given = {"method": method, "band": "low-to-high", "ipc": str(ipc), "distilled_set": fingerprint, **tags}
    with tracking.run("distillation", f"{method}_{fingerprint}", given) as run:
        run.params(params or {"model.init_args.eta": 0.1})
        for step in range(5):
            run.metrics({"beta": 0.1 / (step + 1), "loss/total": 2.0 - step / 10}, step)
        run.metrics({"seconds": 60.0, "bytes": 3000.0, "images_seen": 1e4})
        for path in () if artifacts is None else artifacts.iterdir():
            run.artifact(path)


def evaluate(
    tracking: Tracking, method: str, fingerprint: str | None, students: Sequence[float], ipc: int = 10, **tags: str
) -> None:
    made = {} if fingerprint is None else {"distilled_set": fingerprint, "band": "low-to-high"}
    about = {
        "method": method, "ipc": str(ipc), "networks": NETWORK, "dataset": "tiny", "protocol": "p, 3 epochs",
        "protocol_digest": "d", **made, **tags,
    }  # fmt: skip
    parent = None if fingerprint is None else {"stage": "distillation", "distilled_set": fingerprint}
    with tracking.run("evaluation", method, about, parent=parent) as run:
        run.metrics({f"tail_mean/{NETWORK}/seed {seed}": value for seed, value in enumerate(students)})


@pytest.fixture(scope="module")
def study(uri: str, artifacts: Path) -> Tracking:
    """Two sets of one method, one of another with two settings, real images, and a run without evaluations."""
    tracking = Tracking(uri, "study")
    for seed, students in enumerate(([0.5, 0.6], [0.7, 0.8])):
        distil(tracking, "cfm", f"cfm{seed}", artifacts, params={"model.init_args.seed": seed})
        evaluate(tracking, "cfm", f"cfm{seed}", students)
    for beta in (0.1, 1.0):
        distil(
            tracking, "hfm", f"hfm{beta}", params={"model.init_args.beta": beta, "model.init_args.eta": 1}, band="high"
        )
        evaluate(tracking, "hfm", f"hfm{beta}", [beta / 10 + 0.3], band="high")
    distil(tracking, "lfm", "lonely")
    evaluate(tracking, "real images", None, [0.4, 0.45])
    return tracking


def compare(tracking: Tracking, output: Path, *arguments: str) -> Path:
    main(
        ["compare", "--experiment", tracking.experiment, "--tracking.uri", tracking.uri, "--output_dir", str(output),
         *arguments]
    )  # fmt: skip
    return output


def refused(capsys: pytest.CaptureFixture[str], tracking: Tracking, output: Path, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        compare(tracking, output, *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


class _Page(HTMLParser):
    """What a browser would load, and the texts and tags of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report(study: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the study; not to be changed."""
    return compare(study, tmp_path_factory.mktemp("out") / "report")


class TestReport:
    def test_rows_differ_in_seeds_only(self, study: Tracking) -> None:
        (facet,) = read_study(Store(study.uri), "study").facets
        assert [row.label for row in facet.rows] == ["hfm, beta=0.1", "hfm, beta=1.0", "cfm", "real images"]
        cfm = facet.rows[2]
        assert sorted(cfm.values) == [0.5, 0.6, 0.7, 0.8]
        mean, spread = cfm.accuracy
        assert (mean, spread) == (pytest.approx(0.65), pytest.approx(0.12909944))

    def test_runs_without_an_accuracy_are_listed(self, report: Path) -> None:
        assert "lfm_lonely" in _Page(report / "report.html").text
        assert "lfm_lonely" in (report / "table.md").read_text()

    def test_the_page_loads_nothing_from_outside(self, report: Path) -> None:
        page = _Page(report / "report.html")
        sources = [attrs["src"] or "" for tag, attrs in page.tags if "src" in attrs]
        assert len(sources) >= 6
        assert all(one.startswith("data:image/png;base64,") for one in sources)
        assert not [tag for tag, attrs in page.tags if tag in ("script", "link", "iframe") or "href" in attrs]
        assert "url(" not in (report / "report.html").read_text()

    def test_figures(self, report: Path) -> None:
        names = {path.name for path in report.iterdir()}
        assert {"accuracy.png", "bands.png", "cost.png", "curves.png", "responses.png", "images"} <= names
        page = _Page(report / "report.html")
        for head in ("Accuracy against compute", "β and loss", "Distilled images", "Low against high"):
            assert head in page.text

    def test_tables(self, report: Path) -> None:
        with (report / "students.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert sorted(float(row["tail_mean"]) for row in rows if row["label"] == "cfm") == [0.5, 0.6, 0.7, 0.8]
        assert {row["distillation_run"] for row in rows if row["method"] == "real images"} == {""}
        assert "| cfm | low-to-high | 10 | convnet-w8-d2 | 2 | 4 | 65.0 ± 12.9 |" in (report / "table.md").read_text()

    def test_is_a_run_of_its_own(self, study: Tracking, report: Path) -> None:
        store = Store(study.uri)
        found = [one for one in store.runs(store.experiment_id("study") or "") if one.tags["stage"] == "report"]
        assert {"report.html", "table.md", "students.csv", "accuracy.png"} <= set(store.artifacts(found[0].run_id))

    def test_a_filter_keeps_the_real_images_beside(self, study: Tracking) -> None:
        (facet,) = read_study(Store(study.uri), "study", "tags.method = 'cfm'").facets
        assert [row.label for row in facet.rows] == ["cfm", "real images"]

    def test_a_distillation_stands_for_its_evaluations(self, study: Tracking) -> None:
        store = Store(study.uri)
        runs = list(store.runs(store.experiment_id("study") or ""))
        (run,) = [one for one in runs if one.name == "cfm_cfm1"]
        (facet,) = read_study(store, "study", run_ids=[run.run_id]).facets
        assert [row.values for row in facet.rows if row.label == "cfm"] == [[0.7, 0.8]]


class TestLargeStudies:
    def test_curves_are_sampled_with_both_ends(self, uri: str) -> None:
        tracking = Tracking(uri, "long")
        recorded = [(step, 1 / (step + 1)) for step in range(3000)]
        with tracking.run("distillation", "long") as run:
            for step, value in recorded:
                run.metrics({"loss": value}, step)
        store = Store(uri)
        identity = run.run_id or ""
        points = store.curve(identity, "loss", 500)
        assert len(points) == 500
        assert points == sorted(set(points))
        assert (points[0], points[-1]) == (recorded[0], recorded[-1])
        assert set(points) <= set(recorded)
        steps = [step for step, _ in points]
        assert max(later - step for step, later in pairwise(steps)) <= 12  # even: 6 on average
        assert store.curve(identity, "loss", 5000) == recorded
        assert store.curve(identity, "absent", 500) == []

    def test_a_store_that_samples_nothing_is_read_as_a_whole(self) -> None:
        history = [(step, float(step)) for step in range(11)]
        assert _spread(history, 3) == [(0, 0.0), (5, 5.0), (10, 10.0)]
        assert _spread(history, 11) == history
        assert _spread([], 3) == []

    def test_reports_and_sync_need_no_torch(self) -> None:
        code = (
            "import sys, unidd_pl.compare, unidd_pl.tracking\n"
            "from unidd_pl.tracking import Tracking\n"
            "with Tracking(enabled=False).run('report', 'x') as run: run.metrics({'a': 1.0})\n"
            "print({'torch', 'lightning', 'matplotlib', 'mlflow'} & set(sys.modules))"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ended.stdout.strip() == "set()"

    def test_of_many_rows_those_have_names_that_none_beats(self) -> None:
        def row(label: str, accuracy: float) -> StudyRow:
            run = StoredRun(label, label, "FINISHED", 0, {}, {}, {})
            return StudyRow(label, [Scored(run, NETWORK, run, {0: accuracy})])

        few = [(float(cost), row(f"r{cost}", cost / 10)) for cost in range(5)]
        assert [one.label for _, one in _named(few)] == ["r0", "r1", "r2", "r3", "r4"]
        many = [(float(cost), row(f"r{cost}", 0.5 if cost in (0, 7) else 0.4)) for cost in range(20)]
        many[9] = (9.0, row("best", 0.9))
        assert [one.label for _, one in _named(many)] == ["best", "r0"]

    def test_rows_of_the_same_filter_share_a_line(self, artifacts: Path) -> None:
        lines = read_responses(artifacts / "spectrum.json")
        assert [line.name for line in lines] == ["1/(λ+β), round 1", "1/(λ+β), round 2"]
        assert _shared_name(["a", "b", "c"], "λ") == "a; b; c: λ"
        assert _shared_name(["a", "b", "c", "d"], "λ") == "a; b and 2 more: λ"


class TestBadInput:
    @pytest.mark.parametrize("content", [b"{", b"[1]", b'{"layers": [], "responses": []}', b"\xff"])
    def test_a_damaged_artifact_is_told_and_costs_nothing_else(
        self, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
    ) -> None:
        tracking = Tracking(uri, f"damaged {content!r}")
        (tmp_path / "spoiled").mkdir()
        for name in ("spectrum.json", "distilled.png"):
            (tmp_path / "spoiled" / name).write_bytes(content)
        distil(tracking, "cfm", "x", tmp_path / "spoiled")
        evaluate(tracking, "cfm", "x", [0.5])
        page = _Page(compare(tracking, tmp_path / "out") / "report.html")
        said = capsys.readouterr().out
        for name in ("spectrum.json", "distilled.png"):
            assert f"{name} of cfm_x" in page.text
            assert re.search(rf"Not shown: {name} of cfm_x \(\w+\) is damaged: \S", said)
        assert "β and loss" in page.text

    def test_no_such_experiment(self, study: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused(capsys, Tracking(study.uri, "studdy"), tmp_path)
        assert re.search(r"got the experiment 'studdy', expected one of .*study.*: correct --experiment", message)

    def test_no_such_store(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused(capsys, Tracking(f"sqlite:///{tmp_path}/absent.db"), tmp_path)
        assert "there is no such file" in message
        assert not list(tmp_path.iterdir())

    def test_no_such_run(self, study: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused(capsys, study, tmp_path, "--runs", "abc")
        assert "got runs abc, expected ids of runs of 'study': correct --runs" in message

    def test_a_filter_that_is_none(self, study: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "cannot read MLflow runs" in refused(capsys, study, tmp_path, "--filter", "what is this")

    def test_only_runs_without_an_accuracy(
        self, study: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(capsys, study, tmp_path, "--filter", "tags.method = 'lfm'")
        assert "1 run(s) of 'study' match, none with an accuracy" in message

    def test_a_report_is_not_replaced_unasked(
        self, study: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "report.html").write_text("mine")
        assert "--overwrite true" in refused(capsys, study, tmp_path)
        assert (tmp_path / "report.html").read_text() == "mine"

    @pytest.mark.parametrize("tags", [{"dataset": "other"}, {"protocol": "q"}, {"protocol_digest": "e"}])
    def test_what_differs_is_no_table(
        self, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tags: dict[str, str]
    ) -> None:
        tracking = Tracking(uri, f"mixed {tags}")
        evaluate(tracking, "cfm", None, [0.5])
        evaluate(tracking, "dm", None, [0.9], **tags)
        message = refused(capsys, tracking, tmp_path)
        assert re.search(
            r"the runs differ in data set or protocol \(.* \(1 rows\); .* \(1 rows\)\), expected one for a table: "
            r"choose with --filter, .*, or make a table of each with --facet true", message
        )  # fmt: skip
        assert not (tmp_path / "report.html").exists()
        page = _Page(compare(tracking, tmp_path, "--facet", "true") / "report.html")
        assert len([tag for tag, _ in page.tags if tag == "table"]) == 2

    def test_names_with_html_in_them(self, uri: str, artifacts: Path, tmp_path: Path) -> None:
        bad = "<script>alert('$1$')</script>|&\"\n*x*"
        tracking = Tracking(uri, "html")
        distil(tracking, bad, "x", artifacts)
        evaluate(tracking, bad, "x", [0.5], dataset=bad, protocol=bad, band=bad)
        distil(tracking, bad, "y")
        page = _Page(compare(tracking, tmp_path / "out", "--title", bad) / "report.html")
        assert not [tag for tag, _ in page.tags if tag == "script"]
        assert page.text.count("<script>alert('$1$')</script>") >= 5
        assert "<script>" not in (tmp_path / "out/table.md").read_text()
