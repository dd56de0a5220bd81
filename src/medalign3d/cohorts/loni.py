"""What ADNI and AIBL share: the folder layout, image lists and metadata files of the LONI image and data archive.

An image is known by its number: ``*_I<number>.*`` in the file's name, else the folder ``I<number>``. The unpacked parts
of a download may lie in folders of any depth; parts that are still zipped are read as ``archive.zip!inner/path``.
"""

from __future__ import annotations

import datetime
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.archives import Archive, ArchiveError, read_file
from medalign3d.cohorts.base import COMMENT, FoundImage, Ingest, Parser, Sourced
from medalign3d.cohorts.images import ZIP_SEPARATOR, ImageFile, tesla
from medalign3d.cohorts.reasons import Level, QuarantineReason, Severity
from medalign3d.cohorts.tables import Row, headers
from medalign3d.cohorts.values import (
    Quantity,
    age_precision_of,
    is_blank,
    parse_date,
    parse_float,
    parse_number,
    parse_sex,
)

IMAGE_SUFFIXES = (".dcm", ".nii", ".nii.gz", ".hdr", ".img", ".ima")
MAXIMUM_XML_BYTES = 4 << 20
MISSING = frozenset({-4.0, -1.0})
_IMAGE_NUMBER = re.compile(r"_I(\d+)(_Eq_\d+)?(?:\.[A-Za-z0-9]+)+$", re.IGNORECASE)
_SERIES_NUMBER = re.compile(r"_S(\d+)_I\d+[._]", re.IGNORECASE)
_IMAGE_FOLDER = re.compile(r"I(\d+)")
_NUMBER_FOLDER = re.compile(r"[IS]\d+")
_STAMP = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[_ T].*)?")
_NOT_T1 = re.compile(
    r"FLAIR|(?<![A-Z0-9])T2|PROTON|(?<![A-Z])PD(?![A-Z])|LOCALI|SCOUT|SURVEY|CALIB|FIELD.?MAP|DTI|DWI|DIFF|BOLD|FMRI|REST"
    r"|PERF|ASL|SWI|HIPPO|MASK|SEGM|0-ACPC|TOF|AAHEAD|PHANTOM|B1.?MAP|B1-CALIBRATION|PET|AV45|PIB|FDG|FLUTE|TRACE|ADC",
)
_T1 = re.compile(r"MP.?RAGE|MPR(?![A-Z])|SPGR|BRAVO|(?<![A-Z0-9])M?T1|3D.?TFE|TURBO.?FIELD|TFL")
_REPEAT = re.compile(r"RPT|REPEAT|RE-?PEAT|MPR-R(?![A-Z])|(?<![0-9])2$|_X2$")
_PROCESSED = re.compile(r"N3|SCALED|GRADWARP|B1_CORRECTION|B1 CORRECTION|UNWARP|MT1")

LIST_IMAGE_ID = ("Image Data ID", "Image ID", "IMAGEUID", "image_id", "ImageUID", "image_uid", "loni_image")
LIST_SUBJECT = ("Subject", "Subject ID", "SubjectID", "subject_id", "PTID", "RID")
LIST_DESCRIPTION = ("Description", "Sequence", "image_description", "series_description")
LIST_DATE = ("Acq Date", "Study Date", "ScanDate", "image_date", "series_date")
LIST_VISIT = ("Visit", "image_visit", "VISCODE2", "VISCODE")
LIST_AGE = ("Age", "subject_age", "image_age")
LIST_SEX = ("Sex", "subject_sex")
LIST_STRENGTH = ("MagStrength", "field_strength", "mag_strength")
LIST_KIND = ("Type", "Orig/Proc", "image_type")
LIST_SERIES = ("SeriesID", "series_id", "loni_series")

