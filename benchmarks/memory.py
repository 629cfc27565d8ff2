"""Peak memory of distillations: that it does not grow with IPC, and how far `unidd plan` is off.

    python benchmarks/memory.py [--output memory.json] [--cases small|all] [--iterations 3]

Every case runs in a fresh process on random images in files, with a teacher of random weights, and prints its
peak resident memory. Part one: the same distillation at 1 and at 50 images per class, which have to agree within 5 %.
Part two: the estimate of the plan against the measured peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

IPC_LIMIT = 0.05  # share by which the two peaks may differ


@dataclass(frozen=True)
class Case:
    """One distillation in a process of its own."""

    network: str
    image_size: int
    classes: int
    ipc: int = 1
    micro_batch: int | None = None
    iterations: int = 3
    signal: str = "mean"


INDEPENDENCE = Case("convnet-w128-d3", 32, 10)
ESTIMATES = {
    "small": [Case("convnet-w128-d3", 32, 100), Case("convnet-w128-d3", 32, 100, micro_batch=10)],
    "all": [
        Case("convnet-w128-d3", 32, 10),
        Case("convnet-w128-d3", 32, 100),
        Case("convnet-w128-d3", 32, 100, micro_batch=10),
        Case("convnet-w128-d3", 32, 100, signal="class"),
        Case("resnet18", 32, 50),
        Case("resnet18", 224, 8),
        Case("resnet18", 224, 16, micro_batch=4),
    ],
}


def run_case(case: Case, folder: Path) -> dict[str, float]:
    """Distil in this process; return the peak before the first step and after the last, and the estimate, bytes."""
    import lightning as L
    import numpy as np
    import torch
    from PIL import Image

    from unidd_pl.allocator import keep_large_blocks
    from unidd_pl.curriculum import CurriculumCallback
    from unidd_pl.data import ImageFolderData
    from unidd_pl.distillation import DistillationModule
    from unidd_pl.features import layers_to_tap
    from unidd_pl.moment_pass import gather_moments
    from unidd_pl.networks import build_network
    from unidd_pl.real_side import RealSide
    from unidd_pl.spectral import CFM, CosineCurriculum
    from unidd_pl.statistics import Statistics
    from unidd_pl.synthetic import ChunkStore
    from unidd_pl.teachers import Teacher, freeze
    from unidd_pl.training import quiet_lightning
    from unidd_pl.workload import Workload

    keep_large_blocks()
    noise = np.random.default_rng(0)
    for label in range(case.classes):
        class_folder = folder / "train" / f"{label:04d}"
        class_folder.mkdir(parents=True)
        for index in range(case.ipc):
            pixels = noise.integers(0, 256, (case.image_size, case.image_size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(class_folder / f"{index:04d}.png")
    # As a large set is read: from its files.
    data = ImageFolderData(str(folder), mean=[0.5] * 3, std=[0.25] * 3, in_memory_gib=0.0, workers=0)
    module = DistillationModule(
        case.ipc, CFM(), iterations=case.iterations, chunk_size=200, signal=case.signal, micro_batch=case.micro_batch
    )
    torch.manual_seed(0)
    network = build_network(case.network, data.spec)
    freeze(network)
    layers = layers_to_tap(network, "conv")
    teacher = Teacher(network, case.network, data.spec, None, Path())
    few = (torch.rand(4, *data.spec.image_shape), torch.arange(4) % case.classes)
    moments = gather_moments(teacher, [few], layers, case.signal, data.spec)
    module.prepare(
        RealSide(teacher, Statistics(layers, moments, case.signal, {}), data.train),
        ChunkStore(folder / "chunks", data.spec),
    )
    before = peak_bytes()
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=case.ipc, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            callbacks=[CurriculumCallback(CosineCurriculum())], enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module)
    peak = peak_bytes()
    need = Workload(module, case.network, data.spec, torch.device("cpu")).need()
    return {
        "before": before,
        "peak": peak,
        "estimated_peak": before + need.total - need.teacher,
    }  # the teacher is there


def peak_bytes() -> int:
    """Return the peak resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(case: Case) -> dict[str, float]:
    """Run a case in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--folder", folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Run the cases, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--cases", choices=[*ESTIMATES, "none"], default="all", help="of part two")
    parser.add_argument("--ipc", nargs=2, type=int, default=[1, 50])
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--network", default=INDEPENDENCE.network, help="of part one")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(Case(**json.loads(arguments.case)), arguments.folder)))
        return

    rows = []
    for ipc in arguments.ipc:
        case = Case(arguments.network, 32, 10, ipc=ipc, iterations=arguments.iterations)
        rows.append({**asdict(case), **measured(case)})
        print(f"{case.network}, IPC {ipc}: peak {rows[-1]['peak'] / 2**20:.0f} MiB")
    ratio = rows[1]["peak"] / rows[0]["peak"]
    print(f"peak at IPC {arguments.ipc[1]} over IPC {arguments.ipc[0]}: {ratio:.3f} (limit ±{IPC_LIMIT:.0%})")
    estimates = []
    for case in ESTIMATES.get(arguments.cases, []):
        result = measured(case)
        off = result["estimated_peak"] / result["peak"] - 1
        added = (result["estimated_peak"] - result["before"]) / (result["peak"] - result["before"]) - 1
        estimates.append({**asdict(case), **result, "off": off, "off_added": added})
        print(
            f"{case.network}, {case.classes} images of {case.image_size} px, micro_batch {case.micro_batch}, "
            f"{case.signal}: measured {result['peak'] / 2**20:.0f} MiB, estimated "
            f"{result['estimated_peak'] / 2**20:.0f} MiB ({off:+.1%}; of what the steps add {added:+.0%})"
        )
    if arguments.output:
        from unidd_pl.comparison import environment

        report = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}", "environment": environment(), "ipc": rows, "ipc_ratio": ratio,
            "estimates": estimates,
        }  # fmt: skip
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    if abs(ratio - 1) > IPC_LIMIT:
        sys.exit(f"the peak grows with the images per class: ratio {ratio:.3f}, expected 1 ± {IPC_LIMIT}")


if __name__ == "__main__":
    main()
