"""A teacher's moments over batches of images, merged exactly.

Legend: n images, k classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unidd_pl.features import FeatureTap
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import Moments, Signal
from unidd_pl.teachers import Teacher


def label_weights(signal: Signal, labels: Tensor, logits: Tensor) -> Tensor | None:
    """Return the weight of each image for each class in the FLC, (n, k), or None for ``mean``.

    Args:
        signal: ``mean``, ``class`` (one-hot) or ``soft`` (softmax of the teacher at T = 1).
        labels: (n,) int64.
        logits: (n, k) of the teacher; for ``soft`` the gradient flows to them.

    References:
        SPEC.md section 1.
    """
    if signal == "mean":
        return None
    if signal == "class":
        return F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def gather_moments(
    teacher: Teacher,
    batches: Iterable[tuple[Tensor, Tensor]],
    layers: Sequence[str],
    signal: Signal,
    spec: DatasetSpec,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Moments, ...]:
    """Run the teacher over batches of images and merge the moments of all of them exactly.

    Args:
        teacher: The frozen teacher.
        batches: Images (n, c, h, w), uint8 in 0-255 or floating point in [0, 1], with labels (n,) int64; at least one
            batch.
        layers: Names of the layers whose inputs are described.
        signal: Signal of the FLC.
        spec: Normalisation that the teacher was trained with.
        device: Where to run.

    Returns:
        Moments of each layer, float64, on the CPU.
    """
    *_, total = running_totals(teacher, batches, layers, signal, spec, device)
    return tuple(one.to(device="cpu") for one in total)


def running_totals(
    teacher: Teacher,
    batches: Iterable[tuple[Tensor, Tensor]],
    layers: Sequence[str],
    signal: Signal,
    spec: DatasetSpec,
    device: torch.device | str,
    before: Sequence[Moments] = (),
) -> Iterator[list[Moments]]:
    """Yield the moments of all images so far after each batch, those from before among them."""
    network = teacher.network.to(device)
    total = [one.to(device=device) for one in before]
    with FeatureTap(network, layers) as tap:
        for images, labels in batches:
            with torch.no_grad():  # not inference_mode, whose tensors no later loss could use
                logits = network(spec.normalise(images.to(device)))
                weights = label_weights(signal, labels.to(device), logits)
                batch = [Moments.of(x, weights).to(dtype=torch.float64) for x in tap.features()]
                total = [a.merge(b) for a, b in zip(total, batch, strict=True)] if total else batch
            yield total
    network.cpu()
