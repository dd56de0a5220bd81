"""The paper's tables from predictions: cohorts (1), classification (2), closed-ended visual questions (3).

Every table is made once and written as tidy CSV, Markdown and LaTeX. What they guarantee:

- test and zero-shot images only: validation predictions never enter a table;
- mean ± standard deviation over runs *and* a 95 % bootstrap interval over persons, with N and the number of runs;
- balanced accuracy beside accuracy, trained controls and plain baselines beside the models;
- names of simulated benchmarks carry ``SIM-`` and titles say so; real ones never do; published figures are a separate
  file;
- groups smaller than ``report.minimum_cell`` people are suppressed.

Not supported: significance stars. ``table_image_gain`` gives paired differences with intervals instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from medalign3d.ehr.splits import benchmark_parameters
from medalign3d.errors import InputError
from medalign3d.evaluation import metrics
from medalign3d.files import read_json, read_parquet
from medalign3d.params import Params
from medalign3d.report import labels, published
from medalign3d.report.provenance import SIMULATED_WORDS, Provenance, collect
from medalign3d.report.table import Table

TESTED_SPLITS = ("test", "zeroshot")
ALL_PEOPLE = "all"
OLDER_PEOPLE = "60 and over"
OLDER_AGE_YEARS = 60.0
MISSING = "–"
DIAGNOSES = {
    "NC": "normal cognition",
    "MCI": "mild cognitive impairment",
    "AD_DEM": "AD or dementia",
    "NonDEM": "no dementia (two classes only)",
    "DEM": "dementia (two classes only)",
}

PREDICTION_COLUMNS = (
    "image_id", "person_id", "dataset", "benchmark", "language_model", "setting", "text_ablation", "run", "split",
    "question", "candidates", "scores", "predicted", "generated_text", "parsed_answer", "truth", "simulated",
)  # fmt: skip


# --- reading ----------------------------------------------------------------------------------------------------------


TEXTS = list(labels.TEXT_ABLATIONS)


def read_predictions(params: Params, root: Path = Path(".")) -> pd.DataFrame:
    """Read the predictions of all language models and baselines.

    Raises
    ------
    InputError
        When there are none, a column is missing, or simulated and real people are mixed.
    """
    paths = sorted(
        path for path in (root / "data/evaluation").glob("*/predictions.parquet") if path.parent.name != "vqa"
    )
    if not paths:
        raise InputError("no predictions", where=root / "data/evaluation", remedy="run `dvc repro`")
    frames = []
    for path in paths:
        frame = read_parquet(path)
        absent = [column for column in PREDICTION_COLUMNS if column not in frame.columns]
        if absent:
            raise InputError("a prediction table lacks columns", where=path, found=f"no {', '.join(absent)}")
        if len(frame):
            frames.append(frame.astype({"language_model": object, "text_ablation": object}))
    if not frames:
        raise InputError("all prediction tables are empty", where=root / "data/evaluation")
    predictions = pd.concat(frames, ignore_index=True)
    predictions["language_model"] = predictions["language_model"].fillna("")
    predictions["text_ablation"] = predictions["text_ablation"].fillna("")
    check_simulated(predictions, params)
    return predictions


def check_simulated(table: pd.DataFrame, params: Params) -> None:
    """Refuse rows that are simulated in a profile of real people, or the other way round.

    Raises
    ------
    InputError
    """
    if not (table["simulated"].astype(bool) == params.simulated).all():
        raise InputError(
            "simulated and real people are mixed",
            where="data/evaluation",
            found=f"rows with simulated = {not params.simulated} in profile {params.profile}",
            expected=f"only rows with simulated = {params.simulated}",
            remedy="run `dvc repro` so that every prediction belongs to the active profile",
        )


def tested(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows that tables may use: test and zero-shot images."""
    return predictions[predictions["split"].isin(TESTED_SPLITS)]


def read_ages(root: Path = Path(".")) -> pd.Series:
    """Age at scan in years by image id."""
    images = read_parquet(root / "data/ehr/images.parquet", columns=["image_id", "age_years"])
    return images.set_index("image_id")["age_years"].astype("float64")


