"""The pipeline as a Prefect flow: one task per DVC stage, the graph read from DVC.

``python -m flows.pipeline`` runs what is out of date, several stages side by side; ``--targets tune vqa`` runs these
and what they need; ``--force`` runs them even when nothing changed. ``dvc.yaml`` stays the only place where a
dependency, a GPU need or a retry is written (``meta: {gpus: 1, retries: 1, retry_delay: 30}``).

Features: up-to-date stages are shown as cached without starting DVC; a failed stage stops only what depends on it;
GPUs are given out by device; a stopped flow leaves no process behind; stages, Table 2 and the accuracy figure are
shown as artifacts. Works offline: without a Prefect server one is started for the run (``PREFECT_API_URL`` names
another).

Not supported: several machines (each stage runs where the flow runs).
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medalign3d import quiet

quiet.apply()
# A busy machine needs more than the default 20 seconds to start a temporary server.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")

from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact  # noqa: E402
from prefect.futures import PrefectFuture  # noqa: E402
from prefect.states import Cancelled, Completed, Failed, State  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from flows import processes  # noqa: E402
from flows.graph import Stage, plan  # noqa: E402
from medalign3d.errors import MedAlignError  # noqa: E402
from medalign3d.params import load_params  # noqa: E402
from medalign3d.progress import format_seconds  # noqa: E402

MAXIMUM_THREADS = 64
POLL_SECONDS = 0.1
# What DVC says to people who type commands.
CHATTER = (
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
UNCHANGED = "didn't change, skipping"
RESTORED = "is cached - skipping run"


@dataclass
class Outcome:
    """What became of a stage."""

    stage: str
    outcome: str
    seconds: float
    gpus: str = ""


def dvc_command() -> list[str]:
    """How to start DVC: the one beside this Python, so that an activated environment is not needed."""
    beside = Path(sys.executable).with_name("dvc")
    return [str(beside) if beside.is_file() else shutil.which("dvc") or "dvc"]


def child_environment(gpus: Sequence[str]) -> dict[str, str]:
    """The environment of a stage: this one, this Python first on the path, its GPUs, no colours or pagers."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "DVC_PAGER": "cat"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


@task
def run_stage(stage: Stage, root: str, gpus: list[str], force: bool) -> State[Any]:
    """Run one stage with ``dvc repro -s``; a stage that is up to date is only shown."""
    logger = get_run_logger()
    if stage.up_to_date and not force:
        return Completed(name="Cached", data=Outcome(stage.name, "up to date", 0.0))
    workspace = Path(root)
    with processes.gpu_slots(stage.meta.gpus, gpus, workspace) as (own, descriptors):
        started = time.monotonic()
        command = [*dvc_command(), "--wait-for-lock", "repro", "-s", *(["-f"] if force else []), stage.name]
        seen: list[str] = []

        def on_line(line: str) -> None:
            seen.extend(mark for mark in (UNCHANGED, RESTORED) if mark in line)
            if not line.strip().startswith(CHATTER):
                logger.info(line)

        processes.run_supervised(
            command, root=workspace, environment=child_environment(own), on_line=on_line, keep_open=descriptors
        )
        seconds = time.monotonic() - started
    outcome = "restored" if RESTORED in seen else "up to date" if UNCHANGED in seen else "ran"
    name = "Cached" if outcome == "up to date" else "Completed"
    return Completed(name=name, data=Outcome(stage.name, outcome, seconds, ",".join(own)))


def _wanted_gpus(root: Path) -> list[str]:
    """GPUs to give out; none where the parameters say CPU."""
    if (root / "params.yaml").is_file():
        try:
            if load_params(root / "params.yaml").training.device == "cpu":
                return []
        except MedAlignError:  # another project's parameters: the stages themselves will say what is wrong
            return processes.visible_gpus()
    return processes.visible_gpus()


def _finished(future: PrefectFuture[Any]) -> bool:
    """Whether nothing more will happen; Prefect counts a task whose dependency failed (NotReady) as pending."""
    state = future.state
    return state.is_final() or state.name == "NotReady"


def _outcome(stage: Stage, future: PrefectFuture[Any] | None) -> Outcome:
    """The outcome of a finished (or never started) task."""
    if future is None:
        return Outcome(stage.name, "not started", 0.0)
    state = future.state
    if state.is_completed():
        return future.result()
    if state.name == "NotReady" or state.is_pending():
        return Outcome(stage.name, "not run: something it needs failed", 0.0)
    return Outcome(stage.name, "stopped" if state.is_cancelled() or processes.stopping() else "failed", 0.0)


