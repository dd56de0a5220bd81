"""Read images as the custodians ship them: NIfTI, NIfTI pairs, Analyze 7.5, DICOM series, any of these in an archive.

Only voxels and geometry leave this module. Header text (names, dates, descriptions) is never carried over.

Files are read and judged by :mod:`medalign3d.cohorts.stored`, as ingest does. The DICOM converter is only used where a
NIfTI file with the converter's facts is asked for (:func:`nifti_on_disk`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medalign3d.errors import InputError, VolumeError
from medalign3d.volumes.grids import Array, Matrix, voxel_sizes

SourceFormat = Literal["nifti", "nifti_pair", "analyze", "dicom"]
SOURCE_FORMATS: tuple[str, ...] = get_args(SourceFormat)

MAXIMUM_VOXELS = 400_000_000
MINIMUM_GREY_VALUES = 12
"""Fewer different values are a mask or a segmentation, no scan."""

DICOM_TIME_LIMIT_SECONDS = 300.0

_NOT_A_HEAD_SCAN = re.compile(
    r"local[iy][sz]er|scout|survey|3.?plane|loc\b|_ROI|phase|bold|fmri|dti|dwi|flair|t2|pd\b|swi|asl|calibration",
    re.IGNORECASE,
)
_HEAD_SCAN = re.compile(r"mp.?rage|spgr|t1|bravo|tfe|mdeft|3d.?flash", re.IGNORECASE)


@dataclass(frozen=True)
class Volume:
    """An image in memory.

    Attributes
    ----------
    data
        float32, shape (X, Y, Z), finite, in the file's voxel order.
    affine
        4x4, voxel index to scanner millimetres (x to the right, y to the front, z up).
    affine_source
        ``header``, or ``assumed`` where the format does not say how the head lies.
    source_format
        One of :data:`SOURCE_FORMATS`.
    stored_dtype
        The file's own number type.
    remarks
        What is odd about the image without ruling it out, in words that name nobody.
    """

    data: Array
    affine: Matrix
    affine_source: Literal["header", "assumed"]
    source_format: str
    stored_dtype: str
    remarks: tuple[str, ...] = ()

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel sizes in millimetres."""
        sizes = voxel_sizes(self.affine)
        return float(sizes[0]), float(sizes[1]), float(sizes[2])

    @property
    def orientation(self) -> str:
        """Where the three axes point, e.g. ``PSR``."""
        from nibabel.orientations import aff2axcodes

        return "".join(str(code) for code in aff2axcodes(self.affine))

    def data_sha256(self) -> str:
        """SHA-256 of shape and voxels (little-endian float32, C order): equal for equal images in any container."""
        digest = hashlib.sha256(np.array(self.data.shape, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.data, dtype="<f4").tobytes())
        return digest.hexdigest()


def read_volume(
    root: str | os.PathLike[str],
    source_path: str,
    source_format: str | None = None,
    *,
    strict: bool = True,
    orientation_rule: str | None = None,
) -> Volume:
    """Read one image.

    Parameters
    ----------
    root
        The cohort's folder; ``source_path`` is relative to it and must stay inside.
    source_path
        A file, a DICOM folder or one slice of a series, or ``archive.zip!inner/path`` (a file or folder inside an
        archive; ``archive.zip`` alone reads the one image of the archive).
    source_format
        One of :data:`SOURCE_FORMATS`; found from the names when omitted.
    strict
        Also apply the acceptance rules (see :mod:`medalign3d.cohorts.stored`); without them only damage is refused.
    orientation_rule
        ``sagittal`` or ``talairach`` for an Analyze image of OASIS-1; found from the name when omitted.

    Raises
    ------
    VolumeError
        With a quarantine reason.
    """
    from medalign3d.cohorts.stored import describe, read_stored

    base = Path(root)
    image = describe(base, source_path, source_format)
    if orientation_rule is not None:
        image = dataclasses.replace(image, orientation_rule=orientation_rule)
    stored = read_stored(base, image, accept=strict)
    data, affine = stored.values(), stored.affine
    if stored.source_format == "dicom":
        # Rows upwards, as converters write them: the same voxels in the same places.
        flip = np.diag([1.0, -1.0, 1.0, 1.0])
        flip[1, 3] = data.shape[1] - 1
        data, affine = data[:, ::-1], affine @ flip
    return Volume(data, affine, stored.affine_source, stored.source_format, stored.voxels.dtype.name, stored.remarks)


