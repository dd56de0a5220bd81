"""Regional volumes in millilitres: lateral ventricles, each hippocampus, brain tissue and the intracranial space.

One method for whole heads and for brains that come stripped and in MNI space. Region maps of the template are carried
to the head and meet the head's own intensities there:

1. After the affine registration a smooth displacement is fitted, over the brain at 4 mm, then around ventricles and
   medial temporal lobes at 2 mm. Each step solves, at every voxel, for the shift that best explains the difference of
   the two locally normalised images within a Gaussian window (Lucas and Kanade), and is composed with the displacement
   so far.
2. A template voxel stands for its volume times the displacement's Jacobian times the affine's determinant.
   Ventricles: this, times the share of fluid, summed around the template's ventricles. Hippocampi: this, times the
   share of tissue, summed over the template's hippocampus. So an edge that the displacement missed by a millimetre is
   still counted on the right side.
3. Brain: the mask times the share of tissue. Intracranial space: the mask and the fluid around it, up to the bone. The
   determinant alone is too small: a head's tissue ends where its outer fluid begins, the template's where it is cut.

No constant was fitted to people or to simulated heads, but one: the level below which the rim around the brain counts
as bone was chosen of three on real heads against another method. Regions come from the template and from anatomy.

Left is the person's left (negative x in MNI space).

What it is not: a labelling of voxels. The intracranial volume is as good as the brain mask; it is unknown for brains
that were brought to MNI space before they came here, and their other volumes are millilitres of MNI space.

References
----------
Lucas B., Kanade T. An iterative image registration technique with an application to stereo vision. IJCAI (1981).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d.volumes import bias
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Array, Grid, Matrix, axis_aligned_grid, reduce_to, resample
from medalign3d.volumes.template import Template

VOLUME_COLUMNS: tuple[str, ...] = (
    "ventricles_ml",
    "hippocampus_left_ml",
    "hippocampus_right_ml",
    "brain_tissue_ml",
    "icv_ml",
)
"""Millilitres of the person's own head (of MNI space where the head's size is lost)."""

FRACTION_COLUMNS: tuple[str, ...] = (
    "region_ventricles_fraction",
    "region_hippocampus_left_fraction",
    "region_hippocampus_right_fraction",
    "region_brain_tissue_fraction",
)
"""Shares of the template's intracranial volume as registered; known whether or not the head's size is."""

COARSE_MM, FINE_MM = 4.0, 2.0
FINE_BOX_MM = np.array([[-50.0, 50.0], [-66.0, 46.0], [-40.0, 44.0]])
"""What is refined at 2 mm: the lateral ventricles and the medial temporal lobes, with room around them."""

COARSE_WINDOWS_MM, FINE_WINDOWS_MM = (12.0, 8.0, 6.0), (6.0, 4.0)
"""Standard deviations of the windows within which a shift is sought, from wide to narrow."""

STEPS_PER_WINDOW = 4
NORMALISING_WINDOW = 2.5
"""Standard deviation, in voxels, of the window of local normalisation."""

RIDGE = 0.05
"""Added to the squared gradient, relative to its mean: without an edge to see, nothing moves."""

STEP_SMOOTHING, DISPLACEMENT_SMOOTHING = 0.75, 0.5
"""Smoothing after each step, in voxels: keeps the displacement invertible."""

JACOBIAN_LIMITS = (0.05, 20.0)

HIPPOCAMPUS_AXIS_MM = np.array(
    [
        [25.0, -9.0, -24.0],
        [27.5, -16.0, -18.5],
        [30.0, -22.0, -15.0],
        [30.5, -28.0, -11.0],
        [30.0, -34.0, -5.5],
        [24.5, -39.0, 1.0],
    ]
)
"""Centres of the right hippocampus on coronal planes of the template, head to tail; the left mirrors them."""

HIPPOCAMPUS_RADII_MM = np.array([7.5, 8.0, 7.5, 7.0, 6.5, 5.5])
HIPPOCAMPUS_FLATTENING = 1.4
"""Its width over its height on those planes."""

OUTER_FLUID_MM = 4.5
OUTER_FLUID_LEVELS = (0.4, 0.9)
"""Around the brain mask, what is this near and this bright (of grey matter) is fluid: bone is darker, fat brighter."""

VENTRICLE_REACH_MM = 5.0
"""Fluid this far from the warped ventricles still is theirs, unless other fluid is nearer."""


@dataclass(frozen=True, eq=False)
class _Level:
    """The template prepared for one resolution."""

    grid: Grid
    weight: Array
    window_weight: Array
    normalised: Array
    gradient: Array


@dataclass(frozen=True, eq=False)
class _Regions:
    """Region maps on the fine grid (shares of each voxel), and the template's intracranial volume."""

    ventricles: Array
    ventricle_core: NDArray[np.bool_]
    hippocampus_left: Array
    hippocampus_right: Array
    icv_ml: float


