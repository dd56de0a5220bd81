"""Checkpoints of a training run: trainables only, no pickle, whole or not at all.

A folder holds ``step-<n>/`` with ``model.safetensors`` (trainable weights), ``optimizer.safetensors`` (AdamW's moments
by parameter name) and ``state.json`` (step, history, best validation), and beside it ``best-<n>.safetensors``, the
weights of the best validation, written only when they change. A checkpoint gets its name when it is complete, and the
one before it is removed after that, so that one whole checkpoint stands there however a process ends.

Random numbers need no place in it: data, augmentation and dropout of a step are functions of (seed, step).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medalign3d import files
from medalign3d.errors import CheckpointError

FORMAT_VERSION = 2
MODEL_NAME = "model.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"
_STEP = re.compile(r"step-(\d{9})")


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load` gives back: tensors on the CPU, and ``state``, the JSON values that :func:`save` was given."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor]
    state: dict[str, Any]


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state as tensors named ``<parameter>/<moment>``; ``names`` is of every parameter."""
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


@torch.no_grad()
def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor], where: object = None
) -> None:
    """The other side of :func:`optimizer_tensors`.

    Raises
    ------
    CheckpointError
        When a name or shape is not that of a parameter here. Nothing is changed then.
    """
    parameters = {name: parameter for parameter, name in names.items()}
    loaded: dict[Tensor, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters.get(parameter_name)
        if parameter is None or (tensor.ndim > 0 and tensor.shape != parameter.shape):
            raise CheckpointError(
                "an optimizer's state is of another architecture",
                where=where,
                found=f"{name} of shape {tuple(tensor.shape)}",
                expected="the parameters of this model",
                remedy="train again with the present parameters",
            )
        # AdamW's count of steps stays on the CPU unless its update is one fused kernel.
        stays = tensor.ndim == 0 and not optimizer.defaults.get("fused")
        loaded.setdefault(parameter, {})[key] = tensor if stays else tensor.to(parameter.device)
    for parameter, values in loaded.items():
        optimizer.state[parameter] = values


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    found = (_STEP.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}"


def _best_place(folder: Path, step: int) -> Path:
    return folder / f"best-{step:09d}.safetensors"


def save(
    folder: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    best: tuple[int, dict[str, Tensor]],
    state: dict[str, Any],
) -> None:
    """Write the checkpoint of ``step`` and then remove older ones.

    Parameters
    ----------
    folder, step
        Of the run, and how many steps are done.
    model, optimizer
        Tensors on the CPU.
    best
        The step of the best validation and its weights, which may be empty (no validation yet).
    state
        JSON values.

    Raises
    ------
    MedAlignError
        When the disk is full; the checkpoint before stands.
    """
    best_step, best_weights = best
    best_path = _best_place(folder, best_step) if best_weights else None
    if best_path is not None and not best_path.is_file():
        with files.atomic_path(best_path) as temporary:
            save_file(best_weights, temporary)
    whole = {"format": FORMAT_VERSION, "step": step, "best_step": best_step if best_weights else None, "state": state}
    place = _place(folder, step)
    if not place.exists():  # a stop right after a scheduled checkpoint has nothing to add
        with files.atomic_path(place) as temporary:
            temporary.mkdir()
            save_file(model, temporary / MODEL_NAME)
            save_file(optimizer, temporary / OPTIMIZER_NAME)
            (temporary / STATE_NAME).write_text(json.dumps(whole), encoding="utf-8")
    else:
        files.write_text(place / STATE_NAME, json.dumps(whole))
    for other in _steps(folder):
        if other != step:
            shutil.rmtree(_place(folder, other), ignore_errors=True)
    for path in folder.glob("best-*.safetensors"):
        if path != best_path:
            path.unlink(missing_ok=True)
    for path in folder.glob(".writing-*"):  # of a process that was killed while it wrote
        shutil.rmtree(path, ignore_errors=True)


def _read(folder: Path, step: int) -> Checkpoint:
    place = _place(folder, step)
    whole = json.loads((place / STATE_NAME).read_text(encoding="utf-8"))
    if whole["format"] != FORMAT_VERSION:
        raise ValueError(f"format {whole['format']}")
    best_step = whole["best_step"]
    return Checkpoint(
        step=int(whole["step"]),
        model=load_file(place / MODEL_NAME),
        optimizer=load_file(place / OPTIMIZER_NAME),
        best={} if best_step is None else load_file(_best_place(folder, int(best_step))),
        state=dict(whole["state"]),
    )


def load(folder: Path | None, step: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint in ``folder``; None where there is none (training then starts afresh).

    ``step`` asks for that one only. A damaged checkpoint counts as none.
    """
    if folder is None:
        return None
    for candidate in _steps(folder) if step is None else [step]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
            return _read(folder, candidate)
    return None
