"""Published weights: resolved when needed, refused with a cure, and loaded as any other checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from unidd_pl.networks.published import is_published, published_weights


def test_what_names_published_weights() -> None:
    assert is_published("torchvision")
    assert is_published("torchvision:IMAGENET1K_V1")
    assert not is_published("torchvision.pt")
    assert not is_published("data/teacher.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub folder of its own, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path


def test_a_file_that_is_there_is_taken_without_a_network(hub: Path) -> None:
    (hub / "checkpoints").mkdir()
    file = hub / "checkpoints/resnet18-f37072fd.pth"
    torch.save({"weight": torch.ones(2)}, file)
    assert published_weights("torchvision:IMAGENET1K_V1", "resnet18") == file
    assert published_weights("torchvision", "resnet18") == file


def test_without_a_network_the_message_says_where_the_file_belongs(hub: Path) -> None:
    with pytest.raises(ValueError, match=r"no network.*expected a connection, or the file at .*resnet18-f37072fd.pth"):
        published_weights("torchvision", "resnet18")


def test_unknown_weights_and_networks(hub: Path) -> None:
    with pytest.raises(ValueError, match=r"got torchvision:V9, expected published weights of resnet18: IMAGENET1K_V1"):
        published_weights("torchvision:V9", "resnet18")
    with pytest.raises(ValueError, match="torchvision has no network 'convnet-w128-d3'"):
        published_weights("torchvision", "convnet-w128-d3")
