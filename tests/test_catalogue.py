"""`unidd methods`, the tables, and the documents that show the list."""

from __future__ import annotations

from pathlib import Path

import pytest

from unidd_pl.catalogue import method_table
from unidd_pl.cli import main
from unidd_pl.spectral import METHODS
from unidd_pl.tables import markdown_table, text_table

DOCS = Path(__file__).parent.parent / "docs"


def test_text_table_is_aligned() -> None:
    assert text_table(["a", "long head"], [["wide cell", "x"], ["y", "z"]]).splitlines() == [
        "a          long head",
        "─────────  ─────────",
        "wide cell  x        ",
        "y          z        ",
    ]


def test_markdown_table_escapes_pipes() -> None:
    assert markdown_table(["a", "b"], [["x|y", "z"]]) == "| a | b |\n| --- | --- |\n| x\\|y | z |"


def test_every_method_has_a_row_with_band_and_reference() -> None:
    lines = method_table().splitlines()[2:]
    assert [line.split()[0] for line in lines] == [kind().name for kind in METHODS]
    for kind, line in zip(METHODS, lines, strict=True):
        assert kind().band in line
        assert kind().reference in line


def test_command_prints_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods"])
    assert capsys.readouterr().out == method_table() + "\n"
    main(["methods", "--markdown"])
    assert capsys.readouterr().out == method_table(markdown=True) + "\n"


def test_the_document_shows_the_list() -> None:
    """Made with `unidd methods --markdown`."""
    assert method_table(markdown=True) in (DOCS / "methods.md").read_text()
