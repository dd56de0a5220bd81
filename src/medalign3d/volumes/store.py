"""The store of normalized volumes: one compressed file per volume, named by its content, and an index.

A volume is a ``.b2nd`` file (blosc2, LZ4) of one chunk: a 224^3 brain takes about 2 MB instead of 11 and is read in
about 3 ms, its check included (docs/performance.md compares the formats). The name is the XXH3-128 digest of the
voxels, so that a damaged file is recognised whenever it is read, and equal volumes are stored once.

While a cohort is normalized, finished volumes stand in a working folder beside a journal (:class:`Workspace`): a run
that was killed at any moment goes on where it stopped, and a new scan costs one scan.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medalign3d import files
from medalign3d.errors import InputError, MedAlignError

if TYPE_CHECKING:
    import pandas as pd

INDEX_NAME = "index.parquet"
SUFFIX = ".b2nd"
JOURNAL_NAME = "journal.jsonl"
LOCK_NAME = "lock"
_NAME = re.compile(r"[0-9a-f]{32}\.b2nd")
_SAFE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}$")


def check_id(image_id: str) -> None:
    """Refuse an image id that cannot be part of a file name.

    Raises
    ------
    InputError
        When it holds anything but letters, digits, ``-``, ``_`` and ``.``.
    """
    if not _SAFE_ID.match(image_id) or ".." in image_id:
        raise InputError(
            "an image id cannot be a file name", found=image_id, expected="letters, digits, '-', '_' and '.'"
        )


def digest_of(array: NDArray[np.uint8]) -> str:
    """XXH3-128 of shape and voxels (C order), 32 hexadecimal digits.

    It finds damage and tells volumes apart; it is no protection against somebody who forges files.
    """
    import xxhash

    state = xxhash.xxh3_128("x".join(map(str, array.shape)).encode())
    state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def write(out_dir: str | os.PathLike[str], array: NDArray[np.uint8]) -> str:
    """Write an array atomically, unless it is there already.

    Returns
    -------
    str
        The file's name in ``out_dir``.
    """
    import blosc2

    if array.dtype != np.uint8 or array.ndim != 3:
        raise InputError("a normalized volume must be uint8 with three axes", found=f"{array.dtype}, {array.ndim} axes")
    name = digest_of(array) + SUFFIX
    path = Path(out_dir) / name
    if _is_whole(path):
        return name
    with files.atomic_path(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            contiguous=True,
            chunks=array.shape,  # read as a whole: one chunk is fastest
            cparams=blosc2.CParams(
                codec=blosc2.Codec.LZ4, clevel=5, nthreads=1, filters=[blosc2.Filter.NOFILTER], filters_meta=[0]
            ),
        )
    return name


def read(path: str | os.PathLike[str], *, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """Read an array and check it against its name.

    Parameters
    ----------
    path
        A file that :func:`write` wrote.
    shape
        When given, the array must have this shape.

    Raises
    ------
    InputError
        When the file is missing, damaged, no normalized volume, or of another shape. The message names the store's
        folder and the file, not where they lie.
    """
    import blosc2

    place = Path(path)
    where = f"{place.parent.name}/{place.name}"
    try:
        content = place.read_bytes()
    except OSError as error:
        raise InputError(
            "a normalized volume is missing", where=where, found=error.strerror, remedy="run `dvc repro normalize`"
        ) from error
    damaged = InputError(
        "a normalized volume is damaged or was changed",
        where=where,
        expected="voxels whose digest is the file's name",
        remedy="run `dvc repro -f normalize`: what is whole is kept, the rest is made again",
    )
    try:
        array = np.asarray(blosc2.ndarray_from_cframe(content)[:])
    except Exception as error:  # the library raises many unrelated kinds on damaged bytes
        raise damaged from error
    if array.dtype != np.uint8 or array.ndim != 3 or digest_of(array) + SUFFIX != place.name:
        raise damaged
    if shape is not None and array.shape != tuple(shape):
        raise InputError(
            "a normalized volume has another shape than the parameters say",
            where=where,
            found=array.shape,
            expected=tuple(shape),
            remedy="run `dvc repro` so that volumes follow params.yaml",
        )
    return array


def _is_whole(path: Path) -> bool:
    try:
        read(path)
    except InputError:
        return False
    return True


def load_index(cohort_dir: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a cohort's index: one row per image, columns of :func:`medalign3d.volumes.normalize.normalize_cohort`."""
    return files.read_parquet(Path(cohort_dir) / INDEX_NAME)


