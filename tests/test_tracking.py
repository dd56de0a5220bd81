"""Tracking with a real SQLite database: parallel first writers, how runs end, batches, records, the champion."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

from medalign3d import tracking
from medalign3d.errors import InputError, MedAlignError
from medalign3d.files import read_json
from medalign3d.params import Params, validate_params


@pytest.fixture(scope="module")
def params(demo_params: Params) -> Params:
    return demo_params


def with_uri(params: Params, uri: str) -> Params:
    values = params.model_dump(mode="json")
    values["tracking"]["uri"] = uri
    return validate_params(values)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A folder whose database was made by three processes at once."""
    root = tmp_path_factory.mktemp("tracking")
    context = multiprocessing.get_context("spawn")
    job = functools.partial(write_one_run, params.model_dump(mode="json"), str(root))
    children = [context.Process(target=job, args=(number,)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [0, 0, 0]
    return root


def write_one_run(values: dict, root: str, number: int) -> None:
    params = validate_params(values)
    with tracking.track_run(params, "pretrain@gpt2", f"run-{number}", {"seed": number}, root=Path(root)) as run:
        for step in range(50):
            run.log_metrics({"loss": 1.0 / (1 + step), "number": float(number)}, step=step)


def client_of(params: Params, root: Path):
    return tracking.prepare(params, root)


def runs_of(params: Params, root: Path, query: str = ""):
    client, experiment = client_of(params, root)
    return client.search_runs([experiment], query, max_results=1000)


@pytest.mark.slow
def test_three_processes_create_the_database_together(workspace, params):
    runs = runs_of(params, workspace, "tags.stage = 'pretrain@gpt2'")
    assert sorted(run.info.run_name for run in runs) == [f"pretrain@gpt2 run-{n}" for n in range(3)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    client, _ = client_of(params, workspace)
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "loss")
        assert sorted(entry.step for entry in history) == list(range(50))
        assert run.data.tags["simulated"] == "true"
        assert run.data.tags["params_sha256"] == tracking.params_hash(params)
        assert run.data.params["pretrain.steps"] == str(params.pretrain.steps)
    with sqlite3.connect(workspace / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.slow
def test_failure_kill_and_interrupt_end_the_run(workspace, params):
    with pytest.raises(ValueError, match="boom"), tracking.track_run(params, "s", "fails", root=workspace):
        raise ValueError("boom")
    with pytest.raises(KeyboardInterrupt), tracking.track_run(params, "s", "stops", root=workspace):
        raise KeyboardInterrupt
    found = {run.data.tags["mlflow.runName"]: run.info.status for run in runs_of(params, workspace, "tags.stage = 's'")}
    assert found == {"s fails": "FAILED", "s stops": "KILLED"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_sigterm_ends_a_run_as_killed_and_sigkill_is_noticed_by_the_next(workspace, params, tmp_path):
    values = tmp_path / "params.json"
    values.write_text(json.dumps(params.model_dump(mode="json")))
    code = textwrap.dedent(
        f"""
        import json, sys, time
        from pathlib import Path
        from medalign3d import tracking
        from medalign3d.params import validate_params
        params = validate_params(json.loads(Path({str(values)!r}).read_text()))
        with tracking.track_run(params, "killed", sys.argv[1], root=Path({str(workspace)!r})) as run:
            run.log_metrics({{"loss": 0.5}}, step=3)
            print("started", flush=True)
            time.sleep(120)
        """
    )
    names = ("by-sigterm", "by-sigkill")
    children = {
        name: subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True) for name in names
    }
    for name, number in zip(names, (signal.SIGTERM, signal.SIGKILL), strict=True):
        assert children[name].stdout is not None
        assert children[name].stdout.readline() == "started\n"
        children[name].send_signal(number)
        children[name].wait(60)
        children[name].stdout.close()
    assert children["by-sigterm"].returncode == tracking.TERMINATED_EXIT_CODE
    status = {r.info.run_name: r.info.status for r in runs_of(params, workspace, "tags.stage = 'killed'")}
    assert status == {"killed by-sigterm": "KILLED", "killed by-sigkill": "RUNNING"}
    # What waited for its batch was sent before the end.
    terminated = runs_of(params, workspace, "attributes.run_name = 'killed by-sigterm'")[0]
    assert terminated.data.metrics == {"loss": 0.5}
    with tracking.track_run(params, "killed", "by-sigkill", root=workspace) as run:
        continued = run.run_id
    found = {r.info.run_name: r for r in runs_of(params, workspace, "tags.stage = 'killed'")}
    assert found["killed by-sigkill"].info.run_id == continued  # the same run goes on
    assert found["killed by-sigkill"].info.status == "FINISHED"
    assert len(found) == 2


@pytest.mark.slow
def test_nested_runs_and_tables(workspace, params):
    with (
        tracking.track_run(params, "tune@t5", "all", root=workspace) as parent,
        tracking.track_run(params, "tune@t5", "run-0", parent=parent, sections=["tune"], root=workspace) as child,
    ):
        child.log_table("table2", pd.DataFrame({"benchmark": ["SIM-ADNI-3x"], "accuracy": [0.7]}))
    client, _ = client_of(params, workspace)
    found = client.get_run(child.run_id)
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert {key.split(".")[0] for key in found.data.params} == {"tune"}
    assert [a.path for a in client.list_artifacts(child.run_id)] == ["table2.json"]


@pytest.mark.slow
def test_a_record_is_deterministic_and_restores_a_run(workspace, params, tmp_path):
    paths = []
    for number in range(2):
        with tracking.track_run(params, "evaluate@t5", "run-0", root=workspace) as run:
            run.log_metrics({"accuracy": 0.5}, step=1)
        paths.append(tmp_path / f"{number}" / "mlflow_run.json")
        tracking.write_run_record(paths[-1], run)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_json(paths[0])["metrics"] == {"accuracy": 0.5}
    empty = tmp_path / "elsewhere"
    assert tracking.restore_runs(params, paths[:1], empty) == 1
    assert tracking.restore_runs(params, paths, empty) == 0
    assert runs_of(params, empty)[0].data.metrics == {"accuracy": 0.5}


def test_a_tracking_failure_after_the_start_is_a_warning(params):
    class Broken:
        def log_batch(self, *arguments: object, **keywords: object) -> None:
            raise ConnectionError("the server is gone")

    run = tracking.Run(Broken(), "x", {"params": {}, "metrics": {}})  # type: ignore[arg-type]
    run.log_metrics({"loss": 1.0}, step=1)
    with pytest.warns(UserWarning, match="not recorded"):
        run.flush()
    assert run.record["metrics"] == {"loss": 1.0}


def test_tracking_can_be_off(params, tmp_path):
    off = with_uri(params, "none")
    with tracking.track_run(off, "pretrain@t5", "run-0", root=tmp_path) as run:
        run.log_metrics({"loss": 1.0})
        run.log_artifact(tmp_path)
    assert not list(tmp_path.iterdir())
    assert run.record["stage"] == "pretrain@t5"


def test_an_unusable_address_is_an_error_before_any_work(params, tmp_path):
    with (
        pytest.raises(MedAlignError, match=r"tracking\.uri"),
        tracking.track_run(with_uri(params, "nonsense://x"), "s", "n", root=tmp_path),
    ):
        pytest.fail("the block must not run")


def validation_rows(accuracy: dict[tuple[str, str, int], tuple[float, float]]) -> pd.DataFrame:
    """Rows whose validation and test accuracies are as given."""
    rows = []
    for (model, setting, run), shares in accuracy.items():
        for split, share in zip(("val", "test"), shares, strict=True):
            for number in range(20):
                truth = ("NC", "AD_DEM")[number % 2]
                right = number // 2 < round(share * 10)
                rows.append(
                    {
                        "image_id": f"{split}{number}", "dataset": "ADNI", "language_model": model, "setting": setting,
                        "text_ablation": "full", "run": run, "split": split, "question": "diagnosis_nc_ad",
                        "predicted": truth if right else "NC" if truth == "AD_DEM" else "AD_DEM", "truth": truth,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_best_model_is_chosen_on_validation_rows_only():
    rows = validation_rows(
        {("t5", "frozen", 0): (0.9, 0.1), ("gpt2", "lora", 1): (0.6, 1.0), ("t5", "lora", 0): (0.9, 1.0)}
    )
    best = tracking.choose_best(rows, "full")
    assert (best["language_model"], best["setting"], best["run"]) == ("t5", "frozen", 0)
    assert best["validation_balanced_accuracy"] == pytest.approx(0.9)
    # Test rows may say anything.
    changed = rows.copy()
    changed.loc[changed["split"] == "test", "predicted"] = "NC"
    assert tracking.choose_best(changed, "full") == best
    with pytest.raises(InputError, match="validation"):
        tracking.choose_best(rows[rows["split"] == "test"], "full")


def test_flatten_and_hashes(params):
    flat = tracking.flatten(params.model_dump(mode="json"))
    assert flat["model.lora.rank"] == params.model.lora.rank
    assert tracking.params_hash(params, ["tune"]) != tracking.params_hash(params, ["pretrain"])
    assert len(tracking.params_hash(params)) == 64


def test_the_library_does_not_import_mlflow():
    code = (
        "import sys, medalign3d.tracking, medalign3d.report; "
        "sys.exit(any(name in sys.modules for name in ('mlflow', 'prefect', 'dvc')))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_git_commit_is_unknown_outside_a_checkout(tmp_path):
    assert tracking.git_commit(tmp_path) == "unknown"
    started = time.monotonic()
    assert len(tracking.git_commit(Path(__file__).parents[1])) >= 7
    assert time.monotonic() - started < 30
