"""Which files are usable three-dimensional images: geometry, completeness, content and hashes, without resampling.

An image is accepted when it is readable and complete, three-dimensional once trailing axes of length one are gone, at
least 60 voxels along every axis, with voxels of 0.4-2.0 mm, finite values that are not all equal, and an affine that
can be inverted and is not the identity of a header that was never filled in.
"""

from __future__ import annotations

import hashlib
import io
import math
import multiprocessing
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medalign3d.cohorts.archives import Archive, ArchiveError, Gunzip
from medalign3d.cohorts.fingerprint import fingerprint
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.cohorts.values import parse_float
from medalign3d.errors import VolumeError
from medalign3d.files import CHUNK_BYTES

MINIMUM_AXIS = 60  # voxels
MINIMUM_ZOOM, MAXIMUM_ZOOM = 0.4, 2.0  # millimetres
ZOOM_TOLERANCE = 1e-3
MAXIMUM_BYTES = 1 << 30  # voxels of one image: 512 x 512 x 512 of eight bytes; a header that claims more is damaged
MAXIMUM_TRAILER = 16 << 20  # bytes behind the voxels (extensions, padding) that a file may have
MAXIMUM_SLICE_FILE = 256 << 20
MAXIMUM_DICOM_FILES = 20_000
SLICE_GAP_TOLERANCE = 0.1  # share of the slice distance
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


def sagittal_affine(shape: Sequence[int], zooms: Sequence[float]) -> npt.NDArray[np.float64]:
    """The affine of sagittal Analyze files of OASIS-1, whose headers carry none.

    For the 1 mm averages (256 x 256 x 160) it has the rows [0 0 -1 80], [1 0 0 -128], [0 1 0 -128]: the first voxel
    axis runs to anterior, the second to superior, the third to the left.
    """
    size = np.asarray(zooms, dtype=float)[:3]
    half = size * np.asarray(shape, dtype=float)[:3] / 2
    return np.array(
        [[0, 0, -size[2], half[2]], [size[0], 0, 0, -half[0]], [0, size[1], 0, -half[1]], [0, 0, 0, 1]], dtype=float
    )


def talairach_affine(shape: Sequence[int], zooms: Sequence[float]) -> npt.NDArray[np.float64]:
    """The affine assumed for atlas-space Analyze files of OASIS-1: axes run to left, anterior, superior."""
    size = np.asarray(zooms, dtype=float)[:3] * (-1, 1, 1)
    return nib.affines.from_matvec(np.diag(size), -size * (np.asarray(shape, dtype=float)[:3] - 1) / 2)


