"""Simulated T1-weighted heads: the MNI152 average, deformed so that chosen regions take a prescribed size.

How a scan is made
    1. Per region (lateral ventricles, each hippocampus with its medial temporal lobe, cortical grey matter) a Poisson
       equation gives a curl-free velocity field whose divergence is the region's log-volume change; what a region
       loses, cerebrospinal fluid or tissue around it gains, so the skull stays where it is.
    2. The fields of all regions and a random smooth field of the person are summed and exponentiated by scaling and
       squaring (Arsigny et al. 2006): the map stays invertible.
    3. Head size and pose are an affine map; the template is read once through the composed map, with linear
       interpolation.
    4. White-matter hypointensities, bias field, contrast, Rician noise and the voxel grid of the scanner follow.

The skull and scalp are a shell built from the distance to the brain: enough to make skull stripping necessary, not a
face that anybody has. True volumes are integrals of the warped region maps.

Not simulated: individual folding (everybody has the averaged sulci, moved about), vessels, meninges, motion,
wrap-around.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.floating[Any]]

# The head box in MNI millimetres; template, velocity and region grids all span it corner to corner.
BOX_MM = np.array([[-98.0, 98.0], [-134.0, 98.0], [-112.0, 116.0]])
VELOCITY_MM = 4.0
SQUARINGS = 5
# Prescribed log-volume -> amplitude of the basis field, measured on three random heads, so that the realised change has
# slope one. The ventricles saturate (what has moved out of the source no longer grows), hence a table.
VENTRICLE_LOG = (-0.347, 0.0, 0.166, 0.326, 0.522, 0.744, 0.943, 1.122)
VENTRICLE_AMPLITUDE = (-0.6, 0.0, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5)
BRAIN_LOG_PER_AMPLITUDE = 0.0765
HIPPOCAMPUS_LOG_PER_AMPLITUDE = 0.56
HIPPOCAMPUS_LOG_PER_CORTEX = -0.26
HIPPOCAMPUS_LOG_PER_VENTRICLES = -0.016
# Beyond these the coarse velocity grid no longer resolves the field and the map would fold.
LIMITS = {"ventricles": (-0.34, 1.12), "hippocampus": (-0.65, 0.35), "brain": (-0.06, 0.02)}
# Axis of the hippocampus on the right (x > 0), MNI mm, and its radii.
HIPPOCAMPUS_AXIS_MM = np.array([[22.0, -8.0, -22.0], [27.0, -20.0, -16.0], [30.0, -31.0, -9.0], [24.0, -39.0, -2.0]])
HIPPOCAMPUS_RADII_MM = np.array([7.5, 6.5, 5.5, 4.5])
REGION_BOX_MM = np.array([[-46.0, 46.0], [-56.0, 42.0], [-36.0, 40.0]])
REGION_NAMES = ("ventricles", "hippocampus_left", "hippocampus_right")
INTENSITY_SCALE = 1000.0


@dataclass(frozen=True)
class Anatomy:
    """What is inside one head at one time.

    Log-volumes are natural logarithms relative to the MNI152 average; ``size`` scales the head along x, y, z.
    ``brain`` is cortical loss, as its effect on the volume of the whole brain; ``lesions`` (0-1) is the load of
    white-matter hypointensities.
    """

    person_seed: int
    ventricles: float = 0.0
    hippocampus_left: float = 0.0
    hippocampus_right: float = 0.0
    brain: float = 0.0
    lesions: float = 0.0
    size: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Scan:
    """How the scanner sees the head: voxel grid, pose and image quality."""

    seed: int
    axis_codes: str = "RAS"
    zooms_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    """Voxel size along the *stored* axes."""
    shape: tuple[int, int, int] | None = None
    """Voxels along the stored axes; None takes what covers the head."""
    centre_mm: tuple[float, float, float] = (0.0, -16.0, 2.0)
    """The head's position (scanner millimetres, RAS) that stands in the middle of the grid."""
    rotation_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    translation_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bias: float = 0.15
    gamma: float = 1.0
    noise: float = 0.02
    gain: float = 1.0


