from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from generated import make_cross_validation_params, make_data, make_params
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d import files
from medalign3d.ehr.questions import QUESTIONS, get_question
from medalign3d.ehr.splits import read_assignment
from medalign3d.ehr.text import clauses
from medalign3d.errors import InputError, ParameterError
from medalign3d.params import Params
from medalign3d.training.data import TrainingData, Volumes, read_images, shuffled_rows, split_column
from medalign3d.training.findings import FINDINGS, training_thresholds, with_options


@pytest.fixture(scope="module")
def data(project: Path, params: Params) -> TrainingData:
    return TrainingData.from_files(params, 0, data_dir=project / "data")


def test_a_batch_depends_on_seed_and_step_alone(project: Path, params: Params, data: TrainingData) -> None:
    again = TrainingData.from_files(params, 0, data_dir=project / "data")
    forwards = [again.batch(step) for step in range(5)]
    backwards = [data.batch(step) for step in reversed(range(5))][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert first.samples == second.samples
        assert torch.equal(first.volumes, second.volumes)
        assert torch.equal(first.auxiliary.nan_to_num(-9), second.auxiliary.nan_to_num(-9))
    other = TrainingData.from_files(params, 1, data_dir=project / "data")
    assert other.batch(0).samples != forwards[0].samples


def test_only_training_people_are_trained_on(project: Path, data: TrainingData) -> None:
    assignment = read_assignment(project / "data" / "splits").set_index("image_id")["split"]
    seen = {data.records[s.image_row]["image_id"] for step in range(40) for s in data.samples(step)}
    seen |= {data.records[s.row]["image_id"] for step in range(40) for s in data.samples(step)}
    assert seen
    assert set(assignment[sorted(seen)]) == {"train"}
    # Images of test and zero-shot people are not even opened.
    assert set(data.split) == {"train", "val"}


def test_voxel_statistics_use_training_images_only(data: TrainingData) -> None:
    shown = torch.cat(list(data.training_images(7)))
    expected = data.volumes.take(data.training_rows)
    assert torch.equal(shown, torch.from_numpy(expected).unsqueeze(1))


def test_classes_are_balanced_over_cohorts_and_classes(data: TrainingData) -> None:
    counts: dict[tuple[str, str, str], int] = {}
    for step in range(60):
        for sample in data.samples(step):
            if sample.question_name.startswith("diagnosis"):
                key = (str(data.records[sample.row]["dataset"]), sample.question_name, sample.label)
                counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 3 + 3 + 2
    assert max(counts.values()) - min(counts.values()) <= 2


def test_finding_questions_have_their_share_and_see_demographics_only(data: TrainingData) -> None:
    samples = [sample for step in range(50) for sample in data.samples(step)]
    findings = [sample for sample in samples if sample.question_name in FINDINGS]
    share = data.optimization.finding_question_fraction
    assert len(findings) / len(samples) == pytest.approx(share, abs=0.06)
    for sample in findings:
        assert not any(word in sample.text for word in ("MMSE", "CDR", "recall"))
        assert data.thresholds.answer(sample.question_name, data.records[sample.row]) == sample.label


def test_options_change_between_steps_but_equal_answers_share_one_text_within_a_step(data: TrainingData) -> None:
    asked = set()
    for step in range(30):
        per_step: dict[str, set[str]] = {}
        for sample in data.samples(step):
            per_step.setdefault(sample.question_name, set()).add(sample.question)
        assert all(len(texts) == 1 for texts in per_step.values())
        asked |= per_step["diagnosis_nc_mci_ad"]
    assert len(asked) == 6


def test_fields_and_whole_texts_are_dropped(project: Path, params: Params) -> None:
    always = params.model_copy(
        update={"pretrain": params.pretrain.model_copy(update={"field_dropout": 0.0, "text_dropout": 0.0})}
    )
    half = params.model_copy(
        update={"pretrain": params.pretrain.model_copy(update={"field_dropout": 0.5, "text_dropout": 0.2})}
    )
    full = TrainingData.from_files(always, 0, data_dir=project / "data")
    dropped = TrainingData.from_files(half, 0, data_dir=project / "data")

    def texts(data: TrainingData) -> list[str]:
        samples = [s for step in range(40) for s in data.samples(step)]
        return [s.text for s in samples if s.question_name.startswith("diagnosis")]

    assert all("MMSE" in text and "education" in text for text in texts(full))
    drawn = texts(dropped)
    assert 0.1 < np.mean([text == "" for text in drawn]) < 0.3
    written = [text for text in drawn if text]
    assert 0.35 < np.mean(["MMSE" in text for text in written]) < 0.65
    # The shortcut that field dropout is there to break: every cohort is sometimes seen without its usual fields.
    for cohort in ("ADNI", "NACC", "OASIS"):
        rows = [
            s.text
            for step in range(60)
            for s in dropped.samples(step)
            if s.text and dropped.records[s.row]["dataset"] == cohort and s.question_name.startswith("diagnosis")
        ]
        assert 0.2 < np.mean(["education" in text for text in rows]) < 0.8


def test_each_field_is_dropped_at_its_rate_and_the_question_never(project: Path, params: Params) -> None:
    rate = 0.4
    section = params.pretrain.model_copy(
        update={"field_dropout": rate, "text_dropout": 0.0, "finding_question_fraction": 0.0}
    )
    changed = params.model_copy(update={"pretrain": section})
    data = TrainingData.from_files(changed, 0, data_dir=project / "data")
    again = TrainingData.from_files(changed, 0, data_dir=project / "data")
    other = TrainingData.from_files(changed, 1, data_dir=project / "data")
    samples = [sample for step in range(120) for sample in data.samples(step)]
    # The same seed gives the same texts, another one does not.
    assert [s.text for s in samples] == [s.text for step in range(120) for s in again.samples(step)]
    assert [s.text for s in samples] != [s.text for step in range(120) for s in other.samples(step)]
    offered: dict[str, int] = {}
    printed: dict[str, int] = {}
    for sample in samples:
        hidden = get_question(sample.question_name).hidden_fields
        parts = clauses(data.records[sample.row], drop_fields=hidden, **data.text_options)
        left = sample.text.removesuffix(".").lower().split("; ")
        for field, clause in parts.items():
            offered[field] = offered.get(field, 0) + 1
            printed[field] = printed.get(field, 0) + (clause.lower() in left)
        # What is printed is exactly a subset of the record's clauses, in their order.
        assert [c.lower() for c in parts.values() if c.lower() in left] == [c for c in left if c]
        question = get_question(sample.question_name)
        assert sample.question.startswith(question.text)
        assert all(answer in sample.question for answer in question.answers.values())
        assert sample.answer == question.answers[sample.label]
    assert {"age", "sex", "education", "mmse"} <= set(offered)
    for field, count in offered.items():
        if count >= 100:
            tolerance = 4.5 * (rate * (1 - rate) / count) ** 0.5
            assert abs(printed[field] / count - (1 - rate)) < tolerance, field


def test_evaluation_texts_are_never_thinned_out(data: TrainingData) -> None:
    for item in data.evaluation_items():
        options = data.text_options
        hidden = get_question(item.question_name).hidden_fields
        expected = "; ".join(clauses(data.records[item.row], drop_fields=hidden, **options).values())
        text = data.text_of(item.row, "full", item.question_name)
        assert text.lower() == (f"{expected}.".lower() if expected else "")


@given(
    people=st.lists(st.integers(1, 4), min_size=2, max_size=12),
    groups=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_shuffling_gives_everybody_somebody_elses_image_of_the_same_group(
    people: list[int], groups: int, seed: int
) -> None:
    persons = [f"p{p}" for p, count in enumerate(people) for _ in range(count)]
    group = [f"g{int(p[1:]) % groups}" for p in persons]
    rows = shuffled_rows(persons, group, seed)
    assert (rows == shuffled_rows(persons, group, seed)).all()
    sizes = {g: len({p for p, own in zip(persons, group, strict=True) if own == g}) for g in group}
    givers: dict[str, set[str]] = {}
    for row, source in enumerate(rows):
        assert group[row] == group[source]
        assert sizes[group[row]] == 1 or persons[row] != persons[source]
        givers.setdefault(persons[row], set()).add(persons[source])
    # It is a permutation of people: one giver each, no giver twice.
    assert all(len(own) == 1 for own in givers.values())
    assert len({next(iter(own)) for own in givers.values()}) == len(givers)


def test_controls_change_the_image_and_nothing_else(project: Path, params: Params, data: TrainingData) -> None:
    shuffled = TrainingData.from_files(params, 0, control="shuffled", data_dir=project / "data")
    blind = TrainingData.from_files(params, 0, control="blind", data_dir=project / "data")
    for step in range(3):
        own, theirs = data.batch(step), shuffled.batch(step)
        assert own.texts == theirs.texts
        assert own.answers == theirs.answers
        for sample in theirs.samples:
            giver, taker = shuffled.records[sample.image_row], shuffled.records[sample.row]
            assert giver["person_id"] != taker["person_id"]
            assert giver["dataset"] == taker["dataset"]
        assert not torch.equal(own.volumes, theirs.volumes)
        assert float(blind.batch(step).inputs(torch.device("cpu")).max()) == 0.0
    with pytest.raises(ParameterError, match="unknown control"):
        TrainingData.from_files(params, 0, control="mirrored", data_dir=project / "data")


def test_volumes_travel_as_bytes_and_are_changed_on_the_device(data: TrainingData) -> None:
    batch = data.batch(3)
    assert batch.volumes.dtype == torch.uint8
    raw = data.images([sample.image_row for sample in batch.samples])
    assert torch.equal(batch.volumes, raw)
    device = torch.device("cpu")
    shown = batch.send(device).inputs(device)
    assert torch.equal(shown, data.batch(3).inputs(device))
    assert float(shown.min()) >= 0
    assert float(shown.max()) <= 1
    assert (shown[raw == 0] == 0).all()
    limit = data.optimization.intensity_augmentation * 1.5 + 1e-6
    assert 0 < float((shown - raw / 255.0).abs().max()) <= limit


def test_auxiliary_targets_are_standardized_on_training_images(data: TrainingData) -> None:
    assert data.auxiliary_names[0] == "age_years"
    assert len(data.auxiliary_names) == 4
    values = data._auxiliary[data.training_rows]
    assert np.allclose(values.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(values.std(axis=0), 1, atol=1e-5)


def test_thresholds_leave_out_the_middle_and_split_the_rest_in_half() -> None:
    table = pd.DataFrame({"region_ventricles_csf": np.linspace(0, 1, 101)})
    thresholds = training_thresholds(table, 0.2)
    assert thresholds.bounds["ventricles_enlarged"] == pytest.approx((0.4, 0.6))
    answers = [thresholds.answer("ventricles_enlarged", r) for r in table.to_dict("records")]
    assert answers.count("no") == answers.count("yes") == 40
    assert thresholds.answer("ventricles_enlarged", {"region_ventricles_csf": None}) is None
    assert thresholds.answer("hippocampal_atrophy", {}) is None


def test_more_fluid_on_a_side_means_that_the_side_is_smaller() -> None:
    finding = FINDINGS["smaller_hippocampus"]
    labels = tuple(finding.answers)
    left_smaller = {"region_hippocampus_left_csf": 0.3, "region_hippocampus_right_csf": 0.1}
    true_left_smaller = {"hippocampus_left_ml": 2.0, "hippocampus_right_ml": 3.0}
    assert finding.measured(left_smaller) < 0
    assert finding.true(true_left_smaller) < 0
    assert labels[0] == "left"


def test_volumes_decide_findings_where_a_store_has_them() -> None:
    small_left = {
        "region_hippocampus_left_fraction": 0.0020,
        "region_hippocampus_right_fraction": 0.0026,
        "region_hippocampus_left_csf": 0.1,  # the crude values, which say otherwise, are not asked
        "region_hippocampus_right_csf": 0.3,
    }
    assert FINDINGS["smaller_hippocampus"].measured(small_left) < 0
    assert FINDINGS["hippocampal_atrophy"].measured(small_left) == pytest.approx(0.4), "its fluid tells more"
    enlarged = FINDINGS["ventricles_enlarged"].measured
    assert enlarged({"region_ventricles_fraction": 0.04}) > enlarged({"region_ventricles_fraction": 0.01})
    unknown = {"region_ventricles_fraction": float("nan"), "region_ventricles_csf": 0.5}
    assert np.isnan(enlarged(unknown)), "values of two scales never meet in one threshold"


def test_closed_questions_are_worded_as_the_diagnosis_questions_are() -> None:
    question = QUESTIONS["sex"]
    assert with_options(question.text, list(question.answers.values())) == question.with_options()
    asked = {FINDINGS["smaller_hippocampus"].training_question(np.random.default_rng(seed)) for seed in range(20)}
    assert asked == {with_options("Which hippocampus is smaller?", o) for o in (["left", "right"], ["right", "left"])}


def test_evaluation_items_are_the_benchmarks_members(project: Path, params: Params) -> None:
    full = TrainingData.from_files(params, 0, data_dir=project / "data", splits=("train", "val", "test", "zeroshot"))
    assignment = read_assignment(project / "data" / "splits").set_index("image_id")
    items = full.evaluation_items()
    for item in items:
        row = assignment.loc[full.records[item.row]["image_id"]]
        assert row["split"] == item.split
        if item.split != "val":
            assert item.benchmark in str(row["benchmark"]).split(";")
            assert item.truth in str(row["class"]).split(";")
    tested = assignment[assignment["split"].isin(["test", "zeroshot"]) & (assignment["benchmark"] != "")]
    assert {full.records[i.row]["image_id"] for i in items if i.split != "val"} == set(tested.index)


def test_large_sets_are_read_on_demand_and_equal(project: Path, params: Params) -> None:
    table = read_images(params, project / "data")
    paths = table["volume_path"].tolist()[:6]
    inside, on_demand = (
        Volumes(paths, params.normalize.shape),
        Volumes(paths, params.normalize.shape, in_memory_bytes=0),
    )
    assert (inside.take([3, 0, 3]) == on_demand.take([3, 0, 3])).all()
    with pytest.raises(InputError, match="another shape"):
        Volumes(paths, (8, 8, 8))


def test_mixed_simulated_and_real_tables_are_refused(tmp_path: Path) -> None:
    params = make_params()
    data = make_data(tmp_path, params, people=20)
    path = data / "volumes" / "AIBL" / "index.parquet"
    files.write_parquet(path, files.read_parquet(path), {"simulated": "false"})
    with pytest.raises(InputError, match="mixed"):
        read_images(params, data)


def test_cross_validation_tests_every_labelled_person_once(tmp_path: Path) -> None:
    params = make_cross_validation_params()
    data = make_data(tmp_path, params, people=30)
    table = read_images(params, data)
    tested = [set(table["person_id"][split_column(table, params, run) == "test"]) for run in range(3)]
    assert set().union(*tested) == set(table["person_id"])
    assert sum(len(part) for part in tested) == table["person_id"].nunique()
    for run in range(3):
        own = TrainingData.from_files(params, run, data_dir=data)
        trained = {own.records[row]["person_id"] for row in own.training_rows}
        assert not trained & tested[run]
