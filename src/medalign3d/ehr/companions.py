"""What stands beside the harmonized images: all visits, every remark, every table read, and the count of images.

One place tells all: ``quarantine.parquet`` holds what reading the cohorts and what harmonizing kept out, emptied or
remarked on (``run_id`` says which), and ``counts.parquet`` that nothing was lost between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medalign3d.ehr import schema
from medalign3d.ehr.labelling import labels_of
from medalign3d.ehr.labels import Label
from medalign3d.ehr.quarantine import INGEST_RUN, QUARANTINE_COLUMNS, typed_quarantine
from medalign3d.errors import MedAlignError

if TYPE_CHECKING:
    import pandas as pd

COUNT_COLUMNS = ("dataset", "found", "dropped_by_ingest", "read", "dropped_by_harmonize", "images")
FIELD_ISSUE_COLUMNS = ("dataset", "native_subject_id", "visit_code", "column", "source_file", "source_row", "reason")
SOURCE_COLUMNS = ("dataset", "file", "sha256", "rows", "bad_lines", "used_for")


def _parts(cohort_tables: Mapping[str, Any], order: list[str], name: str) -> list[tuple[str, pd.DataFrame]]:
    """The table called ``name`` of each cohort that has one."""
    found = [(cohort, getattr(cohort_tables[cohort], name, None)) for cohort in order]
    return [(cohort, table) for cohort, table in found if table is not None and len(table.columns)]


def _dropped(quarantine: pd.DataFrame) -> pd.DataFrame:
    return quarantine[(quarantine["level"] == "image") & (quarantine["severity"] == "drop")]


def all_visits(cohort_tables: Mapping[str, Any], order: list[str], nacc_dementia_policy: str) -> pd.DataFrame:
    """All clinical visits, also those without an image, with ``dx3`` and ``dx2``, sorted by person and day."""
    import pandas as pd

    parts = []
    for cohort, visits in _parts(cohort_tables, order, "visits"):
        filled = visits.assign(dataset=cohort)
        found = labels_of(filled, nacc_dementia_policy)
        for name in ("dx3", "dx2"):
            values = [getattr(label, name) if isinstance(label, Label) else None for label in found]
            filled[name] = pd.Series(values, index=filled.index, dtype=object)
        part = schema.coerce(filled, schema.VISIT_COLUMNS)
        parts.append(part.sort_values(["native_subject_id", "visit_day", "visit_code", "visit_date"], kind="stable"))
    if not parts:
        return schema.coerce(pd.DataFrame(), schema.VISIT_COLUMNS)
    return pd.concat(parts, ignore_index=True)


def all_quarantine(cohort_tables: Mapping[str, Any], order: list[str], harmonized: pd.DataFrame) -> pd.DataFrame:
    """The quarantine of reading the cohorts and of harmonizing them in one table."""
    import pandas as pd

    parts = []
    for _, table in _parts(cohort_tables, order, "quarantine"):
        part = table[list(QUARANTINE_COLUMNS)].astype(object)
        parts.append(typed_quarantine(part.assign(run_id=part["run_id"].fillna(INGEST_RUN))))
    return typed_quarantine(pd.concat([*parts, harmonized], ignore_index=True)) if parts else harmonized


def all_rows(
    cohort_tables: Mapping[str, Any], order: list[str], name: str, columns: tuple[str, ...], whole: tuple[str, ...]
) -> pd.DataFrame:
    """A small table of every cohort in one, sorted by its columns.

    ``columns`` come first; what else the cohorts' tables hold follows. ``whole`` names columns of whole numbers.
    """
    import pandas as pd

    parts = [table.astype(object) for _, table in _parts(cohort_tables, order, name)]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))
    names = list(dict.fromkeys((*columns, *table.columns)))
    table = table.reindex(columns=names)
    for column in names:
        table[column] = table[column].astype("Int64" if column in whole else "str")
    return table.sort_values(names, kind="stable", ignore_index=True)


def count_images(
    cohort_tables: Mapping[str, Any], order: list[str], images: pd.DataFrame, harmonized: pd.DataFrame
) -> pd.DataFrame:
    """Per cohort: found = read + dropped by ingest, and read = kept + dropped by harmonize.

    Parameters
    ----------
    cohort_tables, order
        What reading the cohorts gave.
    images
        The harmonized images.
    harmonized
        The quarantine of harmonizing.

    Returns
    -------
    DataFrame
        One row per cohort with :data:`COUNT_COLUMNS`.

    Raises
    ------
    MedAlignError
        When an image was lost without a reason.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for cohort in order:
        tables = cohort_tables[cohort]
        quarantine, listed = getattr(tables, "quarantine", None), getattr(tables, "found", None)
        read = len(tables.images)
        by_ingest = 0 if quarantine is None or not len(quarantine) else len(_dropped(quarantine))
        found = len(listed) if listed is not None else (getattr(tables, "images_found", 0) or read + by_ingest)
        by_harmonize = int((_dropped(harmonized)["dataset"] == cohort).sum())
        kept = int((images["dataset"] == cohort).sum())
        rows.append(dict(zip(COUNT_COLUMNS, (cohort, found, by_ingest, read, by_harmonize, kept), strict=True)))
        if found != read + by_ingest or read != kept + by_harmonize:
            raise MedAlignError(
                "images were lost without a reason",
                where=cohort,
                found=f"{found} found, {by_ingest} dropped by ingest, {read} read, {by_harmonize} dropped by harmonize,"
                f" {kept} kept",
                expected="found = read + dropped by ingest, and read = kept + dropped by harmonize",
                remedy="read the cohort again (`dvc repro ingest`); if it stays, please report it",
            )
    table = pd.DataFrame(rows, columns=list(COUNT_COLUMNS))
    return table.astype({name: "str" if name == "dataset" else "int64" for name in COUNT_COLUMNS})


def companions_of(
    cohort_tables: Mapping[str, Any],
    order: list[str],
    images: pd.DataFrame,
    harmonized: pd.DataFrame,
    nacc_dementia_policy: str,
) -> dict[str, pd.DataFrame]:
    """``visits``, ``field_issues``, ``sources`` and ``counts`` of all cohorts together."""
    return {
        "visits": all_visits(cohort_tables, order, nacc_dementia_policy),
        "field_issues": all_rows(cohort_tables, order, "field_issues", FIELD_ISSUE_COLUMNS, ("source_row",)),
        "sources": all_rows(cohort_tables, order, "sources", SOURCE_COLUMNS, ("rows", "bad_lines")),
        "counts": count_images(cohort_tables, order, images, harmonized),
    }
