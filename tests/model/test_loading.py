"""Real checkpoint formats, made small: shards, .bin files, a filled cache; and what must not be read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Blip2ForImageTextRetrieval

from medalign3d.errors import CheckpointError
from medalign3d.model import loading
from medalign3d.model.loading import load_language, load_vision
from medalign3d.params import Params

WEIGHTS, BIN = "model.safetensors", "pytorch_model.bin"


@pytest.fixture
def gpt2(tiny_params: Params, tmp_path: Path) -> Path:
    """A tiny GPT-2 folder that a test may change."""
    return Path(shutil.copytree(tiny_params.model.language.models["gpt2"].checkpoint, tmp_path / "gpt2"))


@pytest.fixture
def vision(tiny_params: Params, tmp_path: Path) -> Path:
    """A tiny BLIP-2 image-text-matching folder that a test may change."""
    return Path(shutil.copytree(tiny_params.model.vision.checkpoint, tmp_path / "vision"))


def _same(first: Any, second: Any) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_vision_checkpoint_has_the_names_of_the_published_one(vision: Path) -> None:
    """`Salesforce/blip2-itm-vit-g` is a Blip2ForImageTextRetrieval: the same class reads ours, and nothing is lost."""
    model, info = Blip2ForImageTextRetrieval.from_pretrained(vision, output_loading_info=True)
    assert not info["missing_keys"]
    parts = load_vision(str(vision))
    blocks = model.vision_model.encoder.layers.state_dict()
    assert all(torch.equal(value, blocks[name]) for name, value in parts.blocks.state_dict().items())
    qformer = model.qformer.state_dict()
    assert all(torch.equal(value, qformer[name]) for name, value in parts.qformer.state_dict().items())
    assert torch.equal(parts.queries.reshape(-1), model.query_tokens.reshape(-1))
    assert torch.equal(parts.image_projection.weight, model.vision_projection.weight)
    assert torch.equal(parts.text_projection.weight, model.text_projection.weight)


def test_shards_are_put_together(gpt2: Path) -> None:
    """FLAN-T5-XL comes in several files."""
    whole, _ = load_language(str(gpt2))
    tensors = load_file(gpt2 / WEIGHTS)
    (gpt2 / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, gpt2 / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in shards.items() for name in own}}
    (gpt2 / "model.safetensors.index.json").write_text(json.dumps(index))
    assert _same(load_language(str(gpt2))[0], whole)


def test_a_bin_file_with_old_buffers_is_read(gpt2: Path) -> None:
    """BioMedLM has nothing else, with the causal masks that older versions stored."""
    whole, _ = load_language(str(gpt2))
    tensors = load_file(gpt2 / WEIGHTS)
    (gpt2 / WEIGHTS).unlink()
    layers = {name.split(".attn.")[0] for name in tensors if ".attn." in name}
    old = {f"{layer}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for layer in layers}
    old |= {f"{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in layers}
    torch.save(tensors | old, gpt2 / BIN)
    assert _same(load_language(str(gpt2))[0], whole)


class _Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["torch", "legacy", "bare"])
def test_a_pickle_that_would_run_code_is_refused(gpt2: Path, tmp_path: Path, form: str) -> None:
    tensors = load_file(gpt2 / WEIGHTS)
    (gpt2 / WEIGHTS).unlink()
    made = tmp_path / "made"
    content = {**tensors, "transformer.extra": _Touch(made)}
    if form == "bare":
        (gpt2 / BIN).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, gpt2 / BIN, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_language(str(gpt2))
    assert not made.exists()


def test_code_beside_a_checkpoint_is_not_run(gpt2: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    config = json.loads((gpt2 / "config.json").read_text())
    config |= {"model_type": "other", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (gpt2 / "config.json").write_text(json.dumps(config))
    (gpt2 / "own.py").write_text(f"open({str(made)!r}, 'w').close()\n")
    with pytest.raises(CheckpointError):
        load_language(str(gpt2))
    assert not made.exists()


def test_tensors_that_differ_are_listed_with_their_shapes(gpt2: Path, vision: Path) -> None:
    tensors = load_file(gpt2 / WEIGHTS)
    missing = next(name for name in tensors if name.endswith("mlp.c_fc.weight"))
    other = next(name for name in tensors if name.endswith("attn.c_attn.bias"))
    shape = tuple(tensors[missing].shape)
    del tensors[missing]
    tensors[other] = tensors[other][:-3].clone()
    save_file(tensors, gpt2 / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_language(str(gpt2))
    said = str(caught.value)
    assert f"{missing}: {shape} not in the checkpoint" in said
    assert f"({32 * 3 - 3},) in the checkpoint, ({32 * 3},) by config.json" in said

    tensors = load_file(vision / WEIGHTS)
    name = next(n for n in tensors if "vision_model.encoder.layers.1" in n)
    del tensors[name]
    save_file(tensors, vision / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not in the checkpoint"):
        load_vision(str(vision))


_CACHED = """
import sys
from medalign3d.model.loading import load_language, read_config
from medalign3d.errors import CheckpointError
model, tokenizer = load_language("somebody/small", "main")
pinned, _ = load_language("somebody/small", "0123456789abcdef0123456789abcdef01234567")
print(sum(p.numel() for p in model.parameters()), sum(p.numel() for p in pinned.parameters()))
try:
    read_config("somebody/absent", "v1", "model.language.models.x.checkpoint")
except CheckpointError as error:
    print(error)
"""


def test_a_filled_cache_is_used_offline_and_an_absent_one_says_what_to_do(gpt2: Path, tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--somebody--small"
    (place / "snapshots").mkdir(parents=True)
    shutil.copytree(gpt2, place / "snapshots" / revision)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    environment = os.environ | {
        "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(loading.__file__).parents[2]),
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", _CACHED], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    counts, *said = result.stdout.splitlines()
    first, second = counts.split()
    assert first == second
    assert AutoConfig.from_pretrained(gpt2).model_type == "gpt2"
    assert "neither here nor can be downloaded" in said[0]
    assert "hf download somebody/absent --revision v1" in "\n".join(said)
