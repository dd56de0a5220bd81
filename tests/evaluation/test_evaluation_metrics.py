from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.errors import MedAlignError
from medalign3d.evaluation import metrics

CLASSES = ["NC", "MCI", "AD_DEM"]
LABELS = st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1, max_size=60)


@given(pairs=LABELS)
@settings(max_examples=60, deadline=None)
def test_metrics_equal_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

    truth, predicted = [a for a, _ in pairs], [b for _, b in pairs]
    assert metrics.accuracy(truth, predicted) == pytest.approx(accuracy_score(truth, predicted))
    matrix = metrics.confusion_matrix(truth, predicted, CLASSES)
    assert (matrix[:, :3] == confusion_matrix(truth, predicted, labels=CLASSES)).all()
    assert matrix[:, 3].sum() == 0
    expected = recall_score(truth, predicted, labels=CLASSES, average=None, zero_division=0)
    present = [name in truth for name in CLASSES]
    for value, wanted, there in zip(
        metrics.recalls(truth, predicted, CLASSES).values(), expected, present, strict=True
    ):
        assert (value == pytest.approx(wanted)) if there else math.isnan(value)
    assert metrics.balanced_accuracy(truth, predicted, CLASSES) == pytest.approx(expected[present].mean())


def test_an_unparsed_answer_is_wrong_and_counted_apart() -> None:
    matrix = metrics.confusion_matrix(["NC", "MCI"], ["NC", None], CLASSES)
    assert matrix[1].tolist() == [0, 0, 0, 1]
    assert metrics.accuracy(["NC", "MCI"], ["NC", None]) == 0.5
    with pytest.raises(MedAlignError, match="true class"):
        metrics.confusion_matrix(["?"], ["NC"], CLASSES)


def test_wilson_interval() -> None:
    # 43 and 46 of 59: the published pair of closed-ended accuracies; their intervals overlap.
    from scipy.stats import binomtest

    for correct, total in ((43, 59), (46, 59), (1, 7)):
        expected = binomtest(correct, total).proportion_ci(method="wilson")
        assert metrics.wilson_interval(correct, total) == pytest.approx((expected.low, expected.high))
    assert metrics.wilson_interval(46, 59)[0] < metrics.wilson_interval(43, 59)[1]
    assert metrics.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(MedAlignError, match="impossible"):
        metrics.wilson_interval(3, 2)


@given(total=st.integers(1, 300), data=st.data())
@settings(max_examples=60, deadline=None)
def test_wilson_interval_holds_the_share_and_mirrors(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    low, high = metrics.wilson_interval(correct, total)
    assert 0 <= low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= high <= 1
    other = metrics.wilson_interval(total - correct, total)
    assert other == pytest.approx((1 - high, 1 - low))


def test_bootstrap_draws_people_not_images() -> None:
    random = np.random.default_rng(0)
    right = random.random(40) < 0.7
    truth = ["NC"] * 40
    predicted = np.where(right, "NC", "MCI").tolist()
    once = metrics.bootstrap_over_persons(range(40), truth, predicted, ["NC", "MCI"], samples=4000)["accuracy"]
    # Ten copies of each image of a person carry no news: the interval stays.
    many = metrics.bootstrap_over_persons(
        np.repeat(np.arange(40), 10), truth * 10, np.repeat(predicted, 10), ["NC", "MCI"], samples=4000
    )["accuracy"]
    assert many == pytest.approx(once, abs=1e-9)
    # Counted as 400 people it would be far too narrow.
    wrong = metrics.bootstrap_over_persons(
        range(400), truth * 10, np.repeat(predicted, 10), ["NC", "MCI"], samples=4000
    )["accuracy"]
    assert wrong[1] - wrong[0] < 0.5 * (once[1] - once[0])
    p = right.mean()
    assert once[1] - once[0] == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 40), rel=0.15)


def test_calibration_error() -> None:
    assert metrics.expected_calibration_error([[1.0, 0.0]] * 4, [0, 0, 0, 0]) == 0
    assert metrics.expected_calibration_error([[0.9, 0.1]] * 4, [0, 0, 1, 1]) == pytest.approx(0.4)


def test_person_accuracy_joins_the_scans_of_a_person() -> None:
    shares = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]
    assert metrics.person_accuracy(["a", "a", "b"], ["NC", "NC", "MCI"], shares, ["NC", "MCI"]) == 1.0
    assert metrics.accuracy(["NC", "NC", "MCI"], ["NC", "MCI", "MCI"]) == pytest.approx(2 / 3)


def _predictions(setting: str, right: list[bool], runs: int = 1) -> pd.DataFrame:
    rows = []
    for run in range(runs):
        for image, hit in enumerate(right):
            truth = ("NonDEM", "DEM")[image % 2]
            predicted = truth if hit else ("DEM", "NonDEM")[image % 2]
            rows.append(
                {
                    "image_id": f"i{image}",
                    "person_id": f"p{image // 2}",
                    "dataset": "OASIS",
                    "benchmark": "OASIS-2x",
                    "language_model": "gpt2",
                    "setting": setting,
                    "text_ablation": "full",
                    "run": run,
                    "split": "test",
                    "question": "diagnosis_dem_nondem",
                    "candidates": ["NonDEM", "DEM"],
                    "scores": [-1.0, -2.0] if predicted == "NonDEM" else [-2.0, -1.0],
                    "predicted": predicted,
                    "generated_text": "dementia" if image else "nothing",
                    "parsed_answer": "DEM" if image else None,
                    "truth": truth,
                    "simulated": True,
                }
            )
    return pd.DataFrame(rows)


def test_summary_has_one_row_per_group_with_intervals() -> None:
    right = [True] * 15 + [False] * 5
    table = metrics.summarize(_predictions("frozen", right, runs=2), bootstrap_samples=200)
    assert len(table) == 1
    row = table.iloc[0]
    assert row["accuracy_mean"] == 0.75
    assert row["accuracy_sd"] == 0
    assert (row["images"], row["persons"], row["runs"]) == (20, 10, 2)
    assert row["accuracy_low"] < 0.75 < row["accuracy_high"]
    assert row["chance"] == 0.5
    assert json.loads(row["recalls"])["DEM"] == pytest.approx(0.7)
    assert row["unparsed_share"] == pytest.approx(0.05)
    assert row["generation_accuracy_mean"] == pytest.approx(0.5)
    assert bool(row["simulated"]) is True


def test_paired_difference_compares_the_same_images() -> None:
    first, second = _predictions("frozen", [True] * 20), _predictions("control_shuffled", [True] * 10 + [False] * 10)
    result = metrics.paired_difference(first, second, samples=500)
    assert result["accuracy_difference"] == pytest.approx(0.5)
    assert 0.1 < result["accuracy_low"] < 0.5 < result["accuracy_high"]
    same = metrics.paired_difference(first, first, samples=100)
    assert (same["accuracy_difference"], same["accuracy_low"], same["accuracy_high"]) == (0, 0, 0)
