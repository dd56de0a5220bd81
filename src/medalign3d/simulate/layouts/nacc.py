"""NACC as the coordinating centre ships it: one UDS table, one MRI table, one zip per MRI session.

Columns and codes follow the Uniform Data Set's researcher data dictionary and the imaging data dictionary. From form
version 3 (March 2015) MoCA and the Craft story take the place of MMSE and Logical Memory: those are missing by calendar
time, together.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, Final

import numpy as np

from medalign3d.params import Params
from medalign3d.simulate.faults import PLANTED, Fault, field_fault, image_fault
from medalign3d.simulate.images import Job
from medalign3d.simulate.layouts import Plan, Truths, names, write_table
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

COHORT: Final = "NACC"
SHARES = {"NC": 0.40, "IMCI": 0.04, "MCI": 0.27, "AD": 0.29}
PROFILE: dict[str, dict[str, Any]] = {
    "NC": {"age": (71, 9.0), "education": (15.9, 3.0), "carriers": 0.30},
    "IMCI": {"age": (71, 9.0), "education": (14.9, 3.4), "carriers": 0.32},
    "MCI": {"age": (74, 8.5), "education": (15.2, 3.3), "carriers": 0.41},
    "AD": {"age": (74, 9.0), "education": (14.6, 3.6), "carriers": 0.52},
}
SYNDROME = {"NC": "1", "IMCI": "2", "MCI": "3", "AD": "4"}
DX_NAMES = {"NC": "NC", "IMCI": "IMCI", "MCI": "MCI", "AD": "DEM"}
VERSION_3_FROM = dt.date(2015, 3, 15)
FREEZE = "71"
# The mask-based tissue count holds the cerebellum and half of the sulcal fluid; segmentations do not.
CEREBRUM_SHARE = 0.74
TEST_MISSING = ("88", "95", "96", "97", "98")

UDS_COLUMNS = names(
    "NACCID NACCADC PACKET FORMVER VISITMO VISITDAY VISITYR NACCVNUM NACCAVST NACCNVST NACCDAYS NACCFDYS "
    "BIRTHMO BIRTHYR SEX HISPANIC HISPOR RACE RACESEC PRIMLANG EDUC MARISTAT NACCLIVS INDEPEND RESIDENC "
    "HANDED NACCAGE NACCAGEB NACCREFR TOBAC100 SMOKYRS CVHATT CBSTROKE CBTIA SEIZURES TBI DIABETES "
    "HYPERTEN HYPERCHO B12DEF THYROID INCONTU DEP2YRS ALCOHOL HEIGHT WEIGHT NACCBMI BPSYS BPDIAS HRATE "
    "VISION HEARING MEMORY ORIENT JUDGMENT COMMUN HOMEHOBB PERSCARE CDRSUM CDRGLOB COMPORT CDRLANG "
    "NACCGDS BILLS TAXES SHOPPING GAMES STOVE MEALPREP EVENTS PAYATTN REMDATES TRAVEL NACCMMSE MMSELOC "
    "LOGIMEM MEMUNITS MEMTIME DIGIF DIGIB ANIMALS VEG TRAILA TRAILB WAIS BOSTON MOCATOTS NACCMOCA "
    "CRAFTVRS CRAFTURS CRAFTDVR CRAFTDRE NORMCOG DEMENTED NACCUDSD NACCTMCI IMPNOMCI NACCALZD NACCALZP "
    "PROBAD POSSAD NACCETPR NACCIDEM NACCMCII NACCNORM NACCAPOE NACCNE4S NACCMRSA NACCNMRI"
)
MRI_COLUMNS = names(
    "NACCID NACCADC NACCMRIA NACCMRFI NACCMNUM NACCNMRI NACCMRDY NACCVNUM NACCMRSA NACCDICO NACCNIFT "
    "MRIMO MRIDY MRIYR MRIT1 MRIT2 MRIFLAIR MRIDTI MRIDWI MRIOTHER MRIFIELD MRIMANU NACCMVOL NACCICV "
    "NACCBRNV GRAYVOL WHITEVOL CSFVOL WMHVOL NACCWMVL HIPPOVOL LHIPPO RHIPPO LATVENT LLATVENT RLATVENT "
    "THIRVENT"
)


def _form_version(date: dt.date) -> str:
    if date < dt.date(2008, 2, 1):
        return "1"
    return "2" if date < VERSION_3_FROM else "3"


def _person(params: Params, index: int, baseline_class: str, fault: str | None = None) -> Person:
    seed = params.simulate.seed
    rng = np.random.default_rng(seed_of(seed, COHORT, "person extras", fault or index))
    person = draw_person(
        COHORT,
        index,
        "",
        baseline_class,
        seed=seed,
        female=0.59,
        age_limits=(45, 95),
        baseline_years=(2008, 2017),
        sites=8,
        fault=fault,
        **PROFILE[baseline_class],
    )
    person.subject = f"NACC{100123 + 37 * index + int(rng.integers(30)):06d}"
    yearly = int(rng.integers(2, 6))
    if fault:
        yearly = 1 if fault == "NO_VISIT_IN_WINDOW" else 2
    for number in range(1, yearly + 1):
        add_visit(person, str(number), 12.0 * (number - 1), jitter_days=40)
    person.extra["adc"] = str(1000 + 7 * person.site)
    return person


def _sessions(person: Person, maximum: int) -> list[Visit]:
    if person.fault:
        return person.visits[:1]
    rng = np.random.default_rng(seed_of(person.seed, "sessions"))
    count = min(len(person.visits), 1 + int(rng.binomial(max(maximum - 1, 0), 0.40)))
    return [person.visits[i] for i in sorted(rng.choice(len(person.visits), size=count, replace=False))]


def plan(params: Params) -> Plan:
    """Plan the NACC tree."""
    seed = params.simulate.seed
    count = params.simulate.participants[COHORT]
    classes = balanced_classes(SHARES, count, seed_of(seed, COHORT, "classes"))
    people = [_person(params, i, classes[i]) for i in range(count)]
    if params.simulate.faults:
        people += [
            _person(params, count + i, "NC" if i % 2 else "MCI", reason) for i, reason in enumerate(PLANTED[COHORT])
        ]
    jobs: list[Job] = []
    sessions: list[dict[str, Any]] = []
    faults: list[Fault] = []
    for person in people:
        chosen = _sessions(person, params.simulate.maximum_sessions)
        for number, visit in enumerate(chosen, start=1):
            job, session = _job(params, person, visit, number, len(chosen), 1000 + 3 * len(jobs))
            jobs.append(job)
            if person.fault != "FILE_WITHOUT_RECORD":
                sessions.append(session)
            faults += _faults(person, job, visit)

    def write_tables(root: Path, truths: Truths) -> None:
        _write_uds(root, people)
        _write_mri(root, sessions, truths)

    return Plan(jobs, write_tables, faults, len(people))


def _faults(person: Person, job: Job, visit: Visit) -> list[Fault]:
    reason = person.fault
    if reason is None:
        return []
    if reason == "NOT_T1":
        return [
            image_fault(
                reason, f"{job.key.split('/')[0]}/{Path(job.members[0][0]).name}", detail="a FLAIR in the session's zip"
            )
        ]
    if reason == "SENTINEL_UNKNOWN":
        return [field_fault(reason, person.subject, visit.code, "NACCMMSE", "-9 is no code of the code book")]
    if reason in ("DATE_UNPARSABLE", "DIAGNOSIS_OUT_OF_SCOPE"):
        return [image_fault(reason, job.key, "warn")]
    if reason == "CROSS_COHORT_DUPLICATE":
        return [image_fault(reason, job.key, detail="the voxels of an ADNI image", stage="harmonize")]
    return [image_fault(reason, job.key)]


def _job(
    params: Params, person: Person, visit: Visit, number: int, total: int, locator_number: int
) -> tuple[Job, dict[str, Any]]:
    rng = np.random.default_rng(seed_of(person.seed, "acquisition", visit.code))
    shift = 900 if person.fault == "NO_VISIT_IN_WINDOW" else int(rng.integers(-75, 76))
    date = visit.date + dt.timedelta(days=shift)
    zoom = params.simulate.zooms_mm
    site = np.random.default_rng(seed_of(COHORT, "protocol", person.site))
    description = str(site.choice(["MPRAGE", "SAG MPRAGE", "Sag IR-SPGR 3D T1", "T1 MPR ISO"]))
    field, maker = str(site.choice(["1", "2", "2"])), str(site.choice(["1", "2", "3"]))
    series = int(rng.integers(2, 9))
    locator = f"mri{locator_number}"
    name = f"{description.replace(' ', '_')}_{date:%Y%m%d}_{series}"
    if person.fault == "KNOWN_BAD_CONVERSION":
        name += "_Eq_1"
    key = f"{locator}/{name}.nii"
    sidecar = {
        "Modality": "MR",
        "MagneticFieldStrength": 1.5 if field == "1" else 3,
        "Manufacturer": {"1": "GE", "2": "Siemens", "3": "Philips"}[maker],
        "SeriesDescription": description,
        "MRAcquisitionType": "3D",
        "SliceThickness": min(zoom, 1.2),
        "SeriesNumber": series,
        "AcquisitionTime": "10:12:30.000000",
        "ConversionSoftware": "simulated (MedAlign-3D)",
    }
    if site.random() < 0.2:
        sidecar["MagneticFieldStrength"] = 15000 if field == "1" else 30000  # some exports hold gauss
    anatomy, shown = person.anatomy_at((date - person.baseline).days / DAYS_PER_YEAR, number)
    scan = draw_scan(person, number, axis_codes="RAS" if maker == "1" else "LAS", zooms_mm=(zoom, zoom, zoom))
    if person.fault == "CROSS_COHORT_DUPLICATE":
        from medalign3d.simulate.shared import twin_anatomy, twin_scan

        anatomy, scan = twin_anatomy(params.simulate.seed), twin_scan(params.simulate.seed, zoom)
    truth = {
        "visit_code": visit.code,
        "dx": DX_NAMES[visit.diagnosis],
        "dx_class": visit.diagnosis,
        "severity": visit.severity,
        "image_severity": shown,
        "cognition": visit.cognition,
        "age_years": person.age_at(date),
        "sex": person.sex,
        "education_years": float(person.education),
        "fault": person.fault or "",
    }
    job = Job(
        key,
        person.subject,
        f"mri/{locator}ni.zip",
        "zip",
        anatomy,
        scan,
        truth,
        header=sidecar,
        inner=f"{locator}ni/{name}.nii",
    )
    if person.fault == "NOT_T1":
        thick = draw_scan(person, "flair", axis_codes="LAS", zooms_mm=(zoom, zoom, 5.0))
        flair = {
            **sidecar,
            "SeriesDescription": "AX FLAIR",
            "MRAcquisitionType": "2D",
            "SliceThickness": 5,
            "SeriesNumber": series + 3,
        }
        job.members.append((f"{locator}ni/AX_FLAIR_{date:%Y%m%d}_{series + 3}.nii", None, thick, flair))
    twin = person.fault is None and rng.random() < params.simulate.dicom_fraction
    if twin:
        job.dicom_twin = f"mri/{locator}.zip"
    return job, {
        "person": person,
        "visit": visit,
        "date": date,
        "locator": locator,
        "number": number,
        "total": total,
        "key": key,
        "field": field,
        "maker": maker,
        "dicom": twin,
        "shift": shift,
        "flair": person.fault == "NOT_T1",
    }


def _write_mri(root: Path, sessions: list[dict[str, Any]], truths: Truths) -> None:
    rows = []
    for session in sessions:
        person, date = session["person"], session["date"]
        rng = np.random.default_rng(seed_of(person.seed, "mri table", session["number"]))
        # The custodian's own count: days to the closest visit, 8888 where none is near.
        closest = min(person.visits, key=lambda v: (abs((date - v.date).days), v.date))
        days = (date - closest.date).days
        truth = truths[session["key"]]
        measured = rng.random() < 0.4
        row = {
            "NACCID": person.subject,
            "NACCADC": person.extra["adc"],
            "NACCMRIA": str(int(person.age_at(date))),
            "NACCMRFI": f"{session['locator']}.zip",
            "NACCMNUM": str(session["number"]),
            "NACCNMRI": str(session["total"]),
            "NACCMRDY": "8888" if person.fault == "NO_VISIT_IN_WINDOW" else str(days),
            "NACCVNUM": closest.code,
            "NACCMRSA": "1",
            "NACCDICO": "1" if session["dicom"] else "0",
            "NACCNIFT": "1",
            "MRIMO": str(date.month),
            "MRIDY": str(date.day),
            "MRIYR": str(date.year),
            "MRIT1": "1",
            "MRIT2": "8",
            "MRIFLAIR": "1" if session["flair"] else "0",
            "MRIDTI": "0",
            "MRIDWI": "9",
            "MRIOTHER": "0",
            "MRIFIELD": session["field"],
            "MRIMANU": session["maker"],
            "NACCMVOL": "1" if measured else "0",
        }
        if person.fault == "DATE_UNPARSABLE":
            row |= {"MRIMO": "88", "MRIDY": "99"}

        def cm3(value_ml: float, digits: int, missing: str, known: bool = measured, rng: Any = rng) -> str:
            return f"{value_ml * float(np.exp(0.03 * rng.standard_normal())):.{digits}f}" if known else missing

        left, right = truth["hippocampus_left_ml"], truth["hippocampus_right_ml"]
        row |= {
            "NACCICV": cm3(truth["icv_ml"], 3, "8888.888"),
            "NACCBRNV": cm3(truth["brain_ml"] * CEREBRUM_SHARE, 3, "8888.888"),
            "GRAYVOL": cm3(truth["brain_ml"] * 0.40, 3, "8888.888"),
            "WHITEVOL": cm3(truth["brain_ml"] * 0.34, 3, "8888.888"),
            "CSFVOL": "9999.999" if measured else "8888.888",
            "WMHVOL": cm3(truth["white_matter_hypointensities_ml"], 4, "888.8888"),
            "NACCWMVL": "8888.888",
            "HIPPOVOL": cm3(left + right, 4, "88.8888"),
            "LHIPPO": cm3(left, 4, "8.8888"),
            "RHIPPO": cm3(right, 4, "8.8888"),
            "LATVENT": cm3(truth["ventricles_ml"], 4, "888.8888"),
            "LLATVENT": "888.8888",
            "RLATVENT": "888.8888",
            "THIRVENT": "8.8888",
        }
        rows.append(row)
    write_table(root / f"investigator_mri_nacc{FREEZE}.csv", MRI_COLUMNS, rows)


def _write_uds(root: Path, people: list[Person]) -> None:
    rows = []
    for person in people:
        rng = np.random.default_rng(seed_of(person.seed, "tables"))
        low, high = person.apoe
        e4 = sum(allele == 4 for allele in person.apoe)
        genotype = {(3, 3): "1", (3, 4): "2", (2, 3): "3", (4, 4): "4", (2, 4): "5", (2, 2): "6"}[(low, high)]
        typed = rng.random() < 0.8
        history = {
            name: str(int(rng.choice([0, 0, 0, 1, 2], p=[0.3, 0.25, 0.2, 0.2, 0.05])))
            for name in ("DIABETES", "HYPERTEN", "HYPERCHO", "B12DEF", "THYROID")
        }
        education = "99" if rng.random() < 0.002 else str(person.education)
        alzheimer = rng.random() < 0.85
        for visit in person.visits:
            version = _form_version(visit.date)
            old = version in ("1", "2")
            scores = visit.scores
            impaired = visit.diagnosis
            untested = TEST_MISSING[int(rng.integers(len(TEST_MISSING)))] if rng.random() < 0.04 else None
            box_names = ("MEMORY", "ORIENT", "JUDGMENT", "COMMUN", "HOMEHOBB", "PERSCARE")
            overall, boxes = scores.cdr_global, scores.cdr_boxes
            assert boxes is not None
            assert overall is not None
            # The code book's own plausibility rule: no dementia with CDR 0, no normal cognition with CDR 1 or more.
            if impaired == "AD" and overall == 0.0:
                overall, boxes = 0.5, (0.5, 0.5, 0.5, 0.0, 0.5, 0.0)
            if impaired == "NC" and overall >= 1.0:
                overall, boxes = 0.5, (0.5, 0.5, 0.0, 0.0, 0.5, 0.0)
            row = {
                "NACCID": person.subject,
                "NACCADC": person.extra["adc"],
                "PACKET": "I" if visit.code == "1" else "F",
                "FORMVER": version,
                "VISITMO": str(visit.date.month),
                "VISITDAY": str(visit.date.day),
                "VISITYR": str(visit.date.year),
                "NACCVNUM": visit.code,
                "NACCAVST": str(len(person.visits)),
                "NACCNVST": str(len(person.visits)),
                "NACCDAYS": str((visit.date - person.baseline).days),
                "NACCFDYS": str((visit.date - person.baseline).days),
                "BIRTHMO": str(person.birth.month),
                "BIRTHYR": str(person.birth.year),
                "SEX": "" if person.fault == "SEX_MISSING" else ("2" if person.sex == "F" else "1"),
                "HISPANIC": "0",
                "HISPOR": "88",
                "RACE": "1",
                "PRIMLANG": "1",
                "EDUC": education,
                "MARISTAT": "1",
                "HANDED": "1" if person.handedness == "L" else "2",
                "NACCAGE": str(int(visit.age)),
                "NACCAGEB": str(int(person.visits[0].age)),
                "HEIGHT": "88.8" if rng.random() < 0.1 else "66.0",
                "WEIGHT": "888",
                "NACCBMI": "888.8",
                "BPSYS": "888" if rng.random() < 0.1 else str(int(rng.normal(134, 15))),
                "BPDIAS": "777",
                "HRATE": "888",
                **history,
                **dict(zip(box_names, map(text, boxes), strict=True)),
                "CDRSUM": text(sum(boxes)),
                "CDRGLOB": text(overall),
                "COMPORT": "0",
                "CDRLANG": "0",
                "NACCGDS": "88" if rng.random() < 0.05 else text(scores.gds),
                "NACCMMSE": "-4",
                "LOGIMEM": "-4",
                "MEMUNITS": "-4",
                "MEMTIME": "-4",
                "NACCMOCA": "-4",
                "MOCATOTS": "-4",
                "CRAFTVRS": "-4",
                "CRAFTURS": "-4",
                "CRAFTDVR": "-4",
                "CRAFTDRE": "-4",
                "NORMCOG": "1" if impaired == "NC" else "0",
                "DEMENTED": "1" if impaired == "AD" else "0",
                "IMPNOMCI": {"NC": "8", "AD": "8", "MCI": "0", "IMCI": "1"}[impaired],
                "NACCUDSD": SYNDROME[impaired],
                "NACCTMCI": str(int(rng.integers(1, 5))) if impaired == "MCI" else "8",
                "NACCALZD": "8" if impaired == "NC" else ("1" if alzheimer else "0"),
                "NACCALZP": "8" if impaired == "NC" else ("1" if alzheimer else "7"),
                "NACCETPR": "88" if impaired == "NC" else ("1" if alzheimer else "2"),
                "NACCIDEM": "0",
                "NACCMCII": "0",
                "NACCNORM": "1" if person.baseline_class == "NC" else "0",
                "NACCAPOE": genotype if typed else "9",
                "NACCNE4S": str(e4) if typed else "9",
                "NACCMRSA": "1",
                "NACCNMRI": "1",
            }
            if old:
                row |= {
                    "NACCMMSE": untested or text(scores.mmse),
                    "LOGIMEM": untested or text(scores.lm_immediate),
                    "MEMUNITS": untested or text(scores.lm_delayed),
                    "MEMTIME": "20",
                }
                if untested == "88":
                    row |= {"LOGIMEM": "95", "MEMUNITS": "95"}
            else:
                row |= {
                    "NACCMOCA": "88" if untested else text(scores.moca),
                    "MOCATOTS": "88" if untested else text(scores.moca),
                    "CRAFTVRS": text(min(44.0, (scores.lm_immediate or 0) * 1.7 // 1)),
                    "CRAFTURS": text(scores.lm_immediate),
                    "CRAFTDVR": text(min(44.0, (scores.lm_delayed or 0) * 1.6 // 1)),
                    "CRAFTDRE": text(scores.lm_delayed),
                }
            if person.fault == "SENTINEL_UNKNOWN" and visit.code == "1":
                row["NACCMMSE"] = "-9"
            if person.fault == "DIAGNOSIS_OUT_OF_SCOPE":
                row["NACCUDSD"] = "8"
            rows.append(row)
    write_table(root / f"investigator_nacc{FREEZE}.csv", UDS_COLUMNS, rows)
