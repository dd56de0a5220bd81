"""A second, more thorough search when the fast registration does not pass the gate.

The fast search supposes a head of about the usual size. This one also tries heads of other sizes (children, wrong voxel
sizes), refines many more starts and follows several of them to the precise level. It takes seconds, so it is for the
few volumes that would else be quarantined. What it finds must pass the same gate.
"""

from __future__ import annotations

from medalign3d.volumes.grids import Array, Matrix
from medalign3d.volumes.register import Registration, register

SCALES = (0.7, 0.8, 1.05, 1.2)
"""Head sizes, relative to the template, from which the search starts; the fast search starts from 0.9 alone."""

HIGH_CORRELATION = 0.68
"""From here no further size is tried."""


def register_thoroughly(
    data: Array, affine: Matrix, *, coarse_mm: float = 8.0, fine_mm: float = 4.0, maximum_iterations: int = 40
) -> Registration:
    """Search again from other head sizes, with more starts; parameters and result as of :func:`register`."""
    best: Registration | None = None
    for scale in SCALES:
        found = register(
            data,
            affine,
            coarse_mm=coarse_mm,
            fine_mm=fine_mm,
            maximum_iterations=maximum_iterations,
            scale=scale,
            followed=4,
        )
        if best is None or found.correlation > best.correlation:
            best = found
        if best.correlation > HIGH_CORRELATION:
            break
    assert best is not None
    return Registration(best.transform, best.correlation, best.starts, "thorough")
