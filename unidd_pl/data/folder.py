"""Any data set laid out as class folders."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image, UnidentifiedImageError

from unidd_pl.data.beton_images import BetonImages
from unidd_pl.data.conversion import load_beton
from unidd_pl.data.images import ImageFiles, LabelledImages, open_picture
from unidd_pl.data.module import ImageData, Split

LoaderName = Literal["auto", "ffcv", "torchvision"]

DEFAULT_BETONS = "runs/cache/betons"
_BETON_NAMES: dict[Split, str] = {"train": "train.beton", "test": "val.beton"}
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_PROBED_IMAGES = 200  # headers read to learn size and colour; all of them would take minutes on a large set


class ImageFolderData(ImageData):
    """Images in ``root/train/<class>/`` and ``root/test/<class>/`` (or ``root/val/<class>/``).

    The classes are the folder names in alphabetical order. Channels are those of the files; size too
    where all files are square and alike.

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

    Raises:
        ValueError: If the folder is missing, has no class folders or images, or the sizes of the
            images differ and no ``image_size`` is given; if ``loader`` is ``ffcv`` and FFCV is not installed.
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
    ) -> None:
        super().__init__(name or Path(root).resolve().name, mean, std, in_memory_gib, workers)
        for what, value in (("image_size", image_size), ("resize", resize)):
            if value is not None and value < 1:
                raise ValueError(f"data.init_args.{what}: got {value}, expected at least 1 pixel")
        if resize is not None and resize < (image_size or 0):
            raise ValueError(f"data.init_args.resize: got {resize}, expected at least image_size, {image_size}")
        self.root = Path(root)
        self.image_size = image_size
        self.resize = resize
        self.loader = loader
        self.betons = Path(betons or f"{DEFAULT_BETONS}/{self.dataset_name}")
        if loader not in get_args(LoaderName):
            raise ValueError(f"data.init_args.loader: got {loader!r}, expected one of {get_args(LoaderName)}")
        if not self.root.is_dir():
            raise ValueError(
                f"no data folder at {root}: expected a folder with train/<class>/ and test/<class>/; "
                "give it with --data.init_args.root PATH"
            )
        if loader == "ffcv" and (missing := _missing_ffcv()):
            raise ValueError(f"data.init_args.loader: got 'ffcv', but {missing}, or read without it: auto, torchvision")

    @property
    def has_test(self) -> bool:
        """Whether there is a test or a val folder."""
        return any((self.root / name).is_dir() for name in _SPLIT_FOLDERS["test"])

    def read_classes(self) -> tuple[str, ...]:
        """Return the names of the class folders of the training split, alphabetically."""
        return _class_folders(self._split_folder("train"))

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
        classes = _class_folders(folder)
        expected = self.read_classes()
        if classes != expected:
            raise ValueError(
                f"{folder} has other classes than the training split: only there "
                f"{sorted(set(classes) - set(expected))[:5]}, missing {sorted(set(expected) - set(classes))[:5]}; "
                "expected the same class folders in both"
            )
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            files = _image_files(folder / name)
            paths += files
            labels += [label] * len(files)
        channels, size = self._image_form
        return ImageFiles(paths, torch.tensor(labels), folder, channels, size, self.resize or size)

    @property
    def _image_form(self) -> tuple[int, int]:
        """Channels and size in pixels of the decoded images."""
        folder = self._split_folder("train")
        paths = [path for name in _class_folders(folder) for path in _image_files(folder / name)]
        probed = [form for path in paths[:: max(1, len(paths) // _PROBED_IMAGES)] if (form := _probe(path))]
        if not probed:
            open_picture(paths[0])  # says why it cannot be read
        channels = 1 if all(mode in ("L", "1") for mode, _ in probed) else 3
        sizes = Counter(size for _, size in probed)
        (width, height), _ = sizes.most_common(1)[0]
        if self.image_size is not None:
            return channels, self.image_size
        if len(sizes) > 1 or width != height:
            raise ValueError(
                f"the images in {folder} are not all square and of one size (for example {width}×{height}): "
                "say the size to bring them to, for example --data.init_args.image_size 64"
            )
        return channels, width

    def _split_folder(self, split: Split) -> Path:
        for name in _SPLIT_FOLDERS[split]:
            if (self.root / name).is_dir():
                return self.root / name
        raise ValueError(
            f"{self.root} has no {' or '.join(_SPLIT_FOLDERS[split])} folder: expected "
            f"{self.root}/{_SPLIT_FOLDERS[split][0]}/<class>/<image>; check --data.init_args.root"
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


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(Path(entry.name))))
    if not names:
        raise ValueError(f"{folder} is empty: expected one folder of images for each class")
    return names


def _image_files(folder: Path) -> list[Path]:
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not _hidden(path.relative_to(folder))
    )
    if not files:
        raise ValueError(f"{folder} holds no images: expected files such as .png or .jpg; fill the folder or remove it")
    return files


def _hidden(path: Path) -> bool:
    return any(
        part.startswith(".") for part in path.parts
    )  # such as .ipynb_checkpoints and the ._ files that macOS leaves


def _probe(path: Path) -> tuple[str, tuple[int, int]] | None:
    """Return mode and size, or None where the file cannot be read: who decodes it says so, or leaves it out."""
    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except (OSError, UnidentifiedImageError):
        return None
