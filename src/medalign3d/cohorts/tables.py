"""Finding and reading clinical tables.

Tables arrive as comma or semicolon separated text (UTF-8 with or without a byte order mark, or Latin-1), or as
spreadsheets whose first sheet counts. Every cell is read as text: the same code for "no value" is written ``-4``,
``"-4"`` and ``-4.0`` in one table, and ids lose their zeros as soon as something guesses types.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import datetime
import io
import os
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from medalign3d.errors import InputError, MissingTable
from medalign3d.files import CHUNK_BYTES, sha256_file

TABLE_SUFFIXES = (".csv", ".xlsx", ".xls", ".tsv", ".txt")
SPREADSHEET_SUFFIXES = (".xlsx", ".xls")
DELIMITERS = ",;\t"
MAXIMUM_LINES_PER_RECORD = 400  # a quoted cell with more line breaks is an unbalanced quote
_DATE_SUFFIX = r"(?:_(?P<date>\d{1,2}-?[A-Za-z]{3}-?\d{4}|\d{4}-\d{2}-\d{2}|\d{8}))?"
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]

RepairLine = Callable[[list[str], list[str]], list[str] | None]


def header_key(name: str) -> str:
    """A header name without case, blanks and punctuation, for comparison only.

    >>> header_key("Image Data ID") == header_key("image.data_id"), header_key("M/F")
    (True, 'm_f')
    """
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


@dataclass(frozen=True)
class BadLine:
    """A line of a table that does not fit its header."""

    line: int
    found: int
    expected: int
    repaired: bool


@dataclass
class Table:
    """A clinical table as text.

    Attributes
    ----------
    path
        The file.
    relative
        Its path relative to the cohort's root.
    frame
        Every cell as stripped text; the index is the row's line number in the file (the header is line 1).
    bad_lines
        Lines that did not fit the header: left out, or repaired.
    sha256
        Hash of the file.
    """

    path: Path
    relative: str
    frame: pd.DataFrame
    bad_lines: list[BadLine]
    sha256: str
    all_columns: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def column(self, *names: str) -> str | None:
        """The table's own name of the first of ``names`` that it has, whatever the case and punctuation."""
        own: dict[str, str] = {}
        for column in self.frame.columns:
            own.setdefault(header_key(column), column)
        for name in names:
            if header_key(name) in own:
                return str(own[header_key(name)])
        return None

    def require(self, **columns: Sequence[str]) -> None:
        """Raise unless for every keyword one of the given columns is there.

        Raises
        ------
        InputError
            That names the table, the columns found, and the synonyms looked for.
        """
        missing = [names for names in columns.values() if self.column(*names) is None]
        if missing:
            shown = ", ".join((self.all_columns or list(self.frame.columns))[:40])
            raise InputError(
                "a clinical table lacks columns",
                where=self.relative,
                found=f"columns {shown}",
                expected="; ".join(" or ".join(names) for names in missing),
                remedy="export the table again with all its columns, or rename the column to one of the expected names",
            )

    def rows(self) -> Iterator[Row]:
        """Iterate over the rows."""
        columns = {header_key(column): column for column in reversed(list(self.frame.columns))}
        names = list(self.frame.columns)
        for line, cells in zip(self.frame.index, self.frame.itertuples(index=False, name=None), strict=True):
            yield Row(self, int(line), dict(zip(names, cells, strict=True)), columns)


@dataclass
class Row:
    """One row of a table; look cells up by any of several column names."""

    table: Table
    line: int
    cells: dict[str, str]
    columns: Mapping[str, str]

    def get(self, *names: str) -> str:
        """The cell of the first of ``names`` that the table has and that is not empty; otherwise an empty text."""
        for name in names:
            column = self.columns.get(header_key(name))
            if column is not None and self.cells[column] != "":
                return self.cells[column]
        return ""

    def column(self, *names: str) -> str:
        """The table's own name for the first of ``names`` that has a cell here (or the first name)."""
        for name in names:
            column = self.columns.get(header_key(name))
            if column is not None and self.cells[column] != "":
                return column
        for name in names:
            column = self.columns.get(header_key(name))
            if column is not None:
                return column
        return names[0]


