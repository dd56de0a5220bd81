"""OASIS-1, OASIS-2 and OASIS-3, alone or together below one folder.

OASIS-1: Analyze files whose headers carry no orientation (the dataset's fixed one is used), several repeats, their
average, and atlas-space derivatives per session; flat folders of derived NIfTI files are read too. OASIS-2: NIfTI
pairs with a double extension, one per repeat. OASIS-3: NIfTI files named by day of the study; clinical forms or the
older XNAT exports.

The label is the global CDR at the session: 0 is no dementia, 0.5 and more is dementia; a blank CDR stays without a
label (the young participants of OASIS-1). OASIS-3 uses the diagnosis form where there is one. ``Group`` of OASIS-2
describes the person, never a session.

The tables of OASIS-1 and OASIS-2 are read by :mod:`medalign3d.cohorts.oasis_tables`; where they lack a session of
OASIS-1, the summary inside its folder stands in. Sessions of both that are the same visit are listed as ``links``.

Not supported: OASIS-3 freesurfer outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.base import (
    AGE_HIGH,
    AGE_LOW,
    DAYS_PER_YEAR,
    FoundImage,
    Ingest,
    IngestResult,
    QuarantineReason,
    Severity,
    Sourced,
    Visit,
    match_visit,
    no_images,
)
from medalign3d.cohorts.images import ImageFile, tesla
from medalign3d.cohorts.listing import LISTING_NAME
from medalign3d.cohorts.oasis_links import link_sessions
from medalign3d.cohorts.oasis_tables import NAMES, SessionTable, fields_of, find_session_tables, read_summaries
from medalign3d.cohorts.packed import is_nifti, nifti_files, remark_on
from medalign3d.cohorts.tables import Row, Table, describe_tables, headers
from medalign3d.cohorts.values import (
    CDR_BOX,
    CDR_GLOBAL,
    CDR_SUM,
    EDUCATION_YEARS,
    LOGICAL_MEMORY,
    MMSE,
    SES,
    Quantity,
    is_blank,
    parse_float,
    parse_handedness,
    parse_sex,
)
from medalign3d.errors import MissingTable
from medalign3d.params import Params

SESSION_1 = re.compile(r"OAS1_(\d{4})_MR(\d+)", re.IGNORECASE)
SESSION_2 = re.compile(r"OAS2_(\d{4})_MR(\d+)", re.IGNORECASE)
SESSION_3 = re.compile(r"(?<![A-Z0-9])(OAS3\d{4})_(?:MR_|sess?-)?(d\d{4,5})(?!\d)", re.IGNORECASE | re.ASCII)
SUBJECT_3 = re.compile(r"(?<![A-Z0-9])OAS3\d{4}(?!\d)", re.IGNORECASE | re.ASCII)
DAY_3 = re.compile(r"_d(\d{3,5})(?!\d)", re.IGNORECASE | re.ASCII)
FORMS_DAYS = 92  # the forms of one examination may lie some days apart
LAST_DAY = 20000  # days from entry: fifty years
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
FIELD_STRENGTH_T = 1.5  # OASIS-1 and OASIS-2: one Siemens Vision scanner
MISSING = frozenset({-4.0, 99.0, 999.0})
#: First diagnosis in words -> class; all other words (`uncertain dementia`, `0.5 in memory only`) name none.
DX1 = {"cognitively normal": "NC", "ad dementia": "AD_DEM"}
MCI_FLAGS = ("MCIAMEM", "MCIAPLUS", "MCINON1", "MCINON2")
#: Flags of the UDS diagnosis form -> class; a form says one of them.
D1_CLASSES = {"NORMCOG": "NC", **dict.fromkeys(MCI_FLAGS, "MCI"), "DEMENTED": "AD_DEM", "IMPNOMCI": "impaired, not MCI"}


def strip_suffix(name: str) -> str:
    """A file's name without its image extensions, the double one of OASIS-2 included.

    >>> strip_suffix("mpr-1.nifti.img"), strip_suffix("a_t88_gfc.hdr"), strip_suffix("b_T1w.nii.gz")
    ('mpr-1', 'a_t88_gfc', 'b_T1w')
    """
    return re.sub(r"(?:\.nifti)?\.(?:nii|hdr|img)(?:\.gz)?$", "", name, flags=re.IGNORECASE)


@dataclass(frozen=True)
class Kind:
    """What a file of OASIS-1 is: variant, place in the order of preference, orientation rule of its Analyze header."""

    variant: str
    rank: int
    orientation_rule: str = "header"


def kind_of_oasis1(path: str) -> Kind | None:
    """Classify a file of OASIS-1 by its name; None for segmentations and other files that are no T1-weighted image.

    >>> kind_of_oasis1("OAS1_0001_MR1_mpr-2_anon.hdr").variant
    'raw'
    >>> kind_of_oasis1("OAS1_0001_MR1_mpr_n4_anon_sbj_111.img").variant
    'averaged'
    >>> kind_of_oasis1("OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc_fseg.img") is None
    True
    """
    stem = strip_suffix(PurePosixPath(path).name).lower()
    folder = path.lower()
    if (
        "fseg" in stem
        or re.fullmatch(r"seg\d+.*", stem)
        or "_seg" in stem
        or "/fsl_seg/" in folder
        or stem.endswith("mask")
    ):
        return None
    if re.search(r"mpr_n\d+_anon_sbj_111$", stem):
        return Kind("averaged", 0, "sagittal")
    if re.search(r"mpr-\d+_anon$", stem):
        return Kind("raw", 1, "sagittal")
    if "t88" in stem:
        return Kind("derived", 4 if "masked" in stem else 3, "talairach")
    order = {"orig": 3, "norm": 4, "aligned_orig": 5, "aligned_norm": 6}
    return Kind("derived", order.get(stem, 2))


def pair_up(files: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Image files, the two of a pair together: (path of the header or single file, its files)."""
    pairs: dict[str, list[str]] = {}
    singles: list[tuple[str, tuple[str, ...]]] = []
    for path in files:
        lower = path.lower()
        if lower.endswith((".nii", ".nii.gz")):
            singles.append((path, (path,)))
        elif lower.endswith(IMAGE_SUFFIXES):
            base = re.sub(r"\.(?:hdr|img)(?:\.gz)?$", "", path, flags=re.IGNORECASE)
            pairs.setdefault(base, []).append(path)
    both = [(sorted(members)[0], tuple(sorted(members))) for members in pairs.values()]
    return sorted([*singles, *both])


