"""Records, questions and answers of different lengths."""

from __future__ import annotations

TEXTS = [
    "Age 74 years; female; 16 years of education; MMSE 27/30; global CDR 0.5.",
    "Male.",
    "",
    "Age 81 years; male; 12 years of education; MMSE 19/30; global CDR 1; logical memory delayed recall 2/25; "
    "history of diabetes, hypertension.",
    "Age 66 years; female; MMSE 30/30.",
]
QUESTIONS = [
    "What is the cognitive diagnosis of this person?",
    "Does this person have dementia?",
    "Is there hippocampal atrophy? Options: no; yes.",
    "What is the cognitive diagnosis of this person?",
    "What is the sex of this person?",
]
ANSWERS = ["mild cognitive impairment", "no dementia", "yes", "dementia", "female"]
CANDIDATES = [
    ["normal cognition", "mild cognitive impairment", "dementia"],
    ["no dementia", "dementia"],
    ["no", "yes"],
    ["normal cognition", "mild cognitive impairment", "dementia"],
    ["female", "male"],
]
