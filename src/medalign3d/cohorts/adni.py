"""ADNI: downloads of the LONI archive.

Reads the participant folders (``005_S_0223/<series>/<time>/I<image>/``; NIfTI or DICOM), any collection or search list,
and the study tables by name with or without a date of export. ADNIMERGE is used when it is there; without it visits are
built from DXSUM, CDR, MMSE, NEUROBAT, PTDEMOG and APOERES. Scans are matched to visits by date; ``DX_bl`` and the
archive's ``Group`` describe enrolment and are never taken for a visit's diagnosis.

Not supported: image archives that are still zipped.
"""

from __future__ import annotations

import datetime
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
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
from medalign3d.cohorts.images import ImageFile, tesla
from medalign3d.cohorts.loni import (
    LIST_DATE,
    LIST_DESCRIPTION,
    LIST_SUBJECT,
    LIST_VISIT,
    LoniImage,
    collection_rows,
    group_images,
    is_processed,
    is_repeat,
    is_t1_description,
    laboratory_value,
    read_image_lists,
)
from medalign3d.cohorts.tables import Row, Table, find_table
from medalign3d.cohorts.values import (
    ALLELE,
    APOE4_COUNT,
    CDR_BOX,
    CDR_GLOBAL,
    CDR_SUM,
    EDUCATION_YEARS,
    FAQ,
    LOGICAL_MEMORY,
    MMSE,
    MOCA,
    Quantity,
    age_precision_of,
    is_blank,
    parse_code,
    parse_date,
    parse_float,
    parse_number,
    parse_sex,
    parse_whole_id,
)
from medalign3d.errors import MissingTable
from medalign3d.params import Params

