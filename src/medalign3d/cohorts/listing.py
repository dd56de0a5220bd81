"""The files of a cohort whose images are not at hand: the tables on disk, and a list of the images' paths.

With ``ingest.read_images: false`` no image is opened. Images that are on disk are found as ever; where they lie on
another machine, a file ``image_files.txt`` in the cohort's folder names them, one path per line as
``find . -type f`` prints them there. Only images are taken from the list: a table that is not on disk cannot be read.

Not supported: images inside archives that are not on disk; list the paths of the unpacked form.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from medalign3d.cohorts.tables import list_files
from medalign3d.errors import InputError

LISTING_NAME = "image_files.txt"
LISTED_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz", ".dcm", ".ima")


def list_unread_files(root: Path) -> list[str]:
    """All files below ``root`` and the images that its ``image_files.txt`` names, as sorted relative POSIX paths.

    Raises
    ------
    InputError
        When the folder is missing, or a line of the list is no path below the folder.
    """
    files = set(list_files(root))
    listing = root / LISTING_NAME
    if not listing.is_file():
        return sorted(files)
    with listing.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip().replace("\\", "/")
            if not text.lower().endswith(LISTED_SUFFIXES):
                continue
            path = PurePosixPath(text)  # drops a leading "./"
            if path.is_absolute() or ".." in path.parts:
                raise InputError(
                    "a list of image files holds a path outside of its folder",
                    where=f"{listing}, line {number}",
                    found="an absolute path or one with '..'",
                    expected="paths relative to the cohort's folder",
                    remedy="make the list inside the folder with the images: find . -type f > image_files.txt",
                )
            if not any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
                files.add(str(path))
    return sorted(files)
