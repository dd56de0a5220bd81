"""From a folder of cohorts to Table 1: read, harmonize, count. No image is opened unless asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medalign3d.cohorts import COHORTS, IngestResult, ingest_cohort
from medalign3d.ehr.harmonize import Harmonized, harmonize
from medalign3d.errors import InputError
from medalign3d.manifest import MARKER
from medalign3d.params import COHORT_NAMES, Params
from medalign3d.report.table import Table
from medalign3d.report.table1 import table1_of
from medalign3d.tracking import git_commit


def cohort_folders(data: Path) -> dict[str, Path]:
    """The cohorts' folders below ``data``, which are named as the cohorts.

    Raises
    ------
    InputError
        When there is none.
    """
    found = {name: data / name for name in COHORT_NAMES if (data / name).is_dir()}
    if not found:
        raise InputError(
            "no cohort's folder was found",
            where=data,
            expected=f"folders named {', '.join(COHORT_NAMES)} (links will do)",
            remedy="name the folder that holds them, or simulate them: medalign3d simulate --size table1 --out DIR",
        )
    return found


def params_for(params: Params, folders: dict[str, Path], form: str, read_images: bool) -> Params:
    """The parameters with these cohorts, all simulated or all real.

    Raises
    ------
    InputError
        When some of the folders hold simulated people and some do not.
    """
    marked = {cohort: (folder / MARKER).exists() for cohort, folder in folders.items()}
    if len(set(marked.values())) > 1:
        raise InputError(
            "simulated and real people must not be mixed",
            where=", ".join(str(folder) for folder in folders.values()),
            found=f"simulated: {', '.join(cohort for cohort, flag in marked.items() if flag)}",
            expected="all simulated or all real",
        )
    cohorts = list(folders)
    simulated = next(iter(marked.values()))
    return params.model_copy(
        update={
            "cohorts": cohorts,
            "simulate": params.simulate.model_copy(update={"cohorts": cohorts if simulated else []}),
            "external": params.external.model_copy(update={"cohorts": [] if simulated else cohorts}),
            "ingest": params.ingest.model_copy(update={"form": form, "read_images": read_images}),
        }
    )


def harmonize_folders(
    folders: dict[str, Path], params: Params, say: Callable[[str], None] = lambda _line: None
) -> Harmonized:
    """Read and harmonize the cohorts; ``params`` comes from :func:`params_for`."""
    tables: dict[str, IngestResult] = {}
    for cohort, folder in folders.items():
        assert cohort in COHORTS
        result = ingest_cohort(cohort, folder, params)
        tables[cohort] = result
        say(f"{cohort}: {len(result.images):,} of {result.images_found:,} images found are accepted")
    return harmonize(tables, params)


def table1_of_harmonized(result: Harmonized, minimum_cell: int) -> Table:
    """Table 1 of a harmonized table, which says itself how it was made."""
    return table1_of(
        result.images,
        form=result.form,
        simulated=result.simulated,
        images_read=result.images_read,
        minimum_cell=minimum_cell,
        commit=git_commit(),
    )
