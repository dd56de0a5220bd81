"""The one typed schema of ``params.yaml``: everything wrong is reported at once, before any work.

Sections are named after the stages that read them. ``params.yaml`` is the `demo` profile; the files in ``profiles/``
hold only what differs (see :mod:`medalign3d.profiles`).
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from medalign3d.errors import ParameterError

CohortName = Literal["ADNI", "NACC", "OASIS", "AIBL", "MIRIAD", "IXI"]
COHORT_NAMES: tuple[str, ...] = get_args(CohortName)
ZERO_SHOT_COHORTS: tuple[str, ...] = ("AIBL", "MIRIAD")
"""Never trained on, tuned on or validated on: they are only tested."""
TextAblation = Literal["full", "no_cdr", "demographics_only"]
Setting = Literal["text_only", "frozen", "lora"]
QuestionName = Literal["diagnosis_nc_mci_ad", "diagnosis_dem_nondem", "diagnosis_nc_ad", "sex", "age_group"]

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A section of ``params.yaml``: unknown keys are errors, values are not coerced between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Simulate(Section):
    """What the simulator writes (stage ``simulate``)."""

    cohorts: list[CohortName]
    seed: Seed
    participants: dict[CohortName, PositiveInt]
    maximum_sessions: PositiveInt
    zooms_mm: Annotated[float, Field(ge=1.0, le=2.0)]
    dicom_fraction: Fraction
    faults: bool
    workers: PositiveInt


class External(Section):
    """Cohorts that are read where the user keeps them (stage ``manifest``)."""

    cohorts: list[CohortName]
    roots: dict[CohortName, str]


class Ingest(Section):
    """How native files become tables (stage ``ingest``)."""

    form: Literal["clean", "table1_emulation"]
    read_images: bool
    match_window_days: dict[CohortName, PositiveInt]
    nacc_dementia_policy: Literal["any_cause", "ad_only"]
    nacc_crosswalk: bool = False
    exclude_nacc_adc: list[PositiveInt] = []
    miriad_carry_mmse: bool = False
    oasis_unit: Literal["session", "run"] = "session"
    workers: PositiveInt


class Harmonize(Section):
    """How cohort tables become one table and text (stage ``harmonize``)."""

    require_age: bool
    include_apoe: bool
    include_labs: bool
    missing: Literal["omit", "state"]
    oldest_age: PositiveInt | None = None


class Registration(Section):
    """Affine registration to MNI space."""

    coarse_mm: PositiveFloat
    fine_mm: PositiveFloat
    maximum_iterations: PositiveInt


class Normalize(Section):
    """How a volume becomes a training array (stage ``normalize``)."""

    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    zooms_mm: PositiveFloat
    bias_correction: bool
    registration: Registration
    minimum_local_correlation: Annotated[float, Field(ge=-1.0, le=1.0)]
    fallback: Literal["none", "thorough"]
    time_limit_seconds: PositiveFloat
    memory_limit_gb: PositiveFloat = 3.0
    workers: PositiveInt
    cluster: Annotated[str, Field(pattern=r"^(local|slurm|(tcp|tls|ucx|ws|wss)://\S+)$")] = "local"
    cluster_options: dict[str, Any] = Field(default_factory=dict)


class Benchmark(Section):
    """One evaluation set: which cohort, which question, how many images of each class."""

    cohort: CohortName
    question: QuestionName
    per_class: PositiveInt | None = None
    maximum_images_per_person: PositiveInt = 1
    zero_shot: bool = False
    test_fraction: dict[str, Fraction] | None = None


class Split(Section):
    """Who is trained on and who is tested (stage ``split``)."""

    mode: Literal["held_out", "cross_validation"]
    seed: Seed
    salt: str
    test_fraction: Fraction
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)]
    folds: Annotated[int, Field(ge=2)]
    benchmarks: dict[str, Benchmark]


class VisionTraining(Section):
    """The tiny 2D vision transformer made by stage ``backbones``."""

    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    image_size: PositiveInt
    patch_size: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    mask_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


class QFormerShape(Section):
    """The shape of the tiny query transformer made by stage ``backbones``."""

    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt


class LanguageTraining(Section):
    """The tiny language models made by stage ``backbones``, trained on image-free text."""

    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    sentences: PositiveInt


class Backbones(Section):
    """Tiny backbones in Hugging Face format (stage ``backbones``), or the user's own checkpoints."""

    source: Literal["train", "pretrained"]
    seed: Seed
    vision: VisionTraining
    qformer: QFormerShape
    language: LanguageTraining
    workers: PositiveInt


