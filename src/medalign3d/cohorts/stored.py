"""Reading a three-dimensional image as it is stored, and the rules by which it is accepted.

Ingest and normalization both read through :func:`read_stored`, so that their verdicts on a file are the same. An image
is accepted when it is readable and complete, three-dimensional once trailing axes of length one are gone, at least 60
voxels along every axis, with voxels of 0.4-2.0 mm, finite values that are not all equal, and an affine that can be
inverted, is not sheared beyond what a scanner does, and is not the identity of a header that was never filled in.

Formats: NIfTI-1 and -2, pairs of files, Analyze 7.5, DICOM series (one file a slice, or enhanced files of many frames),
each also inside a zip or tar. Compressed data is read to its end, because only there stands its checksum.

Nothing of a header but geometry, number type and scanner leaves this module; messages carry no text of a header and no
file name, both of which may identify a person.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medalign3d.cohorts.archives import Archive, ArchiveError, Gunzip
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.errors import VolumeError
from medalign3d.files import CHUNK_BYTES

MINIMUM_AXIS = 60  # voxels
MINIMUM_ZOOM, MAXIMUM_ZOOM = 0.4, 2.0  # millimetres
ZOOM_TOLERANCE = 1e-3
CREDIBLE_ZOOM = 0.05, 50.0  # millimetres; beyond them the unit is another one
MINIMUM_SQUARENESS = 0.7  # volume of a voxel over that of a box with its edges; a gantry tilt of 30 degrees has 0.87
MAXIMUM_ORIGIN = 1e5  # millimetres
MAXIMUM_BYTES = 1 << 30  # voxels of one image: 512 x 512 x 512 of eight bytes; a header that claims more is damaged
MAXIMUM_TRAILER = 16 << 20  # bytes behind the voxels (extensions, padding) that a file may have
MAXIMUM_SLICE_FILE = 256 << 20
MAXIMUM_DICOM_FILES = 20_000
SLICE_GAP_TOLERANCE = 0.1  # share of the slice distance
CONTRADICTION_DEGREES = 5.0  # between qform and sform
ZIP_SEPARATOR = "!"

_NIFTI = (".nii", ".nii.gz")
_HEADER = (".hdr", ".hdr.gz")
_PIXELS = (".img", ".img.gz")
_DICOM = (".dcm", ".ima", ".dicom")
_ARCHIVE = (".zip", ".tar", ".tar.gz", ".tgz")
_NO_SLICE = re.compile(
    r"(?i)(?:.*\.(?:txt|json|xml|csv|tsv|md|html?|pdf|gif|png|jpe?g|bvals?|bvecs?|zip|tar|t?gz|nii|hdr|img|xlsx?)|"
    r"dicomdir|thumbs\.db)"
)
_SAGITTAL_OASIS = re.compile(r"(?:mpr_n\d+_anon_sbj_111|mpr-\d+_anon)$", re.IGNORECASE)
_T1_WORDS = re.compile(r"mp.?rage|spgr|t1|bravo|tfe|mdeft|3d.?flash", re.IGNORECASE)
_OTHER_WORDS = re.compile(
    r"local[iy][sz]er|scout|survey|3.?plane|\bloc\b|phase|bold|fmri|dti|dwi|flair|t2|\bpd\b|swi|asl|calibration",
    re.IGNORECASE,
)
_OTHER_KINDS = {"LOCALIZER", "MPR", "PROJECTION IMAGE", "PHASE", "MIP", "MOSAIC", "P"}


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
        The number that stands for "no measurement" in a DICOM series.
    bits
        Of a DICOM series: bits that hold the number, and the place of the highest of them.
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
    padding: int | None = None
    bits: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return self.voxels.shape[0], self.voxels.shape[1], self.voxels.shape[2]

    def data_sha256(self) -> str:
        """SHA-256 of the voxels as stored, little-endian, first axis fastest: equal in any container."""
        return hashlib.sha256(np.ascontiguousarray(self.voxels.T).data).hexdigest()

    def values(self) -> npt.NDArray[np.float32]:
        """The scaled voxels, float32, shape (X, Y, Z)."""
        voxels = self.voxels
        if self.bits is not None:
            voxels = _own_bits(voxels, *self.bits)
        with np.errstate(over="ignore", invalid="ignore"):
            data = voxels.astype(np.float32)
            if self.padding is not None:
                padded = self.voxels == self.padding
                if padded.any() and not padded.all():
                    data[padded] = data[~padded].min()
            if not (np.all(np.equal(self.slope, 1.0)) and np.all(np.equal(self.intercept, 0.0))):
                data *= np.float32(self.slope)
                data += np.float32(self.intercept)
        return data


def _own_bits(voxels: npt.NDArray[Any], stored: int, highest: int) -> npt.NDArray[Any]:
    """The numbers of a DICOM slice without what else its words hold (overlays in the upper bits)."""
    width = 8 * voxels.dtype.itemsize
    above = width - 1 - highest
    if stored == width or not 0 < stored <= highest + 1 <= width:
        return voxels
    # Up against the upper end and down again: the second shift extends the sign where there is one.
    return (voxels << above) >> (width - stored)


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


def _sizes(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel sizes in millimetres."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def _check_affine(affine: npt.NDArray[np.float64], header_zooms: Sequence[float] | None) -> None:
    """Refuse an affine that cannot be how a head was scanned.

    Raises
    ------
    VolumeError
        ``IMAGE_BAD_AFFINE``.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise VolumeError(QuarantineReason.IMAGE_BAD_AFFINE, "an affine is not a finite 4x4 matrix")
    rotation = affine[:3, :3]
    sizes = np.sqrt((rotation**2).sum(axis=0))
    volume = abs(float(np.linalg.det(rotation)))
    if sizes.min() < 1e-9 or volume < 1e-3 * float(np.prod(sizes)):
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE, "an affine cannot be inverted", found=f"determinant {volume:.3g}"
        )
    if sizes.min() < CREDIBLE_ZOOM[0] or sizes.max() > CREDIBLE_ZOOM[1]:
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "voxel sizes are not given in millimetres",
            found=" x ".join(f"{size:.4g}" for size in sizes),
            expected=f"{MINIMUM_ZOOM}-{MAXIMUM_ZOOM}",
            remedy="write the image anew with millimetres in its header",
        )
    if volume < MINIMUM_SQUARENESS * float(np.prod(sizes)):
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "an affine is sheared",
            found=f"axes that keep {volume / float(np.prod(sizes)):.0%} of a box's volume",
            expected=f"at least {MINIMUM_SQUARENESS:.0%}",
        )
    if np.abs(affine[:3, 3]).max() > MAXIMUM_ORIGIN:
        raise VolumeError(QuarantineReason.IMAGE_BAD_AFFINE, "an affine is out of proportion", found="its origin")
    if header_zooms is None:
        return
    # Flipped or reordered axes of exactly 1 mm are the same mistake as the identity.
    unit_axes = np.isin(np.abs(rotation), (0.0, 1.0)).all() and np.allclose(sizes, 1.0)
    zooms = [abs(float(zoom)) for zoom in header_zooms]
    if unit_axes and not max(abs(zoom - 1.0) for zoom in zooms) <= 0.01:
        raise VolumeError(
            QuarantineReason.IMAGE_BAD_AFFINE,
            "an affine is the identity although voxels are not 1 mm",
            found=" x ".join(f"{zoom:.4g}" for zoom in zooms),
        )