#: Wide bounds of what a body can hold, in the units of ADNI (see ``medalign3d.ehr.text.LAB_WORDS``).
LABORATORY_RANGES: dict[str, tuple[float, float]] = {
    "tsh": (0, 500),  # uIU/mL
    "vitamin_b12": (20, 20000),  # pg/mL
    "red_cells": (0.5, 12),  # 10^6/uL
    "white_cells": (0.1, 300),  # 10^3/uL
    "platelets": (1, 3000),  # 10^3/uL
    "haemoglobin": (2, 30),  # g/dL
    "mch": (8, 80),  # pg
    "mchc": (10, 60),  # g/dL
    "alt": (0, 10000),  # U/L
    "ast": (0, 10000),  # U/L
    "urea_nitrogen": (1, 400),  # mg/dL
    "glucose": (10, 2000),  # mg/dL
    "triglycerides": (5, 10000),  # mg/dL
    "cholesterol": (20, 2000),  # mg/dL
    "creatinine": (0.1, 40),  # mg/dL
}


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
    value, problem = parse_number(cell, Quantity(0, 1e6, missing=MISSING))
    if problem is QuarantineReason.SENTINEL_UNKNOWN and parse_float(cell) is None:
        return COMMENT, None
    return value, problem


def laboratory_parser(name: str) -> Callable[[str], tuple[Any, QuarantineReason | None]]:
    """:func:`laboratory_value` for one analyte in the units of ADNI, with its range."""
    low, high = LABORATORY_RANGES[name]

    def parse(cell: str) -> tuple[Any, QuarantineReason | None]:
        value, problem = laboratory_value(cell)
        if isinstance(value, float) and not low <= value <= high:
            return None, QuarantineReason.VALUE_OUT_OF_RANGE
        return value, problem

    return parse


# --------------------------------------------------------------------------------------------------------------- files


@dataclass
class LoniImage:
    """The files of one image number in one place.

    Attributes
    ----------
    uid
        The image number; empty for an image file that carries none.
    key
        The native image key: ``I<number>``, or the path of a file without a number.
    subject_folder, series_folder, stamp
        The folders that name participant, series and time of the acquisition.
    named_subject
        The participant that the file's own name gives, where it gives one.
    archive
        The archive that holds the files; empty for files on disk.
    problem
        Why these files cannot be read as one image.
    twin
        Whether the same image is also there in another format, which is not used.
    mixed
        Whether slices of other images lie in the same folder.
    """

    uid: str
    key: str
    subject_folder: str
    series_folder: str
    stamp: str
    series_number: int | None
    named_subject: str = ""
    archive: str = ""
    equalised: bool = False
    problem: str = ""
    twin: bool = False
    mixed: bool = False
    files: list[str] = field(default_factory=list)

    @property
    def description(self) -> str:
        """Series description: the folder's name."""
        return self.series_folder

    @property
    def place(self) -> str:
        """Where its first file is, relative to the cohort's root."""
        return f"{self.archive}{ZIP_SEPARATOR}{self.files[0]}" if self.archive else self.files[0]

    def scan_date(self) -> tuple[datetime.date | None, QuarantineReason | None]:
        """Date of the acquisition folder."""
        match = _STAMP.fullmatch(self.stamp)
        return parse_date(match[1]) if match else (None, QuarantineReason.DATE_UNPARSABLE)

    def image_file(self) -> ImageFile | None:
        """How to read it, or None when the files are not one image (``problem`` then says why)."""
        by_kind: dict[str, list[str]] = {}
        for name in self.files:
            by_kind.setdefault(_kind_of(name), []).append(name)
        self.twin = len(by_kind) > 1
        before = f"{self.archive}{ZIP_SEPARATOR}" if self.archive else ""
        if self.problem:
            return None
        if "nifti" in by_kind:
            names = by_kind["nifti"]
            if len(names) == 1:
                return ImageFile(f"{before}{names[0]}", "nifti", (names[0],))
            self.problem = "several files carry one image number"
            return None
        if "pair" in by_kind:
            names = sorted(by_kind["pair"])
            if len({PurePosixPath(name).with_suffix("") for name in names}) == 1:
                return ImageFile(f"{before}{names[0]}", "analyze", tuple(names))
            self.problem = "several files carry one image number"
            return None
        names = sorted(by_kind["dicom"])
        folders = {str(PurePosixPath(name).parent) for name in names}
        if len(folders) > 1:
            self.problem = "the slices of one image lie in several folders; put them into one"
            return None
        folder = folders.pop()
        if not self.mixed or PurePosixPath(folder).name == f"I{self.uid}":
            return ImageFile(f"{before}{'' if folder == '.' else folder}" or ".", "dicom", tuple(names))
        if self.archive:
            self.problem = "an archive's folder mixes slices of several images; unpack it"
            return None
        # One slice stands for those that carry its image number: the folder belongs to another image.
        return ImageFile(names[0], "dicom", tuple(names))


