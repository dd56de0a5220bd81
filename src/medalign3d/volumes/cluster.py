"""Run many tasks on a Dask cluster as :func:`medalign3d.volumes.pool.run_tasks` does on one machine.

Each thread of a Dask worker supervises one :class:`medalign3d.volumes.pool.Worker`, which it keeps between tasks: the
time limit, the memory limit and crashes are handled where the task runs, and the libraries are loaded once. A Dask
worker that dies loses the tasks it was doing; the scheduler gives them to another. Needs
``pip install 'medalign3d[cluster]'``; workers see code and data under the same paths (a shared file system).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from medalign3d.errors import MedAlignError, ParameterError
from medalign3d.volumes import pool
from medalign3d.volumes import worker as protocol
from medalign3d.volumes.pool import Outcome, Worker

LOCAL, SLURM = "local", "slurm"
CONNECT_SECONDS = 30.0
_NO_START = "no start"


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    cluster: str,
    options: Mapping[str, Any],
    workers: int,
    time_limit_seconds: float = float("inf"),
    memory_limit_bytes: int | None = None,
) -> Iterator[Outcome]:
    """Yield one :class:`medalign3d.volumes.pool.Outcome` per task, in the order in which they finish.

    Parameters
    ----------
    function, tasks, time_limit_seconds, memory_limit_bytes
        As :func:`medalign3d.volumes.pool.run_tasks`.
    cluster
        ``local``: worker processes on this machine; ``slurm``: jobs that are submitted for the time of the run; else
        the address of a running scheduler (``tcp://host:8786``).
    options
        For ``slurm`` only: see :func:`slurm_cluster`.
    workers
        For ``local`` only: processes.

    Raises
    ------
    MedAlignError
        When the cluster cannot be reached, is lost, or its workers cannot start processes.
    """
    if cluster == LOCAL:
        yield from pool.run_tasks(
            function,
            tasks,
            workers=workers,
            time_limit_seconds=time_limit_seconds,
            memory_limit_bytes=memory_limit_bytes,
        )
        return
    pool.check_function(function)
    if not tasks:
        return
    with contextlib.ExitStack() as stack:
        address: Any = cluster
        if cluster == SLURM:
            jobs, address = slurm_cluster(options, memory_limit_bytes)
            stack.enter_context(address)
            address.scale(jobs=jobs)
        yield from _on_client(_connect(address, stack), function, tasks, time_limit_seconds, memory_limit_bytes)


def slurm_cluster(options: Mapping[str, Any], memory_limit_bytes: int | None = None) -> tuple[int, Any]:
    """How many jobs to submit, and a cluster that submits them; nothing is submitted yet.

    Parameters
    ----------
    options
        ``jobs`` (default 1), and arguments of ``dask_jobqueue.SLURMCluster``: ``cores``, ``processes``, ``memory``,
        ``walltime``, ``queue``, ``account``, ``interface``, ``job_extra_directives``, ``job_script_prologue`` ...
    memory_limit_bytes
        Of one volume; a job does as many at a time as it has cores.

    Raises
    ------
    ParameterError
        When an option is missing or unknown, or a job has too little memory for its cores.
    """
    _need("dask_jobqueue")
    from dask.utils import parse_bytes
    from dask_jobqueue import SLURMCluster

    chosen = dict(options)
    jobs = chosen.pop("jobs", 1)
    where = "params.yaml: normalize.cluster_options"
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise ParameterError("wrong value", where=f"{where}.jobs", found=jobs, expected="a whole number of at least 1")
    missing = [name for name in ("cores", "memory") if name not in chosen]
    if missing:
        raise ParameterError(
            "a SLURM job needs to know its size",
            where=where,
            found=", ".join(sorted(chosen)) or "nothing",
            expected="cores and memory of one job",
            remedy=f"add {' and '.join(missing)}",
        )
    # No status page: it would listen on all interfaces of the login node.
    private = {"dashboard_address": "127.0.0.1:0", "dashboard": False}
    chosen["scheduler_options"] = private | dict(chosen.get("scheduler_options") or {})
    try:
        memory = parse_bytes(chosen["memory"])
        wanted = int(chosen["cores"]) * (memory_limit_bytes or 0)
        if memory < wanted:
            raise ParameterError(
                "a SLURM job has too little memory for its cores",
                where=where,
                found=f"{chosen['cores']} cores and {memory / 2**30:.1f} GB",
                expected=f"at least {wanted / 2**30:.1f} GB: cores x normalize.memory_limit_gb",
                remedy="ask for more memory or fewer cores",
            )
        return jobs, SLURMCluster(**chosen)
    except (TypeError, ValueError) as error:
        raise ParameterError(
            "SLURM jobs cannot be described so",
            where=where,
            found=str(error),
            expected="arguments of dask_jobqueue.SLURMCluster",
        ) from error


def _need(module: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MedAlignError(
            "a package for clusters is not installed",
            found=f"no {module}",
            expected="dask, distributed and dask-jobqueue",
            remedy="pip install -c constraints.txt -e '.[cluster]', on the workers too",
        )


def _connect(address: Any, stack: contextlib.ExitStack) -> Any:
    """A client of a scheduler; it is closed with ``stack``."""
    _need("distributed")
    from distributed import Client

    try:
        client = stack.enter_context(Client(address, timeout=CONNECT_SECONDS, set_as_default=False))
    except (OSError, ValueError, TimeoutError) as error:
        raise MedAlignError(
            "the Dask scheduler cannot be reached",
            where="params.yaml: normalize.cluster",
            found=str(address),
            expected="the address that `dask scheduler` prints",
            remedy="start it, open its port, or set normalize.cluster: local",
        ) from error
    facts = client.scheduler_info(n_workers=-1)["workers"]
    threads = sum(int(worker["nthreads"]) for worker in facts.values())
    print(f"Dask cluster: {len(facts)} workers, {threads} volumes at a time", flush=True)
    if not facts:
        print("waiting for workers", flush=True)
    return client


def _on_client(
    client: Any,
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    time_limit_seconds: float,
    memory_limit_bytes: int | None,
) -> Iterator[Outcome]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    def submit(index: int) -> Any:
        # Not "pure": a task is never answered from an earlier run's memory.
        return client.submit(supervise, function, tasks[index], time_limit_seconds, memory_limit_bytes, pure=False)

    pending = {future.key: (index, future) for index, future in enumerate(map(submit, range(len(tasks))))}
    try:
        for future in as_completed([future for _, future in pending.values()], loop=client.loop, raise_errors=False):
            index, _ = pending.pop(future.key)  # let go, so that the scheduler forgets it
            if future.status == "finished":
                kind, value = future.result()
                if kind == _NO_START:
                    raise pool.start_failed(value)
                yield pool.outcome_of(index, kind, value, memory_limit_bytes)
                continue
            error = future.exception() if future.status == "error" else None
            if isinstance(error, KilledWorker):
                yield Outcome(index, "crashed", None, "the Dask workers that did it died, one after the other")
            elif error is not None:  # what a worker that lacks the code, or has another version, says
                raise MedAlignError(
                    "a Dask worker cannot do the task",
                    found=f"{type(error).__name__}: {error}",
                    expected="the same version of medalign3d and its libraries as here",
                    remedy="install it on the workers",
                ) from error
            else:
                raise MedAlignError(
                    "the Dask cluster was lost",
                    found=f"{len(tasks) - len(pending) - 1} of {len(tasks)} tasks were done",
                    remedy="start it again and repeat the command: what was done is kept",
                )
    finally:
        if client.status == "running":
            with contextlib.suppress(Exception):  # the run's own error, if any, is the one to tell
                client.cancel([future for _, future in pending.values()])
                client.run(release)


_idle: list[tuple[Any, Worker]] = []
"""Workers that this (Dask worker's) process keeps between tasks, each with what it was started for."""


def supervise(
    function: Callable[[Any], Any], task: Any, time_limit_seconds: float, memory_limit_bytes: int | None
) -> tuple[str, Any]:
    """Do one task in a process of its own; runs in a thread of a Dask worker.

    Returns
    -------
    Kind and value of the last event, as :meth:`medalign3d.volumes.pool.Worker.check` gives them.
    """
    retried = False
    while True:
        worker = _take((function, memory_limit_bytes))
        if not isinstance(worker, Worker):
            return _NO_START, worker
        earlier = worker.finished
        worker.give(task, time_limit_seconds)
        kind, value = _next_event(worker)
        if kind in (protocol.DONE, protocol.FAILED):
            _idle.append(((function, memory_limit_bytes), worker))
            return kind, value
        worker.stop()
        killed = kind == pool.DIED and value == -signal.SIGKILL
        if retried or not (killed or (kind == protocol.MEMORY and earlier > 0)):
            return kind, value
        retried = True


def _take(purpose: tuple[Callable[[Any], Any], int | None]) -> Worker | str:
    """A ready worker, kept or new; in words why there is none."""
    while True:
        try:
            kept, worker = _idle.pop()
        except IndexError:
            break
        if kept == purpose and worker.process.poll() is None:
            return worker
        worker.stop()
    value: Any = None
    for _ in range(pool.MAXIMUM_FAILED_STARTS):
        worker = Worker(*purpose)
        kind, value = _next_event(worker)
        if kind == protocol.READY:
            return worker
        worker.stop()
        if kind == pool.DIED:
            value = pool.describe_end(value)
    return str(value)


def _next_event(worker: Worker) -> tuple[str, Any]:
    while True:
        event = worker.check(bool(pool.answered_of([worker], worker.seconds_to_check())))
        if event is not None:
            return event


def release() -> None:
    """End the workers that this process keeps."""
    while True:
        try:
            _, worker = _idle.pop()
        except IndexError:
            return
        worker.stop()