def check_geometry(
    shape: Sequence[int], affine: npt.NDArray[np.float64], header_zooms: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Refuse grids that cannot be a head scan; reads no voxels.

    Parameters
    ----------
    shape
        Three axes.
    affine
        4x4, voxel index to millimetres.
    header_zooms
        Voxel sizes of the header, where they stand apart from the affine.

    Returns
    -------
    tuple
        Voxel sizes in millimetres.

    Raises
    ------
    VolumeError
        ``IMAGE_BAD_AFFINE`` (singular, strongly sheared, not in millimetres, the identity of a header that was never
        filled in), ``IMAGE_NOT_3D`` (one slice), ``IMAGE_TOO_THICK`` (an axis under 60 voxels, or a voxel size
        outside 0.4-2.0 mm).
    """
    affine = np.asarray(affine, dtype=float)
    _check_affine(affine, header_zooms)
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if min(shape) == 1:
        raise VolumeError(
            QuarantineReason.IMAGE_NOT_3D, "an image is a single slice", found=f"shape {tuple(int(n) for n in shape)}"
        )
    if sizes.max() > MAXIMUM_ZOOM + ZOOM_TOLERANCE or sizes.min() < MINIMUM_ZOOM - ZOOM_TOLERANCE:
        raise VolumeError(
            QuarantineReason.IMAGE_TOO_THICK,
            "a voxel size is out of range",
            found=" x ".join(f"{size:.3g}" for size in sizes) + " mm",
            expected=f"{MINIMUM_ZOOM}-{MAXIMUM_ZOOM} mm",
        )
    if min(shape) < MINIMUM_AXIS:
        raise VolumeError(
            QuarantineReason.IMAGE_TOO_THICK,
            "an axis has too few voxels",
            found=f"shape {tuple(int(n) for n in shape)}",
            expected=f"at least {MINIMUM_AXIS} voxels along every axis",
        )
    return _sizes(affine)


def _check_values(
    array: npt.NDArray[Any], slope: float | npt.NDArray[Any] = 1.0, intercept: float | npt.NDArray[Any] = 0.0
) -> None:
    """Refuse voxels that hold no picture; ``array`` has any shape."""
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "voxels are not finite numbers")
    if low == high:
        raise VolumeError(QuarantineReason.IMAGE_EMPTY, "all voxels are equal")
    if isinstance(slope, float) and isinstance(intercept, float):
        with np.errstate(over="ignore"):
            ends = np.array([low * slope + intercept, high * slope + intercept]).astype(np.float32)
        if not np.isfinite(ends).all():
            raise VolumeError(QuarantineReason.IMAGE_EMPTY, "voxels are too large for numbers of 32 bits")
        if ends[0] == ends[1]:
            raise VolumeError(QuarantineReason.IMAGE_EMPTY, "all voxels are equal once they are scaled")


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


# ---------------------------------------------------------------------------------------------------------------------
# NIfTI and Analyze


def _damaged(found: object = None) -> VolumeError:
    return VolumeError(QuarantineReason.IMAGE_UNREADABLE, "an image header is damaged", found=found)


def _best_affine(
    header: Any, zooms: Sequence[float]
) -> tuple[npt.NDArray[np.float64], Literal["header", "assumed"], list[str]]:
    """The affine of a NIfTI header: its sform, its qform where the sform is unusable, else what the format assumes.

    Raises
    ------
    VolumeError
        ``IMAGE_BAD_AFFINE``.
    """
    forms: list[tuple[str, npt.NDArray[np.float64]]] = []
    refusal: VolumeError | None = None
    for name, code in (("sform", "sform_code"), ("qform", "qform_code")):
        if int(header[code]) <= 0:
            continue
        try:
            form = header.get_sform() if name == "sform" else header.get_qform()
            affine = np.asarray(form, dtype=float)
            _check_affine(affine, zooms)
        except VolumeError as error:
            refusal = refusal or error
        except Exception as error:  # damaged quaternions and the like
            refusal = refusal or VolumeError(
                QuarantineReason.IMAGE_BAD_AFFINE, "an affine is damaged", found=type(error).__name__
            )
            refusal.__cause__ = error
        else:
            forms.append((name, affine))
    if not forms and refusal is not None:
        raise refusal
    if not forms:
        return np.asarray(header.get_base_affine(), dtype=float), "assumed", []
    remarks = []
    if refusal is not None:
        remarks.append(f"one of the header's two affines is unusable; its {forms[0][0]} is used")
    if len(forms) == 2:
        remarks += _contradiction(forms[0][1], forms[1][1])
    sizes = np.sqrt((forms[0][1][:3, :3] ** 2).sum(axis=0))
    if not all(abs(abs(float(zoom)) - size) <= 0.05 * size for zoom, size in zip(zooms, sizes, strict=True)):
        remarks.append("voxel sizes of the header differ from those of the affine, which is used")
    return forms[0][1], "header", remarks


def _contradiction(sform: npt.NDArray[np.float64], qform: npt.NDArray[np.float64]) -> list[str]:
    """What is wrong between the two affines of a header, of which the sform counts."""
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        return ["qform and sform disagree on which side is left; the sform is used"]
    turns = []
    for affine in (sform, qform):
        left, _, right = np.linalg.svd(affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
        turns.append(left @ right)
    angle = math.degrees(math.acos(float(np.clip((np.trace(turns[0].T @ turns[1]) - 1) / 2, -1, 1))))
    if angle > CONTRADICTION_DEGREES:
        return [f"qform and sform differ by {angle:.0f} degrees; the sform is used"]
    return []


def _scaling(header: Any) -> tuple[float, float]:
    """Slope and intercept; a slope of zero or none at all means that voxels are not scaled (NIfTI-1 standard)."""
    if "scl_slope" not in header:
        return 1.0, 0.0
    slope = float(header["scl_slope"])
    intercept = float(header["scl_inter"]) if "scl_inter" in header else 0.0
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise _damaged("an intercept that is no number")
    return slope, intercept


def _parse_header(content: bytes, *, pair: bool, named_analyze: bool) -> Any:
    """The header of a NIfTI-1, NIfTI-2 or Analyze file, by its first bytes."""
    if 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")):
        return (nib.nifti2.Nifti2PairHeader if pair else nib.Nifti2Header).from_fileobj(
            io.BytesIO(content + bytes(4)), check=False
        )
    if content[344:347] in (b"n+1", b"ni1"):
        kind = nib.nifti1.Nifti1PairHeader if pair or content[344:347] == b"ni1" else nib.Nifti1Header
        return kind.from_fileobj(io.BytesIO(content[:348] + bytes(4)), check=False)
    if named_analyze or pair:
        return nib.spm99analyze.Spm99AnalyzeHeader.from_fileobj(io.BytesIO(content[:348]), check=False)
    raise VolumeError(
        QuarantineReason.IMAGE_UNREADABLE,
        "a file is no NIfTI image",
        found="another signature",
        expected="the signature n+1",
    )


def _read_nifti(image: ImageFile, source: _Source, accept: bool) -> Stored:
    """Read a NIfTI file, a NIfTI pair or an Analyze pair from its bytes."""
    header_name = next((name for name in image.files if not name.lower().endswith(_PIXELS)), None)
    data_name = next((name for name in image.files if name.lower().endswith(_PIXELS)), header_name)
    paired = image.source_format in ("analyze", "nifti_pair")
    if header_name is None or data_name is None or (paired and data_name == header_name):
        raise VolumeError(
            QuarantineReason.IMAGE_WITHOUT_FILE,
            "a pair of files is incomplete",
            found=f"{len(image.files)} files",
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
    pair = data_name != header_name
    try:
        header = _parse_header(header_bytes, pair=pair, named_analyze=image.source_format == "analyze")
        if int(header["sizeof_hdr"]) not in (348, 540):
            raise _damaged()
        shape = tuple(int(n) for n in header.get_data_shape())
        zooms = [float(zoom) for zoom in header.get_zooms()]
        dtype = header.get_data_dtype()
        offset = max(0, int(float(header["vox_offset"]))) if "vox_offset" in header else 0
        if not pair:
            offset = int(header.get_data_offset())
        slope, intercept = _scaling(header)
    except VolumeError:
        raise
    except Exception as error:  # header parsers raise many unrelated kinds on random bytes
        raise _damaged(type(error).__name__) from error
    if min(shape, default=0) < 1 or dtype.itemsize == 0:
        raise _damaged(f"shape {shape}")
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise VolumeError(
            QuarantineReason.IMAGE_NOT_3D, "voxels are not single numbers", found=dtype.kind, expected="grey values"
        )
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise VolumeError(
            QuarantineReason.IMAGE_NOT_3D,
            "an image is not three-dimensional",
            found=f"shape {shape}",
            expected="three axes",
        )
    zooms = zooms[:3]

    affine: npt.NDArray[np.float64]
    affine_source: Literal["header", "assumed"] = "assumed"
    remarks: list[str] = []
    is_nifti = isinstance(header, nib.Nifti1Header)
    coded = is_nifti and (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0)
    rule = image.orientation_rule
    if rule == "header" and not coded:
        rule = orientation_rule(header_name)
    if rule == "sagittal":
        affine = sagittal_affine(shape, [abs(zoom) for zoom in zooms])
    elif rule == "talairach" or not is_nifti:
        affine = talairach_affine(shape, [abs(zoom) for zoom in zooms])
    else:
        affine, affine_source, remarks = _best_affine(header, zooms)
    if not accept:
        final_zooms = _sizes(affine)
    else:
        final_zooms = check_geometry(shape, affine, zooms)
        if affine_source == "header" and int(header["xyzt_units"]) & 7 in (1, 3):
            remarks.append("the header's unit of length is not the millimetre, but its sizes are")

    needed = math.prod(shape) * dtype.itemsize
    if needed > MAXIMUM_BYTES or not 0 <= offset <= MAXIMUM_TRAILER:
        raise _damaged(f"{needed} bytes of voxels from byte {offset}")
    content = files[data_name].fill(offset + needed)
    digests = tuple(file.finish() for file in files.values())
    if len(content) < offset + needed:
        raise VolumeError(
            QuarantineReason.IMAGE_TRUNCATED,
            "an image ends early",
            found=f"{max(0, len(content) - offset)} bytes of voxels",
            expected=f"{needed} bytes",
            remedy="download the image again",
        )
    if not all(file.complete for file in files.values()):
        raise VolumeError(
            QuarantineReason.IMAGE_TRUNCATED, "a compressed image ends early", remedy="download the image again"
        )
    flat = np.frombuffer(content, dtype=dtype, count=math.prod(shape), offset=offset)
    if dtype.newbyteorder("<") != dtype:
        flat = flat.astype(dtype.newbyteorder("<"))
    if accept:
        _check_values(flat, slope, intercept)
    source_format = "analyze" if not is_nifti else "nifti_pair" if pair else "nifti"
    return Stored(
        voxels=flat.reshape(shape, order="F"),
        slope=slope,
        intercept=intercept,
        affine=affine,
        zooms=final_zooms,
        affine_source=affine_source,
        source_format=source_format,
        digests=digests,
        remarks=tuple(remarks),
    )


def orientation_rule(name: str) -> str:
    """How an image lies whose header does not say so, by its name: the native files of OASIS-1 are sagittal.

    >>> orientation_rule("OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr"), orientation_rule("OAS1_0001_MR1_mpr-2_anon.img")
    ('sagittal', 'sagittal')
    >>> orientation_rule("OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc.hdr")
    'header'
    """
    stem = re.sub(r"(?i)(?:\.nifti)?\.(?:nii|hdr|img)(?:\.gz)?$", "", PurePosixPath(name).name)
    return "sagittal" if _SAGITTAL_OASIS.search(stem) else "header"


# ---------------------------------------------------------------------------------------------------------------------
# DICOM


@dataclass
class _Frame:
    """One slice of a DICOM series."""

    position: npt.NDArray[np.float64]  # of the first voxel, millimetres, patient axes
    orientation: npt.NDArray[np.float64]
    spacing: npt.NDArray[np.float64]
    pixels: bytes
    slope: float
    intercept: float


@dataclass
class _Series:
    """Slices of one DICOM series that were read so far."""

    first: Any
    frames: list[_Frame]
    digests: list[str]

    @property
    def is_other(self) -> bool:
        """Whether it says of itself that it is no T1-weighted volume: a localiser, a projection, another weighting."""
        kinds = {str(kind).upper() for kind in _several(self.first.get("ImageType"))}
        words = " ".join(str(self.first.get(name, "")) for name in ("SeriesDescription", "ProtocolName"))
        named = bool(_OTHER_WORDS.search(words)) and not _T1_WORDS.search(words)
        return named or bool(kinds & _OTHER_KINDS)


def _several(value: Any) -> Sequence[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


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


def _number(dataset: Any, frame: int, name: str, default: float) -> float:
    """Rescale slope or intercept of a frame."""
    try:
        value = float(_grouped(dataset, frame, "PixelValueTransformationSequence", name))
    except (KeyError, TypeError, ValueError):
        return default
    return value if math.isfinite(value) and (value != 0 or name != "RescaleSlope") else default


def _is_dicom(content: bytes) -> bool:
    """By the signature; files of old scanners have none and begin with their first group."""
    return content[128:132] == b"DICM" or content[:2] in (b"\x08\x00", b"\x02\x00")


def _parse_dicom(content: bytes) -> Any:
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if str(DeflatedExplicitVRLittleEndian).encode() + b"\0" in content[:2048]:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a DICOM file is deflated as a whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(content), force=_is_dicom(content))


def _syntax(dataset: Any) -> Any:
    """The transfer syntax; where a file has none, that by which it was read."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    found = getattr(dataset.file_meta, "TransferSyntaxUID", None) if hasattr(dataset, "file_meta") else None
    if found is not None:
        return found
    implicit, little = dataset.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _pixels(dataset: Any, frames: int) -> list[bytes]:
    """The voxels of every frame, decompressed, little-endian."""
    rows, columns, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    size = rows * columns * bits // 8
    if bits not in (8, 16, 32) or not 0 < size * frames <= MAXIMUM_BYTES:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "a DICOM header is damaged", found=f"{frames} x {size} bytes of voxels"
        )
    syntax = _syntax(dataset)
    if not syntax.is_compressed:
        content = dataset.PixelData
        if len(content) < size * frames:
            raise VolumeError(
                QuarantineReason.IMAGE_TRUNCATED,
                "a DICOM slice ends early",
                found=f"{len(content)} bytes",
                expected=f"{size * frames} bytes",
            )
        if not syntax.is_little_endian and bits > 8:
            content = np.frombuffer(content, f">u{bits // 8}").astype(f"<u{bits // 8}").tobytes()
        return [content[frame * size : (frame + 1) * size] for frame in range(frames)]
    from pydicom.pixels import get_decoder

    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE,
            "DICOM slices are compressed in a way that cannot be read",
            found=syntax.name if not syntax.is_private and syntax.name != str(syntax) else "an unknown method",
            expected="uncompressed, RLE or JPEG 2000 slices",
            remedy="convert the series to NIfTI, or decompress it",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.ascontiguousarray(dataset.pixel_array)
    if array.shape != ((rows, columns) if frames == 1 else (frames, rows, columns)):
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a DICOM slice holds other voxels than its header says")
    return [array[frame].tobytes() for frame in range(frames)] if frames > 1 else [array.tobytes()]


