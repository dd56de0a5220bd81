"""Activations of frozen blocks computed twice: the same gradients, in evaluation mode too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medalign3d.model.backbones import make_language_checkpoint
from medalign3d.model.recompute import frozen_blocks, recompute_activations
from medalign3d.params import Params
from medalign3d.training import runs
from medalign3d.training.data import TrainingData


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["t5", "biogpt", "gpt2"])
def test_gradients_stay_the_same(in_project: Path, params: Params, name: str, lora: bool) -> None:
    if not Path("data/backbones", name).exists():
        make_language_checkpoint(name, params, Path("data/backbones", name))
    data = TrainingData.from_files(params, 0)
    batch = data.batch(0)
    found = []
    for recompute in (False, True):
        model = runs.make_model(params, name, data, 7)
        if lora:
            model.add_lora(model.config.lora)
        model.train()
        calls: list[int] = []
        if recompute:
            assert recompute_activations(model) == recompute_activations(model) == len(frozen_blocks(model)) >= 2
        for block in frozen_blocks(model):
            assert not block.training
            norm = next(m for m in block.modules() if "norm" in type(m).__name__.lower())
            norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        losses = model(
            batch.inputs(torch.device("cpu")), batch.texts, batch.questions, batch.answers, auxiliary=batch.auxiliary
        )
        forward = len(calls)
        losses.total.backward()
        assert len(calls) == (2 if recompute else 1) * forward  # it really was computed again
        found.append({n: p.grad for n, p in model.trainable_parameters().items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-7, msg=key)
