"""Harmonizing: nothing lost without a reason, linked persons, quarantine, one schema."""

from __future__ import annotations

import datetime

import pandas as pd
import pytest
from ehr_tables import OASIS1_CSV, Tables, image, make_params, oasis1, tables

from medalign3d.ehr.harmonize import harmonize, write_harmonized
from medalign3d.ehr.persons import OASIS_LINK_RULE, link_persons
from medalign3d.ehr.schema import IMAGE_COLUMNS, data_dictionary_markdown, validate_images
from medalign3d.ehr.summary import SUPPRESSED, cohort_summary
from medalign3d.ehr.text import find_leaks, render
from medalign3d.errors import InputError
from medalign3d.files import read_parquet


def adni(subject: str, number: int = 1, **values):
    return image("ADNI", subject, number, **{"dx_native": "CN", **values})


def nacc(subject: str, number: int = 1, **values):
    return image("NACC", subject, number, **{"dx_native": "NC", **values})


def run(adni_images, nacc_images, visits=None, **params):
    cohort_tables = {"ADNI": tables(adni_images, visits), "NACC": tables(nacc_images)}
    return harmonize(cohort_tables, make_params(cohorts=["ADNI", "NACC"], **params))


def test_round_trip_and_text(tmp_path):
    result = run([adni("A1", educ_years=16, labs='{"glucose": 92}', scan_date=datetime.date(2010, 1, 2))], [nacc("N1")])
    write_harmonized(result, tmp_path, simulated=True)
    images = read_parquet(tmp_path / "images.parquet")
    assert images.attrs["simulated"] == "true"
    validate_images(images)
    assert list(images.columns) == [c.name for c in IMAGE_COLUMNS if c.stage == "harmonize"]
    assert images["ehr_text"].tolist() == [render(row) for row in images.to_dict("records")]
    assert not any(find_leaks(text) for text in images["ehr_text"])
    assert images.loc[0, "educ_code"] == 4
    assert images.loc[0, "ehr_fields"].tolist() == ["age", "sex", "education", "labs"]
    first = (tmp_path / "images.parquet").read_bytes()
    write_harmonized(result, tmp_path)
    assert (tmp_path / "images.parquet").read_bytes() == first
    with pytest.raises(InputError, match="contradict"):
        write_harmonized(result, tmp_path, simulated=False)


def test_equal_voxels_in_two_cohorts_are_kept_once_and_link_the_persons():
    result = run([adni("A1", data_sha256="same")], [nacc("N1", data_sha256="same"), nacc("N1", 2), nacc("N2")])
    assert result.quarantine[["dataset", "reason", "severity", "key_json"]].values.tolist() == [
        ["NACC", "CROSS_COHORT_DUPLICATE", "drop", '{"native_image_key": "N1/1"}']
    ]
    persons = dict(zip(result.images["native_image_key"], result.images["person_id"], strict=True))
    assert persons == {"A1/1": "sub-A1", "N1/2": "sub-A1", "N2/1": "sub-N2"}


def test_equal_voxels_of_two_participants_of_a_cohort_belong_to_nobody():
    result = run([adni("A1", data_sha256="x"), adni("A2", data_sha256="x"), adni("A3")], [nacc("N1")])
    assert result.quarantine["reason"].tolist() == ["DUPLICATE_IMAGE_BYTES"] * 2
    assert result.images["native_image_key"].tolist() == ["A3/1", "N1/1"]


def test_bad_rows_do_not_stop_a_cohort():
    result = run(
        [
            adni("A1", sex=None),
            adni("A2", sex="F"),
            adni("A2", 2, sex="M"),
            adni("A3", mmse=45, age_years=300),
            adni("A4", dx_native="Patient"),
            adni("A5", 1, scan_day=0, age_years=80),
            adni("A5", 2, scan_day=900, age_years=70),
        ],
        [nacc("N1")],
    )
    reasons = result.quarantine.groupby("reason").size().to_dict()
    assert reasons == {
        "SEX_MISSING": 1, "SEX_CONFLICT": 2, "VALUE_OUT_OF_RANGE": 2, "DIAGNOSIS_OUT_OF_SCOPE": 1,
        "AGE_INCONSISTENT": 1,
    }  # fmt: skip
    kept = result.images.set_index("native_image_key")
    assert kept.loc["A4/1", ["dx3", "dx2"]].isna().all()
    assert kept["mmse"].isna().all()
    assert kept.loc[["A5/1", "A5/2"], "age_years"].isna().all()