def _check_geometry(
    shape: Sequence[int], header_zooms: Sequence[float], affine: npt.NDArray[np.float64]
) -> tuple[tuple[int, int, int], tuple[float, float, float], npt.NDArray[np.float64]]:
    """The three-dimensional shape, voxel sizes and affine, or the reason against them."""
    dimensions = [int(n) for n in shape]
    while len(dimensions) > 3 and dimensions[-1] == 1:
        dimensions.pop()
    if len(dimensions) != 3 or min(dimensions) < 1:
        raise VolumeError(
            QuarantineReason.IMAGE_NOT_3D,
            "an image is not three-dimensional",
            found=f"shape {tuple(shape)}",
            expected="three axes",
        )
    zooms = [float(z) for z in header_zooms][:3]
    rotation = np.asarray(affine, dtype=float)[:3, :3]
    if not np.all(np.isfinite(affine)):
        raise VolumeError(QuarantineReason.IMAGE_BAD_AFFINE, "an affine is not finite")
    sizes = np.sqrt((rotation**2).sum(axis=0))
    if min(sizes) < 1e-6 or abs(np.linalg.det(rotation)) < 1e-3 * float(np.prod(sizes)):
        raise VolumeError(QuarantineReason.IMAGE_BAD_AFFINE, "an affine cannot be inverted", found=rotation.tolist())
    header_says_otherwise = max(abs(abs(z) - 1.0) for z in zooms) > 0.01
    # Flipped or reordered axes of exactly 1 mm are the same mistake.
    unit_axes = np.isin(np.abs(rotation), (0.0, 1.0)).all() and np.allclose(sizes, 1.0)
    if unit_axes and header_says_otherwise:
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "an affine is the identity although voxels are not 1 mm",
            found=f"voxel size {zooms}",
        )
    final = tuple(float(size) for size in sizes)
    if max(final) > MAXIMUM_ZOOM + ZOOM_TOLERANCE:
        raise VolumeError(
            QuarantineReason.IMAGE_TOO_THICK,
            "voxels are too large",
            found=f"{final} mm",
            expected=f"{MINIMUM_ZOOM}-{MAXIMUM_ZOOM} mm",
        )
    if min(final) < MINIMUM_ZOOM - ZOOM_TOLERANCE:
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "voxels are too small for a head",
            found=f"{final} mm",
            expected=f"{MINIMUM_ZOOM}-{MAXIMUM_ZOOM} mm",
        )
    if min(dimensions) < MINIMUM_AXIS:
        reason = QuarantineReason.IMAGE_NOT_3D if min(dimensions) == 1 else QuarantineReason.IMAGE_TOO_THICK
        raise VolumeError(
            reason,
            "an image has too few slices",
            found=f"shape {tuple(dimensions)}",
            expected=f"at least {MINIMUM_AXIS} voxels along every axis",
        )
    return (
        (dimensions[0], dimensions[1], dimensions[2]),
        (final[0], final[1], final[2]),
        np.asarray(affine, dtype=float),
    )


def _check_values(array: npt.NDArray[Any]) -> None:
    if array.dtype.kind == "V" or array.dtype.kind == "c":
        raise VolumeError(
            QuarantineReason.IMAGE_NOT_3D,
            "voxels are not single numbers",
            found=str(array.dtype),
            expected="grey values",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "voxels are not finite numbers")
    if array.min() == array.max():
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "all voxels are equal")


class _Source:
    """Bytes of files in a folder or inside a zip archive."""

    def __init__(self, root: Path, image: ImageFile) -> None:
        self.root = root
        self.archive: Archive | None = None
        if ZIP_SEPARATOR in image.source_path:
            self.archive = Archive(root / image.source_path.split(ZIP_SEPARATOR, 1)[0])

    def __enter__(self) -> _Source:
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


