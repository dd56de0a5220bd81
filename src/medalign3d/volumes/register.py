"""Affine registration of a head to the MNI152 brain: Gauss-Newton on locally normalised images.

Both images are brought to zero mean and unit variance within a moving window, so that neither bias fields nor scanner
contrast matter, and only what lies within (and just around) the template's brain is looked at, so that scalp, neck and
background do not matter. The sum of squared differences of two such images is 2 - 2 x their local correlation; its
Gauss-Newton minimum on a grid of 4 mm takes tens of milliseconds.

A coarse grid of 8 mm finds the starting place: for each of several head rotations, one FFT cross-correlation tries all
translations. When no start leads to a fair agreement, the search goes on with stronger tilts and then with the 23 other
axis-aligned patient positions (an unreadable orientation header).

The answer is polished on intensities matched to the template's, sampled at half the fine grid's spacing: contrast and
the direction of the scanner's voxels would else move it by some tenths of a millimetre.

Left and right cannot be told from the image: the transform never mirrors.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Array, Grid, Matrix, inside, reduce_to, resample

RIM_MM = 5.0
"""Width of the rim around the template brain that is compared too: the dark gap around the brain is a landmark."""

COARSE_WINDOW, FINE_WINDOW = 2.5, 2.0
"""Standard deviation of the moving window in voxels of the level's grid: wide captures from afar, narrow is precise."""

FAIR_CORRELATION = 0.55
"""Local correlation from which the search for better starts stops (adults reach 0.55-0.9)."""

CONVERGED = 4e-4
"""A step that raises the local correlation by less ends the search on a level."""

STATIONARY_MM = 0.01
"""Polishing ends when a step moves no corner of the brain by more: the answer then does not depend on the start."""

POLISHING_STEPS = 25
MEMORY = 4
"""Polishing steps from which the next is extrapolated."""

MATCHED_INNER_MM = -1.0
"""Intensities are matched by their quantiles deeper than this under the template's surface."""
MATCHING_SAMPLE = 40_000
"""Voxels at which they are compared (an even sample)."""

RESTART_NODS = (0.0, -10.0, 10.0)
"""Degrees about the ear-to-ear axis at which the search starts again around the best answer."""

RADIUS_MM = 80.0
"""Coordinates are divided by this so that all twelve parameters have comparable effects."""


@dataclass(frozen=True)
class Level:
    """The template prepared for one resolution."""

    grid: Grid
    window: float
    weight: Array
    normalised: Array
    gradient: Array
    smoothed_weight: Array
    support: NDArray[np.intp]
    support_index: NDArray[np.float64]
    points: NDArray[np.intp]
    homogeneous: Array


@dataclass(frozen=True)
class Registration:
    """What a registration found.

    ``transform`` is 4x4 and maps MNI millimetres to the image's millimetres; ``correlation`` is the mean local
    correlation over the template brain (1: identical, 0: unrelated).
    """

    transform: Matrix
    correlation: float
    starts: int
    method: str = "gauss-newton"


def _local_normalise(data: Array, weight: Array, smoothed_weight: Array, window: float) -> tuple[Array, Array]:
    """Zero mean and unit variance within a Gaussian window, counting only where ``weight`` is positive.

    Returns the normalised image (times nothing: zero where there is no weight) and the local standard deviation.
    """
    mean = ndimage.gaussian_filter(data * weight, window, truncate=2.0, mode="constant") / smoothed_weight
    centred = (data - mean) * weight
    variance = ndimage.gaussian_filter(centred * centred, window, truncate=2.0, mode="constant") / smoothed_weight
    total = float(weight.sum())
    # A floor of a tenth of the typical contrast keeps flat regions and air from being blown up to full-scale noise.
    floor = 0.01 * float((variance * weight).sum()) / max(total, 1e-6) + 1e-12
    deviation = np.sqrt(variance + floor)
    return (centred / deviation).astype(np.float32), deviation.astype(np.float32)


def _window_weight(weight: Array, window: float) -> Array:
    return ndimage.gaussian_filter(weight, window, truncate=2.0, mode="constant") + np.float32(1e-3)


