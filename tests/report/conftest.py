"""A small project with every file that the report reads, made of generated predictions whose accuracies are set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from medalign3d.ehr.questions import QUESTIONS
from medalign3d.evaluation.predict import PREDICTION_COLUMNS
from medalign3d.evaluation.vqa import PREDICTION_COLUMNS as VQA_COLUMNS
from medalign3d.files import write_json, write_parquet
from medalign3d.params import Params, validate_params

REPOSITORY = Path(__file__).resolve().parents[2]
SKILL = {"text_only": 0.35, "control_shuffled": 0.55, "frozen": 0.7, "lora": 0.75}
BASELINE_SKILL = {"majority": 0.0, "ehr": 0.6, "pca": 0.55, "regions": 0.6}
FINDINGS = ("ventricles_enlarged", "hippocampal_atrophy", "smaller_hippocampus")


def make_params(profile: str = "demo", **changes: Any) -> Params:
    """The demo's parameters with sections changed (``{"report": {"minimum_cell": 2}}``)."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    values["profile"] = profile
    values["evaluate"]["bootstrap_samples"] = 50
    for section, change in changes.items():
        if isinstance(change, dict) and isinstance(values[section], dict):
            values[section].update(change)
        else:
            values[section] = change
    return validate_params(values)


def real_params() -> Params:
    """One cohort of 'real' people, cross-validated."""
    return make_params(
        "oasis1",
        cohorts=["OASIS"],
        language_models=["gpt2"],
        simulate={"cohorts": [], "participants": {}},
        external={"cohorts": ["OASIS"], "roots": {"OASIS": "somewhere"}},
        split={
            "mode": "cross_validation",
            "folds": 3,
            "benchmarks": {"OASIS-1": {"cohort": "OASIS", "question": "diagnosis_dem_nondem"}},
        },
        training={"runs": 3, "controls": ["shuffled"], "control_runs": 3},
    )


def _rows(
    images: pd.DataFrame, rng: np.random.Generator, params: Params, model: str, setting: str, text: str, run: int,
    skill: float, split: str, benchmark: str, question: str,
) -> list[dict[str, Any]]:  # fmt: skip
    classes = list(QUESTIONS[question].classes)
    rows = []
    for record in images.to_dict("records"):
        truth = record["class"]
        right = rng.random() < skill
        guess = truth if right else classes[int(rng.integers(len(classes)))]
        if setting == "majority":
            guess = classes[0]
        order = list(rng.permutation(classes))
        scores = [float(-rng.random() - (0.0 if name == guess else 1.2)) for name in order]
        scores[order.index(guess)] = max(scores) + 0.1
        generated = None if model == "baseline" else QUESTIONS[question].answers[guess]
        if generated is not None and rng.random() < 0.1:
            generated = "dementia is unlikely here"
        parsed = None if generated is None else QUESTIONS[question].class_of_answer(generated)
        rows.append(
            {
                "image_id": record["image_id"], "person_id": record["person_id"], "dataset": record["dataset"],
                "benchmark": benchmark, "language_model": model, "setting": setting, "text_ablation": text, "run": run,
                "split": split, "question": question, "candidates": order, "scores": scores, "predicted": guess,
                "generated_text": generated, "parsed_answer": parsed, "truth": truth, "simulated": params.simulated,
            }
        )  # fmt: skip
    return rows


def _volumes(root: Path, cohort: str, images: pd.DataFrame, params: Params, rng: np.random.Generator) -> None:
    from medalign3d.volumes import store, template

    grid = template.target_grid(params.normalize.shape, params.normalize.zooms_mm)
    brain = np.asarray(template.on_grid(grid).t1)
    folder = root / "data/volumes" / cohort
    folder.mkdir(parents=True)
    index = []
    for number, image_id in enumerate(images["image_id"]):
        volume = np.clip(255 * brain * (0.9 + 0.2 * rng.random()) + 4 * rng.standard_normal(brain.shape), 0, 255)
        path = store.write(folder, (volume * (brain > 0)).astype(np.uint8))
        refused = number == 0
        index.append(
            {
                "image_id": image_id, "path": path, "sha256": "0" * 64,
                "verdict": "quarantined" if refused else "accepted",
                "reason": "REGISTRATION_POOR" if refused else None, "method": "gauss_newton",
                "local_correlation": 0.1 if refused else 0.5 + 0.3 * rng.random(), "seconds": 1.0,
            }
        )  # fmt: skip
    write_parquet(folder / "index.parquet", pd.DataFrame(index), {"simulated": str(params.simulated).lower()})


