"""The demographic tables of OASIS-1 and OASIS-2, as published and as they travel.

Copies of these two tables are everywhere, and many were altered on the way: blanks filled in, columns renamed, recoded
or dropped, rows left out or added, decimal points lost, the header line cut off, both studies put into one table. A
table is therefore known by the session ids in its cells, not by its name. What can be read right is read right; values
that cannot be as published are emptied as field issues; and a table that differs from the published one is remarked on
(``KNOWN_BAD_CONVERSION``, detail "altered table: ..."). A table whose head sizes contradict each other in most rows
holds other people than it says and is refused.

What is used to tell: all OASIS-1 people without a CDR are under 60, nobody under 30 and no re-scan (MR2) has one, and
MMSE, CDR and education are there together or not at all; eTIV x ASF is 1755 in every row but one; scores are whole
numbers; education of OASIS-2 is in years, 6 or more; sex, education, SES and group belong to the person. Complete
tables are compared to the published ones column by column through digests (no value of the tables is kept here).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path, PurePosixPath
from typing import Final
from xml.etree import ElementTree

import pandas as pd

from medalign3d.cohorts.base import Ingest, Level, QuarantineReason, Severity
from medalign3d.cohorts.tables import TABLE_SUFFIXES, Row, Table, header_key, load_table
from medalign3d.cohorts.values import MMSE, Quantity, is_blank, parse_float, parse_number
from medalign3d.errors import InputError, MedAlignError
from medalign3d.files import sha256_file

# One letter may stand in for the M: who replaced every M by 1 (the code of the sex) did so in the ids, too.
SESSION: Final = re.compile(r"OAS([12])[_-]?(\d{4})[_-]?[A-Z0-9]R[_-]?(\d+)", re.IGNORECASE)
SUBJECT: Final = re.compile(r"OAS([12])[_-]?(\d{4})(?!\d)", re.IGNORECASE)

#: Field -> the names under which it is found, compared without case and punctuation.
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "sex": ("M/F", "Sex", "Gender", "MF"),
    "age": ("Age", "Age at scan", "Age years"),
    "hand": ("Hand", "Handedness"),
    "educ": ("EDUC", "Education", "Education Level", "Education Years", "Years of Education"),
    "ses": ("SES", "Socioeconomic Status", "Socio Economic Status"),
    "mmse": ("MMSE", "Mini Mental State Examination"),
    "cdr_global": ("CDR", "Clinical Dementia Rating", "CDR global"),
    "etiv": ("eTIV", "Estimated Total Intracranial Volume"),
    "nwbv": ("nWBV", "Normalized Whole Brain Volume", "Normalised Whole Brain Volume"),
    "asf": ("ASF", "Atlas Scaling Factor"),
    "delay": ("MR Delay", "Delay"),
    "group": ("Group",),
    "visit": ("Visit",),
}
#: The columns in their published order, for a table whose header line was lost.
PUBLISHED_COLUMNS: Final[dict[int, tuple[str, ...]]] = {
    1: ("ID", "M/F", "Hand", "Age", "Educ", "SES", "MMSE", "CDR", "eTIV", "nWBV", "ASF", "Delay"),
    2: (
        "Subject ID", "MRI ID", "Group", "Visit", "MR Delay", "M/F", "Hand", "Age", "EDUC", "SES", "MMSE", "CDR",
        "eTIV", "nWBV", "ASF",
    ),
}  # fmt: skip
NAMES: Final = {1: "oasis_cross-sectional", 2: "oasis_longitudinal_demographics"}
PUBLISHED_ROWS: Final = {1: 436, 2: 373}
LAST_SUBJECT: Final = {1: 457, 2: 186}
#: Digests of the published columns (see :func:`digest`), computed from the published tables.
PUBLISHED_DIGESTS: Final[dict[int, dict[str, str]]] = {
    1: {
        "sessions": "63bcd110db6807ed",
        "age": "cfedf7e560fd3587",
        "asf": "7aeadf3a04388e26",
        "cdr_global": "396cc6f3e41c9f14",
        "delay": "bbf5898452020d26",
        "educ": "01bd0089338f45c1",
        "etiv": "bcd9c92e61083de8",
        "hand": "b2a847d3d73ddf69",
        "mmse": "91516e07be52ccb4",
        "nwbv": "3b22770af931d502",
        "ses": "308c1cd41fed5d14",
        "sex": "2d515879c143ebb6",
    },
    2: {
        "sessions": "2514c48ef455900e",
        "age": "461fddd507fd3c6b",
        "asf": "0b85ddc5744c3f75",
        "cdr_global": "adb9870d1981a01c",
        "delay": "78d41a8bf6b59f04",
        "educ": "00c288af276063b1",
        "etiv": "a3db5c7980aa2e86",
        "group": "c6edc6f9b11f6543",
        "hand": "e0dc22c7f1c974e3",
        "mmse": "b6d89f5daae4fc01",
        "nwbv": "b2dd7b1dd8516649",
        "ses": "4d4edc3043401aad",
        "sex": "fb372eaf307827eb",
        "visit": "028cabc6ba937c64",
    },
}
#: Sessions that the published OASIS-2 table leaves blank.
BLANK_MMSE_2: Final = frozenset({("OAS2_0181", "MR2"), ("OAS2_0181", "MR3")})
BLANK_SES_2: Final = frozenset(f"OAS2_{n:04d}" for n in (2, 7, 63, 99, 114, 160, 181, 182))
GROUPS: Final = ("Nondemented", "Demented", "Converted")

HEAD_SIZE_CONSTANT: Final = 1755.0  # eTIV x ASF
HEAD_SIZE_TOLERANCE: Final = 2.5  # two rounded factors
FAR_SHARE: Final = 0.03  # of the constant: no rounding, the values were made up
FEW_SHARE: Final = 0.1  # of the rows
KNOWN_WRONG_ASF: Final = ("OAS1_0061", "MR1")
YOUNGEST_RATED: Final = 30  # nobody younger has a CDR in OASIS-1; everybody of 60 and more has one
OLDEST_UNRATED: Final = 60
ENOUGH_ROWS: Final = 20  # fewer rows say nothing about a table as a whole
ENOUGH_TO_REFUSE: Final = 50
SYNTHETIC_MARKER: Final = "SYNTHETIC_DATA"

SES: Final = Quantity(1, 5, 1)
EDUC_CODE: Final = Quantity(1, 5, 1)
EDUC_YEARS: Final = Quantity(6, 36)
#: Volumes of the table: intracranial volume in cm³, brain as a share of it.
ETIV: Final = Quantity(800, 2400)
NWBV: Final = Quantity(0.4, 1.0)

NO_HEADER: Final = "a table has no header line"

Key = tuple[str, str]


@dataclass
class SessionTable:
    """Rows of one study in one table.

    Attributes
    ----------
    table
        The table; cells that cannot be as published were emptied in it.
    study
        1 or 2.
    sessions
        Line of the table -> (native subject id, session code).
    findings
        In which ways the table differs from the published one.
    incomplete
        How many published sessions are missing, when the table is otherwise as published.
    """

    table: Table
    study: int
    sessions: dict[int, Key]
    findings: list[str] = field(default_factory=list)
    incomplete: int = 0

    @property
    def qualified(self) -> bool:
        """Whether it has the columns that a session needs."""
        return not self.missing()

    def missing(self) -> list[tuple[str, ...]]:
        """The needed columns that it lacks."""
        return [COLUMNS[name] for name in ("sex", "age", "cdr_global") if self.table.column(*COLUMNS[name]) is None]

    def rows(self) -> list[tuple[Key, Row]]:
        """Its rows with their keys."""
        return [(self.sessions[row.line], row) for row in self.table.rows() if row.line in self.sessions]

    def records(self) -> dict[Key, dict[str, str]]:
        """Every session's values in canonical form; of repeated rows the last."""
        names = [name for name in COLUMNS if self.table.column(*COLUMNS[name]) is not None]
        return {key: {name: canonical(name, row.get(*COLUMNS[name])) for name in names} for key, row in self.rows()}


