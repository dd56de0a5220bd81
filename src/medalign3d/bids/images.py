"""One image -> a compressed NIfTI file with a clean header, and a side-car of acquisition parameters.

The voxels on disk and their number type are kept; only the header is made anew, so that nothing but geometry, number
type and scaling can be in it. The same input gives the same bytes.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medalign3d.cohorts.images import tesla
from medalign3d.errors import VolumeError
from medalign3d.files import write_bytes, write_json
from medalign3d.volumes.grids import Matrix, voxel_sizes
from medalign3d.volumes.read import nifti_on_disk, open_stored, stored_voxels

COMPRESSION_LEVEL = 1
"""Of gzip: several times as fast as the usual 6, files of scans a few percent larger (docs/bids.md)."""

AFFINE_TOLERANCE_MM = 1e-3
MAXIMUM_SIDECAR_BYTES = 1 << 20
SCANNER_CODE, MNI_CODE = 1, 4
SIMULATED_NOTE = b"SIMULATED"

IMAGE_ID_KEY, SOURCE_KEY = "SourceImageID", "SourceSHA256"
"""Keys of the side-car that tell which image a file was made from, and from which bytes."""

#: Acquisition parameters that may leave, by their BIDS names: lowest and highest credible value, in BIDS units.
NUMBERS: dict[str, tuple[float, float]] = {
    "RepetitionTime": (1e-3, 20.0),  # s
    "RepetitionTimeExcitation": (1e-3, 20.0),  # s
    "RepetitionTimePreparation": (1e-3, 20.0),  # s
    "EchoTime": (1e-4, 1.0),  # s
    "InversionTime": (1e-3, 10.0),  # s
    "FlipAngle": (0.1, 180.0),  # degrees
    "SliceThickness": (0.1, 20.0),  # mm
    "SpacingBetweenSlices": (0.1, 20.0),  # mm
    "EchoTrainLength": (1, 1024),
    "PixelBandwidth": (1, 5000),  # Hz
    "PartialFourier": (0.1, 1.0),
    "ParallelReductionFactorInPlane": (1, 16),
    "DwellTime": (1e-8, 1e-3),  # s
    "BaseResolution": (16, 4096),
    "PhaseEncodingSteps": (1, 4096),
    "AcquisitionMatrixPE": (1, 4096),
    "ReconMatrixPE": (1, 4096),
    "PercentPhaseFOV": (1, 200),
    "PercentSampling": (1, 200),
    "NumberOfAverages": (1, 64),
}
FLAGS = ("NonlinearGradientCorrection", "MTState", "SpoilingState")
CHOICES: dict[str, tuple[str, ...]] = {
    "MRAcquisitionType": ("2D", "3D"),
    "InPlanePhaseEncodingDirectionDICOM": ("ROW", "COL"),
    "PhaseEncodingDirection": ("i", "j", "k", "i-", "j-", "k-"),
}
#: Words of the DICOM attributes of these names; several may be joined.
WORDS: dict[str, tuple[str, ...]] = {
    "ScanningSequence": ("SE", "IR", "GR", "EP", "RM"),
    "SequenceVariant": ("SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"),
}
MANUFACTURERS = {
    "siemens": "Siemens", "general electric": "GE", "ge": "GE", "philips": "Philips", "toshiba": "Toshiba",
    "canon": "Canon", "hitachi": "Hitachi", "fujifilm": "Fujifilm", "uih": "UIH", "united imaging": "UIH",
    "bruker": "Bruker",
}  # fmt: skip
#: Words that names of scanner models are made of; a name with any other word stays behind.
MODEL_WORDS = frozenset((
    "achieva", "aera", "allegra", "ambition", "architect", "artist", "avanto", "b", "biograph", "biographmmr",
    "brivo", "cima", "cv", "cvi", "discovery", "ds", "dstream", "e", "echelon", "eclipse", "elition", "espree",
    "essenza", "evolution", "excelart", "excite", "exciteii", "f", "fit", "galan", "ge", "genesis", "gyroscan",
    "hd", "hde", "hdx", "hdxt", "horizon", "impact", "ingenia", "ingenuity", "intera", "lumina", "lx", "magnetom",
    "magnetomvision", "medical", "mmr", "mr", "mri", "nt", "optima", "orian", "panorama", "pet", "philips", "plus",
    "premier", "premium", "prisma", "pt", "r", "s", "sempra", "siemens", "sigma", "signa", "skyra", "sola",
    "sonata", "sonatavision", "spectra", "symphony", "symphonytim", "symphonyvision", "systems", "t", "terra",
    "tim", "titan", "trillium", "trio", "triotim", "vantage", "verio", "vida", "vision", "voyager", "x", "xq", "xr",
    "xtx",
))  # fmt: skip


@dataclass(frozen=True)
class ImageTask:
    """One image to write.

    Parameters
    ----------
    image_id
        Primary key of the image.
    root, source_path, source_format
        Where it is; see :func:`medalign3d.volumes.read.read_volume`.
    target
        The file to write without its extensions.
    shape, orientation
        What was found when the image was accepted.
    data_sha256, source_sha256
        Hashes of voxels and files at that time.
    known
        ``field_strength_t``, ``manufacturer``, ``scanner_model`` and ``series_description`` of the table. The last is
        never written: it only tells whether gradient nonlinearity was corrected.
    simulated
        Whether header and side-car say so.
    """

    image_id: str
    root: str
    source_path: str
    source_format: str
    target: str
    shape: tuple[int, ...]
    orientation: str
    data_sha256: str
    source_sha256: str
    known: Mapping[str, Any]
    simulated: bool


def nifti_bytes(
    voxels: NDArray[Any],
    affine: Matrix,
    *,
    code: int = SCANNER_CODE,
    slope: float = 1.0,
    intercept: float = 0.0,
    simulated: bool = False,
) -> bytes:
    """A compressed NIfTI-1 file with a new header; equal arguments give equal bytes.

    Parameters
    ----------
    voxels
        Shape (X, Y, Z), integers or floats.
    affine
        4x4, voxel index to millimetres. It is the sform, and the qform too where it has no shear.
    code
        What the millimetres are relative to: 1 scanner, 2 another image, 3 Talairach, 4 MNI152.
    slope, intercept
        Scaling of the stored voxels.
    simulated
        Whether the description says so; it is empty otherwise.
    """
    import nibabel

    header = nibabel.Nifti1Header()
    dtype = voxels.dtype.newbyteorder("<")
    header.set_data_dtype(dtype)
    header.set_data_shape(voxels.shape)
    header.set_zooms(tuple(float(size) for size in voxel_sizes(affine)))
    header.set_xyzt_units("mm", "sec")
    header.set_qform(affine, code=code, strip_shears=True)
    corners = np.array([[0, 0, 0, 1], [*voxels.shape, 1], [voxels.shape[0], 0, 0, 1], [0, voxels.shape[1], 0, 1]]).T
    if not np.allclose(header.get_qform() @ corners, affine @ corners, atol=AFFINE_TOLERANCE_MM * 10, rtol=0):
        header.set_qform(affine, code=0, strip_shears=True)
    header.set_sform(affine, code=code)
    header.set_slope_inter(slope, intercept)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    if simulated:
        header["descrip"] = SIMULATED_NOTE
    little = header.as_byteswapped("<").binaryblock
    content = little + b"\0" * 4 + np.asarray(voxels, dtype=dtype).tobytes(order="F")
    return gzip.compress(content, compresslevel=COMPRESSION_LEVEL, mtime=0)


def companion_facts(root: Path, source_path: str) -> dict[str, Any]:
    """The JSON file beside an image, in its archive too; empty where there is none or it is damaged."""
    outer, separator, inner = source_path.partition("!")
    pattern = re.compile(r"(?:\.nifti)?\.(?:nii|hdr|img)(?:\.gz)?$", re.IGNORECASE)
    name = inner if separator else outer
    if not pattern.search(name):
        return {}
    beside = pattern.sub(".json", name)
    try:
        if separator:
            with zipfile.ZipFile(root / outer) as archive:
                if archive.getinfo(beside).file_size > MAXIMUM_SIDECAR_BYTES:
                    return {}
                with archive.open(beside) as stream:
                    raw = stream.read(MAXIMUM_SIDECAR_BYTES + 1)
        else:
            with (root / beside).open("rb") as stream:
                raw = stream.read(MAXIMUM_SIDECAR_BYTES + 1)
        facts = json.loads(raw.decode("utf-8-sig", errors="replace")) if len(raw) <= MAXIMUM_SIDECAR_BYTES else {}
    except (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _number(value: Any, low: float, high: float) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if low <= value <= high else None  # false for NaN


def manufacturer_of(value: Any) -> str | None:
    """The manufacturer, from any way of writing it.

    >>> manufacturer_of("SIEMENS"), manufacturer_of("GE MEDICAL SYSTEMS"), manufacturer_of("Jane Doe")
    ('Siemens', 'GE', None)
    """
    words = re.sub(r"[^a-z]+", " ", str(value or "").lower()).strip()
    for name, written in MANUFACTURERS.items():
        if words == name or words.startswith(name + " "):
            return written
    return None


def model_of(value: Any) -> str | None:
    """A scanner's model name, or None when a word of it is not one that such names are made of.

    >>> model_of("TrioTim"), model_of("Signa HDxt"), model_of("DISCOVERY MR750"), model_of("Trio of Jane Doe")
    ('TrioTim', 'Signa HDxt', 'DISCOVERY MR750', None)
    """
    text = str(value or "").strip()
    words = [word for word in re.split(r"[\s_/\-.,()]+", text) if word]
    for word in words:
        letters = re.sub(r"[0-9]{1,4}", "", word, count=1).lower()
        if letters and letters not in MODEL_WORDS:
            return None
    return text if words and len(text) <= 40 and not re.search(r"[0-9]{5}|[^\x20-\x7e]", text) else None


def sidecar_of(facts: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The acquisition parameters that may leave, from a side-car with BIDS names and from the cohort's table.

    Everything is checked against an allow-list: numbers against a credible range, words against a vocabulary.

    >>> sidecar_of({"EchoTime": 0.003, "PatientName": "DOE^JANE", "MagneticFieldStrength": 15000})
    {'EchoTime': 0.003, 'MagneticFieldStrength': 1.5, 'Modality': 'MR'}
    """
    known = known or {}
    sidecar: dict[str, Any] = {"Modality": "MR"}
    for name, (low, high) in NUMBERS.items():
        number = _number(facts.get(name), low, high)
        if number is not None:
            sidecar[name] = number
    for name in FLAGS:
        if isinstance(facts.get(name), bool):
            sidecar[name] = facts[name]
    for name, allowed in CHOICES.items():
        if facts.get(name) in allowed:
            sidecar[name] = facts[name]
    for name, vocabulary in WORDS.items():
        value = facts.get(name)
        parts = value if isinstance(value, list) else re.split(r"[\\_ /,]+", value) if isinstance(value, str) else []
        if parts and all(part in vocabulary for part in parts):
            sidecar[name] = "_".join(parts)
    for value in (facts.get("MagneticFieldStrength"), known.get("field_strength_t")):
        number = _number(value, 0.01, 120_000)
        strength = None if number is None else tesla(float(number))
        if strength is not None:
            sidecar["MagneticFieldStrength"] = strength
            break
    for name, column, clean in (
        ("Manufacturer", "manufacturer", manufacturer_of),
        ("ManufacturersModelName", "scanner_model", model_of),
    ):
        written = clean(facts.get(name)) or clean(known.get(column))
        if written is not None:
            sidecar[name] = written
    if re.search(r"grad_?warp", str(known.get("series_description") or ""), re.IGNORECASE):
        sidecar.setdefault("NonlinearGradientCorrection", True)
    return dict(sorted(sidecar.items()))


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk is at the root of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_image(task: ImageTask) -> dict[str, str]:
    """Write one image and its side-car.

    Returns
    -------
    dict
        ``status``: ``written``, ``refused`` (with ``reason`` and ``detail``) or ``disk_full``.
    """
    try:
        _write(task)
    except VolumeError as error:
        if disk_is_full(error):
            return {"status": "disk_full"}
        # Only the fixed words of an error leave: what was found may hold a file name.
        return {"status": "refused", "reason": str(error.reason), "detail": error.what}
    except Exception as error:
        if disk_is_full(error):
            return {"status": "disk_full"}
        raise
    return {"status": "written"}


