"""What lies in a cohort's folder, before anything is ingested: ``medalign3d doctor COHORT ROOT``.

One walk over the folder, the first line of every table and a count of its lines, the lists of members of archives; no
voxel is read, so that a download of 100,000 files takes seconds. What is wanted stands in
:mod:`medalign3d.cohorts.catalogue`.
"""

from __future__ import annotations

import csv
import datetime
import re
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.catalogue import CATALOGUE, GROUP_WORDS, PREFIXES, READ_IN_PLACE, TableSpec, known_by
from medalign3d.cohorts.images import ZIP_SEPARATOR
from medalign3d.cohorts.listing import LISTING_NAME
from medalign3d.cohorts.tables import find_table, header_key, list_files, load_table, table_pattern
from medalign3d.errors import InputError
from medalign3d.files import CHUNK_BYTES
from medalign3d.manifest import MARKER
from medalign3d.printing import count, paragraph

READ_SUFFIXES = (".csv", ".tsv", ".xlsx", ".xls")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".7z", ".rar")
COUNTED_BYTES = 1 << 29
"""Lines of larger tables are estimated from their beginning."""
SPREADSHEET_BYTES = 4 << 20
SAMPLED_ROWS, SAMPLED_BYTES = 200, 1 << 16
"""How far the cells of a table are looked at."""
RENAMED = datetime.date(2024, 10, 15)
"""Since then the archive exports ADNI's tables under new names and columns."""
MAXIMUM_NAMED = 5
ARCHIVE_SECONDS = 5.0
"""How long lists of members are read; archives that are left then are only counted."""


@dataclass
class Glance:
    """What is known of a table without reading it."""

    path: str
    keys: set[str] = field(default_factory=set)
    columns: list[str] = field(default_factory=list)
    rows: int | None = None
    rows_estimated: bool = False
    problem: str = ""
    start: str = ""


@dataclass
class TableReport:
    """One kind of table in the folder.

    ``status`` is ``found``, ``missing`` (ingest cannot run), ``absent`` (optional) or ``problem``.
    """

    name: str
    what: str
    need: str
    status: str
    files: list[str] = field(default_factory=list)
    not_taken: list[str] = field(default_factory=list)
    rows: int | None = None
    rows_estimated: bool = False
    vintage: str = ""
    columns_used: list[str] = field(default_factory=list)
    columns_absent: list[str] = field(default_factory=list)
    known_by: str = ""
    cost: str = ""
    detail: str = ""


@dataclass
class Preflight:
    """The whole answer."""

    cohort: str
    root: str
    files: int = 0
    seconds: float = 0.0
    simulated: bool = False
    vintages: list[str] = field(default_factory=list)
    tables: list[TableReport] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    image_words: str = ""
    archives_read: int = 0
    archives_unopened: int = 0
    archives_packed: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    other_tables: list[str] = field(default_factory=list)
    foreign: dict[str, list[str]] = field(default_factory=dict)
    problem: str = ""

    @property
    def complete(self) -> bool:
        """Whether ingest can run; tables without images are enough for it."""
        good = all(table.status in ("found", "absent") for table in self.tables)
        something = self.images or self.archives_unopened or any(table.files for table in self.tables)
        return good and not self.problem and bool(something)


# --------------------------------------------------------------------------------------------------------------- tables


def glance(root: Path, path: str) -> Glance:
    """Header and number of rows of a table; a damaged one says what is wrong with it."""
    seen = Glance(path)
    file = root / path
    try:
        size = file.stat().st_size
        spreadsheet = file.suffix.lower() in (".xlsx", ".xls")
        table = load_table(file, root=root, header_only=not (spreadsheet and size <= SPREADSHEET_BYTES))
        seen.columns = table.all_columns
        seen.keys = {header_key(column) for column in table.all_columns}
        if spreadsheet:
            beginning = table.frame.head(SAMPLED_ROWS)
            seen.start = " ".join(str(cell) for row in beginning.itertuples(index=False) for cell in row)
            seen.rows = len(table.frame) if size <= SPREADSHEET_BYTES else None
        else:
            with file.open("rb") as stream:
                seen.start = stream.read(SAMPLED_BYTES).decode("latin-1")
            seen.rows, seen.rows_estimated = _count_lines(file, size)
    except (InputError, OSError, zipfile.BadZipFile) as error:
        seen.problem = error.what if isinstance(error, InputError) else type(error).__name__
        if isinstance(error, InputError) and error.found:
            seen.problem += f": {error.found}"
    return seen