def _kind_of(name: str) -> str:
    lower = name.lower()
    return "nifti" if lower.endswith((".nii", ".nii.gz")) else "pair" if lower.endswith((".hdr", ".img")) else "dicom"


@dataclass
class ArchiveListing:
    """Files on disk and inside of archives (``archive.zip!inner``), and the archives that cannot be opened."""

    files: list[str]
    damaged: list[tuple[str, str]] = field(default_factory=list)


def list_with_archives(root: Path, files: Sequence[str]) -> ArchiveListing:
    """All files, with the image and metadata files inside zip archives as ``archive.zip!inner/path``.

    Only the archives' tables of contents are read; members that :class:`Archive` refuses are never offered.
    """
    listing = ArchiveListing(list(files))
    for path in files:
        if not path.lower().endswith(".zip"):
            continue
        try:
            with Archive(root / path) as archive:
                members, refused = archive.members, archive.refused
        except ArchiveError as error:
            listing.damaged.append((path, f"{error.what}: {error.found}"))
            continue
        for member in members:
            parts = member.name.split("/")
            if any(part.startswith(".") or part == "__MACOSX" for part in parts) or ZIP_SEPARATOR in member.name:
                continue
            if member.name.lower().endswith((*IMAGE_SUFFIXES, ".xml")):
                listing.files.append(f"{path}{ZIP_SEPARATOR}{member.name}")
        images = [other for other in refused if other.name.lower().endswith(IMAGE_SUFFIXES)]
        if images:
            listing.damaged.append((path, f"{len(images)} members cannot be used: {images[0].why}"))
    return listing


