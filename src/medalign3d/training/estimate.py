"""What a training run will need, told before anything is allocated: memory, floating-point operations, hours.

Everything is reckoned from the models' configurations, built on the meta device; no weight is read.

Floating-point operations are those of matrix products (two per multiply-add). A frozen block costs one forward pass and
one backward pass without weight gradients, attention twice as much backward as forward; trainables cost three times
their forward pass. With BioMedLM that is 3.46 TFLOP a sample, with BioGPT-Large 2.70, with FLAN-T5-XL 2.65.

Memory per sample is what the backward pass keeps. A frozen block keeps no inputs of its linear layers, only those of
its norms (2 x width), query, key, value and output of its attention, and the input of its activation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medalign3d.errors import MedAlignError
from medalign3d.model.config import LoraConfig, ModelConfig
from medalign3d.params import Optimization
from medalign3d.progress import format_seconds

GIB = 1 << 30
ASSUMED_UTILISATION = 0.4
"""Share of a device's peak that a step is assumed to reach until it is measured."""
DEVICE_RESERVE_BYTES = GIB // 2
"""What a GPU's driver and libraries take before the first tensor."""
FRAGMENTATION = 1.05
TRAINABLE_BYTES = 16
"""Of each trainable number: weight, gradient and AdamW's two moments in float32."""

PEAKS: dict[str, float] = {
    "b200": 2250e12,
    "h200 nvl": 835e12,
    "h200": 989e12,
    "gh200": 989e12,
    "h100 nvl": 835e12,
    "h100 pcie": 756e12,
    "h100": 989e12,
    "a100": 312e12,
    "a800": 312e12,
    "h800": 989e12,
    "l40s": 362e12,
    "l40": 181e12,
    "l4": 121e12,
    "a40": 150e12,
    "a30": 165e12,
    "a10g": 70e12,
    "a10": 125e12,
    "rtx 6000 ada": 364e12,
    "rtx a6000": 155e12,
    "rtx 4090": 165e12,
    "rtx 3090": 71e12,
    "mi300x": 1307e12,
    "mi250": 362e12,
}
"""Dense bfloat16 matrix rate of a device in floating-point operations per second, by a part of its name (vendors' data
sheets)."""


def device_peak(name: str, precision: str) -> float | None:
    """The device's peak for ``bfloat16``; None where it is not known (float32 may or may not use TF32).

    >>> device_peak("NVIDIA H200", "bfloat16"), device_peak("cpu", "bfloat16")
    (989000000000000.0, None)
    """
    if precision != "bfloat16":
        return None
    words = name.lower().replace("-", " ").split()
    for known in sorted(PEAKS, key=lambda key: (-len(key.split()), -len(key))):
        parts = known.split()
        if all(part in words for part in parts):
            return PEAKS[known]
    return None


# -- shapes ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stack of transformer blocks.

    ``weights`` are the numbers in its matrices; ``cross_weights`` those of them that read *another* sequence (keys and
    values of cross-attention). ``inner`` is heads x head size, ``activations`` the numbers per position and block that
    the activation function's backward pass keeps. ``causal`` halves the attention.
    """

    layers: int
    width: int
    inner: int
    weights: int
    activations: int
    causal: bool = False
    cross_weights: int = 0
    cross_layers: int = 0

    def forward(self, positions: float, other: float = 0.0) -> float:
        """Operations of a forward pass over ``positions``, cross-attention to ``other`` positions included."""
        return 2.0 * self.own_weights * positions + 2.0 * self.cross_weights * other + self.attention(positions, other)

    @property
    def own_weights(self) -> int:
        """Numbers that are multiplied with every position of the stack's own sequence."""
        return self.weights - self.cross_weights

    def attention(self, positions: float, other: float = 0.0) -> float:
        """Operations of attention, forward."""
        own = 4.0 * positions**2 * self.inner * self.layers / (2 if self.causal else 1)
        return own + 4.0 * positions * other * self.inner * self.cross_layers

    def backward_frozen(self, positions: float, other: float = 0.0) -> float:
        """Operations of a backward pass that makes no weight gradients."""
        return self.forward(positions, other) + self.attention(positions, other)

    def kept(self, positions: float, other: float = 0.0, *, trainable: bool = False) -> float:
        """Numbers that the backward pass needs; a trainable stack also keeps the inputs of its matrices."""
        per_position = 2 * self.width + 4 * self.inner + self.activations
        if trainable:
            per_position += 3 * self.width + self.activations
        cross = self.cross_layers * ((self.width + 2 * self.inner) * positions + 2 * self.inner * other)
        return self.layers * per_position * positions + cross


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What decides cost and memory of a composite model.

    ``cubes`` are (number, voxels of one) of each set of sub-volumes; ``trainable`` and ``frozen`` count numbers.
    """

    voxels: int
    cubes: tuple[tuple[int, int], ...]
    vision: Stack
    qformer: Stack
    text: Stack
    language: Stack
    decoder: Stack | None
    vocabulary: int
    queries: int
    trainable: int
    adapters: int
    frozen: int

    @property
    def image_positions(self) -> int:
        """Tokens of a volume, the class token included."""
        return 1 + sum(count for count, _ in self.cubes)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of a sample.

    ``language`` is the language model's sequence (its encoder's, where it has one) with the visual tokens, ``answer``
    the answer with its end, ``text`` the record's and the statement's tokens in the text branch together.
    """

    language: float
    answer: float
    text: float


