"""MIRIAD: names, session folders, the three exports in any combination, visits, scores and scans."""

from __future__ import annotations

import datetime
import itertools
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohort_trees import by_key, reason_names, run, voxels, write_csv, write_image
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cohorts import write_ingest
from medalign3d.cohorts.base import native_ids, participant_id_of, session_id_of
from medalign3d.cohorts.miriad import WEEKS, ScanName, scan_of
from medalign3d.ehr.labels import label_of
from medalign3d.errors import InputError
from medalign3d.simulate.images import dicom_slices

SESSIONS = "MR ID|Subject|M/F|Age|Project|Date|Type|Scanner|Scans"
CLINICAL = "Label|Subject|MMSE|CDR"
SUBJECTS = "Subject|Gender|Hand|YOB|Education|Ses|MR Count"


def session_row(label: str, age: Any = 70.25, sex: str = "F") -> list[Any]:
    return [label, label[:10], sex, age, "MIRIAD", "", "T1", "GE Signa 1.5T", "T1(1)"]


def exports(root: Path, sessions: bool = True, clinical: bool = True, subjects: bool = True) -> None:
    """Exports of one participant with AD (two visits, a rescan at the first) and one control."""
    if sessions:
        write_csv(
            root / "me_1_2_2020_3_4_5.csv", SESSIONS,
            session_row("miriad_188_1_MR_1", 70.25), session_row("miriad_188_1_MR_2", 70.25),
            session_row("miriad_188_5_MR_1", 70.75), session_row("miriad_199_1_MR_1", 66.5, "M"),
        )  # fmt: skip
    if clinical:
        write_csv(
            root / "me_1_2_2020_3_4_6.csv", CLINICAL,
            ["miriad_188_1_MMSE", "miriad_188", 21, ""], ["miriad_188_1_CDR", "miriad_188", "", "1.0"],
            ["miriad_188_5_MMSE", "miriad_188", 19, ""], ["miriad_199_1_MMSE", "miriad_199", 30, ""],
        )  # fmt: skip
    if subjects:
        write_csv(
            root / "me_1_2_2020_3_4_7.csv", SUBJECTS, ["miriad_188", "female", "left", "", "", "", 3],
            ["miriad_199", "male", "right", "", "", "", 1],
        )  # fmt: skip


def images(root: Path, *names: str) -> None:
    for seed, name in enumerate(
        names or ("188_AD_F_01_MR_1", "188_AD_F_01_MR_2", "188_AD_F_05_MR_1", "199_HC_M_01_MR_1")
    ):
        write_image(root / f"miriad_{name}.nii", 10 + seed)


# --------------------------------------------------------------------------------------------------------------- names


@given(
    st.integers(0, 999), st.sampled_from(["AD", "HC"]), st.sampled_from(["M", "F"]), st.integers(1, 99),
    st.integers(1, 9), st.sampled_from(["", ".nii", ".nii.gz", ".NII"]),
)  # fmt: skip
def test_names_say_everything_and_can_be_turned_back(
    number: int, group: str, sex: str, visit: int, scan: int, suffix: str
) -> None:
    native = f"miriad_{number:03d}"
    assert scan_of(f"{native}_{group}_{sex}_{visit:02d}_MR_{scan}{suffix}") == ScanName(native, visit, scan, group, sex)
    assert scan_of(f"{native}_{visit}_MR_{scan}") == ScanName(native, visit, scan)
    label = participant_id_of("MIRIAD", native)
    assert label.removeprefix("sub-").isalnum()
    assert native_ids(label) == ("MIRIAD", native)
    assert session_id_of("MIRIAD", f"{visit:02d}") == f"ses-V{visit:02d}"


@given(st.text(max_size=30))
def test_other_names_say_nothing(text: str) -> None:
    scan = scan_of(text)
    assert scan is None or text.strip().lower().startswith("miriad_")


@pytest.mark.parametrize(
    "name",
    ["miriad_188_AD_F_1_MR_1.nii", "miriad_188_XX_F_01_MR_1.nii", "x_miriad_188_AD_F_01_MR_1.nii",
     "miriad_188_AD_F_01_MR_1_seg.nii", "brain.nii"],
)  # fmt: skip
def test_files_of_other_names_are_reported(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, 1)
    assert reason_names(run("MIRIAD", tmp_path)) == ["ID_UNPARSABLE"]


