"""The `unidd` command with a distillation in float64, in which the number of processes leaves no trace to be seen.

`unidd fit` itself computes in float32, where Adam amplifies the order of the sums.
"""

from __future__ import annotations

import sys

from unidd_pl.cli import main
from unidd_pl.distillation import DistillationModule
from unidd_pl.real_side import RealSide
from unidd_pl.synthetic import ChunkStore

_prepare = DistillationModule.prepare


def prepare(module: DistillationModule, real: RealSide, store: ChunkStore) -> None:
    """Take up the real side, and widen it."""
    real.teacher.network.double()
    _prepare(module, real, store)
    module.double()


if __name__ == "__main__":
    DistillationModule.prepare = prepare  # type: ignore[method-assign]
    main(sys.argv[1:])
