"""Cells of clinical tables -> numbers, dates and ids. Every function takes text and never raises on a bad cell."""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from medalign3d.cohorts.reasons import QuarantineReason

_HANDS = {
    "r": "R",
    "right": "R",
    "right-handed": "R",
    "l": "L",
    "left": "L",
    "left-handed": "L",
    "a": "A",
    "b": "A",
    "both": "A",
    "ambidextrous": "A",
}
#: Ways in which tables and spreadsheet programs write "nothing".
BLANKS = frozenset({"", ".", "-", "nan", "na", "n/a", "#n/a", "none", "null", "missing", "<na>"})
EARLIEST_YEAR = 1980  # no cohort scanned or examined anybody before; a spreadsheet's day zero is 1900-01-00

# ASCII digits only: tables translate the digits of other scripts when they are read.
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d{1,15}", re.ASCII)
_COMMA_OF_EITHER_KIND = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)  # 1,234: a thousand and more, or 1.234
_THOUSANDS_COMMA = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:,\d{3}){2,}(?:\.\d*)?|,\d{3}\.\d*)", re.ASCII)
_THOUSANDS_DOT = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?:,\d*)?|\.\d{3},\d*)", re.ASCII)
_TIME = r"(?:[T _,]+\d{1,2}[:_]\d{2}(?::?[\d.]*)?(?: ?[APap][Mm])?(?:[+-]\d{2}:?\d{2}|Z)?[_:\d.]*)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})([-/.])(\d{{1,2}})\2(\d{{1,2}}){_TIME}", re.ASCII)
_YEAR_LAST = re.compile(rf"(\d{{1,2}})([-/.])(\d{{1,2}})\2(\d{{4}}){_TIME}", re.ASCII)
_COMPACT_DATE = re.compile(r"((?:19|20)\d{2})(\d{2})(\d{2})", re.ASCII)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAME = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY_MONTH_NAME = re.compile(rf"(\d{{1,2}})[ -/]+{_MONTH_NAME}[ -/,]+(\d{{4}}){_TIME}", re.ASCII | re.IGNORECASE)
_MONTH_NAME_DAY = re.compile(rf"{_MONTH_NAME}[ -]+(\d{{1,2}})[ ,]+(\d{{4}}){_TIME}", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"0*(\d+)(?:\.0+)?", re.ASCII)
_MINORITY = 0.05  # this share of cells that contradict a column's order of day and month are slips


def is_blank(cell: str | None) -> bool:
    """Whether a cell says nothing."""
    return cell is None or cell.strip().lower() in BLANKS


@dataclass(frozen=True)
class Quantity:
    """What a numeric column may hold.

    Parameters
    ----------
    low, high
        The range, both ends included.
    step
        Values lie on this grid counted from zero (0.5 for CDR sums, 1 for counts); None: any value.
    missing
        Codes that mean "no value"; they are removed before the range is looked at.
    allowed
        When given, the only legal values.
    """

    low: float
    high: float
    step: float | None = None
    missing: frozenset[float] = field(default_factory=frozenset)
    allowed: frozenset[float] | None = None

    def with_missing(self, *codes: float) -> Quantity:
        """The same quantity with further codes for "no value"."""
        return Quantity(self.low, self.high, self.step, self.missing | set(codes), self.allowed)


MMSE = Quantity(0, 30, 1)
MOCA = Quantity(0, 30, 1)
CDR_GLOBAL = Quantity(0, 3, allowed=frozenset({0.0, 0.5, 1.0, 2.0, 3.0}))
CDR_SUM = Quantity(0, 18, 0.5)
CDR_BOX = Quantity(0, 3, allowed=frozenset({0.0, 0.5, 1.0, 2.0, 3.0}))
LOGICAL_MEMORY = Quantity(0, 25, 1)
EDUCATION_YEARS = Quantity(0, 36)
AGE_YEARS = Quantity(15, 110)
SES = Quantity(1, 5)
APOE4_COUNT = Quantity(0, 2, 1)
ALLELE = Quantity(2, 4, 1)
GDS = Quantity(0, 15, 1)
FAQ = Quantity(0, 30, 1)


def _readings(cell: str | None) -> tuple[float, ...]:
    """The finite numbers that a cell may mean: none, one, or two (``1,234`` with a comma of either kind)."""
    text = (cell or "").strip().replace("\u2212", "-")
    if _NUMBER.fullmatch(text):
        texts = [text]
    elif _COMMA_OF_EITHER_KIND.fullmatch(text):
        texts = [text.replace(",", "."), text.replace(",", "")]
    elif _DECIMAL_COMMA.fullmatch(text):
        texts = [text.replace(",", ".")]
    elif _THOUSANDS_COMMA.fullmatch(text):
        texts = [text.replace(",", "")]
    elif _THOUSANDS_DOT.fullmatch(text):
        texts = [text.replace(".", "").replace(",", ".")]
    else:
        return ()
    return tuple(value for value in map(float, texts) if math.isfinite(value))


