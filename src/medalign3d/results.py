"""What a pipeline run or a single ingest left on disk, for commands that look into it.

Three forms are understood: the pipeline's ``data`` folder, the folder that one ``medalign3d ingest`` wrote, and a
folder of several such folders. Tables are read when they are first asked for; stages that have not run give None.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medalign3d.cohorts import TABLES, IngestResult, read_ingest
from medalign3d.errors import InputError
from medalign3d.files import read_json, read_parquet

if TYPE_CHECKING:
    import pandas as pd

INGEST_RECORD = "ingest.json"
"""Written by ``medalign3d ingest`` beside its tables: cohort, folder that was read, and the count of images."""


def _is_ingest(folder: Path) -> bool:
    return all((folder / f"{name}.parquet").is_file() for name in TABLES)


class Results:
    """The tables below one folder.

    Parameters
    ----------
    folder
        ``data`` of the pipeline, or what ``medalign3d ingest --out`` was given.

    Raises
    ------
    InputError
        When the folder holds no tables of any cohort.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders: dict[str, Path] = {}
        self.is_pipeline = (folder / "cohorts").is_dir()
        if _is_ingest(folder):
            candidates = [folder]
        else:
            parent = folder / "cohorts" if self.is_pipeline else folder
            candidates = sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        for place in candidates:
            if _is_ingest(place) and (cohort := self._cohort_of(place)) is not None:
                self.folders[cohort] = place
        if not self.folders:
            raise InputError(
                "no tables of an ingest here",
                where=folder,
                found="nothing there" if not folder.exists() else "other files",
                expected="data/ of the pipeline, or the folder given to `medalign3d ingest ... --out`",
                remedy="run `dvc repro ingest`, or name the folder with --data",
            )

    @staticmethod
    def _cohort_of(place: Path) -> str | None:
        """The cohort that a folder's tables describe; an ingest may have accepted no image at all."""
        for name in ("images", "found", "quarantine", "sources", "visits"):
            if (place / f"{name}.parquet").is_file():
                values = read_parquet(place / f"{name}.parquet", columns=["dataset"])["dataset"].dropna().unique()
                if len(values):
                    return str(values[0])
        return None

    @property
    def cohorts(self) -> list[str]:
        """The cohorts that were ingested, sorted."""
        return sorted(self.folders)

    @functools.cache  # noqa: B019  (one object per command)
    def ingest(self, cohort: str) -> IngestResult:
        """The tables of one cohort."""
        return read_ingest(self.folders[cohort])

    @functools.cache  # noqa: B019
    def found(self, cohort: str) -> pd.DataFrame:
        """Every image found of a cohort (``FOUND_COLUMNS``); rebuilt from the other tables where it was not written."""
        import pandas as pd

        result = self.ingest(cohort)
        if result.found is not None:
            return result.found
        rows: list[dict[str, Any]] = [
            {
                "dataset": cohort,
                "native_image_key": row["native_image_key"],
                "native_subject_id": row["native_subject_id"],
                "native_session": None,
                "source_path": row["source_path"],
                "series_description": row["series_description"],
                "outcome": "accepted",
                "reason": None,
            }
            for row in result.images.to_dict("records")
        ]
        dropped = result.quarantine[(result.quarantine["level"] == "image") & (result.quarantine["severity"] == "drop")]
        rows += [
            {
                "dataset": cohort,
                "native_image_key": key_of(row["key_json"]).get("native_image_key"),
                "source_path": row["source_file"],
                "outcome": "dropped",
                "reason": row["reason"],
            }
            for row in dropped.to_dict("records")
        ]
        from medalign3d.cohorts.base import FOUND_COLUMNS

        return pd.DataFrame(rows, columns=list(FOUND_COLUMNS)).astype("string")

    @functools.cache  # noqa: B019
    def _optional(self, *parts: str) -> pd.DataFrame | None:
        path = self.folder.joinpath(*parts)
        return read_parquet(path) if path.is_file() else None

    @property
    def harmonized(self) -> pd.DataFrame | None:
        """The harmonized images, or None when the stage has not run."""
        return self._optional("ehr", "images.parquet")

    @property
    def persons(self) -> pd.DataFrame | None:
        """Participants and their persons, or None when harmonize has not run."""
        return self._optional("ehr", "persons.parquet")

    @property
    def harmonize_quarantine(self) -> pd.DataFrame | None:
        """What harmonize left out or emptied, or None when it has not run."""
        table = self._optional("ehr", "quarantine.parquet")
        # The table also repeats what reading the cohorts found.
        return None if table is None else table[table["run_id"] == "harmonize"].reset_index(drop=True)

    def volumes(self, cohort: str) -> pd.DataFrame | None:
        """The index of normalized volumes, or None when the stage has not run."""
        return self._optional("volumes", cohort, "index.parquet")

    @functools.cached_property
    def assignment(self) -> pd.DataFrame | None:
        """The split of every image, or None when the stage has not run."""
        from medalign3d.ehr.splits import read_assignment

        path = self.folder / "splits" / "assignment.csv"
        return read_assignment(path) if path.is_file() else None

    def root(self, cohort: str) -> Path | None:
        """The folder with the cohort's native files, where it was recorded and can be reached."""
        records = [self.folders[cohort] / INGEST_RECORD, self.folder / "manifests" / f"{cohort}.json"]
        for record in records:
            if not record.is_file():
                continue
            named = Path(str(read_json(record).get("root", "")))
            for place in (named, self.folder.resolve().parent / named):
                if str(named) not in ("", ".") and place.is_dir():
                    return place
        return None


def key_of(key_json: Any) -> dict[str, str]:
    """The key of a quarantine row.

    >>> key_of('{"native_image_key": "I5"}')
    {'native_image_key': 'I5'}
    """
    import json

    try:
        value = json.loads(str(key_json))
    except ValueError:
        return {}
    return {str(name): str(item) for name, item in value.items()} if isinstance(value, dict) else {}


def plain(value: Any) -> Any:
    """A table's cell as a plain Python value: None for missing, lists for arrays, ISO text for dates."""
    from medalign3d.ehr.values import is_missing

    if is_missing(value):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()[:10]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, float):
        # Columns are float32: six digits say all that they hold.
        return int(value) if value.is_integer() and abs(value) < 1e9 else float(f"{value:.6g}")
    return value


def plain_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries of plain Python values."""
    return [{str(name): plain(value) for name, value in row.items()} for row in table.to_dict("records")]