def _encoding_of(path: Path) -> str:
    """UTF-16 or UTF-8 by byte order mark, UTF-8 where every byte fits, otherwise Windows Latin-1."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as stream:
        start = stream.read(2)
        if start in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        chunk = start + stream.read(CHUNK_BYTES)
        try:
            while chunk:
                decoder.decode(chunk)
                chunk = stream.read(CHUNK_BYTES)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"


def _delimiter_of(header: str) -> str:
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=unquoted.count)


def _parse_lines(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Line number and fields of every record; None for a line with a quote that never closes.

    A record may span lines when a quoted cell holds line breaks, but only with the header's number of cells: a stray
    quote would otherwise swallow the rows behind it. Lines are streamed, because tables can be larger than the memory.
    """
    source = iter(lines)
    pending: deque[str] = deque()
    consumed: list[str] = []

    def feed() -> Iterator[str]:
        while len(consumed) < MAXIMUM_LINES_PER_RECORD:
            line = pending.popleft() if pending else next(source, None)
            if line is None:
                return
            consumed.append(line)
            yield line

    number = 1
    width: int | None = None
    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        fields: list[str] | None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fields = None
        if fields is not None and len(consumed) > 1 and width is not None and len(fields) != width:
            fields = None
        if fields is None:
            if not consumed:
                return
            # Only the first line is lost; the ones that the quote swallowed are read again.
            pending.extendleft(reversed(consumed[1:]))
            del consumed[1:]
            reader = csv.reader(feed(), delimiter=delimiter, strict=True)
        count = len(consumed)
        consumed.clear()
        if width is None and fields and any(fields):
            width = len(fields)
        yield number, fields
        number += count


def _clean(cell: str) -> str:
    return cell.replace("\ufeff", "").replace("\xa0", " ").replace("\x00", "").strip()


def _spreadsheet_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(sep=" ")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, float):
        return repr(round(value, 12))
    return str(value)


def _spreadsheet_rows(path: Path, relative: str) -> list[list[str]]:
    content = path.read_bytes()
    try:
        if content.startswith(b"PK"):
            import openpyxl

            book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()
            rows = [[_spreadsheet_cell(value) for value in row] for row in sheet.iter_rows(values_only=True)]
            book.close()
            return rows
        import xlrd

        old = xlrd.open_workbook(file_contents=content)
        first = old.sheet_by_index(0)
        table = []
        for row in range(first.nrows):
            cells = []
            for cell in first.row(row):
                if cell.ctype == xlrd.XL_CELL_DATE:
                    cells.append(_spreadsheet_cell(xlrd.xldate_as_datetime(cell.value, old.datemode)))
                elif cell.ctype in (xlrd.XL_CELL_ERROR, xlrd.XL_CELL_EMPTY):
                    cells.append("")
                else:
                    cells.append(_spreadsheet_cell(cell.value))
            table.append(cells)
        return table
    except ImportError:
        raise
    except Exception as error:  # the spreadsheet libraries raise many unrelated kinds on damaged files
        raise InputError(
            "a spreadsheet cannot be read",
            where=relative,
            found=f"{type(error).__name__}: {str(error)[:120]}",
            expected="an undamaged .xlsx or .xls file",
            remedy="download it again, or save its first sheet as .csv",
        ) from error


def load_table(
    path: Path,
    *,
    root: Path | None = None,
    columns: Iterable[str] | None = None,
    repair: RepairLine | None = None,
    header_only: bool = False,
) -> Table:
    """Read a table as text.

    Parameters
    ----------
    path
        The file.
    root
        The cohort's root, for messages and provenance.
    columns
        Keep only these columns (compared without case and punctuation); needed for tables with thousands of them.
    repair
        Called with the header and the fields of a line that has too many; returns the right fields, or None.
    header_only
        Read no rows; the hash stays empty.

    Raises
    ------
    InputError
        When the file is missing, empty, or no table.
    """
    relative = path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else path.name
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise InputError(
            "a table cannot be read",
            where=relative,
            found=error.strerror,
            remedy="check that the file exists and that you may read it",
        ) from error
    if not start.strip():
        raise InputError(
            "a table is empty",
            where=relative,
            found=f"{size} bytes",
            expected="a header line",
            remedy="download it again",
        )
    with contextlib.ExitStack() as stack:
        lines: Iterable[tuple[int, list[str] | None]]
        spreadsheet = start.startswith((b"PK", b"\xd0\xcf\x11\xe0"))
        if spreadsheet:
            lines = enumerate(_spreadsheet_rows(path, relative), start=1)
        else:
            text = start.decode("latin-1")
            if (b"\x00" in start and start[:2] not in (b"\xff\xfe", b"\xfe\xff")) or text.lstrip().lower().startswith(
                ("<html", "<!doctype", "\xef\xbb\xbf<html", "\xef\xbb\xbf<!doctype")
            ):
                raise InputError(
                    "a file is not a table",
                    where=relative,
                    found="binary data or a web page",
                    expected="comma-separated text or a spreadsheet",
                    remedy="download it again (a log-in page is often saved in place of the file)",
                )
            wide = start[:2] in (b"\xff\xfe", b"\xfe\xff")
            encoding = ("utf-16" if wide else "utf-8-sig") if header_only else _encoding_of(path)
            stream_text = stack.enter_context(path.open(encoding=encoding, errors="replace", newline=""))
            header_line = next((line for line in stream_text if line.strip(" ,;\t\r\n")), "")
            stream_text.seek(0)
            lines = _parse_lines(stream_text, _delimiter_of(header_line))
        return _assemble(path, relative, lines, columns, repair, header_only, spreadsheet)


