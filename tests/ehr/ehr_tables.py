"""Small tables of invented people, in the form in which cohorts are read, and the real OASIS-1 demographics."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medalign3d.params import Params, validate_params

REPOSITORY = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("MEDALIGN3D_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
OASIS1_CSV = REAL_DATA / "oasis1_mni_2mm" / "oasis_cross-sectional.csv"


@dataclass
class Tables:
    """What reading one cohort gives."""

    images: pd.DataFrame
    visits: pd.DataFrame


def make_params(**changes: Any) -> Params:
    """The repository's parameters; ``cohorts``, ``split`` and ``harmonize`` entries may be changed."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for section in ("split", "harmonize", "ingest"):
        values[section].update(changes.pop(section, {}))
    if "cohorts" in changes:
        cohorts = changes.pop("cohorts")
        values["cohorts"] = cohorts
        values["simulate"]["cohorts"] = cohorts
        values["simulate"]["participants"] = dict.fromkeys(cohorts, 10)
        benchmarks = values["split"]["benchmarks"]
        values["split"]["benchmarks"] = {k: v for k, v in benchmarks.items() if v["cohort"] in cohorts}
    values.update(changes)
    return validate_params(values)


def image(dataset: str, subject: str, number: int = 1, **values: Any) -> dict[str, Any]:
    """One row of a cohort's table of images."""
    key = f"{subject}/{number}"
    digest = hashlib.sha1(f"{dataset}|{key}".encode()).hexdigest()
    row: dict[str, Any] = {
        "image_id": digest[:16],
        "dataset": dataset,
        "release": dataset,
        "participant_id": f"sub-{subject}",
        "native_subject_id": subject,
        "session_id": f"ses-{number:02d}",
        "run": 1,
        "native_image_key": key,
        "variant": "raw",
        "source_path": f"{key}.nii",
        "source_format": "nifti",
        "source_sha256": f"of {digest}",
        "data_sha256": digest,
        "shape": [182, 218, 182],
        "zooms": [1.0, 1.0, 1.0],
        "orientation": "RAS",
        "affine_source": "header",
        "match_method": "exact_label",
        "sex": "F",
        "age_years": 70.0,
    }
    return row | values


def tables(images: list[dict[str, Any]], visits: list[dict[str, Any]] | None = None) -> Tables:
    """Tables as a cohort's reading gives them."""
    frame = pd.DataFrame(images)
    frame.attrs["simulated"] = "true"
    return Tables(frame, pd.DataFrame(visits or [], columns=None if visits else ["native_subject_id"]))


def oasis1() -> pd.DataFrame:
    """The genuine OASIS-1 rows as harmonizing reads them."""
    table = pd.read_csv(OASIS1_CSV, dtype=str, keep_default_na=False)
    rows = []
    for row in table.to_dict("records"):
        subject, session = row["ID"].rsplit("_", 1)
        filled = {name: (None if value in ("", "N/A") else value) for name, value in row.items()}
        rows.append(
            image(
                "OASIS",
                subject.replace("_", ""),
                1,
                native_subject_id=subject,
                native_image_key=row["ID"],
                image_id=hashlib.sha1(row["ID"].encode()).hexdigest()[:16],
                data_sha256=hashlib.sha256(row["ID"].encode()).hexdigest(),
                session_id=f"ses-{session}",
                release="OASIS-1",
                sex=filled["M/F"],
                age_years=filled["Age"],
                educ_code=filled["Educ"],
                ses=filled["SES"],
                mmse=filled["MMSE"],
                cdr_global=filled["CDR"],
                icv_mm3=float(row["eTIV"]) * 1000,
                scan_day=filled["Delay"] or 0,
            )
        )
    return pd.DataFrame(rows)