def _only_image(folder: Path) -> Path:
    found = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".") and p.name.lower().endswith((".nii", ".nii.gz", ".hdr"))
    )
    if len(found) != 1:
        raise VolumeError(
            "AMBIGUOUS_FILE" if found else "IMAGE_WITHOUT_FILE",
            "the folder must hold one image",
            found=f"{len(found)} images",
            remedy="name the file itself",
        )
    return found[0]


# ---------------------------------------------------------------------------------------------------------------------
# NIfTI and Analyze


def _companion(path: Path, suffix: str) -> Path:
    """The other file of a .hdr/.img pair, whatever its letters' case."""
    lower = path.name.lower()
    gz = ".gz" if lower.endswith(".gz") else ""
    stem = path.name[: len(path.name) - len(gz) - 4]
    for candidate in (f"{stem}{suffix}{gz}", f"{stem}{suffix.upper()}{gz}", f"{stem}{suffix}", f"{stem}{suffix}.gz"):
        if (path.parent / candidate).is_file():
            return path.parent / candidate
    raise VolumeError(
        "IMAGE_WITHOUT_FILE", "half of an image pair is missing", found=f"no file {suffix} beside {path.suffix}"
    )


@dataclass(frozen=True)
class StoredImage:
    """A NIfTI or Analyze image on disk whose voxels have not been read yet.

    Attributes
    ----------
    image
        The nibabel image; ``image.dataobj`` reads scaled voxels, ``image.dataobj.get_unscaled()`` those on disk.
    shape
        Three axes; trailing axes of length one are left out.
    affine, affine_source, source_format
        As in :class:`Volume`.
    """

    image: Any
    shape: tuple[int, int, int]
    affine: Matrix
    affine_source: Literal["header", "assumed"]
    source_format: str


@contextlib.contextmanager
def _explain_damage() -> Iterator[None]:
    """Turn whatever a parser raises on untrusted bytes into a :class:`VolumeError`."""
    try:
        yield
    except VolumeError:
        raise
    except (EOFError, zlib.error) as error:
        raise VolumeError("IMAGE_TRUNCATED", "the image file ends too early", found=type(error).__name__) from error
    except MemoryError as error:
        raise VolumeError("IMAGE_UNREADABLE", "the image does not fit in memory") from error
    except Exception as error:  # a parser given untrusted bytes may raise anything
        message = str(error).lower()
        short = ("expected" in message and "bytes" in message) or "end of file" in message or "ended before" in message
        raise VolumeError(
            "IMAGE_TRUNCATED" if short else "IMAGE_UNREADABLE",
            "the image file ends too early" if short else "the image file cannot be read",
            found=type(error).__name__,
        ) from error


