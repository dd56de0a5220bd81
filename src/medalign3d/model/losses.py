"""Image-text contrastive loss with several positives, and the cross-entropy of answers."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

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


def _gather(tensor: Tensor, *, differentiable: bool) -> Tensor:
    """Concatenate over the ranks of a data-parallel group (of equal batch size); the tensor itself without one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    if torch.distributed.get_world_size() == 1:
        return tensor
    if differentiable:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(list(all_gather(tensor)))
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor)
    return torch.cat(parts)


def _one_direction(logits: Tensor, positive: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Mean over weighted rows of the smoothed -log of the probability mass on the positives."""
    log_probability = logits.log_softmax(dim=1)
    mass = log_probability.masked_fill(~positive, -torch.inf).logsumexp(dim=1)
    everywhere = log_probability.masked_fill(log_probability.isneginf(), 0.0).sum(1) / logits.isfinite().sum(1)
    loss = -(1.0 - smoothing) * mass - smoothing * everywhere
    return (loss * weight).sum() / weight.sum().clamp_min(1.0)


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
    all_queries, all_texts = _gather(queries, differentiable=True), _gather(texts, differentiable=True)
    all_keys, all_valid = _gather(keys, differentiable=False), _gather(valid, differentiable=False)
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
    return error.sum() / known.sum().clamp_min(1)
