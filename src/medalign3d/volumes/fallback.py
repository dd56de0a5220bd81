"""A second opinion when the fast registration does not pass the gate: greedy's affine with mutual information.

References
----------
Yushkevich P. et al. Fast automatic segmentation of hippocampal subfields and medial temporal lobe subregions.
Alzheimer's & Dementia 12, P126-P127 (2016). https://github.com/pyushkevich/greedy
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import numpy as np

from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Array, Matrix, reduce_to, resample
from medalign3d.volumes.register import Registration, correlation_at

WORK_MM = 3.0


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Greedy writes its progress straight to file descriptor 1, whatever its verbosity."""
    sys.stdout.flush()
    saved = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def register_greedy(data: Array, affine: Matrix, start: Matrix) -> Registration | None:
    """Refine ``start`` (MNI millimetres -> image millimetres) with greedy.

    The head is first brought onto the template's grid with ``start`` and blanked outside the template's neighbourhood:
    greedy compares whole images, and the template has no scalp.

    Returns
    -------
    Registration, or None where greedy is not installed or finds nothing.
    """
    try:
        import SimpleITK
        from picsl_greedy import Greedy3D
    except ImportError:
        return None
    small, small_affine = reduce_to(data, affine, WORK_MM)
    template = mni.at_zoom(WORK_MM, 24.0)
    grid = template.grid
    head = resample(small, small_affine, grid, start)
    head = head * (template.distance < 20.0)

    def to_itk(values: Array) -> SimpleITK.Image:
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
        # ITK counts x to the left and y to the back; the grid is axis-aligned, so spacing and origin say everything.
        image.SetSpacing([float(z) for z in grid.zooms])
        image.SetDirection([-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0])
        origin = grid.affine[:3, 3]
        image.SetOrigin([-float(origin[0]), -float(origin[1]), float(origin[2])])
        return image

    near = (template.distance < 6.0).astype(np.float32)
    try:
        greedy = Greedy3D()
        with _silent_stdout():
            greedy.execute(
                "-d 3 -a -dof 12 -i fixed moving -gm near -ia-identity -m NMI -n 60x30x0 -threads 1 -V 0 -o found",
                fixed=to_itk(template.t1),
                moving=to_itk(head),
                near=to_itk(near),
                found=None,
            )
        found = np.asarray(greedy["found"], dtype=float).reshape(4, 4)
    except (RuntimeError, KeyError, ValueError, TypeError):
        return None
    if not np.isfinite(found).all():
        return None
    # Greedy's matrix maps fixed to moving in RAS millimetres.
    transform = start @ found
    return Registration(transform, correlation_at(data, affine, transform), 1, "greedy")
