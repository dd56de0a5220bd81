"""Intensities of a normalized brain as one byte per voxel.

Scanners differ in gain, contrast and in what their brightest voxel is. So three tissues, not extremes, fix the scale:
fluid, grey and white matter of every head go to the same bytes (:data:`FLUID_BYTE`, :data:`GREY_BYTE`,
:data:`WHITE_BYTE`), with straight lines between and beyond them (Nyul and Udupa 1999 do so with percentiles, which move
with atrophy and with the mask). ``docs/performance.md`` has what that gains over percentiles and over min-max scaling.

References
----------
Nyul L.G., Udupa J.K. On standardizing the MR image intensity scale.
Magnetic Resonance in Medicine 42, 1072-1081 (1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medalign3d.errors import VolumeError
from medalign3d.volumes.bias import Tissue
from medalign3d.volumes.grids import Array
from medalign3d.volumes.template import Template

FLUID_BYTE, GREY_BYTE, WHITE_BYTE = 40, 130, 190
"""Bytes of ventricular fluid, cortical grey and white matter in every normalized brain; above white there is as much
room again as between grey and white, for vessels and enhanced tissue."""

LOWER_PERCENTILE, UPPER_PERCENTILE = 0.5, 99.5

_DEEP_MM = -25.0  # that far under the surface fluid is ventricle, and thick enough to have unmixed voxels
_FLUID_SHARE = 0.7
_FLUID_PERCENTILE = 20.0  # the darker part: after affine registration some of these voxels hold tissue


@dataclass(frozen=True)
class Anchors:
    """Intensities of fluid, grey and white matter in one (drift-corrected) image, ascending."""

    fluid: float
    grey: float
    white: float

    def __post_init__(self) -> None:
        if not self.fluid < self.grey < self.white < float("inf"):
            raise ValueError(f"anchors must ascend: {self.fluid:g}, {self.grey:g}, {self.white:g}")

    def straight(self) -> Anchors:
        """The same grey and white matter, with fluid where one straight line over all intensities puts its byte."""
        share = (GREY_BYTE - FLUID_BYTE) / (WHITE_BYTE - GREY_BYTE)
        return Anchors(self.grey - share * (self.white - self.grey), self.grey, self.white)


def anchors(head: Array, template: Template, tissue: Tissue) -> Anchors | None:
    """The anchors of a registered head.

    Parameters
    ----------
    head
        The registered, drift-corrected head on ``template.grid``.
    template
        The template on that grid.
    tissue
        Its fitted intensities; grey and white matter are taken from there. Fluid is read in the ventricles, because the
        fitted class of fluid holds many voxels that are partly tissue.

    Returns
    -------
    Anchors, or None when grey matter is not darker than white matter.
    """
    _, grey, white = (float(level) for level in tissue.levels)
    if not np.isfinite(white) or not grey < white:
        return None
    ventricles = head[(template.csf > _FLUID_SHARE) & (template.distance < _DEEP_MM)]
    fluid = float(np.percentile(ventricles, _FLUID_PERCENTILE)) if ventricles.size else float("inf")
    # Ventricles too narrow to hold one voxel of fluid: as dark as fluid is at least in any T1-weighted image.
    return Anchors(min(fluid, grey - 0.75 * (white - grey)), grey, white)


def to_bytes(image: Array, mask: NDArray[np.bool_], found: Anchors | None = None) -> NDArray[np.uint8]:
    """Scale a brain to 1..255; 0 outside ``mask``.

    Parameters
    ----------
    image
        The brain on the target grid, any positive gain and any offset.
    mask
        Boolean of the same shape: the brain.
    found
        The image's tissue intensities; without them robust percentiles are stretched to 1..255. In neither case does a
        hot voxel (a vessel, a reconstruction spike, fat) move the others: it is clipped.

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
    if found is None:
        scaled = (values - np.float32(low)) * np.float32(254.0 / (high - low)) + np.float32(1.0)
    else:
        dark = (GREY_BYTE - FLUID_BYTE) / (found.grey - found.fluid)
        light = (WHITE_BYTE - GREY_BYTE) / (found.white - found.grey)
        above = values - np.float32(found.grey)
        scaled = above * np.where(above > 0, np.float32(light), np.float32(dark)) + np.float32(GREY_BYTE)
    out = np.zeros(image.shape, np.uint8)
    out[mask] = (np.clip(scaled, 1.0, 255.0) + np.float32(0.5)).astype(np.uint8)
    return out
