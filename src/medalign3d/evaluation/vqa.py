"""Closed-ended visual question answering: the question set, three scorers, and the figures beside which to read them.

Questions come in the columns of M3D-VQA (Bai et al., M3D, 2024) plus our own. Image questions ask for findings whose
truth is the simulator's answer key for simulated images, otherwise a measure of the normalized image (column
``truth_source``). Each answer is right equally often within a question and cohort, the letters are shuffled, and images
in the middle band of the training images' values are not asked about. The record given with a question holds
demographics only, so that the text cannot answer it. Knowledge questions need no image (``needs_image`` false) and are
reported apart; the tiny language models of the demo profile have read most of these facts in their training text.

Models are asked in the wording of their training: the choices stand behind the question in the order of their letters,
and the answer is one of them in words. Binding letters to choices is a skill of large language models only. The reply
is the generated text in the benchmark's form "<letter>. <choice>" where it is exactly one choice's words, else
the generated text as it is.

Scorers: ``likelihood`` (the choice with the largest mean token log-likelihood), ``strict`` (the first stand-alone
letter of the reply, else exactly the words) and ``m3d_compat`` (the rule of the M3D benchmark: right when "<letter>."
occurs anywhere in the reply, which also accepts a list of all letters).

Not supported: twin images with one finding changed.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medalign3d import files
from medalign3d.ehr import text as record_text
from medalign3d.errors import InputError
from medalign3d.evaluation.baselines import read_truth
from medalign3d.evaluation.metrics import wilson_interval
from medalign3d.evaluation.predict import EvaluationData, answer_items, evaluated_runs, load_model, normalise_answer
from medalign3d.params import Params
from medalign3d.progress import Progress
from medalign3d.training.data import read_images, split_column
from medalign3d.training.findings import FINDINGS, LETTERS, Thresholds, training_thresholds, with_options
from medalign3d.training.loop import pick_device
from medalign3d.training.processes import MODEL_MODULES, Job, run_jobs

M3D_COLUMNS = [
    "Image Path",
    "Text",
    "Question Type",
    "Question",
    "Choice A",
    "Choice B",
    "Choice C",
    "Choice D",
    "Answer",
    "Answer Choice",
]
OWN_COLUMNS = [
    "item_id",
    "image_id",
    "person_id",
    "dataset",
    "split",
    "run",
    "finding",
    "needs_image",
    "truth_source",
    "simulated",
]
QUESTION_COLUMNS = M3D_COLUMNS + OWN_COLUMNS
"""Columns of ``questions.csv``. ``run`` is -1 for questions of all runs, with cross-validation the run that asks it.

