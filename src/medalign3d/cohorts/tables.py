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
import functools
import gzip
import io
import itertools
import os
import re
import statistics
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import pandas as pd

from medalign3d.cohorts.archives import Archive, ArchiveError
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.cohorts.values import DateOrder, date_order, parse_date
from medalign3d.errors import InputError, MissingTable
from medalign3d.files import CHUNK_BYTES, sha256_file

TABLE_SUFFIXES = (".csv", ".xlsx", ".xls", ".xlsm", ".tsv", ".csv.gz", ".tsv.gz", ".txt")
DELIMITERS = ",;\t"
MAXIMUM_LINES_PER_RECORD = 400  # a quoted cell with more line breaks is an unbalanced quote
MAXIMUM_LINE_CHARACTERS = 16 << 20  # thousands of columns need a hundredth of it; no table has longer lines
MAXIMUM_SPREADSHEET_BYTES = 1 << 30  # expanded; more than the program that writes them can hold
MAXIMUM_SPREADSHEET_ROWS = 1 << 20  # the format's own limit
MAXIMUM_SPREADSHEET_CELLS = 200_000_000
MAXIMUM_GZIP_BYTES = 32 << 30
HEADER_SEARCH_LINES = 20  # titles and blank lines may stand above the header
SHORT_LINE_SHARE = 0.1  # where fewer lines than this lack cells at their end, such a line is a torn one
csv.field_size_limit(MAXIMUM_LINE_CHARACTERS)
_DATE_SUFFIX = r"(?:_(?P<date>\d{1,2}-?[A-Za-z]{3}-?\d{4}|\d{4}-\d{2}-\d{2}|\d{8}))?"
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]

RepairLine = Callable[[list[str], list[str]], list[str] | None]


@functools.lru_cache(maxsize=65536)
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
    cut_off: bool = False


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
    all_columns
        Every column of the file, also those that were not read.
    doubtful
        Line and column of cells that were emptied because two columns of one name differ in them.
    """

    path: Path
    relative: str
    frame: pd.DataFrame
    bad_lines: list[BadLine]
    sha256: str
    all_columns: list[str] = field(default_factory=list)
    doubtful: list[tuple[int, str]] = field(default_factory=list)
    _places: dict[tuple[str, ...], tuple[int, ...]] = field(default_factory=dict, repr=False)
    _date_orders: dict[str, DateOrder] = field(default_factory=dict, repr=False)

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

    def places(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Positions of those of ``names`` that the table has, in the order of ``names``."""
        found = self._places.get(names)
        if found is None:
            own: dict[str, int] = {}
            for place, column in enumerate(self.frame.columns):
                own.setdefault(header_key(column), place)
            places = (own.get(header_key(name)) for name in names)
            found = self._places[names] = tuple(place for place in places if place is not None)
        return found

    def date_order(self, column: str) -> DateOrder:
        """The order in which a column writes day and month, decided on all its cells."""
        if column not in self._date_orders:
            self._date_orders[column] = date_order(self.frame[column])
        return self._date_orders[column]

    def rows(self) -> Iterator[Row]:
        """Iterate over the rows."""
        for line, cells in zip(self.frame.index, self.frame.itertuples(index=False, name=None), strict=True):
            yield Row(self, int(line), cells)


@dataclass(slots=True)
class Row:
    """One row of a table; look cells up by any of several column names."""

    table: Table
    line: int
    cells: tuple[str, ...]

    def get(self, *names: str) -> str:
        """The cell of the first of ``names`` that the table has and that is not empty; otherwise an empty text."""
        for place in self.table.places(names):
            if self.cells[place] != "":
                return self.cells[place]
        return ""

    def column(self, *names: str) -> str:
        """The table's own name for the first of ``names`` that has a cell here (or the first name)."""
        places = self.table.places(names)
        for place in places:
            if self.cells[place] != "":
                return str(self.table.frame.columns[place])
        return str(self.table.frame.columns[places[0]]) if places else names[0]

    def date(self, *names: str) -> tuple[datetime.date | None, QuarantineReason | None]:
        """The date of the first of ``names`` that has a cell, read in the order of day and month of its column."""
        return parse_date(self.get(*names), order=self.order_of_dates(*names))

    def order_of_dates(self, *names: str) -> DateOrder:
        """How the column that :meth:`get` takes the cell from writes day and month."""
        column = self.column(*names)
        return self.table.date_order(column) if column in self.table.frame.columns else DateOrder.MONTH_FIRST


