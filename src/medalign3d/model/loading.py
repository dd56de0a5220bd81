"""Read frozen backbones from a folder or the Hugging Face hub; every failure says what to do.

The vision transformer, the query transformer with its text branch and the contrastive projections come from *one*
checkpoint in the BLIP-2 image-text-matching format (``Salesforce/blip2-itm-vit-g`` at full size). Safetensors files
are preferred; older ``.bin`` files are read with ``weights_only=True``, so nothing in them is executed. Nothing runs
code that comes with a checkpoint. Only what a repository holds itself is used: transformers may otherwise ask a service
to convert ``.bin`` files of others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
)
from transformers.utils import logging as transformers_logging

from medalign3d.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass
class VisionParts:
    """What a BLIP-2 image-text-matching checkpoint is taken apart into."""

    blocks: nn.ModuleList
    post_layernorm: nn.LayerNorm
    class_token: Tensor
    qformer: Any
    text_embeddings: Any
    queries: Tensor
    image_projection: nn.Linear
    text_projection: nn.Linear
    tokenizer: Any


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing bars and load reports; its warnings become our errors."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _explain(checkpoint: str, revision: str | None, parameter: str) -> Iterator[None]:
    """Turn what transformers raises about an unreadable checkpoint into one error that can be acted on."""
    if not Path(checkpoint).is_dir() and (
        checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~", "data/"))
    ):
        raise CheckpointError(
            "a checkpoint is missing",
            where=f"{parameter}: {checkpoint}",
            found="no such folder",
            expected="a folder in Hugging Face format, or the id of a Hugging Face repository",
            remedy="run `dvc repro backbones` to make the demo's backbones, or correct the path",
        )
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if Path(checkpoint).is_dir():
            raise CheckpointError(
                "a checkpoint cannot be read",
                where=checkpoint,
                found=first_line,
                expected="a folder in Hugging Face format (config.json, model.safetensors, tokenizer files)",
                remedy=f"make it again, or correct {parameter}",
            ) from error
        wanted = f"{checkpoint}{'' if revision is None else f' --revision {revision}'}"
        raise CheckpointError(
            "a checkpoint is neither here nor can be downloaded",
            where=f"{parameter}: {checkpoint}",
            found=first_line,
            expected="an existing folder, or the id of a Hugging Face repository that can be reached",
            remedy=f"on a machine with internet run `hf download {wanted} --local-dir backbone`, bring the folder "
            f"here and set {parameter} to it",
        ) from error


def _pattern(name: str) -> str:
    """A tensor's name without the numbers of layers."""
    return re.sub(r"\d+", "#", name)


def _require_complete(model: nn.Module, info: Mapping[str, Any], where: str, optional: tuple[str, ...] = ()) -> None:
    """Raise when tensors of a model and its checkpoint differ: they would stay random, or be left out.

    Tensors of other kinds than the model has (old attention masks, heads of another task) are no fault.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shown = [
        f"{name}: {shapes.get(name, '')} not in the checkpoint"
        for name in sorted(info["missing_keys"])
        if not name.startswith(optional)
    ]
    shown += [
        f"{name}: {tuple(found)} in the checkpoint, {tuple(expected)} by config.json"
        for name, found, expected in sorted(info.get("mismatched_keys") or ())
        if not name.startswith(optional)
    ]
    parameters = {_pattern(name) for name, _ in model.named_parameters()}
    shown += [
        f"{name}: in the checkpoint, not in config.json's architecture"
        for name in sorted(info.get("unexpected_keys") or ())
        if _pattern(name) in parameters
    ]
    if shown:
        raise CheckpointError(
            "the tensors of a checkpoint are not those of its own architecture",
            where=where,
            found="\n            ".join(shown[:12])
            + (f"\n            and {len(shown) - 12} more" if len(shown) > 12 else ""),
            expected="all tensors that config.json describes, in their shapes, and no further layers",
            remedy="download or make the checkpoint again",
        )


def _read_options(revision: str | None) -> dict[str, Any]:
    """How configurations, weights and tokenizers are read: no code of a checkpoint, no network when told so."""
    return {"revision": revision, "local_files_only": is_offline(), "trust_remote_code": False}


def _read_model(kind: Any, checkpoint: str, config: Any, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model and what transformers says about its tensors; differing shapes are told, not raised one by one."""
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    model, info = kind.from_pretrained(
        checkpoint,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        weights_only=True,
        **_read_options(revision),
    )
    return model, info


