"""Frequency bands: the eigen-directions of a layer's real FFC, and what Φ and a synthetic set hold in each band.

Legend: c channels, k columns of Φ, m directions of a band; Ψ = U diag(λ) Uᵀ the real FFC (c, c), P_b the projector
on the directions of the band b. Large λ is low frequency.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from unidd_pl.spectral import Moments

SpectralBand = Literal["low", "middle", "high", "dead"]
BANDS: tuple[SpectralBand, ...] = get_args(SpectralBand)
LIVING_BANDS = BANDS[:-1]

# Shares of the trace, not numbers of directions: features of 3 and of 512 channels are cut alike. 90 % and 99 % are
# the usual cuts of a principal component analysis, for "the bulk" and "all but noise".
LOW_SHARE = 0.90  # of the trace of Ψ, held by the low band
HIGH_SHARE = 0.01  # of the trace of Ψ, held by the high band at most
DEAD_SHARE = 1e-6  # of λ_max; below it an eigenvalue is a dead channel's zero up to rounding

# The pixels of the first layer are normalised, so that their Φ of the signal "mean" is zero but for the digits of the
# constants, and a share of it would be a share of rounding: 2e-7 of the trace on CIFAR-10, about 1 in hidden layers.
NO_SIGNAL = 1e-4  # mean square of the class means as a share of the trace of Ψ
_ROUNDING = 1e-12  # of the squared norm of Φ; a smaller energy of a band is float64's rounding

BAND_MEANING: dict[SpectralBand, str] = {
    "low": f"the directions of largest λ that hold the first {LOW_SHARE:.0%} of the trace of Ψ",
    "middle": "the directions between low and high",
    "high": f"the directions of smallest λ that hold the last {HIGH_SHARE:.0%} of the trace of Ψ, dead ones apart",
    "dead": f"the directions with λ ≤ {DEAD_SHARE:g} λ_max",
}


@dataclass(frozen=True, eq=False)  # == of tensors is elementwise
class LayerMatch:
    """How far a synthetic set holds what the real data hold in one layer.

    Args:
        variances: (c,) uᵢᵀΨ_s uᵢ, the synthetic variance along each real direction.
        variance_ratio: Synthetic over real variance of each band, tr(P_b Ψ_s)/tr(P_b Ψ); 1 is a match. None for a
            band without directions and for dead ones.
        flc_matched: 1 − ‖P_b(Φ−Φ_s)‖²/‖P_b Φ‖² of each band. 1 is a match, 0 is what Φ_s = 0 would reach, below
            0 is farther away than that. None where the real Φ has no energy in the band.
    """

    variances: Tensor
    variance_ratio: dict[SpectralBand, float | None]
    flc_matched: dict[SpectralBand, float | None]


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """The spectrum of one layer's real FFC, cut into bands.

    Args:
        layer: Name of the layer.
        eigenvalues: (c,) λ ≥ 0, descending, float64.
        directions: (c, c) U, a column for each eigenvalue, float64.
        mean: (c,) channel means μ, float64.
        flc: (c, k) Φ, uncentred, float64.
    """

    layer: str
    eigenvalues: Tensor
    directions: Tensor
    mean: Tensor
    flc: Tensor

    @classmethod
    def of(cls, layer: str, moments: Moments) -> LayerSpectrum:
        """Decompose the real moments of a layer; no gradient flows."""
        real = moments.detach().to(dtype=torch.float64, device="cpu")
        eigenvalues, directions = torch.linalg.eigh(real.ffc)
        return cls(layer, eigenvalues.flip(0).clamp_min(0), directions.flip(1), real.mean, real.flc)

    @property
    def channels(self) -> int:
        """Number of channels c, and of directions."""
        return len(self.eigenvalues)

    @property
    def alive(self) -> Tensor:
        """(m,) the eigenvalues that are not dead, descending."""
        return self.eigenvalues[~self.members("dead")]

    @cached_property
    def _band_of(self) -> Tensor:
        """Position in `BANDS` of each direction, (c,): decided by the share of the trace that lies before it."""
        trace = self.eigenvalues.sum()
        before = (self.eigenvalues.cumsum(0) - self.eigenvalues) / (trace if trace > 0 else 1)
        band_of = (before >= LOW_SHARE).long() + (before >= 1 - HIGH_SHARE).long()
        band_of[self.eigenvalues <= DEAD_SHARE * self.eigenvalues[0]] = BANDS.index("dead")
        return band_of

    def members(self, band: SpectralBand) -> Tensor:
        """Return which directions are in a band, (c,) bool."""
        return self._band_of == BANDS.index(band)

    def basis(self, band: SpectralBand) -> Tensor:
        """Return the directions of a band, (c, m) with orthonormal columns: P_b = basis basisᵀ."""
        return self.directions[:, self.members(band)]

    def count(self, band: SpectralBand) -> int:
        """Return the number of directions in a band."""
        return int(self.members(band).sum())

    def flc_share(self) -> dict[SpectralBand, float | None]:
        """Return ‖P_b Φ‖²/‖Φ‖² of each band; they add to 1. None everywhere where Φ is zero but for rounding."""
        total = self._flc_energy()
        return {band: float(self._energy(self.flc, band) / total) if total > 0 else None for band in BANDS}

    def compare(self, synthetic: Moments) -> LayerMatch:
        """Compare a synthetic set with the real data, band by band.

        Args:
            synthetic: Moments of the same layer and signal.
        """
        moments = synthetic.detach().to(dtype=torch.float64, device="cpu")
        variances = (self.directions * (moments.ffc @ self.directions)).sum(dim=0).clamp_min(0)
        ratio: dict[SpectralBand, float | None] = dict.fromkeys(BANDS)
        matched: dict[SpectralBand, float | None] = dict.fromkeys(BANDS)
        floor = _ROUNDING * self._flc_energy()
        for band in BANDS:
            members = self.members(band)
            if band != "dead" and members.any():
                ratio[band] = float(variances[members].sum() / self.eigenvalues[members].sum())
            energy = self._energy(self.flc, band)
            if energy > floor > 0:
                matched[band] = 1 - float(self._energy(self.flc - moments.flc, band) / energy)
        return LayerMatch(variances, ratio, matched)

    def _energy(self, matrix: Tensor, band: SpectralBand) -> Tensor:
        """Return ‖P_b M‖² of M (c, k), ()."""
        return (self.basis(band).T @ matrix).square().sum()

    def _flc_energy(self) -> Tensor:
        """Return ‖Φ‖², (); zero where that is rounding."""
        energy = self.flc.square().sum()
        # Column k of Φ is a class mean over K: ‖Φ‖² shrinks with K, its product with K does not.
        negligible = energy * self.flc.shape[1] <= NO_SIGNAL * self.eigenvalues.sum()
        return energy.new_zeros(()) if negligible else energy
