"""Figures from predictions, volumes and training histories, each written as PNG and SVG from one place.

- ``accuracy``: accuracy (balanced accuracy in cross-validation) with intervals per benchmark, model and setting;
- ``confusion``: confusion matrices; ``roc`` and ``reliability``: for the model chosen on validation rows;
- ``cases``: people as the model sees them: three slices, the record, question, answer and truth, right and wrong;
- ``normalization_<COHORT>``: normalized volumes with the template's outline, worst agreement first;
- ``training``: losses and validation accuracy.

Matplotlib is imported inside the functions and draws without a display. Not supported: interactive figures.
"""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medalign3d.ehr.questions import QUESTIONS
from medalign3d.evaluation import metrics
from medalign3d.files import atomic_path, read_json, read_parquet
from medalign3d.params import Params
from medalign3d.report import labels
from medalign3d.report.provenance import Provenance
from medalign3d.report.tables import Block, blocks, headline_of, tested
from medalign3d.tracking import choose_best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.uint8]

INK = "#1f2933"
MUTED = "#7b8794"
GRID = "#e4e7eb"
WARNING = "#b3541e"
SETTING_COLOURS = {
    "text_only": "#c5ccd3",
    "control_blind": "#e3c9a8",
    "control_shuffled": "#d9a566",
    "frozen": "#5fa8a0",
    "lora": "#1f5f8b",
}
CURVE_COLOURS = ["#1f5f8b", "#d9822b", "#3d9970", "#8e5ea2", "#c0392b", "#7f8c8d"]
REFERENCE_COLOURS = ["#8e5ea2", "#3d7a3d", "#555555", "#a05195", "#b08d00", "#5c7080"]
RIGHT, WRONG = "#2e7d4f", "#b23b3b"

OUTLINE = (242, 177, 52)
REFERENCES = ("ehr", "pca_ehr", "regions_ehr", "oracle_both")
# Slices in MNI millimetres: for quality control near the middle; for cases through the left hippocampus and the
# ventricles.
QUALITY_SLICES_MM = (-2.0, -20.0, 6.0)
CASE_SLICES_MM = (-27.0, -22.0, 14.0)

MONTAGE_VOLUMES = 12
DOTS_PER_INCH = 150
STAGES = {
    "frozen": "frozen LM + image",
    "lora": "LoRA + image",
    "controls/shuffled": "control: shuffled images",
    "controls/blind": "control: no image",
}


@dataclass(frozen=True)
class Picture:
    """A written figure: name, what it shows, and its PNG."""

    name: str
    caption: str
    png: Path


