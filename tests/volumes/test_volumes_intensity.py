"""Intensities as bytes: what the three tissues become, and what cannot move them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from volume_heads import make_head, posed, real

from medalign3d.errors import VolumeError
from medalign3d.params import Normalize
from medalign3d.volumes import bias, intensity
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Array, Grid, resample
from medalign3d.volumes.intensity import FLUID_BYTE, GREY_BYTE, WHITE_BYTE, Anchors
from medalign3d.volumes.normalize import normalize_volume
from medalign3d.volumes.read import Volume, read_volume


@pytest.mark.parametrize("values", [(2.0, 1.0, 3.0), (1.0, 3.0, 2.0), (1.0, 1.0, 2.0), (0.0, 1.0, np.nan)])
def test_anchors_must_ascend(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Anchors(*values)


def test_anchors_become_their_bytes() -> None:
    image = np.array([-900.0, 300.0, 650.0, 1000.0, 5000.0], np.float32).reshape(1, 1, 5)
    out = intensity.to_bytes(image, np.ones(image.shape, bool), Anchors(300.0, 650.0, 1000.0))
    assert out.ravel().tolist() == [1, FLUID_BYTE, GREY_BYTE, WHITE_BYTE, 255]


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e4), st.floats(-1e3, 1e3), st.integers(0, 5))
def test_gain_and_offset_do_not_matter(gain: float, offset: float, seed: int) -> None:
    data = np.random.default_rng(seed).random((9, 9, 9))
    mask = data > 0.1
    first = intensity.to_bytes(data.astype(np.float32), mask, Anchors(0.2, 0.6, 0.9)).astype(int)
    moved = (data * gain + offset * gain).astype(np.float32)
    levels = Anchors(*(gain * (level + offset) for level in (0.2, 0.6, 0.9)))
    second = intensity.to_bytes(moved, mask, levels).astype(int)
    assert ((first > 0) == mask).all()
    # float32 near a large offset keeps about 7 digits: that, and rounding, may move a voxel by one byte
    assert np.abs(first - second).max() <= 1 + 255 * abs(offset) * 1e-6


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3, unique=True))
def test_brighter_never_becomes_darker(levels: list[float]) -> None:
    fluid, grey, white = sorted(levels)
    if min(grey - fluid, white - grey) < 1e-3:
        return
    ramp = np.linspace(-8, 8, 200, dtype=np.float32).reshape(1, 1, -1)
    out = intensity.to_bytes(ramp, np.ones(ramp.shape, bool), Anchors(fluid, grey, white)).astype(int)
    assert (np.diff(out.ravel()) >= 0).all()


def test_a_straight_line_keeps_grey_and_white() -> None:
    straight = Anchors(0.5, 0.8, 1.0).straight()
    image = np.linspace(0.45, 1.1, 50, dtype=np.float32).reshape(1, 1, -1)
    out = intensity.to_bytes(image, np.ones(image.shape, bool), straight).ravel().astype(float)
    assert np.abs(out - (130 + (image.ravel() - 0.8) * 300)).max() < 0.51


def test_without_fluid_in_the_ventricles_there_is_an_anchor() -> None:
    template = mni.at_zoom(3.0)
    tissue = bias.Tissue(np.log([0.5, 0.7, 1.0]), np.ones(3), np.ones(3), None)
    found = intensity.anchors(np.full(template.grid.shape, 0.99, np.float32), template, tissue)
    assert found is not None
    assert found.fluid < found.grey < found.white
    swapped = bias.Tissue(np.log([0.5, 1.0, 0.7]), np.ones(3), np.ones(3), None)
    assert intensity.anchors(template.t1, template, swapped) is None


def _medians(array: NDArray[np.uint8], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes in the sure parts of deep fluid, grey and white matter of the template."""
    template = mni.on_grid(Grid((array.shape[0], array.shape[1], array.shape[2]), affine))
    parts = (
        (template.csf > 0.7) & (template.distance < -25),
        (template.grey > 0.8) & (template.distance < -4),
        template.white > 0.93,
    )
    return np.array([np.median(array[part]) for part in parts])


