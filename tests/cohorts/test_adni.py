"""ADNI: visits, diagnosis, persons and the choice of the T1, on small trees in the archive's own layouts."""

from __future__ import annotations

import datetime
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohort_trees import adni_image, by_key, image_bytes, reason_names, run, voxels, write_csv, write_image
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cohorts import adni, write_ingest
from medalign3d.cohorts.adni_choice import Candidate, kind_rank, known_bad_scans, order_candidates
from medalign3d.cohorts.base import match_visit, native_ids, participant_id_of
from medalign3d.cohorts.loni import describe_image, group_images, is_t1_description, parse_metadata, parse_strength
from medalign3d.ehr.labels import label_of

MERGE = (
    "RID|COLPROT|ORIGPROT|PTID|VISCODE|EXAMDATE|DX_bl|AGE|PTGENDER|PTEDUCAT|APOE4|ABETA|TAU|PTAU|CDRSB|MMSE|LDELTOTAL|"
    "FAQ|MOCA|FLDSTRENG|FSVERSION|IMAGEUID|Hippocampus|Ventricles|EXAMDATE_bl|DX"
)
DXSUM = "PHASE|RID|PTID|VISCODE|VISCODE2|EXAMDATE|DXCURREN|DXCHANGE|DXNORM|DXMCI|DXAD|DXOTHDEM|DXDDUE|DIAGNOSIS"
CDR = "PHASE|RID|VISCODE|VISCODE2|VISDATE|CDMEMORY|CDORIENT|CDJUDGE|CDCOMMUN|CDHOME|CDCARE|CDGLOBAL"
COLLECTION = "Image Data ID|Subject|Group|Sex|Age|Visit|Modality|Description|Type|Acq Date|Format|Downloaded"
SCALED = "MPR__GradWarp__B1_Correction__N3__Scaled"


def merge(rid: int, code: str, date: str, dx: str = "CN", **changes: Any) -> list[Any]:
    row = {
        "RID": rid, "COLPROT": "ADNI1", "ORIGPROT": "ADNI1", "PTID": f"005_S_{rid:04d}", "VISCODE": code,
        "EXAMDATE": date, "DX_bl": "LMCI", "AGE": 74.3, "PTGENDER": "Female", "PTEDUCAT": 16, "APOE4": "",
        "ABETA": "<200", "TAU": ">1300", "PTAU": "<8", "CDRSB": "-4.0", "MMSE": "", "LDELTOTAL": "-4",
        "EXAMDATE_bl": "2005-09-08", "DX": dx,
        **changes,
    }  # fmt: skip
    return [row.get(name, "") for name in MERGE.split("|")]


def dxsum(rid: int, code: str, date: str, **values: Any) -> list[Any]:
    row = {"PHASE": "ADNI1", "RID": rid, "PTID": f"005_S_{rid:04d}", "VISCODE": code, "VISCODE2": code,
           "EXAMDATE": date, **values}  # fmt: skip
    return [row.get(name, "") for name in DXSUM.split("|")]


def collection(root: Path, *rows: dict[str, Any]) -> Path:
    base = {
        "Subject": "005_S_0001",
        "Group": "AD",
        "Sex": "F",
        "Modality": "MRI",
        "Type": "Original",
        "Format": "NiFTI",
    }
    return write_csv(
        root / "My_T1_11_17_2024.csv",
        COLLECTION,
        *[[{**base, **row}.get(name, "") for name in COLLECTION.split("|")] for row in rows],
    )


def only(root: Path, **options: Any) -> dict[str, Any]:
    images = by_key(run("ADNI", root, **options))
    assert len(images) == 1
    return next(iter(images.values()))


def visits(root: Path) -> dict[str, dict[str, Any]]:
    table = run("ADNI", root).visits
    table = table.astype(object).where(table.notna(), None)
    return {record["visit_code"]: record for record in table.to_dict("records")}


# ----------------------------------------------------------------------------------------------------- layout on disk


