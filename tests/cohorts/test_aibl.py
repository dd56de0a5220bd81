"""AIBL: visits, ages, units and the extract's damaged lines, on small trees in the archive's own layout."""

from __future__ import annotations

import datetime
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cohort_trees import aibl_image, by_key, image_bytes, reason_names, run, write_csv, write_image
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cohorts import aibl, write_ingest
from medalign3d.cohorts.base import native_ids, participant_id_of, session_id_of
from medalign3d.cohorts.loni import is_t1_description
from medalign3d.ehr.labels import CODED_COLUMNS

EXTRACT = "Data_extract_3.3.0"
COLLECTION = "Image Data ID|Subject|Group|Sex|Age|Visit|Modality|Description|Type|Acq Date|Format|Downloaded"
VISITS = (("bl", "12/1/2007"), ("m18", "6/1/2009"))


def table(root: Path, name: str, columns: str, *rows: list[Any], suffix: str = "_01-Jun-2018") -> Path:
    return write_csv(root / EXTRACT / f"aibl_{name}{suffix}.csv", columns, *rows)


def extract(root: Path, *rids: int, born: Any = "/1934", suffix: str = "_01-Jun-2018", **dx: Any) -> None:
    """Diagnosis, demographics, CDR and MMSE of two visits."""
    codes = {"bl": 1, "m18": 2, **dx}
    diagnoses = [[rid, 1, code, codes[code]] for rid in rids for code, _ in VISITS]
    table(root, "pdxconv", "RID|SITEID|VISCODE|DXCURREN", *diagnoses, suffix=suffix)
    table(root, "ptdemog", "RID|SITEID|VISCODE|PTGENDER|PTDOB", *[[r, 1, "bl", 2, born] for r in rids], suffix=suffix)
    dated = [[r, 1, code, date] for r in rids for code, date in VISITS]
    table(root, "cdr", "RID|SITEID|VISCODE|EXAMDATE|CDGLOBAL", *[[*row, "0.5"] for row in dated], suffix=suffix)
    table(root, "mmse", "RID|SITEID|VISCODE|EXAMDATE|MMSCORE", *[[*row, 28] for row in dated], suffix=suffix)


def collection(root: Path, *rows: dict[str, Any]) -> None:
    base = {"Subject": "10", "Group": "Patient", "Sex": "F", "Modality": "MRI", "Description": "MPRAGE_ADNI_confirmed",
            "Type": "Original", "Format": "DCM"}  # fmt: skip
    columns = COLLECTION.split("|")
    cells = [[{**base, **row}.get(name, "") for name in columns] for row in rows]
    write_csv(root / "AIBL_T1_6_1_2018.csv", COLLECTION, *cells)


def only(root: Path) -> dict[str, Any]:
    images = by_key(run("AIBL", root))
    assert len(images) == 1
    return next(iter(images.values()))


# ------------------------------------------------------------------------------------------------------------- visits


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (["1", "1.0", "Baseline", "Base", "bl", "BL", "m00", "0 mo"], "bl"),
        (["2", "18 Month follow-up", "18 mo", "m18", "18-month", "M18"], "m18"),
        (["3", "36 Month follow-up", "36 mo"], "m36"), (["4", "54 Month follow-up", "54 mo", "4.0"], "m54"),
        (["72 Month follow-up", "m72", "5"], "m72"), (["108 mo", "m108"], "m108"),
        (["", "99", "unknown", "-4", "0"], None),
    ],
)  # fmt: skip
def test_visit_names_in_all_export_forms(texts: list[str], code: str | None) -> None:
    assert {text: aibl.visit_code(text) for text in texts} == dict.fromkeys(texts, code)


@given(st.text(max_size=20))
def test_every_visit_name_is_a_visit_or_none(text: str) -> None:
    code = aibl.visit_code(text)
    assert code is None or aibl.visit_code(code) == code
    if code is not None:
        assert session_id_of("AIBL", code).startswith("ses-M")


