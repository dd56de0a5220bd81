"""Names as readers see them: settings, baselines, text ablations, questions and their order in tables."""

from __future__ import annotations

from medalign3d.params import Params

SECTION_MODELS = "Language models"
SECTION_CONTROLS = "Trained controls (what text alone reaches)"
SECTION_BASELINES = "Baselines"
SECTION_ORACLES = "Oracle bounds (true quantities of the simulation)"
SECTIONS = (SECTION_MODELS, SECTION_CONTROLS, SECTION_BASELINES, SECTION_ORACLES)

SETTINGS: dict[str, str] = {
    "text_only": "text only, not trained",
    "frozen": "frozen LM + image",
    "lora": "LoRA + image",
    "control_blind": "trained without image",
    "control_shuffled": "trained on shuffled images",
}

TEXT_ABLATIONS: dict[str, str] = {
    "full": "full record",
    "no_cdr": "without CDR",
    "demographics_only": "demographics only",
}

BASELINES: dict[str, str] = {
    "majority": "majority class",
    "majority_letter": "always the most frequent letter",
    "rule_cdr": "rule: CDR cut-offs",
    "rule_mmse": "rule: MMSE cut-offs",
    "ehr": "logistic regression on the record's fields",
    "regions": "logistic regression on regional image values",
    "regions_ehr": "logistic regression on regional values and record",
    "pca": "PCA + logistic regression on the image",
    "pca_ehr": "PCA + logistic regression on image and record",
    "oracle_ehr": "oracle: complete record",
    "oracle_image": "oracle: true volumes and age",
    "oracle_both": "oracle: both",
}


def is_control(setting: str) -> bool:
    """Whether a setting is a trained control."""
    return setting.startswith("control")


def section_of(setting: str) -> str:
    """The section of a table in which a setting stands."""
    if setting in ("text_only", "frozen", "lora"):
        return SECTION_MODELS
    if is_control(setting):
        return SECTION_CONTROLS
    return SECTION_ORACLES if setting.startswith("oracle") else SECTION_BASELINES


def setting_label(setting: str) -> str:
    """A setting or baseline in words."""
    known = SETTINGS.get(setting) or BASELINES.get(setting)
    return known if known is not None else setting.replace("_", " ")


def text_label(text_ablation: object) -> str:
    """A text ablation in words; a dash where no text is used."""
    name = text_ablation if isinstance(text_ablation, str) and text_ablation != "none" else ""
    return TEXT_ABLATIONS.get(name, name.replace("_", " ") or "–")


def language_model_label(params: Params, name: object) -> str:
    """A language model's title; a dash for rows without one."""
    text = name if isinstance(name, str) else ""
    model = params.model.language.models.get(text)
    return model.title if model is not None else "–"


def rank(value: object, order: list[str]) -> int:
    """The place of a value in an order; unknown values come last."""
    return order.index(value) if isinstance(value, str) and value in order else len(order)