def _read_slice_file(content: bytes) -> tuple[Any, list[_Frame]] | None:
    """The slices of one DICOM file; None for presentation states and reports that travel in the folder."""
    try:
        dataset = _parse_dicom(content)
        if "PixelData" not in dataset:
            if "Rows" in dataset:
                raise VolumeError(QuarantineReason.IMAGE_TRUNCATED, "a DICOM slice has no pixels")
            return None
        if int(dataset.get("SamplesPerPixel", 1)) != 1:
            raise VolumeError(
                QuarantineReason.IMAGE_NOT_3D,
                "voxels are not single numbers",
                found="several samples a voxel",
                expected="grey values",
            )
        count = int(dataset.get("NumberOfFrames", 1) or 1)
        pixels = _pixels(dataset, count)
        frames = [
            _Frame(
                _vector(_grouped(dataset, frame, "PlanePositionSequence", "ImagePositionPatient"), 3),
                _vector(_grouped(dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6),
                _vector(_grouped(dataset, frame, "PixelMeasuresSequence", "PixelSpacing"), 2),
                pixels[frame],
                _number(dataset, frame, "RescaleSlope", 1.0),
                _number(dataset, frame, "RescaleIntercept", 0.0),
            )
            for frame in range(count)
        ]
    except (VolumeError, MemoryError):
        raise
    except Exception as error:  # the DICOM library raises many unrelated kinds on damaged files
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "a DICOM slice cannot be read", found=type(error).__name__
        ) from error
    return dataset, frames