def _gradient(data: Array, zoom: float) -> Array:
    """Central differences per millimetre, shape (3, X, Y, Z)."""
    out = np.zeros((3, *data.shape), dtype=np.float32)
    for axis in range(3):
        moved = np.moveaxis(data, axis, 0)
        target = np.moveaxis(out[axis], axis, 0)
        target[1:-1] = (moved[2:] - moved[:-2]) / np.float32(2 * zoom)
    return out


@lru_cache(maxsize=4)
def level(zoom_mm: float, window: float) -> Level:
    """Prepare the template at ``zoom_mm``; kept for the life of the process."""
    template = mni.at_zoom(zoom_mm, RIM_MM + 2.0)
    weight = np.clip((RIM_MM - template.distance) / zoom_mm + 0.5, 0.0, 1.0).astype(np.float32)
    smoothed = _window_weight(weight, window)
    normalised, _ = _local_normalise(template.t1, weight, smoothed, window)
    support = np.flatnonzero(weight.ravel() > 0)
    index = np.stack(np.unravel_index(support, weight.shape)).astype(np.float64)
    points = np.flatnonzero(weight.ravel() > 0.25)
    # Half of the points determine twelve parameters as well as all of them (an odd stride spreads them evenly).
    points = points[:: 1 if len(points) < 8000 else 2]
    axes = np.broadcast_arrays(*template.grid.coordinates())
    coordinates = [a.ravel()[points] / np.float32(RADIUS_MM) for a in axes]
    homogeneous = np.stack([*coordinates, np.ones(len(points), np.float32)]).astype(np.float32)
    return Level(
        template.grid,
        window,
        weight,
        normalised,
        _gradient(normalised, zoom_mm),
        smoothed,
        support,
        index,
        points,
        homogeneous,
    )


@dataclass
class _Fit:
    transform: Matrix
    correlation: float


def _compare(
    data: Array, affine: Matrix, at: Level, transform: Matrix, samples: int = 1
) -> tuple[Array, Array, Array, float]:
    """Warp, normalise, and compare: normalised image, local deviation, weight within the image, local correlation."""
    if samples > 1:
        warped = mni.sample_averaged(data, affine, at.grid, transform, steps=samples)
    else:
        matrix = np.linalg.inv(affine) @ transform @ at.grid.affine
        warped = np.zeros(at.grid.shape, np.float32)
        index = matrix[:3, :3] @ at.support_index + matrix[:3, 3:]
        warped.ravel()[at.support] = ndimage.map_coordinates(
            data, index, output=np.float32, order=1, mode="constant", cval=0.0, prefilter=False
        )
    seen = inside(data.shape, affine, at.grid, transform)
    if seen is None or bool(seen.ravel()[at.support].all()):
        weight, smoothed = at.weight, at.smoothed_weight
    else:
        weight = at.weight * seen
        smoothed = _window_weight(weight, at.window)
    normalised, deviation = _local_normalise(warped, weight, smoothed, at.window)
    product = float(np.vdot(normalised, at.normalised))
    norm = float(np.sqrt(np.vdot(normalised, normalised) * np.vdot(at.normalised, at.normalised))) + 1e-9
    # What lies outside the image counts as unrelated, or else a start could win by pushing the brain out of view.
    coverage = float(weight.sum() / at.weight.sum())
    return normalised, deviation, weight, product / norm * min(1.0, coverage / 0.9)


def _normal_equations(at: Level, normalised: Array, weight: Array) -> tuple[Matrix, Matrix]:
    """Left (12x12) and right side (12) of the Gauss-Newton step.

    The Jacobian is the mean of both images' gradients (efficient second-order minimisation), which converges from
    farther than either alone.
    """
    zoom = float(at.grid.zooms[0])
    slopes = (_gradient(normalised, zoom) + at.gradient).reshape(3, -1)[:, at.points] * np.float32(0.5 * RADIUS_MM)
    residual = (at.normalised - normalised).ravel()[at.points]
    root = np.sqrt(weight.ravel()[at.points])
    jacobian = ((slopes * root)[:, None, :] * at.homogeneous).reshape(12, len(at.points))
    return (jacobian @ jacobian.T).astype(float), (jacobian @ (residual * root)).astype(float)


