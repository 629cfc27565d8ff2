"""How a fresh network is trained on a small set: named, complete, and stored with every number."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from unidd_pl.siamese_augmentation import Strategy
from unidd_pl.views import ViewRecipe

Labels = Literal["online", "stored", "hard"]
OptimizerName = Literal["adamw", "sgd"]
RateName = Literal["cosine", "step"]

STEP_FACTOR = 0.1  # of the rate, at half of the epochs


class Protocol:
    """The training of a student on a small set; everything that a number depends on beside the set.

    The defaults are the protocol ``unidd-release`` for CIFAR. Others are files under configs/protocols.

    Args:
        name: Name that is stored with every number.
        epochs: Epochs of training, E.
        batch_size: Images a step, by images per class; the entry of the largest key not above the set's.
        labels: ``online``, the teacher's softmax on every augmented batch with a KL divergence; ``stored``, the same
            written beforehand by ``unidd relabel``; or ``hard``, the class with a cross-entropy.
        temperature: Temperature T of the softmax on both sides, for soft labels.
        optimizer: ``adamw`` or ``sgd``.
        lr: Learning rate.
        betas: Decay rates of AdamW.
        momentum: Momentum of SGD.
        weight_decay: Decoupled weight decay of AdamW, L2 penalty of SGD.
        schedule: ``cosine``, or ``step`` to a tenth at half of the epochs.
        half_period: Factor on π/2 · e/E in the cosine: with 1 the rate ends at half its start, with 2 at 0.
        crop_scale: Area of the random resized crop, as shares of the image; None for no crop.
        flip: Random horizontal flips.
        dsa: Strategies of differentiable Siamese augmentation, one a batch; none where empty.
        patch_shuffle: Shuffle the rows and columns of a grid of n × n patches within each image; 1 for none.
        cutmix_alpha: α of λ ~ Beta(α, α) for CutMix in every batch; 0 for none.
        early_scores: Evaluations before the tail, evenly spaced, for the curve; they change no figure.

    Raises:
        ValueError: If a number is out of range.

    References:
        SPEC.md section 4.
    """

    def __init__(
        self,
        name: str = "unidd-release",
        epochs: int = 1000,
        batch_size: Mapping[int, int] | None = None,
        labels: Labels = "online",
        temperature: float = 20.0,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        schedule: RateName = "cosine",
        half_period: float = 1.0,
        crop_scale: tuple[float, float] | None = (0.08, 1.0),
        flip: bool = True,
        dsa: Sequence[Strategy] = (),
        patch_shuffle: int = 1,
        cutmix_alpha: float = 1.0,
        early_scores: int = 3,
    ) -> None:
        for what, value in (
            ("epochs", epochs), ("temperature", temperature), ("lr", lr), ("patch_shuffle", patch_shuffle)
        ):  # fmt: skip
            if value <= 0:
                raise ValueError(f"protocol.{what}: got {value}, expected > 0")
        if labels == "hard" and cutmix_alpha:
            raise ValueError(
                f"protocol.labels: got hard with cutmix_alpha {cutmix_alpha}, expected labels online for mixed images: "
                "set cutmix_alpha: 0"
            )
        if labels == "stored" and dsa:
            raise ValueError(
                "protocol.labels: got stored with dsa, whose strategy is drawn for a batch, expected what is drawn for "
                "each image: set dsa: []"
            )
        self.name = name
        self.epochs = epochs
        self.batch_size = dict(batch_size) if batch_size else {1: 10, 10: 50, 50: 100}
        if min(self.batch_size) != 1 or min(self.batch_size.values()) < 1:
            raise ValueError(
                f"protocol.batch_size: got {self.batch_size}, expected images per class → batch size from 1 on, "
                "for example {1: 10, 10: 50}"
            )
        self.labels = labels
        self.temperature = temperature
        self.optimizer = optimizer
        self.lr = lr
        self.betas = betas
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.half_period = half_period
        self.crop_scale = crop_scale
        self.flip = flip
        self.dsa = list(dsa)
        self.patch_shuffle = patch_shuffle
        self.cutmix_alpha = cutmix_alpha
        self.early_scores = early_scores

    @property
    def label(self) -> str:
        """Name and length, as results are labelled."""
        return f"{self.name}, {self.epochs} epochs"

    def lasting(self, epochs: int | None) -> Protocol:
        """Return this protocol with other epochs; itself for None."""
        if epochs is None or epochs == self.epochs:
            return self
        if epochs < 1:
            raise ValueError(f"protocol.epochs: got {epochs}, expected > 0")
        other = copy.copy(self)
        other.epochs = epochs
        return other

    def batch_size_for(self, ipc: int) -> int:
        """Return the batch size for a set of this many images per class."""
        return self.batch_size[max(key for key in self.batch_size if key <= max(1, ipc))]

    @property
    def view_recipe(self) -> ViewRecipe:
        """What is done to an image, for views that depend on no batch."""
        scale = None if self.crop_scale is None else (float(self.crop_scale[0]), float(self.crop_scale[1]))
        return ViewRecipe(self.patch_shuffle, scale, self.flip, float(self.cutmix_alpha))

    def lr_factor(self, epoch: int) -> float:
        """Return the share of the learning rate in an epoch, ½(1 + cos(π e / 2E)) for ``half_period`` 1."""
        if self.schedule == "step":
            return 1.0 if 2 * epoch < self.epochs else STEP_FACTOR
        return (1 + math.cos(math.pi * self.half_period * epoch / (2 * self.epochs))) / 2

    def evaluated_epochs(self) -> tuple[int, ...]:
        """Return the epochs, counted from 1, after which a student is scored.

        Ten, evenly spaced, in the last fifth, ending with the last (all of them where fewer; for fewer than
        50 epochs the last ten), and `early_scores` before, for the curve.
        """
        tail = self.tail_epochs()
        parts = self.early_scores + 2  # the last of them is the tail
        early = (self.epochs * part // parts for part in range(1, self.early_scores + 1))
        return tuple(sorted({*tail, *(epoch for epoch in early if 0 < epoch < tail[0])}))

    def tail_epochs(self) -> tuple[int, ...]:
        """Return the scored epochs that the tail mean is taken over."""
        span = min(self.epochs, max(_TAIL_EVALUATIONS, self.epochs // 5))
        count = min(_TAIL_EVALUATIONS, span)
        return tuple(self.epochs - span + -(-span * i // count) for i in range(1, count + 1))


_TAIL_EVALUATIONS = 10