def _the_series(found: Sequence[_Series]) -> _Series:
    """The one T1-weighted volume among the series of a folder.

    Series that say they are something else (localisers, other weightings, projections) and those of few slices are left
    out where others remain.
    """
    kept = list(found)
    for rule in (
        lambda series: not series.is_other,
        lambda series: len(series.frames) >= MINIMUM_AXIS,
    ):
        kept = [series for series in kept if rule(series)] or kept
    if len(kept) > 1:
        raise VolumeError(
            QuarantineReason.AMBIGUOUS_FILE,
            "a folder holds slices of several DICOM series",
            found=f"{len(kept)} that may be meant",
            remedy="name one slice of the series that is meant, or put it into a folder of its own",
        )
    if len(found) > 1 and kept[0].is_other:
        raise VolumeError(
            QuarantineReason.NOT_T1, "no T1 series is among the DICOM files of a folder", found=f"{len(found)} series"
        )
    return kept[0]


def _read_dicom(image: ImageFile, source: _Source, accept: bool) -> Stored:
    """Geometry, completeness and voxels of a DICOM series: one file per slice, or all slices in enhanced files."""
    if len(image.files) > MAXIMUM_DICOM_FILES:
        raise VolumeError(
            QuarantineReason.AMBIGUOUS_FILE, "a folder holds too many DICOM files", found=len(image.files)
        )
    found: dict[str, _Series] = {}
    total = 0
    # A slice that is given in place of its folder says which series is meant.
    meant = image.source_path.rpartition(ZIP_SEPARATOR)[2]
    one = meant in image.files
    for name in sorted(image.files, key=lambda name: name != meant):
        content = source.read(name, MAXIMUM_SLICE_FILE if len(image.files) > 4 else MAXIMUM_BYTES)
        if not _is_dicom(content) and not name.lower().endswith(_DICOM):
            continue  # something else that lies in the folder
        parsed = _read_slice_file(content)
        if parsed is None:
            continue
        dataset, frames = parsed
        if one and found and str(dataset.get("SeriesInstanceUID")) not in found:
            continue
        total += sum(len(frame.pixels) for frame in frames)
        if total > MAXIMUM_BYTES:
            raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a DICOM series is too large for one volume")
        digest = hashlib.sha256(content).hexdigest()
        series = found.setdefault(str(dataset.get("SeriesInstanceUID")), _Series(dataset, [], []))
        if dataset is not series.first:
            del dataset["PixelData"]
        series.frames += frames
        series.digests.append(digest)
        same = ("Rows", "Columns", "BitsAllocated", "PixelRepresentation")
        if any(dataset.get(name) != series.first.get(name) for name in same):
            raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "DICOM slices differ in size or orientation")
    if not found:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a folder holds no DICOM slices")
    return _stack(_the_series(list(found.values())), accept)


