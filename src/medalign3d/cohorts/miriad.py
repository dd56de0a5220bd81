"""MIRIAD: NIfTI files whose names tell participant, group, sex, visit and scan; XNAT exports for age and scores.

The exports are named by the user and the minute of the download: they are known by their headers, any of them may be
missing. Files without any export are ingested: group and sex stand in the name, the age stays unknown. The group holds
for the whole study (AD, or HC for healthy control). A visit's number is not its week; who skips a visit keeps the
numbers of the others.

Not supported: the dataset's compressed tar archive unless it is unpacked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.base import (
    FoundImage,
    Ingest,
    IngestResult,
    Level,
    QuarantineReason,
    Severity,
    Sourced,
    Visit,
    no_images,
)
from medalign3d.cohorts.images import ImageFile
from medalign3d.cohorts.nacc_files import holds_dicom, may_be_dicom, start_of
from medalign3d.cohorts.packed import folders_of, nifti_files, remark_on
from medalign3d.cohorts.tables import Row, Table, headers
from medalign3d.cohorts.values import (
    CDR_GLOBAL,
    CDR_SUM,
    EDUCATION_YEARS,
    MMSE,
    SES,
    Quantity,
    is_blank,
    parse_handedness,
    parse_sex,
)
from medalign3d.params import Params

FILE_NAME = re.compile(
    r"miriad_(?P<subject>\d{3})_(?P<group>AD|HC)_(?P<sex>[MF])_(?P<visit>\d{2})_MR_(?P<scan>\d+)(?:\.nii(?:\.gz)?)?",
    re.IGNORECASE,
)
SESSION_LABEL = re.compile(
    r"miriad_(?P<subject>\d{3})_(?P<visit>\d{1,2})_(?P<what>[A-Za-z]+)(?:_(?P<scan>\d+))?", re.IGNORECASE
)
SUBJECT = re.compile(r"(?:miriad_?)?(?P<subject>\d{3})", re.IGNORECASE)
LABEL_COLUMNS = ("MR ID", "Label", "ID", "Session")
SEX_COLUMNS = ("M/F", "Gender", "Sex")
GROUP_COLUMNS = ("Group", "Subject Group", "Diagnosis")
SUM_COLUMNS = ("CDR SB", "CDRSB", "CDR-SB", "CDR Sum of Boxes", "Sum of boxes", "sumbox", "CDRSUM")
GROUP_WORDS = {
    "AD": "AD", "ALZHEIMER'S DISEASE": "AD", "ALZHEIMERS DISEASE": "AD", "ALZHEIMER": "AD", "PATIENT": "AD",
    "HC": "HC", "CONTROL": "HC", "CONTROLS": "HC", "HEALTHY CONTROL": "HC", "NORMAL": "HC",
}  # fmt: skip
SCORES: dict[str, tuple[Quantity, tuple[str, ...]]] = {
    "mmse": (MMSE.with_missing(-4, -1), ("MMSE",)),
    "cdr_global": (CDR_GLOBAL.with_missing(-4, -1), ("CDR",)),
    "cdr_sb": (CDR_SUM.with_missing(-4, -1), SUM_COLUMNS),
}
#: Visit number -> week of the study.
WEEKS = {1: 0, 2: 2, 3: 6, 4: 14, 5: 26, 6: 38, 7: 52, 8: 78, 9: 104}
DAYS_PER_MONTH = 30.4375
FIELD_STRENGTH_T = 1.5


@dataclass(frozen=True)
class ScanName:
    """What a file's or a folder's name tells; group and sex only in the names of the flat form."""

    subject: str
    visit: int
    scan: int
    group: str | None = None
    sex: str | None = None


def scan_of(text: str) -> ScanName | None:
    """Read a name of the flat form or a session label.

    >>> scan_of("miriad_188_AD_M_01_MR_1.nii.gz")
    ScanName(subject='miriad_188', visit=1, scan=1, group='AD', sex='M')
    >>> scan_of("miriad_188_1_MR_2"), scan_of("miriad_188_1_MMSE"), scan_of("miriad_18_1_MR_1")
    (ScanName(subject='miriad_188', visit=1, scan=2, group=None, sex=None), None, None)
    """
    if match := FILE_NAME.fullmatch(text.strip()):
        return ScanName(
            f"miriad_{match['subject']}",
            int(match["visit"]),
            int(match["scan"]),
            match["group"].upper(),
            match["sex"].upper(),
        )
    match = SESSION_LABEL.fullmatch(text.strip())
    if match is None or match["what"].upper() != "MR":
        return None
    return ScanName(f"miriad_{match['subject']}", int(match["visit"]), int(match["scan"] or 1))


def _code(visit: int) -> str:
    return f"{visit:02d}"


def _subject(cell: str) -> str | None:
    match = SUBJECT.fullmatch(cell.strip())
    return f"miriad_{match['subject']}" if match else None


def _visit_of(row: Row) -> tuple[str, int, str, int | None] | None:
    """Participant, visit, what the row is about (``MR``, ``MMSE`` ...) and scan, from the row's label."""
    for name in LABEL_COLUMNS:
        text = row.get(name)
        if match := SESSION_LABEL.fullmatch(text):
            scan = int(match["scan"]) if match["scan"] else None
            return f"miriad_{match['subject']}", int(match["visit"]), match["what"].upper(), scan
        if (scan_name := scan_of(text)) is not None:
            return scan_name.subject, scan_name.visit, "MR", scan_name.scan
    return None


