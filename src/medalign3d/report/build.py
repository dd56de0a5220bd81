"""The whole report in one call: tables, figures, page and the numbers for ``data/metrics.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from medalign3d.files import atomic_path
from medalign3d.params import Params
from medalign3d.report import figures, page, quality, tables
from medalign3d.report.provenance import collect


def build_report(params: Params, root: Path = Path(".")) -> dict[str, Any]:
    """Build ``data/report`` from the pipeline's outputs; the folder is replaced whole or not at all.

    Parameters
    ----------
    params
        The parameters in force.
    root
        The project's folder.

    Returns
    -------
    dict
        ``tables`` (name -> :class:`medalign3d.report.table.Table`), ``paths`` (all files, relative to ``root``),
        ``page``, and ``metrics`` (nested numbers of Table 2, for ``data/metrics.json``).

    Raises
    ------
    InputError
        When predictions or splits are missing, or simulated and real people are mixed.
    """
    provenance = collect(params, root)
    predictions = tables.read_predictions(params, root)
    ages = tables.read_ages(root)
    summary = tables.summarize(predictions, params, ages)
    final = root / "data/report"
    with atomic_path(final) as out:
        out.mkdir(parents=True)
        made = tables.build_tables(params, root, out=out, predictions=predictions, summary=summary)
        gain = made["table_image_gain"].tidy if "table_image_gain" in made else None
        pictures = figures.build_figures(predictions, summary, params, provenance, root, out / "figures", gain)
        page.write_page(
            out / "index.html", params, provenance, made, pictures, quality.all_quality(params, provenance, root)
        )
        files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return {
        "tables": made,
        "paths": [Path("data/report") / path for path in files],
        "page": final / "index.html",
        "metrics": tables.headline_metrics(summary, params, provenance),
    }


def print_summary(report: dict[str, Any], stream: TextIO | None = None) -> None:
    """Print where the tables are, and Table 2 itself, for a terminal."""
    print("\n" + report["tables"]["table2"].terminal_text(), file=stream)
    print("Tables:  data/report/table1, table2, table3 (.csv, .md, .tex)", file=stream)
    print("Figures: data/report/figures", file=stream)
    print(f"Page:    {report['page']}", file=stream)
