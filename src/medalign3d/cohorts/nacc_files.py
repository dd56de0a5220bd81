"""NACC's image files: which session a file belongs to, and which of its series are T1-weighted volumes.

One MRI session is one archive, shipped as DICOM (``mri1234.zip``) and as NIfTI (``mri1234ni.zip``), or what was
unpacked from it anywhere below the cohort's folder. Standardized (SCAN) images come one per archive, named
``SCAN_<participant>_<image>_<series>.zip``.
"""

from __future__ import annotations

import datetime
import io
import json
import multiprocessing
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medalign3d.cohorts.archives import Archive, ArchiveError
from medalign3d.cohorts.images import ZIP_SEPARATOR, ImageFile
from medalign3d.cohorts.values import parse_float

NIFTI_SUFFIXES = (".nii", ".nii.gz")
PACKED_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".7z", ".rar")
DICOM_SUFFIXES = (".dcm", ".ima")
THINNEST_REFORMAT_MM = 2.0  # slices this thick are reformats or two-dimensional series
UNKNOWN_THICKNESS_MM = 9.0
LAST_OF_DAY = 86400.0  # seconds
_OTHER_FILES = re.compile(
    r"\.(?:json|txt|[ct]sv|xlsx?|pdf|xml|html?|png|jpe?g|b?val|b?vec|bvals|bvecs|zip|gz|tgz|tar|md|docx?|log|hdr|img|mat|par|"
    r"rec|ini|db|exe|py|sh|ya?ml)"
)
_SCAN_NAME = re.compile(r"SCAN_(?P<subject>NACC\d{6})_I(?P<image>\d+)_(?P<series>.+)", re.IGNORECASE)
_SESSION_NAME = re.compile(r"(?:mri\d+(?:ni)?|NACC\d{6}_.+)", re.IGNORECASE)
_ARCHIVE_TIME = re.compile(r"(\d{4})-(\d{2})-(\d{2})_\d{2}_\d{2}_\d{2}(?:\.\d+)?")
_DICOM_TAGS = (
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "MRAcquisitionType", "SliceThickness",
    "AcquisitionTime", "AcquisitionDate", "StudyDate", "ImageType", "Modality", "MagneticFieldStrength", "Manufacturer",
    "ManufacturerModelName",
)  # fmt: skip
MAXIMUM_SIDECAR_BYTES = 16 << 20
FILES_LOOKED_AT = 5  # of a folder whose names do not tell whether they are DICOM slices

_T1 = re.compile(r"MP.?RAGE|MPR|SPGR|BRAVO|T1|TFE|TFL")
_NOT_T1 = re.compile(
    r"FLAIR|T2|DTI|DWI|DIFF|BOLD|FMRI|PERF|GAD|LOCALI|SCOUT|SURVEY|CALIB|MAP|POST(?!ERIOR)"
    # Words: SE, TSE and FSE are spin echoes, but SENSE is not; LOC is a localizer, but LOCAL is not.
    r"|(?<![A-Z])(?:[TF]?SE|LOC|REST(?:ING)?|P?C?ASL|SWI|PD|EPI|ADC|TOF|MRA|GD)(?![A-Z])"
    r"|(?<![A-Z])C\+|\+ ?C(?![A-Z])|(?<!NO )(?<!NON )(?<!PRE )(?<!WITHOUT )(?<!W/O )CONTRAST"
)
_REPEAT_OR_DERIVED = re.compile(r"REPEAT|(?<![A-Z])(?:RPT|ND)(?![A-Z])|DERIVED|REFORMAT|MPR.?RANGE")


def normalize_locator(name: str) -> str:
    """The session's locator: without ``.zip`` and without the ``ni`` of the NIfTI form.

    >>> normalize_locator("mri1234ni.zip"), normalize_locator("mri1234"), normalize_locator("NACC000001_MRI_7.ZIP")
    ('mri1234', 'mri1234', 'NACC000001_MRI_7')
    """
    stem = re.sub(r"\.zip$", "", name.strip(), flags=re.IGNORECASE)
    return re.sub(r"(?<=\d)ni$", "", stem, flags=re.IGNORECASE)