@dataclass
class _Person:
    """What tables and file names say about a person."""

    sexes: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups_of_names: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups_of_tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, Sourced] = field(default_factory=dict)

    def group(self) -> tuple[str | None, dict[str, Any]]:
        """The group for the whole study and its source: of file names, else of tables; None when they differ."""
        groups = self.groups_of_names or self.groups_of_tables
        return next(iter(groups.items())) if len(groups) == 1 else (None, {})


class _Reader:
    def __init__(self, root: Path, params: Params, workers: int) -> None:
        self.root = root
        self.book = Ingest("MIRIAD", root, params, workers)
        self.people: dict[str, _Person] = {}
        self.ages: dict[tuple[str, int], dict[int | None, Sourced]] = {}
        self.stated: dict[tuple[str, int, int], tuple[Row, str]] = {}

    def person(self, subject: str) -> _Person:
        return self.people.setdefault(subject, _Person())

    # -- tables

    def read_tables(self) -> None:
        """Every table that its header shows to be one of the exports; a table may be several of them at once."""
        for path, keys in sorted(headers(self.root, self.book.files).items()):
            labelled = bool({"mr_id", "label", "session"} & keys)
            scores = labelled and bool({"mmse", "cdr"} & keys)
            sessions = labelled and "age" in keys
            subjects = "subject" in keys and bool({"gender", "m_f", "sex", "group"} & keys)
            if not (scores or sessions or subjects):
                continue
            uses = [
                name for name, used in (("MR sessions", sessions), ("scores", scores), ("subjects", subjects)) if used
            ]
            table = self.book.read(path, ", ".join(uses))
            for row in table.rows():
                self._describe(row)
            if labelled:
                self._read_visits(table, scores=scores, ages=sessions)

    def _describe(self, row: Row) -> None:
        """Person-level cells of a row; a row that names nobody is reported."""
        visit = _visit_of(row)
        subject = visit[0] if visit else _subject(row.get("Subject", "Subject ID"))
        if subject is None:
            self.book.row_without_id(row)
            return
        person = self.person(subject)
        sex = self.book.value(row, subject, "", parse_sex, *SEX_COLUMNS)
        if sex is not None:
            person.sexes.setdefault(sex.value, sex.as_json())
        word = row.get(*GROUP_COLUMNS)
        group = GROUP_WORDS.get(word.upper())
        if group is not None:
            source = {"file": row.table.relative, "row": row.line, "rule": row.column(*GROUP_COLUMNS)}
            person.groups_of_tables.setdefault(group, source)
        elif not is_blank(word):
            self.book.field_issue(QuarantineReason.SENTINEL_UNKNOWN, subject, "", row.column(*GROUP_COLUMNS), row)
        hand = self.book.value(row, subject, "", parse_handedness, "Hand")
        if hand is not None:
            person.values.setdefault("handedness", hand)
        for column, name, quantity in (("educ_years", "Education", EDUCATION_YEARS), ("ses", "Ses", SES)):
            sourced = self.book.value(row, subject, "", quantity, name)
            if sourced is not None:
                person.values.setdefault(column, sourced)

    def _read_visits(self, table: Table, *, scores: bool, ages: bool) -> None:
        """Scores of visits and ages at scans; both hold for the whole visit."""

        def identify(row: Row) -> tuple[str, str] | None:
            visit = _visit_of(row)
            return None if visit is None else (visit[0], _code(visit[1]))

        # One row per instrument and scan: rows of one visit that are about different things are no duplicates.
        by_kind: dict[tuple[str, int | None], list[int]] = {}
        for row in table.rows():
            visit = _visit_of(row)
            if visit is None:
                if _subject(row.get("Subject", "Subject ID")) is not None and any(
                    not is_blank(row.get(*columns)) for _, columns in SCORES.values()
                ):
                    self.book.row_without_id(row)  # a score of an unknown visit
                continue
            by_kind.setdefault((visit[2], visit[3]), []).append(row.line)
            if visit[2] == "MR":
                label = row.get(*LABEL_COLUMNS)
                self.stated.setdefault((visit[0], visit[1], visit[3] or 1), (row, label))
                self.book.visit(visit[0], _code(visit[1]))
        wanted: dict[str, Any] = dict(SCORES) if scores else {}
        for (what, scan), lines in by_kind.items():
            fields = {**wanted, "age": (Quantity(0, 150), ("Age",))} if ages and what == "MR" else wanted
            if not fields:
                continue
            for (subject, code), values in self.book.collect(table, identify, fields, lines=frozenset(lines)).items():
                if "age" in values:
                    self.ages.setdefault((subject, int(code)), {}).setdefault(scan, values["age"])
                found = {name: values[name] for name in SCORES if name in values}
                if found:
                    scored = self.book.visit(subject, code)
                    for name, sourced in found.items():
                        self._set_score(scored, name, sourced)

    def _set_score(self, visit: Visit, name: str, sourced: Sourced) -> None:
        """Set a score of a visit; tables that differ on it empty it."""
        if visit.notes.get(name) == "emptied":
            return
        known = visit.values.get(name)
        if known is not None and known != sourced.value:
            del visit.values[name], visit.provenance[name]
            visit.notes[name] = "emptied"
            self.book.visit_note(
                QuarantineReason.DUPLICATE_KEY_CONFLICT,
                visit.subject,
                visit.code,
                Severity.NULL_FIELD,
                f"tables differ on {sourced.rule}; emptied",
                file=sourced.file,
                line=sourced.row,
            )
            return
        visit.set(name, sourced)

    def age_of(self, subject: str, visit: int, scan: int) -> Sourced | None:
        """The age at a scan: its own row's, else the one that the visit's other rows agree on."""
        ages = self.ages.get((subject, visit), {})
        if scan in ages:
            return ages[scan]
        return next(iter(ages.values())) if len({sourced.value for sourced in ages.values()}) == 1 else None

    # -- images

    def find_images(self) -> None:
        """All NIfTI files, and session folders of DICOM slices that hold no NIfTI file."""
        book = self.book
        images, unread = nifti_files(self.root, book.files)
        remark_on(book, unread)
        named: list[tuple[FoundImage, ScanName]] = []
        in_folders: set[str] = set()
        for file in images:
            name = PurePosixPath(file.files[0]).name
            stem = re.sub(r"\.nii(?:\.gz)?$", "", name, flags=re.IGNORECASE)
            item = FoundImage(stem, file)
            book.images.append(item)
            scan = scan_of(stem)
            if scan is None or scan.group is None:
                folder, of_folder = next(
                    ((part, s) for part in reversed(folders_of(file)) if (s := scan_of(part)) is not None), ("", scan)
                )
                if of_folder is not None and folder:
                    scan, item.key = of_folder, f"{folder}/{stem}"
                    in_folders.add(folder)
            if scan is None:
                book.drop(
                    item,
                    QuarantineReason.ID_UNPARSABLE,
                    "neither the file is named miriad_<participant>_<group>_<sex>_<visit>_MR_<scan> nor its folder "
                    "miriad_<participant>_<visit>_MR_<scan>",
                )
                continue
            named.append((item, scan))
        named += self._dicom_folders(in_folders)
        for item, scan in named:
            person = self.person(scan.subject)
            source = {"file": item.file.source_path, "row": None, "rule": "file name"}
            if scan.sex is not None:
                person.sexes.setdefault(scan.sex, source)
            if scan.group is not None:
                person.groups_of_names.setdefault(scan.group, source)
        for item, scan in named:
            self._place(item, scan)

    def _dicom_folders(self, with_nifti: set[str]) -> list[tuple[FoundImage, ScanName]]:
        folders: dict[str, list[str]] = {}
        for path in self.book.files:
            if may_be_dicom(path) and not path.lower().endswith((".nii", ".nii.gz")):
                folders.setdefault(str(PurePosixPath(path).parent), []).append(path)
        named = []
        for folder, slices in sorted(folders.items()):
            part, scan = next(
                ((p, s) for p in reversed(PurePosixPath(folder).parts) if (s := scan_of(p)) is not None), ("", None)
            )
            if scan is None or part in with_nifti or not holds_dicom(slices, lambda name: start_of(self.root / name)):
                continue
            item = FoundImage(f"{part}/{PurePosixPath(folder).name}", ImageFile(folder, "dicom", tuple(sorted(slices))))
            self.book.images.append(item)
            named.append((item, scan))
        return named

    def _place(self, item: FoundImage, scan: ScanName) -> None:
        """Give an image its place in the tables, or the reason against it."""
        book = self.book
        person = self.people[scan.subject]
        item.subject, item.session = scan.subject, _code(scan.visit)
        item.order = item.rank = (scan.scan, item.key)
        if len(person.sexes) > 1:
            source = next((s for s in person.sexes.values() if s["row"] is not None), next(iter(person.sexes.values())))
            book.drop(
                item,
                QuarantineReason.SEX_CONFLICT,
                "file names and tables differ on sex",
                source["file"],
                source["row"],
            )
            return
        if not person.sexes:
            book.drop(item, QuarantineReason.SEX_MISSING, "neither the file name nor a table gives the sex")
            return
        visit = book.visit(scan.subject, item.session)
        group, _ = person.group()
        if group is None:
            book.remark(item, QuarantineReason.NO_DIAGNOSIS, "neither the file name nor a table gives one group")
        elif person.groups_of_tables and set(person.groups_of_tables) != {group} and not visit.notes.get("conflict"):
            visit.notes["conflict"] = True
            source = next(iter(person.groups_of_tables.values()))
            book.visit_note(
                QuarantineReason.DIAGNOSIS_CONFLICT,
                scan.subject,
                item.session,
                Severity.WARN,
                "the file name and the tables differ on the group; the file name is kept",
                file=source["file"],
                line=source["row"],
            )
        book.attach(item, visit, "file_name", 0)
        item.scan_day = WEEKS[scan.visit] * 7 if scan.visit in WEEKS else None
        sex, source = next(iter(person.sexes.items()))
        item.values.update(sex=sex, dx_subject_level=group, field_strength_t=FIELD_STRENGTH_T, release="MIRIAD")
        item.provenance["sex"] = source
        for column, sourced in person.values.items():
            book.set_person(item, column, sourced)
        age = self.age_of(scan.subject, scan.visit, scan.scan)
        book.set_age(
            item,
            age.value if age else None,
            "month",
            "Age of the MR session",
            age.file if age else None,
            age.row if age else None,
        )

    def report_missing_images(self) -> None:
        """Remark on scans that the table of MR sessions names and that are not on disk."""
        on_disk = {(image.subject, image.session, image.order[0]) for image in self.book.images if image.order}
        for (subject, visit, scan), (row, label) in self.stated.items():
            if (subject, _code(visit), scan) not in on_disk:
                self.book.note(
                    QuarantineReason.IMAGE_WITHOUT_FILE,
                    Level.IMAGE,
                    {"native_image_key": label},
                    Severity.WARN,
                    "the table of MR sessions names a scan that is not on disk",
                    row.table.relative,
                    row.line,
                )

    # -- visits

    def finish_visits(self) -> None:
        """Week, group, sources of scores and person-level columns of every visit."""
        for subject, person in self.people.items():
            if len(person.groups_of_names) > 1:
                source = list(person.groups_of_names.values())[-1]
                self.book.note(
                    QuarantineReason.DIAGNOSIS_CONFLICT,
                    Level.SUBJECT,
                    {"native_subject_id": subject},
                    Severity.NULL_FIELD,
                    "file names of one participant differ on the group; no label",
                    source["file"],
                )
        for visit in self.book.visits.values():
            number = int(visit.code)
            if number in WEEKS:
                visit.day = WEEKS[number] * 7
                visit.month = round(visit.day / DAYS_PER_MONTH, 2)
            person = self.person(visit.subject)
            group, source = person.group()
            if group is not None:
                visit.values["dx_native"] = visit.values["dx_subject_level"] = group
                visit.provenance["dx_native"] = source
            for name in ("mmse", "cdr_global", "cdr_sb"):
                if visit.values.get(name) is not None:
                    visit.values[f"{name}_source"] = "measured"
            if len(person.sexes) == 1:
                visit.values["sex"], visit.provenance["sex"] = next(iter(person.sexes.items()))
            for column, sourced in person.values.items():
                visit.set(column, sourced)
            age = self.age_of(visit.subject, number, 1)
            if age is not None and 15 <= age.value <= 110:
                visit.values.update(age_years=age.value, age_precision="month")
                visit.provenance["age_years"] = {**age.as_json(), "rule": "Age of the MR session"}
        if self.book.params.ingest.miriad_carry_mmse:
            self._carry_mmse()

    def _carry_mmse(self) -> None:
        """Give visits without an MMSE the nearest measured one within the window, marked as carried."""
        measured: dict[str, list[Visit]] = {}
        for visit in self.book.visits.values():
            if visit.values.get("mmse") is not None and visit.day is not None:
                measured.setdefault(visit.subject, []).append(visit)
        for visit in self.book.visits.values():
            if visit.day is None or visit.values.get("mmse") is not None or visit.notes.get("mmse") == "emptied":
                continue
            day = visit.day
            near = sorted((abs(day - (v.day or 0)), v.day or 0, v.code, v) for v in measured.get(visit.subject, []))
            if near and near[0][0] <= self.book.window_days:
                source = near[0][3]
                visit.values.update(
                    mmse=source.values["mmse"], mmse_source="carried", mmse_age_days=day - (source.day or 0)
                )
                visit.provenance["mmse"] = {
                    **source.provenance["mmse"],
                    "rule": f"MMSE of visit {source.code}, carried",
                }


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read MIRIAD. Exports without images give visits; images without exports have no age and no scores.

    Raises
    ------
    InputError
        When there is neither an image nor an export.
    """
    reader = _Reader(root, params, workers)
    book = reader.book
    reader.read_tables()
    reader.find_images()
    if not book.images and not book.visits:
        raise no_images(root, "MIRIAD", "files named miriad_<participant>_<AD|HC>_<M|F>_<visit>_MR_<scan>.nii")
    reader.report_missing_images()
    reader.finish_visits()
    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    return book.finish()