def _count_lines(path: Path, size: int) -> tuple[int, bool]:
    """Lines after the first, and whether they were estimated from the beginning of a very large file."""
    lines, read, last = 0, 0, b"\n"
    with path.open("rb") as stream:
        while read < COUNTED_BYTES and (chunk := stream.read(CHUNK_BYTES)):
            lines += chunk.count(b"\n") or chunk.count(b"\r")
            read += len(chunk)
            last = chunk[-1:]
    if read < size:
        return int(lines * size / read), True
    return max(0, lines + (last not in (b"\n", b"\r")) - 1), False


def _choose_by_name(root: Path, files: Sequence[str], cohort: str, spec: TableSpec) -> tuple[list[str], list[str], str]:
    """The table that a reader takes, others of its name, and what is wrong."""
    patterns = [table_pattern(name, PREFIXES[cohort]) for name in spec.names]
    fitting = [path for path in files if any(p.fullmatch(PurePosixPath(path).name) for p in patterns)]
    try:
        chosen = find_table(root, files, *spec.names, prefixes=PREFIXES[cohort], required=False)
    except InputError as error:
        return fitting, [], f"{error.what}, and the copies differ: {error.remedy}"
    return ([chosen] if chosen else []), [path for path in fitting if path != chosen], ""


def _choose_by_header(
    root: Path, seen: Mapping[str, Glance], cohort: str, spec: TableSpec
) -> tuple[list[str], list[str], str]:
    fitting = sorted(p for p, table in seen.items() if any(header.fits(table.keys) for header in spec.headers))
    if spec.cells is not None:
        pattern = re.compile(spec.cells[0], re.IGNORECASE)
        fitting = sorted(p for p, table in seen.items() if pattern.search(table.start))
        # Lists and summaries name sessions, too: tables with the needed columns go first.
        whole = [p for p in fitting if all(c.is_in(seen[p].keys) for c in spec.columns if c.needed)]
        fitting = whole or fitting
    if spec.several or len(fitting) < 2:
        return fitting, [], ""
    if cohort == "NACC":
        from medalign3d.cohorts.nacc import _choose_table

        try:
            keys = {path: table.keys for path, table in seen.items()}
            chosen = _choose_table(root, keys, fitting, "UDS" if spec.name == "UDS" else "MRI session")
        except InputError as error:
            return fitting, [], f"{error.what}: {error.remedy}"
        return ([chosen] if chosen else []), [path for path in fitting if path != chosen], ""
    if cohort == "IXI":
        from medalign3d.cohorts.ixi import TABLE_NAMES

        ranks = {name: rank for rank, name in enumerate(TABLE_NAMES)}
        fitting.sort(key=lambda path: (ranks.get(PurePosixPath(path).name.lower().split(".")[0], len(ranks)), path))
    return fitting[:1], fitting[1:], ""
    return fitting[:1], fitting[1:], ""


