"""Regional volumes: known changes are found, on the right side, in the right unit."""

from __future__ import annotations

import csv
from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage
from volume_heads import make_head, posed, real

from medalign3d.params import Normalize
from medalign3d.volumes import bias, normalize, volumetry
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Grid
from medalign3d.volumes.read import Volume, read_volume

VENTRICLES_MM = ((-13.0, 2.0, 18.0), (13.0, 2.0, 18.0))
HIPPOCAMPI_MM = {"left": (-29.0, -22.0, -16.0), "right": (29.0, -22.0, -16.0)}


def _pull(points: list[np.ndarray], centres: tuple, strength: float, reach: float) -> list[np.ndarray]:
    """Where the changed template reads the unchanged one: inwards (positive ``strength``) makes a place grow."""
    out = [np.broadcast_to(p, np.broadcast_shapes(*(q.shape for q in points))).astype(np.float64) for p in points]
    original = [o.copy() for o in out]
    for centre in centres:
        square = sum((original[a] - centre[a]) ** 2 for a in range(3))
        weight = strength * np.exp(-square / (2 * reach**2))
        for a in range(3):
            out[a] -= weight * (original[a] - centre[a])
    return out


@lru_cache(maxsize=8)
def _changed(centres: tuple, strength: float, reach: float) -> np.ndarray:
    """The template's T1 on the grid of ``make_head``'s source, with places grown or shrunk."""
    template = mni.at_zoom(2.0, 24.0)
    source = _pull(template.grid.coordinates(), centres, strength, reach)
    affine = template.grid.affine
    index = [(source[a] - affine[a, 3]) / affine[a, a] for a in range(3)]
    return ndimage.map_coordinates(template.t1, index, order=1, output=np.float32)


def _true_ratio(region: np.ndarray, grid: Grid, centres: tuple, strength: float, reach: float) -> float:
    """Volume of a region map after the change over the one before."""
    source = _pull(grid.coordinates(), centres, strength, reach)
    index = [(source[a] - grid.affine[a, 3]) / grid.affine[a, a] for a in range(3)]
    return float(ndimage.map_coordinates(region, index, order=1).sum() / region.sum())


def _volumes(params: Normalize, **head) -> dict[str, float]:
    result = normalize.normalize_volume(make_head(**head).volume, params)
    assert result.verdict == "accepted", result.detail
    return result.metrics


POSE = posed((6, 3, -4), (3, 5, 2))


@pytest.fixture(scope="module")
def plain(params: Normalize) -> dict[str, float]:
    return _volumes(params, pose=POSE, noise=15, drift=0.2)


def test_plausible_and_complete(plain: dict[str, float]) -> None:
    names = (*volumetry.VOLUME_COLUMNS, *volumetry.FRACTION_COLUMNS)
    assert all(np.isfinite(plain[name]) for name in names)
    assert 8 < plain["ventricles_ml"] < 25
    assert 2.5 < plain["hippocampus_left_ml"] < 5
    assert abs(plain["hippocampus_left_ml"] / plain["hippocampus_right_ml"] - 1) < 0.04
    assert plain["brain_tissue_ml"] < plain["icv_ml"]
    # The outline lies a little outside the template's own mask, which ends at the brain's surface.
    assert 1.0 < plain["icv_ml"] / (0.92**3 * 1887) < 1.07


@pytest.mark.parametrize("strength", [0.5, -0.3])
def test_ventricles_grow_by_the_known_factor(params: Normalize, plain: dict[str, float], strength: float) -> None:
    image = _changed(VENTRICLES_MM, strength, 14.0)
    got = _volumes(params, t1=image, pose=POSE, noise=15, drift=0.2)
    one = mni.on_grid(volumetry.axis_aligned_grid(*volumetry.FINE_BOX_MM.T, 1.0))
    region = volumetry._lateral_ventricles(one).astype(np.float32)
    true = _true_ratio(region, one.grid, VENTRICLES_MM, strength, 14.0)
    assert abs(np.log(true)) > 0.15
    assert got["ventricles_ml"] / plain["ventricles_ml"] == pytest.approx(true, rel=0.12)
    assert got["icv_ml"] == pytest.approx(plain["icv_ml"], rel=0.02)