def _assemble(
    path: Path,
    relative: str,
    lines: Iterable[tuple[int, list[str] | None]],
    columns: Iterable[str] | None,
    repair: RepairLine | None,
    header_only: bool,
    spreadsheet: bool,
) -> Table:
    """Make a table of its parsed lines: header first, then rows that fit it."""
    iterator = iter(lines)
    header: list[str] = []
    for _, fields in iterator:
        if fields and any(_clean(field) for field in fields):
            header = [_clean(field) for field in fields]
            break
    while header and header[-1] == "":
        header.pop()
    if not header:
        raise InputError("a table has no header", where=relative, expected="column names in the first line")
    unique: list[str] = []
    for name in header:
        unique.append(name if name not in unique else f"{name}.{sum(other == name for other in header[: len(unique)])}")
    wanted = None if columns is None else {header_key(name) for name in columns}
    kept = [i for i, name in enumerate(unique) if name and (wanted is None or header_key(name) in wanted)]

    bad: list[BadLine] = []
    index: list[int] = []
    data: list[list[str]] = []
    if not header_only:
        for number, fields in iterator:
            if fields is None:
                bad.append(BadLine(number, 0, len(unique), repaired=False))
                continue
            cells = fields
            while len(cells) > len(unique) and _clean(cells[-1]) == "":
                cells = cells[:-1]
            if len(cells) > len(unique):
                fixed = repair([*unique], [_clean(cell) for cell in cells]) if repair is not None else None
                bad.append(BadLine(number, len(cells), len(unique), repaired=fixed is not None))
                if fixed is None:
                    continue
                cells = fixed
            if not any(_clean(cell) for cell in cells):
                continue
            if len(cells) < len(unique):
                # Spreadsheet programs leave empty cells at the end of a line away; a lone cell is a torn line.
                if len(cells) == 1 and len(unique) > 2 and not spreadsheet:
                    bad.append(BadLine(number, len(cells), len(unique), repaired=False))
                    continue
                cells = [*cells, *[""] * (len(unique) - len(cells))]
            index.append(number)
            data.append([_clean(cells[i]) for i in kept])
    frame = pd.DataFrame(data, columns=[unique[i] for i in kept], index=index, dtype=object)
    return Table(path, relative, frame, bad, "" if header_only else sha256_file(path), unique)


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a ``.csv`` or spreadsheet table with every cell as stripped text; blanks stay empty text.

    The index is the line number in the file. ``attrs["bad_lines"]`` holds the numbers of lines left out.

    Raises
    ------
    InputError
        When the file is missing, empty, or no table.
    """
    table = load_table(Path(path))
    table.frame.attrs["bad_lines"] = [bad.line for bad in table.bad_lines if not bad.repaired]
    return table.frame


def list_files(root: Path) -> list[str]:
    """All files below ``root`` as sorted relative POSIX paths; links are followed, dot-files left out.

    Raises
    ------
    InputError
        When the folder is missing.
    """
    if not root.is_dir():
        raise InputError(
            "a cohort's folder is missing",
            where=root,
            expected="the folder with the custodian's files",
            remedy="correct the path (external.roots in params.yaml), or download the cohort",
        )
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that points back up
            folders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        base = PurePosixPath(Path(folder).relative_to(root).as_posix())
        found.extend(str(base / name) for name in names if not name.startswith("."))
    return sorted(found)


def _date_of_suffix(text: str) -> datetime.date | None:
    compact = text.replace("-", "")
    if match := re.fullmatch(r"(\d{1,2})([A-Za-z]{3})(\d{4})", compact):
        month = match[2].lower()
        if month not in _MONTHS:
            return None
        year, number, day = int(match[3]), _MONTHS.index(month) + 1, int(match[1])
    elif match := re.fullmatch(r"(\d{4})(\d{2})(\d{2})", compact):
        year, number, day = int(match[1]), int(match[2]), int(match[3])
    else:
        return None
    try:
        return datetime.date(year, number, day)
    except ValueError:
        return None


def table_pattern(name: str, prefixes: Sequence[str] = ()) -> re.Pattern[str]:
    """The anchored pattern of a table's file name: allowed prefix, name, optional date of export, suffix."""
    prefix = f"(?:(?:{'|'.join(re.escape(p) for p in prefixes)})_)?" if prefixes else ""
    return re.compile(rf"{prefix}{re.escape(name)}{_DATE_SUFFIX}\.(?:csv|xlsx|xls)", re.IGNORECASE)


