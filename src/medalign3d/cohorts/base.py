"""What all cohort readers share: bookkeeping of every image found, duplicate rules, visit matching, ids, provenance.

A reader lists every image it finds, gives each a place in the tables, and drops what cannot be used *with a reason*.
The invariant ``images found = images accepted + images dropped`` is checked at the end of every ingest. Values are not
carried from one visit to another, and a missing value never becomes a class.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medalign3d.cohorts.emulation import CALENDAR_COHORTS, CALENDAR_WINDOW_DAYS, emulate
from medalign3d.cohorts.images import ImageFacts, ImageFile, inspect_all, inspect_image
from medalign3d.cohorts.listing import LISTING_NAME, list_unread_files
from medalign3d.cohorts.reasons import Level, QuarantineReason, Severity
from medalign3d.cohorts.tables import Row, Table, find_table, header_key, list_files, load_table, read_table
from medalign3d.cohorts.values import DateOrder, Quantity, parse_date, parse_number
from medalign3d.errors import InputError, MedAlignError
from medalign3d.params import Params
from medalign3d.printing import count
from medalign3d.progress import Progress

__all__ = [
    "FIELD_ISSUE_COLUMNS",
    "IMAGE_COLUMNS",
    "QUARANTINE_COLUMNS",
    "SOURCE_COLUMNS",
    "VISIT_COLUMNS",
    "FoundImage",
    "Ingest",
    "IngestResult",
    "Level",
    "QuarantineReason",
    "Severity",
    "Visit",
    "find_table",
    "image_id_of",
    "inspect_image",
    "list_files",
    "load_table",
    "match_visit",
    "native_ids",
    "native_session",
    "participant_id_of",
    "read_table",
    "session_id_of",
]

RULES_VERSION = "1"
COMMENT = object()  # what a parser returns for a laboratory's remark in place of a result
AGE_LOW, AGE_HIGH = 15.0, 110.0
#: Columns (see ``header_key``) that say whose row it is and of which visit.
KEY_COLUMNS = frozenset(
    {"rid", "ptid", "viscode", "viscode2", "naccid", "naccvnum", "naccmnum", "id", "subject", "subject_id", "mri_id",
     "mr_id", "label", "session", "oasisid", "oasis_session_label", "days_to_visit", "adrc_adrcclinicaldata_id",
     "ixi_id"}
)  # fmt: skip
VISIT_CODE_COLUMNS = ("VISCODE2", "VISCODE", "NACCVNUM", "MR ID", "Visit")
#: Visit codes and session labels of all cohorts; another code is kept, as the custodian may have new ones, and listed.
VISIT_CODE = re.compile(
    r"(?:\d_)?(?:|bl|baseline|init|f|nv|tau|reg|sc|scmri|screening|uns\d*|[mvyd]\d{1,5}|mr_?\d{1,3}|\d{1,3})",
    re.IGNORECASE | re.ASCII,
)
_DATE_COLUMN = re.compile(r"(?<!user)(?<!up)date(?!_?stamp|2)")
AGE_COLUMNS = ("age_years", "age_precision")
DAYS_PER_YEAR = 365.25
DAYS_PER_MONTH = DAYS_PER_YEAR / 12

#: Values that a visit gives to its images, with their types in the parquet tables.
CLINICAL_COLUMNS: dict[str, str] = {
    "mmse": "Float32",
    "mmse_source": "string",
    "mmse_age_days": "Float32",
    "moca": "Float32",
    "cdr_global": "Float32",
    "cdr_global_source": "string",
    "cdr_sb": "Float32",
    "cdr_sb_source": "string",
    "lm_immediate": "Float32",
    "lm_delayed": "Float32",
    "lm_source": "string",
    "gds": "Float32",
    "faq": "Float32",
    "hippocampus_mm3": "Float32",
    "ventricles_mm3": "Float32",
    "brain_mm3": "Float32",
    "icv_mm3": "Float32",
    "volume_source": "string",
    "labs": "string",
    "history": "string",
    "dx_native": "string",
    "dementia_etiology": "string",
}
PERSON_COLUMNS: dict[str, str] = {
    "sex": "string",
    "age_years": "Float32",
    "age_precision": "string",
    "educ_years": "Float32",
    "educ_code": "Int8",
    "ses": "Int8",
    "handedness": "string",
    "apoe_genotype": "string",
    "apoe4_count": "Int8",
    "dx_subject_level": "string",
}
IMAGE_COLUMNS: dict[str, str] = {
    "image_id": "string",
    "dataset": "string",
    "release": "string",
    "participant_id": "string",
    "native_subject_id": "string",
    "session_id": "string",
    "run": "Int8",
    "native_image_key": "string",
    "variant": "string",
    "variant_of": "string",
    "selected": "bool",
    "source_path": "string",
    "source_format": "string",
    "source_sha256": "string",
    "data_sha256": "string",
    "fingerprint": "object",
    "shape": "object",
    "zooms": "object",
    "orientation": "string",
    "dtype": "string",
    "affine_source": "string",
    "field_strength_t": "Float32",
    "manufacturer": "string",
    "scanner_model": "string",
    "series_description": "string",
    "selection_rank": "Int8",
    "qc_score": "Float32",
    "scan_date": "object",
    "scan_day": "Int32",
    "visit_code": "string",
    "visit_month": "Float32",
    "match_delta_days": "Int32",
    "match_method": "string",
    **PERSON_COLUMNS,
    **CLINICAL_COLUMNS,
    "provenance": "string",
}
VISIT_COLUMNS: dict[str, str] = {
    "dataset": "string",
    "native_subject_id": "string",
    "participant_id": "string",
    "visit_code": "string",
    "visit_month": "Float32",
    "visit_date": "object",
    "visit_day": "Int32",
    **PERSON_COLUMNS,
    **CLINICAL_COLUMNS,
    "provenance": "string",
}
QUARANTINE_COLUMNS = (
    "dataset",
    "level",
    "key_json",
    "source_file",
    "source_row",
    "reason",
    "detail",
    "severity",
    "run_id",
)
FIELD_ISSUE_COLUMNS = ("dataset", "native_subject_id", "visit_code", "column", "source_file", "source_row", "reason")
SOURCE_COLUMNS = ("dataset", "file", "sha256", "rows", "bad_lines", "used_for")
#: Every image found on disk, dropped ones included: whose it is as far as was known, and what became of it.
FOUND_COLUMNS = (
    "dataset",
    "native_image_key",
    "native_subject_id",
    "native_session",
    "source_path",
    "series_description",
    "outcome",
    "reason",
)


@dataclass
class IngestResult:
    """What one cohort became.

    Attributes
    ----------
    images
        One row per accepted image (see ``IMAGE_COLUMNS``); ``selected`` marks the one image per visit that takes part
        (every image in the form ``table1_emulation``).
    visits
        One row per clinical visit, also those without an image.
    quarantine
        Everything that was dropped, emptied or remarked on.
    sources
        Every table that was read: hash and number of rows.
    field_issues
        Single values that were emptied.
    images_found
        Images found on disk: the accepted and the dropped ones. An image that ``table1_emulation`` counts once per
        matching visit counts here as often.
    found
        One row per image found (see ``FOUND_COLUMNS``); ``outcome`` is ``accepted`` or ``dropped``. None for results
        that were not made by a reader.
    form
        ``ingest.form`` of the tables.
    images_read
        Whether images were opened; when not, everything about their voxels is missing.
    links
        OASIS only: pairs of OASIS-1 and OASIS-2 sessions that are the same visit of the same person.
    """

    images: pd.DataFrame
    visits: pd.DataFrame
    quarantine: pd.DataFrame
    sources: pd.DataFrame
    field_issues: pd.DataFrame
    images_found: int = 0
    found: pd.DataFrame | None = None
    form: str = "clean"
    images_read: bool = True
    links: pd.DataFrame | None = None


# ---------------------------------------------------------------------------------------------------------------- ids


def image_id_of(dataset: str, native_image_key: str) -> str:
    """The 16 hexadecimal digits that name an image everywhere."""
    return hashlib.sha1(f"{dataset}|{native_image_key}".encode()).hexdigest()[:16]


_MONTH_CODE = re.compile(r"m0*([0-9]{1,3})", re.IGNORECASE)
_BASELINE_CODES = frozenset({"bl", "sc", "scmri", "init"})
#: Cohort -> the native ids that its custodian gives, and the BIDS labels made of them.
_SUBJECTS: dict[str, tuple[re.Pattern[str], str]] = {
    "ADNI": (re.compile(r"([0-9]{3})_(S)_([0-9]{4,5})"), "ADNI"),
    "NACC": (re.compile(r"(NACC[0-9]{6})"), ""),
    "OASIS": (re.compile(r"(OAS[12])_([0-9]{4})|(OAS3[0-9]{4})"), ""),
    "AIBL": (re.compile(r"([0-9]+)"), "AIBL"),
    "MIRIAD": (re.compile(r"miriad_([0-9]{3})"), "MIRIAD"),
    "IXI": (re.compile(r"(IXI[0-9]{3})"), ""),
}
#: Cohort -> session labels that stand for a number, which no other native code may take.
_NUMBERED_SESSIONS = {"ADNI": r"M[0-9]{3}", "AIBL": r"M[0-9]{3}", "NACC": r"MR[0-9]{2,}", "MIRIAD": r"V[0-9]{2,}"}


def _escape(text: str, reserved: str | None = None) -> str:
    """``text`` as letters and digits: any other character, and ``Z`` itself, becomes ``Z``, its code, ``z``.

    Different texts have different results, and none matches the pattern ``reserved``.

    >>> _escape("uns1"), _escape("4_bl"), _escape("MR01", r"MR[0-9]{2,}")
    ('uns1', '4Z5fzbl', 'Z4dzR01')
    """
    label = "".join(c if c.isascii() and c.isalnum() and c != "Z" else f"Z{ord(c):x}z" for c in text)
    if reserved is not None and re.fullmatch(reserved, label):
        label = f"Z{ord(text[0]):x}z{label[1:]}"
    return label or "Z"


def _unescape(label: str) -> str:
    return "" if label == "Z" else re.sub(r"Z([0-9a-f]{1,6})z", lambda match: chr(int(match[1], 16)), label)


def participant_id_of(dataset: str, native_subject_id: str) -> str:
    """The BIDS participant label of a native subject id; letters and digits only, and invertible.

    An id that is none of the cohort's own form gets a label with ``X`` behind the cohort's name, so that two people
    never share a label.

    >>> participant_id_of("ADNI", "005_S_0223"), participant_id_of("MIRIAD", "miriad_188")
    ('sub-ADNI005S0223', 'sub-MIRIAD188')
    """
    if dataset not in _SUBJECTS:
        raise ValueError(f"unknown dataset {dataset!r}")
    pattern, prefix = _SUBJECTS[dataset]
    if match := pattern.fullmatch(native_subject_id):
        return "sub-" + prefix + "".join(group for group in match.groups() if group)
    return f"sub-{dataset}X{_escape(native_subject_id)}"


def session_id_of(dataset: str, session: str) -> str:
    """The BIDS session label of a native session or visit code; see :func:`native_session` for the way back.

    In ADNI and AIBL all codes of the baseline (``bl``, ``sc``, ``scmri``, ``init``) share one session.

    >>> session_id_of("ADNI", "bl"), session_id_of("ADNI", "m06"), session_id_of("OASIS", "d0129")
    ('ses-M000', 'ses-M006', 'ses-d0129')
    """
    if dataset in ("ADNI", "AIBL"):
        if session.lower() in _BASELINE_CODES:
            return "ses-M000"
        if match := _MONTH_CODE.fullmatch(session):
            return f"ses-M{int(match[1]):03d}"
    elif dataset in ("NACC", "MIRIAD") and re.fullmatch(r"[0-9]+", session):
        return f"ses-{'MR' if dataset == 'NACC' else 'V'}{int(session):02d}"
    return "ses-" + _escape(session, _NUMBERED_SESSIONS.get(dataset))


def native_ids(participant_id: str) -> tuple[str, str]:
    """Dataset and native subject id of a BIDS participant label: the inverse of :func:`participant_id_of`.

    >>> native_ids("sub-ADNI005S0223"), native_ids("sub-OAS10001")
    (('ADNI', '005_S_0223'), ('OASIS', 'OAS1_0001'))
    """
    label = participant_id.removeprefix("sub-")
    if match := re.fullmatch(r"ADNI([0-9]{3})S([0-9]{4,5})", label):
        return "ADNI", f"{match[1]}_S_{match[2]}"
    if re.fullmatch(r"NACC[0-9]{6}", label):
        return "NACC", label
    if match := re.fullmatch(r"OAS([12])([0-9]{4})", label):
        return "OASIS", f"OAS{match[1]}_{match[2]}"
    if re.fullmatch(r"OAS3[0-9]{4}", label):
        return "OASIS", label
    if match := re.fullmatch(r"AIBL([0-9]+)", label):
        return "AIBL", match[1]
    if match := re.fullmatch(r"MIRIAD([0-9]{3})", label):
        return "MIRIAD", f"miriad_{match[1]}"
    if re.fullmatch(r"IXI[0-9]{3}", label):
        return "IXI", label
    if match := re.fullmatch(rf"({'|'.join(_SUBJECTS)})X([0-9A-Za-z]+)", label):
        return match[1], _unescape(match[2])
    raise ValueError(f"no participant label of a known cohort: {participant_id!r}")


def native_session(dataset: str, session_id: str) -> str:
    """The native session or visit code of a BIDS session label: the inverse of :func:`session_id_of`.

    Where several native spellings share a label, the custodian's usual one: ``bl`` for the baseline, two digits for
    months and for visits of MIRIAD, no padding for sessions of NACC.

    >>> native_session("ADNI", "ses-M000"), native_session("ADNI", "ses-M006"), native_session("NACC", "ses-MR01")
    ('bl', 'm06', '1')
    """
    label = session_id.removeprefix("ses-")
    reserved = _NUMBERED_SESSIONS.get(dataset)
    if reserved is not None and re.fullmatch(reserved, label):
        number = int(re.sub(r"\D", "", label))
        if dataset in ("ADNI", "AIBL"):
            return "bl" if number == 0 else f"m{number:02d}"
        return str(number) if dataset == "NACC" else f"{number:02d}"
    return _unescape(label)


# ------------------------------------------------------------------------------------------------------------- visits


@dataclass(slots=True)
class Sourced:
    """A value with the table, line and rule that it came from."""

    value: Any
    file: str
    row: int
    rule: str

    def as_json(self) -> dict[str, Any]:
        """Provenance without the value."""
        return {"file": self.file, "row": self.row, "rule": self.rule}


@dataclass
class Visit:
    """A clinical visit of one person."""

    subject: str
    code: str
    date: datetime.date | None = None
    day: int | None = None
    month: float | None = None
    values: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def set(self, column: str, sourced: Sourced | None, rule: str | None = None) -> None:
        """Set a column from a sourced value when it has one and the column is still empty."""
        if sourced is None or sourced.value is None or self.values.get(column) is not None:
            return
        self.values[column] = sourced.value
        self.provenance[column] = {**sourced.as_json(), "rule": rule or sourced.rule}


def match_visit(scan_day: int, visit_days: Sequence[int], window_days: int) -> tuple[int, int] | None:
    """The visit nearest to a scan.

    Parameters
    ----------
    scan_day
        Day number of the scan.
    visit_days
        Day numbers of the visits, on the same count.
    window_days
        Farthest distance that is accepted.

    Returns
    -------
    tuple or None
        Position of the visit and the signed distance scan - visit; of two equally near visits the earlier one. None
        when no visit is within the window.

    Examples
    --------
    >>> match_visit(100, [90, 110, 400], 183)
    (0, 10)
    >>> match_visit(100, [400], 183) is None
    True
    """
    best: tuple[int, int, int] | None = None
    for position, day in enumerate(visit_days):
        candidate = (abs(scan_day - day), day, position)
        if best is None or candidate < best:
            best = candidate
    if best is None or best[0] > window_days:
        return None
    return best[2], scan_day - best[1]


# ------------------------------------------------------------------------------------------------------------- images


@dataclass
class FoundImage:
    """One image found on disk, on its way to acceptance or quarantine."""

    key: str
    file: ImageFile
    subject: str = ""
    session: str = ""
    variant: str = "raw"
    order: tuple[Any, ...] = ()
    rank: tuple[Any, ...] = ()
    series_description: str | None = None
    scan_date: datetime.date | None = None
    scan_day: int | None = None
    match_delta_days: int | None = None
    match_method: str = "exact_label"
    values: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    visit: Visit | None = None
    facts: ImageFacts | None = None
    refusal: tuple[str, str] | None = None
    remarks: list[tuple[QuarantineReason, Severity, str, str, int | None]] = field(default_factory=list)
    run: int = 1
    selected: bool = True
    variant_of: str | None = None
    withheld: frozenset[str] = frozenset()

    @property
    def dropped(self) -> bool:
        """Whether a reason against the image was recorded."""
        return self.refusal is not None


Parsed = tuple[Any, QuarantineReason | None]
Parser = Callable[[str], Parsed]


class Ingest:
    """Bookkeeping of one cohort's ingest.

    Parameters
    ----------
    dataset
        Cohort name.
    root
        The folder with its native files.
    params
        Project parameters; section ``ingest`` is used.
    workers
        Processes that read images.
    """

    def __init__(self, dataset: str, root: Path, params: Params, workers: int = 1) -> None:
        self.dataset = dataset
        self.root = root
        self.params = params
        self.workers = workers
        self.images_read = params.ingest.read_images
        self.form = params.ingest.form
        self.files = list_files(root) if self.images_read else list_unread_files(root)
        self.images: list[FoundImage] = []
        self.visits: dict[tuple[str, str], Visit] = {}
        #: Fields of a (subject, visit code) that :meth:`collect` emptied because rows differ on them.
        self.conflicting: dict[tuple[str, str], set[str]] = {}
        self._quarantine: list[dict[str, Any]] = []
        self._field_issues: list[dict[str, Any]] = []
        self._sources: list[dict[str, Any]] = []
        self._noted_visits: set[tuple[str, str]] = set()
        #: (subject, visit code) -> file and column of every cell that was not used.
        self.refused: dict[tuple[str, str], set[tuple[str, str]]] = {}
        self.window_days = params.ingest.match_window_days.get(dataset, 183)  # type: ignore[call-overload]
        if self.form == "table1_emulation" and dataset in CALENDAR_COHORTS:
            self.window_days = CALENDAR_WINDOW_DAYS  # the published pairing looks at calendar months and years

    # -- tables

    def read(self, path: str, used_for: str, **options: Any) -> Table:
        """Read a table and record it among the sources, with its damaged lines."""
        table = load_table(self.root / path, root=self.root, **options)
        self.record(table, used_for)
        return table

    def record(self, table: Table, used_for: str) -> None:
        """Record a table among the sources, with its damaged lines."""
        self._sources.append(
            {
                "dataset": self.dataset,
                "file": table.relative,
                "sha256": table.sha256,
                "rows": len(table.frame),
                "bad_lines": len(table.bad_lines),
                "used_for": used_for,
            }
        )
        for line, column in table.doubtful:
            self._issue(QuarantineReason.DUPLICATE_KEY_CONFLICT, "", "", column, table.relative, line)
        for column in table.frame.columns:
            if _DATE_COLUMN.search(header_key(column)) and table.date_order(column) is DateOrder.DAY_FIRST:
                self.note(
                    QuarantineReason.DATE_UNPARSABLE,
                    Level.TABLE,
                    {"file": table.name, "column": str(column)},
                    Severity.WARN,
                    "the column's cells show that it writes dates as D/M/Y, not as M/D/Y; it is read as D/M/Y",
                    table.relative,
                )
        for bad in table.bad_lines:
            found = f"{bad.found} cells" if bad.found else "an unbalanced quote"
            if bad.cut_off:
                found = f"the file ends in the middle of a line, after {bad.found} cells"
            self.note(
                QuarantineReason.CSV_BAD_LINE,
                Level.TABLE,
                {"file": table.name},
                Severity.WARN,
                f"{found}, expected {bad.expected}; {'repaired' if bad.repaired else 'the line was left out'}",
                table.relative,
                bad.line,
            )

    # -- quarantine

    def note(
        self,
        reason: QuarantineReason,
        level: Level,
        key: Mapping[str, str],
        severity: Severity,
        detail: str,
        source_file: str | None = None,
        source_row: int | None = None,
    ) -> None:
        """Add a row to the quarantine."""
        self._quarantine.append(
            {
                "dataset": self.dataset,
                "level": str(level),
                "key_json": json.dumps(dict(key), sort_keys=True, ensure_ascii=False),
                "source_file": source_file,
                "source_row": source_row,
                "reason": str(reason),
                "detail": detail,
                "severity": str(severity),
                "run_id": None,
            }
        )

    def visit_note(
        self,
        reason: QuarantineReason,
        subject: str,
        code: str,
        severity: Severity,
        detail: str,
        row: Row | None = None,
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        """Add a visit-level row to the quarantine."""
        self._noted_visits.add((subject, code))
        self.note(
            reason,
            Level.VISIT,
            {"native_subject_id": subject, "visit_code": code},
            severity,
            detail,
            row.table.relative if row else file,
            row.line if row else line,
        )

    def field_issue(self, reason: QuarantineReason, subject: str, code: str, column: str, row: Row) -> None:
        """Record that a value was emptied: a field issue and a quarantine row of level ``field``."""
        self.emptied(reason, subject, code, column, row.table.relative, row.line)

    def emptied(
        self,
        reason: QuarantineReason,
        subject: str,
        code: str,
        column: str,
        file: str,
        line: int,
        detail: str = "the value was emptied",
    ) -> None:
        """:meth:`field_issue` for a value whose file and line are known."""
        self._issue(reason, subject, code, column, file, line)
        self.note(
            reason,
            Level.FIELD,
            {"native_subject_id": subject, "visit_code": code, "column": column},
            Severity.NULL_FIELD,
            detail,
            file,
            line,
        )

    def noted(self, subject: str, code: str) -> bool:
        """Whether a value of this visit was refused or remarked on."""
        return (subject, code) in self._noted_visits

    def _issue(self, reason: QuarantineReason, subject: str, code: str, column: str, file: str, line: int) -> None:
        self._noted_visits.add((subject, code))
        self.refused.setdefault((subject, code), set()).add((file, column))
        self._field_issues.append(
            {
                "dataset": self.dataset,
                "native_subject_id": subject,
                "visit_code": code,
                "column": column,
                "source_file": file,
                "source_row": line,
                "reason": str(reason),
            }
        )

    def reject(self, row: Row, reason: QuarantineReason, *columns: str, subject: str = "", code: str = "") -> None:
        """List a cell that is not used (a field issue without a quarantine row), by the column that it stands in."""
        self._issue(reason, subject, code, row.column(*columns), row.table.relative, row.line)

    def check(self, row: Row, parser: Quantity | Parser, *columns: str) -> None:
        """List a cell that ``parser`` refuses, where the value itself is read elsewhere."""
        cell = row.get(*columns)
        if parser is parse_date:
            _, reason = row.date(*columns)
        else:
            _, reason = parse_number(cell, parser) if isinstance(parser, Quantity) else parser(cell)
        if cell != "" and reason is not None:
            self.reject(row, reason, *columns)

    def row_without_id(self, row: Row) -> None:
        """Record a table row whose subject id (or visit) cannot be read: a quarantine row, and its key cells."""
        for column in row.table.frame.columns:
            key = header_key(column)
            if key in KEY_COLUMNS and row.cells[row.table.places((str(column),))[0]] != "":
                self._issue(QuarantineReason.ID_UNPARSABLE, "", "", str(column), row.table.relative, row.line)
        self.note(
            QuarantineReason.ID_UNPARSABLE,
            Level.TABLE,
            {"file": row.table.name},
            Severity.WARN,
            "a row's subject id cannot be read; the row was left out",
            row.table.relative,
            row.line,
        )

    def drop(
        self,
        image: FoundImage,
        reason: QuarantineReason | str,
        detail: str,
        source_file: str | None = None,
        source_row: int | None = None,
    ) -> None:
        """Drop an image; only the first reason counts."""
        if image.refusal is not None:
            return
        image.refusal = (str(reason), detail)
        self.note(
            QuarantineReason(str(reason)),
            Level.IMAGE,
            {"native_image_key": image.key},
            Severity.DROP,
            detail,
            source_file or image.file.source_path,
            source_row,
        )

    def remark(
        self,
        image: FoundImage,
        reason: QuarantineReason,
        detail: str,
        severity: Severity = Severity.WARN,
        source_file: str | None = None,
        source_row: int | None = None,
    ) -> None:
        """Remark on an image; written only if the image is accepted in the end (a dropped one has one row)."""
        image.remarks.append((reason, severity, detail, source_file or image.file.source_path, source_row))

    # -- values

    def value(self, row: Row, subject: str, code: str, parser: Quantity | Parser, *columns: str) -> Sourced | None:
        """Read a cell; a malformed one becomes a field issue. None when there is no value.

        Laboratories write remarks into result cells (``<0.10``, ``SCC09``, ``NO SPECIMEN``): a parser that returns
        ``COMMENT`` for such text gives a field issue without a quarantine row.
        """
        return self._value(row, subject, code, parser, columns, None)

    def _value(
        self,
        row: Row,
        subject: str,
        code: str,
        parser: Quantity | Parser,
        columns: Sequence[str],
        known: dict[Any, Parsed] | None,
    ) -> Sourced | None:
        """See :meth:`value`; ``known`` holds what ``parser`` made of cells before, for whole tables."""
        table = row.table
        for place in table.places(tuple(columns)):
            cell = row.cells[place]
            if cell != "":
                break
        else:
            return None
        key = (cell, place) if parser is parse_date else cell
        outcome = None if known is None else known.get(key)
        if outcome is None:
            if isinstance(parser, Quantity):
                outcome = parse_number(cell, parser)
            elif parser is parse_date:
                outcome = parse_date(cell, order=table.date_order(str(table.frame.columns[place])))
            else:
                outcome = parser(cell)
            if known is not None:
                if len(known) > 100_000:
                    known.clear()
                known[key] = outcome
        value, reason = outcome
        if reason is None and value is None:
            return None
        column = str(table.frame.columns[place])
        if value is COMMENT:
            self._issue(QuarantineReason.SENTINEL_UNKNOWN, subject, code, column, table.relative, row.line)
            return None
        if reason is not None:
            self.field_issue(reason, subject, code, column, row)
            return None
        return Sourced(value, table.relative, row.line, column)

    def collect(
        self,
        table: Table,
        identify: Callable[[Row], tuple[str, str] | None],
        fields: Mapping[str, tuple[Quantity | Parser, Sequence[str]]],
        lines: frozenset[int] | None = None,
    ) -> dict[tuple[str, str], dict[str, Sourced]]:
        """Read fields of a table by (subject, visit code) and apply the duplicate rules.

        Equal rows of one key count once (``DUPLICATE_KEY_IDENTICAL``). Rows of one key whose values differ empty the
        fields that differ (``DUPLICATE_KEY_CONFLICT``): no row wins for standing first.

        Parameters
        ----------
        table
            The table.
        identify
            Gives subject id and visit code of a row, or None when the row has no usable key.
        fields
            Output name -> (what is legal, column names in order of preference).
        lines
            Lines of the table to look at; all of them when None.
        """
        present: list[tuple[str, Quantity | Parser, tuple[str, ...], dict[Any, Parsed]]] = [
            (name, parser, tuple(columns), {})
            for name, (parser, columns) in fields.items()
            if table.places(tuple(columns))
        ]
        collected: dict[tuple[str, str], dict[str, Sourced]] = {}
        repeated: dict[tuple[str, str], list[tuple[Row, dict[str, Sourced]]]] = {}
        for row in table.rows():
            if lines is not None and row.line not in lines:
                continue
            key = identify(row)
            if key is None:
                self.row_without_id(row)
                continue
            if VISIT_CODE.fullmatch(key[1]) is None:
                self.reject(row, QuarantineReason.VISCODE_UNKNOWN, *VISIT_CODE_COLUMNS, subject=key[0], code=key[1])
            parsed: dict[str, Sourced] = {}
            for name, parser, columns, known in present:
                sourced = self._value(row, key[0], key[1], parser, columns, known)
                if sourced is not None:
                    parsed[name] = sourced
            if key in collected:
                repeated.setdefault(key, []).append((row, parsed))
            else:
                collected[key] = parsed
        for key, rows in repeated.items():
            merged = collected[key]
            conflicts: set[str] = set()
            for _, parsed in rows:
                for name, sourced in parsed.items():
                    if name in merged and merged[name].value != sourced.value:
                        conflicts.add(name)
                    merged.setdefault(name, sourced)
            if conflicts:
                names = sorted(merged[name].rule for name in conflicts)
                for name in conflicts:
                    del merged[name]
                self.conflicting.setdefault(key, set()).update(conflicts)
                self.visit_note(
                    QuarantineReason.DUPLICATE_KEY_CONFLICT,
                    *key,
                    Severity.NULL_FIELD,
                    f"{len(rows) + 1} rows of one visit differ in {', '.join(names)}; emptied",
                    rows[-1][0],
                )
            else:
                self.visit_note(
                    QuarantineReason.DUPLICATE_KEY_IDENTICAL,
                    *key,
                    Severity.WARN,
                    f"{len(rows) + 1} equal rows of one visit; one was kept",
                    rows[-1][0],
                )
        return collected

    def visit(self, subject: str, code: str) -> Visit:
        """The visit of this key; made when there is none yet."""
        if (subject, code) not in self.visits:
            self.visits[(subject, code)] = Visit(subject, code)
        return self.visits[(subject, code)]

    def visits_of(self) -> dict[str, list[Visit]]:
        """All visits by subject."""
        by_subject: dict[str, list[Visit]] = {}
        for visit in self.visits.values():
            by_subject.setdefault(visit.subject, []).append(visit)
        return by_subject

    # -- images

    def attach(self, image: FoundImage, visit: Visit, method: str, delta: int | None) -> None:
        """Give an image the values of its visit."""
        image.visit = visit
        image.match_method = method
        image.match_delta_days = delta

    def inspect(self, images: Iterable[FoundImage] | None = None) -> None:
        """Read and check images that were not dropped yet, in the process pool (not with ``read_images: false``)."""
        if not self.images_read:
            return
        todo = [
            image for image in (self.images if images is None else images) if not image.dropped and image.facts is None
        ]
        if not todo:
            return
        with Progress(f"{self.dataset} images", len(todo)) as progress:
            outcomes = inspect_all(self.root, [image.file for image in todo], self.workers, progress.advance)
            for image, outcome in zip(todo, outcomes, strict=True):
                if isinstance(outcome, ImageFacts):
                    image.facts = outcome
                else:
                    self.drop(image, *outcome)

    def drop_equal_voxels(self) -> None:
        """Drop images whose voxels equal another one's.

        Of one person the first is kept. Between persons nobody can tell whose head it is: all are dropped.
        """
        by_hash: dict[str, list[FoundImage]] = {}
        for image in self.images:
            if not image.dropped and image.facts is not None:
                by_hash.setdefault(image.facts.data_sha256, []).append(image)
        for group in by_hash.values():
            if len(group) < 2:
                continue
            group.sort(key=lambda image: (image.order, image.key, image.file.source_path))
            people = {image.subject for image in group}
            for image in group if len(people) > 1 else group[1:]:
                whose = "another person's image" if len(people) > 1 else f"{group[0].key}"
                self.drop(image, QuarantineReason.DUPLICATE_IMAGE_BYTES, f"the voxels equal those of {whose}")

    def drop_repeated_keys(self) -> None:
        """Drop all but one of identical files with one key, and all of differing ones (after :meth:`inspect`)."""
        by_key: dict[str, list[FoundImage]] = {}
        for image in self.images:
            if not image.dropped:
                by_key.setdefault(image.key, []).append(image)
        for group in by_key.values():
            if len(group) < 2:
                continue
            same = len({image.facts.data_sha256 for image in group if image.facts is not None}) == 1
            differs = " and differs" if self.images_read else ", and unread images cannot be compared"
            for image in group[1:] if same else group:
                reason = QuarantineReason.DUPLICATE_IMAGE_BYTES if same else QuarantineReason.AMBIGUOUS_FILE
                self.drop(image, reason, "the same image lies in several places" + ("" if same else differs))

    def set_person(self, image: FoundImage, column: str, sourced: Sourced | None) -> None:
        """Set a person-level column of an image."""
        if sourced is not None and sourced.value is not None and image.values.get(column) is None:
            image.values[column] = sourced.value
            image.provenance[column] = sourced.as_json()

    def set_age(
        self, image: FoundImage, age: float | None, precision: str, rule: str, file: str | None, row: int | None
    ) -> None:
        """Set the age at the scan; an impossible one is emptied with a remark, a missing one is remarked on."""
        if age is None:
            self.remark(
                image, QuarantineReason.AGE_MISSING, "no age at the scan in any table", source_file=file, source_row=row
            )
        elif not AGE_LOW <= age <= AGE_HIGH:
            self.remark(
                image,
                QuarantineReason.AGE_OUT_OF_RANGE,
                f"age outside {AGE_LOW:g}-{AGE_HIGH:g} years; emptied",
                Severity.NULL_FIELD,
                file,
                row,
            )
        else:
            image.values["age_years"] = age
            image.values["age_precision"] = precision
            image.provenance["age_years"] = {"file": file, "row": row, "rule": rule}

    def select(self, derived_of: Callable[[FoundImage], Hashable] | None = None) -> None:
        """Number the runs of every session and mark the selected image of each visit.

        Runs count within the BIDS session, which several visit codes may share (``sc`` and ``bl`` of ADNI).
        In the form ``table1_emulation`` rows are first assembled as the published table's were, and all are selected.
        """
        if self.form == "table1_emulation":
            emulate(self)
        sessions: dict[tuple[str, str], list[FoundImage]] = {}
        runs: dict[tuple[str, str], list[FoundImage]] = {}
        for image in self.images:
            if not image.dropped:
                sessions.setdefault((image.subject, image.session), []).append(image)
                label = session_id_of(self.dataset, image.session)
                runs.setdefault((image.subject, label), []).append(image)
        for group in runs.values():
            for number, image in enumerate(sorted(group, key=lambda i: (i.order, i.key)), start=1):
                image.run = number
        for group in sessions.values():
            ranked = sorted(group, key=lambda i: (i.rank, i.order, i.key))
            for place, image in enumerate(ranked, start=1):
                image.values.setdefault("selection_rank", min(place, 127))
                image.selected = place == 1 or self.form == "table1_emulation" or self._is_unit(image)

    def _is_unit(self, image: FoundImage) -> bool:
        """Whether a repeat counts as an image of its own (``ingest.oasis_unit: run``, OASIS-2 only)."""
        wanted = self.params.ingest.oasis_unit == "run" and image.variant == "raw"
        return wanted and image.values.get("release") == "OASIS-2"

    # -- results

    def _scan_days(self) -> None:
        """Days from the first dated event of each person, for visits and scans with dates."""
        first: dict[str, datetime.date] = {}
        events = [(visit.subject, visit.date) for visit in self.visits.values()]
        events += [(image.subject, image.scan_date) for image in self.images if not image.dropped]
        for subject, date in events:
            if date is not None and (subject not in first or date < first[subject]):
                first[subject] = date
        for visit in self.visits.values():
            if visit.day is None and visit.date is not None:
                visit.day = (visit.date - first[visit.subject]).days
        for image in self.images:
            if image.scan_day is None and image.scan_date is not None and image.subject in first:
                image.scan_day = (image.scan_date - first[image.subject]).days

    def _image_record(self, image: FoundImage) -> dict[str, Any]:
        facts = image.facts
        assert facts is not None or not self.images_read
        visit = image.visit
        # The age at the visit is not the age at the scan, which may be unknown.
        clinical = {} if visit is None else {k: v for k, v in visit.values.items() if k not in AGE_COLUMNS}
        sources = {} if visit is None else {k: v for k, v in visit.provenance.items() if k not in AGE_COLUMNS}
        provenance = {
            "rules_version": RULES_VERSION,
            "values": {**sources, **image.provenance},
        }
        record: dict[str, Any] = {
            "image_id": image_id_of(self.dataset, image.key),
            "dataset": self.dataset,
            "participant_id": participant_id_of(self.dataset, image.subject),
            "native_subject_id": image.subject,
            "session_id": session_id_of(self.dataset, image.session),
            "run": image.run,
            "native_image_key": image.key,
            "variant": image.variant,
            "variant_of": None if image.variant_of is None else image_id_of(self.dataset, image.variant_of),
            "selected": image.selected,
            "source_path": image.file.source_path,
            "source_format": image.file.source_format,
            "series_description": image.series_description,
            "scan_date": image.scan_date,
            "scan_day": image.scan_day,
            "visit_code": None if visit is None else visit.code,
            "visit_month": None if visit is None else visit.month,
            "match_delta_days": image.match_delta_days,
            "match_method": image.match_method,
        }
        if facts is not None:
            record |= {
                "source_sha256": facts.source_sha256,
                "data_sha256": facts.data_sha256,
                "fingerprint": None if facts.fingerprint is None else list(facts.fingerprint),
                "shape": list(facts.shape),
                "zooms": [round(zoom, 6) for zoom in facts.zooms],
                "orientation": facts.orientation,
                "dtype": facts.dtype,
                "affine_source": facts.affine_source,
                "field_strength_t": facts.field_strength_t,
                "manufacturer": facts.manufacturer,
                "scanner_model": facts.scanner_model,
            }
        for name, value in (*clinical.items(), *image.values.items()):
            if value is not None and name not in image.withheld:
                record[name] = value
        record["provenance"] = json.dumps(provenance, sort_keys=True)
        return record

    def _found(self) -> pd.DataFrame:
        """Every image found on disk and what became of it."""
        rows = [
            {
                "dataset": self.dataset,
                "native_image_key": image.key,
                "native_subject_id": image.subject or None,
                "native_session": image.session or None,
                "source_path": image.file.source_path,
                "series_description": image.series_description,
                "outcome": "dropped" if image.refusal else "accepted",
                "reason": image.refusal[0] if image.refusal else None,
            }
            for image in sorted(self.images, key=lambda image: (image.key, image.file.source_path))
        ]
        return pd.DataFrame(rows, columns=list(FOUND_COLUMNS)).astype("string")

    def finish(self) -> IngestResult:
        """Build the tables and check the invariant.

        Raises
        ------
        MedAlignError
            When an image was neither accepted nor dropped, or a key is not unique: a mistake of the reader.
        """
        self._scan_days()
        accepted = [image for image in self.images if not image.dropped]
        accepted.sort(key=lambda image: (image.subject, image.session, image.order, image.key))
        for image in accepted:
            for reason, severity, detail, file, row in image.remarks:
                self.note(reason, Level.IMAGE, {"native_image_key": image.key}, severity, detail, file, row)
        images = _typed([self._image_record(image) for image in accepted], IMAGE_COLUMNS)
        visit_records = []
        for visit in sorted(self.visits.values(), key=lambda v: (v.subject, v.day is None, v.day or 0, v.code)):
            visit_records.append(
                {
                    "dataset": self.dataset,
                    "native_subject_id": visit.subject,
                    "participant_id": participant_id_of(self.dataset, visit.subject),
                    "visit_code": visit.code,
                    "visit_month": visit.month,
                    "visit_date": visit.date,
                    "visit_day": visit.day,
                    **visit.values,
                    "provenance": json.dumps(
                        {"rules_version": RULES_VERSION, "values": visit.provenance}, sort_keys=True
                    ),
                }
            )
        quarantine = pd.DataFrame(self._quarantine, columns=list(QUARANTINE_COLUMNS))
        quarantine["source_row"] = quarantine["source_row"].astype("Int64")
        for column in quarantine.columns:
            if column != "source_row":
                quarantine[column] = quarantine[column].astype("string")
        quarantine = quarantine.sort_values(
            ["level", "reason", "key_json", "source_file", "source_row"], kind="stable", ignore_index=True
        )
        issues = pd.DataFrame(self._field_issues, columns=list(FIELD_ISSUE_COLUMNS))
        issues["source_row"] = issues["source_row"].astype("Int64")
        sources = pd.DataFrame(self._sources, columns=list(SOURCE_COLUMNS))
        sources["rows"] = sources["rows"].astype("int64")
        sources["bad_lines"] = sources["bad_lines"].astype("int64")
        result = IngestResult(
            images,
            _typed(visit_records, VISIT_COLUMNS),
            quarantine,
            sources,
            issues,
            images_found=len(self.images),
            found=self._found(),
            form=self.form,
            images_read=self.images_read,
        )
        # For whoever goes on in this process; it is not written with the tables.
        images.attrs["root"] = str(self.root.resolve())
        dropped = int(((quarantine["level"] == "image") & (quarantine["severity"] == "drop")).sum())
        if len(self.images) != len(images) + dropped or images["image_id"].duplicated().any():
            raise MedAlignError(
                "images were lost count of",
                where=f"{self.dataset} ingest",
                found=f"{len(images)} accepted + {dropped} dropped",
                expected=f"{len(self.images)} found",
                remedy="this is a mistake in the reader; please report it",
            )
        return result


def _typed(records: list[dict[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A data frame with exactly these columns and nullable types."""
    frame = {}
    for name, dtype in columns.items():
        values = [record.get(name) for record in records]
        column = pd.Series(values, dtype=object)
        frame[name] = column if dtype == "object" else column.astype(dtype)  # type: ignore[call-overload]
    unknown = {name for record in records for name in record} - set(columns)
    if unknown:
        raise MedAlignError("a reader set unknown columns", found=", ".join(sorted(unknown)))
    return pd.DataFrame(frame)


def no_images(root: Path, cohort: str, expected: str) -> InputError:
    """The error for a folder without any image of a cohort."""
    try:
        files = list_files(root)
    except InputError:
        files = []
    shown = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
    return InputError(
        f"no {cohort} images were found",
        where=root,
        found=f"{count(len(files), 'file')}: {shown}" if files else "no file at all",
        expected=expected,
        remedy="correct the path (external.roots in params.yaml), or unpack the downloaded archives there; where only "
        f"the tables are at hand, list the images' paths in {LISTING_NAME} and set ingest.read_images: false",
    )
