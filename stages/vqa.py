"""Stage `vqa`: closed-ended questions about scans, put to every model, and scored in three ways."""

from __future__ import annotations

from common import DATA, run_stage

from medalign3d.evaluation.vqa import run_vqa, write_vqa
from medalign3d.params import Params


def main(params: Params) -> None:
    """Write ``data/evaluation/vqa``."""
    questions, predictions = run_vqa(params, data_dir=DATA)
    write_vqa(DATA / "evaluation" / "vqa", questions, predictions)
    print(f"vqa: {len(questions)} questions, {len(predictions)} answers")


if __name__ == "__main__":
    run_stage(main)
