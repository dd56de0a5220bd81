"""OASIS at the size of Table 1: OASIS-1 as four derived files per person, and every raw repeat of OASIS-2.

4 x 414 + 1,364 = 3,020 files. Of the 414 people of OASIS-1 the 180 youngest have no education, status, MMSE and CDR;
19 of the others have no status. OASIS-2 has 150 people, 373 sessions and three or four repeats a session; the status is
blank in 19 sessions of eight people (71 files), the MMSE in two sessions (7 files). 116 people are in both releases, as
in the public tables: their records are equal, and the person counts once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medalign3d.simulate.layouts import write_table, write_workbook
from medalign3d.simulate.layouts.oasis import (
    EDUCATION_CODES,
    HEAD_SIZE_CONSTANT,
    OASIS1_COLUMNS,
    OASIS2_COLUMNS,
    OASIS2_TABLE,
)
from medalign3d.simulate.records import text
from medalign3d.simulate.table1.draws import exact_subset, generator, pick, scaled, whole

DERIVED = ("orig", "norm", "aligned_orig", "aligned_norm")
OASIS1_WOMEN, OASIS1_MEN = 255, 159
RATED, RATED_WITHOUT_SES = 234, 19
UNPICTURED, RESCANS = 2, 20  # rows of the table without files here
LINKED = 116
# Sex -> people, sessions, files of OASIS-2.
OASIS2 = {"F": (88, 213, 778), "M": (62, 160, 586)}
NO_SES_SESSIONS, NO_SES_FILES = 19, 71
NO_MMSE_SESSIONS, NO_MMSE_FILES = 2, 7
GROUPS = {"Nondemented": 72.0, "Demented": 64.0, "Converted": 14.0}
# Rating -> MMSE, whole-brain share, intracranial volume (cm3): mean and standard deviation.
BY_RATING: dict[float, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    0.0: ((29.1, 1.0), (0.75, 0.04), (1475, 175)),
    0.5: ((26.2, 3.1), (0.722, 0.033), (1486, 180)),
    1.0: ((21.3, 4.8), (0.703, 0.026), (1492, 155)),
    2.0: ((17.0, 5.0), (0.69, 0.04), (1500, 130)),
}
RATINGS_1 = {"0": 134.0, "0.5": 70.0, "1": 28.0, "2": 2.0}
YEARS_OF_EDUCATION = {
    "12": 43.0,
    "16": 32.0,
    "18": 26.0,
    "14": 13.0,
    "13": 10.0,
    "15": 7.0,
    "20": 5.0,
    "11": 5.0,
    "8": 4.0,
}


def _measures(rng: np.random.Generator, rating: float) -> dict[str, str]:
    mmse, brain, head = BY_RATING[rating]
    volume = whole(rng, *head, 1123, 1992)
    return {
        "MMSE": text(whole(rng, *mmse, 4, 30)),
        "CDR": text(rating),
        "eTIV": str(volume),
        "nWBV": f"{min(max(float(rng.normal(*brain)), 0.64), 0.84):.3f}",
        "ASF": f"{HEAD_SIZE_CONSTANT / volume:.3f}",
    }


def _education_code(years: int) -> str:
    return next(code for least, code in EDUCATION_CODES if years >= least)


def _session_counts(people: int, sessions: int) -> list[int]:
    """Two sessions for everybody, and the rest as third, fourth and fifth ones of some."""
    counts = [2] * people
    extra = sessions - 2 * people
    for place, more in zip(range(people), (3, 2, 2, *([1] * people)), strict=False):
        more = min(more, extra)
        counts[place] += more
        extra -= more
    return counts


def _oasis2(rng: np.random.Generator, scale: float) -> list[dict[str, Any]]:
    """The rows of OASIS-2 with the number of repeats of each under ``files``."""
    people: list[dict[str, Any]] = []
    for sex, (persons, sessions, _) in OASIS2.items():
        counts = _session_counts(scaled(persons, scale), scaled(sessions, scale))
        people += [{"sex": sex, "sessions": count} for count in counts]
    people = [people[int(i)] for i in rng.permutation(len(people))]
    without_ses = exact_subset(
        [person["sessions"] for person in people],
        scaled(NO_SES_SESSIONS, scale),
        rng.permutation(len(people)).tolist(),
    )
    rows: list[dict[str, Any]] = []
    for i, person in enumerate(people):
        subject, group = f"OAS2_{i + 1:04d}", pick(rng, GROUPS)
        age = min(max(float(rng.normal(75.3, 7.6)), 60.2), 90.0)
        years = int(pick(rng, YEARS_OF_EDUCATION))
        demented = float(pick(rng, {"0.5": 102.0, "1": 41.0, "2": 3.0}))
        delay = 0
        base = _measures(rng, 0.0)
        for number in range(1, person["sessions"] + 1):
            if number > 1:
                delay += min(max(round(float(rng.normal(700, 220))), 182), 1707)
            converted = group == "Converted" and number == person["sessions"]
            rating = demented if group == "Demented" else (0.5 if converted else 0.0)
            own = _measures(rng, rating)
            rows.append(
                {
                    "Subject ID": subject,
                    "MRI ID": f"{subject}_MR{number}",
                    "Group": group,
                    "Visit": str(number),
                    "MR Delay": str(delay),
                    "M/F": person["sex"],
                    "Hand": "R",
                    "Age": str(int(age + delay / 365.25)),
                    "EDUC": str(years),
                    "SES": "" if i in without_ses else text(whole(rng, 2.5, 1.1, 1, 5)),
                    **own,
                    "eTIV": base["eTIV"],  # the head does not change
                    "ASF": base["ASF"],
                }
            )
            if rows[-1]["SES"] and number > 1:
                rows[-1]["SES"] = rows[-2]["SES"]
    # The published range ends at 98 years.
    rows[-1]["Age"] = "98"
    # Sessions without an MMSE: not those without a status, so that the counts of files stay apart.
    free = [k for k, row in enumerate(rows) if row["SES"] and row["Visit"] != "1"]
    without_mmse = [free[int(k)] for k in rng.permutation(len(free))[: scaled(NO_MMSE_SESSIONS, scale)]]
    for k in without_mmse:
        rows[k]["MMSE"] = ""
    blank_ses = [k for k, row in enumerate(rows) if not row["SES"]]
    fours = set(_with_four(rng, blank_ses, scaled(NO_SES_FILES, scale)))
    fours |= set(_with_four(rng, without_mmse, scaled(NO_MMSE_FILES, scale)))
    special = {*blank_ses, *without_mmse}
    for sex, (_, _, files) in OASIS2.items():
        own_special = [k for k in special if rows[k]["M/F"] == sex]
        others = [k for k, row in enumerate(rows) if row["M/F"] == sex and k not in special]
        taken = sum(4 if k in fours else 3 for k in own_special)
        fours |= set(_with_four(rng, others, scaled(files, scale) - taken))
    for k, row in enumerate(rows):
        row["files"] = 4 if k in fours else 3
    return rows


def _with_four(rng: np.random.Generator, sessions: list[int], files: int) -> list[int]:
    """Which of the sessions have four repeats, when all of them together have ``files`` and the others three."""
    count = min(max(files - 3 * len(sessions), 0), len(sessions))
    return [sessions[int(k)] for k in rng.permutation(len(sessions))[:count]]


def write(root: Path, seed: int, scale: float) -> list[str]:
    """Write both demographic tables; return the paths of the files."""
    rng = generator(seed, "OASIS")
    second = _oasis2(rng, scale)
    firsts = [row for row in second if row["Visit"] == "1" and row["SES"] and row["MMSE"]]
    unique: dict[tuple[str, ...], int] = {}
    for row in second:
        key = tuple(row[name] for name in ("M/F", "Age", "eTIV", "MMSE", "CDR"))
        unique[key] = unique.get(key, 0) + 1
    firsts = [row for row in firsts if unique[tuple(row[n] for n in ("M/F", "Age", "eTIV", "MMSE", "CDR"))] == 1]
    linked = [firsts[int(k)] for k in rng.permutation(len(firsts))[: scaled(LINKED, scale)]]

    women, men, rated = (scaled(count, scale) for count in (OASIS1_WOMEN, OASIS1_MEN, RATED))
    sexes = ["F"] * (women - sum(row["M/F"] == "F" for row in linked))
    sexes += ["M"] * (men - sum(row["M/F"] == "M" for row in linked))
    sexes = [sexes[int(k)] for k in rng.permutation(len(sexes))]
    people: list[dict[str, str]] = [
        {name: row[name] for name in ("M/F", "Age", "MMSE", "CDR", "eTIV", "nWBV", "ASF", "SES")}
        | {"Educ": _education_code(int(row["EDUC"]))}
        for row in linked
    ]
    known_heads = set(unique)
    for k, sex in enumerate(sexes):
        if len(linked) + k < rated:
            while True:  # nobody else looks like a person of the other release
                person = _rated(rng, sex)
                key = tuple(person[name] for name in ("M/F", "Age", "eTIV", "MMSE", "CDR"))
                if key not in known_heads:
                    break
            people.append(person)
        else:
            volume = whole(rng, 1508, 152, 1123, 1992)
            age = min(max(round(18 + float(rng.gamma(1.1, 8.5))), 19), 58)
            people.append(
                {
                    "M/F": sex,
                    "Age": str(age),
                    "eTIV": str(volume),
                    "nWBV": f"{min(float(rng.normal(0.841, 0.02)), 0.893):.3f}",
                    "ASF": f"{HEAD_SIZE_CONSTANT / volume:.3f}",
                }
            )
    people[-1]["Age"] = "18"  # the published range begins at 18 years
    # Status is missing in 19 rated people; the linked ones have it, as in OASIS-2.
    for k in rng.permutation(np.arange(len(linked), rated))[: scaled(RATED_WITHOUT_SES, scale)]:
        people[int(k)]["SES"] = ""

    order = [int(k) for k in rng.permutation(len(people))]
    rows: list[dict[str, str]] = []
    paths: list[str] = []
    for number, k in enumerate(order, start=1):
        session = f"OAS1_{number:04d}_MR1"
        rows.append({"ID": session, "Hand": "R", "Delay": "N/A", **people[k]})
        paths += [f"neurite-oasis/OASIS_{session}/{name}.nii.gz" for name in DERIVED]
    for number in range(len(people) + 1, len(people) + UNPICTURED + 1):
        rows.append({"ID": f"OAS1_{number:04d}_MR1", "Hand": "R", "Delay": "N/A", **_rated(rng, "F")})
    young = [row for row in rows if not row.get("CDR")]
    for k in rng.permutation(len(young))[: scaled(RESCANS, scale)]:
        first = young[int(k)]
        rows.append({**first, "ID": first["ID"].replace("_MR1", "_MR2"), "Delay": str(int(rng.integers(1, 90)))})
    write_table(root / "oasis_cross-sectional.csv", OASIS1_COLUMNS, sorted(rows, key=lambda row: row["ID"]))

    for row in second:
        part = 1 + int(row["Subject ID"][-4:]) % 2
        for repeat in range(1, row.pop("files") + 1):
            stem = f"OAS2_RAW_PART{part}/{row['MRI ID']}/RAW/mpr-{repeat}.nifti"
            paths += [f"{stem}.hdr", f"{stem}.img"]
    write_workbook(root / OASIS2_TABLE, OASIS2_COLUMNS, second)
    return paths


def _rated(rng: np.random.Generator, sex: str) -> dict[str, str]:
    rating = float(pick(rng, RATINGS_1))
    age = (69.1, 13.9, 33) if rating == 0 else (76.5, 7.2, 60)
    return {
        "M/F": sex,
        "Age": str(whole(rng, age[0], age[1], int(age[2]), 96)),
        "Educ": text(whole(rng, 3.2, 1.3, 1, 5)),
        "SES": text(whole(rng, 2.5, 1.1, 1, 5)),
        **_measures(rng, rating),
    }
