"""Tiny backbones: formats, tokenizers, determinism, and that they learn; the text they learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from medalign3d.ehr.questions import QUESTIONS
from medalign3d.errors import InputError, ParameterError
from medalign3d.model import corpus
from medalign3d.model.backbones import (
    make_bert_tokenizer,
    make_language_checkpoint,
    make_vision_checkpoint,
    train_language_model,
)
from medalign3d.model.language import length_groups
from medalign3d.model.loading import load_language, load_vision
from medalign3d.params import Params


def test_the_corpus_is_deterministic_and_asks_everything() -> None:
    examples = corpus.generate_corpus(1500, 5)
    assert examples == corpus.generate_corpus(1500, 5)
    assert examples[:50] != corpus.generate_corpus(50, 6)
    asked = " ".join(example.question for example in examples)
    for question in QUESTIONS.values():
        assert question.text in asked
    answers = {example.answer for example in examples}
    assert {a for q in QUESTIONS.values() for a in q.answers.values()} <= answers
    assert {"A.", "B.", "C.", "yes", "no", "left", "right", "60s to 70s"} <= answers
    assert all(example.answer.strip() for example in examples)


def test_crude_diagnoses_follow_the_scores_but_not_always() -> None:
    import random

    rng = random.Random(0)
    records = [corpus.sample_record(rng) for _ in range(3000)]
    low = [record["dx3"] for record in records if record.get("mmse", 30) <= 18]
    high = [record["dx3"] for record in records if record.get("mmse", 0) >= 29]
    assert 0.6 < low.count("AD_DEM") / len(low) < 0.97
    assert 0.5 < high.count("NC") / len(high) < 0.97
    assert all(record["dx2"] == ("DEM" if record["dx3"] == "AD_DEM" else "NonDEM") for record in records)


def test_tokenizers_keep_numbers_whole(tiny_params: Params, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_params.model.language.models[kind].checkpoint)
    for number in range(131):
        ids = tokenizer(f" {number}", add_special_tokens=False)["input_ids"]
        assert len(ids) == 1, number
    text = "Age 74 years; female; MMSE 27/30; global CDR 0.5. Question: What is it? Answer: mild cognitive impairment"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text
    slashed = tokenizer(" 27/30", add_special_tokens=False)["input_ids"]
    assert len(slashed) == 3
    unseen = tokenizer(" Zygomatic?", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in unseen


def test_the_text_branch_tokenizer(tiny_params: Params) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_params.model.vision.checkpoint)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("MMSE 27/30; dementia.")["input_ids"])
    assert pieces == ["[CLS]", "mmse", "27", "/", "30", ";", "dementia", ".", "[SEP]"]
    assert tokenizer("age")["input_ids"][0] == tokenizer.cls_token_id
    assert tokenizer.unk_token_id not in tokenizer("Zygomatic arch")["input_ids"]
    assert len(make_bert_tokenizer(["a b"])) > 100


def test_folders_load_with_the_plain_library(tiny_params: Params, kind: str) -> None:
    folder = tiny_params.model.language.models[kind].checkpoint
    names = {path.name for path in Path(folder).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    assert model.config.model_type == kind
    assert len(AutoTokenizer.from_pretrained(folder)) == model.get_input_embeddings().weight.shape[0]


def test_a_written_model_answers_as_the_trained_one(tiny_params: Params, kind: str, tmp_path: Path) -> None:
    trained, tokenizer = train_language_model(kind, tiny_params.backbones.language, tiny_params.backbones.seed)
    loaded, _ = load_language(tiny_params.model.language.models[kind].checkpoint)
    ids = torch.tensor([tokenizer("Age 74 years; MMSE 27/30.", add_special_tokens=False)["input_ids"]])
    extra = {"decoder_input_ids": ids[:, :2]} if kind == "t5" else {}
    with torch.no_grad():
        first = trained(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits
        second = loaded.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_language_models_learn(kind: str, tiny_params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    from medalign3d.model.language import FrozenLanguageModel

    examples = corpus.generate_corpus(60, 99)

    def loss(checkpoint_steps: int) -> float:
        shape = tiny_params.backbones.language.model_copy(update={"steps": checkpoint_steps})
        model, tokenizer = train_language_model(kind, shape, 0)
        language = FrozenLanguageModel(model, tokenizer, 112, 8)
        prompts = language.encode_prompts([e.text for e in examples], [e.question for e in examples])
        answers = language.encode_answers([e.answer for e in examples])
        with torch.no_grad():
            return float(language.answer_loss(None, prompts, answers).mean())

    assert loss(30) < loss(1) - 1.0


def test_the_vision_checkpoint(tiny_params: Params, tmp_path: Path) -> None:
    parts = load_vision(tiny_params.model.vision.checkpoint)
    assert len(parts.blocks) == 2
    assert parts.queries.shape == (4, 32)
    assert float(torch.pdist(parts.queries).min()) > 0.01
    weight = parts.blocks[0].self_attn.qkv.weight
    assert 0.005 < float(weight.detach().std()) < 0.5
    slices = np.random.default_rng(0).integers(0, 255, (40, 24, 30), dtype=np.uint8)
    make_vision_checkpoint(slices, tiny_params, tmp_path / "again")
    again = load_vision(str(tmp_path / "again"))
    assert torch.equal(weight, again.blocks[0].self_attn.qkv.weight)
    assert torch.equal(parts.queries, again.queries)


def test_wrong_requests_are_named(tiny_params: Params, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="unknown kind"):
        make_language_checkpoint("llama", tiny_params, tmp_path / "x")
    with pytest.raises(InputError, match="slices"):
        make_vision_checkpoint(np.zeros((4, 8), dtype=np.uint8), tiny_params, tmp_path / "y")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_an_incomplete_checkpoint_is_refused(tiny_params: Params, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from medalign3d.errors import CheckpointError

    folder = tmp_path / "gpt2"
    shutil.copytree(tiny_params.model.language.models["gpt2"].checkpoint, folder)
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("h.0.attn.c_attn.weight"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"c_attn\.weight: \(32, 96\) not in the checkpoint"):
        load_language(str(folder))
    (folder / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_language(str(folder))


def test_length_groups_save_padding() -> None:
    lengths = [5, 90, 7, 88, 6, 91]
    groups = length_groups(lengths, overhead=30)
    assert sorted(index for group in groups for index in group) == list(range(6))
    assert len(groups) == 2
    assert length_groups([5, 5, 5], overhead=30) == [[0, 1, 2]]
    assert length_groups([9, 1], overhead=1000) == [[0, 1]]
