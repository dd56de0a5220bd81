"""Time of a run of `normalize` that has nothing to do: every volume is verified, nothing is made.

    python benchmarks/volume_noop.py [COUNT] [SIDE] [DIFFERENT]

COUNT images (30,000) with volumes of SIDE voxels a side (48), DIFFERENT of them unlike (all); a picture each.
Seconds are wall and processor time of the first publication and of the run after it.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from medalign3d.params import load_params
from medalign3d.volumes import quality_page, store
from medalign3d.volumes.normalize import METRIC_COLUMNS, normalize_cohort, params_sha256


def main() -> None:
    count, side = (int(v) for v in (sys.argv[1:3] + ["30000", "48"][len(sys.argv[1:3]) :]))
    different = int(sys.argv[3]) if len(sys.argv) > 3 else count
    params = load_params().normalize
    random = np.random.default_rng(0)
    brain = np.zeros((side,) * 3, np.uint8)
    low, high = side // 5, side - side // 5
    brain[low:high, low:high, low:high] = np.clip(random.normal(120, 30, (high - low,) * 3), 1, 255)
    with tempfile.TemporaryDirectory(dir=os.environ.get("SCRATCH")) as folder:
        place = Path(folder)
        workspace = store.Workspace(place / "work")
        rows, names = [], []
        for number in range(different):
            brain[low, low, low : low + 4] = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
            names.append(store.write(workspace.folder, brain))
        picture = np.zeros((20, 40, 3), np.uint8)
        for number in range(count):
            image_id = f"i{number:06d}"
            quality_page.write_picture(workspace.folder, image_id, picture)
            row = {"image_id": image_id, "path": names[number % different], "sha256": "0" * 64, "verdict": "accepted"}
            row |= {"reason": "", "detail": "", "method": "gauss-newton", "seconds": 4.0}
            row |= {name: float(random.uniform(0.5, 1)) for name in METRIC_COLUMNS}
            rows.append(row | {"source_sha256": image_id, "params_sha256": params_sha256(params)})
        workspace.keep_only(rows)
        images = pd.DataFrame({"image_id": [r["image_id"] for r in rows]})
        images["source_path"], images["source_format"] = "gone", "nifti"
        images["data_sha256"] = images["image_id"]
        for title in ("first publication", "nothing to do"):
            wall, cpu = time.perf_counter(), time.process_time()
            index = normalize_cohort(images, place, params, place / "out", place / "work")
            assert (index["verdict"] == "accepted").all()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{title}: {count} volumes of {side}^3, {wall:.1f} s wall, {cpu:.1f} s CPU", flush=True)


if __name__ == "__main__":
    main()
