"""CIFAR-10, CIFAR-100 and the other small sets that torchvision downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torchvision import datasets

from unidd_pl.data.folder import ImageFolderData
from unidd_pl.data.images import LabelledImages, TensorImages
from unidd_pl.data.module import ImageData, Split

TorchvisionName = Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST"]


class TorchvisionData(ImageData):
    """A data set that torchvision downloads, or the same set as class folders.

    Where ``root`` holds a ``train`` folder, its class folders are read instead of torchvision's files.

    Args:
        dataset: torchvision's name of the set.
        root: Folder of the files; None for ``data/<dataset>``.
        download: Fetch the files where they are missing.
        mean: Mean per channel of the pixels in [0, 1]; computed from the training images where None.
        std: Standard deviation per channel, likewise.
        in_memory_gib: As for `ImageFolderData`, which reads class folders.
        workers: As for `ImageFolderData`.
    """

    def __init__(
        self,
        dataset: TorchvisionName,
        root: str | None = None,
        download: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        in_memory_gib: float = 4.0,
        workers: int = 2,
    ) -> None:
        super().__init__(dataset, mean, std, in_memory_gib, workers)
        if dataset not in get_args(TorchvisionName):
            raise ValueError(f"data.init_args.dataset: got {dataset!r}, expected one of {get_args(TorchvisionName)}")
        self.dataset = dataset
        self.root = root or f"data/{dataset.lower()}"
        self.download = download
        self._folders: ImageFolderData | None = None
        if (Path(self.root) / "train").is_dir():
            self._folders = ImageFolderData(self.root, mean=mean, std=std, name=dataset)

    @property
    def has_test(self) -> bool:
        """Whether there is a test split; torchvision's sets all have one."""
        return self._folders is None or self._folders.has_test

    def read_classes(self) -> tuple[str, ...]:
        """Return the class names in the order of the labels."""
        if self._folders:
            return self._folders.read_classes()
        return tuple(self._open("train").classes)

    def read_split(self, split: Split) -> LabelledImages:
        """Read one split."""
        if self._folders:
            return self._folders.read_split(split)
        source = self._open(split)
        pixels = np.asarray(source.data)  # (n, h, w) or (n, h, w, c)
        images = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()
        return TensorImages(images, torch.as_tensor(source.targets).long())

    def _open(self, split: Split) -> Any:
        try:
            return getattr(datasets, self.dataset)(self.root, train=split == "train", download=self.download)
        except Exception as error:  # torchvision asserts what its files hold, and meets whatever their bytes are
            raise ValueError(
                f"cannot get {self.dataset} at {self.root} ({type(error).__name__}: {error}): expected torchvision's "
                "files there, a network to download them, or train/ and test/ class folders; give the folder with "
                "--data.init_args.root PATH"
            ) from error
