"""Is this a brain, and did it land in MNI space? The gate between registration and the store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d.volumes.bias import Tissue
from medalign3d.volumes.grids import Array, Matrix
from medalign3d.volumes.template import Template

WINDOW_MM = 7.0
"""Standard deviation of the window in which image and template are compared."""

INNER_MM = -3.0
"""Only what lies deeper than this under the template's surface is compared: an egg has a brain's outline alone."""


@dataclass(frozen=True)
class Quality:
    """What the gate looks at.

    Attributes
    ----------
    local_correlation
        Mean local correlation with the template inside the brain, 1 is identical.
    grey_white_contrast
        Distance of white from grey matter in units of their spread.
    fluid_level
        Intensity of fluid relative to white matter.
    scale, stretch
        Cube root of the transform's volume change, and its largest over its smallest axis.
    coverage
        Share of the template brain that lies within the image.
    overlap
        Dice overlap of the brain mask with the template's.
    brain_ml
        Volume of the brain mask in the head's own space, millilitres.
    """

    local_correlation: float
    grey_white_contrast: float
    fluid_level: float
    scale: float
    stretch: float
    coverage: float
    overlap: float
    brain_ml: float

    def as_dict(self) -> dict[str, float]:
        """The metrics by name."""
        return asdict(self)


@lru_cache(maxsize=4)
def _inner(template: Template) -> tuple[Array, Array, Array, Array]:
    """Weight, its window average, the template without its window mean, and the template's window variance."""
    weight = (template.distance < INNER_MM).astype(np.float32)
    sigma = WINDOW_MM / float(template.grid.zooms[0])
    smoothed = ndimage.gaussian_filter(weight, sigma, truncate=2.0, mode="constant") + np.float32(1e-4)
    blurred = ndimage.gaussian_filter(template.t1, 1.0)
    mean = ndimage.gaussian_filter(blurred * weight, sigma, truncate=2.0, mode="constant") / smoothed
    centred = (blurred - mean) * weight
    variance = ndimage.gaussian_filter(centred * centred, sigma, truncate=2.0, mode="constant") / smoothed
    return weight, smoothed, centred, variance


def local_correlation(image: Array, template: Template) -> float:
    """Mean local correlation of a registered image with the template, inside the brain.

    Covariance and variances are taken within a Gaussian window at every voxel; windows where the template is flat count
    little.
    """
    weight, smoothed, reference, other = _inner(template)
    sigma = WINDOW_MM / float(template.grid.zooms[0])

    def average(data: Array) -> Array:
        return ndimage.gaussian_filter(data, sigma, truncate=2.0, mode="constant") / smoothed

    centred = (image - average(image * weight)) * weight
    covariance = average(centred * reference)
    own = average(centred * centred)
    seen = weight > 0
    floor = 0.02 * float(own[seen].mean()) + 1e-12
    correlation = covariance[seen] / np.sqrt((own[seen] + floor) * (other[seen] + 1e-6))
    importance = np.sqrt(other[seen])
    return float((correlation * importance).sum() / importance.sum())


def measure(
    image: Array,
    template: Template,
    transform: Matrix,
    tissue: Tissue,
    mask: NDArray[np.bool_],
    coverage: float,
) -> Quality:
    """Take the metrics of a registered, drift-corrected image on ``template.grid``."""
    stretches = np.linalg.svd(transform[:3, :3], compute_uv=False)
    determinant = float(np.prod(stretches))
    brain = template.distance < 0
    voxel_ml = float(np.prod(template.grid.zooms)) / 1000.0
    levels = tissue.levels
    return Quality(
        local_correlation=local_correlation(image, template),
        grey_white_contrast=tissue.grey_white_contrast,
        fluid_level=float(levels[0] / levels[2]),
        scale=determinant ** (1 / 3),
        stretch=float(stretches[0] / stretches[2]),
        coverage=coverage,
        overlap=2.0 * float((mask & brain).sum()) / max(1.0, float(mask.sum() + brain.sum())),
        brain_ml=float(mask.sum()) * voxel_ml * determinant,
    )
