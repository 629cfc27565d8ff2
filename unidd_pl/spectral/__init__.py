"""The mathematics of UniDD in pure torch: moments, filters, methods, the matching loss and curricula."""

from unidd_pl.spectral.covariance import ANY, Passing
from unidd_pl.spectral.curricula import (
    ConstantCurriculum,
    CosineCurriculum,
    Curriculum,
    FactorCurriculum,
    GeometricCurriculum,
    LinearCurriculum,
    QuantileCurriculum,
    ReversedCurriculum,
    ShuffledCurriculum,
)
from unidd_pl.spectral.factored import AnyMoments, FactoredMoments, dense
from unidd_pl.spectral.filters import (
    Identity,
    Landweber,
    LandweberResidual,
    Linear,
    Resolvent,
    SpectralFilter,
    reading_is_free,
)
from unidd_pl.spectral.losses import filtered, largest_eigenvalues, least_norms, term_distances
from unidd_pl.spectral.matching import MatchingLoss
from unidd_pl.spectral.methods import (
    CFM,
    DC,
    DM,
    HFM,
    LFM,
    METHODS,
    MTT,
    Band,
    FrePo,
    Layers,
    Method,
    Operand,
    SRe2L,
    Term,
)
from unidd_pl.spectral.moments import SIGNALS, Moments, Signal
from unidd_pl.spectral.observed import Observed, batch_moments, moments_of, observe
from unidd_pl.spectral.running import RunningMode, RunningMoments
from unidd_pl.spectral.stacked import StackedMoments

__all__ = [
    "ANY",
    "CFM",
    "DC",
    "DM",
    "HFM",
    "LFM",
    "METHODS",
    "MTT",
    "SIGNALS",
    "AnyMoments",
    "Band",
    "ConstantCurriculum",
    "CosineCurriculum",
    "Curriculum",
    "FactorCurriculum",
    "FactoredMoments",
    "FrePo",
    "GeometricCurriculum",
    "Identity",
    "Landweber",
    "LandweberResidual",
    "Layers",
    "Linear",
    "LinearCurriculum",
    "MatchingLoss",
    "Method",
    "Moments",
    "Observed",
    "Operand",
    "Passing",
    "QuantileCurriculum",
    "Resolvent",
    "ReversedCurriculum",
    "RunningMode",
    "RunningMoments",
    "SRe2L",
    "ShuffledCurriculum",
    "Signal",
    "SpectralFilter",
    "StackedMoments",
    "Term",
    "batch_moments",
    "dense",
    "filtered",
    "largest_eigenvalues",
    "least_norms",
    "moments_of",
    "observe",
    "reading_is_free",
    "term_distances",
]
