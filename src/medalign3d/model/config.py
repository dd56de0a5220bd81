"""What a composite model is made of: one frozen dataclass that is saved beside the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from medalign3d.errors import CheckpointError, ParameterError

if TYPE_CHECKING:
    # Reading params.yaml needs packages that the model itself does without.
    from medalign3d.params import Params


@dataclasses.dataclass(frozen=True)
class FineBoxConfig:
    """A second, finer set of sub-volumes over a box of the normalized grid.

    ``start`` (inclusive) and ``stop`` (exclusive) are voxel indices; each side is a multiple of ``pooling * cube``.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    pooling: int
    cube: int


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the query and value matrices of every attention block of the language model."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the architecture of :class:`medalign3d.model.composite.MedAlign3D`.

    ``volume_shape`` is in voxels of the normalized grid. ``kept`` numbers the coarse sub-volumes that become tokens, in
    C order (None: all). ``auxiliary_targets`` names the values that the optional auxiliary head predicts (empty: no
    such head). ``dtype`` is the precision of the frozen weights.
    """

    volume_shape: tuple[int, int, int]
    pooling: int
    cube: int
    vision_checkpoint: str
    language_name: str
    language_checkpoint: str
    fine: FineBoxConfig | None = None
    kept: tuple[int, ...] | None = None
    position_init_sd: float = 0.02
    vision_revision: str | None = None
    feature_layers: tuple[int, ...] = (-1,)
    queries: int = 32
    contrastive_size: int = 256
    text_branch: str = "shared"
    maximum_text_tokens: int = 100
    language_revision: str | None = None
    maximum_prompt_tokens: int = 256
    maximum_new_tokens: int = 16
    lora: LoraConfig = LoraConfig()
    auxiliary_targets: tuple[str, ...] = ()
    dtype: str = "float32"
    activation_checkpointing: bool = False

    @classmethod
    def from_params(
        cls,
        params: Params,
        lm_name: str,
        *,
        affine: ArrayLike | None = None,
        distance: ArrayLike | None = None,
        auxiliary_targets: Sequence[str] = (),
        dtype: str | None = None,
    ) -> ModelConfig:
        """Read the model's shape from the parameters.

        Parameters
        ----------
        params
            The validated parameters.
        lm_name
            A key of ``model.language.models``.
        affine
            4x4 voxel-to-MNI affine (mm) of the normalized grid; needed only with ``model.sub_volumes.fine.enabled``.
        distance
            Signed distance (mm) to the template brain's surface on the normalized grid; needed only with
            ``model.sub_volumes.brain_margin_mm``.
        auxiliary_targets
            Names of the values that the auxiliary head predicts.
        dtype
            Precision of the frozen weights, ``float32`` or ``bfloat16``; by default ``pretrain.precision``.

        Raises
        ------
        ParameterError
            When the language model is unknown, or the fine sub-volumes cannot be placed.
        """
        model = params.model
        if lm_name not in model.language.models:
            raise ParameterError(
                "unknown language model",
                where="model.language.models",
                found=lm_name,
                expected=f"one of {', '.join(sorted(model.language.models))}",
                remedy="add it to model.language.models",
            )
        language = model.language.models[lm_name]
        shape = _triple(params.normalize.shape)
        fine = None
        if model.sub_volumes.fine.enabled:
            if affine is None:
                raise ParameterError(
                    "finer sub-volumes need the affine of the normalized grid",
                    where="model.sub_volumes.fine.enabled",
                    expected="ModelConfig.from_params(params, name, affine=...)",
                )
            settings = model.sub_volumes.fine
            fine = locate_box(settings.box_mm, affine, shape, settings.pooling, settings.cube)
        kept = None
        margin = model.sub_volumes.brain_margin_mm
        if margin is not None:
            if distance is None:
                raise ParameterError(
                    "keeping the sub-volumes near the brain needs the distance to the template's brain",
                    where="model.sub_volumes.brain_margin_mm",
                    expected="ModelConfig.from_params(params, name, distance=...)",
                )
            kept = brain_sub_volumes(distance, shape, model.sub_volumes.pooling * model.sub_volumes.cube, margin)
        return cls(
            volume_shape=shape,
            pooling=model.sub_volumes.pooling,
            cube=model.sub_volumes.cube,
            fine=fine,
            kept=kept,
            position_init_sd=model.position_init_sd,
            vision_checkpoint=model.vision.checkpoint,
            vision_revision=model.vision.revision,
            feature_layers=tuple(model.vision.feature_layers),
            queries=model.alignq.queries,
            contrastive_size=model.alignq.contrastive_size,
            text_branch=model.alignq.text_branch,
            maximum_text_tokens=model.alignq.maximum_text_tokens,
            language_name=lm_name,
            language_checkpoint=language.checkpoint,
            language_revision=language.revision,
            maximum_prompt_tokens=model.language.maximum_prompt_tokens,
            maximum_new_tokens=model.language.maximum_new_tokens,
            lora=LoraConfig(
                rank=model.lora.rank,
                alpha=model.lora.alpha,
                dropout=model.lora.dropout,
                target_modules=None if model.lora.target_modules is None else tuple(model.lora.target_modules),
            ),
            auxiliary_targets=tuple(auxiliary_targets),
            activation_checkpointing=params.training.activation_checkpointing,
            dtype=params.pretrain.precision if dtype is None else dtype,
        )

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON-serialisable values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Rebuild a configuration from :meth:`to_json`'s values.

        Raises
        ------
        CheckpointError
            When fields are missing or unknown: the checkpoint is of another version.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise CheckpointError(
                "a model configuration has unknown fields", found=", ".join(unknown), expected=", ".join(sorted(names))
            )
        data = dict(values)
        try:
            data["volume_shape"] = _triple(data["volume_shape"])
            data["feature_layers"] = tuple(data.get("feature_layers", (-1,)))
            if data.get("kept") is not None:
                data["kept"] = tuple(int(index) for index in data["kept"])
            data["auxiliary_targets"] = tuple(data.get("auxiliary_targets", ()))
            if data.get("fine") is not None:
                fine = dict(data["fine"])
                fine["start"], fine["stop"] = _triple(fine["start"]), _triple(fine["stop"])
                data["fine"] = FineBoxConfig(**fine)
            if "lora" in data:
                lora = dict(data["lora"])
                if lora.get("target_modules") is not None:
                    lora["target_modules"] = tuple(lora["target_modules"])
                data["lora"] = LoraConfig(**lora)
            return cls(**data)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError("a model configuration is damaged", found=error) from error


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    """Three whole numbers."""
    first, second, third = (int(value) for value in values)
    return first, second, third


def locate_box(
    box_mm: Sequence[Sequence[float]], affine: ArrayLike, shape: tuple[int, int, int], pooling: int, cube: int
) -> FineBoxConfig:
    """Place a box given in MNI millimetres on the voxels of the normalized grid.

    Every side grows to the next multiple of ``pooling * cube`` voxels, about the same centre, and is shifted (and,
    where the grid is smaller, shrunk) to lie inside the grid.

    Parameters
    ----------
    box_mm
        ``[[x0, x1], [y0, y1], [z0, z1]]`` in millimetres.
    affine
        4x4 voxel-to-MNI affine of an axis-aligned grid.
    shape
        The grid's size in voxels.
    pooling, cube
        How the box is cut, see :class:`FineBoxConfig`.

    Raises
    ------
    ParameterError
        When not one sub-volume fits.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    ends = np.asarray(box_mm, dtype=np.float64)
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    voxels = (np.linalg.inv(matrix) @ np.c_[corners, np.ones(len(corners))].T).T[:, :3]
    # A voxel is centred on its index, so a box reaches from half a voxel before to half a voxel after.
    low, high = voxels.min(axis=0) - 0.5, voxels.max(axis=0) + 0.5
    step = pooling * cube
    starts, stops = [], []
    for axis, size in enumerate(shape):
        side = min(math.ceil(round((high[axis] - low[axis]) / step, 6)), size // step) * step
        if side < step:
            raise ParameterError(
                "no finer sub-volume fits into the normalized grid",
                where="model.sub_volumes.fine",
                found=f"pooling x cube = {step} voxels along {'xyz'[axis]}, a grid of {size}",
                expected="pooling x cube of at most the grid's size",
            )
        start = round((low[axis] + high[axis] + 1) / 2 - side / 2)
        start = min(max(start, 0), size - side)
        starts.append(start)
        stops.append(start + side)
    return FineBoxConfig(start=_triple(starts), stop=_triple(stops), pooling=pooling, cube=cube)


def brain_sub_volumes(distance: ArrayLike, shape: tuple[int, int, int], side: int, margin_mm: float) -> tuple[int, ...]:
    """Numbers (C order) of the sub-volumes that come within ``margin_mm`` of the template's brain.

    After affine registration every head lies about where the template lies, so one fixed index serves all volumes; the
    margin is for how heads then still differ.

    Parameters
    ----------
    distance
        Signed distance to the template brain's surface on the normalized grid, in millimetres, negative inside.
    shape
        The grid's size in voxels.
    side
        Side of a sub-volume in voxels of the grid.
    margin_mm
        0 keeps what holds a voxel of the template's brain.

    Raises
    ------
    ParameterError
        When the map is of another grid.
    """
    values = np.asarray(distance)
    if values.shape != shape or any(size % side for size in shape):
        raise ParameterError(
            "a map of the brain cannot be cut into whole sub-volumes",
            where="model.sub_volumes",
            found=f"a map of {values.shape} and sub-volumes of {side} voxels a side",
            expected=f"a map of {shape}, its sides multiples of pooling x cube",
        )
    x, y, z = (size // side for size in shape)
    near = (values <= margin_mm).reshape(x, side, y, side, z, side).any(axis=(1, 3, 5))
    return tuple(int(index) for index in np.flatnonzero(near))
