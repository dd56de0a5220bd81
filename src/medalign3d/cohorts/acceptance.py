"""The rules by which an image is accepted: its affine, its grid, its values (see :mod:`medalign3d.cohorts.stored`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.errors import VolumeError

MINIMUM_AXIS = 60  # voxels
MINIMUM_ZOOM, MAXIMUM_ZOOM = 0.4, 2.0  # millimetres
ZOOM_TOLERANCE = 1e-3
CREDIBLE_ZOOM = 0.05, 50.0  # millimetres; beyond them the unit is another one
MINIMUM_SQUARENESS = 0.7  # volume of a voxel over that of a box with its edges; a gantry tilt of 30 degrees has 0.87
MAXIMUM_ORIGIN = 1e5  # millimetres


def voxel_sizes(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel sizes in millimetres."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def check_affine(affine: npt.NDArray[np.float64], header_zooms: Sequence[float] | None) -> None:
    """Refuse an affine that cannot be how a head was scanned.

    Raises
    ------
    VolumeError
        ``IMAGE_BAD_AFFINE``.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise VolumeError(QuarantineReason.IMAGE_BAD_AFFINE, "an affine is not a finite 4x4 matrix")
    rotation = affine[:3, :3]
    sizes = np.sqrt((rotation**2).sum(axis=0))
    volume = abs(float(np.linalg.det(rotation)))
    if sizes.min() < 1e-9 or volume < 1e-3 * float(np.prod(sizes)):
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE, "an affine cannot be inverted", found=f"determinant {volume:.3g}"
        )
    if sizes.min() < CREDIBLE_ZOOM[0] or sizes.max() > CREDIBLE_ZOOM[1]:
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "voxel sizes are not given in millimetres",
            found=" x ".join(f"{size:.4g}" for size in sizes),
            expected=f"{MINIMUM_ZOOM}-{MAXIMUM_ZOOM}",
            remedy="write the image anew with millimetres in its header",
        )
    if volume < MINIMUM_SQUARENESS * float(np.prod(sizes)):
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "an affine is sheared",
            found=f"axes that keep {volume / float(np.prod(sizes)):.0%} of a box's volume",
            expected=f"at least {MINIMUM_SQUARENESS:.0%}",
        )
    if np.abs(affine[:3, 3]).max() > MAXIMUM_ORIGIN:
        raise VolumeError(QuarantineReason.IMAGE_BAD_AFFINE, "an affine is out of proportion", found="its origin")
    if header_zooms is None:
        return
    # Flipped or reordered axes of exactly 1 mm are the same mistake as the identity.
    unit_axes = np.isin(np.abs(rotation), (0.0, 1.0)).all() and np.allclose(sizes, 1.0)
    zooms = [abs(float(zoom)) for zoom in header_zooms]
    if unit_axes and not max(abs(zoom - 1.0) for zoom in zooms) <= 0.01:
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "an affine is the identity although voxels are not 1 mm",
            found=" x ".join(f"{zoom:.4g}" for zoom in zooms),
        )


def check_geometry(
    shape: Sequence[int], affine: npt.NDArray[np.float64], header_zooms: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Refuse grids that cannot be a head scan; reads no voxels.

    Parameters
    ----------
    shape
        Three axes.
    affine
        4x4, voxel index to millimetres.
    header_zooms
        Voxel sizes of the header, where they stand apart from the affine.

    Returns
    -------
    tuple
        Voxel sizes in millimetres.

    Raises
    ------
    VolumeError
        ``IMAGE_BAD_AFFINE`` (singular, strongly sheared, not in millimetres, the identity of a header that was never
        filled in), ``IMAGE_NOT_3D`` (one slice), ``IMAGE_TOO_THICK`` (an axis under 60 voxels, or a voxel size
        outside 0.4-2.0 mm).
    """
    affine = np.asarray(affine, dtype=float)
    check_affine(affine, header_zooms)
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if min(shape) == 1:
        raise VolumeError(
            QuarantineReason.IMAGE_NOT_3D, "an image is a single slice", found=f"shape {tuple(int(n) for n in shape)}"
        )
    if sizes.max() > MAXIMUM_ZOOM + ZOOM_TOLERANCE or sizes.min() < MINIMUM_ZOOM - ZOOM_TOLERANCE:
        raise VolumeError(
            QuarantineReason.IMAGE_TOO_THICK,
            "a voxel size is out of range",
            found=" x ".join(f"{size:.3g}" for size in sizes) + " mm",
            expected=f"{MINIMUM_ZOOM}-{MAXIMUM_ZOOM} mm",
        )
    if min(shape) < MINIMUM_AXIS:
        raise VolumeError(
            QuarantineReason.IMAGE_TOO_THICK,
            "an axis has too few voxels",
            found=f"shape {tuple(int(n) for n in shape)}",
            expected=f"at least {MINIMUM_AXIS} voxels along every axis",
        )
    return voxel_sizes(affine)


def check_values(
    array: npt.NDArray[Any],
    slope: float | npt.NDArray[np.float32] = 1.0,
    intercept: float | npt.NDArray[np.float32] = 0.0,
) -> None:
    """Refuse voxels that hold no picture.

    Parameters
    ----------
    array
        Any shape; (X, Y, Z) with one slope for each of Z slices.
    slope, intercept
        ``slope * voxel + intercept`` is the value.

    Raises
    ------
    VolumeError
        ``IMAGE_EMPTY``.
    """
    axes = None if isinstance(slope, float) else (0, 1)
    lows, highs = (np.asarray(end(axis=axes), dtype=float) for end in (array.min, array.max))
    low, high = float(lows.min()), float(highs.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "voxels are not finite numbers")
    if low == high:
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "all voxels are equal")
    with np.errstate(over="ignore"):
        ends = np.stack([lows * slope + intercept, highs * slope + intercept]).astype(np.float32)
    if not np.isfinite(ends).all():
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "voxels are too large for numbers of 32 bits")
    if ends.min() == ends.max():
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "all voxels are equal once they are scaled")