@pytest.mark.parametrize("visit", ["2", "18 Month follow-up", "18 mo"])
def test_the_lists_visit_counts_before_any_date(tmp_path: Path, visit: str) -> None:
    extract(tmp_path, 10)
    table(tmp_path, "mri3meta", "RID|VISCODE|EXAMDATE|MMSMPRAGE", [10, "bl", "12/20/2007", 1])
    collection(tmp_path, {"Image Data ID": "I1", "Visit": visit, "Age": "75.3", "Acq Date": "12/20/2007"})
    aibl_image(tmp_path, "10", "2007-12-20", 1, 1)
    record = only(tmp_path)
    assert (record["visit_code"], record["match_method"], record["session_id"]) == ("m18", "ida_visit", "ses-M018")
    assert (record["dx_native"], record["age_years"], record["age_precision"]) == ("MCI", pytest.approx(75.3), "month")


def test_the_search_export_without_image_numbers(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    write_csv(
        tmp_path / "idaSearch_6_1_2018.csv", "Subject ID|Sex|Age|Visit|Description|Imaging Protocol|Study Date",
        ["10", "F", "75", "18 Month follow-up", "MPRAGE_ADNI_confirmed", "Field Strength=3.0", "12/20/2007"],
        ["10", "F", "75", "18 Month follow-up", "FLAIR_AXIAL", "", "12/20/2007"],
        ["100", "M", "60", "Baseline", "MPRAGE", "", "12/20/2007"],
    )  # fmt: skip
    aibl_image(tmp_path, "10", "2007-12-20", 1, 1)
    aibl_image(tmp_path, "10", "2007-12-20", 2, 2, series="FLAIR_AXIAL")
    result = run("AIBL", tmp_path)
    record = by_key(result)["I1"]
    assert (record["visit_code"], record["age_years"], record["field_strength_t"]) == ("m18", 75, 3.0)
    assert reason_names(result) == ["NOT_T1"]


def test_mri_tables_count_before_nearer_other_examinations(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    table(tmp_path, "mri3meta", "RID|VISCODE|EXAMDATE|MMSMPRAGE", [10, "m18", "2/20/2008", 1])
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)  # four days from the CDR of bl, 77 days from the MRI of m18
    record = only(tmp_path)
    assert (record["visit_code"], record["match_delta_days"], record["match_method"]) == ("m18", -77, "date_nearest")


@pytest.mark.parametrize(("day", "matched"), [("2008-02-29", True), ("2008-03-01", False)])
def test_without_mri_dates_the_nearest_other_examination_within_90_days(
    tmp_path: Path, day: str, matched: bool
) -> None:
    extract(tmp_path, 10)
    table(tmp_path, "mrimeta", "RID|VISCODE|EXAMDATE|MMSMPRAGE", [10, "bl", "-4", 1], [10, "m18", -4, 1])
    aibl_image(tmp_path, "10", day, 1, 1)
    result = run("AIBL", tmp_path)
    assert reason_names(result) == ([] if matched else ["NO_VISIT_IN_WINDOW"])
    if matched:
        assert by_key(result)["I1"]["match_delta_days"] == 90


def test_images_later_than_the_extract_have_no_visit(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    collection(tmp_path, {"Image Data ID": "I1", "Visit": "m72", "Acq Date": "12/5/2007"})
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    aibl_image(tmp_path, "10", "2013-12-05", 2, 2)
    result = run("AIBL", tmp_path)
    assert result.images.empty
    assert reason_names(result) == ["NO_VISIT_IN_WINDOW", "NO_VISIT_IN_WINDOW"]


def test_the_date_of_a_visit_in_order_of_preference(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    columns = "RID|VISCODE|EXAMDATE"
    order = ["mri3meta", "mrimeta", "cdr", "flutemeta", "mmse", "pibmeta"]
    days = {name: datetime.date(2007, 11, 1 + place) for place, name in enumerate(order)}
    for name, day in days.items():
        extra = {"cdr": "|CDGLOBAL", "mmse": "|MMSCORE"}.get(name, "")
        table(
            tmp_path, name, columns + extra, [10, "bl", f"{day.month}/{day.day}/{day.year}", *(["0"] if extra else [])]
        )
    for name in order:
        visits = run("AIBL", tmp_path).visits.set_index("visit_code")
        assert visits["visit_date"]["bl"] == days[name]
        path = tmp_path / EXTRACT / f"aibl_{name}_01-Jun-2018.csv"
        path.write_text(path.read_text().replace(f"11/{days[name].day}/2007", "-4"))


def test_a_visit_without_any_date_is_baseline_plus_its_months_and_says_so(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    for name in ("cdr", "mmse"):
        path = tmp_path / EXTRACT / f"aibl_{name}_01-Jun-2018.csv"
        path.write_text(path.read_text().replace("6/1/2009", "-4.0"))
    visits = run("AIBL", tmp_path).visits.set_index("visit_code")
    assert visits["visit_date"]["m18"] == datetime.date(2009, 6, 1)
    assert json.loads(visits["provenance"]["m18"])["values"]["visit_date"]["rule"] == "baseline + months of VISCODE"


def test_lists_that_differ_on_the_visit_leave_it_to_the_dates(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    collection(tmp_path, {"Image Data ID": "I1", "Visit": "1"}, {"Image Data ID": "I1", "Visit": "2"})
    aibl_image(tmp_path, "10", "2009-06-20", 1, 1)
    result = run("AIBL", tmp_path)
    assert by_key(result)["I1"]["visit_code"] == "m18"
    assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT"]


def test_unknown_visit_codes_are_remarked_on(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    table(tmp_path, "mmse", "RID|SITEID|VISCODE|EXAMDATE|MMSCORE", [10, 1, "bl", "12/1/2007", 28],
          [10, 1, "uns", "1/1/2010", 20])  # fmt: skip
    result = run("AIBL", tmp_path)
    assert reason_names(result) == ["VISCODE_UNKNOWN"]


# ---------------------------------------------------------------------------------------------------------- diagnosis


def test_diagnosis_codes_agree_with_the_code_book_of_the_labels() -> None:
    book = {int(code): label for code, label in aibl.DIAGNOSIS.items()}
    assert book == {code: label for code, label in CODED_COLUMNS[("AIBL", "DXCURREN")].items() if label is not None}
    empty = {code for code, label in CODED_COLUMNS[("AIBL", "DXCURREN")].items() if label is None}
    assert empty <= {int(code) for code in aibl.NO_DIAGNOSIS_CODES}


@pytest.mark.parametrize(
    ("code", "label", "reasons"),
    [(1, "NC", []), ("2.0", "MCI", []), (3, "AD", []), (0, None, ["NO_DIAGNOSIS"]), (7, None, ["NO_DIAGNOSIS"]),
     (-4, None, ["NO_DIAGNOSIS"]), ("-4.0", None, ["NO_DIAGNOSIS"]), ("", None, ["NO_DIAGNOSIS"]),
     (5, None, ["NO_DIAGNOSIS", "VALUE_OUT_OF_RANGE"]), ("AD?", None, ["NO_DIAGNOSIS", "SENTINEL_UNKNOWN"])],
)  # fmt: skip
def test_codes_of_the_diagnosis(tmp_path: Path, code: Any, label: str | None, reasons: list[str]) -> None:
    extract(tmp_path, 10, m18=code)
    aibl_image(tmp_path, "10", "2009-06-10", 1, 1)
    result = run("AIBL", tmp_path)
    # Not the baseline's diagnosis, and not one from the CDR of 0.5.
    assert by_key(result)["I1"]["dx_native"] == label
    assert reason_names(result) == reasons


def test_mild_impairment_with_a_rating_of_zero_is_real(tmp_path: Path) -> None:
    extract(tmp_path, 10, bl=2)
    table(tmp_path, "cdr", "RID|VISCODE|EXAMDATE|CDGLOBAL", [10, "bl", "12/1/2007", "0"])
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    record = only(tmp_path)
    assert (record["dx_native"], record["cdr_global"], record["cdr_sb"]) == ("MCI", 0, None)


# ------------------------------------------------------------------------------------------------------------ persons


@pytest.mark.parametrize(
    ("born", "age"), [("/1934", 73), ("1934", 73), ("1934.0", 73), (-4, None), ("-4", None), ("/34", None), ("", None)]
)
def test_age_from_the_year_of_birth_that_stands_at_baseline_only(tmp_path: Path, born: Any, age: float | None) -> None:
    extract(tmp_path, 10, born=born)
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    aibl_image(tmp_path, "10", "2009-06-05", 2, 2)
    images = by_key(run("AIBL", tmp_path))
    assert [images[key]["age_years"] for key in ("I1", "I2")] == ([None, None] if age is None else [age, age + 2])
    assert images["I2"]["age_precision"] == (None if age is None else "year")


@pytest.mark.parametrize(
    ("age", "years", "precision"),
    [("73", 73, "integer"), ("73.5", 73.5, "month"), ("-4", 73, "year"), ("", 73, "year")],
)
def test_age_of_the_list(tmp_path: Path, age: str, years: float, precision: str) -> None:
    extract(tmp_path, 10)
    collection(tmp_path, {"Image Data ID": "I1", "Visit": "1", "Age": age})
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    record = only(tmp_path)
    assert (record["age_years"], record["age_precision"]) == (years, precision)


def test_participants_10_and_100_are_two_people(tmp_path: Path) -> None:
    extract(tmp_path, 1, 10, 100)
    table(tmp_path, "mmse", "RID|VISCODE|EXAMDATE|MMSCORE", ["10.0", "bl", "12/1/2007", 30],
          ["100", "bl", "12/1/2007", 11], [1, "bl", "12/1/2007", 20])  # fmt: skip
    for uid, rid in enumerate(("1", "10", "100"), start=1):
        aibl_image(tmp_path, rid, "2007-12-05", uid, uid)
    found = {record["native_subject_id"]: record["mmse"] for record in by_key(run("AIBL", tmp_path)).values()}
    assert found == {"1": 20, "10": 30, "100": 11}


@given(st.integers(1, 99999))
def test_participant_ids_can_be_turned_back(rid: int) -> None:
    assert native_ids(participant_id_of("AIBL", str(rid))) == ("AIBL", str(rid))


def test_genotypes_in_doubled_rows(tmp_path: Path) -> None:
    extract(tmp_path, 10, 20)
    table(tmp_path, "apoeres", "RID|VISCODE|APTESTDT|APGEN1|APGEN2", [10, "bl", "", 4, 3], [10, "bl", "", "4", "3.0"],
          [20, "bl", "", 3, 3], [20, "bl", "", 4, 3])  # fmt: skip
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    aibl_image(tmp_path, "20", "2007-12-05", 2, 2)
    result = run("AIBL", tmp_path)
    found = {r["native_subject_id"]: (r["apoe_genotype"], r["apoe4_count"]) for r in by_key(result).values()}
    assert found == {"10": ("34", 1), "20": (None, None)}
    assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT", "DUPLICATE_KEY_IDENTICAL"]


def test_two_sexes_of_one_participant(tmp_path: Path) -> None:
    extract(tmp_path, 10, 20)
    table(tmp_path, "ptdemog", "RID|VISCODE|PTGENDER|PTDOB", [10, "bl", 1, "/1934"], [10, "m18", 2, "/1934"],
          [20, "bl", "-4", "/1934"])  # fmt: skip
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    aibl_image(tmp_path, "20", "2007-12-05", 2, 2)
    assert reason_names(run("AIBL", tmp_path)) == ["SEX_CONFLICT", "SEX_MISSING"]


def test_the_stray_folder_is_nobody(tmp_path: Path) -> None:
    extract(tmp_path, 151083)
    aibl_image(tmp_path, "0151083", "2007-12-05", 1, 1)
    aibl_image(tmp_path, "151083", "2007-12-05", 2, 2)
    result = run("AIBL", tmp_path)
    assert list(by_key(result)) == ["I2"]
    assert reason_names(result) == ["ID_NOT_IN_CLINICAL"]


# --------------------------------------------------------------------------------------------------- scores and tables


def test_a_missing_score_at_an_imaging_visit_is_a_warning(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    table(tmp_path, "mmse", "RID|VISCODE|EXAMDATE|MMSCORE", [10, "bl", "12/1/2007", "-4"], [10, "m18", "6/1/2009", 45])
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    aibl_image(tmp_path, "10", "2009-06-05", 2, 2)
    result = run("AIBL", tmp_path)
    assert [record["mmse"] for record in by_key(result).values()] == [None, None]
    rows = result.quarantine.set_index("reason")
    assert rows["detail"]["FILE_WITHOUT_RECORD"] == "no MMSE at the image's visit"
    # The refused score is reported once, as such.
    assert reason_names(result) == ["FILE_WITHOUT_RECORD", "VALUE_OUT_OF_RANGE"]


def test_the_torn_line_of_flutemeta_is_repaired(tmp_path: Path) -> None:
    """Issues 786 and 796: one unquoted comma in free text, as in the real extract."""
    extract(tmp_path, 10)
    path = table(tmp_path, "flutemeta", "RID|SITEID|VISCODE|EXAMDATE|AVAIL|TYPE|SCANNER|QC",
                 [10, 1, "bl", "12/9/2007", 1, "x", "AUSTIN", 1])  # fmt: skip
    path.write_text(
        "RID,SITEID,VISCODE,EXAMDATE,PMCONDCT,ATTENUATION,PASS\n"
        "10,1,bl,12/9/2007,1,measured,AUSTIN AC CT Brain  H19s,0\n"
        "10,1,m18,6/9/2009,1,measured,0\n"
    )
    for name in ("cdr", "mmse"):
        other = tmp_path / EXTRACT / f"aibl_{name}_01-Jun-2018.csv"
        other.write_text(other.read_text().replace("12/1/2007", "-4").replace("6/1/2009", "-4"))
    result = run("AIBL", tmp_path)
    visits = result.visits.set_index("visit_code")
    assert visits["visit_date"].to_dict() == {"bl": datetime.date(2007, 12, 9), "m18": datetime.date(2009, 6, 9)}
    assert reason_names(result) == ["CSV_BAD_LINE"]
    assert result.quarantine["detail"][0].endswith("repaired")


@pytest.mark.parametrize(
    ("header", "cells", "joined"),
    [
        ("RID,VISCODE,EXAMDATE,MMSCORE", "10,bl,12/1/2007,27,5", None),  # a decimal comma shifts no score
        ("RID,VISCODE,EXAMDATE,LIMMTOTAL,LDELTOTAL", "10,bl,12/1/2007,12,5,9", None),
        ("RID,VISCODE,EXAMDATE,A,B", "10,bl,12/1/2007,one text,two text,three text", None),  # two places are as good
        ("RID,VISCODE,EXAMDATE,A,B", "10,bl,12/1/2007,1,GE Signa, Melbourne", ["10", "bl", "12/1/2007", "1",
                                                                             "GE Signa,  Melbourne"]),
        ("RID,VISCODE", "10,bl,a,b", None),
    ],
)  # fmt: skip
def test_lines_are_only_joined_where_words_are_torn(header: str, cells: str, joined: list[str] | None) -> None:
    assert aibl.join_torn_cells(header.split(","), cells.split(",")) == joined


@given(st.lists(st.text(max_size=8), min_size=2, max_size=9))
def test_a_repaired_line_fits_its_header_and_loses_nothing(cells: list[str]) -> None:
    header = ["RID", "VISCODE", "EXAMDATE", "A", "B", "C", "D", "E"][: len(cells) - 1]
    joined = aibl.join_torn_cells(header, cells)
    if joined is not None:
        assert len(joined) == len(header)
        assert "".join(joined).replace(", ", "") == "".join(cells).replace(", ", "")


@pytest.mark.parametrize("suffix", ["", "_28-Apr-2015", "_01-Jun-2018", "_17Nov2024"])
def test_tables_by_name_with_and_without_a_date(tmp_path: Path, suffix: str) -> None:
    extract(tmp_path, 10, suffix=suffix)
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    record = only(tmp_path)
    assert (record["release"], record["mmse"], record["mmse_source"]) == (EXTRACT, 28, "measured")


def test_of_two_dated_extracts_the_newer_counts(tmp_path: Path) -> None:
    extract(tmp_path, 10, suffix="_28-Apr-2015", bl=1)
    extract(tmp_path, 10, suffix="_01-Jun-2018", bl=2)
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    assert only(tmp_path)["dx_native"] == "MCI"


def test_history_and_its_source(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    table(
        tmp_path,
        "medhist",
        "RID|VISCODE|MHPSYCH|MH4CARD|MH16SMOK|MH17MALI|MH9ENDO",
        [10, "bl", 0, 1, "-4", "1.0", "0.5"],
    )
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    result = run("AIBL", tmp_path)
    record = by_key(result)["I1"]
    assert json.loads(record["history"]) == {"psychiatric": 0, "cardiovascular": 1, "malignancy": 1}
    assert json.loads(record["provenance"])["values"]["history"]["rule"] == "medhist"
    assert result.field_issues["column"].tolist() == ["MH9ENDO"]


# -------------------------------------------------------------------------------------------------------------- units

LABS = "RID|VISCODE|EXAMDATE|RCT11|RCT392|RCT20|RCT6|HMT40|HMT102|BAT126|HMT3|AXT117"
SI = ["5.5", "80", "5.2", "6.0", "140", "335", "300", "4.7", "1.9"]
US = ["99", "0.9", "201", "17", "14.0", "33.5", "406", "4.7", "1.9"]


@pytest.mark.parametrize("cells", [SI, US], ids=["SI", "conventional"])
def test_a_table_in_either_system_gives_the_same_results(tmp_path: Path, cells: list[str]) -> None:
    extract(tmp_path, 10)
    table(tmp_path, "labdata", LABS, [10, "bl", "12/1/2007", *cells])
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    labs = json.loads(only(tmp_path)["labs"])
    expected = {"glucose": 99, "creatinine": 0.905, "cholesterol": 201, "urea_nitrogen": 16.8, "haemoglobin": 14.0,
                "mchc": 33.5, "vitamin_b12": 406.5, "red_cells": 4.7, "tsh": 1.9}  # fmt: skip
    assert labs == {name: pytest.approx(value, rel=0.02) for name, value in expected.items()}


def test_units_are_never_mixed_within_a_column(tmp_path: Path) -> None:
    """One glucose of 95 mg/dL in a column of mmol/L is emptied: neither kept as it is nor converted on its own."""
    rids = list(range(10, 16))
    extract(tmp_path, *rids)
    table(tmp_path, "labdata", "RID|VISCODE|EXAMDATE|RCT11|HMT40",
          *[[rid, "bl", "12/1/2007", "5.5" if rid > 10 else "118", "14.5"] for rid in rids])  # fmt: skip
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    aibl_image(tmp_path, "11", "2007-12-05", 2, 2)
    result = run("AIBL", tmp_path)
    labs = {key: json.loads(record["labs"]) for key, record in by_key(result).items()}
    # Haemoglobin is in g/dL in this table: each column is decided by itself.
    assert labs == {"I1": {"haemoglobin": 14.5}, "I2": {"haemoglobin": 14.5, "glucose": pytest.approx(99.1, abs=0.1)}}
    assert reason_names(result) == ["VALUE_OUT_OF_RANGE"]
    assert result.field_issues["column"].tolist() == ["RCT11"]


def test_remarks_in_place_of_results_and_results_only_at_their_visit(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    table(
        tmp_path,
        "labdata",
        LABS,
        [10, "bl", "12/1/2007", "<0.10", "SCC09", "5.2", "NO SPECIMEN", "-4", "", "x", "4.7", "1.9"],
    )
    aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    aibl_image(tmp_path, "10", "2009-06-05", 2, 2)
    result = run("AIBL", tmp_path)
    images = by_key(result)
    assert set(json.loads(images["I1"]["labs"])) == {"cholesterol", "red_cells", "tsh"}
    assert images["I2"]["labs"] is None
    assert sorted(result.field_issues["column"]) == ["BAT126", "RCT11", "RCT392", "RCT6"]


# ------------------------------------------------------------------------------------------------------------- images


def test_series_of_the_participants_folders() -> None:
    t1 = ["MPRAGE_ADNI_confirmed", "MPRAGE", "MPRAGE_ADNI_confirmed_RPT", "MPRAGE_ADNI_confirmed_REPEATX2",
          "MPRAGE_ADNI_confirmed_repeat", "MPRAGE_ADNI_confirmed_REPEAT", "MPRAGE_ADNI_conf_REPEAT", "MPRAGESAGISOp2ND",
          "MPRAGE_SAG_ISO_p2_ND", "MPRAGE_SAG_ISO_p2"]  # fmt: skip
    other = ["FLAIR_AXIAL", "PD_T2_TSE_Axial", "localizer", "0-ACPC", "0-MINREG", "PIB_PET", "AXIAL_FLAIR", "T2_SPC",
             "DTI_30", "gre_field_mapping", "SWI_Images"]  # fmt: skip
    assert [name for name in t1 if not is_t1_description(name)] == []
    assert [name for name in other if is_t1_description(name)] == []


def test_repeats_are_runs_and_the_studys_own_protocol_is_preferred(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    for uid, series in ((1, "MPRAGE_SAG_ISO_p2_ND"), (2, "MPRAGE_ADNI_confirmed_RPT"), (3, "MPRAGE_ADNI_confirmed")):
        aibl_image(tmp_path, "10", "2007-12-05", uid, uid, series=series)
    images = by_key(run("AIBL", tmp_path))
    assert {key: (r["run"], r["selected"], r["selection_rank"]) for key, r in images.items()} == {
        "I1": (1, False, 3), "I2": (2, False, 2), "I3": (3, True, 1),
    }  # fmt: skip


def test_both_magnets_at_one_visit(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    columns = "RID|SITEID|VISCODE|EXAMDATE|MMCONDCT|MMSMPRAGE|MMRMPRAGE"
    table(tmp_path, "mrimeta", columns, [10, 1, "bl", "12/5/2007", 1, 1, -4], [10, 1, "m18", "6/5/2009", 1, 1, -4])
    table(tmp_path, "mri3meta", columns, [10, 1, "bl", "12/20/2007", 1, 1, -4], [10, 1, "m18", "6/5/2009", 1, 1, -4])
    for uid, day in ((1, "2007-12-05"), (2, "2007-12-20"), (3, "2009-06-05")):
        aibl_image(tmp_path, "10", day, uid, uid)
    images = by_key(run("AIBL", tmp_path))
    assert {key: (r["visit_code"], r["field_strength_t"]) for key, r in images.items()} == {
        "I1": ("bl", 1.5), "I2": ("bl", 3.0), "I3": ("m18", None),  # equally near to both: nobody can tell
    }  # fmt: skip


def test_archives_are_read_in_place(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    inner = "AIBL/10/MPRAGE_ADNI_confirmed/2007-12-05_10_00_00.0/I1/AIBL_10_MR_MPRAGE_ADNI_confirmed_Br_1_S2_I1.nii"
    with zipfile.ZipFile(tmp_path / "AIBL_1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(inner, image_bytes(1))
    record = only(tmp_path)
    assert (record["source_path"], record["native_subject_id"], record["visit_code"]) == (
        f"AIBL_1.zip!{inner}",
        "10",
        "bl",
    )


def test_series_folders_in_place_of_image_folders(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    write_image(tmp_path / "AIBL/10/MPRAGE/2007-12-05_10_00_00.0/S2/AIBL_10_MR_MPRAGE_Br_1_S2_I5.nii", 1)
    assert only(tmp_path)["native_image_key"] == "I5"


def test_a_file_in_somebody_elses_folder(tmp_path: Path) -> None:
    extract(tmp_path, 10, 20)
    path = aibl_image(tmp_path, "10", "2007-12-05", 1, 1)
    path.rename(path.with_name(path.name.replace("AIBL_10_", "AIBL_20_")))
    assert reason_names(run("AIBL", tmp_path)) == ["AMBIGUOUS_FILE"]


def test_tables_alone_give_visits(tmp_path: Path) -> None:
    extract(tmp_path, 10)
    collection(
        tmp_path, {"Image Data ID": "I1", "Visit": "1"}, {"Image Data ID": "I2", "Visit": "1", "Description": "FLAIR"}
    )
    result = run("AIBL", tmp_path)
    assert (len(result.images), len(result.visits)) == (0, 2)
    assert reason_names(result) == ["IMAGE_WITHOUT_FILE"]
    write_ingest(result, tmp_path / "out", simulated=False)


def test_two_ingests_are_equal(tmp_path: Path) -> None:
    extract(tmp_path / "in", 10, 20, bl=9)
    for uid, rid in ((1, "10"), (2, "20"), (3, "20"), (4, "0151083")):
        aibl_image(tmp_path / "in", rid, "2007-12-05", uid, uid)
    for name in ("one", "two"):
        write_ingest(run("AIBL", tmp_path / "in"), tmp_path / name, simulated=False)
    for name in ("images", "visits", "quarantine", "sources", "field_issues"):
        assert (tmp_path / "one" / f"{name}.parquet").read_bytes() == (
            tmp_path / "two" / f"{name}.parquet"
        ).read_bytes()


@given(st.text(max_size=12))
def test_no_cell_breaks_the_year_of_birth(cell: str) -> None:
    year, problem = aibl.parse_birth_year(cell)
    assert year is None or (problem is None and 1880 <= year <= 2000)