def test_required_age():
    result = run([adni("A1", age_years=None), adni("A2")], [nacc("N1")], harmonize={"require_age": True})
    assert result.quarantine["reason"].tolist() == ["AGE_MISSING"]
    assert len(result.images) == 2


def test_a_cohort_whose_labels_are_all_unknown_is_an_error():
    with pytest.raises(InputError, match="unknown diagnosis label"):
        run([adni("A1", dx_native="1.5T")], [nacc("N1")])


def test_simulated_and_real_people_are_never_mixed():
    real = tables([nacc("N1")])
    real.images.attrs["simulated"] = "false"
    params = make_params(cohorts=["ADNI", "NACC"])
    with pytest.raises(InputError, match="must not be mixed"):
        harmonize({"ADNI": tables([adni("A1")]), "NACC": real}, params)
    only_real = {"ADNI": tables([adni("A1")]), "NACC": real}
    only_real["ADNI"].images.attrs["simulated"] = "false"
    with pytest.raises(InputError, match="contradict the parameters"):
        harmonize(only_real, params)


def test_missing_columns_and_cohorts_are_named():
    params = make_params(cohorts=["ADNI", "NACC"])
    with pytest.raises(InputError, match="no tables of NACC"):
        harmonize({"ADNI": tables([adni("A1")])}, params)
    bad = tables([nacc("N1")])
    bad.images = bad.images.drop(columns=["sex", "data_sha256"])
    with pytest.raises(InputError, match="data_sha256, sex"):
        harmonize({"ADNI": tables([adni("A1")]), "NACC": bad}, params)


@pytest.mark.parametrize("scale", ["visit_date", "visit_day", "visit_month"])
def test_course_of_mci_from_visits(scale):
    def visit(subject, code, month, dx):
        days = round(month * 30.4375)
        value = {
            "visit_date": (datetime.date(2010, 1, 1) + datetime.timedelta(days)).isoformat(),
            "visit_day": days,
            "visit_month": month,
        }[scale]
        return {"native_subject_id": subject, "visit_code": code, scale: value, "dx_native": dx}

    visits = [
        visit("A1", "bl", 0, "MCI"), visit("A1", "m24", 24, "Dementia"),
        visit("A2", "bl", 0, "MCI"), visit("A2", "m48", 48, "MCI"),
        visit("A3", "bl", 0, "CN"), visit("A3", "m48", 48, "Dementia"),
    ]  # fmt: skip
    images = [
        adni("A1", dx_native="MCI", visit_code="bl", dx_subject_level="EMCI"),
        adni("A2", dx_native="MCI", visit_code="bl", dx_subject_level="CN"),
        adni("A3", dx_native="CN", visit_code="bl"),
        adni("A4", dx_native="MCI", visit_code="bl"),
    ]
    result = run(images, [nacc("N1")], visits).images.set_index("native_subject_id")
    assert result.loc[["A1", "A2"], "mci_course"].tolist() == ["pMCI", "sMCI"]
    assert abs(result.loc["A1", "days_to_dementia"] - 730) <= 1
    assert result.loc[["A3", "A4"], "mci_course"].isna().all()
    assert result.loc["A1", "mci_stage"] == "EMCI"
    assert pd.isna(result.loc["A2", "mci_stage"])


def test_schema_reports_every_violation_at_once():
    result = run([adni("A1"), adni("A2")], [nacc("N1")])
    broken = result.images.copy()
    broken.loc[0, "mmse"] = 99.0
    broken.loc[1, "dx3"] = "AD"
    broken.loc[2, "dx2"] = "DEM"
    broken["image_id"] = "one"
    broken = broken.drop(columns=["ses"])
    with pytest.raises(InputError) as caught:
        validate_images(broken)
    for part in ("column mmse", "column dx3", "column ses: missing"):
        assert part in str(caught.value)
    broken["ses"] = result.images["ses"]
    with pytest.raises(InputError) as caught:
        validate_images(broken)
    for part in ("column mmse", "column dx3", "dx3 and dx2 agree", "image_id is unique"):
        assert part in str(caught.value)