def slices(folder: Path, ptid: str, uid: int, numbers: range, seed: int = 0, series: str = "MP-RAGE") -> None:
    """DICOM slices as LONI names them."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    folder.mkdir(parents=True, exist_ok=True)
    data = voxels(seed, (64, 64, 64))
    for number in numbers:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.{uid}.{number + 1}"
        dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.Modality = f"1.2.{uid}", "MR"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 64, 64, 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.5], 1.5
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, 1.5 * number]
        dataset.MagneticFieldStrength = 1.5
        dataset.PixelData = data[number].tobytes()
        name = f"ADNI_{ptid}_MR_{series}_br_raw_20060101120000_{number}_S{uid // 2}_I{uid}.dcm"
        dataset.save_as(folder / name, enforce_file_format=True)


def test_slices_of_two_images_in_one_folder_are_two_images(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    folder = tmp_path / "ADNI" / "005_S_0001" / "MP-RAGE" / "2005-09-08_10_00_00.0" / "S51"
    slices(folder, "005_S_0001", 101, range(64), 1)
    slices(folder, "005_S_0001", 102, range(64), 2)
    result = run("ADNI", tmp_path)
    images = by_key(result)
    assert set(images) == {"I101", "I102"}
    assert images["I101"]["data_sha256"] != images["I102"]["data_sha256"]
    assert images["I101"]["field_strength_t"] == 1.5
    # The folder is not named after either image, so each is named by one of its own slices.
    assert {key: "_I" + key[1:] in record["source_path"] for key, record in images.items()} == dict.fromkeys(
        images, True
    )


def test_the_volume_reader_takes_the_slices_of_the_named_image_only(tmp_path: Path) -> None:
    from medalign3d.volumes.read import read_volume

    folder = tmp_path / "005_S_0001" / "MP-RAGE" / "2005-09-08_10_00_00.0" / "S51"
    slices(folder, "005_S_0001", 101, range(64), 1)
    slices(folder, "005_S_0001", 102, range(64), 2)
    first = next(p for p in sorted(folder.iterdir()) if p.name.endswith("_I102.dcm"))
    volume = read_volume(tmp_path, str(first.relative_to(tmp_path)), "dicom")
    assert sorted(np.unique(volume.data)) == sorted(np.unique(voxels(2)))
    assert int(np.asarray(volume.data, dtype=np.int64).sum()) == int(voxels(2).astype(np.int64).sum())


def test_a_series_torn_over_two_unpacked_parts_never_passes_for_half_a_head(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    inner = "ADNI/005_S_0001/MP-RAGE/2005-09-08_10_00_00.0/I101"
    slices(tmp_path / "part_1" / inner, "005_S_0001", 101, range(32), 1)
    slices(tmp_path / "part_2" / inner, "005_S_0001", 101, range(32, 64), 1)
    result = run("ADNI", tmp_path)
    assert result.images.empty
    assert reason_names(result) == ["AMBIGUOUS_FILE"]
    assert "put them into one folder" in result.quarantine["detail"][0]


def test_downloads_in_nested_parts_and_the_same_image_twice(tmp_path: Path) -> None:
    write_csv(tmp_path / "study" / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    adni_image(tmp_path / "ADNI1_1" / "ADNI", "005_S_0001", "2005-09-08", 101, 1)
    adni_image(tmp_path / "ADNI1_2" / "a" / "b" / "ADNI", "005_S_0001", "2005-09-09", 102, 2)
    adni_image(tmp_path / "ADNI1_3" / "ADNI", "005_S_0001", "2005-09-08", 101, 1)  # unpacked twice
    adni_image(tmp_path / "ADNI1_3" / "ADNI", "005_S_0001", "2005-09-10", 103, 3)
    adni_image(tmp_path / "ADNI1_4" / "ADNI", "005_S_0001", "2005-09-10", 103, 4)  # the same number, another content
    result = run("ADNI", tmp_path)
    assert set(by_key(result)) == {"I101", "I102"}
    assert reason_names(result) == ["AMBIGUOUS_FILE", "AMBIGUOUS_FILE", "DUPLICATE_IMAGE_BYTES"]
    assert result.images_found == 5


def test_two_volumes_of_one_number_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    path = adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    write_image(path.with_name(path.name.replace("_Br_", "_Br_2_")), 2)
    assert reason_names(run("ADNI", tmp_path)) == ["AMBIGUOUS_FILE"]


def test_nifti_and_slices_of_one_image_count_once(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    path = adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1, series="MP-RAGE")
    slices(path.parent, "005_S_0001", 101, range(64), 1)
    result = run("ADNI", tmp_path)
    assert by_key(result)["I101"]["source_format"] == "nifti"
    assert reason_names(result) == ["DUPLICATE_KEY_IDENTICAL"]


def test_archives_are_read_in_place(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"), merge(1, "m06", "2006-03-08"))
    dicom = tmp_path / "build" / "I101"
    slices(dicom, "005_S_0001", 101, range(64), 1)
    with zipfile.ZipFile(tmp_path / "ADNI1_T1_1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(dicom.iterdir()):
            archive.write(path, f"ADNI/005_S_0001/MP-RAGE/2005-09-08_10_00_00.0/I101/{path.name}")
            path.unlink()
        archive.writestr("__MACOSX/ADNI/._x_I9.dcm", b"")
    with zipfile.ZipFile(tmp_path / "ADNI1_T1_2.zip", "w") as archive:
        archive.writestr(
            "ADNI/005_S_0001/MP-RAGE/2006-03-08_10_00_00.0/I102/ADNI_005_S_0001_MR_MP-RAGE_Br_2_S51_I102.nii",
            image_bytes(2),
        )
        archive.writestr("ADNI_005_S_0001_MP-RAGE_S51_I102.xml", metadata_xml("102", age="75.1"))
        archive.writestr("../005_S_0001/MP-RAGE/2006-03-08_10_00_00.0/I103/x_I103.nii", image_bytes(3))
    (tmp_path / "ADNI1_T1_3.zip").write_bytes(b"cut")
    result = run("ADNI", tmp_path)
    images = by_key(result)
    assert images["I101"]["source_path"] == ("ADNI1_T1_1.zip!ADNI/005_S_0001/MP-RAGE/2005-09-08_10_00_00.0/I101")
    assert (images["I101"]["visit_code"], images["I102"]["visit_code"]) == ("bl", "m06")
    assert images["I102"]["manufacturer"] == "SIEMENS"
    assert reason_names(result) == ["IMAGE_UNREADABLE", "IMAGE_UNREADABLE"]
    assert result.images_found == 4

    from medalign3d.volumes.read import read_volume

    for record in images.values():
        assert read_volume(tmp_path, record["source_path"], record["source_format"]).data.shape == (64, 64, 64)


def test_an_archive_beside_its_unpacked_files_adds_nothing(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    path = adni_image(tmp_path / "ADNI", "005_S_0001", "2005-09-08", 101, 1)
    with zipfile.ZipFile(tmp_path / "A_1.zip", "w") as archive:
        archive.write(path, path.relative_to(tmp_path))
    result = run("ADNI", tmp_path)
    assert "!" not in by_key(result)["I101"]["source_path"]
    assert reason_names(result) == ["DUPLICATE_IMAGE_BYTES"]


@pytest.mark.parametrize(
    "path",
    [
        "005_S_0001/MP-RAGE/2005-09-08_10_00_00.0/S51/ADNI_005_S_0001_MR_MP-RAGE_br_raw_2006_1_S51_I101.nii",
        "x/y/005_S_0001/MP-RAGE/2005-09-08_10_00_00.0/I101/anything.nii.gz",
        "005_S_0001/MP-RAGE/I101/ADNI_005_S_0001_MR_MP-RAGE_Br_2006_S51_I101.nii",
        "flat/ADNI_005_S_0001_MR_MP-RAGE_Br_2006_S51_I101.nii",
        "005_s_0001/MP-RAGE/2005-09-08_10_00_00.0/I0101/x_I101.nii",
    ],
)
def test_images_are_known_by_their_number_wherever_they_lie(tmp_path: Path, path: str) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    collection(tmp_path, {"Image Data ID": "I101", "Acq Date": "9/8/2005", "Visit": "sc", "Description": "MP-RAGE"})
    write_image(tmp_path / path, 1)
    record = only(tmp_path)
    assert (record["native_subject_id"], record["native_image_key"], str(record["scan_date"])) == (
        "005_S_0001", "I101", "2005-09-08",
    )  # fmt: skip


def test_files_without_a_number_or_of_two_people_are_not_lost_silently(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"), merge(2, "bl", "2005-09-08"))
    write_image(tmp_path / "005_S_0001" / "mask.nii", 1)
    path = adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 2)
    path.rename(path.with_name(path.name.replace("005_S_0001", "005_S_0002")))
    result = run("ADNI", tmp_path)
    assert reason_names(result) == ["AMBIGUOUS_FILE", "ID_UNPARSABLE"]


def test_tables_alone_give_visits_and_say_which_images_are_not_there(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08", "MCI"), merge(1, "m06", "2006-03-08"))
    collection(
        tmp_path,
        {"Image Data ID": "I7", "Acq Date": "9/8/2005", "Description": "MP-RAGE"},
        {"Image Data ID": "8", "Acq Date": "9/8/2005", "Description": "Axial T2"},
        {"Image Data ID": "I9", "Acq Date": "9/8/2005", "Description": "MPRAGE", "Modality": "PET"},
    )
    result = run("ADNI", tmp_path)
    assert result.images.empty
    assert result.visits["dx_native"].tolist() == ["MCI", "CN"]
    assert reason_names(result) == ["IMAGE_WITHOUT_FILE"]
    assert json.loads(result.quarantine["key_json"][0]) == {"native_image_key": "I7"}
    assert sorted(result.sources["file"]) == ["ADNIMERGE.csv", "My_T1_11_17_2024.csv"]
    write_ingest(result, tmp_path / "out", simulated=False)


# ------------------------------------------------------------------------------------------------- lists and metadata


def metadata_xml(uid: str, age: str = "74.5", sex: str = "F", related: str = "", **terms: str) -> str:
    protocol = "".join(
        f'<protocol term="{name}">{value}</protocol>'
        for name, value in {"Manufacturer": "SIEMENS", "Field Strength": "1.5", "Weighting": "T1", **terms}.items()
    )
    product = f"<imageUID>{uid}</imageUID><description>MP-RAGE</description>"
    body = f"<imagingProtocol>{product}<protocolTerm>{protocol}</protocolTerm></imagingProtocol>"
    if related:
        body = (
            f"<seriesLevelMeta><derivedProduct><imageUID>{uid}</imageUID><processedDataLabel>N3m</processedDataLabel>"
            f"</derivedProduct><relatedImageDetail><originalRelatedImage><imageUID>{related}</imageUID>"
            f"<protocolTerm>{protocol}</protocolTerm></originalRelatedImage></relatedImageDetail></seriesLevelMeta>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><idaxs xmlns="http://ida.loni.usc.edu"><project xmlns="">'
        "<projectIdentifier>ADNI</projectIdentifier><subject><subjectIdentifier>005_S_0001</subjectIdentifier>"
        f"<researchGroup>AD</researchGroup><subjectSex>{sex}</subjectSex><visit><visitIdentifier>ADNI Screening"
        f"</visitIdentifier></visit><study><subjectAge>{age}</subjectAge><series><dateAcquired>2005-09-08</dateAcquired>"
        f"{body}</series></study></subject></project></idaxs>"
    )


def test_metadata_files_fill_age_sex_scanner_and_original(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "DXSUM_17Nov2024.csv",
        DXSUM,
        dxsum(1, "bl", "2005-09-08", DXCURREN="1"),
        dxsum(1, "m12", "2006-09-08"),
    )
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1, series="MP-RAGE")
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 102, 2, series=SCALED)
    xml = tmp_path / "ADNI_metadata" / "ADNI_005_S_0001_MP-RAGE_S50_I101.xml"
    xml.parent.mkdir()
    xml.write_text(metadata_xml("101"))
    (xml.parent / "ADNI_005_S_0001_MPR_S51_I102.xml").write_text(metadata_xml("102", related="101"))
    images = by_key(run("ADNI", tmp_path))
    raw, processed = images["I101"], images["I102"]
    assert (raw["sex"], raw["age_years"], raw["field_strength_t"], raw["manufacturer"]) == ("F", 74.5, 1.5, "SIEMENS")
    assert (raw["variant"], processed["variant"], processed["variant_of"]) == ("raw", "processed", raw["image_id"])
    assert raw["dx_native"] == "CN"  # and not the research group
    assert json.loads(raw["provenance"])["values"]["sex"]["file"].endswith("I101.xml")


@pytest.mark.parametrize("damage", ["cut", "entities", "binary", "empty"])
def test_malformed_metadata_is_a_warning(tmp_path: Path, damage: str) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    text = metadata_xml("101").encode()
    content = {
        "cut": text[:200], "binary": bytes(range(256)), "empty": b"",
        "entities": b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + text.replace(b"SIEMENS", b"&b;"),
    }[damage]  # fmt: skip
    (tmp_path / "ADNI_005_S_0001_MP-RAGE_S50_I101.xml").write_bytes(content)
    result = run("ADNI", tmp_path)
    assert len(result.images) == 1
    assert list(zip(result.quarantine["reason"], result.quarantine["severity"], strict=True)) == [
        ("CSV_BAD_LINE", "warn")
    ]


def test_metadata_without_a_namespace_and_other_tags() -> None:
    plain = metadata_xml("5").replace(' xmlns="http://ida.loni.usc.edu"', "").replace(' xmlns=""', "")
    facts = parse_metadata("x.xml", plain.encode())
    assert facts is not None
    assert (facts.facts["subjectsex"], facts.facts["visitidentifier"], facts.original_uid) == (
        "F",
        "ADNI Screening",
        None,
    )


@given(st.binary(max_size=300))
def test_no_bytes_break_the_metadata_reader(content: bytes) -> None:
    parsed = parse_metadata("x.xml", content)
    assert parsed is None or isinstance(parsed.facts, dict)


def test_the_search_export_without_image_numbers_gives_age_and_sex(tmp_path: Path) -> None:
    write_csv(tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DXCURREN="2"))
    write_csv(
        tmp_path / "idaSearch_11_17_2024.csv", "Subject ID|Sex|Age|Visit|Description|Imaging Protocol|Study Date",
        ["005_S_0001", "M", "71.3", "ADNI Screening", "MP-RAGE", "Field Strength=1.5;Weighting=T1", "9/1/2005"],
        ["005_S_0002", "F", "60", "ADNI Screening", "MP-RAGE", "", "9/1/2005"],
    )  # fmt: skip
    adni_image(tmp_path, "005_S_0001", "2005-09-01", 101, 1)
    record = only(tmp_path)
    assert (record["sex"], record["age_years"], record["age_precision"], record["field_strength_t"]) == (
        "M", pytest.approx(71.3), "month", 1.5,
    )  # fmt: skip


def test_a_search_row_of_another_series_of_the_day_makes_no_t1(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    write_csv(
        tmp_path / "idaSearch_11_17_2024.csv", "Subject ID|Sex|Age|Visit|Description|Study Date",
        ["005_S_0001", "F", "74", "ADNI Screening", "MP-RAGE", "9/8/2005"],
        ["005_S_0001", "F", "74", "ADNI Screening", "Axial T2-FLAIR", "9/8/2005"],
    )  # fmt: skip
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1, series="Axial_T2-FLAIR")
    assert reason_names(run("ADNI", tmp_path)) == ["NOT_T1"]


def test_metadata_give_the_date_and_the_contrast_that_the_folders_do_not(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    write_image(tmp_path / "005_S_0001" / "Sag_3D" / "I101" / "x_S5_I101.nii", 1)
    write_image(tmp_path / "005_S_0001" / "MPRAGE" / "I102" / "x_S5_I102.nii", 2)
    (tmp_path / "ADNI_005_S_0001_Sag_3D_S5_I101.xml").write_text(metadata_xml("101"))
    (tmp_path / "ADNI_005_S_0001_x_S5_I102.xml").write_text(metadata_xml("102", Weighting="T2"))
    result = run("ADNI", tmp_path)
    record = by_key(result)["I101"]
    assert (str(record["scan_date"]), record["visit_code"]) == ("2005-09-08", "bl")
    assert reason_names(result) == ["NOT_T1"]


def test_the_all_images_list_of_october_2024(tmp_path: Path) -> None:
    write_csv(tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DXCURREN="2"))
    write_csv(tmp_path / "PTDEMOG.csv", "RID|PTGENDER|PTDOB", [1, 1, "05/1930"])
    write_csv(
        tmp_path / "Me_All_Images_18Nov2024.csv",
        "subject_id|image_id|image_date|image_visit|image_description|study_id|series_id|field_strength|modality",
        ["005_S_0001", "101", "2005-09-01", "sc", "MP-RAGE", "3", "44", "1.5", "MRI"],
        ["005_S_0001", "102", "2005-09-01", "sc", "3-plane localizer", "3", "45", "1.5", "MRI"],
    )
    write_image(tmp_path / "005_S_0001" / "scan" / "I101" / "a_I101.nii", 1)
    record = only(tmp_path)
    assert (str(record["scan_date"]), record["visit_code"], record["sex"]) == ("2005-09-01", "bl", "M")
    assert (record["field_strength_t"], record["age_years"]) == (1.5, pytest.approx(75.3, abs=0.05))


def test_a_list_that_gives_an_image_to_somebody_else_is_not_joined(tmp_path: Path) -> None:
    write_csv(tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DXCURREN="2"))
    write_csv(tmp_path / "PTDEMOG.csv", "RID|PTGENDER|PTDOB", [1, 2, "05/1930"])
    collection(
        tmp_path, {"Image Data ID": "I101", "Subject": "005_S_0002", "Sex": "M", "Age": 50, "Description": "MP-RAGE"}
    )
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    result = run("ADNI", tmp_path)
    record = by_key(result)["I101"]
    assert (record["sex"], round(record["age_years"])) == ("F", 75)
    assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT"]


def test_sex_that_contradicts_itself_and_an_age_that_cannot_be(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, *[merge(rid, "bl", "2005-09-08") for rid in (1, 2, 3)])
    write_csv(tmp_path / "PTDEMOG.csv", "RID|VISCODE2|PTGENDER", [1, "bl", 1], [2, "bl", 2])
    collection(
        tmp_path,
        {"Image Data ID": "I102", "Subject": "005_S_0002", "Sex": "M", "Description": "MP-RAGE", "Age": 74},
        {"Image Data ID": "I103", "Subject": "005_S_0003", "Sex": "F", "Description": "MP-RAGE", "Age": 54},
    )
    for rid in (1, 2, 3):
        adni_image(tmp_path, f"005_S_{rid:04d}", "2005-09-08", 100 + rid, rid)
    result = run("ADNI", tmp_path)
    assert reason_names(result) == ["AGE_INCONSISTENT", "SEX_CONFLICT", "SEX_CONFLICT"]
    assert by_key(result)["I103"]["age_years"] == pytest.approx(74.3)


# ------------------------------------------------------------------------------------------------------------- visits


def test_match_keeps_signed_and_absolute_differences_apart() -> None:
    """COHORTS 2.3: a stored negative difference must not shut out nearer visits."""
    assert match_visit(100, [160, 130, 103, 180], 183) == (2, -3)
    assert match_visit(100, [40, 70, 97, 20], 183) == (2, 3)
    assert match_visit(100, [160, 99], 183) == (1, 1)


def test_match_across_the_new_year() -> None:
    scan = datetime.date(2006, 1, 2).toordinal()
    days = [datetime.date(2005, 12, 30).toordinal(), datetime.date(2006, 1, 20).toordinal()]
    assert match_visit(scan, days, 183) == (0, 3)


@given(st.integers(-5000, 5000), st.lists(st.integers(-5000, 5000), max_size=12), st.integers(0, 400))
def test_match_is_the_nearest_visit_of_all(scan: int, days: list[int], window: int) -> None:
    match = match_visit(scan, days, window)
    inside = [day for day in days if abs(scan - day) <= window]
    if not inside:
        assert match is None
        return
    assert match is not None
    place, delta = match
    assert delta == scan - days[place]
    assert abs(delta) == min(abs(scan - day) for day in days)
    assert days[place] == min(day for day in days if abs(scan - day) == abs(delta))  # of a tie the earlier


@pytest.mark.parametrize(("delta", "matched"), [(180, True), (181, False), (-180, True), (-181, False)])
def test_the_window_of_180_days(tmp_path: Path, delta: int, matched: bool) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    day = datetime.date(2005, 9, 8) + datetime.timedelta(days=delta)
    adni_image(tmp_path, "005_S_0001", day.isoformat(), 101, 1)
    result = run("ADNI", tmp_path)
    assert reason_names(result) == ([] if matched else ["NO_VISIT_IN_WINDOW"])
    if matched:
        assert by_key(result)["I101"]["match_delta_days"] == delta


def test_the_screening_scan_is_the_baseline_image_and_screening_scores_are_its_scores(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08", "MCI"), merge(1, "m06", "2006-03-08"))
    write_csv(tmp_path / "CDR.csv", CDR, ["ADNI1", 1, "sc", "sc", "2005-06-20", 1, 0.5, 0, 0, 0.5, 0, "0.5"])
    write_csv(tmp_path / "LABDATA.csv", "RID|VISCODE|VISCODE2|RCT20|RCT11|HMT40|AXT117|RCT392",
              [1, "sc", "sc", "SCC09", "99", "<0.10", "NO SPECIMEN", "5000"])  # fmt: skip
    adni_image(tmp_path, "005_S_0001", "2005-06-12", 101, 1)  # 88 days before the baseline visit
    adni_image(tmp_path, "005_S_0001", "2006-03-10", 102, 2)
    result = run("ADNI", tmp_path)
    first, second = by_key(result)["I101"], by_key(result)["I102"]
    assert (first["visit_code"], first["session_id"], first["match_delta_days"]) == ("bl", "ses-M000", -88)
    assert (first["cdr_global"], first["cdr_sb"], first["dx_native"]) == (0.5, 2.0, "MCI")
    assert json.loads(first["labs"]) == {"glucose": 99.0}
    # Taken at screening only: never a value of a later visit.
    assert (second["cdr_global"], second["labs"]) == (None, None)
    assert sorted(result.field_issues["column"]) == ["AXT117", "HMT40", "RCT20", "RCT392"]


def test_a_later_first_visit_of_a_continuing_participant_is_not_the_baseline(tmp_path: Path) -> None:
    """ADNI-3 gives continuing people an ``init`` visit: its scores are twelve years away from their baseline."""
    write_csv(
        tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DIAGNOSIS=1),
        dxsum(1, "init", "2017-10-08", DIAGNOSIS=3, PHASE="ADNI3"),
    )  # fmt: skip
    write_csv(tmp_path / "MMSE.csv", "PHASE|RID|VISCODE2|VISDATE|MMSCORE", ["ADNI3", 1, "init", "2017-10-08", 12])
    write_csv(tmp_path / "PTDEMOG.csv", "RID|PTGENDER|PTDOB", [1, 2, "05/1930"])
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    adni_image(tmp_path, "005_S_0001", "2017-10-20", 102, 2, series="Accelerated_Sagittal_MPRAGE")
    result = run("ADNI", tmp_path)
    images = by_key(result)
    assert (images["I101"]["dx_native"], images["I101"]["mmse"]) == ("CN", None)
    assert (images["I102"]["dx_native"], images["I102"]["mmse"]) == ("Dementia", 12)
    assert images["I102"]["session_id"] != images["I101"]["session_id"]
    assert reason_names(result) == ["VISCODE_UNKNOWN"]


def test_a_slip_in_the_year_of_one_table_does_not_move_the_baseline(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2006-01-08", "MCI", EXAMDATE_bl="2006-01-08"))
    write_csv(tmp_path / "MMSE.csv", "PHASE|RID|VISCODE2|VISDATE|MMSCORE", ["ADNI1", 1, "bl", "2005-01-08", 27])
    found = visits(tmp_path)
    assert {code: (str(v["visit_date"]), v["dx_native"], v["mmse"]) for code, v in found.items()} == {
        "bl": ("2006-01-08", "MCI", 27)
    }


@pytest.mark.parametrize("code", ["nv", "f", "uns1", "4_bl", "4_sc", "4_disp", "y1", "tau"])
def test_codes_since_october_2024_are_matched_by_date(tmp_path: Path, code: str) -> None:
    write_csv(
        tmp_path / "DXSUM.csv", DXSUM, dxsum(7001, "bl", "2021-01-08", DIAGNOSIS=1),
        dxsum(7001, code, "2022-01-08", DIAGNOSIS=2),
    )  # fmt: skip
    write_csv(tmp_path / "PTDEMOG.csv", "RID|PTGENDER|PTDOB", [7001, 2, "05/1950"])
    adni_image(tmp_path, "005_S_7001", "2022-01-20", 101, 1, series="Accelerated_Sagittal_MPRAGE")
    result = run("ADNI", tmp_path)
    record = by_key(result)["I101"]
    assert (record["visit_code"], record["visit_month"], record["dx_native"]) == (code, None, "MCI")
    assert reason_names(result) == ["VISCODE_UNKNOWN"]


@given(st.text(max_size=12))
def test_every_visit_code_has_a_spelling_and_never_a_wrong_month(text: str) -> None:
    code, month, known = adni.canonical_visit(text)
    assert code == code.strip().lower()
    assert known == (month is not None)
    assert adni.canonical_visit(code)[1:] == (month, known)
    assert adni.visit_of_label(text) is None or adni.canonical_visit(adni.visit_of_label(text) or "")[2]


@pytest.mark.parametrize(
    ("label", "code", "phase"),
    [
        ("ADNI Screening", "bl", "ADNI1"), ("ADNI1/GO Month 6", "m06", ""), ("ADNIGO Month 54", "m54", "ADNIGO"),
        ("ADNI2 Screening MRI-New Pt", "bl", "ADNI2"), ("ADNI2 Month 3 MRI-New Pt", "m03", "ADNI2"),
        ("ADNI2 Month 6-New Pt", "m06", "ADNI2"), ("ADNIGO Screening MRI", "bl", "ADNIGO"),
        ("ADNI2 Year 1 Visit", None, "ADNI2"), ("ADNI3 Year 1 Visit", None, "ADNI3"),
        ("sc", "bl", ""), ("m12", "m12", ""),
        ("ADNI4 Screening", None, "ADNI4"), ("", None, ""), ("No Visit Defined", None, ""),
    ],
)  # fmt: skip
def test_visit_names_of_the_archive(label: str, code: str | None, phase: str) -> None:
    assert (adni.visit_of_label(label), adni.phase_of(label)) == (code, phase)


def test_a_scan_without_a_date_goes_by_the_archives_visit_name(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"), merge(1, "m06", "2006-03-08", "MCI"))
    collection(tmp_path, {"Image Data ID": "I101", "Visit": "ADNI1/GO Month 6", "Description": "MP-RAGE", "Age": 74.8})
    write_image(tmp_path / "005_S_0001" / "MP-RAGE" / "unknown" / "I101" / "x_I101.nii", 1)
    result = run("ADNI", tmp_path)
    record = by_key(result)["I101"]
    assert (record["visit_code"], record["match_method"], record["dx_native"]) == ("m06", "ida_visit", "MCI")
    assert record["age_years"] == pytest.approx(74.8)
    assert reason_names(result) == ["DATE_UNPARSABLE"]


def test_a_phase_rollover_is_two_visits_and_a_tie_goes_to_the_phase_of_the_scan(tmp_path: Path) -> None:
    """ADNI-1 m48 and the first ADNI-2 visit carry one VISCODE2: near dates, two visits (COHORTS 3.7)."""
    write_csv(
        tmp_path / "DXSUM.csv", DXSUM,
        dxsum(1, "m48", "2010-01-10", DXCURREN="2"),
        dxsum(1, "m48", "2010-01-30", DXCHANGE="5", PHASE="ADNI2", VISCODE="v06"),
    )  # fmt: skip
    write_csv(tmp_path / "MMSE.csv", "PHASE|RID|VISCODE|VISCODE2|VISDATE|MMSCORE",
              ["ADNI1", 1, "m48", "m48", "2010-01-10", 27], ["ADNI2", 1, "v06", "m48", "2010-01-30", 22])  # fmt: skip
    write_csv(tmp_path / "PTDEMOG.csv", "RID|PTGENDER|PTDOB", [1, 2, "05/1930"])
    for uid, day in ((101, "2010-01-20"), (102, "2010-01-20"), (103, "2010-01-12"), (104, "2010-01-28")):
        adni_image(tmp_path, "005_S_0001", day, uid, uid, series="MP-RAGE")
    collection(tmp_path, {"Image Data ID": "I102", "Acq Date": "1/20/2010", "Visit": "ADNI2 Screening MRI-New Pt",
                          "Description": "MP-RAGE"})  # fmt: skip
    result = run("ADNI", tmp_path)
    found = {key: (r["dx_native"], r["mmse"], r["release"], r["visit_month"]) for key, r in by_key(result).items()}
    first, second = ("MCI", 27, "ADNI1", 48), ("Dementia", 22, "ADNI2", 48)
    assert found == {"I101": first, "I102": second, "I103": first, "I104": second}
    assert len({(r["session_id"], r["run"]) for r in by_key(result).values()}) == 4
    assert reason_names(result) == []


def test_rows_without_an_examination_date(tmp_path: Path) -> None:
    """A visit whose row has no date takes it from another table of the visit; without any it never matches a scan."""
    write_csv(
        tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"), merge(1, "m06", "", "MCI"),
        merge(1, "m12", "-4", "Dementia"), merge(1, "m24", "", "Dementia"),
    )  # fmt: skip
    write_csv(tmp_path / "CDR.csv", CDR, ["ADNI1", 1, "m06", "m06", "2006-03-08", *[0] * 6, 0.5])
    write_csv(
        tmp_path / "REGISTRY.csv", "PHASE|RID|VISCODE|VISCODE2|EXAMDATE", ["ADNI1", 1, "m12", "m12", "2006-09-09"]
    )
    dated = {code: (str(v["visit_date"]), v["dx_native"]) for code, v in visits(tmp_path).items()}
    assert dated == {
        "bl": ("2005-09-08", "CN"), "m06": ("2006-03-08", "MCI"), "m12": ("2006-09-09", "Dementia"),
        "m24": ("None", "Dementia"),
    }  # fmt: skip


def test_raw_codes_are_months_only_where_a_table_says_so(tmp_path: Path) -> None:
    """v11 is the first year of ADNI-2: month 12 of a newcomer, but not of somebody who began with ADNI-1."""
    write_csv(
        tmp_path / "DXSUM.csv",
        DXSUM,
        dxsum(1, "bl", "2005-09-08", DIAGNOSIS=1),
        dxsum(4001, "bl", "2011-09-08", DIAGNOSIS=1),
    )
    write_csv(
        tmp_path / "REGISTRY.csv", "PHASE|RID|VISCODE|VISCODE2|EXAMDATE", ["ADNI2", 1, "v21", "m84", "2012-10-01"]
    )
    write_csv(
        tmp_path / "MMSE.csv", "PHASE|RID|VISCODE|VISDATE|MMSCORE", ["ADNI2", 1, "v11", "2011-10-01", 20],
        ["ADNI2", 1, "v21", "2012-10-01", 19], ["ADNI2", 4001, "v11", "2012-09-10", 28],
    )  # fmt: skip
    table = run("ADNI", tmp_path).visits
    codes = {
        (r["native_subject_id"], r["mmse"]): r["visit_code"] for r in table.dropna(subset=["mmse"]).to_dict("records")
    }
    assert codes == {("005_S_0001", 20): "v11", ("005_S_0001", 19): "m84", ("005_S_4001", 28): "m12"}


# ---------------------------------------------------------------------------------------------------------- diagnosis


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("CN", ["CN", "NL", "Normal", "SMC", "MCI to NL", "Dementia to CN"]),
        ("MCI", ["MCI", "EMCI", "LMCI", "NL to MCI", "Dementia to MCI", "mci"]),
        ("Dementia", ["Dementia", "AD", "MCI to Dementia", "NL to Dementia"]),
    ],
)
def test_every_word_of_dx_has_one_meaning(label: str, words: list[str]) -> None:
    for word in words:
        assert adni.dx_from_words(word) == (label, None)
        assert label_of("ADNI", label) == label_of("ADNI", word)
    assert adni.dx_from_words("DEM") == ("Dementia", None)  # as in the R package that replaces ADNIMERGE
    assert set(adni.DX_WORDS.values()) == {"CN", "MCI", "Dementia"}


@pytest.mark.parametrize(("book", "column"), [(adni.DIAGNOSIS, "DIAGNOSIS"), (adni.DXCHANGE, "DXCHANGE")])
def test_diagnosis_codes_agree_with_the_code_books_of_the_labels(book: dict[float, str], column: str) -> None:
    from medalign3d.ehr.labels import CODED_COLUMNS

    assert {int(code): meaning for code, meaning in book.items()} == {
        code: meaning for code, meaning in CODED_COLUMNS[("ADNI", column)].items() if meaning is not None
    }


@given(st.one_of(st.text(max_size=20), st.integers(-20, 20).map(str), st.floats().map(str)))
def test_no_cell_becomes_a_diagnosis_outside_the_code_books(cell: str) -> None:
    for parse in (
        adni.dx_from_words,
        adni.diagnosis_parser(adni.DIAGNOSIS),
        adni.diagnosis_parser(adni.DXCHANGE),
    ):
        label, problem = parse(cell)
        assert label in (None, "CN", "MCI", "Dementia")
        assert label is None or problem is None
    assert adni.parse_etiology(cell)[0] in (None, "AD", "other")
    assert adni.parse_genotype(cell)[0] in (None, "22", "23", "24", "33", "34", "44")
    birth = adni.parse_birth(cell)[0]
    assert birth is None or 1880 <= int(birth[:4]) <= 2010


def test_enrolment_labels_never_become_a_diagnosis(tmp_path: Path) -> None:
    """Issues 1377 and 1397 of the field's converter: DX_bl and the archive's Group are not the visit's diagnosis."""
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08", ""), merge(1, "m06", "2006-03-08", ""))
    collection(tmp_path, {"Image Data ID": "I101", "Group": "AD", "Description": "MP-RAGE", "Age": 74})
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    adni_image(tmp_path, "005_S_0001", "2006-03-08", 102, 2)
    result = run("ADNI", tmp_path)
    assert result.images["dx_native"].isna().all()
    assert result.images["dx_subject_level"].tolist() == ["LMCI", "LMCI"]
    assert reason_names(result) == ["NO_DIAGNOSIS", "NO_DIAGNOSIS"]


