from __future__ import annotations

import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from ruamel.yaml import YAML
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


class _Killed(Exception):
    pass


def _train_until(params: Params, step: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Train and die at the start of ``step`` (from 0)."""
    original = TrainingData.batch

    def batch(self: TrainingData, number: int, slots: Any = None) -> Any:
        if number == step:
            raise _Killed
        return original(self, number, slots)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingData, "batch", batch)
        with pytest.raises(_Killed):
            _train(params, **options)


def _recipe(params: Params, **changes: Any) -> Params:
    return params.model_copy(update={"pretrain": params.pretrain.model_copy(update=changes)})


@pytest.mark.parametrize(("died", "resumed_from"), [(1, None), (2, 2), (3, 3), (5, 4)])
def test_a_killed_run_goes_on_bit_by_bit(
    in_project: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: int, resumed_from: int
) -> None:
    """Weights, losses (the sums since the last validation too), best validation and dropout, wherever it was killed."""
    params = _recipe(params, checkpoint_every=2)
    model, whole = _train(params)
    _train_until(params, died, monkeypatch, scratch=tmp_path)
    resumed, rest = _train(params, scratch=tmp_path)
    assert rest.resumed_from == resumed_from
    assert rest.history == whole.history
    assert (rest.best_step, rest.best_score) == (whole.best_step, whole.best_score)
    for name, value in _state(model).items():
        assert torch.equal(value, _state(resumed)[name]), name
    assert len(list(tmp_path.glob("step-*"))) == 1
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]


def test_a_damaged_checkpoint_is_not_gone_on_from(in_project: Path, params: Params, tmp_path: Path) -> None:
    _train(params, scratch=tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(b"not a checkpoint")
    _, result = _train(params, scratch=tmp_path)
    assert result.resumed_from is None


def test_early_stopping_waits_for_a_better_validation(
    in_project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    monkeypatch.setattr(loop, "validate", lambda *_: (next(scores), 1.0))
    _, result = _train(_recipe(params, steps=5, validate_every=1, patience=2))
    assert [row["step"] for row in result.history] == [1, 2, 3, 4]
    assert (result.best_step, result.best_score) == (2, 0.7)


def test_accumulated_parts_give_the_gradient_of_the_batch(in_project: Path, params: Params) -> None:
    """Without the contrastive loss, whose negatives are those of a part, parts change nothing but rounding."""
    histories, states = [], []
    for accumulation in (1, 2, 3):
        model, result = _train(
            _recipe(
                params, steps=2, validate_every=2, contrastive=False, auxiliary_weight=0.0, accumulation=accumulation
            )
        )
        histories.append(result.history[-1]["train_generation"])
        states.append(_state(model))
    assert histories[1:] == pytest.approx([histories[0]] * 2, rel=1e-5)
    for name, value in states[0].items():
        for other in states[1:]:
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_more_parts_than_samples_are_refused(params: Params) -> None:
    with pytest.raises(ValidationError, match="accumulation"):
        type(params.pretrain).model_validate(params.pretrain.model_dump() | {"batch_size": 2, "accumulation": 3})


_SCRIPT = """
import sys
from pathlib import Path
import torch
from medalign3d.params import load_params
from medalign3d.training import loop, runs
from medalign3d.training.data import TrainingData

torch.set_num_threads(1)
params = load_params("params.yaml")
data = TrainingData.from_files(params, 0)
model = runs.make_model(params, "gpt2", data, 7)
loop.train(model, data, params.pretrain, seed=7, device=torch.device("cpu"), label="test", scratch=Path(sys.argv[1]))
model.save(Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_sigkill_and_sigterm_at_any_moment_change_nothing(in_project: Path, params: Params, tmp_path: Path) -> None:
    """Real processes, ended at random moments; SIGTERM leaves a checkpoint and exits with 143."""
    recipe = _recipe(params, steps=150, validate_every=25, checkpoint_every=7)
    place = tmp_path / "place"
    place.mkdir()
    with (place / "params.yaml").open("w") as stream:
        YAML().dump(recipe.model_dump(mode="json"), stream)
    (place / "data").symlink_to((in_project / "data").resolve())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[2])}

    def start(scratch: str, out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _SCRIPT, str(tmp_path / scratch), str(tmp_path / out)]
        return subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(process: subprocess.Popen[str]) -> int:
        said = process.communicate(timeout=200)[0]
        assert process.returncode in (0, -signal.SIGKILL, 128 + signal.SIGTERM), said
        return process.returncode

    def checkpoints() -> list[str]:
        return sorted(path.name for path in (tmp_path / "killed").glob("step-*"))

    assert finish(start("whole", "expected")) == 0
    random = np.random.default_rng(5)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        before = checkpoints()
        process = start("killed", "found")
        while process.poll() is None and checkpoints() == before:
            time.sleep(0.02)
        time.sleep(float(random.uniform(0.0, 0.15)))
        process.send_signal(number)
        code = finish(process)
        if code == 0:
            break
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        if number == signal.SIGTERM:
            assert checkpoints() > before
    else:
        assert finish(start("killed", "found")) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "found"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


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
    monkeypatch.setattr(TrainingData, "batch", lambda self, step, slots: original(self, 0, slots))
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
