"""NACC: tables of any freeze, session archives in both forms, SCAN images, codes, dates and labels."""

from __future__ import annotations

import datetime
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohort_trees import by_key, image_bytes, nacc_session, reason_names, run, voxels, write_csv, write_image
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cohorts import write_ingest
from medalign3d.cohorts.base import native_ids, participant_id_of, session_id_of
from medalign3d.cohorts.crosswalk import lm_delayed_of_craft, lm_immediate_of_craft, mmse_of_moca
from medalign3d.cohorts.nacc import (
    APOE_GENOTYPE,
    HISTORY,
    SYNDROME,
    UDS_COLUMNS,
    VOLUME_MISSING,
    VOLUMES,
    parse_syndrome,
    parse_volume,
    uds_fields,
)
from medalign3d.cohorts.nacc_files import Locators, is_t1, normalize_locator, pick_rank
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.cohorts.values import Quantity, parse_number
from medalign3d.ehr.labels import label_of
from medalign3d.errors import InputError, MissingTable
from medalign3d.simulate.images import dicom_slices

MPRAGE = {"SeriesDescription": "SAG MPRAGE", "MRAcquisitionType": "3D", "SliceThickness": 1.2}
VISIT = {
    "NACCID": "NACC000001", "NACCADC": 1234, "NACCVNUM": 1, "PACKET": "I", "FORMVER": 2, "VISITYR": 2010, "VISITMO": 1,
    "VISITDAY": 10, "SEX": 2, "BIRTHYR": 1940, "BIRTHMO": 6, "NACCAGE": 69, "EDUC": 16, "HANDED": 2, "NACCMMSE": 28,
    "NACCMOCA": -4, "LOGIMEM": 13, "MEMUNITS": 12, "CRAFTURS": -4, "CRAFTDRE": -4, "CDRSUM": 0.5, "CDRGLOB": 0,
    "NACCGDS": 1, "NACCAPOE": 2, "NACCNE4S": 1, "NACCUDSD": 1, "NACCALZD": 8, "NACCALZP": 8, "NACCETPR": 88,
    "DIABETES": 0, "HYPERTEN": 1, "HYPERCHO": 2, "B12DEF": 9, "THYROID": -4,
}  # fmt: skip
SCAN_SESSION = {
    "NACCID": "NACC000001", "NACCADC": 1234, "NACCMRFI": "mri1.zip", "NACCMNUM": 1, "NACCVNUM": 1, "NACCMRIA": 69,
    "NACCMRDY": 5, "NACCMRSA": 1, "MRIYR": 2010, "MRIMO": 1, "MRIDY": 15, "MRIFIELD": 2, "MRIMANU": 1,
    "NACCICV": "8888.888", "NACCBRNV": "8888.888", "HIPPOVOL": "88.8888", "LATVENT": "888.8888",
}  # fmt: skip


def visits(root: Path, *changes: dict[str, Any], name: str = "investigator_nacc71.csv", upper: bool = True) -> Path:
    """A UDS table with one row per dict of changes to ``VISIT``."""
    header = list(VISIT) if upper else [column.lower() for column in VISIT]
    return write_csv(root / name, "|".join(header), *[list({**VISIT, **change}.values()) for change in changes])


def sessions(root: Path, *changes: dict[str, Any], name: str = "investigator_mri_nacc71.csv") -> Path:
    """An MRI table with one row per dict of changes to ``SCAN_SESSION``."""
    rows = [list({**SCAN_SESSION, **change}.values()) for change in changes]
    return write_csv(root / name, "|".join(SCAN_SESSION), *rows)


def one_session(root: Path, visit: dict[str, Any] | None = None, session: dict[str, Any] | None = None) -> None:
    """One participant with one visit and one session that holds one T1."""
    visits(root, visit or {})
    sessions(root, session or {})
    nacc_session(root, "mri1", {"T1": (image_bytes(1), MPRAGE)})


