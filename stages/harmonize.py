"""Stage `harmonize`: all cohorts -> one table of images and one of persons, with each record as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from common import DATA, run_stage

from medalign3d.cohorts import read_ingest
from medalign3d.ehr.harmonize import CohortTables, harmonize, write_harmonized
from medalign3d.errors import MedAlignError
from medalign3d.params import Params
from medalign3d.volumes.read import read_volume


def main(params: Params) -> None:
    """Write ``data/ehr``."""
    tables: dict[str, CohortTables] = {cohort: read_ingest(DATA / "cohorts" / cohort) for cohort in params.cohorts}

    def read_voxels(row: Mapping[str, Any]) -> npt.NDArray[Any] | None:
        try:
            root = params.cohort_root(str(row["dataset"]))
            return read_volume(root, str(row["source_path"]), row["source_format"], strict=False).data
        except MedAlignError:
            return None

    result = harmonize(tables, params, read_voxels)
    write_harmonized(result, DATA / "ehr", simulated=params.simulated)
    print(f"harmonized {len(result.images)} images of {result.images['person_id'].nunique()} people")


if __name__ == "__main__":
    run_stage(main)
