"""AIBL: downloads of the LONI archive with the non-imaging data extract.

Image folders as in ADNI, but with a whole number as participant (``<RID>/<series>/<time>/I<image>/``), unpacked or
still in the download's zip archives. The visit of an image comes from the image list, else from the dates of the MRI
tables, else from the nearest other examination. The diagnosis is DXCURREN of that very visit, never carried over from
baseline and never derived from the CDR.

Laboratory units: Australian laboratories report SI units. Each column of the laboratory table is in one unit, which its
median decides (:data:`UNITS_BY_MAGNITUDE`; vitamin B12, which no magnitude decides, goes with the majority); the whole
column is converted to the units of ADNI, or none of it. A result that is then outside what a body can hold is emptied:
single results are never converted on their own.

Not supported: tables inside zip archives; series whose slices lie in several folders.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

from medalign3d.cohorts.base import (
    DAYS_PER_MONTH,
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
from medalign3d.cohorts.loni import (
    LABORATORY_RANGES,
    LIST_DATE,
    LIST_SUBJECT,
    ImageLists,
    Listed,
    LoniImage,
    MetadataFiles,
    describe_image,
    drop_damaged_archives,
    group_images,
    is_repeat,
    is_t1_description,
    laboratory_value,
    list_with_archives,
    note_missing_files,
    read_image_lists,
    set_scan_date,
    start_image,
)
from medalign3d.cohorts.tables import TABLE_SUFFIXES, Row, Table, find_table
from medalign3d.cohorts.values import (
    ALLELE,
    CDR_GLOBAL,
    LOGICAL_MEMORY,
    MMSE,
    Quantity,
    is_blank,
    parse_code,
    parse_date,
    parse_float,
    parse_sex,
    parse_whole_id,
)
from medalign3d.params import Params

MISSING = frozenset({-4.0, -1.0})
DIAGNOSIS = {1.0: "NC", 2.0: "MCI", 3.0: "AD"}
NO_DIAGNOSIS_CODES = frozenset({0.0, 7.0, -4.0, -1.0})
AGE_TOLERANCE_YEARS = 2.0
BIRTH_YEARS = (1880, 2000)
#: Tables whose examination dates say when a visit was, in order of preference.
DATE_TABLES = ("mri3meta", "mrimeta", "cdr", "flutemeta", "mmse", "pibmeta", "av45meta", "neurobat", "labdata")
MRI_TABLES = {"mri3meta": 3.0, "mrimeta": 1.5}
LABS = {
    "AXT117": "tsh",
    "BAT126": "vitamin_b12",
    "HMT3": "red_cells",
    "HMT7": "white_cells",
    "HMT13": "platelets",
    "HMT40": "haemoglobin",
    "HMT100": "mch",
    "HMT102": "mchc",
    "RCT6": "urea_nitrogen",
    "RCT11": "glucose",
    "RCT20": "cholesterol",
    "RCT392": "creatinine",
}
#: From Australian (SI) units to the units of ADNI.
FROM_SI = {
    "vitamin_b12": 1.355,  # pmol/L -> pg/mL
    "haemoglobin": 0.1,  # g/L -> g/dL
    "mchc": 0.1,  # g/L -> g/dL
    "urea_nitrogen": 2.801,  # mmol/L -> mg/dL
    "glucose": 18.016,  # mmol/L -> mg/dL
    "cholesterol": 38.67,  # mmol/L -> mg/dL
    "creatinine": 1 / 88.42,  # umol/L -> mg/dL
}
#: Median of a column -> is it in SI units? (limit, whether SI lies below it)
UNITS_BY_MAGNITUDE = {
    "haemoglobin": (40.0, False),
    "mchc": (100.0, False),
    "urea_nitrogen": (10.0, True),
    "glucose": (30.0, True),
    "cholesterol": (25.0, True),
    "creatinine": (15.0, False),
}
HISTORY = {
    "MHPSYCH": "psychiatric",
    "MH2NEURL": "neurologic",
    "MH4CARD": "cardiovascular",
    "MH6HEPAT": "hepatic",
    "MH8MUSCL": "musculoskeletal",
    "MH9ENDO": "endocrine",
    "MH10GAST": "gastrointestinal",
    "MH12RENA": "renal",
    "MH16SMOK": "smoking",
    "MH17MALI": "malignancy",
}
VISIT_NUMBERS = {1: "bl", 2: "m18", 3: "m36", 4: "m54", 5: "m72", 6: "m90", 7: "m108"}
#: Series of another protocol than the study's.
_OTHER_PROTOCOL = re.compile(r"(?:p2|p2_?ND|_ND)$", re.IGNORECASE)


def visit_code(text: str) -> str | None:
    """The visit code of an image list's visit in any of its export forms.

    >>> [visit_code(t) for t in ("1", "Baseline", "18 Month follow-up", "36 mo", "m54", "Base", "4.0", "")]
    ['bl', 'bl', 'm18', 'm36', 'm54', 'bl', 'm54', None]
    """
    name = text.strip().lower()
    if name.startswith("base") or name in ("bl", "sc", "screening"):
        return "bl"
    if match := re.fullmatch(r"m(?:onth)?\s*(\d{1,3})", name):
        return "bl" if int(match[1]) == 0 else f"m{int(match[1]):02d}"
    if match := re.match(r"(\d{1,3})\s*-?\s*(?:mo|mth|m\b)", name):
        return "bl" if int(match[1]) == 0 else f"m{int(match[1]):02d}"
    number = parse_whole_id(name)
    return VISIT_NUMBERS.get(number) if number is not None else None


def join_torn_cells(header: list[str], cells: list[str]) -> list[str] | None:
    """Repair a line with one unquoted comma in free text by joining the two cells that it tore apart.

    The join is made where every cell afterwards suits its column: numbers in numeric columns, dates in date columns.
    Nothing is repaired where no words stand on either side of a comma (a decimal comma must not shift the scores of a
    line), or where two joins are equally good.

    >>> join_torn_cells(["RID", "METHOD", "QC"], ["7", "measured", "AUSTIN AC CT Brain  H19s", "0"])
    ['7', 'measured, AUSTIN AC CT Brain  H19s', '0']
    """
    if len(cells) != len(header) + 1:
        return None

    def suits(name: str, cell: str) -> bool:
        key = name.upper()
        if is_blank(cell):
            return True
        if key in ("RID", "SITEID"):
            return parse_whole_id(cell) is not None
        if key == "VISCODE":
            return visit_code(cell) is not None
        if "DATE" in key:
            return parse_date(cell)[1] is None
        return True

    def words(cell: str) -> bool:
        return bool(re.search(r"[A-Za-z]{2}", cell))

    options = []
    for place in range(len(cells) - 1):
        joined = [*cells[:place], f"{cells[place]}, {cells[place + 1]}", *cells[place + 2 :]]
        if all(suits(name, cell) for name, cell in zip(header, joined, strict=True)):
            # Free text belongs into one cell: words outside of it speak against a join.
            roughness = sum(words(cell) and parse_date(cell)[0] is None for cell in joined)
            options.append(((-(words(cells[place]) + words(cells[place + 1])), roughness), joined))
    best = min((score for score, _ in options), default=(0, 0))
    chosen = [joined for score, joined in options if score == best]
    return chosen[0] if best[0] < 0 and len(chosen) == 1 else None


def parse_birth_year(cell: str) -> tuple[int | None, QuarantineReason | None]:
    """The year of birth, written with a leading slash.

    >>> [parse_birth_year(text)[0] for text in ("/1934", "1934.0", "05/1934", "-4", "/0034")]
    [1934, 1934, 1934, None, None]
    """
    if is_blank(cell) or parse_float(cell) in MISSING:
        return None, None
    match = re.fullmatch(r"(?:\d{0,2}/)*(\d{4})(?:\.0)?", cell.strip())
    if match is None or not BIRTH_YEARS[0] <= int(match[1]) <= BIRTH_YEARS[1]:
        return None, QuarantineReason.DATE_UNPARSABLE
    return int(match[1]), None


def _subject(row: Row) -> str | None:
    rid = parse_whole_id(row.get("RID"))
    return None if rid is None else str(rid)


def _identify(row: Row) -> tuple[str, str] | None:
    subject, raw = _subject(row), row.get("VISCODE")
    if subject is None:
        return None
    return subject, visit_code(raw) or raw.strip().lower()


def laboratory_units(columns: dict[str, list[float]]) -> set[str]:
    """The analytes whose columns are in SI units, decided by the columns' medians (see the module's text)."""
    votes = {
        name: (median(columns[name]) < limit) == below
        for name, (limit, below) in UNITS_BY_MAGNITUDE.items()
        if columns.get(name)
    }
    in_si = {name for name, vote in votes.items() if vote}
    if columns.get("vitamin_b12") and len(in_si) * 2 > len(votes):
        in_si.add("vitamin_b12")
    return in_si


class _Aibl:
    """State of one AIBL ingest."""

    def __init__(self, book: Ingest) -> None:
        self.book = book
        self.used: list[str] = []
        self.table_files = [path for path in book.files if path.lower().endswith(TABLE_SUFFIXES)]
        self.people: dict[str, dict[str, Sourced]] = {}
        self.sexes: dict[str, dict[str, Sourced]] = {}
        #: Participant -> visit -> table -> date of the examination.
        self.dates: dict[str, dict[str, dict[str, Sourced]]] = {}
        self.strengths: dict[str, dict[datetime.date, set[float]]] = {}
        #: Tables of scores that are there.
        self.scored: set[str] = set()

    # -- tables

    def table(self, name: str, required: bool = False, **columns: tuple[str, ...]) -> Table | None:
        path = find_table(self.book.root, self.table_files, name, prefixes=("aibl",), required=required)
        if path is None:
            return None
        self.used.append(path)
        read = self.book.read(path, name, repair=join_torn_cells)
        read.require(id=("RID",), **columns)
        return read

    def visit(self, subject: str, code: str, source: Sourced | None) -> Visit:
        """The visit; a code that says no month is remarked on once."""
        if (subject, code) not in self.book.visits and visit_code(code) is None:
            self.book.visit_note(
                QuarantineReason.VISCODE_UNKNOWN,
                subject,
                code,
                Severity.WARN,
                "no month follows from this visit code; the visit is matched by its date",
                file=source.file if source else None,
                line=source.row if source else None,
            )
        return self.book.visit(subject, code)

    def read_tables(self) -> None:
        self._read_diagnosis()
        memory = LOGICAL_MEMORY.with_missing(*MISSING)
        scores: dict[str, dict[str, Any]] = {
            "mmse": {"mmse": (MMSE.with_missing(*MISSING), ("MMSCORE",))},
            "cdr": {"cdr_global": (CDR_GLOBAL.with_missing(*MISSING), ("CDGLOBAL",))},
            "neurobat": {"lm_immediate": (memory, ("LIMMTOTAL",)), "lm_delayed": (memory, ("LDELTOTAL",))},
        }
        for name in DATE_TABLES:
            read = self.table(name)
            if read is None:
                continue
            fields = {"date": (parse_date, ("EXAMDATE", "SCANDATE")), **scores.get(name, {})}
            if name == "labdata":
                fields |= {analyte: (laboratory_value, (code,)) for code, analyte in LABS.items()}
            if name in ("mmse", "cdr"):
                self.scored.add(name)
            collected = self.book.collect(read, _identify, fields)
            if name == "labdata":
                self._set_labs(collected)
            for (subject, code), values in collected.items():
                if "date" in values:
                    self.dates.setdefault(subject, {}).setdefault(code, {})[name] = values["date"]
                    if name in MRI_TABLES:
                        by_day = self.strengths.setdefault(subject, {})
                        by_day.setdefault(values["date"].value, set()).add(MRI_TABLES[name])
                if name in scores:
                    visit = self.visit(subject, code, next(iter(values.values()), None))
                    for column in scores[name]:
                        visit.set(column, values.get(column))
        self._read_people()
        self._read_history()
        self._set_dates()

    def _read_diagnosis(self) -> None:
        """DXCURREN; exactly one of the three flags where a table has no such column."""
        table = self.table("pdxconv", required=True, visit=("VISCODE",), diagnosis=("DXCURREN", "DXNORM"))
        assert table is not None
        flag = Quantity(0, 1, missing=MISSING)
        collected = self.book.collect(
            table,
            _identify,
            {
                "dx": (lambda cell: parse_code(cell, DIAGNOSIS, NO_DIAGNOSIS_CODES), ("DXCURREN",)),
                **{name: (flag, (name,)) for name in ("DXNORM", "DXMCI", "DXAD")},
            },
        )
        for (subject, code), values in collected.items():
            visit = self.visit(subject, code, next(iter(values.values()), None))
            if table.column("DXCURREN") is None:
                set_flags = [
                    (name, label)
                    for name, label in (("DXNORM", "NC"), ("DXMCI", "MCI"), ("DXAD", "AD"))
                    if name in values and values[name].value == 1
                ]
                if len(set_flags) == 1:
                    source = values[set_flags[0][0]]
                    visit.set("dx_native", Sourced(set_flags[0][1], source.file, source.row, source.rule))
            visit.set("dx_native", values.get("dx"))

    def _set_labs(self, collected: dict[tuple[str, str], dict[str, Sourced]]) -> None:
        """Laboratory results in the units of ADNI."""
        columns: dict[str, list[float]] = {}
        for values in collected.values():
            for name in LABS.values():
                if name in values:
                    columns.setdefault(name, []).append(values[name].value)
        in_si = laboratory_units(columns)
        for (subject, code), values in collected.items():
            results: dict[str, float] = {}
            for name in LABS.values():
                if name not in values:
                    continue
                number = values[name].value
                if name in in_si:
                    number = round(number * FROM_SI[name], 3)
                low, high = LABORATORY_RANGES[name]
                if low <= number <= high:
                    results[name] = number
                    continue
                source = values[name]
                detail = f"no possible {name} in the unit of its column; emptied"
                reason = QuarantineReason.VALUE_OUT_OF_RANGE
                self.book.emptied(reason, subject, code, source.rule, source.file, source.row, detail)
            if results:
                first = values[next(iter(results))]
                visit = self.visit(subject, code, first)
                converted = sorted(set(results) & in_si)
                rule = "labdata" + (f" (from SI units: {', '.join(converted)})" if converted else "")
                visit.values["labs"] = json.dumps(results, sort_keys=True)
                visit.provenance["labs"] = {"file": first.file, "row": first.row, "rule": rule}

    def _read_people(self) -> None:
        """Sex, year of birth (given at baseline, valid for all visits) and APOE."""

        def merge(collected: dict[tuple[str, str], dict[str, Sourced]]) -> None:
            for (subject, code), values in collected.items():
                person = self.people.setdefault(subject, {})
                for name, source in values.items():
                    if name == "sex":
                        self.sexes.setdefault(subject, {}).setdefault(source.value, source)
                    elif name in person and person[name].value != source.value:
                        self.book.visit_note(
                            QuarantineReason.DUPLICATE_KEY_CONFLICT,
                            subject,
                            code,
                            Severity.NULL_FIELD,
                            f"visits differ in {source.rule}; emptied",
                            file=source.file,
                            line=source.row,
                        )
                        person[name] = Sourced(None, source.file, source.row, source.rule)
                    person.setdefault(name, source)

        demographics = self.table("ptdemog", required=True, sex=("PTGENDER",))
        assert demographics is not None
        fields = {"sex": (parse_sex, ("PTGENDER",)), "birth_year": (parse_birth_year, ("PTDOB", "PTDOBYY"))}
        merge(self.book.collect(demographics, _identify, fields))
        apoe = self.table("apoeres")
        if apoe is not None:
            allele = ALLELE.with_missing(*MISSING)
            merge(self.book.collect(apoe, _identify, {"one": (allele, ("APGEN1",)), "two": (allele, ("APGEN2",))}))
        for person in self.people.values():
            one, two = person.get("one"), person.get("two")
            if one is not None and two is not None and one.value is not None and two.value is not None:
                genotype = "".join(sorted((str(int(one.value)), str(int(two.value)))))
                person["apoe_genotype"] = Sourced(genotype, one.file, one.row, "APGEN1, APGEN2")
                person["apoe4_count"] = Sourced(float(genotype.count("4")), one.file, one.row, "APGEN1, APGEN2")

    def _read_history(self) -> None:
        history = self.table("medhist")
        if history is None:
            return
        present = {name: (Quantity(0, 1, 1, missing=MISSING), (column,)) for column, name in HISTORY.items()}
        for (subject, code), values in self.book.collect(history, _identify, present).items():
            if values:
                source = next(iter(values.values()))
                visit = self.visit(subject, code, source)
                visit.values["history"] = json.dumps(
                    {name: int(sourced.value) for name, sourced in values.items()}, sort_keys=True
                )
                visit.provenance["history"] = {"file": source.file, "row": source.row, "rule": "medhist"}

    def _set_dates(self) -> None:
        """Date and month of every visit: the best dated examination, else baseline + months of the code."""
        for subject, by_visit in self.dates.items():
            for code, by_table in by_visit.items():
                source = next(by_table[name] for name in DATE_TABLES if name in by_table)
                visit = self.visit(subject, code, source)
                visit.date = source.value
                visit.provenance["visit_date"] = source.as_json()
        baseline = {v.subject: v.date for v in self.book.visits.values() if v.code == "bl" and v.date}
        for visit in self.book.visits.values():
            months = re.fullmatch(r"m(\d+)", visit.code)
            visit.month = 0.0 if visit.code == "bl" else float(months[1]) if months else None
            if visit.date is None and months and visit.subject in baseline:
                visit.date = baseline[visit.subject] + datetime.timedelta(days=round(int(months[1]) * DAYS_PER_MONTH))
                visit.provenance["visit_date"] = {"file": None, "row": None, "rule": "baseline + months of VISCODE"}
            for column, kind in (
                ("mmse", "mmse_source"),
                ("cdr_global", "cdr_global_source"),
                ("lm_delayed", "lm_source"),
                ("lm_immediate", "lm_source"),
            ):
                if visit.values.get(column) is not None:
                    visit.values[kind] = "measured"

    # -- images

    def match(self, item: FoundImage, listed: Listed, date: datetime.date | None) -> Visit | None:
        """The visit of an image: image list, else MRI tables, else the nearest other examination."""
        stated = listed.get("visit")
        code = visit_code(str(stated)) if stated is not None else None
        if code is not None:
            visit = self.book.visits.get((item.subject, code))
            if visit is None:
                return None  # the list names a visit that the extract does not have
            delta = (date - visit.date).days if date is not None and visit.date is not None else None
            self.book.attach(item, visit, "ida_visit", delta)
            return visit
        if date is None:
            return None
        for names in (tuple(MRI_TABLES), tuple(name for name in DATE_TABLES if name not in MRI_TABLES)):
            options = [
                (by_table[name].value.toordinal(), code)
                for code, by_table in self.dates.get(item.subject, {}).items()
                for name in names
                if name in by_table
            ]
            match = match_visit(date.toordinal(), [day for day, _ in options], self.book.window_days)
            if match is not None:
                visit = self.book.visits[(item.subject, options[match[0]][1])]
                self.book.attach(item, visit, "date_nearest", match[1])
                return visit
        return None

    def strength_at(self, subject: str, date: datetime.date | None) -> float | None:
        """Field strength of the MRI table with the nearest row; None when both magnets are equally near."""
        if date is None:
            return None
        near: dict[int, set[float]] = {}
        for day, strengths in self.strengths.get(subject, {}).items():
            distance = abs((date - day).days)
            if distance <= self.book.window_days:
                near.setdefault(distance, set()).update(strengths)
        nearest = near[min(near)] if near else set()
        return next(iter(nearest)) if len(nearest) == 1 else None

    def set_sex(self, item: FoundImage, listed: Listed) -> bool:
        """The participant's sex; False when the image was dropped."""
        sexes, stated = self.sexes.get(item.subject, {}), listed.values.get("sex")
        options = list(sexes.values())
        other = options[1] if len(options) > 1 else listed.conflicts.get("sex")
        if other is None and options and stated is not None and stated.value != options[0].value:
            other = stated
        if other is not None:
            self.book.drop(
                item, QuarantineReason.SEX_CONFLICT, "the image list and ptdemog differ on sex", other.file, other.row
            )
            return False
        self.book.set_person(item, "sex", options[0] if options else stated)
        if "sex" not in item.values:
            self.book.drop(item, QuarantineReason.SEX_MISSING, "no table gives the participant's sex")
            return False
        return True

    def set_age(self, item: FoundImage, listed: Listed, date: datetime.date | None) -> None:
        """Age of the image list, else year of the scan minus year of birth."""
        stated = listed.values.get("age")
        born = self.people.get(item.subject, {}).get("birth_year")
        by_year = date.year - born.value if date is not None and born is not None and born.value is not None else None
        other = listed.conflicts.get("age")
        if stated is not None:
            years, precision = stated.value
            self.book.set_age(item, years, precision, "age in the image list", stated.file, stated.row)
            if by_year is not None and abs(years - by_year) > AGE_TOLERANCE_YEARS:
                other = stated
        elif by_year is not None and born is not None:
            rule = "year of the scan - year of birth"
            self.book.set_age(item, float(by_year), "year", rule, born.file, born.row)
        else:
            self.book.set_age(item, None, "", "", born.file if born else None, born.row if born else None)
        if other is not None:
            self.book.remark(
                item,
                QuarantineReason.AGE_INCONSISTENT,
                f"ages differ by more than {AGE_TOLERANCE_YEARS:g} years between the image lists and the year of birth",
                source_file=other.file,
                source_row=other.row,
            )

    def check_scores(self, item: FoundImage, visit: Visit) -> None:
        """MMSE and CDR are all but complete at imaging visits: a missing one is a problem of the data."""
        missing = [
            name
            for name, column in (("mmse", "mmse"), ("cdr", "cdr_global"))
            if name in self.scored and visit.values.get(column) is None
        ]
        if missing and not self.book.noted(visit.subject, visit.code):
            self.book.remark(
                item,
                QuarantineReason.FILE_WITHOUT_RECORD,
                f"no {' and no '.join(name.upper() for name in missing)} at the image's visit",
            )


