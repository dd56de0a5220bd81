"""Any Hugging Face language model gives results that batch mates, padding and caches do not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import MAKERS, POSITIONS, WIDTH, make
from model_examples import ANSWERS, CANDIDATES, QUESTIONS, TEXTS
from tokenizers import processors
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from medalign3d.errors import CheckpointError, InputError, ParameterError
from medalign3d.model.backbones import _make_byte_bpe
from medalign3d.model.language import FrozenLanguageModel, format_question

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
PREFIX = 4
NEW = 6


def _tokenizer(adds_start: bool = True, pad: bool = False, more_ends: tuple[str, ...] = ()) -> Any:
    """Byte-level BPE as Llama 3 has it: starts a text with its own token, and knows no padding."""
    plain = _make_byte_bpe([*TEXTS, *QUESTIONS, *ANSWERS], ["<pad>", "<s>", "</s>", *more_ends])
    if adds_start:
        plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special: dict[str, str] = {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special, **({"pad_token": "<pad>"} if pad else {}))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return _tokenizer()


def _language(family: str, tokenizer: Any, **options: Any) -> FrozenLanguageModel:
    return FrozenLanguageModel(make(family, len(tokenizer)), tokenizer, 120, NEW, PREFIX, **options)


def _prefix(language: FrozenLanguageModel, count: int = 5) -> torch.Tensor:
    noise = torch.randn(count, PREFIX, WIDTH, generator=torch.Generator().manual_seed(5))
    return noise * language.embedding_rms()


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("family", sorted(MAKERS))
@torch.no_grad()
def test_batch_mates_padding_and_caches_change_nothing(family: str, tokenizer: Any, with_image: bool) -> None:
    language = _language(family, tokenizer)
    prompts = language.encode_prompts(TEXTS, QUESTIONS)
    assert len({len(prompt) for prompt in prompts}) == 5, "prompts of different lengths"
    answers = language.encode_answers(ANSWERS)
    candidates = [language.encode_answers(group) for group in CANDIDATES]
    prefix = _prefix(language) if with_image else None
    losses = language.answer_loss(prefix, prompts, answers)
    scores = language.score(prefix, prompts, candidates)
    generated = language.generate(prefix, prompts)
    torch.testing.assert_close(scores, language.score(prefix, prompts, candidates, cached=False), **TOLERANCE)
    assert generated == language.generate(prefix, prompts, cached=False)
    for row in range(5):
        part = slice(row, row + 1)
        own = None if prefix is None else prefix[part]
        torch.testing.assert_close(language.answer_loss(own, prompts[part], answers[part]), losses[part], **TOLERANCE)
        count = len(candidates[row])
        alone = language.score(own, prompts[part], candidates[part])
        torch.testing.assert_close(alone, scores[part, :count], **TOLERANCE)
        assert language.generate(own, prompts[part]) == [generated[row]]
        for column, candidate in enumerate(candidates[row]):
            loss = language.answer_loss(own, prompts[part], [candidate])
            torch.testing.assert_close(scores[part, column], -loss, **TOLERANCE)


def _next_token(language: FrozenLanguageModel, prefix: torch.Tensor, prompt: list[int], answer: list[int]) -> int:
    """The most likely next token, by the plainest use of the model: one sequence, no padding, no cache."""
    model = language.model
    table = model.get_input_embeddings()
    inputs = torch.cat([prefix, table(torch.tensor([prompt]))], dim=1)
    if model.config.is_encoder_decoder:
        hidden = model.get_encoder()(inputs_embeds=inputs).last_hidden_state
        start = torch.tensor([[model.config.decoder_start_token_id, *answer]])
        output = model(encoder_outputs=BaseModelOutput(last_hidden_state=hidden), decoder_input_ids=start)
    else:
        written = table(torch.tensor([answer])) if answer else inputs[:, :0]
        output = model(inputs_embeds=torch.cat([inputs, written], dim=1))
    return int(output.logits[0, -1].argmax())


@pytest.mark.parametrize("family", sorted(MAKERS))
@torch.no_grad()
def test_greedy_generation_equals_a_manual_loop(family: str, tokenizer: Any) -> None:
    language = _language(family, tokenizer)
    prompts = language.encode_prompts(TEXTS, QUESTIONS)
    prefix = _prefix(language)
    expected = []
    for row, prompt in enumerate(prompts):
        answer: list[int] = []
        while len(answer) < NEW and (not answer or answer[-1] != language.eos_id):
            answer.append(_next_token(language, prefix[row : row + 1], prompt, answer))
        kept = [token for token in answer if token != language.eos_id]
        expected.append(tokenizer.decode(kept, skip_special_tokens=True).strip())
    assert language.generate(prefix, prompts) == expected


@pytest.mark.parametrize("family", sorted(MAKERS))
@torch.no_grad()
def test_the_visual_prefix_has_the_scale_of_words(family: str, tokenizer: Any) -> None:
    language = _language(family, tokenizer)
    plain = float(language.model.get_input_embeddings().weight.square().mean().sqrt())
    scale = WIDTH**0.5 if family in ("gemma", "gemma3", "biogpt", "bart") else 1.0
    assert language.embedding_rms() == pytest.approx(scale * plain, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gemma", "bart", "bloom"])
def test_only_the_prefix_gets_gradients(family: str, tokenizer: Any) -> None:
    language = _language(family, tokenizer)
    language.train()
    assert not language.model.training
    prefix = _prefix(language, 1).requires_grad_(True)
    prompts = language.encode_prompts(TEXTS[:1], QUESTIONS[:1])
    language.answer_loss(prefix, prompts, language.encode_answers(ANSWERS[:1])).sum().backward()
    assert prefix.grad.any()
    assert all(parameter.grad is None for parameter in language.model.parameters())


@pytest.mark.parametrize("family", ["bart", "llama", "opt"])
def test_the_end_token_stops_generation(family: str, tokenizer: Any) -> None:
    language = _language(family, tokenizer)
    word = int(tokenizer(" dementia", add_special_tokens=False)["input_ids"][0])
    calls: list[int] = []

    def write(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        forced = torch.full_like(logits, -100.0)
        forced[..., word if len(calls) < 3 else language.eos_id] = 100.0
        return forced

    handle = language.model.get_output_embeddings().register_forward_hook(write)
    answers = language.generate(None, language.encode_prompts(TEXTS, QUESTIONS))
    handle.remove()
    assert answers == [tokenizer.decode([word, word]).strip()] * 5
    assert len(calls) == 3


def test_every_end_token_of_a_chat_model_stops_generation() -> None:
    tokenizer = _tokenizer(more_ends=("<end_of_turn>",))
    model = make("llama", len(tokenizer))
    end, word = 3, int(tokenizer("dementia", add_special_tokens=False)["input_ids"][0])
    model.generation_config.eos_token_id = [2, end, word]
    language = FrozenLanguageModel(model, tokenizer, 120, NEW, PREFIX)
    assert language.stop_ids == {2, end}, "an ordinary word ends nothing"


def test_a_tokenizer_that_starts_texts_does_so_once(tokenizer: Any) -> None:
    language = _language("llama", tokenizer)
    prompts = language.encode_prompts(TEXTS, QUESTIONS)
    assert all(prompt[0] == 1 and prompt.count(1) == 1 for prompt in prompts)
    assert all(1 not in answer for answer in language.encode_answers(ANSWERS))
    text = tokenizer.decode([*prompts[0], *language.encode_answers(ANSWERS)[0]], skip_special_tokens=True)
    assert text == f"{TEXTS[0]} {format_question(QUESTIONS[0])} {ANSWERS[0]}"
    without = _language("llama", _tokenizer(adds_start=False, pad=True))
    assert all(1 not in prompt for prompt in without.encode_prompts(TEXTS, QUESTIONS))


def test_models_that_cannot_share_a_cache_are_known(tokenizer: Any) -> None:
    exact = {family: _language(family, tokenizer).cacheable for family in sorted(MAKERS)}
    assert {family for family, cacheable in exact.items() if not cacheable} == {
        "bart", "bloom", "mamba", "qwen3_next", "t5"  # encoder-decoders have a cache of their own
    }  # fmt: skip
    windowed = _language("mistral", tokenizer)
    short, long = [[1] * 8], [[1] * 8, [1] * 14]
    assert windowed._may_cache(None, short, 4)
    assert not windowed._may_cache(None, long, 4)


def test_what_does_not_fit_is_named(tokenizer: Any) -> None:
    for family in ("llama", "bart"):
        with pytest.raises(ParameterError, match="maximum_prompt_tokens"):
            FrozenLanguageModel(make(family, len(tokenizer)), tokenizer, POSITIONS, NEW, PREFIX)
        language = _language(family, tokenizer)
        with pytest.raises(InputError, match="longer than the language model's positions"):
            language.answer_loss(None, [[5] * (POSITIONS + 1)], [[5, 2]])
    with pytest.raises(CheckpointError, match="do not belong together"):
        FrozenLanguageModel(make("llama", len(tokenizer) - 1), tokenizer, 120, NEW, PREFIX)
