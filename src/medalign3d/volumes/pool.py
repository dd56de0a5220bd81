"""Run many tasks in worker processes: a slow or crashing task costs only itself.

Python's own pools break as a whole when a worker dies and cannot stop a task that takes too long; here each worker has
its own pipe, a dead or overdue worker is replaced, and its task is reported as failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

STARTUP_SECONDS = 120.0
"""What a worker may take to start (importing libraries from a slow disk)."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes
    ----------
    index
        The task's place in the sequence.
    status
        ``done``, ``failed`` (it raised), ``crashed`` (its process died) or ``overdue`` (stopped at the time limit).
    value
        What the function returned, when done.
    error
        The exception's class name and message, when failed; a few words otherwise.
    """

    index: int
    status: Literal["done", "failed", "crashed", "overdue"]
    value: Any
    error: str


def keep_memory() -> None:
    """Tell glibc to keep freed memory.

    By default large temporaries are returned to the kernel and page-faulted in again, which costs several times the
    arithmetic on volumes. Does nothing on other platforms.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(_M_TOP_PAD, 64 << 20)


def _die_with_parent() -> None:
    """Ask the kernel to end this process when its parent is gone (even by SIGKILL)."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_threads() -> None:
    """One thread per process: as fast as two for this work, and processes scale better."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = "1"
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: receive a task, answer, until the pipe closes."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A group of its own, so that helpers it started (a DICOM converter) end with it.
    with contextlib.suppress(OSError, AttributeError):
        os.setpgid(0, 0)
    limit_threads()
    keep_memory()
    pipe.send(("ready", None))
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        if message is None:
            return
        try:
            answer: tuple[str, Any] = ("done", function(message))
        except BaseException as error:  # a task must never take its worker along
            kind = type(error).__name__
            last = traceback.extract_tb(error.__traceback__)[-1]
            answer = ("failed", f"{kind}: {error} ({os.path.basename(last.filename)}:{last.lineno})")
        try:
            pipe.send(answer)
        except (BrokenPipeError, OSError):
            return


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: int | None = None
    deadline: float = float("inf")
    ready: bool = False


def _start(context: Any, function: Callable[[Any], Any]) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _stop(worker: _Worker) -> None:
    with contextlib.suppress(OSError):
        worker.pipe.close()
    pid = worker.process.pid
    if worker.process.is_alive() and pid is not None:
        with contextlib.suppress(OSError, AttributeError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
        worker.process.kill()
    worker.process.join(5)


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    workers: int,
    time_limit_seconds: float = float("inf"),
) -> Iterator[Outcome]:
    """Yield one :class:`Outcome` per task, in the order in which they finish.

    Parameters
    ----------
    function
        Importable by name (workers are fresh processes), takes one task.
    tasks
        Picklable.
    workers
        Processes; 1 still uses one worker process, so that the time limit and crashes are handled alike.
    time_limit_seconds
        Per task.
    """
    if not tasks:
        return
    context = multiprocessing.get_context("spawn")
    saved = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by numpy's libraries when a worker imports them
    pending = iter(range(len(tasks)))
    pool = [_start(context, function) for _ in range(max(1, min(workers, len(tasks))))]
    try:
        for worker in pool:
            _assign(worker, tasks, pending, time_limit_seconds)
        while any(w.task is not None for w in pool):
            busy = [w for w in pool if w.task is not None]
            soonest = min(w.deadline for w in busy)
            ready = wait(
                [w.pipe for w in busy],
                timeout=None if soonest == float("inf") else max(0.0, soonest - time.monotonic()),
            )
            now = time.monotonic()
            for position, worker in enumerate(pool):
                index = worker.task
                if index is None:
                    continue
                if worker.pipe in ready:
                    try:
                        status, value = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join(5)
                        code = worker.process.exitcode
                        _stop(worker)
                        worker = pool[position] = _start(context, function)
                        _assign(worker, tasks, pending, time_limit_seconds)
                        yield Outcome(index, "crashed", None, f"the worker process died (exit code {code})")
                        continue
                    if status == "ready":
                        worker.ready = True
                        worker.deadline = now + time_limit_seconds
                        continue
                    _assign(worker, tasks, pending, time_limit_seconds)
                    if status == "done":
                        yield Outcome(index, "done", value, "")
                    else:
                        yield Outcome(index, "failed", None, str(value))
                elif now >= worker.deadline:
                    _stop(worker)
                    worker = pool[position] = _start(context, function)
                    _assign(worker, tasks, pending, time_limit_seconds)
                    yield Outcome(index, "overdue", None, f"took longer than {time_limit_seconds:g} s")
    finally:
        if saved is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = saved
        for worker in pool:
            if worker.task is None:
                with contextlib.suppress(OSError):
                    worker.pipe.send(None)
                worker.process.join(2)
            _stop(worker)


def _assign(worker: _Worker, tasks: Sequence[Any], pending: Iterator[int], limit: float) -> bool:
    """Give a worker the next task; False when none is left."""
    index = next(pending, None)
    worker.task = index
    if index is None:
        worker.deadline = float("inf")
        return False
    # A fresh worker first imports its libraries; the task's clock starts when it says that it is ready.
    worker.deadline = time.monotonic() + limit + (0.0 if worker.ready else STARTUP_SECONDS)
    with contextlib.suppress(BrokenPipeError, OSError):  # a dead worker shows up as end-of-file on its pipe
        worker.pipe.send(tasks[index])
    return True
