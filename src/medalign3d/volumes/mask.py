"""The brain mask of a registered head: its own tissue and the fluid around it.

Tissue ends where the image says so. The fluid between tissue and skull is as dark as the skull, so the image does not
say where the brain's cavity ends; but the mask should hold it, as the masks of stripped public images do, because
atrophy is seen in it. The outline is therefore laid where a weighted mean of two distances, to the head's own
tissue and to the template's brain, reaches a fixed value.
"""

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

OWN_SHARE = 0.6
"""Weight of the distance to the head's own tissue in the outline; the rest is that to the template's brain."""

RIM_MM, CROWN_RIM_MM = 2.75, 3.75
"""Where the outline lies outside both: farther at the crown, where fluid gathers."""

RIM_BRIGHT = 1.25
"""Beyond the tissue, what is brighter than white matter by this factor is fat, marrow or an eye's muscle."""

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
    """Find the brain with the fluid around it.

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
    own = tissue_mask(image, template, tissue)
    if not own.any():
        return own
    # Distances are needed near the brain only.
    reach = template.distance < CROWN_REACH_MM + 4.0
    box = tuple(
        slice(int(places.min()), int(places.max()) + 1)
        for places in (np.flatnonzero(reach.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    )
    inner = own[box]
    distance = _signed_distance(inner, template.grid.zooms)
    height = template.grid.coordinates()[2][:, :, box[2]]
    rim = RIM_MM + (CROWN_RIM_MM - RIM_MM) * np.clip((height - 20.0) / 30.0, 0.0, 1.0)
    grown = OWN_SHARE * distance + (1.0 - OWN_SHARE) * template.distance[box] < rim
    grown &= (distance <= 0) | (image[box] <= RIM_BRIGHT * tissue.levels[2])
    smooth = (ndimage.gaussian_filter(grown.astype(np.float32), 0.8, truncate=3.0) > 0.5) | inner
    found = np.zeros_like(own)
    found[box] = largest_component(smooth, inner)
    return found


def _signed_distance(mask: Mask, zooms: NDArray[np.float64]) -> Array:
    """Distance to the mask's outline in millimetres, negative inside; float32."""
    sampling = [float(z) for z in zooms]
    outside = ndimage.distance_transform_edt(~mask, sampling)
    inside = ndimage.distance_transform_edt(mask, sampling)
    return np.asarray(outside - inside, dtype=np.float32)


def tissue_mask(image: Array, template: Template, tissue: Tissue) -> Mask:
    """Find the brain's tissue, its furrows and ventricles; parameters and result as of :func:`brain_mask`."""
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