@dataclass(frozen=True)
class Rendered:
    """One simulated scan: int16 voxels, voxel-to-scanner affine (mm, RAS) and the true volumes in mL."""

    data: NDArray[np.int16]
    affine: NDArray[np.float64]
    truth: dict[str, float] = field(default_factory=dict)


def keep_memory() -> None:
    """Stop glibc from giving large temporaries back to the kernel: page faults would dominate the running time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):  # not glibc: slower, not wrong
        return


# ------------------------------------------------------------------------------------------------------------ template
def _grid_shape(step_mm: float) -> tuple[int, int, int]:
    size = BOX_MM[:, 1] - BOX_MM[:, 0]
    count = np.round(size / step_mm).astype(int) + 1
    return int(count[0]), int(count[1]), int(count[2])


def _axes(shape: tuple[int, ...], box: FloatArray = BOX_MM) -> list[FloatArray]:
    return [
        np.linspace(low, high, n, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, ((low, high), n) in enumerate(zip(box, shape, strict=True))
    ]


def _resize(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Trilinear resize, corner to corner."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
    resized = torch.nn.functional.interpolate(tensor, size=shape, mode="trilinear", align_corners=True)
    return np.asarray(resized[0, 0].numpy(), dtype=np.float32)


def _window(box: FloatArray) -> tuple[slice, slice, slice]:
    """The part of the 1 mm grid that a box in MNI millimetres covers."""
    x, y, z = (
        slice(int(low - start), int(high - start) + 1) for (low, high), start in zip(box, BOX_MM[:, 0], strict=True)
    )
    return x, y, z


def _capsules(shape: tuple[int, ...], side: int) -> NDArray[np.bool_]:
    """Tapered capsules along the hippocampal axis in the region box; ``side`` -1 left, +1 right."""
    x, y, z = _axes(shape, REGION_BOX_MM)
    inside = np.zeros(shape, bool)
    axis = HIPPOCAMPUS_AXIS_MM * [side, 1, 1]
    for i in range(len(axis) - 1):
        start, step = axis[i], axis[i + 1] - axis[i]
        along = ((x - start[0]) * step[0] + (y - start[1]) * step[1] + (z - start[2]) * step[2]) / float(step @ step)
        along = np.clip(along, 0.0, 1.0)
        distance2 = (
            (x - start[0] - along * step[0]) ** 2
            + (y - start[1] - along * step[1]) ** 2
            + (z - start[2] - along * step[2]) ** 2
        )
        radius = HIPPOCAMPUS_RADII_MM[i] + along * (HIPPOCAMPUS_RADII_MM[i + 1] - HIPPOCAMPUS_RADII_MM[i])
        inside |= distance2 < radius**2
    return inside


def _solve_poisson(source: FloatArray, step_mm: FloatArray) -> FloatArray:
    """The gradient (3, X, Y, Z), mm per unit, of the potential with Laplacian ``source`` and Neumann borders."""
    from scipy.fft import dctn, idctn

    spectrum = dctn(source - source.mean(), type=2)
    eigenvalues = np.zeros(source.shape)
    for axis, (n, step) in enumerate(zip(source.shape, step_mm, strict=True)):
        line = (2.0 * np.cos(np.pi * np.arange(n) / n) - 2.0) / step**2
        eigenvalues = eigenvalues + line.reshape([-1 if i == axis else 1 for i in range(3)])
    eigenvalues[0, 0, 0] = 1.0
    spectrum /= eigenvalues
    spectrum[0, 0, 0] = 0.0
    potential = idctn(spectrum, type=2)
    return np.stack(np.gradient(potential, *step_mm)).astype(np.float32)


def _ventricles(csf: FloatArray) -> NDArray[np.bool_]:
    """The lateral ventricles: fluid connected to their bodies, cut off below where cisterns begin."""
    from scipy import ndimage

    x, y, z = _axes(csf.shape, REGION_BOX_MM)
    candidate = (csf > 0.35) & (np.abs(x) < 38) & (y > -52) & (y < 32) & (z > -2) & (z < 34)
    # Third ventricle and the midline fissures are no part of it; above the bodies lies the corpus callosum.
    candidate &= (np.abs(x) > 2.0) & ~((np.abs(x) < 7) & (z < 4)) & ~((y < -32) & (np.abs(x) < 9))
    candidate &= ~((np.abs(x) > 27) & (y > -20)) & ~((np.abs(x) > 22) & (y > -8))
    labels, _ = ndimage.label(candidate)
    seeds = (np.abs(x) > 8) & (np.abs(x) < 13) & (y > -6) & (y < 11) & (z > 13) & (z < 23)
    wanted = np.unique(labels[np.broadcast_to(seeds, labels.shape) & (labels > 0)])
    return np.asarray(np.isin(labels, wanted[wanted > 0]))


def build_template(zooms_mm: float) -> dict[str, NDArray[np.float32]]:
    """Make all arrays that do not depend on a person (a few seconds).

    Parameters
    ----------
    zooms_mm
        Voxel size of the scans to come; the template is smoothed accordingly, so that linear reading does not alias.

    Returns
    -------
    dict
        ``head`` (X, Y, Z) intensities at 1 mm, ``regions`` (4, X, Y, Z) ventricles, hippocampi and white matter around
        the ventricles at 1 mm, ``masks`` (2, x, y, z) brain and intracranial space at 3 mm, ``basis`` (4, 3, x, y, z)
        velocity fields in mm.
    """
    from nilearn.datasets import (
        load_mni152_brain_mask,
        load_mni152_gm_template,
        load_mni152_template,
        load_mni152_wm_template,
    )
    from scipy import ndimage

    shape = _grid_shape(1.0)
    below = shape[2] - 189  # the packaged template ends at z = -72; the box goes down to the neck

    def load(loader: Any) -> NDArray[np.float32]:
        image = np.asarray(loader(resolution=1).dataobj, dtype=np.float32)
        return np.pad(image, ((0, 0), (0, 0), (below, 0)))

    t1, grey, white = load(load_mni152_template), load(load_mni152_gm_template), load(load_mni152_wm_template)
    mask = load(load_mni152_brain_mask) > 0.5
    csf = np.clip(mask - grey - white, 0.0, 1.0)
    window = _window(REGION_BOX_MM)
    local = np.zeros((3, *shape), np.float32)
    local[0][window] = _ventricles(csf[window])
    for i, side in ((1, -1), (2, 1)):
        local[i][window] = _capsules(csf[window].shape, side) & (grey[window] > 0.45)
    ventricles, sides = local[0] > 0, {"hippocampus_left": local[1], "hippocampus_right": local[2]}
    for i in range(3):
        local[i][window] = ndimage.gaussian_filter(local[i][window], 0.5)

    # Intensities: the averaged T1 with fluid darkened towards what a scan shows.
    brain = t1 * (1.0 - 0.62 * np.clip(1.25 * csf, 0, 1)) * mask
    brain *= 1.0 - 0.45 * local[0]

    # Skull and scalp by distance from the (closed) brain on a 2 mm grid.
    coarse = mask[::2, ::2, ::2]
    x, y, z = _axes(coarse.shape)
    neck = ((x / 52) ** 2 + ((y + 36) / 56) ** 2 < 1) & (z < -52)
    face = (x / 60) ** 2 + ((y - 36) / 56) ** 2 + ((z + 62) / 58) ** 2 < 1
    closed = ndimage.distance_transform_edt(~coarse) < 9
    closed = ndimage.distance_transform_edt(closed) > 9
    outside = ndimage.distance_transform_edt(~closed).astype(np.float32) * 2.0
    head = closed | (outside < 15)
    head |= neck | face
    head = ndimage.gaussian_filter(head.astype(np.float32), 2.0) > 0.5
    depth = ndimage.distance_transform_edt(head).astype(np.float32) * 2.0
    shell = np.where(outside <= 2.2, 0.16, 0.07)  # fluid, then compact bone
    shell = np.where((outside > 4.0) & (outside < 6.5), 0.24, shell)  # marrow
    shell = np.where(outside > 9.0, 0.42, shell)  # muscle
    shell = np.where((depth > 2.0) & (depth < 6.5) & (outside > 8.0), 0.95, shell)  # fat below the skin
    shell = np.where((depth <= 2.0) & (outside > 7.0), 0.55, shell) * head
    sinus = ((x / 22) ** 2 + ((y - 52) / 22) ** 2 + ((z + 52) / 20) ** 2 < 1) & (outside > 8)
    airway = ((x / 10) ** 2 + ((y - 8) / 9) ** 2 < 1) & (z < -56)
    shell = np.where(sinus | airway, 0.03, shell)
    shell = ndimage.gaussian_filter(shell.astype(np.float32), 0.45)
    shell = _resize(shell, shape)
    soft = _resize(np.clip(1.4 * ndimage.gaussian_filter(coarse.astype(np.float32), 0.5), 0, 1), shape)
    whole = brain * soft + shell * (1.0 - soft)
    sigma = max(0.0, 0.36 * (zooms_mm - 1.0))
    if sigma:
        whole = ndimage.gaussian_filter(whole.astype(np.float32), sigma)

    # White matter within about 10 mm of the ventricles may turn hypointense.
    near = np.exp(-((ndimage.distance_transform_edt(~ventricles[window])) ** 2) / (2 * 7.0**2))
    periventricular = np.zeros(shape, np.float32)
    periventricular[window] = near * np.clip((white[window] - 0.6) / 0.3, 0, 1)
    regions = np.concatenate([local, periventricular[None]])

    # Velocity fields on the coarse grid.
    coarse_shape = _grid_shape(VELOCITY_MM)
    step = (BOX_MM[:, 1] - BOX_MM[:, 0]) / (np.array(coarse_shape) - 1)

    def coarsen(array: NDArray[Any]) -> NDArray[np.float32]:
        # Averaging in pairs before the trilinear step keeps thin structures' volume.
        full = array.astype(np.float32)
        size = [n // 2 * 2 for n in full.shape]
        full = full[: size[0], : size[1], : size[2]]
        pooled = full.reshape(size[0] // 2, 2, size[1] // 2, 2, size[2] // 2, 2).mean((1, 3, 5))
        return _resize(ndimage.gaussian_filter(pooled, 0.7), coarse_shape)

    brain_c, grey_c, csf_c = coarsen(mask), coarsen(grey), coarsen(csf)
    vent_c = coarsen(ventricles)
    x, y, z = _axes(coarse_shape)
    cortex_c = grey_c * (1 - np.exp(-(((x / 34) ** 2 + ((y + 12) / 46) ** 2 + ((z + 2) / 26) ** 2) ** 2))) * (z > -44)
    sulci_c = csf_c * (1 - np.clip(3 * vent_c, 0, 1)) * (z > -40)

    def balanced(gain: FloatArray, loss: FloatArray) -> FloatArray:
        return gain - loss * (gain.sum() / loss.sum())

    basis = []
    hippocampi_c = np.zeros(coarse_shape, np.float32)
    tissue = np.clip(brain_c - 4.0 * ndimage.gaussian_filter(vent_c, 1.0), 0, 1) * np.exp(
        -((x / 55) ** 2 + ((y + 8) / 65) ** 2 + ((z - 15) / 42) ** 2)
    )
    # A source somewhat wider than the ventricles: fluid that has moved outwards goes on growing.
    wide_vent = np.clip(1.7 * ndimage.gaussian_filter(vent_c, 0.9), 0, 1)
    basis.append(balanced(wide_vent, 0.75 * tissue + 0.25 * sulci_c))
    for side in (-1, 1):
        name = "hippocampus_left" if side < 0 else "hippocampus_right"
        hippo = coarsen(sides[name])
        hippocampi_c += hippo
        around = np.exp(-(((x - side * 29) / 15) ** 2 + ((y + 20) / 24) ** 2 + ((z + 16) / 14) ** 2)) * (side * x > 4)
        lobe = 0.25 * around * grey_c
        basis.append(balanced(np.maximum(hippo, lobe), around * (csf_c + 0.15) * np.clip(1 - 3 * hippo, 0, 1)))
    cortex_c = cortex_c * np.clip(1 - 4 * ndimage.gaussian_filter(hippocampi_c, 0.7), 0, 1)
    basis.append(balanced(cortex_c, sulci_c + 0.02 * brain_c))
    fields = np.stack([_solve_poisson(source.astype(np.float64), step) for source in basis])
    inner = _resize(closed, coarse_shape)
    return {
        "head": whole.astype(np.float32),
        "regions": regions.astype(np.float32),
        "masks": np.stack([np.clip(brain_c - csf_c, 0, 1), inner]).astype(np.float32),
        "basis": fields,
    }


def save_template(zooms_mm: float, folder: Path) -> None:
    """Build the template and write one ``.npy`` per array, for :class:`Renderer` in other processes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in build_template(zooms_mm).items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


