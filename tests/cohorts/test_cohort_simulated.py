"""Reading a simulated native tree returns exactly the answer key of its planted faults, and the true labels."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohort_trees import reasons, run

from medalign3d.files import read_json
from medalign3d.params import Params
from medalign3d.simulate import LAYOUTS, anatomy, images, simulate_cohort


class NoAnatomy:
    """A renderer that draws noise on the right grid: reading tables and headers needs no anatomy."""

    def __init__(self) -> None:
        self.count = itertools.count()

    def render(self, _anatomy: Any, scan: Any) -> anatomy.Rendered:
        shape, affine = anatomy._scanner_grid(scan)
        data = np.zeros(shape, np.int16)
        data[shape[0] // 2] = np.random.default_rng(next(self.count)).integers(1, 500, size=shape[1:])
        truth = {"ventricles_ml": 30.0, "hippocampus_left_ml": 3.5, "hippocampus_right_ml": 3.5, "brain_ml": 1150.0,
                 "icv_ml": 1500.0, "white_matter_hypointensities_ml": 3.0}  # fmt: skip
        return anatomy.Rendered(data, affine, truth)


@pytest.mark.parametrize("faults", [True, False], ids=["faults", "clean"])
@pytest.mark.parametrize("cohort", sorted(LAYOUTS))
def test_ingest_returns_exactly_the_answer_key(
    tmp_path: Path, demo_params: Params, monkeypatch: pytest.MonkeyPatch, cohort: str, faults: bool
) -> None:
    renderer = NoAnatomy()
    monkeypatch.setattr(images, "renderer_of", lambda _folder: renderer)
    changes = {"faults": faults, "workers": 1, "dicom_fraction": 0.1, "zooms_mm": 2.0}
    section = demo_params.simulate.model_copy(
        update={**changes, "participants": dict.fromkeys(demo_params.simulate.participants, 8)}
    )
    simulated = demo_params.model_copy(update={"simulate": section})
    simulate_cohort(cohort, simulated, tmp_path / "raw", tmp_path / "truth", template=tmp_path)  # type: ignore[arg-type]

    result = run(cohort, tmp_path / "raw")
    key = Counter(
        (fault["reason"], fault["severity"], json.dumps(fault["key"], sort_keys=True))
        for fault in read_json(tmp_path / "truth" / "faults.json")
        if fault["stage"] == "ingest"
    )
    assert reasons(result) == key
    truth = pd.read_parquet(tmp_path / "truth" / "truth.parquet")
    joined = result.images.merge(truth, on="native_image_key", suffixes=("", "_true"), how="left")
    assert (joined["native_subject_id"] == joined["native_subject_id_true"]).all()
    assert (joined["sex"] == joined["sex_true"]).all()
    if not faults:
        words = {"HC": "NC"}
        assert (joined["dx_native"].fillna("").replace(words) == joined["dx"].fillna("").replace(words)).all()
        assert (joined["age_years"] - joined["age_years_true"]).abs().max() <= 1.0