def test_smc_is_normal_cognition(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08", "SMC", DX_bl="SMC"))
    record = visits(tmp_path)["bl"]
    assert label_of("ADNI", record["dx_native"]).dx3 == "NC"


def test_merge_and_summary_that_differ_keep_the_summary_and_say_so(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08", "CN"), merge(1, "m06", "2006-03-08", "CN"),
        merge(1, "m12", "2006-09-08", "CN"),
    )  # fmt: skip
    write_csv(
        tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "sc", "2005-08-08", DIAGNOSIS=2),
        dxsum(1, "m06", "2006-03-08", DIAGNOSIS=2), dxsum(1, "m12", "2006-09-08", DIAGNOSIS=1),
    )  # fmt: skip
    result = run("ADNI", tmp_path)
    rows = result.visits.set_index("visit_code")
    # A screening row is no diagnosis of the baseline visit where that has its own.
    assert rows["dx_native"].to_dict() == {"bl": "CN", "m06": "MCI", "m12": "CN"}
    assert json.loads(rows["provenance"]["m06"])["values"]["dx_native"] == {
        "file": "DXSUM.csv", "row": 3, "rule": "DIAGNOSIS at m06",
    }  # fmt: skip
    assert reason_names(result) == ["DIAGNOSIS_CONFLICT", "DIAGNOSIS_CONFLICT"]


