"""A look at this machine and workspace in seconds: what is installed, what is found, what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

from medalign3d.cohorts import doctor as inspect_cohort_folder
from medalign3d.errors import MedAlignError
from medalign3d.params import Params, load_params

PACKAGES = ("torch", "transformers", "peft", "nibabel", "pandas", "pyarrow", "dvc", "prefect", "mlflow")

BYTES_PER_VOXEL = 1
EXPECTED_IMAGES = {"ADNI": 10_287, "NACC": 15_354, "OASIS": 3_020, "AIBL": 1_002, "MIRIAD": 708, "IXI": 600}
"""Images of a full download: the published table's counts, and IXI's size."""


def _line(good: bool | None, label: str, text: str) -> None:
    mark = {True: "ok     ", False: "MISSING", None: "note   "}[good]
    print(f"  {mark}  {label:<22} {text}")


def _packages() -> bool:
    print("installed")
    complete = True
    for name in PACKAGES:
        try:
            _line(True, name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            complete = False
            _line(False, name, "run `pip install -c constraints.txt -e .`")
    return complete


def _machine(params: Params | None) -> None:
    print("machine")
    _line(None, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else float("nan")
    _line(None, "processor", f"{cores} cores, {pages:.0f} GiB of memory")
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            _line(True, f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        _line(None, "GPU", "none found: the demo, oasis1 and ixi profiles need none; the paper profile does")
    free = shutil.disk_usage(".").free / 2**30
    if params is None:
        _line(None, "disk", f"{free:.0f} GiB free here")
        return
    voxels = params.normalize.shape[0] * params.normalize.shape[1] * params.normalize.shape[2]
    images = sum(
        params.simulate.participants[cohort] * params.simulate.maximum_sessions
        if cohort in params.simulate.cohorts
        else EXPECTED_IMAGES[cohort]
        for cohort in params.cohorts
    )
    needed = images * voxels * BYTES_PER_VOXEL / 2**30 + 3
    _line(free > needed, "disk", f"{free:.0f} GiB free here; about {needed:.0f} GiB wanted (up to {images} volumes)")


def examine_cohort(cohort: str, root: Path) -> bool:
    """Print what is found of a cohort in ``root`` and what is missing; True when it can be ingested."""
    print(f"{cohort} in {root}")
    complete = True
    for finding in inspect_cohort_folder(cohort, root):
        good = {"found": True, "absent": None}.get(finding.status, False)
        complete &= good is not False
        _line(good, finding.what, finding.detail)
    return complete


def _checkpoints(params: Params) -> bool:
    print("frozen models")
    complete = True
    models = [("vision", params.model.vision.checkpoint)]
    models += [(name, params.model.language.models[name].checkpoint) for name in params.language_models]
    for name, checkpoint in models:
        if params.backbones.source == "train":
            made = (Path(checkpoint) / "config.json").exists()
            _line(True if made else None, name, checkpoint if made else f"{checkpoint}: stage `backbones` makes it")
            continue
        from huggingface_hub import try_to_load_from_cache

        local = Path(checkpoint, "config.json").exists()
        cached = local or isinstance(try_to_load_from_cache(checkpoint, "config.json"), str)
        complete &= cached
        _line(cached, name, checkpoint if cached else f"run `hf download {checkpoint}`")
    return complete


def examine(params_path: Path) -> bool:
    """Print what is here and what is missing for the active profile; True when nothing is missing."""
    complete = _packages()
    try:
        params = load_params(params_path)
    except MedAlignError as error:
        _machine(None)
        print(f"parameters\n{error}")
        return False
    _machine(params)
    print(f"parameters\n  ok       {params_path!s:<14} profile {params.profile}, all values valid")
    complete &= _checkpoints(params)
    for cohort in params.cohorts:
        root = params.cohort_root(cohort)
        if cohort in params.simulate.cohorts and not root.is_dir():
            print(f"{cohort} in {root}")
            _line(None, "files", "stage `simulate` makes them")
        else:
            complete &= examine_cohort(cohort, root)
    return complete
