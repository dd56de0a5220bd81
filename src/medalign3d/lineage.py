"""Where every value of one image came from: ``medalign3d explain``.

Everything is read from the tables that the stages wrote; nothing is computed anew but the record's text and, where the
stage ``harmonize`` has not run, what it would make of the participant's rows. A field whose origin was not recorded
says so.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medalign3d.cohorts.reasons import SEVERITY_WORDS, Severity, explain_reason
from medalign3d.ehr import schema, text
from medalign3d.ehr.label_rules import LABEL_RULES
from medalign3d.ehr.values import mapping_or_empty, text_or_none
from medalign3d.errors import InputError, MedAlignError
from medalign3d.printing import count, labelled, paragraph, table
from medalign3d.results import Results, key_of, plain, plain_records

if TYPE_CHECKING:
    import pandas as pd

    from medalign3d.params import Params

MAXIMUM_CANDIDATES = 6
"""Visits near a scan that are listed."""

GROUPS: dict[str, tuple[str, ...]] = {
    "identity": (
        "image_id", "dataset", "release", "participant_id", "person_id", "native_subject_id", "session_id", "run",
        "native_image_key", "variant", "variant_of", "selected", "selection_rank", "qc_score",
    ),
    "scan": (
        "source_path", "source_format", "source_sha256", "data_sha256", "shape", "zooms", "orientation", "dtype",
        "affine_source", "field_strength_t", "manufacturer", "scanner_model", "series_description", "scan_date",
        "scan_day",
    ),
    "visit": ("visit_code", "visit_month", "match_delta_days", "match_method"),
    "diagnosis and labels": (
        "dx_native", "dx_subject_level", "dementia_etiology", "dx3", "dx2", "mci_stage", "mci_course",
        "mci_course_reason", "days_to_dementia", "followup_days",
    ),
}  # fmt: skip
"""Fields by heading; all others of the schema describe the person's record."""

_READER = "the reader's choice among the images of the session"
_HEADER = "header of the image file"
_SCANNER = "image header, sidecar, or a scanner or image list of the cohort"
ORIGINS: dict[str, str] = {
    "image_id": "SHA-1 of cohort and native image key",
    "dataset": "the cohort that was read",
    "release": "phase, data freeze, or name of the table or extract",
    "participant_id": "the native subject id, letters and digits only",
    "person_id": "the participant, or the linked person (see person)",
    "native_subject_id": "name of the folder, the file, or the session's table row",
    "session_id": "the session or matched visit",
    "native_image_key": "names of the session and the file",
    "run": "order of the session's images by date and number",
    "variant": "name of the folder and file",
    "variant_of": _READER,
    "selected": _READER,
    "selection_rank": _READER,
    "qc_score": "the custodian's image quality table",
    "source_path": "found on disk",
    "source_format": "suffix and signature of the file",
    "source_sha256": "hash of the source files",
    "data_sha256": "hash of the voxels",
    "fingerprint": "computed from the voxels, to find near-duplicates",
    "shape": _HEADER,
    "zooms": _HEADER,
    "orientation": _HEADER,
    "dtype": _HEADER,
    "affine_source": "whether the header's orientation is trusted",
    "field_strength_t": _SCANNER,
    "manufacturer": _SCANNER,
    "scanner_model": _SCANNER,
    "series_description": "name of the folder or file, or its sidecar",
    "scan_date": "acquisition folder, image list or session table",
    "scan_day": "days from the person's first dated event, or the session's own day",
    "visit_code": "the matched visit (see match)",
    "visit_month": "the matched visit (see match)",
    "match_delta_days": "scan minus visit (see match)",
    "match_method": "how scan and visit were matched (see match)",
    "dx_subject_level": "the group in the file name",
    "age_precision": "how exactly the rule for age_years knows the age",
    "volume_source": "which custodian's software measured the volumes",
    "ehr_template": "version of the text (see text)",
}
"""Where fields come from that are no cell of a table."""

_METHODS = {
    "date_nearest": "the visit nearest in time",
    "exact_label": "scan and record carry the same session label",
    "ida_visit": "the archive's image list names the visit",
    "file_name": "the file's name gives the visit",
}
_SHOWN_ELSEWHERE = ("provenance", "ehr_text", "ehr_fields")


