"""Image-text contrastive loss with several positives, and the cross-entropy of answers."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MINIMUM_TEMPERATURE = 0.001
MAXIMUM_TEMPERATURE = 0.5
INITIAL_TEMPERATURE = 0.07


@dataclasses.dataclass
class Losses:
    """What one forward pass of the composite model returns.

    ``total`` is ``contrastive + lambda_generation * generation + auxiliary_weight * auxiliary``; the others are scalars
    (zero where a loss is off), ``generation_per_sample`` is (B,) with NaN for samples without an answer.
    """

    total: Tensor
    contrastive: Tensor
    contrastive_record: Tensor
    contrastive_answer: Tensor
    generation: Tensor
    generation_per_sample: Tensor
    auxiliary: Tensor
    temperature: Tensor

    def scalars(self) -> dict[str, float]:
        """The scalar losses as Python numbers, for logs; a GPU is waited for once."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "generation_per_sample"]
        values = torch.stack([getattr(self, name).detach().float().reshape(()) for name in names])
        return dict(zip(names, values.tolist(), strict=True))


def text_keys(texts: Sequence[str]) -> Tensor:
    """A 63-bit key per text, (B,) int64; equal texts have equal keys, on every rank and machine."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


def clamp_temperature(log_temperature: Tensor) -> Tensor:
    """The temperature, kept within 0.001 to 0.5."""
    return log_temperature.clamp(math.log(MINIMUM_TEMPERATURE), math.log(MAXIMUM_TEMPERATURE)).exp()


def process_count() -> int:
    """How many processes compute one batch together; 1 without a process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def in_any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true in any process; every process must ask."""
    if process_count() == 1:
        return flag
    value = torch.tensor([float(flag)], device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return bool(value.item())


def mean_over_processes(total: Tensor, count: Tensor | int) -> Tensor:
    """Part of a mean over the samples of all processes.

    The *average over processes* of what is returned is the mean over all samples, however they are divided; averaged
    gradients are then those of one process with the whole batch. Every process must call it; a count of 0 is allowed.
    """
    number = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    processes = process_count()
    if processes > 1:
        number = number.clone()
        torch.distributed.all_reduce(number)
        total = total * processes
    return total / number.clamp_min(1)


def _rows_of_all(rows: int, device: torch.device) -> int:
    """The most rows that any process has."""
    if process_count() == 1:
        return rows
    value = torch.tensor([rows], device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value.item())


def _gather(tensor: Tensor, rows: int, *, differentiable: bool) -> Tensor:
    """Concatenate over processes, each filled up to ``rows`` with zeros; the tensor itself when there is one."""
    if process_count() == 1:
        return tensor
    if len(tensor) < rows:
        tensor = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
    return _AllGather.apply(tensor) if differentiable else _all_gather(tensor)


def _all_gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(process_count())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _AllGather(torch.autograd.Function):
    """Concatenation over processes; what every process's loss asks of a tensor is added up where the tensor came from.

    torch's own differentiable gather is deprecated, and with gloo its gradients were not those of one process.
    """

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        context.rows = len(tensor)
        return _all_gather(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        start = torch.distributed.get_rank() * context.rows
        return gradient[start : start + context.rows]


def _one_direction(logits: Tensor, positive: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Mean over weighted rows of the smoothed -log of the probability mass on the positives."""
    log_probability = logits.log_softmax(dim=1)
    mass = log_probability.masked_fill(~positive, -torch.inf).logsumexp(dim=1)
    everywhere = log_probability.masked_fill(log_probability.isneginf(), 0.0).sum(1) / logits.isfinite().sum(1)
    loss = -(1.0 - smoothing) * mass - smoothing * everywhere
    return mean_over_processes((loss * weight).sum(), weight.sum())


def contrastive_loss(
    queries: Tensor,
    texts: Tensor,
    keys: Tensor,
    temperature: Tensor,
    label_smoothing: float = 0.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Symmetric image-text contrastive loss in which equal texts share the probability mass.

    The similarity of an image and a text is the largest over the image's queries (Li et al., BLIP-2, 2023). With one
    target per row, equal texts (three diagnoses in a batch of 64) would push images of one diagnosis apart; here the
    loss is minus the log of the *summed* probability of all positives.

    Parameters
    ----------
    queries
        (B, L, d) unit vectors of the images' queries.
    texts
        (B, d) unit vectors of the texts.
    keys
        (B,) int64; equal keys are equal texts, see :func:`text_keys`.
    temperature
        Scalar.
    label_smoothing
        Share of the target spread evenly over the batch.
    valid
        (B,) bool; samples with False (no text) take no part. All by default.

    Returns
    -------
    Tensor
        Scalar; 0 (with a graph) where no sample is valid.
    """
    if valid is None:
        valid = torch.ones(len(keys), dtype=torch.bool, device=queries.device)
    # Similarities are divided by a temperature of a few hundredths: bfloat16 would be too coarse.
    with torch.autocast(queries.device.type, enabled=False):
        return _symmetric_loss(queries.float(), texts.float(), keys, temperature.float(), label_smoothing, valid)


def _symmetric_loss(
    queries: Tensor, texts: Tensor, keys: Tensor, temperature: Tensor, label_smoothing: float, valid: Tensor
) -> Tensor:
    rows = _rows_of_all(len(keys), keys.device)
    all_queries, all_texts = _gather(queries, rows, differentiable=True), _gather(texts, rows, differentiable=True)
    all_keys = _gather(keys, rows, differentiable=False)
    all_valid = _gather(valid.to(torch.uint8), rows, differentiable=False).bool()
    positive = (keys[:, None] == all_keys[None, :]) & all_valid[None, :]
    # Rows that are not valid get themselves as a positive, so that no row is empty; their weight is zero.
    weight = valid.to(queries.dtype)
    image_to_text = torch.einsum("bld,cd->bcl", queries, all_texts).amax(-1) / temperature
    text_to_image = torch.einsum("bd,cld->bcl", texts, all_queries).amax(-1) / temperature
    hidden = ~all_valid[None, :] & valid[:, None]
    positive = positive | ~valid[:, None]
    loss = _one_direction(image_to_text.masked_fill(hidden, -torch.inf), positive, weight, label_smoothing)
    loss = loss + _one_direction(text_to_image.masked_fill(hidden, -torch.inf), positive, weight, label_smoothing)
    return loss / 2


def masked_squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the targets that are known; (B, n) with NaN for the unknown. 0 where none is known."""
    known = target.isfinite()
    error = (predicted - target.nan_to_num(0.0, 0.0, 0.0)).square() * known
    return mean_over_processes(error.sum(), known.sum())
