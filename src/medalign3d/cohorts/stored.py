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
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medalign3d.cohorts.acceptance import check_affine, check_geometry, check_values, voxel_sizes
from medalign3d.cohorts.archives import Archive, ArchiveError, Gunzip
from medalign3d.cohorts.dicom_series import DICOM_SUFFIXES, read_dicom
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.cohorts.stored_image import MAXIMUM_BYTES, ZIP_SEPARATOR, ImageFile, Source, Stored
from medalign3d.errors import VolumeError

MAXIMUM_TRAILER = 16 << 20  # bytes behind the voxels (extensions, padding) that a file may have
CONTRADICTION_DEGREES = 5.0  # between qform and sform

_NIFTI = (".nii", ".nii.gz")
_HEADER = (".hdr", ".hdr.gz")
_PIXELS = (".img", ".img.gz")
_ARCHIVE = (".zip", ".tar", ".tar.gz", ".tgz")
_NO_SLICE = re.compile(
    r"(?i)(?:.*\.(?:txt|json|xml|csv|tsv|md|html?|pdf|gif|png|jpe?g|bvals?|bvecs?|zip|tar|t?gz|nii|hdr|img|xlsx?)|"
    r"dicomdir|thumbs\.db)"
)
_SAGITTAL_OASIS = re.compile(r"(?:mpr_n\d+_anon_sbj_111|mpr-\d+_anon)$", re.IGNORECASE)


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
            check_affine(affine, zooms)
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


def _read_nifti(image: ImageFile, source: Source, accept: bool) -> Stored:
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
        final_zooms = voxel_sizes(affine)
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
        check_values(flat, slope, intercept)
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
        with warnings.catch_warnings(), Source(root, image) as source:
            warnings.simplefilter("ignore")
            read = read_dicom if image.source_format == "dicom" else _read_nifti
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
        slices = [name for name in names if name.lower().endswith(DICOM_SUFFIXES)]
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