def group_images(files: Iterable[str], participant: re.Pattern[str] | None = None) -> list[LoniImage]:
    """Group image files by image number, wherever they lie; slices of two images in one folder are kept apart.

    One image number in several places (a download that was unpacked twice, or lies beside its archive) gives one entry
    per place, files on disk first.

    Parameters
    ----------
    files
        Relative paths; members of archives as ``archive.zip!inner/path``.
    participant
        What the folder of a participant is called; when None, it is the second folder above the time of acquisition.

    Returns
    -------
    list of LoniImage
        Sorted by participant and image number; files without an image number come last.
    """
    places: dict[tuple[str, str], dict[tuple[bool, str, str], LoniImage]] = {}
    numbers_in: dict[str, set[str]] = {}
    for path in files:
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        archive, _, inner = path.rpartition(ZIP_SEPARATOR) if ".zip!" in path.lower() else ("", "", path)
        parts = PurePosixPath(inner).parts
        name, folders = parts[-1], parts[:-1]
        subject_at, stamp_at, number_at = _folders_of(folders, participant)
        equalised = False
        if match := _IMAGE_NUMBER.search(name):
            uid, equalised = match[1], match[2] is not None
        elif number_at is not None and (folder := _IMAGE_FOLDER.fullmatch(folders[number_at])):
            uid = folder[1]
            equalised = re.search(r"_Eq_\d+\.", name, re.IGNORECASE) is not None
        else:
            uid = ""
        uid = uid.lstrip("0") or uid
        parent = "/".join(folders)
        numbers_in.setdefault(f"{archive}{ZIP_SEPARATOR}{parent}", set()).add(uid)
        subject = folders[subject_at] if subject_at is not None else ""
        stamp = folders[stamp_at] if stamp_at is not None else ""
        end = stamp_at if stamp_at is not None else number_at if number_at is not None else len(folders)
        series = folders[end - 1] if end >= 1 and end - 1 != subject_at else ""
        if uid == "":
            # One entry per volume file or folder of slices; nobody can tell which image it is.
            shown = parent if _kind_of(name) == "dicom" else str(PurePosixPath(inner).with_suffix(""))
            key = f"{archive}{ZIP_SEPARATOR}{shown}" if archive else shown
        else:
            key = f"I{uid}" + (re.sub(r"\.(?:nii|gz|hdr|img|dcm|ima)", "", name)[-5:] if equalised else "")
        base = "/".join(folders[: subject_at if subject_at is not None else len(folders)])
        number = _SERIES_NUMBER.search(name)
        named = re.match(r"[A-Za-z]+_(\d{3}_S_\d{4,5}|\d+)_", name)
        image = places.setdefault((subject, key), {}).setdefault(
            (bool(archive), archive, base),
            LoniImage(
                uid,
                key,
                subject,
                series,
                stamp,
                int(number[1]) if number else None,
                named[1] if named else "",
                archive,
                equalised,
            ),
        )
        if named and image.named_subject and named[1] != image.named_subject:
            image.problem = "the files of one image name different participants"
        image.files.append(inner)
    found: list[LoniImage] = []
    for by_place in places.values():
        copies = [by_place[place] for place in sorted(by_place)]
        names = [PurePosixPath(name).name for image in copies for name in image.files]
        if len(copies) > 1 and len(set(names)) == len(names) and all(_kind_of(name) == "dicom" for name in names):
            # No slice is there twice: one series was torn apart. Parts of it must never pass for the whole.
            for image in copies[1:]:
                copies[0].files += image.files
            copies[0].problem = "the slices of one image lie in several places; put them into one folder"
            copies = copies[:1]
        found += copies
    for image in found:
        image.files.sort()
        parents = {str(PurePosixPath(name).parent) for name in image.files}
        image.mixed = any(
            len(numbers_in.get(f"{image.archive}{ZIP_SEPARATOR}{'' if parent == '.' else parent}", ())) > 1
            for parent in parents
        )
    return sorted(found, key=lambda i: (i.uid == "", i.subject_folder, int(i.uid or 0), i.key, i.archive, i.files[0]))


def _folders_of(
    folders: Sequence[str], participant: re.Pattern[str] | None
) -> tuple[int | None, int | None, int | None]:
    """Positions of the folders that name the participant, the time of acquisition and the image."""
    last = range(len(folders) - 1, -1, -1)
    stamp_at = next((i for i in last if _STAMP.fullmatch(folders[i])), None)
    number_at = next((i for i in last if _NUMBER_FOLDER.fullmatch(folders[i])), None)
    if participant is not None:
        subject_at = next((i for i in last if participant.fullmatch(folders[i])), None)
        if subject_at is not None:
            return subject_at, stamp_at, number_at
    if stamp_at is None and number_at is not None and number_at >= 1 and participant is None:
        # A folder of unreadable time still stands where the time belongs.
        stamp_at = number_at - 1
    subject_at = stamp_at - 2 if stamp_at is not None and stamp_at >= 2 else None
    return subject_at, stamp_at, number_at


def start_image(book: Ingest, image: LoniImage) -> tuple[FoundImage, bool]:
    """Enter an image into the books; whether its files can be read as one image with a number.

    Parameters
    ----------
    book
        The ingest.
    image
        The files.

    Returns
    -------
    FoundImage, bool
        The image, and False when it was dropped.
    """
    file = image.image_file()
    item = FoundImage(image.key, file or ImageFile(image.place, "nifti", (image.files[0],)))
    item.series_description = image.description or None
    book.images.append(item)
    if image.uid == "":
        book.drop(item, QuarantineReason.ID_UNPARSABLE, "neither the file nor its folder carries an image number")
    elif image.equalised:
        book.drop(
            item, QuarantineReason.KNOWN_BAD_CONVERSION, "slices at uneven distances were moved by the conversion"
        )
    elif file is None:
        book.drop(item, QuarantineReason.AMBIGUOUS_FILE, image.problem)
    elif image.twin:
        book.remark(
            item, QuarantineReason.DUPLICATE_KEY_IDENTICAL, "the image is there in two formats; the slices are left out"
        )
    return item, not item.dropped


