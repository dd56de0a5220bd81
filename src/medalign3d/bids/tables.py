"""Harmonized images -> the cells of participants, sessions and scans tables, and what each column means.

Only columns of the harmonized schema leave, and of these only values that the schema, a code book or a pattern knows:
text that a person typed stays behind. Ages of 89 and more are written as 89, as BIDS has it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from medalign3d.ehr import labels
from medalign3d.ehr.schema import COLUMN_BY_NAME, Column
from medalign3d.ehr.text import HISTORY_WORDS, LAB_WORDS
from medalign3d.ehr.values import is_missing, mapping_or_empty, number_or_none
from medalign3d.errors import InputError
from medalign3d.files import write_text

MISSING = "n/a"
HIGHEST_AGE = 89.0
"""Years. BIDS recommends that all ages of 89 and over are given as 89."""

DAYS_PER_YEAR = 365.25

#: Columns of the participants table; a value that differs between the person's sessions is left out there.
PARTICIPANT_COLUMNS = (
    "sex", "handedness", "educ_years", "educ_code", "ses", "apoe_genotype", "apoe4_count", "dx_subject_level",
    "release",
)  # fmt: skip
SESSION_COLUMNS = (
    "age_precision", "visit_code", "visit_month", "educ_years", "educ_code", "ses",
    "mmse", "mmse_source", "mmse_age_days", "moca",
    "cdr_global", "cdr_global_source", "cdr_global_age_days", "cdr_sb", "cdr_sb_source", "cdr_sb_age_days",
    "lm_immediate", "lm_delayed", "lm_source", "lm_age_days", "gds", "faq",
    "hippocampus_mm3", "ventricles_mm3", "brain_mm3", "icv_mm3", "volume_source",
    "dx_native", "dx3", "dx2", "mci_stage", "dementia_etiology",
    "mci_course", "mci_course_reason", "days_to_dementia", "followup_days",
)  # fmt: skip
SCAN_COLUMNS = (
    "image_id", "variant", "selected", "selection_rank", "qc_score", "source_format", "affine_source", "visit_code",
    "match_delta_days", "match_method",
)  # fmt: skip
FUTURE_COLUMNS = ("mci_course", "mci_course_reason", "days_to_dementia", "followup_days")

LEVELS: dict[str, dict[str, str]] = {
    "sex": {"F": "female", "M": "male"},
    "handedness": {"R": "right", "L": "left", "A": "ambidextrous"},
    "dx3": {"NC": "normal cognition", "MCI": "mild cognitive impairment", "AD_DEM": "dementia"},
    "dx2": {"NonDEM": "no dementia", "DEM": "dementia"},
    "mci_stage": {"EMCI": "early mild cognitive impairment", "LMCI": "late mild cognitive impairment"},
    "mci_course": {
        "sMCI": "stable: no dementia and no normal cognition at later visits, followed for at least 36 months",
        "pMCI": "progressive: dementia within 36 months",
    },
    "variant": {
        "raw": "as acquired",
        "averaged": "average of the repeats of a session",
        "processed": "corrected by the custodian (gradient, intensity, scaling)",
        "derived": "made from an acquisition by further processing (resampled, brain-extracted)",
    },
    "affine_source": {
        "header": "the orientation stands in the source's header",
        "assumed": "the source's header has no trustworthy orientation; the dataset's documented one was written",
    },
    "educ_code": {"1": "below 12 years", "2": "12", "3": "13-15", "4": "16", "5": "17 and more"},
}

_STUDY_GROUPS = frozenset(
    "CN NL NC SMC EMCI LMCI MCI AD HC Normal Dementia Patient Nondemented Demented Converted".casefold().split()
)
_PATTERNS = {
    "release": re.compile(
        r"ADNI(?:GO|[0-9])?|freeze [0-9]{1,3}|OASIS-[123]|AIBL|MIRIAD|IXI|Data_extract_[0-9]+(?:\.[0-9]+)*"
    ),
    "visit_code": re.compile(
        r"(?:4_)?(?:bl|sc|scmri|init|f|nv|disp|baseline)|(?:uns|m|v|y|d|MR)?[0-9]{1,5}", re.IGNORECASE
    ),
    "volume_source": re.compile(r"(?:UCSF-FS|NACC-MRI|OASIS)(?:[ -]?[0-9]+(?:\.[0-9]+)*)?"),
    "image_id": re.compile(r"[0-9a-f]{16}"),
}


def decimal(number: float) -> str:
    """A number without needless digits.

    >>> decimal(74.0), decimal(0.5), decimal(1234567.89)
    ('74', '0.5', '1234567.89')
    """
    return str(int(number)) if number == int(number) else repr(round(number, 4))


def cell(row: Mapping[str, Any], name: str) -> str:
    """The cell of a column: ``n/a`` where there is no value, or one that may not leave."""
    column = COLUMN_BY_NAME[name]
    value = row.get(name)
    if is_missing(value):
        return MISSING
    if column.dtype == "bool":
        return "true" if bool(value) else "false"
    if column.numeric:
        number = number_or_none(value)
        if number is None or not math.isfinite(number) or not column.accepts(number):
            return MISSING
        return decimal(float(f"{number:.7g}"))
    text = str(value).strip()
    return text if _may_leave(text, name, column, str(row.get("dataset"))) else MISSING


def _may_leave(text: str, name: str, column: Column, dataset: str) -> bool:
    if column.allowed:
        return text in column.allowed
    if name == "dx_native":
        try:
            labels.label_of(dataset, text)
        except labels.UnknownLabel:
            return False
        return True
    if name == "dx_subject_level":
        return text.casefold() in _STUDY_GROUPS
    pattern = _PATTERNS.get(name)
    return pattern is not None and pattern.fullmatch(text) is not None


def age_cell(value: Any) -> str:
    """Age in years to one decimal; 89 for every age of 89 and over.

    >>> age_cell(74.26), age_cell(93), age_cell(None)
    ('74.3', '89', 'n/a')
    """
    number = number_or_none(value)
    return MISSING if number is None else decimal(min(round(number, 1), HIGHEST_AGE))


def reveals_high_age(age: Any, days: Any) -> bool:
    """Whether an interval added to an age would tell an age above the highest one written.

    >>> reveals_high_age(85.0, 2000), reveals_high_age(85.0, 100), reveals_high_age(91.0, 0)
    (True, False, True)
    """
    years, interval = number_or_none(age), number_or_none(days)
    return years is not None and years + max(0.0, interval or 0.0) / DAYS_PER_YEAR >= HIGHEST_AGE


def session_cells(row: Mapping[str, Any], *, relative_dates: bool) -> dict[str, str]:
    """The sessions table's row of one image's harmonized values, without ``session_id``."""
    cells = {"age": age_cell(row.get("age_years"))}
    if relative_dates:
        # Beside an age of an earlier session, the day of a session at 89 or later would tell the true age.
        hidden = is_missing(row.get("scan_day")) or reveals_high_age(row.get("age_years"), 0)
        cells["days_from_first_event"] = MISSING if hidden else cell(row, "scan_day")
    for name in SESSION_COLUMNS:
        cells[name] = cell(row, name)
    if reveals_high_age(row.get("age_years"), 0):
        cells["visit_month"] = MISSING
    for name in ("days_to_dementia", "followup_days"):
        if reveals_high_age(row.get("age_years"), row.get(name)):
            cells[name] = MISSING
    for prefix, source, names in (("lab", "labs", LAB_WORDS), ("history", "history", HISTORY_WORDS)):
        values = mapping_or_empty(row.get(source))
        for name in names:
            number = number_or_none(values.get(name))
            cells[f"{prefix}_{name}"] = MISSING if number is None else decimal(float(f"{number:.7g}"))
    return cells


def scan_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The scans table's row of an image, without ``filename``."""
    return {name: cell(row, name) for name in SCAN_COLUMNS}


