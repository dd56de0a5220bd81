"""One person's record from a file, for questions about a single scan."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from medalign3d.ehr.text import FIELD_COLUMNS
from medalign3d.errors import InputError

KNOWN_COLUMNS = sorted({column for columns in FIELD_COLUMNS.values() for column in columns})


def _value(text: str) -> Any:
    """A CSV cell as the harmonized table would hold it."""
    cell = text.strip()
    if cell == "" or cell.upper() in {"NA", "N/A", "NAN"}:
        return None
    try:
        return float(cell)
    except ValueError:
        pass
    if cell.startswith(("{", "[")):
        try:
            return json.loads(cell)
        except json.JSONDecodeError:
            return cell
    return cell


def read_record(path: Path) -> dict[str, Any]:
    """Read a record from a JSON object or a CSV file with one row, keyed by the harmonized table's column names.

    Raises
    ------
    InputError
        When the file is missing, is neither, has no or several rows, or names an unknown field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("no such record", where=path, remedy="name a JSON or CSV file, or use --text") from error
    except UnicodeDecodeError as error:
        raise InputError("a record is not UTF-8 text", where=path, expected="a JSON object or a one-row CSV") from error
    if path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError("a record is not JSON", where=f"{path}, line {error.lineno}", found=error.msg) from error
        if not isinstance(record, dict):
            raise InputError("a record is not a JSON object", where=path, found=type(record).__name__)
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
        if len(rows) != 1:
            raise InputError("a record file must have one row", where=path, found=f"{len(rows)} rows below the header")
        record = {key: _value(cell or "") for key, cell in rows[0].items() if key}
    unknown = sorted(set(record) - set(KNOWN_COLUMNS))
    if unknown:
        raise InputError(
            "a record names unknown fields", where=path, found=", ".join(unknown), expected=", ".join(KNOWN_COLUMNS)
        )
    return record
