"""Frequency bands against plain linear algebra in float64, and the pictures of a band."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unidd_pl.band_pictures import (
    PICTURED_BANDS,
    TILE,
    BandImages,
    band_images,
    draw_band_pictures,
    first_of_each_class,
    hidden,
)
from unidd_pl.bands import BANDS, LIVING_BANDS, LayerSpectrum, SpectralBand
from unidd_pl.data import ImageFolderData
from unidd_pl.distilled import DistilledSet
from unidd_pl.features import FeatureTap
from unidd_pl.specs import DatasetSpec
from unidd_pl.spectral import Moments
from unidd_pl.statistics import Statistics
from unidd_pl.teachers import Teacher

EIGENVALUES = (80.0, 12.0, 5.0, 2.5, 0.4, 0.1, 0.0)  # add to 100: two low, two middle, two high, one dead
MEMBERS = {"low": [0, 1], "middle": [2, 3], "high": [4, 5], "dead": [6]}


def moments_of(ffc: np.ndarray, flc: np.ndarray) -> Moments:
    """Moments with the given Ψ and Φ: label-free for Φ (c,), of k classes for Φ (c, k)."""
    k = 0 if flc.ndim == 1 else flc.shape[1]
    mean = torch.from_numpy(flc if k == 0 else flc.mean(axis=1))
    label_mean = torch.from_numpy(flc * k) if k else mean.new_zeros(len(mean), 0)
    return Moments(torch.tensor(9.0), mean, torch.from_numpy(ffc), mean.new_ones(k), label_mean)


@pytest.fixture
def noise() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def directions(noise: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(noise.normal(size=(7, 7)))[0]


@pytest.fixture
def ffc(directions: np.ndarray) -> np.ndarray:
    return directions @ np.diag(EIGENVALUES) @ directions.T


def projector(directions: np.ndarray, band: str) -> np.ndarray:
    chosen = directions[:, MEMBERS[band]]
    return np.asarray(chosen @ chosen.T)


class TestBands:
    def test_are_cut_by_shares_of_the_trace(self, ffc: np.ndarray, noise: np.random.Generator) -> None:
        spectrum = LayerSpectrum.of("conv", moments_of(ffc, noise.normal(size=7)))
        assert {band: spectrum.members(band).nonzero().flatten().tolist() for band in BANDS} == MEMBERS
        assert [spectrum.count(band) for band in BANDS] == [2, 2, 2, 1]
        np.testing.assert_allclose(spectrum.eigenvalues, EIGENVALUES, atol=1e-12)
        np.testing.assert_allclose(spectrum.alive, EIGENVALUES[:-1], atol=1e-12)

    def test_projectors_are_those_of_the_directions_and_partition_the_space(
        self, ffc: np.ndarray, directions: np.ndarray, noise: np.random.Generator
    ) -> None:
        spectrum = LayerSpectrum.of("conv", moments_of(ffc, noise.normal(size=7)))
        projectors = {band: spectrum.basis(band) @ spectrum.basis(band).T for band in BANDS}
        for band, got in projectors.items():
            np.testing.assert_allclose(got, projector(directions, band), atol=1e-10)
        np.testing.assert_allclose(sum(projectors.values()), np.eye(7), atol=1e-12)

    def test_one_direction_is_low_and_an_empty_spectrum_is_dead(self) -> None:
        one = LayerSpectrum.of("conv", moments_of(np.diag([3.0, 0.0]), np.ones(2)))
        assert [one.count(band) for band in BANDS] == [1, 0, 0, 1]
        none = LayerSpectrum.of("conv", moments_of(np.zeros((2, 2)), np.ones(2)))
        assert [none.count(band) for band in BANDS] == [0, 0, 0, 2]
        assert none.flc_share() == {"low": 0, "middle": 0, "high": 0, "dead": 1}

    @pytest.mark.parametrize("shape", [(7,), (7, 3)], ids=["mean", "class"])
    def test_energies_of_phi_add_to_one(
        self, ffc: np.ndarray, directions: np.ndarray, noise: np.random.Generator, shape: tuple[int, ...]
    ) -> None:
        flc = noise.normal(size=shape)
        shares = LayerSpectrum.of("conv", moments_of(ffc, flc)).flc_share()
        for band in BANDS:
            expected = np.sum((projector(directions, band) @ flc) ** 2) / np.sum(flc**2)
            assert shares[band] == pytest.approx(expected, rel=1e-9)
        assert sum(share or 0 for share in shares.values()) == pytest.approx(1, rel=1e-12)


class TestMatch:
    def test_of_the_real_moments_themselves_is_complete(self, ffc: np.ndarray, noise: np.random.Generator) -> None:
        real = moments_of(ffc, noise.normal(size=7))
        match = LayerSpectrum.of("conv", real).compare(real)
        for band in LIVING_BANDS:
            assert match.flc_matched[band] == 1
            assert match.variance_ratio[band] == pytest.approx(1, rel=1e-9)
        assert match.flc_matched["dead"] == 1
        assert match.variance_ratio["dead"] is None
        np.testing.assert_allclose(match.variances, EIGENVALUES, atol=1e-12)

    @pytest.mark.parametrize("shape", [(7,), (7, 3)], ids=["mean", "class"])
    def test_of_others_equals_the_formula(
        self, ffc: np.ndarray, directions: np.ndarray, noise: np.random.Generator, shape: tuple[int, ...]
    ) -> None:
        flc, other_flc, rows = noise.normal(size=shape), noise.normal(size=shape), noise.normal(size=(9, 7))
        other_ffc = rows.T @ rows / 9
        match = LayerSpectrum.of("conv", moments_of(ffc, flc)).compare(moments_of(other_ffc, other_flc))
        for band in LIVING_BANDS:
            p = projector(directions, band)
            matched = 1 - np.sum((p @ (flc - other_flc)) ** 2) / np.sum((p @ flc) ** 2)
            assert match.flc_matched[band] == pytest.approx(matched, rel=1e-8)
            assert match.variance_ratio[band] == pytest.approx(np.trace(p @ other_ffc) / np.trace(p @ ffc), rel=1e-8)
        expected = np.einsum("ci,cd,di->i", directions, other_ffc, directions)
        np.testing.assert_allclose(match.variances, expected, rtol=1e-8)

    def test_counts_what_is_missing_and_what_is_too_much(self, ffc: np.ndarray, noise: np.random.Generator) -> None:
        flc = noise.normal(size=7)
        spectrum = LayerSpectrum.of("conv", moments_of(ffc, flc))
        for scale, matched in ((0.0, 0.0), (0.5, 0.75), (3.0, -3.0)):
            match = spectrum.compare(moments_of(ffc, scale * flc))
            assert [match.flc_matched[band] for band in LIVING_BANDS] == pytest.approx([matched] * 3)

    def test_without_signal_there_is_no_share(self, ffc: np.ndarray) -> None:
        spectrum = LayerSpectrum.of("pixels", moments_of(ffc, np.full(7, 1e-3)))  # ‖Φ‖² = 7e-8 of the trace
        assert set(spectrum.flc_share().values()) == {None}
        match = spectrum.compare(moments_of(2 * ffc, np.ones(7)))
        assert set(match.flc_matched.values()) == {None}
        assert match.variance_ratio["low"] == pytest.approx(2)

    def test_a_signal_of_many_classes_is_none_the_smaller(self, ffc: np.ndarray, noise: np.random.Generator) -> None:
        classes = 1000
        flc = noise.normal(size=(7, classes)) / classes  # class means of norm 2.6, each over K
        assert LayerSpectrum.of("conv", moments_of(ffc, flc)).flc_share()["low"] is not None

    def test_a_band_without_signal_has_none(self, directions: np.ndarray, ffc: np.ndarray) -> None:
        flc = directions[:, 0]
        match = LayerSpectrum.of("conv", moments_of(ffc, flc)).compare(moments_of(ffc, flc + 0.1 * directions[:, 5]))
        assert match.flc_matched["low"] == pytest.approx(1)
        assert match.flc_matched["high"] is None


@pytest.fixture(scope="module")
def spectra(tiny_statistics: Statistics) -> list[LayerSpectrum]:
    pairs = zip(tiny_statistics.layers, tiny_statistics.moments, strict=True)
    return hidden([LayerSpectrum.of(layer, moments) for layer, moments in pairs])


@pytest.fixture(scope="module")
def originals(folder_data: ImageFolderData) -> Tensor:
    return folder_data.spec.normalise(folder_data.train.read([0, 10, 20]))


@pytest.fixture(scope="module")
def pictures(
    tiny_teacher: Teacher, folder_data: ImageFolderData, spectra: list[LayerSpectrum], originals: Tensor
) -> dict[SpectralBand, BandImages]:
    made = {band: band_images(tiny_teacher, spectra, originals, band, folder_data.spec) for band in PICTURED_BANDS}
    return {band: images for band, images in made.items() if images is not None}


def unmatched(teacher: Teacher, spectrum: LayerSpectrum, got: Tensor, wanted: Tensor, band: SpectralBand) -> float:
    """Share of a band's energy that images do not match, from its definition in numpy."""
    with torch.no_grad(), FeatureTap(teacher.network, [spectrum.layer]) as tap:
        features = []
        for images in (got, wanted):
            teacher.network(images)
            features.append(tap.features()[0].double().numpy())
    p = (spectrum.basis(band) @ spectrum.basis(band).T).numpy()
    distance = np.einsum("cd,ndhw->nchw", p, features[0] - features[1])
    energy = np.einsum("cd,ndhw->nchw", p, features[1] - spectrum.mean.numpy()[:, None, None])
    return float(np.mean((distance**2).sum(axis=(1, 2, 3)) / (energy**2).sum(axis=(1, 2, 3))))


