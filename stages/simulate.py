"""Stage `simulate`: one simulated cohort in native layout, its answer key, and the list of its files."""

from __future__ import annotations

from common import DATA, cohort_argument, run_stage

from medalign3d.files import atomic_path
from medalign3d.manifest import write_manifest
from medalign3d.params import Params
from medalign3d.simulate import simulate_cohort


def main(params: Params) -> None:
    """Write ``data/raw/<COHORT>``, ``data/truth/<COHORT>`` and ``data/manifests/<COHORT>.json``."""
    cohort = cohort_argument()
    with atomic_path(DATA / "raw" / cohort) as raw, atomic_path(DATA / "truth" / cohort) as truth:
        counts = simulate_cohort(cohort, params, raw, truth)
    write_manifest(DATA / "manifests" / f"{cohort}.json", cohort, DATA / "raw" / cohort, simulated=True)
    print(f"simulated {cohort}: " + ", ".join(f"{value} {name}" for name, value in counts.items()))


if __name__ == "__main__":
    run_stage(main)
