"""Image features that are computed once: legitimate only while everything before them stands still.

While sub-volume projection and positions train, the vision transformer's outputs change with every step and must not be
kept. In a later stage that leaves both alone (``tune.freeze_image``) its outputs at the tapped depths are a function of
the volume; the trained norm and weights of the taps come after them. They are kept in one file whose name is a hash of
every weight that they depend on and of how volumes were normalized, so that a file can never serve another model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from medalign3d.model.composite import MedAlign3D


def feature_key(model: MedAlign3D, preprocessing: Mapping[str, Any]) -> str:
    """A hash of what decides the features of a volume.

    Parameters
    ----------
    model
        Its architecture, trained sub-volume embedding (voxel statistics included) and frozen vision transformer count.
    preprocessing
        How volumes were made, as JSON-like values (the section ``normalize`` of the parameters).
    """
    digest = hashlib.sha256()
    cutting = ("volume_shape", "pooling", "cube", "fine", "kept")
    parts = {
        "cutting": {name: str(getattr(model.config, name, None)) for name in cutting},
        "preprocessing": dict(preprocessing),
        "taps": list(model.vision.taps),
        "vision": model.fingerprints["vision"],
        "dtype": str(model.vision.dtype),
    }
    digest.update(json.dumps(parts, sort_keys=True).encode())
    state = {**model.sub_volumes.state_dict(), "class_token": model.sub_volumes.class_token}
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


class FeatureCache:
    """Features of a table's volumes in one file that is mapped, not read.

    Parameters
    ----------
    folder
        Where the file is; made if need be. At full size a volume takes 0.97 MB in bfloat16.
    model
        In evaluation mode, on the device that computes missing features.
    preprocessing
        See :func:`feature_key`.
    digests
        One name per row that stands for the volume's voxels (its SHA-256).
    volumes
        From row numbers to model input (B, 1, X, Y, Z); called only when the file is not there yet.
    batch_size
        Volumes at a time.
    """

    def __init__(
        self,
        folder: Path,
        model: MedAlign3D,
        preprocessing: Mapping[str, Any],
        digests: Sequence[str],
        volumes: Callable[[Sequence[int]], Tensor],
        batch_size: int = 16,
    ) -> None:
        content = hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]
        self.path = folder / f"{feature_key(model, preprocessing)}-{content}.features"
        dtype = model.vision.dtype
        shape = (len(digests), len(model.vision.taps), model.sub_volumes.token_count, model.vision.width)
        if not self.path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(".unfinished")
            features = self._map(unfinished, shape, dtype)
            with torch.inference_mode():
                for start in range(0, len(digests), batch_size):
                    rows = list(range(start, min(len(digests), start + batch_size)))
                    features[rows] = model.image_taps(volumes(rows).to(model.device)).to(dtype).cpu()
            del features
            unfinished.rename(self.path)
        self.features = self._map(self.path, shape, dtype)

    @staticmethod
    def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).reshape(shape)

    def remove(self) -> None:
        """Delete the file; what was mapped stays readable."""
        self.path.unlink(missing_ok=True)

    def take(self, rows: Sequence[int]) -> Tensor:
        """Features of some rows, (B, taps, tokens, hidden)."""
        return self.features[torch.as_tensor(list(rows), dtype=torch.long)]
