"""Our training step against a plain transcription of the published system's, in turns in one run on one core.

    python benchmarks/training_step.py [--language gpt2 biogpt t5] [--repeats 8]

Both work on the same tiny model of the demo, the same volumes, texts and optimizer. The transcription does what the
public code does (MedBLIP, with its order of tensors corrected, as it does not run as it stands):

- eager attention, and GPT-2's GELU written out;
- the text branch gets every record and every question with its answer, padded to 100 tokens, and computes all of them
  in its last layer, of which only [CLS] is read;
- the language model gets prompts and answers padded to the longest of the batch (in a second line, prompts padded to
  their limit); its output layer turns every position
  into logits, whose loss counts the prompt too, and the argmax of all of them is taken for a print-out;
- AdamW over the parameters one by one.

Frozen weights have no gradients in the public code either: what they would cost is a line of its own, as are our other
levers, each taken out of our step alone. Loading volumes is another benchmark (`volume_loader.py`). The variants that
leave the result alone are checked to give our loss.
"""

from __future__ import annotations

import argparse
import contextlib
import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from medalign3d.model import composite, language, vision
from medalign3d.model.alignq import AlignQ, TextTokenizer
from medalign3d.model.backbones import make_language_checkpoint, make_vision_checkpoint
from medalign3d.model.composite import MedAlign3D
from medalign3d.model.config import ModelConfig
from medalign3d.model.corpus import generate_corpus
from medalign3d.model.language import FrozenLanguageModel, _pad, _steps
from medalign3d.params import Params, load_params, validate_params

LONGEST_TEXT, LONGEST_PROMPT, LONGEST_ANSWER = 100, 120, 16
Batch = tuple[Tensor, list[str], list[str], list[str]]

LEVERS = {
    "attention": "SDPA instead of eager attention",
    "gelu": "fused GELU",
    "padding": "no padding in the text branch, equal texts once, length bucketing",
    "first": "[CLS] alone in the last layer of the text branch",
    "head": "output layer and loss at answer positions only",
    "optimizer": "fused AdamW",
    "gradients": "no weight gradients in frozen parts (the public code has none either)",
}
IN_REFERENCE = ("attention", "gelu", "padding", "first", "head", "optimizer")
"""Levers that the transcription does without."""


