"""The report and MLflow's own pages over a study, as headless Chromium shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, MISSING, Page
from server_kill import Process, plain_server
from test_compare import compare, distil, evaluate

from unidd_pl.distilled import DistilledSet
from unidd_pl.pictures import picture
from unidd_pl.tracking import Store, Tracking

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned';alert(1)</script>&amp;'\"$x_1$"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(tmp_path_factory.mktemp("profile")) as one:
        yield one


def hostile_report(folder: Path) -> Path:
    """Make a report in which every name tries to run a script and to load a picture."""
    tracking = Tracking(f"sqlite:///{folder}/mlflow.db", "hostile")
    files = folder / "files"
    spec = {"name": "tiny", "classes": ("a", "b"), "channels": 1, "image_size": 4, "mean": (0.5,), "std": (0.5,)}
    write_artifacts(files, spec)
    for number, method in enumerate((f"cfm {HOSTILE}", "plain")):
        distil(tracking, method, f"x{number}", files)
        evaluate(tracking, method, f"x{number}", [0.5, 0.6], dataset=HOSTILE, protocol=HOSTILE)
    evaluate(tracking, "real images", None, [0.4, 0.45], dataset=HOSTILE, protocol=HOSTILE)
    distil(tracking, HOSTILE, "lonely")
    (folder / "broken").mkdir()
    (folder / "broken/spectrum.json").write_text(HOSTILE)
    distil(tracking, f"broken {HOSTILE}", "broken", folder / "broken")
    evaluate(tracking, f"broken {HOSTILE}", "broken", [0.3], dataset=HOSTILE, protocol=HOSTILE)
    return compare(tracking, folder / "out", "--title", HOSTILE) / "report.html"


def write_artifacts(folder: Path, spec: dict[str, Any]) -> None:
    """Leave the picture and the spectrum of a distillation in a folder."""
    import torch

    from unidd_pl.specs import DatasetSpec

    images = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)
    picture(DistilledSet(images, torch.tensor([0, 1]), DatasetSpec(**spec), {}), folder / "distilled.png")
    responses = [{"filter": HOSTILE, "methods": ["cfm"], "round": one, "betas": [0.1]} for one in (0, 1)]
    layer = {"layer": HOSTILE, "eigenvalues": [1.0, 0.1, 0.0], "responses": [[0.1, 1.0], [0.01, 1.0]]}
    (folder / "spectrum.json").write_text(json.dumps({"responses": responses, "layers": [layer]}))


def test_a_report_shows_names_as_text_and_loads_nothing(page: Page, tmp_path: Path) -> None:
    report = hostile_report(tmp_path)
    page.open(report.as_uri())
    assert page.complaints() == []
    first, *others = page.requested()
    assert first == report.as_uri()
    assert others
    assert all(one.startswith("data:image/png;base64,") for one in others)
    assert page.evaluate("document.title") == HOSTILE  # no script has changed it
    assert page.evaluate("document.querySelectorAll('script, img[onerror], link, iframe').length") == 0
    text = page.text()
    assert text.count("<img src=x onerror=") >= 8
    for head in ("Accuracy against compute", "Low against high", "Distilled images", "β and loss", "Not shown"):
        assert head in text
    cells = page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.cells[6].innerText)")
    assert cells == ["30.0", "55.0 ± 7.1", "55.0 ± 7.1", "42.5 ± 3.5"]


def test_figures_of_a_report_are_there_and_fit(page: Page, tmp_path: Path) -> None:
    page.open(hostile_report(tmp_path).as_uri())
    shown = "[...document.images].map(one => one.complete && one.naturalWidth > 50 && one.alt.length > 3)"
    assert page.evaluate(shown) == [True] * 7  # accuracy, bands, cost, two pictures, responses, curves
    for width in (1400, 420):
        page.resize(width, 900)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """A distillation with an evaluation below it, and a report on both."""
    folder = tmp_path_factory.mktemp("study")
    tracking = Tracking(f"sqlite:///{folder}/mlflow.db", "seen")
    distil(tracking, "cfm", "x")
    evaluate(tracking, "scored", "x", [0.5, 0.6])
    compare(tracking, folder / "out", "--title", "The report")
    return tracking


@pytest.fixture(scope="module")
def server(study: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """MLflow's pages over it."""
    one = plain_server(tmp_path_factory.mktemp("server"))
    one.command[one.command.index("--backend-store-uri") + 1] = study.uri
    one.start()
    yield one
    one.kill()


def test_mlflow_shows_runs_the_chart_of_beta_and_the_report(page: Page, study: Tracking, server: Process) -> None:
    page.resize(1500, 950)
    store = Store(study.uri)
    experiment = store.experiment_id("seen")
    runs = {run.tags["stage"]: run for run in store.runs(str(experiment))}

    page.open(f"{server.uri}/#/experiments/{experiment}/runs")
    page.wait_for_text("cfm_x")
    page.wait_for_text("3 matching runs")
    assert "The report" in page.text()
    assert "scored" not in page.text()  # it is nested, and its parent is folded

    chart = f'metric?runs=["{runs["distillation"].run_id}"]&metric="beta"&experiments=["{experiment}"]'
    page.open(f'{server.uri}/#/{chart}&plot_metric_keys=["beta"]')
    page.wait(lambda: "cfm_x (beta)" in page.text(), "the legend of the chart of β", 180)
    curves = "document.querySelectorAll('.js-plotly-plot .trace').length"  # also that of the slider below, where drawn
    page.wait(lambda: page.evaluate(curves) >= 1, "the curve of β", 180)
    assert "0.1 (step=0)" in page.text()

    page.open(f"{server.uri}/#/experiments/{experiment}/runs/{runs['report'].run_id}/artifacts/report.html")
    frame = "document.querySelector('iframe')"
    page.wait(lambda: page.evaluate(f"{frame} !== null && {frame}.clientHeight > 200"), "the report in its frame", 180)
    assert "<h1>The report</h1>" in page.evaluate(f"fetch({frame}.src).then(answer => answer.text())")
