from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from medalign3d.errors import InputError, MedAlignError
from medalign3d.training.processes import run_jobs


def _square(value: int) -> int:
    return value * value


def _fail(value: int) -> int:
    raise InputError("a file is missing", where="there", remedy="make it")


def _die(value: int) -> int:
    os._exit(9)


def test_jobs_give_results_in_any_number_of_processes() -> None:
    jobs = [(_square, {"value": value}) for value in range(4)]
    expected = [(n, n * n) for n in range(4)]
    assert list(run_jobs(jobs, workers=1)) == expected
    assert sorted(run_jobs(jobs, workers=2)) == expected


def test_a_failing_job_raises_its_own_error_and_a_dead_one_says_so() -> None:
    with pytest.raises(InputError, match="a file is missing") as caught:
        list(run_jobs([(_fail, {"value": 1}), (_square, {"value": 2})], workers=2))
    assert caught.value.remedy == "make it"
    with pytest.raises(MedAlignError, match=r"worker process died[\s\S]*memory"):
        list(run_jobs([(_die, {"value": 1}), (_square, {"value": 2})], workers=2))


def _wait_long(value: int) -> int:
    print(os.getpid(), flush=True)
    time.sleep(60)
    return value


def test_workers_of_a_killed_parent_end() -> None:
    program = (
        "from test_training_processes import _wait_long\n"
        "from medalign3d.training.processes import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    list(run_jobs([(_wait_long, {'value': 1}), (_wait_long, {'value': 2})], workers=2))\n"
    )
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while any(_runs(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
