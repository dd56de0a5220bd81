"""The closed questions that are asked about a person, their canonical answers, and the true class of a record.

A question never sees the field that answers it: ``hidden_fields`` names the text fields (see
:data:`medalign3d.ehr.text.FIELDS`) that are left out of the record's text whenever the question is asked.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medalign3d.ehr.values import number_or_none, text_or_none
from medalign3d.errors import ParameterError

AGE_GROUP_LIMIT_YEARS = 50.0


@dataclass(frozen=True)
class Question:
    """A closed question.

    Parameters
    ----------
    name
        The name that ``params.yaml`` uses.
    text
        The question as asked, without the options.
    answers
        Class code to canonical answer, in the order in which tables list the classes.
    hidden_fields
        Fields of the record's text that would answer the question; they are left out when it is asked.
    column
        The column of the harmonized table that holds the truth.

    Examples
    --------
    >>> QUESTIONS["sex"].classes
    ('F', 'M')
    >>> QUESTIONS["sex"].with_options(("M", "F"))
    'What is the sex of this person? Options: male; female.'
    """

    name: str
    text: str
    answers: Mapping[str, str]
    hidden_fields: tuple[str, ...]
    column: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The class codes in table order."""
        return tuple(self.answers)

    def with_options(self, classes: Sequence[str] | None = None) -> str:
        """The question followed by its options, in the order of ``classes`` (default: table order)."""
        chosen = self.classes if classes is None else tuple(classes)
        return f"{self.text} Options: {'; '.join(self.answers[code] for code in chosen)}."

    def shuffled_classes(self, seed: int, key: str) -> tuple[str, ...]:
        """The class codes in an order that depends on ``seed`` and ``key`` (an image id) alone."""
        digest = hashlib.blake2b(f"{seed}\n{self.name}\n{key}".encode(), digest_size=8).digest()
        order = list(self.classes)
        random.Random(int.from_bytes(digest, "big")).shuffle(order)
        return tuple(order)

    def class_of_answer(self, answer: str) -> str | None:
        """The class whose canonical answer equals ``answer`` (case and outer punctuation aside), or None."""
        wanted = answer.strip().strip(".!").lower()
        return next((code for code, text in self.answers.items() if text.lower() == wanted), None)


_NORMAL, _MILD, _DEMENTIA = "normal cognition", "mild cognitive impairment", "dementia"
_DIAGNOSIS_TEXT = "What is the cognitive diagnosis of this person?"

QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        Question("diagnosis_nc_mci_ad", _DIAGNOSIS_TEXT, {"NC": _NORMAL, "MCI": _MILD, "AD_DEM": _DEMENTIA}, (), "dx3"),
        Question(
            "diagnosis_dem_nondem",
            "Does this person have dementia?",
            {"NonDEM": "no dementia", "DEM": _DEMENTIA},
            (),
            "dx2",
        ),
        Question("diagnosis_nc_ad", _DIAGNOSIS_TEXT, {"NC": _NORMAL, "AD_DEM": _DEMENTIA}, (), "dx3"),
        Question("sex", "What is the sex of this person?", {"F": "female", "M": "male"}, ("sex",), "sex"),
        Question(
            "age_group",
            "How old is this person?",
            {"young": "under 50 years", "old": "50 years or over"},
            ("age",),
            "age_years",
        ),
    )
}


def get_question(name: str) -> Question:
    """The question called ``name``.

    Raises
    ------
    ParameterError
        When there is no such question.
    """
    if name not in QUESTIONS:
        raise ParameterError("unknown question", found=repr(name), expected=f"one of {sorted(QUESTIONS)}")
    return QUESTIONS[name]


def class_of(record: Mapping[str, Any], question_name: str) -> str | None:
    """The true class of ``record`` for a question, or None where the record does not answer it.

    Missing is never a class: a record without a diagnosis, sex or age has no class, and a diagnosis outside the
    question's classes (mild cognitive impairment where only normal and dementia are asked) has none either.

    Parameters
    ----------
    record
        A row of the harmonized images table (``dict`` or ``Series``).
    question_name
        A key of :data:`QUESTIONS`.

    Examples
    --------
    >>> class_of({"dx3": "MCI"}, "diagnosis_nc_mci_ad"), class_of({"dx3": "MCI"}, "diagnosis_nc_ad")
    ('MCI', None)
    >>> class_of({"age_years": 49.9}, "age_group"), class_of({"age_years": float("nan")}, "age_group")
    ('young', None)
    """
    question = get_question(question_name)
    value = record.get(question.column)
    if question_name == "age_group":
        age = number_or_none(value)
        if age is None:
            return None
        return "young" if age < AGE_GROUP_LIMIT_YEARS else "old"
    code = text_or_none(value)
    return code if code in question.answers else None


def answer_of(record: Mapping[str, Any], question_name: str) -> str | None:
    """The canonical answer to a question about ``record``, or None where the record does not answer it."""
    code = class_of(record, question_name)
    return None if code is None else get_question(question_name).answers[code]


def questions_for(record: Mapping[str, Any], names: Sequence[str] | None = None) -> list[str]:
    """The names of those questions (of ``names``, default all) that ``record`` answers, in table order."""
    return [name for name in (QUESTIONS if names is None else names) if class_of(record, name) is not None]
