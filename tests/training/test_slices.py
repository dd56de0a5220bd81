import numpy as np

from medalign3d.training.slices import _template_slices, cut_slices


def test_slices_are_square_and_come_from_all_axes():
    volume = np.zeros((48, 60, 40), dtype=np.uint8)
    volume[10:38, 10:50, 10:30] = 200
    slices = cut_slices(volume, 6)
    assert slices.shape == (6, 60, 60)
    assert (slices.reshape(6, -1).max(axis=1) == 200).all()


def test_an_axis_is_not_stretched():
    volume = np.full((10, 20, 30), 7, dtype=np.uint8)
    assert cut_slices(volume, 1)[0].sum() == 20 * 30 * 7


def test_template_slices_are_nobodys_and_repeatable(demo_params):
    first, second = (_template_slices(demo_params, 2) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape[0] == 24
    assert first.max() > 100