class Locators:
    """The session locators that the MRI table names, compared without case and in both forms of the name."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = {name.casefold(): name for name in known}

    def find(self, name: str) -> str | None:
        """The table's locator for a file or folder name; None when the table has none.

        >>> Locators(["mri12", "NACC000001_Bikini"]).find("MRI12ni.zip")
        'mri12'
        >>> Locators(["mri12", "NACC000001_Bikini"]).find("nacc000001_bikini")
        'NACC000001_Bikini'
        """
        stem = re.sub(r"\.zip$", "", name.strip(), flags=re.IGNORECASE).casefold()
        return self._known.get(stem) or self._known.get(re.sub(r"ni$", "", stem))

    def of_archive(self, name: str) -> str:
        """The locator of an archive, known or not."""
        return self.find(name) or normalize_locator(name)

    def of_path(self, folders: tuple[str, ...]) -> tuple[str, int]:
        """The session of a path, and the number of folders down to it: the file's place in the session starts there.

        The deepest folder that the MRI table knows counts, then the deepest that is named like a session, then the
        last.
        """
        for depth in range(len(folders), 0, -1):
            if found := self.find(folders[depth - 1]):
                return found, depth
        for depth in range(len(folders), 0, -1):
            if _SESSION_NAME.fullmatch(folders[depth - 1]):
                return normalize_locator(folders[depth - 1]), depth
        return (normalize_locator(folders[-1]), len(folders)) if folders else ("", 0)


@dataclass(frozen=True)
class ScanName:
    """What the name of a standardized (SCAN) image tells; in some trees also the date."""

    subject: str
    image: str
    series: str
    date: datetime.date | None = None


def scan_name_of(parts: tuple[str, ...]) -> ScanName | None:
    """Read the name of a SCAN archive or its folder, or the folders of the image archive's download.

    >>> scan_name_of(("scan", "SCAN_NACC000001_I1234567_Accelerated_MPRAGE.zip"))
    ScanName(subject='NACC000001', image='I1234567', series='Accelerated_MPRAGE', date=None)
    >>> scan_name_of(("NACC000001", "MPRAGE", "2023-05-06_10_24_18.0", "I77", "x.nii")).date
    datetime.date(2023, 5, 6)
    """
    for part in reversed(parts):
        if match := _SCAN_NAME.fullmatch(re.sub(r"\.zip$", "", part, flags=re.IGNORECASE)):
            return ScanName(match["subject"].upper(), f"I{match['image']}", match["series"])
    for depth in range(1, len(parts)):
        match = _ARCHIVE_TIME.fullmatch(parts[depth])
        people = [part.upper() for part in parts[:depth] if re.fullmatch(r"NACC\d{6}", part, re.IGNORECASE)]
        image = next((part.upper() for part in parts[depth + 1 :] if re.fullmatch(r"I\d+", part, re.IGNORECASE)), None)
        if match is None or not people or image is None:
            continue
        try:
            date = datetime.date(int(match[1]), int(match[2]), int(match[3]))
        except ValueError:
            date = None
        return ScanName(people[-1], image, parts[depth - 1], date)
    return None


@dataclass
class SessionFile:
    """One image file, or one DICOM series, of a session.

    Attributes
    ----------
    locator
        The session (for SCAN images ``SCAN_`` and the image id).
    inner
        Its path inside the session, without the session's own folder.
    file
        How to read it.
    archive
        The archive that holds it; None when it lies unpacked.
    sidecar
        Header values that were found beside it: of the JSON file, or of the DICOM slices.
    problem
        Why the archive cannot be used.
    scan
        What the name of a SCAN image tells.
    """

    locator: str
    inner: str
    file: ImageFile
    archive: str | None = None
    sidecar: dict[str, Any] | None = None
    problem: str | None = None
    scan: ScanName | None = None

    @property
    def name(self) -> str:
        """Name without folders."""
        return PurePosixPath(self.inner).name

    @property
    def dicom(self) -> bool:
        """Whether it is a DICOM series."""
        return self.file.source_format == "dicom"


def _is_nifti(name: str) -> bool:
    return name.lower().endswith(NIFTI_SUFFIXES)


def may_be_dicom(name: str) -> bool:
    """Whether a name is that of a DICOM slice, or says nothing (slices are often named by their UID)."""
    lower = name.lower()
    if PurePosixPath(lower).name == "dicomdir":
        return False
    return lower.endswith(DICOM_SUFFIXES) or not _OTHER_FILES.fullmatch(PurePosixPath(lower).suffix)


def _is_dicom(content: bytes) -> bool:
    return content[128:132] == b"DICM"


def holds_dicom(names: list[str], start_of: Callable[[str], bytes]) -> bool:
    """Whether files of one folder are DICOM slices: by their suffix, or by how the first ones begin."""
    if any(name.lower().endswith(DICOM_SUFFIXES) for name in names):
        return True
    for name in sorted(names)[:FILES_LOOKED_AT]:
        try:
            if _is_dicom(start_of(name)):
                return True
        except (OSError, ArchiveError):
            continue
    return False


def start_of(path: Path) -> bytes:
    """The first bytes of a file, enough to tell a DICOM slice."""
    with path.open("rb") as stream:
        return stream.read(132)


def _read_if_sound(archive: Archive, name: str) -> bytes:
    try:
        return archive.read(name, MAXIMUM_SIDECAR_BYTES)
    except ArchiveError:
        return b""


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _sidecar_name(name: str) -> str:
    return re.sub(r"\.nii(?:\.gz)?$", ".json", name, flags=re.IGNORECASE)


def _load_json(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _without_own_folder(path: str, is_own: Callable[[str], bool]) -> str:
    """A path without leading folders that repeat the session's name."""
    parts = PurePosixPath(path).parts
    while len(parts) > 1 and is_own(parts[0]):
        parts = parts[1:]
    return "/".join(parts)


