"""ProbeCallback: what it measures, that it changes no image, and how it ends a run.

The runs have three rounds of two chunks (classes 0 and 1, then 2) of two iterations: 12 steps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import Logger

from unidd_pl.console import Stopped
from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.distillation import DistillationModule
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluation import EvalModule, TrainingSet, train_student
from unidd_pl.probe import ProbeCallback, held_out
from unidd_pl.protocols import Protocol
from unidd_pl.real_side import RealSide
from unidd_pl.resume import Interrupted, ResumePoint
from unidd_pl.spectral import CFM, CosineCurriculum
from unidd_pl.starts import Collage, HerdingStart, NoiseStart, RealStart, Start
from unidd_pl.stopping import reason_to_stop
from unidd_pl.synthetic import ChunkStore
from unidd_pl.training import quiet_lightning

HERE = Path(__file__).parent
ROUNDS, STEPS = 3, 12
QUICK: dict[str, Any] = {"steps": 2, "holdout": 4}
TINY = "convnet-w8-d2"


class Curve(Logger):
    """Keeps what is logged of the probe."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[int | None, Mapping[str, float]] = {}

    @property
    def name(self) -> str:
        return "curve"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "probe/accuracy" in metrics:
            self.figures[step] = metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Run:
    """One process of a distillation."""

    def __init__(self, real: RealSide, folder: Path, **settings: Any) -> None:
        self.folder = folder
        given = {"ipc": ROUNDS, "method": CFM(), "iterations": 2, "chunk_size": 2, "lr": 0.1, "beta": 0.2, **settings}
        self.module = DistillationModule(**given)
        self.module.prepare(real, ChunkStore(folder / "chunks", real.teacher.spec))

    def fit(
        self, *callbacks: L.Callback, resume: bool = False, every: int = 1000, logger: Logger | bool = False
    ) -> None:
        checkpoint = self.folder / "last.ckpt"
        point = ResumePoint(checkpoint, every, lambda: str(self.module.position))
        trainer = L.Trainer(
            max_epochs=self.module.ipc, accelerator="cpu", devices=1, logger=logger, enable_checkpointing=False,
            callbacks=[CurriculumCallback(CosineCurriculum()), *callbacks, point], enable_model_summary=False,
            enable_progress_bar=False,
        )  # fmt: skip
        with quiet_lightning():
            trainer.fit(self.module, ckpt_path=checkpoint if resume else None)

    def chunks(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / "chunks").iterdir()}


