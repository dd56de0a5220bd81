"""Synthetic heads for the tests: the packaged MNI brain in a skull and a scalp, posed and lit as a test asks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medalign3d.volumes import register
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Grid, resample
from medalign3d.volumes.read import Volume

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("MEDALIGN3D_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


def real(*parts: str) -> Path:
    """A path below the real data; skips the test where it is absent."""
    path = REAL_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real data: {'/'.join(parts)} (set MEDALIGN3D_REAL_DATA)")
    return path


@dataclass
class Head:
    """A synthetic head and how it was posed (MNI millimetres -> scanner millimetres)."""

    volume: Volume
    pose: NDArray[np.float64]


def posed(
    rotation: tuple[float, float, float], shift: tuple[float, float, float], scale: float = 0.92
) -> NDArray[np.float64]:
    """A pose of a head: degrees about x, y, z, millimetres, and its size against the template's."""
    pose = np.eye(4)
    pose[:3, :3] = register.rotation(*rotation) * scale
    pose[:3, 3] = shift
    return pose


def make_head(
    pose: NDArray[np.float64] | None = None,
    *,
    zoom: float = 2.0,
    shape: tuple[int, int, int] = (96, 110, 96),
    drift: float = 0.0,
    noise: float = 0.0,
    scalp: bool = True,
    axes: str = "RAS",
    seed: int = 0,
    t1: NDArray[np.float32] | None = None,
) -> Head:
    """A head on a grid of ``shape`` voxels of ``zoom`` mm centred on the scanner's origin.

    ``t1`` stands in for the template's T1 on ``mni.at_zoom(2.0, 24.0)``.
    """
    import nibabel

    template = mni.at_zoom(2.0, 24.0)
    image = (template.t1 if t1 is None else t1) * 1000.0
    if scalp:
        image = image + 900.0 * ((template.distance > 9.0) & (template.distance < 15.0))
        image = image + 120.0 * ((template.brain < 0.5) & (template.distance < 4.0))
    pose = np.eye(4) if pose is None else pose
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = -zoom * (np.array(shape) - 1) / 2 + np.array([0.0, -17.0, 10.0])
    grid = Grid(shape, affine)
    data = resample(image.astype(np.float32), template.grid.affine, grid, np.linalg.inv(pose))
    x, y, z = grid.coordinates()
    data = data * np.exp(np.float32(drift) * (x / 80 + 0.5 * (y / 90) * (z / 80)))
    if noise:
        data = np.abs(data + np.random.default_rng(seed).normal(0, noise, shape)).astype(np.float32)
    picture = nibabel.Nifti1Image(data.astype(np.float32), affine)
    turned = picture.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(axes))
        )
    )
    volume = Volume(np.asarray(turned.dataobj, dtype=np.float32), turned.affine, "header", "nifti", "float32")
    return Head(volume, pose)
