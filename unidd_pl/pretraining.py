"""Training a teacher on the real images, or taking one from a checkpoint or the cache.

Legend: n images, c channels, h w space, k classes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional as F

from unidd_pl.augmentation import random_flip, random_pad_crop
from unidd_pl.data.crops import RandomCrops
from unidd_pl.data.images import Batch, BatchLoader, LabelledImages
from unidd_pl.data.module import ImageData
from unidd_pl.networks import build_network
from unidd_pl.networks.published import is_published, published_weights
from unidd_pl.seeding import generator_for, seed_for
from unidd_pl.specs import DatasetSpec
from unidd_pl.teachers import (
    Teacher,
    accuracy_of,
    file_name,
    find_teacher,
    fingerprint_of,
    freeze,
    load_teacher,
    save_teacher,
)
from unidd_pl.training import is_logged_step, train

RateSchedule = Literal["onecycle", "cosine"]


class TeacherRecipe:
    """How to get a teacher: from a checkpoint, or by training with these settings.

    Args:
        network: Name of the architecture, see `unidd_pl.networks.build_network`.
        checkpoint: File with the weights: one written by ``unidd pretrain`` or a plain state_dict; ``torchvision``
            or ``torchvision:NAME`` for published ones, fetched when they are first needed.
        epochs: Epochs of training.
        batch_size: Images a step.
        lr: Learning rate of SGD; the peak for ``onecycle``.
        momentum: Momentum of SGD; ``onecycle`` brings its own, from 0.95 down to 0.85 and back.
        nesterov: Nesterov momentum.
        weight_decay: L2 penalty on all parameters.
        schedule: ``onecycle`` (up, then down to about 0) or ``cosine`` (down to 0, after a warm-up).
        warmup_epochs: Epochs of linear warm-up for ``cosine``.
        crop_padding: Zero padding for the random crop, pixels; 0 for none.
        crop_scale: Smallest and largest area of a random resized crop, as shares of the image, cut when it is decoded;
            None for none. For photographs, with ``crop_padding`` 0.
        flip: Random horizontal flips.
        precision: Lightning's precision of the training, for example ``bf16-mixed``.
        seed: Seed of initialisation, order and augmentation.
        check: Refuse a teacher whose predictions contradict the data: one that knows too few of the test images, and a
            plain state_dict whose class order differs.

    Raises:
        ValueError: If a number is out of range.

    References:
        SPEC.md section 3, teachers.
    """

    def __init__(
        self,
        network: str = "convnet-w128-d3",
        checkpoint: str | None = None,
        epochs: int = 24,
        batch_size: int = 128,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        schedule: RateSchedule = "onecycle",
        warmup_epochs: int = 0,
        crop_padding: int = 4,
        crop_scale: tuple[float, float] | None = None,
        flip: bool = True,
        precision: str = "32-true",
        seed: int = 0,
        check: bool = True,
    ) -> None:
        for name, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr)):
            if value <= 0:
                raise ValueError(f"teacher.{name}: got {value}, expected > 0")
        for name, value in (("momentum", momentum), ("weight_decay", weight_decay), ("crop_padding", crop_padding)):
            if value < 0:
                raise ValueError(f"teacher.{name}: got {value}, expected ≥ 0")
        if schedule not in get_args(RateSchedule):
            raise ValueError(f"teacher.schedule: got {schedule!r}, expected one of {get_args(RateSchedule)}")
        if not 0 <= warmup_epochs < epochs:
            raise ValueError(f"teacher.warmup_epochs: got {warmup_epochs}, expected 0 to {epochs - 1}")
        if crop_scale is not None and crop_padding:
            raise ValueError(
                f"teacher: got crop_scale {crop_scale} and crop_padding {crop_padding}, expected one of "
                "them: set --teacher.crop_padding 0"
            )
        self.network = network
        self.checkpoint = checkpoint
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.crop_padding = crop_padding
        self.crop_scale = crop_scale
        self.flip = flip
        self.precision = precision
        self.seed = seed
        self.check = check

    def training_settings(self) -> dict[str, Any]:
        """Return the settings that the trained weights depend on."""
        settings = {name: value for name, value in vars(self).items() if name not in ("checkpoint", "check")}
        if self.crop_scale is None:  # teachers trained before there was such a setting are found by the others
            del settings["crop_scale"]
        return settings

    @property
    def crops(self) -> RandomCrops | None:
        """Where the training images are cropped when they are decoded; None for not at all."""
        return (
            None if self.crop_scale is None else RandomCrops(seed_for(self.seed, "teacher", "crops"), self.crop_scale)
        )


class TeacherModule(L.LightningModule):
    """Trains a classifier on the real images.

    Args:
        network: The network to train.
        recipe: The settings of the training.
        spec: The data set, for its normalisation.
        train: Training images.
        workers: Processes that decode them; 0 where they are in memory.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: TeacherRecipe,
        spec: DatasetSpec,
        train: LabelledImages,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.spec = spec
        self.images = train
        self.workers = workers

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches in an order drawn from the seed."""
        order = generator_for(self.recipe.seed, "teacher", "order")
        return self.images.loader(
            self.recipe.batch_size,
            generator=order,
            workers=self.workers,
            drop_last=self._drops_last,
            crops=self.recipe.crops,
        )

    @property
    def _drops_last(self) -> bool:
        # BatchNorm cannot normalise a last batch of one image.
        return len(self.images) % self.recipe.batch_size == 1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy on an augmented batch."""
        images, labels = batch
        generator = generator_for(self.recipe.seed, "teacher", self.current_epoch, batch_idx)
        images = self.spec.normalise(images).contiguous(memory_format=torch.channels_last)
        if self.recipe.crop_padding:
            images = random_pad_crop(images, generator, padding=self.recipe.crop_padding)
        if self.recipe.flip:
            images = random_flip(images, generator)
        loss = F.cross_entropy(self.network(images), labels)
        if is_logged_step(self.trainer):
            self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return SGD and its schedule, stepped each iteration."""
        recipe = self.recipe
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )
        total = int(self.trainer.estimated_stepping_batches)
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "onecycle":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total)
        else:
            warmup = min(total - 1, total * recipe.warmup_epochs // recipe.epochs)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup)
            ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup)))
            scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [ramp, cosine], [warmup]) if warmup else cosine
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def obtain_teacher(
    recipe: TeacherRecipe,
    data: ImageData,
    cache: Path,
    *,
    accelerator: str = "auto",
    logger: Logger | bool = False,
) -> Teacher:
    """Return the teacher of a recipe: loaded, taken from the cache, or trained and cached.

    Args:
        recipe: Which teacher.
        data: The real data.
        cache: Folder of trained teachers; a teacher is found there by its settings and its data.
        accelerator: Lightning's accelerator for the training.
        logger: Lightning logger of the training.

    Raises:
        ValueError: If the checkpoint does not fit the recipe or the data.
    """
    if recipe.checkpoint is not None:
        published = is_published(recipe.checkpoint)
        path = published_weights(recipe.checkpoint, recipe.network) if published else Path(recipe.checkpoint)
        teacher = load_teacher(path, recipe.network, data, check=recipe.check, cache=cache)
        if find_teacher(teacher.fingerprint, cache) is None:  # so that an evaluation finds it again
            save_teacher(cache / file_name("loaded", teacher.fingerprint), teacher)
        return teacher
    key = recipe_key(recipe, data)
    for path in sorted(cache.glob(f"{key}-*.safetensors")):
        return load_teacher(path, recipe.network, data)
    return train_teacher(recipe, data, cache, accelerator=accelerator, logger=logger)


def is_cached(recipe: TeacherRecipe, data: ImageData, cache: Path) -> bool:
    """Return whether `obtain_teacher` would find the teacher without training."""
    return recipe.checkpoint is not None or any(cache.glob(f"{recipe_key(recipe, data)}-*.safetensors"))


def recipe_key(recipe: TeacherRecipe, data: ImageData) -> str:
    """Return a digest of all that a trained teacher depends on."""
    content = json.dumps(
        [recipe.training_settings(), {**data.spec.to_dict(), "name": ""}, data.fingerprint], sort_keys=True
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def train_teacher(
    recipe: TeacherRecipe,
    data: ImageData,
    cache: Path,
    *,
    accelerator: str = "auto",
    logger: Logger | bool = False,
) -> Teacher:
    """Train a teacher on the training split, score it on the test split and write it to the cache."""
    spec = data.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(recipe.seed, "teacher", "weights"))
        network = build_network(recipe.network, spec)
    # The same numbers in another order in memory: 1.3 times faster for 3×3 convolutions on a CPU.
    network.to(memory_format=torch.channels_last)
    module = TeacherModule(network, recipe, spec, data.train, data.workers_for(data.train))
    trainer = train(
        module,
        label="Training the teacher",
        epochs=recipe.epochs,
        accelerator=accelerator,
        precision=recipe.precision,
        logger=logger,
    )
    freeze(network.to(trainer.strategy.root_device))
    accuracy = accuracy_of(network, spec, data.test) if data.has_test else None
    network.cpu()
    path = cache / file_name(recipe_key(recipe, data), fingerprint_of(recipe.network, network))
    save_teacher(path, Teacher(network, recipe.network, spec, accuracy, path))
    # As every later run gets it: the same bits in another order in memory give other sums.
    return load_teacher(path, recipe.network, data)
