"""What commands note of their work, and read again: tables, spectra, marks, journals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import format_mutations as f
import mutations as m
import torch
from own_files import make_distilled
from world import Kind, world

from unidd_pl.compare import _shrunk
from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.card import card_of, write_card
from unidd_pl.export import _scores
from unidd_pl.grouping import rows_of_sets
from unidd_pl.pictures import picture
from unidd_pl.preflight import _kept
from unidd_pl.standing import STANDING_FILE, Standing
from unidd_pl.study_curves import draw_responses, read_responses
from unidd_pl.tracking.journal import Journal, Start
from unidd_pl.tracking.sender import Sender


def make_evaluation(folder: Path) -> Path:
    distilled = DistilledSet.load(make_distilled(folder))
    figure = {"mean": 0.5, "std": None}
    row = {"network": "resnet18", "n": 1, "tail_mean": figure, "last_epoch": {**figure, "std": 0.1}}
    rows = [{**row, "distilled_set": distilled.fingerprint()}, {**row, "distilled_set": ["x", "y"]}]
    content = {"protocol": {"name": "hard", "epochs": 5}, "rows": rows}
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder / "evaluation.json"


def read_evaluation(path: Path) -> None:
    """Read the scores as `unidd export` does, and write them on a card."""
    distilled = DistilledSet.load(path.parent / "set.safetensors")
    scores = _scores(distilled, path.parent / "set.safetensors", str(path))
    protocol = {"name": "hard", "epochs": 5}
    about = card_of(distilled, distilled, "png", protocol=protocol, scores=scores, licence=None, soft_label_bytes=None)
    write_card(path.parent, {**about, "image_bytes": 1, "checksum": "0"}, "usage")
    (path.parent / "card.json").unlink()


def make_spectrum(folder: Path) -> Path:
    responses = [{"filter": "1/(λ+β)", "methods": ["cfm"], "round": one, "betas": [0.1]} for one in (0, 1, None)]
    layer = {"layer": "conv", "eigenvalues": [1.0, 0.1, 0.0], "responses": [[0.1, 1.0], [0.01, 1.0], [0.5, 0.5]]}
    (folder / "spectrum.json").write_text(json.dumps({"responses": responses, "layers": [layer]}))
    return folder / "spectrum.json"


def read_spectrum(path: Path) -> None:
    """Read it as a report does; what has changed is also drawn, which takes a while."""
    proper = read_responses(path.parent / "spectrum.json")
    lines = read_responses(path)
    if lines != proper:
        draw_responses(path.parent / "responses.png", {"cfm": lines})


def make_picture(folder: Path) -> Path:
    picture(DistilledSet.load(make_distilled(folder)), folder / "distilled.png")
    return folder / "distilled.png"


def read_picture(path: Path) -> None:
    """Shrink the picture for a report, which takes `ValueError`, and whatever Pillow raises, for damage."""
    _shrunk(path)


def make_accuracy(folder: Path) -> Path:
    (folder / "accuracy.json").write_text(json.dumps({"accuracy": 0.5}))
    return folder / "accuracy.json"


def read_accuracy(path: Path) -> None:
    """Read an accuracy that was measured before; where there is none it is measured anew."""
    kept = _kept(path)
    if kept is None or not 0 <= kept <= 1:
        raise ValueError("to be measured")


def make_standing(folder: Path) -> Path:
    Standing("1795596803804-d69efc20d558", finished=True, config="a0").save(folder)
    return folder / STANDING_FILE


def read_standing(path: Path) -> None:
    run = path.parent / "standing"
    run.mkdir(exist_ok=True)
    shutil.copy(path, run / STANDING_FILE)
    if Standing.load(run) == Standing():
        raise ValueError("the run gets a new record")


def make_set_of_a_run(folder: Path) -> Path:
    """Write a set whose manifest holds the config that it was made from."""
    config = {"model": {"class_path": "x", "init_args": {"seed": 0, "eta": 0.1}}, "output_dir": "runs/x"}
    spec = world(folder).data.spec
    images = torch.randint(0, 256, (6, *spec.image_shape), dtype=torch.uint8)
    manifest = {"method": "cfm", "seed": 0, "data": "a", "teacher": "b", "statistics": "c"}
    manifest["config"] = json.dumps(config)  # which is YAML
    DistilledSet(images, torch.arange(6) % 3, spec, manifest).save(folder / "of_a_run.safetensors")
    return folder / "of_a_run.safetensors"


def read_set_of_a_run(path: Path) -> None:
    one = DistilledSet.load(path)
    rows_of_sets([path], [one], "config")


class NoStore:
    """Takes what a store takes: what reaches it has to be of the kind that MLflow knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, start: Start, key: str) -> str:
        texts = [start.uri, start.experiment, start.name, key, *start.tags, *start.tags.values()]
        _check(all(isinstance(one, str) for one in texts) and isinstance(start.time, int))
        return "0"

    def find(self, experiment: str, tags: dict[str, str]) -> str:
        _check(all(isinstance(one, str) for one in (experiment, *tags, *tags.values())))
        return "0"

    def reopen(self, run_id: str) -> bool:
        return bool(run_id)

    def log_metrics(self, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
        for key, value, step, time in points:
            _check(isinstance(key, str) and isinstance(step, int) and isinstance(time, int))
            float(value)

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        _check(all(isinstance(one, str) for one in (run_id, *params, *params.values())))

    def log_tag(self, run_id: str, key: str, value: str) -> None:
        _check(isinstance(key, str) and isinstance(value, str))

    def log_artifact(self, run_id: str, path: Path, folder: str) -> None:
        _check(path.resolve().is_relative_to(self.folder.resolve()) and isinstance(folder, str))

    def log_input(self, run_id: str, name: str, digest: str, source: str, context: str) -> None:
        _check(all(isinstance(one, str) for one in (name, digest, source, context)))

    def end(self, run_id: str, status: str, time: int) -> None:
        _check(isinstance(status, str) and isinstance(time, int))


def _check(proper: bool) -> None:
    if not proper:
        raise AssertionError("the store was given what it cannot take")


def make_journal(folder: Path) -> Path:
    if known := [one for one in folder.glob("outbox/*/journal.jsonl") if one.parent.name != "other"]:
        return known[0]
    start = Start("sqlite:///mlflow.db", "unidd", "run", {"seed": "1"}, {"sweep": "x"}, None, 5)
    journal = Journal.begin(folder / "outbox", start)
    journal.append({"params": {"lr": "0.1"}})
    journal.keep_text("lr: 0.1", "config.yaml")
    journal.append({"input": {"name": "digits", "digest": "a", "source": "digits", "context": "training"}})
    journal.append({"metrics": [["loss", 0.5, 1, 6], ["beta", 0.1, 1, 6]]})
    journal.append({"tag": ["a", "b"]})
    journal.append({"end": ["KILLED", 7]})
    journal.append({"reopen": 8})
    journal.append({"end": ["FINISHED", 9]})
    journal.unlock()
    shutil.copytree(journal.folder, folder / "outbox/other")
    first = journal.folder.joinpath("journal.jsonl").read_bytes().index(b"\n") + 1
    (folder / "outbox/other/sent.json").write_text(json.dumps({"run_id": "0", "offset": first}))
    return journal.folder / "journal.jsonl"


def read_journal(path: Path) -> None:
    _send(path, "journal.jsonl")


def make_sent(folder: Path) -> Path:
    make_journal(folder)
    return folder / "outbox/other/sent.json"


def read_sent(path: Path) -> None:
    if _send(path, "sent.json") == (None, 0):
        raise ValueError("all is sent again")


def _send(path: Path, name: str) -> tuple[str | None, int]:
    """Send the journal of `make_journal` with one of its files replaced; return what was said to be sent before."""
    outbox = next(one / "outbox" for one in (path.parent, *path.parents) if (one / "outbox").is_dir())
    folder = outbox.parent / "sending/run"
    shutil.copytree(outbox / "other", folder, dirs_exist_ok=True)
    if name == "journal.jsonl":
        (folder / "sent.json").unlink()
    shutil.copy(path, folder / name)
    store = NoStore(folder)
    before = Journal(folder).sent
    Sender(Journal(folder), lambda: store).send()  # type: ignore[arg-type, return-value]
    return before


RECORDS = [
    Kind("evaluation", make_evaluation, read_evaluation, m.JSON),
    Kind("spectrum", make_spectrum, read_spectrum, m.JSON),
    Kind("picture-of-report", make_picture, read_picture, f.PICTURE),
    Kind("kept-accuracy", make_accuracy, read_accuracy, m.JSON),
    Kind("standing", make_standing, read_standing, m.JSON),
    Kind("set-of-a-run", make_set_of_a_run, read_set_of_a_run, f.SET_WITH_CONFIG),
    Kind("journal", make_journal, read_journal, f.JSON_LINES),
    Kind("journal-sent", make_sent, read_sent, m.JSON),
]