# ------------------------------------------------------------------------------------------------------------ renderer
@lru_cache(maxsize=64)
def _bumps(count: int, knots: int) -> NDArray[np.float32]:
    """Matrix (count, knots) that spreads knot values smoothly (normalized Gaussians) over ``count`` points."""
    position = np.linspace(0, knots - 1, count)[:, None]
    weights = np.exp(-((position - np.arange(knots)[None, :]) ** 2) / (2 * 0.6**2))
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


def _spread(values: FloatArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Smoothly interpolate knot values (..., a, b, c) to (..., X, Y, Z), one axis after the other."""
    result = values.astype(np.float32)
    for axis, count in zip((-3, -2, -1), shape, strict=True):
        matrix = _bumps(count, values.shape[axis])
        result = np.moveaxis(np.tensordot(result, matrix, axes=([axis], [1])), -1, axis)
    return result


class Renderer:
    """Renders scans; holds the template's arrays, so make one per process.

    Parameters
    ----------
    arrays
        The arrays of :func:`build_template`, or a folder written by :func:`save_template`.
    """

    def __init__(self, arrays: dict[str, NDArray[np.float32]] | Path) -> None:
        import torch

        if isinstance(arrays, Path):
            arrays = {name: np.load(arrays / f"{name}.npy") for name in ("head", "regions", "masks", "basis")}
        torch.set_num_threads(1)
        self._torch = torch
        self._head = torch.from_numpy(arrays["head"])[None, None]
        self._regions = torch.from_numpy(arrays["regions"])[None]
        self._masks = torch.from_numpy(arrays["masks"])[None]
        # Displacements in the normalized coordinates of grid_sample (-1..1, order z, y, x).
        self._half = torch.tensor((BOX_MM[:, 1] - BOX_MM[:, 0]) / 2.0, dtype=torch.float32)
        self._middle = torch.tensor(BOX_MM.mean(1), dtype=torch.float32)
        basis = torch.from_numpy(arrays["basis"]) / self._half.view(1, 3, 1, 1, 1)
        self._basis = basis.flip(1).contiguous()
        self._coarse_shape = tuple(int(n) for n in self._basis.shape[2:])
        self._identity = self._make_grid(BOX_MM, self._coarse_shape)
        self._region_shape = tuple(round(high - low) // 2 + 1 for low, high in REGION_BOX_MM)
        self._region_grid = self._make_grid(REGION_BOX_MM, self._region_shape)
        self._region_ml = (
            float(np.prod((REGION_BOX_MM[:, 1] - REGION_BOX_MM[:, 0]) / np.array(self._region_shape))) / 1e3
        )
        self._coarse_ml = float(np.prod((BOX_MM[:, 1] - BOX_MM[:, 0]) / np.array(self._coarse_shape))) / 1e3

    def _make_grid(self, box: FloatArray, shape: tuple[int, ...]) -> torch.Tensor:
        torch = self._torch
        lines = [
            (torch.linspace(float(low), float(high), n) - middle) / half
            for (low, high), n, middle, half in zip(box, shape, self._middle, self._half, strict=True)
        ]
        x, y, z = torch.meshgrid(*lines, indexing="ij")
        return torch.stack([z, y, x], dim=-1)[None].contiguous()

    def _sample(self, volume: torch.Tensor, grid: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
        return self._torch.nn.functional.grid_sample(
            volume, grid, mode="bilinear", padding_mode=padding, align_corners=True
        )

    def displacement(self, anatomy: Anatomy) -> torch.Tensor:
        """The map from the person's head to the template minus identity, (1, 3, x, y, z), normalized, order z, y, x."""
        torch = self._torch
        rng = np.random.default_rng([anatomy.person_seed, 1])
        ventricles = float(
            np.interp(np.clip(anatomy.ventricles, *LIMITS["ventricles"]), VENTRICLE_LOG, VENTRICLE_AMPLITUDE)
        )
        cortex = float(np.clip(anatomy.brain, *LIMITS["brain"])) / BRAIN_LOG_PER_AMPLITUDE
        spill = HIPPOCAMPUS_LOG_PER_CORTEX * cortex + HIPPOCAMPUS_LOG_PER_VENTRICLES * ventricles
        hippocampi = [
            (float(np.clip(wanted, *LIMITS["hippocampus"])) - spill) / HIPPOCAMPUS_LOG_PER_AMPLITUDE
            for wanted in (anatomy.hippocampus_left, anatomy.hippocampus_right)
        ]
        amplitudes = torch.tensor([ventricles, *hippocampi, cortex], dtype=torch.float32)
        # The scan is read through the map scan -> template, the inverse of growth: hence the minus.
        velocity = -torch.tensordot(amplitudes, self._basis, dims=1)
        wide = rng.standard_normal((3, 9, 11, 11)) * 3.0  # spreading averages neighbours: about 2 mm remain
        narrow = rng.standard_normal((3, 17, 20, 19)) * 1.3
        wandering = torch.from_numpy(_spread(wide, self._coarse_shape) + _spread(narrow, self._coarse_shape))
        velocity = velocity + (wandering / self._half.view(3, 1, 1, 1)).flip(0)
        flow = (velocity / 2.0**SQUARINGS)[None]
        for _ in range(SQUARINGS):
            flow = flow + self._sample(flow, self._identity + flow.permute(0, 2, 3, 4, 1), "border")
        return flow

    def true_volumes(
        self, anatomy: Anatomy, flow: torch.Tensor, lesions: torch.Tensor | None = None
    ) -> dict[str, float]:
        """Integrals of the warped region maps, mL of the person's head."""
        scale = float(np.prod(anatomy.size))
        grid = self._region_grid + self._sample(flow, self._region_grid, "border").permute(0, 2, 3, 4, 1)
        maps = self._sample(self._regions, grid)[0]
        truth = {f"{name}_ml": float(maps[i].sum()) * self._region_ml * scale for i, name in enumerate(REGION_NAMES)}
        load = 0.0
        if lesions is not None:
            load = float((maps[3] * self._sample(lesions, grid)[0, 0]).clamp(0, 1).sum()) * self._region_ml * scale
        truth["white_matter_hypointensities_ml"] = load
        masks = self._sample(self._masks, self._identity + flow.permute(0, 2, 3, 4, 1))[0]
        truth["brain_ml"] = float(masks[0].sum()) * self._coarse_ml * scale
        truth["icv_ml"] = float(masks[1].sum()) * self._coarse_ml * scale
        return truth

    def _lesions(self, anatomy: Anatomy) -> torch.Tensor | None:
        """A blobby map of hypointensity in template space, to be multiplied by the periventricular region."""
        if anatomy.lesions <= 0.0:
            return None
        rng = np.random.default_rng([anatomy.person_seed, 2])
        blobs = _spread(rng.standard_normal((1, 25, 29, 29)), self._coarse_shape)
        blobs = blobs / blobs.std()
        # The same person's lesions grow from the same places: only the threshold follows the load.
        return self._torch.from_numpy(np.clip((blobs - 1.9 + 1.9 * anatomy.lesions) / 0.5, 0.0, 1.0))[None]

    def render(self, anatomy: Anatomy, scan: Scan) -> Rendered:
        """Simulate one scan.

        Returns
        -------
        Rendered
            int16 voxels in the stored axis order, affine to scanner millimetres (RAS), true volumes (mL).
        """
        rng = np.random.default_rng([scan.seed, 3])
        flow = self.displacement(anatomy)
        lesions = self._lesions(anatomy)
        truth = self.true_volumes(anatomy, flow, lesions)

        shape, affine = _scanner_grid(scan)
        to_template = _head_matrix(anatomy, scan) @ affine
        # index -> template mm -> normalized; the grid is separable, so three broadcast sums make it
        base = np.array([to_template[i, 3] for i in range(3)])

        def grid_of(size: tuple[int, ...]) -> torch.Tensor:
            torch = self._torch
            lines = [np.linspace(0, n - 1, m, dtype=np.float32) for n, m in zip(shape, size, strict=True)]
            channels = []
            for i in (2, 1, 0):
                middle, half = float(self._middle[i]), float(self._half[i])
                a, b, c = (torch.from_numpy((to_template[i, k] / half * lines[k]).astype(np.float32)) for k in range(3))
                constant = float((base[i] - middle) / half)
                channels.append((a + constant)[:, None, None] + b[None, :, None] + c[None, None, :])
            return torch.stack(channels)[None]

        def enlarge(tensor: torch.Tensor) -> torch.Tensor:
            return self._torch.nn.functional.interpolate(tensor, size=shape, mode="trilinear", align_corners=True)

        # The displacement is smooth: read it on a grid of the velocity's coarseness, then enlarge (five times faster).
        extent = [n * zoom for n, zoom in zip(shape, scan.zooms_mm, strict=True)]
        wide = grid_of(tuple(int(np.ceil(length / VELOCITY_MM)) + 1 for length in extent))
        moved = self._sample(flow, wide.permute(0, 2, 3, 4, 1), "border")
        grid = (grid_of(shape) + enlarge(moved)).permute(0, 2, 3, 4, 1)
        image = self._sample(self._head, grid)[0, 0]
        if lesions is not None:
            fine = grid_of(tuple(int(np.ceil(length / 3.0)) + 1 for length in extent))
            fine = (
                fine
                + self._torch.nn.functional.interpolate(
                    moved, size=fine.shape[2:], mode="trilinear", align_corners=True
                )
            ).permute(0, 2, 3, 4, 1)
            dark = (self._sample(self._regions[:, 3:], fine) * self._sample(lesions, fine)).clamp(0, 1)
            image *= 1.0 - 0.42 * enlarge(dark)[0, 0]
        values = image.numpy()
        if scan.gamma != 1.0:
            np.power(values, scan.gamma, out=values)
        if scan.bias > 0:
            knots = rng.standard_normal((4, 4, 4)) * scan.bias * 1.4
            values *= np.exp(_spread(knots, shape))
        if scan.noise > 0:
            values += scan.noise * rng.standard_normal(shape, dtype=np.float32)
            second = scan.noise * rng.standard_normal(shape, dtype=np.float32)
            np.hypot(values, second, out=values)
        values *= INTENSITY_SCALE * scan.gain
        np.clip(values, 0, 32000, out=values)
        return Rendered(np.rint(values).astype(np.int16), affine, truth)


def _rotation(degrees: tuple[float, float, float]) -> FloatArray:
    a, b, c = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _head_matrix(anatomy: Anatomy, scan: Scan) -> FloatArray:
    """Scanner millimetres -> template millimetres: undo the pose, then the head's size."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(1.0 / np.array(anatomy.size)) @ _rotation(scan.rotation_degrees).T
    matrix[:3, 3] = -matrix[:3, :3] @ np.array(scan.translation_mm)
    return matrix


def _scanner_grid(scan: Scan) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of the stored voxel grid."""
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    cover_mm = (176.0, 220.0, 192.0)
    affine: NDArray[np.float64] = np.eye(4)
    affine[:3, :3] = 0.0
    shape = []
    for k, letter in enumerate(scan.axis_codes):
        world, sign = letters[letter]
        affine[world, k] = sign * scan.zooms_mm[k]
        shape.append(int(np.ceil(cover_mm[world] / scan.zooms_mm[k] / 2) * 2) if scan.shape is None else scan.shape[k])
    middle = (np.array(shape) - 1) / 2.0
    affine[:3, 3] = np.array(scan.centre_mm) - affine[:3, :3] @ middle
    return (shape[0], shape[1], shape[2]), affine


_PROCESS: dict[str, Renderer] = {}


def renderer_of(folder: Path) -> Renderer:
    """The renderer of this process, made on first use from the arrays in ``folder``."""
    key = os.fspath(folder)
    if key not in _PROCESS:
        keep_memory()
        _PROCESS.clear()  # one template at a time: they are large
        _PROCESS[key] = Renderer(folder)
    return _PROCESS[key]