def _stack(series: _Series, accept: bool) -> Stored:
    """A series as one volume, its slices sorted by where they lie."""
    first, frames = series.first, series.frames
    for frame in frames:
        if not (
            np.allclose(frame.orientation, frames[0].orientation, atol=1e-3)
            and np.allclose(frame.spacing, frames[0].spacing, rtol=1e-2)
        ):
            raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "DICOM slices differ in size or orientation")
    if len(frames) == 1:
        raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "a DICOM series has a single slice")
    orientation = frames[0].orientation
    normal = np.cross(orientation[:3], orientation[3:])
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    gaps = np.diff([float(frame.position @ normal) for frame in frames])
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
    # Where the gantry was tilted, slices are displaced along themselves, too: the step is not along the normal.
    positions = np.stack([frame.position for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    if np.abs(positions - positions[0] - np.arange(len(frames))[:, None] * step).max() > max(1.0, typical):
        raise VolumeError(QuarantineReason.IMAGE_NOT_3D, "DICOM slices do not lie in a row")
    row_spacing, column_spacing = (float(value) for value in frames[0].spacing)
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * column_spacing
    affine[:3, 1] = orientation[3:] * row_spacing
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # patient axes of DICOM run to left and posterior
    shape = (int(first.Columns), int(first.Rows), len(frames))
    zooms = check_geometry(shape, affine) if accept else _sizes(affine)
    signed = int(first.get("PixelRepresentation", 0) or 0)
    kind = np.dtype(f"<{'i' if signed else 'u'}{int(first.BitsAllocated) // 8}")
    voxels = np.frombuffer(b"".join(frame.pixels for frame in frames), dtype=kind).reshape(shape, order="F")
    slope = np.array([frame.slope for frame in frames], dtype=np.float32)
    intercept = np.array([frame.intercept for frame in frames], dtype=np.float32)
    remarks = []
    if str(first.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        remarks.append("stored with bright for little signal; turned round")
        slope, intercept = -slope, float(voxels.max()) * slope + intercept
    bits = int(first.get("BitsStored", 0) or 8 * kind.itemsize)
    stored = Stored(
        voxels=voxels,
        slope=slope,
        intercept=intercept,
        affine=affine,
        zooms=zooms,
        affine_source="header",
        source_format="dicom",
        digests=tuple(series.digests),
        remarks=tuple(remarks),
        scanner={
            name: str(first.get(name) or "")
            for name in ("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength")
        },
        padding=_padding(first, kind),
        bits=(bits, int(first.get("HighBit", bits - 1) or bits - 1)),
    )
    if accept:
        _check_values(voxels)
    return stored


def _padding(dataset: Any, kind: np.dtype[Any]) -> int | None:
    """The number that stands for "no measurement", where the header gives a usable one."""
    try:
        value = int(dataset.get("PixelPaddingValue"))
    except (TypeError, ValueError):
        return None
    limits = np.iinfo(kind)
    if kind.kind == "i" and value > limits.max:
        value -= 1 << (8 * kind.itemsize)  # the header's number type is not always that of the voxels
    return value if limits.min <= value <= limits.max else None


# ---------------------------------------------------------------------------------------------------------------------
# one entry for all formats


def read_stored(root: Path, image: ImageFile, *, accept: bool = True) -> Stored:
    """Read an image and check that it may go on.

    Parameters
    ----------
    root
        The folder that the image's paths are relative to.
    image
        The image; see :func:`describe`.
    accept
        Whether the rules of acceptance apply; without them only damage is refused.

    Raises
    ------
    VolumeError
        With the reason why the image cannot be used, whatever a library raised.
    """
    try:
        # What libraries warn of quotes headers.
        with warnings.catch_warnings(), _Source(root, image) as source:
            warnings.simplefilter("ignore")
            read = _read_dicom if image.source_format == "dicom" else _read_nifti
            return read(image, source, accept)
    except VolumeError:
        raise
    except MemoryError as error:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "an image does not fit into memory") from error
    except ArchiveError as error:
        detail = error.what if error.found is None else f"{error.what} ({error.found})"
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "an image cannot be read", found=detail) from error
    except FileNotFoundError as error:
        raise VolumeError(QuarantineReason.IMAGE_WITHOUT_FILE, "the image file is missing") from error
    except Exception as error:  # untrusted bytes may make a parser raise anything
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "an image cannot be read", found=type(error).__name__
        ) from error


