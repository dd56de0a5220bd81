"""Linked persons: independent of the order of rows, and stable when people join."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest
from ehr_tables import make_params
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.ehr.persons import ACQUISITION_LINK_RULE, OASIS_LINK_RULE, VOXEL_LINK_RULE, link_persons, oasis_pairs
from medalign3d.ehr.splits import make_splits

NEEDED = ["participant_id", "session", "sex", "age_years", "icv_mm3", "mmse", "cdr_global"]
label = st.builds("sub-OAS3{:04d}".format, st.integers(1, 12))


def sessions(*rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=NEEDED)


def test_a_rescan_inherits_the_person_of_its_first_session() -> None:
    record = ("F", 70, 1400e3, 29, 0)
    visits = pd.DataFrame(
        [("sub-OAS10001", "MR1", *record), ("sub-OAS10001", "MR2", *record), ("sub-OAS20009", "MR1", *record)],
        columns=["participant_id", "visit_code", *NEEDED[2:]],
    )
    images = pd.DataFrame(
        [
            ("sub-OAS10001", "OASIS", "ses-MR1"),
            ("sub-OAS10001", "OASIS", "ses-MR2"),
            ("sub-OAS20009", "OASIS", "ses-MR1"),
        ],
        columns=["participant_id", "dataset", "session_id"],
    )
    people = link_persons(images, visits)
    assert people["person_id"].tolist() == ["sub-OAS10001", "sub-OAS10001"]
    assert people["link_rule"].tolist() == [OASIS_LINK_RULE] * 2


def test_a_rescan_alone_is_no_match_and_two_candidates_are_none() -> None:
    record = ("F", 70, 1400e3, 29, 0)
    assert oasis_pairs(sessions(("sub-OAS10001", "MR2", *record), ("sub-OAS20001", "MR1", *record))) == []
    both = [("sub-OAS20001", "MR1", *record), ("sub-OAS20002", "MR1", *record)]
    assert oasis_pairs(sessions(("sub-OAS10001", "MR1", *record), *both)) == []
    assert oasis_pairs(sessions(*both, ("sub-OAS10001", "MR1", *record))[1:]) == [(1, 0)]


@pytest.mark.parametrize("value", [1364.5e3, 1365e3, 1365.4e3])
def test_the_decimals_of_the_newer_table_do_not_matter(value: float) -> None:
    rows = sessions(("sub-OAS10001", "MR1", "F", 70, 1365e3, 29, 0), ("sub-OAS20001", "MR1", "F", 70, value, 29, 0))
    assert oasis_pairs(rows) == [(0, 1)]


@given(
    st.lists(label, min_size=1, max_size=12, unique=True),
    st.lists(st.tuples(label, label), max_size=8),
    st.lists(st.tuples(label, label), max_size=4),
    st.randoms(),
)
def test_persons_do_not_depend_on_order_and_links_are_transitive(
    labels: list[str], pairs: list[tuple[str, str]], alike: list[tuple[str, str]], shuffle: object
) -> None:
    images = pd.DataFrame({"participant_id": labels, "dataset": "OASIS", "session_id": "ses-d0001"})
    people = link_persons(images, None, pairs, alike)
    mixed = list(reversed([(b, a) for a, b in pairs]))
    again = link_persons(images.sample(frac=1, random_state=1), None, mixed, alike[::-1])
    pd.testing.assert_frame_equal(people, again)
    person = dict(zip(people["participant_id"], people["person_id"], strict=True))
    for one, two in [*pairs, *alike]:
        if one in person and two in person:
            assert person[one] == person[two]
    for name, rule in zip(people["participant_id"], people["link_rule"], strict=True):
        named = {r for r in (VOXEL_LINK_RULE, ACQUISITION_LINK_RULE) if isinstance(rule, str) and r in rule}
        expected = {VOXEL_LINK_RULE} if any(name in pair for pair in pairs) else set()
        assert named == expected | ({ACQUISITION_LINK_RULE} if any(name in pair for pair in alike) else set())


def invented(first: int, count: int) -> pd.DataFrame:
    rows = [
        {
            "image_id": f"{number:04d}-{visit}", "person_id": f"sub-ADNI005S{number:04d}", "dataset": "ADNI",
            "data_sha256": f"{number}-{visit}", "session_id": f"ses-{visit}", "selected": True, "sex": "FM"[number % 2],
            "age_years": 60.0 + number % 25 + visit, "field_strength_t": 3.0,
            "dx3": ("NC", "MCI", "AD_DEM")[number % 3], "dx2": ("NonDEM", "NonDEM", "DEM")[number % 3],
        }
        for number in range(first, first + count)
        for visit in range(1 + number % 2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def held_out(images: pd.DataFrame) -> dict[str, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = make_splits(images, make_params(cohorts=["ADNI"], split={"mode": "held_out"}))
    return {str(image): split == "test" for image, split in zip(table["image_id"], table["split"], strict=True)}


@settings(max_examples=8, deadline=None)
@given(old=st.integers(20, 60), new=st.integers(1, 60))
def test_people_who_join_move_nobody_between_training_and_test(old: int, new: int) -> None:
    before = held_out(invented(0, old))
    after = held_out(pd.concat([invented(0, old), invented(1000, new)], ignore_index=True))
    assert {image: after[image] for image in before} == before


@settings(max_examples=8, deadline=None)
@given(one=st.integers(0, 39), two=st.integers(0, 39))
def test_a_link_that_is_found_later_moves_only_the_linked(one: int, two: int) -> None:
    """The group is called by its first label and drawn by it, so its first member stays and the other follows."""
    images = invented(0, 40)
    before = held_out(images)
    names = sorted(f"sub-ADNI005S{number:04d}" for number in (one, two))
    linked = images.assign(person_id=images["person_id"].replace({names[1]: names[0]}))
    linked["sex"] = "F"
    after = held_out(linked)
    moved = {image for image in before if before[image] != after[image]}
    group = set(images.loc[images["person_id"].isin(names), "image_id"])
    assert moved <= group
    assert len({after[image] for image in group}) == 1