def dicom_zip(path: Path, series: dict[str, tuple[int, dict[str, Any]]], flat: bool = False, suffix: str = "") -> Path:
    """A zip with DICOM series: folder -> (seed, header values)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, (folder, (seed, header)) in enumerate(series.items(), start=1):
            data = voxels(seed, header.pop("shape", (64, 64, 64)))
            slices = dicom_slices(data, np.diag([1.5, 1.5, 1.5, 1.0]), {"SeriesNumber": number, **header})
            for place, content in enumerate(slices):
                inside = "" if flat else f"{folder}/"
                archive.writestr(f"{path.stem}/{inside}{number}.{place}{suffix}", content)
    return path


def only(result: Any) -> dict[str, Any]:
    images = by_key(result)
    assert len(images) == 1, (list(images), reason_names(result))
    return next(iter(images.values()))


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("uds", "mri", "upper"),
    [
        ("investigator_nacc63.csv", "investigator_mri_nacc63.csv", True),
        ("INVESTIGATOR_FTLDLBD_NACC71.CSV", "Investigator_MRI_NACC71.csv", True),
        ("commercial_nacc73.csv", "commercial_mri_nacc73.csv", False),
        ("smith11152019.csv", "smith11152019mri.csv", False),
    ],
)
def test_tables_of_any_freeze_licence_and_case(tmp_path: Path, uds: str, mri: str, upper: bool) -> None:
    visits(tmp_path, {}, name=uds, upper=upper)
    sessions(tmp_path, {}, name=mri)
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    record = only(run("NACC", tmp_path))
    assert (record["dx_native"], record["mmse"], record["native_subject_id"]) == ("NC", 28, "NACC000001")


def test_the_newest_freeze_and_the_plain_file_are_read(tmp_path: Path) -> None:
    for name, mmse in (
        ("investigator_nacc71.csv", 27),
        ("investigator_ftldlbd_nacc71.csv", 26),
        ("commercial_nacc71.csv", 25),
        ("investigator_nacc9.csv", 24),
        ("somebody12312025.csv", 23),
        ("merged.csv", 22),
    ):
        visits(tmp_path, {"NACCMMSE": mmse}, name=name)
    sessions(tmp_path, {}, name="investigator_mri_nacc9.csv")
    sessions(tmp_path, {})
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    result = run("NACC", tmp_path)
    assert only(result)["mmse"] == 27
    assert only(result)["release"] == "freeze 71"
    assert sorted(result.sources["file"]) == ["investigator_mri_nacc71.csv", "investigator_nacc71.csv"]


def test_of_two_custom_requests_the_later_date_counts(tmp_path: Path) -> None:
    visits(tmp_path, {"NACCMMSE": 20}, name="smith12042019.csv")
    visits(tmp_path, {"NACCMMSE": 21}, name="smith01152020.csv")
    sessions(tmp_path, {}, name="smith01152020mri.csv")
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    assert only(run("NACC", tmp_path))["mmse"] == 21


def test_two_different_tables_of_one_freeze_are_an_error_and_equal_copies_are_not(tmp_path: Path) -> None:
    one_session(tmp_path)
    visits(tmp_path, {}, name="copy/investigator_nacc71.csv")
    assert len(run("NACC", tmp_path).images) == 1
    visits(tmp_path, {"NACCMMSE": 3}, name="copy/investigator_nacc71.csv")
    with pytest.raises(InputError, match="more than once"):
        run("NACC", tmp_path)


def test_other_tables_of_the_freeze_do_no_harm(tmp_path: Path) -> None:
    one_session(tmp_path)
    csf = "NACCID|NACCADC|CSFABETA|CSFPTAU|CSFTTAU|CSFLPMO|CSFLPDY|CSFLPYR"
    write_csv(tmp_path / "investigator_fcsf_nacc71.csv", csf, ["NACC000001", 1, 500, 60, 300, 1, 2, 2010])
    sbm = "NACCID|NACCADC|SCANDT|CEREBRUMTCV"
    write_csv(tmp_path / "investigator_scan_mri_nacc71" / "investigator_scan_mrisbm_nacc71.csv", sbm, ["x", 1, "", 2])
    result = run("NACC", tmp_path)
    assert result.quarantine.empty
    assert len(result.sources) == 2


def test_uds4_renames_blanks_and_points(tmp_path: Path) -> None:
    header = [name for name in VISIT if name != "SEX"]
    row = {**VISIT, "EDUC": ".", "HANDED": "", "NACCMMSE": " ", "CDRSUM": "."}
    write_csv(tmp_path / "investigator_nacc75.csv", "|".join([*header, "NACCSEX"]), [*[row[n] for n in header], 1])
    sessions(tmp_path, {})
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    result = run("NACC", tmp_path)
    record = only(result)
    assert (record["sex"], record["educ_years"], record["handedness"], record["mmse"]) == ("M", None, None, None)
    assert (record["cdr_sb"], record["cdr_sb_source"], record["cdr_global"]) == (None, None, 0)
    assert result.quarantine.empty


def test_naccsex_stands_in_where_sex_is_not_asked_and_a_contradiction_is_none(tmp_path: Path) -> None:
    header = "|".join([*VISIT, "NACCSEX"])
    write_csv(tmp_path / "investigator_nacc75.csv", header, [*{**VISIT, "SEX": -4}.values(), 2])
    sessions(tmp_path, {})
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    assert only(run("NACC", tmp_path))["sex"] == "F"
    write_csv(tmp_path / "investigator_nacc75.csv", header, [*{**VISIT, "SEX": 1}.values(), 2])
    assert reason_names(run("NACC", tmp_path)) == ["SEX_CONFLICT"]


# -------------------------------------------------------------------------------------------------------------- values


def test_each_column_keeps_its_own_meaning(tmp_path: Path) -> None:
    one_session(
        tmp_path,
        {"CDRSUM": "4.5", "CDRGLOB": "1.0", "NACCUDSD": 4, "NACCALZD": 1, "NACCALZP": 1, "HANDED": 1, "NACCAPOE": "4"},
        {"HIPPOVOL": "6.5", "NACCICV": "1000.0", "NACCBRNV": "999.9", "LATVENT": "10", "MRIFIELD": "1", "MRIMANU": "3"},
    )
    record = only(run("NACC", tmp_path))
    assert (record["cdr_sb"], record["cdr_global"]) == (4.5, 1.0)  # CDRSUM is the sum of boxes, CDRGLOB the rating
    assert (record["dementia_etiology"], record["handedness"]) == ("AD", "L")
    assert (record["apoe_genotype"], record["apoe4_count"]) == ("44", 2)
    assert (record["hippocampus_mm3"], record["icv_mm3"], record["ventricles_mm3"]) == (6500, 1000000, 10000)
    assert record["brain_mm3"] == pytest.approx(999900)
    assert (record["field_strength_t"], record["manufacturer"]) == (1.5, "Philips")
    assert (record["lm_immediate"], record["lm_delayed"], record["gds"]) == (13, 12, 1)
    assert json.loads(record["history"]) == {"diabetes": 0, "hypertension": 1, "hypercholesterolaemia": 1}
    assert record["age_years"] == pytest.approx(69.58, abs=0.02)
    rule = json.loads(record["provenance"])["values"]["dementia_etiology"]["rule"]
    assert "primary" in rule


def test_the_code_of_apoe_is_not_alphabetical() -> None:
    assert [APOE_GENOTYPE[float(code)] for code in range(1, 7)] == ["33", "34", "23", "44", "24", "22"]


SENTINELS = {
    "NACCMMSE": (88, 95, 96, 97, 98, -4), "NACCMOCA": (88, 99, -4), "LOGIMEM": (95, 96, 97, 98, -4),
    "MEMUNITS": (95, 96, 97, 98, -4), "CRAFTURS": (95, 96, 97, 98, -4), "CRAFTDRE": (95, 96, 97, 98, -4),
    "EDUC": (99, -4), "HANDED": (9, -4), "NACCGDS": (88, -4), "NACCAPOE": (9, -4), "NACCNE4S": (9, -4),
    "NACCUDSD": (-4,), "NACCALZD": (8, -4), "NACCALZP": (7, 8, -4), "NACCETPR": (88, 99, -4), "CDRSUM": (-4,),
    "CDRGLOB": (-4,), "NACCAGE": (888, -4), "BIRTHYR": (9999, -4), "BIRTHMO": (99, -4), "SEX": (-4,),
    "NACCSEX": (9, -4), **dict.fromkeys(HISTORY, (9, -4)),
}  # fmt: skip
LEGAL = {
    "NACCUDSD": set(SYNDROME.values()) | {"out of scope"}, "NACCAPOE": set(APOE_GENOTYPE.values()),
    "HANDED": {"L", "R", "A"}, "SEX": {"F", "M"}, "NACCSEX": {"F", "M"}, "NACCALZD": {"yes", "no"},
    "NACCALZP": {"primary", "contributing", "non-contributing"}, **{name: {0, 1} for name in HISTORY},
}  # fmt: skip


def parse(column: str, cell: str) -> tuple[Any, QuarantineReason | None]:
    parser = next(parser for parser, columns in uds_fields(crosswalk=True).values() if column in columns)
    return parse_number(cell, parser) if isinstance(parser, Quantity) else parser(cell)


@pytest.mark.parametrize("column", sorted(SENTINELS))
def test_no_code_for_no_value_survives_as_a_value(column: str) -> None:
    for code in SENTINELS[column]:
        for cell in (f"{code}", f"{code}.0", f" {code} ", f"{code},0"):
            assert parse(column, cell) == (None, None), (column, cell)
    for cell in ("", ".", " ", "NA"):
        assert parse(column, cell) == (None, None)


@given(
    column=st.sampled_from(sorted(SENTINELS)),
    number=st.integers(-10000, 10000),
    digits=st.sampled_from(["", ".0", ".5"]),
)
def test_every_cell_is_a_legal_value_missing_or_reported(column: str, number: int, digits: str) -> None:
    value, reason = parse(column, f"{number}{digits}")
    if value is None:
        return
    assert reason is None
    assert number not in SENTINELS[column]
    if column in LEGAL:
        assert value in LEGAL[column]
    else:
        parser = next(p for p, columns in uds_fields(crosswalk=True).values() if column in columns)
        assert parser.low <= value <= parser.high


def test_every_column_that_is_parsed_is_read() -> None:
    wanted = {name for _, columns in uds_fields(crosswalk=True).values() for name in columns}
    assert wanted <= set(UDS_COLUMNS)
    assert set(SENTINELS) <= wanted


@given(
    code=st.sampled_from(VOLUME_MISSING),
    form=st.sampled_from(["{:.4f}", "{:.3f}", "{}"]),
    column=st.sampled_from(sorted(VOLUMES)),
)
def test_volume_codes_go_before_the_conversion(code: float, form: str, column: str) -> None:
    _, low, high = VOLUMES[column]
    cell = form.format(code)
    if form == "{:.3f}" and cell.endswith("0.000"):
        return  # 9.9999 rounded up to a round number is no longer a code: 10.0 and 1000.0 are genuine volumes
    assert parse_volume(cell, low, high) == (None, None)


@pytest.mark.parametrize("cell", ["10", "10.000", "100.0", "1000", "1000.0", "6.5", "1385.52"])
def test_genuine_volumes_near_the_codes_are_kept(cell: str) -> None:
    assert parse_volume(cell, 0, 1e7) == (pytest.approx(float(cell) * 1000), None)


# -------------------------------------------------------------------------------------------------------------- labels


def test_labels_are_total_over_the_code_book_and_nothing_is_mapped_one_too_far() -> None:
    native = {code: parse_syndrome(str(code))[0] for code in (1, 2, 3, 4)}
    assert native == {1: "NC", 2: "IMCI", 3: "MCI", 4: "DEM"}
    # Public scripts took 3 for Alzheimer's disease, or 2 for MCI.
    assert {code: label_of("NACC", name).dx3 for code, name in native.items()} == {
        1: "NC",
        2: None,
        3: "MCI",
        4: "AD_DEM",
    }


@given(st.text(max_size=8) | st.floats(allow_nan=True).map(str) | st.integers(-100, 100).map(str))
def test_a_cell_that_is_no_code_gets_no_label(cell: str) -> None:
    label, _ = parse_syndrome(cell)
    assert label in {None, "out of scope", "NC", "IMCI", "MCI", "DEM"}
    if label in SYNDROME.values():
        assert float(cell) == next(code for code, name in SYNDROME.items() if name == label)


@pytest.mark.parametrize(
    ("changes", "etiology", "any_cause", "ad_only"),
    [
        ({"NACCALZD": 1, "NACCALZP": 1}, "AD", "AD_DEM", "AD_DEM"),
        ({"NACCALZD": 1, "NACCALZP": 2}, "AD", "AD_DEM", "AD_DEM"),
        ({"NACCALZD": 0, "NACCALZP": 7}, "other", "AD_DEM", None),
        ({"NACCALZD": -4, "NACCALZP": -4, "NACCETPR": 1}, "AD", "AD_DEM", "AD_DEM"),
        ({"NACCALZD": -4, "NACCALZP": -4, "NACCETPR": 2}, "other", "AD_DEM", None),
        ({"NACCALZD": 8}, "unknown", "AD_DEM", None),
    ],
)
def test_the_cause_of_a_dementia_and_both_policies(
    tmp_path: Path, changes: dict[str, Any], etiology: str, any_cause: str, ad_only: str | None
) -> None:
    one_session(tmp_path, {"NACCUDSD": 4, "CDRGLOB": 1, **changes})
    record = only(run("NACC", tmp_path))
    assert (record["dx_native"], record["dementia_etiology"]) == ("DEM", etiology)
    for policy, expected in (("any_cause", any_cause), ("ad_only", ad_only)):
        label = label_of("NACC", "DEM", dementia_etiology=etiology, nacc_dementia_policy=policy)
        assert (label.dx3, label.dx2) == (expected, "DEM")


@pytest.mark.parametrize(
    ("syndrome", "rating", "warned"),
    [(1, 1, True), (1, 2, True), (4, 0, True), (1, 0.5, False), (3, 0, False), (3, 1, False), (2, 1, False),
     (4, 0.5, False)],
)  # fmt: skip
def test_a_diagnosis_that_the_cdr_contradicts_is_kept_and_remarked_on(
    tmp_path: Path, syndrome: int, rating: float, warned: bool
) -> None:
    one_session(tmp_path, {"NACCUDSD": syndrome, "CDRGLOB": rating, "NACCALZD": 1})
    result = run("NACC", tmp_path)
    assert only(result)["dx_native"] == SYNDROME[syndrome]
    assert reason_names(result) == (["DIAGNOSIS_CONFLICT"] if warned else [])


# ----------------------------------------------------------------------------------------------------------- crosswalk


def test_the_crosswalk_is_monotone_and_in_range() -> None:
    assert mmse_of_moca(0) is None  # not confirmed by a published source
    assert [mmse_of_moca(score) for score in (1, 12, 15, 16, 20, 21, 23, 24, 30)] == [6, 19, 22, 22, 26, 26, 28, 28, 30]
    for convert, last in ((mmse_of_moca, 30), (lm_immediate_of_craft, 25), (lm_delayed_of_craft, 25)):
        values = [convert(score) for score in range(1, last + 1)]
        assert values == sorted(values)
        assert convert(last + 1) is convert(-1) is convert(2.5) is None


def test_the_crosswalk_is_opt_in_flagged_and_never_replaces_a_score(tmp_path: Path) -> None:
    new_forms = {
        "FORMVER": 3,
        "NACCMMSE": -4,
        "LOGIMEM": -4,
        "MEMUNITS": -4,
        "NACCMOCA": 17,
        "CRAFTURS": 4,
        "CRAFTDRE": 95,
    }
    one_session(tmp_path, new_forms)
    plain = only(run("NACC", tmp_path))
    assert (plain["moca"], plain["mmse"], plain["mmse_source"], plain["lm_source"]) == (17, None, None, None)
    estimated = only(run("NACC", tmp_path, nacc_crosswalk=True))
    assert (estimated["mmse"], estimated["mmse_source"]) == (23, "crosswalk")
    assert (estimated["lm_immediate"], estimated["lm_delayed"], estimated["lm_source"]) == (2, None, "crosswalk")
    visits(tmp_path, {**new_forms, "NACCMMSE": 29, "MEMUNITS": 7})
    measured = only(run("NACC", tmp_path, nacc_crosswalk=True))
    assert (measured["mmse"], measured["mmse_source"]) == (29, "measured")
    assert (measured["lm_immediate"], measured["lm_delayed"], measured["lm_source"]) == (None, 7, "measured")


# ------------------------------------------------------------------------------------------------------ visit matching


def test_the_nearest_visit_wins_also_after_a_negative_difference(tmp_path: Path) -> None:
    # A public script compares with a signed running minimum: after a visit later than the scan nothing can be nearer.
    later, nearest = {"NACCVNUM": 1, "VISITMO": 6, "NACCMMSE": 20}, {"NACCVNUM": 2, "VISITMO": 2, "NACCMMSE": 25}
    visits(tmp_path, later, nearest)
    sessions(tmp_path, {"MRIMO": 2, "MRIDY": 14, "NACCVNUM": 2, "NACCMRDY": 4})
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    record = only(run("NACC", tmp_path))
    assert (record["visit_code"], record["match_delta_days"], record["mmse"]) == ("2", 4, 25)


def test_december_and_january_pair(tmp_path: Path) -> None:
    # Pairing by calendar year alone takes the visit eleven months away.
    visits(tmp_path, {"NACCVNUM": 1}, {"NACCVNUM": 2, "VISITYR": 2011, "VISITMO": 1, "VISITDAY": 3, "NACCMMSE": 21})
    sessions(tmp_path, {"MRIMO": 12, "MRIDY": 28, "NACCVNUM": 2, "NACCMRDY": -6})
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    record = only(run("NACC", tmp_path))
    assert (record["visit_code"], record["match_delta_days"], record["mmse"]) == ("2", -6, 21)


@pytest.mark.parametrize(("days", "accepted"), [(183, True), (184, False)])
def test_the_window_is_183_days_unless_changed(tmp_path: Path, days: int, accepted: bool) -> None:
    date = datetime.date(2010, 1, 10) + datetime.timedelta(days=days)
    one_session(
        tmp_path, {}, {"MRIYR": date.year, "MRIMO": date.month, "MRIDY": date.day, "NACCMRDY": days, "NACCMRIA": 70}
    )
    assert reason_names(run("NACC", tmp_path)) == ([] if accepted else ["NO_VISIT_IN_WINDOW"])
    assert len(run("NACC", tmp_path, match_window_days={"NACC": 90}).images) == 0


def test_a_session_without_a_visit_or_a_person_is_not_matched(tmp_path: Path) -> None:
    visits(tmp_path, {})
    far = {"MRIYR": 1996, "NACCMRDY": 8888, "NACCVNUM": 88, "NACCMRFI": "mri2.zip"}
    sessions(tmp_path, far, {"NACCID": "NACC000009", "NACCMRFI": "mri3.zip"})
    for number in (2, 3):
        nacc_session(tmp_path, f"mri{number}", {"T1": (image_bytes(number), MPRAGE)})
    assert reason_names(run("NACC", tmp_path)) == ["NO_VISIT_IN_WINDOW"] * 2


def test_what_the_custodian_says_about_the_visit_is_compared_and_our_own_match_kept(tmp_path: Path) -> None:
    visits(tmp_path, {}, {"NACCVNUM": 2, "VISITYR": 2011})
    sessions(tmp_path, {"NACCVNUM": 2})
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    result = run("NACC", tmp_path)
    assert (only(result)["visit_code"], reason_names(result)) == ("1", ["VISCODE_UNKNOWN"])
    sessions(tmp_path, {"NACCVNUM": 1, "NACCMRDY": 60})
    assert reason_names(run("NACC", tmp_path)) == ["VISCODE_UNKNOWN"]
    sessions(tmp_path, {"NACCVNUM": 1, "NACCMRDY": -5})  # some freezes leave the sign away, or turn it round
    assert reason_names(run("NACC", tmp_path)) == []


@pytest.mark.parametrize(
    ("cells", "delta"),
    [
        ({"MRIMO": 88, "MRIDY": 99, "NACCMRDY": 21}, 21),
        ({"MRIMO": 1, "MRIDY": 99, "NACCMRDY": 20}, 20),
        ({"MRIDY": "", "NACCMRDY": -4}, -4),  # four days before the visit, not the code for "not asked"
        ({"MRIYR": 2009, "MRIMO": 12, "MRIDY": 99, "NACCMRDY": 15}, -15),  # the month tells the sign that is missing
    ],
)
def test_an_incomplete_date_follows_from_the_custodians_distance(
    tmp_path: Path, cells: dict[str, Any], delta: int
) -> None:
    one_session(tmp_path, {}, cells)
    result = run("NACC", tmp_path)
    record = only(result)
    assert reason_names(result) == ["DATE_UNPARSABLE"]
    assert record["match_delta_days"] == delta
    assert record["scan_date"] == datetime.date(2010, 1, 10) + datetime.timedelta(days=delta)


def test_an_incomplete_date_without_a_distance_is_no_match(tmp_path: Path) -> None:
    one_session(tmp_path, {}, {"MRIDY": 99, "NACCMRDY": 8888})
    assert reason_names(run("NACC", tmp_path)) == ["NO_VISIT_IN_WINDOW"]


def test_a_visit_without_a_date_still_serves_by_the_custodians_distance(tmp_path: Path) -> None:
    one_session(tmp_path, {"VISITDAY": 99}, {"MRIDY": 99, "NACCMRDY": 12})
    result = run("NACC", tmp_path)
    record = only(result)
    assert (record["match_method"], record["match_delta_days"], record["scan_date"]) == ("exact_label", 12, None)
    assert record["age_years"] == pytest.approx(69.03, abs=0.01)  # NACCAGE at the visit, and twelve days
    assert reason_names(result) == ["DATE_UNPARSABLE", "DATE_UNPARSABLE"]


def test_telephone_visits_have_a_diagnosis_and_few_tests(tmp_path: Path) -> None:
    untested = dict.fromkeys(("NACCMMSE", "LOGIMEM", "MEMUNITS", "NACCGDS"), -4)
    one_session(tmp_path, {"PACKET": "T", "FORMVER": "3.2", **untested})
    result = run("NACC", tmp_path)
    record = only(result)
    assert (record["dx_native"], record["mmse"], record["lm_delayed"], record["cdr_sb"]) == ("NC", None, None, 0.5)
    assert json.loads(record["provenance"])["values"]["form"]["rule"] == "PACKET T, FORMVER 3.2"


# -------------------------------------------------------------------------------------------------------------- people


def test_what_cannot_differ_between_visits_is_emptied_and_education_is_the_visits_own(tmp_path: Path) -> None:
    visits(
        tmp_path,
        {"BIRTHYR": 1940, "EDUC": 16, "NACCAPOE": 1},
        {"NACCVNUM": 2, "VISITYR": 2011, "BIRTHYR": 1930, "EDUC": 18, "NACCAPOE": 2},
    )
    sessions(tmp_path, {})
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    result = run("NACC", tmp_path)
    record = only(result)
    assert (record["educ_years"], record["apoe_genotype"], record["apoe4_count"]) == (16, None, None)
    assert record["age_years"] == pytest.approx(69.01, abs=0.01)  # NACCAGE, because the years of birth contradict
    assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT"]


def test_centres_can_be_left_out(tmp_path: Path) -> None:
    visits(tmp_path, {}, {"NACCID": "NACC000002", "NACCADC": 77})
    sessions(tmp_path, {}, {"NACCID": "NACC000002", "NACCADC": 77, "NACCMRFI": "mri2.zip"})
    for number in (1, 2):
        nacc_session(tmp_path, f"mri{number}", {"T1": (image_bytes(number), MPRAGE)})
    assert run("NACC", tmp_path).quarantine.empty
    result = run("NACC", tmp_path, exclude_nacc_adc=[77])
    assert only(result)["native_subject_id"] == "NACC000001"
    assert reason_names(result) == ["CROSS_COHORT_DUPLICATE"]


@given(st.integers(0, 999999), st.integers(1, 99))
def test_ids_can_be_turned_back(number: int, session: int) -> None:
    native = f"NACC{number:06d}"
    label = participant_id_of("NACC", native)
    assert label.removeprefix("sub-").isalnum()
    assert native_ids(label) == ("NACC", native)
    assert session_id_of("NACC", str(session)) == f"ses-MR{session:02d}"
    assert int(session_id_of("NACC", str(session)).removeprefix("ses-MR")) == session


# ----------------------------------------------------------------------------------------------------- sessions, files


@given(st.integers(0, 10**9), st.sampled_from(["", "ni"]), st.sampled_from(["", ".zip", ".ZIP"]))
def test_both_forms_of_a_session_have_one_locator(number: int, form: str, suffix: str) -> None:
    assert normalize_locator(f"mri{number}{form}{suffix}") == f"mri{number}"
    assert Locators([f"mri{number}"]).find(f"MRI{number}{form}{suffix}") == f"mri{number}"


def test_dicom_and_nifti_twins_are_one_session(tmp_path: Path) -> None:
    one_session(tmp_path)
    dicom_zip(tmp_path / "mri" / "mri1.zip", {"a": (1, {"SeriesDescription": "MPRAGE"})}, suffix=".dcm")
    result = run("NACC", tmp_path)
    record = only(result)
    assert (record["source_format"], record["native_image_key"], result.images_found) == ("nifti", "mri1/T1.nii", 1)
    assert json.loads(record["provenance"])["values"]["other_form"]["file"] == "mri/mri1.zip"
    assert result.quarantine.empty


@pytest.mark.parametrize("damage", ["archive", "not_t1", "image"])
def test_the_dicom_form_stands_in_for_an_unusable_nifti_form(tmp_path: Path, damage: str) -> None:
    one_session(tmp_path)
    if damage == "archive":
        (tmp_path / "mri" / "mri1ni.zip").write_bytes(b"PK\x03\x04 cut")
    elif damage == "not_t1":
        nacc_session(tmp_path, "mri1", {"FLAIR": (image_bytes(1), {"SeriesDescription": "AX FLAIR"})})
    else:
        nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1)[:5000], MPRAGE)})
    dicom_zip(tmp_path / "mri" / "mri1.zip", {"a": (1, {"SeriesDescription": "MPRAGE"})}, suffix=".dcm")
    result = run("NACC", tmp_path)
    assert only(result)["source_format"] == "dicom"
    assert len(result.quarantine) == 1


@pytest.mark.parametrize("flat", [False, True])
def test_of_a_dicom_archive_with_several_series_the_t1_is_picked_by_its_headers(tmp_path: Path, flat: bool) -> None:
    visits(tmp_path, {})
    sessions(tmp_path, {})
    series = {
        "loc": (1, {"SeriesDescription": "3 Plane Loc", "shape": (64, 64, 3)}),
        "flair": (2, {"SeriesDescription": "Sag 3D FLAIR"}),
        "t1": (3, {"SeriesDescription": "Sag IR-FSPGR 3D", "MagneticFieldStrength": 15000}),
    }
    dicom_zip(tmp_path / "mri" / "mri1.zip", series, flat=flat)
    result = run("NACC", tmp_path)
    record = only(result)
    assert record["series_description"] == "Sag IR-FSPGR 3D"
    assert (list(record["shape"]), record["field_strength_t"]) == ([64, 64, 64], 1.5)
    assert reason_names(result) == ["NOT_T1", "NOT_T1"]
    again = by_key(run("NACC", tmp_path))
    assert list(again) == [record["native_image_key"]]


def test_unpacked_sessions_are_found_in_nested_folders(tmp_path: Path) -> None:
    visits(tmp_path, {})
    sessions(tmp_path, {}, {"NACCMNUM": 2, "NACCMRFI": "NACC000001_20100120_x7.zip", "MRIDY": 20, "NACCMRDY": 10})
    base = tmp_path / "mri" / "within1yr" / "nifti"
    write_image(base / "mri1ni" / "100" / "T1" / "image.nii", 1)
    write_image(base / "mri1ni" / "200" / "T1" / "image.nii", 2)  # the same name in another folder is another image
    write_image(base / "nacc000001_20100120_x7" / "image.nii.gz", 3)
    result = run("NACC", tmp_path)
    assert {key: record["session_id"] for key, record in by_key(result).items()} == {
        "mri1/100/T1/image.nii": "ses-MR01",
        "mri1/200/T1/image.nii": "ses-MR01",
        "NACC000001_20100120_x7/image.nii.gz": "ses-MR02",
    }
    assert result.quarantine.empty


def test_unpacked_dicom_without_suffix(tmp_path: Path) -> None:
    visits(tmp_path, {})
    sessions(tmp_path, {})
    archive = dicom_zip(tmp_path / "mri1.zip", {"a": (1, {"SeriesDescription": "MPRAGE"})})
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "within1yr" / "dicom")
    archive.unlink()
    (tmp_path / "within1yr" / "dicom" / "mri1" / "a" / "README").write_text("no image")
    result = run("NACC", tmp_path)
    assert result.quarantine.empty
    assert only(result)["native_image_key"] == "mri1/a"


def test_a_file_named_for_another_participant_than_its_row_is_dropped(tmp_path: Path) -> None:
    visits(tmp_path, {})
    sessions(tmp_path, {"NACCMRFI": "NACC000002_7.zip"})
    nacc_session(tmp_path, "NACC000002_7", {"T1": (image_bytes(1), MPRAGE)})
    assert reason_names(run("NACC", tmp_path)) == ["AMBIGUOUS_FILE"]


def test_session_rows_that_stand_twice(tmp_path: Path) -> None:
    one_session(tmp_path, {}, {"HIPPOVOL": 6.5})
    sessions(tmp_path, {"HIPPOVOL": 6.5}, {"HIPPOVOL": 6.5})
    assert reason_names(run("NACC", tmp_path)) == ["DUPLICATE_KEY_IDENTICAL"]
    sessions(tmp_path, {"HIPPOVOL": 6.5, "LATVENT": 30}, {"HIPPOVOL": 7.5, "LATVENT": 30})
    result = run("NACC", tmp_path)
    assert (only(result)["hippocampus_mm3"], only(result)["ventricles_mm3"]) == (None, 30000)
    assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT"]
    sessions(tmp_path, {}, {"NACCID": "NACC000002"})
    result = run("NACC", tmp_path)
    assert result.images.empty
    assert reason_names(result) == ["DUPLICATE_KEY_CONFLICT"]


def test_an_archive_of_a_session_without_an_image_is_reported(tmp_path: Path) -> None:
    one_session(tmp_path)
    sessions(tmp_path, {}, {"NACCMRFI": "mri2.zip", "NACCMNUM": 2})
    for name in ("mri/mri2ni.zip", "forms.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("readme.txt", "nothing")
    assert reason_names(run("NACC", tmp_path)) == ["IMAGE_UNREADABLE"]


def test_archives_that_have_to_be_unpacked_first_are_remarked_on(tmp_path: Path) -> None:
    one_session(tmp_path)
    with zipfile.ZipFile(tmp_path / "download.zip", "w") as outer:
        outer.write(tmp_path / "mri" / "mri1ni.zip", "mri7ni.zip")
    (tmp_path / "rest.tgz").write_bytes(b"not looked at")
    result = run("NACC", tmp_path)
    assert len(result.images) == 1
    assert reason_names(result) == ["IMAGE_WITHOUT_FILE"] * 2
    assert result.quarantine["detail"].str.contains("unpack it").all()


def test_members_that_lead_out_of_their_archive_are_dropped_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    one_session(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in" / "mri" / "mri1ni.zip", "a") as archive:
        archive.writestr("../../up.nii", image_bytes(2))
        archive.writestr("__MACOSX/mri1ni/._T1.nii", b"no image")
    before = sorted(tmp_path.rglob("*"))
    result = run("NACC", tmp_path / "in")
    assert list(by_key(result)) == ["mri1/T1.nii"]
    assert reason_names(result) == ["IMAGE_UNREADABLE"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("field", "maker", "expected"),
    [(1, 1, (1.5, "GE")), (2, 2, (3.0, "Siemens")), (5, 3, (None, "Philips")), (7, 5, (None, None)),
     (8, 8, (None, None)), ("9.0", "9", (None, None)), ("", ".", (None, None))],
)  # fmt: skip
def test_scanner_codes_of_the_mri_table(tmp_path: Path, field: Any, maker: Any, expected: tuple[Any, Any]) -> None:
    one_session(tmp_path, {}, {"MRIFIELD": field, "MRIMANU": maker})
    result = run("NACC", tmp_path)
    assert (only(result)["field_strength_t"], only(result)["manufacturer"]) == expected
    assert result.quarantine.empty


def test_the_header_goes_before_the_table_and_gauss_are_tesla(tmp_path: Path) -> None:
    one_session(tmp_path, {}, {"MRIFIELD": 2, "MRIMANU": 1})
    header = {**MPRAGE, "MagneticFieldStrength": 15000, "Manufacturer": "Philips", "ManufacturersModelName": "Intera"}
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), header)})
    record = only(run("NACC", tmp_path))
    assert (record["field_strength_t"], record["manufacturer"], record["scanner_model"]) == (1.5, "Philips", "Intera")


# ------------------------------------------------------------------------------------------------------------- T1 pick


@pytest.mark.parametrize(
    "description",
    ["MPRAGE", "SAG MP-RAGE", "mp_rage", "T1 MPR ISO", "Sag IR-SPGR 3D", "T1_SENSE", "T1W_3D_TFE_SENSE", "3D T1 SPACE",
     "T1 no contrast", "MPRAGE_POSTERIOR_COIL", "IR-FSPGR BRAVO"],
)  # fmt: skip
def test_t1_series(description: str) -> None:
    assert is_t1(description, {"SeriesDescription": description}) is True


@pytest.mark.parametrize(
    "description",
    ["T1 FLAIR", "AX T1_SE", "T1 TSE SAG", "T1_FSE", "T1 POST", "MPRAGE+C", "T1 GAD", "T1 with contrast", "3-pl T1 LOC",
     "Localizer MPR", "AX T2", "DTI", "rsfMRI T1 EPI", "T1_MAP", "TOF 3D MPR", "EPI", "Survey", "SWI"],
)  # fmt: skip
def test_other_series(description: str) -> None:
    assert is_t1(description, {"SeriesDescription": description}) is False


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"MRAcquisitionType": "2D"}, False),
        ({"SliceThickness": 2}, False),
        ({"SliceThickness": "1.99"}, True),
        ({"Modality": "PT"}, False),
        ({"SeriesDescription": "", "ProtocolName": "T1"}, True),
        ({"SeriesDescription": ""}, None),
    ],
)
def test_header_values_decide_on_t1(changes: dict[str, Any], expected: bool | None) -> None:
    sidecar = {**MPRAGE, **changes}
    assert is_t1(str(sidecar["SeriesDescription"] or sidecar.get("ProtocolName") or "x.nii"), sidecar) is expected


def test_the_pick_prefers_plain_then_thin_then_early(tmp_path: Path) -> None:
    visits(tmp_path, {})
    sessions(tmp_path, {})
    nacc_session(
        tmp_path, "mri1",
        {
            "a": (image_bytes(1), {**MPRAGE, "SliceThickness": 1.0, "SeriesDescription": "MPRAGE REPEAT"}),
            "b": (image_bytes(2), {**MPRAGE, "SliceThickness": 1.0, "AcquisitionTime": "10:05:00.5"}),
            "c": (image_bytes(3), {**MPRAGE, "SliceThickness": 1.0, "AcquisitionTime": "9:59:00.0"}),
            "d": (image_bytes(4), {**MPRAGE, "SliceThickness": 1.2, "AcquisitionTime": "08:00:00"}),
            "e": (image_bytes(5), {**MPRAGE, "SliceThickness": 1.0, "ImageType": ["DERIVED", "SECONDARY"]}),
        },
    )  # fmt: skip
    images = by_key(run("NACC", tmp_path))
    runs = {key[-5]: (record["run"], record["selected"]) for key, record in images.items()}
    assert runs["c"] == (1, True)
    assert (runs["b"], runs["d"]) == ((2, False), (3, False))
    assert {runs["a"][0], runs["e"][0]} == {4, 5}


def test_without_a_sidecar_shape_and_voxel_size_decide(tmp_path: Path) -> None:
    visits(tmp_path, {})
    sessions(tmp_path, {})
    nacc_session(
        tmp_path, "mri1",
        {
            "10": (image_bytes(1, zoom=1.5), None), "11": (image_bytes(2, zoom=1.0), None),
            "12": (image_bytes(3, (64, 64, 30)), None), "13": (image_bytes(4, zoom=3.0), None),
            "14_FLAIR": (image_bytes(5), None),
        },
    )  # fmt: skip
    result = run("NACC", tmp_path)
    assert {key: record["run"] for key, record in by_key(result).items()} == {"mri1/10.nii": 2, "mri1/11.nii": 1}
    assert reason_names(result) == ["IMAGE_TOO_THICK", "IMAGE_TOO_THICK", "NOT_T1"]


@given(
    st.dictionaries(
        st.sampled_from(["SliceThickness", "AcquisitionTime", "SeriesNumber", "ImageType"]),
        st.none() | st.text(max_size=12) | st.integers() | st.floats() | st.lists(st.text(max_size=8)),
    )
)
def test_ranks_can_be_compared_whatever_the_headers_hold(sidecar: dict[str, Any]) -> None:
    plain = pick_rank("MPRAGE", None)
    assert (pick_rank("MPRAGE", sidecar) < plain) in (True, False)
    is_t1("MPRAGE", sidecar)


# ---------------------------------------------------------------------------------------------------------------- SCAN

MRIQC = (
    "NACCID|NACCADC|STUDYDATE|SERIESTIME|SERIESDESCRIPTION|ACQUISITIONTYPE|SLICETHICKNESS|MAGNETICFIELDSTRENGTH|"
    "LONIIMAGE"
)


def scan_zip(
    root: Path, subject: str, image: int, series: str, seed: int, sidecar: dict[str, Any] | None = None
) -> None:
    path = root / "scan" / "MRI" / f"SCAN_{subject}_I{image}_{series}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/image.nii", image_bytes(seed))
        if sidecar is not None:
            archive.writestr(f"{path.stem}/image.json", json.dumps(sidecar))


def test_scan_images_are_t1_by_series_name_and_dated_by_the_scan_table(tmp_path: Path) -> None:
    visits(tmp_path, {"VISITYR": 2022}, {"NACCVNUM": 2, "VISITYR": 2023})
    write_csv(
        tmp_path / "investigator_scan_mri_nacc71" / "investigator_scan_mriqc_nacc71.csv", MRIQC,
        ["NACC000001", 1234, "2022-01-20", "101500", "Accelerated Sag MPRAGE", "3D", 1, 3, "1000001"],
        ["NACC000001", 1234, "1/5/2023", "91500", "Accelerated Sag MPRAGE", "3D", 1, 3, "I1000003"],
    )  # fmt: skip
    scan_zip(tmp_path, "NACC000001", 1000001, "Accelerated_Sag_MPRAGE", 1)
    scan_zip(tmp_path, "NACC000001", 1000002, "Sagittal_3D_FLAIR", 2, {"AcquisitionDateTime": "2022-01-20T10:00:00"})
    scan_zip(tmp_path, "NACC000001", 1000003, "Accelerated_Sag_MPRAGE", 3)
    scan_zip(tmp_path, "NACC000001", 1000004, "MPRAGE", 4)  # in no table, and nothing dates it
    scan_zip(tmp_path, "NACC000001", 1000005, "MPRAGE_ND", 5, {"AcquisitionDateTime": "2022-01-20T10:00:00"})
    result = run("NACC", tmp_path)
    images = by_key(result)
    assert {key: (r["session_id"], r["visit_code"], r["selected"]) for key, r in images.items()} == {
        "SCAN_I1000001/image.nii": ("ses-SCAN01", "1", True),
        "SCAN_I1000005/image.nii": ("ses-SCAN01", "1", False),
        "SCAN_I1000003/image.nii": ("ses-SCAN02", "2", True),
    }
    assert images["SCAN_I1000001/image.nii"]["field_strength_t"] == 3
    assert reason_names(result) == ["FILE_WITHOUT_RECORD", "NOT_T1"]


def test_a_scan_image_as_dicom_is_dated_by_its_headers(tmp_path: Path) -> None:
    visits(tmp_path, {"VISITYR": 2022})
    path = tmp_path / "scan" / "SCAN_NACC000001_I42_MPRAGE.zip"
    dicom_zip(path, {"a": (1, {"SeriesDescription": "MPRAGE", "StudyDate": "20220115"})}, suffix=".dcm")
    record = only(run("NACC", tmp_path))
    assert (record["scan_date"], record["match_delta_days"]) == (datetime.date(2022, 1, 15), 5)
    assert (record["session_id"], record["source_format"]) == ("ses-SCAN01", "dicom")


def test_a_scan_image_of_another_participant_is_dropped(tmp_path: Path) -> None:
    visits(tmp_path, {"VISITYR": 2022})
    write_csv(
        tmp_path / "investigator_scan_mriqc_nacc71.csv", MRIQC, ["NACC000002", 1, "2022-01-20", "", "", "", "", "", "7"]
    )
    scan_zip(tmp_path, "NACC000001", 7, "MPRAGE", 1)
    assert reason_names(run("NACC", tmp_path)) == ["AMBIGUOUS_FILE"]


def test_scan_images_in_the_folders_of_the_image_archive(tmp_path: Path) -> None:
    visits(tmp_path, {"VISITYR": 2023})
    write_image(tmp_path / "NACC000001" / "MPRAGE" / "2023-01-12_10_24_18.0" / "I77" / "x.nii.gz", 1)
    record = only(run("NACC", tmp_path))
    assert (record["session_id"], record["match_delta_days"], record["native_image_key"]) == (
        "ses-SCAN01",
        2,
        "SCAN_I77/x.nii.gz",
    )


# --------------------------------------------------------------------------------------------------------- tables only


def test_tables_without_images_give_visits_and_say_which_sessions_are_missing(tmp_path: Path) -> None:
    visits(tmp_path, {}, {"NACCVNUM": 2, "VISITYR": 2011, "NACCUDSD": 3})
    sessions(tmp_path, {}, {"NACCMRFI": "mri2.zip", "NACCMNUM": 2}, {"NACCMRFI": "mri3.zip", "NACCMRSA": 0})
    result = run("NACC", tmp_path)
    assert len(result.visits) == 2
    assert result.visits["dx_native"].tolist() == ["NC", "MCI"]
    assert result.visits["sex"].tolist() == ["F", "F"]
    assert result.visits["age_years"].tolist() == pytest.approx([69.57, 70.57], abs=0.02)
    assert len(result.sources) == 2
    assert result.images.empty
    keys = sorted(json.loads(key)["native_image_key"] for key in result.quarantine["key_json"])
    assert (keys, reason_names(result)) == (["mri1", "mri2"], ["IMAGE_WITHOUT_FILE"] * 2)


def test_the_visits_alone_can_be_read_but_sessions_need_their_table(tmp_path: Path) -> None:
    visits(tmp_path, {})
    assert len(run("NACC", tmp_path).visits) == 1
    nacc_session(tmp_path, "mri1", {"T1": (image_bytes(1), MPRAGE)})
    with pytest.raises(MissingTable, match="NACCMRFI"):
        run("NACC", tmp_path)


def test_an_empty_table_without_images_is_an_error(tmp_path: Path) -> None:
    visits(tmp_path)
    with pytest.raises(InputError, match="no NACC images"):
        run("NACC", tmp_path)


def test_two_runs_are_equal(tmp_path: Path) -> None:
    visits(tmp_path / "in", {}, {"NACCVNUM": 2, "VISITYR": 2011, "NACCMMSE": -9, "VISITDAY": 99})
    sessions(tmp_path / "in", {}, {"NACCMRFI": "mri2.zip", "NACCMNUM": 2})
    nacc_session(tmp_path / "in", "mri1", {"b": (image_bytes(1), MPRAGE), "a": (image_bytes(2), MPRAGE)})
    write_image(tmp_path / "in" / "unpacked" / "mri1ni" / "a.nii", 2)
    for name in ("one", "two"):
        write_ingest(run("NACC", tmp_path / "in", workers=2), tmp_path / name, simulated=False)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
