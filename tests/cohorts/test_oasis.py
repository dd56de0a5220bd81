"""OASIS-1 and OASIS-2 tables as published, altered and damaged; links; what images need. All people are made up."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cohort_trees import by_key, run, voxels, write_csv, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oasis_people import CROSS, LONG, cross_table, long_table, write

from medalign3d.cohorts import IngestResult, read_ingest, write_ingest
from medalign3d.cohorts.oasis import _session_of
from medalign3d.cohorts.oasis_links import (
    PUBLISHED_PAIRS_SHA256,
    link_sessions,
    pair_records,
    pairs_sha256,
    record_key,
    unambiguous,
)
from medalign3d.cohorts.oasis_tables import canonical, read_summary
from medalign3d.errors import InputError, MissingTable

Rows = list[dict[str, Any]]


def values(result: IngestResult) -> dict[str, dict[str, Any]]:
    table = result.visits.astype(object).where(result.visits.notna(), None)
    return {f"{v['native_subject_id']}_{v['visit_code']}": v for v in table.to_dict("records")}


def altered(result: IngestResult) -> str:
    table = result.quarantine
    return " ".join(table.loc[table["reason"] == "KNOWN_BAD_CONVERSION", "detail"])


def compare(result: IngestResult, truth: Rows, id_column: str, allowed_to_miss: dict[str, set[str]]) -> None:
    """Every value read equals the truth; values that are missing are those that may be."""
    visits = values(result)
    assert set(visits) == {row[id_column] for row in truth}
    long = id_column == "MRI ID"
    for row in truth:
        visit = visits[row[id_column]]
        pairs = {
            "M/F": visit["sex"], "Age": visit["age_years"], "SES": visit["ses"], "MMSE": visit["mmse"],
            "CDR": visit["cdr_global"], "EDUC" if long else "Educ": visit["educ_years" if long else "educ_code"],
            "eTIV": None if visit["icv_mm3"] is None else visit["icv_mm3"] / 1000,
        }  # fmt: skip
        if long:
            pairs["Group"] = visit["dx_subject_level"]
        for column, value in pairs.items():
            if value is None:
                assert row[column] == "" or row[id_column] in allowed_to_miss.get(column, set()), (row, column)
            else:
                assert value == row[column], (row, column, value)
        label = None if visit["cdr_global"] is None else "DEM" if visit["cdr_global"] >= 0.5 else "Non-DEM"
        assert visit["dx_native"] == label


def every(rows: Rows, id_column: str = "ID") -> set[str]:
    return {row[id_column] for row in rows}


def changed(rows: Rows, **columns: Callable[[Any], Any] | Any) -> Rows:
    names = {name: name.replace("MF", "M/F") for name in columns}
    return [{**row, **{names[n]: (c(row[names[n]]) if callable(c) else c) for n, c in columns.items()}} for row in rows]


# ---------------------------------------------------------------------------------------- forms in which tables travel


@pytest.mark.parametrize(
    "options",
    [
        {"encoding": "utf-8-sig", "newline": "\r\n"},
        {"delimiter": ";"},
        {"delimiter": "\t"},
        {"encoding": "latin-1"},
        {"encoding": "utf-16"},
        {"names": {"M/F": "Sex", "Educ": "Education Level", "eTIV": "etiv"}},
        {"names": {"ID": "Session.ID", "M/F": "M.F"}},
        {"names": {"ID": "iD", "M/F": "Gender", "CDR": "cdr"}},
        {"names": {"ID": " "}},
    ],
)
def test_forms_of_the_table_do_not_change_what_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    truth = cross_table()
    write(tmp_path / "any name.csv", truth, CROSS, **options)
    result = run("OASIS", tmp_path)
    compare(result, truth, "ID", {})
    assert not result.field_issues.size


def test_order_index_columns_more_columns_and_no_hand(tmp_path: Path) -> None:
    truth = long_table()
    shuffled = random.Random(3).sample(truth, len(truth))
    rows = [{**row, "": i, "class": "x"} for i, row in enumerate(shuffled)]
    columns = ["", *reversed([c for c in LONG if c != "Hand"]), "class"]
    write(tmp_path / "dementia_dataset.csv", rows, columns)
    result = run("OASIS", tmp_path)
    compare(result, truth, "MRI ID", {})
    assert result.visits["handedness"].isna().all()


def test_decimal_commas_of_any_length(tmp_path: Path) -> None:
    truth = long_table()
    rows = [
        {**row, "eTIV": f"{row['eTIV']},00000000001", "ASF": str(row["ASF"]).replace(".", ","),
         "CDR": str(row["CDR"]).replace(".", ",")}
        for row in truth
    ]  # fmt: skip
    write(tmp_path / "long.csv", rows, LONG)
    compare(run("OASIS", tmp_path), truth, "MRI ID", {"eTIV": set()})


def test_a_spreadsheet_with_a_hashed_name(tmp_path: Path) -> None:
    truth = cross_table()
    frame = pd.DataFrame(truth)[CROSS]
    for column in ("MMSE", "CDR", "Educ", "SES"):
        frame[column] = pd.to_numeric(frame[column])
    frame.to_excel(tmp_path / "oasis_cross-sectional-5708aa0a98d82080.xlsx", index=False)
    compare(run("OASIS", tmp_path), truth, "ID", {})


@pytest.mark.parametrize(("table", "columns", "key"), [(cross_table(), CROSS, "ID"), (long_table(), LONG, "MRI ID")])
def test_a_lost_header_line_is_put_back_and_said(tmp_path: Path, table: Rows, columns: list[str], key: str) -> None:
    write(tmp_path / "t.csv", table, columns, header=False)
    result = run("OASIS", tmp_path)
    compare(result, table, key, {})
    assert "the header line is missing" in altered(result)


def test_a_lost_header_line_with_moved_columns_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", cross_table(), [CROSS[0], *reversed(CROSS[1:])], header=False)
    with pytest.raises(InputError, match="no header line"):
        run("OASIS", tmp_path)


def test_both_studies_in_one_table(tmp_path: Path) -> None:
    cross, long = cross_table(), long_table()
    rows = [{**r, "MRI ID": "", "EDUC": r["Educ"]} for r in cross] + [{**r, "ID": ""} for r in long]
    write(tmp_path / "all.csv", rows, ["ID", *[c for c in LONG if c != "Subject ID"], "Delay"])
    result = run("OASIS", tmp_path)
    visits = values(result)
    assert len(visits) == len(cross) + len(long)
    for row in cross:
        assert visits[row["ID"]]["educ_code"] == (row["Educ"] or None)
        assert visits[row["ID"]]["educ_years"] is None
    for row in long:
        assert visits[row["MRI ID"]]["educ_years"] == row["EDUC"]
        assert visits[row["MRI ID"]]["cdr_global"] == row["CDR"]
    assert sorted(result.sources["used_for"].str.slice(0, 7)) == ["OASIS-1"]


def test_session_ids_that_must_be_put_together(tmp_path: Path) -> None:
    truth = long_table()
    write(tmp_path / "long.csv", truth, [c for c in LONG if c != "MRI ID"])
    write(tmp_path / "cross.csv", [{**r, "ID": r["ID"][:9]} for r in cross_table()], CROSS)
    visits = values(run("OASIS", tmp_path))
    assert {row["MRI ID"] for row in truth} <= set(visits)
    assert {"OAS1_0003_MR1", "OAS1_0003_MR2", "OAS1_0004_MR1"} <= set(visits)


def test_rows_that_name_two_people_or_nobody_are_left_out(tmp_path: Path) -> None:
    rows = long_table()
    rows[0] = {**rows[0], "Subject ID": "OAS2_0401"}
    rows[1] = {**rows[1], "Subject ID": "", "MRI ID": "?"}
    write(tmp_path / "long.csv", rows, LONG)
    result = run("OASIS", tmp_path)
    assert len(result.visits) == len(rows) - 2
    unusable = result.quarantine[result.quarantine["reason"] == "ID_UNPARSABLE"]
    assert sorted(unusable["source_row"]) == [2, 3]


def test_repeated_rows_and_contradicting_rows(tmp_path: Path) -> None:
    truth = cross_table()
    other = {**truth[0], "CDR": 2 if truth[0]["CDR"] != 2 else 1}
    write(tmp_path / "cross.csv", [*truth, truth[1], other], CROSS)
    result = run("OASIS", tmp_path)
    compare(result, truth, "ID", {"CDR": {truth[0]["ID"]}})
    reasons = set(result.quarantine["reason"])
    assert {"DUPLICATE_KEY_IDENTICAL", "DUPLICATE_KEY_CONFLICT"} <= reasons


# ------------------------------------------------------------------------------------------- values that were filled in


@pytest.mark.parametrize("value", [0, "0.0", 0.5, 0.285])
def test_a_cdr_filled_in_for_the_unexamined_becomes_no_label(tmp_path: Path, value: Any) -> None:
    truth = cross_table()
    write(tmp_path / "cross.csv", changed(truth, CDR=lambda cell: value if cell == "" else cell), CROSS)
    result = run("OASIS", tmp_path)
    compare(result, truth, "ID", {})
    assert "CDR was filled in" in altered(result)
    assert (result.field_issues["column"] == "CDR").sum() == sum(row["CDR"] == "" for row in truth)


@pytest.mark.parametrize("fill", ["constants", "neighbours"])
def test_everything_filled_in_leaves_no_score_of_anybody_under_60(tmp_path: Path, fill: str) -> None:
    truth = cross_table()
    rows: Rows = []
    for row in truth:
        constants = {"Educ": 3, "SES": 2, "MMSE": 29, "CDR": 0}
        source = constants if fill == "constants" else rows[-1] if rows else constants
        rows.append({**row, **{name: source[name] for name in constants if row[name] == ""}})
    write(tmp_path / "cross.csv", rows, CROSS)
    result = run("OASIS", tmp_path)
    young = {row["ID"] for row in truth if row["Age"] < 60}
    compare(result, truth, "ID", {"CDR": young, "MMSE": young, "Educ": young, "SES": every(truth)})
    assert "filled in" in altered(result)


def test_means_are_no_scores(tmp_path: Path) -> None:
    truth = cross_table()
    rows = changed(truth, SES=lambda c: c or 2.46, MMSE=lambda c: c or 27.06)
    write(tmp_path / "cross.csv", rows, CROSS)
    result = run("OASIS", tmp_path)
    compare(result, truth, "ID", {"SES": every(truth)})


def test_small_tables_keep_what_they_say(tmp_path: Path) -> None:
    rows = [row for row in cross_table() if row["Age"] >= 60][:3]
    write(tmp_path / "cross.csv", changed(rows, ASF=1.0, eTIV=1400), CROSS)
    result = run("OASIS", tmp_path)
    assert not altered(result)
    assert result.visits["icv_mm3"].notna().all()


# -------------------------------------------------------------------------------------------------- recoded and mangled


def test_sex_by_numbers_is_unknown_whatever_the_numbers(tmp_path: Path) -> None:
    truth = cross_table()
    write(tmp_path / "cross.csv", changed(truth, MF=lambda cell: int(cell == "M")), CROSS)
    write_image(tmp_path / "OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr", 1)
    result = run("OASIS", tmp_path)
    compare(result, truth, "ID", {"M/F": every(truth)})
    assert "meaning cannot be known" in altered(result)
    assert result.quarantine.loc[result.quarantine["severity"] == "drop", "reason"].tolist() == ["SEX_MISSING"]


def test_the_letter_m_replaced_everywhere(tmp_path: Path) -> None:
    truth = cross_table()
    rows = changed(truth, ID=lambda c: c.replace("_MR", "_1R"), MF=lambda c: {"M": 1, "F": 0}[c])
    write(tmp_path / "cross.csv", rows, CROSS)
    compare(run("OASIS", tmp_path), truth, "ID", {"M/F": every(truth)})


def test_lost_decimal_points_are_put_back_where_head_sizes_prove_it(tmp_path: Path) -> None:
    truth = long_table()

    def without(cell: Any) -> str:
        text = str(cell)
        return text.replace("0.", "", 1) if text.startswith("0.") else text.replace(".", "")

    write(tmp_path / "long.csv", changed(truth, nWBV=without, ASF=without, CDR=without), LONG)
    result = run("OASIS", tmp_path)
    compare(result, truth, "MRI ID", {})
    assert "decimal points were lost" in altered(result)


def test_a_cdr_of_five_elsewhere_is_no_score(tmp_path: Path) -> None:
    truth = long_table()
    write(tmp_path / "long.csv", changed(truth, CDR=lambda c: 5 if c == 0.5 else c), LONG)
    result = run("OASIS", tmp_path)
    compare(result, truth, "MRI ID", {"CDR": every(truth, "MRI ID")})
    assert result.visits["cdr_global"].isna().sum() == sum(row["CDR"] == 0.5 for row in truth)


def test_one_wrong_head_size_is_emptied_and_many_refuse_the_table(tmp_path: Path) -> None:
    truth = long_table()
    rows = [{**row, "eTIV": row["eTIV"] + 40} if i == 4 else row for i, row in enumerate(truth)]
    write(tmp_path / "a" / "long.csv", rows, LONG)
    result = run("OASIS", tmp_path / "a")
    compare(result, truth, "MRI ID", {"eTIV": {truth[4]["MRI ID"]}})
    write(tmp_path / "b" / "long.csv", changed(truth, eTIV=1500), LONG)
    with pytest.raises(InputError, match="not the one that OASIS-2 published"):
        run("OASIS", tmp_path / "b")


def test_a_table_of_mostly_invented_people_is_refused(tmp_path: Path) -> None:
    rows = long_table()
    strangers = [
        {**row, "Subject ID": f"OAS2_{number:04d}", "MRI ID": f"OAS2_{number:04d}_MR1"}
        for number, row in enumerate(rows[:90], start=900)
    ]
    write(tmp_path / "few.csv", rows[:60] + strangers[:20], LONG)
    assert len(run("OASIS", tmp_path).visits) == 80
    write(tmp_path / "few.csv", rows[:60] + strangers, LONG)
    with pytest.raises(
        InputError, match=f"{len(strangers)} of {60 + len(strangers)} sessions are of participants that OASIS-2"
    ):
        run("OASIS", tmp_path)


def test_education_codes_are_not_years(tmp_path: Path) -> None:
    truth = long_table()
    write(tmp_path / "long.csv", changed(truth, EDUC=lambda years: 1 + int(years > 12)), LONG)
    result = run("OASIS", tmp_path)
    compare(result, truth, "MRI ID", {"EDUC": every(truth, "MRI ID")})
    assert result.visits["educ_years"].isna().all()


@pytest.mark.parametrize(
    "recode",
    [
        lambda row: {"Nondemented": 0, "Demented": 1, "Converted": 1}[row["Group"]],
        lambda row: "Demented" if row["Group"] == "Converted" else row["Group"],
        lambda row: "Demented" if row["CDR"] else "Nondemented",
    ],
)
def test_a_recoded_group_is_emptied_and_never_the_label(
    tmp_path: Path, recode: Callable[[dict[str, Any]], Any]
) -> None:
    truth = long_table()
    write(tmp_path / "long.csv", [{**row, "Group": recode(row)} for row in truth], LONG)
    result = run("OASIS", tmp_path)
    compare(result, truth, "MRI ID", {"Group": every(truth, "MRI ID")})


def test_what_belongs_to_the_person_must_not_differ(tmp_path: Path) -> None:
    truth = long_table()
    rows = [dict(row) for row in truth]
    rows[1]["SES"] = 5 if rows[0]["SES"] != 5 else 4
    rows[1]["M/F"] = "M" if rows[0]["M/F"] == "F" else "F"
    write(tmp_path / "long.csv", rows, LONG)
    result = run("OASIS", tmp_path)
    person = {row["MRI ID"] for row in truth if row["Subject ID"] == truth[0]["Subject ID"]}
    compare(result, truth, "MRI ID", {"SES": person, "M/F": person})
    assert "SEX_CONFLICT" in set(result.quarantine["reason"])


def test_ages_that_contradict_the_delay_are_remarked_on(tmp_path: Path) -> None:
    rows = long_table()
    rows[1] = {**rows[1], "Age": rows[1]["Age"] + 6}
    write(tmp_path / "long.csv", rows, LONG)
    assert "AGE_INCONSISTENT" in set(run("OASIS", tmp_path).quarantine["reason"])


# ------------------------------------------------------------------------------------------------------- several tables


def test_of_two_equal_tables_one_is_used_and_differing_ones_are_refused(tmp_path: Path) -> None:
    truth = long_table()
    write(tmp_path / "oasis_longitudinal.csv", truth, LONG)
    write(tmp_path / "part.csv", truth[:20], LONG, delimiter=";")
    result = run("OASIS", tmp_path)
    compare(result, truth, "MRI ID", {})
    assert sorted(result.sources["used_for"].str[:8].str.rstrip(",")) == ["OASIS-2", "not used"]
    write(tmp_path / "part.csv", changed(truth[:20], CDR=2), LONG)
    with pytest.raises(InputError, match=r"CDR in 20"):
        run("OASIS", tmp_path)


def test_tables_of_different_sessions_are_joined(tmp_path: Path) -> None:
    truth = long_table()
    write(tmp_path / "train.csv", truth[:40], LONG)
    write(tmp_path / "test.csv", truth[40:], LONG)
    compare(run("OASIS", tmp_path), truth, "MRI ID", {})


def test_a_list_without_scores_is_no_table(tmp_path: Path) -> None:
    truth = cross_table()
    write(tmp_path / "cross.csv", truth, CROSS)
    write(tmp_path / "reliability.csv", [r for r in truth if r["ID"].endswith("2")], ["ID", "Delay", "eTIV", "ASF"])
    compare(run("OASIS", tmp_path), truth, "ID", {})
    (tmp_path / "cross.csv").unlink()
    with pytest.raises(MissingTable, match=r"reliability.csv \(lacks M/F"):
        run("OASIS", tmp_path)


# --------------------------------------------------------------------------------------------------------- tables alone


def test_tables_alone_give_visits_links_and_a_remark_for_every_session(tmp_path: Path) -> None:
    cross, long = cross_table(), long_table()
    twin = next(row for row in cross if row["CDR"] != "" and row["Age"] >= 60)
    shared = {name: twin[name] for name in ("M/F", "Age", "SES", "MMSE", "CDR", "eTIV", "nWBV", "ASF")}
    long[-1] = {**long[-1], **shared, "MRI ID": "OAS2_0099_MR1", "Subject ID": "OAS2_0099"}
    write(tmp_path / "in" / "cross.csv", cross, CROSS)
    write(tmp_path / "in" / "long.csv", long, LONG)
    result = run("OASIS", tmp_path / "in")
    assert len(result.images) == 0
    remarks = result.quarantine[result.quarantine["reason"] == "IMAGE_WITHOUT_FILE"]
    assert len(remarks) == len(cross) + len(long) == len(result.visits)
    assert set(remarks["severity"]) == {"warn"}
    assert result.links is not None
    assert result.links.values.tolist() == [[twin["ID"], "OAS2_0099_MR1", "oasis1_oasis2_equal_records"]]
    write_ingest(result, tmp_path / "out", simulated=False)
    again = read_ingest(tmp_path / "out")
    assert again.links is not None
    assert again.links.values.tolist() == result.links.values.tolist()


def test_an_empty_folder_and_a_folder_of_other_tables_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="no OASIS images"):
        run("OASIS", tmp_path / "a")
    write_csv(tmp_path / "b" / "x.csv", "a|b", [1, 2])
    with pytest.raises(InputError, match="no OASIS images"):
        run("OASIS", tmp_path / "b")


def test_images_of_one_study_with_the_other_ones_table(tmp_path: Path) -> None:
    write(tmp_path / "long.csv", long_table(), LONG)
    write_image(tmp_path / "OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr", 1)
    with pytest.raises(MissingTable, match="oasis_cross-sectional"):
        run("OASIS", tmp_path)


# -------------------------------------------------------------------------------------------- summaries inside sessions

SUMMARY = """SESSION ID:   OAS1_0901_MR1

