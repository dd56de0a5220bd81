from __future__ import annotations

from typing import Any

import pytest
import torch

from medalign3d.model.compilation import compile_blocks, transformer_blocks

Batch = tuple[torch.Tensor, list[str], list[str], list[str]]


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _step(model: Any, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(*batch).total
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_blocks_compile_without_a_break_and_change_nothing(
    build: Any, kind: str, batch: Batch, candidates: list[list[str]]
) -> None:
    model = build(kind)
    model.add_lora(seed=2)
    names = set(dict(model.named_parameters()))
    loss, gradients = _step(model.eval(), batch)
    volumes, texts, questions, _ = batch
    with torch.no_grad():
        prefix = model.visual_prefix(volumes)
        scores = model.score(texts, questions, candidates, prefix)
    # `fullgraph=True` makes a break an error; the eager backend runs the captured graphs as they are.
    count = compile_blocks(model, backend="eager")
    assert count == len(transformer_blocks(model)) >= 6
    assert set(dict(model.named_parameters())) == names
    compiled_loss, compiled_gradients = _step(model, batch)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    assert compiled_loss == pytest.approx(loss, abs=1e-5)
    assert set(compiled_gradients) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model.score(texts, questions, candidates, prefix), scores, rtol=1e-4, atol=1e-5)
