"""The rounds that a run has finished, as a distilled set: also of a run that goes on, was stopped or killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from unidd_pl.distilled import DistilledSet, PixelType
from unidd_pl.files import atomic_write
from unidd_pl.plain_json import parse_json
from unidd_pl.specs import DatasetSpec
from unidd_pl.synthetic import ChunkStore, Schedule

DISTILLED_FILE = "distilled.safetensors"
CHUNK_FOLDER = "chunks"
RUN_FILE = "run.json"

_FORMAT = "unidd_pl.run"
_VERSION = 1  # raise when an older reader would misread a newer file
_UNFINISHED = "the run was not finished when it was exported"


@dataclass(frozen=True)
class RunRecord:
    """What a run puts its finished rounds together by; beside its chunks from the start, for when it is gone.

    Args:
        digest: Digest of all that the images depend on; the chunks carry it.
        spec: The data set.
        pixel_type: Pixels of the chunks.
        schedule: Rounds and chunks as planned.
        manifest: What made the set.
    """

    digest: str
    spec: DatasetSpec
    pixel_type: PixelType
    schedule: Schedule
    manifest: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write it to the run's folder."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "digest": self.digest,
            "spec": self.spec.to_dict(),
            "pixel_type": self.pixel_type,
            "schedule": asdict(self.schedule),
            "manifest": self.manifest,
        }
        with atomic_write(folder / RUN_FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read it from the run's folder.

        Raises:
            ValueError: If it is missing, damaged, of another kind or of a newer format.
        """
        path = folder / RUN_FILE
        try:
            content: Any = parse_json(path.read_bytes(), path)
            if content["format"] != _FORMAT or content["version"] > _VERSION:
                raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
            spec = DatasetSpec.from_dict(content["spec"])
            schedule = _schedule(content["schedule"], spec)
            pixel_type = _pixel_type(content["pixel_type"])
            return cls(str(content["digest"]), spec, pixel_type, schedule, dict(content["manifest"]))
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"cannot read the record {path} of a run ({error}), expected one that `unidd fit` wrote: give the "
                "--output_dir of a run, or go on with the run and take its distilled set"
            ) from error

    def rounds(self, store: ChunkStore, made: int, why: str) -> DistilledSet:
        """Return the set of the first rounds, marked as partial where more were planned.

        Args:
            store: The chunks.
            made: How many rounds.
            why: Why there are no more.

        Raises:
            ValueError: If no round is finished, a chunk is missing, or was made by another run.
        """
        planned = self.schedule.num_rounds
        if made < 1:
            raise ValueError(
                f"{store.folder}: got no finished round of {planned}, expected at least one: a round is finished when "
                f"all its {self.schedule.chunks_per_round} chunk(s) are; wait for it, or go on with the run"
            )
        manifest = self.manifest if made == planned else marked(self.manifest, made, planned, why)
        return store.assemble(replace(self.schedule, num_rounds=made), manifest, self.digest)


def marked(manifest: Mapping[str, Any], made: int, planned: int, why: str) -> dict[str, Any]:
    """Return the manifest of a partial set.

    Args:
        manifest: That of the whole.
        made: Rounds that it holds.
        planned: Rounds of the run, which a curriculum was spread over.
        why: Why there are no more.
    """
    return {
        **manifest,
        "ipc": made,
        "partial": f"{made} of {planned} rounds",
        "rounds_made": made,
        "rounds_planned": planned,
        "stopped": why,
    }


def finished_rounds(folder: Path) -> DistilledSet:
    """Return the rounds that the run in a folder has finished; the run may be going on.

    Args:
        folder: The ``output_dir`` of a `unidd fit`.

    Raises:
        ValueError: If there is no run, or none of its rounds is finished.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no folder"
        raise ValueError(f"got {found} at {folder}, expected the folder of a run: give the --output_dir of `unidd fit`")
    product = DistilledSet.load(folder / DISTILLED_FILE) if (folder / DISTILLED_FILE).is_file() else None
    if product is not None and not (folder / RUN_FILE).exists():  # made before there were records
        return product
    if not (folder / RUN_FILE).exists():
        raise ValueError(
            f"{folder}: got no {RUN_FILE}, expected the folder of a run that has begun to distil: give the "
            "--output_dir of `unidd fit`"
        )
    record = RunRecord.load(folder)
    store = ChunkStore(folder / CHUNK_FOLDER, record.spec, record.pixel_type)
    found_rounds = record.rounds(store, store.count_rounds(record.schedule), _UNFINISHED)
    # A run that was stopped on purpose has left its set, which says why.
    return product if product is not None and product.fingerprint() == found_rounds.fingerprint() else found_rounds


def _pixel_type(value: object) -> PixelType:
    for known in get_args(PixelType):
        if value == known:
            return known  # type: ignore[no-any-return]  # mypy takes the arguments of a Literal for anything
    raise ValueError(f"pixel_type {value!r}")


def _schedule(content: Mapping[str, Any], spec: DatasetSpec) -> Schedule:
    schedule = Schedule(**content)
    numbers = asdict(schedule).values()
    if any(type(value) is not int or value < 1 for value in numbers) or schedule.num_classes != spec.num_classes:
        raise ValueError(f"schedule {content!r}")
    return schedule