``Image Path`` is relative to the data folder. An absent choice is the text ``NA``. ``Text`` describes the truth and is
not an input."""

PREDICTION_COLUMNS = [
    "item_id",
    "image_id",
    "person_id",
    "dataset",
    "split",
    "finding",
    "needs_image",
    "truth_source",
    "language_model",
    "setting",
    "run",
    "choices",
    "scores",
    "answer_choice",
    "likelihood_choice",
    "generated_text",
    "reply",
    "strict_choice",
    "likelihood_correct",
    "strict_correct",
    "m3d_compat_correct",
    "simulated",
]
SCORERS = ("likelihood", "strict", "m3d_compat")
ABNORMALITY, LOCATION = 4, 5
KNOWLEDGE = "knowledge"

KNOWLEDGE_QUESTIONS: tuple[tuple[str, str, tuple[str, str, str]], ...] = (
    (
        "Which feature supports the diagnosis of Alzheimer's disease?",
        "hippocampal atrophy",
        ("skull fracture", "intracranial haemorrhage", "pituitary adenoma"),
    ),
    (
        "What is the typical age of onset of Alzheimer's disease?",
        "60s to 70s",
        ("10s to 20s", "20s to 30s", "30s to 40s"),
    ),
    (
        "Which part of the brain shrinks early in Alzheimer's disease?",
        "hippocampus",
        ("cerebellum", "brain stem", "optic nerve"),
    ),
    ("Which spaces widen when brain tissue is lost?", "ventricles", ("frontal sinuses", "orbits", "middle ears")),
    (
        "Which allele raises the risk of Alzheimer's disease?",
        "APOE e4",
        ("APOE e2", "HLA B27", "factor V Leiden"),
    ),
    ("Which test asks a person to recall a story?", "logical memory", ("red cells", "platelets", "cholesterol")),
    ("Which finding points to loss of brain tissue?", "ventricles", ("skull fracture", "orbits", "red cells")),
    ("Where is early atrophy seen in Alzheimer's disease?", "hippocampus", ("orbits", "cerebellum", "middle ears")),
)
"""Question, right answer, wrong answers: general knowledge that needs no image."""


def likelihood_choice(letters: Sequence[str], scores: Sequence[float]) -> str:
    """The letter with the largest score."""
    return letters[int(np.argmax(scores))]


def strict_choice(generated: str, choices: dict[str, str]) -> str | None:
    """The letter that a generated text gives, or None.

    The first stand-alone letter at its beginning, else the letter of the choice whose words it is exactly.

    >>> strict_choice("B. ventricles", {"A": "orbits", "B": "ventricles"})
    'B'
    >>> strict_choice("Ventricles.", {"A": "orbits", "B": "ventricles"})
    'B'
    >>> strict_choice("A. orbits B. ventricles", {"A": "orbits", "B": "ventricles"})
    'A'
    """
    match = re.match(r"^\W*([A-D])\b", generated)
    if match and match.group(1) in choices:
        return match.group(1)
    wanted = normalise_answer(generated)
    return next((letter for letter, text in choices.items() if normalise_answer(text) == wanted), None)


def reply_of(generated: str, choices: dict[str, str]) -> str:
    """The generated text in the benchmark's form where it is exactly one choice's words, else as it is.

    >>> reply_of("Ventricles", {"A": "orbits", "B": "ventricles"})
    'B. ventricles'
    """
    wanted = normalise_answer(generated)
    found = [f"{letter}. {text}" for letter, text in choices.items() if normalise_answer(text) == wanted]
    return found[0] if len(found) == 1 else generated


def m3d_compat_correct(reply: str, letter: str) -> bool:
    """The M3D benchmark's rule: right when "<letter>." occurs anywhere in the text.

    >>> m3d_compat_correct("A. orbits B. ventricles", "B")
    True
    """
    return f"{letter}." in reply


def _balanced_rows(
    table: pd.DataFrame, thresholds: Thresholds, name: str, maximum: int, seed: list[int]
) -> list[tuple[int, str]]:
    """Rows and answers of a finding in one cohort: both answers equally often, at most ``maximum`` rows in all."""
    by_answer: dict[str, list[int]] = {label: [] for label in FINDINGS[name].answers}
    for row, record in zip(table.index, table.to_dict("records"), strict=True):
        answer = thresholds.answer(name, {str(k): v for k, v in record.items()})
        if answer is not None:
            by_answer[answer].append(int(row))
    number = min(maximum // 2, *(len(rows) for rows in by_answer.values()))
    random = np.random.default_rng(seed)
    chosen = []
    for label, rows in by_answer.items():
        chosen += [(int(row), label) for row in random.permutation(rows)[:number]]
    return sorted(chosen)


def _image_questions(params: Params, table: pd.DataFrame, truth: pd.DataFrame | None, run: int) -> list[dict[str, Any]]:
    """Image questions of one run's test and zero-shot images."""
    split = split_column(table, params, max(run, 0))
    source, measures = "measured", table
    if truth is not None:
        source = "true"
        measures = pd.concat([table[["image_id"]], truth.drop(columns=["image_id"])], axis=1)
    thresholds = training_thresholds(measures[(split == "train").to_numpy()], params.vqa.ambiguity_fraction, source)
    rows = []
    for cohort_number, cohort in enumerate(params.cohorts):
        asked = split.isin(["test", "zeroshot"]) & (table["dataset"].astype(str) == cohort)
        own = measures[asked.to_numpy()]
        for number, name in enumerate(FINDINGS):
            if name not in thresholds.bounds:
                continue
            finding = FINDINGS[name]
            seed = [params.vqa.seed, cohort_number, number, max(run, 0)]
            chosen = _balanced_rows(own, thresholds, name, params.vqa.items_per_question, seed)
            random = np.random.default_rng([*seed, 1])
            # Letters take turns within each answer, from a random start: each is right equally often.
            turn = {label: int(random.integers(2)) for label in finding.answers}
            for row, label in chosen:
                position, turn[label] = turn[label], 1 - turn[label]
                other = next(code for code in finding.answers if code != label)
                options = [finding.answers[label], finding.answers[other]]
                options = options if position == 0 else options[::-1]
                record = table.loc[row]
                low, high = thresholds.bounds[name]
                value = thresholds.value(name, {str(k): v for k, v in measures.loc[row].to_dict().items()})
                rows.append(
                    {
                        "Image Path": "/".join(Path(str(record["volume_path"])).parts[-3:]),
                        "Text": f"{finding.name}: {source} value {value:.5g}; training images' middle band "
                        f"{low:.5g} to {high:.5g}",
                        "Question Type": LOCATION if name == "smaller_hippocampus" else ABNORMALITY,
                        "Question": finding.text,
                        "Choice A": options[0],
                        "Choice B": options[1],
                        "Choice C": "NA",
                        "Choice D": "NA",
                        "Answer": finding.answers[label],
                        "Answer Choice": LETTERS[position],
                        "image_id": record["image_id"],
                        "person_id": record["person_id"],
                        "dataset": cohort,
                        "split": str(split.loc[row]),
                        "run": run,
                        "finding": name,
                        "needs_image": True,
                        "truth_source": source,
                    }
                )
    return rows


