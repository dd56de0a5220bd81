"""A quick look at predictions: accuracy per benchmark, setting and text, averaged over runs."""

from __future__ import annotations

import pandas as pd

from medalign3d.evaluation.metrics import accuracy, balanced_accuracy


def accuracies(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and balanced accuracy (shares of 1), mean over runs.

    Returns
    -------
    DataFrame with ``benchmark, split, setting, text_ablation, runs, images, accuracy, balanced_accuracy``; validation
    rows stand apart from test rows. No row describes a single person.
    """
    rows = []
    keys = ["benchmark", "split", "setting", "text_ablation"]
    for (benchmark, split, setting, text), group in predictions.groupby(keys, sort=False, observed=True):
        per_run = [
            (
                accuracy(part["truth"].tolist(), part["predicted"].tolist()),
                balanced_accuracy(part["truth"].tolist(), part["predicted"].tolist(), sorted(set(part["truth"]))),
            )
            for _, part in group.groupby("run", observed=True)
        ]
        rows.append(
            {
                "benchmark": benchmark,
                "split": split,
                "setting": setting,
                "text_ablation": text,
                "runs": len(per_run),
                "images": int(group["image_id"].nunique()),
                "accuracy": sum(a for a, _ in per_run) / len(per_run),
                "balanced_accuracy": sum(b for _, b in per_run) / len(per_run),
            }
        )
    return pd.DataFrame(rows)