def describe(root: Path, source_path: str, source_format: str | None = None) -> ImageFile:
    """The files behind a path as the tables and people give it.

    Parameters
    ----------
    root
        The folder that ``source_path`` is relative to and must stay inside of.
    source_path
        A file (one half of a pair is enough), a DICOM folder, or one slice that stands for its series; an archive that
        holds one image, or ``archive.zip!inner/path`` for a file or folder inside it.
    source_format
        ``nifti``, ``nifti_pair``, ``analyze`` or ``dicom``; found from the names when omitted.

    Raises
    ------
    VolumeError
        ``IMAGE_WITHOUT_FILE``, ``AMBIGUOUS_FILE`` (several images), ``IMAGE_UNREADABLE`` (the path leaves the folder,
        or the archive is damaged).
    """
    outer, separator, inner = source_path.partition(ZIP_SEPARATOR)
    if PurePosixPath(outer).is_absolute() or ".." in PurePosixPath(outer).parts + PurePosixPath(inner).parts:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "an image path leaves its cohort's folder")
    path = root / outer
    if not path.exists():
        raise VolumeError(QuarantineReason.IMAGE_WITHOUT_FILE, "the image file is missing")
    if separator or (path.is_file() and outer.lower().endswith(_ARCHIVE)):
        return _describe_in_archive(path, outer, inner.strip("/"), source_format)
    if path.is_dir():
        names = sorted(p.relative_to(root).as_posix() for p in path.rglob("*") if p.is_file())
        return _describe_folder(source_path, outer.rstrip("/"), names, source_format)
    kind = source_format or _format_of(path.name)
    if kind == "dicom":
        folder = PurePosixPath(outer).parent.as_posix()
        names = sorted(p.relative_to(root).as_posix() for p in path.parent.iterdir() if p.is_file())
        return _describe_slices(source_path, names, outer, folder)
    beside = [p.relative_to(root).as_posix() for p in path.parent.iterdir() if p.is_file()] if kind != "nifti" else []
    return ImageFile(source_path, kind, _with_other_half(outer, beside))


