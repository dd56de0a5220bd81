"""Made-up tables in the form of the published OASIS-1 and OASIS-2 tables: no row is a real person's."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CROSS = ["ID", "M/F", "Hand", "Age", "Educ", "SES", "MMSE", "CDR", "eTIV", "nWBV", "ASF", "Delay"]
LONG = [
    "Subject ID", "MRI ID", "Group", "Visit", "MR Delay", "M/F", "Hand", "Age", "EDUC", "SES", "MMSE", "CDR", "eTIV",
    "nWBV", "ASF",
]  # fmt: skip


def head(random_: random.Random) -> tuple[int, float]:
    etiv = random_.randint(1150, 1950)
    return etiv, round(1755 / etiv, 3)


def cross_table(people: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """A third are young and were not examined; two of them came for a re-scan."""
    random_ = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(1, people + 1):
        young = number % 3 == 0
        middle = number % 10 == 1  # examined, and under 60
        etiv, asf = head(random_)
        row = {
            "ID": f"OAS1_{number:04d}_MR1", "M/F": random_.choice("FM"), "Hand": "R",
            "Age": random_.randint(18, 45) if young else 52 if middle else random_.randint(60, 95),
            "Educ": "" if young else random_.randint(1, 5),
            "SES": "" if young or number % 7 == 0 else random_.randint(1, 5),
            "MMSE": "" if young else random_.randint(17, 30),
            "CDR": "" if young else 0 if middle else random_.choice([0, 0.5, 1]),
            "eTIV": etiv, "nWBV": f"0.{random_.randint(650, 880)}", "ASF": asf, "Delay": "N/A",
        }  # fmt: skip
        rows.append(row)
        if number in (3, 6):
            row["Age"] = 20
            rows.append({**row, "ID": f"OAS1_{number:04d}_MR2", "Delay": 30})
    return rows


def long_table(people: int = 30, seed: int = 1) -> list[dict[str, Any]]:
    """Two or three sessions each; every seventh person has no SES."""
    random_ = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(1, people + 1):
        group = ("Nondemented", "Demented", "Converted")[number % 3]
        person = {
            "Subject ID": f"OAS2_{number:04d}", "Group": group, "M/F": random_.choice("FM"), "Hand": "R",
            "EDUC": random_.randint(8, 20), "SES": "" if number % 7 == 0 else random_.randint(1, 5),
        }  # fmt: skip
        age = random_.randint(62, 90)
        for visit in range(1, random_.choice([2, 2, 3]) + 1):
            delay = 0 if visit == 1 else (visit - 1) * 700
            etiv, asf = head(random_)
            cdr = {"Nondemented": 0, "Demented": random_.choice([0.5, 1])}.get(group, 0 if visit == 1 else 0.5)
            rows.append(
                {
                    **person, "MRI ID": f"OAS2_{number:04d}_MR{visit}", "Visit": visit, "MR Delay": delay,
                    "Age": age + round(delay / 365.25), "MMSE": random_.randint(15, 30), "CDR": cdr,
                    "eTIV": etiv, "nWBV": f"0.{random_.randint(650, 830)}", "ASF": asf,
                }
            )  # fmt: skip
    return rows


def write(
    path: Path,
    rows: Iterable[dict[str, Any]],
    columns: Sequence[str],
    *,
    header: bool = True,
    names: dict[str, str] | None = None,
    delimiter: str = ",",
    encoding: str = "utf-8",
    newline: str = "\n",
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator=newline)
        if header:
            writer.writerow([(names or {}).get(column, column) for column in columns])
        writer.writerows([row.get(column, "") for column in columns] for row in rows)
    return path