# ---------------------------------------------------------------------------------------------------------------------
# the template's side


@lru_cache(maxsize=1)
def _fine_template() -> Template:
    return mni.on_grid(axis_aligned_grid(FINE_BOX_MM[:, 0], FINE_BOX_MM[:, 1], FINE_MM))


@lru_cache(maxsize=2)
def _level(zoom_mm: float) -> _Level:
    template = _fine_template() if zoom_mm == FINE_MM else mni.at_zoom(zoom_mm, 8.0)
    # The weight ends with the brain: what lies outside differs between stripped brains and whole heads.
    weight = np.clip((1.0 - template.distance) / zoom_mm + 0.5, 0.0, 1.0).astype(np.float32)
    window_weight = _window(weight, NORMALISING_WINDOW) + np.float32(1e-3)
    normalised = _normalise(template.t1, weight, window_weight)
    return _Level(template.grid, weight, window_weight, normalised, _gradient(normalised, zoom_mm))


def _lateral_ventricles(template: Template) -> NDArray[np.bool_]:
    """Bodies, frontal and occipital horns and atria of the template (1 mm): fluid connected to the bodies.

    Temporal horns are left out, as are the third ventricle, the cisterns behind it and the fluid of the insula.
    """
    x, y, z = template.grid.coordinates()
    lateral = np.abs(x)
    fluid = (template.csf > 0.35) & (lateral < 38) & (y > -52) & (y < 32) & (z > -2) & (z < 34)
    fluid &= (lateral > 2.0) & ~((lateral < 7) & (z < 4)) & ~((y < -32) & (lateral < 9))
    fluid &= ~((lateral > 27) & (y > -20)) & ~((lateral > 22) & (y > -8))
    labels, _ = ndimage.label(fluid)
    bodies = np.broadcast_to((lateral > 8) & (lateral < 13) & (y > -6) & (y < 11) & (z > 13) & (z < 23), fluid.shape)
    wanted = np.unique(labels[bodies & fluid])
    return np.asarray(np.isin(labels, wanted[wanted > 0]))


def _hippocampus(template: Template, side: int) -> NDArray[np.bool_]:
    """Flattened, tapered capsules along the hippocampus, where the template is grey; ``side`` -1 left, 1 right."""
    points = template.grid.coordinates()
    inside = np.zeros(template.grid.shape, bool)
    stretch = np.array([1.0, 1.0, HIPPOCAMPUS_FLATTENING], np.float32)
    centres = HIPPOCAMPUS_AXIS_MM * [side, 1, 1]
    for (start, end), (first, last) in zip(
        itertools.pairwise(centres), itertools.pairwise(HIPPOCAMPUS_RADII_MM), strict=True
    ):
        direction = end - start
        offsets = [points[a] - np.float32(start[a]) for a in range(3)]
        along = sum(offsets[a] * np.float32(direction[a]) for a in range(3)) / np.float32(direction @ direction)
        along = np.clip(along, 0.0, 1.0)
        square = sum(((offsets[a] - along * np.float32(direction[a])) * stretch[a]) ** 2 for a in range(3))
        inside |= square < (first + along * (last - first)) ** 2
    return inside & (template.grey > 0.5)


