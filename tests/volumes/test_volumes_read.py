"""Reading: formats, orientation, damaged files, archives."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_heads import real

from medalign3d.cohorts.stored import describe
from medalign3d.errors import VolumeError
from medalign3d.volumes import read
from medalign3d.volumes.read import read_volume

SHAPE = (64, 62, 60)


def head(shape: tuple[int, ...] = SHAPE, dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)


def reason_of(root: Path, name: str, source_format: str | None = None) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(root, name, source_format)
    return caught.value.reason


def test_nifti_keeps_voxels_and_affine(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 1.2, -60], [-1.0, 0, 0, 80], [0, 1.1, 0, -90], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(head(), affine), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path, "a.nii.gz", "nifti")
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, head())
    assert np.allclose(volume.affine, affine, atol=1e-5)
    assert (volume.orientation, volume.affine_source, volume.stored_dtype) == ("PSR", "header", "int16")
    assert np.allclose(volume.zooms, (1.0, 1.1, 1.2))


def test_scale_factors_are_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(head(), np.eye(4))
    image.header.set_slope_inter(2.0, 5.0)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii")
    assert np.allclose(read_volume(tmp_path, "a.nii").data, stored.get_fdata())


def test_pair_with_double_extension(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(head((*SHAPE, 1)), np.diag([1.0, 1.0, 1.25, 1.0])), tmp_path / "x.hdr")
    os.rename(tmp_path / "x.hdr", tmp_path / "mpr-1.nifti.hdr")
    os.rename(tmp_path / "x.img", tmp_path / "mpr-1.nifti.img")
    for name in ("mpr-1.nifti.hdr", "mpr-1.nifti.img"):
        volume = read_volume(tmp_path, name, "nifti_pair")
        assert volume.data.shape == SHAPE
        assert volume.source_format == "nifti_pair"
        assert np.array_equal(volume.data, head())


def test_analyze_native_oasis_axes(tmp_path: Path) -> None:
    """A marker at the person's right, front and top must come out there: a mirrored brain looks like any other."""
    shape = (256, 256, 160)
    data = np.zeros((*shape, 1), np.int16)
    data[::16, ::16, ::16] = 5
    data[200, 220, 10, 0] = 1000  # voxel axes: back to front, bottom to top, right to left
    nibabel.save(nibabel.AnalyzeImage(data, np.eye(4)), tmp_path / "OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr")
    volume = read_volume(tmp_path, "OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr", "analyze")
    expected = np.array([[0, 0, -1, 80], [1, 0, 0, -128], [0, 1, 0, -128], [0, 0, 0, 1.0]])
    assert np.array_equal(volume.affine, expected)
    assert volume.affine_source == "assumed"
    marker = np.argwhere(volume.data == 1000)[0]
    x, y, z = (volume.affine @ [*marker, 1])[:3]
    assert (x, y, z) == (70, 72, 92)  # right, front, up
    assert volume.orientation == "ASL"


def test_other_analyze_is_assumed_radiological(tmp_path: Path) -> None:
    nibabel.save(nibabel.AnalyzeImage(head(), np.eye(4)), tmp_path / "t88.hdr")
    volume = read_volume(tmp_path, "t88.img")
    assert (volume.orientation, volume.affine_source, volume.source_format) == ("LAS", "assumed", "analyze")


@pytest.mark.parametrize("keep", [0, 100, 347, 400, 20_000])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_files_are_refused(tmp_path: Path, keep: int, suffix: str) -> None:
    nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), tmp_path / f"whole{suffix}")
    (tmp_path / f"cut{suffix}").write_bytes((tmp_path / f"whole{suffix}").read_bytes()[:keep])
    assert reason_of(tmp_path, f"cut{suffix}") in {"IMAGE_TRUNCATED", "IMAGE_UNREADABLE"}


def test_truncated_voxels_have_their_own_reason(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), tmp_path / "a.nii")
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(whole[:-500])
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole)[:-2000])
    assert reason_of(tmp_path, "a.nii") == "IMAGE_TRUNCATED"
    assert reason_of(tmp_path, "b.nii.gz") == "IMAGE_TRUNCATED"


def test_half_a_pair(tmp_path: Path) -> None:
    nibabel.save(nibabel.AnalyzeImage(head(), np.eye(4)), tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    assert reason_of(tmp_path, "a.hdr") == "IMAGE_WITHOUT_FILE"


@pytest.mark.parametrize(
    ("data", "affine", "reason"),
    [
        (head((60, 60, 60, 2)), np.eye(4), "IMAGE_NOT_3D"),
        (head((64, 64, 20)), np.diag([1, 1, 5.0, 1]), "IMAGE_TOO_THICK"),
        (head(), np.diag([1, 1, 3.0, 1]), "IMAGE_TOO_THICK"),
        (head(), np.diag([0.2, 1, 1, 1]), "IMAGE_TOO_THICK"),
        (np.full(SHAPE, 7, np.int16), np.eye(4), "IMAGE_EMPTY"),
        (np.full(SHAPE, np.nan, np.float32), np.eye(4), "IMAGE_EMPTY"),
        (np.where(head() == 5, np.inf, head()).astype(np.float32), np.eye(4), "IMAGE_EMPTY"),
    ],
)
def test_acceptance_rules(tmp_path: Path, data: np.ndarray, affine: np.ndarray, reason: str) -> None:
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "a.nii.gz")
    assert reason_of(tmp_path, "a.nii.gz") == reason


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_bad_affine(tmp_path: Path, bad: float) -> None:
    image = nibabel.Nifti1Image(head(), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[280:296] = np.array([bad, 0, 0, 0], "<f4").tobytes()  # first row of the sform
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    assert reason_of(tmp_path, "a.nii") == "IMAGE_BAD_AFFINE"


def test_text_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_text("not an image" * 100)
    assert reason_of(tmp_path, "a.nii") == "IMAGE_UNREADABLE"
    assert reason_of(tmp_path, "missing.nii") == "IMAGE_WITHOUT_FILE"


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=0, max_size=2000))
def test_any_bytes_are_refused_cleanly(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "a.nii").write_bytes(raw)
    (folder / "b.hdr").write_bytes(raw)
    (folder / "b.img").write_bytes(raw)
    for name in ("a.nii", "b.hdr"):
        with pytest.raises(VolumeError):
            read_volume(folder, name)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 347), value=st.integers(0, 255))
