"""A small pipeline run on simulated cohorts with planted faults, made once for the tests that look into results."""

from __future__ import annotations

import itertools
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_cohort_simulated import NoAnatomy

from medalign3d.cohorts import ingest_cohort, read_ingest, write_ingest
from medalign3d.ehr.harmonize import harmonize, write_harmonized
from medalign3d.ehr.splits import make_splits, write_splits
from medalign3d.files import write_json, write_parquet, write_text
from medalign3d.params import Params
from medalign3d.profiles import build_profile
from medalign3d.simulate import images, simulate_cohort

PEOPLE = {"ADNI": 6, "NACC": 4, "OASIS": 6, "AIBL": 4, "MIRIAD": 4}


class SameForSame(NoAnatomy):
    """Noise that is equal where head and scan are, so that a scan planted in two cohorts is one."""

    def render(self, head: Any, scan: Any) -> Any:
        self.count = itertools.repeat(zlib.crc32(repr((head, scan)).encode()))  # type: ignore[assignment]
        return super().render(head, scan)


@dataclass
class Run:
    """A project folder with ``data`` up to the split, and the parameters that made it."""

    project: Path
    params: Params

    @property
    def data(self) -> Path:
        return self.project / "data"


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Run:
    """Simulated trees, ingest, harmonize, an index of volumes (one refused), and the split."""
    folder = tmp_path_factory.mktemp("project")
    text, params = build_profile("demo", project=project)
    write_text(folder / "params.yaml", text)
    section = params.simulate.model_copy(update={"participants": PEOPLE, "workers": 1, "zooms_mm": 2.0})
    params = params.model_copy(update={"simulate": section})
    with pytest.MonkeyPatch.context() as patch:
        renderer = SameForSame()
        patch.setattr(images, "renderer_of", lambda _folder: renderer)
        for cohort in PEOPLE:
            raw = folder / "data" / "raw" / cohort
            simulate_cohort(cohort, params, raw, folder / "data" / "truth" / cohort, template=folder)
            write_json(folder / "data" / "manifests" / f"{cohort}.json", {"root": f"data/raw/{cohort}"})
            result = ingest_cohort(cohort, raw, params, workers=1)
            write_ingest(result, folder / "data" / "cohorts" / cohort, simulated=True)
    tables = {cohort: read_ingest(folder / "data" / "cohorts" / cohort) for cohort in params.cohorts}
    harmonized = harmonize(tables, params)
    write_harmonized(harmonized, folder / "data" / "ehr", simulated=True)
    usable = set()
    for cohort, table in tables.items():
        chosen = table.images[table.images["selected"]]["image_id"].astype(str).tolist()
        index = pd.DataFrame(
            {"image_id": chosen, "verdict": "accepted", "reason": "", "detail": "", "method": "affine"}
        )
        index["path"] = [f"{image_id}.npy" for image_id in chosen]
        if cohort == "ADNI":
            index.loc[0, ["verdict", "reason", "detail", "path"]] = ["quarantined", "QC_FAIL", "does not fit", ""]
        write_parquet(folder / "data" / "volumes" / cohort / "index.parquet", index)
        usable |= set(index.loc[index["verdict"] == "accepted", "image_id"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assignment = make_splits(harmonized.images, params, usable)
    write_splits(assignment, folder / "data" / "splits", params)
    return Run(folder, params)
