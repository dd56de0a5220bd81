"""Figures that the published work reports, kept visibly apart from what this pipeline measured.

Accuracy in percent, mean of five runs; AIBL and MIRIAD were not trained on. They are the authors' own figures on the
real cohorts with billion-parameter language models and were not measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

BENCHMARKS = ("ADNI-3x200", "NACC-3x200", "OASIS-2x200", "AIBL", "MIRIAD")


@dataclass(frozen=True)
class ReportedRow:
    """One row of the published classification table; ``accuracy`` in the order of :data:`BENCHMARKS`, percent."""

    language_model: str
    setting: str
    language_model_size: str
    learnable: str
    accuracy: tuple[float, ...]


CLASSIFICATION: tuple[ReportedRow, ...] = (
    ReportedRow("FLAN-T5", "text only", "3.4B", "–", (37.0, 39.5, 46.7, 33.3, 60.0)),
    ReportedRow("FLAN-T5", "frozen", "3.4B", "151M", (50.5, 69.2, 61.3, 54.7, 64.0)),
    ReportedRow("FLAN-T5", "LoRA", "3.4B", "156M", (64.0, 77.3, 75.8, 59.2, 66.8)),
    ReportedRow("BioGPT", "text only", "1.5B", "–", (25.7, 21.7, 28.3, 26.7, 50.0)),
    ReportedRow("BioGPT", "frozen", "1.5B", "151M", (56.3, 66.5, 66.0, 60.7, 55.2)),
    ReportedRow("BioGPT", "LoRA", "1.5B", "156M", (62.2, 72.3, 71.7, 62.4, 59.7)),
    ReportedRow("BioMedLM", "text only", "2.7B", "–", (62.5, 63.5, 61.8, 65.7, 46.3)),
    ReportedRow("BioMedLM", "frozen", "2.7B", "151M", (71.2, 82.0, 79.8, 77.8, 66.1)),
    ReportedRow("BioMedLM", "LoRA", "2.7B", "154M", (78.7, 83.3, 85.3, 80.8, 71.0)),
)

# Closed-ended visual questions, percent. The two values coexist only for 59 questions (43 and 46 right); the number of
# questions itself was not published.
CLOSED_ENDED: tuple[tuple[str, float, int, int], ...] = (
    ("M3D-LaMed", 72.88, 43, 59),
    ("MedAlign-3D (published)", 77.96, 46, 59),
)

NEWER: tuple[tuple[str, str, str], ...] = (
    ("LoV3D (arXiv 2603.12071)", "ADNI 3-class 93.7, zero-shot MIRIAD 95.4, zero-shot AIBL 82.9", "accuracy, %"),
    ("Med3DVLM (arXiv 2503.20047)", "M3D closed-ended VQA 79.95", "accuracy, %"),
)

CAVEAT = (
    "Reported by the authors, not measured here: real cohorts, language models of 1.5 to 3.4 billion parameters, mean "
    "of five runs without intervals; how the test sets were drawn was not published."
)
