"""Tuning that leaves the sub-volumes alone and computes image features once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medalign3d.errors import ParameterError
from medalign3d.params import Params, validate_params
from medalign3d.training import runs


def test_a_tuned_run_keeps_its_sub_volumes(
    project: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project / "data", tmp_path / "data", ignore=shutil.ignore_patterns("models"))
    monkeypatch.chdir(tmp_path)
    values = params.model_dump()
    values["training"] |= {"runs": 1, "controls": []}
    values["tune"] |= {"freeze_image": True, "intensity_augmentation": 0.0}
    changed = validate_params(values)
    runs.run_pretrain(changed, "gpt2")
    runs.run_tune(changed, "gpt2")
    before = load_file("data/models/gpt2/frozen/run-0/model.safetensors")
    after = load_file("data/models/gpt2/lora/run-0/model.safetensors")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("sub_volumes.")} <= same
    assert {"alignq.queries", "language_projection.weight"} & same == set()
    assert not list(Path(".scratch/features").glob("*")), "kept features of a finished run are removed"


def test_kept_features_exclude_augmentation(params: Params) -> None:
    values = params.model_dump()
    values["tune"] |= {"freeze_image": True, "intensity_augmentation": 0.1}
    with pytest.raises(ParameterError, match=r"tune\.freeze_image"):
        validate_params(values)
    values["tune"] |= {"intensity_augmentation": 0.0}
    values["pretrain"]["freeze_image"] = True
    with pytest.raises(ParameterError, match=r"pretrain\.freeze_image"):
        validate_params(values)
