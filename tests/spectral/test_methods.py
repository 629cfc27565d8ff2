import pytest

from unidd_pl.spectral import (
    CFM,
    DC,
    DM,
    HFM,
    LFM,
    METHODS,
    MTT,
    FrePo,
    Identity,
    Landweber,
    LandweberResidual,
    Linear,
    Method,
    Resolvent,
    SRe2L,
    Term,
)

# Rows of the table in SPEC.md section 2.
ROWS = [
    (DM(), "dm", "low", [(Identity, "flc")], False),
    (DC(), "dc", "low", [(Linear, "ffc"), (Identity, "flc")], False),
    (SRe2L(), "sre2l", "low", [(Linear, "ffc"), (Identity, "flc")], False),
    (LFM(), "lfm", "low", [(Linear, "ffc"), (Linear, "flc")], False),
    (MTT(), "mtt", "high", [(LandweberResidual, "ffc"), (Landweber, "flc")], False),
    (FrePo(), "frepo", "high", [(Resolvent, "flc")], False),
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


def test_the_one_list_holds_every_method_in_the_order_of_the_table() -> None:
    assert [type(row[0]) for row in ROWS] == list(METHODS)
    assert len({method().name for method in METHODS}) == len(METHODS)


def test_batchnorm_matching_is_restricted_to_what_batchnorm_knows() -> None:
    assert {method().name for method in METHODS if method().layers == "batchnorm"} == {"sre2l"}
    assert [term.diagonal for term in SRe2L().terms] == [True, False]
    assert {method().name for method in METHODS if method().needs_only_variances} == {"dm", "sre2l"}


def test_only_trajectories_depend_on_both_sides() -> None:
    assert {method().name for method in METHODS if method().two_sided} == {"mtt"}


def test_both_filters_of_mtt_take_the_same_steps() -> None:
    method = MTT(steps=7, step_size=0.3)
    assert [(term.filter.steps, term.filter.step_size) for term in method.terms] == [(7, 0.3)] * 2  # type: ignore[attr-defined]


def test_settings_of_a_filter_are_part_of_its_description() -> None:
    assert MTT(7, 0.3).terms[1].description == "landweber_flc(step_size=0.3, steps=7)"
    assert HFM().terms[0].description == "resolvent_ffc"


def test_an_flc_has_no_diagonal() -> None:
    with pytest.raises(ValueError, match="a term with the operand flc has no diagonal"):
        Term(Identity(), "flc", diagonal=True)


def test_names_of_the_terms() -> None:
    method = Method("mine", "high", [Term(Resolvent(), "flc"), Term(Identity(), "ffc")])
    assert method.term_names == ("resolvent_flc", "identity_ffc")


@pytest.mark.parametrize("method", [row[0] for row in ROWS], ids=lambda m: m.name)
def test_names_of_the_terms_are_distinct(method: Method) -> None:
    assert len(set(method.term_names)) == len(method.terms)


def test_method_without_terms_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"method empty: got no terms, expected at least one"):
        Method("empty", "low", [])
