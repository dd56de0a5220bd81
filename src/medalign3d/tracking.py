"""MLflow runs: a view of what the pipeline did, never a part of it.

What is recorded is tied to the git commit, the DVC stage and the hash of its parameters and inputs. Features:

- one SQLite database, made once under a file lock and then switched to write-ahead logging, so that several processes
  may write at the same time;
- step metrics go out in batches (one transaction for about twenty steps);
- a run ends as FINISHED, FAILED (an exception) or KILLED (SIGTERM, Ctrl-C); runs whose process is gone are closed as
  KILLED when the next run of the same experiment starts;
- after the start a tracking failure is a warning: hours of training are never lost to a full or absent tracking server;
- ``mlflow_run.json`` records (deterministic: no ids, no clock) let :func:`restore_runs` rebuild runs that a database
  lacks, for example when DVC restored a stage from its cache;
- the best model *by validation rows* is registered with the alias ``champion`` and answers through ``mlflow models
  serve``.

Not supported: system metrics, and logging from several threads into one :class:`Run`.

``tracking.uri: none`` switches tracking off. MLflow is imported inside the functions.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medalign3d import quiet
from medalign3d.errors import InputError, MedAlignError
from medalign3d.files import read_json, sha256_file, sha256_json, write_json
from medalign3d.params import Params

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

OFF = ("", "none")
BATCH_STEPS = 20
BATCH_SECONDS = 30.0
BATCH_LIMIT = 900  # MLflow takes at most 1,000 metrics in one request
PARAMS_LIMIT = 100  # and at most 100 parameters
VALUE_LIMIT = 500  # characters of a parameter's value that are kept
BUSY_SECONDS = 60  # how long a writer waits for another one
CHAMPION = "champion"
SERVING_PACKAGES = (
    "mlflow", "torch", "transformers", "peft", "safetensors", "numpy", "pandas", "pyarrow", "pydantic", "ruamel.yaml",
    "nibabel", "nilearn", "scipy", "pydicom", "sacremoses", "SimpleITK", "dcm2niix", "threadpoolctl",
)  # fmt: skip
"""What a served model needs, at the versions that trained it."""
TERMINATED_EXIT_CODE = 128 + signal.SIGTERM


def git_commit(root: Path = Path(".")) -> str:
    """The commit that made an output: 40 hexadecimal digits, then `` (modified)`` where code or parameters differ.

    ``unknown`` outside a git checkout.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        places = [name for name in ("src", "stages", "flows", "params.yaml", "dvc.yaml") if (root / name).exists()]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *places) if places else ""
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit} (modified)" if changed else commit


def params_hash(params: Params, sections: Iterable[str] | None = None) -> str:
    """SHA-256 of the parameters, or of the named sections only."""
    values = params.model_dump(mode="json")
    return sha256_json(values if sections is None else {name: values[name] for name in sorted(sections)})


def inputs_hash(inputs: Iterable[Path]) -> str:
    """SHA-256 over the content of input files, in the order of their names."""
    return sha256_json([sha256_file(path) for path in sorted(Path(path) for path in inputs)])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted names; lists stay values.

    >>> flatten({"a": {"b": 1, "c": [2, 3]}})
    {'a.b': 1, 'a.c': [2, 3]}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


# --- the database -----------------------------------------------------------------------------------------------------


def _sqlite_file(uri: str, root: Path) -> Path | None:
    """The database file of a ``sqlite:///`` address (relative to ``root``), or None for another kind of address."""
    if not uri.startswith("sqlite:///"):
        return None
    return (root / uri.removeprefix("sqlite:///").split("?")[0]).absolute()


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the kernel frees it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _client(uri: str, root: Path) -> MlflowClient:
    """A client for tracking and registry whose SQLite connections wait for other writers."""
    quiet.apply()
    from mlflow import MlflowClient

    file = _sqlite_file(uri, root)
    address = uri if file is None else f"sqlite:///{file}?timeout={BUSY_SECONDS}"
    return MlflowClient(tracking_uri=address, registry_uri=address)


