"""Brain extraction: the package's own mask against the registered atlas mask, deepbet and BET.

Two sets with known truth. *Simulated*: heads of the simulator (MNI152 anatomy, deformed, in a shell of fluid, bone,
marrow, muscle, fat and skin; no eyes, no dura). *Re-stripped*: real stripped OASIS-1 brains put into a shell with dura,
marrow, eyes and orbital fat of varied brightness and thickness, posed, with drift and noise; the mask they came with is
the truth. On real IXI heads there is no truth: agreement of the methods, and what lies between them.

Usage: ``python benchmarks/brain_extraction.py DATA [HEADS]`` with DATA the folder that holds ``oasis1_mni_2mm`` and
``ixi_t1_2mm`` and HEADS the number of each set. deepbet and brainextractor (a port of BET) are compared where they are
installed; they are no dependencies. One thread; processor seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d.volumes import bias, mask, normalize, register
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Array, Grid, Matrix, reduce_to, resample, voxel_sizes

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Head:
    """A head, its affine, and the mask of its brain where that is known."""

    name: str
    data: Array
    affine: Matrix
    truth: Mask | None = None


# ---------------------------------------------------------------------------------------------------- the heads
def simulated_heads(count: int, zoom_mm: float = 2.0) -> Iterator[Head]:
    """Heads of the simulator: sizes 0.86-1.16, atrophy, bias, noise, contrast; truth from the warped template brain."""
    from medalign3d.simulate import anatomy

    arrays = anatomy.build_template(zoom_mm)
    brain = mni._one_millimetre()
    box = Grid(arrays["head"].shape, _corner_affine(anatomy.BOX_MM[:, 0]))  # type: ignore[arg-type]
    whole = resample(brain.maps["brain"], brain.affine, box)
    renderer = anatomy.Renderer(arrays)
    truth_renderer = anatomy.Renderer({**arrays, "head": whole})
    for number in range(count):
        uniform = np.random.default_rng([77, number]).uniform
        person = anatomy.Anatomy(
            1000 + number,
            ventricles=uniform(-0.3, 1.0),
            hippocampus_left=uniform(-0.4, 0.1),
            hippocampus_right=uniform(-0.4, 0.1),
            brain=uniform(-0.06, 0.02),
            lesions=uniform(0, 0.8),
            size=tuple(uniform(0.9, 1.1, 3) * uniform(0.95, 1.05)),
        )
        place: dict[str, Any] = {
            "zooms_mm": (zoom_mm,) * 3,
            "rotation_degrees": tuple(uniform(-15, 15, 3)),
            "translation_mm": tuple(uniform(-8, 8, 3)),
        }
        light = {"bias": uniform(0, 0.3), "gamma": uniform(0.8, 1.25), "noise": uniform(0.01, 0.06)}
        scan = renderer.render(person, anatomy.Scan(number, **light, **place))
        truth = truth_renderer.render(person, anatomy.Scan(number, bias=0, noise=0, **place))
        yield Head(f"simulated {number}", scan.data.astype(np.float32), scan.affine, truth.data > 500)


def _corner_affine(corner: NDArray[np.floating]) -> Matrix:
    affine = np.eye(4)
    affine[:3, 3] = corner
    return affine


def in_a_shell(brain: Array, affine: Matrix, seed: int) -> Head:
    """A stripped brain in MNI space, put into a head and scanned at 2 mm."""
    pad = 12
    brain = np.pad(brain, pad)
    affine = affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, pad)
    solid = ndimage.binary_fill_holes(brain > 0.02 * np.percentile(brain, 99))
    rng = np.random.default_rng(seed)
    white = float(np.percentile(brain[solid], 90))
    closed = ndimage.distance_transform_edt(~np.pad(solid, 8)) < 8
    closed = (ndimage.distance_transform_edt(closed) > 8)[8:-8, 8:-8, 8:-8] | solid
    outside = ndimage.distance_transform_edt(~closed) * float(voxel_sizes(affine)[0])
    index = [affine[k, k] * np.arange(brain.shape[k]) + affine[k, 3] for k in range(3)]
    x, y, z = np.ix_(*index)
    neck = ((x / 52) ** 2 + ((y + 36) / 56) ** 2 < 1) & (z < -52)
    face = (x / 60) ** 2 + ((y - 36) / 56) ** 2 + ((z + 62) / 58) ** 2 < 1
    whole = ndimage.gaussian_filter(((outside < 15) | neck | face).astype(np.float32), 1.0) > 0.5
    depth = ndimage.distance_transform_edt(whole) * float(voxel_sizes(affine)[0])
    fluid, bone, marrow, fat = rng.uniform([0.1, 0.05, 0.2, 0.8], [0.35, 0.12, 0.9, 1.5])
    gap = rng.uniform(0.5, 3)
    shell = np.where(outside <= gap, fluid, bone)
    if rng.random() < 0.7:  # dura, as bright as grey matter
        shell = np.where((outside > gap) & (outside <= gap + 1.5), 0.5, shell)
    shell = np.where((outside > 5) & (outside < 7), marrow, shell)
    shell = np.where(outside > 9, 0.5, shell)
    shell = np.where((depth > 2) & (depth < 6.5) & (outside > 8), fat, shell)
    for side in (-1, 1):
        radius = np.sqrt((x - side * 32) ** 2 + (y - 62) ** 2 + (z + 36) ** 2)
        shell = np.where((radius < 12) & (outside > 1), 0.25, shell)  # the eye
        shell = np.where((radius >= 12) & (radius < 16) & (outside > 1), 0.9, shell)  # fat of the orbit
    image = ndimage.gaussian_filter(np.where(solid, brain, shell * whole * white), 0.35).astype(np.float32)
    pose = np.eye(4)
    pose[:3, :3] = register.rotation(*rng.uniform(-12, 12, 3)) * rng.uniform(0.85, 1.05)
    pose[:3, 3] = rng.uniform(-8, 8, 3)
    shape = (96, 120, 110)
    scanner = np.diag([2.0, 2.0, 2.0, 1.0])
    scanner[:3, 3] = -(np.array(shape) - 1.0) + [0, -16, -2]
    grid = Grid(shape, scanner)
    data = resample(image, affine, grid, np.linalg.inv(pose))
    truth = resample(solid.astype(np.float32), affine, grid, np.linalg.inv(pose)) > 0.5
    x, y, z = (line / 80 for line in grid.coordinates())
    a, b, c, d, e = rng.normal(0, 0.12, 5)
    data = data * np.exp(a * x + b * y + c * z + d * x * y + e * z**2)
    noise = 0.03 * white * rng.normal(size=(2, *shape))
    data = np.hypot(data + noise[0], noise[1])
    return Head(f"re-stripped {seed}", data.astype(np.float32), scanner, truth)


def restripped_heads(data: Path, count: int) -> Iterator[Head]:
    """Real OASIS-1 brains in shells."""
    paths = sorted((data / "oasis1_mni_2mm").glob("*.nii.gz"))
    for number, path in enumerate(paths[:: max(1, len(paths) // count)][:count]):
        image: Any = nibabel.load(path)
        yield in_a_shell(np.asarray(image.dataobj, dtype=np.float32), image.affine, number)


def real_heads(data: Path, count: int) -> Iterator[Head]:
    """IXI."""
    paths = sorted((data / "ixi_t1_2mm").glob("*.nii.gz"))
    for path in paths[:: max(1, len(paths) // count)][:count]:
        image: Any = nibabel.load(path)
        yield Head(path.name[:6], np.asarray(image.dataobj, dtype=np.float32), image.affine)


# ---------------------------------------------------------------------------------------------------- the methods
def registered(head: Head) -> Matrix:
    """MNI millimetres to the head's, as the pipeline finds it."""
    return register.register(normalize._tame(head.data), head.affine).transform


