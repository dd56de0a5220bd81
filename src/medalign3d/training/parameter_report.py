"""The table of learnable parameters that ``medalign3d params`` prints."""

from __future__ import annotations

from medalign3d.model.parameters import parameter_table
from medalign3d.params import Params
from medalign3d.training.estimate import read_shapes
from medalign3d.training.runs import model_config

PUBLISHED_VISION = "Salesforce/blip2-itm-vit-g"
PUBLISHED = {"t5": ("FLAN-T5-XL", 151, 156), "biogpt": ("BioGPT-Large", 151, 156), "gpt2": ("BioMedLM", 151, 154)}
"""Learnable parameters in millions as published, without and with LoRA, and the language model's name."""


def parameter_lines(params: Params) -> list[str]:
    """A table of learnable parameters (millions) for people.

    Models whose checkpoints are Hugging Face ids of the published system are counted at full size on the meta device;
    nothing is downloaded. Others are counted from the configuration in their folder.
    """
    lines = [
        "learnable parameters, millions",
        f"{'language model':<28}{'LM':>10}{'core':>9}{'shared':>9}{'full':>9}{'core+r8':>9}{'core+r16':>10}  published",
    ]
    full = params.model.vision.checkpoint == PUBLISHED_VISION
    if full:
        for row in parameter_table():
            title, frozen, lora = PUBLISHED[row.language_model]
            counts = (row.core, row.shared, row.full, row.core_lora_8, row.core_lora_16)
            numbers = "".join(f"{count / 1e6:>9.2f}" for count in counts[:4]) + f"{counts[4] / 1e6:>10.2f}"
            lines.append(f"{title:<28}{row.language_parameters / 1e6:>10.2f}{numbers}  {frozen}, with LoRA {lora}")
        lines += [
            "",
            "core: sub-volume projection, positions, query transformer without its text branch, queries",
            "shared, full: core, layer norm, projections and contrastive heads, with that text branch",
            "core+r8, core+r16: core and LoRA of that rank on the query and value matrices",
        ]
        return lines
    lines[1] = f"{'language model':<28}{'frozen':>10}{'learnable':>11}{'with LoRA':>11}"
    for name in params.language_models:
        config = model_config(params, name)
        plain, tuned = read_shapes(config), read_shapes(config, lora=config.lora)
        title = params.model.language.models[name].title
        lines.append(
            f"{title:<28}{plain.frozen / 1e6:>10.3f}{plain.trainable / 1e6:>11.3f}{tuned.trainable / 1e6:>11.3f}"
        )
    return lines