def drop_damaged_archives(book: Ingest, damaged: Iterable[tuple[str, str]]) -> None:
    """Count every archive that cannot be opened as an image that cannot be read."""
    for path, detail in damaged:
        item = FoundImage(path, ImageFile(path, "nifti", (path,)))
        book.images.append(item)
        book.drop(item, QuarantineReason.IMAGE_UNREADABLE, detail)


# ------------------------------------------------------------------------------------------------- lists and metadata


@dataclass
class ImageLists:
    """Rows of collection lists, search exports and scan lists.

    Attributes
    ----------
    by_image
        Image number -> rows, collection lists first.
    search
        Rows without an image number.
    """

    by_image: dict[str, list[Row]] = field(default_factory=dict)
    search: list[Row] = field(default_factory=list)

    def rows(self) -> Iterable[Row]:
        """All rows."""
        for rows in self.by_image.values():
            yield from rows
        yield from self.search


def is_image_list(keys: set[str]) -> bool:
    """Whether a table with these header keys lists images: the lists are known by header, not by name."""
    if "image_data_id" in keys and "subject" in keys:
        return True
    numbered = {"imageuid", "image_id", "image_uid"} & keys
    if numbered and {"scandate", "image_date", "sequence", "scan_date", "image_description"} & keys:
        return True
    return "subject_id" in keys and bool({"study_date", "image_date"} & keys)


_LIST_IMAGE_NUMBER = re.compile(r"I?0*([1-9]\d{0,11})(?:\.0*)?", re.ASCII | re.IGNORECASE)
_LIST_ID = re.compile(r"\s*(?:\d{3}_S_\d{4,5}|\d{1,9}(?:\.0+)?)\s*", re.ASCII | re.IGNORECASE)


def _refused(parse: Callable[[str], Any]) -> Parser:
    """A parser that only says whether ``parse`` makes something of a cell."""
    return lambda cell: (None, None if is_blank(cell) or parse(cell) is not None else QuarantineReason.SENTINEL_UNKNOWN)


def read_image_lists(ingest: Ingest, skip: Sequence[str] = ()) -> ImageLists:
    """Read every collection list, search export and scan list of the cohort (whatever its name and vintage)."""
    lists = ImageLists()
    found = headers(ingest.root, [path for path in ingest.files if path not in set(skip)])
    chosen = [path for path, keys in found.items() if is_image_list(keys)]
    for path in sorted(chosen, key=lambda path: ("image_data_id" not in found[path], path)):
        table = ingest.read(path, "image list")
        for row in table.rows():
            for names, parser in _LIST_CHECKS:
                ingest.check(row, parser, *names)
            named = _LIST_IMAGE_NUMBER.fullmatch(row.get(*LIST_IMAGE_ID).strip())
            uid = named[1] if named else ""
            if not is_blank(row.get(*LIST_IMAGE_ID)) and not uid.isdigit():
                ingest.reject(row, QuarantineReason.ID_UNPARSABLE, *LIST_IMAGE_ID)
            if uid.isdigit():
                lists.by_image.setdefault(uid, []).append(row)
            elif not is_blank(row.get(*LIST_SUBJECT)):
                lists.search.append(row)
    return lists


def collection_rows(lists: ImageLists) -> dict[str, Row]:
    """The rows that stand in a collection list (known by its ``Image Data ID``): it names all images of a download."""
    return {
        uid: rows[0]
        for uid, rows in lists.by_image.items()
        if rows[0].table.places(("Image Data ID",)) and rows[0].table.places(("Subject",))
    }


