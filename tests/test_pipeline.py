"""The pipeline through DVC, small: every stage really runs, a second run does nothing, a change reruns what it must."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from medalign3d.files import read_parquet
from medalign3d.profiles import merge_profile

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end, pytest.mark.timeout(900)]

SMALL = {
    "cohorts": ["ADNI", "OASIS", "MIRIAD"],
    "language_models": ["gpt2"],
    "simulate": {
        "cohorts": ["ADNI", "OASIS", "MIRIAD"],
        "participants": {"ADNI": 30, "OASIS": 30, "MIRIAD": 6},
        "maximum_sessions": 1,
    },
    "split": {
        "benchmarks": {
            "ADNI-3x": {"cohort": "ADNI", "question": "diagnosis_nc_mci_ad", "per_class": 2},
            "OASIS-2x": {"cohort": "OASIS", "question": "diagnosis_dem_nondem", "per_class": 3},
            "MIRIAD": {"cohort": "MIRIAD", "question": "diagnosis_nc_ad", "zero_shot": True},
        }
    },
    "backbones": {"vision": {"steps": 5}, "language": {"steps": 20, "sentences": 400}},
    "training": {"runs": 1},
    "pretrain": {"steps": 6, "batch_size": 8, "validate_every": 3},
    "tune": {"steps": 4},
    "evaluate": {"text_ablations": ["full"], "bootstrap_samples": 100},
    "vqa": {"items_per_question": 10},
    "tracking": {"experiment": "test", "registered_model": "test"},
}


def dvc(workspace: Path, *arguments: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=workspace, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    return answer.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, project) -> Path:
    from medalign3d.profiles import build_profile

    folder = tmp_path_factory.mktemp("pipeline")
    for name in ("stages", "src"):
        shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(project / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(project / ".dvc" / "config", folder / ".dvc" / "config")
    (folder / "params.yaml").write_text(merge_profile(build_profile("demo", project=project)[0], SMALL, "small"))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    dvc(folder, "repro")
    return folder


def test_canonical_outputs(workspace):
    data = workspace / "data"
    for cohort in SMALL["cohorts"]:
        assert (data / "raw" / cohort / "SYNTHETIC_DATA").is_file()
        for table in ("images", "visits", "quarantine", "sources"):
            assert read_parquet(data / "cohorts" / cohort / f"{table}.parquet").attrs["simulated"] == "true"
        index = read_parquet(data / "volumes" / cohort / "index.parquet")
        assert (index["verdict"] == "accepted").mean() > 0.8
    for name in ("images", "persons"):
        assert read_parquet(data / "ehr" / f"{name}.parquet").attrs["simulated"] == "true"
    assert (data / "splits" / "assignment.csv").is_file()
    for setting in ("frozen", "lora"):
        folders = list((data / "models" / "gpt2" / setting).iterdir())
        assert folders
        assert all((folder / "model.safetensors").is_file() for folder in folders)
    predictions = read_parquet(data / "evaluation" / "gpt2" / "predictions.parquet")
    assert predictions.attrs["simulated"] == "true"
    assert {"text_only", "frozen", "lora", "control_shuffled"} <= set(predictions["setting"])
    for table in ("table1", "table2", "table3"):
        for suffix in ("csv", "md", "tex"):
            assert (data / "report" / f"{table}.{suffix}").stat().st_size > 0
    assert list((data / "report" / "figures").glob("*.png"))
    assert (data / "report" / "index.html").is_file()


def test_simulated_is_said_wherever_it_shows(workspace):
    report = workspace / "data" / "report"
    for name in ("table1.md", "table2.md", "table3.md", "table2.tex", "index.html"):
        assert "simulated" in (report / name).read_text().lower(), name


def test_no_person_stands_on_two_sides(workspace):
    assignment = pd.read_csv(workspace / "data" / "splits" / "assignment.csv")
    sides = assignment[assignment["split"] != "excluded"].groupby("person_id")["split"].nunique()
    assert (sides == 1).all()


def test_a_second_run_does_nothing(workspace):
    assert "Data and pipelines are up to date." in dvc(workspace, "repro")


def test_a_change_reruns_only_what_depends_on_it(workspace):
    params = workspace / "params.yaml"
    original = params.read_text()
    try:
        params.write_text(original.replace("minimum_cell: 5", "minimum_cell: 4"))
        planned = [line for line in dvc(workspace, "repro", "--dry").splitlines() if line.startswith("Running stage")]
        assert planned == ["Running stage 'report':"]
        params.write_text(original.replace("label_smoothing: 0.1", "label_smoothing: 0.2"))
        planned = [line for line in dvc(workspace, "repro", "--dry").splitlines() if line.startswith("Running stage")]
        names = {line.split("'")[1].split("@")[0] for line in planned}
        assert "pretrain" in names
        assert not names & {"simulate", "ingest", "harmonize", "normalize", "split", "backbones"}
    finally:
        params.write_text(original)


def test_a_wrong_parameter_stops_before_any_work(workspace):
    params = workspace / "params.yaml"
    original = params.read_text()
    try:
        params.write_text(original.replace("minimum_cell: 5", "minimum_cell: none"))
        answer = subprocess.run(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=workspace,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert answer.returncode != 0
        assert "report.minimum_cell (line" in answer.stderr
        assert "Traceback" not in answer.stderr
    finally:
        params.write_text(original)
