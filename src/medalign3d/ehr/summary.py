"""What each cohort has: people, images, ages, and how many images carry each clinical value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medalign3d.ehr.questions import QUESTIONS

if TYPE_CHECKING:
    import pandas as pd

SUMMARY_COLUMNS = (
    "dataset", "persons", "images", "female", "male", "age_min", "age_max", "with_education", "with_ses", "with_mmse",
    "with_cdr", "with_logical_memory", "diagnoses", "unlabelled",
)  # fmt: skip
SUPPRESSED = "suppressed"

_COUNTS: Mapping[str, tuple[str, ...]] = {
    "with_education": ("educ_years", "educ_code"),
    "with_ses": ("ses",),
    "with_mmse": ("mmse",),
    "with_cdr": ("cdr_global", "cdr_sb"),
    "with_logical_memory": ("lm_immediate", "lm_delayed"),
}


def _diagnoses(rows: pd.DataFrame) -> dict[str, int]:
    """The classes with their counts: dx3, or dx2 where most people with a label have no dx3; MCI stages beside."""
    labelled = rows["dx3"].notna() | rows["dx2"].notna()
    column = "dx3" if int(rows["dx3"].notna().sum()) * 2 >= int(labelled.sum()) else "dx2"
    order = {
        code: position
        for position, code in enumerate(
            (*QUESTIONS["diagnosis_nc_mci_ad"].answers, *QUESTIONS["diagnosis_dem_nondem"].answers)
        )
    }
    counts = {str(code): int(n) for code, n in rows[column].value_counts().items()}
    result = {code: counts[code] for code in sorted(counts, key=lambda item: order.get(item, len(order)))}
    for extra in ("mci_stage", "mci_course"):
        if extra in rows and column == "dx3":
            result |= {str(code): int(n) for code, n in rows[extra].value_counts().sort_index().items()}
    return result


def cohort_summary(images: pd.DataFrame, *, minimum_cell: int = 1, selected_only: bool = True) -> pd.DataFrame:
    """Summarise each cohort.

    Parameters
    ----------
    images
        The harmonized table.
    minimum_cell
        Counts from 1 to ``minimum_cell - 1`` are replaced by ``suppressed``; when one sex is, the other one is too,
        since it would follow from the total. The age range of so few people is suppressed as well. 0 is printed.
    selected_only
        Leave out images that do not take part.

    Returns
    -------
    DataFrame
        One row per cohort in the order of the table, and a last row ``all``; counts are numbers or ``suppressed``,
        ``diagnoses`` is text such as ``NC 120, MCI 98, AD_DEM 51``. Ages are whole years.
    """
    import pandas as pd

    if selected_only and "selected" in images:
        images = images[images["selected"].astype(bool)]
    parts: list[tuple[str, pd.DataFrame]] = [
        (str(name), images[images["dataset"] == name]) for name in images["dataset"].drop_duplicates()
    ]
    if len(parts) > 1:
        parts.append(("all", images))

    def shown(count: int) -> Any:
        return SUPPRESSED if 0 < count < minimum_cell else count

    rows: list[dict[str, Any]] = []
    for name, own in parts:
        female, male = shown(int((own["sex"] == "F").sum())), shown(int((own["sex"] == "M").sum()))
        if SUPPRESSED in (female, male):
            female = male = SUPPRESSED
        ages = own["age_years"].astype("float64").dropna()
        persons = int(own["person_id"].nunique())
        ages_shown = len(ages) > 0 and own.loc[ages.index, "person_id"].nunique() >= minimum_cell
        classes = _diagnoses(own)
        row: dict[str, Any] = {
            "dataset": name,
            "persons": shown(persons),
            "images": shown(len(own)),
            "female": female,
            "male": male,
            "age_min": int(ages.min()) if ages_shown else (SUPPRESSED if len(ages) else None),
            "age_max": int(ages.max()) if ages_shown else (SUPPRESSED if len(ages) else None),
        }
        for column, sources in _COUNTS.items():
            row[column] = shown(int(own[[source for source in sources if source in own]].notna().any(axis=1).sum()))
        row["diagnoses"] = ", ".join(f"{code} {shown(count)}" for code, count in classes.items())
        row["unlabelled"] = shown(int((own["dx3"].isna() & own["dx2"].isna()).sum()))
        rows.append(row)
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
