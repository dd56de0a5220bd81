"""Run one command so that nothing of it outlives whoever asked for it.

``python flows/supervise.py SECONDS COMMAND...`` starts the command in a process group of its own. When this process
gets SIGTERM or SIGINT, or its parent dies (the kernel then sends SIGTERM, Linux only), the command's processes are
asked to end, the leaves of the process tree first: so a training run closes its MLflow run and writes its checkpoint
before ``dvc`` above it gives up. What is still there after SECONDS is killed. ``dvc`` itself, given SIGTERM, would
leave its child running.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LEAF_SHARE = 0.7
"""Share of the time to end that the leaves get before the rest is asked."""


def _prctl(option: int, value: int) -> None:
    """Set a process attribute where the kernel knows it; elsewhere do without."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _descendants() -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return []


def _signal_all(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            process.send_signal(number)


def stop_tree(seconds: float) -> None:
    """End all descendants of this process: leaves first, then the rest, then by force."""
    deadline = time.monotonic() + seconds
    leaf_deadline = time.monotonic() + LEAF_SHARE * seconds
    asked: set[int] = set()
    while time.monotonic() < leaf_deadline:
        processes = _descendants()
        if not processes:
            return
        leaves = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if not any(c.status() != psutil.STATUS_ZOMBIE for c in process.children()):
                    leaves.append(process)
        _signal_all([p for p in leaves if p.pid not in asked], signal.SIGTERM)
        asked |= {p.pid for p in leaves}
        time.sleep(0.1)
    _signal_all([p for p in _descendants() if p.pid not in asked], signal.SIGTERM)
    while time.monotonic() < deadline and _descendants():
        time.sleep(0.1)
    _signal_all(_descendants(), signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status, or 128 + the signal that ended this."""
    seconds, command = float(arguments[0]), arguments[1:]
    parent = os.getppid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command come here, so that they are found
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before the kernel was told
        return 128 + signal.SIGTERM
    # GPU slots are locked files that the child holds open as well.
    child = subprocess.Popen(command, start_new_session=True, close_fds=False)
    while child.poll() is None and not stopped:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
    if stopped:
        stop_tree(seconds)
        child.wait()
        return 128 + stopped[0]
    # Nothing may stay behind a command that has ended, either.
    if _descendants():
        stop_tree(seconds)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
