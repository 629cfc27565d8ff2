"""Spectral filters f: what a method does to the eigenvalues of the FFC.

Legend: c channels, Ψ = U diag(λ) Uᵀ the FFC (c, c), f(Ψ) = U diag(f(λ)) Uᵀ, g the operand (c, m).
Large λ is low frequency (colour, outline), small λ is high frequency (texture).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SpectralFilter(ABC):
    """A function of the eigenvalues of a symmetric positive semi-definite matrix.

    A filter is given in two forms that must agree: `response` for plots and tests, and `matrix` for the
    loss. The matrix form avoids the eigendecomposition, whose gradient is NaN at repeated eigenvalues
    (channels that are dead give repeated zeros).

    References:
        SPEC.md section 2.
    """

    @abstractmethod
    def response(self, eigenvalues: Tensor, beta: float) -> Tensor:
        """Return f(λ), elementwise.

        Args:
            eigenvalues: λ ≥ 0, any shape.
            beta: Filter parameter β in eigenvalue units; filters without one ignore it.
        """

    @abstractmethod
    def matrix(self, ffc: Tensor, beta: float) -> Tensor:
        """Return f(Ψ), (c, c), for Ψ (c, c); the gradient flows."""

    def apply(self, ffc: Tensor, operand: Tensor, beta: float) -> Tensor:
        """Return f(Ψ) g, (c, m), for g (c, m); the gradient flows to both."""
        return self.matrix(ffc, beta) @ operand


class Identity(SpectralFilter):
    """f(λ) = 1: all frequencies as they are (distribution matching)."""

    def response(self, eigenvalues: Tensor, beta: float) -> Tensor:
        """Return ones."""
        return torch.ones_like(eigenvalues)

    def matrix(self, ffc: Tensor, beta: float) -> Tensor:
        """Return the identity matrix (c, c)."""
        return torch.eye(ffc.shape[-1], dtype=ffc.dtype, device=ffc.device)

    def apply(self, ffc: Tensor, operand: Tensor, beta: float) -> Tensor:
        """Return the operand itself."""
        return operand


class Linear(SpectralFilter):
    """f(λ) = λ: a low-pass filter (gradient matching, LFM)."""

    def response(self, eigenvalues: Tensor, beta: float) -> Tensor:
        """Return λ."""
        return eigenvalues

    def matrix(self, ffc: Tensor, beta: float) -> Tensor:
        """Return Ψ."""
        return ffc


class Resolvent(SpectralFilter):
    """f(λ) = 1/(λ+β): a high-pass filter (ridge regression, HFM, CFM).

    Flat for β well above the spectrum, Ψ⁻¹ for β well below it.
    """

    def response(self, eigenvalues: Tensor, beta: float) -> Tensor:
        """Return 1/(λ+β)."""
        return 1 / (eigenvalues + beta)

    def matrix(self, ffc: Tensor, beta: float) -> Tensor:
        """Return (Ψ+βI)⁻¹.

        Raises:
            torch.linalg.LinAlgError: If Ψ+βI is not positive definite in the working precision.
        """
        shift = beta * torch.eye(ffc.shape[-1], dtype=ffc.dtype, device=ffc.device)
        return torch.cholesky_inverse(torch.linalg.cholesky(ffc + shift))
