"""Cells of clinical tables -> numbers, dates and ids. Every function takes text and never raises on a bad cell."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass, field

from medalign3d.cohorts.reasons import QuarantineReason

#: Ways in which tables and spreadsheet programs write "nothing".
BLANKS = frozenset({"", ".", "-", "nan", "na", "n/a", "#n/a", "none", "null", "missing", "<na>"})
EARLIEST_YEAR = 1980  # no cohort scanned or examined anybody before; a spreadsheet's day zero is 1900-01-00

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d{1,6}")
_ISO_DATE = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[T _]\d{1,2}[:_]\d{2}.*)?")
_US_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})(?: \d{1,2}:\d{2}.*)?")
_WHOLE = re.compile(r"0*(\d+)(?:\.0+)?")


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


def parse_float(cell: str | None) -> float | None:
    """A finite number from a cell, or None. Accepts ``.5``, ``1.0`` and a decimal comma.

    >>> parse_float(" .5 "), parse_float("0,5"), parse_float("-4.0"), parse_float("x"), parse_float("inf")
    (0.5, 0.5, -4.0, None, None)
    """
    text = (cell or "").strip()
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def parse_number(cell: str | None, quantity: Quantity) -> tuple[float | None, QuarantineReason | None]:
    """A legal value of ``quantity``, or None with the reason when the cell holds something else.

    Codes for "no value" and blanks give ``(None, None)``. A negative number or text that is no known code is
    ``SENTINEL_UNKNOWN``; any other illegal number is ``VALUE_OUT_OF_RANGE``.

    >>> parse_number("-4.0", MMSE.with_missing(-4))
    (None, None)
    >>> parse_number("45", MMSE)
    (None, <QuarantineReason.VALUE_OUT_OF_RANGE: 'VALUE_OUT_OF_RANGE'>)
    """
    if is_blank(cell):
        return None, None
    value = parse_float(cell)
    if value is None:
        return None, QuarantineReason.SENTINEL_UNKNOWN
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


def parse_code(
    cell: str | None, meanings: dict[float, str], missing: frozenset[float] = frozenset()
) -> tuple[str | None, QuarantineReason | None]:
    """The meaning of a numeric code (``"1"``, ``"1.0"``), or None with the reason when it is unknown."""
    if is_blank(cell):
        return None, None
    value = parse_float(cell)
    if value is None:
        return None, QuarantineReason.SENTINEL_UNKNOWN
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


def parse_whole_id(cell: str | None) -> int | None:
    """A whole-number id: ``"0010"``, ``"10"`` and ``"10.0"`` are 10, and ``"100"`` is 100.

    >>> [parse_whole_id(text) for text in ("10", "100", "10.0", "0010", "10.5", "", "x")]
    [10, 100, 10, 10, None, None, None]
    """
    match = _WHOLE.fullmatch((cell or "").strip())
    return int(match[1]) if match and len(match[1]) <= 15 else None


def parse_date(
    cell: str | None, missing: frozenset[float] = frozenset({-4.0, -1.0})
) -> tuple[datetime.date | None, QuarantineReason | None]:
    """A date written ``YYYY-MM-DD`` (a time may follow) or ``M/D/YYYY``; no other form is guessed at.

    >>> parse_date("2006-05-02")[0] == parse_date("5/2/2006")[0]
    True
    >>> parse_date("13/2/2006")
    (None, <QuarantineReason.DATE_UNPARSABLE: 'DATE_UNPARSABLE'>)
    """
    if is_blank(cell):
        return None, None
    text = (cell or "").strip()
    number = parse_float(text)
    if number is not None and any(abs(number - code) < 1e-6 for code in missing):
        return None, None
    if match := _ISO_DATE.fullmatch(text):
        year, month, day = int(match[1]), int(match[2]), int(match[3])
    elif match := _US_DATE.fullmatch(text):
        month, day, year = int(match[1]), int(match[2]), int(match[3])
    else:
        return None, QuarantineReason.DATE_UNPARSABLE
    try:
        date = datetime.date(year, month, day)
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