def full_head_loss(
    self: FrozenLanguageModel, prefix: Tensor, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Tensor:
    """Logits of every position, a loss over prompt and answer, and the argmax of everything."""
    device, length = self.device, prefix.shape[1]
    ids, used = language._pad(prompts, self.pad_id, device)
    targets, counts = _pad(answers, self.pad_id, device)
    unknown = torch.full((len(prompts), length), -100, device=device)
    prompt_labels = ids.masked_fill(~_steps(used, ids.shape[1]), -100)
    answer_labels = targets.masked_fill(~_steps(counts, targets.shape[1]), -100)
    if self.encoder_decoder:
        hidden, mask = self._encode(prefix, prompts)
        logits, labels = self._decode(hidden, mask, answers), answer_labels
    else:
        embedded = torch.cat([prefix, self.embed(torch.cat([ids, targets], dim=1))], dim=1)
        mask = torch.cat([_steps(used + length, length + ids.shape[1]), _steps(counts, targets.shape[1])], dim=1)
        logits = self.model(inputs_embeds=embedded, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
        labels = torch.cat([unknown, prompt_labels, answer_labels], dim=1)[:, 1:]
    logits.argmax(-1)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())[None]


def padded_text_features(self: MedAlign3D, texts: Sequence[str], kind: str) -> Tensor:
    """Every text by itself, padded to the longest that is allowed."""
    encoded = self._encode_texts(self.text_tokenizer.ids(list(texts)))
    projection = self.alignq.record_projection if kind == "record" else self.alignq.answer_projection
    return nn.functional.normalize(projection(encoded), dim=-1)


def encode_all(self: AlignQ, ids: Tensor, mask: Tensor) -> Tensor:
    """The text branch as transformers runs it."""
    embedded = self.text_embeddings(input_ids=ids)
    return self.qformer(query_embeds=embedded, query_length=0, attention_mask=mask).last_hidden_state[:, 0]


def padded_prompts(sequences: Sequence[Sequence[int]], value: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """As ``_pad``; what is longer than any answer is a prompt and goes up to the limit of prompts."""
    ids, lengths = _pad(sequences, value, device)
    if int(lengths.max()) > LONGEST_ANSWER and ids.shape[1] < LONGEST_PROMPT:
        ids = nn.functional.pad(ids, (0, LONGEST_PROMPT - ids.shape[1]), value=value)
    return ids, lengths


def padded(self: TextTokenizer, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    batch = self.tokenizer.pad(
        {"input_ids": list(sequences)}, padding="max_length", max_length=LONGEST_TEXT, return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"]


class Variant:
    """Our training step without some of its levers."""

    def __init__(self, config: ModelConfig, without: Sequence[str], threads: int = 1) -> None:
        self.without = set(without)
        torch.set_num_threads(threads)
        with contextlib.ExitStack() as stack:
            if "attention" in self.without:
                stack.enter_context(mock.patch.object(vision, "replace_attention"))
            if "gelu" in self.without:
                stack.enter_context(mock.patch.object(language, "replace_slow_gelu"))
            self.model = MedAlign3D.from_checkpoints(config, 1)
        if "attention" in self.without:
            for module in self.model.modules():
                part = getattr(module, "config", None)
                if hasattr(part, "_attn_implementation"):
                    part._attn_implementation = "eager"
        self.model.train()
        self.model.alignq.qformer.eval()  # no dropout, so that losses can be compared
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        if "gradients" in self.without:
            self.model.language.requires_grad_(True)
            self.model.vision.blocks.requires_grad_(True)
        fused = {"fused": True} if "optimizer" not in self.without else {"foreach": False}
        groups = [{"params": self.trainable}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.98), **fused)  # type: ignore[arg-type]

    def __call__(self, batch: Batch) -> float:
        """One step; returns the loss before it."""
        with contextlib.ExitStack() as stack:
            if "head" in self.without:
                stack.enter_context(mock.patch.object(FrozenLanguageModel, "answer_loss", _head))
            if "first" in self.without:
                stack.enter_context(mock.patch.object(AlignQ, "encode_text", encode_all))
            if "limit" in self.without:
                stack.enter_context(mock.patch.object(language, "_pad", padded_prompts))
            if "padding" in self.without:
                whole = lambda lengths, *rest: [list(range(len(lengths)))]  # noqa: E731
                stack.enter_context(mock.patch.object(language, "length_groups", whole))
                stack.enter_context(mock.patch.object(composite, "length_groups", whole))
                stack.enter_context(mock.patch.object(TextTokenizer, "pad", padded))
                stack.enter_context(mock.patch.object(MedAlign3D, "text_features", padded_text_features))
            loss = self.model(*batch).total
            self.model.zero_grad(set_to_none=True)
            loss.backward()
        nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        return float(loss.detach())


def _head(self: FrozenLanguageModel, prefix: Tensor, prompts: Any, answers: Any) -> Tensor:
    return full_head_loss(self, prefix, prompts, answers).expand(len(prompts))


def make_model_files(folder: Path, languages: Sequence[str], steps: int, params: Params | None = None) -> Params:
    """Parameters (of the demo) with freshly made backbones in ``folder``."""
    values = (params or load_params()).model_dump()
    values["backbones"]["vision"]["steps"] = values["backbones"]["language"]["steps"] = steps
    values["model"]["vision"]["checkpoint"] = str(folder / "vision")
    for name in languages:
        values["model"]["language"]["models"][name]["checkpoint"] = str(folder / name)
    params = validate_params(values)
    slices = np.random.default_rng(0).integers(0, 255, (24, 48, 60), dtype=np.uint8)
    make_vision_checkpoint(slices, params, folder / "vision")
    for name in languages:
        make_language_checkpoint(name, params, folder / name)
    return params


def make_batches(params: Params, count: int) -> list[Batch]:
    """Batches of the demo's size: random volumes, records and questions in the demo's words."""
    size, random = params.pretrain.batch_size, np.random.default_rng(1)
    examples = [example for example in generate_corpus(4 * count * size, 5) if example.text][: count * size]
    batches = []
    for number in range(count):
        part = examples[number * size : (number + 1) * size]
        volumes = torch.from_numpy(random.integers(0, 256, (size, 1, *params.normalize.shape), dtype=np.uint8))
        batches.append((volumes, [e.text for e in part], [e.question for e in part], [e.answer for e in part]))
    return batches


def compare(config: ModelConfig, batches: Sequence[Batch], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of every variant's steps, in turns."""
    variants = {"ours": Variant(config, ())}
    variants |= {lever: Variant(config, (lever,)) for lever in LEVERS}
    variants["reference"] = Variant(config, IN_REFERENCE)
    variants["limit"] = Variant(config, (*IN_REFERENCE, "limit"))
    first = {name: step(batches[0]) for name, step in variants.items()}
    for name in LEVERS.keys() - {"head"}:
        assert abs(first[name] - first["ours"]) < 1e-3, f"{name}: loss {first[name]}, ours {first['ours']}"
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats):
        batch = batches[repeat % len(batches)]
        for name, step in variants.items():
            start = time.process_time()
            step(batch)
            times[name].append(time.process_time() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--language", nargs="+", default=["gpt2", "t5", "biogpt"], choices=["gpt2", "t5", "biogpt"])
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        params = make_model_files(Path(name), arguments.language, 2)
        batches = make_batches(params, 4)
        table: dict[str, dict[str, list[float]]] = {}
        for kind in arguments.language:
            table[kind] = compare(ModelConfig.from_params(params, kind), batches, arguments.repeats)
    print(f"\nms of processor time per step of {params.pretrain.batch_size} samples, median of {arguments.repeats}")
    print(f"| step | {' | '.join(arguments.language)} |\n|---|{'---:|' * len(arguments.language)}")
    titles = {"ours": "ours", **{key: f"without: {title}" for key, title in LEVERS.items()}}
    titles |= {"reference": "transcription", "limit": "transcription, prompts padded to their limit"}
    for key, title in titles.items():
        cells = []
        for kind in arguments.language:
            ours, own = statistics.median(table[kind]["ours"]), statistics.median(table[kind][key])
            cells.append(f"{1000 * own:.0f} ({own / ours:.2f}x)")
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
