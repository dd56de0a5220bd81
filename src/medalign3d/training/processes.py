"""Independent jobs side by side in separate processes: one thread each, results as they come, no orphan left behind.

The standard pools do not fit: one of them waits for ever when a worker is killed for memory, the other cannot stop
workers that are busy. Here a dead worker is an error that says so, any error or Ctrl-C stops the others, and a worker
whose parent has gone ends itself. Where the system can, workers are forked from a server that has imported the jobs'
libraries once and computed nothing: importing them takes a worker longer than a short job.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from medalign3d import errors
from medalign3d.errors import MedAlignError

Job = tuple[Callable[..., Any], dict[str, Any]]
"""A function of a module (importable by name) and its keyword arguments."""
MODEL_MODULES = ("medalign3d.model.composite", "peft")
"""What jobs that train or evaluate a model import first of all."""


def _end_with_parent() -> None:
    """End this process when its parent is gone (a killed parent cannot stop its children itself)."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _context(jobs: Sequence[Job], preload: Sequence[str]) -> Any:
    """How workers are started; ``preload`` names modules beside those of the jobs' functions."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    functions = [getattr(function, "func", function) for function, _ in jobs]
    context.set_forkserver_preload(sorted({"__main__", *preload, *(function.__module__ for function in functions)}))
    return context


def _describe(error: BaseException) -> dict[str, Any]:
    """An exception as plain values that can always be sent to the parent."""
    if isinstance(error, MedAlignError):
        return {
            "class": type(error).__name__,
            "what": error.what,
            "where": error.where,
            "found": error.found,
            "expected": error.expected,
            "remedy": error.remedy,
        }
    return {"class": None, "text": "".join(traceback.format_exception(error)).rstrip()}


def _rebuild(description: dict[str, Any]) -> MedAlignError:
    """The parent's side of :func:`_describe`."""
    if description["class"] is None:
        return MedAlignError("a worker process failed", found=description["text"])
    kind = getattr(errors, description.pop("class"), MedAlignError)
    what = description.pop("what")
    if not (isinstance(kind, type) and issubclass(kind, MedAlignError)) or kind is errors.VolumeError:
        kind = MedAlignError
    return kind(what, **description)


def _worker(connection: Connection, threads: int) -> None:
    """Take jobs from the parent until it says None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        if job is None:
            return
        function, arguments = job
        # Jobs that compute have imported torch by now; the others need not wait for it.
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        try:
            result: tuple[str, Any] = ("result", function(**arguments))
        except BaseException as error:  # everything must reach the parent, whatever it is
            result = ("error", _describe(error))
        connection.send(result)


class _TermAsExit:
    """Within the block SIGTERM raises ``SystemExit``, so that ``finally`` clauses run (main thread only)."""

    def __enter__(self) -> None:
        self._old: Any = None
        if threading.current_thread() is threading.main_thread():
            current = signal.getsignal(signal.SIGTERM)
            if current == signal.SIG_DFL:  # a handler of the caller is left in charge
                self._old = signal.signal(signal.SIGTERM, self._raise)

    def __exit__(self, *details: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

    @staticmethod
    def _raise(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)


def run_jobs(
    jobs: Sequence[Job], *, workers: int, threads: int = 1, preload: Sequence[str] = ()
) -> Iterator[tuple[int, Any]]:
    """Run jobs and yield ``(job number, result)`` as each ends.

    Parameters
    ----------
    jobs
        Functions with their keyword arguments; both must be picklable.
    workers
        Processes at most. With 1, or one job, the jobs run in this process with its own threads.
    threads
        Torch threads of each process.
    preload
        Modules that the jobs import while they run; they are imported once for all workers.

    Raises
    ------
    MedAlignError
        The first job's error, after the other workers have been stopped; or when a worker dies.
    """
    if workers <= 1 or len(jobs) <= 1:
        with _TermAsExit():
            for number, (function, arguments) in enumerate(jobs):
                yield number, function(**arguments)
        return
    context = _context(jobs, preload)
    pending = list(enumerate(jobs))
    busy: dict[Connection, int] = {}
    processes: list[Any] = []
    # The thread pools of numerical libraries read these when the child imports them.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    saved = {name: os.environ.get(name) for name in names}
    try:
        with _TermAsExit():
            os.environ.update(dict.fromkeys(names[:3], str(threads)) | {names[3]: "false"})
            for _ in range(min(workers, len(jobs))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_worker, args=(theirs, threads), daemon=True)
                process.start()
                theirs.close()
                processes.append((process, ours))
                number, job = pending.pop(0)
                ours.send(job)
                busy[ours] = number
            while busy:
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    number = busy.pop(ready)
                    try:
                        kind, value = ready.recv()
                    except (EOFError, ConnectionResetError):
                        raise MedAlignError(
                            "a worker process died",
                            where=f"job {number + 1} of {len(jobs)}",
                            found="no result; most often the system ran out of memory",
                            remedy="lower the number of workers in params.yaml and run `dvc repro` again",
                        ) from None
                    if kind == "error":
                        raise _rebuild(value)
                    if pending:
                        following, job = pending.pop(0)
                        ready.send(job)
                        busy[ready] = following
                    else:
                        ready.send(None)
                    yield number, value
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for process, connection in processes:
            connection.close()
            process.join(timeout=0.5 if not busy else 0.0)
            if process.is_alive():
                process.terminate()
                process.join(timeout=10)
