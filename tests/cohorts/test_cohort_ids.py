"""Native ids to BIDS labels and back, for every cohort: no two people share a label, no two visits by mistake."""

from __future__ import annotations

import re

import pytest
from cohort_trees import adni_image, by_key, run, write_csv
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cohorts.base import native_ids, native_session, participant_id_of, session_id_of

COHORTS = ("ADNI", "NACC", "OASIS", "AIBL", "MIRIAD", "IXI")
SUBJECTS = {
    "ADNI": st.from_regex(r"[0-9]{3}_S_[0-9]{4,5}", fullmatch=True),
    "NACC": st.from_regex(r"NACC[0-9]{6}", fullmatch=True),
    "OASIS": st.from_regex(r"OAS[12]_[0-9]{4}|OAS3[0-9]{4}", fullmatch=True),
    "AIBL": st.from_regex(r"[0-9]{1,6}", fullmatch=True),
    "MIRIAD": st.from_regex(r"miriad_[0-9]{3}", fullmatch=True),
    "IXI": st.from_regex(r"IXI[0-9]{3}", fullmatch=True),
}
SESSIONS = {
    "ADNI": st.one_of(st.sampled_from(["bl", "sc", "scmri", "init", "uns1", "nv", "f", "4_bl", "v06"]),
                      st.integers(0, 999).map(lambda month: f"m{month:02d}")),
    "NACC": st.integers(1, 99).map(str),
    "OASIS": st.one_of(st.integers(1, 9).map(lambda n: f"MR{n}"), st.integers(0, 99999).map(lambda day: f"d{day:04d}")),
    "AIBL": st.one_of(st.just("bl"), st.integers(1, 400).map(lambda month: f"m{month:02d}")),
    "MIRIAD": st.integers(1, 20).map(lambda visit: f"{visit:02d}"),
    "IXI": st.just("baseline"),
}  # fmt: skip
BASELINE = {"bl", "sc", "scmri", "init", "m00"}
anything = st.one_of(st.text(max_size=12), st.sampled_from(["", "Z", "M000", "MR01", "V01", "X", "Z4dz", "005_S_223"]))


@pytest.mark.parametrize("cohort", COHORTS)
def test_subjects_come_back(cohort):
    @given(SUBJECTS[cohort])
    def check(native):
        label = participant_id_of(cohort, native)
        assert re.fullmatch(r"sub-[0-9A-Za-z]+", label)
        assert "X" not in label.removeprefix("sub-IXI")
        assert native_ids(label) == (cohort, native)

    check()


@given(st.sampled_from(COHORTS), anything)
def test_ids_of_no_known_form_come_back_too(cohort, native):
    label = participant_id_of(cohort, native)
    assert re.fullmatch(r"sub-[0-9A-Za-z]+", label)
    assert native_ids(label) == (cohort, native)


@pytest.mark.parametrize("cohort", COHORTS)
def test_sessions_come_back(cohort):
    @given(SESSIONS[cohort])
    def check(native):
        label = session_id_of(cohort, native)
        assert re.fullmatch(r"ses-[0-9A-Za-z]+", label)
        back = native_session(cohort, label)
        assert back == native or {back, native} <= BASELINE
        assert session_id_of(cohort, back) == label

    check()


@given(st.sampled_from(COHORTS), anything, anything)
def test_two_codes_share_a_session_only_as_spellings_of_one(cohort, first, second):
    one, other = session_id_of(cohort, first), session_id_of(cohort, second)
    assert session_id_of(cohort, native_session(cohort, one)) == one
    if one == other:
        assert native_session(cohort, one) == native_session(cohort, other)
        same_number = re.sub(r"\D", "", first).lstrip("0") == re.sub(r"\D", "", second).lstrip("0")
        assert first == second or {first.lower(), second.lower()} & BASELINE or same_number


@pytest.mark.parametrize(
    ("cohort", "native", "label"),
    [
        ("ADNI", "005_S_0223", "sub-ADNI005S0223"),
        ("ADNI", "005_S_10223", "sub-ADNI005S10223"),
        ("AIBL", "10", "sub-AIBL10"),
        ("AIBL", "100", "sub-AIBL100"),
        ("AIBL", "0010", "sub-AIBL0010"),
        ("OASIS", "OAS30001", "sub-OAS30001"),
    ],
)
def test_known_subjects(cohort, native, label):
    assert participant_id_of(cohort, native) == label


@pytest.mark.parametrize(
    ("cohort", "native", "label"),
    [
        ("ADNI", "bl", "ses-M000"), ("ADNI", "sc", "ses-M000"), ("ADNI", "m120", "ses-M120"),
        ("ADNI", "uns1", "ses-uns1"), ("NACC", "1", "ses-MR01"), ("NACC", "20", "ses-MR20"),
        ("OASIS", "d0129", "ses-d0129"), ("OASIS", "d10129", "ses-d10129"), ("MIRIAD", "01", "ses-V01"),
        ("NACC", "mri1234", "ses-mri1234"), ("NACC", "MR01", "ses-Z4dzR01"),
    ],
)  # fmt: skip
def test_known_sessions(cohort, native, label):
    assert session_id_of(cohort, native) == label


@pytest.mark.parametrize("label", ["sub-ADNI5S0223", "sub-XYZ1", "sub-", "sub-OAS40001"])
def test_labels_of_no_cohort_are_refused(label):
    with pytest.raises(ValueError, match="no participant label"):
        native_ids(label)


def test_images_of_one_bids_session_are_numbered_by_date_and_image_number(tmp_path):
    """The screening and the baseline scan are different visits of one BIDS session: their runs must not collide."""
    person = "005_S_0223"
    for date, uid, seed in (("2006-05-02", 45120, 1), ("2006-05-02", 45108, 2), ("2006-03-01", 45200, 3)):
        adni_image(tmp_path, person, date, uid, seed)
    columns = "RID|PTID|VISCODE|EXAMDATE|DX_bl|AGE|PTGENDER|PTEDUCAT|COLPROT|EXAMDATE_bl|DX"
    write_csv(
        tmp_path / "ADNIMERGE.csv", columns,
        (223, person, "bl", "2006-05-02", "CN", 70.1, "Male", 16, "ADNI1", "2006-05-02", "CN"),
        (223, person, "sc", "2006-03-01", "CN", 70.1, "Male", 16, "ADNI1", "2006-05-02", "CN"),
    )  # fmt: skip
    images = by_key(run("ADNI", tmp_path))
    assert {key: (record["session_id"], record["run"]) for key, record in images.items()} == {
        "I45200": ("ses-M000", 1),
        "I45108": ("ses-M000", 2),
        "I45120": ("ses-M000", 3),
    }
