"""NACC: the UDS and MRI tables of a data freeze, and one zip archive or folder per MRI session.

Tables are known by name and header; any one of the investigator, FTLD/LBD, commercial or custom UDS files is enough.
Inside a session the T1-weighted volumes are told from the rest by the description in their JSON sidecar or DICOM
headers, or by their geometry where there are none. Scans are matched to UDS visits by true day counts; what the
custodian says about the closest visit (NACCVNUM, NACCMRDY) is compared with it, and dates a scan whose own date is
incomplete. Standardized (SCAN) images are dated by the SCAN quality table or their headers.
"""

from __future__ import annotations

import calendar
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.base import (
    DAYS_PER_YEAR,
    FoundImage,
    Ingest,
    IngestResult,
    Level,
    QuarantineReason,
    Severity,
    Sourced,
    Visit,
    match_visit,
    no_images,
)
from medalign3d.cohorts.crosswalk import lm_delayed_of_craft, lm_immediate_of_craft, mmse_of_moca
from medalign3d.cohorts.images import tesla
from medalign3d.cohorts.nacc_files import (
    UNKNOWN_THICKNESS_MM,
    Locators,
    SessionFile,
    find_session_files,
    is_t1,
    keys_of,
    names_t1,
    normalize_locator,
    pick_rank,
    split_series,
)
from medalign3d.cohorts.packed import remark_on
from medalign3d.cohorts.tables import Row, Table, describe_tables, headers
from medalign3d.cohorts.values import (
    CDR_GLOBAL,
    CDR_SUM,
    EDUCATION_YEARS,
    GDS,
    LOGICAL_MEMORY,
    MMSE,
    MOCA,
    Quantity,
    is_blank,
    parse_code,
    parse_date,
    parse_float,
    parse_sex,
    parse_whole_id,
)
from medalign3d.errors import InputError, MissingTable
from medalign3d.files import sha256_file
from medalign3d.params import Params


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NACCID = re.compile(r"NACC\d{6}")
NOT_ASKED = -4.0
#: Why a test has no score: not computable, physical, cognitive or other problem, refusal, missing, not asked.
COGNITION_MISSING = (88, 95, 96, 97, 98, 99, NOT_ASKED)
SYNDROME = {1.0: "NC", 2.0: "IMCI", 3.0: "MCI", 4.0: "DEM"}
APOE_GENOTYPE = {1.0: "33", 2.0: "34", 3.0: "23", 4.0: "44", 5.0: "24", 6.0: "22"}
HANDEDNESS = {1.0: "L", 2.0: "R", 3.0: "A"}
OUT_OF_SCOPE = "out of scope"
HISTORY = {
    "DIABETES": "diabetes",
    "HYPERTEN": "hypertension",
    "HYPERCHO": "hypercholesterolaemia",
    "B12DEF": "vitamin_b12_deficiency",
    "THYROID": "thyroid_disease",
}
#: Absent, active, remote: a remote condition is part of the history.
HISTORY_CODES = {0.0: "0", 1.0: "1", 2.0: "1"}
#: Codes of the imaging code book for "not applicable" and "missing", in cubic centimetres.
VOLUME_MISSING = (8.8888, 88.8888, 888.8888, 8888.888, 8888.8888, 9.9999, 9.999, 99.9999, 99.999, 999.9999, 999.999,
                  9999.999, 9999.9999, 8888.0, 9999.0)  # fmt: skip
VOLUMES = {
    "NACCICV": ("icv_mm3", 8e5, 2.4e6),
    "NACCBRNV": ("brain_mm3", 5e5, 1.8e6),
    "HIPPOVOL": ("hippocampus_mm3", 500, 15e3),
    "LATVENT": ("ventricles_mm3", 1e3, 250e3),
}
NO_CLOSE_VISIT = 8888.0  # NACCMRDY where no UDS visit is near
AGE_TOLERANCE_YEARS = 2.0
UDS_REQUIRED = frozenset({"naccid", "naccvnum", "naccudsd"})
MRI_REQUIRED = frozenset({"naccid", "naccmrfi"})
SCAN_REQUIRED = frozenset({"naccid", "loniimage", "studydate"})
UDS_COLUMNS = (
    *_names("NACCID NACCADC NACCVNUM PACKET FORMVER VISITYR VISITMO VISITDAY VISITDATE SEX NACCSEX BIRTHMO BIRTHYR"),
    *_names("NACCAGE EDUC HANDED NACCMMSE NACCMOCA MOCATOTS LOGIMEM MEMUNITS CRAFTURS CRAFTDRE CDRSUM CDRGLOB NACCGDS"),
    *_names("NACCAPOE NACCNE4S NACCUDSD NACCALZD NACCALZP NACCETPR"),
    *HISTORY,
)
MRI_COLUMNS = (
    *_names("NACCID NACCADC NACCMRFI NACCMNUM NACCVNUM NACCMRIA NACCMRDY NACCMRSA MRIYR MRIMO MRIDY MRIDAY MRIFIELD"),
    "MRIMANU",
    *VOLUMES,
)
SCAN_COLUMNS = (
    *_names("NACCID NACCADC LONIIMAGE STUDYDATE SERIESTIME SERIESDESCRIPTION ACQUISITIONTYPE SLICETHICKNESS"),
    *_names("MAGNETICFIELDSTRENGTH SCANNERMANUFACTURER SCANNERMODEL"),
)
FIELD_STRENGTH = {1.0: "1.5", 2.0: "3.0"}
MANUFACTURER = {1.0: "GE", 2.0: "Siemens", 3.0: "Philips"}
CODE_UNKNOWN = frozenset({5.0, 7.0, 8.0, 9.0, NOT_ASKED})  # other, varies, not applicable, unknown
#: Columns of a person that cannot differ between visits.
CONSTANT_COLUMNS = ("handedness", "birth_year", "birth_month", "apoe_genotype", "apoe4_count")
#: Reasons against a NIfTI file that its DICOM form may not share.
_REASONS_OF_THE_FILE = frozenset(
    {
        QuarantineReason.NOT_T1,
        QuarantineReason.KNOWN_BAD_CONVERSION,
        QuarantineReason.AMBIGUOUS_FILE,
        QuarantineReason.DUPLICATE_KEY_IDENTICAL,
        *(reason for reason in QuarantineReason if reason.startswith("IMAGE_")),
    }
)
_RELEASED = re.compile(
    r"(?P<licence>investigator|commercial)(?P<module>_ftldlbd)?(?P<mri>_mri)?_nacc(?P<freeze>\d+)\.(?:csv|tsv|xlsx?|xlsm)(?:\.gz)?",
    re.IGNORECASE,
)
_REQUESTED = re.compile(r".+?(?P<date>\d{8})(?:_?mri)?\.(?:csv|tsv|xlsx?|xlsm)(?:\.gz)?", re.IGNORECASE)


