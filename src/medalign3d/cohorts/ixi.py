"""IXI: healthy adults, one T1-weighted volume each (``IXI<id>-<site>-<scan>_T1.nii.gz``), one demographic table.

The table is either ``participants.csv`` (``IXI_ID``, ``SEX``, ``AGE``) or the public ``IXI`` spreadsheet (``IXI_ID`` as
a number, ``SEX_ID (1=m, 2=f)``, ``AGE``). In the spreadsheet 0 means "not known" and 26 ids stand twice: mostly a full
row beside one with zeros, which complete each other; two ids have rows that contradict each other, and what differs is
not used (sex differs: the image is dropped; age differs: it has no age). Nobody has a diagnosis and nobody is expected
to.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.base import (
    AGE_HIGH,
    AGE_LOW,
    DAYS_PER_YEAR,
    FoundImage,
    Ingest,
    IngestResult,
    Level,
    QuarantineReason,
    Severity,
    Sourced,
    no_images,
)
from medalign3d.cohorts.packed import nifti_files, remark_on
from medalign3d.cohorts.tables import Row, Table, describe_tables, header_key, headers
from medalign3d.cohorts.values import Quantity, parse_date, parse_float, parse_number, parse_sex
from medalign3d.errors import InputError, MissingTable
from medalign3d.files import sha256_file
from medalign3d.params import Params

FILE_NAME = re.compile(
    r"IXI(?P<id>\d{3})-(?P<site>[A-Za-z]+)-(?P<scan>\d+)(?:-(?P<weighting>[A-Za-z0-9]+)|_(?P<kind>[A-Za-z0-9]+))?(?P<rest>.*)",
    re.IGNORECASE,
)
ID_COLUMNS = ("IXI_ID", "participant_id", "Subject ID", "Subject", "ID")
SEX_COLUMNS = ("SEX", "SEX_ID (1=m, 2=f)", "SEX_ID", "M/F", "Gender")
#: Names of the demographic table in order of preference; any other name goes last.
TABLE_NAMES = ("participants", "ixi")
FIELD_STRENGTH_T = {"GUYS": 1.5, "HH": 3.0, "IOP": 1.5}
SITE_MANUFACTURER = {"GUYS": "Philips", "HH": "Philips", "IOP": "GE"}
AGE = Quantity(0, 200, missing=frozenset({0.0, -1.0}))
SESSION = "baseline"


def subject_of(cell: str) -> str | None:
    """``IXI002`` from ``IXI002``, ``2``, ``002`` or ``2.0``.

    >>> subject_of("2.0"), subject_of("IXI014-HH-1236"), subject_of("28 points")
    ('IXI002', 'IXI014', None)
    """
    match = re.fullmatch(
        r"(?:sub-)?(?:0*(\d{1,3})(?:\.0+)?|IXI0*(\d{1,3})(?:\.0+)?(?:[-_ ].*)?)", cell.strip(), re.IGNORECASE | re.ASCII
    )
    return f"IXI{int(match[1] or match[2]):03d}" if match else None


def _sex(cell: str) -> tuple[str | None, QuarantineReason | None]:
    return (None, None) if parse_float(cell) == 0 else parse_sex(cell)


def _age(cell: str) -> tuple[float | None, QuarantineReason | None]:
    """Age to a hundredth of a year: copies of the spreadsheet are rounded differently."""
    value, reason = parse_number(cell, AGE)
    return (None if value is None else round(value, 2)), reason


def _study_date(cell: str) -> tuple[datetime.date | None, QuarantineReason | None]:
    """The study's date; impossible ones are not worth an issue because nothing needs them."""
    return parse_date(cell)[0], None


def _birth_date(cell: str) -> tuple[datetime.date | None, QuarantineReason | None]:
    """A date of birth: years that no scan can have are fine."""
    match = re.match(r"(19\d{2})-(\d{1,2})-(\d{1,2})(?:\D|$)", cell.strip())
    if match is None:
        return None, None
    try:
        return datetime.date(int(match[1]), int(match[2]), int(match[3])), None
    except ValueError:
        return None, None


def _choose_table(root: Path, found: Mapping[str, set[str]]) -> str:
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

    def preference(path: str) -> int:
        stem = PurePosixPath(path).name.lower().split(".")[0]
        return TABLE_NAMES.index(stem) if stem in TABLE_NAMES else len(TABLE_NAMES)

    best = min(map(preference, candidates))
    equal = sorted(path for path in candidates if preference(path) == best)
    differ = len(equal) > 1 and len({sha256_file(root / path) for path in equal}) > 1
    # The same sheet saved in two formats has equal headers; which of two different tables is meant nobody knows.
    if differ and (best == len(TABLE_NAMES) or len({frozenset(found[path]) for path in equal}) > 1):
        raise InputError(
            "a table is there more than once",
            where=", ".join(equal),
            expected="one demographic table",
            remedy="move the others out of this folder",
        )
    return equal[0]


