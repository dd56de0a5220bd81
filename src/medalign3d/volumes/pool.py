"""Run many tasks in worker processes: a slow, crashing or oversized task costs only itself.

Python's own pools break as a whole when a worker dies and cannot stop a task that takes too long; here each worker has
its own pipes, a dead, overdue or oversized worker is replaced, and its task is reported as failed. What runs in a
worker is :mod:`medalign3d.volumes.worker`; :mod:`medalign3d.volumes.cluster` supervises such workers on many machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from medalign3d.errors import MedAlignError
from medalign3d.volumes import worker as protocol

STARTUP_SECONDS = 120.0
"""What a worker may take to start (importing libraries from a slow disk)."""

MAXIMUM_FAILED_STARTS = 3
"""So many workers in a row may die before they were ready; then something is wrong that no task is to blame for."""

MEMORY_CHECK_SECONDS = 0.2

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
DIED, OVERDUE = "died", "overdue"
"""Events of a worker beside the answers that :mod:`medalign3d.volumes.worker` gives."""

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)

Status = Literal["done", "failed", "crashed", "overdue", "memory"]


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes
    ----------
    index
        The task's place in the sequence.
    status
        ``done``, ``failed`` (it raised), ``crashed`` (its process died), ``overdue`` (stopped at the time limit) or
        ``memory`` (it needed more memory than a worker may have).
    value
        What the function returned, when done.
    error
        The exception's class and its place in the code, when failed; a few words otherwise. Nothing that names people.
    """

    index: int
    status: Status
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


def limit_threads() -> None:
    """One thread per process: as fast as two for this work, and processes scale better."""
    os.environ.update(_ONE_THREAD)
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)


