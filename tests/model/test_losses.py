"""The contrastive loss: floors, several positives, limits; the masked squared error."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.model.losses import clamp_temperature, contrastive_loss, masked_squared_error, text_keys

SMOOTHING = 0.1


def _floor(keys: list[int], smoothing: float) -> float:
    """The lowest loss that any similarities can reach, by minimising over free logits."""
    positive = torch.tensor(keys)[:, None] == torch.tensor(keys)[None, :]
    total = 0.0
    for row in positive:
        count, size = int(row.sum()), len(keys)
        mass = (1 - smoothing) + smoothing * count / size
        total -= (1 - smoothing) * math.log(mass)
        total -= smoothing * count / size * math.log(mass / count)
        if size > count:
            total -= smoothing * (size - count) / size * math.log((1 - mass) / (size - count))
    return total / len(keys)


def _ideal(keys: list[int], temperature: float, gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of which equal keys share the direction; others are at a right angle, scaled to ``gap``."""
    vectors = torch.nn.functional.one_hot(torch.tensor(keys)).float()
    scale = math.sqrt(gap * temperature)
    return (vectors * scale)[:, None, :], vectors * scale


@pytest.mark.parametrize("keys", [list(range(7)), [0, 0, 1, 1, 1, 2, 2], [0, 1, 2] * 21 + [0]])
def test_equal_diagnoses_reach_the_floor_together(keys: list[int]) -> None:
    temperature = 0.07
    best = min(
        float(
            contrastive_loss(*_ideal(keys, temperature, gap), torch.tensor(keys), torch.tensor(temperature), SMOOTHING)
        )
        for gap in torch.linspace(1, 12, 400).tolist()
    )
    floor = _floor(keys, SMOOTHING)
    assert best == pytest.approx(floor, abs=0.01)
    # With one target per row, three answers in a batch of 64 cannot go below 3.36; the smoothing alone costs 0.73.
    assert floor <= _floor(list(range(len(keys))), SMOOTHING) + 1e-9
    assert _floor(list(range(7)), SMOOTHING) == pytest.approx(0.446, abs=0.001)
    assert _floor(list(range(64)), SMOOTHING) == pytest.approx(0.729, abs=0.001)


def test_equal_texts_do_not_push_images_apart() -> None:
    keys = torch.tensor([0, 0, 1, 1])
    direction = torch.eye(2)[keys]
    queries = direction[:, None, :].clone().requires_grad_(True)
    contrastive_loss(queries, direction, keys, torch.tensor(0.02)).backward()
    assert float(queries.grad.abs().max()) < 1e-6


def test_distinct_texts_give_the_ordinary_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(6, 3, 8, generator=generator), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=-1)
    similarity = torch.einsum("bld,cd->bcl", queries, texts).amax(-1) / 0.1
    target = torch.arange(6)
    expected = sum(
        torch.nn.functional.cross_entropy(logits, target, label_smoothing=SMOOTHING)
        for logits in (similarity, similarity.T)
    )
    found = contrastive_loss(queries, texts, torch.arange(6), torch.tensor(0.1), SMOOTHING)
    torch.testing.assert_close(found, expected / 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.data())
def test_invalid_samples_take_no_part(keys: list[int], data: st.DataObject) -> None:
    valid = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys))))
    generator = torch.Generator().manual_seed(len(keys))
    queries = torch.nn.functional.normalize(torch.randn(len(keys), 2, 4, generator=generator), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 4, generator=generator), dim=-1)[torch.tensor(keys)]
    temperature = torch.tensor(0.1)
    found = contrastive_loss(queries, texts, torch.tensor(keys), temperature, SMOOTHING, valid)
    assert torch.isfinite(found)
    if not valid.any():
        assert float(found) == 0
        return
    alone = contrastive_loss(queries[valid], texts[valid], torch.tensor(keys)[valid], temperature, SMOOTHING)
    torch.testing.assert_close(found, alone)


def test_invalid_samples_get_no_gradient() -> None:
    queries = torch.randn(3, 2, 4, requires_grad=True)
    texts = torch.randn(3, 4, requires_grad=True)
    valid = torch.tensor([True, False, True])
    contrastive_loss(queries, texts, torch.tensor([0, 1, 2]), torch.tensor(0.1), SMOOTHING, valid).backward()
    assert torch.isfinite(queries.grad).all()
    assert not queries.grad[1].any()
    assert not texts.grad[1].any()


def test_a_batch_of_one_costs_nothing() -> None:
    found = contrastive_loss(torch.ones(1, 2, 3), torch.ones(1, 3), torch.tensor([5]), torch.tensor(0.1), SMOOTHING)
    assert float(found) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("log_value", "expected"), [(-50.0, 0.001), (math.log(0.07), 0.07), (3.0, 0.5)])
def test_the_temperature_is_clamped(log_value: float, expected: float) -> None:
    assert float(clamp_temperature(torch.tensor(log_value))) == pytest.approx(expected)


def test_keys_are_equal_for_equal_texts_only() -> None:
    keys = text_keys(["dementia", "no dementia", "dementia", ""])
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3
    assert keys.dtype == torch.int64
    assert bool((keys >= 0).all())


def test_unknown_targets_are_left_out() -> None:
    nan = float("nan")
    predicted = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    loss = masked_squared_error(predicted, torch.tensor([[0.0, nan], [nan, 2.0]]))
    loss.backward()
    assert float(loss) == pytest.approx((1 + 4) / 2)
    assert predicted.grad[0, 1] == predicted.grad[1, 0] == 0
    assert float(masked_squared_error(predicted, torch.full((2, 2), nan))) == 0
