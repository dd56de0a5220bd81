"""Random changes of training volumes: exact, repeatable, each by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medalign3d.params import Augmentation, Optimization, Params
from medalign3d.training.augmentation import VolumeChanges, apply_changes, draw_changes

SHAPE = (10, 12, 14)
EVERYTHING = {
    "rotation_degrees": 10.0, "translation_mm": 4.0, "scaling": 0.1, "bias_field": 0.2, "gamma": 0.2, "noise": 0.05,
}  # fmt: skip


def _recipe(params: Params, spread: float = 0.0, **augmentation: float) -> Optimization:
    return params.pretrain.model_copy(
        update={"intensity_augmentation": spread, "augmentation": Augmentation(**augmentation)}
    )


def _seeds(count: int, step: int = 3) -> list[tuple[int, ...]]:
    return [(7, 31, step, slot) for slot in range(count)]


@pytest.fixture
def volumes() -> torch.Tensor:
    values = torch.randint(1, 256, (5, 1, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    values[:, :, :2] = 0
    return values


def test_without_parameters_only_the_range_changes(demo_params: Params, volumes: torch.Tensor) -> None:
    changes = draw_changes(_recipe(demo_params), _seeds(5), SHAPE, 2.0)
    assert changes == VolumeChanges()
    assert torch.equal(apply_changes(volumes, changes), volumes.float() / 255.0)


def test_whole_voxels_move_exactly(volumes: torch.Tensor) -> None:
    identity = torch.eye(3, 4).expand(5, 3, 4).clone()
    plain = volumes.float() / 255.0
    torch.testing.assert_close(apply_changes(volumes, VolumeChanges(affine=identity)), plain, atol=2e-4, rtol=0)
    moved = identity.clone()
    moved[:, :, 3] = torch.tensor([2.0, 0.0, -3.0])
    result = apply_changes(volumes, VolumeChanges(affine=moved))
    torch.testing.assert_close(result[:, :, :-2, :, 3:], plain[:, :, 2:, :, :-3], atol=2e-4, rtol=0)
    assert float(result[:, :, -2:].abs().max()) == 0


def test_a_quarter_turn_keeps_proportions_on_unequal_axes() -> None:
    volumes = torch.randint(1, 256, (1, 1, 6, 12, 6), dtype=torch.uint8)
    turn = torch.tensor([[[0.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]])
    result = apply_changes(volumes, VolumeChanges(affine=turn))
    # The voxel at (x, y) from the centre takes the value at (-y, x); only |y| < 3 lies within six voxels.
    middle = volumes[0, 0, :, 3:9].float() / 255.0
    torch.testing.assert_close(result[0, 0, :, 3:9], middle.flip(0).transpose(0, 1), atol=1e-4, rtol=0)
    assert float(result[0, 0, :, :3].abs().max()) < 1e-6


@pytest.mark.parametrize("name", [*EVERYTHING, "intensity"])
def test_each_change_works_alone_and_keeps_range_and_background(
    demo_params: Params, volumes: torch.Tensor, name: str
) -> None:
    recipe = _recipe(demo_params, 0.2) if name == "intensity" else _recipe(demo_params, **{name: EVERYTHING[name]})
    changes = draw_changes(recipe, _seeds(5), SHAPE, 2.0)
    result = apply_changes(volumes, changes)
    plain = volumes.float() / 255.0
    assert (result != plain).flatten(1).any(1).all()
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    if changes.affine is None:
        assert (result[volumes == 0] == 0).all()
        assert float((result - plain).abs().mean()) < 0.15


def test_a_sample_changes_alike_whoever_its_batch_mates_are(demo_params: Params, volumes: torch.Tensor) -> None:
    recipe = _recipe(demo_params, 0.1, **EVERYTHING)
    together = apply_changes(volumes, draw_changes(recipe, _seeds(5), SHAPE, 2.0))
    again = apply_changes(volumes[3:], draw_changes(recipe, _seeds(5)[3:], SHAPE, 2.0))
    assert torch.equal(together[3:], again)
    shared = apply_changes(volumes[[4, 1]], draw_changes(recipe, _seeds(5), SHAPE, 2.0).of([4, 1]))
    assert torch.equal(together[[4, 1]], shared)
    other = apply_changes(volumes, draw_changes(recipe, _seeds(5, step=4), SHAPE, 2.0))
    assert not torch.equal(together, other)


def test_one_parameter_does_not_change_what_the_others_draw(demo_params: Params) -> None:
    few: Any = draw_changes(_recipe(demo_params, 0.1, gamma=0.2), _seeds(4), SHAPE, 2.0)
    many: Any = draw_changes(_recipe(demo_params, 0.1, **EVERYTHING), _seeds(4), SHAPE, 2.0)
    assert torch.equal(few.gamma, many.gamma)
    assert torch.equal(few.gain, many.gain)
    assert few.noise is None
    # Rotations keep lengths, scaling stays within its limit.
    lengths = many.affine[:, :, :3].norm(dim=1)
    assert float(lengths.max()) <= 1.1 + 1e-5
    assert float(lengths.min()) >= 1 / 1.1 - 1e-5
    assert float(many.affine[:, :, 3].abs().max()) <= 2.0 + 1e-6
