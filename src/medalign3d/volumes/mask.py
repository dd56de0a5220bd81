"""The brain mask of a registered head: the template's brain, moved to where this head's tissue ends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d.volumes.bias import Tissue
from medalign3d.volumes.grids import Array
from medalign3d.volumes.template import Template

BASE_REACH_MM, REACH_MM, CROWN_REACH_MM = 3.5, 5.5, 8.0
"""How far outside the template's brain a head's brain may reach after affine registration: farther at the crown, where
people differ most, less at the base, where vessels, marrow and eye muscles touch the brain."""

CORE_MM = 9.0
"""Deeper than this under the template's surface everything is brain (ventricles included)."""

_FACES = ndimage.generate_binary_structure(3, 1)
_EDGES = ndimage.generate_binary_structure(3, 2)
Mask = NDArray[np.bool_]


def _grow(mask: Mask, steps: int, *, within: Mask | None = None) -> Mask:
    """Dilate by ``steps`` voxels; alternating neighbourhoods make the result nearly round."""
    for step in range(steps):
        mask = ndimage.binary_dilation(mask, _FACES if step % 2 == 0 else _EDGES, mask=within)
    return mask


def _shrink(mask: Mask, steps: int) -> Mask:
    """Erode by ``steps`` voxels; beyond the array's edge counts as inside."""
    for step in range(steps):
        mask = ndimage.binary_erosion(mask, _FACES if step % 2 == 0 else _EDGES, border_value=1)
    return mask


def largest_component(mask: Mask, seed: Mask) -> Mask:
    """The connected component of ``mask`` that shares most voxels with ``seed``; all False when none does."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros_like(mask)
    sizes = np.bincount(labels[seed & mask], minlength=count + 1)
    sizes[0] = 0
    return labels == int(sizes.argmax()) if sizes.max() > 0 else np.zeros_like(mask)


def brain_mask(image: Array, template: Template, tissue: Tissue) -> Mask:
    """Find the brain.

    Parameters
    ----------
    image
        The registered, drift-corrected head on ``template.grid``.
    template
        The template on that grid (cubic voxels of 2-4 mm).
    tissue
        Its fitted intensities.

    Returns
    -------
    Boolean array of the grid's shape.
    """
    zoom = float(template.grid.zooms[0])
    height = template.grid.coordinates()[2]
    reach = REACH_MM + (CROWN_REACH_MM - REACH_MM) * np.clip((height - 50.0) / 20.0, 0.0, 1.0)
    reach = reach - (REACH_MM - BASE_REACH_MM) * np.clip((-5.0 - height) / 15.0, 0.0, 1.0)
    near = template.distance < reach
    fluid, grey, white = tissue.levels
    # Tissue is brighter than the middle between fluid and grey matter and not as bright as fat.
    lower = max(min(0.5 * (fluid + grey), 0.8 * grey), 0.55 * grey)
    # Near the surface what is brighter than white matter is fat, marrow or a vessel.
    bright = image > np.where(template.distance > -4.0, 1.15 * white, 1.5 * white)
    solid = (image > lower) & ~bright & near
    deep = template.distance < -CORE_MM
    # Thin bridges (dura, vessels, optic nerves) break when the tissue is eroded; what hangs on them is then left out.
    steps = max(1, round(3.0 / zoom))
    eroded = _shrink(solid | deep, steps)
    heart = largest_component(eroded, deep)
    tissue_mask = _grow(heart, steps + 1, within=solid | deep)
    # Close the furrows (they belong to the brain) and the ventricles.
    closing = max(2, round(7.0 / zoom))
    padded = np.pad(tissue_mask, closing)
    closed = _shrink(_grow(padded, closing), closing)[tuple(slice(closing, -closing) for _ in range(3))]
    closed = closed & near & ~(bright & (template.distance > -4.0))
    smooth = ndimage.gaussian_filter(closed.astype(np.float32), 0.8, truncate=3.0) > 0.5
    return largest_component(smooth | (closed & deep), deep)
