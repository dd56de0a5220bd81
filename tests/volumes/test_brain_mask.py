"""The brain mask holds the tissue and the fluid around it, and nothing bright beyond."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from volume_heads import make_head, posed, real

from medalign3d.params import Normalize
from medalign3d.volumes import mask, normalize, register
from medalign3d.volumes import template as mni
from medalign3d.volumes.read import read_volume

WORK = mni.at_zoom(2.0)


def _attempt(data: NDArray[np.float32], affine: NDArray[np.float64], params: Normalize) -> normalize._Attempt:
    data = normalize._tame(data)
    found = normalize._attempt(data, affine, register.register(data, affine), WORK, params)
    assert found.mask is not None
    assert found.tissue is not None
    return found


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return 2.0 * float((first & second).sum()) / float(first.sum() + second.sum())


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_a_simulated_head_gives_back_its_brain(params: Normalize, drift: float) -> None:
    head = make_head(pose=posed((8, -5, 6), (6, -4, 8)), noise=15, drift=drift).volume
    found = _attempt(head.data, head.affine, params)
    assert _dice(found.mask, WORK.brain > 0.5) > 0.96


def test_a_real_head_keeps_its_tissue_and_the_fluid_around_it(params: Normalize) -> None:
    for path in sorted(real("ixi_t1_2mm").glob("*.nii.gz"))[3::23]:
        volume = read_volume(path.parent, path.name)
        found = _attempt(volume.data, volume.affine, params)
        own = mask.tissue_mask(found.head, WORK, found.tissue)
        seen = WORK.distance < 12
        assert not (own & seen & ~found.mask).sum() > 0.001 * own.sum()
        rim = found.mask & ~own
        assert 0.04 < rim.sum() / own.sum() < 0.25
        # The rim is fluid, or a voxel shared with it: neither fat, marrow nor an eye's muscle.
        assert (found.head[rim] < 0.8 * found.tissue.levels[2]).mean() > 0.9
        # One piece without cavities: ventricles and furrows are inside.
        assert ndimage.label(found.mask)[1] == 1
        assert (ndimage.binary_fill_holes(found.mask) & ~found.mask).sum() < 0.001 * found.mask.sum()


def test_a_bright_shell_outside_stays_outside(params: Normalize) -> None:
    """Marrow or fat pressed against the outer fluid."""
    head = make_head(pose=np.eye(4), noise=10).volume
    data = head.data.copy()
    affine = head.affine
    plain = _attempt(data, affine, params)
    white = float(np.percentile(data[data > 0], 90))
    index = np.indices(data.shape).reshape(3, -1)
    places = affine[:3, :3] @ index + affine[:3, 3:]
    at = np.linalg.inv(WORK.grid.affine)
    distance = ndimage.map_coordinates(WORK.distance, at[:3, :3] @ places + at[:3, 3:], order=1, mode="nearest")
    shell = ((distance > 3.5) & (distance < 7.0)).reshape(data.shape)
    data[shell] = 1.8 * white
    found = _attempt(data, affine, params)
    assert _dice(found.mask, plain.mask) > 0.95
    bright = found.head > 1.3 * found.tissue.levels[2]
    assert (found.mask & bright & (WORK.distance > 2)).sum() < 0.005 * found.mask.sum()


def test_nothing_where_nothing_is(params: Normalize) -> None:
    head = make_head(noise=10).volume
    found = _attempt(head.data, head.affine, params)
    nothing = mask.brain_mask(np.zeros_like(found.head), WORK, found.tissue)
    # The core is brain by position (ventricles are dark); nothing is added around it.
    assert not (nothing & (WORK.distance > mask.CROWN_RIM_MM)).any()