def _image_file(root: Path, path: str, files: tuple[str, ...], orientation_rule: str) -> ImageFile:
    """Format of an image, by the signature of its header for pairs."""
    if path.lower().endswith((".nii", ".nii.gz")):
        return ImageFile(path, "nifti", files)
    try:
        with (root / path).open("rb") as stream:
            signature = stream.read(348)[344:347]
    except OSError:  # not at hand: OASIS-2 says the format in the name
        signature = b"ni1" if ".nifti." in path.lower() else b""
    if signature in (b"ni1", b"n+1"):
        return ImageFile(path, "nifti_pair", files)
    return ImageFile(path, "analyze", files, orientation_rule)


def _scores(visit: Visit) -> None:
    for column, source in (
        ("mmse", "mmse_source"),
        ("cdr_global", "cdr_global_source"),
        ("cdr_sb", "cdr_sb_source"),
        ("lm_delayed", "lm_source"),
        ("lm_immediate", "lm_source"),
    ):
        if visit.values.get(column) is not None:
            visit.values[source] = "measured"


def _label_from_cdr(visit: Visit) -> None:
    """``DEM`` or ``Non-DEM`` from the global CDR of this very visit."""
    cdr = visit.values.get("cdr_global")
    if cdr is not None and visit.values.get("dx_native") is None:
        visit.values["dx_native"] = "DEM" if cdr >= 0.5 else "Non-DEM"
        visit.provenance["dx_native"] = {**visit.provenance["cdr_global"], "rule": "global CDR 0 | at least 0.5"}


def _volumes(visit: Visit, values: dict[str, Sourced]) -> None:
    if "etiv" in values:
        source = values["etiv"]
        visit.set("icv_mm3", Sourced(source.value * 1000, source.file, source.row, "eTIV x 1000"))
        if "nwbv" in values:
            visit.set(
                "brain_mm3",
                Sourced(
                    round(values["nwbv"].value * source.value * 1000, 1), source.file, source.row, "nWBV x eTIV x 1000"
                ),
            )
        visit.values["volume_source"] = "OASIS"