def _knowledge_questions(params: Params) -> list[dict[str, Any]]:
    """Knowledge questions; the right letter moves on from question to question."""
    random = np.random.default_rng([params.vqa.seed, 99])
    rows = []
    for number, (question, right, wrong) in enumerate(KNOWLEDGE_QUESTIONS):
        options = [wrong[i] for i in random.permutation(3)]
        options.insert(number % 4, right)
        rows.append(
            {
                "Image Path": "NA",
                "Text": "NA",
                "Question Type": ABNORMALITY,
                "Question": question,
                **{f"Choice {letter}": option for letter, option in zip(LETTERS, options, strict=True)},
                "Answer": right,
                "Answer Choice": LETTERS[number % 4],
                "image_id": "",
                "person_id": "",
                "dataset": "",
                "split": "",
                "run": -1,
                "finding": KNOWLEDGE,
                "needs_image": False,
                "truth_source": "textbook",
            }
        )
    return rows


def build_questions(params: Params, *, data_dir: str | Path = "data") -> pd.DataFrame:
    """Make the question set of the test and zero-shot images.

    Returns
    -------
    DataFrame with :data:`QUESTION_COLUMNS`.
    """
    table = read_images(params, data_dir)
    simulated = table.attrs["simulated"] == "true"
    truth = read_truth(table, params, data_dir)
    runs = range(params.training.runs) if params.split.mode == "cross_validation" else (-1,)
    rows = [row for run in runs for row in _image_questions(params, table, truth, run)]
    rows += _knowledge_questions(params)
    questions = pd.DataFrame(rows)
    questions["simulated"] = simulated
    questions["item_id"] = [f"q{number:05d}" for number in range(len(questions))]
    return questions[QUESTION_COLUMNS]


def build_m3d_vqa_ad(csv_path: str | Path, keywords: Sequence[str] = ("alzheimer", "dementia")) -> pd.DataFrame:
    """The rows of an M3D-VQA file that mention a keyword in the question, the choices or the report.

    The published "M3D-VQA-AD" was never released, so this is *a* subset of that kind, not that one.

    Returns
    -------
    DataFrame with the file's columns, ``source_row`` (its row number, from 0) and ``item_id``.

    Raises
    ------
    InputError
        When columns of the M3D-VQA format are missing.
    """
    table = pd.read_csv(csv_path, dtype=str, keep_default_na=False)
    missing = [column for column in M3D_COLUMNS if column not in table]
    if missing:
        raise InputError(
            "a file is not in the M3D-VQA format",
            where=csv_path,
            found=f"no column {', '.join(missing)}",
            expected=", ".join(M3D_COLUMNS),
            remedy="give M3D_VQA_test.csv of the M3D benchmark",
        )
    searched = ["Question", "Text", "Choice A", "Choice B", "Choice C", "Choice D", "Answer"]
    joined = table[searched].agg(" ".join, axis=1).str.lower()
    found = table[joined.apply(lambda text: any(word.lower() in text for word in keywords))].copy()
    found["source_row"] = found.index
    found["item_id"] = [f"m3d{row}" for row in found.index]
    return found.reset_index(drop=True)


