"""Predictions of language models: candidate scoring (the headline) and free greedy generation beside it.

The visual prefix of an image is computed once and shared by all questions, text ablations and ways of answering. The
settings are ``text_only`` (the frozen language model, no image, no training), ``frozen`` and ``lora`` (with image), and
``control_<name>`` for each trained control. Rows of the validation split are written too, flagged by ``split``, so that
models can be chosen on them and never on test people.

With cross-validation, run ``k`` predicts the people of fold ``k``, for every setting alike.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from medalign3d import files
from medalign3d.ehr import text as record_text
from medalign3d.errors import InputError
from medalign3d.params import Params
from medalign3d.progress import Progress
from medalign3d.training.data import (
    EVALUATED_SPLITS,
    EvaluationItem,
    Volumes,
    as_input,
    chunks,
    evaluation_items,
    evaluation_text,
    read_images,
    shuffled_rows,
    split_column,
)
from medalign3d.training.loop import pick_device
from medalign3d.training.processes import MODEL_MODULES, Job, run_jobs
from medalign3d.training.runs import model_config, run_folder

PREDICTION_COLUMNS = [
    "image_id",
    "person_id",
    "dataset",
    "benchmark",
    "language_model",
    "setting",
    "text_ablation",
    "run",
    "split",
    "question",
    "candidates",
    "scores",
    "predicted",
    "generated_text",
    "parsed_answer",
    "truth",
    "simulated",
]
"""Columns of ``predictions.parquet``: one row per image, question, text ablation, setting and run.

