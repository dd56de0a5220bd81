"""Shared fixtures: quiet third parties, the project's folder, parameters, and real data where a developer has them."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from medalign3d import quiet
from medalign3d.params import Params

quiet.apply()

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's folder."""
    return PROJECT


@pytest.fixture(scope="session")
def demo_params() -> Params:
    """The parameters of the demo profile, whatever profile is active in this workspace."""
    from medalign3d.profiles import build_profile

    return build_profile("demo", project=PROJECT)[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans and tables; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MEDALIGN3D_REAL_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set MEDALIGN3D_REAL_DATA to run this test")
    return folder


@pytest.fixture
def params_text() -> str:
    """The text of the demo's params.yaml."""
    from medalign3d.profiles import build_profile

    return build_profile("demo", project=PROJECT)[0]
