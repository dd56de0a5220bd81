"""Tables against numbers computed by hand, and what no table may ever do."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medalign3d.errors import InputError
from medalign3d.evaluation.metrics import wilson_interval
from medalign3d.report import labels, published, tables
from medalign3d.report.provenance import Provenance, collect
from medalign3d.report.questions import read_answers, table3
from medalign3d.report.table import Table, latex_escape


def small_predictions(params, truths, predicted_by_run, *, split="test", setting="frozen", benchmark="ADNI-3x"):
    rows = []
    for run, predicted in enumerate(predicted_by_run):
        for number, (truth, answer) in enumerate(zip(truths, predicted, strict=True)):
            rows.append(
                {
                    "image_id": f"i{number}", "person_id": f"p{number}", "dataset": "ADNI", "benchmark": benchmark,
                    "language_model": "gpt2", "setting": setting, "text_ablation": "full", "run": run, "split": split,
                    "question": "diagnosis_nc_mci_ad", "candidates": ["NC", "MCI", "AD_DEM"],
                    "scores": [0.0 if c == answer else -1.0 for c in ("NC", "MCI", "AD_DEM")], "predicted": answer,
                    "generated_text": "x", "parsed_answer": answer, "truth": truth, "simulated": params.simulated,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def made(demo_project, demo_params):
    return tables.build_tables(demo_params, demo_project)


@pytest.fixture(scope="module")
def real_made(real_project):
    root, params = real_project
    return tables.build_tables(params, root)


def provenance_of(params) -> Provenance:
    return Provenance(params.profile, params.simulated, params.split.mode, "a" * 64, "b" * 40, "c" * 64, "1")


def test_table2_equals_hand_computed_numbers(demo_params):
    truths = ["NC"] * 4 + ["MCI"] * 2 + ["AD_DEM"] * 2
    first = ["NC", "NC", "NC", "NC", "MCI", "NC", "NC", "NC"]  # 5 of 8; recalls 1, 1/2, 0
    second = ["NC", "NC", "NC", "MCI", "MCI", "MCI", "AD_DEM", "NC"]  # 6 of 8; recalls 3/4, 1, 1/2
    summary = tables.summarize(small_predictions(demo_params, truths, [first, second]), demo_params)
    table = tables.table2(summary, demo_params, provenance_of(demo_params))
    cells = table.tidy.set_index("metric")
    assert cells.loc["accuracy", "mean"] == pytest.approx((5 / 8 + 6 / 8) / 2)
    assert cells.loc["accuracy", "sd_over_runs"] == pytest.approx(np.std([5 / 8, 6 / 8], ddof=1))
    assert cells.loc["balanced_accuracy", "mean"] == pytest.approx((0.5 + 0.75) / 2)
    assert cells.loc["accuracy", "runs"] == 2
    assert cells.loc["accuracy", "images"] == cells.loc["accuracy", "persons"] == 8
    row = next(row for row in table.rows if row[1] == "frozen LM + image")
    assert row[5].startswith("68.8 ± 8.8 [")
    assert row[6].startswith("62.5 ± 17.7 [")
    assert table.rows[0][5] == "8 (8)"


def test_validation_rows_never_enter_a_table(demo_params):
    right = small_predictions(demo_params, ["NC"] * 6, [["NC"] * 6])
    wrong = small_predictions(demo_params, ["NC"] * 6, [["MCI"] * 6], split="val")
    summary = tables.summarize(pd.concat([right, wrong]), demo_params)
    assert summary["accuracy_mean"].tolist() == [1.0]
    with pytest.raises(InputError, match="no test predictions"):
        tables.summarize(wrong, demo_params)


def test_simulated_columns_carry_the_label_and_real_ones_never_do(made, demo_params, real_made):
    names = set(made["table2"].tidy["benchmark"])
    assert names == {f"SIM-{b}" for b in demo_params.split.benchmarks}
    for name in ("table1", "table2", "table3", "table_text_ablation", "table_image_gain"):
        assert "SIMULATED" in made[name].title, name
        assert any("SIMULATED" in note for note in made[name].notes)
        assert made[name].tidy["simulated"].all()
    assert any("SIM-AIBL (zero-shot)" in cell for cell in made["table2"].header)
    for table in real_made.values():
        text = table.markdown() + table.latex() + table.tidy.to_csv()
        assert "SIM-" not in text
        assert "SIMULATED" not in text


def test_the_oasis_headline_never_shows_the_cdr(made, demo_params):
    tidy = made["table2"].tidy
    texts = tidy[tidy["text_ablation"].isin(list(labels.TEXT_ABLATIONS))].groupby("benchmark")["text_ablation"].unique()
    for name, benchmark in demo_params.split.benchmarks.items():
        expected = "no_cdr" if benchmark.cohort == "OASIS" else "full"
        assert texts[f"SIM-{name}"].tolist() == [expected]
    assert any("SIM-OASIS-2x" in cell and "without CDR" in cell for cell in made["table2"].header)
    assert not any("SIM-ADNI-3x" in cell and "without CDR" in cell for cell in made["table2"].header)
    # One row per setting, however many texts its columns show.
    ablation = made["table_text_ablation"].tidy
    own = ablation[(ablation["benchmark"] == "SIM-OASIS-2x") & (ablation["text_ablation"] == "no_cdr")]
    shown = tidy[(tidy["benchmark"] == "SIM-OASIS-2x") & (tidy["text_ablation"] == "no_cdr")]
    keys = ["language_model", "setting", "metric"]
    merged = shown.merge(own, on=keys, suffixes=("", "_ablation"))
    assert len(merged) == len(shown) > 0
    assert (merged["mean"] == merged["mean_ablation"]).all()


def test_published_figures_stand_apart(made):
    for row in published.CLASSIFICATION:
        for name in ("table1", "table2", "table3"):
            assert f"| {row.language_model} " not in made[name].markdown()
    assert "not measured here" in made["published"].title
    assert (made["published"].tidy["source"] == "reported").all()
    gains = {
        (a.language_model, a.setting): a.accuracy for a in published.CLASSIFICATION
    }  # the image adds 4.0-44.8 points, LoRA 1.3-14.5: the sums that the published table itself gives
    models = {a.language_model for a in published.CLASSIFICATION}
    image = [f - t for m in models for f, t in zip(gains[m, "frozen"], gains[m, "text only"], strict=True)]
    lora = [b - f for m in models for b, f in zip(gains[m, "LoRA"], gains[m, "frozen"], strict=True)]
    assert (round(min(image), 1), round(max(image), 1)) == (4.0, 44.8)
    assert (round(min(lora), 1), round(max(lora), 1)) == (1.3, 14.5)


def test_cross_validation_table_has_both_populations_and_all_texts(real_project, real_made):
    root, _ = real_project
    table = real_made["table2"]
    assert [c for c in table.header if "accuracy" in c and "balanced" not in c] == [
        "OASIS-1, all: accuracy", "OASIS-1, 60 and over: accuracy",
    ]  # fmt: skip
    texts = {(row[1], row[2]) for row in table.rows}
    for setting in ("frozen LM + image", "LoRA + image", "text only, not trained", "trained on shuffled images"):
        assert {text for s, text in texts if s == setting} == {"full record", "without CDR", "demographics only"}
    assert ("majority class", "–") in texts
    tidy = table.tidy[(table.tidy["metric"] == "accuracy") & (table.tidy["setting"] == "frozen")]
    assert (tidy.loc[tidy["population"] == "all", "images"] == 60).all()
    ages = tables.read_ages(root)
    assert (tidy.loc[tidy["population"] != "all", "images"] == int((ages >= 60).sum())).all()


def test_small_groups_are_suppressed(demo_params):
    predictions = small_predictions(demo_params, ["NC"] * 4, [["NC"] * 4])
    table = tables.table2(tables.summarize(predictions, demo_params), demo_params, provenance_of(demo_params))
    assert "n<5" in table.rows[2]
    assert table.rows[0][5] == "<5 (<5)"
    assert "mean" not in table.tidy.columns
    assert tables.count(0, 5) == "0"
    assert tables.count(4, 5) == "<5"
    # With a total beside it, one hidden number would be a subtraction away.
    assert tables._counts([3, 20, 40], 5) == ["<5", "suppressed", "40"]
    assert tables._counts([30, 20], 5) == ["30", "20"]


def test_mixed_simulated_and_real_rows_are_refused(demo_params, real_project):
    predictions = small_predictions(demo_params, ["NC"] * 4, [["NC"] * 4])
    predictions.loc[0, "simulated"] = False
    with pytest.raises(InputError, match="mixed"):
        tables.check_simulated(predictions, demo_params)
    with pytest.raises(InputError, match="mixed"):
        tables.check_simulated(predictions.tail(1), real_project[1])


def test_table1_counts(demo_project, demo_params):
    table = tables.table1(demo_params, collect(demo_params, demo_project), demo_project)
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.header[1:] == ["SIM-ADNI", "SIM-NACC", "SIM-OASIS", "SIM-AIBL", "SIM-MIRIAD", "all"]
    assert rows["images"] == ["36", "36", "24", "36", "24", "156"]
    assert rows["female / male (images)"][0] == "18 / 18"
    assert rows["socioeconomic status"] == ["0"] * 6
    assert rows["age, range (years)"][0].endswith("90+")
    assert rows["zero-shot test"] == ["0", "0", "0", "36", "24", "60"]


def test_image_gain_is_the_paired_difference(demo_params):
    truths = ["NC", "NC", "MCI", "MCI", "AD_DEM", "AD_DEM"]
    with_image = small_predictions(demo_params, truths, [truths])
    control = small_predictions(demo_params, truths, [["NC"] * 6], setting="control_shuffled")
    table = tables.table_image_gain(pd.concat([with_image, control]), demo_params, provenance_of(demo_params))
    assert table is not None
    assert table.tidy["accuracy_difference"].tolist() == [pytest.approx(4 / 6)]
    assert table.rows[0][5].startswith("+66.7 [")
    assert tables.table_image_gain(with_image, demo_params, provenance_of(demo_params)) is None


def test_table3_numbers_and_intervals(demo_project, demo_params):
    answers = read_answers(demo_params, demo_project)
    table = table3(answers, demo_params, collect(demo_params, demo_project))
    chosen = answers[
        (answers["language_model"] == "gpt2") & (answers["setting"] == "text_only")
        & (answers["finding"] == "ventricles_enlarged")
    ]  # fmt: skip
    right = int(chosen["strict_correct"].sum())
    row = next(r for r in table.rows if r[:3] == ["tiny GPT-2", "text only, not trained", "generated, strict"])
    low, high = wilson_interval(right, 20)
    assert row[4] == f"{100 * right / 20:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert table.header[-1] == "knowledge (no image)"
    totals = dict(zip(table.header, table.rows[0], strict=True))
    assert totals["all image questions"] == "60"  # knowledge questions are not in it
    assert totals["knowledge (no image)"] == "8"


def test_table3_without_questions_says_so(demo_params):
    table = table3(pd.DataFrame(), demo_params, provenance_of(demo_params))
    assert "No visual questions" in table.markdown()


def test_one_table_three_files_with_the_same_numbers(demo_project, demo_params, tmp_path):
    table = tables.table1(demo_params, collect(demo_params, demo_project), demo_project)
    paths = table.write(tmp_path)
    assert [p.name for p in paths] == ["table1.csv", "table1.md", "table1.tex"]
    tidy = pd.read_csv(paths[0])
    assert {"profile", "simulated", "split_sha256", "commit", "metrics_version"} <= set(tidy.columns)
    markdown, latex = paths[1].read_text(), paths[2].read_text()
    for row in table.rows:
        for cell in row:
            assert cell in markdown
            assert latex_escape(cell) in latex
    widths = {line.count("|") for line in markdown.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_escapes():
    assert latex_escape("5 % & a_b ± {x}") == r"5 \% \& a\_b $\pm$ \{x\}"
    table = Table("t", "T", ["a"], [["x|y"]], pd.DataFrame())
    assert "x\\|y" in table.markdown()


def test_metrics_file_holds_only_numbers_and_labels(demo_project, demo_params):
    predictions = tables.read_predictions(demo_params, demo_project)
    summary = tables.summarize(predictions, demo_params)
    values = tables.headline_metrics(summary, demo_params, collect(demo_params, demo_project))
    assert values["simulated"] is True
    assert set(values) == {"simulated", "profile"} | {f"SIM-{b}" for b in demo_params.split.benchmarks}
    for row in values["SIM-AIBL"].values():
        assert all(math.isfinite(v) for v in row.values())


def test_missing_predictions_are_an_error_that_says_what_to_do(tmp_path: Path, demo_params):
    with pytest.raises(InputError, match="dvc repro"):
        tables.read_predictions(demo_params, tmp_path)


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (88_416, "88k"), (2_849_757_184, "2.8B")])
def test_short_numbers(number, text):
    assert tables.short_number(number) == text
