"""All cohorts in one table: common labels, linked persons, no image twice, and each record as text.

What a reader of a cohort has accepted is accepted here too, unless only the comparison of rows shows that it cannot be
used: the same voxels in two cohorts, a key or sex that contradicts itself. Such rows go to the quarantine with a
reason; values that contradict each other are emptied. Implausible but possible combinations are counted in ``checks``
and nothing else happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from medalign3d.ehr import schema, text
from medalign3d.ehr.companions import all_quarantine, companions_of
from medalign3d.ehr.duplicates import ReadVoxels, decide, groups_of, near_duplicates, reader_of
from medalign3d.ehr.labelling import add_labels
from medalign3d.ehr.persons import link_persons
from medalign3d.ehr.quarantine import Quarantine
from medalign3d.ehr.storage import write_table
from medalign3d.ehr.values import is_missing, records_of
from medalign3d.errors import InputError, MedAlignError
from medalign3d.files import write_parquet, write_text

if TYPE_CHECKING:
    import pandas as pd

    from medalign3d.params import Params


class CohortTables(Protocol):
    """What reading a cohort gives (see :class:`medalign3d.cohorts.base.IngestResult`)."""

    images: pd.DataFrame
    visits: pd.DataFrame


@dataclass
class Harmonized:
    """The harmonized people.

    Attributes
    ----------
    images
        One row per image, exactly the columns of :data:`medalign3d.ehr.schema.HARMONIZED_COLUMNS`, sorted by cohort (in
        the order of ``params.cohorts``) and image id.
    persons
        One row per participant: ``participant_id``, ``person_id``, ``dataset``, ``link_rule``, ``sex``, ``images``.
    quarantine
        What reading the cohorts and what harmonizing dropped, emptied or remarked on; ``run_id`` says which.
    checks
        Implausible but kept combinations, counted: ``dataset``, ``rule``, ``images``, ``persons``.
    simulated
        Whether the people are simulated.
    form
        ``clean``, or ``table1_emulation``, which counts as the published Table 1 and is never evaluated.
    images_read
        Whether images were opened; when not, everything about their voxels is missing.
    companions
        ``visits``, ``field_issues``, ``sources`` and ``counts`` of all cohorts together
        (:mod:`medalign3d.ehr.companions`).
    """

    images: pd.DataFrame
    persons: pd.DataFrame
    quarantine: pd.DataFrame
    checks: pd.DataFrame
    simulated: bool
    form: str = "clean"
    images_read: bool = True
    companions: dict[str, pd.DataFrame] = field(default_factory=dict)


def is_simulated(cohort_tables: Mapping[str, CohortTables], params: Params) -> bool:
    """Whether the tables are simulated, as they declare themselves (else as the parameters say).

    Raises
    ------
    InputError
        When simulated and real tables are mixed, or contradict the parameters.
    """
    declared: dict[str, bool] = {}
    for cohort, tables in cohort_tables.items():
        value = getattr(tables, "simulated", None)
        if value is None:
            value = tables.images.attrs.get("simulated")
        declared[cohort] = params.simulated if value is None else str(value).lower() == "true"
    kinds = set(declared.values())
    if len(kinds) > 1:
        raise InputError(
            "simulated and real people must not be mixed",
            where="the cohorts' tables",
            found=", ".join(
                f"{cohort}: {'simulated' if flag else 'real'}" for cohort, flag in sorted(declared.items())
            ),
            expected="all simulated or all real",
            remedy="run `dvc repro` so that all cohorts are read with the present parameters",
        )
    simulated = kinds.pop() if kinds else params.simulated
    if simulated != params.simulated:
        raise InputError(
            "the cohorts' tables contradict the parameters",
            found="simulated tables" if simulated else "real tables",
            expected="simulated cohorts" if params.simulated else "real cohorts",
            remedy="run `dvc repro` so that all cohorts are read with the present parameters",
        )
    return simulated


def _said_alike(cohort_tables: Mapping[str, CohortTables], name: str, default: Any) -> Any:
    """What all cohorts' tables say of themselves.

    Raises
    ------
    InputError
        When they differ.
    """
    said = {cohort: getattr(tables, name, default) for cohort, tables in cohort_tables.items()}
    if len(set(said.values())) > 1:
        raise InputError(
            "the cohorts' tables were made in different ways",
            where=f"ingest, {name}",
            found=", ".join(f"{cohort}: {value}" for cohort, value in sorted(said.items())),
            expected=f"one {name} for all cohorts",
            remedy="run `dvc repro` so that all cohorts are read with the present parameters",
        )
    return next(iter(said.values()), default)


def _combine(cohort_tables: Mapping[str, CohortTables], order: list[str]) -> pd.DataFrame:
    """All cohorts' images with the harmonized columns."""
    import pandas as pd

    parts = []
    for cohort in order:
        table = cohort_tables[cohort].images
        missing = [name for name in schema.INGEST_REQUIRED if name not in table]
        if missing:
            raise InputError(
                "a cohort's table of images lacks columns",
                where=f"{cohort}, images",
                found=f"no {', '.join(missing)}",
                expected=", ".join(schema.INGEST_REQUIRED),
                remedy="read the cohort again (`dvc repro ingest`)",
            )
        defaults = {
            "dataset": cohort,
            "release": cohort,
            "run": 1,
            "variant": "raw",
            "selected": True,
        }
        if getattr(cohort_tables[cohort], "images_read", True):
            defaults["affine_source"] = "header"
        filled = table.copy()
        for name, default in defaults.items():
            values = table[name] if name in table else [None] * len(table)
            filled[name] = pd.Series([default if is_missing(v) else v for v in values], index=table.index, dtype=object)
        wrong = sorted(set(filled["dataset"].astype(str)) - {cohort})
        if wrong:
            raise InputError(
                "a table holds another cohort's images", where=f"{cohort}, images", found=wrong, expected=cohort
            )
        # Until persons are linked, everybody is the participant.
        filled["person_id"] = filled["participant_id"]
        parts.append(schema.coerce_images(filled))
    return pd.concat(parts, ignore_index=True)


