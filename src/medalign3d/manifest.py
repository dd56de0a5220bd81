"""What lies in a cohort's folder: relative paths, sizes and modification times, never contents."""

from __future__ import annotations

import os
from pathlib import Path

from medalign3d.errors import InputError
from medalign3d.files import sha256_file, write_json

MARKER = "SYNTHETIC_DATA"


def list_files(root: Path) -> list[Path]:
    """All files below ``root`` (links followed), relative and sorted; dot-files are left out.

    Raises
    ------
    InputError
        When the folder is missing, unreadable or empty.
    """
    if not root.is_dir():
        raise InputError(
            "a cohort's folder is missing",
            where=f"external.roots in params.yaml: {root}",
            found="a file" if root.exists() else "nothing there",
            expected="the folder with the custodian's files",
            remedy="correct the folder in params.yaml, or run `medalign3d profile NAME --data COHORT=FOLDER`",
        )
    files = []
    for folder, names, entries in os.walk(root, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        files += [Path(folder, entry).relative_to(root) for entry in sorted(entries) if not entry.startswith(".")]
    if not files:
        raise InputError("a cohort's folder is empty", where=root, remedy="put the custodian's files there")
    return sorted(files)


def write_manifest(path: Path, cohort: str, root: Path, *, simulated: bool) -> None:
    """List the files of ``root`` into a JSON file.

    Simulated trees are made anew with new modification times, so their files are told apart by content instead: the
    same simulation gives the same manifest on any machine.

    Raises
    ------
    InputError
        When the folder is missing or empty, or when a real cohort's folder carries the simulator's marker.
    """
    names = list_files(root)
    if not simulated and Path(MARKER) in names:
        raise InputError(
            "a simulated cohort stands where real people are expected",
            where=root / MARKER,
            remedy="name the custodian's files in external.roots, or list the cohort under simulate.cohorts",
        )
    files: list[dict[str, object]] = []
    for name in names:
        status = (root / name).stat()
        entry: dict[str, object] = {"path": name.as_posix(), "bytes": status.st_size}
        if simulated:
            entry["sha256"] = sha256_file(root / name)
        else:
            entry["modified_ns"] = status.st_mtime_ns
        files.append(entry)
    write_json(path, {"cohort": cohort, "root": root.as_posix(), "simulated": simulated, "files": files})
