from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medalign3d import files
from medalign3d.errors import InputError, MedAlignError
from medalign3d.params import Params
from medalign3d.training import loop, runs
from medalign3d.training.data import TrainingData


def _train(params: Params, **options: Any) -> tuple[Any, loop.TrainResult]:
    data = TrainingData.from_files(params, 0)
    model = runs.make_model(params, "gpt2", data, 7)
    result = loop.train(
        model, data, params.pretrain, seed=7, device=torch.device("cpu"), label="test", ablations=("full",), **options
    )
    return model, result


def _state(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.trainable_state_dict())


def test_a_killed_run_goes_on_bit_by_bit(in_project: Path, params: Params, tmp_path: Path) -> None:
    model, whole = _train(params)
    _, _ = _train(params, scratch=tmp_path, stop_after=4)
    assert (tmp_path / loop.CHECKPOINT_FILE).is_file()
    resumed, rest = _train(params, scratch=tmp_path)
    assert rest.resumed_from == 3
    assert rest.history == whole.history
    for name, value in _state(model).items():
        assert torch.equal(value, _state(resumed)[name]), name


def test_a_damaged_checkpoint_is_not_gone_on_from(in_project: Path, params: Params, tmp_path: Path) -> None:
    (tmp_path / loop.CHECKPOINT_FILE).write_bytes(b"not a checkpoint")
    _, result = _train(params, scratch=tmp_path)
    assert result.resumed_from is None


def test_the_best_validation_is_kept(in_project: Path, params: Params) -> None:
    model, result = _train(params)
    rows = {int(row["step"]): row for row in result.history}
    assert set(rows) == {3, 6}
    best = max(rows.values(), key=lambda row: (row["validation_score"], -row["validation_loss"]))
    assert result.best_step == best["step"]
    data = TrainingData.from_files(params, 0)
    again = loop.validate(model, data, data.evaluation_items(("val",)), ("full",), torch.device("cpu"), batch_size=5)
    assert again == pytest.approx((best["validation_score"], best["validation_loss"]), abs=1e-5)


def test_training_lowers_the_loss_of_a_batch_that_it_sees_again(
    in_project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainingData.batch
    monkeypatch.setattr(TrainingData, "batch", lambda self, step: original(self, 0))
    recipe = params.pretrain.model_copy(update={"steps": 30, "validate_every": 5})
    _, result = _train(params.model_copy(update={"pretrain": recipe}))
    assert result.history[-1]["train_contrastive"] < result.history[0]["train_contrastive"] - 0.2


def test_a_loss_that_is_not_finite_is_an_error(in_project: Path, params: Params) -> None:
    data = TrainingData.from_files(params, 0)
    model = runs.make_model(params, "gpt2", data, 7)
    with torch.no_grad():
        model.language_projection.weight.fill_(float("nan"))
    with pytest.raises(MedAlignError, match=r"diverged[\s\S]*step 1[\s\S]*learning_rate"):
        loop.train(model, data, params.pretrain, seed=0, device=torch.device("cpu"), label="test")


def test_learning_rate_warms_up_and_falls_to_zero(params: Params) -> None:
    recipe = params.pretrain.model_copy(update={"steps": 100, "warmup_fraction": 0.1})
    rates = [loop.learning_rate_at(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(recipe.learning_rate / 10)
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert int(np.argmax(rates)) in (9, 10)
    assert rates[-1] < 0.01 * recipe.learning_rate
    assert rates[10:] == sorted(rates[10:], reverse=True)


class _Tracked:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = {"stage": "pretrain"}

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        with self.path.open("a") as stream:
            stream.write(f"{step} {sorted(values)}\n")


@contextmanager
def _tracker(folder: str, name: str, tags: Mapping[str, str]) -> Iterator[_Tracked]:
    yield _Tracked(Path(folder) / f"{tags['setting']}-{name}.log")


def test_pretrain_and_tune_write_their_runs(in_project: Path, params: Params, tmp_path: Path) -> None:
    tracker = functools.partial(_tracker, str(tmp_path))
    results = runs.run_pretrain(params, "gpt2", tracker=tracker)
    assert [(r["setting"], r["run"]) for r in results] == [("frozen", 0), ("frozen", 1), ("control_shuffled", 0)]
    base = Path("data/models/gpt2")
    for folder in (base / "frozen/run-0", base / "frozen/run-1", base / "controls/shuffled/run-0"):
        names = {path.name for path in folder.iterdir()}
        assert names == {"model.safetensors", "config.json", "history.json", "metrics.json", "mlflow_run.json"}
        metrics = files.read_json(folder / "metrics.json")
        assert metrics["simulated"] is True
        assert not {"seconds", "samples_per_second"} & set(metrics)
        assert all(math.isfinite(v) for row in files.read_json(folder / "history.json") for v in row.values())
    own = load_file(base / "frozen/run-0/model.safetensors")
    control = load_file(base / "controls/shuffled/run-0/model.safetensors")
    assert any(not torch.equal(own[name], control[name]) for name in own)
    assert (tmp_path / "frozen-run-0.log").read_text().startswith("3 ")
    assert not any(Path(".scratch").glob("*")), "checkpoints of finished runs are removed"

    before = (base / "frozen/run-0/model.safetensors").read_bytes()
    tuned = runs.run_tune(params, "gpt2")
    assert [r["setting"] for r in tuned] == ["lora", "lora"]
    state = load_file(base / "lora/run-0/model.safetensors")
    assert any("lora_" in name for name in state)
    assert (base / "frozen/run-0/model.safetensors").read_bytes() == before

    runs.run_pretrain(params, "gpt2")
    assert (base / "frozen/run-0/model.safetensors").read_bytes() == before, "the same work gives the same bytes"


def test_tuning_without_a_pretrained_run_says_what_to_do(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(InputError, match="no pretrained run"):
        runs.run_tune(params, "biogpt")
