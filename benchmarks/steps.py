"""Steps of a distillation to be timed, with and without the spectral loss, and how they are timed."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import reference
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unidd_pl.allocator import keep_large_blocks
from unidd_pl.augmentation import random_shared_view
from unidd_pl.comparison import environment
from unidd_pl.features import FeatureTap, conv_layers
from unidd_pl.files import atomic_write
from unidd_pl.layout import memory_format, passings
from unidd_pl.networks import build_network
from unidd_pl.observing import CompiledTeacher, CompileMode, observing
from unidd_pl.seeding import generator_for
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import (
    CFM,
    AnyMoments,
    MatchingLoss,
    Moments,
    RunningMoments,
    batch_moments,
    moments_of,
)
from unidd_pl.synthetic import clip, clip_
from unidd_pl.teachers import freeze

BETA, ETA, LR = 0.1, 0.1, 0.25  # as configs/cfm_cifar10.yaml
WARM_UP = 5  # steps
CALIBRATION = 200  # images that stand for the real data

Loss = Literal["none", "reference", "ours"]


@dataclass(frozen=True)
class Case:
    """A step to time.

    Args:
        network: Name of the teacher's network.
        images: Images of the chunk.
        image_size: Height and width, pixels.
        num_classes: Classes of the data set.
        loss: The spectral loss in it.
        device: Where it runs.
        bf16: Teacher under bfloat16 autocast; moments stay in float32.
        channels_last: Memory format of network and images; floor and ours take it on a CPU, as a run does.
        separate: Ours with moments of its own after the forward pass, whose gradient is added by autograd.
        permuted: The same with the reference's covariance.
        closed_form: Ours with or without the closed-form gradient.
        factored: Ours with or without Woodbury's identity.
        cached: The reference filters the real side once; False: in each step, as the release does.
        compile_mode: Floor and ours with compiled passes of the teacher.
        chunks: Finished chunks in the running moments; 0 for none.
        real_images: Images behind the real moments.
    """

    network: str = "convnet-w128-d3"
    images: int = 10
    image_size: int = 32
    num_classes: int = 100
    loss: Loss = "ours"
    device: str = "cpu"
    bf16: bool = False
    channels_last: bool = False
    separate: bool = False
    permuted: bool = False
    closed_form: bool = True
    factored: bool = True
    cached: bool = True
    compile_mode: CompileMode | None = None
    chunks: int = 1
    real_images: int = CALIBRATION

    def without_loss(self) -> Case:
        """Return the floor of this case: the same step without its spectral loss."""
        return replace(self, loss="none")

    def as_run(self) -> Case:
        """Return this case laid out as a run lays it out on its device."""
        return replace(self, channels_last=memory_format(torch.device(self.device)) == torch.channels_last)

    @property
    def spec(self) -> DatasetSpec:
        """Data set of the images."""
        classes = tuple(f"{label:04d}" for label in range(self.num_classes))
        return DatasetSpec("benchmark", classes, 3, self.image_size, (0.5,) * 3, (0.25,) * 3)


def build_teacher(case: Case) -> nn.Module:
    """Return a frozen network with random weights, whose BatchNorms know the statistics of noise."""
    torch.manual_seed(0)
    network = build_network(case.network, case.spec).to(case.device)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(20, *case.spec.image_shape, device=case.device))
    freeze(network)
    return network.to(memory_format=torch.channels_last) if case.channels_last else network


def real_moments(case: Case, network: nn.Module, layers: tuple[str, ...]) -> list[Moments]:
    """Return the moments of noise that stand for the real ones."""
    total: list[Moments] | None = None
    with torch.no_grad(), FeatureTap(network, layers) as tap:
        for _ in range(case.real_images // 50):
            network(torch.randn(50, *case.spec.image_shape, device=case.device))
            batch = [Moments.of(x) for x in tap.features()]
            total = batch if total is None else [one.merge(new) for one, new in zip(total, batch, strict=True)]
    return total or []


def make_reference(case: Case, real: list[Moments]) -> Callable[[list[Tensor]], Tensor]:
    """Return the spectral loss in plain autograd as a function of the features."""
    method, betas = CFM(), [BETA] * len(real)
    done = [reference.Correlations.of_moments(one) for one in real]
    targets = [reference.sides(method, one, BETA) for one in done]

    def plain(features: list[Tensor]) -> Tensor:
        batch = [reference.correlations(x.float()) for x in features]
        if case.chunks:
            batch = [reference.running("mean", one, case.chunks, new) for one, new in zip(done, batch, strict=True)]
        real_side = targets if case.cached else [reference.sides(method, one, BETA) for one in done]
        return reference.spectral_loss(method, real_side, batch, betas)

    return plain


def make_ours(case: Case, real: list[Moments]) -> tuple[bool, Callable[[Sequence[AnyMoments]], Tensor]]:
    """Return whether ours takes factors, and our spectral loss as a function of the moments of the chunk."""
    matching = MatchingLoss(CFM(), real, BETA, closed_form=case.closed_form)
    running = RunningMoments("mean")
    for _ in range(case.chunks):
        running.update(real)
    return (
        case.factored and matching.takes_factors,
        lambda batch: matching.distances(running.combine(batch) if case.chunks else batch).sum(),
    )


def _permuted(features: Tensor) -> Moments:
    """Return the moments that `reference.correlations` takes, for the rest of our loss."""
    one = reference.correlations(features)
    return Moments(one.mean.new_tensor(one.rows), one.mean, one.psi, one.weight, one.psi.new_zeros(len(one.psi), 0))


def make_forward(case: Case, network: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Return a function that gives logits (n, k) and spectral loss () of augmented images; None without one."""
    layers = conv_layers(network)
    if case.loss == "none":
        run = network if case.compile_mode is None else torch.compile(network, mode=case.compile_mode, dynamic=False)
        return lambda x: (run(x), None)
    real = real_moments(case, network, layers)
    if case.loss == "ours" and not (case.separate or case.permuted):
        return _observed(case, network, layers, real)
    plain = make_reference(case, real)
    factored, ours = make_ours(case, real)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        with FeatureTap(network, layers) as tap:
            logits = network(x)
            features = tap.features()
        if case.loss == "reference":
            return logits, plain(features)
        batch = [_permuted(x) if case.permuted else batch_moments(x, None, factored=factored) for x in features]
        return logits, ours(batch)

    return forward


