"""The one list of methods: each is a name, a band and a short list of (filter, operand) terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from unidd_pl.spectral.filters import Linear, Resolvent, SpectralFilter

Operand = Literal["ffc", "flc"]
Band = Literal["low", "high", "low-to-high"]


class Term:
    """One term ‖f(Ψ) g − f(Ψ_s) g_s‖_F of a matching loss.

    Args:
        filter: The spectral filter f.
        operand: ``ffc`` for g = I, ``flc`` for g = Φ.
    """

    def __init__(self, filter: SpectralFilter, operand: Operand) -> None:
        self.filter = filter
        self.operand = operand

    @property
    def name(self) -> str:
        """Name for logs, for example ``resolvent_flc``."""
        return f"{type(self.filter).__name__.lower()}_{self.operand}"


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

    Raises:
        ValueError: If there are no terms.

    References:
        SPEC.md section 2.
    """

    def __init__(
        self, name: str, band: Band, terms: Sequence[Term], reference: str = "", scheduled: bool = False
    ) -> None:
        if not terms:
            raise ValueError(f"method {name}: got no terms, expected at least one (filter, operand)")
        self.name = name
        self.band = band
        self.terms = tuple(terms)
        self.reference = reference
        self.scheduled = scheduled

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms for logs, in order."""
        return tuple(term.name for term in self.terms)


def _both_operands(spectral_filter: SpectralFilter) -> tuple[Term, Term]:
    return Term(spectral_filter, "ffc"), Term(spectral_filter, "flc")


class LFM(Method):
    """Low-Frequency Matching: (λ, ffc), (λ, flc)."""

    def __init__(self) -> None:
        super().__init__("lfm", "low", _both_operands(Linear()), "UniDD, ICLR 2026 (arXiv 2503.01212)")


class HFM(Method):
    """High-Frequency Matching: (1/(λ+β), ffc), (1/(λ+β), flc) with β fixed."""

    def __init__(self) -> None:
        super().__init__("hfm", "high", _both_operands(Resolvent()), "UniDD, ICLR 2026 (arXiv 2503.01212)")


class CFM(Method):
    """Curriculum Frequency Matching: HFM with β lowered from round to round."""

    def __init__(self) -> None:
        super().__init__(
            "cfm",
            "low-to-high",
            _both_operands(Resolvent()),
            "UniDD, ICLR 2026 (arXiv 2503.01212)",
            scheduled=True,
        )
