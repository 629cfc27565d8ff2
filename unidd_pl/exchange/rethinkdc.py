"""A set and its teacher as RethinkDC 0.3.2 takes them: ImageNet-1K, in class folders, with a ready configuration.

References:
    Xiao et al., Rethinking large-scale dataset compression: shifting focus from labels to images, arXiv 2502.06434; the
    package rethinkdc 0.3.2 (train_KD.py, imagenet_ipc.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision
import yaml

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.folders import write_folders
from unidd_pl.exchange.plain_teacher import PlainTeacher, save_state
from unidd_pl.protocols import Protocol

IMAGES = "train"  # a folder of class folders alone: it looks into the first entry, whatever that is
TORCH_HOME = "torch_home"
CONFIG = "rethinkdc.yaml"
CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # fixed in its code
_SAME = 1e-3
_LEAST_SIDE = 65  # px; below, our ResNets have a stem that torchvision's have not


class RethinkDCExport:
    """One export; what RethinkDC cannot take is refused when it is made.

    It takes its teacher as ``torchvision.models.NAME(pretrained=True)``, so the weights lie where torchvision looks
    before it fetches any: in a folder of torch.hub that ``TORCH_HOME`` names.

    Args:
        distilled: The set, uint8.
        protocol: How students are to be trained.
        teacher: The teacher.

    Raises:
        ValueError: If the set is none of ImageNet-1K, or the teacher no network of torchvision.
    """

    def __init__(self, distilled: DistilledSet, protocol: Protocol, teacher: PlainTeacher | None) -> None:
        if teacher is None:
            raise ValueError("layout rethinkdc: got no teacher, expected one that labels: give it with --teacher FILE")
        spec = distilled.spec
        differ = any(abs(own - its) > _SAME for own, its in zip((*spec.mean, *spec.std), (*MEAN, *STD), strict=False))
        if spec.num_classes != CLASSES or spec.channels != 3 or differ:
            raise ValueError(
                f"layout rethinkdc: got {spec.num_classes} classes and {spec.channels} channel(s), mean "
                f"{spec.mean}, std "
                f"{spec.std}, expected the {CLASSES} of ImageNet-1K with the mean {MEAN} and std {STD}, which "
                "are fixed in "
                "RethinkDC: export another layout"
            )
        if list(spec.classes) != sorted(spec.classes) and all(name.startswith("n0") for name in spec.classes[:1]):
            raise ValueError(
                "layout rethinkdc: got WordNet ids that are not sorted, expected ImageNet-1K's order: it numbers the "
                "validation folders alphabetically"
            )
        self.distilled = distilled
        self.protocol = protocol
        self.teacher = teacher
        self.weights = weights_file(teacher.network, spec.image_size)

    def write(self, folder: Path) -> None:
        """Write images, teacher and configuration."""
        write_folders(self.distilled, folder / IMAGES)
        save_state(self.teacher.state, folder / TORCH_HOME / "hub" / "checkpoints" / self.weights)
        (folder / CONFIG).write_text(yaml.safe_dump(self._config(), sort_keys=False), encoding="utf-8")

    def usage(self) -> str:
        """Return how to score the set."""
        shuffled = "" if self.protocol.patch_shuffle == 1 else " It knows no shuffled patches: left out."
        return (
            "Score it with RethinkDC 0.3.2 (`pip install rethinkdc==0.3.2`), from this folder, with the "
            "ImageNet validation "
            f"folder in `IMAGENET_VAL_DIR`: `TORCH_HOME={TORCH_HOME} rethinkdc --yaml {CONFIG}`. The file of "
            "the teacher "
            "has the name under which torchvision keeps its published weights; `TORCH_HOME` keeps the two apart. "
            f"RethinkDC ends its cosine at 0 and crops from (0.08, 1) whatever the protocol says.{shuffled}"
        )

    def _config(self) -> dict[str, Any]:
        protocol, ipc = self.protocol, self.distilled.ipc
        return {
            "train_dir": IMAGES,
            "output_dir": "./results",
            "ipc": ipc,
            "model": self.teacher.network,
            "teacher_model": self.teacher.network,
            "batch_size": protocol.batch_size_for(ipc),
            "gradient_accumulation_steps": 1,
            "start_epoch": 0,
            "epochs": protocol.epochs,
            "workers": 4,
            "cos": protocol.schedule == "cosine",
            "adamw_lr": protocol.lr,
            "adamw_weight_decay": protocol.weight_decay,
            "sgd_setting": protocol.optimizer == "sgd",
            "temperature": float(protocol.temperature),
            "hard_label": protocol.labels == "hard",
            "mix_type": "cutmix" if protocol.cutmix_alpha else None,
            "cutmix": float(protocol.cutmix_alpha),
            "mixup": 0.8,  # its default; without effect beside CutMix
            "mode": "fkd_save",
            "hf_cache_dir": "./hf_cache",
            "wandb_project": "unidd-pl",
            "wandb_api_key": None,
        }


def weights_file(network: str, image_size: int) -> str:
    """Return the name under which torchvision keeps the weights that ``pretrained=True`` stands for.

    Raises:
        ValueError: If torchvision has no such network with published weights, or ours differs from it at this size.
    """
    name: str | None = None
    if image_size >= _LEAST_SIDE:
        try:
            enum = torchvision.models.get_model_weights(network)
            name = str(enum["IMAGENET1K_V1"].url).rpartition("/")[2]  # what pretrained=True has meant since 0.13
        except (ValueError, KeyError):
            name = None
    if name is None:
        raise ValueError(
            f"layout rethinkdc: got the teacher {network} at {image_size} px, expected a network of torchvision with "
            f"published weights, at {_LEAST_SIDE} px or more: RethinkDC builds its teacher by torchvision's name"
        )
    return name
