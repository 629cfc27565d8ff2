"""Named subsets of ImageNet, lists in files, and teachers of more classes than the data: never a label mixed up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import unidd_pl.data
from unidd_pl.cli import main
from unidd_pl.data import ImageFolderData
from unidd_pl.data.class_lists import CLASS_LISTS, choose_classes, imagenet_names, imagenet_outputs
from unidd_pl.networks import build_network
from unidd_pl.teachers import Teacher, load_teacher, save_teacher

NETWORK = "convnet-w4-d2"
WOLVES = ("n02114367", "n02114548", "n02114712", "n02114855")  # timber wolf, white wolf, red wolf, coyote
NORMALISATION: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}


def write_classes(root: Path, names: tuple[str, ...], count: int = 3) -> Path:
    """Write noise of one image size, ``count`` images a class and split."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "wolves", WOLVES)


def listed(tmp_path: Path, text: str) -> str:
    path = tmp_path / "some.txt"
    path.write_text(text)
    return str(path)


class TestShippedLists:
    def test_imagenet_is_in_the_order_of_published_networks(self) -> None:
        published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
        assert list(imagenet_names().values()) == published
        assert list(imagenet_names()) == sorted(imagenet_names())

    def test_the_order_of_timm(self) -> None:
        from timm.data import ImageNetInfo

        assert list(imagenet_names()) == ImageNetInfo().label_names()

    @pytest.mark.parametrize(
        ("wnid", "output", "name"),
        [
            ("n01440764", 0, "tench"),
            ("n02012849", 134, "crane bird"),
            ("n03126707", 517, "crane"),
            ("n04355933", 836, "sunglass"),
            ("n15075141", 999, "toilet tissue"),
        ],
    )
    def test_known_classes(self, wnid: str, output: int, name: str) -> None:
        assert imagenet_outputs([wnid]) == [output]
        assert imagenet_names()[wnid] == name

    @pytest.mark.parametrize(
        ("name", "count", "outputs"),
        [
            ("imagenette", 10, [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]),  # fastai's table
            ("imagewoof", 10, [155, 159, 162, 167, 182, 193, 207, 229, 258, 273]),
            ("imagenet100", 100, None),
            ("imagenet", 1000, list(range(1000))),
        ],
    )
    def test_subsets(self, name: str, count: int, outputs: list[int] | None) -> None:
        chosen = choose_classes(name, list(imagenet_names()), "there")
        assert len(set(chosen)) == count
        assert list(chosen) == sorted(chosen)
        if outputs:
            assert imagenet_outputs(chosen) == outputs

    def test_the_text_of_each_list_agrees_with_the_names(self) -> None:
        folder = Path(unidd_pl.data.__file__).parent / "classes"
        assert {path.stem for path in folder.glob("*.txt")} == set(CLASS_LISTS)
        for path in folder.glob("*.txt"):
            for line in path.read_text().splitlines():
                if not line.startswith("#"):
                    wnid, name = line.split("\t")
                    assert imagenet_names()[wnid] == name


