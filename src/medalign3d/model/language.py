"""A frozen Hugging Face language model behind one interface, whether decoder-only or encoder-decoder.

The sequence is ``visual prefix | record | question | answer + EOS``, contiguous, padded at the end only; an
encoder-decoder reads the first three (and EOS) with its encoder and writes the answer with its decoder. Padding at the
end keeps positions right without any position ids and lets a causal model run without an attention mask, so batch
mates cannot change a result. The record is cut to fit, the question never.

A shared key-value cache holds the padding of shorter prompts. That is harmless where every layer attends by a mask to
the whole past; a sliding window shorter than the sequence would count the padding, and a recurrent layer would read it.
Such models are scored and generate without a cache: slower, and right.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput

from medalign3d.errors import CheckpointError, InputError, ParameterError
from medalign3d.model.vision import native_precision

IGNORED = -100
CACHEABLE_LAYERS = ("full_attention", "sliding_attention")


def format_question(question: str) -> str:
    """The wording in which a question is put to every language model."""
    return f"Question: {question} Answer:"


def replace_slow_gelu(module: nn.Module) -> None:
    """Replace ``gelu_new`` by the fused tanh GELU: equal to 2.4e-7, and much less memory in the backward pass."""
    for name, child in module.named_children():
        if isinstance(child, NewGELUActivation):
            setattr(module, name, nn.GELU(approximate="tanh"))
        else:
            replace_slow_gelu(child)


WRITTEN_OUT_NORMS = (
    "T5LayerNorm", "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm",
)  # fmt: skip


def replace_slow_norms(module: nn.Module) -> None:
    """Replace root-mean-square norms that are written out step by step by torch's own.

    Equal in float32. In half precision the written-out ones keep three times their input for the backward pass.
    """
    for name, child in module.named_children():
        if type(child).__name__ in WRITTEN_OUT_NORMS:
            written: Any = child
            norm = nn.RMSNorm(written.weight.numel(), eps=float(written.variance_epsilon), device="meta")
            norm.weight = written.weight
            setattr(module, name, norm.train(child.training))
        else:
            replace_slow_norms(child)


def _pad(sequences: Sequence[Sequence[int]], value: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad at the end; ids (B, S) and lengths (B,), int64."""
    longest = max(1, max(len(sequence) for sequence in sequences))
    ids = torch.tensor([[*sequence, *([value] * (longest - len(sequence)))] for sequence in sequences])
    return ids.to(device), torch.tensor([len(sequence) for sequence in sequences], device=device)


PASS_OVERHEAD = {"cpu": 160, "cuda": 400}
"""What one more pass costs, in tokens: through a tiny model of the demo on a CPU, a full-size one on a GPU."""


def length_groups(lengths: Sequence[int], overhead: int = 400) -> list[list[int]]:
    """Split a batch into groups of similar length where that saves more padding than another pass costs.

    Parameters
    ----------
    lengths
        Tokens of each sequence.
    overhead
        What one more pass costs, in tokens.

    Returns
    -------
    list of list of int
        Indices by group; a single group is in the original order.

    Examples
    --------
    >>> length_groups([10, 90, 12, 88], overhead=50)
    [[0, 2], [3, 1]]
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])

    def split(start: int, stop: int) -> list[list[int]]:
        whole = (stop - start) * lengths[order[stop - 1]]
        costs = [
            (middle - start) * lengths[order[middle - 1]] + (stop - middle) * lengths[order[stop - 1]]
            for middle in range(start + 1, stop)
        ]
        if not costs or min(costs) + overhead >= whole:
            return [order[start:stop]]
        middle = start + 1 + costs.index(min(costs))
        return split(start, middle) + split(middle, stop)

    groups = split(0, len(lengths))
    return groups if len(groups) > 1 else [list(range(len(lengths)))]


def _steps(lengths: Tensor, longest: int) -> Tensor:
    """(B, longest) bool: which positions lie before each sequence's end."""
    return torch.arange(longest, device=lengths.device)[None, :] < lengths[:, None]


