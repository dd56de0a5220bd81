"""Crude regional values, read off a normalized brain: how much fluid lies where Alzheimer's disease makes room for it.

These are not segmentations: each value is the share of fluid-like intensity within a fixed region of MNI space, after
affine registration. They follow true volumes well enough to rank people (large against small ventricles) and serve as
baselines and as the answer key of image questions on real data.

Left is the person's left (negative x in MNI space).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medalign3d.volumes import bias
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Array, Grid, Matrix
from medalign3d.volumes.template import Template

REGION_COLUMNS: tuple[str, ...] = (
    "region_hippocampus_left_csf",
    "region_hippocampus_right_csf",
    "region_medial_temporal_left_csf",
    "region_medial_temporal_right_csf",
    "region_ventricles_csf",
    "region_ventricles_left_csf",
    "region_ventricles_right_csf",
    "region_tissue",
    "region_csf",
)

# The axis of the hippocampus, head to tail, in MNI millimetres (right side; the left mirrors it).
_HIPPOCAMPUS_AXIS = np.array([[22.0, -8.0, -22.0], [27.0, -20.0, -16.0], [30.0, -31.0, -9.0], [24.0, -39.0, -2.0]])
_HIPPOCAMPUS_RADIUS_MM = 10.0
_MEDIAL_TEMPORAL_BOX = np.array([[12.0, 40.0], [-42.0, 4.0], [-34.0, 2.0]])
_VENTRICLE_BOX = np.array([[0.0, 32.0], [-48.0, 36.0], [-2.0, 32.0]])
_VENTRICLE_REACH_MM = 9.0


@dataclass(frozen=True, eq=False)
class _Regions:
    template: Template
    brain: Array
    weights: dict[str, Array]


def _distance_to_line(points: list[Array], line: NDArray[np.float64]) -> Array:
    """Distance of grid points to a polyline, millimetres."""
    best: Array | None = None
    for start, end in itertools.pairwise(line):
        direction = end - start
        length = float(direction @ direction)
        along = sum((points[a] - np.float32(start[a])) * np.float32(direction[a]) for a in range(3)) / np.float32(
            length
        )
        along = np.clip(along, 0.0, 1.0)
        square = sum((points[a] - np.float32(start[a]) - along * np.float32(direction[a])) ** 2 for a in range(3))
        distance = np.sqrt(square).astype(np.float32)
        best = distance if best is None else np.minimum(best, distance)
    assert best is not None
    return best


def _box(points: list[Array], limits: NDArray[np.float64], side: int, zoom: float) -> Array:
    """Soft membership of a box given for the right side; ``side`` is +1 (right) or -1 (left)."""
    out = np.float32(1.0)
    for axis in range(3):
        value = points[axis] * np.float32(side) if axis == 0 else points[axis]
        low, high = limits[axis]
        out = out * np.clip((value - low) / zoom + 0.5, 0, 1) * np.clip((high - value) / zoom + 0.5, 0, 1)
    return np.asarray(out, dtype=np.float32)


@lru_cache(maxsize=4)
def _regions(shape: tuple[int, int, int], affine: bytes) -> _Regions:
    grid = Grid(shape, np.frombuffer(affine, dtype=float).reshape(4, 4))
    template = mni.on_grid(grid)
    zoom = float(grid.zooms.mean())
    points = grid.coordinates()
    brain = (template.distance < -2.0).astype(np.float32)
    # Ventricles: deep fluid of the template near the midline, with room to grow.
    from scipy import ndimage

    weights: dict[str, Array] = {}
    for side, word in ((-1, "left"), (1, "right")):
        mirrored = _HIPPOCAMPUS_AXIS * np.array([side, 1.0, 1.0])
        near = np.clip((_HIPPOCAMPUS_RADIUS_MM - _distance_to_line(points, mirrored)) / zoom + 0.5, 0, 1)
        weights[f"hippocampus_{word}"] = (near * brain).astype(np.float32)
        weights[f"medial_temporal_{word}"] = _box(points, _MEDIAL_TEMPORAL_BOX, side, zoom) * brain
        box = _box(points, _VENTRICLE_BOX, side, zoom)
        deep = (template.csf > 0.35) & (box > 0.5) & (template.distance < -22.0)
        reach = np.clip((_VENTRICLE_REACH_MM - zoom * ndimage.distance_transform_edt(~deep)) / zoom + 0.5, 0, 1)
        weights[f"ventricles_{word}"] = (reach * box * brain).astype(np.float32)
    return _Regions(template, brain, weights)


def fluid_share(array: NDArray[np.uint8], affine: Matrix) -> Array:
    """Share of fluid in every voxel of a normalized brain, 0 (tissue) to 1 (fluid, or nothing).

    Intensities between the fitted levels of fluid and grey matter count in proportion.
    """
    shape = (int(array.shape[0]), int(array.shape[1]), int(array.shape[2]))
    prepared = _regions(shape, np.ascontiguousarray(affine, dtype=float).tobytes())
    values = array.astype(np.float32)
    tissue = bias.fit(values, prepared.template, correct=False)
    if tissue is None:
        return np.full(shape, np.float32(np.nan))
    fluid, grey, _ = tissue.levels
    if not grey > fluid:
        return np.full(shape, np.float32(np.nan))
    return np.clip((grey - values) / (grey - fluid), 0.0, 1.0).astype(np.float32)


def measure(array: NDArray[np.uint8], affine: Matrix) -> dict[str, float]:
    """Regional values of a normalized brain.

    Parameters
    ----------
    array
        uint8, zero outside the brain, on an axis-aligned MNI grid.
    affine
        Its voxel-to-millimetre affine.

    Returns
    -------
    dict
        One value per name in :data:`REGION_COLUMNS`: shares of fluid (``..._csf``) or of tissue within a region or the
        whole template brain, 0..1. NaN where intensities cannot be told apart.
    """
    shape = (int(array.shape[0]), int(array.shape[1]), int(array.shape[2]))
    prepared = _regions(shape, np.ascontiguousarray(affine, dtype=float).tobytes())
    fluid = fluid_share(array, affine)

    def mean(weight: Array) -> float:
        return float((fluid * weight).sum() / max(float(weight.sum()), 1e-6))

    out = {f"region_{name}_csf": mean(weight) for name, weight in prepared.weights.items()}
    out["region_ventricles_csf"] = mean(prepared.weights["ventricles_left"] + prepared.weights["ventricles_right"])
    out["region_csf"] = mean(prepared.brain)
    out["region_tissue"] = 1.0 - out["region_csf"]
    return {name: out[name] for name in REGION_COLUMNS}