``candidates`` are class codes, ``scores`` their mean token log-likelihoods (EOS included) for language models and log
probabilities for baselines; ``parsed_answer`` is the class code of the generated text, null where it is no answer.
"""


def normalise_answer(text: str) -> str:
    """An answer in the form in which it is compared: lower case, single blanks, no outer punctuation.

    >>> normalise_answer("  Mild  cognitive impairment. ")
    'mild cognitive impairment'
    """
    return re.sub(r"\s+", " ", text).strip().strip(".,;:!?\"'").strip().lower()


def parse_answer(text: str, candidates: Sequence[str], answers: Sequence[str]) -> str | None:
    """The class code whose answer equals ``text`` after normalisation; None where none does. Never a substring match.

    >>> parse_answer("No dementia.", ["NonDEM", "DEM"], ["no dementia", "dementia"])
    'NonDEM'
    >>> parse_answer("dementia is unlikely", ["NonDEM", "DEM"], ["no dementia", "dementia"]) is None
    True
    """
    wanted = normalise_answer(text)
    return next((c for c, a in zip(candidates, answers, strict=True) if normalise_answer(a) == wanted), None)


class EvaluationData:
    """The evaluated images of one run, as a setting sees them.

    Parameters
    ----------
    params
        All parameters.
    run
        Run number; decides the splits with cross-validation.
    setting
        ``control_shuffled`` gives each image to another person of the same cohort and split, ``control_blind`` shows
        black volumes, ``text_only`` reads no volume.
    data_dir
        The pipeline's data folder.
    splits
        Which splits.
    """

    def __init__(
        self,
        params: Params,
        run: int,
        setting: str,
        data_dir: str | Path = "data",
        splits: Sequence[str] = EVALUATED_SPLITS,
    ) -> None:
        table = read_images(params, data_dir)
        simulated = table.attrs["simulated"] == "true"
        table["split"] = split_column(table, params, run)
        self.table = table[table["split"].isin(list(splits))].reset_index(drop=True)
        self.simulated = simulated
        self.setting = setting
        self.params = params
        self.records: list[dict[str, Any]] = self.table.to_dict("records")  # type: ignore[assignment]
        self.text_options = record_text.text_options(params)
        self.image_rows: npt.NDArray[np.int64] = np.arange(len(self.table))
        if setting == "control_shuffled":
            groups = (self.table["dataset"].astype(str) + "/" + self.table["split"].astype(str)).tolist()
            self.image_rows = shuffled_rows(self.table["person_id"].tolist(), groups, params.training.seed + run)
        self.volumes: Volumes | None = None
        if setting not in ("text_only", "control_blind"):
            self.volumes = Volumes(self.table["volume_path"].tolist(), params.normalize.shape)

    def items(self) -> list[EvaluationItem]:
        """The diagnosis items."""
        splits = sorted(set(self.table["split"]))
        return evaluation_items(self.table, self.records, self.params, splits, self.image_rows)

    def images(self, rows: Sequence[int]) -> Tensor:
        """Model input for the images of ``rows``."""
        if self.volumes is None:
            return torch.zeros((len(rows), 1, *self.params.normalize.shape))
        return as_input(self.volumes.take(rows))

    def prefixes(self, model: Any, rows: Sequence[int], device: torch.device, batch_size: int) -> Tensor | None:
        """Visual prefixes (R, L, D) of the images of ``rows`` (on the model's device); None for ``text_only``."""
        if self.setting == "text_only":
            return None
        # A black volume has one prefix, whoever's it is.
        chosen = list(rows)[:1] if self.setting == "control_blind" else list(rows)
        parts = [
            model.visual_prefix(self.images([chosen[i] for i in chunk]).to(device))
            for chunk in chunks(len(chosen), batch_size)
        ]
        result = torch.cat(parts)
        return result.expand(len(rows), -1, -1) if self.setting == "control_blind" else result


def load_model(params: Params, language_model: str, setting: str, run: int, data_dir: str | Path = "data") -> Any:
    """The model of a setting and run, in evaluation mode on the CPU.

    Raises
    ------
    InputError
        When the run was not trained.
    """
    from medalign3d.model.composite import MedAlign3D

    if setting == "text_only":
        model = MedAlign3D.from_checkpoints(model_config(params, language_model), 0)
    else:
        kind = "control" if setting.startswith("control_") else setting
        folder = run_folder(Path(data_dir) / "models" / language_model, kind, run, setting.removeprefix("control_"))
        if not folder.is_dir():
            raise InputError("a trained run is missing", where=folder, remedy="run `dvc repro` to train it")
        model = MedAlign3D.load(folder)
    model.eval()
    return model


@torch.inference_mode()
def answer_items(
    model: Any,
    prefixes: Tensor | None,
    texts: Sequence[str],
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    generate: bool,
    batch_size: int,
) -> tuple[list[list[float]], list[str | None]]:
    """Score candidate answers of N prompts, and generate freely.

    Prompts of similar length share a batch, so little padding is computed; results do not depend on batch mates.

    Parameters
    ----------
    model
        The composite model.
    prefixes
        (N, L, D) visual prefixes, or None for text only.
    texts, questions, answers
        N records, questions and lists of candidate answers.
    generate
        Whether to generate freely as well.
    batch_size
        Prompts at a time.

    Returns
    -------
    scores, generated
        N lists of mean token log-likelihoods; N texts (None where ``generate`` is off).
    """
    order = sorted(range(len(texts)), key=lambda i: (len(answers[i]), len(texts[i]) + len(questions[i])))
    scores: list[list[float]] = [[] for _ in texts]
    generated: list[str | None] = [None] * len(texts)
    for chunk in chunks(len(order), batch_size):
        part = [order[i] for i in chunk]
        prefix = None if prefixes is None else prefixes[part]
        own_texts, own_questions = [texts[i] for i in part], [questions[i] for i in part]
        values = model.score(own_texts, own_questions, [list(answers[i]) for i in part], prefix=prefix).float().cpu()
        for i, row in zip(part, values.tolist(), strict=True):
            scores[i] = row[: len(answers[i])]
        if generate:
            for i, text in zip(part, model.generate(own_texts, own_questions, prefix=prefix), strict=True):
                generated[i] = text
    return scores, generated


def predict_run(
    params: Params, language_model: str, setting: str, run: int, data_dir: str | Path = "data", number: int = 0
) -> pd.DataFrame:
    """Predictions of one setting and run: every evaluated image with every text ablation."""
    device = pick_device(params.training.device, number)
    data = EvaluationData(params, run, setting, data_dir)
    items = data.items()
    if not items:
        raise InputError(
            "no image to evaluate",
            where="data/splits/assignment.csv",
            found=f"run {run} has no labelled test image",
            remedy="check split.benchmarks in params.yaml against the cohorts' labels",
        )
    model = load_model(params, language_model, setting, run, data_dir).to(device)
    size = params.evaluate.batch_size
    shown = sorted({item.image_row for item in items})
    with torch.inference_mode():
        by_image = data.prefixes(model, shown, device, size)
    position = {row: index for index, row in enumerate(shown)}
    prefixes = None if by_image is None else by_image[[position[item.image_row] for item in items]]
    rows: list[dict[str, Any]] = []
    for ablation in params.evaluate.text_ablations:
        scores, generated = answer_items(
            model,
            prefixes,
            [evaluation_text(data.records[i.row], ablation, i.question_name, data.text_options) for i in items],
            [item.question for item in items],
            [item.answers for item in items],
            generate=params.evaluate.generate,
            batch_size=size,
        )
        for item, values, text in zip(items, scores, generated, strict=True):
            record = data.records[item.row]
            rows.append(
                {
                    "image_id": record["image_id"],
                    "person_id": record["person_id"],
                    "dataset": record["dataset"],
                    "benchmark": item.benchmark,
                    "language_model": language_model,
                    "setting": setting,
                    "text_ablation": ablation,
                    "run": run,
                    "split": item.split,
                    "question": item.question_name,
                    "candidates": list(item.candidates),
                    "scores": values,
                    "predicted": item.candidates[int(np.argmax(values))],
                    "generated_text": text,
                    "parsed_answer": None if text is None else parse_answer(text, item.candidates, item.answers),
                    "truth": item.truth,
                    "simulated": data.simulated,
                }
            )
    return pd.DataFrame(rows, columns=PREDICTION_COLUMNS)


def evaluated_runs(params: Params) -> list[tuple[str, int]]:
    """``(setting, run)`` pairs of one language model.

    Text only does not depend on a seed: with held-out people it is one run, with cross-validation one per fold.
    """
    runs: list[tuple[str, int]] = []
    for setting in params.evaluate.settings:
        single = setting == "text_only" and params.split.mode == "held_out"
        runs += [(setting, run) for run in range(1 if single else params.training.runs)]
    for control in params.training.controls:
        runs += [(f"control_{control}", run) for run in range(params.training.control_runs)]
    return runs


def evaluate_language_model(params: Params, language_model: str, *, data_dir: str | Path = "data") -> pd.DataFrame:
    """Predictions of one language model in all settings and runs, in ``evaluate.workers`` processes.

    Returns
    -------
    DataFrame with :data:`PREDICTION_COLUMNS`.
    """
    wanted = evaluated_runs(params)
    job = functools.partial(predict_run, params, language_model, data_dir=data_dir)
    jobs: list[Job] = [
        (job, {"setting": setting, "run": run, "number": number}) for number, (setting, run) in enumerate(wanted)
    ]
    parts: dict[int, pd.DataFrame] = {}
    with Progress(f"evaluate {language_model}", len(jobs)) as progress:
        for number, part in run_jobs(jobs, workers=params.evaluate.workers, preload=MODEL_MODULES):
            parts[number] = part
            progress.advance(1, f"{wanted[number][0]} run {wanted[number][1]}")
    return pd.concat([parts[number] for number in range(len(jobs))], ignore_index=True)


def write_predictions(path: str | Path, predictions: pd.DataFrame) -> None:
    """Write predictions as parquet, labelled simulated or not."""
    simulated = bool(predictions["simulated"].all()) if len(predictions) else False
    files.write_parquet(path, predictions, {"simulated": str(simulated).lower()})


@torch.inference_mode()
def answer_one(
    model_dir: str | Path,
    volume: npt.NDArray[np.uint8] | None,
    text: str,
    question: str,
    candidates: Mapping[str, str] | None = None,
    *,
    model: Any = None,
) -> dict[str, Any]:
    """Answer one question about one image and record.

    Parameters
    ----------
    model_dir
        A trained run's folder.
    volume
        Normalized volume (X, Y, Z) of uint8; None asks without an image.
    text
        The record's text; may be empty.
    question
        The name of a known question (its options are added), or any question in words.
    candidates
        Code to answer; by default those of a known question. Without candidates only the generated text is given.
    model
        A loaded model, to save loading it again.

    Returns
    -------
    dict with ``question`` (as asked), ``generated``, ``answer`` (text of the best candidate, or the generated text),
    ``predicted`` (its code or None), and ``probabilities`` (code to share; empty without candidates).
    """
    from medalign3d.ehr.questions import QUESTIONS
    from medalign3d.evaluation.metrics import softmax
    from medalign3d.model.composite import MedAlign3D

    if model is None:
        model = MedAlign3D.load(Path(model_dir))
    model.eval()
    asked = question
    if question in QUESTIONS:
        asked = QUESTIONS[question].with_options()
        candidates = dict(QUESTIONS[question].answers) if candidates is None else candidates
    prefix = None
    if volume is not None:
        prefix = model.visual_prefix(as_input(np.asarray(volume)[None]).to(next(model.parameters()).device))
    generated = model.generate([text], [asked], prefix=prefix)[0]
    result: dict[str, Any] = {
        "question": asked,
        "generated": generated,
        "answer": generated,
        "predicted": None,
        "probabilities": {},
    }
    if candidates:
        scores = model.score([text], [asked], [list(candidates.values())], prefix=prefix)[0].float().cpu().numpy()
        shares = softmax(scores)
        codes = list(candidates)
        best = codes[int(scores.argmax())]
        result |= {
            "answer": candidates[best],
            "predicted": best,
            "probabilities": {code: float(share) for code, share in zip(codes, shares, strict=True)},
        }
    return result
