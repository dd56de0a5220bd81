"""The page on which a person checks normalization by eye: every volume of a cohort, the doubtful ones first.

While a cohort is normalized one small picture per volume is written (three planes of the head in MNI space, the brain
mask in red, the template's brain in blue). ``quality.html`` beside the store lists all volumes with their picture,
verdict, reason and metrics; it can be sorted and filtered in a browser without a server. Pictures are loaded as they
are scrolled to, so that a cohort of ten thousand volumes opens at once.
"""

from __future__ import annotations

import html
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d import files
from medalign3d.volumes.grids import Array

if TYPE_CHECKING:
    import pandas as pd

    from medalign3d.volumes.template import Template

PAGE_NAME = "quality.html"
PICTURE_FOLDER = "pictures"
PIXEL_MM = 1.5
PLANES_MM = ((2, 4.0), (1, -18.0), (0, -4.0))
"""Axis and MNI coordinate of the planes: axial through the ventricles, coronal through the hippocampi, sagittal."""

MASK_COLOUR, TEMPLATE_COLOUR = (255, 85, 68), (51, 204, 255)
JPEG_QUALITY = 82

METRIC_TITLES = {
    "local_correlation": "local correlation",
    "grey_white_contrast": "grey-white contrast",
    "fluid_level": "fluid level",
    "scale": "scale",
    "stretch": "stretch",
    "coverage": "coverage",
    "overlap": "overlap",
    "brain_ml": "brain, mL",
}
"""What the gate measures (:class:`medalign3d.volumes.quality.Quality`), and the words in the page's header."""

VOLUME_TITLES = {
    "ventricles_ml": "ventricles, mL",
    "hippocampus_left_ml": "left hippocampus, mL",
    "hippocampus_right_ml": "right hippocampus, mL",
    "brain_tissue_ml": "brain tissue, mL",
    "icv_ml": "intracranial, mL",
}
"""Regional volumes (:mod:`medalign3d.volumes.volumetry`): shown and sortable; disease moves them, so not odd."""

Picture = NDArray[np.uint8]


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~ndimage.binary_erosion(mask)


