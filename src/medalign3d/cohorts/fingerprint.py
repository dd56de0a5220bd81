"""A short description of an image's voxels that stays the same when the image is saved again in another form.

The same acquisition comes back re-scaled, re-quantised, in another type or byte order, with its axes permuted or
flipped, cropped or padded. The fingerprint describes the intensities in a soft window around the place where most of
the signal is (found from the voxels, so that the array's borders do not matter) along each axis of the stored array: as
magnitudes of their Fourier transform at fixed frequencies in cycles per voxel. Magnitudes do not change with a flip,
sorting the three axes at every frequency removes their order, and the intensities are scaled by the window's own. It
needs no header.

It narrows 30,000 images down to a few pairs; only a comparison of the voxels says that two images are one acquisition
(:mod:`medalign3d.ehr.duplicates`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

FREQUENCIES: Final = np.arange(1, 25) / 128.0  # cycles per voxel
LENGTH: Final = 3 * len(FREQUENCIES)
SIGMA: Final = 14.0  # voxels, of the soft window
REACH: Final = 36  # voxels, half of the box that the window is computed in
BACKGROUND: Final = 0.15  # of the bright tissue inside the window
COARSE: Final = 4  # stride of the first search
STEPS: Final = 12


def _weights(length: int, start: int, centre: float, stride: int = 1) -> npt.NDArray[np.float64]:
    return np.exp(-0.5 * ((start + stride * np.arange(length) - centre) / SIGMA) ** 2)


def _mean_shift(
    signal: npt.NDArray[np.float32], start: npt.NDArray[np.int64], centre: npt.NDArray[np.float64], stride: int
) -> npt.NDArray[np.float64]:
    """Move a centre to where the signal inside the window balances."""
    for _ in range(STEPS):
        windows = [_weights(n, int(s), c, stride) for n, s, c in zip(signal.shape, start, centre, strict=True)]
        slab = np.tensordot(signal, windows[2], axes=(2, 0))
        lines = [slab @ windows[1] * windows[0], windows[0] @ slab * windows[1]]
        last = np.tensordot(windows[1], np.tensordot(windows[0], signal, axes=(0, 0)), axes=(0, 0)) * windows[2]
        lines.append(last)
        total = float(lines[0].sum())
        if not total > 0:
            break
        moved = np.array(
            [float(line @ (s + stride * np.arange(len(line)))) / total for line, s in zip(lines, start, strict=True)]
        )
        done = float(np.abs(moved - centre).max()) < 0.01
        centre = moved
        if done:
            break
    return centre


def _foreground(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.float32]:
    data = (values.astype(np.float32) - low) * np.float32(1.0 / max(high - low, 1e-12))
    data -= BACKGROUND
    return np.clip(data, 0.0, 1.5, out=data)


def fingerprint(values: npt.NDArray[Any]) -> tuple[float, ...] | None:
    """The fingerprint of a three-dimensional array (72 numbers), or None where there is nothing above the background.

    >>> import numpy as np
    >>> image = np.random.default_rng(0).gamma(1.0, 100.0, (70, 80, 90)) * np.hanning(80)[None, :, None]
    >>> again = np.pad(image.astype(np.int16)[::-1].transpose(2, 0, 1), 5)
    >>> bool(np.allclose(fingerprint(image), fingerprint(again), atol=1e-2))
    True
    """
    if values.ndim != 3 or values.dtype.kind not in "iufb" or min(values.shape) < 8:
        return None
    coarse = np.nan_to_num(values[::COARSE, ::COARSE, ::COARSE].astype(np.float32), posinf=0.0, neginf=0.0)
    low = float(coarse.min())
    bright = coarse[coarse > low]
    if bright.size == 0:
        return None
    signal = _foreground(coarse, low, float(np.quantile(bright, 0.9)))
    if not float(signal.sum()) > 0:
        return None
    origin = np.zeros(3, dtype=np.int64)
    centre = np.array(
        [
            float(signal.sum(axis=other, dtype=np.float64) @ (COARSE * np.arange(n))) / float(signal.sum())
            for n, other in zip(signal.shape, ((1, 2), (0, 2), (0, 1)), strict=True)
        ]
    )
    centre = _mean_shift(signal, origin, centre, COARSE)
    for _ in range(2):  # the scale and the place depend on each other
        start = np.maximum(np.round(centre).astype(np.int64) - REACH, 0)
        stop = np.minimum(np.round(centre).astype(np.int64) + REACH + 1, values.shape)
        if np.any(stop - start < 8):
            return None
        box = values[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        box = np.nan_to_num(box.astype(np.float32), posinf=0.0, neginf=0.0)
        inner = box[tuple(slice(max(0, n // 2 - 20), n // 2 + 21) for n in box.shape)]
        signal = _foreground(box, low, float(np.quantile(inner, 0.9)))
        moved = _mean_shift(signal, start, centre, 1)
        settled = bool(np.abs(moved - centre).max() < 0.02)
        centre = moved
        if settled:
            break
    windows = [_weights(n, int(s), c) for n, s, c in zip(signal.shape, start, centre, strict=True)]
    slab = np.tensordot(signal, windows[2], axes=(2, 0))
    lines = [
        slab @ windows[1] * windows[0],
        windows[0] @ slab * windows[1],
        np.tensordot(windows[1], np.tensordot(windows[0], signal, axes=(0, 0)), axes=(0, 0)) * windows[2],
    ]
    total = float(lines[0].sum())
    if not total > 0:
        return None
    magnitudes = []
    for line in lines:
        waves = np.exp(-2j * np.pi * np.outer(FREQUENCIES, np.arange(len(line))))
        # Times the frequency: detail tells people apart, not the shape of the window.
        magnitudes.append(np.abs(waves @ (line / total)) * FREQUENCIES * len(FREQUENCIES))
    return tuple(float(value) for value in np.sort(np.stack(magnitudes), axis=0).ravel().astype(np.float32))
