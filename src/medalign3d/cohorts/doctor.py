"""The preflight check of a cohort's folder, in one line per table (see :mod:`medalign3d.cohorts.preflight`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medalign3d.cohorts.preflight import preflight
from medalign3d.printing import count


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
        Tables first, images last (``absent`` where the tables alone are read); anything ``missing`` or
        a ``problem`` would stop ingest.
    """
    answer = preflight(cohort, Path(root))
    if answer.problem:
        return [Finding("folder", "missing", answer.problem)]
    findings = [Finding("folder", "found", count(answer.files, "file"))]
    for report in answer.tables:
        detail = report.detail or (", ".join(report.files[:3]) if report.files else f"without it: {report.cost}")
        findings.append(Finding(report.name, report.status, detail))
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in answer.images.items())
    if answer.archives_unopened and not kinds:
        kinds = f"{count(answer.archives_unopened, 'archive')} to read"
    alone = any(report.files for report in answer.tables)
    status = "found" if kinds else "absent" if alone else "missing"
    nothing = "no images in the custodian's layout" + (": the tables alone are read" if alone else "")
    findings.append(Finding("images", status, kinds or nothing))
    return findings
