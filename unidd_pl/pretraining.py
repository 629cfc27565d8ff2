"""The teacher: trained or loaded, frozen, and known by a fingerprint of its weights.

Legend: n images, c channels, h w space, k classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_accuracy

from unidd_pl.augmentation import random_flip, random_pad_crop
from unidd_pl.console import is_logged_step, quiet_lightning
from unidd_pl.data.images import Batch, LabelledImages
from unidd_pl.data.module import ImageData
from unidd_pl.files import atomic_write
from unidd_pl.networks import build_network, load_weights
from unidd_pl.progress import RunProgressBar
from unidd_pl.seeding import generator_for, seed_for
from unidd_pl.specs import DatasetSpec

TEACHER_FORMAT = "unidd-teacher-1"
_SAME_NORMALISATION = 1e-4  # pixels in [0, 1]; means are often given with four digits
_TEST_BATCH = 500
_CHECKED_CLASSES = 100  # at most; enough to see that an order differs
_CHECKED_IMAGES = 20  # training images of each
_MIXED_UP_SHARE = 0.5  # of a class's images predicted as one other class: names or order differ

Schedule = Literal["onecycle", "cosine"]


class TeacherRecipe:
    """How to get a teacher: from a checkpoint, or by training with these settings.

    Args:
        network: Name of the architecture, see `unidd_pl.networks.build_network`.
        checkpoint: File with the weights: one written by ``unidd pretrain`` or a plain state_dict.
        epochs: Epochs of training.
        batch_size: Images a step.
        lr: Learning rate of SGD; the peak for ``onecycle``.
        momentum: Momentum of SGD.
        nesterov: Nesterov momentum.
        weight_decay: L2 penalty on all parameters.
        schedule: ``onecycle`` (up, then down to about 0) or ``cosine`` (down to 0, after a warm-up).
        warmup_epochs: Epochs of linear warm-up for ``cosine``.
        crop_padding: Zero padding for the random crop, pixels; 0 for none.
        flip: Random horizontal flips.
        precision: Lightning's precision of the training, for example ``bf16-mixed``.
        seed: Seed of initialisation, order and augmentation.
        check: Refuse a checkpoint whose predictions contradict the data's class order.

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
        schedule: Schedule = "onecycle",
        warmup_epochs: int = 0,
        crop_padding: int = 4,
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
        if schedule not in get_args(Schedule):
            raise ValueError(f"teacher.schedule: got {schedule!r}, expected one of {get_args(Schedule)}")
        if not 0 <= warmup_epochs < epochs:
            raise ValueError(f"teacher.warmup_epochs: got {warmup_epochs}, expected 0 to {epochs - 1}")
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
        self.flip = flip
        self.precision = precision
        self.seed = seed
        self.check = check

    def training_settings(self) -> dict[str, Any]:
        """Return the settings that the trained weights depend on."""
        return {name: value for name, value in vars(self).items() if name not in ("checkpoint", "check")}


@dataclass(frozen=True)
class Teacher:
    """A frozen network with what it was trained for.

    Args:
        network: The network in eval mode, without gradients for its weights.
        name: Name of the architecture.
        spec: The data set whose classes, in order, it predicts.
        accuracy: Top-1 on the test split, in [0, 1]; None where there is no test split.
        path: File of the weights.
    """

    network: nn.Module
    name: str
    spec: DatasetSpec
    accuracy: float | None
    path: Path

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of architecture and weights."""
        return fingerprint_of(self.name, self.network)


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

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches in an order drawn from the seed."""
        order = generator_for(self.recipe.seed, "teacher", "order")
        return self.images.loader(
            self.recipe.batch_size, generator=order, workers=self.workers, drop_last=self._drops_last
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
        teacher = load_teacher(Path(recipe.checkpoint), recipe.network, data, check=recipe.check)
        if find_teacher(teacher.fingerprint, cache) is None:  # so that an evaluation finds it again
            save_teacher(cache / _file_name("loaded", teacher.fingerprint), teacher)
        return teacher
    key = recipe_key(recipe, data)
    for path in sorted(cache.glob(f"{key}-*.safetensors")):
        return load_teacher(path, recipe.network, data)
    return train_teacher(recipe, data, cache, accelerator=accelerator, logger=logger)


def is_cached(recipe: TeacherRecipe, data: ImageData, cache: Path) -> bool:
    """Return whether `obtain_teacher` would find the teacher without training."""
    return recipe.checkpoint is not None or any(cache.glob(f"{recipe_key(recipe, data)}-*.safetensors"))


def find_teacher(fingerprint: str, cache: Path) -> Path | None:
    """Return the file of a cached teacher with this fingerprint, or None."""
    return next(iter(sorted(cache.glob(_file_name("*", fingerprint)))), None)


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
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=recipe.epochs,
            accelerator=accelerator,
            devices=1,
            precision=recipe.precision,  # type: ignore[arg-type]  # Lightning checks the name
            logger=logger,
            callbacks=[RunProgressBar("Training the teacher")],
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
    freeze(network.to(trainer.strategy.root_device))
    accuracy = accuracy_of(network, spec, data.test) if data.has_test else None
    network.cpu()
    path = cache / _file_name(recipe_key(recipe, data), fingerprint_of(recipe.network, network))
    teacher = Teacher(network, recipe.network, spec, accuracy, path)
    save_teacher(path, teacher)
    return teacher


def save_teacher(path: Path, teacher: Teacher) -> None:
    """Write weights and what they were trained for into one file, atomically."""
    about = {
        "format": TEACHER_FORMAT,
        "network": teacher.name,
        "spec": teacher.spec.to_dict(),
        "accuracy": teacher.accuracy,
    }
    weights = {key: value.contiguous() for key, value in teacher.network.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata={"unidd": json.dumps(about, sort_keys=True)})


def load_teacher(path: Path, name: str | None, data: ImageData, *, check: bool = True) -> Teacher:
    """Load a checkpoint and check it against the data.

    A file written by `save_teacher` names its classes, which must be the data's, in order. A plain
    state_dict names nothing, so it is tried on training images: a class whose images are mostly taken
    for one other class means that the order differs.

    Args:
        path: The checkpoint.
        name: Name of the architecture; None takes the one that the file names.
        data: The real data.
        check: Try a plain state_dict on training images.

    Raises:
        ValueError: If architecture, class count, classes, their order or the normalisation differ.
    """
    about = read_about(path)
    spec = data.spec
    if about is not None:
        name = name or str(about["network"])
        _check_same_data(path, about, name, spec)
    if name is None:
        if not path.is_file():
            raise ValueError(f"teacher {path}: got no such file, expected a checkpoint")
        raise ValueError(f"teacher {path} does not name its architecture: give it with --teacher.network")
    network = build_network(name, spec)
    load_weights(network, path, expected_classes=spec.num_classes)
    freeze(network)
    if about is not None:
        return Teacher(network, name, spec, about["accuracy"], path)
    if check:
        _check_class_order(path, network, spec, data.train)
    accuracy = accuracy_of(network, spec, data.test) if data.has_test else None
    return Teacher(network, name, spec, accuracy, path)


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what a teacher file says of itself, or None for a plain state_dict."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the teacher {path} ({error}): expected a whole safetensors file") from error
    about = json.loads(metadata.get("unidd", "{}"))
    return about if about.get("format") == TEACHER_FORMAT else None


