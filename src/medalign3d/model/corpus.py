"""Image-free clinical text on which the tiny language models are trained: records, questions and answers.

Records are random people in the wording of :mod:`medalign3d.ehr.text`; diagnoses follow *crude* cut-offs with noise, so
that a language model trained on them knows roughly what the scores mean, but not what an image would add. Half of the
records carry a sentence about the image, from which a language model learns that findings and diagnosis belong
together; this is what a visual prefix can later speak to.

Cut-offs are round, textbook-like ones for the Mini-Mental State Examination, the Clinical Dementia Rating and delayed
recall; they are deliberately not tuned to any cohort.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

from medalign3d.ehr.questions import QUESTIONS, Question, answer_of
from medalign3d.ehr.text import FIELDS, HISTORY_WORDS, LAB_WORDS, render
from medalign3d.model.language import format_question

LABEL_NOISE = 0.12
SINGLE_SCORE_FRACTION = 0.25  # labels that follow one score rather than the mean of all
FINDING_SENTENCE_FRACTION = 0.5
MULTIPLE_CHOICE_FRACTION = 0.5
WITH_OPTIONS_FRACTION = 0.5
DIALOGUE_FRACTION = 0.06
LETTERS = "ABCD"

DX3 = ("NC", "MCI", "AD_DEM")

_GRADES: dict[str, tuple[str, str, str]] = {
    "hippocampi": ("normal hippocampi", "mild hippocampal atrophy", "marked hippocampal atrophy"),
    "ventricles": ("normal ventricles", "mildly enlarged ventricles", "markedly enlarged ventricles"),
    "cortex": ("normal cortex", "mild cortical atrophy", "marked cortical atrophy"),
}

KNOWLEDGE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Which feature supports the diagnosis of Alzheimer's disease?",
        "hippocampal atrophy",
        ("skull fracture", "intracranial haemorrhage", "pituitary adenoma", "arachnoid cyst"),
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
    (
        "Which spaces widen when brain tissue is lost?",
        "ventricles",
        ("frontal sinuses", "orbits", "middle ears"),
    ),
    (
        "Which allele raises the risk of Alzheimer's disease?",
        "APOE e4",
        ("APOE e2", "HLA B27", "factor V Leiden"),
    ),
    (
        "Which test asks a person to recall a story?",
        "logical memory",
        ("red cells", "platelets", "cholesterol"),
    ),
)
"""Question, correct answer, wrong answers: general knowledge that needs no image."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One training text: a record (may be empty), a question and its answer."""

    text: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """Record and question as a language model reads them."""
        return f"{self.text} {format_question(self.question)}".strip()


def multiple_choice(question: str, options: list[str]) -> str:
    """A question with lettered options: ``Which ...? A. hippocampus B. cerebellum``; its answer is ``A.`` or ``B.``."""
    return question + " " + " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def _clip(value: float, low: float, high: float) -> int:
    return round(min(max(value, low), high))


def sample_record(rng: random.Random) -> dict[str, Any]:
    """A random person with the columns of the harmonized table; ``severity`` in 0-1 drives the scores, loosely."""
    severity = rng.random()
    record: dict[str, Any] = {"severity": severity, "sex": rng.choice("FM")}
    # Young adults (healthy volunteers) are rare among records but must be known to the language model.
    young = rng.random() < 0.15
    record["age_years"] = rng.uniform(18, 55) if young else min(max(rng.gauss(70 + 8 * severity, 9), 50), 98)
    if rng.random() < 0.75:
        record["educ_years"] = _clip(rng.gauss(14.5, 3.2), 4, 22)
    elif rng.random() < 0.6:
        record["educ_code"] = rng.randint(1, 5)
        record["ses"] = rng.randint(1, 5)
    if rng.random() < 0.15:
        record.update(dataset="NACC", handedness=rng.choice("RRRLA"))
    if rng.random() < 0.85:
        record["mmse"] = _clip(30.5 - 11 * severity**1.5 + rng.gauss(0, 2.2), 0, 30)
    if rng.random() < 0.55:
        rough = severity + rng.gauss(0, 0.13)
        record["cdr_global"] = 0 if rough < 0.36 else 0.5 if rough < 0.68 else 1 if rough < 0.9 else 2
    if rng.random() < 0.45:
        record["cdr_sb"] = round(2 * max(0.0, min(18.0, 9 * (severity - 0.25) + rng.gauss(0, 0.8)))) / 2
    if rng.random() < 0.5:
        record["lm_delayed"] = _clip(13.5 - 13 * severity + rng.gauss(0, 3), 0, 25)
        record["lm_immediate"] = _clip(14.5 - 11 * severity + rng.gauss(0, 3), 0, 25)
    if rng.random() < 0.08:
        record["apoe4_count"] = rng.choice((0, 0, 1, 1, 2))
    if rng.random() < 0.12:
        record["labs"] = {name: _lab_value(name, rng) for name in rng.sample(sorted(LAB_WORDS), rng.randint(1, 3))}
    if rng.random() < 0.15:
        record["history"] = {name: rng.choice((0, 1)) for name in rng.sample(sorted(HISTORY_WORDS), rng.randint(1, 3))}
    record["grades"] = {
        part: 0 if rough < 0.4 else 1 if rough < 0.7 else 2
        for part in _GRADES
        for rough in (severity + rng.gauss(0, 0.12),)
    }
    record["dx3"] = _crude_diagnosis(record, rng)
    record["dx2"] = "DEM" if record["dx3"] == "AD_DEM" else "NonDEM"
    return record