def _drop(images: pd.DataFrame, bad: pd.Series, quarantine: Quarantine, reason: str, detail: str) -> pd.DataFrame:
    if bad.any():
        quarantine.drop_images(images[bad], reason, detail)
        images = images[~bad].reset_index(drop=True)
    return images


def _drop_unusable(images: pd.DataFrame, quarantine: Quarantine, require_age: bool) -> pd.DataFrame:
    known = images["sex"].isin(["F", "M"])
    images = _drop(images, ~known, quarantine, "SEX_MISSING", "no sex on record")
    images = _drop(
        images,
        images["image_id"].duplicated(keep=False),
        quarantine,
        "DUPLICATE_KEY_CONFLICT",
        "two images share one id",
    )
    images = _drop(
        images,
        images.duplicated(list(schema.SESSION_KEY), keep=False),
        quarantine,
        "DUPLICATE_KEY_CONFLICT",
        "two images of the participant share session, run and variant",
    )
    sexes = images.groupby("participant_id")["sex"].transform("nunique")
    images = _drop(images, sexes > 1, quarantine, "SEX_CONFLICT", "the participant's records disagree on sex")
    if require_age:
        images = _drop(images, images["age_years"].isna(), quarantine, "AGE_MISSING", "no age at the scan")
    return images


def _empty_out_of_range(images: pd.DataFrame, quarantine: Quarantine) -> None:
    """Empty values of nullable columns that the schema does not accept."""
    for column in schema.HARMONIZED_COLUMNS:
        if not column.nullable or not (column.numeric or column.dtype == "dictionary"):
            continue
        values = images[column.name]
        distinct = {value: column.accepts(value) for value in values.dropna().unique()}
        if all(distinct.values()):
            continue
        bad = values.map(distinct).fillna(True).astype(bool).eq(False)
        for row in images[bad].itertuples():
            key = {"native_image_key": row.native_image_key, "column": column.name}
            quarantine.add(
                str(row.dataset), "field", key, "VALUE_OUT_OF_RANGE", "outside the schema's range", "null_field"
            )
        images.loc[bad, column.name] = None


def _complete_sources(images: pd.DataFrame) -> None:
    """A value without a stated source was measured at its visit; a source without a value says nothing."""
    for source, values in schema.SOURCED_VALUES.items():
        known = images[list(values)].notna().any(axis=1)
        images.loc[known & images[source].isna(), source] = "measured"
        images.loc[~known, source] = None


