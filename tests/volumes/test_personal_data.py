"""Names, dates, ids and free text that are planted in every corner of the input are found in no output."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from dicom_series import write_series
from volume_heads import make_head, posed

from medalign3d import cli
from medalign3d.cohorts.images import inspect_image
from medalign3d.errors import InputError, VolumeError
from medalign3d.params import Normalize
from medalign3d.volumes import normalize, store
from medalign3d.volumes.export import export_cohort
from medalign3d.volumes.normalize import normalize_cohort, normalize_inputs

NAME = "Zzcanary^Jane"
BORN = "19010203"
NUMBER = "QX4455667"
WORDS = "left-handed baker"
PLANTED = re.compile(rb"(?i)zzcanary|1901.?02.?03|0?3\.0?2\.1901|qx4455667|left.?handed.baker")
PLACE = "Zzcanary_Jane_19010203"
"""Part of folder and file names."""


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what they hold where they are packed."""
    raw = path.read_bytes()
    yield raw
    yield raw.replace(b"\0", b"")  # text of two bytes a letter
    if path.suffix == ".gz":
        yield gzip.decompress(raw)
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr(table.schema.metadata).encode()
        yield table.to_pandas().to_csv().encode()


def leaks(folder: Path) -> list[str]:
    """Files below a folder whose name or content shows what was planted."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    named = [path.name for path in folder.rglob("*") if PLANTED.search(path.name.encode())]
    return named + [path.name for path in files if any(PLANTED.search(content) for content in contents(path))]


def nifti(data: np.ndarray, affine: np.ndarray, kind: type = nibabel.Nifti1Image) -> Any:
    """An image whose header says all that it can hold."""
    image = kind(data, affine)
    header = image.header
    header["descrip"] = f"{NAME} {BORN} {WORDS}"[:79].encode()
    header["aux_file"] = NAME.encode()
    header["db_name"] = NAME[:17].encode()
    if kind is nibabel.AnalyzeImage:
        for field, text in (("patient_id", NUMBER), ("generated", NAME), ("scannum", NUMBER), ("exp_date", BORN)):
            if field in header:
                header[field] = text[: header[field].dtype.itemsize].encode()
        return image
    header["intent_name"] = NAME.encode()
    for code in ("comment", "afni"):
        header.extensions.append(nibabel.nifti1.Nifti1Extension(code, f"{NAME} {BORN} {NUMBER} {WORDS}".encode()))
    return image


def tags(dataset: Any, _: int) -> None:
    """Every tag of a DICOM file that is known to name people, and private ones."""
    for keyword in (
        "PatientName", "PatientID", "OtherPatientIDs", "PatientComments", "PatientAddress", "ReferringPhysicianName",
        "PerformingPhysicianName", "OperatorsName", "InstitutionName", "InstitutionAddress", "StationName", "StudyID",
        "AccessionNumber", "StudyDescription", "ProtocolName", "ImageComments", "DeviceSerialNumber",
        "SequenceName", "ReceiveCoilName", "AdditionalPatientHistory", "Occupation", "DerivationDescription",
    ):  # fmt: skip
        setattr(dataset, keyword, (NUMBER if "ID" in keyword or "Number" in keyword else NAME)[:16])
    for keyword in ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(dataset, keyword, BORN)
    dataset.SeriesDescription = f"MPRAGE {NAME}"
    block = dataset.private_block(0x0029, f"SIEMENS {NAME}"[:16], create=True)
    block.add_new(0x10, "OB", f"{NAME} {BORN} {WORDS} ".encode())
    dataset.preamble = f"{NAME} {BORN}".ljust(128).encode()
    dataset.file_meta.SourceApplicationEntityTitle = NUMBER


def misbehave(task: normalize._Task) -> dict[str, Any]:
    """A worker's function that does to some images what libraries may do."""
    what = task.image_id
    path = Path(task.root) / task.source_path
    if what == "raises":
        raise RuntimeError(f"cannot read {path} of {NAME}, born {BORN}, {WORDS}")
    if what == "raises-missing":
        (path / "there").read_bytes()
    if what == "explains":
        raise InputError("a file cannot be used", where=path, found=NAME, remedy=WORDS) from ValueError(NAME)
    if what == "crashes":
        os._exit(7)
    if what == "overdue":
        time.sleep(600)
    if what == "memory":
        np.ones(1 << 36, np.uint8)
    return normalize._normalize_one(task)


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray]:
    volume = make_head(posed((6, -4, 5), (4, -6, 3)), zoom=2.0, noise=10).volume
    return np.clip(volume.data, 0, None).astype(np.int16), volume.affine


