"""A generated project folder for tests: five cohorts of ellipsoid brains whose fluid spaces follow a latent severity.

It has the tables that training and evaluation read (records, splits, volumes, answer key), and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from medalign3d import files
from medalign3d.ehr.splits import make_splits, write_splits
from medalign3d.params import Params, validate_params
from medalign3d.volumes import store

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (24, 36, 24)
COHORTS = {"ADNI": 3, "NACC": 3, "OASIS": 2, "AIBL": 3, "MIRIAD": 2}


def make_params(**changes: dict[str, Any]) -> Params:
    """The demo profile on a small grid; ``changes`` are merged section by section (nested dicts too)."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    base: dict[str, Any] = {
        "normalize": {"shape": list(SHAPE), "zooms_mm": 6.5},
        "model": {"sub_volumes": {"pooling": 1, "cube": 6}, "alignq": {"queries": 4, "contrastive_size": 16}},
        "split": {
            "benchmarks": {name: ({"per_class": 4} if "x" in name else {}) for name in values["split"]["benchmarks"]}
        },
        "pretrain": {"steps": 6, "batch_size": 8, "validate_every": 3},
        "tune": {"steps": 3, "batch_size": 8, "validate_every": 3},
        "training": {"workers": 1, "device": "cpu"},
        "evaluate": {"workers": 1, "batch_size": 16, "bootstrap_samples": 50},
        "vqa": {"items_per_question": 8},
    }

    def merge(target: dict[str, Any], source: dict[str, Any]) -> None:
        for key, value in source.items():
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                merge(target[key], value)
            else:
                target[key] = value

    merge(values, base)
    merge(values, changes)
    return validate_params(values)


def make_cross_validation_params(folds: int = 3, **changes: dict[str, Any]) -> Params:
    """One cohort, everybody labelled is tested once."""
    values = make_params(**changes).model_dump()
    values["cohorts"] = values["simulate"]["cohorts"] = ["OASIS"]
    values["split"] |= {
        "mode": "cross_validation",
        "folds": folds,
        "benchmarks": {"OASIS-2x": {"cohort": "OASIS", "question": "diagnosis_dem_nondem"}},
    }
    values["training"] |= {"runs": folds, "controls": ["blind", "shuffled"], "control_runs": folds}
    return validate_params(values)


def make_volume(severity: float, asymmetry: float, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A brain of tissue with ventricles and two hippocampal fluid spaces, uint8."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    brain = x**2 + y**2 + z**2 < 0.9
    volume = np.where(brain, 0.7, 0.0) + random.normal(0, 0.04, shape)
    size = 0.15 + 0.25 * severity
    volume[(x / size) ** 2 + (y / (1.6 * size)) ** 2 + (z / size) ** 2 < 1] = 0.15
    for side, sign in ((-1, 1), (1, -1)):
        fluid = np.clip(0.08 + 0.2 * severity + sign * asymmetry, 0.02, None)
        near = ((x - 0.5 * side) ** 2 + (y + 0.1) ** 2 + (z + 0.45) ** 2) < fluid**2
        volume[near] = 0.15
    return (np.clip(np.where(brain, volume, 0), 0, 1) * 255).astype(np.uint8)


def make_data(root: Path, params: Params, people: int = 30, seed: int = 0, simulated: bool = True) -> Path:
    """Write ``root/data`` with ``people`` per cohort, two images of every third person; returns ``root/data``."""
    random = np.random.default_rng(seed)
    rows, truths, indexes = [], {}, {}
    shape = tuple(params.normalize.shape)
    data = root / "data"
    for cohort in params.cohorts:
        classes = COHORTS.get(cohort, 2)
        truths[cohort], indexes[cohort] = [], []
        for person in range(people):
            level = person % classes
            severity = (0.15, 0.5, 0.85)[level] if classes == 3 else (0.15, 0.85)[level]
            cognition = severity + random.normal(0, 0.2)
            for scan in range(2 if person % 3 == 0 else 1):
                image_severity = float(np.clip(severity + random.normal(0, 0.12), 0, 1.2))
                asymmetry = float(random.normal(0, 0.04))
                image_id = f"{cohort.lower()}{person:03d}{scan}"
                array = make_volume(image_severity, asymmetry, random, shape)
                folder = data / "volumes" / cohort
                folder.mkdir(parents=True, exist_ok=True)
                path = store.write(folder, array)
                dx3 = ("NC", "MCI", "AD_DEM")[level] if classes == 3 else ("NC", "AD_DEM")[level]
                age = float(70 + 6 * severity + random.normal(0, 5))
                rows.append(
                    {
                        "image_id": image_id,
                        "dataset": cohort,
                        "person_id": f"sub-{cohort}{person:03d}",
                        "participant_id": f"sub-{cohort}{person:03d}",
                        "native_image_key": f"key-{image_id}",
                        "sex": "FM"[person // 3 % 2],
                        "age_years": age,
                        "educ_years": float(random.integers(8, 20)),
                        "educ_code": float(random.integers(1, 6)),
                        "ses": float(random.integers(1, 6)) if cohort == "OASIS" else np.nan,
                        "mmse": float(np.clip(np.round(29.5 - 11 * max(cognition, 0) ** 1.6), 0, 30)),
                        "mmse_source": "measured",
                        "lm_delayed": float(np.clip(np.round(14 - 13 * cognition), 0, 25)),
                        "lm_source": "measured",
                        "cdr_global": float(np.digitize(cognition, [0.33, 0.72]) * 0.5),
                        "cdr_global_source": "measured",
                        "dx3": dx3 if cohort != "OASIS" else None,
                        "dx2": "DEM" if dx3 == "AD_DEM" else "NonDEM",
                        "data_sha256": image_id,
                    }
                )
                sides = {"left": image_severity / 2 + asymmetry, "right": image_severity / 2 - asymmetry}
                truths[cohort].append(
                    {
                        "native_image_key": f"key-{image_id}",
                        "native_subject_id": str(person),
                        "ventricles_ml": 20 + 20 * image_severity,
                        "hippocampus_left_ml": 5.5 - 2 * sides["left"],
                        "hippocampus_right_ml": 5.5 - 2 * sides["right"],
                        "brain_ml": 1100.0 - 100 * image_severity,
                        "icv_ml": 1450.0 + random.normal(0, 50),
                        "age_years": age,
                        "sex": "FM"[person // 3 % 2],
                        "mmse": rows[-1]["mmse"],
                        "cdr_global": rows[-1]["cdr_global"],
                    }
                )
                indexes[cohort].append(
                    {
                        "image_id": image_id,
                        "path": path,
                        "sha256": image_id,
                        "verdict": "accepted",
                        "reason": None,
                        "region_ventricles_csf": 0.1 + 0.2 * image_severity + random.normal(0, 0.01),
                        "region_hippocampus_left_csf": 0.1 + 0.2 * sides["left"] + random.normal(0, 0.01),
                        "region_hippocampus_right_csf": 0.1 + 0.2 * sides["right"] + random.normal(0, 0.01),
                    }
                )
    metadata = {"simulated": str(simulated).lower()}
    images = pd.DataFrame(rows)
    files.write_parquet(data / "ehr" / "images.parquet", images, metadata)
    for cohort in params.cohorts:
        files.write_parquet(data / "volumes" / cohort / "index.parquet", pd.DataFrame(indexes[cohort]), metadata)
        if simulated:
            files.write_parquet(data / "truth" / cohort / "truth.parquet", pd.DataFrame(truths[cohort]), metadata)
    write_splits(make_splits(images, params), data / "splits", params)
    return data