def _read_image(
    state: _Aibl,
    image: LoniImage,
    lists: ImageLists,
    search_by: dict[tuple[str, datetime.date], list[Row]],
    metadata: MetadataFiles,
    known: set[str],
) -> None:
    """Give one image its participant, visit and values, or drop it with a reason."""
    book = state.book
    item, usable = start_image(book, image)
    folder = image.subject_folder or image.named_subject
    if not usable:
        item.subject = folder
        return
    if not re.fullmatch(r"\d{1,7}", folder):
        book.drop(item, QuarantineReason.ID_UNPARSABLE, "the participant's folder is no whole number")
        return
    # A padded folder is not the person of the unpadded number: it is a stray one.
    subject = folder if folder.startswith("0") else str(int(folder))
    item.subject = subject
    if image.named_subject and int(image.named_subject.rsplit("_", 1)[-1]) != int(folder):
        book.drop(item, QuarantineReason.AMBIGUOUS_FILE, "the folder and the file's name differ on the participant")
        return
    if subject not in known:
        book.drop(item, QuarantineReason.ID_NOT_IN_CLINICAL, "no table and no image list knows the participant")
        return
    day, problem = image.scan_date()
    listed, foreign = describe_image(
        lists.by_image.get(image.uid, ()),
        lambda row: _listed_subject(row) in (subject, ""),
        metadata.of(image.uid),
        search_by.get((subject, day), ()) if day else (),
    )
    if foreign is not None:
        book.remark(
            item,
            QuarantineReason.DUPLICATE_KEY_CONFLICT,
            "an image list gives this image to another participant; its row is not used",
            source_file=foreign.table.relative,
            source_row=foreign.line,
        )
    modality, weighting = listed.get("modality") or "", listed.get("weighting") or ""
    if (
        (modality and not modality.startswith("MR"))
        or weighting in ("T2", "PD")
        or not any(map(is_t1_description, [image.description, *listed.descriptions]))
    ):
        book.drop(item, QuarantineReason.NOT_T1, "the series is no T1-weighted volume")
        return
    if not set_scan_date(book, item, day, problem, listed):
        return
    date = item.scan_date
    if "visit" in listed.conflicts:
        book.remark(
            item,
            QuarantineReason.DUPLICATE_KEY_CONFLICT,
            "image lists differ on the visit of this image; it is matched by date",
            source_file=listed.conflicts["visit"].file,
            source_row=listed.conflicts["visit"].row,
        )
    visit = state.match(item, listed, date)
    if visit is None:
        book.drop(
            item,
            QuarantineReason.NO_VISIT_IN_WINDOW,
            f"no visit in the image list and none within {book.window_days} days of the scan",
        )
        return
    item.session = visit.code
    if not state.set_sex(item, listed):
        return
    person = state.people.get(subject, {})
    for column in ("apoe_genotype", "apoe4_count"):
        book.set_person(item, column, person.get(column))
    state.set_age(item, listed, date or visit.date)
    if visit.values.get("dx_native") is None:
        book.remark(item, QuarantineReason.NO_DIAGNOSIS, "no diagnosis at the image's visit")
    state.check_scores(item, visit)
    if listed.get("strength") is not None:
        item.values["field_strength_t"] = listed.get("strength")
    for column in ("manufacturer", "scanner_model"):
        if listed.get(column):
            item.values[column] = listed.get(column)
    # A repeat exists because the first acquisition may be worse; still the first is the protocol's image.
    item.order = (date or datetime.date.max, int(image.uid))
    item.rank = (bool(_OTHER_PROTOCOL.search(image.description)), is_repeat(image.description), int(image.uid))


