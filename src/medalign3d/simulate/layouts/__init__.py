"""Native trees of the custodians, one module per cohort; each has ``plan(params) -> Plan``."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medalign3d.files import write_text
from medalign3d.simulate.faults import Fault
from medalign3d.simulate.images import FIXED_ZIP_DATE, Job

Truths = Mapping[str, Mapping[str, Any]]


@dataclass
class Plan:
    """What a cohort's tree will hold.

    ``write_tables(root, truths)`` writes the clinical tables once the images are made, because some tables quote
    volumes measured on them; ``truths`` maps native image keys to rows of the truth table.
    """

    jobs: list[Job]
    write_tables: Callable[[Path, Truths], None]
    faults: list[Fault] = field(default_factory=list)
    people: int = 0


def names(text: str) -> list[str]:
    """Column names that are written in one string, separated by blanks: as long as real tables are."""
    return text.split()


def write_table(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    quote_all: bool = False,
    line_end: str = "\n",
    bom: bool = False,
) -> None:
    """Write a table as the custodian ships it; keys that are not in ``columns`` are an error, absent ones are blank."""
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream,
        fieldnames=list(columns),
        restval="",
        lineterminator=line_end,
        quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL,
    )
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, ("\ufeff" if bom else "") + stream.getvalue())


def write_workbook(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one sheet as ``.xlsx`` with the same bytes every time (times inside the file are fixed)."""
    import datetime as dt

    import openpyxl

    book = openpyxl.Workbook()
    book.properties.creator = "simulated"
    book.properties.created = book.properties.modified = dt.datetime(2020, 1, 1)
    sheet = book.active
    sheet.append(list(columns))
    for row in rows:
        sheet.append([_cell(row.get(name, "")) for name in columns])
    draft = io.BytesIO()
    book.save(draft)
    final = io.BytesIO()
    with zipfile.ZipFile(draft) as source, zipfile.ZipFile(final, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "docProps/core.xml":  # saving stamps the present time
                content = _fix_times(content)
            target.writestr(zipfile.ZipInfo(name, FIXED_ZIP_DATE), content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(final.getvalue())


def _fix_times(xml: bytes) -> bytes:
    import re

    return re.sub(rb">\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ<", b">2020-01-01T00:00:00Z<", xml)


def _cell(value: Any) -> Any:
    """Numbers as numbers, blanks as empty cells, as spreadsheets hold them."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else number
