"""What normalizing one whole head costs, stage by stage, beside antspyx doing the same, in one run on one core.

    python benchmarks/normalize_speed.py DATA [--ants Affine,AffineFast]

DATA holds ``dicom/studyforrest_t1_dicom.zip`` (a real head of 0.67 mm, averaged here to 1 mm) and ``templates``.
ANTs gets N4 at its defaults, the affine to the whole-head MNI152 at 1 mm, and one resampling to the same grid; it makes
no mask, no gate and no store, so it does less. Seconds are processor time; memory is the peak of the process so far.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medalign3d.params import load_params
from medalign3d.volumes import intensity, normalize, register, store, volumetry
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Grid
from medalign3d.volumes.pool import keep_memory
from medalign3d.volumes.read import read_volume


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median processor seconds, and the result."""
    times, result = [], None
    for _ in range(repeats):
        began = time.process_time()
        result = function()
        times.append(time.process_time() - began)
    return float(np.median(times)), result


def one_millimetre_file(data: Path, folder: Path) -> Path:
    """A whole head of 1 mm as a .nii.gz, int16 as scanners write it."""
    head = read_volume(data / "dicom", "studyforrest_t1_dicom.zip")
    affine = np.asarray(head.affine, dtype=float)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    shape = (np.array(head.data.shape) * zooms).astype(int)
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine @ np.diag([*(1 / zooms), 1.0]))
    values = mni.sample_averaged(head.data, affine, grid, np.eye(4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, grid.affine), folder / "head.nii.gz")
    print(f"head of {'x'.join(map(str, grid.shape))} voxels of 1 mm, from {'x'.join(map(str, head.data.shape))}")
    return folder / "head.nii.gz"


def ours(path: Path, shape: list[int], zooms_mm: float, repeats: int) -> tuple[dict[str, float], float]:
    """Seconds per stage and MB stored."""
    params = load_params().normalize.model_copy(update={"shape": shape, "zooms_mm": zooms_mm})
    template = mni.at_zoom(normalize.work_zoom(zooms_mm))
    target = mni.target_grid(shape, zooms_mm)
    normalize.normalize_volume(read_volume(path.parent, path.name), params)  # templates are read once per worker
    seconds = {}
    seconds["read and check"], volume = timed(lambda: read_volume(path.parent, path.name), repeats)
    data, affine = normalize._tame(volume.data), np.asarray(volume.affine, dtype=float)
    seconds["register"], found = timed(lambda: register.register(data, affine), repeats)
    seconds["drift, mask, gate"], attempt = timed(
        lambda: normalize._attempt(data, affine, found, template, params), repeats
    )
    seconds["resample, scale"], array = timed(
        lambda: normalize._final_array(
            data,
            affine,
            found.transform,
            target,
            template.grid,
            attempt.tissue,
            attempt.mask,
            intensity.anchors(attempt.head, template, attempt.tissue),
        ),
        repeats,
    )
    seconds["regional volumes"], _ = timed(
        lambda: volumetry.measure(data, affine, found.transform, attempt.tissue, attempt.head, attempt.mask, template),
        repeats,
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds["store"], name = timed(lambda: store.write(folder, array), repeats)
        megabytes = (Path(folder) / name).stat().st_size / 1e6

        def whole() -> None:
            result = normalize.normalize_volume(read_volume(path.parent, path.name), params)
            assert result.array is not None, result.detail
            store.write(folder, result.array)

        seconds["file to store"], _ = timed(whole, repeats)
    return seconds, megabytes


def with_ants(path: Path, data: Path, kind: str) -> dict[str, float]:
    """Seconds of ANTs for file to resampled array."""
    import ants

    fixed = ants.image_read(str(data / "templates" / "MNI152_T1_2mm.nii.gz"))
    fixed = ants.resample_image(fixed, (1.0, 1.0, 1.0), False, 0)
    seconds = {}
    seconds["read and check"], image = timed(lambda: ants.image_read(str(path)), 1)
    seconds["drift (N4)"], image = timed(lambda: ants.n4_bias_field_correction(image), 1)
    seconds["register"], found = timed(
        lambda: ants.registration(fixed, image, type_of_transform=kind, random_seed=1), 1
    )
    seconds["resample, scale"], _ = timed(
        lambda: ants.apply_transforms(fixed, image, found["fwdtransforms"]).numpy(), 1
    )
    seconds["file to store"] = sum(seconds.values())
    return seconds


def peak_mb() -> float:
    """Peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--ants", default="", help="kinds of ants.registration, with commas between")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    keep_memory()  # as the workers of the pipeline do
    demo = load_params().normalize
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = one_millimetre_file(arguments.data, Path(folder))
        for shape, zooms_mm in (([224, 224, 224], 1.0), (demo.shape, demo.zooms_mm)):
            name = f"{'x'.join(map(str, shape))}, {zooms_mm:g} mm"
            columns[name], megabytes = ours(path, shape, zooms_mm, arguments.repeats)
            whole = columns[name]["file to store"]
            print(
                f"{name}: {megabytes:.2f} MB, peak memory {peak_mb():.0f} MB; 10,000 volumes"
                f" {whole * 10_000 / 3600:.1f} core-hours; 30,000 volumes {whole * 30_000 / 3600:.1f} core-hours,"
                f" {megabytes * 30:.0f} GB",
                flush=True,
            )
        for kind in filter(None, arguments.ants.split(",")):
            columns[f"N4 + ANTs {kind}"] = with_ants(path, arguments.data, kind)
            spent = ", ".join(f"{stage} {value:.1f} s" for stage, value in columns[f"N4 + ANTs {kind}"].items())
            print(f"N4 + ANTs {kind}: {spent}; peak memory {peak_mb():.0f} MB", flush=True)
    print(f"| seconds | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for stage in ("read and check", "drift (N4)", "register", "drift, mask, gate", "resample, scale", "store"):
        print(f"| {stage} | {' | '.join(f'{c[stage]:.2f}' if stage in c else '' for c in columns.values())} |")
    totals = " | ".join(f"{c['file to store']:.2f}" for c in columns.values())
    print(f"| file to store | {totals} |")


if __name__ == "__main__":
    main()