class FineSubVolumes(Section):
    """A second, finer set of sub-volumes over a box in MNI space (millimetres)."""

    enabled: bool
    box_mm: Annotated[list[list[float]], Field(min_length=3, max_length=3)]
    pooling: PositiveInt
    cube: PositiveInt


class SubVolumes(Section):
    """How a volume is cut: average-pooled by ``pooling``, then into cubes of ``cube`` voxels a side.

    With ``brain_margin_mm``, only those become tokens that come within this distance of the template's brain.
    """

    pooling: PositiveInt
    cube: PositiveInt
    brain_margin_mm: Annotated[float, Field(ge=0.0)] | None
    fine: FineSubVolumes


class Vision(Section):
    """The frozen 2D vision transformer and the AlignQ weights it comes with."""

    checkpoint: str
    revision: str | None
    feature_layers: list[int]


class AlignQ(Section):
    """Learnable queries with self- and cross-attention."""

    queries: PositiveInt
    contrastive_size: PositiveInt
    text_branch: Literal["shared", "full"]
    maximum_text_tokens: PositiveInt


class LanguageModel(Section):
    """A frozen language model: a folder or a Hugging Face id."""

    checkpoint: str
    revision: str | None = None
    title: str


class Language(Section):
    """The frozen language models and the prompt."""

    models: dict[str, LanguageModel]
    maximum_prompt_tokens: PositiveInt
    maximum_new_tokens: PositiveInt


class Lora(Section):
    """Low-rank adapters on query and value matrices."""

    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Fraction
    target_modules: list[str] | None


class Model(Section):
    """The composite model (shared by ``pretrain``, ``tune``, ``evaluate``, ``vqa``)."""

    sub_volumes: SubVolumes
    position_init_sd: PositiveFloat
    vision: Vision
    alignq: AlignQ
    language: Language
    lora: Lora


class Augmentation(Section):
    """Largest random changes of training volumes beside gain and shift; 0 leaves one out."""

    rotation_degrees: Annotated[float, Field(ge=0.0, le=45.0)] = 0.0
    translation_mm: Annotated[float, Field(ge=0.0)] = 0.0
    scaling: Fraction = 0.0
    bias_field: Fraction = 0.0
    gamma: Fraction = 0.0
    noise: Fraction = 0.0


