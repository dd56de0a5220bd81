"""The store of normalized volumes: one ``.npy`` of uint8 per image and an index.

Plain arrays are read through memory maps in about 1 ms and need no decompression (11 MB at 224^3; 0.14 MB at 48x60x48).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medalign3d import files
from medalign3d.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

INDEX_NAME = "index.parquet"
_SAFE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}$")


def volume_path(out_dir: str | os.PathLike[str], image_id: str) -> Path:
    """Where the array of ``image_id`` stands.

    Raises
    ------
    InputError
        When the id is not a safe file name.
    """
    if not _SAFE_ID.match(image_id) or ".." in image_id:
        raise InputError(
            "an image id cannot be a file name", found=image_id, expected="letters, digits, '-', '_' and '.'"
        )
    return Path(out_dir) / f"{image_id}.npy"


def write(out_dir: str | os.PathLike[str], image_id: str, array: NDArray[np.uint8]) -> str:
    """Write an array atomically.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    if array.dtype != np.uint8 or array.ndim != 3:
        raise InputError("a normalized volume must be uint8 with three axes", found=f"{array.dtype}, {array.ndim} axes")
    path = volume_path(out_dir, image_id)
    with files.atomic_path(path) as temporary:
        np.save(temporary, np.ascontiguousarray(array), allow_pickle=False)
    return files.sha256_file(path)


def read(
    path: str | os.PathLike[str], *, sha256: str | None = None, shape: tuple[int, int, int] | None = None
) -> NDArray[np.uint8]:
    """Read an array through a memory map.

    Parameters
    ----------
    path
        The ``.npy`` file.
    sha256
        When given, the whole file is read and must have this digest.
    shape
        When given, the array must have this shape.

    Raises
    ------
    InputError
        When the file is missing, damaged, or not what the index says.
    """
    place = Path(path)
    try:
        array = np.load(place, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError("a normalized volume is missing", where=place, remedy="run `dvc repro normalize`") from error
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            "a normalized volume is damaged",
            where=place,
            found=type(error).__name__,
            remedy="run `dvc repro -f normalize`",
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3:
        raise InputError("not a normalized volume", where=place, expected="uint8 with three axes")
    if shape is not None and array.shape != tuple(shape):
        raise InputError(
            "a normalized volume has the wrong shape",
            where=place,
            found=array.shape,
            expected=tuple(shape),
            remedy="run `dvc repro normalize`",
        )
    if sha256 is not None and files.sha256_file(place) != sha256:
        raise InputError("a normalized volume was changed", where=place, remedy="run `dvc repro -f normalize`")
    return array


def load_index(cohort_dir: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a cohort's index: one row per image, columns of :func:`medalign3d.volumes.normalize.normalize_cohort`."""
    return files.read_parquet(Path(cohort_dir) / INDEX_NAME)
