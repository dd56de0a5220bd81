"""ADNI at the size of Table 1: 10,287 rows, one for every pair of an image and a visit of nearly the same month.

The published table paired by calendar month, so an image between two visits counts twice; here those are mostly people
who went over to the next phase at a visit that repeats the last one. MMSE and CDR are missing at scan-only visits,
logical memory there and at months 3, 6 and 18, whose forms do not have it; the remainder at random.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from medalign3d.published_table1 import PUBLISHED
from medalign3d.simulate.layouts import names, write_table
from medalign3d.simulate.layouts.adni import ADNIMERGE_COLUMNS, COLLECTION, DX_CODES, DX_NAMES, SITES, SUFFIX
from medalign3d.simulate.records import DAYS_PER_YEAR, text, us_date
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

PHASES: dict[str, tuple[float, tuple[int, int], tuple[int, ...]]] = {
    "ADNI1": (0.36, (2005, 2008), (0, 6, 12, 18, 24, 36, 48)),
    "ADNI2": (0.40, (2010, 2014), (0, 3, 6, 12, 24, 36, 48)),
    "ADNI3": (0.24, (2016, 2019), (0, 12, 24, 36, 48)),
}
GROUPS = {"CN": 0.38, "EMCI": 0.18, "LMCI": 0.28, "AD": 0.16}
CLASS = {"CN": "NC", "EMCI": "MCI", "LMCI": "MCI", "AD": "AD"}
# Age, education, MMSE, CDR sum of boxes, logical memory delayed and immediate, hippocampi (mm3): mean, sd.
PROFILE: dict[str, tuple[tuple[float, float], ...]] = {
    "CN": ((74, 6), (16.4, 2.7), (29.1, 1.1), (0.03, 0.13), (13.3, 3.3), (14.3, 3.2), (7400, 900)),
    "EMCI": ((71, 7.5), (16.0, 2.7), (28.3, 1.6), (1.3, 0.8), (8.9, 1.7), (10.8, 2.8), (7250, 1050)),
    "LMCI": ((74, 7.5), (15.9, 2.9), (27.2, 1.8), (1.6, 0.9), (4.0, 2.7), (7.2, 3.1), (6400, 1100)),
    "AD": ((75, 7.8), (15.2, 3.0), (23.2, 2.1), (4.4, 1.7), (1.4, 1.9), (4.0, 2.8), (5800, 1000)),
}
FEMALE = {"CN": 0.52, "EMCI": 0.45, "LMCI": 0.39, "AD": 0.45}
CARRIERS = {"CN": 0.28, "EMCI": 0.43, "LMCI": 0.54, "AD": 0.66}
CONVERTING = 0.30
IMAGED_SHARE = 0.72  # of the visits after baseline
REPEATED = 0.06
ROLLOVER = 0.14  # of the people of ADNI1 with a visit at 48 months
WITHOUT_MEMORY = (3, 6, 18)
SPARE = 0.05  # share of the missing scores that is left to chance


def _code(months: int) -> str:
    return "bl" if months == 0 else f"m{months:02d}"


def _pairs(scan: dt.date, visits: list[dict[str, Any]]) -> list[int]:
    """Visits of the scan's calendar year whose month is at most two away, as the published table paired."""
    return [
        place
        for place, visit in enumerate(visits)
        if visit["date"].year == scan.year and abs(visit["date"].month - scan.month) <= 2
    ]


