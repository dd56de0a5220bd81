"""Claim: the same acquisition saved in another form is found, and no two scans of one person or of two are confused.

Real heads (IXI, 2 mm) and real OASIS-1 volumes (in MNI space at 2 mm, with five people scanned twice): every image is
compared with all others, and re-saved copies of some of them with all.

    python benchmarks/near_duplicates.py /path/to/data [COPIES]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medalign3d.cohorts.fingerprint import fingerprint
from medalign3d.ehr.duplicates import CANDIDATE_DISTANCE, SAME_ACQUISITION, candidate_pairs, residual_correlation


def forms(image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """An image in the forms in which copies travel."""
    yield "float32, scaled", image.astype(np.float32) * 3.7 + 20
    yield "uint8 of 70 % of the range", np.round(image.astype(float) * 178 / image.max()).astype(np.uint8)
    yield "64 grey levels", np.round(image.astype(float) * 63 / image.max()).astype(np.uint8)
    yield "axes permuted and flipped", image[::-1].transpose(2, 0, 1)[:, :, ::-1]
    yield "mirrored", image[::-1]
    yield "padded", np.pad(image, ((10, 3), (0, 20), (7, 9)))
    yield "cropped by 4 voxels on every side", image[4:-4, 4:-4, 4:-4]
    yield "cropped by 8 voxels on every side", image[8:-8, 8:-8, 8:-8]
    yield "lowest tenth cut off", image[:, :, image.shape[2] // 10 :]
    yield (
        "all of it",
        np.pad(
            np.round(image[4:-4, 4:-4, 4:-4].astype(float) * 178 / image.max())
            .astype(np.uint8)
            .transpose(1, 2, 0)[::-1],
            6,
        ),
    )


def main(folder: Path, copies: int) -> None:
    """Print the figures."""
    paths = sorted(folder.glob("ixi_t1_2mm/*.nii.gz")) + sorted(folder.glob("oasis1_mni_2mm/**/*.nii.gz"))
    images: list[np.ndarray] = []
    prints: list[Any] = []
    seconds = 0.0
    for path in paths:
        image: Any = nib.load(path)
        images.append(np.asanyarray(image.dataobj.get_unscaled()))
        begin = time.process_time()
        prints.append(fingerprint(images[-1]))
        seconds += time.process_time() - begin
    print(f"{len(paths)} images, fingerprint {1000 * seconds / len(paths):.0f} ms of processor time each")

    pairs = candidate_pairs(prints)
    begin = time.process_time()
    scores = [residual_correlation(images[i], images[k]) for i, k in pairs]
    each = (time.process_time() - begin) / max(1, len(pairs))
    people = [(paths[i].name.split("_MR")[0] == paths[k].name.split("_MR")[0]) for i, k in pairs]
    rescans = sorted(score for score, same in zip(scores, people, strict=True) if same)
    others = sorted(score for score, same in zip(scores, people, strict=True) if not same)
    print(
        f"different acquisitions: {len(paths) * (len(paths) - 1) // 2} pairs, {len(pairs)} candidates "
        f"({len(rescans)} of one person), {sum(score >= SAME_ACQUISITION for score in scores)} called duplicates; "
        f"{each:.2f} s of processor time per candidate"
    )
    print(
        f"  residual correlation of scans of one person: {np.round(rescans, 3)}; of two people: {np.round(others, 3)}"
    )
    second = [k for k, path in enumerate(paths) if "_MR2" in path.name]
    for k in second:
        first = next(i for i, p in enumerate(paths) if p.name.startswith(paths[k].name.split("_MR2")[0] + "_MR1"))
        print(f"  {paths[k].name[:13]}: residual correlation {residual_correlation(images[first], images[k]):.3f}")

    chosen = np.linspace(0, len(paths) - 1, copies).astype(int)
    found: dict[str, list[bool]] = {}
    distances: dict[str, list[float]] = {}
    correlations: dict[str, list[float]] = {}
    for place in chosen:
        for name, copy in forms(images[place]):
            value = fingerprint(copy)
            assert value is not None
            own = np.array(prints[place])
            distance = float(np.linalg.norm(np.array(value) - own) / np.linalg.norm(own))
            score = residual_correlation(images[place], copy) if distance <= CANDIDATE_DISTANCE else 0.0
            distances.setdefault(name, []).append(distance)
            correlations.setdefault(name, []).append(score)
            found.setdefault(name, []).append(score >= SAME_ACQUISITION)
    for name, hits in found.items():
        print(
            f"{name}: {sum(hits)} of {len(hits)} found; farthest fingerprint {max(distances[name]):.4f}, "
            f"lowest correlation of candidates {min((c for c in correlations[name] if c > 0), default=0):.3f}"
        )

    native = np.kron(images[0], np.ones((2, 2, 2), dtype=np.int16))
    begin = time.process_time()
    fingerprint(native)
    print(f"fingerprint of an image of {native.shape} voxels: {time.process_time() - begin:.2f} s of processor time")

    rng = np.random.default_rng(0)
    table = np.repeat(np.array(prints), 30_000 // len(prints) + 1, axis=0)[:30_000]
    table *= rng.normal(1.0, 0.2, table.shape)
    begin = time.process_time()
    candidate_pairs(list(table))
    print(f"candidate search among 30000 images: {time.process_time() - begin:.0f} s of processor time")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30)