_LAB_MIDDLES = {
    "tsh": 2.1, "vitamin_b12": 480, "red_cells": 4.6, "white_cells": 6.2, "platelets": 235, "haemoglobin": 13.9,
    "mch": 30.4, "mchc": 33.6, "alt": 22, "ast": 24, "urea_nitrogen": 17, "glucose": 99, "triglycerides": 125,
    "cholesterol": 196, "creatinine": 0.93,
}  # fmt: skip


def _lab_value(name: str, rng: random.Random) -> float:
    value = _LAB_MIDDLES.get(name, 10.0) * rng.lognormvariate(0, 0.2)
    return round(value, 2 if value < 10 else 1 if value < 50 else 0)


def _votes(record: dict[str, Any]) -> list[int]:
    """What each recorded score says by its crude cut-off: 0 normal, 1 mild impairment, 2 dementia."""
    votes = []
    if "mmse" in record:
        votes.append(2 if record["mmse"] <= 22 else 1 if record["mmse"] <= 26 else 0)
    if "cdr_global" in record:
        votes.append(2 if record["cdr_global"] >= 1 else 1 if record["cdr_global"] >= 0.5 else 0)
    if "cdr_sb" in record:
        votes.append(2 if record["cdr_sb"] >= 4 else 1 if record["cdr_sb"] >= 1 else 0)
    if "lm_delayed" in record:
        votes.append(2 if record["lm_delayed"] <= 3 else 1 if record["lm_delayed"] <= 8 else 0)
    return votes


def _crude_diagnosis(record: dict[str, Any], rng: random.Random) -> str:
    votes = _votes(record)
    record["with_finding_sentence"] = rng.random() < FINDING_SENTENCE_FRACTION
    if record["with_finding_sentence"]:
        votes.extend(record["grades"].values())
    if not votes:
        votes = [min(2, int(3 * record["severity"]))]
    if rng.random() < LABEL_NOISE:
        return rng.choice(DX3)
    if rng.random() < SINGLE_SCORE_FRACTION:
        return DX3[rng.choice(votes)]
    return DX3[int(sum(votes) / len(votes) + 0.5)]


def finding_sentence(record: dict[str, Any], rng: random.Random) -> str:
    """A sentence about the image, its parts in random order."""
    parts = [_GRADES[part][grade] for part, grade in record["grades"].items()]
    rng.shuffle(parts)
    return f"MRI: {', '.join(parts)}."


def _with_choices(question: str, answer: str, options: list[str], rng: random.Random) -> tuple[str, str]:
    """The question plain, with options, or with letters (then the answer is the letter)."""
    options = list(options)
    rng.shuffle(options)
    if rng.random() < MULTIPLE_CHOICE_FRACTION:
        return multiple_choice(question, options), f"{LETTERS[options.index(answer)]}."
    return f"{question} Options: {'; '.join(options)}.", answer


