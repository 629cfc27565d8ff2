"""Networks by name and their checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from unidd_pl.networks import ConvNet, build_network, load_weights
from unidd_pl.specs import DatasetSpec


def make_spec(image_size: int = 32, channels: int = 3, num_classes: int = 10) -> DatasetSpec:
    return DatasetSpec(
        name="test",
        classes=tuple(f"class {i}" for i in range(num_classes)),
        channels=channels,
        image_size=image_size,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )


def small_convnet(depth: int = 2, width: int = 4, num_classes: int = 5) -> ConvNet:
    return ConvNet(width=width, depth=depth, channels=3, image_size=16, num_classes=num_classes)


def parameters_of(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


class TestConvNet:
    def test_state_dict_has_the_names_and_shapes_of_the_field(self) -> None:
        network = build_network("convnet-w128-d3", make_spec())
        expected: dict[str, tuple[int, ...]] = {}
        for i in range(3):
            expected[f"layers.conv.{i}.weight"] = (128, 3 if i == 0 else 128, 3, 3)
            expected[f"layers.conv.{i}.bias"] = (128,)
        for i in range(3):
            for name in ("weight", "bias", "running_mean", "running_var"):
                expected[f"layers.norm.{i}.{name}"] = (128,)
            expected[f"layers.norm.{i}.num_batches_tracked"] = ()
        expected |= {"classifier.weight": (10, 128 * 4 * 4), "classifier.bias": (10,)}
        state = network.state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
        assert list(state) == list(expected)

    def test_forward_is_conv_norm_relu_pool(self) -> None:
        network = small_convnet(depth=1).eval()
        images = torch.randn(2, 3, 16, 16)
        features = network.layers.norm[0](network.layers.conv[0](images)).clamp(min=0)
        pooled = features.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean(dim=(3, 5))
        torch.testing.assert_close(network(images), network.classifier(pooled.flatten(1)))

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(("image_size", "depth"), [(2, 1), (8, 1), (28, 2), (32, 3), (64, 4), (128, 5)])
    def test_depth_follows_the_image_size(self, image_size: int, depth: int, channels: int) -> None:
        network = build_network("convnet-w8", make_spec(image_size, channels))
        assert isinstance(network, ConvNet)
        assert len(network.layers.conv) == depth
        assert network(torch.zeros(2, channels, image_size, image_size)).shape == (2, 10)

    @pytest.mark.parametrize(
        ("name", "width", "depth"),
        [("convnet", 128, 3), ("convnet-w16", 16, 3), ("convnet-d2", 128, 2), ("convnet-w16-d5", 16, 5)],
    )
    def test_name_gives_width_and_depth(self, name: str, width: int, depth: int) -> None:
        network = build_network(name, make_spec())
        assert isinstance(network, ConvNet)
        assert len(network.layers.conv) == depth
        assert network.layers.norm[0].weight.shape == (width,)

    def test_rejects_more_blocks_than_the_image_can_be_halved(self) -> None:
        with pytest.raises(ValueError, match=r"got depth 6, expected at most 5 for 32 px.*depth 3 suits"):
            build_network("convnet-w8-d6", make_spec())

    @pytest.mark.parametrize("name", ["convnet-w0", "convnet-d0"])
    def test_rejects_empty_sizes(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"got (width|depth) 0, expected at least 1"):
            build_network(name, make_spec())


class TestBuildNetwork:
    @pytest.mark.parametrize(("image_size", "channels"), [(8, 3), (28, 1), (32, 3), (64, 1)])
    def test_resnet_keeps_the_resolution_of_small_images(self, image_size: int, channels: int) -> None:
        network = build_network("resnet18", make_spec(image_size, channels))
        assert network.training
        assert network.conv1.weight.shape == (64, channels, 3, 3)
        assert network.conv1.stride == (1, 1)
        assert network.conv1.bias is None
        assert isinstance(network.maxpool, nn.Identity)
        assert network(torch.zeros(2, channels, image_size, image_size)).shape == (2, 10)

    @pytest.mark.parametrize(
        ("name", "first", "last_map"),
        [
            ("shufflenet_v2_x0_5", "conv1.0", 4),
            ("mobilenet_v3_small", "features.0.0", 2),
            ("densenet121", "features.conv0", 4),
            ("timm/resnet10t", "conv1.0", 4),
            ("timm/mobilenetv3_small_050", "conv_stem", 2),
        ],
    )
    def test_stems_of_other_networks_keep_the_resolution(self, name: str, first: str, last_map: int) -> None:
        network = build_network(name, make_spec(32)).eval()
        sizes: list[int] = []
        network.get_submodule(first).register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
        maps: list[int] = []
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _m, _i, out: maps.append(out.shape[-1]))
        network(torch.zeros(1, 3, 32, 32))
        assert sizes == [32]
        assert min(size for size in maps if size > 1) == last_map

    @pytest.mark.parametrize(("image_size", "tokens"), [(32, 64), (64, 64), (224, 196)])
    def test_timm_transformers_cut_small_images_into_small_patches(self, image_size: int, tokens: int) -> None:
        network = build_network("timm/vit_tiny_patch16_224", make_spec(image_size))
        assert network.patch_embed.num_patches == tokens

    @pytest.mark.parametrize("name", ["vgg11", "convnext_tiny"])
    def test_stems_that_keep_the_resolution_or_cut_patches_stay(self, name: str) -> None:
        small, large = (build_network(name, make_spec(size)) for size in (32, 224))
        assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in large.named_parameters()}

    @pytest.mark.parametrize("channels", [1, 3])
    def test_resnet_keeps_its_own_stem_for_large_images(self, channels: int) -> None:
        network = build_network("resnet18", make_spec(224, channels))
        assert network.conv1.weight.shape == (64, channels, 7, 7)
        assert network.conv1.stride == (2, 2)
        assert isinstance(network.maxpool, nn.MaxPool2d)

    @pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_0", "googlenet"])
    def test_torchvision_networks_take_grayscale(self, name: str) -> None:
        network = build_network(name, make_spec(32, channels=1))
        assert network(torch.randn(2, 1, 32, 32)).shape == (2, 10)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("name", ["timm/test_vit", "timm/resnet10t"])
    def test_timm_networks_take_size_and_channels(self, name: str, channels: int) -> None:
        network = build_network(name, make_spec(64, channels, num_classes=7))
        assert network(torch.zeros(2, channels, 64, 64)).shape == (2, 7)

    @pytest.mark.parametrize("name", ["convnet-w8", "resnet18", "shufflenet_v2_x0_5", "timm/test_vit"])
    def test_weights_come_from_the_global_generator(self, name: str) -> None:
        draws = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            draws.append(parameters_of(build_network(name, make_spec(channels=1))))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])

    def test_trying_the_network_leaves_running_statistics_alone(self) -> None:
        network = build_network("resnet18", make_spec())
        assert network.bn1.num_batches_tracked == 0
        assert torch.equal(network.bn1.running_mean, torch.zeros(64))

    @pytest.mark.parametrize(
        ("name", "cure"),
        [
            ("resnet81", "did you mean .*resnet18"),
            ("convnet_w128_d3", "did you mean convnet-w128-d3"),
            ("timm/resnet81", "did you mean .*timm/resnet18"),
            ("timm/hf-hub:someone/resnet18", "did you mean"),
            ("?", "see torchvision.models"),
        ],
    )
    def test_unknown_name_is_told_with_close_matches(self, name: str, cure: str) -> None:
        with pytest.raises(ValueError, match=rf"got '{re.escape(name)}', expected 'convnet-w.*{cure}"):
            build_network(name, make_spec())

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("vit_b_16", "indivisible by patch size"),
            ("timm/resnet18.no_such_tag", "Invalid pretrained tag"),
        ],
    )
    def test_network_that_refuses_the_images(self, name: str, reason: str) -> None:
        with pytest.raises(ValueError, match=rf"'{re.escape(name)}': got an error for images of 30 px.*{reason}"):
            build_network(name, make_spec(30))


PLACES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": lambda state: state,
    "lightning": lambda state: {
        "epoch": 3,
        "optimizer_states": [{"lr": 0.1}],
        "state_dict": {f"network.{name}": tensor for name, tensor in state.items()},
    },
    "compiled": lambda state: {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}},
    "data parallel": lambda state: {
        "net": {f"module._orig_mod.model.{name}": t for name, t in state.items()},
        "acc": 0.8,
    },
}


class TestLoadWeights:
    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
    @pytest.mark.parametrize("place", PLACES)
    def test_torch_files_round_trip(self, place: str, suffix: str, tmp_path: Path) -> None:
        source, network = small_convnet(), small_convnet()
        source(torch.randn(4, 3, 16, 16))  # moves the running statistics, which must come back too
        torch.save(PLACES[place](source.state_dict()), tmp_path / f"weights{suffix}")
        load_weights(network, tmp_path / f"weights{suffix}", expected_classes=5)
        for name, tensor in source.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor), name

    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "network.", "model.", "network._orig_mod."])
    def test_safetensors_round_trip(self, prefix: str, tmp_path: Path) -> None:
        source, network = small_convnet(), small_convnet()
        state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
        safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
        load_weights(network, str(tmp_path / "weights.safetensors"), expected_classes=5)
        assert torch.equal(parameters_of(network), parameters_of(source))

    def test_a_submodule_may_be_named_like_a_prefix(self, tmp_path: Path) -> None:
        source = nn.Sequential()
        source.add_module("model", nn.Linear(3, 5))
        network = nn.Sequential()
        network.add_module("model", nn.Linear(3, 5))
        torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "weights.pt")
        load_weights(network, tmp_path / "weights.pt", expected_classes=5)
        assert torch.equal(parameters_of(network), parameters_of(source))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"absent\.pt: got no such file, expected a checkpoint"):
            load_weights(small_convnet(), tmp_path / "absent.pt", expected_classes=5)

    def test_other_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"ending in '\.h5', expected \.pt, \.pth, \.ckpt, \.safetensors"):
            load_weights(small_convnet(), tmp_path / "weights.h5", expected_classes=5)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize(
        "content",
        [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04 cut short", b"\x80\x02}q"],
    )
    def test_bytes_that_are_no_checkpoint(self, content: bytes, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read as a checkpoint.*expected tensors only") as caught:
            load_weights(small_convnet(), path, expected_classes=5)
        assert caught.value.__cause__ is not None

    def test_truncated_checkpoint(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pt"
        torch.save(small_convnet().state_dict(), path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match=r"cannot be read as a checkpoint.*file is complete"):
            load_weights(small_convnet(), path, expected_classes=5)

    def test_whole_pickled_network(self, tmp_path: Path) -> None:
        torch.save(small_convnet(), tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=r"cannot be read as a checkpoint.*save network\.state_dict\(\)"):
            load_weights(small_convnet(), tmp_path / "weights.pt", expected_classes=5)

    @pytest.mark.parametrize(
        ("content", "got"),
        [
            ({"epoch": 3, "weights": {}}, "a dictionary with the keys epoch, weights"),
            ({"state_dict": {}}, "a dictionary with the keys state_dict"),
            ([torch.zeros(2)], "an object of type list"),
        ],
    )
    def test_content_that_is_no_state_dict(self, content: object, got: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=f"got {got}, expected a state_dict, bare or under 'state_dict'"):
            load_weights(small_convnet(), tmp_path / "weights.pt", expected_classes=5)

    def test_two_networks_in_one_state_dict(self, tmp_path: Path) -> None:
        state = small_convnet().state_dict()
        both = {**state, **{f"network.{name}": tensor for name, tensor in state.items()}}
        torch.save(both, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=f"got {len(state)} names twice.*expected one network"):
            load_weights(small_convnet(), tmp_path / "weights.pt", expected_classes=5)

    def test_other_architecture(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(3, 5).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(
            ValueError,
            match=r"another architecture: missing layers\.conv\.0\.weight, .* and \d+ more; "
            r"unexpected weight, bias; expected the 16 tensors",
        ):
            load_weights(small_convnet(), tmp_path / "weights.pt", expected_classes=5)

    def test_other_depth(self, tmp_path: Path) -> None:
        torch.save(small_convnet(depth=1).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=r"missing layers\.conv\.1\.weight.*unexpected none"):
            load_weights(small_convnet(depth=2), tmp_path / "weights.pt", expected_classes=5)

    def test_other_number_of_classes(self, tmp_path: Path) -> None:
        network, path = small_convnet(num_classes=5), tmp_path / "weights.pt"
        before = parameters_of(network)
        torch.save(small_convnet(num_classes=7).state_dict(), path)
        with pytest.raises(ValueError, match=r"weights\.pt: got 7 classes .*classifier\.weight.*, expected 5"):
            load_weights(network, path, expected_classes=5)
        assert torch.equal(parameters_of(network), before)

    def test_network_of_other_number_of_classes(self, tmp_path: Path) -> None:
        torch.save(small_convnet(num_classes=7).state_dict(), tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=r"network: got 5 classes .*, expected 7"):
            load_weights(small_convnet(num_classes=5), tmp_path / "weights.pt", expected_classes=7)

    def test_other_stem(self, tmp_path: Path) -> None:
        torch.save(build_network("resnet18", make_spec(224)).state_dict(), tmp_path / "weights.pt")
        network = build_network("resnet18", make_spec(32))
        shapes = re.escape("conv1.weight got (64, 3, 7, 7), expected (64, 3, 3, 3)")
        with pytest.raises(ValueError, match=f"other shapes: {shapes}; build the network with"):
            load_weights(network, tmp_path / "weights.pt", expected_classes=10)

    @pytest.mark.parametrize(("channels", "image_size"), [(1, 16), (3, 32)])
    def test_other_channels_or_image_size(self, channels: int, image_size: int, tmp_path: Path) -> None:
        other = ConvNet(width=4, depth=2, channels=channels, image_size=image_size, num_classes=5)
        torch.save(other.state_dict(), tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=r"other shapes: .*image size, channels and stem of the checkpoint"):
            load_weights(small_convnet(), tmp_path / "weights.pt", expected_classes=5)

    # torch warns that it checks the indices of sparse tensors, which is what one wants of a foreign file
    @pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
    def test_tensors_that_cannot_be_copied(self, tmp_path: Path) -> None:
        state = small_convnet().state_dict()
        state["classifier.weight"] = state["classifier.weight"].to_sparse()
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=r"cannot be copied into the network.*expected dense tensors"):
            load_weights(small_convnet(), tmp_path / "weights.pt", expected_classes=5)