def _matrices(module: nn.Module, exclude: Sequence[nn.Module] = ()) -> int:
    """Numbers in the matrices of linear layers."""
    from transformers.pytorch_utils import Conv1D

    left_out = {id(part) for part in exclude}
    return sum(
        part.weight.numel()
        for part in module.modules()
        if isinstance(part, (nn.Linear, Conv1D)) and id(part) not in left_out
    )


def _language_stacks(model: Any) -> tuple[Stack, Stack | None]:
    """The stack that reads the prompt, and an encoder-decoder's decoder."""
    config = model.config
    width = int(config.hidden_size)
    heads = int(config.num_attention_heads)
    head_size = int(getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or width // heads)
    feed_forward = next(
        (int(value) for name in ("d_ff", "n_inner", "intermediate_size", "ffn_dim", "encoder_ffn_dim")
         if (value := getattr(config, name, None))), 4 * width,
    )  # fmt: skip
    gated = bool(getattr(config, "is_gated_act", False)) or config.model_type in GATED
    activations = feed_forward * (3 if gated else 1)
    layers = int(config.num_hidden_layers)
    inner = heads * head_size
    if not config.is_encoder_decoder:
        weights = _matrices(model, [model.get_output_embeddings()])
        return Stack(layers, width, inner, weights, activations, causal=True), None
    encoder, decoder = model.get_encoder(), model.get_decoder()
    cross = sum(
        part.weight.numel()
        for name, part in decoder.named_modules()
        if isinstance(part, nn.Linear)
        and ("EncDecAttention" in name or "encoder_attn" in name)
        and name.rpartition(".")[2] in ("k", "v", "k_proj", "v_proj")
    )
    deep = int(getattr(config, "num_decoder_layers", None) or layers)
    return (
        Stack(layers, width, inner, _matrices(encoder), activations),
        Stack(deep, width, inner, _matrices(decoder), activations, True, cross, deep),
    )


GATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "olmo2")
"""Causal language models with a gated feed-forward layer."""


