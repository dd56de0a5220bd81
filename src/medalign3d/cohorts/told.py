"""What one ingest became, in words: the count of images, visits and labels, and all that was emptied or remarked on.

A table that was altered on its way, or a value that cannot be, must not be found by those alone who open the parquet
tables; ``medalign3d ingest`` prints these lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pandas as pd

from medalign3d.cohorts.base import IngestResult
from medalign3d.cohorts.reasons import count_lines
from medalign3d.printing import count, paragraph

MAXIMUM_REMARKS = 12


def _by_reason(rows: pd.DataFrame) -> str:
    counts = rows["reason"].astype(str).value_counts()
    ordered = sorted(counts.items(), key=lambda item: (-int(item[1]), str(item[0])))
    return ", ".join(f"{reason} {int(number):,}" for reason, number in ordered)


def result_lines(result: IngestResult, quarantined: Mapping[str, int]) -> list[str]:
    """The lines that ``medalign3d ingest`` prints.

    Parameters
    ----------
    result
        What a cohort became.
    quarantined
        Reason -> number of images that were dropped for it.
    """
    lines = count_lines(result.images_found, len(result.images), quarantined)
    visits = result.visits
    people = visits["native_subject_id"].nunique()
    rated = int(visits["dx_native"].notna().sum())
    lines.append(f"{count(len(visits), 'clinical visit')} of {count(people, 'participant')}, {rated:,} with a label")
    table = result.quarantine[result.quarantine["level"] == "table"]
    remarks: dict[str, int] = {}
    for key, detail in zip(table["key_json"].astype(str), table["detail"].astype(str), strict=True):
        words = f"{json.loads(key).get('file', 'table')}: {detail}"
        remarks[words] = remarks.get(words, 0) + 1
    for words, number in list(remarks.items())[:MAXIMUM_REMARKS]:
        lines.append(paragraph(words + (f" ({number:,} times)" if number > 1 else ""), "remark  ", " " * 8))
    if len(remarks) > MAXIMUM_REMARKS:
        lines.append(f"remark  and {len(remarks) - MAXIMUM_REMARKS:,} more, in quarantine.parquet")
    if len(result.field_issues):
        words = f"{count(len(result.field_issues), 'cell')} not used (field_issues.parquet): "
        lines.append(paragraph(words + _by_reason(result.field_issues), "values  ", " " * 8))
    rest = result.quarantine[
        ~result.quarantine["level"].isin(["table", "field"])
        & ~((result.quarantine["level"] == "image") & (result.quarantine["severity"] == "drop"))
    ]
    if len(rest):
        words = f"{count(len(rest), 'remark')} on images, visits and people (quarantine.parquet): "
        lines.append(paragraph(words + _by_reason(rest), "others  ", " " * 8))
    return lines
