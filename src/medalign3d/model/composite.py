"""MedAlign-3D: sub-volumes -> frozen 2D vision transformer -> AlignQ -> visual prefix -> frozen language model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medalign3d.errors import CheckpointError, InputError, ParameterError
from medalign3d.files import atomic_path, read_json
from medalign3d.model import lora
from medalign3d.model.alignq import AlignQ, TextTokenizer
from medalign3d.model.config import LoraConfig, ModelConfig
from medalign3d.model.language import PASS_OVERHEAD, FrozenLanguageModel, format_question, length_groups
from medalign3d.model.loading import (
    VisionParts,
    fingerprint,
    load_language,
    load_vision,
    read_safetensors,
)
from medalign3d.model.losses import (
    Losses,
    contrastive_loss,
    in_any_process,
    masked_squared_error,
    mean_over_processes,
    text_keys,
)
from medalign3d.model.recompute import recompute_activations
from medalign3d.model.sub_volumes import SubVolumeEmbedding, resample_state
from medalign3d.model.vision import FrozenVision

FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


class MedAlign3D(nn.Module):
    """The composite model; everything pretrained in it stays frozen.

    Trainable are the sub-volume projection and positions, the vision transformer's last layer norm (and the weights of
    its taps), AlignQ with its contrastive projections, the projection to the language model, the optional auxiliary
    head, and, after :meth:`add_lora`, adapters in the language model.

    Use :meth:`from_checkpoints` or :meth:`load` rather than the constructor.

    Parameters
    ----------
    config
        The architecture.
    vision
        Parts of a BLIP-2 image-text-matching checkpoint.
    language_model, tokenizer
        A Hugging Face language model and its tokenizer.
    """

    def __init__(self, config: ModelConfig, vision: VisionParts, language_model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.config = config
        self.lora_config: LoraConfig | None = None
        self.lora_report: lora.AdapterReport | None = None
        self.fingerprints = {
            "vision": fingerprint({**_state(vision.blocks, "blocks"), **_state(vision.text_embeddings, "embeddings")}),
            "language": fingerprint(_state(language_model, "language")),
        }
        self.sub_volumes = SubVolumeEmbedding(config, vision.class_token)
        self.vision = FrozenVision(vision.blocks, vision.post_layernorm, config.feature_layers)
        self.alignq = AlignQ(
            vision.qformer,
            vision.text_embeddings,
            _initial_queries(vision.queries, config.queries),
            config.contrastive_size,
            config.text_branch,
        )
        if vision.image_projection.out_features == config.contrastive_size:
            self.alignq.image_projection.load_state_dict(vision.image_projection.state_dict())
            self.alignq.record_projection.load_state_dict(vision.text_projection.state_dict())
            self.alignq.answer_projection.load_state_dict(vision.text_projection.state_dict())
        self.text_tokenizer = TextTokenizer(vision.tokenizer, config.maximum_text_tokens)
        self.language = FrozenLanguageModel(
            language_model, tokenizer, config.maximum_prompt_tokens, config.maximum_new_tokens, config.queries
        )
        self.language_projection = nn.Linear(self.alignq.hidden_size, self.language.hidden_size)
        # Query outputs leave a layer norm with a root mean square of about 1: start the visual prefix at the scale of
        # the language model's own embeddings (about 0.02 for GPT-2, 0.8 for BioGPT).
        nn.init.normal_(
            self.language_projection.weight, 0.0, self.language.embedding_rms() / math.sqrt(self.alignq.hidden_size)
        )
        nn.init.zeros_(self.language_projection.bias)
        self.auxiliary_head: nn.Linear | None = None
        if config.auxiliary_targets:
            self.auxiliary_head = nn.Linear(self.alignq.hidden_size, len(config.auxiliary_targets))
        if config.activation_checkpointing:
            recompute_activations(self)

    # -- construction --------------------------------------------------------------------------------------------------

    @classmethod
    def from_checkpoints(cls, config: ModelConfig, seed: int = 0) -> MedAlign3D:
        """Build the model on its frozen backbones; new weights depend on ``seed`` alone.

        Raises
        ------
        CheckpointError
            When a backbone is missing or unreadable.
        """
        vision = load_vision(config.vision_checkpoint, config.vision_revision, config.dtype)
        language_model, tokenizer = load_language(config.language_checkpoint, config.language_revision, config.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, vision, language_model, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the trainable weights are."""
        return self.language_projection.weight.device

    def add_lora(self, config: LoraConfig | None = None, seed: int = 0) -> lora.AdapterReport:
        """Add trainable low-rank adapters on query and value matrices of the language model.

        Outputs do not change until the adapters are trained.

        Parameters
        ----------
        config
            By default ``self.config.lora``.
        seed
            Of the adapters' start values.
        """
        self.lora_config = self.config.lora if config is None else config
        self.lora_report = lora.add_lora(self.language.model, self.lora_config, seed)
        self.language.train(self.training)
        return self.lora_report

    # -- parameters ----------------------------------------------------------------------------------------------------

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Every trainable parameter by name, each once (shared ones under their first name)."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trainable_count(self) -> int:
        """How many weights can move (masked entries of fused adapters are not counted)."""
        total = sum(p.numel() for n, p in self.trainable_parameters().items() if "lora_" not in n)
        return total + lora.movable_parameters(self.language.model)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimizer: decay on matrices only; none on biases, norms, positions, queries, temperature."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.trainable_parameters().items():
            plain = parameter.ndim < 2 or name.endswith(("positions", "class_position", "alignq.queries"))
            (others if plain else decayed).append(parameter)
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def _saved_buffers(self) -> dict[str, Tensor]:
        """Buffers that belong to a trained model: voxel statistics."""
        return {name: buffer for name, buffer in self.named_buffers() if name.endswith(("voxel_mean", "voxel_scale"))}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Copies of everything that training decided (on the CPU); frozen weights are not in it."""
        state = {**self.trainable_parameters(), **self._saved_buffers()}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}

    @torch.no_grad()
    def load_trainable_state_dict(self, state: Mapping[str, Tensor], where: object = None) -> None:
        """Set everything that training decided.

        Raises
        ------
        CheckpointError
            When names or shapes differ: the state is of another architecture. Nothing is changed then.
        """
        own: dict[str, Tensor] = {**self.trainable_parameters(), **self._saved_buffers()}
        problems = [
            f"{name}: not in the checkpoint, {tuple(own[name].shape)} here"
            for name in sorted(own.keys() - state.keys())
        ]
        problems += [
            f"{name}: {tuple(state[name].shape)} in the checkpoint, unknown here"
            for name in sorted(state.keys() - own.keys())
        ]
        problems += [
            f"{name}: {tuple(state[name].shape)} in the checkpoint, {tuple(own[name].shape)} here"
            for name in sorted(own.keys() & state.keys())
            if own[name].shape != state[name].shape
        ]
        if problems:
            raise CheckpointError(
                "a checkpoint is of another architecture",
                where=where,
                found="\n            ".join(problems[:12])
                + (f"\n            and {len(problems) - 12} more" if len(problems) > 12 else ""),
                expected=f"{len(own)} tensors with the names and shapes of this model",
                remedy="train again with the present parameters, or restore those that the checkpoint was trained with",
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def fit_voxel_statistics(self, batches: Iterable[Tensor]) -> None:
        """Standardize voxels by training participants' mean and spread; without it, voxels are used as they are.

        Parameters
        ----------
        batches
            Volumes (B, 1, X, Y, Z) of *training* participants.
        """
        self.sub_volumes.fit_statistics(volumes.to(self.device) for volumes in batches)

    # -- parts of the forward pass -------------------------------------------------------------------------------------

    def encode_volumes(self, volumes: Tensor) -> Tensor:
        """Query outputs; (B, 1, X, Y, Z) uint8, or float in [0, 1] -> (B, L, H).

        What :meth:`image_taps` made of volumes, (B, taps, N, hidden), is gone on from; nothing before it then trains.
        """
        if volumes.ndim == 4:
            return self.alignq(self.vision.combine(volumes.unbind(1)))
        return self.alignq(self.vision(self.sub_volumes(volumes)))

    @torch.no_grad()
    def image_taps(self, volumes: Tensor) -> Tensor:
        """What may be kept of volumes while the sub-volume embedding stands still; -> (B, taps, N, hidden)."""
        return self.vision.read_taps(self.sub_volumes(volumes))

    def visual_prefix(self, volumes: Tensor) -> Tensor:
        """Visual tokens of the language model; (B, 1, X, Y, Z) -> (B, L, D). Shared by all prompts about an image."""
        return self.language_projection(self.encode_volumes(volumes))

    def _encode_texts(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        ids, mask = self.text_tokenizer.pad(sequences)
        return self.alignq.encode_text(ids.to(self.device), mask.to(self.device))

    def text_features(self, texts: Sequence[str], kind: str) -> Tensor:
        """Unit vectors of texts, (B, d); equal texts are encoded once. ``kind`` is ``record`` or ``answer``."""
        unique = list(dict.fromkeys(texts))
        sequences = self.text_tokenizer.ids(unique)
        groups = length_groups([len(sequence) for sequence in sequences], PASS_OVERHEAD.get(self.device.type, 400))
        encoded = torch.cat([self._encode_texts([sequences[i] for i in group]) for group in groups])
        projection = self.alignq.record_projection if kind == "record" else self.alignq.answer_projection
        features = nn.functional.normalize(projection(encoded), dim=-1)
        place = {unique[i]: row for row, i in enumerate(index for group in groups for index in group)}
        return features[[place[text] for text in texts]]

    def _contrast(self, queries: Tensor, texts: Sequence[str], known: Tensor, kind: str, smoothing: float) -> Tensor:
        return contrastive_loss(
            self.alignq.image_features(queries),
            self.text_features(texts, kind),
            text_keys(texts).to(queries.device),
            self.alignq.temperature,
            smoothing,
            known,
        )

    def forward(
        self,
        volumes: Tensor | None,
        texts: Sequence[str],
        questions: Sequence[str],
        answers: Sequence[str | None],
        auxiliary: Tensor | None = None,
        *,
        lambda_generation: float = 1.0,
        contrastive: bool = True,
        label_smoothing: float = 0.1,
        auxiliary_weight: float = 0.0,
    ) -> Losses:
        """Losses of a batch.

        Parameters
        ----------
        volumes
            (B, 1, X, Y, Z) uint8, or float in [0, 1], or None for text only (then without contrastive and auxiliary
            loss).
        texts, questions
            B records (may be empty) and B questions.
        answers
            B answers; None or an empty one marks a sample without a label: it takes no part in the loss of answers.
        auxiliary
            (B, number of auxiliary targets) standardized values, NaN where unknown.
        lambda_generation
            Weight of the answers' cross-entropy.
        contrastive
            Whether the image-text contrastive loss is computed.
        label_smoothing
            Of the contrastive loss.
        auxiliary_weight
            Weight of the auxiliary squared error.

        Returns
        -------
        Losses
            ``total`` carries the gradient.
        """
        count = len(questions)
        if not len(texts) == len(answers) == count or (volumes is not None and len(volumes) != count):
            raise InputError(
                "the parts of a batch differ in length",
                found=f"{None if volumes is None else len(volumes)} volumes, {len(texts)} texts, {count} questions, "
                f"{len(answers)} answers",
            )
        zero = self.alignq.log_temperature.square() * 0.0
        queries = None if volumes is None else self.encode_volumes(volumes)
        prefix = None if queries is None else self.language_projection(queries)

        labelled = [index for index, answer in enumerate(answers) if answer]
        per_sample = torch.full((count,), math.nan, device=self.device)
        generation = zero
        if lambda_generation > 0 and labelled:
            prompts = self.language.encode_prompts([texts[i] for i in labelled], [questions[i] for i in labelled])
            targets = self.language.encode_answers([str(answers[i]) for i in labelled])
            chosen = prefix if prefix is None or len(labelled) == count else prefix[labelled]
            losses = self.language.answer_loss(chosen, prompts, targets)
            per_sample[labelled] = losses.detach()
            generation = losses.sum()
        if lambda_generation > 0:
            generation = mean_over_processes(generation, len(labelled))

        record_loss = answer_loss = zero
        if contrastive and queries is not None:
            known = [bool(text.strip()) for text in texts]
            with_text = torch.tensor(known, device=self.device)
            with_answer = torch.tensor([bool(answer) for answer in answers], device=self.device)
            if in_any_process(any(known), self.device):
                record_loss = self._contrast(queries, texts, with_text, "record", label_smoothing)
            if in_any_process(bool(labelled), self.device):
                statements = [f"{question} {answer or ''}" for question, answer in zip(questions, answers, strict=True)]
                answer_loss = self._contrast(queries, statements, with_answer, "answer", label_smoothing)

        auxiliary_loss = zero
        if auxiliary is not None and queries is not None and auxiliary_weight > 0:
            auxiliary_loss = masked_squared_error(self.predict_auxiliary(queries), auxiliary.to(queries.device))
        contrast = record_loss + answer_loss
        return Losses(
            total=contrast + lambda_generation * generation + auxiliary_weight * auxiliary_loss,
            contrastive=contrast,
            contrastive_record=record_loss,
            contrastive_answer=answer_loss,
            generation=generation,
            generation_per_sample=per_sample,
            auxiliary=auxiliary_loss,
            temperature=self.alignq.temperature,
        )

    def predict_auxiliary(self, queries: Tensor) -> Tensor:
        """Standardized auxiliary values from query outputs; (B, L, H) -> (B, targets).

        Raises
        ------
        ParameterError
            When the model was built without auxiliary targets.
        """
        if self.auxiliary_head is None:
            raise ParameterError(
                "the model has no auxiliary head",
                where="ModelConfig.auxiliary_targets",
                found="no names",
                expected="the names of the values to predict",
            )
        return self.auxiliary_head(queries.mean(dim=1))

    # -- answers -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self,
        texts: Sequence[str],
        questions: Sequence[str],
        candidates: Sequence[Sequence[str]],
        prefix: Tensor | None = None,
        *,
        cached: bool = True,
    ) -> Tensor:
        """Mean token log-likelihood (EOS included) of candidate answers.

        Parameters
        ----------
        texts, questions
            B records and B questions.
        candidates
            B lists of candidate answers; shorter lists are filled with minus infinity.
        prefix
            (B, L, D) from :meth:`visual_prefix`, or None for text only.
        cached
            False scores every candidate with a full pass of its own.

        Returns
        -------
        Tensor
            (B, most candidates) float32; each is minus the candidate's loss in :meth:`forward`.
        """
        return self.language.score(
            prefix,
            self.language.encode_prompts(texts, questions),
            [self.language.encode_answers(group) for group in candidates],
            cached,
        )

    @torch.no_grad()
    def generate(
        self, texts: Sequence[str], questions: Sequence[str], prefix: Tensor | None = None, *, cached: bool = True
    ) -> list[str]:
        """Greedy answers to B questions, without EOS and outer blanks."""
        return self.language.generate(prefix, self.language.encode_prompts(texts, questions), cached)

    @torch.no_grad()
    def continue_dialogue(
        self,
        texts: Sequence[str],
        questions: Sequence[str],
        answers: Sequence[str],
        follow_ups: Sequence[str],
        prefix: Tensor | None = None,
    ) -> list[str]:
        """Greedy answers to follow-up questions with the first question and its answer in the context."""
        # The first round stands in the question's place, so that a long record is cut before it is.
        context = [
            f"{question} Answer: {answer} {format_question(follow_up).removesuffix(' Answer:')}"
            for question, answer, follow_up in zip(questions, answers, follow_ups, strict=True)
        ]
        return self.generate(texts, context, prefix)

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write what training decided: ``model.safetensors`` and ``config.json``, atomically.

        Frozen backbones are named, not copied; a fingerprint of each tells when a folder has been replaced. Other files
        in ``folder`` are left alone.
        """
        folder = Path(folder)
        description = {
            "format": FORMAT_VERSION,
            "model": self.config.to_json(),
            "lora": None if self.lora_config is None else dataclasses.asdict(self.lora_config),
            "fingerprints": self.fingerprints,
            "trainable_parameters": self.trainable_count(),
        }
        with atomic_path(folder / WEIGHTS_NAME) as temporary:
            save_file(self.trainable_state_dict(), temporary)
        with atomic_path(folder / CONFIG_NAME) as temporary:
            temporary.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, config: ModelConfig | None = None, *, resample: bool = False) -> MedAlign3D:
        """Rebuild a saved model on its frozen backbones, in evaluation mode.

        Parameters
        ----------
        folder
            Written by :meth:`save`.
        config
            The configuration to build, where it must be the present parameters' one; by default the saved one.
        resample
            Fit what was learnt about sub-volumes to ``config``'s volume and cube size, see
            :func:`medalign3d.model.sub_volumes.resample_state`.

        Raises
        ------
        CheckpointError
            When files are missing or damaged, a backbone has changed since, or tensors differ in name or shape.
        """
        folder = Path(folder)
        if not (folder / CONFIG_NAME).is_file():
            raise CheckpointError(
                "a trained model is missing", where=folder / CONFIG_NAME, remedy="run `dvc repro` to train it"
            )
        description = read_json(folder / CONFIG_NAME)
        if description.get("format") != FORMAT_VERSION:
            raise CheckpointError(
                "a trained model is of another format version",
                where=folder / CONFIG_NAME,
                found=description.get("format"),
                expected=FORMAT_VERSION,
                remedy="train again",
            )
        saved_config = ModelConfig.from_json(description["model"])
        model = cls.from_checkpoints(saved_config if config is None else config)
        if description["lora"] is not None:
            saved = dict(description["lora"])
            if saved["target_modules"] is not None:
                saved["target_modules"] = tuple(saved["target_modules"])
            model.add_lora(LoraConfig(**saved))
        state = read_safetensors(folder / WEIGHTS_NAME)
        if resample:
            state = resample_state(state, saved_config, model.config)
        model.load_trainable_state_dict(state, where=folder / WEIGHTS_NAME)
        for part, value in model.fingerprints.items():
            if description["fingerprints"].get(part) != value:
                raise CheckpointError(
                    f"the frozen {part} backbone is not the one that a model was trained on",
                    where=folder,
                    found=f"fingerprint {value}",
                    expected=f"fingerprint {description['fingerprints'].get(part)}",
                    remedy="restore the backbone (`dvc checkout`), or train again",
                )
        return model.eval()


def _state(module: nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}


def _initial_queries(pretrained: Tensor, count: int) -> Tensor | int:
    """The checkpoint's queries where they fit and differ from one another, otherwise their number (drawn anew)."""
    if pretrained.shape[0] == count and bool((pretrained.std(dim=0) > 0).any()):
        return pretrained
    return count
