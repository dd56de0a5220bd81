"""The labels of every image, each with the table, row and rule that decided it.

Labels come from the matched visit alone (:mod:`medalign3d.ehr.labels`). The course of mild cognitive impairment looks
at the person's later visits, and the stage at the earlier ones; a person's visits are told apart by cohort and native
id, never by day alone.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medalign3d.ehr import labels, schema
from medalign3d.ehr.label_rules import LABEL_RULES_VERSION
from medalign3d.ehr.quarantine import Quarantine
from medalign3d.ehr.values import is_missing, number_or_none, text_or_none

if TYPE_CHECKING:
    import pandas as pd

DAYS_PER_MONTH = 365.25 / 12
OTHER_DIAGNOSIS = "other"
"""State of a visit whose diagnosis is none of the three classes (impaired, but not MCI)."""

Person = tuple[str, str]
"""Cohort and native id."""


@dataclass(frozen=True)
class TimelineVisit:
    """A visit of a person with MCI: its day on every scale on which it is known, and its diagnosis."""

    days: Mapping[str, float]
    code: str | None
    state: str | None
    source: Mapping[str, Any]


def columns_of(table: pd.DataFrame, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of ``table`` as tuples of ``names``; absent columns give None."""
    return zip(*(table[name] if name in table else [None] * len(table) for name in names), strict=True)


def labels_of(table: pd.DataFrame, nacc_dementia_policy: str) -> list[labels.Label | labels.UnknownLabel]:
    """The label of every row of a table of images or visits, or the error where it is in no code book.

    A carried CDR is not the session's own and never makes an OASIS label.
    """
    known: dict[tuple[Any, ...], labels.Label | labels.UnknownLabel] = {}
    result = []
    for row in columns_of(table, ("dataset", "dx_native", "cdr_global", "cdr_global_source", "dementia_etiology")):
        key = tuple(None if is_missing(value) else value for value in row)
        if key not in known:
            dataset, native, cdr, source, etiology = key
            try:
                known[key] = labels.label_of(
                    str(dataset),
                    native,
                    cdr_global=cdr if source in (None, "measured") else None,
                    dementia_etiology=etiology,
                    nacc_dementia_policy=nacc_dementia_policy,
                )
            except labels.UnknownLabel as error:
                known[key] = error
        result.append(known[key])
    return result


def _values(provenance: object) -> dict[str, Any]:
    """The ``values`` of a provenance cell; empty where there is none."""
    if not isinstance(provenance, str):
        return {}
    try:
        parsed = json.loads(provenance)
    except ValueError:
        return {}
    values = parsed.get("values") if isinstance(parsed, dict) else None
    return values if isinstance(values, dict) else {}


def _decision(rule: str, source: object) -> dict[str, Any]:
    """What provenance says of a derived value: the row that decided, and the rule."""
    known = source if isinstance(source, Mapping) else {}
    return {"file": known.get("file"), "row": known.get("row"), "rule": rule}


def _ordinal(value: Any) -> int | None:
    if isinstance(value, datetime.date):
        return value.toordinal()
    if is_missing(value):
        return None
    try:
        return datetime.date.fromisoformat(str(value)[:10]).toordinal()
    except ValueError:
        return None


def _days(date: Any, day: Any, month: Any) -> dict[str, float]:
    """A day on every scale on which it is known."""
    months = number_or_none(month)
    scales = {
        "date": _ordinal(date),
        "day": number_or_none(day),
        "month": None if months is None else months * DAYS_PER_MONTH,
    }
    return {name: float(value) for name, value in scales.items() if value is not None}


def timelines(visits_of: Mapping[str, pd.DataFrame], people: set[Person]) -> dict[Person, list[TimelineVisit]]:
    """The visits of ``people``. Any dementia counts, whatever its cause: it ends stability."""
    result: dict[Person, list[TimelineVisit]] = defaultdict(list)
    names = ("native_subject_id", "visit_code", "visit_date", "visit_day", "visit_month", "provenance")
    for dataset, visits in visits_of.items():
        if "native_subject_id" not in visits:
            continue
        wanted = visits[[(dataset, subject) in people for subject in visits["native_subject_id"].astype(str)]]
        found = labels_of(wanted.assign(dataset=dataset), "any_cause")
        for (subject, code, date, day, month, provenance), label in zip(columns_of(wanted, names), found, strict=True):
            state = None
            if isinstance(label, labels.Label):
                # IMCI has no dx3, but it is a diagnosis.
                state = label.dx3 or (OTHER_DIAGNOSIS if label.dx3_rule == "dx3.none.nacc_imci" else None)
            source = _values(provenance).get("dx_native", {}) if state is not None else {}
            result[(dataset, str(subject))].append(
                TimelineVisit(_days(date, day, month), text_or_none(code), state, source)
            )
    return result