@dataclass
class _Finder:
    root: Path
    locators: Locators
    found: list[SessionFile] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    def add_archive(self, path: str) -> None:
        name = PurePosixPath(path).name
        scan = scan_name_of((name,))
        locator = f"SCAN_{scan.image}" if scan else self.locators.of_archive(name)
        is_session = (
            scan is not None or self.locators.find(name) is not None or _SESSION_NAME.fullmatch(normalize_locator(name))
        )

        def own(part: str) -> bool:
            if scan is not None:
                return scan_name_of((part,)) == scan
            return self.locators.of_archive(part) == locator

        def add(member: str, file: ImageFile, **more: Any) -> None:
            inner = _without_own_folder(member, own)
            self.found.append(SessionFile(locator, inner, file, archive=path, scan=scan, **more))

        def unusable(problem: str) -> None:
            add(name, ImageFile(path, "nifti", (path,)), problem=problem)

        try:
            with Archive(self.root / path) as archive:
                members = [member.name for member in archive.members if not _hidden(member.name)]
                present = set(members)
                niftis = [name for name in members if _is_nifti(name)]
                for member in niftis:
                    sidecar = _sidecar_name(member)
                    content = _load_json(_read_if_sound(archive, sidecar)) if sidecar in present else None
                    add(member, ImageFile(f"{path}{ZIP_SEPARATOR}{member}", "nifti", (member,)), sidecar=content)
                refused = [member for member in archive.refused if _is_nifti(member.name)]
                for one in refused:
                    add(PurePosixPath(one.name).name, ImageFile(path, "nifti", (path,)), problem=one.why)
                folders: dict[str, list[str]] = {}
                for member in members:
                    if not _is_nifti(member) and may_be_dicom(member):
                        folders.setdefault(str(PurePosixPath(member).parent), []).append(member)
                series = 0
                for folder, slices in sorted(folders.items()):
                    if not holds_dicom(slices, lambda name: next(archive.chunks(name), b"")):
                        continue
                    series += 1
                    inside = "" if folder == "." else folder
                    add(
                        inside or "dicom",
                        ImageFile(f"{path}{ZIP_SEPARATOR}{inside}", "dicom", tuple(sorted(slices))),
                    )
                inner = [member for member in members if member.lower().endswith(PACKED_SUFFIXES)]
                if inner and not niftis and not series:
                    self.unread[path] = f"the archive holds {len(inner)} further archives; unpack it"
                elif is_session and not niftis and not refused and not series:
                    unusable("the archive holds no image")
        except ArchiveError as error:
            unusable(error.what if error.found is None else f"{error.what}: {error.found}")

    def add_nifti(self, path: str, all_files: set[str]) -> None:
        sidecar = None
        if _sidecar_name(path) in all_files:
            sidecar = _load_json((self.root / _sidecar_name(path)).read_bytes())
        self._add_unpacked(PurePosixPath(path).parts, ImageFile(path, "nifti", (path,)), sidecar)

    def add_dicom_folder(self, folder: str, slices: list[str]) -> None:
        parts = PurePosixPath(folder).parts
        self._add_unpacked((*parts, ""), ImageFile(folder, "dicom", tuple(sorted(slices))), None)

    def _add_unpacked(self, parts: tuple[str, ...], file: ImageFile, sidecar: dict[str, Any] | None) -> None:
        scan = scan_name_of(parts[:-1])
        if scan is not None:
            locator, inner = f"SCAN_{scan.image}", parts[-1]
        else:
            locator, depth = self.locators.of_path(parts[:-1])
            inner = "/".join(part for part in parts[depth:] if part)
        if not inner:
            inner = next((part for part in reversed(parts) if part), "dicom")
        self.found.append(SessionFile(locator, inner, file, sidecar=sidecar, scan=scan))