def choices_of(question: Any) -> dict[str, str]:
    """Letter to choice of a question row; absent choices are left out."""
    return {letter: str(question[f"Choice {letter}"]) for letter in LETTERS if question[f"Choice {letter}"] != "NA"}


def ask_run(
    params: Params,
    language_model: str,
    setting: str,
    run: int,
    questions: pd.DataFrame,
    data_dir: str | Path = "data",
    number: int = 0,
) -> pd.DataFrame:
    """Put the questions to one setting and run of a language model.

    Returns
    -------
    DataFrame with :data:`PREDICTION_COLUMNS`.
    """
    device = pick_device(params.training.device, number)
    mine = questions[questions["run"].isin([-1, run])].reset_index(drop=True)
    data = EvaluationData(params, run, setting, data_dir, ("test", "zeroshot"))
    row_of = {image_id: row for row, image_id in enumerate(data.table["image_id"])}
    model = load_model(params, language_model, setting, run, data_dir).to(device)
    results: list[pd.DataFrame] = []
    for needs_image, part in mine.groupby("needs_image"):
        part = part.reset_index(drop=True)
        choices = [choices_of(row) for row in part.to_dict("records")]
        prefixes = None
        texts = [""] * len(part)
        if needs_image:
            rows = [row_of[image_id] for image_id in part["image_id"]]
            texts = [
                record_text.render(data.records[row], ablation="demographics_only", **data.text_options) for row in rows
            ]
            shown = sorted({int(data.image_rows[row]) for row in rows})
            with torch.inference_mode():
                by_image = data.prefixes(model, shown, device, params.evaluate.batch_size)
            position = {row: index for index, row in enumerate(shown)}
            if by_image is not None:
                prefixes = by_image[[position[int(data.image_rows[row])] for row in rows]]
        scores, generated = answer_items(
            model,
            prefixes,
            texts,
            [with_options(q, list(c.values())) for q, c in zip(part["Question"], choices, strict=True)],
            [list(c.values()) for c in choices],
            generate=True,
            batch_size=params.evaluate.batch_size,
        )
        replies = [reply_of(str(text), c) for text, c in zip(generated, choices, strict=True)]
        strict = [strict_choice(reply, c) for reply, c in zip(replies, choices, strict=True)]
        likely = [likelihood_choice(list(c), values) for c, values in zip(choices, scores, strict=True)]
        right = part["Answer Choice"].tolist()
        results.append(
            pd.DataFrame(
                {
                    **{
                        name: part[name].tolist()
                        for name in (
                            "item_id",
                            "image_id",
                            "person_id",
                            "dataset",
                            "split",
                            "finding",
                            "needs_image",
                            "truth_source",
                        )
                    },
                    "language_model": language_model,
                    "setting": setting,
                    "run": run,
                    "choices": [list(c) for c in choices],
                    "scores": scores,
                    "answer_choice": right,
                    "likelihood_choice": likely,
                    "generated_text": generated,
                    "reply": replies,
                    "strict_choice": strict,
                    "likelihood_correct": [a == b for a, b in zip(likely, right, strict=True)],
                    "strict_correct": [a == b for a, b in zip(strict, right, strict=True)],
                    "m3d_compat_correct": [
                        m3d_compat_correct(reply, letter) for reply, letter in zip(replies, right, strict=True)
                    ],
                    "simulated": part["simulated"].tolist(),
                }
            )[PREDICTION_COLUMNS]
        )
    return pd.concat(results, ignore_index=True)