def _format_of(name: str) -> str:
    lower = name.lower()
    if lower.endswith(_NIFTI):
        return "nifti"
    if lower.endswith(_HEADER + _PIXELS):
        return "nifti_pair" if ".nifti." in lower else "analyze"
    return "dicom"


def _pair_stem(name: str) -> str:
    return re.sub(r"(?i)\.(?:hdr|img)(?:\.gz)?$", "", name)


def _with_other_half(name: str, beside: Sequence[str]) -> tuple[str, ...]:
    """A file and, for one half of a pair, the other half whatever its letters' case."""
    if not name.lower().endswith(_HEADER + _PIXELS):
        return (name,)
    other = _PIXELS if name.lower().endswith(_HEADER) else _HEADER
    halves = [n for n in beside if n.lower().endswith(other) and _pair_stem(n).lower() == _pair_stem(name).lower()]
    exact = [n for n in halves if _pair_stem(n) == _pair_stem(name)] or halves
    return (name, *sorted(exact, key=lambda n: n.lower().endswith(".gz") != name.lower().endswith(".gz"))[:1])


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _describe_folder(source_path: str, folder: str, names: Sequence[str], source_format: str | None) -> ImageFile:
    """The one image of a folder: a file that says so by its suffix, else its DICOM slices."""
    start = len(folder) + 1 if folder not in ("", ".") else 0
    names = [name for name in names if not _hidden(name[start:])]
    kinds = {"nifti": _NIFTI, "analyze": _HEADER, "nifti_pair": _HEADER, None: _NIFTI + _HEADER}
    if source_format != "dicom":
        found = [name for name in names if name.lower().endswith(kinds[source_format])]
        slices = [name for name in names if name.lower().endswith(_DICOM)]
        if found and not (source_format is None and slices):
            if len(found) > 1:
                raise VolumeError(
                    QuarantineReason.AMBIGUOUS_FILE,
                    "the folder must hold one image",
                    found=f"{len(found)} images",
                    remedy="name the file itself",
                )
            return ImageFile(source_path, _format_of(found[0]), _with_other_half(found[0], names))
        if source_format is not None:
            raise VolumeError(
                QuarantineReason.IMAGE_WITHOUT_FILE, "the folder must hold one image", found="no image of this format"
            )
    return _describe_slices(source_path, names, None, folder)


