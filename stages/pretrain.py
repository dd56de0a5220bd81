"""Stage `pretrain`: AlignQ with one frozen language model, every run and its trained controls."""

from __future__ import annotations

import functools

from common import DATA, language_model_argument, run_stage

from medalign3d.params import Params
from medalign3d.tracking import track_run
from medalign3d.training.runs import run_pretrain


def main(params: Params) -> None:
    """Write ``data/models/<lm>/frozen`` and ``data/models/<lm>/controls``."""
    name = language_model_argument(params)
    (DATA / "models" / name / "controls").mkdir(parents=True, exist_ok=True)
    tracker = functools.partial(track_run, params, f"pretrain@{name}")
    for result in run_pretrain(params, name, data_dir=DATA, tracker=tracker):
        print(
            f"pretrained {name} {result['setting']} run {result['run']}: validation {result['validation_score']:.3f} "
            f"at step {result['best_step']}, {result['samples_per_second']:.0f} samples/s"
        )


if __name__ == "__main__":
    run_stage(main)
