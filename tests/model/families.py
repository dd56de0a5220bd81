"""Tiny language models of many families, built from their configurations with weights large enough to matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BioGptConfig,
    BioGptForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

WIDTH, HEADS, LAYERS, POSITIONS = 32, 4, 2, 256
WINDOW = 16  # shorter than the prompts: what a sliding window sees must not depend on batch mates
SPREAD = 0.2


def _llama(words: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": words, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
        "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": SPREAD, **more,
    }  # fmt: skip


def _gpt(words: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": words, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS, "bos_token_id": 1, "eos_token_id": 2, **more,
    }  # fmt: skip


MAKERS: dict[str, Callable[[int], Any]] = {
    "bart": lambda n: BartForConditionalGeneration(
        BartConfig(vocab_size=n, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_ffn_dim=48,
                   encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, decoder_ffn_dim=48, dropout=0.1,
                   max_position_embeddings=POSITIONS, scale_embedding=True, pad_token_id=0, bos_token_id=1,
                   eos_token_id=2, decoder_start_token_id=2, init_std=SPREAD)
    ),
    "biogpt": lambda n: BioGptForCausalLM(
        BioGptConfig(**_gpt(n, intermediate_size=48, initializer_range=SPREAD, layerdrop=0.0))
    ),
    "bloom": lambda n: BloomForCausalLM(
        BloomConfig(vocab_size=n, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=1, eos_token_id=2,
                    initializer_range=SPREAD)
    ),
    "gemma": lambda n: GemmaForCausalLM(GemmaConfig(**_llama(n, head_dim=8))),
    "gemma3": lambda n: Gemma3ForCausalLM(Gemma3TextConfig(**_llama(n, head_dim=8, sliding_window=WINDOW))),
    "gpt2": lambda n: GPT2LMHeadModel(
        GPT2Config(vocab_size=n, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=1,
                   eos_token_id=2, initializer_range=SPREAD)
    ),
    "gpt_neox": lambda n: GPTNeoXForCausalLM(
        GPTNeoXConfig(**_gpt(n, intermediate_size=48, initializer_range=SPREAD))
    ),
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(**_llama(n))),
    "llama_tied": lambda n: LlamaForCausalLM(LlamaConfig(**_llama(n, tie_word_embeddings=True))),
    "mamba": lambda n: MambaForCausalLM(
        MambaConfig(vocab_size=n, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=4, bos_token_id=1,
                    eos_token_id=2, pad_token_id=0)
    ),
    "mistral": lambda n: MistralForCausalLM(MistralConfig(**_llama(n, head_dim=8, sliding_window=WINDOW))),
    "opt": lambda n: OPTForCausalLM(
        OPTConfig(**_gpt(n, ffn_dim=48, word_embed_proj_dim=WIDTH, pad_token_id=0, init_std=SPREAD, layerdrop=0.0))
    ),
    "phi": lambda n: PhiForCausalLM(PhiConfig(**_llama(n))),
    "phi3": lambda n: Phi3ForCausalLM(Phi3Config(**_llama(n))),
    "qwen2": lambda n: Qwen2ForCausalLM(Qwen2Config(**_llama(n))),
    "qwen3": lambda n: Qwen3ForCausalLM(Qwen3Config(**_llama(n, head_dim=8))),
    "qwen3_next": lambda n: Qwen3NextForCausalLM(
        Qwen3NextConfig(**_llama(
            n, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
            linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"],
        ))
    ),
    "t5": lambda n: T5ForConditionalGeneration(
        T5Config(vocab_size=n, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=HEADS, pad_token_id=0,
                 eos_token_id=2, decoder_start_token_id=0)
    ),
}  # fmt: skip
"""Family to a maker of a tiny model, given the size of the vocabulary."""


def make(family: str, words: int, seed: int = 0) -> Any:
    """A tiny model of a family with weights drawn by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MAKERS[family](words)
