"""The teacher's passes compiled: the same run up to rounding, for every shape of a chunk, and nobody else's network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch._dynamo
from distillation_runs import run
from torch import Tensor, nn

from unidd_pl.data.folder import ImageFolderData
from unidd_pl.distillation import DistillationModule
from unidd_pl.features import FeatureTap, TappedNetwork, conv_layers
from unidd_pl.networks import ConvNet, build_network
from unidd_pl.observing import CompiledTeacher
from unidd_pl.real_side import RealSide
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import ANY, CFM
from unidd_pl.statistics import Statistics
from unidd_pl.teachers import Teacher, freeze

# The compiler looks at what it is given, and keeps to itself what torch has to say about that.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def real(tiny_teacher: Teacher, tiny_statistics: Statistics, folder_data: ImageFolderData) -> RealSide:
    return RealSide(tiny_teacher, tiny_statistics, folder_data.train)


@pytest.fixture(autouse=True)
def afresh() -> None:
    torch._dynamo.reset()  # graphs of one test would serve the next


class Unwatched(L.Callback):
    """Takes away what the test listens with: a hook that keeps what it sees is compiled anew at every step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        pl_module.real.teacher.network._forward_pre_hooks.clear()


def compare(real: RealSide, tmp_path: Path, rel: float = 1e-5, **settings: Any) -> None:
    """Run as it is and compiled, with two chunks a round, the second of another size."""
    settings = {"ipc": 2, "chunk_size": 2, "iterations": 2} | settings
    module, eager = run(real, tmp_path / "eager", **settings)
    torch._dynamo.utils.counters.clear()
    other, compiled = run(real, tmp_path / "compiled", Unwatched(), **settings, compile_mode="default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each size, and no more
    assert not torch._dynamo.utils.counters["graph_break"]
    assert other.run_digest == module.run_digest  # one may go on where the other stopped
    assert compiled.positions == eager.positions
    assert compiled.losses[0] == pytest.approx(eager.losses[0], rel=rel)
    difference = (compiled.gradients[0] - eager.gradients[0]).norm() / eager.gradients[0].norm()
    assert float(difference) < 100 * rel
    assert compiled.losses == pytest.approx(eager.losses, rel=max(0.05, 10 * rel))  # Adam amplifies the rounding


def test_a_compiled_run_takes_the_same_course(real: RealSide, tmp_path: Path) -> None:
    compare(real, tmp_path, running="merge")


@pytest.mark.slow
def test_compiled_in_half_precision(real: RealSide, tmp_path: Path) -> None:
    compare(real, tmp_path, rel=1e-2, trainer={"precision": "bf16-mixed"})


@pytest.mark.slow
def test_the_tenth_run_of_a_process_is_compiled_as_well() -> None:
    """Torch gives up on a function after eight graphs, and says so in its log alone."""
    for width in range(1, 11):
        network = ConvNet(width=width, depth=1, channels=1, image_size=4, num_classes=2).eval().requires_grad_(False)
        torch._dynamo.utils.counters.clear()
        see = CompiledTeacher(network, ["layers.conv.0"], "default").observing({"layers.conv.0": ANY}, factored=False)
        see(torch.zeros(1, 1, 4, 4))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_parts_are_not_compiled() -> None:
    with pytest.raises(ValueError, match=r"compile_mode: got default with a micro_batch of 2, expected one of the two"):
        DistillationModule(1, CFM(), micro_batch=2, compile_mode="default")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "alexnet", "convnet-w8-d2"])
def test_networks_that_can_be_compiled(name: str) -> None:
    """Inputs of all layers and the gradient through them, and through the logits, in one compiled backward pass."""
    spec = DatasetSpec("compiled", tuple("abcd"), 3, 32, (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    network = build_network(name, spec)
    freeze(network)
    layers = conv_layers(network)
    tapped = torch.compile(TappedNetwork(network, layers), dynamic=False)
    x = torch.randn(3, *spec.image_shape, requires_grad=True)

    def total(logits: Tensor, features: list[Tensor]) -> Tensor:
        return logits.square().sum() + sum((one.square().mean() for one in features), torch.zeros(()))

    with FeatureTap(network, layers) as tap:
        logits = network(x)
        expected = total(logits, tap.features())
    ours = total(*tapped(x))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    (one,), (other,) = torch.autograd.grad(ours, x), torch.autograd.grad(expected, x)
    assert float((one - other).norm() / other.norm()) < 1e-4


def test_what_listens_is_in_nobodys_way() -> None:
    network = ConvNet(width=4, depth=2, channels=3, image_size=8, num_classes=3).eval().requires_grad_(False)
    layers = conv_layers(network)
    tapped, x = TappedNetwork(network, layers), torch.randn(2, 3, 8, 8)
    logits, features = tapped(x)
    with FeatureTap(network, layers) as tap:
        assert torch.equal(network(x), logits)
        assert all(torch.equal(one, other) for one, other in zip(features, tap.features(), strict=True))
    assert not any(layer._forward_pre_hooks for layer in network.modules())
    assert not tapped._tap._recorded  # features are not kept until the next pass
    assert all(a is b for a, b in zip(network.parameters(), tapped.network.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"has no layers \['nowhere'\]"):
        TappedNetwork(network, ["nowhere"])


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def fail(*_: Any) -> None:
            raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found\nand what torch tried")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    network = nn.Sequential(nn.Conv2d(3, 2, 1))
    see = CompiledTeacher(network, ["0"], "default").observing({"0": ANY}, factored=False)
    with pytest.raises(ValueError, match=r"compile_mode: torch.compile failed \(No working C\+\+ compiler found\)"):
        see(torch.zeros(1, 3, 4, 4))