def find_session_files(
    root: Path, files: Iterable[str], locators: Locators
) -> tuple[list[SessionFile], dict[str, str]]:
    """Every image file in session folders and session archives, those that are no T1-weighted volume included.

    Parameters
    ----------
    root
        The cohort's folder.
    files
        Its files, relative to it.
    locators
        The sessions that the MRI table names.

    Returns
    -------
    tuple
        NIfTI files, and folders of DICOM slices (see :func:`split_series`); an archive that cannot be read, or that is
        named like a session and holds no image, is one entry with its problem. And archive -> why it has to be unpacked
        first.
    """
    finder = _Finder(root, locators)
    all_files = set(files)
    folders: dict[str, list[str]] = {}
    for path in sorted(all_files):
        lower = path.lower()
        if _is_nifti(path):
            finder.add_nifti(path, all_files)
        elif lower.endswith(".zip"):
            finder.add_archive(path)
        elif lower.endswith(PACKED_SUFFIXES):
            finder.unread[path] = "the archive is still packed; unpack it"
        elif may_be_dicom(path):
            folders.setdefault(str(PurePosixPath(path).parent), []).append(path)
    for folder, slices in sorted(folders.items()):
        if not holds_dicom(slices, lambda name: start_of(root / name)):
            continue
        finder.add_dicom_folder("" if folder == "." else folder, slices)
    return finder.found, finder.unread


def keys_of(files: Iterable[SessionFile]) -> dict[int, str]:
    """Native image key of every file, by ``id()``.

    It is the locator and the file's name, or its path inside the session where the name alone does not tell it from
    the session's other files.
    """
    files = list(files)
    paths: dict[tuple[str, str], set[str]] = {}
    for item in files:
        paths.setdefault((item.locator, item.name), set()).add(item.inner)
    return {
        id(item): f"{item.locator}/{item.name if len(paths[item.locator, item.name]) == 1 else item.inner}"
        for item in files
    }


# ---------------------------------------------------------------------------------------------------------------- T1


def is_t1(description: str, sidecar: Mapping[str, Any] | None) -> bool | None:
    """Whether a series is a T1-weighted volume; None when nothing tells and the geometry must decide.

    >>> is_t1("SAG MPRAGE", {"SeriesDescription": "SAG MPRAGE"}), is_t1("AX T1_SE", None), is_t1("T1_SENSE", None)
    (True, False, None)
    """
    text = re.sub(r"[\s_]+", " ", description.upper())
    if _NOT_T1.search(text):
        return False
    if not sidecar:
        return None
    if str(sidecar.get("Modality") or "MR").upper() not in ("MR", "MRI"):
        return False
    if str(sidecar.get("MRAcquisitionType") or "3D").upper() == "2D":
        return False
    thickness = parse_float(str(sidecar.get("SliceThickness", "")))
    if thickness is not None and thickness >= THINNEST_REFORMAT_MM:
        return False
    if sidecar.get("SeriesDescription") or sidecar.get("ProtocolName"):
        return bool(_T1.search(text))
    return None


def names_t1(series: str) -> bool:
    """Whether a series name alone says that it is a T1-weighted volume.

    >>> names_t1("Accelerated_Sagittal_MPRAGE_ND"), names_t1("Sagittal_3D_FLAIR"), names_t1("HighResHippocampus")
    (True, False, False)
    """
    return is_t1(series, {"SeriesDescription": series}) is True


