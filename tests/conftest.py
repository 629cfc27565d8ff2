"""Fixtures that the tests share: a tiny tree of coloured images, a teacher for it and its moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusal import Refused

from unidd_pl.cli import main
from unidd_pl.data import ImageFolderData
from unidd_pl.features import conv_layers
from unidd_pl.networks import build_network
from unidd_pl.real_side import RealSide
from unidd_pl.statistics import Statistics, gather_statistics
from unidd_pl.teachers import Teacher, freeze

# Tensors of a few kilobytes: starting a second thread costs more than it saves.
torch.set_num_threads(1)

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 70), "red": (210, 50, 40)}  # one a class, in label order
IMAGE_SIZE = 12  # pixels
TRAIN_IMAGES, TEST_IMAGES = 10, 4  # of each class
TINY_NETWORK = "convnet-w8-d2"


def write_image_folder(root: Path) -> Path:
    """Write ``root/train`` and ``root/test`` with noisy images of one colour a class; the same at each call."""
    noise = np.random.default_rng(0)
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.array(colour) + noise.normal(0, 25, (IMAGE_SIZE, IMAGE_SIZE, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02d}.png")
    return root


@pytest.fixture(autouse=True)
def _keep_global_seed() -> Iterator[None]:
    """Give each test the global random state as it was: a test must not depend on those before it."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/ and test/ of three colour-coded classes; read only (copy it to change it)."""
    return write_image_folder(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture(scope="session")
def folder_data(image_folder: Path) -> ImageFolderData:
    """The data module of `image_folder`, read once."""
    return ImageFolderData(str(image_folder))


@pytest.fixture(scope="session")
def tiny_teacher(folder_data: ImageFolderData, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """An untrained but fixed and frozen network for `folder_data`; no file lies at its path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(TINY_NETWORK, folder_data.spec)
    freeze(network)
    return Teacher(
        network, TINY_NETWORK, folder_data.spec, None, tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    )


@pytest.fixture(scope="session")
def tiny_statistics(tiny_teacher: Teacher, folder_data: ImageFolderData) -> Statistics:
    """Moments of all convolution inputs of `tiny_teacher` over the training images, signal ``mean``."""
    return gather_statistics(tiny_teacher, folder_data, conv_layers(tiny_teacher.network), "mean", batch_size=16)


@pytest.fixture(scope="module")
def real(tiny_teacher: Teacher, tiny_statistics: Statistics, folder_data: ImageFolderData) -> RealSide:
    """What a distillation of `folder_data` is compared with."""
    return RealSide(tiny_teacher, tiny_statistics, folder_data.train)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that has to end with status 2 and a message; return the message."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        assert "unidd: error: " in printed.err
        return printed.err[printed.err.index("unidd: error: ") :]

    return run