def majority_letter(questions: pd.DataFrame) -> pd.DataFrame:
    """What always giving the most frequent right letter of a finding scores; same columns as the predictions."""
    rows = []
    for _, part in questions.groupby("finding", sort=False):
        letter = str(part["Answer Choice"].value_counts(sort=True).sort_index().idxmax())
        for record in part.to_dict("records"):
            letters = list(choices_of(record))
            hit = letter == record["Answer Choice"]
            rows.append(
                {
                    **{name: record[name] for name in PREDICTION_COLUMNS if name in record},
                    "language_model": "baseline",
                    "setting": "majority_letter",
                    "run": max(int(record["run"]), 0),
                    "choices": letters,
                    "scores": [1.0 if entry == letter else 0.0 for entry in letters],
                    "answer_choice": record["Answer Choice"],
                    "likelihood_choice": letter,
                    "generated_text": f"{letter}.",
                    "reply": f"{letter}.",
                    "strict_choice": letter,
                    "likelihood_correct": hit,
                    "strict_correct": hit,
                    "m3d_compat_correct": hit,
                }
            )
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


def run_vqa(params: Params, *, data_dir: str | Path = "data") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Build the questions and put them to every language model, setting and run.

    Returns
    -------
    questions, predictions
    """
    questions = build_questions(params, data_dir=data_dir)
    wanted = [(name, setting, run) for name in params.language_models for setting, run in evaluated_runs(params)]
    jobs: list[Job] = [
        (
            functools.partial(ask_run, params, name, setting, run, questions, data_dir),
            {"number": number},
        )
        for number, (name, setting, run) in enumerate(wanted)
    ]
    parts: dict[int, pd.DataFrame] = {}
    with Progress("vqa", len(jobs)) as progress:
        for number, part in run_jobs(jobs, workers=params.evaluate.workers, preload=MODEL_MODULES):
            parts[number] = part
            progress.advance(1, " ".join(str(word) for word in wanted[number]))
    predictions = pd.concat([*(parts[n] for n in range(len(jobs))), majority_letter(questions)], ignore_index=True)
    return questions, predictions


def write_vqa(folder: str | Path, questions: pd.DataFrame, predictions: pd.DataFrame) -> None:
    """Write ``questions.csv`` and ``predictions.parquet`` into ``folder``."""
    place = Path(folder)
    files.write_csv(
        place / "questions.csv",
        [{str(k): v for k, v in row.items()} for row in questions.to_dict("records")],
        QUESTION_COLUMNS,
    )
    simulated = str(bool(questions["simulated"].all())).lower()
    files.write_parquet(place / "predictions.parquet", predictions, {"simulated": simulated})


def summarize_vqa(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy per language model, setting, group of questions and scorer, with N and Wilson interval.

    Groups are each finding, ``image`` (all that need the image), ``image_zeroshot`` (of these, unseen cohorts only) and
    ``knowledge``. The interval is that of one run's N questions at the mean accuracy over runs; with cross-validation
    N counts the questions of all folds.

    Returns
    -------
    DataFrame with ``language_model, setting, group, scorer, questions, runs, accuracy_mean, accuracy_sd, low, high,
    chance, simulated``.
    """
    groups: list[tuple[str, pd.Series]] = [
        (str(name), predictions["finding"] == name) for name in dict.fromkeys(predictions["finding"])
    ]
    needs = predictions["needs_image"].astype(bool)
    groups += [("image", needs), ("image_zeroshot", needs & (predictions["split"] == "zeroshot"))]
    rows = []
    for group, mask in groups:
        chosen = predictions[mask]
        for (language_model, setting), part in chosen.groupby(["language_model", "setting"], sort=False):
            number = int(part["item_id"].nunique())
            for scorer in SCORERS:
                per_run = part.groupby("run")[f"{scorer}_correct"].mean().to_numpy(dtype=np.float64)
                pooled = float(part[f"{scorer}_correct"].mean())
                low, high = wilson_interval(round(pooled * number), number)
                rows.append(
                    {
                        "language_model": language_model,
                        "setting": setting,
                        "group": group,
                        "scorer": scorer,
                        "questions": number,
                        "runs": len(per_run),
                        "accuracy_mean": float(per_run.mean()),
                        "accuracy_sd": float(per_run.std(ddof=1)) if len(per_run) > 1 else math.nan,
                        "low": low,
                        "high": high,
                        "chance": float(np.mean([1 / len(c) for c in part["choices"]])),
                        "simulated": bool(part["simulated"].all()),
                    }
                )
    return pd.DataFrame(rows)
