"""Stage `harmonize`: all cohorts -> one table of images and one of persons, with each record as text."""

from __future__ import annotations

from common import DATA, run_stage

from medalign3d.cohorts import read_ingest
from medalign3d.ehr.duplicates import reader_of
from medalign3d.ehr.harmonize import CohortTables, harmonize, write_harmonized
from medalign3d.params import Params


def main(params: Params) -> None:
    """Write ``data/ehr``."""
    tables: dict[str, CohortTables] = {cohort: read_ingest(DATA / "cohorts" / cohort) for cohort in params.cohorts}
    roots = {str(cohort): str(params.cohort_root(cohort)) for cohort in params.cohorts}
    result = harmonize(tables, params, reader_of(roots))
    write_harmonized(result, DATA / "ehr", simulated=params.simulated)
    print(f"harmonized {len(result.images)} images of {result.images['person_id'].nunique()} people")


if __name__ == "__main__":
    run_stage(main)
