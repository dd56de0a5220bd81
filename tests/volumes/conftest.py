"""Fixtures of the tests of :mod:`medalign3d.volumes`."""

from __future__ import annotations

import pytest

from medalign3d.params import Normalize, Params


@pytest.fixture(scope="session")
def params(demo_params: Params) -> Normalize:
    """The demo's parameters, without the slow fallback and with one worker."""
    return demo_params.normalize.model_copy(update={"fallback": "none", "workers": 1})
