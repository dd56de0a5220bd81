"""OASIS-1 (Analyze, disc folders), OASIS-2 (NIfTI pairs) and OASIS-3 (NIfTI, current clinical layout) in one root.

Some people are in OASIS-1 and OASIS-2 under different names: same sex, age, eTIV, ASF, MMSE and CDR, as in the public
tables. Young OASIS-1 participants have no CDR, education, SES or MMSE. In OASIS the diagnosis *is* the CDR, so the CDR
follows the true severity here, and only the other tests are noisy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from medalign3d.files import write_text
from medalign3d.params import Params
from medalign3d.simulate.anatomy import Scan
from medalign3d.simulate.faults import PLANTED, Fault, field_fault, image_fault
from medalign3d.simulate.images import Job
from medalign3d.simulate.layouts import Plan, Truths, write_table, write_workbook
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

COHORT: Final = "OASIS"
# Shares of people by release; "linked" are in OASIS-1 and OASIS-2.
KINDS = {"young": 0.12, "oasis1": 0.30, "oasis2": 0.31, "linked": 0.15, "oasis3": 0.12}
SHARES = {"NC": 0.50, "MCI": 0.28, "AD": 0.22}
FEMALE = {"NC": 0.66, "MCI": 0.50, "AD": 0.55}
AGE = {"NC": (73, 9.0), "MCI": (76, 7.2), "AD": (77, 6.8)}
# Education, years -> the code of OASIS-1.
EDUCATION_CODES = ((17, "5"), (16, "4"), (13, "3"), (12, "2"), (0, "1"))
OASIS1_COLUMNS = ["ID", "M/F", "Hand", "Age", "Educ", "SES", "MMSE", "CDR", "eTIV", "nWBV", "ASF", "Delay"]
OASIS2_COLUMNS = [
    "Subject ID",
    "MRI ID",
    "Group",
    "Visit",
    "MR Delay",
    "M/F",
    "Hand",
    "Age",
    "EDUC",
    "SES",
    "MMSE",
    "CDR",
    "eTIV",
    "nWBV",
    "ASF",
]
OASIS2_TABLE = "oasis_longitudinal_demographics-8d83e569fa2e2d30.xlsx"
# FreeSurfer-like normalization: share of the intracranial volume that the mask-based tissue count calls brain.
BRAIN_SHARE = 0.82
HEAD_SIZE_CONSTANT = 1755.0


def _cdr(person: Person, visit_number: int) -> float:
    """The global CDR of a session: it is the label here."""
    years = person.visits[visit_number].months / 12 if visit_number < len(person.visits) else 0.0
    stage = person.class_at(years)
    if person.extra.get("converts") and visit_number > 0:
        return 0.5
    if stage == "NC":
        return 0.0
    if stage == "MCI":
        return 0.5
    return 2.0 if person.severity_at(years) > 1.02 else (0.5 if person.severity_at(years) < 0.78 else 1.0)


def _person(params: Params, index: int, kind: str, stage: str, fault: str | None = None) -> Person:
    seed = params.simulate.seed
    rng = np.random.default_rng(seed_of(seed, COHORT, "person extras", fault or index))
    young = kind == "young"
    person = draw_person(
        COHORT,
        index,
        "",
        "NC" if young else stage,
        seed=seed,
        female=0.55 if young else FEMALE[stage],
        age=(29.0, 10.0) if young else AGE[stage],
        age_limits=(18, 58) if young else (60, 94),
        education=(14.2, 3.0),
        sites=1,
        progressing=0.25,
        carriers=0.35,
        fault=fault,
    )
    if young:
        person.severity = 0.05 + 0.03 * float(rng.standard_normal())
    person.extra["kind"] = kind
    person.extra["converts"] = kind == "oasis2" and stage == "NC" and fault is None and rng.random() < 0.15
    if person.extra["converts"]:
        person.severity, person.annual_change = 0.32, 0.07
    sessions = 1
    if kind in ("oasis2", "linked") and fault is None:
        sessions = min(params.simulate.maximum_sessions, 1 + int(rng.random() < 0.6))
    if kind == "oasis3":
        sessions = min(params.simulate.maximum_sessions, 1 + int(rng.random() < 0.5))
    months = 0.0
    for number in range(sessions):
        if number:
            months += float(rng.uniform(12, 40))
        add_visit(person, f"MR{number + 1}", months, jitter_days=0)
    for number, visit in enumerate(person.visits):
        visit.scores.cdr_global = _cdr(person, number)
    return person


def plan(params: Params) -> Plan:
    """Plan the OASIS tree."""
    seed = params.simulate.seed
    count = params.simulate.participants[COHORT]
    kinds = balanced_classes(KINDS, count, seed_of(seed, COHORT, "kinds"))
    stages = balanced_classes(SHARES, count, seed_of(seed, COHORT, "classes"))
    people = [_person(params, i, kinds[i], stages[i]) for i in range(count)]
    if params.simulate.faults:
        for release, kind in (("OASIS-1", "oasis1"), ("OASIS-2", "oasis2")):
            people += [_person(params, len(people), kind, "NC", reason) for reason in PLANTED[release]]
    tree = _Tree(params)
    for person in people:
        kind = person.extra["kind"]
        if kind in ("oasis2", "linked"):
            tree.add_oasis2(person)
        if kind in ("young", "oasis1", "linked"):
            tree.add_oasis1(person)
        if kind == "oasis3":
            tree.add_oasis3(person)
    return Plan(tree.jobs, tree.write_tables, tree.faults, len(people))


class _Tree:
    """Collects images and table rows of the three releases; numbers are given in order of arrival."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.zoom = params.simulate.zooms_mm
        self.jobs: list[Job] = []
        self.faults: list[Fault] = []
        self.oasis1: list[tuple[str, dict[str, Any]]] = []
        self.oasis2: list[tuple[str, dict[str, Any]]] = []
        self.oasis3: list[Person] = []
        self.texts: list[tuple[str, str]] = []
        self.number1 = self.number2 = 0

    def _truth(self, person: Person, visit: Visit, shown: float, release: str, label: bool = True) -> dict[str, Any]:
        cdr = visit.scores.cdr_global or 0.0
        return {
            "visit_code": visit.code,
            "dx": ("DEM" if cdr >= 0.5 else "Non-DEM") if label else None,
            "dx_class": ("DEM" if cdr >= 0.5 else "NonDEM") if label else None,
            "severity": visit.severity,
            "image_severity": shown,
            "cognition": visit.cognition,
            "age_years": visit.age,
            "sex": person.sex,
            "education_years": float(person.education),
            "fault": person.fault or "",
            "release": release,
            "true_person": f"{COHORT}-{person.index}",
        }

    # ---------------------------------------------------------------------------------------------------------- OASIS-1
    def add_oasis1(self, person: Person) -> None:
        """One session (and, for some young people, the reliability re-scan MR2)."""
        self.number1 += 1
        subject = f"OAS1_{self.number1:04d}"
        young = person.extra["kind"] == "young"
        rng = np.random.default_rng(seed_of(person.seed, "oasis1"))
        visit = person.visits[0]
        rescan = young and rng.random() < 0.2
        for session in ("MR1", "MR2") if rescan else ("MR1",):
            folder = f"disc{1 + (self.number1 - 1) // 35}/{subject}_{session}"
            repeats = int(rng.choice([3, 4, 4, 4]))
            stem = f"{subject}_{session}_mpr_n{repeats}_anon_sbj_111"
            first = self._add_average(person, subject, session, folder, stem, visit, young)
            if person.fault == "AMBIGUOUS_FILE":
                other = f"{subject}_{session}_mpr_n{7 - repeats}_anon_sbj_111"
                second = self._add_average(person, subject, session, folder, other, visit, young)
                self.faults += [
                    image_fault("AMBIGUOUS_FILE", key, detail="n3 and n4 averages") for key in (first, second)
                ]
            if person.fault == "DERIVED_VARIANT":
                self._add_atlas(person, subject, session, folder, repeats, visit)
            if person.fault == "AGE_OUT_OF_RANGE":
                self.faults.append(image_fault("AGE_OUT_OF_RANGE", first, "null_field", "Age 190"))
            if young:
                self.faults.append(image_fault("NO_DIAGNOSIS", first, "warn", "blank CDR, by design"))
            scores = visit.scores
            row = {
                "ID": f"{subject}_{session}",
                "M/F": person.sex,
                "Hand": "R",
                "Age": "190" if person.fault == "AGE_OUT_OF_RANGE" else str(int(visit.age)),
                "Educ": "" if young else next(code for least, code in EDUCATION_CODES if person.education >= least),
                "SES": "" if young or person.extra.setdefault("no_ses", bool(rng.random() < 0.08)) else str(person.ses),
                "MMSE": "" if young else text(scores.mmse),
                "CDR": "" if young else text(scores.cdr_global),
                "Delay": str(int(rng.integers(1, 90))) if session == "MR2" else "N/A",
            }
            self.oasis1.append((first, row))
            self.texts.append((f"{folder}/{subject}_{session}.txt", _summary(row)))

    def _add_average(
        self, person: Person, subject: str, session: str, folder: str, stem: str, visit: Visit, young: bool
    ) -> str:
        anatomy, shown = person.anatomy_at(0.0, visit.code)
        # 1 mm: 256 x 256 x 160 voxels; axes to anterior, superior, left, and the world's origin half an image in.
        zoom = self.zoom
        shape = (round(256 / zoom), round(256 / zoom), round(160 / zoom))
        scan = draw_scan(
            person,
            f"{session}/{stem}",
            axis_codes="ASL",
            zooms_mm=(zoom, zoom, zoom),
            shape=shape,
            centre_mm=(zoom / 2, -zoom / 2, -zoom / 2),
        )
        key = f"{subject}_{session}/{stem}"
        truth = self._truth(person, visit, shown, "OASIS-1", not young) | {"visit_code": session}
        path = f"{folder}/PROCESSED/MPRAGE/SUBJ_111/{stem}.hdr"
        # The average is read on the grid of the header-less convention; pose puts the head where the scanner had it.
        scan = _shifted(scan, 12.0)
        self.jobs.append(Job(key, subject, path, "analyze", anatomy, scan, truth))
        return key

    def _add_atlas(self, person: Person, subject: str, session: str, folder: str, repeats: int, visit: Visit) -> None:
        anatomy, shown = person.anatomy_at(0.0, visit.code)
        zoom = self.zoom
        shape = (round(176 / zoom), round(208 / zoom), round(176 / zoom))
        scan = draw_scan(person, "atlas", axis_codes="LAS", zooms_mm=(zoom, zoom, zoom), shape=shape)
        stem = f"{subject}_{session}_mpr_n{repeats}_anon_111_t88_masked_gfc"
        key = f"{subject}_{session}/{stem}"
        truth = self._truth(person, visit, shown, "OASIS-1")
        self.jobs.append(
            Job(key, subject, f"{folder}/PROCESSED/MPRAGE/T88_111/{stem}.hdr", "analyze", anatomy, scan, truth)
        )
        self.faults.append(image_fault("DERIVED_VARIANT", key, detail="atlas-space version of the session's average"))

    # ---------------------------------------------------------------------------------------------------------- OASIS-2
    def add_oasis2(self, person: Person) -> None:
        """All sessions of one person, some with a second repeat."""
        self.number2 += 1
        subject = f"OAS2_{self.number2:04d}"
        rng = np.random.default_rng(seed_of(person.seed, "oasis2"))
        if person.extra.setdefault("no_ses", bool(rng.random() < 0.06)):
            ses = ""
        else:
            ses = str(person.ses)
        ratings = [visit.scores.cdr_global or 0.0 for visit in person.visits]
        group = "Nondemented" if max(ratings) == 0 else ("Converted" if ratings[0] == 0 else "Demented")
        for visit in person.visits:
            session = f"{subject}_{visit.code}"
            folder = f"OAS2_RAW_PART{1 + (self.number2 - 1) % 2}/{session}/RAW"
            repeats = 2 if person.fault is None and rng.random() < 0.12 else 1
            for repeat in range(1, repeats + 1):
                anatomy, shown = person.anatomy_at(visit.months / 12, visit.code)
                scan = draw_scan(
                    person, f"{visit.code}/{repeat}", axis_codes="ASR", zooms_mm=(self.zoom, self.zoom, self.zoom)
                )
                damage: Any = "truncated" if person.fault == "IMAGE_TRUNCATED" else None
                key = f"{session}/mpr-{repeat}"
                self.jobs.append(
                    Job(
                        key,
                        subject,
                        f"{folder}/mpr-{repeat}.nifti.hdr",
                        "nifti_pair",
                        anatomy,
                        scan,
                        self._truth(person, visit, shown, "OASIS-2"),
                        damage=damage,
                    )
                )
            if person.fault == "IMAGE_TRUNCATED":
                self.faults.append(
                    image_fault("IMAGE_TRUNCATED", f"{session}/mpr-1", detail="half of the voxels are missing")
                )
            if person.fault == "VALUE_OUT_OF_RANGE":
                self.faults.append(field_fault("VALUE_OUT_OF_RANGE", subject, visit.code, "MMSE", "45"))
            row = {
                "Subject ID": subject,
                "MRI ID": session,
                "Group": group,
                "Visit": visit.code.removeprefix("MR"),
                "MR Delay": str((visit.date - person.baseline).days),
                "M/F": person.sex,
                "Hand": "R",
                "Age": str(int(visit.age)),
                "EDUC": str(person.education),
                "SES": ses,
                "MMSE": "45" if person.fault == "VALUE_OUT_OF_RANGE" else text(visit.scores.mmse),
                "CDR": text(visit.scores.cdr_global),
            }
            self.oasis2.append((f"{session}/mpr-1", row))

    # ---------------------------------------------------------------------------------------------------------- OASIS-3
    def add_oasis3(self, person: Person) -> None:
        """All sessions of one person; days count from entry."""
        subject = f"OAS3{len(self.oasis3) + 1:04d}"
        person.subject = subject
        rng = np.random.default_rng(seed_of(person.seed, "oasis3"))
        offset = int(rng.integers(20, 140))
        person.extra["offset"] = offset
        self.oasis3.append(person)
        for number, visit in enumerate(person.visits, start=1):
            day = offset + (visit.date - person.baseline).days
            label = f"d{day:04d}"
            stem = f"sub-{subject}_ses-{label}_run-01_T1w"
            anatomy, shown = person.anatomy_at(visit.months / 12, visit.code)
            scan = draw_scan(person, number, axis_codes="PSR", zooms_mm=(self.zoom, self.zoom, self.zoom))
            folder = f"{subject}_MR_{label}/anat{1 + int(rng.integers(1, 4))}/NIFTI"
            key = f"{subject}_MR_{label}/{stem}"
            rating = visit.scores.cdr_global or 0.0
            stage = "NC" if rating == 0 else ("MCI" if rating == 0.5 else "AD_DEM")
            truth = self._truth(person, visit, shown, "OASIS-3") | {"visit_code": label, "dx": stage}
            sidecar = {
                "Modality": "MR",
                "Manufacturer": "Siemens",
                "ManufacturersModelName": "TrioTim",
                "MagneticFieldStrength": 3,
                "SeriesDescription": "MPRAGE",
                "ConversionSoftware": "simulated (MedAlign-3D)",
            }
            self.jobs.append(
                Job(
                    key,
                    subject,
                    f"{folder}/{stem}.nii.gz",
                    "nifti_gz",
                    anatomy,
                    scan,
                    truth,
                    header=sidecar,
                    sidecar=f"{folder}/{stem}.json",
                )
            )

    # ----------------------------------------------------------------------------------------------------------- tables
    def write_tables(self, root: Path, truths: Truths) -> None:
        """Write the tables of the releases that have people."""
        rows1 = [row | _head_size(truths[key]) for key, row in self.oasis1]
        if rows1:
            write_table(root / "oasis_cross-sectional.csv", OASIS1_COLUMNS, rows1)
        for path, content in self.texts:
            write_text(root / path, content)
        rows2 = [row | _head_size(truths[key]) for key, row in self.oasis2]
        if rows2:
            write_workbook(root / OASIS2_TABLE, OASIS2_COLUMNS, rows2)
        if self.oasis3:
            _write_oasis3(root, self.oasis3)


