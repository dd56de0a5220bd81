"""What lies in a cohort's folder and what is missing, in seconds and without reading a voxel."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medalign3d.cohorts.adni import required_tables
from medalign3d.cohorts.loni import group_images
from medalign3d.cohorts.oasis import _session_of, pair_up
from medalign3d.cohorts.tables import TABLE_SUFFIXES, find_table, headers, list_files
from medalign3d.errors import InputError


@dataclass(frozen=True)
class Finding:
    """One line of the preflight check.

    Attributes
    ----------
    what
        The table or kind of images.
    status
        ``found``, ``missing`` (ingest cannot run), ``absent`` (optional) or ``problem``.
    detail
        The file, the number, or what to do.
    """

    what: str
    status: str
    detail: str


def _by_name(
    root: Path, files: list[str], wanted: list[tuple[str, tuple[str, ...], bool]], prefixes: tuple[str, ...]
) -> list[Finding]:
    findings = []
    for what, names, required in wanted:
        try:
            path = find_table(root, files, *names, prefixes=prefixes, required=False)
        except InputError as error:
            findings.append(Finding(what, "problem", f"{error.what}: {error.where}"))
            continue
        label = " or ".join(names)
        if path is None:
            findings.append(Finding(what, "missing" if required else "absent", f"no table {label}"))
        else:
            findings.append(Finding(what, "found", path))
    return findings


def _by_header(root: Path, files: list[str], wanted: list[tuple[str, tuple[set[str], ...], bool]]) -> list[Finding]:
    found = headers(root, files)
    findings = []
    for what, options, required in wanted:
        fitting = [path for path, keys in found.items() if any(option <= keys for option in options)]
        if fitting:
            findings.append(Finding(what, "found", ", ".join(sorted(fitting)[:5])))
        else:
            columns = " or ".join(", ".join(sorted(option)) for option in options)
            findings.append(Finding(what, "missing" if required else "absent", f"no table with the columns {columns}"))
    return findings


def _images(cohort: str, files: list[str]) -> Finding:
    if cohort in ("ADNI", "AIBL"):
        images = group_images(files)
        people = len({image.subject_folder for image in images})
        count, detail = len(images), f"{len(images)} images of {people} participants"
    elif cohort == "NACC":
        archives = [path for path in files if path.lower().endswith(".zip")]
        single = [path for path in files if path.lower().endswith((".nii", ".nii.gz"))]
        count, detail = len(archives) + len(single), f"{len(archives)} session archives, {len(single)} unpacked volumes"
    elif cohort == "OASIS":
        studies = Counter(_session_of(path)[0] for path, _ in pair_up(files))
        count = sum(studies.values())
        detail = ", ".join(
            f"{n} files of OASIS-{study}" if study else f"{n} other files" for study, n in sorted(studies.items())
        )
    else:
        prefix = "miriad_" if cohort == "MIRIAD" else "ixi"
        count = sum(
            PurePosixPath(path).name.lower().startswith(prefix) and path.lower().endswith((".nii", ".nii.gz"))
            for path in files
        )
        detail = f"{count} volumes"
    return Finding(
        "images", "found" if count else "missing", detail if count else "no images in the custodian's layout"
    )


def doctor(cohort: str, root: Path) -> list[Finding]:
    """Look for a cohort's tables and images.

    Parameters
    ----------
    cohort
        Cohort name.
    root
        Its folder.

    Returns
    -------
    list of Finding
        Tables first, images last; anything ``missing`` or a ``problem`` would stop ingest.
    """
    try:
        files = list_files(Path(root))
    except InputError as error:
        return [Finding("folder", "missing", f"{error.where} is not there")]
    root = Path(root)
    if cohort == "ADNI":
        findings = _by_name(root, files, required_tables(), ("ADNI",))
    elif cohort == "AIBL":
        names = [
            ("pdxconv", True),
            ("ptdemog", True),
            ("mmse", False),
            ("cdr", False),
            ("neurobat", False),
            ("apoeres", False),
            ("labdata", False),
            ("medhist", False),
            ("mrimeta", False),
            ("mri3meta", False),
        ]
        findings = _by_name(root, files, [(name, (name,), required) for name, required in names], ("aibl",))
    elif cohort == "NACC":
        findings = _by_header(
            root,
            files,
            [
                ("UDS visits", ({"naccid", "naccvnum", "naccudsd"},), True),
                ("MRI sessions", ({"naccid", "naccmrfi"},), True),
            ],
        )
    elif cohort == "OASIS":
        findings = _by_header(
            root,
            files,
            [
                ("OASIS-1 table", ({"id", "cdr", "age", "m_f"},), False),
                ("OASIS-2 table", ({"mri_id", "cdr", "subject_id"},), False),
                ("OASIS-3 CDR", ({"oasisid", "cdrtot"}, {"adrc_adrcclinicaldata_id"}), False),
                ("OASIS-3 demographics", ({"oasisid", "gender"}, {"subject", "m_f", "education"}), False),
                ("OASIS-3 diagnoses", ({"oasisid", "normcog"},), False),
            ],
        )
        if all(finding.status == "absent" for finding in findings):
            findings.append(Finding("clinical tables", "missing", "no table of OASIS-1, OASIS-2 or OASIS-3"))
    elif cohort == "MIRIAD":
        findings = _by_header(
            root,
            files,
            [
                ("MR sessions (age)", ({"mr_id", "age"}, {"label", "age"}), False),
                ("scores", ({"subject", "mmse"}, {"subject", "cdr"}), False),
                ("subjects", ({"subject", "gender"},), False),
            ],
        )
    elif cohort == "IXI":
        findings = _by_header(root, files, [("demographics", ({"ixi_id", "age"},), True)])
    else:
        return [Finding("cohort", "problem", f"unknown cohort {cohort}")]
    count = sum(path.lower().endswith(TABLE_SUFFIXES[:3]) for path in files)
    return [
        Finding("folder", "found", f"{len(files)} files, {count} of them tables"),
        *findings,
        _images(cohort, files),
    ]
