"""A distillation over 2 and 4 processes against the same over one: real processes, with gloo.

One process sees each case of `sharded_run.py`; so do the others, and every one of them holds its own rows only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference
import sharded_run
import torch
from sharded_run import CASES, CLASSES, LOSSES, SENT, weights_of

from unidd_pl.distributed import bytes_sent
from unidd_pl.features import FeatureTap, conv_layers
from unidd_pl.networks import build_network
from unidd_pl.ranks import rows_of_rank
from unidd_pl.sharding import sharded_trainer_arguments
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral.filters import largest_eigenvalue

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(900)]  # each process imports torch anew
HERE = Path(__file__).parent


def torchrun(processes: int, *command: str, timeout: int = 500) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'benchmarks'}"}
    return subprocess.run(
        [*launcher, "--standalone", *command],  # on a free port: another suite may be running
        check=False, capture_output=True, text=True, timeout=timeout, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What 1, 2 and 4 processes see."""
    folder = tmp_path_factory.mktemp("sharded")
    for processes in (1, 2, 4):
        done = torchrun(processes, str(HERE / "sharded_run.py"), str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
    return {processes: torch.load(folder / f"{processes}.pt") for processes in (1, 2, 4)}


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_images_do_not_depend_on_the_processes(
    case: str, processes: int, seen: dict[int, dict[str, Any]]
) -> None:
    alone, shared = seen[1][case], seen[processes][case]
    assert seen[processes]["world size"] == processes
    assert shared["own"] < max(alone["own"], 2)  # the first process holds a part of the last chunk
    tolerance = 1e-4 if case == "float32" else 1e-9
    assert len(shared["losses"]) == len(alone["losses"]) >= 2
    torch.testing.assert_close(shared["losses"][0], alone["losses"][0], rtol=tolerance, atol=0)
    # The first gradient; those of later chunks follow 50 steps that amplify rounding.
    first, expected = shared["gradients"][0], alone["gradients"][0]
    assert float((first - expected).norm() / expected.norm()) < tolerance
    if case != "float32":
        assert len(alone["losses"]) >= 50
        torch.testing.assert_close(shared["losses"], alone["losses"], rtol=1e-6, atol=1e-9)
        assert float((shared["images"] - alone["images"]).abs().max()) < 1e-6
        for mine, theirs in zip(shared["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("case", LOSSES)
def test_the_closed_form_over_processes_equals_the_reference(
    case: str, processes: int, seen: dict[int, dict[str, Any]]
) -> None:
    """SPEC.md written out in plain autograd over all rows, against moments that processes have merged."""
    method, mode, dtype = LOSSES[case]
    real = [
        reference.correlations(x, weights_of(20, torch.float64)) for x in sharded_run.features_of(0, 20, torch.float64)
    ]
    done = [
        reference.correlations(x, weights_of(5, torch.float64)) for x in sharded_run.features_of(2, 5, torch.float64)
    ]
    layers = [x.requires_grad_() for x in sharded_run.features_of(1, 5, dtype)]
    batch = [reference.correlations(x, weights_of(5, dtype)) for x in layers]
    if mode is not None:
        for one in done:
            one.psi, one.phi, one.mean, one.weight = (v.to(dtype) for v in (one.psi, one.phi, one.mean, one.weight))
        batch = [reference.running(mode, one, 1, new) for one, new in zip(done, batch, strict=True)]
    largest = [
        torch.maximum(largest_eigenvalue(one.psi).to(dtype), largest_eigenvalue(two.psi))
        for one, two in zip(real, batch, strict=True)
    ]
    targets = [
        [value.to(dtype) for value in reference.sides(method, one, 0.1, scale)]
        for one, scale in zip(real, largest, strict=True)
    ]
    expected = reference.spectral_loss(method, targets, batch, [0.1] * len(layers), largest)
    gradients_of_plain = torch.autograd.grad(expected, layers)
    value, gradients = seen[processes][case]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert float((value - expected.detach()).abs()) <= tolerance * float(expected.detach())
    for ours, theirs in zip(gradients, gradients_of_plain, strict=True):
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 200])
def test_every_row_has_one_owner(count: int, ranks: int) -> None:
    owned = [list(range(count))[rows_of_rank(count, rank, ranks)] for rank in range(ranks)]
    assert [row for rows in owned for row in rows] == list(range(count))
    sizes = [len(rows) for rows in owned]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("case", SENT)
def test_what_a_process_sends_depends_on_layers_and_classes_alone(case: str, seen: dict[int, dict[str, Any]]) -> None:
    """Counted where the collective is called: the moments in two sums, and the cross-entropy."""
    steps = seen[2]["sent"][case]
    settings = SENT[case]
    assert len(steps) == 3 * settings["ipc"] * -(-CLASSES // settings.get("chunk_size", CLASSES))
    classes = 0 if settings["signal"] == "mean" else CLASSES
    assert {(len(step), sum(step)) for step in steps} == {(3, bytes_sent((3, 6, 6), classes))}


def test_the_bytes_of_a_step_are_those_of_the_issue() -> None:
    """ResNet-18: about 4.5 MB a step, and about 14 MB more with 1,000 classes; whatever the images."""
    spec = DatasetSpec("imagenet", tuple(map(str, range(1000))), 3, 64, (0.5,) * 3, (0.2,) * 3)
    network = build_network("resnet18", spec).eval()
    layers = conv_layers(network)
    with torch.no_grad(), FeatureTap(network, layers) as tap:
        network(torch.zeros(1, 3, 64, 64))
        channels = [x.shape[1] for x in tap.features()]
    assert bytes_sent(channels, 0) / 1e6 == pytest.approx(4.55, abs=0.02)
    assert (bytes_sent(channels, 1000) - bytes_sent(channels, 0)) / 1e6 == pytest.approx(13.65, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lightning", "torchrun"])
def test_fit_over_two_processes_from_end_to_end(how: str, tmp_path: Path) -> None:
    options = [
        "fit", "--config", str(HERE.parent / "configs" / "cfm_digits.yaml"), "--output_dir", str(tmp_path / "out"),
        "--cache_dir", str(tmp_path / "cache"), "--trainer.logger=false", "--model.init_args.iterations", "4",
        "--model.init_args.ipc", "2", "--teacher.epochs", "1", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    if how == "torchrun":
        done = torchrun(2, "-m", "unidd_pl.cli", *options)
    else:
        command = [sys.executable, "-m", "unidd_pl.cli", *options, "--trainer.devices", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    from unidd_pl.distilled import DistilledSet

    distilled = DistilledSet.load(tmp_path / "out" / "distilled.safetensors")
    assert distilled.labels.tolist() == [*range(10), *range(10)]
    assert done.stdout.count("Distilled set: 20 images") == 1  # one process speaks
    assert json.dumps(sorted(path.name for path in (tmp_path / "out" / "chunks").iterdir())) == json.dumps(
        [f"round_{round_index:04d}_chunk_000.safetensors" for round_index in range(2)]
    )
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 0}, r"got trainer\.devices 0, expected how many processes"),
        ({"devices": "two"}, r"got trainer\.devices two, expected how many processes"),
        ({"devices": [0, 1]}, r"got trainer\.devices \[0, 1\], expected how many processes"),
        ({"devices": 2, "strategy": "fsdp"}, r"got trainer\.strategy fsdp: .* leave it out"),
    ],
)
def test_what_cannot_share_a_chunk_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharded_trainer_arguments(arguments)


def test_one_device_is_the_default() -> None:
    assert sharded_trainer_arguments({}) == {"devices": 1}
    assert sharded_trainer_arguments({"devices": "auto", "num_nodes": 1}) == {"devices": 1}


def test_torchrun_and_the_config_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    arguments = sharded_trainer_arguments({})
    assert (arguments["devices"], arguments["num_nodes"], arguments["use_distributed_sampler"]) == (2, 2, False)
    with pytest.raises(ValueError, match=r"got trainer\.devices 3, but torchrun or srun has started 2 processes"):
        sharded_trainer_arguments({"devices": 3})


def test_the_cases_are_hard_for_the_number_of_processes() -> None:
    assert CLASSES % 2
    assert CLASSES % 4
    assert CLASSES % CASES["class, chunks"]["chunk_size"] == 1  # a chunk of one image: the others own no row