def parse_sex_letter(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """``F`` or ``M`` from the letters or words of the published tables; which number means whom cannot be known.

    >>> parse_sex_letter("Female"), parse_sex_letter("0")
    (('F', None), (None, <QuarantineReason.SENTINEL_UNKNOWN: 'SENTINEL_UNKNOWN'>))
    """
    text = cell.strip().lower()
    if text in ("m", "male", "man"):
        return "M", None
    if text in ("f", "female", "woman"):
        return "F", None
    return None, None if is_blank(cell) else QuarantineReason.SENTINEL_UNKNOWN


def parse_group(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """The person's group of OASIS-2 in its published spelling; recoded groups are unknown.

    >>> parse_group("nondemented"), parse_group("1")
    (('Nondemented', None), (None, <QuarantineReason.SENTINEL_UNKNOWN: 'SENTINEL_UNKNOWN'>))
    """
    name = cell.strip().capitalize()
    return (name, None) if name in GROUPS else (None, None if is_blank(cell) else QuarantineReason.SENTINEL_UNKNOWN)


def number(name: str, cell: str) -> float | None:
    """The number in a cell; a comma that may stand for thousands or decimals is decided by what the column holds.

    >>> number("asf", "1,046"), number("etiv", "1,987")
    (1.046, 1987.0)
    """
    value = parse_float(cell)
    if value is None and name in ("asf", "etiv", "nwbv"):
        value = parse_number(cell, {"asf": Quantity(0.5, 3), "etiv": ETIV, "nwbv": NWBV}[name])[0]
    return value


def _half_up(value: float, digits: str) -> str:
    return str(Decimal(repr(value)).quantize(Decimal(digits), rounding=ROUND_HALF_UP))


def canonical(name: str, cell: str) -> str:
    """A cell in the one form in which copies of the tables are compared; the precision is that of the first release.

    >>> canonical("etiv", "1986.55"), canonical("asf", "0,88344"), canonical("cdr_global", ".5")
    ('1987', '0.883', '0.5')
    """
    if is_blank(cell):
        return ""
    if name == "sex":
        return parse_sex_letter(cell)[0] or cell
    value = number(name, cell)
    if value is None or name in ("group", "hand"):
        return cell.strip().capitalize()
    if name in ("etiv", "nwbv", "asf") and abs(value) < 1e6:
        return _half_up(value, "1" if name == "etiv" else "0.001")
    return f"{value:g}"


def digest(values: Iterable[tuple[Key, str]]) -> str:
    """The digest of a column: sixteen hexadecimal digits over its sorted lines of session and value."""
    lines = sorted(f"{subject}_{code}\t{value}" for (subject, code), value in values)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def column_digests(records: Mapping[Key, Mapping[str, str]]) -> dict[str, str]:
    """The digest of every column, and of the session ids as ``sessions``."""
    names = {name for record in records.values() for name in record}
    digests = {name: digest((key, record.get(name, "")) for key, record in records.items()) for name in sorted(names)}
    return {"sessions": digest((key, "") for key in records), **digests}


# ------------------------------------------------------------------------------------------------------------- finding


def _may_hold_sessions(path: Path) -> bool:
    """Whether a file may name sessions of OASIS-1 or OASIS-2; spreadsheets and compressed files may."""
    try:
        with path.open("rb") as stream:
            start = stream.read(1 << 18)
    except OSError:
        return False
    if start.startswith((b"PK", b"\xd0\xcf\x11\xe0", b"\x1f\x8b")):
        return True
    return re.search(rb"OAS[12]", start.replace(b"\x00", b""), re.IGNORECASE) is not None


def _load(book: Ingest, path: str) -> tuple[Table, list[str]]:
    """Read a table; when its first line is a session and not a header, the published columns are its header."""
    table = load_table(book.root / path, root=book.root)
    for position, name in enumerate(table.all_columns):
        match = SESSION.search(name)
        if match is None:
            continue
        study = int(match[1])
        published = PUBLISHED_COLUMNS[study]
        offset = position - (study - 1)  # the session id is the first column of OASIS-1 and the second of OASIS-2
        count = len(table.all_columns)
        if offset in (0, 1) and count == offset + len(published):
            header = [*["index"] * offset, *published]
            again = load_table(book.root / path, root=book.root, header=header)
            sexes = [parse_sex_letter(row.get("M/F"))[0] for row in again.rows()]
            if sexes and sum(sex is not None for sex in sexes) > 0.9 * len(sexes):
                return again, ["the header line is missing; the columns were taken in their published order"]
        raise InputError(
            NO_HEADER,
            where=path,
            found=f"{count} columns whose first line is a session",
            expected=f"a first line with {', '.join(published)}",
            remedy=f"put the header line back, or download {NAMES[study]} from oasis-brains.org",
        )
    return table, []


def _sessions_of(table: Table) -> tuple[dict[int, dict[int, Key]], list[tuple[int, str]]]:
    """Study -> line -> session, and the lines that name no or two sessions with what is wrong.

    The id is looked for in every column, because its column has many names and a table may hold both studies. Where
    only the participant is named, OASIS-2 has the number of the visit, and an OASIS-1 row with a delay is the re-scan.
    """
    sessions: dict[int, dict[int, Key]] = {1: {}, 2: {}}
    unusable: list[tuple[int, str]] = []
    naming = [
        place
        for place in range(table.frame.shape[1])
        if any(SUBJECT.search(cell) for cell in table.frame.iloc[:, place].tolist())
    ]
    for row in table.rows():
        cells = [row.cells[place] for place in naming]
        full = {(int(m[1]), m[2], int(m[3])) for cell in cells for m in [SESSION.search(cell)] if m}
        people = {(int(m[1]), m[2]) for cell in cells for m in [SUBJECT.search(cell)] if m}
        if len(full) > 1 or len(people) > 1:
            unusable.append((row.line, "the row names two participants or sessions; it was left out"))
            continue
        if full:
            study, number, session = next(iter(full))
        elif people:
            study, number = next(iter(people))
            visit = parse_float(row.get(*COLUMNS["visit"])) if study == 2 else None
            if study == 1:
                session = 1 if is_blank(row.get(*COLUMNS["delay"])) else 2
            elif visit is not None and visit == int(visit) and visit > 0:
                session = int(visit)
            else:
                unusable.append((row.line, "the row names a participant but no session; it was left out"))
                continue
        else:
            unusable.append((row.line, "a row's session id cannot be read; the row was left out"))
            continue
        sessions[study][row.line] = (f"OAS{study}_{number}", f"MR{session}")
    return sessions, unusable


def _mentions_sessions(table: Table) -> bool:
    return any(SUBJECT.search(cell) for column in table.frame for cell in table.frame[column].tolist())


def find_session_tables(book: Ingest) -> tuple[dict[int, list[SessionTable]], dict[str, str]]:
    """The tables to use for OASIS-1 and OASIS-2, and why others cannot be read (path -> message).

    Raises
    ------
    InputError
        When differing tables of one study lie in the folder and none is the published one, a table has lost its
        header, or its values contradict each other.
    """
    synthetic = any((folder / SYNTHETIC_MARKER).exists() for folder in (book.root, *list(book.root.parents)[:2]))
    synthetic = synthetic or any(PurePosixPath(path).name == SYNTHETIC_MARKER for path in book.files)
    found: dict[int, list[SessionTable]] = {1: [], 2: []}
    broken: dict[str, str] = {}
    notes: dict[str, list[tuple[int, str]]] = {}
    for path in book.files:
        if not path.lower().endswith(TABLE_SUFFIXES[:-1]) or not _may_hold_sessions(book.root / path):
            continue
        try:
            table, findings = _load(book, path)
        except InputError as error:
            if error.what == NO_HEADER:
                raise
            broken[path] = "cannot be read"
            continue
        sessions, unusable = _sessions_of(table)
        notes[path] = unusable
        for study, lines in sessions.items():
            if lines:
                found[study].append(SessionTable(table, study, lines, list(findings)))
        if not any(sessions.values()) and unusable and _mentions_sessions(table):
            broken[path] = "no session id can be read"
    chosen: dict[int, list[SessionTable]] = {}
    for study, candidates in found.items():
        chosen[study] = _choose(book, [c for c in candidates if c.qualified], synthetic)
        lacking = [c for c in candidates if not c.qualified]
        if not chosen[study]:
            for candidate in lacking:
                broken[candidate.table.relative] = "lacks " + "; ".join(
                    " or ".join(names[:2]) for names in candidate.missing()
                )
    used: dict[str, Table] = {}
    for study in (1, 2):
        for candidate in chosen[study]:
            used[candidate.table.relative] = candidate.table
            report(book, candidate)
    for path, table in used.items():
        parts = [candidate for study in (1, 2) for candidate in chosen[study] if candidate.table is table]
        book.record(table, "; ".join(_used_for(part) for part in parts))
        for line, detail in notes[path]:
            book.note(
                QuarantineReason.ID_UNPARSABLE, Level.TABLE, {"file": table.name}, Severity.WARN, detail, path, line
            )
    return chosen, broken


def _choose(book: Ingest, candidates: list[SessionTable], synthetic: bool) -> list[SessionTable]:
    """Of several tables of one study the one that says everything that the others say, or the published one."""
    if len(candidates) > 1:
        as_sent = [candidate.records() for candidate in candidates]
        published = [
            i for i, candidate in enumerate(candidates)
            if not synthetic and not candidate.findings and _published(candidate.study, as_sent[i])
        ]  # fmt: skip
        order = sorted(range(len(candidates)), key=lambda i: (i not in published, -len(as_sent[i]), i))
        kept: list[int] = []
        for i in order:
            shared = [(k, set(as_sent[i]) & set(as_sent[k])) for k in kept]
            contradicted = [k for k, keys in shared if not _agree(as_sent[i], as_sent[k], keys)]
            covered = [k for k, keys in shared if keys == set(as_sent[i])]
            if published and i not in published:
                what = "differs from" if contradicted else "repeats"
                name = candidates[published[0]].table.name
                _note_unused(book, candidates[i], f"{what} {name}, which is as published")
            elif contradicted:
                other = candidates[contradicted[0]]
                raise InputError(
                    "a table is there more than once",
                    where=", ".join(sorted((candidates[i].table.relative, other.table.relative))),
                    found=_difference(as_sent[i], as_sent[contradicted[0]]),
                    expected=f"one demographic table of OASIS-{other.study}, or the published one among them",
                    remedy="move the others out of the cohort's folder",
                )
            elif covered:
                _note_unused(book, candidates[i], f"repeats {candidates[covered[0]].table.name}")
            elif any(keys for _, keys in shared):
                raise InputError(
                    "a table is there more than once",
                    where=", ".join(sorted(candidates[k].table.relative for k in (i, *kept))),
                    found="tables of which each has sessions of its own and some of the other's",
                    expected=f"one demographic table of OASIS-{candidates[i].study}",
                    remedy="move the others out of the cohort's folder",
                )
            else:
                kept.append(i)
        candidates = [candidates[i] for i in kept]
    for candidate in candidates:
        _Check(book, candidate, synthetic).run()
    return candidates


def _agree(first: Mapping[Key, Mapping[str, str]], second: Mapping[Key, Mapping[str, str]], keys: set[Key]) -> bool:
    return all(first[key][name] == second[key][name] for key in keys for name in first[key].keys() & second[key].keys())


def _difference(first: Mapping[Key, Mapping[str, str]], second: Mapping[Key, Mapping[str, str]]) -> str:
    counts: Counter[str] = Counter(
        name
        for key in first.keys() & second.keys()
        for name in first[key].keys() & second[key].keys()
        if first[key][name] != second[key][name]
    )
    return "sessions that differ: " + ", ".join(f"{COLUMNS[n][0]} in {c}" for n, c in counts.most_common())


def _note_unused(book: Ingest, candidate: SessionTable, detail: str) -> None:
    table = candidate.table
    book.record(table, f"not used: {detail}")
    book.note(
        QuarantineReason.DUPLICATE_KEY_IDENTICAL if detail.startswith("repeats") else
        QuarantineReason.DUPLICATE_KEY_CONFLICT,
        Level.TABLE, {"file": table.name}, Severity.WARN, f"not used: the table {detail}", table.relative,
    )  # fmt: skip


def _published(study: int, records: Mapping[Key, Mapping[str, str]]) -> bool:
    digests = column_digests(records)
    return all(digests.get(name) == value for name, value in PUBLISHED_DIGESTS[study].items())


def report(book: Ingest, candidate: SessionTable) -> None:
    """Remark on a table that is not as published."""
    if candidate.findings:
        book.note(
            QuarantineReason.KNOWN_BAD_CONVERSION,
            Level.TABLE,
            {"file": candidate.table.name},
            Severity.WARN,
            "altered table: " + "; ".join(candidate.findings),
            candidate.table.relative,
        )


def _used_for(candidate: SessionTable) -> str:
    missing = candidate.incomplete
    lacking = f", without {missing} of the {PUBLISHED_ROWS[candidate.study]} published sessions" if missing else ""
    return f"OASIS-{candidate.study}{lacking}"


# ------------------------------------------------------------------------------------------------------------- checking


class _Check:
    """Empty what cannot be as published, and say in which ways a table differs."""

    def __init__(self, book: Ingest, candidate: SessionTable, synthetic: bool) -> None:
        self.book = book
        self.candidate = candidate
        self.synthetic = synthetic
        self.rows = candidate.rows()
        self.findings = candidate.findings
        self.whole = len(self.rows) >= ENOUGH_ROWS

    def cell(self, row: Row, name: str) -> str:
        cell = row.get(*COLUMNS[name])
        return "" if is_blank(cell) else cell

    def number(self, row: Row, name: str) -> float | None:
        return number(name, self.cell(row, name))

    def has(self, name: str) -> bool:
        return self.candidate.table.column(*COLUMNS[name]) is not None

    def put(self, row: Row, column: str, text: str) -> None:
        frame = self.candidate.table.frame
        place = list(frame.columns).index(column)
        row.cells = (*row.cells[:place], text, *row.cells[place + 1 :])
        frame.at[row.line, column] = text

    def empty(
        self, key: Key, row: Row, name: str, reason: QuarantineReason = QuarantineReason.VALUE_OUT_OF_RANGE
    ) -> None:
        """Empty a cell as a field issue."""
        column = row.column(*COLUMNS[name])
        self.book.field_issue(reason, *key, column, row)
        for place in self.candidate.table.places(COLUMNS[name]):
            self.put(row, str(self.candidate.table.frame.columns[place]), "")

    def run(self) -> None:
        """All checks in their order: later ones rely on what earlier ones restored or emptied."""
        if self.whole:
            self.restore_decimal_points()
            self.check_head_sizes()
        if self.candidate.study == 1:
            self.empty_filled_oasis1()
            if self.whole and any(key[1] == "MR1" and self.number(row, "delay") for key, row in self.rows):
                self.findings.append("first sessions have a Delay, which is not used")
        else:
            self.empty_filled_oasis2()
            self.empty_contradictions_of_persons()
            self.check_ages()
        sexes = [parse_sex_letter(self.cell(row, "sex"))[1] for _, row in self.rows if self.cell(row, "sex")]
        if sexes and sum(reason is not None for reason in sexes) > len(sexes) / 2:
            self.findings.append("sex is given by numbers, whose meaning cannot be known; it was emptied")
        if self.whole and not self.synthetic:
            self.compare_to_published()

    # -- decimal points and head sizes

    def restore_decimal_points(self) -> None:
        """Put back decimal points that a table lost as a whole, where eTIV x ASF proves it."""
        proven = total = 0
        for _, row in self.rows:
            etiv, asf = self.number(row, "etiv"), self.number(row, "asf")
            if etiv is not None and asf is not None:
                total += 1
                digits = len(str(int(abs(asf))))
                proven += asf > 50 and any(
                    abs(etiv * asf / 10**power - HEAD_SIZE_CONSTANT) < 2 * HEAD_SIZE_TOLERANCE
                    for power in range(1, digits + 1)
                )
        if total < ENOUGH_ROWS or proven < 0.8 * total:
            return
        cdr_was_lost = any(self.cell(row, "cdr_global") in ("5", "05") for _, row in self.rows)
        for _, row in self.rows:
            for name in ("nwbv", "asf", "cdr_global"):
                column, cell = row.column(*COLUMNS[name]), self.cell(row, name)
                if not re.fullmatch(r"\d+", cell):
                    continue
                if name == "cdr_global" and cell in ("5", "05"):
                    self.put(row, column, "0.5")
                elif name == "nwbv" and int(cell) > 1:
                    self.put(row, column, f"0.{cell}")
                elif name == "asf" and int(cell) > 2:
                    # The scaling factor is between 0.8 and 1.6: its first digit tells where the point was.
                    self.put(row, column, f"1.{cell[1:]}" if cell[0] == "1" and len(cell) > 1 else f"0.{cell}")
        self.findings.append(
            "decimal points were lost; restored in nWBV and ASF"
            + (" and CDR (5 is 0.5)" if cdr_was_lost else "")
            + " as eTIV x ASF proves"
        )

    def check_head_sizes(self) -> None:
        """Empty eTIV where it contradicts ASF in a few rows; refuse a table where most rows do by far."""
        wrong: list[tuple[Key, Row]] = []
        total = far = 0
        for key, row in self.rows:
            etiv, asf = self.number(row, "etiv"), self.number(row, "asf")
            if etiv is None or asf is None:
                continue
            total += 1
            error = abs(etiv * asf - HEAD_SIZE_CONSTANT)
            far += error > FAR_SHARE * HEAD_SIZE_CONSTANT
            if error > HEAD_SIZE_TOLERANCE and key != KNOWN_WRONG_ASF:
                wrong.append((key, row))
        if total < ENOUGH_ROWS or not wrong:
            return
        if far > total / 2 and total >= ENOUGH_TO_REFUSE:
            raise InputError(
                f"a table is not the one that OASIS-{self.candidate.study} published",
                where=self.candidate.table.relative,
                found=f"eTIV x ASF is far from 1755 in {far} of {total} rows",
                expected="eTIV x ASF of 1755 in every row: the values were made up or rescaled",
                remedy=f"download {NAMES[self.candidate.study]} from oasis-brains.org",
            )
        if len(wrong) > FEW_SHARE * total:
            self.findings.append(f"eTIV x ASF is not 1755 in {len(wrong)} of {total} rows")
            return
        for key, row in wrong:
            self.empty(key, row, "etiv")
        self.findings.append(f"eTIV x ASF is not 1755 in {len(wrong)} rows, whose eTIV was emptied")

    # -- values filled in where the published tables are blank

    def empty_filled_oasis1(self) -> None:
        """Empty clinical values of people who were not examined: the young, and the re-scans."""
        names = [name for name in ("cdr_global", "mmse", "educ", "ses") if self.has(name)]

        def unexamined(key: Key, row: Row) -> bool:
            age = self.number(row, "age")
            return key[1] != "MR1" or (age is not None and age < YOUNGEST_RATED)

        filled = [
            name
            for name in names
            if any(self.cell(row, name) for key, row in self.rows if unexamined(key, row))
            and (self.whole or name == "cdr_global")
        ]
        witnesses = [name for name in ("cdr_global", "mmse", "educ") if name in names and name not in filled]
        counts: Counter[str] = Counter()
        fills: set[str] = set()  # values of SES that were put into blanks
        for key, row in self.rows:
            age = self.number(row, "age")
            if key[1] == "MR1" and age is not None and age >= OLDEST_UNRATED:
                continue
            doubtful: list[str] = []
            if filled and not (not unexamined(key, row) and any(self.cell(row, name) for name in witnesses)):
                # Nothing that was left alone shows that this person was examined.
                doubtful = filled
            elif {"mmse", "educ"} <= set(names) and not (self.cell(row, "mmse") or self.cell(row, "educ")):
                doubtful = ["cdr_global"]  # nobody has a CDR without MMSE and education
            for name in doubtful:
                if self.cell(row, name):
                    if name == "ses":
                        fills.add(canonical(name, self.cell(row, name)))
                    self.empty(key, row, name)
                    counts[name] += 1
        if fills:
            for key, row in self.rows:
                if canonical("ses", self.cell(row, "ses")) in fills:
                    self.empty(key, row, "ses")
                    counts["ses"] += 1
        for name, count in counts.items():
            self.findings.append(
                f"{COLUMNS[name][0]} was filled in where the published table is blank; emptied in {count} rows"
            )

    def empty_filled_oasis2(self) -> None:
        """Empty the MMSE and SES that the published table leaves blank, in tables large enough to be a copy of it."""
        if self.synthetic or len(self.rows) < 0.5 * PUBLISHED_ROWS[2]:
            return
        for name, blank in (
            ("mmse", lambda key: key in BLANK_MMSE_2),
            ("ses", lambda key: key[0] in BLANK_SES_2),
        ):
            wrong = [(key, row) for key, row in self.rows if blank(key) and self.cell(row, name)]
            for key, row in wrong:
                self.empty(key, row, name)
            if wrong:
                self.findings.append(
                    f"{COLUMNS[name][0]} was filled in where the published table is blank; emptied in {len(wrong)} rows"
                )

    # -- persons of OASIS-2

    def _by_subject(self) -> dict[str, list[tuple[Key, Row]]]:
        by_subject: dict[str, list[tuple[Key, Row]]] = {}
        for key, row in self.rows:
            by_subject.setdefault(key[0], []).append((key, row))
        return by_subject

    def empty_contradictions_of_persons(self) -> None:
        """Empty what belongs to the person and differs between sessions."""
        readers: dict[str, Callable[[str], object]] = {
            "sex": lambda cell: parse_sex_letter(cell)[0],
            "educ": parse_float,
            "ses": parse_float,
            "group": lambda cell: parse_group(cell)[0],
        }
        for name, read in readers.items():
            people = 0
            for members in self._by_subject().values():
                values = {read(self.cell(row, name)) for _, row in members if self.cell(row, name)} - {None}
                if len(values) < 2:
                    continue
                people += 1
                for key, row in members:
                    if self.cell(row, name):
                        reason = (
                            QuarantineReason.SEX_CONFLICT if name == "sex" else
                            QuarantineReason.DIAGNOSIS_CONFLICT if name == "group" else
                            QuarantineReason.DUPLICATE_KEY_CONFLICT
                        )  # fmt: skip
                        self.empty(key, row, name, reason)
            if people:
                self.findings.append(
                    f"{COLUMNS[name][0]} differs between the sessions of {people} people; it was emptied"
                )
        if self.whole:
            self.empty_groups_without_support()
        groups = {parse_group(self.cell(row, "group"))[0] for _, row in self.rows} - {None}
        if len(self.rows) >= 0.5 * PUBLISHED_ROWS[2] and len(groups) == 2 and not self.synthetic:
            missing = ", ".join(sorted(set(GROUPS) - {str(group) for group in groups}))
            self.findings.append(f"no session is in the group {missing}: the groups were recoded or left out")

    def empty_groups_without_support(self) -> None:
        """Empty the group of people in Demented who have a session with a CDR of 0: those converted."""
        people = 0
        for members in self._by_subject().values():
            groups = {parse_group(self.cell(row, "group"))[0] for _, row in members}
            if "Demented" in groups and any(self.number(row, "cdr_global") == 0 for _, row in members):
                people += 1
                for key, row in members:
                    self.empty(key, row, "group", QuarantineReason.DIAGNOSIS_CONFLICT)
        if people:
            self.findings.append(f"{people} people in the group Demented have a session with CDR 0; it was emptied")

    def check_ages(self) -> None:
        """Remark on people whose ages and delays contradict each other by more than a year."""
        people = 0
        for subject, members in self._by_subject().items():
            origins = [
                age - delay / 365.25
                for _, row in members
                if (age := self.number(row, "age")) is not None and (delay := self.number(row, "delay")) is not None
            ]
            if len(origins) > 1 and max(origins) - min(origins) > 2.0:
                people += 1
                key, row = members[0]
                self.book.visit_note(
                    QuarantineReason.AGE_INCONSISTENT, subject, key[1], Severity.WARN,
                    "age and MR Delay of the participant's sessions contradict each other", row,
                )  # fmt: skip
        if people:
            self.findings.append(f"age and MR Delay contradict each other for {people} people")

    # -- the table as a whole

    def compare_to_published(self) -> None:
        """Say which columns differ from the published table, and which sessions cannot be of it."""
        study = self.candidate.study
        records = self.candidate.records()
        strangers = sum(int(key[0][-4:]) > LAST_SUBJECT[study] for key in records)
        if len(records) >= ENOUGH_TO_REFUSE and strangers > len(records) / 2:
            raise InputError(
                f"a table is not the one that OASIS-{study} published",
                where=self.candidate.table.relative,
                found=f"{strangers} of {len(records)} sessions are of participants that OASIS-{study} does not have",
                expected=f"participants up to OAS{study}_{LAST_SUBJECT[study]:04d}: most people were made up, and no "
                "value of the others can be trusted either",
                remedy=f"download {NAMES[study]} from oasis-brains.org",
            )
        if strangers or len(records) > PUBLISHED_ROWS[study]:
            self.findings.append(
                f"{max(strangers, len(records) - PUBLISHED_ROWS[study])} sessions are not among the published ones"
            )
            return
        digests = column_digests(records)
        published = PUBLISHED_DIGESTS[study]
        if digests["sessions"] != published.get("sessions"):
            self.candidate.incomplete = PUBLISHED_ROWS[study] - len(records)
            if not self.candidate.incomplete:
                self.findings.append("some sessions are not among the published ones")
            return
        differing = [COLUMNS[name][0] for name, value in published.items() if digests.get(name, value) != value]
        if differing:
            verb = "differ" if len(differing) > 1 else "differs"
            self.findings.append(f"{', '.join(differing)} {verb} from the published table")
        absent = [COLUMNS[name][0] for name in published if name in COLUMNS and name not in digests]
        if absent:
            self.findings.append(f"without {', '.join(absent)}")


# ------------------------------------------------------------------------------------------- summaries inside sessions

_SUMMARY_KEYS: Final = {
    "session_id": "ID", "age": "Age", "m_f": "M/F", "gender": "M/F", "sex": "M/F", "hand": "Hand",
    "handedness": "Hand", "educ": "Educ", "education": "Educ", "ses": "SES", "cdr": "CDR", "mmse": "MMSE",
    "etiv": "eTIV", "asf": "ASF", "nwbv": "nWBV", "delay": "Delay",
}  # fmt: skip
MAXIMUM_SUMMARY_BYTES: Final = 1 << 20


def read_summary(root: Path, path: str) -> Table | None:
    """A session's own summary (``OAS1_0001_MR1.txt`` or ``.xml``) as a table of one row; None when it holds none.

    The text has a line ``NAME: value`` for each column; of the XML any element or attribute with a known name counts.
    """
    file = root / path
    try:
        if file.stat().st_size > MAXIMUM_SUMMARY_BYTES:
            return None
        text = file.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError:
        return None
    match = SESSION.search(PurePosixPath(path).name)
    if match is None or match[1] != "1":
        return None
    cells: dict[str, str] = {}

    def take(name: str, value: str) -> None:
        column = _SUMMARY_KEYS.get(header_key(name))
        if column is not None and column != "ID" and value.strip():
            cells.setdefault(column, value.strip())

    if path.lower().endswith(".xml"):
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            return None
        try:
            tree = ElementTree.fromstring(text)
        except ElementTree.ParseError:
            return None
        for element in tree.iter():
            name = element.get("name") or element.tag.rsplit("}", 1)[-1]
            take(name, element.text or "")
            for attribute, value in element.attrib.items():
                take(attribute.rsplit("}", 1)[-1], value)
    else:
        for line in text.splitlines():
            name, colon, value = line.partition(":")
            if colon and not line.startswith((" ", "\t")):
                take(name, value)
    if not {"Age", "M/F"} <= set(cells):
        return None
    names = list(PUBLISHED_COLUMNS[1])
    cells["ID"] = f"OAS1_{match[2]}_MR{int(match[3])}"
    frame = pd.DataFrame([[cells.get(name, "") for name in names]], columns=names, index=[1], dtype=object)
    return Table(file, path, frame, [], sha256_file(file), names)


def read_summaries(book: Ingest, wanted: set[Key]) -> list[SessionTable]:
    """The summaries of OASIS-1 sessions that no table has."""
    found: dict[Key, SessionTable] = {}
    for path in book.files:
        name = PurePosixPath(path)
        match = SESSION.fullmatch(name.stem)
        if match is None or match[1] != "1" or name.suffix.lower() not in (".txt", ".xml"):
            continue
        key = (f"OAS1_{match[2]}", f"MR{int(match[3])}")
        if key not in wanted or key in found:
            continue
        try:
            table = read_summary(book.root, path)
        except MedAlignError:
            table = None
        if table is not None:
            candidate = SessionTable(table, 1, {1: key})
            _Check(book, candidate, synthetic=True).run()
            found[key] = candidate
            book.record(table, "OASIS-1 session summary")
    return list(found.values())


def fields_of(study: int, hand: Callable[[str], tuple[str | None, QuarantineReason | None]]) -> dict[
    str, tuple[Quantity | Callable[[str], tuple[object, QuarantineReason | None]], Sequence[str]]
]:  # fmt: skip
    """What to read of a row: field -> (what is legal, names of its column)."""
    return {
        "sex": (parse_sex_letter, COLUMNS["sex"]),
        "age": (Quantity(0, 1000), COLUMNS["age"]),
        "hand": (hand, COLUMNS["hand"]),
        "ses": (SES, COLUMNS["ses"]),
        "mmse": (MMSE, COLUMNS["mmse"]),
        "cdr_global": (Quantity(0, 3, allowed=frozenset({0.0, 0.5, 1.0, 2.0, 3.0})), COLUMNS["cdr_global"]),
        "etiv": (ETIV, COLUMNS["etiv"]),
        "nwbv": (NWBV, COLUMNS["nwbv"]),
        "educ": (EDUC_CODE if study == 1 else EDUC_YEARS, COLUMNS["educ"]),
        "delay": (Quantity(0, 20000), COLUMNS["delay"]),
        "group": (parse_group, COLUMNS["group"]),
    }
