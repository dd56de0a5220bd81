"""From a volume to tokens of the frozen 2D vision transformer: cubes, one linear projection, learnable positions.

Cutting into non-overlapping cubes and projecting each linearly equals a Conv3d whose stride is its kernel; the matrix
product is faster on CPU. An optional second, finer set of cubes over a box joins the same token sequence with its own
projection and positions. Cubes far from any brain can be left out by a fixed index.

What was learnt for one size of volume or cube starts another (:func:`resample_state`): positions are interpolated by
their place in the volume, projections by the pseudo-inverse of the resize that the voxels undergo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medalign3d.errors import CheckpointError, ParameterError, VolumeError
from medalign3d.model.config import FineBoxConfig, ModelConfig

SD_FLOOR = 0.02  # voxels that hardly vary (background) must not be blown up by standardization


class CubeProjection(nn.Module):
    """Average-pool a box of the volume, cut it into cubes and project each linearly.

    Parameters
    ----------
    start, stop
        The box in voxels, start inclusive and stop exclusive.
    pooling
        Side of the average-pooling window, in voxels.
    cube
        Side of a cube, in pooled voxels.
    hidden_size
        Width of the vision transformer.
    position_init_sd
        Spread of the position table at the start.
    kept
        Numbers of the cubes that become tokens, in C order of the grid; None for all.
    """

    voxel_mean: Tensor
    voxel_scale: Tensor
    index: Tensor | None

    def __init__(
        self,
        start: tuple[int, int, int],
        stop: tuple[int, int, int],
        pooling: int,
        cube: int,
        hidden_size: int,
        position_init_sd: float,
        kept: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.start, self.stop, self.pooling, self.cube = start, stop, pooling, cube
        sides = [b - a for a, b in zip(start, stop, strict=True)]
        if any(side <= 0 or side % (pooling * cube) for side in sides):
            raise ParameterError(
                "a volume cannot be cut into whole cubes",
                where="model.sub_volumes",
                found=f"a box of {sides} voxels",
                expected=f"multiples of pooling x cube = {pooling * cube}",
            )
        self.pooled_shape = tuple(side // pooling for side in sides)
        self.grid = tuple(side // cube for side in self.pooled_shape)
        whole = self.grid[0] * self.grid[1] * self.grid[2]
        if kept is not None and not (kept and kept[0] >= 0 and kept[-1] < whole and list(kept) == sorted(set(kept))):
            raise ParameterError(
                "the kept sub-volumes do not fit the volume",
                where="ModelConfig.kept",
                found=f"{len(kept)} numbers" + (f" from {min(kept)} to {max(kept)}" if kept else ""),
                expected=f"rising numbers from 0 to {whole - 1}",
            )
        self.count = whole if kept is None else len(kept)
        index = None if kept is None else torch.tensor(kept, device="cpu")
        self.register_buffer("index", index, persistent=False)
        self.projection = nn.Linear(cube**3, hidden_size)
        self.positions = nn.Parameter(torch.empty(self.count, hidden_size).normal_(0.0, position_init_sd))
        # Voxel statistics of the training participants; the identity until fitted. Kept in the checkpoint.
        self.register_buffer("voxel_mean", torch.zeros(self.pooled_shape))
        self.register_buffer("voxel_scale", torch.ones(self.pooled_shape))

    def pool(self, volumes: Tensor) -> Tensor:
        """Average-pool the box; (B, 1, X, Y, Z) uint8 or float in [0, 1] -> (B, x, y, z), float32 in [0, 1]."""
        (x, y, z), (x_end, y_end, z_end) = self.start, self.stop
        box = volumes[:, 0, x:x_end, y:y_end, z:z_end]
        whole = 1.0 if box.is_floating_point() else 255.0
        box = box.float()
        if self.pooling > 1:
            # Sums along one axis after the other: several times faster than avg_pool3d on a CPU.
            for axis in (1, 2, 3):
                shape = list(box.shape)
                shape[axis : axis + 1] = [-1, self.pooling]
                parts = box.reshape(shape).unbind(axis + 1)
                box = sum(parts[1:], parts[0])
            whole *= self.pooling**3
        return box if whole == 1.0 else box / whole

    def cut(self, pooled: Tensor) -> Tensor:
        """Cut into (kept) cubes; (B, x, y, z) -> (B, count, cube**3), in C order of the grid and within each cube."""
        (i, j, k), c = self.grid, self.cube
        cubes = pooled.reshape(-1, i, c, j, c, k, c).permute(0, 1, 3, 5, 2, 4, 6)
        flat = cubes.reshape(len(pooled), i * j * k, c**3)
        return flat if self.index is None else flat[:, self.index]

    def forward(self, volumes: Tensor) -> Tensor:
        """Tokens with positions; (B, 1, X, Y, Z) -> (B, count, hidden)."""
        pooled = (self.pool(volumes) - self.voxel_mean) * self.voxel_scale
        return self.projection(self.cut(pooled)) + self.positions

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, sd: Tensor) -> None:
        """Standardize pooled voxels with ``mean`` and ``sd`` (pooled shape) of the training participants."""
        self.voxel_mean.copy_(mean)
        self.voxel_scale.copy_(1.0 / sd.clamp_min(SD_FLOOR))


class SubVolumeEmbedding(nn.Module):
    """A class token and the tokens of all sub-volumes, each with its learnable position.

    Parameters
    ----------
    config
        The model's configuration.
    class_token
        (hidden,) class token of the frozen vision transformer; it stays frozen, its position is learnt.
    """

    class_token: Tensor

    def __init__(self, config: ModelConfig, class_token: Tensor) -> None:
        super().__init__()
        hidden_size = class_token.numel()
        self.volume_shape = config.volume_shape
        self.register_buffer("class_token", class_token.detach().reshape(1, 1, hidden_size).clone(), persistent=False)
        self.class_position = nn.Parameter(torch.empty(1, hidden_size).normal_(0.0, config.position_init_sd))
        self.coarse = CubeProjection(
            (0, 0, 0),
            config.volume_shape,
            config.pooling,
            config.cube,
            hidden_size,
            config.position_init_sd,
            config.kept,
        )
        self.fine: CubeProjection | None = None
        if config.fine is not None:
            self.fine = CubeProjection(
                config.fine.start,
                config.fine.stop,
                config.fine.pooling,
                config.fine.cube,
                hidden_size,
                config.position_init_sd,
            )

    @property
    def projections(self) -> list[CubeProjection]:
        """The sets of sub-volumes, coarse first."""
        return [self.coarse] if self.fine is None else [self.coarse, self.fine]

    @property
    def token_count(self) -> int:
        """Tokens per volume, the class token included."""
        return 1 + sum(projection.count for projection in self.projections)

    def check(self, volumes: Tensor) -> None:
        """Raise :class:`VolumeError` unless ``volumes`` is (B, 1, X, Y, Z) on the model's grid."""
        if volumes.ndim != 5 or volumes.shape[1] != 1 or tuple(volumes.shape[2:]) != self.volume_shape:
            raise VolumeError(
                "wrong_grid",
                "volumes are not on the model's grid",
                found=f"a tensor of shape {tuple(volumes.shape)}",
                expected=f"(batch, 1, {', '.join(map(str, self.volume_shape))})",
                remedy="normalize the volumes with the parameters that the model was trained with",
            )

    def forward(self, volumes: Tensor) -> Tensor:
        """Token sequence; (B, 1, X, Y, Z) uint8 or float in [0, 1] -> (B, 1 + sub-volumes, hidden)."""
        self.check(volumes)
        first = (self.class_token + self.class_position).expand(volumes.shape[0], -1, -1)
        return torch.cat([first, *(projection(volumes) for projection in self.projections)], dim=1)

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and spread of every pooled voxel over batches of training volumes (B, 1, X, Y, Z).

        Give it *training* participants only: statistics of others would leak into training.
        """
        counts = 0
        sums: list[Tensor] = []
        for volumes in batches:
            self.check(volumes)
            counts += len(volumes)
            pooled = [projection.pool(volumes).double() for projection in self.projections]
            values = [part for p in pooled for part in (p.sum(0), p.square().sum(0))]
            sums = values if not sums else [a + b for a, b in zip(sums, values, strict=True)]
        if not counts:
            return
        for index, projection in enumerate(self.projections):
            mean = sums[2 * index] / counts
            variance = (sums[2 * index + 1] / counts - mean.square()).clamp_min(0.0)
            projection.set_statistics(mean.float(), variance.sqrt().float())


def _boxes(config: ModelConfig) -> dict[str, tuple[FineBoxConfig, tuple[int, ...] | None]]:
    """Each set of sub-volumes by name: its box and cut, and which cubes are kept."""
    boxes: dict[str, tuple[FineBoxConfig, tuple[int, ...] | None]] = {
        "coarse": (FineBoxConfig((0, 0, 0), config.volume_shape, config.pooling, config.cube), config.kept)
    }
    if config.fine is not None:
        boxes["fine"] = (config.fine, None)
    return boxes


def _sample(values: Tensor, source: tuple[int, int, int], places: list[Tensor]) -> Tensor:
    """Linear interpolation of (C, x, y, z) at fractional indices of each axis, held at the borders -> (C, i, j, k)."""
    for axis, (size, place) in enumerate(zip(source, places, strict=True), start=1):
        place = place.clamp(0, size - 1)
        low = place.floor().long()
        share = (place - low).float().reshape([-1 if dim == axis else 1 for dim in range(4)])
        below = values.index_select(axis, low)
        above = values.index_select(axis, (low + 1).clamp_max(size - 1))
        values = below + (above - below) * share
    return values


def _places(own: FineBoxConfig, shape: tuple[int, ...], other: FineBoxConfig, whole: tuple[int, ...], step: str) -> Any:
    """Where the elements of ``own`` lie among those of ``other``, as fractional indices along each axis."""
    result = []
    for axis in range(3):
        side = own.pooling * (own.cube if step == "cube" else 1)
        count = (own.stop[axis] - own.start[axis]) // side
        centre = (own.start[axis] + (torch.arange(count).double() + 0.5) * side) / shape[axis] * whole[axis]
        other_side = other.pooling * (other.cube if step == "cube" else 1)
        result.append((centre - other.start[axis]) / other_side - 0.5)
    return result


def _resize(old: int, new: int) -> Tensor:
    """(new, old) matrix of a linear resize with antialiasing."""
    eye = torch.eye(old, dtype=torch.float64)[None, None]
    return nn.functional.interpolate(eye, (new, old), mode="bilinear", antialias=True)[0, 0]


def _resample_positions(table: Tensor, own: ModelConfig, other: ModelConfig, name: str) -> Tensor:
    (box, kept), (old_box, old_kept) = _boxes(own)[name], _boxes(other)[name]
    grid = tuple((b - a) // (old_box.pooling * old_box.cube) for a, b in zip(old_box.start, old_box.stop, strict=True))
    known = torch.zeros(grid[0] * grid[1] * grid[2], 1, device=table.device)
    full = torch.zeros(len(known), table.shape[1], device=table.device)
    index = torch.arange(len(known)) if old_kept is None else torch.tensor(old_kept)
    full[index], known[index] = table.float(), 1.0
    places = _places(box, own.volume_shape, old_box, other.volume_shape, "cube")
    stacked = torch.cat([full, known], dim=1).T.reshape(-1, *grid)
    found = _sample(stacked, grid, places).flatten(1).T  # type: ignore[arg-type]
    share = found[:, -1:]
    # Where nothing was learnt nearby, the mean of all is the best guess.
    result = torch.where(share > 1e-6, found[:, :-1] / share.clamp_min(1e-6), table.float().mean(0))
    return result if kept is None else result[torch.tensor(kept)]


def resample_state(state: Mapping[str, Tensor], source: ModelConfig, target: ModelConfig) -> dict[str, Tensor]:
    """Turn a trained state of one size of volume, pooling, cube or box into the start of another.

    Both grids are taken to cover the same part of the head. Positions and voxel statistics are interpolated by their
    place in it. Projections are resized so that a cube and its linear resize give the same token wherever that is
    possible (Beyer et al., FlexiViT, 2023).

    Parameters
    ----------
    state
        From :meth:`medalign3d.model.composite.MedAlign3D.trainable_state_dict`.
    source, target
        What it was trained with, and what it is for.

    Returns
    -------
    dict
        ``state`` with the tensors of the sub-volumes replaced; everything else is the same object.

    Raises
    ------
    CheckpointError
        When one of them has finer sub-volumes and the other has not.
    """
    if (source.fine is None) != (target.fine is None):
        raise CheckpointError(
            "finer sub-volumes cannot be made from nothing",
            where="model.sub_volumes.fine.enabled",
            found="a model with them" if source.fine else "a model without them",
            expected="a model with them" if target.fine else "a model without them",
        )
    result = dict(state)
    for name, (box, _) in _boxes(target).items():
        old_box, _ = _boxes(source)[name]
        key = f"sub_volumes.{name}."
        result[key + "positions"] = _resample_positions(state[key + "positions"], target, source, name)
        weight = state[key + "projection.weight"].double().reshape(-1, *[old_box.cube] * 3)
        matrix = torch.linalg.pinv(_resize(old_box.cube, box.cube)).T
        resized = torch.einsum("habc,ia,jb,kc->hijk", weight, matrix, matrix, matrix)
        result[key + "projection.weight"] = resized.flatten(1).float()
        places = _places(box, target.volume_shape, old_box, source.volume_shape, "voxel")
        for statistic in ("voxel_mean", "voxel_scale"):
            values = state[key + statistic]
            result[key + statistic] = _sample(values[None], values.shape, places)[0]  # type: ignore[arg-type]
    return result
