"""The composite model: gradients, invariances, scores, generation, files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medalign3d.errors import CheckpointError, InputError, MedAlignError, ParameterError, VolumeError
from medalign3d.model.composite import MedAlign3D
from medalign3d.model.config import FineBoxConfig, ModelConfig
from medalign3d.model.language import format_question

Batch = tuple[torch.Tensor, list[str], list[str], list[str]]
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def _train(model: MedAlign3D, batch: Batch, steps: int = 3, **options: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-2), lr=3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(*batch, **options).total.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("text_branch", ["shared", "full"])
def test_gradients_reach_every_trainable_and_nothing_frozen(
    build: Any, kind: str, batch: Batch, text_branch: str
) -> None:
    model = build(kind, text_branch=text_branch, auxiliary_targets=("age", "ventricles"))
    model.add_lora(seed=4)
    for layer in model.language.model.modules():
        if hasattr(layer, "lora_B"):
            torch.nn.init.normal_(layer.lora_B["default"].weight)
    model.train()
    targets = torch.tensor([[0.1, float("nan")]] * 5)
    model(*batch, auxiliary=targets, auxiliary_weight=0.5).total.backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    # Only the longest text decides which rows of the position table are reached.
    assert not {name for name in without if "text_embeddings" not in name}
    assert not [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not model.language.model.training
    assert not model.vision.blocks.training


def test_frozen_weights_do_not_move_and_queries_stay_distinct(build: Any, kind: str, batch: Batch) -> None:
    model = build(kind)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    _train(model, batch, steps=4)
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in frozen.items())
    outputs = model.encode_volumes(batch[0])
    distances = torch.pdist(model.alignq.queries.detach())
    assert distances.min() > 1e-3
    assert torch.pdist(outputs[0].detach()).min() > 1e-4


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_score_is_minus_loss_and_cache_changes_nothing(
    build: Any, kind: str, batch: Batch, candidates: list[list[str]], with_image: bool, lora: bool
) -> None:
    model = build(kind)
    if lora:
        model.add_lora(seed=2)
        _train(model, batch)
    model.eval()
    volumes, texts, questions, _ = batch
    prefix = model.visual_prefix(volumes) if with_image else None
    scores = model.score(texts, questions, candidates, prefix)
    torch.testing.assert_close(scores, model.score(texts, questions, candidates, prefix, cached=False), **TOLERANCE)
    assert scores.shape == (5, 3)
    for row, group in enumerate(candidates):
        assert bool((scores[row, len(group) :] == -torch.inf).all())
        for column, candidate in enumerate(group):
            alone = volumes[row : row + 1] if with_image else None
            losses = model(alone, [texts[row]], [questions[row]], [candidate], contrastive=False)
            torch.testing.assert_close(scores[row, column], -losses.generation, **TOLERANCE)


def test_batch_mates_change_nothing(build: Any, kind: str, batch: Batch, candidates: list[list[str]]) -> None:
    model = build(kind).eval()
    volumes, texts, questions, answers = batch
    prefix = model.visual_prefix(volumes)
    together = model(*batch)
    scores = model.score(texts, questions, candidates, prefix)
    answers_together = model.generate(texts, questions, prefix)
    features = model.text_features(texts, "record")
    for row in range(len(texts)):
        part = slice(row, row + 1)
        alone = model(volumes[part], texts[part], questions[part], answers[part])
        torch.testing.assert_close(alone.generation_per_sample, together.generation_per_sample[part], **TOLERANCE)
        torch.testing.assert_close(model.visual_prefix(volumes[part]), prefix[part], **TOLERANCE)
        count = len(candidates[row])
        alone_scores = model.score(texts[part], questions[part], candidates[part], prefix[part])
        torch.testing.assert_close(alone_scores, scores[part, :count], **TOLERANCE)
        assert model.generate(texts[part], questions[part], prefix[part]) == answers_together[part]
        torch.testing.assert_close(model.text_features(texts[part], "record"), features[part], **TOLERANCE)
    torch.testing.assert_close(together.generation, together.generation_per_sample.mean(), **TOLERANCE)


def test_generation_equals_the_uncached_loop(build: Any, kind: str, batch: Batch) -> None:
    model = build(kind).eval()
    volumes, texts, questions, _ = batch
    for prefix in (None, model.visual_prefix(volumes)):
        assert model.generate(texts, questions, prefix) == model.generate(texts, questions, prefix, cached=False)


def test_the_end_token_stops_generation(build: Any, kind: str, batch: Batch) -> None:
    model = build(kind, maximum_new_tokens=7).eval()
    _, texts, questions, _ = batch
    head = model.language.model.get_output_embeddings()
    calls: list[int] = []

    def force_end(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        forced = torch.zeros_like(logits)
        forced[..., 40 if len(calls) < 3 else model.language.eos_id] = 1.0
        return forced

    handle = head.register_forward_hook(force_end)
    generated = model.generate(texts, questions)
    handle.remove()
    assert len(calls) == 3
    word = model.language.tokenizer.decode([40, 40]).strip()
    assert generated == [word] * 5


def test_only_answer_and_end_are_targets(build: Any, kind: str, batch: Batch) -> None:
    model = build(kind).eval()
    seen: list[tuple[int, ...]] = []
    handle = model.language.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(output.shape))
    )
    _, texts, questions, answers = batch
    model(None, texts, questions, answers)
    handle.remove()
    ids = model.language.encode_answers(answers)
    assert all(answer[-1] == model.language.eos_id and answer.count(model.language.eos_id) == 1 for answer in ids)
    assert sum(shape[1] for shape in seen) == sum(len(answer) for answer in ids)


def test_the_question_survives_truncation(build: Any, kind: str) -> None:
    model = build(kind, maximum_prompt_tokens=24)
    question = "What is the cognitive diagnosis of this person?"
    long_text = "; ".join(f"MMSE {score}/30" for score in range(30))
    short, cut, none = model.language.encode_prompts(["Male.", long_text, ""], [question] * 3)
    decode = model.language.tokenizer.decode
    for prompt in (short, cut, none):
        assert decode(prompt, skip_special_tokens=True).strip().endswith(format_question(question))
    assert len(cut) == 24
    assert decode(cut, skip_special_tokens=True).startswith("MMSE 0/30")
    tiny = build(kind, maximum_prompt_tokens=3)
    (only,) = tiny.language.encode_prompts([long_text], [question])
    assert decode(only, skip_special_tokens=True).strip() == format_question(question)


def test_segments_join_as_one_text(build: Any, kind: str) -> None:
    model = build(kind)
    (prompt,) = model.language.encode_prompts(["Age 74 years; MMSE 27/30."], ["Does this person have dementia?"])
    (answer,) = model.language.encode_answers(["no dementia"])
    text = model.language.tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    joined = "Age 74 years; MMSE 27/30. Question: Does this person have dementia? Answer: no dementia"
    assert " ".join(text.split()) == joined


def test_losses_can_be_switched_off(build: Any, batch: Batch) -> None:
    model = build("gpt2")
    _, texts, questions, answers = batch
    both = model(*batch)
    torch.testing.assert_close(both.total, both.contrastive + both.generation)
    only_generation = model(*batch, contrastive=False)
    assert float(only_generation.contrastive.detach()) == 0
    torch.testing.assert_close(only_generation.total, both.generation)
    only_contrastive = model(*batch, lambda_generation=0.0)
    torch.testing.assert_close(only_contrastive.total, both.contrastive)
    text_only = model(None, texts, questions, answers)
    assert float(text_only.contrastive.detach()) == 0
    assert torch.isfinite(text_only.total)
    doubled = model(*batch, lambda_generation=2.0)
    torch.testing.assert_close(doubled.total, both.contrastive + 2 * both.generation)


def test_samples_without_an_answer_train_no_answer(build: Any, batch: Batch) -> None:
    model = build("gpt2").eval()
    volumes, texts, questions, answers = batch
    partly = model(volumes, texts, questions, [None, *answers[1:4], ""])
    whole = model(volumes[1:4], texts[1:4], questions[1:4], answers[1:4])
    torch.testing.assert_close(partly.generation, whole.generation, **TOLERANCE)
    assert partly.generation_per_sample.isnan().tolist() == [True, False, False, False, True]
    nothing = model(volumes, [""] * 5, questions, [None] * 5)
    nothing.total.backward()
    assert float(nothing.total.detach()) == 0


def test_a_batch_of_one_trains(build: Any, kind: str, batch: Batch) -> None:
    model = build(kind)
    volumes, texts, questions, answers = batch
    losses = model(volumes[:1], texts[:1], questions[:1], answers[:1])
    losses.total.backward()
    assert torch.isfinite(losses.total)


def test_training_lowers_the_loss(build: Any, batch: Batch) -> None:
    model = build("gpt2")
    before = float(model(*batch).total.detach())
    _train(model, batch, steps=40)
    assert float(model(*batch).total.detach()) < before - 0.5


def test_the_image_decides_the_prefix(build: Any, volumes: torch.Tensor) -> None:
    model = build("t5").eval()
    prefix = model.visual_prefix(volumes)
    assert prefix.shape == (5, 4, 32)
    assert not torch.allclose(prefix[0], prefix[1])
    rms = float(prefix.detach().square().mean().sqrt())
    assert 0.3 < rms / model.language.embedding_rms() < 3


@pytest.mark.parametrize("lora", [False, True])
def test_save_and_load(
    build: Any, kind: str, batch: Batch, candidates: list[list[str]], folder: Path, lora: bool
) -> None:
    model = build(kind, auxiliary_targets=("age",))
    model.fit_voxel_statistics([batch[0]])
    if lora:
        model.add_lora(seed=2)
    _train(model, batch)
    volumes, texts, questions, _ = batch
    expected = model.score(texts, questions, candidates, model.visual_prefix(volumes))
    (folder / "notes.txt").parent.mkdir()
    (folder / "notes.txt").write_text("kept")
    model.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    loaded = MedAlign3D.load(folder)
    assert not loaded.training
    assert (loaded.lora_config is not None) == lora
    torch.testing.assert_close(
        loaded.score(texts, questions, candidates, loaded.visual_prefix(volumes)), expected, rtol=0, atol=0
    )
    frozen_size = sum(p.numel() for n, p in model.named_parameters() if not p.requires_grad)
    saved = sum(t.numel() for t in model.trainable_state_dict().values())
    assert saved < frozen_size + model.trainable_count()


def test_a_checkpoint_of_another_architecture_is_refused(build: Any, batch: Batch, folder: Path) -> None:
    model = build("gpt2")
    model.save(folder)
    other = dataclasses.replace(model.config, queries=6)
    with pytest.raises(CheckpointError) as caught:
        MedAlign3D.load(folder, other)
    assert "alignq.queries: (4, 32) in the checkpoint, (6, 32) here" in str(caught.value)
    more = dataclasses.replace(model.config, auxiliary_targets=("age",))
    with pytest.raises(CheckpointError, match=r"auxiliary_head.weight: not in the checkpoint, \(1, 32\) here"):
        MedAlign3D.load(folder, more)


def test_a_state_that_does_not_fit_changes_nothing(build: Any) -> None:
    model = build("gpt2")
    before = model.trainable_state_dict()
    wrong = {**before, "language_projection.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"language_projection\.bias"):
        model.load_trainable_state_dict(wrong)
    after = model.trainable_state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_damaged_and_missing_files_are_named(build: Any, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="trained model is missing"):
        MedAlign3D.load(folder)
    build("gpt2").save(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        MedAlign3D.load(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        MedAlign3D.load(folder)


def test_a_replaced_backbone_is_noticed(build: Any, folder: Path) -> None:
    build("gpt2").save(folder)
    description = json.loads((folder / "config.json").read_text())
    description["fingerprints"]["language"] = "0" * 16
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="frozen language backbone"):
        MedAlign3D.load(folder)


def test_the_seed_decides_new_weights(build: Any) -> None:
    first, second, third = build("gpt2", seed=1), build("gpt2", seed=1), build("gpt2", seed=2)
    a, b, c = (model.trainable_state_dict() for model in (first, second, third))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["sub_volumes.coarse.positions"], c["sub_volumes.coarse.positions"])


def test_activation_checkpointing_changes_no_gradient(build: Any, batch: Batch) -> None:
    gradients = []
    for flag in (False, True):
        model = build("gpt2", activation_checkpointing=flag)
        model(*batch).total.backward()
        gradients.append({n: p.grad for n, p in model.trainable_parameters().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_half_precision_trains_full_precision_weights(build: Any, kind: str, batch: Batch) -> None:
    model = build(kind, dtype="bfloat16")
    model.add_lora(seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(*batch)
    losses.total.backward()
    assert {p.dtype for p in model.trainable_parameters().values()} == {torch.float32}
    assert losses.contrastive.dtype == torch.float32
    exact = build(kind)(*batch)
    torch.testing.assert_close(losses.total.detach(), exact.total.detach(), rtol=0.03, atol=0.05)


def test_finer_sub_volumes_join_the_tokens(build: Any, batch: Batch) -> None:
    fine = FineBoxConfig(start=(6, 6, 6), stop=(18, 18, 12), pooling=1, cube=6)
    model = build("gpt2", fine=fine)
    assert model.sub_volumes.token_count == 1 + 8 + 4
    model(*batch).total.backward()
    assert model.sub_volumes.fine.positions.grad.any()


def test_features_of_several_depths_are_weighed_by_training(build: Any, batch: Batch, folder: Path) -> None:
    model = build("gpt2", feature_layers=(0, 1, -1))
    assert torch.allclose(model.vision.tap_weights.softmax(0), torch.tensor(1 / 3))
    _train(model, batch, steps=5)
    weights = model.vision.tap_weights.detach().softmax(0)
    assert float(weights.std()) > 1e-4
    model.save(folder)
    assert torch.equal(MedAlign3D.load(folder).vision.tap_weights, model.vision.tap_weights)
    # One depth has no weight to learn: the published form.
    assert "vision.tap_weights" not in build("gpt2", feature_layers=(-1,)).trainable_parameters()


def test_a_model_starts_from_one_of_other_sub_volumes(build: Any, batch: Batch, folder: Path) -> None:
    model = build("gpt2")
    _train(model, batch)
    model.save(folder)
    other = dataclasses.replace(model.config, volume_shape=(48, 48, 48), cube=4, kept=(7, 60, 100))
    with pytest.raises(CheckpointError, match="another architecture"):
        MedAlign3D.load(folder, other)
    started = MedAlign3D.load(folder, other, resample=True)
    assert started.sub_volumes.token_count == 4
    assert torch.isfinite(started.visual_prefix(torch.rand(2, 1, 48, 48, 48))).all()
    assert torch.equal(started.alignq.queries, model.alignq.queries)


def test_wrong_inputs_are_named(build: Any, batch: Batch) -> None:
    model = build("gpt2")
    volumes, texts, questions, answers = batch
    with pytest.raises(VolumeError, match="grid"):
        model.visual_prefix(torch.zeros(1, 1, 24, 24, 23))
    with pytest.raises(InputError, match="differ in length"):
        model(volumes, texts[:2], questions, answers)
    with pytest.raises(ParameterError, match="auxiliary head"):
        model.predict_auxiliary(torch.zeros(1, 4, 32))
    with pytest.raises(MedAlignError, match="feature layers"):
        build("gpt2", feature_layers=(0, 5))
    with pytest.raises(ParameterError, match="positions"):
        build("gpt2", maximum_prompt_tokens=600)


def test_a_missing_backbone_says_what_to_do(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="dvc repro backbones"):
        build("gpt2", vision_checkpoint="data/backbones/nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read at each call: no attempt to reach the network
    with pytest.raises(CheckpointError, match="hf download example/absent --revision abc"):
        build("gpt2", language_checkpoint="example/absent", language_revision="abc")


def test_a_checkpoint_of_another_kind_is_refused(build: Any, tiny_params: Any) -> None:
    language = tiny_params.model.language.models["gpt2"].checkpoint
    with pytest.raises(CheckpointError, match="another format"):
        build("gpt2", vision_checkpoint=language)


def test_follow_up_questions_see_the_first_answer(build: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gpt2").eval()
    seen: list[str] = []
    encode = model.language.encode_prompts

    def spy(texts: Any, questions: Any) -> Any:
        prompts = encode(texts, questions)
        seen.extend(model.language.tokenizer.decode(prompt) for prompt in prompts)
        return prompts

    monkeypatch.setattr(model.language, "encode_prompts", spy)
    model.continue_dialogue(["Male."], ["Dementia?"], ["no dementia"], ["Why?"])
    assert seen[0].split("Male. ")[1] == "Question: Dementia? Answer: no dementia Question: Why? Answer:"


def test_config_round_trip(tiny_params: Any) -> None:
    config = ModelConfig.from_params(tiny_params, "t5")
    config = dataclasses.replace(config, fine=FineBoxConfig((0, 0, 0), (6, 6, 6), 1, 6), auxiliary_targets=("age",))
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(CheckpointError, match="unknown fields"):
        ModelConfig.from_json({**config.to_json(), "color": 1})
    with pytest.raises(ParameterError, match="unknown language model"):
        ModelConfig.from_params(tiny_params, "gpt5")