class Optimization(Section):
    """One training loop."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0.0)]
    warmup_fraction: Fraction
    clip_norm: PositiveFloat
    lambda_generation: Annotated[float, Field(ge=0.0)]
    contrastive: bool
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)]
    field_dropout: Fraction
    text_dropout: Fraction
    intensity_augmentation: Fraction
    augmentation: Augmentation = Augmentation()
    finding_question_fraction: Fraction
    auxiliary_weight: Annotated[float, Field(ge=0.0)]
    validate_every: PositiveInt
    patience: PositiveInt | None = None
    accumulation: PositiveInt = 1
    checkpoint_every: PositiveInt = 50
    freeze_image: bool = False
    precision: Literal["float32", "bfloat16"]

    @model_validator(mode="after")
    def _check_accumulation(self) -> Optimization:
        if self.accumulation > self.batch_size:
            raise ValueError(f"accumulation: {self.accumulation} parts of a batch of {self.batch_size} samples")
        return self


class Training(Section):
    """What both training stages share."""

    seed: Seed
    runs: PositiveInt
    controls: list[Literal["shuffled", "blind"]]
    control_runs: PositiveInt
    workers: PositiveInt
    device: Literal["auto", "cpu", "cuda"]
    activation_checkpointing: bool = False
    compile: bool = False


class Evaluate(Section):
    """How trained models are judged (stage ``evaluate``)."""

    settings: list[Setting]
    text_ablations: list[TextAblation]
    headline_text: TextAblation
    generate: bool
    batch_size: PositiveInt
    bootstrap_samples: PositiveInt
    workers: PositiveInt


class Vqa(Section):
    """Closed-ended visual questions (stage ``vqa``)."""

    seed: Seed
    items_per_question: PositiveInt
    ambiguity_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]


class Report(Section):
    """Tables and figures (stage ``report``)."""

    minimum_cell: PositiveInt
    figure_cases: PositiveInt


class Tracking(Section):
    """Where runs are recorded."""

    uri: str
    experiment: str
    registered_model: str


class Params(Section):
    """All of ``params.yaml``."""

    profile: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    cohorts: Annotated[list[CohortName], Field(min_length=1)]
    language_models: Annotated[list[str], Field(min_length=1)]
    simulate: Simulate
    external: External
    ingest: Ingest
    harmonize: Harmonize
    normalize: Normalize
    split: Split
    backbones: Backbones
    model: Model
    training: Training
    pretrain: Optimization
    tune: Optimization
    evaluate: Evaluate
    vqa: Vqa
    report: Report
    tracking: Tracking

    @property
    def simulated(self) -> bool:
        """Whether every cohort of this profile is simulated."""
        return bool(self.simulate.cohorts)

    def cohort_root(self, cohort: str) -> Path:
        """The folder in which a cohort's native files lie, relative to the project."""
        return Path(self.external.roots.get(cohort, f"data/raw/{cohort}"))  # type: ignore[call-overload]

    def headline_text(self, cohort: str) -> TextAblation:
        """The text of a cohort's headline figures: ``evaluate.headline_text``, for OASIS never with the CDR.

        The OASIS label *is* the global CDR, so a record that prints it holds the answer. Where ``no_cdr`` is not
        evaluated, the headline text stays as it is.
        """
        headline = self.evaluate.headline_text
        hidden = cohort == "OASIS" and headline == "full" and "no_cdr" in self.evaluate.text_ablations
        return "no_cdr" if hidden else headline

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        problems: list[str] = []
        simulated, external = set(self.simulate.cohorts), set(self.external.cohorts)
        if simulated and external:
            problems.append(
                "simulate.cohorts and external.cohorts: simulated and real people are never mixed; empty one of the two"
            )
        if set(self.cohorts) != simulated | external:
            problems.append(
                f"cohorts: found {sorted(self.cohorts)}, expected exactly the cohorts of simulate.cohorts and "
                f"external.cohorts, {sorted(simulated | external)}"
            )
        for cohort in sorted(external - set(self.external.roots)):
            problems.append(f"external.roots: no folder for {cohort}; add `{cohort}: /where/its/files/are`")
        for cohort in sorted(simulated - set(self.simulate.participants)):
            problems.append(f"simulate.participants: no number for {cohort}")
        for name in self.language_models:
            if name not in self.model.language.models:
                problems.append(
                    f"language_models: found {name!r}, expected one of {sorted(self.model.language.models)} "
                    "(the keys of model.language.models)"
                )
        for name, benchmark in self.split.benchmarks.items():
            if benchmark.cohort not in self.cohorts:
                problems.append(f"split.benchmarks.{name}.cohort: {benchmark.cohort} is not in `cohorts`")
            if benchmark.cohort in ZERO_SHOT_COHORTS and not benchmark.zero_shot:
                problems.append(
                    f"split.benchmarks.{name}.zero_shot: {benchmark.cohort} is only ever tested; set it to true"
                )
            if not benchmark.zero_shot and self.split.mode == "held_out" and benchmark.per_class is None:
                problems.append(f"split.benchmarks.{name}.per_class: needed for a held-out benchmark")
        if self.evaluate.headline_text not in self.evaluate.text_ablations:
            problems.append("evaluate.headline_text: must be one of evaluate.text_ablations")
        if self.split.mode == "cross_validation" and self.training.runs > self.split.folds:
            problems.append("training.runs: cannot be more than split.folds when split.mode is cross_validation")
        if self.training.control_runs > self.training.runs:
            problems.append("training.control_runs: cannot be more than training.runs")
        if self.pretrain.freeze_image:
            problems.append("pretrain.freeze_image: only tune goes on from trained sub-volumes; set it to false")
        changed = self.tune.intensity_augmentation or any(self.tune.augmentation.model_dump().values())
        if self.tune.freeze_image and changed:
            problems.append(
                "tune.freeze_image: kept features are those of unchanged volumes; set tune.intensity_augmentation and "
                "tune.augmentation to 0"
            )
        grid = self.model.sub_volumes
        for axis, size in zip("xyz", self.normalize.shape, strict=True):
            if size % (grid.pooling * grid.cube):
                problems.append(
                    f"model.sub_volumes: pooling x cube = {grid.pooling * grid.cube} does not divide "
                    f"normalize.shape along {axis}, {size}"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _line_of(text: str, location: tuple[str | int, ...]) -> int | None:
    """The line of ``params.yaml`` on which a key stands, or None where it cannot be told."""
    node = YAML().compose(text)
    line: int | None = None
    for step in location:
        if isinstance(node, MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys that the section at ``location`` knows."""
    model: Any = Params
    for step in location:
        if isinstance(model, type) and issubclass(model, BaseModel) and step in model.model_fields:
            annotation = model.model_fields[str(step)].annotation
            model = annotation
        else:
            candidates = [a for a in get_args(model) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = candidates[0] if candidates else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2, as DVC does, so that ``2e-5`` is a number."""
    return YAML(typ="safe", pure=True).load(text)


def validate_params(values: Any, source: str = "params.yaml", text: str | None = None) -> Params:
    """Validate parsed parameters.

    Parameters
    ----------
    values
        The parsed YAML.
    source
        The file's name, for messages.
    text
        The file's text; when given, messages name the line.

    Raises
    ------
    ParameterError
        Names *every* wrong parameter, with what was found and expected.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            location = tuple(step for step in problem["loc"] if step != "[key]")
            name = ".".join(str(step) for step in location)
            line = _line_of(text, location) if text is not None and location else None
            place = f"{name} (line {line})" if line else name
            if problem["type"] == "extra_forbidden":
                known = _known_keys(location[:-1])
                close = difflib.get_close_matches(str(location[-1]), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
                lines.append(f"{place}: unknown parameter; {hint}")
            elif problem["type"] == "missing":
                lines.append(f"{name}: missing")
            elif problem["type"] == "value_error" and not location:
                lines.extend(str(problem["ctx"]["error"]).splitlines())
            else:
                lines.append(f"{place}: found {problem['input']!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}")
        raise ParameterError(
            f"{len(lines)} wrong parameter{'s' if len(lines) > 1 else ''}",
            where=source,
            found="\n            ".join(lines),
            remedy="correct the values above; each key is explained by its comment in params.yaml",
        ) from None


def load_params(path: str | os.PathLike[str] = "params.yaml") -> Params:
    """Read and validate ``params.yaml``.

    Raises
    ------
    ParameterError
        When the file is missing, not YAML, or any parameter is wrong (all of them are named).
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ParameterError(
            "no parameter file", where=Path(path).absolute(), remedy="run from the project's folder"
        ) from error
    try:
        values = parse_yaml(text)
    except YAMLError as error:
        raise ParameterError("the parameter file is not YAML", where=path, found=str(error)) from error
    return validate_params(values, source=str(path), text=text)