def parse_float(cell: str | None) -> float | None:
    """A finite number from a cell, or None. Accepts ``.5``, ``1.0`` and a decimal comma.

    A number that can be read in two ways (``1,234``) is None: only a range can tell which it is.

    >>> parse_float(" .5 "), parse_float("0,5"), parse_float("-4.0"), parse_float("x"), parse_float("inf")
    (0.5, 0.5, -4.0, None, None)
    >>> parse_float("1,234"), parse_float("1,234.5"), parse_float("1_000")
    (None, 1234.5, None)
    """
    values = _readings(cell)
    return values[0] if len(values) == 1 else None


def _judge(value: float, quantity: Quantity) -> tuple[float | None, QuarantineReason | None]:
    """A number as a value of ``quantity``; see :func:`parse_number`."""
    if any(abs(value - code) < 1e-6 for code in quantity.missing):
        return None, None
    if not quantity.low <= value <= quantity.high:
        return None, QuarantineReason.SENTINEL_UNKNOWN if value < 0 else QuarantineReason.VALUE_OUT_OF_RANGE
    if quantity.allowed is not None and not any(abs(value - legal) < 1e-6 for legal in quantity.allowed):
        return None, QuarantineReason.VALUE_OUT_OF_RANGE
    if quantity.step is not None:
        steps = value / quantity.step
        if abs(steps - round(steps)) > 1e-6:
            return None, QuarantineReason.VALUE_OUT_OF_RANGE
        value = round(steps) * quantity.step
    return value, None


def parse_number(cell: str | None, quantity: Quantity) -> tuple[float | None, QuarantineReason | None]:
    """A legal value of ``quantity``, or None with the reason when the cell holds something else.

    Codes for "no value" and blanks give ``(None, None)``. A negative number or text that is no known code is
    ``SENTINEL_UNKNOWN``; any other illegal number is ``VALUE_OUT_OF_RANGE``. ``1,234`` counts only when one of its two
    readings is legal and the other is not.

    >>> parse_number("-4.0", MMSE.with_missing(-4))
    (None, None)
    >>> parse_number("45", MMSE)
    (None, <QuarantineReason.VALUE_OUT_OF_RANGE: 'VALUE_OUT_OF_RANGE'>)
    >>> parse_number("6,785", Quantity(500, 15e3)), parse_number("1,234", Quantity(0, 1e6))[0] is None
    ((6785.0, None), True)
    """
    if is_blank(cell):
        return None, None
    values = _readings(cell)
    if not values:
        return None, QuarantineReason.SENTINEL_UNKNOWN
    outcomes = [_judge(value, quantity) for value in values]
    fitting = [outcome for outcome in outcomes if outcome[1] is None]
    if len(fitting) > 1:
        return None, QuarantineReason.SENTINEL_UNKNOWN
    return fitting[0] if fitting else outcomes[0]


def parse_code(
    cell: str | None, meanings: dict[float, str], missing: frozenset[float] = frozenset()
) -> tuple[str | None, QuarantineReason | None]:
    """The meaning of a numeric code (``"1"``, ``"1.0"``), or None with the reason when it is unknown."""
    if is_blank(cell):
        return None, None
    values = _readings(cell)
    if not values:
        return None, QuarantineReason.SENTINEL_UNKNOWN
    value = values[0]  # of 1,000 the decimal reading: no code has four digits
    if any(abs(value - code) < 1e-6 for code in missing):
        return None, None
    for code, meaning in meanings.items():
        if abs(value - code) < 1e-6:
            return meaning, None
    return None, QuarantineReason.SENTINEL_UNKNOWN if value < 0 else QuarantineReason.VALUE_OUT_OF_RANGE


def parse_sex(cell: str | None) -> tuple[str | None, QuarantineReason | None]:
    """``"F"`` or ``"M"`` from words, letters or the code 1 male, 2 female that all these cohorts share."""
    text = (cell or "").strip().lower()
    if text in ("m", "male", "man"):
        return "M", None
    if text in ("f", "female", "woman"):
        return "F", None
    if text in ("x", "u", "unknown"):
        return None, None
    return parse_code(cell, {1: "M", 2: "F"}, frozenset({-4.0, -1.0}))


def parse_handedness(cell: str | None) -> tuple[str | None, QuarantineReason | None]:
    """``"R"``, ``"L"`` or ``"A"`` (both hands) from a letter or word.

    >>> parse_handedness("Right"), parse_handedness("B"), parse_handedness("Apr 3")[0]
    (('R', None), ('A', None), None)
    """
    if is_blank(cell):
        return None, None
    letter = _HANDS.get((cell or "").strip().lower())
    return (letter, None) if letter else (None, QuarantineReason.SENTINEL_UNKNOWN)


def parse_whole_id(cell: str | None) -> int | None:
    """A whole-number id: ``"0010"``, ``"10"`` and ``"10.0"`` are 10, and ``"100"`` is 100.

    >>> [parse_whole_id(text) for text in ("10", "100", "10.0", "0010", "10.5", "", "x")]
    [10, 100, 10, 10, None, None, None]
    """
    match = _WHOLE.fullmatch((cell or "").strip())
    return int(match[1]) if match and len(match[1]) <= 15 else None


