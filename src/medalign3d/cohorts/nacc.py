"""NACC: the UDS and MRI tables of a data freeze, and one zip archive or folder per MRI session.

Tables are known by their header, not by name; any one of the investigator, FTLD/LBD or commercial files is enough.
Inside a session the T1-weighted volumes are told from the rest by the description in their JSON sidecar, or by their
geometry where there is none. Scans are matched to UDS visits by true day counts.

Not supported: the separate SCAN archives, whose file names are in no session table.
"""

from __future__ import annotations

import calendar
import datetime
import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.base import (
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
from medalign3d.cohorts.images import ZIP_SEPARATOR, ImageFile, tesla
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
    parse_float,
    parse_sex,
    parse_whole_id,
)
from medalign3d.errors import MissingTable
from medalign3d.params import Params

NACCID = re.compile(r"NACC\d{6}")
NOT_ASKED = -4.0
COGNITION_MISSING = (95, 96, 97, 98, 99, 88, NOT_ASKED)
SYNDROME = {1.0: "NC", 2.0: "IMCI", 3.0: "MCI", 4.0: "DEM"}
OUT_OF_SCOPE = "out of scope"
HISTORY = {
    "DIABETES": "diabetes",
    "HYPERTEN": "hypertension",
    "HYPERCHO": "hypercholesterolaemia",
    "B12DEF": "vitamin_b12_deficiency",
    "THYROID": "thyroid_disease",
}
#: Codes for "not applicable" and "missing" of volumes in cubic centimetres, after rounding to three places.
VOLUME_MISSING = frozenset(
    {
        8.888,
        8.889,
        88.888,
        88.889,
        888.888,
        888.889,
        8888.888,
        8888.889,
        8888.0,
        9.999,
        10.0,
        99.999,
        100.0,
        999.999,
        1000.0,
        9999.999,
        10000.0,
        9999.0,
    }
)
VOLUMES = {
    "NACCICV": ("icv_mm3", 8e5, 2.4e6),
    "NACCBRNV": ("brain_mm3", 5e5, 1.8e6),
    "HIPPOVOL": ("hippocampus_mm3", 500, 15e3),
    "LATVENT": ("ventricles_mm3", 1e3, 250e3),
}
AGE_TOLERANCE_YEARS = 2.0
UDS_COLUMNS = (
    "NACCID",
    "NACCVNUM",
    "PACKET",
    "FORMVER",
    "VISITYR",
    "VISITMO",
    "VISITDAY",
    "SEX",
    "NACCSEX",
    "BIRTHMO",
    "BIRTHYR",
    "NACCAGE",
    "EDUC",
    "HANDED",
    "NACCMMSE",
    "NACCMOCA",
    "MOCATOTS",
    "LOGIMEM",
    "MEMUNITS",
    "CDRSUM",
    "CDRGLOB",
    "NACCGDS",
    "NACCAPOE",
    "NACCNE4S",
    "NACCUDSD",
    "NACCALZD",
    "NACCALZP",
    "NACCETPR",
    *HISTORY,
)
MRI_COLUMNS = (
    "NACCID",
    "NACCMRFI",
    "NACCMNUM",
    "NACCVNUM",
    "NACCMRIA",
    "NACCMRDY",
    "MRIYR",
    "MRIMO",
    "MRIDY",
    "MRIDAY",
    "MRIFIELD",
    "MRIMANU",
    *VOLUMES,
)
FIELD_STRENGTH = {1.0: 1.5, 2.0: 3.0}
MANUFACTURER = {1.0: "GE", 2.0: "Siemens", 3.0: "Philips"}
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_T1 = re.compile(r"MP.?RAGE|MPR|SPGR|BRAVO|T1|TFE|TFL")
_NOT_T1 = re.compile(
    r"FLAIR|T1.?T?SE|TSE|POST|GAD|LOCALI|SCOUT|T2|DTI|DWI|DIFF|BOLD|FMRI|REST|ASL|PERF|SWI|GRE_|PD(?![A-Z])|MAP|CALIB|SURVEY"
)
_REPEAT_OR_DERIVED = re.compile(r"REPEAT|RPT|_ND$|_ND[^A-Z]|DERIVED")


