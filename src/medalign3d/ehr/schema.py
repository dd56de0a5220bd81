"""The one schema of harmonized images: what each column means, its unit, and what it may hold.

One row per accepted image. In memory, closed vocabularies are text and maps are JSON text with sorted keys; files hold
real dictionaries and maps (:mod:`medalign3d.ehr.storage`). Columns that a later stage knows (the normalized volume, the
split) are part of the schema but not of the table that ``harmonize`` writes: they stand in ``data/volumes`` and
``data/splits``.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medalign3d.ehr.values import is_missing, mapping_or_empty, number_or_none, text_or_none
from medalign3d.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MAXIMUM_LISTED_VIOLATIONS = 60
AGE_TOLERANCE_YEARS = 1.0


@dataclass(frozen=True)
class Column:
    """One column.

    Parameters
    ----------
    name, dtype, unit, doc
        ``dtype`` is one of string, dictionary (closed vocabulary), float32, int8, int32, bool, date32, list<int32>,
        list<float32>, list<string>, map<string,float32>, map<string,int8>.
    nullable
        Whether a value may be missing.
    allowed
        The closed vocabulary of a dictionary column, or the grid of a number column.
    low, high, step
        Range and grid of a number column.
    stage
        The stage that knows the column: ``harmonize``, ``normalize`` or ``split``.
    needs_voxels
        A fact about the voxels: missing in every row where images were not read (``ingest.read_images: false``), and
        only there.
    """

    name: str
    dtype: str
    doc: str
    unit: str = ""
    nullable: bool = True
    allowed: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    stage: str = "harmonize"
    needs_voxels: bool = False

    @property
    def numeric(self) -> bool:
        """Whether the column holds single numbers."""
        return self.dtype in ("float32", "int8", "int32")

    def accepts(self, value: Any) -> bool:
        """Whether a single, already coerced value is within the vocabulary, range and grid (missing counts as fine)."""
        if is_missing(value):
            return True
        if self.dtype == "dictionary":
            return not self.allowed or str(value) in self.allowed
        if self.numeric:
            number = float(value)
            if self.allowed and not any(abs(number - float(item)) < 1e-6 for item in self.allowed):
                return False
            if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
                return False
            return self.step is None or abs(number / self.step - round(number / self.step)) < 1e-4
        return True


_SOURCES = ("measured", "crosswalk", "carried")

IMAGE_COLUMNS: tuple[Column, ...] = (
    Column(
        "image_id", "string", "primary key: first 16 hex digits of SHA-1 of cohort and native image key", nullable=False
    ),
    Column(
        "dataset", "dictionary", "cohort", nullable=False, allowed=("ADNI", "NACC", "OASIS", "AIBL", "MIRIAD", "IXI")
    ),
    Column("release", "string", "ADNI phase, data freeze, OASIS-1/2/3, or name of the extract", nullable=False),
    Column("participant_id", "string", "BIDS participant label, sub-...", nullable=False),
    Column(
        "person_id",
        "string",
        "the participant, or the person that several participant labels share; the key of splits",
        nullable=False,
    ),
    Column("native_subject_id", "string", "the custodian's participant id", nullable=False),
    Column("session_id", "string", "BIDS session label, ses-...", nullable=False),
    Column("run", "int8", "repeat within the session, from 1", nullable=False, low=1),
    Column("native_image_key", "string", "the custodian's key of the image", nullable=False),
    Column(
        "variant",
        "dictionary",
        "what kind of file it is",
        nullable=False,
        allowed=("raw", "averaged", "processed", "derived"),
    ),
    Column(
        "variant_of", "string", "image_id of the acquisition that a derived file, or a row that repeats it, comes from"
    ),
    Column(
        "selected", "bool", "whether the image takes part (one per visit, unless all are asked for)", nullable=False
    ),
    Column("source_path", "string", "file or series folder, relative to the cohort's folder", nullable=False),
    Column(
        "source_format",
        "dictionary",
        "file format",
        nullable=False,
        allowed=("dicom", "nifti", "analyze", "nifti_pair"),
    ),
    Column(
        "source_sha256", "string", "hash of the sorted hashes of the source files", nullable=False, needs_voxels=True
    ),
    Column("data_sha256", "string", "hash of the voxel array", nullable=False, needs_voxels=True),
    Column("norm_path", "string", "normalized volume", stage="normalize"),
    Column("norm_sha256", "string", "hash of the normalized volume", stage="normalize"),
    Column("shape", "list<int32>", "native voxels along each axis", "voxels", nullable=False, needs_voxels=True),
    Column("zooms", "list<float32>", "native voxel size along each axis", "mm", nullable=False, needs_voxels=True),
    Column("orientation", "string", "native axis codes, e.g. RAS", nullable=False, needs_voxels=True),
    Column(
        "affine_source",
        "dictionary",
        "whether the header's orientation was trusted",
        nullable=False,
        needs_voxels=True,
        allowed=("header", "assumed"),
    ),
    Column("field_strength_t", "float32", "scanner field strength", "T", low=0.01, high=12),
    Column("manufacturer", "string", "scanner manufacturer"),
    Column("scanner_model", "string", "scanner model"),
    Column("series_description", "string", "the sequence's name; never printed in the record text"),
    Column(
        "selection_rank", "int8", "rank of the chosen series among the visit's candidates, 1 is the preferred", low=0
    ),
    Column("qc_score", "float32", "custodian's image quality score"),
    Column("scan_date", "date32", "date of the scan where the custodian gives one"),
    Column("scan_day", "int32", "days from the person's first known event", "days"),
    Column("visit_code", "string", "native code of the matched visit"),
    Column("visit_month", "float32", "matched visit, months from baseline", "months"),
    Column("match_delta_days", "int32", "scan minus visit", "days"),
    Column(
        "match_method",
        "dictionary",
        "how scan and visit were matched",
        nullable=False,
        allowed=("exact_label", "date_nearest", "ida_visit", "file_name", "calendar"),
    ),
    Column("sex", "dictionary", "sex", nullable=False, allowed=("F", "M")),
    Column("age_years", "float32", "age at the scan", "years", low=15, high=110),
    Column("age_precision", "dictionary", "how exactly the age is known", allowed=("day", "month", "year", "integer")),
    Column("educ_years", "float32", "education", "years", low=0, high=36),
    Column("educ_code", "int8", "education: 1 below 12 years, 2: 12, 3: 13-15, 4: 16, 5: 17 and more", low=1, high=5),
    Column("ses", "int8", "Hollingshead socioeconomic level, 1 is the highest", low=1, high=5),
    Column("handedness", "dictionary", "handedness", allowed=("R", "L", "A")),
    Column("mmse", "float32", "Mini-Mental State Examination", "points of 30", low=0, high=30, step=1),
    Column("mmse_source", "dictionary", "where the MMSE comes from", allowed=_SOURCES),
    Column("mmse_age_days", "float32", "age of a carried MMSE at the visit", "days"),
    Column("moca", "float32", "Montreal Cognitive Assessment", "points of 30", low=0, high=30),
    Column("cdr_global", "float32", "Clinical Dementia Rating, global", allowed=(0, 0.5, 1, 2, 3)),
    Column("cdr_sb", "float32", "Clinical Dementia Rating, sum of boxes", "points of 18", low=0, high=18, step=0.5),
    Column("cdr_global_source", "dictionary", "where the global CDR comes from", allowed=_SOURCES),
    Column("cdr_global_age_days", "float32", "age of a carried global CDR at the visit", "days"),
    Column("cdr_sb_source", "dictionary", "where the sum of boxes comes from", allowed=_SOURCES),
    Column("cdr_sb_age_days", "float32", "age of a carried sum of boxes at the visit", "days"),
    Column("lm_immediate", "float32", "logical memory, immediate recall", "points of 25", low=0, high=25),
    Column("lm_delayed", "float32", "logical memory, delayed recall", "points of 25", low=0, high=25),
    Column("lm_source", "dictionary", "where the logical memory scores come from", allowed=_SOURCES),
    Column("lm_age_days", "float32", "age of carried logical memory scores at the visit", "days"),
    Column("gds", "float32", "Geriatric Depression Scale", "points of 15", low=0, high=15),
    Column("faq", "float32", "Functional Activities Questionnaire", "points of 30", low=0, high=30),
    Column("apoe_genotype", "dictionary", "APOE alleles, sorted", allowed=("22", "23", "24", "33", "34", "44")),
    Column("apoe4_count", "int8", "number of APOE e4 alleles", low=0, high=2),
    Column("hippocampus_mm3", "float32", "hippocampus, both sides, from the custodian", "mm3", low=500, high=15e3),
    Column("ventricles_mm3", "float32", "ventricles, from the custodian", "mm3", low=1e3, high=250e3),
    Column("brain_mm3", "float32", "whole brain, from the custodian", "mm3", low=5e5, high=1.8e6),
    Column("icv_mm3", "float32", "intracranial volume, from the custodian", "mm3", low=8e5, high=2.4e6),
    Column("volume_source", "string", "software of the custodian's volumes"),
    Column("labs", "map<string,float32>", "laboratory results by canonical name", nullable=False),
    Column("history", "map<string,int8>", "medical history by canonical name, 0 absent, 1 present", nullable=False),
    Column("dx_native", "string", "diagnosis at the matched visit in the cohort's own words"),
    Column("dx_subject_level", "string", "enrolment or study group; never a visit's diagnosis"),
    Column(
        "dx3", "dictionary", "normal cognition, mild cognitive impairment, dementia", allowed=("NC", "MCI", "AD_DEM")
    ),
    Column("dx2", "dictionary", "dementia or not; OASIS by global CDR", allowed=("NonDEM", "DEM")),
    Column("mci_stage", "dictionary", "early or late MCI", allowed=("EMCI", "LMCI")),
    Column(
        "mci_course",
        "dictionary",
        "stable or progressive MCI over 36 months (looks into the future)",
        allowed=("sMCI", "pMCI"),
    ),
    Column(
        "mci_course_reason",
        "dictionary",
        "why the course is undecided",
        allowed=("censored_lt_36m", "late_converter", "reverted_to_cn", "unstable_conversion"),
    ),
    Column("days_to_dementia", "int32", "matched visit to the first later dementia", "days", low=0),
    Column("followup_days", "int32", "matched visit to the last later diagnosis", "days", low=0),
    Column("dementia_etiology", "dictionary", "cause of the dementia", allowed=("AD", "other", "unknown")),
    Column(
        "split",
        "dictionary",
        "train, val, test, fold, zeroshot or excluded",
        nullable=False,
        stage="split",
        allowed=("train", "val", "test", "fold", "zeroshot", "excluded"),
    ),
    Column("benchmark", "list<string>", "benchmarks that the image belongs to", nullable=False, stage="split"),
    Column("ehr_text", "string", "the full record as text, without any diagnosis"),
    Column("ehr_fields", "list<string>", "the fields that the text prints"),
    Column("ehr_template", "string", "template and version of the text"),
    Column("provenance", "string", "JSON: source file, row and rule of each value and label", nullable=False),
)

HARMONIZED_COLUMNS: tuple[Column, ...] = tuple(column for column in IMAGE_COLUMNS if column.stage == "harmonize")
COLUMN_BY_NAME: dict[str, Column] = {column.name: column for column in IMAGE_COLUMNS}

SOURCES: dict[str, str] = {
    "release": "ADNI COLPROT; NACC freeze; OASIS-1/2/3; AIBL extract",
    "native_subject_id": "ADNI PTID; NACC NACCID; OASIS id; AIBL RID; MIRIAD miriad_###",
    "native_image_key": "ADNI, AIBL image number; NACC NACCMRFI and file; OASIS, MIRIAD session and scan",
    "field_strength_t": "ADNI XML, MPRAGEMETA; NACC MRIFIELD; OASIS-1/2 1.5; OASIS-3 json; AIBL table; MIRIAD 1.5",
    "qc_score": "ADNI series_quality: 1 best, 4 unusable",
    "selection_rank": "order of preference within the session",
    "scan_date": "ADNI, NACC, AIBL; never OASIS or MIRIAD",
    "scan_day": "OASIS-2 MR Delay; OASIS-3 d####; MIRIAD week table; else from dates",
    "visit_code": "ADNI VISCODE2; NACC NACCVNUM; OASIS MR1, d0129; AIBL VISCODE; MIRIAD 01",
    "sex": "ADNI PTGENDER; NACC SEX; OASIS M/F, GENDER; AIBL PTGENDER; MIRIAD file name",
    "educ_years": "ADNI PTEDUCAT; NACC EDUC; OASIS-2 EDUC; OASIS-3 EDUC",
    "educ_code": "OASIS-1 Educ; others from years",
    "ses": "OASIS-1/2/3 SES",
    "handedness": "ADNI PTHAND; NACC HANDED; OASIS Hand",
    "mmse": "ADNI MMSE, MMSCORE; NACC NACCMMSE; OASIS MMSE; AIBL MMSCORE; MIRIAD MMSE",
    "moca": "ADNI MOCA; NACC NACCMOCA",
    "cdr_global": "ADNI CDGLOBAL; NACC CDRGLOB; OASIS CDR, CDRTOT; AIBL CDGLOBAL; MIRIAD CDR",
    "cdr_sb": "ADNI CDRSB; NACC CDRSUM; OASIS-3 CDRSUM; MIRIAD where given",
    "lm_immediate": "ADNI LIMMTOTAL; NACC LOGIMEM; AIBL LIMMTOTAL; OASIS-3 LOGIMEM",
    "lm_delayed": "ADNI LDELTOTAL; NACC MEMUNITS; AIBL LDELTOTAL; OASIS-3 MEMUNITS",
    "gds": "ADNI GDSCALE GDTOTAL; NACC NACCGDS",
    "faq": "ADNI FAQ",
    "apoe_genotype": "ADNI GENOTYPE or APGEN1/2; NACC NACCAPOE; OASIS-3 APOE; AIBL APGEN1/2",
    "apoe4_count": "ADNI APOE4; others from the genotype; NACC NACCNE4S",
    "hippocampus_mm3": "ADNI Hippocampus; NACC HIPPOVOL x 1000",
    "ventricles_mm3": "ADNI Ventricles; NACC LATVENT x 1000",
    "brain_mm3": "ADNI WholeBrain; NACC NACCBRNV x 1000; OASIS-1/2 nWBV x eTIV x 1000",
    "icv_mm3": "ADNI ICV; NACC NACCICV x 1000; OASIS-1/2 eTIV x 1000",
    "labs": "ADNI, AIBL LABDATA",
    "history": "NACC UDS; AIBL medhist",
    "dx_native": "ADNI DX, DXSUM; NACC NACCUDSD; OASIS CDR or UDS form; AIBL DXCURREN; MIRIAD group",
    "dx_subject_level": "ADNI DX_bl; OASIS-2 Group; MIRIAD group",
    "dx3": "label rules (label_rules.md)",
    "dx2": "label rules (label_rules.md)",
    "mci_stage": "label rules; ADNI",
    "mci_course": "label rules; ADNI, NACC, OASIS-3, AIBL",
    "dementia_etiology": "NACC NACCALZD; OASIS-3 UDS form",
}
"""Column to where its values come from, by cohort; columns that are not listed are the project's own."""

