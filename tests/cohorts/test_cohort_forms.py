"""The two forms of a cohort's rows, and reading tables and paths without the images."""

from __future__ import annotations

import datetime
from pathlib import Path

import pandas as pd
import pytest
from cohort_trees import adni_image, by_key, nacc_session, reason_names, run, write_csv, write_image
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cohorts import read_ingest, write_ingest
from medalign3d.cohorts.emulation import same_months
from medalign3d.cohorts.listing import LISTING_NAME, list_unread_files
from medalign3d.ehr.harmonize import harmonize, write_harmonized
from medalign3d.ehr.splits import make_splits
from medalign3d.errors import InputError
from medalign3d.files import read_parquet
from medalign3d.params import Params
from medalign3d.training.data import read_images
from medalign3d.volumes.normalize import normalize_cohort

OASIS1 = "ID|M/F|Hand|Age|Educ|SES|MMSE|CDR|eTIV|nWBV|ASF|Delay"
UDS = "NACCID|NACCVNUM|VISITYR|VISITMO|VISITDAY|SEX|BIRTHYR|BIRTHMO|EDUC|CDRGLOB|CDRSUM|NACCUDSD|NACCALZD"
MRI = "NACCID|NACCMRFI|NACCMNUM|NACCVNUM|NACCMRDY|MRIYR|MRIMO|MRIDY"
VOXEL_FACTS = ["data_sha256", "source_sha256", "shape", "zooms", "orientation", "affine_source"]
NEURITE = ("orig", "norm", "aligned_orig", "aligned_norm")


def only(params: Params, cohort: str) -> Params:
    """The parameters with one cohort."""
    return params.model_copy(update={"cohorts": [cohort]})


def oasis_listing(root: Path) -> None:
    write_csv(
        root / "oasis_cross-sectional.csv",
        OASIS1,
        ["OAS1_0001_MR1", "F", "R", 74, 2, 3, 29, 0, 1344, 0.743, 1.306, "N/A"],
        ["OAS1_0002_MR1", "M", "R", 22, "", "", "", "", 1500, 0.85, 1.17, "N/A"],
    )
    lines = [f"./OASIS_OAS1_000{n}_MR1/{name}.nii.gz" for n in (1, 2) for name in NEURITE]
    (root / LISTING_NAME).write_text("\n".join([*lines, "./OASIS_OAS1_0001_MR1/seg4.nii.gz", "./notes.txt", ""]))


def test_listed_images_need_not_be_there_and_say_nothing_of_their_voxels(tmp_path: Path, demo_params: Params) -> None:
    oasis_listing(tmp_path / "raw")
    with pytest.raises(InputError, match="read_images: false"):
        run("OASIS", tmp_path / "raw")
    result = run("OASIS", tmp_path / "raw", read_images=False)
    assert sorted(result.images["native_subject_id"]) == ["OAS1_0001", "OAS1_0002"]
    assert result.images[VOXEL_FACTS].isna().all(axis=None)
    assert by_key(result)["OAS1_0001_MR1/orig"]["mmse"] == 29.0

    write_ingest(result, tmp_path / "tables", simulated=True)
    assert read_parquet(tmp_path / "tables" / "images.parquet").attrs["images_read"] == "false"
    again = read_ingest(tmp_path / "tables")
    assert not again.images_read
    harmonized = harmonize({"OASIS": again}, only(demo_params, "OASIS"))
    write_harmonized(harmonized, tmp_path / "ehr")
    written = read_parquet(tmp_path / "ehr" / "images.parquet")
    assert written.attrs["images_read"] == "false"
    assert written[["data_sha256", "shape", "zooms", "orientation", "affine_source"]].isna().all(axis=None)
    with pytest.raises(InputError, match="listed but not read"):
        normalize_cohort(written, tmp_path / "raw", demo_params.normalize, tmp_path / "volumes")


def test_images_that_were_read_must_have_facts_and_unread_ones_must_not(tmp_path: Path, demo_params: Params) -> None:
    oasis_listing(tmp_path / "raw")
    unread = run("OASIS", tmp_path / "raw", read_images=False)
    unread.images_read = True
    with pytest.raises(InputError, match="column shape"):
        harmonize({"OASIS": unread}, only(demo_params, "OASIS"))
    unread.images_read = False
    unread.images["orientation"] = "RAS"
    with pytest.raises(InputError, match="facts about voxels"):
        harmonize({"OASIS": unread}, only(demo_params, "OASIS"))


@pytest.mark.parametrize("line", ["/etc/a.nii", "../a.nii", "a/../../b.nii.gz", "..\\b.nii"])
def test_a_list_cannot_name_paths_outside_of_its_folder(tmp_path: Path, line: str) -> None:
    (tmp_path / LISTING_NAME).write_text(line + "\n")
    with pytest.raises(InputError, match="outside"):
        list_unread_files(tmp_path)