def test_columns_of_one_summary_row_in_order_and_flags(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "DXSUM_PDXCONV.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DXCHANGE="5", DIAGNOSIS="2"),
        dxsum(1, "m06", "2006-03-08", DXCURREN="-4", DXMCI="1", DXNORM="-4"),
        dxsum(1, "m12", "2006-09-08", DXNORM="1", DXMCI="1"), dxsum(1, "m24", "2007-09-08", DIAGNOSIS="Dementia"),
    )  # fmt: skip
    result = run("ADNI", tmp_path)
    found = result.visits.set_index("visit_code")["dx_native"]
    assert found[found.notna()].to_dict() == {"bl": "MCI", "m06": "MCI", "m24": "Dementia"}
    assert reason_names(result) == ["DIAGNOSIS_CONFLICT"]


def test_dementia_of_another_cause_is_kept_and_flagged(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DIAGNOSIS=3, DXDDUE=2),
        dxsum(2, "bl", "2005-09-08", DIAGNOSIS=3, DXDDUE="1"), dxsum(3, "bl", "2005-09-08", DIAGNOSIS=3),
        dxsum(4, "bl", "2005-09-08", DIAGNOSIS=2, DXDDUE=2), dxsum(5, "bl", "2005-09-08", DXCURREN=3, DXOTHDEM=1),
    )  # fmt: skip
    table = run("ADNI", tmp_path).visits
    assert table["dx_native"].tolist() == ["Dementia", "Dementia", "Dementia", "MCI", "Dementia"]
    causes = [None if pd.isna(value) else value for value in table["dementia_etiology"]]
    assert causes == ["other", "AD", None, None, "other"]


