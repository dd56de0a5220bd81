"""MIRIAD at the size of Table 1: 69 people, 523 visits and 708 scans by the study's schedule.

Seven visits in the first year for everybody but 21 missed ones, 39 people at week 78, 22 at week 104; a second scan at
weeks 0, 6 and 38 but for 22. The missed visits never fall on the weeks at which the MMSE was taken, so 3 x 69 + 39 + 22
= 268 visits have one. The global CDR was rated at the first visit of the 46 people with Alzheimer's disease.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medalign3d.simulate.layouts import write_table
from medalign3d.simulate.layouts.miriad import EXPORT, GROUP, MMSE_WEEKS, RESCAN_WEEKS, WEEKS, _numbers
from medalign3d.simulate.records import DAYS_PER_YEAR, text
from medalign3d.simulate.table1.draws import generator, scaled, whole

PEOPLE = {("AD", "F"): 27, ("AD", "M"): 19, ("NC", "F"): 11, ("NC", "M"): 12}
FIRST_YEAR = WEEKS[:7]
MAY_MISS = (2, 6, 14, 38)
# By sex, so that women have 393 of the scans: visits at weeks 78 and 104, missed visits, missed second scans.
LATE = {"F": (23, 13), "M": (16, 9)}
MISSED_VISITS = {"F": 12, "M": 9}
MISSED_RESCANS = {"F": 11, "M": 11}


def write(root: Path, seed: int, scale: float) -> list[str]:
    """Write the three exports; return the paths of the scans."""
    rng = generator(seed, "MIRIAD")
    kinds = [kind for kind, count in PEOPLE.items() for _ in range(scaled(count, scale))]
    kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    subjects = [f"miriad_{number}" for number in _numbers([group for group, _ in kinds])]
    ages = [float(np.clip(rng.normal(69.5, 7.1), 56.2, 84.8)) for _ in kinds]
    weeks: list[set[int]] = [set(FIRST_YEAR) for _ in kinds]
    rescans: list[set[int]] = [set(RESCAN_WEEKS) for _ in kinds]
    for sex in ("F", "M"):
        own = [i for i, kind in enumerate(kinds) if kind[1] == sex]
        for place, week in ((0, 78), (1, 104)):
            for i in rng.permutation(own)[: min(len(own), scaled(LATE[sex][place], scale))]:
                weeks[int(i)].add(week)
        slots = [(i, week) for i in own for week in MAY_MISS]
        missed = [slots[int(k)] for k in rng.permutation(len(slots))[: scaled(MISSED_VISITS[sex], scale)]]
        for i, week in missed:
            weeks[i].discard(week)
        lost = [(i, week) for i, week in missed if week in RESCAN_WEEKS]
        kept = [(i, week) for i in own for week in RESCAN_WEEKS if week in weeks[i]]
        further = max(0, scaled(MISSED_RESCANS[sex], scale) - len(lost))
        for i, week in [*lost, *(kept[int(k)] for k in rng.permutation(len(kept))[:further])]:
            rescans[i].discard(week)
    # The published range, 55 to 87 years.
    ages[0], ages[1] = 55.3, 87.5 - max(weeks[1]) * 7 / DAYS_PER_YEAR
    scans: list[dict[str, Any]] = []
    clinical: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    paths: list[str] = []
    for i, (group, sex) in enumerate(kinds):
        before = len(scans)
        mmse = rng.normal(19.2, 4.0) if group == "AD" else rng.normal(29.4, 0.8)
        for visit, week in enumerate(WEEKS, start=1):
            if week not in weeks[i]:
                continue
            for scan in (1, 2) if week in rescans[i] else (1,):
                stem = f"{subjects[i]}_{GROUP[group]}_{sex}_{visit:02d}_MR_{scan}"
                paths.append(f"{stem}.nii")
                scans.append(
                    {
                        "MR ID": f"{subjects[i]}_{visit}_MR_{scan}",
                        "Subject": subjects[i],
                        "M/F": sex,
                        "Age": f"{ages[i] + week * 7 / DAYS_PER_YEAR:.2f}",
                        "Project": "MIRIAD",
                        "Type": "T1",
                        "Scanner": "GE Signa 1.5T",
                        "Scans": "T1(1)",
                    }
                )
            if week in MMSE_WEEKS:
                fall = 3.0 if group == "AD" else 0.0
                score = whole(rng, mmse - fall * week / 52, 0.7, 0, 30)
                clinical.append(
                    {"Label": f"{subjects[i]}_{visit}_MMSE", "Subject": subjects[i], "MMSE": text(score), "CDR": ""}
                )
            if week == 0 and group == "AD":
                rating = float(rng.choice([0.5, 1.0, 2.0], p=[0.25, 0.60, 0.15]))
                clinical.append(
                    {"Label": f"{subjects[i]}_1_CDR", "Subject": subjects[i], "MMSE": "", "CDR": text(rating)}
                )
        people.append(
            {
                "Subject": subjects[i],
                "Gender": "female" if sex == "F" else "male",
                "Hand": "right",
                "MR Count": str(len(scans) - before),
            }
        )
    write_table(
        root / EXPORT.format(minute=21),
        ["MR ID", "Subject", "M/F", "Age", "Project", "Date", "Type", "Scanner", "Scans"],
        scans,
    )
    write_table(root / EXPORT.format(minute=22), ["Label", "Subject", "MMSE", "CDR"], clinical)
    write_table(
        root / EXPORT.format(minute=23), ["Subject", "Gender", "Hand", "YOB", "Education", "Ses", "MR Count"], people
    )
    return paths