def test_a_list_adds_images_only(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / LISTING_NAME).write_text("\ufeff./b/c.nii\r\nb/c.nii\n\nd.csv\n.hidden/e.nii\nf.IMG\n")
    assert list_unread_files(tmp_path) == ["a.csv", "b/c.nii", "f.IMG", LISTING_NAME]


def test_oasis_variants_count_and_point_to_the_closest_to_the_acquisition(tmp_path: Path, demo_params: Params) -> None:
    oasis_listing(tmp_path)
    result = run("OASIS", tmp_path, read_images=False, form="table1_emulation")
    images = by_key(result)
    assert len(images) == 8
    for number in (1, 2):
        first = images[f"OAS1_000{number}_MR1/orig"]
        assert first["variant_of"] is None
        assert {images[f"OAS1_000{number}_MR1/{name}"]["variant_of"] for name in NEURITE[1:]} == {first["image_id"]}
    assert result.images["selected"].all()
    clean = run("OASIS", tmp_path, read_images=False)
    assert sorted(clean.images["native_image_key"]) == ["OAS1_0001_MR1/orig", "OAS1_0002_MR1/orig"]

    harmonized = harmonize({"OASIS": result}, only(demo_params, "OASIS"))
    splits = make_splits(harmonized.images, only(demo_params, "OASIS"), set(harmonized.images["image_id"]))
    joined = harmonized.images[["image_id", "variant_of"]].merge(splits[["image_id", "split"]], on="image_id")
    joined["acquisition"] = joined["variant_of"].fillna(joined["image_id"])
    assert (joined.groupby("acquisition")["split"].nunique() == 1).all()


MERGE = "RID|COLPROT|PTID|VISCODE|EXAMDATE|DX_bl|AGE|PTGENDER|PTEDUCAT|MMSE|EXAMDATE_bl|DX"


def test_adni_counts_an_image_once_for_each_matching_visit(tmp_path: Path, demo_params: Params) -> None:
    person = [5, "ADNI1", "005_S_0005"]
    tail = ["LMCI", 74.3, "Female", 16]
    write_csv(
        tmp_path / "ADNIMERGE.csv",
        MERGE,
        [*person, "bl", "2006-01-10", *tail, 28, "2006-01-10", "MCI"],
        [*person, "m36", "2009-01-12", *tail, 25, "2006-01-10", "MCI"],
        [*person, "m42", "2009-03-02", *tail, 22, "2006-01-10", "Dementia"],
    )
    adni_image(tmp_path, "005_S_0005", "2005-12-20", 1, 1)
    adni_image(tmp_path, "005_S_0005", "2009-02-20", 2, 2)
    clean = by_key(run("ADNI", tmp_path))
    assert {key: row["mmse"] for key, row in clean.items()} == {"I1": 28.0, "I2": 22.0}
    emulated = run("ADNI", tmp_path, form="table1_emulation")
    rows = by_key(emulated)
    assert {key: row["mmse"] for key, row in rows.items()} == {"I2": 22.0, "I2@m36": 25.0}
    assert rows["I2@m36"]["variant_of"] == rows["I2"]["image_id"]
    assert rows["I2@m36"]["match_delta_days"] == 39
    assert reason_names(emulated) == ["NO_VISIT_IN_WINDOW"]  # December never pairs with January
    # The same voxels twice are what this form counts, so harmonizing keeps them.
    harmonized = harmonize({"ADNI": emulated}, only(demo_params, "ADNI"))
    assert len(harmonized.images) == 2
    assert harmonized.images["person_id"].nunique() == 1
    # But where another participant has those voxels, nobody knows whose they are: the repeats go, too.
    other = emulated.images[emulated.images["native_image_key"] == "I2"].assign(
        image_id="f" * 16, native_image_key="I9", participant_id="sub-ADNI005S0009", native_subject_id="005_S_0009"
    )
    emulated.images = pd.concat([emulated.images, other], ignore_index=True)
    emulated.images_found, emulated.found = emulated.images_found + 1, None
    assert len(harmonize({"ADNI": emulated}, only(demo_params, "ADNI")).images) == 0


def nacc(root: Path) -> None:
    write_csv(
        root / "investigator_nacc71.csv",
        UDS,
        ["NACC000001", 1, 2010, 2, 1, 2, 1940, 12, 16, 0, 0.5, 1, 8],
        ["NACC000001", 2, 2011, 1, 5, 2, 1940, 12, 16, 0.5, 2, 3, 0],
    )
    write_csv(root / "investigator_mri_nacc71.csv", MRI, ["NACC000001", "mri1.zip", 1, 2, 20, 2010, 12, 16])


