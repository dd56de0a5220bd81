"""The record text: golden wording, no leak whatever the record holds, ablations, hidden fields."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.ehr.questions import QUESTIONS, answer_of, class_of, questions_for
from medalign3d.ehr.text import ABLATIONS, FIELD_COLUMNS, FIELDS, clauses, find_leaks, present_fields, render
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
    "text", ["probable AD", "EMCI", "DEM", "cognitively normal", "NACC000001", "on 2011-03-04", "pMCI"]
)
def test_leaks_are_found(text):
    assert find_leaks(text)


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