def note_missing_files(book: Ingest, lists: ImageLists, on_disk: set[str]) -> None:
    """Remark on every T1 image that a collection list names and that is not on disk."""
    for uid, row in sorted(collection_rows(lists).items()):
        modality = row.get("Modality").upper()
        if uid in on_disk or (modality and not modality.startswith("MR")):
            continue
        if is_t1_description(row.get(*LIST_DESCRIPTION)):
            book.note(
                QuarantineReason.IMAGE_WITHOUT_FILE,
                Level.IMAGE,
                {"native_image_key": f"I{uid}"},
                Severity.WARN,
                "the collection list names an image that is not on disk",
                row.table.relative,
                row.line,
            )


@dataclass
class Listed:
    """What lists and metadata files say about one image; each value with its source.

    Values on which they contradict each other stand in ``conflicts`` and are left out.
    """

    values: dict[str, Sourced] = field(default_factory=dict)
    conflicts: dict[str, Sourced] = field(default_factory=dict)
    descriptions: list[str] = field(default_factory=list)
    problems: list[QuarantineReason] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """The value, or None."""
        sourced = self.values.get(name)
        return None if sourced is None else sourced.value

    def add(self, name: str, sourced: Sourced, same: Callable[[Any, Any], bool] = lambda a, b: a == b) -> None:
        """Add a value; a second one must agree with the first."""
        if name in self.conflicts:
            return
        if name not in self.values:
            self.values[name] = sourced
        elif not same(self.values[name].value, sourced.value):
            self.conflicts[name] = sourced
            del self.values[name]


def parse_list_age(cell: str) -> float | None:
    """An age of a list, in years; codes for "no value", text and impossible numbers give None."""
    value, _ = parse_number(cell.strip().rstrip("Yy "), Quantity(0, 200, missing=MISSING))
    return value if value else None


def parse_strength(cell: str) -> float | None:
    """Field strength in tesla from ``1.5``, ``3T``, ``1.5 Tesla MRI`` or a protocol text.

    >>> [parse_strength(text) for text in ("3T", "1.5 Tesla MRI", "Field Strength=2.9;TE=3.0", "")]
    [3.0, 1.5, 3.0, None]
    """
    match = re.search(r"field strength\s*=\s*([0-9.]+)", cell, re.IGNORECASE) or re.search(
        r"(?<![\d.])(\d+(?:\.\d+)?)(?![\d.])", cell
    )
    value = tesla(float(match[1])) if match and match[1].strip(".") and match[1].count(".") < 2 else None
    # Siemens writes the true 2.89 T of its 3 T magnets.
    return 3.0 if value is not None and 2.8 <= value < 3.0 else value


#: Cells of image lists that are listed when they hold something else; they are read in ``describe_image``.
_LIST_CHECKS: tuple[tuple[tuple[str, ...], Parser], ...] = (
    (LIST_SUBJECT, _refused(_LIST_ID.fullmatch)),
    (LIST_SEX, parse_sex),
    (LIST_AGE, lambda cell: parse_number(cell.strip().rstrip("Yy "), Quantity(0, 200, missing=MISSING))),
    (LIST_DATE, parse_date),
    (LIST_STRENGTH, _refused(parse_strength)),
)


def set_scan_date(
    book: Ingest, item: FoundImage, day: datetime.date | None, problem: QuarantineReason | None, listed: Listed
) -> bool:
    """Date a scan by its folder, else by the lists; a date in the future drops the image.

    Parameters
    ----------
    book, item
        The ingest, and the image whose ``scan_date`` is set (None, with a remark, where no date can be read).
    day, problem
        What the acquisition's folder says (:meth:`LoniImage.scan_date`).
    listed
        What lists and metadata say of the image.

    Returns
    -------
    Whether the image goes on.
    """
    date = day
    if date is None and problem is not QuarantineReason.DATE_IN_FUTURE:
        date = listed.get("date")
        if date is None and QuarantineReason.DATE_IN_FUTURE in listed.problems:
            problem = QuarantineReason.DATE_IN_FUTURE
    if date is None and problem is QuarantineReason.DATE_IN_FUTURE:
        book.drop(item, problem, "the acquisition is dated in the future")
        return False
    if date is None:
        book.remark(item, QuarantineReason.DATE_UNPARSABLE, "no acquisition date can be read")
    item.scan_date = date
    return True


