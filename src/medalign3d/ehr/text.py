"""A health record as one line of text, in this project's own wording.

The text never holds a diagnosis, a cohort, group, site, scanner, id, date, or anything later than the visit that was
matched to the scan (that visit counts as the time of the scan). This holds for *any* record, because nothing of a
record is copied: words come from the closed tables of this module, and only numbers within their instrument's range are
printed. Values that lie outside it count as missing.

Mini-Mental State Examination (Folstein 1975), Clinical Dementia Rating (Morris 1993; global 0-3 and sum of boxes 0-18
are different scales and are named apart) and the Wechsler logical memory story recalls (0-25) are printed with their
maxima.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from medalign3d.ehr.values import is_missing, mapping_or_empty, number_or_none, text_or_none
from medalign3d.errors import ParameterError

if TYPE_CHECKING:
    from medalign3d.params import Params

TEMPLATE_ID = "clinical-record"
TEMPLATE_VERSION = 1
TEMPLATE = f"{TEMPLATE_ID}/{TEMPLATE_VERSION}"

DAYS_PER_MONTH = 30.4375

DEMOGRAPHIC_FIELDS: tuple[str, ...] = ("age", "sex", "handedness", "education", "ses")
COGNITION_FIELDS: tuple[str, ...] = ("mmse", "cdr_global", "cdr_sb", "lm_immediate", "lm_delayed")
OTHER_FIELDS: tuple[str, ...] = ("apoe", "labs", "history")
FIELDS: tuple[str, ...] = DEMOGRAPHIC_FIELDS + COGNITION_FIELDS + OTHER_FIELDS
"""The fields of the text, in the order in which they are printed."""

ABLATIONS: dict[str, tuple[str, ...]] = {
    "full": FIELDS,
    "no_cdr": tuple(field for field in FIELDS if field not in ("cdr_global", "cdr_sb")),
    "demographics_only": DEMOGRAPHIC_FIELDS,
}
"""Which fields each text ablation may print.

