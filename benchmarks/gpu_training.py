"""The training step of the full-size model with random weights on a GPU: samples per second, utilisation, memory.

    PYTHONPATH=src python benchmarks/gpu_training.py [--language gpt2|biogpt|t5] [--lora] [--compile] [--checkpointing]
        [--profile] [--batches 16 32 64] [--out FILE.json]

Needs torch, transformers and peft, no checkpoint and no network. It is the model, the loss and the step of the training
stages: bfloat16 frozen weights, float32 trainables under autocast, volumes sent as bytes and changed on the device,
clipping and AdamW. Records of different lengths (182 language tokens a sample on average, 32 of them visual) are new in
every step, so length bucketing works as in training.

Floating-point operations are those of the matrix products of a step without padding, counted by torch on the meta
device (attention in full, causal or not); what padding costs lowers the utilisation. Utilisation is their rate over the
rate of a large bfloat16 matrix product that is measured first, in the same process, and over a vendor's peak where you
give one. With checkpointing, operations that are done twice are counted once.

`--tiny` runs the same program on small models, also on a CPU; `--count` only counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Blip2QFormerConfig, Blip2VisionConfig, GPT2Config, PreTrainedTokenizerFast
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings, Blip2VisionModel

from medalign3d.model import composite
from medalign3d.model.compilation import compile_blocks
from medalign3d.model.composite import MedAlign3D
from medalign3d.model.config import ModelConfig
from medalign3d.model.language import FrozenLanguageModel
from medalign3d.model.loading import VisionParts
from medalign3d.model.parameters import build_language_model, language_configs, qformer_config, vision_config
from medalign3d.training.augmentation import VolumeChanges, apply_changes

WORDS = 2000
QUESTION_WORDS, ANSWER_WORDS = 26, 3
FULL_RECORD = (80, 160)  # words of a record; with question, answer and 32 visual tokens 182 language tokens on average
COUNTED = 32  # samples of the step whose operations are counted
GIB = 1 << 30


def make_tokenizer(special: bool) -> PreTrainedTokenizerFast:
    """One token per word, so that lengths are what they are asked to be; ``special`` as BERT's."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]", "Question:", "Answer:", "age", "yes", "a"]
    words = [*names, *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", eos_token="[EOS]"
    )


def configurations(language: str, tiny: bool) -> tuple[Blip2VisionConfig, Blip2QFormerConfig, Any, int, int]:
    """Configurations of the three parts, side of the volume and of a cube."""
    if not tiny:
        return vision_config(), qformer_config(), language_configs()[language], 224, 32
    vision = Blip2VisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    qformer = Blip2QFormerConfig(
        vocab_size=WORDS + 10, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        encoder_hidden_size=64, use_qformer_text_input=True,
    )  # fmt: skip
    settings = {"vocab_size": WORDS + 10, "bos_token_id": 4, "eos_token_id": 4}
    return vision, qformer, GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=256, **settings), 24, 8