class Worker:
    """A worker process and what is known about it.

    Parameters
    ----------
    function
        Importable by name in a fresh process; takes one task.
    memory_limit_bytes
        What the process and the helpers it starts (a DICOM converter) may hold. None: no limit.

    Attributes
    ----------
    ready
        Whether it has started; tasks are given only then.
    busy
        Whether it has a task.
    finished
        How many tasks it has done.
    """

    def __init__(self, function: Callable[[Any], Any], memory_limit_bytes: int | None = None) -> None:
        self.memory_limit_bytes = memory_limit_bytes
        self.ready = False
        self.busy = False
        self.finished = 0
        self._deadline = time.monotonic() + STARTUP_SECONDS
        self._limit_seconds = STARTUP_SECONDS
        self._next_memory_check = 0.0
        # What an ended worker left in its temporary folder goes with it: DICOM series are converted there.
        self._temporary = tempfile.mkdtemp(prefix="medalign3d-worker-")
        environment = os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        environment["TMPDIR"] = self._temporary
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medalign3d.volumes.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            process_group=0 if os.name == "posix" else None,  # so that helpers end with it
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._tasks, self._answers = self.process.stdin, self.process.stdout
        with contextlib.suppress(OSError):  # a process that died at once shows up as end-of-file on its pipe
            first = ([p or os.getcwd() for p in sys.path], pickle.dumps(function), memory_limit_bytes)
            protocol.write_message(self._tasks, first)

    def fileno(self) -> int:
        """The descriptor on which answers arrive."""
        return self._answers.fileno()

    def give(self, task: Any, limit_seconds: float) -> None:
        """Hand over a task; the clock starts now."""
        self.busy = True
        self._limit_seconds = limit_seconds
        self._deadline = time.monotonic() + limit_seconds
        with contextlib.suppress(OSError):
            protocol.write_message(self._tasks, (None if limit_seconds == float("inf") else limit_seconds, task))

    def seconds_to_check(self) -> float | None:
        """After how many seconds :meth:`check` should be called even if no answer has come; None: never."""
        if self.ready and not self.busy:
            return None
        until = self._deadline
        if self.memory_limit_bytes is not None and self.busy:
            until = min(until, self._next_memory_check)
        return None if until == float("inf") else max(0.0, until - time.monotonic())

    def check(self, answered: bool) -> tuple[str, Any] | None:
        """What happened, as kind and value; None when there is nothing new.

        Parameters
        ----------
        answered
            Whether something can be read from :meth:`fileno`.
        """
        now = time.monotonic()
        late = now >= self._deadline and (self.busy or not self.ready)
        if answered or (
            late and answered_of([self], 0)
        ):  # whoever listens may have been held up: an answer in time counts
            try:
                kind, value = protocol.read_message(self._answers)
            except Exception:  # the end of the stream, or an answer that was cut or cannot be read
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
                return DIED, self.process.returncode
            if kind == protocol.READY:
                self.ready = True
            else:
                self.busy = False
                self.finished += 1
            return kind, value
        if late:
            return OVERDUE, f"took longer than {self._limit_seconds:g} s"
        if self.memory_limit_bytes is not None and self.busy and now >= self._next_memory_check:
            self._next_memory_check = now + MEMORY_CHECK_SECONDS
            if resident_bytes(self.process.pid) > self.memory_limit_bytes:
                return protocol.MEMORY, ""
        return None

    def stop(self) -> None:
        """End the process and its helpers at once; whatever counts was written before it answered."""
        with contextlib.suppress(OSError, AttributeError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its group may outlive it
        self.process.kill()
        for stream in (self._tasks, self._answers):
            with contextlib.suppress(OSError):
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        shutil.rmtree(self._temporary, ignore_errors=True)


def answered_of(workers: Sequence[Worker], seconds: float | None) -> set[Worker]:
    """Those of ``workers`` that have something to say; waits for the first at most ``seconds``."""
    by_descriptor: dict[Any, Worker] = {worker.fileno(): worker for worker in workers}
    return {by_descriptor[descriptor] for descriptor in wait(list(by_descriptor), seconds)}


def resident_bytes(pid: int) -> int:
    """Memory that a process and the processes it started hold now."""
    import psutil

    pids = [pid]
    with contextlib.suppress(OSError, ValueError):  # other platforms: the process alone
        pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    total = 0
    for one in pids:
        with contextlib.suppress(psutil.Error):
            total += int(psutil.Process(one).memory_info().rss)
    return total


def available_bytes() -> int:
    """Memory that new processes can have: of the machine, or of the container or batch job where that is less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next(line.split(":", 2)[2] for line in lines if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup") / group.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to("/sys/fs/cgroup"):
                break
            with contextlib.suppress(OSError, ValueError):  # "max", or no such file
                limit = int((place / "memory.max").read_text())
                facts = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                used = int((place / "memory.current").read_text()) - int(facts.get("inactive_file", 0))
                available = min(available, max(0, limit - used))
    return available


def workers_that_fit(workers: int, memory_limit_bytes: int) -> int:
    """As many of ``workers`` as fit the memory, at least one; says so when they are fewer."""
    free = available_bytes()
    fitting = max(1, min(workers, free // memory_limit_bytes))
    if fitting < workers:
        print(
            f"{fitting} of {workers} workers: {free / 2**30:.1f} GB of memory are free and each may take "
            f"{memory_limit_bytes / 2**30:.1f}",
            flush=True,
        )
    return fitting


def check_function(function: Callable[[Any], Any]) -> None:
    """Refuse a function that a fresh process cannot import."""
    if function.__module__ == "__main__":
        raise MedAlignError(
            "worker processes cannot import a function of the script that is run",
            found=f"__main__.{function.__qualname__}",
            expected="a function of a module",
            remedy="move it into a module of its own and import it",
        )


def start_failed(value: object) -> MedAlignError:
    """The error for workers that die, or hang, before they are ready."""
    return MedAlignError(
        "worker processes do not start",
        found=f"{MAXIMUM_FAILED_STARTS} in a row ended before they were ready ({value})",
        expected="a process that imports medalign3d",
        remedy="see the workers' own messages above, try `python -c 'import medalign3d.volumes.normalize'`, and look "
        "whether memory is free",
    )


def describe_end(code: int | None) -> str:
    """How a process ended, in words.

    >>> describe_end(3), describe_end(-9)
    ('exit code 3', 'signal SIGKILL')
    """
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def outcome_of(index: int, kind: str, value: Any, memory_limit_bytes: int | None) -> Outcome:
    """The outcome that an event of a worker (:meth:`Worker.check`) stands for."""
    if kind == protocol.DONE:
        return Outcome(index, "done", value, "")
    if kind == protocol.FAILED:
        return Outcome(index, "failed", None, str(value))
    if kind == protocol.MEMORY:
        limit = "" if memory_limit_bytes is None else f" of {memory_limit_bytes / 2**30:.3g} GB"
        return Outcome(index, "memory", None, f"needed more than the memory limit{limit}")
    if kind == OVERDUE:
        return Outcome(index, "overdue", None, str(value))
    return Outcome(index, "crashed", None, f"the worker process died ({describe_end(value)})")


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    workers: int,
    time_limit_seconds: float = float("inf"),
    memory_limit_bytes: int | None = None,
) -> Iterator[Outcome]:
    """Yield one :class:`Outcome` per task, in the order in which they finish.

    A task whose worker was ended by SIGKILL, which is what the kernel does when memory runs out, is tried once more at
    the end, alone. A task that met the memory limit in a worker that had done others is tried once more in a fresh one.

    Parameters
    ----------
    function
        Importable by name (workers are fresh processes), takes one task.
    tasks
        Picklable.
    workers
        Processes; 1 still uses one worker process, so that the limits and crashes are handled alike.
    time_limit_seconds
        Per task.
    memory_limit_bytes
        Per worker.

    Raises
    ------
    MedAlignError
        When workers die before they are ready, several in a row.
    """
    check_function(function)
    again: list[int] = []
    order = range(len(tasks))
    for index, kind, value in _run(function, tasks, order, workers, time_limit_seconds, memory_limit_bytes):
        if kind == DIED and value == -signal.SIGKILL:
            again.append(index)
        else:
            yield outcome_of(index, kind, value, memory_limit_bytes)
    for index, kind, value in _run(function, tasks, again, 1, time_limit_seconds, memory_limit_bytes):
        yield outcome_of(index, kind, value, memory_limit_bytes)


def _run(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    order: Sequence[int],
    workers: int,
    time_limit_seconds: float,
    memory_limit_bytes: int | None,
) -> Iterator[tuple[int, str, Any]]:
    """Do the tasks of ``order``; yields index, kind and value of the last event of each."""
    waiting = deque(order)
    retried: set[int] = set()
    doing: dict[Worker, int] = {}
    failed_starts = 0
    pool: list[Worker] = []
    try:
        pool += [Worker(function, memory_limit_bytes) for _ in range(min(max(1, workers), len(order)))]
        while waiting or doing:
            for worker in pool:
                if worker.ready and worker not in doing and waiting:
                    doing[worker] = waiting.popleft()
                    worker.give(tasks[doing[worker]], time_limit_seconds)
            limits = [s for worker in pool if (s := worker.seconds_to_check()) is not None]
            # An idle worker is not waited for: nothing can come from it but its end.
            listened = [worker for worker in pool if worker in doing or not worker.ready]
            answered = answered_of(listened, min(limits, default=None))
            for worker in list(pool):
                event = worker.check(worker in answered)
                if event is None:
                    continue
                kind, value = event
                if kind == protocol.READY:
                    failed_starts = 0
                    continue
                index = doing.pop(worker, None)
                earlier = worker.finished - (not worker.busy)
                again = kind == protocol.MEMORY and earlier > 0 and index is not None and index not in retried
                if index is not None and again:
                    retried.add(index)
                    waiting.appendleft(index)
                if kind in (DIED, OVERDUE, protocol.MEMORY):
                    worker.stop()
                    pool.remove(worker)
                    if index is None:  # it never was ready: no task is to blame
                        failed_starts += 1
                        if failed_starts >= MAXIMUM_FAILED_STARTS:
                            raise start_failed(describe_end(value) if kind == DIED else value)
                    if waiting:
                        pool.append(Worker(function, memory_limit_bytes))
                if index is not None and not again:
                    yield index, kind, value
    finally:
        for worker in pool:
            worker.stop()