@contextmanager
def _style() -> Iterator[Any]:
    """Draw in the project's style, without a display; yields ``matplotlib.pyplot``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "legend.frameon": False,
        "svg.hashsalt": "medalign3d",
        "svg.fonttype": "path",
        "figure.facecolor": "white",
    }
    with plt.rc_context(settings):
        yield plt
        plt.close("all")


def _save(figure: Figure, folder: Path, name: str, caption: str) -> Picture:
    """Write one figure as PNG and SVG, without clock times in the files."""
    for suffix in (".png", ".svg"):
        with atomic_path(folder / f"{name}{suffix}") as temporary:
            metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
            figure.savefig(temporary, dpi=DOTS_PER_INCH, bbox_inches="tight", metadata=metadata)
    return Picture(name, caption, folder / f"{name}.png")


def _heading(figure: Figure, title: str, provenance: Provenance, *, top_inches: float = 0.42) -> None:
    """The title line (with the simulated label) above all panels and the provenance below them."""
    height = figure.get_size_inches()[1]
    figure.suptitle(provenance.title(title), x=0.01, y=1.0 + top_inches / height, ha="left", fontsize=13, weight="bold")
    if provenance.simulated:
        figure.text(
            0.01, 1.0 + (top_inches - 0.30) / height, "Simulated people and scans: says nothing about patients.",
            ha="left", va="top", fontsize=9, color=WARNING,
        )  # fmt: skip
    figure.text(0.01, -0.02 - 0.12 / height, provenance.footer, ha="left", va="top", fontsize=6.5, color=MUTED)


# --- accuracy ---------------------------------------------------------------------------------------------------------


def accuracy_figure(summary: pd.DataFrame, params: Params, provenance: Provenance, folder: Path) -> Picture:
    """Bars with intervals: one panel per benchmark; in cross-validation per population and text ablation."""
    crossed = params.split.mode == "cross_validation"
    metric = "balanced_accuracy" if crossed else "accuracy"
    columns = blocks(summary, params, provenance)
    texts = [t for t in labels.TEXT_ABLATIONS if (summary["text_ablation"] == t).any()]
    panels = [
        (block, text) for block in columns for text in (texts if crossed else [headline_of(params, block.benchmark)])
    ]
    with _style() as plt:
        across = min(3, len(panels))
        down = math.ceil(len(panels) / across)
        figure, axes = plt.subplots(down, across, figsize=(4.6 * across, 3.3 * down), squeeze=False, sharey=True)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (block, text) in zip(axes.flat, panels, strict=False):
            _accuracy_panel(axis, summary, block, text, metric, params)
            named = crossed or text != params.evaluate.headline_text
            title = f"{block.label}\n{labels.text_label(text)}" if named else block.label
            axis.set_title(f"{title}   n = {block.images}", loc="left")
        for row in axes:
            row[0].set_ylabel(f"{metric.replace('_', ' ')}, %")
        handles, names = _unique_legend(axes)
        spare = axes.flat[len(panels)] if len(panels) < axes.size else None
        if spare is not None:
            spare.legend(handles, names, loc="upper left", fontsize=8.5, borderaxespad=0)
        else:
            figure.legend(handles, names, loc="upper left", bbox_to_anchor=(1.0, 0.97), fontsize=8.5)
        figure.tight_layout()
        _heading(figure, f"{metric.replace('_', ' ').capitalize()} with 95 % intervals over persons", provenance)
        caption = (
            f"{metric.replace('_', ' ').capitalize()} (%), mean over runs; whiskers: 95 % bootstrap interval over "
            "persons; dotted "
            "line: chance; other lines: baselines" + (" and oracle bounds." if provenance.simulated else ".")
        )
        return _save(figure, folder, "accuracy", caption)


def _accuracy_panel(axis: Axes, summary: pd.DataFrame, block: Block, text: str, metric: str, params: Params) -> None:
    rows = summary[(summary["benchmark"] == block.benchmark) & (summary["population"] == block.population)]
    rows = rows[rows["persons"] >= params.report.minimum_cell]
    with_text = rows["text_ablation"].eq(text) | ~rows["text_ablation"].isin(list(labels.TEXT_ABLATIONS))
    rows = rows[with_text]
    trained = rows[rows["setting"].isin(list(SETTING_COLOURS))]
    settings = [setting for setting in SETTING_COLOURS if (trained["setting"] == setting).any()]
    models = [m for m in params.language_models if (trained["language_model"] == m).any()]
    width = 0.82 / max(1, len(settings))
    for position, model in enumerate(models):
        for place, setting in enumerate(settings):
            found = trained[(trained["language_model"] == model) & (trained["setting"] == setting)]
            if found.empty:
                continue
            row = found.iloc[0]
            x = position + (place - (len(settings) - 1) / 2) * width
            mean, low, high = (100 * float(row[f"{metric}_{part}"]) for part in ("mean", "low", "high"))
            # The pooled interval need not contain the mean over folds.
            axis.bar(x, mean, width * 0.92, color=SETTING_COLOURS[setting], label=labels.setting_label(setting))
            axis.vlines(x, min(low, mean), max(high, mean), color=INK, linewidth=0.9)
    axis.axhline(100 * block.chance, color=INK, linestyle=":", linewidth=1.1, label="chance")
    others = rows[~rows["setting"].isin(list(SETTING_COLOURS))]
    # More lines than these hide the bars; the table has all of them.
    names = [name for name in REFERENCES if (others["setting"] == name).any()]
    for number, name in enumerate(names):
        row = others[others["setting"] == name].iloc[0]
        oracle = labels.section_of(str(name)) == labels.SECTION_ORACLES
        axis.axhline(
            100 * float(row[f"{metric}_mean"]),
            color=REFERENCE_COLOURS[number % len(REFERENCE_COLOURS)],
            linestyle="--" if oracle else "-",
            linewidth=1.1,
            alpha=0.9,
            label=labels.setting_label(str(name)),
        )
    axis.set_xticks(range(len(models)), [labels.language_model_label(params, model) for model in models])
    axis.set_ylim(0, 100)
    axis.grid(axis="x", visible=False)


def _unique_legend(axes: npt.NDArray[Any]) -> tuple[list[Any], list[str]]:
    """Legend entries of all panels, each label once, long ones wrapped."""
    seen: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            seen.setdefault(name, handle)
    return list(seen.values()), [textwrap.fill(name, 44) for name in seen]


def image_gain_figure(
    gain: pd.DataFrame | None, params: Params, provenance: Provenance, folder: Path
) -> Picture | None:
    """What the image adds over the trained control, headline text, with intervals; ``gain``: the tidy table."""
    if gain is None:
        return None
    metric = "balanced_accuracy" if params.split.mode == "cross_validation" else "accuracy"
    headline = gain["benchmark"].map(lambda name: headline_of(params, name))
    shown = gain[(gain["text_ablation"] == headline) & ~gain["suppressed"].astype(bool)]
    if shown.empty:
        return None
    titles = {
        (b, p): b if p == "all" else f"{b}, {p}" for b, p in zip(shown["benchmark"], shown["population"], strict=True)
    }
    with _style() as plt:
        number = len(shown)
        figure, axis = plt.subplots(figsize=(9.5, 0.2 * number + 0.42 * len(titles) + 0.8))
        y, ticks, names = 0.0, [], []
        for (benchmark, population), title in titles.items():
            part = shown[(shown["benchmark"] == benchmark) & (shown["population"] == population)]
            y += 1.0
            axis.text(-0.01, y, title, ha="right", va="center", weight="bold", transform=axis.get_yaxis_transform())
            for row in part.to_dict("records"):
                y += 1.0
                middle, low, high = (100 * row[f"{metric}_{end}"] for end in ("difference", "low", "high"))
                colour = SETTING_COLOURS.get(row["setting"], INK)
                axis.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
                axis.plot(middle, y, "o", color=colour, markersize=5)
                ticks.append(y)
                against = labels.setting_label(row["control"]).removeprefix("trained ")
                model = labels.language_model_label(params, row["language_model"])
                names.append(f"{model}, {labels.setting_label(row['setting'])} (against: {against})")
            y += 0.3
        axis.axvline(0, color=INK, linewidth=0.9)
        axis.set_yticks(ticks, names, fontsize=7.5)
        axis.set_ylim(y + 0.6, 0.2)
        axis.set_xlabel(f"difference in {metric.replace('_', ' ')}, percentage points")
        axis.grid(axis="y", visible=False)
        figure.tight_layout()
        _heading(figure, "What the right image adds over the trained control", provenance)
        caption = (
            f"Paired difference in {metric.replace('_', ' ')} on the same images; lines: 95 % bootstrap intervals over "
            "persons. An interval that crosses zero shows no gain."
        )
        return _save(figure, folder, "image_gain", caption)


# --- confusion, ROC, reliability --------------------------------------------------------------------------------------


def _best_setting(predictions: pd.DataFrame) -> str:
    """LoRA where it was trained, else the frozen model, else text only."""
    found = set(predictions["setting"])
    return next((s for s in ("lora", "frozen", "text_only") if s in found), "text_only")


def confusion_figure(predictions: pd.DataFrame, params: Params, provenance: Provenance, folder: Path) -> Picture | None:
    """Row-normalized confusion matrices, one row per language model, one column per benchmark (all runs together)."""
    rows = tested(predictions)
    setting = _best_setting(rows)
    rows = rows[(rows["setting"] == setting) & _is_headline(rows, params)]
    models = [m for m in params.language_models if (rows["language_model"] == m).any()]
    names = [b for b in params.split.benchmarks if (rows["benchmark"] == b).any()]
    if not models or not names:
        return None
    with _style() as plt:
        figure, axes = plt.subplots(
            len(models), len(names), figsize=(2.75 * len(names) + 0.6, 2.55 * len(models)), squeeze=False
        )
        for y, model in enumerate(models):
            for x, benchmark in enumerate(names):
                axis = axes[y, x]
                part = rows[(rows["language_model"] == model) & (rows["benchmark"] == benchmark)]
                if part.empty:
                    axis.set_axis_off()
                    continue
                _confusion_panel(axis, part, params)
                if y == 0:
                    axis.set_title(provenance.benchmark_label(benchmark))
                if x == 0:
                    axis.set_ylabel(f"{labels.language_model_label(params, model)}\n\ntruth")
                if y == len(models) - 1:
                    axis.set_xlabel("predicted")
        figure.tight_layout()
        title = (
            f"Confusion matrices, {labels.setting_label(setting)}, {labels.text_label(params.evaluate.headline_text)}"
        )
        _heading(figure, title, provenance)
        caption = (
            "Share of each true class (rows) that is given each answer, %; all runs together. Classes of fewer than "
            f"{params.report.minimum_cell} people are left blank."
        )
        return _save(figure, folder, "confusion", caption)


def _short_class(name: str) -> str:
    return {"AD_DEM": "AD", "NonDEM": "Non-DEM"}.get(name, name)


def _confusion_panel(axis: Axes, part: pd.DataFrame, params: Params) -> None:
    question = QUESTIONS.get(str(part["question"].iloc[0]))
    found = [str(c) for c in part["candidates"].iloc[0]]
    classes = [c for c in question.classes if c in found] if question else found
    matrix = metrics.confusion_matrix(part["truth"].tolist(), part["predicted"].tolist(), classes)[:, : len(classes)]
    people = part.groupby("truth", observed=True)["person_id"].nunique()
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    for index, name in enumerate(classes):
        if people.get(name, 0) < params.report.minimum_cell:
            shares[index] = np.nan
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(shares):
        if not math.isnan(value):
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", color="white" if value > 55 else INK, fontsize=10)
    ticks = [_short_class(name) for name in classes]
    axis.set_xticks(range(len(classes)), ticks)
    axis.set_yticks(range(len(classes)), ticks, rotation=90, va="center")
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.tick_params(length=0)


def roc_curve(positive: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> tuple[Any, Any, float]:
    """False and true positive rates at every threshold, and the area under the curve (ties count half).

    >>> fpr, tpr, area = roc_curve(np.array([False, True, False, True]), np.array([0.1, 0.9, 0.4, 0.35]))
    >>> area
    0.75
    """
    order = np.argsort(-score, kind="stable")
    hits, ordered = positive[order], score[order]
    last = np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1]
    true = np.r_[0, np.cumsum(hits)[last]] / max(1, hits.sum())
    false = np.r_[0, np.cumsum(~hits)[last]] / max(1, (~hits).sum())
    return false, true, float(np.trapezoid(true, false))


def _curves(part: pd.DataFrame) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Probabilities (N, C) averaged in the classes' own order, and the classes."""
    classes = [str(c) for c in part["candidates"].iloc[0]]
    aligned = [
        [dict(zip(candidates, scores, strict=True))[name] for name in classes]
        for candidates, scores in zip(part["candidates"], part["scores"], strict=True)
    ]
    return metrics.softmax(aligned), classes