def read_config(checkpoint: str, revision: str | None, parameter: str) -> Any:
    """The configuration of a checkpoint, without its weights.

    Raises
    ------
    CheckpointError
        When it is missing or unreadable; the error names ``parameter``.
    """
    with _explain(checkpoint, revision, parameter), _quiet():
        return AutoConfig.from_pretrained(checkpoint, **_read_options(revision))


def load_vision(checkpoint: str, revision: str | None = None, dtype: str = "float32") -> VisionParts:
    """Load the vision transformer and the query transformer.

    Parameters
    ----------
    checkpoint
        A folder or Hugging Face id in the format of ``Blip2ForImageTextRetrieval``.
    revision
        Commit or tag of a Hugging Face id.
    dtype
        Precision of the frozen vision blocks; everything trainable is float32.

    Raises
    ------
    CheckpointError
        When the checkpoint is missing, unreadable, of another format, or incomplete.
    """
    with _explain(checkpoint, revision, "model.vision.checkpoint"), _quiet():
        config = AutoConfig.from_pretrained(checkpoint, **_read_options(revision))
        if not isinstance(config, Blip2Config):
            raise CheckpointError(
                "a vision checkpoint is of another format",
                where=checkpoint,
                found=f"model type {config.model_type}",
                expected="blip-2, in the image-text-matching format (for example Salesforce/blip2-itm-vit-g)",
                remedy="correct model.vision.checkpoint",
            )
        # Published configurations may leave this off although the text branch's weights are there.
        config.qformer_config.use_qformer_text_input = True  # type: ignore[union-attr]
        model, info = _read_model(Blip2ForImageTextRetrieval, checkpoint, config, revision, torch.float32)
        _require_complete(model, info, checkpoint, optional=("itm_head",))
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **_read_options(revision))
    vision = model.vision_model
    return VisionParts(
        blocks=vision.encoder.layers.to(DTYPES[dtype]),
        post_layernorm=vision.post_layernorm,
        class_token=vision.embeddings.class_embedding.detach(),
        qformer=model.qformer,
        text_embeddings=model.embeddings,
        queries=model.query_tokens.detach()[0],
        image_projection=model.vision_projection,
        text_projection=model.text_projection,
        tokenizer=tokenizer,
    )


def load_language(checkpoint: str, revision: str | None = None, dtype: str = "float32") -> tuple[Any, Any]:
    """Load a causal or sequence-to-sequence language model and its tokenizer.

    Raises
    ------
    CheckpointError
        When the checkpoint is missing, unreadable or incomplete.
    """
    with _explain(checkpoint, revision, "model.language.models.<name>.checkpoint"), _quiet():
        config = AutoConfig.from_pretrained(checkpoint, **_read_options(revision))
        kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, info = _read_model(kind, checkpoint, config, revision, DTYPES[dtype])
        _require_complete(model, info, checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **_read_options(revision))
    return model, tokenizer


def fingerprint(named_tensors: Mapping[str, Tensor]) -> str:
    """A short hash of frozen weights: names, shapes and 64 values of each tensor, spread over it.

    Hashing billions of values would take minutes; different trainings of one architecture differ in these already.
    """
    digest = hashlib.sha256()
    for name in sorted(named_tensors):
        tensor = named_tensors[name].detach()
        flat = tensor.reshape(-1)
        picked = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(picked.tobytes())
    return digest.hexdigest()[:16]


def is_offline() -> bool:
    """Whether the Hugging Face libraries were told not to use the network."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises
    ------
    CheckpointError
        When it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError("a checkpoint is missing", where=path, remedy="run `dvc repro` to make it") from error
    except SafetensorError as error:
        raise CheckpointError(
            "a checkpoint is damaged", where=path, found=str(error).splitlines()[0], remedy="make it again"
        ) from error
