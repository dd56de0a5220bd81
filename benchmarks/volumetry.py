"""Regional volumes against the truth of simulated heads: correlation, slope and bias per region, and a scatter plot.

    python benchmarks/volumetry.py --images 40 --picture docs/pictures/volumetry.png

Simulated scans (2 mm, no planted faults) of every cohort are normalized as the pipeline does.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import time
from pathlib import Path

import numpy as np
import pandas as pd

from medalign3d.params import load_params
from medalign3d.simulate import LAYOUTS, plan_cohort
from medalign3d.simulate.anatomy import Renderer, build_template
from medalign3d.volumes.normalize import normalize_volume
from medalign3d.volumes.pool import keep_memory
from medalign3d.volumes.read import Volume

REGIONS = {
    "ventricles": ("ventricles_ml", "ventricles_ml"),
    "left hippocampus": ("hippocampus_left_ml", "hippocampus_left_ml"),
    "right hippocampus": ("hippocampus_right_ml", "hippocampus_right_ml"),
    "brain": ("brain_ml", "brain_tissue_ml"),
    "intracranial": ("icv_ml", "icv_ml"),
}
"""Title: the truth's column and ours."""


def simulated(images: int, seed: int) -> pd.DataFrame:
    """True and measured volumes of ``images`` heads per cohort."""
    params = load_params()
    counts = dict.fromkeys(LAYOUTS, max(8, images))
    simulate = params.simulate.model_copy(update={"faults": False, "participants": counts, "seed": seed})
    params = params.model_copy(update={"simulate": simulate})
    normalize = params.normalize.model_copy(update={"fallback": "none"})
    renderer = Renderer(build_template(2.0))
    jobs = {cohort: [j for j in plan_cohort(cohort, params).jobs if j.damage is None][:images] for cohort in LAYOUTS}
    rows = []
    for number in range(images):
        for cohort, own in jobs.items():
            if number >= len(own):
                continue
            scan = renderer.render(own[number].anatomy, own[number].scan)
            volume = Volume(scan.data.astype(np.float32), scan.affine, "header", "nifti", "int16")
            started = time.process_time()
            found = normalize_volume(volume, normalize)
            row = {"cohort": cohort, "seconds": time.process_time() - started, "verdict": found.verdict}
            rows.append(row | {f"true_{k}": v for k, v in scan.truth.items()} | found.metrics)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40, help="per cohort")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    keep_memory()
    table = simulated(arguments.images, arguments.seed)
    kept = table[table["verdict"] == "accepted"]
    print(f"{len(table)} simulated heads, {len(kept)} accepted, {kept['seconds'].median():.2f} CPU-s each\n")
    print(f"| region | n | r | slope | true mL | bias mL | {' | '.join(LAYOUTS)} |")
    print("|---" * (6 + len(LAYOUTS)) + "|")
    for title, (true, ours) in REGIONS.items():
        x, y = kept[f"true_{true}"], kept[ours]
        cohorts = [f"{x[kept['cohort'] == c].corr(y[kept['cohort'] == c]):.3f}" for c in LAYOUTS]
        slope = np.polyfit(x, y, 1)[0]
        print(
            f"| {title} | {len(x)} | {x.corr(y):.3f} | {slope:.2f} | {x.mean():.1f} | {(y - x).mean():+.1f} | "
            f"{' | '.join(cohorts)} |"
        )

    def asymmetry(left: str, right: str) -> pd.Series:
        return (kept[left] - kept[right]) / (kept[left] + kept[right])

    true = asymmetry("true_hippocampus_left_ml", "true_hippocampus_right_ml")
    ours = asymmetry("hippocampus_left_ml", "hippocampus_right_ml")
    same = np.sign(true) == np.sign(ours)
    print(f"\nasymmetry: r {true.corr(ours):.3f}, side right in {same.mean():.0%}")
    print(f"where it is above 2 %: side right in {same[true.abs() > 0.02].mean():.0%}")
    if arguments.picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14, 3.2), layout="constrained")
        for axes, (title, (truth, measured)) in zip(figure.subplots(1, len(REGIONS)), REGIONS.items(), strict=True):
            for cohort in LAYOUTS:
                own = kept[kept["cohort"] == cohort]
                axes.scatter(own[f"true_{truth}"], own[measured], s=8, label=f"SIM-{cohort}")
            low, high = kept[f"true_{truth}"].min(), kept[f"true_{truth}"].max()
            axes.plot([low, high], [low, high], color="0.6", linewidth=1)
            axes.set(title=f"{title}\n(simulated)", xlabel="true, mL", ylabel="measured, mL")
        axes.legend(fontsize=6)
        figure.savefig(arguments.picture, dpi=90)


if __name__ == "__main__":
    main()
