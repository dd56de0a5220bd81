"""What ADNI and AIBL share: the folder layout and the image lists of the LONI image and data archive."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from medalign3d.cohorts.base import COMMENT, Ingest
from medalign3d.cohorts.images import ImageFile
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.cohorts.tables import Row, headers
from medalign3d.cohorts.values import Quantity, is_blank, parse_date, parse_float, parse_number

IMAGE_SUFFIXES = (".dcm", ".nii", ".nii.gz", ".hdr", ".img", ".ima")
_IMAGE_NUMBER = re.compile(r"_I(\d+)(?:\.[A-Za-z0-9]+)+$")
_SERIES_NUMBER = re.compile(r"_S(\d+)_I\d+\.")
_IMAGE_FOLDER = re.compile(r"I(\d+)")
_NUMBER_FOLDER = re.compile(r"[IS]\d+")
_STAMP = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[_ T].*)?")
_NOT_T1 = re.compile(
    r"FLAIR|(?<![A-Z0-9])T2|PROTON|(?<![A-Z])PD(?![A-Z])|LOCALI|SCOUT|SURVEY|CALIB|FIELD.?MAP|DTI|DWI|DIFF|BOLD|FMRI|REST"
    r"|PERF|ASL|SWI|HIPPO|MASK|SEGM|0-ACPC|TOF|AAHEAD|PHANTOM|B1.?MAP|B1-CALIBRATION|PET|AV45|PIB|FDG|FLUTE|TRACE|ADC",
)
_T1 = re.compile(r"MP.?RAGE|MPR(?![A-Z])|SPGR|BRAVO|(?<![A-Z0-9])M?T1|3D.?TFE|TURBO.?FIELD|TFL")
_REPEAT = re.compile(r"RPT|REPEAT|RE-?PEAT|(?<![0-9])2$|_X2$")
_PROCESSED = re.compile(r"N3|SCALED|GRADWARP|B1_CORRECTION|UNWARP|MT1")

LIST_IMAGE_ID = ("Image Data ID", "Image ID", "IMAGEUID", "image_id", "ImageUID")
LIST_SUBJECT = ("Subject", "Subject ID", "SubjectID", "subject_id", "RID", "PTID")
LIST_DESCRIPTION = ("Description", "Sequence", "image_description", "SERIES_DESCRIPTION")
LIST_DATE = ("Acq Date", "Study Date", "ScanDate", "SCANDATE", "image_date")
LIST_VISIT = ("Visit", "image_visit", "VISCODE2", "VISCODE")


def is_t1_description(description: str) -> bool:
    """Whether a series description is that of a T1-weighted volume.

    >>> [is_t1_description(d) for d in ("MPRAGE_confirmed_RPT", "Accelerated_Sag_IR-FSPGR", "MT1__N3m", "T2_FLAIR")]
    [True, True, True, False]
    """
    text = description.upper()
    return bool(_T1.search(text)) and not _NOT_T1.search(text)


def is_repeat(description: str) -> bool:
    """Whether a series description marks a repeated acquisition."""
    return bool(_REPEAT.search(description.upper()))


def is_processed(description: str) -> bool:
    """Whether a series description marks a volume that the archive derived from an acquisition."""
    return bool(_PROCESSED.search(description.upper()))


def laboratory_value(cell: str) -> tuple[Any, QuarantineReason | None]:
    """A laboratory result; a remark in its place (``<0.10``, ``SCC09``, ``NO SPECIMEN``) is emptied."""
    value, problem = parse_number(cell, Quantity(0, 1e6, missing=frozenset({-4.0, -1.0})))
    if problem is QuarantineReason.SENTINEL_UNKNOWN and parse_float(cell) is None:
        return COMMENT, None
    return value, problem


@dataclass
class LoniImage:
    """The files of one image number."""

    uid: str
    subject_folder: str
    series_folder: str
    stamp: str
    series_number: int | None
    files: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)

    @property
    def description(self) -> str:
        """Series description: the folder's name."""
        return self.series_folder

    def scan_date(self) -> tuple[datetime.date | None, QuarantineReason | None]:
        """Date of the acquisition folder."""
        match = _STAMP.fullmatch(self.stamp)
        return parse_date(match[1]) if match else (None, QuarantineReason.DATE_UNPARSABLE)

    def image_file(self) -> ImageFile | None:
        """How to read it, or None when the files are not one image."""
        by_kind: dict[str, list[str]] = {}
        for name in self.files:
            lower = name.lower()
            kind = (
                "nifti"
                if lower.endswith((".nii", ".nii.gz"))
                else "pair"
                if lower.endswith((".hdr", ".img"))
                else "dicom"
            )
            by_kind.setdefault(kind, []).append(name)
        if "nifti" in by_kind:
            names = by_kind["nifti"]
            return ImageFile(names[0], "nifti", (names[0],)) if len(names) == 1 else None
        if "pair" in by_kind:
            names = sorted(by_kind["pair"])
            return ImageFile(names[0], "analyze", tuple(names)) if len(names) <= 2 else None
        names = sorted(by_kind["dicom"])
        folders = sorted({str(PurePosixPath(name).parent) for name in names})
        # One series may be spread over several unpacked archives: the folder of the first stands for all.
        return ImageFile(folders[0], "dicom", tuple(names))


