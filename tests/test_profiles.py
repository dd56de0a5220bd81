import shutil

import pytest

from medalign3d.errors import ParameterError
from medalign3d.params import load_params
from medalign3d.profiles import available_profiles, build_profile, merge_profile, switch_profile


@pytest.fixture
def workspace(tmp_path, project, params_text):
    (tmp_path / "params.yaml").write_text(params_text)
    shutil.copytree(project / "profiles", tmp_path / "profiles")
    return tmp_path


@pytest.mark.parametrize("name", ["demo", "oasis1", "ixi", "paper"])
def test_every_profile_is_valid(project, name):
    assert name in available_profiles(project)
    assert build_profile(name, project=project)[1].profile == name


def test_there_and_back_is_byte_identical(workspace, params_text):
    switch_profile("oasis1", {"OASIS": "/somewhere"}, workspace)
    params = load_params(workspace / "params.yaml")
    assert (params.profile, params.external.roots) == ("oasis1", {"OASIS": "/somewhere"})
    switch_profile("ixi", project=workspace)
    switch_profile("demo", project=workspace)
    assert (workspace / "params.yaml").read_text() == params_text


def test_edits_of_the_demo_survive_a_round_trip(workspace):
    edited = (workspace / "params.yaml").read_text().replace("steps: 200\n", "steps: 201\n")
    (workspace / "params.yaml").write_text(edited)
    switch_profile("oasis1", project=workspace)
    switch_profile("demo", project=workspace)
    assert (workspace / "params.yaml").read_text() == edited


def test_a_profile_keeps_the_comments(workspace):
    switch_profile("oasis1", project=workspace)
    assert "# gradient norm" in (workspace / "params.yaml").read_text()


def test_a_wrong_profile_leaves_params_alone(workspace, params_text):
    (workspace / "profiles" / "mine.yaml").write_text("normalise: {workers: 2}\n")
    with pytest.raises(ParameterError, match="normalise"):
        switch_profile("mine", project=workspace)
    with pytest.raises(ParameterError, match="unknown profile"):
        switch_profile("none", project=workspace)
    with pytest.raises(ParameterError, match="does not read"):
        switch_profile("demo", {"ADNI": "/x"}, workspace)
    assert (workspace / "params.yaml").read_text() == params_text


def test_named_dictionaries_are_replaced_whole(params_text):
    text = merge_profile(params_text, {"split": {"benchmarks": {"X": {"cohort": "IXI", "question": "sex"}}}}, "x")
    assert "AIBL: {cohort" not in text


def test_outputs_of_absent_cohorts_are_taken_away(workspace):
    for folder in ("cohorts/ADNI", "cohorts/OASIS", "volumes/MIRIAD", "models/t5", "models/gpt2", "raw/OASIS"):
        (workspace / "data" / folder).mkdir(parents=True)
    switch_profile("oasis1", project=workspace)
    left = sorted(str(p.relative_to(workspace / "data")) for p in (workspace / "data").glob("*/*"))
    assert left == ["cohorts/OASIS", "models/gpt2"]