_VISIT_NAMES = (
    "sex", "age_years", "age_precision", "educ_years", "educ_code", "ses", "handedness", "mmse", "mmse_source", "moca",
    "cdr_global", "cdr_sb", "cdr_global_source", "cdr_sb_source", "lm_immediate", "lm_delayed", "lm_source", "gds",
    "faq", "apoe_genotype", "apoe4_count", "hippocampus_mm3", "ventricles_mm3", "brain_mm3", "icv_mm3",
    "volume_source", "labs", "history", "dx_native", "dx_subject_level", "dx3", "dx2", "dementia_etiology",
    "provenance",
)  # fmt: skip
VISIT_COLUMNS: tuple[Column, ...] = (
    *(COLUMN_BY_NAME[name] for name in ("dataset", "native_subject_id", "participant_id")),
    Column("visit_code", "string", "native code of the visit"),
    Column("visit_month", "float32", "months from baseline", "months"),
    Column("visit_date", "date32", "date of the visit where the custodian gives one"),
    Column("visit_day", "int32", "days from the person's first known event", "days"),
    *(
        replace(COLUMN_BY_NAME[name], nullable=not COLUMN_BY_NAME[name].dtype.startswith("map"))
        for name in _VISIT_NAMES
    ),
)
"""Columns of ``visits.parquet``: every clinical visit, also those without an image."""

