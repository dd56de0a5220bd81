"""DICOM series as volumes: one file a slice, or enhanced files of many frames.

:func:`read_dicom` chooses the one T1-weighted series of a folder, sorts its slices by where they lie, and refuses
series with missing or doubled slices. :mod:`medalign3d.cohorts.stored` calls it; messages carry no text of a header.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medalign3d.cohorts.acceptance import MINIMUM_AXIS, check_geometry, check_values, voxel_sizes
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.cohorts.stored_image import MAXIMUM_BYTES, ZIP_SEPARATOR, ImageFile, Source, Stored, own_bits
from medalign3d.errors import VolumeError

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
MAXIMUM_SLICE_FILE = 256 << 20
MAXIMUM_DICOM_FILES = 20_000
SLICE_GAP_TOLERANCE = 0.1  # share of the slice distance

_T1_WORDS = re.compile(r"mp.?rage|spgr|t1|bravo|tfe|mdeft|3d.?flash", re.IGNORECASE)
_OTHER_WORDS = re.compile(
    r"local[iy][sz]er|scout|survey|3.?plane|\bloc\b|phase|bold|fmri|dti|dwi|flair|t2|\bpd\b|swi|asl|calibration",
    re.IGNORECASE,
)
_OTHER_KINDS = {"LOCALIZER", "MPR", "PROJECTION IMAGE", "PHASE", "MIP", "MOSAIC", "P"}


@dataclass
class _Frame:
    """One slice of a DICOM series."""

    position: npt.NDArray[np.float64]  # of the first voxel, millimetres, patient axes
    orientation: npt.NDArray[np.float64]
    spacing: npt.NDArray[np.float64]
    pixels: bytes
    bits: tuple[int, int]  # that hold the number, and the place of the highest of them
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
    """An attribute of one frame of a multi-frame file: its own group, the shared one, or the file's top level.

    Raises
    ------
    KeyError
        When none of them has it.
    """
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    for group in (
        *(groups[frame : frame + 1] if groups else ()),
        *(dataset.get("SharedFunctionalGroupsSequence") or ())[:1],
    ):
        inner = group.get(sequence)
        if inner and name in inner[0]:
            return inner[0][name].value
    return dataset[name].value


def _place(dataset: Any, frame: int, sequence: str, name: str, length: int) -> npt.NDArray[np.float64]:
    """A vector that says where a frame lies."""
    try:
        vector = np.asarray(_grouped(dataset, frame, sequence, name), dtype=float)
    except KeyError as error:
        many = int(dataset.get("NumberOfFrames", 1) or 1) > 1
        raise VolumeError(
            QuarantineReason.IMAGE_UNREADABLE,
            "a multi-frame DICOM file does not say where its frames lie"
            if many
            else "a DICOM slice does not say where it lies",
            found=f"no {name}",
            expected=f"{name} of each slice",
            remedy="convert the series to NIfTI" if many else None,
        ) from error
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
        if not syntax.is_little_endian and (bits > 8 or dataset["PixelData"].VR == "OW"):
            word = max(2, bits // 8)  # voxels of eight bits come as words of two
            content = np.frombuffer(content, f">u{word}", count=len(content) // word).astype(f"<u{word}").tobytes()
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
        stored = int(dataset.get("BitsStored", 0) or dataset.BitsAllocated)
        bits = stored, int(dataset.get("HighBit", 0) or stored - 1)
        frames = [
            _Frame(
                _place(dataset, frame, "PlanePositionSequence", "ImagePositionPatient", 3),
                _place(dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
                _place(dataset, frame, "PixelMeasuresSequence", "PixelSpacing", 2),
                pixels[frame],
                bits,
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


def read_dicom(image: ImageFile, source: Source, accept: bool) -> Stored:
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
        if not _is_dicom(content) and not name.lower().endswith(DICOM_SUFFIXES):
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
    zooms = check_geometry(shape, affine) if accept else voxel_sizes(affine)
    signed = int(first.get("PixelRepresentation", 0) or 0)
    kind = np.dtype(f"<{'i' if signed else 'u'}{int(first.BitsAllocated) // 8}")
    voxels = np.frombuffer(b"".join(frame.pixels for frame in frames), dtype=kind).reshape(shape, order="F")
    slope = np.array([frame.slope for frame in frames], dtype=np.float32)
    intercept = np.array([frame.intercept for frame in frames], dtype=np.float32)
    bits: tuple[int, int] | None = frames[0].bits
    if any(frame.bits != bits for frame in frames):
        voxels, bits = voxels.copy(order="F"), None
        for number, frame in enumerate(frames):
            voxels[:, :, number] = own_bits(voxels[:, :, number], *frame.bits)
    inverted = str(first.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    stored = Stored(
        voxels=voxels,
        slope=slope,
        intercept=intercept,
        affine=affine,
        zooms=zooms,
        affine_source="header",
        source_format="dicom",
        digests=tuple(series.digests),
        remarks=("stored with bright for little signal; turned round",) if inverted else (),
        scanner={
            name: str(first.get(name) or "")
            for name in ("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength")
        },
        padding=_padding(first, kind),
        bits=bits,
        inverted=inverted,
    )
    if accept:
        check_values(voxels if bits is None else own_bits(voxels, *bits), slope, intercept)
    return stored


def _padding(dataset: Any, kind: np.dtype[Any]) -> tuple[int, int] | None:
    """The numbers, lowest and highest, that stand for "no measurement", where the header gives usable ones."""
    limits = np.iinfo(kind)
    ends = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        try:
            value = int(dataset.get(name))
        except (TypeError, ValueError):
            continue
        if kind.kind == "i" and value > limits.max:
            value -= 1 << (8 * kind.itemsize)  # the header's number type is not always that of the voxels
        if limits.min <= value <= limits.max:
            ends.append(value)
        elif name == "PixelPaddingValue":
            return None
    return (min(ends), max(ends)) if "PixelPaddingValue" in dataset and ends else None
