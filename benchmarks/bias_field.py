"""Bias field: the package's tissue-and-drift fit against N4 (SimpleITK, niimath), on fields that are known.

Two kinds of head: the packaged MNI152 brain (stripped, no bias of its own) times a known smooth field, with noise; and
real IXI heads times a known field, where the field that a method finds in the head as it is gets divided out.
The figure is the coefficient of variation of found / true field within the brain, and processor seconds of one thread.
N4 gets the brain's mask and works on the same 2 mm grid; niimath is compared where it is installed.

Usage: ``python benchmarks/bias_field.py DATA [HEADS]``.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np

from medalign3d.volumes import bias, normalize, register
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Array, reduce_to, resample

TEMPLATE = mni.at_zoom(2.0)
BRAIN = TEMPLATE.distance < -2.0


def field(seed: int) -> Array:
    """A smooth field of 10-20 % (standard deviation of its logarithm): four random Gaussian bumps and a slope."""
    rng = np.random.default_rng(seed)
    x, y, z = TEMPLATE.grid.coordinates()
    slope = rng.normal(size=3)
    log = slope[0] * x / 75 + slope[1] * y / 92 + slope[2] * z / 79
    for _ in range(4):
        centre = rng.uniform([-60, -90, -50], [60, 60, 70])
        distance = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        log = log + 2 * rng.normal() * np.exp(-distance / (2 * rng.uniform(40, 70) ** 2))
    log = (log - log[BRAIN].mean()) / log[BRAIN].std() * rng.uniform(0.1, 0.2)
    return np.exp(log).astype(np.float32)


def own(image: Array) -> Array:
    """:func:`medalign3d.volumes.bias.fit`."""
    tissue = bias.fit(image, TEMPLATE, correct=True)
    assert tissue is not None
    assert tissue.coefficients is not None
    return np.exp(bias.drift(tissue.coefficients, TEMPLATE.grid))


def nothing(image: Array) -> Array:
    """No correction: how large the fields are."""
    return np.ones_like(image)


def simple_itk(image: Array) -> Array:
    """N4 of SimpleITK, shrunk by 2, its default iterations."""
    import SimpleITK as Sitk

    Sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    whole, inside = Sitk.GetImageFromArray(image), Sitk.GetImageFromArray(BRAIN.astype(np.uint8))
    method = Sitk.N4BiasFieldCorrectionImageFilter()
    method.Execute(Sitk.Shrink(whole, [2] * 3), Sitk.Shrink(inside, [2] * 3))
    return np.asarray(np.exp(Sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(whole))))


def niimath(image: Array) -> Array:
    """N4 of niimath, its defaults (those of ANTs), with the brain's mask."""
    program = shutil.which("niimath", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("in", image), ("mask", BRAIN.astype(np.float32))):
            nibabel.save(nibabel.Nifti1Image(data, TEMPLATE.grid.affine), f"{folder}/{name}.nii")
        options = ["-n4", "-mask", f"{folder}/mask.nii", "-field", f"{folder}/field.nii", f"{folder}/out.nii"]
        subprocess.run([program, f"{folder}/in.nii", *options], check=True, capture_output=True)
        (found,) = Path(folder).glob("field.nii*")
        loaded: Any = nibabel.load(found)
        return np.asarray(loaded.dataobj, dtype=np.float32)


def _seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    """See the module's docstring."""
    data, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8
    heads: dict[str, list[Array]] = {"MNI152": [], "IXI": []}
    rng = np.random.default_rng(0)
    for _ in range(count):
        noise = rng.normal(0, 0.02, TEMPLATE.grid.shape)
        heads["MNI152"].append((TEMPLATE.t1 + noise * (TEMPLATE.t1 > 0)).clip(0).astype(np.float32))
    paths = sorted((data / "ixi_t1_2mm").glob("*.nii.gz"))
    for path in paths[:: max(1, len(paths) // count)][:count]:
        image: Any = nibabel.load(path)
        voxels = normalize._tame(np.asarray(image.dataobj, dtype=np.float32))
        transform = register.register(voxels, image.affine).transform
        small, small_affine = reduce_to(voxels, image.affine, 2.0)
        heads["IXI"].append(resample(small, small_affine, TEMPLATE.grid, transform))
    methods: dict[str, Callable[[Array], Array]] = {"nothing": nothing, "own": own, "SimpleITK N4": simple_itk}
    if shutil.which("niimath", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"):
        methods["niimath N4"] = niimath
    print("| heads | method | left over, CV % (worst) | CPU s |\n|---|---|---|---|")
    own(heads["MNI152"][0])  # fills caches that a run fills once
    for kind, images in heads.items():
        for name, method in methods.items():
            left, seconds = [], []
            for number, image_ in enumerate(images):
                true = field(number)
                started = _seconds()
                found = method(image_ * true)
                seconds.append(_seconds() - started)
                if kind == "IXI":
                    found = found / method(image_)
                ratio = (found / true)[BRAIN]
                left.append(100 * float(ratio.std() / ratio.mean()))
            print(f"| {kind} | {name} | {np.mean(left):.1f} ({max(left):.1f}) | {np.mean(seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