def _vqa(root: Path, params: Params, people: pd.DataFrame, rng: np.random.Generator) -> None:
    rows = []
    settings = ["text_only", "frozen", "lora", "control_shuffled"]
    for model in params.language_models:
        for setting in settings:
            for run in range(params.training.runs if setting in ("frozen", "lora") else 1):
                item = 0
                for finding in (*FINDINGS, "knowledge"):
                    for record in people.head(20 if finding != "knowledge" else 8).to_dict("records"):
                        needs = finding != "knowledge"
                        hit = bool(rng.random() < (0.5 if setting == "text_only" else 0.8))
                        letters = ["A", "B"] if needs else ["A", "B", "C", "D"]
                        rows.append(
                            {
                                "item_id": f"q{item:05d}", "image_id": record["image_id"] if needs else "",
                                "person_id": record["person_id"] if needs else "",
                                "dataset": record["dataset"] if needs else "",
                                "split": "zeroshot" if record["dataset"] in ("AIBL", "MIRIAD") else "test",
                                "finding": finding, "needs_image": needs,
                                "truth_source": ("true" if params.simulated else "measured") if needs else "textbook",
                                "language_model": model, "setting": setting, "run": run, "choices": letters,
                                "scores": [0.0] * len(letters), "answer_choice": "A",
                                "likelihood_choice": "A" if hit else "B", "generated_text": "A." if hit else "B.",
                                "strict_choice": "A" if hit else "B", "likelihood_correct": hit, "strict_correct": hit,
                                "m3d_compat_correct": hit, "simulated": params.simulated,
                            }
                        )  # fmt: skip
                        item += 1
    write_parquet(root / "data/evaluation/vqa/predictions.parquet", pd.DataFrame(rows, columns=VQA_COLUMNS))