def test_the_groups_of_known_participants_do_not_follow_the_numbers(tmp_path: Path) -> None:
    # 199 is a control and 242 has AD in the published images: the number must not be used to check the name.
    images(tmp_path, "199_HC_F_01_MR_1", "242_AD_F_01_MR_1")
    result = run("MIRIAD", tmp_path)
    assert [r["dx_native"] for r in by_key(result).values()] == ["HC", "AD"]
    assert reason_names(result) == ["AGE_MISSING"] * 2
    assert [label_of("MIRIAD", group).dx3 for group in ("HC", "AD")] == ["NC", "AD_DEM"]


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("present", list(itertools.product([True, False], repeat=3)))
def test_any_subset_of_the_exports(tmp_path: Path, present: tuple[bool, bool, bool]) -> None:
    sessions, clinical, subjects = present
    exports(tmp_path, *present)
    images(tmp_path)
    result = run("MIRIAD", tmp_path)
    records = by_key(result)
    assert len(records) == 4
    first, control = records["miriad_188_AD_F_01_MR_1"], records["miriad_199_HC_M_01_MR_1"]
    assert (first["sex"], first["dx_native"], control["sex"], control["dx_native"]) == ("F", "AD", "M", "HC")
    assert (first["age_years"], control["age_years"]) == ((70.25, 66.5) if sessions else (None, None))
    assert (first["mmse"], first["cdr_global"]) == ((21, 1.0) if clinical else (None, None))
    assert first["handedness"] == ("L" if subjects else None)
    assert reason_names(result) == ([] if sessions else ["AGE_MISSING"] * 4)
    assert len(result.sources) == sum(present)


def test_scores_hold_for_all_scans_of_their_visit_and_for_no_other(tmp_path: Path) -> None:
    exports(tmp_path)
    images(tmp_path)
    clean = by_key(run("MIRIAD", tmp_path))
    assert [(r["mmse"], r["cdr_global"], r["run"]) for r in clean.values()] == [
        (21, 1.0, 1), (21, 1.0, 2), (19, None, 1), (30, None, 1)
    ]  # fmt: skip
    emulated = by_key(run("MIRIAD", tmp_path, form="table1_emulation"))
    assert [(r["mmse"], r["cdr_global"]) for r in emulated.values()] == [
        (21, 1.0), (None, None), (19, None), (30, None)
    ]  # fmt: skip


def test_one_export_that_is_all_three(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "all.csv", "Label|Subject|M/F|Age|MMSE|CDR|CDR SB|Group",
        ["miriad_188_1_MR_1", "XNAT_S00123", "F", "70,25", 21, ".5", "2,5", "AD"],
    )  # fmt: skip
    write_image(tmp_path / "miriad_188_1_MR_1" / "SCANS" / "SCAN1" / "scan.nii.gz", 1)
    result = run("MIRIAD", tmp_path)
    (record,) = by_key(result).values()
    assert (record["age_years"], record["mmse"], record["cdr_global"], record["cdr_sb"]) == (70.25, 21, 0.5, 2.5)
    assert (record["dx_native"], record["native_subject_id"]) == ("AD", "miriad_188")
    assert result.quarantine.empty


def test_a_number_inside_another_id_is_no_participant(tmp_path: Path) -> None:
    exports(tmp_path, subjects=False)
    write_csv(tmp_path / "subjects.csv", SUBJECTS, ["XNAT_S00188", "male", "", "", "", "", 1])
    images(tmp_path)
    result = run("MIRIAD", tmp_path)
    assert by_key(result)["miriad_188_AD_F_01_MR_1"]["sex"] == "F"
    assert reason_names(result) == ["ID_UNPARSABLE"]


def test_a_score_whose_label_cannot_be_read_is_reported_and_given_to_nobody(tmp_path: Path) -> None:
    write_csv(tmp_path / "scores.csv", CLINICAL, ["miriad_188_MMSE", "miriad_188", 21, ""])
    images(tmp_path, "188_AD_F_01_MR_1")
    result = run("MIRIAD", tmp_path)
    assert next(iter(by_key(result).values()))["mmse"] is None
    assert reason_names(result) == ["AGE_MISSING", "ID_UNPARSABLE"]


