"""Native files of ADNI, NACC, OASIS, AIBL, MIRIAD and IXI -> images, visits, quarantine, sources, field issues.

>>> from medalign3d.cohorts import COHORTS
>>> sorted(COHORTS)
['ADNI', 'AIBL', 'IXI', 'MIRIAD', 'NACC', 'OASIS']
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from medalign3d.cohorts import adni, aibl, ixi, miriad, nacc, oasis
from medalign3d.cohorts.base import IngestResult, QuarantineReason
from medalign3d.cohorts.doctor import Finding, doctor
from medalign3d.errors import ParameterError
from medalign3d.files import atomic_path, read_parquet
from medalign3d.params import Params

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COHORTS",
    "Finding",
    "IngestResult",
    "QuarantineReason",
    "doctor",
    "ingest_cohort",
    "read_ingest",
    "write_ingest",
]

COHORTS: dict[str, Callable[[Path, Params, int], IngestResult]] = {
    "ADNI": adni.ingest,
    "NACC": nacc.ingest,
    "OASIS": oasis.ingest,
    "AIBL": aibl.ingest,
    "MIRIAD": miriad.ingest,
    "IXI": ixi.ingest,
}
TABLES = ("images", "visits", "quarantine", "sources", "field_issues")
_ARROW_TYPES = {
    "shape": pa.list_(pa.int32()),
    "zooms": pa.list_(pa.float32()),
    "fingerprint": pa.list_(pa.float32()),
    "scan_date": pa.date32(),
    "visit_date": pa.date32(),
}


def ingest_cohort(
    cohort: str, root: str | os.PathLike[str], params: Params, *, workers: int | None = None
) -> IngestResult:
    """Read a cohort's native files.

    Parameters
    ----------
    cohort
        One of ``COHORTS``.
    root
        The folder with the custodian's files.
    params
        Project parameters; section ``ingest`` is used.
    workers
        Processes that read images; ``params.ingest.workers`` when None.

    Raises
    ------
    InputError
        When the folder, all images, or a table that the cohort cannot do without is missing or damaged. A bad image
        or row never raises: it is quarantined with a reason.
    """
    if cohort not in COHORTS:
        raise ParameterError("unknown cohort", found=cohort, expected=f"one of {', '.join(COHORTS)}")
    return COHORTS[cohort](Path(root), params, params.ingest.workers if workers is None else workers)


def _write(frame: pd.DataFrame, path: Path, metadata: dict[str, str]) -> None:
    fields = [(name, _ARROW_TYPES[name]) for name in frame.columns if name in _ARROW_TYPES]
    table = pa.Table.from_pandas(frame.drop(columns=[name for name, _ in fields]), preserve_index=False)
    for name, kind in fields:
        column = pa.array([None if value is None else value for value in frame[name].tolist()], type=kind)
        table = table.add_column(list(frame.columns).index(name), pa.field(name, kind), column)
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def write_ingest(result: IngestResult, out_dir: str | os.PathLike[str], simulated: bool) -> None:
    """Write the parquet tables of a cohort.

    Each file's metadata say ``simulated``, ``images_read`` (both ``true`` or ``false``) and ``form``.
    """
    out = Path(out_dir)
    metadata = {
        "simulated": str(simulated).lower(),
        "images_read": str(result.images_read).lower(),
        "form": result.form,
    }
    for name in TABLES:
        _write(getattr(result, name), out / f"{name}.parquet", metadata)
    if result.found is not None:
        _write(result.found, out / "found.parquet", metadata)
    if result.links is not None:
        _write(result.links, out / "links.parquet", metadata)


def read_ingest(folder: str | os.PathLike[str]) -> IngestResult:
    """Read the tables that :func:`write_ingest` wrote.

    Raises
    ------
    InputError
        When a table is missing or damaged.
    """
    place = Path(folder)
    tables = {name: read_parquet(place / f"{name}.parquet") for name in TABLES}
    found = read_parquet(place / "found.parquet") if (place / "found.parquet").exists() else None
    links = read_parquet(place / "links.parquet") if (place / "links.parquet").exists() else None
    quarantine = tables["quarantine"]
    dropped = int(((quarantine["level"] == "image") & (quarantine["severity"] == "drop")).sum())
    said = tables["images"].attrs
    return IngestResult(
        **tables,
        images_found=len(tables["images"]) + dropped,
        found=found,
        links=links,
        form=said.get("form", "clean"),
        images_read=said.get("images_read", "true") == "true",
    )
