"""The MNI152 brain that ships inside the nilearn package (ICBM 152 2009a non-linear symmetric, 1 mm, brain-extracted).

Nothing is downloaded. The maps are read once per process.

References
----------
Fonov V. et al. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage 54, 313-327 (2011).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d.errors import InputError, ParameterError
from medalign3d.volumes.grids import Array, Grid, Matrix, axis_aligned_grid, block_average, resample, voxel_sizes

_FILES = {
    "t1": "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "grey": "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
    "white": "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
}
STEM_MM2 = 1500  # an axial slice of less brain than this at the lower end is brain stem
VERTEX_MM = 6  # an average brain's crown is lower than most people's: room for theirs after affine registration
_PADDING = 12  # voxels of 1 mm: the packaged box ends at the brain


@dataclass(frozen=True, eq=False)
class Template:
    """The template's maps on one grid (float32): T1 in 0..1, brain mask and tissue shares in 0..1."""

    grid: Grid
    t1: Array
    brain: Array
    grey: Array
    white: Array
    csf: Array
    distance: Array
    """Signed distance to the brain's surface in millimetres, negative inside."""


def _packaged_file(kind: str) -> Path:
    specification = importlib.util.find_spec("nilearn")
    if specification is None or specification.origin is None:
        raise InputError("the package nilearn is missing", remedy="pip install -e . with the constraints file")
    path = Path(specification.origin).parent / "datasets" / "data" / _FILES[kind]
    if not path.is_file():
        raise InputError(
            "nilearn's packaged MNI152 template is missing",
            where=path,
            remedy="install the nilearn version named in the constraints file",
        )
    return path


@dataclass(frozen=True)
class _Source:
    """Packaged maps at one resolution, float32."""

    affine: Matrix
    maps: dict[str, Array]


@lru_cache(maxsize=1)
def _one_millimetre() -> _Source:
    """The packaged maps at 1 mm, padded by 12 mm, T1 in 0..1, tissue maps as shares."""
    import nibabel

    maps: dict[str, Array] = {}
    affine = np.eye(4)
    for kind in _FILES:
        image = nibabel.load(_packaged_file(kind))
        affine = np.array(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
        packaged = np.asarray(image.dataobj, dtype=np.uint8)  # type: ignore[attr-defined]
        maps[kind] = np.pad(packaged, _PADDING).astype(np.float32) / np.float32(255.0)
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, float(_PADDING))
    # The packaged T1 is zero outside the brain and positive everywhere inside; the tissue maps reach a little beyond.
    brain = (maps["t1"] > 0).astype(np.float32)
    maps["grey"] *= brain
    maps["white"] *= brain
    return _Source(affine, {**maps, "brain": brain})


@lru_cache(maxsize=1)
def _two_millimetres() -> _Source:
    """The maps averaged to 2 mm (for grids of 3 mm and more: eight times less to read), with the signed distance."""
    source = _one_millimetre()
    maps: dict[str, Array] = {}
    affine = source.affine
    for name, data in source.maps.items():
        maps[name], affine = block_average(data, source.affine, (2, 2, 2))
    solid = maps["brain"] > 0.5
    outside = ndimage.distance_transform_edt(~solid) - ndimage.distance_transform_edt(solid)
    # The surface lies between a voxel inside (-1) and its neighbour outside (+1): half a voxel from each.
    maps["distance"] = (2.0 * (outside - 0.5 * np.sign(outside))).astype(np.float32)
    return _Source(affine, maps)


