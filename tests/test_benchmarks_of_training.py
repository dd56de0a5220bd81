"""The benchmarks of training run, and what they count is what the full-size model computes."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from medalign3d.model.config import ModelConfig
from medalign3d.params import Params, validate_params

ROOT = Path(__file__).parents[1]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("language", "expected"), [("gpt2", 3.46), ("biogpt", 2.70), ("t5", 2.65)])
def test_operations_of_the_full_size_model(language: str, expected: float) -> None:
    """Built on the meta device at full size; expected are the figures reckoned from shapes by hand."""
    counted = _load("gpu_training").count_operations(language) / 1e12
    assert counted == pytest.approx(expected, rel=0.015)


def test_counted_operations_leave_out_gradients_of_frozen_weights() -> None:
    benchmark = _load("gpu_training")
    model = benchmark.build("gpt2", torch.device("cpu"), torch.float32, tiny=True)
    benchmark.Step(model, 4, torch.float32)()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)
    assert benchmark.count_operations("gpt2", tiny=True, lora=True) > benchmark.count_operations("gpt2", tiny=True)


def test_the_gpu_benchmark_runs_small(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [
        sys.executable, str(ROOT / "benchmarks/gpu_training.py"), "--tiny", "--device", "cpu", "--batches", "2", "3",
        "--steps", "1", "--lora", "--checkpointing", "--profile", "--precision", "bfloat16", "--out", str(out),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(out.read_text())
    assert [row["batch"] for row in report["results"]] == [2, 3]
    for row in report["results"]:
        assert row["fits"]
        assert math.isfinite(row["utilisation"])
        assert row["samples_per_second"] == pytest.approx(row["batch"] / row["seconds"])
    assert "aten::" in report["profile"]
    assert "| 3 |" in result.stdout


def test_levers_taken_out_one_by_one_give_the_same_loss(demo_params: Params, tmp_path: Path) -> None:
    """And the transcription runs; how fast it is is the benchmark's business."""
    benchmark = _load("training_step")
    values = demo_params.model_dump()
    values["backbones"]["language"].update(hidden_size=32, layers=2, heads=2, sentences=150, batch_size=8)
    values["backbones"]["vision"].update(hidden_size=32, layers=1, heads=2, image_size=24, patch_size=8)
    values["backbones"]["qformer"].update(hidden_size=32, layers=2, heads=2)
    values["pretrain"]["batch_size"] = 6
    params = benchmark.make_model_files(tmp_path, ["gpt2"], 2, validate_params(values))
    batches = benchmark.make_batches(params, 1)
    times = benchmark.compare(ModelConfig.from_params(params, "gpt2"), batches, 1)  # checks the losses
    assert set(times) == {"ours", *benchmark.LEVERS, "reference", "limit"}
