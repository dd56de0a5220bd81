"""Cutting volumes, voxel statistics, and the place of the finer box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.errors import CheckpointError, ParameterError
from medalign3d.model.config import FineBoxConfig, ModelConfig, brain_sub_volumes, locate_box
from medalign3d.model.sub_volumes import CubeProjection, SubVolumeEmbedding, resample_state
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


def test_only_kept_sub_volumes_become_tokens() -> None:
    torch.manual_seed(0)
    kept = (1, 4, 11)
    whole, part = SubVolumeEmbedding(_config(), torch.ones(8)), SubVolumeEmbedding(_config(kept=kept), torch.ones(8))
    state = whole.state_dict()
    state["coarse.positions"] = state["coarse.positions"][list(kept)]
    part.load_state_dict(state)
    volumes = torch.rand(2, 1, 12, 18, 12)
    assert part.token_count == 4
    torch.testing.assert_close(part(volumes), whole(volumes)[:, [0, 2, 5, 12]])
    for wrong in ((), (3, 2), (0, 12), (0, 0)):
        with pytest.raises(ParameterError, match="kept sub-volumes"):
            SubVolumeEmbedding(_config(kept=wrong), torch.ones(8))


def test_sub_volumes_near_the_template_brain() -> None:
    from medalign3d.volumes.template import on_grid, target_grid

    distance = on_grid(target_grid([224, 224, 224], 1.0)).distance
    counts = {margin: len(brain_sub_volumes(distance, (224, 224, 224), 32, margin)) for margin in (0, 2, 12)}
    assert counts == {0: 128, 2: 135, 12: 186}, "of 343"
    (near,) = np.nonzero([index == 171 for index in brain_sub_volumes(distance, (224, 224, 224), 32, 0)])
    assert len(near) == 1, "the middle of the volume is brain"
    with pytest.raises(ParameterError, match="whole sub-volumes"):
        brain_sub_volumes(distance, (224, 224, 192), 32, 0)


def _state(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    embedding = SubVolumeEmbedding(config, torch.ones(8))
    embedding.fit_statistics([torch.rand(6, 1, *config.volume_shape)])
    return {f"sub_volumes.{name}": value.detach() for name, value in embedding.state_dict().items()}


def _load(config: ModelConfig, state: dict[str, torch.Tensor]) -> SubVolumeEmbedding:
    embedding = SubVolumeEmbedding(config, torch.ones(8))
    embedding.load_state_dict({name.removeprefix("sub_volumes."): value for name, value in state.items()})
    return embedding


def test_a_state_of_the_same_size_stays_as_it_is() -> None:
    config = _config(fine=FineBoxConfig((2, 2, 2), (8, 14, 8), 1, 3), kept=(0, 3, 4, 9))
    state = _state(config)
    again = resample_state(state, config, config)
    assert again.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)


def test_a_finer_volume_gives_the_same_tokens() -> None:
    """Voxels of half the size, cubes of twice as many: the same pieces of the head, the same tokens."""
    source, target = _config(), _config(volume_shape=(24, 36, 24), cube=12)
    state = {name: value for name, value in _state(source).items() if "voxel" not in name}
    state |= {"sub_volumes.coarse.voxel_mean": torch.zeros(12, 18, 12)}
    state |= {"sub_volumes.coarse.voxel_scale": torch.ones(12, 18, 12)}
    coarse, fine = _load(source, state), _load(target, resample_state(state, source, target))
    volumes = torch.rand(2, 1, 12, 18, 12)
    # Each cube is resized by itself, as the projection's resize has it.
    cubes = coarse.coarse.cut(volumes[:, 0]).reshape(2 * 12, 1, 6, 6, 6)
    larger = torch.nn.functional.interpolate(cubes, (12, 12, 12), mode="trilinear").reshape(2, 2, 3, 2, 12, 12, 12)
    larger = larger.permute(0, 1, 4, 2, 5, 3, 6).reshape(2, 1, 24, 36, 24)
    torch.testing.assert_close(fine(larger), coarse(volumes), rtol=1e-4, atol=1e-4)


def test_positions_are_interpolated_by_their_place() -> None:
    source, target = (
        _config(volume_shape=(24, 24, 24)),
        _config(volume_shape=(48, 48, 48), kept=tuple(range(0, 512, 3))),
    )
    state = _state(source)
    grid = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    state["sub_volumes.coarse.positions"] = torch.nn.functional.pad((grid + 0.5) / 4, (0, 5))
    found = resample_state(state, source, target)["sub_volumes.coarse.positions"][:, :3]
    places = torch.stack(torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)[::3]
    # A position that rises linearly through the head does so on the finer grid too; held at the outermost centres.
    torch.testing.assert_close(found, ((places + 0.5) / 8).clamp(0.125, 0.875))


def test_positions_of_sub_volumes_that_were_left_out_come_from_their_neighbours() -> None:
    source, target = _config(kept=(0, 1, 2)), _config()
    state = _state(source)
    state["sub_volumes.coarse.positions"] = torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 8)
    found = resample_state(state, source, target)["sub_volumes.coarse.positions"]
    assert found[:3, 0].tolist() == [1.0, 2.0, 3.0]
    assert found[3:, 0].tolist() == [2.0] * 9


def test_finer_sub_volumes_are_not_made_from_nothing() -> None:
    source, target = _config(), _config(fine=FineBoxConfig((2, 2, 2), (8, 14, 8), 1, 3))
    with pytest.raises(CheckpointError, match="from nothing"):
        resample_state(_state(source), source, target)
