"""The flow on small DVC projects with a real temporary Prefect server."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from medalign3d.errors import InputError, MedAlignError

REPOSITORY = Path(__file__).resolve().parents[2]
DVC = [str(Path(sys.executable).with_name("dvc"))]

WORK = textwrap.dedent(
    """
    import os, pathlib, sys, time
    name, needs, kind = sys.argv[1], [n for n in sys.argv[2].split(",") if n], sys.argv[3]
    log = pathlib.Path("log"); log.mkdir(exist_ok=True)
    began = time.time()
    with (log / "starts").open("a") as stream:
        stream.write(name + "\\n")
    if kind == "fails":
        sys.exit("this stage always fails")
    if kind == "flaky" and not (log / name).exists():
        (log / name).touch()
        sys.exit("this stage fails once")
    text = name + "".join(pathlib.Path(n).read_text() for n in needs)
    time.sleep(120 if kind == "long" else 0.7 if kind == "gpu" else 0)
    pathlib.Path(name).write_text(text)
    if kind == "gpu":
        (log / f"gpu-{name}").write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {began} {time.time()}")
    """
)


def stage(name: str, needs: str = "", kind: str = "quick", meta: str = "") -> str:
    lines = [f"  {name}:", f"    cmd: {sys.executable} work.py {name} '{needs}' {kind}", f"    outs: [{name}]"]
    lines.append(f"    deps: [work.py{''.join(', ' + n for n in needs.split(',') if n)}]")
    if meta:
        lines.append(f"    meta: {{{meta}}}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    def make(*stages: str) -> Path:
        root = tmp_path / "project"
        root.mkdir()
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        subprocess.run([*DVC, "init", "-q"], cwd=root, check=True)
        (root / "work.py").write_text(WORK)
        (root / "dvc.yaml").write_text("stages:\n" + "".join(stages))
        return root

    return make


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A temporary Prefect server with its own database; yields its address."""
    from medalign3d import quiet

    quiet.apply()
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=240):
        yield PREFECT_API_URL.value()


def run(root: Path, **options: object) -> tuple[object, dict[str, str]]:
    """Run the flow here; returns its state and the outcomes that it printed, by stage."""
    import contextlib
    import io

    from flows.pipeline import pipeline

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        state = pipeline(root=str(root), return_state=True, **options)
    outcomes = {}
    for line in printed.getvalue().splitlines():
        parts = line.split("  ")
        if len(parts) > 1 and not line.startswith("stage "):
            outcomes[parts[0].strip()] = next(p.strip() for p in parts[1:] if p.strip())
    return state, outcomes


def starts(root: Path) -> list[str]:
    return (root / "log/starts").read_text().split()


# --- planning ---------------------------------------------------------------------------------------------------------


def test_the_plan_is_dvcs_graph(make_project):
    from flows.graph import plan

    root = make_project(
        stage("c", "a,b"),
        stage("a", meta="gpus: 1, retries: 2, retry_delay: 0.5, other: x"),
        stage("b"),
        stage("d", "c"),
    )
    stages = plan(root)
    assert [s.name for s in stages] == ["a", "b", "c", "d"]
    by_name = {s.name: s for s in stages}
    assert by_name["c"].needs == ("a", "b")
    assert by_name["d"].needs == ("c",)
    assert (by_name["a"].meta.gpus, by_name["a"].meta.retries, by_name["a"].meta.retry_delay) == (1, 2, 0.5)
    assert not any(s.up_to_date for s in stages)
    assert [s.name for s in plan(root, ["c"])] == ["a", "b", "c"]
    with pytest.raises(InputError, match="unknown stage"):
        plan(root, ["nothing"])


def test_wrong_meta_and_wrong_folder_are_clear_errors(make_project, tmp_path):
    from flows.graph import plan

    root = make_project(stage("a", meta="gpus: many"))
    with pytest.raises(InputError, match=r"meta\.gpus"):
        plan(root)
    with pytest.raises(InputError, match="not a DVC workspace"):
        plan(tmp_path / "nowhere")


def test_the_projects_own_graph_can_be_planned():
    from flows.graph import plan

    stages = plan(REPOSITORY, ["report"], check=False)
    names = [s.name for s in stages]
    assert names[-1] == "report"
    place = {name: index for index, name in enumerate(names)}
    assert all(place[need] < place[s.name] for s in stages for need in s.needs)


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_in_order_then_not_again_then_only_what_changed(make_project, server):
    root = make_project(stage("a"), stage("b"), stage("c", "a,b"), stage("d", "a"))
    state, outcomes = run(root)
    assert state.is_completed()
    assert outcomes == dict.fromkeys("abcd", "ran")
    assert (root / "c").read_text() == "cab"
    assert sorted(starts(root)) == ["a", "b", "c", "d"]

    state, outcomes = run(root)
    assert state.is_completed()
    assert outcomes == dict.fromkeys("abcd", "up to date")
    assert len(starts(root)) == 4

    (root / "b").unlink()  # a lost output comes back from the cache, without work
    (root / "dvc.yaml").write_text(
        (root / "dvc.yaml").read_text().replace("work.py d 'a' quick", "work.py d 'a' other")
    )
    state, outcomes = run(root, targets=["d", "b"])
    assert state.is_completed()
    assert outcomes["d"] == "ran"
    assert outcomes["a"] == "up to date"
    assert (root / "b").exists()
    assert starts(root)[4:] == ["d"]
    status = subprocess.run([*DVC, "status", "-q"], cwd=root, check=False)
    assert status.returncode == 0  # `dvc repro` alone has nothing left to do