def fill(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Give a module built on the meta device random weights on ``device``, without a copy in the host's memory."""
    if list(module.buffers()):
        raise SystemExit(f"{type(module).__name__} has buffers, which random weights would spoil")
    module = module.to(dtype)
    if device.type == "meta":
        return module
    module = module.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name or ".ln_" in name:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.normal_(0.0, 0.02)
    return module


def build(
    language: str, device: torch.device, dtype: torch.dtype, *, tiny: bool = False, checkpointing: bool = False
) -> MedAlign3D:
    """The composite model with random weights."""
    vision, qformer, language_config, side, cube = configurations(language, tiny)
    config = ModelConfig(
        volume_shape=(side, side, side), pooling=1, cube=cube, vision_checkpoint="random", language_name=language,
        language_checkpoint="random", queries=4 if tiny else 32, contrastive_size=16 if tiny else 256,
        maximum_prompt_tokens=80 if tiny else 200, dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    with torch.device("meta"):
        blip = Blip2VisionModel(vision)
        language_model = build_language_model(language_config)
    blocks = fill(blip.encoder.layers, device, dtype)
    language_model = fill(language_model, device, dtype)
    # Without weights there is nothing to hash or to measure.
    meta = device.type == "meta"
    with (
        torch.device(device),
        mock.patch.object(composite, "fingerprint", return_value="random"),
        mock.patch.object(FrozenLanguageModel, "embedding_rms", return_value=0.02),
        mock.patch.object(composite, "_initial_queries", lambda queries, count: count),
    ):
        parts = VisionParts(
            blocks=blocks,  # type: ignore[arg-type]
            post_layernorm=nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps),
            class_token=torch.zeros(1, 1, vision.hidden_size),
            qformer=Blip2QFormerModel(qformer),
            text_embeddings=Blip2TextEmbeddings(qformer),
            queries=torch.zeros(config.queries, qformer.hidden_size),
            image_projection=nn.Linear(qformer.hidden_size, config.contrastive_size),
            text_projection=nn.Linear(qformer.hidden_size, config.contrastive_size),
            tokenizer=make_tokenizer(True),
        )
        model = MedAlign3D(config, parts, language_model, make_tokenizer(False))
    return model if meta else model.to(device)


def make_texts(
    model: MedAlign3D, count: int, seed: int, *, equal: bool = False
) -> tuple[list[str], list[str], list[str]]:
    """Records (of ``equal`` length, or not), questions and answers; as in training, few different answers."""
    chance = random.Random(seed)
    low, high = FULL_RECORD if model.config.volume_shape[0] > 100 else (10, 40)
    if equal:
        low = high = (low + high) // 2

    def words(number: int, source: random.Random) -> str:
        return " ".join(f"w{source.randrange(WORDS)}" for _ in range(number))

    question = words(QUESTION_WORDS, chance)
    answers = [words(ANSWER_WORDS, random.Random(number)) for number in range(3)]
    records = [words(chance.randint(low, high), chance) for _ in range(count)]
    return records, [question] * count, [answers[chance.randrange(3)] for _ in range(count)]


@contextlib.contextmanager
def precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast where frozen weights are of half precision."""
    kind = "cpu" if device.type == "meta" else device.type
    with torch.autocast(kind, dtype=dtype, enabled=dtype == torch.bfloat16):
        yield


class Step:
    """A training step of ``batch`` samples, its next volumes on their way while the device computes."""

    def __init__(self, model: MedAlign3D, batch: int, dtype: torch.dtype) -> None:
        self.model, self.batch, self.dtype, self.device = model, batch, dtype, model.device
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            model.parameter_groups(1e-4), lr=1e-5, betas=(0.9, 0.98), fused=self.device.type != "meta"
        )
        shape = (batch, 1, *model.config.volume_shape)
        self.host = torch.randint(0, 256, shape, dtype=torch.uint8) if self.device.type != "meta" else None
        self.changes = VolumeChanges(
            gain=1 + 0.1 * torch.rand(batch), shift=0.05 * torch.rand(batch)
        )  # as training.intensity_augmentation
        self.number = 0
        self.stream = None
        if self.device.type == "cuda" and self.host is not None:
            self.host = self.host.pin_memory()
            self.stream = torch.cuda.Stream(self.device)
        self.waiting = self._send()

    def _send(self) -> Tensor:
        if self.host is None:
            return torch.empty((self.batch, 1, *self.model.config.volume_shape), dtype=torch.uint8, device="meta")
        if self.stream is None:
            return self.host
        with torch.cuda.stream(self.stream):
            return self.host.to(self.device, non_blocking=True)

    def _inputs(self) -> Tensor:
        volumes = self.waiting
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            volumes.record_stream(current)
        self.waiting = self._send()
        return volumes.float() if self.host is None else apply_changes(volumes, self.changes)

    def loss(self, *, equal: bool = False) -> Tensor:
        """The loss of the next batch."""
        texts = make_texts(self.model, self.batch, self.number, equal=equal)
        self.number += 1
        with precision(self.device, self.dtype):
            losses = self.model(self._inputs(), *texts)
        return losses.total

    def __call__(self) -> float:
        """One step; returns the loss (and so waits for the device)."""
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        return float(loss.detach())


def _attention(*args: Any, **options: Any) -> int:
    return sdpa_flop_count(args[0], args[1], args[2])


def _attention_backward(*args: Any, **options: Any) -> int:
    return sdpa_backward_flop_count(args[0], args[1], args[2], args[3])


def count_operations(language: str, *, tiny: bool = False, lora: bool = False) -> float:
    """Floating-point operations of a sample of average length in a step without padding, counted on the meta device."""
    model = build(language, torch.device("meta"), torch.float32, tiny=tiny)
    if lora:
        model.add_lora()
    model.train()
    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    # transformers looks at the numbers in masks and positions to find shortcuts; there are none on the meta device.
    masking = "transformers.masking_utils"
    with (
        mock.patch(f"{masking}.find_packed_sequence_indices", return_value=None),
        mock.patch(f"{masking}._ignore_bidirectional_mask_sdpa", return_value=False),
        mock.patch(f"{masking}._ignore_causal_mask_sdpa", return_value=False),
        mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()),
        FlopCounterMode(display=False, custom_mapping=mapping) as counter,
    ):
        Step(model, COUNTED, torch.float32).loss(equal=True).backward()
    return counter.get_total_flops() / COUNTED


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype, tiny: bool) -> float:
    """Operations per second of a large matrix product: the best of several runs."""
    side = 256 if tiny or device.type != "cuda" else 8192
    first, second = torch.randn(2, side, side, device=device).to(dtype)
    best = 0.0
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            first @ second
        synchronize(device)
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - start))
    return best


def measure(step: Step, steps: int) -> tuple[float, list[float]]:
    """Median seconds of a step and all of them, after three that warm up (and compile)."""
    for _ in range(3):
        step()
    times = []
    for _ in range(steps):
        synchronize(step.device)
        start = time.perf_counter()
        step()
        synchronize(step.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times), times


def profile(step: Step) -> str:
    """The operations on which a step spends its time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if step.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        key = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities) as recorded:
        step()
    return str(recorded.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=70))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--language", choices=["gpt2", "biogpt", "t5"], default="gpt2", help="gpt2 is BioMedLM's size")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64, 96, 128, 160, 192])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--lora", action="store_true", help="train adapters too")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="recompute the frozen blocks' activations")
    parser.add_argument("--profile", action="store_true", help="print the operations of a step of the last batch size")
    parser.add_argument("--peak", type=float, help="the vendor's peak in TFLOP/s, for a second utilisation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--count", action="store_true", help="only count operations")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    per_sample = count_operations(arguments.language, tiny=arguments.tiny, lora=arguments.lora)
    print(f"{per_sample / 1e12:.4g} TFLOP a sample")
    if arguments.count:
        return
    if device.type != "cuda" and not arguments.tiny:
        raise SystemExit("the full-size model needs a GPU; use --tiny or --count here")
    default = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, arguments.precision or default)
    torch.manual_seed(0)
    rate = matrix_rate(device, dtype, arguments.tiny)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}: {rate / 1e12:.4g} TFLOP/s in a large {dtype} matrix product\n")
    model = build(arguments.language, device, dtype, tiny=arguments.tiny, checkpointing=arguments.checkpointing)
    if arguments.lora:
        model.add_lora()
    model.train()
    if arguments.compile:
        compile_blocks(model)
    report: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "options": {key: str(value) for key, value in vars(arguments).items()},
        "operations_per_sample": per_sample,
        "matrix_rate": rate,
        "trainable_parameters": model.trainable_count(),
        "results": [],
    }
    print("| batch | ms | samples/s | TFLOP/s | of the matrix rate | peak GiB |\n|---:|---:|---:|---:|---:|---:|")
    last: Step | None = None
    for batch in arguments.batches:
        last = None
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            last = Step(model, batch, dtype)
            seconds, times = measure(last, arguments.steps)
        except torch.OutOfMemoryError:
            print(f"| {batch} | does not fit | | | | |")
            report["results"].append({"batch": batch, "fits": False})
            last = None
            break
        done = per_sample * batch / seconds
        memory = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
        row = {"batch": batch, "fits": True, "seconds": seconds, "all_seconds": times,
               "samples_per_second": batch / seconds, "operations_per_second": done, "utilisation": done / rate,
               "peak_gib": memory}  # fmt: skip
        if arguments.peak:
            row["utilisation_of_peak"] = done / (arguments.peak * 1e12)
        report["results"].append(row)
        print(
            f"| {batch} | {1000 * seconds:.0f} | {batch / seconds:.1f} | {done / 1e12:.4g} | {done / rate:.1%} "
            f"| {'' if memory is None else format(memory, '.1f')} |",
            flush=True,
        )
    if arguments.profile:
        fitting = [row["batch"] for row in report["results"] if row["fits"]]
        if fitting:
            table = profile(last or Step(model, fitting[-1], dtype))
            print(f"\n{table}")
            report["profile"] = table
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
