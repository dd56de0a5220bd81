"""Splits: by person, balanced, unmoved by newcomers."""

from __future__ import annotations

import random
import warnings

import pandas as pd
import pytest
from ehr_tables import OASIS1_CSV, Tables, make_params, oasis1
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.ehr.harmonize import harmonize
from medalign3d.ehr.splits import (
    SmallBenchmark,
    benchmark_names,
    benchmark_parameters,
    benchmark_table,
    check_disjoint,
    make_splits,
    read_assignment,
    split_for_run,
    write_splits,
)
from medalign3d.errors import InputError, MedAlignError, ParameterError
from medalign3d.files import read_json, read_parquet, sha256_file

DX3 = ["NC", "MCI", "AD_DEM", None]
DX2 = {"NC": "NonDEM", "MCI": "NonDEM", "AD_DEM": "DEM", None: None}


def people(count: int, dataset: str = "ADNI", seed: int = 0, prefix: str = "P") -> pd.DataFrame:
    """Harmonized rows of ``count`` invented people with one to three images each."""
    rng = random.Random(f"{seed}{dataset}{prefix}")
    rows = []
    for number in range(count):
        person = f"sub-{dataset}{prefix}{number:04d}"
        sex = rng.choice("FM")
        label = rng.choice(DX3)
        for visit in range(rng.randint(1, 3)):
            label = rng.choice([label, label, label, rng.choice(DX3)])
            rows.append(
                {
                    "image_id": f"{person}-{visit}",
                    "person_id": person,
                    "dataset": dataset,
                    "data_sha256": f"{person}-{visit}",
                    "session_id": f"ses-{visit}",
                    "selected": True,
                    "sex": sex,
                    "age_years": 55.0 + rng.random() * 30 + visit,
                    "field_strength_t": rng.choice([1.5, 3.0]),
                    "dx3": label,
                    "dx2": DX2[label],
                }
            )
    return pd.DataFrame(rows)


def split(images, params, usable=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallBenchmark)
        return make_splits(images, params, usable)


HELD_OUT = make_params(cohorts=["ADNI", "NACC", "AIBL"])
FOLDS = make_params(cohorts=["ADNI"], split={"mode": "cross_validation"})


@settings(max_examples=20, deadline=None)
@given(st.integers(30, 120), st.integers(0, 60), st.integers(0, 10**6))
def test_newcomers_move_nobody(before, newcomers, seed):
    old = people(before, seed=seed)
    everybody = pd.concat([people(newcomers, seed=seed, prefix="N"), old]).sample(frac=1, random_state=seed)
    first = split(old, HELD_OUT).set_index("image_id")
    second = split(everybody, HELD_OUT).set_index("image_id").loc[first.index]
    assert first["split"].equals(second["split"])
    # A rejected volume moves nobody either.
    usable = set(old["image_id"][::2])
    third = split(old, HELD_OUT, usable).set_index("image_id")
    kept = third["split"] != "excluded"
    assert set(third.index[kept]) == usable
    assert first.loc[kept, "split"].equals(third.loc[kept, "split"])


@settings(max_examples=20, deadline=None)
@given(st.integers(40, 150), st.integers(0, 10**6), st.booleans())
def test_no_person_is_in_two_splits_and_benchmarks_are_balanced(count, seed, cross_validation):
    images = pd.concat([people(count, cohort, seed) for cohort in ("ADNI", "NACC", "AIBL")], ignore_index=True)
    if cross_validation:
        images = images[images["dataset"] == "ADNI"].reset_index(drop=True)
    params = FOLDS if cross_validation else HELD_OUT
    assignment = split(images, params)
    assert assignment["image_id"].tolist() == sorted(images["image_id"])
    assert assignment.groupby("person_id")[["split", "fold"]].nunique().max().tolist() == [1, 1]
    truth = images.set_index("image_id")["dx3"]
    for name in benchmark_names(assignment):
        table = benchmark_table(assignment, name)
        assert (table["class"] == truth.loc[table["image_id"]].to_numpy()).all()
        benchmark = benchmark_parameters(name, params)
        if benchmark.zero_shot:
            assert set(table["split"]) == {"zeroshot"}
            assert len(table) == truth[images.set_index("image_id")["dataset"] == benchmark.cohort].notna().sum()
            continue
        assert table["person_id"].is_unique
        if not cross_validation:
            counts = table["class"].value_counts()
            assert counts.nunique() == 1
            assert len(counts) == 3
            assert counts.iloc[0] <= benchmark.per_class
            assert name == f"{benchmark.cohort}-3x{counts.iloc[0]}"
            assert set(table["split"]) == {"test"}
    runs = range(params.split.folds if cross_validation else 1)
    tested: list[str] = []
    for run in runs:
        parts = split_for_run(assignment, params.split.mode, run)
        assert set(parts) <= {"train", "val", "test", "zeroshot", "excluded"}
        assert {"train", "val", "test"} <= set(parts)
        person = assignment.set_index("image_id")["person_id"]
        assert parts.groupby(person).nunique().max() == 1
        tested += parts.index[parts == "test"].tolist()
    if cross_validation:
        assert len(tested) == len(set(tested))
        assert set(tested) == set(assignment.loc[assignment["split"] == "fold", "image_id"])


