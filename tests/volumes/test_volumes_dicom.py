"""DICOM series whose numbers need care: padding, unused bits, inverted grey, byte order, scaling by slice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import write_series
from numpy.typing import NDArray

from medalign3d.cohorts.images import inspect_image
from medalign3d.errors import VolumeError
from medalign3d.volumes.read import read_volume

SHAPE = (64, 62, 60)
AFFINE = np.diag([-1.2, -1.1, 1.3, 1.0])
AFFINE[:3, 3] = 40, 34, -39


def voxels(dtype: type = np.uint16, low: int = 10, high: int = 1000) -> NDArray[Any]:
    return np.random.default_rng(3).integers(low, high, SHAPE).astype(dtype)


def values(folder: Path, data: NDArray[Any], change: Callable[[Any, int], None] | None = None) -> NDArray[np.float32]:
    """What is read of a series, its slices' rows in the order in which they were written."""
    write_series(folder / "series", data, AFFINE, change=change)
    return read_volume(folder, "series").data[:, ::-1]


def test_numbers_of_sixteen_bits_come_as_they_are(tmp_path: Path) -> None:
    for number, data in enumerate((voxels(), voxels(np.int16, -900, 900), voxels(np.uint16, 0, 65_000))):
        assert np.array_equal(values(tmp_path / str(number), data), data)


@pytest.mark.parametrize("given", ["US", "SS"])
def test_padding_is_no_signal(tmp_path: Path, given: str) -> None:
    """-2000 stands where nothing was measured; headers give it as signed or as unsigned number."""
    data = voxels(np.int16, -50, 900)
    data[:, :10] = -2000

    def pad(dataset: Any, _: int) -> None:
        dataset.add_new(0x00280120, given, -2000 if given == "SS" else 65536 - 2000)

    read = values(tmp_path, data, pad)
    assert read.min() == -50
    assert (read[:, :10] == -50).all()
    assert np.array_equal(read[:, 10:], data[:, 10:])


def test_padding_may_be_a_range(tmp_path: Path) -> None:
    data = voxels(np.uint16, 100, 900)
    data[:, :10] = 7
    data[:, 10:20] = 3

    def pad(dataset: Any, _: int) -> None:
        dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = 7, 3

    assert (values(tmp_path, data, pad)[:, :20] == 100).all()


