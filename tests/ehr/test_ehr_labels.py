"""Label rules: total over the code books, silent about nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.cohorts import adni, aibl, miriad, nacc, oasis
from medalign3d.ehr.label_rules import LABEL_RULES, LABEL_RULES_VERSION, label_rules_markdown
from medalign3d.ehr.labels import (
    CODE_BOOKS,
    CODED_COLUMNS,
    STABLE_DAYS,
    Label,
    UnknownLabel,
    derived_educ_code,
    label_of,
    mci_course,
    mci_stage,
    native_of_code,
)


@pytest.mark.parametrize(
    ("dataset", "native", "dx3", "dx2"),
    [
        ("ADNI", "CN", "NC", "NonDEM"),
        ("ADNI", "SMC", "NC", "NonDEM"),
        ("ADNI", "NL to MCI", "MCI", "NonDEM"),
        ("ADNI", "MCI to Dementia", "AD_DEM", "DEM"),
        ("ADNI", "Dementia to MCI", "MCI", "NonDEM"),
        ("ADNI", "EMCI", "MCI", "NonDEM"),
        ("ADNI", "DXCHANGE=6", "AD_DEM", "DEM"),
        ("NACC", "IMCI", None, "NonDEM"),
        ("NACC", "MCI", "MCI", "NonDEM"),
        ("NACC", "DEM", "AD_DEM", "DEM"),
        ("NACC", "NACCUDSD=2", None, "NonDEM"),
        ("NACC", "NACCUDSD=3", "MCI", "NonDEM"),
        ("OASIS", "DEM", None, "DEM"),
        ("OASIS", "Non-DEM", None, "NonDEM"),
        ("OASIS", "Converted", None, None),
        ("OASIS", "uncertain dementia", None, None),
        # The group of a person is not the diagnosis of a session, and in OASIS dx2 is the session's CDR alone.
        ("OASIS", "Demented", None, None),
        ("OASIS", "Nondemented", None, None),
        ("OASIS", "MCI", "MCI", None),
        ("AIBL", "AD", "AD_DEM", "DEM"),
        ("AIBL", "DXCURREN=7", None, None),
        ("MIRIAD", "HC", "NC", "NonDEM"),
        ("IXI", None, None, None),
        ("ADNI", float("nan"), None, None),
    ],
)
def test_rules(dataset, native, dx3, dx2):
    assert label_of(dataset, native) == Label(dx3, dx2)


def test_every_label_of_every_code_book_is_decided():
    for dataset, book in CODE_BOOKS.items():
        for native, label in book.items():
            assert label_of(dataset, f" {native.upper()} ") == label
            assert {label.dx3_rule, label.dx2_rule} <= set(LABEL_RULES)
            assert (label.dx3 is None) == (".none." in label.dx3_rule)
            assert (label.dx2 is None) == (".none." in label.dx2_rule)
            if label.dx3 is not None and dataset != "OASIS":
                assert label.dx2 == ("DEM" if label.dx3 == "AD_DEM" else "NonDEM")
    for (dataset, column), codes in CODED_COLUMNS.items():
        for code in codes:
            native = native_of_code(dataset, column, f"{code}.0")
            label_of(dataset, native)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(CODE_BOOKS)), st.text(min_size=1, max_size=12))
def test_unknown_labels_are_never_guessed(dataset, native):
    known = {label.casefold() for label in CODE_BOOKS[dataset]}
    if not native.strip() or native.strip().casefold() in known or "=" in native or " to " in native.casefold():
        return
    with pytest.raises(UnknownLabel):
        label_of(dataset, native)


@pytest.mark.parametrize(
    ("dataset", "native"),
    [("ADNI", "Patient"), ("ADNI", "unsure to AD"), ("ADNI", "MCI to ?"), ("NACC", "AD"), ("NACC", "NACCUDSD=8"),
     ("IXI", "healthy"), ("ELSE", "NC"), ("ADNI", "GROUP=1")],
)  # fmt: skip
def test_unknown(dataset, native):
    with pytest.raises(UnknownLabel, match=r"unknown diagnosis|no code book"):
        label_of(dataset, native)


def test_oasis_follows_the_cdr_of_the_session():
    assert label_of("OASIS", "Converted", cdr_global=0).dx2 == "NonDEM"
    assert label_of("OASIS", "Nondemented", cdr_global=0.5).dx2 == "DEM"
    assert label_of("OASIS", None, cdr_global="0.5") == Label(None, "DEM")
    assert label_of("AIBL", "MCI", cdr_global=0) == Label("MCI", "NonDEM")


def test_strict_nacc_policy():
    strict = {"nacc_dementia_policy": "ad_only"}
    assert label_of("NACC", "DEM", dementia_etiology="AD", **strict) == Label("AD_DEM", "DEM")
    assert label_of("NACC", "DEM", dementia_etiology="other", **strict) == Label(None, "DEM")
    assert label_of("NACC", "DEM", dementia_etiology="other") == Label("AD_DEM", "DEM")


@pytest.mark.parametrize(
    ("level", "first_phase", "left", "stage", "rule"),
    [
        ("EMCI", False, False, "EMCI", "enrolment"),
        ("LMCI", True, False, "LMCI", "enrolment"),
        ("LMCI", False, True, None, "none.left_mci"),
        ("MCI", True, False, "LMCI", "adni1"),
        ("MCI", True, True, None, "none.left_mci"),
        ("MCI", False, False, None, "none.no_split"),
        ("CN", True, False, None, "none.no_split"),
        (None, True, False, None, "none.no_split"),
    ],
)
def test_stage_is_that_of_enrolment_while_still_mci(level, first_phase, left, stage, rule):
    result = mci_stage(level, enrolled_in_adni1=first_phase, left_mci=left)
    assert (result.stage, result.rule) == (stage, f"mci_stage.{rule}")
    assert result.rule in LABEL_RULES


@pytest.mark.parametrize(
    ("later", "course", "reason"),
    [
        ([(900, "AD_DEM")], "pMCI", None),
        ([(STABLE_DAYS, "AD_DEM")], "pMCI", None),
        ([(STABLE_DAYS + 1, "AD_DEM")], None, "late_converter"),
        ([(300, "AD_DEM"), (600, "MCI")], "pMCI", None),
        ([(300, "AD_DEM"), (600, "MCI"), (900, "MCI")], None, "unstable_conversion"),
        ([(300, "NC"), (1200, "MCI")], None, "reverted_to_cn"),
        ([(1095, "MCI")], None, "censored_lt_36m"),
        ([(1096, "MCI")], "sMCI", None),
        ([], None, "censored_lt_36m"),
        ([(-10, "AD_DEM"), (1200, None)], None, "censored_lt_36m"),
        # A visit on the day of the matched one is not later; impaired but not MCI is a diagnosis without dementia.
        ([(0, "AD_DEM"), (1096, "MCI")], "sMCI", None),
        ([(1200, "other")], "sMCI", None),
        ([(300, "AD_DEM"), (600, "MCI"), (900, "other")], None, "unstable_conversion"),
        ([(300, "AD_DEM"), (600, "NC")], "pMCI", None),
        ([(300, "AD_DEM"), (600, "MCI"), (900, "AD_DEM"), (1200, "MCI")], "pMCI", None),
        ([(300, "NC"), (600, "AD_DEM")], "pMCI", None),
        ([(300, "AD_DEM"), (600, "MCI"), (900, "MCI"), (1300, "AD_DEM")], "pMCI", None),
        ([(300, "NC"), (STABLE_DAYS + 1, "AD_DEM")], None, "late_converter"),
    ],
)
def test_course(later, course, reason):
    result = mci_course(0, later)
    assert (result.course, result.reason) == (course, reason)
    assert result.rule in LABEL_RULES
    assert (".none." in result.rule) == (course is None)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2000, 4000), st.sampled_from(["NC", "MCI", "AD_DEM", None])), max_size=6),
    st.integers(-500, 500),
)
def test_course_is_decided_or_explained_and_shift_invariant(visits, shift):
    result = mci_course(0, iter(visits))
    assert (result.course is None) != (result.reason is None)
    days = [day for day, dx3 in visits if day > 0 and dx3 is not None]
    dementia = [day for day, dx3 in visits if day > 0 and dx3 == "AD_DEM"]
    assert result.followup_days == max(days, default=0)
    assert result.days_to_dementia == min(dementia, default=None)
    assert result.decided_by is None or result.decided_by in days
    assert result == mci_course(shift, [(day + shift, dx3) for day, dx3 in visits])


def test_education_code():
    assert [derived_educ_code(years) for years in (0, 11, 12, 13, 15, 16, 17, 30, None)] == [
        1,
        1,
        2,
        3,
        3,
        4,
        5,
        5,
        None,
    ]


@pytest.mark.parametrize(
    ("dataset", "column", "meanings"),
    [
        ("ADNI", "DIAGNOSIS", adni.DIAGNOSIS),
        ("ADNI", "DXCURREN", adni.DIAGNOSIS),
        ("ADNI", "DXCHANGE", adni.DXCHANGE),
        ("NACC", "NACCUDSD", nacc.SYNDROME),
        ("AIBL", "DXCURREN", aibl.DIAGNOSIS),
    ],
)
def test_readers_and_labels_share_their_code_books(dataset, column, meanings):
    book = {code: native for code, native in CODED_COLUMNS[(dataset, column)].items() if native is not None}
    assert book == {int(code): native for code, native in meanings.items()}


def test_every_label_that_a_reader_gives_is_in_the_code_book():
    given_by_readers = {
        "ADNI": {*adni.DX_WORDS.values(), *adni.DX_BASELINE.values()},
        "NACC": set(nacc.SYNDROME.values()),
        "AIBL": set(aibl.DIAGNOSIS.values()),
        "MIRIAD": set(miriad.GROUP_WORDS.values()),
        "OASIS": {*oasis.DX1.values(), "NC", "MCI", "AD_DEM", "DEM", "Non-DEM"},
    }
    for dataset, names in given_by_readers.items():
        for native in names:
            label_of(dataset, native)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(CODED_COLUMNS)),
    st.integers(-10, 120) | st.sampled_from(["-4", "-4.0", "1.0", " 2 ", ".", "", "x", "1e309", None, float("nan")]),
)
def test_codes_are_a_label_or_none_or_unknown(book, code):
    dataset, column = book
    try:
        native = native_of_code(dataset, column, code)
    except UnknownLabel:
        assert str(code).strip() not in {str(known) for known in CODED_COLUMNS[book]}
        return
    label = label_of(dataset, native)
    if native is None:
        # A sentinel or an empty cell never becomes a class.
        assert (label.dx3, label.dx2) == (None, None)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["ADNI", "NACC", "AIBL", "MIRIAD"]),
    st.sampled_from([None, 0, 0.5, 1, 2, 3, "0.5", "", float("nan"), float("inf")]),
    st.data(),
)
def test_the_cdr_decides_nothing_outside_oasis(dataset, cdr, data):
    native = data.draw(st.none() | st.sampled_from(sorted(CODE_BOOKS[dataset])))
    plain, rated = label_of(dataset, native), label_of(dataset, native, cdr_global=cdr)
    assert rated == plain
    assert (rated.dx3_rule, rated.dx2_rule) == (plain.dx3_rule, plain.dx2_rule)
    if native is None:
        assert plain == Label(None, None)


def test_rule_ids_are_stable_and_documented():
    assert LABEL_RULES_VERSION == "1"
    text = label_rules_markdown()
    for rule_id, rule in LABEL_RULES.items():
        assert f"| `{rule_id}` | {rule.result or 'none'} | {rule.description} |" in text
        assert (rule.result == "") == (".none." in rule_id)
    # An id that stands in somebody's tables is never dropped silently.
    assert {
        "dx3.adni.nc", "dx3.adni.mci", "dx3.adni.dementia", "dx3.nacc.nc", "dx3.nacc.mci",
        "dx3.nacc.dementia_any_cause", "dx3.nacc.dementia_of_alzheimer", "dx3.oasis3.nc", "dx3.oasis3.mci",
        "dx3.oasis3.dementia", "dx3.aibl.nc", "dx3.aibl.mci", "dx3.aibl.ad", "dx3.miriad.hc", "dx3.miriad.ad",
        "dx2.from_dx3", "dx2.nacc.imci", "dx2.oasis.cdr_0", "dx2.oasis.cdr_half_or_more", "mci_stage.enrolment",
        "mci_stage.adni1", "mci_course.progressive", "mci_course.stable", "educ_code.from_years",
    } <= set(LABEL_RULES)  # fmt: skip
