"""Stage `baselines`: what other methods reach on the same people, and the oracle bounds of simulated ones."""

from __future__ import annotations

from common import DATA, run_stage

from medalign3d.evaluation.baselines import run_baselines
from medalign3d.evaluation.predict import write_predictions
from medalign3d.params import Params


def main(params: Params) -> None:
    """Write ``data/evaluation/baselines``."""
    predictions = run_baselines(params, data_dir=DATA)
    write_predictions(DATA / "evaluation" / "baselines" / "predictions.parquet", predictions)
    print(f"baselines: {predictions['setting'].nunique()} methods, {predictions['image_id'].nunique()} images")


if __name__ == "__main__":
    run_stage(main)
