"""Distillation of a training set into a few synthetic images per class.

Legend: n images of the chunk, c channels, h w space, k classes; l layers, t terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from unidd_pl.augmentation import random_shared_view
from unidd_pl.distributed import all_rows
from unidd_pl.layout import lay_out
from unidd_pl.objective import ChunkObjective
from unidd_pl.observing import CompileMode
from unidd_pl.ranks import own_rows, rank
from unidd_pl.real_side import RealSide
from unidd_pl.run_settings import (
    SETTINGS,
    RunningSetting,
    check_same_run,
    check_settings,
    check_step,
    digest_of,
    take_adam,
)
from unidd_pl.seeding import generator_for
from unidd_pl.spectral import AnyMoments, MatchingLoss, Method, RunningMode, RunningMoments, Signal, reading_is_free
from unidd_pl.starts import Start, StartName, chosen_start
from unidd_pl.synthetic import ChunkStore, Position, Schedule, clip_
from unidd_pl.training import Iterations, is_logged_step


class DistillationModule(L.LightningModule):
    """Learns synthetic images whose filtered correlations match those of the real data.

    ::

        for round i:                                  # one Lightning epoch; β_i is held
            for chunk of classes:                     # one image of each class
                images ← start; Adam ← fresh
                for iteration:
                    logits, X = teacher(A(images))    # one forward pass, or in parts: objective.py
                    L = CE(logits, y) + η Σ_l Σ_(f,g) ‖f(Ψ)g(Φ) − f(Ψ_s)g(Φ_s)‖_F
                    images ← clip(Adam(images, ∇L))
                store ← images

    The synthetic images of the current chunk are the only parameter, in normalised pixels.

    Args:
        ipc: Images per class; the number of rounds.
        method: The matching objective.
        beta: β of the first round, eigenvalue units; what it becomes is up to the `CurriculumCallback`.
        eta: Weight η of the matching loss; 0 leaves the cross-entropy alone.
        iterations: Iterations per chunk.
        chunk_size: Classes optimised together, at most.
        lr: Learning rate of Adam in normalised pixels; follows a cosine to 0 over each chunk.
        betas: Decay rates of Adam.
        signal: Signal of the FLC.
        running: Running synthetic moments over chunks: ``mean``, ``merge`` (exact), ``off``, or ``auto``
            for ``mean`` where a chunk holds all classes and ``merge`` where it does not.
        start: ``real``, the i-th training image of each class in round i; ``herding``, those that together keep the
            mean of their class in the teacher's features; ``collage``, of crops that the teacher is sure of; ``noise``;
            ``auto``, a collage for an ipc of 1 and real for more; or a class of `unidd_pl.starts`.
        crop_scale: Area of the random resized crop, as shares of the image.
        flip: Random horizontal flips.
        max_roll: Largest random roll, pixels.
        relative: Divide each matching term by the norm of its real side, or the least norm that is a scale.
        seed: Seed of augmentation and noise.
        micro_batch: Images that the teacher sees at a time, where a chunk is too large for the memory; null sees the
            whole chunk. It changes the memory and, by one more forward pass a step, the time, but not the result.
        compile_mode: Compile the teacher's passes, by this mode of `torch.compile`: they are faster after some seconds
            of compiling, and the result differs by rounding. Null runs them as they are. Not with `micro_batch`.

    Raises:
        ValueError: If a number is out of range.

    References:
        SPEC.md sections 2 and 3.
    """

    images: nn.Parameter

    def __init__(
        self,
        ipc: int,
        method: Method,
        beta: float = 0.1,
        eta: float = 0.1,
        iterations: int = 1000,
        chunk_size: int = 200,
        lr: float = 0.25,
        betas: tuple[float, float] = (0.5, 0.9),
        signal: Signal = "mean",
        running: RunningSetting = "auto",
        start: StartName | Start = "real",
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = True,
        max_roll: int = 4,
        relative: bool = False,
        seed: int = 0,
        micro_batch: int | None = None,
        compile_mode: CompileMode | None = None,
    ) -> None:
        super().__init__()
        positive = {"ipc": ipc, "beta": beta, "iterations": iterations, "chunk_size": chunk_size, "lr": lr}
        check_settings(positive, eta, betas, crop_scale, max_roll, micro_batch, compile_mode)
        self.ipc = ipc
        self.method = method
        self.beta = beta
        self.eta = eta
        self.iterations = iterations
        self.chunk_size = chunk_size
        self.lr = lr
        self.betas = betas
        self.signal = signal
        self.running = running or "off"
        self.start = chosen_start(start, ipc)
        self.crop_scale = crop_scale
        self.flip = flip
        self.max_roll = max_roll
        self.relative = relative
        self.seed = seed
        self.micro_batch = micro_batch
        self.compile_mode = compile_mode

        self.images = nn.Parameter(torch.empty(0))
        self.step = 0
        """Iterations done, over all chunks and rounds; the place of the run follows from it."""
        self._rounds = range(ipc)  # those that the Trainer makes
        self.curriculum = "none"
        """What the `CurriculumCallback` brings; part of the digest of the run."""
        self._chunk_moments: Sequence[AnyMoments] = []  # of the last forward pass

    # ---- set-up ----

    def prepare(self, real: RealSide, store: ChunkStore) -> None:
        """Take up the real side; `unidd fit` calls this once teacher and statistics are there.

        Args:
            real: Teacher, statistics and training images.
            store: Where finished chunks go.

        Raises:
            ValueError: If a class has too few images to start from, or the statistics hold another signal or
                other layers.
        """
        real.check(self.method, self.signal)
        self.spec = real.teacher.spec
        self.start.check(real.images, self.spec, self.ipc)
        self.schedule = Schedule(self.spec.num_classes, self.chunk_size, self.ipc, self.iterations)
        # Inside RealSide the teacher is no submodule: it stays out of the checkpoint and out of .train().
        self.real = real
        self.objective = ChunkObjective(
            real,
            MatchingLoss(self.method, real.statistics.moments, self.beta, relative=self.relative),
            RunningMoments(self.running_mode) if self.running != "off" else None,
            self.eta,
            self.micro_batch,
            self.compile_mode,
        )
        self.store = store
        self._use_chunk_shape(self.position)

    def take_rounds(self, rounds: range) -> None:
        """Make these rounds next, and no others; all of them unless told.

        Args:
            rounds: Neighbouring rounds, from 0. Those before them count for nothing, so there must be no running
                moments of them.
        """
        self._rounds = rounds
        self.step = rounds.start * self.schedule.steps_per_round
        self._use_chunk_shape(self.position)

    @property
    def running_mode(self) -> RunningMode:
        """Mode of the running moments, with ``auto`` resolved."""
        if self.running in ("merge", "mean"):
            return self.running
        return "mean" if self.chunk_size >= self.spec.num_classes else "merge"

    @property
    def matching(self) -> MatchingLoss:
        """The matching loss, whose β a curriculum sets."""
        return self.objective.matching

    @property
    def running_moments(self) -> RunningMoments | None:
        """Moments of the finished chunks, or None where they are off."""
        return self.objective.running

    @property
    def position(self) -> Position:
        """Round, chunk and iteration that come next."""
        return self.schedule.at(self.step)

    @property
    def last_position(self) -> Position:
        """Round, chunk and iteration that were done last."""
        return self.schedule.at(max(0, self.step - 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam; it is made fresh and its rate set along the cosine as chunks go by."""
        return torch.optim.Adam([self.images], lr=self.lr, betas=self.betas)

    def train_dataloader(self) -> Iterations:
        """Return the iterations of one round; the data of a step are the images themselves."""
        return Iterations(self.schedule.steps_per_round)

    def on_fit_start(self) -> None:
        """Bring the teacher to the device of the images, laid out as is fast there."""
        lay_out(self.real.teacher.network, self.device)

    # ---- one iteration ----

    def on_train_batch_start(self, batch: int, batch_idx: int) -> None:
        """Start a new chunk where one is due, and set the learning rate."""
        position = self.position
        optimizer = self.trainer.optimizers[0]
        if position.iteration == 0:
            self._begin_chunk(position)
            optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = self.lr * (1 + math.cos(math.pi * position.iteration / self.iterations)) / 2

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Return cross-entropy + η · matching loss, both from one look of the teacher."""
        position = self.position
        compared = self.schedule.compared_classes(position, accumulated=self.running_moments is not None)
        columns = None if compared is None else torch.arange(compared.start, compared.stop, device=self.device)
        own = self._own_classes(position)
        labels = torch.arange(own.start, own.stop, device=self.device)
        chunk = len(self.schedule.classes(position.chunk_index))
        logged = is_logged_step(self.trainer)
        check = logged or reading_is_free(self.device) or position.iteration in (0, self.iterations - 1)
        loss = self.objective(self.images, labels, self.augment, columns, position, chunk, check=check)
        self._chunk_moments = loss.moments
        if logged:
            self.log("loss/total", loss.total.detach(), prog_bar=True)
            self.log_dict(loss.figures(self.real.statistics.layers, self.method.term_names))
            if self._rounds.start:  # a Trainer counts its own steps, from 0
                self.log("step", float(self.step))
        return loss.total

    def augment(self, images: Tensor) -> Tensor:
        """Return A(images): one crop and one flip for the whole chunk, then one roll; the gradient flows."""
        position = self.position
        generator = generator_for(self.seed, "augment", position.round_index, position.chunk_index, position.iteration)
        return random_shared_view(images, generator, scale=self.crop_scale, flip=self.flip, max_shift=self.max_roll)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, clip to valid pixels, count; store the chunk if that was its last iteration.

        All of this happens here and not in ``on_train_batch_end`` because callbacks come before the module
        there: a checkpoint would hold images that are not clipped yet.
        """
        super().optimizer_step(*args, **kwargs)
        clip_(self.images, self.spec)
        position = self.position
        self.step += 1
        if position.iteration == self.iterations - 1:
            if self.running_moments:
                self.running_moments.update(self._chunk_moments)
            classes = self.schedule.classes(position.chunk_index)
            images = all_rows(self.images, len(classes))
            if rank() == 0:
                self.store.add(position, images, classes, self.run_digest)

    # ---- resume ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the images alone do not say, and the rows of all processes."""
        self._map_rows(checkpoint, all_rows)
        checkpoint["distillation"] = {
            "step": self.step,
            "running_moments": self.running_moments.state_dict() if self.running_moments else [],
            "made_from": self._made_from(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the place of the run.

        Raises:
            ValueError: If the checkpoint is of another run.
        """
        state = checkpoint.get("distillation")
        if state is None:
            raise ValueError("the checkpoint is not one of a distillation: give one written by `unidd fit`")
        check_same_run(state["made_from"], self._made_from())
        first, last = (place * self.schedule.steps_per_round for place in (self._rounds.start, self._rounds.stop))
        self.step = check_step(state["step"], first, last)
        self.store.check(self.schedule, range(first, self.step), self.run_digest)  # now, not after the remaining rounds
        if self.running_moments:
            self.running_moments.load_state_dict(state["running_moments"], like=self.real.statistics.moments)
        self._use_chunk_shape(self.schedule.at(self.step - 1))  # of the chunk that the last step worked on
        take_adam(checkpoint, self.configure_optimizers(), self.images)
        self._map_rows(checkpoint, lambda rows, count: rows[own_rows(count)])
        self.images.data = torch.empty_like(checkpoint["state_dict"]["images"])

    @property
    def run_digest(self) -> str:
        """Hexadecimal digest of all that the images depend on."""
        return digest_of(self._made_from())

    def _made_from(self) -> dict[str, Any]:
        return {
            "pixel type": self.store.dtype,
            "teacher": self.real.teacher.fingerprint,
            "statistics": self.real.statistics.fingerprint,
            "curriculum": self.curriculum,
            "method": [self.method.name, *(term.description for term in self.method.terms)],
            **{name: getattr(self, name) for name in SETTINGS},
            "start": str(self.start),
            "betas": list(self.betas),
            "crop_scale": list(self.crop_scale),
        }

    # ---- parts ----

    def _own_classes(self, position: Position) -> range:
        """Labels of the rows of the chunk that this process owns."""
        classes = self.schedule.classes(position.chunk_index)
        return classes[own_rows(len(classes))]

    def _map_rows(self, checkpoint: dict[str, Any], change: Callable[[Tensor, int], Tensor]) -> None:
        """Change whatever a checkpoint holds of each image: pixels and Adam's two moments of them."""
        state = checkpoint["state_dict"]
        shape = tuple(state["images"].shape)
        count = len(self.schedule.classes(self.schedule.at(max(0, self.step - 1)).chunk_index))
        state["images"] = change(state["images"], count)
        for adam in checkpoint.get("optimizer_states", []):
            for key, one in adam["state"].items():  # these are the optimiser's own: they are replaced, not changed
                rows = {name: value for name, value in one.items() if tuple(getattr(value, "shape", ())) == shape}
                adam["state"][key] = {**one, **{name: change(value, count) for name, value in rows.items()}}

    def _begin_chunk(self, position: Position) -> None:
        classes = self._own_classes(position)
        start = self.start.draw(self.real.teacher, self.real.images, position.round_index, classes, self.seed)
        self.images.data = start.to(self.images)

    def _use_chunk_shape(self, position: Position) -> None:
        self.images.data = torch.zeros(len(self.schedule.classes(position.chunk_index)), *self.spec.image_shape)
