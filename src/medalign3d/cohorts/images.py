"""What ingest notes of every image: geometry, content and hashes, without resampling.

Reading and the rules of acceptance are those of :mod:`medalign3d.cohorts.stored`, which normalization uses, too: the
two give the same verdict.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib

from medalign3d.cohorts.fingerprint import fingerprint
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.cohorts.stored import describe, read_stored, sagittal_affine, talairach_affine
from medalign3d.cohorts.stored_image import ZIP_SEPARATOR, ImageFile
from medalign3d.cohorts.values import parse_float
from medalign3d.errors import VolumeError

__all__ = [
    "ZIP_SEPARATOR",
    "ImageFacts",
    "ImageFile",
    "describe_path",
    "inspect_all",
    "inspect_file",
    "inspect_image",
    "sagittal_affine",
    "talairach_affine",
    "tesla",
]


@dataclass(frozen=True)
class ImageFacts:
    """What was found out about an accepted image."""

    shape: tuple[int, int, int]
    zooms: tuple[float, float, float]
    orientation: str
    dtype: str
    data_sha256: str
    source_sha256: str
    affine_source: str
    fingerprint: tuple[float, ...] | None = None
    manufacturer: str | None = None
    scanner_model: str | None = None
    field_strength_t: float | None = None


def tesla(value: float) -> float | None:
    """Field strength in tesla; some headers give gauss.

    >>> tesla(15000.0), tesla(3.0), tesla(0.0)
    (1.5, 3.0, None)
    """
    if value > 100:
        value /= 10000.0
    return round(value, 2) if 0.1 <= value <= 12 else None


def inspect_file(root: Path, image: ImageFile) -> ImageFacts:
    """Check one image and describe it.

    Raises
    ------
    VolumeError
        With the reason why the image cannot be used.
    """
    stored = read_stored(root, image)
    scanner = stored.scanner
    return ImageFacts(
        shape=stored.shape,
        zooms=stored.zooms,
        orientation="".join(nib.aff2axcodes(stored.affine)),
        dtype=stored.voxels.dtype.name,
        data_sha256=stored.data_sha256(),
        source_sha256=hashlib.sha256("".join(sorted(stored.digests)).encode()).hexdigest(),
        affine_source=stored.affine_source,
        fingerprint=fingerprint(stored.voxels.T if stored.source_format == "dicom" else stored.voxels),
        manufacturer=scanner.get("Manufacturer") or None,
        scanner_model=scanner.get("ManufacturerModelName") or None,
        field_strength_t=tesla(parse_float(scanner.get("MagneticFieldStrength", "")) or 0.0),
    )


def describe_path(path: Path) -> tuple[Path, ImageFile]:
    """The root and :class:`ImageFile` of a file, a pair, a DICOM folder or a zip; see :func:`describe`."""
    return path.parent, describe(path.parent, path.name)


def inspect_image(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Check one image file, DICOM folder or zip and describe it.

    Returns
    -------
    dict
        ``shape`` (voxels), ``zooms`` (mm), ``orientation`` (such as ``RAS``), ``dtype``, ``data_sha256`` and
        ``source_sha256``, ``affine_source``.

    Raises
    ------
    VolumeError
        With the reason why the image cannot be used.
    """
    root, image = describe_path(Path(path))
    facts = inspect_file(root, image)
    return {**facts.__dict__, "shape": list(facts.shape), "zooms": list(facts.zooms)}


Outcome = ImageFacts | tuple[str, str]


def _inspect_task(root: str, image: ImageFile) -> Outcome:
    """Run :func:`inspect_file` in a worker; a refusal comes back as (reason, what)."""
    try:
        return inspect_file(Path(root), image)
    except VolumeError as error:
        detail = error.what if error.found is None else f"{error.what}: {error.found}"
        return str(error.reason), detail


def inspect_all(
    root: Path, images: Sequence[ImageFile], workers: int, advance: Callable[[], None] = lambda: None
) -> Iterator[Outcome]:
    """Inspect many images in ``workers`` processes, in order.

    A file that brings a worker process down is unreadable; the others are not affected.
    """
    if workers <= 1 or len(images) < 4:
        for image in images:
            outcome = _inspect_task(str(root), image)
            advance()
            yield outcome
        return
    context = multiprocessing.get_context("spawn")
    position = 0
    while position < len(images):
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            pending: list[Future[Outcome]] = [pool.submit(_inspect_task, str(root), i) for i in images[position:]]
            broken = False
            for future in pending:
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    broken = True
                    break
                position += 1
                advance()
                yield outcome
        if broken:
            # One of the images in flight killed its process: take the next one alone, then go on with a new pool.
            with ProcessPoolExecutor(1, mp_context=context) as single:
                try:
                    outcome = single.submit(_inspect_task, str(root), images[position]).result()
                except BrokenProcessPool:
                    outcome = (str(QuarantineReason.IMAGE_UNREADABLE), "reading the image ends the process")
            position += 1
            advance()
            yield outcome