def find_table(
    root: Path,
    files: Sequence[str],
    *names: str,
    prefixes: Sequence[str] = (),
    required: bool = True,
) -> str | None:
    """Find the table with one of ``names``; of several dated exports the newest.

    Parameters
    ----------
    root
        The cohort's root.
    files
        Relative paths to choose from (see :func:`list_files`).
    names
        Names in order of preference: the first that has a file wins.
    prefixes
        Allowed prefixes of the name (``ADNI`` for ``ADNI_CDR_17Nov2024.csv``).
    required
        Raise when nothing is found; otherwise return None.

    Raises
    ------
    MissingTable
        When there is none; it lists the tables that are there.
    InputError
        When there are several that differ and not all are dated.
    """
    for name in names:
        pattern = table_pattern(name, prefixes)
        candidates = [(path, match) for path in files if (match := pattern.fullmatch(PurePosixPath(path).name))]
        if not candidates:
            continue
        if len(candidates) == 1:
            return candidates[0][0]
        dated = [(_date_of_suffix(match["date"]) if match["date"] else None, path) for path, match in candidates]
        newest = max((date for date, _ in dated if date is not None), default=None)
        if all(date is not None for date, _ in dated):
            best = [path for date, path in dated if date == newest]
        else:
            best = [path for _, path in dated]
        if len({sha256_file(root / path) for path in best}) == 1:
            return best[0]
        raise InputError(
            "a table is there more than once",
            where=", ".join(best),
            expected=f"one {name} table, or only exports with a date in the name (the newest is taken)",
            remedy="move the old ones out of the cohort's folder",
        )
    if not required:
        return None
    tables = [path for path in files if path.lower().endswith(TABLE_SUFFIXES[:3])]
    raise MissingTable(
        "a clinical table is missing",
        where=root,
        found=", ".join(PurePosixPath(path).name for path in tables[:30]) or "no tables at all",
        expected=" or ".join(f"{'|'.join(prefixes) + '_' if prefixes else ''}{name}[_<date>].csv" for name in names),
        remedy="download the table from the custodian and put it anywhere below this folder",
    )


def headers(root: Path, files: Sequence[str]) -> dict[str, set[str]]:
    """The header keys of every table among ``files``: tables are known by their header. Damaged ones have no keys."""
    found: dict[str, set[str]] = {}
    for path in files:
        if PurePosixPath(path).suffix.lower() in (".csv", ".tsv", ".xlsx", ".xls"):
            try:
                table = load_table(root / path, root=root, header_only=True)
            except (InputError, zipfile.BadZipFile, OSError):
                found[path] = set()
                continue
            found[path] = {header_key(column) for column in table.all_columns}
    return found


def describe_tables(found: Mapping[str, set[str]]) -> str:
    """The tables that are there, for messages; says which of them cannot be read."""
    names = [PurePosixPath(path).name + ("" if keys else " (cannot be read)") for path, keys in sorted(found.items())]
    return ", ".join(names[:30]) or "no tables at all"