def _step(normal: Matrix, right: Matrix, basis: Matrix, damping: float) -> Matrix:
    """Solve for a damped step within the columns of ``basis``; shape (3, 4), translation in units of RADIUS_MM."""
    reduced = basis.T @ normal @ basis
    damped = reduced + damping * np.diag(np.diag(reduced)) + 1e-9 * np.eye(len(reduced))
    return np.asarray((basis @ np.linalg.solve(damped, basis.T @ right)).reshape(3, 4), dtype=float)


def _as_matrix(step: Matrix) -> Matrix:
    update = np.eye(4)
    update[:3, :3] += step[:, :3]
    update[:3, 3] = step[:, 3] * RADIUS_MM
    return update


@lru_cache(maxsize=2)
def _template_quantiles(zoom_mm: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Points within the template's brain in its millimetres, shape (3, N); shares; the template's quantiles there."""
    template = mni.at_zoom(zoom_mm)
    inner = np.flatnonzero(template.distance < MATCHED_INNER_MM)
    chosen = inner[:: max(1, len(inner) // MATCHING_SAMPLE) | 1]
    index = np.stack(np.unravel_index(chosen, template.grid.shape)).astype(float)
    shares = np.linspace(0.5, 99.5, 100)
    points = template.grid.affine[:3, :3] @ index + template.grid.affine[:3, 3:]
    return points, shares, np.percentile(template.t1.ravel()[chosen], shares).astype(float)


def _match_contrast(data: Array, affine: Matrix, transform: Matrix, zoom_mm: float) -> Array:
    """Change intensities so that their quantiles within the brain are the template's: no monotone change matters then.

    Local normalisation removes gain and offset, but not the bend of another contrast, which moves the optimum.
    """
    points, shares, wanted = _template_quantiles(zoom_mm)
    matrix = np.linalg.inv(affine) @ transform
    index = matrix[:3, :3] @ points + matrix[:3, 3:]
    seen = (index > -0.5).all(axis=0) & (index < np.array(data.shape)[:, None] - 0.5).all(axis=0)
    if int(seen.sum()) < len(shares):
        return data
    values = ndimage.map_coordinates(data, index[:, seen], order=1, mode="nearest", prefilter=False)
    found = np.percentile(values, shares).astype(float)
    top = float(found[-1])
    if not top > 0:
        return data
    # A table of many steps is much quicker to look up than interpolation, and as exact as these averages need.
    steps = 4096
    found = np.concatenate([[0.0], np.maximum.accumulate(np.maximum(found, 0.0)) + 1e-6 * top * np.arange(1, 101)])
    table = np.interp(np.arange(steps) * (float(found[-1]) / (steps - 1)), found, np.concatenate([[0.0], wanted]))
    scaled = np.clip(data * np.float32((steps - 1) / float(found[-1])) + np.float32(0.5), 0, steps - 1)
    return np.take(table.astype(np.float32), scaled.astype(np.uint16))


def _extrapolate(places: list[Matrix], moves: list[Matrix]) -> Matrix:
    """Where the moves would vanish if they changed linearly from place to place (Anderson acceleration)."""
    onward = places[-1] + moves[-1]
    if len(places) < 2:
        return onward
    unit = np.array([1.0, 1.0, 1.0, 1.0 / RADIUS_MM])
    changes = np.stack([((b - a) * unit).ravel() for a, b in itertools.pairwise(moves)], axis=1)
    shares = np.linalg.lstsq(changes, (moves[-1] * unit).ravel(), rcond=1e-3)[0]
    for share, (p, q), (a, b) in zip(shares, itertools.pairwise(places), itertools.pairwise(moves), strict=True):
        onward = onward - share * ((q - p) + (b - a))
    return np.asarray(onward)


def _polish(data: Array, affine: Matrix, at: Level, start: _Fit, samples: int) -> _Fit:
    """Take whole Gauss-Newton steps until they vanish, averaging ``samples`` per axis in every voxel of the level.

    The correlation is flat around its maximum, so a search that stops when it no longer rises stops anywhere within
    0.1-0.2 mm. The point at which the step vanishes is sharp.
    """
    place = np.eye(4)
    places: list[Matrix] = []
    moves: list[Matrix] = []
    first: float | None = None
    for _ in range(POLISHING_STEPS):
        normalised, _, weight, correlation = _compare(data, affine, at, start.transform @ place, samples)
        first = correlation if first is None else first
        if correlation < first - 0.02:
            return start
        step = _step(*_normal_equations(at, normalised, weight), np.eye(12), 0.0)
        after = place @ _as_matrix(step)
        if float(np.abs(step).max()) * RADIUS_MM < STATIONARY_MM:
            place = after
            break
        # Noise in the gradients makes every step about half as long as it should be: see how the last ones shrank.
        places = [*places[1 - MEMORY :], place]
        moves = [*moves[1 - MEMORY :], after - place]
        place = _extrapolate(places, moves)
    return _Fit(start.transform @ place, start.correlation)


def _gauss_newton(
    data: Array, affine: Matrix, at: Level, transform: Matrix, iterations: int, *, rigid_first: int = 0
) -> _Fit:
    """Minimise the squared difference of the locally normalised images over the twelve affine parameters.

    ``rigid_first`` iterations move rigidly with one common scale.
    """
    zoom = float(at.grid.zooms[0])
    best = _Fit(transform, -1.0)
    damping = 1e-3
    current = transform
    failures = 0
    for iteration in range(iterations + 1):
        normalised, _, weight, correlation = _compare(data, affine, at, current)
        if correlation > best.correlation + 1e-5:
            gain = correlation - best.correlation
            best = _Fit(current, correlation)
            damping = max(damping / 4, 1e-4)
            failures = 0
            normal, right = _normal_equations(at, normalised, weight)
            if gain < CONVERGED and iteration > rigid_first + 1:
                break
        else:
            failures += 1
            damping *= 20
            if failures > 3:
                break
        if iteration == iterations:
            break
        basis = _similarity_basis() if iteration < rigid_first else np.eye(12)
        step = _step(normal, right, basis, damping)
        length = float(np.abs(step).max()) * RADIUS_MM
        longest = 3.0 * zoom
        if length > longest:
            step = step * (longest / length)
        current = best.transform @ _as_matrix(step)
    return best


@lru_cache(maxsize=1)
def _similarity_basis() -> Matrix:
    """Twelve affine parameters from three rotations, one scale and three translations, shape (12, 7)."""
    columns = []
    for first, second in ((1, 2), (2, 0), (0, 1)):
        matrix = np.zeros((3, 4))
        matrix[first, second], matrix[second, first] = -1.0, 1.0
        columns.append(matrix.ravel())
    scale = np.zeros((3, 4))
    scale[:, :3] = np.eye(3)
    columns.append(scale.ravel())
    for axis in range(3):
        matrix = np.zeros((3, 4))
        matrix[axis, 3] = 1.0
        columns.append(matrix.ravel())
    return np.stack(columns, axis=1)


def rotation(degrees_x: float, degrees_y: float, degrees_z: float) -> Matrix:
    """3x3 rotation about x, then y, then z (degrees)."""
    a, b, c = np.deg2rad([degrees_x, degrees_y, degrees_z])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@lru_cache(maxsize=1)
def patient_positions() -> tuple[Matrix, ...]:
    """The 24 rotations that map axes onto axes; the identity first."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            for row, column in enumerate(order):
                matrix[row, column] = signs[row]
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return tuple(sorted(found, key=lambda m: -float(np.trace(m))))


def _starts(
    data: Array, affine: Matrix, at: Level, rotations: tuple[Matrix, ...], peaks: int, scale: float
) -> list[tuple[float, Matrix]]:
    """For each rotation, the ``peaks`` translations at which the locally normalised images agree best.

    Returns pairs of a score and a transform, best first.
    """
    zoom = float(at.grid.zooms[0])
    centre = affine[:3, :3] @ ((np.array(data.shape) - 1) / 2) + affine[:3, 3]
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in data.shape]))) @ affine[:3, :3].T + affine[:3, 3]
    kernel = at.normalised * at.weight
    middle = (at.grid.affine @ np.array([*((np.array(at.grid.shape) - 1) / 2), 1.0]))[:3]
    out = []
    for turn in rotations:
        # The image is sampled on a grid whose axes are the template's, turned: x_image = centre + scale * turn @ y.
        local = (corners - centre) @ turn / scale
        half = np.abs(local).max(axis=0)
        count = np.ceil(2 * half / zoom).astype(int) + 1
        grid_affine = np.diag([zoom, zoom, zoom, 1.0])
        grid_affine[:3, 3] = -zoom * (count - 1) / 2
        grid = Grid((int(count[0]), int(count[1]), int(count[2])), grid_affine)
        turned = np.eye(4)
        turned[:3, :3] = scale * turn
        turned[:3, 3] = centre
        sampled = resample(data, affine, grid, turned)
        full = np.ones(grid.shape, np.float32)
        normalised, _ = _local_normalise(sampled, full, _window_weight(full, at.window), at.window)
        size = [fft.next_fast_len(int(n + k), real=True) for n, k in zip(count, kernel.shape, strict=True)]
        spectrum = fft.rfftn(normalised, size) * np.conj(fft.rfftn(kernel, size))
        score = fft.irfftn(spectrum, size).astype(np.float32)
        for _ in range(peaks):
            index = np.array(np.unravel_index(int(score.argmax()), score.shape))
            value = float(score[tuple(index)])
            shift = np.where(index > count, index - np.array(size), index)
            # Template voxel 0 lies on sampled voxel ``shift``: the template's middle in the turned grid's millimetres.
            place = grid_affine[:3, 3] + zoom * (shift + (np.array(at.grid.shape) - 1) / 2)
            transform = np.eye(4)
            transform[:3, :3] = scale * turn
            transform[:3, 3] = centre + scale * turn @ (place - middle)
            out.append((value, transform))
            window = [np.arange(i - 3, i + 4) % s for i, s in zip(index, size, strict=True)]
            score[np.ix_(*window)] = -np.inf
    return sorted(out, key=lambda pair: -pair[0])