class TestPictures:
    def test_the_layer_of_the_pixels_is_left_out(
        self, spectra: list[LayerSpectrum], tiny_statistics: Statistics
    ) -> None:
        assert [one.layer for one in spectra] == list(tiny_statistics.layers[1:])

    def test_each_band_is_held_best_by_its_own_picture(
        self,
        pictures: dict[SpectralBand, BandImages],
        spectra: list[LayerSpectrum],
        tiny_teacher: Teacher,
        originals: Tensor,
    ) -> None:
        normalised = {band: tiny_teacher.spec.normalise(one.images) for band, one in pictures.items()}
        assert normalised.keys() == {"low", "high"}
        for band, other in (("low", "high"), ("high", "low")):
            own, cross = (
                unmatched(tiny_teacher, spectra[0], normalised[which], originals, band) for which in (band, other)
            )
            assert own < 0.8 * cross
            assert pictures[band].unmatched == {spectra[0].layer: pytest.approx(own, rel=1e-3)}

    @pytest.mark.parametrize("band", PICTURED_BANDS)
    def test_the_objective_falls(
        self,
        band: SpectralBand,
        pictures: dict[SpectralBand, BandImages],
        tiny_teacher: Teacher,
        spectra: list[LayerSpectrum],
        originals: Tensor,
    ) -> None:
        start = band_images(tiny_teacher, spectra, originals, band, tiny_teacher.spec, iterations=0)
        assert start is not None
        layer = spectra[0].layer
        assert pictures[band].unmatched[layer] < 0.5 * start.unmatched[layer]

    def test_pixels_are_those_of_images(
        self, pictures: dict[SpectralBand, BandImages], folder_data: ImageFolderData
    ) -> None:
        for one in pictures.values():
            assert one.images.dtype == torch.uint8
            assert tuple(one.images.shape) == (3, *folder_data.spec.image_shape)

    def test_the_same_at_each_call(
        self, tiny_teacher: Teacher, spectra: list[LayerSpectrum], originals: Tensor
    ) -> None:
        first, second = (
            band_images(tiny_teacher, spectra, originals, "high", tiny_teacher.spec, iterations=5) for _ in range(2)
        )
        assert first is not None
        assert second is not None
        assert torch.equal(first.images, second.images)

    def test_even_images_do_not_divide_by_zero(self, tiny_teacher: Teacher, spectra: list[LayerSpectrum]) -> None:
        even = torch.zeros(1, *tiny_teacher.spec.image_shape)
        made = band_images(tiny_teacher, spectra, even, "low", tiny_teacher.spec, iterations=2)
        assert made is not None
        assert all(np.isfinite(value) for value in made.unmatched.values())

    def test_no_direction_no_picture(
        self, tiny_teacher: Teacher, spectra: list[LayerSpectrum], originals: Tensor
    ) -> None:
        flat = [replace(one, eigenvalues=torch.ones_like(one.eigenvalues)) for one in spectra]  # the last holds 1/8
        assert band_images(tiny_teacher, flat, originals, "high", tiny_teacher.spec) is None
        assert band_images(tiny_teacher, [], originals, "low", tiny_teacher.spec) is None

    def test_the_teacher_is_left_as_it_was(self, tiny_teacher: Teacher, pictures: object) -> None:
        assert not tiny_teacher.network.training
        assert all(not weight.requires_grad and weight.grad is None for weight in tiny_teacher.network.parameters())

    def test_first_image_of_each_class(self, folder_data: ImageFolderData) -> None:
        images = folder_data.train.read(range(5))
        distilled = DistilledSet(images, torch.tensor([2, 0, 2, 0, 0]), folder_data.spec, {})
        assert first_of_each_class(distilled) == [1, 0]
        assert first_of_each_class(distilled, most=1) == [1]


