"""Tiny stand-ins for the published backbones, in the same Hugging Face formats, trained in seconds on one CPU core.

They exist so that the whole pipeline runs, is tested and can be read on any computer; a path or id of a published
checkpoint takes their place without another line of code. The vision transformer is a masked autoencoder of 2D slices
(He et al., 2022); the language models read :mod:`medalign3d.model.corpus`. Everything is deterministic by seed.

Not supported: training on a GPU, or sizes at which that would pay.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BioGptConfig,
    BioGptForCausalLM,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2EncoderLayer, Blip2VisionModel

from medalign3d.errors import InputError, ParameterError
from medalign3d.files import atomic_path
from medalign3d.model.alignq import QUERY_INIT_SD
from medalign3d.model.corpus import Example, generate_corpus, vocabulary_texts
from medalign3d.model.language import FrozenLanguageModel, _pad
from medalign3d.model.loading import _quiet
from medalign3d.progress import Progress

if TYPE_CHECKING:
    from medalign3d.params import LanguageTraining, Params

LANGUAGE_KINDS = ("t5", "biogpt", "gpt2")
INITIALIZER_RANGE = 0.02
FEED_FORWARD_RATIO = 2  # published models have about 4; at this size the time is better spent on more steps
MAXIMUM_POSITIONS = 512
LONGEST_TRAINING_TEXT = 112  # tokens of record + question
POSITION_SHIFT = 40  # causal models learn to read from any of the first positions, as a visual prefix will shift them
TEXT_LOSS_POSITIONS = 256  # positions of the record, per step, at which a causal model also learns to go on
TEXT_LOSS_WEIGHT = 0.2
WARMUP_FRACTION = 0.1
RELATIVE_STEPS = {"t5": 0.8}  # a step of an encoder and a decoder takes longer, and teaches more


# -- tokenizers --------------------------------------------------------------------------------------------------------


def _corpus_lines(examples: Iterable[Example]) -> Iterator[str]:
    for example in examples:
        yield f"{example.prompt} {example.answer}"
    yield from vocabulary_texts()


_PIECES = re.compile(r"[^\W_]+|[^\w\s]|_")


def make_t5_tokenizer(lines: Iterable[str]) -> T5Tokenizer:
    """A Unigram tokenizer as T5's, whose pieces are whole words, whole numbers and punctuation; the rest is spelt."""
    counts: Counter[str] = Counter()
    for line in lines:
        for word in line.split():
            for index, piece in enumerate(_PIECES.findall(word)):
                counts["▁" + piece if index == 0 else piece] += 1
    for number in range(301):
        counts[f"▁{number}"] += 1
        counts[str(number)] += 1
    total = sum(counts.values())
    letters = sorted({letter for piece in counts for letter in piece} | set(map(chr, range(33, 127))) | {"▁"})
    vocabulary: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += sorted(
        ((piece, float(np.log(count / total))) for piece, count in counts.items()), key=lambda item: (-item[1], item[0])
    )
    # Spelling a word letter by letter must always cost more than any whole word.
    vocabulary += [(letter, -25.0) for letter in letters if letter not in counts]
    vocabulary += [(f"<extra_id_{index}>", 0.0) for index in range(99, -1, -1)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=100)