def parse_volume(cell: str, low: float, high: float) -> tuple[float | None, QuarantineReason | None]:
    """A volume in mm³ from cubic centimetres; the code book's codes for "no value" go first.

    A code counts with four or three places behind the point, as spreadsheet programs round it.

    >>> parse_volume("888.8888", 500, 15e3), parse_volume("6.5", 500, 15e3), parse_volume("10", 500, 15e3)
    ((None, None), (6500.0, None), (10000.0, None))
    """
    if is_blank(cell):
        return None, None
    value = parse_float(cell)
    if value is None:
        return None, QuarantineReason.SENTINEL_UNKNOWN
    if value == NOT_ASKED or any(abs(value - code) < 5e-5 for code in VOLUME_MISSING):
        return None, None
    if any(abs(value - round(code, 3)) < 5e-7 for code in VOLUME_MISSING if code % 1 < 0.9):
        return None, None
    value *= 1000.0
    if not low <= value <= high:
        return None, QuarantineReason.SENTINEL_UNKNOWN if value < 0 else QuarantineReason.VALUE_OUT_OF_RANGE
    return value, None


def parse_syndrome(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """NACCUDSD; a positive code outside the code book is kept apart, the image stays without a label.

    >>> [parse_syndrome(code)[0] for code in ("1", "2", "3", "4", "4.0", "8", "-4", ".")]
    ['NC', 'IMCI', 'MCI', 'DEM', 'DEM', 'out of scope', None, None]
    """
    if is_blank(cell):
        return None, None
    label, problem = parse_code(cell, SYNDROME, frozenset({NOT_ASKED, 9.0}))
    if problem is QuarantineReason.VALUE_OUT_OF_RANGE:
        return OUT_OF_SCOPE, None
    return label, problem


def _sex(cell: str) -> tuple[str | None, QuarantineReason | None]:
    sex, problem = parse_sex(cell)
    return (None, None) if problem is not None and parse_float(cell) in (8.0, 9.0) else (sex, problem)


def _coded(meanings: dict[float, str], *missing: float) -> Any:
    """A parser of a coded column."""
    return partial(parse_code, meanings=meanings, missing=frozenset({NOT_ASKED, *missing}))


def _present(cell: str) -> tuple[int | None, QuarantineReason | None]:
    meaning, problem = parse_code(cell, HISTORY_CODES, frozenset({8.0, 9.0, NOT_ASKED}))
    return (None if meaning is None else int(meaning)), problem


def uds_fields(crosswalk: bool = False) -> dict[str, Any]:
    """What is read from a UDS row: output name -> (what is legal, column names). The codes are the code book's.

    Parameters
    ----------
    crosswalk
        Also read the Craft story, which only the crosswalk needs.
    """
    memory = LOGICAL_MEMORY.with_missing(*COGNITION_MISSING)
    fields: dict[str, Any] = {
        "dx": (parse_syndrome, ("NACCUDSD",)),
        "mmse": (MMSE.with_missing(*COGNITION_MISSING), ("NACCMMSE",)),
        "moca": (MOCA.with_missing(*COGNITION_MISSING), ("NACCMOCA", "MOCATOTS")),
        "lm_immediate": (memory, ("LOGIMEM",)),
        "lm_delayed": (memory, ("MEMUNITS",)),
        "cdr_global": (CDR_GLOBAL.with_missing(NOT_ASKED), ("CDRGLOB",)),
        "cdr_sb": (CDR_SUM.with_missing(NOT_ASKED), ("CDRSUM",)),
        "gds": (GDS.with_missing(88, 99, NOT_ASKED), ("NACCGDS",)),
        "alzheimer": (_coded({0.0: "no", 1.0: "yes"}, 8.0, 9.0), ("NACCALZD",)),
        "alzheimer_part": (
            _coded({1.0: "primary", 2.0: "contributing", 3.0: "non-contributing"}, 7.0, 8.0, 9.0),
            ("NACCALZP",),
        ),
        "primary_cause": (Quantity(1, 87, 1, frozenset({88.0, 99.0, NOT_ASKED})), ("NACCETPR",)),
        "age": (Quantity(15, 120, missing=frozenset({888.0, 999.0, NOT_ASKED})), ("NACCAGE",)),
        "educ_years": (EDUCATION_YEARS.with_missing(99, NOT_ASKED), ("EDUC",)),
        "sex": (_sex, ("SEX",)),
        "sex_uds4": (_sex, ("NACCSEX",)),
        "handedness": (_coded(HANDEDNESS, 9.0), ("HANDED",)),
        "birth_year": (
            Quantity(1875, datetime.date.today().year - 15, 1, frozenset({8888.0, 9999.0, NOT_ASKED})),
            ("BIRTHYR",),
        ),
        "birth_month": (Quantity(1, 12, 1, frozenset({88.0, 99.0, NOT_ASKED})), ("BIRTHMO",)),
        "apoe_genotype": (_coded(APOE_GENOTYPE, 9.0), ("NACCAPOE",)),
        "apoe4_count": (Quantity(0, 2, 1, frozenset({9.0, NOT_ASKED})), ("NACCNE4S",)),
        **{name: (_present, (column,)) for column, name in HISTORY.items()},
    }
    if crosswalk:
        fields["craft_immediate"] = (memory, ("CRAFTURS",))
        fields["craft_delayed"] = (memory, ("CRAFTDRE",))
    return fields


# -------------------------------------------------------------------------------------------------------------- tables


def _choose_table(root: Path, found: Mapping[str, set[str]], fitting: Sequence[str], what: str) -> str | None:
    """The table to read among those whose header fits; None when there is none.

    Released freezes go before custom requests, and those before files of other names; the newest first. Of one freeze
    the plain investigator file is taken: the others hold the same columns and more.

    Raises
    ------
    InputError
        When two equally good files differ.
    """

    def preference(path: str) -> tuple[int, int, int, int]:
        name = PurePosixPath(path).name
        if match := _RELEASED.fullmatch(name):
            merged = int((match["mri"] is not None) != (what == "MRI session"))
            extra = (match["licence"].lower() != "investigator") + 2 * (match["module"] is not None)
            return merged, 0, -int(match["freeze"]), extra
        match = _REQUESTED.fullmatch(name)
        # A file that fits as both tables was put together by somebody: the custodian's own go first.
        merged = int(found[path] >= (UDS_REQUIRED | MRI_REQUIRED))
        if match is not None:
            date = match["date"]
            return merged, 1, -int(date[4:] + date[:4]), 0
        return merged, 2, 0, 0

    if not fitting:
        return None
    best = min(preference(path) for path in fitting)
    equal = sorted(path for path in fitting if preference(path) == best)
    if len(equal) > 1 and len({sha256_file(root / path) for path in equal}) > 1:
        raise InputError(
            "a table is there more than once",
            where=", ".join(equal),
            expected=f"one {what} table of the newest freeze",
            remedy="move the others out of the cohort's folder",
        )
    return equal[0]


def _date_of(year: str, month: str, day: str) -> tuple[datetime.date | None, bool]:
    """A date from three cells, and whether something other than blanks stands there that is no date."""
    y, m, d = parse_whole_id(year), parse_whole_id(month), parse_whole_id(day)
    if y is None or m is None or d is None:
        return None, not (is_blank(year) and is_blank(month) and is_blank(day))
    if not (1980 <= y <= 2200 and 1 <= m <= 12 and 1 <= d <= calendar.monthrange(y, m)[1]):
        return None, True
    return datetime.date(y, m, d), False


def _etiology(values: Mapping[str, Sourced]) -> Sourced | None:
    """Whether a dementia is due to Alzheimer's disease; None when the form does not say."""
    if "alzheimer" in values:
        stated = values["alzheimer"]
        part = values.get("alzheimer_part")
        rule = f"NACCALZD, NACCALZP {part.value}" if part is not None and stated.value == "yes" else "NACCALZD"
        return Sourced("AD" if stated.value == "yes" else "other", stated.file, stated.row, rule)
    if "primary_cause" in values:
        cause = values["primary_cause"]
        return Sourced("AD" if cause.value == 1 else "other", cause.file, cause.row, "NACCETPR")
    return None


@dataclass
class _Person:
    """What the UDS visits say about a person."""

    by_visit: dict[str, dict[str, Sourced]] = field(default_factory=dict)
    sexes: dict[str, Sourced] = field(default_factory=dict)
    emptied: set[str] = field(default_factory=set)
    centre: int | None = None

    def values_of(self, name: str) -> list[Sourced]:
        """All values of a column, one per visit that has it."""
        return [values[name] for values in self.by_visit.values() if name in values]

    def at(self, name: str, visit: str) -> Sourced | None:
        """The value at a visit, or the one that all other visits agree on."""
        if name in self.emptied:
            return None
        own = self.by_visit.get(visit, {}).get(name)
        others = self.values_of(name)
        return own or (others[0] if others and len({sourced.value for sourced in others}) == 1 else None)


class _Clinical:
    """The UDS table as visits and people."""

    def __init__(self, book: Ingest, table: Table) -> None:
        self.book = book
        self.table = table
        self.people: dict[str, _Person] = {}
        table.require(
            id=("NACCID",),
            visit=("NACCVNUM",),
            year=("VISITYR", "VISITDATE"),
            month=("VISITMO", "VISITDATE"),
            day=("VISITDAY", "VISITDATE"),
            diagnosis=("NACCUDSD",),
        )
        dates: dict[tuple[str, str], set[datetime.date]] = {}
        forms: dict[tuple[str, str], tuple[int, str]] = {}

        def key_of(row: Row) -> tuple[str, str] | None:
            number = parse_whole_id(row.get("NACCVNUM"))
            subject = row.get("NACCID").upper()
            return (subject, str(number)) if NACCID.fullmatch(subject) and number is not None else None

        def identify(row: Row) -> tuple[str, str] | None:
            """The row's key; the visit's date, form and centre are noted on the way, so that rows are walked once."""
            key = key_of(row)
            if key is None:
                return None
            if (date := self._visit_date(row, key)) is not None:
                dates.setdefault(key, set()).add(date)
            packet, version = row.get("PACKET"), row.get("FORMVER")
            if packet or version:
                forms[key] = (row.line, f"PACKET {packet or '?'}, FORMVER {version or '?'}")
            person = self.people.setdefault(key[0], _Person())
            centre = parse_whole_id(row.get("NACCADC"))
            person.centre = centre if centre is not None else person.centre
            return key

        for key, values in book.collect(table, identify, uds_fields(book.params.ingest.nacc_crosswalk)).items():
            visit = book.visit(*key)
            own_dates = dates.get(key, set())
            if len(own_dates) == 1:
                visit.date = next(iter(own_dates))
            elif own_dates:
                book.visit_note(
                    QuarantineReason.DUPLICATE_KEY_CONFLICT,
                    *key,
                    Severity.NULL_FIELD,
                    f"{len(own_dates)} rows of one visit differ on its date; emptied",
                    file=table.relative,
                )
            if key in forms:
                line, rule = forms[key]
                visit.provenance["form"] = {"file": table.relative, "row": line, "rule": rule}
            self._fill(visit, values)
        self._check_people()
        self._months()
        for visit in book.visits.values():
            self._describe_person(visit)

    def _visit_date(self, row: Row, key: tuple[str, str]) -> datetime.date | None:
        date, illegal = _date_of(row.get("VISITYR"), row.get("VISITMO"), row.get("VISITDAY"))
        column = "VISITDAY"
        if date is None and not illegal and row.get("VISITDATE"):
            date, problem = row.date("VISITDATE")
            column, illegal = "VISITDATE", problem is not None
        if date is not None and date > datetime.date.today():
            self.book.field_issue(QuarantineReason.DATE_IN_FUTURE, *key, column, row)
            return None
        if illegal:
            self.book.field_issue(QuarantineReason.DATE_UNPARSABLE, *key, column, row)
            for part in ("VISITYR", "VISITMO"):
                if not is_blank(row.get(part)) and parse_whole_id(row.get(part)) is None:
                    self.book.reject(row, QuarantineReason.DATE_UNPARSABLE, part, subject=key[0], code=key[1])
        return date

    def _fill(self, visit: Visit, values: dict[str, Sourced]) -> None:
        """Values of one visit."""
        if "dx" in values and values["dx"].value == OUT_OF_SCOPE:
            visit.notes["out_of_scope"] = values["dx"]
        else:
            visit.set("dx_native", values.get("dx"))
        for name in ("mmse", "moca", "lm_immediate", "lm_delayed", "cdr_global", "cdr_sb", "gds"):
            visit.set(name, values.get(name))
        for column, source_column in (
            ("mmse", "mmse_source"),
            ("cdr_global", "cdr_global_source"),
            ("cdr_sb", "cdr_sb_source"),
            ("lm_delayed", "lm_source"),
            ("lm_immediate", "lm_source"),
        ):
            if visit.values.get(column) is not None:
                visit.values[source_column] = "measured"
        if self.book.params.ingest.nacc_crosswalk:
            _convert_scores(visit, values)
        if visit.values.get("dx_native") == "DEM":
            visit.set("dementia_etiology", _etiology(values))
            visit.values.setdefault("dementia_etiology", "unknown")
        history = {name: values[name].value for name in HISTORY.values() if name in values}
        if history:
            visit.values["history"] = json.dumps(history, sort_keys=True)
        if "age" in values:
            visit.notes["age"] = values["age"]
        person = self.people[visit.subject]
        if "apoe_genotype" in values:  # the genotype is finer; its own count cannot contradict it
            genotype = values["apoe_genotype"]
            count = Sourced(float(genotype.value.count("4")), genotype.file, genotype.row, genotype.rule)
            values = {**values, "apoe4_count": count}
        own = {name: values[name] for name in ("educ_years", *CONSTANT_COLUMNS) if name in values}
        person.by_visit[visit.code] = own
        for name in ("sex", "sex_uds4"):
            if name in values:
                person.sexes.setdefault(values[name].value, values[name])

    def _check_people(self) -> None:
        """Empty what cannot differ between visits and does."""
        for subject, person in self.people.items():
            differing = [
                name for name in CONSTANT_COLUMNS if len({sourced.value for sourced in person.values_of(name)}) > 1
            ]
            if not differing:
                continue
            person.emptied.update(differing)
            last = person.values_of(differing[0])[-1]
            self.book.note(
                QuarantineReason.DUPLICATE_KEY_CONFLICT,
                Level.SUBJECT,
                {"native_subject_id": subject},
                Severity.NULL_FIELD,
                f"visits differ on {', '.join(differing)}; emptied",
                last.file,
                last.row,
            )

    def _months(self) -> None:
        first: dict[str, datetime.date] = {}
        for visit in self.book.visits.values():
            if visit.date is not None:
                first[visit.subject] = min(first.get(visit.subject, visit.date), visit.date)
        for visit in self.book.visits.values():
            if visit.date is not None:
                visit.month = round((visit.date - first[visit.subject]).days / DAYS_PER_YEAR * 12, 1)

    def _describe_person(self, visit: Visit) -> None:
        """Person-level columns of a visit."""
        person = self.people[visit.subject]
        if len(person.sexes) == 1:
            visit.set("sex", next(iter(person.sexes.values())))
        for name in ("educ_years", "handedness", "apoe_genotype", "apoe4_count"):
            visit.set(name, person.at(name, visit.code))
        age, precision, rule, source = self.age_at(visit.date, visit, 0)
        if age is not None and source is not None and 15 <= age <= 110:
            visit.values.update(age_years=age, age_precision=precision)
            visit.provenance["age_years"] = {**source.as_json(), "rule": rule}

    def age_at(
        self, date: datetime.date | None, visit: Visit, delta: int
    ) -> tuple[float | None, str, str, Sourced | None]:
        """Age (years) on a day, its precision, the rule and the source."""
        person = self.people.get(visit.subject, _Person())
        year, month = person.at("birth_year", visit.code), person.at("birth_month", visit.code)
        if date is not None and year is not None:
            born = datetime.date(int(year.value), int(month.value) if month is not None else 7, 15)
            precision = "month" if month is not None else "year"
            return (date - born).days / DAYS_PER_YEAR, precision, "scan - month of birth", year
        if "age" in visit.notes:
            age = visit.notes["age"]
            return age.value + delta / DAYS_PER_YEAR, "integer", "NACCAGE + (scan - visit)", age
        return None, "", "", None


def _convert_scores(visit: Visit, values: Mapping[str, Sourced]) -> None:
    """Fill missing MMSE and Logical Memory by the crosswalk, flagged; a measured score is never replaced."""
    if visit.values.get("mmse") is None and "moca" in values:
        moca = values["moca"]
        visit.set("mmse", Sourced(mmse_of_moca(moca.value), moca.file, moca.row, f"{moca.rule}, crosswalk"))
        if visit.values.get("mmse") is not None:
            visit.values["mmse_source"] = "crosswalk"
    # One column says where both scores come from: a measured one beside a converted one would be mislabelled.
    if visit.values.get("lm_immediate") is None and visit.values.get("lm_delayed") is None:
        for column, name, convert in (
            ("lm_immediate", "craft_immediate", lm_immediate_of_craft),
            ("lm_delayed", "craft_delayed", lm_delayed_of_craft),
        ):
            if name in values:
                story = values[name]
                visit.set(column, Sourced(convert(story.value), story.file, story.row, f"{story.rule}, crosswalk"))
                visit.values["lm_source"] = "crosswalk"


# ------------------------------------------------------------------------------------------------------------ sessions


@dataclass
class _Session:
    """One MRI session: what holds for all its images."""

    subject: str = ""
    code: str = ""
    row: Row | None = None
    date: datetime.date | None = None
    visit: Visit | None = None
    delta: int | None = None
    method: str = "date_nearest"
    refusal: tuple[QuarantineReason, str] | None = None
    remarks: list[tuple[QuarantineReason, str, str | None, int | None]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    age: tuple[float | None, str, str, Sourced | None] = (None, "", "", None)

    @property
    def where(self) -> tuple[str | None, int | None]:
        """File and line of the session's row."""
        return (None, None) if self.row is None else (self.row.table.relative, self.row.line)

    def refuse(self, reason: QuarantineReason, detail: str) -> _Session:
        self.refusal = (reason, detail)
        return self


class _Reader:
    """Reads one data freeze."""

    def __init__(self, root: Path, params: Params, workers: int) -> None:
        self.root = root
        self.book = Ingest("NACC", root, params, workers)
        found = headers(root, self.book.files)
        uds_path = _choose_table(root, found, [p for p, keys in found.items() if keys >= UDS_REQUIRED], "UDS")
        if uds_path is None:
            raise self._missing(found, UDS_REQUIRED, "UDS")
        mri_path = _choose_table(root, found, [p for p, keys in found.items() if keys >= MRI_REQUIRED], "MRI session")
        self.has_mri_table = mri_path is not None
        self.missing_mri_table = self._missing(found, MRI_REQUIRED, "MRI session")
        scan_paths = sorted(path for path, keys in found.items() if keys >= SCAN_REQUIRED)
        freeze = _RELEASED.fullmatch(PurePosixPath(uds_path).name)
        self.release = f"freeze {freeze['freeze']}" if freeze else PurePosixPath(uds_path).stem
        uds = self.book.read(uds_path, "visits", columns=UDS_COLUMNS)
        self.clinical = _Clinical(self.book, uds)
        self.rows: dict[str, list[Row]] = {}
        if mri_path is not None:
            self._read_mri(self.book.read(mri_path, "MRI sessions", columns=MRI_COLUMNS))
        self.scan_rows: dict[str, list[Row]] = {}
        for path in scan_paths:
            for row in self.book.read(path, "SCAN images", columns=SCAN_COLUMNS).rows():
                image = re.fullmatch(r"I?0*(\d+)(?:\.0+)?", row.get("LONIIMAGE"), re.IGNORECASE)
                if image is not None:
                    self.scan_rows.setdefault(f"I{image[1]}", []).append(row)
        self.sessions: dict[str, _Session] = {}
        self.visits = {
            subject: [visit for visit in group if visit.date is not None]
            for subject, group in self.book.visits_of().items()
        }

    def _missing(self, found: Mapping[str, set[str]], required: frozenset[str], what: str) -> MissingTable:
        return MissingTable(
            "a clinical table is missing",
            where=self.root,
            found=describe_tables(found),
            expected=f"the {what} table, with the columns {', '.join(sorted(required)).upper()}",
            remedy="put the table of the data freeze (such as investigator_nacc71.csv) anywhere below this folder",
        )

    def _read_mri(self, table: Table) -> None:
        """Rows of the MRI table by session."""
        for row in table.rows():
            subject = row.get("NACCID").upper()
            if not NACCID.fullmatch(subject):
                self.book.row_without_id(row)
                continue
            locator = normalize_locator(row.get("NACCMRFI"))
            if is_blank(locator) or parse_float(locator) is not None:
                if parse_float(row.get("NACCMRSA")) != 0:
                    number = row.get("NACCMNUM") or "?"
                    self._without_file(f"{subject}/MR{number}", "the MRI table gives no locator (NACCMRFI)", row)
                continue
            self.rows.setdefault(locator, []).append(row)

    def _without_file(self, key: str, detail: str, row: Row) -> None:
        self.book.note(
            QuarantineReason.IMAGE_WITHOUT_FILE,
            Level.IMAGE,
            {"native_image_key": key},
            Severity.WARN,
            detail,
            row.table.relative,
            row.line,
        )

    # -- one session

    def session(self, item: SessionFile) -> _Session:
        """The session of a file; worked out once."""
        if item.locator not in self.sessions:
            session = self._scan_session(item) if item.scan is not None else self._table_session(item.locator)
            if session.refusal is None:
                self._match(session)
            self.sessions[item.locator] = session
        return self.sessions[item.locator]

    def _table_session(self, locator: str) -> _Session:
        rows = self.rows.get(locator, [])
        if not rows:
            return _Session().refuse(QuarantineReason.FILE_WITHOUT_RECORD, "no row of the MRI table has this session")
        row = rows[-1]
        session = _Session(row.get("NACCID").upper(), row=row)
        same = (("NACCID",), ("MRIYR",), ("MRIMO",), ("MRIDY", "MRIDAY"), ("NACCMNUM",))
        if len({tuple(other.get(*names) for names in same) for other in rows}) > 1:
            return session.refuse(
                QuarantineReason.DUPLICATE_KEY_CONFLICT, "several differing rows of the MRI table have this session"
            )
        if len(rows) > 1:
            columns = [str(column) for column in row.table.frame.columns]
            places = [n for n in range(len(columns)) if len({other.cells[n] for other in rows}) > 1]
            cells = tuple("" if n in places else cell for n, cell in enumerate(row.cells))
            session.row = Row(row.table, row.line, cells)
            differing = [columns[n] for n in places]
            reason = QuarantineReason.DUPLICATE_KEY_CONFLICT if differing else QuarantineReason.DUPLICATE_KEY_IDENTICAL
            detail = f"{len(rows)} rows of the session differ in {', '.join(differing)}; emptied" if differing else (
                f"{len(rows)} equal rows of the session; one was kept")  # fmt: skip
            session.remarks.append((reason, detail, row.table.relative, row.line))
        named = re.match(r"NACC\d{6}(?=_)", locator, re.IGNORECASE)
        if named is not None and named[0].upper() != session.subject:
            return session.refuse(
                QuarantineReason.AMBIGUOUS_FILE, "the file is named for another participant than its row"
            )
        number = parse_whole_id(row.get("NACCMNUM"))
        session.code = str(number) if number is not None and number not in (0, 88) else locator
        self._date_session(session)
        return session

    def _date_session(self, session: _Session) -> None:
        """The scan's date, from its own columns or from the custodian's distance to a visit."""
        row = session.row
        assert row is not None
        cells = row.get("MRIYR"), row.get("MRIMO"), row.get("MRIDY", "MRIDAY")
        session.date, _ = _date_of(*cells)
        if session.date is not None:
            return
        session.remarks.append(
            (QuarantineReason.DATE_UNPARSABLE, "MRIYR, MRIMO and MRIDY give no date", *session.where)
        )
        stated, days = self._stated_visit(session)
        if stated is None or days is None:
            return
        if stated.date is not None:
            year, month = parse_whole_id(cells[0]), parse_whole_id(cells[1])
            for signed in (days, -days):
                date = stated.date + datetime.timedelta(days=signed)
                fits_year = year is None or not 1980 <= year <= 2200 or year == date.year
                fits_month = month is None or not 1 <= month <= 12 or month == date.month
                if fits_year and fits_month:
                    session.date = date
                    session.provenance["scan_date"] = {
                        "file": row.table.relative,
                        "row": row.line,
                        "rule": "visit NACCVNUM + NACCMRDY",
                    }
                    return
        elif abs(days) <= self.book.window_days:
            session.visit, session.delta, session.method = stated, days, "exact_label"

    def _stated_visit(self, session: _Session) -> tuple[Visit | None, int | None]:
        """The visit and the distance in days that the MRI table names."""
        assert session.row is not None
        number = parse_whole_id(session.row.get("NACCVNUM"))
        days = parse_float(session.row.get("NACCMRDY"))
        visit = self.book.visits.get((session.subject, str(number))) if number is not None else None
        return visit, round(days) if days is not None and abs(days) < NO_CLOSE_VISIT else None

    def _scan_session(self, item: SessionFile) -> _Session:
        """The session of a SCAN image: from the SCAN quality table, else from the file's own name and headers."""
        scan = item.scan
        assert scan is not None
        rows = self.scan_rows.get(scan.image, [])
        session = _Session(scan.subject, row=rows[0] if rows else None)
        if {row.get("NACCID").upper() for row in rows} - {scan.subject}:
            return session.refuse(
                QuarantineReason.AMBIGUOUS_FILE, "the SCAN table gives the image to another participant"
            )
        stated_dates = [row.date("STUDYDATE")[0] or _any_date(row.get("STUDYDATE")) for row in rows]
        dates = {date for date in stated_dates if date is not None}
        if len(dates) > 1:
            return session.refuse(QuarantineReason.DUPLICATE_KEY_CONFLICT, "rows of the SCAN table differ on the date")
        session.date = next(iter(dates)) if dates else scan.date
        if session.date is None:
            sidecar = item.sidecar or {}
            stated = (sidecar.get(name) for name in ("AcquisitionDateTime", "AcquisitionDate", "StudyDate"))
            session.date = next((date for cell in stated if (date := _any_date(str(cell or ""))) is not None), None)
        if session.date is None:
            return session.refuse(
                QuarantineReason.FILE_WITHOUT_RECORD, "neither a SCAN table nor the image's headers give its date"
            )
        session.code = f"SCAN{session.date:%Y%m%d}"  # replaced by a number when all sessions are known
        return session

    def _match(self, session: _Session) -> None:
        """Find the visit of a session, and all that the tables say about the person at the scan."""
        book = self.book
        if session.date is not None and session.date > datetime.date.today():
            session.refuse(QuarantineReason.DATE_IN_FUTURE, "the MRI is dated in the future")
            return
        person = self.clinical.people.get(session.subject, _Person())
        centre = person.centre
        if centre is None and session.row is not None:
            centre = parse_whole_id(session.row.get("NACCADC"))
        if centre is not None and centre in book.params.ingest.exclude_nacc_adc:
            session.refuse(
                QuarantineReason.CROSS_COHORT_DUPLICATE,
                f"centre {centre} is excluded (ingest.exclude_nacc_adc): its participants may be in another cohort too",
            )
            return
        own = self.visits.get(session.subject, [])
        if session.date is not None:
            days = [visit.date.toordinal() for visit in own if visit.date is not None]
            match = match_visit(session.date.toordinal(), days, book.window_days)
            if match is not None:
                session.visit, session.delta = own[match[0]], match[1]
        if session.visit is None:
            session.refuse(
                QuarantineReason.NO_VISIT_IN_WINDOW, f"no UDS visit within {book.window_days} days of the scan"
            )
            return
        if session.method == "date_nearest" and session.row is not None and "scan_date" not in session.provenance:
            self._compare_with_custodian(session)
        if len(person.sexes) > 1:
            session.refuse(QuarantineReason.SEX_CONFLICT, "UDS visits differ on sex")
            return
        if not person.sexes:
            session.refuse(QuarantineReason.SEX_MISSING, "no UDS row gives the participant's sex")
            return
        session.age = self.clinical.age_at(session.date, session.visit, session.delta or 0)
        year = person.at("birth_year", session.visit.code)
        if book.form == "table1_emulation" and session.date is not None and year is not None:
            session.age = session.date.year - year.value, "year", "scan year - year of birth", year
        self._remark(session)
        self._read_row(session)

    def _compare_with_custodian(self, session: _Session) -> None:
        """Compare the visit nearest by date with the one that the MRI table names; our own is kept."""
        assert session.row is not None
        assert session.visit is not None
        stated, days = self._stated_visit(session)
        number = parse_whole_id(session.row.get("NACCVNUM"))
        if number is None:
            return
        agrees = str(number) == session.visit.code
        if not agrees and stated is not None and stated.date is not None and session.date is not None:
            agrees = abs((session.date - stated.date).days) == abs(session.delta or 0)  # two equally near visits
        elif agrees and days is not None and session.delta is not None:
            agrees = abs(abs(days) - abs(session.delta)) <= 1
        session.provenance["match"] = {
            "file": session.row.table.relative,
            "row": session.row.line,
            "rule": f"nearest visit by date; NACCVNUM and NACCMRDY {'agree' if agrees else 'differ'}",
        }
        if not agrees:
            session.remarks.append(
                (
                    QuarantineReason.VISCODE_UNKNOWN,
                    f"NACCVNUM {number} and NACCMRDY do not fit the visit nearest by date ({session.visit.code}), "
                    "which is kept",
                    *session.where,
                )
            )

    def _remark(self, session: _Session) -> None:
        visit, row = session.visit, session.row
        assert visit is not None
        if session.age[0] is None and row is not None:
            value = parse_float(row.get("NACCMRIA"))
            if value is not None and 15 <= value <= 120:
                source = Sourced(value, row.table.relative, row.line, "NACCMRIA")
                session.age = value, "integer", "NACCMRIA", source
        stated = parse_float(row.get("NACCMRIA")) if row is not None else None
        age = session.age[0]
        if (
            age is not None
            and stated is not None
            and 0 <= stated < 150
            and abs(stated + 0.5 - age) > AGE_TOLERANCE_YEARS
        ):
            session.remarks.append(
                (
                    QuarantineReason.AGE_INCONSISTENT,
                    f"NACCMRIA differs by more than {AGE_TOLERANCE_YEARS:g} years from the age by date of birth",
                    *session.where,
                )
            )
        if "out_of_scope" in visit.notes:
            source = visit.notes["out_of_scope"]
            session.remarks.append(
                (
                    QuarantineReason.DIAGNOSIS_OUT_OF_SCOPE,
                    "NACCUDSD is not in the code book; no label",
                    source.file,
                    source.row,
                )
            )
        elif visit.values.get("dx_native") is None:
            session.remarks.append((QuarantineReason.NO_DIAGNOSIS, "no diagnosis at the matched visit", None, None))

    def _read_row(self, session: _Session) -> None:
        """Volumes and scanner of the session's row."""
        row, visit = session.row, session.visit
        if row is None or visit is None:
            return
        for column, (name, low, high) in VOLUMES.items():
            volume = self.book.value(
                row, session.subject, visit.code, partial(parse_volume, low=low, high=high), column
            )
            if volume is not None:
                session.values[name] = volume.value
                session.provenance[name] = {**volume.as_json(), "rule": f"{column} x 1000"}
                session.values["volume_source"] = "NACC-MRI"
        for column, name, codes in (
            ("MRIFIELD", "field_strength_t", FIELD_STRENGTH),
            ("MRIMANU", "manufacturer", MANUFACTURER),
        ):
            code = self.book.value(
                row, session.subject, visit.code, partial(parse_code, meanings=codes, missing=CODE_UNKNOWN), column
            )
            if code is not None:
                session.values[name] = float(code.value) if name == "field_strength_t" else code.value
                session.provenance[name] = code.as_json()

    # -- images

    def add(
        self, items: Sequence[SessionFile], keys: Mapping[int, str], unpacked: set[tuple[str, str]]
    ) -> list[FoundImage]:
        """Give image files their place in the tables, or the reason against them."""
        return [self._image(item, keys[id(item)], unpacked) for item in items]

    def _image(self, item: SessionFile, key: str, unpacked: set[tuple[str, str]]) -> FoundImage:
        book = self.book
        image = FoundImage(key, item.file)
        book.images.append(image)
        session = self.session(item)
        image.subject, image.session = session.subject, session.code
        if session.refusal is not None and session.refusal[0] in (
            QuarantineReason.FILE_WITHOUT_RECORD,
            QuarantineReason.DUPLICATE_KEY_CONFLICT,
            QuarantineReason.AMBIGUOUS_FILE,
        ):
            book.drop(image, *session.refusal, *session.where)
        if item.problem is not None:
            book.drop(image, QuarantineReason.IMAGE_UNREADABLE, item.problem)
        if item.archive is not None and (item.locator, item.inner) in unpacked:
            book.drop(image, QuarantineReason.DUPLICATE_KEY_IDENTICAL, "the archive's content also lies unpacked")
        if item.name.lower().split(".nii")[0].endswith("_eq_1"):
            book.drop(
                image, QuarantineReason.KNOWN_BAD_CONVERSION, "the converter marked unequal slice distances (_Eq_1)"
            )
        sidecar = self._headers_of(item, session)
        described = str(sidecar.get("SeriesDescription") or sidecar.get("ProtocolName") or item.name)
        image.series_description = described
        if not self._may_be_t1(item, described, sidecar):
            book.drop(image, QuarantineReason.NOT_T1, "the series is no T1-weighted volume")
        if session.refusal is not None:
            book.drop(image, *session.refusal, *session.where)
        if image.dropped:
            return image
        visit = session.visit
        assert visit is not None
        image.scan_date = session.date
        book.attach(image, visit, session.method, session.delta)
        visit.notes["matched"] = True
        person = self.clinical.people[session.subject]
        book.set_person(image, "sex", next(iter(person.sexes.values())))
        for column in ("educ_years", "handedness", "apoe_genotype", "apoe4_count"):
            book.set_person(image, column, person.at(column, visit.code))
        age, precision, rule, source = session.age
        book.set_age(image, age, precision, rule, source.file if source else None, source.row if source else None)
        for reason, detail, file, row in session.remarks:
            book.remark(image, reason, detail, source_file=file, source_row=row)
        image.values.update(session.values)
        image.provenance.update(session.provenance)
        strength = parse_float(str(sidecar.get("MagneticFieldStrength", "")))
        if strength:
            image.values["field_strength_t"] = tesla(strength)
        if sidecar.get("Manufacturer"):
            image.values["manufacturer"] = str(sidecar["Manufacturer"])
        if sidecar.get("ManufacturersModelName"):
            image.values["scanner_model"] = str(sidecar["ManufacturersModelName"])
        image.values["release"] = self.release
        image.rank = pick_rank(described, sidecar)
        return image

    def _may_be_t1(self, item: SessionFile, described: str, sidecar: Mapping[str, Any]) -> bool:
        if self.book.form == "table1_emulation":
            return True  # the published table asked nothing
        if item.scan is not None and not names_t1(item.scan.series):
            return False
        if not sidecar and not self.book.images_read:
            return names_t1(described)  # only the name can tell what an unread image without a sidecar is
        return is_t1(described, sidecar) is not False

    def _headers_of(self, item: SessionFile, session: _Session) -> dict[str, Any]:
        """What is known about the series: its sidecar or DICOM headers, and the SCAN table for SCAN images."""
        values = dict(item.sidecar or {})
        if item.scan is None:
            return values
        stated = {"SeriesDescription": item.scan.series}
        if session.row is not None:
            row = session.row
            for name, column in (
                ("SeriesDescription", "SERIESDESCRIPTION"),
                ("MRAcquisitionType", "ACQUISITIONTYPE"),
                ("SliceThickness", "SLICETHICKNESS"),
                ("AcquisitionTime", "SERIESTIME"),
                ("MagneticFieldStrength", "MAGNETICFIELDSTRENGTH"),
                ("Manufacturer", "SCANNERMANUFACTURER"),
                ("ManufacturersModelName", "SCANNERMODEL"),
            ):
                if not is_blank(row.get(column)):
                    stated[name] = row.get(column)
        return {**stated, **values}

    def read_images(self) -> None:
        """Find, place and check all image files."""
        book = self.book
        locators = Locators(self.rows)
        files, unread = find_session_files(self.root, book.files, locators)
        remark_on(book, unread)
        if not self.has_mri_table and any(item.scan is None for item in files):
            raise self.missing_mri_table
        on_disk = {item.locator for item in files}
        for locator, rows in self.rows.items():
            if locator not in on_disk and parse_float(rows[0].get("NACCMRSA")) != 0:
                self._without_file(locator, "the MRI table names a session that is not on disk", rows[0])
        keys = keys_of(files)
        unpacked = {(item.locator, item.inner) for item in files if item.archive is None}
        self.add([item for item in files if not item.dicom], keys, unpacked)
        book.inspect()
        self._read_dicom(files, unpacked)
        self._number_scan_sessions()
        for image in book.images:
            if image.dropped:
                continue
            later, thickness, time, number = image.rank
            if (
                thickness == UNKNOWN_THICKNESS_MM and image.facts is not None
            ):  # nothing states the slice thickness: the voxels do
                thickness = round(max(image.facts.zooms), 3)
            image.rank = (later, thickness, time, number)
            image.order = (image.scan_date or datetime.date.max, *image.rank)

    def _read_dicom(self, files: Sequence[SessionFile], unpacked: set[tuple[str, str]]) -> None:
        """Sessions whose NIfTI form gave no image are read from their DICOM form; the two are never both read."""
        book = self.book
        accepted: dict[str, FoundImage] = {}
        spoilt: set[str] = set()
        for image in book.images:
            locator = image.key.split("/", 1)[0]
            if not image.dropped:
                accepted.setdefault(locator, image)
            elif image.refusal is not None and image.refusal[0] not in _REASONS_OF_THE_FILE:
                spoilt.add(locator)
        todo = []
        for item in files:
            if not item.dicom:
                continue
            if item.locator in accepted:
                accepted[item.locator].provenance["other_form"] = {
                    "file": item.archive or item.file.source_path,
                    "row": None,
                    "rule": "the same session as DICOM, not read",
                }
            elif item.locator not in spoilt:
                todo.append(item)
        series = split_series(self.root, todo, book.workers)
        self.add(series, keys_of(series), unpacked)
        book.inspect()

    def _number_scan_sessions(self) -> None:
        """SCAN sessions of a person become SCAN01, SCAN02 ... in the order of their dates."""
        dates: dict[str, set[datetime.date]] = {}
        for session in self.sessions.values():
            if session.code.startswith("SCAN") and session.date is not None:
                dates.setdefault(session.subject, set()).add(session.date)
        numbers = {
            (subject, f"SCAN{date:%Y%m%d}"): f"SCAN{number:02d}"
            for subject, days in dates.items()
            for number, date in enumerate(sorted(days), start=1)
        }
        for image in self.book.images:
            image.session = numbers.get((image.subject, image.session), image.session)

    def warn_of_implausible_labels(self) -> None:
        """Remark on visits with an image whose diagnosis and CDR hardly go together; the diagnosis is kept."""
        for visit in self.book.visits.values():
            rating, label = visit.values.get("cdr_global"), visit.values.get("dx_native")
            implausible = rating is not None and ((label == "NC" and rating >= 1) or (label == "DEM" and rating == 0))
            if implausible and visit.notes.get("matched"):
                self.book.visit_note(
                    QuarantineReason.DIAGNOSIS_CONFLICT,
                    visit.subject,
                    visit.code,
                    Severity.WARN,
                    "the diagnosis is implausible beside the CDR; it is kept",
                    file=self.clinical.table.relative,
                    line=visit.provenance.get("dx_native", {}).get("row"),
                )


def _any_date(cell: str) -> datetime.date | None:
    """A date as tables, JSON files and DICOM headers write it."""
    if match := re.fullmatch(r"(\d{4})(\d{2})(\d{2})", cell.strip()):
        cell = f"{match[1]}-{match[2]}-{match[3]}"
    date, problem = parse_date(cell)
    if problem is QuarantineReason.DATE_IN_FUTURE:
        return datetime.date.max
    return date


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read a NACC data freeze with its MRI sessions.

    Tables without images give visits only: sessions that the MRI table names are remarked on.

    Raises
    ------
    MissingTable
        When there is no UDS table, or there are images of sessions and no MRI table.
    InputError
        When two different tables could equally be meant, or there is neither an image nor a usable row.
    """
    reader = _Reader(root, params, workers)
    book = reader.book
    reader.read_images()
    if not book.images and not book.visits:
        raise no_images(root, "NACC", "session archives such as mri1234ni.zip or their folders, and UDS rows")
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    reader.warn_of_implausible_labels()
    book.select()
    return book.finish()
