"""Distilled sets from elsewhere and for elsewhere: each format is read and written in one file.

Whatever the format, what comes out is one `DistilledSet`, so that everything downstream is the same.
"""

from unidd_pl.exchange.description import SetDescription
from unidd_pl.exchange.reading import read_set

__all__ = ["SetDescription", "read_set"]