def _make_byte_bpe(lines: Iterable[str], specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        # Every word that occurs becomes one token in the end, numbers included.
        min_frequency=1,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def make_gpt2_tokenizer(lines: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as GPT-2's."""
    tokenizer = _make_byte_bpe(lines, ["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def make_biogpt_tokenizer(lines: Iterable[str]) -> PreTrainedTokenizerFast:
    """A BPE tokenizer with BioGPT's special tokens and its habit of starting every text with ``</s>``."""
    tokenizer = _make_byte_bpe(lines, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
    )


def make_bert_tokenizer(lines: Iterable[str]) -> BertTokenizer:
    """A WordPiece tokenizer as BERT's, of whole lower-case words and numbers, with letters for the rest."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(_PIECES.findall(line.lower()))
    counts.update(str(number) for number in range(301))
    letters = sorted({letter for word in counts for letter in word} | set(map(chr, range(33, 127))))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [letter for letter in letters if letter == letter.lower()]
    tokens += [f"##{letter}" for letter in letters if letter == letter.lower()]
    tokens += words
    return BertTokenizer(vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))})


# -- language models ---------------------------------------------------------------------------------------------------


def _t5(shape: LanguageTraining, tokenizer: Any) -> T5ForConditionalGeneration:
    # As FLAN-T5: gated GELU and an output layer of its own.
    config = T5Config(  # type: ignore[call-arg]
        vocab_size=len(tokenizer),
        d_model=shape.hidden_size,
        d_kv=shape.hidden_size // shape.heads,
        d_ff=shape.hidden_size,
        num_layers=shape.layers,
        # The decoder only writes short answers.
        num_decoder_layers=max(1, shape.layers - 1),
        num_heads=shape.heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        initializer_factor=1.0,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = T5ForConditionalGeneration(config)
    # T5's own initialisation starts embeddings at 1.0, which tiny models with short training never get over.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "relative_attention_bias" not in name:
                parameter.normal_(0.0, _t5_sd(name, shape.hidden_size))
    return model


def _t5_sd(name: str, hidden_size: int) -> float:
    # T5 attention is not scaled by 1 / sqrt(head size): its query weights carry the factor.
    if name.endswith(".q.weight"):
        return INITIALIZER_RANGE
    return 0.25 if name.startswith("shared") else float(hidden_size**-0.5)


def _biogpt(shape: LanguageTraining, tokenizer: Any) -> BioGptForCausalLM:
    return BioGptForCausalLM(
        BioGptConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=FEED_FORWARD_RATIO * shape.hidden_size,
            max_position_embeddings=MAXIMUM_POSITIONS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layerdrop=0.0,
            initializer_range=INITIALIZER_RANGE,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _gpt2(shape: LanguageTraining, tokenizer: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=MAXIMUM_POSITIONS,
            n_embd=shape.hidden_size,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=FEED_FORWARD_RATIO * shape.hidden_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=INITIALIZER_RANGE,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


_MAKERS: dict[str, tuple[Callable[[Iterable[str]], Any], Callable[[LanguageTraining, Any], Any]]] = {
    "t5": (make_t5_tokenizer, _t5),
    "biogpt": (make_biogpt_tokenizer, _biogpt),
    "gpt2": (make_gpt2_tokenizer, _gpt2),
}


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up, then cosine decay to 2 %."""
    warmup = max(1, round(steps * WARMUP_FRACTION))
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


def _length_sorted_batches(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Endless batches of indices of similar length, in random order: little padding, every example once per round."""
    while True:
        order = rng.permutation(len(lengths))
        order = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
        whole = len(order) // batch_size * batch_size
        # Batches start at a random offset, so that the same examples do not always meet.
        start = int(rng.integers(0, len(order) - whole + 1))
        batches = order[start : start + whole].reshape(-1, batch_size)
        for index in rng.permutation(len(batches)):
            yield batches[index].tolist()


def _causal_training_loss(
    language: FrozenLanguageModel, prompts: list[list[int]], answers: list[list[int]], shift: int, rng: torch.Generator
) -> Tensor:
    """Cross-entropy of answers, and of a sample of the record's next tokens, with positions moved by ``shift``."""
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids, lengths = _pad(sequences, language.pad_id, language.device)
    starts = torch.tensor([len(prompt) for prompt in prompts])
    places = torch.arange(ids.shape[1] - 1)[None, :]
    is_answer = (places >= starts[:, None] - 1) & (places < lengths[:, None] - 1)
    is_text = places < starts[:, None] - 1
    text_places = is_text.nonzero()
    chosen = text_places[torch.randperm(len(text_places), generator=rng)[:TEXT_LOSS_POSITIONS]]
    rows, columns = torch.cat([is_answer.nonzero(), chosen]).T
    with language._only_logits_at(rows, columns):
        logits = language.model(
            input_ids=ids[:, :-1],
            position_ids=(places + shift).expand(len(ids), -1),
            attention_mask=torch.ones_like(ids[:, :-1]),
            use_cache=False,
        ).logits[0]
    losses = nn.functional.cross_entropy(logits, ids[rows, columns + 1], reduction="none")
    count = int(is_answer.sum())
    loss = losses[:count].mean()
    return loss + TEXT_LOSS_WEIGHT * losses[count:].mean() if len(losses) > count else loss


def train_language_model(kind: str, shape: LanguageTraining, seed: int, label: str = "") -> tuple[Any, Any]:
    """Train a tiny language model; returns the model (in evaluation mode) and its tokenizer.

    Raises
    ------
    ParameterError
        When ``kind`` is not one of ``t5``, ``biogpt``, ``gpt2``.
    """
    if kind not in _MAKERS:
        raise ParameterError(
            "unknown kind of tiny language model", found=kind, expected=f"one of {', '.join(LANGUAGE_KINDS)}"
        )
    make_tokenizer, make_model = _MAKERS[kind]
    examples = generate_corpus(shape.sentences, seed)
    tokenizer = make_tokenizer(_corpus_lines(examples))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(shape, tokenizer)
    language = FrozenLanguageModel(model, tokenizer, LONGEST_TRAINING_TEXT, 16)
    model.requires_grad_(True)
    prompts = language.encode_prompts([e.text for e in examples], [e.question for e in examples])
    answers = language.encode_answers([e.answer for e in examples])
    rng = np.random.default_rng(seed)
    torch_rng = torch.Generator().manual_seed(seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=shape.learning_rate,
        betas=(0.9, 0.98),
        foreach=True,
    )
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    batches = _length_sorted_batches(lengths, shape.batch_size, rng)
    steps = max(1, round(shape.steps * RELATIVE_STEPS.get(kind, 1.0)))
    with Progress(label or f"language model {kind}", steps) as progress:
        for step in range(steps):
            chosen = next(batches)
            batch_prompts, batch_answers = [prompts[i] for i in chosen], [answers[i] for i in chosen]
            if language.encoder_decoder:
                loss = language.answer_loss(None, batch_prompts, batch_answers).mean()
            else:
                shift = int(rng.integers(0, POSITION_SHIFT))
                loss = _causal_training_loss(language, batch_prompts, batch_answers, shift, torch_rng)
            for group in optimizer.param_groups:
                group["lr"] = shape.learning_rate * _schedule(step, steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.advance(note=f"loss {float(loss.detach()):.3f}" if step % 10 == 0 else progress.note)
    return model.eval(), tokenizer


def make_language_checkpoint(kind: str, params: Params, out: str | Path) -> None:
    """Train and write a tiny language model (``t5``, ``biogpt`` or ``gpt2``) as a Hugging Face folder at ``out``."""
    model, tokenizer = train_language_model(kind, params.backbones.language, params.backbones.seed)
    with _quiet(), atomic_path(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


# -- vision ------------------------------------------------------------------------------------------------------------


class MaskedAutoencoder(nn.Module):
    """A vision transformer that sees some patches of a slice, and a one-block decoder that predicts the others."""

    def __init__(self, config: Blip2VisionConfig) -> None:
        super().__init__()
        self.encoder = Blip2VisionModel(config)
        with torch.no_grad():
            self.encoder.embeddings.position_embedding.normal_(0.0, INITIALIZER_RANGE)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.decoder_positions = nn.Parameter(
            torch.randn(1, self.encoder.embeddings.num_patches, config.hidden_size) * INITIALIZER_RANGE
        )
        self.decoder = Blip2EncoderLayer(config)  # type: ignore[arg-type]
        self.decoder_norm = nn.LayerNorm(config.hidden_size)
        self.patch_size = int(config.patch_size)  # type: ignore[arg-type]
        self.pixels = nn.Linear(config.hidden_size, self.patch_size**2)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Mean squared error on hidden patches; images (B, 1, S, S), visible (B, V) patch numbers."""
        embeddings = self.encoder.embeddings
        tokens = embeddings(images.expand(-1, 3, -1, -1))
        width = tokens.shape[-1]
        index = visible[..., None].expand(-1, -1, width)
        hidden = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, index)], dim=1)
        for layer in self.encoder.encoder.layers:
            hidden = layer(hidden)
        hidden = self.encoder.post_layernorm(hidden)
        filled = self.mask_token.expand(len(images), embeddings.num_patches, -1).scatter(1, index, hidden[:, 1:])
        predicted = self.pixels(self.decoder_norm(self.decoder(filled + self.decoder_positions)))
        size = self.patch_size
        target = nn.functional.unfold(images, size, stride=size).transpose(1, 2)
        # Patches are compared after standardization: texture, not brightness, is what must be understood.
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 0.01).sqrt()
        hidden_patches = torch.ones(target.shape[:2], device=images.device).scatter(1, visible, 0.0)
        error = (predicted - target).square().mean(-1) * hidden_patches
        return error.sum() / hidden_patches.sum()


def _prepare_slices(slices: NDArray[np.uint8], size: int) -> Tensor:
    """Slices (N, H, W) uint8 as (N, 1, size, size) float32 in [0, 1], without empty ones."""
    if slices.ndim != 3 or slices.dtype != np.uint8 or not len(slices):
        raise InputError(
            "slices cannot be used to train a vision transformer",
            found=f"an array of shape {slices.shape} and type {slices.dtype}",
            expected="(number, height, width) uint8, at least one",
        )
    occupied = (slices > 0).mean(axis=(1, 2)) > 0.05
    kept = slices[occupied] if occupied.any() else slices
    images = torch.from_numpy(np.ascontiguousarray(kept)).unsqueeze(1).float().div_(255.0)
    return nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def make_vision_checkpoint(slices: NDArray[np.uint8], params: Params, out: str | Path) -> None:
    """Train a tiny vision transformer and write it, with an untrained query transformer, at ``out``.

    The folder has the format of ``Blip2ForImageTextRetrieval`` (as ``Salesforce/blip2-itm-vit-g``).

    Parameters
    ----------
    slices
        (N, H, W) uint8 slices of *training* participants.
    params
        ``backbones.vision``, ``backbones.qformer`` and ``model.alignq`` decide the shapes.
    out
        Folder that is written, atomically.
    """
    shape, seed = params.backbones.vision, params.backbones.seed
    images = _prepare_slices(slices, shape.image_size)
    tokenizer = make_bert_tokenizer(_corpus_lines(generate_corpus(params.backbones.language.sentences, seed)))
    vision_config = Blip2VisionConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=FEED_FORWARD_RATIO * shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        # The library's default of 1e-10 would leave a network that was never trained all but zero.
        initializer_range=INITIALIZER_RANGE,
    )
    qformer = params.backbones.qformer
    config = Blip2Config(
        vision_config=vision_config.to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(tokenizer),
            hidden_size=qformer.hidden_size,
            num_hidden_layers=qformer.layers,
            num_attention_heads=qformer.heads,
            intermediate_size=FEED_FORWARD_RATIO * qformer.hidden_size,
            max_position_embeddings=MAXIMUM_POSITIONS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            encoder_hidden_size=shape.hidden_size,
            use_qformer_text_input=True,
            initializer_range=INITIALIZER_RANGE,
        ).to_dict(),
        num_query_tokens=params.model.alignq.queries,
        image_text_hidden_size=params.model.alignq.contrastive_size,
    )
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        model = Blip2ForImageTextRetrieval(config)
        with torch.no_grad():
            # The library starts queries at zero; equal queries would stay equal for ever.
            model.query_tokens.normal_(0.0, QUERY_INIT_SD)
            # A published query transformer has learnt to pass image features on. This one has not: at the usual 0.02 so
            # little of the image would reach the queries that training stands still at first.
            for parameter in model.qformer.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, parameter.shape[1] ** -0.5)
        autoencoder = MaskedAutoencoder(vision_config)
        patches = autoencoder.encoder.embeddings.num_patches
        visible = max(1, round(patches * (1 - shape.mask_fraction)))
        optimizer = torch.optim.AdamW(
            autoencoder.parameters(), lr=shape.learning_rate, betas=(0.9, 0.95), weight_decay=0.05, foreach=True
        )
        with Progress("vision transformer", shape.steps) as progress:
            for step in range(shape.steps):
                batch = images[torch.randint(len(images), (min(shape.batch_size, len(images)),))]
                order = torch.rand(len(batch), patches).argsort(dim=1)[:, :visible]
                loss = autoencoder(batch, order)
                for group in optimizer.param_groups:
                    group["lr"] = shape.learning_rate * _schedule(step, shape.steps)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
                optimizer.step()
                progress.advance(note=f"loss {float(loss.detach()):.3f}" if step % 10 == 0 else progress.note)
        model.vision_model.load_state_dict(autoencoder.encoder.state_dict())
        with atomic_path(out) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
