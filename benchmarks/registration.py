"""How exact, how repeatable and how fast registration is, and what its gate catches.

    python benchmarks/registration.py known DATA      # known transforms, beside ANTs and greedy where installed
    python benchmarks/registration.py repeat DATA     # every real head several times, with perturbed headers

DATA holds ``ixi_t1_2mm``, ``templates``, ``dicom`` and ``oasis1_mni_2mm``. Seconds are processor time of one core.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d.params import Normalize, load_params
from medalign3d.volumes import normalize, register
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Grid, resample
from medalign3d.volumes.pool import keep_memory
from medalign3d.volumes.read import read_volume

Data = NDArray[np.float32]
Matrix = NDArray[np.float64]
GROSS_MM = 5.0


def paper(params: Normalize | None = None) -> Normalize:
    """The parameters at 1 mm."""
    params = load_params().normalize if params is None else params
    return params.model_copy(update={"shape": [224, 224, 224], "zooms_mm": 1.0})


def load(path: Path) -> tuple[Data, Matrix]:
    """An image as the pipeline reads it: intensities, affine."""
    volume = read_volume(path.resolve().parent, path.name)
    return normalize._tame(volume.data), np.asarray(volume.affine, dtype=float)


def turned_about(centre: NDArray[np.float64], turn: Matrix, shift: NDArray[np.float64]) -> Matrix:
    """4x4: turn (3x3) about ``centre``, then shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = centre - turn @ centre + shift
    return matrix


def random_motion(rng: np.random.Generator, centre: NDArray[np.float64], *, far: bool, position: int = 0) -> Matrix:
    """A rotation of up to 25 degrees about any axis, a shift of up to 40 mm in any direction, a patient position.

    ``far`` takes both limits instead of something below them.
    """
    axis, direction = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    angle = np.deg2rad(25.0 if far else rng.uniform(0, 25))
    cross = np.cross(np.eye(3), axis)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    turn = register.patient_positions()[position] @ turn
    return turned_about(centre, turn, direction * (40.0 if far else rng.uniform(0, 40)))


def middle(data: Data, affine: Matrix) -> NDArray[np.float64]:
    """The image's centre in millimetres."""
    return np.asarray(affine[:3, :3] @ ((np.array(data.shape) - 1) / 2) + affine[:3, 3])


# ---------------------------------------------------------------------------------------------------------------------
# repeat


def repeat(arguments: argparse.Namespace) -> None:
    """Register every head as it is and with perturbed headers: do the answers agree?"""
    params = load_params().normalize
    template = mni.at_zoom(normalize.work_zoom(params.zooms_mm))
    rng = np.random.default_rng(arguments.seed)
    paths = sorted((arguments.data / "ixi_t1_2mm").glob("*.nii.gz"))[:: arguments.stride]
    kinds: dict[str, list[tuple[float, bool]]] = {}
    seconds: list[float] = []
    worst: list[tuple[float, str]] = []
    refused = accepted_gross = gross = 0
    for path in paths:
        data, affine = load(path)
        centre = middle(data, affine)
        starts = [("as it is", np.eye(4))]
        starts += [("header moved", random_motion(rng, centre, far=False)) for _ in range(arguments.repeats)]
        starts += [("header moved by 40 mm, 25 degrees", random_motion(rng, centre, far=True))]
        starts += [
            ("patient position", random_motion(rng, centre, far=False, position=int(rng.integers(1, 24))))
            for _ in range(2)
        ]
        answers = []
        for _, moved in starts:
            began = time.process_time()
            found = register.register(data, moved @ affine)
            seconds.append(time.process_time() - began)
            answers.append((np.linalg.inv(moved) @ found.transform, found))
        # The reference is the answer with the highest correlation: an outlier must not become the measure.
        reference = max(answers, key=lambda pair: pair[1].correlation)[0]
        for (kind, moved), (answer, found) in zip(starts, answers, strict=True):
            distance = register.displacement_mm(reference, answer)
            attempt = normalize._attempt(data, moved @ affine, found, template, params)
            kinds.setdefault(kind, []).append((distance, not attempt.problem))
            worst.append((distance, f"{path.name} {kind} r={found.correlation:.4f} {attempt.problem}"))
            if distance > GROSS_MM:
                gross += 1
                accepted_gross += not attempt.problem
            elif attempt.problem:
                refused += 1
    print(f"{len(paths)} heads, {len(seconds)} registrations, median {np.median(seconds):.2f} s, {max(seconds):.2f} s")
    print("| start | registrations | median mm | worst mm | within 0.1 mm | accepted |\n|---|---:|---:|---:|---:|---:|")
    kinds["all"] = [pair for pairs in kinds.values() for pair in pairs]
    for kind, pairs in kinds.items():
        d = np.array([p[0] for p in pairs])
        print(
            f"| {kind} | {len(d)} | {np.median(d):.3f} | {d.max():.3f} | {(d <= 0.1).mean():.1%} |"
            f" {np.mean([p[1] for p in pairs]):.1%} |"
        )
    print(f"gross (> {GROSS_MM:g} mm): {gross}, of which accepted: {accepted_gross}; good ones refused: {refused}")
    for distance, words in sorted(worst, reverse=True)[: arguments.show]:
        print(f"{distance:.3f} {words}")