def preview(head: Array, brain_mask: NDArray[np.bool_] | None, template: Template) -> Picture:
    """Three planes of a registered head side by side.

    Parameters
    ----------
    head
        The head on ``template.grid``, any unit.
    brain_mask
        Its brain mask on the same grid; None when none was found.
    template
        The template on that grid; its brain is outlined.

    Returns
    -------
    Array of uint8, shape (height, width, 3): RGB with 1.5 mm pixels; superior and anterior up, the person's left on
    the left.
    """
    top = float(np.percentile(head[template.brain > 0.5], 99.5))
    grey = np.clip(head * (235.0 / top if top > 0 else 0.0), 0.0, 255.0)
    zoom = float(template.grid.zooms[0]) / PIXEL_MM
    panels: list[Picture] = []
    for axis, position in PLANES_MM:
        index = round((position - template.grid.affine[axis, 3]) / template.grid.affine[axis, axis])
        index = int(np.clip(index, 0, head.shape[axis] - 1))

        def plane(values: NDArray[Any], axis: int = axis, index: int = index) -> Array:
            flat = np.take(values, index, axis=axis).astype(np.float32)
            return np.flipud(ndimage.zoom(flat, zoom, order=1).T)

        panel = np.repeat(np.clip(plane(grey), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
        panel[_edge(plane(template.brain > 0.5) > 0.5)] = TEMPLATE_COLOUR
        if brain_mask is not None:
            panel[_edge(plane(brain_mask) > 0.5)] = MASK_COLOUR
        panels.append(panel)
    height = max(panel.shape[0] for panel in panels)
    padded = [np.pad(panel, ((height - panel.shape[0], 0), (0, 0), (0, 0))) for panel in panels]
    return np.ascontiguousarray(np.concatenate(padded, axis=1))


def write_picture(out_dir: str | os.PathLike[str], image_id: str, picture: Picture) -> None:
    """Write a preview as ``pictures/<image_id>.jpg`` in a store, atomically."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # outlines stay crisp
    files.write_bytes(picture_path(out_dir, image_id), buffer.getvalue())


def picture_path(out_dir: str | os.PathLike[str], image_id: str) -> Path:
    """Where the preview of an image stands in a store."""
    return Path(out_dir) / PICTURE_FOLDER / f"{image_id}.jpg"


def oddness(index: pd.DataFrame) -> pd.Series:
    """How far each volume lies from the cohort's others: its largest robust z-score over the metrics.

    Distances are from the median of the accepted volumes in units of their scaled median absolute deviation; agreement,
    contrast, coverage and overlap count only when they are low. NaN where nothing was measured.
    """
    accepted = index["verdict"].astype(str) == "accepted"
    one_sided = {"local_correlation", "grey_white_contrast", "coverage", "overlap"}
    columns = []
    for name in METRIC_TITLES:
        values = index[name].astype("float64")
        reference = values[accepted].dropna()
        if len(reference) < 3:
            continue
        middle = float(reference.median())
        spread = 1.4826 * float((reference - middle).abs().median())
        # Metrics that hardly vary (coverage is nearly always 1) must not turn rounding into outliers.
        spread = max(spread, 0.02 * abs(middle), 1e-6)
        distance = (middle - values) / spread
        columns.append(distance if name in one_sided else distance.abs())
    if not columns:
        return index["local_correlation"].astype("float64") * math.nan
    import pandas as pd

    return pd.concat(columns, axis=1).max(axis=1)


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else round(float(value), 3)
    return str(value)


def write_page(
    index: pd.DataFrame, out_dir: str | os.PathLike[str], *, title: str, simulated: bool, grid_words: str = ""
) -> Path:
    """Write ``quality.html`` into a store.

    Parameters
    ----------
    index
        The store's index (:data:`medalign3d.volumes.normalize.INDEX_COLUMNS`).
    out_dir
        The store's folder; pictures stand in ``pictures/``.
    title
        The cohort's name.
    simulated
        Puts a banner over the page.
    grid_words
        Target grid in words, for the heading.

    Returns
    -------
    The page's path. The page is the same for the same index, byte by byte.
    """
    out = Path(out_dir)
    scores = oddness(index)
    titles = METRIC_TITLES | {name: words for name, words in VOLUME_TITLES.items() if name in index}
    rows = []
    for row, odd in zip(index.to_dict("records"), scores, strict=True):
        image_id = str(row["image_id"])
        rows.append(
            {
                "image_id": image_id,
                "picture": f"{PICTURE_FOLDER}/{image_id}.jpg" if picture_path(out, image_id).exists() else "",
                "verdict": str(row["verdict"]),
                "reason": str(row["reason"]),
                "detail": str(row["detail"]),
                "method": str(row["method"]),
                "oddness": _cell(float(odd)),
                **{name: _cell(float(row[name])) for name in titles},
            }
        )
    rows.sort(key=lambda r: (r["verdict"] == "accepted", -(r["oddness"] or 0.0), r["image_id"]))
    accepted = sum(row["verdict"] == "accepted" for row in rows)
    reasons = index.loc[index["verdict"] != "accepted", "reason"].value_counts()
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    # "</" would end the script element that carries the data.
    data = json.dumps({"rows": rows, "metrics": titles}).replace("</", "<\\/")
    template = Path(__file__).with_name("quality_page.html").read_text(encoding="utf-8")
    filled = {
        "@TITLE@": html.escape(f"Quality of normalization: {title}"),
        "@BANNER@": '<p class="banner">SIMULATED people and scans</p>' if simulated else "",
        "@SUMMARY@": html.escape(
            f"{len(rows)} volumes: {accepted} accepted, {len(rows) - accepted} quarantined"
            + (f" ({counts})" if counts else "")
            + (f". {grid_words}" if grid_words else "")
        ),
        "@DATA@": data,
    }
    for mark, text in filled.items():
        template = template.replace(mark, text)
    files.write_text(out / PAGE_NAME, template)
    return out / PAGE_NAME


def publish_pictures(
    work_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str], image_ids: Sequence[str]
) -> None:
    """Make the pictures of ``image_ids`` stand in a store, and no others in either folder."""
    source, target = Path(work_dir) / PICTURE_FOLDER, Path(out_dir) / PICTURE_FOLDER
    wanted = {f"{image_id}.jpg" for image_id in image_ids}
    for folder in (source, target):
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name not in wanted:
                    files.remove(path)
    if source.is_dir():
        for name in sorted(wanted):
            if not (source / name).exists():
                continue
            if not ((target / name).exists() and (target / name).samefile(source / name)):
                files.link_or_copy(source / name, target / name)