def _origin(image: Mapping[str, Any], timeline: Sequence[TimelineVisit]) -> tuple[str, int] | None:
    """Scale and day of the visit that was matched to an image, or None where it has no day."""
    code = text_or_none(image["visit_code"])
    matched = [visit.days for visit in timeline if code is not None and visit.code == code]
    start = dict(matched[0]) if len(matched) == 1 else {}
    delta = number_or_none(image["match_delta_days"])
    if not start and delta is not None:
        start = {name: day - delta for name, day in _days(image["scan_date"], image["scan_day"], None).items()}
    shared = [scale for scale in ("date", "day", "month") if scale in start]
    if not shared:
        return None
    # The scale on which most of the person's visits are known; dates win ties.
    scale = max(shared, key=lambda name: sum(name in visit.days for visit in timeline))
    return scale, round(start[scale])


def _course(
    origin: tuple[str, int] | None, timeline: Sequence[TimelineVisit]
) -> tuple[labels.Course | None, Mapping[str, Any], str]:
    """Course, source of the visit that decided it, and rule."""
    if origin is None:
        return None, {}, "mci_course.none.undated"
    scale, start = origin
    dated = [(round(visit.days[scale]), visit) for visit in timeline if scale in visit.days]
    course = labels.mci_course(start, [(day, visit.state) for day, visit in dated])
    source: Mapping[str, Any] = {}
    if course.decided_by is not None:
        deciding = [v for day, v in dated if day - start == course.decided_by and v.state is not None]
        source = deciding[0].source
    return course, source, course.rule


def _left_mci(origin: tuple[str, int] | None, timeline: Sequence[TimelineVisit]) -> bool:
    """Whether a visit before the matched one has another diagnosis than MCI."""
    if origin is None:
        return False
    scale, start = origin
    return any(
        visit.state not in (None, "MCI") and scale in visit.days and round(visit.days[scale]) < start
        for visit in timeline
    )


def add_labels(
    images: pd.DataFrame,
    visits_of: Mapping[str, pd.DataFrame],
    quarantine: Quarantine,
    nacc_dementia_policy: str,
) -> None:
    """Fill dx3, dx2, mci_stage, mci_course and what belongs to it, the derived education code, and provenance.

    A label that is in no code book gives no class: the image stays, unlabelled, with a row in the quarantine. Where no
    label of a cohort is known, the table is not what it claims to be and the error is raised.

    Raises
    ------
    UnknownLabel
        When a cohort has diagnoses and none of them is in its code book.
    """
    import pandas as pd

    found = _known_labels(images, labels_of(images, nacc_dementia_policy), quarantine, nacc_dementia_policy)
    decisions: list[dict[str, dict[str, Any]]] = []
    sources = [_values(cell) for cell in images["provenance"]]
    for label, source in zip(found, sources, strict=True):
        by_cdr = label.dx2_rule.startswith("dx2.oasis.cdr")
        decisions.append(
            {
                "dx3": _decision(label.dx3_rule, source.get("dx_native")),
                "dx2": _decision(label.dx2_rule, source.get("cdr_global" if by_cdr else "dx_native")),
            }
        )
    images["dx3"] = pd.Series([label.dx3 for label in found], index=images.index, dtype="str")
    images["dx2"] = pd.Series([label.dx2 for label in found], index=images.index, dtype="str")
    _add_mci(images, visits_of, sources, decisions)
    _add_education_code(images, sources, decisions)
    _warn_of_implausible_diagnoses(images, decisions, quarantine)
    images["provenance"] = pd.Series(
        [_with_decisions(cell, decided) for cell, decided in zip(images["provenance"], decisions, strict=True)],
        index=images.index,
        dtype="str",
    )


def _known_labels(
    images: pd.DataFrame,
    found: Sequence[labels.Label | labels.UnknownLabel],
    quarantine: Quarantine,
    nacc_dementia_policy: str,
) -> list[labels.Label]:
    """``found`` with unknown labels replaced by none, each with a row in the quarantine."""
    known: Counter[str] = Counter()
    errors: dict[str, labels.UnknownLabel] = {}
    result: list[labels.Label] = []
    names = ("dataset", "native_image_key", "dx_native", "provenance")
    for (dataset, key, native, provenance), label in zip(columns_of(images, names), found, strict=True):
        if isinstance(label, labels.Label):
            known[dataset] += not is_missing(native)
            result.append(label)
            continue
        errors.setdefault(dataset, label)
        source = _values(provenance).get("dx_native", {})
        quarantine.add(
            str(dataset), "image", {"native_image_key": key}, "DIAGNOSIS_OUT_OF_SCOPE",
            "the diagnosis is in no code book; kept without a label", "warn", source.get("file"), source.get("row"),
        )  # fmt: skip
        result.append(labels.UNKNOWN)
    for dataset, error in errors.items():
        if not known[dataset]:
            raise error
    # An OASIS session is labelled by its CDR, whatever else is said of it.
    for position in [i for i, label in enumerate(result) if label is labels.UNKNOWN]:
        row = images.iloc[[position]].assign(dx_native=None)
        (by_cdr,) = labels_of(row, nacc_dementia_policy)
        if isinstance(by_cdr, labels.Label) and by_cdr.dx2 is not None:
            result[position] = labels.Label(None, by_cdr.dx2, labels.UNKNOWN.dx3_rule, by_cdr.dx2_rule)
    return result


