"""The command line as a user meets it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from medalign3d.cli import main


@pytest.fixture
def workspace(tmp_path, project, params_text, monkeypatch):
    (tmp_path / "params.yaml").write_text(params_text)
    shutil.copytree(project / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command", ["ingest", "bids", "normalize", "predict", "profile", "doctor", "explain", "why-missing", "params"]
)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"medalign3d {command}" in capsys.readouterr().out.split("example")[1]


@pytest.mark.parametrize(
    "arguments", [["ingest"], ["ingest", "XYZ", "."], ["fly"], [], ["predict", "--image", "a", "--question"]]
)
def test_wrong_usage_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_missing_folder_is_an_error_with_a_place(workspace, capsys):
    assert main(["ingest", "OASIS", "nowhere", "--out", "out"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not (workspace / "out").exists()


def test_profile_lists_and_switches(workspace, capsys):
    assert main(["profile"]) == 0
    assert "* demo" in capsys.readouterr().out
    assert main(["profile", "oasis1", "--data", "OASIS=/nowhere"]) == 0
    out = capsys.readouterr().out
    assert "run `dvc repro`" in out
    assert "/nowhere is not there yet" in out
    assert main(["profile", "oasis1", "--data", "OASIS"]) == 1
    assert "COHORT=FOLDER" in capsys.readouterr().err
    assert main(["profile", "demo"]) == 0


def test_normalize_says_what_it_refused(workspace, capsys):
    import nibabel

    damaged = workspace / "damaged.nii.gz"
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 99, (64, 64, 64)).astype(np.int16), np.eye(4))
    nibabel.save(image, damaged)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    (workspace / "text.nii").write_text("not an image")
    assert main(["normalize", str(damaged), str(workspace / "text.nii"), "--out", str(workspace / "out")]) == 3
    out = capsys.readouterr().out
    assert "0 volumes normalized, 2 quarantined" in out
    assert "IMAGE_" in out


def test_predict_without_a_model_says_what_to_do(workspace, capsys):
    assert main(["predict", "--image", "x.nii", "--question", "What is the diagnosis?"]) == 1
    assert "dvc repro" in capsys.readouterr().err


def test_doctor_runs_in_seconds_and_names_what_is_missing(workspace, capsys):
    assert main(["doctor"]) == 0
    assert "profile demo" in capsys.readouterr().out
    (workspace / "empty").mkdir()
    assert main(["doctor", "ADNI", "empty"]) == 1
    assert "MISSING" in capsys.readouterr().out


def test_the_installed_command_starts():
    answer = subprocess.run([sys.executable, "-m", "medalign3d.cli", "--version"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert answer.stdout.startswith("medalign3d ")


def test_importing_the_model_needs_no_pipeline_packages():
    code = (
        "import sys, medalign3d.model.composite; "
        "heavy = [m for m in ('mlflow', 'prefect', 'dvc', 'monai', 'sklearn', 'nilearn', 'matplotlib', 'pandas') "
        "if m in sys.modules]; print(heavy)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