def _finding_question(record: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    grades = record["grades"]
    kind = rng.randrange(4)
    if kind == 0:
        question, answer, options = "Are the ventricles enlarged?", grades["ventricles"] > 0, ["no", "yes"]
        return _with_choices(question, options[int(answer)], options, rng)
    if kind == 1:
        question, answer, options = "Is there hippocampal atrophy?", grades["hippocampi"] > 0, ["no", "yes"]
        return _with_choices(question, options[int(answer)], options, rng)
    if kind == 2:
        side = rng.choice(("left", "right"))
        return _with_choices("Which hippocampus is smaller?", side, ["left", "right"], rng)
    part = rng.choice(sorted(_GRADES))
    return _with_choices(f"What is seen in the {part}?", _GRADES[part][grades[part]], list(_GRADES[part]), rng)


def _knowledge_question(rng: random.Random) -> tuple[str, str]:
    question, right, wrong = rng.choice(KNOWLEDGE)
    return _with_choices(question, right, [right, *rng.sample(wrong, 3)], rng)


def _reason(record: dict[str, Any]) -> str:
    """Why the diagnosis was given, in a few words."""
    low = []
    if record.get("mmse", 30) <= 26:
        low.append("low MMSE")
    if record.get("lm_delayed", 25) <= 8:
        low.append("poor recall")
    if record.get("cdr_global", 0) >= 0.5:
        low.append("raised CDR")
    if record["with_finding_sentence"] and record["grades"]["hippocampi"] > 0:
        low.append("hippocampal atrophy")
    return ", ".join(low[:3]) or "normal scores"


WHY_QUESTION = "Why?"


def sample_example(rng: random.Random) -> Example:
    """One record with a question and its answer."""
    record = sample_record(rng)
    roll = rng.random()
    drop: set[str] = {field for field in FIELDS if rng.random() < 0.08}
    text = ""
    if roll < 0.72:
        name = rng.choices(list(QUESTIONS), weights=(6, 4, 2, 2, 1))[0]
        if answer_of(record, name) is None:
            name = "diagnosis_nc_mci_ad"
        asked: Question = QUESTIONS[name]
        answer = str(answer_of(record, name))
        # A question hides the field that answers it; mostly it is left in here, to teach what the words mean.
        if rng.random() < 0.3:
            drop |= set(asked.hidden_fields)
        else:
            drop -= set(asked.hidden_fields)
        question = asked.text
        if rng.random() < WITH_OPTIONS_FRACTION:
            question = asked.with_options(rng.sample(asked.classes, len(asked.classes)))
        if name.startswith("diagnosis") and rng.random() < DIALOGUE_FRACTION / 0.72:
            question = f"{question} Answer: {answer} Question: {WHY_QUESTION}"
            answer = _reason(record)
    elif roll < 0.92:
        question, answer = _finding_question(record, rng)
    else:
        question, answer = _knowledge_question(rng)
        if rng.random() < 0.5:
            return Example("", question, answer)
    text = render(record, drop_fields=drop, include_apoe=True)
    if record["with_finding_sentence"]:
        text = f"{finding_sentence(record, rng)} {text}".strip()
    return Example(text, question, answer)


def generate_corpus(count: int, seed: int) -> list[Example]:
    """``count`` examples, the same ones for the same seed."""
    rng = random.Random(f"corpus-{seed}")
    return [sample_example(rng) for _ in range(count)]


def vocabulary_texts() -> Iterator[str]:
    """Texts with every word and number that the templates can print, for training tokenizers."""
    numbers = [str(number) for number in range(301)]
    yield from (f"{number} {number}/30 {number}.5 {number}; {number}, {number}." for number in numbers)
    yield from (f"{words}, {words} {unit};" for words, unit, _ in LAB_WORDS.values())
    yield from (f"history of {words}, {words};" for words in HISTORY_WORDS.values())
    yield from (f"{answer}; {answer}. {answer}" for q in QUESTIONS.values() for answer in q.answers.values())
    yield from (f"{right}; {right} {'; '.join(wrong)}" for _, right, wrong in KNOWLEDGE)
    yield "; ".join(f"{name} not recorded" for name in ("age", "sex", "education", "MMSE", "global CDR"))
    yield "measured 12 months earlier measured less than a month earlier estimated from another test"
    yield "not recorded; laboratory results; medical history; years or over; did not finish high school; college degree"
