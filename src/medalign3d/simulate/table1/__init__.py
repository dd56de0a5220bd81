"""Tables and image paths of all five cohorts at the size of the published Table 1; no voxels.

The people are invented and nothing is taken from a custodian, but the counts are the published ones: in the form
``table1_emulation`` reading these trees gives exactly the images, women and men, age range, and numbers of images with
each clinical value that :mod:`medalign3d.published_table1` lists. Values are missing by the mechanism of each cohort
(NACC: form version 3 dropped the tests; ADNI: scan-only visits, and visits without logical memory; OASIS: young people;
MIRIAD: its schedule), and then exactly as many more as the published number needs.

``scale`` makes smaller or larger cohorts of the same make-up, for measuring how reading scales; the published numbers
hold at 1.

Not supported: images (see :func:`medalign3d.simulate.simulate_cohort`) and planted faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from medalign3d.cohorts.listing import LISTING_NAME
from medalign3d.errors import ParameterError
from medalign3d.files import atomic_path, write_text
from medalign3d.simulate.table1 import adni, aibl, miriad, nacc, oasis

WRITERS: dict[str, Callable[[Path, int, float], list[str]]] = {
    "ADNI": adni.write,
    "NACC": nacc.write,
    "OASIS": oasis.write,
    "AIBL": aibl.write,
    "MIRIAD": miriad.write,
}
SMALLEST_SCALE = 0.1

__all__ = ["WRITERS", "simulate_table1"]


def simulate_table1(
    out: Path, *, seed: int = 7, scale: float = 1.0, cohorts: Sequence[str] = tuple(WRITERS)
) -> dict[str, int]:
    """Write the trees ``out/<COHORT>``: clinical tables, ``image_files.txt`` and the marker of simulated data.

    Parameters
    ----------
    out
        Folder of the trees; each cohort's own is replaced as a whole.
    seed
        Changes every person, not the counts.
    scale
        Size relative to the published table, at least 0.1.
    cohorts
        Which of them to write.

    Returns
    -------
    dict
        Image files listed, by cohort.

    Raises
    ------
    ParameterError
        When the scale is too small or a cohort cannot be simulated.
    """
    from medalign3d.simulate import MARKER, MARKER_TEXT

    if not scale >= SMALLEST_SCALE:
        raise ParameterError("the cohorts would be too small", found=scale, expected=f"a scale from {SMALLEST_SCALE}")
    listed: dict[str, int] = {}
    for cohort in cohorts:
        if cohort not in WRITERS:
            raise ParameterError(
                "a cohort has no simulated Table 1", found=cohort, expected=f"one of {', '.join(WRITERS)}"
            )
        with atomic_path(out / cohort) as root:
            root.mkdir()
            paths = WRITERS[cohort](root, seed, scale)
            write_text(root / LISTING_NAME, "\n".join(paths) + "\n")
            write_text(root / MARKER, MARKER_TEXT.format(cohort=cohort, seed=seed))
        listed[cohort] = len(paths)
    return listed
