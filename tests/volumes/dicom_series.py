"""DICOM series of any volume for the tests: what scanners and archives make of it, good and bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CANARY = "Zzcanary"
"""Stands in every free-text field of a header; must never come out anywhere."""


def write_series(
    folder: Path,
    data: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    series: str = "t1",
    description: str = "MPRAGE",
    change: Callable[[Any, int], None] | None = None,
    prefix: str = "slice",
    skip: Sequence[int] = (),
) -> list[Path]:
    """One file per slice of the last axis, in files whose names do not tell their order.

    Parameters
    ----------
    folder
        Made when it does not exist.
    data
        Shape (columns, rows, slices), 16-bit integers.
    affine
        4x4, voxel index to millimetres (x to the right, y to the front, z up).
    series
        Slices of one name belong together.
    change
        Called with each dataset and the slice's number before it is written.
    skip
        Slices that are not written.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    patient = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's axes run to left and back
    sizes = np.sqrt((patient[:3, :3] ** 2).sum(axis=0))
    paths = []
    for number in range(data.shape[2]):
        if number in skip:
            continue
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
        dataset.Modality, dataset.SeriesDescription, dataset.InstanceNumber = "MR", description, number + 1
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = CANARY, f"{CANARY}01", "19010203"
        dataset.ImageComments = dataset.InstitutionName = dataset.OperatorsName = CANARY
        dataset.Rows, dataset.Columns = data.shape[1], data.shape[0]
        dataset.PixelSpacing = [float(sizes[1]), float(sizes[0])]
        dataset.SliceThickness = 9.0  # not the distance of slices, which is told by their positions
        dataset.ImageOrientationPatient = [
            float(v) for v in (*(patient[:3, 0] / sizes[0]), *(patient[:3, 1] / sizes[1]))
        ]
        dataset.ImagePositionPatient = [float(v) for v in patient[:3, 3] + number * patient[:3, 2]]
        dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
        dataset.PixelRepresentation = 1 if data.dtype.kind == "i" else 0
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.PixelData = np.ascontiguousarray(data[:, :, number].T).astype(data.dtype.newbyteorder("<")).tobytes()
        if change is not None:
            change(dataset, number)
        path = folder / f"{prefix}{(number * 37) % 1009:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