class NotOneImage(InputError):
    """No image, or more than one, fits what was asked for; ``choices`` lists near or fitting ones."""

    def __init__(self, what: str, choices: list[str], **details: Any) -> None:
        self.choices = choices
        super().__init__(what, **details)


# ------------------------------------------------------------------------------------------------------------ finding


def find_image(results: Results, asked: str) -> tuple[str, dict[str, Any]]:
    """The cohort and ingested row of the image that ``asked`` names.

    Parameters
    ----------
    results
        The tables to look into.
    asked
        An image id, a prefix of one (at least four digits), a native image key, or a source path (absolute, relative to
        the cohort's folder, or the end of one; a file inside a DICOM series or of a pair counts).

    Raises
    ------
    NotOneImage
        When nothing or several images fit.
    """
    wanted = asked.strip().rstrip("/")
    low = wanted.lower()
    tests = (
        lambda row: row["image_id"] == low,
        lambda row: row["native_image_key"] == wanted,
        lambda row: row["native_image_key"].lower() in (low, f"i{low}"),
        lambda row: _is_path_of(row["source_path"], wanted),
        lambda row: len(low) >= 4 and row["image_id"].startswith(low),
        # A key without its session or suffix: only when a single image fits.
        lambda row: low in (part.lower() for part in row["native_image_key"].split("/")),
    )
    rows = [
        (cohort, row)
        for cohort in results.cohorts
        for row in plain_records(
            results.ingest(cohort).images[["image_id", "native_image_key", "source_path", "native_subject_id"]]
        )
    ]
    for test in tests:
        fitting = [(cohort, row) for cohort, row in rows if test(row)]
        if len(fitting) == 1:
            cohort, row = fitting[0]
            images = results.ingest(cohort).images
            return cohort, plain_records(images[images["image_id"] == row["image_id"]])[0]
        if fitting:
            raise NotOneImage(
                "several images fit",
                [f"{row['image_id']}  {cohort} {row['native_image_key']}" for cohort, row in fitting[:12]],
                found=f"{len(fitting)} images",
                expected="one image; name it by its image id",
            )
    raise NotOneImage(
        "no accepted image of this name",
        near_images(rows, low),
        found=asked,
        expected="an image id or its beginning, a native image key, or a source path",
        remedy=f"`medalign3d why-missing '{asked}'` says whether it was left out, and why",
    )


def _is_path_of(source: str, asked: str) -> bool:
    """Whether ``asked`` names a source file: the whole path or its end, by whole folder names."""
    if "/" not in asked and "." not in asked:
        return False
    path = PurePosixPath(asked.replace("\\", "/")).as_posix().removeprefix("./")
    forms = {path, path.removesuffix(".img") + ".hdr" if path.endswith(".img") else path}
    for form in forms:
        if source == form or source.endswith(f"/{form}") or form.endswith(f"/{source}"):
            return True
    # A slice of a DICOM series: the series is its folder.
    folder = PurePosixPath(path).parent.as_posix()
    is_slice = path.lower().endswith((".dcm", ".ima"))
    return is_slice and folder not in ("", ".") and (source == folder or folder.endswith(f"/{source}"))


def near_images(rows: list[tuple[str, dict[str, Any]]], asked: str, limit: int = 6) -> list[str]:
    """Images of the participant that ``asked`` seems to name, or whose key is nearly the same."""
    import difflib
    import re

    def squeezed(value: str) -> str:
        return re.sub(r"[^0-9a-z]", "", value.lower())

    key = squeezed(asked)
    own = [(c, r) for c, r in rows if key and squeezed(str(r["native_subject_id"])) == key]
    if not own:
        keys = {squeezed(r["native_image_key"]): (c, r) for c, r in rows} | {r["image_id"]: (c, r) for c, r in rows}
        own = [keys[name] for name in difflib.get_close_matches(key, keys, n=limit, cutoff=0.8)]
    return [f"{r['image_id']}  {c} {r['native_image_key']}" for c, r in own[:limit]]


# ------------------------------------------------------------------------------------------------------------- pieces


