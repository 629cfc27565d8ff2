"""The costs of a distillation's steps, known without its data: memory by counting, time by measuring.

Legend: n images, c channels, h w space, k classes; l layers.
"""

from __future__ import annotations

import math
import statistics as statistics_of_numbers
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from unidd_pl.augmentation import random_shared_view
from unidd_pl.data.images import TensorImages
from unidd_pl.distillation import DistillationModule
from unidd_pl.features import FeatureTap, layers_to_tap
from unidd_pl.memory import MIB, LinearBytes
from unidd_pl.moment_pass import label_weights
from unidd_pl.networks import build_network
from unidd_pl.objective import ChunkObjective, look
from unidd_pl.observing import observing
from unidd_pl.real_side import RealSide
from unidd_pl.seeding import generator_for
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import MatchingLoss, Moments
from unidd_pl.statistics import Statistics
from unidd_pl.synthetic import Schedule, clip, clip_
from unidd_pl.teachers import Teacher, freeze

_FLOAT32, _FLOAT64 = 4, 8  # bytes

_CHUNK_COPIES = 7  # images, gradient, Adam's two moments, A(images), and two while clipping
_MATCHING_COPIES = 6  # of (c, c) and (c, k) a layer: targets, running moments, factors, their gradients

_OVERHEAD = {"cpu": 1.65, "cuda": 1.3}
"""Memory taken over memory of features: scratch of the operators and gaps of the allocator. On a CPU as measured
(docs/planning.md); on a GPU a guess, not measured."""

_LIBRARIES = {"cpu": 55 * MIB, "cuda": 500 * MIB}  # taken at the first step: oneDNN's kernels; the CUDA context

_WARM_UP, _REPEATS = 1, 3  # steps
_STEP_SECONDS = 2.0  # a timed step should not take much longer
_TIMING_SECONDS = 8.0  # after these no further repeat
_LARGEST_STRETCH = 16  # images of the second timed step over those of the first


@dataclass(frozen=True)
class MemoryNeed:
    """Memory that the steps of a distillation take beside what the process holds already.

    Args:
        images: Images, gradient, Adam's state and copies of a chunk, bytes.
        features: What the teacher's look at one part holds, bytes.
        matching: Correlations and their filtered versions, bytes.
        teacher: Weights, bytes.
        device: Type of the device, for the overhead.
    """

    images: float
    features: float
    matching: float
    teacher: float
    device: str

    @property
    def total(self) -> float:
        """Estimated peak, bytes, with what operators and allocators take beside the tensors."""
        kind = "cpu" if self.device == "cpu" else "cuda"
        return self.images + self.features * _OVERHEAD[kind] + self.matching + self.teacher + _LIBRARIES[kind]


@dataclass(frozen=True)
class StepTime:
    """Time of one step on a whole chunk.

    Args:
        seconds: Seconds of a step.
        timed: Images of the steps that were timed. Where that is not the chunk, the time is a line through two, or
            in proportion to one.
    """

    seconds: float
    timed: tuple[int, ...]


