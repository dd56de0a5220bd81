"""Stage `backbones`: tiny stand-ins for the frozen models in Hugging Face format, or the user's own checkpoints."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from common import DATA, run_stage

from medalign3d.files import write_json
from medalign3d.model.backbones import make_language_checkpoint, make_vision_checkpoint
from medalign3d.params import Params
from medalign3d.progress import Progress
from medalign3d.training.processes import Job, run_jobs
from medalign3d.training.slices import training_slices

OUT = DATA / "backbones"


def make_vision(params: Params) -> str:
    """Train and write the tiny vision transformer; returns whose slices it learned from."""
    slices, description = training_slices(params, DATA)
    make_vision_checkpoint(slices, params, OUT / "vision")
    return description


def make_language(params: Params, name: str) -> str:
    """Train and write one tiny language model."""
    make_language_checkpoint(name, params, OUT / name)
    return "image-free templated text"


def main(params: Params) -> None:
    """Write ``data/backbones``."""
    OUT.mkdir(parents=True, exist_ok=True)
    sources: dict[str, Any] = {"source": params.backbones.source}
    if params.backbones.source == "pretrained":
        models = params.model.language.models
        sources["vision"] = params.model.vision.checkpoint
        sources |= {name: models[name].checkpoint for name in params.language_models}
    else:
        names = [*params.language_models, "vision"]
        jobs: list[Job] = [(functools.partial(make_language, params, name), {}) for name in params.language_models]
        jobs.append((functools.partial(make_vision, params), {}))
        with Progress("backbones", len(jobs)) as progress:
            for number, description in run_jobs(jobs, workers=params.backbones.workers):
                sources[names[number]] = description
                progress.advance(1, names[number])
    write_json(Path(OUT) / "sources.json", sources)


if __name__ == "__main__":
    run_stage(main)
