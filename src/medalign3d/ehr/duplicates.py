"""One acquisition under two names: saved again in another type, scale, orientation or frame.

Candidates are pairs of images with nearly equal fingerprints (:mod:`medalign3d.cohorts.fingerprint`). The voxels
decide: one image is brought onto the other by a permutation and flips of its axes and a shift by whole voxels, and what
is left of both after smoothing is taken away - noise and the finest detail - is correlated. That is near 1 for one
acquisition and far from it for two scans of one person, whose noise differs. Images that were resampled to another grid
are not found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from medalign3d.ehr.persons import Groups

if TYPE_CHECKING:
    import pandas as pd

#: Reads the voxels of an image, given its row; None where they cannot be read.
ReadVoxels = Callable[[Mapping[str, Any]], npt.NDArray[Any] | None]

CANDIDATE_DISTANCE: Final = 0.03  # of the fingerprints, relative to their length
#: Correlation of the residuals. Copies in 64 grey levels reach 0.98; two scans of one person that were both resampled
#: to a 2 mm atlas grid, which blurs the noise away, still reach 0.93 (docs/performance.md).
SAME_ACQUISITION: Final = 0.96
BLOCK: Final = 2048  # rows of fingerprints that are compared at a time
BOX: Final = 64  # voxels along each axis that are compared
SMOOTHING: Final = 3  # voxels
SMALLEST_OVERLAP: Final = 24  # voxels along each axis


@dataclass(frozen=True)
class NearDuplicate:
    """Two images (positions in the table) that look like one acquisition.

    ``correlation`` is that of their residuals; None when the voxels could not be read.
    """

    first: int
    second: int
    correlation: float | None

    @property
    def confirmed(self) -> bool:
        """Whether the voxels say that they are one acquisition."""
        return self.correlation is not None and self.correlation >= SAME_ACQUISITION


def candidate_pairs(fingerprints: Sequence[Sequence[float] | None]) -> list[tuple[int, int]]:
    """Pairs of positions whose fingerprints are nearly equal; images without one take no part."""
    known = [place for place, value in enumerate(fingerprints) if value is not None and len(value) > 0]
    if len(known) < 2:
        return []
    table = np.array([fingerprints[place] for place in known], dtype=np.float64)
    squares = (table**2).sum(axis=1)
    found: list[tuple[int, int]] = []
    for start in range(0, len(table), BLOCK):
        rows = slice(start, start + BLOCK)
        distance = squares[rows, None] + squares[None, start:] - 2.0 * table[rows] @ table[start:].T
        near = distance <= CANDIDATE_DISTANCE**2 * np.minimum(squares[rows, None], squares[None, start:])
        found += [(start + int(i), start + int(k)) for i, k in np.argwhere(near) if k > i]
    return [(known[i], known[k]) for i, k in found]


def _profiles(values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float64]]:
    """Changes from slice to slice of the signal above the background, along each axis."""
    coarse = values[::2, ::2, ::2]
    low = float(coarse.min())
    bright = coarse[coarse > low]
    threshold = low + 0.2 * (float(np.quantile(bright, 0.9)) - low) if bright.size else low
    signal = np.maximum(values - np.float32(threshold), 0)
    return [np.diff(signal.sum(axis=other, dtype=np.float64)) for other in ((1, 2), (0, 2), (0, 1))]


def _best_shift(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> tuple[float, int]:
    """The correlation of two profiles at their best shift, and the shift of the second against the first."""
    scale = float(np.linalg.norm(first) * np.linalg.norm(second)) or 1.0
    scores = np.correlate(first, second, mode="full") / scale
    overlap = np.minimum.reduce(
        [
            np.arange(1, len(scores) + 1),
            np.arange(len(scores), 0, -1),
            np.full(len(scores), min(len(first), len(second))),
        ]
    )
    scores[overlap < SMALLEST_OVERLAP] = -1.0
    place = int(np.argmax(scores))
    return float(scores[place]), place - (len(second) - 1)


def _residual(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    from scipy.ndimage import uniform_filter

    return values - uniform_filter(values, SMOOTHING, mode="nearest")


def _overlap_correlation(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32], shift: Sequence[int]
) -> float:
    """Correlation of the residuals inside the head where both images overlap; ``second`` is moved by ``shift``."""
    ours, theirs = [], []
    for length, other, move in zip(first.shape, second.shape, shift, strict=True):
        start, stop = max(0, move), min(length, other + move)
        if stop - start < SMALLEST_OVERLAP:
            return 0.0
        middle = (start + stop) // 2
        start, stop = max(start, middle - BOX // 2), min(stop, middle + BOX // 2)
        ours.append(slice(start, stop))
        theirs.append(slice(start - move, stop - move))
    one, two = first[tuple(ours)], second[tuple(theirs)]
    head = (one > one.mean() * 0.5) & (two > two.min())
    head[[0, -1]] = head[:, [0, -1]] = head[:, :, [0, -1]] = False
    if head.sum() < 1000:
        return 0.0
    residuals = [_residual(box)[head] for box in (one, two)]
    if min(float(residual.std()) for residual in residuals) == 0.0:
        return 0.0
    return float(np.corrcoef(residuals[0], residuals[1])[0, 1])


def residual_correlation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """How far two three-dimensional arrays hold one acquisition: near 1 when they do, whatever the axes and borders."""
    one = np.nan_to_num(np.asarray(first, dtype=np.float32), posinf=0.0, neginf=0.0)
    two = np.nan_to_num(np.asarray(second, dtype=np.float32), posinf=0.0, neginf=0.0)
    if one.ndim != 3 or two.ndim != 3:
        return 0.0
    ours, theirs = _profiles(one), _profiles(two)
    shifts = {
        (axis, other, flip): _best_shift(ours[axis], -theirs[other][::-1] if flip else theirs[other])
        for axis in range(3)
        for other in range(3)
        for flip in (False, True)
    }

    def support(order: tuple[int, ...]) -> float:
        return sum(max(shifts[axis, order[axis], flip][0] for flip in (False, True)) for axis in range(3))

    best = 0.0
    for order in sorted(itertools.permutations(range(3)), key=support, reverse=True)[:3]:
        turned = two.transpose(order)
        flips = sorted(
            itertools.product((False, True), repeat=3),
            key=lambda flip: -sum(shifts[axis, order[axis], flip[axis]][0] for axis in range(3)),
        )
        for flip in flips:
            moved = turned[tuple(slice(None, None, -1) if f else slice(None) for f in flip)]
            shift = [shifts[axis, order[axis], flip[axis]][1] for axis in range(3)]
            best = max(best, _overlap_correlation(one, moved, shift))
            if best >= SAME_ACQUISITION:
                return best
    return best


def near_duplicates(rows: Sequence[Mapping[str, Any]], read: ReadVoxels | None) -> list[NearDuplicate]:
    """Pairs of images that look like one acquisition.

    Parameters
    ----------
    rows
        One mapping per image with ``fingerprint``, ``data_sha256``, ``image_id``, ``variant_of``,
        ``participant_id`` and whatever ``read`` needs. Equal voxels, and variants of one participant's acquisition, are
        no matter of this search.
    read
        Reads an image; when None nothing can be confirmed.
    """
    found: list[NearDuplicate] = []
    kept: dict[int, npt.NDArray[Any] | None] = {}
    for first, second in candidate_pairs([row["fingerprint"] for row in rows]):
        one, two = rows[first], rows[second]
        related = one["participant_id"] == two["participant_id"] and (
            isinstance(one["variant_of"], str) or isinstance(two["variant_of"], str)
        )
        if related or (isinstance(one["data_sha256"], str) and one["data_sha256"] == two["data_sha256"]):
            continue
        voxels = []
        for place in (first, second):
            if place not in kept:
                if len(kept) > 4:
                    kept.clear()
                kept[place] = None if read is None else read(rows[place])
            voxels.append(kept[place])
        correlation = None if voxels[0] is None or voxels[1] is None else residual_correlation(voxels[0], voxels[1])
        # Repeats of one person look alike; without voxels there is nothing to say about them.
        unknown = correlation is None and one["participant_id"] != two["participant_id"]
        if unknown or (correlation is not None and correlation >= SAME_ACQUISITION):
            found.append(NearDuplicate(first, second, correlation))
    return found


def reader_of(roots: Mapping[str, str]) -> ReadVoxels | None:
    """Reads images below their cohorts' folders; None when no folder is known.

    Parameters
    ----------
    roots
        Cohort name -> its folder.
    """
    if not roots:
        return None

    def read(row: Mapping[str, Any]) -> npt.NDArray[Any] | None:
        from medalign3d.errors import MedAlignError
        from medalign3d.volumes.read import read_volume

        root = roots.get(str(row["dataset"]))
        if root is None:
            return None
        try:
            return read_volume(root, str(row["source_path"]), row["source_format"], strict=False).data
        except MedAlignError:
            return None

    return read


def groups_of(pairs: Sequence[NearDuplicate]) -> list[list[int]]:
    """Positions of the confirmed pairs, everything that hangs together in one group."""
    groups = Groups()
    for pair in pairs:
        if pair.confirmed:
            groups.join(f"{pair.first:09d}", f"{pair.second:09d}")
    members: dict[str, list[int]] = {}
    for place in sorted({place for pair in pairs if pair.confirmed for place in (pair.first, pair.second)}):
        members.setdefault(groups.name(f"{place:09d}"), []).append(place)
    return list(members.values())


def decide(group: pd.DataFrame, rank: Mapping[str, int], what: str) -> dict[Any, tuple[str, str]]:
    """Which images of one acquisition are dropped: index of the row -> (reason, detail).

    Across cohorts the image of the cohort that comes first stays. Within a cohort one image of the same participant
    stays; between participants nobody can tell whose it is, so none does.
    """
    dropped: dict[Any, tuple[str, str]] = {}
    cohorts = sorted(set(group["dataset"]), key=rank.__getitem__)
    for index in group.index[group["dataset"] != cohorts[0]]:
        dropped[index] = ("CROSS_COHORT_DUPLICATE", f"{what} of an image of {cohorts[0]}, which is kept")
    first = group[group["dataset"] == cohorts[0]]
    if first["participant_id"].nunique() > 1:
        for index in first.index:
            dropped[index] = ("DUPLICATE_IMAGE_BYTES", f"{what} of another participant's image")
    else:
        ordered = first.assign(other=~first["selected"]).sort_values(["other", "native_image_key"])
        for index in ordered.index[1:]:
            dropped[index] = ("DUPLICATE_IMAGE_BYTES", f"{what} of another image of the participant")
    return dropped
