"""Fresh networks trained on a small set, and scored on the test images.

Legend: n images, c channels, h w space, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, RandomSampler

from unidd_pl.augmentation import random_flip, random_resized_crop
from unidd_pl.data.holdout import SomeImages
from unidd_pl.data.images import LabelledImages
from unidd_pl.joint_batch import check_ranks, joint_shares, same_buffers, with_joint_batchnorm
from unidd_pl.labels import OnlineLabels, SoftLabels, distillation_loss
from unidd_pl.mixing import cutmix, shuffle_patches
from unidd_pl.networks import build_network
from unidd_pl.protocols import Protocol
from unidd_pl.ranks import rows_of_rank
from unidd_pl.scores import StudentScore
from unidd_pl.seeding import generator_for, seed_for
from unidd_pl.siamese_augmentation import siamese_augment
from unidd_pl.specs import DatasetSpec
from unidd_pl.teachers import Teacher, accuracies_of
from unidd_pl.training import is_logged_step, train
from unidd_pl.views import Views

DEVICE_BUDGET = 4 * 2**30  # bytes of a set that are held on the device; more goes there batch by batch
TOP = 5  # classes among which the right one counts, beside the first


@dataclass(frozen=True)
class TrainingSet:
    """The small set that a student is trained on.

    Args:
        pixels: (n, c, h, w) uint8 in 0-255 or float32 in [0, 1].
        labels: (n,) int64.
        ipc: Images per class.
        views: How the images are seen where that depends on no batch; None to augment and mix each batch.
        soft_labels: The labels of those views; None for the teacher's, online.
    """

    pixels: Tensor
    labels: Tensor
    ipc: int
    views: Views | None = None
    soft_labels: SoftLabels | None = None


class EvalModule(L.LightningModule):
    """Trains a student on a small set, by default with a teacher's soft labels on every augmented batch.

    ::

        x ← CutMix(flip(crop(batch)));  L = KL(softmax(teacher(x)/T) ‖ softmax(student(x)/T))
        or with hard labels             L = CE(student(DSA(batch)), y)

    Args:
        student: The fresh network.
        teacher: The frozen network that labels; it has to be on the device of the student.
        training_set: The images.
        test: Test images.
        spec: The data set.
        protocol: How to train.
        seed: Seed of order and augmentation.
        holdout: Images held out of the training set, scored beside the test images.

    Raises:
        ValueError: If the protocol takes stored labels and the set has no views.

    References:
        SPEC.md section 4.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        training_set: TrainingSet,
        test: LabelledImages,
        spec: DatasetSpec,
        protocol: Protocol,
        seed: int,
        holdout: LabelledImages | None = None,
    ) -> None:
        super().__init__()
        if protocol.labels == "stored" and training_set.views is None:
            raise ValueError(
                f"protocol {protocol.name}: got labels stored and a set without a label store: write one with `unidd "
                "relabel`, or set --protocol.labels online"
            )
        self.student = student
        self.spec = spec
        self.protocol = protocol
        self.seed = seed
        self.training_set = training_set
        self.test_images = test
        self.holdout_images = holdout
        self.accuracies: dict[int, float] = {}
        self.top5: dict[int, float] = {}
        self.holdout: dict[int, float] = {}
        self._teacher = (teacher,)  # a tuple hides it from Module: no submodule, no .train()
        self._scored = frozenset(protocol.evaluated_epochs())
        self._top = (1, TOP) if spec.num_classes > TOP else (1,)
        self._pixels = training_set.pixels
        self._labels = training_set.labels
        self.soft_labels = training_set.soft_labels or OnlineLabels(teacher)

    def train_dataloader(self) -> BatchSampler:
        """Return batches of indices in an order drawn from the seed."""
        order = generator_for(self.seed, "student", "order")
        sampler = RandomSampler(range(len(self._pixels)), generator=order)
        batch_size = min(self.protocol.batch_size_for(self.training_set.ipc), len(self._pixels))
        # BatchNorm has nothing to normalise by in a last batch of one image with one position.
        lonely = len(self._pixels) > batch_size and len(self._pixels) % batch_size == 1
        return BatchSampler(sampler, batch_size, drop_last=lonely)

    def configure_optimizers(self) -> Any:
        """Return the protocol's optimizer and its schedule, stepped each epoch."""
        protocol, parameters = self.protocol, self.student.parameters()
        optimizer: torch.optim.Optimizer
        if protocol.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                parameters, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(
                parameters, lr=protocol.lr, betas=protocol.betas, weight_decay=protocol.weight_decay
            )
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, protocol.lr_factor)]

    def on_fit_start(self) -> None:
        """Bring images and teacher to the device of the student."""
        pixels = self.training_set.pixels
        if pixels.nbytes <= DEVICE_BUDGET:  # a larger set stays where it is, as a rule mapped from its file
            self._pixels = pixels.to(self.device)
        self._labels = self.training_set.labels.to(self.device)
        self._teacher[0].to(self.device)
        check_ranks([len(batch) for batch in self.train_dataloader()], self.trainer.world_size)

    def training_step(self, batch: list[int], batch_idx: int) -> Tensor:
        """Return the loss of a batch of indices."""
        images = self.augment(batch, batch_idx)  # the joint batch on every rank: its draws know no ranks
        rows = rows_of_rank(len(batch), self.global_rank, self.trainer.world_size)
        share = (rows.stop - rows.start) * self.trainer.world_size / len(batch)
        images, batch = images[rows], batch[rows]
        logits = self.student(images).float()
        if self.protocol.labels == "hard":
            loss = F.cross_entropy(logits, self._labels[batch])
        else:
            targets = self.soft_labels.logits(images, batch, self._view_epoch)
            loss = distillation_loss(logits, targets, self.protocol.temperature)
        if is_logged_step(self.trainer):
            self.log("loss", loss.detach(), prog_bar=True)
        joint: Tensor = loss * share  # DDP takes the mean over ranks, the loss is that over images
        return joint

    def augment(self, batch: list[int], batch_idx: int) -> Tensor:
        """Return normalised images as the protocol augments and mixes them, for a batch of indices."""
        if self.training_set.views is not None:
            images = self.training_set.views.images(self._pixels, batch, self._view_epoch).to(self.device)
            return images.contiguous(memory_format=torch.channels_last)
        protocol = self.protocol
        generator = generator_for(self.seed, "student", self.current_epoch, batch_idx)
        images = self.spec.normalise(self._pixels[batch].to(self.device))
        if protocol.patch_shuffle > 1:
            images = shuffle_patches(images, generator, grid=protocol.patch_shuffle)
        if protocol.crop_scale is not None:
            images = random_resized_crop(images, generator, scale=protocol.crop_scale)
        if protocol.flip:
            images = random_flip(images, generator)
        if protocol.dsa:
            images = siamese_augment(images, generator, protocol.dsa)
        if protocol.cutmix_alpha:
            images = cutmix(images, generator, alpha=protocol.cutmix_alpha)
        return images.contiguous(memory_format=torch.channels_last)

    @property
    def _view_epoch(self) -> int:
        views = self.training_set.views
        return self.current_epoch if views is None else views.epoch_at(self.current_epoch, self.seed)

    def on_train_epoch_end(self) -> None:
        """Score the student where the protocol says so."""
        epoch = self.current_epoch + 1
        if epoch not in self._scored:
            return
        self.student.eval()
        with self.trainer.precision_plugin.forward_context():  # scored as it is trained
            scores = self._accuracies(self.test_images, self._top)
            if self.holdout_images is not None:
                self.holdout[epoch] = self._accuracies(self.holdout_images, (1,))[0]
        self.student.train()
        self.accuracies[epoch] = scores[0]
        if len(scores) > 1:
            self.top5[epoch] = scores[1]
        self.log("accuracy", scores[0], prog_bar=True)

    def _accuracies(self, images: LabelledImages, top: Sequence[int]) -> tuple[float, ...]:
        """Return the top-k accuracies over all images; each rank looks at its own, and none is seen twice."""
        ranks = self.trainer.world_size
        if ranks == 1:
            return accuracies_of(self.student, self.spec, images, top)
        same_buffers(self.student)
        own = torch.arange(len(images))[rows_of_rank(len(images), self.global_rank, ranks)]
        shares = accuracies_of(self.student, self.spec, SomeImages(images, own), top) if len(own) else [0.0] * len(top)
        return joint_shares(list(shares), len(own), self.device)