# --- cells ------------------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """A share as a percentage with one decimal.

    >>> percent(0.7333), percent(float("nan"))
    ('73.3', '–')
    """
    return MISSING if math.isnan(value) else f"{100 * value:.1f}"


def estimate(mean: float, sd: float, low: float, high: float) -> str:
    """Mean ± standard deviation over runs and the interval over persons, in percent.

    >>> estimate(0.7333, 0.012, 0.651, 0.802), estimate(0.5, float("nan"), 0.4, 0.6)
    ('73.3 ± 1.2 [65.1, 80.2]', '50.0 [40.0, 60.0]')
    """
    if math.isnan(mean):
        return MISSING
    spread = "" if math.isnan(sd) else f" ± {100 * sd:.1f}"
    interval = "" if math.isnan(low) else f" [{percent(low)}, {percent(high)}]"
    return f"{percent(mean)}{spread}{interval}"


def count(number: int, minimum: int) -> str:
    """A number of people or images; small ones are suppressed.

    >>> count(12, 5), count(3, 5), count(0, 5)
    ('12', '<5', '0')
    """
    return f"<{minimum}" if 0 < number < minimum else f"{number:,}"


def _counts(numbers: Sequence[int], minimum: int) -> list[str]:
    """Several counts that add up to a shown total: when exactly one is suppressed, so is the smallest other one."""
    shown = [count(number, minimum) for number in numbers]
    hidden = [i for i, number in enumerate(numbers) if 0 < number < minimum]
    if len(hidden) == 1 and sum(number > 0 for number in numbers) > 1:
        others = [i for i, number in enumerate(numbers) if i != hidden[0] and number > 0]
        shown[min(others, key=lambda i: numbers[i])] = "suppressed"
    return shown


def tidy_with(rows: list[dict[str, Any]], provenance: Provenance) -> pd.DataFrame:
    """The CSV form: one row per number, with the provenance in columns."""
    frame = pd.DataFrame(rows)
    frame["profile"] = provenance.profile
    frame["simulated"] = provenance.simulated
    frame["split_sha256"] = provenance.split_sha256
    frame["commit"] = provenance.commit
    frame["metrics_version"] = provenance.metrics_version
    return frame


def notes_with(provenance: Provenance, *notes: str) -> list[str]:
    """The lines below a table: the simulated label first, the provenance last."""
    warning = [f"{SIMULATED_WORDS}."] if provenance.simulated else []
    return [*warning, *notes, provenance.footer + "."]


# --- Table 1: cohorts -------------------------------------------------------------------------------------------------


def table1(params: Params, provenance: Provenance, root: Path = Path(".")) -> Table:
    """Cohorts: images, people, sex, age, how many images carry each clinical field, diagnoses, splits."""
    images = read_parquet(root / "data/ehr/images.parquet")
    assignment = pd.read_csv(root / "data/splits/assignment.csv", dtype={"image_id": str, "person_id": str})
    minimum = params.report.minimum_cell
    cohorts = [cohort for cohort in params.cohorts if (images["dataset"] == cohort).any()]
    header = ["", *(provenance.benchmark_label(cohort) for cohort in cohorts), "all"]
    groups = [images[images["dataset"] == cohort] for cohort in cohorts] + [images]
    splits = [assignment[assignment["dataset"] == cohort] for cohort in cohorts] + [assignment]
    names = [*(provenance.benchmark_label(cohort) for cohort in cohorts), "all"]
    rows: list[list[str]] = []
    tidy: list[dict[str, Any]] = []
    sections: dict[int, str] = {}

    def add(label: str, cells: list[str]) -> None:
        rows.append([label, *cells])
        tidy.extend({"quantity": label, "cohort": name, "value": cell} for name, cell in zip(names, cells, strict=True))

    add("images", [count(len(group), minimum) for group in groups])
    add("people", [count(group["person_id"].nunique(), minimum) for group in groups])
    sexes = [_counts([int((g["sex"] == s).sum()) for s in ("F", "M")], minimum) for g in groups]
    add("female / male (images)", [" / ".join(pair) for pair in sexes])
    add("age, mean ± sd (years)", [_mean_sd(g["age_years"], minimum) for g in groups])
    add("age, range (years)", [_age_range(g["age_years"], minimum) for g in groups])
    sections[len(rows)] = "images with"
    for label, columns in (
        ("education", ("educ_years", "educ_code")),
        ("socioeconomic status", ("ses",)),
        ("MMSE", ("mmse",)),
        ("CDR", ("cdr_global", "cdr_sb")),
        ("logical memory", ("lm_immediate", "lm_delayed")),
    ):
        present = [column for column in columns if column in images.columns]
        numbers = [int(g[present].notna().any(axis=1).sum()) if present else 0 for g in groups]
        add(label, [count(number, minimum) for number in numbers])
    sections[len(rows)] = "diagnosis (images)"
    for column, classes in (("dx3", ("NC", "MCI", "AD_DEM")), ("dx2", ("NonDEM", "DEM"))):
        # Where the three-class diagnosis is known the two-class one repeats it.
        known = [g if column == "dx3" else g[g["dx3"].isna()] for g in groups]
        numbers_by_group = [[int((g[column] == name).sum()) for name in classes] for g in known]
        shown = [_counts(numbers, minimum) for numbers in numbers_by_group]
        for position, name in enumerate(classes):
            if any(numbers[position] for numbers in numbers_by_group):
                add(DIAGNOSES[name], [cells[position] for cells in shown])
    unlabelled = [int((g["dx3"].isna() & g["dx2"].isna()).sum()) for g in groups]
    if any(unlabelled):
        add("no diagnosis", [count(number, minimum) for number in unlabelled])
    sections[len(rows)] = "people by use"
    for split, label in (
        ("train", "training" if params.split.mode == "held_out" else "training only (no label)"),
        ("val", "validation"),
        ("test", "test"),
        ("fold", f"cross-validation, {params.split.folds} folds"),
        ("zeroshot", "zero-shot test"),
        ("excluded", "not used"),
    ):
        numbers = [int(s.loc[s["split"] == split, "person_id"].nunique()) for s in splits]
        if any(numbers):
            add(label, [count(number, minimum) for number in numbers])
    return Table(
        name="table1",
        title=provenance.title("Table 1. Cohorts"),
        header=header,
        rows=rows,
        sections=sections,
        tidy=tidy_with(tidy, provenance),
        notes=notes_with(
            provenance,
            f"One row counts images unless it says people. Groups of fewer than {minimum} are suppressed (and the "
            "smallest sibling that would reveal them); ages above 89 are given as 90+.",
            "People, not images, are divided between the uses.",
        ),
    )


def _mean_sd(values: pd.Series, minimum: int) -> str:
    known = values.dropna().astype("float64")
    return MISSING if len(known) < minimum else f"{known.mean():.1f} ± {known.std():.1f}"


def _age_range(values: pd.Series, minimum: int) -> str:
    known = values.dropna().astype("float64")
    if len(known) < minimum:
        return MISSING
    low, high = math.floor(known.min()), math.floor(known.max())
    return f"{min(low, 90)}–{high if high < 90 else '90+'}"


# --- Table 2: classification ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A pair of columns of Table 2: one benchmark for one population."""

    benchmark: str
    population: str
    label: str
    images: int
    persons: int
    chance: float