def _back(found: Mask, template: mni.Template, head: Head, transform: Matrix) -> Mask:
    grid = Grid(head.data.shape, head.affine)  # type: ignore[arg-type]
    return resample(found.astype(np.float32), template.grid.affine, grid, np.linalg.inv(transform)) > 0.5


def atlas(head: Head, transform: Matrix) -> Mask:
    """The template's brain, registered."""
    template = mni.at_zoom(2.0)
    return _back(template.brain > 0.5, template, head, transform)


def own(head: Head, transform: Matrix) -> Mask:
    """:func:`medalign3d.volumes.mask.brain_mask`, with the fit of tissue and drift that it needs."""
    template = mni.at_zoom(2.0)
    small, small_affine = reduce_to(normalize._tame(head.data), head.affine, 2.0)
    image = resample(small, small_affine, template.grid, transform)
    tissue = bias.fit(image, template, correct=True)
    assert tissue is not None
    assert tissue.coefficients is not None
    image = image * np.exp(-bias.drift(tissue.coefficients, template.grid))
    return _back(mask.brain_mask(image, template, tissue), template, head, transform)


def _deepbet() -> Callable[[Head, Matrix], Mask] | None:
    try:
        import torch
        from deepbet.bet import BrainExtraction
    except ImportError:
        return None
    torch.set_num_threads(1)
    network = BrainExtraction(no_gpu=True)

    def run(head: Head, transform: Matrix) -> Mask:
        _, found, _ = network.run(nibabel.Nifti1Image(head.data, head.affine))
        grid = Grid(head.data.shape, head.affine)  # type: ignore[arg-type]
        return resample(np.asarray(found.dataobj, dtype=np.float32), found.affine, grid) > 0.5

    return run