class FrozenLanguageModel(nn.Module):
    """Prompts, answer losses, candidate scores and greedy generation with a frozen language model.

    Parameters
    ----------
    model
        ``AutoModelForCausalLM`` or ``AutoModelForSeq2SeqLM``; frozen and kept in evaluation mode here.
    tokenizer
        Its tokenizer.
    maximum_prompt_tokens
        Longest record + question, in tokens; a question longer than this is kept whole and the record left out.
    maximum_new_tokens
        Longest generated answer, in tokens.
    prefix_length
        Number of visual tokens; only checked against the model's positions.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        maximum_prompt_tokens: int,
        maximum_new_tokens: int,
        prefix_length: int = 0,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        replace_slow_gelu(self.model)
        replace_slow_norms(self.model)
        self.tokenizer = tokenizer
        self.maximum_prompt_tokens = maximum_prompt_tokens
        self.maximum_new_tokens = maximum_new_tokens
        config = model.config
        self.encoder_decoder = bool(config.is_encoder_decoder)
        rows = model.get_input_embeddings().weight.shape[0]
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else config.eos_token_id
        if isinstance(end, (list, tuple)):
            end = end[0] if end else None
        if end is None or not 0 <= end < rows:
            raise CheckpointError(
                "a language model has no end-of-sequence token in its vocabulary",
                found=end,
                expected=f"a token id below {rows}",
                remedy="choose a model whose tokenizer defines eos_token",
            )
        if len(tokenizer) > rows:
            raise CheckpointError(
                "tokenizer and language model do not belong together",
                found=f"a tokenizer of {len(tokenizer)} tokens",
                expected=f"at most {rows}, the rows of the model's embedding",
            )
        self.eos_id = int(end)
        self.stop_ids = self._find_stop_ids()
        # Padding is never attended to and never a target: any id inside the vocabulary will do.
        self.pad_id = self.eos_id
        if self.encoder_decoder:
            start = config.decoder_start_token_id
            if start is None:
                raise CheckpointError(
                    "an encoder-decoder model does not say how its answers start",
                    where="config.json: decoder_start_token_id",
                    found="nothing",
                    expected="a token id",
                )
            self.start_id = int(start)
        text_config = config.get_text_config()
        limit = getattr(text_config, "max_position_embeddings", None)
        self.position_limit = int(limit) if isinstance(limit, int) else None
        # An encoder-decoder writes its answer at positions of its own.
        written = 0 if self.encoder_decoder else maximum_new_tokens
        longest = prefix_length + maximum_prompt_tokens + written
        if self.position_limit is not None and longest > self.position_limit:
            raise ParameterError(
                "prompts can be longer than the language model's positions",
                where="model.language.maximum_prompt_tokens",
                found=f"{prefix_length} visual + {maximum_prompt_tokens} prompt + {written} new tokens",
                expected=f"at most {self.position_limit}",
            )
        parameters = inspect.signature(model.forward).parameters
        kinds = getattr(text_config, "layer_types", None) or ("full_attention",)
        self.cacheable = (
            not self.encoder_decoder
            and "position_ids" in parameters
            and not getattr(model, "_is_stateful", False)
            and all(kind in CACHEABLE_LAYERS for kind in kinds)
        )
        window = getattr(text_config, "sliding_window", None)
        self.window = int(window) if isinstance(window, int) else None
        self._start_ids = self._find_start_ids()
        self._joiner = self._find_joiner()
        self._question_ids: dict[str, list[int]] = {}
        self._answer_ids: dict[str, list[int]] = {}

    # -- modes ---------------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> FrozenLanguageModel:
        """Set the mode; a frozen model never leaves evaluation mode, only the dropout of its adapters follows."""
        super().train(False)
        for module in self.modules():
            dropout = getattr(module, "lora_dropout", None)
            if isinstance(dropout, nn.Module):
                dropout.train(mode)
        self.training = mode
        return self

    @property
    def hidden_size(self) -> int:
        """Width of the input embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.get_input_embeddings().weight.device

    @torch.no_grad()
    def embedding_rms(self) -> float:
        """Root mean square of the input embeddings as the blocks see them (some models scale them by sqrt(width))."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        ids = torch.arange(0, rows, max(1, rows // 4096), device=self.device)
        return float(self.embed(ids[None]).float().square().mean().sqrt())

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _find_start_ids(self) -> list[int]:
        """Special tokens that the tokenizer puts before a text (BioGPT and Llama have one, GPT-2 and T5 none)."""
        plain, special = self._ids("a"), list(self.tokenizer("a")["input_ids"])
        for start in range(len(special) - len(plain) + 1):
            if special[start : start + len(plain)] == plain:
                return special[:start]
        return []

    def _find_stop_ids(self) -> frozenset[int]:
        """Every token that ends an answer: some chat models have several."""
        found: set[int] = set()
        for source in (self.model.config, getattr(self.model, "generation_config", None)):
            ids = getattr(source, "eos_token_id", None)
            found.update(ids if isinstance(ids, (list, tuple)) else () if ids is None else (ids,))
        # A configuration that was never adapted to its tokenizer names an ordinary word here.
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return frozenset({self.eos_id, *(found & special)})

    def _find_joiner(self) -> str:
        """What must stand before a following segment so that separately tokenized segments join with one blank."""
        first = self._ids("age")
        for joiner in (" ", ""):
            if self.tokenizer.decode(first + self._ids(f"{joiner}yes")).strip() == "age yes":
                return joiner
        return " "

    def encode_prompts(self, texts: Sequence[str], questions: Sequence[str]) -> list[list[int]]:
        """Token ids of record and question; the record is cut from its end to fit, the question never."""
        texts = [text.strip() for text in texts]
        kept = [text for text in texts if text]
        record_ids = (
            iter(self.tokenizer(kept, add_special_tokens=False, verbose=False)["input_ids"]) if kept else iter([])
        )
        prompts = []
        for text, question in zip(texts, questions, strict=True):
            if question not in self._question_ids:
                self._question_ids[question] = self._ids(self._joiner + format_question(question))
            end = [self.eos_id] if self.encoder_decoder else []
            fixed = len(self._start_ids) + len(self._question_ids[question]) + len(end)
            room = max(0, self.maximum_prompt_tokens - fixed)
            record = list(next(record_ids))[:room] if text else []
            prompts.append([*self._start_ids, *record, *self._question_ids[question], *end])
        return prompts

    def encode_answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of answers, each with EOS."""
        for answer in answers:
            if answer not in self._answer_ids:
                ids = self._ids(self._joiner + answer.strip())
                if not ids:
                    raise InputError("an answer has no tokens", found=repr(answer), expected="text")
                self._answer_ids[answer] = [*ids, self.eos_id]
        return [self._answer_ids[answer] for answer in answers]

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings; (B, S) -> (B, S, D)."""
        return self.model.get_input_embeddings()(ids)

    def _with_prefix(self, prefix: Tensor | None, ids: Tensor) -> Tensor:
        """Visual prefix and embedded tokens, (B, L + S, D)."""
        embedded = self.embed(ids)
        return embedded if prefix is None else torch.cat([prefix.to(embedded.dtype), embedded], dim=1)

    def _check_length(self, length: int) -> None:
        if self.position_limit is not None and length > self.position_limit:
            raise InputError(
                "a sequence is longer than the language model's positions",
                found=f"{length} tokens",
                expected=f"at most {self.position_limit}",
                remedy="lower model.language.maximum_prompt_tokens or shorten the question",
            )

    def _may_cache(self, prefix: Tensor | None, prompts: Sequence[Sequence[int]], new_tokens: int) -> bool:
        """Whether a key-value cache shared by prompts of different lengths gives exact results."""
        if not self.cacheable or self.window is None:
            return self.cacheable
        longest = max(len(prompt) for prompt in prompts) + (0 if prefix is None else prefix.shape[1])
        return longest + new_tokens <= self.window

    @contextlib.contextmanager
    def _only_logits_at(self, rows: Tensor, columns: Tensor) -> Iterator[None]:
        """Send only the hidden states at (rows, columns) through the output layer.

        A hook before the output layer, rather than a call of it, keeps whatever a model does around that layer
        (scaling, soft-capping) and works for every architecture. Logits come out as (1, positions, vocabulary).
        """

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0][rows, columns][None], *inputs[1:])

        handle = self.model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    # -- losses and scores ---------------------------------------------------------------------------------------------

    def answer_loss(
        self, prefix: Tensor | None, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Mean cross-entropy over answer and EOS tokens of each sample.

        Parameters
        ----------
        prefix
            (B, L, D) visual tokens, or None for text only.
        prompts, answers
            From :meth:`encode_prompts` and :meth:`encode_answers`.

        Returns
        -------
        Tensor
            (B,) float32.
        """
        prefix_length = 0 if prefix is None else prefix.shape[1]
        groups = length_groups(
            [prefix_length + len(p) + len(a) for p, a in zip(prompts, answers, strict=True)],
            PASS_OVERHEAD.get(self.device.type, 400),
        )
        if len(groups) == 1:
            return self._answer_loss(prefix, prompts, answers)
        losses = [
            self._answer_loss(
                None if prefix is None else prefix[group], [prompts[i] for i in group], [answers[i] for i in group]
            )
            for group in groups
        ]
        place = torch.tensor([index for group in groups for index in group], device=self.device).argsort()
        return torch.cat(losses)[place]

    def _answer_loss(
        self, prefix: Tensor | None, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> Tensor:
        with native_precision(self.device, self.model.get_input_embeddings().weight.dtype):
            return self._native_answer_loss(prefix, prompts, answers)

    def _native_answer_loss(
        self, prefix: Tensor | None, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> Tensor:
        # Built on the CPU: sizes that depend on values would make a GPU wait.
        counts = [len(answer) for answer in answers]
        lengths = torch.tensor(counts, device=self.device)
        targets = torch.tensor([token for answer in answers for token in answer], device=self.device)
        rows = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)], device=self.device)
        offset = torch.tensor([place for count in counts for place in range(count)], device=self.device)
        if self.encoder_decoder:
            hidden, mask = self._encode(prefix, prompts)
            with self._only_logits_at(rows, offset):
                logits = self._decode(hidden, mask, answers)
        else:
            ids, used = _pad(
                [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)],
                self.pad_id,
                self.device,
            )
            inputs = self._with_prefix(prefix, ids)
            self._check_length(inputs.shape[1])
            columns = (inputs.shape[1] - ids.shape[1]) + used[rows] - lengths[rows] + offset
            with self._only_logits_at(rows, columns):
                logits = self.model(inputs_embeds=inputs, use_cache=False).logits
        losses = nn.functional.cross_entropy(logits[0].float(), targets, reduction="none")
        return torch.zeros(len(answers), device=self.device).index_add(0, rows, losses) / lengths

    def _encode(self, prefix: Tensor | None, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Encoder states (B, L + S, D) and mask of an encoder-decoder model."""
        ids, lengths = _pad(prompts, self.pad_id, self.device)
        inputs = self._with_prefix(prefix, ids)
        self._check_length(inputs.shape[1])
        mask = _steps(lengths + (inputs.shape[1] - ids.shape[1]), inputs.shape[1]).long()
        encoder = self.model.get_encoder()
        return encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state, mask

    def _decode(self, hidden: Tensor, mask: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the decoder for answers that start with the model's start token."""
        ids, _ = _pad([[self.start_id, *answer[:-1]] for answer in answers], self.pad_id, self.device)
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=ids,
            use_cache=False,
        )
        return output.logits

    @torch.no_grad()
    def score(
        self,
        prefix: Tensor | None,
        prompts: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[Sequence[int]]],
        cached: bool = True,
    ) -> Tensor:
        """Mean token log-likelihood of each candidate (EOS included), which is minus its loss.

        The prompt runs once for all of its candidates: shared key-value cache of a decoder-only model, shared encoder
        states of an encoder-decoder.

        Parameters
        ----------
        prefix
            (B, L, D) visual tokens, or None.
        prompts
            B prompts.
        candidates
            B lists of candidates; shorter lists are filled with minus infinity.
        cached
            False scores every candidate with its own full pass (slower; for checks).

        Returns
        -------
        Tensor
            (B, most candidates) float32.
        """
        counts = [len(group) for group in candidates]
        owner = torch.arange(len(prompts), device=self.device).repeat_interleave(
            torch.tensor(counts, device=self.device)
        )
        flat = [candidate for group in candidates for candidate in group]
        longest = max((len(candidate) for candidate in flat), default=0)
        if cached and (self.encoder_decoder or self._may_cache(prefix, prompts, longest)):
            values = self._score_shared(prefix, prompts, flat, owner)
        else:
            own_prefix = None if prefix is None else prefix[owner]
            values = -self.answer_loss(own_prefix, [prompts[int(i)] for i in owner], flat)
        scores = torch.full((len(prompts), max(counts)), -torch.inf, device=self.device)
        column = torch.tensor([index for count in counts for index in range(count)], device=self.device)
        scores[owner, column] = values
        return scores

    def _score_shared(
        self, prefix: Tensor | None, prompts: Sequence[Sequence[int]], flat: Sequence[Sequence[int]], owner: Tensor
    ) -> Tensor:
        lengths = torch.tensor([len(candidate) for candidate in flat], device=self.device)
        longest = int(lengths.max())
        targets, _ = _pad(flat, self.pad_id, self.device)
        counted = _steps(lengths, longest)
        if self.encoder_decoder:
            hidden, mask = self._encode(prefix, prompts)
            logits = self._decode(hidden[owner], mask[owner], flat)
            token = logits.float().log_softmax(-1).gather(2, targets[..., None])[..., 0]
            return (token * counted).sum(1) / lengths
        first, cache, mask, used = self._read_prompt(prefix, prompts)
        token = first.float().log_softmax(-1)[owner].gather(1, targets[:, :1])
        if longest > 1:
            cache.reorder_cache(owner)
            # The last token, EOS, is only a target.
            later = self._continue(targets[:, : longest - 1], cache, mask[owner], used[owner], counted[:, 1:])
            rest = later.float().log_softmax(-1).gather(2, targets[:, 1:, None])[..., 0]
            token = torch.cat([token, rest], dim=1)
        return torch.where(counted, token, 0.0).sum(1) / lengths

    def _read_prompt(
        self, prefix: Tensor | None, prompts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Any, Tensor, Tensor]:
        """Logits (B, V) after the prompt, the key-value cache, the prompt's mask (B, L + S) and true lengths (B,)."""
        ids, lengths = _pad(prompts, self.pad_id, self.device)
        inputs = self._with_prefix(prefix, ids)
        self._check_length(inputs.shape[1])
        used = lengths + (inputs.shape[1] - ids.shape[1])
        mask = _steps(used, inputs.shape[1]).long()
        positions = torch.arange(inputs.shape[1], device=self.device)[None, :].expand(len(prompts), -1)
        with self._only_logits_at(torch.arange(len(prompts), device=self.device), used - 1):
            output = self.model(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=True)
        return output.logits[0], output.past_key_values, mask, used

    def _continue(self, ids: Tensor, cache: Any, mask: Tensor, used: Tensor, valid: Tensor) -> Tensor:
        """Logits (N, A, V) of tokens that follow a cached prompt; their positions follow the prompt's true length."""
        positions = used[:, None] + torch.arange(ids.shape[1], device=self.device)[None, :]
        if self.position_limit is not None:
            positions = positions.clamp_max(self.position_limit - 1)
        output = self.model(
            input_ids=ids,
            attention_mask=torch.cat([mask, valid.long()], dim=1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits

    @torch.no_grad()
    def generate(self, prefix: Tensor | None, prompts: Sequence[Sequence[int]], cached: bool = True) -> list[str]:
        """Greedy answers; each ends at EOS or after ``maximum_new_tokens``.

        ``cached=False`` recomputes the whole sequence for every token (slower; for checks, and used where a shared
        cache would not be exact).
        """
        if cached and (self.encoder_decoder or self._may_cache(prefix, prompts, self.maximum_new_tokens)):
            tokens = (
                self._generate_seq2seq(prefix, prompts)
                if self.encoder_decoder
                else self._generate_causal(prefix, prompts)
            )
        else:
            tokens = self._generate_uncached(prefix, prompts)
        answers = []
        for row in tokens.tolist():
            end = next((index for index, token in enumerate(row) if token in self.stop_ids), len(row))
            row = row[:end]
            answers.append(self.tokenizer.decode(row, skip_special_tokens=True).strip())
        return answers

    def _stops(self, tokens: Tensor) -> Tensor:
        """Whether each token ends an answer; (B,) bool."""
        return torch.isin(tokens, torch.tensor(sorted(self.stop_ids), device=tokens.device))

    def _generate_causal(self, prefix: Tensor | None, prompts: Sequence[Sequence[int]]) -> Tensor:
        logits, cache, mask, used = self._read_prompt(prefix, prompts)
        chosen = logits.argmax(-1)
        tokens = [chosen]
        done = self._stops(chosen)
        while len(tokens) < self.maximum_new_tokens and not bool(done.all()):
            valid = torch.ones_like(chosen)[:, None]
            logits = self._continue(chosen[:, None], cache, mask, used, valid)[:, -1]
            mask, used = torch.cat([mask, valid], dim=1), used + 1
            chosen = logits.argmax(-1)
            tokens.append(chosen)
            done = done | self._stops(chosen)
        return torch.stack(tokens, dim=1)

    def _generate_seq2seq(self, prefix: Tensor | None, prompts: Sequence[Sequence[int]]) -> Tensor:
        hidden, mask = self._encode(prefix, prompts)
        chosen = torch.full((len(prompts),), self.start_id, device=self.device)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        tokens: list[Tensor] = []
        cache: Any = None
        while len(tokens) < self.maximum_new_tokens and not bool(done.all()):
            output = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=mask,
                decoder_input_ids=chosen[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            chosen = output.logits[:, -1].argmax(-1)
            tokens.append(chosen)
            done = done | self._stops(chosen)
        return torch.stack(tokens, dim=1)

    def _generate_uncached(self, prefix: Tensor | None, prompts: Sequence[Sequence[int]]) -> Tensor:
        answers: list[list[int]] = [[] for _ in prompts]
        state = self._encode(prefix, prompts) if self.encoder_decoder else None
        for _ in range(self.maximum_new_tokens):
            # One more token is asked for than is known: the last one given is only a placeholder for a target.
            padded = [[*answer, self.eos_id] for answer in answers]
            rows = torch.arange(len(prompts), device=self.device)
            if state is not None:
                columns = torch.tensor([len(answer) for answer in answers], device=self.device)
                with self._only_logits_at(rows, columns):
                    logits = self._decode(state[0], state[1], padded)[0]
            else:
                ids, used = _pad(
                    [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)],
                    self.pad_id,
                    self.device,
                )
                inputs = self._with_prefix(prefix, ids)
                self._check_length(inputs.shape[1])
                with self._only_logits_at(rows, inputs.shape[1] - ids.shape[1] + used - 1):
                    logits = self.model(inputs_embeds=inputs, use_cache=False).logits[0]
            for answer, token in zip(answers, logits.argmax(-1).tolist(), strict=True):
                answer.append(token)
            if all(not self.stop_ids.isdisjoint(answer) for answer in answers):
                break
        return torch.tensor(answers)