def _report(cohort: str, root: Path, files: Sequence[str], seen: Mapping[str, Glance], spec: TableSpec) -> TableReport:
    by_name = bool(spec.names)
    chosen, others, problem = (
        _choose_by_name(root, files, cohort, spec) if by_name else _choose_by_header(root, seen, cohort, spec)
    )
    report = TableReport(
        spec.name, spec.what, spec.need, "found", chosen, others, known_by=known_by(cohort, spec), cost=spec.cost
    )
    if not chosen:
        report.status = "absent"
        return report
    tables = [seen[path] for path in chosen if path in seen]
    rows = [table.rows for table in tables]
    report.rows = None if None in rows else sum(row for row in rows if row is not None)
    report.rows_estimated = any(table.rows_estimated for table in tables)
    damaged = [table for table in tables if table.problem]
    if problem or damaged:
        report.status = "problem"
        report.detail = problem or f"{damaged[0].path}: {damaged[0].problem}"
        return report
    keys = set().union(*(table.keys for table in tables)) if tables else set()
    for column in spec.columns:
        names = " or ".join(column.names)
        if column.is_in(keys):
            report.columns_used.append(next(n for n in column.names if header_key(n) in keys))
        else:
            report.columns_absent.append(names)
            if column.needed:
                report.status = "problem"
                report.detail = f"the column {names} is needed"
    if report.rows == 0:
        report.status = "problem" if spec.need == "required" else report.status
        report.detail = report.detail or "the table has a header but no rows"
    report.vintage = _vintage_of(cohort, spec, chosen[0], keys)
    return report


def _settle_groups(reports: list[TableReport], wanted: Callable[[str], bool]) -> None:
    """Absent tables that are required become ``missing``: by themselves, or as the last hope of their group."""
    groups: dict[str, list[TableReport]] = {}
    for report in reports:
        if report.need == "required" and report.status == "absent":
            report.status = "missing"
        elif report.need in GROUP_WORDS:
            groups.setdefault(report.need, []).append(report)
    for name, members in groups.items():
        if name == "one study":
            found = any(member.status != "absent" for member in members)
            for member in members:
                if member.status == "absent" and (wanted(member.name) or not found):
                    member.status = "missing"
        elif all(member.status == "absent" for member in members):
            members[0].status = "missing"
            members[0].detail = GROUP_WORDS[name]


# ------------------------------------------------------------------------------------------------------------- vintages

_DATE = re.compile(r"_(\d{1,2})-?([A-Za-z]{3})-?(\d{4})\.|_(\d{4})-(\d{2})-(\d{2})\.|_(\d{1,2})_(\d{1,2})_(\d{4})[_.]")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def date_in_name(path: str) -> datetime.date | None:
    """The date of export in a file's name: ``_17Nov2024``, ``_28-Apr-2015``, ``_2024-11-17`` or ``_11_17_2024``.

    >>> date_in_name("DXSUM_17Nov2024.csv"), date_in_name("T1_4_28_2015.csv"), date_in_name("CDR.csv")
    (datetime.date(2024, 11, 17), datetime.date(2015, 4, 28), None)
    """
    match = _DATE.search(PurePosixPath(path).name)
    if match is None:
        return None
    try:
        if match[1]:
            return datetime.date(int(match[3]), _MONTHS.index(match[2].lower()) + 1, int(match[1]))
        if match[4]:
            return datetime.date(int(match[4]), int(match[5]), int(match[6]))
        return datetime.date(int(match[9]), int(match[7]), int(match[8]))
    except ValueError:
        return None


def _vintage_of(cohort: str, spec: TableSpec, path: str, keys: set[str]) -> str:
    """The vintage of one table in words; empty when nothing tells."""
    name = PurePosixPath(path).name
    date = date_in_name(path)
    exported = f"exported {date.isoformat()}" if date else ""
    if cohort == "ADNI":
        if spec.name == "APOERES" and keys & {"genotype", "apgen1"}:
            form = "GENOTYPE (since 2024)" if "genotype" in keys else "APGEN1, APGEN2 (before 2024)"
            return ", ".join(part for part in (exported, form) if part)
        if spec.name == "DXSUM" and keys & {"diagnosis", "dxchange", "dxcurren"}:
            used = [c.upper() for c in ("diagnosis", "dxchange", "dxcurren") if c in keys]
            return ", ".join(part for part in (exported, f"diagnosis in {', '.join(used)}") if part)
        return exported
    if cohort == "NACC":
        match = re.search(r"nacc(\d+)", name, re.IGNORECASE)
        return f"data freeze {match[1]}" if match else "no freeze in its name (custom request)"
    if cohort == "OASIS" and spec.name in ("OASIS-1", "OASIS-2"):
        if re.search(r"-[0-9a-f]{12,}\.xlsx?$", name):
            return "current spreadsheet (hash in its name)"
        return "spreadsheet" if name.lower().endswith((".xlsx", ".xls")) else "CSV (older release, or saved as CSV)"
    if cohort == "OASIS" and spec.name.startswith("OASIS-3"):
        return "clinical forms (OASISID)" if "oasisid" in keys else "older XNAT export" if "subject" in keys else ""
    return exported