@pytest.mark.parametrize(("side", "axes"), [("left", "RAS"), ("right", "LAS"), ("left", "PSR"), ("right", "ASL")])
def test_the_side_that_shrank_shrinks_in_any_voxel_order(
    params: Normalize, plain: dict[str, float], side: str, axes: str
) -> None:
    centres = (HIPPOCAMPI_MM[side],)
    image = _changed(centres, -0.35, 12.0)
    got = _volumes(params, t1=image, pose=POSE, noise=15, drift=0.2, axes=axes)
    other = "right" if side == "left" else "left"
    one = mni.on_grid(volumetry.axis_aligned_grid(*volumetry.FINE_BOX_MM.T, 1.0))
    region = volumetry._hippocampus(one, -1 if side == "left" else 1).astype(np.float32)
    true = _true_ratio(region, one.grid, centres, -0.35, 12.0)
    assert true < 0.8
    assert got[f"hippocampus_{side}_ml"] / plain[f"hippocampus_{side}_ml"] == pytest.approx(true, rel=0.15)
    assert got[f"hippocampus_{other}_ml"] / plain[f"hippocampus_{other}_ml"] == pytest.approx(1, abs=0.04)


def test_a_smaller_head_has_smaller_volumes(params: Normalize, plain: dict[str, float]) -> None:
    small = _volumes(params, pose=posed((6, 3, -4), (3, 5, 2), scale=0.92 * 0.92), noise=15, drift=0.2)
    for name in volumetry.VOLUME_COLUMNS:
        assert small[name] / plain[name] == pytest.approx(0.92**3, rel=0.05), name
    for name in volumetry.FRACTION_COLUMNS:
        assert small[name] == pytest.approx(plain[name], rel=0.05), name


def test_the_size_of_a_brain_in_mni_space_is_unknown(params: Normalize) -> None:
    template = mni.at_zoom(2.0)
    data = (template.t1 * 800).astype(np.float32)
    result = normalize.normalize_volume(Volume(data, template.grid.affine, "header", "nifti", "float32"), params)
    assert result.method == "already-normalized"
    assert np.isnan(result.metrics["icv_ml"])
    assert all(np.isfinite(result.metrics[n]) for n in volumetry.FRACTION_COLUMNS)
    assert 14 < result.metrics["ventricles_ml"] < 26


def test_fluid_up_to_the_bone_is_intracranial_fat_is_not() -> None:
    template = mni.at_zoom(3.0)
    brain = template.distance < -2.0
    fluid = ~brain & (template.distance < 1.0)
    head = np.where(brain, 0.7, np.where(fluid, 0.4, np.where(template.distance < 5.0, 0.05, 1.2))).astype(np.float32)
    found = volumetry.intracranial(head, brain, template, 0.7)
    assert not found[~brain & ~fluid].any()
    assert found[fluid].mean() > 0.9


@pytest.mark.parametrize("kind", ["noise", "flat", "inverted", "empty"])
def test_what_is_no_brain_gives_finite_numbers(kind: str) -> None:
    template = mni.at_zoom(3.0)
    shape = template.grid.shape
    head = {
        "noise": np.random.default_rng(1).random(shape) + 0.1,
        "flat": np.full(shape, 5.0),
        "inverted": 1.2 - template.t1,
        "empty": np.zeros(shape),
    }[kind].astype(np.float32)
    levels = np.log([5.0, 5.0, 5.0]) if kind == "flat" else np.log([0.3, 0.6, 0.9])
    tissue = bias.Tissue(levels, np.ones(3), np.ones(3) / 3, None)
    got = volumetry.measure(head, template.grid.affine, np.eye(4), tissue, head, template.brain > 0.5, template)
    assert all(np.isfinite(value) and value >= 0 for value in got.values())


@pytest.mark.slow
def test_real_heads_follow_age(params: Normalize) -> None:
    folder = real("ixi_t1_2mm")
    with (folder / "participants.csv").open() as file:
        people = sorted(csv.DictReader(file), key=lambda row: float(row["AGE"]))
    rows = {}
    for group, chosen in (("young", people[:6]), ("old", people[-6:])):
        for person in chosen:
            volume = read_volume(folder, f"{person['IXI_ID']}_T1.nii.gz")
            result = normalize.normalize_volume(volume, params)
            rows.setdefault(group, []).append(result.metrics)

    def mean(group: str, name: str) -> float:
        return float(np.mean([row[name] for row in rows[group]]))

    assert mean("old", "region_ventricles_fraction") > 1.4 * mean("young", "region_ventricles_fraction")
    assert mean("old", "region_brain_tissue_fraction") < mean("young", "region_brain_tissue_fraction")
    for row in [*rows["young"], *rows["old"]]:
        assert 2 < row["hippocampus_left_ml"] < 5
        assert 2 < row["hippocampus_right_ml"] < 5