def _hot(share: float) -> Callable[[Array], Array]:
    def add(data: Array) -> Array:
        out = data.copy()
        if share > 0.002:  # in one piece, as fat or an enhanced vessel
            out[40:50, 60:70, 55:65] *= 6.0
            return out
        inside = np.flatnonzero(data > np.percentile(data, 70))
        count = max(1, int(share * len(inside)))
        out.ravel()[np.random.default_rng(0).choice(inside, count, replace=False)] *= 12.0
        return out

    return add


@pytest.mark.parametrize("share", [0.0, 0.001, 0.004], ids=["one voxel", "0.1 % scattered", "0.4 % in one piece"])
def test_hot_voxels_do_not_move_the_tissues(share: float, params: Normalize) -> None:
    head = make_head(posed((4, 0, 2), (2, 1, 0)), noise=15)
    clean = normalize_volume(head.volume, params)
    hot = normalize_volume(Volume(_hot(share)(head.volume.data), head.volume.affine, "header", "nifti", "f"), params)
    assert clean.array is not None
    assert hot.array is not None
    assert np.abs(_medians(clean.array, clean.affine) - _medians(hot.array, hot.affine)).max() <= 5


def test_one_person_in_two_scanners(params: Normalize) -> None:
    """Other contrast (a power of the signal), other drift, other gain: the tissues' bytes agree."""
    head = make_head(posed((5, 2, 1), (2, 2, 2)), noise=10)
    top = float(head.volume.data.max())
    x = np.linspace(-1, 1, head.volume.data.shape[0], dtype=np.float32)[:, None, None]
    other = 7.0 * top * (head.volume.data / top) ** 1.3 * np.exp(0.25 * x)
    first = normalize_volume(head.volume, params)
    second = normalize_volume(Volume(other.astype(np.float32), head.volume.affine, "header", "nifti", "f"), params)
    assert first.array is not None
    assert second.array is not None
    assert np.abs(_medians(first.array, first.affine) - _medians(second.array, second.affine)).max() <= 10
    both = (first.array > 0) & (second.array > 0)
    assert np.abs(first.array[both].astype(float) - second.array[both]).mean() < 10


def test_real_scanners_agree_better_than_with_min_max(params: Normalize) -> None:
    """IXI (3 T Philips, whole heads) against OASIS-1 (1.5 T Siemens, stripped): adults of all ages in both."""
    after: dict[str, list[NDArray[np.float64]]] = {"ixi_t1_2mm": [], "oasis1_mni_2mm": []}
    before: dict[str, list[NDArray[np.float64]]] = {"ixi_t1_2mm": [], "oasis1_mni_2mm": []}
    for folder in after:
        for path in sorted(real(folder).glob("*.nii.gz"))[::20][:5]:
            volume = read_volume(path.parent, path.name)
            result = normalize_volume(volume, params)
            if result.array is None:
                continue
            after[folder].append(_medians(result.array, result.affine))
            shape = result.array.shape
            grid = Grid((shape[0], shape[1], shape[2]), result.affine)
            raw = resample(volume.data, np.asarray(volume.affine, float), grid, result.transform)
            values = raw[result.array > 0]
            scaled = 255.0 * (raw - values.min()) / (volume.data.max() - values.min())
            before[folder].append(_medians(np.clip(scaled, 0, 255), result.affine))

    def gap(values: dict[str, list[NDArray[np.float64]]]) -> NDArray[np.float64]:
        one, other = (np.array(v).mean(axis=0) for v in values.values())
        return np.asarray(np.abs(one - other))

    assert gap(after).max() < 20
    assert gap(after)[1:].sum() < 0.5 * gap(before)[1:].sum()


def test_a_constant_brain_is_refused_with_anchors_too() -> None:
    with pytest.raises(VolumeError):
        intensity.to_bytes(np.full((4, 4, 4), 3.0, np.float32), np.ones((4, 4, 4), bool), Anchors(1.0, 2.0, 3.0))