SESSION_KEY: tuple[str, ...] = ("participant_id", "session_id", "run", "variant")
"""What tells images of one participant apart."""

SOURCED_VALUES: dict[str, tuple[str, ...]] = {
    "mmse_source": ("mmse",),
    "cdr_global_source": ("cdr_global",),
    "cdr_sb_source": ("cdr_sb",),
    "lm_source": ("lm_immediate", "lm_delayed"),
}
"""Column that says where values come from -> the values."""

INGEST_REQUIRED: tuple[str, ...] = (
    "image_id", "participant_id", "native_subject_id", "session_id", "native_image_key", "source_path", "source_format",
    "data_sha256", "sex",
)  # fmt: skip
"""Columns without which a cohort's table of images cannot be harmonized."""


def _date_or_none(value: Any) -> datetime.date | None:
    if is_missing(value):
        return None
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(str(value)[:10])
    except ValueError:
        return None


def _json_map(value: Any) -> str:
    numbers = {name: number_or_none(item) for name, item in mapping_or_empty(value).items()}
    return json.dumps({name: numbers[name] for name in sorted(numbers) if numbers[name] is not None})


def coerce_column(values: pd.Series, column: Column) -> pd.Series:
    """``values`` in the storage type of ``column``; what cannot be read as such becomes missing."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    if column.dtype in ("string", "dictionary"):
        return pd.Series([text_or_none(value) for value in values], index=values.index, dtype="str")
    if column.dtype == "float32":
        return pd.Series([number_or_none(value) for value in values], index=values.index, dtype="float32")
    if column.dtype in ("int8", "int32"):
        limit = 127 if column.dtype == "int8" else 2**31 - 1
        numbers = [number_or_none(value) for value in values]
        whole = [None if n is None or abs(n) > limit else round(n) for n in numbers]
        return pd.Series(pd.array(whole, dtype="Int8" if column.dtype == "int8" else "Int32"), index=values.index)
    if column.dtype == "bool":
        # Absent means that nothing was deselected.
        flags = [True if is_missing(v) else str(v).strip().lower() in ("true", "1", "1.0") for v in values]
        return pd.Series(flags, index=values.index, dtype=bool)
    if column.dtype == "date32":
        dates = [_date_or_none(value) for value in values]
        return pd.Series(dates, index=values.index, dtype=pd.ArrowDtype(pa.date32()))
    if column.dtype.startswith("map"):
        return pd.Series([_json_map(value) for value in values], index=values.index, dtype="str")
    kind = {"list<int32>": np.int32, "list<float32>": np.float32}.get(column.dtype)
    lists: list[Any] = []
    for value in values:
        items = _items(value)
        if items is None:
            lists.append(None)
        else:
            lists.append([str(item) for item in items] if kind is None else np.asarray(items, dtype=kind))
    result = pd.Series(index=values.index, dtype=object)
    result[:] = pd.Series(lists, index=values.index, dtype=object)
    return result


def _items(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, (list, tuple)) else None


def coerce_images(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with exactly the columns of the harmonized schema, in order and in their storage types.

    Absent columns become missing; columns that the schema does not know are left out (they stay in the cohort's own
    table).
    """
    return coerce(table, HARMONIZED_COLUMNS)


