"""The published architecture's parameter counts, exactly, without downloading or allocating anything."""

from __future__ import annotations

import pytest

from medalign3d.model import parameters


@pytest.mark.slow
def test_full_size_counts() -> None:
    counts = parameters.component_counts()
    assert counts["vision_blocks"] == 984_756_864
    assert counts["sub_volume_projection"] == 46_138_752
    assert counts["positions"] == 484_352
    assert counts["qformer_queries_only"] == 105_137_664
    assert counts["qformer_with_text"] == 161_825_280
    assert counts["text_embeddings"] == 23_834_112
    assert counts["queries"] == 24_576
    assert counts["contrastive_projections"] == 590_592
    assert counts["language_t5"] == 2_849_757_184
    assert counts["language_biogpt"] == 1_571_188_800
    assert counts["language_gpt2"] == 2_594_247_680


@pytest.mark.slow
def test_learnable_parameters_beside_each_language_model() -> None:
    rows = {row.language_model: row for row in parameters.parameter_table()}
    expected = {
        # core, shared, core + LoRA 8, core + LoRA 16, in millions
        "t5": (151.79, 153.95, 156.50, 161.22),
        "biogpt": (151.79, 153.61, 154.24, 156.70),
        "gpt2": (151.79, 154.35, 154.41, 157.03),
    }
    for name, (core, shared, lora_8, lora_16) in expected.items():
        row = rows[name]
        assert row.core / 1e6 == pytest.approx(core, abs=0.005)
        assert row.shared / 1e6 == pytest.approx(shared, abs=0.005)
        assert row.core_lora_8 / 1e6 == pytest.approx(lora_8, abs=0.005)
        assert row.core_lora_16 / 1e6 == pytest.approx(lora_16, abs=0.005)
        assert 234e6 < row.full < 235e6