def test_the_same_key_twice(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08", "CN", MMSE=29),
        merge(1, "bl", "2005-09-08", "MCI", MMSE=29),
        merge(2, "bl", "2005-09-08", "CN", MMSE=29), merge(2, "bl", "2005-09-08", "CN", MMSE=29),
    )  # fmt: skip
    result = run("ADNI", tmp_path)
    assert [None if pd.isna(v) else v for v in result.visits["dx_native"]] == [None, "CN"]
    assert result.visits["mmse"].tolist() == [29, 29]
    assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT", "DUPLICATE_KEY_IDENTICAL"]


# ------------------------------------------------------------------------------------------------------------ persons


def test_the_age_of_the_table_is_the_age_at_baseline(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"), merge(1, "m120", "2015-09-08"))
    adni_image(tmp_path, "005_S_0001", "2015-09-08", 101, 1, series="MPRAGE")
    record = only(tmp_path)
    assert record["age_years"] == pytest.approx(84.3, abs=0.01)
    assert "EXAMDATE_bl" in json.loads(record["provenance"])["values"]["age_years"]["rule"]


@pytest.mark.parametrize(
    ("born", "age", "precision"),
    [("05/1930", 75.3, "month"), ("1930-05-01", 75.3, "month"), ("1930", 75, "year"), ("13/1930", None, None),
     ("-4", None, None), ("00/0000", None, None)],
)  # fmt: skip
def test_age_from_the_date_of_birth(tmp_path: Path, born: str, age: float | None, precision: str | None) -> None:
    write_csv(tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DIAGNOSIS=1))
    write_csv(tmp_path / "PTDEMOG.csv", "RID|PTGENDER|PTDOB", [1, 2, born])
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    record = only(tmp_path)
    assert record["age_precision"] == precision
    assert record["age_years"] == (None if age is None else pytest.approx(age, abs=0.05))


