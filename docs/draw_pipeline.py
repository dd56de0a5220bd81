"""Draw dvc.yaml as a picture: ``python docs/draw_pipeline.py`` writes docs/pictures/pipeline.svg and .png."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[1]

# Where each stage stands: column, row. The arrows come from dvc.yaml.
PLACES = {
    "simulate": (0, 2.0),
    "manifest": (0, 0.6),
    "ingest": (1, 1.3),
    "harmonize": (2, 2.0),
    "normalize": (2, 0.6),
    "split": (3, 1.3),
    "backbones": (4, 0.6),
    "pretrain": (5, 0.6),
    "tune": (6, 0.6),
    "evaluate": (7, 1.05),
    "vqa": (7, 0.1),
    "baselines": (6, 2.1),
    "register": (8, 1.3),
    "report": (9, 1.3),
}
WHAT = {
    "simulate": "simulated cohorts,\nnative layouts",
    "manifest": "your own cohorts:\nlist of files",
    "ingest": "native files to tables,\nquarantine",
    "harmonize": "one table,\nrecord as text",
    "normalize": "MNI space,\nverdicts",
    "split": "by linked person",
    "backbones": "tiny ViT and LMs,\nor checkpoints",
    "pretrain": "AlignQ,\nfrozen LM",
    "tune": "LoRA on Q, V",
    "evaluate": "text / frozen / LoRA,\ncontrols",
    "vqa": "closed-ended\nquestions",
    "baselines": "other methods,\noracles",
    "register": "best on\nvalidation",
    "report": "tables, figures,\none page",
}
WIDTH, HEIGHT = 0.84, 0.62


def stage_arrows() -> list[tuple[str, str, bool]]:
    """Pairs (from, to) of stages of which one reads what the other writes."""
    stages = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())["stages"]
    outs = {name: [str(out).split("/${")[0] for out in stage["outs"]] for name, stage in stages.items()}
    arrows = []
    for target, stage in stages.items():
        reads = [str(dependency).split("/${")[0] for dependency in stage["deps"]]
        for source, written in outs.items():
            if source != target and any(
                r == w or w.startswith(f"{r}/") or r.startswith(f"{w}/") for r in reads for w in written
            ):
                arrows.append((source, target))

    # An arrow that other arrows already imply only clutters the picture.
    def reaches(start: str, goal: str, skip: tuple[str, str]) -> bool:
        ahead = [b for a, b in arrows if a == start and (a, b) != skip]
        return goal in ahead or any(reaches(step, goal, skip) for step in ahead)

    return [(a, b) for a, b in arrows if not reaches(a, b, (a, b))]


def main() -> None:
    """Write the two picture files."""
    figure, axes = plt.subplots(figsize=(15, 4.0))
    stages = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())["stages"]
    missing = set(stages) ^ set(PLACES)
    if missing:
        raise SystemExit(f"stages without a place in this picture, or places without a stage: {sorted(missing)}")
    for source, target in stage_arrows():
        (x0, y0), (x1, y1) = PLACES[source], PLACES[target]
        if x0 == x1:
            start, end = (
                (x0, y0 - HEIGHT / 2 if y1 < y0 else y0 + HEIGHT / 2),
                (x1, y1 + HEIGHT / 2 if y1 < y0 else y1 - HEIGHT / 2),
            )
        else:
            start, end = (x0 + WIDTH / 2, y0), (x1 - WIDTH / 2, y1)
        axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": "#5b6b7b", "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
        )
    for name, (x, y) in PLACES.items():
        matrix = stages[name].get("matrix")
        color = {"cohort": "#dcecf7", "lm": "#e9e2f5"}.get(next(iter(matrix)) if matrix else "", "#f3efe3")
        axes.add_patch(
            FancyBboxPatch(
                (x - WIDTH / 2, y - HEIGHT / 2),
                WIDTH,
                HEIGHT,
                boxstyle="round,pad=0.01,rounding_size=0.06",
                fc=color,
                ec="#33414f",
                lw=1.1,
            )
        )
        axes.text(x, y + 0.17, name, ha="center", va="center", fontsize=10.5, fontweight="bold", color="#1d2730")
        axes.text(x, y - 0.1, WHAT[name], ha="center", va="center", fontsize=7.6, color="#33414f")
    for x, color, label in (
        (0.0, "#dcecf7", "once per cohort"),
        (1.6, "#e9e2f5", "once per language model"),
        (3.8, "#f3efe3", "once"),
    ):
        axes.add_patch(
            FancyBboxPatch((x - 0.4, -0.52), 0.2, 0.18, boxstyle="round,pad=0.01", fc=color, ec="#33414f", lw=0.8)
        )
        axes.text(x - 0.1, -0.43, label, va="center", fontsize=9, color="#33414f")
    axes.set_xlim(-0.55, 9.55)
    axes.set_ylim(-0.65, 2.5)
    axes.axis("off")
    figure.tight_layout(pad=0.3)
    for suffix in ("svg", "png"):
        figure.savefig(
            PROJECT / "docs" / "pictures" / f"pipeline.{suffix}",
            dpi=110,
            metadata={"Date": None} if suffix == "svg" else None,
        )


if __name__ == "__main__":
    main()