def _person(rng: Any, phase: str, *, baseline_only: bool = False) -> dict[str, Any]:
    """One person with dated visits and scans; ``rows`` of a visit counts the image rows that pair with it."""
    group = pick(rng, GROUPS)
    _, years, schedule = PHASES[phase]
    # From March on, so that a screening scan weeks earlier is of the same calendar year.
    first = dt.date(int(rng.integers(years[0], years[1] + 1)), 1, 1) + dt.timedelta(days=int(rng.integers(75, 330)))
    length = 1 if baseline_only else min(1 + int(rng.geometric(0.18)), len(schedule))
    converts = 12 * int(rng.integers(1, 4)) if CLASS[group] == "MCI" and rng.random() < CONVERTING else None
    visits: list[dict[str, Any]] = []

    def add(months: int, date: dt.date, protocol: str) -> None:
        stage = "AD" if converts is not None and months >= converts else CLASS[group]
        visits.append({"months": months, "date": date, "stage": stage, "phase": protocol, "rows": 0, "scans": []})

    for months in schedule[:length]:
        if months == 18 and CLASS[group] != "MCI":
            continue
        jitter = int(rng.integers(-10, 11)) if months else 0
        add(months, first + dt.timedelta(days=round(months * DAYS_PER_YEAR / 12) + jitter), phase)
    last = visits[-1]
    if phase == "ADNI1" and length == len(schedule) and rng.random() < ROLLOVER and last["date"].month <= 10:
        # The first visit in the next phase, some weeks after the last one in the old phase.
        add(54, last["date"] + dt.timedelta(days=int(rng.integers(20, 50))), "ADNI2")
    for place, visit in enumerate(visits):
        if place and (visit["months"] == 54 or rng.random() > IMAGED_SHARE):
            continue
        shift = -int(rng.integers(5, 45)) if place == 0 else int(rng.integers(-15, 25))
        date = visit["date"] + dt.timedelta(days=shift)
        date = date if date.year == visit["date"].year else visit["date"]
        for repeat in range(2 if rng.random() < REPEATED else 1):
            visit["scans"].append({"date": date, "repeat": repeat, "pairs": _pairs(date, visits)})
            for pair in visit["scans"][-1]["pairs"]:
                visits[pair]["rows"] += 1
    age = min(max(float(rng.normal(*PROFILE[group][0])), 55.0), 89.5)
    return {"group": group, "phase": phase, "visits": visits, "age": age, "baseline": first}


def _rows(person: dict[str, Any]) -> int:
    return sum(visit["rows"] for visit in person["visits"])


def _people(rng: Any, target: int) -> list[dict[str, Any]]:
    people: list[dict[str, Any]] = []
    total = 0
    shares = {phase: share for phase, (share, _, _) in PHASES.items()}
    while total < target:
        person = _person(rng, pick(rng, shares))
        if total + _rows(person) > target or target - total <= 12:
            person = _person(rng, pick(rng, shares), baseline_only=True)
            person["visits"][0]["scans"] = person["visits"][0]["scans"][:1]
            person["visits"][0]["rows"] = 1
        total += _rows(person)
        people.append(person)
    return people


def write(root: Path, seed: int, scale: float) -> list[str]:
    """Write the collection list and the study tables; return the paths of the images."""
    rng = generator(seed, "ADNI")
    published = PUBLISHED["ADNI"]
    assert published.education is not None
    assert published.logical_memory is not None
    images = scaled(published.images, scale)
    people = _people(rng, images)
    people[-1]["age"], people[-2]["age"] = published.age_min + 0.6, published.age_max + 0.5  # one baseline scan each
    sizes = [_rows(person) for person in people]
    women = exact_subset(
        sizes, scaled(published.female, scale), weighted_order([FEMALE[p["group"]] for p in people], rng)
    )
    unschooled = exact_subset(sizes, images - scaled(published.education, scale), rng.permutation(len(people)).tolist())
    visits = [visit for person in people for visit in person["visits"]]
    rows = [visit["rows"] for visit in visits]
    missing = {
        name: images - scaled(count, scale)
        for name, count in (("mmse", published.mmse), ("cdr", published.cdr), ("memory", published.logical_memory))
    }
    scan_only_rows = round((1 - SPARE) * min(missing["mmse"], missing["cdr"]))
    scan_only = exact_subset(
        [0 if visit["months"] == 0 else visit["rows"] for visit in visits],
        scan_only_rows,
        rng.permutation(len(visits)).tolist(),
    )
    done = [0 if place in scan_only else size for place, size in enumerate(rows)]
    order = rng.permutation(len(visits)).tolist()
    no_mmse = scan_only | exact_subset(done, missing["mmse"] - scan_only_rows, order)
    no_cdr = scan_only | exact_subset(done, missing["cdr"] - scan_only_rows, order[::-1])
    short_forms = preferred_first([visit["months"] in WITHOUT_MEMORY for visit in visits], rng)
    no_memory = scan_only | exact_subset(done, missing["memory"] - scan_only_rows, short_forms)
    for place, visit in enumerate(visits):
        visit["scan_only"] = place in scan_only
        visit["mmse"] = place not in no_mmse
        visit["cdr"] = place not in no_cdr
        # Forms without logical memory lack it wherever nobody was scanned, too.
        visit["memory"] = place not in no_memory and (visit["rows"] > 0 or visit["months"] not in WITHOUT_MEMORY)

    tables: dict[str, list[dict[str, str]]] = {name: [] for name in _COLUMNS}
    listed: list[dict[str, str]] = []
    paths: list[str] = []
    uid = 45100
    for i, person in enumerate(people):
        rid = str(i + 2)
        ptid = f"{SITES[i % len(SITES)]}_S_{int(rid):04d}"
        female = i in women
        _write_person(rng, person, ptid, rid, female, i in unschooled, tables)
        for visit in person["visits"]:
            for scan in visit["scans"]:
                uid += 1 + int(rng.integers(40))
                _write_scan(person, visit, scan, ptid, uid, female, listed, paths)
    write_table(root / COLLECTION, list(listed[0]), listed, quote_all=True)
    for name, table in tables.items():
        write_table(root / "clinical" / f"{name}{SUFFIX}.csv", _COLUMNS[name], table, quote_all=True)
    return paths


