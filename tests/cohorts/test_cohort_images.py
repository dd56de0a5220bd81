"""Which images are accepted, and the reason for each that is not."""

from __future__ import annotations

import gzip
import io
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from cohort_trees import SHAPE, image_bytes, voxels, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.cohorts import images as module
from medalign3d.cohorts.images import ImageFacts, ImageFile, inspect_all, inspect_image, sagittal_affine
from medalign3d.cohorts.reasons import QuarantineReason as Reason
from medalign3d.errors import VolumeError


def save(path: Path, array: np.ndarray, zooms: tuple[float, ...] = (1.5, 1.5, 1.5)) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([*zooms[:3], 1.0])), path)
    return path


def test_a_good_image_is_described(tmp_path: Path) -> None:
    facts = inspect_image(save(tmp_path / "a.nii.gz", voxels(1)))
    assert facts["shape"] == list(SHAPE)
    assert facts["zooms"] == pytest.approx([1.5, 1.5, 1.5])
    assert facts["orientation"] == "RAS"
    assert facts["affine_source"] == "header"


def test_the_data_hash_ignores_compression_and_byte_order(tmp_path: Path) -> None:
    plain = inspect_image(save(tmp_path / "a.nii", voxels(1)))
    packed = inspect_image(save(tmp_path / "a.nii.gz", voxels(1)))
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    big = nib.Nifti1Image(voxels(1), np.diag([1.5, 1.5, 1.5, 1.0]), header=header)
    nib.save(big, tmp_path / "big.nii")
    swapped = inspect_image(tmp_path / "big.nii")
    assert plain["data_sha256"] == packed["data_sha256"] == swapped["data_sha256"]
    assert plain["source_sha256"] != packed["source_sha256"]
    assert inspect_image(save(tmp_path / "b.nii", voxels(2)))["data_sha256"] != plain["data_sha256"]


def test_a_trailing_axis_of_length_one_is_normal(tmp_path: Path) -> None:
    assert inspect_image(save(tmp_path / "a.nii", voxels(1, (*SHAPE, 1))))["shape"] == list(SHAPE)


