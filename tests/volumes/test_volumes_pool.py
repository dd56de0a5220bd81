"""The process pool: slow, failing, crashing and oversized tasks cost only themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from medalign3d.errors import MedAlignError
from medalign3d.volumes import pool
from medalign3d.volumes.pool import run_tasks

MB = 1 << 20


def behave(task: str) -> object:
    what, _, argument = task.partition(" ")
    if what == "raise":
        raise ValueError("on purpose")
    if what == "crash":
        os._exit(3)
    if what == "sleep":
        time.sleep(120)
    if what == "converter":  # hangs in a helper process, as a DICOM converter may
        helper = subprocess.Popen(["sleep", "300"])
        Path(argument).write_text(str(helper.pid))
        helper.wait()
    if what == "killed":  # the first time, as the kernel does when memory runs out
        mark = Path(argument)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sorted(p.name for p in mark.parent.iterdir())
    if what == "hold":
        return int(np.ones(int(argument) * MB, dtype=np.uint8).sum()) // MB
    if what == "helper":
        code = f"b = bytearray({argument} << 20); import time; time.sleep(60)"
        subprocess.run([sys.executable, "-c", code], check=False)
    if what == "leave":
        mark = Path(argument)
        mark.with_suffix(".running").touch()
        time.sleep(0.5)
        mark.with_suffix(".running").unlink()
    if what == "temporary":
        import tempfile

        Path(argument).write_text(tempfile.mkdtemp())
        time.sleep(120)
    if what == "print":
        os.write(1, b"a library's words\n" * 100)
    if what == "strange":
        return lambda: None
    return task.upper()


def test_each_task_has_its_own_fate() -> None:
    tasks = ["a", "raise", "crash", "b", "sleep", "c", "print", "strange"]
    outcomes = {o.index: o for o in run_tasks(behave, tasks, workers=2, time_limit_seconds=1.0)}
    statuses = ["done", "failed", "crashed", "done", "overdue", "done", "done", "failed"]
    assert [outcomes[i].status for i in range(8)] == statuses
    assert [outcomes[i].value for i in (0, 3, 5, 6)] == ["A", "B", "C", "PRINT"]
    assert outcomes[1].error.startswith("ValueError (test_volumes_pool.py:")
    assert "on purpose" not in "".join(outcome.error for outcome in outcomes.values()), "a message may name a person"
    assert "exit code 3" in outcomes[2].error


def test_no_tasks() -> None:
    assert list(run_tasks(behave, [], workers=2)) == []


def test_abandoned_run_leaves_no_process() -> None:
    running = run_tasks(behave, ["a", "sleep", "sleep"], workers=2)
    assert next(running).status == "done"
    started = time.monotonic()
    running.close()
    assert time.monotonic() - started < 10
    assert not [p for p in psutil.Process().children() if "medalign3d.volumes.worker" in " ".join(p.cmdline())]


def gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_helpers_and_temporary_files_end_with_an_overdue_task(tmp_path: Path) -> None:
    tasks = [f"converter {tmp_path / 'pid'}", f"temporary {tmp_path / 'folder'}"]
    outcomes = list(run_tasks(behave, tasks, workers=2, time_limit_seconds=2.0))
    assert {o.status for o in outcomes} == {"overdue"}
    assert gone(int((tmp_path / "pid").read_text()))
    assert not Path((tmp_path / "folder").read_text()).exists()


def test_helpers_end_when_the_whole_run_is_killed(tmp_path: Path) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from medalign3d.volumes.pool import run_tasks
        from test_volumes_pool import behave
        list(run_tasks(behave, ["converter {tmp_path / "pid"}"], workers=1))
    """  # no `if __name__ == "__main__"`: none is needed
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert gone(int((tmp_path / "pid").read_text()))


def test_workers_that_cannot_start_are_nobodys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_something.py").write_text(
        "import os\nif os.environ.get('BROKEN'):\n    raise ImportError('missing')\ndef work(task): return task\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import needs_something

    assert [o.value for o in run_tasks(needs_something.work, [1], workers=1)] == [1]
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(MedAlignError, match="do not start") as caught:
        list(run_tasks(needs_something.work, [1, 2, 3], workers=2))
    assert "exit code 1" in str(caught.value)
    monkeypatch.setattr(pool, "STARTUP_SECONDS", 0.0)
    with pytest.raises(MedAlignError, match="do not start"):
        list(run_tasks(behave, ["a"], workers=1))
    monkeypatch.setattr(behave, "__module__", "__main__")
    with pytest.raises(MedAlignError, match="of the script"):
        list(run_tasks(behave, ["a"], workers=1))


def test_what_the_kernel_killed_is_tried_once_more_and_alone(tmp_path: Path) -> None:
    tasks = [f"killed {tmp_path / 'mark'}"] + [f"leave {tmp_path / str(n)}" for n in range(4)]
    outcomes = list(run_tasks(behave, tasks, workers=3))
    assert [o.index for o in outcomes][-1] == 0
    assert {o.status for o in outcomes} == {"done"}
    assert outcomes[-1].value == ["mark"], "nothing else was running"


def test_memory_limit_is_kept() -> None:
    limit = 600 * MB
    tasks = ["hold 100", "hold 5000", "hold 200", "a", "helper 2000"]
    started = time.monotonic()
    outcomes = {o.index: o for o in run_tasks(behave, tasks, workers=1, memory_limit_bytes=limit)}
    assert [outcomes[i].status for i in range(4)] == ["done", "memory", "done", "done"]
    assert outcomes[2].value == 200
    assert "0.586 GB" in outcomes[1].error
    # A helper cannot take it either: its own allocation fails.
    assert outcomes[4].status == "done"
    assert time.monotonic() - started < 40


def test_memory_that_is_held_in_pieces_is_noticed() -> None:
    # Two helpers of half a limit each: only the sum is too much.
    outcomes = list(run_tasks(two_helpers, [0], workers=1, memory_limit_bytes=300 * MB, time_limit_seconds=30))
    assert [o.status for o in outcomes] == ["memory"]


def two_helpers(task: int) -> int:
    code = "b = bytearray(200 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nimport time; time.sleep(60)"
    helpers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    return sum(helper.wait() for helper in helpers)


def test_workers_fit_the_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pool, "available_bytes", lambda: 10 << 30)
    assert pool.workers_that_fit(16, 4 << 30) == 2
    assert "2 of 16 workers" in capsys.readouterr().out
    assert pool.workers_that_fit(16, 64 << 30) == 1
    capsys.readouterr()
    assert pool.workers_that_fit(2, 4 << 30) == 2
    assert capsys.readouterr().out == ""


def test_available_memory_is_credible() -> None:
    assert 64 * MB < pool.available_bytes() <= psutil.virtual_memory().total