# ---------------------------------------------------------------------------------------------------------------------
# known


@dataclass(frozen=True)
class Case:
    """A head under a known transform: what is measured must follow the head."""

    name: str
    data: Data
    affine: Matrix
    transform: Matrix
    """4x4: millimetres of the untouched head -> millimetres of this one."""


def whole_head(data: Path, zoom: float) -> tuple[Data, Matrix]:
    """The head to be moved: at 2 mm the whole-head MNI152 template, at 1 mm a real head (studyforrest, 0.67 mm)."""
    if zoom >= 2:
        return load(data / "templates" / "MNI152_T1_2mm.nii.gz")
    return load(data / "dicom" / "studyforrest_t1_dicom.zip")


def known_cases(head: Data, affine: Matrix, zoom: float, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """The head on new grids: moved, scaled, sheared, with drift, noise, other contrast, thick slices, turned."""
    bright = float(np.percentile(head, 99))
    centre = middle(head, affine)
    for number in range(count):
        kind = ("moved", "40 mm, 25 degrees", "thick slices", "patient position")[number % 4]
        position = int(rng.integers(1, 24)) if kind == "patient position" else 0
        motion = random_motion(rng, centre, far=kind == "40 mm, 25 degrees", position=position)
        shape_change = np.diag(rng.uniform(0.9, 1.1, 3)) + np.triu(rng.uniform(-0.1, 0.1, (3, 3)), 1)
        transform = motion @ turned_about(centre, shape_change, np.zeros(3))
        zooms = np.array([zoom, zoom, 1.5 * zoom]) if kind == "thick slices" else np.full(3, zoom)
        if kind == "patient position":
            zooms = zoom * np.array([1.0, 1.1, 1.2])
        # A field of view that follows the head: headers are what is wrong in practice, not what was scanned.
        corners = (
            np.array(list(itertools.product(*[(0, n - 1) for n in head.shape]))) @ affine[:3, :3].T + affine[:3, 3]
        )
        moved = corners @ transform[:3, :3].T + transform[:3, 3]
        low, high = moved.min(axis=0), moved.max(axis=0)
        count_voxels = np.ceil((high - low) / zooms).astype(int)
        new_affine = np.diag([*zooms, 1.0])
        new_affine[:3, 3] = low
        grid = Grid((int(count_voxels[0]), int(count_voxels[1]), int(count_voxels[2])), new_affine)
        source = head
        blur = np.maximum(0.0, zooms / np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) - 1.0) * 0.4
        if blur.max() > 0:
            source = ndimage.gaussian_filter(head, blur)
        data = np.maximum(resample(source, affine, grid, np.linalg.inv(transform), order=3), 0.0) / bright
        data = data ** np.float32(rng.uniform(0.7, 1.4))
        x, y, z = grid.coordinates()
        slopes = rng.uniform(-0.35, 0.35, 3) / 90.0
        moved_centre = motion[:3, :3] @ centre + motion[:3, 3]
        x, y, z = (np.asarray(v, float) - c for v, c in zip((x, y, z), moved_centre, strict=True))
        data = data * np.exp(slopes[0] * x + slopes[1] * y + slopes[2] * z - 0.2 * (x * y) / 90**2)
        noise = rng.normal(0, rng.uniform(0.01, 0.05), (2, *data.shape))
        data = np.hypot(data + noise[0], noise[1])  # Rician
        yield Case(kind, (1000 * data).astype(np.float32), new_affine, transform)


def _itk(data: Data, affine: Matrix) -> object:
    """An ants image with the affine's position (ITK counts x to the left and y to the back)."""
    import ants

    to_itk = np.diag([-1.0, -1.0, 1.0])
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return ants.from_numpy(
        np.ascontiguousarray(data),
        origin=list(to_itk @ affine[:3, 3]),
        spacing=list(zooms),
        direction=to_itk @ (affine[:3, :3] / zooms),
    )


