import pytest

from unidd_pl.spectral import CFM, HFM, LFM, Identity, Linear, Method, Resolvent, Term

# Rows of the table in SPEC.md section 2.
ROWS = [
    (LFM(), "lfm", "low", [(Linear, "ffc"), (Linear, "flc")], False),
    (HFM(), "hfm", "high", [(Resolvent, "ffc"), (Resolvent, "flc")], False),
    (CFM(), "cfm", "low-to-high", [(Resolvent, "ffc"), (Resolvent, "flc")], True),
]


@pytest.mark.parametrize(("method", "name", "band", "terms", "scheduled"), ROWS, ids=[row[1] for row in ROWS])
def test_row_of_the_table(method: Method, name: str, band: str, terms: list[tuple[type, str]], scheduled: bool) -> None:
    assert method.name == name
    assert method.band == band
    assert [(type(term.filter), term.operand) for term in method.terms] == terms
    assert method.scheduled is scheduled
    assert method.reference


def test_every_method_is_in_the_table() -> None:
    shipped = {kind for kind in Method.__subclasses__() if kind.__module__.startswith("unidd_pl.")}
    tested = {type(row[0]) for row in ROWS}
    assert tested == shipped, "a new method needs its row of SPEC.md section 2 here"


def test_names_of_the_terms() -> None:
    method = Method("mine", "high", [Term(Resolvent(), "flc"), Term(Identity(), "ffc")])
    assert method.term_names == ("resolvent_flc", "identity_ffc")


@pytest.mark.parametrize("method", [row[0] for row in ROWS], ids=lambda m: m.name)
def test_names_of_the_terms_are_distinct(method: Method) -> None:
    assert len(set(method.term_names)) == len(method.terms)


def test_method_without_terms_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"method empty: got no terms, expected at least one"):
        Method("empty", "low", [])