def _read_people(book: Ingest, table: Table) -> dict[str, dict[str, Sourced]]:
    """Sex, age and date of every participant, the duplicate rule applied; visits go into the book."""
    table.require(id=ID_COLUMNS, age=("AGE",), sex=SEX_COLUMNS)

    def identify(row: Row) -> tuple[str, str] | None:
        subject = subject_of(row.get(*ID_COLUMNS))
        return None if subject is None else (subject, SESSION)

    fields: dict[str, Any] = {
        "sex": (_sex, SEX_COLUMNS),
        "age": (_age, ("AGE",)),
        "date": (_study_date, ("STUDY_DATE",)),
        "born": (_birth_date, ("DOB",)),
    }
    people: dict[str, dict[str, Sourced]] = {}
    for (subject, code), values in book.collect(table, identify, fields).items():
        people[subject] = values
        visit = book.visit(subject, code)
        visit.month = 0.0
        visit.date = values["date"].value if "date" in values else None
        visit.set("sex", values.get("sex"))
        dated = "date" in values and "born" in values
        if "age" not in values and dated and not _differ_on(book, subject, "age"):
            born = values["born"]
            years = round((values["date"].value - born.value).days / DAYS_PER_YEAR, 2)
            values["age"] = Sourced(years, born.file, born.row, "STUDY_DATE - DOB")
        age = values.get("age")
        if age is not None and AGE_LOW <= age.value <= AGE_HIGH:
            visit.set("age_years", age)
            visit.values["age_precision"] = _precision(age.value)
    return people


def _differ_on(book: Ingest, subject: str, field: str) -> bool:
    """Whether rows of a participant contradict each other in a field."""
    return field in book.conflicting.get((subject, SESSION), ())


def _precision(age: float) -> str:
    return "integer" if age == int(age) else "month"


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read IXI. The table without images gives visits.

    Raises
    ------
    MissingTable
        When there is no demographic table.
    InputError
        When several could be meant, or there is neither an image nor a row.
    """
    book = Ingest("IXI", root, params, workers)
    table = book.read(_choose_table(root, headers(root, book.files)), "demographics")
    people = _read_people(book, table)
    files, unread = nifti_files(root, book.files)
    remark_on(book, unread)
    on_disk: set[str] = set()
    for file in files:
        name = PurePosixPath(file.files[0]).name
        stem = re.sub(r"\.nii(?:\.gz)?$", "", name, flags=re.IGNORECASE)
        item = FoundImage(stem, file)
        book.images.append(item)
        match = FILE_NAME.fullmatch(stem)
        if match is None:
            book.drop(item, QuarantineReason.ID_UNPARSABLE, "the name is not IXI<id>-<site>-<scan>_T1")
            continue
        subject, site = f"IXI{match['id']}", match["site"].upper()
        item.subject, item.session = subject, SESSION
        kind = (match["weighting"] or match["kind"] or "T1").upper()
        item.series_description = kind
        if kind != "T1":
            book.drop(item, QuarantineReason.NOT_T1, "the file is no T1-weighted volume")
            continue
        on_disk.add(subject)
        item.order = item.rank = (bool(match["rest"]), int(match["scan"]))
        if subject not in people:
            book.drop(item, QuarantineReason.ID_NOT_IN_CLINICAL, "the demographic table does not know the participant")
            continue
        person = people[subject]
        if "sex" not in person:
            if _differ_on(book, subject, "sex"):
                book.drop(item, QuarantineReason.SEX_CONFLICT, "rows of the table differ on sex", table.relative)
            else:
                book.drop(item, QuarantineReason.SEX_MISSING, "the table gives no sex")
            continue
        visit = book.visit(subject, SESSION)
        book.attach(item, visit, "exact_label", 0)
        item.scan_date = visit.date
        book.set_person(item, "sex", person["sex"])
        age = person.get("age")
        if age is None:
            book.set_age(item, None, "", "", table.relative, None)
        else:
            book.set_age(item, age.value, _precision(age.value), age.rule, age.file, age.row)
        item.values.update(
            field_strength_t=FIELD_STRENGTH_T.get(site), manufacturer=SITE_MANUFACTURER.get(site), release="IXI"
        )
    if not book.images and not people:
        raise no_images(root, "IXI", "files named IXI<id>-<site>-<scan>_T1.nii.gz")
    for subject, person in people.items():
        if subject not in on_disk:
            row = next(iter(person.values()), None)
            book.note(
                QuarantineReason.IMAGE_WITHOUT_FILE,
                Level.SUBJECT,
                {"native_subject_id": subject},
                Severity.WARN,
                "the table names a participant who has no T1-weighted volume on disk",
                table.relative,
                row.row if row else None,
            )
    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    return book.finish()
