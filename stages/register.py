"""Stage `register`: the model that is best on validation people enters the registry with the alias `champion`."""

from __future__ import annotations

from common import DATA, run_stage

from medalign3d.files import write_json
from medalign3d.params import Params
from medalign3d.tracking import register_best


def main(params: Params) -> None:
    """Write ``data/registry/registered.json``."""
    best = register_best(params)
    folder = DATA / "models" / best["language_model"] / best["setting"] / f"run-{best['run']}"
    write_json(DATA / "registry" / "registered.json", {**best, "model_directory": folder.as_posix()})
    print(
        f"registered {best['language_model']} {best['setting']} run {best['run']}: balanced accuracy "
        f"{best['validation_balanced_accuracy']:.3f} on {best['validation_images']} validation images"
    )


if __name__ == "__main__":
    run_stage(main)
