"""Which real images of a class stand for it: chosen greedily in a teacher's feature space.

Legend: n images of a class, d features, m images chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unidd_pl.data.images import LabelledImages
from unidd_pl.features import FeatureTap
from unidd_pl.teachers import Teacher

_BATCH = 250  # images a forward pass


@torch.inference_mode()
def teacher_features(teacher: Teacher, images: LabelledImages, positions: Tensor) -> Tensor:
    """Return what the last linear layer of the teacher is given for these images, (n, d) float64 on the CPU.

    Raises:
        ValueError: If the teacher has no linear layer.
    """
    network = teacher.network
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(
            f"teacher {teacher.name}: got a network without a linear layer, expected one whose input is the feature "
            "space for k-centre and herding: leave them out of --baselines, and choose another --model.init_args.start"
        )
    device = next(network.parameters()).device
    features = []
    with FeatureTap(network, linear[-1:]) as tap:
        for part in torch.split(positions, _BATCH):
            network(teacher.spec.normalise(images.read(part.tolist()).to(device)))
            features.append(tap.features()[0].flatten(1).double().cpu())
    return torch.cat(features)


def k_centre(features: Tensor, count: int) -> Tensor:
    """Choose images so that every image is near a chosen one: greedy, deterministic.

    The first is the one nearest the mean; each further one is the farthest from all chosen, which is within twice
    the smallest possible radius.

    Args:
        features: (n, d) of one class.
        count: m.

    Returns:
        (m,) int64 positions, in the order of choice; the first of equal ones.

    Raises:
        ValueError: If there are fewer than m images.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018.
    """
    _check_count(features, count)
    chosen = [int((features - features.mean(dim=0)).norm(dim=1).argmin())]
    nearest = torch.full((len(features),), torch.inf, dtype=features.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).norm(dim=1))
        nearest[chosen[-1]] = -1  # below any distance: equal images are not chosen twice
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def herding(features: Tensor, count: int) -> Tensor:
    """Choose images whose mean stays as close as possible to the mean of all: greedy, deterministic.

    Args:
        features: (n, d) of one class.
        count: m.

    Returns:
        (m,) int64 positions, in the order of choice; the first of equal ones.

    Raises:
        ValueError: If there are fewer than m images.

    References:
        Welling, Herding Dynamical Weights to Learn, ICML 2009; in this form Rebuffi et al., iCaRL, CVPR 2017.
    """
    _check_count(features, count)
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool)
    chosen: list[int] = []
    for number in range(1, count + 1):
        distance = (mean - (total + features) / number).norm(dim=1)
        best = int(distance.where(free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.tensor(chosen)


def _check_count(features: Tensor, count: int) -> None:
    if not 0 < count <= len(features):
        raise ValueError(f"got {count} images to choose of {len(features)}, expected 1 to {len(features)}")
