"""Training runs of tiny models on generated people, predicted, questioned and compared with the baselines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from generated import make_cross_validation_params, make_data

from medalign3d import files
from medalign3d.ehr.questions import QUESTIONS
from medalign3d.ehr.splits import read_assignment
from medalign3d.errors import InputError
from medalign3d.evaluation import baselines, metrics, predict, vqa
from medalign3d.params import Params
from medalign3d.training import runs
from medalign3d.training.data import read_images
from medalign3d.volumes import store


@pytest.fixture(scope="module")
def predictions(project: Path, params: Params) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        runs.run_pretrain(params, "gpt2")
        runs.run_tune(params, "gpt2")
        return predict.evaluate_language_model(params, "gpt2")


@pytest.fixture(scope="module")
def baseline_predictions(project: Path, params: Params) -> pd.DataFrame:
    return baselines.run_baselines(params, data_dir=project / "data")


def test_predictions_have_every_setting_run_text_and_image(predictions: pd.DataFrame, params: Params) -> None:
    assert list(predictions.columns) == predict.PREDICTION_COLUMNS
    assert set(zip(predictions["setting"], predictions["run"], strict=True)) == {
        ("text_only", 0), ("frozen", 0), ("frozen", 1), ("lora", 0), ("lora", 1), ("control_shuffled", 0)
    }  # fmt: skip
    sizes = predictions.groupby(["setting", "run", "text_ablation"]).size()
    assert sizes.nunique() == 1
    keys = ["setting", "run", "text_ablation", "image_id", "question", "benchmark"]
    assert not predictions.duplicated(keys).any()
    assert set(predictions["split"]) == {"val", "test", "zeroshot"}
    for row in predictions.head(50).to_dict("records"):
        assert list(row["candidates"]) == list(QUESTIONS[row["question"]].classes)
        assert row["predicted"] == row["candidates"][int(np.argmax(row["scores"]))]
        assert row["truth"] in row["candidates"]
        assert all(score <= 0 for score in row["scores"])
    assert predictions["simulated"].all()


def test_predicted_people_are_not_trained_people(predictions: pd.DataFrame, project: Path) -> None:
    assignment = read_assignment(project / "data" / "splits")
    trained = set(assignment.loc[assignment["split"] == "train", "person_id"])
    assert not trained & set(predictions["person_id"])


def test_scores_do_not_depend_on_batch_mates(project: Path, params: Params, predictions: pd.DataFrame) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        smaller = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"batch_size": 3})})
        again = predict.predict_run(smaller, "gpt2", "lora", 0)
    first = predictions[(predictions["setting"] == "lora") & (predictions["run"] == 0)].reset_index(drop=True)
    assert (first["image_id"] == again["image_id"]).all()
    assert np.allclose(np.concatenate(first["scores"].tolist()), np.concatenate(again["scores"].tolist()), atol=1e-4)
    assert first["generated_text"].tolist() == again["generated_text"].tolist()


def test_predictions_come_back_from_parquet(predictions: pd.DataFrame, tmp_path: Path) -> None:
    predict.write_predictions(tmp_path / "predictions.parquet", predictions)
    again = files.read_parquet(tmp_path / "predictions.parquet")
    assert again.attrs["simulated"] == "true"
    first, second = (metrics.summarize(t, bootstrap_samples=20) for t in (predictions, again))
    pd.testing.assert_frame_equal(first, second)


def test_a_setting_that_was_not_trained_says_what_to_do(project: Path, params: Params) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        with pytest.raises(InputError, match="trained run is missing"):
            predict.load_model(params, "gpt2", "frozen", 7)


def test_answers_are_parsed_whole_or_not_at_all() -> None:
    question = QUESTIONS["diagnosis_nc_mci_ad"]
    arguments = (question.classes, list(question.answers.values()))
    assert predict.parse_answer(" Mild cognitive  impairment. ", *arguments) == "MCI"
    assert predict.parse_answer("no dementia", *arguments) is None
    assert predict.parse_answer("", *arguments) is None


def test_one_question_about_one_image(project: Path, params: Params, predictions: pd.DataFrame) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        volume = store.read(sorted(Path("data/volumes/AIBL").glob("*.b2nd"))[0])
        folder = Path("data/models/gpt2/lora/run-0")
        answer = predict.answer_one(folder, volume, "Age 74 years.", "diagnosis_nc_mci_ad")
        assert answer["predicted"] in QUESTIONS["diagnosis_nc_mci_ad"].classes
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert "Options:" in answer["question"]
        free = predict.answer_one(folder, None, "", "Why?")
        assert free["predicted"] is None
        assert free["probabilities"] == {}


def test_baselines_find_what_the_generator_put_there(
    baseline_predictions: pd.DataFrame, project: Path, params: Params
) -> None:
    assert list(baseline_predictions.columns) == predict.PREDICTION_COLUMNS
    table = metrics.summarize(baseline_predictions, bootstrap_samples=20)
    zero_shot = table[table["benchmark"] == "AIBL"].set_index(["setting", "text_ablation"])["balanced_accuracy_mean"]
    assert zero_shot["majority", "none"] == pytest.approx(1 / 3)
    assert zero_shot["oracle_image", "none"] > 0.65
    assert zero_shot["oracle_both", "full"] > 0.65
    assert zero_shot["pca", "none"] > 0.5
    assert zero_shot["regions_ehr", "full"] > 0.65
    assert zero_shot["ehr", "demographics_only"] < zero_shot["ehr", "full"]
    assert {"rule_cdr", "rule_mmse", "pca_ehr", "oracle_ehr"} <= set(table["setting"])
    again = baselines.run_baselines(params, data_dir=project / "data")
    assert again["predicted"].tolist() == baseline_predictions["predicted"].tolist()


def test_missing_values_are_filled_from_training_rows_only() -> None:
    random = np.random.default_rng(0)
    labels = ["a", "b"] * 30
    x = np.array([[0.0 if label == "a" else 4.0, np.nan] for label in labels]) + random.normal(0, 0.5, (60, 2))
    features = np.vstack([x, [[np.nan, 1.0], [9.0, np.nan]]])
    groups = [str(i // 2) for i in range(60)]
    arguments = (np.arange(60), labels, groups, ["a", "b", "c"], np.array([60, 61]))
    scores = baselines.fit_predict(features, *arguments)
    assert np.isfinite(scores).all()
    assert scores[1].argmax() == 1
    assert scores[:, 2].max() < np.log(1e-5)
    # What is predicted does not change what is fitted.
    features[61] = [1e6, 1e6]
    assert np.allclose(baselines.fit_predict(features, *arguments)[0], scores[0])


def test_rules() -> None:
    three, two, healthy = ["NC", "MCI", "AD_DEM"], ["NonDEM", "DEM"], ["NC", "AD_DEM"]
    assert [baselines.rule_class("rule_cdr", v, three) for v in (0, 0.5, 1, 3)] == ["NC", "MCI", "AD_DEM", "AD_DEM"]
    assert [baselines.rule_class("rule_cdr", v, two) for v in (0, 0.5)] == ["NonDEM", "DEM"]
    assert [baselines.rule_class("rule_mmse", v, three) for v in (28, 25, 20)] == ["NC", "MCI", "AD_DEM"]
    assert [baselines.rule_class("rule_mmse", v, healthy) for v in (25, 20)] == ["NC", "AD_DEM"]
    assert baselines.rule_class("rule_cdr", math.nan, three) is None


def test_visual_questions_are_balanced_and_about_unseen_people(project: Path, params: Params) -> None:
    questions = vqa.build_questions(params, data_dir=project / "data")
    assert list(questions.columns) == vqa.QUESTION_COLUMNS
    asked = questions[questions["needs_image"]]
    assert set(asked["split"]) <= {"test", "zeroshot"}
    assert set(asked["truth_source"]) == {"true"}
    for _, part in asked.groupby(["dataset", "finding"]):
        counts = part["Answer"].value_counts()
        assert len(counts) == 2
        assert counts.nunique() == 1
        assert part["Answer Choice"].isin(["A", "B"]).all()
        for _, same in part.groupby("Answer"):
            letters = same["Answer Choice"].value_counts().reindex(["A", "B"], fill_value=0)
            assert abs(letters["A"] - letters["B"]) <= 1
    for row in questions.to_dict("records"):
        assert row[f"Choice {row['Answer Choice']}"] == row["Answer"]
    knowledge = questions[~questions["needs_image"].astype(bool)]
    assert knowledge["Answer Choice"].value_counts().nunique() == 1
    assert (knowledge["Image Path"] == "NA").all()
    pd.testing.assert_frame_equal(questions, vqa.build_questions(params, data_dir=project / "data"))


def test_truth_of_simulated_questions_is_the_answer_key(project: Path, params: Params) -> None:
    questions = vqa.build_questions(params, data_dir=project / "data")
    table = read_images(params, project / "data")
    truth = baselines.read_truth(table, params, project / "data")
    assert truth is not None
    by_image = truth.set_index("image_id")
    sides = questions[questions["finding"] == "smaller_hippocampus"]
    assert len(sides)
    for row in sides.to_dict("records"):
        volumes = by_image.loc[row["image_id"]]
        smaller = "left" if volumes["hippocampus_left_ml"] < volumes["hippocampus_right_ml"] else "right"
        assert row["Answer"] == smaller


def test_visual_questions_end_to_end(project: Path, params: Params, predictions: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        questions, answers = vqa.run_vqa(params)
    assert list(answers.columns) == vqa.PREDICTION_COLUMNS
    expected = {"text_only", "frozen", "lora", "control_shuffled", "majority_letter"}
    assert set(answers["setting"]) == expected
    for _, part in answers.groupby(["language_model", "setting", "run"]):
        assert set(part["item_id"]) == set(questions["item_id"])
    # Without an image and with demographics only, a model cannot tell: at the balance of answers it is near chance.
    summary = vqa.summarize_vqa(answers)
    majority = summary[(summary["setting"] == "majority_letter") & (summary["group"] == "ventricles_enlarged")]
    assert (majority["accuracy_mean"] <= 0.75).all()
    assert ((summary["low"] <= summary["accuracy_mean"] + 0.05) & (summary["high"] <= 1)).all()
    vqa.write_vqa(tmp_path, questions, answers)
    assert pd.read_csv(tmp_path / "questions.csv", keep_default_na=False).columns.tolist() == vqa.QUESTION_COLUMNS
    assert files.read_parquet(tmp_path / "predictions.parquet").attrs["simulated"] == "true"


def test_scorers() -> None:
    choices = {"A": "left", "B": "right"}
    for text, letter in (("B", "B"), ("B.", "B"), (" (B) right", "B"), ("right", "B"), ("Right.", "B"), ("", None)):
        assert vqa.strict_choice(text, choices) == letter
    assert vqa.strict_choice("Because of it", choices) is None
    assert vqa.strict_choice("C.", choices) is None
    both = "A. left B. right"
    assert vqa.m3d_compat_correct(both, "A")
    assert vqa.m3d_compat_correct(both, "B")
    assert vqa.strict_choice(both, choices) == "A"
    assert not vqa.m3d_compat_correct("right", "B")
    assert vqa.reply_of("Right.", choices) == "B. right"
    assert vqa.reply_of(both, choices) == both
    assert vqa.likelihood_choice(["A", "B"], [-2.0, -1.0]) == "B"


def test_keyword_subset_of_an_m3d_file(tmp_path: Path) -> None:
    rows = [dict.fromkeys(vqa.M3D_COLUMNS, "x") for _ in range(4)]
    rows[1]["Question"] = "Which feature supports Alzheimer's disease?"
    rows[3]["Text"] = "findings of DEMENTIA"
    pd.DataFrame(rows).to_csv(tmp_path / "m3d.csv", index=False)
    found = vqa.build_m3d_vqa_ad(tmp_path / "m3d.csv")
    assert found["source_row"].tolist() == [1, 3]
    pd.DataFrame({"Question": ["x"]}).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(InputError, match="M3D-VQA format"):
        vqa.build_m3d_vqa_ad(tmp_path / "bad.csv")


def test_cross_validation_of_everything(tmp_path: Path, project: Path, params: Params) -> None:
    """Every setting predicts each labelled person once, in the fold that leaves the person out."""
    own = make_cross_validation_params(
        folds=2,
        backbones=params.backbones.model_dump(),
        language_models=["gpt2"],
        pretrain={"steps": 2, "validate_every": 2, "auxiliary_weight": 0.5},
        tune={"steps": 1, "validate_every": 1},
        evaluate={"text_ablations": ["full", "demographics_only"]},
    )
    data = make_data(tmp_path, own, people=45, simulated=False)
    (data / "backbones").symlink_to(project / "data" / "backbones")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        runs.run_pretrain(own, "gpt2")
        runs.run_tune(own, "gpt2")
        models = predict.evaluate_language_model(own, "gpt2")
        plain = baselines.run_baselines(own)
        questions, answers = vqa.run_vqa(own)
    assert not models["simulated"].any()
    assignment = read_assignment(data / "splits").set_index("image_id")
    for _, part in pd.concat([models, plain]).groupby(["language_model", "setting", "text_ablation"]):
        tested = part[part["split"] == "test"]
        assert set(tested["image_id"]) == set(assignment.index[assignment["benchmark"] != ""])
        assert not tested["image_id"].duplicated().any()
        assert (assignment.loc[tested["image_id"], "fold"].to_numpy() == tested["run"].to_numpy()).all()
    settings = {"text_only", "frozen", "lora", "control_blind", "control_shuffled"}
    assert set(models["setting"]) == settings
    assert "oracle_image" not in set(plain["setting"])
    assert set(questions.loc[questions["needs_image"].astype(bool), "truth_source"]) == {"measured"}
    assert settings < set(answers["setting"])
    blind = models[(models["setting"] == "control_blind") & (models["text_ablation"] == "full")]
    assert len(blind)
