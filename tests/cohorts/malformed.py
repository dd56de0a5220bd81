"""Malformed cells of clinical tables, and what each of them may honestly be taken for."""

from __future__ import annotations

import csv
import datetime
import io
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from medalign3d.cohorts.values import parse_date, parse_float

#: Nothing in any of these says a value: each has to be refused, in every column.
JUNK = (
    "=1+1", '=HYPERLINK("http://example.org";"open")', "+1+1", "@SUM(A1:A9)", '="0010"', "1e309", "-1e309", "inf",
    "-inf", "Infinity", "-nan", "1.#QNAN", "nan(ind)", "1_0", "0x1F", "1e", "--4", "- 4", "4-", "1.2.3", "1,2,3",
    "13/13/2006", "00/00/0000", "2006-13-45", "31.02.2006x", "3/5/06", "May 2006", "TRUE", "FALSE", "yes", "?",
    "#REF!", "#DIV/0!", "#VALUE!", "1\x002", "\x00\x00q", "\u00b2", "1\u00bd", "\u2160", "3\u00a0 4", "a,b;c\td",
    'a "quoted" word',
    "two\nlines", "x" * 5000, "\u202e12", "\U0001f9e0", "<script>", "'; DROP TABLE visits; --", "28 points", "5e",
    "1e400", "999999999999999999999999", "-88888", "1/0", "NULLL", "\\N",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A malformed cell.

    Attributes
    ----------
    text
        What stands in the table.
    junk
        Whether no reader may make anything of it.
    numbers, dates
        What it may be taken for.
    """

    text: str
    junk: bool = False
    numbers: tuple[float, ...] = ()
    dates: tuple[datetime.date, ...] = ()


def spell_number(value: float, random: Random) -> Cell:
    """A number in one of the ways that people and programs write it."""
    plain = f"{value:g}" if abs(value) < 1e15 else repr(value)
    whole = value == int(value)
    forms = [
        plain.replace(".", ","),
        f"{value:.1f}".replace(".", ",") if whole else plain,
        f"{value:.2f}" if whole else plain,
        f"\u00a0{plain}\u00a0",
        f"{plain}\x00",
        "".join(chr(0xFF10 + int(c)) if c.isdigit() else c for c in plain),
        f"\ufeff{plain}",
        f"{value:,.0f}" if whole else plain,
        plain.replace("-", "\u2212"),
        f"+{plain}" if value >= 0 else plain,
        f'{plain}\t',
        f"{int(value):,}".replace(",", "\u202f") if whole and abs(value) >= 1000 else plain,
    ]  # fmt: skip
    return Cell(random.choice(forms), numbers=(value,))


def spell_date(date: datetime.date, random: Random) -> Cell:
    """A date in one of the orders of the world; where it can be read in two ways both count as honest."""
    day, month, year = date.day, date.month, date.year
    forms = [
        f"{day}/{month}/{year}",
        f"{month}/{day}/{year}",
        f"{year}/{month}/{day}",
        f"{day}.{month}.{year}",
        f"{year}{month:02d}{day:02d}",
        f"{day} {date:%B} {year}",
        f"{day:02d}-{date:%b}-{year}",
        f"{date:%B} {day}, {year}",
        f"{month}/{day}/{year % 100:02d}",
        f"{date.isoformat()} 00:00:00",
        f"{day:02d}-{month:02d}-{year}",
    ]
    text = random.choice(forms)
    dates = [date]
    if match := re.fullmatch(r"(\d{1,2})[./-](\d{1,2})[./-](\d{4})", text):
        for a, b in ((1, 2), (2, 1)):
            if int(match[a]) <= 12 and int(match[b]) <= 28:
                dates.append(datetime.date(int(match[3]), int(match[a]), int(match[b])))
    return Cell(text, dates=tuple(dates))


def malform(cell: str, random: Random) -> Cell:
    """A malformed cell in place of ``cell``: its own meaning spelt oddly, a code for nothing, or junk."""
    kind = random.random()
    if kind < 0.45:
        return Cell(random.choice(JUNK), junk=True)
    if kind < 0.6:
        text = random.choice(["-4", "-4.0", "-4,0", "\u22124", "999", "88", "888", "-1", " ", "NaN", "nan", "N/A", "."])
        number = parse_float(text)
        return Cell(text, numbers=() if number is None else (number,))
    number, (date, _) = parse_float(cell), parse_date(cell)
    if number is not None and not re.fullmatch(r"0\d.*", cell):
        return spell_number(number, random)
    if date is not None:
        return spell_date(date, random)
    return Cell(random.choice(JUNK), junk=True)


class TableFile:
    """A table of a native tree whose cells can be replaced."""

    def __init__(self, root: Path, relative: str) -> None:
        self.path = root / relative
        self.relative = relative
        content = self.path.read_bytes()
        self.spreadsheet = content.startswith(b"PK")
        if self.spreadsheet:
            import openpyxl

            rows = openpyxl.load_workbook(self.path, read_only=True).worksheets[0].iter_rows(values_only=True)
            table = [["" if value is None else str(value) for value in row] for row in rows]
        else:
            text = content.decode("utf-8-sig", errors="replace")
            first = text.splitlines()[0]
            self.delimiter = max(",;\t", key=first.count)
            table = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter) if any(row)]
        self.header, self.rows = table[0], table[1:]

    def write(self, changed: dict[tuple[int, int], str]) -> dict[int, int]:
        """Write the table with some cells replaced; the line in the file of every row."""
        rows = [[changed.get((r, c), cell) for c, cell in enumerate(row)] for r, row in enumerate(self.rows)]
        if self.spreadsheet:
            import openpyxl

            book = openpyxl.Workbook()
            for row in [self.header, *rows]:
                book.active.append([re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", cell) for cell in row])
                for cell in book.active[book.active.max_row]:
                    cell.data_type = "s"  # a formula's text, not a formula
            book.save(self.path)
            return {r: r + 2 for r in range(len(rows))}
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self.delimiter, lineterminator="\n")
        writer.writerow(self.header)
        lines: dict[int, int] = {}
        for number, row in enumerate(rows):
            lines[number] = text.getvalue().count("\n") + 1
            writer.writerow(row)
        self.path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
        return lines