def shapes_from_configs(
    config: ModelConfig, vision: Any, qformer: Any, language: Any, *, lora: LoraConfig | None = None
) -> Shapes:
    """Build the parts on the meta device and measure them.

    Parameters
    ----------
    config
        Of the composite model.
    vision, qformer, language
        The parts' Hugging Face configurations.
    lora
        Adapters on the language model, if they are trained.
    """
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings, Blip2VisionModel

    from medalign3d.model.alignq import AlignQ
    from medalign3d.model.lora import add_lora
    from medalign3d.model.parameters import build_language_model, count
    from medalign3d.model.sub_volumes import SubVolumeEmbedding
    from medalign3d.model.vision import resolve_layers

    vision, qformer, language = _copied(vision), _copied(qformer), _copied(language)
    qformer.use_qformer_text_input = True
    with torch.device("meta"):
        blocks = Blip2VisionModel(vision).encoder.layers
        used = max(resolve_layers(config.feature_layers, len(blocks)))
        embedding = SubVolumeEmbedding(config, torch.empty(vision.hidden_size, device="meta"))
        alignq = AlignQ(
            Blip2QFormerModel(qformer),
            Blip2TextEmbeddings(qformer),
            torch.empty(config.queries, qformer.hidden_size, device="meta"),
            config.contrastive_size,
            config.text_branch,
        )
        model = build_language_model(language)
    reading, decoder = _language_stacks(model)
    frozen = count(blocks) * used // max(1, len(blocks)) + count(model) + count(alignq) - count(
        alignq, trainable_only=True
    )  # fmt: skip
    model.requires_grad_(False)
    adapters = add_lora(model, lora).parameters if lora is not None else 0
    width, wide, deep = qformer.hidden_size, qformer.intermediate_size, qformer.num_hidden_layers
    crossing = len(range(0, deep, qformer.cross_attention_frequency))
    text = deep * (4 * width**2 + 2 * width * wide)
    keys_values = crossing * 2 * qformer.encoder_hidden_size * width
    blip_width = int(vision.hidden_size)
    outside = count(embedding) + 2 * blip_width + width * reading.width + reading.width
    if len(config.feature_layers) > 1:
        outside += len(config.feature_layers)
    if config.auxiliary_targets:
        outside += (width + 1) * len(config.auxiliary_targets)
    return Shapes(
        voxels=config.volume_shape[0] * config.volume_shape[1] * config.volume_shape[2],
        cubes=tuple((part.count, part.cube**3) for part in embedding.projections),
        vision=Stack(used, blip_width, blip_width, _matrices(blocks[:used]), int(vision.intermediate_size)),
        qformer=Stack(
            deep, width, width, text + crossing * 2 * width**2 + keys_values, wide, False, keys_values, crossing
        ),
        text=Stack(deep, width, width, text, wide),
        language=reading,
        decoder=decoder,
        vocabulary=int(language.vocab_size),
        queries=config.queries,
        trainable=outside + count(alignq, trainable_only=True) + adapters,
        adapters=adapters,
        frozen=frozen,
    )


def _copied(config: Any) -> Any:
    return type(config).from_dict(config.to_dict())


def device_limits(device: torch.device) -> tuple[str, float]:
    """What to call a device, and how many bytes it has: a GPU's own memory, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), float(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return "the CPU", float(psutil.virtual_memory().total)


def read_shapes(config: ModelConfig, *, lora: LoraConfig | None = None) -> Shapes:
    """The shapes of a model whose checkpoints are folders or Hugging Face ids; only their ``config.json`` is read.

    Raises
    ------
    CheckpointError
        When a configuration is missing or unreadable.
    """
    from medalign3d.model.loading import read_config

    blip = read_config(config.vision_checkpoint, config.vision_revision, "model.vision.checkpoint")
    language = read_config(
        config.language_checkpoint, config.language_revision, "model.language.models.<name>.checkpoint"
    )
    return shapes_from_configs(config, blip.vision_config, blip.qformer_config, language, lora=lora)


def longest_tokens(config: ModelConfig, shapes: Shapes) -> Tokens:
    """An upper limit of a sample's tokens, from the parameters alone."""
    prompt = config.queries + config.maximum_prompt_tokens
    answer = min(config.maximum_new_tokens, 8)
    text = 2 * config.maximum_text_tokens
    return Tokens(prompt if shapes.decoder is not None else prompt + answer - 1, answer, text)


def measured_tokens(model: Any, samples: Sequence[Any]) -> Tokens:
    """Mean tokens of training samples (with ``text``, ``question``, ``answer``) as the model cuts them."""
    language = model.language
    prompts = language.encode_prompts([s.text for s in samples], [s.question for s in samples])
    answers = language.encode_answers([s.answer for s in samples])
    texts = model.text_tokenizer.ids([s.text for s in samples])
    statements = model.text_tokenizer.ids([f"{s.question} {s.answer}" for s in samples])
    count = len(samples)
    prompt = sum(map(len, prompts)) / count + model.config.queries
    answer = sum(map(len, answers)) / count
    text = (sum(map(len, texts)) + sum(map(len, statements))) / count
    return Tokens(prompt if language.encoder_decoder else prompt + answer - 1, answer, text)