class TestFolder:
    def test_only_these_classes_in_alphabetical_order(self, root: Path, tmp_path: Path) -> None:
        classes = listed(tmp_path, f"# two\n{WOLVES[3]}\n\n{WOLVES[1]} white wolf, Arctic wolf\n")
        data = ImageFolderData(str(root), classes=classes, name="pack")
        whole = ImageFolderData(str(root))
        assert data.spec.classes == (WOLVES[1], WOLVES[3])
        assert data.spec.name == "pack-some"
        assert str(data.betons) == "runs/cache/betons/pack-some"
        assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] == data.test.labels.tolist()
        assert torch.equal(data.train.read(range(6)), whole.train.read([3, 4, 5, 9, 10, 11]))
        assert torch.equal(data.test.read(range(6)), whole.test.read([3, 4, 5, 9, 10, 11]))
        assert data.fingerprint != whole.fingerprint

    def test_folder_names_with_spaces(self, tmp_path: Path) -> None:
        root = write_classes(tmp_path / "pets", ("grey wolf", "dog", "cat"))
        data = ImageFolderData(str(root), classes=listed(tmp_path, "grey wolf\ndog\tthe best\n"))
        assert data.spec.classes == ("dog", "grey wolf")

    def test_the_same_folder_made_by_hand(self, root: Path, tmp_path: Path) -> None:
        alone = write_classes(tmp_path / "alone", ())
        for split in ("train", "val"):
            (alone / split).mkdir(parents=True)
            for name in WOLVES[1:3]:
                (alone / split / name).symlink_to(root / split / name)
        chosen = ImageFolderData(str(root), classes=listed(tmp_path, "\n".join(WOLVES[1:3])))
        assert chosen.fingerprint == ImageFolderData(str(alone)).fingerprint

    def test_misspelt(self, root: Path) -> None:
        with pytest.raises(ValueError, match=r"classes: got 'ImageNete' .*a text file; did you mean imagenette\?"):
            ImageFolderData(str(root), classes="ImageNete")

    def test_not_there(self, root: Path) -> None:
        message = (
            r"imagenette names 10 of 10 classes that .*wolves/train has no folder of: n01440764, .*data\.init_args\."
        )
        with pytest.raises(ValueError, match=message):
            ImageFolderData(str(root), classes="imagenette").read_classes()

    def test_missing_in_the_other_split(self, root: Path, tmp_path: Path) -> None:
        (root / "val" / WOLVES[1]).rename(tmp_path / "away")
        data = ImageFolderData(str(root), classes=listed(tmp_path, "\n".join(WOLVES[1:3])))
        with pytest.raises(ValueError, match=rf"val has other classes .*missing \['{WOLVES[1]}'\]"):
            data.list_split("test")

    @pytest.mark.parametrize(
        ("text", "message"), [("n02114367\n", r"with 1 class\(es\)"), ("a\nb\na\n", "with 3 class.*, a more than once")]
    )
    def test_useless_list(self, root: Path, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ImageFolderData(str(root), classes=listed(tmp_path, text)).read_classes()


class TestTeacherOfMoreClasses:
    @pytest.fixture
    def data(self, root: Path, tmp_path: Path) -> ImageFolderData:
        return ImageFolderData(str(root), classes=listed(tmp_path, "\n".join(WOLVES[1:3])), **NORMALISATION)

    @pytest.fixture
    def whole(self, root: Path) -> ImageFolderData:
        return ImageFolderData(str(root), **NORMALISATION)

    def test_of_imagenet_gives_the_logits_of_the_wnids(
        self, data: ImageFolderData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spec = replace(data.spec, classes=tuple(imagenet_names()))
        network = build_network(NETWORK, spec).eval()
        torch.save(network.state_dict(), tmp_path / "imagenet.pt")
        teacher = load_teacher(tmp_path / "imagenet.pt", NETWORK, data, check=False)
        images = data.spec.normalise(data.train.read(range(6)))
        torch.testing.assert_close(teacher.network(images), network(images)[:, [270, 271]])
        assert list(imagenet_names()).index(WOLVES[1]) == 270
        assert teacher.spec.classes == WOLVES[1:3]
        printed = capsys.readouterr().out
        assert "of the 1000 outputs of" in printed.replace("\n", " ")

    def test_a_resnet(self, root: Path, tmp_path: Path) -> None:
        """As published: the classifier is called otherwise, and torchvision builds it."""
        data = ImageFolderData(str(root), **NORMALISATION)
        network = build_network("resnet18", replace(data.spec, classes=tuple(imagenet_names()))).eval()
        torch.save(network.state_dict(), tmp_path / "published.pth")
        teacher = load_teacher(tmp_path / "published.pth", "resnet18", data, check=False)
        images = data.spec.normalise(data.train.read(range(3)))
        torch.testing.assert_close(teacher.network(images), network(images)[:, 269:273])

    def test_named_classes_are_found_whatever_their_order(
        self, data: ImageFolderData, whole: ImageFolderData, tmp_path: Path
    ) -> None:
        shuffled = (WOLVES[2], WOLVES[0], WOLVES[3], WOLVES[1])
        network = build_network(NETWORK, whole.spec).eval()
        path = tmp_path / "four.safetensors"
        save_teacher(path, Teacher(network, NETWORK, replace(whole.spec, classes=shuffled), 0.9, path))
        teacher = load_teacher(path, None, data)
        images = data.spec.normalise(data.train.read(range(6)))
        torch.testing.assert_close(teacher.network(images), network(images)[:, [3, 0]])
        assert teacher.accuracy != 0.9, "that of four classes is not that of two"

    def test_of_other_classes(self, data: ImageFolderData, whole: ImageFolderData, tmp_path: Path) -> None:
        path = tmp_path / "four.safetensors"
        other = replace(whole.spec, classes=(*WOLVES[:2], "dog", "cat"))
        save_teacher(path, Teacher(build_network(NETWORK, other), NETWORK, other, None, path))
        with pytest.raises(ValueError, match=r"number of classes: got 4, expected 2"):
            load_teacher(path, None, data)

    def test_a_thousand_outputs_for_classes_that_are_not_imagenets(self, tmp_path: Path) -> None:
        data = ImageFolderData(str(write_classes(tmp_path / "pets", ("cat", "dog"))), **NORMALISATION)
        network = build_network(NETWORK, replace(data.spec, classes=tuple(imagenet_names())))
        torch.save(network.state_dict(), tmp_path / "imagenet.pt")
        with pytest.raises(ValueError, match=r"got 1000 classes .*expected 2"):
            load_teacher(tmp_path / "imagenet.pt", NETWORK, data)

    def test_another_order_is_still_noticed(self, data: ImageFolderData, tmp_path: Path) -> None:
        """A plain state_dict of 1,000 classes whose outputs are one off: the images tell."""
        network = build_network(NETWORK, replace(data.spec, classes=tuple(imagenet_names())))
        state = dict(network.state_dict())
        state["classifier.weight"] = torch.zeros_like(state["classifier.weight"])
        state["classifier.bias"] = torch.zeros(1000).index_fill(0, torch.tensor([271]), 9.0)
        torch.save(state, tmp_path / "off.pt")
        with pytest.raises(
            ValueError, match=rf"takes 3 of 3 training images of the class '{WOLVES[1]}' \(label 0\) for"
        ):
            load_teacher(tmp_path / "off.pt", NETWORK, data)


def test_end_to_end_with_a_teacher_of_imagenet(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Distilled on a subset and evaluated on it, from the shipped configs of any folder."""
    monkeypatch.chdir(tmp_path)
    configs = Path(__file__).parent.parent / "configs"
    spec = replace(ImageFolderData(str(root), **NORMALISATION).spec, classes=tuple(imagenet_names()))
    torch.save(build_network(NETWORK, spec).state_dict(), "imagenet.pt")
    data = [
        "--data.init_args.root", str(root), "--data.init_args.classes", listed(tmp_path, "\n".join(WOLVES[1:4])),
        "--data.init_args.mean", "[0.5,0.5,0.5]", "--data.init_args.std", "[0.25,0.25,0.25]",
        "--teacher.network", NETWORK, "--teacher.checkpoint", "imagenet.pt", "--teacher.check", "false",
        "--tracking.enabled", "false",
    ]  # fmt: skip
    fit = ["--model.init_args.ipc", "1", "--model.init_args.iterations", "2", "--trainer.enable_progress_bar", "false"]
    main(["fit", "--config", str(configs / "cfm_folder.yaml"), *data, *fit])
    evaluated = ["--distilled", "runs/cfm_folder/distilled.safetensors", "--networks", NETWORK, "--seeds", "1"]
    main(["evaluate", "--config", str(configs / "eval_folder.yaml"), *data, *evaluated, "--protocol.epochs", "1"])
    assert "cfm" in capsys.readouterr().out
