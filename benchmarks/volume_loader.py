"""The training loader against the usual way of public code, side by side in one run on one core.

    python benchmarks/volume_loader.py IMAGE [IMAGE ...]

The usual way decodes a .nii.gz of the scan for each sample, rescales its intensities to 0-1 and resizes it to 224^3 by
trilinear interpolation. Ours reads the normalized volume from the store, checked, as bytes; they become float32 on the
device, which is timed here on the CPU. The ways are timed in turns, so that a noisy machine meets all.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch

from medalign3d.params import load_params
from medalign3d.training.data import Volumes, as_input
from medalign3d.volumes import store
from medalign3d.volumes.normalize import normalize_volume
from medalign3d.volumes.pool import keep_memory
from medalign3d.volumes.read import read_volume


def usual(path: Path) -> torch.Tensor:
    """Decode, rescale and resize one sample."""
    data = torch.from_numpy(np.asarray(nibabel.load(path).dataobj, dtype=np.float32))
    data = (data - data.min()) / (data.max() - data.min())
    return torch.nn.functional.interpolate(data[None, None], size=(224, 224, 224), mode="trilinear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    params = load_params().normalize.model_copy(update={"shape": [224, 224, 224], "zooms_mm": 1.0})
    with tempfile.TemporaryDirectory() as name:
        folder, scans, paths = Path(name), [], []
        for number, path in enumerate(arguments.images):
            volume = read_volume(path.resolve().parent, path.name)
            result = normalize_volume(volume, params)
            if result.array is None:
                continue
            paths.append(str(folder / store.write(folder, result.array)))
            scans.append(folder / f"{number}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(volume.data.astype(np.int16), volume.affine), scans[-1])
            print(f"scan {number}: {' x '.join(map(str, volume.data.shape))}")
        loader = Volumes(paths, (224, 224, 224), in_memory_bytes=0)
        slow: list[float] = []
        quick: list[float] = []
        stored: list[float] = []
        for _ in range(arguments.repeats):
            for row, scan in enumerate(scans):
                start = time.perf_counter()
                sample = usual(scan)
                slow.append(time.perf_counter() - start)
                assert sample.shape == (1, 1, 224, 224, 224)
                start = time.perf_counter()
                raw = loader.take([row])
                stored.append(time.perf_counter() - start)
                assert (as_input(raw) / 255.0).shape == sample.shape
                quick.append(time.perf_counter() - start)
        print("| way | ms per volume | volumes/s | times as fast |\n|---|---:|---:|---:|")
        base = statistics.median(slow)
        for title, times in (
            ("decode .nii.gz + resize", slow),
            ("store, as uint8 (what goes to the device)", stored),
            ("store, and float32 on the CPU", quick),
        ):
            middle = statistics.median(times)
            print(f"| {title} | {1000 * middle:.1f} | {1 / middle:.1f} | {base / middle:.0f} |")


if __name__ == "__main__":
    main()