class _Sessions:
    """OASIS-1 or OASIS-2: one table row per MR session."""

    def __init__(self, book: Ingest, study: int, tables: Iterable[SessionTable]) -> None:
        self.book = book
        self.longitudinal = study == 2
        self.rows: dict[tuple[str, str], dict[str, Sourced]] = {}
        for table in tables:
            self.add(table)

    def add(self, source: SessionTable) -> None:
        """Take the sessions of a table over as visits."""
        rows = self.book.collect(
            source.table,
            lambda row: source.sessions[row.line],
            fields_of(source.study, _hand),
            lines=frozenset(source.sessions),
        )
        for (subject, code), values in rows.items():
            self.rows[(subject, code)] = values
            visit = self.book.visit(subject, code)
            for name in ("mmse", "cdr_global", "sex", "ses"):
                visit.set(name, values.get(name))
            visit.set("handedness", values.get("hand"))
            visit.set("educ_years" if self.longitudinal else "educ_code", values.get("educ"))
            visit.set("dx_subject_level", values.get("group"))
            age = values.get("age")
            if age is not None and AGE_LOW <= age.value <= AGE_HIGH:
                visit.set("age_years", age)
                visit.values["age_precision"] = "integer"
            _label_from_cdr(visit)
            _volumes(visit, values)
            _scores(visit)
            delay = values.get("delay")
            if code == "MR1" and not self.longitudinal:
                delay = None  # only re-scans of OASIS-1 have one
            visit.day = int(delay.value) if delay else 0 if code == "MR1" else None
            visit.month = None if visit.day is None else round(visit.day / DAYS_PER_YEAR * 12, 1)

    def place(self, item: FoundImage, subject: str, code: str) -> bool:
        """Attach an image to its session's row; drop it when there is none."""
        item.subject, item.session = subject, code
        values = self.rows.get((subject, code))
        if values is None:
            self.book.drop(
                item, QuarantineReason.ID_NOT_IN_CLINICAL, "the demographic table does not have this session"
            )
            return False
        if "sex" not in values:
            self.book.drop(item, QuarantineReason.SEX_MISSING, "the table gives no sex, or codes it by numbers")
            return False
        visit = self.book.visits[(subject, code)]
        self.book.attach(item, visit, "exact_label", 0)
        item.scan_day = visit.day
        self.book.set_person(item, "sex", values["sex"])
        self.book.set_person(item, "handedness", values.get("hand"))
        self.book.set_person(item, "ses", values.get("ses"))
        self.book.set_person(item, "educ_years" if self.longitudinal else "educ_code", values.get("educ"))
        self.book.set_person(item, "dx_subject_level", values.get("group"))
        age = values.get("age")
        self.book.set_age(
            item,
            age.value if age else None,
            "integer",
            "Age",
            age.file if age else values["sex"].file,
            age.row if age else values["sex"].row,
        )
        if visit.values.get("dx_native") is None:
            self.book.remark(
                item,
                QuarantineReason.NO_DIAGNOSIS,
                "the session has no CDR",
                source_file=values["sex"].file,
                source_row=values["sex"].row,
            )
        item.values.update(
            field_strength_t=FIELD_STRENGTH_T,
            release="OASIS-2" if self.longitudinal else "OASIS-1",
            manufacturer="Siemens",
            scanner_model="Vision",
        )
        return True


def _hand(cell: str) -> tuple[str | None, QuarantineReason | None]:
    return parse_handedness(cell)


def _words(cell: str) -> tuple[str | None, QuarantineReason | None]:
    return (None if is_blank(cell) else cell.strip()), None


def _field_strength(cell: str) -> tuple[float | None, QuarantineReason | None]:
    """Field strength in tesla; gauss are converted."""
    if is_blank(cell):
        return None, None
    number = parse_float(cell)
    value = None if number is None else tesla(number)
    return value, QuarantineReason.VALUE_OUT_OF_RANGE if value is None else None


def _strength_in_name(cell: str) -> tuple[float | None, QuarantineReason | None]:
    """Field strength of a scanner's name that ends with it (``TIM Trio 3.0T``); other names say nothing."""
    match = re.search(r"(?<![\d.])(\d(?:\.\d+)?)\s?T?$", cell.strip(), re.IGNORECASE | re.ASCII)
    return (tesla(float(match[1])) if match else None), None


