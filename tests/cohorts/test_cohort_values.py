"""Cells, dates, ids: right on the forms that occur, silent on nothing, never an exception."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cohorts.adni import canonical_visit, dx_from_words
from medalign3d.cohorts.aibl import join_torn_cells, visit_code
from medalign3d.cohorts.base import image_id_of, match_visit, native_ids, participant_id_of, session_id_of
from medalign3d.cohorts.ixi import subject_of
from medalign3d.cohorts.nacc import parse_volume
from medalign3d.cohorts.nacc_files import normalize_locator
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.cohorts.values import (
    CDR_GLOBAL,
    CDR_SUM,
    MMSE,
    Quantity,
    parse_code,
    parse_date,
    parse_number,
    parse_sex,
    parse_whole_id,
)

NATIVE_IDS = st.one_of(
    st.builds(lambda site, rid: ("ADNI", f"{site:03d}_S_{rid:04d}"), st.integers(1, 999), st.integers(1, 99999)),
    st.builds(lambda n: ("NACC", f"NACC{n:06d}"), st.integers(0, 999999)),
    st.builds(lambda study, n: ("OASIS", f"OAS{study}_{n:04d}"), st.integers(1, 2), st.integers(1, 9999)),
    st.builds(lambda n: ("OASIS", f"OAS3{n:04d}"), st.integers(1, 9999)),
    st.builds(lambda n: ("AIBL", str(n)), st.integers(1, 9999999)),
    st.builds(lambda n: ("MIRIAD", f"miriad_{n:03d}"), st.integers(0, 999)),
    st.builds(lambda n: ("IXI", f"IXI{n:03d}"), st.integers(0, 999)),
)


@given(NATIVE_IDS)
def test_native_ids_survive_the_way_to_bids_and_back(native: tuple[str, str]) -> None:
    label = participant_id_of(*native)
    assert label.removeprefix("sub-").isalnum()
    assert native_ids(label) == native


@given(NATIVE_IDS, NATIVE_IDS)
def test_different_people_have_different_labels(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (participant_id_of(*one) == participant_id_of(*other)) == (one == other)


def test_image_ids_are_the_first_sixteen_digits_of_sha1() -> None:
    assert image_id_of("OASIS", "OAS1_0001_MR1/x") == image_id_of("OASIS", "OAS1_0001_MR1/x")
    assert len(image_id_of("ADNI", "I1")) == 16
    assert image_id_of("ADNI", "I1") != image_id_of("AIBL", "I1")


@given(st.text(max_size=40))
def test_no_cell_brings_a_parser_down(cell: str) -> None:
    for quantity in (MMSE, CDR_GLOBAL, CDR_SUM, Quantity(0, 1e6)):
        value, reason = parse_number(cell, quantity)
        assert value is None or (reason is None and quantity.low <= value <= quantity.high)
    for parser in (parse_sex, parse_date, dx_from_words):
        value, reason = parser(cell)
        assert value is None or reason is None
    parse_whole_id(cell), subject_of(cell), visit_code(cell), canonical_visit(cell), normalize_locator(cell)
    parse_volume(cell, 1, 2), parse_code(cell, {1.0: "a"})


@given(st.dates(datetime.date(1980, 1, 1), datetime.date(2020, 12, 31)))
def test_dates_of_both_forms(date: datetime.date) -> None:
    assert parse_date(date.isoformat()) == (date, None)
    assert parse_date(f"{date.isoformat()} 00:00:00") == (date, None)
    assert parse_date(f"{date.month}/{date.day}/{date.year}") == (date, None)
    assert parse_date(f"{date.month:02d}/{date.day:02d}/{date.year}") == (date, None)


@pytest.mark.parametrize("cell", ["31/12/2005", "2005-13-01", "2/30/2005", "5/2/05", "May 2005", "1900-01-01", "38472"])
def test_other_dates_are_not_guessed_at(cell: str) -> None:
    assert parse_date(cell) == (None, QuarantineReason.DATE_UNPARSABLE)


@pytest.mark.parametrize("cell", ["", "-4", "-4.0", "-1", "NaN", "N/A", "."])
def test_missing_dates_are_no_issue(cell: str) -> None:
    assert parse_date(cell) == (None, None)


def test_future_dates() -> None:
    assert parse_date("2091-01-01")[1] is QuarantineReason.DATE_IN_FUTURE


@pytest.mark.parametrize("cell", ["-4", "-4.0", " -4 ", "-4.00", "-1"])
def test_sentinels_are_removed_in_every_spelling(cell: str) -> None:
    assert parse_number(cell, MMSE.with_missing(-4, -1)) == (None, None)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("45", QuarantineReason.VALUE_OUT_OF_RANGE),
        ("28.5", QuarantineReason.VALUE_OUT_OF_RANGE),
        ("-9", QuarantineReason.SENTINEL_UNKNOWN),
        ("NO SPECIMEN", QuarantineReason.SENTINEL_UNKNOWN),
    ],
)
def test_illegal_values_are_emptied_with_a_reason(cell: str, reason: QuarantineReason) -> None:
    assert parse_number(cell, MMSE.with_missing(-4)) == (None, reason)


@pytest.mark.parametrize(
    ("cell", "value"), [(".5", 0.5), ("0.5", 0.5), ("0,5", 0.5), ("1.0", 1.0), ("2", 2.0), ("0", 0.0)]
)
def test_cdr_spellings(cell: str, value: float) -> None:
    assert parse_number(cell, CDR_GLOBAL) == (value, None)


def test_cdr_off_the_grid() -> None:
    assert parse_number("1.5", CDR_GLOBAL)[1] is QuarantineReason.VALUE_OUT_OF_RANGE
    assert parse_number("4.5", CDR_SUM) == (4.5, None)
    assert parse_number("4.3", CDR_SUM)[1] is QuarantineReason.VALUE_OUT_OF_RANGE


@given(st.integers(1, 10**7))
def test_whole_ids_keep_their_zeros(number: int) -> None:
    assert parse_whole_id(str(number)) == parse_whole_id(f"{number}.0") == parse_whole_id(f"{number:09d}") == number


@given(st.integers(0, 200))
def test_visit_codes_of_adni(month: int) -> None:
    code, months, known = canonical_visit(f"m{month:02d}")
    assert known
    assert months == month
    assert code == ("bl" if month == 0 else f"m{month:02d}")
    assert session_id_of("ADNI", code) == f"ses-M{month:03d}"


def test_baseline_visit_codes_share_a_session() -> None:
    assert {session_id_of("ADNI", code) for code in ("bl", "sc", "scmri", "m00")} == {"ses-M000"}
    assert session_id_of("NACC", "1") == "ses-MR01"
    assert session_id_of("MIRIAD", "01") == "ses-V01"
    assert session_id_of("OASIS", "MR2") == "ses-MR2"


@pytest.mark.parametrize(
    ("cell", "expected"), [("8.8888", None), ("88.8888", None), ("888.8888", None), ("8888.888", None),
                           ("9.9999", None),
                           ("9999.999", None), ("6.7231", 6723.1)]
)  # fmt: skip
def test_volume_sentinels_go_before_the_conversion(cell: str, expected: float | None) -> None:
    value, reason = parse_volume(cell, 500, 15e3)
    assert reason is None
    assert value == (None if expected is None else pytest.approx(expected))


# --- matching


def test_a_closer_visit_behind_the_scan_is_not_hidden_by_one_before_it() -> None:
    # Comparing with a signed minimum keeps -150 for ever once it is stored.
    assert match_visit(1000, [1150, 1010], 183) == (1, -10)
    assert match_visit(1000, [850, 1010], 183) == (1, -10)


def test_matching_crosses_the_new_year() -> None:
    scan, visit = datetime.date(2010, 1, 5), datetime.date(2009, 12, 20)
    assert match_visit(scan.toordinal(), [visit.toordinal()], 30) == (0, 16)


@given(st.integers(0, 5000), st.lists(st.integers(0, 5000), max_size=12), st.integers(1, 400))
def test_the_match_is_the_nearest_and_of_two_the_earlier(scan: int, visits: list[int], window: int) -> None:
    match = match_visit(scan, visits, window)
    distances = [abs(scan - day) for day in visits]
    if match is None:
        assert all(distance > window for distance in distances)
    else:
        place, delta = match
        assert abs(delta) == min(distances) <= window
        assert visits[place] == min(day for day in visits if abs(scan - day) == min(distances))


# --- torn lines


def test_the_flutemeta_line_is_joined() -> None:
    header = ["RID", "SITEID", "VISCODE", "EXAMDATE", "AVAIL", "METHOD", "SCANNER", "QC"]
    torn = ["12", "1", "bl", "3/4/2010", "1", "measured", "AUSTIN AC CT Brain  H19s", "x", "0"]
    fixed = join_torn_cells(header, torn)
    assert fixed is not None
    assert len(fixed) == len(header)
    assert fixed[:5] == ["12", "1", "bl", "3/4/2010", "1"]


def test_a_line_that_no_join_repairs_stays_broken() -> None:
    assert join_torn_cells(["RID", "VISCODE"], ["1", "bl", "a", "b"]) is None
    assert join_torn_cells(["RID", "SITEID"], ["1", "x", "y"]) is None
