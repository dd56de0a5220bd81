"""Cutting volumes, voxel statistics, and the place of the finer box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.errors import ParameterError
from medalign3d.model.config import ModelConfig, locate_box
from medalign3d.model.sub_volumes import CubeProjection, SubVolumeEmbedding
from medalign3d.model.vision import FrozenVision, resolve_layers


def _config(**changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "volume_shape": (12, 18, 12), "pooling": 1, "cube": 6, "vision_checkpoint": "", "language_name": "",
        "language_checkpoint": "", **changes,
    }  # fmt: skip
    return ModelConfig(**values)  # type: ignore[arg-type]


def test_cutting_and_projecting_equals_a_strided_convolution() -> None:
    torch.manual_seed(0)
    part = CubeProjection((0, 0, 0), (12, 18, 12), 1, 6, 10, 0.02)
    volumes = torch.rand(2, 1, 12, 18, 12)
    convolution = torch.nn.Conv3d(1, 10, 6, stride=6)
    with torch.no_grad():
        convolution.weight.copy_(part.projection.weight.reshape(10, 1, 6, 6, 6))
        convolution.bias.copy_(part.projection.bias)
    expected = convolution(volumes).flatten(2).transpose(1, 2) + part.positions
    torch.testing.assert_close(part(volumes), expected, rtol=1e-4, atol=1e-5)


def test_pooling_averages_before_cutting() -> None:
    part = CubeProjection((0, 0, 0), (12, 12, 12), 2, 3, 4, 0.02)
    volumes = torch.rand(1, 1, 12, 12, 12)
    first_cube = part.cut(part.pool(volumes))[0, 0].reshape(3, 3, 3)
    assert float(first_cube[0, 0, 0]) == pytest.approx(float(volumes[0, 0, :2, :2, :2].mean()), abs=1e-6)
    assert float(first_cube[2, 1, 0]) == pytest.approx(float(volumes[0, 0, 4:6, 2:4, :2].mean()), abs=1e-6)


def test_tokens_and_their_positions() -> None:
    embedding = SubVolumeEmbedding(_config(position_init_sd=0.5), torch.ones(8))
    assert embedding.token_count == 1 + 2 * 3 * 2
    tokens = embedding(torch.zeros(3, 1, 12, 18, 12))
    assert tokens.shape == (3, 13, 8)
    assert 0.3 < float(embedding.coarse.positions.detach().std()) < 0.7
    names = {name for name, parameter in embedding.named_parameters() if parameter.requires_grad}
    assert names == {"class_position", "coarse.positions", "coarse.projection.weight", "coarse.projection.bias"}


def test_statistics_of_training_volumes_standardize() -> None:
    torch.manual_seed(1)
    embedding = SubVolumeEmbedding(_config(pooling=2, cube=3), torch.zeros(4))
    volumes = torch.rand(40, 1, 12, 18, 12)
    volumes[:, :, :2] = 0.0  # background never varies
    embedding.fit_statistics([volumes[:25], volumes[25:]])
    part = embedding.coarse
    standardized = (part.pool(volumes) - part.voxel_mean) * part.voxel_scale
    assert float(standardized.mean(0).abs().max()) < 1e-4
    assert float((standardized[:, 1:].std(0) - 1).abs().max()) < 0.05
    assert float(standardized[:, 0].abs().max()) == 0.0
    torch.testing.assert_close(part.voxel_mean, part.pool(volumes).mean(0), rtol=1e-4, atol=1e-5)


def test_a_volume_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ParameterError, match="whole cubes"):
        SubVolumeEmbedding(_config(cube=5), torch.zeros(4))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(12, 60)] * 3),
    st.floats(1.0, 4.0),
    st.sampled_from([(1, 6), (2, 3), (1, 4)]),
    st.tuples(*[st.tuples(st.floats(-60, 60), st.floats(1, 60))] * 3),
    st.booleans(),
)
def test_the_box_is_covered_wherever_it_lies_inside(
    shape: tuple[int, int, int],
    zoom: float,
    cut: tuple[int, int],
    ends: tuple[tuple[float, float], ...],
    flipped: bool,
) -> None:
    affine = np.diag([-zoom if flipped else zoom, zoom, zoom, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    box = [[centre - half, centre + half] for centre, half in ends]
    found = locate_box(box, affine, shape, *cut)
    step = cut[0] * cut[1]
    corners = np.array([[np.linalg.inv(affine) @ [x, y, z, 1] for x in box[0] for y in box[1] for z in box[2]]])
    low, high = corners.reshape(-1, 4).min(0) - 0.5, corners.reshape(-1, 4).max(0) + 0.5
    for axis in range(3):
        start, stop = found.start[axis], found.stop[axis]
        assert 0 <= start < stop <= shape[axis]
        assert (stop - start) % step == 0
        fits = stop - start >= high[axis] - low[axis]
        inside = low[axis] >= 0 and high[axis] <= shape[axis] - 1
        if fits and inside and (stop - start) + step <= shape[axis]:
            # Rounding to whole voxels may cut off at most one voxel's half on a side.
            assert start - 0.5 <= low[axis] + 1.0
            assert stop - 0.5 >= high[axis] - 1.0


def test_a_box_larger_than_the_grid_is_refused() -> None:
    with pytest.raises(ParameterError, match="no finer sub-volume fits"):
        locate_box([[0, 1]] * 3, np.eye(4), (5, 20, 20), 1, 6)


def test_feature_layers() -> None:
    assert resolve_layers([0, -1], 3) == (0, 3)
    assert resolve_layers([-2, 1], 4) == (3, 1)
    for wrong in ([], [4], [-5], [3, -1]):
        with pytest.raises(ParameterError):
            resolve_layers(wrong, 3)


def test_taps_are_combined_and_later_blocks_are_dropped() -> None:
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])
    tokens = torch.randn(2, 5, 4)
    norm = torch.nn.LayerNorm(4)
    last = FrozenVision(blocks, norm, [-1])
    assert last.tap_weights is None
    torch.testing.assert_close(last(tokens), norm(blocks[2](blocks[1](blocks[0](tokens)))))
    two = FrozenVision(blocks, norm, [0, 2])
    assert len(two.blocks) == 2
    mixed = 0.5 * tokens + 0.5 * blocks[1](blocks[0](tokens))
    torch.testing.assert_close(two(tokens), norm(mixed))
    only_input = FrozenVision(blocks, norm, [0])
    torch.testing.assert_close(only_input(tokens), norm(tokens))