def coerce(table: pd.DataFrame, columns: Iterable[Column]) -> pd.DataFrame:
    """``table`` with exactly ``columns``, in order and in their storage types; absent ones become missing."""
    import pandas as pd

    result = {}
    for column in columns:
        values = table[column.name] if column.name in table else pd.Series(None, index=table.index, dtype=object)
        result[column.name] = coerce_column(values, column)
    return pd.DataFrame(result, index=table.index)


def _agree(table: pd.DataFrame) -> pd.Series:
    """dx3 and dx2 say the same wherever both are there; in OASIS dx2 follows the CDR and may differ."""
    expected = table["dx3"].map({"NC": "NonDEM", "MCI": "NonDEM", "AD_DEM": "DEM"})
    both = table["dx3"].notna() & table["dx2"].notna() & (table["dataset"] != "OASIS")
    return ~both | (expected == table["dx2"])


def _sources_stand_with_values(table: pd.DataFrame) -> pd.Series:
    """Per row: whether each ``*_source`` is there exactly where one of its values is."""
    import pandas as pd

    result = pd.Series(True, index=table.index)
    for source, values in SOURCED_VALUES.items():
        result &= table[source].notna() == table[list(values)].notna().any(axis=1)
    return result


def _constant(table: pd.DataFrame, column: str) -> pd.Series:
    # By participant: records of linked participants come from different custodians and are compared, not refused.
    return table.groupby("participant_id")[column].transform("nunique") <= 1