def _listed_subject(row: Row) -> str:
    """The participant of a list's row: unpadded, as in the tables."""
    text = row.get(*LIST_SUBJECT).strip()
    number = parse_whole_id(text)
    return text if number is None or text.startswith("0") else str(number)


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read an AIBL download: its tables, and its images where there are any.

    Raises
    ------
    InputError
        When there are neither images nor tables, or a table that it cannot do without is missing.
    """
    book = Ingest("AIBL", root, params, workers)
    listing = list_with_archives(root, book.files)
    found = group_images(listing.files)
    if not found and not any(path.lower().endswith(TABLE_SUFFIXES[:-1]) for path in book.files):
        raise no_images(
            root, "AIBL", "files named *_I<number>.nii or .dcm in folders such as 123/MPRAGE_ADNI_confirmed"
        )
    state = _Aibl(book)
    state.read_tables()
    lists = read_image_lists(book, skip=state.used)
    search_by: dict[tuple[str, datetime.date], list[Row]] = {}
    for row in lists.search:
        date, _ = row.date(*LIST_DATE)
        if date is not None:
            search_by.setdefault((_listed_subject(row), date), []).append(row)
    known = {visit.subject for visit in book.visits.values()} | set(state.people)
    known |= {_listed_subject(row) for row in lists.rows()}
    release = next((m[0] for path in book.files if (m := re.search(r"Data_extract_[0-9.]+[0-9]", path))), "AIBL")
    with contextlib.closing(MetadataFiles(book, listing.files)) as metadata:
        for image in found:
            _read_image(state, image, lists, search_by, metadata, known)
    drop_damaged_archives(book, listing.damaged)
    note_missing_files(book, lists, {image.uid for image in found})
    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    for item in book.images:
        item.values["release"] = release
        if item.facts is not None and item.facts.field_strength_t is None and "field_strength_t" not in item.values:
            strength = state.strength_at(item.subject, item.scan_date)
            if strength is not None:
                item.values["field_strength_t"] = strength
    return book.finish()