# -- cost --------------------------------------------------------------------------------------------------------------


def operations_per_sample(
    shapes: Shapes, tokens: Tokens, *, contrastive: bool = True, generation: bool = True
) -> dict[str, float]:
    """Floating-point operations of a training step per sample, by part: model operations, without recomputing any.

    The text branch is reckoned for every sample, though equal texts are encoded once.
    """
    image, queries = shapes.image_positions, shapes.queries
    patches = sum(2.0 * count * voxels * shapes.vision.width for count, voxels in shapes.cubes)
    parts = {
        "patch_embedding": 2 * patches,  # the volume itself needs no gradient
        "vision": shapes.vision.forward(image) + shapes.vision.backward_frozen(image),
        "qformer": 3 * shapes.qformer.forward(queries, image),
        "text": 3 * shapes.text.forward(tokens.text) if contrastive else 0.0,
        "language": 0.0,
    }
    if generation:
        length, answer = tokens.language, tokens.answer
        total = shapes.language.forward(length) + shapes.language.backward_frozen(length)
        if shapes.decoder is not None:
            total += shapes.decoder.forward(answer, length) + shapes.decoder.backward_frozen(answer, length)
        output = 2.0 * shapes.language.width * shapes.vocabulary * answer
        parts["language"] = total + 2 * output + 4.0 * shapes.adapters * length
    return parts


