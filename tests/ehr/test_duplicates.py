"""One acquisition in several forms is found; two acquisitions are never taken for one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ehr_tables import image, make_params, tables
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "cohorts"))
from invented_heads import scan

from medalign3d.cohorts.fingerprint import LENGTH, fingerprint
from medalign3d.ehr.duplicates import (
    CANDIDATE_DISTANCE,
    SAME_ACQUISITION,
    candidate_pairs,
    near_duplicates,
    residual_correlation,
)
from medalign3d.ehr.harmonize import harmonize
from medalign3d.ehr.persons import ACQUISITION_LINK_RULE

FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float with scale and offset": lambda a: a.astype(np.float64) * 0.37 + 12,
    "big endian": lambda a: a.astype(">i2"),
    "uint8": lambda a: np.round(a * (255.0 / a.max())).astype(np.uint8),
    "axes permuted": lambda a: a.transpose(2, 0, 1),
    "axes flipped": lambda a: a[::-1, :, ::-1],
    "mirrored": lambda a: a[::-1],
    "padded": lambda a: np.pad(a, ((9, 0), (3, 14), (0, 5))),
    "cropped": lambda a: a[5:-3, 4:-6, 6:-2],
    "everything": lambda a: np.pad(
        np.round(a[4:-4, 4:-4, 4:-4] * (200.0 / a.max())).astype(np.uint8).transpose(1, 2, 0)[::-1], 7
    ),
}


@pytest.fixture(scope="module")
def scans() -> dict[str, np.ndarray]:
    """Three people, of whom the first was scanned twice, once more after being moved by a part of a voxel."""
    return {
        "a": scan(1, 1), "a again": scan(1, 2), "a moved": scan(1, 3, (0.4, 0.3, 0.2)), "b": scan(2, 1), "c": scan(3, 1)
    }  # fmt: skip


def distance(one: np.ndarray, two: np.ndarray) -> float:
    first, second = fingerprint(one), fingerprint(two)
    assert first is not None
    assert second is not None
    assert len(first) == LENGTH
    return float(np.linalg.norm(np.subtract(first, second)) / np.linalg.norm(first))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_acquisition_is_found(scans: dict[str, np.ndarray], form: str) -> None:
    for name in ("a", "c"):
        copy = FORMS[form](scans[name])
        assert distance(scans[name], copy) <= CANDIDATE_DISTANCE
        assert residual_correlation(scans[name], copy) >= SAME_ACQUISITION
        assert residual_correlation(copy, scans[name]) >= SAME_ACQUISITION


@pytest.mark.parametrize("other", ["a again", "a moved", "b", "c"])
def test_other_acquisitions_are_not_the_same(scans: dict[str, np.ndarray], other: str) -> None:
    """Another scan of the person in the very place may have a like fingerprint; the voxels tell."""
    assert residual_correlation(scans["a"], scans[other]) < SAME_ACQUISITION - 0.1
    if other in ("b", "c"):
        assert distance(scans["a"], scans[other]) > CANDIDATE_DISTANCE


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    pads=st.tuples(*[st.integers(0, 12)] * 6),
    scale=st.floats(0.01, 30),
)
def test_signed_permutations_shifts_and_scales(order: Any, flips: Any, pads: Any, scale: float) -> None:
    original = scan(4, 1)
    copy = original.transpose(order)[tuple(slice(None, None, flip) for flip in flips)].astype(np.float32) * scale
    copy = np.pad(copy, list(zip(pads[::2], pads[1::2], strict=True)))
    assert distance(original, copy) <= CANDIDATE_DISTANCE / 2
    assert residual_correlation(original, copy) > 0.99


@pytest.mark.parametrize(
    "values",
    [np.zeros((64, 64, 64)), np.full((64, 64, 64), 7), np.zeros((3, 64, 64)), np.zeros((64, 64)),
     np.full((64, 64, 64), np.nan), np.zeros((64, 64, 64), dtype=complex)],
)  # fmt: skip
def test_arrays_without_content_have_no_fingerprint(values: np.ndarray) -> None:
    assert fingerprint(values) is None


@given(
    st.lists(
        st.one_of(st.none(), st.lists(st.floats(0.125, 1, width=32), min_size=4, max_size=4)), min_size=0, max_size=12
    )
)
def test_candidate_pairs_are_all_pairs_within_the_distance(prints: list[Any]) -> None:
    found = candidate_pairs(prints)
    for i in range(len(prints)):
        for k in range(i + 1, len(prints)):
            if prints[i] is None or prints[k] is None:
                assert (i, k) not in found
                continue
            one, two = np.array(prints[i]), np.array(prints[k])
            ratio = np.linalg.norm(one - two) / min(np.linalg.norm(one), np.linalg.norm(two))
            if abs(ratio - CANDIDATE_DISTANCE) > 1e-4:
                assert ((i, k) in found) == (ratio < CANDIDATE_DISTANCE)


# ------------------------------------------------------------------------------------------------------- harmonization


def cohorts(scans: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """ADNI with a, a again and b; OASIS with b saved again and c; and the voxels by source path."""
    placed = {
        ("ADNI", "005_S_0223", 1): scans["a"], ("ADNI", "005_S_0223", 2): scans["a again"],
        ("ADNI", "005_S_0224", 1): scans["b"], ("OASIS", "OAS30001", 1): FORMS["everything"](scans["b"]),
        ("OASIS", "OAS30002", 1): scans["c"],
    }  # fmt: skip
    rows: dict[str, list[dict[str, Any]]] = {"ADNI": [], "OASIS": []}
    voxels: dict[str, np.ndarray] = {}
    for (dataset, subject, number), values in placed.items():
        label = subject.replace("_", "") if dataset == "OASIS" else "ADNI" + subject.replace("_", "")
        row = image(
            dataset, subject, number, participant_id=f"sub-{label}", fingerprint=list(fingerprint(values) or ())
        )
        rows[dataset].append(row)
        voxels[row["source_path"]] = values
    return {name: tables(members) for name, members in rows.items()}, voxels


def test_a_copy_in_another_cohort_is_dropped_and_its_people_linked(scans: dict[str, np.ndarray]) -> None:
    read, voxels = cohorts(scans)
    result = harmonize(read, make_params(cohorts=["ADNI", "OASIS"]), lambda row: voxels[row["source_path"]])
    assert sorted(result.images["native_subject_id"]) == ["005_S_0223", "005_S_0223", "005_S_0224", "OAS30002"]
    drops = result.quarantine[result.quarantine["severity"] == "drop"]
    assert drops["reason"].tolist() == ["CROSS_COHORT_DUPLICATE"]
    assert "saved in another form" in drops["detail"].iloc[0]
    people = result.persons.set_index("participant_id")
    assert people.loc["sub-OAS30001", "person_id"] == people.loc["sub-ADNI005S0224", "person_id"]
    assert people.loc["sub-OAS30001", "link_rule"] == ACQUISITION_LINK_RULE
    assert people["person_id"].nunique() == 3


@pytest.mark.parametrize("read_voxels", [None, lambda row: None])
def test_without_voxels_look_alikes_are_remarked_on_and_kept(scans: dict[str, np.ndarray], read_voxels: Any) -> None:
    read, _ = cohorts(scans)
    result = harmonize(read, make_params(cohorts=["ADNI", "OASIS"]), read_voxels)
    assert len(result.images) == 5
    assert set(result.quarantine["severity"]) <= {"warn"}
    assert "CROSS_COHORT_DUPLICATE" in set(result.quarantine["reason"])
    assert result.persons["person_id"].nunique() == 4


def test_variants_of_one_acquisition_are_not_searched(scans: dict[str, np.ndarray]) -> None:
    values = list(fingerprint(scans["a"]) or ())
    base = {"fingerprint": values, "participant_id": "sub-1", "variant_of": None}
    rows = [{**base, "data_sha256": "x"}, {**base, "data_sha256": "y", "variant_of": "1"}]
    assert near_duplicates(rows, lambda row: scans["a"]) == []
    rows[1]["variant_of"] = None
    assert [pair.confirmed for pair in near_duplicates(rows, lambda row: scans["a"])] == [True]
    rows[1]["data_sha256"] = "x"
    assert near_duplicates(rows, lambda row: scans["a"]) == []


def test_ingest_computes_the_fingerprint_of_what_it_reads(tmp_path: Path, scans: dict[str, np.ndarray]) -> None:
    import nibabel as nib

    from medalign3d.cohorts.images import inspect_image

    nib.save(nib.Nifti1Image(scans["a"], np.diag([1.5, 1.5, 1.5, 1])), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(scans["a"].astype(np.float32), np.diag([-1.5, 1.5, 1.5, 1])), tmp_path / "b.nii")
    one, two = (inspect_image(tmp_path / name)["fingerprint"] for name in ("a.nii.gz", "b.nii"))
    assert one == pytest.approx(fingerprint(scans["a"]), rel=1e-6)
    assert candidate_pairs([one, two, fingerprint(scans["b"])]) == [(0, 1)]


def test_folders_that_were_just_read_need_no_reader(tmp_path: Path, scans: dict[str, np.ndarray]) -> None:
    """A copy of one OASIS-1 session among the sessions of another participant: nobody can tell whose it is."""
    import nibabel as nib
    from cohort_trees import run, write_csv

    write_csv(
        tmp_path / "cross.csv", "ID|M/F|Hand|Age|Educ|SES|MMSE|CDR|eTIV|nWBV|ASF|Delay",
        *[[f"OAS1_000{n}_MR1", "F", "R", 70, 2, 2, 29, 0, 1400, 0.75, 1.254, ""] for n in (1, 2, 3)],
    )  # fmt: skip
    forms = {1: scans["a"], 2: FORMS["everything"](scans["a"]), 3: scans["b"]}
    for number, values in forms.items():
        name = f"OAS1_000{number}_MR1_orig.nii.gz"
        nib.save(nib.Nifti1Image(values, np.diag([1.5, 1.5, 1.5, 1])), tmp_path / name)
    read = run("OASIS", tmp_path)
    assert len(read.images) == 3
    result = harmonize({"OASIS": read}, make_params(cohorts=["OASIS"]))
    assert result.images["native_subject_id"].tolist() == ["OAS1_0003"]
    drops = result.quarantine[(result.quarantine["severity"] == "drop")]
    assert set(drops["reason"]) == {"DUPLICATE_IMAGE_BYTES"}
    assert result.persons["person_id"].nunique() == 2


def test_persons_of_real_looking_tables_keep_their_types(scans: dict[str, np.ndarray]) -> None:
    read, voxels = cohorts(scans)
    result = harmonize(read, make_params(cohorts=["ADNI", "OASIS"]), lambda row: voxels[row["source_path"]])
    assert isinstance(result.persons["link_rule"].dtype, pd.StringDtype)
    assert result.images.groupby("person_id").size().sum() == len(result.images)