@lru_cache(maxsize=1)
def brain_box() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper corner of the template brain in MNI millimetres, each shape (3,).

    The brain stem, which runs on into the neck, is left out of the lower corner; the upper corner has room for a higher
    crown.
    """
    source = _one_millimetre()
    brain = source.maps["brain"] > 0.5
    lower, upper = np.zeros(3), np.zeros(3)
    for axis in range(3):
        areas = brain.sum(axis=tuple(a for a in range(3) if a != axis))
        lower[axis] = np.flatnonzero(areas > (STEM_MM2 if axis == 2 else 0))[0]
        upper[axis] = np.flatnonzero(areas)[-1] + (VERTEX_MM if axis == 2 else 0)
    return source.affine[:3, :3] @ lower + source.affine[:3, 3], source.affine[:3, :3] @ upper + source.affine[:3, 3]


@lru_cache(maxsize=8)
def at_zoom(zoom_mm: float, margin_mm: float = 12.0) -> Template:
    """The template on cubic voxels of ``zoom_mm`` over the brain and ``margin_mm`` around it."""
    lower, upper = brain_box()
    return _on_grid(axis_aligned_grid(lower - margin_mm, upper + margin_mm, zoom_mm))


def target_grid(shape: tuple[int, int, int] | list[int], zooms_mm: float) -> Grid:
    """The grid of normalized volumes: ``shape`` voxels of ``zooms_mm``, RAS axes, centred on the template brain.

    Raises
    ------
    ParameterError
        When the grid would cut the template brain.

    Examples
    --------
    >>> target_grid([48, 60, 48], 3.25).affine[0].round(2).tolist()
    [3.25, 0.0, 0.0, -76.38]
    """
    lower, upper = brain_box()
    extent = np.array(shape, dtype=float) * zooms_mm
    if (extent < upper - lower + 1.0).any():
        needed = np.ceil((upper - lower + 1.0) / zooms_mm).astype(int)
        raise ParameterError(
            "the grid of normalized volumes cuts the brain",
            where="params.yaml: normalize.shape, normalize.zooms_mm",
            found=f"{list(shape)} voxels of {zooms_mm} mm",
            expected=f"at least {needed.tolist()} voxels of {zooms_mm} mm",
            remedy="raise normalize.shape or normalize.zooms_mm",
        )
    affine = np.diag([zooms_mm, zooms_mm, zooms_mm, 1.0])
    affine[:3, 3] = (lower + upper) / 2 - zooms_mm * (np.array(shape) - 1) / 2
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


@lru_cache(maxsize=4)
def _cached(shape: tuple[int, int, int], affine: bytes) -> Template:
    return _on_grid(Grid(shape, np.frombuffer(affine, dtype=float).reshape(4, 4)))


def on_grid(grid: Grid) -> Template:
    """The template's maps on ``grid``, averaged over each voxel when voxels are larger than 1 mm."""
    return _cached(grid.shape, np.ascontiguousarray(grid.affine, dtype=float).tobytes())


def _on_grid(grid: Grid) -> Template:
    small = _two_millimetres()
    source = small if float(grid.zooms.mean()) >= 2.9 else _one_millimetre()
    maps = {
        name: sample_averaged(source.maps[name], source.affine, grid, np.eye(4))
        for name in ("t1", "brain", "grey", "white")
    }
    maps["csf"] = np.clip(maps["brain"] - maps["grey"] - maps["white"], 0.0, 1.0)
    maps["distance"] = resample(small.maps["distance"], small.affine, grid, fill=30.0)
    return Template(grid, **maps)


def sample_averaged(
    data: Array,
    affine: Matrix,
    grid: Grid,
    transform: Matrix,
    *,
    where: NDArray[np.bool_] | None = None,
    fill: float = 0.0,
    steps: int | None = None,
) -> Array:
    """Sample ``data`` on ``grid``; where grid voxels are larger than the image's, average several samples per voxel.

    The averages keep fine structure from aliasing; each is one linear interpolation of the source.

    Parameters
    ----------
    data, affine
        The image and its voxel-to-millimetre affine.
    grid
        Where to sample.
    transform
        4x4, from the grid's millimetres to the image's.
    where
        Boolean on ``grid``: only these voxels are computed, the others are ``fill``.
    fill
        Value outside the image.
    steps
        Samples per axis; found from the voxel sizes when omitted.
    """
    if steps is None:
        source_mm = float(np.prod(voxel_sizes(np.linalg.inv(transform) @ affine)) ** (1 / 3))
        steps = max(1, round(float(grid.zooms.mean()) / source_mm))
    if where is not None:
        return _sample_points(data, np.linalg.inv(affine) @ transform @ grid.affine, where, steps, fill)
    if steps == 1:
        return resample(data, affine, grid, transform, fill=fill)
    fine_affine = grid.affine @ np.diag([1 / steps] * 3 + [1.0])
    fine_affine[:3, 3] = (grid.affine @ np.array([*[(1 / steps - 1) / 2] * 3, 1.0]))[:3]
    fine = Grid((grid.shape[0] * steps, grid.shape[1] * steps, grid.shape[2] * steps), fine_affine)
    sampled = resample(data, affine, fine, transform, fill=fill)
    averaged, _ = block_average(sampled, fine.affine, (steps, steps, steps))
    return averaged


def _sample_points(data: Array, matrix: Matrix, where: NDArray[np.bool_], steps: int, fill: float) -> Array:
    """:func:`sample_averaged` at single voxels; ``matrix`` maps the grid's indices to the image's."""
    out = np.full(where.shape, np.float32(fill), dtype=np.float32)
    index = np.nonzero(where)
    if not len(index[0]):
        return out
    base = matrix[:3, :3] @ np.stack([i.astype(np.float64) for i in index]) + matrix[:3, 3:]
    offsets = (np.arange(steps) - (steps - 1) / 2) / steps
    total = np.zeros(base.shape[1], np.float32)
    for a in offsets:
        for b in offsets:
            for c in offsets:
                points = base + (matrix[:3, :3] @ np.array([a, b, c]))[:, None]
                total += ndimage.map_coordinates(
                    data, points, output=np.float32, order=1, mode="constant", cval=fill, prefilter=False
                )
    out[index] = total / np.float32(steps**3)
    return out