def age_goes_forward(table: pd.DataFrame) -> pd.Series:
    """Per row: whether the participant's ages do not fall over time by more than a year (the tolerance)."""
    import pandas as pd

    dates = pd.to_datetime(table["scan_date"].astype("str"), errors="coerce")
    days = {
        "scan_day": table["scan_day"].astype("float64"),
        "scan_date": (dates - pd.Timestamp(0)) / pd.Timedelta(days=1),
    }
    result = pd.Series(True, index=table.index)
    # The two scales have different origins: each is looked at by itself.
    for day in days.values():
        known = pd.DataFrame(
            {"participant": table["participant_id"], "day": day, "age": table["age_years"].astype("float64")}
        ).dropna()
        ordered = known.sort_values(["participant", "day"], kind="stable")
        oldest = ordered.groupby("participant")["age"].cummax()
        fallen = ordered.loc[ordered["age"] < oldest - AGE_TOLERANCE_YEARS, "participant"].unique()
        result &= ~table["participant_id"].isin(fallen)
    return result


def validate_images(table: pd.DataFrame, *, images_read: bool = True) -> None:
    """Check a harmonized table of images against the schema.

    Parameters
    ----------
    table
        The table.
    images_read
        Whether images were opened; when not, facts about voxels must be missing.

    Raises
    ------
    InputError
        Names every violation at once: column, rule, number of rows and an example's ``image_id``.
    """
    import pandera.pandas as pa
    from pandera.errors import SchemaErrors

    def accepts(column: Column) -> pa.Check:
        return pa.Check(
            lambda series: series.map(column.accepts).astype(bool),
            name=_rule(column) or "readable",
            ignore_na=True,
        )

    columns = {
        column.name: pa.Column(
            None,
            checks=[accepts(column)]
            if column.allowed or column.low is not None or column.high is not None or column.step
            else [],
            nullable=column.nullable or (column.needs_voxels and not images_read),
            required=column.stage == "harmonize",
        )
        for column in IMAGE_COLUMNS
    }
    wide = [
        pa.Check(lambda t: ~t["image_id"].duplicated(keep=False), name="image_id is unique"),
        pa.Check(
            lambda t: ~t.duplicated(list(SESSION_KEY), keep=False),
            name="participant, session, run and variant are unique",
        ),
        pa.Check(_sources_stand_with_values, name="a value and its source stand together"),
        pa.Check(
            lambda t: images_read | t[[c.name for c in HARMONIZED_COLUMNS if c.needs_voxels]].isna().all(axis=1),
            name="facts about voxels are missing where images were not read",
        ),
        pa.Check(_agree, name="dx3 and dx2 agree"),
        pa.Check(lambda t: _constant(t, "sex"), name="sex is constant within a participant"),
        pa.Check(lambda t: _constant(t, "apoe_genotype"), name="APOE is constant within a participant"),
        pa.Check(age_goes_forward, name="age does not fall over time"),
    ]
    problems: list[str] = []
    missing = [column.name for column in HARMONIZED_COLUMNS if column.name not in table]
    problems += [f"column {name}: missing" for name in missing]
    try:
        pa.DataFrameSchema(columns, checks=[] if missing else wide).validate(table, lazy=True)
    except SchemaErrors as errors:
        cases: pd.DataFrame = errors.failure_cases
        cases = cases[cases["check"] != "column_in_dataframe"]
        # Of a rule on whole rows, every column of a bad row is listed: the rule is named once.
        cases = cases.assign(column=cases["column"].where(cases["schema_context"] == "Column"))
        for (where, rule), rows in cases.groupby(["column", "check"], sort=True, dropna=False):
            index = [i for i in rows["index"].dropna().unique() if i in table.index]
            example = f", e.g. image {table.loc[index[0], 'image_id']}" if index and "image_id" in table else ""
            place = "table" if where is None or where != where or where not in COLUMN_BY_NAME else f"column {where}"
            rule = "not missing" if rule == "not_nullable" else rule
            problems.append(f"{place}: {len(index) or len(rows)} row(s) break the rule: {rule}{example}")
    if problems:
        problems = list(dict.fromkeys(problems))
        more = len(problems) - MAXIMUM_LISTED_VIOLATIONS
        shown = problems[:MAXIMUM_LISTED_VIOLATIONS] + ([f"and {more} more"] if more > 0 else [])
        raise InputError(
            f"the harmonized table breaks {len(problems)} rule(s) of its schema",
            found="\n            ".join(shown),
            remedy="correct the tables that the rows come from, or report the reader that made them",
        )


