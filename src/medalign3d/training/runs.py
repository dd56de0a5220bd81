"""The runs of the stages ``pretrain`` (AlignQ with a frozen language model, and its controls) and ``tune`` (LoRA).

``data/models/<lm>/frozen/run-<k>/``, ``data/models/<lm>/controls/<control>/run-<k>/`` and
``data/models/<lm>/lora/run-<k>/`` each hold the trainables (safetensors), the model's configuration, ``history.json``
(one row per validation) and ``metrics.json`` (what was trained, on how many people, how the best validation scored).
They are written whole or not at all, and hold no clock times, so the same work gives the same bytes. Run ``k`` uses
seed ``training.seed + k``; with cross-validation it leaves out fold ``k``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medalign3d import files
from medalign3d.errors import InputError
from medalign3d.params import Params
from medalign3d.training.data import TrainingData
from medalign3d.training.distributed import Processes, launched_processes
from medalign3d.training.loop import HistoryRow, pick_device, remove_scratch, train
from medalign3d.training.processes import MODEL_MODULES, Job, run_jobs

SCRATCH = Path(".scratch")

Tracker = Callable[[str, Mapping[str, str]], AbstractContextManager[Any]]
"""Opens a tracked run from its name and tags; must be picklable. The run has ``log_metrics(values, step)``.

``functools.partial(medalign3d.tracking.track_run, params, "pretrain@gpt2")`` is one.
"""


def run_folder(models_dir: Path, kind: str, run: int, control: str | None = None) -> Path:
    """The folder of a run below ``data/models/<lm>``; ``kind`` is ``frozen``, ``lora`` or ``control``."""
    if kind == "control":
        return models_dir / "controls" / str(control) / f"run-{run}"
    return models_dir / kind / f"run-{run}"


def model_config(params: Params, language_model: str, auxiliary_targets: Sequence[str] = ()) -> Any:
    """The :class:`~medalign3d.model.config.ModelConfig` of the parameters, with what it needs of the template."""
    from medalign3d.model.config import ModelConfig

    sub_volumes = params.model.sub_volumes
    affine = distance = None
    if sub_volumes.fine.enabled or sub_volumes.brain_margin_mm is not None:
        from medalign3d.volumes.template import on_grid, target_grid

        grid = target_grid(params.normalize.shape, params.normalize.zooms_mm)
        affine = grid.affine
        if sub_volumes.brain_margin_mm is not None:
            distance = on_grid(grid).distance
    return ModelConfig.from_params(
        params, language_model, affine=affine, distance=distance, auxiliary_targets=auxiliary_targets
    )


def predict_needs(
    params: Params,
    language_model: str,
    *,
    stage: str,
    device: torch.device,
    auxiliary_targets: Sequence[str] = (),
    processes: int = 1,
) -> list[str]:
    """Lines that say what a run of a stage will need, from the models' configurations alone; no weight is read.

    ``processes`` share the run, each on a device like ``device``.

    Raises
    ------
    MedAlignError
        When the predicted peak of memory is larger than the device's; it says what to change.
    """
    from medalign3d.training import estimate

    tuned = stage == "tune"
    optimization = params.tune if tuned else params.pretrain
    config = model_config(params, language_model, auxiliary_targets)
    shapes = estimate.read_shapes(config, lora=config.lora if tuned else None)
    tokens = estimate.longest_tokens(config, shapes)
    name, available = estimate.device_limits(device)
    peak = estimate.device_peak(name, optimization.precision)
    gpu = device.type == "cuda"
    recompute = params.training.activation_checkpointing
    predicted, recomputed = (
        estimate.predict(shapes, tokens, optimization, processes=processes, recompute=twice, peak=peak, gpu=gpu)
        for twice in (recompute, True)
    )
    estimate.check_fits(
        predicted,
        available,
        optimization,
        section=stage,
        device=name,
        processes=processes,
        recompute=recompute,
        recomputed=recomputed,
    )
    return estimate.describe(predicted, shapes, name, available, optimization.steps)


def make_model(params: Params, language_model: str, data: TrainingData, seed: int) -> Any:
    """A fresh composite model whose voxel statistics come from the training images."""
    from medalign3d.model.composite import MedAlign3D

    wanted = params.pretrain.auxiliary_weight > 0 or params.tune.auxiliary_weight > 0
    config = model_config(params, language_model, data.auxiliary_names if wanted else ())
    model = MedAlign3D.from_checkpoints(config, seed)
    model.fit_voxel_statistics(data.training_images())
    return model


def _scratch_folder(params: Params, arguments: Mapping[str, Any], data: TrainingData) -> Path:
    """A folder named by everything that decides the run's result, so that only its own checkpoint is gone on from."""
    table = data.table
    key = {
        **arguments,
        "params": {
            name: getattr(params, name).model_dump(mode="json")
            for name in ("normalize", "backbones", "model", "training", "pretrain", "tune", "harmonize", "split", "vqa")
        },
        "images": list(zip(table["image_id"], table["split"], table["volume_sha256"].astype(str), strict=True)),
    }
    return SCRATCH / files.sha256_json(key)[:20]