The global CDR defines the OASIS label and nearly determines that of NACC, and it can be told from the sum of boxes:
both are left out of ``no_cdr``. ``demographics_only`` prints what is known without any examination.
"""

FIELD_COLUMNS: dict[str, tuple[str, ...]] = {
    "age": ("age_years",),
    "sex": ("sex",),
    "handedness": ("handedness", "dataset"),
    "education": ("educ_years", "educ_code"),
    "ses": ("ses",),
    "mmse": ("mmse", "mmse_source", "mmse_age_days"),
    "cdr_global": ("cdr_global", "cdr_global_source", "cdr_global_age_days"),
    "cdr_sb": ("cdr_sb", "cdr_sb_source", "cdr_sb_age_days"),
    "lm_immediate": ("lm_immediate", "lm_source", "lm_age_days"),
    "lm_delayed": ("lm_delayed", "lm_source", "lm_age_days"),
    "apoe": ("apoe4_count",),
    "labs": ("labs",),
    "history": ("history",),
}
"""The columns of the harmonized table that each field reads."""

_FIELD_TITLES = {
    "age": "age",
    "sex": "sex",
    "handedness": "handedness",
    "education": "education",
    "ses": "socioeconomic level",
    "mmse": "MMSE",
    "cdr_global": "global CDR",
    "cdr_sb": "CDR sum of boxes",
    "lm_immediate": "logical memory immediate recall",
    "lm_delayed": "logical memory delayed recall",
    "apoe": "APOE e4 count",
    "labs": "laboratory results",
    "history": "medical history",
}
_SEX_WORDS = {"F": "female", "M": "male"}
_HAND_WORDS = {"R": "right-handed", "L": "left-handed", "A": "ambidextrous"}
_EDUCATION_WORDS = {
    1: "did not finish high school",
    2: "finished high school",
    3: "some college education",
    4: "college degree",
    5: "education beyond college",
}
_APOE_WORDS = {0: "no APOE e4 allele", 1: "one APOE e4 allele", 2: "two APOE e4 alleles"}

LAB_WORDS: dict[str, tuple[str, str, float]] = {
    "tsh": ("TSH", "mIU/L", 500.0),
    "vitamin_b12": ("vitamin B12", "pg/mL", 20000.0),
    "red_cells": ("red cells", "10^6/uL", 12.0),
    "white_cells": ("white cells", "10^3/uL", 300.0),
    "platelets": ("platelets", "10^3/uL", 3000.0),
    "haemoglobin": ("haemoglobin", "g/dL", 30.0),
    "mch": ("MCH", "pg", 80.0),
    "mchc": ("MCHC", "g/dL", 60.0),
    "alt": ("ALT", "U/L", 10000.0),
    "ast": ("AST", "U/L", 10000.0),
    "urea_nitrogen": ("urea nitrogen", "mg/dL", 400.0),
    "glucose": ("glucose", "mg/dL", 2000.0),
    "triglycerides": ("triglycerides", "mg/dL", 10000.0),
    "cholesterol": ("cholesterol", "mg/dL", 2000.0),
    "creatinine": ("creatinine", "mg/dL", 40.0),
}
"""Canonical laboratory name to (words, unit, largest value that is printed)."""

HISTORY_WORDS: dict[str, str] = {
    "diabetes": "diabetes",
    "hypertension": "hypertension",
    "hypercholesterolaemia": "high cholesterol",
    "vitamin_b12_deficiency": "vitamin B12 deficiency",
    "thyroid_disease": "thyroid disease",
    "psychiatric": "psychiatric illness",
    "cardiovascular": "heart or vessel disease",
    "hepatic": "liver disease",
    "musculoskeletal": "bone or muscle disease",
    "endocrine": "hormone or metabolic disease",
    "gastrointestinal": "stomach or bowel disease",
    "renal": "kidney or urinary disease",
    "smoking": "smoking",
    "malignancy": "cancer",
}
"""Canonical condition to words. A history of neurological disease is not printed: it names the diagnosis too often."""


def _within(value: Any, low: float, high: float) -> float | None:
    number = number_or_none(value)
    return number if number is not None and low <= number <= high else None


def _short(number: float) -> str:
    """A number without needless zeros: ``27``, ``0.5``, ``4.83``."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _three_digits(number: float) -> str:
    """A measurement to three digits, or whole from 100 on: ``0.87``, ``4.18``, ``1234``."""
    return f"{number:.0f}" if number >= 100 else _short(float(f"{number:.3g}"))


def _with_source(clause: str, record: Mapping[str, Any], prefix: str) -> str | None:
    """Say when a value is not from the matched visit; drop it where it is later or its age is unknown."""
    source = text_or_none(record.get(f"{prefix}_source"))
    if source == "crosswalk":
        return f"{clause} (estimated from another test)"
    if source == "carried":
        days = number_or_none(record.get(f"{prefix}_age_days"))
        if days is None or days < 0:
            return None
        months = round(days / DAYS_PER_MONTH)
        when = "less than a month" if months < 1 else f"{months} month{'s' if months > 1 else ''}"
        return f"{clause} (measured {when} earlier)"
    return clause


def _age(record: Mapping[str, Any], oldest_age: int | None) -> str | None:
    age = _within(record.get("age_years"), 0, 130)
    if age is None:
        return None
    if oldest_age is not None and age >= oldest_age:
        return f"age {oldest_age} years or over"
    return f"age {int(age)} years"


def _sex(record: Mapping[str, Any]) -> str | None:
    return _SEX_WORDS.get(text_or_none(record.get("sex")) or "")


def _handedness(record: Mapping[str, Any]) -> str | None:
    # Only one cohort records it for everybody; elsewhere the clause would name the cohort, not the person.
    if text_or_none(record.get("dataset")) != "NACC":
        return None
    return _HAND_WORDS.get(text_or_none(record.get("handedness")) or "")


def _education(record: Mapping[str, Any]) -> str | None:
    years = _within(record.get("educ_years"), 0, 36)
    if years is not None:
        return f"{_short(years)} year{'' if years == 1 else 's'} of education"
    code = _within(record.get("educ_code"), 1, 5)
    return None if code is None else _EDUCATION_WORDS.get(int(code))


def _ses(record: Mapping[str, Any]) -> str | None:
    level = _within(record.get("ses"), 1, 5)
    return None if level is None else f"socioeconomic level {_short(level)} of 5"


