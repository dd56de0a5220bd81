"""Harmonizing: nothing lost without a reason, linked persons, quarantine, one schema."""

from __future__ import annotations

import datetime
import json

import pandas as pd
import pytest
from ehr_tables import OASIS1_CSV, Tables, image, make_params, oasis1, tables

from medalign3d.ehr.harmonize import harmonize, write_harmonized
from medalign3d.ehr.label_rules import LABEL_RULES, LABEL_RULES_VERSION
from medalign3d.ehr.persons import OASIS_LINK_RULE, link_persons
from medalign3d.ehr.schema import IMAGE_COLUMNS, data_dictionary_markdown, validate_images
from medalign3d.ehr.summary import SUPPRESSED, cohort_summary
from medalign3d.ehr.text import find_leaks, render
from medalign3d.errors import InputError, MedAlignError
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


def sourced(file, **rows):
    values = {column: {"file": file, "row": row, "rule": "as read"} for column, row in rows.items()}
    return json.dumps({"rules_version": "1", "values": values})


def decided(images, subject):
    cell = json.loads(images.set_index("native_subject_id").loc[subject, "provenance"])
    assert cell["label_rules_version"] == LABEL_RULES_VERSION
    return {
        column: (entry["file"], entry["row"], entry["rule"])
        for column, entry in cell["values"].items()
        if entry["rule"] in LABEL_RULES
    }


def test_each_label_carries_its_table_row_and_rule():
    def visit(code, day, dx, row):
        return {
            "native_subject_id": "A1", "visit_code": code, "visit_day": day, "dx_native": dx,
            "provenance": sourced("DXSUM.csv", dx_native=row),
        }  # fmt: skip

    visits = [
        visit("bl", 0, "MCI", 7), visit("m12", 365, None, 8), visit("m24", 730, "Dementia", 9),
        visit("m36", 1095, "Dementia", 10),
    ]  # fmt: skip
    images = [
        adni(
            "A1", dx_native="MCI", visit_code="bl", dx_subject_level="EMCI", educ_years=16,
            provenance=sourced("DXSUM.csv", dx_native=7, dx_subject_level=3, educ_years=4),
        ),
        adni("A2", dx_native=None),
    ]  # fmt: skip
    others = [
        nacc("N1", dx_native="IMCI", provenance=sourced("uds.csv", dx_native=2)),
        nacc("N2", dx_native="MCI"),
        nacc("N3", dx_native="NC", provenance="damaged"),
    ]
    result = run(images, others, visits).images
    assert decided(result, "A1") == {
        "dx3": ("DXSUM.csv", 7, "dx3.adni.mci"),
        "dx2": ("DXSUM.csv", 7, "dx2.from_dx3"),
        "mci_stage": ("DXSUM.csv", 3, "mci_stage.enrolment"),
        # The visit that decided: the first with dementia.
        "mci_course": ("DXSUM.csv", 9, "mci_course.progressive"),
        "educ_code": ("DXSUM.csv", 4, "educ_code.from_years"),
    }
    first = json.loads(result.set_index("native_subject_id").loc["A1", "provenance"])
    assert first["rules_version"] == "1"
    assert first["values"]["dx_native"] == {"file": "DXSUM.csv", "row": 7, "rule": "as read"}
    assert decided(result, "A2") == {
        "dx3": (None, None, "dx3.none.no_diagnosis"),
        "dx2": (None, None, "dx2.none.no_diagnosis"),
    }
    assert decided(result, "N1")["dx3"] == ("uds.csv", 2, "dx3.none.nacc_imci")
    assert decided(result, "N1")["dx2"] == ("uds.csv", 2, "dx2.nacc.imci")
    assert decided(result, "N2")["mci_course"] == (None, None, "mci_course.none.undated")
    assert "mci_stage" not in decided(result, "N2")
    cell = json.loads(result.set_index("native_subject_id").loc["N3", "provenance"])
    assert cell["values"]["dx3"]["rule"] == "dx3.nacc.nc"


def test_oasis_labels_point_at_the_cdr_and_a_carried_one_makes_none():
    row = {"educ_code": 2, "provenance": sourced("oasis.csv", cdr_global=5)}
    images = [
        image("OASIS", "OAS10001", cdr_global=0.5, dx_native="DEM", **row),
        image("OASIS", "OAS10002", cdr_global=0, cdr_global_source="carried", cdr_global_age_days=30, **row),
        image("OASIS", "OAS10003", cdr_global=1, dx_native="a label nobody knows", **row),
        image("OASIS", "OAS10004", **row),
    ]
    result = harmonize({"OASIS": tables(images)}, make_params(cohorts=["OASIS"]))
    found = result.images.set_index("native_subject_id")["dx2"]
    assert [found[name] if isinstance(found[name], str) else None for name in sorted(found.index)] == [
        "DEM", None, "DEM", None,
    ]  # fmt: skip
    assert decided(result.images, "OAS10001")["dx2"] == ("oasis.csv", 5, "dx2.oasis.cdr_half_or_more")
    assert decided(result.images, "OAS10003")["dx3"][2] == "dx3.none.unknown_label"
    assert decided(result.images, "OAS10004")["dx2"][2] == "dx2.none.oasis_no_cdr"
    assert result.images["dx3"].isna().all()


