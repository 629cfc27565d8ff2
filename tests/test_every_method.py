"""Every method through the DistillationModule: signals, chunks, layers, β by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import lightning as L
import numpy as np
import pytest
import torch
from distillation_runs import run
from torch import nn

from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.data.folder import ImageFolderData
from unidd_pl.distillation import DistillationModule
from unidd_pl.real_side import RealSide
from unidd_pl.run_settings import Running
from unidd_pl.spectral import CFM, METHODS, MTT, Method, Moments, QuantileCurriculum, Signal, SRe2L, StackedMoments
from unidd_pl.stages import statistics_stage
from unidd_pl.statistics import running_statistics
from unidd_pl.statistics_cache import StatisticsRecipe
from unidd_pl.synthetic import ChunkStore
from unidd_pl.teachers import Teacher
from unidd_pl.tracking import Tracking
from unidd_pl.training import quiet_lightning


@pytest.mark.parametrize("method", [kind() for kind in METHODS], ids=lambda method: method.name)
@pytest.mark.parametrize("signal", get_args(Signal))
@pytest.mark.parametrize(("chunk_size", "running"), [(3, "off"), (3, "mean"), (2, "merge"), (2, "off")])
def test_every_method_brings_the_two_sides_together(
    chunk_size: int,
    running: Running,
    signal: Signal,
    method: Method,
    tiny_teacher: Teacher,
    folder_data: ImageFolderData,
    tmp_path: Path,
) -> None:
    """Without cross-entropy in the way, the matching loss falls; with every signal, chunked or not."""
    tracking = Tracking(enabled=False)
    statistics = statistics_stage(
        StatisticsRecipe(), tiny_teacher, folder_data, method, signal, tmp_path / "cache", tracking, accelerator="cpu"
    )
    settings: dict[str, Any] = {"crop_scale": (1.0, 1.0), "flip": False, "max_roll": 0, "ipc": 1, "iterations": 12}
    _, trace = run(
        RealSide(tiny_teacher, statistics, folder_data.train),
        tmp_path / "chunks",
        method=method,
        signal=signal,
        chunk_size=chunk_size,
        running=running,
        eta=1000.0,
        relative=True,
        lr=0.05,
        start="noise",
        **settings,
    )
    matching = [figures["loss/matching"] for figures in trace.figures]
    assert min(matching[6:12]) < 0.95 * matching[0]


def test_batchnorm_matching_takes_the_running_statistics(
    tiny_teacher: Teacher, folder_data: ImageFolderData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: Any = (StatisticsRecipe(), tiny_teacher, folder_data, SRe2L())
    statistics = statistics_stage(*arguments, "mean", tmp_path, Tracking(enabled=False), accelerator="cpu")
    assert "the running statistics of the teacher's BatchNorms" in capsys.readouterr().out
    norms = {name: one for name, one in tiny_teacher.network.named_modules() if isinstance(one, nn.BatchNorm2d)}
    assert statistics.layers == tuple(norms)
    for moments, norm in zip(statistics.moments, norms.values(), strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        torch.testing.assert_close(moments.mean, norm.running_mean.double())
        torch.testing.assert_close(moments.ffc, torch.diag(norm.running_var.double()))
    gathered = statistics_stage(*arguments, "class", tmp_path, Tracking(enabled=False), accelerator="cpu")
    assert gathered.layers == statistics.layers
    assert gathered.fingerprint != statistics.fingerprint


def test_statistics_of_other_layers_are_refused(real: RealSide, tmp_path: Path) -> None:
    module = DistillationModule(1, SRe2L())
    with pytest.raises(ValueError, match=r"method sre2l matches the inputs of the layers .*norm.*, got statistics of"):
        module.prepare(real, ChunkStore(tmp_path, real.teacher.spec))


def test_a_layer_without_running_statistics_is_named(folder_data: ImageFolderData) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    teacher = Teacher(network, "odd", folder_data.spec, None, Path("none"))
    with pytest.raises(ValueError, match="layer 1 keeps no running statistics"):
        running_statistics(teacher, folder_data, ["1"])


def test_every_layer_has_its_own_beta(real: RealSide, tmp_path: Path) -> None:
    """With a quantile curriculum the loss of each layer is that of its own β."""
    recorder = CurriculumCallback(QuantileCurriculum(0.8, 0.2))
    module = DistillationModule(2, CFM(), iterations=1, chunk_size=3)
    module.prepare(real, ChunkStore(tmp_path, real.teacher.spec))
    spectra = real.statistics.spectra
    for spectrum, moments in zip(spectra, real.statistics.moments, strict=True):
        np.testing.assert_allclose(spectrum, np.linalg.eigvalsh(moments.ffc.numpy()).clip(0), atol=1e-12)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, callbacks=[recorder], enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    with quiet_lightning():
        trainer.fit(module)
    expected = QuantileCurriculum(0.8, 0.2).betas_at(0.1, 1, 2, spectra)
    assert module.matching.betas == expected
    assert len(set(expected)) == len(spectra)
    features = [torch.randn(4, len(spectrum), 3, 3) for spectrum in spectra]
    module.objective.running = None
    distances = module.objective.distances(StackedMoments.of([Moments.of(x) for x in features]), None)
    for row, x, moments, beta in zip(distances, features, real.statistics.moments, expected, strict=True):
        shift = beta * np.eye(len(moments.ffc))
        f, f_s = (np.linalg.inv(psi.numpy() + shift) for psi in (moments.ffc, Moments.of(x.double()).ffc))
        assert float(row[0]) == pytest.approx(np.linalg.norm(f - f_s), rel=1e-3)


def test_settings_of_a_filter_change_the_digest(real: RealSide, tmp_path: Path) -> None:
    digests = set()
    for method in (MTT(), MTT(steps=7), MTT(step_size=0.3)):
        module = DistillationModule(1, method)
        module.prepare(real, ChunkStore(tmp_path, real.teacher.spec))
        digests.add(module.run_digest)
    assert len(digests) == 3