@lru_cache(maxsize=1)
def _regions() -> _Regions:
    one = mni.on_grid(axis_aligned_grid(FINE_BOX_MM[:, 0], FINE_BOX_MM[:, 1], 1.0))
    fine = _fine_template().grid
    ventricles = _lateral_ventricles(one)
    other = ((one.csf > 0.35) & ~ventricles) | (one.brain < 0.5)
    distance = ndimage.distance_transform_edt(~ventricles)
    near = (distance < VENTRICLE_REACH_MM) & (distance < ndimage.distance_transform_edt(~other))

    def on_fine(region: NDArray[np.bool_]) -> Array:
        return mni.sample_averaged(region.astype(np.float32), one.grid.affine, fine, np.eye(4))

    whole = mni.at_zoom(2.0)
    return _Regions(
        ventricles=on_fine(near),
        ventricle_core=on_fine(ndimage.binary_erosion(ventricles)) > 0.9,
        hippocampus_left=on_fine(_hippocampus(one, -1)),
        hippocampus_right=on_fine(_hippocampus(one, 1)),
        icv_ml=float(whole.brain.sum(dtype=np.float64)) * float(np.prod(whole.grid.zooms)) / 1000.0,
    )


# ---------------------------------------------------------------------------------------------------------------------
# displacement


def _window(data: Array, sigma: float) -> Array:
    return np.asarray(ndimage.gaussian_filter(data, sigma, truncate=2.0, mode="constant"), dtype=np.float32)


def _smooth_field(field: Array, sigma: float) -> Array:
    return np.stack([ndimage.gaussian_filter(part, sigma, truncate=2.5, mode="nearest") for part in field])


def _gradient(data: Array, zoom: float) -> Array:
    """Central differences per millimetre, shape (3, X, Y, Z); zero at the border."""
    out = np.zeros((3, *data.shape), np.float32)
    for axis in range(3):
        moved, target = np.moveaxis(data, axis, 0), np.moveaxis(out[axis], axis, 0)
        target[1:-1] = (moved[2:] - moved[:-2]) / np.float32(2 * zoom)
    return out


def _normalise(data: Array, weight: Array, window_weight: Array) -> Array:
    """Zero mean and unit variance within a moving window, counting only where ``weight`` is positive."""
    mean = _window(data * weight, NORMALISING_WINDOW) / window_weight
    centred = (data - mean) * weight
    variance = _window(centred * centred, NORMALISING_WINDOW) / window_weight
    # The floor keeps flat white matter from being blown up to full-scale noise.
    floor = 0.05 * float((variance * weight).sum()) / max(float(weight.sum()), 1e-6) + 1e-12
    return (centred / np.sqrt(variance + np.float32(floor))).astype(np.float32)


def _moved_index(displacement: Array, zoom: float) -> list[Array]:
    """Voxel indices of a grid's points after ``displacement`` (mm, shape (3, X, Y, Z))."""
    lines = np.ogrid[tuple(slice(0, n) for n in displacement.shape[1:])]
    return [displacement[a] / np.float32(zoom) + lines[a].astype(np.float32) for a in range(3)]


def _sample(data: Array, matrix: Matrix, displacement: Array, zoom: float) -> Array:
    """``data`` at the displaced points of a grid; ``matrix`` maps the grid's indices to those of ``data``."""
    moved = _moved_index(displacement, zoom)
    m = matrix.astype(np.float32)
    index = [m[i, 0] * moved[0] + m[i, 1] * moved[1] + m[i, 2] * moved[2] + m[i, 3] for i in range(3)]
    return ndimage.map_coordinates(data, index, output=np.float32, order=1, mode="constant", prefilter=False)


def _compose(displacement: Array, step: Array, zoom: float) -> Array:
    """First ``step``, then ``displacement``."""
    index = _moved_index(step, zoom)
    parts = [
        ndimage.map_coordinates(part, index, output=np.float32, order=1, mode="nearest", prefilter=False)
        for part in displacement
    ]
    return step + np.stack(parts)


