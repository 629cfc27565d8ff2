"""README and docs: what they point to is there, and nothing is left open in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@every_page
def test_configs_that_are_named_are_shipped(page: Path) -> None:
    named = re.findall(r"configs/[\w/]+\.yaml", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@every_page
def test_commands_that_are_named_are_there(page: Path) -> None:
    from unidd_pl.command_options import COMMANDS

    named = set(re.findall(r"`unidd ([a-z]+)", page.read_text())) | set(
        re.findall(r"^    unidd ([a-z]+)", page.read_text(), re.MULTILINE)
    )
    assert named <= COMMANDS.keys()


@every_page
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert not re.findall(r"^[A-Z_]{6,}$", page.read_text(), re.MULTILINE)
