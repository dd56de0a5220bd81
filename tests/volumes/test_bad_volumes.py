"""Every kind of bad volume that comes to mind, and the right verdict on it: of ingest, of reading, of normalization."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_series import write_series
from numpy.typing import NDArray
from scipy import ndimage
from volume_heads import Head, make_head, posed, real

from medalign3d.cohorts.images import inspect_image
from medalign3d.errors import VolumeError
from medalign3d.params import Normalize
from medalign3d.volumes import register
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Grid, resample
from medalign3d.volumes.normalize import normalize_volume
from medalign3d.volumes.read import read_volume

Data = NDArray[Any]
POSE = posed((6.0, -4.0, 5.0), (4.0, -6.0, 3.0))


@cache
def head() -> Head:
    return make_head(POSE, zoom=1.9, shape=(96, 112, 98), noise=15)


def data() -> Data:
    return np.round(head().volume.data).astype(np.int16)


def affine() -> NDArray[np.float64]:
    return head().volume.affine


def brain() -> NDArray[np.bool_]:
    template = mni.at_zoom(2.0, 24.0)
    grid = Grid(data().shape, affine())  # type: ignore[arg-type]
    inside = (template.brain > 0.5).astype(np.float32)
    return resample(inside, template.grid.affine, grid, np.linalg.inv(POSE)) > 0.5


def heights() -> Data:
    """z in millimetres along the third axis."""
    return (affine()[2, 2] * np.arange(data().shape[2]) + affine()[2, 3])[None, None, :]


def save(folder: Path, voxels: Data, matrix: NDArray[np.float64] | None = None, name: str = "a.nii") -> str:
    nibabel.save(nibabel.Nifti1Image(voxels, affine() if matrix is None else matrix), folder / name)
    return name


def raw(folder: Path, change: Callable[[bytearray, Any], None], voxels: Data | None = None) -> str:
    """An uncompressed image whose bytes a case changes; the structured header is handed along to write fields."""
    image = nibabel.Nifti1Image(data() if voxels is None else voxels, affine())
    content = bytearray(image.to_bytes())
    header = np.frombuffer(content, dtype=nibabel.nifti1.header_dtype, count=1).copy()
    before = header.tobytes()
    change(content, header)
    if header.tobytes() != before:
        content[:348] = header.tobytes()
    (folder / "a.nii").write_bytes(bytes(content))
    return "a.nii"


def fields(folder: Path, **values: Any) -> str:
    def change(_: bytearray, header: Any) -> None:
        for name, value in values.items():
            header[name] = value

    return raw(folder, change)


def dicom(folder: Path, **options: Any) -> str:
    voxels = np.clip(data(), 0, None)[:, ::-1, ::-1]
    matrix = affine() @ np.array([[1, 0, 0, 0], [0, -1, 0, 111], [0, 0, -1, 97], [0, 0, 0, 1.0]])
    write_series(folder / "series", voxels, matrix, **options)
    return "series"


def sheared(degrees: float) -> tuple[Data, NDArray[np.float64]]:
    """The head scanned with a tilted gantry, and the affine that says so."""
    shear = np.eye(4)
    shear[1, 2] = np.tan(np.radians(degrees))
    # Slices as near to each other as the slanted step needs to stay within 2 mm.
    squeeze = np.diag([1.0, 1.0, np.cos(np.radians(degrees)), 1.0])
    matrix = shear @ affine() @ squeeze
    shape = (96, 112, int(98 / np.cos(np.radians(degrees))))
    matrix[:3, 3] += (
        affine()[:3, :3] @ (np.array(data().shape) / 2)
        + affine()[:3, 3]
        - (matrix[:3, :3] @ (np.array(shape) / 2) + matrix[:3, 3])
    )
    sampled = resample(head().volume.data, affine(), Grid(shape, matrix))
    return sampled.astype(np.int16), matrix


def rotated(degrees: float) -> NDArray[np.float64]:
    turn = np.eye(4)
    turn[:3, :3] = register.rotation(0.0, 0.0, degrees)
    return turn @ affine()


def contradicting_forms(folder: Path) -> str:
    image = nibabel.Nifti1Image(data(), affine())
    image.set_sform(affine(), 1)
    image.set_qform(rotated(90.0), 1)
    nibabel.save(image, folder / "a.nii")
    return "a.nii"


def mirrored_qform(folder: Path) -> str:
    image = nibabel.Nifti1Image(data(), affine())
    image.set_sform(affine(), 1)
    image.set_qform(affine() @ np.diag([-1.0, 1, 1, 1]), 1)
    nibabel.save(image, folder / "a.nii")
    return "a.nii"


def broken_sform_good_qform(folder: Path) -> str:
    image = nibabel.Nifti1Image(data(), affine())
    image.set_qform(affine(), 1)
    nibabel.save(image, folder / "a.nii")
    content = bytearray((folder / "a.nii").read_bytes())
    content[254:256] = (1).to_bytes(2, "little")  # sform_code
    content[280:328] = bytes(48)
    (folder / "a.nii").write_bytes(bytes(content))
    return "a.nii"


def cut(folder: Path, share: float, compressed: bool) -> str:
    name = save(folder, data(), name="a.nii.gz" if compressed else "a.nii")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    return name


def flipped_bits(folder: Path) -> str:
    name = save(folder, data(), name="a.nii.gz")
    content = bytearray((folder / name).read_bytes())
    for place in range(len(content) // 3, len(content), len(content) // 5):
        content[place] ^= 0x10
    (folder / name).write_bytes(bytes(content))
    return name


def garbage_behind(folder: Path) -> str:
    name = save(folder, data(), name="a.nii.gz")
    with (folder / name).open("ab") as stream:
        stream.write(b"not gzip data")
    return name


def changed_last_member(folder: Path) -> str:
    """Several gzip members in a row are one file; the last one is damaged."""
    whole = nibabel.Nifti1Image(data(), affine()).to_bytes()
    half = len(whole) // 2
    last = bytearray(gzip.compress(whole[half:]))
    last[-6] ^= 1  # its checksum
    (folder / "a.nii.gz").write_bytes(gzip.compress(whole[:half]) + bytes(last))
    return "a.nii.gz"


def several_members(folder: Path) -> str:
    whole = nibabel.Nifti1Image(data(), affine()).to_bytes()
    half = len(whole) // 2
    (folder / "a.nii.gz").write_bytes(gzip.compress(whole[:half]) + gzip.compress(whole[half:]) + bytes(512))
    return "a.nii.gz"


def hot(folder: Path, value: float) -> str:
    voxels = head().volume.data.copy()
    voxels.ravel()[np.random.default_rng(1).integers(0, voxels.size, 20)] = value
    return save(folder, voxels)


def lonely_half_of_a_pair(folder: Path) -> str:
    nibabel.save(nibabel.Nifti1Pair(data(), affine()), folder / "a.hdr")
    (folder / "a.img").unlink()
    return "a.hdr"


def double_slice(folder: Path) -> str:
    paths = dicom(folder)
    first = sorted((folder / "series").iterdir())[40]
    shutil.copy(first, folder / "series" / "copy.dcm")
    return paths


def mixed_series(folder: Path) -> str:
    """The T1 between a localiser and a T2 of the same session."""
    flat = np.clip(data(), 0, None)[:, ::-1, 40:43]
    write_series(folder / "series", flat, affine(), series="loc", description="localizer", prefix="loc")
    other = np.clip(data(), 0, None)[:, ::-1, :]
    write_series(folder / "series", other, affine(), series="t2", description="T2_SPACE", prefix="t2")
    return dicom(folder)


def two_t1_series(folder: Path) -> str:
    write_series(folder / "series", np.clip(data(), 0, None), affine(), series="again", prefix="again")
    return dicom(folder)


def archive_with_two_images(folder: Path) -> str:
    save(folder, data())
    with zipfile.ZipFile(folder / "a.zip", "w") as bundle:
        bundle.write(folder / "a.nii", "in/a.nii")
        bundle.write(folder / "a.nii", "in/b.nii")
    return "a.zip"


def colours(dataset: Any, _: int) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"


def turned_slices(dataset: Any, number: int) -> None:
    if number % 3 == 0:
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


@dataclass(frozen=True)
class Kind:
    """A kind of volume and the verdict that is right for it.

    ``reading`` is the reason of ingest and of reading ("" when both take it), ``final`` that of normalization ("" when
    it is accepted, None when it is not looked at here), ``remark`` a word of the remark that an odd one gets.
    """

    name: str
    make: Callable[[Path], str]
    reading: str = ""
    final: str | None = None
    remark: str = ""


def read_kinds() -> list[Kind]:
    """Kinds that are settled by reading."""
    nothing = np.zeros((64, 64, 64), np.int16)
    return [
        Kind("NaN", lambda f: save(f, np.where(data() == 100, np.nan, data()).astype(np.float32)), "IMAGE_EMPTY"),
        Kind("all NaN", lambda f: save(f, np.full((64, 64, 64), np.nan, np.float32)), "IMAGE_EMPTY"),
        Kind("Inf", lambda f: save(f, np.where(data() == 100, np.inf, data()).astype(np.float32)), "IMAGE_EMPTY"),
        Kind("beyond 32 bits", lambda f: save(f, data().astype(np.float64) * 1e300), "IMAGE_EMPTY"),
        Kind("zero", lambda f: save(f, nothing), "IMAGE_EMPTY"),
        Kind("constant", lambda f: save(f, nothing + 7), "IMAGE_EMPTY"),
        Kind("scaled to nothing", lambda f: fields(f, scl_slope=1e-30, scl_inter=1000.0), "IMAGE_EMPTY"),
        Kind("4-D", lambda f: save(f, np.stack([data()[:64, :64, :64]] * 2, -1)), "IMAGE_NOT_3D"),
        Kind("4-D of one frame", lambda f: save(f, data()[..., None])),
        Kind("RGB", lambda f: save(f, np.zeros((64, 64, 64), [(c, "u1") for c in "RGB"])), "IMAGE_NOT_3D"),
        Kind("complex", lambda f: save(f, data()[:64, :64, :64].astype(np.complex64)), "IMAGE_NOT_3D"),
        Kind("one slice", lambda f: save(f, data()[:, :, 50:51]), "IMAGE_NOT_3D"),
        Kind("a slab", lambda f: save(f, data()[:, :, 30:60]), "IMAGE_TOO_THICK"),
        Kind("thick slices", lambda f: save(f, data(), affine() @ np.diag([1, 1, 2.5, 1])), "IMAGE_TOO_THICK"),
        Kind("tiny voxels", lambda f: save(f, data(), affine() @ np.diag([1, 1, 0.1, 1])), "IMAGE_TOO_THICK"),
        Kind("singular affine", lambda f: fields(f, srow_z=[0, 0, 0, 0]), "IMAGE_BAD_AFFINE"),
        Kind("affine that is no number", lambda f: fields(f, srow_x=[np.nan, 0, 0, 0]), "IMAGE_BAD_AFFINE"),
        Kind("strongly sheared affine", lambda f: save(f, *sheared(60.0)), "IMAGE_BAD_AFFINE"),
        Kind("metres", lambda f: save(f, data(), np.diag([0.001, 0.001, 0.001, 1]) @ affine()), "IMAGE_BAD_AFFINE"),
        Kind("micrometres", lambda f: save(f, data(), np.diag([1e3, 1e3, 1e3, 1]) @ affine()), "IMAGE_BAD_AFFINE"),
        Kind("millimetres called metres", lambda f: fields(f, xyzt_units=1), remark="unit"),
        Kind(
            "identity that was never filled in",
            lambda f: fields(f, srow_x=[1, 0, 0, 0], srow_y=[0, 1, 0, 0], srow_z=[0, 0, 1, 0]),
            "IMAGE_BAD_AFFINE",
        ),
        Kind("broken sform, good qform", broken_sform_good_qform, remark="qform is used"),
        Kind("header without orientation", lambda f: fields(f, sform_code=0, qform_code=0)),
        Kind("slope of zero", lambda f: fields(f, scl_slope=0.0, scl_inter=9.0)),
        Kind("slope that is no number", lambda f: fields(f, scl_slope=np.nan, scl_inter=np.nan)),
        Kind("intercept that is no number", lambda f: fields(f, scl_slope=2.0, scl_inter=np.nan), "IMAGE_UNREADABLE"),
        Kind("empty file", lambda f: ((f / "a.nii").write_bytes(b"") and "") or "a.nii", "IMAGE_UNREADABLE"),
        Kind("cut .nii", lambda f: cut(f, 0.7, False), "IMAGE_TRUNCATED"),
        Kind("cut .nii.gz", lambda f: cut(f, 0.7, True), "IMAGE_TRUNCATED"),
        Kind("cut in the checksum", lambda f: cut(f, 0.9999999, True), "IMAGE_TRUNCATED"),
        Kind("flipped bits", flipped_bits, "IMAGE_UNREADABLE"),
        Kind("garbage behind the gzip data", garbage_behind, "IMAGE_UNREADABLE"),
        Kind("damaged second gzip member", changed_last_member, "IMAGE_UNREADABLE"),
        Kind("two gzip members and padding", several_members),
        Kind("text", lambda f: ((f / "a.nii").write_text("no image\n" * 99) and "a.nii") or "", "IMAGE_UNREADABLE"),
        Kind(
            "size beyond all bounds", lambda f: fields(f, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "IMAGE_UNREADABLE"
        ),
        Kind("negative size", lambda f: fields(f, dim=[3, -5, 112, 98, 1, 1, 1, 1]), "IMAGE_UNREADABLE"),
        Kind("half a pair", lonely_half_of_a_pair, "IMAGE_WITHOUT_FILE"),
        Kind("archive of two images", archive_with_two_images, "AMBIGUOUS_FILE"),
        Kind("missing DICOM slice", lambda f: dicom(f, skip=[40]), "IMAGE_TRUNCATED"),
        Kind("doubled DICOM slice", double_slice, "AMBIGUOUS_FILE"),
        Kind("two T1 series in a folder", two_t1_series, "AMBIGUOUS_FILE"),
        Kind("DICOM in colours", lambda f: dicom(f, change=colours), "IMAGE_NOT_3D"),
        Kind("DICOM slices that cross", lambda f: dicom(f, change=turned_slices), "IMAGE_NOT_3D"),
    ]


def head_kinds() -> list[Kind]:
    """Kinds that only a look at the voxels settles, so that reading takes them."""
    rng = np.random.default_rng(2)

    def ellipsoid(shaded: bool = False) -> Data:
        axes = [np.linspace(-1.3, 1.3, n) for n in data().shape]
        radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
        # Bright in the middle and darker outwards, as tissue and fluid lie in a head.
        inside = 900 * (radius < 1) * ((1.2 - radius) if shaded else 1)
        return (inside + rng.normal(30, 8, radius.shape)).astype(np.int16)

    def two_small_heads() -> Data:
        small = ndimage.zoom(head().volume.data, 0.5, order=1)
        both = np.zeros(data().shape, np.int16)
        for start in (0, 48):
            both[start : start + small.shape[0], 28 : 28 + small.shape[1], 24 : 24 + small.shape[2]] = small
        return both

    def wrapped(kind: type, as_kind: type, top: float) -> Data:
        scaled = head().volume.data * (top / np.percentile(head().volume.data, 99.9))
        return np.clip(scaled, 0, np.iinfo(kind).max).astype(kind).view(as_kind)

    return [
        Kind("good", lambda f: save(f, data()), final=""),
        Kind("left-handed", lambda f: save(f, data()[::-1], affine() @ _flip(0)), final=""),
        Kind("upside down in the header", lambda f: save(f, data()[:, ::-1, ::-1]), final=""),
        Kind("gantry tilt of 20 degrees", lambda f: save(f, *sheared(20.0)), final=""),
        Kind("tilt that the header does not know", lambda f: save(f, sheared(15.0)[0]), final=""),
        Kind("qform turned against sform", contradicting_forms, final="", remark="90 degrees"),
        Kind("qform mirrors sform", mirrored_qform, final="", remark="which side is left"),
        Kind("hot voxels", lambda f: hot(f, 1e6), final=""),
        Kind("cold voxels", lambda f: hot(f, -1e6), final=""),
        Kind("air of -1024", lambda f: save(f, np.where(data() < 60, -1024, data()).astype(np.int16)), final=""),
        Kind("face removed", lambda f: save(f, _without_face()), final=""),
        Kind("stripped, not in MNI space", lambda f: save(f, data() * brain()), final=""),
        Kind("T1 among other series", mixed_series, final=""),
        Kind("noise", lambda f: save(f, np.abs(rng.normal(0, 100, data().shape)).astype(np.int16)), final="QC_FAIL"),
        Kind("an organ that is no head", lambda f: save(f, ellipsoid()), final="QC_FAIL"),
        Kind("a shaded organ that is no head", lambda f: save(f, ellipsoid(shaded=True)), final="QC_FAIL"),
        Kind("two small heads", lambda f: save(f, two_small_heads()), final="QC_FAIL"),
        Kind(
            "unsigned 16 bits read as signed", lambda f: save(f, wrapped(np.uint16, np.int16, 60_000)), final="QC_FAIL"
        ),
        Kind("unsigned 8 bits read as signed", lambda f: save(f, wrapped(np.uint8, np.int8, 200)), final="QC_FAIL"),
        Kind("half of the head blank", lambda f: save(f, _where_right(data())), final="QC_FAIL"),
        Kind("lower part blank", lambda f: save(f, data() * (heights() > -10).astype(np.int16)), final="QC_FAIL"),
        Kind("only the cerebellum", lambda f: save(f, data() * (heights() < -10).astype(np.int16)), final="QC_FAIL"),
        Kind("brain cut by the field of view", lambda f: _cut_field(f), final="QC_FAIL"),
        Kind("shuffled slices", lambda f: save(f, data()[:, :, rng.permutation(98)]), final="QC_FAIL"),
        Kind("half the size", lambda f: save(f, data(), np.diag([0.55, 0.55, 0.55, 1]) @ affine()), final="QC_FAIL"),
        Kind("mask", lambda f: save(f, (data() > 300).astype(np.uint8)), final="NOT_T1"),
        Kind(
            "segmentation",
            lambda f: save(f, np.digitize(data() * brain(), [1, 500, 800]).astype(np.uint8)),
            final="NOT_T1",
        ),
    ]


def _flip(axis: int) -> NDArray[np.float64]:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1.0, data().shape[axis] - 1
    return flip


def _without_face() -> Data:
    x, y, z = Grid(data().shape, affine()).coordinates()  # type: ignore[arg-type]
    return np.where((y > 40) & (z < 0) & (x == x), 0, data()).astype(np.int16)


def _where_right(voxels: Data) -> Data:
    return voxels * (np.arange(voxels.shape[0]) >= 48)[:, None, None].astype(np.int16)


def _cut_field(folder: Path) -> str:
    """The slab above the temporal lobes, finely sampled so that it has slices enough."""
    fine = affine() @ np.diag([1, 1, 0.5, 1])
    fine[:3, 3] = (affine() @ [0, 0, 56, 1])[:3]
    return save(folder, resample(head().volume.data, affine(), Grid((96, 112, 76), fine)).astype(np.int16), fine)


KINDS = read_kinds() + head_kinds()
IN_EVERY_RUN = {
    "left-handed", "gantry tilt of 20 degrees", "qform turned against sform", "stripped, not in MNI space",
    "half of the head blank", "mask",
}  # fmt: skip


def verdict(action: Callable[[], object]) -> tuple[str, str]:
    """The reason of a refusal and its message; both empty where there is none."""
    try:
        action()
    except VolumeError as error:
        return str(error.reason), str(error)
    return "", ""


def test_there_are_enough_kinds() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) > 60


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_ingest_and_reading_give_the_right_verdict(tmp_path: Path, kind: Kind) -> None:
    name = kind.make(tmp_path)
    found: dict[str, Any] = {}
    ingest = verdict(lambda: found.update(facts=inspect_image(tmp_path / name)))
    reading = verdict(lambda: found.update(volume=read_volume(tmp_path, name)))
    assert ingest == reading
    assert reading[0] == kind.reading
    assert str(tmp_path) not in reading[1]
    assert "." not in name or name not in reading[1]
    if not kind.reading:
        volume, facts = found["volume"], found["facts"]
        assert list(volume.data.shape) == facts["shape"]
        assert volume.affine_source == facts["affine_source"]
        if volume.source_format != "dicom":  # its rows are turned upwards
            assert volume.orientation == facts["orientation"]
        assert np.allclose(volume.zooms, facts["zooms"])
        assert np.isfinite(volume.data).all()
        assert kind.remark in "; ".join(volume.remarks)
        assert bool(kind.remark) == bool(volume.remarks)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, id=kind.name, marks=() if kind.name in IN_EVERY_RUN else pytest.mark.slow)
        for kind in head_kinds()
    ],
)
def test_normalization_gives_the_right_verdict(tmp_path: Path, kind: Kind, params: Normalize) -> None:
    volume = read_volume(tmp_path, kind.make(tmp_path))
    found: dict[str, Any] = {}
    refused, message = verdict(lambda: found.update(result=normalize_volume(volume, params)))
    result = found.get("result")
    assert (refused or result.reason) == kind.final, message or result.detail
    if kind.final == "":
        assert result.array is not None
        # Where the brain came to lie shows that nothing was mirrored, sheared or turned.
        template = mni.on_grid(Grid(result.array.shape, result.affine))  # type: ignore[arg-type]
        solid = result.array > 0
        overlap = 2 * (solid & (template.brain > 0.5)).sum() / (solid.sum() + (template.brain > 0.5).sum())
        assert overlap > 0.9
        if kind.name not in {"upside down in the header", "tilt that the header does not know"}:
            assert register.displacement_mm(result.transform, POSE) < 2.0


@pytest.mark.slow
def test_a_fruit_in_the_headers_of_a_t1_is_quarantined(params: Normalize) -> None:
    archive = real("dicom", "ge_hdxt_not_a_brain_dicom.zip")
    result = normalize_volume(read_volume(archive.parent, archive.name), params)
    assert (result.verdict, result.reason) == ("quarantined", "QC_FAIL")


@pytest.mark.slow
def test_a_real_dicom_head_is_accepted(params: Normalize) -> None:
    archive = real("dicom", "studyforrest_t1_dicom.zip")
    volume = read_volume(archive.parent, archive.name)
    assert volume.source_format == "dicom"
    assert normalize_volume(volume, params).verdict == "accepted"