def _write_scan(
    person: dict[str, Any],
    visit: dict[str, Any],
    scan: dict[str, Any],
    ptid: str,
    uid: int,
    female: bool,
    listed: list[dict[str, str]],
    paths: list[str],
) -> None:
    date, phase = scan["date"], visit["phase"]
    description = {
        "ADNI1": "MPR__GradWarp__B1_Correction__N3__Scaled",
        "ADNI2": "MT1__GradWarp__N3m",
        "ADNI3": "Accelerated_Sagittal_MPRAGE",
    }[phase] + ("_REPEAT" if scan["repeat"] else "")
    kind = "br_raw" if phase == "ADNI3" else "Br"
    name = f"ADNI_{ptid}_MR_{description}_{kind}_{date:%Y%m%d}120000000_S{uid // 2 + 1000}_I{uid}.nii"
    paths.append(f"ADNI/{ptid}/{description}/{date:%Y-%m-%d}_10_{scan['repeat'] * 9:02d}_00.0/I{uid}/{name}")
    age = person["age"] + (date - person["baseline"]).days / DAYS_PER_YEAR
    listed.append(
        {
            "Image Data ID": f"I{uid}",
            "Subject": ptid,
            "Group": person["group"],
            "Sex": "F" if female else "M",
            "Age": str(int(age)),
            "Visit": "sc" if visit["months"] == 0 else _code(visit["months"]),
            "Modality": "MRI",
            "Description": description.replace("__", "; ").replace("_", " "),
            "Type": "Original" if phase == "ADNI3" else "Processed",
            "Acq Date": us_date(date),
            "Format": "NiFTI",
            "Downloaded": "11/17/2024",
        }
    )


