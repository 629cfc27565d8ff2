"""`unidd export`: what is written is what is read, the card says what it is, and the scorers' own code takes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import yaml
from torch import nn
from torchvision.datasets import ImageFolder

from unidd_pl.cli import main
from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange import read_set
from unidd_pl.exchange.ddranking import dataset_name, model_name, renamed
from unidd_pl.exchange.layouts import Companions, Layout, export_set
from unidd_pl.exchange.plain_teacher import PlainTeacher
from unidd_pl.exchange.rethinkdc import MEAN, STD, weights_file
from unidd_pl.networks import build_network
from unidd_pl.protocols import Protocol
from unidd_pl.specs import DatasetSpec
from unidd_pl.teachers import Teacher, freeze, save_teacher

OPEN_LAYOUTS: tuple[Layout, ...] = ("png", "parquet", "webdataset", "safetensors")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_SPEC = DatasetSpec("CIFAR10", CIFAR10, 3, 32, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))
IMAGENET = DatasetSpec("imagenet", tuple(f"n{i:08d}" for i in range(1000)), 3, 80, MEAN, STD)


def make_set(
    classes: tuple[str, ...] = ("zebra", "ant/eater", "猫"), channels: int = 3, size: int = 8, ipc: int = 4
) -> DistilledSet:
    """Return random images in the order a distillation makes them: one of every class a round."""
    spec = DatasetSpec("toy", classes, channels, size, (0.5,) * channels, (0.25,) * channels)
    return of_spec(spec, ipc)


def of_spec(spec: DatasetSpec, ipc: int = 2) -> DistilledSet:
    shape = (ipc * spec.num_classes, *spec.image_shape)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    manifest = {"method": "cfm", "teacher": "ab" * 32, "teacher_network": "convnet-w128-d3", "teacher_accuracy": 0.848}
    return DistilledSet(pixels, torch.arange(spec.num_classes).repeat(ipc), spec, manifest)


def network_of(name: str, spec: DatasetSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(name, spec)
        network(torch.randn(4, *spec.image_shape))  # running statistics of its own
    freeze(network)
    return network


class TestRoundTrip:
    @pytest.mark.parametrize("layout", OPEN_LAYOUTS)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_bit_for_bit(self, tmp_path: Path, layout: Layout, channels: int) -> None:
        made = make_set(channels=channels)
        export_set(made, tmp_path / "out", layout)
        other = DatasetSpec("other", ("a", "b"), 3, 16, MEAN, STD)  # an export describes itself
        read = read_set(tmp_path / "out", other)
        assert torch.equal(read.images, made.images)
        assert torch.equal(read.labels, made.labels)
        assert read.class_names == made.class_names
        assert (read.spec, read.manifest) == (made.spec, made.manifest)
        assert read.fingerprint() == made.fingerprint()

    @pytest.mark.parametrize("layout", OPEN_LAYOUTS)
    def test_a_class_without_images_and_twelve_classes(self, tmp_path: Path, layout: Layout) -> None:
        made = make_set(tuple(f"class {i}" for i in range(12)), ipc=1)
        part = DistilledSet(made.images[1:], made.labels[1:], made.spec, {})
        export_set(part, tmp_path, layout)
        assert read_set(tmp_path, made.spec).fingerprint() == part.fingerprint()

    @pytest.mark.parametrize("layout", OPEN_LAYOUTS)
    def test_float_pixels(self, tmp_path: Path, layout: Layout) -> None:
        source = make_set()
        made = DistilledSet.from_normalised(source.tensors()[0] + 1e-3, source.labels, source.spec, {}, "float32")
        card = export_set(made, tmp_path, layout)
        read = read_set(tmp_path, made.spec)
        if layout == "safetensors":
            assert torch.equal(read.images, made.images)
        else:
            assert torch.equal(read.images, (made.images * 255).round().to(torch.uint8))
        assert card["rounded"] is (layout != "safetensors")
        assert ("| rounded |" in (tmp_path / "README.md").read_text()) is card["rounded"]

    def test_equal_sets_give_equal_files(self, tmp_path: Path) -> None:
        for layout in OPEN_LAYOUTS:
            cards = [export_set(make_set(), tmp_path / f"{layout}{i}", layout) for i in range(2)]
            assert cards[0] == cards[1]

    @pytest.mark.parametrize("layout", OPEN_LAYOUTS)
    def test_without_the_card_it_is_a_set_made_elsewhere(self, tmp_path: Path, layout: Layout) -> None:
        made = make_set(("zebra", "sea lion", "ant"))
        export_set(made, tmp_path, layout)
        (tmp_path / "card.json").unlink()
        read = read_set(tmp_path, made.spec)
        assert {
            (label, one.numpy().tobytes()) for one, label in zip(read.images, read.labels.tolist(), strict=True)
        } == {(label, one.numpy().tobytes()) for one, label in zip(made.images, made.labels.tolist(), strict=True)}

    @pytest.mark.parametrize("layout", ["png", "parquet", "webdataset"])
    def test_what_was_changed_is_noticed(self, tmp_path: Path, layout: Layout) -> None:
        made = make_set()
        export_set(made, tmp_path / "a", layout)
        changed = DistilledSet(made.images, made.labels.flip(0), made.spec, made.manifest)
        export_set(changed, tmp_path / "b", layout)
        shutil.copy(tmp_path / "a/card.json", tmp_path / "b/card.json")
        with pytest.raises(ValueError, match="other images, labels or classes than its card says"):
            read_set(tmp_path / "b", made.spec)

    def test_damaged_card(self, tmp_path: Path) -> None:
        card = export_set(make_set(), tmp_path, "png")
        (tmp_path / "card.json").write_text(json.dumps({**card, "version": 99}))
        with pytest.raises(ValueError, match="got version 99, expected at most 1: upgrade"):
            read_set(tmp_path, make_set().spec)
        (tmp_path / "card.json").write_text(json.dumps({"format": card["format"], "version": 1}))
        with pytest.raises(ValueError, match="got a damaged card"):
            read_set(tmp_path, make_set().spec)


class TestOtherReaders:
    """The formats as their own readers see them, not by ours."""

    def test_image_folder_numbers_classes_as_we_do(self, tmp_path: Path) -> None:
        made = make_set(tuple(f"class {i}" for i in range(11, -1, -1)))  # sorted by name they would turn round
        export_set(made, tmp_path, "png")
        folder = ImageFolder(str(tmp_path))
        assert folder.classes == [f"{label:05d}" for label in range(12)]
        for (picture, label), file in zip(folder, folder.samples, strict=True):
            position = int(Path(file[0]).stem)
            assert label == made.labels[position]
            assert torch.equal(torchvision.transforms.functional.pil_to_tensor(picture), made.images[position])

    def test_parquet_names_its_classes(self, tmp_path: Path) -> None:
        export_set(make_set(), tmp_path, "parquet")
        schema = pq.read_schema(tmp_path / "train-00000-of-00001.parquet")
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert features["label"] == {"names": ["zebra", "ant/eater", "猫"], "_type": "ClassLabel"}
        assert features["image"] == {"_type": "Image"}
        assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"


class TestFolder:
    def test_other_files_are_never_deleted(self, tmp_path: Path) -> None:
        made = make_set()
        (tmp_path / "mine.txt").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(
                ValueError, match=r"with 1 entries, expected an empty one: .*more than an earlier export"
            ):
                export_set(made, tmp_path, "png", overwrite=overwrite)
        (tmp_path / "mine.txt").unlink()
        (tmp_path / "card.json").write_text('{"entries": []}')
        with pytest.raises(ValueError, match="expected an empty one"):
            export_set(made, tmp_path, "png", overwrite=True)

    @pytest.mark.parametrize("layout", OPEN_LAYOUTS)
    def test_an_earlier_export_is_replaced(self, tmp_path: Path, layout: Layout) -> None:
        export_set(make_set(tuple(f"class {i}" for i in range(5))), tmp_path, "png")
        made = make_set()
        with pytest.raises(ValueError, match="--overwrite true"):
            export_set(made, tmp_path, layout)
        export_set(made, tmp_path, layout, overwrite=True)
        assert read_set(tmp_path, made.spec).fingerprint() == made.fingerprint()
        assert not (tmp_path / "00004").exists()
        (tmp_path / "notes.txt").touch()
        with pytest.raises(ValueError, match="more than an earlier export"):
            export_set(made, tmp_path, layout, overwrite=True)

    def test_unwritable_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=rf"could not write the export in folder {tmp_path}/file.*make room"):
            export_set(make_set(), tmp_path / "file", "png")

    def test_unknown_layout(self, tmp_path: Path) -> None:
        layout: Any = "pngs"
        with pytest.raises(ValueError, match="layout: got 'pngs', expected one of png, parquet"):
            export_set(make_set(), tmp_path, layout)


class TestCard:
    def test_facts(self, tmp_path: Path) -> None:
        figure = {"mean": 0.648, "std": 0.004}
        scores = [
            {"network": "resnet18", "n": 3, "tail_mean": figure, "last_epoch": figure, "protocol": "hard", "epochs": 9}
        ]
        made = of_spec(CIFAR_SPEC)
        companions = Companions(Protocol(epochs=300), scores=scores, soft_label_bytes=1234567)
        card = export_set(made, tmp_path, "png", companions)
        files = list(tmp_path.rglob("*.png"))
        assert card["file_bytes"] == sum(path.stat().st_size for path in files)
        assert card["pixel_bytes"] == 20 * 3 * 32 * 32
        assert (card["classes"], card["fingerprint"]) == (list(CIFAR10), made.fingerprint())
        assert card["teacher"] == {"network": "convnet-w128-d3", "fingerprint": "ab" * 32, "accuracy": 0.848}
        assert json.loads((tmp_path / "card.json").read_text()) == card
        page = (tmp_path / "README.md").read_text()
        for said in (
            "| soft labels | 1,234,567 bytes |", "unidd-release, 300 epochs", "84.8 % on the test images",
            "none stated by its authors", card["checksum"], "airplane, automobile", "| resnet18 | hard, 9 "
            "epochs | 3 | 64.8 ± 0.4",
        ):  # fmt: skip
            assert said in page
        assert yaml.safe_load(page.split("---")[1])["license"] == "other"

    def test_checksum_changes_with_a_byte(self, tmp_path: Path) -> None:
        first, second = make_set(), make_set()
        second.images[0, 0, 0, 0] += 1
        cards = [export_set(one, tmp_path / str(i), "png") for i, one in enumerate((first, second))]
        assert cards[0]["checksum"] != cards[1]["checksum"]

    def test_licence(self, tmp_path: Path) -> None:
        assert export_set(make_set(), tmp_path / "a", "png")["licence_of_source_data"].startswith("not known; ask")
        card = export_set(make_set(), tmp_path / "b", "png", Companions(licence="CC0"))
        assert card["licence_of_source_data"] == "CC0"


class TestDDRanking:
    @pytest.fixture
    def exported(self, tmp_path: Path) -> tuple[Path, nn.Module]:
        network = network_of("convnet-w128-d3", CIFAR_SPEC)
        teacher = PlainTeacher("convnet-w128-d3", network.state_dict())
        export_set(of_spec(CIFAR_SPEC), tmp_path / "out", "ddranking", Companions(teacher=teacher))
        return tmp_path / "out", network

    def test_paths_and_keys(self, exported: tuple[Path, nn.Module]) -> None:
        folder, network = exported
        state = torch.load(folder / "teacher_models/CIFAR10/ConvNet-3-BN/ckpt_best.pt", weights_only=True)
        kinds = [nn.Conv2d(3, 1, 1).state_dict(), nn.BatchNorm2d(1).state_dict()]
        expected = {f"features.{4 * i + j}.{key}" for i in range(3) for j in (0, 1) for key in kinds[j]}
        assert set(state) == expected | {"classifier.weight", "classifier.bias"}
        assert torch.equal(state["features.8.weight"], network.state_dict()["layers.conv.2.weight"])
        assert torch.equal(state["features.5.running_var"], network.state_dict()["layers.norm.1.running_var"])

    def test_the_same_layers_in_its_order_give_the_same_logits(self, exported: tuple[Path, nn.Module]) -> None:
        folder, network = exported
        blocks = [
            layer
            for inputs in (3, 128, 128)
            for layer in (nn.Conv2d(inputs, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.AvgPool2d(2, 2))
        ]
        theirs = nn.ModuleDict({"features": nn.Sequential(*blocks), "classifier": nn.Linear(2048, 10)}).eval()
        path = folder / "teacher_models/CIFAR10/ConvNet-3-BN/ckpt_best.pt"
        theirs.load_state_dict(torch.load(path, weights_only=True))
        images = torch.randn(5, 3, 32, 32)
        logits = theirs["classifier"](theirs["features"](images).flatten(1))
        torch.testing.assert_close(logits, network(images), rtol=0, atol=1e-5)

    def test_its_images_are_the_set(self, exported: tuple[Path, nn.Module]) -> None:
        folder, _ = exported
        assert read_set(folder, CIFAR_SPEC).fingerprint() == of_spec(CIFAR_SPEC).fingerprint()
        assert [label for _, label in ImageFolder(str(folder / "images")).samples] == [i // 2 for i in range(20)]

    def test_configuration_is_the_protocol(self, exported: tuple[Path, nn.Module]) -> None:
        folder, _ = exported
        config = yaml.safe_load((folder / "ddranking.yaml").read_text())
        assert "&id" not in (folder / "ddranking.yaml").read_text()
        card = json.loads((folder / "card.json").read_text())
        assert card["image_bytes"] == sum(path.stat().st_size for path in (folder / "images").rglob("*.png"))
        assert card["image_bytes"] < card["file_bytes"]  # the teacher
        assert config["teacher_model_names"] == [config["model_name"]] == ["ConvNet-3-BN"]
        assert (config["dataset"], config["im_size"], config["ipc"]) == ("CIFAR10", [32, 32], 2)
        assert config["loss_fn_kwargs"] == {"temperature": 20.0, "scale_loss": False}
        assert (config["lr_scheduler"], config["optimizer"], config["soft_label_mode"]) == ("cosine", "adamw", "M")
        assert [one["name"] for one in config["custom_train_trans"]] == [
            "RandomResizedCrop", "RandomHorizontalFlip", "ToTensor", "Normalize",
        ]  # fmt: skip
        assert 'compute_metrics(image_path="images", syn_lr=0.001)' in (folder / "score.py").read_text()

    def test_hard_labels(self, tmp_path: Path) -> None:
        hard = Protocol(
            name="hard", labels="hard", cutmix_alpha=0, crop_scale=None, flip=False, dsa=["flip"], schedule="step",
            optimizer="sgd",
        )  # fmt: skip
        teacher = PlainTeacher("resnet18", network_of("resnet18", CIFAR_SPEC).state_dict())
        export_set(of_spec(CIFAR_SPEC), tmp_path, "ddranking", Companions(hard, teacher))
        config = yaml.safe_load((tmp_path / "ddranking.yaml").read_text())
        assert (config["data_aug_func"], config["lr_scheduler"], config["step_size"]) == ("dsa", "step", 500)
        assert config["use_torchvision"] is True
        assert (tmp_path / "teacher_models/CIFAR10/ResNet-18-BN/ckpt_best.pt").is_file()
        assert "LabelRobustScoreHard" in (tmp_path / "score.py").read_text()

    @pytest.mark.parametrize(
        ("network", "size", "expected"),
        [
            ("convnet-w128-d4", 64, ("ConvNet-4-BN", False)),
            ("convnet-d3", 32, ("ConvNet-3-BN", False)),
            ("resnet50", 224, ("ResNet-50-BN", True)),
        ],
    )
    def test_names_of_networks(self, network: str, size: int, expected: tuple[str, bool]) -> None:
        assert model_name(network, DatasetSpec("x", ("a", "b"), 3, size, MEAN, STD)) == expected

    @pytest.mark.parametrize(
        ("network", "size"),
        [("convnet-w64-d3", 32), ("convnet-w128-d3", 28), ("resnet18", 40), ("resnet101", 64), ("vgg11", 32)],
    )
    def test_networks_that_it_builds_otherwise(self, network: str, size: int) -> None:
        with pytest.raises(ValueError, match="layout ddranking: got the teacher"):
            model_name(network, DatasetSpec("x", ("a", "b"), 3, size, MEAN, STD))

    def test_data_that_it_numbers_otherwise(self, tmp_path: Path) -> None:
        assert dataset_name(CIFAR_SPEC, None) == "CIFAR10"
        assert dataset_name(DatasetSpec("mine", CIFAR10, 3, 32, MEAN, STD), "cifar-10") == "CIFAR10"
        with pytest.raises(ValueError, match="got the data 'mine', expected one that DD-Ranking knows"):
            dataset_name(DatasetSpec("mine", CIFAR10, 3, 32, MEAN, STD), None)
        with pytest.raises(ValueError, match="in alphabetical order, as DD-Ranking numbers them"):
            dataset_name(DatasetSpec("CIFAR10", CIFAR10[::-1], 3, 32, MEAN, STD), None)
        with pytest.raises(ValueError, match="got no teacher"):
            export_set(of_spec(CIFAR_SPEC), tmp_path, "ddranking")
        assert not list(tmp_path.iterdir())

    @pytest.mark.filterwarnings("ignore:.*pretrained.*", "ignore:.*Arguments other than a weight enum.*")
    @pytest.mark.skipif("DDRANKING" not in os.environ, reason="needs DDRANKING=<folder of pip install --target>")
    @pytest.mark.parametrize("network", ["convnet-w128-d3", "resnet18"])
    def test_its_own_code_loads_the_teacher(
        self, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(os.environ["DDRANKING"])
        monkeypatch.setitem(sys.modules, "pkg_resources", None)
        from ddranking.config import Config
        from ddranking.utils import build_model, get_pretrained_model_path

        ours = network_of(network, CIFAR_SPEC)
        teacher = PlainTeacher(network, ours.state_dict())
        export_set(of_spec(CIFAR_SPEC), tmp_path / "out", "ddranking", Companions(teacher=teacher))
        monkeypatch.chdir(tmp_path / "out")
        config = Config.from_file("ddranking.yaml")
        names = config.get("teacher_model_names")
        (path,) = get_pretrained_model_path(config.get("teacher_dir"), names, config.get("dataset"))
        theirs = build_model(
            names[0], num_classes=10, im_size=config.get("im_size"), pretrained=True, device="cpu", model_path=path,
            use_torchvision=config.get("tea_use_torchvision"),
        ).eval()  # fmt: skip
        images = torch.randn(5, 3, 32, 32)
        torch.testing.assert_close(theirs(images), ours(images), rtol=0, atol=1e-5)
        assert len(config.get("custom_train_trans").transforms) == 4


@pytest.fixture(scope="module")
def rethinkdc_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("rethinkdc") / "out"
    network = network_of("resnet18", IMAGENET)
    teacher = PlainTeacher("resnet18", network.state_dict())
    export_set(of_spec(IMAGENET, ipc=1), folder, "rethinkdc", Companions(Protocol(epochs=300), teacher))
    return folder, network


class TestRethinkDC:
    def test_torchvision_finds_the_teacher(
        self, rethinkdc_export: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As RethinkDC gets it: published weights by name, from the folder that TORCH_HOME names."""
        folder, network = rethinkdc_export
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        monkeypatch.setenv("TORCH_HOME", str(folder / "torch_home"))
        theirs = torchvision.models.resnet18(weights="IMAGENET1K_V1").eval()
        images = torch.randn(2, 3, 80, 80)
        assert torch.equal(theirs(images), network(images))

    def test_only_class_folders_where_it_looks(self, rethinkdc_export: tuple[Path, nn.Module]) -> None:
        folder, _ = rethinkdc_export
        assert all(entry.is_dir() for entry in (folder / "train").iterdir())
        config = yaml.safe_load((folder / "rethinkdc.yaml").read_text())
        assert (config["train_dir"], config["ipc"], config["teacher_model"]) == ("train", 1, "resnet18")
        assert (config["temperature"], config["mix_type"], config["hard_label"]) == (20.0, "cutmix", False)
        assert read_set(folder, IMAGENET).fingerprint() == of_spec(IMAGENET, ipc=1).fingerprint()

    def test_other_data_and_networks(self, tmp_path: Path) -> None:
        teacher = PlainTeacher("convnet-w128-d3", {})
        with pytest.raises(ValueError, match=r"layout rethinkdc: got 10 classes .* expected the 1000 of ImageNet-1K"):
            export_set(of_spec(CIFAR_SPEC), tmp_path, "rethinkdc", Companions(teacher=teacher))
        for network, size in (("convnet-w128-d3", 224), ("resnet18", 64), ("timm/vit_tiny_patch16_224", 224)):
            with pytest.raises(ValueError, match=f"got the teacher {network} at {size} px"):
                weights_file(network, size)
        assert weights_file("resnet18", 224) == "resnet18-f37072fd.pth"


