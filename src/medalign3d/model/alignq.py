"""AlignQ: learnable queries that read image features, and the text side of the image-text contrastive loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings

from medalign3d.errors import ParameterError
from medalign3d.model.losses import INITIAL_TEMPERATURE, clamp_temperature

QUERY_INIT_SD = 0.02


class AlignQ(nn.Module):
    """Queries with self-attention, cross-attention to image features, and a text branch.

    Parameters
    ----------
    qformer
        A query transformer built with ``use_qformer_text_input=True``.
    text_embeddings
        Its word and position embeddings.
    queries
        (L, H) start values, or a number L: then drawn from N(0, 0.02); equal queries would stay equal for ever.
    contrastive_size
        Width of the space in which image and text are compared.
    text_branch
        ``shared``: the text's feed-forward layers are those of the queries, embeddings frozen (about 154 M trainable
        at full size). ``full``: own feed-forward layers and trained embeddings (about 235 M).
    """

    def __init__(
        self,
        qformer: Blip2QFormerModel,
        text_embeddings: Blip2TextEmbeddings,
        queries: Tensor | int,
        contrastive_size: int,
        text_branch: str = "shared",
    ) -> None:
        super().__init__()
        hidden_size = qformer.config.hidden_size
        self.hidden_size = hidden_size
        self.qformer = qformer.requires_grad_(True)
        self.text_embeddings = text_embeddings
        if text_branch == "shared":
            for layer in self.qformer.encoder.layer:
                layer.intermediate, layer.output = layer.intermediate_query, layer.output_query
        elif text_branch != "full":
            raise ParameterError(
                "unknown text branch", where="model.alignq.text_branch", found=text_branch, expected="shared or full"
            )
        self.text_embeddings.requires_grad_(text_branch == "full")
        if isinstance(queries, int):
            queries = torch.empty(queries, hidden_size).normal_(0.0, QUERY_INIT_SD)
        self.queries = nn.Parameter(queries.detach().clone().float().reshape(-1, hidden_size))
        self.image_projection = nn.Linear(hidden_size, contrastive_size)
        self.record_projection = nn.Linear(hidden_size, contrastive_size)
        self.answer_projection = nn.Linear(hidden_size, contrastive_size)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(INITIAL_TEMPERATURE)))

    @property
    def temperature(self) -> Tensor:
        """The contrastive temperature, within its limits."""
        return clamp_temperature(self.log_temperature)

    def forward(self, features: Tensor) -> Tensor:
        """Query outputs; features (B, N, hidden of the vision transformer) -> (B, L, H)."""
        queries = self.queries.expand(features.shape[0], -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The text's [CLS] state; ids and mask (T, S) -> (T, H)."""
        hidden = self.qformer.dropout(self.qformer.layernorm(self.text_embeddings(input_ids=ids)))
        seen: Any = create_bidirectional_mask(config=self.qformer.config, inputs_embeds=hidden, attention_mask=mask)
        *layers, last = self.qformer.encoder.layer
        for layer in layers:
            hidden = layer(hidden, attention_mask=seen)
        # In the last layer only [CLS] is read: it asks, and all tokens answer.
        first = last.attention(
            hidden[:, :1], encoder_hidden_states=hidden, encoder_attention_mask=None if seen is None else seen[:, :, :1]
        )
        return last.feed_forward_chunk(first)[:, 0]

    def image_features(self, queries: Tensor) -> Tensor:
        """Unit vectors of the queries; (B, L, H) -> (B, L, d)."""
        return nn.functional.normalize(self.image_projection(queries), dim=-1)


class TextTokenizer:
    """The text branch's own tokenizer, padded at the end.

    Parameters
    ----------
    tokenizer
        A BERT-like Hugging Face tokenizer that starts texts with its [CLS] token.
    maximum_tokens
        Longer texts are cut.
    """

    def __init__(self, tokenizer: Any, maximum_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.maximum_tokens = maximum_tokens

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        batch = self.tokenizer(list(texts), truncation=True, max_length=self.maximum_tokens)
        return list(batch["input_ids"])

    def pad(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, both (T, S) int64."""
        batch = self.tokenizer.pad({"input_ids": list(sequences)}, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]