def _vintages(cohort: str, root: Path, files: Sequence[str], reports: list[TableReport]) -> list[str]:
    """What the tables together say about the release."""
    by_name = {report.name: report for report in reports}
    found = [report for report in reports if report.files]
    lines = []
    if cohort == "ADNI":
        new: list[str] = []
        old: list[str] = []
        for report in found:
            for path in report.files:
                name, date = PurePosixPath(path).name, date_in_name(path)
                if "all_images" in name.lower():
                    new.append(name)
                elif date is not None:
                    (new if date >= RENAMED else old).append(name)
                elif re.match(r"(?i)mrilist|mpragemeta", name):
                    old.append(name)
            if report.name == "APOERES":
                (new if "GENOTYPE" in report.columns_used else old).append("APOERES columns")
        for words, evidence in (("after", new), ("before", old)):
            if evidence:
                shown = ", ".join(dict.fromkeys(evidence[:4])) + (" ..." if len(evidence) > 4 else "")
                lines.append(f"exported {words} the renaming of October 2024: {shown}")
        if by_name["ADNIMERGE"].status == "absent" and by_name["DXSUM"].files:
            names = ("DXSUM", "CDR", "MMSE", "NEUROBAT", "PTDEMOG", "APOERES")
            used = ", ".join(name for name in names if by_name[name].files)
            lines.append(f"ADNIMERGE is not there: visits are rebuilt from {used}")
    elif cohort == "AIBL":
        dates = sorted(
            {d.isoformat() for r in found if r.name != "image lists" for p in r.files if (d := date_in_name(p))}
        )
        extract = next((m[0] for path in files if (m := re.search(r"Data_extract_[0-9.]*\d", path))), "")
        lines += [" ".join(part for part in (extract, f"extracted {', '.join(dates)}" if dates else "") if part)]
    elif cohort == "NACC":
        uds = by_name["UDS"]
        if uds.files:
            lines += [f"UDS {uds.vintage}; {_uds_versions(root / uds.files[0])}"]
        if by_name["MRI"].files and uds.files and by_name["MRI"].vintage != uds.vintage:
            lines.append(f"MRI table of another release: {by_name['MRI'].vintage}")
    else:
        lines += [f"{report.name}: {report.vintage}" for report in found if report.vintage]
    return [line for line in lines if line]


def _uds_versions(path: Path, lines: int = 3000) -> str:
    """Form versions in the first lines of a UDS table."""
    seen: Counter[str] = Counter()
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        reader = csv.reader(stream)
        header = [header_key(name) for name in next(reader, [])]
        if "formver" not in header:
            return "no column FORMVER: UDS version unknown"
        place = header.index("formver")
        for number, row in enumerate(reader):
            if number >= lines:
                break
            if place < len(row) and row[place].strip():
                seen[row[place].strip()] += 1
    versions = ", ".join(f"{version} ({number})" for version, number in sorted(seen.items()))
    return f"UDS form versions among its first rows: {versions or 'none'}"


# --------------------------------------------------------------------------------------------------------------- images

_FOREIGN: dict[str, re.Pattern[str]] = {
    "ADNI": re.compile(r"(?:^|_)\d{3}_S_\d{4,5}(?:_|$)", re.IGNORECASE),
    "NACC": re.compile(r"^(?:mri\d+(?:ni)?\.zip|(?:investigator|commercial)_.*nacc\d+\.csv)$", re.IGNORECASE),
    "OASIS": re.compile(r"(?:^|-|_)OAS[123]_?\d{4}", re.IGNORECASE),
    "AIBL": re.compile(r"^aibl_(?:[a-z0-9]+(?:_\d|\.)|\d+_MR)", re.IGNORECASE),
    "MIRIAD": re.compile(r"^miriad_\d{3}_", re.IGNORECASE),
    "IXI": re.compile(r"^IXI\d{3}-", re.IGNORECASE),
}