def provenance_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Field to file, row and rule, from the JSON text in ``provenance``; label rules of harmonize included."""
    found: dict[str, dict[str, Any]] = {}

    def walk(value: Any) -> None:
        if not isinstance(value, dict):
            return
        for name, item in value.items():
            if isinstance(item, dict) and "rule" in item:
                found.setdefault(str(name), item)
            else:
                walk(item)

    walk(mapping_or_empty(record.get("provenance")))
    return found


def _harmonized_record(
    results: Results, cohort: str, image_id: str, subject: str, params: Params
) -> tuple[dict[str, Any] | None, str]:
    """The harmonized row and where it comes from: the stage's table, or computed from the participant's rows."""
    harmonized = results.harmonized
    if harmonized is not None:
        rows = plain_records(harmonized[harmonized["image_id"] == image_id])
        return (rows[0], "harmonized table") if rows else (None, "not in the harmonized table")
    from medalign3d.ehr.harmonize import harmonize

    tables = results.ingest(cohort)
    own = _Own(
        tables.images[tables.images["native_subject_id"] == subject].reset_index(drop=True),
        tables.visits[tables.visits["native_subject_id"] == subject].reset_index(drop=True),
    )
    simulated = str(tables.images.attrs.get("simulated")).lower() == "true"
    changed = params.model_copy(
        update={
            "cohorts": [cohort],
            "simulate": params.simulate.model_copy(update={"cohorts": [cohort] if simulated else []}),
            "external": params.external.model_copy(update={"cohorts": [] if simulated else [cohort]}),
        }
    )
    own.images.attrs = dict(tables.images.attrs)
    try:
        rows = plain_records(harmonize({cohort: own}, changed).images)
    except MedAlignError as error:
        return None, f"cannot be harmonized: {error.what}"
    for row in rows:
        if row["image_id"] == image_id:
            return row, "as `harmonize` would make it (the stage has not run here)"
    return None, "`harmonize` would leave it out"


class _Own:
    """One participant's rows in the form in which harmonize takes a cohort."""

    def __init__(self, images: pd.DataFrame, visits: pd.DataFrame) -> None:
        self.images = images
        self.visits = visits


