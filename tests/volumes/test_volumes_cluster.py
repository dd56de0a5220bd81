"""The Dask cluster gives the same store as the pool, also when workers die; SLURM jobs get their options."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_store import cohort
from test_volumes_pool import behave, gone

from medalign3d.errors import MedAlignError, ParameterError
from medalign3d.files import sha256_file
from medalign3d.params import Normalize
from medalign3d.volumes import cluster
from medalign3d.volumes.normalize import normalize_cohort

pytest.importorskip("distributed")
MB = 1 << 20


class Dask:
    """A scheduler and workers as processes of their own, on 127.0.0.1."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("scheduler", "--host", "127.0.0.1", "--port", str(port))
        self.workers = [self.worker() for _ in range(2)]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:], "--no-dashboard"]
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
        self.processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        return self.start("worker", self.address, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny")

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def dask() -> Iterator[Dask]:
    running = Dask()
    yield running
    running.stop()


def run(tasks: list[str], dask: Dask, **limits: float | int) -> dict[int, cluster.Outcome]:
    outcomes = cluster.run_tasks(behave, tasks, cluster=dask.address, options={}, workers=2, **limits)  # type: ignore[arg-type]
    return {outcome.index: outcome for outcome in outcomes}


def test_each_task_has_its_own_fate_there_too(dask: Dask, tmp_path: Path) -> None:
    tasks = ["a", "raise", "crash", f"converter {tmp_path / 'pid'}", "hold 5000", f"killed {tmp_path / 'mark'}", "b"]
    outcomes = run(tasks, dask, time_limit_seconds=3.0, memory_limit_bytes=600 * MB)
    statuses = ["done", "failed", "crashed", "overdue", "memory", "done", "done"]
    assert [outcomes[i].status for i in range(7)] == statuses
    assert outcomes[1].error.startswith("ValueError (test_volumes_pool.py:")
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_cannot_be_done_is_said(dask: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    nobody = {"cluster": "tcp://127.0.0.1:9", "options": {}, "workers": 1}
    with pytest.raises(MedAlignError, match="cannot be reached"):
        list(cluster.run_tasks(behave, ["a"], **nobody))  # type: ignore[arg-type]
    assert list(cluster.run_tasks(behave, [], **nobody)) == []  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_store_is_that_of_the_pool_though_a_worker_dies(dask: Dask, tmp_path: Path, params: Normalize) -> None:
    images = cohort(tmp_path / "raw", 5)
    (tmp_path / "raw" / "2.nii.gz").write_bytes(b"no image")
    normalize_cohort(images, tmp_path / "raw", params, tmp_path / "pool", tmp_path / "pool-work")
    killed = []

    def kill_one() -> None:
        until = time.monotonic() + 200
        while time.monotonic() < until and not list((tmp_path / "dask-work").glob("*.b2nd")):
            time.sleep(0.02)
        dask.workers[0].kill()
        killed.append(dask.workers[0].wait())
        dask.worker()

    killer = threading.Thread(target=kill_one)
    killer.start()
    there = params.model_copy(update={"cluster": dask.address})
    index = normalize_cohort(images, tmp_path / "raw", there, tmp_path / "dask", tmp_path / "dask-work")
    killer.join()
    assert killed == [-signal.SIGKILL]
    assert list(index["verdict"]).count("accepted") == 4

    def content(name: str) -> dict[Path, str]:
        folder = tmp_path / name
        return {path.relative_to(folder): sha256_file(path) for path in folder.rglob("*") if path.is_file()}

    assert content("pool") == content("dask")
    again = normalize_cohort(images, tmp_path / "raw", params, tmp_path / "pool", tmp_path / "dask-work")
    assert list(again["sha256"]) == list(index["sha256"]), "the workspace of one is that of the other"


def test_a_lost_cluster_is_an_error() -> None:
    pytest.importorskip("distributed")
    lost = Dask()
    try:
        running = cluster.run_tasks(behave, ["a", "sleep", "sleep"], cluster=lost.address, options={}, workers=2)
        assert next(running).status == "done"
        os.killpg(lost.processes[0].pid, signal.SIGKILL)
        with pytest.raises(MedAlignError, match="lost"):
            next(running)
    finally:
        lost.stop()


def test_slurm_job_script_has_the_options() -> None:
    pytest.importorskip("dask_jobqueue")
    options = {
        "jobs": 7,
        "cores": 16,
        "processes": 16,
        "memory": "64GB",
        "walltime": "04:00:00",
        "queue": "long",
        "account": "dementia",
        "interface": "lo",
        "job_extra_directives": ["--exclusive"],
        "job_script_prologue": ["source /shared/venv/bin/activate"],
    }
    jobs, slurm = cluster.slurm_cluster(options)
    with slurm:
        script = slurm.job_script()
        assert jobs == 7
        for part in ("-p long", "-A dementia", "--cpus-per-task=16", "--mem=60G", "-t 04:00:00", "--exclusive"):
            assert re.search(rf"^#SBATCH .*{re.escape(part)}", script, re.MULTILINE), script
        assert "source /shared/venv/bin/activate" in script
        assert "--nthreads 1 " in script
        assert "--nworkers 16 " in script
        assert slurm.scheduler_spec["options"]["dashboard_address"] == "127.0.0.1:0"
        assert "tcp://127.0.0.1:" in script


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "cores and memory"),
        ({"cores": 2, "memory": "4GB", "jobs": 0}, "jobs"),
        ({"cores": 1, "memory": "much"}, "cannot be described"),
        ({"cores": 4, "memory": "8GB"}, "too little memory"),
        ({"cores": 2, "memory": "8GB", "interface": "lo", "qeue": "long"}, "qeue"),
    ],
)
def test_wrong_slurm_options_are_refused(options: dict[str, object], said: str) -> None:
    pytest.importorskip("dask_jobqueue")
    with pytest.raises(ParameterError, match=said):
        cluster.slurm_cluster(options, 3 << 30)