@pytest.mark.slow
def test_a_retry_helps_and_a_failure_stops_only_what_needs_it(make_project, server):
    root = make_project(
        stage("bad", kind="fails"), stage("flaky", kind="flaky", meta="retries: 1, retry_delay: 0"), stage("good"),
        stage("after_bad", "bad"), stage("after_good", "good,flaky"),
    )  # fmt: skip
    state, outcomes = run(root)
    assert state.is_failed()
    assert outcomes == {
        "bad": "failed",
        "flaky": "ran",
        "good": "ran",
        "after_good": "ran",
        "after_bad": "not run: something it needs failed",
    }
    assert starts(root).count("flaky") == 2
    assert "bad" in state.message


@pytest.mark.slow
def test_gpus_are_given_out_by_device(make_project, server, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    root = make_project(*(stage(f"g{n}", kind="gpu", meta="gpus: 1") for n in range(4)))
    state, _ = run(root, workers=4)
    assert state.is_completed()
    used: dict[str, list[tuple[float, float]]] = {}
    for n in range(4):
        gpu, began, ended = (root / f"log/gpu-g{n}").read_text().split()
        used.setdefault(gpu, []).append((float(began), float(ended)))
    assert set(used) == {"4", "7"}
    for spans in used.values():
        spans.sort()
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


@pytest.mark.slow
def test_artifacts_show_the_stages_and_table_2(make_project, server):
    from prefect.client.orchestration import get_client

    root = make_project(stage("a"))
    (root / "data/report").mkdir(parents=True)
    (root / "data/report/table2.md").write_text("## Table 2 (SIMULATED people)\n")
    run(root)
    with get_client(sync_client=True) as client:
        found = {a.key: a for a in client.read_artifacts() if a.key}
    assert "SIMULATED" in str(found["table2"].data)
    assert "ran" in str(found["stages"].data)


def test_one_flow_per_workspace(tmp_path):
    from flows.processes import workspace_lock

    with workspace_lock(tmp_path):
        with pytest.raises(MedAlignError, match="another flow") as caught, workspace_lock(tmp_path):
            pass
        assert str(os.getpid()) in str(caught.value)
    with workspace_lock(tmp_path):
        pass


def test_more_gpus_than_there_are_is_an_error(tmp_path):
    from flows.processes import gpu_slots

    with pytest.raises(MedAlignError, match="more GPUs"), gpu_slots(3, ["0", "1"], tmp_path):
        pass
    with gpu_slots(2, ["0", "1"], tmp_path) as (own, descriptors):
        assert own == ["0", "1"]
        assert len(descriptors) == 2
    with gpu_slots(1, [], tmp_path) as (own, _):
        assert own == []


# --- stopping ---------------------------------------------------------------------------------------------------------


def workers_of(root: Path) -> list[psutil.Process]:
    """Processes whose working folder is the project."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_flow_leaves_no_process_behind(make_project, server, number):
    root = make_project(stage("long", kind="long"))
    environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(REPOSITORY)}
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline", "--root", str(root)], cwd=REPOSITORY, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert wait_until(lambda: (root / "log/starts").exists(), 120)
        flow.send_signal(number)
        assert wait_until(lambda: not workers_of(root), 30), [p.cmdline() for p in workers_of(root)]
        output, _ = flow.communicate(timeout=60)
        assert flow.returncode != 0, output
        assert not (root / "long").exists()
        if number != signal.SIGKILL:
            assert "Traceback" not in output.split("long")[0]
    finally:
        flow.kill()
        flow.wait()
        if flow.stdout:
            flow.stdout.close()
        for process in workers_of(root):
            process.kill()


@pytest.mark.slow
def test_the_supervisor_asks_leaves_first_and_then_uses_force(tmp_path):
    leaf = (
        "import signal,sys,time,pathlib\n"
        "signal.signal(15, lambda *a: (pathlib.Path('leaf').touch(), sys.exit(0)))\ntime.sleep(99)"
    )
    (tmp_path / "leaf.py").write_text(leaf)
    (tmp_path / "middle.py").write_text(
        "import signal,subprocess,sys,time\nsignal.signal(15, signal.SIG_IGN)\n"
        "subprocess.run([sys.executable, 'leaf.py'])\ntime.sleep(99)"
    )
    command = [sys.executable, str(REPOSITORY / "flows/supervise.py"), "3", sys.executable, "middle.py"]
    child = subprocess.Popen(command, cwd=tmp_path)
    assert wait_until(lambda: len(workers_of(tmp_path)) == 3, 30)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 128 + signal.SIGTERM
    assert (tmp_path / "leaf").exists()
    assert not workers_of(tmp_path)


def test_the_supervisor_passes_the_exit_status_on(tmp_path):
    command = [sys.executable, str(REPOSITORY / "flows/supervise.py"), "3", sys.executable, "-c", "raise SystemExit(7)"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 7


# --- deployment -------------------------------------------------------------------------------------------------------


def test_the_deployment_names_the_flow():
    import inspect

    import yaml

    values = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    (deployment,) = values["deployments"]
    path, name = deployment["entrypoint"].split(":")
    assert (REPOSITORY / path).is_file()
    from flows import pipeline as module

    flow = getattr(module, name)
    assert set(deployment["parameters"]) <= set(inspect.signature(flow.fn).parameters)
    (step,) = values["pull"]
    assert step["prefect.deployments.steps.set_working_directory"]["directory"] == "{{ $PWD }}"
