"""Pictures to check normalization by eye."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medalign3d import files
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Grid, Matrix, reduce_to, resample

if TYPE_CHECKING:
    from medalign3d.volumes.normalize import Normalized
    from medalign3d.volumes.read import Volume

PLANES_MM = (("axial", 2, 6.0), ("axial low", 2, -16.0), ("coronal", 1, -20.0), ("sagittal", 0, -6.0))
"""Name, axis and MNI coordinate of the slices shown: ventricles, medial temporal lobes, hippocampi, midline."""


def _slice(array: NDArray[Any], affine: Matrix, axis: int, position: float) -> NDArray[Any]:
    index = round((position - affine[axis, 3]) / affine[axis, axis])
    return np.take(array, int(np.clip(index, 0, array.shape[axis] - 1)), axis=axis).T


def montage(
    arrays: Sequence[NDArray[np.uint8]],
    affine: Matrix,
    path: str | os.PathLike[str],
    *,
    titles: Sequence[str] | None = None,
    outline: bool = True,
    columns: int = 2,
) -> None:
    """Write a picture of normalized brains: four slices each, with the template brain's outline.

    The person's left is on the left.

    Parameters
    ----------
    arrays
        Normalized arrays on one grid.
    affine
        Their voxel-to-millimetre affine.
    path
        A ``.png`` (or any format that matplotlib knows).
    titles
        One per array.
    outline
        Draw the template brain's outline.
    columns
        Brains beside each other.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shape = arrays[0].shape
    brain = mni.on_grid(Grid((shape[0], shape[1], shape[2]), np.asarray(affine, dtype=float))).brain
    rows = -(-len(arrays) // columns)
    planes = len(PLANES_MM)
    figure = Figure(figsize=(1.8 * planes * columns, 1.95 * rows), facecolor="black")
    FigureCanvasAgg(figure)
    for number, array in enumerate(arrays):
        for place, (_, axis, position) in enumerate(PLANES_MM):
            row, column = divmod(number, columns)
            axes = figure.add_subplot(rows, planes * columns, row * planes * columns + column * planes + place + 1)
            axes.imshow(_slice(array, affine, axis, position), cmap="gray", origin="lower", vmin=0, vmax=255)
            if outline:
                axes.contour(_slice(brain, affine, axis, position), [0.5], colors="#33ccff", linewidths=0.5)
            axes.set_axis_off()
            if place == 0 and titles is not None:
                axes.set_title(titles[number], color="white", fontsize=7, loc="left", pad=2)
    figure.subplots_adjust(0, 0, 1, 0.985, 0.01, 0.06)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, facecolor="black")


def write_quality_picture(volume: Volume, result: Normalized, path: str | os.PathLike[str]) -> None:
    """Write a picture of one image: the registered head with mask and template outline above, the result below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    template = mni.at_zoom(2.0, 24.0)
    small, small_affine = reduce_to(volume.data, np.asarray(volume.affine, dtype=float), 2.0)
    head = resample(small, small_affine, template.grid, result.transform)
    top = float(np.percentile(head[template.brain > 0.5], 99.5)) or 1.0
    figure = Figure(figsize=(9, 5.4), facecolor="black")
    FigureCanvasAgg(figure)
    for place, (name, axis, position) in enumerate(PLANES_MM):
        axes = figure.add_subplot(2, len(PLANES_MM), place + 1)
        axes.imshow(
            _slice(head, template.grid.affine, axis, position), cmap="gray", origin="lower", vmin=0, vmax=1.15 * top
        )
        outline = _slice(template.brain, template.grid.affine, axis, position)
        axes.contour(outline, [0.5], colors="#33ccff", linewidths=0.6)
        if result.array is not None:
            grid = Grid((result.array.shape[0], result.array.shape[1], result.array.shape[2]), result.affine)
            own = resample((result.array > 0).astype(np.float32), grid.affine, template.grid)
            axes.contour(_slice(own, template.grid.affine, axis, position), [0.5], colors="#ff5544", linewidths=0.8)
        axes.set_title(f"{name} {position:+.0f} mm", color="white", fontsize=8)
        axes.set_axis_off()
        if result.array is not None:
            axes = figure.add_subplot(2, len(PLANES_MM), len(PLANES_MM) + place + 1)
            axes.imshow(
                _slice(result.array, result.affine, axis, position), cmap="gray", origin="lower", vmin=0, vmax=255
            )
            axes.set_axis_off()
    agreement = result.metrics.get("local_correlation", float("nan"))
    words = f"{result.verdict}  {result.method}  local correlation {agreement:.2f}"
    figure.text(0.01, 0.01, words + (f"  {result.detail}" if result.detail else ""), color="white", fontsize=8)
    figure.subplots_adjust(0.005, 0.05, 0.995, 0.95, 0.01, 0.03)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, facecolor="black")
