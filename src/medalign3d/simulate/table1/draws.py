"""Draws with exact totals: random people and values, but as many rows of each kind as a table needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def generator(seed: int, cohort: str) -> np.random.Generator:
    """The cohort's own stream of random numbers."""
    from medalign3d.simulate.records import seed_of

    return np.random.default_rng(seed_of(seed, "table1", cohort))


def scaled(count: float, scale: float) -> int:
    """A count at another size of the cohort, at least 1.

    >>> scaled(708, 1.0), scaled(21, 0.25), scaled(2, 0.1)
    (708, 5, 1)
    """
    return max(1, round(count * scale))


def exact_subset(sizes: Sequence[int], target: int, order: Iterable[int]) -> set[int]:
    """Positions whose sizes add up to exactly ``target``, taken greedily in ``order``.

    Raises
    ------
    ValueError
        When no such set is found.

    Examples
    --------
    >>> sorted(exact_subset([3, 2, 2, 1], 5, [0, 1, 2, 3])), sorted(exact_subset([3, 2, 2], 4, [0, 1, 2]))
    ([0, 1], [1, 2])
    """
    places = list(order)
    chosen: set[int] = set()
    total = 0
    # The last few units of one are kept for closing the gap that larger ones leave.
    largest = max((sizes[place] for place in places), default=0)
    kept = [place for place in places if sizes[place] == 1][-largest:] if largest else []
    reserve = set(kept)
    for place in [*(place for place in places if place not in reserve), *kept]:
        if sizes[place] > 0 and total + sizes[place] <= target:
            chosen.add(place)
            total += sizes[place]
    while total < target:
        # Exchange a chosen unit for larger ones that are left: the total grows by what is missing, or by less.
        missing = target - total
        left = {sizes[place]: place for place in places if place not in chosen and sizes[place] > 0}
        swaps = [(sizes[a] + gain, a) for a in chosen for gain in range(missing, 0, -1) if sizes[a] + gain in left]
        if not swaps:
            raise ValueError(f"no units add up to {target}: {total} reached")
        size, taken = max(swaps, key=lambda swap: (swap[0] - sizes[swap[1]], -swap[1]))
        chosen.remove(taken)
        chosen.add(left[size])
        total += size - sizes[taken]
    return chosen


def weighted_order(weights: Sequence[float], rng: np.random.Generator) -> list[int]:
    """A random order in which places of larger weight tend to come first."""
    keys = rng.random(len(weights)) ** (1.0 / np.maximum(np.asarray(weights, dtype=float), 1e-9))
    return [int(place) for place in np.argsort(-keys, kind="stable")]


def preferred_first(preferred: Sequence[bool], rng: np.random.Generator) -> list[int]:
    """A random order in which the preferred places come before all others."""
    keys = rng.random(len(preferred)) + np.where(np.asarray(preferred, dtype=bool), 0.0, 1.0)
    return [int(place) for place in np.argsort(keys, kind="stable")]


def whole(rng: np.random.Generator, mean: float, sd: float, low: int, high: int) -> int:
    """A whole number around a mean, cut off at both ends."""
    return min(max(round(mean + sd * float(rng.standard_normal())), low), high)


def halves(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    """A number on the grid of 0.5 around a mean, cut off at both ends."""
    return min(max(round(2 * (mean + sd * float(rng.standard_normal()))) / 2, low), high)


def pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    """A name drawn by its share."""
    point = float(rng.random()) * sum(shares.values())
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return next(reversed(shares))