def _random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def _cut_gzip(path: Path) -> None:
    content = gzip.compress(image_bytes(1))
    path.with_suffix(".nii.gz").write_bytes(content[: len(content) // 2])


def _corrupt_gzip(path: Path) -> None:
    content = bytearray(gzip.compress(image_bytes(1)))
    for place in range(len(content) // 2, len(content) - 8, 97):
        content[place] ^= 0xFF
    path.with_suffix(".nii.gz").write_bytes(bytes(content))


def _singular(path: Path) -> None:
    image = nib.Nifti1Image(voxels(1), np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = (
        [1.5, 0, 0, 0],
        [0, 1.5, 0, 0],
        [0, 0, 0, 0],
    )
    path.write_bytes(bytes(image.header.binaryblock) + b"\0\0\0\0" + voxels(1).tobytes())


def _identity_with_large_voxels(path: Path) -> None:
    image = nib.Nifti1Image(voxels(1), np.eye(4))
    image.header["pixdim"][1:4] = 1.5
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]
    image.header["vox_offset"] = 352
    image.header["magic"] = b"n+1"
    path.write_bytes(bytes(image.header.binaryblock) + b"\0\0\0\0" + voxels(1).tobytes())


def _not_finite(path: Path) -> None:
    array = voxels(1).astype(np.float32)
    array[3, 4, 5] = np.nan
    save(path, array)


CASES: list[tuple[str, Callable[[Path], object], Reason]] = [
    ("random bytes", _random_bytes, Reason.IMAGE_UNREADABLE),
    ("empty file", lambda p: p.write_bytes(b""), Reason.IMAGE_UNREADABLE),
    ("half a file", lambda p: p.write_bytes(image_bytes(1)[: len(image_bytes(1)) // 2]), Reason.IMAGE_TRUNCATED),
    ("half a compressed file", _cut_gzip, Reason.IMAGE_TRUNCATED),
    ("damaged compressed file", _corrupt_gzip, Reason.IMAGE_UNREADABLE),
    ("two frames", lambda p: save(p, voxels(1, (*SHAPE, 2))), Reason.IMAGE_NOT_3D),
    ("one slice", lambda p: save(p, voxels(1, (64, 64, 1))), Reason.IMAGE_NOT_3D),
    ("thick slices", lambda p: save(p, voxels(1, (64, 64, 30)), (1, 1, 5)), Reason.IMAGE_TOO_THICK),
    ("few slices", lambda p: save(p, voxels(1, (64, 64, 59))), Reason.IMAGE_TOO_THICK),
    ("all equal", lambda p: save(p, np.zeros(SHAPE, np.int16)), Reason.IMAGE_EMPTY),
    ("not finite", _not_finite, Reason.IMAGE_EMPTY),
    ("singular affine", _singular, Reason.IMAGE_BAD_AFFINE),
    ("identity affine", _identity_with_large_voxels, Reason.IMAGE_BAD_AFFINE),
    ("tiny voxels", lambda p: save(p, voxels(1), (0.2, 0.2, 0.2)), Reason.IMAGE_TOO_THICK),
]


@pytest.mark.parametrize(("make", "reason"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refusals(tmp_path: Path, make: Callable[[Path], object], reason: Reason) -> None:
    make(tmp_path / "a.nii")
    with pytest.raises(VolumeError) as error:
        inspect_image(next(tmp_path.iterdir()))
    assert error.value.reason == reason


def test_analyze_pairs_have_an_assumed_orientation(tmp_path: Path) -> None:
    write_image(tmp_path / "a.hdr", 3)
    facts = inspect_image(tmp_path / "a.img")
    assert facts["affine_source"] == "assumed"
    (tmp_path / "a.img").unlink()
    with pytest.raises(VolumeError):
        inspect_image(tmp_path / "a.hdr")


def test_the_fixed_orientation_of_sagittal_files_on_an_asymmetric_marker() -> None:
    affine = sagittal_affine((256, 256, 160), (1, 1, 1))
    assert affine[:3].tolist() == [[0, 0, -1, 80], [1, 0, 0, -128], [0, 1, 0, -128]]
    marker = np.array([200, 60, 10, 1])  # towards the nose, low, in the first slices
    x, y, z = (affine @ marker)[:3]
    assert (x, y, z) == (70, 72, -68)  # right, anterior, inferior
    assert nib.aff2axcodes(affine) == ("A", "S", "L")


def dicom_slices(folder: Path, count: int = 62, shape: tuple[int, int] = (64, 70)) -> list[Path]:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    series = generate_uid(entropy_srcs=["series"])
    paths = []
    for number in range(count):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID = series
        dataset.SeriesDescription = "MPRAGE"
        dataset.Rows, dataset.Columns = shape
        dataset.PixelSpacing = [1.25, 1.5]
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        dataset.ImagePositionPatient = [-80 + 1.2 * number, -90, 90]
        dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
        dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
        dataset.MagneticFieldStrength = "15000"
        dataset.Manufacturer = "SIMULATED"
        dataset.PixelData = voxels(number, shape).astype(np.uint16).tobytes()
        path = folder / f"slice_{(number * 7) % count:03d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def test_a_dicom_series_whatever_the_order_of_its_files(tmp_path: Path) -> None:
    dicom_slices(tmp_path / "series")
    facts = inspect_image(tmp_path / "series")
    assert facts["shape"] == [70, 64, 62]
    assert facts["zooms"] == pytest.approx([1.5, 1.25, 1.2])
    assert facts["field_strength_t"] == 1.5
    assert facts["orientation"] == "PIL"[:2] + facts["orientation"][2]
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for path in (tmp_path / "series").iterdir():
            archive.write(path, f"inner/{path.name}")
    assert inspect_image(tmp_path / "series.zip")["data_sha256"] == facts["data_sha256"]


def test_damaged_dicom_series(tmp_path: Path) -> None:
    paths = dicom_slices(tmp_path / "good")
    for name in ("gap", "cut", "twice", "junk"):
        shutil.copytree(tmp_path / "good", tmp_path / name)
    (tmp_path / "gap" / paths[30].name).unlink()
    cut = tmp_path / "cut" / paths[30].name
    cut.write_bytes(cut.read_bytes()[:-3000])
    shutil.copy(tmp_path / "twice" / paths[3].name, tmp_path / "twice" / "again.dcm")
    (tmp_path / "junk" / paths[3].name).write_bytes(b"junk")
    for name, reasons in {
        "gap": {Reason.IMAGE_TRUNCATED},
        "cut": {Reason.IMAGE_TRUNCATED, Reason.IMAGE_UNREADABLE},
        "twice": {Reason.AMBIGUOUS_FILE},
        "junk": {Reason.IMAGE_UNREADABLE},
    }.items():
        with pytest.raises(VolumeError) as error:
            inspect_image(tmp_path / name)
        assert error.value.reason in reasons, name


def test_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    files = [ImageFile(save(tmp_path / f"{n}.nii", voxels(n)).name, "nifti", (f"{n}.nii",)) for n in range(4)]
    outcomes = list(inspect_all(tmp_path, files, workers=2))
    assert outcomes == list(inspect_all(tmp_path, files, workers=1))
    assert len({outcome.data_sha256 for outcome in outcomes if isinstance(outcome, ImageFacts)}) == 4


def test_an_image_that_ends_its_process_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [ImageFile(save(tmp_path / f"{n}.nii", voxels(n)).name, "nifti", (f"{n}.nii",)) for n in range(6)]

    class Pool:
        """Runs at once; image 2 ends its process, and with it everything still in flight."""

        def __init__(self, *_: object, **__: object) -> None:
            self.broken = False

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, function: Callable[..., object], root: str, image: ImageFile) -> Future[object]:
            future: Future[object] = Future()
            self.broken = self.broken or image.source_path == "2.nii"
            if self.broken:
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result(function(root, image))
            return future

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    outcomes = list(inspect_all(tmp_path, files, workers=2))
    assert [isinstance(outcome, ImageFacts) for outcome in outcomes] == [True, True, False, True, True, True]
    assert outcomes[2][0] == Reason.IMAGE_UNREADABLE  # type: ignore[index]


def test_real_dicom_series(real_data: Path) -> None:
    facts = inspect_image(real_data / "dicom" / "studyforrest_t1_dicom.zip")
    assert sorted(facts["shape"]) == [274, 384, 384]
    assert sorted(facts["zooms"]) == pytest.approx([2 / 3, 2 / 3, 0.7], abs=1e-3)


def test_gzip_padding_is_legal(tmp_path: Path) -> None:
    stream = io.BytesIO(gzip.compress(image_bytes(1)) + b"\0" * 100)
    (tmp_path / "a.nii.gz").write_bytes(stream.getvalue())
    assert inspect_image(tmp_path / "a.nii.gz")["shape"] == list(SHAPE)


# --- more acceptance rules


def _metres(path: Path) -> None:
    image = nib.Nifti1Image(voxels(1), np.diag([0.0015, 0.0015, 0.0015, 1.0]))
    image.header.set_xyzt_units("meter")
    nib.save(image, path)


def _flipped_identity(path: Path) -> None:
    image = nib.Nifti1Image(voxels(1), np.diag([-1.0, 1.0, 1.0, 1.0]))
    image.header["pixdim"][1:4] = 1.5
    block = image.header.copy()
    block["sform_code"], block["qform_code"], block["vox_offset"], block["magic"] = 1, 0, 352, b"n+1"
    block["srow_x"], block["srow_y"], block["srow_z"] = [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]
    path.write_bytes(bytes(block.binaryblock) + b"\0\0\0\0" + voxels(1).tobytes())


def _colours(path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(path, np.zeros(SHAPE, kind))


def _infinite(path: Path) -> None:
    array = voxels(1).astype(np.float32)
    array[0, 0, 0] = np.inf
    save(path, array)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_metres, Reason.IMAGE_BAD_AFFINE),
        (_flipped_identity, Reason.IMAGE_BAD_AFFINE),
        (_colours, Reason.IMAGE_NOT_3D),
        (_infinite, Reason.IMAGE_EMPTY),
        (lambda p: p.write_bytes(image_bytes(1) + bytes(20 << 20)), Reason.IMAGE_UNREADABLE),
    ],
    ids=["metres", "flipped identity", "colours", "infinite", "goes on behind its voxels"],
)
def test_further_refusals(tmp_path: Path, make: Callable[[Path], object], reason: Reason) -> None:
    make(tmp_path / "a.nii")
    with pytest.raises(VolumeError) as error:
        inspect_image(tmp_path / "a.nii")
    assert error.value.reason == reason


GOOD = gzip.compress(image_bytes(1, (60, 60, 60)), 1)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_compressed_images_are_never_taken_for_others(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.nii.gz"
    path.write_bytes(GOOD)
    whole = inspect_image(path)["data_sha256"]
    content = bytearray(GOOD)
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0 if len(content) < len(GOOD) else 1, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))
    try:
        facts = inspect_image(path)
    except VolumeError:
        return
    assert facts["data_sha256"] == whole


@settings(max_examples=200, deadline=None)
@given(header=st.binary(min_size=0, max_size=540), keep=st.booleans())
def test_random_headers_never_bring_the_reader_down(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, keep: bool
) -> None:
    path = tmp_path_factory.mktemp("header") / "a.nii"
    content = bytearray(image_bytes(1, (60, 60, 60)))
    start = min(40, len(header)) if keep else 0
    content[start : len(header)] = header[start:]
    if keep:
        content[344:348] = b"n+1\0"
    path.write_bytes(bytes(content))
    try:
        facts = inspect_image(path)
    except VolumeError:
        return
    assert len(facts["shape"]) == 3
    assert min(facts["shape"]) >= 60


def enhanced(path: Path, frames: int = 62, gap: bool = False) -> Path:
    """All slices of a volume in one file, with functional groups."""
    import pydicom
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid(entropy_srcs=["enhanced"])
    file.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    file.Rows, file.Columns, file.NumberOfFrames = 64, 70, frames
    file.SamplesPerPixel, file.BitsAllocated, file.BitsStored, file.HighBit = 1, 16, 16, 15
    file.PixelRepresentation, file.PhotometricInterpretation = 0, "MONOCHROME2"
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = [1.25, 1.5], [0, 1, 0, 0, 0, -1]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    file.SharedFunctionalGroupsSequence = Sequence([shared])
    groups, pixels = [], []
    for number in range(frames):
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-80 + 1.2 * (number + (gap and number > 30)), -90, 90]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
        pixels.append(voxels(number, (64, 70)).astype(np.uint16).tobytes())
    file.PerFrameFunctionalGroupsSequence = Sequence(groups)
    file.PixelData = b"".join(pixels)
    path.parent.mkdir(parents=True)
    file.save_as(path, enforce_file_format=True)
    return path


def test_an_enhanced_dicom_file_is_the_same_image_as_its_slices(tmp_path: Path) -> None:
    dicom_slices(tmp_path / "slices")
    enhanced(tmp_path / "enhanced" / "all.dcm")
    one, many = inspect_image(tmp_path / "enhanced"), inspect_image(tmp_path / "slices")
    for name in ("shape", "zooms", "orientation", "dtype", "data_sha256"):
        assert one[name] == many[name], name
    enhanced(tmp_path / "gap" / "all.dcm", gap=True)
    with pytest.raises(VolumeError) as error:
        inspect_image(tmp_path / "gap")
    assert error.value.reason == Reason.IMAGE_TRUNCATED


def change_slices(folder: Path, change: Callable[[Any, int], None]) -> None:
    import pydicom

    for number, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        change(dataset, number)
        dataset.save_as(path)


def test_slices_that_cannot_be_one_image(tmp_path: Path) -> None:
    from pydicom.uid import JPEGLosslessSV1, generate_uid

    def other_series(dataset: Any, number: int) -> None:
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[str(number // 31)])

    def colours(dataset: Any, number: int) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"

    def packed(dataset: Any, number: int) -> None:
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        dataset["PixelData"].is_undefined_length = True

    def constant(dataset: Any, number: int) -> None:
        dataset.PixelData = bytes(len(dataset.PixelData))

    import pydicom

    for change, reason, words in (
        (other_series, Reason.AMBIGUOUS_FILE, "several DICOM series"),
        (colours, Reason.IMAGE_NOT_3D, "single numbers"),
        (packed, Reason.IMAGE_UNREADABLE, "JPEG Lossless"),
        (constant, Reason.IMAGE_EMPTY, "equal"),
    ):
        folder = tmp_path / change.__name__
        dicom_slices(folder)
        change_slices(folder, change)
        with pytest.raises(VolumeError, match=words) as error:
            inspect_image(folder)
        assert error.value.reason == reason


def test_rle_slices_have_the_voxels_of_uncompressed_ones(tmp_path: Path) -> None:
    from pydicom.uid import RLELossless

    dicom_slices(tmp_path / "plain")
    dicom_slices(tmp_path / "rle")
    change_slices(tmp_path / "rle", lambda dataset, _: dataset.compress(RLELossless, generate_instance_uid=False))
    assert inspect_image(tmp_path / "rle")["data_sha256"] == inspect_image(tmp_path / "plain")["data_sha256"]
