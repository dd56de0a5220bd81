"""AIBL as LONI's image archive ships it: RID/series/date/I<uid>/, an image list, and the non-imaging data extract.

Column names and codes follow the data dictionary of the extract. There is no education, and the diagnosis table has no
date; the birth year stands once, as ``/1934``.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, Final

import numpy as np

from medalign3d.files import write_text
from medalign3d.params import Params
from medalign3d.simulate.faults import PLANTED, Fault, image_fault, table_fault, visit_fault
from medalign3d.simulate.images import Job
from medalign3d.simulate.layouts import Plan, Truths, names, write_table
from medalign3d.simulate.records import (
    DAYS_PER_YEAR,
    Person,
    Visit,
    add_visit,
    balanced_classes,
    draw_labs,
    draw_person,
    draw_scan,
    seed_of,
    text,
    us_date,
)

COHORT: Final = "AIBL"
# Flatter than the cohort's own mix (.72/.13/.15), so that a small zero-shot test has all three classes.
SHARES = {"NC": 0.46, "MCI": 0.27, "AD": 0.27}
PROFILE: dict[str, dict[str, Any]] = {
    "NC": {"age": (73, 6.5), "carriers": 0.27},
    "MCI": {"age": (75, 7.0), "carriers": 0.51},
    "AD": {"age": (74, 8.0), "carriers": 0.67},
}
DX_NAMES = {"NC": "NC", "MCI": "MCI", "AD": "AD"}
DX_CODES = {"NC": "1", "MCI": "2", "AD": "3"}
VISITS = (("bl", 0), ("m18", 18), ("m36", 36), ("m54", 54))
EXTRACT = "Data_extract_3.3.0"
SUFFIX = "_28-Apr-2015"
COLLECTION = "AIBL_T1_4_28_2015.csv"
STRAY = "0151083"


def _person(params: Params, index: int, baseline_class: str, fault: str | None = None) -> Person:
    seed = params.simulate.seed
    rng = np.random.default_rng(seed_of(seed, COHORT, "person extras", fault or index))
    person = draw_person(
        COHORT,
        index,
        STRAY if fault == "ID_NOT_IN_CLINICAL" else str(10 * (index + 1) if index < 10 else 100 + 7 * index),
        baseline_class,
        seed=seed,
        female=0.47,
        age_limits=(55, 93),
        baseline_years=(2006, 2008),
        sites=2,
        fault=fault,
        **PROFILE[baseline_class],
    )
    for code, months in VISITS[: 1 if fault else int(rng.integers(2, 5))]:
        add_visit(person, code, months, jitter_days=35)
    return person


def _sessions(person: Person, maximum: int) -> list[Visit]:
    rng = np.random.default_rng(seed_of(person.seed, "sessions"))
    return person.visits[: 1 + int(rng.binomial(max(maximum - 1, 0), 0.4))]


def plan(params: Params) -> Plan:
    """Plan the AIBL tree."""
    seed = params.simulate.seed
    count = params.simulate.participants[COHORT]
    classes = balanced_classes(SHARES, count, seed_of(seed, COHORT, "classes"))
    people = [_person(params, i, classes[i]) for i in range(count)]
    if params.simulate.faults:
        people += [
            _person(params, count + i, "NC" if i % 2 else "MCI", reason) for i, reason in enumerate(PLANTED[COHORT])
        ]
    jobs: list[Job] = []
    listed: list[dict[str, Any]] = []
    faults: list[Fault] = []
    uid = 31200
    for person in people:
        for visit in _sessions(person, params.simulate.maximum_sessions):
            uid += 1 + seed_of(person.seed, "uid", visit.code) % 40
            job, row = _job(params, person, visit, uid)
            jobs.append(job)
            if person.fault != "ID_NOT_IN_CLINICAL":
                listed.append(row)
            faults += _faults(person, job.key)
    patients = [person for person in people if person.fault != "ID_NOT_IN_CLINICAL"]
    spoil = any(person.fault == "CSV_BAD_LINE" for person in people)

    def write_tables(root: Path, truths: Truths) -> None:
        write_table(root / COLLECTION, list(listed[0]), listed, quote_all=True)
        _write_extract(root / EXTRACT, patients, spoil)

    return Plan(jobs, write_tables, faults, len(people))


def _faults(person: Person, key: str) -> list[Fault]:
    reason = person.fault
    if reason is None:
        return []
    if reason == "DUPLICATE_KEY_IDENTICAL":
        return [visit_fault(reason, person.subject, "bl", "warn", "two equal rows in aibl_apoeres")]
    if reason == "DUPLICATE_KEY_CONFLICT":
        return [visit_fault(reason, person.subject, "bl", "null_field", "two MMSCORE in aibl_mmse")]
    if reason in ("NO_DIAGNOSIS", "AGE_INCONSISTENT"):
        return [image_fault(reason, key, "warn")]
    if reason == "CSV_BAD_LINE":
        return [table_fault(reason, f"aibl_flutemeta{SUFFIX}.csv", "an unquoted comma in one row")]
    return [image_fault(reason, key)]


def _job(params: Params, person: Person, visit: Visit, uid: int) -> tuple[Job, dict[str, Any]]:
    rng = np.random.default_rng(seed_of(person.seed, "acquisition", visit.code))
    date = visit.date + dt.timedelta(days=int(rng.integers(-40, 41)))
    description = str(rng.choice(["MPRAGE_ADNI_confirmed", "MPRAGE", "MPRAGE_SAG_ISO_p2"], p=[0.75, 0.2, 0.05]))
    dicom = bool(rng.random() < params.simulate.dicom_fraction) and person.fault is None
    zoom = params.simulate.zooms_mm
    scan = draw_scan(person, visit.code, axis_codes="PSR", zooms_mm=(zoom, zoom, zoom))
    if dicom:
        scan = draw_scan(person, visit.code, axis_codes="PIL", zooms_mm=(zoom, zoom, zoom))
    anatomy, shown = person.anatomy_at((date - person.baseline).days / DAYS_PER_YEAR, visit.code)
    stamp = f"{date:%Y-%m-%d}_{int(rng.integers(8, 18)):02d}_{int(rng.integers(60)):02d}_{int(rng.integers(60)):02d}.0"
    key, series = f"I{uid}", uid // 2 + 900
    folder = f"AIBL/{person.subject}/{description}/{stamp}/{key}"
    stem = f"AIBL_{person.subject}_MR_{description}_br_raw_{date:%Y%m%d}120000000"
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
    if dicom:
        job = Job(
            key,
            person.subject,
            folder,
            "dicom",
            anatomy,
            scan,
            truth,
            header={
                "PatientID": person.subject,
                "PatientSex": person.sex,
                "StudyDate": f"{date:%Y%m%d}",
                "SeriesNumber": 2,
                "SeriesDescription": description,
                "Manufacturer": "SIEMENS",
                "MagneticFieldStrength": 3 - 1.5 * person.site,
                "ImageUid": key,
            },
            file_pattern=f"{stem}_{{slice}}_S{series}_{key}.dcm",
        )
    else:
        damage: Any = "bad_affine" if person.fault == "IMAGE_BAD_AFFINE" else None
        job = Job(
            key, person.subject, f"{folder}/{stem}_S{series}_{key}.nii", "nifti", anatomy, scan, truth, damage=damage
        )
    # Exam year minus birth year is all that the tables can check.
    age = int(person.age_at(date)) - (12 if person.fault == "AGE_INCONSISTENT" else 0)
    row = {
        "Image Data ID": key,
        "Subject": person.subject,
        "Group": "Patient",
        "Sex": person.sex,
        "Age": str(age),
        "Visit": str(1 + [code for code, _ in VISITS].index(visit.code)),
        "Modality": "MRI",
        "Description": description,
        "Type": "Original",
        "Acq Date": us_date(date),
        "Format": "DCM" if dicom else "NiFTI",
        "Downloaded": "4/28/2015",
    }
    person.extra.setdefault("scans", {})[visit.code] = date
    return job, row


def _write_extract(folder: Path, people: list[Person], spoil: bool) -> None:
    tables: dict[str, tuple[list[str], list[dict[str, str]]]] = {
        "pdxconv": (names("RID SITEID VISCODE DXNORM DXNODEP DXMCI DXMDES DXAD DXAPP DXOTHDEM DXCURREN"), []),
        "mmse": (names("RID SITEID VISCODE EXAMDATE MMDATE MMYEAR MMSCORE"), []),
        "cdr": (names("RID SITEID VISCODE EXAMDATE CDGLOBAL"), []),
        "neurobat": (names("RID SITEID VISCODE EXAMDATE LIMMTOTAL LDELTOTAL"), []),
        "ptdemog": (names("RID SITEID VISCODE PTGENDER PTDOB"), []),
        "apoeres": (names("RID SITEID VISCODE APTESTDT APGEN1 APGEN2"), []),
        "labdata": (
            names(
                "RID SITEID VISCODE EXAMDATE AXT117 BAT126 HMT3 HMT7 HMT13 HMT40 HMT100 HMT102 RCT6 RCT11 RCT20 RCT392"
            ),
            [],
        ),
        "medhist": (
            names(
                "RID SITEID VISCODE MHPSYCH MH2NEURL MH4CARD MH6HEPAT MH8MUSCL MH9ENDO MH10GAST MH12RENA "
                "MH16SMOK MH17MALI"
            ),
            [],
        ),
        "mrimeta": (names("RID SITEID VISCODE EXAMDATE MMCONDCT MMSMPRAGE MMRMPRAGE"), []),
        "mri3meta": (names("RID SITEID VISCODE EXAMDATE MMCONDCT MMSMPRAGE MMRMPRAGE"), []),
        "flutemeta": (names("RID SITEID VISCODE EXAMDATE PMCONDCT FRAMES ATTENUATION SCANNER PASS"), []),
        "visits": (names("RID SITEID VISCODE"), []),
    }
    for person in people:
        _person_rows(person, {name: rows for name, (_, rows) in tables.items()})
    for name, (columns, rows) in tables.items():
        write_table(folder / f"aibl_{name}{SUFFIX}.csv", columns, rows)
    if spoil:
        path = folder / f"aibl_flutemeta{SUFFIX}.csv"
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[1] = lines[1].replace("AUSTIN AC CT Brain  H19s", "AUSTIN AC CT, Brain  H19s")
        write_text(path, "\n".join(lines) + "\n")


def _person_rows(person: Person, tables: dict[str, list[dict[str, str]]]) -> None:
    rng = np.random.default_rng(seed_of(person.seed, "tables"))
    site = str(person.site + 1)
    for visit in person.visits:
        scores, date = visit.scores, us_date(visit.date)
        key = {"RID": person.subject, "SITEID": site, "VISCODE": visit.code}
        dated = key | {"EXAMDATE": date}
        diagnosis = "-4" if person.fault == "NO_DIAGNOSIS" else DX_CODES[visit.diagnosis]
        flags = {"DXNORM": "NC", "DXMCI": "MCI", "DXAD": "AD"}
        tables["pdxconv"].append(
            key
            | {
                name: "1" if visit.diagnosis == meaning and diagnosis != "-4" else "-4"
                for name, meaning in flags.items()
            }
            | {"DXNODEP": "-4", "DXMDES": "-4", "DXAPP": "-4", "DXOTHDEM": "-4", "DXCURREN": diagnosis}
        )
        tables["mmse"].append(dated | {"MMDATE": "1", "MMYEAR": "1", "MMSCORE": text(scores.mmse)})
        if person.fault == "DUPLICATE_KEY_CONFLICT":
            tables["mmse"].append(
                dated | {"MMDATE": "1", "MMYEAR": "1", "MMSCORE": text(max((scores.mmse or 0) - 5, 0))}
            )
        tables["cdr"].append(dated | {"CDGLOBAL": text(scores.cdr_global)})
        tables["neurobat"].append(
            dated | {"LIMMTOTAL": text(scores.lm_immediate), "LDELTOTAL": text(scores.lm_delayed)}
        )
        scan = person.extra.get("scans", {}).get(visit.code)
        table = "mri3meta" if person.site == 0 else "mrimeta"
        unknown_date = rng.random() < 0.1
        tables[table].append(
            key
            | {
                "EXAMDATE": "-4" if scan is None or unknown_date else us_date(scan),
                "MMCONDCT": "1" if scan is not None else "0",
                "MMSMPRAGE": "1" if scan is not None else "-4",
                "MMRMPRAGE": "-4",
            }
        )
        tables["flutemeta"].append(
            dated
            | {
                "PMCONDCT": "1",
                "FRAMES": "1",
                "ATTENUATION": "measured",
                "SCANNER": "AUSTIN AC CT Brain  H19s",
                "PASS": "0",
            }
        )
        tables["visits"].append(key)
    first = {"RID": person.subject, "SITEID": site, "VISCODE": "bl"}
    date = us_date(person.baseline)
    tables["ptdemog"].append(first | {"PTGENDER": "2" if person.sex == "F" else "1", "PTDOB": f"/{person.birth.year}"})
    genotype = first | {"APTESTDT": date, "APGEN1": str(person.apoe[0]), "APGEN2": str(person.apoe[1])}
    tables["apoeres"] += [genotype, genotype] if person.fault == "DUPLICATE_KEY_IDENTICAL" else [genotype]
    labs = {code: text(value) for code, value in draw_labs(person).items() if code not in ("RCT4", "RCT5", "RCT19")}
    tables["labdata"].append(first | {"EXAMDATE": date, **_australian(labs)})
    history = names("MHPSYCH MH2NEURL MH4CARD MH6HEPAT MH8MUSCL MH9ENDO MH10GAST MH12RENA MH16SMOK MH17MALI")
    tables["medhist"].append(first | {name: str(int(rng.random() < 0.25)) for name in history})


def _australian(labs: dict[str, str]) -> dict[str, str]:
    """Glucose, cholesterol, urea (mmol/L), creatinine (umol/L), haemoglobin and MCHC (g/L) in SI units."""
    factors = {
        "RCT11": (1 / 18.02, 1),
        "RCT20": (1 / 38.67, 1),
        "RCT6": (0.357, 1),
        "RCT392": (88.4, 0),
        "HMT40": (10.0, 0),
        "HMT102": (10.0, 0),
    }
    converted = dict(labs)
    for code, (factor, digits) in factors.items():
        converted[code] = text(round(float(labs[code]) * factor, digits))
    return converted