def _images(cohort: str, files: Sequence[str]) -> tuple[dict[str, int], str]:
    """Images by kind, and a remark."""
    kinds: Counter[str] = Counter()
    words = ""
    if cohort in ("ADNI", "AIBL"):
        from medalign3d.cohorts.adni import PTID
        from medalign3d.cohorts.loni import group_images, is_t1_description

        images = group_images(files, PTID) if cohort == "ADNI" else group_images(files)
        people = set()
        for image in images:
            suffix = PurePosixPath(image.files[0]).name.lower()
            form = "DICOM" if suffix.endswith((".dcm", ".ima")) else "NIfTI" if ".nii" in suffix else "Analyze"
            if not image.uid:
                kinds["files without an image number"] += 1
            else:
                t1 = "T1-weighted" if is_t1_description(image.description) else "other series"
                kinds[f"{t1}, {form}"] += 1
                people.add(image.subject_folder)
        words = f"of {count(len(people), 'participant')}" if people else ""
    elif cohort == "NACC":
        folders = set()
        for path in files:
            lower = path.lower()
            if lower.endswith(".zip"):
                name = PurePosixPath(lower).name
                kind = "SCAN" if name.startswith("scan_") else "NIfTI" if name.endswith("ni.zip") else "DICOM"
                kinds[f"{kind} session archives"] += 1
            elif lower.endswith((".nii", ".nii.gz")):
                kinds["unpacked NIfTI volumes"] += 1
            elif lower.endswith((".dcm", ".ima")):
                folders.add(PurePosixPath(path).parent)
        if folders:
            kinds["unpacked DICOM folders"] = len(folders)
    elif cohort == "OASIS":
        from medalign3d.cohorts.oasis import _session_of, kind_of_oasis1, pair_up

        sessions = set()
        for path, _ in pair_up(files):
            study, subject, code = _session_of(path)
            if study:
                sessions.add((subject, code))
            if study == 1:
                variety = kind_of_oasis1(path)
                kinds[f"OASIS-1, {variety.variant if variety else 'no T1 (segmentation or mask)'}"] += 1
            elif study:
                kinds[f"OASIS-{study}"] += 1
            else:
                kinds["without a session in their name"] += 1
        words = f"of {count(len(sessions), 'session')}" if sessions else ""
    else:
        from medalign3d.cohorts import ixi, miriad

        for path in files:
            name = PurePosixPath(path).name.rpartition(ZIP_SEPARATOR)[2]
            if not name.lower().endswith((".nii", ".nii.gz")):
                continue
            if cohort == "MIRIAD":
                named = bool(miriad.FILE_NAME.fullmatch(name))
                folder = any(miriad.scan_of(part) is not None for part in PurePosixPath(path).parts[:-1])
                kinds["volumes" if named else "volumes in session folders" if folder else "volumes of other names"] += 1
            else:
                match = ixi.FILE_NAME.fullmatch(re.sub(r"\.nii(?:\.gz)?$", "", name, flags=re.IGNORECASE))
                kind = (match["weighting"] or match["kind"] or "T1").upper() if match else "other names"
                kinds[f"{kind} volumes" if match else "volumes of other names"] += 1
    return dict(sorted(kinds.items())), words