def ants_affine(fixed: tuple[Data, Matrix], moving: tuple[Data, Matrix], kind: str) -> Matrix:
    """4x4 from the fixed image's millimetres to the moving one's, by N4 and ``ants.registration``."""
    import ants

    target, source = _itk(*fixed), _itk(*moving)
    source = ants.n4_bias_field_correction(source)
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            target, source, type_of_transform=kind, outprefix=f"{folder}/", random_seed=1, singleprecision=False
        )
        transform = ants.read_transform(found["fwdtransforms"][0])
        parameters, centre = np.array(transform.parameters), np.array(transform.fixed_parameters)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + centre - matrix[:3, :3] @ centre
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return flip @ matrix @ flip


def greedy_affine(fixed: tuple[Data, Matrix], moving: tuple[Data, Matrix], metric: str) -> Matrix:
    """4x4 from the fixed image's millimetres to the moving one's, by greedy from aligned image centres."""
    from picsl_greedy import Greedy3D

    with tempfile.TemporaryDirectory() as folder:
        for name, (data, affine) in (("fixed", fixed), ("moving", moving)):
            nibabel.save(nibabel.Nifti1Image(data, affine), f"{folder}/{name}.nii")
        Greedy3D().execute(
            f"-d 3 -a -dof 12 -ia-image-centers -m {metric} -n 100x50x10 -threads 1 -V 0"
            f" -i {folder}/fixed.nii {folder}/moving.nii -o {folder}/found.mat"
        )
        return np.loadtxt(f"{folder}/found.mat")


def known(arguments: argparse.Namespace) -> None:
    """Errors over brain voxels under known transforms; others register to the untouched head itself (easier)."""
    rng = np.random.default_rng(arguments.seed)
    head, affine = whole_head(arguments.data, arguments.zoom)
    # Ours registers to its own template, so the answer for the untouched head is what the others must be moved from.
    reference = register.register(head, affine).transform
    fixed = (head, affine)
    others = [tool for tool in arguments.tools.split(",") if tool]
    if arguments.zoom < 2 and others:
        zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        shape = (np.array(head.shape) * zooms / arguments.zoom).astype(int)
        step = np.diag([*(arguments.zoom / zooms), 1.0])
        grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine @ step)
        fixed = (resample(ndimage.gaussian_filter(head, 0.4), affine, grid), grid.affine)
    results: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for case in known_cases(head, affine, arguments.zoom, arguments.count, rng):
        truth = case.transform @ reference
        answers = {}
        began = time.process_time()
        answers["this package"] = register.register(case.data, case.affine).transform
        times = {"this package": time.process_time() - began}
        for tool in others:
            began = time.process_time()
            if tool.startswith("ants"):
                found = ants_affine(fixed, (case.data, case.affine), tool.removeprefix("ants"))
            else:
                found = greedy_affine(fixed, (case.data, case.affine), tool.removeprefix("greedy"))
            times[tool] = time.process_time() - began
            answers[tool] = found @ reference
        for tool, answer in answers.items():
            error = register.displacement_mm(truth, answer)
            for kind in (case.name, "all"):
                results.setdefault((tool, kind), []).append((error, times[tool]))
            if arguments.show:
                print(tool, case.name, case.data.shape, f"{error:.3f} mm {times[tool]:.2f} s", flush=True)
    print("| tool | case | count | mean mm | median mm | worst mm | seconds |\n|---|---|---:|---:|---:|---:|---:|")
    for (tool, kind), pairs in sorted(results.items()):
        e, t = np.array(pairs).T
        print(
            f"| {tool} | {kind} | {len(e)} | {e.mean():.2f} | {np.median(e):.2f} | {e.max():.2f} | {np.median(t):.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["known", "repeat"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stride", type=int, default=1, help="every how many-th head")
    parser.add_argument("--repeats", type=int, default=3, help="perturbed headers per head")
    parser.add_argument("--show", type=int, default=0, help="how many of the worst are listed")
    parser.add_argument("--zoom", type=float, default=2.0, help="known: voxel size, 1 or 2 mm")
    parser.add_argument("--count", type=int, default=24, help="known: how many transforms")
    parser.add_argument("--tools", default="", help="known: antsAffine,antsAffineFast,greedyNMI,greedyNCC")
    arguments = parser.parse_args()
    keep_memory()
    globals()[arguments.what](arguments)


if __name__ == "__main__":
    main()
