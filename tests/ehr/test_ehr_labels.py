"""Label rules: total over the code books, silent about nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
            if label.dx3 is not None:
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


def test_stage_never_from_other_labels():
    assert mci_stage("MCI", "LMCI") == "LMCI"
    assert mci_stage("MCI", "MCI", "ADNI3") is None
    assert mci_stage("AD_DEM", "LMCI") is None


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
    ],
)
def test_course(later, course, reason):
    result = mci_course(0, later)
    assert (result.course, result.reason) == (course, reason)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2000, 4000), st.sampled_from(["NC", "MCI", "AD_DEM", None])), max_size=6),
    st.integers(-500, 500),
)
def test_course_is_decided_or_explained_and_shift_invariant(visits, shift):
    result = mci_course(0, visits)
    assert (result.course is None) != (result.reason is None)
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