def _score(column: str, source: str, title: str, low: float, high: float, suffix: str) -> Callable[..., str | None]:
    def clause(record: Mapping[str, Any]) -> str | None:
        value = _within(record.get(column), low, high)
        return None if value is None else _with_source(f"{title} {_short(value)}{suffix}", record, source)

    return clause


def _apoe(record: Mapping[str, Any]) -> str | None:
    count = _within(record.get("apoe4_count"), 0, 2)
    return None if count is None else _APOE_WORDS.get(int(count))


def _labs(record: Mapping[str, Any]) -> str | None:
    values = mapping_or_empty(record.get("labs"))
    parts = []
    for name, (words, unit, largest) in LAB_WORDS.items():
        value = _within(values.get(name), 0, largest)
        if value is not None:
            parts.append(f"{words} {_three_digits(value)} {unit}")
    return ", ".join(parts) or None


def _history(record: Mapping[str, Any]) -> str | None:
    values = mapping_or_empty(record.get("history"))
    known = {name: number_or_none(values.get(name)) for name in HISTORY_WORDS}
    present = [words for name, words in HISTORY_WORDS.items() if (known[name] or 0.0) >= 1.0]
    if present:
        return "history of " + ", ".join(present)
    return "no illness in the recorded history" if any(value == 0.0 for value in known.values()) else None


_CLAUSES: dict[str, Callable[..., str | None]] = {
    "sex": _sex,
    "handedness": _handedness,
    "education": _education,
    "ses": _ses,
    "mmse": _score("mmse", "mmse", "MMSE", 0, 30, "/30"),
    "cdr_global": _score("cdr_global", "cdr_global", "global CDR", 0, 3, ""),
    "cdr_sb": _score("cdr_sb", "cdr_sb", "CDR sum of boxes", 0, 18, ""),
    "lm_immediate": _score("lm_immediate", "lm", "logical memory immediate recall", 0, 25, "/25"),
    "lm_delayed": _score("lm_delayed", "lm", "logical memory delayed recall", 0, 25, "/25"),
    "apoe": _apoe,
    "labs": _labs,
    "history": _history,
}


def text_options(params: Params) -> dict[str, Any]:
    """The keyword arguments of :func:`render` that ``params.yaml`` decides."""
    section = params.harmonize
    return {
        "include_apoe": section.include_apoe,
        "include_labs": section.include_labs,
        "missing": section.missing,
        "oldest_age": section.oldest_age,
    }


def clauses(
    record: Mapping[str, Any],
    *,
    ablation: str = "full",
    drop_fields: Collection[str] = (),
    include_apoe: bool = False,
    include_labs: bool = True,
    missing: str = "omit",
    oldest_age: int | None = None,
) -> dict[str, str]:
    """The clauses of the text by field, in printing order. See :func:`render` for the parameters."""
    if ablation not in ABLATIONS:
        raise ParameterError("unknown text ablation", found=repr(ablation), expected=f"one of {list(ABLATIONS)}")
    if missing not in ("omit", "state"):
        raise ParameterError("unknown handling of missing fields", found=repr(missing), expected="omit or state")
    unknown = sorted(set(drop_fields) - set(FIELDS))
    if unknown:
        raise ParameterError("unknown text fields", found=unknown, expected=f"some of {list(FIELDS)}")
    result: dict[str, str] = {}
    for field in ABLATIONS[ablation]:
        if field in drop_fields or (field == "apoe" and not include_apoe) or (field == "labs" and not include_labs):
            continue
        clause = _age(record, oldest_age) if field == "age" else _CLAUSES[field](record)
        if clause is None and missing == "state" and field != "handedness":
            clause = f"{_FIELD_TITLES[field]} not recorded"
        if clause is not None:
            result[field] = clause
    return result