@contextlib.contextmanager
def _untracked(name: str, tags: Mapping[str, str]) -> Any:
    yield None


def train_run(
    params: Params,
    language_model: str,
    *,
    stage: str,
    run: int,
    control: str | None,
    data_dir: Path,
    out_dir: Path,
    tracker: Tracker | None,
    number: int,
    keep_scratch: bool = True,
) -> dict[str, Any]:
    """Train one run and write its folder; returns its metrics (see the module's docstring for what is written)."""
    from medalign3d.model.composite import MedAlign3D
    from medalign3d.model.feature_cache import FeatureCache

    tuned = stage == "tune"
    optimization = params.tune if tuned else params.pretrain
    kind = "lora" if tuned else ("control" if control else "frozen")
    name = f"{control}-run-{run}" if control else f"run-{run}"
    seed = params.training.seed + run
    processes = Processes(pick_device(params.training.device, number))
    device = processes.device
    data = TrainingData.from_files(params, run, stage=stage, control=control, data_dir=data_dir)
    models_dir = data_dir / "models" / language_model
    start = run_folder(models_dir, "frozen", run)
    if tuned and not start.is_dir():
        raise InputError("no pretrained run to tune", where=start, remedy="run `dvc repro pretrain` first")
    wanted = params.pretrain.auxiliary_weight > 0 or params.tune.auxiliary_weight > 0
    targets = data.auxiliary_names if wanted else ()
    needs = predict_needs(
        params, language_model, stage=stage, device=device, auxiliary_targets=targets, processes=processes.count
    )
    if run == 0 and control is None and processes.first:
        print(f"{stage} {language_model}: " + "; ".join(needs), flush=True)
    if tuned:
        model = MedAlign3D.load(start)
        model.add_lora(model.config.lora, seed)
    else:
        model = make_model(params, language_model, data, seed)
    model.to(device)
    if params.training.compile and device.type == "cuda":
        from medalign3d.model.compilation import compile_blocks

        compile_blocks(model)
    training = data.table.iloc[data.training_rows]
    about: dict[str, Any] = {
        "stage": stage,
        "setting": kind if control is None else f"control_{control}",
        "language_model": language_model,
        "run": run,
        "seed": seed,
        "simulated": data.table.attrs.get("simulated", "true" if params.simulated else "false") == "true",
        "training_images": len(training),
        "training_persons": int(training["person_id"].nunique()),
        "validation_images": int((data.split == "val").sum()),
        "trainable_parameters": model.trainable_count(),
    }
    features = None
    if optimization.freeze_image:
        digests = data.table["volume_sha256"].astype(str).tolist()
        normalize = params.normalize.model_dump(mode="json")
        features = FeatureCache(SCRATCH / "features", model.eval(), normalize, digests, data.images)
        data.use_features(features.take)
    arguments = {"stage": stage, "language_model": language_model, "run": run, "control": control}
    scratch = _scratch_folder(params, arguments, data) if keep_scratch else None
    ablations = tuple(dict.fromkeys((params.evaluate.headline_text, "demographics_only")))
    tags = {key: str(about[key]) for key in ("stage", "setting", "language_model", "run", "seed")}
    with (tracker if tracker is not None and processes.first else _untracked)(name, tags) as tracked:

        def log(row: HistoryRow) -> None:
            if tracked is not None:
                values = {key: value for key, value in row.items() if key != "step" and np.isfinite(value)}
                tracked.log_metrics(values, step=int(row["step"]))

        result = train(
            model,
            data,
            optimization,
            seed=seed,
            device=device,
            label=f"{stage} {language_model} {name}",
            ablations=ablations,
            evaluation_batch_size=params.evaluate.batch_size,
            scratch=scratch,
            on_history=log,
            processes=processes,
        )
        metrics = {
            **about,
            "best_step": result.best_step,
            "validation_score": result.best_score,
            "validation_loss": result.best_loss,
            "finding_thresholds": {name: list(bounds) for name, bounds in data.thresholds.bounds.items()},
        }
        if processes.first:
            with files.atomic_path(out_dir / f"run-{run}") as temporary:
                temporary.mkdir(parents=True)
                model.save(temporary)
                files.write_json(temporary / "history.json", result.history)
                files.write_json(temporary / "metrics.json", metrics)
                if tracked is not None:
                    best = {"validation_score": result.best_score, "validation_loss": result.best_loss}
                    tracked.log_metrics(
                        {k: v for k, v in best.items() if np.isfinite(v)}, step=int(result.history[-1]["step"])
                    )
                    # The record lets the tracking database be rebuilt when this folder comes back from a cache.
                    record = getattr(tracked, "record", None)
                    if record is not None:
                        files.write_json(temporary / "mlflow_run.json", record)
    processes.wait()  # until everything stands, and nobody reads what is removed now
    if processes.first:
        remove_scratch(scratch)
        if features is not None:
            features.remove()
    return {
        **metrics,
        "samples_per_second": result.samples_per_second,
        "seconds": result.seconds,
        "folder": str(out_dir / f"run-{run}"),
    }