def test_one_damaged_header_byte_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("header")
    nibabel.save(nibabel.Nifti1Image(head((60, 60, 60), np.uint8), np.eye(4)), folder / "a.nii")
    raw = bytearray((folder / "a.nii").read_bytes())
    raw[position] = value
    (folder / "a.nii").write_bytes(bytes(raw))
    try:
        volume = read_volume(folder, "a.nii")
    except VolumeError:
        return
    assert np.isfinite(volume.data).all()


def test_paths_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), tmp_path / "outside.nii")
    assert reason_of(tmp_path / "cohort", "../outside.nii") == "IMAGE_UNREADABLE"
    assert reason_of(tmp_path / "cohort", str(tmp_path / "outside.nii")) == "IMAGE_UNREADABLE"


def test_zip_member(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), tmp_path / "a.nii")
    nibabel.save(nibabel.AnalyzeImage(head(), np.eye(4)), tmp_path / "b.hdr")
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.write(tmp_path / "a.nii", "ses/one/a.nii")
        bundle.write(tmp_path / "b.hdr", "ses/two/b.hdr")
        bundle.write(tmp_path / "b.img", "ses/two/b.img")
        bundle.writestr("__MACOSX/ses/one/._a.nii", "resource fork")
    assert np.array_equal(read_volume(tmp_path, "s.zip!ses/one/a.nii", "nifti").data, head())
    assert np.array_equal(read_volume(tmp_path, "s.zip!ses/two/b.hdr", "analyze").data, head())
    assert np.array_equal(read_volume(tmp_path, "s.zip!ses/one", "nifti").data, head())
    assert reason_of(tmp_path, "s.zip!ses/none.nii") == "IMAGE_WITHOUT_FILE"


@pytest.mark.parametrize("name", ["../evil.nii", "/evil.nii", "a/../../evil.nii", "..\\evil.nii", "C:/evil.nii"])
def test_zip_slip(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as bundle:
        bundle.writestr(name, "x")
    assert reason_of(tmp_path, "s.zip") == "IMAGE_UNREADABLE"
    assert reason_of(tmp_path, f"s.zip!{name}") in {"IMAGE_UNREADABLE", "IMAGE_WITHOUT_FILE"}
    assert not (tmp_path.parent / "evil.nii").exists()


def test_zip_link_is_not_made(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("link.nii")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as bundle:
        bundle.writestr(entry, "/etc/hostname")
    assert reason_of(tmp_path, "s.zip!link.nii") == "IMAGE_WITHOUT_FILE"


def test_zip_bomb(tmp_path: Path) -> None:
    """A good image with gigabytes of nothing behind its voxels: refused long before all of it is expanded."""
    nibabel.save(nibabel.Nifti1Image(head(), np.eye(4)), tmp_path / "a.nii")
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as bundle, bundle.open("a.nii", "w") as sink:
        sink.write((tmp_path / "a.nii").read_bytes())
        for _ in range(64):
            sink.write(bytes(1 << 20))
    assert reason_of(tmp_path, "s.zip!a.nii") == "IMAGE_UNREADABLE"


def test_damaged_zip(tmp_path: Path) -> None:
    (tmp_path / "s.zip").write_bytes(b"PK\x03\x04 this is no archive")
    assert reason_of(tmp_path, "s.zip!a.nii") == "IMAGE_UNREADABLE"


def test_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "a.dcm").write_bytes(b"no dicom")
    assert reason_of(tmp_path, "series", "dicom") == "IMAGE_UNREADABLE"


@pytest.mark.slow
def test_real_dicom_zip() -> None:
    archive = real("dicom", "studyforrest_t1_dicom.zip")
    volume = read_volume(archive.parent, archive.name)
    assert volume.source_format == "dicom"
    assert sorted(volume.data.shape) == [274, 384, 384]
    assert np.allclose(sorted(volume.zooms), [0.667, 0.667, 0.70], atol=0.01)


def test_slices_of_another_image_in_the_folder_are_left_out(tmp_path: Path) -> None:
    """Downloads sometimes mix two images in a folder; their names, or the slice that is given, tell them apart."""
    folder = tmp_path / "I77"
    folder.mkdir()
    own, other = (folder / f"ADNI_MR_br_raw_1_S1_I{number}.dcm" for number in (77, 88))
    for path in (own, other):
        path.write_bytes(b"slice")
    assert describe(tmp_path, "I77").files == (f"I77/{own.name}",)
    assert describe(tmp_path, f"I77/{other.name}").files == (f"I77/{other.name}",)
    assert describe(tmp_path, f"I77/{other.name}", "dicom").files == (f"I77/{other.name}",)
    with contextlib.ExitStack() as stack:
        assert [p.resolve().name for p in read._one_image(folder, stack).iterdir()] == [own.name]
    other.unlink()
    assert describe(tmp_path, "I77").files == (f"I77/{own.name}",)
    with contextlib.ExitStack() as stack:
        assert read._one_image(folder, stack) == folder