def render(
    record: Mapping[str, Any],
    *,
    ablation: str = "full",
    drop_fields: Collection[str] = (),
    include_apoe: bool = False,
    include_labs: bool = True,
    missing: str = "omit",
    oldest_age: int | None = None,
) -> str:
    """Render a health record as text.

    Parameters
    ----------
    record
        A row of the harmonized images table (``dict`` or ``Series``); absent columns count as missing.
    ablation
        ``full``, ``no_cdr`` (neither CDR score) or ``demographics_only``.
    drop_fields
        Names of :data:`FIELDS` to leave out: a question's ``hidden_fields``, or field dropout in training.
    include_apoe, include_labs
        Whether these fields are printed.
    missing
        ``omit`` leaves missing fields out, ``state`` says that they are not recorded.
    oldest_age
        When given, ages from it on are printed as "N years or over", a privacy option.

    Returns
    -------
    str
        One line; empty where nothing is left to print. The same record always gives the same text.

    Raises
    ------
    ParameterError
        On an unknown ablation, field name, or handling of missing fields.

    Examples
    --------
    >>> record = {"age_years": 74.6, "sex": "F", "educ_years": 16, "mmse": 27, "cdr_global": 0.5, "lm_delayed": 6}
    >>> render(record)
    'Age 74 years; female; 16 years of education; MMSE 27/30; global CDR 0.5; logical memory delayed recall 6/25.'
    >>> render(record, ablation="no_cdr", drop_fields=("age", "lm_delayed"))
    'Female; 16 years of education; MMSE 27/30.'
    """
    parts = clauses(
        record,
        ablation=ablation,
        drop_fields=drop_fields,
        include_apoe=include_apoe,
        include_labs=include_labs,
        missing=missing,
        oldest_age=oldest_age,
    ).values()
    return sentence(parts)


def sentence(parts: Iterable[str]) -> str:
    """Clauses as one line of text; empty without any."""
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def present_fields(record: Mapping[str, Any], **options: Any) -> list[str]:
    """The names of the fields that :func:`render` prints with the same ``options``."""
    return list(clauses(record, **options))


# Acronyms that are also words or units match in capitals only ("AD" is a diagnosis, "ad" is not); all others, and
# words, match in any case, words with any ending.
_LEAK_ACRONYMS = re.compile(r"\b(AD|DAT|SMC|SCD|NC|CN|NL|HC|DEM|I\d{3,})\b")
_LEAK_NAMES = re.compile(
    r"\b(AD_DEM|[eilsp]?MCI|Non-?DEM|ADNI\d?\w*|NACC\w*|OASIS\S*|AIBL\w*|MIRIAD\w*|IXI\w*|OAS[123]\w*|sub-\w+|ses-\w+)\b",
    re.IGNORECASE,
)
_LEAK_WORDS = re.compile(
    r"(demented|non-?demented|dementi\w*|alzheimer\w*|cognitive\w* (?:normal|impair\w*|unimpaired)|normal cognition"
    r"|mild cognitive|impairment|convert(?:er|ers|ed|s)?\b|conversion|progress(?:or|ive)\w*|diagnos\w*"
    r"|\bpatients?\b|\bcontrols?\b|healthy)",
    re.IGNORECASE,
)
_LEAK_DATES = re.compile(r"\b(?:19|20)\d\d-\d\d?-\d\d?\b|\b\d\d?/\d\d?/(?:19|20)\d\d\b|\b\d{3}_S_\d{4,5}\b")


def find_leaks(text: str) -> list[str]:
    """Words in ``text`` that name a diagnosis, group, cohort, id or date; an empty list means none was found.

    Examples
    --------
    >>> find_leaks("Age 74 years; global CDR 0.5.")
    []
    >>> find_leaks("MMSE 20/30; probable Alzheimer's disease (AD), converted to dementia 2011-03-04")
    ['AD', 'Alzheimer', 'converted', 'dementia', '2011-03-04']
    """
    return [
        match.group(0)
        for pattern in (_LEAK_ACRONYMS, _LEAK_NAMES, _LEAK_WORDS, _LEAK_DATES)
        for match in pattern.finditer(text)
    ]


def is_printed(record: Mapping[str, Any], field: str) -> bool:
    """Whether ``record`` holds a printable value for ``field`` (laboratory results and APOE included)."""
    if all(is_missing(record.get(column)) for column in FIELD_COLUMNS[field]):
        return False
    return field in clauses(record, include_apoe=True, include_labs=True)
