"""Stage `split`: which person is trained on, which is tested."""

from __future__ import annotations

from common import DATA, run_stage

from medalign3d.ehr.splits import make_splits, write_splits
from medalign3d.files import read_parquet
from medalign3d.params import Params
from medalign3d.volumes.store import load_index


def main(params: Params) -> None:
    """Write ``data/splits``."""
    images = read_parquet(DATA / "ehr" / "images.parquet")
    usable: set[str] = set()
    for cohort in params.cohorts:
        index = load_index(DATA / "volumes" / cohort)
        usable |= set(index.loc[index["verdict"] == "accepted", "image_id"])
    assignment = make_splits(images, params, usable)
    write_splits(assignment, DATA / "splits", params)
    for (dataset, split), group in assignment.groupby(["dataset", "split"], observed=True):
        print(f"split {dataset} {split}: {len(group)} images of {group['person_id'].nunique()} people")


if __name__ == "__main__":
    run_stage(main)