def test_participants_10_and_100_are_two_people_in_every_spelling(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "DXSUM.csv", DXSUM, dxsum(10, "bl", "2005-09-08", DIAGNOSIS=1),
        dxsum(100, "bl", "2005-09-08", DIAGNOSIS=3),
        dxsum(10, "m06", "2006-03-08", DIAGNOSIS="1.0"),
    )  # fmt: skip
    write_csv(
        tmp_path / "MMSE.csv",
        "RID|VISCODE2|MMSCORE",
        ["10.0", "bl", "30"],
        ["100", "bl", "11"],
        ["0010", "m06", "29.0"],
    )
    write_csv(tmp_path / "PTDEMOG.csv", "RID|PTGENDER|PTDOB", ["10.0", 1, "05/1930"], ["100.0", "2.0", "05/1930"])
    result = run("ADNI", tmp_path)
    found = {(r["native_subject_id"], r["visit_code"]): r["mmse"] for r in result.visits.to_dict("records")}
    assert found == {("005_S_0010", "bl"): 30, ("005_S_0010", "m06"): 29, ("005_S_0100", "bl"): 11}


@given(st.integers(0, 999), st.integers(1, 99999))
def test_participant_ids_can_be_turned_back(site: int, rid: int) -> None:
    native = f"{site:03d}_S_{rid:04d}"
    label = participant_id_of("ADNI", native)
    assert label.removeprefix("sub-").isalnum()
    assert native_ids(label) == ("ADNI", native)


def test_genotype_columns_of_both_vintages_and_a_contradiction(tmp_path: Path) -> None:
    """Issue 1294: APOERES has GENOTYPE in place of APGEN1 and APGEN2."""
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, *[merge(rid, "bl", "2005-09-08", APOE4=1) for rid in (1, 2, 3)])
    write_csv(tmp_path / "APOERES_17Nov2024.csv", "RID|VISCODE|GENOTYPE", [1, "sc", "4/3"], [2, "sc", "4/4"])
    for rid in (1, 2, 3):
        adni_image(tmp_path, f"005_S_{rid:04d}", "2005-09-08", 100 + rid, rid)
    result = run("ADNI", tmp_path)
    found = {r["native_subject_id"][-1]: (r["apoe_genotype"], r["apoe4_count"]) for r in by_key(result).values()}
    assert found == {"1": ("34", 1), "2": (None, None), "3": (None, 1)}
    assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT"]


def test_old_genotype_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DIAGNOSIS=1))
    write_csv(tmp_path / "PTDEMOG.csv", "RID|PTGENDER|PTDOBYY|PTDOBMM", [1, 2, 1930, "-4"])
    write_csv(tmp_path / "APOERES.csv", "RID|VISCODE|APGEN1|APGEN2", [1, "bl", 4, 3], [1, "m06", "4.0", "3.0"])
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    record = only(tmp_path)
    assert (record["apoe_genotype"], record["apoe4_count"], record["age_precision"]) == ("34", 1, "year")


def test_education_asked_twice_counts_as_first_told_and_other_contradictions_are_emptied(tmp_path: Path) -> None:
    write_csv(tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DIAGNOSIS=1))
    write_csv(tmp_path / "PTDEMOG.csv", "RID|VISCODE2|PTGENDER|PTEDUCAT|PTHAND|PTDOB",
              [1, "m60", 2, 18, 1, "06/1931"], [1, "sc", 2, 16, 1, "05/1930"])  # fmt: skip
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    result = run("ADNI", tmp_path)
    record = by_key(result)["I101"]
    assert (record["educ_years"], record["handedness"], record["age_years"]) == (16, "R", None)
    assert reason_names(result) == ["AGE_MISSING", "DUPLICATE_KEY_CONFLICT", "DUPLICATE_KEY_CONFLICT"]