def test_rows_that_contradict_each_other_empty_the_score(tmp_path: Path) -> None:
    images(tmp_path, "188_AD_F_01_MR_1")
    rows = ["miriad_188_1_MMSE", "miriad_188", 21, ""], ["miriad_188_1_MMSE", "miriad_188", 12, ""]
    write_csv(tmp_path / "scores.csv", CLINICAL, *rows)
    write_csv(tmp_path / "ages.csv", SESSIONS, session_row("miriad_188_1_MR_1"))
    one_table = run("MIRIAD", tmp_path)
    write_csv(tmp_path / "scores.csv", CLINICAL, rows[0])
    write_csv(tmp_path / "scores_again.csv", CLINICAL, rows[1])
    two_tables = run("MIRIAD", tmp_path)
    for result in (one_table, two_tables):
        assert next(iter(by_key(result).values()))["mmse"] is None
        assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT"]


def test_sex_of_names_and_tables_must_agree(tmp_path: Path) -> None:
    exports(tmp_path)
    images(tmp_path, "188_AD_M_01_MR_1", "199_HC_M_01_MR_1")
    result = run("MIRIAD", tmp_path)
    assert list(by_key(result)) == ["miriad_199_HC_M_01_MR_1"]
    assert reason_names(result) == ["IMAGE_WITHOUT_FILE", "IMAGE_WITHOUT_FILE", "SEX_CONFLICT"]


def test_group_of_names_and_tables(tmp_path: Path) -> None:
    write_csv(tmp_path / "subjects.csv", SUBJECTS + "|Group", ["miriad_188", "female", "", "", "", "", 1, "Control"])
    images(tmp_path, "188_AD_F_01_MR_1")
    result = run("MIRIAD", tmp_path)
    assert next(iter(by_key(result).values()))["dx_native"] == "AD"
    assert reason_names(result) == ["AGE_MISSING", "DIAGNOSIS_CONFLICT"]
    for seed, name in ((50, "189_AD_F_01_MR_1"), (51, "189_HC_F_02_MR_1")):
        write_image(tmp_path / f"miriad_{name}.nii", seed)
    result = run("MIRIAD", tmp_path)
    people = {key: record["dx_native"] for key, record in by_key(result).items()}
    assert people["miriad_189_AD_F_01_MR_1"] is people["miriad_189_HC_F_02_MR_1"] is None


# -------------------------------------------------------------------------------------------------------------- visits


def test_visit_numbers_are_no_weeks_and_skipped_visits_keep_the_others_numbers(tmp_path: Path) -> None:
    assert WEEKS == {1: 0, 2: 2, 3: 6, 4: 14, 5: 26, 6: 38, 7: 52, 8: 78, 9: 104}
    images(tmp_path, "188_AD_F_01_MR_1", "188_AD_F_04_MR_1", "188_AD_F_09_MR_1", "188_AD_F_10_MR_1")
    records = by_key(run("MIRIAD", tmp_path)).values()
    assert [(r["session_id"], r["visit_code"], r["scan_day"]) for r in records] == [
        ("ses-V01", "01", 0), ("ses-V04", "04", 98), ("ses-V09", "09", 728), ("ses-V10", "10", None),
    ]  # fmt: skip
    assert next(iter(records))["visit_month"] == 0