class Workload:
    """A distillation seen from its costs, on a network of the teacher's shape with random weights.

    Args:
        module: The distillation.
        network: Name of the teacher's architecture.
        spec: Classes and images; names and normalisation do not matter.
        device: Where it will run.
    """

    def __init__(self, module: DistillationModule, network: str, spec: DatasetSpec, device: torch.device) -> None:
        self.module = module
        self.spec = spec
        self.device = device
        self.schedule = Schedule(spec.num_classes, module.chunk_size, module.ipc, module.iterations)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network: nn.Module = build_network(network, spec)
        freeze(self.network)
        self.layers = layers_to_tap(self.network, module.method.layers)

    @property
    def chunk(self) -> int:
        """Images of the largest chunk."""
        return min(self.module.chunk_size, self.spec.num_classes)

    @property
    def part(self) -> int:
        """Images that the teacher sees at a time."""
        return min(self.chunk, self.module.micro_batch or self.chunk)

    @property
    def parameters(self) -> int:
        """Weights of the teacher."""
        return sum(weight.numel() for weight in self.network.parameters())

    @property
    def statistics_bytes(self) -> int:
        """Size of the real moments, float64, bytes."""
        k = 0 if self.module.signal == "mean" else self.spec.num_classes
        return sum(_FLOAT64 * (c * c + c + c * k + k + 1) for c in self._channels)

    # ---- memory ----

    def need(self, part: int | None = None) -> MemoryNeed:
        """Return the memory that the steps take.

        Args:
            part: Images that the teacher sees at a time; None for what the module says.
        """
        k = 1 if self.module.signal == "mean" else self.spec.num_classes
        return MemoryNeed(
            images=_CHUNK_COPIES * self.chunk * _FLOAT32 * math.prod(self.spec.image_shape),
            features=self._look_bytes.at(part or self.part),
            matching=_MATCHING_COPIES * _FLOAT32 * sum(c * c + c * k for c in self._channels),
            teacher=sum(weight.nbytes for weight in self.network.state_dict().values()),
            device=self.device.type,
        )

    def largest_part(self, free: float) -> int | None:
        """Return how many images at a time fit into the free memory, bytes; None where not even one does."""
        fitting = [part for part in range(1, self.chunk + 1) if self.need(part).total <= free]
        return max(fitting, default=None)

    @cached_property
    def _look_bytes(self) -> LinearBytes:
        # On the CPU, whatever the device: the tensors are the same.
        return LinearBytes.measured(self._look_and_pull_back)

    def _look_and_pull_back(self, count: int) -> None:
        images = torch.zeros(count, *self.spec.image_shape, requires_grad=True)
        seen = look(observing(self.network, self.layers), self.module.signal, images, self._labels(count))
        total = seen.cross_entropy
        for moments in seen.moments:
            total = total + moments.ffc.sum() + moments.flc.sum()
        total.backward()  # type: ignore[no-untyped-call]

    def _labels(self, count: int) -> Tensor:
        return torch.arange(count) % self.spec.num_classes

    @cached_property
    def _channels(self) -> list[int]:
        """Channels of the inputs of the layers."""
        with torch.no_grad(), FeatureTap(self.network, self.layers) as tap:
            self.network(torch.zeros(1, *self.spec.image_shape))
            return [x.shape[1] for x in tap.features()]

    # ---- time ----

    def step_time(self) -> StepTime:
        """Time some steps on random images; a chunk that takes long is not timed itself."""
        small = min(2, self.chunk)
        first = self._seconds_of(small)
        if first * self.chunk / small <= _STEP_SECONDS:
            return StepTime(self._seconds_of(self.chunk), (self.chunk,))
        large = min(self.chunk, int(small * _STEP_SECONDS / first), _LARGEST_STRETCH * small)
        if large < 2 * small:  # no line to draw
            return StepTime(first * self.chunk / small, (small,))
        second = self._seconds_of(large)
        # On a busy machine the second may come out faster than the first: a step is never free of its images.
        per_image = max((second - first) / (large - small), first / large / 2)
        return StepTime(second + per_image * (self.chunk - large), (small, large))

    def _seconds_of(self, count: int) -> float:
        """Return the median time of a step on a chunk of so many images, in parts where the run has parts."""
        module, device = self.module, self.device
        images = nn.Parameter(clip(torch.randn(count, *self.spec.image_shape), self.spec).to(device))
        labels = self._labels(count).to(device)
        adam = torch.optim.Adam([images], lr=module.lr, betas=module.betas)
        # Parts in the same proportion: the second pass costs what it costs in the run.
        part = None if self.part == self.chunk else max(1, count * self.part // self.chunk)
        real = self._random_real_side()
        matching = MatchingLoss(module.method, real.statistics.moments, module.beta, relative=module.relative)
        objective = ChunkObjective(real, matching, None, module.eta, part)
        times: list[float] = []
        for iteration in range(_WARM_UP + _REPEATS):
            if iteration > _WARM_UP and sum(times) > _TIMING_SECONDS:
                break
            started = time.perf_counter()
            view = partial(self._view, draw=iteration)
            loss = objective(images, labels, view, None, "a timed step").total
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            clip_(images, self.spec)
            float(loss.detach())  # waits for the device
            times.append(time.perf_counter() - started)
        return statistics_of_numbers.median(times[_WARM_UP:])

    def _view(self, images: Tensor, draw: int) -> Tensor:
        module = self.module
        generator = generator_for(0, "plan", draw)
        return random_shared_view(
            images, generator, scale=module.crop_scale, flip=module.flip, max_shift=module.max_roll
        )

    def _random_real_side(self) -> RealSide:
        network = self.network.to(self.device)
        images = torch.randn(min(8, self.chunk + 1), *self.spec.image_shape, device=self.device)
        labels = self._labels(len(images)).to(self.device)
        with torch.no_grad(), FeatureTap(network, self.layers) as tap:
            weights = label_weights(self.module.signal, labels, network(images))
            moments = tuple(Moments.of(x, weights).to(dtype=torch.float64) for x in tap.features())
        statistics = Statistics(self.layers, moments, self.module.signal, {})
        none = TensorImages(torch.zeros(0, *self.spec.image_shape, dtype=torch.uint8), torch.zeros(0).long())
        return RealSide(Teacher(network, "random", self.spec, None, Path()), statistics, none)
