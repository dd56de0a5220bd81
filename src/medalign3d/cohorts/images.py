"""Which files are usable three-dimensional images: geometry, completeness, content and hashes, without resampling.

An image is accepted when it is readable and complete, three-dimensional once trailing axes of length one are gone, at
least 60 voxels along every axis, with voxels of 0.4-2.0 mm, finite values that are not all equal, and an affine that
can be inverted and is not the identity of a header that was never filled in.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import multiprocessing
import os
import warnings
import zipfile
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

from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.errors import VolumeError

MINIMUM_AXIS = 60  # voxels
MINIMUM_ZOOM, MAXIMUM_ZOOM = 0.4, 2.0  # millimetres
ZOOM_TOLERANCE = 1e-3
MAXIMUM_BYTES = 4 << 30  # a header that claims more than this is damaged
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
    if np.allclose(rotation, np.eye(3), atol=1e-6) and header_says_otherwise:
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
        self.archive: zipfile.ZipFile | None = None
        if ZIP_SEPARATOR in image.source_path:
            self.archive = zipfile.ZipFile(root / image.source_path.split(ZIP_SEPARATOR, 1)[0])

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self.archive is not None:
            self.archive.close()

    def read(self, name: str) -> bytes:
        if self.archive is not None:
            return self.archive.read(name)
        return (self.root / name).read_bytes()


def _gunzip(content: bytes) -> tuple[bytes, bool]:
    """Decompressed bytes and whether the stream was complete."""
    out = bytearray()
    rest = content
    while rest:
        decompressor = zlib.decompressobj(wbits=31)
        try:
            out += decompressor.decompress(rest)
        except zlib.error as error:
            if out and rest.strip(b"\x00") == b"":  # padding behind the last member is legal
                break
            raise VolumeError(
                QuarantineReason.IMAGE_UNREADABLE, "a compressed file is damaged", found=str(error)
            ) from error
        if not decompressor.eof:
            return bytes(out), False
        rest = decompressor.unused_data
    return bytes(out), True


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
    digests: list[str] = []
    contents: dict[str, bytes] = {}
    complete = True
    for name in dict.fromkeys((header_name, data_name)):
        raw = source.read(name)
        digests.append(hashlib.sha256(raw).hexdigest())
        if raw[:2] == b"\x1f\x8b":
            raw, whole = _gunzip(raw)
            complete = complete and whole
        contents[name] = raw
    header_bytes = contents[header_name]
    if len(header_bytes) < 348:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE if complete else QuarantineReason.IMAGE_TRUNCATED,
            "an image has no header",
            found=f"{len(header_bytes)} bytes",
            expected="at least 348",
        )
    header: Any
    try:
        if int.from_bytes(header_bytes[:4], "little") == 540 or int.from_bytes(header_bytes[:4], "big") == 540:
            header = nib.Nifti2Header.from_fileobj(io.BytesIO(header_bytes), check=False)
        elif header_bytes[344:347] in (b"n+1", b"ni1"):
            kind = nib.Nifti1Header if header_bytes[344:347] == b"n+1" else nib.nifti1.Nifti1PairHeader
            header = kind.from_fileobj(io.BytesIO(header_bytes), check=False)
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
    final_shape, final_zooms, affine = _check_geometry(shape, zooms, affine)

    needed = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if needed > MAXIMUM_BYTES:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "an image header is damaged", found=f"{needed} bytes of data"
        )
    data = memoryview(contents[data_name])[offset : offset + needed]
    if len(data) < needed:
        raise VolumeError(
            QuarantineReason.IMAGE_TRUNCATED,
            "an image ends early",
            found=f"{len(data)} bytes of voxels",
            expected=f"{needed} bytes",
            remedy="download the image again",
        )
    if not complete:
        raise VolumeError(
            QuarantineReason.IMAGE_TRUNCATED, "a compressed image ends early", remedy="download the image again"
        )
    array = np.frombuffer(data, dtype=dtype)
    _check_values(array)
    little = array if array.dtype.byteorder in ("<", "|", "=") else array.astype(array.dtype.newbyteorder("<"))
    return ImageFacts(
        shape=final_shape,
        zooms=final_zooms,
        orientation="".join(nib.aff2axcodes(affine)),
        dtype=str(dtype.newbyteorder("=")),
        data_sha256=hashlib.sha256(little.tobytes()).hexdigest(),
        source_sha256=hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        affine_source=affine_source,
    )


def _inspect_dicom(image: ImageFile, source: _Source) -> ImageFacts:
    """Geometry, completeness and hash of a DICOM series (one file per slice)."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    slices: list[tuple[float, Any]] = []
    digests: list[str] = []
    first: Any = None
    normal: npt.NDArray[np.float64] | None = None
    varies = False
    for name in image.files:
        content = source.read(name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(io.BytesIO(content))
            if "PixelData" not in dataset:
                if "Rows" in dataset:
                    raise VolumeError(QuarantineReason.IMAGE_TRUNCATED, "a DICOM slice has no pixels")
                continue  # presentation states and reports that travel in the folder
            if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
                raise VolumeError(
                    QuarantineReason.IMAGE_UNREADABLE,
                    "a DICOM file holds several frames",
                    expected="one file per slice",
                    remedy="convert the series to NIfTI",
                )
            orientation = np.asarray(dataset.ImageOrientationPatient, dtype=float)
            position = np.asarray(dataset.ImagePositionPatient, dtype=float)
            rows, columns = int(dataset.Rows), int(dataset.Columns)
        except VolumeError:
            raise
        except (InvalidDicomError, AttributeError, ValueError, TypeError, EOFError, OSError, KeyError) as error:
            raise VolumeError(
                QuarantineReason.IMAGE_UNREADABLE, "a DICOM slice cannot be read", found=type(error).__name__
            ) from error
        digests.append(hashlib.sha256(content).hexdigest())
        if first is None:
            first = dataset
            normal = np.cross(orientation[:3], orientation[3:])
        elif dataset.get("SeriesInstanceUID") != first.get("SeriesInstanceUID"):
            raise VolumeError(QuarantineReason.AMBIGUOUS_FILE, "a folder holds slices of several DICOM series")
        elif (rows, columns) != (int(first.Rows), int(first.Columns)) or not np.allclose(
            orientation, np.asarray(first.ImageOrientationPatient, dtype=float), atol=1e-3
        ):
            raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "DICOM slices differ in size or orientation")
        if not dataset.file_meta.TransferSyntaxUID.is_compressed:
            expected = rows * columns * int(dataset.get("SamplesPerPixel", 1)) * int(dataset.BitsAllocated) // 8
            if len(dataset.PixelData) < expected:
                raise VolumeError(
                    QuarantineReason.IMAGE_TRUNCATED,
                    "a DICOM slice ends early",
                    found=f"{len(dataset.PixelData)} bytes",
                    expected=f"{expected} bytes",
                )
            varies = varies or len(set(np.unique(np.frombuffer(dataset.PixelData, dtype=np.uint8)[:expected]))) > 1
        else:
            varies = True  # the content of compressed slices is checked when they are converted
        assert normal is not None
        slices.append((float(position @ normal), dataset))
    if first is None or normal is None:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a folder holds no DICOM slices")
    if len(slices) == 1:
        raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "a DICOM series has a single slice")
    slices.sort(key=lambda item: item[0])
    gaps = np.diff([place for place, _ in slices])
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
    row_spacing, column_spacing = (float(value) for value in first.PixelSpacing)
    orientation = np.asarray(first.ImageOrientationPatient, dtype=float)
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * column_spacing
    affine[:3, 1] = orientation[3:] * row_spacing
    affine[:3, 2] = normal * typical
    affine[:3, 3] = np.asarray(slices[0][1].ImagePositionPatient, dtype=float)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # patient axes of DICOM run to left and posterior
    shape, zooms, affine = _check_geometry(
        (int(first.Columns), int(first.Rows), len(slices)), (column_spacing, row_spacing, typical), affine
    )
    if not varies:
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "all voxels are equal")
    digest = hashlib.sha256()
    for _, dataset in slices:
        digest.update(dataset.PixelData)
    strength = first.get("MagneticFieldStrength")
    return ImageFacts(
        shape=shape,
        zooms=zooms,
        orientation="".join(nib.aff2axcodes(affine)),
        dtype=f"{'int' if int(first.get('PixelRepresentation', 0)) else 'uint'}{int(first.BitsAllocated)}",
        data_sha256=digest.hexdigest(),
        source_sha256=hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        affine_source="header",
        manufacturer=str(first.get("Manufacturer") or "") or None,
        scanner_model=str(first.get("ManufacturerModelName") or "") or None,
        field_strength_t=tesla(float(strength)) if strength else None,
    )


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
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        gzip.BadGzipFile,
        EOFError,
        KeyError,
        RuntimeError,
        NotImplementedError,
        ValueError,
    ) as error:
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
        with zipfile.ZipFile(path) as archive:
            members = tuple(sorted(info.filename for info in archive.infolist() if not info.is_dir()))
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
    except (OSError, zipfile.BadZipFile) as error:
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
