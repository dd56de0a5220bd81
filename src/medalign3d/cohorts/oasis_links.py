"""Which sessions of OASIS-1 and OASIS-2 are the same visit of the same person.

The two releases share participants under different names. Their tables describe the shared visits with equal sex, age
in years, estimated total intracranial volume, MMSE and CDR; on the published tables that gives 116 pairs. Nothing but
the tables is needed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pandas as pd

LINK_RULE: Final = "oasis1_oasis2_equal_records"
LINK_COLUMNS: Final = ("oasis1_session", "oasis2_session", "rule")
#: Digest of the pairs of the published tables (see :func:`pairs_sha256`).
PUBLISHED_PAIRS_SHA256: Final = "0355b3df1c8f838557dc6717d4058e62a248776e79371edc044dfc4429e7bd12"


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def record_key(sex: Any, age_years: Any, icv_mm3: Any, mmse: Any, cdr_global: Any) -> tuple[object, ...] | None:
    """What two records of one visit have in common; None when anything is missing, which never matches.

    The intracranial volume is compared in whole cm³, rounded half up: one release of the OASIS-2 table has decimals.

    >>> record_key("F", 74, 1364500.0, 29, 0.0) == record_key("F", 74.0, 1365000.0, 29.0, 0)
    True
    """
    numbers = [_number(value) for value in (age_years, icv_mm3, mmse, cdr_global)]
    if str(sex) not in ("F", "M") or any(number is None for number in numbers):
        return None
    age, icv, score, cdr = (number for number in numbers if number is not None)
    return str(sex), math.floor(age), math.floor(icv / 1000.0 + 0.5), round(score, 3), round(cdr, 3)


def pair_records(
    first: Iterable[tuple[str, tuple[object, ...] | None]], second: Iterable[tuple[str, tuple[object, ...] | None]]
) -> list[tuple[str, str]]:
    """Names of records with equal keys, where the match is the only one in both directions; sorted."""
    by_key: list[dict[tuple[object, ...], set[str]]] = [{}, {}]
    for side, records in enumerate((first, second)):
        for name, key in records:
            if key is not None:
                by_key[side].setdefault(key, set()).add(name)
    return sorted(
        (next(iter(names)), next(iter(by_key[1][key])))
        for key, names in by_key[0].items()
        if len(names) == 1 and len(by_key[1].get(key, ())) == 1
    )


def pairs_sha256(pairs: Sequence[tuple[str, str]]) -> str:
    """SHA-256 over the sorted lines of OASIS-1 session, tabulator, OASIS-2 session, joined by line feeds."""
    return hashlib.sha256("\n".join(f"{one}\t{two}" for one, two in sorted(pairs)).encode()).hexdigest()


def link_sessions(visits: pd.DataFrame) -> pd.DataFrame:
    """The pairs of sessions, from the visits table of the cohort.

    Only the first session (MR1) of OASIS-1 takes part; a re-scan belongs to the person of its first session. Each
    OASIS-1 person is linked to one OASIS-2 person at most, and the other way round: where two sessions of one person
    match two persons, none is linked.

    Returns
    -------
    DataFrame
        ``oasis1_session``, ``oasis2_session``, ``rule``; ``attrs["sha256"]`` is the digest of the pairs.
    """
    import pandas as pd

    sides: tuple[list[tuple[str, tuple[object, ...] | None]], ...] = ([], [])
    for row in visits.itertuples(index=False):
        subject, code = str(row.native_subject_id), str(row.visit_code)
        if subject.startswith("OAS1_") and code == "MR1":
            side = 0
        elif subject.startswith("OAS2_"):
            side = 1
        else:
            continue
        key = record_key(row.sex, row.age_years, row.icv_mm3, row.mmse, row.cdr_global)
        sides[side].append((f"{subject}_{code}", key))
    pairs = unambiguous(pair_records(*sides))
    frame = pd.DataFrame([(one, two, LINK_RULE) for one, two in pairs], columns=list(LINK_COLUMNS), dtype="string")
    frame.attrs["sha256"] = pairs_sha256(pairs)
    return frame


def unambiguous(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of sessions whose persons are linked to no other person.

    >>> unambiguous([("OAS1_0001_MR1", "OAS2_0001_MR1"), ("OAS1_0002_MR1", "OAS2_0001_MR2")])
    []
    """
    people: list[dict[str, set[str]]] = [{}, {}]
    for pair in pairs:
        subjects = [name.rsplit("_MR", 1)[0] for name in pair]
        people[0].setdefault(subjects[0], set()).add(subjects[1])
        people[1].setdefault(subjects[1], set()).add(subjects[0])
    return [
        pair
        for pair in pairs
        if all(len(people[side][name.rsplit("_MR", 1)[0]]) == 1 for side, name in enumerate(pair))
    ]


def links_line(links: pd.DataFrame) -> str:
    """One line about the links, with the digest of the pairs and whether it is that of the published tables."""
    digest = pairs_sha256(list(zip(links["oasis1_session"], links["oasis2_session"], strict=True)))
    published = ", as on the published tables" if digest == PUBLISHED_PAIRS_SHA256 else ""
    return f"{len(links)} sessions are in OASIS-1 and OASIS-2 (links.parquet); SHA-256 of the pairs {digest}{published}"
