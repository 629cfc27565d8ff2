"""`unidd sweep`: config files × settings × seeds, each distilled and evaluated, as nested MLflow runs and a report."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from unidd_pl.compare import Report
from unidd_pl.console import Stopped, say
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluate import Evaluation, RowChoice
from unidd_pl.files import atomic_write, check_writable
from unidd_pl.fit import DistillationRun
from unidd_pl.partial import DISTILLED_FILE
from unidd_pl.pictures import folder_names
from unidd_pl.plain_json import read_json
from unidd_pl.run_folder import RunFolder
from unidd_pl.tracking import Tracking

POINT_FILE = "point.json"
SCORES_FILE = "evaluation.json"
_CURE = "remove it, and give --overwrite true to make the point anew"
_LEAST_REAL = 3  # students on real images, the bar of every row

_SHARED = ("data.", "cache_dir", "tracking.")  # keys that fit and evaluation both have
_TEACHER = "teacher."
_OF_EVALUATION = ("protocol.", "networks", "precision", "workers", "accelerator")
_NOT_OF_THE_RESULT = re.compile(r"^(output_dir|output|overwrite|ckpt_path|distilled|workers|cache_dir):")


class MakeRun(Protocol):
    """Makes the distillation of a point from the arguments of `unidd fit`."""

    def __call__(self, arguments: list[str], *, parent: dict[str, str] | None) -> DistillationRun:
        """Return it."""


class MakeEvaluation(Protocol):
    """Makes the evaluation of a point from the arguments of `unidd evaluate`."""

    def __call__(self, arguments: list[str], *, rows: RowChoice, parent: dict[str, str] | None) -> Evaluation:
        """Return it."""


@dataclass(frozen=True)
class Point:
    """One distillation of a sweep.

    Args:
        config: Config file.
        settings: Values by dotted key.
        seed: Seed of the distillation.
        varied: Keys of which the sweep tries several values.
    """

    config: Path
    settings: Mapping[str, str]
    seed: int
    varied: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tells it apart; the name of its folder once it is made safe."""
        parts = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in self.settings.items() if key in self.varied]
        return ",".join([self.config.stem, *parts, f"seed={self.seed}"])


