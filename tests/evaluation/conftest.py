"""Shared fixtures of evaluation tests: the generated project of the training tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

from generated_fixtures import in_project, params, project  # noqa: F401
