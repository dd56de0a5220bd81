"""Stage `ingest`: one cohort's native files -> images, visits, quarantine, sources."""

from __future__ import annotations

from common import DATA, cohort_argument, run_stage

from medalign3d.cohorts import ingest_cohort, write_ingest
from medalign3d.params import Params


def main(params: Params) -> None:
    """Write ``data/cohorts/<COHORT>``."""
    cohort = cohort_argument()
    result = ingest_cohort(cohort, params.cohort_root(cohort), params, workers=params.ingest.workers)
    write_ingest(result, DATA / "cohorts" / cohort, simulated=params.simulated)
    dropped = int(((result.quarantine["level"] == "image") & (result.quarantine["severity"] == "drop")).sum())
    print(
        f"ingested {cohort}: {result.images_found} images found = {len(result.images)} accepted + {dropped} quarantined"
    )


if __name__ == "__main__":
    run_stage(main)
