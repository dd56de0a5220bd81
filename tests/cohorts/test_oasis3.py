"""OASIS-3: folder forms, both clinical layouts, and what a diagnosis form, dx1 and the CDR make of a session."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from cohort_trees import by_key, image_bytes, reason_names, run, write_csv, write_image

from medalign3d.cohorts import IngestResult

MCI = ("MCIAMEM", "MCIAPLUS", "MCINON1", "MCINON2")
FLAGS = ("NORMCOG", "DEMENTED", *MCI, "IMPNOMCI", "PROBAD", "POSSAD")


def clinical(
    root: Path, d1: list[dict[str, Any]] | None = None, dx1: str = "", cdr: Any = 0.5, folder: str = ""
) -> None:
    """One participant with a CDR form on day 100 and diagnosis forms of the given flags (and ``day``)."""
    place = root / folder

    def path(form: str) -> Path:
        nested = place / "OASIS3_data_files" / "scans" / form / "resources" / "csv" / "files"
        return (nested if folder == "nested" else place) / f"OASIS3_{form}.csv"

    write_csv(path("demographics"), "OASISID|AgeatEntry|GENDER|EDUC|HAND|APOE", ["OAS30001", 70, 2, 16, "R", 34])
    write_csv(
        path("UDSb4_cdr"), "OASISID|OASIS_session_label|days_to_visit|MMSE|CDRSUM|CDRTOT|dx1",
        ["OAS30001", "OAS30001_UDSb4_d0100", "0100", 29, ".", cdr, dx1],
    )  # fmt: skip
    if d1 is not None:
        rows = []
        for form in d1:
            day = form.get("day", 100)
            label = f"OAS30001_UDSd1_d{day:04d}"
            rows.append(["OAS30001", label, day, *(form.get(flag, 0) for flag in FLAGS)])
        write_csv(path("UDSd1_diagnoses"), "OASISID|OASIS_session_label|days_to_visit|" + "|".join(FLAGS), *rows)


def label(result: IngestResult) -> Any:
    rows = result.visits[result.visits["visit_code"] == "d0100"]
    (value,) = rows["dx_native"].astype(object).where(rows["dx_native"].notna(), None)
    return value


@pytest.mark.parametrize(
    ("d1", "dx1", "cdr", "expected"),
    [
        ([{"NORMCOG": 1}], "AD Dementia", 0.5, "NC"),
        *(([{flag: 1}], "AD Dementia", 0.5, "MCI") for flag in MCI),
        ([{"MCIAMEM": 1, "MCIAPLUS": 1}], "", 0.5, "MCI"),
        ([{"DEMENTED": 1, "PROBAD": 1}], "Cognitively normal", 1, "AD_DEM"),
        # A form that names no class: dx1, and where that names none either, the CDR.
        ([{}], "Cognitively normal", 0, "NC"),
        (None, "cognitively normal ", 0, "NC"),
        (None, "AD Dementia", 1, "AD_DEM"),
        (None, "uncertain dementia", 0.5, "DEM"),
        (None, "0.5 in memory only", 0.5, "DEM"),
        (None, ".", 0, "Non-DEM"),
        (None, "", ".", None),
        (None, "", "", None),
        # Impaired, but not MCI: dx1 does not overrule it.
        ([{"IMPNOMCI": 1}], "AD Dementia", 0.5, "DEM"),
        # 8, 9, -4 and blanks are no flags.
        ([{"NORMCOG": 8, "DEMENTED": 9, "MCIAMEM": "-4.0", "MCIAPLUS": "."}], "AD Dementia", 1, "AD_DEM"),
    ],
)
def test_the_rule_table(tmp_path: Path, d1: Any, dx1: str, cdr: Any, expected: str | None) -> None:
    clinical(tmp_path, d1, dx1, cdr)
    result = run("OASIS", tmp_path)
    assert label(result) == expected
    assert len(result.field_issues) == 0


@pytest.mark.parametrize(
    "form",
    [
        {"NORMCOG": "1e309"}, {"DEMENTED": "yes"}, {"MCIAMEM": 5}, {"DEMENTED": "0.5"}, {"NORMCOG": "=1+0"},
        {"NORMCOG": 1, "DEMENTED": 1}, {"MCIAMEM": 1, "DEMENTED": 1}, {"NORMCOG": 1, "IMPNOMCI": 1},
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_understood_is_no_label_of_another_source(tmp_path: Path, form: dict[str, Any]) -> None:
    clinical(tmp_path, [form], "AD Dementia", 1)
    result = run("OASIS", tmp_path)
    assert label(result) is None
    (issue,) = result.field_issues.to_dict("records")
    assert (issue["column"] in form, issue["source_row"]) == (True, 2)
    # The CDR itself is measured and stays.
    assert result.visits["cdr_global"].tolist() == [1.0]


def test_differing_copies_of_a_form_give_no_label(tmp_path: Path) -> None:
    clinical(tmp_path, [{"NORMCOG": 1, "DEMENTED": 0}, {"NORMCOG": 0, "DEMENTED": 1}], "AD Dementia", 1)
    result = run("OASIS", tmp_path)
    assert label(result) is None
    assert "DUPLICATE_KEY_CONFLICT" in reason_names(result)


def test_of_two_forms_near_a_visit_the_nearer_one_counts(tmp_path: Path) -> None:
    clinical(tmp_path, [{"NORMCOG": 1, "day": 30}, {"MCIAMEM": 1, "day": 110}, {"DEMENTED": 1, "day": 180}])
    assert label(run("OASIS", tmp_path)) == "MCI"


SESSION = "OAS30001_MR_d0129"
FILE = "sub-OAS30001_ses-d0129_T1w.nii.gz"


@pytest.mark.parametrize("folder", ["nested", ""])
@pytest.mark.parametrize(
    "path",
    [
        f"{SESSION}/anat2/{FILE}", f"{SESSION}/anat2/NIFTI/{FILE}", f"{SESSION}/anat2/BIDS/{FILE}",
        f"{SESSION}/anat2/resources/NIFTI/files/{FILE}", FILE,
    ],
)  # fmt: skip
def test_folder_forms_and_both_layouts_of_the_forms(tmp_path: Path, path: str, folder: str) -> None:
    clinical(tmp_path, [{"NORMCOG": 1}], cdr=0, folder=folder)
    write_csv(
        tmp_path / folder / "OASIS3_MR_json.csv", "label|filename|Manufacturer|MagneticFieldStrength",
        [SESSION, FILE, "Siemens", 3], [SESSION, "other", "Siemens", 30000],
    )  # fmt: skip
    write_image(tmp_path / path, 1)
    (record,) = by_key(run("OASIS", tmp_path)).values()
    assert (record["session_id"], record["dx_native"], record["match_delta_days"]) == ("ses-d0129", "NC", 29)
    assert (record["field_strength_t"], record["manufacturer"], record["apoe_genotype"]) == (3.0, "Siemens", "34")
    assert record["age_years"] == pytest.approx(70 + 129 / 365.25)


def test_scanners_that_differ_in_one_session_are_emptied_and_malformed_ones_listed(tmp_path: Path) -> None:
    clinical(tmp_path, cdr=0)
    write_image(tmp_path / SESSION / FILE, 1)
    write_csv(
        tmp_path / "OASIS3_MR_json.csv", "label|MagneticFieldStrength|Manufacturer|ManufacturersModelName",
        [SESSION, 3, "Siemens", "TrioTim"], [SESSION, 1.5, "Siemens", "."], ["OAS30001_MR_d0500", "strong", "", ""],
    )  # fmt: skip
    result = run("OASIS", tmp_path, read_images=False)
    (record,) = by_key(result).values()
    assert (record["field_strength_t"], record["scanner_model"]) == (None, "TrioTim")
    assert sorted(result.field_issues["reason"]) == ["DUPLICATE_KEY_CONFLICT", "VALUE_OUT_OF_RANGE"]


@pytest.mark.parametrize(
    "cells",
    [
        ["OAS300011", "", 100], ["OAS30001", "OAS30002_UDSb4_d0100", 100], ["xOAS30001", "", 100],
        ["OAS30001", "", 1e9], ["OAS30001", "OAS30001_UDSb4_d0100123", ""],
    ],
)  # fmt: skip
def test_a_row_of_nobody_or_of_two_people_is_left_out(tmp_path: Path, cells: list[Any]) -> None:
    clinical(tmp_path, cdr=0)
    write_csv(tmp_path / "OASIS3_UDSb4_cdr_more.csv", "OASISID|OASIS_session_label|days_to_visit|CDRTOT", [*cells, 2])
    result = run("OASIS", tmp_path)
    assert result.visits["cdr_global"].tolist() == [0.0]
    assert "ID_UNPARSABLE" in reason_names(result)


def test_tables_that_contradict_each_other_on_the_sex_empty_it(tmp_path: Path) -> None:
    clinical(tmp_path, cdr=0)
    write_csv(tmp_path / "Subjects.csv", "Subject|M/F|Hand|Education", ["OAS30001", "M", "R", 16])
    write_image(tmp_path / SESSION / FILE, 1)
    result = run("OASIS", tmp_path, read_images=False)
    assert {"SEX_CONFLICT", "SEX_MISSING"} <= set(reason_names(result))


def test_archives_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    clinical(tmp_path, cdr=0)
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "disc.tar.gz").write_bytes(b"\x1f\x8b")
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as archive:
        archive.writestr("OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr", b"x")
        archive.writestr("OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.img", b"x")
        archive.writestr(f"{SESSION}/anat1/{FILE.removesuffix('.gz')}", image_bytes(1))
    result = run("OASIS", tmp_path)
    said = result.quarantine[result.quarantine["reason"] == "IMAGE_WITHOUT_FILE"]
    assert set(said["source_file"]) == {"damaged.zip", "disc.tar.gz", "pairs.zip"}
    assert len(result.images) == 1
