"""MIRIAD: NIfTI files whose names tell participant, group, sex, visit and scan; XNAT exports for age and scores.

The exports are known by their headers. Files without any export are ingested: group and sex stand in the name, the age
stays unknown. The group holds for the whole study (AD, or HC for healthy control).

Not supported: the dataset's tar archive unless it is unpacked.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.base import (
    FoundImage,
    Ingest,
    IngestResult,
    QuarantineReason,
    Severity,
    Sourced,
    Visit,
    no_images,
)
from medalign3d.cohorts.images import ImageFile
from medalign3d.cohorts.tables import Row, Table, headers
from medalign3d.cohorts.values import CDR_GLOBAL, CDR_SUM, EDUCATION_YEARS, MMSE, SES, Quantity, parse_sex
from medalign3d.params import Params

FILE_NAME = re.compile(
    r"miriad_(?P<subject>\d{3})_(?P<group>AD|HC)_(?P<sex>[MF])_(?P<visit>\d{2})_MR_(?P<scan>\d+)(?:\.nii(?:\.gz)?)?",
    re.IGNORECASE,
)
SESSION_LABEL = re.compile(
    r"miriad_(?P<subject>\d{3})_(?P<visit>\d{1,2})_(?P<what>[A-Za-z]+)(?:_(?P<scan>\d+))?", re.IGNORECASE
)
SESSION_FOLDER = re.compile(r"miriad_(?P<subject>\d{3})_(?P<visit>\d{1,2})_MR_(?P<scan>\d+)", re.IGNORECASE)
GROUP_WORDS = {
    "AD": "AD",
    "ALZHEIMER'S DISEASE": "AD",
    "PATIENT": "AD",
    "HC": "HC",
    "CONTROL": "HC",
    "HEALTHY CONTROL": "HC",
}
DIAGNOSIS = {"AD": "AD", "HC": "HC"}
WEEKS = {1: 0, 2: 2, 3: 6, 4: 14, 5: 26, 6: 38, 7: 52, 8: 78, 9: 104}
FIELD_STRENGTH_T = 1.5


def _subject(cell: str) -> str | None:
    match = re.search(r"(\d{3})", cell)
    return f"miriad_{match[1]}" if match else None


def _label(row: Row) -> re.Match[str] | None:
    for name in ("MR ID", "Label", "ID", "Session"):
        if match := SESSION_LABEL.match(row.get(name)):
            return match
    return None


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read MIRIAD."""
    book = Ingest("MIRIAD", root, params, workers)
    found = headers(root, book.files)
    ages: dict[tuple[str, int], Sourced] = {}
    sexes: dict[str, set[str]] = {}
    sex_sources: dict[str, Sourced] = {}
    people: dict[str, dict[str, Sourced]] = {}
    groups: dict[str, Sourced] = {}

    def add_group(subject: str, row: Row) -> None:
        word = row.get("Group", "Subject Group", "Diagnosis").strip().upper()
        group = GROUP_WORDS.get(word)
        if group is not None:
            groups.setdefault(subject, Sourced(group, row.table.relative, row.line, "Group"))

    def add_sex(subject: str, row: Row) -> None:
        sourced = book.value(row, subject, "", parse_sex, "M/F", "Gender", "Sex")
        if sourced is not None:
            sexes.setdefault(subject, set()).add(sourced.value)
            sex_sources[subject] = sourced

    # The table of MR sessions goes first: clinical tables may hold ages, too, but those of the scan are wanted.
    for path, keys in sorted(found.items(), key=lambda item: ("mr_id" not in item[1], item[0])):
        table: Table | None = None
        if {"mmse", "cdr"} & keys and {"label", "mr_id", "subject"} & keys:
            table = book.read(path, "scores")
            _read_scores(book, table)
        if ("mr_id" in keys or "label" in keys) and "age" in keys:
            table = table or book.read(path, "MR sessions")
            for row in table.rows():
                label = _label(row)
                subject = f"miriad_{label['subject']}" if label else _subject(row.get("Subject"))
                if subject is None:
                    book.row_without_id(row)
                    continue
                add_sex(subject, row)
                add_group(subject, row)
                if label is None:
                    continue
                age = book.value(row, subject, f"{int(label['visit']):02d}", Quantity(0, 150), "Age")
                if age is not None:
                    ages.setdefault((subject, int(label["visit"])), age)
        elif table is None and "subject" in keys and {"gender", "m_f"} & keys:
            table = book.read(path, "subjects")
            for row in table.rows():
                subject = _subject(row.get("Subject"))
                if subject is None:
                    book.row_without_id(row)
                    continue
                add_sex(subject, row)
                add_group(subject, row)
                person = people.setdefault(subject, {})
                hand = row.get("Hand").upper()[:1]
                if hand in ("R", "L", "A"):
                    person["handedness"] = Sourced(hand, table.relative, row.line, "Hand")
                for column, name, quantity in (("educ_years", "Education", EDUCATION_YEARS), ("ses", "Ses", SES)):
                    sourced = book.value(row, subject, "", quantity, name)
                    if sourced is not None:
                        person[column] = sourced

    for path in book.files:
        name = PurePosixPath(path).name
        if not name.lower().endswith((".nii", ".nii.gz")):
            continue
        stem = re.sub(r"\.nii(?:\.gz)?$", "", name, flags=re.IGNORECASE)
        item = FoundImage(stem, ImageFile(path, "nifti", (path,)))
        book.images.append(item)
        match = FILE_NAME.fullmatch(name)
        if match is not None:
            subject, number, scan = f"miriad_{match['subject']}", int(match["visit"]), int(match["scan"])
            group: str | None = match["group"].upper()
            sex: str | None = match["sex"].upper()
            named = {"file": path, "row": None, "rule": "file name"}
        else:
            # The archive's folder form: the session folder tells participant, visit and scan, the tables the rest.
            label = next((m for part in PurePosixPath(path).parts[:-1] if (m := SESSION_FOLDER.fullmatch(part))), None)
            if label is None:
                book.drop(
                    item,
                    QuarantineReason.ID_UNPARSABLE,
                    "neither the file is named miriad_<participant>_<group>_<sex>_<visit>_MR_<scan> nor its folder "
                    "miriad_<participant>_<visit>_MR_<scan>",
                )
                continue
            subject, number, scan = f"miriad_{label['subject']}", int(label["visit"]), int(label["scan"])
            item.key = f"{label[0]}/{stem}"
            group = groups[subject].value if subject in groups else None
            sex = next(iter(sexes.get(subject, {None})))
            named = groups[subject].as_json() if subject in groups else {}
        item.subject, item.session, item.order, item.rank = subject, f"{number:02d}", (scan, stem), (scan, stem)
        if len(sexes.get(subject, set()) | {sex}) > 1:
            source = sex_sources[subject]
            book.drop(
                item,
                QuarantineReason.SEX_CONFLICT,
                "the file name and the tables differ on sex",
                source.file,
                source.row,
            )
            continue
        if sex is None:
            book.drop(item, QuarantineReason.SEX_MISSING, "neither the file name nor a table gives the sex")
            continue
        if subject in groups and group != groups[subject].value:
            source = groups[subject]
            book.visit_note(
                QuarantineReason.DIAGNOSIS_CONFLICT,
                subject,
                f"{number:02d}",
                Severity.WARN,
                "the file name and the tables differ on the group; the file name is kept",
                file=source.file,
                line=source.row,
            )
        visit = book.visit(subject, f"{number:02d}")
        visit.month = round(WEEKS[number] * 7 / 30.4375, 2) if number in WEEKS else None
        visit.day = WEEKS[number] * 7 if number in WEEKS else None
        if group is not None:
            visit.values["dx_native"] = DIAGNOSIS[group]
            visit.provenance["dx_native"] = named
        else:
            book.remark(item, QuarantineReason.NO_DIAGNOSIS, "neither the file name nor a table gives the group")
        book.attach(item, visit, "file_name", 0)
        item.scan_day = visit.day
        item.values.update(sex=sex, dx_subject_level=group, field_strength_t=FIELD_STRENGTH_T, release="MIRIAD")
        item.provenance["sex"] = named if match is not None else sex_sources[subject].as_json()
        for column, sourced in people.get(subject, {}).items():
            book.set_person(item, column, sourced)
        age = ages.get((subject, number))
        book.set_age(
            item,
            age.value if age else None,
            "month",
            "Age of the MR session",
            age.file if age else None,
            age.row if age else None,
        )
    if not book.images:
        raise no_images(root, "MIRIAD", "files named miriad_<participant>_<AD|HC>_<M|F>_<visit>_MR_<scan>.nii")
    group_of: dict[str, str] = {}
    for visit in book.visits.values():
        if "dx_native" in visit.values:
            group_of[visit.subject] = visit.values["dx_native"]
    for visit in book.visits.values():
        _finish_visit(visit, group_of)
    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    return book.finish()


