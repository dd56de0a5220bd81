"""IXI: healthy adults, one T1-weighted volume each (``IXI<id>-<site>-<scan>_T1.nii.gz``), one demographic table.

The table is either ``participants.csv`` (``IXI_ID``, ``SEX``, ``AGE``) or the public ``IXI`` spreadsheet (``IXI_ID`` as
a number, ``SEX_ID (1=m, 2=f)``, ``AGE``; an age of 0 and repeated rows occur). Nobody has a diagnosis and nobody is
expected to.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.base import FoundImage, Ingest, IngestResult, QuarantineReason, no_images
from medalign3d.cohorts.images import ImageFile
from medalign3d.cohorts.tables import Row, describe_tables, header_key, headers
from medalign3d.cohorts.values import Quantity, age_precision_of, parse_date, parse_sex
from medalign3d.errors import InputError, MissingTable
from medalign3d.params import Params

FILE_NAME = re.compile(
    r"IXI(?P<id>\d{3})-(?P<site>[A-Za-z]+)-(?P<scan>\d+)(?:-(?P<weighting>[A-Za-z0-9]+)|_(?P<kind>[A-Za-z0-9]+))?(?P<rest>.*)",
    re.IGNORECASE,
)
ID_COLUMNS = ("IXI_ID", "participant_id", "Subject ID", "Subject", "ID")
SEX_COLUMNS = ("SEX", "SEX_ID (1=m, 2=f)", "SEX_ID", "M/F", "Gender")
FIELD_STRENGTH_T = {"GUYS": 1.5, "HH": 3.0, "IOP": 1.5}
SITE_MANUFACTURER = {"GUYS": "Philips", "HH": "Philips", "IOP": "GE"}


def subject_of(cell: str) -> str | None:
    """``IXI002`` from ``IXI002``, ``2``, ``002`` or ``2.0``.

    >>> subject_of("2.0"), subject_of("IXI014-HH-1236"), subject_of("x")
    ('IXI002', 'IXI014', None)
    """
    match = re.match(r"\s*(?:sub-)?(?:IXI)?0*(\d{1,3})(?:\.0+)?\s*(?:$|[-_ ])", cell, re.IGNORECASE)
    return f"IXI{int(match[1]):03d}" if match else None


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read IXI."""
    book = Ingest("IXI", root, params, workers)
    found = headers(root, book.files)
    id_keys = {header_key(name) for name in ID_COLUMNS}
    candidates = [path for path, keys in found.items() if id_keys & keys and "age" in keys]
    if not candidates:
        raise MissingTable(
            "a demographic table is missing",
            where=root,
            found=describe_tables(found),
            expected="participants.csv or the public IXI spreadsheet, with the columns IXI_ID, AGE and SEX or SEX_ID",
            remedy="download IXI.xls from brain-development.org and put it into this folder",
        )
    if len(candidates) > 1:
        plain = [path for path in candidates if PurePosixPath(path).name.lower() == "participants.csv"]
        candidates = plain or sorted(candidates)
        if len(candidates) > 1 and len({frozenset(found[path]) for path in candidates}) > 1:
            raise InputError(
                "a table is there more than once",
                where=", ".join(candidates),
                expected="one demographic table",
                remedy="move the others out of this folder",
            )
    table = book.read(candidates[0], "demographics")
    table.require(
        id=ID_COLUMNS,
        age=("AGE",),
        sex=SEX_COLUMNS,
    )

    def identify(row: Row) -> tuple[str, str] | None:
        subject = subject_of(row.get(*ID_COLUMNS))
        return None if subject is None else (subject, "baseline")

    text: dict[str, str] = {}
    for row in table.rows():
        key = identify(row)
        if key is not None:
            text.setdefault(key[0], row.get("AGE"))
    fields: dict[str, Any] = {
        "sex": (parse_sex, SEX_COLUMNS),
        "age": (Quantity(0, 200, missing=frozenset({0.0, -1.0})), ("AGE",)),
        "date": (_study_date, ("STUDY_DATE",)),
    }
    people = book.collect(table, identify, fields)

    for path in book.files:
        name = PurePosixPath(path).name
        if not name.lower().endswith((".nii", ".nii.gz")):
            continue
        stem = re.sub(r"\.nii(?:\.gz)?$", "", name, flags=re.IGNORECASE)
        item = FoundImage(stem, ImageFile(path, "nifti", (path,)))
        book.images.append(item)
        match = FILE_NAME.fullmatch(stem)
        if match is None:
            book.drop(item, QuarantineReason.ID_UNPARSABLE, "the name is not IXI<id>-<site>-<scan>_T1")
            continue
        kind = (match["weighting"] or match["kind"] or "T1").upper()
        if kind != "T1":
            book.drop(item, QuarantineReason.NOT_T1, "the file is no T1-weighted volume")
            continue
        subject, site = f"IXI{match['id']}", match["site"].upper()
        item.subject, item.session, item.series_description = subject, "baseline", "T1"
        item.order = item.rank = (bool(match["rest"]), int(match["scan"]))
        person = people.get((subject, "baseline"))
        if person is None:
            book.drop(item, QuarantineReason.ID_NOT_IN_CLINICAL, "the demographic table does not know the participant")
            continue
        if "sex" not in person:
            book.drop(item, QuarantineReason.SEX_MISSING, "the table gives no sex")
            continue
        visit = book.visit(subject, "baseline")
        visit.date = person["date"].value if "date" in person else None
        visit.month = 0.0
        book.attach(item, visit, "exact_label", 0)
        item.scan_date = visit.date
        book.set_person(item, "sex", person["sex"])
        age = person.get("age")
        book.set_age(
            item,
            age.value if age else None,
            age_precision_of(text.get(subject, "")),
            "AGE",
            age.file if age else table.relative,
            age.row if age else None,
        )
        item.values.update(
            field_strength_t=FIELD_STRENGTH_T.get(site), manufacturer=SITE_MANUFACTURER.get(site), release="IXI"
        )
    if not book.images:
        raise no_images(root, "IXI", "files named IXI<id>-<site>-<scan>_T1.nii.gz")
    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    return book.finish()


def _study_date(cell: str) -> tuple[Any, QuarantineReason | None]:
    """The study's date; impossible ones are not worth an issue because nothing needs them."""
    date, _ = parse_date(cell)
    return date, None
