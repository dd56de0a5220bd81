"""2D slices from which the tiny vision transformer of the demo learns what a brain looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from medalign3d.params import Params
from medalign3d.training.data import Volumes, read_images

SLICES_PER_VOLUME = 12
FEWEST_VOLUMES = 20
MOST_VOLUMES = 300


def _square(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """``image`` (H, W) centred on a black square of ``size``."""
    result = np.zeros((size, size), dtype=np.uint8)
    top, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
    result[top : top + image.shape[0], left : left + image.shape[1]] = image
    return result


def cut_slices(volume: npt.NDArray[np.uint8], count: int = SLICES_PER_VOLUME) -> npt.NDArray[np.uint8]:
    """``count`` slices of a volume (X, Y, Z), evenly over the middle of its three axes in turn: (count, S, S)."""
    size = max(volume.shape)
    slices = []
    for number in range(count):
        axis = number % 3
        place = 0.2 + 0.6 * (number // 3 + 0.5) / -(-count // 3)
        slices.append(_square(np.take(volume, int(place * volume.shape[axis]), axis=axis), size))
    return np.stack(slices)


def _template_slices(params: Params, count: int) -> npt.NDArray[np.uint8]:
    """Slices of the MNI152 template under random affine maps and contrasts: nobody's brain."""
    from scipy import ndimage

    from medalign3d.volumes.template import on_grid, target_grid

    template = on_grid(target_grid(params.normalize.shape, params.normalize.zooms_mm))
    head = np.asarray(template.t1 * (template.brain > 0.5), dtype=np.float32)
    centre = (np.array(head.shape) - 1) / 2
    random = np.random.default_rng(params.backbones.seed)
    slices = []
    for _ in range(count):
        matrix = np.eye(3) + random.normal(0.0, 0.06, (3, 3))
        moved = ndimage.affine_transform(head, matrix, centre - matrix @ centre + random.normal(0.0, 1.0, 3), order=1)
        moved = np.clip(moved, 0.0, 1.0) ** random.uniform(0.7, 1.4)
        slices.append(cut_slices((255 * moved).astype(np.uint8)))
    return np.concatenate(slices)


def training_slices(params: Params, data_dir: str | Path = "data") -> tuple[npt.NDArray[np.uint8], str]:
    """Slices of people that no run tests, and a line that says whose they are.

    With cross-validation everybody with a label is tested once; then only people without a label are used, and where
    there are too few of them, the MNI152 template under random maps stands in.

    Returns
    -------
    slices, description
        uint8 (N, S, S).
    """
    table = read_images(params, data_dir)
    rows = np.flatnonzero((table["split"] == "train").to_numpy())
    if len(rows) < FEWEST_VOLUMES:
        slices = _template_slices(params, 60)
        return slices, f"{len(slices)} slices of the MNI152 template under random maps (no person is free of testing)"
    random = np.random.default_rng(params.backbones.seed)
    chosen = np.sort(random.permutation(rows)[:MOST_VOLUMES])
    volumes = Volumes(table.loc[chosen, "volume_path"].tolist(), params.normalize.shape)
    slices = np.concatenate([cut_slices(volume) for volume in volumes.take(np.arange(len(chosen)))])
    return slices, f"{len(slices)} slices of {table.loc[chosen, 'person_id'].nunique()} training people"
