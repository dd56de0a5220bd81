"""What happened to every scan on its way: found, accepted or quarantined, with the reason, per cohort."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medalign3d.files import read_parquet
from medalign3d.params import Params
from medalign3d.report.provenance import Provenance


@dataclass
class CohortQuality:
    """Counts of one cohort; reasons map a reason code to a number, most frequent first."""

    label: str
    images_read: int = 0
    ingest_reasons: dict[str, int] = field(default_factory=dict)
    other_reasons: dict[str, int] = field(default_factory=dict)
    volumes_accepted: int = 0
    volume_reasons: dict[str, int] = field(default_factory=dict)
    methods: dict[str, int] = field(default_factory=dict)
    median_agreement: float | None = None
    tested: int = 0
    trained: int = 0

    @property
    def found(self) -> int:
        """Images (or image records) that were looked at."""
        return self.images_read + sum(self.ingest_reasons.values())


def _counted(values: pd.Series) -> dict[str, int]:
    counts = values.dropna().astype(str).value_counts()
    return {
        str(name): int(number) for name, number in sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    }


def cohort_quality(cohort: str, provenance: Provenance, root: Path = Path(".")) -> CohortQuality:
    """Collect the counts of one cohort; a table that is not there leaves its counts at zero."""
    quality = CohortQuality(provenance.benchmark_label(cohort))
    folder = root / "data/cohorts" / cohort
    if (folder / "images.parquet").is_file():
        quality.images_read = len(read_parquet(folder / "images.parquet", columns=["image_id"]))
    if (folder / "quarantine.parquet").is_file():
        quarantine = read_parquet(folder / "quarantine.parquet")
        dropped = (quarantine["severity"] == "drop") & (quarantine["level"] == "image")
        quality.ingest_reasons = _counted(quarantine.loc[dropped, "reason"])
        quality.other_reasons = _counted(quarantine.loc[~dropped, "reason"])
    index_path = root / "data/volumes" / cohort / "index.parquet"
    if index_path.is_file():
        index = read_parquet(index_path)
        accepted = index["verdict"].astype(str) == "accepted"
        quality.volumes_accepted = int(accepted.sum())
        quality.volume_reasons = _counted(index.loc[~accepted, "reason"])
        if "method" in index:
            quality.methods = _counted(index.loc[accepted, "method"])
        if "local_correlation" in index and accepted.any():
            quality.median_agreement = float(index.loc[accepted, "local_correlation"].astype(float).median())
    assignment_path = root / "data/splits/assignment.csv"
    if assignment_path.is_file():
        assignment = pd.read_csv(assignment_path, usecols=["dataset", "split"])
        splits = assignment.loc[assignment["dataset"] == cohort, "split"]
        quality.tested = int(splits.isin(["test", "zeroshot", "fold"]).sum())
        quality.trained = int(splits.isin(["train", "val", "fold"]).sum())
    return quality


def all_quality(params: Params, provenance: Provenance, root: Path = Path(".")) -> list[CohortQuality]:
    """The counts of every cohort of the profile."""
    return [cohort_quality(cohort, provenance, root) for cohort in params.cohorts]
