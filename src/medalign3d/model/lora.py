"""Low-rank adapters on query and value matrices only, whatever a language model calls or fuses them.

Models with separate projections get plain LoRA on them. Models that fuse query, key and value into one matrix get LoRA
of twice the rank (and alpha) on the fused matrix whose ``lora_B`` is masked: query rows see the first half of the rank,
value rows the second half, key rows nothing. That is exactly rank r on Q and rank r on V, and the adapter's files stay
readable by PEFT itself. A probe at build time checks on the model that keys do not move.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medalign3d.errors import ParameterError
from medalign3d.model.config import LoraConfig

# Names of separate query and value projections: T5; BioGPT, OPT, Llama, Mistral, Qwen, Phi; BERT-like; DistilBERT-like.
SEPARATE_NAMES: tuple[tuple[str, str], ...] = (("q", "v"), ("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"))


@dataclasses.dataclass(frozen=True)
class FusedLayout:
    """How a fused projection stacks its output rows.

    ``module`` is the projection's name; ``rows(config)`` gives the boolean rows of query and of value.
    """

    module: str
    rows: Callable[[Any], tuple[Tensor, Tensor]]


def _stacked(queries: int, keys: int, values: int) -> tuple[Tensor, Tensor]:
    """Rows of [all queries | all keys | all values]."""
    index = torch.arange(queries + keys + values)
    return index < queries, index >= queries + keys


def _per_head(heads: int, size: int) -> tuple[Tensor, Tensor]:
    """Rows of [q k v] of head 1, [q k v] of head 2, ..."""
    index = torch.arange(heads * 3 * size) % (3 * size)
    return index < size, index >= 2 * size


def _phi3_rows(config: Any) -> tuple[Tensor, Tensor]:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shared = (config.num_key_value_heads or config.num_attention_heads) * size
    return _stacked(config.num_attention_heads * size, shared, shared)


FUSED_LAYOUTS: dict[str, FusedLayout] = {
    "gpt2": FusedLayout("c_attn", lambda config: _stacked(*([config.hidden_size] * 3))),
    "gpt_neox": FusedLayout(
        "query_key_value",
        lambda config: _per_head(config.num_attention_heads, config.hidden_size // config.num_attention_heads),
    ),
    "bloom": FusedLayout(
        "query_key_value", lambda config: _per_head(config.n_head, config.hidden_size // config.n_head)
    ),
    "phi3": FusedLayout("qkv_proj", _phi3_rows),
}


@dataclasses.dataclass(frozen=True)
class AdapterReport:
    """What was adapted: ``parameters`` counts only those that can move."""

    modules: int
    target_names: tuple[str, ...]
    fused: bool
    parameters: int


def _leaf_names(model: nn.Module) -> set[str]:
    from transformers.pytorch_utils import Conv1D

    linear = (nn.Linear, Conv1D)
    return {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)}


def find_targets(model: Any, wanted: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], FusedLayout | None]:
    """The names of the modules to adapt, and the layout where they are fused.

    Parameters
    ----------
    model
        A Hugging Face language model.
    wanted
        ``model.lora.target_modules``: used as given for separate projections.

    Raises
    ------
    ParameterError
        When the model's attention is of no known layout, or ``wanted`` names what the model does not have.
    """
    names = _leaf_names(model)
    layout = FUSED_LAYOUTS.get(model.config.model_type)
    if wanted:
        absent = sorted(set(wanted) - names)
        if absent:
            raise ParameterError(
                "a module to adapt does not exist",
                where="model.lora.target_modules",
                found=", ".join(absent),
                expected=f"names among {', '.join(sorted(names))}",
            )
        return tuple(wanted), layout if layout is not None and tuple(wanted) == (layout.module,) else None
    if layout is not None and layout.module in names:
        return (layout.module,), layout
    for pair in SEPARATE_NAMES:
        if set(pair) <= names:
            return pair, None
    raise ParameterError(
        "the query and value matrices of a language model are not known",
        where="model.lora.target_modules",
        found=f"model type {model.config.model_type} with layers {', '.join(sorted(names))}",
        expected=f"separate ones ({'; '.join('/'.join(pair) for pair in SEPARATE_NAMES)}) or a fused layout of "
        f"{', '.join(sorted(FUSED_LAYOUTS))}",
        remedy="name the query and value projections in model.lora.target_modules",
    )


def adapted_layers(model: nn.Module) -> list[Any]:
    """The adapted layers of a model, in order."""
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def add_lora(model: Any, config: LoraConfig, seed: int = 0) -> AdapterReport:
    """Add trainable adapters to a frozen language model, in place.

    Parameters
    ----------
    model
        A Hugging Face language model.
    config
        Rank, alpha, dropout and, for unknown layouts, the modules.
    seed
        Of the adapters' start values (``lora_A``; ``lora_B`` starts at zero, so outputs do not change).

    Raises
    ------
    ParameterError
        See :func:`find_targets`; also when the probe sees keys move.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D

    if adapted_layers(model):
        raise ParameterError("the language model already has adapters", where="model.lora")
    targets, layout = find_targets(model, config.target_modules)
    factor = 1 if layout is None else 2
    conv1d = any(isinstance(m, Conv1D) for n, m in model.named_modules() if n.rpartition(".")[2] in targets)
    keys_before = _probe(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT calls a method of transformers whose name will change.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        peft_model = get_peft_model(
            model,
            PeftLoraConfig(
                r=config.rank * factor,
                lora_alpha=config.alpha * factor,  # type: ignore[arg-type]
                lora_dropout=config.dropout,
                target_modules=list(targets),
                fan_in_fan_out=conv1d,
                bias="none",
                task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
            ),
        )
    # PEFT changes the model in place; its wrapper is only needed to write the adapter in PEFT's own format.
    object.__setattr__(model, "medalign3d_peft", peft_model)
    layers = adapted_layers(model)
    parameters = sum(p.numel() for layer in layers for p in layer.parameters() if p.requires_grad)
    if layout is not None:
        mask = value_mask(model.config, layout, config.rank)
        for layer in layers:
            weight = layer.lora_B["default"].weight
            if weight.shape != mask.shape:
                raise ParameterError(
                    "a fused attention matrix has another size than its layout says",
                    where=f"model type {model.config.model_type}",
                    found=tuple(weight.shape),
                    expected=tuple(mask.shape),
                    remedy="name separate query and value projections in model.lora.target_modules",
                )
            _mask_gradient(layer, weight, mask)
            parameters -= int((~mask).sum())
    if model.get_input_embeddings().weight.dtype != torch.float32:
        for layer in layers:
            _compute_in_input_precision(layer)
    _check_keys_stay(model, keys_before, layers, layout, config.rank)
    return AdapterReport(len(layers), targets, layout is not None, parameters)


def value_mask(model_config: Any, layout: FusedLayout, rank: int) -> Tensor:
    """(rows, 2 rank) bool: which entries of a fused layer's ``lora_B`` may move."""
    queries, values = layout.rows(model_config)
    mask = torch.zeros(len(queries), 2 * rank, dtype=torch.bool)
    mask[queries, :rank] = True
    mask[values, rank:] = True
    return mask


def _compute_in_input_precision(layer: Any) -> None:
    """Multiply with an adapter's float32 weights in the precision of the input, as autocast would.

    PEFT turns the input into float32 instead: twice the memory for the backward pass, and slow products.
    """
    layer.cast_input_dtype_enabled = False
    for part in (layer.lora_A["default"], layer.lora_B["default"]):
        part.forward = functools.partial(_linear_as_given, part)


def _linear_as_given(part: nn.Linear, hidden: Tensor) -> Tensor:
    return nn.functional.linear(hidden, part.weight.to(hidden.dtype))


def _mask_gradient(layer: nn.Module, weight: Tensor, mask: Tensor) -> None:
    """Zero the gradient of entries outside ``mask``; AdamW, its decay included, then leaves their zeros alone."""
    layer.register_buffer("lora_mask", mask.to(weight.device), persistent=False)
    # The mask is read from the layer, so that it follows the model to another device.
    weight.register_hook(lambda gradient: gradient * layer.lora_mask)


@torch.no_grad()
def _probe(model: Any) -> tuple[Tensor, Tensor] | None:
    """Keys and values of the first self-attention of a short sequence; None where the model shows no such cache."""
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":
        return None
    ids = torch.tensor([[0, 1, 2]], device=device)
    ones = torch.ones_like(ids)
    was_training = model.training
    model.eval()
    try:
        if model.config.is_encoder_decoder:
            output = model(input_ids=ids, attention_mask=ones, decoder_input_ids=ids, use_cache=True)
            cache = output.past_key_values.self_attention_cache
        else:
            cache = model(input_ids=ids, attention_mask=ones, use_cache=True).past_key_values
        layer = cache.layers[0]
        return layer.keys.clone(), layer.values.clone()
    except (AttributeError, IndexError, TypeError):
        return None
    finally:
        model.train(was_training)


@torch.no_grad()
def _check_keys_stay(
    model: Any, before: tuple[Tensor, Tensor] | None, layers: list[Any], layout: FusedLayout | None, rank: int
) -> None:
    """Move every adapter for a moment: the first layer's values must change, its keys must not, not by one bit."""
    if before is None:
        return
    weights = [layer.lora_B["default"].weight for layer in layers]
    mask = None if layout is None else value_mask(model.config, layout, rank)
    for weight in weights:
        noise = torch.full_like(weight, 0.5)
        weight.copy_(noise if mask is None else noise * mask.to(weight.device))
    after = _probe(model)
    for weight in weights:
        weight.zero_()
    if after is None:
        return
    if not torch.equal(before[0], after[0]) or torch.equal(before[1], after[1]):
        raise ParameterError(
            "adapters would not change queries and values only",
            where="model.lora.target_modules",
            found="keys that move" if not torch.equal(before[0], after[0]) else "values that do not move",
            expected="the names of the query and value projections",
            remedy="correct model.lora.target_modules for this language model",
        )


def movable_parameters(model: nn.Module) -> int:
    """Number of adapter parameters that can move (masked entries of fused layers are not counted)."""
    total = 0
    for layer in adapted_layers(model):
        total += sum(p.numel() for p in layer.parameters() if p.requires_grad)
        mask = getattr(layer, "lora_mask", None)
        if mask is not None:
            total -= int((~mask).sum())
    return total


def merge_lora(model: Any) -> Any:
    """Fold the adapters into the frozen weights and remove them; returns the plain language model."""
    merged = model.medalign3d_peft.merge_and_unload()
    object.__delattr__(model, "medalign3d_peft")
    return merged


def save_adapter(model: Any, folder: Any) -> None:
    """Write the adapters in PEFT's own format (safetensors), for use outside this project."""
    model.medalign3d_peft.save_pretrained(folder, safe_serialization=True)
