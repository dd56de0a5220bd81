"""A process that does tasks for a supervisor: what :class:`medalign3d.volumes.pool.Worker` starts.

``python -m medalign3d.volumes.worker`` reads a first message (search path, function, memory limit) and then tasks from
its standard input, and writes answers to what was its standard output. Messages are pickled, from and to the process
that started this one. Being started this way, and not by :mod:`multiprocessing`, it does not import the caller's
script again, and may be started by a process that :mod:`multiprocessing` would not let have children.

Of an error only its class and its place in the code are sent: its message may quote a path or a header, which name
people, and answers end in indices and logs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from medalign3d.errors import MedAlignError

READY, DONE, FAILED, MEMORY = "ready", "done", "failed", "memory"
"""What an answer can be: the first after the start; the function's value; its error; it asked for too much memory."""

PARENT_CHECK_SECONDS = 0.5
_PACKAGE = Path(__file__).parents[1]
GRACE_SECONDS = 60.0


def write_message(stream: IO[bytes], message: Any) -> None:
    """Send one pickled message, its length before it."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    rest = memoryview(len(content).to_bytes(8, "little") + content)
    while rest:
        rest = rest[stream.write(rest) :]
    stream.flush()


def read_message(stream: IO[bytes]) -> Any:
    """Receive one message.

    Raises
    ------
    EOFError
        When the other side is gone.
    """
    return pickle.loads(_exactly(stream, int.from_bytes(_exactly(stream, 8), "little")))


def _exactly(stream: IO[bytes], count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = stream.read(count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _end_with_parent(parent: int) -> None:
    """End this process and the helpers it started when the process that started it is gone, even by SIGKILL."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        with contextlib.suppress(OSError, AttributeError):
            if os.getpgid(0) == os.getpid():
                os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def limit_memory(limit_bytes: int) -> None:
    """Let allocations beyond ``limit_bytes`` fail in this process and in each helper that it starts.

    The kernel counts what is allocated, not only what was touched. Does nothing where there is no such limit.
    """
    with contextlib.suppress(ImportError, ValueError, OSError, AttributeError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was made from, is a lack of memory."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        if isinstance(seen, MemoryError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def describe_error(error: BaseException) -> str:
    """An error in words that name nobody: its class, what an error of ours says is wrong, and where in the code.

    >>> try:
    ...     int("Jane")
    ... except ValueError as error:
    ...     describe_error(error).split(" (")[0]
    'ValueError'
    """
    words = type(error).__name__
    if isinstance(error, MedAlignError):
        words += f": {error.what}"  # one clause without names; the rest of it may hold some
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames[1:] if _PACKAGE in Path(frame.filename).parents]
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*own[-1:], *frames[-1:]))
    return f"{words} ({', '.join(places)})" if places else words


def _answer(function: Callable[[Any], Any], task: Any) -> tuple[str, Any]:
    try:
        return DONE, function(task)
    except BaseException as error:  # a task must never take its worker along
        if _out_of_memory(error):
            return MEMORY, ""
        return FAILED, describe_error(error)


def main() -> None:
    """A worker's life: receive a task, answer, until the supervisor closes the stream."""
    parent = int(sys.argv[1])
    tasks = sys.stdin.buffer
    # Libraries print to file descriptor 1: their words go to standard error, answers keep a descriptor of their own.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(parent)
    from medalign3d.volumes import pool

    pool.limit_threads()
    pool.keep_memory()
    search_path, pickled, limit_bytes = read_message(tasks)
    sys.path[:] = search_path
    function = pickle.loads(pickled)
    if limit_bytes is not None:
        limit_memory(limit_bytes)
    with contextlib.suppress(OSError):  # the supervisor has gone: the stream of tasks has ended too
        write_message(answers, (READY, None))
    while True:
        try:
            limit_seconds, task = read_message(tasks)
        except EOFError:
            return
        except Exception as error:  # a task that cannot be unpickled here
            answer: tuple[str, Any] = (FAILED, describe_error(error))
        else:
            if limit_seconds is not None:
                # The supervisor ends what is overdue; this works when it is gone and this process hangs in a library.
                faulthandler.dump_traceback_later(limit_seconds + GRACE_SECONDS, exit=True)
            answer = _answer(function, task)
            faulthandler.cancel_dump_traceback_later()
        try:
            write_message(answers, answer)
        except OSError:
            return
        except Exception as error:  # a value that cannot be pickled
            write_message(answers, (FAILED, describe_error(error)))


if __name__ == "__main__":
    main()
