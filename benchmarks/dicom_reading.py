"""What a DICOM series costs, files to array, beside dcm2niix, in one run on one core.

    python benchmarks/dicom_reading.py [--slices 192] [--size 256] [--repeats 5]

The series is made here: one file a slice, 16 bits, noise over a ball. Seconds are processor time, also of helpers;
files are in the page cache.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "volumes"))
from dicom_series import write_series

from medalign3d.volumes.pool import keep_memory
from medalign3d.volumes.read import dcm2niix_command, read_volume


def seconds(function: Callable[[], object], repeats: int) -> str:
    """Median and range of the processor seconds of a call and of the processes that it starts."""
    times = []
    for _ in range(repeats + 1):
        before = os.times()
        function()
        times.append(sum(os.times()[:4]) - sum(before[:4]))
    times = times[1:]
    return f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=192)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    keep_memory()
    shape = (arguments.size, arguments.size, arguments.slices)
    radius = sum(np.linspace(-1.2, 1.2, n).reshape([-1 if k == axis else 1 for k in range(3)]) ** 2
                 for axis, n in enumerate(shape))  # fmt: skip
    data = (700 * (radius < 1) + np.random.default_rng(0).integers(0, 60, shape)).astype(np.uint16)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_series(root / "plain", data, affine)
        write_series(root / "rle", data, affine, change=lambda dataset, _: rle(dataset))
        with zipfile.ZipFile(root / "plain.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
            for path in (root / "plain").iterdir():
                bundle.write(path, f"series/{path.name}")
        nibabel.save(nibabel.Nifti1Image(data, affine), root / "same.nii.gz")

        def converted() -> object:
            with tempfile.TemporaryDirectory() as out:
                command = [*dcm2niix_command(), "-b", "n", "-z", "n", "-o", out, str(root / "plain")]
                subprocess.run(command, check=True, capture_output=True)
                return read_volume(out, next(Path(out).glob("*.nii")).name).data

        print(f"{'x'.join(map(str, shape))} voxels of 16 bits; {arguments.repeats} repeats")
        print("| | CPU s, median (range) |\n|---|---:|")
        for title, source in (
            ("folder of slices", "plain"),
            ("zip of slices", "plain.zip"),
            ("folder of RLE slices", "rle"),
            ("the same voxels as .nii.gz", "same.nii.gz"),
        ):
            print(f"| {title} | {seconds(lambda s=source: read_volume(root, s), arguments.repeats)} |", flush=True)
        print(f"| dcm2niix, then its .nii | {seconds(converted, arguments.repeats)} |")


def rle(dataset: object) -> None:
    from pydicom.uid import RLELossless

    dataset.compress(RLELossless, generate_instance_uid=False)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