def test_people_without_a_ptid_are_left_out_with_a_remark(tmp_path: Path) -> None:
    write_csv(tmp_path / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DIAGNOSIS=1))
    write_csv(tmp_path / "CDR.csv", CDR, ["ADNI1", 77, "bl", "bl", "2005-09-08", *[0] * 6, 0])
    result = run("ADNI", tmp_path)
    assert result.visits["native_subject_id"].tolist() == ["005_S_0001"]
    assert reason_names(result) == ["ID_UNPARSABLE"]


def test_dotted_column_names_sentinels_in_floats_and_censored_texts(tmp_path: Path) -> None:
    columns = MERGE.replace("DX_bl", "DX.bl").replace("EXAMDATE_bl", "EXAMDATE.bl")
    write_csv(
        tmp_path / "ADNIMERGE.csv", columns,
        merge(1, "bl", "2005-09-08", "MCI", MMSE="-4.0", MOCA="-1", CDRSB="1.5", FAQ="45", LDELTOTAL="NaN",
              Hippocampus="-4", Ventricles="35000", FSVERSION="Cross-Sectional FreeSurfer (5.1)",
              ABETA=">1700", TAU="<80", PTAU="<8", FLDSTRENG="1.5 Tesla MRI", IMAGEUID="101"),
        merge(2, "bl", "2005-09-08", "MCI", FSVERSION="Cross-Sectional FreeSurfer (5.1)", CDRSB="19", MMSE="27.5"),
    )  # fmt: skip
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1)
    result = run("ADNI", tmp_path)
    record = by_key(result)["I101"]
    assert (record["mmse"], record["moca"], record["cdr_sb"], record["faq"], record["lm_delayed"]) == (
        None, None, 1.5, None, None,
    )  # fmt: skip
    assert (record["hippocampus_mm3"], record["ventricles_mm3"], record["volume_source"]) == (None, 35000, "UCSF-FS5.1")
    assert (record["dx_subject_level"], record["field_strength_t"]) == ("LMCI", 1.5)
    assert result.visits["volume_source"].isna().tolist() == [False, True]
    assert sorted(result.field_issues["column"]) == ["CDRSB", "FAQ", "MMSE"]
    assert set(result.field_issues["reason"]) == {"VALUE_OUT_OF_RANGE"}


# ------------------------------------------------------------------------------------------------- choice of the image


def candidate(key: int, description: str, **values: Any) -> Candidate:
    processed = values.pop("processed", "N3" in description or "Scaled" in description)
    base: dict[str, Any] = {"strength": None, "series": key, "rating": None, "chosen": False}
    return Candidate(f"I{key}", description, processed, **{**base, **values})


def first(*candidates: Candidate, modern: bool = False, strength: float = 3.0) -> str:
    return order_candidates(candidates, modern, strength)[0].key


def test_order_of_the_early_phases() -> None:
    ordered = [
        SCALED, "MPR; GradWarp; B1 Correction; N3; Scaled_2", "MT1; GradWarp; N3m", "MP-RAGE", "MP-RAGE REPEAT",
        "SAG IR-SPGR", "MPRAGE GRAPPA2", "MPR; GradWarp", "Accelerated SAG IR-SPGR",
    ]  # fmt: skip
    ranks = [kind_rank(text, "GradWarp" in text, modern=False) for text in ordered]
    assert ranks == [0, 1, 2, 3, 3, 4, 5, 6, 5]
    assert first(candidate(9, "MP-RAGE"), candidate(8, "MP-RAGE REPEAT")) == "I9"
    assert first(candidate(9, SCALED), candidate(8, "MPR-R; GradWarp; B1 Correction; N3; Scaled")) == "I9"
    assert first(candidate(9, "MP-RAGE"), candidate(8, "MP-RAGE")) == "I8"  # the lowest series
    assert first(candidate(9, "MP-RAGE", series=3), candidate(8, "MP-RAGE", series=4)) == "I9"


def test_order_of_adni_3_and_4() -> None:
    ordered = ["Accelerated_Sagittal_MPRAGE", "Sagittal_3D_MPRAGE", "Accelerated_Sagittal_MPRAGE_ND"]
    assert [kind_rank(text, False, modern=True) for text in ordered] == [0, 1, 2]
    assert kind_rank("Accelerated_Sagittal_MPRAGE", True, modern=True) == 3
    assert first(candidate(1, ordered[2]), candidate(2, ordered[0]), candidate(3, SCALED), modern=True) == "I2"


def test_quality_control_decides_among_equals() -> None:
    plain = "MPRAGE"
    assert first(candidate(1, plain, rating=1.0), candidate(2, plain, rating=3.0, chosen=True)) == "I2"
    # Two selected series are no selection: the better rating counts, and an unrated one comes last.
    both = [candidate(1, plain, rating=3.0, chosen=True), candidate(2, plain, rating=2.0, chosen=True)]
    assert first(*both, candidate(3, plain)) == "I2"
    assert first(candidate(1, plain), candidate(2, plain, rating=3.0)) == "I2"
    assert first(candidate(1, "MPRAGE_repeat"), candidate(2, plain)) == "I2"
    assert first(candidate(1, plain, strength=3.0), candidate(2, plain, strength=1.5), strength=1.5) == "I2"


@given(st.permutations(range(8)))
def test_the_order_does_not_depend_on_the_order_of_the_files(order: list[int]) -> None:
    kinds = [SCALED, "MP-RAGE", "MP-RAGE REPEAT", "MT1__N3m"]
    pool = [candidate(i + 1, kinds[i % 4], rating=None if i % 3 else float(i % 4 + 1)) for i in range(8)]
    expected = [c.key for c in order_candidates(pool, False, 1.5)]
    assert [c.key for c in order_candidates([pool[i] for i in order], False, 1.5)] == expected


QC = "RID|loni_study|loni_series|loni_image|series_date|series_type|series_quality|series_selected"


def test_quality_tables_in_an_ingest(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "ADNIMERGE.csv", MERGE, *[merge(r, "bl", "2012-09-08", COLPROT="ADNI2") for r in (4001, 4002, 4003)]
    )
    for uid, ptid, series in ((10, 4001, "MPRAGE"), (12, 4001, "MPRAGE_repeat"), (14, 4002, "MPRAGE"),
                              (16, 4003, "MPRAGE"), (18, 4003, "MPRAGE_repeat")):  # fmt: skip
        adni_image(tmp_path, f"005_S_{ptid}", "2012-09-08", uid, uid, series=series)
    write_csv(
        tmp_path / "MAYOADIRL_MRI_IMAGEQC_12_08_15_17Nov2024.csv", QC,
        [4001, 1, "S5", "I10", "", "T1", 2, 0], [4001, 1, "S6", "I12", "", "T1", 2, 1],
        [4002, 1, "S7", "I14", "", "T1", 4, 0], [4003, 1, "S8", "I16", "", "T1", -1, 0],
    )  # fmt: skip
    write_csv(tmp_path / "MRIQUALITY.csv", "RID|LONIUID|PASS", [4003, "S8", "0"], [4003, "S9", "1"])
    result = run("ADNI", tmp_path)
    images = by_key(result)
    chosen = {key: record["selection_rank"] for key, record in images.items() if record["selected"]}
    assert chosen == {"I12": 1, "I18": 1}
    assert (images["I12"]["qc_score"], images["I18"]["qc_score"]) == (2, None)
    dropped = result.quarantine[result.quarantine["reason"] == "QC_FAIL"]
    assert [json.loads(key)["native_image_key"] for key in dropped["key_json"]] == ["I14", "I16"]