def train_student(
    network: str,
    training_set: TrainingSet,
    teacher: Teacher,
    test: LabelledImages,
    protocol: Protocol,
    seed: int,
    *,
    label: str | None,
    accelerator: str = "auto",
    precision: str = "32-true",
    logger: Logger | bool = False,
    holdout: LabelledImages | None = None,
    devices: int | list[int] = 1,
    sync_batchnorm: bool = False,
    compiled: bool = False,
) -> StudentScore:
    """Train one fresh network and return its score.

    Args:
        network: Name of the architecture.
        training_set: The images.
        teacher: The teacher that labels them.
        test: Test images.
        protocol: How to train.
        seed: Seed of initialisation, order and augmentation.
        label: What the progress bar says; None for no bar.
        accelerator: Lightning's accelerator.
        precision: Lightning's precision of training and scoring, for example ``bf16-mixed``.
        logger: Lightning logger.
        holdout: Images held out of the training set, to choose an epoch on.
        devices: As for `train`.
        sync_batchnorm: BatchNorm over the rows of all processes that train together.
        compiled: Let torch.compile make the student's code, which takes minutes at first.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "student", "weights"))
        student = build_network(network, teacher.spec)
    if sync_batchnorm:
        with_joint_batchnorm(student)
    student.to(memory_format=torch.channels_last)  # faster on a CPU, same numbers
    if compiled:
        student.compile()
    module = EvalModule(student, teacher.network, training_set, test, teacher.spec, protocol, seed, holdout)
    train(
        module,
        label=label,
        epochs=protocol.epochs,
        accelerator=accelerator,
        precision=precision,
        logger=logger,
        devices=devices,
    )
    return StudentScore(seed, module.accuracies, protocol.tail_epochs(), module.top5, module.holdout)
