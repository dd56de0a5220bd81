"""How exact, how repeatable and how fast registration is, and what its gate catches.

    python benchmarks/registration.py known DATA      # known transforms, beside ANTs and greedy where installed
    python benchmarks/registration.py repeat DATA     # every real head several times, with perturbed headers
    python benchmarks/registration.py gate DATA       # good and deliberately wrong registrations: what the gate says
    python benchmarks/registration.py normalized DATA # OASIS-1 brains that come in MNI space pass unchanged?
    python benchmarks/registration.py rescue DATA     # hard heads: what the fallback saves

DATA holds ``ixi_t1_2mm``, ``templates``, ``dicom`` and ``oasis1_mni_2mm``. Seconds are processor time of one core.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d.params import Normalize, load_params
from medalign3d.volumes import fallback, normalize, register
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
        data = np.maximum(resample(source, affine, grid, np.linalg.inv(transform)), 0.0) / bright
        data = data ** np.float32(rng.uniform(0.7, 1.4))
        x, y, z = grid.coordinates()
        slopes = rng.uniform(-0.35, 0.35, 3) / 90.0
        moved_centre = motion[:3, :3] @ centre + motion[:3, 3]
        x, y, z = (np.asarray(v, float) - c for v, c in zip((x, y, z), moved_centre, strict=True))
        data = data * np.exp(slopes[0] * x + slopes[1] * y + slopes[2] * z - 0.2 * (x * y) / 90**2)
        noise = rng.standard_normal((2, *data.shape), np.float32) * np.float32(rng.uniform(0.01, 0.05))
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


# ---------------------------------------------------------------------------------------------------------------------
# gate


def wrong_transforms(rng: np.random.Generator) -> Iterator[tuple[str, Matrix]]:
    """Errors to put on top of a good registration: name and 4x4 in MNI millimetres."""
    centre = np.array([0.0, -17.0, 5.0])

    def unit() -> NDArray[np.float64]:
        vector = rng.normal(size=3)
        return np.asarray(vector / np.linalg.norm(vector))

    for distance in (3, 5, 10, 20):
        yield f"{distance} mm beside", turned_about(centre, np.eye(3), unit() * distance)
    for degrees in (10, 20, 30):
        axis, angle = unit(), np.deg2rad(degrees)
        cross = np.cross(np.eye(3), axis)
        turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        yield f"{degrees} degrees off", turned_about(centre, turn, np.zeros(3))
    for factor in (0.8, 0.9, 1.1, 1.25):
        yield f"{factor:g} times the size", turned_about(centre, factor * np.eye(3), np.zeros(3))
    yield "upside down", turned_about(centre, register.rotation(180, 0, 0), np.zeros(3))
    yield "back to front", turned_about(centre, register.rotation(0, 0, 180), np.zeros(3))
    yield "left-right mirrored", turned_about(centre, np.diag([-1.0, 1.0, 1.0]), np.zeros(3))


def spoilt_images(data: Data, rng: np.random.Generator) -> Iterator[tuple[str, Data]]:
    """Images that should not pass (or should be handled): name and intensities on the head's own grid."""
    bright = float(np.percentile(data, 99))
    for axis, where in ((0, "left"), (1, "front"), (2, "upper")):
        half = data.copy()
        half[tuple(slice(0, data.shape[axis] // 2) if a == axis else slice(None) for a in range(3))] = 0
        yield f"half a head ({where} axis)", half
    for strength in (0.2, 0.5):
        ghost = data + np.float32(strength) * sum(np.roll(data, s, axis=1) for s in (17, -17, 34))
        yield f"motion ghosts {strength:g}", ghost.astype(np.float32)
    yield "noise as strong as white matter", np.abs(data + rng.normal(0, bright, data.shape)).astype(np.float32)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in data.shape], indexing="ij")
    radius = np.sqrt(x * x + y * y + z * z)
    yield "phantom sphere", (bright * (radius < 0.7) * (1 + 0.02 * rng.normal(size=data.shape))).astype(np.float32)
    yield (
        "nested spheres",
        (bright * ((radius < 0.7) - 0.5 * (radius < 0.45) + 0.3 * (radius < 0.2))).astype(np.float32),
    )


def gate(arguments: argparse.Namespace) -> None:
    """What the gate measures on good and on deliberately wrong registrations, and what it lets pass."""
    params = load_params().normalize
    template = mni.at_zoom(normalize.work_zoom(params.zooms_mm))
    rng = np.random.default_rng(arguments.seed)
    found: dict[str, list[tuple[float, float, str]]] = {}

    def note(kind: str, data: Data, affine: Matrix, answer: register.Registration) -> None:
        attempt = normalize._attempt(data, affine, answer, template, params)
        measured = attempt.quality
        values = (0.0, 0.0) if measured is None else (measured.local_correlation, measured.overlap)
        found.setdefault(kind, []).append((*values, attempt.problem))

    for number, path in enumerate(sorted((arguments.data / "ixi_t1_2mm").glob("*.nii.gz"))[:: arguments.stride]):
        data, affine = load(path)
        good = register.register(data, affine)
        note("good", data, affine, good)
        for kind, error in wrong_transforms(rng):
            note(kind, data, affine, register.Registration(good.transform @ error, good.correlation, 1))
        for factor in (0.6, 0.75, 1.2):
            smaller = np.diag([factor, factor, factor, 1.0]) @ affine
            note(f"head scaled by {factor:g}, registered", data, smaller, register.register(data, smaller))
        if number < 3:
            for kind, spoilt in spoilt_images(data, rng):
                note(f"{kind}, registered", spoilt, affine, register.register(spoilt, affine))
    fruit, affine = load(arguments.data / "dicom" / "ge_hdxt_not_a_brain_dicom.zip")
    note("fruit, registered", fruit, affine, register.register(fruit, affine))
    print("| registration | count | local correlation: lowest, median, highest | overlap | accepted |")
    print("|---|---:|---|---:|---:|")
    for kind, rows in found.items():
        r = np.array([row[0] for row in rows])
        print(
            f"| {kind} | {len(r)} | {r.min():.2f}, {np.median(r):.2f}, {r.max():.2f} |"
            f" {np.median([row[1] for row in rows]):.2f} | {sum(not row[2] for row in rows)} |"
        )
    print("\n| threshold | good refused | wrong by 5 mm, 10 degrees or more accepted |\n|---:|---:|---:|")
    wrong = [
        row[0]
        for kind, rows in found.items()
        if kind.endswith((" beside", "off", "down", "front")) and kind != "3 mm beside"
        for row in rows
    ]
    good_ones = np.array([row[0] for row in found["good"]])
    for threshold in np.arange(0.15, 0.51, 0.05):
        print(
            f"| {threshold:.2f} | {(good_ones < threshold).mean():.1%} | {(np.array(wrong) >= threshold).mean():.1%} |"
        )


# ---------------------------------------------------------------------------------------------------------------------
# normalized


def normalized(arguments: argparse.Namespace) -> None:
    """Do brains that come stripped and in MNI space (OASIS-1) pass unchanged but for resampling and scaling?"""
    params = load_params().normalize
    target = mni.target_grid(params.shape, params.zooms_mm)
    methods: Counter[str] = Counter()
    agreement, offsets, seconds = [], [], []
    for path in sorted((arguments.data / "oasis1_mni_2mm").glob("*.nii.gz"))[:: arguments.stride]:
        volume = read_volume(path.resolve().parent, path.name)
        began = time.process_time()
        result = normalize.normalize_volume(volume, params)
        seconds.append(time.process_time() - began)
        methods[f"{result.method}, {result.verdict}"] += 1
        if result.array is None or result.method != "already-normalized":
            print(path.name, result.method, result.verdict, result.detail)
            offsets.append(register.displacement_mm(result.transform, np.eye(4)))
            continue
        assert np.array_equal(result.transform, np.eye(4))
        plain = mni.sample_averaged(volume.data, volume.affine, target, np.eye(4))
        brain = result.array > 0
        # Scaling to bytes is linear but for its ends, so a correlation of 1 says that nothing else was done.
        agreement.append(float(np.corrcoef(result.array[brain], plain[brain])[0, 1]))
    print(", ".join(f"{name}: {count}" for name, count in methods.most_common()), f"; {np.median(seconds):.2f} s")
    print(f"correlation with a plain resampling: lowest {min(agreement):.4f}, median {np.median(agreement):.4f}")
    if offsets:
        print("transforms of the others, mean mm from the identity:", " ".join(f"{o:.1f}" for o in sorted(offsets)))


# ---------------------------------------------------------------------------------------------------------------------
# rescue


def hard_cases(data: Data, affine: Matrix, rng: np.random.Generator) -> Iterator[tuple[str, Data, Matrix, Matrix]]:
    """Heads on which a fast search may fail: name, image, its affine, and how its millimetres differ."""
    centre = middle(data, affine)
    for factor in (0.6, 0.7, 0.8, 1.15, 1.25):
        change = turned_about(centre, factor * np.eye(3), np.zeros(3))
        yield f"{factor:g} times the size", data, change @ affine, change
    for degrees in (50, 70):
        axis = rng.normal(size=3)
        cross = np.cross(np.eye(3), axis / np.linalg.norm(axis))
        angle = np.deg2rad(degrees)
        turn = turned_about(
            centre, np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross, np.zeros(3)
        )
        yield f"{degrees} degrees", data, turn @ affine, turn
        small = turned_about(centre, 0.7 * np.eye(3), np.zeros(3))
        yield f"{degrees} degrees, 0.7 times the size", data, turn @ small @ affine, turn @ small
    lines = np.meshgrid(*[np.linspace(-1, 1, n) for n in data.shape], indexing="ij")
    drift = np.exp(1.2 * lines[0] - 1.0 * lines[2] + 0.8 * lines[1] ** 2)
    yield "drift of a factor of ten", (data * drift).astype(np.float32), affine, np.eye(4)
    # Neck and shoulders below: the lowest slice drawn out, then a wide bright body with its own texture.
    world = np.argmax(np.abs(affine[2, :3]))
    body = np.repeat(np.take(data, [0 if affine[2, world] > 0 else -1], axis=world), 90, axis=world)
    body = body + 0.8 * float(np.percentile(data, 95)) * ndimage.gaussian_filter(rng.normal(size=body.shape), 4) * 20
    parts = (np.maximum(body, 0), data) if affine[2, world] > 0 else (data, np.maximum(body, 0))
    longer = affine.copy()
    if affine[2, world] > 0:
        longer[:3, 3] -= 90 * affine[:3, world]
    yield "neck and shoulders", np.concatenate(parts, axis=world).astype(np.float32), longer, np.eye(4)


def _outcome(image: Data, position: Matrix, found: register.Registration, truth: Matrix, params: Normalize) -> str:
    template = mni.at_zoom(normalize.work_zoom(params.zooms_mm))
    words = "right" if register.displacement_mm(truth, found.transform) < 1.0 else "wrong"
    refused = normalize._attempt(image, position, found, template, params).problem
    return f"{words}, {'refused' if refused else 'accepted'}"


def rescue(arguments: argparse.Namespace) -> None:
    """On heads on which the fast search fails, what does the fallback save?"""
    params = load_params().normalize
    rng = np.random.default_rng(arguments.seed)
    rows: dict[str, list[str]] = {}
    for path in sorted((arguments.data / "ixi_t1_2mm").glob("*.nii.gz"))[:: arguments.stride]:
        data, affine = load(path)
        reference = register.register(data, affine).transform
        for kind, image, position, change in hard_cases(data, affine, rng):
            truth = change @ reference
            first = _outcome(image, position, register.register(image, position), truth, params)
            rows.setdefault(kind, []).append(first)
            if first != "right, accepted":
                began = time.process_time()
                second = fallback.register_thoroughly(image, position)
                rows[kind][-1] += f" -> {_outcome(image, position, second, truth, params)}"
                print(path.name, kind, rows[kind][-1], f"{time.process_time() - began:.1f} s", flush=True)
    print("| case | outcomes |\n|---|---|")
    for kind, outcomes in rows.items():
        print(f"| {kind} | {'; '.join(f'{count} {name}' for name, count in Counter(outcomes).most_common())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["known", "repeat", "gate", "normalized", "rescue"])
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