def prepare(params: Params, root: Path = Path(".")) -> tuple[MlflowClient, str]:
    """Make the database and the experiment if they are not there; return a client and the experiment's id.

    Three processes that create the same SQLite database at once break each other's migrations, so this happens under a
    file lock; afterwards the database is in write-ahead mode.

    Raises
    ------
    MedAlignError
        When the tracking server or database cannot be used.
    """
    uri = params.tracking.uri
    file = _sqlite_file(uri, root)
    lock = root / ".medalign3d" / "mlflow.lock" if file is None else file.with_name(file.name + ".lock")
    try:
        with _file_lock(lock):
            client = _client(uri, root)
            found = client.get_experiment_by_name(params.tracking.experiment)
            if found is None:
                place = None if file is None else (file.parent / "mlruns").as_uri()
                tags = {"simulated": str(params.simulated).lower(), "profile": params.profile}
                identifier = client.create_experiment(params.tracking.experiment, artifact_location=place, tags=tags)
            else:
                identifier = found.experiment_id
            if file is not None:
                import sqlite3

                with contextlib.closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")
            return client, identifier
    except Exception as error:  # MLflow, SQLAlchemy and the network each have their own kinds
        raise MedAlignError(
            "runs cannot be recorded",
            where=f"tracking.uri: {uri}",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="a SQLite database or tracking server that answers",
            remedy="start the server or correct tracking.uri in params.yaml; `none` records nothing",
        ) from error


# --- one run ----------------------------------------------------------------------------------------------------------


