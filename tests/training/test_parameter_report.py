"""``medalign3d params``: the published counts, and those of the tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from medalign3d.cli import main
from medalign3d.params import Params
from medalign3d.training.data import TrainingData
from medalign3d.training.parameter_report import parameter_lines
from medalign3d.training.runs import make_model


def test_the_command_prints_the_paper_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Built from the paper profile, without a checkpoint or a network."""
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["params", "--profile", "paper"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert rows["FLAN-T5-XL"][:6] == ["2849.76", "151.79", "153.95", "234.48", "156.50", "161.22"]
    assert rows["BioGPT-Large"][4:6] == ["154.24", "156.70"]
    assert rows["BioMedLM"][:2] == ["2594.25", "151.79"]
    assert rows["BioMedLM"][4:6] == ["154.41", "157.03"]


def test_a_tiny_model_is_counted_from_its_folder(in_project: object, params: Params) -> None:
    said = parameter_lines(params)
    data = TrainingData.from_files(params, 0)
    plain = params.model_copy(
        update={
            name: getattr(params, name).model_copy(update={"auxiliary_weight": 0.0}) for name in ("pretrain", "tune")
        }
    )
    model = make_model(plain, "gpt2", data, 0)
    assert f"{model.trainable_count() / 1e6:.3f}" in said[-1]
    model.add_lora()
    assert f"{model.trainable_count() / 1e6:.3f}" in said[-1]
