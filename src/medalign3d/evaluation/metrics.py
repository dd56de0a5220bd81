"""Metrics of closed-set classification, with uncertainty over *people* and over runs.

Everything here works on plain arrays or on the prediction table that :mod:`medalign3d.evaluation.predict` and
:mod:`medalign3d.evaluation.baselines` write. Version of the definitions: :data:`METRICS_VERSION`; it is written beside
every number.

Two sources of uncertainty are kept apart: the standard deviation over *runs* (seeds or folds) tells how much training
varies, the bootstrap over *persons* tells how much the choice of people does. All images of a person are drawn
together, because repeated scans of one person are not independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medalign3d.errors import MedAlignError

if TYPE_CHECKING:
    import pandas as pd

METRICS_VERSION = "1"
GROUP_COLUMNS = ["language_model", "setting", "text_ablation", "benchmark", "question", "split"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def softmax(scores: npt.ArrayLike) -> FloatArray:
    """Turn scores (..., C), e.g. mean token log-likelihoods, into probabilities over the last axis."""
    values = np.asarray(scores, dtype=np.float64)
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _codes(values: Sequence[Any] | npt.NDArray[Any], classes: Sequence[str]) -> IntArray:
    """Class numbers of class codes; -1 for anything that is not a class (an unparsed answer)."""
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number.get(value, -1) for value in values], dtype=np.int64)


def confusion_matrix(truth: Sequence[Any], predicted: Sequence[Any], classes: Sequence[str]) -> IntArray:
    """Count images by true class (rows) and predicted class (columns); the last column counts unparsed answers.

    Returns
    -------
    ndarray of shape (C, C + 1)
    """
    rows, columns = _codes(truth, classes), _codes(predicted, classes)
    if (rows < 0).any():
        raise MedAlignError(
            "a true class is not one of the classes", found=sorted({str(t) for t in truth}), expected=list(classes)
        )
    columns = np.where(columns < 0, len(classes), columns)
    matrix = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    np.add.at(matrix, (rows, columns), 1)
    return matrix


def accuracy(truth: Sequence[Any], predicted: Sequence[Any]) -> float:
    """Share of right predictions; NaN for no predictions."""
    pairs = list(zip(truth, predicted, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else math.nan


def recalls(truth: Sequence[Any], predicted: Sequence[Any], classes: Sequence[str]) -> dict[str, float]:
    """Share of right predictions within each true class; NaN for a class without images."""
    matrix = confusion_matrix(truth, predicted, classes)
    totals = matrix.sum(axis=1)
    return {name: float(matrix[i, i] / totals[i]) if totals[i] else math.nan for i, name in enumerate(classes)}


def balanced_accuracy(truth: Sequence[Any], predicted: Sequence[Any], classes: Sequence[str]) -> float:
    """Mean recall over the classes that occur; NaN for no predictions."""
    values = [value for value in recalls(truth, predicted, classes).values() if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927), by default for 95 %.

    >>> low, high = wilson_interval(43, 59)
    >>> round(low, 3), round(high, 3)
    (0.604, 0.826)
    """
    if total < 0 or not 0 <= correct <= total:
        raise MedAlignError("impossible counts", found=f"{correct} of {total}", expected="0 <= correct <= total")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    denominator = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def expected_calibration_error(probabilities: npt.ArrayLike, truth: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over equal-width confidence bins.

    Parameters
    ----------
    probabilities
        (N, C), rows sum to one.
    truth
        (N,) class numbers.
    bins
        Number of confidence bins.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(truth)
    if len(p) == 0:
        return math.nan
    confidence = p.max(axis=1)
    correct = (p.argmax(axis=1) == labels).astype(np.float64)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    gaps = np.abs(
        np.bincount(index, weights=confidence, minlength=bins) - np.bincount(index, weights=correct, minlength=bins)
    )
    return float(gaps.sum() / counts.sum())


def person_accuracy(
    persons: Sequence[Any], truth: Sequence[Any], probabilities: npt.ArrayLike, classes: Sequence[str]
) -> float:
    """Accuracy over people: probabilities are averaged over a person's images of one true class; the best counts."""
    import pandas as pd

    p = np.asarray(probabilities, dtype=np.float64)
    if len(p) == 0:
        return math.nan
    table = pd.DataFrame(p)
    means = table.groupby([np.asarray(persons, dtype=object), np.asarray(truth, dtype=object)]).mean()
    best = means.to_numpy().argmax(axis=1)
    right = [classes[b] == t for b, t in zip(best, means.index.get_level_values(1), strict=True)]
    return float(np.mean(right))


def _person_counts(
    persons: Sequence[Any], truth: IntArray, correct: npt.NDArray[np.bool_], number_of_classes: int
) -> tuple[FloatArray, FloatArray]:
    """Right and all predictions per person and class, each (P, C)."""
    _, person = np.unique(np.asarray(persons, dtype=str), return_inverse=True)
    number = int(person.max()) + 1 if len(person) else 0
    right = np.zeros((number, number_of_classes))
    total = np.zeros((number, number_of_classes))
    np.add.at(total, (person, truth), 1.0)
    np.add.at(right, (person, truth), correct.astype(np.float64))
    return right, total


def _bootstrap_statistics(weights: FloatArray, right: FloatArray, total: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Accuracy and balanced accuracy of every bootstrap sample; weights (S, P)."""
    r, t = weights @ right, weights @ total
    with np.errstate(invalid="ignore", divide="ignore"):
        plain = r.sum(axis=1) / t.sum(axis=1)
        present = t > 0
        per_class = np.where(present, r / np.where(present, t, 1.0), 0.0)
        balanced = per_class.sum(axis=1) / present.sum(axis=1)
    return plain, balanced


def bootstrap_over_persons(
    persons: Sequence[Any],
    truth: Sequence[Any],
    predicted: Sequence[Any],
    classes: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of accuracy and balanced accuracy; people, not images, are drawn with replacement.

    Predictions of several runs may be passed together (each row is one prediction): a person's rows of all runs are
    drawn together, so the interval is that of the mean over runs.

    Returns
    -------
    dict with ``accuracy`` and ``balanced_accuracy``, each (low, high).
    """
    truth_codes = _codes(truth, classes)
    correct = truth_codes == _codes(predicted, classes)
    if len(truth_codes) == 0:
        return {"accuracy": (math.nan, math.nan), "balanced_accuracy": (math.nan, math.nan)}
    right, total = _person_counts(persons, truth_codes, correct, len(classes))
    number = len(right)
    weights = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=samples)
    plain, balanced = _bootstrap_statistics(weights.astype(np.float64), right, total)
    tail = 100 * (1 - confidence) / 2
    result = {}
    for name, values in (("accuracy", plain), ("balanced_accuracy", balanced)):
        low, high = np.percentile(values, [tail, 100 - tail])
        result[name] = (float(low), float(high))
    return result


def _classes_of(group: pd.DataFrame) -> list[str]:
    """The candidate classes of a group of predictions; one question has one set of candidates."""
    sets = {tuple(sorted(candidates)) for candidates in group["candidates"]}
    if len(sets) != 1:
        raise MedAlignError("predictions of one benchmark differ in their candidates", found=sorted(sets))
    return [str(c) for c in group["candidates"].iloc[0]]


def _aligned_scores(group: pd.DataFrame, classes: Sequence[str]) -> FloatArray:
    """Scores (N, C) in the order of ``classes``."""
    rows = []
    for candidates, scores in zip(group["candidates"], group["scores"], strict=True):
        by_name = dict(zip(candidates, scores, strict=True))
        rows.append([by_name[name] for name in classes])
    return np.asarray(rows, dtype=np.float64)


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is NaN for one value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan


def summarize(predictions: pd.DataFrame, *, bootstrap_samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row of metrics per language model, setting, text ablation, benchmark and split.

    Parameters
    ----------
    predictions
        The prediction table (see :data:`medalign3d.evaluation.predict.PREDICTION_COLUMNS`).
    bootstrap_samples
        Samples over people.
    seed
        Of the bootstrap; the same people are drawn for every group of the same size, so that rows are comparable.

    Returns
    -------
    DataFrame with the group columns and ``images, persons, runs, classes, chance, accuracy_mean, accuracy_sd,
    accuracy_low, accuracy_high``, the same four for ``balanced_accuracy``, ``person_accuracy_mean, person_accuracy_sd,
    ece_mean, ece_sd, generation_accuracy_mean, generation_accuracy_sd, unparsed_share, recalls`` (JSON, pooled over
    runs), ``confusion`` (JSON, pooled over runs), ``metrics_version, simulated``. Shares lie in [0, 1].
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for key, group in predictions.groupby(GROUP_COLUMNS, sort=False, dropna=False):
        classes = _classes_of(group)
        per_run: dict[str, list[float]] = {
            name: [] for name in ("accuracy", "balanced_accuracy", "person_accuracy", "ece", "generation_accuracy")
        }
        for _, run in group.groupby("run"):
            truth, predicted = run["truth"].tolist(), run["predicted"].tolist()
            probabilities = softmax(_aligned_scores(run, classes))
            per_run["accuracy"].append(accuracy(truth, predicted))
            per_run["balanced_accuracy"].append(balanced_accuracy(truth, predicted, classes))
            per_run["person_accuracy"].append(person_accuracy(run["person_id"].tolist(), truth, probabilities, classes))
            per_run["ece"].append(expected_calibration_error(probabilities, _codes(truth, classes)))
            generated = run["generated_text"].notna()
            if generated.any():
                per_run["generation_accuracy"].append(
                    accuracy(run.loc[generated, "truth"].tolist(), run.loc[generated, "parsed_answer"].tolist())
                )
        row: dict[str, Any] = dict(zip(GROUP_COLUMNS, key, strict=True))
        row |= {
            "images": int(group["image_id"].nunique()),
            "persons": int(group["person_id"].nunique()),
            "runs": int(group["run"].nunique()),
            "classes": json.dumps(classes),
            "chance": 1 / len(classes),
        }
        for name, values in per_run.items():
            row[f"{name}_mean"], row[f"{name}_sd"] = _mean_sd(values) if values else (math.nan, math.nan)
        intervals = bootstrap_over_persons(
            group["person_id"].tolist(),
            group["truth"].tolist(),
            group["predicted"].tolist(),
            classes,
            samples=bootstrap_samples,
            seed=seed,
        )
        for name, (low, high) in intervals.items():
            row[f"{name}_low"], row[f"{name}_high"] = low, high
        generated = group["generated_text"].notna()
        unparsed = group.loc[generated, "parsed_answer"].isna()
        row["unparsed_share"] = float(unparsed.mean()) if len(unparsed) else math.nan
        row["recalls"] = json.dumps(recalls(group["truth"].tolist(), group["predicted"].tolist(), classes))
        row["confusion"] = json.dumps(
            confusion_matrix(group["truth"].tolist(), group["predicted"].tolist(), classes).tolist()
        )
        row["metrics_version"] = METRICS_VERSION
        row["simulated"] = bool(group["simulated"].all())
        rows.append(row)
    return pd.DataFrame(rows)


def paired_difference(
    first: pd.DataFrame, second: pd.DataFrame, *, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """How much more often ``first`` is right than ``second`` on the same images, with a paired bootstrap over people.

    Both are prediction tables of one benchmark, question and split; their runs may differ in number (a setting is
    averaged over its own runs per image). Only images that both predict count.

    Returns
    -------
    dict with ``images, persons, accuracy_difference, accuracy_low, accuracy_high, balanced_accuracy_difference,
    balanced_accuracy_low, balanced_accuracy_high``; differences of shares, ``first`` minus ``second``.
    """

    def hits(table: pd.DataFrame) -> pd.DataFrame:
        right = table["truth"].astype(object).eq(table["predicted"].astype(object)).astype(float)
        return (
            table.assign(right=right)
            .groupby("image_id")
            .agg(person_id=("person_id", "first"), truth=("truth", "first"), right=("right", "mean"))
        )

    joined = hits(first).join(hits(second)[["right"]], how="inner", rsuffix="_second")
    if joined.empty:
        raise MedAlignError("two prediction tables have no image in common")
    classes = sorted(joined["truth"].unique())
    truth = _codes(joined["truth"].tolist(), classes)
    _, person = np.unique(joined["person_id"].to_numpy(dtype=str), return_inverse=True)
    number = int(person.max()) + 1
    total = np.zeros((number, len(classes)))
    np.add.at(total, (person, truth), 1.0)
    weights = np.vstack(
        [np.ones(number), np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=samples)]
    )
    statistics = []
    for column in ("right", "right_second"):
        right = np.zeros_like(total)
        np.add.at(right, (person, truth), joined[column].to_numpy(dtype=np.float64))
        statistics.append(_bootstrap_statistics(weights, right, total))
    result: dict[str, float] = {"images": float(len(joined)), "persons": float(number)}
    for index, name in enumerate(("accuracy", "balanced_accuracy")):
        difference = statistics[0][index] - statistics[1][index]
        result[f"{name}_difference"] = float(difference[0])
        result[f"{name}_low"], result[f"{name}_high"] = (float(v) for v in np.percentile(difference[1:], [2.5, 97.5]))
    return result