def _best_shift(slope: Array, difference: Array, weight: Array, sigma: float) -> Array:
    """The shift at every voxel that explains ``difference`` best within a window: a 3x3 system per voxel."""
    a, b, c = (_window(slope[0] * slope[k], sigma) for k in range(3))
    d, e = _window(slope[1] * slope[1], sigma), _window(slope[1] * slope[2], sigma)
    f = _window(slope[2] * slope[2], sigma)
    x, y, z = (_window(part * difference, sigma) for part in slope)
    ridge = np.float32(RIDGE * float(((a + d + f) * weight).sum() / weight.sum()) + 1e-9)
    a, d, f = a + ridge, d + ridge, f + ridge
    # The inverse of a symmetric matrix by its cofactors.
    aa, bb, cc = d * f - e * e, c * e - b * f, b * e - c * d
    dd, ee, ff = a * f - c * c, b * c - a * e, a * d - b * b
    determinant = a * aa + b * bb + c * cc
    shift = np.stack([aa * x + bb * y + cc * z, bb * x + dd * y + ee * z, cc * x + ee * y + ff * z])
    return np.asarray(shift / determinant, dtype=np.float32)


def _refine(data: Array, affine: Matrix, transform: Matrix, at: _Level, displacement: Array, window_mm: float) -> Array:
    zoom = float(at.grid.zooms[0])
    matrix = np.linalg.inv(affine) @ transform @ at.grid.affine
    for _ in range(STEPS_PER_WINDOW):
        moving = _normalise(_sample(data, matrix, displacement, zoom), at.weight, at.window_weight)
        # The mean of both images' slopes converges from farther than either alone.
        slope = (_gradient(moving, zoom) + at.gradient) * np.float32(0.5)
        difference = (at.normalised - moving) * at.weight
        step = _smooth_field(_best_shift(slope, difference, at.weight, window_mm / zoom), STEP_SMOOTHING)
        length = np.sqrt((step * step).sum(axis=0))
        step *= np.minimum(1.0, zoom / np.maximum(length, 1e-6))
        displacement = _smooth_field(_compose(displacement, step, zoom), DISPLACEMENT_SMOOTHING)
    return displacement


def displacement_to(data: Array, affine: Matrix, transform: Matrix) -> Array:
    """The displacement that takes the template to an affinely registered head, around ventricles and temporal lobes.

    Parameters
    ----------
    data, affine
        The head with its voxel-to-millimetre affine.
    transform
        4x4, MNI millimetres to the head's millimetres.

    Returns
    -------
    float32 array (3, X, Y, Z) in MNI millimetres on the 2 mm grid over :data:`FINE_BOX_MM`: the template's point ``p``
    lies at ``transform @ (p + displacement)`` in the head. All zeros when nothing finite was found.
    """
    coarse, fine = _level(COARSE_MM), _level(FINE_MM)
    smaller, smaller_affine = reduce_to(data, affine, FINE_MM)
    smallest, smallest_affine = reduce_to(smaller, smaller_affine, COARSE_MM)
    displacement = np.zeros((3, *coarse.grid.shape), np.float32)
    for window_mm in COARSE_WINDOWS_MM:
        displacement = _refine(smallest, smallest_affine, transform, coarse, displacement, window_mm)
    displacement = np.stack([resample(part, coarse.grid.affine, fine.grid) for part in displacement])
    for window_mm in FINE_WINDOWS_MM:
        displacement = _refine(smaller, smaller_affine, transform, fine, displacement, window_mm)
    return displacement if np.isfinite(displacement).all() else np.zeros_like(displacement)


def jacobian(displacement: Array, zoom: float) -> Array:
    """Volume change of a displacement (mm, shape (3, X, Y, Z)) at every voxel, kept within plausible limits."""
    slopes = [np.gradient(part, zoom) for part in displacement]
    (a, b, c), (d, e, f), (g, h, i) = slopes
    a, e, i = a + 1, e + 1, i + 1
    return np.clip(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g), *JACOBIAN_LIMITS).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# volumes