@dataclass(frozen=True)
class _Round:
    """One round of the search: rotations, translations kept per rotation, and how many starts are refined."""

    rotations: tuple[Matrix, ...]
    peaks: int
    refined: int


@lru_cache(maxsize=1)
def _rounds() -> tuple[_Round, ...]:
    """What to try, in rounds of growing effort: usual nods, strong tilts, then other patient positions with nods."""
    nods = tuple(rotation(x, 0, 0) for x in (0, -20, 20))
    tilts = tuple(
        rotation(x, y, z) for x in (-30, -10, 10, 30) for y, z in ((0, 0), (0, 20), (0, -20), (20, 0), (-20, 0))
    )
    positions = tuple(p @ rotation(x, 0, 0) for p in patient_positions()[1:] for x in (-12, 12))
    turns = ((0, 0, 0), (22, 0, 0), (-22, 0, 0), (0, 22, 0), (0, -22, 0), (0, 0, 22), (0, 0, -22))
    everything = tuple(p @ rotation(*turn) for p in patient_positions() for turn in turns)
    return _Round(nods, 4, 4), _Round(tilts, 3, 12), _Round(positions, 2, 16), _Round(everything, 2, 48)


def register(
    data: Array,
    affine: Matrix,
    *,
    coarse_mm: float = 8.0,
    fine_mm: float = 4.0,
    maximum_iterations: int = 20,
    scale: float = 0.9,
    followed: int = 1,
) -> Registration:
    """Find the affine transform from MNI152 to a head.

    Parameters
    ----------
    data, affine
        The head, shape (X, Y, Z), with its voxel-to-millimetre affine. With or without skull.
    coarse_mm, fine_mm
        Voxel sizes of the two levels.
    maximum_iterations
        Gauss-Newton steps per level.
    scale
        Head size relative to the template at which the search starts (it may end elsewhere).
    followed
        How many of the coarse level's answers are followed to the fine level; above one the coarse level also refines
        all of a round's starts.

    Returns
    -------
    Registration
        Always something: judge it with :mod:`medalign3d.volumes.quality`.
    """
    fine, fine_affine = reduce_to(data, affine, fine_mm)
    coarse, coarse_affine = reduce_to(fine, fine_affine, coarse_mm)
    at, precise = level(coarse_mm, COARSE_WINDOW), level(fine_mm, FINE_WINDOW)

    def descend(start: Matrix, rigid_first: int) -> _Fit:
        found = _gauss_newton(coarse, coarse_affine, at, start, maximum_iterations, rigid_first=rigid_first)
        return _gauss_newton(fine, fine_affine, precise, found.transform, maximum_iterations)

    best = _Fit(np.eye(4), -1.0)
    tried = 0
    for effort in _rounds():
        # The FFT's score knows nothing of the mask; the masked correlation at each peak ranks starts better.
        starts = [start for _, start in _starts(coarse, coarse_affine, at, effort.rotations, effort.peaks, scale)]
        ranked = sorted(((_compare(coarse, coarse_affine, at, s)[3], k) for k, s in enumerate(starts)), reverse=True)
        fits: list[_Fit] = []
        for _, k in ranked[: effort.refined]:
            tried += 1
            fits.append(_gauss_newton(coarse, coarse_affine, at, starts[k], 8, rigid_first=6))
            if followed == 1 and fits[-1].correlation > FAIR_CORRELATION:
                break
        fits.sort(key=lambda fit: -fit.correlation)
        best = max([best, *(descend(fit.transform, 2) for fit in fits[:followed])], key=lambda fit: fit.correlation)
        if best.correlation > FAIR_CORRELATION:
            break
    # Lesser optima lie some millimetres beside the best one: look again from places that depend little on the start.
    for nod in RESTART_NODS:
        again = descend(_upright(best.transform, nod), 4)
        tried += 1
        if again.correlation > best.correlation:
            best = again
    sharp, sharp_affine = reduce_to(data, affine, fine_mm / 2)
    matched = _match_contrast(sharp, sharp_affine, best.transform, fine_mm / 2)
    best = _polish(matched, sharp_affine, precise, best, 2)
    return Registration(best.transform, best.correlation, tried)


