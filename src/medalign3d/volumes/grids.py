"""Regular voxel grids in millimetre space, and resampling between them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """A regular grid: its shape in voxels and its affine (4x4, voxel index -> millimetres)."""

    shape: tuple[int, int, int]
    affine: Matrix

    @property
    def zooms(self) -> NDArray[np.float64]:
        """Voxel sizes in millimetres, shape (3,)."""
        return voxel_sizes(self.affine)

    def coordinates(self) -> list[NDArray[np.float32]]:
        """Millimetre coordinates x, y, z of every voxel, as three arrays that broadcast to the grid's shape.

        Only for grids without rotation (each axis along one coordinate).
        """
        out = []
        for axis in range(3):
            line = self.affine[axis, axis] * np.arange(self.shape[axis]) + self.affine[axis, 3]
            out.append(line.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)]))
        return out


def voxel_sizes(affine: Matrix) -> NDArray[np.float64]:
    """Voxel sizes in millimetres of a voxel-to-millimetre affine, shape (3,)."""
    return np.sqrt((np.asarray(affine, dtype=float)[:3, :3] ** 2).sum(axis=0))


def axis_aligned_grid(lower: NDArray[np.float64], upper: NDArray[np.float64], zoom: float) -> Grid:
    """The smallest grid of cubic voxels along x, y, z that covers the box ``lower``..``upper`` (mm), centred on it."""
    extent = np.asarray(upper, dtype=float) - np.asarray(lower, dtype=float)
    shape = np.ceil(extent / zoom - 1e-6).astype(int) + 1
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = (np.asarray(lower) + np.asarray(upper)) / 2 - zoom * (shape - 1) / 2
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def resample(
    data: Array, affine: Matrix, grid: Grid, transform: Matrix | None = None, *, order: int = 1, fill: float = 0.0
) -> Array:
    """Sample ``data`` on ``grid``.

    Parameters
    ----------
    data, affine
        The image and its voxel-to-millimetre affine.
    grid
        Where to sample.
    transform
        4x4, from the grid's millimetres to the image's millimetres; the identity when omitted.
    order
        Spline order; 1 is trilinear.
    fill
        Value outside the image.

    Returns
    -------
    float32 array of ``grid.shape``.
    """
    matrix = np.linalg.inv(affine) @ (grid.affine if transform is None else transform @ grid.affine)
    return ndimage.affine_transform(
        data,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=grid.shape,
        output=np.float32,
        order=order,
        mode="constant",
        cval=fill,
        prefilter=order > 1,
    )


def inside(shape: tuple[int, ...], affine: Matrix, grid: Grid, transform: Matrix) -> NDArray[np.bool_] | None:
    """Which voxels of ``grid`` fall into an image of ``shape`` and ``affine`` under ``transform``, as :func:`resample`.

    None when all do (the usual case, told from the grid's corners alone).
    """
    matrix = np.linalg.inv(affine) @ transform @ grid.affine
    limits = np.array(shape, dtype=float)[:, None] - 0.5
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in grid.shape])), dtype=float).T
    at_corners = matrix[:3, :3] @ corners + matrix[:3, 3:]
    if bool(((at_corners > -0.5) & (at_corners < limits)).all()):
        return None
    index = [np.arange(n) for n in grid.shape]
    result = np.ones(grid.shape, dtype=bool)
    for axis in range(3):
        value = (
            (matrix[axis, 0] * index[0] + matrix[axis, 3])[:, None, None]
            + (matrix[axis, 1] * index[1])[None, :, None]
            + (matrix[axis, 2] * index[2])[None, None, :]
        )
        result &= (value > -0.5) & (value < shape[axis] - 0.5)
    return result


def block_average(data: Array, affine: Matrix, factors: tuple[int, int, int]) -> tuple[Array, Matrix]:
    """Average over blocks of ``factors`` voxels: a cheap low-pass and down-sampling in one.

    Voxels that do not fill a whole block at the far end are left out.

    Returns
    -------
    The smaller float32 array and its affine (block centres keep their place).
    """
    if factors == (1, 1, 1):
        return np.ascontiguousarray(data, dtype=np.float32), np.array(affine, dtype=float)
    out = data
    # The slowest axis first: each pass reads contiguous memory and leaves less for the next.
    for axis in range(3):
        factor = factors[axis]
        if factor == 1:
            continue
        count = out.shape[axis] // factor
        total: Array | None = None
        for step in range(factor):
            part = out[tuple(slice(step, count * factor, factor) if a == axis else slice(None) for a in range(3))]
            total = part.astype(np.float32) if total is None else np.add(total, part, out=total)
        assert total is not None
        total /= factor
        out = total
    step_matrix = np.diag([*map(float, factors), 1.0])
    step_matrix[:3, 3] = (np.array(factors) - 1) / 2
    return np.ascontiguousarray(out, dtype=np.float32), np.asarray(affine, dtype=float) @ step_matrix


def reduce_to(data: Array, affine: Matrix, zoom: float) -> tuple[Array, Matrix]:
    """Block-average so that voxels come as near to ``zoom`` (mm) as whole factors allow, never above 1.3 ``zoom``."""
    factors = np.maximum(1, np.floor(1.3 * zoom / voxel_sizes(affine) + 1e-6).astype(int))
    nearest = np.maximum(1, np.rint(zoom / voxel_sizes(affine)).astype(int))
    factors = np.minimum(np.minimum(factors, nearest), np.maximum(1, np.array(data.shape) // 4))
    return block_average(data, affine, (int(factors[0]), int(factors[1]), int(factors[2])))
