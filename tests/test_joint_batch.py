"""Two processes (gloo) give what one gives: BatchNorm and its gradient, a student, its score on an odd test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from joint_batchnorm import batchnorm, make_input, normalise_on_ranks
from torch import nn

from unidd_pl.baselines import real_images
from unidd_pl.data import ImageFolderData
from unidd_pl.data.holdout import SomeImages
from unidd_pl.joint_batch import JointBatchNorm, check_ranks, with_joint_batchnorm
from unidd_pl.networks import build_network
from unidd_pl.protocols import Protocol
from unidd_pl.rank_pool import train_over_ranks
from unidd_pl.scores import StudentScore
from unidd_pl.student_pool import StudentJob, StudentSettings, train_students
from unidd_pl.teachers import Teacher

RANKS = 2


# ---- pieces ----


def test_a_batch_smaller_than_the_ranks_is_refused() -> None:
    check_ranks([4, 2], 2)
    with pytest.raises(ValueError, match=r"got 3 for batches of 4 .* the smallest of which has 2.*--spread students"):
        check_ranks([4, 2], 3)


@pytest.mark.ddp
def test_joint_batchnorm_is_the_batchnorm_of_all_rows(tmp_path: Path) -> None:
    first, second = normalise_on_ranks(tmp_path)  # 3 and 2 rows
    images, weights = make_input()
    network = batchnorm(joint=False)
    outputs = network(images.requires_grad_())
    (outputs * weights).sum().backward()
    exact = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([first["outputs"], second["outputs"]]), outputs.detach(), **exact)
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]), images.grad, **exact)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(first[name] + second[name], parameter.grad, **exact)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(first[name], buffer, **exact)
        assert torch.equal(first[name], second[name])
    assert first["shares"].tolist() == second["shares"].tolist() == [1.0, pytest.approx(0.8)]


def test_joint_batchnorm_alone_is_the_usual_one(folder_data: ImageFolderData) -> None:
    torch.manual_seed(0)
    network = build_network("convnet-w8-d2", folder_data.spec)
    images = torch.randn(4, 3, 12, 12)
    expected = network(images)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with_joint_batchnorm(network)
    assert sum(isinstance(layer, JointBatchNorm) for layer in network.modules()) == 2
    assert list(network.state_dict()) == list(state), "checkpoints keep their names"
    assert torch.equal(network(images), expected)


def test_a_batchnorm_of_another_make_is_refused() -> None:
    from timm.layers import BatchNormAct2d

    with pytest.raises(ValueError, match="a layer 1 of type BatchNormAct2d"):
        with_joint_batchnorm(nn.Sequential(nn.BatchNorm2d(2), BatchNormAct2d(2)))


# ---- students ----


@pytest.fixture
def settings(tiny_teacher: Teacher, folder_data: ImageFolderData) -> StudentSettings:
    test = SomeImages(folder_data.test, torch.arange(11))  # two ranks do not divide 11
    protocol = Protocol(epochs=3, batch_size={1: 4}, optimizer="sgd", lr=0.05, momentum=0.9)
    return StudentSettings(tiny_teacher, test, protocol, "cpu", holdout=SomeImages(folder_data.train, torch.arange(7)))


def jobs(data: ImageFolderData) -> list[StudentJob]:
    # 9 images in batches of 4 would leave one image, which is dropped; 10 leave two, one a rank.
    training_set = real_images(data.train, data.spec, 4, 0)
    ten = replace(training_set, pixels=training_set.pixels[:10], labels=training_set.labels[:10])
    return [StudentJob("convnet-w8-d2", ten, seed, "student") for seed in range(2)]


@pytest.mark.ddp
def test_two_ranks_give_the_scores_of_one(settings: StudentSettings, folder_data: ImageFolderData) -> None:
    alone = dict(train_students(jobs(folder_data), 2, settings))
    joint = replace(settings, devices=RANKS, sync_batchnorm=True)
    together: dict[int, StudentScore] = dict(train_over_ranks(jobs(folder_data), joint, RANKS))
    # Scores are counts over 11 and 7 images: equal unless a logit lies within rounding of another.
    assert together == alone
    assert {round(11 * value, 4) % 1 for value in alone[0].accuracies.values()} == {0.0}
    assert alone[0] != alone[1]


@pytest.mark.ddp
@pytest.mark.slow
def test_too_many_ranks_for_a_batch(settings: StudentSettings, folder_data: ImageFolderData) -> None:
    three = replace(settings, devices=3, sync_batchnorm=True)
    with pytest.raises(ValueError, match="got 3 for batches of 4 images, the smallest of which has 2"):
        list(train_over_ranks(jobs(folder_data), three, 3))
