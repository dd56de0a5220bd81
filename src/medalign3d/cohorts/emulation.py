"""How the rows of the published Table 1 were assembled, for reproducing its counts and for nothing else.

The published counts do not count acquisitions. Derived files of one scan and repeats count as images, every NIfTI file
of a NACC session does, an ADNI image stands once for every visit row that matches it, and scores of MIRIAD stand on one
scan of a visit. ``ingest.form: table1_emulation`` does the same, so that the counts can be compared; the pairing rules
are the published ones and are worse than those of the form ``clean`` (December never pairs with January, a scan and a
visit of one calendar year may lie eleven months apart). Models are never evaluated on these rows.

Sources: the counts and the code of the published system (arXiv 2305.10799) as read by this project; see docs/table1.md.
"""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import TYPE_CHECKING

from medalign3d.cohorts.reasons import QuarantineReason

if TYPE_CHECKING:
    from medalign3d.cohorts.base import FoundImage, Ingest, Visit

ADNI_MONTHS = 2
CALENDAR_WINDOW_DAYS = 366
CALENDAR_COHORTS = ("ADNI", "NACC")
SCORES = frozenset(
    {"mmse", "mmse_source", "cdr_global", "cdr_global_source", "cdr_sb", "cdr_sb_source"}
)  # fmt: skip


def same_months(scan: datetime.date, visit: datetime.date) -> bool:
    """Whether a visit is of the scan's calendar year and at most two months away by the number of the month.

    >>> same_months(datetime.date(2010, 12, 20), datetime.date(2010, 10, 1))
    True
    >>> same_months(datetime.date(2010, 12, 20), datetime.date(2011, 1, 2))
    False
    """
    return scan.year == visit.year and abs(scan.month - visit.month) <= ADNI_MONTHS


def emulate(book: Ingest) -> None:
    """Turn the accepted images of a cohort into the rows of the published table."""
    if book.dataset == "ADNI":
        _one_row_per_matching_visit(book)
    elif book.dataset == "NACC":
        _same_calendar_year(book)
    elif book.dataset == "MIRIAD":
        _scores_on_one_scan(book)


def _dated_visits(book: Ingest) -> dict[str, list[Visit]]:
    """Dated visits by subject, in order of date."""
    return {
        subject: sorted((visit for visit in group if visit.date is not None), key=lambda v: (v.date, v.code))
        for subject, group in book.visits_of().items()
    }


def _days(image: FoundImage, visit: Visit) -> int:
    assert image.scan_date is not None
    assert visit.date is not None
    return (image.scan_date - visit.date).days


def _one_row_per_matching_visit(book: Ingest) -> None:
    visits = _dated_visits(book)
    repeated: list[FoundImage] = []
    for image in book.images:
        if image.dropped or image.scan_date is None:
            continue
        scan = image.scan_date
        fitting = [visit for visit in visits.get(image.subject, []) if visit.date and same_months(scan, visit.date)]
        if not fitting:
            book.drop(image, QuarantineReason.NO_VISIT_IN_WINDOW, "no visit of the same year and nearly the same month")
            continue
        fitting.sort(key=lambda visit: (abs(_days(image, visit)), visit.date, visit.code))
        for visit in fitting[1:]:
            copy = replace(
                image,
                key=f"{image.key}@{visit.code}",
                values=dict(image.values),
                provenance=dict(image.provenance),
                remarks=[],
                variant_of=image.variant_of or image.key,
            )
            book.attach(copy, visit, "calendar", _days(image, visit))
            copy.session = visit.code
            repeated.append(copy)
        book.attach(image, fitting[0], "calendar", _days(image, fitting[0]))
        image.session = fitting[0].code
    book.images += repeated


def _same_calendar_year(book: Ingest) -> None:
    visits = _dated_visits(book)
    for image in book.images:
        if image.dropped or image.scan_date is None:
            continue
        fitting = [v for v in visits.get(image.subject, []) if v.date and v.date.year == image.scan_date.year]
        if not fitting:
            book.drop(image, QuarantineReason.NO_VISIT_IN_WINDOW, "no UDS visit of the scan's calendar year")
            continue
        nearest = min(fitting, key=lambda visit: (abs(_days(image, visit)), visit.date, visit.code))
        book.attach(image, nearest, "calendar", _days(image, nearest))


def _scores_on_one_scan(book: Ingest) -> None:
    first: dict[tuple[str, str], FoundImage] = {}
    accepted = [image for image in book.images if not image.dropped]
    for image in sorted(accepted, key=lambda i: (i.order, i.key)):
        if first.setdefault((image.subject, image.session), image) is not image:
            image.withheld = SCORES