def test_a_failed_series_fails_with_what_was_made_of_it(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    folder = tmp_path / "005_S_0001"
    for uid, kind, series in ((101, "MP-RAGE", 50), (102, SCALED, 50), (103, "MP-RAGE_REPEAT", 51)):
        write_image(
            folder / kind / "2005-09-08_10_00_00.0" / f"I{uid}" / f"ADNI_005_S_0001_MR_x_S{series}_I{uid}.nii", uid
        )
    write_csv(tmp_path / "MRIQUALITY.csv", "RID|LONIUID|PASS", [1, "S50", "0"], [1, "S51", "1"])
    result = run("ADNI", tmp_path)
    assert list(by_key(result)) == ["I103"]
    assert by_key(result)["I103"]["selected"]
    assert reason_names(result) == ["QC_FAIL", "QC_FAIL"]


def test_a_download_of_originals_only_works_and_says_how_far_it_fell_back(tmp_path: Path) -> None:
    """Issues 128, 368, 1010, 1299: the preferred processed image is listed but was not downloaded."""
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"), merge(1, "m06", "2006-03-08"))
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1, series="MP-RAGE")
    adni_image(tmp_path, "005_S_0001", "2006-03-08", 105, 5, series="MP-RAGE")
    scaled = "MPR; GradWarp; B1 Correction; N3; Scaled"
    write_csv(
        tmp_path / "MPRAGEMETA.csv",
        "SubjectID|Visit|MagStrength|Sequence|ScanDate|StudyID|SeriesID|ImageUID|Orig/Proc",
        ["005_S_0001", "ADNI Screening", 1.5, "MP-RAGE", "2005-09-08", 9, 50, 101, "Original"],
        ["005_S_0001", "ADNI Screening", 1.5, scaled, "2005-09-08", 9, 50, 102, "Processed"],
        ["005_S_0001", "ADNI Screening", 1.5, "MP-RAGE REPEAT", "2005-09-08", 9, 51, 103, "Original"],
        ["005_S_0002", "ADNI Screening", 1.5, scaled, "2005-09-08", 9, 60, 104, "Processed"],
    )  # fmt: skip
    result = run("ADNI", tmp_path)
    images = by_key(result)
    assert {key: (r["selection_rank"], r["selected"], r["field_strength_t"]) for key, r in images.items()} == {
        "I101": (2, True, 1.5), "I105": (1, True, None),
    }  # fmt: skip
    assert reason_names(result) == []


def test_a_damaged_first_choice_falls_back_to_the_next(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 101, 1, series=SCALED).write_bytes(b"x" * 400)
    adni_image(tmp_path, "005_S_0001", "2005-09-08", 102, 2, series="MP-RAGE")
    result = run("ADNI", tmp_path)
    record = by_key(result)["I102"]
    assert (record["selected"], record["selection_rank"]) == (True, 2)
    assert reason_names(result) == ["IMAGE_UNREADABLE"]


def test_both_magnets_at_one_visit(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    write_csv(tmp_path / "MRIMETA.csv", "RID|VISCODE|EXAMDATE|MMCONDCT", [1, "sc", "2005-09-01", 1])
    write_csv(
        tmp_path / "MRI3META.csv",
        "RID|VISCODE|EXAMDATE|MMCONDCT",
        [1, "sc", "2005-09-20", 1],
        [1, "m06", "2005-09-01", 0],
    )
    adni_image(tmp_path, "005_S_0001", "2005-09-01", 102, 1)
    adni_image(tmp_path, "005_S_0001", "2005-09-20", 101, 2)
    result = run("ADNI", tmp_path)
    images = by_key(result)
    assert {key: (r["field_strength_t"], r["run"], r["selected"]) for key, r in images.items()} == {
        "I102": (1.5, 1, True), "I101": (3.0, 2, False),
    }  # fmt: skip
    assert {record["session_id"] for record in images.values()} == {"ses-M000"}


def test_known_bad_scans_and_equalised_conversions(tmp_path: Path) -> None:
    listed = known_bad_scans()
    assert {("031_S_0830", "m48"), ("100_S_0995", "m18"), ("031_S_0867", "m48"), ("100_S_0892", "m18"),
            ("003_S_6264", "m12"), ("011_S_4105", "m72")} <= listed  # fmt: skip
    ptid = "031_S_0830"
    write_csv(
        tmp_path / "ADNIMERGE.csv",
        MERGE,
        merge(830, "bl", "2005-09-08", PTID=ptid),
        merge(830, "m48", "2009-09-08", PTID=ptid),
    )
    path = adni_image(tmp_path, ptid, "2005-09-08", 101, 1, series="MP-RAGE")
    write_image(path.with_name(path.name.replace(".nii", "_Eq_1.nii")), 2)
    adni_image(tmp_path, ptid, "2009-09-08", 102, 3)
    result = run("ADNI", tmp_path)
    assert list(by_key(result)) == ["I101"]
    assert reason_names(result) == ["KNOWN_BAD_CONVERSION", "KNOWN_BAD_CONVERSION"]


def test_repeats_are_runs_of_one_session(tmp_path: Path) -> None:
    write_csv(tmp_path / "ADNIMERGE.csv", MERGE, merge(1, "bl", "2005-09-08"))
    for uid, series in ((101, "MPRAGE"), (102, "MPRAGE_Repeat"), (103, "MP-RAGE_RPT")):
        adni_image(tmp_path, "005_S_0001", "2005-09-08", uid, uid, series=series)
    images = by_key(run("ADNI", tmp_path))
    assert {key: (r["run"], r["selected"]) for key, r in images.items()} == {
        "I101": (1, True), "I102": (2, False), "I103": (3, False),
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- whole


def test_two_ingests_are_equal(tmp_path: Path) -> None:
    """Issue 1172: a second run must give the same tables."""
    write_csv(
        tmp_path / "in" / "ADNIMERGE.csv",
        MERGE,
        merge(1, "bl", "2005-09-08"),
        merge(2, "bl", "2005-09-08", PTGENDER="Male"),
    )
    write_csv(
        tmp_path / "in" / "DXSUM.csv", DXSUM, dxsum(1, "bl", "2005-09-08", DIAGNOSIS=3), dxsum(1, "nv", "2008-09-08")
    )
    for uid, ptid in ((101, "005_S_0001"), (102, "005_S_0001"), (103, "005_S_0002")):
        adni_image(tmp_path / "in", ptid, "2005-09-08", uid, uid)
    for name in ("one", "two"):
        write_ingest(run("ADNI", tmp_path / "in"), tmp_path / name, simulated=False)
    for name in ("images", "visits", "quarantine", "sources", "field_issues"):
        assert (tmp_path / "one" / f"{name}.parquet").read_bytes() == (
            tmp_path / "two" / f"{name}.parquet"
        ).read_bytes()


def test_series_names() -> None:
    t1 = ["MPRAGE", "MP-RAGE_REPEAT", SCALED, "MT1__N3m", "Accelerated_Sagittal_MPRAGE",
          "Accelerated_Sag_IR-FSPGR", "Sagittal_3D_Accelerated_MPRAGE", "Accelerated_Sagittal_MPRAGE_ND",
          "MPRAGE_SENSE2", "SAG_IR-SPGR"]  # fmt: skip
    other = ["Axial_PD_T2_FSE", "3_Plane_Localizer", "Axial_T2-FLAIR", "Axial_rsfMRI__EYES_OPEN_", "Axial_DTI",
             "Field_Mapping", "B1-calibration_Head", "HighResHippocampus", "Perfusion_Weighted"]  # fmt: skip
    assert [name for name in t1 if not is_t1_description(name)] == []
    assert [name for name in other if is_t1_description(name)] == []


@given(st.lists(st.from_regex(r"[A-Za-z0-9_ ()!.-]{1,12}", fullmatch=True), min_size=1, max_size=6))
def test_no_path_breaks_the_grouping_and_no_image_file_is_lost(parts: list[str]) -> None:
    path = "/".join([*parts[:-1], parts[-1] + ".nii"])
    images = group_images([path], adni.PTID)
    assert len(images) == 1
    assert images[0].key
    images[0].image_file()


@given(st.text(max_size=15))
def test_no_text_breaks_the_field_strength(text: str) -> None:
    value = parse_strength(text)
    assert value is None or 0.1 <= value <= 12


def test_nothing_listed_describes_nothing() -> None:
    listed, foreign = describe_image([], lambda row: True, None)
    assert (listed.values, foreign) == ({}, None)