def acquisition_seconds(text: str) -> float | None:
    """Seconds since midnight of ``10:12:30.5`` or ``101230.5``.

    >>> acquisition_seconds("9:05:10.5"), acquisition_seconds("090510.5"), acquisition_seconds("soon")
    (32710.5, 32710.5, None)
    """
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2}):(\d{1,2}(?:\.\d*)?)", text.strip())
    match = match or re.fullmatch(r"(\d{2})(\d{2})(\d{2}(?:\.\d*)?)", text.strip())
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else None


def pick_rank(
    description: str, sidecar: Mapping[str, Any] | None, thickness: float | None = None
) -> tuple[bool, float, float, float]:
    """What puts one T1-weighted volume of a session before another: smaller goes first.

    Neither repeated, nor without distortion correction ("ND"), nor derived; then the thinnest slices; then the earliest
    acquisition; then the series number.

    Parameters
    ----------
    description
        The series' description.
    sidecar
        Its header values.
    thickness
        Largest voxel edge (mm), where the header values give no slice thickness.
    """
    values = sidecar or {}
    kind = values.get("ImageType")
    kinds = kind if isinstance(kind, list) else re.findall(r"\w+", str(kind or ""))
    later = bool(_REPEAT_OR_DERIVED.search(description.upper())) or "DERIVED" in (str(k).upper() for k in kinds)
    stated = parse_float(str(values.get("SliceThickness", "")))
    time = acquisition_seconds(str(values.get("AcquisitionTime", "")))
    number = parse_float(str(values.get("SeriesNumber", "")))
    thick = stated if stated is not None else thickness if thickness is not None else UNKNOWN_THICKNESS_MM
    return later, round(thick, 3), LAST_OF_DAY if time is None else time, 1e6 if number is None else number


# ------------------------------------------------------------------------------------------------------------- DICOM


def _series_in(root: str, file: ImageFile) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Header values and slices of every series among the files of a folder; files that are no DICOM form no series."""
    import pydicom

    series: dict[str, tuple[dict[str, Any], list[str]]] = {}
    archive = None
    try:
        if ZIP_SEPARATOR in file.source_path:
            archive = Archive(Path(root) / file.source_path.split(ZIP_SEPARATOR, 1)[0])
        for name in file.files:
            content = b""
            try:
                content = archive.read(name) if archive is not None else (Path(root) / name).read_bytes()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    header = pydicom.dcmread(
                        io.BytesIO(content), stop_before_pixels=True, specific_tags=list(_DICOM_TAGS)
                    )
                    values = {tag: header.get(tag) for tag in _DICOM_TAGS if header.get(tag) not in (None, "")}
            except Exception:  # a damaged slice stays with the folder's first series, whose inspection names the damage
                if content and not _is_dicom(content) and not name.lower().endswith(DICOM_SUFFIXES):
                    continue  # a text that lies among the slices
                values = {}
            plain = {k: [str(x) for x in v] if k == "ImageType" and not isinstance(v, str) else str(v)
                     for k, v in values.items()}  # fmt: skip
            if "ManufacturerModelName" in plain:  # named as the converters' sidecars name it
                plain["ManufacturersModelName"] = plain.pop("ManufacturerModelName")
            uid = str(plain.get("SeriesInstanceUID", "")) or next(iter(series), "")
            series.setdefault(uid, (plain, []))[1].append(name)
    except ArchiveError:
        return [({}, file.files)]
    finally:
        if archive is not None:
            archive.__exit__(None, None, None)
    return [(values, tuple(names)) for values, names in series.values()]


def split_series(root: Path, folders: list[SessionFile], workers: int) -> list[SessionFile]:
    """DICOM folders as single series, told apart by their headers, each with the header values of its first slice."""
    read = partial(_series_in, str(root))
    if workers > 1 and len(folders) > 3:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            contents = list(pool.map(read, [item.file for item in folders]))
    else:
        contents = [read(item.file) for item in folders]
    result = []
    for item, found in zip(folders, contents, strict=True):
        numbers = [str(values.get("SeriesNumber", "")) for values, _ in found]
        for place, (values, names) in enumerate(found, start=1):
            inner, path = item.inner, item.file.source_path
            if len(found) > 1:
                number = numbers[place - 1]
                label = f"series{number}" if number and numbers.count(number) == 1 else f"part{place}"
                inner = f"{item.inner}/{label}"
            result.append(
                SessionFile(
                    item.locator, inner, ImageFile(path, "dicom", names), item.archive, values or None, None, item.scan
                )
            )
    return result
