"""Damage: no cut and no flipped bit of a compressed image is taken for another image; nothing hangs or swells."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_series import write_series
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.cohorts.images import inspect_image
from medalign3d.cohorts.reasons import QuarantineReason
from medalign3d.errors import VolumeError
from medalign3d.volumes.read import Volume, read_volume

SHAPE = (60, 64, 60)
MANY = [120, pytest.param(1000, marks=pytest.mark.slow)]
AFFINE = np.diag([1.2, 1.1, 1.3, 1.0])


def voxels() -> np.ndarray:
    """Smooth enough to be compressed by matches as well as by Huffman codes."""
    ramp = np.add.outer(np.add.outer(np.arange(60) // 4, np.arange(64) // 5), np.arange(60) // 6)
    return (ramp + np.random.default_rng(0).integers(0, 3, SHAPE)).astype(np.uint8)


WHOLE = nibabel.Nifti1Image(voxels(), AFFINE).to_bytes()
PACKED = gzip.compress(WHOLE, 6, mtime=0)


def read(path: Path) -> Volume | None:
    """The volume, or None where it is refused with one of the reasons; anything else fails the test."""
    try:
        return read_volume(path.parent, path.name)
    except VolumeError as error:
        if error.reason not in set(QuarantineReason):
            raise
        return None


def harmless(volume: Volume | None) -> bool:
    """Refused, or the very voxels where they belong."""
    return volume is None or (np.array_equal(volume.data, voxels()) and np.allclose(volume.affine, AFFINE))


def test_the_undamaged_image_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(PACKED)
    volume = read(tmp_path / "a.nii.gz")
    assert volume is not None
    assert harmless(volume)


@pytest.mark.parametrize("times", MANY)
def test_truncations(tmp_path: Path, times: int) -> None:
    path = tmp_path / "a.nii.gz"
    ends = {int(end) for end in np.linspace(0, len(PACKED) - 1, times - 20)}
    ends |= set(range(len(PACKED) - 20, len(PACKED)))  # in the checksum and just before it
    for end in sorted(ends):
        path.write_bytes(PACKED[:end])
        assert read(path) is None, end


@pytest.mark.parametrize("times", MANY)
def test_flipped_bits(tmp_path: Path, times: int) -> None:
    path = tmp_path / "a.nii.gz"
    rng = np.random.default_rng(1)
    bits = 8 * len(PACKED)
    # Anywhere, and where the format's own fields are: its header, and checksum and length at its end.
    places = [*rng.integers(0, bits, times - 40), *rng.integers(0, 80, 20), *rng.integers(bits - 64, bits, 20)]
    for place in places:
        content = bytearray(PACKED)
        content[place // 8] ^= 1 << (place % 8)
        path.write_bytes(bytes(content))
        assert harmless(read(path)), place


@pytest.mark.parametrize(
    ("content", "accepted"),
    [
        (PACKED + bytes(700), True),  # padding of tapes
        (PACKED + b"trailing", False),
        (PACKED + b"\x1f", False),  # the beginning of another member
        (PACKED + PACKED[:300], False),
        (PACKED + gzip.compress(b""), True),
        (gzip.compress(WHOLE[:9000]) + gzip.compress(WHOLE[9000:]), True),
        (gzip.compress(WHOLE[:9000])[:-8] + bytes(8) + gzip.compress(WHOLE[9000:]), False),  # checksum in the middle
        (gzip.compress(WHOLE[:9000]) + bytes(16) + gzip.compress(WHOLE[9000:]), False),
        (zlib.compress(WHOLE), False),
    ],
)
def test_what_may_stand_around_compressed_data(tmp_path: Path, content: bytes, accepted: bool) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    volume = read(tmp_path / "a.nii.gz")
    assert (volume is not None) == accepted
    assert harmless(volume)


def test_uncompressed_images_are_caught_by_their_length_only(tmp_path: Path) -> None:
    """A .nii carries no checksum: a cut is caught, a changed voxel cannot be. The header is checked for sense."""
    path = tmp_path / "a.nii"
    for end in (0, 200, 347, 351, 352, 5000, len(WHOLE) - 1):
        path.write_bytes(WHOLE[:end])
        assert read(path) is None
    rng = np.random.default_rng(2)
    for place in rng.integers(0, 8 * 348, 80):
        content = bytearray(WHOLE)
        content[place // 8] ^= 1 << (place % 8)
        path.write_bytes(bytes(content))
        volume = read(path)
        assert volume is None or np.isfinite(volume.data).all()


def test_damaged_dicom_slices(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", voxels().astype(np.int16), AFFINE)
    assert read(tmp_path / "series") is not None
    victim = paths[30]
    whole = victim.read_bytes()
    for end in (*range(0, len(whole), 1009), len(whole) - 1):
        victim.write_bytes(whole[:end])
        assert read(tmp_path / "series") is None, end
    header = len(whole) - SHAPE[0] * SHAPE[1] * 2
    rng = np.random.default_rng(3)
    for place in rng.integers(0, 8 * header, 20):
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        victim.write_bytes(bytes(content))
        volume = read(tmp_path / "series")
        assert volume is None or volume.data.shape == SHAPE


@settings(max_examples=30, deadline=None)
@given(header=st.binary(min_size=0, max_size=540), keep=st.booleans(), packed=st.booleans())
def test_ingest_and_reading_agree_on_any_header(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, keep: bool, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("header") / ("a.nii.gz" if packed else "a.nii")
    content = bytearray(WHOLE)
    start = min(40, len(header)) if keep else 0
    content[start : len(header)] = header[start:]
    if keep:
        content[344:348] = b"n+1\0"
    path.write_bytes(gzip.compress(bytes(content), 1) if packed else bytes(content))
    assert verdict(lambda: read_volume(path.parent, path.name)) == verdict(lambda: inspect_image(path))


def verdict(action: Callable[[], object]) -> str:
    try:
        action()
    except VolumeError as error:
        return str(error.reason)
    return ""


_LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from medalign3d.errors import VolumeError
from medalign3d.volumes.read import read_volume
import medalign3d.cohorts.stored
folder = Path(sys.argv[1])
whole = (folder / "whole.nii").read_bytes()
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (400 << 20),) * 2)
rng = np.random.default_rng(4)
for turn in range(80):
    content = bytearray(whole)
    for place in rng.integers(0, 348, rng.integers(1, 40)):
        content[place] = rng.integers(0, 256)
    if turn % 3:
        content[344:348] = b"n+1\\0"
        content[:4] = (348).to_bytes(4, "little")
    (folder / "a.nii").write_bytes(bytes(content))
    try:
        read_volume(folder, "a.nii")
    except VolumeError as error:
        assert "memory" not in error.what, error
print("done", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the address space as Linux does")
def test_damaged_headers_take_no_memory(tmp_path: Path) -> None:
    """A header that claims gigabytes is refused before they are asked for."""
    (tmp_path / "whole.nii").write_bytes(WHOLE)
    (tmp_path / "limited.py").write_text(_LIMITED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "limited.py"), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("done")
