"""The mathematics of UniDD in pure torch: moments, filters, methods, the matching loss and curricula."""

from unidd_pl.spectral.curricula import (
    ConstantCurriculum,
    CosineCurriculum,
    Curriculum,
    LinearCurriculum,
)
from unidd_pl.spectral.filters import Identity, Linear, Resolvent, SpectralFilter
from unidd_pl.spectral.losses import filtered, least_norms, term_distances
from unidd_pl.spectral.methods import CFM, HFM, LFM, Band, Method, Operand, Term
from unidd_pl.spectral.moments import SIGNALS, Moments, RunningMode, RunningMoments, Signal

__all__ = [
    "CFM",
    "HFM",
    "LFM",
    "SIGNALS",
    "Band",
    "ConstantCurriculum",
    "CosineCurriculum",
    "Curriculum",
    "Identity",
    "Linear",
    "LinearCurriculum",
    "Method",
    "Moments",
    "Operand",
    "Resolvent",
    "RunningMode",
    "RunningMoments",
    "Signal",
    "SpectralFilter",
    "Term",
    "filtered",
    "least_norms",
    "term_distances",
]