def participant_cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The participants table's row of a person's images, without ``participant_id``; the age is that of the first."""
    ages = [age for row in rows if (age := number_or_none(row.get("age_years"))) is not None]
    cells = {
        "age": age_cell(min(ages, default=None)),
        "cohort": cell(rows[0], "dataset"),
        "person_id": str(rows[0].get("person_id") or rows[0]["participant_id"]),
    }
    for name in PARTICIPANT_COLUMNS:
        values = {text for row in rows if (text := cell(row, name)) != MISSING}
        cells[name] = values.pop() if len(values) == 1 else MISSING
    return {name: cells[name] for name in ("age", "sex", "handedness", "cohort", "person_id", *cells)}


# ------------------------------------------------------------------------------------------------------- descriptions


def _describe(name: str) -> dict[str, Any]:
    column = COLUMN_BY_NAME[name]
    text = column.doc
    if name in FUTURE_COLUMNS and "future" not in text:
        text += " (looks into the future)"
    if name in FUTURE_COLUMNS:
        text += ". Known only after the session: never an input of a model, never compared across a split."
    description: dict[str, Any] = {"Description": text[0].upper() + text[1:]}
    if column.unit:
        description["Units"] = column.unit
    if name in LEVELS:
        description["Levels"] = LEVELS[name]
    elif column.dtype == "dictionary" and column.allowed:
        description["Levels"] = {str(item): str(item) for item in column.allowed}
    return description


_AGE = {
    "Description": "Age at the scan. 89 stands for every age of 89 years and over, for the participants' privacy.",
    "Units": "year",
    "Maximum": HIGHEST_AGE,
}


def participant_descriptions() -> dict[str, Any]:
    """What ``participants.json`` says of each column."""
    once = "Left out where it differs between sessions."
    described = {name: _describe(name) for name in PARTICIPANT_COLUMNS}
    for name in PARTICIPANT_COLUMNS:
        described[name]["Description"] += f". {once}"
    return {
        "age": {**_AGE, "Description": f"{_AGE['Description']} Of several sessions, the first in this dataset."},
        "cohort": {"Description": "Cohort that the participant belongs to"},
        "person_id": {
            "Description": "Participant label that stands for the person. It differs from participant_id where one "
            "person takes part under several labels (OASIS-1 and OASIS-2 share people): split by this column."
        },
        **described,
    }


def session_descriptions() -> dict[str, Any]:
    """What the side-car of the sessions tables says of each column that may occur."""
    described: dict[str, Any] = {
        "age": _AGE,
        "days_from_first_event": {
            "Description": "Days from the person's first known event to the scan; left out at an age of 89 and over",
            "Units": "day",
        },
        **{name: _describe(name) for name in SESSION_COLUMNS},
    }
    for name, (words, unit, _) in LAB_WORDS.items():
        described[f"lab_{name}"] = {"Description": f"Laboratory result: {words}", "Units": unit}
    for name, words in HISTORY_WORDS.items():
        described[f"history_{name}"] = {
            "Description": f"Medical history: {words}",
            "Levels": {"0": "absent", "1": "present"},
        }
    return described


def scan_descriptions() -> dict[str, Any]:
    """What the side-car of the scans tables says of each column."""
    return {name: _describe(name) for name in SCAN_COLUMNS}


# --------------------------------------------------------------------------------------------------------------- files

Rows = dict[str, dict[str, str]]


def read_tsv(path: Path, key: str) -> Rows:
    """Rows of a table by their key column; empty where the file does not exist.

    Raises
    ------
    InputError
        When the file is no table with that column: it is not ours to overwrite.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = list(csv.reader(io.StringIO(text), delimiter="	", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, key, type(error).__name__) from error
    lines = [line for line in lines if any(line)]
    if not lines or key not in lines[0] or any(len(line) != len(lines[0]) for line in lines):
        raise _damaged(path, key, "another header or a ragged line")
    header = lines[0]
    return {record[key]: record for line in lines[1:] if (record := dict(zip(header, line, strict=True)))}


def _damaged(path: Path, key: str, found: str) -> InputError:
    return InputError(
        "a table of the existing dataset cannot be read",
        where=path,
        found=found,
        expected=f"tab-separated text with a column {key}",
        remedy="correct the table, or export into another folder",
    )


def merge(old: Rows, new: Rows) -> Rows:
    """``old`` with the rows and columns of ``new``; what ``new`` does not speak of stays as it is."""
    return {name: {**old.get(name, {}), **new.get(name, {})} for name in [*old, *(n for n in new if n not in old)]}


def write_tsv(path: Path, key: str, rows: Rows, columns: Sequence[str], *, keep_empty: Collection[str] = ()) -> None:
    """Write a table sorted by its key, first the ``columns`` and then those of others.

    Columns without any value are left out but for ``keep_empty``. A file that says the same already is not touched.
    """
    named = {name for row in rows.values() for name in row} - {key}
    others = dict.fromkeys(name for row in rows.values() for name in row if name not in columns and name != key)
    filled = {name for row in rows.values() for name, value in row.items() if value != MISSING} | set(keep_empty)
    kept = [name for name in (*columns, *others) if name in named and name in filled]
    lines = ["\t".join([key, *kept])]
    for name in sorted(rows):
        lines.append("\t".join([name, *(_clean(rows[name].get(column)) for column in kept)]))
    write_if_new(path, "\n".join(lines) + "\n")


def write_if_new(path: Path, text: str) -> None:
    """Write a text file unless it says the same already."""
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def _clean(value: str | None) -> str:
    return re.sub(r"[\t\r\n]+", " ", value) if value and value.strip() else MISSING


def merge_json(path: Path, described: Mapping[str, Any]) -> None:
    """Add descriptions to a JSON file; those already there for other columns stay.

    Raises
    ------
    InputError
        When the file that is there is not a JSON object.
    """
    old: Any = {}
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _damaged(path, "object", "no JSON") from error
        if not isinstance(old, dict):
            raise _damaged(path, "object", "no JSON object")
    new = {**described, **{name: text for name, text in old.items() if name not in described}}
    write_if_new(path, json.dumps(new, indent=2, ensure_ascii=False) + "\n")