class Run:
    """A run that is being recorded (see :func:`track_run`). All methods are cheap and never raise."""

    def __init__(self, client: MlflowClient | None, run_id: str, record: dict[str, Any]) -> None:
        self.run_id = run_id
        self.record = record
        self._client = client
        self._metrics: list[tuple[str, float, int, int]] = []
        self._steps: set[int] = set()
        self._flushed = time.monotonic()
        self._warned = False

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracking failure must not end the work
            if not self._warned:
                warnings.warn(f"a run is not recorded completely: {type(error).__name__}", stacklevel=4)
                self._warned = True

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record parameters; nested mappings become dotted names."""
        flat = flatten(values)
        self.record["params"].update(flat)
        if self._client is None:
            return
        from mlflow.entities import Param

        entities = [Param(key, str(value)[:VALUE_LIMIT]) for key, value in flat.items()]
        for start in range(0, len(entities), PARAMS_LIMIT):
            with self._attempt():
                self._client.log_batch(self.run_id, params=entities[start : start + PARAMS_LIMIT])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics of a step; they are sent in batches."""
        now = int(time.time() * 1000)
        for key, value in values.items():
            self.record["metrics"][key] = float(value)
            self._metrics.append((key, float(value), now, step))
        self._steps.add(step)
        late = time.monotonic() - self._flushed > BATCH_SECONDS
        if len(self._steps) >= BATCH_STEPS or len(self._metrics) >= BATCH_LIMIT or late:
            self.flush()

    def flush(self) -> None:
        """Send the metrics that wait."""
        waiting, self._metrics, self._steps = self._metrics, [], set()
        self._flushed = time.monotonic()
        if self._client is None or not waiting:
            return
        from mlflow.entities import Metric

        for start in range(0, len(waiting), BATCH_LIMIT):
            with self._attempt():
                self._client.log_batch(self.run_id, metrics=[Metric(*m) for m in waiting[start : start + BATCH_LIMIT]])

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record tags."""
        if self._client is None:
            return
        from mlflow.entities import RunTag

        with self._attempt():
            self._client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Record a table (``name`` without ending) that the MLflow page shows. It must not describe single people."""
        if self._client is None:
            return
        with self._attempt():
            self._client.log_table(self.run_id, data=table.astype(object), artifact_file=f"{name}.json")

    def log_artifact(self, path: str | os.PathLike[str], folder: str | None = None) -> None:
        """Record a file or a folder."""
        if self._client is None:
            return
        with self._attempt():
            if Path(path).is_dir():
                self._client.log_artifacts(self.run_id, str(path), artifact_path=folder)
            else:
                self._client.log_artifact(self.run_id, str(path), artifact_path=folder)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _close_abandoned(client: MlflowClient, experiment_id: str) -> None:
    """Close runs of this machine whose process is gone (killed with SIGKILL, out of memory, power)."""
    host = socket.gethostname().replace("'", "")
    query = f"attributes.status = 'RUNNING' and tags.`medalign3d.host` = '{host}'"
    for run in client.search_runs([experiment_id], query):
        if not _alive(run.data.tags.get("medalign3d.pid", "")):
            client.set_terminated(run.info.run_id, status="KILLED")


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Turn SIGTERM into :class:`SystemExit`, so that ``finally`` blocks run and the run ends as KILLED.

    A handler that somebody else installed is left alone (the outer run's, or a training loop that saves a checkpoint).
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED_EXIT_CODE)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def track_run(
    params: Params,
    stage: str,
    name: str,
    tags: Mapping[str, object] | None = None,
    parent: Run | str | None = None,
    *,
    sections: Iterable[str] | None = None,
    inputs: Iterable[Path] = (),
    resume: bool = True,
    root: Path = Path("."),
) -> Iterator[Run]:
    """Record what happens inside the ``with`` block as an MLflow run.

    Parameters
    ----------
    params
        The parameters in force.
    stage
        The pipeline stage, e.g. ``pretrain@gpt2``. Under DVC the stage's own address is recorded beside it.
    name
        The run's name, e.g. ``run-0``.
    tags
        More tags.
    parent
        The run (or its id) under which this one is shown.
    sections
        Sections of ``params`` that this run depends on (recorded and hashed); default: all.
    inputs
        Input files whose content is hashed into the run's key.
    resume
        Continue the latest killed or failed run with the same key (stage, name, parameters, inputs) if there is one.
    root
        The project's folder.

    Yields
    ------
    Run
        FINISHED when the block ends, KILLED on SIGTERM or Ctrl-C, FAILED on any other exception (which goes on).

    Raises
    ------
    MedAlignError
        When the tracking server cannot be reached at the start.
    """
    chosen = None if sections is None else sorted(sections)
    values = params.model_dump(mode="json")
    logged = values if chosen is None else {section: values[section] for section in chosen}
    hashed = params_hash(params, chosen)
    read = inputs_hash(inputs)
    key = sha256_json([stage, name, hashed, read])
    record: dict[str, Any] = {
        "experiment": params.tracking.experiment,
        "stage": stage,
        "name": name,
        "key": key,
        "params_sha256": hashed,
        "inputs_sha256": read,
        "simulated": params.simulated,
        "tags": {k: str(v) for k, v in (tags or {}).items()},
        "params": {},
        "metrics": {},
    }
    if params.tracking.uri in OFF:
        yield Run(None, "", record)
        return
    with _sigterm_as_exit():
        client, experiment = prepare(params, root)
        _close_abandoned(client, experiment)
        about = {
            **record["tags"],
            "simulated": str(params.simulated).lower(),
            "profile": params.profile,
            "stage": stage,
            "dvc_stage": os.environ.get("DVC_STAGE", stage),
            "git_commit": git_commit(root),
            "params_sha256": hashed,
            "inputs_sha256": read,
            "medalign3d.key": key,
            "medalign3d.host": socket.gethostname().replace("'", ""),
            "medalign3d.pid": str(os.getpid()),
        }
        if parent is not None:
            about["mlflow.parentRunId"] = parent if isinstance(parent, str) else parent.run_id
        run: Run | None = None
        if resume:
            # A run that is still RUNNING here belongs to a living process.
            ended = "attributes.status != 'FINISHED' and attributes.status != 'RUNNING'"
            query = f"tags.`medalign3d.key` = '{key}' and {ended}"
            unfinished = client.search_runs([experiment], query, max_results=1)
            if unfinished:
                run = Run(client, unfinished[0].info.run_id, record)
                client.update_run(run.run_id, status="RUNNING")
                run.set_tags({**about, "resumed": "true"})
        if run is None:
            run = Run(client, client.create_run(experiment, tags=about, run_name=f"{stage} {name}").info.run_id, record)
        run.log_params(logged)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except (SystemExit, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            run.flush()
            with run._attempt():
                client.set_terminated(run.run_id, status=status)


def write_run_record(path: str | os.PathLike[str], run: Run) -> None:
    """Write what :func:`restore_runs` needs to rebuild the run: parameters, last metrics, tags, hashes.

    The file holds no run id and no clock, so the same work gives the same bytes.
    """
    write_json(path, run.record)


def restore_runs(params: Params, records: Iterable[Path], root: Path = Path(".")) -> int:
    """Create the runs that ``mlflow_run.json`` files describe and the database lacks; return how many were created."""
    paths = sorted(Path(path) for path in records)
    if params.tracking.uri in OFF or not paths:
        return 0
    client, experiment = prepare(params, root)
    known = {run.data.tags.get("medalign3d.key") for run in client.search_runs([experiment], "", max_results=5000)}
    created = 0
    commit = git_commit(root)
    for path in paths:
        record = read_json(path)
        if record["key"] in known:
            continue
        tags = {
            **record["tags"],
            "simulated": str(record["simulated"]).lower(),
            "stage": record["stage"],
            "params_sha256": record["params_sha256"],
            "inputs_sha256": record["inputs_sha256"],
            "medalign3d.key": record["key"],
            "restored_at_commit": commit,
        }
        made = client.create_run(experiment, tags=tags, run_name=f"{record['stage']} {record['name']}")
        run = Run(client, made.info.run_id, {"params": {}, "metrics": {}})
        run.log_params(record["params"])
        run.log_metrics(record["metrics"])
        run.flush()
        client.set_terminated(made.info.run_id)
        created += 1
    return created


# --- the best model ---------------------------------------------------------------------------------------------------


def choose_best(predictions: pd.DataFrame, headline_text: str) -> dict[str, Any]:
    """The trained model and run with the best balanced accuracy on *validation* rows; test rows are never looked at.

    Parameters
    ----------
    predictions
        Prediction rows of language models (``evaluation.predict.PREDICTION_COLUMNS``).
    headline_text
        The text ablation to judge by.

    Returns
    -------
    dict
        ``language_model``, ``setting`` (``frozen`` or ``lora``), ``run``, ``validation_balanced_accuracy`` (mean over
        cohorts), ``validation_images``.

    Raises
    ------
    InputError
        When there are no validation rows of a trained model.
    """
    from medalign3d.evaluation.metrics import balanced_accuracy

    rows = predictions[
        (predictions["split"] == "val")
        & predictions["setting"].isin(["frozen", "lora"])
        & (predictions["text_ablation"] == headline_text)
    ]
    if rows.empty:
        raise InputError(
            "no validation predictions of a trained model",
            where="data/evaluation",
            expected="rows with split = val and setting frozen or lora",
            remedy="raise split.validation_fraction, or add frozen or lora to evaluate.settings",
        )
    found = []
    for (model, setting, run), group in rows.groupby(["language_model", "setting", "run"], observed=True):
        scores = [
            balanced_accuracy(part["truth"].tolist(), part["predicted"].tolist(), sorted(set(part["truth"])))
            for _, part in group.groupby(["dataset", "question"], observed=True)
        ]
        found.append(
            {
                "language_model": str(model),
                "setting": str(setting),
                "run": int(str(run)),
                "validation_balanced_accuracy": sum(scores) / len(scores),
                "validation_images": int(group["image_id"].nunique()),
            }
        )
    # Ties go to the simpler model, then to the first name.
    return min(
        found,
        key=lambda f: (-f["validation_balanced_accuracy"], f["setting"] == "lora", f["language_model"], f["run"]),
    )


def _serving_requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name).split('+')[0]}" for name in SERVING_PACKAGES]