def build_project(root: Path, params: Params, people_per_class: int = 12, seed: int = 0) -> Path:
    """Write every file that the report reads below ``root``."""
    rng = np.random.default_rng(seed)
    crossed = params.split.mode == "cross_validation"
    label = {"simulated": str(params.simulated).lower()}
    images, assignment = [], []
    for name, benchmark in params.split.benchmarks.items():
        classes = QUESTIONS[benchmark.question].classes
        for number in range(people_per_class * len(classes)):
            code = classes[number % len(classes)]
            image_id = f"{benchmark.cohort.lower()}{number:012d}"
            older = not crossed or number % 4
            images.append(
                {
                    "image_id": image_id, "person_id": f"sub-{benchmark.cohort}{number:04d}",
                    "dataset": benchmark.cohort,
                    "sex": "FM"[number % 2], "age_years": float(60 + number % 31 if older else 25 + number % 20),
                    "educ_years": 12.0 if number % 3 else np.nan, "educ_code": pd.NA, "ses": pd.NA,
                    "mmse": float(24 + number % 6), "cdr_global": 0.5, "cdr_sb": np.nan, "lm_immediate": np.nan,
                    "lm_delayed": 6.0 if number % 2 else np.nan,
                    "dx3": code if code in ("NC", "MCI", "AD_DEM") else None,
                    "dx2": code if code in ("DEM", "NonDEM") else ("DEM" if code == "AD_DEM" else "NonDEM"),
                    "benchmark": name, "question": benchmark.question, "class": code,
                }
            )  # fmt: skip
            split = "fold" if crossed else ("zeroshot" if benchmark.zero_shot else ("test" if number % 5 else "val"))
            assignment.append(
                {
                    "image_id": image_id, "person_id": images[-1]["person_id"], "dataset": benchmark.cohort,
                    "split": split,
                    "fold": number % params.split.folds if crossed else -1, "class": code, "benchmark": name,
                }
            )  # fmt: skip
    people = pd.DataFrame(images)
    places = pd.DataFrame(assignment)
    harmonized = people.drop(columns=["benchmark", "question", "class"])
    harmonized["educ_code"] = harmonized["educ_code"].astype("Int8")
    harmonized["ses"] = harmonized["ses"].astype("Int8")
    write_parquet(root / "data/ehr/images.parquet", harmonized, label)
    (root / "data/splits").mkdir(parents=True)
    places.to_csv(root / "data/splits/assignment.csv", index=False)
    joined = people.merge(places[["image_id", "split", "fold"]], on="image_id")
    for model in [*params.language_models, "baseline"]:
        skills = BASELINE_SKILL if model == "baseline" else SKILL
        if model == "baseline" and params.simulated:
            skills = {**skills, "oracle_image": 0.8, "oracle_both": 0.85}
        rows: list[dict[str, Any]] = []
        for setting, skill in skills.items():
            fixed = model == "baseline" or (setting == "text_only" and not crossed)
            runs = params.training.control_runs if setting.startswith("control") else params.training.runs
            texts = list(params.evaluate.text_ablations)
            if model == "baseline" and setting != "ehr":
                texts = ["full"] if setting == "oracle_both" else ["none"]
            for text in texts:
                for run in range(1 if fixed and not crossed else runs):
                    for (benchmark_name, question, split), part in joined.groupby(["benchmark", "question", "split"]):
                        chosen = part[part["fold"] == run] if crossed else part
                        shown = "test" if crossed else str(split)
                        drop = {"full": 0.0, "no_cdr": 0.05, "demographics_only": 0.12}.get(text, 0.0)
                        rows += _rows(
                            chosen, rng, params, model, setting, text, run, max(0.0, skill - drop), shown,
                            str(benchmark_name), str(question),
                        )  # fmt: skip
                        if crossed:
                            others = part[part["fold"] != run].head(6)
                            rows += _rows(
                                others, rng, params, model, setting, text, run, skill, "val", str(benchmark_name),
                                str(question),
                            )  # fmt: skip
        folder = "baselines" if model == "baseline" else model
        write_parquet(
            root / f"data/evaluation/{folder}/predictions.parquet",
            pd.DataFrame(rows, columns=PREDICTION_COLUMNS),
            label,
        )
    _vqa(root, params, people, rng)
    for cohort in params.cohorts:
        own = people[people["dataset"] == cohort]
        _volumes(root, cohort, own.head(8), params, rng)
        index = pd.read_parquet(root / "data/volumes" / cohort / "index.parquet")
        missing = own[~own["image_id"].isin(index["image_id"])]
        extra = index.iloc[[1]].copy()
        more = pd.concat([extra.assign(image_id=i) for i in missing["image_id"]]) if len(missing) else index.head(0)
        write_parquet(
            root / "data/volumes" / cohort / "index.parquet", pd.concat([index, more], ignore_index=True), label
        )
        write_parquet(root / "data/cohorts" / cohort / "images.parquet", own[["image_id"]], label)
        quarantine = pd.DataFrame(
            {"reason": ["NO_DIAGNOSIS", "NO_DIAGNOSIS", "CSV_BAD_LINE"], "level": ["image", "image", "table"],
             "severity": ["drop", "drop", "warn"]}
        )  # fmt: skip
        write_parquet(root / "data/cohorts" / cohort / "quarantine.parquet", quarantine, label)
    for model in params.language_models:
        for stage, runs in (("frozen", params.training.runs), ("lora", params.training.runs), ("controls/shuffled", 1)):
            for run in range(runs):
                history = [
                    {"step": step, "learning_rate": 0.001, "train_total": 3.0 / (1 + step / 60) + 0.1 * rng.random(),
                     "validation_score": 0.7 - 0.3 / (1 + step / 60) + 0.02 * rng.random(), "validation_loss": 1.0}
                    for step in range(50, 301, 50)
                ]  # fmt: skip
                folder = root / "data/models" / model / stage / f"run-{run}"
                write_json(folder / "history.json", history)
                write_json(folder / "config.json", {"trainable_parameters": 123456 if stage == "lora" else 100000})
    return root


@pytest.fixture(scope="session")
def demo_params() -> Params:
    return make_params(language_models=["t5", "gpt2"])


@pytest.fixture(scope="session")
def demo_project(tmp_path_factory: pytest.TempPathFactory, demo_params: Params) -> Path:
    return build_project(tmp_path_factory.mktemp("demo"), demo_params)


@pytest.fixture(scope="session")
def real_project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    params = real_params()
    return build_project(tmp_path_factory.mktemp("real"), params, people_per_class=30), params


@pytest.fixture(scope="session")
def make_project() -> Callable[..., Path]:
    return build_project


@pytest.fixture(scope="session")
def change_params() -> Callable[..., Params]:
    return make_params
