"""ADNI: downloads of the LONI archive.

Reads the participant folders (``005_S_0223/<series>/<time>/I<image>/``; NIfTI or DICOM, unpacked or still in the
download's zip archives), any collection or search list, the metadata files (XML), and the study tables by name with or
without a date of export. ADNIMERGE is used when it is there; without it visits are built from DXSUM, CDR, MMSE,
NEUROBAT, PTDEMOG and APOERES. Scans are matched to visits by date; ``DX_bl`` and the archive's ``Group`` describe
enrolment and are never taken for a visit's diagnosis.

Visits are known by VISCODE2. Screening (``sc``, ``scmri``, ``init``) belongs to the baseline visit where it lies within
200 days of it; the same code much later is another visit. Two rows of one code in two phases are two visits.

Not supported: tables inside zip archives; series whose slices lie in several folders; biomarkers of cerebrospinal fluid
(ABETA, TAU, PTAU), which no part of this project uses.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medalign3d.cohorts.adni_choice import Candidate, Quality, known_bad_scans, order_candidates, read_quality
from medalign3d.cohorts.base import (
    DAYS_PER_YEAR,
    FoundImage,
    Ingest,
    IngestResult,
    Level,
    Parser,
    QuarantineReason,
    Severity,
    Sourced,
    Visit,
    match_visit,
    no_images,
)
from medalign3d.cohorts.loni import (
    LIST_DATE,
    LIST_DESCRIPTION,
    LIST_SUBJECT,
    ImageLists,
    Listed,
    LoniImage,
    MetadataFiles,
    describe_image,
    drop_damaged_archives,
    group_images,
    is_processed,
    is_t1_description,
    laboratory_parser,
    list_with_archives,
    note_missing_files,
    parse_strength,
    read_image_lists,
    set_scan_date,
    start_image,
)
from medalign3d.cohorts.tables import TABLE_SUFFIXES, Row, Table, find_table
from medalign3d.cohorts.values import (
    ALLELE,
    APOE4_COUNT,
    CDR_BOX,
    CDR_GLOBAL,
    CDR_SUM,
    EDUCATION_YEARS,
    FAQ,
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
from medalign3d.errors import MissingTable
from medalign3d.params import Params

PTID = re.compile(r"\d{3}_S_\d{4,5}", re.IGNORECASE)
MISSING = frozenset({-4.0, -1.0})
BASELINE_CODES = ("bl", "sc", "scmri", "init")
#: Farthest distance of a screening from its baseline, in days.
SCREENING_DAYS = 200
#: Rows coded ``bl`` this far apart are not slips of a date (a wrong year) but baselines of two phases, in days.
TWO_BASELINES_DAYS = 730
#: Raw codes of ADNI-2 for tables that have no month-coded VISCODE2; they are months only for people who joined then.
RAW_CODES = {
    "v01": "sc",
    "v02": "scmri",
    "v03": "bl",
    "v04": "m03",
    "v05": "m06",
    "v11": "m12",
    "v21": "m24",
    "v31": "m36",
    "v41": "m48",
    "v51": "m60",
}
FIRST_ADNI2_RID = 4000
LAST_ADNI1_RID = 1999
PHASES = ("ADNI1", "ADNIGO", "ADNI2", "ADNI3", "ADNI4")
LABS = {
    "AXT117": "tsh",
    "BAT126": "vitamin_b12",
    "HMT3": "red_cells",
    "HMT7": "white_cells",
    "HMT13": "platelets",
    "HMT40": "haemoglobin",
    "HMT100": "mch",
    "HMT102": "mchc",
    "RCT4": "alt",
    "RCT5": "ast",
    "RCT6": "urea_nitrogen",
    "RCT11": "glucose",
    "RCT19": "triglycerides",
    "RCT20": "cholesterol",
    "RCT392": "creatinine",
}
DX_WORDS = {
    "cn": "CN",
    "nl": "CN",
    "nc": "CN",
    "smc": "CN",
    "normal": "CN",
    "mci": "MCI",
    "emci": "MCI",
    "lmci": "MCI",
    "dementia": "Dementia",
    "dem": "Dementia",
    "ad": "Dementia",
}
DIAGNOSIS = {1.0: "CN", 2.0: "MCI", 3.0: "Dementia"}
DXCHANGE = {
    1.0: "CN",
    7.0: "CN",
    9.0: "CN",
    2.0: "MCI",
    4.0: "MCI",
    8.0: "MCI",
    3.0: "Dementia",
    5.0: "Dementia",
    6.0: "Dementia",
}
DX_BASELINE = {
    "cn": "CN",
    "nl": "CN",
    "smc": "SMC",
    "emci": "EMCI",
    "lmci": "LMCI",
    "mci": "MCI",
    "ad": "AD",
    "dementia": "AD",
}
AGE_TOLERANCE_YEARS = 2.0
BIRTH_YEARS = (1880, 2010)
#: Scans and rows of the MRI tables this near are of one session, in days.
SAME_SESSION_DAYS = 7
IDA_VISITS = {
    "adni screening": "bl",
    "adni baseline": "bl",
    "adni1/go screening": "bl",
    "adnigo screening mri": "bl",
    "adni2 screening mri-new pt": "bl",
    "adni2 screening-new pt": "bl",
    "adni2 baseline-new pt": "bl",
    "adni screening mri": "bl",
    "screening": "bl",
    "baseline": "bl",
    "sc": "bl",
    "bl": "bl",
}
_EXPORT_PREFIXES = ("ADNI", "ADNIMERGE", "CLINICAL")


def dx_from_words(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """ADNIMERGE.DX of any vintage: the last word after "to" counts.

    >>> dx_from_words("MCI to Dementia")[0], dx_from_words("NL")[0]
    ('Dementia', 'CN')
    """
    if is_blank(cell):
        return None, None
    number = parse_float(cell)
    if number in MISSING:
        return None, None
    word = re.split(r"\bto\b", cell, flags=re.IGNORECASE)[-1].strip().lower()
    if word in DX_WORDS:
        return DX_WORDS[word], None
    return None, QuarantineReason.SENTINEL_UNKNOWN


@functools.lru_cache(maxsize=65536)
def canonical_visit(code: str) -> tuple[str, float | None, bool]:
    """Visit code with one spelling, months from baseline, and whether it is a known one.

    >>> canonical_visit("M6"), canonical_visit("sc"), canonical_visit("uns1")
    (('m06', 6.0, True), ('sc', 0.0, True), ('uns1', None, False))
    """
    text = code.strip().lower()
    if text in BASELINE_CODES:
        return text, 0.0, True
    if match := re.fullmatch(r"m(\d{1,3})", text):
        months = int(match[1])
        return ("bl", 0.0, True) if months == 0 else (f"m{months:02d}", float(months), True)
    return text, None, False


def visit_of_label(label: str) -> str | None:
    """The visit code of an image list's visit name, for scans without a date; yearly names do not tell the month.

    >>> [visit_of_label(t) for t in ("ADNI Screening", "ADNI1/GO Month 6", "m12", "ADNI2 Year 1 Visit")]
    ['bl', 'm06', 'm12', None]
    """
    name = label.strip().lower()
    if name in IDA_VISITS:
        return IDA_VISITS[name]
    if match := re.fullmatch(r"adni\S* month (\d{1,3})(?: mri)?(?:-new pt)?", name):
        return canonical_visit(f"m{match[1]}")[0]
    code, _, known = canonical_visit(name)
    return ("bl" if code in BASELINE_CODES else code) if known else None


@functools.lru_cache(maxsize=65536)
def phase_of(text: str) -> str:
    """The study phase that a text begins with; empty when it names none, or two of them.

    >>> [phase_of(t) for t in ("ADNI2 Year 1 Visit", "ADNI GO", "ADNI1/GO Month 6", "ADNI Screening", "")]
    ['ADNI2', 'ADNIGO', '', 'ADNI1', '']
    """
    label = re.sub(r"^ADNI[ -](?=GO|\d)", "ADNI", text.strip().upper())
    if match := re.match(r"(ADNI(?:GO|[1-4]))(?!/)\b", label):
        return match[1]
    return "ADNI1" if label in ("ADNI SCREENING", "ADNI BASELINE") else ""


def parse_birth(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """Year and, where it is given, month of birth as ``1934-05`` or ``1934``.

    >>> [parse_birth(t)[0] for t in ("05/1934", "/1934", "1934-05-01", "13/1934", "-4")]
    ['1934-05', '1934', '1934-05', None, None]
    """
    if is_blank(cell) or parse_float(cell) in MISSING:
        return None, None
    text = cell.strip()
    if match := re.fullmatch(r"(\d{4})-(\d{1,2})(?:-\d{1,2})?", text):
        year, month = int(match[1]), int(match[2])
    elif match := re.fullmatch(r"(?:(\d{1,2})?/)?(?:\d{1,2}/)?(\d{4})(?:\.0)?", text):
        year, month = int(match[2]), int(match[1] or 0)
    else:
        return None, QuarantineReason.DATE_UNPARSABLE
    if not BIRTH_YEARS[0] <= year <= BIRTH_YEARS[1] or month > 12:
        return None, QuarantineReason.DATE_UNPARSABLE
    return (f"{year}-{month:02d}" if month else f"{year}"), None


def parse_freesurfer(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """The software of the volumes; versions are not interchangeable.

    >>> parse_freesurfer("Cross-Sectional FreeSurfer (FreeSurfer Version 4.3)")[0], parse_freesurfer("-4")[0]
    ('UCSF-FS4.3', None)
    """
    if is_blank(cell) or parse_float(cell) in MISSING:
        return None, None
    version = re.search(r"\d+(?:\.\d+)+", cell)
    return (f"UCSF-FS{version[0]}" if version else "UCSF-FS"), None


def _words(meanings: dict[str, str]) -> Parser:
    def parse(cell: str) -> tuple[str | None, QuarantineReason | None]:
        if is_blank(cell) or parse_float(cell) in MISSING:
            return None, None
        meaning = meanings.get(cell.strip().lower())
        return (meaning, None) if meaning else (None, QuarantineReason.SENTINEL_UNKNOWN)

    return parse


def _code(meanings: dict[float, str]) -> Parser:
    return lambda cell: parse_code(cell, meanings, MISSING)


def diagnosis_parser(meanings: dict[float, str]) -> Parser:
    """A diagnosis written as a code, or (recent exports) as its label."""

    def parse(cell: str) -> tuple[str | None, QuarantineReason | None]:
        if is_blank(cell) or parse_float(cell) is not None:
            return parse_code(cell, meanings, MISSING)
        return dx_from_words(cell)

    return parse


def parse_etiology(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """DXDDUE, the suspected cause of dementia: 1 Alzheimer's disease, 2 another one."""
    if is_blank(cell) or parse_float(cell) is not None:
        return parse_code(cell, {1.0: "AD", 2.0: "other"}, MISSING)
    text = cell.lower()
    if "alzheimer" in text:
        return "AD", None
    return ("other", None) if "other" in text else (None, QuarantineReason.SENTINEL_UNKNOWN)


