"""A set and its teacher as DD-Ranking 0.2.0 takes them, with a configuration and a script that are ready to run.

References:
    Li et al., DD-Ranking: rethinking the evaluation of dataset distillation, arXiv 2505.13300; its package
    ddranking 0.2.0 (utils/model.py for names and paths, utils/data.py for class orders, config/user_config.py for
    the YAML).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.classes import some
from unidd_pl.exchange.folders import write_folders
from unidd_pl.exchange.plain_teacher import PlainTeacher, save_state
from unidd_pl.protocols import Protocol
from unidd_pl.specs import DatasetSpec

IMAGES = "images"
TEACHERS = "teacher_models"
CONFIG = "ddranking.yaml"
SCRIPT = "score.py"

DATASETS = {
    "cifar10": ("CIFAR10", 10),
    "cifar100": ("CIFAR100", 100),
    "tinyimagenet": ("TinyImageNet", 200),
    "imagenet": ("ImageNet1K", 1000),
    "imagenet1k": ("ImageNet1K", 1000),
    "imagenette": ("ImageNette", 10),
}
"""Its names of data sets by ours, in lower-case letters and digits; its other subsets have orders of their own."""

WIDTH = 128  # of its ConvNets, fixed
_CONVNET = re.compile(r"convnet(?:-w(?P<width>\d+))?-d(?P<depth>\d+)")
_RESNET = re.compile(r"resnet(18|34|50)")
_SMALL = (32, 64)  # pixels for which it gives torchvision's ResNets a stem without stride, as we do up to 64
_DSA = {  # the parameters of its demonstration of hard labels; those of the field
    "flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5, "scale": 1.2, "crop": 0.125,
    "cutout": 0.5, "siamese": True, "latestseed": -1,
}  # fmt: skip
_SCHEDULES = {1.0: "cosine", 2.0: "cosineannealing"}  # its "cosine" ends at half of the rate


class DDRankingExport:
    """One export; what DD-Ranking cannot take is refused when it is made.

    Args:
        distilled: The set, uint8.
        protocol: How students are to be trained.
        teacher: The teacher.
        dataset: DD-Ranking's name of the data; None to find it by the data's.

    Raises:
        ValueError: If DD-Ranking knows no such data, class order, network or schedule.
    """

    def __init__(
        self, distilled: DistilledSet, protocol: Protocol, teacher: PlainTeacher | None, dataset: str | None
    ) -> None:
        if teacher is None:
            raise ValueError("layout ddranking: got no teacher, expected one that labels: give it with --teacher FILE")
        self.distilled = distilled
        self.protocol = protocol
        self.dataset = dataset_name(distilled.spec, dataset)
        self.model, self.from_torchvision = model_name(teacher.network, distilled.spec)
        self.state = renamed(teacher.state) if not self.from_torchvision else dict(teacher.state)
        self.config = self._config()

    def write(self, folder: Path) -> None:
        """Write images, teacher, configuration and script."""
        write_folders(self.distilled, folder / IMAGES)
        save_state(self.state, folder / TEACHERS / self.dataset / self.model / "ckpt_best.pt")
        (folder / CONFIG).write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        (folder / SCRIPT).write_text(self._script(), encoding="utf-8")

    def usage(self) -> str:
        """Return how to score the set, and what of the protocol DD-Ranking has no word for."""
        left_out = "" if self.protocol.patch_shuffle == 1 else " Its configuration knows no shuffled patches: left out."
        return (
            f"Score it with DD-Ranking 0.2.0 (`pip install ddranking==0.2.0`), from this folder: `python {SCRIPT}`. "
            f"`{CONFIG}` is its configuration by the protocol above; images of the real data set go to `dataset/`."
            f"{left_out}"
        )

    def _script(self) -> str:
        score = "LabelRobustScoreHard" if self.protocol.labels == "hard" else "LabelRobustScoreSoft"
        return (
            f"from ddranking.config import Config\nfrom ddranking.metrics import {score}\n\n"
            f'score = {score}(config=Config.from_file("{CONFIG}"))\n'
            f'score.compute_metrics(image_path="{IMAGES}", syn_lr={self.protocol.lr})\n'
        )

    def _config(self) -> dict[str, Any]:
        protocol, spec = self.protocol, self.distilled.spec
        batch = protocol.batch_size_for(self.distilled.ipc)
        return {
            "dataset": self.dataset,
            "real_data_path": "./dataset/",
            "ipc": self.distilled.ipc,
            "im_size": [spec.image_size, spec.image_size],
            "model_name": self.model,
            **self._teacher_settings(),
            **self._augmentation(),
            "optimizer": protocol.optimizer,
            "lr_scheduler": self._schedule(),
            "step_size": max(1, protocol.epochs // 2),
            "weight_decay": protocol.weight_decay,
            "momentum": protocol.momentum,
            "default_lr": protocol.lr,
            "num_eval": 5,
            "num_epochs": protocol.epochs,
            "num_workers": 4,
            "device": "cuda",
            "dist": False,
            "eval_full_data": True,  # its table of known accuracies has ResNet-18-BN on two sets only
            "syn_batch_size": min(batch, len(self.distilled)),
            "real_batch_size": 256,
            "random_data_format": "image",
            "random_data_path": None,
            "save_path": "./results/ddranking.csv",
        }

    def _teacher_settings(self) -> dict[str, Any]:
        if self.protocol.labels == "hard":
            return {"use_torchvision": self.from_torchvision}
        return {
            "stu_use_torchvision": self.from_torchvision,
            "tea_use_torchvision": self.from_torchvision,
            "teacher_dir": f"./{TEACHERS}",
            "teacher_model_names": [self.model],
            "soft_label_mode": "M",  # the teacher labels every augmented batch
            "soft_label_criterion": "kl",
            "loss_fn_kwargs": {"temperature": float(self.protocol.temperature), "scale_loss": False},
        }

    def _augmentation(self) -> dict[str, Any]:
        protocol, spec = self.protocol, self.distilled.spec
        last: list[dict[str, Any]] = [
            {"name": "ToTensor"},
            {"name": "Normalize", "args": {"mean": list(spec.mean), "std": list(spec.std)}},
        ]
        first: list[dict[str, Any]] = []
        if protocol.crop_scale is not None:
            crop = {"size": spec.image_size, "scale": list(protocol.crop_scale)}
            first.append({"name": "RandomResizedCrop", "args": crop})
        if protocol.flip:
            first.append({"name": "RandomHorizontalFlip", "args": {"p": 0.5}})
        mixing: dict[str, Any] = {"data_aug_func": None, "aug_params": {}}
        if protocol.cutmix_alpha:
            mixing = {"data_aug_func": "cutmix", "aug_params": {"beta": float(protocol.cutmix_alpha)}}
        elif protocol.dsa:
            mixing = {"data_aug_func": "dsa", "aug_params": dict(_DSA)}
        return {
            **mixing,
            "use_zca": False,
            "use_aug_for_hard": False,
            "custom_train_trans": [*first, *last],
            "custom_val_trans": copy.deepcopy(last),  # or YAML would write references
        }

    def _schedule(self) -> str:
        if self.protocol.schedule == "step":
            return "step"
        if self.protocol.half_period not in _SCHEDULES:
            raise ValueError(
                f"layout ddranking: got protocol.half_period {self.protocol.half_period}, expected one of "
                f"{', '.join(map(str, _SCHEDULES))}: DD-Ranking has no other cosine"
            )
        return _SCHEDULES[self.protocol.half_period]


def dataset_name(spec: DatasetSpec, given: str | None) -> str:
    """Return DD-Ranking's name of the data, whose class order has to be the set's.

    Raises:
        ValueError: If there is none, or the classes are others or in another order.
    """
    key = "".join(character for character in (given or spec.name).casefold() if character.isalnum())
    if key not in DATASETS:
        known = ", ".join(dict.fromkeys(name for name, _ in DATASETS.values()))
        raise ValueError(
            f"layout ddranking: got the data {given or spec.name!r}, expected one that DD-Ranking knows in our class "
            f"order ({known}): say which it is with --scorer_dataset"
        )
    name, count = DATASETS[key]
    if spec.num_classes != count or list(spec.classes) != sorted(spec.classes) or spec.channels != 3:
        raise ValueError(
            f"layout ddranking: got {spec.num_classes} classes ({some(spec.classes)}) and {spec.channels} channel(s), "
            f"expected the {count} of {name} in alphabetical order, as DD-Ranking numbers them, in colour: "
            "export a set "
            "of that data"
        )
    return name


def model_name(network: str, spec: DatasetSpec) -> tuple[str, bool]:
    """Return DD-Ranking's name of an architecture, and whether it takes torchvision's.

    Raises:
        ValueError: If it has no such network.
    """
    if (convnet := _CONVNET.fullmatch(network)) and int(convnet["width"] or WIDTH) == WIDTH and spec.image_size != 28:
        return f"ConvNet-{convnet['depth']}-BN", False
    if (resnet := _RESNET.fullmatch(network)) and (spec.image_size in _SMALL or spec.image_size > max(_SMALL)):
        return f"ResNet-{resnet[1]}-BN", True
    raise ValueError(
        f"layout ddranking: got the teacher {network} for {spec.image_size} px, expected "
        f"convnet-w{WIDTH}-d<depth> (not at "
        "28 px) or resnet18, resnet34, resnet50 (at 32 px, 64 px or above): the networks that DD-Ranking builds alike"
    )


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state_dict of a ConvNet by DD-Ranking's names.

    Its blocks of convolution, norm, activation and pooling are one Sequential: block i has its convolution at 4i and
    its norm at 4i + 1.
    """
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    part = re.fullmatch(r"layers\.(conv|norm)\.(\d+)\.(.+)", name)
    if part is None:
        return name
    return f"features.{4 * int(part[2]) + (part[1] == 'norm')}.{part[3]}"