def open_stored(path: Path) -> StoredImage:
    """Open a NIfTI or Analyze file without reading its voxels.

    Raises
    ------
    VolumeError
        When the file is no such image, is shorter than its header promises, or is not three-dimensional.
    """
    import nibabel

    with _explain_damage():
        image = _open_image(path)
        shape = tuple(int(n) for n in image.shape)
        if any(n < 1 for n in shape) or int(np.prod([float(n) for n in shape])) > MAXIMUM_VOXELS:
            raise VolumeError("IMAGE_UNREADABLE", "the image's size is not credible", found=shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3:
            raise VolumeError("IMAGE_NOT_3D", "the image is not three-dimensional", found=f"shape {shape}")
        stored = image.header.get_data_dtype()
        if stored.fields is not None or stored.kind not in "iuf":
            raise VolumeError("IMAGE_NOT_3D", "voxels are not single numbers", found=str(stored))
        _refuse_short_file(image, path)
        if isinstance(image, (nibabel.Nifti1Image, nibabel.Nifti1Pair)):
            coded = int(image.header["qform_code"]) > 0 or int(image.header["sform_code"]) > 0
            source_format = "nifti" if isinstance(image, nibabel.Nifti1Image) else "nifti_pair"
        else:
            coded, source_format = False, "analyze"
        affine = np.array(image.affine, dtype=float)
        if not coded:
            affine = _assumed_affine(shape, image.header.get_zooms()[:3], path)
    return StoredImage(image, shape, affine, "header" if coded else "assumed", source_format)


def stored_voxels(stored: StoredImage) -> tuple[NDArray[Any], float, float]:
    """Voxels exactly as on disk, with the slope and intercept that scale them.

    Returns
    -------
    voxels
        Shape (X, Y, Z), the file's own number type in this machine's byte order.
    slope, intercept
        ``slope * voxel + intercept`` is the scaled value; 1 and 0 where the file does not scale.
    """
    with _explain_damage():
        proxy = stored.image.dataobj
        voxels = np.asarray(proxy.get_unscaled()).reshape(stored.shape)
        native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
        return native, float(proxy.slope), float(proxy.inter)


def _read_nibabel(path: Path) -> Volume:
    stored = open_stored(path)
    with _explain_damage():
        data = np.asarray(stored.image.dataobj, dtype=np.float32).reshape(stored.shape)
    dtype = str(stored.image.header.get_data_dtype())
    return Volume(data, stored.affine, stored.affine_source, stored.source_format, dtype)


def _open_image(path: Path) -> Any:
    """Open by content: pairs may have double extensions (``mpr-1.nifti.hdr``) that name-based loaders misjudge."""
    import nibabel
    from nibabel.fileholders import FileHolder

    lower = path.name.lower()
    if lower.endswith((".nii", ".nii.gz")):
        return nibabel.Nifti1Image.from_filename(path)
    header_path = path if lower.endswith((".hdr", ".hdr.gz")) else _companion(path, ".hdr")
    image_path = _companion(header_path, ".img")
    with header_path.open("rb") as stream:
        raw = stream.read(352)
    if header_path.name.lower().endswith(".gz"):
        import gzip

        raw = gzip.decompress(header_path.read_bytes())[:352]
    if len(raw) < 348:
        raise VolumeError("IMAGE_TRUNCATED", "the image header ends too early", found=f"{len(raw)} bytes")
    kind = nibabel.Nifti1Pair if raw[344:347] in (b"ni1", b"n+1") else nibabel.AnalyzeImage
    holders = {"header": FileHolder(str(header_path)), "image": FileHolder(str(image_path))}
    return kind.from_file_map(holders)


def _refuse_short_file(image: Any, path: Path) -> None:
    """A cheap check on uncompressed files before memory is taken for what a damaged header promises."""
    holder = image.file_map["image"]
    if not isinstance(holder.filename, (str, os.PathLike)) or str(holder.filename).endswith(".gz"):
        return
    needed = float(np.prod([float(n) for n in image.shape])) * image.header.get_data_dtype().itemsize
    offset = float(image.dataobj.offset)
    size = os.path.getsize(holder.filename)
    if size < offset + needed:
        raise VolumeError(
            "IMAGE_TRUNCATED",
            "the image file ends too early",
            found=f"{size} bytes",
            expected=f"{int(offset + needed)} bytes",
        )


def _assumed_affine(shape: tuple[int, ...], zooms: tuple[float, ...], path: Path) -> Matrix:
    """The affine of an image whose header does not say how the head lies.

    Native files of OASIS-1 are told by their names; anything else is taken as radiological axial slices (Analyze 7.5).
    """
    from medalign3d.cohorts.stored import orientation_rule, sagittal_affine, talairach_affine

    sizes = [abs(float(z)) if np.isfinite(z) and z != 0 else float("nan") for z in zooms]
    rule = sagittal_affine if orientation_rule(path.name) == "sagittal" else talairach_affine
    return rule(shape, sizes)


# ---------------------------------------------------------------------------------------------------------------------
# acceptance


def check(volume: Volume) -> None:
    """Refuse an image that must not go on.

    Raises
    ------
    VolumeError
        As :func:`medalign3d.cohorts.acceptance.check_geometry`, ``IMAGE_EMPTY`` (non-finite or constant
        voxels), or ``NOT_T1`` (a mask or a segmentation).
    """
    from medalign3d.cohorts.acceptance import check_geometry

    check_geometry(volume.data.shape, volume.affine)
    low, high = float(volume.data.min()), float(volume.data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise VolumeError("IMAGE_EMPTY", "voxels are not finite numbers")
    if not high > low:
        raise VolumeError("IMAGE_EMPTY", "all voxels have one value", found=f"{low:g}")
    values = np.unique(volume.data[::5, ::5, ::5])
    if len(values) < MINIMUM_GREY_VALUES and not set(np.unique(volume.data)).difference(values):
        raise VolumeError("NOT_T1", "voxels have so few values that they must be labels", found=f"{len(values)} values")


# ---------------------------------------------------------------------------------------------------------------------
# places: plain paths and zip members


@contextlib.contextmanager
def locate(root: str | os.PathLike[str], source_path: str) -> Iterator[Path]:
    """Yield a path on disk for ``source_path``; zip members are unpacked into a temporary folder first.

    Raises
    ------
    VolumeError
        ``IMAGE_WITHOUT_FILE``, or ``IMAGE_UNREADABLE`` for an unsafe or damaged archive.
    """
    base = Path(root)
    outer, separator, inner = source_path.partition("!")
    if Path(outer).is_absolute() or ".." in PurePosixPath(outer).parts:
        raise VolumeError("IMAGE_UNREADABLE", "an image path leaves its cohort's folder")
    path = base / outer
    if not path.exists():
        raise VolumeError("IMAGE_WITHOUT_FILE", "the image file is missing")
    if not separator and not (path.is_file() and path.suffix.lower() == ".zip"):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medalign3d-") as folder:
        yield extract_member(path, inner, Path(folder))


def extract_member(archive: Path, inner: str, folder: Path) -> Path:
    """Unpack the file or folder ``inner`` of an archive into ``folder`` (all of it when ``inner`` is empty).

    Nothing is written outside ``folder``, links are not made, sizes are bounded
    (:mod:`medalign3d.cohorts.archives`). For one half of a .hdr/.img pair the other half comes along.

    Returns
    -------
    Path
        Where the file or folder now stands.
    """
    from medalign3d.cohorts.archives import Archive, ArchiveError, safe_name

    wanted = inner.strip("/")
    if wanted and safe_name(wanted) != wanted:
        raise VolumeError("IMAGE_UNREADABLE", "an archive member leaves its folder")
    try:
        with Archive(archive) as bundle:
            pair = _pair_stem(wanted)
            chosen = [
                member.name
                for member in bundle.members
                if not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(member.name).parts)
                and (
                    not wanted
                    or member.name == wanted
                    or member.name.startswith(wanted + "/")
                    or (pair is not None and _pair_stem(member.name) == pair)
                )
            ]
            if not chosen:
                raise VolumeError("IMAGE_WITHOUT_FILE", "the archive has no such member")
            for name in chosen:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as sink:
                    for chunk in bundle.chunks(name):
                        sink.write(chunk)
    except (ArchiveError, OSError) as error:
        raise VolumeError("IMAGE_UNREADABLE", "the archive is damaged or locked", found=type(error).__name__) from error
    return folder / wanted if wanted else folder


def _pair_stem(name: str) -> str | None:
    stem = re.sub(r"(?i)\.(?:hdr|img)(?:\.gz)?$", "", name)
    return stem.lower() if stem != name else None


# ---------------------------------------------------------------------------------------------------------------------
# DICOM


def dcm2niix_command() -> list[str]:
    """How to start the dcm2niix that came with the package of that name.

    Raises
    ------
    InputError
        When it is not installed.
    """
    import importlib.util

    specification = importlib.util.find_spec("dcm2niix")
    if specification is not None and specification.origin is not None:
        name = "dcm2niix.exe" if os.name == "nt" else "dcm2niix"
        binary = Path(specification.origin).parent / name
        if binary.is_file() and os.access(binary, os.X_OK):
            return [str(binary)]
        return [sys.executable, "-m", "dcm2niix"]
    found = shutil.which("dcm2niix")
    if found is None:
        raise InputError("the package dcm2niix is missing", remedy="pip install -e . with the constraints file")
    return [found]


@dataclass(frozen=True)
class _Candidate:
    path: Path
    volume: Volume | None
    slices: int
    head_scan: bool
    refusal: VolumeError | None
    facts: dict[str, Any]


@contextlib.contextmanager
def nifti_on_disk(
    root: str | os.PathLike[str], source_path: str, source_format: str
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield an image as a NIfTI or Analyze file on disk, whatever it is shipped as, for as long as the block runs.

    DICOM series are converted, zip members unpacked, both into a temporary folder.

    Yields
    ------
    path
        The file (one of the two files of a pair).
    facts
        What the DICOM conversion says about the acquisition (BIDS names, unfiltered); empty for other formats.

    Raises
    ------
    VolumeError
        As :func:`read_volume`.
    """
    with locate(root, source_path) as place:
        if source_format == "dicom":
            with _convert_dicom(place) as candidate:
                yield candidate.path, candidate.facts
        else:
            yield (_only_image(place) if place.is_dir() else place), {}


def _one_image(path: Path, stack: contextlib.ExitStack) -> Path:
    """The folder (of a slice) itself, or links to the slices of one image where the folder holds slices of several.

    Downloads from LONI name each slice after its image (``..._I45108.dcm``) and sometimes mix two images. Which is
    meant is told by the folder ``I45108``, or by the slice that is given in its place.
    """
    folder = path if path.is_dir() else path.parent
    number = re.fullmatch(r"I(\d+)", path.name) if path.is_dir() else re.search(r"_I(\d+)\.[^.]+$", path.name)
    if number is None:
        return folder
    slices = [p for p in folder.rglob("*") if p.is_file() and re.search(r"_I\d+\.[^.]+$", p.name)]
    own = [p for p in slices if re.search(rf"_I{number[1]}\.[^.]+$", p.name)]
    if not own or len(own) == len(slices):
        return folder
    links = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medalign3d-slices-")))
    for place, source in enumerate(sorted(own)):
        try:
            os.symlink(source.resolve(), links / f"{place:05d}.dcm")
        except OSError:
            shutil.copyfile(source, links / f"{place:05d}.dcm")
    return links


@contextlib.contextmanager
def _convert_dicom(path: Path) -> Iterator[_Candidate]:
    """Convert every series below a folder (that of ``path`` when it is a file) and choose among them."""
    with contextlib.ExitStack() as stack:
        folder = _one_image(path, stack)
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medalign3d-dicom-")))
        # File names carry only counters and protocol words; the side-car is anonymised and thrown away with the folder.
        command = [*dcm2niix_command(), "-b", "y", "-ba", "y", "-z", "n", "-d", "9", "-m", "2", "-x", "i", "-c", ""]
        command += ["-f", "%s_%p_%d", "-o", str(out), str(folder)]
        try:
            result = subprocess.run(
                command, capture_output=True, timeout=DICOM_TIME_LIMIT_SECONDS, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as error:
            raise VolumeError("IMAGE_UNREADABLE", "the DICOM conversion took too long") from error
        images = sorted(out.glob("*.nii"))
        if not images:
            raise VolumeError(
                "IMAGE_UNREADABLE",
                "no image could be made from the DICOM files",
                found=f"exit code {result.returncode}",
            )
        candidates = [_candidate(image) for image in images]
        usable = [c for c in candidates if c.volume is not None]
        if not usable:
            refusal = max(candidates, key=lambda c: c.slices).refusal
            assert refusal is not None
            raise refusal
        best = max(usable, key=lambda c: (c.head_scan, c.slices))
        if not best.head_scan and all(not c.head_scan for c in usable):
            raise VolumeError(
                "NOT_T1", "no three-dimensional T1 series among the DICOM files", found=f"{len(candidates)} series"
            )
        yield best


def _candidate(image: Path) -> _Candidate:
    """One converted series, judged by its side-car and geometry."""
    import json

    side_car = image.with_suffix(".json")
    facts: dict[str, Any] = {}
    if side_car.is_file():
        with contextlib.suppress(ValueError, OSError):
            facts = json.loads(side_car.read_text(encoding="utf-8", errors="replace"))
    words = " ".join(
        str(facts.get(k, "")) for k in ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName")
    )
    named_t1 = bool(_HEAD_SCAN.search(words))
    named_other = bool(_NOT_A_HEAD_SCAN.search(words)) and not named_t1
    kinds = [str(k).upper() for k in facts.get("ImageType", [])]
    derived = any(k in {"LOCALIZER", "MPR", "PROJECTION IMAGE", "PHASE", "MIP"} for k in kinds)
    try:
        volume = _read_nibabel(image)
        volume = Volume(volume.data, volume.affine, volume.affine_source, "dicom", volume.stored_dtype)
        slices = min(volume.data.shape)
        check(volume)
        return _Candidate(image, volume, slices, not named_other and not derived, None, facts)
    except VolumeError as error:
        return _Candidate(image, None, 0, False, error, facts)
