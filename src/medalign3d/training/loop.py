"""The training loop: AdamW, warm-up and cosine, clipping, validation, the best weights, exact resume.

Features: fp32 or bfloat16 autocast; gradient accumulation; balanced validation score with the loss as tie-break, the
best trainables kept; early stopping; a checkpoint in a scratch folder every some steps, at every validation and when
the process is asked to stop, from which a killed run goes on bit by bit (data, augmentation and dropout are functions
of seed and step); a non-finite loss is an error that names the step.

One run may use several processes (:mod:`medalign3d.training.distributed`); it then takes the same steps as one process
with the same batch, to rounding.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from medalign3d.errors import MedAlignError
from medalign3d.evaluation.metrics import balanced_accuracy
from medalign3d.params import Optimization
from medalign3d.progress import Progress
from medalign3d.training import checkpoint
from medalign3d.training.data import Batch, EvaluationItem, TrainingData, chunks
from medalign3d.training.distributed import Processes, share
from medalign3d.training.signals import StopRequest

HistoryRow = dict[str, float]


@dataclass
class TrainResult:
    """What a training run leaves: the best trainables are loaded into the model.

    ``history`` has one row per validation. ``resumed_from`` is the step of the checkpoint that it went on from.
    """

    history: list[HistoryRow]
    best_step: int
    best_score: float
    best_loss: float
    samples_per_second: float
    seconds: float
    resumed_from: int | None = None


@dataclass
class _Best:
    """The best validation so far and its weights."""

    step: int = -1
    score: float = -math.inf
    loss: float = math.inf
    state: dict[str, Tensor] = field(default_factory=dict)

    def beaten_by(self, score: float, loss: float) -> bool:
        """Whether a validation is better: a higher score, or the same score at a lower loss."""
        return self.step < 0 or score > self.score or (score == self.score and loss < self.loss)


def pick_device(name: str, number: int = 0) -> torch.device:
    """The device of ``training.device``; runs side by side are spread over the GPUs by ``number``."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise MedAlignError(
            "no CUDA device",
            where="training.device",
            found="cuda",
            expected="a GPU that torch can use",
            remedy="set training.device to auto or cpu",
        )
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", number % torch.cuda.device_count())


def learning_rate_at(step: int, optimization: Optimization) -> float:
    """Linear warm-up over ``warmup_fraction`` of the steps, then a cosine to zero."""
    warmup = max(1, round(optimization.steps * optimization.warmup_fraction))
    if step < warmup:
        return optimization.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, optimization.steps - warmup)
    return optimization.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def validate(
    model: Any,
    data: TrainingData,
    items: list[EvaluationItem],
    ablations: tuple[str, ...],
    device: torch.device,
    batch_size: int,
) -> tuple[float, float]:
    """Diagnosis score of a model on evaluation items.

    Returns
    -------
    score, loss
        Balanced accuracy (mean over cohort x question, then over text ablations) and the mean negative log-likelihood
        of the true answer among the candidates. NaN and infinity without items.
    """
    if not items:
        return math.nan, math.inf
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(f"{item.benchmark}/{item.question_name}", []).append(index)
    was_training = model.training
    model.eval()
    predictions: dict[str, dict[int, Tensor]] = {ablation: {} for ablation in ablations}
    with torch.inference_mode():
        for indices in groups.values():
            for chunk in chunks(len(indices), batch_size):
                part = [indices[i] for i in chunk]
                chosen = [items[i] for i in part]
                prefix = model.visual_prefix(data.images([item.image_row for item in chosen]).to(device))
                for ablation in ablations:
                    texts = [data.text_of(item.row, ablation, item.question_name) for item in chosen]
                    answers = [list(item.answers) for item in chosen]
                    result = model.score(texts, [item.question for item in chosen], answers, prefix=prefix)
                    for i, values in zip(part, result.float().cpu(), strict=True):
                        predictions[ablation][i] = values
    model.train(was_training)
    per_ablation, losses = [], []
    for ablation in ablations:
        per_group = []
        for indices in groups.values():
            truth = [items[i].truth for i in indices]
            predicted = [items[i].candidates[int(predictions[ablation][i].argmax())] for i in indices]
            per_group.append(balanced_accuracy(truth, predicted, items[indices[0]].candidates))
        per_ablation.append(float(np.mean(per_group)))
        losses += [
            -float(torch.log_softmax(predictions[ablation][i], dim=0)[items[i].candidates.index(items[i].truth)])
            for i in range(len(items))
        ]
    return float(np.mean(per_ablation)), float(np.mean(losses))