def test_the_stage_of_enrolment_ends_when_the_person_is_not_mci_any_more():
    def visit(subject, day, dx):
        return {"native_subject_id": subject, "visit_code": f"d{day}", "visit_day": day, "dx_native": dx}

    visits = [visit("A1", 0, "MCI"), visit("A1", 300, "CN"), visit("A1", 600, "MCI"), visit("A2", 900, "MCI")]
    images = [
        adni("A1", 1, dx_native="MCI", visit_code="d0", dx_subject_level="EMCI"),
        adni("A1", 2, dx_native="MCI", visit_code="d600", dx_subject_level="EMCI", scan_day=600),
        # Entered in the first phase: an older export calls all its MCI just so, and it stays late MCI in ADNI-2.
        adni("A2", 1, dx_native="CN", release="ADNI1", dx_subject_level="MCI"),
        adni("A2", 2, dx_native="MCI", release="ADNI2", dx_subject_level="MCI", visit_code="d900"),
    ]
    stages = run(images, [nacc("N1")], visits).images.set_index("native_image_key")["mci_stage"]
    assert stages["A1/1"] == "EMCI"
    assert pd.isna(stages["A1/2"])
    assert stages["A2/2"] == "LMCI"


def test_implausible_nacc_diagnoses_are_kept_with_a_warning_for_each_image():
    rows = [
        nacc("N1", dx_native="NC", cdr_global=1.0, provenance=sourced("uds.csv", dx_native=11)),
        nacc("N2", dx_native="DEM", cdr_global=0.0),
        nacc("N3", dx_native="NC", cdr_global=0.5),
        nacc("N4", dx_native="MCI", cdr_global=2.0),
        nacc("N5", dx_native="DEM", cdr_global=None),
    ]
    result = run([adni("A1", dx_native="CN", cdr_global=1.0)], rows)
    warned = result.quarantine[result.quarantine["reason"] == "DIAGNOSIS_CONFLICT"]
    assert warned["key_json"].tolist() == ['{"native_image_key": "N1/1"}', '{"native_image_key": "N2/1"}']
    assert warned["severity"].tolist() == ["warn", "warn"]
    assert warned["source_file"].tolist()[0] == "uds.csv"
    assert warned["source_row"].tolist()[0] == 11
    assert len(result.images) == 6
    checks = result.checks.groupby("rule")["images"].sum()
    assert checks["normal cognition with a global CDR of at least 1"] == 2
    assert checks["dementia with a global CDR of 0"] == 1


def test_two_people_with_one_visit_code_do_not_share_a_course():
    visits = [
        {"native_subject_id": subject, "visit_code": code, "visit_day": day, "dx_native": dx}
        for subject, code, day, dx in [
            ("A1", "bl", 0, "MCI"), ("A1", "m24", 700, "Dementia"), ("A2", "bl", 0, "MCI"), ("A2", "m48", 1400, "MCI"),
        ]
    ]  # fmt: skip
    images = [adni(s, dx_native="MCI", visit_code="bl") for s in ("A1", "A2")]
    result = run(images, [nacc("A1", dx_native="MCI", visit_code="bl", participant_id="sub-NACC")], visits).images
    courses = dict(zip(result["image_id"], result["mci_course"], strict=True))
    assert [courses[row["image_id"]] for row in images] == ["pMCI", "sMCI"]
    # A person of another cohort with the same native id has a timeline of their own.
    assert result.loc[result["dataset"] == "NACC", "mci_course"].isna().all()


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


def test_an_image_that_ingest_lost_is_an_error():
    cohort = tables([adni("A1"), adni("A2")])
    cohort.found = pd.DataFrame({"native_image_key": ["A1/1", "A2/1", "A3/1"]})
    with pytest.raises(MedAlignError, match="lost without a reason"):
        harmonize({"ADNI": cohort}, make_params(cohorts=["ADNI"]))


def test_files_never_hold_a_missing_cell_where_the_schema_forbids_it(tmp_path):
    result = run([adni("A1")], [nacc("N1")])
    result.images.loc[0, "release"] = None
    with pytest.raises(InputError, match="column release"):
        write_harmonized(result, tmp_path)
    assert not (tmp_path / "images.parquet").exists()


def test_two_images_with_one_session_key_are_both_quarantined():
    result = run([adni("A1"), adni("A1", 2, session_id="ses-01"), adni("A2")], [nacc("N1")])
    assert result.quarantine["reason"].tolist() == ["DUPLICATE_KEY_CONFLICT"] * 2
    assert result.images["native_image_key"].tolist() == ["A2/1", "N1/1"]
    broken = pd.concat([result.images, result.images.assign(image_id=["x", "y"])], ignore_index=True)
    with pytest.raises(InputError, match="participant, session, run and variant are unique"):
        validate_images(broken)


def test_a_value_and_its_source_stand_together():
    rows = [
        adni("A1", mmse=29, cdr_global=0.5, lm_delayed=4),
        adni("A2", mmse=None, mmse_source="measured", lm_immediate=7, lm_source="carried", lm_age_days=20),
        # Out of range: emptied, and the source with it.
        adni("A3", mmse=99, mmse_source="measured"),
    ]
    table = run(rows, [nacc("N1")]).images.set_index("native_subject_id")
    sources = table[["mmse_source", "cdr_global_source", "lm_source"]].fillna("")
    assert sources.loc[["A1", "A2", "A3"]].values.tolist() == [
        ["measured", "measured", "measured"], ["", "", "carried"], ["", "", ""],
    ]  # fmt: skip
    broken = table.reset_index()
    broken.loc[broken["native_subject_id"] == "A1", "mmse_source"] = None
    with pytest.raises(InputError, match="a value and its source stand together"):
        validate_images(broken)


def test_the_empty_text_of_an_empty_record_stays_a_text(tmp_path):
    params = make_params(cohorts=["ADNI"])
    result = harmonize({"ADNI": tables([adni("A1", age_years=None)])}, params)
    result.images.loc[0, "ehr_text"] = ""
    write_harmonized(result, tmp_path)
    assert read_parquet(tmp_path / "images.parquet")["ehr_text"].tolist() == [""]