def _run_all(params: Params, jobs: list[Job]) -> list[dict[str, Any]]:
    """Run jobs in ``training.workers`` processes; results in the order of the jobs.

    Under ``torchrun`` all of its processes do each job together, one after the other.
    """
    workers = 1 if launched_processes() > 1 else params.training.workers
    results: dict[int, dict[str, Any]] = dict(run_jobs(jobs, workers=workers, preload=MODEL_MODULES))
    return [results[number] for number in range(len(jobs))]


def run_pretrain(
    params: Params,
    language_model: str,
    *,
    data_dir: str | Path = "data",
    tracker: Tracker | None = None,
) -> list[dict[str, Any]]:
    """Train AlignQ with a frozen language model: ``training.runs`` runs, then ``training.control_runs`` per control.

    Writes ``<data_dir>/models/<lm>/frozen/run-<k>/`` and ``<data_dir>/models/<lm>/controls/<control>/run-<k>/``.

    Returns
    -------
    One dict of metrics per run (those of ``metrics.json``, and ``seconds``, ``samples_per_second``, ``folder``).
    """
    folder = Path(data_dir)
    models_dir = folder / "models" / language_model
    wanted: list[tuple[int, str | None]] = [(run, None) for run in range(params.training.runs)]
    wanted += [(run, control) for control in params.training.controls for run in range(params.training.control_runs)]
    job = functools.partial(train_run, params, language_model, stage="pretrain", data_dir=folder, tracker=tracker)
    jobs: list[Job] = [
        (
            job,
            {
                "run": run,
                "control": control,
                "number": number,
                "out_dir": run_folder(models_dir, "control" if control else "frozen", run, control).parent,
            },
        )
        for number, (run, control) in enumerate(wanted)
    ]
    return _run_all(params, jobs)


def run_tune(
    params: Params,
    language_model: str,
    *,
    data_dir: str | Path = "data",
    tracker: Tracker | None = None,
) -> list[dict[str, Any]]:
    """Add low-rank adapters to every pretrained run and train on; writes ``<data_dir>/models/<lm>/lora/run-<k>/``.

    Raises
    ------
    InputError
        When a pretrained run is missing.
    """
    folder = Path(data_dir)
    models_dir = folder / "models" / language_model
    job = functools.partial(train_run, params, language_model, stage="tune", data_dir=folder, tracker=tracker)
    jobs: list[Job] = [
        (job, {"run": run, "control": None, "number": run, "out_dir": run_folder(models_dir, "lora", run).parent})
        for run in range(params.training.runs)
    ]
    return _run_all(params, jobs)