def _upright(transform: Matrix, nod: float) -> Matrix:
    """The nearest rotation with one scale, nodded by ``nod`` degrees: a place to start again from."""
    left, stretches, right = np.linalg.svd(transform[:3, :3])
    turn = (left @ right) @ rotation(nod, 0, 0)
    out = np.eye(4)
    out[:3, :3] = float(np.prod(stretches) ** (1 / 3)) * turn
    centre = np.array([0.0, -17.0, 5.0])
    out[:3, 3] = transform[:3, :3] @ centre + transform[:3, 3] - out[:3, :3] @ centre
    return out


def correlation_at(data: Array, affine: Matrix, transform: Matrix, zoom_mm: float = 4.0) -> float:
    """The local correlation that :func:`register` maximises, at a given transform."""
    small, small_affine = reduce_to(data, affine, zoom_mm)
    return _compare(small, small_affine, level(zoom_mm, FINE_WINDOW), transform)[3]


def displacement_mm(first: Matrix, second: Matrix) -> float:
    """Mean distance in millimetres, over the template brain, between where two transforms put the same points."""
    at = level(8.0, COARSE_WINDOW)
    points = at.homogeneous[:3].T.astype(float) * RADIUS_MM
    difference = (points @ first[:3, :3].T + first[:3, 3]) - (points @ second[:3, :3].T + second[:3, 3])
    return float(np.linalg.norm(difference, axis=1).mean())