def describe_image(
    rows: Iterable[Row],
    same_person: Callable[[Row], bool],
    metadata: MetadataFile | None,
    same_day: Iterable[Row] = (),
) -> tuple[Listed, Row | None]:
    """What the lists' rows and the metadata file of one image say.

    Parameters
    ----------
    rows
        The rows with the image's number.
    same_person
        Whether a row is of the image's participant.
    metadata
        The metadata file, or None.
    same_day
        Rows without an image number of that participant and day. They may be of another series: only what holds for
        the whole session is taken from them (sex, age, visit, field strength).

    Returns
    -------
    Listed, Row or None
        The values, and a row that names the same image for another participant (it is not used).
    """
    listed = Listed()
    foreign: Row | None = None
    numbered = list(rows)
    for row in (*numbered, *same_day):
        if not same_person(row):
            foreign = row
            continue
        of_image = any(row is other for other in numbered)
        place = (row.table.relative, row.line)

        def add(name: str, value: Any, rule: str, place: tuple[str, int] = place) -> None:
            if value is not None and value != "":
                listed.add(name, Sourced(value, *place, rule), _SAME.get(name, lambda a, b: a == b))

        _add_common(
            add,
            listed,
            sex=row.get(*LIST_SEX),
            age=row.get(*LIST_AGE),
            date=row.date(*LIST_DATE) if of_image else (None, None),
            strength=row.get(*LIST_STRENGTH)
            or (row.get("Imaging Protocol") if "field strength" in row.get("Imaging Protocol").lower() else ""),
            kind=row.get(*LIST_KIND) if of_image else "",
        )
        add("visit", row.get(*LIST_VISIT), "Visit")
        if not of_image:
            continue
        add("modality", row.get("Modality").upper(), "Modality")
        series = row.get(*LIST_SERIES).lstrip("Ss").split(".")[0]
        add("series", int(series) if series.isdigit() else None, "SeriesID")
        if description := row.get(*LIST_DESCRIPTION):
            listed.descriptions.append(description)
    if metadata is not None:

        def add_fact(name: str, value: Any, rule: str) -> None:
            if value is not None and value != "":
                # Lists are later and corrected by hand: metadata only fills what they leave open, except for sex.
                if name in listed.values and name != "sex":
                    return
                listed.add(name, Sourced(value, metadata.path, 1, rule))

        facts = metadata.facts
        _add_common(
            add_fact,
            listed,
            sex=facts.get("subjectsex", ""),
            age=facts.get("subjectage", ""),
            date=parse_date(facts.get("dateacquired", "")),
            strength=facts.get("field strength", ""),
            kind="Processed" if metadata.original_uid else "",
        )
        add_fact("visit", facts.get("visitidentifier"), "visitIdentifier")
        add_fact("weighting", facts.get("weighting", "").upper(), "Weighting")
        add_fact("manufacturer", facts.get("manufacturer"), "Manufacturer")
        add_fact("scanner_model", facts.get("mfg model"), "Mfg Model")
        add_fact("original", metadata.original_uid, "originalRelatedImage")
        if facts.get("description"):
            listed.descriptions.append(facts["description"])
    return listed, foreign


_SAME: dict[str, Callable[[Any, Any], bool]] = {
    "age": lambda a, b: abs(a[0] - b[0]) <= 1.0,  # whole years in one list, finer in another
    "strength": lambda a, b: abs(a - b) < 0.3,
    "visit": lambda a, b: str(a).strip().lower() == str(b).strip().lower(),
}