def _rule(column: Column) -> str:
    parts = []
    if column.allowed:
        parts.append("one of " + ", ".join(str(item) for item in column.allowed))
    if column.low is not None or column.high is not None:
        low = "" if column.low is None else f"{column.low:g}"
        high = "" if column.high is None else f"{column.high:g}"
        parts.append(f"{low} to {high}" if low and high else (f"at least {low}" if low else f"at most {high}"))
    if column.step:
        parts.append(f"steps of {column.step:g}")
    return "; ".join(parts)


def data_dictionary_markdown() -> str:
    """The schema as a Markdown table, one row per column."""
    lines = [
        "# Harmonized images: data dictionary",
        "",
        "<!-- Made by `python docs/write_reference.py` from src/medalign3d/ehr/schema.py; do not edit. -->",
        "",
        "One row per accepted image. *Known after* names the stage that fills the column: `images.parquet` holds those "
        "of `harmonize`, `data/volumes/*/index.parquet` those of `normalize` (as `path` and `sha256`), "
        "`data/splits/assignment.parquet` those of `split`. *dictionary* is text with a closed vocabulary.",
        "",
        "| column | type | unit | allowed | may be missing | meaning | source | known after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for column in IMAGE_COLUMNS:
        cells = (
            f"`{column.name}`",
            column.dtype,
            column.unit,
            _rule(column),
            "yes" if column.nullable else ("where images were not read" if column.needs_voxels else "no"),
            column.doc,
            SOURCES.get(column.name, ""),
            column.stage,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [
        "",
        "## Beside the images",
        "",
        "| table | one row per | columns |",
        "|---|---|---|",
        "| `visits.parquet` | clinical visit, also without an image | "
        + ", ".join(f"`{column.name}`" for column in VISIT_COLUMNS)
        + " |",
        "| `persons.parquet` | participant | `participant_id`, `person_id` (shared by linked participants), `dataset`, "
        "`link_rule`, `sex`, `images` |",
        "| `quarantine.parquet` | thing dropped, emptied or remarked on | `dataset`, `level`, `key_json`, "
        "`source_file`, `source_row`, `reason` ([quarantine_reasons.md](quarantine_reasons.md)), `detail`, "
        "`severity`, `run_id` (`ingest` or `harmonize`) |",
        "| `field_issues.parquet` | cell that was emptied | `dataset`, `native_subject_id`, `visit_code`, `column`, "
        "`source_file`, `source_row`, `reason` |",
        "| `sources.parquet` | table that was read | `dataset`, `file`, `sha256`, `rows`, `bad_lines`, `used_for` |",
        "| `counts.parquet` | cohort | `found` = `read` + `dropped_by_ingest`; `read` = `images` + "
        "`dropped_by_harmonize` |",
        "| `checks.parquet` | implausible but kept combination | `dataset`, `rule`, `images`, `persons` |",
    ]
    return "\n".join(lines) + "\n"