@pytest.fixture(scope="module")
def plain(real: RealSide, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run without a probe."""
    run = Run(real, tmp_path_factory.mktemp("plain"))
    run.fit()
    return run


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    yield
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])
    signal.signal(signal.SIGUSR1, before[2])
    assert after == before


class TestFigures:
    def test_the_images_are_the_same_bits_as_without(self, real: RealSide, plain: Run, tmp_path: Path) -> None:
        states = []

        class Look(L.Callback):
            def on_train_epoch_start(self, *_: Any) -> None:
                states.append(torch.get_rng_state())

        torch.manual_seed(0)
        Run(real, tmp_path / "without").fit(Look())
        run, probe = Run(real, tmp_path / "with"), ProbeCallback(**QUICK, students=2)
        torch.manual_seed(0)
        run.fit(probe, Look())
        assert sorted(probe.accuracies) == [1, 2, 3]
        assert run.chunks() == plain.chunks()
        assert torch.equal(run.module.images, plain.module.images)
        # No draw of the run takes from the global generator; if one did, it would not have to know of the probe.
        assert all(torch.equal(one, other) for one, other in zip(states[:3], states[3:], strict=True))

    def test_the_curve_is_that_of_the_students(self, real: RealSide, tmp_path: Path) -> None:
        run, curve, probe = Run(real, tmp_path), Curve(), ProbeCallback(**QUICK, every=2, students=2)
        run.fit(probe, logger=curve)
        assert list(curve.figures) == [2]  # rounds; a third is not due
        part = run.module.store.assemble(
            run.module.schedule.__class__(3, 2, 2, 2), {}, run.module.run_digest
        )  # two rounds of it
        protocol = Protocol(epochs=2, batch_size={1: 10})  # 6 images: one step an epoch
        held = held_out(run.module, real.images, real.teacher.spec, 4)
        scores = [
            train_student(TINY, TrainingSet(part.images, part.labels, 3), real.teacher, held, protocol, seed,
                          label=None, accelerator="cpu").tail_mean
            for seed in (0, 1)
        ]  # fmt: skip
        figures = curve.figures[2]
        assert figures["probe/accuracy"] == pytest.approx(sum(scores) / 2)
        assert figures["probe/accuracy/std"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
        assert [figures[f"probe/accuracy/seed {seed}"] for seed in (0, 1)] == pytest.approx(scores)
        assert figures["probe/seconds"] > 0

    def test_one_student_has_no_deviation(self, real: RealSide, tmp_path: Path) -> None:
        curve = Curve()
        Run(real, tmp_path, ipc=1).fit(ProbeCallback(**QUICK), logger=curve)
        assert set(curve.figures[1]) == {"probe/accuracy", "probe/seconds"}

    def test_every_probe_has_the_same_steps(
        self, real: RealSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[int] = []
        step = EvalModule.training_step

        def counted(self: EvalModule, batch: list[int], batch_idx: int) -> torch.Tensor:
            steps[-1] += 1
            return step(self, batch, batch_idx)

        start = EvalModule.on_fit_start
        monkeypatch.setattr(EvalModule, "training_step", counted)
        monkeypatch.setattr(EvalModule, "on_fit_start", lambda self: (steps.append(0), start(self))[1])
        # 3, 6 and 9 images in batches of 3, as of the whole set: 1, 2 and 3 steps an epoch.
        probe = ProbeCallback(steps=6, holdout=4, protocol=Protocol(batch_size={1: 9, 3: 3}))
        Run(real, tmp_path).fit(probe)
        assert steps == [6, 6, 6]

    def test_another_architecture(self, real: RealSide, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Run(real, tmp_path, ipc=1).fit(ProbeCallback(**QUICK, network="convnet-w4-d1"))
        printed = capsys.readouterr().out
        assert "Probe: every 1 round(s), 1 convnet-w4-d1 for 2 steps, scored on 12 training images" in printed
        assert "no start images; the teacher has seen them" in printed


class TestHoldOut:
    @pytest.mark.parametrize("start", [RealStart(), NoiseStart(), Collage(factor=1, candidates=6)], ids=str)
    def test_no_image_of_it_is_a_start_image(self, start: Start, real: RealSide, tmp_path: Path) -> None:
        run = Run(real, tmp_path, start=start)
        held = held_out(run.module, real.images, real.teacher.spec, 4)
        assert held.labels.bincount().tolist() == [4, 4, 4]
        read: set[int] = set()

        class Noted(type(real.images)):  # type: ignore[misc]
            """Notes which images are read."""

            def __init__(self) -> None:
                self.__dict__.update(vars(real.images))

            def read(self, indices: Any) -> torch.Tensor:
                read.update(int(one) for one in indices)
                return real.images.read(indices)

            def read_crops(self, indices: Any, *crops: Any) -> torch.Tensor:
                read.update(int(one) for one in indices)
                return real.images.read_crops(indices, *crops)

        for round_index in range(ROUNDS):
            start.draw(real.teacher, Noted(), round_index, range(3), run.module.seed)
        assert bool(read) != isinstance(start, NoiseStart)
        assert not read & set(held.positions.tolist())

    def test_no_image_of_it_is_chosen_by_herding(self, real: RealSide, tmp_path: Path) -> None:
        start, probe = HerdingStart(), ProbeCallback(**QUICK)
        Run(real, tmp_path, start=start).fit(probe)
        taken = torch.cat([start.sources(real.images.positions_of(label), ROUNDS, 0, label) for label in range(3)])
        assert len(taken.unique()) == 3 * ROUNDS
        assert not set(taken.tolist()) & set(probe._held.positions.tolist())

    def test_a_start_that_says_nothing_leaves_no_image(self, real: RealSide, tmp_path: Path) -> None:
        class Mine(NoiseStart):
            sources = Start.sources

        with pytest.raises(ValueError, match=r"probe\.holdout: got 1 images of each class, expected at most 0"):
            held_out(Run(real, tmp_path, start=Mine()).module, real.images, real.teacher.spec, 1)

    def test_a_start_is_the_same_as_before_it_named_its_sources(self, real: RealSide) -> None:
        positions = real.images.positions_of(1)
        drawn = Collage(candidates=6).sources(positions, 1, 0, 1)
        assert len(drawn) == 6
        assert drawn.tolist() == sorted(drawn.tolist())
        assert set(drawn.tolist()) < set(positions.tolist())
        assert drawn.tolist() != positions[:6].tolist()  # drawn at random

    def test_many_images_are_read_anew(self, real: RealSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        few, many = ProbeCallback(**QUICK), ProbeCallback(**QUICK)
        Run(real, tmp_path / "few", ipc=1).fit(few)
        monkeypatch.setattr("unidd_pl.probe._IN_MEMORY", 0)
        Run(real, tmp_path / "many", ipc=1).fit(many)
        assert few.accuracies == many.accuracies


@pytest.mark.parametrize(
    ("accuracies", "settings", "expected"),
    [
        ([0.5], {}, None),
        ([], {"patience": 1, "target": 0.1}, None),
        ([0.5, 0.4, 0.3], {}, None),
        ([0.5, 0.6, 0.59], {"patience": 2}, None),
        ([0.5, 0.6, 0.59, 0.6], {"patience": 2}, r"the last 2 probe\(s\) were not better than 60.0 %$"),
        ([0.5, 0.51, 0.52], {"patience": 1, "min_delta": 0.02}, "not better than 50.0 % by more than 2 points"),
        ([0.5, 0.51, 0.521], {"patience": 2, "min_delta": 0.02}, None),  # slow, and better in the end
        ([0.5, 0.4, 0.7], {"patience": 1}, None),  # it has gone on since
        ([0.5, 0.7], {"target": 0.7}, "the probe reached 70.0 %, its target is 70 %"),
        ([0.5, 0.69], {"target": 0.7}, None),
    ],
)
def test_the_rule(accuracies: list[float], settings: dict[str, Any], expected: str | None) -> None:
    given: dict[str, Any] = {"patience": None, "min_delta": 0.0, "target": None, **settings}
    reason = reason_to_stop({2 * n + 2: value for n, value in enumerate(accuracies)}, **given)
    if expected is None:
        assert reason is None
    else:
        import re

        assert reason is not None
        assert re.search(expected, reason)


class Scripted(ProbeCallback):
    """A probe with given figures, and something that happens in it."""

    def __init__(self, *figures: float, happens: Callable[[int], None] = lambda _: None, **settings: Any) -> None:
        super().__init__(**{**QUICK, **settings})
        self.figures = figures
        self.happens = happens

    def _scores(self, device: torch.device, module: DistillationModule, made: int) -> dict[int, float]:
        self.happens(made)
        return {0: self.figures[made - 1]}


class TestStopping:
    def test_the_rounds_so_far_stay_and_a_checkpoint(self, real: RealSide, plain: Run, tmp_path: Path) -> None:
        run, probe = Run(real, tmp_path), Scripted(0.5, 0.4, 0.9, patience=1)
        run.fit(probe)
        assert probe.reason == "the last 1 probe(s) were not better than 50.0 %"
        assert run.module.step == 8
        assert run.chunks() == {name: data for name, data in plain.chunks().items() if "round_0002" not in name}

        again = Run(real, tmp_path)  # the same command: nothing more is made
        probe = Scripted(0.5, 0.4, 0.9, patience=1)
        again.fit(probe, resume=True)
        assert (again.module.step, probe.accuracies) == (8, {1: 0.5, 2: 0.4})
        assert probe.reason is not None

        on = Run(real, tmp_path)  # with more patience it goes on to the same images
        probe = Scripted(0.5, 0.4, 0.9, patience=2)
        on.fit(probe, resume=True)
        assert on.chunks() == plain.chunks()
        assert (probe.accuracies, probe.reason) == ({1: 0.5, 2: 0.4, 3: 0.9}, None)

    def test_a_target(self, real: RealSide, tmp_path: Path) -> None:
        run = Run(real, tmp_path)
        run.fit(Scripted(0.5, 0.4, 0.9, target=0.5))
        assert run.module.step == 4

    def test_a_failure_ends_the_run(self, real: RealSide, tmp_path: Path) -> None:
        def fail(made: int) -> None:
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            Run(real, tmp_path).fit(Scripted(happens=fail))


class TestResume:
    @pytest.mark.parametrize("crash_at", [1, 2, 3])
    def test_the_curve_goes_on(self, crash_at: int, real: RealSide, plain: Run, tmp_path: Path) -> None:
        whole = ProbeCallback(**QUICK)
        Run(real, tmp_path / "whole").fit(whole)

        class Crash(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
                if trainer.global_step == 4 * crash_at - 1:  # the last step of a round
                    raise KeyError("power cut")

        with pytest.raises(KeyError, match="power cut"):
            Run(real, tmp_path / "parts").fit(ProbeCallback(**QUICK), Crash(), every=2)
        second, probe = Run(real, tmp_path / "parts"), ProbeCallback(**QUICK)
        second.fit(probe, resume=True)
        assert probe.accuracies == whole.accuracies
        assert second.chunks() == plain.chunks()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    def test_a_signal_in_a_probe_ends_it_and_it_is_made_up_for(
        self, number: signal.Signals, real: RealSide, plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step, steps = EvalModule.training_step, []

        def disturbed(self: EvalModule, batch: list[int], batch_idx: int) -> torch.Tensor:
            steps.append(batch_idx)
            if len(steps) == 2:
                os.kill(os.getpid(), number)
            return step(self, batch, batch_idx)

        monkeypatch.setattr(EvalModule, "training_step", disturbed)
        first, probe = Run(real, tmp_path), ProbeCallback(steps=1000, holdout=4)
        with pytest.raises(Interrupted, match=f"Stopped by {number.name} in round 2, chunk 1, iteration 1"):
            first.fit(probe)
        assert len(steps) <= 3  # of 1,000
        assert (first.module.step, probe.accuracies) == (4, {})
        second, probe = Run(real, tmp_path), ProbeCallback(**QUICK)
        second.fit(probe, resume=True)
        assert sorted(probe.accuracies) == [1, 2, 3]
        assert second.chunks() == plain.chunks()

    def test_a_signal_before_a_probe_leaves_it_out(self, real: RealSide, tmp_path: Path) -> None:
        class Press(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
                if trainer.global_step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)

        probe = ProbeCallback(**QUICK)
        with pytest.raises(Interrupted):
            Run(real, tmp_path).fit(Press(), probe)
        assert probe.accuracies == {}

    def test_without_a_resume_point_ctrl_c_ends_the_run(self, real: RealSide, tmp_path: Path) -> None:
        def press(made: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        run = Run(real, tmp_path)
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            callbacks=[CurriculumCallback(CosineCurriculum()), Scripted(0.5, happens=press)],
            enable_model_summary=False,
        )  # fmt: skip
        # A shell starts what runs in its background with Ctrl-C ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with quiet_lightning(), pytest.raises(Stopped, match=r"Stopped in the probe after round 1\. Go on with"):
                trainer.fit(run.module)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_probes_of_other_settings_are_not_compared(
        self, real: RealSide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Run(real, tmp_path).fit(Scripted(0.9, 0.4, 0.3, target=0.8))
        probe = Scripted(0.9, 0.4, 0.3, patience=3, students=2)
        Run(real, tmp_path).fit(probe, resume=True)
        assert probe.accuracies == {1: 0.9, 2: 0.4, 3: 0.3}  # the first one anew
        assert "made with other settings" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "state",
        [{}, {"accuracies": [1]}, {"accuracies": {0: 0.5}}, {"accuracies": {1: 2.0}}, {"accuracies": {"1": 0.5}},
         {"accuracies": {1: float("nan")}}, {"accuracies": {True: 0.5}}],
    )  # fmt: skip
    def test_a_damaged_state_is_refused(self, state: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"got a checkpoint with the probes .*: it is damaged"):
            ProbeCallback().load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, r"probe\.every: got 0, expected at least 1"),
        ({"steps": -1}, r"probe\.steps: got -1, expected at least 1"),
        ({"students": 0}, r"probe\.students: got 0, expected at least 1"),
        ({"holdout": 0}, r"probe\.holdout: got 0, expected at least 1"),
        ({"patience": 0}, r"probe\.patience: got 0, expected at least 1"),
        ({"min_delta": -0.1, "patience": 1}, r"probe\.min_delta: got -0\.1, expected a share"),
        ({"min_delta": 5, "patience": 1}, r"probe\.min_delta: got 5, expected a share, for example 0\.005"),
        ({"min_delta": float("nan"), "patience": 1}, r"probe\.min_delta: got nan"),
        ({"min_delta": 0.01}, r"probe\.min_delta: got 0\.01 without patience.*: set patience too"),
        ({"target": 65}, r"probe\.target: got 65, expected a share, for example 0\.6 for 60 %"),
        ({"target": 0.0}, r"probe\.target: got 0\.0"),
        ({"protocol": Protocol(labels="stored")}, r"got labels stored, expected online or hard"),
    ],
)
def test_nonsense_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeCallback(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 4}, r"probe\.every: got 4, expected at most 3, the rounds of the run"),
        ({"holdout": 8}, r"got 8 images of each class, expected at most 7: of the 10 training images of 'blue'"),
        ({"network": "convent"}, "convent"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(
    settings: dict[str, Any], message: str, real: RealSide, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        Run(real, tmp_path).fit(ProbeCallback(**{**QUICK, **settings}))
    assert not (tmp_path / "chunks").exists()


def test_another_module_is_refused() -> None:
    with pytest.raises(ValueError, match="got a BoringModel, expected a DistillationModule"):
        L.Trainer(max_epochs=1, callbacks=[ProbeCallback()], logger=False, accelerator="cpu").fit(BoringModel())


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["lightning", "torchrun"])
def test_two_processes_probe_once_and_stop_together(how: str, tmp_path: Path) -> None:
    config = HERE.parent / "configs" / "cfm_digits_probe.yaml"
    options = [
        "fit", "--config", str(config), "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"),
        "--trainer.logger=false", "--model.init_args.iterations", "2", "--teacher.epochs", "1",
        "--teacher.check", "false", "--trainer.callbacks.steps", "2", "--trainer.callbacks.patience", "1",
        "--trainer.callbacks.min_delta", "0.99",
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29641"]
    command = [sys.executable, *(launcher if how == "torchrun" else []), "-m", "unidd_pl.cli", *options]
    command += [] if how == "torchrun" else ["--trainer.devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("Probe after round") == 2
    distilled = DistilledSet.load(tmp_path / "out" / "distilled.safetensors")
    assert distilled.manifest["partial"] == "4 of 10 rounds"
    assert len(distilled) == 40
