"""Any data set laid out as class folders."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

import torch

from unidd_pl.data.annotated import annotated_folder, annotated_images, check_all_classes
from unidd_pl.data.beton_images import BetonImages
from unidd_pl.data.class_lists import check_class_list, choose_classes, list_name
from unidd_pl.data.conversion import load_beton
from unidd_pl.data.images import ImageFiles, LabelledImages
from unidd_pl.data.listing import class_folders, image_files, image_form, split_files
from unidd_pl.data.module import ImageData, Split

LoaderName = Literal["auto", "ffcv", "torchvision"]

DEFAULT_BETONS = "runs/cache/betons"
_BETON_NAMES: dict[Split, str] = {"train": "train.beton", "test": "val.beton"}
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


class ImageFolderData(ImageData):
    """Images in ``root/train/<class>/`` and ``root/test/<class>/`` (or ``root/val/<class>/``).

    The classes are the folder names in alphabetical order. Channels are those of the files; size too
    where all files are square and alike. Tiny-ImageNet is read as it is unpacked, see `unidd_pl.data.annotated`.

    Args:
        root: Folder that holds the splits.
        image_size: Height and width that the images are brought to, pixels; None takes the files' own.
        resize: Shorter side before the centre crop, pixels; None for ``image_size``.
        mean: Mean per channel of the pixels in [0, 1]; computed from the training images where None.
        std: Standard deviation per channel, likewise.
        name: Name for messages and tags; None takes the folder's.
        in_memory_gib: A split that decodes to at most this many GiB is held in memory.
        workers: Processes that decode what is not in memory; threads for FFCV.
        loader: ``torchvision`` reads the files. ``ffcv`` streams the .beton files that ``unidd convert`` makes of
            them. ``auto`` does so where FFCV is installed and they are there, and else warns and reads the files.
        betons: Folder of the .beton files; None for ``runs/cache/betons/<name>``.
        classes: Only these classes: ``imagenette``, ``imagewoof``, ``imagenet100``, or a text file of WNIDs or other
            folder names, a line each. They are put in alphabetical order, whatever the list's, and their name is
            added to the data's.
        test_share: Where there is no test split: the share of each class's images that become one, chosen by a hash
            of their names. The class folders may then also lie in ``root`` itself.

    Raises:
        ValueError: If there is no such list of classes; if the folder is missing, has no class folders or images, or
            the sizes of the images differ and no ``image_size`` is given; if ``loader`` is ``ffcv`` and FFCV is not
            installed; if there is a test split and a share to make one.
    """

    def __init__(
        self,
        root: str,
        image_size: int | None = None,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str | None = None,
        in_memory_gib: float = 4.0,
        workers: int = 2,
        loader: LoaderName = "torchvision",
        betons: str | None = None,
        classes: str | None = None,
        test_share: float | None = None,
    ) -> None:
        whole = name or Path(root).resolve().name
        super().__init__(f"{whole}-{list_name(classes)}" if classes else whole, mean, std, in_memory_gib, workers)
        for what, value in (("image_size", image_size), ("resize", resize)):
            if value is not None and value < 1:
                raise ValueError(f"data.init_args.{what}: got {value}, expected at least 1 pixel")
        if resize is not None and resize < (image_size or 0):
            raise ValueError(f"data.init_args.resize: got {resize}, expected at least image_size, {image_size}")
        self.root = Path(root)
        self.image_size = image_size
        self.resize = resize
        self.loader = loader
        self.classes = classes
        self.test_share = test_share
        self.betons = Path(betons or f"{DEFAULT_BETONS}/{self.dataset_name}")
        if loader not in get_args(LoaderName):
            raise ValueError(f"data.init_args.loader: got {loader!r}, expected one of {get_args(LoaderName)}")
        if classes is not None:
            check_class_list(classes)
        if not self.root.is_dir():
            raise ValueError(
                f"no data folder at {root}: expected a folder with train/<class>/ and test/<class>/; "
                "give it with --data.init_args.root PATH"
            )
        if test_share is not None:
            self._check_test_share(test_share)
        if loader == "ffcv" and (missing := _missing_ffcv()):
            raise ValueError(f"data.init_args.loader: got 'ffcv', but {missing}, or read without it: auto, torchvision")

    @property
    def has_test(self) -> bool:
        """Whether there is a test or a val folder, or a share that takes its place."""
        return self.test_share is not None or self._has_test_folder

    @property
    def _has_test_folder(self) -> bool:
        return any((self.root / name).is_dir() for name in _SPLIT_FOLDERS["test"])

    def read_classes(self) -> tuple[str, ...]:
        """Return the names of the class folders of the training split, alphabetically: all, or those of the list."""
        names = self._all_classes
        return names if self.classes is None else choose_classes(self.classes, names, self._split_folder("train"))

    def read_split(self, split: Split) -> LabelledImages:
        """List one split; nothing is decoded yet.

        Raises:
            ValueError: If the classes differ from the training split's, or a .beton file from the image files.
        """
        files = self.list_split(split)
        if self.loader == "torchvision":
            return files
        path = self.beton_path(split)
        missing = _missing_ffcv() or _missing_beton(path)
        if missing and self.loader == "ffcv":
            raise ValueError(f"data.init_args.loader: got 'ffcv', but {missing}, or read without it: auto, torchvision")
        if missing:
            warnings.warn(f"{files.root} is read by torchvision's loader, which is slower: {missing}", stacklevel=2)
            return files
        beton, manifest = load_beton(path, files, self.read_classes(), split)
        return BetonImages(beton, manifest.content, files.channels, files.image_size, files.resize, self.workers)

    def beton_path(self, split: Split) -> Path:
        """Return where the .beton file of a split lies, or would."""
        return self.betons / _BETON_NAMES[split]

    def list_split(self, split: Split) -> ImageFiles:
        """List the image files of one split.

        Raises:
            ValueError: If the classes differ from the training split's.
        """
        folder = self._split_folder(split)
        if split == "test" and folder == annotated_folder(self.root):
            paths, labels = annotated_images(folder, self.read_classes(), self._all_classes)
        else:
            paths, labels = self._in_class_folders(folder, split)
        channels, size = self._image_form
        return ImageFiles(paths, torch.tensor(labels), folder, channels, size, self.resize or size)

    @property
    def _all_classes(self) -> tuple[str, ...]:
        names = class_folders(self._split_folder("train"))
        if annotated_folder(self.root):
            check_all_classes(self.root, names)
        return names

    @cached_property
    def _image_form(self) -> tuple[int, int]:
        """Channels and size in pixels of the decoded images."""
        folder = self._split_folder("train")
        return image_form(self._in_class_folders(folder, "train")[0], folder, self.image_size)

    def _in_class_folders(self, folder: Path, split: Split) -> tuple[list[Path], list[int]]:
        classes = self.read_classes()
        self._check_same_classes(folder, class_folders(folder), classes)
        files = [image_files(folder / name) for name in classes]
        if self.test_share is not None:
            files = [split_files(one, self.test_share)[split == "test"] for one in files]
        return [path for one in files for path in one], [label for label, one in enumerate(files) for _ in one]

    def _check_same_classes(self, folder: Path, got: tuple[str, ...], expected: tuple[str, ...]) -> None:
        others = set(got) - set(expected) if self.classes is None else set()
        missing = set(expected) - set(got)
        if others or missing:
            raise ValueError(
                f"{folder} has other classes than the training split: only there {sorted(others)[:5]}, "
                f"missing {sorted(missing)[:5]}; expected the same class folders in both"
            )

    def _split_folder(self, split: Split) -> Path:
        if split == "test" and (annotated := annotated_folder(self.root)):
            return annotated  # Tiny-ImageNet's test folder has no labels
        if self.test_share is not None:
            return self.root / "train" if (self.root / "train").is_dir() else self.root
        for name in _SPLIT_FOLDERS[split]:
            if (self.root / name).is_dir():
                return self.root / name
        raise ValueError(
            f"{self.root} has no {' or '.join(_SPLIT_FOLDERS[split])} folder: expected "
            f"{self.root}/{_SPLIT_FOLDERS[split][0]}/<class>/<image>; check --data.init_args.root, or make a test "
            "split of what is there with --data.init_args.test_share 0.2"
        )

    def _check_test_share(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"data.init_args.test_share: got {share}, expected a share between 0 and 1, as 0.2")
        if self._has_test_folder:
            raise ValueError(
                f"data.init_args.test_share: got {share}, but {self.root} has a test split: leave test_share out"
            )


def _missing_ffcv() -> str | None:
    """Return what to do where FFCV cannot be imported, else None."""
    try:
        import_module("unidd_pl.data.ffcv_pipeline")  # seconds, and absent where it is not wanted
    except ImportError as error:
        return f"FFCV is not installed ({error}): install the extra 'ffcv' with `make ffcv`"
    return None


def _missing_beton(path: Path) -> str | None:
    if path.is_file():
        return None
    return f"there is no {path}: write it with `unidd convert --config …` and the data options given here"
