"""`unidd methods`: the one list of methods as a table, on the terminal or in Markdown for the documentation."""

from __future__ import annotations

from unidd_pl.spectral import METHODS, Method
from unidd_pl.tables import markdown_table, text_table

_HEAD = ("method", "band", "terms (filter f, operand)", "β", "inputs of", "reference")


def method_table(*, markdown: bool = False) -> str:
    """Return every named method with its band, terms and reference.

    Args:
        markdown: As a Markdown table instead of aligned text.
    """
    rows = [_row(method()) for method in METHODS]  # type: ignore[call-arg]  # the named methods need no arguments
    return (markdown_table if markdown else text_table)(_HEAD, rows)


def _row(method: Method) -> tuple[str, ...]:
    uses_beta = any(term.filter.uses_beta for term in method.terms)
    beta = ("curriculum" if method.scheduled else "fixed") if uses_beta else "–"
    terms = ", ".join(term.formula for term in method.terms)
    layers = {"conv": "convolutions", "batchnorm": "BatchNorms"}[method.layers]
    return (method.name, method.band, terms, beta, layers, method.reference)
