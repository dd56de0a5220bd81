"""One head that two cohorts hold: a scan that its owner gave to both, which no id can show."""

from __future__ import annotations

from medalign3d.simulate.anatomy import Anatomy, Scan
from medalign3d.simulate.records import seed_of


def twin_anatomy(seed: int) -> Anatomy:
    """The head of the person that is in two cohorts; depends on the seed only."""
    return Anatomy(
        person_seed=seed_of(seed, "twin"),
        ventricles=0.35,
        hippocampus_left=-0.1,
        hippocampus_right=-0.08,
        brain=-0.02,
        lesions=0.2,
        size=(0.96, 0.96, 0.96),
    )


def twin_scan(seed: int, zoom_mm: float) -> Scan:
    """The scan of that head, the same voxels in both cohorts."""
    return Scan(
        seed=seed_of(seed, "twin scan"),
        axis_codes="PIR",
        zooms_mm=(zoom_mm, zoom_mm, zoom_mm),
        rotation_degrees=(3.0, -1.0, 2.0),
    )
