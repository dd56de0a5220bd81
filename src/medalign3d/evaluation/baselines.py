"""Plain methods on the same people: what any claim of the language models has to be held against.

All are fitted on training people only (medians for missing values, scales, components and penalties included) and
predict the same images as the models, split for split.

======================  =================================================================================
setting                 what it is
======================  =================================================================================
``majority``            the most frequent class of the training images
``rule_cdr``            global CDR: 0 normal, 0.5 mild impairment, 1 or more dementia; where the question
                        knows no mild impairment, any CDR above 0 is the diseased class
``rule_mmse``           MMSE: 27 or more normal, 24-26 mild impairment, below 24 dementia
``ehr``                 logistic regression on the record's fields, for each text ablation
``regions``             logistic regression on regional measures: shares of the intracranial volume, and
                        crude shares of fluid in fixed regions
``regions_ehr``         both
``pca``                 logistic regression on principal components of the image's voxels
``pca_ehr``             components and the record's fields
``oracle_image``        simulated people only: true regional volumes and age
``oracle_ehr``          simulated people only: the record's fields without missing values
``oracle_both``         simulated people only: both
======================  =================================================================================

Training images of a benchmark are those of all cohorts that are asked the same question; where no training cohort is
(a zero-shot benchmark with a question of its own), those of all cohorts whose labels answer it.

Not supported: laboratory results and medical history as features (one cohort each records them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medalign3d import files
from medalign3d.ehr.questions import class_of, get_question
from medalign3d.evaluation.predict import PREDICTION_COLUMNS
from medalign3d.params import Params
from medalign3d.progress import Progress
from medalign3d.training.data import (
    EVALUATED_SPLITS,
    Volumes,
    chunks,
    evaluation_items,
    read_images,
    region_columns,
    split_column,
)

LANGUAGE_MODEL = "baseline"
NO_TEXT = "none"
"""``text_ablation`` of settings that read no record."""

COMPONENTS = 40
MAXIMUM_VOXELS = 80_000
MAXIMUM_IMAGES_FOR_COMPONENTS = 3_000
PENALTIES = (0.003, 0.03, 0.3)

DEMOGRAPHICS = ("age_years", "female", "educ_code", "ses")
COGNITION = ("mmse", "lm_immediate", "lm_delayed")
CDR = ("cdr_global", "cdr_sb")
EHR_FEATURES: dict[str, tuple[str, ...]] = {
    "full": DEMOGRAPHICS + COGNITION + CDR,
    "no_cdr": DEMOGRAPHICS + COGNITION,
    "demographics_only": DEMOGRAPHICS,
}
ORACLE_IMAGE = ("ventricles_ml", "hippocampus_left_ml", "hippocampus_right_ml", "brain_ml", "icv_ml", "age_years")
ORACLE_EHR = ("age_years", "female", "educ_years", "mmse", "lm_immediate", "lm_delayed", "cdr_global", "cdr_sb")

FloatArray = npt.NDArray[np.float64]


def numeric(table: pd.DataFrame, columns: Sequence[str]) -> FloatArray:
    """Columns as (N, F) numbers, NaN where missing or absent; ``female`` is 1 or 0."""
    parts = []
    for name in columns:
        if name == "female":
            sex = table["sex"].astype(object) if "sex" in table else pd.Series([None] * len(table))
            parts.append(sex.map({"F": 1.0, "M": 0.0}).to_numpy(dtype=np.float64, na_value=np.nan))
        elif name in table:
            values = pd.to_numeric(table[name], errors="coerce")
            parts.append(values.to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            parts.append(np.full(len(table), np.nan))
    return np.stack(parts, axis=1) if parts else np.zeros((len(table), 0))


def fit_predict(
    features: FloatArray,
    training: npt.NDArray[np.int64],
    labels: Sequence[str],
    groups: Sequence[str],
    classes: Sequence[str],
    wanted: npt.NDArray[np.int64],
) -> FloatArray:
    """Log probabilities of a logistic regression.

    Parameters
    ----------
    features
        (N, F) with NaN for missing values: the training median is filled in, columns without any value are left out.
    training
        Row numbers to fit on.
    labels, groups
        Class and person of each training row.
    classes
        Order of the output's columns.
    wanted
        Row numbers to predict.

    Returns
    -------
    (len(wanted), C)
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    x = features[training]
    known = np.isfinite(x).any(axis=0)
    x, z = x[:, known], features[wanted][:, known]
    medians = np.nanmedian(x, axis=0) if x.shape[1] else np.zeros(0)
    x, z = np.where(np.isfinite(x), x, medians), np.where(np.isfinite(z), z, medians)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    moving = scale > 1e-12
    x, z = ((v[:, moving] - mean[moving]) / scale[moving] for v in (x, z))
    y = np.asarray(labels, dtype=object).astype(str)
    present, counts = np.unique(y, return_counts=True)
    scores = np.full((len(wanted), len(classes)), np.log(1e-6))
    if len(present) == 1 or x.shape[1] == 0:
        for name, count in zip(present, counts, strict=True):
            scores[:, list(classes).index(name)] = np.log(count / counts.sum())
        return scores

    def fitted(rows: npt.NDArray[np.int64], penalty: float) -> Any:
        model = LogisticRegression(class_weight="balanced", max_iter=200, C=penalty, solver="newton-cholesky")
        return model.fit(x[rows], y[rows])

    people_per_class = min(len({g for g, label in zip(groups, y, strict=True) if label == c}) for c in present)
    folds = min(3, people_per_class)
    best = 0.3
    if folds >= 2:
        # The penalty is chosen within the training people, people never divided.
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
        losses = np.zeros(len(PENALTIES))
        for inner, outer in splitter.split(x, y, np.asarray(groups, dtype=object).astype(str)):
            for number, penalty in enumerate(PENALTIES):
                model = fitted(inner, penalty)
                place = {str(name): column for column, name in enumerate(model.classes_)}
                shares = model.predict_proba(x[outer])
                losses[number] -= sum(
                    np.log(max(shares[i, place[label]], 1e-6)) if label in place else np.log(1e-6)
                    for i, label in enumerate(y[outer])
                )
        best = PENALTIES[int(losses.argmin())]
    model = fitted(np.arange(len(y)), best)
    probabilities = np.log(np.maximum(model.predict_proba(z), 1e-6))
    for column, name in enumerate(model.classes_):
        scores[:, list(classes).index(str(name))] = probabilities[:, column]
    return scores


