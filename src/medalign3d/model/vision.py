"""The frozen 2D vision transformer, fed with sub-volume tokens; features of several depths in one code path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medalign3d.errors import ParameterError


def resolve_layers(feature_layers: Sequence[int], blocks: int) -> tuple[int, ...]:
    """Depths as numbers of blocks passed: 0 is the input, ``blocks`` (or -1) the output of the last block.

    >>> resolve_layers([0, -1], blocks=39)
    (0, 39)

    Raises
    ------
    ParameterError
        When a depth does not exist or is named twice.
    """
    resolved = tuple(layer if layer >= 0 else blocks + 1 + layer for layer in feature_layers)
    if not resolved or any(not 0 <= layer <= blocks for layer in resolved) or len(set(resolved)) != len(resolved):
        raise ParameterError(
            "feature layers do not fit the vision transformer",
            where="model.vision.feature_layers",
            found=list(feature_layers),
            expected=f"different depths from 0 (input) to {blocks} (after the last block; -1 is the last)",
        )
    return resolved


class SelfAttention(nn.Module):
    """A block's self-attention on its own weights, without copies of query, key and value.

    transformers indexes a stacked tensor, whose backward pass fills three tensors of the stack's size with zeros and
    adds them up; here they are views of one projection, and their gradients are written side by side once.

    Parameters
    ----------
    attention
        A ``Blip2Attention``, whose two projections are used (state-dict names stay the same).
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv = attention.qkv
        self.projection = attention.projection
        self.num_heads = int(attention.num_heads)

    def forward(self, hidden_states: Tensor, **options: Any) -> tuple[Tensor, None]:
        """Attention of all tokens to all; (B, N, hidden) -> (B, N, hidden), and no weights."""
        batch, tokens, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.projection(attended.transpose(1, 2).reshape(batch, tokens, width)), None


def replace_attention(blocks: nn.ModuleList) -> None:
    """Give the blocks of a BLIP-2 vision transformer :class:`SelfAttention`; blocks of other kinds are left alone."""
    from transformers.models.blip_2.modeling_blip_2 import Blip2Attention

    for block in blocks:
        attention = getattr(block, "self_attn", None)
        if isinstance(attention, Blip2Attention):
            block.self_attn = SelfAttention(attention)


def native_precision(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Within it, frozen weights of half precision compute as they are.

    Autocast would run their layer norms in float32 and keep float32 copies of every input for the backward pass. The
    kernels accumulate in float32 by themselves.
    """
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


class FrozenVision(nn.Module):
    """Frozen transformer blocks with taps; only the layer norm after them and the taps' weights are trained.

    Parameters
    ----------
    blocks
        Pre-norm transformer blocks that map (B, N, hidden) to (B, N, hidden).
    post_layernorm
        The layer norm after the blocks (trainable).
    feature_layers
        Depths whose features are combined, see :func:`resolve_layers`.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        post_layernorm: nn.LayerNorm,
        feature_layers: Sequence[int],
    ) -> None:
        super().__init__()
        self.taps = resolve_layers(feature_layers, len(blocks))
        # Blocks behind the deepest tap would be computed for nothing.
        self.blocks = nn.ModuleList(list(blocks)[: max(self.taps)])
        replace_attention(self.blocks)
        self.blocks.requires_grad_(False)
        self.post_layernorm = post_layernorm.requires_grad_(True)
        self.width = int(post_layernorm.normalized_shape[0])
        self.tap_weights = nn.Parameter(torch.zeros(len(self.taps))) if len(self.taps) > 1 else None

    def train(self, mode: bool = True) -> FrozenVision:
        """Set the mode; frozen blocks never leave evaluation mode."""
        super().train(mode)
        self.blocks.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen blocks."""
        return next((parameter.dtype for parameter in self.blocks.parameters()), torch.float32)

    def _taps(self, tokens: Tensor) -> Iterator[Tensor]:
        """Hidden states at the tapped depths, in their order from the input on."""
        hidden, dtype = tokens, self.dtype
        for depth in range(max(self.taps) + 1):
            if depth:
                block = self.blocks[depth - 1]
                hidden = hidden.to(dtype)
                with native_precision(hidden.device, dtype):
                    hidden = block(hidden)
            if depth in self.taps:
                yield hidden

    def read_taps(self, tokens: Tensor) -> Tensor:
        """Hidden states at the tapped depths; (B, N, hidden) -> (B, taps, N, hidden)."""
        return torch.stack([hidden.to(self.dtype) for hidden in self._taps(tokens)], dim=1)

    def combine(self, taps: Iterable[Tensor]) -> Tensor:
        """Features from what was tapped, each (B, N, hidden) -> (B, N, hidden) in float32."""
        weights = None if self.tap_weights is None else self.tap_weights.softmax(0)
        features: Tensor | None = None
        for depth, hidden in zip(sorted(self.taps), taps, strict=True):
            part = hidden.float()
            if weights is not None:
                part = part * weights[self.taps.index(depth)]
            features = part if features is None else features + part
        return self.post_layernorm(features)

    def forward(self, tokens: Tensor) -> Tensor:
        """Features; (B, N, hidden) -> (B, N, hidden) in float32."""
        return self.combine(self._taps(tokens))