def _write_person(
    rng: Any,
    person: dict[str, Any],
    ptid: str,
    rid: str,
    female: bool,
    unschooled: bool,
    tables: dict[str, list[dict[str, str]]],
) -> None:
    group, phase = person["group"], person["phase"]
    _, schooling, *_ = PROFILE[group]
    education = "" if unschooled else text(whole(rng, *schooling, 6, 20))
    enrolled = "MCI" if phase == "ADNI3" and CLASS[group] == "MCI" else group
    enrolled = "LMCI" if phase == "ADNI1" and CLASS[group] == "MCI" else enrolled
    alleles = sorted(4 if rng.random() < 0.6 * CARRIERS[group] else 3 for _ in range(2))
    first = person["baseline"].isoformat()
    for visit in person["visits"]:
        stage = "AD" if visit["stage"] == "AD" else group
        _, _, mmse, boxes, delayed, immediate, hippocampi = PROFILE[stage]
        code, date = _code(visit["months"]), visit["date"].isoformat()
        key = {"PHASE": visit["phase"], "PTID": ptid, "RID": rid, "VISCODE": code, "VISCODE2": code}
        total = halves(rng, *boxes, 0, 18)
        total = {"CN": min(total, 0.5), "AD": max(total, 2.0)}.get(stage, min(max(total, 0.5), 4.0))
        rating = "0" if stage == "CN" else "0.5" if total < 4.5 else "1" if total < 9.5 else "2"
        scores = {
            "mmse": text(whole(rng, *mmse, 0, 30)),
            "delayed": text(whole(rng, *delayed, 0, 25)),
            "immediate": text(whole(rng, *immediate, 0, 25)),
        }
        if not visit["scan_only"]:
            tables["DXSUM"].append(key | {"EXAMDATE": date, "DIAGNOSIS": DX_CODES[visit["stage"]]})
        if visit["cdr"]:
            tables["CDR"].append(key | {"VISDATE": date, "CDGLOBAL": rating, "CDRSB": text(total)})
        if visit["mmse"]:
            tables["MMSE"].append(key | {"VISDATE": date, "MMSCORE": scores["mmse"]})
        tables["NEUROBAT"].append(
            key
            | {
                "VISDATE": date,
                "LIMMTOTAL": scores["immediate"] if visit["memory"] else "-4",
                "LDELTOTAL": scores["delayed"] if visit["memory"] else "-4",
            }
        )
        volumes = {}
        if visit["scans"]:
            volumes = {
                "Hippocampus": str(whole(rng, *hippocampi, 3000, 11000)),
                "ICV": str(whole(rng, 1.5e6 + (0 if female else 1.2e5), 1.6e5, 1_000_000, 2_100_000)),
                "FLDSTRENG": "1.5 Tesla MRI" if phase == "ADNI1" else "3 Tesla MRI",
            }
        tables["ADNIMERGE"].append(
            {
                "RID": rid,
                "COLPROT": visit["phase"],
                "ORIGPROT": phase,
                "PTID": ptid,
                "VISCODE": code,
                "EXAMDATE": date,
                "DX_bl": enrolled,
                "AGE": f"{person['age']:.1f}",
                "PTGENDER": "Female" if female else "Male",
                "PTEDUCAT": education,
                "APOE4": str(sum(allele == 4 for allele in alleles)),
                "CDRSB": text(total) if visit["cdr"] else "",
                "MMSE": scores["mmse"] if visit["mmse"] else "",
                "LDELTOTAL": scores["delayed"] if visit["memory"] else "",
                "DX": "" if visit["scan_only"] else DX_NAMES[visit["stage"]],
                "EXAMDATE_bl": first,
                **volumes,
            }
        )
    screening = {"PHASE": phase, "PTID": ptid, "RID": rid, "VISCODE": "sc", "VISCODE2": "sc"}
    tables["PTDEMOG"].append(
        screening
        | {
            "VISDATE": first,
            "PTGENDER": "2" if female else "1",
            "PTHAND": "2" if rng.random() < 0.09 else "1",
            "PTEDUCAT": education or "-4",
        }
    )
    tables["APOERES"].append(
        screening
        | {
            "APTESTDT": first,
            "APGEN1": str(alleles[0]),
            "APGEN2": str(alleles[1]),
            "GENOTYPE": f"{alleles[0]}/{alleles[1]}",
        }
    )
    tables["LABDATA"].append(
        screening
        | {
            "EXAMDATE": first,
            "BAT126": str(whole(rng, 480, 160, 100, 2000)),
            "RCT11": str(whole(rng, 98, 15, 50, 300)),
            "RCT20": str(whole(rng, 196, 36, 80, 400)),
        }
    )


_KEY = "PHASE PTID RID VISCODE VISCODE2 "
_COLUMNS: dict[str, list[str]] = {
    "ADNIMERGE": ADNIMERGE_COLUMNS,
    "DXSUM": names(_KEY + "EXAMDATE DXCURREN DXCHANGE DXNORM DXMCI DXAD DIAGNOSIS SITEID USERDATE"),
    "CDR": names(_KEY + "VISDATE CDSOURCE CDMEMORY CDORIENT CDJUDGE CDCOMMUN CDHOME CDCARE CDGLOBAL CDRSB SITEID"),
    "MMSE": names(_KEY + "VISDATE MMDATE MMYEAR MMSCORE SITEID USERDATE"),
    "NEUROBAT": names(_KEY + "VISDATE LIMMTOTAL LIMMEND LDELTOTAL LDELCUE TRAASCOR TRABSCOR BNTTOTAL SITEID USERDATE"),
    "PTDEMOG": names(_KEY + "VISDATE PTGENDER PTDOB PTDOBYY PTDOBMM PTHAND PTMARRY PTEDUCAT PTETHCAT PTRACCAT SITEID"),
    "APOERES": names(_KEY + "APTESTDT APGEN1 APGEN2 GENOTYPE SITEID"),
    "LABDATA": names(
        _KEY + "EXAMDATE AXT117 BAT126 HMT3 HMT7 HMT13 HMT40 HMT100 HMT102 RCT4 RCT5 RCT6 RCT11 RCT19 RCT20 RCT392"
    ),
}