class TestDrawing:
    def test_tiles_are_enlarged_pixels(
        self, pictures: dict[SpectralBand, BandImages], folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        original = folder_data.train.read([0, 10, 20])
        path = tmp_path / "bands.png"
        draw_band_pictures(path, folder_data.spec, [0, 1, 2], original, list(pictures.values()))
        with Image.open(path) as file:
            drawn = np.asarray(file.convert("RGB"))
        assert drawn.shape[0] > 3 * TILE
        assert drawn.shape[1] > 3 * TILE
        tile = original[2].permute(1, 2, 0).numpy().repeat(TILE // 12, 0).repeat(TILE // 12, 1)
        below = drawn.shape[0] - 3 * (TILE + 4)
        np.testing.assert_array_equal(drawn[below : below + TILE, -TILE - 4 : -4], tile)

    def test_grayscale_and_long_names(self, tmp_path: Path) -> None:
        spec = DatasetSpec("grey", ("a name that is far too long for its column", "b"), 1, 8, (0.5,), (0.5,))
        images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        draw_band_pictures(tmp_path / "bands.png", spec, [0, 1], images, [BandImages("low", images, {"conv": 0.5})])
        with Image.open(tmp_path / "bands.png") as file:
            assert file.mode == "RGB"
            assert file.size[0] < 500
