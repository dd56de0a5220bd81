"""What frozen parts must not cost: gradients of weights, inputs kept for them, padding, work that nothing reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Blip2VisionConfig
from transformers.activations import NewGELUActivation
from transformers.models.blip_2.modeling_blip_2 import Blip2EncoderLayer
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from medalign3d.model.language import replace_slow_gelu, replace_slow_norms
from medalign3d.model.lora import adapted_layers
from medalign3d.model.sub_volumes import CubeProjection
from medalign3d.model.vision import SelfAttention, native_precision, replace_attention

WIDTH, TOKENS = 32, 10


def _block() -> Any:
    config = Blip2VisionConfig(hidden_size=WIDTH, intermediate_size=64, num_attention_heads=4, initializer_range=0.1)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return Blip2EncoderLayer(config).requires_grad_(False).eval()


def _kept_numbers(module: nn.Module, hidden: torch.Tensor) -> int:
    """How many numbers the backward pass keeps beside the weights; views of one tensor count once."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(hidden)
    del output
    return sum(kept.values())


def test_frozen_linear_layers_keep_no_inputs() -> None:
    blocks = nn.ModuleList([_block()])
    replace_attention(blocks)
    hidden = torch.randn(2, TOKENS, WIDTH, requires_grad=True)
    positions = 2 * TOKENS
    # Norms keep their inputs, attention its query, key, value and output, the activation its input; and little else.
    bound = positions * (2 * WIDTH + 4 * WIDTH + 64) + 40 * positions
    assert _kept_numbers(blocks[0], hidden) <= bound
    trained = _kept_numbers(blocks[0].requires_grad_(True), hidden)
    assert trained >= bound + positions * 64, "with gradients of its weights a block keeps what its layers were given"


def test_attention_without_copies_equals_transformers() -> None:
    block, own = _block(), nn.ModuleList([_block()])
    names = set(dict(own.named_parameters()))
    replace_attention(own)
    assert isinstance(own[0].self_attn, SelfAttention)
    assert set(dict(own.named_parameters())) == names
    first = torch.randn(3, TOKENS, WIDTH, requires_grad=True)
    second = first.detach().clone().requires_grad_(True)
    block(first).square().sum().backward()
    own[0](second).square().sum().backward()
    torch.testing.assert_close(own[0](second), block(first))
    torch.testing.assert_close(second.grad, first.grad)
    assert all(parameter.grad is None for parameter in own.parameters())


def test_half_precision_blocks_compute_as_they_are() -> None:
    hidden = torch.randn(2, TOKENS, WIDTH, dtype=torch.bfloat16)
    block = _block().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with native_precision(hidden.device, torch.bfloat16):
            assert not torch.is_autocast_enabled("cpu")
            native = block(hidden)
        with native_precision(hidden.device, torch.float32):
            assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(native.float(), _block()(hidden.float()), rtol=0.05, atol=0.1)


def test_the_fused_gelu_is_the_written_out_one() -> None:
    values = torch.linspace(-12, 12, 200_001, dtype=torch.float32)
    layers = nn.Sequential(nn.Sequential(NewGELUActivation()))
    written = layers(values)
    replace_slow_gelu(layers)
    assert isinstance(layers[0][0], nn.GELU)
    assert float((layers(values) - written).abs().max()) < 1e-6
    small = values.abs() < 4
    assert float((layers(values) - written)[small].abs().max()) < 5e-7


@pytest.mark.parametrize("norm", [T5LayerNorm, LlamaRMSNorm, Qwen3RMSNorm])
def test_fused_norms_are_the_written_out_ones(norm: Any) -> None:
    torch.manual_seed(2)
    layers = nn.ModuleDict({"layer_norm": norm(WIDTH, eps=1e-5)})
    nn.init.normal_(layers["layer_norm"].weight, 1.0, 0.2)
    hidden = torch.randn(3, TOKENS, WIDTH) * 4
    written = layers["layer_norm"](hidden)
    names = set(layers.state_dict())
    replace_slow_norms(layers)
    assert isinstance(layers["layer_norm"], nn.RMSNorm)
    assert set(layers.state_dict()) == names
    torch.testing.assert_close(layers["layer_norm"](hidden), written, rtol=1e-6, atol=1e-6)
    half = layers.bfloat16().requires_grad_(False)["layer_norm"](hidden.bfloat16())
    torch.testing.assert_close(half.float(), written, rtol=0.02, atol=0.02)


def test_bytes_and_numbers_give_the_same_tokens() -> None:
    part = CubeProjection((0, 0, 0), (12, 12, 12), 2, 3, 4, 0.02)
    volumes = torch.randint(0, 256, (2, 1, 12, 12, 12), dtype=torch.uint8)
    torch.testing.assert_close(part(volumes), part(volumes / 255.0), rtol=1e-5, atol=1e-6)
    expected = nn.functional.avg_pool3d(volumes / 255.0, 2)[:, 0]
    torch.testing.assert_close(part.pool(volumes), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text_branch", ["shared", "full"])
def test_the_text_branch_reads_only_its_first_token(build: Any, text_branch: str) -> None:
    model = build("gpt2", text_branch=text_branch).eval()
    ids, mask = model.text_tokenizer.pad(model.text_tokenizer.ids(["Age 74 years; MMSE 27/30.", "Male.", ""]))
    embedded = model.alignq.text_embeddings(input_ids=ids)
    whole = model.alignq.qformer(query_embeds=embedded, query_length=0, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(model.alignq.encode_text(ids, mask), whole[:, 0], rtol=1e-4, atol=1e-5)


def test_adapters_of_a_half_precision_model_keep_no_float32_inputs(build: Any, kind: str) -> None:
    model = build(kind, dtype="bfloat16")
    model.add_lora(seed=2)
    for layer in adapted_layers(model.language.model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, 0.0, 0.02)
    texts, questions = ["Age 74 years; MMSE 27/30."] * 3, ["Does this person have dementia?"] * 3
    prompts = model.language.encode_prompts(texts, questions)
    answers = model.language.encode_answers(["no dementia"] * 3)
    positions = 3 * (len(prompts[0]) if model.language.encoder_decoder else len(prompts[0]) + len(answers[0]) - 1)
    large: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float32 and tensor.numel() == positions * model.language.hidden_size:
            large.append(tuple(tensor.shape))
        return tensor

    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        losses = model.language.answer_loss(None, prompts, answers)
    losses.mean().backward()
    # T5's norm computes in float32 by itself.
    assert kind == "t5" or not large
    adapters = [p for p in model.language.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.any() for p in adapters)

    whole = build(kind)
    whole.add_lora(seed=2)
    whole.load_trainable_state_dict(model.trainable_state_dict())
    expected = whole.language.answer_loss(None, prompts, answers)
    torch.testing.assert_close(losses.detach(), expected.detach(), rtol=0.05, atol=0.05)
    expected.mean().backward()
    reference = torch.cat([p.grad.flatten() for p in whole.language.parameters() if p.grad is not None])
    own = torch.cat([p.grad.flatten() for p in adapters if p.grad is not None])
    assert float(nn.functional.cosine_similarity(own, reference, dim=0)) > 0.98
