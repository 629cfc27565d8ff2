"""Stop anywhere, go on with a new module and a new Trainer: the same chunks, bit for bit.

The run has two rounds of two chunks (classes 0 and 1, then 2) of four iterations: 16 steps.
"""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger

from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.distillation import DistillationModule
from unidd_pl.real_side import RealSide
from unidd_pl.resume import Interrupted, ResumePoint
from unidd_pl.spectral import CFM, HFM, LFM, ConstantCurriculum, CosineCurriculum
from unidd_pl.synthetic import ChunkStore, Position
from unidd_pl.teachers import Teacher
from unidd_pl.training import quiet_lightning

STEPS = 16
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
NEVER = 1000  # iterations between checkpoints: none on schedule
SETTINGS: dict[str, Any] = {"ipc": 2, "iterations": 4, "chunk_size": 2, "lr": 0.1, "beta": 0.2}

Step = tuple[Position, float, float, float]
Disturbance = Callable[[], None]


class Steps(L.Callback):
    """Keeps place, β, learning rate and loss of each step."""

    def __init__(self) -> None:
        self.done: list[Step] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._now = (pl_module.position, pl_module.matching.betas[0], trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.done.append((*self._now, float(outputs["loss"])))


class At(L.Callback):
    """Does something while a step is in hand."""

    def __init__(self, step: int, act: Disturbance) -> None:
        self.step = step
        self.act = act

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.act()


def send(number: signal.Signals) -> Disturbance:
    return lambda: os.kill(os.getpid(), number)


class Crash(Exception):
    """Stands for a power cut."""


def crash() -> None:
    raise Crash


class Run:
    """One process of a distillation: module, Trainer and the steps that it made."""

    def __init__(self, real: RealSide, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.module = DistillationModule(**{"method": CFM(), **SETTINGS, **settings})
        self.module.prepare(real, ChunkStore(folder / "chunks", real.teacher.spec))
        self.steps = Steps()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.ckpt"

    def fit(
        self, *callbacks: L.Callback, every: int = NEVER, resume: bool = False, logger: Logger | bool = False
    ) -> list[Step]:
        point = ResumePoint(self.checkpoint, every, lambda: str(self.module.position))
        trainer = L.Trainer(
            max_epochs=self.module.ipc,
            accelerator="cpu",
            devices=1,
            logger=logger,
            log_every_n_steps=1,
            callbacks=[CurriculumCallback(CosineCurriculum()), self.steps, *callbacks, point],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        with quiet_lightning():
            trainer.fit(self.module, ckpt_path=self.checkpoint if resume else None)
        return self.steps.done

    def chunks(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / "chunks").iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(real: RealSide, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(real, tmp_path_factory.mktemp("uninterrupted"))
    run.fit()
    assert len(run.steps.done) == STEPS
    assert len(run.chunks()) == 4
    return run


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    """Every test, whatever happens in it, has to leave the signal handlers as they were."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize(
    ("step", "number"),
    [
        pytest.param(0, signal.SIGINT, id="first-of-all"),
        pytest.param(2, signal.SIGINT, id="middle-of-chunk"),
        pytest.param(2, signal.SIGTERM, id="middle-of-chunk-SIGTERM"),
        pytest.param(2, signal.SIGUSR1, id="middle-of-chunk-SIGUSR1"),
        pytest.param(3, signal.SIGINT, id="last-of-chunk"),
        pytest.param(4, signal.SIGTERM, id="first-of-chunk"),
        pytest.param(7, signal.SIGINT, id="last-of-round"),
        pytest.param(8, signal.SIGTERM, id="first-of-round"),
        pytest.param(13, signal.SIGINT, id="middle-of-last-chunk"),
        pytest.param(15, signal.SIGINT, id="last-of-all"),
    ],
)
def test_a_stopped_run_goes_on_as_if_never_stopped(
    step: int, number: signal.Signals, real: RealSide, uninterrupted: Run, tmp_path: Path
) -> None:
    first = Run(real, tmp_path)
    with pytest.raises(
        Interrupted,
        match=rf"^Stopped by {number.name} in round \d, chunk \d, iteration \d\. Go on with ",
    ) as caught:
        first.fit(At(step, send(number)))
    assert caught.value.number == number
    assert caught.value.checkpoint == first.checkpoint
    assert first.checkpoint.is_file()
    assert first.module.step == step + 1, "the step in hand is completed, and no other is begun"

    second = Run(real, tmp_path)
    second.fit(resume=True)
    assert first.steps.done + second.steps.done == uninterrupted.steps.done
    assert second.module.step == STEPS
    assert second.chunks() == uninterrupted.chunks()
    assert torch.equal(second.module.images, uninterrupted.module.images)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".tmp")] == []


def test_the_place_of_the_message_is_the_step_that_comes_next(real: RealSide, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"^Stopped by SIGINT in round 1, chunk 2, iteration 3\. Go on with "):
        Run(real, tmp_path).fit(At(5, send(signal.SIGINT)))


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param((1, 5, 9, 14), id="in-chunks"),
        pytest.param((3, 7), id="ends-of-chunk-and-round"),
        pytest.param((7, 8), id="end-and-start-of-round"),
        pytest.param((7, 14), id="end-of-round-then-later"),
        pytest.param(tuple(range(STEPS)), id="after-every-step"),
    ],
)
def test_a_run_may_be_stopped_again_and_again(
    stops: tuple[int, ...], real: RealSide, uninterrupted: Run, tmp_path: Path
) -> None:
    done: list[Step] = []
    for part, step in enumerate(stops):
        run = Run(real, tmp_path)
        with pytest.raises(Interrupted):
            run.fit(At(step, send(signal.SIGTERM)), resume=part > 0)
        done += run.steps.done
    last = Run(real, tmp_path)
    done += last.fit(resume=True)
    assert [step[0] for step in done] == [step[0] for step in uninterrupted.steps.done]
    assert done == uninterrupted.steps.done
    assert last.chunks() == uninterrupted.chunks()


def test_a_round_that_starts_after_a_resume_is_announced(real: RealSide, tmp_path: Path) -> None:
    announced: list[int] = []

    class Announced(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            announced.append(trainer.current_epoch)

    with pytest.raises(Interrupted):
        Run(real, tmp_path).fit(Announced(), At(7, send(signal.SIGINT)))  # the last step of the first round
    assert announced == [0]
    Run(real, tmp_path).fit(Announced(), resume=True)
    assert announced == [0, 1]


class Curve(Logger):
    """Keeps the steps whose loss is logged."""

    name, version = "curve", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "loss/total" in metrics:
            self.steps.append(step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.parametrize("stopped_in", [0, 5, 7, 14])
def test_the_step_in_hand_is_logged_before_the_run_ends(stopped_in: int, real: RealSide, tmp_path: Path) -> None:
    """Who goes on never makes it again: the curve would have a gap."""
    curves = Curve(), Curve()
    with pytest.raises(Interrupted):
        Run(real, tmp_path).fit(At(stopped_in, send(signal.SIGINT)), logger=curves[0])
    Run(real, tmp_path).fit(resume=True, logger=curves[1])
    assert curves[0].steps == list(range(stopped_in + 1))
    assert curves[0].steps + curves[1].steps == list(range(STEPS))


@pytest.mark.parametrize("settings", [{"start": "noise"}, {"running": "off"}, {"chunk_size": 3}, {"method": LFM()}])
def test_other_settings_go_on_too(settings: dict[str, Any], real: RealSide, tmp_path: Path) -> None:
    whole = Run(real, tmp_path / "whole", **settings)
    whole.fit()
    first = Run(real, tmp_path / "parts", **settings)
    with pytest.raises(Interrupted):
        first.fit(At(5, send(signal.SIGINT)))
    second = Run(real, tmp_path / "parts", **settings)
    second.fit(resume=True)
    assert first.steps.done + second.steps.done == whole.steps.done
    assert second.chunks() == whole.chunks()


@pytest.mark.parametrize(
    ("every", "crash_at", "resumed_at"),
    [(5, 7, 5), (5, 13, 12), (4, 6, 4), (8, 9, 8), (3, 4, 4), (NEVER, 13, 12), (6, 15, 12)],
)
def test_a_crash_goes_back_to_the_last_checkpoint(
    every: int, crash_at: int, resumed_at: int, real: RealSide, uninterrupted: Run, tmp_path: Path
) -> None:
    first = Run(real, tmp_path)
    with pytest.raises(Crash):
        first.fit(At(crash_at, crash), every=every)
    assert len(first.steps.done) == crash_at
    second = Run(real, tmp_path)
    second.fit(resume=True)
    assert second.steps.done == uninterrupted.steps.done[resumed_at:]
    assert second.chunks() == uninterrupted.chunks()


def test_checkpoints_come_at_their_interval_and_at_the_end_of_a_chunk_only(real: RealSide, tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []
    run = Run(real, tmp_path)

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if run.checkpoint.exists():
                state = torch.load(run.checkpoint, weights_only=True)
                seen.append((trainer.global_step, state["distillation"]["step"]))

    run.fit(Look(), every=6)
    written = (4, 6, 8, 12)  # every sixth, and every fourth, the last of a chunk
    assert seen == [(step, max(one for one in written if one <= step)) for step in range(4, STEPS)]
    assert torch.load(run.checkpoint, weights_only=True)["distillation"]["step"] == STEPS


def test_a_checkpoint_holds_neither_teacher_nor_finished_chunks(real: RealSide, tmp_path: Path) -> None:
    Run(real, tmp_path).fit(every=5)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)  # plain types only
    assert state["distillation"]["step"] == STEPS
    assert set(state["state_dict"]) == {"images"}
    assert len(state["state_dict"]["images"]) == 1  # the third class alone
    assert state["distillation"]["made_from"]["teacher"] == real.teacher.fingerprint


def test_checkpoints_do_not_change_a_run(real: RealSide, uninterrupted: Run, tmp_path: Path) -> None:
    run = Run(real, tmp_path)
    assert run.fit(every=1) == uninterrupted.steps.done
    assert run.chunks() == uninterrupted.chunks()


# ---- refusals ----


@pytest.fixture(scope="module")
def stopped(real: RealSide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of step 6."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Crash):
        Run(real, folder).fit(At(7, crash), every=6)
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": LFM()}, r"another method: got \['cfm', .*\], expected \['lfm', .*\]"),
        ({"method": HFM()}, r"another method: got \['cfm', .*\], expected \['hfm', .*\]"),
        ({"beta": 0.3}, r"another beta: got 0\.2, expected 0\.3"),
        ({"eta": 0.2}, r"another eta: got 0\.1, expected 0\.2"),
        ({"ipc": 3}, r"another ipc: got 2, expected 3"),
        ({"iterations": 5}, r"another iterations: got 4, expected 5"),
        ({"chunk_size": 3}, r"another chunk_size: got 2, expected 3"),
        ({"lr": 0.2}, r"another lr: got 0\.1, expected 0\.2"),
        ({"betas": (0.9, 0.9)}, r"another betas: got \[0\.5, 0\.9\], expected \[0\.9, 0\.9\]"),
        ({"running": "off"}, r"another running: got auto, expected off"),
        ({"start": "noise"}, r"another start: got real, expected noise"),
        ({"crop_scale": (0.5, 1.0)}, r"another crop_scale: got \[0\.08, 1\.0\], expected \[0\.5, 1\.0\]"),
        ({"flip": False}, r"another flip: got True, expected False"),
        ({"max_roll": 0}, r"another max_roll: got 4, expected 0"),
        ({"relative": True}, r"another relative: got False, expected True"),
        ({"seed": 1}, r"another seed: got 0, expected 1"),
    ],
)
def test_another_run_may_not_go_on(settings: dict[str, Any], message: str, real: RealSide, stopped: Path) -> None:
    with pytest.raises(ValueError, match=rf"{message}; resume with the config that it was made with"):
        Run(real, stopped, **settings).fit(resume=True)


def test_another_teacher_may_not_go_on(real: RealSide, stopped: Path) -> None:
    network = copy.deepcopy(real.teacher.network)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    teacher = Teacher(network, real.teacher.name, real.teacher.spec, None, real.teacher.path)
    expected = f"another teacher: got {real.teacher.fingerprint}, expected {teacher.fingerprint}"
    with pytest.raises(ValueError, match=expected):
        Run(RealSide(teacher, real.statistics, real.images), stopped).fit(resume=True)


def test_other_statistics_may_not_go_on(real: RealSide, stopped: Path) -> None:
    statistics = replace(real.statistics, made_from={**real.statistics.made_from, "data": "another"})
    with pytest.raises(ValueError, match="another statistics: got"):
        Run(RealSide(real.teacher, statistics, real.images), stopped).fit(resume=True)


def test_another_curriculum_may_not_go_on(real: RealSide, stopped: Path) -> None:
    module = DistillationModule(method=CFM(), **SETTINGS)
    module.prepare(real, ChunkStore(stopped / "chunks", real.teacher.spec))
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[CurriculumCallback(ConstantCurriculum()), ResumePoint(stopped / "other.ckpt", NEVER, str)],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with quiet_lightning(), pytest.raises(ValueError, match="another curriculum: got"):
        trainer.fit(module, ckpt_path=stopped / "last.ckpt")


def test_a_checkpoint_of_something_else_is_refused(real: RealSide, stopped: Path, tmp_path: Path) -> None:
    state = torch.load(stopped / "last.ckpt", weights_only=True)
    del state["distillation"]
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="the checkpoint is not one of a distillation: give one written by"):
        Run(real, tmp_path).fit(resume=True)


@pytest.mark.parametrize("every", [0, -1])
def test_an_interval_below_one_is_refused(every: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"checkpoint_every: got {every}, expected at least 1"):
        ResumePoint(tmp_path / "last.ckpt", every, str)


# ---- signal handlers; that they are restored is also checked after every test above ----


@pytest.fixture
def own_handler() -> Iterator[list[int]]:
    """Install handlers that note what they get."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handlers_are_taken_over_for_the_run_and_given_back(
    real: RealSide, tmp_path: Path, own_handler: list[int]
) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    during: list[Any] = []
    Run(real, tmp_path).fit(At(3, lambda: during.extend(map(signal.getsignal, before))))
    assert len(during) == len(SIGNALS)
    assert all(handler not in before.values() for handler in during)
    assert {number: signal.getsignal(number) for number in before} == before
    send(signal.SIGINT)()
    assert own_handler == [signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_handlers_are_given_back_after_a_stop(
    number: signal.Signals, real: RealSide, tmp_path: Path, own_handler: list[int]
) -> None:
    with pytest.raises(Interrupted):
        Run(real, tmp_path).fit(At(3, send(number)))
    assert own_handler == [], "the first signal is the run's"
    send(number)()
    assert own_handler == [number]


def test_a_second_signal_behaves_as_before_the_run(real: RealSide, tmp_path: Path, own_handler: list[int]) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert own_handler == []
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        Run(real, tmp_path).fit(At(3, twice))
    assert own_handler == [signal.SIGINT]


def test_handlers_are_given_back_after_an_error(real: RealSide, tmp_path: Path, own_handler: list[int]) -> None:
    with pytest.raises(Crash):
        Run(real, tmp_path).fit(At(3, crash))
    send(signal.SIGTERM)()
    assert own_handler == [signal.SIGTERM]


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_each_end_gives_the_handlers_back_by_itself(end: str, tmp_path: Path, own_handler: list[int]) -> None:
    # Without a Trainer, because Lightning restores the handlers that it found, too.
    point = ResumePoint(tmp_path / "last.ckpt", 1, str)
    before = signal.getsignal(signal.SIGINT)
    point.on_train_start(None, None)  # type: ignore[arg-type]  # neither is looked at
    assert signal.getsignal(signal.SIGINT) != before
    getattr(point, end)()
    send(signal.SIGINT)()
    assert own_handler == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) == before