class DateOrder(StrEnum):
    """In which order a column writes day and month before the year."""

    MONTH_FIRST = "M/D/Y"
    DAY_FIRST = "D/M/Y"
    UNKNOWN = "day and month in an order that cannot be told"


def date_order(cells: Iterable[str]) -> DateOrder:
    """The order of day and month in a column, decided on all its cells.

    A number above 12 shows which of the two is the day. Without such a cell the documented ``M/D/Y`` holds where
    slashes are the column's own form; a stray ``3/5/2006`` in a column of other dates stays unknown.

    >>> str(date_order(["3/5/2006", "4/30/2006"])), str(date_order(["3/5/2006", "30/4/2006", "28/4/2006"]))
    ('M/D/Y', 'D/M/Y')
    """
    day_first = month_first = slashes = others = 0
    for cell, count in Counter(cells).items():
        match = _YEAR_LAST.fullmatch(cell.strip())
        if match is None:
            others += 0 if is_blank(cell) or _NUMBER.fullmatch(cell.strip()) else count
            continue
        first, second = int(match[1]), int(match[3])
        slashes += count if match[2] == "/" else 0
        others += count if match[2] != "/" else 0
        if first > 12 >= second > 0:
            day_first += count
        elif second > 12 >= first > 0:
            month_first += count
    if not day_first:
        return DateOrder.MONTH_FIRST if month_first or slashes >= others else DateOrder.UNKNOWN
    proofs = day_first + month_first
    if day_first <= _MINORITY * proofs:
        return DateOrder.MONTH_FIRST
    # One cell alone may be a slip of the pen.
    return DateOrder.DAY_FIRST if month_first <= _MINORITY * proofs and day_first > 1 else DateOrder.UNKNOWN


def _date_parts(text: str, order: DateOrder) -> tuple[int, int, int] | None:
    """Year, month and day of a written date; None for a form that is not guessed at."""
    if match := _YEAR_FIRST.fullmatch(text):
        return int(match[1]), int(match[3]), int(match[4])
    if match := _YEAR_LAST.fullmatch(text):
        first, second, year = int(match[1]), int(match[3]), int(match[4])
        if order is DateOrder.MONTH_FIRST and match[2] == "/":
            return year, first, second
        if order is DateOrder.DAY_FIRST:
            return year, second, first
        if order is DateOrder.UNKNOWN and (first == second or first > 12 or second > 12):
            return (year, second, first) if first > 12 else (year, first, second)
        return None
    if match := _COMPACT_DATE.fullmatch(text):
        return int(match[1]), int(match[2]), int(match[3])
    if match := _DAY_MONTH_NAME.fullmatch(text):
        return int(match[3]), _MONTHS.index(match[2][:3].lower()) + 1, int(match[1])
    if match := _MONTH_NAME_DAY.fullmatch(text):
        return int(match[3]), _MONTHS.index(match[1][:3].lower()) + 1, int(match[2])
    return None


def parse_date(
    cell: str | None,
    missing: frozenset[float] = frozenset({-4.0, -1.0}),
    order: DateOrder = DateOrder.MONTH_FIRST,
) -> tuple[datetime.date | None, QuarantineReason | None]:
    """A date: year first, month by name, or ``M/D/YYYY``; a time may follow. No other form is guessed at.

    Parameters
    ----------
    cell
        The text.
    missing
        Codes for "no date".
    order
        How the cell's column writes day and month (see :func:`date_order`). Where it is unknown, only dates are read
        that can be read in one way.

    Examples
    --------
    >>> parse_date("2006-05-02")[0] == parse_date("5/2/2006")[0] == parse_date("2 May 2006")[0]
    True
    >>> parse_date("13/2/2006")
    (None, <QuarantineReason.DATE_UNPARSABLE: 'DATE_UNPARSABLE'>)
    >>> parse_date("13/2/2006", order=DateOrder.DAY_FIRST)[0].isoformat()
    '2006-02-13'
    """
    if is_blank(cell):
        return None, None
    text = (cell or "").strip()
    if any(abs(value - code) < 1e-6 for value in _readings(text)[:1] for code in missing):
        return None, None
    parts = _date_parts(text, order)
    if parts is None:
        return None, QuarantineReason.DATE_UNPARSABLE
    try:
        date = datetime.date(*parts)
    except ValueError:
        return None, QuarantineReason.DATE_UNPARSABLE
    if date.year < EARLIEST_YEAR:
        return None, QuarantineReason.DATE_UNPARSABLE
    if date > datetime.date.today():
        return None, QuarantineReason.DATE_IN_FUTURE
    return date, None


def age_precision_of(cell: str) -> str:
    """Whether an age was written as whole years or finer.

    >>> age_precision_of("74"), age_precision_of("74.3")
    ('integer', 'month')
    """
    return "month" if re.search(r"[.,]\d*[1-9]", cell) else "integer"
