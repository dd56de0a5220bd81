"""What a run is predicted to need, against the model itself and the figures of the full-size one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medalign3d.errors import MedAlignError
from medalign3d.model import parameters
from medalign3d.model.backbones import make_language_checkpoint
from medalign3d.model.config import LoraConfig
from medalign3d.params import Params
from medalign3d.training import estimate, runs
from medalign3d.training.data import TrainingData

LENGTHS = estimate.Tokens(language=182, answer=5, text=128)


def _full(name: str, lora: LoraConfig | None = None) -> estimate.Shapes:
    return estimate.shapes_from_configs(
        parameters._full_config(),
        parameters.vision_config(),
        parameters.qformer_config(),
        parameters.language_configs()[name],
        lora=lora,
    )


@pytest.mark.parametrize(("name", "expected"), [("gpt2", 3.46), ("biogpt", 2.70), ("t5", 2.65)])
def test_operations_of_the_full_size_model(name: str, expected: float) -> None:
    """Reckoned by hand from the shapes: 344 image tokens, 182 tokens of the language model."""
    found = estimate.operations_per_sample(_full(name), LENGTHS)
    assert sum(found.values()) / 1e12 == pytest.approx(expected, rel=0.01)
    assert found["vision"] / 1e9 == pytest.approx(703 + 729, rel=0.01)


def test_memory_of_the_full_size_model() -> None:
    shapes = _full("gpt2")
    assert shapes.trainable == pytest.approx(154.35e6, rel=1e-4)
    plain = estimate.bytes_per_sample(shapes, LENGTHS, precision="bfloat16")
    assert plain / estimate.GIB == pytest.approx(0.7, rel=0.15)
    assert estimate.bytes_per_sample(shapes, LENGTHS, precision="bfloat16", recompute=True) < 0.3 * plain


@pytest.mark.parametrize("name", ["t5", "biogpt", "gpt2"])
def test_counts_are_those_of_the_model(in_project: Path, params: Params, name: str) -> None:
    if not Path("data/backbones", name).exists():
        make_language_checkpoint(name, params, Path("data/backbones", name))
    data = TrainingData.from_files(params, 0)
    model = runs.make_model(params, name, data, 7)
    for lora in (None, model.config.lora):
        if lora is not None:
            model.add_lora(lora)
        shapes = estimate.read_shapes(model.config, lora=lora)
        assert shapes.trainable == model.trainable_count()
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        if name == "t5":  # the tiny one shares its output layer with the embedding, FLAN-T5 does not
            frozen += model.language.model.get_output_embeddings().weight.numel()
        assert shapes.frozen == pytest.approx(frozen, rel=0.02)
    tokens = estimate.measured_tokens(model, data.samples(0))
    longest = estimate.longest_tokens(model.config, shapes)
    assert 0 < tokens.language <= longest.language
    assert 0 < tokens.text <= longest.text


def test_a_device_that_is_too_small_is_refused_before_anything_is_loaded(params: Params) -> None:
    recipe = params.pretrain.model_copy(update={"precision": "bfloat16", "batch_size": 64})
    shapes = _full("gpt2")
    predicted, recomputed = (
        estimate.predict(shapes, LENGTHS, recipe, recompute=twice, peak=989e12) for twice in (False, True)
    )
    options = {"section": "pretrain", "device": "a GPU", "recomputed": recomputed}
    estimate.check_fits(predicted, 80 * estimate.GIB, recipe, **options)
    with pytest.raises(MedAlignError, match="does not fit") as caught:
        estimate.check_fits(predicted, 40 * estimate.GIB, recipe, **options)
    assert "activation_checkpointing: true" in str(caught.value)
    assert "pretrain.accumulation: 2" in str(caught.value)
    with pytest.raises(MedAlignError, match="more memory"):
        estimate.check_fits(predicted, 4 * estimate.GIB, recipe, **options)
    assert predicted.seconds == pytest.approx(
        predicted.operations * 64 * recipe.steps / (989e12 * estimate.ASSUMED_UTILISATION)
    )


def test_processes_share_batch_and_time(params: Params) -> None:
    """A batch that no single device holds is not refused where four share it."""
    recipe = params.pretrain.model_copy(update={"precision": "bfloat16", "batch_size": 64})
    shapes = _full("gpt2")
    alone, shared = (estimate.predict(shapes, LENGTHS, recipe, processes=count, peak=989e12) for count in (1, 4))
    assert (alone.samples, shared.samples) == (64, 16)
    assert shared.seconds == pytest.approx(alone.seconds / 4)
    available = 40 * estimate.GIB
    options = {"section": "pretrain", "device": "a GPU"}
    with pytest.raises(MedAlignError, match="does not fit"):
        estimate.check_fits(alone, available, recipe, **options)
    estimate.check_fits(shared, available, recipe, processes=4, **options)
    larger = recipe.model_copy(update={"batch_size": 256})
    predicted = estimate.predict(shapes, LENGTHS, larger, processes=4, peak=989e12)
    with pytest.raises(MedAlignError, match=r"pretrain\.accumulation: 2 ") as caught:
        estimate.check_fits(predicted, available, larger, processes=4, **options)
    assert f"pretrain.batch_size: {4 * predicted.most_samples(available)}" in str(caught.value)


def test_a_run_says_what_it_will_need(in_project: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    lines = runs.predict_needs(params, "gpt2", stage="pretrain", device=cpu)
    assert "predicted on the CPU" in lines[0]
    assert "a sample" in lines[1]
    monkeypatch.setattr(estimate, "device_limits", lambda device: ("a small device", 1e6))
    with pytest.raises(MedAlignError, match="a small device"):
        runs.predict_needs(params, "gpt2", stage="tune", device=cpu)


def test_peaks_are_found_by_the_devices_name() -> None:
    assert estimate.device_peak("NVIDIA H200", "bfloat16") == 989e12
    assert estimate.device_peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert estimate.device_peak("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert estimate.device_peak("NVIDIA H200", "float32") is None
    assert estimate.device_peak("unknown", "bfloat16") is None