def normalize_locator(name: str) -> str:
    """The session's locator: without ``.zip`` and without the ``ni`` of the NIfTI form.

    >>> normalize_locator("mri1234ni.zip"), normalize_locator("mri1234")
    ('mri1234', 'mri1234')
    """
    stem = re.sub(r"\.zip$", "", name.strip(), flags=re.IGNORECASE)
    return re.sub(r"(?<=\d)ni$", "", stem, flags=re.IGNORECASE)


def parse_volume(cell: str, low: float, high: float) -> tuple[float | None, QuarantineReason | None]:
    """A volume in mm³ from cubic centimetres; the code book's codes for "no value" go first.

    >>> parse_volume("888.8888", 500, 15e3), parse_volume("6.5", 500, 15e3)
    ((None, None), (6500.0, None))
    """
    if is_blank(cell):
        return None, None
    value = parse_float(cell)
    if value is None:
        return None, QuarantineReason.SENTINEL_UNKNOWN
    if value == NOT_ASKED or round(value, 3) in VOLUME_MISSING:
        return None, None
    value *= 1000.0
    if not low <= value <= high:
        return None, QuarantineReason.SENTINEL_UNKNOWN if value < 0 else QuarantineReason.VALUE_OUT_OF_RANGE
    return value, None


def is_t1(description: str, sidecar: dict[str, Any] | None) -> bool | None:
    """Whether a volume is T1-weighted; None when nothing tells and the geometry must decide."""
    text = description.upper()
    if _NOT_T1.search(text):
        return False
    if sidecar is not None:
        if str(sidecar.get("MRAcquisitionType", "3D")).upper() == "2D":
            return False
        thickness = parse_float(str(sidecar.get("SliceThickness", "")))
        if thickness is not None and thickness >= 2.0 + 1e-3:
            return False
        if sidecar.get("SeriesDescription") or sidecar.get("ProtocolName"):
            return bool(_T1.search(text))
    return None


def _syndrome(cell: str) -> tuple[str | None, QuarantineReason | None]:
    """NACCUDSD; a positive code outside the code book is kept apart, the image stays without a label."""
    if is_blank(cell):
        return None, None
    label, problem = parse_code(cell, SYNDROME, frozenset({NOT_ASKED, 9.0}))
    if problem is QuarantineReason.VALUE_OUT_OF_RANGE:
        return OUT_OF_SCOPE, None
    return label, problem


def _date(row: Row, year: str, month: str, *day: str) -> tuple[datetime.date | None, bool]:
    """A date from three columns, and whether something other than a blank stood in an illegal cell."""
    numbers = [parse_whole_id(row.get(year)), parse_whole_id(row.get(month)), parse_whole_id(row.get(*day))]
    if any(number is None for number in numbers):
        return None, not all(is_blank(row.get(name)) for name in (year, month, day[0]))
    y, m, d = (int(number or 0) for number in numbers)
    if not (1980 <= y <= 2200 and 1 <= m <= 12 and 1 <= d <= calendar.monthrange(y, m)[1]):
        return None, True
    return datetime.date(y, m, d), False


@dataclass
class _Candidate:
    """One image file of a session."""

    locator: str
    name: str
    file: ImageFile
    archive: bool
    sidecar: dict[str, Any] | None = None
    dicom: bool = False
    problem: str | None = None


def _locator_of(parts: tuple[str, ...], known: set[str]) -> str:
    """The session that a path belongs to: the deepest folder that the MRI table knows, or that looks like one."""
    for part in reversed(parts):
        if normalize_locator(part) in known:
            return normalize_locator(part)
    for part in reversed(parts):
        if re.fullmatch(r"(?:mri\d+(?:ni)?|NACC\d{6}_.+)", part, re.IGNORECASE):
            return normalize_locator(part)
    return normalize_locator(parts[-1]) if parts else ""


def _sidecar_name(name: str) -> str:
    return re.sub(r"\.nii(?:\.gz)?$", ".json", name, flags=re.IGNORECASE)


