"""Resampling from the scanned to the target grid: once, in the right place, averaged, without new structure."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Grid, resample
from medalign3d.volumes.register import rotation


def _grid(count: int, zoom: float, shift: float = 0.0) -> Grid:
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = shift - zoom * (count - 1) / 2
    return Grid((count, count, count), affine)


def _moments(image: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and standard deviation (mm) of what is bright."""
    weight = image / image.sum()
    centre = np.array([float((weight * line).sum()) for line in grid.coordinates()])
    spread = [float((weight * (line - c) ** 2).sum()) for line, c in zip(grid.coordinates(), centre, strict=True)]
    return centre, np.sqrt(spread)


@pytest.mark.parametrize(("source_mm", "target_mm"), [(0.7, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 3.25), (0.7, 3.25)])
def test_point_spread_is_that_of_one_interpolation(source_mm: float, target_mm: float) -> None:
    """A small blob keeps its place, and is widened by one linear interpolation and one voxel's average, not more."""
    source = _grid(round(56 / source_mm), source_mm)
    x, y, z = source.coordinates()
    true_centre, true_spread = np.array([1.3, -2.1, 0.4]), 3.0
    blob = np.exp(-((x - 1.3) ** 2 + (y + 2.1) ** 2 + (z - 0.4) ** 2) / (2 * true_spread**2)).astype(np.float32)
    target = _grid(round(44 / target_mm), target_mm, shift=0.37)
    where = np.ones(target.shape, bool)
    where[0] = False  # the path that the last step of normalization takes
    for found in (
        mni.sample_averaged(blob, source.affine, target, np.eye(4)),
        mni.sample_averaged(blob, source.affine, target, np.eye(4), where=where),
    ):
        centre, spread = _moments(found, target)
        assert np.abs(centre - true_centre).max() < 0.05
        # variances add: linear interpolation has at most a sixth of a source voxel squared per axis on average ...
        # ... and an average over one target voxel a twelfth of it squared
        most = true_spread**2 + source_mm**2 / 6 + (target_mm**2 / 12 if target_mm > 1.5 * source_mm else 0.0)
        assert true_spread**2 - 0.15 < spread[0] ** 2 < most + 0.15
        # two interpolations would show as a second sixth
        assert (spread**2).mean() < most + 0.15


@pytest.mark.parametrize("target_mm", [2.0, 3.25])
def test_fine_stripes_are_averaged_not_folded(target_mm: float) -> None:
    """Stripes finer than a target voxel vanish; picking single voxels would turn them into coarse waves."""
    source = _grid(80, 1.0)
    wave = np.cos(2 * np.pi * source.coordinates()[0] / 2.2)
    stripes = np.broadcast_to(1.0 + wave, source.shape).astype(np.float32)
    target = _grid(round(60 / target_mm), target_mm, shift=0.2)
    inner = (slice(3, -3),) * 3
    averaged = mni.sample_averaged(stripes, source.affine, target, np.eye(4))[inner]
    picked = resample(stripes, source.affine, target, order=0)[inner]
    assert float(averaged.std()) < 0.3 * float(picked.std())
    assert float(averaged.mean()) == pytest.approx(1.0, abs=0.02)


def test_both_ways_of_sampling_agree_under_a_pose() -> None:
    source = _grid(40, 1.0)
    data = np.random.default_rng(0).random(source.shape).astype(np.float32)
    target = _grid(11, 2.2)
    pose = np.eye(4)
    pose[:3, :3] = rotation(12, -7, 20) * 0.93
    pose[:3, 3] = (1.0, -2.0, 0.5)
    where = np.zeros(target.shape, bool)
    where[2:-2, 2:-2, 2:-2] = True
    whole = mni.sample_averaged(data, source.affine, target, pose)
    part = mni.sample_averaged(data, source.affine, target, pose, where=where)
    assert np.abs(whole - part)[where].max() < 1e-4
    assert not part[~where].any()


@pytest.mark.parametrize("target_mm", [1.0, 2.0, 3.25])
def test_a_mask_keeps_its_volume_on_the_target_grid(target_mm: float) -> None:
    """A voxel belongs to the brain when half of it does: volume is kept whatever the grid."""
    work = _grid(60, 2.0)
    x, y, z = work.coordinates()
    ball = ((x / 45) ** 2 + (y / 50) ** 2 + (z / 40) ** 2 < 1).astype(np.float32)
    target = _grid(round(118 / target_mm), target_mm, shift=0.3)
    found = resample(ball, work.affine, target) > 0.5
    assert found.sum() * target_mm**3 == pytest.approx(ball.sum() * 8.0, rel=0.015)
