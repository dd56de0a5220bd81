"""Image files as the custodians ship them: NIfTI, Analyze 7.5 and NIfTI pairs, DICOM series, zipped sessions.

A :class:`Job` says everything about one image, so that any process can render and write it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medalign3d.simulate.anatomy import Anatomy, Scan, renderer_of

DESCRIPTION = "simulated (MedAlign-3D)"
Format = Literal["nifti", "nifti_gz", "nifti_pair", "analyze", "dicom", "zip"]
Damage = Literal["unreadable", "not_3d", "truncated", "bad_affine", "empty"]
FIXED_ZIP_DATE = (2020, 1, 1, 0, 0, 0)


@dataclass
class Job:
    """One image to render and write.

    ``path`` is relative to the cohort's root: the file (``.nii``, ``.nii.gz``, ``.hdr``, ``.zip``) or the DICOM folder.
    """

    key: str
    subject: str
    path: str
    format: Format
    anatomy: Anatomy
    scan: Scan
    truth: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    """DICOM attributes or JSON sidecar content."""
    file_pattern: str = ""
    """DICOM file name with ``{slice}``."""
    inner: str = ""
    """Name of the ``.nii`` inside a zip, or of the folder of the twin DICOM zip."""
    members: list[tuple[str, Anatomy | None, Scan, dict[str, Any]]] = field(default_factory=list)
    """Further images of a zip: inner name, anatomy, scan, JSON."""
    dicom_twin: str = ""
    """Path of a second zip with the same session as DICOM."""
    sidecar: str = ""
    """Path of a JSON file to write beside the image."""
    copies: list[str] = field(default_factory=list)
    """Further paths that get the same bytes."""
    damage: Damage | None = None


def run_job(job: Job, root: Path, template: Path) -> dict[str, Any]:
    """Render one image, write it below ``root`` and return its row of the truth table."""
    rendered = renderer_of(template).render(job.anatomy, job.scan)
    data, affine = rendered.data, rendered.affine
    if job.damage == "empty":
        data = np.zeros_like(data)
    target = root / job.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if job.format == "dicom":
        write_dicom_series(target, data, affine, job.header, job.file_pattern)
    elif job.format == "zip":
        _write_zip(target, job, data, affine, template)
        if job.dicom_twin:
            _write_dicom_zip(root / job.dicom_twin, job, data, affine)
    elif job.format == "analyze":
        write_analyze(target, data, job.scan.zooms_mm)
    elif job.format == "nifti_pair":
        image = _nifti(data, affine, nib.Nifti1Pair)
        write_pair(target, target.with_suffix(".img"), image)
        if job.damage == "truncated":
            pixels = target.with_suffix(".img")
            pixels.write_bytes(pixels.read_bytes()[: data.nbytes // 2])
    else:
        content = nifti_bytes(data, affine, job.damage)
        if job.format == "nifti_gz":
            content = gzip.compress(content, compresslevel=1, mtime=0)
        target.write_bytes(content)
    for copy in job.copies:
        (root / copy).parent.mkdir(parents=True, exist_ok=True)
        (root / copy).write_bytes(target.read_bytes())
    if job.sidecar:
        (root / job.sidecar).write_text(json.dumps(job.header, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "native_image_key": job.key,
        "native_subject_id": job.subject,
        **job.truth,
        **rendered.truth,
    }


# ---------------------------------------------------------------------------------------------------------------- nifti
def _nifti(data: NDArray[Any], affine: NDArray[Any], kind: Any = nib.Nifti1Image) -> Any:
    image = kind(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header["descrip"] = DESCRIPTION.encode()
    return image


def nifti_bytes(data: NDArray[Any], affine: NDArray[Any], damage: str | None = None) -> bytes:
    """A ``.nii`` file, damaged on request."""
    if damage == "not_3d":
        data = np.stack([data, data], axis=-1)
    image = _nifti(data, affine)
    if damage == "bad_affine":
        singular = affine.copy()
        singular[:3, 2] = 0.0
        image.header.set_qform(None, 0)
        image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = singular[:3]
        image.header["sform_code"] = 1
        # nibabel writes the affine it was given: write the header and the voxels by hand
        header = image.header.copy()
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        return bytes(header.binaryblock) + b"\0\0\0\0" + data.tobytes(order="F")
    content = image.to_bytes()
    if damage == "unreadable":
        noise = np.random.default_rng(len(content)).integers(0, 256, 4096, dtype=np.uint8).tobytes()
        return noise + b"\0" * 512
    if damage == "truncated":
        return bytes(content[: len(content) // 2])
    return bytes(content)


def write_pair(header_path: Path, image_path: Path, image: Any) -> None:
    """Write a header and voxels as two files under exactly these names."""
    maps = type(image).make_file_map({"header": io.BytesIO(), "image": io.BytesIO()})
    image.to_file_map(maps)
    header_path.write_bytes(maps["header"].fileobj.getvalue())
    image_path.write_bytes(maps["image"].fileobj.getvalue())


def write_analyze(header_path: Path, data: NDArray[np.int16], zooms_mm: tuple[float, float, float]) -> None:
    """Write Analyze 7.5, 4-D with a trailing axis of one, without any orientation: as OASIS-1 ships its images."""
    image = nib.AnalyzeImage(data[..., np.newaxis], None)
    image.header.set_data_dtype(np.int16)
    image.header.set_zooms((*zooms_mm, 1.0))
    raw = image.header.structarr
    raw["db_name"] = b"simulated"
    write_pair(header_path, header_path.with_suffix(".img"), image)


# ------------------------------------------------------------------------------------------------------------------ zip
def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, FIXED_ZIP_DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content, compresslevel=1)


def _write_zip(target: Path, job: Job, data: NDArray[np.int16], affine: NDArray[Any], template: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        _add(archive, job.inner, nifti_bytes(data, affine, job.damage))
        _add(archive, job.inner.removesuffix(".nii") + ".json", _json(job.header))
        for name, anatomy, scan, sidecar in job.members:
            other = renderer_of(template).render(anatomy or job.anatomy, scan)
            _add(archive, name, nifti_bytes(other.data, other.affine))
            _add(archive, name.removesuffix(".nii") + ".json", _json(sidecar))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _write_dicom_zip(target: Path, job: Job, data: NDArray[np.int16], affine: NDArray[Any]) -> None:
    stem = Path(job.dicom_twin).stem
    with zipfile.ZipFile(target, "w") as archive:
        for number, content in enumerate(dicom_slices(data, affine, _dicom_header(job))):
            _add(archive, f"{stem}/{number + 1:04d}.dcm", content)


def _dicom_header(job: Job) -> dict[str, Any]:
    return {
        "PatientID": job.subject,
        "SeriesDescription": job.header.get("SeriesDescription", ""),
        "Manufacturer": job.header.get("Manufacturer", ""),
        "MagneticFieldStrength": job.header.get("MagneticFieldStrength"),
    }


# ---------------------------------------------------------------------------------------------------------------- dicom
def uid_of(*parts: object) -> str:
    """A DICOM unique identifier that depends on ``parts`` only."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()
    return f"2.25.{int(digest[:30], 16)}"