def _step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator for one step: dropout then does not depend on where a run was resumed."""
    return int(np.random.default_rng([seed, 37, step, rank]).integers(2**62))


class _Batches:
    """Batches of consecutive steps; for a GPU the next one is made and sent there while the model computes."""

    def __init__(self, data: TrainingData, device: torch.device, slots: Sequence[int] | None) -> None:
        self._data = data
        self._slots = slots
        self._device = device
        self._pool = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self._waiting: tuple[int, Future[Batch]] | None = None

    def get(self, step: int, last: int) -> Batch:
        if self._pool is None:
            return self._data.batch(step, self._slots)
        if self._waiting is not None and self._waiting[0] == step:
            batch = self._waiting[1].result()
        else:
            batch = self._make(step)
        if step < last:
            self._waiting = (step + 1, self._pool.submit(self._make, step + 1))
        return batch

    def _make(self, step: int) -> Batch:
        return self._data.batch(step, self._slots).send(self._device)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def train(
    model: Any,
    data: TrainingData,
    optimization: Optimization,
    *,
    seed: int,
    device: torch.device,
    label: str,
    ablations: tuple[str, ...] = ("full",),
    evaluation_batch_size: int = 64,
    scratch: Path | None = None,
    on_history: Callable[[HistoryRow], None] | None = None,
    stream: TextIO | None = None,
    processes: Processes | None = None,
) -> TrainResult:
    """Train a model; afterwards it holds the weights of the best validation.

    Parameters
    ----------
    model
        A :class:`medalign3d.model.composite.MedAlign3D` on ``device``.
    data
        Its batches and validation items.
    optimization
        The recipe.
    seed
        Of dropout and anything else that draws from torch's generator.
    device
        Where the model is.
    label, stream
        Start of the line of progress, and where it goes (default: standard output).
    ablations
        Text ablations over which the validation score is averaged.
    evaluation_batch_size
        Images at a time in validation.
    scratch
        Folder for checkpoints; None keeps none. The caller removes it when the results stand at their place.
    on_history
        Called with every history row (in the first process).
    processes
        Those that share this run; by default this one alone.

    Raises
    ------
    MedAlignError
        When the loss or a gradient is not finite.
    SystemExit
        With 128 and the signal's number, after a checkpoint, when SIGTERM or Ctrl-C came.
    """
    processes = Processes(device) if processes is None else processes
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        model.parameter_groups(optimization.weight_decay), lr=optimization.learning_rate, betas=(0.9, 0.98), fused=True
    )
    items = data.evaluation_items(("val",))
    best = _Best()
    history: list[HistoryRow] = []
    start, resumed_from = 0, None
    sums: dict[str, float] = {}
    since = 0
    found = checkpoint.load(scratch)
    names = {parameter: name for name, parameter in model.trainable_parameters().items()}
    if found is not None:
        model.load_trainable_state_dict(found.model, where="checkpoint")
        checkpoint.load_optimizer_tensors(optimizer, names, found.optimizer, where="checkpoint")
        best = _Best(**found.state["best"], state=found.best)
        history, sums, since = found.state["history"], found.state["sums"], found.state["since"]
        start = resumed_from = found.step
    if processes.largest(start) != processes.from_first(start):
        raise MedAlignError(
            "the processes of a run see different checkpoints",
            where=scratch,
            found=f"step {start} in process {processes.rank}",
            expected="one project folder, on a file system that all machines share",
        )
    processes.same_as_first(trainable)
    shares = processes.shares(optimization.batch_size, optimization.accumulation)
    slots = [slot for part in shares for slot in part]

    def keep(done: int) -> None:
        if scratch is not None and processes.first:
            checkpoint.save(
                scratch,
                done,
                model=model.trainable_state_dict(),
                optimizer=checkpoint.optimizer_tensors(optimizer, names),
                best=(best.step, best.state),
                state={
                    "best": {"step": best.step, "score": best.score, "loss": best.loss},
                    "history": history,
                    "sums": sums,
                    "since": since,
                },
            )

    began = time.monotonic()
    trained_seconds, trained_samples = 0.0, 0
    batches = _Batches(data, device, None if processes.count == 1 else slots)
    utilisation = _utilisation(model, data, optimization, device, processes.count)
    model.train()
    try:
        with StopRequest() as stop, _progress(label, optimization.steps, stream, processes) as progress:
            progress.done = start
            for step in range(start, optimization.steps):
                if _waited_enough(history, best, optimization.patience):
                    break
                tick = time.monotonic()
                rate = learning_rate_at(step, optimization)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                torch.manual_seed(_step_seed(seed, step, processes.rank))
                batch = batches.get(step, optimization.steps - 1)
                optimizer.zero_grad(set_to_none=True)
                parts = processes.average(_accumulate(model, batch, optimization, device, shares))
                processes.average_gradients(trainable)
                norm = float(nn.utils.clip_grad_norm_(trainable, optimization.clip_norm))
                if not (math.isfinite(parts["total"]) and math.isfinite(norm)):
                    raise MedAlignError(
                        "training diverged: a loss or gradient is not finite",
                        where=f"{label}, step {step + 1}",
                        found=", ".join(f"{k} {v:.4g}" for k, v in parts.items()) + f", gradient norm {norm:.4g}",
                        expected="finite numbers",
                        remedy="lower learning_rate or clip_norm of this stage, or use precision: float32",
                    )
                optimizer.step()
                trained_seconds += time.monotonic() - tick
                trained_samples += optimization.batch_size
                since += 1
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value
                speed = trained_samples / max(trained_seconds, 1e-9)
                progress.advance(
                    1,
                    f"loss {parts['total']:.3f} (image-text {parts['contrastive']:.3f}, "
                    f"answer {parts['generation']:.3f}"
                    + (f", auxiliary {parts['auxiliary']:.3f}" if optimization.auxiliary_weight > 0 else "")
                    + f")  temperature {parts['temperature']:.3f}  lr {rate:.2g}  {speed:.0f} samples/s"
                    + utilisation(speed)
                    + _memory(device)
                    + (f"  validation {best.score:.3f}" if best.step >= 0 and items else ""),
                )
                done = step + 1
                validated = done % optimization.validate_every == 0 or done == optimization.steps
                if validated:
                    score, loss = processes.from_first(
                        validate(model, data, items, ablations, device, evaluation_batch_size)
                    )
                    model.train()
                    if not items:
                        score, loss = 0.0, sums["total"] / since
                    if best.beaten_by(score, loss):
                        best = _Best(done, score, loss, model.trainable_state_dict())
                    row: HistoryRow = {"step": done, "learning_rate": rate}
                    row |= {f"train_{name}": value / since for name, value in sums.items()}
                    row |= {"validation_score": score, "validation_loss": loss}
                    history.append(row)
                    if on_history is not None and processes.first:
                        on_history(row)
                    sums, since = {}, 0
                stopped = processes.largest(stop.number)  # one signal stops all, after the same step
                if validated or stopped or done % optimization.checkpoint_every == 0:
                    keep(done)
                if stopped:
                    raise SystemExit(128 + stopped)
    finally:
        batches.close()
    model.load_trainable_state_dict(best.state, where="best validation")
    model.eval()
    return TrainResult(
        history=history,
        best_step=best.step,
        best_score=best.score,
        best_loss=best.loss,
        samples_per_second=trained_samples / max(trained_seconds, 1e-9),
        seconds=time.monotonic() - began,
        resumed_from=resumed_from,
    )


def _accumulate(
    model: Any, batch: Batch, optimization: Optimization, device: torch.device, shares: Sequence[range]
) -> dict[str, float]:
    """Add up the gradients of a batch, part by part; the parts' losses count by their numbers of samples."""
    volumes = batch.inputs(device)
    total: dict[str, float] = {}
    start = 0
    for number, own in enumerate(shares):
        part = slice(start, start + len(own))
        start = part.stop
        with _autocast(device, optimization.precision):
            losses = model(
                volumes[part],
                batch.texts[part],
                batch.questions[part],
                batch.answers[part],
                auxiliary=batch.auxiliary[part].to(device) if optimization.auxiliary_weight > 0 else None,
                contrastive=optimization.contrastive,
                lambda_generation=optimization.lambda_generation,
                auxiliary_weight=optimization.auxiliary_weight,
                label_smoothing=optimization.label_smoothing,
            )
        weight = len(share(optimization.batch_size, len(shares), number)) / optimization.batch_size
        (losses.total if weight == 1 else losses.total * weight).backward()
        for name, value in losses.scalars().items():
            total[name] = total.get(name, 0.0) + weight * value
    return total