def _encoding_of_start(start: bytes) -> str | None:
    """UTF-16 by its byte order mark or by the empty half of its characters; None for anything else."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    # Column names begin with plain letters, whatever the cells below are written in.
    first, second = start[0:24:2], start[1:24:2]
    if len(second) >= 4 and not any(second) and all(first):
        return "utf-16-le"
    if len(second) >= 4 and not any(first) and all(second):
        return "utf-16-be"
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if max(even, odd) > 0.6 * len(start[0::2]) and min(even, odd) < 0.05 * len(start[0::2]):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def _encoding_of(stream: IO[bytes]) -> str:
    """UTF-8 where every byte fits, otherwise Windows Latin-1."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := stream.read(CHUNK_BYTES):
            if not chunk.isascii() or decoder.getstate()[0]:
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def _filled(line: str, delimiter: str) -> int:
    """Number of cells of a line that are not empty."""
    return sum(bool(cell.strip()) for cell in re.sub(r'"[^"]*"', "x", line).split(delimiter))


def _dialect(sample: Sequence[str]) -> tuple[str, int]:
    """Delimiter, and number of lines above the header, from a table's first lines.

    The delimiter is the one that most lines have equally often: with decimal commas a comma may well be more frequent
    than the semicolon between cells. Above the header there may be titles, which fill few cells.
    """
    bare = [re.sub(r'"[^"]*"', "", line) for line in sample]

    def agreement(delimiter: str) -> tuple[int, int]:
        counts = [count for line in bare if (count := line.count(delimiter))]
        usual = statistics.mode(counts) if counts else 0
        return sum(count == usual for count in counts), usual

    delimiter = max(DELIMITERS, key=agreement)
    filled = [_filled(line, delimiter) for line in sample]
    some = sorted(count for count in filled if count)
    if not some:
        return delimiter, 0
    usual = some[-(-3 * (len(some) - 1) // 4)]
    header = next(i for i, count in enumerate(filled) if 2 * count > usual or (count >= 3 and 4 * count > usual))
    return delimiter, header


class _Records:
    """Line number and cells of every record of delimited text; None for a line with a quote that never closes.

    A record may span lines when a quoted cell holds line breaks, but only with the header's number of cells: a stray
    quote would otherwise swallow the rows behind it. Lines are streamed, because tables can be larger than the memory.

    Attributes
    ----------
    width
        The header's number of cells, once it is known.
    ended
        Whether the last line that was read ends with a line break: a download that was cut off does not.
    """

    def __init__(self, lines: Iterator[str], delimiter: str, start: int = 1) -> None:
        self.width: int | None = None
        self.ended = True
        self._lines = lines
        self._pending: deque[str] = deque()
        self._delimiter = delimiter
        self._number = start

    def _next_line(self) -> str | None:
        line = self._pending.popleft() if self._pending else next(self._lines, None)
        if line is not None:
            self.ended = line.endswith(("\n", "\r"))
        return line

    def __iter__(self) -> Iterator[tuple[int, list[str] | None]]:
        while (line := self._next_line()) is not None:
            number = self._number
            if '"' not in line:
                self._number += 1
                yield number, line.rstrip("\r\n").split(self._delimiter)
            else:
                fields, count = self._quoted(line)
                self._number += count
                yield number, fields

    def _quoted(self, line: str) -> tuple[list[str] | None, int]:
        """Cells of the record that begins with ``line``, and its number of lines."""
        consumed = [line]

        def feed() -> Iterator[str]:
            yield line
            while len(consumed) < MAXIMUM_LINES_PER_RECORD:
                following = self._next_line()
                if following is None:
                    return
                consumed.append(following)
                yield following

        try:
            fields = next(csv.reader(feed(), delimiter=self._delimiter, strict=True), None)
        except csv.Error:
            fields = None
        if fields is not None and len(consumed) > 1 and self.width is not None and len(fields) != self.width:
            fields = None
        if fields is None:
            # Only the first line is lost; the ones that the quote swallowed are read again.
            self._pending.extendleft(reversed(consumed[1:]))
            return None, 1
        return fields, len(consumed)


#: Characters without a width, control characters and Excel's escapes of them: nothing at a cell's ends.
_AROUND = " \t\r\n\x00\ufeff\u200b\u200e\u200f\u2060"


def _clean(cell: str) -> str:
    """A cell without blanks and invisible characters around it, digits and signs of other widths and scripts as ASCII.

    Null characters inside are kept: what stood between them cannot be told, and no parser takes such a cell.
    """
    if not cell:
        return cell
    if cell.isascii():
        return cell.strip(_AROUND)
    cell = "".join(_ASCII_FOR.get(char) or (str(int(char)) if char.isdecimal() else char) for char in cell)
    return cell.strip(_AROUND).strip()


_ASCII_FOR = {"\xa0": " ", "\uff0e": ".", "\uff0c": ",", "\uff0d": "-", "\uff0b": "+", "\uff0f": "/"}


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


def _xlsx_rows(path: Path, stack: contextlib.ExitStack) -> Iterator[list[str]]:
    """Rows of the first sheet, one at a time; formulas count with the value that was stored with them."""
    import openpyxl

    with Archive(path) as archive:  # refuses bombs before the library reads anything
        size = sum(member.size for member in archive.members)
        if size > MAXIMUM_SPREADSHEET_BYTES or archive.refused:
            raise ArchiveError(
                "a spreadsheet is too large or no spreadsheet",
                found=f"{size} bytes" if not archive.refused else archive.refused[0].why,
                expected=f"at most {MAXIMUM_SPREADSHEET_BYTES} bytes",
            )
    stream = stack.enter_context(path.open("rb"))
    book = openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)
    stack.callback(book.close)
    sheet = book.worksheets[0]
    sheet.reset_dimensions()
    cells = 0
    for count, row in enumerate(sheet.iter_rows(values_only=True)):
        cells += len(row)
        if count >= MAXIMUM_SPREADSHEET_ROWS or cells > MAXIMUM_SPREADSHEET_CELLS:
            raise ArchiveError("a spreadsheet has too many cells", found=f"{count} rows, {cells} cells")
        yield [_spreadsheet_cell(value) for value in row]


def _xls_rows(path: Path) -> Iterator[list[str]]:
    import xlrd

    if path.stat().st_size > MAXIMUM_SPREADSHEET_BYTES // 4:
        raise ArchiveError("a spreadsheet is too large", found=f"{path.stat().st_size} bytes")
    book = xlrd.open_workbook(file_contents=path.read_bytes(), logfile=io.StringIO())
    first = book.sheet_by_index(0)
    for row in range(first.nrows):
        cells = []
        for cell in first.row(row):
            if cell.ctype == xlrd.XL_CELL_DATE:
                cells.append(_spreadsheet_cell(xlrd.xldate_as_datetime(cell.value, book.datemode)))
            elif cell.ctype == xlrd.XL_CELL_BOOLEAN:
                cells.append(str(bool(cell.value)))
            elif cell.ctype in (xlrd.XL_CELL_ERROR, xlrd.XL_CELL_EMPTY):
                cells.append("#ERROR" if cell.ctype == xlrd.XL_CELL_ERROR else "")
            else:
                cells.append(_spreadsheet_cell(cell.value))
        yield cells


def _spreadsheet_records(
    path: Path, relative: str, xlsx: bool, stack: contextlib.ExitStack
) -> Iterator[tuple[int, list[str] | None]]:
    try:
        yield from enumerate(_xlsx_rows(path, stack) if xlsx else _xls_rows(path), start=1)
    except ImportError:
        raise
    except Exception as error:  # the spreadsheet libraries raise many unrelated kinds on damaged files
        detail = error.what if isinstance(error, InputError) else f"{type(error).__name__}: {str(error)[:120]}"
        raise InputError(
            "a spreadsheet cannot be read",
            where=relative,
            found=detail,
            expected="an undamaged .xlsx or .xls file",
            remedy="download it again, or save its first sheet as .csv",
        ) from error


class _BoundedGzip(gzip.GzipFile):
    """Expanded gzip data up to a limit."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > MAXIMUM_GZIP_BYTES:
            raise ArchiveError("a compressed table expands beyond all bounds", expected=f"{MAXIMUM_GZIP_BYTES} bytes")
        return super().read(size)

    def read1(self, size: int = -1) -> bytes:
        if self.tell() > MAXIMUM_GZIP_BYTES:
            raise ArchiveError("a compressed table expands beyond all bounds", expected=f"{MAXIMUM_GZIP_BYTES} bytes")
        return super().read1(size)


def _open_bytes(path: Path, compressed: bool, stack: contextlib.ExitStack) -> IO[bytes]:
    stream: Any = stack.enter_context(path.open("rb"))
    if compressed:
        stream = stack.enter_context(_BoundedGzip(fileobj=stream))
    return stream


def _lines(stream: io.TextIOWrapper) -> Iterator[str]:
    """Lines with their line breaks; an error for a line without end, before it fills the memory."""
    while line := stream.readline(MAXIMUM_LINE_CHARACTERS):
        if len(line) >= MAXIMUM_LINE_CHARACTERS:
            raise ArchiveError(
                "a file is not a table",
                found=f"a line of more than {MAXIMUM_LINE_CHARACTERS} characters",
                expected="comma-separated text or a spreadsheet",
            )
        yield line


def _text_records(
    path: Path, relative: str, start: bytes, compressed: bool, header_only: bool, stack: contextlib.ExitStack
) -> _Records:
    """The records of delimited text from its header on."""
    encoding = _encoding_of_start(start)
    text = start.decode(encoding or "latin-1", errors="replace").lstrip("\ufeff\xef\xbb\xbf \t\r\n")
    first = text.splitlines()[0] if text else ""
    if text.startswith(("<", "{", "%PDF")) or re.search(r"[\x00-\x08\x0e-\x1f]", first):
        raise InputError(
            "a file is not a table",
            where=relative,
            found="binary data or a web page",
            expected="comma-separated text or a spreadsheet",
            remedy="download it again (a log-in page is often saved in place of the file)",
        )
    if encoding is None:
        encoding = "utf-8-sig"
        if not header_only:
            with contextlib.ExitStack() as inner:
                encoding = _encoding_of(_open_bytes(path, compressed, inner))
    raw = _open_bytes(path, compressed, stack)
    lines = _lines(stack.enter_context(io.TextIOWrapper(raw, encoding=encoding, errors="replace", newline="")))
    sample = list(itertools.islice(lines, HEADER_SEARCH_LINES))
    if sample:
        sample[0] = sample[0].removeprefix("\ufeff")
    delimiter, above = _dialect(sample)
    return _Records(itertools.chain(sample[above:], lines), delimiter, start=above + 1)


def load_table(
    path: Path,
    *,
    root: Path | None = None,
    columns: Iterable[str] | None = None,
    repair: RepairLine | None = None,
    header_only: bool = False,
    header: Sequence[str] | None = None,
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
    header
        Column names of a table that has lost its header line; its first line is a row then.

    Raises
    ------
    InputError
        When the file is missing, empty, or no table.
    """
    relative = path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else path.name
    try:
        with contextlib.ExitStack() as stack:
            with path.open("rb") as stream:
                start = stream.read(4096)
            compressed = start.startswith(b"\x1f\x8b")
            if compressed:
                with contextlib.ExitStack() as inner:
                    start = _open_bytes(path, True, inner).read(4096)
            if not start.strip(b" \t\r\n\x00"):
                raise InputError(
                    "a table is empty",
                    where=relative,
                    found=f"{path.stat().st_size} bytes",
                    expected="a header line",
                    remedy="download it again",
                )
            spreadsheet = start.startswith((b"PK", b"\xd0\xcf\x11\xe0"))
            if spreadsheet and not compressed:
                rows = _spreadsheet_records(path, relative, start.startswith(b"PK"), stack)
                sample = list(itertools.islice(rows, HEADER_SEARCH_LINES))
                _, above = _dialect(["\t".join("x" if cell else "" for cell in row or ()) for _, row in sample])
                return _assemble(
                    path, relative, itertools.chain(sample[above:], rows), None, columns, repair, header_only, header
                )
            records = _text_records(path, relative, start, compressed, header_only, stack)
            return _assemble(path, relative, iter(records), records, columns, repair, header_only, header)
    except ArchiveError as error:
        raise InputError(
            error.what, where=relative, found=error.found, expected=error.expected, remedy="download it again"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            "a compressed table is damaged", where=relative, found=type(error).__name__, remedy="download it again"
        ) from error
    except OSError as error:
        raise InputError(
            "a table cannot be read",
            where=relative,
            found=error.strerror,
            remedy="check that the file exists and that you may read it",
        ) from error


def _assemble(
    path: Path,
    relative: str,
    lines: Iterator[tuple[int, list[str] | None]],
    records: _Records | None,
    columns: Iterable[str] | None,
    repair: RepairLine | None,
    header_only: bool,
    given_header: Sequence[str] | None = None,
) -> Table:
    """Make a table of its parsed lines (of text ``records``, or of a spreadsheet): header first, then rows."""
    header = list(given_header or ())
    for _, fields in lines if given_header is None else ():
        if fields and any(map(_clean, fields)):
            header = [_clean(field) for field in fields]
            break
    if records is not None:
        records.width = len(header)
    while header and header[-1] == "":
        header.pop()
    if not header:
        raise InputError("a table has no header", where=relative, expected="column names in the first line")
    # Row numbers and ids stand in columns without a name, too.
    header = [name or f"column {position}" for position, name in enumerate(header, start=1)]
    unique: list[str] = []
    for name in header:
        unique.append(name if name not in unique else f"{name}.{sum(other == name for other in header[: len(unique)])}")
    wanted = None if columns is None else {header_key(name) for name in columns}
    kept = [i for i, name in enumerate(header) if name and (wanted is None or header_key(name) in wanted)]

    width = len(unique)
    bad: list[BadLine] = []
    index: list[int] = []
    short: dict[int, int] = {}  # places of rows that lack cells at their end -> number of cells
    data: list[list[str]] = [[] for _ in kept]
    caches: list[dict[str, str]] = [{} for _ in kept]  # most cells of a column repeat: clean and keep each text once
    targets = list(zip(kept, (column.append for column in data), caches, strict=True))
    for number, fields in () if header_only else lines:
        if fields is None:
            bad.append(BadLine(number, 0, width, repaired=False))
            continue
        cells = fields
        if len(cells) != width:
            while len(cells) > width and _clean(cells[-1]) == "":
                cells = cells[:-1]
            if not any(map(_clean, cells)):
                continue
            if len(cells) > width:
                fixed = repair([*unique], [_clean(cell) for cell in cells]) if repair is not None else None
                bad.append(BadLine(number, len(cells), width, repaired=fixed is not None))
                if fixed is None:
                    continue
                cells = fixed
            if len(cells) < width:
                if records is not None and not records.ended and index:
                    # The file ends in the middle of this line: its last cell may be half a number.
                    bad.append(BadLine(number, len(cells), width, repaired=False, cut_off=True))
                    continue
                if records is not None and len(cells) == 1 and width > 2:
                    bad.append(BadLine(number, len(cells), width, repaired=False))
                    continue
                if records is not None:
                    short[len(index)] = len(cells)
                cells = [*cells, *[""] * (width - len(cells))]
        elif not any(cells):
            continue
        index.append(number)
        for place, append, cache in targets:
            cell = cells[place]
            try:
                append(cache[cell])
            except KeyError:
                if len(cache) > 100_000:  # ids and free text do not repeat
                    cache.clear()
                clean = cache[cell] = _clean(cell)
                append(clean)
    # Spreadsheet programs leave empty cells at the end of a line away, on many lines: then they are read as empty.
    if short and len(short) < SHORT_LINE_SHARE * len(index):
        bad += [BadLine(index[place], count, width, repaired=False) for place, count in short.items()]
        index = [number for place, number in enumerate(index) if place not in short]
        data = [[cell for place, cell in enumerate(column) if place not in short] for column in data]
        bad.sort(key=lambda line: line.line)
    frame = pd.DataFrame(dict(enumerate(data)), index=pd.Index(index, dtype="int64"), dtype=object)
    frame.columns = pd.Index([unique[i] for i in kept], dtype=object)
    blank = ~(frame != "").any(axis=1) if wanted is None and len(kept) else None
    if blank is not None and blank.any():
        frame = frame.loc[~blank]
    doubtful = _settle_duplicates(frame, [header[i] for i in kept])
    return Table(path, relative, frame, bad, "" if header_only else sha256_file(path), unique, doubtful)


def _settle_duplicates(frame: pd.DataFrame, names: Sequence[str]) -> list[tuple[int, str]]:
    """Make the first of several columns of one name hold what all agree on; cells that differ are emptied."""
    doubtful: list[tuple[int, str]] = []
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(header_key(name), []).append(place)
    for group in places.values():
        if len(group) < 2:
            continue
        settled = []
        for line, cells in zip(frame.index, zip(*(frame.iloc[:, place] for place in group), strict=True), strict=True):
            values = {cell for cell in cells if cell != ""}
            if len(values) > 1:
                doubtful.append((int(line), str(frame.columns[group[0]])))
            settled.append(values.pop() if len(values) == 1 else "")
        frame.isetitem(group[0], np.array(settled, dtype=object))
    return doubtful


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
    return re.compile(rf"{prefix}{re.escape(name)}{_DATE_SUFFIX}\.(?:csv|tsv|xlsx|xlsm|xls|csv\.gz)", re.IGNORECASE)


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
    tables = [path for path in files if path.lower().endswith(TABLE_SUFFIXES[:-1])]
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
        if path.lower().endswith(TABLE_SUFFIXES[:-1]):
            try:
                table = load_table(root / path, root=root, header_only=True)
            except InputError:
                found[path] = set()
                continue
            found[path] = {header_key(column) for column in table.all_columns}
    return found


def describe_tables(found: Mapping[str, set[str]]) -> str:
    """The tables that are there, for messages; says which of them cannot be read."""
    names = [PurePosixPath(path).name + ("" if keys else " (cannot be read)") for path, keys in sorted(found.items())]
    return ", ".join(names[:30]) or "no tables at all"