def _describe_slices(source_path: str, names: Sequence[str], one: str | None, folder: str) -> ImageFile:
    """The slices of a DICOM series: those of one image where names say which (``..._I45108.dcm``), else all.

    Downloads from LONI name each slice after its image and sometimes mix two images in a folder. Which is meant is told
    by the folder ``I45108``, or by the slice that is given in its place.
    """
    names = [n for n in names if not _NO_SLICE.fullmatch(PurePosixPath(n).name) and not _hidden(PurePosixPath(n).name)]
    if one is not None and one not in names:
        names = [*names, one]
    if not names:
        raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "a folder holds no DICOM slices")
    folder_name = PurePosixPath(folder).name
    number = re.fullmatch(r"I(\d+)", folder_name) if one is None else re.search(r"_I(\d+)\.[^.]+$", one)
    if number is not None:
        own = [name for name in names if re.search(rf"_I{number[1]}\.[^.]+$", name)]
        return ImageFile(source_path, "dicom", tuple(sorted(own or names)))
    # The slice that stands for its series comes first.
    return ImageFile(source_path, "dicom", tuple(sorted(names)))


def _describe_in_archive(path: Path, outer: str, inner: str, source_format: str | None) -> ImageFile:
    try:
        with Archive(path) as archive:
            names = [member.name for member in archive.members]
            refused = [refused.why for refused in archive.refused]
    except ArchiveError as error:
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE, "the archive is damaged or locked", found=error.what
        ) from error
    full = f"{outer}{ZIP_SEPARATOR}{inner}"
    if inner in names:
        kind = source_format or _format_of(inner)
        if kind == "dicom":
            folder = PurePosixPath(inner).parent.as_posix()
            beside = [name for name in names if PurePosixPath(name).parent.as_posix() == folder]
            return _describe_slices(full, beside, inner, folder)
        return ImageFile(full, kind, _with_other_half(inner, names))
    inside = [name for name in names if not inner or name.startswith(inner + "/")]
    inside = [name for name in inside if not _hidden(name)]
    if not inside:
        if refused and not names and not inner:
            raise VolumeError(QuarantineReason.IMAGE_UNREADABLE, "the archive holds no safe member", found=refused[0])
        raise VolumeError(QuarantineReason.IMAGE_WITHOUT_FILE, "the archive has no such member")
    return _describe_folder(full, inner, inside, source_format)