def _empty_contradictions(images: pd.DataFrame, quarantine: Quarantine) -> None:
    """Empty APOE where a participant has two genotypes, and ages that fall over time."""
    contradictions = (
        (
            images.groupby("participant_id")["apoe_genotype"].transform("nunique") > 1,
            ["apoe_genotype", "apoe4_count"], "DUPLICATE_KEY_CONFLICT", "two APOE genotypes",
        ),
        (~schema.age_goes_forward(images), ["age_years", "age_precision"], "AGE_INCONSISTENT", "age falls over time"),
    )  # fmt: skip
    for bad, columns, reason, detail in contradictions:
        subjects = images.loc[bad, ["dataset", "native_subject_id"]].drop_duplicates()
        for row in subjects.itertuples():
            key = {"native_subject_id": row.native_subject_id, "column": columns[0]}
            quarantine.add(str(row.dataset), "field", key, reason, detail, "null_field")
        for name in columns:
            images.loc[bad, name] = None


def _drop_equal_voxels(
    images: pd.DataFrame, quarantine: Quarantine, order: list[str], form: str
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Drop images whose voxels another row has, and give the pairs of participants that share voxels.

    Across cohorts the image of the cohort that comes first in ``params.cohorts`` stays. Within a cohort one image of
    the same participant stays; between participants nobody can tell whose it is, so none does.
    """
    rank = {cohort: position for position, cohort in enumerate(order)}
    pairs: list[tuple[str, str]] = []
    dropped: dict[int, tuple[str, str]] = {}
    # A row that the form `table1_emulation` repeats holds the voxels of its own acquisition.
    hashes = images.drop_duplicates("image_id").set_index("image_id")["data_sha256"]
    repeats = (images["variant_of"].map(hashes) == images["data_sha256"]) & (form == "table1_emulation")
    candidates = images[images["data_sha256"].notna() & ~repeats]
    duplicated = candidates[candidates["data_sha256"].duplicated(keep=False)]
    for _, group in duplicated.groupby("data_sha256", sort=True):
        participants = sorted(set(group["participant_id"]))
        pairs += [(participants[0], other) for other in participants[1:]]
        dropped |= decide(group, rank, "the voxels")
    outcome = {images.at[index, "image_id"]: why for index, why in dropped.items()}
    for index in images.index[repeats]:
        if images.at[index, "variant_of"] in outcome:
            dropped[index] = outcome[images.at[index, "variant_of"]]
    for index, (reason, detail) in sorted(dropped.items()):
        quarantine.drop_images(images.loc[[index]], reason, detail)
    return images.drop(index=list(dropped)).reset_index(drop=True), pairs


def _drop_near_duplicates(
    images: pd.DataFrame,
    cohort_tables: Mapping[str, CohortTables],
    quarantine: Quarantine,
    order: list[str],
    read_voxels: ReadVoxels | None,
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Drop images that are another one saved in another form; give the pairs of participants that share one.

    Pairs that look alike but whose voxels cannot be read are remarked on and kept.
    """
    fingerprints: dict[str, Any] = {}
    for cohort in order:
        table = cohort_tables[cohort].images
        if "fingerprint" in table:
            fingerprints |= dict(zip(table["image_id"].astype(str), table["fingerprint"], strict=True))
    images = images.sort_values(["dataset", "image_id"], kind="stable", ignore_index=True)
    names = ["image_id", "dataset", "participant_id", "variant_of", "data_sha256", "source_path", "source_format"]
    rows = [{**row, "fingerprint": fingerprints.get(str(row["image_id"]))} for row in records_of(images[names])]
    found = near_duplicates(rows, read_voxels)
    rank = {cohort: position for position, cohort in enumerate(order)}
    pairs: list[tuple[str, str]] = []
    dropped: dict[int, tuple[str, str]] = {}
    for places in groups_of(found):
        group = images.iloc[places]
        participants = sorted(set(group["participant_id"]))
        pairs += [(participants[0], other) for other in participants[1:]]
        dropped |= decide(group, rank, "the acquisition, saved in another form,")
    for index, (reason, detail) in sorted(dropped.items()):
        quarantine.drop_images(images.loc[[index]], reason, detail)
    for pair in found:
        if not pair.confirmed:
            row = images.iloc[pair.second]
            quarantine.add(
                str(row["dataset"]), "image", {"native_image_key": row["native_image_key"]},
                "CROSS_COHORT_DUPLICATE" if row["dataset"] != images.iloc[pair.first]["dataset"]
                else "DUPLICATE_IMAGE_BYTES",
                "looks like another image of the table; the voxels could not be compared, both are kept", "warn",
            )  # fmt: skip
    return images.drop(index=list(dropped)).reset_index(drop=True), pairs


def _checks(images: pd.DataFrame) -> pd.DataFrame:
    """Count implausible but possible combinations per cohort."""
    import pandas as pd

    years = images["educ_years"].astype("float64")
    by_participant = years.groupby(images["participant_id"])
    sex_of_person = images.groupby("person_id")["sex"].transform("nunique")
    cdr, boxes = images["cdr_global"].astype("float64"), images["cdr_sb"].astype("float64")
    rules = {
        "education of a participant differs by more than a year": by_participant.transform("max")
        - by_participant.transform("min")
        > 1.0,
        "global CDR 0 with a sum of boxes above 0.5": (cdr == 0) & (boxes > 0.5),
        "global CDR below 1 with a sum of boxes of at least 4.5": (cdr < 1) & (boxes >= 4.5),
        "normal cognition with a global CDR of at least 1": (images["dx3"] == "NC") & (cdr >= 1),
        "dementia with a global CDR of 0": (images["dx3"] == "AD_DEM") & (cdr == 0),
        "dx2 by CDR differs from dx3 (OASIS)": (images["dx3"].isin(["NC", "MCI"]) & (images["dx2"] == "DEM"))
        | ((images["dx3"] == "AD_DEM") & (images["dx2"] == "NonDEM")),
        "linked participants differ in sex": sex_of_person > 1,
    }
    rows = []
    for rule, bad in rules.items():
        for dataset, group in images[bad.fillna(False).astype(bool)].groupby("dataset", sort=True):
            rows.append(
                {"dataset": str(dataset), "rule": rule, "images": len(group), "persons": group["person_id"].nunique()}
            )
    table = pd.DataFrame(rows, columns=["dataset", "rule", "images", "persons"])
    return table.astype({"dataset": "str", "rule": "str", "images": "int64", "persons": "int64"})


def _add_text(images: pd.DataFrame, params: Params) -> None:
    import pandas as pd

    options = text.text_options(params)
    texts, fields = [], []
    for record in records_of(images):
        parts = text.clauses(record, **options)
        rendered = text.sentence(parts.values())
        leaks = text.find_leaks(rendered)
        if leaks:
            raise MedAlignError(
                "a record's text names its answer", where=f"image {record['image_id']}", found=leaks, expected="none"
            )
        texts.append(rendered)
        # Where missing fields are stated, the text has more clauses than the record has fields.
        stated = options["missing"] == "state"
        fields.append(text.present_fields(record, **{**options, "missing": "omit"}) if stated else list(parts))
    images["ehr_text"] = pd.Series(texts, index=images.index, dtype="str")
    images["ehr_fields"] = pd.Series(fields, index=images.index, dtype=object)
    images["ehr_template"] = pd.Series(text.TEMPLATE, index=images.index, dtype="str")


def harmonize(
    cohort_tables: Mapping[str, CohortTables], params: Params, read_voxels: ReadVoxels | None = None
) -> Harmonized:
    """Bring the tables of all cohorts into one.

    Parameters
    ----------
    cohort_tables
        Cohort name to what reading it gave; only ``images`` and ``visits`` are used.
    params
        ``cohorts``, ``harmonize`` and ``ingest.nacc_dementia_policy`` are used.
    read_voxels
        Reads an image (its row has ``dataset``, ``source_path``, ``source_format``), to tell whether images that look
        alike are one acquisition. By default the cohorts' folders are used where the tables come straight from reading
        them (``images.attrs["root"]``); without a reader such pairs are only remarked on.

    Returns
    -------
    Harmonized

    Raises
    ------
    InputError
        When simulated and real tables are mixed, a table lacks columns, no diagnosis of a cohort is known, or the
        result breaks the schema.
    """
    import pandas as pd

    absent = [cohort for cohort in params.cohorts if cohort not in cohort_tables]
    if absent:
        raise InputError(
            "cohorts were not read", found=f"no tables of {', '.join(absent)}", expected=list(params.cohorts)
        )
    order = [str(cohort) for cohort in params.cohorts]
    chosen = {cohort: cohort_tables[cohort] for cohort in order}
    simulated = is_simulated(chosen, params)
    form = str(_said_alike(chosen, "form", "clean"))
    images_read = bool(_said_alike(chosen, "images_read", True))
    quarantine = Quarantine()
    images = _combine(cohort_tables, order)
    images = _drop_unusable(images, quarantine, params.harmonize.require_age)
    _empty_out_of_range(images, quarantine)
    _complete_sources(images)
    _empty_contradictions(images, quarantine)
    everybody = images[["participant_id", "dataset", "sex"]].copy()
    unfiltered = images
    images, pairs = _drop_equal_voxels(images, quarantine, order, form)
    oasis_visits = cohort_tables["OASIS"].visits if "OASIS" in order else None
    if read_voxels is None:
        known = {cohort: cohort_tables[cohort].images.attrs.get("root") for cohort in order}
        read_voxels = reader_of({cohort: str(root) for cohort, root in known.items() if root is not None})
    images, alike = _drop_near_duplicates(images, cohort_tables, quarantine, order, read_voxels)
    persons = link_persons(unfiltered, oasis_visits, pairs, alike)
    person_of = dict(zip(persons["participant_id"], persons["person_id"], strict=True))
    images["person_id"] = pd.Series(
        [person_of[label] for label in images["participant_id"]], index=images.index, dtype="str"
    )
    visits_of = {cohort: cohort_tables[cohort].visits for cohort in order if cohort_tables[cohort].visits is not None}
    add_labels(images, visits_of, quarantine, params.ingest.nacc_dementia_policy)
    _add_text(images, params)
    checks = _checks(images)
    position = images["dataset"].map({cohort: number for number, cohort in enumerate(order)})
    images = (
        images.assign(position=position).sort_values(["position", "image_id"], kind="stable").reset_index(drop=True)
    )
    images = images[[column.name for column in schema.HARMONIZED_COLUMNS]]
    schema.validate_images(images, images_read=images_read)
    own = quarantine.table()
    companions = companions_of(cohort_tables, order, images, own, params.ingest.nacc_dementia_policy)
    table = all_quarantine(cohort_tables, order, own)
    sex_of = dict(zip(everybody["participant_id"], everybody["sex"], strict=True))
    count = Counter(images["participant_id"])
    persons["sex"] = pd.Series([sex_of[label] for label in persons["participant_id"]], index=persons.index, dtype="str")
    persons["images"] = pd.Series(
        [count[label] for label in persons["participant_id"]], index=persons.index, dtype="int64"
    )
    for frame in (images, persons, table, checks, *companions.values()):
        frame.attrs |= {"simulated": str(simulated).lower(), "form": form, "images_read": str(images_read).lower()}
    return Harmonized(images, persons, table, checks, simulated, form, images_read, companions)


def write_harmonized(result: Harmonized, out_dir: str | Path, *, simulated: bool | None = None) -> None:
    """Write images, persons, quarantine, checks and companions as parquet, and the data dictionary as Markdown.

    Raises
    ------
    InputError
        When ``simulated`` contradicts what the tables say of themselves.
    """
    if simulated is not None and simulated != result.simulated:
        raise InputError(
            "the tables contradict the parameters", found=f"simulated: {result.simulated}", expected=simulated
        )
    metadata = {
        "simulated": str(result.simulated).lower(),
        "form": result.form,
        "images_read": str(result.images_read).lower(),
        "schema": "images/1",
        "text": text.TEMPLATE,
    }
    folder = Path(out_dir)
    write_table(folder / "images.parquet", result.images, schema.HARMONIZED_COLUMNS, metadata)
    small = {"persons": result.persons, "quarantine": result.quarantine, "checks": result.checks, **result.companions}
    for name, table in small.items():
        if name == "visits":
            write_table(folder / "visits.parquet", table, schema.VISIT_COLUMNS, metadata)
        else:
            write_parquet(folder / f"{name}.parquet", table, metadata)
    write_text(folder / "data_dictionary.md", schema.data_dictionary_markdown())
