"""Stage `report`: tables, figures and one page; prints where they are and Table 2 itself."""

from __future__ import annotations

from common import DATA, run_stage

from medalign3d.files import write_json
from medalign3d.params import Params
from medalign3d.report import build_report, print_summary


def main(params: Params) -> None:
    """Write ``data/report`` and ``data/metrics.json``."""
    report = build_report(params)
    write_json(DATA / "metrics.json", report["metrics"])
    print_summary(report)


if __name__ == "__main__":
    run_stage(main)