@contextlib.contextmanager
def explain_write_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an operating system's error about the store into one that names the store and the remedy."""
    try:
        yield
    except OSError as error:
        raise write_error(folder, error) from error


def write_error(folder: str | os.PathLike[str], error: OSError) -> MedAlignError:
    """The error for a store that cannot be written: a full disk, missing rights, a read-only file system."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return MedAlignError(
        "the disk is full" if full else "the store of normalized volumes cannot be written",
        where=folder,
        found=os.strerror(error.errno) if error.errno else type(error).__name__,
        expected="a folder with free space, in which files can be made and removed",
        remedy=("free some space" if full else "correct the folder's rights")
        + " and run the command again: what was done is kept",
    )


class Workspace:
    """Finished volumes of a cohort and a journal of what became of each image, kept between runs.

    Every line of the journal is one image's row, written when the image is done. A line that a crash cut off is
    ignored, and a row counts only while its volume is whole.

    Parameters
    ----------
    folder
        Made when it does not exist. It must lie on the store's file system, so that :meth:`publish` needs no copy.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = self.folder / JOURNAL_NAME

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out; the lock goes with this process, however it ends.

        Raises
        ------
        MedAlignError
            When another run holds it.
        """
        try:
            import fcntl
        except ImportError:  # a platform without it: DVC's own lock has to do
            yield
            return
        with (self.folder / LOCK_NAME).open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise MedAlignError(
                        "another run is normalizing this cohort",
                        where=self.folder,
                        expected="one run at a time",
                        remedy="wait until it has ended, or end it: what was done is kept",
                    ) from error
                # Some network file systems have no locks.
            yield

    def rows(self) -> dict[str, dict[str, Any]]:
        """The last row of every image, by image id; numbers that were missing are NaN again."""
        known: dict[str, dict[str, Any]] = {}
        if not self.journal.exists():
            return known
        with self.journal.open("rb") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except ValueError:  # cut off when the run was killed
                    continue
                if isinstance(row, dict) and isinstance(row.get("image_id"), str):
                    known[row["image_id"]] = {name: math.nan if value is None else value for name, value in row.items()}
        return known

    def record(self, row: dict[str, Any]) -> None:
        """Add an image's row and force it to the disk."""
        with self.journal.open("ab") as stream:
            # A run that was killed in mid-line left no newline: start on a fresh one.
            if stream.tell() and not self._ends_with_newline():
                stream.write(b"\n")
            stream.write(_line(row))
            stream.flush()
            os.fsync(stream.fileno())

    def _ends_with_newline(self) -> bool:
        with self.journal.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"

    def has(self, row: dict[str, Any]) -> bool:
        """Whether the volume that a row names stands here, undamaged; a row without one needs none."""
        name = str(row.get("path", ""))
        return not name or (_NAME.fullmatch(name) is not None and _is_whole(self.folder / name))

    def have(self, rows: Iterable[dict[str, Any]], threads: int) -> list[bool]:
        """:meth:`has` of many rows, in their order."""
        with ThreadPoolExecutor(threads) as executor:
            return list(executor.map(self.has, rows))

    def keep_only(self, rows: Iterable[dict[str, Any]]) -> None:
        """Drop everything that ``rows`` do not name, and shorten the journal to them."""
        kept = list(rows)
        files.write_bytes(self.journal, b"".join(_line(row) for row in kept))
        remove_others(self.folder, {str(row["path"]) for row in kept} | {JOURNAL_NAME})

    def publish(self, names: Iterable[str], out_dir: Path) -> None:
        """Make volumes stand in ``out_dir`` too, as hard links where the file system can, else as copies."""
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in names:
            source, target = self.folder / name, out_dir / name
            # A link is as whole as what was checked here; a copy may have been damaged since.
            if not (target.exists() and (source.samefile(target) or _is_whole(target))):
                files.link_or_copy(source, target)


def _line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON; NaN, which JSON lacks, becomes null."""
    plain = {n: None if isinstance(v, float) and math.isnan(v) else v for n, v in row.items()}
    return json.dumps(plain).encode() + b"\n"


def remove_others(folder: Path, keep: set[str]) -> None:
    """Remove volumes that ``keep`` does not name, and leftovers of interrupted writes, from a folder."""
    for path in folder.iterdir():
        if path.suffix in (SUFFIX, ".npy") and path.name not in keep:
            path.unlink()
        elif path.is_dir() and path.name.startswith(".writing-"):
            shutil.rmtree(path, ignore_errors=True)
