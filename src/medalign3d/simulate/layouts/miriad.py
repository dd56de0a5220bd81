"""MIRIAD as UCL's XNAT ships it: flat ``.nii`` files whose names hold group and sex, and three exported tables.

One 1.5 T scanner, coronal slices. MMSE at weeks 0, 26, 52, 78 and 104 only, CDR at the screening of the AD group only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from medalign3d.params import Params
from medalign3d.simulate.faults import PLANTED, Fault, image_fault
from medalign3d.simulate.images import Job
from medalign3d.simulate.layouts import Plan, Truths, write_table
from medalign3d.simulate.records import (
    DAYS_PER_YEAR,
    Person,
    Visit,
    add_visit,
    balanced_classes,
    draw_person,
    draw_scan,
    seed_of,
    text,
)

COHORT: Final = "MIRIAD"
SHARES = {"AD": 46.0, "NC": 23.0}
WEEKS = (0, 2, 6, 14, 26, 38, 52, 78, 104)
MMSE_WEEKS = (0, 26, 52, 78, 104)
RESCAN_WEEKS = (0, 6, 38)
FIRST_ID = {"AD": 188, "NC": 234}
FEMALE = {"AD": 27 / 46, "NC": 11 / 23}
GROUP = {"AD": "AD", "NC": "HC"}
EXPORT = "simulated_5_3_2021_14_{minute}_7.csv"


def _person(params: Params, index: int, number: int, group: str, fault: str | None = None) -> Person:
    seed = params.simulate.seed
    rng = np.random.default_rng(seed_of(seed, COHORT, "person extras", fault or index))
    person = draw_person(
        COHORT,
        index,
        f"miriad_{number}",
        group,
        seed=seed,
        female=1.0 if fault == "SEX_CONFLICT" else FEMALE[group],
        age=(69.5, 7.1),
        age_limits=(55.2, 86.0),
        baseline_years=(2005, 2008),
        sites=1,
        fault=fault,
    )
    count = 1 if fault else min(params.simulate.maximum_sessions, len(WEEKS))
    later = sorted(rng.choice(np.arange(1, len(WEEKS)), size=count - 1, replace=False)) if count > 1 else []
    for i in (0, *(int(i) for i in later)):
        # The AD group has a global CDR of at least 0.5 by inclusion.
        rating = None if group == "NC" else float(rng.choice([0.5, 1.0, 2.0], p=[0.25, 0.60, 0.15]))
        visit = add_visit(person, f"{i + 1:02d}", WEEKS[i] * 7 / DAYS_PER_YEAR * 12, cdr_global=rating, jitter_days=0)
        person.extra[visit.code] = WEEKS[i]
    return person


def plan(params: Params) -> Plan:
    """Plan the MIRIAD tree."""
    seed = params.simulate.seed
    count = params.simulate.participants[COHORT]
    groups = balanced_classes(SHARES, count, seed_of(seed, COHORT, "classes"))
    if params.simulate.faults:
        groups += ["AD" if i % 2 else "NC" for i in range(len(PLANTED[COHORT]))]
    numbers = _numbers(groups)
    people = [
        _person(params, i, numbers[i], groups[i], PLANTED[COHORT][i - count] if i >= count else None)
        for i in range(len(groups))
    ]
    jobs: list[Job] = []
    faults: list[Fault] = []
    sessions: list[dict[str, Any]] = []
    for person in people:
        for visit in person.visits:
            rng = np.random.default_rng(seed_of(person.seed, "rescan", visit.code))
            scans = 2 if person.extra[visit.code] in RESCAN_WEEKS and rng.random() < 0.9 and person.fault is None else 1
            for number in range(1, scans + 1):
                job = _job(params, person, visit, number)
                jobs.append(job)
                sessions.append({"person": person, "visit": visit, "scan": number})
                faults += _faults(person, job)

    def write_tables(root: Path, truths: Truths) -> None:
        _write_tables(root, people, sessions)

    return Plan(jobs, write_tables, faults, len(people))


def _numbers(groups: list[str]) -> list[int]:
    """Numbers in the study's ranges (AD 188-233, controls 234-256), beyond them where there are more people."""
    following = dict(FIRST_ID)
    limits = {"AD": 234, "NC": 257}
    numbers = []
    overflow = 300
    for group in groups:
        if following[group] < limits[group]:
            numbers.append(following[group])
            following[group] += 1
        else:
            numbers.append(overflow)
            overflow += 1
    return numbers