class Sweep:
    """One `unidd sweep`. Points that are finished are skipped, one that was stopped goes on from its checkpoint.

    Args:
        configs: Config files of distillations.
        grid: Values by dotted key; every combination is a point. Keys of the protocol and of the students go to the
            evaluation, keys of data and teacher to both, others to the distillation.
        seeds: Seeds of the distillation, 0 to this minus 1, for each combination.
        evaluation: Config file of the evaluation.
        students: Students for each set; None for what that file says.
        tracking: Where it is recorded; its experiment is the study.
        output: Folder of the points and the report.
        make_run: Makes a distillation.
        make_evaluation: Makes an evaluation.
        check_evaluation: Parses the arguments of one, to refuse what is wrong.
        overwrite: Make points anew that were made with other settings.
        report: Make the report at the end.

    Raises:
        ValueError: If there are no points, two of the same name, or settings that no config knows.
    """

    def __init__(
        self,
        configs: Sequence[Path],
        grid: Mapping[str, Sequence[str]],
        seeds: int,
        evaluation: Path,
        students: int | None,
        tracking: Tracking,
        output: Path,
        make_run: MakeRun,
        make_evaluation: MakeEvaluation,
        check_evaluation: Callable[[list[str]], object],
        *,
        overwrite: bool = False,
        report: bool = True,
    ) -> None:
        if seeds < 1:
            raise ValueError(f"seeds: got {seeds}, expected at least 1")
        if missing := [str(one) for one in (*configs, evaluation) if not one.is_file()]:
            raise ValueError(f"got {', '.join(missing)}, expected config files: correct --config or --evaluate")
        combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        varied = tuple(key for key, values in grid.items() if len(values) > 1)
        self.points = [Point(*one, varied) for one in itertools.product(configs, combinations, range(seeds))]
        names = [one.name for one in self.points]
        if len(set(names)) < len(names):
            raise ValueError(
                f"got points of the same name among {sorted(set(names))}: expected each config and value once"
            )
        self.folders = dict(zip(names, (output / one for one in folder_names(tuple(names))), strict=True))
        self.evaluation = evaluation
        self.students = students
        self.tracking = tracking
        self.output = output
        self.make_run = make_run
        self.make_evaluation = make_evaluation
        self.check_evaluation = check_evaluation
        self.overwrite = overwrite
        self.report = report
        self._failed: dict[str, str] = {}

    def run(self) -> Path | None:
        """Make all points that are missing and the report; return its page, None where there is none.

        Raises:
            ValueError: At the end, if points failed.
        """
        # All of them before the first: what is refused must not show after hours.
        plans = [self._plan(point) for point in self.points]
        check_writable(self.output)
        mark = {"stage": "sweep", "sweep": self.tracking.experiment}
        with self.tracking.run("sweep", self.output.name, {"sweep": self.tracking.experiment}, unless=mark) as record:
            record.params(
                {"points": len(plans), "configs": " ".join(dict.fromkeys(one.config.stem for one in self.points))}
            )
            real: dict[str, _Plan] = {}
            for number, plan in enumerate(plans, start=1):
                say(f"\nPoint {number} of {len(plans)}: {plan.point.name}")
                self._make(plan, mark)
                if plan.point.name not in self._failed:
                    real.setdefault(plan.real_digest, plan)
            for plan in real.values():
                self._score_real(plan, mark)
        page = self._report(mark) if self.report else None
        if self._failed:
            shown = "".join(f"\n  {name}: {message}" for name, message in self._failed.items())
            raise ValueError(f"{len(self._failed)} of {len(plans)} points failed, the rest is finished:{shown}")
        return page

    def _plan(self, point: Point) -> _Plan:
        folder = self.folders[point.name]
        common = [f"--tracking.experiment={self.tracking.experiment}", f"--tracking.enabled={self.tracking.enabled}"]
        common += [f"--tracking.uri={self.tracking.uri}", f"--tracking.outbox={self.tracking.outbox}"]
        fit = ["--config", str(point.config), *common, f"--output_dir={folder}", f"--model.init_args.seed={point.seed}"]
        score = ["--config", str(self.evaluation), *common]
        for key, value in point.settings.items():
            shared = key.startswith((*_SHARED, _TEACHER))
            if shared or not key.startswith(_OF_EVALUATION):
                fit.append(f"--{key}={value}")
            if shared or key.startswith(_OF_EVALUATION):
                score.append(f"--{key}={value}")
        # Parsed now, to refuse what is wrong and to know what the result depends on; made when it is its turn.
        run = self.make_run(fit, parent=None)
        self.check_evaluation([*score, "--distilled", str(folder / DISTILLED_FILE)])
        digest = _digest(run.config, score, self.evaluation.read_text(), self.students)
        plan = _Plan(point, folder, fit, score, digest)
        done = plan.state
        if done and done["digest"] != digest and not self.overwrite:
            raise ValueError(
                f"{folder} was made with other settings: give --overwrite true to make it anew, or another --output_dir"
            )
        if not done:
            run.overwrite = self.overwrite
            run.check()
        return plan

    def _make(self, plan: _Plan, mark: dict[str, str]) -> None:
        state = plan.state if plan.state.get("digest") == plan.digest else {}
        if state.get("done"):
            say("Finished before: skipped")
            return
        try:
            if not (state and (plan.folder / DISTILLED_FILE).exists()):
                resumes = bool(state) and RunFolder(plan.folder).checkpoint.exists()
                plan.write(done=False)
                options = ["--ckpt_path=last"] if resumes else ["--overwrite=true"]
                self.make_run([*plan.fit, *options], parent=mark).fit()
            students = [] if self.students is None else [f"--seeds={self.students}"]
            self._evaluate(plan, [*students, f"--output={plan.folder / SCORES_FILE}"], "distilled")
            plan.write(done=True)
        except Stopped as stop:
            raise Stopped(stop.number, f"{stop}\nThe same sweep goes on where it was stopped") from stop
        except ValueError as error:
            say(f"Failed: {error}")
            self._failed[plan.point.name] = str(error)

    def _score_real(self, plan: _Plan, mark: dict[str, str]) -> None:
        """Score real images under the protocol of a point, once for all points that share it."""
        output = self.output / f"real_images_{plan.real_digest}.json"
        if output.exists():
            return
        students = max(_LEAST_REAL, self.students or 0)
        say(f"\nReal images, {students} students")
        temporary = output.with_name(f"unfinished_{output.name}")  # an evaluation saves after each student
        self._evaluate(plan, [f"--seeds={students}", f"--output={temporary}"], "real", mark)
        for suffix in (".json", ".csv", ".md", ".tex"):
            temporary.with_suffix(suffix).replace(output.with_suffix(suffix))

    def _evaluate(self, plan: _Plan, options: list[str], rows: RowChoice, parent: dict[str, str] | None = None) -> None:
        arguments = [*plan.score, "--overwrite=true", *options, "--distilled", str(plan.folder / DISTILLED_FILE)]
        self.make_evaluation(arguments, rows=rows, parent=parent).run()

    def _report(self, mark: dict[str, str]) -> Path | None:
        if not self.tracking.enabled:
            return None
        report = Report(self.tracking, self.output / "report", facet=True, overwrite=True, parent=mark)
        try:
            return report.run()
        except ValueError as error:  # the server may be away: the points are made and their records wait
            say(f"No report yet ({error}); later: unidd compare --experiment {self.tracking.experiment}")
            return None


@dataclass(frozen=True)
class _Plan:
    """A point with what is to be run for it, and a digest of what its result depends on."""

    point: Point
    folder: Path
    fit: list[str]
    score: list[str]
    digest: str

    @property
    def real_digest(self) -> str:
        """Digest of what its bar of real images depends on; its set may hold fewer rounds than were planned."""
        return _digest(self.score, DistilledSet.load(self.folder / DISTILLED_FILE).ipc)

    @property
    def state(self) -> dict[str, Any]:
        """What is noted in its folder; empty where nothing is.

        Raises:
            ValueError: If the note is damaged: it may stand for hours of work.
        """
        path = self.folder / POINT_FILE
        if not path.exists():
            return {}
        state = read_json(path, _CURE)
        if not (isinstance(state, dict) and isinstance(state.get("digest"), str) and "done" in state):
            raise ValueError(f"{path}: got other JSON than a sweep writes, expected digest and done; {_CURE}")
        return state

    def write(self, *, done: bool) -> None:
        """Note how far it is."""
        with atomic_write(self.folder / POINT_FILE) as temporary:
            temporary.write_text(json.dumps({"digest": self.digest, "done": done}) + "\n")


def _digest(*parts: Any) -> str:
    """Return a digest of configs without what changes no result."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            lines = re.sub(r"^tracking:\n(?:[ ].*\n)*", "", part, flags=re.MULTILINE).splitlines()
            part = [line for line in lines if not _NOT_OF_THE_RESULT.match(line)]  # noqa: PLW2901
        elif isinstance(part, list):
            part = [one for one in part if not one.startswith("--tracking.")]  # noqa: PLW2901
        texts.append(json.dumps(part))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