def parse_genotype(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """The two APOE alleles, sorted.

    >>> [parse_genotype(t)[0] for t in ("4/3", "e3/e4", "33", "3/5")]
    ['34', '34', '33', None]
    """
    if is_blank(cell) or parse_float(cell) in MISSING:
        return None, None
    digits = re.fullmatch(r"[eE]?([234])\s*[/,;-]?\s*[eE]?([234])", cell.strip())
    return ("".join(sorted(digits.groups())), None) if digits else (None, QuarantineReason.SENTINEL_UNKNOWN)


def _text(cell: str) -> tuple[str | None, QuarantineReason | None]:
    return (None if is_blank(cell) or parse_float(cell) in MISSING else cell.strip()), None


def _phase(cell: str) -> tuple[str | None, QuarantineReason | None]:
    return phase_of(cell) or None, None


def _base_code(code: str) -> str:
    """The native code of a visit, without the mark of a later phase."""
    return code.split("-", 1)[0]


def _visit_order(code: str) -> tuple[float, int, str]:
    """Baseline first (``bl`` before screening), then by month, unknown codes last."""
    base = _base_code(code)
    if base in BASELINE_CODES:
        return (-1.0, BASELINE_CODES.index(base), code)
    month = canonical_visit(base)[1]
    return (month if month is not None else float("inf"), 0, code)


@dataclass
class _Batch:
    """The values of one table by visit, and the visit columns that they fill."""

    collected: dict[tuple[str, str], dict[str, Sourced]]
    columns: dict[str, str]


class _Adni:
    """State of one ADNI ingest."""

    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest
        self.table_files = [path for path in ingest.files if path.lower().endswith(TABLE_SUFFIXES)]
        self.ptid_of_rid: dict[int, str] = {}
        self.person: dict[str, dict[str, Sourced]] = {}
        self.sexes: dict[str, dict[str, Sourced]] = {}
        self.known: set[str] = set()
        self.noted_codes: set[tuple[str, str]] = set()
        self.code_of_raw: dict[tuple[int, str, str], str] = {}
        self.first_phase: dict[tuple[str, str], str] = {}
        self.baseline_date: dict[str, datetime.date] = {}
        self.phase: dict[tuple[str, str], str] = {}
        self.strength_of_uid: dict[str, float] = {}
        self.strength_of_day: dict[str, dict[datetime.date, set[float]]] = {}
        self.batches: list[_Batch] = []

    # -- tables

    def table(self, *names: str, used_for: str) -> Table | None:
        path = find_table(self.ingest.root, self.table_files, *names, prefixes=_EXPORT_PREFIXES, required=False)
        if path is None:
            return None
        table = self.ingest.read(path, used_for)
        table.require(id=("RID", "PTID"))
        return table

    def subject(self, row: Row) -> str | None:
        ptid = row.get("PTID")
        if PTID.fullmatch(ptid):
            return ptid.upper()
        rid = parse_whole_id(row.get("RID"))
        return None if rid is None else self.ptid_of_rid.get(rid, f"RID{rid}")

    def native_code(self, row: Row) -> str:
        """VISCODE2 of a row; where the table has none, what other tables say of its raw code."""
        code = row.get("VISCODE2")
        if not is_blank(code) and parse_float(code) not in MISSING:
            return canonical_visit(code)[0]
        raw = row.get("VISCODE").strip().lower()
        rid = parse_whole_id(row.get("RID")) or parse_whole_id(row.get("PTID").rsplit("_", 1)[-1])
        if rid is not None:
            known = self.code_of_raw.get((rid, phase_of(row.get("COLPROT", "PHASE")), raw))
            if known is None and raw.startswith("v"):
                known = self.code_of_raw.get((rid, "", raw))
            if known is not None:
                return known
            if rid >= FIRST_ADNI2_RID:
                raw = RAW_CODES.get(raw, raw)
        return canonical_visit(raw)[0]

    def visit_key(self, row: Row) -> tuple[str, str] | None:
        subject = self.subject(row)
        if subject is None:
            return None
        code = self.native_code(row)
        first = self.first_phase.get((subject, code))
        if first is not None:
            phase = phase_of(row.get("COLPROT", "PHASE"))
            if phase and phase != first:
                code = f"{code}-{phase}"
        return subject, code

    def learn_ids(self, tables: Iterable[Table | None], images: Sequence[LoniImage]) -> None:
        """Which site a participant belongs to (PTID of every RID), and which month a raw visit code stands for."""
        for image in images:
            if PTID.fullmatch(image.subject_folder):
                self.ptid_of_rid.setdefault(int(image.subject_folder.rsplit("_", 1)[-1]), image.subject_folder.upper())
        for table in tables:
            if table is None or table.column("RID") is None:
                continue
            if table.column("PTID") is None and (table.column("VISCODE2") is None or table.column("VISCODE") is None):
                continue
            for row in table.rows():
                rid, ptid = parse_whole_id(row.get("RID")), row.get("PTID")
                if rid is None:
                    continue
                if PTID.fullmatch(ptid):
                    if int(ptid.rsplit("_", 1)[-1]) != rid:
                        self.ingest.note(
                            QuarantineReason.ID_UNPARSABLE,
                            Level.TABLE,
                            {"file": table.name},
                            Severity.WARN,
                            "RID and PTID of a row name different participants; PTID is used",
                            table.relative,
                            row.line,
                        )
                        continue
                    self.ptid_of_rid[rid] = ptid.upper()
                raw, code = row.get("VISCODE").strip().lower(), row.get("VISCODE2")
                if raw and not is_blank(code) and parse_float(code) not in MISSING:
                    meaning = canonical_visit(code)[0]
                    self.code_of_raw.setdefault((rid, phase_of(row.get("COLPROT", "PHASE")), raw), meaning)
                    self.code_of_raw.setdefault((rid, "", raw), meaning)

    def learn_rollovers(self, table: Table) -> None:
        """Find visit codes that a participant has in two phases: they are two visits."""
        phases: dict[tuple[str, str], set[str]] = {}
        for row in table.rows():
            subject, phase = self.subject(row), phase_of(row.get("COLPROT", "PHASE"))
            if subject is not None and phase:
                phases.setdefault((subject, self.native_code(row)), set()).add(phase)
        for key, names in phases.items():
            if len(names) > 1:
                self.first_phase[key] = min(names, key=PHASES.index)

    def add(self, collected: dict[tuple[str, str], dict[str, Sourced]], columns: Sequence[str]) -> None:
        """Keep values of a table for :meth:`fold_all`; rows of people without a PTID are left out with one remark."""
        strangers = {key for key in collected if key[0].startswith("RID")}
        if strangers:
            first = next((source for key in sorted(strangers) for source in collected[key].values()), None)
            self.ingest.note(
                QuarantineReason.ID_UNPARSABLE,
                Level.TABLE,
                {"file": first.file.rsplit("/", 1)[-1] if first else ""},
                Severity.WARN,
                f"no table and no folder gives the PTID of {len({key[0] for key in strangers})} participants; "
                "their rows were left out",
                first.file if first else None,
            )
        kept = {key: values for key, values in collected.items() if key not in strangers}
        self.batches.append(_Batch(kept, {name: name for name in columns}))
        for (subject, code), values in kept.items():
            self.known.add(subject)
            if "phase" in values:
                self.phase.setdefault((subject, code), values["phase"].value)

    def fold_all(self) -> None:
        """Put all collected values into visits, in the order of the tables."""
        self._find_baselines()
        for batch in self.batches:
            for (subject, code), values in sorted(
                batch.collected.items(), key=lambda item: (item[0][0], _visit_order(item[0][1]))
            ):
                place = self.place(subject, code, values.get("date"))
                self._note_code(subject, code, place, values)
                visit = self.ingest.visit(subject, place)
                visit.month = canonical_visit(_base_code(place))[1] if not place.endswith("-later") else None
                if visit.date is None:
                    if place == "bl" and subject in self.baseline_date:
                        visit.date = self.baseline_date[subject]
                    elif "date" in values:
                        visit.date = values["date"].value
                if (subject, code) in self.phase:
                    self.phase.setdefault((subject, place), self.phase[(subject, code)])
                for name, column in batch.columns.items():
                    if name in values:
                        visit.set(column, values[name], rule=f"{values[name].rule} at {_base_code(code)}")

    def _find_baselines(self) -> None:
        """The date of every participant's baseline: ``bl`` in the first table that dates it, else a screening code."""
        best: dict[str, tuple[int, int, datetime.date]] = {}
        for order, batch in enumerate(self.batches):
            for (subject, code), values in batch.collected.items():
                if code not in BASELINE_CODES or "date" not in values:
                    continue
                candidate = (0 if code == "bl" else 1, order, values["date"].value)
                if subject not in best or candidate < best[subject]:
                    best[subject] = candidate
        self.baseline_date = {subject: date for subject, (_, _, date) in best.items()}

    def place(self, subject: str, code: str, date: Sourced | None) -> str:
        """The visit that a row belongs to: screening near the baseline is the baseline."""
        if code not in BASELINE_CODES:
            return code
        baseline = self.baseline_date.get(subject)
        farthest = TWO_BASELINES_DAYS if code == "bl" else SCREENING_DAYS
        if date is not None and baseline is not None and abs((date.value - baseline).days) > farthest:
            return f"{code}-later"
        return "bl"

    def _note_code(self, subject: str, code: str, place: str, values: dict[str, Sourced]) -> None:
        known = canonical_visit(_base_code(code))[2] and not place.endswith("-later")
        if known or (subject, place) in self.noted_codes:
            return
        self.noted_codes.add((subject, place))
        source = next(iter(values.values()), None)
        self.ingest.visit_note(
            QuarantineReason.VISCODE_UNKNOWN,
            subject,
            place,
            Severity.WARN,
            "the code of a baseline visit, but too far from the baseline; a visit of its own"
            if place.endswith("-later")
            else "no month follows from this visit code; the visit is matched by its date",
            file=source.file if source else None,
            line=source.row if source else None,
        )

    def read_tables(self, images: Sequence[LoniImage]) -> None:
        merge = self.table("ADNIMERGE", used_for="visits")
        dxsum = self.table("DXSUM", "DXSUM_PDXCONV_ADNIALL", "DXSUM_PDXCONV", used_for="diagnosis")
        if merge is None and dxsum is None:
            find_table(self.ingest.root, self.ingest.files, "ADNIMERGE", "DXSUM", prefixes=_EXPORT_PREFIXES)
            raise MissingTable("a clinical table is missing", where=self.ingest.root, expected="ADNIMERGE or DXSUM")
        demographics = self.table("PTDEMOG", used_for="demographics")
        cdr = self.table("CDR", used_for="CDR")
        mmse = self.table("MMSE", used_for="MMSE")
        neurobat = self.table("NEUROBAT", used_for="logical memory")
        moca = self.table("MOCA", used_for="MoCA")
        depression = self.table("GDSCALE", used_for="depression scale")
        activities = self.table("FAQ", used_for="functional activities")
        apoe = self.table("APOERES", used_for="APOE")
        labs = self.table("LABDATA", used_for="laboratory")
        registry = self.table("REGISTRY", used_for="visit codes and dates")
        roster = self.table("ROSTER", used_for="ids")
        self.learn_ids(
            [
                roster,
                registry,
                merge,
                dxsum,
                demographics,
                cdr,
                mmse,
                neurobat,
                moca,
                depression,
                activities,
                apoe,
                labs,
            ],
            images,
        )
        if dxsum is not None:
            self.learn_rollovers(dxsum)
        if merge is not None:
            self.read_merge(merge)
        summary = self.read_dxsum(dxsum) if dxsum is not None else {}
        if cdr is not None:
            self.read_cdr(cdr)
        memory = LOGICAL_MEMORY.with_missing(*MISSING)
        self.read_scores(mmse, {"mmse": (MMSE.with_missing(*MISSING), ("MMSCORE",))})
        self.read_scores(neurobat, {"lm_immediate": (memory, ("LIMMTOTAL",)), "lm_delayed": (memory, ("LDELTOTAL",))})
        self.read_scores(moca, {"moca": (MOCA.with_missing(*MISSING), ("MOCA", "MOCATOTAL"))})
        self.read_scores(depression, {"gds": (GDS.with_missing(*MISSING), ("GDTOTAL",))})
        self.read_scores(activities, {"faq": (FAQ.with_missing(*MISSING), ("FAQTOTAL",))})
        results: dict[tuple[str, str], dict[str, Sourced]] = {}
        if labs is not None:
            results = self.ingest.collect(
                labs,
                self.visit_key,
                {
                    "date": (parse_date, ("EXAMDATE", "VISDATE")),
                    **{name: (laboratory_parser(name), (code,)) for code, name in LABS.items()},
                },
            )
            self.add(results, ())
        if demographics is not None:
            self.read_demographics(demographics)
        if apoe is not None:
            self.read_apoe(apoe)
        self.fold_all()
        self.keep_summary(summary)
        self.place_labs(results)
        if registry is not None:
            self.complete_dates(registry)
        for name, strength in (("MRIMETA", 1.5), ("MRI3META", 3.0)):
            self.read_mri_sessions(self.table(name, used_for="MRI sessions"), strength)
        for visit in self.ingest.visits.values():
            _finish_visit(visit)

    def read_scores(self, table: Table | None, fields: dict[str, Any]) -> None:
        """Collect scores of one test; a table without the column gives nothing."""
        if table is None or all(table.column(*columns) is None for _, columns in fields.values()):
            return
        table.require(visit=("VISCODE2", "VISCODE"))
        common: dict[str, Any] = {
            "date": (parse_date, ("EXAMDATE", "VISDATE")),
            "phase": (_phase, ("COLPROT", "PHASE")),
        }
        self.add(self.ingest.collect(table, self.visit_key, {**common, **fields}), list(fields))

    def read_merge(self, table: Table) -> None:
        table.require(visit=("VISCODE",), date=("EXAMDATE",), diagnosis=("DX",))
        volumes = {
            "Hippocampus": ("hippocampus_mm3", Quantity(500, 15e3)),
            "Ventricles": ("ventricles_mm3", Quantity(1e3, 250e3)),
            "WholeBrain": ("brain_mm3", Quantity(5e5, 1.8e6)),
            "ICV": ("icv_mm3", Quantity(8e5, 2.4e6)),
        }
        scores: dict[str, Any] = {
            "dx_native": (dx_from_words, ("DX",)),
            "mmse": (MMSE.with_missing(*MISSING), ("MMSE",)),
            "moca": (MOCA.with_missing(*MISSING), ("MOCA",)),
            "cdr_sb": (CDR_SUM.with_missing(*MISSING), ("CDRSB",)),
            "lm_delayed": (LOGICAL_MEMORY.with_missing(*MISSING), ("LDELTOTAL",)),
            "faq": (FAQ.with_missing(*MISSING), ("FAQ",)),
            "volume_source": (parse_freesurfer, ("FSVERSION",)),
            **{column: (quantity.with_missing(*MISSING), (name,)) for name, (column, quantity) in volumes.items()},
        }
        collected = self.ingest.collect(
            table,
            self.visit_key,
            {
                "date": (parse_date, ("EXAMDATE",)),
                "phase": (_phase, ("COLPROT",)),
                **scores,
                "strength": (lambda cell: (parse_strength(cell), None), ("FLDSTRENG",)),
                "uid": (_text, ("IMAGEUID",)),
                # Person-level values, repeated on every row of the person.
                "origin": (_phase, ("ORIGPROT",)),
                "age": (Quantity(15, 110, missing=MISSING), ("AGE",)),
                "sex": (parse_sex, ("PTGENDER",)),
                "educ_years": (EDUCATION_YEARS.with_missing(*MISSING), ("PTEDUCAT",)),
                "apoe4_count": (APOE4_COUNT.with_missing(*MISSING), ("APOE4",)),
                "dx_subject_level": (_words(DX_BASELINE), ("DX_bl",)),
                "date_bl": (parse_date, ("EXAMDATE_bl",)),
            },
        )
        self.add(collected, list(scores))
        self.learn_people(
            collected, ("origin", "age", "sex", "educ_years", "apoe4_count", "dx_subject_level", "date_bl")
        )
        for (subject, code), values in collected.items():
            if "uid" in values and "strength" in values:
                self.strength_of_uid[values["uid"].value.split(".")[0].lstrip("I")] = values["strength"].value
            if code == "bl" and "date" in values:
                self.person.setdefault(subject, {}).setdefault("date_bl", values["date"])

    def read_dxsum(self, table: Table) -> dict[tuple[str, str], dict[str, Sourced]]:
        table.require(diagnosis=("DIAGNOSIS", "DXCHANGE", "DXCURREN"), visit=("VISCODE2", "VISCODE"))
        flag = Quantity(0, 1, missing=MISSING)
        collected = self.ingest.collect(
            table,
            self.visit_key,
            {
                "date": (parse_date, ("EXAMDATE", "VISDATE")),
                "phase": (_phase, ("COLPROT", "PHASE")),
                "DIAGNOSIS": (diagnosis_parser(DIAGNOSIS), ("DIAGNOSIS",)),
                "DXCHANGE": (diagnosis_parser(DXCHANGE), ("DXCHANGE",)),
                "DXCURREN": (diagnosis_parser(DIAGNOSIS), ("DXCURREN",)),
                "etiology": (parse_etiology, ("DXDDUE",)),
                **{name: (flag, (name,)) for name in ("DXNORM", "DXMCI", "DXAD", "DXOTHDEM")},
            },
        )
        for (subject, code), values in collected.items():
            stated = [values[name] for name in ("DIAGNOSIS", "DXCHANGE", "DXCURREN") if name in values]
            if len({sourced.value for sourced in stated}) > 1:
                self.ingest.visit_note(
                    QuarantineReason.DIAGNOSIS_CONFLICT,
                    subject,
                    code,
                    Severity.WARN,
                    "columns of one DXSUM row differ: "
                    + ", ".join(f"{sourced.rule} {sourced.value}" for sourced in stated)
                    + f"; {stated[0].rule} is kept",
                    file=stated[0].file,
                    line=stated[0].row,
                )
            dx = stated[0] if stated else None
            if dx is None:
                flags = [
                    (name, label)
                    for name, label in (("DXNORM", "CN"), ("DXMCI", "MCI"), ("DXAD", "Dementia"))
                    if name in values and values[name].value == 1
                ]
                if len(flags) == 1:
                    source = values[flags[0][0]]
                    dx = Sourced(flags[0][1], source.file, source.row, flags[0][0])
            if dx is None:
                continue
            values["dx_native"] = dx
            if dx.value == "Dementia":
                cause = values.get("etiology")
                if cause is None:
                    for name, label in (("DXAD", "AD"), ("DXOTHDEM", "other")):
                        if cause is None and name in values and values[name].value == 1:
                            cause = Sourced(label, values[name].file, values[name].row, name)
                if cause is not None:
                    values["dementia_etiology"] = cause
        self.add(collected, ("dx_native", "dementia_etiology"))
        return collected

    def keep_summary(self, summary: dict[tuple[str, str], dict[str, Sourced]]) -> None:
        """Where ADNIMERGE and DXSUM differ on a visit's diagnosis, keep DXSUM and say so."""
        if not any(batch.collected is not summary and "dx_native" in batch.columns for batch in self.batches):
            return
        for (subject, code), values in sorted(summary.items(), key=lambda item: (item[0][0], _visit_order(item[0][1]))):
            key = (subject, self.place(subject, code, values.get("date")))
            visit = self.ingest.visits.get(key)
            if visit is None or "dx_native" not in values:
                continue
            kept, own = visit.values.get("dx_native"), values["dx_native"]
            if kept == own.value or visit.provenance["dx_native"]["file"] == own.file:
                continue
            # A screening row is of the baseline visit, but earlier than its diagnosis: it is reported, not preferred.
            prefer = code == key[1] or code not in BASELINE_CODES
            self.ingest.visit_note(
                QuarantineReason.DIAGNOSIS_CONFLICT,
                *key,
                Severity.WARN,
                f"ADNIMERGE says {kept}, DXSUM says {own.value} at {_base_code(code)}; "
                f"{'DXSUM' if prefer else 'ADNIMERGE'} is kept",
                file=own.file,
                line=own.row,
            )
            if prefer:
                visit.values["dx_native"] = own.value
                visit.provenance["dx_native"] = {**own.as_json(), "rule": f"{own.rule} at {_base_code(code)}"}

    def read_cdr(self, table: Table) -> None:
        table.require(rating=("CDGLOBAL",))
        boxes = ("CDMEMORY", "CDORIENT", "CDJUDGE", "CDCOMMUN", "CDHOME", "CDCARE")
        box = CDR_BOX.with_missing(*MISSING)
        fields: dict[str, Any] = {
            "date": (parse_date, ("EXAMDATE", "VISDATE")),
            "phase": (_phase, ("COLPROT", "PHASE")),
            "cdr_global": (CDR_GLOBAL.with_missing(*MISSING), ("CDGLOBAL",)),
            "cdr_sb": (CDR_SUM.with_missing(*MISSING), ("CDRSB", "CDSOB")),
            **{name: (box, (name,)) for name in boxes},
        }
        collected = self.ingest.collect(table, self.visit_key, fields)
        for values in collected.values():
            if "cdr_sb" not in values and all(name in values for name in boxes):
                first = values[boxes[0]]
                values["cdr_sb"] = Sourced(
                    sum(values[name].value for name in boxes), first.file, first.row, "sum of six boxes"
                )
        self.add(collected, ("cdr_global", "cdr_sb"))

    def learn_people(self, collected: dict[tuple[str, str], dict[str, Sourced]], names: Sequence[str]) -> None:
        """Person-level values from rows of several visits.

        Rows must agree. Years of education and handedness are asked again at every phase: the earliest answer counts,
        as in ADNIMERGE. Two sexes are kept apart for the image's own decision; anything else that differs is emptied.
        """
        people: dict[str, dict[str, list[Sourced]]] = {}
        for (subject, _), values in sorted(collected.items(), key=lambda item: (item[0][0], _visit_order(item[0][1]))):
            self.known.add(subject)
            for name in names:
                if name in values:
                    people.setdefault(subject, {}).setdefault(name, []).append(values[name])
        for subject, fields in people.items():
            person = self.person.setdefault(subject, {})
            for name, options in fields.items():
                different = next((o for o in options if o.value != options[0].value), None)
                if name == "sex":
                    for option in options:
                        self.sexes.setdefault(subject, {}).setdefault(option.value, option)
                elif different is None or name in ("educ_years", "handedness"):
                    person.setdefault(name, options[0])
                if different is None or name == "sex":
                    continue
                kept = name in ("educ_years", "handedness")
                self.ingest.note(
                    QuarantineReason.DUPLICATE_KEY_CONFLICT,
                    Level.SUBJECT,
                    {"native_subject_id": subject},
                    Severity.WARN if kept else Severity.NULL_FIELD,
                    f"a participant's rows differ in {different.rule}; {'the earliest counts' if kept else 'emptied'}",
                    different.file,
                    different.row,
                )

    def read_demographics(self, table: Table) -> None:
        collected = self.ingest.collect(
            table,
            self.visit_key,
            {
                "sex": (parse_sex, ("PTGENDER",)),
                "educ_years": (EDUCATION_YEARS.with_missing(*MISSING), ("PTEDUCAT",)),
                "handedness": (_code({1.0: "R", 2.0: "L", 3.0: "A"}), ("PTHAND",)),
                "birth": (parse_birth, ("PTDOB",)),
                "birth_year": (Quantity(*BIRTH_YEARS, missing=MISSING), ("PTDOBYY",)),
                "birth_month": (Quantity(1, 12, missing=MISSING), ("PTDOBMM",)),
            },
        )
        for values in collected.values():
            if "birth" not in values and "birth_year" in values:
                source, month = values["birth_year"], values.get("birth_month")
                text = f"{int(source.value)}" + (f"-{int(month.value):02d}" if month is not None else "")
                values["birth"] = Sourced(text, source.file, source.row, "PTDOBYY, PTDOBMM")
        self.learn_people(collected, ("sex", "educ_years", "handedness", "birth"))

    def read_apoe(self, table: Table) -> None:
        allele = ALLELE.with_missing(*MISSING)
        collected = self.ingest.collect(
            table,
            self.visit_key,
            {"one": (allele, ("APGEN1",)), "two": (allele, ("APGEN2",)), "genotype": (parse_genotype, ("GENOTYPE",))},
        )
        for values in collected.values():
            if "genotype" in values:
                values["apoe_genotype"] = values["genotype"]
            elif "one" in values and "two" in values:
                pair = "".join(sorted(f"{int(values[name].value)}" for name in ("one", "two")))
                values["apoe_genotype"] = Sourced(pair, values["one"].file, values["one"].row, "APGEN1, APGEN2")
        self.learn_people(collected, ("apoe_genotype",))
        for subject, person in self.person.items():
            genotype, count = person.get("apoe_genotype"), person.get("apoe4_count")
            if genotype is None:
                continue
            alleles = Sourced(float(genotype.value.count("4")), genotype.file, genotype.row, genotype.rule)
            if count is None:
                person["apoe4_count"] = alleles
            elif count.value != alleles.value:
                del person["apoe_genotype"], person["apoe4_count"]
                self.ingest.note(
                    QuarantineReason.DUPLICATE_KEY_CONFLICT,
                    Level.SUBJECT,
                    {"native_subject_id": subject},
                    Severity.NULL_FIELD,
                    f"{count.rule} and {genotype.rule} differ on the number of APOE e4 alleles; emptied",
                    genotype.file,
                    genotype.row,
                )

    def place_labs(self, collected: dict[tuple[str, str], dict[str, Sourced]]) -> None:
        """Laboratory results belong to the visit they were taken at (screening: the baseline) and to no other."""
        for (subject, code), values in sorted(
            collected.items(), key=lambda item: (item[0][0], _visit_order(item[0][1]))
        ):
            visit = self.ingest.visits.get((subject, self.place(subject, code, values.get("date"))))
            found = {name: values[name] for name in LABS.values() if name in values}
            if visit is None or not found or visit.values.get("labs") is not None:
                continue
            visit.values["labs"] = json.dumps({name: sourced.value for name, sourced in found.items()}, sort_keys=True)
            source = next(iter(found.values()))
            rule = f"LABDATA at {_base_code(code)}"
            visit.provenance["labs"] = {"file": source.file, "row": source.row, "rule": rule}

    def complete_dates(self, registry: Table) -> None:
        """Visits whose own tables give no date have the date of the visit registry."""
        if registry.column("EXAMDATE", "VISDATE") is None:
            return
        for row in registry.rows():
            key = self.visit_key(row)
            visit = None if key is None else self.ingest.visits.get(key)
            if visit is None or visit.date is not None:
                continue
            date, _ = row.date("EXAMDATE", "VISDATE")
            if date is not None:
                visit.date = date
                visit.provenance["visit_date"] = {"file": row.table.relative, "row": row.line, "rule": "REGISTRY"}

    def read_mri_sessions(self, table: Table | None, strength: float) -> None:
        """Field strength by participant and day: one table is of 1.5 T, one of 3 T, and recent ones say it per row."""
        if table is None:
            return
        for row in table.rows():
            subject = self.subject(row)
            date, _ = row.date("EXAMDATE", "SCANDATE", "VISDATE")
            if subject is None or date is None or parse_float(row.get("MMCONDCT")) == 0:
                continue
            own = parse_strength(row.get("FIELD_STRENGTH")) if row.get("FIELD_STRENGTH") else None
            self.strength_of_day.setdefault(subject, {}).setdefault(date, set()).add(own or strength)

    # -- images

    def sex_of(self, subject: str) -> Sourced | None:
        """The participant's sex when all tables agree on it."""
        sexes = self.sexes.get(subject, {})
        return next(iter(sexes.values())) if len(sexes) == 1 else None

    def age_at(
        self, subject: str, date: datetime.date | None, listed: Listed
    ) -> tuple[float | None, str, str, Sourced | None]:
        """Age at the scan: baseline age + time since, else date of birth, else the image list."""
        person = self.person.get(subject, {})
        if date is not None and "age" in person and "date_bl" in person:
            years = person["age"].value + (date - person["date_bl"].value).days / DAYS_PER_YEAR
            return years, "month", "AGE + (scan - EXAMDATE_bl) / 365.25", person["age"]
        if date is not None and "birth" in person:
            birth = person["birth"]
            if "-" not in birth.value:
                return float(date.year - int(birth.value)), "year", "year of the scan - year of birth", birth
            year, month = (int(part) for part in birth.value.split("-"))
            years = (date - datetime.date(year, month, 15)).days / DAYS_PER_YEAR
            return years, "month", "scan - month of birth", birth
        if "age" in listed.values:
            years, precision = listed.get("age")
            return years, precision, "age in the image list", listed.values["age"]
        return None, "", "", None

    def origin_is_adni1(self, subject: str) -> bool:
        """Whether the participant was recruited for ADNI-1."""
        origin = self.person.get(subject, {}).get("origin")
        if origin is not None:
            return bool(origin.value == "ADNI1")
        return int(subject.rsplit("_", 1)[-1]) <= LAST_ADNI1_RID

    def nearest(self, subject: str, date: datetime.date, phase: str, own: Sequence[Visit]) -> tuple[Visit, int] | None:
        """The nearest visit; of equally near ones that of the scan's phase, then the earlier."""
        days = [visit.date.toordinal() for visit in own if visit.date is not None]
        match = match_visit(date.toordinal(), days, self.ingest.window_days)
        if match is None:
            return None
        scan = date.toordinal()
        tied = [place for place, day in enumerate(days) if abs(scan - day) == abs(match[1])]
        best = min(
            tied,
            key=lambda i: (
                bool(phase) and self.phase.get((subject, own[i].code), "") != phase,
                days[i],
                own[i].month is None,
                i,
            ),
        )
        return own[best], scan - days[best]


class _Images:
    """Reads the images of a download after its tables."""

    def __init__(self, state: _Adni, lists: ImageLists, metadata: MetadataFiles, quality: Quality) -> None:
        self.state, self.book, self.lists = state, state.ingest, lists
        self.metadata, self.quality = metadata, quality
        self.bad_scans = known_bad_scans()
        self.listed_people = {row.get(*LIST_SUBJECT).strip().upper() for row in lists.rows()}
        self.search_by: dict[tuple[str, datetime.date], list[Row]] = {}
        for row in lists.search:
            date, _ = row.date(*LIST_DATE)
            if date is not None:
                self.search_by.setdefault((row.get(*LIST_SUBJECT).strip().upper(), date), []).append(row)
        self.own: dict[str, list[Visit]] = {
            subject: sorted((v for v in group if v.date is not None), key=lambda v: (v.date, v.code))
            for subject, group in self.book.visits_of().items()
        }
        self.sessions: dict[tuple[str, str], list[Candidate]] = {}

    def read(self, image: LoniImage) -> None:
        """Give one image its participant, visit and values, or drop it with a reason."""
        book, state = self.book, self.state
        item, usable = start_image(book, image)
        folder = image.subject_folder.upper()
        named = image.named_subject.upper() if PTID.fullmatch(image.named_subject) else ""
        item.subject = folder if PTID.fullmatch(folder) else ""
        if not item.subject and not image.subject_folder:
            item.subject = named  # a tree without the participant's folder
        if not usable:
            return
        if not item.subject:
            book.drop(item, QuarantineReason.ID_UNPARSABLE, "the participant's folder is no PTID such as 005_S_0223")
            return
        if named and named != item.subject:
            book.drop(item, QuarantineReason.AMBIGUOUS_FILE, "the folder and the file's name differ on the participant")
            return
        subject = item.subject
        if subject not in state.known and subject not in self.listed_people:
            book.drop(item, QuarantineReason.ID_NOT_IN_CLINICAL, "no table and no image list knows the participant")
            return
        day, problem = image.scan_date()
        listed, foreign = describe_image(
            self.lists.by_image.get(image.uid, ()),
            self._is_of(subject),
            self.metadata.of(image.uid),
            self.search_by.get((subject, day), ()) if day else (),
        )
        if foreign is not None:
            book.remark(
                item,
                QuarantineReason.DUPLICATE_KEY_CONFLICT,
                "an image list gives this image to another participant; its row is not used",
                source_file=foreign.table.relative,
                source_row=foreign.line,
            )
        descriptions = [image.description, *listed.descriptions]
        modality, weighting = listed.get("modality") or "", listed.get("weighting") or ""
        if (
            (modality and not modality.startswith("MR"))
            or weighting in ("T2", "PD")
            or not (weighting == "T1" or any(map(is_t1_description, descriptions)))
        ):
            book.drop(item, QuarantineReason.NOT_T1, "the series is no T1-weighted volume")
            return
        if not set_scan_date(book, item, day, problem, listed):
            return
        date = item.scan_date
        self._set_scanner(item, listed, image.uid)
        visit = self._match(item, date, listed)
        if visit is None:
            book.drop(item, QuarantineReason.NO_VISIT_IN_WINDOW, f"no visit within {book.window_days} days of the scan")
            return
        item.session = visit.code
        if (subject, _base_code(visit.code)) in self.bad_scans:
            book.drop(item, QuarantineReason.KNOWN_BAD_CONVERSION, "this scan is known not to convert")
            return
        series = image.series_number if image.series_number is not None else listed.get("series")
        rating, chosen, failed = self.quality.of([f"I{image.uid}", *([f"S{series}"] if series is not None else [])])
        if rating is not None:
            item.values["qc_score"] = rating
        if failed or (rating is not None and rating >= 4):
            detail = "failed quality control (PASS 0)" if failed else "rated unusable (series_quality 4)"
            book.drop(item, QuarantineReason.QC_FAIL, f"the custodian: {detail}")
            return
        if not self._set_person(item, listed, date):
            return
        if visit.values.get("dx_native") is None:
            book.remark(item, QuarantineReason.NO_DIAGNOSIS, "no diagnosis at the matched visit")
        description = next((text for text in descriptions if is_t1_description(text)), image.description)
        processed = listed.get("processed")
        if processed is None:
            processed = any(map(is_processed, descriptions))
        item.variant = "processed" if processed else "raw"
        original = listed.get("original")
        if processed and original:
            item.variant_of = f"I{original}"
        phase = state.phase.get((subject, visit.code), "")
        if phase:
            item.values["release"] = phase
        item.order = (date or datetime.date.max, int(image.uid))
        self.sessions.setdefault((subject, visit.code), []).append(
            Candidate(
                item.key,
                description,
                processed,
                item.values.get("field_strength_t"),
                series,
                rating,
                chosen,
                item,
            )
        )

    @staticmethod
    def _is_of(subject: str) -> Callable[[Row], bool]:
        """Whether a list's row is of this participant, or names none."""
        return lambda row: row.get(*LIST_SUBJECT).strip().upper() in (subject, "")

    def _set_scanner(self, item: FoundImage, listed: Listed, uid: str) -> None:
        strength = listed.get("strength") or self.state.strength_of_uid.get(uid)
        if strength is None and item.scan_date is not None:
            by_day = self.state.strength_of_day.get(item.subject, {})
            near = [
                (abs((item.scan_date - day).days), strengths)
                for day, strengths in by_day.items()
                if abs((item.scan_date - day).days) <= SAME_SESSION_DAYS
            ]
            nearest = [strengths for distance, strengths in near if distance == min(near, key=lambda n: n[0])[0]]
            options = set().union(*nearest) if nearest else set()
            strength = options.pop() if len(options) == 1 else None
        if strength is not None:
            item.values["field_strength_t"] = strength
        for column in ("manufacturer", "scanner_model"):
            if listed.get(column):
                item.values[column] = listed.get(column)

    def _match(self, item: FoundImage, date: datetime.date | None, listed: Listed) -> Visit | None:
        """The nearest visit by date; for a scan without a date that of the archive's visit name."""
        label = str(listed.get("visit") or "")
        if date is not None:
            match = self.state.nearest(item.subject, date, phase_of(label), self.own.get(item.subject, ()))
            if match is not None:
                self.book.attach(item, match[0], "date_nearest", match[1])
                return match[0]
            return None
        code = visit_of_label(label)
        visit = None if code is None else self.book.visits.get((item.subject, code))
        if visit is not None:
            self.book.attach(item, visit, "ida_visit", None)
        return visit

    def _set_person(self, item: FoundImage, listed: Listed, date: datetime.date | None) -> bool:
        """Sex, age and the other values of the participant; False when the image was dropped."""
        book, state, subject = self.book, self.state, item.subject
        person, sexes = state.person.get(subject, {}), state.sexes.get(subject, {})
        for column in ("educ_years", "handedness", "apoe_genotype", "apoe4_count", "dx_subject_level"):
            book.set_person(item, column, person.get(column))
        sex, stated = state.sex_of(subject), listed.values.get("sex")
        other = list(sexes.values())[1] if len(sexes) > 1 else listed.conflicts.get("sex")
        if other is None and sex is not None and stated is not None and sex.value != stated.value:
            other = stated
        if other is not None:
            book.drop(item, QuarantineReason.SEX_CONFLICT, "tables and lists differ on sex", other.file, other.row)
            return False
        book.set_person(item, "sex", sex or stated)
        if "sex" not in item.values:
            book.drop(item, QuarantineReason.SEX_MISSING, "no table gives the participant's sex")
            return False
        age, precision, rule, source = state.age_at(subject, date, listed)
        book.set_age(item, age, precision, rule, source.file if source else None, source.row if source else None)
        conflict = listed.conflicts.get("age")
        own = listed.values.get("age")
        if conflict is None and own is not None and age is not None and abs(own.value[0] - age) > AGE_TOLERANCE_YEARS:
            conflict = own
        if conflict is not None:
            book.remark(
                item,
                QuarantineReason.AGE_INCONSISTENT,
                f"ages differ by more than {AGE_TOLERANCE_YEARS:g} years between the image lists and the tables",
                source_file=conflict.file,
                source_row=conflict.row,
            )
        return True

    def add_listed_candidates(self, on_disk: set[str]) -> None:
        """T1 images of the same visits that lists name but that are not on disk: the choice falls behind them."""
        people = {subject for subject, _ in self.sessions}
        for uid, rows in self.lists.by_image.items():
            subject = rows[0].get(*LIST_SUBJECT).strip().upper()
            text = rows[0].get(*LIST_DESCRIPTION)
            if uid in on_disk or subject not in people or not is_t1_description(text):
                continue
            listed, foreign = describe_image(rows, self._is_of(subject), None)
            date = listed.get("date")
            if foreign is not None or date is None:
                continue
            match = self.state.nearest(
                subject, date, phase_of(str(listed.get("visit") or "")), self.own.get(subject, ())
            )
            session = None if match is None else self.sessions.get((subject, match[0].code))
            if session is None:
                continue
            series, processed = listed.get("series"), listed.get("processed")
            rating, chosen, failed = self.quality.of([f"I{uid}", *([f"S{series}"] if series is not None else [])])
            if failed or (rating is not None and rating >= 4):
                continue
            processed = is_processed(text) if processed is None else processed
            session.append(Candidate(f"I{uid}", text, processed, listed.get("strength"), series, rating, chosen))

    def rank(self) -> None:
        """Order the images of every visit; an image that turned out damaged keeps its place in the order."""
        for (subject, code), candidates in self.sessions.items():
            phase = self.state.phase.get((subject, code), "")
            dates = [c.item.scan_date for c in candidates if c.item is not None and c.item.scan_date is not None]
            modern = phase in PHASES[3:] or (not phase and bool(dates) and min(dates) >= datetime.date(2016, 9, 1))
            early = phase in ("ADNI1", "ADNIGO", "") and self.state.origin_is_adni1(subject)
            for candidate in candidates:
                facts = candidate.item.facts if candidate.item is not None else None
                if candidate.strength is None and facts is not None:
                    candidate.strength = facts.field_strength_t
            place = 0
            for candidate in order_candidates(candidates, modern, 1.5 if early and not modern else 3.0):
                item = candidate.item
                duplicate = item is not None and item.refusal is not None and not item.refusal[0].startswith("IMAGE_")
                place += not duplicate
                if item is not None and not item.dropped:
                    item.rank = (place,)
                    item.values["selection_rank"] = min(place, 127)
            self._link_processed([c for c in candidates if c.item is not None and not c.item.dropped])

    def _link_processed(self, candidates: Sequence[Candidate]) -> None:
        """Processed images of a series come from the accepted original of that series."""
        originals = {c.key: c for c in candidates if not c.processed}
        for candidate in candidates:
            item = candidate.item
            if item is None or not candidate.processed or (item.variant_of in originals):
                continue
            same = [c.key for c in originals.values() if candidate.series is not None and c.series == candidate.series]
            item.variant_of = same[0] if len(same) == 1 else None


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read an ADNI download: its tables, and its images where there are any.

    Raises
    ------
    InputError
        When there are neither images nor tables, or no table gives a diagnosis.
    """
    book = Ingest("ADNI", root, params, workers)
    listing = list_with_archives(root, book.files)
    found = group_images(listing.files, PTID)
    if not found and not any(path.lower().endswith(TABLE_SUFFIXES[:-1]) for path in book.files):
        raise no_images(root, "ADNI", "files named *_I<number>.nii or .dcm in folders such as 005_S_0223")
    state = _Adni(book)
    state.read_tables(found)
    images = _Images(
        state,
        read_image_lists(book),
        MetadataFiles(book, listing.files),
        read_quality(book) if found else Quality({}, set(), set()),
    )
    with contextlib.closing(images.metadata):
        for image in found:
            images.read(image)
    drop_damaged_archives(book, listing.damaged)
    on_disk = {image.uid for image in found}
    note_missing_files(book, images.lists, on_disk)
    images.add_listed_candidates(on_disk)
    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    images.rank()
    book.select()
    for item in book.images:
        item.values.setdefault("release", "ADNI")
    return book.finish()


def _finish_visit(visit: Visit) -> None:
    """Say where the scores of a visit come from, and drop what belongs to values that it does not have."""
    for column, source in (("mmse", "mmse_source"), ("cdr_global", "cdr_global_source"), ("cdr_sb", "cdr_sb_source")):
        if visit.values.get(column) is not None:
            visit.values[source] = "measured"
    if visit.values.get("lm_delayed") is not None or visit.values.get("lm_immediate") is not None:
        visit.values["lm_source"] = "measured"
    volumes = ("hippocampus_mm3", "ventricles_mm3", "brain_mm3", "icv_mm3")
    if any(visit.values.get(column) is not None for column in volumes):
        visit.values.setdefault("volume_source", "UCSF-FS")
    else:
        visit.values.pop("volume_source", None)
    if visit.values.get("dx_native") != "Dementia":
        visit.values.pop("dementia_etiology", None)


def required_tables() -> list[tuple[str, tuple[str, ...], bool]]:
    """(what for, table names, required) for the preflight check."""
    return [
        ("visits and diagnosis", ("ADNIMERGE", "DXSUM", "DXSUM_PDXCONV_ADNIALL", "DXSUM_PDXCONV"), True),
        ("CDR", ("CDR",), False),
        ("MMSE", ("MMSE",), False),
        ("logical memory", ("NEUROBAT",), False),
        ("demographics", ("PTDEMOG",), False),
        ("APOE", ("APOERES",), False),
        ("laboratory", ("LABDATA",), False),
    ]