def _is_headline(rows: pd.DataFrame, params: Params) -> pd.Series:
    """Which predictions were made with their cohort's headline text."""
    return rows["text_ablation"] == rows["dataset"].map(params.headline_text)


def _chosen_rows(predictions: pd.DataFrame, params: Params) -> tuple[pd.DataFrame, str]:
    """Tested rows of the language model that is best on validation rows (all its settings), and its name."""
    best = choose_best(predictions, params.evaluate.headline_text)
    rows = tested(predictions)
    rows = rows[(rows["language_model"] == best["language_model"]) & _is_headline(rows, params)]
    return rows, str(best["language_model"])


def curve_figures(predictions: pd.DataFrame, params: Params, provenance: Provenance, folder: Path) -> list[Picture]:
    """ROC (dementia, or the last class, against the others) and reliability of the model chosen on validation rows."""
    rows, model = _chosen_rows(predictions, params)
    names = [
        b
        for b in params.split.benchmarks
        if rows.loc[rows["benchmark"] == b, "person_id"].nunique() >= 4 * params.report.minimum_cell
    ]
    settings = [s for s in SETTING_COLOURS if (rows["setting"] == s).any()]
    if not names:
        return []
    title = labels.language_model_label(params, model)
    pictures = []
    for kind in ("roc", "reliability"):
        with _style() as plt:
            figure, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names), 3.4), squeeze=False, sharey=True)
            for axis, benchmark in zip(axes[0], names, strict=True):
                for setting in settings:
                    part = rows[(rows["benchmark"] == benchmark) & (rows["setting"] == setting)]
                    if part.empty:
                        continue
                    draw = _roc_line if kind == "roc" else _reliability_line
                    draw(axis, part, setting)
                axis.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
                axis.set_title(provenance.benchmark_label(benchmark), loc="left")
                axis.set_xlim(-0.01, 1.01)
                axis.set_ylim(-0.01, 1.01)
                axis.set_aspect("equal")
                axis.set_xlabel("false positive rate" if kind == "roc" else "confidence")
                axis.legend(fontsize=7, loc="lower right")
            axes[0, 0].set_ylabel("true positive rate" if kind == "roc" else "accuracy")
            figure.tight_layout()
            if kind == "roc":
                _heading(figure, f"ROC, {title}: dementia (or the last class) against the others", provenance)
                caption = "Receiver operating characteristic of all runs together; AUC in the legend."
            else:
                _heading(figure, f"Reliability, {title}", provenance)
                caption = (
                    "Accuracy within groups of equal size by confidence (softmax over the candidates); on the dotted "
                    "line confidence equals accuracy. ECE in the legend."
                )
            pictures.append(_save(figure, folder, kind, caption + " The language model was chosen on validation rows."))
    return pictures


