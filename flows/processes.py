"""Children of the flow, GPU slots and the workspace's lock.

In a module of its own: what holds locks must not be pickled with the flow.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from medalign3d.errors import MedAlignError

STATE_FOLDER = ".medalign3d"
STOP_SECONDS = 20.0
POLL_SECONDS = 0.2
TAIL_LINES = 25

_children: dict[int, subprocess.Popen[str]] = {}
_lock = threading.Lock()
_stopping = threading.Event()


class StageFailed(MedAlignError):
    """A stage ended with an error."""


def stopping() -> bool:
    """Whether the flow is being stopped."""
    return _stopping.is_set()


def stop_all() -> None:
    """Ask every child to end and wait for them; from now on no child is started."""
    _stopping.set()
    with _lock:
        children = list(_children.values())
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS + 5)


def allow_children() -> None:
    """Allow children again (a new flow run in the same process)."""
    _stopping.clear()


def run_supervised(
    command: Sequence[str],
    *,
    root: Path,
    environment: dict[str, str],
    on_line: Callable[[str], None],
    keep_open: Sequence[int] = (),
) -> list[str]:
    """Run a command under ``flows/supervise.py``; return its last lines.

    Parameters
    ----------
    command
        The command.
    root
        Its working folder.
    environment
        Its whole environment.
    on_line
        Called with each line it prints.
    keep_open
        File descriptors that it inherits (GPU slots).

    Raises
    ------
    StageFailed
        When it ends with another status than 0, or the flow is being stopped.
    """
    supervisor = Path(__file__).with_name("supervise.py")
    with _lock:
        if _stopping.is_set():
            raise StageFailed("not started: the flow is being stopped")
        child = subprocess.Popen(
            [sys.executable, str(supervisor), str(STOP_SECONDS), *command],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
        _children[child.pid] = child
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        assert child.stdout is not None
        for line in child.stdout:
            # A progress line that rewrites itself is one line here.
            text = line.rstrip("\n").split("\r")[-1]
            if text.strip():
                tail.append(text)
                on_line(text)
        status = child.wait()
    finally:
        with _lock:
            _children.pop(child.pid, None)
        if child.stdout is not None:
            child.stdout.close()
    if status:
        raise StageFailed(
            "a stage failed",
            where=" ".join(command),
            found=f"exit status {status}; its last lines:\n            " + "\n            ".join(tail),
            remedy="correct the cause and run the flow again: finished stages are not repeated",
        )
    return list(tail)


@contextlib.contextmanager
def workspace_lock(root: Path) -> Iterator[None]:
    """Hold the workspace for one flow; two would break each other inside DVC.

    Raises
    ------
    MedAlignError
        When another flow runs in this workspace.
    """
    path = root / STATE_FOLDER / "flow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise MedAlignError(
                "another flow runs in this workspace",
                where=path,
                found=f"process {stream.read().strip() or 'unknown'}",
                remedy="wait for it, or end it",
            ) from None
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def visible_gpus() -> list[str]:
    """Identifiers of the GPUs that may be used: ``CUDA_VISIBLE_DEVICES``, else all that the driver lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() and name.strip() != "-1"]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()]


@contextlib.contextmanager
def gpu_slots(number: int, gpus: Sequence[str], root: Path) -> Iterator[tuple[list[str], list[int]]]:
    """Hold ``number`` GPUs: yields their identifiers and the descriptors of their lock files.

    One locked file per device gives device identity, needs no server, and is freed by the kernel however a process
    ends. All of a stage's GPUs are taken at once or none, so two stages cannot wait for each other. Without any GPU
    nothing is held.

    Raises
    ------
    MedAlignError
        When more GPUs are wanted than there are, or the flow is stopped while waiting.
    """
    if number == 0 or not gpus:
        yield [], []
        return
    if number > len(gpus):
        raise MedAlignError(
            "a stage needs more GPUs than there are", found=f"{len(gpus)}", expected=f"at least {number}",
            remedy="lower meta.gpus in dvc.yaml or set training.device: cpu",
        )  # fmt: skip
    folder = root / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            attempt = contextlib.ExitStack()
            taken: list[str] = []
            descriptors: list[int] = []
            for gpu in gpus:
                stream = attempt.enter_context((folder / f"gpu-{gpu.replace('/', '-')}.lock").open("a"))
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                taken.append(gpu)
                descriptors.append(stream.fileno())
                if len(taken) == number:
                    break
            if len(taken) == number:
                stack.enter_context(attempt)
                yield taken, descriptors
                return
            attempt.close()
            if stopping():
                raise StageFailed("not started: the flow is being stopped")
            time.sleep(POLL_SECONDS)