def _add_mci(
    images: pd.DataFrame,
    visits_of: Mapping[str, pd.DataFrame],
    sources: Sequence[Mapping[str, Any]],
    decisions: Sequence[dict[str, dict[str, Any]]],
) -> None:
    """Fill mci_stage, mci_course, its reason, days_to_dementia and followup_days for images of people with MCI."""
    import pandas as pd

    columns: dict[str, list[Any]] = {
        name: [None] * len(images)
        for name in ("mci_stage", "mci_course", "mci_course_reason", "days_to_dementia", "followup_days")
    }
    subjects = list(zip(images["dataset"].astype(str), images["native_subject_id"].astype(str), strict=True))
    is_mci = (images["dx3"] == "MCI").fillna(False).tolist()
    people = {subject for subject, flag in zip(subjects, is_mci, strict=True) if flag}
    first_phase = {subject for subject, release in zip(subjects, images["release"], strict=True) if release == "ADNI1"}
    visits = timelines(visits_of, people)
    needed = ("visit_code", "match_delta_days", "scan_date", "scan_day", "dx_subject_level")
    for position, values in enumerate(columns_of(images, needed)):
        if not is_mci[position]:
            continue
        row, subject = dict(zip(needed, values, strict=True)), subjects[position]
        timeline = visits.get(subject, [])
        origin = _origin(row, timeline)
        course, source, rule = _course(origin, timeline)
        decisions[position]["mci_course"] = _decision(rule, source)
        if course is not None:
            columns["mci_course"][position] = course.course
            columns["mci_course_reason"][position] = course.reason
            columns["days_to_dementia"][position] = course.days_to_dementia
            columns["followup_days"][position] = course.followup_days
        if subject[0] == "ADNI":
            stage = labels.mci_stage(
                row["dx_subject_level"],
                enrolled_in_adni1=subject in first_phase,
                left_mci=_left_mci(origin, timeline),
            )
            columns["mci_stage"][position] = stage.stage
            decisions[position]["mci_stage"] = _decision(stage.rule, sources[position].get("dx_subject_level"))
    for name, cells in columns.items():
        raw = pd.Series(cells, index=images.index, dtype=object)
        images[name] = schema.coerce_column(raw, schema.COLUMN_BY_NAME[name])


def _add_education_code(
    images: pd.DataFrame, sources: Sequence[Mapping[str, Any]], decisions: Sequence[dict[str, dict[str, Any]]]
) -> None:
    """Fill the five-level education code from years where the custodian gives years."""
    import pandas as pd

    codes: list[int | None] = []
    for position, (years, own) in enumerate(zip(images["educ_years"], images["educ_code"], strict=True)):
        code = labels.derived_educ_code(years) if is_missing(own) else int(own)
        if is_missing(own) and code is not None:
            decisions[position]["educ_code"] = _decision("educ_code.from_years", sources[position].get("educ_years"))
        codes.append(code)
    images["educ_code"] = pd.Series(pd.array(codes, dtype="Int8"), index=images.index)


def _warn_of_implausible_diagnoses(
    images: pd.DataFrame, decisions: Sequence[Mapping[str, Mapping[str, Any]]], quarantine: Quarantine
) -> None:
    """NACC: normal cognition with a global CDR of at least 1, or dementia with 0: kept, with a warning per image."""
    cdr = images["cdr_global"].astype("float64")
    normal = (images["dx_native"] == "NC") & (cdr >= 1)
    demented = (images["dx_native"] == "DEM") & (cdr == 0)
    doubtful = ((images["dataset"] == "NACC") & (normal | demented)).fillna(False).tolist()
    for key, flag, decided in zip(images["native_image_key"], doubtful, decisions, strict=True):
        if flag:
            quarantine.add(
                "NACC", "image", {"native_image_key": key}, "DIAGNOSIS_CONFLICT",
                "the diagnosis is implausible beside the global CDR; both are kept", "warn",
                decided["dx3"]["file"], decided["dx3"]["row"],
            )  # fmt: skip


def _with_decisions(provenance: object, decided: Mapping[str, Any]) -> str:
    """A provenance cell with what decided the labels."""
    content: dict[str, Any] = {}
    if isinstance(provenance, str):
        try:
            content = json.loads(provenance)
        except ValueError:
            content = {}
    content["values"] = {**_values(provenance), **decided}
    content["label_rules_version"] = LABEL_RULES_VERSION
    content.setdefault("rules_version", None)
    return json.dumps(content, sort_keys=True)