def _read_scores(book: Ingest, table: Table) -> None:
    """MMSE and CDR of a visit; they hold for all its scans."""

    def identify(row: Row) -> tuple[str, str] | None:
        label = _label(row)
        return None if label is None else (f"miriad_{label['subject']}", f"{int(label['visit']):02d}")

    fields: dict[str, Any] = {
        "mmse": (MMSE.with_missing(-4, -1), ("MMSE",)),
        "cdr_global": (CDR_GLOBAL.with_missing(-4, -1), ("CDR",)),
        "cdr_sb": (CDR_SUM.with_missing(-4, -1), ("CDR SB", "CDRSB", "Sum of boxes", "sumbox")),
    }
    # One row per instrument: a visit's MMSE and CDR rows carry one key and must not count as duplicates.
    by_instrument: dict[str, list[int]] = {}
    for row in table.rows():
        label = _label(row)
        by_instrument.setdefault("" if label is None else label["what"].upper(), []).append(row.line)
    for lines in by_instrument.values():
        collected = book.collect(table, identify, fields, lines=frozenset(lines))
        for (subject, code), values in collected.items():
            visit = book.visit(subject, code)
            for name in fields:
                visit.set(name, values.get(name))


def _finish_visit(visit: Visit, groups: dict[str, str]) -> None:
    if visit.values.get("dx_native") is None and visit.subject in groups:
        visit.values["dx_native"] = groups[visit.subject]
    number = int(visit.code)
    if visit.month is None and number in WEEKS:
        visit.month = round(WEEKS[number] * 7 / 30.4375, 2)
        visit.day = WEEKS[number] * 7
    for column, source in (("mmse", "mmse_source"), ("cdr_global", "cdr_global_source"), ("cdr_sb", "cdr_sb_source")):
        if visit.values.get(column) is not None:
            visit.values[source] = "measured"