def test_padding_of_a_scaled_slice_is_as_dark_as_the_darkest_value(tmp_path: Path) -> None:
    data = voxels(np.uint16, 10, 900)
    data[:, :10] = 4000

    def pad(dataset: Any, number: int) -> None:
        dataset.PixelPaddingValue = 4000
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + number % 3, -5 * number

    read = values(tmp_path, data, pad)
    assert (read[:, :10] == read[:, 10:].min()).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_what_lies_above_the_stored_bits_is_no_number(tmp_path: Path, dtype: type) -> None:
    """Twelve of sixteen bits; scanners once put overlays into the upper four."""
    data = voxels(dtype, 0 if dtype is np.uint16 else -2000, 2000)
    data[0, :10] = -2048 if dtype is np.int16 else 0
    overlay = (np.indices(SHAPE).sum(axis=0) % 16 << 12).astype(np.uint16)
    words = (data.view(np.uint16) & 0x0FFF | overlay).view(dtype)

    def twelve(dataset: Any, _: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11
        if dtype is np.int16:
            dataset.add_new(0x00280120, "SS", -2048)

    read = values(tmp_path, words, twelve)
    expected = data.astype(np.float32)
    if dtype is np.int16:
        expected[data == -2048] = -2000
    assert np.array_equal(read, expected)


def test_bits_may_stand_at_the_upper_end(tmp_path: Path) -> None:
    def upper(dataset: Any, _: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 15

    data = voxels(np.uint16, 0, 4000)
    assert np.array_equal(values(tmp_path, data << 4 | 9, upper), data)


def test_slices_may_differ_in_their_stored_bits(tmp_path: Path) -> None:
    data = voxels(np.uint16, 0, 4000)
    data[:, :, 30:] += 20_000

    def some(dataset: Any, number: int) -> None:
        if number < 30:
            dataset.BitsStored, dataset.HighBit = 12, 11

    words = data.copy()
    words[:, :, :30] |= 0x5000
    assert np.array_equal(values(tmp_path, words, some), data)


def test_only_an_overlay_is_no_picture(tmp_path: Path) -> None:
    def twelve(dataset: Any, _: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11

    words = (np.indices(SHAPE).sum(axis=0) % 16 << 12).astype(np.uint16) | 5
    write_series(tmp_path / "series", words, AFFINE, change=twelve)
    for read in (lambda: read_volume(tmp_path, "series"), lambda: inspect_image(tmp_path / "series")):
        with pytest.raises(VolumeError, match="equal") as caught:
            read()
        assert caught.value.reason == "IMAGE_EMPTY"


@pytest.mark.parametrize("padded", [False, True])
def test_inverted_grey_is_turned_round(tmp_path: Path, padded: bool) -> None:
    """Slices of different slopes, too: one value is one grey in all of them, and padding stays dark."""
    true = voxels(np.uint16, 100, 1000)  # dark to bright
    slopes = np.array([1.0, 2.0, 4.0])[np.arange(SHAPE[2]) % 3]
    stored = np.round((1200.0 - true) / slopes).astype(np.uint16)
    if padded:
        stored[:, :10] = 60_000

    def invert(dataset: Any, number: int) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.RescaleSlope, dataset.RescaleIntercept = float(slopes[number]), 50
        if padded:
            dataset.PixelPaddingValue = 60_000

    read = values(tmp_path, stored, invert)
    rest = (slice(None), slice(10, None))
    shift = read[rest] - true[rest]
    assert np.ptp(shift) <= 4.1, "up to the rounding of what was stored"
    assert np.corrcoef(read[rest].ravel(), true[rest].ravel())[0, 1] > 0.999
    if padded:
        assert (read[:, :10] == read[rest].min()).all()
    assert "turned round" in "; ".join(read_volume(tmp_path, "series").remarks)


def test_big_endian_files_hold_the_same_image(tmp_path: Path) -> None:
    from pydicom.uid import ExplicitVRBigEndian

    def big(dataset: Any, _: int) -> None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()

    data = voxels(np.int16, -900, 900)
    assert np.array_equal(values(tmp_path / "big", data, big), data)
    values(tmp_path / "little", data)
    digests = {inspect_image(tmp_path / name / "series")["data_sha256"] for name in ("big", "little")}
    assert len(digests) == 1


@pytest.mark.parametrize("vr", ["OW", "OB"])
def test_eight_bits_in_big_endian_words(tmp_path: Path, vr: str) -> None:
    from pydicom.uid import ExplicitVRBigEndian

    data = voxels(np.uint8, 0, 250)

    def big(dataset: Any, _: int) -> None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        pixels = dataset.PixelData
        dataset.PixelData = np.frombuffer(pixels, "<u2").astype(">u2").tobytes() if vr == "OW" else pixels
        dataset["PixelData"].VR = vr

    assert np.array_equal(values(tmp_path, data, big), data)


def test_each_slice_has_its_own_scale(tmp_path: Path) -> None:
    data = voxels()
    slopes, intercepts = 0.5 + np.arange(SHAPE[2]) / 10, -3.0 * np.arange(SHAPE[2])

    def scale(dataset: Any, number: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slopes[number]:.4f}", f"{intercepts[number]:.4f}"

    assert np.allclose(values(tmp_path, data, scale), data * slopes + intercepts, rtol=1e-5, atol=1e-3)


def test_a_scale_beyond_32_bits_is_no_picture(tmp_path: Path) -> None:
    def scale(dataset: Any, number: int) -> None:
        dataset.RescaleSlope = "1e38" if number == 7 else "1"

    write_series(tmp_path / "series", voxels(), AFFINE, change=scale)
    for read in (lambda: read_volume(tmp_path, "series"), lambda: inspect_image(tmp_path / "series")):
        with pytest.raises(VolumeError, match="32 bits") as caught:
            read()
        assert caught.value.reason == "IMAGE_EMPTY"


def test_frames_without_places_are_refused_by_name(tmp_path: Path) -> None:
    """A multi-frame file of the old kind has no place for its frames' positions; an enhanced one may lack them."""
    import pydicom

    data = voxels()
    paths = write_series(tmp_path / "slices", data, AFFINE)
    dataset = pydicom.dcmread(paths[0])
    del dataset.ImagePositionPatient
    dataset.NumberOfFrames = SHAPE[2]
    dataset.PixelData = np.ascontiguousarray(data.transpose(2, 1, 0)).tobytes()
    (tmp_path / "series").mkdir()
    dataset.save_as(tmp_path / "series" / "all.dcm")
    with pytest.raises(VolumeError, match="multi-frame DICOM file does not say where") as caught:
        read_volume(tmp_path, "series")
    assert caught.value.reason == "IMAGE_UNREADABLE"
    assert caught.value.found == "no ImagePositionPatient"
    assert caught.value.remedy == "convert the series to NIfTI"


def test_a_series_of_full_size_is_read_in_seconds(tmp_path: Path) -> None:
    """192 slices of 256 x 256; docs/performance.md has the figure."""
    data = np.random.default_rng(0).integers(0, 1000, (256, 256, 192)).astype(np.uint16)
    write_series(tmp_path / "series", data, np.diag([-1.0, -1.0, 1.0, 1.0]))
    began = time.process_time()
    assert read_volume(tmp_path, "series").data.shape == (256, 256, 192)
    assert time.process_time() - began < 10
