"""Tiny backbones and composite models, made once per session."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from model_examples import ANSWERS, CANDIDATES, QUESTIONS, TEXTS

from medalign3d.model.backbones import LANGUAGE_KINDS, make_language_checkpoint, make_vision_checkpoint
from medalign3d.model.composite import MedAlign3D
from medalign3d.model.config import ModelConfig
from medalign3d.params import Params, validate_params

torch.set_num_threads(1)

Build = Callable[..., MedAlign3D]


@pytest.fixture(scope="session")
def tiny_params(demo_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """Parameters of a model that takes milliseconds, its backbones in a temporary folder."""
    folder = tmp_path_factory.mktemp("backbones")
    values = demo_params.model_dump()
    values["normalize"]["shape"] = [24, 24, 24]
    backbones = values["backbones"]
    backbones["vision"].update(hidden_size=32, layers=2, heads=2, steps=3, batch_size=8, image_size=24, patch_size=8)
    backbones["qformer"].update(hidden_size=32, layers=2, heads=2)
    backbones["language"].update(hidden_size=32, layers=2, heads=2, steps=25, batch_size=16, sentences=400)
    model = values["model"]
    model["sub_volumes"].update(pooling=2, cube=6)
    model["alignq"].update(queries=4, contrastive_size=16)
    model["vision"]["checkpoint"] = str(folder / "vision")
    for name in LANGUAGE_KINDS:
        model["language"]["models"][name]["checkpoint"] = str(folder / name)
    params = validate_params(values)
    slices = np.random.default_rng(0).integers(0, 255, (40, 24, 30), dtype=np.uint8)
    make_vision_checkpoint(slices, params, folder / "vision")
    for name in LANGUAGE_KINDS:
        make_language_checkpoint(name, params, folder / name)
    return params


@pytest.fixture(params=LANGUAGE_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each family of language models."""
    return str(request.param)


@pytest.fixture(scope="session")
def build(tiny_params: Params) -> Build:
    """Make a fresh tiny model: ``build(kind, seed=1, text_branch="full", ...)``."""

    def make(kind: str, seed: int = 1, **changes: object) -> MedAlign3D:
        config = dataclasses.replace(ModelConfig.from_params(tiny_params, kind), **changes)  # type: ignore[arg-type]
        return MedAlign3D.from_checkpoints(config, seed)

    return make


@pytest.fixture
def volumes() -> torch.Tensor:
    """Five random volumes of coarse structure."""
    coarse = torch.rand(5, 1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, (24, 24, 24))


@pytest.fixture
def batch(volumes: torch.Tensor) -> tuple[torch.Tensor, list[str], list[str], list[str]]:
    """Volumes, texts, questions, answers."""
    return volumes, list(TEXTS), list(QUESTIONS), list(ANSWERS)


@pytest.fixture
def candidates() -> list[list[str]]:
    """Candidate answers of the batch, of different numbers."""
    return [list(group) for group in CANDIDATES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for a saved model."""
    return tmp_path / "model"