def dicom_slices(data: NDArray[np.int16], affine: NDArray[Any], header: dict[str, Any]) -> list[bytes]:
    """One DICOM file per slice of the last axis; columns run along the first axis, rows along the second."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    to_lps = np.diag([-1.0, -1.0, 1.0])
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    directions = to_lps @ (affine[:3, :3] / zooms)
    origin, step = to_lps @ affine[:3, 3], to_lps @ affine[:3, 2]
    series = uid_of("series", header.get("PatientID"), header.get("SeriesNumber"), header.get("ImageUid", ""))
    study = uid_of("study", header.get("PatientID"), header.get("StudyDate", ""))
    files = []
    for k in range(data.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"{series}.{k + 1}")
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = pydicom.uid.UID("2.25.1")
        meta.FileMetaInformationVersion = b"\x00\x01"
        item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        item.StudyInstanceUID, item.SeriesInstanceUID = study, series
        item.FrameOfReferenceUID = uid_of("frame", series)
        item.Modality = "MR"
        item.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]
        item.PatientID = str(header.get("PatientID", ""))
        item.PatientName = "SIMULATED"
        item.PatientSex = str(header.get("PatientSex", ""))
        item.ImageComments = DESCRIPTION
        item.InstitutionName = "simulated"
        item.StudyDate = item.SeriesDate = item.AcquisitionDate = str(header.get("StudyDate", ""))
        item.StudyTime = item.SeriesTime = "100000"
        item.SeriesDescription = str(header.get("SeriesDescription", "MPRAGE"))
        item.Manufacturer = str(header.get("Manufacturer", "SIEMENS"))
        if header.get("MagneticFieldStrength") is not None:
            item.MagneticFieldStrength = f"{float(header['MagneticFieldStrength']):g}"
        item.MRAcquisitionType = "3D"
        item.ScanningSequence, item.SequenceVariant = ["GR", "IR"], ["SP", "MP"]
        item.RepetitionTime, item.EchoTime, item.InversionTime, item.FlipAngle = "2300", "2.98", "900", "9"
        item.SeriesNumber = int(header.get("SeriesNumber", 2))
        item.AcquisitionNumber, item.InstanceNumber = 1, k + 1
        item.ImagePositionPatient = [f"{value:.6g}" for value in origin + k * step]
        item.ImageOrientationPatient = [f"{value:.6g}" for value in (*directions[:, 0], *directions[:, 1])]
        item.PixelSpacing = [f"{zooms[1]:.6g}", f"{zooms[0]:.6g}"]
        item.SliceThickness = f"{zooms[2]:.6g}"
        item.SpacingBetweenSlices = f"{zooms[2]:.6g}"
        item.SliceLocation = f"{float(np.cross(directions[:, 0], directions[:, 1]) @ (origin + k * step)):.6g}"
        item.Rows, item.Columns = data.shape[1], data.shape[0]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 1
        item.SmallestImagePixelValue, item.LargestImagePixelValue = int(data.min()), int(data.max())
        item.PixelData = np.ascontiguousarray(data[:, :, k].T).astype("<i2").tobytes()
        buffer = io.BytesIO()
        item.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


def write_dicom_series(
    folder: Path, data: NDArray[np.int16], affine: NDArray[Any], header: dict[str, Any], pattern: str
) -> None:
    """Write a DICOM series, one file per slice, named by ``pattern`` with ``{slice}``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(dicom_slices(data, affine, header)):
        (folder / pattern.format(slice=number + 1)).write_bytes(content)
