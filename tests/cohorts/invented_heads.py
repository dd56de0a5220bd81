"""Invented heads with fine structure of their own, and scans of them with noise of their own."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, shift


def anatomy(seed: int, shape: tuple[int, int, int] = (80, 92, 76)) -> np.ndarray:
    """A head of float voxels: an ellipsoid of folded tissue in darkness."""
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1.25, 1.25, n) for n in shape]
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    texture = sum(gaussian_filter(rng.standard_normal(shape), width) * width**1.5 for width in (1.5, 3, 6))
    inside = 1.0 / (1.0 + np.exp((radius - rng.uniform(0.8, 0.95)) * 30))
    return inside * (600 + 300 * texture / texture.std())


def scan(seed: int, session: int, move: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """A scan of a head in 16-bit integers; another session has other noise and may lie elsewhere."""
    head = anatomy(seed)
    if any(move):
        head = shift(head, move, order=1)
    noise = np.random.default_rng((seed, session)).standard_normal(head.shape) * 25
    return np.clip(head + noise, 0, None).astype(np.int16)