def test_nacc_counts_every_file_of_a_session_and_pairs_by_calendar_year(tmp_path: Path) -> None:
    nacc(tmp_path)
    content = write_image(tmp_path / "one.nii", 1).read_bytes(), write_image(tmp_path / "two.nii", 2).read_bytes()
    for name in ("one.nii", "two.nii"):
        (tmp_path / name).unlink()
    nacc_session(tmp_path, "mri1", {"MPRAGE": (content[0], None), "AX_FLAIR": (content[1], None)})
    clean = run("NACC", tmp_path)
    assert reason_names(clean) == ["NOT_T1"]
    assert by_key(clean)["mri1/MPRAGE.nii"]["dx_native"] == "MCI"
    emulated = by_key(run("NACC", tmp_path, form="table1_emulation"))
    assert sorted(emulated) == ["mri1/AX_FLAIR.nii", "mri1/MPRAGE.nii"]
    assert {row["dx_native"] for row in emulated.values()} == {"NC"}
    assert {row["age_years"] for row in emulated.values()} == {70.0}
    assert {row["match_delta_days"] for row in emulated.values()} == {318}


def test_nacc_unread_files_are_judged_by_their_names(tmp_path: Path) -> None:
    nacc(tmp_path)
    names = ("MPRAGE.nii", "AX_FLAIR.nii", "series_7.nii")
    (tmp_path / LISTING_NAME).write_text("\n".join(f"mri/within1yr/nifti/mri1ni/{name}" for name in names))
    clean = run("NACC", tmp_path, read_images=False)
    assert clean.images["native_image_key"].tolist() == ["mri1/MPRAGE.nii"]
    assert len(run("NACC", tmp_path, read_images=False, form="table1_emulation").images) == 3


def test_miriad_scores_stand_on_one_scan_of_a_visit(tmp_path: Path) -> None:
    write_csv(tmp_path / "a_5_3_2021_14_1_7.csv", "Label|Subject|MMSE|CDR", ["miriad_188_1_MMSE", "miriad_188", 21, ""],
              ["miriad_188_1_CDR", "miriad_188", "", 1])  # fmt: skip
    names = [f"miriad_188_AD_M_01_MR_{scan}.nii" for scan in (1, 2)]
    (tmp_path / LISTING_NAME).write_text("\n".join(names))
    clean = run("MIRIAD", tmp_path, read_images=False).images
    assert clean["mmse"].tolist() == [21, 21]
    assert clean["cdr_global"].tolist() == [1, 1]
    emulated = run("MIRIAD", tmp_path, read_images=False, form="table1_emulation").images
    assert emulated["mmse"].isna().tolist() == [False, True]
    assert emulated["cdr_global"].isna().tolist() == [False, True]
    assert emulated["mmse_source"].isna().tolist() == [False, True]


def test_the_same_image_in_two_unread_places_is_ambiguous(tmp_path: Path) -> None:
    (tmp_path / LISTING_NAME).write_text("a/miriad_188_AD_M_01_MR_1.nii\nb/miriad_188_AD_M_01_MR_1.nii\n")
    result = run("MIRIAD", tmp_path, read_images=False)
    assert reason_names(result) == ["AMBIGUOUS_FILE", "AMBIGUOUS_FILE"]


def test_models_never_see_rows_that_are_for_counting(tmp_path: Path, demo_params: Params) -> None:
    oasis_listing(tmp_path / "raw")
    result = run("OASIS", tmp_path / "raw", read_images=False, form="table1_emulation")
    params = only(demo_params, "OASIS")
    write_harmonized(harmonize({"OASIS": result}, params), tmp_path / "ehr")
    with pytest.raises(InputError, match="never trained or evaluated"):
        read_images(params, tmp_path)


def test_cohorts_of_different_forms_are_not_mixed(tmp_path: Path, demo_params: Params) -> None:
    oasis_listing(tmp_path / "oasis")
    (tmp_path / "miriad").mkdir()
    (tmp_path / "miriad" / LISTING_NAME).write_text("miriad_188_AD_M_01_MR_1.nii\n")
    tables = {
        "OASIS": run("OASIS", tmp_path / "oasis", read_images=False, form="table1_emulation"),
        "MIRIAD": run("MIRIAD", tmp_path / "miriad", read_images=False),
    }
    with pytest.raises(InputError, match="different ways"):
        harmonize(tables, demo_params.model_copy(update={"cohorts": ["OASIS", "MIRIAD"]}))


@given(st.dates(datetime.date(1995, 1, 1), datetime.date(2025, 12, 31)), st.integers(-200, 200))
def test_the_published_pairing_never_crosses_a_year_and_is_symmetric(scan: datetime.date, days: int) -> None:
    visit = scan + datetime.timedelta(days=days)
    assert same_months(scan, visit) == same_months(visit, scan)
    if same_months(scan, visit):
        assert scan.year == visit.year
        assert abs(days) <= 92