def group_images(files: Sequence[str]) -> list[LoniImage]:
    """Group image files by image number, wherever they lie; slices of two images in one folder are kept apart."""
    images: dict[tuple[str, str], LoniImage] = {}
    for path in files:
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        parts = PurePosixPath(path).parts
        name = parts[-1]
        folders = parts[:-1]
        number_at = next((i for i in range(len(folders) - 1, -1, -1) if _NUMBER_FOLDER.fullmatch(folders[i])), None)
        stamp_at = next((i for i in range(len(folders) - 1, -1, -1) if _STAMP.fullmatch(folders[i])), None)
        if stamp_at is None and number_at is not None:
            stamp_at = number_at - 1
        if match := _IMAGE_NUMBER.search(name):
            uid = match[1]
        elif number_at is not None and (folder := _IMAGE_FOLDER.fullmatch(folders[number_at])):
            uid = folder[1]
        else:
            continue
        stamp = folders[stamp_at] if stamp_at is not None and stamp_at >= 0 else ""
        series = folders[stamp_at - 1] if stamp_at is not None and stamp_at >= 1 else ""
        subject = folders[stamp_at - 2] if stamp_at is not None and stamp_at >= 2 else ""
        number = _SERIES_NUMBER.search(name)
        image = images.setdefault(
            (subject, uid), LoniImage(uid, subject, series, stamp, int(number[1]) if number else None)
        )
        image.files.append(path)
        image.folders.add("/".join(folders))
    return [images[key] for key in sorted(images, key=lambda key: (key[0], int(key[1])))]


def read_image_lists(ingest: Ingest, skip: Sequence[str] = ()) -> tuple[dict[str, list[Row]], list[Row], bool]:
    """Read every collection list, search export and scan list of the cohort.

    Returns
    -------
    rows_by_image
        Image number -> rows, collection lists first.
    search_rows
        Rows of lists without an image number.
    has_collection
        Whether a collection list (which names every image of a download) is there.
    """
    rows: dict[str, list[Row]] = {}
    search: list[Row] = []
    collections: list[str] = []
    others: list[str] = []
    for path, keys in headers(ingest.root, [f for f in ingest.files if f not in skip]).items():
        if "image_data_id" in keys and "subject" in keys:
            collections.append(path)
        elif ({"imageuid", "image_id"} & keys and {"scandate", "image_date", "sequence", "scan_date"} & keys) or (
            "subject_id" in keys and "study_date" in keys
        ):
            others.append(path)
    for path in [*sorted(collections), *sorted(others)]:
        table = ingest.read(path, "image list")
        for row in table.rows():
            uid = row.get(*LIST_IMAGE_ID).strip().lstrip("I")
            uid = uid.split(".")[0]
            if uid.isdigit():
                rows.setdefault(uid, []).append(row)
            elif not is_blank(row.get(*LIST_SUBJECT)):
                search.append(row)
    return rows, search, bool(collections)


def collection_rows(rows: dict[str, list[Row]]) -> dict[str, Row]:
    """The rows that stand in a collection list (known by its ``Image Data ID``)."""
    return {
        uid: row
        for uid, all_rows in rows.items()
        for row in all_rows[:1]
        if row.table.column("Image Data ID") is not None
    }