def _submit_all(stages: Sequence[Stage], root: Path, gpus: list[str], force: bool, workers: int) -> list[Outcome]:
    """Submit stages as what they need is finished, at most ``workers`` at a time, in the plan's order."""
    futures: dict[str, PrefectFuture[Any]] = {}
    waiting = list(stages)
    running: set[str] = set()
    working: set[str] = set()
    try:
        while waiting or running:
            running = {name for name in running if not _finished(futures[name])}
            ready = [stage for stage in waiting if all(n in futures and _finished(futures[n]) for n in stage.needs)]
            for stage in ready:
                # A stage that has nothing to do takes nobody's place.
                idle = stage.up_to_date and not force
                if not idle and len(working & running) >= workers:
                    continue
                named: Any = run_stage.with_options(
                    name=stage.name.split("@")[0],
                    task_run_name=stage.name,
                    retries=stage.meta.retries,
                    retry_delay_seconds=stage.meta.retry_delay,
                    tags=["gpu"] if stage.meta.gpus else None,
                )
                futures[stage.name] = named.submit(
                    stage, str(root), gpus, force, wait_for=[futures[name] for name in stage.needs]
                )
                waiting.remove(stage)
                running.add(stage.name)
                if not idle:
                    working.add(stage.name)
            time.sleep(POLL_SECONDS)
    except BaseException:
        processes.stop_all()
        for future in futures.values():
            future.wait(timeout=30)
        raise
    return [_outcome(stage, futures.get(stage.name)) for stage in stages]


def stage_table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as text."""
    width = max(len(outcome.stage) for outcome in outcomes) if outcomes else 5
    lines = [f"{'stage':<{width}}  {'outcome':<36} {'time':>7}"]
    lines += [
        f"{o.stage:<{width}}  {o.outcome:<36} {format_seconds(o.seconds) if o.seconds else '':>7}" for o in outcomes
    ]
    return "\n".join(lines)


def _show_artifacts(outcomes: Sequence[Outcome], root: Path) -> None:
    """Show the stages and the report's Table 2 in Prefect's pages."""
    create_table_artifact(
        table=[
            {"stage": o.stage, "outcome": o.outcome, "seconds": round(o.seconds, 1), "gpus": o.gpus} for o in outcomes
        ],
        key="stages",
        description="What became of every stage",
    )
    table = root / "data/report/table2.md"
    if table.is_file():
        create_markdown_artifact(markdown=table.read_text(encoding="utf-8"), key="table2", description="Table 2")
    figure = root / "data/report/figures/accuracy.png"
    if figure.is_file():
        content = base64.b64encode(figure.read_bytes()).decode("ascii")
        create_image_artifact(image_url=f"data:image/png;base64,{content}", key="accuracy", description="Accuracy")


@flow(
    name="medalign3d",
    task_runner=ThreadPoolTaskRunner(max_workers=MAXIMUM_THREADS),  # type: ignore[arg-type]
    validate_parameters=True,
)
def pipeline(targets: list[str] | None = None, force: bool = False, workers: int = 2, root: str = ".") -> State[Any]:
    """Run the DVC pipeline.

    Parameters
    ----------
    targets
        Stages or matrix families; their dependencies come along. Default: all.
    force
        Run stages even when nothing changed.
    workers
        Stages side by side.
    root
        The project's folder.
    """
    workspace = Path(root).resolve()
    processes.allow_children()
    with processes.workspace_lock(workspace):
        stages = plan(workspace, targets or ())
        gpus = _wanted_gpus(workspace)
        todo = sum(not stage.up_to_date for stage in stages)
        get_run_logger().info(f"{len(stages)} stages, {len(stages) if force else todo} to look at, {len(gpus)} GPUs")
        outcomes = _submit_all(stages, workspace, gpus, force, workers)
        _show_artifacts(outcomes, workspace)
    print(stage_table(outcomes), flush=True)
    report = workspace / "data/report/index.html"
    if report.is_file():
        print(f"\nReport: {report}", flush=True)
    failed = [o.stage for o in outcomes if o.outcome in ("failed", "stopped")]
    if processes.stopping():
        return Cancelled(message="stopped")
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}")
    return Completed(message=f"{sum(o.outcome == 'ran' for o in outcomes)} of {len(outcomes)} stages ran")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: ``python -m flows.pipeline``."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description="Run the DVC pipeline as a Prefect flow.",
        epilog="example: python -m flows.pipeline --targets evaluate --workers 2",
    )
    parser.add_argument("--targets", nargs="*", default=[], metavar="STAGE", help="stages (tune, tune@t5) to run")
    parser.add_argument("--force", action="store_true", help="run stages even when nothing changed")
    parser.add_argument("--workers", type=int, default=2, help="stages side by side (default 2)")
    parser.add_argument("--root", default=".", help="the project's folder")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers: at least 1")
    try:
        state = pipeline(options.targets, options.force, options.workers, options.root, return_state=True)
    except KeyboardInterrupt:
        return 130
    if state.is_completed():
        return 0
    print(f"\n{state.message}", file=sys.stderr)
    return 130 if state.is_cancelled() else 1


if __name__ == "__main__":
    sys.exit(main())