def _file_stem(person: Person, visit: Visit, scan: int) -> str:
    # The SEX_CONFLICT person is a woman in the tables and a man in the file name.
    sex = "M" if person.fault == "SEX_CONFLICT" else person.sex
    return f"{person.subject}_{GROUP[person.baseline_class]}_{sex}_{visit.code}_MR_{scan}"


def _job(params: Params, person: Person, visit: Visit, number: int) -> Job:
    zoom = params.simulate.zooms_mm
    # The real protocol is 0.94 x 0.94 x 1.5 mm: in-plane finer than the slices.
    plane = round(0.94 * zoom, 3)
    scan = draw_scan(person, f"{visit.code}/{number}", axis_codes="LSA", zooms_mm=(plane, plane, zoom))
    anatomy, shown = person.anatomy_at(visit.months / 12, visit.code)
    key = _file_stem(person, visit, number)
    truth = {
        "visit_code": visit.code,
        "dx": "AD" if person.baseline_class == "AD" else "NC",
        "dx_class": person.baseline_class,
        "severity": visit.severity,
        "image_severity": shown,
        "cognition": visit.cognition,
        "age_years": visit.age,
        "sex": person.sex,
        "education_years": float(person.education),
        "fault": person.fault or "",
    }
    damage: Any = {"IMAGE_NOT_3D": "not_3d", "IMAGE_EMPTY": "empty"}.get(person.fault or "")
    job = Job(key, person.subject, f"{key}.nii", "nifti", anatomy, scan, truth, damage=damage)
    if person.fault == "DUPLICATE_IMAGE_BYTES":
        job.copies.append(f"{_file_stem(person, visit, 2)}.nii")
    return job


def _faults(person: Person, job: Job) -> list[Fault]:
    reason = person.fault
    if reason is None:
        return []
    if reason == "DUPLICATE_IMAGE_BYTES":
        return [image_fault(reason, Path(job.copies[0]).stem, detail="the voxels of scan 1")]
    return [image_fault(reason, job.key, "warn" if reason == "AGE_MISSING" else "drop")]


def _write_tables(root: Path, people: list[Person], sessions: list[dict[str, Any]]) -> None:
    scans, clinical, subjects = [], [], []
    for entry in sessions:
        person, visit = entry["person"], entry["visit"]
        for number in (1, 2) if person.fault == "DUPLICATE_IMAGE_BYTES" else (entry["scan"],):
            scans.append(
                {
                    "MR ID": f"{person.subject}_{int(visit.code)}_MR_{number}",
                    "Subject": person.subject,
                    "M/F": person.sex,
                    "Age": "" if person.fault == "AGE_MISSING" else f"{visit.age:.2f}",
                    "Project": "MIRIAD",
                    "Type": "T1",
                    "Scanner": "GE Signa 1.5T",
                    "Scans": "T1(1)",
                }
            )
    for person in people:
        for visit in person.visits:
            row = {"Subject": person.subject}
            if person.extra[visit.code] in MMSE_WEEKS:
                clinical.append(
                    row | {"Label": f"{person.subject}_{int(visit.code)}_MMSE", "MMSE": text(visit.scores.mmse)}
                )
            if visit.code == "01" and person.baseline_class == "AD":
                clinical.append(row | {"Label": f"{person.subject}_1_CDR", "CDR": text(visit.scores.cdr_global)})
        subjects.append(
            {
                "Subject": person.subject,
                "Gender": "female" if person.sex == "F" else "male",
                "Hand": {"L": "left", "R": "right"}[person.handedness],
                "MR Count": str(sum(row["Subject"] == person.subject for row in scans)),
            }
        )
    write_table(
        root / EXPORT.format(minute=21),
        ["MR ID", "Subject", "M/F", "Age", "Project", "Date", "Type", "Scanner", "Scans"],
        scans,
    )
    write_table(root / EXPORT.format(minute=22), ["Label", "Subject", "MMSE", "CDR"], clinical)
    write_table(
        root / EXPORT.format(minute=23), ["Subject", "Gender", "Hand", "YOB", "Education", "Ses", "MR Count"], subjects
    )