class _Longitudinal3:
    """OASIS-3: persons, clinical visits by day, diagnosis form, cognition form, scanner table."""

    def __init__(self, book: Ingest, tables: dict[str, set[str]]) -> None:
        self.book = book
        self.people: dict[str, dict[str, Sourced]] = {}
        self.scanners: dict[tuple[str, str], dict[str, Sourced]] = {}
        self.disputed: set[tuple[str, str]] = set()
        self.ages: dict[tuple[str, str], Sourced] = {}
        self.has_clinical = False
        for path, keys in sorted(tables.items()):
            name = PurePosixPath(path).name.lower()
            if {"oasisid", "gender"} <= keys:
                self.read_people(book.read(path, "demographics"), ("OASISID",), ("GENDER",), ("EDUC",), ("HAND",))
            elif {"oasisid", "cdrtot"} <= keys:
                self.read_clinical(book.read(path, "CDR and MMSE"), ("OASISID",))
            elif {"oasisid", "normcog"} <= keys:
                self.read_diagnoses(book.read(path, "diagnosis form"))
            elif {"oasisid", "memunits"} <= keys or {"oasisid", "logimem"} <= keys:
                self.read_memory(book.read(path, "cognition form"))
            elif "adrc_adrcclinicaldata_id" in keys or ({"subject", "cdr", "sumbox"} <= keys):
                self.read_clinical(book.read(path, "CDR and MMSE"), ("Subject",))
            elif "subject" in keys and "m_f" in keys and ("education" in keys or "hand" in keys) and "cdr" not in keys:
                self.read_people(book.read(path, "subjects"), ("Subject",), ("M/F",), ("Education",), ("Hand",))
            elif "mr_id" in keys and "subject" in keys and "age" in keys and "cdr" not in keys and "group" not in keys:
                self.read_sessions(book.read(path, "MR sessions"))
            elif "label" in keys and ("magneticfieldstrength" in keys or "mr_json" in name):
                self.read_scanners(book.read(path, "scanners"))
        for visit in list(self.visits()):
            _label_from_cdr(visit)
            _scores(visit)

    def visits(self) -> Iterable[Visit]:
        return (visit for visit in self.book.visits.values() if visit.subject.startswith("OAS3"))

    def _identify(self, columns: tuple[str, ...]) -> Any:
        def identify(row: Row) -> tuple[str, str] | None:
            labels = [row.get(name) for name in ("OASIS_session_label", "ADRC_ADRCCLINICALDATA ID", "label")]
            people = {m.upper() for cell in (row.get(*columns), *labels) for m in SUBJECT_3.findall(cell)}
            day = parse_float(row.get("days_to_visit"))
            if day is None:
                named = {int(m) for cell in labels for m in DAY_3.findall(cell)}
                day = named.pop() if len(named) == 1 else None
            if len(people) != 1 or day is None or not 0 <= day <= LAST_DAY:
                return None  # nobody's row, or one that names two people
            return people.pop(), f"d{int(day):04d}"

        return identify

    def visit(self, key: tuple[str, str]) -> Visit:
        visit = self.book.visit(*key)
        visit.day = int(key[1][1:])
        visit.month = round(visit.day / DAYS_PER_YEAR * 12, 1)
        return visit

    def read_people(
        self, table: Table, ids: tuple[str, ...], sex: tuple[str, ...], educ: tuple[str, ...], hand: tuple[str, ...]
    ) -> None:
        def identify(row: Row) -> tuple[str, str] | None:
            people = {m.upper() for m in SUBJECT_3.findall(row.get(*ids))}
            return (people.pop(), "") if len(people) == 1 else None

        def genotype(cell: str) -> tuple[str | None, QuarantineReason | None]:
            if is_blank(cell) or parse_float(cell) == 0:
                return None, None
            digits = re.fullmatch(r"([234])([234])(?:\.0)?", cell.strip())
            return ("".join(sorted(digits.groups())), None) if digits else (None, QuarantineReason.SENTINEL_UNKNOWN)

        fields: dict[str, Any] = {
            "sex": (parse_sex, sex),
            "educ_years": (EDUCATION_YEARS.with_missing(99), educ),
            "handedness": (_hand, hand),
            "ses": (SES.with_missing(0, 9, 88, 99), ("SES",)),
            "apoe_genotype": (genotype, ("APOE",)),
            "age_entry": (Quantity(0, 1000), ("AgeatEntry", "Age at Entry", "ageAtEntry")),
        }
        for (subject, _), values in self.book.collect(table, identify, fields).items():
            for name, source in values.items():
                self.set_person(subject, name, source)
            if "apoe_genotype" in values:
                source = values["apoe_genotype"]
                count = Sourced(float(source.value.count("4")), source.file, source.row, "APOE")
                self.set_person(subject, "apoe4_count", count)

    def set_person(self, subject: str, name: str, source: Sourced) -> None:
        """Set what belongs to the person; tables that contradict each other empty it."""
        person = self.people.setdefault(subject, {})
        if (subject, name) in self.disputed:
            return
        if name not in person or name == "age_entry":
            person.setdefault(name, source)
        elif person[name].value != source.value:
            reason = QuarantineReason.SEX_CONFLICT if name == "sex" else QuarantineReason.DUPLICATE_KEY_CONFLICT
            detail = f"differs from {PurePosixPath(person[name].file).name}; emptied"
            self.book.emptied(reason, subject, "", source.rule, source.file, source.row, detail)
            self.disputed.add((subject, name))
            del person[name]

    def read_clinical(self, table: Table, ids: tuple[str, ...]) -> None:
        self.has_clinical = True
        boxes = ("memory", "orient", "judgment", "commun", "homehobb", "perscare")
        box = CDR_BOX.with_missing(*MISSING)
        fields: dict[str, Any] = {
            "mmse": (MMSE.with_missing(*MISSING, 88, 95, 96, 97, 98), ("MMSE", "mmse")),
            "cdr_global": (CDR_GLOBAL.with_missing(*MISSING), ("CDRTOT", "cdr", "CDRGLOB")),
            "cdr_sb": (CDR_SUM.with_missing(*MISSING), ("CDRSUM", "sumbox")),
            "dx1": (lambda cell: (cell, None), ("dx1",)),
            "age_entry": (Quantity(0, 1000), ("ageAtEntry",)),
            **{name: (box, (name,)) for name in boxes},
        }
        for key, values in self.book.collect(table, self._identify(ids), fields).items():
            visit = self.visit(key)
            if "cdr_sb" not in values and all(name in values for name in boxes):
                first = values[boxes[0]]
                values["cdr_sb"] = Sourced(
                    sum(values[n].value for n in boxes), first.file, first.row, "sum of six boxes"
                )
            for name in ("mmse", "cdr_global", "cdr_sb"):
                visit.set(name, values.get(name))
            if "dx1" in values:
                visit.notes["dx1"] = values["dx1"]
            if "age_entry" in values:
                self.set_person(key[0], "age_entry", values["age_entry"])

    def read_diagnoses(self, table: Table) -> None:
        """Read the UDS diagnosis form: exactly one kind of flag makes a class.

        A form that cannot be understood (malformed flags and none that is set, flags of two classes, differing copies)
        gives no diagnosis, and neither ``dx1`` nor the CDR stands in for it.
        """
        flag = Quantity(0, 1, 1, missing=frozenset({8.0, 9.0, -4.0}))
        fields: dict[str, Any] = {name: (flag, (name,)) for name in (*D1_CLASSES, "PROBAD", "POSSAD")}
        for key, values in self.book.collect(table, self._identify(("OASISID",)), fields).items():
            on = [name for name in values if values[name].value == 1]
            said = {D1_CLASSES[name]: values[name] for name in on if name in D1_CLASSES}
            unclear = {column for file, column in self.book.refused.get(key, ()) if file == table.relative}
            unclear = {column.upper() for column in unclear} | self.book.conflicting.get(key, set())
            if len(said) > 1:
                source = next(iter(said.values()))
                self.book.emptied(
                    QuarantineReason.DIAGNOSIS_CONFLICT, *key, source.rule, source.file, source.row,
                    f"the diagnosis form says {' and '.join(sorted(said))}; it gives no diagnosis",
                )  # fmt: skip
                self.visit(key).notes["d1_unclear"] = True
            elif said:
                ((meaning, source),) = said.items()
                visit = self.visit(key)
                visit.notes["d1"] = Sourced(meaning, source.file, source.row, f"{source.rule} = 1")
                if meaning == "AD_DEM":
                    visit.notes["etiology"] = "AD" if {"PROBAD", "POSSAD"} & set(on) else "other"
            elif unclear & set(D1_CLASSES):
                self.visit(key).notes["d1_unclear"] = True

    def read_memory(self, table: Table) -> None:
        score = LOGICAL_MEMORY.with_missing(95, 96, 97, 98, 88, 99, -4)
        fields: dict[str, Any] = {"lm_immediate": (score, ("LOGIMEM",)), "lm_delayed": (score, ("MEMUNITS",))}
        for key, values in self.book.collect(table, self._identify(("OASISID",)), fields).items():
            if values:
                visit = self.visit(key)
                for name in fields:
                    visit.set(name, values.get(name))

    def _scan_of(self, row: Row) -> tuple[str, str] | None:
        """Participant and day of the MR session that a row of a session table names."""
        named = {(m[0].upper(), m[1].lower()) for m in SESSION_3.findall(row.get("MR ID", "label"))}
        return named.pop() if len(named) == 1 else None

    def read_scanners(self, table: Table) -> None:
        """Read the scanner of each session; files of one session that differ empty the value."""
        fields: dict[str, Any] = {
            "field_strength_t": (_field_strength, ("MagneticFieldStrength",)),
            "manufacturer": (_words, ("Manufacturer",)),
            "scanner_model": (_words, ("ManufacturersModelName",)),
        }
        by_scan: dict[tuple[str, str], dict[str, dict[Any, Sourced]]] = {}
        for row in table.rows():
            key = self._scan_of(row)
            if key is None:
                self.book.row_without_id(row)
                continue
            for name, (parser, columns) in fields.items():
                source = self.book.value(row, *key, parser, *columns)
                if source is not None:
                    by_scan.setdefault(key, {}).setdefault(name, {}).setdefault(source.value, source)
        for key, names in by_scan.items():
            for name, sources in names.items():
                source = list(sources.values())[-1]
                if len(sources) == 1:
                    self.scanners.setdefault(key, {}).setdefault(name, source)
                else:
                    self.book.emptied(
                        QuarantineReason.DUPLICATE_KEY_CONFLICT, *key, source.rule, source.file, source.row,
                        "the files of one session differ; the value was emptied",
                    )  # fmt: skip

    def read_sessions(self, table: Table) -> None:
        """Read the older export's list of MR sessions: age and scanner at the scan, and sex."""
        fields: dict[str, Any] = {
            "age": (Quantity(0, 1000), ("Age",)),
            "sex": (parse_sex, ("M/F",)),
            "field_strength_t": (_strength_in_name, ("Scanner",)),
        }
        for key, values in self.book.collect(table, self._scan_of, fields).items():
            if "age" in values:
                self.ages[key] = values["age"]
            if "sex" in values:
                self.set_person(key[0], "sex", values["sex"])
            if "field_strength_t" in values:
                self.scanners.setdefault(key, {}).setdefault("field_strength_t", values["field_strength_t"])

    def merge_forms(self) -> None:
        """Bring the diagnosis and cognition forms of one examination to its CDR visit: same person, nearest day.

        The forms of one examination may lie some days apart; only rows of the *same* participant are ever joined.
        """
        by_subject: dict[str, list[Visit]] = {}
        for visit in self.visits():
            by_subject.setdefault(visit.subject, []).append(visit)
        for visits in by_subject.values():
            rated = [v for v in visits if v.values.get("cdr_global") is not None or v.values.get("mmse") is not None]
            near: list[tuple[int, int, Visit, Visit]] = []
            for visit in visits:
                if visit in rated or not rated:
                    continue
                match = match_visit(visit.day or 0, [v.day or 0 for v in rated], FORMS_DAYS)
                if match is not None:
                    near.append((abs(match[1]), visit.day or 0, visit, rated[match[0]]))
            # The nearest form counts; another one that lies farther away adds nothing to a diagnosis.
            for _, _, visit, target in sorted(near, key=lambda pair: pair[:2]):
                if not {"d1", "d1_unclear"} & target.notes.keys():
                    for note in ("d1", "d1_unclear", "etiology"):
                        if note in visit.notes:
                            target.notes[note] = visit.notes[note]
                for name in ("lm_immediate", "lm_delayed"):
                    if visit.values.get(name) is not None and target.values.get(name) is None:
                        target.values[name] = visit.values[name]
                        target.provenance[name] = visit.provenance[name]
                        target.values["lm_source"] = "measured"
                visit.notes["merged"] = True
        for visit in self.visits():
            label: Sourced | None = visit.notes.get("d1")
            if "d1_unclear" in visit.notes:
                # Another source would answer another question under the name of this one.
                visit.values.pop("dx_native", None)
                visit.provenance.pop("dx_native", None)
                continue
            if label is not None and label.value not in ("NC", "MCI", "AD_DEM"):
                continue  # impaired, not MCI: none of the classes, whatever dx1 says; the CDR names the session
            if label is None and "dx1" in visit.notes:
                source = visit.notes["dx1"]
                meaning = DX1.get(source.value.strip().lower())
                label = Sourced(meaning, source.file, source.row, "dx1") if meaning else None
            if label is not None:
                visit.values["dx_native"] = label.value
                visit.provenance["dx_native"] = label.as_json()
                if label.value == "AD_DEM":
                    etiology = visit.notes.get("etiology") or ("AD" if label.rule == "dx1" else "unknown")
                    visit.values["dementia_etiology"] = etiology

    def place(self, item: FoundImage, subject: str, code: str, by_subject: dict[str, list[Visit]]) -> bool:
        """Match an image to the nearest clinical visit of the same participant."""
        book = self.book
        item.subject, item.session, item.scan_day = subject, code, int(code[1:])
        person = self.people.get(subject)
        visits = by_subject.get(subject, [])
        if person is None and not visits:
            book.drop(item, QuarantineReason.ID_NOT_IN_CLINICAL, "no table knows the participant")
            return False
        match = match_visit(item.scan_day, [visit.day or 0 for visit in visits], book.window_days)
        if match is None:
            book.drop(
                item,
                QuarantineReason.NO_VISIT_IN_WINDOW,
                f"no clinical visit within {book.window_days} days of the scan",
            )
            return False
        visit = visits[match[0]]
        book.attach(item, visit, "date_nearest", match[1])
        person = person or {}
        if "sex" not in person:
            book.drop(item, QuarantineReason.SEX_MISSING, "no table gives the participant's sex")
            return False
        for column in ("sex", "educ_years", "handedness", "ses", "apoe_genotype", "apoe4_count"):
            book.set_person(item, column, person.get(column))
        entry, session_age = person.get("age_entry"), self.ages.get((subject, code))
        if session_age is not None:
            book.set_age(item, session_age.value, "month", "age of the MR session", session_age.file, session_age.row)
        elif entry is not None:
            book.set_age(
                item,
                entry.value + item.scan_day / DAYS_PER_YEAR,
                "day",
                "age at entry + day / 365.25",
                entry.file,
                entry.row,
            )
        else:
            book.set_age(item, None, "", "", None, None)
        if visit.values.get("dx_native") is None:
            book.remark(item, QuarantineReason.NO_DIAGNOSIS, "neither CDR nor diagnosis at the matched visit")
        for column, source in self.scanners.get((subject, code), {}).items():
            book.set_person(item, column, source)
        item.values["release"] = "OASIS-3"
        return True