def test_folds_have_their_share_of_each_class():
    images = people(200)
    assignment = split(images, FOLDS)
    table = assignment[assignment["benchmark"] != ""]
    sizes = table.groupby(["class", "fold"])["person_id"].nunique().unstack()
    assert (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 8
    people_per_fold = assignment[assignment["split"] == "fold"].groupby("fold")["person_id"].nunique()
    assert people_per_fold.max() - people_per_fold.min() <= 1
    unlabelled = images.groupby("person_id")["dx3"].count().loc[lambda n: n == 0].index
    assert set(assignment.loc[assignment["person_id"].isin(unlabelled), "split"]) == {"train"}


def test_too_few_people_shrink_all_classes_alike_with_a_warning():
    with pytest.warns(SmallBenchmark, match=r"benchmark ADNI-3x\d+: \d+ images of each class instead of 16"):
        assignment = make_splits(people(60), HELD_OUT)
    name = next(name for name in benchmark_names(assignment) if name.startswith("ADNI"))
    assert benchmark_table(assignment, name)["class"].value_counts().nunique() == 1


def test_several_images_of_a_person_count_only_where_allowed():
    params = make_params(cohorts=["ADNI"])
    benchmark = params.split.benchmarks["ADNI-3x"].model_copy(update={"per_class": 500, "maximum_images_per_person": 3})
    params = params.model_copy(update={"split": params.split.model_copy(update={"benchmarks": {"ADNI-3x": benchmark}})})
    images = people(150)
    images.loc[images["session_id"] == "ses-1", "variant_of"] = "derived"
    assignment = split(images, params)
    (name,) = benchmark_names(assignment)
    table = benchmark_table(assignment, name)
    assert not table["person_id"].is_unique
    assert not table["image_id"].str.endswith("-1").any()
    assert table["class"].value_counts().nunique() == 1
    assert table.groupby("person_id")["class"].nunique().max() == 1


def test_sex_and_age_questions_share_a_cohort():
    values = make_params(cohorts=["ADNI"], split={"mode": "cross_validation"}).model_dump()
    values["split"]["benchmarks"] = {
        "sex": {"cohort": "ADNI", "question": "sex"},
        "age": {"cohort": "ADNI", "question": "age_group"},
    }
    params = type(FOLDS).model_validate(values)
    images = people(60)
    images.loc[::4, "age_years"] = 30.0
    assignment = split(images, params)
    assert benchmark_names(assignment) == ["age", "sex"]
    assert set(benchmark_table(assignment, "sex")["class"]) == {"F", "M"}
    assert set(benchmark_table(assignment, "age")["class"]) == {"young", "old"}


def test_a_person_linked_to_a_zero_shot_cohort_is_used_nowhere_else():
    images = pd.concat([people(40), people(10, "AIBL")], ignore_index=True)
    linked = images.loc[images["dataset"] == "AIBL", "person_id"].iloc[0]
    images.loc[images["person_id"] == images["person_id"].iloc[0], "person_id"] = linked
    assignment = split(images, HELD_OUT).set_index("person_id").loc[[linked]]
    assert set(assignment["split"]) == {"zeroshot", "excluded"}
    assert set(assignment.loc[assignment["dataset"] == "ADNI", "split"]) == {"excluded"}


def test_unselected_images_are_excluded():
    images = people(30)
    images.loc[3, "selected"] = False
    assignment = split(images, HELD_OUT).set_index("image_id")
    assert (assignment["split"] == "excluded").sum() == 1
    assert assignment.loc[images.loc[3, "image_id"], ["split", "benchmark"]].tolist() == ["excluded", ""]
    without = split(images.drop(columns="selected"), HELD_OUT)
    assert (without["split"] != "excluded").all()


def test_leaks_are_errors():
    images = people(60)
    assignment = split(images, HELD_OUT)
    images["data_sha256"] = "same"
    with pytest.raises(MedAlignError, match="same voxels"):
        check_disjoint(assignment, images)
    assignment.loc[0, "split"] = "train" if assignment.loc[0, "split"] != "train" else "test"
    assignment["person_id"] = "one"
    with pytest.raises(MedAlignError, match="persons are in two splits"):
        check_disjoint(assignment, people(60))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_a_duplicate_image_across_splits_is_found(seed, data):
    """The same voxels under two people: whatever two splits they fall in, the leak is an error."""
    images = pd.concat([people(60, seed=seed), people(60, "NACC", seed), people(20, "AIBL", seed)], ignore_index=True)
    clean = split(images, HELD_OUT).set_index("image_id")["split"]
    parts = clean[images["image_id"]].to_numpy()
    first = data.draw(st.integers(0, len(images) - 1))
    others = [n for n, part in enumerate(parts) if part != parts[first]]
    second = data.draw(st.sampled_from(others))
    images.loc[second, "data_sha256"] = images.loc[first, "data_sha256"]
    names = " and ".join(sorted({parts[first], parts[second]}))
    with pytest.raises(MedAlignError, match=f"(?s)images with the same voxels are in two splits.*{names}"):
        split(images, HELD_OUT)
    # Once the two people are known to be one, they are in one split.
    linked = images["person_id"].isin(images.loc[[first, second], "person_id"])
    images.loc[linked, "person_id"] = min(images.loc[linked, "person_id"])
    roles = split(images, HELD_OUT).set_index("image_id").loc[images.loc[linked, "image_id"], "split"]
    assert roles.nunique() == 1 or set(roles) == {"zeroshot", "excluded"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_a_link_found_later_moves_nobody_outside_the_group(seed, data):
    images = people(60, seed=seed)
    before = split(images, HELD_OUT).set_index("image_id")["split"]
    one, two = sorted(data.draw(st.lists(st.sampled_from(sorted(set(images["person_id"]))), min_size=2, max_size=2,
                                         unique=True)))  # fmt: skip
    images["person_id"] = images["person_id"].replace({two: one})
    after = split(images, HELD_OUT).set_index("image_id")["split"]
    moved = before.index[before != after]
    assert set(images.set_index("image_id").loc[moved, "person_id"]) <= {one}
    assert after[images.loc[images["person_id"] == one, "image_id"]].nunique() == 1


def test_variants_go_with_their_person():
    images = people(80)
    derived = images.assign(
        image_id=images["image_id"] + "-derived", variant_of=images["image_id"],
        data_sha256=images["data_sha256"] + "-derived",
    )  # fmt: skip
    assignment = split(pd.concat([images, derived], ignore_index=True), HELD_OUT).set_index("image_id")
    both = assignment.loc[images["image_id"], "split"].to_numpy() == assignment.loc[derived["image_id"], "split"]
    assert both.all()
    # A derived file is the same picture again: no benchmark counts it.
    assert (assignment.loc[derived["image_id"], "benchmark"] == "").all()


@pytest.mark.parametrize("cohort", ["AIBL", "MIRIAD"])
@pytest.mark.parametrize("mode", ["held_out", "cross_validation"])
def test_zero_shot_cohorts_are_only_ever_tested(cohort, mode):
    # Even where no benchmark asks for them.
    params = make_params(cohorts=["ADNI", cohort], split={"mode": mode})
    only = {"ADNI-3x": params.split.benchmarks["ADNI-3x"]}
    params = params.model_copy(update={"split": params.split.model_copy(update={"benchmarks": only})})
    images = pd.concat([people(60), people(20, cohort)], ignore_index=True)
    assignment = split(images, params)
    rows = assignment[assignment["dataset"] == cohort]
    assert set(rows["split"]) == {"zeroshot"}
    assert set(rows["benchmark"]) == {""}
    parts = split_for_run(assignment, mode, 0)
    assert set(parts[rows["image_id"]]) == {"zeroshot"}
    with pytest.raises(ParameterError, match="only ever tested"):
        make_params(cohorts=["ADNI", cohort], split={"benchmarks": {
            "ADNI-3x": {"cohort": "ADNI", "question": "diagnosis_nc_mci_ad", "per_class": 4},
            "tested": {"cohort": cohort, "question": "diagnosis_nc_ad", "per_class": 4},
        }})  # fmt: skip


def test_benchmarks_are_spread_over_sex_age_and_field_strength():
    params = make_params(cohorts=["ADNI"])
    benchmark = params.split.benchmarks["ADNI-3x"].model_copy(update={"per_class": 60, "test_fraction": None})
    section = params.split.model_copy(update={"benchmarks": {"ADNI-3x": benchmark}, "test_fraction": 0.9})
    images = people(1200, seed=3)
    assignment = split(images, params.model_copy(update={"split": section})).set_index("image_id")
    facts = images.set_index("image_id").join(assignment[["split", "benchmark", "class"]])
    held_out = facts[(facts["split"] == "test") & facts["dx3"].notna()]
    for code in ("NC", "MCI", "AD_DEM"):
        chosen = facts[(facts["benchmark"] != "") & (facts["class"] == code)]
        everybody = held_out[held_out["dx3"] == code]
        assert len(chosen) == 60
        for column, value in (("sex", "F"), ("field_strength_t", 1.5)):
            share, expected = (chosen[column] == value).mean(), (everybody[column] == value).mean()
            assert abs(share - expected) < 0.12
        terciles = everybody["age_years"].quantile([1 / 3, 2 / 3])
        for low, high in ((0, terciles.iloc[0]), (terciles.iloc[0], terciles.iloc[1]), (terciles.iloc[1], 200)):
            assert 0.2 < chosen["age_years"].between(low, high).mean() < 0.47


def test_wrong_requests_are_explained():
    with pytest.raises(InputError, match="too few people"):
        split(people(3), FOLDS)
    assignment = split(people(40), FOLDS)
    with pytest.raises(ParameterError, match="no such fold"):
        split_for_run(assignment, "cross_validation", 9)
    values = make_params(cohorts=["ADNI"]).model_dump()
    values["split"]["benchmarks"]["ADNI-3x"]["test_fraction"] = {"AD": 0.5}
    with pytest.raises(ParameterError, match="unknown classes"):
        split(people(40), type(FOLDS).model_validate(values))
    values = make_params(cohorts=["ADNI"]).model_dump()
    values["split"]["benchmarks"]["again"] = {"cohort": "ADNI", "question": "sex", "zero_shot": True}
    with pytest.raises(ParameterError, match="zero-shot and trained on"):
        split(people(40), type(FOLDS).model_validate(values))


def test_files(tmp_path):
    images = pd.concat([people(60), people(20, "AIBL")], ignore_index=True)
    assignment = split(images, HELD_OUT)
    write_splits(assignment, tmp_path, HELD_OUT)
    again = read_assignment(tmp_path)
    pd.testing.assert_frame_equal(again, assignment, check_dtype=False)
    index = read_json(tmp_path / "index.json")
    assert sorted(index["benchmarks"]) == benchmark_names(assignment)
    for entry in [index["assignment"], *index["benchmarks"].values()]:
        assert entry["sha256"] == sha256_file(tmp_path / entry["file"])
    with pytest.raises(InputError, match="missing"):
        read_assignment(tmp_path / "none.csv")
    table = read_parquet(tmp_path / "assignment.parquet")
    assert table["image_id"].tolist() == assignment["image_id"].tolist()
    assert [";".join(names) for names in table["benchmark"]] == assignment["benchmark"].tolist()
    first = {path.name: sha256_file(path) for path in tmp_path.iterdir()}
    write_splits(split(images.sample(frac=1, random_state=2), HELD_OUT), tmp_path, HELD_OUT)
    assert {path.name: sha256_file(path) for path in tmp_path.iterdir()} == first


@pytest.mark.skipif(not OASIS1_CSV.is_file(), reason="the real OASIS-1 table is not on this machine")
def test_real_oasis1_folds():
    params = make_params(cohorts=["OASIS"], split={"mode": "cross_validation"})
    images = harmonize({"OASIS": Tables(oasis1(), None)}, params).images
    assignment = split(images, params)
    labelled = images.loc[images["dx2"].notna(), "person_id"].nunique()
    table = assignment[assignment["benchmark"] != ""]
    assert len(table) == labelled
    sizes = table.groupby(["fold", "class"]).size().unstack()
    assert (sizes.max() - sizes.min()).max() <= 1
    # Re-scans of young people are trained on with their first scans.
    assert (assignment.groupby("person_id")["split"].nunique() == 1).all()