def _observed(
    case: Case, network: nn.Module, layers: tuple[str, ...], real: list[Moments]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return ours as `unidd_pl.objective` takes it: moments while the features pass, or behind a compiled pass."""
    factored, ours = make_ours(case, real)
    how = passings(network, layers, real)
    if case.compile_mode is None:
        see = observing(network, layers, how, factored=factored)
    else:
        see = CompiledTeacher(network, layers, case.compile_mode).observing(how, factored=factored)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, seen = see(x)
        return logits, ours(moments_of(seen, None))

    return forward


def make_step(case: Case) -> Callable[[], None]:
    """Return a function that does one step: A(x), forward, loss, backward to the images, Adam, clip."""
    network = build_teacher(case)
    spec = case.spec
    images = nn.Parameter(clip(torch.randn(case.images, *spec.image_shape), spec).to(case.device))
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    labels = torch.arange(case.images, device=case.device) % spec.num_classes
    adam = torch.optim.Adam([images], lr=LR, betas=(0.5, 0.9))
    forward = make_forward(case, network)
    iteration = 0

    def step() -> None:
        nonlocal iteration
        generator = generator_for(0, iteration)
        iteration += 1
        x = random_shared_view(images, generator, scale=(0.08, 1.0), flip=True, max_shift=4)
        with torch.autocast(x.device.type, torch.bfloat16) if case.bf16 else nullcontext():
            logits, spectral = forward(x.contiguous(memory_format=layout))
        loss = F.cross_entropy(logits.float(), labels)
        if spectral is not None:
            loss = loss + ETA * spectral
        adam.zero_grad()
        loss.backward()
        adam.step()
        clip_(images, spec)

    return step


def times_in_turn(
    steps: dict[str, Callable[[], None]],
    repeats: int,
    device: str = "cpu",
    *,
    cpu_time: bool = False,
) -> dict[str, list[float]]:
    """Return the times of each step in ms, one of each in turn; the order turns with the repeats.

    The time of the processor, all threads together, leaves out what others do on a busy machine, but counts threads
    that wait: for one thread only.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for repeat in range(WARM_UP + repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            _wait(device)
            started = clock()
            steps[name]()
            _wait(device)
            if repeat >= WARM_UP:
                times[name].append(1e3 * (clock() - started))
    return times


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: statistics.median(values) for name, values in times.items()}


def start() -> None:
    """Bring the process into the state of a run of `unidd`."""
    keep_large_blocks()


def circumstances(note: str = "") -> dict[str, Any]:
    """Return versions, hardware, commit and date, as they belong beside every number."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    here = Path(__file__).parent
    commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip()
    return {
        **environment(), "processor": _processor(), "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "note": note,
    }  # fmt: skip


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write JSON, if a path is given."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1))
