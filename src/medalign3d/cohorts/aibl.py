"""AIBL: downloads of the LONI archive with the non-imaging data extract.

Image folders as in ADNI, but with a whole number as participant (``<RID>/<series>/<time>/I<image>/``). The visit of an
image comes from the image list, else from the dates of the MRI tables, else from the nearest other examination. The
diagnosis is DXCURREN of that very visit; it is never carried over from baseline and never derived from the CDR.

Not supported: image archives that are still zipped.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
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
from medalign3d.cohorts.images import ImageFile
from medalign3d.cohorts.loni import (
    LIST_DATE,
    LIST_DESCRIPTION,
    LIST_SUBJECT,
    LIST_VISIT,
    group_images,
    is_repeat,
    is_t1_description,
    laboratory_value,
    read_image_lists,
)
from medalign3d.cohorts.tables import Row, Table, find_table
from medalign3d.cohorts.values import (
    ALLELE,
    CDR_GLOBAL,
    LOGICAL_MEMORY,
    MMSE,
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
from medalign3d.params import Params

MISSING = frozenset({-4.0, -1.0})
DIAGNOSIS = {1.0: "NC", 2.0: "MCI", 3.0: "AD"}
NO_DIAGNOSIS_CODES = frozenset({0.0, 7.0, -4.0, -1.0})
AGE_TOLERANCE_YEARS = 2.0
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
#: From Australian units to the units of ADNI, for tables whose glucose or creatinine shows that they are in SI units.
FROM_SI = {
    "vitamin_b12": 1.355,
    "haemoglobin": 0.1,
    "mchc": 0.1,
    "urea_nitrogen": 2.801,
    "glucose": 18.016,
    "cholesterol": 38.67,
    "creatinine": 1 / 88.42,
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


def visit_code(text: str) -> str | None:
    """The visit code of an image list's visit in any of its export forms.

    >>> [visit_code(t) for t in ("1", "Baseline", "18 Month follow-up", "36 mo", "m54", "Base", "4.0", "")]
    ['bl', 'bl', 'm18', 'm36', 'm54', 'bl', 'm54', None]
    """
    name = text.strip().lower()
    if name.startswith("base") or name in ("bl", "sc", "screening"):
        return "bl"
    if match := re.fullmatch(r"m(\d{1,3})", name):
        return "bl" if int(match[1]) == 0 else f"m{int(match[1]):02d}"
    if match := re.match(r"(\d{1,3})\s*-?\s*mo", name):
        return f"m{int(match[1]):02d}"
    number = parse_whole_id(name)
    return VISIT_NUMBERS.get(number) if number is not None else None


def join_torn_cells(header: list[str], cells: list[str]) -> list[str] | None:
    """Repair a line with one unquoted comma in free text by joining the two cells that it tore apart.

    The join is made where every cell afterwards suits its column: numbers in numeric columns, dates in date columns.
    Nothing is repaired when no place, or no single best place, is found.
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

    def roughness(joined: list[str]) -> int:
        # Free text belongs into one cell: words outside of it speak against a join.
        return sum(bool(re.search(r"[A-Za-z]{2}", cell)) and parse_date(cell)[0] is None for cell in joined)

    options = []
    for place in range(len(cells) - 1):
        joined = [*cells[:place], f"{cells[place]}, {cells[place + 1]}", *cells[place + 2 :]]
        if all(suits(name, cell) for name, cell in zip(header, joined, strict=True)):
            words = bool(re.search(r"[A-Za-z]{2}", cells[place])) + bool(re.search(r"[A-Za-z]{2}", cells[place + 1]))
            options.append((-words, roughness(joined), -place, joined))
    return min(options)[3] if options else None


def _birth_year(cell: str) -> tuple[int | None, QuarantineReason | None]:
    """``/1934`` -> 1934."""
    if is_blank(cell) or parse_float(cell) in MISSING:
        return None, None
    match = re.fullmatch(r"(?:\d{0,2}/)*(\d{4})(?:\.0)?", cell.strip())
    if match is None or not 1880 <= int(match[1]) <= 2000:
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


