"""Exact parameter counts of the full-size model, computed on the meta device: nothing is downloaded or allocated.

The configurations below describe ``Salesforce/blip2-itm-vit-g`` (Li et al., BLIP-2, 2023), ``google/flan-t5-xl``
(Chung et al., 2022), ``microsoft/BioGPT-Large`` (Luo et al., 2022) and
``stanford-crfm/BioMedLM`` (Bolton et al., 2024).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BioGptConfig,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    GPT2Config,
    T5Config,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings, Blip2VisionModel

from medalign3d.model.alignq import AlignQ
from medalign3d.model.config import LoraConfig, ModelConfig
from medalign3d.model.lora import add_lora
from medalign3d.model.sub_volumes import SubVolumeEmbedding

FULL_VOLUME_SIDE = 224
FULL_CUBE = 32
FULL_QUERIES = 32
FULL_CONTRASTIVE_SIZE = 256


def vision_config() -> Blip2VisionConfig:
    """ViT-g/14 of EVA-CLIP without its last block: 39 blocks, 1408 wide."""
    return Blip2VisionConfig(
        hidden_size=1408,
        intermediate_size=6144,
        num_hidden_layers=39,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )


def qformer_config(text_input: bool = True) -> Blip2QFormerConfig:
    """The query transformer of BLIP-2: BERT-base with cross-attention in every second layer."""
    return Blip2QFormerConfig(encoder_hidden_size=1408, use_qformer_text_input=text_input)


def language_configs() -> dict[str, Any]:
    """Configurations of the three published language models, by the names of ``params.yaml``."""
    return {
        "t5": T5Config(  # type: ignore[call-arg]
            vocab_size=32128,
            d_model=2048,
            d_kv=64,
            d_ff=5120,
            num_layers=24,
            num_heads=32,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        ),
        "biogpt": BioGptConfig(
            vocab_size=57717,
            hidden_size=1600,
            num_hidden_layers=48,
            num_attention_heads=25,
            intermediate_size=6400,
            max_position_embeddings=2048,
            pad_token_id=1,
            eos_token_id=2,
        ),
        "gpt2": GPT2Config(
            vocab_size=28896,
            n_positions=1024,
            n_embd=2560,
            n_layer=32,
            n_head=20,
            bos_token_id=28895,
            eos_token_id=28895,
        ),
    }


def count(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters, each shared one once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def build_language_model(config: Any) -> Any:
    """A language model of ``config`` on the current default device."""
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config)
    if config.model_type == "t5":
        # transformers ties T5's output layer to its embedding when it builds one; FLAN-T5's checkpoints have their own.
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.shared.weight))
    return model


def component_counts() -> dict[str, int]:
    """Parameters of every full-size component."""
    with torch.device("meta"):
        vision = Blip2VisionModel(vision_config())
        embedding = SubVolumeEmbedding(_full_config(), torch.empty(1408, device="meta"))
        queries = Blip2QFormerModel(qformer_config(text_input=False))
        with_text = Blip2QFormerModel(qformer_config())
        text_embeddings = Blip2TextEmbeddings(qformer_config())
        width = qformer_config().hidden_size
        counts = {
            "vision_blocks": count(vision.encoder),
            "vision_layer_norm": count(vision.post_layernorm),
            "sub_volume_projection": count(embedding.coarse.projection),
            "positions": embedding.coarse.positions.numel() + embedding.class_position.numel(),
            "qformer_queries_only": count(queries),
            "qformer_with_text": count(with_text),
            "text_embeddings": count(text_embeddings),
            "queries": FULL_QUERIES * width,
            "contrastive_projections": 3 * count(nn.Linear(width, FULL_CONTRASTIVE_SIZE)),
        }
        for name, config in language_configs().items():
            counts[f"language_{name}"] = count(build_language_model(config))
            counts[f"language_projection_{name}"] = count(nn.Linear(width, config.hidden_size))
    return counts


def alignq_trainable(text_branch: str) -> int:
    """Trainable parameters of the full-size AlignQ module (its temperature included)."""
    with torch.device("meta"):
        module = AlignQ(
            Blip2QFormerModel(qformer_config()),
            Blip2TextEmbeddings(qformer_config()),
            torch.empty(FULL_QUERIES, qformer_config().hidden_size, device="meta"),
            FULL_CONTRASTIVE_SIZE,
            text_branch,
        )
    return count(module, trainable_only=True)


def lora_count(name: str, rank: int) -> int:
    """Parameters that low-rank adapters of ``rank`` on Q and V add to a full-size language model."""
    with torch.device("meta"):
        model = build_language_model(language_configs()[name]).requires_grad_(False)
    return add_lora(model, LoraConfig(rank=rank, alpha=2.0 * rank)).parameters


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """Learnable parameters beside one language model.

    ``core`` is what the published figure counts: sub-volume projection, positions, query transformer (without text
    branch) and queries. ``shared`` adds layer norm, language projection, contrastive heads and temperature; ``full``
    also an own text branch with its embeddings.
    """

    language_model: str
    language_parameters: int
    core: int
    shared: int
    full: int
    core_lora_8: int
    core_lora_16: int


def parameter_table() -> list[ParameterRow]:
    """One row per published language model."""
    counts = component_counts()
    core = sum(counts[key] for key in ("sub_volume_projection", "positions", "qformer_queries_only", "queries"))
    rows = []
    for name in language_configs():
        outside = (
            counts["sub_volume_projection"]
            + counts["positions"]
            + counts["vision_layer_norm"]
            + counts[f"language_projection_{name}"]
        )
        rows.append(
            ParameterRow(
                language_model=name,
                language_parameters=counts[f"language_{name}"],
                core=core,
                shared=outside + alignq_trainable("shared"),
                full=outside + alignq_trainable("full"),
                core_lora_8=core + lora_count(name, 8),
                core_lora_16=core + lora_count(name, 16),
            )
        )
    return rows


def _full_config() -> ModelConfig:
    return ModelConfig(
        volume_shape=(FULL_VOLUME_SIDE,) * 3,
        pooling=1,
        cube=FULL_CUBE,
        vision_checkpoint="Salesforce/blip2-itm-vit-g",
        language_name="",
        language_checkpoint="",
    )
