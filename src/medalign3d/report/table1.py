"""Table 1 straight from a harmonized table, in either form, with what the authors reported as a block of its own.

The numbers are counts of rows. In the form ``clean`` a row is an acquired scan; in ``table1_emulation`` it is what the
published table counted (derived files, repeats, every file of a NACC session, one row per matching visit), so that the
two can be compared. Unlike :func:`medalign3d.report.tables.table1` it needs neither splits nor volumes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medalign3d.published_table1 import ADNI_MALE_CORRECTED, CDR_COLUMN, PUBLISHED, PUBLISHED_IMAGES, PublishedCohort
from medalign3d.report.provenance import SIMULATED_WORDS
from medalign3d.report.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

MISSING = "–"
FORMS = {
    "clean": "one row per acquired scan",
    "table1_emulation": "rows counted as the published table counted them",
}
FIELDS = {
    "education": "images with education",
    "ses": "images with socioeconomic status",
    "mmse": "images with MMSE",
    "cdr": 'images with "CDR" as published',
    "cdr_global": "images with global CDR",
    "cdr_sb": "images with CDR sum of boxes",
    "logical_memory": "images with logical memory (delayed)",
}
_DIAGNOSIS_WORDS = {"CN": "NC", "HC": "NC", "Dementia": "AD", "sMCI": "SMCI", "pMCI": "PMCI"}
_DIAGNOSIS_ORDER = ("NC", "Non-DEM", "IMCI", "MCI", "AD", "DEM", "EMCI", "LMCI", "SMCI", "PMCI")


def diagnosis_counts(rows: pd.DataFrame) -> dict[str, int]:
    """Images of each diagnosis in the published words; ADNI's MCI also by stage (E/LMCI) and course (S/PMCI)."""
    columns = ["dx_native"]
    if (rows["dataset"] == "ADNI").all():
        columns += ["mci_stage", "mci_course"]
    counts: dict[str, int] = {}
    for column in columns:
        for word, number in rows[column].dropna().value_counts().items():
            name = _DIAGNOSIS_WORDS.get(str(word), str(word))
            counts[name] = counts.get(name, 0) + int(number)
    order = {name: place for place, name in enumerate(_DIAGNOSIS_ORDER)}
    return {name: counts[name] for name in sorted(counts, key=lambda item: (order.get(item, len(order)), item))}