@pytest.fixture(scope="module")
def cohort(head: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Images of all formats, good and bad, below folders that name a person; their table."""
    root = tmp_path_factory.mktemp("raw")
    data, affine = head
    folder = root / PLACE / f"born {BORN}"
    folder.mkdir(parents=True)
    rows: list[tuple[str, str, str]] = []

    def add(image_id: str, path: Path | str, kind: str = "nifti") -> Path:
        relative = path if isinstance(path, str) else str(path.relative_to(root))
        rows.append((image_id, relative, kind))
        return root / relative.split("!")[0]

    nibabel.save(nifti(data, affine), add("good", folder / f"{PLACE}.nii.gz"))
    nibabel.save(nifti(data, affine, nibabel.AnalyzeImage), folder / f"{PLACE}_a.hdr")
    add("analyze", folder / f"{PLACE}_a.hdr", "analyze")
    nibabel.save(nifti(data, affine, nibabel.Nifti1Pair), folder / f"{PLACE}_p.nifti.hdr")
    add("pair", folder / f"{PLACE}_p.nifti.hdr", "nifti_pair")
    matrix = affine @ np.array([[1, 0, 0, 0], [0, -1, 0, data.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_series(folder / "series", data[:, ::-1], matrix, change=tags, prefix=PLACE)
    for path in (folder / "series").iterdir():  # dates that are none: libraries warn of them, and quote them
        path.write_bytes(path.read_bytes().replace(b"DA\x08\x00" + BORN.encode(), b"DA\x08\x00Zzcanary"))
    add("dicom", folder / "series", "dicom")
    with zipfile.ZipFile(folder / f"{PLACE}.zip", "w") as bundle:
        bundle.comment = NAME.encode()
        for path in (folder / "series").iterdir():
            bundle.write(path, f"{PLACE}/{path.name}")
    add("packed", f"{(folder / f'{PLACE}.zip').relative_to(root)}!{PLACE}", "dicom")
    # Bad ones: refused by reading, by the gate, by a worker's end.
    whole = (folder / f"{PLACE}.nii.gz").read_bytes()
    add("cut", folder / f"{PLACE}_cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    add("text", folder / f"{PLACE}_text.nii").write_text(f"{NAME} {BORN}\n" * 40)
    add("gzip", folder / f"{PLACE}_gz.nii.gz").write_bytes(gzip.compress(f"{NAME} {BORN}".encode() * 40))
    damaged = bytearray(nifti(data, affine).to_bytes())
    damaged[40:56] = NAME.encode()[:12] + bytes(4)  # where the shape stands
    add("shape", folder / f"{PLACE}_shape.nii").write_bytes(bytes(damaged))
    shutil.copytree(folder / "series", folder / "gap")
    sorted((folder / "gap").iterdir())[7].unlink()
    add("gap", folder / "gap", "dicom")
    shutil.copytree(folder / "series", folder / "junk")
    sorted((folder / "junk").iterdir())[7].write_bytes(bytes(128) + b"DICM" + f"{NAME} {BORN}".encode() * 9)
    add("junk", folder / "junk", "dicom")
    add("zip", folder / f"{PLACE}_damaged.zip").write_bytes(b"PK\x03\x04" + NAME.encode() * 30)
    add("absent", folder / f"{PLACE}_absent.nii.gz")
    noise = np.random.default_rng(0).integers(1, 900, data.shape).astype(np.int16)
    nibabel.save(nifti(noise, affine), add("noise", folder / f"{PLACE}_noise.nii.gz"))
    for image_id in ("raises", "raises-missing", "explains", "crashes", "overdue", "memory"):
        add(image_id, folder / f"{PLACE}.nii.gz")
    table = pd.DataFrame(rows, columns=["image_id", "source_path", "source_format"])
    table["data_sha256"] = table["image_id"]
    table["dataset"] = "IXI"
    table["native_subject_id"] = NAME
    for planted in (
        gzip.decompress(whole)[:348],
        gzip.decompress(whole)[348:900],
        (folder / f"{PLACE}_a.hdr").read_bytes(),
    ):
        assert PLANTED.search(planted), "the planted words are there to be found"
    assert PLANTED.search(next((folder / "series").iterdir()).read_bytes())
    return root, table


@pytest.mark.slow
def test_no_output_of_normalization_names_a_person(
    cohort: tuple[Path, pd.DataFrame],
    params: Normalize,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root, images = cohort
    monkeypatch.setattr(normalize, "_normalize_one", misbehave)
    folders = tmp_path / "store", tmp_path / "work"
    patient = params.model_copy(update={"time_limit_seconds": 200.0, "workers": 2})
    normalize_cohort(images[images["image_id"] != "overdue"], root, patient, *folders)
    hasty = params.model_copy(update={"time_limit_seconds": 8.0, "workers": 2})
    index = normalize_cohort(images, root, hasty, *folders).set_index("image_id")
    assert list(index.index[index["verdict"] == "accepted"]) == ["good", "analyze", "pair", "dicom", "packed"]
    causes = index["detail"].str.split(":").str[0].to_dict()
    assert [causes[i] for i in ("raises", "raises-missing", "explains", "crashes", "overdue", "memory")] == [
        "failed", "failed", "failed", "crashed", "overdue", "memory"
    ]  # fmt: skip
    assert index["reason"]["noise"] == "QC_FAIL"
    # The kind of an unforeseen error and its place in the code are told, and nothing else of it.
    assert re.fullmatch(r"failed: RuntimeError \(test_personal_data\.py:\d+\)", index["detail"]["raises"])
    for row in index.reset_index().to_dict("records"):
        assert not PLANTED.search(str(row).encode()), row["image_id"]
    assert leaks(tmp_path) == []
    export_cohort(tmp_path / "store", tmp_path / "export", workers=1)
    assert len(list((tmp_path / "export").glob("*.nii.gz"))) == 5
    assert leaks(tmp_path) == []
    # Going on with what is there reads the journal back.
    normalize_cohort(images.iloc[:5], root, patient, *folders)
    (tmp_path / "store" / index["path"]["good"]).write_bytes(b"damaged")
    with pytest.raises(Exception, match="cannot be exported") as caught:
        shutil.rmtree(tmp_path / "export")
        export_cohort(tmp_path / "store", tmp_path / "export", workers=1)
    said = "".join(capfd.readouterr()) + str(caught.value)
    assert f"normalize: {len(images) - 1}/{len(images) - 1}" in said
    assert not PLANTED.search(said.encode()), said
    assert store.load_index(tmp_path / "store")["image_id"].tolist() == images["image_id"].tolist()[:5]


def test_single_inputs_tell_no_more_than_their_names(
    cohort: tuple[Path, pd.DataFrame], params: Normalize, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A person at a command line names the files, and outputs are named after them; headers stay behind."""
    root, images = cohort
    chosen = images[images["image_id"].isin(["good", "text", "gap"])]
    for row in chosen.itertuples():
        target = tmp_path / f"{row.image_id}{'.nii.gz' if row.image_id == 'good' else ''}"
        source = root / row.source_path
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (tmp_path / "text").rename(tmp_path / "text.nii")
    inputs = [tmp_path / name for name in ("good.nii.gz", "text.nii", "gap")]
    index = normalize_inputs(inputs, params, tmp_path / "out")
    assert list(index["verdict"]) == ["accepted", "quarantined", "quarantined"]
    assert leaks(tmp_path / "out") == []
    assert not PLANTED.search("".join(capfd.readouterr()).encode())


def test_ingest_says_of_a_bad_image_what_it_is_and_not_whose(cohort: tuple[Path, pd.DataFrame]) -> None:
    root, images = cohort
    for row in images.itertuples():
        path = root / row.source_path
        if "!" in row.source_path:
            continue
        try:
            said = str(inspect_image(path))
        except VolumeError as error:
            said = f"{error.what} {error.found} {error.expected} {error.remedy} {error.reason}"
        assert not PLANTED.search(said.encode()), row.image_id


PATH_COLUMNS = {"source_path", "source_file", "path", "file", "native_image_key", "key_json"}
"""Where ingest's tables, which are never shared, say where a record comes from."""


def test_tables_of_ingest_hold_no_free_text(
    head: tuple[np.ndarray, np.ndarray],
    params_text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Cells that nothing asks for, cells that are refused, headers and folders; tables keep a source's path alone."""
    data, affine = head
    root = tmp_path / "raw"
    for number, name in enumerate(("IXI002-Guys-0828-T1", "IXI012-HH-1211-T1", "IXI013-HH-1212-T1", "IXI014-HH-9-T1")):
        place = root / PLACE / f"{name}.nii.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nifti(np.roll(data, number, 0), affine), place)
    place.write_bytes(place.read_bytes()[:5000])
    lines = [
        "IXI_ID,SEX,AGE,DOB,NAME,REMARKS,HEIGHT",
        f"IXI002,1,35.8,1901-02-03,{NAME},{WORDS},{NUMBER}",
        f"IXI012,{NAME},{WORDS},1901-02-03,{NAME},{WORDS},170",
        f'IXI013,2,03.02.1901,1901-02-03,{NAME},"{WORDS}, {BORN}",170',
        f"IXI014,1,44.1,1901-02-03,{NAME},{WORDS},170",
        f"{NAME},1,44.1,1901-02-03,{NAME},{WORDS},170",
    ]
    (root / "participants.csv").write_text("\n".join(lines) + "\n")
    (root / f"{PLACE} letter.csv").write_text(f"{NAME},{WORDS}\n{BORN},{NUMBER}\n")
    (tmp_path / "params.yaml").write_text(params_text)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ingest", "IXI", str(root), "--out", str(tmp_path / "out")]) == cli.EXIT_QUARANTINED
    tables = {path.stem: pd.read_parquet(path) for path in (tmp_path / "out").glob("*.parquet")}
    assert len(tables["images"]) >= 1
    for name, table in tables.items():
        for column in table:
            if column not in PATH_COLUMNS:
                shown = table[column].astype(str).str.cat(sep="\n")
                assert not PLANTED.search(shown.encode()), f"{name}.{column}: {shown}"
    paths = {
        c for table in tables.values() for c in table if PLANTED.search(table[c].astype(str).str.cat(sep=" ").encode())
    }
    assert paths <= PATH_COLUMNS
    assert not PLANTED.search("".join(capfd.readouterr()).encode())
