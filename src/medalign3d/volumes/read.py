"""Read images as the custodians ship them: NIfTI, NIfTI pairs, Analyze 7.5, DICOM series, any of these in a zip.

Only voxels and geometry leave this module. Header text (names, dates, descriptions) is never carried over.

Refused, each with a quarantine reason: unreadable or truncated files, images that are not three-dimensional, too few or
too thick slices, non-finite or constant voxels, and affines that are singular or absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
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

MINIMUM_VOXELS = 60
MINIMUM_ZOOM_MM, MAXIMUM_ZOOM_MM = 0.4, 2.0
ZOOM_TOLERANCE_MM = 0.01

MAXIMUM_VOXELS = 400_000_000
MAXIMUM_MEMBER_BYTES = 4 << 30
MAXIMUM_ARCHIVE_BYTES = 16 << 30
MAXIMUM_ARCHIVE_FILES = 100_000
MAXIMUM_EXPANSION = 1000
"""A zip member that expands more than this is a bomb (real images reach about 100 where the background is empty)."""

DICOM_TIME_LIMIT_SECONDS = 300.0

_SAGITTAL_OASIS = re.compile(r"(?:sbj_111|mpr-\d+_anon)\b", re.IGNORECASE)
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
    """

    data: Array
    affine: Matrix
    affine_source: Literal["header", "assumed"]
    source_format: str
    stored_dtype: str

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
    root: str | os.PathLike[str], source_path: str, source_format: str | None = None, *, strict: bool = True
) -> Volume:
    """Read one image.

    Parameters
    ----------
    root
        The cohort's folder; ``source_path`` is relative to it and must stay inside.
    source_path
        A file, a DICOM folder, or ``archive.zip!inner/path`` (a file or folder inside a zip; ``archive.zip`` alone
        reads the whole archive).
    source_format
        One of :data:`SOURCE_FORMATS`; found from the name when omitted.
    strict
        Also apply the acceptance rules on voxel counts and sizes (see :func:`check`).

    Raises
    ------
    VolumeError
        With a quarantine reason.
    """
    with locate(root, source_path) as path:
        volume = read_path(path, source_format)
    if strict:
        check(volume)
    return volume


def read_path(path: str | os.PathLike[str], source_format: str | None = None) -> Volume:
    """Read an image file, DICOM file or folder that stands on disk; see :func:`read_volume`."""
    place = Path(path)
    if not place.exists():
        raise VolumeError("IMAGE_WITHOUT_FILE", "the image file is missing", where=place.name)
    kind = source_format or guess_format(place)
    if kind not in SOURCE_FORMATS:
        raise VolumeError(
            "IMAGE_UNREADABLE", "unknown image format", where=place.name, found=kind, expected=", ".join(SOURCE_FORMATS)
        )
    if kind == "dicom":
        return _read_dicom(place)
    if place.is_dir():
        place = _only_image(place)
    return _read_nibabel(place)


