"""Dataset distillation by spectral filtering, as PyTorch Lightning experiments.

Importing the package loads nothing heavy: take what is needed from its modules, for example
``from unidd_pl.distilled import DistilledSet`` to read a distilled set with plain PyTorch.
"""

__version__ = "0.1.0"
