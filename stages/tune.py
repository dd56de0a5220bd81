"""Stage `tune`: low-rank adapters on the query and value matrices of one language model, for every pretrained run."""

from __future__ import annotations

import functools

from common import DATA, language_model_argument, run_stage

from medalign3d.params import Params
from medalign3d.tracking import track_run
from medalign3d.training.runs import run_tune


def main(params: Params) -> None:
    """Write ``data/models/<lm>/lora``."""
    name = language_model_argument(params)
    tracker = functools.partial(track_run, params, f"tune@{name}")
    for result in run_tune(params, name, data_dir=DATA, tracker=tracker):
        print(
            f"tuned {name} run {result['run']}: validation {result['validation_score']:.3f} "
            f"at step {result['best_step']}, {result['samples_per_second']:.0f} samples/s"
        )


if __name__ == "__main__":
    run_stage(main)
