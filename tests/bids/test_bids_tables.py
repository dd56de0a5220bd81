"""Cells of the tables: what may leave, how ages and intervals are hidden, and how tables grow."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.bids import tables
from medalign3d.ehr.schema import COLUMN_BY_NAME
from medalign3d.errors import InputError

ROW = {
    "dataset": "ADNI", "participant_id": "sub-ADNI005S0223", "person_id": "sub-ADNI005S0223", "sex": "F",
    "age_years": 74.26, "scan_day": 380, "visit_code": "m12", "visit_month": 12.0, "dx_native": "MCI",
    "dx_subject_level": "LMCI", "release": "ADNI1", "mmse": 27.0, "mmse_source": "measured",
    "labs": json.dumps({"glucose": 99.5, "canary": 1}), "history": "{}", "followup_days": 2000,
    "days_to_dementia": None,
    "native_subject_id": "005_S_0223", "scan_date": "2006-05-02", "source_path": "ADNI/CANARY",
    "series_description": "CANARY", "provenance": "CANARY", "ehr_text": "CANARY",
}  # fmt: skip
TEXT_COLUMNS = [
    name
    for name in {*tables.SESSION_COLUMNS, *tables.SCAN_COLUMNS, *tables.PARTICIPANT_COLUMNS}
    if COLUMN_BY_NAME[name].dtype in ("string", "dictionary")
]


def every_cell(row):
    return {
        **tables.session_cells(row, relative_dates=True),
        **tables.scan_cells(row),
        **tables.participant_cells([row]),
    }


def test_values_come_through():
    cells = every_cell(ROW)
    assert cells["age"] == "74.3"
    assert cells["days_from_first_event"] == "380"
    assert cells["mmse"] == "27"
    assert cells["lab_glucose"] == "99.5"
    assert cells["dx_native"] == "MCI"
    assert cells["release"] == "ADNI1"
    assert cells["days_to_dementia"] == "n/a"
    assert "CANARY" not in str(cells)
    assert "2006" not in str(cells)
    assert "days_from_first_event" not in tables.session_cells(ROW, relative_dates=False)


@pytest.mark.parametrize("column", sorted(TEXT_COLUMNS))
@pytest.mark.parametrize("text", ["Jane Doe", "2006-05-02", "05/02/2006", "/data/study", "call 555 1234"])
def test_typed_text_stays_behind(column, text):
    row = {**ROW, column: text}
    assert text not in every_cell(row).values()


@given(age=st.floats(15, 110), days=st.integers(0, 20000), follow=st.integers(0, 8000))
def test_no_interval_tells_an_age_above_the_highest(age, days, follow):
    cells = tables.session_cells(
        {**ROW, "age_years": age, "scan_day": days, "followup_days": follow}, relative_dates=True
    )
    assert float(cells["age"]) <= 89
    if age >= 89:
        assert cells["age"] == "89"
        assert cells["days_from_first_event"] == cells["visit_month"] == cells["followup_days"] == "n/a"
    if cells["followup_days"] != "n/a":
        assert age + float(cells["followup_days"]) / 365.25 < 89


def test_a_value_that_changes_is_no_value_of_the_person():
    cells = tables.participant_cells([{**ROW, "educ_years": 16}, {**ROW, "educ_years": 17, "age_years": 73.0}])
    assert cells["educ_years"] == "n/a"
    assert cells["sex"] == "F"
    assert cells["age"] == "73"


def test_every_column_is_described_and_the_future_is_named():
    sessions = tables.session_descriptions()
    assert set(tables.session_cells(ROW, relative_dates=True)) == set(sessions)
    assert set(tables.scan_cells(ROW)) == set(tables.scan_descriptions())
    assert set(tables.participant_cells([ROW])) == set(tables.participant_descriptions())
    for name in tables.FUTURE_COLUMNS:
        assert "future" in sessions[name]["Description"]
    assert sessions["mmse"]["Units"] == "points of 30"
    assert set(sessions["dx3"]["Levels"]) == {"NC", "MCI", "AD_DEM"}


def test_tables_grow_and_nothing_of_others_goes(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tmood\nsub-01\tgood\nsub-02\tn/a\n")
    new = {"sub-02": {"age": "70"}, "sub-03": {"age": "71"}}
    tables.write_tsv(path, "participant_id", tables.merge(tables.read_tsv(path, "participant_id"), new), ["age"])
    assert path.read_text() == ("participant_id\tage\tmood\nsub-01\tn/a\tgood\nsub-02\t70\tn/a\nsub-03\t71\tn/a\n")
    before = path.stat().st_mtime_ns
    tables.write_tsv(path, "participant_id", tables.merge(tables.read_tsv(path, "participant_id"), new), ["age"])
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", ["", "age\n70\n", "participant_id\tage\nsub-01\n", "\x00\x01", b"\xff\xfe\x00"])
def test_a_damaged_table_is_named_not_overwritten(tmp_path, content):
    path = tmp_path / "participants.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"participants\.tsv"):
        tables.read_tsv(path, "participant_id")
