"""Random changes of training volumes: drawn on the CPU as a few numbers per sample, applied where the model is.

Volumes travel to the device as bytes, a quarter of what float32 takes. The numbers of a sample depend on its seed alone
(run, step, place in the global batch), so a killed run goes on with the same changes, and so does a batch that several
processes share. Voxel noise is drawn on the device from the sample's own seed: the same on every run of one kind of
device, not the same on a CPU and a GPU; everything else is equal to rounding.

Not supported: flips (sides are asked for) and elastic deformation (atrophy *is* a deformation).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from medalign3d.params import Optimization

BIAS_NODES = 4
"""Nodes along each axis of the grid between which a drift of intensity is interpolated."""


@dataclasses.dataclass(frozen=True)
class VolumeChanges:
    """What happens to each volume of a batch; None leaves a step out.

    Parameters
    ----------
    affine
        (B, 3, 4): where in the volume a voxel's value is taken from, in voxels from the centre, axes x, y, z.
    bias
        (B, 4, 4, 4): natural logarithm of a smooth factor at nodes over the volume.
    gamma
        (B,): exponents.
    gain, shift
        (B,): factor and addend, of values in [0, 1].
    noise, noise_seeds
        (B,): standard deviation of voxel noise in [0, 1], and (B,) int64 seeds.
    """

    affine: Tensor | None = None
    bias: Tensor | None = None
    gamma: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None
    noise: Tensor | None = None
    noise_seeds: Tensor | None = None

    def of(self, rows: Sequence[int]) -> VolumeChanges:
        """The changes of some samples, e.g. of the share of one process."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return VolumeChanges(**{k: None if v is None else v[list(rows)] for k, v in values.items()})


def draw_changes(
    optimization: Optimization, seeds: Sequence[Sequence[int]], shape: Sequence[int], zooms_mm: float
) -> VolumeChanges:
    """Draw the changes of a batch; steps whose parameter is 0 are left out.

    Parameters
    ----------
    optimization
        ``intensity_augmentation`` and ``augmentation`` are read.
    seeds
        One seed (whole numbers) per sample.
    shape, zooms_mm
        The grid: voxels along each axis and their size in millimetres.
    """
    settings = optimization.augmentation
    # Every sample draws everything, so that one parameter does not change what the others do.
    draws = np.stack([np.random.default_rng(list(seed)).uniform(-1, 1, 13 + BIAS_NODES**3) for seed in seeds])
    noise_seeds = [int(np.random.default_rng([*seed, 1]).integers(2**62)) for seed in seeds] if settings.noise else []

    def numbers(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    spread = optimization.intensity_augmentation
    affine = None
    if settings.rotation_degrees or settings.translation_mm or settings.scaling:
        turns = _rotations(draws[:, :3] * math.radians(settings.rotation_degrees))
        sizes = np.exp(draws[:, 3:6] * math.log1p(settings.scaling))
        moves = draws[:, 6:9] * settings.translation_mm / zooms_mm
        affine = numbers(np.concatenate([turns * sizes[:, None, :], moves[:, :, None]], axis=2))
    bias = draws[:, 13:].reshape(-1, BIAS_NODES, BIAS_NODES, BIAS_NODES) * math.log1p(settings.bias_field)
    return VolumeChanges(
        affine=affine,
        bias=numbers(bias) if settings.bias_field else None,
        gamma=numbers(np.exp(draws[:, 9] * math.log1p(settings.gamma))) if settings.gamma else None,
        gain=numbers(1 + spread * draws[:, 10]) if spread else None,
        shift=numbers(0.5 * spread * draws[:, 11]) if spread else None,
        noise=numbers(settings.noise * np.abs(draws[:, 12])) if settings.noise else None,
        noise_seeds=torch.tensor(noise_seeds) if settings.noise else None,
    )


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Rotations about x, then y, then z; angles (B, 3) in radians -> (B, 3, 3)."""
    result = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.broadcast_to(np.eye(3), (len(angles), 3, 3)).copy()
        turn[:, first, first] = turn[:, second, second] = np.cos(angles[:, axis])
        turn[:, second, first] = np.sin(angles[:, axis])
        turn[:, first, second] = -turn[:, second, first]
        result = turn @ result
    return result


@torch.no_grad()
def apply_changes(volumes: Tensor, changes: VolumeChanges) -> Tensor:
    """Change volumes on their device.

    Samples are taken one by one: on a CPU each then stays in the cache, on a GPU a whole batch of 224^3 sampling grids
    would take more memory than the model.

    Parameters
    ----------
    volumes
        (B, 1, X, Y, Z) uint8.
    changes
        Of the same B samples.

    Returns
    -------
    Tensor
        (B, 1, X, Y, Z) float32 in [0, 1]; voxels that were 0 (background) are 0.
    """
    result = torch.empty(volumes.shape, dtype=torch.float32, device=volumes.device)
    grids = None if changes.affine is None else _normalized(changes.affine, volumes.shape[2:])
    for number, (source, target) in enumerate(zip(volumes, result, strict=True)):
        target.copy_(source).div_(255.0)
        if grids is not None:
            grid = nn.functional.affine_grid(
                grids[number : number + 1].to(volumes.device), [1, *source.shape], align_corners=False
            )
            target.copy_(nn.functional.grid_sample(target[None], grid, align_corners=False)[0])
        # Factors of 0 and 1, which are quicker than a mask; interpolation leaves specks outside.
        inside = source.clamp(max=1) if grids is None else target.mul(255.0).round_().clamp_(max=1.0)
        if changes.bias is not None:
            nodes = changes.bias[number].to(volumes.device)[None, None]
            target.mul_(
                nn.functional.interpolate(nodes, source.shape[1:], mode="trilinear", align_corners=True)[0].exp_()
            )
        if changes.gamma is not None:
            target.pow_(float(changes.gamma[number]))
        if changes.gain is not None and changes.shift is not None:
            target.mul_(float(changes.gain[number])).add_(float(changes.shift[number]))
        if changes.noise is not None and changes.noise_seeds is not None:
            generator = torch.Generator(volumes.device).manual_seed(int(changes.noise_seeds[number]))
            noise = torch.randn(target.shape, generator=generator, device=volumes.device)
            target.add_(noise, alpha=float(changes.noise[number]))
        target.clamp_(0.0, 1.0).mul_(inside)
    return result


def _normalized(affine: Tensor, shape: Sequence[int]) -> Tensor:
    """Maps between voxels, axes x, y, z -> torch's maps between [-1, 1], axes z, y, x; (B, 3, 4)."""
    sizes = torch.tensor([float(size) for size in shape])
    scaled = torch.cat([affine[:, :, :3] * sizes[None, None, :], 2.0 * affine[:, :, 3:]], dim=2) / sizes[None, :, None]
    return torch.cat([scaled[:, :, :3].flip(1, 2), scaled[:, :, 3:].flip(1)], dim=2)