def bytes_per_sample(
    shapes: Shapes, tokens: Tokens, *, precision: str, recompute: bool = False, contrastive: bool = True
) -> float:
    """Bytes that a sample keeps on the device until the backward pass."""
    size = 2 if precision == "bfloat16" else 4
    image, queries, length = shapes.image_positions, shapes.queries, tokens.language

    def frozen(stack: Stack, positions: float, other: float = 0.0) -> float:
        if not recompute:
            return stack.kept(positions, other)
        # Every block's input, and one block at a time in full.
        return stack.layers * stack.width * positions + stack.kept(positions, other) / max(1, stack.layers)

    kept = frozen(shapes.vision, image) + frozen(shapes.language, length)
    if shapes.decoder is not None:
        kept += frozen(shapes.decoder, tokens.answer, length)
    kept += shapes.qformer.kept(queries, image, trainable=True)
    if contrastive:
        kept += shapes.text.kept(tokens.text, trainable=True)
    kept += sum(count * voxels for count, voxels in shapes.cubes)  # the input of the sub-volumes' projection
    logits = 3 * 4 * tokens.answer * shapes.vocabulary
    volume = 4 * shapes.voxels
    return size * kept + logits + volume


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a run is predicted to need on each of its devices; bytes, operations and seconds.

    ``seconds`` is None where the device's speed is not known.
    """

    frozen_bytes: float
    trainable_bytes: float
    sample_bytes: float
    samples: int
    operations: float
    seconds: float | None
    reserve_bytes: float

    @property
    def activation_bytes(self) -> float:
        """Of one micro-batch."""
        return self.sample_bytes * self.samples

    @property
    def fixed_bytes(self) -> float:
        """What does not grow with the batch."""
        return self.frozen_bytes + self.trainable_bytes + self.reserve_bytes

    @property
    def total_bytes(self) -> float:
        """Predicted peak."""
        return self.fixed_bytes + self.activation_bytes * FRAGMENTATION

    def most_samples(self, available: float) -> int:
        """The largest micro-batch that fits; 0 where not one sample does."""
        return max(0, int((available - self.fixed_bytes) / (self.sample_bytes * FRAGMENTATION)))


def predict(
    shapes: Shapes,
    tokens: Tokens,
    optimization: Optimization,
    *,
    processes: int = 1,
    recompute: bool = False,
    peak: float | None = None,
    utilisation: float = ASSUMED_UTILISATION,
    gpu: bool = True,
) -> Prediction:
    """Predict memory and time of a training run (see the module's docstring); ``peak`` is one device's."""
    precision = optimization.precision
    size = 2 if precision == "bfloat16" else 4
    generation = optimization.lambda_generation > 0
    operations = sum(
        operations_per_sample(shapes, tokens, contrastive=optimization.contrastive, generation=generation).values()
    )
    done = operations
    if recompute:  # what is done twice takes time but is no model operation
        done += shapes.vision.forward(shapes.image_positions)
        done += shapes.language.forward(tokens.language) if generation else 0.0
    total = done * optimization.batch_size * optimization.steps
    micro = -(-optimization.batch_size // optimization.accumulation)
    return Prediction(
        frozen_bytes=size * shapes.frozen,
        # Under autocast a copy of the trainable matrices in the smaller type lives through a step.
        trainable_bytes=(TRAINABLE_BYTES + (2 if precision == "bfloat16" else 0)) * shapes.trainable
        + 8.0 * shapes.voxels,
        sample_bytes=bytes_per_sample(
            shapes, tokens, precision=precision, recompute=recompute, contrastive=optimization.contrastive
        ),
        samples=-(-micro // processes),
        operations=operations,
        seconds=None if peak is None else total / (peak * processes * utilisation),
        reserve_bytes=DEVICE_RESERVE_BYTES if gpu else 0.0,
    )


def gib(size: float) -> str:
    """Bytes for people.

    >>> gib(3 << 29)
    '1.5 GiB'
    """
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"


def describe(prediction: Prediction, shapes: Shapes, device: str, available: float | None, steps: int) -> list[str]:
    """The lines that are printed before step 1."""
    of = "" if available is None else f" of {gib(available)}"
    lines = [
        f"predicted on {device}: {gib(prediction.total_bytes)}{of} (frozen weights {gib(prediction.frozen_bytes)}, "
        f"{shapes.trainable / 1e6:.1f} M trainables with optimizer {gib(prediction.trainable_bytes)}, "
        f"{prediction.samples} samples {gib(prediction.activation_bytes)})"
    ]
    cost = f"{prediction.operations / 1e12:.3g} TFLOP a sample"
    if prediction.seconds is None:
        lines.append(f"{cost}; the time left is told from the first steps on")
    else:
        lines.append(
            f"{cost}; about {format_seconds(prediction.seconds)} for {steps:,} steps at "
            f"{ASSUMED_UTILISATION:.0%} of the device's peak"
        )
    return lines


def check_fits(
    prediction: Prediction,
    available: float,
    optimization: Optimization,
    *,
    section: str,
    device: str,
    processes: int = 1,
    recompute: bool = False,
    recomputed: Prediction | None = None,
) -> None:
    """Refuse a run that will not fit its device, and say what to change.

    Parameters
    ----------
    prediction
        As the parameters are.
    available
        Bytes of the device.
    optimization, section
        The recipe, and its section of the parameters, ``pretrain`` or ``tune``.
    device, processes
        Its name, and how many like it share the run.
    recompute
        Whether activation checkpointing is on.
    recomputed
        The same run's prediction with activation checkpointing.

    Raises
    ------
    MedAlignError
        When the predicted peak is larger than what is available.
    """
    if prediction.total_bytes <= available:
        return
    advice = []
    best = prediction
    if not recompute and recomputed is not None and recomputed.most_samples(available) > 0:
        if recomputed.total_bytes <= available:
            advice.append(
                f"set training.activation_checkpointing: true ({gib(recomputed.total_bytes)}, about 1.5 times the time)"
            )
        best = prediction if prediction.most_samples(available) else recomputed
    fitting = best.most_samples(available)
    if fitting:
        accumulation = -(-optimization.batch_size // (fitting * processes))
        also = " with training.activation_checkpointing: true" if best is not prediction else ""
        advice.append(
            f"set {section}.accumulation: {accumulation} ({fitting} samples at a time{also}; contrastive negatives "
            "then come from each part of the batch)"
        )
        advice.append(f"or set {section}.batch_size: {fitting * processes * optimization.accumulation}{also}")
    if not fitting:
        advice.append("use a device with more memory")
    raise MedAlignError(
        "this run does not fit its device",
        where=device,
        found=f"{gib(available)}",
        expected=f"about {gib(prediction.total_bytes)}: frozen weights {gib(prediction.frozen_bytes)}, trainables with "
        f"optimizer {gib(prediction.trainable_bytes)}, {prediction.samples} samples of "
        f"{gib(prediction.sample_bytes)} each",
        remedy="; ".join(advice),
    )
