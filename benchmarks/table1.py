"""Claim: Table 1's 30,371 rows are simulated, read and harmonized in at most 120 s and 2 GB on one core, linearly.

    python benchmarks/table1.py                      # a quarter, half, one and two times the published size
    python benchmarks/table1.py --scales 1 --form clean

Every size runs in a process of its own that may use one core. On a machine that others use the processor seconds tell
more than the wall clock; both are printed. The last line gives the seconds per row of the largest size over those of
the smallest: 1 is linear.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def measure(scale: float, form: str) -> dict[str, float]:
    """Simulate, ingest, harmonize and count once; seconds of each and the largest memory, MB."""
    from medalign3d.cohorts import ingest_cohort
    from medalign3d.ehr.harmonize import harmonize, write_harmonized
    from medalign3d.profiles import build_profile
    from medalign3d.report.make_table1 import cohort_folders, params_for, table1_of_harmonized
    from medalign3d.simulate.table1 import simulate_table1

    marks = [("start", time.monotonic(), time.process_time())]

    def mark(name: str) -> None:
        marks.append((name, time.monotonic(), time.process_time()))

    with tempfile.TemporaryDirectory() as scratch:
        trees = Path(scratch) / "trees"
        simulate_table1(trees, scale=scale)
        mark("simulate")
        folders = cohort_folders(trees)
        params = params_for(build_profile("demo", project=PROJECT)[1], folders, form, read_images=False)
        tables = {cohort: ingest_cohort(cohort, folder, params, workers=1) for cohort, folder in folders.items()}
        mark("ingest")
        result = harmonize(tables, params)
        write_harmonized(result, Path(scratch) / "ehr")
        mark("harmonize")
        table1_of_harmonized(result, 1)
        mark("table")
    record: dict[str, float] = {"scale": scale, "rows": len(result.images)}
    for (_, wall, cpu), (name, wall_after, cpu_after) in itertools.pairwise(marks):
        record[f"{name}_s"] = round(wall_after - wall, 2)
        record[f"{name}_cpu_s"] = round(cpu_after - cpu, 2)
    record["wall_s"] = round(marks[-1][1] - marks[0][1], 1)
    record["cpu_s"] = round(marks[-1][2] - marks[0][2], 1)
    unit = 1 if sys.platform == "darwin" else 1024
    record["memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
    return record


def main() -> None:
    """Measure every size in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--form", choices=("clean", "table1_emulation"), default="table1_emulation")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(measure(arguments.one, arguments.form)))
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    records = []
    print("scale    rows  simulate  ingest  harmonize  table |  wall s   CPU s  memory MB")
    for scale in arguments.scales:
        command = [sys.executable, __file__, "--one", str(scale), "--form", arguments.form]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        record = json.loads(done.stdout.splitlines()[-1])
        records.append(record)
        steps = "  ".join(f"{record[f'{n}_cpu_s']:{w}.1f}" for n, w in
                          (("simulate", 8), ("ingest", 6), ("harmonize", 9), ("table", 5)))  # fmt: skip
        print(
            f"{scale:5.2f}  {record['rows']:6d}  {steps} | {record['wall_s']:7.1f} {record['cpu_s']:7.1f} "
            f"{record['memory_mb']:10.0f}",
            flush=True,
        )
    first, last = records[0], records[-1]
    growth = (last["cpu_s"] / last["rows"]) / (first["cpu_s"] / first["rows"])
    print(f"CPU seconds per row, largest over smallest: {growth:.2f} (the four columns of steps are CPU seconds)")


if __name__ == "__main__":
    main()
