"""From a head to a brain in MNI space."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_heads import Head, make_head, posed, real

from medalign3d.errors import ParameterError, VolumeError
from medalign3d.params import Normalize
from medalign3d.volumes import bias, fallback, intensity, normalize, quality, regions, register, store
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Grid, block_average, resample
from medalign3d.volumes.normalize import INDEX_COLUMNS, normalize_cohort, normalize_inputs, normalize_volume
from medalign3d.volumes.read import Volume, read_volume


def test_target_grid_holds_the_brain() -> None:
    grid = mni.target_grid([48, 60, 48], 3.25)
    template = mni.on_grid(grid)
    edge = np.zeros(grid.shape, bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    edge[:, :, -1] = True
    assert template.brain[edge].max() == 0
    assert abs(template.brain.sum() * 3.25**3 / 1886539 - 1) < 0.01
    with pytest.raises(ParameterError, match="cuts the brain"):
        mni.target_grid([40, 60, 48], 3.25)


def test_block_average_keeps_place_and_mean() -> None:
    data = np.random.default_rng(0).random((12, 9, 8)).astype(np.float32)
    small, affine = block_average(data, np.eye(4), (3, 3, 2))
    assert np.allclose(small.mean(), data.mean(), atol=1e-6)
    assert np.allclose(affine @ [0, 0, 0, 1], [1, 1, 0.5, 1])


@pytest.mark.parametrize(
    ("rotation", "shift", "scalp"),
    [
        ((0, 0, 0), (0, 0, 0), True),
        ((20, 5, -8), (8, -12, 15), True),
        ((-22, 0, 6), (-5, 20, -10), True),
        ((5, 18, 14), (10, 0, 8), False),
    ],
)
def test_known_pose_is_recovered(rotation: tuple, shift: tuple, scalp: bool) -> None:
    pose = posed(rotation, shift)
    head = make_head(pose, noise=25, drift=0.3, scalp=scalp, shape=(110, 120, 110))
    found = register.register(head.volume.data, head.volume.affine)
    assert register.displacement_mm(found.transform, pose) < 0.6
    assert found.correlation > 0.8


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.floats(-14, 14)] * 3),
    st.tuples(*[st.floats(-20, 20)] * 3),
    st.floats(0.8, 1.05),
)
def test_any_small_pose_is_recovered(rotation: tuple, shift: tuple, scale: float) -> None:
    pose = posed(rotation, shift, scale)
    head = make_head(pose, zoom=3.0, shape=(76, 84, 76), noise=20)
    found = register.register(head.volume.data, head.volume.affine)
    assert register.displacement_mm(found.transform, pose) < 1.0


def test_far_shift_is_recovered() -> None:
    head = make_head(posed((10, 0, 0), (0, 0, 0)))
    moved = np.eye(4)
    moved[:3, 3] = (40, -60, 90)
    found = register.register(head.volume.data, moved @ head.volume.affine)
    assert register.displacement_mm(found.transform, moved @ head.pose) < 0.6


@pytest.mark.parametrize("position", [3, 9, 17])
def test_wrong_patient_position_is_recovered(position: int) -> None:
    turn = np.eye(4)
    turn[:3, :3] = register.patient_positions()[position]
    head = make_head(posed((6, 0, 4), (2, 3, 4)), noise=10, drift=0.2)
    found = register.register(head.volume.data, turn @ head.volume.affine)
    assert register.displacement_mm(found.transform, turn @ head.pose) < 1.0


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR", "ASL", "LPI"])
def test_left_stays_left_in_any_voxel_order(axes: str, params: Normalize) -> None:
    """A dark block in the left hemisphere must come out at negative x, however the file orders its voxels."""
    template = mni.at_zoom(2.0, 24.0)
    head = make_head(posed((8, 3, -4), (3, 5, 2)), axes=axes)
    x, y, z = template.grid.coordinates()
    block = ((x < -25) & (x > -45) & (abs(y + 20) < 12) & (abs(z - 25) < 12)).astype(np.float32)
    grid = Grid(head.volume.data.shape, head.volume.affine)  # type: ignore[arg-type]
    share = resample(block, template.grid.affine, grid, np.linalg.inv(head.pose))
    data = head.volume.data * (1 - 0.8 * share)
    result = normalize_volume(Volume(data, head.volume.affine, "header", "nifti", "float32"), params)
    assert result.verdict == "accepted"
    assert result.array is not None
    target = Grid(result.array.shape, result.affine)
    expected = resample(block, template.grid.affine, target) > 0.9
    mirrored = expected[::-1]
    assert result.array[expected].mean() < 0.5 * result.array[mirrored].mean()


def test_result_is_a_stripped_centred_brain(params: Normalize) -> None:
    head = make_head(posed((12, -4, 6), (6, -8, 5)), noise=20, drift=0.4)
    result = normalize_volume(head.volume, params)
    assert (result.verdict, result.method) == ("accepted", "gauss-newton")
    array = result.array
    assert array is not None
    assert (array.dtype, array.shape) == (np.uint8, (48, 60, 48))
    template = mni.on_grid(Grid(array.shape, result.affine))
    solid = array > 0
    dice = 2 * (solid & (template.brain > 0.5)).sum() / (solid.sum() + (template.brain > 0.5).sum())
    assert dice > 0.95
    assert not solid[template.distance > 7].any()  # no scalp
    inner = template.distance < -3
    assert np.corrcoef(array[inner], template.t1[inner])[0, 1] > 0.93  # the drift is gone too
    white = template.white > 0.9
    assert array[white].mean() > array[template.grey > 0.8].mean() + 20


def test_head_in_two_scanners_gives_nearly_the_same_array(params: Normalize) -> None:
    first = normalize_volume(make_head(posed((5, 2, 1), (2, 2, 2)), noise=10).volume, params)
    second = normalize_volume(
        make_head(posed((-12, 5, 9), (-9, 4, 8), 0.9), noise=10, drift=0.4, axes="PSR", seed=1).volume, params
    )
    assert first.array is not None
    assert second.array is not None
    assert np.corrcoef(first.array.ravel(), second.array.ravel())[0, 1] > 0.97


def test_already_normalized_passes_unchanged(params: Normalize) -> None:
    template = mni.at_zoom(2.0)
    data = np.where(template.brain > 0.5, template.t1 * 2.0, 0).astype(np.float32)
    result = normalize_volume(Volume(data, template.grid.affine, "header", "nifti", "float32"), params)
    assert result.method == "already-normalized"
    assert np.array_equal(result.transform, np.eye(4))
    assert result.array is not None
    target = mni.on_grid(Grid(result.array.shape, result.affine))
    inner = target.distance < -3
    assert np.corrcoef(result.array[inner], target.t1[inner])[0, 1] > 0.99


def test_stripped_but_elsewhere_is_registered(params: Normalize) -> None:
    template = mni.at_zoom(2.0)
    data = np.where(template.brain > 0.5, template.t1 * 2.0, 0).astype(np.float32)
    moved = np.eye(4)
    moved[:3, :3] = register.rotation(10, 0, 5)
    moved[:3, 3] = (12, -15, 20)
    result = normalize_volume(Volume(data, moved @ template.grid.affine, "header", "nifti", "float32"), params)
    assert (result.verdict, result.method) == ("accepted", "gauss-newton")
    assert register.displacement_mm(result.transform, moved) < 0.6


def _objects() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*[np.linspace(-1, 1, 90)] * 3, indexing="ij")
    radius = np.sqrt((axes[0] / 0.75) ** 2 + (axes[1] / 0.95) ** 2 + (axes[2] / 0.8) ** 2)
    egg = (radius < 1).astype(np.float32)
    return {
        "noise": rng.normal(100, 20, (90, 90, 90)),
        "egg": 100 * egg + rng.normal(0, 3, egg.shape),
        "shells": 60 * egg + 40 * (radius < 0.7) - 30 * (radius < 0.4) + rng.normal(0, 3, egg.shape),
        "fruit": 100 * egg * (1 + 0.4 * np.cos(9 * np.arctan2(axes[0], axes[1]))) + rng.normal(0, 3, egg.shape),
        "ramp": axes[2] * 50 + 100,
    }


@pytest.mark.parametrize("name", list(_objects()))
def test_what_is_no_brain_is_quarantined(name: str, params: Normalize) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -89
    data = _objects()[name].astype(np.float32)
    result = normalize_volume(Volume(data, affine, "header", "nifti", "float32"), params)
    assert (result.verdict, result.reason) == ("quarantined", "QC_FAIL")
    assert result.detail
    assert result.array is None


def test_inverted_contrast_is_quarantined(params: Normalize) -> None:
    head = make_head(noise=10)
    data = (head.volume.data.max() - head.volume.data) * (head.volume.data > 50)
    result = normalize_volume(Volume(data, head.volume.affine, "header", "nifti", "float32"), params)
    assert result.verdict == "quarantined"


def test_hot_voxels_do_not_rule(params: Normalize) -> None:
    head = make_head(posed((3, 0, 0), (2, 1, 0)), noise=10)
    clean = normalize_volume(head.volume, params).array
    data = head.volume.data.copy()
    data[48, 55, 48] = 1e7
    data[10, 10, 10] = -1e6
    hot = normalize_volume(Volume(data, head.volume.affine, "header", "nifti", "float32"), params).array
    assert clean is not None
    assert hot is not None
    assert np.corrcoef(clean.ravel(), hot.ravel())[0, 1] > 0.98


def test_constant_brain_is_refused() -> None:
    with pytest.raises(VolumeError, match="constant"):
        intensity.to_bytes(np.full((4, 4, 4), 3.0, np.float32), np.ones((4, 4, 4), bool))
    with pytest.raises(VolumeError):
        intensity.to_bytes(np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 4), bool))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 1e4), st.floats(-100, 100))
def test_bytes_do_not_depend_on_gain_and_offset(gain: float, offset: float) -> None:
    data = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
    mask = data > 0.2
    first = intensity.to_bytes(data, mask).astype(int)
    second = intensity.to_bytes((data.astype(np.float64) * gain + offset).astype(np.float32), mask).astype(int)
    assert ((first > 0) == mask).all()
    assert np.abs(first - second).max() <= 1


def test_drift_is_found() -> None:
    template = mni.at_zoom(3.0)
    x, y, _ = template.grid.coordinates()
    true = np.broadcast_to(0.35 * (x / 75) - 0.25 * (y / 92) ** 2, template.grid.shape)
    image = (template.t1 * np.exp(true) * 700).astype(np.float32)
    tissue = bias.fit(image, template, correct=True)
    assert tissue is not None
    assert tissue.coefficients is not None
    inner = template.distance < -3
    left = (true - bias.drift(tissue.coefficients, template.grid))[inner]
    assert left.std() < 0.25 * true[inner].std()
    assert (np.diff(tissue.means) > 0).all()


def _with_ventricles(growth: float, side: int = 0) -> np.ndarray:
    """The template as bytes with its ventricles widened by ``growth`` mm (on one side when ``side`` is -1 or 1)."""
    from scipy import ndimage

    grid = mni.target_grid([48, 60, 48], 3.25)
    template = mni.at_zoom(2.0)
    x, y, z = template.grid.coordinates()
    inside = (abs(x) < 30) & (y > -45) & (y < 35) & (z > -2) & (z < 30) & (template.distance < -25)
    seed = (template.csf > 0.5) & inside
    grown = (2.0 * ndimage.distance_transform_edt(~seed) < growth) & (template.distance < -12)
    if side:
        grown &= np.broadcast_to(x * side > 0, grown.shape)
    image = np.where(grown, 0.25, template.t1).astype(np.float32)
    sampled = mni.sample_averaged(image, template.grid.affine, grid, np.eye(4))
    return intensity.to_bytes(sampled, mni.on_grid(grid).brain > 0.5)


def test_regions_rank_ventricles_and_keep_sides() -> None:
    affine = mni.target_grid([48, 60, 48], 3.25).affine
    values = [regions.measure(_with_ventricles(g), affine) for g in (0.0, 3.0, 6.0, 9.0)]
    shares = [v["region_ventricles_csf"] for v in values]
    assert all(b > a + 0.03 for a, b in itertools.pairwise(shares))
    left = regions.measure(_with_ventricles(8.0, side=-1), affine)
    assert left["region_ventricles_left_csf"] > left["region_ventricles_right_csf"] + 0.1
    assert set(values[0]) == set(regions.REGION_COLUMNS)
    assert abs(values[0]["region_tissue"] + values[0]["region_csf"] - 1) < 1e-6


def test_local_correlation_of_the_template_with_itself() -> None:
    template = mni.at_zoom(3.0)
    assert quality.local_correlation(template.t1, template) > 0.75
    assert quality.local_correlation(1 - template.t1, template) < -0.7


def _cohort(root: Path, count: int) -> pd.DataFrame:
    rows = []
    for number in range(count):
        head = make_head(posed((3.0 * number, 0, 2), (1, 2, 3)), zoom=2.0, noise=10, seed=number)
        name = f"sub-{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(head.volume.data.astype(np.int16), head.volume.affine), root / name)
        rows.append(
            {"image_id": f"img{number}", "source_path": name, "source_format": "nifti", "data_sha256": f"{number}"}
        )
    (root / "broken.nii.gz").write_bytes(b"nothing")
    rows.append({"image_id": "broken", "source_path": "broken.nii.gz", "source_format": "nifti", "data_sha256": "b"})
    return pd.DataFrame(rows)


def test_cohort_is_incremental_and_clean(tmp_path: Path, params: Normalize, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "raw", tmp_path / "store"
    root.mkdir()
    images = _cohort(root, 2)
    images.attrs["simulated"] = "true"
    index = normalize_cohort(images, root, params, out)
    assert list(index.columns) == list(INDEX_COLUMNS)
    assert list(index["image_id"]) == ["img0", "img1", "broken"]
    assert list(index["verdict"]) == ["accepted", "accepted", "quarantined"]
    assert index["reason"].iloc[2] in {"IMAGE_UNREADABLE", "IMAGE_TRUNCATED"}
    loaded = store.load_index(out)
    assert loaded.attrs["simulated"] == "true"
    for row in loaded[loaded["verdict"] == "accepted"].itertuples():
        assert store.read(out / row.path, shape=(48, 60, 48)).max() > 200
        assert 0 < row.region_csf < 1
    volumes = [str(path) for path in loaded["path"]]
    before = (out / volumes[0]).stat().st_mtime_ns

    images.loc[1, "data_sha256"] = "changed"
    stale = store.write(out, np.zeros((2, 2, 2), np.uint8))
    capsys.readouterr()
    again = normalize_cohort(images, root, params, out)
    assert "2 of 3 volumes are up to date" in capsys.readouterr().out
    assert (out / volumes[0]).stat().st_mtime_ns == before
    assert not (out / stale).exists()
    pd.testing.assert_frame_equal(
        again.drop(columns="seconds"),
        index.drop(columns="seconds").assign(source_sha256=["0", "changed", "b"]),
        check_dtype=False,
    )

    first = (out / "index.parquet").read_bytes()
    normalize_cohort(images, root, params, out)
    assert (out / "index.parquet").read_bytes() == first, "no clock time may stand in the index"

    fewer = normalize_cohort(images.iloc[:1], root, params, out)
    assert len(fewer) == 1
    assert not (out / volumes[1]).exists()
    assert [path.name for path in (out / "pictures").iterdir()] == ["img0.jpg"]


def test_inputs_for_a_command_line(tmp_path: Path, params: Normalize) -> None:
    head: Head = make_head(posed((5, 0, 2), (1, 2, 3)), noise=10)
    image = nibabel.Nifti1Image(head.volume.data.astype(np.int16), head.volume.affine)
    image.header["descrip"] = b"Doe^Jane 1950-01-01"
    nibabel.save(image, tmp_path / "head.nii.gz")
    (tmp_path / "bad.nii").write_bytes(b"x")
    index = normalize_inputs([tmp_path / "head.nii.gz", tmp_path / "bad.nii"], params, tmp_path / "out")
    assert list(index["verdict"]) == ["accepted", "quarantined"]
    written = nibabel.load(tmp_path / "out" / "head.nii.gz")
    assert written.shape == (48, 60, 48)
    assert np.allclose(written.affine, mni.target_grid([48, 60, 48], 3.25).affine)
    assert written.get_data_dtype() == np.uint8
    assert not re.search(rb"Doe|1950", bytes(written.header.binaryblock))
    assert (tmp_path / "out" / "head.png").stat().st_size > 5000


def _motions() -> list[np.ndarray]:
    """Headers that differ by up to 40 mm and 25 degrees, or by a patient position."""
    out = [np.eye(4)]
    for position, angles, shift in (
        (0, (18, 12, -12), (28, -28, 0)),
        (0, (-20, 8, 12), (0, 20, 34)),
        (7, (9, 9, 9), (9, 9, 9)),
    ):
        motion = np.eye(4)
        motion[:3, :3] = register.patient_positions()[position] @ register.rotation(*angles)
        motion[:3, 3] = shift
        out.append(motion)
    return out


def test_answer_does_not_depend_on_the_header() -> None:
    head = make_head(posed((9, 3, -5), (4, 6, 3)), zoom=3.0, shape=(76, 84, 76), noise=40, drift=0.3)
    found = [
        np.linalg.inv(m) @ register.register(head.volume.data, m @ head.volume.affine).transform for m in _motions()
    ]
    assert max(register.displacement_mm(found[0], other) for other in found[1:]) < 0.02


def test_answer_hardly_depends_on_contrast() -> None:
    """A bent grey scale (another sequence, another scanner) moved the answer by half a millimetre."""
    path = sorted(real("ixi_t1_2mm").glob("*.nii.gz"))[0]
    volume = read_volume(path.parent, path.name, "nifti")
    bright = np.percentile(volume.data, 99)
    found = [
        register.register((volume.data / bright) ** np.float32(bend), volume.affine).transform for bend in (0.7, 1, 1.4)
    ]
    assert register.displacement_mm(found[0], found[1]) < 0.1
    assert register.displacement_mm(found[2], found[1]) < 0.1


@pytest.mark.slow
def test_real_heads_answer_the_same_from_any_header() -> None:
    """The 60-head study of benchmarks/registration.py in small."""
    for path in sorted(real("ixi_t1_2mm").glob("*.nii.gz"))[::12]:
        volume = read_volume(path.parent, path.name, "nifti")
        found = [np.linalg.inv(m) @ register.register(volume.data, m @ volume.affine).transform for m in _motions()]
        assert max(register.displacement_mm(found[0], other) for other in found[1:]) < 0.1


def test_real_head_is_normalized(params: Normalize) -> None:
    path = sorted(real("ixi_t1_2mm").glob("*.nii.gz"))[0]
    result = normalize_volume(read_volume(path.parent, path.name, "nifti"), params)
    assert (result.verdict, result.method) == ("accepted", "gauss-newton")
    assert result.metrics["local_correlation"] > 0.35
    assert result.array is not None
    template = mni.on_grid(Grid(result.array.shape, result.affine))
    assert not (result.array > 0)[template.distance > 11].any()


def test_real_stripped_mni_head_is_recognised(params: Normalize) -> None:
    path = sorted(real("oasis1_mni_2mm").glob("*.nii.gz"))[0]
    result = normalize_volume(read_volume(path.parent, path.name, "nifti"), params)
    assert (result.verdict, result.method) == ("accepted", "already-normalized")


@pytest.mark.slow
def test_real_dicom_head_and_fruit(params: Normalize) -> None:
    head = real("dicom", "studyforrest_t1_dicom.zip")
    assert normalize_volume(read_volume(head.parent, head.name), params).verdict == "accepted"
    fruit = real("dicom", "ge_hdxt_not_a_brain_dicom.zip")
    result = normalize_volume(read_volume(fruit.parent, fruit.name), params)
    assert (result.verdict, result.reason) == ("quarantined", "QC_FAIL")


def test_thorough_search_finds_the_same_place() -> None:
    """The fallback may cost more, but where the fast search succeeds both give one answer."""
    head = make_head(posed((6, 2, -3), (3, 4, 2)), zoom=4.0, shape=(60, 64, 60), noise=20)
    fast = register.register(head.volume.data, head.volume.affine)
    thorough = fallback.register_thoroughly(head.volume.data, head.volume.affine)
    assert thorough.method == "thorough"
    assert register.displacement_mm(fast.transform, thorough.transform) < 0.1


def test_an_empty_image_ends_in_an_answer() -> None:
    empty = np.zeros((40, 40, 40), np.float32)
    found = register.register(empty, np.diag([4.0, 4.0, 4.0, 1.0]))
    assert np.isfinite(found.transform).all()
    assert found.correlation < 0.1


@pytest.mark.parametrize("moved", [False, True])
def test_a_lobe_cut_off_is_seen(params: Normalize, moved: bool) -> None:
    """Another program's brain extraction sometimes takes the frontal lobes along."""
    pose = posed((12, 10, -8), (10, 0, 8)) if moved else np.eye(4)
    head = make_head(pose, scalp=False, shape=(100, 120, 100)).volume
    whole = normalize_volume(head, params)
    assert (whole.verdict, whole.method == "gauss-newton") == ("accepted", moved)
    ahead = head.affine[1, 1] * np.arange(head.data.shape[1]) + head.affine[1, 3] - pose[1, 3]
    data = head.data * (ahead < 42.0)[None, :, None]
    cut = normalize_volume(dataclasses.replace(head, data=data.astype(np.float32)), params)
    assert cut.verdict == "quarantined"
    assert re.search("of the brain is blank", cut.detail)


def test_grids_of_mni_space_are_known() -> None:
    fsl = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    icbm = np.array([[1.0, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1]])
    assert normalize.on_mni_grid((91, 109, 91), fsl)
    assert normalize.on_mni_grid((182, 218, 182), fsl @ np.diag([0.5, 0.5, 0.5, 1]))
    assert normalize.on_mni_grid((197, 233, 189), icbm)
    elsewhere = fsl.copy()
    elsewhere[2, 3] += 10
    assert not normalize.on_mni_grid((91, 109, 91), elsewhere)
    tilted = fsl.copy()
    tilted[:3, :3] = register.rotation(5, 0, 0) @ fsl[:3, :3]
    assert not normalize.on_mni_grid((91, 109, 91), tilted)


def test_a_real_copy_on_the_mni_grid_stays_as_it_came(params: Normalize) -> None:
    """Tilted by another program, 8 mm beside this package's own answer."""
    path = next(real("oasis1_mni_2mm").glob("OAS1_0019_MR1*.nii.gz"))
    result = normalize_volume(read_volume(path.parent, path.name), params)
    assert (result.method, result.verdict) == ("already-normalized", "accepted")