AGE:          71
M/F:          Female
HAND:         Right
EDUC:         2
SES:          3
CDR:          0.5
MMSE:         26

eTIV:         1350
ASF:          1.3
nWBV:         0.743

mpr-1
  TYPE:         MPRAGE
  Vox res (mm): 1.0 x 1.0 x 1.25
  AGE:          3
"""
XML = """<?xml version="1.0"?><xnat:MRSession xmlns:xnat="http://nrg.wustl.edu/xnat" ID="OAS1_0902_MR1">
<xnat:fields><xnat:field name="CDR"/><xnat:field name="mmse">29</xnat:field></xnat:fields>
<xnat:subject age="80" gender="male"/></xnat:MRSession>"""


def test_summaries_stand_in_for_a_missing_table_or_row(tmp_path: Path) -> None:
    for number, name, text in ((901, "OAS1_0901_MR1.txt", SUMMARY), (902, "OAS1_0902_MR1.xml", XML)):
        folder = tmp_path / "disc1" / f"OAS1_0{number}_MR1"
        write_image(folder / f"PROCESSED/MPRAGE/SUBJ_111/OAS1_0{number}_MR1_mpr_n3_anon_sbj_111.hdr", number)
        (folder / name).write_text(text)
    images = {record["native_subject_id"]: record for record in by_key(run("OASIS", tmp_path)).values()}
    first, second = images["OAS1_0901"], images["OAS1_0902"]
    assert (first["sex"], first["age_years"], first["dx_native"], first["mmse"]) == ("F", 71, "DEM", 26)
    assert (first["educ_code"], first["ses"], first["icv_mm3"], first["handedness"]) == (2, 3, 1350000, "R")
    assert (second["sex"], second["age_years"], second["cdr_global"], second["mmse"]) == ("M", 80, None, 29)
    write(tmp_path / "cross.csv", cross_table(), CROSS)
    assert len(run("OASIS", tmp_path).images) == 2


@pytest.mark.parametrize("text", ["", "AGE: 70", "<a", "<!DOCTYPE a [<!ENTITY b 'c'>]><a age='&b;'/>", "\x00\x01"])
def test_a_damaged_summary_is_no_record(tmp_path: Path, text: str) -> None:
    for suffix in (".txt", ".xml"):
        (tmp_path / f"OAS1_0001_MR1{suffix}").write_text(text)
        assert read_summary(tmp_path, f"OAS1_0001_MR1{suffix}") is None


# --------------------------------------------------------------------------------------------------------------- images


def test_the_assumed_affine_puts_a_marker_where_the_scanner_saw_it(tmp_path: Path) -> None:
    """A block at the end of the first two voxel axes and the start of the third lies front, top and right in space."""
    block = np.ones((70, 80, 64), dtype=np.int16)
    block[60:, 70:, :8] = 900
    path = tmp_path / "OAS1_0001_MR1_mpr_n4_anon_sbj_111.img"
    nib.AnalyzeImage(block, np.eye(4)).to_filename(path)
    write(tmp_path / "cross.csv", cross_table(), CROSS)
    record = next(iter(by_key(run("OASIS", tmp_path)).values()))
    assert (record["orientation"], record["affine_source"]) == ("ASL", "assumed")
    from medalign3d.volumes.read import read_volume

    volume = read_volume(tmp_path, record["source_path"], record["source_format"])
    data, affine = np.asarray(volume.data), np.asarray(volume.affine)
    where = nib.affines.apply_affine(affine, np.argwhere(data > 500).mean(axis=0))
    assert where[0] > 20
    assert where[1] > 20
    assert where[2] > 20


def test_neurite_names_are_derived_and_segmentations_no_image(tmp_path: Path) -> None:
    write(tmp_path / "cross.csv", cross_table(), CROSS)
    folder = tmp_path / "OASIS_OAS1_0001_MR1"
    for seed, name in enumerate(("orig", "norm", "aligned_norm", "seg4", "seg35")):
        write_image(folder / f"{name}.nii.gz", seed)
    result = run("OASIS", tmp_path)
    assert [record["source_path"] for record in by_key(result).values()] == ["OASIS_OAS1_0001_MR1/orig.nii.gz"]
    drops = result.quarantine[result.quarantine["severity"] == "drop"]["reason"].value_counts().to_dict()
    assert drops == {"DERIVED_VARIANT": 2, "NOT_T1": 2}


def test_oasis3_inside_archives(tmp_path: Path) -> None:
    import zipfile

    write_csv(tmp_path / "OASIS3_demographics.csv", "OASISID|AgeatEntry|GENDER|APOE", ["OAS30001", 70, 1, 0])
    write_csv(
        tmp_path / "OASIS3_UDSb4_cdr.csv", "OASISID|OASIS_session_label|days_to_visit|MMSE|CDRTOT",
        ["OAS30001", "OAS30001_UDSb4_d0100", "0100", 29, 0],
    )  # fmt: skip
    image = nib.Nifti1Image(voxels(1), np.diag([1.5, 1.5, 1.5, 1.0])).to_bytes()
    with zipfile.ZipFile(tmp_path / "download.zip", "w") as archive:
        for run_number in (1, 2):
            name = f"sub-OAS30001_ses-d0129_run-0{run_number}_T1w.nii"
            content = image if run_number == 1 else image[:-8] + b"\x01\x02" * 4
            archive.writestr(f"OAS30001_MR_d0129/anat{run_number}/resources/NIFTI/files/{name}", content)
    records = by_key(run("OASIS", tmp_path))
    assert sorted(record["run"] for record in records.values()) == [1, 2]
    record = records["OAS30001_MR_d0129/sub-OAS30001_ses-d0129_run-01_T1w"]
    assert (record["cdr_global"], record["match_delta_days"], record["apoe_genotype"]) == (0, 29, None)


@given(st.text(max_size=60))
def test_session_of_any_path_never_fails(path: str) -> None:
    assert _session_of(path)[0] in (0, 1, 2, 3)


# ---------------------------------------------------------------------------------------------------------------- links

record_strategy = st.tuples(
    st.sampled_from(["F", "M", None]),
    st.one_of(st.none(), st.integers(60, 66)),
    st.one_of(st.none(), st.sampled_from([1400e3, 1400.4e3, 1401e3, 1500e3])),
    st.one_of(st.none(), st.integers(28, 30)),
    st.one_of(st.none(), st.sampled_from([0, 0.5])),
)


@given(st.lists(record_strategy, max_size=25), st.lists(record_strategy, max_size=25), st.randoms())
def test_links_are_unique_both_ways_whatever_the_order(first: list[Any], second: list[Any], shuffle: Any) -> None:
    one = [(f"OAS1_{i:04d}_MR1", record_key(*r)) for i, r in enumerate(first)]
    two = [(f"OAS2_{i // 2:04d}_MR{i % 2 + 1}", record_key(*r)) for i, r in enumerate(second)]
    pairs = unambiguous(pair_records(one, two))
    assert len({a for a, _ in pairs}) == len(pairs) == len({b for _, b in pairs})
    keys = dict([*one, *two])
    for a, b in pairs:
        assert keys[a] == keys[b]
        assert keys[a] is not None
        assert [key for _, key in one].count(keys[a]) == 1
    shuffle.shuffle(one)
    shuffle.shuffle(two)
    assert unambiguous(pair_records(one, two)) == pairs
    assert pairs_sha256(pairs[::-1]) == pairs_sha256(pairs)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, "", "x"])
def test_missing_values_never_match(missing: Any) -> None:
    complete = ["F", 70, 1400e3, 29, 0.5]
    for place in range(5):
        assert record_key(*[missing if i == place else v for i, v in enumerate(complete)]) is None


def test_intracranial_volumes_are_rounded_half_up() -> None:
    """The newer OASIS-2 table has 1364.5 where the older one and OASIS-1 have 1365."""
    assert record_key("F", 70, 1364.5e3, 29, 0) == record_key("F", 70, 1365e3, 29, 0)
    assert canonical("etiv", "1364.5") == "1365"


def linked_tables(people: int, seed: int) -> tuple[Rows, Rows]:
    """OASIS-1 and OASIS-2 tables of whose people the first ``people`` are shared."""
    cross, long = cross_table(80, seed), long_table(30, seed + 1)
    shared = [row for row in cross if row["CDR"] != "" and row["Age"] >= 60][:people]
    firsts = [i for i, row in enumerate(long) if row["Visit"] == 1][: len(shared)]
    for i, twin in zip(firsts, shared, strict=False):
        subject = long[i]["Subject ID"]
        person = {name: twin[name] for name in ("M/F", "SES")}
        for row in long:
            if row["Subject ID"] == subject:
                row.update(person, Age=twin["Age"] + round(row["MR Delay"] / 365.25), Group="Converted")
        long[i].update({name: twin[name] for name in ("MMSE", "CDR", "eTIV", "nWBV", "ASF")})
    return cross, long


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), people=st.integers(1, 15), damage=st.sampled_from(["none", "mmse", "ses", "cdr"]))
def test_links_survive_damage_to_one_table_and_are_never_wrong(
    tmp_path: Path, seed: int, people: int, damage: str
) -> None:
    cross, long = linked_tables(people, seed)
    folder = tmp_path / f"{seed}-{people}-{damage}"
    clean = run("OASIS", _both(folder / "a", cross, long)).links
    if damage == "cdr":
        cross = changed(cross, CDR=lambda cell: 0 if cell == "" else cell)
    elif damage == "mmse":
        cross = changed(cross, MMSE=lambda cell: 29 if cell == "" else cell)
    elif damage == "ses":
        long = changed(long, SES=lambda cell: 2 if cell == "" else cell)
    random.Random(seed).shuffle(cross)
    damaged = run("OASIS", _both(folder / "b", cross, long)).links
    assert clean is not None
    assert damaged is not None
    assert clean.values.tolist() == damaged.values.tolist()
    assert len(clean) >= min(people, 15) * 0.9 - 1


def _both(folder: Path, cross: Rows, long: Rows) -> Path:
    write(folder / "cross.csv", cross, CROSS)
    write(folder / "long.csv", long, LONG)
    return folder


def test_a_person_that_matches_two_people_is_linked_to_neither() -> None:
    visits = pd.DataFrame(
        [
            ("OAS1_0001", "MR1", "F", 70, 1400e3, 29, 0), ("OAS1_0002", "MR1", "F", 72, 1410e3, 28, 0),
            ("OAS2_0001", "MR1", "F", 70, 1400e3, 29, 0), ("OAS2_0001", "MR2", "F", 72, 1410e3, 28, 0),
        ],
        columns=["native_subject_id", "visit_code", "sex", "age_years", "icv_mm3", "mmse", "cdr_global"],
    )  # fmt: skip
    assert link_sessions(visits).empty
    assert link_sessions(visits.iloc[:3]).values.tolist() == [
        ["OAS1_0001_MR1", "OAS2_0001_MR1", "oasis1_oasis2_equal_records"]
    ]


# ------------------------------------------------------------------------------------------------- the published tables


@pytest.fixture
def published_tables() -> Path:
    """A folder with the two published tables: MEDALIGN3D_OASIS_TABLES, or oasis_tables among the real data."""
    shared = Path(os.environ.get("MEDALIGN3D_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    folder = Path(os.environ.get("MEDALIGN3D_OASIS_TABLES", shared / "oasis_tables"))
    if not folder.is_dir():
        pytest.skip(f"no published OASIS tables at {folder}: set MEDALIGN3D_OASIS_TABLES to run this test")
    return folder


def test_the_published_tables_give_116_pairs(published_tables: Path) -> None:
    result = run("OASIS", published_tables)
    assert result.links is not None
    assert len(result.links) == 116
    assert result.links.attrs["sha256"] == PUBLISHED_PAIRS_SHA256
    assert not altered(result)
    visits = result.visits
    first = visits[visits["native_subject_id"].str.startswith("OAS1")]
    counts = first[first["visit_code"] == "MR1"]["cdr_global"].value_counts(dropna=False).to_dict()
    assert {None if pd.isna(k) else float(k): v for k, v in counts.items()} == {None: 181, 0: 135, 0.5: 70, 1: 28, 2: 2}
    second = visits[visits["native_subject_id"].str.startswith("OAS2")]
    assert second["cdr_global"].value_counts().to_dict() == {0: 206, 0.5: 123, 1: 41, 2: 3}
    assert (len(first), len(second), second["ses"].isna().sum(), second["mmse"].isna().sum()) == (436, 373, 19, 2)
    assert first["dx_native"].notna().sum() == 235
