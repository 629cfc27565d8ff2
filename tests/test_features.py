"""FeatureTap: what it records, that gradients flow, and that it leaves no trace."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from unidd_pl.features import FeatureTap, conv_layers
from unidd_pl.networks import ConvNet


class Branches(nn.Module):
    """Two convolutions of which a forward pass takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 2, 1)
        self.right = nn.Conv2d(1, 2, 1)

    def forward(self, images: Tensor, left: bool = True) -> Tensor:
        return self.left(images) if left else self.right(images)


@pytest.fixture
def network() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(width=4, depth=2, channels=3, image_size=8, num_classes=3).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def hooks_of(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


class TestConvLayers:
    def test_resnet18_has_17_without_shortcuts(self) -> None:
        with torch.device("meta"):  # names need no weights
            resnet = torchvision.models.resnet18(weights=None)
        names = conv_layers(resnet)
        assert len(names) == 17
        assert names[:3] == ("conv1", "layer1.0.conv1", "layer1.0.conv2")
        assert not [name for name in names if "downsample" in name]

    def test_convnet_has_one_a_block(self, network: ConvNet) -> None:
        assert conv_layers(network) == ("layers.conv.0", "layers.conv.1")

    def test_refuses_a_network_without_convolutions(self) -> None:
        with pytest.raises(ValueError, match=r"Sequential has no Conv2d layers .*or name the layers"):
            conv_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


class TestFeatureTap:
    def test_records_the_inputs_of_the_layers(self, network: ConvNet, images: Tensor) -> None:
        with FeatureTap(network, conv_layers(network)) as tap:
            network(images)
            first, second = tap.features()
        assert first is images
        block = network.layers
        expected = nn.functional.avg_pool2d(block.norm[0](block.conv[0](images)).relu(), 2)
        torch.testing.assert_close(second, expected)

    def test_keeps_the_order_asked_for(self, network: ConvNet, images: Tensor) -> None:
        with FeatureTap(network, ["classifier", "layers.norm.1", "layers.conv.0"]) as tap:
            network(images)
            assert [tuple(x.shape[1:]) for x in tap.features()] == [(16,), (4, 4, 4), (3, 8, 8)]

    def test_does_not_change_the_output(self, network: ConvNet, images: Tensor) -> None:
        expected = network(images)
        with FeatureTap(network, conv_layers(network)):
            assert torch.equal(network(images), expected)

    def test_gradient_flows_from_features_to_images(self, network: ConvNet, images: Tensor) -> None:
        images.requires_grad_()
        with FeatureTap(network, ["layers.conv.1"]) as tap:
            network(images)
            (feature,) = tap.features()
            (tapped,) = torch.autograd.grad(feature.square().sum(), images)
        block = network.layers
        by_hand = nn.functional.avg_pool2d(block.norm[0](block.conv[0](images)).relu(), 2)
        (expected,) = torch.autograd.grad(by_hand.square().sum(), images)
        assert expected.abs().sum() > 0
        torch.testing.assert_close(tapped, expected)

    def test_each_forward_pass_fills_it_anew(self, network: ConvNet, images: Tensor) -> None:
        with FeatureTap(network, ["layers.conv.0"]) as tap:
            network(images)
            network(images + 1)
            assert torch.equal(tap.features()[0], images + 1)

    def test_leaves_no_hook_behind(self, network: ConvNet, images: Tensor) -> None:
        tap = FeatureTap(network, conv_layers(network))
        assert hooks_of(network) == 0
        with tap:
            assert hooks_of(network) == 3  # two layers, and the network itself
        assert hooks_of(network) == 0
        with pytest.raises(RuntimeError, match="expected input"), tap:
            network(images[:, :2])  # a forward pass that fails
        assert hooks_of(network) == 0

    def test_keeps_no_features_after_the_block(self, network: ConvNet, images: Tensor) -> None:
        with FeatureTap(network, ["layers.conv.0"]) as tap:
            network(images)
        with pytest.raises(ValueError, match=r"did not reach the layers \['layers\.conv\.0'\]"):
            tap.features()

    def test_unknown_layer(self, network: ConvNet) -> None:
        with pytest.raises(ValueError, match=r"ConvNet has no layers \['conv9'\]: expected names .*'classifier'"):
            FeatureTap(network, ["layers.conv.0", "conv9"])

    def test_layer_that_is_not_reached(self) -> None:
        network = Branches()
        with FeatureTap(network, conv_layers(network)) as tap:
            network(torch.zeros(1, 1, 2, 2))
            with pytest.raises(ValueError, match=r"did not reach the layers \['right'\]"):
                tap.features()

    def test_layer_that_only_an_earlier_pass_reached(self) -> None:
        network = Branches()
        with FeatureTap(network, conv_layers(network)) as tap:
            network(torch.zeros(1, 1, 2, 2), left=True)
            network(torch.zeros(1, 1, 2, 2), left=False)
            with pytest.raises(ValueError, match=r"did not reach the layers \['left'\]"):
                tap.features()
