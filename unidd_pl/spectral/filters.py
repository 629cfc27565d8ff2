"""Spectral filters f: what a method does to the eigenvalues of the FFC.

Legend: c channels, Ψ = U diag(λ) Uᵀ the FFC (c, c), f(Ψ) = U diag(f(λ)) Uᵀ, g the operand (c, m).
Large λ is low frequency (colour, outline), small λ is high frequency (texture). The filters below also take
several layers at once: Ψ (l, c, c) with β (l, 1, 1) and the largest eigenvalues (l, 1, 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class SpectralFilter(ABC):
    """A function of the eigenvalues of a symmetric positive semi-definite matrix.

    A filter is given in two forms that must agree: `response` for plots and tests, and `matrix` for the
    loss. The matrix form avoids the eigendecomposition, whose gradient is NaN at repeated eigenvalues
    (channels that are dead give repeated zeros).

    Attributes:
        formula: f(λ) as it is written in tables.
        two_sided: Whether f depends on the largest eigenvalue of both sides, so that the real side cannot be
            filtered ahead of the synthetic one.

    References:
        SPEC.md section 2.
    """

    formula: ClassVar[str] = "f(λ)"
    two_sided: ClassVar[bool] = False

    @property
    def uses_beta(self) -> bool:
        """Whether f depends on β."""
        probe = torch.tensor([1.0, 0.5])
        return not torch.equal(self.response(probe, 1.0), self.response(probe, 2.0))

    @abstractmethod
    def response(self, eigenvalues: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return f(λ), elementwise.

        Args:
            eigenvalues: λ ≥ 0, any shape.
            beta: Filter parameter β in eigenvalue units; filters without one ignore it.
            largest: () the largest eigenvalue of both sides, for two-sided filters; None takes that of
                `eigenvalues`.
        """

    @abstractmethod
    def matrix(self, ffc: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return f(Ψ), (c, c), for Ψ (c, c); the gradient flows, but not through `largest`."""

    def apply(self, ffc: Tensor, operand: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return f(Ψ) g, (c, m), for g (c, m); the gradient flows to both."""
        return self.matrix(ffc, beta, largest) @ operand

    def pullback(self, matrix: Tensor, cotangent: Tensor) -> Tensor:
        """Return the gradient with respect to Ψ, up to its antisymmetric part, which Ψ does not feel.

        A filter that has this in closed form gets the fast path of the matching loss; the others are
        differentiated by autograd.

        Args:
            matrix: f(Ψ), (c, c) or (l, c, c).
            cotangent: Gradient with respect to f(Ψ), same shape.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form gradient")

    @property
    def has_pullback(self) -> bool:
        """Whether `pullback` is there and belongs to this class's matrix, not to one that a subclass replaced."""
        depth = {
            name: next(level for level, kind in enumerate(type(self).__mro__) if name in vars(kind))
            for name in ("pullback", "matrix", "apply")
        }
        own = depth["pullback"] <= depth["matrix"] and type(self).pullback is not SpectralFilter.pullback
        return own and (depth["pullback"] <= depth["apply"])


class Identity(SpectralFilter):
    """f(λ) = 1: all frequencies as they are (distribution matching)."""

    formula = "1"

    def response(self, eigenvalues: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return ones."""
        return torch.ones_like(eigenvalues)

    def matrix(self, ffc: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return the identity matrix, shaped as Ψ."""
        return _eye_like(ffc).expand_as(ffc)

    def apply(self, ffc: Tensor, operand: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return the operand itself."""
        return operand

    def pullback(self, matrix: Tensor, cotangent: Tensor) -> Tensor:
        """Return zero: dI = 0."""
        return torch.zeros_like(cotangent)


class Linear(SpectralFilter):
    """f(λ) = λ: a low-pass filter (gradient matching, LFM)."""

    formula = "λ"

    def response(self, eigenvalues: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return λ."""
        return eigenvalues

    def matrix(self, ffc: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return Ψ."""
        return ffc

    def pullback(self, matrix: Tensor, cotangent: Tensor) -> Tensor:
        """Return the cotangent itself: dΨ = dΨ."""
        return cotangent


class Resolvent(SpectralFilter):
    """f(λ) = 1/(λ+β): a high-pass filter (ridge regression, HFM, CFM).

    Flat for β well above the spectrum, Ψ⁻¹ for β well below it.
    """

    formula = "1/(λ+β)"

    def response(self, eigenvalues: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return 1/(λ+β)."""
        return 1 / (eigenvalues + beta)

    def matrix(self, ffc: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return (Ψ+βI)⁻¹.

        Raises:
            torch.linalg.LinAlgError: If Ψ+βI is not positive definite in the working precision; where that would
                make the host wait for a device, the result is NaN instead.
        """
        shifted = ffc.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(beta[..., 0] if isinstance(beta, Tensor) and beta.ndim else beta)
        if reading_is_free(ffc.device):
            return torch.cholesky_inverse(torch.linalg.cholesky(shifted))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        return torch.cholesky_inverse(factor.masked_fill((failed != 0)[..., None, None], torch.nan))

    def pullback(self, matrix: Tensor, cotangent: Tensor) -> Tensor:
        """Return −R G R for R = (Ψ+βI)⁻¹: dR = −R dΨ R."""
        return (matrix @ cotangent @ matrix).neg_()


class _GradientDescent(SpectralFilter):
    """What p steps of gradient descent on ‖XW−Y‖²/2s do, with the step α = a / λ_max.

    λ_max is the larger of the two sides' largest eigenvalues, so that the descent is stable on both and its
    step the same (the real side's alone would let a wider synthetic spectrum diverge).

    Args:
        steps: p, the steps of the descent.
        step_size: a, the step as a share of 1/λ_max; 0 < a < 1.

    Raises:
        ValueError: If either is out of range.
    """

    two_sided = True

    def __init__(self, steps: int = 50, step_size: float = 0.5) -> None:
        name = type(self).__name__
        if steps < 1:
            raise ValueError(f"{name}: got steps {steps}, expected at least 1")
        if not 0 < step_size < 1:
            raise ValueError(f"{name}: got step_size {step_size}, expected 0 < step_size < 1")
        self.steps = steps
        self.step_size = step_size

    def alpha(self, largest: Tensor) -> Tensor:
        """Return the step α, (), for the largest eigenvalue of both sides; a where that is zero."""
        return self.step_size / torch.where(largest > 0, largest, torch.ones_like(largest))

    def _damping(self, ffc: Tensor, largest: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return I − αΨ and α."""
        alpha = self.alpha(largest_eigenvalue(ffc) if largest is None else largest.to(ffc))
        return _eye_like(ffc) - alpha * ffc, alpha


class LandweberResidual(_GradientDescent):
    """f(λ) = (1−αλ)^p: what p steps of gradient descent leave of the initial weights (MTT).

    A high-pass filter: the directions of large λ are learnt, and forgotten, first.
    """

    formula = "(1−αλ)^p"

    def response(self, eigenvalues: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return (1−αλ)^p."""
        alpha = self.alpha(eigenvalues.max() if largest is None else largest)
        return torch.pow(1 - alpha * eigenvalues, self.steps)

    def matrix(self, ffc: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return (I−αΨ)^p by repeated squaring."""
        damping, _ = self._damping(ffc, largest)
        power: Tensor = torch.linalg.matrix_power(damping, self.steps)
        return power


class Landweber(_GradientDescent):
    """f(λ) = h_p(λ) = (1−(1−αλ)^p)/λ: what p steps of gradient descent make of Φ (MTT).

    The filter of Landweber's iteration: 1/λ for the directions that p steps learn, αp for those that they do
    not reach, so much like a resolvent with β = 1/(αp).
    """

    formula = "(1−(1−αλ)^p)/λ"

    def response(self, eigenvalues: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return h_p(λ), with h_p(0) = αp."""
        alpha = self.alpha(eigenvalues.max() if largest is None else largest)
        rate = alpha * eigenvalues
        # 1 − (1−αλ)^p loses its digits where αλ is small, and the form that keeps them has none where αλ ≥ 1.
        careful = -torch.expm1(self.steps * torch.log1p(-rate.clamp(max=0.5)))
        learnt = torch.where(rate < 0.5, careful, 1 - torch.pow(1 - rate, self.steps))
        safe = torch.where(eigenvalues > 0, eigenvalues, torch.ones_like(eigenvalues))
        return torch.where(eigenvalues > 0, learnt / safe, alpha * self.steps)

    def matrix(self, ffc: Tensor, beta: float | Tensor, largest: Tensor | None = None) -> Tensor:
        """Return α Σ_{k<p} (I−αΨ)^k, the geometric sum, doubling its length."""
        damping, alpha = self._damping(ffc, largest)
        identity = _eye_like(ffc)
        # total = Σ_{k<m} Dᵏ and power = Dᵐ, for m the leading bits of p.
        total, power = identity, damping
        for bit in f"{self.steps:b}"[1:]:
            total, power = total + power @ total, power @ power
            if bit == "1":
                total, power = identity + damping @ total, damping @ power
        return alpha * total


def reading_is_free(device: torch.device) -> bool:
    """Return whether a number can be read from a device without waiting for the work queued there."""
    return device.type == "cpu"


def largest_eigenvalue(ffc: Tensor) -> Tensor:
    """Return λ_max(Ψ) ≥ 0 of Ψ (c, c) as a tensor (), without a gradient."""
    largest: Tensor = torch.linalg.eigvalsh(ffc.detach())[-1].clamp_min(0)
    return largest


def _eye_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