def test_data_dictionary_names_every_column():
    text = data_dictionary_markdown()
    assert all(f"| `{column.name}` |" in text for column in IMAGE_COLUMNS)


def session(participant, session_id, **values):
    facts = {"sex": "F", "age_years": 74, "icv_mm3": 1344000, "mmse": 29, "cdr_global": 0}
    return {"participant_id": participant, "dataset": "OASIS", "session_id": session_id, **facts, **values}


def test_oasis_1_and_2_are_linked_by_equal_and_unique_records():
    images = pd.DataFrame(
        [
            session("sub-OAS10001", "ses-MR1"),
            session("sub-OAS20126", "ses-MR1", icv_mm3=1344400),
            session("sub-OAS20126", "ses-MR2", age_years=76),
            # Equal but not unique on one side: nobody is linked.
            session("sub-OAS10002", "ses-MR1", age_years=80),
            session("sub-OAS20002", "ses-MR1", age_years=80),
            session("sub-OAS20003", "ses-MR1", age_years=80),
            # Without a CDR nothing is compared, and a re-scan session takes no part.
            session("sub-OAS10004", "ses-MR1", age_years=20, cdr_global=None),
            session("sub-OAS20004", "ses-MR1", age_years=20, cdr_global=None),
            session("sub-OAS10005", "ses-MR2", age_years=61),
            session("sub-OAS20005", "ses-MR1", age_years=61),
        ]
    )
    persons = link_persons(images).set_index("participant_id")
    assert persons.loc["sub-OAS20126", "person_id"] == "sub-OAS10001"
    assert persons["link_rule"].dropna().tolist() == [OASIS_LINK_RULE] * 2
    rest = persons.drop(index="sub-OAS20126")
    assert (rest["person_id"] == rest.index).all()


def test_sessions_known_from_visits_alone_link_too():
    visits = pd.DataFrame([session("sub-OAS20126", None, visit_code="MR1")])
    images = pd.DataFrame([session("sub-OAS10001", "ses-MR1"), session("sub-OAS20126", "ses-MR2", age_years=76)])
    persons = link_persons(images, visits).set_index("participant_id")
    assert persons.loc["sub-OAS20126", "person_id"] == "sub-OAS10001"


def test_linking_is_transitive_and_independent_of_order():
    images = pd.DataFrame([session(f"sub-X{n}", "ses-1") for n in range(4)])
    pairs = [("sub-X3", "sub-X2"), ("sub-X1", "sub-X2")]
    for order in (pairs, pairs[::-1], [(b, a) for a, b in pairs]):
        persons = link_persons(images, None, order)
        assert persons["person_id"].tolist() == ["sub-X0", "sub-X1", "sub-X1", "sub-X1"]


def test_summary_suppresses_small_cells():
    result = run([adni(f"A{n}", sex="F" if n else "M", mmse=29 if n < 3 else None) for n in range(8)], [nacc("N1")])
    table = cohort_summary(result.images, minimum_cell=5).set_index("dataset")
    assert table.loc["ADNI", ["female", "male", "with_mmse"]].tolist() == [SUPPRESSED] * 3
    assert table.loc["ADNI", "images"] == 8
    assert table.loc["NACC", ["images", "age_min"]].tolist() == [SUPPRESSED] * 2
    assert table.loc["all", "images"] == 9
    open_table = cohort_summary(result.images).set_index("dataset")
    assert open_table.loc["ADNI", ["female", "male", "with_mmse", "diagnoses"]].tolist() == [7, 1, 3, "NC 8"]


@pytest.mark.skipif(not OASIS1_CSV.is_file(), reason="the real OASIS-1 table is not on this machine")
def test_real_oasis1():
    table = oasis1()
    result = harmonize({"OASIS": Tables(table, None)}, make_params(cohorts=["OASIS"]))
    assert len(result.quarantine) == 0
    assert len(result.images) == len(table)
    assert (
        result.images["dx2"].value_counts().to_dict()
        == table["cdr_global"].dropna().map(lambda cdr: "NonDEM" if float(cdr) == 0 else "DEM").value_counts().to_dict()
    )
    # A blank CDR of a young adult is not "no dementia".
    assert result.images.loc[result.images["cdr_global"].isna(), "dx2"].isna().all()
    assert result.images["dx3"].isna().all()
    assert (result.images["person_id"] == result.images["participant_id"]).all()
