"""Kept image features: the same results, and never those of another model or another preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medalign3d.model.feature_cache import FeatureCache, feature_key

PREPARED = {"shape": [24, 24, 24], "zooms_mm": 3.25}


@pytest.mark.parametrize("layers", [(-1,), (0, -1), (-1, 1, 0)])
def test_training_on_kept_features_is_training_on_volumes(
    build: Any, volumes: torch.Tensor, batch: Any, tmp_path: Path, layers: tuple[int, ...]
) -> None:
    model = build("gpt2", feature_layers=layers).eval()
    names = [f"digest-{row}" for row in range(len(volumes))]
    cache = FeatureCache(tmp_path, model, PREPARED, names, lambda rows: volumes[list(rows)], batch_size=2)
    assert cache.features.shape[:2] == (len(volumes), len(layers))
    _, *texts = batch
    model(volumes, *texts).total.backward()
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    kept = model(cache.take([0, 1, 2, 3, 4]), *texts)
    torch.testing.assert_close(kept.total, model(volumes, *texts).total, rtol=1e-5, atol=1e-5)
    kept.total.backward()
    reached = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert wanted.keys() - reached.keys() == {n for n in wanted if n.startswith("sub_volumes.")}
    for name, gradient in reached.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(model.visual_prefix(cache.take([3, 1])), model.visual_prefix(volumes[[3, 1]]))


def test_the_key_changes_with_weights_and_preprocessing(build: Any, volumes: torch.Tensor) -> None:
    model = build("gpt2")
    key = feature_key(model, PREPARED)
    assert feature_key(build("gpt2"), PREPARED) == key
    keys = {key, feature_key(model, {**PREPARED, "zooms_mm": 3.0}), feature_key(model, {})}
    keys.add(feature_key(build("gpt2", feature_layers=(-1,)), PREPARED))
    for name, tensor in model.sub_volumes.state_dict().items():
        with torch.no_grad():
            before = tensor.clone()
            tensor.view(-1)[-1] += 1e-3
            keys.add(feature_key(model, PREPARED))
            tensor.copy_(before)
        assert feature_key(model, PREPARED) == key, name
    model.fit_voxel_statistics([volumes])
    keys.add(feature_key(model, PREPARED))
    model.fingerprints["vision"] = "another"
    keys.add(feature_key(model, PREPARED))
    assert len(keys) == 6 + len(model.sub_volumes.state_dict())
    # What comes behind the features may train.
    other = build("gpt2", seed=1)
    with torch.no_grad():
        for part in (other.vision.post_layernorm, other.alignq, other.language_projection):
            for parameter in part.parameters():
                parameter.add_(0.5)
    assert feature_key(other, PREPARED) == key


def test_a_file_is_used_again_and_only_for_its_own_volumes(build: Any, volumes: torch.Tensor, tmp_path: Path) -> None:
    model = build("gpt2").eval()
    asked: list[int] = []

    def read(rows: Any) -> torch.Tensor:
        asked.extend(rows)
        return volumes[list(rows)]

    first = FeatureCache(tmp_path, model, PREPARED, ["a", "b", "c"], read)
    second = FeatureCache(tmp_path, model, PREPARED, ["a", "b", "c"], read)
    assert asked == [0, 1, 2]
    assert torch.equal(first.take([2, 0]), second.take([2, 0]))
    FeatureCache(tmp_path, model, PREPARED, ["a", "b", "d"], read)
    assert asked == [0, 1, 2, 0, 1, 2]
    assert not list(tmp_path.glob("*.unfinished"))
