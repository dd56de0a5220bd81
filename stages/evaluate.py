"""Stage `evaluate`: one language model in every setting, run and text; candidate scores, generated text, truth."""

from __future__ import annotations

from common import DATA, language_model_argument, run_stage

from medalign3d.ehr.splits import benchmark_parameters
from medalign3d.evaluation.predict import evaluate_language_model, write_predictions
from medalign3d.evaluation.summary import accuracies
from medalign3d.files import write_json
from medalign3d.params import Params
from medalign3d.tracking import track_run


def main(params: Params) -> None:
    """Write ``data/evaluation/<lm>``."""
    name = language_model_argument(params)
    with track_run(params, f"evaluate@{name}", "evaluation", {"language_model": name}) as run:
        predictions = evaluate_language_model(params, name, data_dir=DATA)
        table = accuracies(predictions)
        run.log_table("accuracies", table)
        run.log_metrics(
            {
                f"{row['split']}/{row['benchmark']}/{row['setting']}/{row['text_ablation']}": row["balanced_accuracy"]
                for row in table.to_dict("records")
            }
        )
        out = DATA / "evaluation" / name
        write_predictions(out / "predictions.parquet", predictions)
        write_json(out / "mlflow_run.json", run.record)
    headline = [params.headline_text(benchmark_parameters(name, params).cohort) for name in table["benchmark"]]
    shown = table[(table["text_ablation"] == headline) & (table["split"] != "val")]
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    run_stage(main)
