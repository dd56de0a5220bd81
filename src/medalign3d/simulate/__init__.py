"""Simulated cohorts in the custodians' native layouts, with the truth about every image and every planted fault."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from medalign3d.errors import ParameterError
from medalign3d.files import atomic_path, write_json, write_parquet
from medalign3d.params import Params
from medalign3d.progress import Progress
from medalign3d.simulate.anatomy import keep_memory, save_template
from medalign3d.simulate.images import Job, run_job
from medalign3d.simulate.layouts import Plan

MARKER = "SYNTHETIC_DATA"
MARKER_TEXT = """Simulated data. No real person is described here.

Cohort: {cohort} (layout only; nothing in this folder comes from its custodian)
Made by MedAlign-3D, seed {seed}. Never report results on these data as results of {cohort}.
"""
LAYOUTS = {"ADNI": "adni", "NACC": "nacc", "OASIS": "oasis", "AIBL": "aibl", "MIRIAD": "miriad"}

__all__ = ["LAYOUTS", "MARKER", "plan_cohort", "simulate_cohort"]


def plan_cohort(cohort: str, params: Params) -> Plan:
    """Decide on everybody and everything in a simulated cohort, without rendering.

    Raises
    ------
    ParameterError
        When there is no simulated layout of the cohort, or no number of participants.
    """
    if cohort not in LAYOUTS:
        raise ParameterError(
            "a cohort cannot be simulated",
            where="params.yaml: simulate.cohorts",
            found=cohort,
            expected=f"one of {', '.join(LAYOUTS)}",
            remedy="remove it, or read the real cohort through external.roots",
        )
    if cohort not in params.simulate.participants:
        raise ParameterError(
            "the number of participants is not given",
            where="params.yaml: simulate.participants",
            expected=f"a number for {cohort}",
        )
    module = importlib.import_module(f"medalign3d.simulate.layouts.{LAYOUTS[cohort]}")
    plan: Plan = module.plan(params)
    return plan


def _start_worker() -> None:
    keep_memory()
    import torch

    torch.set_num_threads(1)


def _run(job: Job, root: str, template: str) -> dict[str, Any]:
    return run_job(job, Path(root), Path(template))


def simulate_cohort(
    cohort: str, params: Params, raw_dir: Path, truth_dir: Path, *, template: Path | None = None
) -> dict[str, int]:
    """Write a simulated cohort's native tree and its truth.

    Parameters
    ----------
    cohort
        ADNI, NACC, OASIS, AIBL or MIRIAD.
    params
        The section ``simulate`` is read.
    raw_dir
        The cohort's root; replaced as a whole.
    truth_dir
        Gets ``truth.parquet`` (one row per simulated image) and ``faults.json`` (what reading the tree must report).
    template
        A folder that :func:`medalign3d.simulate.anatomy.save_template` has written for the same voxel size; None builds
        it anew (seconds).

    Returns
    -------
    dict
        ``people``, ``images`` and ``faults``.

    Raises
    ------
    ParameterError
        When the cohort cannot be simulated.
    """
    import pandas as pd

    plan = plan_cohort(cohort, params)
    keep_memory()
    with tempfile.TemporaryDirectory(prefix="medalign3d-template-") as scratch, atomic_path(raw_dir) as root:
        if template is None:
            template = Path(scratch)
            save_template(params.simulate.zooms_mm, template)
        root.mkdir()
        arguments = (plan.jobs, [os.fspath(root)] * len(plan.jobs), [os.fspath(template)] * len(plan.jobs))
        rows: list[dict[str, Any]] = []
        with Progress(f"simulate {cohort}", len(plan.jobs)) as progress:
            if params.simulate.workers == 1:
                for row in map(_run, *arguments):
                    rows.append(row)
                    progress.advance()
            else:
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(params.simulate.workers, context, initializer=_start_worker) as pool:
                    for row in pool.map(_run, *arguments, chunksize=2):
                        rows.append(row)
                        progress.advance()
        plan.write_tables(root, {row["native_image_key"]: row for row in rows})
        (root / MARKER).write_text(MARKER_TEXT.format(cohort=cohort, seed=params.simulate.seed), encoding="utf-8")
    truth = pd.DataFrame(rows)
    truth.insert(0, "dataset", cohort)
    truth = truth.sort_values("native_image_key", ignore_index=True)
    shutil.rmtree(truth_dir, ignore_errors=True)
    write_parquet(truth_dir / "truth.parquet", truth, {"simulated": "true"})
    write_json(truth_dir / "faults.json", [fault.as_dict() for fault in plan.faults])
    return {"people": plan.people, "images": len(rows), "faults": len(plan.faults)}