def test_a_carried_mmse_is_opt_in_and_marked(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "scores.csv", CLINICAL, ["miriad_188_1_MMSE", "miriad_188", 21, ""],
        ["miriad_188_5_MMSE", "miriad_188", 19, ""], ["miriad_189_1_MMSE", "miriad_189", 3, ""],
    )  # fmt: skip
    images(tmp_path, *(f"188_AD_F_0{n}_MR_1" for n in range(1, 8)))
    plain = by_key(run("MIRIAD", tmp_path))
    assert [r["mmse"] for r in plain.values()] == [21, None, None, None, 19, None, None]
    carried = by_key(run("MIRIAD", tmp_path, miriad_carry_mmse=True))
    assert [(r["mmse"], r["mmse_source"], r["mmse_age_days"]) for r in carried.values()] == [
        (21, "measured", None), (21, "carried", 14), (21, "carried", 42), (19, "carried", -84), (19, "measured", None),
        (19, "carried", 84), (None, None, None),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- files


def test_session_folders_take_the_rest_from_the_tables(tmp_path: Path) -> None:
    exports(tmp_path)
    write_image(tmp_path / "miriad_188_1_MR_2" / "SCANS" / "SCAN1" / "NIFTI" / "scan.nii", 1)
    write_image(tmp_path / "miriad_199_HC_M_01_MR_1" / "image.nii.gz", 2)
    result = run("MIRIAD", tmp_path)
    folder, named = by_key(result).values()
    assert (folder["sex"], folder["mmse"], folder["dx_native"], folder["age_years"]) == ("F", 21, None, 70.25)
    assert (named["sex"], named["dx_native"]) == ("M", "HC")
    assert reason_names(result) == ["IMAGE_WITHOUT_FILE"] * 2 + ["NO_DIAGNOSIS"]


def test_a_session_folder_of_dicom_slices(tmp_path: Path) -> None:
    exports(tmp_path)
    folder = tmp_path / "miriad_188_1_MR_1" / "SCANS" / "SCAN1"
    folder.mkdir(parents=True)
    for number, content in enumerate(dicom_slices(voxels(1), np.diag([1.5, 1.5, 1.5, 1.0]), {})):
        (folder / f"IM{number}").write_bytes(content)
    (record,) = by_key(run("MIRIAD", tmp_path)).values()
    assert (record["source_format"], record["age_years"], record["native_image_key"]) == (
        "dicom", 70.25, "miriad_188_1_MR_1/SCAN1",
    )  # fmt: skip


def test_zipped_sessions_are_read_and_a_packed_tar_is_remarked_on(tmp_path: Path) -> None:
    image = write_image(tmp_path / "made" / "miriad_188_AD_F_01_MR_1.nii", 1)
    with zipfile.ZipFile(tmp_path / "miriad_188_1_MR_1.zip", "w") as archive:
        archive.write(image, "miriad_188_1_MR_1/SCANS/SCAN1/miriad_188_AD_F_01_MR_1.nii")
    with tarfile.open(tmp_path / "MIRIAD.tgz", "w:gz") as packed:
        packed.add(image, image.name)
    image.unlink()
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 cut")
    result = run("MIRIAD", tmp_path)
    assert list(by_key(result)) == ["miriad_188_AD_F_01_MR_1"]
    assert reason_names(result) == ["AGE_MISSING", "IMAGE_WITHOUT_FILE", "IMAGE_WITHOUT_FILE"]
    assert result.quarantine["detail"].str.contains("unpack").any()


def test_tables_without_images_give_visits(tmp_path: Path) -> None:
    exports(tmp_path)
    result = run("MIRIAD", tmp_path)
    visits = result.visits.set_index(["native_subject_id", "visit_code"])
    assert visits["mmse"].tolist() == [21, 19, 30]
    assert visits["age_years"].tolist() == pytest.approx([70.25, 70.75, 66.5])
    assert visits["sex"].tolist() == ["F", "F", "M"]
    assert visits["visit_day"].tolist() == [0, 182, 0]
    assert result.images.empty
    missing = [json.loads(key)["native_image_key"] for key in result.quarantine["key_json"]]
    assert missing == ["miriad_188_1_MR_1", "miriad_188_1_MR_2", "miriad_188_5_MR_1", "miriad_199_1_MR_1"]
    assert len(result.sources) == 3


def test_only_a_packed_archive_is_an_error_that_helps(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "MIRIAD.tgz", "w:gz"):
        pass
    with pytest.raises(InputError, match="unpack"):
        run("MIRIAD", tmp_path)


def test_two_runs_are_equal_and_the_tables_order_does_not_matter(tmp_path: Path) -> None:
    exports(tmp_path / "in")
    images(tmp_path / "in")
    for name in ("one", "two"):
        write_ingest(run("MIRIAD", tmp_path / "in"), tmp_path / name, simulated=False)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    before = by_key(run("MIRIAD", tmp_path / "in"))
    today = datetime.date.today().isoformat()
    for number, path in enumerate(sorted((tmp_path / "in").glob("*.csv"), reverse=True)):
        path.rename(path.with_name(f"a{number}_{today}.csv"))
    after = by_key(run("MIRIAD", tmp_path / "in"))
    ignore = {"provenance"}
    assert {k: {c: v for c, v in r.items() if c not in ignore} for k, r in before.items()} == {
        k: {c: v for c, v in r.items() if c not in ignore} for k, r in after.items()
    }