def _need_table(book: Ingest, study: int, others: dict[str, set[str]], broken: dict[str, str]) -> MissingTable:
    """The error for images of a study without any row about them."""
    shown = {path: keys for path, keys in others.items() if path not in broken}
    found = [f"{PurePosixPath(path).name} ({why})" for path, why in sorted(broken.items())]
    return MissingTable(
        "a clinical table is missing",
        where=book.root,
        found="; ".join([*found, *([describe_tables(shown)] if shown or not found else [])]),
        expected=f"{NAMES[study]}.csv or .xlsx, with the columns "
        f"{'ID' if study == 1 else 'Subject ID, MRI ID, Group'}, M/F, Age, CDR",
        remedy="download the table from oasis-brains.org and put it into this folder",
    )


def _remark_sessions_without_image(book: Ingest, studies: Iterable[_Sessions]) -> None:
    """Name every session of the tables of which no image was found."""
    with_image = {(item.subject, item.session) for item in book.images}
    for study in studies:
        for key, values in study.rows.items():
            if key not in with_image:
                source = next(iter(values.values()), None)
                book.visit_note(
                    QuarantineReason.IMAGE_WITHOUT_FILE,
                    *key,
                    Severity.WARN,
                    "the table has the session, but no image of it was found",
                    file=source.file if source else None,
                    line=source.row if source else None,
                )


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read OASIS-1, OASIS-2 and OASIS-3.

    Tables alone are enough: visits and links are then read, and every session is remarked on as one without a file.

    Raises
    ------
    InputError
        When there is neither an image nor a table, images have no table of their study, or a table is refused.
    """
    book = Ingest("OASIS", root, params, workers)
    # Images inside archives are read where they are, as ``archive.zip!inner/path``.
    packed, unread = nifti_files(root, [path for path in book.files if not is_nifti(path)])
    remark_on(book, unread)
    images = [*pair_up(book.files), *((image.source_path, image.files) for image in packed)]
    session_of = {path: _session_of(path) for path, _ in images}
    studies = {study for study, _, _ in session_of.values()}
    tables, broken = find_session_tables(book)
    used = {candidate.table.relative for candidates in tables.values() for candidate in candidates}
    others = {path: keys for path, keys in headers(root, book.files).items() if path not in used}
    has_third = any(_is_clinical_3(keys) for keys in others.values())
    if not images and LISTING_NAME in book.files:
        raise no_images(root, "OASIS", f"the images that {LISTING_NAME} lists")
    if not images and not used and not has_third:
        if broken:
            raise _need_table(book, 1, others, broken)
        expected = "session folders or files that begin with OAS1_, OAS2_ or OAS3, or tables whose cells do"
        raise no_images(root, "OASIS", expected)
    cross = _Sessions(book, 1, tables[1]) if tables[1] or 1 in studies else None
    repeated = _Sessions(book, 2, tables[2]) if tables[2] else None
    if cross is not None:
        wanted = {(subject, code) for study, subject, code in session_of.values() if study == 1}
        for summary in read_summaries(book, wanted - cross.rows.keys()):
            cross.add(summary)
    for study, rows in ((1, cross), (2, repeated)):
        if study in studies and (rows is None or not rows.rows):
            raise _need_table(book, study, others, broken)
    if 3 in studies or has_third:
        studies.add(3)
    third = None
    if 3 in studies:
        third = _Longitudinal3(book, others)
        if not third.has_clinical:
            raise MissingTable(
                "a clinical table is missing",
                where=root,
                found=describe_tables(others),
                expected="OASIS3_UDSb4_cdr.csv (OASISID, days_to_visit, CDRTOT) or ADRC Clinical Data.csv",
                remedy="download the clinical tables from the OASIS-3 project and put them below this folder",
            )
        third.merge_forms()
        # Forms that were brought to a CDR visit are that visit.
        for key in [k for k, visit in book.visits.items() if visit.notes.get("merged")]:
            del book.visits[key]
    visits_3: dict[str, list[Visit]] = {}
    if third is not None:
        for visit in third.visits():
            visits_3.setdefault(visit.subject, []).append(visit)

    sessions: dict[tuple[str, str], list[FoundImage]] = {}
    kinds: dict[int, Kind] = {}
    for path, files in images:
        study, subject, code = session_of[path]
        stem = strip_suffix(PurePosixPath(path).name)
        if study == 1 and cross is not None:
            kind = kind_of_oasis1(path)
            item = FoundImage(
                f"{subject}_{code}/{stem}", _image_file(root, path, files, kind.orientation_rule if kind else "header")
            )
            book.images.append(item)
            item.subject, item.session = subject, code
            if kind is None:
                book.drop(item, QuarantineReason.NOT_T1, "a segmentation or mask, no T1-weighted volume")
                continue
            kinds[id(item)] = kind
            item.variant = kind.variant
            item.order = item.rank = (kind.rank, stem)
            if cross.place(item, subject, code):
                sessions.setdefault((subject, code), []).append(item)
        elif study == 2 and repeated is not None:
            item = FoundImage(f"{subject}_{code}/{stem}", _image_file(root, path, files, "sagittal"))
            book.images.append(item)
            number = re.search(r"mpr-(\d+)", stem, re.IGNORECASE)
            if number is None:
                item.subject, item.session = subject, code
                book.drop(item, QuarantineReason.NOT_T1, "the file is no mpr-<n> repeat")
                continue
            item.order = item.rank = (int(number[1]), stem)
            repeated.place(item, subject, code)
        elif study == 3 and third is not None:
            item = FoundImage(f"{subject}_MR_{code}/{stem}", _image_file(root, path, files, "header"))
            book.images.append(item)
            item.subject, item.session, item.series_description = subject, code, stem.rsplit("_", 1)[-1]
            if not stem.lower().endswith("_t1w") and stem.lower() != "t1w":
                book.drop(item, QuarantineReason.NOT_T1, "the file is no T1-weighted volume")
                continue
            run = re.search(r"run-(\d+)", stem)
            item.order = item.rank = (int(run[1]) if run else 1, stem)
            third.place(item, subject, code, visits_3)
        else:
            item = FoundImage(path, _image_file(root, path, files, "header"))
            book.images.append(item)
            book.drop(
                item, QuarantineReason.ID_UNPARSABLE, "neither folder nor file names a session of OASIS-1, -2 or -3"
            )

    for group in sessions.values():
        averages = [item for item in group if item.variant == "averaged" and not item.dropped]
        if len({item.key for item in averages}) > 1:
            for item in averages:
                book.drop(
                    item, QuarantineReason.AMBIGUOUS_FILE, "the session has averages of different numbers of repeats"
                )
    # Derived files stand in only where a session has no usable acquisition.
    derived = [item for group in sessions.values() for item in group if item.variant == "derived"]
    book.inspect(item for item in book.images if item.variant != "derived")
    if params.ingest.form == "table1_emulation":
        book.inspect(derived)
        for group in sessions.values():
            _link_variants(group)
    else:
        rest = []
        for group in sessions.values():
            usable = [i for i in group if i.variant != "derived" and not i.dropped]
            for item in group:
                if item.variant == "derived" and usable:
                    book.drop(
                        item,
                        QuarantineReason.DERIVED_VARIANT,
                        "derived from an acquisition of the session that is read instead",
                    )
                elif item.variant == "derived":
                    rest.append(item)
        book.inspect(rest)
        for group in sessions.values():
            usable = sorted(
                (i for i in group if i.variant == "derived" and not i.dropped), key=lambda i: (i.rank, i.key)
            )
            for item in usable[1:]:
                if item.key != usable[0].key:
                    book.drop(
                        item, QuarantineReason.DERIVED_VARIANT, "another derived form of the session is read instead"
                    )
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    _remark_sessions_without_image(book, [rows for rows in (cross, repeated) if rows is not None])
    result = book.finish()
    result.links = link_sessions(result.visits)
    return result


def _link_variants(group: list[FoundImage]) -> None:
    """Point derived files to the acquisition that they come from, or else to the one that is closest to it."""
    usable = sorted((i for i in group if not i.dropped), key=lambda i: (i.variant == "derived", i.rank, i.key))
    for item in usable[1:]:
        if item.variant == "derived":
            item.variant_of = usable[0].key


def _is_clinical_3(keys: set[str]) -> bool:
    """Whether a header is that of an OASIS-3 table with the CDR."""
    return {"oasisid", "cdrtot"} <= keys or "adrc_adrcclinicaldata_id" in keys or {"subject", "cdr", "sumbox"} <= keys


def _session_of(path: str) -> tuple[int, str, str]:
    """Study (1, 2, 3; 0 for none), native subject id and session code that a path names; the deepest name counts."""
    for part in reversed(PurePosixPath(path).parts):
        if match := SESSION_1.search(part):
            return 1, f"OAS1_{match[1]}", f"MR{int(match[2])}"
        if match := SESSION_2.search(part):
            return 2, f"OAS2_{match[1]}", f"MR{int(match[2])}"
        if match := SESSION_3.search(part):
            return 3, match[1].upper(), match[2].lower()
    return 0, "", ""
