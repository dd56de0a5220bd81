"""Intensities of a normalized brain as one byte per voxel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medalign3d.errors import VolumeError
from medalign3d.volumes.grids import Array

LOWER_PERCENTILE, UPPER_PERCENTILE = 0.5, 99.5


def to_bytes(image: Array, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Scale a brain to 1..255 between robust percentiles; 0 outside ``mask``.

    Percentiles, not extremes: a single hot voxel (a vessel, a reconstruction spike) must not darken the brain.

    Raises
    ------
    VolumeError
        ``IMAGE_EMPTY`` when the mask is empty or the brain is constant.
    """
    values = image[mask]
    if values.size == 0:
        raise VolumeError("IMAGE_EMPTY", "no voxel of the image lies in the brain")
    low, high = (float(v) for v in np.percentile(values, [LOWER_PERCENTILE, UPPER_PERCENTILE]))
    if not high - low > 1e-6 * max(abs(high), abs(low), 1e-20):
        raise VolumeError("IMAGE_EMPTY", "the brain has one constant intensity", found=f"{low:g} to {high:g}")
    scaled = np.clip((image - np.float32(low)) * np.float32(254.0 / (high - low)), 0.0, 254.0) + np.float32(1.5)
    return np.where(mask, scaled, 0).astype(np.uint8)
