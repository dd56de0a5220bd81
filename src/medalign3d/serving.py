"""The served model: an MLflow models-from-code file that answers questions about an image and a record.

Input columns: ``question`` (the name of a known question or words), and optionally ``text`` (the record),
``image_path`` (a NIfTI, Analyze, ``.npy`` or stored ``.b2nd`` file, or a DICOM folder or zip, readable where the model
runs) or ``image`` (a normalized volume as nested lists of 0-255). Output columns: ``answer``, ``generated``,
``probabilities`` (JSON).

This module is only imported by MLflow when a model is saved or loaded; nothing else in the package imports it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from medalign3d.errors import InputError
from medalign3d.files import read_json
from medalign3d.params import Params, validate_params


class ServedModel(PythonModel):
    """Loads a trained run on the backbones that travel with it."""

    model: Any
    settings: Params

    def load_context(self, context: PythonModelContext) -> None:
        """Rebuild the model; its local backbones are taken from the MLflow model, not from the training machine."""
        from medalign3d.model.composite import MedAlign3D
        from medalign3d.model.config import ModelConfig

        folder = Path(context.artifacts["run"])
        config = ModelConfig.from_json(read_json(folder / "config.json")["model"])
        moved = {
            f"{part}_checkpoint": context.artifacts[part]
            for part in ("vision", "language")
            if part in context.artifacts
        }
        self.settings = validate_params(read_json(context.artifacts["params"]), source="params.json")
        self.model = MedAlign3D.load(folder, dataclasses.replace(config, **moved))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Answer every row."""
        from medalign3d.evaluation.predict import answer_one

        rows = []
        for row in model_input.to_dict("records"):
            volume = self._volume(row)
            text = row.get("text")
            answered = answer_one(
                "", volume, text if isinstance(text, str) else "", str(row["question"]), model=self.model
            )
            rows.append(
                {
                    "answer": answered["answer"],
                    "generated": answered["generated"],
                    "probabilities": json.dumps(answered["probabilities"]),
                }
            )
        return pd.DataFrame(rows, columns=["answer", "generated", "probabilities"])

    def _volume(self, row: dict[Any, Any]) -> npt.NDArray[np.uint8] | None:
        """The normalized volume of a row, or None where it names no image."""
        shape = tuple(self.settings.normalize.shape)
        image, path = row.get("image"), row.get("image_path")
        if image is not None and not isinstance(image, float):
            values = np.array([[list(line) for line in plane] for plane in image])
            if values.shape != shape or values.min() < 0 or values.max() > 255:
                raise InputError(
                    "an image is not a normalized volume",
                    found=f"shape {values.shape}",
                    expected=f"{shape}, values 0-255",
                )
            return values.astype(np.uint8)
        if not isinstance(path, str) or not path:
            return None
        from medalign3d.volumes import store

        if path.endswith(store.SUFFIX):
            return store.read(path, shape=shape)
        if path.endswith(".npy"):
            stored = np.load(path, allow_pickle=False)
            if stored.shape != shape or stored.dtype != np.uint8:
                raise InputError(
                    "an image is not a normalized volume",
                    found=f"{stored.dtype} {stored.shape}",
                    expected=f"uint8 {shape}",
                )
            return stored
        from medalign3d.volumes.normalize import normalize_volume
        from medalign3d.volumes.read import read_volume

        normalized = normalize_volume(read_volume(Path(path).parent, Path(path).name), self.settings.normalize)
        if normalized.verdict != "accepted":
            raise InputError("an image could not be normalized", found=normalized.reason)
        return normalized.array


mlflow.models.set_model(ServedModel())
