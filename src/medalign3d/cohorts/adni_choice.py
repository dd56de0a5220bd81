"""Which of ADNI's T1 images of a visit is the one to use, and which are known to be bad.

The order follows the rules that the field's reference converter uses: kind of image by phase, field strength, quality
control, repeats, series number. Images that a list names but that are not on disk take part in the order, so that
``selection_rank`` says how far the choice had to fall back.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medalign3d.cohorts.base import FoundImage, Ingest
from medalign3d.cohorts.loni import is_repeat
from medalign3d.cohorts.tables import headers
from medalign3d.cohorts.values import Quantity, parse_float, parse_whole_id

KNOWN_BAD_SCANS = Path(__file__).with_name("adni_known_bad.csv")


def known_bad_scans(path: Path = KNOWN_BAD_SCANS) -> set[tuple[str, str]]:
    """Scans known not to convert (PTID, visit code such as ``m48``), from an editable list; ``#`` starts a remark."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(line for line in stream if line.strip() and not line.startswith("#"))
        return {(row["ptid"].strip().upper(), row["visit"].strip().lower()) for row in rows}


@dataclass
class Quality:
    """Ratings of the custodian's quality control.

    Attributes
    ----------
    rating
        Image (``I...``) or series (``S...``) -> series_quality, 1 best to 4 unusable.
    selected
        Images and series that were chosen among the repeats of a visit.
    failed
        Series that failed (PASS 0).
    """

    rating: dict[str, float]
    selected: set[str]
    failed: set[str]

    def of(self, keys: Sequence[str]) -> tuple[float | None, bool, bool]:
        """Rating, whether selected, whether failed; the image's own entry counts before its series'."""
        rating = next((self.rating[key] for key in keys if key in self.rating), None)
        return rating, any(key in self.selected for key in keys), any(key in self.failed for key in keys)


_RATING = Quantity(1, 4, missing=frozenset({-4.0, -1.0, 0.0}))


def read_quality(book: Ingest) -> Quality:
    """Read every table of image quality, known by its columns. Of two ratings of one image the worse counts."""
    quality = Quality({}, set(), set())
    for path, keys in headers(book.root, book.files).items():
        rated = {"loni_image", "series_quality"} <= keys or {"loni_image", "series_selected"} <= keys
        if not rated and not {"loniuid", "pass"} <= keys:
            continue
        table = book.read(path, "image quality")
        for row in table.rows():
            if rated:
                image = row.get("loni_image").strip().upper().lstrip("I").split(".")[0]
                series = row.get("loni_series").strip().upper().lstrip("S").split(".")[0]
                names = [f"{kind}{number}" for kind, number in (("I", image), ("S", series)) if number.isdigit()]
                rating = parse_float(row.get("series_quality"))
                book.check(row, _RATING, "series_quality")
                chosen = parse_float(row.get("series_selected")) == 1
                for name in names:
                    if rating is not None and 1 <= rating <= 4:
                        quality.rating[name] = max(rating, quality.rating.get(name, rating))
                    if chosen:
                        quality.selected.add(name)
            else:
                series = row.get("LONIUID").strip().upper()
                number = parse_whole_id(series.lstrip("SI"))
                if number is not None and parse_float(row.get("PASS")) == 0:
                    quality.failed.add(f"{'I' if series.startswith('I') else 'S'}{number}")
    return quality


@dataclass
class Candidate:
    """A T1 image of a visit that could be chosen; ``item`` is None when it is listed but not on disk."""

    key: str
    description: str
    processed: bool
    strength: float | None
    series: int | None
    rating: float | None
    chosen: bool
    item: FoundImage | None = None


def kind_rank(description: str, processed: bool, modern: bool) -> int:
    """Preference among kinds of T1 images, smallest first.

    ADNI-1, GO and 2: processed to the end (``Scaled``, then ``N3m``), then originals: MPRAGE that is not accelerated or
    repeated, then SPGR that is not accelerated. ADNI-3 and 4: originals, first accelerated ones, last those without
    distortion correction (``_ND``).
    """
    text = re.sub(r"[^A-Z0-9]+", "_", description.upper()).strip("_")
    if modern:
        return 3 if processed else 2 if text.endswith("_ND") else 0 if "ACCEL" in text else 1
    if processed:
        return 0 if text.endswith("SCALED") else 1 if text.endswith("SCALED_2") else 2 if text.endswith("N3M") else 6
    if re.search(r"MP_?RAGE|MPR(?![A-Z])", text) and not text.endswith("2") and "ACCEL" not in text:
        return 3
    if "SPGR" in text and "ACC" not in text:
        return 4
    return 5


def order_candidates(candidates: Sequence[Candidate], modern: bool, preferred_strength: float) -> list[Candidate]:
    """The T1 images of one visit in order of preference.

    Kind, field strength, the one series that quality control selected (a mark on several counts for none), its rating
    (unrated last), first acquisitions before repeats, and the lowest series number.
    """
    kinds = {id(c): kind_rank(c.description, c.processed, modern) for c in candidates}
    marks: dict[int, int] = {}
    for candidate in candidates:
        marks[kinds[id(candidate)]] = marks.get(kinds[id(candidate)], 0) + candidate.chosen

    def order(candidate: Candidate) -> tuple[Any, ...]:
        kind = kinds[id(candidate)]
        strength = candidate.strength
        number = int(re.sub(r"\D", "", candidate.key) or 0)
        return (
            kind,
            strength is not None and abs(strength - preferred_strength) >= 0.3,
            not (candidate.chosen and marks[kind] == 1),
            candidate.rating if candidate.rating is not None else 5.0,
            is_repeat(candidate.description),
            candidate.series if candidate.series is not None else number,
            number,
        )

    return sorted(candidates, key=order)
