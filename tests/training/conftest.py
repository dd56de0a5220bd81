"""Shared fixtures of training tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generated_fixtures import in_project, params, project  # noqa: F401