def fingerprint_of(name: str, network: nn.Module) -> str:
    """Return a hexadecimal digest of architecture name and weights."""
    digest = hashlib.sha256(name.encode())
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def recipe_key(recipe: TeacherRecipe, data: ImageData) -> str:
    """Return a digest of all that a trained teacher depends on."""
    content = json.dumps(
        [recipe.training_settings(), {**data.spec.to_dict(), "name": ""}, data.fingerprint], sort_keys=True
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def freeze(network: nn.Module) -> None:
    """Put a network into eval mode and take its weights out of every gradient."""
    network.eval()
    network.requires_grad_(False)


@torch.inference_mode()
def predictions(network: nn.Module, spec: DatasetSpec, images: LabelledImages) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (n, k) and labels (n,) of all images in order, on the network's device."""
    device = next(network.parameters()).device
    for batch, labels in images.loader(_TEST_BATCH):
        yield network(spec.normalise(batch.to(device))), labels.to(device)


def accuracy_of(network: nn.Module, spec: DatasetSpec, images: LabelledImages) -> float:
    """Return the top-1 accuracy in [0, 1]; the mode of the network is left as it is."""
    logits, labels = (torch.cat(parts) for parts in zip(*predictions(network, spec, images), strict=True))
    return float(multiclass_accuracy(logits, labels, spec.num_classes, average="micro"))


def _file_name(origin: str, fingerprint: str) -> str:
    return f"{origin}-{fingerprint[:16]}.safetensors"


def _check_same_data(path: Path, about: dict[str, Any], network: str, spec: DatasetSpec) -> None:
    trained = DatasetSpec.from_dict(about["spec"])
    if about["network"] != network:
        raise ValueError(
            f"teacher {path} is a {about['network']}, expected {network}: set --teacher.network {about['network']}"
        )
    for what, got, expected in (
        ("number of classes", trained.num_classes, spec.num_classes),
        ("classes, in order", trained.classes, spec.classes),
        ("image shape", trained.image_shape, spec.image_shape),
    ):
        if got != expected:
            raise ValueError(
                f"teacher {path} was trained for another data set; {what}: got {_short(got)}, expected "
                f"{_short(expected)}: use the data it was trained on, or another teacher"
            )
    for what, theirs, ours in (("mean", trained.mean, spec.mean), ("std", trained.std, spec.std)):
        if max(abs(their - our) for their, our in zip(theirs, ours, strict=True)) > _SAME_NORMALISATION:
            raise ValueError(
                f"teacher {path} was trained with the {what} {theirs}, the data has {ours}: set "
                f"--data.init_args.mean and --data.init_args.std to the teacher's"
            )


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 6:
        return f"({', '.join(map(str, value[:6]))}, … {len(value)} in all)"
    return str(value)


def _check_class_order(path: Path, network: nn.Module, spec: DatasetSpec, images: LabelledImages) -> None:
    for label in range(0, spec.num_classes, max(1, spec.num_classes // _CHECKED_CLASSES)):
        positions = images.positions_of(label)[:_CHECKED_IMAGES].tolist()
        with torch.inference_mode():
            guesses = network(spec.normalise(images.read(positions))).argmax(dim=1)
        votes = torch.bincount(guesses, minlength=spec.num_classes)
        winner = int(votes.argmax())
        if winner != label and votes[winner] > _MIXED_UP_SHARE * len(positions):
            raise ValueError(
                f"teacher {path} takes {int(votes[winner])} of {len(positions)} training images of the class "
                f"{spec.classes[label]!r} (label {label}) for {spec.classes[winner]!r} (label {winner}): its classes "
                "are in another order than the data's, or its normalisation differs; use the order and the mean "
                "and std that it was trained with (--teacher.check false to go on regardless)"
            )