def _add_common(
    add: Callable[[str, Any, str], None],
    listed: Listed,
    *,
    sex: str,
    age: str,
    date: tuple[datetime.date | None, QuarantineReason | None],
    strength: str,
    kind: str,
) -> None:
    add("sex", parse_sex(sex)[0], "sex in the image list")
    years = parse_list_age(age)
    add("age", None if years is None else (years, age_precision_of(age)), "age in the image list")
    parsed, problem = date
    add("date", parsed, "date in the image list")
    if problem is not None:
        listed.problems.append(problem)
    add("strength", parse_strength(strength) if strength else None, "field strength in the image list")
    word = kind.strip().lower()
    if word.startswith("orig"):
        add("processed", False, kind)
    elif word in ("processed", "pre-processed", "preprocessed", "proc"):
        add("processed", True, kind)


@dataclass
class MetadataFile:
    """The facts of one metadata file of the archive: tags and protocol terms in lower case."""

    path: str
    facts: dict[str, str]
    original_uid: str | None = None


def parse_metadata(path: str, content: bytes) -> MetadataFile | None:
    """Facts of a metadata file (root ``idaxs``, in a namespace or not); None when it is malformed or unsafe.

    A processed image names the image that it was made from (``originalRelatedImage``); its protocol terms are those of
    that acquisition.
    """
    if len(content) > MAXIMUM_XML_BYTES or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        return None
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError):
        return None

    def tag_of(element: ElementTree.Element) -> str:
        return str(element.tag).rsplit("}", 1)[-1].lower()

    facts: dict[str, str] = {}
    original: str | None = None
    for element in tree.iter():
        tag = tag_of(element)
        text = (element.text or "").strip()
        if tag == "originalrelatedimage":
            numbers = [
                (child.text or "").strip().lstrip("I") for child in element.iter() if tag_of(child) == "imageuid"
            ]
            original = next((number for number in numbers if number.isdigit()), original)
        elif tag == "protocol" and element.get("term"):
            facts.setdefault(str(element.get("term")).strip().lower(), text)
        elif text:
            facts.setdefault(tag, text)
    return MetadataFile(path, facts, original)


class MetadataFiles:
    """The metadata files of a download by image number, read when they are asked for."""

    def __init__(self, book: Ingest, files: Iterable[str]) -> None:
        self.book = book
        self.paths: dict[str, list[str]] = {}
        self._open: tuple[str, Archive] | None = None
        for path in files:
            if path.lower().endswith(".xml") and (match := re.search(r"_I(\d+)\.xml$", path, re.IGNORECASE)):
                self.paths.setdefault(match[1].lstrip("0"), []).append(path)

    def of(self, uid: str) -> MetadataFile | None:
        """The metadata of an image; a damaged file is remarked on and counts as absent."""
        for path in self.paths.get(uid, ()):
            parsed = self._read(path)
            if parsed is not None:
                return parsed
            self.book.note(
                QuarantineReason.CSV_BAD_LINE,
                Level.TABLE,
                {"file": PurePosixPath(path).name},
                Severity.WARN,
                "a metadata file is malformed and was left out",
                path,
            )
        return None

    def _read(self, path: str) -> MetadataFile | None:
        archive, separator, inner = path.rpartition(ZIP_SEPARATOR) if ".zip!" in path.lower() else ("", "", path)
        try:
            if separator:
                return parse_metadata(path, self._archive(archive).read(inner, MAXIMUM_XML_BYTES))
            return parse_metadata(path, read_file(self.book.root / inner, MAXIMUM_XML_BYTES))
        except (ArchiveError, OSError):
            return None

    def _archive(self, path: str) -> Archive:
        """The archive; it stays open for the next file, because reading its list of members takes long."""
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = (path, Archive(self.book.root / path))
        return self._open[1]

    def close(self) -> None:
        """Close the archive that is open."""
        if self._open is not None:
            self._open[1].__exit__(None, None, None)
            self._open = None