def summarize(predictions: pd.DataFrame, params: Params, ages: pd.Series | None = None) -> pd.DataFrame:
    """Metrics per language model, setting, text, benchmark and population (:func:`metrics.summarize` per population).

    ``population`` is ``all``, and in cross-validation with a diagnosis question also ``60 and over``: age alone tells
    young adults from people with dementia.
    """
    rows = tested(predictions)
    if rows.empty:
        raise InputError("no test predictions", where="data/evaluation", remedy="run `dvc repro`")
    parts = [(ALL_PEOPLE, rows)]
    if params.split.mode == "cross_validation" and ages is not None:
        older = rows["image_id"].map(ages) >= OLDER_AGE_YEARS
        chosen = rows[older & rows["question"].str.startswith("diagnosis")]
        if 0 < len(chosen) < len(rows):
            parts.append((OLDER_PEOPLE, chosen))
    summaries = []
    for population, part in parts:
        summary = metrics.summarize(part, bootstrap_samples=params.evaluate.bootstrap_samples)
        summaries.append(summary.assign(population=population))
    return pd.concat(summaries, ignore_index=True)


def headline_of(params: Params, benchmark: object) -> str:
    """The text ablation of a benchmark's headline figures (``SIM-`` before its name aside)."""
    return params.headline_text(benchmark_parameters(str(benchmark).removeprefix("SIM-"), params).cohort)