def voxel_features(volumes: Volumes) -> npt.NDArray[np.float32]:
    """Voxels (N, F) in [0, 1], averaged over the smallest blocks that give at most :data:`MAXIMUM_VOXELS` per image."""
    factor = 1
    while np.prod([max(1, n // factor) for n in volumes.shape]) > MAXIMUM_VOXELS:
        factor += 1
    kept = [n // factor * factor for n in volumes.shape]
    rows = []
    for chunk in chunks(len(volumes), 64):
        block = volumes.take(list(chunk))[:, : kept[0], : kept[1], : kept[2]].astype(np.float32)
        n, (x, y, z) = len(block), (k // factor for k in kept)
        rows.append(block.reshape(n, x, factor, y, factor, z, factor).mean(axis=(2, 4, 6)).reshape(n, -1) / 255.0)
    return np.concatenate(rows)


def components(voxels: npt.NDArray[np.float32], training: npt.NDArray[np.int64], seed: int) -> FloatArray:
    """Principal component scores (N, K) of all images; components of the training images only."""
    from sklearn.decomposition import PCA

    chosen = training
    if len(chosen) > MAXIMUM_IMAGES_FOR_COMPONENTS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MAXIMUM_IMAGES_FOR_COMPONENTS, replace=False))
    inside = voxels[chosen].std(axis=0) > 0.01
    number = int(max(1, min(COMPONENTS, len(chosen) // 3, inside.sum())))
    model = PCA(n_components=number, svd_solver="randomized", whiten=True, random_state=seed)
    model.fit(voxels[chosen][:, inside])
    return np.asarray(model.transform(voxels[:, inside]), dtype=np.float64)


def read_truth(table: pd.DataFrame, params: Params, data_dir: str | Path = "data") -> pd.DataFrame | None:
    """The simulator's answer key in the rows' order (columns ``image_id`` and the key's own); None for real people."""
    if table.attrs.get("simulated") != "true":
        return None
    parts = []
    for cohort in params.cohorts:
        path = Path(data_dir) / "truth" / cohort / "truth.parquet"
        if not path.is_file():
            return None
        truth = files.read_parquet(path)
        parts.append(truth.assign(dataset=cohort))
    key = pd.concat(parts, ignore_index=True)
    key["native_image_key"] = key["native_image_key"].astype(str)
    key = key.drop_duplicates(["dataset", "native_image_key"])
    left = table[["image_id", "dataset", "native_image_key"]].astype({"dataset": str, "native_image_key": str})
    key = key.astype({"dataset": str})
    return left.merge(key, on=["dataset", "native_image_key"], how="left", validate="one_to_one")


def _three_levels(value: float, mild_from: float, dementia_from: float, rising: bool) -> str | None:
    """NC, MCI or AD_DEM from one score; None where it is missing."""
    if not np.isfinite(value):
        return None
    if rising:
        return "NC" if value < mild_from else "MCI" if value < dementia_from else "AD_DEM"
    return "NC" if value >= mild_from else "MCI" if value >= dementia_from else "AD_DEM"


def rule_class(name: str, value: float, candidates: Sequence[str]) -> str | None:
    """The class that a rule gives for a score; None where the score is missing."""
    if name == "rule_cdr":
        level = _three_levels(value, 0.25, 0.75, rising=True)
    else:
        level = _three_levels(value, 27.0, 24.0, rising=False)
    if level is None:
        return None
    if level in candidates:
        return level
    # Questions without mild impairment: the CDR's rule is "above 0", the MMSE's is its cut-off for dementia.
    diseased = level == "AD_DEM" or (level == "MCI" and name == "rule_cdr")
    return next((c for c in candidates if (c in ("AD_DEM", "DEM")) == diseased), None)


def _training_rows(
    table: pd.DataFrame, records: Sequence[dict[str, Any]], params: Params, question: str
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Rows and labels of the training images of a question (see the module's docstring)."""
    same = {b.cohort for b in params.split.benchmarks.values() if b.question == question}
    found: list[tuple[int, str, bool]] = []
    for row, split in enumerate(table["split"]):
        if split == "train":
            label = class_of(records[row], question)
            if label is not None:
                found.append((row, label, records[row]["dataset"] in same))
    if any(own for _, _, own in found):
        found = [entry for entry in found if entry[2]]
    return np.array([row for row, _, _ in found], dtype=np.int64), [label for _, label, _ in found]


def baselines_of_run(
    params: Params, run: int, data_dir: str | Path = "data", table: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Predictions of all baselines for one run's splits.

    Returns
    -------
    DataFrame with :data:`~medalign3d.evaluation.predict.PREDICTION_COLUMNS`.
    """
    table = read_images(params, data_dir) if table is None else table
    simulated = table.attrs.get("simulated") == "true"
    truth = read_truth(table, params, data_dir)
    table = table.assign(split=split_column(table, params, run))
    keep = table["split"].isin(["train", *EVALUATED_SPLITS]).to_numpy()
    table = table[keep].reset_index(drop=True)
    truth = None if truth is None else truth[keep].reset_index(drop=True)
    records: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    items = evaluation_items(table, records, params)
    train_all = np.flatnonzero((table["split"] == "train").to_numpy())
    volumes = Volumes(table["volume_path"].tolist(), params.normalize.shape)
    scores_of_components = components(voxel_features(volumes), train_all, params.training.seed)
    del volumes
    regions = numeric(table, region_columns(table))
    ehr = {ablation: numeric(table, EHR_FEATURES[ablation]) for ablation in params.evaluate.text_ablations}

    inputs: list[tuple[str, str, FloatArray]] = [("pca", NO_TEXT, scores_of_components)]
    if regions.shape[1]:
        inputs.append(("regions", NO_TEXT, regions))
    for text, fields in ehr.items():
        inputs.append(("ehr", text, fields))
        inputs.append(("pca_ehr", text, np.hstack([scores_of_components, fields])))
        if regions.shape[1]:
            inputs.append(("regions_ehr", text, np.hstack([regions, fields])))
    if truth is not None:
        image, record = numeric(truth, ORACLE_IMAGE), numeric(truth, ORACLE_EHR)
        inputs.append(("oracle_image", NO_TEXT, image))
        if np.isfinite(record[:, 3:]).any():
            inputs.append(("oracle_ehr", "full", record))
            inputs.append(("oracle_both", "full", np.hstack([image, record])))

    rows: list[dict[str, Any]] = []
    # Benchmarks that share their question share their training images, so each regression is fitted once for all rows.
    fitted: dict[tuple[str, str, str], FloatArray] = {}
    everything = np.arange(len(table))
    for benchmark in dict.fromkeys(item.benchmark for item in items):
        own = [item for item in items if item.benchmark == benchmark]
        question = get_question(own[0].question_name)
        wanted = np.array([item.row for item in own], dtype=np.int64)
        training, labels = _training_rows(table, records, params, question.name)
        people = table["person_id"].iloc[training].astype(str).tolist()
        results: list[tuple[str, str, FloatArray]] = []
        hidden = set(question.hidden_fields)
        if len(training):
            share = np.array([max(labels.count(c) / len(labels), 1e-6) for c in question.classes])
            results.append(("majority", NO_TEXT, np.tile(np.log(share), (len(own), 1))))
            for setting, ablation, features in inputs:
                # A baseline must not read what the question asks for.
                if hidden and (setting.endswith("ehr") or setting.startswith("oracle")):
                    continue
                key = (question.name, setting, ablation)
                if key not in fitted:
                    fitted[key] = fit_predict(features, training, labels, people, question.classes, everything)
                results.append((setting, ablation, fitted[key][wanted]))
        if question.name.startswith("diagnosis"):
            for setting, column, ablation in (("rule_cdr", "cdr_global", "full"), ("rule_mmse", "mmse", "no_cdr")):
                column_values = numeric(table, [column])[wanted, 0]
                if ablation not in params.evaluate.text_ablations or not np.isfinite(column_values).any():
                    continue
                values = np.full((len(own), len(question.classes)), np.log(0.01))
                for index, value in enumerate(column_values):
                    # A missing score counts as normal: the first class.
                    chosen = rule_class(setting, float(value), question.classes) or question.classes[0]
                    values[index, question.classes.index(chosen)] = np.log(0.98)
                results.append((setting, ablation, values))
        for setting, ablation, values in results:
            best = values.argmax(axis=1)
            for item, scores, index in zip(own, values.tolist(), best, strict=True):
                record_of = records[item.row]
                rows.append(
                    {
                        "image_id": record_of["image_id"],
                        "person_id": record_of["person_id"],
                        "dataset": record_of["dataset"],
                        "benchmark": benchmark,
                        "language_model": LANGUAGE_MODEL,
                        "setting": setting,
                        "text_ablation": ablation,
                        "run": run,
                        "split": item.split,
                        "question": question.name,
                        "candidates": list(question.classes),
                        "scores": scores,
                        "predicted": question.classes[int(index)],
                        "generated_text": None,
                        "parsed_answer": None,
                        "truth": item.truth,
                        "simulated": simulated,
                    }
                )
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


def run_baselines(params: Params, *, data_dir: str | Path = "data") -> pd.DataFrame:
    """Predictions of all baselines: once with held-out people, once per run's fold with cross-validation."""
    # Imported before the limit is set, because the limit holds for libraries that are loaded.
    import sklearn.linear_model  # noqa: F401
    from threadpoolctl import threadpool_limits

    runs = range(params.training.runs if params.split.mode == "cross_validation" else 1)
    table = read_images(params, data_dir)
    parts = []
    # Problems of this size are slower with more threads, much slower on a busy machine.
    with threadpool_limits(1), Progress("baselines", len(runs)) as progress:
        for run in runs:
            parts.append(baselines_of_run(params, run, data_dir, table))
            progress.advance(1)
    return pd.concat(parts, ignore_index=True)
