"""NACC at the size of Table 1: 15,354 NIfTI files of sessions, T1-weighted or not, and their UDS visits.

Form version 3 (from March 2015) replaced the MMSE by the MoCA and logical memory by the Craft story: that alone empties
nearly half of both, together. What is left to the published numbers are tests that could not be done, with their codes.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from medalign3d.published_table1 import PUBLISHED
from medalign3d.simulate.layouts import write_table
from medalign3d.simulate.layouts.nacc import FREEZE, MRI_COLUMNS, SYNDROME, UDS_COLUMNS, VERSION_3_FROM
from medalign3d.simulate.records import DAYS_PER_YEAR, text
from medalign3d.simulate.table1.draws import (
    exact_subset,
    generator,
    halves,
    pick,
    preferred_first,
    scaled,
    weighted_order,
    whole,
)

SHARES = {"NC": 0.49, "IMCI": 0.04, "MCI": 0.19, "AD": 0.28}
# Age, education, MMSE, logical memory delayed and immediate, CDR sum of boxes, hippocampi (cm3): mean, sd.
PROFILE: dict[str, tuple[tuple[float, float], ...]] = {
    "NC": ((71, 10), (15.9, 3), (28.9, 1.4), (13, 4), (14, 4), (0.1, 0.3), (6.6, 0.8)),
    "IMCI": ((71, 10), (14.9, 3.4), (27.8, 2.1), (10, 4.5), (11, 4), (0.7, 0.8), (6.4, 0.8)),
    "MCI": ((74, 9), (15.2, 3.3), (27.0, 2.6), (8, 5), (9.7, 4.5), (1.4, 1.1), (6.1, 0.9)),
    "AD": ((74, 10), (14.6, 3.6), (21, 6), (3, 4), (5.4, 4.3), (6, 4.5), (5.3, 1.0)),
}
CARRIERS = {"NC": 0.30, "IMCI": 0.32, "MCI": 0.41, "AD": 0.52}
ERAS = {"before": 0.50, "across": 0.12, "after": 0.38}  # of the change to form version 3
FIRST_YEAR = {"before": (2006, 2010), "across": (2012, 2014), "after": (2015, 2019)}
VISITS = {"before": (2, 4), "across": (3, 6), "after": (2, 6)}
SESSIONS = {"1": 0.62, "2": 0.28, "3": 0.10}
T1_NAMES = ("MPRAGE", "SAG_MPRAGE", "Sag_IR-SPGR_3D_T1", "T1_MPR_ISO")
OTHER_NAMES = ("AX_FLAIR", "AX_T2_FSE", "AX_DWI", "AX_GRE_T2STAR", "MPRAGE_REPEAT", "DTI_30DIR")
OTHERS = {"0": 0.30, "1": 0.35, "2": 0.20, "3": 0.10, "4": 0.05}  # files beside the first of a session
BOXES = ("MEMORY", "ORIENT", "JUDGMENT", "COMMUN", "HOMEHOBB", "PERSCARE")
NOT_DONE = ("95", "96", "97", "98")


def _people(rng: Any, target: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """People with dated visits, and their sessions (one calendar year never holds two visits)."""
    people: list[dict[str, Any]] = []
    sessions: list[dict[str, Any]] = []
    total = 0
    while total < target:
        era = pick(rng, ERAS)
        stage = pick(rng, SHARES)
        first = dt.date(int(rng.integers(*FIRST_YEAR[era])), 1, 1) + dt.timedelta(days=int(rng.integers(95, 270)))
        count = int(rng.integers(VISITS[era][0], VISITS[era][1] + 1))
        dates = [
            first + dt.timedelta(days=round(k * DAYS_PER_YEAR) + (int(rng.integers(-25, 26)) if k else 0))
            for k in range(count)
        ]
        age = float(rng.normal(*PROFILE[stage][0]))
        if rng.random() < 0.01:  # families with frontotemporal dementia enrol young
            age = float(rng.uniform(22, 45))
        age = min(max(age, 22.0), 93.0)
        person: dict[str, Any] = {
            "stage": stage,
            "dates": dates,
            "birth": first - dt.timedelta(days=round(age * DAYS_PER_YEAR)),
        }
        person["rows"] = [0] * count
        imaged = sorted(int(k) for k in rng.permutation(count)[: int(pick(rng, SESSIONS))])
        for number, k in enumerate(imaged, start=1):
            files = min(1 + int(pick(rng, OTHERS)), target - total)
            if files == 0:
                break
            date = dates[k] + dt.timedelta(days=int(rng.integers(-75, 76)))
            sessions.append({"person": len(people), "visit": k, "number": number, "files": files, "date": date})
            person["rows"][k] += files
            total += files
        people.append(person)
    return people, sessions


def write(root: Path, seed: int, scale: float) -> list[str]:
    """Write the UDS and MRI tables; return the paths of the files."""
    rng = generator(seed, "NACC")
    published = PUBLISHED["NACC"]
    people, sessions = _people(rng, scaled(published.images, scale))
    # The published range: age 19 and 102 by the difference of the years of scan and birth.
    numbers = [session["person"] for session in sessions]
    singles = [session for session in sessions[:200] if numbers.count(session["person"]) == 1]
    for session, age in zip(singles, (published.age_min, published.age_max), strict=False):
        people[session["person"]]["birth"] = dt.date(session["date"].year - age, 2, 15)
    sizes = [sum(person["rows"]) for person in people]
    places = rng.permutation(len(people)).tolist()
    women = exact_subset(sizes, scaled(published.female, scale), places)
    assert published.education is not None
    unschooled = exact_subset(
        sizes,
        scaled(published.images, scale) - scaled(published.education, scale),
        rng.permutation(len(people)).tolist(),
    )
    # Visits that are seen by a scan, and the tests that are missing there.
    seen = [(i, k) for i, person in enumerate(people) for k, rows in enumerate(person["rows"]) if rows]
    rows_of = [people[i]["rows"][k] for i, k in seen]
    new_form = [people[i]["dates"][k] >= VERSION_3_FROM for i, k in seen]
    by_form = sum(rows for rows, new in zip(rows_of, new_form, strict=True) if new)
    assert published.logical_memory is not None
    no_mmse = scaled(published.images, scale) - scaled(published.mmse, scale)
    no_memory = scaled(published.images, scale) - scaled(published.logical_memory, scale)
    old = [0 if new else rows for rows, new in zip(rows_of, new_form, strict=True)]
    stages = [people[i]["stage"] for i, _ in seen]
    untestable = weighted_order([3.0 if stage == "AD" else 1.0 for stage in stages], rng)
    without_mmse = {seen[k] for k in exact_subset(old, no_mmse - by_form, untestable)}
    also = preferred_first([visit in without_mmse for visit in seen], rng)
    without_memory = {seen[k] for k in exact_subset(old, no_memory - by_form, also)}

    uds: list[dict[str, str]] = []
    for i, person in enumerate(people):
        stage, birth = person["stage"], person["birth"]
        _, schooling, mmse, delayed, immediate, boxes, _ = PROFILE[stage]
        education = "99" if i in unschooled else text(whole(rng, *schooling, 4, 26))
        alleles = sum(rng.random() < 0.6 * CARRIERS[stage] for _ in range(2))
        alzheimer = rng.random() < 0.85
        history = {
            name: str(int(rng.random() < 0.2)) for name in ("DIABETES", "HYPERTEN", "HYPERCHO", "B12DEF", "THYROID")
        }
        fixed = {
            "NACCID": f"NACC{100123 + i:06d}",
            "NACCADC": str(1000 + 7 * (i % 30)),
            "BIRTHMO": str(birth.month),
            "BIRTHYR": str(birth.year),
            "SEX": "2" if i in women else "1",
            "EDUC": education,
            "HANDED": "1" if rng.random() < 0.09 else "2",
            "NACCAVST": str(len(person["dates"])),
            "NORMCOG": str(int(stage == "NC")),
            "DEMENTED": str(int(stage == "AD")),
            "IMPNOMCI": {"NC": "8", "AD": "8", "MCI": "0", "IMCI": "1"}[stage],
            "NACCUDSD": SYNDROME[stage],
            "NACCALZD": "8" if stage == "NC" else str(int(alzheimer)),
            "NACCETPR": "88" if stage == "NC" else ("1" if alzheimer else "2"),
            "NACCAPOE": ("1", "2", "4")[alleles],
            "NACCNE4S": str(alleles),
            "HEIGHT": "66.0",
            "WEIGHT": "888",
            "BPSYS": str(whole(rng, 134, 15, 90, 200)),
            **history,
        }
        for k, date in enumerate(person["dates"]):
            new = date >= VERSION_3_FROM
            total = halves(rng, *boxes, 0, 18)
            total = max(total, 1.0) if stage == "AD" else min(total, 4.0)
            rating = "0" if total <= 0.5 and stage != "AD" else "0.5" if total < 4.5 else "1" if total < 9.5 else "2"
            memory = min(float(rating), total)
            immediate_score = text(whole(rng, *immediate, 0, 25))
            delayed_score = text(whole(rng, *delayed, 0, 25))
            mmse_score = text(whole(rng, *mmse, 0, 30))
            row = {
                **fixed,
                "PACKET": "I" if k == 0 else "F",
                "FORMVER": "3" if new else ("2" if date >= dt.date(2008, 2, 1) else "1"),
                "VISITMO": str(date.month),
                "VISITDAY": str(date.day),
                "VISITYR": str(date.year),
                "NACCVNUM": str(k + 1),
                "NACCAGE": str(int((date - birth).days / DAYS_PER_YEAR)),
                "MEMORY": text(memory),
                **dict.fromkeys(BOXES[1:], "0"),
                "CDRSUM": text(total),
                "CDRGLOB": rating,
                "NACCGDS": "88" if rng.random() < 0.05 else text(whole(rng, 1.5, 1.8, 0, 15)),
                "NACCMMSE": "-4",
                "LOGIMEM": "-4",
                "MEMUNITS": "-4",
                "NACCMOCA": "-4",
                "CRAFTURS": "-4",
                "CRAFTDRE": "-4",
            }
            if new:
                row |= {
                    "NACCMOCA": mmse_score,
                    "MOCATOTS": mmse_score,
                    "CRAFTURS": immediate_score,
                    "CRAFTDRE": delayed_score,
                }
            else:
                reason = NOT_DONE[int(rng.integers(4))]
                row["NACCMMSE"] = reason if (i, k) in without_mmse else mmse_score
                no_story = (i, k) in without_memory
                row |= {
                    "LOGIMEM": reason if no_story else immediate_score,
                    "MEMUNITS": reason if no_story else delayed_score,
                }
            uds.append(row)
    write_table(root / f"investigator_nacc{FREEZE}.csv", UDS_COLUMNS, uds)

    mri: list[dict[str, str]] = []
    paths: list[str] = []
    for position, session in enumerate(sessions):
        i, k, date = session["person"], session["visit"], session["date"]
        person = people[i]
        locator = f"mri{1000 + position}"
        measured = rng.random() < 0.4
        mri.append(
            {
                "NACCID": f"NACC{100123 + i:06d}",
                "NACCADC": str(1000 + 7 * (i % 30)),
                "NACCMRIA": str(int((date - person["birth"]).days / DAYS_PER_YEAR)),
                "NACCMRFI": f"{locator}.zip",
                "NACCMNUM": str(session["number"]),
                "NACCMRDY": str((date - person["dates"][k]).days),
                "NACCVNUM": str(k + 1),
                "NACCMRSA": "1",
                "NACCDICO": "0",
                "NACCNIFT": "1",
                "MRIMO": str(date.month),
                "MRIDY": str(date.day),
                "MRIYR": str(date.year),
                "MRIT1": "1",
                "MRIFIELD": "1" if i % 3 == 0 else "2",
                "MRIMANU": str(1 + i % 3),
                "NACCMVOL": str(int(measured)),
                "HIPPOVOL": f"{max(float(rng.normal(*PROFILE[person['stage']][6])), 2.5):.4f}"
                if measured
                else "88.8888",
                "NACCICV": f"{min(max(float(rng.normal(1450, 140)), 1000), 2000):.3f}" if measured else "8888.888",
                "NACCBRNV": "8888.888",
                "LATVENT": "888.8888",
            }
        )
        for number in range(session["files"]):
            kind = T1_NAMES[i % 4] if number == 0 else OTHER_NAMES[int(rng.integers(len(OTHER_NAMES)))]
            paths.append(f"mri/within1yr/nifti/{locator}ni/{kind}_{date:%Y%m%d}_{number + 2}.nii")
    write_table(root / f"investigator_mri_nacc{FREEZE}.csv", MRI_COLUMNS, mri)
    return paths
