"""Who is the same person: OASIS-1 and OASIS-2 share participants, and equal voxels prove a shared person anywhere.

Splits are made by ``person_id``. It equals the participant label unless the participant is linked to another one; then
it is the alphabetically first label of the linked group, so that it does not depend on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from medalign3d.cohorts.oasis_links import LINK_RULE as OASIS_LINK_RULE
from medalign3d.cohorts.oasis_links import pair_records, record_key, unambiguous

if TYPE_CHECKING:
    import pandas as pd

VOXEL_LINK_RULE = "equal_voxels"
ACQUISITION_LINK_RULE = "same_acquisition"


class Groups:
    """Disjoint groups of labels (union-find); a group is named by its alphabetically first label."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def name(self, label: str) -> str:
        """The name of the group that ``label`` is in."""
        path = []
        while (parent := self._parent.get(label, label)) != label:
            path.append(label)
            label = parent
        for step in path:
            self._parent[step] = label
        return label

    def join(self, first: str, second: str) -> None:
        """Put two labels in one group."""
        low, high = sorted((self.name(first), self.name(second)))
        if low != high:
            self._parent[high] = low


def oasis_pairs(sessions: pd.DataFrame) -> list[tuple[int, int]]:
    """Sessions of OASIS-1 and OASIS-2 that are the same visit of the same person.

    The two releases describe the shared visits with equal sex, age in years, estimated total intracranial volume, MMSE
    and CDR. A pair counts only when it is the only match in both directions; missing values never match. Only the first
    OASIS-1 session (MR1) takes part; a re-scan belongs to the person of its first session. Nobody is linked to two
    people. See :mod:`medalign3d.cohorts.oasis_links`.

    Parameters
    ----------
    sessions
        One row per session with ``participant_id``, ``session`` (MR1, MR2 ...), ``sex``, ``age_years``, ``icv_mm3``,
        ``mmse``, ``cdr_global``.

    Returns
    -------
    list of (row number of the OASIS-1 session, row number of the OASIS-2 session)
    """
    first: list[tuple[str, tuple[object, ...] | None]] = []
    second: list[tuple[str, tuple[object, ...] | None]] = []
    position: dict[str, int] = {}
    for number, row in enumerate(sessions.itertuples(index=False)):
        name = f"{str(row.participant_id).removeprefix('sub-')}_{row.session}"
        key = record_key(row.sex, row.age_years, row.icv_mm3, row.mmse, row.cdr_global)
        if name.startswith("OAS1") and str(row.session) == "MR1":
            first.append((name, key))
        elif name.startswith("OAS2"):
            second.append((name, key))
        position.setdefault(name, number)
    pairs = unambiguous(pair_records(first, second))
    return [(position[one], position[two]) for one, two in pairs]


def _oasis_sessions(images: pd.DataFrame, visits: pd.DataFrame | None) -> pd.DataFrame:
    """One row per OASIS session, from the visits table where it has the needed columns, and from the images."""
    import pandas as pd

    needed = ["participant_id", "session", "sex", "age_years", "icv_mm3", "mmse", "cdr_global"]
    parts = []
    for table, source in ((images, "session_id"), (visits, "visit_code")):
        if table is None or not len(table) or source not in table:
            continue
        rows = table[table["participant_id"].astype(str).str.match(r"sub-OAS[12]\d{4}$")].copy()
        rows["session"] = rows[source].astype(str).str.replace(r"^ses-", "", regex=True)
        if set(needed) <= set(rows.columns):
            parts.append(rows[needed])
    if not parts:
        return pd.DataFrame(columns=needed)
    sessions = pd.concat([part.astype(object) for part in parts], ignore_index=True)
    complete = sessions.notna().all(axis=1)
    order = sessions.assign(complete=~complete).sort_values(["participant_id", "session", "complete"], kind="stable")
    return order.drop_duplicates(["participant_id", "session"])[needed].reset_index(drop=True)


def link_persons(
    images: pd.DataFrame,
    visits: pd.DataFrame | None = None,
    pairs: Iterable[tuple[str, str]] = (),
    same_acquisition: Iterable[tuple[str, str]] = (),
) -> pd.DataFrame:
    """The person of every participant.

    Parameters
    ----------
    images
        Images of all cohorts (``participant_id``, ``dataset``, ``session_id`` and the clinical columns).
    visits
        Visits of OASIS, if there; they also cover sessions without an accepted image.
    pairs
        Further pairs of participants that are the same person (equal voxels).
    same_acquisition
        Pairs of participants who share an acquisition that was saved in different forms.

    Returns
    -------
    DataFrame
        One row per participant: ``participant_id``, ``person_id``, ``dataset``, ``link_rule`` (missing when not
        linked).
    """
    import pandas as pd

    groups = Groups()
    rules: dict[str, set[str]] = {}

    def join(first: str, second: str, rule: str) -> None:
        groups.join(first, second)
        for label in (first, second):
            rules.setdefault(label, set()).add(rule)

    sessions = _oasis_sessions(images, visits)
    labels = [str(label) for label in sessions["participant_id"]]
    for first, second in oasis_pairs(sessions):
        join(labels[first], labels[second], OASIS_LINK_RULE)
    for one, other in pairs:
        join(one, other, VOXEL_LINK_RULE)
    for one, other in same_acquisition:
        join(one, other, ACQUISITION_LINK_RULE)
    people = images[["participant_id", "dataset"]].drop_duplicates("participant_id").sort_values("participant_id")
    participants = [str(label) for label in people["participant_id"]]
    return pd.DataFrame(
        {
            "participant_id": pd.Series(participants, dtype="str"),
            "person_id": pd.Series([groups.name(label) for label in participants], dtype="str"),
            "dataset": pd.Series([str(dataset) for dataset in people["dataset"]], dtype="str"),
            "link_rule": pd.Series(
                ["+".join(sorted(rules[x])) if x in rules else None for x in participants], dtype="str"
            ),
        }
    )
