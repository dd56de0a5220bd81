"""NIfTI images that still lie in archives: read where they are, or reported when that would take too long.

Members of a zip and of an uncompressed tar can be read one by one. Pairs of header and data files cannot, and a
compressed tar must be expanded from its start for every image, which is no way to read a cohort: such archives are
remarked on, and have to be unpacked.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from medalign3d.cohorts.archives import Archive, ArchiveError
from medalign3d.cohorts.base import Ingest, Level, QuarantineReason, Severity
from medalign3d.cohorts.images import ZIP_SEPARATOR, ImageFile
from medalign3d.printing import count

NIFTI_SUFFIXES = (".nii", ".nii.gz")
READ_IN_PLACE = (".zip", ".tar")
UNPACK_FIRST = (".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".7z", ".rar")


def is_nifti(name: str) -> bool:
    """Whether a file is named like a NIfTI image."""
    return name.lower().endswith(NIFTI_SUFFIXES)


def archives_among(files: Iterable[str]) -> list[str]:
    """The archives among a cohort's files."""
    return [path for path in files if path.lower().endswith((*READ_IN_PLACE, *UNPACK_FIRST))]


def nifti_files(root: Path, files: Iterable[str]) -> tuple[list[ImageFile], dict[str, str]]:
    """Every NIfTI image of a cohort, those inside archives included, and the archives that could not be used.

    Parameters
    ----------
    root
        The cohort's folder.
    files
        Its files, relative to it.

    Returns
    -------
    tuple
        The images, and archive -> why it gave none.
    """
    images: list[ImageFile] = []
    unread: dict[str, str] = {}
    for path in files:
        lower = path.lower()
        if is_nifti(path):
            images.append(ImageFile(path, "nifti", (path,)))
        elif lower.endswith(UNPACK_FIRST):
            unread[path] = "the archive is still packed; unpack it"
        elif lower.endswith(READ_IN_PLACE):
            try:
                with Archive(root / path) as archive:
                    members, refused = archive.members, archive.refused
            except ArchiveError as error:
                unread[path] = error.what if error.found is None else f"{error.what}: {error.found}"
                continue
            names = [
                member.name
                for member in members
                if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(member.name).parts)
            ]
            images += [ImageFile(f"{path}{ZIP_SEPARATOR}{name}", "nifti", (name,)) for name in names if is_nifti(name)]
            unread |= {f"{path}{ZIP_SEPARATOR}{other.name}": other.why for other in refused if is_nifti(other.name)}
            pairs = sum(name.lower().endswith(".hdr") for name in names)
            if pairs:
                unread[path] = f"the archive holds {count(pairs, 'image')} in pairs of files (.hdr and .img); unpack it"
    return images, unread


def folders_of(image: ImageFile) -> tuple[str, ...]:
    """The folders above an image; an archive counts as one that has its name.

    >>> folders_of(ImageFile("a/miriad_193_1_MR_1.zip!SCANS/x.nii", "nifti", ("SCANS/x.nii",)))
    ('a', 'miriad_193_1_MR_1', 'SCANS')
    """
    outer, _, inner = image.source_path.partition(ZIP_SEPARATOR)
    if not inner:
        return PurePosixPath(outer).parts[:-1]
    return (*PurePosixPath(outer).with_suffix("").parts, *PurePosixPath(inner).parts[:-1])


def remark_on(book: Ingest, unread: dict[str, str]) -> None:
    """Say which archives hold images that were not read."""
    for path, why in sorted(unread.items()):
        book.note(
            QuarantineReason.IMAGE_WITHOUT_FILE,
            Level.IMAGE,
            {"native_image_key": PurePosixPath(path).name},
            Severity.WARN,
            why,
            path,
        )