def _signature() -> Any:
    """What the served model takes and gives."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    volume = Array(Array(Array(DataType.long)))
    inputs = Schema(
        [
            ColSpec(DataType.string, "question"),
            ColSpec(DataType.string, "text", required=False),
            ColSpec(DataType.string, "image_path", required=False),
            ColSpec(volume, "image", required=False),
        ]
    )
    outputs = Schema([ColSpec(DataType.string, name) for name in ("answer", "generated", "probabilities")])
    return ModelSignature(inputs=inputs, outputs=outputs)


def package_model(params: Params, run_folder: Path, out: Path, root: Path = Path(".")) -> None:
    """Write a trained run as an MLflow model: trainables, the local backbones it stands on, and this package's code.

    Backbones that are Hugging Face ids are named, not copied: they are fetched (at their pinned revision) where the
    model is served.
    """
    quiet.apply()
    import mlflow.pyfunc

    description = read_json(run_folder / "config.json")
    artifacts = {"run": str(run_folder)}
    for part in ("vision", "language"):
        checkpoint = root / description["model"][f"{part}_checkpoint"]
        if checkpoint.is_dir():
            artifacts[part] = str(checkpoint)
    package = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as scratch:
        # The parameters decide how a scan is normalized; they travel with the weights.
        parameters = Path(scratch) / "params.json"
        write_json(parameters, params.model_dump(mode="json"))
        artifacts["params"] = str(parameters)
        code = Path(scratch) / "code" / package.name
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        mlflow.pyfunc.save_model(
            path=str(out),
            python_model=str(package / "serving.py"),
            artifacts=artifacts,
            code_paths=[str(code)],
            pip_requirements=_serving_requirements(),
            signature=_signature(),
            metadata={"simulated": params.simulated, "profile": params.profile},
        )


def register_best(params: Params, root: Path = Path(".")) -> dict[str, Any]:
    """Register the model that is best on validation rows, with the alias ``champion``.

    The same weights are never registered twice: then only the alias moves. Runs that the database lacks although their
    records (``mlflow_run.json``) are there are created first.

    Returns
    -------
    dict
        What :func:`choose_best` returns, ``model_sha256``, ``registered_model`` and ``alias`` (both null with tracking
        off). It holds neither clock nor version, so that the same work gives the same bytes.

    Raises
    ------
    InputError
        When nothing was trained or predicted.
    MedAlignError
        When the tracking server or database cannot be used.
    """
    import pandas as pd

    from medalign3d.files import read_parquet

    columns = ["image_id", "dataset", "setting", "text_ablation", "run", "split", "question", "predicted", "truth"]
    frames = [
        read_parquet(path, columns=["language_model", *columns])
        for name in params.language_models
        if (path := root / "data/evaluation" / name / "predictions.parquet").is_file()
    ]
    if not frames:
        raise InputError("no predictions", where=root / "data/evaluation", remedy="run `dvc repro evaluate`")
    best = choose_best(pd.concat(frames, ignore_index=True), params.evaluate.headline_text)
    folder = root / "data/models" / best["language_model"] / best["setting"] / f"run-{best['run']}"
    if not (folder / "model.safetensors").is_file():
        raise InputError("a trained run is missing", where=folder, remedy="run `dvc repro` to train it")
    content = sha256_json([sha256_file(folder / "model.safetensors"), sha256_file(folder / "config.json")])
    result = {**best, "simulated": params.simulated, "model_sha256": content, "registered_model": None, "alias": None}
    if params.tracking.uri in OFF:
        return result
    name = params.tracking.registered_model
    records = sorted((root / "data").glob("models/**/mlflow_run.json")) + sorted(
        (root / "data").glob("evaluation/**/mlflow_run.json")
    )
    restore_runs(params, records, root)
    label = f"{best['language_model']} {best['setting']} run-{best['run']}"
    with track_run(params, "register", label, root=root) as run:
        run.log_metrics({"validation_balanced_accuracy": best["validation_balanced_accuracy"]})
        client = run._client
        assert client is not None
        known = {found.name for found in client.search_registered_models(f"name = '{name}'")}
        if name not in known:
            client.create_registered_model(
                name,
                tags={"simulated": str(params.simulated).lower(), "profile": params.profile},
                description="Answers questions about a T1 volume and a health record. "
                + (
                    "Trained on SIMULATED people: of no use for patients."
                    if params.simulated
                    else "Not a medical device. Cohorts can share people that no table links (ADNI, NACC and OASIS-3; "
                    "OASIS-3 and OASIS-1/-2): a test result of one cohort with another in training carries that caveat."
                ),
            )
        same = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("content") == content]
        if same:
            version = same[0].version
        else:
            with tempfile.TemporaryDirectory() as scratch:
                package_model(params, folder, Path(scratch) / "model", root)
                client.log_artifacts(run.run_id, str(Path(scratch) / "model"), artifact_path="model")
            source = client.get_run(run.run_id).info.artifact_uri + "/model"
            tags = {"content": content, "simulated": str(params.simulated).lower(), "git_commit": git_commit(root)}
            tags |= {
                key: str(best[key]) for key in ("language_model", "setting", "run", "validation_balanced_accuracy")
            }
            version = client.create_model_version(name, source, run.run_id, tags=tags).version
        client.set_registered_model_alias(name, CHAMPION, version)
    return {**result, "registered_model": name, "alias": CHAMPION}
