"""Every kind of file that a stranger may hand over: how to make one, how to spoil it, what reads it.

A kind more is a `Kind` more in one of the lists.
"""

from __future__ import annotations

from data_files import DATA
from foreign_files import FOREIGN
from own_files import OWN
from record_files import RECORDS

KINDS = [*OWN, *RECORDS, *DATA, *FOREIGN]
