"""Fixtures: a generated project folder with data and tiny backbones, made once per session and folder of tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from generated import make_data, make_params

from medalign3d.params import Params

TINY = {
    "vision": {"steps": 2, "hidden_size": 32, "layers": 1, "heads": 2, "image_size": 24, "patch_size": 8},
    "qformer": {"hidden_size": 32, "layers": 2, "heads": 2},
    "language": {"steps": 2, "sentences": 150, "hidden_size": 32, "layers": 1, "heads": 2, "batch_size": 8},
}


@pytest.fixture(scope="session")
def params() -> Params:
    return make_params(backbones=TINY, language_models=["gpt2"])


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A project folder with generated data and tiny backbones."""
    import numpy as np

    from medalign3d.model.backbones import make_language_checkpoint, make_vision_checkpoint
    from medalign3d.volumes import store

    root = tmp_path_factory.mktemp("project")
    data = make_data(root, params, people=24)
    volumes = [store.read(path) for path in sorted((data / "volumes" / "ADNI").glob("*.b2nd"))[:3]]
    slices = np.stack([volume[:, :, z] for volume in volumes for z in range(6, 18, 4)])
    make_vision_checkpoint(slices, params, data / "backbones" / "vision")
    make_language_checkpoint("gpt2", params, data / "backbones" / "gpt2")
    return root


@pytest.fixture
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run inside the generated project; the working folder is what relative checkpoint paths refer to."""
    monkeypatch.chdir(project)
    yield project
    assert os.getcwd() == str(project)
