"""Imaging findings that closed questions ask for, and how a measure decides them.

A finding is decided by one number per image, measured on the normalized volume (``measured``) or, for simulated images,
taken from the simulator's answer key (``true``). Thresholds are quantiles of the *training* images; the middle
``ambiguity_fraction`` of the training images' values is too close to call and is never asked about.

Sides: the arrays are stored in RAS orientation, so *left* is the person's left hippocampus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

MINIMUM_TRAINING_IMAGES = 20
"""Fewer measured training images do not give a threshold."""

LETTERS = "ABCD"


def with_options(question: str, options: Sequence[str]) -> str:
    """A closed question with its options in words, as the models are asked.

    >>> with_options("Which hippocampus is smaller?", ["left", "right"])
    'Which hippocampus is smaller? Options: left; right.'
    """
    return f"{question} Options: {'; '.join(options)}."


def _number(record: Mapping[str, Any], column: str) -> float:
    """A column's value, NaN where it is missing."""
    value = record.get(column)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def _sum(*columns: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda record: sum(_number(record, column) for column in columns)


def _preferred(
    column: str, better: Callable[[Mapping[str, Any]], float], crude: Callable[[Mapping[str, Any]], float]
) -> Callable[[Mapping[str, Any]], float]:
    """``better`` for records that have ``column`` (known or not), ``crude`` for those of stores without it."""
    return lambda record: better(record) if column in record else crude(record)


def _asymmetry(left: str, right: str, sign: float) -> Callable[[Mapping[str, Any]], float]:
    """``sign`` x (left - right) / (left + right)."""

    def measure(record: Mapping[str, Any]) -> float:
        a, b = _number(record, left), _number(record, right)
        return sign * (a - b) / (a + b) if a + b > 0 else float("nan")

    return measure


def _share_of_skull(*columns: str) -> Callable[[Mapping[str, Any]], float]:
    """Summed volume over the intracranial volume."""

    def measure(record: Mapping[str, Any]) -> float:
        whole = _number(record, "icv_ml")
        return sum(_number(record, column) for column in columns) / whole if whole > 0 else float("nan")

    return measure


@dataclass(frozen=True)
class Finding:
    """A closed question about an image.

    Parameters
    ----------
    name
        The name in tables.
    text
        The question.
    answers
        Label to answer: the label of low values first, that of high values second.
    measured, true
        From a record with ``region_*`` columns, or of the answer key (volumes in millilitres), to one number; NaN where
        it cannot be told.
    """

    name: str
    text: str
    answers: Mapping[str, str]
    measured: Callable[[Mapping[str, Any]], float]
    true: Callable[[Mapping[str, Any]], float]

    def training_question(self, random: np.random.Generator) -> str:
        """The question as asked in training, options in random order."""
        options = list(self.answers.values())
        return with_options(self.text, options if random.random() < 0.5 else options[::-1])


FINDINGS: dict[str, Finding] = {
    finding.name: finding
    for finding in (
        Finding(
            name="ventricles_enlarged",
            text="Are the ventricles enlarged?",
            answers={"no": "no", "yes": "yes"},
            measured=_preferred(
                "region_ventricles_fraction", _sum("region_ventricles_fraction"), _sum("region_ventricles_csf")
            ),
            true=_share_of_skull("ventricles_ml"),
        ),
        Finding(
            name="hippocampal_atrophy",
            text="Is there hippocampal atrophy?",
            answers={"no": "no", "yes": "yes"},
            # On real people the fluid around the hippocampus tells dementia better than its measured volume does.
            measured=_sum("region_hippocampus_left_csf", "region_hippocampus_right_csf"),
            # More atrophy is less volume: the sign turns "high" into "yes".
            true=lambda record: -_share_of_skull("hippocampus_left_ml", "hippocampus_right_ml")(record),
        ),
        Finding(
            name="smaller_hippocampus",
            text="Which hippocampus is smaller?",
            answers={"left": "left", "right": "right"},
            # More fluid on a side, or less volume, means that the side is smaller.
            measured=_preferred(
                "region_hippocampus_left_fraction",
                _asymmetry("region_hippocampus_left_fraction", "region_hippocampus_right_fraction", 1.0),
                _asymmetry("region_hippocampus_left_csf", "region_hippocampus_right_csf", -1.0),
            ),
            true=_asymmetry("hippocampus_left_ml", "hippocampus_right_ml", 1.0),
        ),
    )
}


@dataclass(frozen=True)
class Thresholds:
    """Bounds per finding: values below ``low`` give the first answer, above ``high`` the second, others none."""

    bounds: Mapping[str, tuple[float, float]]
    source: str = "measured"

    def value(self, name: str, record: Mapping[str, Any]) -> float:
        """The measure of a finding for one record."""
        finding = FINDINGS[name]
        return finding.measured(record) if self.source == "measured" else finding.true(record)

    def answer(self, name: str, record: Mapping[str, Any]) -> str | None:
        """The label of a finding for one record; None where it is unknown or too close to call."""
        if name not in self.bounds:
            return None
        value = self.value(name, record)
        low, high = self.bounds[name]
        labels = tuple(FINDINGS[name].answers)
        if np.isnan(value) or low <= value <= high:
            return None
        return labels[0] if value < low else labels[1]


def training_thresholds(training: pd.DataFrame, ambiguity_fraction: float, source: str = "measured") -> Thresholds:
    """Bounds from the quantiles of the training images.

    Parameters
    ----------
    training
        Rows of training images only, with ``region_*`` columns (``measured``) or the answer key's volumes (``true``).
    ambiguity_fraction
        Share of the training images in the middle that is left out.
    source
        ``measured`` or ``true``.
    """
    bounds = {}
    records: list[dict[str, Any]] = training.to_dict("records")  # type: ignore[assignment]
    for name, finding in FINDINGS.items():
        measure = finding.measured if source == "measured" else finding.true
        values = np.array([measure(record) for record in records], dtype=np.float64)
        values = values[np.isfinite(values)]
        if len(values) < MINIMUM_TRAINING_IMAGES or values.std() == 0:
            continue
        low, high = np.quantile(values, [0.5 - ambiguity_fraction / 2, 0.5 + ambiguity_fraction / 2])
        if source == "true" and name == "smaller_hippocampus":
            low, high = min(low, 0.0), max(high, 0.0)  # true volumes: the smaller side is a fact, not a quantile
        bounds[name] = (float(low), float(high))
    return Thresholds(bounds, source)
