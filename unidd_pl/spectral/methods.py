"""The one list of methods: each is a name, a band and a short list of (filter, operand) terms.

Documentation, MLflow tags and `unidd methods` read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from unidd_pl.spectral.filters import (
    Identity,
    Landweber,
    LandweberResidual,
    Linear,
    Resolvent,
    SpectralFilter,
)

Operand = Literal["ffc", "flc"]
Band = Literal["low", "high", "low-to-high"]
Layers = Literal["conv", "batchnorm"]


class Term:
    """One term ‖f(Ψ) g − f(Ψ_s) g_s‖_F of a matching loss.

    Args:
        filter: The spectral filter f.
        operand: ``ffc`` for g = I, ``flc`` for g = Φ.
        diagonal: Compare the diagonal of f(Ψ) only, as methods do that know no more than variances.

    Raises:
        ValueError: If an FLC is to be restricted to its diagonal.
    """

    def __init__(self, filter: SpectralFilter, operand: Operand, diagonal: bool = False) -> None:
        if diagonal and operand != "ffc":
            raise ValueError(f"a term with the operand {operand} has no diagonal: diagonal goes with ffc")
        self.filter = filter
        self.operand = operand
        self.diagonal = diagonal

    @property
    def name(self) -> str:
        """Name for logs, for example ``resolvent_flc``."""
        return f"{type(self.filter).__name__.lower()}_{self.operand}{'_diagonal' if self.diagonal else ''}"

    @property
    def formula(self) -> str:
        """The term as tables write it, for example ``(1/(λ+β), flc)``."""
        return f"({self.filter.formula}, {self.operand}{' diagonal' if self.diagonal else ''})"

    @property
    def description(self) -> str:
        """Name with the filter's settings, for example ``landweber_flc(step_size=0.5, steps=50)``."""
        settings = ", ".join(f"{name}={value}" for name, value in sorted(vars(self.filter).items()))
        return f"{self.name}({settings})" if settings else self.name


class Method:
    """A matching objective: the sum over layers of its terms.

    The named methods below are subclasses; a new one needs only terms, in Python or in YAML::

        method:
          class_path: unidd_pl.spectral.Method
          init_args:
            name: mine
            band: high
            terms:
            - class_path: unidd_pl.spectral.Term
              init_args: {filter: Resolvent, operand: flc}

    Args:
        name: Short name, used in tags and tables.
        band: Frequencies that the filters keep.
        terms: The (filter, operand) terms.
        reference: Where the method comes from.
        scheduled: Whether the method is only itself with a curriculum on β.
        layers: Layers whose inputs are matched: convolutions or BatchNorms.

    Raises:
        ValueError: If there are no terms.

    References:
        SPEC.md section 2.
    """

    def __init__(
        self,
        name: str,
        band: Band,
        terms: Sequence[Term],
        reference: str = "",
        scheduled: bool = False,
        layers: Layers = "conv",
    ) -> None:
        if not terms:
            raise ValueError(f"method {name}: got no terms, expected at least one (filter, operand)")
        self.name = name
        self.band = band
        self.terms = tuple(terms)
        self.reference = reference
        self.scheduled = scheduled
        self.layers = layers

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms for logs, in order."""
        return tuple(term.name for term in self.terms)

    @property
    def two_sided(self) -> bool:
        """Whether a filter depends on both sides, so that the real one cannot be filtered once for all."""
        return any(term.filter.two_sided for term in self.terms)

    @property
    def needs_only_variances(self) -> bool:
        """Whether the FFC enters by its diagonal alone, which BatchNorm's running statistics hold."""
        return all(
            term.diagonal and isinstance(term.filter, Linear)
            if term.operand == "ffc"
            else isinstance(term.filter, Identity)
            for term in self.terms
        )


def _both_operands(spectral_filter: SpectralFilter) -> tuple[Term, Term]:
    return Term(spectral_filter, "ffc"), Term(spectral_filter, "flc")


_UNIDD = "UniDD, Bo et al., ICLR 2026 (arXiv 2503.01212)"


class DM(Method):
    """Distribution matching: (1, flc)."""

    def __init__(self) -> None:
        super().__init__("dm", "low", (Term(Identity(), "flc"),), "DM, Zhao and Bilen, WACV 2023 (arXiv 2110.04181)")


class DC(Method):
    """Gradient matching: (λ, ffc), (1, flc)."""

    def __init__(self) -> None:
        terms = Term(Linear(), "ffc"), Term(Identity(), "flc")
        super().__init__("dc", "low", terms, "DC, Zhao et al., ICLR 2021 (arXiv 2006.05929)")


class SRe2L(Method):
    """BatchNorm matching: (λ, ffc) on the diagonal, (1, flc), at the inputs of BatchNorms.

    With the signal ``mean`` the real side is BatchNorm's running statistics, as in SRe2L; BatchNorm knows no
    classes, so for the other signals the moments of its inputs are gathered.
    """

    def __init__(self) -> None:
        terms = Term(Linear(), "ffc", diagonal=True), Term(Identity(), "flc")
        reference = "SRe2L, Yin et al., NeurIPS 2023 (arXiv 2306.13092)"
        super().__init__("sre2l", "low", terms, reference, layers="batchnorm")


class LFM(Method):
    """Low-Frequency Matching: (λ, ffc), (λ, flc)."""

    def __init__(self) -> None:
        super().__init__("lfm", "low", _both_operands(Linear()), _UNIDD)


class MTT(Method):
    """Trajectory matching: ((1−αλ)^p, ffc), (h_p(λ), flc).

    Args:
        steps: p, gradient steps on the real and on the synthetic data.
        step_size: a, the step α as a share of 1/λ_max; 0 < a < 1.
    """

    def __init__(self, steps: int = 50, step_size: float = 0.5) -> None:
        terms = Term(LandweberResidual(steps, step_size), "ffc"), Term(Landweber(steps, step_size), "flc")
        super().__init__("mtt", "high", terms, "MTT, Cazenavette et al., CVPR 2022 (arXiv 2203.11932)")
        self.steps = steps
        self.step_size = step_size


class FrePo(Method):
    """Ridge regression: (1/(λ+β), flc)."""

    def __init__(self) -> None:
        reference = "FrePo, Zhou et al., NeurIPS 2022 (arXiv 2206.00719)"
        super().__init__("frepo", "high", (Term(Resolvent(), "flc"),), reference)


class HFM(Method):
    """High-Frequency Matching: (1/(λ+β), ffc), (1/(λ+β), flc) with β fixed."""

    def __init__(self) -> None:
        super().__init__("hfm", "high", _both_operands(Resolvent()), _UNIDD)


class CFM(Method):
    """Curriculum Frequency Matching: HFM with β lowered from round to round."""

    def __init__(self) -> None:
        super().__init__("cfm", "low-to-high", _both_operands(Resolvent()), _UNIDD, scheduled=True)


METHODS: tuple[type[Method], ...] = (DM, DC, SRe2L, LFM, MTT, FrePo, HFM, CFM)
"""The named methods, in the order of SPEC.md section 2; each is built without arguments."""