Refused = Callable[..., str]


class TestCommand:
    @pytest.fixture
    def distilled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        of_spec(CIFAR_SPEC).save("run/distilled.safetensors")
        return Path("run/distilled.safetensors")

    @pytest.fixture
    def refused(self, capsys: pytest.CaptureFixture[str], distilled: Path) -> Refused:
        def run(*arguments: str) -> str:
            with pytest.raises(SystemExit) as ended:
                main(["export", "--distilled", str(distilled), "--output", "out", *arguments])
            assert ended.value.code == 2
            return capsys.readouterr().err

        return run

    def test_own_teacher_from_the_cache(self, distilled: Path) -> None:
        network = network_of("convnet-w128-d3", CIFAR_SPEC)
        teacher = Teacher(network, "convnet-w128-d3", CIFAR_SPEC, 0.8, Path("x"))
        one = DistilledSet.load(distilled)
        named = DistilledSet(one.images, one.labels, one.spec, {**one.manifest, "teacher": teacher.fingerprint})
        named.save(distilled, overwrite=True)
        save_teacher(Path(f"runs/cache/teachers/x-{teacher.fingerprint[:16]}.safetensors"), teacher)
        main(
            [
                "export",
                "--distilled",
                str(distilled),
                "--output",
                "out",
                "--layout",
                "ddranking",
                "--protocol.epochs",
                "30",
            ]
        )
        state = torch.load("out/teacher_models/CIFAR10/ConvNet-3-BN/ckpt_best.pt", weights_only=True)
        assert state.keys() == renamed(network.state_dict()).keys()
        assert yaml.safe_load(Path("out/ddranking.yaml").read_text())["num_epochs"] == 30

    def test_scores_beside_the_set(self, distilled: Path, refused: Refused) -> None:
        figure = {"mean": 0.5, "std": None}
        row = {"network": "resnet18", "n": 1, "tail_mean": figure, "last_epoch": figure}
        rows = [
            {**row, "distilled_set": DistilledSet.load(distilled).fingerprint()},
            {**row, "distilled_set": "x", "n": 7},
        ]
        content = {"protocol": {"name": "hard", "epochs": 5}, "rows": rows}
        Path("run/evaluation.json").write_text(json.dumps(content))
        main(["export", "--distilled", str(distilled), "--output", "first"])
        assert [one["n"] for one in json.loads(Path("first/card.json").read_text())["scores"]] == [1]
        Path("other.json").write_text(json.dumps({**content, "rows": rows[1:]}))
        assert "has no row of this set" in refused("--evaluation", "other.json")
        assert "cannot read the evaluation" in refused("--evaluation", "gone.json")
        for content in ("{", "[1]", '{"rows": []}'):
            Path("run/evaluation.json").write_text(content)
            assert re.search(r"cannot read the evaluation run/evaluation.json .*make it again, or", refused())

    def test_typos_and_bad_input(self, refused: Refused) -> None:
        assert "layout" in refused("--layout", "pngs")
        assert "laiout" in refused("--laiout", "png")
        assert "the set's teacher (abababababab) is not in runs/cache/teachers" in refused("--layout", "ddranking")
        assert "gone.pt" in refused("--layout", "ddranking", "--teacher", "gone.pt")
        assert "gone.safetensors" in refused("--labels", "gone.safetensors")
        assert not Path("out").exists()
