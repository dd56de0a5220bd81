"""Each cohort reader on small hand-made trees: label rules, traps that broke other converters, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cohort_trees import (
    adni_image,
    aibl_image,
    by_key,
    image_bytes,
    nacc_session,
    reason_names,
    reasons,
    run,
    write_csv,
    write_image,
    write_xlsx,
)

from medalign3d.cohorts import COHORTS, doctor, ingest_cohort, read_ingest, write_ingest
from medalign3d.errors import InputError, MissingTable, ParameterError

# ------------------------------------------------------------------------------------------------------------- OASIS

CROSS = "ID|M/F|Hand|Age|Educ|SES|MMSE|CDR|eTIV|nWBV|ASF|Delay"
LONG = "Subject ID|MRI ID|Group|Visit|MR Delay|M/F|Hand|Age|EDUC|SES|MMSE|CDR|eTIV|nWBV|ASF"


def cross(session: str, cdr: Any = "0", age: Any = 70, sex: str = "F", delay: Any = "N/A") -> list[Any]:
    return [session, sex, "R", age, 2, "", 28, cdr, 1400, 0.75, 1.25, delay]


def oasis1(root: Path, session: str, seed: int) -> Path:
    folder = root / "disc1" / session / "PROCESSED" / "MPRAGE" / "SUBJ_111"
    return write_image(folder / f"{session}_mpr_n4_anon_sbj_111.hdr", seed)


def test_oasis1_labels_come_from_the_cdr_of_the_session_and_blank_is_no_class(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "oasis_cross-sectional.csv", CROSS, cross("OAS1_0001_MR1", "0"), cross("OAS1_0002_MR1", "0.5"),
        cross("OAS1_0003_MR1", "", 22), cross("OAS1_0003_MR2", "", 22, delay=40), cross("OAS1_0004_MR1", "1"),
    )  # fmt: skip
    for seed, session in enumerate(("0001_MR1", "0002_MR1", "0003_MR1", "0003_MR2", "0004_MR1", "0009_MR1")):
        oasis1(tmp_path, f"OAS1_{session}", seed)
    result = run("OASIS", tmp_path)
    images = by_key(result)
    labels = {key.split("/")[0]: record["dx_native"] for key, record in images.items()}
    assert labels == {
        "OAS1_0001_MR1": "Non-DEM", "OAS1_0002_MR1": "DEM", "OAS1_0003_MR1": None, "OAS1_0003_MR2": None,
        "OAS1_0004_MR1": "DEM",
    }  # fmt: skip
    assert reason_names(result) == ["ID_NOT_IN_CLINICAL", "NO_DIAGNOSIS", "NO_DIAGNOSIS"]
    rescan = images["OAS1_0003_MR2/OAS1_0003_MR2_mpr_n4_anon_sbj_111"]
    assert (rescan["participant_id"], rescan["session_id"], rescan["scan_day"]) == ("sub-OAS10003", "ses-MR2", 40)
    assert rescan["educ_code"] == 2
    assert rescan["educ_years"] is None
    assert rescan["affine_source"] == "assumed"
    assert rescan["orientation"] == "ASL"


def test_oasis1_repeats_and_derived_files_beside_the_average(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "oasis_cross-sectional-5708aa0a98d82080.xlsx", CROSS, cross("OAS1_0001_MR1", 0.5))
    session = tmp_path / "disc1" / "OAS1_0001_MR1"
    oasis1(tmp_path, "OAS1_0001_MR1", 1)
    for number in (1, 2, 3):
        write_image(session / "RAW" / f"OAS1_0001_MR1_mpr-{number}_anon.hdr", 10 + number)
    write_image(session / "PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc.hdr", 20)
    write_image(session / "FSL_SEG/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc_fseg.hdr", 21)
    result = run("OASIS", tmp_path)
    assert reason_names(result) == ["DERIVED_VARIANT", "NOT_T1"]
    assert result.images["selected"].sum() == 1
    chosen = result.images[result.images["selected"]].iloc[0]
    assert chosen["variant"] == "averaged"
    assert len(result.images) == 4
    everything = run("OASIS", tmp_path, form="table1_emulation")
    derived = everything.images[everything.images["variant"] == "derived"]
    assert everything.images["selected"].all()
    assert derived["variant_of"].tolist() == [chosen["image_id"]]


def test_oasis1_derived_file_stands_in_for_a_damaged_average(tmp_path: Path) -> None:
    write_csv(tmp_path / "oasis_cross-sectional.csv", CROSS, cross("OAS1_0001_MR1"))
    oasis1(tmp_path, "OAS1_0001_MR1", 1).with_suffix(".img").write_bytes(b"cut")
    write_image(tmp_path / "disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc.hdr", 20)
    result = run("OASIS", tmp_path)
    assert reason_names(result) == ["IMAGE_TRUNCATED"]
    assert result.images["variant"].tolist() == ["derived"]


def test_oasis2_pairs_years_of_education_and_group(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "oasis_longitudinal.csv", LONG,
        ["OAS2_0001", "OAS2_0001_MR1", "Converted", 1, 0, "M", "R", 75, 14, 2, 29, 0, 1400, 0.75, 1.2],
        ["OAS2_0001", "OAS2_0001_MR2", "Converted", 2, 457, "M", "R", 76, 14, 2, 45, 0.5, 1400, 0.75, 1.2],
        delimiter=";", encoding="utf-8-sig",
    )  # fmt: skip
    for number, session in ((1, "MR1"), (2, "MR1"), (1, "MR2")):
        folder = tmp_path / "OAS2_RAW_PART1" / f"OAS2_0001_{session}" / "RAW"
        write_image(folder / f"mpr-{number}.nifti.hdr", number + 10 * len(session) + (session == "MR2") * 5)
    result = run("OASIS", tmp_path)
    images = by_key(result)
    assert set(images) == {"OAS2_0001_MR1/mpr-1", "OAS2_0001_MR1/mpr-2", "OAS2_0001_MR2/mpr-1"}
    first, second = images["OAS2_0001_MR1/mpr-1"], images["OAS2_0001_MR2/mpr-1"]
    assert (first["dx_native"], second["dx_native"], first["dx_subject_level"]) == ("Non-DEM", "DEM", "Converted")
    assert (first["educ_years"], first["educ_code"], second["scan_day"]) == (14, None, 457)
    assert (first["source_format"], first["run"], images["OAS2_0001_MR1/mpr-2"]["run"]) == ("nifti_pair", 1, 2)
    assert [images[k]["selected"] for k in sorted(images)] == [True, False, True]
    assert second["mmse"] is None
    key = json.dumps({"native_subject_id": "OAS2_0001", "visit_code": "MR2", "column": "MMSE"}, sort_keys=True)
    assert reasons(result) == {("VALUE_OUT_OF_RANGE", "null_field", key): 1}
    assert result.field_issues["column"].tolist() == ["MMSE"]
    # Every repeat counts where asked for.
    assert run("OASIS", tmp_path, oasis_unit="run").images["selected"].all()


def test_oasis3_two_people_on_the_same_day_keep_their_own_scores(tmp_path: Path) -> None:
    files = tmp_path / "OASIS3_data_files"
    write_csv(
        files / "OASIS3_demographics.csv",
        "OASISID|AgeatEntry|GENDER|EDUC|SES|HAND|APOE",
        ["OAS30001", 65.1, 2, 12, 2, "R", 33],
        ["OAS30002", 70, 1, 16, 1, "L", 34],
    )
    write_csv(
        files / "OASIS3_UDSb4_cdr.csv", "OASISID|OASIS_session_label|days_to_visit|MMSE|CDRSUM|CDRTOT|dx1",
        ["OAS30001", "OAS30001_UDSb4_d0100", "0100", 29, 0, 0, "Cognitively normal"],
        ["OAS30002", "OAS30002_UDSb4_d0100", "0100", 18, 5, 1, "AD Dementia"],
        ["OAS30002", "OAS30002_UDSb4_d1500", "1500", 10, 9, 2, "AD Dementia"],
    )  # fmt: skip
    for seed, (subject, day) in enumerate((("OAS30001", "d0129"), ("OAS30002", "d0129"), ("OAS30002", "d0900"))):
        folder = tmp_path / f"{subject}_MR_{day}" / "anat2"
        write_image(folder / f"sub-{subject}_ses-{day}_run-01_T1w.nii.gz", seed)
    write_image(tmp_path / "OAS30001_MR_d0129/anat3/sub-OAS30001_ses-d0129_T2w.nii.gz", 9)
    result = run("OASIS", tmp_path)
    images = {record["native_subject_id"]: record for record in by_key(result).values()}
    assert (images["OAS30001"]["mmse"], images["OAS30001"]["cdr_global"], images["OAS30001"]["dx_native"]) == (
        29,
        0,
        "NC",
    )
    assert (images["OAS30002"]["mmse"], images["OAS30002"]["cdr_global"], images["OAS30002"]["dx_native"]) == (
        18,
        1,
        "AD_DEM",
    )
    assert images["OAS30001"]["age_years"] == pytest.approx(65.1 + 129 / 365.25)
    assert images["OAS30001"]["match_delta_days"] == 29
    assert (images["OAS30001"]["sex"], images["OAS30002"]["sex"]) == ("F", "M")
    assert reason_names(result) == ["NOT_T1", "NO_VISIT_IN_WINDOW"]


def test_oasis3_older_exports(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "ADRC Clinical Data.csv",
        "ADRC_ADRCCLINICALDATA ID|Subject|Date|Age|mmse|ageAtEntry|cdr|dx1|apoe|sumbox",
        ["OAS30001_ClinicalData_d0000", "OAS30001", "", "65", "28", "65.5", "0.5", "uncertain dementia", "34", "."],
    )  # fmt: skip
    write_csv(tmp_path / "Subjects.csv", "Subject|M/F|Hand|Education|Race", ["OAS30001", "F", "R", "12", "White"])
    write_image(tmp_path / "OAS30001_MR_d0010/anat1/NIFTI/sub-OAS30001_ses-d0010_T1w.nii.gz", 1)
    record = next(iter(by_key(run("OASIS", tmp_path)).values()))
    assert (record["mmse"], record["cdr_global"], record["cdr_sb"], record["dx_native"]) == (28, 0.5, None, "DEM")
    assert (record["sex"], record["educ_years"], record["visit_code"]) == ("F", 12, "d0000")


def test_real_oasis1(real_data: Path) -> None:
    result = run("OASIS", real_data / "oasis1_mni_2mm", workers=2)
    assert len(result.images) == result.images_found == 255
    assert result.images["cdr_global"].notna().sum() == 190
    assert set(result.quarantine["reason"]) == {"NO_DIAGNOSIS"}
    assert (result.images["dx_native"].isna() == result.images["cdr_global"].isna()).all()
    assert result.images["selected"].all()


# --------------------------------------------------------------------------------------------------------------- IXI


@pytest.mark.parametrize("form", ["participants", "public csv", "public xlsx"])
def test_ixi_table_forms(tmp_path: Path, form: str) -> None:
    public = "IXI_ID|SEX_ID (1=m, 2=f)|HEIGHT|WEIGHT|DOB|DATE_AVAILABLE|STUDY_DATE|AGE"
    if form == "participants":
        write_csv(tmp_path / "participants.csv", "IXI_ID|SEX|AGE", ["IXI014", "F", 34.24], ["IXI002", "M", 35])
    else:
        rows = [[14, 2, 164, 58, "", 1, "", 34.24], [2, 1, 170, 70, "", 0, "", 35], [2, 1, 170, 70, "", 0, "", 35],
                [77, 1, 170, 70, "", 1, "", 0]]  # fmt: skip
        (write_csv if form == "public csv" else write_xlsx)(tmp_path / f"IXI.{form[-4:].strip()}", public, *rows)
    write_image(tmp_path / "IXI014-HH-1236_T1.nii.gz", 1)
    write_image(tmp_path / "IXI002-Guys-0828-T1.nii.gz", 2)
    write_image(tmp_path / "IXI077-IOP-0900-T1.nii.gz", 3)
    write_image(tmp_path / "IXI014-HH-1236-T2.nii.gz", 4)
    write_image(tmp_path / "brain.nii.gz", 5)
    result = run("IXI", tmp_path)
    images = {record["native_subject_id"]: record for record in by_key(result).values()}
    assert (images["IXI014"]["sex"], images["IXI014"]["age_years"]) == ("F", pytest.approx(34.24))
    assert (images["IXI002"]["sex"], images["IXI002"]["field_strength_t"]) == ("M", 1.5)
    expected = ["ID_UNPARSABLE", "NOT_T1"]
    if form == "participants":
        assert "IXI077" not in images
        expected = ["ID_NOT_IN_CLINICAL", *expected]
    else:
        assert images["IXI077"]["age_years"] is None
        expected = ["AGE_MISSING", "DUPLICATE_KEY_IDENTICAL", *expected]
    assert reason_names(result) == expected


def test_ixi_rows_that_contradict_each_other(tmp_path: Path) -> None:
    write_csv(tmp_path / "IXI.csv", "IXI_ID|SEX|AGE", [14, "F", 34], [14, "F", 43])
    write_image(tmp_path / "IXI014-HH-1236-T1.nii.gz", 1)
    result = run("IXI", tmp_path)
    assert next(iter(by_key(result).values()))["age_years"] is None
    assert reason_names(result) == ["AGE_MISSING", "DUPLICATE_KEY_CONFLICT"]


def test_real_ixi(real_data: Path) -> None:
    result = run("IXI", real_data / "ixi_t1_2mm", workers=2)
    assert len(result.images) == result.images_found == 60
    assert result.quarantine.empty
    assert result.images["age_years"].between(20, 75).all()


# -------------------------------------------------------------------------------------------------------------- ADNI

MERGE = "RID|COLPROT|PTID|VISCODE|EXAMDATE|DX_bl|AGE|PTGENDER|PTEDUCAT|APOE4|CDRSB|MMSE|LDELTOTAL|EXAMDATE_bl|DX"
DXSUM = "PHASE|RID|PTID|VISCODE|VISCODE2|EXAMDATE|DXCURREN|DXCHANGE|DIAGNOSIS"


def merge(rid: int, code: str, date: str, dx: str = "CN", **changes: Any) -> list[Any]:
    row = {
        "RID": rid, "COLPROT": "ADNI1", "PTID": f"005_S_{rid:04d}", "VISCODE": code, "EXAMDATE": date, "DX_bl": "LMCI",
        "AGE": 74.3, "PTGENDER": "Female", "PTEDUCAT": 16, "APOE4": 1, "CDRSB": 0.5, "MMSE": "-4.0", "LDELTOTAL": "",
        "EXAMDATE_bl": "2005-09-08", "DX": dx, **changes,
    }  # fmt: skip
    return [row[name] for name in MERGE.split("|")]


def test_adni_visits_ages_and_screening_cdr(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "clinical" / "ADNIMERGE_17Nov2024.csv", MERGE, merge(10, "bl", "2005-09-08", "MCI"),
        merge(10, "m12", "2006-09-10", "MCI to Dementia", MMSE=24),
        merge(100, "bl", "2005-09-08", "CN", PTGENDER="Male"),
        merge(100, "m06", "2006-03-05", "", PTGENDER="Male"),
    )  # fmt: skip
    write_csv(
        tmp_path / "CDR.csv",
        "RID|VISCODE|VISCODE2|VISDATE|CDGLOBAL",
        [10, "sc", "sc", "2005-08-20", "0.5"],
        ["10.0", "m12", "m12", "2006-09-10", "1.0"],
        [100, "sc", "sc", "2005-08-21", "0"],
    )
    write_csv(tmp_path / "NEUROBAT.csv", "RID|VISCODE2|LIMMTOTAL|LDELTOTAL", [10, "bl", 9, "-4"])
    adni_image(tmp_path / "part_1" / "ADNI", "005_S_0010", "2005-08-30", 101, 1)
    adni_image(tmp_path / "part_2" / "ADNI", "005_S_0010", "2006-10-01", 102, 2)
    adni_image(tmp_path / "ADNI", "005_S_0100", "2005-09-20", 103, 3)
    adni_image(tmp_path / "ADNI", "005_S_0100", "2006-03-01", 104, 4)
    adni_image(tmp_path / "ADNI", "005_S_0100", "2009-03-01", 105, 5)
    adni_image(tmp_path / "ADNI", "005_S_0100", "2006-03-02", 106, 6, series="Axial_T2-FLAIR")
    adni_image(tmp_path / "ADNI", "005_S_7777", "2006-03-02", 107, 7)
    result = run("ADNI", tmp_path)
    images = by_key(result)
    first, second = images["I101"], images["I102"]
    assert (first["visit_code"], first["dx_native"], first["cdr_global"], first["mmse"]) == ("bl", "MCI", 0.5, None)
    assert (first["match_delta_days"], first["session_id"]) == (-9, "ses-M000")
    assert (second["visit_code"], second["dx_native"], second["cdr_global"], second["mmse"]) == (
        "m12",
        "Dementia",
        1,
        24,
    )
    assert second["age_years"] == pytest.approx(74.3 + 388 / 365.25, abs=0.01)
    assert (first["lm_immediate"], first["lm_delayed"], second["lm_immediate"]) == (9, None, None)
    assert first["dx_subject_level"] == "LMCI"
    # RID 10 and RID 100 are two people.
    assert (images["I103"]["sex"], images["I103"]["cdr_global"]) == ("M", 0)
    # A visit without a diagnosis stays without one: nothing is carried over from baseline.
    assert images["I104"]["dx_native"] is None
    assert reason_names(result) == ["ID_NOT_IN_CLINICAL", "NOT_T1", "NO_DIAGNOSIS", "NO_VISIT_IN_WINDOW"]
    provenance = json.loads(second["provenance"])["values"]
    assert provenance["cdr_global"] == {"file": "CDR.csv", "row": 3, "rule": "CDGLOBAL at m12"}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"DIAGNOSIS": "2"}, "MCI"),
        ({"DIAGNOSIS": "3.0"}, "Dementia"),
        *[({"DXCHANGE": str(code)}, dx) for code, dx in
          {1: "CN", 2: "MCI", 3: "Dementia", 4: "MCI", 5: "Dementia", 6: "Dementia", 7: "CN", 8: "MCI",
           9: "CN"}.items()],
        ({"DXCURREN": "1", "DXCHANGE": "-4"}, "CN"),
        ({"DXCURREN": "-4"}, None),
    ],
)  # fmt: skip
def test_adni_without_adnimerge(tmp_path: Path, columns: dict[str, str], expected: str | None) -> None:
    row = {"PHASE": "ADNI2", "RID": "223", "PTID": "005_S_0223", "VISCODE": "v11", "VISCODE2": "m12",
           "EXAMDATE": "2012-05-01",
           **columns}  # fmt: skip
    write_csv(tmp_path / "DXSUM_PDXCONV_ADNIALL.csv", DXSUM, [row.get(name, "") for name in DXSUM.split("|")])
    write_csv(tmp_path / "PTDEMOG.csv", "RID|VISCODE2|PTGENDER|PTDOBYY|PTDOBMM|PTEDUCAT", [223, "sc", 2, 1940, 5, 12])
    write_csv(tmp_path / "MMSE.csv", "RID|VISCODE|MMSCORE", [223, "v11", 27])
    write_csv(tmp_path / "APOERES.csv", "RID|VISCODE2|GENOTYPE", [223, "sc", "4/3"])
    adni_image(tmp_path, "005_S_0223", "2012-05-20", 5, 1)
    record = by_key(run("ADNI", tmp_path))["I5"]
    assert (record["dx_native"], record["mmse"], record["apoe_genotype"], record["apoe4_count"]) == (
        expected,
        27,
        "34",
        1,
    )
    assert record["age_years"] == pytest.approx(72.0, abs=0.05)


def test_adni_conflicts_and_unknown_codes(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08", "CN"), merge(2, "bl", "2005-09-08", "CN"),
        merge(2, "bl", "2005-09-08", "MCI"), merge(3, "bl", "2005-09-08", "CN"), merge(3, "bl", "2005-09-08", "CN"),
    )  # fmt: skip
    write_csv(
        tmp_path / "DXSUM.csv",
        DXSUM,
        ["ADNI1", 1, "005_S_0001", "bl", "bl", "2005-09-08", "", "", 2],
        ["ADNI1", 1, "005_S_0001", "nv", "nv", "2008-09-08", "", "", 3],
    )
    for rid in (1, 2, 3):
        adni_image(tmp_path, f"005_S_{rid:04d}", "2005-09-08", 10 + rid, rid)
    result = run("ADNI", tmp_path)
    images = by_key(result)
    assert (images["I11"]["dx_native"], images["I12"]["dx_native"], images["I13"]["dx_native"]) == ("MCI", None, "CN")
    assert reason_names(result) == [
        "DIAGNOSIS_CONFLICT", "DUPLICATE_KEY_CONFLICT", "DUPLICATE_KEY_IDENTICAL", "NO_DIAGNOSIS", "VISCODE_UNKNOWN"
    ]  # fmt: skip


def test_adni_one_image_per_visit_prefers_the_protocols_choice(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08", "CN"))
    for uid, series in enumerate(
        ("MP-RAGE", "MP-RAGE_REPEAT", "MPR__GradWarp__B1_Correction__N3__Scaled", "MPR__GradWarp__B1_Correction__N3"),
        start=1,
    ):
        adni_image(tmp_path, "005_S_0001", "2005-09-08", uid, uid, series=series)
    result = run("ADNI", tmp_path)
    assert len(result.images) == 4
    assert result.images.loc[result.images["selected"], "native_image_key"].tolist() == ["I3"]
    assert sorted(result.images["run"]) == [1, 2, 3, 4]
    assert run("ADNI", tmp_path, form="table1_emulation").images["selected"].all()


# --------------------------------------------------------------------------------------------------------------- NACC

UDS = (
    "naccid|NACCVNUM|PACKET|FORMVER|VISITYR|VISITMO|VISITDAY|SEX|BIRTHYR|BIRTHMO|EDUC|NACCMMSE|LOGIMEM|MEMUNITS|CDRGLOB|"
    "CDRSUM|NACCUDSD|NACCALZD|EXTRA"
)
MRI = "NACCID|NACCMRFI|NACCMNUM|NACCVNUM|NACCMRDY|MRIYR|MRIMO|MRIDY|MRIFIELD|HIPPOVOL|NACCICV"
T1 = {
    "SeriesDescription": "SAG MPRAGE",
    "MRAcquisitionType": "3D",
    "SliceThickness": 1.2,
    "MagneticFieldStrength": 15000,
}


def uds(
    subject: str, number: int, date: tuple[int, int, int], syndrome: Any = 1, sex: Any = 2, **changes: Any
) -> list[Any]:
    row = {"naccid": subject, "NACCVNUM": number, "PACKET": "I", "FORMVER": 2, "VISITYR": date[0], "VISITMO": date[1],
           "VISITDAY": date[2], "SEX": sex, "BIRTHYR": 1940, "BIRTHMO": 6, "EDUC": 16, "NACCMMSE": 28, "LOGIMEM": 95,
           "MEMUNITS": 12, "CDRGLOB": 0, "CDRSUM": 0, "NACCUDSD": syndrome, "NACCALZD": 8, "EXTRA": "x",
           **changes}  # fmt: skip
    return [row[name] for name in UDS.split("|")]


def test_nacc_labels_matching_and_sentinels(tmp_path: Path) -> None:
    people = {f"NACC00000{n}": n for n in range(1, 5)}
    rows = [uds(subject, 1, (2010, 1, 10), code, NACCALZD=1 if code == 4 else 8, CDRGLOB=1 if code == 4 else 0)
            for subject, code in people.items()]  # fmt: skip
    rows.append(uds("NACC000001", 2, (2010, 8, 20), 3))
    write_csv(tmp_path / "investigator_nacc71.csv", UDS, *rows)
    sessions = [[s, f"mri10{n}.zip", 1, 1, 5, 2010, 1, 15, 2, 888.8888, "9999.999"] for s, n in people.items()]
    sessions.append(["NACC000001", "mri200.zip", 2, 2, -40, 2010, 7, 11, 1, 6.5, 1400.5])
    write_csv(tmp_path / "investigator_mri_nacc71.csv", MRI, *sessions)
    for n in range(1, 5):
        nacc_session(tmp_path, f"mri10{n}", {"T1": (image_bytes(n), T1)})
    nacc_session(tmp_path, "mri200", {"MPRAGE": (image_bytes(9), T1)})
    result = run("NACC", tmp_path)
    images = by_key(result)
    labels = {key: images[key]["dx_native"] for key in images}
    assert labels == {
        "mri101/T1.nii": "NC", "mri102/T1.nii": "IMCI", "mri103/T1.nii": "MCI", "mri104/T1.nii": "DEM",
        "mri200/MPRAGE.nii": "MCI",
    }  # fmt: skip
    assert images["mri104/T1.nii"]["dementia_etiology"] == "AD"
    late = images["mri200/MPRAGE.nii"]
    assert (late["visit_code"], late["match_delta_days"], late["session_id"]) == ("2", -40, "ses-MR02")
    assert (late["hippocampus_mm3"], late["field_strength_t"]) == (6500, 1.5)
    assert images["mri101/T1.nii"]["hippocampus_mm3"] is None
    assert (late["lm_immediate"], late["lm_delayed"], late["sex"]) == (None, 12, "F")
    assert result.quarantine.empty


def test_nacc_sessions_hold_more_than_t1(tmp_path: Path) -> None:
    write_csv(tmp_path / "investigator_nacc71.csv", UDS, uds("NACC000001", 1, (2010, 1, 10)))
    write_csv(
        tmp_path / "investigator_mri_nacc71.csv", MRI, ["NACC000001", "mri1.zip", 1, 1, 5, 2010, 1, 15, 2, "", ""]
    )
    nacc_session(
        tmp_path, "mri1",
        {
            "a": (image_bytes(1), T1), "b_repeat": (image_bytes(2), {**T1, "SeriesDescription": "MPRAGE_REPEAT"}),
            "c": (image_bytes(3), {**T1, "SeriesDescription": "AX T2 FLAIR"}),
            "d": (image_bytes(4), {**T1, "SeriesDescription": "T1 AX", "MRAcquisitionType": "2D"}),
            "e": (image_bytes(5), {**T1, "SeriesDescription": "MPR reformat", "SliceThickness": 3}),
            "f_Eq_1": (image_bytes(6), T1), "g": (image_bytes(7), {"SeriesDescription": "EPI"}),
        },
    )  # fmt: skip
    write_image(tmp_path / "mri" / "mri1ni" / "a.nii", 1)
    result = run("NACC", tmp_path)
    assert reason_names(result) == ["DUPLICATE_KEY_IDENTICAL", "KNOWN_BAD_CONVERSION", *["NOT_T1"] * 4]
    images = by_key(result)
    assert {key: record["selected"] for key, record in images.items()} == {
        "mri1/a.nii": True,
        "mri1/b_repeat.nii": False,
    }
    assert images["mri1/a.nii"]["source_path"] == "mri/mri1ni/a.nii"


def test_nacc_dates_outside_the_code_book(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "investigator_nacc71.csv",
        UDS,
        uds("NACC000001", 1, (2010, 1, 10)),
        uds("NACC000002", 1, (2010, 1, 10)),
        uds("NACC000003", 1, (2010, 1, 10), sex=""),
        uds("NACC000004", 1, (2010, 1, 10), 8),
    )
    write_csv(
        tmp_path / "investigator_mri_nacc71.csv", MRI, ["NACC000001", "mri1.zip", 1, 1, 21, 2010, 88, 99, 2, "", ""],
        ["NACC000002", "mri2.zip", 1, 88, 8888, 1999, 1, 1, 2, "", ""],
        ["NACC000003", "mri3.zip", 1, 1, 0, 2010, 1, 10, 2, "", ""],
        ["NACC000004", "mri4.zip", 1, 1, 0, 2010, 1, 10, 2, "", ""],
    )  # fmt: skip
    for n in range(1, 6):
        nacc_session(tmp_path, f"mri{n}", {"T1": (image_bytes(n), None)})
    (tmp_path / "mri" / "mri6.zip").write_bytes(b"no archive")
    result = run("NACC", tmp_path)
    assert reason_names(result) == [
        "DATE_UNPARSABLE", "DIAGNOSIS_OUT_OF_SCOPE", "FILE_WITHOUT_RECORD", "FILE_WITHOUT_RECORD", "NO_VISIT_IN_WINDOW",
        "SEX_MISSING",
    ]  # fmt: skip
    assert by_key(result)["mri1/T1.nii"]["match_delta_days"] == 21


def test_nacc_large_forms_are_read_by_column(tmp_path: Path) -> None:
    wide = UDS + "|" + "|".join(f"UNUSED{n}" for n in range(300))
    write_csv(tmp_path / "commercial_nacc65.csv", wide, uds("NACC000001", 1, (2010, 1, 10)) + ["1"] * 300)
    write_csv(tmp_path / "request11152019mri.csv", MRI, ["NACC000001", "mri1.zip", 1, 1, 5, 2010, 1, 15, 2, "", ""])
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), T1)})
    assert len(run("NACC", tmp_path).images) == 1


# --------------------------------------------------------------------------------------------------------------- AIBL


def aibl_tables(root: Path, *rids: int, dx: Any = 1) -> None:
    data = root / "Data_extract_3.3.0"
    write_csv(
        data / "aibl_pdxconv_01-Jun-2018.csv",
        "RID|SITEID|VISCODE|DXCURREN|DXNORM|DXMCI|DXAD",
        *[[rid, 1, "bl", dx, "", "", ""] for rid in rids],
        *[[rid, 1, "m18", 2, "", "", ""] for rid in rids],
    )
    write_csv(
        data / "aibl_ptdemog_01-Jun-2018.csv",
        "RID|SITEID|VISCODE|PTGENDER|PTDOB",
        *[[rid, 1, "bl", 1 + rid % 2, "/1934"] for rid in rids],
    )
    write_csv(
        data / "aibl_mri3meta_01-Jun-2018.csv",
        "RID|SITEID|VISCODE|EXAMDATE|MMSMPRAGE",
        *[[rid, 1, "bl", "12/20/2007", 1] for rid in rids],
        *[[rid, 1, "m18", "-4", 1] for rid in rids],
    )
    write_csv(
        data / "aibl_cdr_01-Jun-2018.csv",
        "RID|SITEID|VISCODE|EXAMDATE|CDGLOBAL",
        *[[rid, 1, "bl", "12/1/2007", "0.5"] for rid in rids],
        *[[rid, 1, "m18", "6/1/2009", "0"] for rid in rids],
    )


def test_aibl_visits_by_date_across_the_new_year(tmp_path: Path) -> None:
    aibl_tables(tmp_path, 10, 100, 1)
    (tmp_path / "Data_extract_3.3.0" / "aibl_flutemeta_28-Apr-2015.csv").write_text(
        "RID,SITEID,VISCODE,EXAMDATE,AVAIL,METHOD,SCANNER,QC\n1,1,bl,1/3/2008,1,measured,AUSTIN AC CT Brain  H19s,x,0\n"
    )
    aibl_image(tmp_path, "10", "2008-01-05", 1, 1)
    aibl_image(tmp_path, "100", "2009-06-20", 2, 2)
    aibl_image(tmp_path, "1", "2012-01-05", 3, 3)
    aibl_image(tmp_path, "0151083", "2008-01-05", 4, 4)
    aibl_image(tmp_path, "10", "2008-01-05", 5, 5, series="PD_T2_TSE_Axial")
    result = run("AIBL", tmp_path)
    images = by_key(result)
    assert (images["I1"]["native_subject_id"], images["I2"]["native_subject_id"]) == ("10", "100")
    assert (images["I1"]["visit_code"], images["I1"]["match_delta_days"], images["I1"]["dx_native"]) == ("bl", 16, "NC")
    # MCI with a CDR of 0 is real: the diagnosis is DXCURREN.
    assert (images["I2"]["visit_code"], images["I2"]["dx_native"], images["I2"]["cdr_global"]) == ("m18", "MCI", 0)
    assert (images["I1"]["age_years"], images["I1"]["age_precision"]) == (74, "year")
    assert reason_names(result) == ["CSV_BAD_LINE", "ID_NOT_IN_CLINICAL", "NOT_T1", "NO_VISIT_IN_WINDOW"]


def test_aibl_image_list_says_the_visit(tmp_path: Path) -> None:
    aibl_tables(tmp_path, 10, dx=-4)
    write_csv(tmp_path / "idaSearch_6_1_2018.csv", "Image Data ID|Subject|Sex|Age|Visit|Description|Acq Date",
              ["I1", 10, "M", 73.4, "1", "MPRAGE_ADNI_confirmed", "12/25/2007"],
              ["2", 10, "M", 74.9, "18 Month follow-up", "MPRAGE_ADNI_confirmed", "12/25/2007"],
              ["3", 10, "F", 74.9, "2", "MPRAGE_ADNI_confirmed", "12/25/2007"],
              ["4", 10, "M", 74.9, "m72", "MPRAGE_ADNI_confirmed", "12/25/2007"])  # fmt: skip
    for uid in range(1, 5):
        aibl_image(tmp_path, "10", "2007-12-25", uid, uid)
    result = run("AIBL", tmp_path)
    images = by_key(result)
    assert (images["I1"]["visit_code"], images["I1"]["dx_native"], images["I1"]["match_method"]) == (
        "bl",
        None,
        "ida_visit",
    )
    assert (images["I2"]["visit_code"], images["I2"]["dx_native"]) == ("m18", "MCI")
    assert images["I1"]["age_years"] == pytest.approx(73.4)
    assert reason_names(result) == ["NO_DIAGNOSIS", "NO_VISIT_IN_WINDOW", "SEX_CONFLICT"]


def test_aibl_laboratory_units(tmp_path: Path) -> None:
    aibl_tables(tmp_path, 10)
    write_csv(
        tmp_path / "Data_extract_3.3.0" / "aibl_labdata_01-Jun-2018.csv",
        "RID|VISCODE|EXAMDATE|RCT11|RCT392|HMT40",
        [10, "bl", "12/1/2007", "5.5", "80", "NO SPECIMEN"],
    )
    aibl_image(tmp_path, "10", "2007-12-25", 1, 1)
    result = run("AIBL", tmp_path)
    labs = json.loads(by_key(result)["I1"]["labs"])
    assert labs == {"creatinine": pytest.approx(0.905, abs=1e-3), "glucose": pytest.approx(99.1, abs=0.1)}
    assert result.quarantine.empty
    assert result.field_issues["column"].tolist() == ["HMT40"]


# ------------------------------------------------------------------------------------------------------------- MIRIAD


def test_miriad_without_any_table(tmp_path: Path) -> None:
    write_image(tmp_path / "miriad_188_AD_M_01_MR_1.nii", 1)
    write_image(tmp_path / "miriad_188_AD_M_01_MR_2.nii", 2)
    write_image(tmp_path / "miriad_240_HC_F_07_MR_1" / "miriad_240_HC_F_07_MR_1.nii.gz", 3)
    write_image(tmp_path / "stray.nii", 4)
    result = run("MIRIAD", tmp_path)
    images = by_key(result)
    first, control = images["miriad_188_AD_M_01_MR_1"], images["miriad_240_HC_F_07_MR_1"]
    assert (first["dx_native"], first["sex"], first["selected"], first["age_years"]) == ("AD", "M", True, None)
    assert (control["dx_native"], control["session_id"], control["visit_code"]) == ("HC", "ses-V07", "07")
    assert not images["miriad_188_AD_M_01_MR_2"]["selected"]
    assert reason_names(result) == ["AGE_MISSING", "AGE_MISSING", "AGE_MISSING", "ID_UNPARSABLE"]


def test_miriad_tables_are_known_by_header_and_scores_stay_at_their_visit(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "me_1_2_2020_3_4_5.csv",
        "MR ID|Subject|M/F|Age|Project|Date|Type|Scanner|Scans",
        ["miriad_188_1_MR_1", "miriad_188", "M", 66.31, "", "", "", "", ""],
        ["miriad_188_2_MR_1", "miriad_188", "M", 66.35, "", "", "", "", ""],
    )
    write_csv(
        tmp_path / "me_1_2_2020_3_4_9.csv",
        "Label|Subject|MMSE|CDR",
        ["miriad_188_1_MMSE", "miriad_188", 21, ""],
        ["miriad_188_1_CDR", "miriad_188", "", "0.5"],
    )
    for seed, name in enumerate(("01_MR_1", "01_MR_2", "02_MR_1")):
        write_image(tmp_path / f"miriad_188_AD_M_{name}.nii", seed)
    result = run("MIRIAD", tmp_path)
    images = by_key(result)
    assert [images[f"miriad_188_AD_M_{n}"]["mmse"] for n in ("01_MR_1", "01_MR_2", "02_MR_1")] == [21, 21, None]
    assert images["miriad_188_AD_M_01_MR_2"]["cdr_global"] == 0.5
    assert images["miriad_188_AD_M_02_MR_1"]["age_years"] == pytest.approx(66.35)
    assert result.quarantine.empty


def test_miriad_folder_form_takes_group_and_sex_from_the_tables(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "subjects.csv",
        "Subject|Gender|Hand|YOB|Education|Ses|MR Count|Group",
        ["miriad_193", "female", "", "", "", "", 1, "AD"],
    )
    write_image(tmp_path / "miriad_193_1_MR_1" / "SCANS" / "SCAN1" / "scan.nii", 1)
    record = next(iter(by_key(run("MIRIAD", tmp_path)).values()))
    assert (record["dx_native"], record["sex"], record["session_id"]) == ("AD", "F", "ses-V01")


def test_equal_voxels_of_one_person_and_of_two(tmp_path: Path) -> None:
    for name, seed in (
        ("188_AD_M_01_MR_1", 1),
        ("188_AD_M_01_MR_2", 1),
        ("200_AD_F_01_MR_1", 2),
        ("201_AD_F_01_MR_1", 2),
    ):
        write_image(tmp_path / f"miriad_{name}.nii", seed)
    result = run("MIRIAD", tmp_path)
    assert list(by_key(result)) == ["miriad_188_AD_M_01_MR_1"]
    assert reason_names(result).count("DUPLICATE_IMAGE_BYTES") == 3


# --------------------------------------------------------------------------------------------------------- all cohorts


@pytest.mark.parametrize("cohort", sorted(COHORTS))
def test_missing_folders_images_and_tables_are_errors_that_help(tmp_path: Path, cohort: str) -> None:
    with pytest.raises(InputError) as error:
        run(cohort, tmp_path / "absent")
    assert "absent" in str(error.value)
    with pytest.raises(InputError) as error:
        run(cohort, tmp_path)
    assert "remedy" in str(error.value)
    statuses = {finding.status for finding in doctor(cohort, tmp_path)}
    assert "missing" in statuses


def test_an_unknown_cohort() -> None:
    with pytest.raises(ParameterError):
        ingest_cohort("OASIS-9", Path(), params=None)  # type: ignore[arg-type]


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    oasis1(tmp_path, "OAS1_0001_MR1", 1)
    (tmp_path / "oasis_cross-sectional.xlsx").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(MissingTable, match=r"oasis_cross-sectional.xlsx \(cannot be read\)"):
        run("OASIS", tmp_path)


def test_two_ingests_write_equal_bytes_and_can_be_read_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "in" / "participants.csv", "IXI_ID|SEX|AGE", ["IXI014", "F", 34.24])
    write_image(tmp_path / "in" / "IXI014-HH-1236_T1.nii.gz", 1)
    write_image(tmp_path / "in" / "IXI015-HH-1236_T1.nii.gz", 2)
    for name in ("one", "two"):
        write_ingest(run("IXI", tmp_path / "in"), tmp_path / name, simulated=False)
    for name in ("images", "visits", "quarantine", "sources", "field_issues"):
        assert (tmp_path / "one" / f"{name}.parquet").read_bytes() == (
            tmp_path / "two" / f"{name}.parquet"
        ).read_bytes()
    again = read_ingest(tmp_path / "one")
    assert again.images_found == 2
    assert again.images.attrs["simulated"] == "false"
    assert again.sources["rows"].tolist() == [1]
    assert doctor("IXI", tmp_path / "in")[-1].status == "found"
