"""Data modules: any folder of images, torchvision's small sets and the embedded digits."""

from unidd_pl.data.beton_images import BetonImages
from unidd_pl.data.crops import RandomCrops
from unidd_pl.data.digits import DigitsData
from unidd_pl.data.folder import ImageFolderData
from unidd_pl.data.images import ImageFiles, LabelledImages, TensorImages
from unidd_pl.data.module import ImageData
from unidd_pl.data.torchvision_sets import TorchvisionData

__all__ = [
    "BetonImages",
    "DigitsData",
    "ImageData",
    "ImageFiles",
    "ImageFolderData",
    "LabelledImages",
    "RandomCrops",
    "TensorImages",
    "TorchvisionData",
]
