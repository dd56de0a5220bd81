"""Which format for normalized volumes: write, read, check and size, in one run on one core.

    python benchmarks/volume_store.py IMAGE [IMAGE ...]

Each image is normalized to 224^3 at 1 mm once; every format then stores the same arrays. Reads are warm (page cache)
and give a whole array in memory; "checked" reads verify the content too. The last columns scale to 30,000 volumes.
"""

from __future__ import annotations

import argparse
import hashlib
import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from safetensors.numpy import load_file, save_file

from medalign3d.params import load_params
from medalign3d.volumes import store
from medalign3d.volumes.normalize import normalize_volume
from medalign3d.volumes.pool import keep_memory
from medalign3d.volumes.read import read_volume

VOLUMES = 30_000


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    keep_memory()  # as the workers of the pipeline do
    params = load_params().normalize.model_copy(update={"shape": [224, 224, 224], "zooms_mm": 1.0})
    arrays = []
    for path in arguments.images:
        result = normalize_volume(read_volume(path.resolve().parent, path.name), params)
        if result.array is not None:
            arrays.append(result.array)
    print(f"{len(arrays)} volumes of 224^3, {np.mean([(a > 0).mean() for a in arrays]):.1%} of the voxels in the brain")
    print("| format | write ms | read ms | read, checked ms | MB | 30,000 volumes GB |\n|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def row(title: str, suffix: str, write: Callable, read: Callable, check: Callable | None) -> None:
            writes, reads, checks, sizes = [], [], [], []
            for number, array in enumerate(arrays):
                path = folder / f"{number}{suffix}"
                writes.append(milliseconds(lambda p=path, a=array: write(p, a), 3))
                assert np.array_equal(read(path), array)
                reads.append(milliseconds(lambda p=path: read(p), arguments.repeats))
                if check is not None:
                    checks.append(milliseconds(lambda p=path: check(p), arguments.repeats))
                sizes.append(path.stat().st_size)
            size = statistics.mean(sizes)
            shown = f"{statistics.median(checks):.1f}" if checks else "–"
            print(
                f"| {title} | {statistics.median(writes):.0f} | {statistics.median(reads):.1f} | {shown} | "
                f"{size / 1e6:.2f} | {size * VOLUMES / 1e9:.0f} |"
            )

        def hashed(read: Callable) -> Callable:
            def both(path: Path) -> object:
                hashlib.sha256(path.read_bytes()).hexdigest()
                return read(path)

            return both

        names: dict[str, Path] = {}

        def write_store(path: Path, array: np.ndarray) -> None:
            if path.name in names:  # what is there already would not be written again
                names[path.name].unlink()
                path.unlink()
            names[path.name] = folder / "store" / store.write(folder / "store", array)
            os.link(names[path.name], path)

        read_npy = lambda p: np.load(p, allow_pickle=False)  # noqa: E731
        read_nifti = lambda p: np.asarray(nibabel.load(p).dataobj)  # noqa: E731
        row(
            "ours: .b2nd, LZ4, digest in the name",
            ".b2nd",
            write_store,
            lambda p: store.read(names[p.name]),
            lambda p: store.read(names[p.name]),
        )
        row(".npy + SHA-256", ".npy", lambda p, a: np.save(p, a), read_npy, hashed(read_npy))
        read_tensors = lambda p: load_file(p)["volume"]  # noqa: E731
        row(
            "safetensors + SHA-256",
            ".safetensors",
            lambda p, a: save_file({"volume": a}, p),
            read_tensors,
            hashed(read_tensors),
        )
        read_npz = lambda p: np.load(p)["volume"]  # noqa: E731
        row(
            ".npz (CRC-32 inside)",
            ".npz",
            lambda p, a: np.savez_compressed(p, volume=a),
            read_npz,
            read_npz,
        )
        row(
            ".nii.gz (CRC-32 inside)",
            ".nii.gz",
            lambda p, a: nibabel.save(nibabel.Nifti1Image(a, np.eye(4)), p),
            read_nifti,
            read_nifti,
        )


if __name__ == "__main__":
    main()