def _fields(record: Mapping[str, Any], origins: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every field with a value: name, value, unit, file, row, rule."""
    grouped = {name: group for group, names in GROUPS.items() for name in names}
    order = [*grouped, *(column.name for column in schema.IMAGE_COLUMNS if column.name not in grouped)]
    order += [name for name in record if name not in order]
    for name in order:
        value = record.get(name)
        if value is None or name in _SHOWN_ELSEWHERE:
            continue
        if name in ("labs", "history"):
            value = mapping_or_empty(value)
            if not value:
                continue
        column = schema.COLUMN_BY_NAME.get(name)
        origin = dict(origins.get(name, {}))
        rule = rule_words(str(origin.get("rule") or ""))
        if not rule:
            rule = _derived_origin(name, record) or ORIGINS.get(name, "not recorded")
        yield {
            "name": name,
            "group": grouped.get(name, "record"),
            "value": value,
            "unit": column.unit if column else "",
            "file": origin.get("file"),
            "row": origin.get("row"),
            "rule": rule,
            "details": {key: item for key, item in origin.items() if key not in ("file", "row", "rule")},
        }


def _derived_origin(name: str, record: Mapping[str, Any]) -> str | None:
    """Origins that depend on other fields of the record."""
    if name == "educ_code" and record.get("educ_years") is not None:
        return "from educ_years: below 12, 12, 13-15, 16, 17 and more"
    if name.endswith("_source"):
        return {
            "measured": "the score stands in a table for this very visit",
            "crosswalk": "the score was estimated from another test",
            "carried": "the score was carried from another visit",
        }.get(str(record[name]))
    if name in _OF_COURSE:
        return "the person's visits after the matched one, as for mci_course"
    return None


_OF_COURSE = ("mci_course_reason", "days_to_dementia", "followup_days")


def rule_words(rule: str) -> str:
    """A rule with its description where it is the id of a label rule.

    >>> rule_words("dx2.oasis.cdr_0")
    'dx2.oasis.cdr_0: OASIS global CDR 0 at that session'
    """
    known = LABEL_RULES.get(rule)
    return rule if known is None else f"{rule}: {known.description}"


def _empty_fields(
    record: Mapping[str, Any], cohort: str, issues: list[dict[str, Any]], origins: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Fields without a value, with the reason as far as it is known."""
    rejected = {str(issue.get("column")): issue for issue in issues if issue["level"] == "field"}
    rows = []
    for column in schema.HARMONIZED_COLUMNS:
        if not column.nullable or record.get(column.name) is not None or column.name in _SHOWN_ELSEWHERE:
            continue
        rule = str(origins.get("mci_course" if column.name in _OF_COURSE else column.name, {}).get("rule") or "")
        why = rule_words(rule) if rule in LABEL_RULES else ""
        for name, issue in rejected.items():
            if name.lower() == column.name or name.lower() in _COLUMN_WORDS.get(column.name, ()):
                why = f"the cell {name} was emptied: {issue['reason']} ({_place(issue['file'], issue['row'])})"
        rows.append({"name": column.name, "why": why or _why_empty(column.name, record, cohort)})
    return rows


#: Native column names of fields that are often emptied, for telling which cell it was.
_COLUMN_WORDS: dict[str, tuple[str, ...]] = {
    "mmse": ("mmscore", "naccmmse"),
    "moca": ("naccmoca", "mocatots"),
    "cdr_global": ("cdglobal", "cdrglob", "cdrtot", "cdr"),
    "cdr_sb": ("cdrsb", "cdrsum", "sumbox", "cdsob"),
    "lm_immediate": ("limmtotal", "logimem"),
    "lm_delayed": ("ldeltotal", "memunits"),
    "gds": ("naccgds",),
    "educ_years": ("pteducat", "educ", "education"),
    "age_years": ("age", "ptdob", "birthyr", "naccage"),
    "apoe_genotype": ("genotype", "apgen1", "apgen2", "naccapoe", "apoe"),
    "apoe4_count": ("apoe4", "naccne4s", "apgen1", "apgen2"),
}


def _why_empty(name: str, record: Mapping[str, Any], cohort: str) -> str:
    if name in ("mci_stage", "mci_course", *_OF_COURSE):
        return "only for images with dx3 MCI" if record.get("dx3") != "MCI" else "not decided by the person's visits"
    if name.endswith("_age_days"):
        return "only for scores that were carried from another visit"
    if name.endswith("_source"):
        return "the score is empty, too"
    return "no value in any table for this image"


def _place(file: Any, row: Any, short: bool = True) -> str:
    if file is None:
        return ""
    name = PurePosixPath(str(file)).name if short else str(file)
    return name if row is None else f"{name}:{int(row)}"


def _match(results: Results, cohort: str, record: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """How the scan was matched to a visit, and the other visits near it."""
    visits = results.ingest(cohort).visits
    own = plain_records(visits[visits["native_subject_id"] == record["native_subject_id"]])
    candidates = []
    for visit in own:
        delta = _days_between(record, visit)
        candidates.append(
            {
                "visit_code": visit["visit_code"],
                "visit_date": visit.get("visit_date"),
                "visit_day": visit.get("visit_day"),
                "delta_days": delta,
                "dx_native": visit.get("dx_native"),
                "matched": visit["visit_code"] == record.get("visit_code"),
            }
        )
    candidates.sort(key=lambda c: (c["delta_days"] is None, abs(c["delta_days"] or 0), c["delta_days"] or 0))
    shown = candidates[:MAXIMUM_CANDIDATES]
    shown += [c for c in candidates[MAXIMUM_CANDIDATES:] if c["matched"]]
    method = record.get("match_method")
    return {
        "method": method,
        "meaning": _METHODS.get(str(method), ""),
        "visit_code": record.get("visit_code"),
        "delta_days": record.get("match_delta_days"),
        "window_days": params.ingest.match_window_days.get(cohort),  # type: ignore[call-overload]
        "visits_of_person": len(own),
        "candidates": shown,
    }


def _days_between(record: Mapping[str, Any], visit: Mapping[str, Any]) -> int | None:
    """Scan minus visit in days: by dates where both have one, else by days of the study."""
    if record.get("scan_date") and visit.get("visit_date"):
        scan, date = (datetime.date.fromisoformat(str(d)) for d in (record["scan_date"], visit["visit_date"]))
        return (scan - date).days
    if record.get("scan_day") is not None and visit.get("visit_day") is not None:
        return int(record["scan_day"]) - int(visit["visit_day"])
    return None


def _selection(results: Results, cohort: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The other images of the session, and which one takes part."""
    images = results.ingest(cohort).images
    same = images[
        (images["native_subject_id"] == record["native_subject_id"]) & (images["session_id"] == record["session_id"])
    ]
    columns = ["image_id", "native_image_key", "selected", "selection_rank", "variant", "run"]
    return {
        "selected": bool(record["selected"]),
        "rank": record.get("selection_rank"),
        "of": len(same),
        "others": [row for row in plain_records(same[columns]) if row["image_id"] != record["image_id"]],
    }


def _person(results: Results, cohort: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The person, and why participants were linked."""
    from medalign3d.ehr.persons import link_persons

    persons = results.persons
    computed = persons is None
    if persons is None:
        tables = results.ingest(cohort)
        persons = link_persons(tables.images, tables.visits)
    own = plain_records(persons[persons["participant_id"] == record["participant_id"]])
    if not own:
        return {"person_id": None, "link_rule": None, "participants": [], "computed": computed}
    person = own[0]["person_id"]
    members = plain_records(persons[persons["person_id"] == person])
    return {
        "person_id": person,
        "link_rule": own[0].get("link_rule"),
        "participants": [row["participant_id"] for row in members],
        "computed": computed,
    }


def _texts(record: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """The text of every ablation with the clause of each field."""
    options = text.text_options(params)
    return {
        name: {
            "text": text.render(record, ablation=name, **options),
            "fields": text.clauses(record, ablation=name, **options),
        }
        for name in text.ABLATIONS
    }


def issues_of(
    results: Results, cohort: str, keys: set[str], subject: str | None, visit: str | None = None
) -> list[dict[str, Any]]:
    """Quarantine rows of an image, its visit and its person, from ingest and harmonize."""
    tables = [("ingest", results.ingest(cohort).quarantine)]
    if results.harmonize_quarantine is not None:
        later = results.harmonize_quarantine
        tables.append(("harmonize", later[later["dataset"] == cohort]))
    rows = []
    for stage, quarantine in tables:
        for row in plain_records(quarantine):
            key = key_of(row["key_json"])
            if "native_image_key" in key:
                concerns = key["native_image_key"] in keys
            else:
                concerns = subject is not None and key.get("native_subject_id") == subject
                if visit is not None and "visit_code" in key:
                    concerns = concerns and key["visit_code"] in (visit, "")
            if concerns:
                rows.append(
                    {
                        "stage": stage,
                        "level": row["level"],
                        "reason": row["reason"],
                        "severity": row["severity"],
                        "detail": row["detail"],
                        "file": row["source_file"],
                        "row": row["source_row"],
                        "visit_code": key.get("visit_code"),
                        "column": key.get("column"),
                        "meaning": explain_reason(str(row["reason"])).meaning,
                        "remedy": explain_reason(str(row["reason"])).remedy,
                    }
                )
    return rows


def normalization_of(results: Results, cohort: str, image_id: str) -> dict[str, Any] | None:
    """The row of the index of normalized volumes; None when the stage has not run for the cohort."""
    index = results.volumes(cohort)
    if index is None:
        return None
    rows = plain_records(index[index["image_id"] == image_id])
    if not rows:
        return {"verdict": "not normalized", "reason": None, "detail": None}
    wanted = ("verdict", "reason", "detail", "method", "path", "sha256", "local_correlation", "brain_ml")
    return {name: rows[0].get(name) for name in wanted if name in rows[0]}


def split_of(results: Results, record: Mapping[str, Any], params: Params) -> dict[str, Any] | None:
    """Split and benchmark of an image with the reasons; None when the stage has not run."""
    from medalign3d.ehr.questions import class_of
    from medalign3d.ehr.splits import draw

    assignment = results.assignment
    if assignment is None:
        return None
    rows = plain_records(assignment[assignment["image_id"] == record["image_id"]])
    if not rows:
        return {"split": None, "why": "the image is not in the split: the tables are of different runs"}
    row = rows[0]
    dataset, person, part = str(row["dataset"]), str(row["person_id"]), str(row["split"])
    own = {name: b for name, b in params.split.benchmarks.items() if b.cohort == dataset}
    classes = {name: class_of(record, benchmark.question) for name, benchmark in own.items()}
    number = draw(params.split, "test", person)
    volume = normalization_of(results, dataset, str(record["image_id"]))
    if part == "excluded":
        if not record.get("selected", True):
            why = "another image of the visit takes part instead"
        elif volume is not None and volume["verdict"] != "accepted":
            why = f"no normalized volume: {volume['verdict']}" + (f", {volume['reason']}" if volume["reason"] else "")
        else:
            why = "the person is linked to a participant of a zero-shot cohort"
    elif part == "zeroshot":
        why = f"{dataset} is a zero-shot cohort: all of it is kept for testing"
    elif part == "fold":
        why = f"the person is tested in fold {row['fold']} of the cross-validation"
    else:
        why = (
            f"the person's hash draw is {number:.3f}; a draw below the share of split.test_fraction (or the "
            "benchmark's own for the class) is held out"
        )
        if part == "val":
            why += "; of the others, the share split.validation_fraction is for validation"
    names = [name for name in str(row["benchmark"] or "").split(";") if name]
    if names:
        benchmark_why = f"class {row['class']}"
    elif not own:
        benchmark_why = "the cohort has no benchmark"
    elif all(code is None for code in classes.values()):
        benchmark_why = "the record does not answer the benchmark's question: no label"
    elif part == "excluded":
        benchmark_why = "the image is excluded"
    elif part in ("train", "val"):
        benchmark_why = "benchmarks are made of held-out people only"
    else:
        benchmark_why = "held out, but the balanced choice of its class took other images"
    return {
        "split": part,
        "fold": row["fold"] if part == "fold" else None,
        "why": why,
        "benchmarks": names,
        "benchmark_why": benchmark_why,
    }


# ------------------------------------------------------------------------------------------------------------ explain


def explain(results: Results, asked: str, params: Params) -> dict[str, Any]:
    """Everything that is known about where one image's values come from, as plain data.

    Parameters
    ----------
    results
        The tables to look into.
    asked
        See :func:`find_image`.
    params
        The window of matching, the text's options and the split's parameters are shown.

    Raises
    ------
    NotOneImage
        When nothing or several images fit.
    """
    cohort, ingested = find_image(results, asked)
    subject = str(ingested["native_subject_id"])
    record, record_from = _harmonized_record(results, cohort, str(ingested["image_id"]), subject, params)
    merged = {**ingested, **{k: v for k, v in (record or {}).items() if v is not None}}
    if record is not None:
        # What harmonize emptied is empty, whatever ingest read.
        for column in schema.HARMONIZED_COLUMNS:
            merged[column.name] = record.get(column.name)
    person = _person(results, cohort, merged)
    merged["person_id"] = person["person_id"] or merged.get("person_id")
    origins = {**provenance_of(ingested), **provenance_of(record or {})}
    issues = issues_of(
        results, cohort, {str(ingested["native_image_key"])}, subject, text_or_none(ingested.get("visit_code"))
    )
    used = {str(origin["file"]) for origin in origins.values() if origin.get("file")}
    sources = plain_records(results.ingest(cohort).sources)
    root = results.root(cohort)
    file = str(ingested["source_path"])
    return {
        "image": {
            name: ingested.get(name)
            for name in (
                "image_id", "dataset", "release", "participant_id", "native_subject_id", "session_id", "run",
                "native_image_key", "source_path", "source_format",
            )
        },
        "root": None if root is None else str(root),
        "file_is_there": (root / file.split("!", 1)[0]).exists()
        if root is not None and results.ingest(cohort).images_read
        else None,
        "record": record_from,
        "fields": list(_fields(merged, origins)),
        "empty": _empty_fields(merged, cohort, issues, origins),
        "match": _match(results, cohort, merged, params),
        "selection": _selection(results, cohort, merged),
        "person": person,
        "text": _texts(merged, params),
        "text_is_stored": record is not None and results.harmonized is not None,
        "text_changed": bool(
            record and record.get("ehr_text") and record["ehr_text"] != text.render(merged, **text.text_options(params))
        ),
        "normalization": normalization_of(results, cohort, str(ingested["image_id"])),
        "split": split_of(results, merged, params),
        "issues": issues,
        "sources": [{**row, "used": row["file"] in used} for row in sources],
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- printing


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " x ".join(_shown(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return str(plain(value))


def _field_rows(fields: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    rows = []
    for item in fields:
        value = _shown(item["value"])
        if item["name"].endswith("sha256"):
            value = value[:16] + " ..."
        value += f" {item['unit']}" if item["unit"] else ""
        details = ", ".join(f"{name} {_shown(value)}" for name, value in item["details"].items() if value is not None)
        origin = " ".join(part for part in (_place(item["file"], item["row"]), item["rule"]) if part)
        rows.append((item["name"], value, origin + (f" ({details})" if details else "")))
    return rows


def render(answer: Mapping[str, Any]) -> str:
    """The answer of :func:`explain` for a terminal of 100 columns."""
    image = answer["image"]
    lines = [f"image {image['image_id']}: {image['dataset']}, {image['release']}"]
    lines.append(labelled("participant", f"{image['native_subject_id']} ({image['participant_id']})"))
    lines.append(labelled("session", f"{image['session_id']}, run {image['run']}"))
    lines.append(labelled("key", str(image["native_image_key"])))
    there = {True: "it is there", False: "NOT THERE any more", None: "not checked"}
    lines.append(
        labelled("file", f"{image['source_path']} ({image['source_format']}; {there[answer['file_is_there']]})")
    )
    if answer["root"]:
        lines.append(labelled("below", answer["root"]))
    lines.append(labelled("record", answer["record"]))

    lines += ["", "where each field came from (field, value, file:row and rule)"]
    for group in (*GROUPS, "record"):
        rows = _field_rows([item for item in answer["fields"] if item["group"] == group])
        if rows:
            lines += [f" {group}", table(rows, (19, 28, 49))]
    if answer["empty"]:
        lines += ["", "empty fields"]
        by_why: dict[str, list[str]] = {}
        for item in answer["empty"]:
            by_why.setdefault(item["why"], []).append(item["name"])
        lines += [paragraph(f"{why}: {', '.join(names)}", "  ", "    ") for why, names in by_why.items()]

    lines += ["", "match of scan and visit", *_match_lines(answer["match"])]
    lines += ["", "choice among the images of the session", *_selection_lines(answer["selection"])]
    lines += ["", "person", *_person_lines(answer["person"])]
    lines += ["", "text"]
    if answer["text_changed"]:
        lines.append(paragraph("The stored text differs: parameters or code changed since `harmonize` ran.", "  "))
    for name, content in answer["text"].items():
        lines.append(labelled(name, content["text"] or "(empty)", label_width=17))
        lines.append(labelled("", f"fields: {', '.join(content['fields']) or 'none'}", label_width=17))
    lines += ["", "normalization", *_normalization_lines(answer["normalization"])]
    lines += ["", "split and benchmark", *_split_lines(answer["split"])]
    lines += ["", "remarks on this image, its visit and its participant", *issue_lines(answer["issues"])]
    lines += ["", "tables that were read (* gave a value of this image)"]
    lines.append(
        table(
            [
                (
                    "*" if row["used"] else "",
                    str(row["file"]),
                    count(int(row["rows"]), "row"),
                    f"sha256 {str(row['sha256'])[:16]}",
                    str(row["used_for"]),
                )
                for row in answer["sources"]
            ],
            (1, 42, 13, 23, 14),
        )
        if answer["sources"]
        else "  none"
    )
    return "\n".join(lines)


def _match_lines(match: Mapping[str, Any]) -> list[str]:
    delta = match["delta_days"]
    days = "unknown distance" if delta is None else f"scan - visit = {delta:+d} days"
    window = "" if match["window_days"] is None else f" (at most {match['window_days']})"
    lines = [labelled("visit", f"{match['visit_code']}: {days}{window if match['method'] == 'date_nearest' else ''}")]
    lines.append(labelled("method", f"{match['method']}: {match['meaning']}"))
    rows = [
        (
            "->" if c["matched"] else "",
            str(c["visit_code"]),
            str(c["visit_date"] or ("" if c["visit_day"] is None else f"day {c['visit_day']}")),
            "" if c["delta_days"] is None else f"{c['delta_days']:+d} days",
            str(c["dx_native"] or "no diagnosis"),
        )
        for c in match["candidates"]
    ]
    shown = len(rows)
    more = match["visits_of_person"] - shown
    lines.append(f"  {count(match['visits_of_person'], 'visit')} of the participant, nearest first:")
    lines.append(table(rows, (2, 14, 14, 14, 20), indent="    "))
    if more > 0:
        lines.append(f"    and {more} more")
    return lines


def _selection_lines(selection: Mapping[str, Any]) -> list[str]:
    state = "takes part" if selection["selected"] else "does not take part: another image of the session does"
    lines = [paragraph(f"{state} (rank {selection['rank']} of {selection['of']})", "  ")]
    rows = [
        (
            str(other["image_id"]),
            str(other["native_image_key"]),
            f"rank {other['selection_rank']}, {other['variant']}" + (", takes part" if other["selected"] else ""),
        )
        for other in selection["others"][:12]
    ]
    if rows:
        lines.append(table(rows, (16, 50, 28)))
    return lines


def _person_lines(person: Mapping[str, Any]) -> list[str]:
    if person["person_id"] is None:
        return ["  unknown: the participant is not in the harmonized tables"]
    others = person["participants"]
    if len(others) < 2:
        lines = [paragraph(f"{person['person_id']}: linked to no other participant", "  ")]
    else:
        lines = [paragraph(f"{person['person_id']} is one person under the labels {', '.join(others)}", "  ", "    ")]
        lines.append(paragraph(f"why: {_LINKS.get(str(person['link_rule']), str(person['link_rule']))}", "  ", "    "))
    if person["computed"]:
        lines.append("  (within this cohort only: `harmonize` has not run here)")
    return lines


_LINKS = {
    "oasis1_oasis2_equal_records": "OASIS-1 and OASIS-2 describe a visit with equal sex, age, intracranial volume, "
    "MMSE and CDR, and no other visit fits (oasis1_oasis2_equal_records)",
    "equal_voxels": "two images have the same voxels (equal_voxels)",
}


def _normalization_lines(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["  not run yet (stage normalize)"]
    words = str(row["verdict"])
    if row.get("reason"):
        words += f": {row['reason']}" + (f" ({row['detail']})" if row.get("detail") else "")
    lines = [paragraph(words, "  ", "    ")]
    if row.get("reason"):
        explanation = explain_reason(str(row["reason"]))
        lines += [paragraph(explanation.meaning, "    "), paragraph(explanation.remedy, "    ")]
    facts = [f"{name} {row[name]}" for name in ("method", "local_correlation", "brain_ml") if row.get(name) is not None]
    if facts:
        lines.append(paragraph(", ".join(facts), "  ", "    "))
    if row.get("path"):
        lines.append(paragraph(f"{row['path']}  sha256 {str(row.get('sha256'))[:16]}", "  ", "    "))
    return lines


def _split_lines(split: Mapping[str, Any] | None) -> list[str]:
    if split is None:
        return ["  not run yet (stage split)"]
    lines = [labelled("split", f"{split['split']}: {split['why']}")]
    if split["split"] is not None:
        names = ", ".join(split["benchmarks"]) or "none"
        lines.append(labelled("benchmark", f"{names}: {split['benchmark_why']}"))
    return lines


def issue_lines(issues: list[dict[str, Any]]) -> list[str]:
    """Quarantine rows for a terminal: reason, what happened, meaning, place."""
    if not issues:
        return ["  none"]
    lines = []
    for issue in issues:
        what = SEVERITY_WORDS.get(Severity(issue["severity"]), issue["severity"])
        where = " ".join(
            part
            for part in (
                f"visit {issue['visit_code']}" if issue["visit_code"] else "",
                f"column {issue['column']}" if issue["column"] else "",
                _place(issue["file"], issue["row"], short=False),
            )
            if part
        )
        lines.append(paragraph(f"{issue['reason']} ({issue['level']}; {what}): {issue['detail']}", "  ", "    "))
        if where:
            lines.append(paragraph(where, "    ", "      "))
        lines.append(paragraph(f"means: {issue['meaning']}", "    ", "      "))
    return lines


def to_json(answer: Any) -> str:
    """An answer as JSON."""
    return json.dumps(answer, indent=2, ensure_ascii=False, default=plain)


def open_results(folder: str | None) -> Results:
    """The tables of ``--data`` (default: ``data`` here)."""
    return Results(Path(folder or "data"))
