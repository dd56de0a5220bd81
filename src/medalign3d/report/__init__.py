"""The report: the paper's tables, figures and one self-contained page, from the pipeline's outputs."""

from medalign3d.report.build import build_report, print_summary

__all__ = ["build_report", "print_summary"]