def _members(cohort: str, root: Path, files: Sequence[str], answer: Preflight) -> list[str]:
    """Images inside archives as ``archive.zip!inner/path``, as the readers find them, while time lasts.

    Sessions of NACC are one archive each, and known by their names.
    """
    if cohort == "NACC":
        return []
    from medalign3d.cohorts.loni import list_with_archives
    from medalign3d.cohorts.packed import nifti_files

    started, found = time.perf_counter(), []
    for path in files:
        if not path.lower().endswith(READ_IN_PLACE[cohort]):
            continue
        if time.perf_counter() - started > ARCHIVE_SECONDS:
            answer.archives_unopened += 1
        elif cohort in ("ADNI", "AIBL"):
            listing = list_with_archives(root, [path])
            found += listing.files[1:]
            answer.damaged |= dict(listing.damaged)
        else:
            images, unread = nifti_files(root, [path])
            found += [image.source_path for image in images]
            answer.damaged |= unread
    return found


def _archives(cohort: str, files: Iterable[str]) -> tuple[int, list[str]]:
    """Zip archives that are read as they are, and archives that must be unpacked."""
    read, packed = 0, []
    for path in files:
        lower = path.lower()
        if not lower.endswith(ARCHIVE_SUFFIXES) or lower.endswith((".nii.gz", ".hdr.gz", ".img.gz")):
            continue
        if lower.endswith(READ_IN_PLACE[cohort]):
            read += 1
        else:
            packed.append(path)
    return read, packed


# ------------------------------------------------------------------------------------------------------------ the check


def preflight(cohort: str, root: Path) -> Preflight:
    """Look into a cohort's folder.

    Parameters
    ----------
    cohort
        Cohort name.
    root
        Its folder.
    """
    started = time.perf_counter()
    answer = Preflight(cohort, str(root))
    if cohort not in CATALOGUE:
        answer.problem = f"unknown cohort {cohort}"
        return answer
    try:
        files = list_files(root)
    except InputError as error:
        answer.problem = f"{error.where} is not there"
        return answer
    answer.files = len(files)
    answer.simulated = MARKER in files
    seen = {path: glance(root, path) for path in files if path.lower().endswith(READ_SUFFIXES)}
    for spec in CATALOGUE[cohort]:
        answer.tables.append(_report(cohort, root, list(seen), seen, spec))
    answer.damaged = {path: table.problem for path, table in seen.items() if table.problem}
    answer.images, answer.image_words = _images(cohort, [*files, *_members(cohort, root, files, answer)])
    studies = {kind[:7] for kind in answer.images if kind.startswith("OASIS-")}
    _settle_groups(answer.tables, lambda name: name[:7] in studies)
    used = {path for report in answer.tables for path in (*report.files, *report.not_taken)}
    answer.other_tables = sorted(path for path, table in seen.items() if path not in used and not table.problem)
    answer.vintages = _vintages(cohort, root, files, answer.tables)
    answer.archives_read, answer.archives_packed = _archives(cohort, files)
    if LISTING_NAME in files:
        answer.image_words += f" ({LISTING_NAME} lists images that lie elsewhere; see ingest.read_images)"
    for other, pattern in _FOREIGN.items():
        if other != cohort:
            strange = [path for path in files if pattern.search(path.rpartition("/")[2])]
            if strange:
                answer.foreign[other] = strange
    answer.seconds = round(time.perf_counter() - started, 2)
    return answer


def preflight_dict(answer: Preflight) -> dict[str, Any]:
    """The answer as plain data; lists of files are cut to examples with their number."""
    value = asdict(answer)
    value["complete"] = answer.complete
    value["foreign"] = {
        cohort: {"files": len(paths), "examples": paths[:MAXIMUM_NAMED]} for cohort, paths in answer.foreign.items()
    }
    return value


_MARKS = {"found": "ok", "absent": "absent", "missing": "MISSING", "problem": "PROBLEM"}