def blocks(summary: pd.DataFrame, params: Params, provenance: Provenance) -> list[Block]:
    """The benchmarks (and populations) found in the predictions, in the order of the parameters."""
    order = list(params.split.benchmarks)
    found: list[Block] = []
    groups = summary.groupby(["benchmark", "population"], sort=False)
    for (benchmark, population), group in groups:
        zero_shot = bool((group["split"] == "zeroshot").any())
        label = provenance.benchmark_label(str(benchmark))
        if zero_shot:
            label += " (zero-shot)"
        if population != ALL_PEOPLE:
            label += f", {population}"
        elif (summary["population"] != ALL_PEOPLE).any():
            label += ", all"
        found.append(
            Block(
                str(benchmark), str(population), label, int(group["images"].max()), int(group["persons"].max()),
                float(group["chance"].iloc[0]),
            )
        )  # fmt: skip
    return sorted(found, key=lambda b: (labels.rank(b.benchmark, order), b.benchmark, b.population != ALL_PEOPLE))


def ordered_rows(summary: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The distinct table rows (language model, setting, text) in reading order, with their section."""
    keys = summary[["language_model", "setting", "text_ablation"]].drop_duplicates().copy()
    keys["section"] = keys["setting"].map(labels.section_of)
    settings = list(labels.SETTINGS)
    keys["_order"] = [
        (
            labels.SECTIONS.index(row.section),
            labels.rank(row.language_model, params.language_models),
            str(row.language_model),
            labels.rank(row.setting, settings),
            str(row.setting),
            labels.rank(row.text_ablation, list(labels.TEXT_ABLATIONS)),
        )
        for row in keys.itertuples()
    ]
    return keys.sort_values("_order").drop(columns="_order").reset_index(drop=True)


def _estimate_cell(row: pd.Series, metric: str, block: Block, minimum: int) -> str:
    if row["persons"] < minimum:
        return f"n<{minimum}"
    text = estimate(row[f"{metric}_mean"], row[f"{metric}_sd"], row[f"{metric}_low"], row[f"{metric}_high"])
    if metric == "accuracy" and row["images"] != block.images:
        text += f" (N={row['images']})"
    return text


def short_number(number: int | None) -> str:
    """A parameter count in words of tables.

    >>> short_number(151_790_000), short_number(88_416), short_number(None)
    ('152M', '88k', '–')
    """
    if number is None:
        return MISSING
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            value = number / size
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(number)


def parameter_counts(params: Params, root: Path = Path(".")) -> dict[tuple[str, str], int]:
    """Parameter counts by (language model, setting): ``size`` is the language model's own, others what was trained.

    Counts that cannot be read (a backbone that is a Hugging Face id, a setting that was not trained) are left out.
    """
    counts: dict[tuple[str, str], int] = {}
    for name in params.language_models:
        checkpoint = root / params.model.language.models[name].checkpoint
        weights = sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else []
        if weights:
            counts[name, "size"] = sum(_stored_parameters(path) for path in weights)
        for setting, folder in (("frozen", "frozen"), ("lora", "lora")):
            found = sorted((root / "data/models" / name / folder).glob("run-*/config.json"))
            if found and "trainable_parameters" in (description := read_json(found[0])):
                counts[name, setting] = int(description["trainable_parameters"])
    return counts


def _stored_parameters(path: Path) -> int:
    """The number of values in a safetensors file, from its header."""
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _classification_table(
    name: str,
    title: str,
    summary: pd.DataFrame,
    params: Params,
    provenance: Provenance,
    notes: Iterable[str],
    *,
    show_text: bool = True,
    counts: Mapping[tuple[str, str], int] | None = None,
    headline_only: bool = False,
) -> Table:
    """A table in the paper's form: language model x setting x text, two columns per benchmark.

    With ``headline_only`` every benchmark shows its own headline text (:meth:`Params.headline_text`) in one row per
    setting.
    """
    minimum = params.report.minimum_cell
    columns = blocks(summary, params, provenance)
    listed = summary
    if headline_only:
        general = params.evaluate.headline_text
        # Baselines that use no text, or oracles, stand in every version of the table.
        listed = summary[(summary["text_ablation"] == general) | ~summary["text_ablation"].isin(TEXTS)]
        columns = [
            block if text == general else replace(block, label=f"{block.label}, {labels.text_label(text)}")
            for block, text in ((block, headline_of(params, block.benchmark)) for block in columns)
        ]
    words = ["Language model", "Setting"] + (["Text"] if show_text else [])
    words += (["LM size", "Learnable"] if counts is not None else []) + ["Runs"]
    blanks = [""] * (len(words) - 1)
    header = [*words]
    sizes, chances = ["N: images (people)", *blanks], ["chance", *blanks]
    compact_sizes, compact_chances = [*sizes], [*chances]
    for block in columns:
        header += [f"{block.label}: accuracy", "balanced accuracy"]
        number = f"{count(block.images, minimum)} ({count(block.persons, minimum)})"
        sizes += [number, ""]
        compact_sizes.append(number)
        chances += [percent(block.chance), percent(block.chance)]
        compact_chances.append(percent(block.chance))
    rows, compact_rows = [sizes, chances], [compact_sizes, compact_chances]
    sections: dict[int, str] = {}
    tidy: list[dict[str, Any]] = []
    indexed = {
        (row.language_model, row.setting, row.text_ablation, row.benchmark, row.population): place
        for place, row in enumerate(summary.itertuples())
    }
    section = ""
    for key in ordered_rows(listed, params).itertuples():
        if key.section != section:
            section = str(key.section)
            sections[len(rows)] = section
        cells: list[str] = []
        compact_cells: list[str] = []
        runs: set[int] = set()
        for block in columns:
            own = headline_only and key.text_ablation in TEXTS
            text = headline_of(params, block.benchmark) if own else key.text_ablation
            index = indexed.get((key.language_model, key.setting, text, block.benchmark, block.population))
            if index is None:
                cells += [MISSING, MISSING]
                compact_cells.append(MISSING)
                continue
            row = summary.iloc[index]
            runs.add(int(row["runs"]))
            pair = [_estimate_cell(row, metric, block, minimum) for metric in ("accuracy", "balanced_accuracy")]
            cells += pair
            compact_cells.append(f"{pair[0].split(' [')[0]} ({pair[1].split(' ')[0]})")
            tidy += _tidy_cell(row, section, block, params, provenance, minimum)
        named = [labels.language_model_label(params, key.language_model), labels.setting_label(str(key.setting))]
        named += [labels.text_label(key.text_ablation)] if show_text else []
        if counts is not None:
            learnable = counts.get((str(key.language_model), str(key.setting)))
            named += [short_number(counts.get((str(key.language_model), "size"))), short_number(learnable)]
        named.append("/".join(str(number) for number in sorted(runs)))
        rows.append([*named, *cells])
        compact_rows.append([*named, *compact_cells])
    table = Table(
        name, title, header, rows, tidy_with(tidy, provenance), sections, notes_with(provenance, *notes), len(words)
    )
    explained = "Accuracy ± standard deviation over runs (balanced accuracy); 95 % intervals stand in the files."
    table.compact = Table(
        name,
        title,
        [*words, *(block.label for block in columns)],
        compact_rows,
        table.tidy,
        sections,
        [explained, *notes_with(provenance)],
        len(words),
    )
    return table


def _tidy_cell(
    row: pd.Series, section: str, block: Block, params: Params, provenance: Provenance, minimum: int
) -> list[dict[str, Any]]:
    base = {
        "section": section,
        "language_model": row["language_model"],
        "language_model_title": labels.language_model_label(params, row["language_model"]),
        "setting": row["setting"],
        "text_ablation": row["text_ablation"],
        "benchmark": provenance.benchmark_label(block.benchmark),
        "population": block.population,
        "question": row["question"],
        "split": row["split"],
    }
    if row["persons"] < minimum:
        return [{**base, "metric": "accuracy", "suppressed": True}]
    sizes = {"images": row["images"], "persons": row["persons"], "runs": row["runs"], "chance": row["chance"]}
    rows = []
    for metric in ("accuracy", "balanced_accuracy", "person_accuracy", "ece", "generation_accuracy"):
        if math.isnan(row[f"{metric}_mean"]):
            continue
        rows.append(
            {
                **base,
                "metric": metric,
                "mean": row[f"{metric}_mean"],
                "sd_over_runs": row[f"{metric}_sd"],
                "low_95": row.get(f"{metric}_low", math.nan),
                "high_95": row.get(f"{metric}_high", math.nan),
                **sizes,
                "suppressed": False,
            }
        )
    if not math.isnan(row["unparsed_share"]):
        rows.append({**base, "metric": "unparsed_share", "mean": row["unparsed_share"], **sizes, "suppressed": False})
    return rows


def _runs_note(params: Params) -> str:
    if params.split.mode == "cross_validation":
        return (
            f"Cross-validation over people with {params.split.folds} folds, {params.training.runs} of them run; run k "
            "tests fold k. ± is the standard deviation over folds, [ ] the 95 % bootstrap interval over persons of all "
            "tested folds together."
        )
    return (
        f"{params.training.runs} runs with different seeds ({params.training.control_runs} of each control; the "
        "published work used five). ± is the standard deviation over runs, [ ] the 95 % bootstrap interval over "
        "persons."
    )


def table2(summary: pd.DataFrame, params: Params, provenance: Provenance, root: Path = Path(".")) -> Table:
    """The classification table; in cross-validation profiles the text ablations with and without the image."""
    crossed = params.split.mode == "cross_validation"
    if crossed:
        shown = summary
        title = "Table 2. Classification by text and image, cross-validated over people, %"
    else:
        shown = summary
        title = f"Table 2. Classification accuracy, %, text: {labels.text_label(params.evaluate.headline_text)}"
    notes = [_runs_note(params)]
    if (shown["split"] == "zeroshot").any():
        notes.append("Zero-shot cohorts were never used for training, validation or any choice.")
    if crossed:
        notes.append(
            f"'{OLDER_PEOPLE}' are the same predictions for people of at least {OLDER_AGE_YEARS:.0f} years: age alone "
            "tells young adults from people with dementia, so this is the honest set. Where the label is defined by "
            "the CDR, 'full record' contains the answer; read 'without CDR'."
        )
    if not crossed and any(headline_of(params, name) != params.evaluate.headline_text for name in shown["benchmark"]):
        notes.append("The OASIS label is the global CDR: its columns show the record without CDR.")
    if not params.simulated and shown["question"].isin(["sex", "age_group"]).all():
        people = int(shown["persons"].max())
        notes.append(
            f"Only {people} people: this shows that the pipeline runs on real scans, not what a model can reach."
        )
    return _classification_table(
        "table2",
        provenance.title(title),
        shown,
        params,
        provenance,
        notes,
        show_text=crossed,
        counts=parameter_counts(params, root),
        headline_only=not crossed,
    )


def table_text_ablation(summary: pd.DataFrame, params: Params, provenance: Provenance) -> Table:
    """Every text ablation of every setting."""
    notes = [
        _runs_note(params),
        "The CDR nearly defines the label in some cohorts: read 'without CDR' beside 'full record'.",
    ]
    title = provenance.title("Text ablation: what the record's fields contribute, %")
    kept = summary[summary["setting"].map(labels.section_of) != labels.SECTION_ORACLES]
    return _classification_table("table_text_ablation", title, kept, params, provenance, notes)


def table_image_gain(
    predictions: pd.DataFrame, params: Params, provenance: Provenance, ages: pd.Series | None = None
) -> Table | None:
    """What the image adds: each setting minus its control trained on shuffled (or no) images, same images, paired.

    Returns None when no control was run.
    """
    rows = tested(predictions)
    controls = sorted({setting for setting in rows["setting"].unique() if labels.is_control(setting)})
    settings = [s for s in ("frozen", "lora") if (rows["setting"] == s).any()]
    if not controls or not settings:
        return None
    minimum = params.report.minimum_cell
    populations: list[tuple[str, pd.DataFrame]] = [(ALL_PEOPLE, rows)]
    if params.split.mode == "cross_validation" and ages is not None:
        populations.append((OLDER_PEOPLE, rows[rows["image_id"].map(ages) >= OLDER_AGE_YEARS]))
    tidy: list[dict[str, Any]] = []
    cells: list[list[str]] = []
    keys = ["language_model", "text_ablation", "benchmark", "question"]
    order = list(params.split.benchmarks)
    for population, part in populations:
        for key, group in sorted(
            part[part["language_model"] != ""].groupby(keys),
            key=lambda item: (
                labels.rank(item[0][2], order),
                labels.rank(item[0][0], params.language_models),
                labels.rank(item[0][1], list(labels.TEXT_ABLATIONS)),
            ),
        ):
            model, text, benchmark, question = key
            for setting in settings:
                for control in controls:
                    first, second = group[group["setting"] == setting], group[group["setting"] == control]
                    if first.empty or second.empty:
                        continue
                    gain = metrics.paired_difference(first, second, samples=params.evaluate.bootstrap_samples)
                    base = {
                        "benchmark": provenance.benchmark_label(str(benchmark)), "population": population,
                        "question": question, "language_model": model, "text_ablation": text, "setting": setting,
                        "control": control,
                    }  # fmt: skip
                    suppressed = gain["persons"] < minimum
                    tidy.append(
                        {**base, "suppressed": suppressed, **({} if suppressed else {k: gain[k] for k in sorted(gain)})}
                    )
                    shown = [
                        f"n<{minimum}" if suppressed else _signed(gain, metric)
                        for metric in ("accuracy", "balanced_accuracy")
                    ]
                    cells.append(
                        [
                            base["benchmark"] + ("" if population == ALL_PEOPLE else f", {population}"),
                            labels.language_model_label(params, model),
                            labels.setting_label(setting),
                            labels.text_label(text),
                            f"minus {labels.setting_label(control)}",
                            *shown,
                        ]
                    )
    if not cells:
        return None
    return Table(
        name="table_image_gain",
        title=provenance.title("What the image adds, percentage points"),
        header=["Benchmark", "Language model", "Setting", "Text", "Against", "accuracy", "balanced accuracy"],
        rows=cells,
        tidy=tidy_with(tidy, provenance),
        notes=notes_with(
            provenance,
            "Paired differences on the same images, averaged over runs, with 95 % bootstrap intervals over persons. "
            "The control is trained the same way with images of other people (or none), so a difference is what the "
            "right image adds. The control is trained with a frozen language model; against LoRA the difference also "
            "holds what LoRA adds.",
        ),
        left=5,
    )


def _signed(gain: dict[str, float], metric: str) -> str:
    difference, low, high = (100 * gain[f"{metric}_{part}"] for part in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


# --- published figures, never in a table with simulated people --------------------------------------------------------


def table_published() -> Table:
    """The published classification and visual-question figures, as their authors reported them."""
    header = ["Language model", "Setting", "LM size", "Learnable", *published.BENCHMARKS]
    rows = [
        [row.language_model, row.setting, row.language_model_size, row.learnable, *(f"{a:.1f}" for a in row.accuracy)]
        for row in published.CLASSIFICATION
    ]
    sections = {
        0: "Classification accuracy, % (AIBL and MIRIAD zero-shot)",
        len(rows): "Closed-ended visual questions, %",
    }
    tidy = [
        {
            "task": "classification",
            "system": row.language_model,
            "setting": row.setting,
            "benchmark": name,
            "accuracy": value,
        }
        for row in published.CLASSIFICATION
        for name, value in zip(published.BENCHMARKS, row.accuracy, strict=True)
    ]
    blanks = [""] * (len(header) - 2)
    for system, value, correct, total in published.CLOSED_ENDED:
        low, high = metrics.wilson_interval(correct, total)
        interval = f"{value:.2f} [{percent(low)}, {percent(high)}], N={total} inferred"
        rows.append([system, interval, *blanks])
        tidy.append({"task": "vqa", "system": system, "setting": "closed-ended", "benchmark": "", "accuracy": value})
    sections[len(rows)] = "Newer systems, as their authors report them"
    for system, figures, _unit in published.NEWER:
        rows.append([system, figures, *blanks])
        tidy.append({"task": "newer", "system": system, "setting": figures, "benchmark": "", "accuracy": math.nan})
    return Table(
        name="published",
        title="Published figures (reported by their authors, not measured here)",
        header=header,
        rows=rows,
        tidy=pd.DataFrame(tidy).assign(source="reported"),
        sections=sections,
        notes=[
            published.CAVEAT,
            "The number of closed-ended questions was not published; 43 and 46 right of 59 give both percentages. The "
            "brackets are Wilson intervals for these counts: the two systems are 3 questions apart.",
        ],
        left=4,
    )


# --- all together -----------------------------------------------------------------------------------------------------


def build_tables(
    params: Params,
    root: Path = Path("."),
    *,
    out: Path | None = None,
    predictions: pd.DataFrame | None = None,
    summary: pd.DataFrame | None = None,
) -> dict[str, Table]:
    """Make all tables and write them to ``out`` (default ``data/report``).

    Parameters
    ----------
    params
        The parameters in force.
    root
        The project's folder.
    out
        Where to write.
    predictions, summary
        What :func:`read_predictions` and :func:`summarize` give, where it is at hand.

    Returns
    -------
    dict
        Tables by name: ``table1``, ``table2``, ``table3``, ``table_text_ablation`` (with held-out people: in
        cross-validation Table 2 is it), ``table_image_gain`` (when a control was trained), ``published``.
    """
    from medalign3d.report.questions import read_answers, table3

    provenance = collect(params, root)
    predictions = read_predictions(params, root) if predictions is None else predictions
    ages = read_ages(root)
    summary = summarize(predictions, params, ages) if summary is None else summary
    tables = [
        table1(params, provenance, root),
        table2(summary, params, provenance, root),
        table3(read_answers(params, root), params, provenance),
    ]
    if params.split.mode == "held_out":
        tables.append(table_text_ablation(summary, params, provenance))
    gain = table_image_gain(predictions, params, provenance, ages)
    if gain is not None:
        tables.append(gain)
    tables.append(table_published())
    for table in tables:
        table.write(root / "data/report" if out is None else out)
    return {table.name: table for table in tables}


def headline_metrics(summary: pd.DataFrame, params: Params, provenance: Provenance) -> dict[str, Any]:
    """The numbers of Table 2 for ``data/metrics.json``: benchmark -> model/setting/text -> values."""
    result: dict[str, Any] = {"simulated": provenance.simulated, "profile": provenance.profile}
    for row in summary.to_dict("records"):
        if row["persons"] < params.report.minimum_cell:
            continue
        benchmark = provenance.benchmark_label(row["benchmark"])
        if row["population"] != ALL_PEOPLE:
            benchmark += " 60+"
        name = "/".join(part for part in (row["language_model"], row["setting"], row["text_ablation"]) if part)
        values = {
            key: round(float(row[key]), 4)
            for key in ("accuracy_mean", "accuracy_sd", "balanced_accuracy_mean", "balanced_accuracy_sd")
            if not math.isnan(row[key])
        }
        result.setdefault(benchmark, {})[name] = values
    json.dumps(result)  # what cannot be written as JSON fails here, by name
    return result
