"""How a fresh network is trained on a small set: named, complete, and stored with every number."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Protocol:
    """The training of a student on a distilled set, its labels given online by a teacher.

    The defaults are the protocol ``unidd-release`` for CIFAR.

    Args:
        name: Name that is stored with every number.
        epochs: Epochs of training, E.
        batch_size: Images a step, by images per class; the entry of the largest key not above the set's.
        temperature: Temperature T of the softmax on both sides.
        lr: Learning rate of AdamW.
        betas: Decay rates of AdamW.
        weight_decay: Decoupled weight decay.
        half_period: Factor on π/2 · e/E in the cosine: with 1 the rate ends at half its start.
        crop_scale: Area of the random resized crop, as shares of the image.
        flip: Random horizontal flips.
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
        temperature: float = 20.0,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        half_period: float = 1.0,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = True,
        cutmix_alpha: float = 1.0,
        early_scores: int = 3,
    ) -> None:
        for what, value in (("epochs", epochs), ("temperature", temperature), ("lr", lr)):
            if value <= 0:
                raise ValueError(f"protocol.{what}: got {value}, expected > 0")
        self.name = name
        self.epochs = epochs
        self.batch_size = dict(batch_size) if batch_size else {1: 10, 10: 50, 50: 100}
        if min(self.batch_size) != 1 or min(self.batch_size.values()) < 1:
            raise ValueError(
                f"protocol.batch_size: got {self.batch_size}, expected images per class → batch size from 1 on, "
                "for example {1: 10, 10: 50}"
            )
        self.temperature = temperature
        self.lr = lr
        self.betas = betas
        self.weight_decay = weight_decay
        self.half_period = half_period
        self.crop_scale = crop_scale
        self.flip = flip
        self.cutmix_alpha = cutmix_alpha
        self.early_scores = early_scores

    @property
    def label(self) -> str:
        """Name and length, as results are labelled."""
        return f"{self.name}, {self.epochs} epochs"

    def batch_size_for(self, ipc: int) -> int:
        """Return the batch size for a set of this many images per class."""
        return self.batch_size[max(key for key in self.batch_size if key <= max(1, ipc))]

    def lr_factor(self, epoch: int) -> float:
        """Return the share of the learning rate in an epoch, ½(1 + cos(π e / 2E)) for ``half_period`` 1."""
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
