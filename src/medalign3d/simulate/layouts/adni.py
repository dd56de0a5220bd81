"""ADNI as LONI's image archive ships it: PTID/series/date/I<uid>/ and flat clinical tables with a date suffix.

Column names and codes follow the ADNI data dictionary (DATADIC) and ADNIMERGE. Of the archive's metadata download (one
XML per image) nothing is written; people have one scan per visit, either a processed ``.nii`` or an original DICOM
series.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, Final

import numpy as np

from medalign3d.params import Params
from medalign3d.simulate.faults import PLANTED, Fault, image_fault, visit_fault
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

COHORT: Final = "ADNI"
# The class mix is flatter than ADNI's own (.39/.42/.19), so that small simulated cohorts have dementia to learn from.
SHARES = {"NC": 0.35, "MCI": 0.37, "AD": 0.28}
PROFILE: dict[str, dict[str, Any]] = {
    "NC": {"age": (74, 6.0), "female": 0.50, "education": (16.4, 2.7), "carriers": 0.28},
    "MCI": {"age": (73, 7.5), "female": 0.42, "education": (15.9, 2.8), "carriers": 0.50},
    "AD": {"age": (75, 7.8), "female": 0.45, "education": (15.2, 3.0), "carriers": 0.66},
}
PHASES = {
    "ADNI1": {"rid": 20, "years": (2005, 2008), "visits": (0, 6, 12, 24, 36, 48), "field": "1.5"},
    "ADNI2": {"rid": 4010, "years": (2011, 2014), "visits": (0, 6, 12, 24, 36, 48), "field": "3"},
    "ADNI3": {"rid": 6010, "years": (2016, 2019), "visits": (0, 12, 24, 36, 48), "field": "3"},
}
SITES = ("002", "005", "011", "023", "036", "067", "116", "127")
DX_NAMES = {"NC": "CN", "MCI": "MCI", "AD": "Dementia"}
DX_CODES = {"NC": "1", "MCI": "2", "AD": "3"}
# The mask-based tissue count holds the cerebellum and half of the sulcal fluid; FreeSurfer's whole brain does not.
CEREBRUM_SHARE = 0.74
SUFFIX = "_17Nov2024"
COLLECTION = "MedAlign3D_T1_11_17_2024.csv"
QC_TABLE = "MAYOADIRL_MRI_IMAGEQC_12_08_15.csv"

_BASELINE_COLUMNS = names(
    "CDRSB ADAS11 ADAS13 ADASQ4 MMSE RAVLT_immediate RAVLT_learning RAVLT_forgetting "
    "RAVLT_perc_forgetting LDELTOTAL_BL DIGITSCOR TRABSCOR FAQ mPACCdigit mPACCtrailsB FLDSTRENG "
    "FSVERSION IMAGEUID Ventricles Hippocampus WholeBrain Entorhinal Fusiform MidTemp ICV MOCA EcogPtMem "
    "EcogPtTotal EcogSPMem EcogSPTotal ABETA TAU PTAU FDG PIB AV45 FBB"
)
ADNIMERGE_COLUMNS = [
    *names(
        "RID COLPROT ORIGPROT PTID SITE VISCODE EXAMDATE DX_bl AGE PTGENDER PTEDUCAT PTETHCAT PTRACCAT "
        "PTMARRY APOE4 FDG PIB AV45 FBB ABETA TAU PTAU CDRSB ADAS11 ADAS13 ADASQ4 MMSE RAVLT_immediate "
        "RAVLT_learning RAVLT_forgetting RAVLT_perc_forgetting LDELTOTAL DIGITSCOR TRABSCOR FAQ MOCA "
        "EcogPtMem EcogPtLang EcogPtVisspat EcogPtPlan EcogPtOrgan EcogPtDivatt EcogPtTotal EcogSPMem "
        "EcogSPLang EcogSPVisspat EcogSPPlan EcogSPOrgan EcogSPDivatt EcogSPTotal FLDSTRENG FSVERSION "
        "IMAGEUID Ventricles Hippocampus WholeBrain Entorhinal Fusiform MidTemp ICV DX mPACCdigit "
        "mPACCtrailsB EXAMDATE_bl"
    ),
    *(f"{name}_bl" if not name.endswith("_BL") else name for name in _BASELINE_COLUMNS),
    *names("Years_bl Month_bl Month M update_stamp"),
]


def _viscode(months: int) -> str:
    return "bl" if months == 0 else f"m{months:02d}"


def _raw_viscode(phase: str, months: int) -> str:
    """The form code of the phase, as it stands in the column VISCODE of the raw tables."""
    if phase == "ADNI1":
        return _viscode(months)
    if months == 0:
        return "v03" if phase == "ADNI2" else "bl"
    if phase == "ADNI2":
        return "v05" if months == 6 else f"v{months // 12}1"
    return f"y{months // 12}"


def _person(params: Params, index: int, baseline_class: str, fault: str | None = None) -> Person:
    seed = params.simulate.seed
    rng = np.random.default_rng(seed_of(seed, COHORT, "phase", fault or index))
    phase = str(rng.choice(["ADNI1", "ADNI2", "ADNI3"], p=[0.35, 0.40, 0.25]))
    if fault == "QC_FAIL":
        phase = "ADNI2"
    details = PHASES[phase]
    person = draw_person(
        COHORT,
        index,
        "",
        baseline_class,
        seed=seed,
        age_limits=(55, 91),
        baseline_years=details["years"],  # type: ignore[arg-type]
        sites=len(SITES),
        fault=fault,
        **PROFILE[baseline_class],
    )
    rid = int(details["rid"]) + 3 * index  # type: ignore[call-overload]
    person.subject = f"{SITES[person.site]}_S_{rid:04d}"
    person.extra |= {"phase": phase, "rid": rid, "field": details["field"]}
    months = [m for m in details["visits"] if m <= 24 or rng.random() < 0.75]  # type: ignore[attr-defined]
    if fault:
        months = [0, 12]
    for month in months:
        add_visit(person, _viscode(month), month)
    if baseline_class == "NC":
        person.extra["dx_bl"] = "SMC" if phase == "ADNI2" and rng.random() < 0.2 else "CN"
    elif baseline_class == "MCI":
        early = phase == "ADNI2" and person.severity < 0.5
        person.extra["dx_bl"] = "MCI" if phase == "ADNI3" else ("EMCI" if early else "LMCI")
    else:
        person.extra["dx_bl"] = "AD"
    person.extra["scan_only"] = {v.code for v in person.visits if v.months > 0 and rng.random() < 0.15}
    return person


def _sessions(person: Person, maximum: int) -> list[Visit]:
    """Visits with a scan: baseline and some of the visits of the first two years."""
    if person.fault:
        return person.visits[:1]
    rng = np.random.default_rng(seed_of(person.seed, "sessions"))
    later = [visit for visit in person.visits if 0 < visit.months <= 24]
    count = min(len(later), maximum - 1, int(rng.binomial(max(maximum - 1, 0), 0.45)))
    chosen = sorted(rng.choice(len(later), size=count, replace=False)) if count else []
    return [person.visits[0], *(later[i] for i in chosen)]


def _job(params: Params, person: Person, visit: Visit, uid: int) -> tuple[Job, dict[str, Any]]:
    """The image of a visit and its row of the collection list."""
    rng = np.random.default_rng(seed_of(person.seed, "acquisition", visit.code))
    phase = person.extra["phase"]
    # The screening scan comes before the baseline visit.
    shift = -int(rng.integers(5, 45)) if visit.months == 0 else int(rng.integers(-20, 30))
    date = visit.date + dt.timedelta(days=shift)
    if person.fault == "DATE_IN_FUTURE":
        date = date.replace(year=2091)
    dicom = bool(rng.random() < params.simulate.dicom_fraction) and person.fault is None
    processed = phase != "ADNI3" and not dicom
    description = {
        "ADNI1": "MPR__GradWarp__B1_Correction__N3__Scaled" if processed else "MP-RAGE",
        "ADNI2": "MT1__GradWarp__N3m" if processed else "MPRAGE",
        "ADNI3": "Accelerated_Sagittal_MPRAGE",
    }[phase]
    zoom = params.simulate.zooms_mm
    zooms = (zoom, zoom, 5.0) if person.fault == "IMAGE_TOO_THICK" else (zoom, zoom, zoom)
    scan = draw_scan(person, visit.code, axis_codes="PIR", zooms_mm=zooms)
    anatomy, shown = person.anatomy_at(
        (date - person.baseline).days / DAYS_PER_YEAR if shift > -60 and date.year < 2050 else 0.0, visit.code
    )
    stamp = f"{date:%Y-%m-%d}_{int(rng.integers(8, 18)):02d}_{int(rng.integers(60)):02d}_{int(rng.integers(60)):02d}.0"
    series = uid // 2 + 1000
    folder = f"ADNI/{person.subject}/{description}/{stamp}/I{uid}"
    created = f"{date:%Y%m%d}120000000"
    key = f"I{uid}"
    truth = {
        "visit_code": visit.code,
        "dx": DX_NAMES[visit.diagnosis],
        "dx_class": visit.diagnosis,
        "severity": visit.severity,
        "image_severity": shown,
        "cognition": visit.cognition,
        "age_years": (date - person.birth).days / DAYS_PER_YEAR if date.year < 2050 else visit.age,
        "sex": person.sex,
        "education_years": float(person.education),
        "fault": person.fault or "",
    }
    if person.fault == "CROSS_COHORT_DUPLICATE":
        from medalign3d.simulate.shared import twin_anatomy, twin_scan

        anatomy, scan = twin_anatomy(params.simulate.seed), twin_scan(params.simulate.seed, zoom)
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
                "SeriesNumber": 3,
                "SeriesDescription": description.replace("_", " "),
                "Manufacturer": "SIEMENS",
                "MagneticFieldStrength": person.extra["field"],
                "ImageUid": key,
            },
            file_pattern=f"ADNI_{person.subject}_MR_{description}_br_raw_{created}_{{slice}}_S{series}_I{uid}.dcm",
        )
    else:
        kind = "Br" if processed else "br_raw"
        name = f"ADNI_{person.subject}_MR_{description}_{kind}_{created}_S{series}_I{uid}.nii"
        damage: Any = {"IMAGE_UNREADABLE": "unreadable"}.get(person.fault or "")
        job = Job(key, person.subject, f"{folder}/{name}", "nifti", anatomy, scan, truth, damage=damage)
    row = {
        "Image Data ID": key,
        "Subject": person.subject,
        "Group": person.extra["dx_bl"],
        "Sex": person.sex,
        "Age": str(int((date - person.birth).days / DAYS_PER_YEAR)) if date.year < 2050 else str(int(visit.age)),
        "Visit": "sc" if visit.months == 0 else visit.code,
        "Modality": "MRI",
        "Description": description.replace("__", "; ").replace("_", " "),
        "Type": "Processed" if processed else "Original",
        "Acq Date": us_date(date),
        "Format": "DCM" if dicom else "NiFTI",
        "Downloaded": "11/17/2024",
    }
    job.header.setdefault("series", series)
    person.extra.setdefault("scans", {})[visit.code] = {"key": key, "uid": uid, "date": date, "series": series}
    return job, row


def plan(params: Params) -> Plan:
    """Plan the ADNI tree."""
    seed = params.simulate.seed
    count = params.simulate.participants[COHORT]
    classes = balanced_classes(SHARES, count, seed_of(seed, COHORT, "classes"))
    people = [_person(params, i, classes[i]) for i in range(count)]
    if params.simulate.faults:
        for i, reason in enumerate(PLANTED[COHORT]):
            people.append(_person(params, count + i, "NC" if i % 2 else "MCI", reason))
            if reason == "ID_UNPARSABLE":
                people[-1].subject = "941_S_12A4"
    jobs: list[Job] = []
    listed: list[dict[str, Any]] = []
    faults: list[Fault] = []
    uid = 45100
    for person in people:
        for visit in _sessions(person, params.simulate.maximum_sessions):
            uid += 1 + seed_of(person.seed, "uid", visit.code) % 40
            job, row = _job(params, person, visit, uid)
            if person.fault != "IMAGE_WITHOUT_FILE":
                jobs.append(job)
            if person.fault != "ID_UNPARSABLE":
                listed.append(row)
            faults += _faults(person, job.key)
    patients = [person for person in people if person.fault != "ID_UNPARSABLE"]

    def write_tables(root: Path, truths: Truths) -> None:
        _write_tables(root, patients, listed, truths)

    return Plan(jobs, write_tables, faults, len(people))


def _faults(person: Person, key: str) -> list[Fault]:
    reason = person.fault
    if reason is None or reason == "CROSS_COHORT_DUPLICATE":  # the ADNI copy stays
        return []
    if reason == "DIAGNOSIS_CONFLICT":
        return [visit_fault(reason, person.subject, "bl", detail="ADNIMERGE says CN, DXSUM says MCI")]
    if reason == "VISCODE_UNKNOWN":
        return [visit_fault(reason, person.subject, "uns1", detail="a DXSUM row with VISCODE2 uns1")]
    if reason == "IMAGE_WITHOUT_FILE":
        return [image_fault(reason, key, "warn", "listed but not on disk")]
    return [image_fault(reason, key)]


def _write_tables(root: Path, people: list[Person], listed: list[dict[str, Any]], truths: Truths) -> None:
    write_table(root / COLLECTION, list(listed[0]), listed, quote_all=True)
    clinical = root / "clinical"
    tables: dict[str, tuple[list[str], list[dict[str, str]]]] = {
        "ADNIMERGE": (ADNIMERGE_COLUMNS, []),
        "DXSUM": (
            names(
                "PHASE PTID RID VISCODE VISCODE2 EXAMDATE DXCURREN DXCHANGE DXNORM DXMCI DXAD DXDDUE "
                "DIAGNOSIS SITEID USERDATE"
            ),
            [],
        ),
        "CDR": (
            names(
                "PHASE PTID RID VISCODE VISCODE2 VISDATE CDSOURCE CDMEMORY CDORIENT CDJUDGE CDCOMMUN "
                "CDHOME CDCARE CDGLOBAL CDRSB SITEID USERDATE"
            ),
            [],
        ),
        "MMSE": (names("PHASE PTID RID VISCODE VISCODE2 VISDATE MMDATE MMYEAR MMSCORE SITEID USERDATE"), []),
        "NEUROBAT": (
            names(
                "PHASE PTID RID VISCODE VISCODE2 VISDATE LIMMTOTAL LIMMEND LDELTOTAL LDELCUE LDELBEGIN "
                "TRAASCOR TRABSCOR BNTTOTAL SITEID USERDATE"
            ),
            [],
        ),
        "PTDEMOG": (
            names(
                "PHASE PTID RID VISCODE VISCODE2 VISDATE PTGENDER PTDOB PTDOBYY PTDOBMM PTHAND PTMARRY "
                "PTEDUCAT PTETHCAT PTRACCAT SITEID USERDATE"
            ),
            [],
        ),
        "APOERES": (names("PHASE PTID RID VISCODE VISCODE2 APTESTDT APGEN1 APGEN2 GENOTYPE SITEID"), []),
        "LABDATA": (
            names(
                "PHASE PTID RID VISCODE VISCODE2 EXAMDATE AXT117 BAT126 HMT3 HMT7 HMT13 HMT40 HMT100 "
                "HMT102 RCT4 RCT5 RCT6 RCT11 RCT19 RCT20 RCT392 SITEID"
            ),
            [],
        ),
        "MRI3META": (
            names("PHASE PTID RID VISCODE VISCODE2 EXAMDATE FIELD_STRENGTH MMCONDCT MMSMPRAGE MMRMPRAGE SITEID"),
            [],
        ),
        "MRIMETA": (
            names("PHASE PTID RID VISCODE VISCODE2 EXAMDATE FIELD_STRENGTH MMCONDCT MMSMPRAGE MMRMPRAGE SITEID"),
            [],
        ),
        "REGISTRY": (names("PHASE PTID RID VISCODE VISCODE2 EXAMDATE PTSTATUS RGCONDCT VISTYPE SITEID USERDATE"), []),
        "MPRAGEMETA": (names("SubjectID Visit MagStrength Sequence ScanDate StudyID SeriesID ImageUID Orig/Proc"), []),
    }
    quality: list[dict[str, str]] = []
    for person in people:
        _person_rows(person, {name: rows for name, (_, rows) in tables.items()}, quality, truths)
    for name, (columns, rows) in tables.items():
        write_table(clinical / f"{name}{SUFFIX}.csv", columns, rows, quote_all=True)
    write_table(
        clinical / QC_TABLE,
        names("RID loni_study loni_series loni_image series_date series_type series_quality series_selected"),
        quality,
        quote_all=True,
    )


def _person_rows(
    person: Person, tables: dict[str, list[dict[str, str]]], quality: list[dict[str, str]], truths: Truths
) -> None:
    """Append every row of one person."""
    phase, rid = person.extra["phase"], str(person.extra["rid"])
    scans: dict[str, dict[str, Any]] = person.extra.get("scans", {})
    female = person.sex == "F"
    baseline = person.visits[0]
    e4 = sum(allele == 4 for allele in person.apoe)
    rng = np.random.default_rng(seed_of(person.seed, "tables"))
    no_education = rng.random() < 0.04
    education = "" if no_education else str(person.education)
    site = str(SITES.index(person.subject[:3]) + 1)

    def common(visit: Visit, viscode2: str | None = None) -> dict[str, str]:
        months = int(visit.months)
        return {
            "PHASE": phase,
            "PTID": person.subject,
            "RID": rid,
            "VISCODE": viscode2 if viscode2 == "sc" else _raw_viscode(phase, months),
            "VISCODE2": viscode2 or visit.code,
            "SITEID": site,
        }

    merged: list[dict[str, str]] = []
    previous: str | None = None
    for visit in person.visits:
        scores = visit.scores
        done = visit.code not in person.extra["scan_only"]
        with_memory = done and visit.code != "m06"
        date = visit.date.isoformat()
        # Screening forms carry the baseline's CDR and MMSE in the earlier phases.
        screening = "sc" if visit.months == 0 and phase in ("ADNI1", "ADNI2") else None
        screening_date = (visit.date - dt.timedelta(days=12)).isoformat() if screening else date
        diagnosis = visit.diagnosis
        dx_name = "CN" if person.fault == "DIAGNOSIS_CONFLICT" and visit.months == 0 else DX_NAMES[diagnosis]
        if person.fault == "DIAGNOSIS_CONFLICT" and visit.months == 0:
            diagnosis = "MCI"
        row = common(visit) | {"EXAMDATE": date, "DIAGNOSIS": DX_CODES[diagnosis], "USERDATE": date}
        if phase == "ADNI1":
            row |= {"DXCURREN": DX_CODES[diagnosis], "DXCHANGE": "-4"}
            row |= {
                name: "1" if diagnosis == key else "-4"
                for name, key in (("DXNORM", "NC"), ("DXMCI", "MCI"), ("DXAD", "AD"))
            }
        elif phase == "ADNI2":
            changes = {
                ("NC", "NC"): "1",
                ("MCI", "MCI"): "2",
                ("AD", "AD"): "3",
                ("NC", "MCI"): "4",
                ("MCI", "AD"): "5",
                ("NC", "AD"): "6",
                ("MCI", "NC"): "7",
                ("AD", "MCI"): "8",
                ("AD", "NC"): "9",
            }
            row |= {"DXCURREN": "-4", "DXCHANGE": changes[(previous or diagnosis, diagnosis)]}
        tables["DXSUM"].append(row)
        previous = diagnosis
        tables["REGISTRY"].append(
            common(visit)
            | {"EXAMDATE": date, "PTSTATUS": "2" if visit.months == 0 else "1", "RGCONDCT": "1", "VISTYPE": "1"}
        )
        if done:
            assert scores.cdr_boxes is not None
            boxes = dict(
                zip(
                    ("CDMEMORY", "CDORIENT", "CDJUDGE", "CDCOMMUN", "CDHOME", "CDCARE"),
                    map(text, scores.cdr_boxes),
                    strict=True,
                )
            )
            tables["CDR"].append(
                common(visit, screening)
                | {
                    "VISDATE": screening_date,
                    "CDSOURCE": "1",
                    "CDGLOBAL": text(scores.cdr_global),
                    "CDRSB": text(scores.cdr_sum),
                    **boxes,
                }
            )
            tables["MMSE"].append(
                common(visit, screening)
                | {"VISDATE": screening_date, "MMDATE": "1", "MMYEAR": "1", "MMSCORE": text(scores.mmse)}
            )
        tables["NEUROBAT"].append(
            common(visit)
            | {
                "VISDATE": date,
                "LIMMTOTAL": text(scores.lm_immediate) if with_memory else "-4",
                "LDELTOTAL": text(scores.lm_delayed) if with_memory else "-4",
                "LDELCUE": "1" if with_memory else "-4",
                "TRAASCOR": str(int(rng.integers(22, 80))),
                "TRABSCOR": str(int(rng.integers(50, 250))),
                "BNTTOTAL": "-1" if rng.random() < 0.05 else str(int(rng.integers(18, 31))),
            }
        )
        scan = scans.get(visit.code)
        years = (visit.date - baseline.date).days / DAYS_PER_YEAR
        merged.append(
            {
                "RID": rid,
                "COLPROT": phase,
                "ORIGPROT": phase,
                "PTID": person.subject,
                "SITE": site,
                "VISCODE": visit.code,
                "EXAMDATE": date,
                "DX_bl": person.extra["dx_bl"],
                "AGE": f"{baseline.age:.1f}",
                "PTGENDER": "Female" if female else "Male",
                "PTEDUCAT": education,
                "PTETHCAT": "Not Hisp/Latino",
                "PTRACCAT": "White",
                "PTMARRY": "Married",
                "APOE4": str(e4),
                "CDRSB": text(scores.cdr_sum) if done else "",
                "ABETA": str(rng.choice([">1700", "<200", "1021.4", "655.2", "874.9"])),
                "TAU": str(rng.choice(["<80", "231.5", "310.2", ">1300"])),
                "PTAU": str(rng.choice(["<8", "21.6", "33.1", ">120"])),
                "ADAS13": text(round(scores.adas13, 2)) if done else "",
                "MMSE": text(scores.mmse) if done else "",
                "LDELTOTAL": text(scores.lm_delayed) if with_memory else "",
                "FAQ": text(scores.faq) if done else "",
                "MOCA": text(scores.moca) if done and phase != "ADNI1" else "",
                "FLDSTRENG": ""
                if scan is None
                else ("1.5 Tesla MRI" if person.extra["field"] == "1.5" else "3 Tesla MRI"),
                "FSVERSION": ""
                if scan is None
                else "Cross-Sectional FreeSurfer (FreeSurfer Version 4.3)"
                if phase == "ADNI1"
                else "Cross-Sectional FreeSurfer (5.1)"
                if scan is not None
                else "",
                "IMAGEUID": "" if scan is None else str(scan["uid"]),
                "DX": dx_name,
                "EXAMDATE_bl": baseline.date.isoformat(),
                "Years_bl": f"{years:.5f}",
                "Month_bl": f"{years * 12:.4f}",
                "Month": text(visit.months),
                "M": text(visit.months),
                "update_stamp": "2024-11-17 04:31:02.0",
            }
            | _volumes(scan, truths, rng)
        )
        if scan is not None:
            magnet = "MRIMETA" if person.extra["field"] == "1.5" else "MRI3META"
            shown = scan["date"] if scan["date"].year < 2050 else visit.date
            tables[magnet].append(
                common(visit, "sc" if visit.months == 0 else None)
                | {
                    "EXAMDATE": shown.isoformat(),
                    "FIELD_STRENGTH": f"{person.extra['field']}T",
                    "MMCONDCT": "1",
                    "MMSMPRAGE": "1",
                    "MMRMPRAGE": "-4",
                }
            )
            if phase != "ADNI3":
                tables["MPRAGEMETA"].append(
                    {
                        "SubjectID": person.subject,
                        "Visit": "ADNI Screening" if visit.months == 0 else f"{phase} Month {int(visit.months)}",
                        "MagStrength": person.extra["field"],
                        "Sequence": "MPR; GradWarp; N3; Scaled",
                        "ScanDate": shown.isoformat(),
                        "StudyID": str(scan["series"] // 3),
                        "SeriesID": str(scan["series"]),
                        "ImageUID": str(scan["uid"]),
                        "Orig/Proc": "Processed",
                    }
                )
                quality.append(
                    {
                        "RID": rid,
                        "loni_study": str(scan["series"] // 3),
                        "loni_series": f"S{scan['series']}",
                        "loni_image": scan["key"],
                        "series_date": shown.isoformat(),
                        "series_type": "MT1",
                        "series_quality": "4" if person.fault == "QC_FAIL" else str(int(rng.integers(1, 4))),
                        "series_selected": "0" if person.fault == "QC_FAIL" else "1",
                    }
                )
    for row in merged:
        for name in _BASELINE_COLUMNS:
            source = "LDELTOTAL" if name == "LDELTOTAL_BL" else name
            row[name if name.endswith("_BL") else f"{name}_bl"] = merged[0].get(source, "")
    tables["ADNIMERGE"] += merged
    if person.fault == "VISCODE_UNKNOWN":
        late = (baseline.date + dt.timedelta(days=800)).isoformat()
        tables["DXSUM"].append(
            common(baseline)
            | {
                "VISCODE": "uns1",
                "VISCODE2": "uns1",
                "EXAMDATE": late,
                "DIAGNOSIS": DX_CODES[baseline.diagnosis],
                "USERDATE": late,
            }
        )
    first = common(baseline, "sc")
    tables["PTDEMOG"].append(
        first
        | {
            "VISDATE": baseline.date.isoformat(),
            "PTGENDER": "2" if female else "1",
            "PTDOB": f"{person.birth:%m/%Y}",
            "PTDOBYY": str(person.birth.year),
            "PTDOBMM": str(person.birth.month),
            "PTHAND": "2" if person.handedness == "L" else "1",
            "PTMARRY": "1",
            "PTEDUCAT": education or "-4",
            "PTETHCAT": "2",
            "PTRACCAT": "5",
        }
    )
    low, high = person.apoe
    tables["APOERES"].append(
        first
        | {"APTESTDT": baseline.date.isoformat(), "APGEN1": str(low), "APGEN2": str(high), "GENOTYPE": f"{low}/{high}"}
    )
    labs = {code: text(value) for code, value in draw_labs(person).items()}
    if rng.random() < 0.1:
        labs["RCT20"] = "SCC09"  # a comment code instead of a value
    tables["LABDATA"].append(first | {"EXAMDATE": (baseline.date - dt.timedelta(days=14)).isoformat(), **labs})


def _volumes(scan: dict[str, Any] | None, truths: Truths, rng: np.random.Generator) -> dict[str, str]:
    """FreeSurfer-like volumes, mm3, measured with a few percent of error on the simulated image."""
    truth = truths.get(scan["key"]) if scan else None
    if truth is None:
        return {}

    def measured(value_ml: float) -> str:
        return str(round(value_ml * 1000 * float(np.exp(0.03 * rng.standard_normal()))))

    return {
        "Ventricles": measured(truth["ventricles_ml"]),
        "Hippocampus": measured(truth["hippocampus_left_ml"] + truth["hippocampus_right_ml"]),
        "WholeBrain": measured(truth["brain_ml"] * CEREBRUM_SHARE),
        "ICV": measured(truth["icv_ml"]),
    }