def render(answer: Preflight) -> str:
    """The answer for a terminal of 100 columns."""
    lines = [f"{answer.cohort} in {answer.root}"]
    if answer.problem:
        return "\n".join([*lines, f"  MISSING  {answer.problem}"])
    lines.append(f"  {count(answer.files, 'file')}, looked through in {answer.seconds:.1f} s")
    if answer.simulated:
        lines.append(f"  SIMULATED people: the folder carries the marker {MARKER}")
    lines += [paragraph(words, "  ", "    ") for words in answer.vintages]
    lines.append("tables")
    order = {"missing": 0, "problem": 0, "found": 1, "absent": 2}
    for report in sorted(answer.tables, key=lambda report: order[report.status]):
        lines += _table_lines(report)
    lines.append("images")
    if answer.images:
        for kind, number in answer.images.items():
            lines.append(f"  ok       {number:,} {kind}")
        if answer.image_words.strip():
            lines.append(f"           {answer.image_words.strip()}")
    elif answer.archives_unopened:
        lines.append("  ok       those in the archives are read by the ingest; there was no time to look into them")
    elif any(table.files for table in answer.tables):
        lines.append("  absent   no images: the tables alone are read, and give visits and no images")
    else:
        lines.append("  MISSING  no images in the custodian's layout")
    lines += _other_lines(answer)
    words = {True: "ready to ingest", False: "not ready: see MISSING and PROBLEM above"}[answer.complete]
    return "\n".join([*lines, words])


def _table_lines(report: TableReport) -> list[str]:
    indent = " " * 11
    head = paragraph(f"{_MARKS[report.status]:<8} {report.name} ({report.what})", "  ", indent)
    if report.status in ("absent", "missing"):
        lines = [
            head,
            paragraph(f"looked for: {report.known_by.replace('`', '').replace(chr(92), '')}", indent, indent),
        ]
        if report.detail:
            lines.append(paragraph(report.detail, indent, indent))
        lines.append(paragraph(f"without it: {report.cost}", indent, indent + "  "))
        return lines
    rows = "rows not counted" if report.rows is None else count(report.rows, "row")
    about = "about " if report.rows_estimated else ""
    names = ", ".join(report.files[:MAXIMUM_NAMED]) + (" ..." if len(report.files) > MAXIMUM_NAMED else "")
    vintage = f"; {report.vintage}" if report.vintage else ""
    lines = [head, paragraph(f"{names}: {about}{rows}{vintage}", indent, indent)]
    if report.detail:
        lines.append(paragraph(f"-> {report.detail}", indent, indent + "   "))
    if report.not_taken:
        lines.append(
            paragraph(f"not taken, of the same kind: {', '.join(report.not_taken[:4])}", indent, indent + "  ")
        )
    if report.columns_used:
        lines.append(paragraph(f"uses {', '.join(report.columns_used)}", indent, indent + "  "))
    if report.columns_absent:
        lines.append(paragraph(f"lacks {', '.join(report.columns_absent)}", indent, indent + "  "))
    return lines


def _other_lines(answer: Preflight) -> list[str]:
    lines: list[str] = []
    if answer.archives_read:
        left = f" ({answer.archives_unopened:,} of them not opened here)" if answer.archives_unopened else ""
        words = f"{count(answer.archives_read, 'archive')} whose images are read without unpacking{left}"
        lines.append(f"  note     {words}")
    if answer.archives_packed:
        names = ", ".join(answer.archives_packed[:3]) + (" ..." if len(answer.archives_packed) > 3 else "")
        words = f"unpack   {count(len(answer.archives_packed), 'archive')} below this folder: {names}"
        lines.append(paragraph(words, "  ", " " * 11))
    for path, problem in list(answer.damaged.items())[:MAXIMUM_NAMED]:
        lines.append(paragraph(f"damaged  {path}: {problem}", "  ", " " * 11))
    for cohort, paths in answer.foreign.items():
        where = f"{count(len(paths), 'file')} named as {cohort} names them, such as {paths[0]}"
        lines.append(paragraph(f"stray    {where}", "  ", " " * 11))
    if answer.other_tables:
        names = ", ".join(PurePosixPath(path).name for path in answer.other_tables[:8])
        more = " ..." if len(answer.other_tables) > 8 else ""
        words = f"ignored  {count(len(answer.other_tables), 'table')} that nothing is read from: {names}{more}"
        lines.append(paragraph(words, "  ", " " * 11))
    return ["other things", *lines] if lines else []