class _Expanded:
    """The start of a file, expanded where it is gzip data, and no further than it is asked for.

    Attributes
    ----------
    content
        The bytes so far.
    complete
        Whether compressed data ended where it should (after :meth:`finish`).
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.content = bytearray()
        self.complete = True
        self._raw = hashlib.sha256()
        self._pieces = self._expand(chunks)

    def _expand(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        expander: Gunzip | None = None
        first = True
        for chunk in chunks:
            self._raw.update(chunk)
            if first and chunk[:2] == b"\x1f\x8b":
                expander, self.complete = Gunzip(), False
            first = False
            if expander is None:
                yield chunk
                continue
            try:
                yield from expander.expand(chunk)
            except zlib.error as error:
                raise VolumeError(
                    QuarantineReason.IMAGE_UNREADABLE, "a compressed file is damaged", found=str(error)
                ) from error
            self.complete = expander.complete

    def fill(self, size: int) -> bytearray:
        """Expand until ``size`` bytes are there or the file ends."""
        while len(self.content) < size and (piece := next(self._pieces, None)) is not None:
            self.content += piece
        return self.content

    def finish(self) -> str:
        """Go to the end, to check it and to hash the file; the SHA-256 of the file as it is on disk."""
        behind = 0
        for piece in self._pieces:
            behind += len(piece)
            if behind > MAXIMUM_TRAILER:
                raise VolumeError(
                    QuarantineReason.IMAGE_UNREADABLE,
                    "a file goes on far behind its voxels",
                    found=f"more than {MAXIMUM_TRAILER} bytes",
                    expected="the voxels that its header tells of",
                )
        return self._raw.hexdigest()


def _inspect_nifti(image: ImageFile, source: _Source) -> ImageFacts:
    """Read a NIfTI file, a NIfTI pair or an Analyze pair from its bytes."""
    header_name = next((name for name in image.files if not name.lower().endswith((".img", ".img.gz"))), None)
    data_name = next((name for name in image.files if name.lower().endswith((".img", ".img.gz"))), header_name)
    if (
        header_name is None
        or data_name is None
        or (image.source_format in ("analyze", "nifti_pair") and data_name == header_name)
    ):
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE,
            "a pair of files is incomplete",
            found=", ".join(name.rsplit("/", 1)[-1] for name in image.files),
            expected="both .hdr and .img",
        )
    files = {name: _Expanded(source.chunks(name)) for name in dict.fromkeys((header_name, data_name))}
    # The header alone: what follows are extensions, which say nothing about the voxels.
    header_bytes = bytes(files[header_name].fill(540)[:540])
    if len(header_bytes) < 348:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE if files[header_name].complete else QuarantineReason.IMAGE_TRUNCATED,
            "an image has no header",
            found=f"{len(header_bytes)} bytes",
            expected="at least 348",
        )
    header: Any
    try:
        if int.from_bytes(header_bytes[:4], "little") == 540 or int.from_bytes(header_bytes[:4], "big") == 540:
            header = nib.Nifti2Header.from_fileobj(io.BytesIO(header_bytes + bytes(4)), check=False)
        elif header_bytes[344:347] in (b"n+1", b"ni1"):
            kind = nib.Nifti1Header if header_bytes[344:347] == b"n+1" else nib.nifti1.Nifti1PairHeader
            header = kind.from_fileobj(io.BytesIO(header_bytes[:348] + bytes(4)), check=False)
        elif image.source_format == "analyze" or data_name != header_name:
            header = nib.spm99analyze.Spm99AnalyzeHeader.from_fileobj(io.BytesIO(header_bytes[:348]), check=False)
        else:
            raise VolumeError(
                QuarantineReason.IMAGE_UNREADABLE,
                "a file is no NIfTI image",
                found="another signature",
                expected="the signature n+1",
            )
        if int(header["sizeof_hdr"]) not in (348, 540):
            raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "an image header is damaged")
        shape = header.get_data_shape()
        zooms = header.get_zooms()
        dtype = header.get_data_dtype()
        offset = int(header.get_data_offset()) if data_name == header_name or "vox_offset" in header else 0
    except VolumeError:
        raise
    except Exception as error:  # header parsers raise many unrelated kinds on random bytes
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "an image header is damaged", found=f"{type(error).__name__}: {error}"
        ) from error
    if min(shape, default=0) < 1 or dtype.itemsize == 0:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "an image header is damaged", found=f"shape {tuple(shape)}"
        )
    if data_name != header_name and not isinstance(header, nib.nifti1.Nifti1PairHeader):
        offset = max(0, int(float(header["vox_offset"]))) if "vox_offset" in header else 0

    rule = image.orientation_rule
    if rule == "sagittal":
        affine, affine_source = sagittal_affine(shape, zooms), "assumed"
    elif rule == "talairach":
        affine, affine_source = talairach_affine(shape, zooms), "assumed"
    elif isinstance(header, nib.Nifti1Header):
        try:
            affine, affine_source = header.get_best_affine(), "header"
        except Exception as error:
            raise VolumeError(
                QuarantineReason.IMAGE_BAD_AFFINE, "an affine is damaged", found=type(error).__name__
            ) from error
        if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
            affine_source = "assumed"
    else:
        affine, affine_source = talairach_affine(shape, zooms), "assumed"
    if affine_source == "header" and int(header["xyzt_units"]) & 7 == 1:
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "voxel sizes are given in metres",
            found=f"{tuple(float(zoom) for zoom in zooms[:3])}",
            expected="millimetres",
            remedy="write the image anew with millimetres in its header",
        )
    final_shape, final_zooms, affine = _check_geometry(shape, zooms, affine)

    needed = math.prod(int(n) for n in shape) * dtype.itemsize
    if needed > MAXIMUM_BYTES or not 0 <= offset <= MAXIMUM_TRAILER:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE,
            "an image header is damaged",
            found=f"{needed} bytes of voxels from byte {offset}",
        )
    data = memoryview(files[data_name].fill(offset + needed))[offset : offset + needed]
    digests = [file.finish() for file in files.values()]
    if len(data) < needed:
        raise VolumeError(
            QuarantineReason.IMAGE_TRUNCATED,
            "an image ends early",
            found=f"{len(data)} bytes of voxels",
            expected=f"{needed} bytes",
            remedy="download the image again",
        )
    if not all(file.complete for file in files.values()):
        raise VolumeError(
            QuarantineReason.IMAGE_TRUNCATED, "a compressed image ends early", remedy="download the image again"
        )
    array = np.frombuffer(data, dtype=dtype)
    _check_values(array)
    swapped = array.dtype.byteorder == ">"
    little = array.astype(array.dtype.newbyteorder("<")).tobytes() if swapped else data
    return ImageFacts(
        shape=final_shape,
        zooms=final_zooms,
        orientation="".join(nib.aff2axcodes(affine)),
        dtype=str(dtype.newbyteorder("=")),
        data_sha256=hashlib.sha256(little).hexdigest(),
        source_sha256=hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        affine_source=affine_source,
        fingerprint=fingerprint(array.reshape(final_shape, order="F")),
    )


@dataclass
class _Frame:
    """One slice of a DICOM series."""

    position: npt.NDArray[np.float64]  # of the first voxel, millimetres, patient axes
    pixels: bytes


def _grouped(dataset: Any, frame: int, sequence: str, name: str) -> Any:
    """An attribute of one frame of a multi-frame file: its own group, the shared one, or the file's top level."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    for group in (
        *(groups[frame : frame + 1] if groups else ()),
        *(dataset.get("SharedFunctionalGroupsSequence") or ())[:1],
    ):
        inner = group.get(sequence)
        if inner and name in inner[0]:
            return inner[0][name].value
    return dataset[name].value