def table1_counts(images: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The numbers of Table 1 for every cohort, in the order of the table's rows.

    Parameters
    ----------
    images
        A harmonized table.

    Returns
    -------
    dict
        Cohort -> ``images``, ``acquisitions`` (rows that are no variant of another row), ``selected``, ``people``,
        ``female``, ``male``, ``age_min`` and ``age_max`` (completed years, None where no age is known), one count for
        each of :data:`FIELDS`, and ``diagnoses`` (name -> count).
    """
    result: dict[str, dict[str, Any]] = {}
    for dataset in images["dataset"].drop_duplicates():
        rows = images[images["dataset"] == dataset]
        ages = rows["age_years"].dropna()
        result[str(dataset)] = {
            "images": len(rows),
            "acquisitions": int((~rows["variant_of"].isin(rows["image_id"])).sum()),
            "selected": int(rows["selected"].sum()),
            "people": int(rows["person_id"].nunique()),
            "female": int((rows["sex"] == "F").sum()),
            "male": int((rows["sex"] == "M").sum()),
            "age_min": int(ages.min()) if len(ages) else None,
            "age_max": int(ages.max()) if len(ages) else None,
            "education": int((rows["educ_years"].notna() | rows["educ_code"].notna()).sum()),
            "ses": int(rows["ses"].notna().sum()),
            "mmse": int(rows["mmse"].notna().sum()),
            "cdr": int(rows[CDR_COLUMN.get(str(dataset), "cdr_global")].notna().sum()),
            "cdr_global": int(rows["cdr_global"].notna().sum()),
            "cdr_sb": int(rows["cdr_sb"].notna().sum()),
            "logical_memory": int(rows["lm_delayed"].notna().sum()),
            "diagnoses": diagnosis_counts(rows),
        }
    return result


def table1_of(
    images: pd.DataFrame,
    *,
    form: str,
    simulated: bool,
    images_read: bool = True,
    minimum_cell: int = 1,
    commit: str = "",
) -> Table:
    """Make Table 1.

    Parameters
    ----------
    images
        A harmonized table.
    form
        ``clean`` or ``table1_emulation``.
    simulated
        Whether the people are simulated: said in the title, the column names and the notes.
    images_read
        Whether images were opened; said in the notes when not.
    minimum_cell
        Counts from 1 to ``minimum_cell - 1`` are suppressed, and the age range of so few people.
    commit
        Of the program, for the last line.
    """
    counted = table1_counts(images)
    names = {cohort: f"SIM-{cohort}" if simulated else cohort for cohort in counted}
    header = ["", *names.values(), "all"]
    rows: list[list[str]] = []
    tidy: list[dict[str, Any]] = []

    def add(label: str, cells: Mapping[str, str], total: str, block: str) -> None:
        rows.append([label, *(cells.get(cohort, MISSING) for cohort in counted), total])
        # What the authors reported is about the real cohorts, whoever is counted beside it.
        made: dict[str, Any] = {"form": "", "simulated": False, "images_read": ""}
        if block == "counted":
            made = {"form": form, "simulated": simulated, "images_read": images_read}
        for cohort in counted:
            shown = cohort if block == "reported" else names[cohort]
            value = cells.get(cohort, MISSING)
            tidy.append({"block": block, "quantity": label, "cohort": shown, "value": value, **made})
        if total:
            tidy.append({"block": block, "quantity": label, "cohort": "all", "value": total, **made})

    def number(value: int) -> str:
        return f"<{minimum_cell}" if 0 < value < minimum_cell else f"{value:,}"

    def plain(label: str, name: str) -> None:
        values = {cohort: values[name] for cohort, values in counted.items()}
        # A total beside one suppressed count would give it away.
        hidden = sum(0 < value < minimum_cell for value in values.values()) == 1
        shown = "suppressed" if hidden else number(sum(values.values()))
        add(label, {cohort: number(value) for cohort, value in values.items()}, shown, "counted")

    plain("images", "images")
    plain("of them no variant or repeat of another row", "acquisitions")
    if form == "clean":
        plain("of them taking part (one per visit)", "selected")
    people = {cohort: number(values["people"]) for cohort, values in counted.items()}
    add("people", people, number(int(images["person_id"].nunique())), "counted")
    pairs = {cohort: _pair(v["female"], v["male"], minimum_cell) for cohort, v in counted.items()}
    women, men = (sum(values[name] for values in counted.values()) for name in ("female", "male"))
    add("women / men (images)", pairs, _pair(women, men, minimum_cell), "counted")
    ages = {
        cohort: MISSING if values["age_min"] is None or values["people"] < minimum_cell
        else f"{values['age_min']}–{values['age_max']}"
        for cohort, values in counted.items()
    }  # fmt: skip
    add("age, range (years)", ages, "", "counted")
    for name, label in FIELDS.items():
        plain(label, name)
    diagnoses = {
        cohort: ", ".join(f"{dx} {number(n)}" for dx, n in values["diagnoses"].items()) or MISSING
        for cohort, values in counted.items()
    }
    add("diagnoses (images)", diagnoses, "", "counted")

    sections = {0: "SIMULATED people, counted here" if simulated else "Counted here"}
    reported = {cohort: PUBLISHED[cohort] for cohort in counted if cohort in PUBLISHED}
    if reported:
        sections[len(rows)] = "Real cohorts as reported by the authors (not measured here)"
        for label, cells, total in _reported(reported):
            add(label, cells, total, "reported")

    notes = [f"{SIMULATED_WORDS}."] if simulated else []
    notes.append(f"Form {form}: {FORMS[form]}.")
    if form == "table1_emulation":
        notes.append(
            "The images are not independent: they are "
            f"{number(int(images['person_id'].nunique()))} people, and an effective sample is nearer to the people "
            "than to the images. In NACC every file of a session counts, T1-weighted or not. These rows are for "
            "comparing counts; models are never trained or evaluated on them."
        )
    if "ADNI" in reported:
        adni = reported["ADNI"]
        share = adni.female / (adni.female + adni.male)
        notes.append(
            f"ADNI as reported: women and men add up to {adni.female + adni.male:,}, 100 more than the {adni.images:,} "
            "images. One figure is a misprint; the images agree with the reported total. Taking the men for it (one "
            f"digit: {ADNI_MALE_CORRECTED:,} for {adni.male:,}) gives {100 * adni.female / adni.images:.1f} % women, "
            f"beside {100 * share:.1f} % of the figures as printed."
        )
    notes.append(
        '"CDR" as published is two scales under one name: the sum of boxes (0-18) in NACC, the global rating (0-3) '
        "elsewhere. They are separate columns here."
    )
    if not images_read:
        notes.append("Images were not opened: damaged, empty or duplicated ones are counted.")
    notes.append(f"{len(images):,} rows; commit {commit[:12] or 'unknown'}.")
    frame = _frame(tidy)
    title = f"Table 1. Cohorts, form {form}" + (" (SIMULATED people)" if simulated else "")
    return Table(f"table1_{form.removeprefix('table1_')}", title, header, rows, frame, sections, notes)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows).astype(object)


def _pair(first: int, second: int, minimum: int) -> str:
    """Two counts of a shown total: both are suppressed when one is."""
    if any(0 < value < minimum for value in (first, second)):
        return "suppressed"
    return f"{first:,} / {second:,}"


def _reported(cohorts: Mapping[str, PublishedCohort]) -> list[tuple[str, dict[str, str], str]]:
    """The authors' own figures: label, cell by cohort, total (only of the images, which they give)."""

    def cells(name: str) -> dict[str, str]:
        values = {cohort: getattr(figures, name) for cohort, figures in cohorts.items()}
        return {cohort: MISSING if value is None else f"{value:,}" for cohort, value in values.items()}

    return [
        ("images", cells("images"), f"{PUBLISHED_IMAGES:,}" if len(cohorts) == len(PUBLISHED) else ""),
        ("women / men (images)", {c: f"{f.female:,} / {f.male:,}" for c, f in cohorts.items()}, ""),
        ("age, range (years)", {c: f"{f.age_min}–{f.age_max}" for c, f in cohorts.items()}, ""),
        (FIELDS["education"], cells("education"), ""),
        (FIELDS["ses"], cells("ses"), ""),
        (FIELDS["mmse"], cells("mmse"), ""),
        (FIELDS["cdr"], cells("cdr"), ""),
        (FIELDS["logical_memory"], cells("logical_memory"), ""),
        ("diagnoses", {c: ", ".join(f.diagnoses) for c, f in cohorts.items()}, ""),
    ]
