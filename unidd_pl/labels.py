"""Soft labels: where a student's targets come from, and the loss on them.

Legend: n images of the set, b of a batch, c channels, h w space, k classes.

A source gives the teacher's *logits* and not its probabilities: the temperature stays a setting of the protocol.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SoftLabels(ABC):
    """Where the soft labels of a training come from."""

    @abstractmethod
    def logits(self, images: Tensor, indices: Sequence[int], epoch: int) -> Tensor:
        """Return the teacher's logits of a batch.

        Args:
            images: (b, c, h, w) as the student sees them: normalised, augmented, mixed.
            indices: (b,) their positions in the set.
            epoch: Which of the set's views they are, from 0; the epoch of the training where there are none.

        Returns:
            (b, k) floating point, up to a constant for each image; no gradient flows.
        """


class OnlineLabels(SoftLabels):
    """The teacher labels each batch when it is there.

    Args:
        teacher: The frozen network, on the device of the images.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    @torch.no_grad()
    def logits(self, images: Tensor, indices: Sequence[int], epoch: int) -> Tensor:
        """See `SoftLabels.logits`; indices and epoch are not needed."""
        logits: Tensor = self.teacher(images)
        return logits


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(targets/T) ‖ softmax(logits/T)), the mean over the batch and without the factor T².

    Args:
        logits: (b, k) of the student; the gradient flows.
        targets: (b, k) of the teacher.
        temperature: T.

    References:
        SPEC.md section 4.
    """
    student = (logits.float() / temperature).log_softmax(dim=1)
    return F.kl_div(student, (targets.float() / temperature).softmax(dim=1), reduction="batchmean")
