"""The process pool: slow, failing and crashing tasks cost only themselves."""

from __future__ import annotations

import os
import time

from medalign3d.volumes.pool import run_tasks


def behave(task: str) -> str:
    if task == "raise":
        raise ValueError("on purpose")
    if task == "crash":
        os._exit(3)
    if task == "sleep":
        time.sleep(120)
    return task.upper()


def test_each_task_has_its_own_fate() -> None:
    tasks = ["a", "raise", "crash", "b", "sleep", "c"]
    outcomes = {o.index: o for o in run_tasks(behave, tasks, workers=2, time_limit_seconds=1.0)}
    assert [outcomes[i].status for i in range(6)] == ["done", "failed", "crashed", "done", "overdue", "done"]
    assert [outcomes[i].value for i in (0, 3, 5)] == ["A", "B", "C"]
    assert "on purpose" in outcomes[1].error
    assert "exit code 3" in outcomes[2].error


def test_no_tasks() -> None:
    assert list(run_tasks(behave, [], workers=2)) == []


def test_abandoned_run_leaves_no_process() -> None:
    running = run_tasks(behave, ["a", "sleep", "sleep"], workers=2)
    assert next(running).status == "done"
    started = time.monotonic()
    running.close()
    assert time.monotonic() - started < 10
