"""Claim: `medalign3d bids` writes full-size scans (256 x 256 x 170, int16) at several images per second and core.

    python benchmarks/bids_export.py [--images 24] [--rows 30000]

Scans are the MNI152 template with noise, at 1 mm, so that they compress as scans do. Also measured: what the planning
of a table of many rows costs before the first image, and what repeating an export costs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from medalign3d.bids import Options, Source, export
from medalign3d.bids.tables import session_cells
from medalign3d.cohorts.images import describe_path, inspect_file

SHAPE = (256, 256, 170)


def make(folder: Path, count: int) -> pd.DataFrame:
    """Scans and the rows that describe them."""
    from nilearn.datasets import load_mni152_template

    brain = np.asarray(load_mni152_template(resolution=1).dataobj, dtype=np.float32)
    head = np.zeros(SHAPE, np.float32)
    x, y, z = (min(a, b) for a, b in zip(SHAPE, brain.shape, strict=True))
    head[:x, :y, :z] = brain[:x, :y, :z] * 900
    rows = []
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 15, size=SHAPE)
        path = folder / f"miriad_{number:03d}_HC_F_01_MR_1.nii"
        nib.save(nib.Nifti1Image(np.abs(head + noise).astype(np.int16), np.eye(4)), path)
        root, image = describe_path(path)
        facts = inspect_file(root, image)
        rows.append(
            {
                "image_id": f"{number:016x}", "dataset": "MIRIAD", "participant_id": f"sub-MIRIAD{number:03d}",
                "session_id": "ses-V01", "run": 1, "variant": "raw", "selected": True, "source_path": path.name,
                "source_format": "nifti", "source_sha256": facts.source_sha256, "data_sha256": facts.data_sha256,
                "shape": list(facts.shape), "orientation": facts.orientation, "sex": "F", "age_years": 70.0,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    """Print images per second with one and two processes, and the cost per row and of a repetition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rows", type=int, default=30_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as holder:
        folder = Path(holder)
        (folder / "raw").mkdir()
        images = make(folder / "raw", arguments.images)
        source = Source(
            images, {"MIRIAD": folder / "raw"}, True, pd.DataFrame(columns=["dataset", "key_json", "reason"])
        )
        for workers in (1, 2):
            out = folder / f"out-{workers}"
            started = time.process_time(), os.times()
            summary = export(out, source, Options(workers=workers))
            children = os.times().children_user - started[1].children_user
            size = sum(p.stat().st_size for p in out.rglob("*.nii.gz")) / arguments.images / 1e6
            print(
                f"{workers} process(es): {summary.written / summary.seconds:.2f} images/s "
                f"({children / summary.written:.2f} CPU seconds and {size:.1f} MB each)"
            )
        summary = export(out, source, Options(workers=2))
        print(f"again: {summary.seconds:.2f} s for {summary.up_to_date} images that are up to date")
        row = dict(images.iloc[0])
        started_at = time.perf_counter()
        for _ in range(arguments.rows):
            session_cells(row, relative_dates=True)
        print(f"cells of {arguments.rows} rows: {time.perf_counter() - started_at:.1f} s")


if __name__ == "__main__":
    main()
