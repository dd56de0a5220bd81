"""Stage `normalize`: one cohort's volumes -> MNI space, brain only, uint8, with a verdict on each."""

from __future__ import annotations

from pathlib import Path

from common import DATA, cohort_argument, run_stage

from medalign3d.files import read_parquet
from medalign3d.params import Params
from medalign3d.volumes.normalize import normalize_cohort


def main(params: Params) -> None:
    """Write ``data/volumes/<COHORT>``."""
    cohort = cohort_argument()
    images = read_parquet(DATA / "cohorts" / cohort / "images.parquet")
    selected = images[images["selected"]].reset_index(drop=True)
    # Finished volumes outlive the stage here, so that an interrupted run goes on and a new scan costs one scan.
    work = Path(".medalign3d/volumes") / params.profile / cohort
    index = normalize_cohort(selected, params.cohort_root(cohort), params.normalize, DATA / "volumes" / cohort, work)
    accepted = int((index["verdict"] == "accepted").sum())
    print(f"normalized {cohort}: {accepted} volumes accepted, {len(index) - accepted} quarantined")


if __name__ == "__main__":
    run_stage(main)