def _vector(values: Any, length: int) -> npt.NDArray[np.float64]:
    vector = np.asarray(values, dtype=float)
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise ValueError("not a vector")
    return vector


def _read_dicom(content: bytes) -> Any:
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if str(DeflatedExplicitVRLittleEndian).encode() + b"\0" in content[:2048]:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a DICOM file is deflated as a whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(content))


def _pixels(dataset: Any, frames: int) -> list[bytes]:
    """The voxels of every frame, decompressed."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    size = rows * columns * int(dataset.BitsAllocated) // 8
    if not 0 < size * frames <= MAXIMUM_BYTES:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "a DICOM header is damaged", found=f"{frames} x {size} bytes of voxels"
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        content = dataset.PixelData
        if len(content) < size * frames:
            raise VolumeError(
                QuarantineReason.IMAGE_TRUNCATED,
                "a DICOM slice ends early",
                found=f"{len(content)} bytes",
                expected=f"{size * frames} bytes",
            )
        return [content[frame * size : (frame + 1) * size] for frame in range(frames)]
    from pydicom.pixels import get_decoder

    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE,
            "DICOM slices are compressed in a way that cannot be checked",
            found=syntax.name,
            expected="uncompressed or RLE slices",
            remedy="convert the series to NIfTI, or decompress it",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.ascontiguousarray(dataset.pixel_array)
    if array.shape != ((rows, columns) if frames == 1 else (frames, rows, columns)):
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a DICOM slice holds other voxels than its header says")
    return [array[frame].tobytes() for frame in range(frames)] if frames > 1 else [array.tobytes()]


def _inspect_dicom(image: ImageFile, source: _Source) -> ImageFacts:
    """Geometry, completeness and hash of a DICOM series: one file per slice, or all slices in one enhanced file."""
    slices: list[_Frame] = []
    digests: list[str] = []
    first: Any = None
    orientation = spacing = np.zeros(0)
    total = 0
    if len(image.files) > MAXIMUM_DICOM_FILES:
        raise VolumeError(
            QuarantineReason.AMBIGUOUS_FILE, "a folder holds too many DICOM files", found=len(image.files)
        )
    for name in image.files:
        content = source.read(name, MAXIMUM_SLICE_FILE if len(image.files) > 4 else MAXIMUM_BYTES)
        try:
            dataset = _read_dicom(content)
            if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
                if "Rows" in dataset:
                    raise VolumeError(QuarantineReason.IMAGE_TRUNCATED, "a DICOM slice has no pixels")
                continue  # presentation states and reports that travel in the folder
            if int(dataset.get("SamplesPerPixel", 1)) != 1:
                raise VolumeError(
                    QuarantineReason.IMAGE_NOT_3D,
                    "voxels are not single numbers",
                    found=str(dataset.get("PhotometricInterpretation", "colours")),
                    expected="grey values",
                )
            count = int(dataset.get("NumberOfFrames", 1) or 1)
            pixels = _pixels(dataset, count)
            total += sum(map(len, pixels))
            if total > MAXIMUM_BYTES:
                raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a DICOM series is too large for one volume")
            own: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], _Frame]] = []
            for frame in range(count):
                own.append(
                    (
                        _vector(_grouped(dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6),
                        _vector(_grouped(dataset, frame, "PixelMeasuresSequence", "PixelSpacing"), 2),
                        _Frame(
                            _vector(_grouped(dataset, frame, "PlanePositionSequence", "ImagePositionPatient"), 3),
                            pixels[frame],
                        ),
                    )
                )
        except (VolumeError, MemoryError):
            raise
        except Exception as error:  # the DICOM library raises many unrelated kinds on damaged files
            raise VolumeError(
                QuarantineReason.IMAGE_UNREADABLE, "a DICOM slice cannot be read", found=type(error).__name__
            ) from error
        digests.append(hashlib.sha256(content).hexdigest())
        if first is None:
            first, orientation, spacing = dataset, own[0][0], own[0][1]
        elif dataset.get("SeriesInstanceUID") != first.get("SeriesInstanceUID"):
            raise VolumeError(QuarantineReason.AMBIGUOUS_FILE, "a folder holds slices of several DICOM series")
        elif (int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)) != (
            int(first.Rows),
            int(first.Columns),
            int(first.BitsAllocated),
        ):
            raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "DICOM slices differ in size or orientation")
        for frame_orientation, frame_spacing, slice_ in own:
            if not (
                np.allclose(frame_orientation, orientation, atol=1e-3)
                and np.allclose(frame_spacing, spacing, rtol=1e-2)
            ):
                raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "DICOM slices differ in size or orientation")
            slices.append(slice_)
    if first is None:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a folder holds no DICOM slices")
    if len(slices) == 1:
        raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "a DICOM series has a single slice")
    normal = np.cross(orientation[:3], orientation[3:])
    slices.sort(key=lambda item: float(item.position @ normal))
    gaps = np.diff([float(item.position @ normal) for item in slices])
    typical = float(np.median(gaps))
    if typical <= 0 or gaps.min() < 1e-3:
        raise VolumeError(QuarantineReason.AMBIGUOUS_FILE, "several DICOM slices lie at one place")
    if gaps.max() - gaps.min() > max(SLICE_GAP_TOLERANCE * typical, 0.02):
        raise VolumeError(
            QuarantineReason.IMAGE_TRUNCATED,
            "DICOM slices are missing",
            found=f"slice distances of {gaps.min():.2f}-{gaps.max():.2f} mm",
            expected=f"{typical:.2f} mm",
            remedy="download the series again",
        )
    row_spacing, column_spacing = (float(value) for value in spacing)
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * column_spacing
    affine[:3, 1] = orientation[3:] * row_spacing
    affine[:3, 2] = normal * typical
    affine[:3, 3] = slices[0].position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # patient axes of DICOM run to left and posterior
    shape, zooms, affine = _check_geometry(
        (int(first.Columns), int(first.Rows), len(slices)), (column_spacing, row_spacing, typical), affine
    )
    kind = np.dtype(
        f"{'i' if int(first.get('PixelRepresentation', 0)) else 'u'}{max(1, int(first.BitsAllocated) // 8)}"
    )
    digest = hashlib.sha256()
    ends: list[int] = []
    for item in slices:
        digest.update(item.pixels)
        values = np.frombuffer(item.pixels, dtype=kind)
        ends += [int(values.min()), int(values.max())]
    if min(ends) == max(ends):
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "all voxels are equal")
    strength = first.get("MagneticFieldStrength")
    return ImageFacts(
        shape=shape,
        zooms=zooms,
        orientation="".join(nib.aff2axcodes(affine)),
        dtype=kind.name,
        data_sha256=digest.hexdigest(),
        source_sha256=hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        affine_source="header",
        fingerprint=fingerprint(_stack(slices, kind, shape)),
        manufacturer=str(first.get("Manufacturer") or "") or None,
        scanner_model=str(first.get("ManufacturerModelName") or "") or None,
        field_strength_t=tesla(parse_float(str(strength)) or 0.0),
    )


def _stack(slices: Sequence[Any], kind: np.dtype[Any], shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """The voxels of a series; axes without meaning for whoever only looks at the content."""
    planes = [np.frombuffer(item.pixels, dtype=kind)[: shape[0] * shape[1]] for item in slices]
    return np.stack(planes).reshape(len(planes), shape[1], shape[0])


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
    try:
        with _Source(root, image) as source:
            return _inspect_dicom(image, source) if image.source_format == "dicom" else _inspect_nifti(image, source)
    except VolumeError:
        raise
    except MemoryError as error:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "an image does not fit into memory") from error
    except ArchiveError as error:
        detail = error.what if error.found is None else f"{error.what} ({error.found})"
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "an image cannot be read", found=detail) from error
    except (OSError, EOFError, KeyError, RuntimeError, NotImplementedError, ValueError, OverflowError) as error:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "an image cannot be read", found=type(error).__name__
        ) from error


def describe_path(path: Path) -> tuple[Path, ImageFile]:
    """The root and :class:`ImageFile` of a file, a pair, a DICOM folder or a zip of DICOM slices."""
    name = path.name.lower()
    if path.is_dir():
        files = tuple(
            sorted(
                p.relative_to(path.parent).as_posix()
                for p in path.rglob("*")
                if p.is_file() and not p.name.startswith(".")
            )
        )
        return path.parent, ImageFile(path.name, "dicom", files)
    if name.endswith(".zip"):
        with Archive(path) as archive:
            members = tuple(member.name for member in archive.members)
        niftis = [m for m in members if m.lower().endswith((".nii", ".nii.gz"))]
        if len(niftis) == 1:
            return path.parent, ImageFile(f"{path.name}{ZIP_SEPARATOR}{niftis[0]}", "nifti", (niftis[0],))
        return path.parent, ImageFile(f"{path.name}{ZIP_SEPARATOR}", "dicom", members)
    if name.endswith((".hdr", ".img")):
        pair = tuple(p.name for p in (path.with_suffix(".hdr"), path.with_suffix(".img")) if p.exists())
        signature = path.with_suffix(".hdr").read_bytes()[344:347] if path.with_suffix(".hdr").exists() else b""
        return path.parent, ImageFile(path.name, "nifti_pair" if signature == b"ni1" else "analyze", pair)
    return path.parent, ImageFile(path.name, "nifti", (path.name,))


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
    try:
        root, image = describe_path(Path(path))
    except (OSError, ArchiveError) as error:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "an image cannot be read", where=path, found=type(error).__name__
        ) from error
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