def intracranial(head: Array, brain_mask: NDArray[np.bool_], template: Template, grey: float) -> NDArray[np.bool_]:
    """The brain and the fluid between it and the skull.

    Parameters
    ----------
    head, brain_mask, template
        The registered, drift-corrected head, its brain mask, and the template on their common grid.
    grey
        The head's intensity of grey matter.

    Returns
    -------
    Boolean array of the grid's shape.
    """
    low, high = OUTER_FLUID_LEVELS
    near = ndimage.distance_transform_edt(~brain_mask, sampling=template.grid.zooms) <= OUTER_FLUID_MM
    fluid = near & (head > low * grey) & (head < high * grey)
    # Opening drops sheets and threads: dura and vessels that the two levels let pass.
    return brain_mask | ndimage.binary_opening(brain_mask | fluid)


def measure(
    data: Array,
    affine: Matrix,
    transform: Matrix,
    tissue: bias.Tissue,
    head: Array,
    brain_mask: NDArray[np.bool_],
    template: Template,
    *,
    head_size_known: bool = True,
) -> dict[str, float]:
    """Regional volumes of a registered head.

    Parameters
    ----------
    data, affine
        The head as it was scanned, not negative, and its voxel-to-millimetre affine.
    transform
        4x4, MNI millimetres to the head's millimetres.
    tissue
        Its fitted intensities and drift.
    head, brain_mask, template
        The registered, drift-corrected head, its brain mask, and the template on their common grid.
    head_size_known
        False for a brain that came in MNI space: its intracranial volume is then NaN, the others are mL of MNI space.

    Returns
    -------
    dict
        One value per name in :data:`VOLUME_COLUMNS` (mL) and :data:`FRACTION_COLUMNS` (share of the template's
        intracranial volume times the determinant). Where fluid cannot be told from grey matter, the warped
        template regions alone are measured.
    """
    regions, fine = _regions(), _level(FINE_MM).grid
    displacement = displacement_to(data, affine, transform)
    small, small_affine = reduce_to(data, affine, FINE_MM)
    image = _sample(small, np.linalg.inv(small_affine) @ transform @ fine.affine, displacement, FINE_MM)
    if tissue.coefficients is not None:
        image *= np.exp(-bias.drift(tissue.coefficients, fine))
    volume = jacobian(displacement, FINE_MM) * np.float32(FINE_MM**3 / 1000.0)

    fluid, grey, white = (float(v) for v in tissue.levels)
    # Voxels amid the ventricles hold nothing but fluid; the fitted class is a mixture.
    fluid = min(fluid, float(np.median(image[regions.ventricle_core])))
    if not 0.0 <= fluid < 0.95 * grey:
        fluid, image = 0.0, np.full_like(image, grey)
    # The edge of fluid towards the mixture of grey and white matter around it stands at the middle of both; where grey
    # matter begins there is none left.
    middle = min(0.5 * (fluid + 0.5 * (grey + white)), 0.95 * grey)
    fluid_share = np.clip(0.5 + (middle - image) / np.float32(2.0 * (grey - middle)), 0.0, 1.0)
    tissue_share = np.clip((image - fluid) / np.float32(grey - fluid), 0.0, 1.0)
    if float(fluid_share.max()) == 0.0:
        fluid_share = regions.ventricle_core.astype(np.float32)
    brain_share = np.clip((head[brain_mask] - fluid) / np.float32(grey - fluid), 0.0, 1.0)

    def total(values: Array) -> float:
        return float(values.sum(dtype=np.float64))

    template_ml = {
        "ventricles": total(regions.ventricles * fluid_share * volume),
        "hippocampus_left": total(regions.hippocampus_left * tissue_share * volume),
        "hippocampus_right": total(regions.hippocampus_right * tissue_share * volume),
        "brain_tissue": total(brain_share) * float(np.prod(template.grid.zooms)) / 1000.0,
    }
    determinant = abs(float(np.linalg.det(transform[:3, :3])))
    out = {f"{name}_ml": value * determinant for name, value in template_ml.items()}
    out["icv_ml"] = float("nan")
    if head_size_known:
        voxels = np.count_nonzero(intracranial(head, brain_mask, template, grey))
        out["icv_ml"] = voxels * float(np.prod(template.grid.zooms)) / 1000.0 * determinant
    return out | {f"region_{name}_fraction": value / regions.icv_ml for name, value in template_ml.items()}
