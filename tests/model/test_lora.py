"""Adapters move queries and values only, for every layout, and their files are PEFT's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from medalign3d.errors import ParameterError
from medalign3d.model.config import LoraConfig
from medalign3d.model.lora import adapted_layers, add_lora, find_targets, merge_lora, movable_parameters, save_adapter

WIDTH, HEADS, LAYERS, WORDS, RANK = 32, 4, 2, 50, 3


def _llama_like() -> dict[str, Any]:
    return {
        "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


MODELS: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=1,
                   eos_token_id=2)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                      intermediate_size=48, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=WORDS, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=1, eos_token_id=2)
    ),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_llama_like())),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_llama_like())),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, ffn_dim=48,
                  word_embed_proj_dim=WIDTH, max_position_embeddings=64)
    ),
    "biogpt": lambda: BioGptForCausalLM(
        BioGptConfig(vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                     intermediate_size=48, max_position_embeddings=64)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=HEADS,
                 decoder_start_token_id=0)
    ),
}  # fmt: skip
FUSED = ("gpt2", "gpt_neox", "bloom", "phi3")
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


def _make(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval().requires_grad_(False)


def _logits(model: Any) -> torch.Tensor:
    arguments = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    mask = torch.ones_like(IDS)
    return model(input_ids=IDS, attention_mask=mask, **arguments).logits


def _train(model: Any, steps: int = 20) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(_logits(model).flatten(0, 1), IDS.flatten()).backward()
        optimizer.step()


def _delta(layer: Any) -> torch.Tensor:
    """Change of the weight by output rows."""
    return layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight


def _rows(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value rows of a fused layout, written out independently."""
    if name == "gpt2":
        parts = torch.arange(3).repeat_interleave(WIDTH)
    elif name == "phi3":
        parts = torch.cat([torch.zeros(32), torch.ones(16), torch.full((16,), 2)])
    else:
        parts = torch.arange(3).repeat_interleave(WIDTH // HEADS).repeat(HEADS)
    return parts == 0, parts == 1, parts == 2


@pytest.mark.parametrize("name", sorted(MODELS))
def test_only_queries_and_values_move(name: str, tmp_path: Path) -> None:
    model = _make(name)
    before = _logits(model).detach()
    report = add_lora(model, LoraConfig(rank=RANK, alpha=6.0), seed=1)
    torch.testing.assert_close(_logits(model), before)
    assert report.fused == (name in FUSED)
    attentions = LAYERS * (3 if name == "t5" else 1)
    assert report.modules == attentions * (1 if name in FUSED else 2)
    _train(model)
    after = _logits(model).detach()
    assert not torch.allclose(after, before)
    if name in FUSED:
        query, key, value = _rows(name)
        for layer in adapted_layers(model):
            delta = _delta(layer).detach()
            assert float(delta[key].abs().max()) == 0.0
            assert torch.linalg.matrix_rank(delta[query]) == RANK
            assert torch.linalg.matrix_rank(delta[value]) == RANK
    else:
        names = {n for n, m in model.named_modules() if hasattr(m, "lora_A")}
        assert all(n.rpartition(".")[2] in ("q", "v", "q_proj", "v_proj") for n in names)

    # Vanilla PEFT reads the adapter.
    from peft import PeftModel

    save_adapter(model, tmp_path)
    reloaded = PeftModel.from_pretrained(_make(name), tmp_path).eval()
    torch.testing.assert_close(_logits(reloaded).detach(), after, rtol=0, atol=1e-6)

    # Merging folds it into the weights.
    merged = merge_lora(model)
    torch.testing.assert_close(_logits(merged).detach(), after, rtol=1e-4, atol=1e-5)
    assert not adapted_layers(merged)
    assert set(merged.state_dict()) == set(_make(name).state_dict())


def test_masked_entries_are_not_counted() -> None:
    model = _make("gpt2")
    report = add_lora(model, LoraConfig(rank=RANK), seed=0)
    # Per block: A is (2r, width); of B (3 width, 2r) queries see r columns and values the other r.
    expected = LAYERS * (2 * RANK * WIDTH + 2 * RANK * WIDTH)
    assert report.parameters == movable_parameters(model) == expected


def test_an_unknown_layout_asks_for_names() -> None:
    config = MptConfig(d_model=WIDTH, n_heads=HEADS, n_layers=LAYERS, vocab_size=WORDS, max_seq_len=64)
    model = MptForCausalLM(config).requires_grad_(False)
    with pytest.raises(ParameterError, match=r"model\.lora\.target_modules") as caught:
        add_lora(model, LoraConfig(rank=RANK))
    assert "Wqkv" in str(caught.value)


def test_names_that_move_keys_are_refused() -> None:
    with pytest.raises(ParameterError, match="keys that move"):
        add_lora(_make("llama"), LoraConfig(rank=RANK, target_modules=("q_proj", "k_proj", "v_proj")))
    with pytest.raises(ParameterError, match="does not exist"):
        add_lora(_make("llama"), LoraConfig(rank=RANK, target_modules=("queries",)))


def test_adapters_are_added_once_and_follow_the_seed() -> None:
    first, second, third = (_make("llama") for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (third, 2)):
        add_lora(model, LoraConfig(rank=RANK), seed)
    weights = [adapted_layers(model)[0].lora_A["default"].weight for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(ParameterError, match="already has adapters"):
        add_lora(first, LoraConfig(rank=RANK))


def test_given_names_win() -> None:
    assert find_targets(_make("t5"), ("q",)) == (("q",), None)
