"""`unidd export`: a set in a layout that others read, with its teacher, its scores and its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from unidd_pl.console import say
from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.layouts import SCORERS, Companions, Layout, export_set
from unidd_pl.exchange.plain_teacher import PlainTeacher
from unidd_pl.label_file import labels_beside
from unidd_pl.label_store import LabelStore
from unidd_pl.plain_json import parse_json
from unidd_pl.protocols import Protocol


def run(arguments: Sequence[str], description: str, cache_dir: str) -> None:
    """Run the command.

    Args:
        arguments: Its options.
        description: What it does, for the help.
        cache_dir: Default folder of teachers.

    Raises:
        ValueError: If the set, its teacher or the folder is not as it has to be.
    """
    parser = ArgumentParser(prog="unidd export", description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with the options below")
    parser.add_argument("--distilled", type=str, default=None, help="a file written by `unidd fit`")
    parser.add_argument("--run", type=str, default=None, help="in its place: a run's output_dir; its rounds so far")
    parser.add_argument("--output", type=str, required=True, help="folder to make")
    parser.add_argument("--layout", type=Layout, default="png", help="png: class folders by number")
    parser.add_class_arguments(Protocol, "protocol")
    parser.add_argument(
        "--teacher", type=str, default=None, help="for the scorers; default: the set's own, from the cache"
    )
    parser.add_argument(
        "--network", type=str, default=None, help="architecture of a teacher that does not name its own"
    )
    parser.add_argument(
        "--scorer_dataset", type=str, default=None, help="DD-Ranking's name of the data, such as CIFAR10"
    )
    parser.add_argument("--evaluation", type=str, default=None, help="results for the card; default: beside the set")
    parser.add_argument("--labels", type=str, default=None, help="soft-label store whose size the card gives")
    parser.add_argument("--licence", type=str, default=None, help="licence of the source data, for the card")
    parser.add_argument("--cache_dir", type=str, default=cache_dir, help="where teachers are kept")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace an earlier export")
    config = parser.parse_args(list(arguments))
    path, distilled = _set(config)
    teacher = _teacher(distilled, config) if config.layout in SCORERS else None
    companions = Companions(
        protocol=parser.instantiate(config).protocol,
        teacher=teacher,
        dataset=config.scorer_dataset,
        scores=_scores(distilled, path, config.evaluation),
        licence=config.licence,
        soft_label_bytes=_label_bytes(distilled, path, config.labels),
    )
    card = export_set(distilled, Path(config.output), config.layout, companions, overwrite=config.overwrite)
    say(f"{len(distilled)} images in {config.output}, layout {config.layout}, {card['file_bytes']:,} bytes")
    if note := distilled.partial_note:
        say(f"Partial: {note}")
    if card["rounded"]:
        say("Note: float pixels were rounded to 256 levels; --layout safetensors keeps them")
    say(f"Card: {Path(config.output) / 'README.md'}")


def _set(config: Any) -> tuple[Path, DistilledSet]:
    """Return the set to export and the file that it is, or would be, in."""
    if (config.distilled is None) == (config.run is None):
        raise ValueError(
            f"got --distilled {config.distilled} and --run {config.run}, expected one of them: a file of `unidd fit`, "
            "or the output_dir of a run that is not finished"
        )
    if config.run is None:
        return Path(config.distilled), DistilledSet.load(Path(config.distilled))
    # It brings torchvision and Lightning, seconds that a file does not need.
    from unidd_pl.partial import DISTILLED_FILE, finished_rounds  # noqa: PLC0415

    return Path(config.run) / DISTILLED_FILE, finished_rounds(Path(config.run))


def _teacher(distilled: DistilledSet, config: Any) -> PlainTeacher:
    """Return the teacher given, or the one that the set names, from the cache."""
    # Lightning comes with it, seconds that no other layout needs.
    from unidd_pl.networks import build_network, load_weights  # noqa: PLC0415
    from unidd_pl.specs import DatasetSpec  # noqa: PLC0415
    from unidd_pl.teachers import find_teacher, read_about  # noqa: PLC0415

    known = str(distilled.manifest.get("teacher"))
    path = Path(config.teacher) if config.teacher else find_teacher(known, Path(config.cache_dir) / "teachers")
    if path is None:
        raise ValueError(
            f"layout {config.layout}: the set's teacher ({known[:12]}) is not in {config.cache_dir}/teachers: "
            "give it with "
            "--teacher FILE (and --network NAME for a plain state_dict)"
        )
    about = read_about(path)
    name = config.network or (str(about["network"]) if about else distilled.manifest.get("teacher_network"))
    if name is None:
        raise ValueError(f"teacher {path} does not name its architecture: give it with --network, such as resnet18")
    if about and DatasetSpec.from_dict(about["spec"]).classes != distilled.class_names:
        raise ValueError(
            f"teacher {path} was trained for other classes, or in another order, than the set's: give the one "
            "that belongs "
            "to it"
        )
    network = build_network(name, distilled.spec)
    load_weights(network, path, expected_classes=distilled.spec.num_classes)
    return PlainTeacher(name, network.state_dict())


def _scores(distilled: DistilledSet, path: Path, given: str | None) -> list[dict[str, Any]]:
    """Return the rows of an evaluation that are of this set alone, as the card shows them."""
    file = Path(given) if given else path.with_name("evaluation.json")
    if not given and not file.exists():
        return []
    try:
        content = parse_json(file.read_bytes(), file)
        protocol = {"protocol": content["protocol"]["name"], "epochs": content["protocol"]["epochs"]}
        rows = [
            {"network": row["network"], "n": row["n"], **_figures(row), **protocol}
            for row in content["rows"]
            if row["distilled_set"] == distilled.fingerprint()  # a list where a row averages several sets
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"cannot read the evaluation {file} ({error}): expected a file of `unidd evaluate`; make it again, or "
            "give another with --evaluation FILE"
        ) from error
    if given and not rows:
        raise ValueError(f"the evaluation {file} has no row of this set: give the one that was made of it")
    return rows


def _figures(row: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the accuracies of a row; raises as whatever of it is not a number stumbles."""
    return {
        key: {"mean": float(row[key]["mean"]), "std": None if (std := row[key]["std"]) is None else float(std)}
        for key in ("tail_mean", "last_epoch")
    }


def _label_bytes(distilled: DistilledSet, path: Path, given: str | None) -> int | None:
    """Return the size of the set's soft-label store, or None where it has none."""
    file = Path(given) if given else labels_beside(path)
    if not given and not file.is_file():
        return None
    if LabelStore(file).facts.distilled != distilled.fingerprint():
        raise ValueError(f"the soft labels {file} are of another set: give those that were made of this one (--labels)")
    return file.stat().st_size
