"""The registered model: chosen on validation rows, complete in itself, and giving the pipeline's own answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medalign3d import tracking
from medalign3d.errors import InputError
from medalign3d.files import write_parquet
from medalign3d.params import Params, validate_params

SHAPE = (24, 24, 24)


@pytest.fixture(scope="module")
def project_with_model(tmp_path_factory: pytest.TempPathFactory, demo_params: Params) -> tuple[Path, Params]:
    """A folder with one tiny trained model, its backbones and predictions."""
    import torch

    from medalign3d.model.backbones import make_language_checkpoint, make_vision_checkpoint
    from medalign3d.model.composite import MedAlign3D
    from medalign3d.model.config import ModelConfig

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("registry")
    values = demo_params.model_dump()
    values["normalize"]["shape"] = list(SHAPE)
    values["language_models"] = ["gpt2"]
    values["backbones"]["vision"].update(hidden_size=32, layers=2, heads=2, steps=2, batch_size=8, image_size=24)
    values["backbones"]["qformer"].update(hidden_size=32, layers=2, heads=2)
    values["backbones"]["language"].update(hidden_size=32, layers=2, heads=2, steps=20, batch_size=16, sentences=300)
    values["model"]["alignq"].update(queries=4, contrastive_size=16)
    values["model"]["vision"]["checkpoint"] = str(root / "backbones/vision")
    values["model"]["language"]["models"]["gpt2"]["checkpoint"] = str(root / "backbones/gpt2")
    params = validate_params(values)
    slices = np.random.default_rng(0).integers(0, 255, (40, 24, 30), dtype=np.uint8)
    make_vision_checkpoint(slices, params, root / "backbones/vision")
    make_language_checkpoint("gpt2", params, root / "backbones/gpt2")
    model = MedAlign3D.from_checkpoints(ModelConfig.from_params(params, "gpt2"), 1)
    model.save(root / "data/models/gpt2/frozen/run-0")
    rows = [
        {
            "image_id": f"i{n}", "dataset": "ADNI", "language_model": "gpt2", "setting": "frozen",
            "text_ablation": "full", "run": 0, "split": "val", "question": "diagnosis_nc_ad",
            "predicted": "NC", "truth": ("NC", "AD_DEM")[n % 2],
        }
        for n in range(10)
    ]  # fmt: skip
    write_parquet(root / "data/evaluation/gpt2/predictions.parquet", pd.DataFrame(rows), {"simulated": "true"})
    return root, params


@pytest.fixture
def champion(project_with_model: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The registered model, loaded by its alias after the training folder's backbones were moved away."""
    import mlflow

    root, params = project_with_model
    monkeypatch.chdir(root)
    result = tracking.register_best(params, root)
    assert result["alias"] == "champion"
    previous = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    uri = f"sqlite:///{root / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    shutil.move(root / "backbones", root / "elsewhere")
    try:
        yield mlflow.pyfunc.load_model(f"models:/{params.tracking.registered_model}@champion")
    finally:
        shutil.move(root / "elsewhere", root / "backbones")
        mlflow.set_tracking_uri(previous[0])
        mlflow.set_registry_uri(previous[1])


@pytest.mark.slow
def test_the_champion_answers_as_the_pipeline_does_and_refuses_bad_input(project_with_model, champion):
    from mlflow.exceptions import MlflowException

    from medalign3d.evaluation.predict import answer_one

    root, _ = project_with_model
    volume = np.random.default_rng(1).integers(0, 255, SHAPE, dtype=np.uint8)
    np.save(root / "scan.npy", volume)
    questions = pd.DataFrame(
        {
            "question": ["diagnosis_nc_ad", "diagnosis_nc_ad", "diagnosis_nc_ad"],
            "text": ["Age 74 years; female; MMSE 22/30.", "Age 74 years; female; MMSE 22/30.", ""],
            "image_path": [None, str(root / "scan.npy"), str(root / "scan.npy")],
        }
    )
    answers = champion.predict(questions)
    assert list(answers.columns) == ["answer", "generated", "probabilities"]
    shutil.move(root / "elsewhere", root / "backbones")  # the pipeline's own model stands on the original backbones
    try:
        for row, (text, image) in enumerate(zip(questions["text"], (None, volume, volume), strict=True)):
            expected = answer_one(root / "data/models/gpt2/frozen/run-0", image, text, "diagnosis_nc_ad")
            assert answers["answer"][row] == expected["answer"]
            assert json.loads(answers["probabilities"][row]) == pytest.approx(expected["probabilities"], abs=1e-6)
    finally:
        shutil.move(root / "backbones", root / "elsewhere")
    nested = champion.predict(pd.DataFrame({"question": ["diagnosis_nc_ad"], "text": [""], "image": [volume.tolist()]}))
    assert nested["probabilities"][0] == answers["probabilities"][2]
    with pytest.raises(MlflowException):
        champion.predict(pd.DataFrame({"text": ["no question"]}))
    with pytest.raises(InputError, match="not a normalized volume"):
        champion.predict(pd.DataFrame({"question": ["sex"], "image": [volume[:5].tolist()]}))


@pytest.mark.slow
def test_the_same_weights_are_registered_once(project_with_model, monkeypatch):
    root, params = project_with_model
    monkeypatch.chdir(root)
    first, second = tracking.register_best(params, root), tracking.register_best(params, root)
    assert first == second
    client, _ = tracking.prepare(params, root)
    versions = client.search_model_versions(f"name = '{params.tracking.registered_model}'")
    assert len(versions) == 1
    assert versions[0].tags["simulated"] == "true"
    assert versions[0].tags["language_model"] == "gpt2"


def test_with_tracking_off_the_choice_is_still_made(project_with_model):
    root, params = project_with_model
    values = params.model_dump()
    values["tracking"]["uri"] = "none"
    result = tracking.register_best(validate_params(values), root)
    assert result["language_model"] == "gpt2"
    assert result["registered_model"] is None


def test_registering_before_predicting_says_what_to_do(tmp_path, demo_params):
    with pytest.raises(InputError, match="dvc repro"):
        tracking.register_best(demo_params, tmp_path)