def _load_json(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content.decode("utf-8", errors="replace"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_image(name: str) -> bool:
    return name.lower().endswith(NIFTI_SUFFIXES)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def find_candidates(root: Path, files: Iterable[str], known: set[str]) -> list[_Candidate]:
    """Every image file in session folders and session archives."""
    found: list[_Candidate] = []
    all_files = set(files)
    dicom_folders: dict[str, list[str]] = {}
    for path in sorted(all_files):
        parts = PurePosixPath(path).parts
        if _is_image(path):
            candidate = _Candidate(
                _locator_of(parts[:-1], known), parts[-1], ImageFile(path, "nifti", (path,)), archive=False
            )
            if _sidecar_name(path) in all_files:
                candidate.sidecar = _load_json((root / _sidecar_name(path)).read_bytes())
            found.append(candidate)
        elif path.lower().endswith((".dcm", ".ima")):
            dicom_folders.setdefault("/".join(parts[:-1]), []).append(path)
        elif path.lower().endswith(".zip"):
            locator = normalize_locator(parts[-1])
            try:
                with zipfile.ZipFile(root / path) as archive:
                    names = [i.filename for i in archive.infolist() if not i.is_dir() and not _hidden(i.filename)]
                    for name in sorted(filter(_is_image, names)):
                        candidate = _Candidate(
                            locator,
                            PurePosixPath(name).name,
                            ImageFile(f"{path}{ZIP_SEPARATOR}{name}", "nifti", (name,)),
                            archive=True,
                        )
                        if _sidecar_name(name) in names:
                            candidate.sidecar = _load_json(archive.read(_sidecar_name(name)))
                        found.append(candidate)
                    slices: dict[str, list[str]] = {}
                    for name in names:
                        if name.lower().endswith((".dcm", ".ima")):
                            slices.setdefault(str(PurePosixPath(name).parent), []).append(name)
                    for folder, members in sorted(slices.items()):
                        found.append(
                            _Candidate(
                                locator,
                                PurePosixPath(folder).name or "dicom",
                                ImageFile(
                                    f"{path}{ZIP_SEPARATOR}{folder if folder != '.' else ''}",
                                    "dicom",
                                    tuple(sorted(members)),
                                ),
                                archive=True,
                                dicom=True,
                            )
                        )
            except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
                found.append(
                    _Candidate(
                        locator,
                        parts[-1],
                        ImageFile(path, "nifti", (path,)),
                        archive=True,
                        problem=f"the archive cannot be opened: {type(error).__name__}",
                    )
                )
    for folder, members in sorted(dicom_folders.items()):
        parts = PurePosixPath(folder).parts
        found.append(
            _Candidate(
                _locator_of(parts, known),
                parts[-1] if parts else "dicom",
                ImageFile(folder, "dicom", tuple(members)),
                archive=False,
                dicom=True,
            )
        )
    return found


def _dicom_tags(root: Path, candidate: _Candidate) -> dict[str, Any]:
    """The description of a DICOM series from its first slice."""
    import io

    import pydicom

    try:
        if ZIP_SEPARATOR in candidate.file.source_path:
            with zipfile.ZipFile(root / candidate.file.source_path.split(ZIP_SEPARATOR, 1)[0]) as archive:
                content = archive.read(candidate.file.files[0])
        else:
            content = (root / candidate.file.files[0]).read_bytes()
        dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        return {
            name: str(dataset.get(name))
            for name in ("SeriesDescription", "ProtocolName", "MRAcquisitionType", "SliceThickness")
            if dataset.get(name) is not None
        }
    except Exception:  # whatever is wrong with the slice is found and reported when the series is inspected
        return {}


def _choose_table(found: dict[str, set[str]], required: set[str], root: Path, what: str) -> str:
    """The table whose header has ``required``: the newest freeze, the plain investigator file first."""
    fitting = [path for path, keys in found.items() if required <= keys]
    if not fitting:
        raise MissingTable(
            "a clinical table is missing",
            where=root,
            found=describe_tables(found),
            expected=f"the {what} table, with the columns {', '.join(sorted(required)).upper()}",
            remedy="put the table of the data freeze (such as investigator_nacc71.csv) anywhere below this folder",
        )

    def preference(path: str) -> tuple[int, int, str]:
        name = PurePosixPath(path).name.lower()
        freeze = re.search(r"nacc(\d+)", name)
        plain = 0 if re.search(r"^investigator_(?:mri_)?nacc", name) else 1 if "investigator" in name else 2
        return (-int(freeze[1]) if freeze else 0, plain, path)

    return sorted(fitting, key=preference)[0]


def _read_visits(book: Ingest, table: Table) -> tuple[dict[str, dict[str, Sourced]], set[str]]:
    """UDS visits into the book; person-level values and the people whose sex differs between visits."""
    table.require(
        id=("NACCID",),
        visit=("NACCVNUM",),
        year=("VISITYR",),
        month=("VISITMO",),
        day=("VISITDAY",),
        diagnosis=("NACCUDSD",),
    )

    def identify(row: Row) -> tuple[str, str] | None:
        number = parse_whole_id(row.get("NACCVNUM"))
        subject = row.get("NACCID").upper()
        return (subject, str(number)) if NACCID.fullmatch(subject) and number is not None else None

    def present(cell: str) -> tuple[int | None, QuarantineReason | None]:
        meaning, problem = parse_code(cell, {0.0: "0", 1.0: "1", 2.0: "0"}, frozenset({9.0, NOT_ASKED, 8.0}))
        return (None if meaning is None else int(meaning)), problem

    score = LOGICAL_MEMORY.with_missing(*COGNITION_MISSING)
    apoe = {1.0: "33", 2.0: "34", 3.0: "23", 4.0: "44", 5.0: "24", 6.0: "22"}
    fields: dict[str, Any] = {
        "dx": (_syndrome, ("NACCUDSD",)),
        "mmse": (MMSE.with_missing(*COGNITION_MISSING), ("NACCMMSE",)),
        "moca": (MOCA.with_missing(*COGNITION_MISSING), ("NACCMOCA", "MOCATOTS")),
        "lm_immediate": (score, ("LOGIMEM",)),
        "lm_delayed": (score, ("MEMUNITS",)),
        "cdr_global": (CDR_GLOBAL.with_missing(NOT_ASKED), ("CDRGLOB",)),
        "cdr_sb": (CDR_SUM.with_missing(NOT_ASKED), ("CDRSUM",)),
        "gds": (GDS.with_missing(88, 99, NOT_ASKED), ("NACCGDS",)),
        "alzheimer": (Quantity(0, 9, missing=frozenset({NOT_ASKED, 8.0, 9.0})), ("NACCALZD",)),
        "age": (Quantity(15, 120, missing=frozenset({888.0, 999.0, NOT_ASKED})), ("NACCAGE",)),
        "educ_years": (EDUCATION_YEARS.with_missing(99, NOT_ASKED), ("EDUC",)),
        "sex": (parse_sex, ("SEX", "NACCSEX")),
        "handedness": (
            lambda cell: parse_code(cell, {1.0: "L", 2.0: "R", 3.0: "A"}, frozenset({9.0, NOT_ASKED})),
            ("HANDED",),
        ),
        "birth_year": (Quantity(1875, 2015, missing=frozenset({9999.0, NOT_ASKED})), ("BIRTHYR",)),
        "birth_month": (Quantity(1, 12, missing=frozenset({99.0, 88.0, NOT_ASKED})), ("BIRTHMO",)),
        "apoe_genotype": (lambda cell: parse_code(cell, apoe, frozenset({9.0, NOT_ASKED})), ("NACCAPOE",)),
        "apoe4_count": (Quantity(0, 2, 1, frozenset({9.0, NOT_ASKED})), ("NACCNE4S",)),
        **{name: (present, (column,)) for column, name in HISTORY.items()},
    }
    dates: dict[tuple[str, str], set[datetime.date]] = {}
    for row in table.rows():
        key = identify(row)
        if key is None:
            continue
        date, illegal = _date(row, "VISITYR", "VISITMO", "VISITDAY")
        if date is not None:
            dates.setdefault(key, set()).add(date)
        elif illegal:
            book.field_issue(QuarantineReason.DATE_UNPARSABLE, *key, "VISITDAY", row)
    people: dict[str, dict[str, Sourced]] = {}
    sexes: dict[str, set[str]] = {}
    for (subject, code), values in book.collect(table, identify, fields).items():
        visit = book.visit(subject, code)
        own_dates = dates.get((subject, code), set())
        visit.date = next(iter(own_dates)) if len(own_dates) == 1 else None
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
        if visit.values.get("dx_native") == "DEM":
            if "alzheimer" in values:
                source = values["alzheimer"]
                visit.set(
                    "dementia_etiology",
                    Sourced("AD" if source.value == 1 else "other", source.file, source.row, source.rule),
                )
            else:
                visit.values["dementia_etiology"] = "unknown"
        history = {name: values[name].value for name in HISTORY.values() if name in values}
        if history:
            visit.values["history"] = json.dumps(history, sort_keys=True)
        if "age" in values:
            visit.notes["age"] = values["age"]
        person = people.setdefault(subject, {})
        for name in ("sex", "educ_years", "handedness", "birth_year", "birth_month", "apoe_genotype", "apoe4_count"):
            if name in values:
                person.setdefault(name, values[name])
        if "sex" in values:
            sexes.setdefault(subject, set()).add(values["sex"].value)
    first: dict[str, datetime.date] = {}
    for visit in book.visits.values():
        if visit.date is not None:
            first[visit.subject] = min(first.get(visit.subject, visit.date), visit.date)
    for visit in book.visits.values():
        if visit.date is not None:
            visit.month = round((visit.date - first[visit.subject]).days / DAYS_PER_YEAR * 12, 1)
    return people, {subject for subject, values in sexes.items() if len(values) > 1}


def _age(
    date: datetime.date | None, person: dict[str, Sourced], visit: Visit, delta: int | None, mri_row: Row
) -> tuple[float | None, str, str, Sourced | None]:
    if date is not None and "birth_year" in person:
        year = person["birth_year"]
        month = int(person["birth_month"].value) if "birth_month" in person else 7
        born = datetime.date(int(year.value), month, 15)
        precision = "month" if "birth_month" in person else "year"
        return (date - born).days / DAYS_PER_YEAR, precision, "scan - month of birth", year
    if "age" in visit.notes:
        age = visit.notes["age"]
        return age.value + (delta or 0) / DAYS_PER_YEAR, "integer", "NACCAGE + (scan - visit)", age
    value = parse_float(mri_row.get("NACCMRIA"))
    if value is not None and 15 <= value <= 120:
        return value, "integer", "NACCMRIA", Sourced(value, mri_row.table.relative, mri_row.line, "NACCMRIA")
    return None, "", "", None


def ingest(root: Path, params: Params, workers: int) -> IngestResult:
    """Read a NACC data freeze with its MRI sessions."""
    book = Ingest("NACC", root, params, workers)
    tables = headers(root, book.files)
    uds_path = _choose_table(tables, {"naccid", "naccvnum", "naccudsd"}, root, "UDS")
    mri_path = _choose_table(tables, {"naccid", "naccmrfi"}, root, "MRI session")
    uds = book.read(uds_path, "visits", columns=UDS_COLUMNS)
    mri = book.read(mri_path, "MRI sessions", columns=MRI_COLUMNS)
    people, sex_conflicts = _read_visits(book, uds)
    freeze = re.search(r"nacc(\d+)", PurePosixPath(uds_path).name.lower())
    release = f"freeze {freeze[1]}" if freeze else PurePosixPath(uds_path).stem

    sessions: dict[str, list[Row]] = {}
    for row in mri.rows():
        locator = normalize_locator(row.get("NACCMRFI"))
        if is_blank(locator) or parse_float(locator) == NOT_ASKED:
            continue
        if not NACCID.fullmatch(row.get("NACCID").upper()):
            book.row_without_id(row)
            continue
        sessions.setdefault(locator, []).append(row)
    candidates = find_candidates(root, book.files, set(sessions))
    if not candidates:
        raise no_images(root, "NACC", "session archives such as mri1234ni.zip, or their folders")
    with_nifti = {c.locator for c in candidates if not c.dicom and c.problem is None}
    unpacked = {(c.locator, c.name) for c in candidates if not c.archive}
    visits = {subject: [v for v in group if v.date is not None] for subject, group in book.visits_of().items()}
    emulation = book.form == "table1_emulation"

    for candidate in candidates:
        if candidate.dicom and candidate.locator in with_nifti:
            continue  # the DICOM form of a session that is read as NIfTI: the same images, not further ones
        item = FoundImage(f"{candidate.locator}/{candidate.name}", candidate.file)
        book.images.append(item)
        rows = sessions.get(candidate.locator, [])
        if not rows:
            book.drop(item, QuarantineReason.FILE_WITHOUT_RECORD, "no row of the MRI table has this session")
            continue
        if (
            len({(row.get("NACCID"), row.get("MRIYR"), row.get("MRIMO"), row.get("MRIDY", "MRIDAY")) for row in rows})
            > 1
        ):
            book.drop(
                item,
                QuarantineReason.DUPLICATE_KEY_CONFLICT,
                "several differing rows of the MRI table have this session",
                rows[-1].table.relative,
                rows[-1].line,
            )
            continue
        row = rows[0]
        subject = row.get("NACCID").upper()
        item.subject = subject
        number = parse_whole_id(row.get("NACCMNUM"))
        item.session = str(number) if number is not None and number not in (0, 88) else candidate.locator
        if candidate.problem is not None:
            book.drop(item, QuarantineReason.IMAGE_UNREADABLE, candidate.problem)
            continue
        if candidate.archive and (candidate.locator, candidate.name) in unpacked:
            book.drop(item, QuarantineReason.DUPLICATE_KEY_IDENTICAL, "the archive's content also lies unpacked")
            continue
        if candidate.dicom:
            candidate.sidecar = _dicom_tags(root, candidate)
        if candidate.name.lower().split(".nii")[0].endswith("_eq_1"):
            book.drop(
                item, QuarantineReason.KNOWN_BAD_CONVERSION, "the converter marked unequal slice distances (_Eq_1)"
            )
            continue
        sidecar = candidate.sidecar or None
        described = str(
            (sidecar or {}).get("SeriesDescription") or (sidecar or {}).get("ProtocolName") or candidate.name
        )
        item.series_description = described
        # The name alone tells what an unread image without a sidecar is; the published table asked nothing.
        known = sidecar if sidecar is not None or book.images_read else {"SeriesDescription": described}
        if not emulation and is_t1(described, known) is False:
            book.drop(item, QuarantineReason.NOT_T1, "the series is no T1-weighted volume")
            continue

        own = visits.get(subject, [])
        by_number = {visit.code: visit for visit in own}
        stated = parse_whole_id(row.get("NACCVNUM"))
        days = parse_float(row.get("NACCMRDY"))
        days = None if days is None or abs(days) >= 8888 or days == NOT_ASKED else days
        date, _ = _date(row, "MRIYR", "MRIMO", "MRIDY", "MRIDAY")
        if date is not None and date > datetime.date.today():
            book.drop(
                item, QuarantineReason.DATE_IN_FUTURE, "the MRI is dated in the future", row.table.relative, row.line
            )
            continue
        if date is None:
            nearest = by_number.get(str(stated)) if stated is not None else None
            if nearest is not None and nearest.date is not None and days is not None:
                date = nearest.date + datetime.timedelta(days=round(days))
                item.provenance["scan_date"] = {
                    "file": row.table.relative,
                    "row": row.line,
                    "rule": "visit NACCVNUM + NACCMRDY",
                }
            book.remark(
                item,
                QuarantineReason.DATE_UNPARSABLE,
                "MRIYR, MRIMO and MRIDY give no date",
                source_file=row.table.relative,
                source_row=row.line,
            )
        item.scan_date = date
        match = None
        if date is not None:
            match = match_visit(date.toordinal(), [v.date.toordinal() for v in own if v.date], book.window_days)
        if match is None:
            book.drop(
                item,
                QuarantineReason.NO_VISIT_IN_WINDOW,
                f"no UDS visit within {book.window_days} days of the scan",
                row.table.relative,
                row.line,
            )
            continue
        visit = own[match[0]]
        book.attach(item, visit, "date_nearest", match[1])
        if stated is not None:
            item.provenance["match"] = {
                "file": row.table.relative,
                "row": row.line,
                "rule": "nearest visit by date; "
                + ("NACCVNUM agrees" if str(stated) == visit.code else "NACCVNUM names another visit"),
            }
        person = people.get(subject, {})
        if subject in sex_conflicts:
            book.drop(item, QuarantineReason.SEX_CONFLICT, "UDS visits differ on sex")
            continue
        if "sex" not in person:
            book.drop(item, QuarantineReason.SEX_MISSING, "no UDS row gives the participant's sex")
            continue
        for column in ("sex", "educ_years", "handedness", "apoe_genotype", "apoe4_count"):
            book.set_person(item, column, person.get(column))
        age, precision, rule, source = _age(date, person, visit, match[1], row)
        if emulation and date is not None and "birth_year" in person:
            age, precision, rule = float(date.year - person["birth_year"].value), "year", "scan year - year of birth"
        book.set_age(item, age, precision, rule, source.file if source else None, source.row if source else None)
        stated_age = parse_float(row.get("NACCMRIA"))
        if (
            age is not None
            and stated_age is not None
            and 0 <= stated_age < 150
            and abs(stated_age + 0.5 - age) > AGE_TOLERANCE_YEARS
        ):
            book.remark(
                item,
                QuarantineReason.AGE_INCONSISTENT,
                f"NACCMRIA differs by more than {AGE_TOLERANCE_YEARS:g} years from the age by date of birth",
                source_file=row.table.relative,
                source_row=row.line,
            )
        if "out_of_scope" in visit.notes:
            source = visit.notes["out_of_scope"]
            book.remark(
                item,
                QuarantineReason.DIAGNOSIS_OUT_OF_SCOPE,
                "NACCUDSD is not in the code book; no label",
                source_file=source.file,
                source_row=source.row,
            )
        elif visit.values.get("dx_native") is None:
            book.remark(item, QuarantineReason.NO_DIAGNOSIS, "no diagnosis at the matched visit")
        visit.notes["matched"] = True

        for column, (name, low, high) in VOLUMES.items():
            volume = book.value(row, subject, visit.code, partial(parse_volume, low=low, high=high), column)
            if volume is not None:
                item.values[name] = volume.value
                item.provenance[name] = {**volume.as_json(), "rule": f"{column} x 1000"}
                item.values["volume_source"] = "NACC-MRI"
        strength = parse_float(str((sidecar or {}).get("MagneticFieldStrength", "")))
        code = parse_float(row.get("MRIFIELD"))
        item.values["field_strength_t"] = tesla(strength) if strength else FIELD_STRENGTH.get(code or 0.0)
        item.values["manufacturer"] = (sidecar or {}).get("Manufacturer") or MANUFACTURER.get(
            parse_float(row.get("MRIMANU")) or 0.0
        )
        model = (sidecar or {}).get("ManufacturersModelName")
        item.values["scanner_model"] = str(model) if model else None
        item.values["release"] = release
        time = str((sidecar or {}).get("AcquisitionTime", ""))
        thickness = parse_float(str((sidecar or {}).get("SliceThickness", "")))
        item.order = (date or datetime.date.max, time, candidate.name)
        item.rank = (
            bool(_REPEAT_OR_DERIVED.search(described.upper())),
            thickness if thickness is not None else 9.0,
            time,
        )

    for visit in book.visits.values():
        rating, label = visit.values.get("cdr_global"), visit.values.get("dx_native")
        if (
            visit.notes.get("matched")
            and rating is not None
            and ((label == "NC" and rating >= 1) or (label == "DEM" and rating == 0))
        ):
            book.visit_note(
                QuarantineReason.DIAGNOSIS_CONFLICT,
                visit.subject,
                visit.code,
                Severity.WARN,
                "the diagnosis is implausible beside the CDR; it is kept",
                file=uds.relative,
                line=visit.provenance.get("dx_native", {}).get("row"),
            )
    book.inspect()
    book.drop_repeated_keys()
    book.drop_equal_voxels()
    book.select()
    return book.finish()
