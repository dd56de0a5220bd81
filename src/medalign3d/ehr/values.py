"""Reading single cells of tables whose missing values come in many forms (None, NaN, NA, blank text)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pandas as pd


def records_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries keyed by column name."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))


def is_missing(value: Any) -> bool:
    """Whether ``value`` stands for "not recorded" (None, NaN, ``pandas.NA``, ``NaT``, blank text).

    >>> is_missing(None), is_missing(float("nan")), is_missing("  "), is_missing(0)
    (True, True, True, False)
    """
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, (bool, int)):
        return False
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, (Mapping, list, tuple, set)):
        return False
    # pandas.NA and NaT are known by name, so that this module needs no pandas; NumPy's NaN differs from itself.
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return False


def number_or_none(value: Any) -> float | None:
    """``value`` as a finite float, or None where it is missing or no finite number.

    >>> number_or_none("0.5"), number_or_none(float("inf")), number_or_none("high")
    (0.5, None, None)
    """
    if is_missing(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def text_or_none(value: Any) -> str | None:
    """``value`` as stripped text, or None where it is missing."""
    return None if is_missing(value) else str(value).strip()


def mapping_or_empty(value: Any) -> dict[str, Any]:
    """``value`` as a dictionary: from a mapping, JSON text, or the list of pairs that parquet maps are read as.

    Anything else, damaged JSON included, gives an empty dictionary.

    >>> mapping_or_empty('{"glucose": 92.0}'), mapping_or_empty([("glucose", 92.0)]), mapping_or_empty(None)
    ({'glucose': 92.0}, {'glucose': 92.0}, {})
    """
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            return {}
        return {str(key): item for key, item in parsed.items()} if isinstance(parsed, dict) else {}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        pairs = [item for item in value if isinstance(item, (list, tuple)) and len(item) == 2]
        return {str(key): item for key, item in pairs}
    return {}