def _write(task: ImageTask) -> None:
    import nibabel

    with nifti_on_disk(task.root, task.source_path, task.source_format) as (path, facts):
        stored = open_stored(path)
        voxels, slope, intercept = stored_voxels(stored)
        affine, header = stored.affine, stored.image.header
    code = SCANNER_CODE
    if stored.affine_source == "header":
        code = int(header["sform_code"]) or int(header["qform_code"])
    if task.source_format == "dicom":
        same = sorted(voxels.shape) == sorted(task.shape)  # the converter may turn the slices round
    else:
        facts = companion_facts(Path(task.root), task.source_path)
        same = tuple(voxels.shape) == tuple(task.shape)
        same = same and "".join(str(c) for c in nibabel.aff2axcodes(affine)) == task.orientation
        if task.data_sha256:
            little = np.asarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
            same = same and hashlib.sha256(little.tobytes(order="F")).hexdigest() == task.data_sha256
    if not same:
        raise VolumeError(
            "AMBIGUOUS_FILE",
            "the image is not the one that was accepted",
            remedy="the file changed since the cohort was read; read it again",
        )
    sidecar = sidecar_of(facts, task.known)
    sidecar |= {IMAGE_ID_KEY: task.image_id, SOURCE_KEY: task.source_sha256}
    if task.simulated:
        sidecar["Simulated"] = True
    content = nifti_bytes(voxels, affine, code=min(code, 5), slope=slope, intercept=intercept, simulated=task.simulated)
    write_pair(task.target, content, sidecar)


def write_pair(target: str, content: bytes, sidecar: Mapping[str, Any]) -> None:
    """Write a side-car and then its image, so that an image never stands beside a side-car of other content."""
    image = Path(f"{target}.nii.gz")
    image.unlink(missing_ok=True)
    write_json(f"{target}.json", sidecar)
    write_bytes(image, content)
