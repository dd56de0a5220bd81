"""An image before and after it is read: the files behind it, their bytes, and the voxels as they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medalign3d.cohorts.archives import Archive
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.errors import VolumeError
from medalign3d.files import CHUNK_BYTES

MAXIMUM_BYTES = 1 << 30  # voxels of one image: 512 x 512 x 512 of eight bytes; a header that claims more is damaged
ZIP_SEPARATOR = "!"


@dataclass(frozen=True)
class ImageFile:
    """Where an image is and how to read it.

    Parameters
    ----------
    source_path
        Relative to the cohort's root: a file; a folder of DICOM slices; or ``archive.zip!inner/path`` for either.
    source_format
        ``nifti``, ``nifti_pair``, ``analyze`` or ``dicom``.
    files
        The files behind it (relative paths, or member names inside the archive).
    orientation_rule
        ``header`` trusts the header; ``sagittal`` and ``talairach`` are the conventions of OASIS-1 Analyze files.
    """

    source_path: str
    source_format: str
    files: tuple[str, ...]
    orientation_rule: str = "header"


@dataclass(frozen=True, eq=False)
class Stored:
    """An image as it is stored.

    Attributes
    ----------
    voxels
        Shape (X, Y, Z) in Fortran order (a DICOM series: columns, rows, slices), the file's own numbers, little-endian.
    slope, intercept
        ``slope * voxel + intercept`` is the value; of a DICOM series one per slice.
    affine
        4x4, voxel index to scanner millimetres (x to the right, y to the front, z up).
    zooms
        Voxel sizes in millimetres.
    affine_source
        ``header``, or ``assumed`` where the format does not say how the head lies.
    source_format
        ``nifti``, ``nifti_pair``, ``analyze`` or ``dicom``, by content.
    digests
        SHA-256 of each file.
    remarks
        What is odd about the image without ruling it out.
    scanner
        ``Manufacturer``, ``ManufacturerModelName`` and ``MagneticFieldStrength`` of a DICOM series.
    padding
        The numbers, lowest and highest, that stand for "no measurement" in a DICOM series; they get the lowest value.
    bits
        Of a DICOM series: bits that hold the number, and the place of the highest of them.
    inverted
        Whether a DICOM series stores bright for little signal (MONOCHROME1).
    """

    voxels: npt.NDArray[Any]
    slope: float | npt.NDArray[np.float32]
    intercept: float | npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    zooms: tuple[float, float, float]
    affine_source: Literal["header", "assumed"]
    source_format: str
    digests: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    scanner: Mapping[str, str] = field(default_factory=dict)
    padding: tuple[int, int] | None = None
    bits: tuple[int, int] | None = None
    inverted: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return self.voxels.shape[0], self.voxels.shape[1], self.voxels.shape[2]

    def data_sha256(self) -> str:
        """SHA-256 of the voxels as stored, little-endian, first axis fastest: equal in any container."""
        return hashlib.sha256(np.ascontiguousarray(self.voxels.T).data).hexdigest()

    def values(self) -> npt.NDArray[np.float32]:
        """The scaled voxels, float32, shape (X, Y, Z)."""
        voxels = self.voxels if self.bits is None else own_bits(self.voxels, *self.bits)
        with np.errstate(over="ignore", invalid="ignore"):
            data = voxels.astype(np.float32)
            if not (np.all(np.equal(self.slope, 1.0)) and np.all(np.equal(self.intercept, 0.0))):
                data *= np.float32(self.slope)
                data += np.float32(self.intercept)
            measured = self._measured(voxels)
            if self.inverted:
                top = data.max() if measured is None else data[measured].max()
                np.subtract(top, data, out=data)
            if measured is not None:
                data[~measured] = data[measured].min()
        return data

    def _measured(self, voxels: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Where something was measured; None when that is everywhere, or nowhere."""
        if self.padding is None:
            return None
        low, high = self.padding
        measured = (voxels < low) | (voxels > high)
        if voxels is not self.voxels:  # the number may be given as the whole word, whatever its bits hold
            measured &= (self.voxels < low) | (self.voxels > high)
        return None if measured.all() or not measured.any() else measured


def own_bits(voxels: npt.NDArray[Any], stored: int, highest: int) -> npt.NDArray[Any]:
    """The numbers of a DICOM slice without what else its words hold (overlays in the upper bits)."""
    width = 8 * voxels.dtype.itemsize
    above = width - 1 - highest
    if stored == width or not 0 < stored <= highest + 1 <= width:
        return voxels
    # Up against the upper end and down again: the second shift extends the sign where there is one.
    return (voxels << above) >> (width - stored)


class Source:
    """Bytes of files in a folder or inside a zip archive."""

    def __init__(self, root: Path, image: ImageFile) -> None:
        self.root = root
        self.archive: Archive | None = None
        if ZIP_SEPARATOR in image.source_path:
            self.archive = Archive(root / image.source_path.split(ZIP_SEPARATOR, 1)[0])

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *details: Any) -> None:
        if self.archive is not None:
            self.archive.__exit__(*details)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The file's bytes, a chunk at a time."""
        if self.archive is not None:
            yield from self.archive.chunks(name)
            return
        with (self.root / name).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def read(self, name: str, limit: int) -> bytes:
        """The file's bytes; an error when there are more than ``limit``."""
        content = bytearray()
        for chunk in self.chunks(name):
            content += chunk
            if len(content) > limit:
                raise VolumeError(
                    QuarantineReason.IMAGE_UNREADABLE, "a file is too large", expected=f"at most {limit} bytes"
                )
        return bytes(content)
