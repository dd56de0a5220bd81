"""AIBL at the size of Table 1: 1,002 images; every score is there, education and socioeconomic status are not."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from medalign3d.published_table1 import PUBLISHED
from medalign3d.simulate.layouts import names, write_table
from medalign3d.simulate.layouts.aibl import COLLECTION, DX_CODES, EXTRACT, SUFFIX
from medalign3d.simulate.records import DAYS_PER_YEAR, text, us_date
from medalign3d.simulate.table1.draws import exact_subset, generator, pick, scaled, whole

SHARES = {"NC": 0.72, "MCI": 0.13, "AD": 0.15}
# Age, MMSE, logical memory immediate and delayed: mean and standard deviation; carriers of APOE e4.
PROFILE: dict[str, tuple[tuple[float, float], ...]] = {
    "NC": ((73, 6.5), (28.7, 1.2), (13, 4), (11, 4.3)),
    "MCI": ((75, 7.0), (27.0, 2.3), (8, 4), (5, 4)),
    "AD": ((74, 8.0), (20.5, 5.5), (4, 3.5), (1.3, 2.3)),
}
CARRIERS = {"NC": 0.27, "MCI": 0.51, "AD": 0.67}
RATINGS: dict[str, dict[str, float]] = {
    "NC": {"0": 0.95, "0.5": 0.05},
    "MCI": {"0.5": 0.9, "0": 0.1},
    "AD": {"0.5": 0.35, "1": 0.5, "2": 0.13, "3": 0.02},
}
VISITS = (("bl", 0), ("m18", 18), ("m36", 36), ("m54", 54))
IMAGED = {1: 0.60, 2: 0.16, 3: 0.12, 4: 0.12}  # visits with a scan per person
REPEATED = 0.04  # share of scans that were repeated at once


def write(root: Path, seed: int, scale: float) -> list[str]:
    """Write the image list and the data extract; return the paths of the scans."""
    rng = generator(seed, "AIBL")
    published = PUBLISHED["AIBL"]
    target = scaled(published.images, scale)
    people: list[dict[str, Any]] = []
    total = 0
    while total < target:
        stage = pick(rng, SHARES)
        scans = [
            2 if rng.random() < REPEATED else 1 for _ in range(int(pick(rng, {str(k): v for k, v in IMAGED.items()})))
        ]
        while total + sum(scans) > target:
            scans = [1] if total + 1 == target else scans[:-1] or [1]
        total += sum(scans)
        age = min(max(float(rng.normal(*PROFILE[stage][0])), 44.0), 90.0)
        people.append({"stage": stage, "scans": scans, "age": age})
    alone = [i for i, person in enumerate(people) if len(person["scans"]) == 1]
    people[alone[0]]["age"], people[alone[1]]["age"] = 42.5, 96.4  # the published range, 42 to 96 years
    sizes = [sum(person["scans"]) for person in people]
    women = exact_subset(sizes, scaled(published.female, scale), rng.permutation(len(people)).tolist())

    tables: dict[str, list[dict[str, str]]] = {name: [] for name in _COLUMNS}
    listed: list[dict[str, str]] = []
    paths: list[str] = []
    uid = 31200
    for i, person in enumerate(people):
        rid, stage = str(i + 1), person["stage"]
        site = 1 + int(rng.random() < 0.5)
        baseline = dt.date(2007, 1, 15) + dt.timedelta(days=int(rng.integers(700)))
        born = baseline - dt.timedelta(days=round(person["age"] * DAYS_PER_YEAR))
        for place, (code, months) in enumerate(VISITS[: len(person["scans"])]):
            date = baseline + dt.timedelta(
                days=round(months * DAYS_PER_YEAR / 12) + (int(rng.integers(-30, 31)) if months else 0)
            )
            key = {"RID": rid, "SITEID": str(site), "VISCODE": code}
            dated = key | {"EXAMDATE": us_date(date)}
            flags = {"DXNORM": "NC", "DXMCI": "MCI", "DXAD": "AD"}
            tables["pdxconv"].append(
                key | {name: "1" if stage == of else "-4" for name, of in flags.items()} | {"DXCURREN": DX_CODES[stage]}
            )
            _, mmse, immediate, delayed = PROFILE[stage]
            tables["mmse"].append(dated | {"MMSCORE": text(whole(rng, *mmse, 0, 30))})
            tables["cdr"].append(dated | {"CDGLOBAL": pick(rng, RATINGS[stage])})
            tables["neurobat"].append(
                dated
                | {
                    "LIMMTOTAL": text(whole(rng, *immediate, 0, 25)),
                    "LDELTOTAL": text(whole(rng, *delayed, 0, 25)),
                }
            )
            scan_date = date + dt.timedelta(days=int(rng.integers(0, 30)))
            tables["mri3meta" if site == 1 else "mrimeta"].append(
                key | {"EXAMDATE": us_date(scan_date), "MMCONDCT": "1", "MMSMPRAGE": "1", "MMRMPRAGE": "-4"}
            )
            for repeat in range(person["scans"][place]):
                uid += 1 + int(rng.integers(30))
                series = "MPRAGE_ADNI_confirmed" + ("_RPT" if repeat else "")
                stamp = f"{scan_date:%Y-%m-%d}_10_{repeat:02d}_00.0"
                name = f"AIBL_{rid}_MR_{series}_Br_{scan_date:%Y%m%d}120000000_S{uid // 2}_I{uid}.nii"
                paths.append(f"AIBL/{rid}/{series}/{stamp}/I{uid}/{name}")
                listed.append(
                    {
                        "Image Data ID": f"I{uid}",
                        "Subject": rid,
                        "Group": "Patient",
                        "Sex": "F" if i in women else "M",
                        "Age": str(int((scan_date - born).days / DAYS_PER_YEAR)),
                        "Visit": str(place + 1),
                        "Modality": "MRI",
                        "Description": series,
                        "Type": "Original",
                        "Acq Date": us_date(scan_date),
                        "Format": "NiFTI",
                        "Downloaded": "4/28/2015",
                    }
                )
        first = {"RID": rid, "SITEID": str(site), "VISCODE": "bl"}
        tables["ptdemog"].append(first | {"PTGENDER": "2" if i in women else "1", "PTDOB": f"/{born.year}"})
        alleles = sorted(4 if rng.random() < 0.6 * CARRIERS[stage] else 3 for _ in range(2))
        tables["apoeres"].append(
            first | {"APTESTDT": us_date(baseline), "APGEN1": str(alleles[0]), "APGEN2": str(alleles[1])}
        )
    write_table(root / COLLECTION, list(listed[0]), listed, quote_all=True)
    for name, rows in tables.items():
        write_table(root / EXTRACT / f"aibl_{name}{SUFFIX}.csv", names("RID SITEID VISCODE " + _COLUMNS[name]), rows)
    return paths


_COLUMNS = {
    "pdxconv": "DXNORM DXNODEP DXMCI DXMDES DXAD DXAPP DXOTHDEM DXCURREN",
    "mmse": "EXAMDATE MMDATE MMYEAR MMSCORE",
    "cdr": "EXAMDATE CDGLOBAL",
    "neurobat": "EXAMDATE LIMMTOTAL LDELTOTAL",
    "ptdemog": "PTGENDER PTDOB",
    "apoeres": "APTESTDT APGEN1 APGEN2",
    "mrimeta": "EXAMDATE MMCONDCT MMSMPRAGE MMRMPRAGE",
    "mri3meta": "EXAMDATE MMCONDCT MMSMPRAGE MMRMPRAGE",
}
