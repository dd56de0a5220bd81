"""The published Table 1: what the authors counted in each cohort (MedBLIP, arXiv 2305.10799), 30,371 images in all.

These are their figures, not measured here. Two of them need care:

- ADNI: women and men add up to 10,387, which is 100 more than the images. One figure is a misprint; the images agree
  with the published total. ``ADNI_MALE_CORRECTED`` takes the men for it, because then one digit is wrong and the share
  of women (45.8 %) is the one nearest to the published 45.3 %.
- "CDR" is the sum of boxes (0-18) in NACC and the global rating (0-3) elsewhere: two scales under one name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedCohort:
    """One column of the table; a field that was not given is None. Counts are images, ages whole years."""

    images: int
    female: int
    male: int
    age_min: int
    age_max: int
    education: int | None
    ses: int | None
    mmse: int
    cdr: int
    logical_memory: int | None
    diagnoses: tuple[str, ...]


PUBLISHED: dict[str, PublishedCohort] = {
    "ADNI": PublishedCohort(
        10287, 4710, 5677, 45, 95, 9860, None, 9385, 9401, 7189, ("NC", "MCI", "AD", "EMCI", "LMCI", "SMCI", "PMCI")
    ),
    "NACC": PublishedCohort(
        15354, 9058, 6296, 19, 102, 15329, None, 7867, 15354, 7654, ("NC", "IMCI", "MCI", "DEM")
    ),
    "OASIS": PublishedCohort(3020, 1798, 1222, 18, 98, 2300, 2153, 2293, 2300, None, ("DEM", "Non-DEM")),
    "AIBL": PublishedCohort(1002, 471, 531, 42, 96, None, None, 1002, 1002, 1002, ("NC", "MCI", "AD")),
    "MIRIAD": PublishedCohort(708, 393, 315, 55, 87, None, None, 268, 46, None, ("NC", "AD")),
}  # fmt: skip
PUBLISHED_IMAGES = 30371
ADNI_MALE_CORRECTED = 5577
CDR_COLUMN = {
    "ADNI": "cdr_global",
    "NACC": "cdr_sb",
    "OASIS": "cdr_global",
    "AIBL": "cdr_global",
    "MIRIAD": "cdr_global",
}
"""The column that each cohort's published "CDR" is."""