PTID = re.compile(r"\d{3}_S_\d{4,5}")
MISSING = frozenset({-4.0, -1.0})
BASELINE_CODES = ("bl", "sc", "scmri", "init")
#: Raw codes of ADNI-2 for tables that have no month-coded VISCODE2.
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
    "smc": "CN",
    "normal": "CN",
    "mci": "MCI",
    "emci": "MCI",
    "lmci": "MCI",
    "dementia": "Dementia",
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
KNOWN_BAD_SCANS = Path(__file__).with_name("adni_known_bad.csv")
IDA_VISITS = {
    "adni screening": "bl",
    "adni baseline": "bl",
    "adnigo screening mri": "bl",
    "adni2 screening mri-new pt": "bl",
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


def _words(meanings: dict[str, str]) -> Any:
    def parse(cell: str) -> tuple[str | None, QuarantineReason | None]:
        if is_blank(cell) or parse_float(cell) in MISSING:
            return None, None
        meaning = meanings.get(cell.strip().lower())
        return (meaning, None) if meaning else (None, QuarantineReason.SENTINEL_UNKNOWN)

    return parse


def _code(meanings: dict[float, str]) -> Any:
    return lambda cell: parse_code(cell, meanings, MISSING)


def _genotype(cell: str) -> tuple[str | None, QuarantineReason | None]:
    if is_blank(cell) or parse_float(cell) in MISSING:
        return None, None
    digits = re.fullmatch(r"[eE]?([234])\s*[/,;-]?\s*[eE]?([234])", cell.strip())
    return ("".join(sorted(digits.groups())), None) if digits else (None, QuarantineReason.SENTINEL_UNKNOWN)


class _Adni:
    """State of one ADNI ingest."""

    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest
        self.ptid_of_rid: dict[int, str] = {}
        self.person: dict[str, dict[str, Sourced]] = {}
        self.baseline: dict[str, dict[str, Sourced]] = {}
        self.known: set[str] = set()
        self.unknown_codes: set[tuple[str, str]] = set()
        self.colprot: dict[tuple[str, str], str] = {}

    # -- tables

    def table(self, *names: str, used_for: str) -> Table | None:
        path = find_table(self.ingest.root, self.ingest.files, *names, prefixes=_EXPORT_PREFIXES, required=False)
        return None if path is None else self.ingest.read(path, used_for)

    def subject(self, row: Row) -> str | None:
        ptid = row.get("PTID")
        if PTID.fullmatch(ptid):
            return ptid
        rid = parse_whole_id(row.get("RID"))
        return None if rid is None else self.ptid_of_rid.get(rid, f"RID{rid}")

    def visit_key(self, row: Row) -> tuple[str, str] | None:
        subject = self.subject(row)
        if subject is None:
            return None
        code = row.get("VISCODE2")
        if is_blank(code) or parse_float(code) in MISSING:
            raw = row.get("VISCODE").lower()
            code = RAW_CODES.get(raw, raw)
        return subject, canonical_visit(code)[0]

    def learn_ids(self, tables: list[Table | None], images: list[LoniImage]) -> None:
        for image in images:
            if PTID.fullmatch(image.subject_folder):
                self.ptid_of_rid.setdefault(int(image.subject_folder.rsplit("_", 1)[-1]), image.subject_folder)
        for table in tables:
            if table is None or table.column("PTID") is None or table.column("RID") is None:
                continue
            for row in table.rows():
                rid, ptid = parse_whole_id(row.get("RID")), row.get("PTID")
                if rid is not None and PTID.fullmatch(ptid):
                    self.ptid_of_rid[rid] = ptid

    def fold(self, collected: dict[tuple[str, str], dict[str, Sourced]], file_row: dict[str, str]) -> None:
        """Put collected values into visits: ``sc``, ``scmri``, ``init`` belong to the baseline visit, after ``bl``."""
        order = {code: place for place, code in enumerate(BASELINE_CODES)}
        for (subject, code), values in sorted(
            collected.items(), key=lambda i: (i[0][0], order.get(i[0][1], 9), i[0][1])
        ):
            if subject.startswith("RID"):
                continue  # no table and no folder says which site this person belongs to
            self.known.add(subject)
            _, month, known = canonical_visit(code)
            if not known and (subject, code) not in self.unknown_codes:
                self.unknown_codes.add((subject, code))
                source = next(iter(values.values()), None)
                self.ingest.visit_note(
                    QuarantineReason.VISCODE_UNKNOWN,
                    subject,
                    code,
                    Severity.WARN,
                    "no month follows from this visit code; the visit is matched by its date",
                    file=source.file if source else None,
                    line=source.row if source else None,
                )
            visit = self.ingest.visit(subject, "bl" if code in BASELINE_CODES else code)
            visit.month = month
            if visit.date is None and "date" in values:
                visit.date = values["date"].value
            for name, column in file_row.items():
                visit.set(column, values.get(name), rule=f"{values[name].rule} at {code}" if name in values else None)

    def read_tables(self, images: list[LoniImage]) -> None:
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
        apoe = self.table("APOERES", used_for="APOE")
        labs = self.table("LABDATA", used_for="laboratory")
        self.learn_ids([merge, dxsum, demographics, cdr, mmse, neurobat, apoe], images)
        if merge is not None:
            self.read_merge(merge)
        if dxsum is not None:
            self.read_dxsum(dxsum)
        dates = ("EXAMDATE", "VISDATE")
        if cdr is not None:
            cdr.require(id=("RID", "PTID"), rating=("CDGLOBAL",))
            boxes = ("CDMEMORY", "CDORIENT", "CDJUDGE", "CDCOMMUN", "CDHOME", "CDCARE")
            box = CDR_BOX.with_missing(*MISSING)
            fields: dict[str, Any] = {
                "date": (parse_date, dates),
                "cdr_global": (CDR_GLOBAL.with_missing(*MISSING), ("CDGLOBAL",)),
                "cdr_sb": (CDR_SUM.with_missing(*MISSING), ("CDRSB", "CDSOB")),
                **{name: (box, (name,)) for name in boxes},
            }
            collected = self.ingest.collect(cdr, self.visit_key, fields)
            for values in collected.values():
                if "cdr_sb" not in values and all(name in values for name in boxes):
                    first = values[boxes[0]]
                    values["cdr_sb"] = Sourced(
                        sum(values[name].value for name in boxes), first.file, first.row, "sum of six boxes"
                    )
            self.fold(collected, {"cdr_global": "cdr_global", "cdr_sb": "cdr_sb"})
        if mmse is not None:
            mmse.require(id=("RID", "PTID"), score=("MMSCORE",))
            self.fold(
                self.ingest.collect(
                    mmse,
                    self.visit_key,
                    {"date": (parse_date, dates), "mmse": (MMSE.with_missing(*MISSING), ("MMSCORE",))},
                ),
                {"mmse": "mmse"},
            )
        if neurobat is not None:
            memory = LOGICAL_MEMORY.with_missing(*MISSING)
            self.fold(
                self.ingest.collect(
                    neurobat,
                    self.visit_key,
                    {
                        "date": (parse_date, dates),
                        "lm_immediate": (memory, ("LIMMTOTAL",)),
                        "lm_delayed": (memory, ("LDELTOTAL",)),
                    },
                ),
                {"lm_immediate": "lm_immediate", "lm_delayed": "lm_delayed"},
            )
        if moca is not None and moca.column("MOCA") is not None:
            self.fold(
                self.ingest.collect(
                    moca,
                    self.visit_key,
                    {"date": (parse_date, dates), "moca": (MOCA.with_missing(*MISSING), ("MOCA",))},
                ),
                {"moca": "moca"},
            )
        if demographics is not None:
            self.read_demographics(demographics)
        if apoe is not None:
            self.read_apoe(apoe)
        if labs is not None:
            self.read_labs(labs)

    def read_merge(self, table: Table) -> None:
        table.require(id=("RID", "PTID"), visit=("VISCODE",), date=("EXAMDATE",), diagnosis=("DX",))
        missing = MISSING
        volumes = {
            "Hippocampus": ("hippocampus_mm3", Quantity(500, 15e3)),
            "Ventricles": ("ventricles_mm3", Quantity(1e3, 250e3)),
            "WholeBrain": ("brain_mm3", Quantity(5e5, 1.8e6)),
            "ICV": ("icv_mm3", Quantity(8e5, 2.4e6)),
        }
        fields: dict[str, Any] = {
            "date": (parse_date, ("EXAMDATE",)),
            "dx": (dx_from_words, ("DX",)),
            "mmse": (MMSE.with_missing(*missing), ("MMSE",)),
            "moca": (MOCA.with_missing(*missing), ("MOCA",)),
            "cdr_sb": (CDR_SUM.with_missing(*missing), ("CDRSB",)),
            "lm_delayed": (LOGICAL_MEMORY.with_missing(*missing), ("LDELTOTAL",)),
            "faq": (FAQ.with_missing(*missing), ("FAQ",)),
            **{column: (quantity.with_missing(*missing), (name,)) for name, (column, quantity) in volumes.items()},
            "colprot": (lambda cell: (cell or None, None), ("COLPROT",)),
            # Person-level values, repeated on every row of the person.
            "age": (Quantity(15, 110, missing=missing), ("AGE",)),
            "sex": (parse_sex, ("PTGENDER",)),
            "educ_years": (EDUCATION_YEARS.with_missing(*missing), ("PTEDUCAT",)),
            "apoe4_count": (APOE4_COUNT.with_missing(*missing), ("APOE4",)),
            "dx_bl": (_words(DX_BASELINE), ("DX_bl",)),
            "date_bl": (parse_date, ("EXAMDATE_bl",)),
        }
        collected = self.ingest.collect(table, self.visit_key, fields)
        self.fold(
            collected,
            {
                "dx": "dx_native",
                "mmse": "mmse",
                "moca": "moca",
                "cdr_sb": "cdr_sb",
                "lm_delayed": "lm_delayed",
                "faq": "faq",
                **{column: column for column, _ in volumes.values()},
            },
        )
        for (subject, code), values in collected.items():
            if "colprot" in values:
                self.colprot[(subject, code)] = values["colprot"].value
            person = self.person.setdefault(subject, {})
            for name in ("sex", "educ_years", "apoe4_count", "dx_bl"):
                if name in values:
                    if name == "sex" and "sex" in person and person["sex"].value != values["sex"].value:
                        person["sex_conflict"] = values["sex"]
                    person.setdefault(name, values[name])
            for name in ("age", "date_bl"):
                if name in values:
                    self.baseline.setdefault(subject, {}).setdefault(name, values[name])
            if code == "bl" and "date" in values:
                self.baseline.setdefault(subject, {}).setdefault("date_bl", values["date"])

    def read_dxsum(self, table: Table) -> None:
        table.require(id=("RID", "PTID"), diagnosis=("DIAGNOSIS", "DXCHANGE", "DXCURREN"))
        collected = self.ingest.collect(
            table,
            self.visit_key,
            {
                "date": (parse_date, ("EXAMDATE", "VISDATE")),
                "DIAGNOSIS": (_code(DIAGNOSIS), ("DIAGNOSIS",)),
                "DXCHANGE": (_code(DXCHANGE), ("DXCHANGE",)),
                "DXCURREN": (_code(DIAGNOSIS), ("DXCURREN",)),
                **{flag: (Quantity(0, 1, missing=MISSING), (flag,)) for flag in ("DXNORM", "DXMCI", "DXAD")},
            },
        )
        for values in collected.values():
            dx = values.get("DIAGNOSIS") or values.get("DXCHANGE") or values.get("DXCURREN")
            if dx is None:
                flags = [
                    (flag, label)
                    for flag, label in (("DXNORM", "CN"), ("DXMCI", "MCI"), ("DXAD", "Dementia"))
                    if flag in values and values[flag].value == 1
                ]
                if len(flags) == 1:
                    source = values[flags[0][0]]
                    dx = Sourced(flags[0][1], source.file, source.row, flags[0][0])
            if dx is not None:
                values["dx"] = dx
        before = {key: visit.values.get("dx_native") for key, visit in self.ingest.visits.items()}
        self.fold(collected, {"dx": "dx_native"})
        order = {code: place for place, code in enumerate(BASELINE_CODES)}
        seen: set[tuple[str, str]] = set()
        for (subject, code), values in sorted(
            collected.items(), key=lambda i: (i[0][0], order.get(i[0][1], 9), i[0][1])
        ):
            key = (subject, "bl" if code in BASELINE_CODES else code)
            if key in seen or "dx" not in values:
                continue
            seen.add(key)
            if before.get(key) is not None and before[key] != values["dx"].value:
                visit = self.ingest.visits[key]
                visit.values["dx_native"] = values["dx"].value
                visit.provenance["dx_native"] = values["dx"].as_json()
                self.ingest.visit_note(
                    QuarantineReason.DIAGNOSIS_CONFLICT,
                    *key,
                    Severity.WARN,
                    f"ADNIMERGE says {before[key]}, DXSUM says {values['dx'].value}; DXSUM is kept",
                    file=values["dx"].file,
                    line=values["dx"].row,
                )

    def person_rows(self, table: Table, fields: dict[str, Any]) -> dict[str, dict[str, Sourced]]:
        """Person-level fields; where rows of several visits have a value it counts only when all agree."""
        collected = self.ingest.collect(table, self.visit_key, fields)
        people: dict[str, dict[str, list[Sourced]]] = {}
        for (subject, _), values in collected.items():
            for name, sourced in values.items():
                people.setdefault(subject, {}).setdefault(name, []).append(sourced)
        return {
            subject: {name: options[0] for name, options in fields_.items() if len({o.value for o in options}) == 1}
            for subject, fields_ in people.items()
        }

    def read_demographics(self, table: Table) -> None:
        table.require(id=("RID", "PTID"))

        def birth(cell: str) -> tuple[str | None, QuarantineReason | None]:
            if is_blank(cell) or parse_float(cell) in MISSING:
                return None, None
            match = re.fullmatch(r"(?:(\d{1,2})/)?(?:\d{1,2}/)?(\d{4})", cell.strip().lstrip("/")) or re.fullmatch(
                r"()(\d{4})-\d{2}-\d{2}", cell.strip()
            )
            if not match or not 1880 <= int(match[2]) <= 2010:
                return None, QuarantineReason.DATE_UNPARSABLE
            return f"{match[2]}-{int(match[1] or 7):02d}", None

        people = self.person_rows(
            table,
            {
                "sex": (parse_sex, ("PTGENDER",)),
                "educ_years": (EDUCATION_YEARS.with_missing(*MISSING), ("PTEDUCAT",)),
                "handedness": (_code({1.0: "R", 2.0: "L", 3.0: "A"}), ("PTHAND",)),
                "birth": (birth, ("PTDOB",)),
                "birth_year": (Quantity(1880, 2010, missing=MISSING), ("PTDOBYY",)),
                "birth_month": (Quantity(1, 12, missing=MISSING), ("PTDOBMM",)),
            },
        )
        for subject, values in people.items():
            person = self.person.setdefault(subject, {})
            self.known.add(subject)
            if "sex" in person and "sex" in values and person["sex"].value != values["sex"].value:
                person["sex_conflict"] = values["sex"]
            if "birth" not in values and "birth_year" in values:
                source = values["birth_year"]
                month = int(values["birth_month"].value) if "birth_month" in values else 7
                values["birth"] = Sourced(
                    f"{int(source.value)}-{month:02d}", source.file, source.row, "PTDOBYY, PTDOBMM"
                )
            for name, sourced in values.items():
                person.setdefault(name, sourced)

    def read_apoe(self, table: Table) -> None:
        allele = ALLELE.with_missing(*MISSING)
        people = self.person_rows(
            table, {"one": (allele, ("APGEN1",)), "two": (allele, ("APGEN2",)), "genotype": (_genotype, ("GENOTYPE",))}
        )
        for subject, values in people.items():
            person = self.person.setdefault(subject, {})
            if "genotype" in values:
                genotype = values["genotype"]
            elif "one" in values and "two" in values:
                pair = "".join(sorted(f"{int(values[name].value)}" for name in ("one", "two")))
                genotype = Sourced(pair, values["one"].file, values["one"].row, "APGEN1, APGEN2")
            else:
                continue
            person.setdefault("apoe_genotype", genotype)
            person.setdefault(
                "apoe4_count", Sourced(float(genotype.value.count("4")), genotype.file, genotype.row, genotype.rule)
            )

    def read_labs(self, table: Table) -> None:
        collected = self.ingest.collect(
            table, self.visit_key, {name: (laboratory_value, (code,)) for code, name in LABS.items()}
        )
        for (subject, code), values in collected.items():
            key = (subject, "bl" if code in BASELINE_CODES else code)
            if key in self.ingest.visits and values:
                visit = self.ingest.visits[key]
                if visit.values.get("labs") is None:
                    visit.values["labs"] = json.dumps(
                        {name: sourced.value for name, sourced in values.items()}, sort_keys=True
                    )
                    source = next(iter(values.values()))
                    visit.provenance["labs"] = {"file": source.file, "row": source.row, "rule": f"LABDATA at {code}"}

    # -- images

    def age_at(
        self, subject: str, date: datetime.date | None, listed: Row | None
    ) -> tuple[float | None, str, str, Any]:
        """Age at the scan: baseline age + time since, else birth month, else the image list."""
        baseline = self.baseline.get(subject, {})
        if date is not None and "age" in baseline and "date_bl" in baseline:
            years = baseline["age"].value + (date - baseline["date_bl"].value).days / DAYS_PER_YEAR
            return years, "month", "AGE + (scan - EXAMDATE_bl) / 365.25", baseline["age"]
        person = self.person.get(subject, {})
        if date is not None and "birth" in person:
            year, month = (int(part) for part in person["birth"].value.split("-"))
            years = (date - datetime.date(year, month, 15)).days / DAYS_PER_YEAR
            return years, "month", "scan - month of birth", person["birth"]
        if listed is not None:
            value, _ = parse_number(listed.get("Age", "subject_age"), Quantity(0, 200, missing=MISSING))
            if value is not None:
                source = Sourced(value, listed.table.relative, listed.line, "Age")
                return value, age_precision_of(listed.get("Age", "subject_age")), "age in the image list", source
        return None, "", "", None


def _known_bad() -> set[tuple[str, str]]:
    lines = KNOWN_BAD_SCANS.read_text(encoding="utf-8").split()
    return {(subject, code) for subject, code in (line.split(",") for line in lines[1:])}


def _xml_facts(root: Path, path: str) -> dict[str, str]:
    """Facts of a metadata file; nothing when it is malformed."""
    try:
        tree = ElementTree.parse(root / path)
    except (ElementTree.ParseError, OSError, ValueError):
        return {}
    facts: dict[str, str] = {}
    for element in tree.iter():
        tag = element.tag.rsplit("}", 1)[-1]
        term = element.get("term")
        if tag == "protocol" and term:
            facts.setdefault(term.lower(), (element.text or "").strip())
        elif element.text and element.text.strip():
            facts.setdefault(tag.lower(), element.text.strip())
    return facts


def _quality(ingest: Ingest) -> tuple[dict[str, tuple[float | None, bool]], dict[int, bool]]:
    """Quality ratings by image number and pass marks by series number."""
    by_image: dict[str, tuple[float | None, bool]] = {}
    by_series: dict[int, bool] = {}
    for path in ingest.files:
        name = path.rsplit("/", 1)[-1].upper()
        if not name.endswith((".CSV", ".XLSX")) or not ("IMAGEQC" in name or "MRIQUALITY" in name):
            continue
        table = ingest.read(path, "image quality")
        for row in table.rows():
            image = row.get("loni_image").lstrip("I").split(".")[0]
            if image.isdigit():
                rating = parse_float(row.get("series_quality"))
                chosen = parse_float(row.get("series_selected")) == 1
                known = by_image.get(image)
                rating = None if rating is None or rating < 1 else rating
                if known is not None and known[0] is not None and (rating is None or known[0] > rating):
                    rating = known[0]
                by_image[image] = (rating, chosen or (known is not None and known[1]))
            series = parse_whole_id(row.get("LONIUID").lstrip("S"))
            if series is not None and (passed := parse_float(row.get("PASS"))) is not None:
                by_series[series] = by_series.get(series, True) and passed != 0
    return by_image, by_series


def _rank(
    image: LoniImage,
    description: str,
    field_strength: float | None,
    phase: str,
    quality: tuple[float | None, bool] | None,
    date: datetime.date | None,
) -> tuple[Any, ...]:
    """Order of preference of the T1 volumes of one visit, smallest first."""
    text = description.upper()
    modern = phase in ("ADNI3", "ADNI4") or (not phase and date is not None and date >= datetime.date(2016, 9, 1))
    rating, chosen = quality if quality is not None else (None, False)
    if modern:
        kind = (
            0
            if not is_processed(text) and "ACCEL" in text and not text.endswith("_ND")
            else 1
            if not is_processed(text)
            else 2
        )
    elif text.endswith(("SCALED", "SCALED_2")):
        kind = 0
    elif text.endswith("N3M"):
        kind = 1
    elif re.search(r"MP.?RAGE|MPR", text) and not is_processed(text):
        kind = 2
    else:
        kind = 3
    preferred = 1.5 if phase == "ADNI1" else 3.0
    off_field = 0 if field_strength is None or abs(field_strength - preferred) < 0.3 else 1
    series = image.series_number if image.series_number is not None else int(image.uid)
    return (not chosen, rating if rating is not None else 3.5, off_field, kind, is_repeat(text), series)


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read an ADNI download."""
    book = Ingest("ADNI", root, params, workers)
    found = group_images(book.files)
    if not found:
        raise no_images(root, "ADNI", "files named *_I<number>.nii or .dcm in folders such as 005_S_0223")
    state = _Adni(book)
    state.read_tables(found)
    lists, search, _ = read_image_lists(book)
    by_image, by_series = _quality(book)
    xml_of = {m[1]: path for path in book.files if (m := re.search(r"_I(\d+)\.xml$", path, re.IGNORECASE))}
    bad_scans = _known_bad()
    listed_people: dict[str, Row] = {}
    for rows in [*lists.values(), search]:
        for row in rows:
            listed_people.setdefault(row.get(*LIST_SUBJECT), row)
    search_by: dict[tuple[str, datetime.date], Row] = {}
    for row in search:
        date, _ = row.date(*LIST_DATE)
        if date is not None:
            search_by.setdefault((row.get(*LIST_SUBJECT), date), row)
    visits = {subject: [v for v in group if v.date is not None] for subject, group in book.visits_of().items()}
    on_disk = {image.uid for image in found}

    for image in found:
        key = f"I{image.uid}"
        file = image.image_file()
        item = FoundImage(key, file or ImageFile(image.files[0], "nifti", (image.files[0],)))
        book.images.append(item)
        rows = lists.get(image.uid, [])
        listed = rows[0] if rows else None
        description = image.description
        item.series_description = description
        item.subject = image.subject_folder
        if not PTID.fullmatch(image.subject_folder):
            inner = re.search(r"(?<!\d)(\d{3}_S_\d{4,5})(?!\d)", image.files[0].rsplit("/", 1)[-1])
            if inner is None or image.subject_folder:
                book.drop(
                    item, QuarantineReason.ID_UNPARSABLE, "the participant's folder is no PTID such as 005_S_0223"
                )
                continue
            item.subject = inner[1]
        subject = item.subject
        if file is None:
            book.drop(item, QuarantineReason.AMBIGUOUS_FILE, "several files carry one image number")
            continue
        if subject not in state.known and subject not in listed_people and subject not in state.person:
            book.drop(item, QuarantineReason.ID_NOT_IN_CLINICAL, "no table and no image list knows the participant")
            continue
        text = listed.get(*LIST_DESCRIPTION) if listed is not None else ""
        modality = listed.get("Modality").upper() if listed is not None else ""
        if (modality and not modality.startswith("MR")) or not (
            is_t1_description(description) or is_t1_description(text)
        ):
            book.drop(item, QuarantineReason.NOT_T1, "the series is no T1-weighted volume")
            continue
        date, problem = image.scan_date()
        if date is None and problem is not QuarantineReason.DATE_IN_FUTURE and listed is not None:
            date, problem = listed.date(*LIST_DATE)
            if date is None and problem is None:
                problem = QuarantineReason.DATE_UNPARSABLE
        if problem is QuarantineReason.DATE_IN_FUTURE:
            book.drop(item, problem, "the acquisition is dated in the future")
            continue
        if date is None:
            book.remark(item, QuarantineReason.DATE_UNPARSABLE, "no acquisition date can be read")
        if listed is None and date is not None:
            listed = search_by.get((subject, date))
        item.scan_date = date
        xml = _xml_facts(root, xml_of[image.uid]) if image.uid in xml_of else {}
        strength = parse_float(xml.get("field strength")) if xml else None
        for row in rows:
            if strength is None:
                number = re.search(r"\d+(?:\.\d+)?", row.get("MAGSTRENGTH", "MagStrength", "field_strength"))
                strength = float(number[0]) if number else None
        if strength is not None:
            item.values["field_strength_t"] = tesla(strength)
        for column, term in (("manufacturer", "manufacturer"), ("scanner_model", "mfg model")):
            if xml.get(term):
                item.values[column] = xml[term]

        # The visit: nearest date, else the archive's visit name.
        own = visits.get(subject, [])
        match = None
        if date is not None:
            match = match_visit(date.toordinal(), [v.date.toordinal() for v in own if v.date], book.window_days)
        visit: Visit | None = None
        if match is not None:
            visit = own[match[0]]
            book.attach(item, visit, "date_nearest", match[1])
        elif date is None and listed is not None:
            name = listed.get(*LIST_VISIT).strip().lower()
            visit = book.visits.get((subject, IDA_VISITS.get(name, canonical_visit(name)[0])))
            if visit is not None:
                book.attach(item, visit, "ida_visit", None)
        if visit is None:
            book.drop(item, QuarantineReason.NO_VISIT_IN_WINDOW, f"no visit within {book.window_days} days of the scan")
            continue
        item.session = visit.code
        if (subject, visit.code) in bad_scans or image.files[0].lower().split(".nii")[0].endswith("_eq_1"):
            book.drop(item, QuarantineReason.KNOWN_BAD_CONVERSION, "this scan is known not to convert")
            continue
        quality = by_image.get(image.uid)
        if quality is not None:
            if quality[0] is not None:
                item.values["qc_score"] = quality[0]
            if quality[0] is not None and quality[0] >= 4:
                book.drop(item, QuarantineReason.QC_FAIL, "rated unusable by the custodian (series_quality 4)")
                continue
        if image.series_number is not None and by_series.get(image.series_number) is False:
            book.drop(item, QuarantineReason.QC_FAIL, "failed the custodian's quality control (PASS 0)")
            continue

        # The person.
        person = state.person.get(subject, {})
        for column in ("sex", "educ_years", "handedness", "apoe_genotype", "apoe4_count"):
            book.set_person(item, column, person.get(column))
        book.set_person(item, "dx_subject_level", person.get("dx_bl"))
        if listed is not None:
            sex, _ = parse_sex(listed.get("Sex", "subject_sex"))
            if sex is not None and "sex" in item.values and item.values["sex"] != sex:
                book.drop(
                    item,
                    QuarantineReason.SEX_CONFLICT,
                    "the image list and the study tables differ on sex",
                    listed.table.relative,
                    listed.line,
                )
                continue
            if sex is not None:
                book.set_person(item, "sex", Sourced(sex, listed.table.relative, listed.line, "Sex"))
        if "sex_conflict" in person:
            book.drop(
                item,
                QuarantineReason.SEX_CONFLICT,
                "the study tables differ on sex",
                person["sex_conflict"].file,
                person["sex_conflict"].row,
            )
            continue
        if "sex" not in item.values:
            book.drop(item, QuarantineReason.SEX_MISSING, "no table gives the participant's sex")
            continue
        age, precision, rule, source = state.age_at(subject, date, listed)
        book.set_age(item, age, precision, rule, source.file if source else None, source.row if source else None)
        if age is not None and listed is not None and rule != "age in the image list":
            stated, _ = parse_number(listed.get("Age", "subject_age"), Quantity(0, 200, missing=MISSING))
            if stated is not None and abs(stated - age) > AGE_TOLERANCE_YEARS:
                book.remark(
                    item,
                    QuarantineReason.AGE_INCONSISTENT,
                    f"the image list's age differs by more than {AGE_TOLERANCE_YEARS:g} years",
                    source_file=listed.table.relative,
                    source_row=listed.line,
                )
        if visit.values.get("dx_native") is None:
            book.remark(item, QuarantineReason.NO_DIAGNOSIS, "no diagnosis at the matched visit")
        item.variant = "processed" if is_processed(description) else "raw"
        phase = state.colprot.get((subject, visit.code), "")
        if phase:
            item.values["release"] = phase
        item.order = (date or datetime.date.max, int(image.uid))
        item.rank = _rank(image, description, item.values.get("field_strength_t"), phase, quality, date)

    for uid, row in sorted(collection_rows(lists).items()):
        if (
            uid not in on_disk
            and row.get("Modality", "x").upper() in ("MRI", "MR", "X")
            and is_t1_description(row.get(*LIST_DESCRIPTION))
        ):
            book.note(
                QuarantineReason.IMAGE_WITHOUT_FILE,
                Level.IMAGE,
                {"native_image_key": f"I{uid}"},
                Severity.WARN,
                "the collection list names an image that is not on disk",
                row.table.relative,
                row.line,
            )
    for visit in book.visits.values():
        _finish_visit(visit, state)
    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    for item in book.images:
        item.values.setdefault("release", "ADNI")
    return book.finish()


def _finish_visit(visit: Visit, state: _Adni) -> None:
    """Sources of scores, and person-level values of the visit."""
    for column, source in (("mmse", "mmse_source"), ("cdr_global", "cdr_global_source"), ("cdr_sb", "cdr_sb_source")):
        if visit.values.get(column) is not None:
            visit.values[source] = "measured"
    if visit.values.get("lm_delayed") is not None or visit.values.get("lm_immediate") is not None:
        visit.values["lm_source"] = "measured"
    if visit.values.get("hippocampus_mm3") is not None:
        visit.values["volume_source"] = "UCSF-FS"


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