def _roc_line(axis: Axes, part: pd.DataFrame, setting: str) -> None:
    probabilities, classes = _curves(part)
    question = QUESTIONS.get(str(part["question"].iloc[0]))
    target = question.classes[-1] if question and question.classes[-1] in classes else classes[-1]
    positive = part["truth"].to_numpy(dtype=object) == target
    if positive.all() or not positive.any():
        return
    false, true, area = roc_curve(positive, probabilities[:, classes.index(target)])
    name = f"{labels.setting_label(setting)}, {area:.2f}"
    axis.plot(false, true, color=_line_colour(setting), linewidth=1.5, label=name)


def _reliability_line(axis: Axes, part: pd.DataFrame, setting: str) -> None:
    probabilities, classes = _curves(part)
    truth = np.array([classes.index(str(t)) for t in part["truth"]])
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    error = metrics.expected_calibration_error(probabilities, truth)
    order = np.argsort(confidence, kind="stable")
    groups = np.array_split(order, min(6, max(2, len(order) // 15)))
    axis.plot(
        [confidence[g].mean() for g in groups], [correct[g].mean() for g in groups], marker="o", markersize=3.5,
        color=_line_colour(setting), linewidth=1.5, label=f"{labels.setting_label(setting)}, {error:.2f}",
    )  # fmt: skip


def _line_colour(setting: str) -> str:
    return "#8a949e" if setting == "text_only" else SETTING_COLOURS[setting]


# --- volumes ----------------------------------------------------------------------------------------------------------


def orthogonal_slices(volume: Array, at: tuple[int, int, int]) -> list[Array]:
    """Sagittal, coronal and axial slice through voxel ``at`` of an RAS array, the top of the head (or the front) up.

    The front is at the left of the sagittal slice; the person's left is at the left of the others.
    """
    x, y, z = (min(size - 1, max(0, place)) for size, place in zip(volume.shape, at, strict=True))
    return [volume[x].T[::-1, ::-1], volume[:, y].T[::-1], volume[:, :, z].T[::-1]]


def voxel_at(params: Params, millimetres: tuple[float, float, float]) -> tuple[int, int, int]:
    """The voxel of normalized volumes at a place in MNI millimetres."""
    from medalign3d.volumes import template

    affine = template.target_grid(params.normalize.shape, params.normalize.zooms_mm).affine
    x, y, z = np.rint(np.linalg.solve(affine, [*millimetres, 1.0])[:3]).astype(int)
    return int(x), int(y), int(z)


def _read_volume(root: Path, dataset: str, path: str) -> Array:
    from medalign3d.volumes.store import read

    return read(root / "data/volumes" / dataset / path)


def _side_by_side(pictures: Sequence[Array], gap: int = 2) -> Array:
    """Slices in one row on black, centred."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    canvas = np.zeros((height, width), dtype=np.uint8)
    x = 0
    for picture in pictures:
        y = (height - picture.shape[0]) // 2
        canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        x += picture.shape[1] + gap
    return canvas


def _template_outline(params: Params) -> Array:
    """The template's brain mask on the grid of normalized volumes (0 or 1)."""
    from medalign3d.volumes import template

    grid = template.target_grid(params.normalize.shape, params.normalize.zooms_mm)
    return (np.asarray(template.on_grid(grid).brain) > 0.5).astype(np.uint8)


def _outlined(picture: Array, mask: Array, scale: int) -> npt.NDArray[np.uint8]:
    """A grey picture, enlarged, with the mask's outline in yellow; (H, W, 3)."""
    big = np.repeat(np.repeat(picture, scale, 0), scale, 1)
    inside = np.repeat(np.repeat(mask, scale, 0), scale, 1).astype(bool)
    edge = np.zeros_like(inside)
    edge[:-1] |= inside[:-1] != inside[1:]
    edge[:, :-1] |= inside[:, :-1] != inside[:, 1:]
    coloured = np.repeat(big[:, :, None], 3, axis=2)
    coloured[edge] = OUTLINE
    return coloured


def normalization_figures(params: Params, provenance: Provenance, folder: Path, root: Path) -> list[Picture]:
    """One montage per cohort: the volumes that agree least with the template first, then evenly spread ones."""
    pictures = []
    place = voxel_at(params, QUALITY_SLICES_MM)
    mask = _side_by_side(orthogonal_slices(_template_outline(params), place))
    scale = max(1, round(420 / mask.shape[1]))
    for cohort in params.cohorts:
        index_path = root / "data/volumes" / cohort / "index.parquet"
        if not index_path.is_file():
            continue
        index = read_parquet(index_path)
        accepted = index[index["verdict"].astype(str) == "accepted"].sort_values(["local_correlation", "image_id"])
        if accepted.empty:
            continue
        worst = accepted.head(MONTAGE_VOLUMES // 3)
        rest = accepted.iloc[len(worst) :]
        number = min(len(rest), MONTAGE_VOLUMES - len(worst))
        spread = rest.iloc[np.linspace(0, len(rest) - 1, number).round().astype(int)] if number else rest
        shown = pd.concat([worst, spread]).drop_duplicates("image_id")
        across = min(4, len(shown))
        down = math.ceil(len(shown) / across)
        height, width = scale * mask.shape[0], scale * mask.shape[1]
        gap = 6
        canvas = np.full((down * (height + gap) - gap, across * (width + gap) - gap, 3), 255, dtype=np.uint8)
        with _style() as plt:
            inches = 3.4 * across
            figure, axis = plt.subplots(figsize=(inches, inches * canvas.shape[0] / canvas.shape[1]))
            figure.subplots_adjust(0, 0, 1, 1)
            for number, row in enumerate(shown.itertuples()):
                slices = orthogonal_slices(_read_volume(root, cohort, str(row.path)), place)
                y, x = (number // across) * (height + gap), (number % across) * (width + gap)
                canvas[y : y + height, x : x + width] = _outlined(_side_by_side(slices), mask, scale)
                axis.text(x + 5, y + 4, f"{row.local_correlation:.2f}", color="white", fontsize=8, va="top")
            axis.imshow(canvas)
            axis.set_axis_off()
            cohort_label = provenance.benchmark_label(cohort)
            _heading(figure, f"Normalized volumes of {cohort_label}", provenance, top_inches=0.58)
            caption = (
                f"{cohort_label}: {len(accepted)} of {len(index)} volumes accepted; shown are the {len(worst)} that "
                "agree least with the template (local correlation in the corner), then others spread over the rest. "
                "Sagittal, coronal, axial; the person's left is at the left. Yellow: outline of the template's brain."
            )
            pictures.append(_save(figure, folder, f"normalization_{cohort}", caption))
    return pictures


# --- cases ------------------------------------------------------------------------------------------------------------


def choose_cases(predictions: pd.DataFrame, params: Params, number: int) -> pd.DataFrame:
    """People for the cases figure, by a fixed rule that also shows errors.

    Of the validation-chosen model's predictions on zero-shot benchmarks (test images where there are none): in turn
    one per true class that the control or the text-only model got wrong and this model right, one per class that it
    got wrong, then others; within a kind in the order of a hash of the image id.
    """
    best = choose_best(predictions, params.evaluate.headline_text)
    rows = tested(predictions)
    rows = rows[_is_headline(rows, params)]
    if (rows["split"] == "zeroshot").any():
        rows = rows[rows["split"] == "zeroshot"]
    model = rows[rows["language_model"] == best["language_model"]]
    chosen = model[model["setting"] == best["setting"]].sort_values("run").drop_duplicates(["image_id", "question"])
    others = model[model["setting"].map(lambda s: labels.is_control(str(s)) or s == "text_only")]
    text_wrong = set(others.loc[others["predicted"] != others["truth"], "image_id"])
    right = chosen["predicted"] == chosen["truth"]
    kind = np.where(~right, 1, np.where(chosen["image_id"].isin(text_wrong), 0, 2))
    order = [hashlib.sha256(str(i).encode()).hexdigest() for i in chosen["image_id"]]
    pool = chosen.assign(_kind=kind, _order=order).sort_values(["_kind", "truth", "_order"])
    # One person once; then take kinds and classes in turn.
    pool = pool.drop_duplicates("person_id")
    pool["_turn"] = pool.groupby(["_kind", "truth"], observed=True).cumcount()
    return pool.sort_values(["_turn", "_kind", "truth"]).head(number).drop(columns=["_kind", "_order", "_turn"])


def _record_text(record: Mapping[str, Any], question: str, params: Params) -> str:
    from medalign3d.ehr import text as record_text

    hidden = QUESTIONS[question].hidden_fields if question in QUESTIONS else ()
    options = record_text.text_options(params)
    # Ages from 90 on can identify a person.
    if not params.simulated:
        options["oldest_age"] = min(90, options["oldest_age"] or 90)
    headline = params.headline_text(str(record.get("dataset")))
    return record_text.render(record, ablation=headline, drop_fields=hidden, **options)


def _answer_text(row: Any, code: object) -> str:
    question = QUESTIONS.get(str(row.question))
    return question.answers.get(str(code), str(code)) if question else str(code)


def cases_figure(
    predictions: pd.DataFrame, params: Params, provenance: Provenance, folder: Path, root: Path
) -> Picture | None:
    """Scan, record, question, answer and truth of single people."""
    shown = choose_cases(predictions, params, params.report.figure_cases)
    if shown.empty:
        return None
    images = read_parquet(root / "data/ehr/images.parquet").set_index("image_id")
    best = choose_best(predictions, params.evaluate.headline_text)
    place_shown = voxel_at(params, CASE_SLICES_MM)
    with _style() as plt:
        across = 2 if len(shown) > 1 else 1
        down = math.ceil(len(shown) / across)
        figure = plt.figure(figsize=(6.2 * across, 2.75 * down))
        grid = figure.add_gridspec(down, across, left=0.0, right=1.0, bottom=0.0, top=1.0, wspace=0.04, hspace=0.06)
        for place, row in enumerate(shown.itertuples()):
            cell = grid[place // across, place % across].subgridspec(1, 2, width_ratios=[1.0, 1.3], wspace=0.04)
            picture, words = figure.add_subplot(cell[0]), figure.add_subplot(cell[1])
            index = read_parquet(root / "data/volumes" / str(row.dataset) / "index.parquet")
            path = index.loc[index["image_id"] == row.image_id, "path"].iloc[0]
            sagittal, coronal, axial = orthogonal_slices(_read_volume(root, str(row.dataset), str(path)), place_shown)
            upper = _side_by_side([coronal, axial])
            canvas = np.zeros(
                (upper.shape[0] + sagittal.shape[0] + 2, max(upper.shape[1], sagittal.shape[1])), np.uint8
            )
            canvas[: upper.shape[0], : upper.shape[1]] = upper
            left = (canvas.shape[1] - sagittal.shape[1]) // 2
            canvas[upper.shape[0] + 2 :, left : left + sagittal.shape[1]] = sagittal
            picture.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
            picture.set_axis_off()
            words.set_axis_off()
            words.set_xlim(0, 1)
            words.set_ylim(0, 1)
            record = {str(k): v for k, v in images.loc[str(row.image_id)].to_dict().items()}
            _case_words(words, row, _record_text(record, str(row.question), params), provenance, chr(ord("a") + place))
        title = f"Single people, {labels.language_model_label(params, best['language_model'])}, "
        title += labels.setting_label(str(best["setting"]))
        _heading(figure, title, provenance, top_inches=0.55)
        caption = (
            "Scan slices, record, question, the model's answer and the truth. Chosen by a fixed rule that takes turns "
            "between people whom text alone gets wrong and the model right, people whom the model gets wrong, and "
            "others, over the true classes."
        )
        if not provenance.simulated:
            caption += " Single people's data: pass this figure on only as your data-use agreement allows."
        return _save(figure, folder, "cases", caption)


def _case_words(axis: Axes, row: Any, record: str, provenance: Provenance, letter: str) -> None:
    right = row.predicted == row.truth
    question = QUESTIONS.get(str(row.question))
    question_text = question.text if question else str(row.question)
    generated = row.generated_text if isinstance(row.generated_text, str) and row.generated_text else None
    answer = _answer_text(row, row.predicted)
    parts = [
        (f"({letter})  {provenance.benchmark_label(str(row.benchmark))}", INK, "bold", 40),
        (f"Record: {record or 'none'}", INK, "normal", 52),
        (f"Q: {question_text}", "#1f5f8b", "normal", 52),
        (f"A: {answer}", RIGHT if right else WRONG, "bold", 52),
    ]
    if generated is not None and generated.strip().strip(".").lower() != answer.lower():
        parts.append((f"generated: {generated}", MUTED, "normal", 52))
    parts.append((f"Truth: {_answer_text(row, row.truth)}   ({'right' if right else 'wrong'})", INK, "normal", 52))
    y = 0.97
    for text, colour, weight, width in parts:
        lines = textwrap.wrap(text, width)
        if len(lines) > 9:
            lines = [*lines[:8], lines[8][: width - 2] + " …"]
        axis.text(
            0.0, y, "\n".join(lines), va="top", ha="left", fontsize=8.8, color=colour, weight=weight, linespacing=1.25
        )
        y -= 0.066 * len(lines) + 0.03


# --- training ---------------------------------------------------------------------------------------------------------


def read_histories(root: Path) -> list[dict[str, Any]]:
    """All ``history.json`` of trained runs with where they lie: language model, stage (or control) and run."""
    found = []
    for path in sorted((root / "data/models").glob("**/history.json")):
        parts = path.relative_to(root / "data/models").parts
        stage = "/".join(parts[1:-2])
        found.append({"language_model": parts[0], "stage": stage, "run": parts[-2], "history": read_json(path)})
    return found


def training_figure(params: Params, provenance: Provenance, folder: Path, root: Path) -> Picture | None:
    """Training loss and validation accuracy, one panel row per language model."""
    histories = read_histories(root)
    models = [m for m in params.language_models if any(h["language_model"] == m for h in histories)]
    if not models:
        return None
    kinds = [
        ("training loss", "train_total", 1.0),
        ("validation score, %", "validation_score", 100.0),
    ]
    stages = list(dict.fromkeys(h["stage"] for h in histories))
    with _style() as plt:
        figure, axes = plt.subplots(
            2, len(models), figsize=(3.8 * len(models), 4.6), squeeze=False, sharey="row", sharex=False
        )
        for column, model in enumerate(models):
            for row, (kind, wanted, scale) in enumerate(kinds):
                axis = axes[row, column]
                for history in (h for h in histories if h["language_model"] == model):
                    colour = CURVE_COLOURS[stages.index(history["stage"]) % len(CURVE_COLOURS)]
                    steps = [entry["step"] for entry in history["history"]]
                    values = [scale * entry[wanted] for entry in history["history"]]
                    axis.plot(
                        steps,
                        values,
                        color=colour,
                        marker="o",
                        markersize=3,
                        linewidth=1.3,
                        label=STAGES.get(history["stage"], history["stage"]),
                    )
                if row == 0:
                    axis.set_title(labels.language_model_label(params, model), loc="left")
                else:
                    axis.set_xlabel("step")
                if column == 0:
                    axis.set_ylabel(kind)
        handles, names = _unique_legend(axes)
        figure.legend(handles, names, loc="upper left", bbox_to_anchor=(1.0, 0.95), fontsize=8.5)
        figure.tight_layout()
        _heading(figure, "Training", provenance)
        caption = "Mean training loss since the last validation, and the validation score; one line per run."
        return _save(figure, folder, "training", caption)


# --- all together -----------------------------------------------------------------------------------------------------


def build_figures(
    predictions: pd.DataFrame,
    summary: pd.DataFrame,
    params: Params,
    provenance: Provenance,
    root: Path,
    folder: Path,
    gain: pd.DataFrame | None = None,
) -> list[Picture]:
    """Draw all figures into ``folder``; those without input are left out."""
    pictures: list[Picture | None] = [
        accuracy_figure(summary, params, provenance, folder),
        image_gain_figure(gain, params, provenance, folder),
        confusion_figure(predictions, params, provenance, folder),
        *curve_figures(predictions, params, provenance, folder),
        cases_figure(predictions, params, provenance, folder, root),
        training_figure(params, provenance, folder, root),
        *normalization_figures(params, provenance, folder, root),
    ]
    return [picture for picture in pictures if picture is not None]
