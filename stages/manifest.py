"""Stage `manifest`: what lies in the folder of a cohort that the user keeps elsewhere; nothing is copied or hashed."""

from __future__ import annotations

from common import DATA, cohort_argument, run_stage

from medalign3d.files import write_json
from medalign3d.manifest import write_manifest
from medalign3d.params import Params


def main(params: Params) -> None:
    """Write ``data/manifests/<COHORT>.json`` and say in ``data/truth/<COHORT>`` that real people have no answer key."""
    cohort = cohort_argument()
    write_manifest(DATA / "manifests" / f"{cohort}.json", cohort, params.cohort_root(cohort), simulated=False)
    write_json(DATA / "truth" / cohort / "none.json", {"truth": "none: these are real people"})


if __name__ == "__main__":
    run_stage(main)