def _read_labs(book: Ingest, table: Table) -> dict[tuple[str, str], dict[str, Sourced]]:
    collected = book.collect(table, _identify, {name: (laboratory_value, (code,)) for code, name in LABS.items()})
    glucose = [values["glucose"].value for values in collected.values() if "glucose" in values]
    creatinine = [values["creatinine"].value for values in collected.values() if "creatinine" in values]
    si = (median(glucose) < 30) if glucose else bool(creatinine) and median(creatinine) > 15
    if si:
        for values in collected.values():
            for name, factor in FROM_SI.items():
                if name in values:
                    values[name].value = round(values[name].value * factor, 3)
                    values[name].rule += f" x {factor:.4g} (from SI units)"
    return collected


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read an AIBL download."""
    book = Ingest("AIBL", root, params, workers)
    found = group_images(book.files)
    if not found:
        raise no_images(
            root, "AIBL", "files named *_I<number>.nii or .dcm in folders such as 123/MPRAGE_ADNI_confirmed"
        )

    used: list[str] = []

    def table(name: str, *, required: bool = False, columns: dict[str, tuple[str, ...]] | None = None) -> Table | None:
        path = find_table(root, book.files, name, prefixes=("aibl",), required=required)
        if path is None:
            return None
        used.append(path)
        read = book.read(path, name, repair=join_torn_cells)
        read.require(id=("RID",), **(columns or {}))
        return read

    def need(name: str, **columns: tuple[str, ...]) -> Table:
        read = table(name, required=True, columns=columns)
        assert read is not None
        return read

    # Diagnosis: DXCURREN, else exactly one of the three flags.
    flag = Quantity(0, 1, missing=MISSING)
    diagnosis = need("pdxconv", visit=("VISCODE",), diagnosis=("DXCURREN", "DXNORM"))
    for (subject, code), values in book.collect(
        diagnosis,
        _identify,
        {
            "dx": (lambda cell: parse_code(cell, DIAGNOSIS, NO_DIAGNOSIS_CODES), ("DXCURREN",)),
            "DXNORM": (flag, ("DXNORM",)),
            "DXMCI": (flag, ("DXMCI",)),
            "DXAD": (flag, ("DXAD",)),
        },
    ).items():
        visit = book.visit(subject, code)
        if diagnosis.column("DXCURREN") is None:
            set_flags = [
                (name, label)
                for name, label in (("DXNORM", "NC"), ("DXMCI", "MCI"), ("DXAD", "AD"))
                if name in values and values[name].value == 1
            ]
            if len(set_flags) == 1:
                source = values[set_flags[0][0]]
                visit.set("dx_native", Sourced(set_flags[0][1], source.file, source.row, source.rule))
        visit.set("dx_native", values.get("dx"))

    dates: dict[tuple[str, str], dict[str, Sourced]] = {}
    memory = LOGICAL_MEMORY.with_missing(*MISSING)
    scores: dict[str, dict[str, Any]] = {
        "mmse": {"mmse": (MMSE.with_missing(*MISSING), ("MMSCORE",))},
        "cdr": {"cdr_global": (CDR_GLOBAL.with_missing(*MISSING), ("CDGLOBAL",))},
        "neurobat": {"lm_immediate": (memory, ("LIMMTOTAL",)), "lm_delayed": (memory, ("LDELTOTAL",))},
    }
    field_strength: dict[tuple[str, datetime.date], float] = {}
    for name in DATE_TABLES:
        read = table(name)
        if read is None:
            continue
        if name == "labdata":
            for (subject, code), values in _read_labs(book, read).items():
                if values:
                    visit = book.visit(subject, code)
                    visit.values["labs"] = json.dumps({n: s.value for n, s in values.items()}, sort_keys=True)
                    source = next(iter(values.values()))
                    visit.provenance["labs"] = {"file": source.file, "row": source.row, "rule": "labdata"}
            continue
        fields = {"date": (parse_date, ("EXAMDATE", "SCANDATE")), **scores.get(name, {})}
        for key, values in book.collect(read, _identify, fields).items():
            if "date" in values:
                dates.setdefault(key, {})[name] = values["date"]
                if name in MRI_TABLES:
                    field_strength[(key[0], values["date"].value)] = MRI_TABLES[name]
            if name in scores:
                visit = book.visit(*key)
                for column in scores[name]:
                    visit.set(column, values.get(column))
    people = _read_people(book, table)
    history = table("medhist")
    if history is not None:
        present = {name: (Quantity(0, 1, missing=MISSING), (column,)) for column, name in HISTORY.items()}
        for key, values in book.collect(history, _identify, present).items():
            if values:
                book.visit(*key).values["history"] = json.dumps(
                    {name: int(source.value) for name, source in values.items()}, sort_keys=True
                )
    for (subject, code), by_table in dates.items():
        visit = book.visit(subject, code)
        source = next(by_table[name] for name in DATE_TABLES if name in by_table)
        visit.date = source.value
        visit.provenance["visit_date"] = source.as_json()
    _complete_dates(book)
    for visit in book.visits.values():
        months = re.fullmatch(r"m(\d+)", visit.code)
        visit.month = 0.0 if visit.code == "bl" else float(months[1]) if months else None
        for column, kind in (
            ("mmse", "mmse_source"),
            ("cdr_global", "cdr_global_source"),
            ("lm_delayed", "lm_source"),
            ("lm_immediate", "lm_source"),
        ):
            if visit.values.get(column) is not None:
                visit.values[kind] = "measured"

    lists, search, _ = read_image_lists(book, skip=used)
    listed_people = {str(parse_whole_id(row.get(*LIST_SUBJECT))) for rows in [*lists.values(), search] for row in rows}
    known = {visit.subject for visit in book.visits.values()} | set(people) | listed_people
    search_by: dict[tuple[str, datetime.date], Row] = {}
    for row in search:
        date, _ = row.date(*LIST_DATE)
        if date is not None:
            search_by.setdefault((str(parse_whole_id(row.get(*LIST_SUBJECT))), date), row)
    release = next((m[0] for path in book.files if (m := re.search(r"Data_extract_[0-9.]+[0-9]", path))), "AIBL")

    for image in found:
        file = image.image_file()
        item = FoundImage(f"I{image.uid}", file or ImageFile(image.files[0], "nifti", (image.files[0],)))
        book.images.append(item)
        item.series_description = image.description
        if not re.fullmatch(r"\d{1,7}", image.subject_folder):
            book.drop(item, QuarantineReason.ID_UNPARSABLE, "the participant's folder is no whole number")
            continue
        # A padded folder is not the person of the unpadded number: it is a stray one.
        subject = image.subject_folder if image.subject_folder.startswith("0") else str(int(image.subject_folder))
        item.subject = subject
        if file is None:
            book.drop(item, QuarantineReason.AMBIGUOUS_FILE, "several files carry one image number")
            continue
        if subject not in known:
            book.drop(item, QuarantineReason.ID_NOT_IN_CLINICAL, "no table and no image list knows the participant")
            continue
        listed = lists.get(image.uid, [None])[0]
        text = listed.get(*LIST_DESCRIPTION) if listed is not None else ""
        if not (is_t1_description(image.description) or is_t1_description(text)):
            book.drop(item, QuarantineReason.NOT_T1, "the series is no T1-weighted volume")
            continue
        date, problem = image.scan_date()
        if date is None and problem is not QuarantineReason.DATE_IN_FUTURE and listed is not None:
            date, problem = listed.date(*LIST_DATE)
        if problem is QuarantineReason.DATE_IN_FUTURE:
            book.drop(item, problem, "the acquisition is dated in the future")
            continue
        if date is None:
            book.remark(item, QuarantineReason.DATE_UNPARSABLE, "no acquisition date can be read")
        if listed is None and date is not None:
            listed = search_by.get((subject, date))
        item.scan_date = date
        matched = _match(book, item, listed, date, dates)
        if matched is None:
            book.drop(
                item,
                QuarantineReason.NO_VISIT_IN_WINDOW,
                f"no visit in the image list and none within {book.window_days} days of the scan",
            )
            continue
        visit = matched
        item.session = visit.code
        person = people.get(subject, {})
        for column in ("sex", "apoe_genotype", "apoe4_count"):
            book.set_person(item, column, person.get(column))
        if listed is not None:
            sex, _ = parse_sex(listed.get("Sex", "subject_sex"))
            if sex is not None and item.values.get("sex", sex) != sex:
                book.drop(
                    item,
                    QuarantineReason.SEX_CONFLICT,
                    "the image list and ptdemog differ on sex",
                    listed.table.relative,
                    listed.line,
                )
                continue
            if sex is not None:
                book.set_person(item, "sex", Sourced(sex, listed.table.relative, listed.line, "Sex"))
        if "sex" not in item.values:
            book.drop(item, QuarantineReason.SEX_MISSING, "no table gives the participant's sex")
            continue
        _set_age(book, item, listed, person, date or visit.date)
        if visit.values.get("dx_native") is None:
            book.remark(item, QuarantineReason.NO_DIAGNOSIS, "no diagnosis at the image's visit")
        if date is not None:
            near = [
                (abs((date - day).days), strength)
                for (who, day), strength in field_strength.items()
                if who == subject and abs((date - day).days) <= book.window_days
            ]
            if near and len({strength for distance, strength in near if distance == min(near)[0]}) == 1:
                item.values["field_strength_t"] = min(near)[1]
        item.values["release"] = release
        # A repeat exists because the first acquisition may be worse; still the first is the protocol's image.
        own_protocol = not re.search(r"(?:p2|p2ND|_ND)$", image.description, re.IGNORECASE)
        item.order = (date or datetime.date.max, int(image.uid))
        item.rank = (not own_protocol, is_repeat(image.description), int(image.uid))

    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    return book.finish()


def _read_people(book: Ingest, table: Any) -> dict[str, dict[str, Sourced]]:
    """Sex, year of birth (given at baseline, valid for all visits) and APOE."""
    people: dict[str, dict[str, Sourced]] = {}

    def merge(collected: dict[tuple[str, str], dict[str, Sourced]]) -> None:
        for (subject, code), values in collected.items():
            person = people.setdefault(subject, {})
            for name, source in values.items():
                if name in person and person[name].value != source.value:
                    book.visit_note(
                        QuarantineReason.SEX_CONFLICT if name == "sex" else QuarantineReason.DUPLICATE_KEY_CONFLICT,
                        subject,
                        code,
                        Severity.NULL_FIELD,
                        f"visits differ in {source.rule}; emptied",
                        file=source.file,
                        line=source.row,
                    )
                    person[name] = Sourced(None, source.file, source.row, source.rule)
                person.setdefault(name, source)

    demographics = table("ptdemog", required=True, columns={"sex": ("PTGENDER",)})
    merge(
        book.collect(
            demographics,
            _identify,
            {"sex": (parse_sex, ("PTGENDER",)), "birth_year": (_birth_year, ("PTDOB", "PTDOBYY"))},
        )
    )
    apoe = table("apoeres")
    if apoe is not None:
        allele = ALLELE.with_missing(*MISSING)
        merge(book.collect(apoe, _identify, {"one": (allele, ("APGEN1",)), "two": (allele, ("APGEN2",))}))
    for person in people.values():
        one, two = person.get("one"), person.get("two")
        if one is not None and two is not None and one.value is not None and two.value is not None:
            genotype = "".join(sorted((str(int(one.value)), str(int(two.value)))))
            person["apoe_genotype"] = Sourced(genotype, one.file, one.row, "APGEN1, APGEN2")
            person["apoe4_count"] = Sourced(float(genotype.count("4")), one.file, one.row, "APGEN1, APGEN2")
    return people


def _complete_dates(book: Ingest) -> None:
    """A visit without any examination date gets baseline + months, and says so."""
    baseline = {visit.subject: visit.date for visit in book.visits.values() if visit.code == "bl" and visit.date}
    for visit in book.visits.values():
        months = re.fullmatch(r"m(\d+)", visit.code)
        if visit.date is None and months and visit.subject in baseline:
            visit.date = baseline[visit.subject] + datetime.timedelta(days=round(int(months[1]) * DAYS_PER_MONTH))
            visit.provenance["visit_date"] = {"file": None, "row": None, "rule": "baseline + months of VISCODE"}


def _match(
    book: Ingest,
    item: FoundImage,
    listed: Row | None,
    date: datetime.date | None,
    dates: dict[tuple[str, str], dict[str, Sourced]],
) -> Visit | None:
    """The visit of an image: image list, else MRI tables, else the nearest other examination."""
    if listed is not None:
        code = visit_code(listed.get(*LIST_VISIT))
        visit = book.visits.get((item.subject, code)) if code is not None else None
        if visit is not None:
            delta = (date - visit.date).days if date is not None and visit.date is not None else None
            book.attach(item, visit, "ida_visit", delta)
            return visit
        if code is not None:
            return None  # the list names a visit that the extract does not have
    if date is None:
        return None
    groups: tuple[Sequence[str], ...] = (tuple(MRI_TABLES), tuple(n for n in DATE_TABLES if n not in MRI_TABLES))
    for names in groups:
        options = [
            (by_table[name].value.toordinal(), key[1])
            for key, by_table in dates.items()
            if key[0] == item.subject
            for name in names
            if name in by_table
        ]
        match = match_visit(date.toordinal(), [day for day, _ in options], book.window_days)
        if match is not None:
            visit = book.visits[(item.subject, options[match[0]][1])]
            book.attach(item, visit, "date_nearest", match[1])
            return visit
    return None


def _set_age(
    book: Ingest, item: FoundImage, listed: Row | None, person: dict[str, Sourced], date: datetime.date | None
) -> None:
    """Age of the image list, else year of the scan minus year of birth."""
    stated = None
    if listed is not None:
        stated, _ = parse_number(listed.get("Age", "subject_age"), Quantity(0, 200, missing=MISSING))
    born = person.get("birth_year")
    by_year = date.year - born.value if date is not None and born is not None and born.value is not None else None
    if stated is not None and listed is not None:
        book.set_age(
            item,
            stated,
            age_precision_of(listed.get("Age", "subject_age")),
            "age in the image list",
            listed.table.relative,
            listed.line,
        )
        if by_year is not None and abs(stated - by_year) > AGE_TOLERANCE_YEARS:
            book.remark(
                item,
                QuarantineReason.AGE_INCONSISTENT,
                f"the image list's age and the year of birth differ by more than {AGE_TOLERANCE_YEARS:g} years",
                source_file=listed.table.relative,
                source_row=listed.line,
            )
    elif by_year is not None and born is not None:
        book.set_age(item, float(by_year), "year", "year of the scan - year of birth", born.file, born.row)
    else:
        book.set_age(item, None, "", "", born.file if born else None, born.row if born else None)