def _bet() -> Callable[[Head, Matrix], Mask] | None:
    try:
        from brainextractor import BrainExtractor
    except ImportError:
        return None

    def run(head: Head, transform: Matrix) -> Mask:
        with contextlib.redirect_stdout(io.StringIO()):
            extractor = BrainExtractor(img=nibabel.Nifti1Image(head.data, head.affine))
            extractor.run(iterations=1000)
            return np.asarray(extractor.compute_mask() > 0)

    return run


def methods() -> dict[str, Callable[[Head, Matrix], Mask]]:
    """Those that are installed."""
    every = {"own": own, "atlas": atlas, "deepbet": _deepbet(), "BET": _bet()}
    return {name: method for name, method in every.items() if method is not None}


# ---------------------------------------------------------------------------------------------------- the figures
def _surface_distance(one: Mask, other: Mask, zooms: NDArray[np.float64]) -> float:
    """Mean distance between two masks' surfaces, both ways, millimetres."""
    surfaces = [m & ~ndimage.binary_erosion(m) for m in (one, other)]
    distances = [ndimage.distance_transform_edt(~s, sampling=zooms) for s in surfaces]
    return float((distances[1][surfaces[0]].mean() + distances[0][surfaces[1]].mean()) / 2)


def compare(found: Mask, truth: Mask, affine: Matrix) -> dict[str, float]:
    """Dice (%), surface distance (mm), and what lies more than 3 mm outside or inside the true surface (mL)."""
    zooms = voxel_sizes(affine)
    voxel_ml = float(np.prod(zooms)) / 1000
    outside = ndimage.distance_transform_edt(~truth, sampling=zooms)
    inside = ndimage.distance_transform_edt(truth, sampling=zooms)
    return {
        "dice %": 200.0 * float((found & truth).sum()) / float(found.sum() + truth.sum()),
        "surface mm": _surface_distance(found, truth, zooms),
        "far outside mL": voxel_ml * float((found & (outside > 3.0)).sum()),
        "missed deep mL": voxel_ml * float((~found & (inside > 3.0)).sum()),
        "volume %": 100.0 * float(found.sum()) / float(truth.sum()) - 100.0,
    }


def measure(heads: Iterator[Head], chosen: dict[str, Callable[[Head, Matrix], Mask]]) -> dict[str, dict[str, Array]]:
    """Figures per method over all heads; where a head has no truth, the other methods' majority stands in for it."""
    table: dict[str, dict[str, list[float]]] = {name: {} for name in chosen}
    for head in heads:
        started = time.process_time()
        transform = registered(head)
        print(f"{head.name}: registered in {time.process_time() - started:.2f} CPU s", flush=True)
        masks = {}
        for name, method in chosen.items():
            started = time.process_time()
            masks[name] = method(head, transform)
            table[name].setdefault("CPU s", []).append(time.process_time() - started)
        for name, found in masks.items():
            truth = head.truth
            if truth is None:
                others = [m for other, m in masks.items() if other != name]
                truth = np.mean(others, axis=0) > 0.5
            for figure, value in compare(found, truth, head.affine).items():
                table[name].setdefault(figure, []).append(value)
    return {name: {f: np.array(v, np.float32) for f, v in figures.items()} for name, figures in table.items()}


def print_table(title: str, table: dict[str, dict[str, Array]]) -> None:
    """Mean (worst head) per figure."""
    figures = list(next(iter(table.values())))
    print(f"\n{title}: mean (worst head)")
    print("| method | " + " | ".join(figures) + " |\n|---|" + "---|" * len(figures))
    for name, values in table.items():
        cells = []
        for figure in figures:
            column = values[figure]
            worst = column.min() if figure == "dice %" else column[np.abs(column).argmax()]
            cells.append(f"{column.mean():.2f} ({worst:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("heads", type=int, nargs="?", default=20)
    parser.add_argument("--sets", nargs="+", default=["simulated", "restripped", "real"])
    parser.add_argument("--methods", nargs="+", default=["own", "atlas", "deepbet", "BET"])
    arguments = parser.parse_args()
    chosen = {name: method for name, method in methods().items() if name in arguments.methods}
    sets: dict[str, Callable[[], Iterator[Head]]] = {
        "simulated": lambda: simulated_heads(arguments.heads),
        "restripped": lambda: restripped_heads(arguments.data, arguments.heads),
        "real": lambda: real_heads(arguments.data, arguments.heads),
    }
    for title in arguments.sets:
        print_table(title, measure(sets[title](), chosen))


if __name__ == "__main__":
    main()