def guess_format(path: Path) -> str:
    """The format of a file or folder by its name (content decides between Analyze and NIfTI pairs later)."""
    name = path.name.lower()
    if path.is_dir():
        inside = [p.name.lower() for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
        images = [n for n in inside if n.endswith((".nii", ".nii.gz", ".hdr", ".img"))]
        return guess_format(Path(images[0])) if images and not any(n.endswith(".dcm") for n in inside) else "dicom"
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        return "nifti_pair" if ".nifti." in name else "analyze"
    return "dicom"


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

    OASIS-1 native images are sagittal: rows [0 0 -1 80], [1 0 0 -128], [0 1 0 -128] at 256 x 256 x 160 voxels of 1 mm
    (Open Access Series of Imaging Studies, cross-sectional release; the same rows as the BIDS converter of Clinica).
    Other grids of that form keep the axes and the centre. Anything else is taken as radiological axial slices
    (Analyze 7.5).
    """
    sizes = [abs(float(z)) if np.isfinite(z) and z != 0 else float("nan") for z in zooms]
    x, y, z = sizes
    if _SAGITTAL_OASIS.search(path.name):
        return np.array(
            [
                [0.0, 0.0, -z, z * shape[2] / 2],
                [x, 0.0, 0.0, -x * shape[0] / 2],
                [0.0, y, 0.0, -y * shape[1] / 2],
                [0.0, 0.0, 0.0, 1.0],
            ]
        )
    half = [size * (n - 1) / 2 for size, n in zip(sizes, shape, strict=True)]
    return np.array([[-x, 0, 0, half[0]], [0, y, 0, -half[1]], [0, 0, z, -half[2]], [0, 0, 0, 1.0]])


# ---------------------------------------------------------------------------------------------------------------------
# acceptance


def check_geometry(shape: tuple[int, ...], affine: Matrix) -> None:
    """Refuse grids that cannot be a head scan; reads no voxels.

    Raises
    ------
    VolumeError
        ``IMAGE_BAD_AFFINE`` (singular, non-finite), ``IMAGE_TOO_THICK`` (an axis under 60 voxels, or a voxel size
        outside 0.4-2.0 mm).
    """
    affine = np.asarray(affine, dtype=float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise VolumeError("IMAGE_BAD_AFFINE", "the affine is not a finite 4x4 matrix")
    sizes = voxel_sizes(affine)
    volume = abs(float(np.linalg.det(affine[:3, :3])))
    if not (sizes > 0).all() or volume < 0.2 * float(np.prod(sizes)) or np.abs(affine[:3, 3]).max() > 1e5:
        raise VolumeError(
            "IMAGE_BAD_AFFINE", "the affine is singular or out of proportion", found=f"determinant {volume:.3g}"
        )
    if min(shape) < MINIMUM_VOXELS:
        raise VolumeError(
            "IMAGE_TOO_THICK",
            "an axis has too few voxels",
            found=f"shape {tuple(shape)}",
            expected=f"at least {MINIMUM_VOXELS} voxels along each axis",
        )
    if sizes.min() < MINIMUM_ZOOM_MM - ZOOM_TOLERANCE_MM or sizes.max() > MAXIMUM_ZOOM_MM + ZOOM_TOLERANCE_MM:
        raise VolumeError(
            "IMAGE_TOO_THICK",
            "a voxel size is out of range",
            found=" x ".join(f"{s:.3g}" for s in sizes) + " mm",
            expected=f"{MINIMUM_ZOOM_MM}-{MAXIMUM_ZOOM_MM} mm",
        )


def check(volume: Volume) -> None:
    """Refuse an image that must not go on.

    Raises
    ------
    VolumeError
        As :func:`check_geometry`, or ``IMAGE_EMPTY`` (non-finite or constant voxels).
    """
    check_geometry(volume.data.shape, volume.affine)
    low, high = float(volume.data.min()), float(volume.data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise VolumeError("IMAGE_EMPTY", "voxels are not finite numbers")
    if not high > low:
        raise VolumeError("IMAGE_EMPTY", "all voxels have one value", found=f"{low:g}")


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


def _safe_name(name: str) -> PurePosixPath | None:
    """A member's relative path, or None where it would leave the folder it is unpacked into."""
    clean = PurePosixPath(name.replace("\\", "/"))
    if clean.is_absolute() or not clean.parts or any(p == ".." or ":" in p or "\0" in p for p in clean.parts):
        return None
    return clean


def extract_member(archive: Path, inner: str, folder: Path) -> Path:
    """Unpack the file or folder ``inner`` of a zip into ``folder`` (all of it when ``inner`` is empty).

    Nothing is written outside ``folder``, links are not made, sizes are bounded while unpacking (declared sizes lie).
    For one half of a .hdr/.img pair the other half comes along.

    Returns
    -------
    Path
        Where the file or folder now stands.
    """
    wanted = PurePosixPath(inner.strip("/")) if inner.strip("/") else None
    if wanted is not None and _safe_name(str(wanted)) is None:
        raise VolumeError("IMAGE_UNREADABLE", "an archive member leaves its folder")
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [m for m in bundle.infolist() if not m.is_dir()]
            if len(members) > MAXIMUM_ARCHIVE_FILES:
                raise VolumeError("IMAGE_UNREADABLE", "the archive has too many files", found=len(members))
            chosen = []
            pair = _pair_stem(wanted)
            for member in members:
                name = _safe_name(member.filename)
                if name is None:
                    if wanted is None or member.filename.replace("\\", "/").endswith(str(wanted)):
                        raise VolumeError("IMAGE_UNREADABLE", "an archive member leaves its folder")
                    continue
                if any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
                    continue
                if (member.external_attr >> 16) & 0o170000 == 0o120000:  # a symbolic link
                    continue
                same_pair = pair is not None and name.parent == wanted.parent and _pair_stem(name) == pair  # type: ignore[union-attr]
                if wanted is None or name == wanted or wanted in name.parents or same_pair:
                    chosen.append((member, name))
            if not chosen:
                raise VolumeError("IMAGE_WITHOUT_FILE", "the archive has no such member")
            total = 0
            for member, name in chosen:
                target = folder.joinpath(*name.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                total += _unpack(bundle, member, target, total)
    except VolumeError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise VolumeError("IMAGE_UNREADABLE", "the archive is damaged or locked", found=type(error).__name__) from error
    return folder if wanted is None else folder.joinpath(*wanted.parts)


def _pair_stem(name: PurePosixPath | None) -> str | None:
    if name is None:
        return None
    lower = name.name.lower().removesuffix(".gz")
    return lower[:-4] if lower.endswith((".hdr", ".img")) else None


def _unpack(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, before: int) -> int:
    """Unpack one member, counting real bytes; returns how many."""
    limit = min(MAXIMUM_MEMBER_BYTES, MAXIMUM_ARCHIVE_BYTES - before)
    limit = min(limit, max(1 << 20, MAXIMUM_EXPANSION * max(1, member.compress_size)))
    written = 0
    with bundle.open(member) as source, target.open("wb") as sink:
        while chunk := source.read(1 << 20):
            written += len(chunk)
            if written > limit:
                raise VolumeError(
                    "IMAGE_UNREADABLE", "an archive member expands beyond all bounds", expected=f"{limit} bytes"
                )
            sink.write(chunk)
    return written


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


def _read_dicom(path: Path) -> Volume:
    """Convert a DICOM file or folder (any nesting) and take its T1-like 3-D series of most slices."""
    with _convert_dicom(path) as candidate:
        assert candidate.volume is not None
        return candidate.volume


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
        if slices < MINIMUM_VOXELS:
            check_geometry(volume.data.shape, volume.affine)
        return _Candidate(image, volume, slices, not named_other and not derived, None, facts)
    except VolumeError as error:
        return _Candidate(image, None, 0, False, error, facts)
