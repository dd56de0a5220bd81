"""Compile the transformer blocks of a model, one kind of block after the other.

The blocks of a stack share their code, so each kind is compiled once, in seconds rather than the minutes that a whole
model of 80 blocks takes; what lies between blocks (embeddings, padding, losses) costs little and stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of every stack in ``model``, outermost ones only."""
    blocks: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, GradientCheckpointingLayer):
                blocks.append(child)
            else:
                visit(child)

    visit(model)
    return blocks


def compile_blocks(model: nn.Module, **options: Any) -> int:
    """Compile every transformer block in place; names of weights stay the same.

    A block that cannot be compiled as one graph raises at its first call: a silent break would cost what compiling
    saves.

    Parameters
    ----------
    model
        The composite model, its adapters included.
    options
        Passed to ``torch.compile``, e.g. ``backend``.

    Returns
    -------
    int
        How many blocks.
    """
    # A block has one graph for each mode (training, scoring, generating with a cache) and kind of mask.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    blocks = transformer_blocks(model)
    for block in blocks:
        block.compile(fullgraph=True, **options)
    return len(blocks)