def _shifted(scan: Scan, up_mm: float) -> Scan:
    """The same scan with the head further up and back to the middle of a grid that is centred on the origin."""
    from dataclasses import replace

    x, y, z = scan.translation_mm
    return replace(scan, translation_mm=(x, y + 16.0, z + up_mm))


def _summary(row: dict[str, Any]) -> str:
    """The session's text file."""
    lines = [
        f"SESSION ID:     {row['ID']}",
        f"AGE:            {row['Age']}",
        f"M/F:            {row['M/F']}",
        f"CDR:            {row['CDR']}",
    ]
    return "\n".join(["SIMULATED DATA", *lines]) + "\n"


def _head_size(truth: Any) -> dict[str, str]:
    """ETIV (cm3), nWBV and the atlas scaling factor, as the brain-size columns of the tables."""
    volume = round(float(truth["icv_ml"]))
    return {
        "eTIV": str(volume),
        "nWBV": f"{BRAIN_SHARE * float(truth['brain_ml']) / float(truth['icv_ml']):.3f}",
        "ASF": f"{HEAD_SIZE_CONSTANT / volume:.3f}",
    }


def _write_oasis3(root: Path, people: list[Person]) -> None:
    def path(form: str) -> Path:
        return root / "OASIS3_data_files/scans" / form / "resources/csv/files" / f"OASIS3_{form}.csv"

    demographics, ratings, physical, tests, diagnoses, scanners = [], [], [], [], [], []
    for person in people:
        offset = person.extra["offset"]
        entry_age = person.visits[0].age - offset / DAYS_PER_YEAR
        low, high = person.apoe
        demographics.append(
            {
                "OASISID": person.subject,
                "AgeatEntry": f"{entry_age:.2f}",
                "AgeatDeath": "",
                "GENDER": "2" if person.sex == "F" else "1",
                "EDUC": str(person.education),
                "SES": str(person.ses),
                "racecode": "5",
                "race": "White",
                "ETHNIC": "0",
                "HAND": person.handedness,
                "APOE": f"{low}{high}",
            }
        )
        for number, visit in enumerate(person.visits):
            rng = np.random.default_rng(seed_of(person.seed, "oasis3 visit", number))
            scan_day = offset + (visit.date - person.baseline).days
            day = max(0, scan_day - int(rng.integers(0, 90)))
            label = f"{person.subject}_UDSb4_d{day:04d}"
            overall = visit.scores.cdr_global or 0.0
            boxes = {
                0.0: (0.0,) * 6,
                0.5: (0.5, 0.5, 0.5, 0.5, 0.5, 0.0),
                1.0: (1.0, 1.0, 1.0, 1.0, 0.5, 1.0),
                2.0: (2.0, 2.0, 2.0, 2.0, 2.0, 1.0),
            }[overall]
            wording = {0.0: "Cognitively normal", 0.5: "uncertain dementia", 1.0: "AD Dementia", 2.0: "AD Dementia"}[
                overall
            ]
            common = {
                "OASISID": person.subject,
                "days_to_visit": str(day),
                "age at visit": f"{entry_age + day / DAYS_PER_YEAR:.2f}",
            }
            names = ("memory", "orient", "judgment", "commun", "homehobb", "perscare")
            ratings.append(
                common
                | {
                    "OASIS_session_label": label,
                    "MMSE": text(visit.scores.mmse),
                    **dict(zip(names, map(text, boxes), strict=True)),
                    "CDRSUM": text(float(sum(boxes))),
                    "CDRTOT": text(overall),
                    "dx1": wording,
                    "dx1_code": "1",
                }
            )
            physical.append(
                common
                | {
                    "OASIS_session_label": label.replace("b4", "b1"),
                    "weight": "165",
                    "height": "66",
                    "bpsys": "130",
                    "bpdias": "75",
                }
            )
            tests.append(
                common
                | {
                    "OASIS_session_label": label.replace("b4", "c1"),
                    "LOGIMEM": text(visit.scores.lm_immediate),
                    "MEMUNITS": text(visit.scores.lm_delayed),
                }
            )
            diagnoses.append(
                common
                | {
                    "OASIS_session_label": label.replace("b4", "d1"),
                    "NORMCOG": "1" if overall == 0 else "0",
                    "DEMENTED": "1" if overall >= 1 else "0",
                    "MCIAMEM": "1" if overall == 0.5 else "0",
                    "MCIAPLUS": "0",
                    "MCINON1": "0",
                    "MCINON2": "0",
                    "IMPNOMCI": "0",
                    "PROBAD": "1" if overall >= 1 else "0",
                    "POSSAD": "0",
                }
            )
            scanners.append(
                {
                    "label": f"{person.subject}_MR_d{scan_day:04d}",
                    "subject_id": person.subject,
                    "Manufacturer": "Siemens",
                    "ManufacturersModelName": "TrioTim",
                    "MagneticFieldStrength": "3",
                }
            )
    for form, rows in (
        ("demographics", demographics),
        ("UDSb4_cdr", ratings),
        ("UDSb1_physical_eval", physical),
        ("UDSc1_cognitive_assessments", tests),
        ("UDSd1_diagnoses", diagnoses),
        ("MR_json", scanners),
    ):
        write_table(path(form), list(rows[0]), rows)