def _progress(label: str, steps: int, stream: TextIO | None, processes: Processes) -> Progress:
    """The line of progress, written by the first process alone."""
    return Progress(label, steps, stream if processes.first else io.StringIO())


def _waited_enough(history: list[HistoryRow], best: _Best, patience: int | None) -> bool:
    """Whether so many validations in a row brought nothing better."""
    return patience is not None and sum(row["step"] > best.step for row in history) >= patience


def _utilisation(
    model: Any, data: TrainingData, optimization: Optimization, device: torch.device, devices: int
) -> Callable[[float], str]:
    """For the line of progress: the share of the devices' peak that a speed is; empty where no peak is known."""
    if device.type != "cuda":
        return lambda speed: ""
    from medalign3d.training import estimate

    peak = estimate.device_peak(torch.cuda.get_device_name(device), optimization.precision)
    if peak is None or optimization.freeze_image:
        return lambda speed: ""
    shapes = estimate.read_shapes(model.config, lora=model.lora_config)
    operations = sum(
        estimate.operations_per_sample(
            shapes,
            estimate.measured_tokens(model, data.samples(0)),
            contrastive=optimization.contrastive,
            generation=optimization.lambda_generation > 0,
        ).values()
    )
    return lambda speed: f"  {speed * operations / (devices * peak):.0%} of the peak"


def _memory(device: torch.device) -> str:
    """Peak memory of a GPU for the line of progress."""
    return f"  {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else ""


def remove_scratch(scratch: Path | None) -> None:
    """Remove a run's checkpoint folder once its results stand at their place."""
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
