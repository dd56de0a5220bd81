"""The record text: golden wording, no leak whatever the record holds, ablations, hidden fields."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from ehr_tables import make_params
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.cohorts import adni, aibl
from medalign3d.ehr.questions import QUESTIONS, answer_of, class_of, questions_for
from medalign3d.ehr.schema import IMAGE_COLUMNS
from medalign3d.ehr.text import (
    ABLATIONS,
    FIELD_COLUMNS,
    FIELDS,
    HISTORY_WORDS,
    LAB_WORDS,
    clauses,
    find_leaks,
    present_fields,
    render,
    text_options,
)
from medalign3d.errors import ParameterError

GOLDEN = Path(__file__).with_name("golden_text.json")
COLUMNS = [*sorted({column for columns in FIELD_COLUMNS.values() for column in columns}), "dx_native", "dx3"]
LEAKY = ["Dementia", "AD", "MCI", "Alzheimer's disease", "Patient", "2011-03-04", "converted to MCI", "ADNI", "carried"]
VALUES = (
    st.none()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.integers(-10, 3000)
    | st.sampled_from([*LEAKY, "F", "M", "R", "L", "NACC", "crosswalk", "measured", "", " "])
    | st.dictionaries(st.sampled_from(["glucose", "diabetes", *LEAKY]), st.integers(-1, 3000), max_size=3)
    | st.text(max_size=12)
)
RECORDS = st.dictionaries(st.sampled_from(COLUMNS), VALUES)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text(encoding="utf-8")), ids=lambda case: case["name"])
def test_golden(case):
    assert render(case["record"], **case["options"]) == case["text"]


@settings(max_examples=300, deadline=None)
@given(
    RECORDS, st.sampled_from(sorted(ABLATIONS)), st.sets(st.sampled_from(FIELDS)), st.sampled_from(["omit", "state"])
)
def test_any_record_is_deterministic_and_without_leaks(record, ablation, dropped, missing):
    options = {"ablation": ablation, "drop_fields": dropped, "missing": missing, "include_apoe": True}
    text = render(record, **options)
    assert text == render(dict(reversed(record.items())), **options)
    assert find_leaks(text) == []
    assert "\n" not in text
    printed = present_fields(record, **options)
    assert not set(printed) & dropped
    assert set(printed) <= set(ABLATIONS[ablation])
    # The diagnosis plays no part at all.
    assert text == render({k: v for k, v in record.items() if not k.startswith("dx")}, **options)


@settings(max_examples=100, deadline=None)
@given(RECORDS)
def test_ablations_are_nested_and_cdr_is_gone(record):
    full, no_cdr, demographics = (clauses(record, ablation=a) for a in ("full", "no_cdr", "demographics_only"))
    assert {k: v for k, v in full.items() if not k.startswith("cdr")} == no_cdr
    assert demographics.items() <= no_cdr.items()
    assert "CDR" not in render(record, ablation="no_cdr", missing="state")


@settings(max_examples=100, deadline=None)
@given(RECORDS)
def test_a_question_hides_what_answers_it(record):
    for name, question in QUESTIONS.items():
        text = render(record, drop_fields=question.hidden_fields, missing="state")
        for column in {"sex": ["sex"], "age_group": ["age_years"]}.get(name, []):
            assert text == render({**record, column: None}, drop_fields=question.hidden_fields, missing="state")


@settings(max_examples=150, deadline=None)
@given(RECORDS, st.data())
def test_no_other_column_plays_a_part(record, data):
    """Series description, site, ids, dates, group, phase, labels and what comes later never enter the text."""
    others = [c.name for c in IMAGE_COLUMNS if c.name not in {n for names in FIELD_COLUMNS.values() for n in names}]
    assert set(others) >= {
        "series_description", "scan_date", "release", "participant_id", "dx3", "mci_course", "provenance",
        "days_to_dementia", "followup_days", "dx_subject_level", "dementia_etiology", "scanner_model",
    }  # fmt: skip
    extra = data.draw(st.dictionaries(st.sampled_from(others), st.sampled_from(LEAKY) | st.text(max_size=8)))
    for options in ({}, {"missing": "state", "include_apoe": True}):
        assert render(record | extra, **options) == render(record, **options)


@pytest.mark.parametrize("include_labs", [True, False])
@pytest.mark.parametrize("oldest_age", [None, 90])
def test_every_printable_value_of_every_field_is_without_leaks(include_labs, oldest_age):
    """All words of the closed tables, all scores on their grids, every source: nothing names an answer."""
    base = {"dataset": "NACC"}
    records = [base | {"age_years": age} for age in range(15, 111)]
    records += [base | {"sex": sex, "handedness": hand} for sex in "FM" for hand in "RLA"]
    records += [base | {"educ_years": years} for years in range(37)] + [{"educ_code": code} for code in range(1, 6)]
    records += [{"ses": level} for level in range(1, 6)] + [{"apoe4_count": count} for count in range(3)]
    for column, step, high in (("mmse", 1, 30), ("cdr_global", 0.5, 3), ("cdr_sb", 0.5, 18), ("lm_immediate", 1, 25),
                               ("lm_delayed", 1, 25)):  # fmt: skip
        source = "lm" if column.startswith("lm") else column
        for count in range(int(high / step) + 1):
            for kind in ("measured", "crosswalk", "carried", None):
                records.append({column: count * step, f"{source}_source": kind, f"{source}_age_days": 40 * count})
    records += [{"labs": {name: value}} for name in LAB_WORDS for value in (0, 0.004, 1.5, 92, 1500)]
    records += [{"history": {name: value}} for name in HISTORY_WORDS for value in (0, 1)]
    for record in records:
        for missing in ("omit", "state"):
            text = render(record, include_apoe=True, include_labs=include_labs, missing=missing, oldest_age=oldest_age)
            assert find_leaks(text) == []


def test_laboratory_results_have_the_units_of_the_specification():
    record = {"labs": dict.fromkeys(LAB_WORDS, 1.0)}
    text = render(record)
    for words, unit, _ in LAB_WORDS.values():
        assert f"{words} 1 {unit}" in text
    # Every laboratory code of both readers has words and a unit.
    assert {*adni.LABS.values(), *aibl.LABS.values()} <= set(LAB_WORDS)


def test_apoe_is_off_unless_asked_for():
    assert render({"apoe4_count": 2}) == ""
    assert render({"apoe4_count": 2}, include_apoe=True) == "Two APOE e4 alleles."


def test_parameters_reach_the_text():
    section = {"include_apoe": True, "include_labs": False, "missing": "state", "oldest_age": 90}
    options = text_options(make_params(harmonize=section))
    assert options == section
    text = render({"age_years": 91.2, "labs": {"glucose": 90}, "apoe4_count": 0}, **options)
    assert text.startswith("Age 90 years or over; sex not recorded; ")
    assert "no APOE e4 allele" in text
    assert "glucose" not in text


def test_carried_values_say_so_and_later_ones_are_left_out():
    record = {"mmse": 27, "mmse_source": "carried", "mmse_age_days": 152}
    assert render(record) == "MMSE 27/30 (measured 5 months earlier)."
    assert render({**record, "mmse_age_days": -30}) == ""
    assert render({**record, "mmse_source": "crosswalk"}) == "MMSE 27/30 (estimated from another test)."


def test_handedness_only_where_it_does_not_name_the_cohort():
    assert render({"handedness": "L", "dataset": "NACC"}) == "Left-handed."
    assert render({"handedness": "R", "dataset": "OASIS"}) == ""


def test_oldest_age():
    assert render({"age_years": 93.0}, oldest_age=90) == "Age 90 years or over."


@pytest.mark.parametrize("options", [{"ablation": "cdr"}, {"drop_fields": ["cdr"]}, {"missing": "guess"}])
def test_unknown_options_are_errors(options):
    with pytest.raises(ParameterError):
        render({}, **options)


@pytest.mark.parametrize(
    "text",
    [
        "probable AD", "AD.", "(AD)", "EMCI", "DEM", "cognitively normal", "NACC000001", "on 2011-03-04", "pMCI", "mci",
        "Mci", "DEMENTED", "non-demented", "Dementias", "ALZHEIMER", "alzheimer's", "Normal Cognition", "converter",
        "Converted", "adni2", "sub-OAS10001", "ses-M012", "011_S_0002", "I45108", "healthy controls",
    ],
)  # fmt: skip
def test_leaks_are_found(text):
    assert find_leaks(text)


@pytest.mark.parametrize("text", ["ad hoc", "adult", "ADult", "uncommon", "MCH 30 pg", "ncs"])
def test_other_words_are_no_leaks(text):
    assert find_leaks(text) == []


def test_classes_and_answers():
    assert class_of({"dx3": "AD_DEM", "dx2": "DEM"}, "diagnosis_nc_ad") == "AD_DEM"
    assert class_of({"dx2": math.nan}, "diagnosis_dem_nondem") is None
    assert class_of({"age_years": 50.0}, "age_group") == "old"
    assert answer_of({"sex": "F"}, "sex") == "female"
    assert questions_for({"dx3": "MCI", "dx2": "NonDEM", "sex": "M", "age_years": 30}) == [
        "diagnosis_nc_mci_ad",
        "diagnosis_dem_nondem",
        "sex",
        "age_group",
    ]
    for question in QUESTIONS.values():
        assert len(set(question.answers.values())) == len(question.classes)
        orders = {question.shuffled_classes(seed, "image") for seed in range(40)}
        assert len(orders) > 1
        assert all(sorted(order) == sorted(question.classes) for order in orders)
        assert [question.class_of_answer(f" {a.upper()}.") for a in question.answers.values()] == list(question.classes)
    with pytest.raises(ParameterError):
        class_of({}, "weight")
