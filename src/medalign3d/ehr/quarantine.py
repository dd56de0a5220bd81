"""Everything that harmonizing drops, empties or remarks on, in the form of the cohorts' own quarantine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

QUARANTINE_COLUMNS = (
    "dataset", "level", "key_json", "source_file", "source_row", "reason", "detail", "severity", "run_id",
)  # fmt: skip
INGEST_RUN, HARMONIZE_RUN = "ingest", "harmonize"
"""``run_id`` says at which stage a row was written."""


class Quarantine:
    """Collects the rows of one run of harmonizing."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        dataset: str,
        level: str,
        key: Mapping[str, Any],
        reason: str,
        detail: str,
        severity: str,
        source_file: str | None = None,
        source_row: int | None = None,
    ) -> None:
        """Add a row; reasons, severities and levels are those of :mod:`medalign3d.cohorts.reasons`."""
        self.rows.append(
            {
                "dataset": dataset,
                "level": level,
                "key_json": json.dumps(dict(key), sort_keys=True, ensure_ascii=False),
                "source_file": source_file,
                "source_row": source_row,
                "reason": reason,
                "detail": detail,
                "severity": severity,
                "run_id": HARMONIZE_RUN,
            }
        )

    def drop_images(self, rows: pd.DataFrame, reason: str, detail: str) -> None:
        """Add a row for every image of ``rows`` (columns ``dataset`` and ``native_image_key``)."""
        for dataset, key in zip(rows["dataset"], rows["native_image_key"], strict=True):
            self.add(str(dataset), "image", {"native_image_key": key}, reason, detail, "drop")

    def table(self) -> pd.DataFrame:
        """The rows as a table, in an order that depends on their content alone."""
        import pandas as pd

        return typed_quarantine(pd.DataFrame(self.rows, columns=list(QUARANTINE_COLUMNS)))


def typed_quarantine(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with exactly :data:`QUARANTINE_COLUMNS` in their types, sorted by all of them."""
    table = table[list(QUARANTINE_COLUMNS)].copy()
    for name in QUARANTINE_COLUMNS:
        table[name] = table[name].astype("Int64" if name == "source_row" else "str")
    order = ["dataset", "level", "reason", "key_json", "source_file", "source_row", "detail", "severity", "run_id"]
    return table.sort_values(order, kind="stable", ignore_index=True)
