"""ProbeCallback: what short students make of the rounds so far, on held-out training images; may end a run early."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from unidd_pl.console import Stopped, say
from unidd_pl.curriculum import expect_distillation
from unidd_pl.data.holdout import SomeImages
from unidd_pl.data.images import LabelledImages, TensorImages
from unidd_pl.distillation import DistillationModule
from unidd_pl.distributed import largest_over_ranks
from unidd_pl.evaluation import TrainingSet
from unidd_pl.networks import build_network
from unidd_pl.protocols import Protocol
from unidd_pl.ranks import rank
from unidd_pl.resume import ResumePoint, ended_by_signals
from unidd_pl.scores import Figure, mean_and_std
from unidd_pl.specs import DatasetSpec
from unidd_pl.stopping import reason_to_stop
from unidd_pl.student_pool import StudentJob, StudentSettings

_IN_MEMORY = 2**30  # bytes of held-out images that are decoded once a probe; more are read anew for each score
_GO_ON, _STOP, _FAILED = range(3)


class ProbeCallback(L.Callback):
    """Trains short students on the rounds made so far, every few rounds, and may end the run early.

    ::

        [round 0] ─ … ─ [round N−1] ─ probe ─ [round N] ─ … ─ [round 2N−1] ─ probe ─ stop?

    They are scored on a hold-out of the *training* images, never on test images: the last ones of each class that no
    start image is made from. The teacher has been trained on them and the real moments hold them, as they do without
    a probe, so figures are a little high; they are to be compared with each other, along one run. The distilled
    images do not depend on the probe: with and without it they are the same bits.

    Every probe has the batch size that the protocol has for the whole set, and the same number of steps: so a curve
    rises by what the images bring, not by longer training.

    Logged against the number of rounds: ``probe/accuracy``, the mean over the students of their tail mean, in [0, 1];
    with several students also ``probe/accuracy/std`` and ``probe/accuracy/seed <n>``; and ``probe/seconds``.

    A run that ends early leaves all rounds made so far as its distilled set, marked as partial, and a checkpoint to
    go on from. Of several processes that share a distillation the first one probes while the others wait.

    Args:
        every: Rounds between two probes, N.
        steps: Steps of a student, to the next whole epoch: what the protocol's epochs are cut to.
        students: Students of a probe; the same seeds each time.
        network: Architecture of the students; None for that of the teacher.
        protocol: How they are trained, all but its epochs; None for ``unidd-release`` for CIFAR.
        holdout: Images of each class that are held out.
        precision: Lightning's precision of the students.
        patience: End the run when so many probes in a row were not better than the best before; None for never.
        min_delta: By how much accuracy, in [0, 1], a probe has to be better to count.
        target: End the run when the accuracy is this, in [0, 1]; None for never.

    Raises:
        ValueError: If a setting is out of range, or says nothing without another.
    """

    def __init__(
        self,
        every: int = 1,
        steps: int = 500,
        students: int = 1,
        network: str | None = None,
        protocol: Protocol | None = None,
        holdout: int = 50,
        precision: str = "32-true",
        patience: int | None = None,
        min_delta: float = 0.0,
        target: float | None = None,
    ) -> None:
        counts = {"every": every, "steps": steps, "students": students, "holdout": holdout, "patience": patience}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"probe.{name}: got {value}, expected at least 1")
        if not 0 <= min_delta < 1:
            raise ValueError(f"probe.min_delta: got {min_delta}, expected a share, for example 0.005 for half a point")
        if min_delta and patience is None:
            raise ValueError(f"probe.min_delta: got {min_delta} without patience, which it is for: set patience too")
        if target is not None and not 0 < target <= 1:
            raise ValueError(f"probe.target: got {target}, expected a share, for example 0.6 for 60 %")
        protocol = protocol or Protocol()
        if protocol.labels == "stored":
            raise ValueError(
                f"probe.protocol {protocol.name}: got labels stored, expected online or hard, as a part of a set has "
                "no stored ones: set labels: online"
            )
        self.every = every
        self.students = students
        self.network = network
        self.protocol = protocol
        self.steps = steps
        self.holdout = holdout
        self.precision = precision
        self.patience = patience
        self.min_delta = min_delta
        self.target = target
        self.accuracies: dict[int, float] = {}
        """Mean over the students, by the number of rounds."""
        self.reason: str | None = None
        """Why the run ends early; None where it does not."""

    # ---- before any work ----

    def check(self, module: DistillationModule, images: LabelledImages, spec: DatasetSpec, teacher: str) -> None:
        """Refuse what does not fit the run, and choose the hold-out.

        Args:
            module: The distillation.
            images: Training images.
            spec: The data set.
            teacher: Architecture of the teacher.

        Raises:
            ValueError: If no probe would ever come, a class has too few images, or the architecture is unknown.
        """
        if self.every > module.ipc:
            raise ValueError(f"probe.every: got {self.every}, expected at most {module.ipc}, the rounds of the run")
        self._network = self.network or teacher
        with isolate_rng():  # random weights
            build_network(self._network, spec)
        self._held = held_out(module, images, spec, self.holdout)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do the checks, before a checkpoint is read."""
        module = expect_distillation(pl_module)
        teacher, images = module.real.teacher, module.real.images
        module.start.settle(teacher, images, range(teacher.spec.num_classes), module.seed)
        self.check(module, images, teacher.spec, teacher.name)

    # ---- when ----

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what is coming; make up for the probe that a stopped run did not come to."""
        if rank() == 0:
            say(
                f"Probe: every {self.every} round(s), {self.students} {self._network} for {self.steps} steps, "
                f"scored on {len(self._held)} training images (no start images; the teacher has seen them)"
            )
        self._take_stock(trainer, expect_distillation(pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe where it is time, and end the run where that is wanted."""
        self._take_stock(trainer, expect_distillation(pl_module))

    def _take_stock(self, trainer: L.Trainer, module: DistillationModule) -> None:
        made, begun = divmod(module.step, module.schedule.steps_per_round)
        due = made > 0 and not begun and made % self.every == 0 and made not in self.accuracies
        failure: Exception | None = None
        if rank() == 0:
            try:
                if due:
                    self._probe(trainer, module, made)
                self.reason = reason_to_stop(self.accuracies, self.patience, self.min_delta, self.target)
            except Exception as error:  # the others have to know before this process ends
                failure = error
        outcome = _FAILED if failure else _STOP if self.reason else _GO_ON
        outcome = largest_over_ranks(outcome, trainer.strategy.root_device)
        if failure is not None:
            raise failure
        if outcome == _FAILED:
            raise ValueError("the probe failed in the first process, which says why")
        if outcome == _STOP:
            trainer.should_stop = True

    # ---- one probe ----

    def _probe(self, trainer: L.Trainer, module: DistillationModule, made: int) -> None:
        point = next((one for one in trainer.callbacks if isinstance(one, ResumePoint)), None)  # type: ignore[attr-defined]
        if point is not None and point.stopping:
            return  # the resumed run makes up for it
        started = time.perf_counter()
        try:
            with isolate_rng(), ended_by_signals():
                scores = self._scores(trainer.strategy.root_device, module, made)
        except (Stopped, KeyboardInterrupt) as stop:
            if point is not None and point.stopping:
                return
            number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
            raise Stopped(
                number, f"Stopped in the probe after round {made}. Go on with the same command and --ckpt_path last"
            ) from stop
        mean, spread = mean_and_std(list(scores.values()))
        self.accuracies[made] = mean
        figures = {"probe/accuracy": mean, "probe/seconds": time.perf_counter() - started}
        if spread is not None:
            figures |= {"probe/accuracy/std": spread}
            figures |= {f"probe/accuracy/seed {seed}": value for seed, value in scores.items()}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=made)
        say(f"Probe after round {made} of {module.ipc}: {_percent((mean, spread))} in {figures['probe/seconds']:.0f} s")

    def _scores(self, device: torch.device, module: DistillationModule, made: int) -> dict[int, float]:
        """Return the tail mean of each student, by its seed."""
        part = module.store.assemble(replace(module.schedule, num_rounds=made), {}, module.run_digest)
        images = TrainingSet(part.images, part.labels, module.ipc)  # the batch size is that of the whole set
        epochs = -(-self.steps // -(-len(part) // min(len(part), self.protocol.batch_size_for(module.ipc))))
        settings = StudentSettings(
            module.real.teacher, _decoded(self._held, module.spec), self.protocol, device.type, self.precision,
            devices=1 if device.index is None else [device.index],
        )  # fmt: skip
        jobs = (StudentJob(self._network, images, seed, "Probe", epochs) for seed in range(self.students))
        return {job.seed: settings.train(job, show_progress=False).tail_mean for job in jobs}

    # ---- resume ----

    def state_dict(self) -> dict[str, Any]:
        """Return the probes so far and what they were made with."""
        return {"accuracies": dict(self.accuracies), "made with": self._made_with()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the probes so far; those of other settings cannot be compared and are left.

        Raises:
            ValueError: If the state is damaged.
        """
        accuracies = state_dict.get("accuracies")
        if not isinstance(accuracies, dict) or not all(
            type(made) is int and made > 0 and isinstance(value, float) and 0 <= value <= 1
            for made, value in accuracies.items()
        ):
            raise ValueError(f"got a checkpoint with the probes {accuracies!r}: it is damaged")
        if state_dict.get("made with") == self._made_with():
            self.accuracies = dict(accuracies)
        elif accuracies:
            say("Probe: the checkpoint's probes were made with other settings, and are not compared with those to come")

    def _made_with(self) -> str:
        names = ("steps", "students", "holdout", "precision")
        settings = {**vars(self.protocol), **{name: getattr(self, name) for name in names}, "network": self._network}
        return repr(sorted(settings.items()))


def held_out(module: DistillationModule, images: LabelledImages, spec: DatasetSpec, per_class: int) -> SomeImages:
    """Return the last training images of each class that no start image is made from.

    Args:
        module: The distillation.
        images: Training images.
        spec: The data set.
        per_class: Images of each class.

    Raises:
        ValueError: If a class has too few.
    """
    chosen = []
    for label, name in enumerate(spec.classes):
        positions = images.positions_of(label)
        free = positions[~torch.isin(positions, module.start.sources(positions, module.ipc, module.seed, label))]
        if len(free) < per_class:
            raise ValueError(
                f"probe.holdout: got {per_class} images of each class, expected at most {len(free)}: of the "
                f"{len(positions)} training images of {name!r} the others may become start images ({module.start}); "
                "lower holdout, or the ipc or the candidates of the start"
            )
        chosen.append(free[-per_class:])
    return SomeImages(images, torch.cat(chosen))


def _decoded(images: SomeImages, spec: DatasetSpec) -> LabelledImages:
    """Return images in memory, where they are not too many for that."""
    c, h, w = spec.image_shape
    if len(images) * c * h * w > _IN_MEMORY:
        return images
    return TensorImages(images.read(range(len(images))), images.labels)


def _percent(figure: Figure) -> str:
    mean, spread = figure
    return f"{100 * mean:.1f} %" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f} %"
