"""Page faults, CPU seconds and peak memory of normalizing one head: with the workers' settings, without, under Dask.

    python benchmarks/page_faults.py IMAGE [--zooms 1.0 0.5] [--repeats 3] [--dask]

IMAGE (a whole head) is resampled to cubes of 256 voxels of 1 mm, 512 of 0.5 mm ..., with noise, and each is read and
normalized as in the paper profile (224^3 at 1 mm), one thread. glibc by default gives large temporaries back to the
kernel, which maps them in again page by page; `pool.keep_memory` stops that. The first volume of a process is left out
of times and faults; the peaks are those of the process.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def measure(task: tuple[str, int]) -> list[dict[str, float]]:
    """Normalize a file some times; faults and CPU seconds of each time, and the process' peaks in MB."""
    from medalign3d.params import load_params
    from medalign3d.volumes.normalize import normalize_volume
    from medalign3d.volumes.read import read_volume

    path, repeats = task
    params = load_params(Path(__file__).parents[1] / "params.yaml").normalize
    registration = params.registration.model_copy(update={"fine_mm": 2.0})
    params = params.model_copy(update={"shape": [224, 224, 224], "zooms_mm": 1.0, "registration": registration})
    rows = []
    for _ in range(repeats + 1):
        before = resource.getrusage(resource.RUSAGE_SELF)
        result = normalize_volume(read_volume(Path(path).parent, Path(path).name), params)
        after = resource.getrusage(resource.RUSAGE_SELF)
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        rows.append(
            {
                "accepted": float(result.verdict == "accepted"),
                "user": after.ru_utime - before.ru_utime,
                "system": after.ru_stime - before.ru_stime,
                "faults": float(after.ru_minflt - before.ru_minflt),
                "peak": int(status["VmHWM"].split()[0]) / 1024,
                "data": int(status["VmData"].split()[0]) / 1024,
            }
        )
    return rows


def make_head(image: Path, zoom: float, out: Path) -> None:
    import nibabel
    import numpy as np

    from medalign3d.volumes.grids import Grid, resample
    from medalign3d.volumes.read import read_volume

    volume = read_volume(image.resolve().parent, image.name)
    size = round(256 / zoom)
    middle = volume.affine @ np.array([*((np.array(volume.data.shape) - 1) / 2), 1.0])
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = middle[:3] - zoom * (size - 1) / 2
    data = resample(volume.data, volume.affine, Grid((size, size, size), affine))
    top = float(np.percentile(data, 99.5))
    noise = np.random.default_rng(0).standard_normal(data.shape, dtype=np.float32) * np.float32(0.02 * top)
    data = np.abs(data + noise) * np.float32(1000 / top)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.int16), affine), out)


def default_process(path: str, repeats: int) -> list[dict[str, float]]:
    command = [sys.executable, __file__, "--child", path, str(repeats)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows: list[dict[str, float]] = json.loads(answer.splitlines()[-1])
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure((sys.argv[2], int(sys.argv[3])))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--zooms", type=float, nargs="+", default=[1.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dask", action="store_true")
    arguments = parser.parse_args()
    from page_faults import measure as importable  # workers import it by this name

    from medalign3d.volumes import cluster, pool

    print("| input | process | accepted | CPU s | of it system | minor faults | peak MB | allocated MB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for zoom in arguments.zooms:
            path = Path(folder) / f"head{zoom}.nii.gz"
            make_head(arguments.image, zoom, path)
            task = (str(path), arguments.repeats)
            found: dict[str, Any] = {"glibc's defaults": default_process(*task)}
            found["worker"] = next(pool.run_tasks(importable, [task], workers=1)).value
            if arguments.dask:
                from distributed import LocalCluster

                with LocalCluster(
                    n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
                ) as dask_cluster:
                    found["worker under Dask"] = next(
                        cluster.run_tasks(
                            importable, [task], cluster=dask_cluster.scheduler_address, options={}, workers=1
                        )
                    ).value
            for name, rows in found.items():
                later = rows[1:]

                def middle(key: str, later: list[dict[str, float]] = later) -> float:
                    return statistics.median(row[key] for row in later)

                cpu = statistics.median(row["user"] + row["system"] for row in later)
                print(
                    f"| {round(256 / zoom)}^3 of {zoom:g} mm | {name} | {middle('accepted'):.0f} | {cpu:.2f} | "
                    f"{middle('system'):.2f} | {middle('faults'):,.0f} | {rows[-1]['peak']:,.0f} | "
                    f"{max(row['data'] for row in rows):,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
