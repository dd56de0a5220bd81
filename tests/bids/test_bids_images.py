"""One image as a clean NIfTI file with a side-car: same voxels, same place in the world, nothing else."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.bids.images import (
    companion_facts,
    disk_is_full,
    manufacturer_of,
    model_of,
    nifti_bytes,
    sidecar_of,
)

DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"]


def opened(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def rotation(angles):
    x, y, z = angles
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return rx @ ry @ rz


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    zooms=st.tuples(*[st.floats(0.4, 2.0)] * 3),
    flip=st.booleans(),
    offset=st.tuples(*[st.floats(-200, 200)] * 3),
    slope=st.sampled_from([1.0, 0.5, 0.0123]),
    order=st.permutations([0, 1, 2]),
)
def test_voxels_and_world_coordinates_are_kept(dtype, angles, zooms, flip, offset, slope, order):
    shape = (7, 5, 6)
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 100, size=shape).astype(dtype)
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles)[:, order] * np.array(zooms) * ((-1 if flip else 1), 1, 1)
    affine[:3, 3] = offset
    content = nifti_bytes(voxels, affine, slope=slope, intercept=2.0)
    image = opened(content)
    assert image.header.get_data_dtype() == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(image.dataobj.get_unscaled(), voxels)
    assert image.dataobj.slope == pytest.approx(slope)
    corners = np.array([[0, 0, 0, 1], [7, 5, 6, 1], [7, 0, 0, 1], [0, 5, 0, 1]]).T
    np.testing.assert_allclose(image.get_sform() @ corners, affine @ corners, atol=1e-3)
    assert image.header["qform_code"] == image.header["sform_code"] == 1
    np.testing.assert_allclose(image.get_qform() @ corners, affine @ corners, atol=1e-2)
    np.testing.assert_allclose(image.header.get_zooms(), zooms, rtol=1e-5)
    assert content == nifti_bytes(voxels.copy(), affine.copy(), slope=slope, intercept=2.0)


def test_a_sheared_affine_stands_in_the_sform_alone():
    affine = np.array([[1.0, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    header = opened(nifti_bytes(np.ones((5, 5, 5), np.int16), affine)).header
    assert header["qform_code"] == 0
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-6)


def test_the_header_holds_no_text():
    header = opened(nifti_bytes(np.ones((5, 5, 5), np.int16), np.eye(4))).header
    assert all(header[name].item() == b"" for name in ("descrip", "aux_file", "intent_name", "db_name"))
    assert (
        opened(nifti_bytes(np.ones((5, 5, 5), np.int16), np.eye(4), simulated=True)).header["descrip"] == b"SIMULATED"
    )


def test_gzip_carries_neither_name_nor_time():
    content = nifti_bytes(np.ones((5, 5, 5), np.int16), np.eye(4))
    assert content[:2] == b"\x1f\x8b"
    assert content[3] == 0  # no name, comment or extra field
    assert content[4:8] == b"\0\0\0\0"


def test_only_credible_acquisition_parameters_leave():
    facts = {
        "MagneticFieldStrength": 30000, "RepetitionTime": 2.3, "EchoTime": 2.98, "FlipAngle": 9, "InversionTime": True,
        "SliceThickness": "1.2", "SpacingBetweenSlices": 10**400, "PixelBandwidth": float("nan"),
        "MRAcquisitionType": "3D",
        "ScanningSequence": "GR\\IR", "SequenceVariant": ["SP", "CANARY"], "Manufacturer": "SIEMENS HEALTHINEERS",
        "ManufacturersModelName": "Prisma_fit", "PatientName": "CANARY", "SeriesDescription": "CANARY",
        "AcquisitionTime": "12:00:00.5", "InstitutionName": "CANARY", "SequenceName": "CANARY",
        "NonlinearGradientCorrection": False, "PhaseEncodingDirection": {"a": 1},
    }  # fmt: skip
    assert sidecar_of(facts) == {
        "FlipAngle": 9, "MRAcquisitionType": "3D", "MagneticFieldStrength": 3.0, "Manufacturer": "Siemens",
        "ManufacturersModelName": "Prisma_fit", "Modality": "MR", "NonlinearGradientCorrection": False,
        "RepetitionTime": 2.3, "ScanningSequence": "GR_IR",
    }  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


KEYS = ("Manufacturer", "ManufacturersModelName", "EchoTime", "MagneticFieldStrength", "ScanningSequence",
        "MRAcquisitionType", "PhaseEncodingDirection", "MTState", "PatientID")  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_no_side_car_breaks_the_allow_list(facts):
    text = json.dumps(sidecar_of(facts, {"manufacturer": facts.get("PatientID")}), allow_nan=False)
    assert "PatientID" not in text


@pytest.mark.parametrize(
    "name",
    ["TrioTim", "Skyra", "Signa HDxt", "DISCOVERY MR750", "Achieva dStream", "GENESIS_SIGNA", "SIGNA EXCITE",
     "Biograph_mMR", "MAGNETOM Prisma", "Ingenia Elition X", "Intera 1.5T"],
)  # fmt: skip
def test_models_of_scanners_are_known(name):
    assert model_of(name) == name


@pytest.mark.parametrize(
    "name", ["Trio Dr Smith", "19450312", "", None, "Skyra\x00", "Ward 3", "x" * 60, "Prisma 123456"]
)
def test_other_words_are_no_model(name):
    assert model_of(name) is None


def test_manufacturers():
    assert [manufacturer_of(v) for v in ("Philips Medical Systems", "GE", "gemini", 3, None)] == [
        "Philips", "GE", None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"{" * 100_000, b'{"a": ' * 50_000, b" " * (2 << 20)])
def test_damaged_side_cars_are_passed_over(tmp_path, content):
    (tmp_path / "a_T1w.json").write_bytes(content)
    assert companion_facts(tmp_path, "a_T1w.nii.gz") == {}


def test_side_cars_beside_files_and_in_archives(tmp_path):
    (tmp_path / "mpr-1.json").write_text('{"EchoTime": 0.004}')
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("s/t1.json", '{"EchoTime": 0.003}')
    assert companion_facts(tmp_path, "mpr-1.nifti.hdr") == {"EchoTime": 0.004}
    assert companion_facts(tmp_path, "a.zip!s/t1.nii") == {"EchoTime": 0.003}
    assert companion_facts(tmp_path, "a.zip!s/other.nii") == {}
    assert companion_facts(tmp_path, "a_folder") == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_seen_through_other_errors():
    from medalign3d.errors import VolumeError

    with pytest.raises(VolumeError) as caught:
        try:
            with open("/dev/full", "wb", buffering=0) as stream:
                stream.write(b"x")
        except OSError as error:
            raise VolumeError("IMAGE_UNREADABLE", "damaged") from error
    assert disk_is_full(caught.value)
    assert not disk_is_full(ValueError("x"))
