"""Archive export of a store as .nii.gz."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from medalign3d import cli, files
from medalign3d.errors import InputError, MedAlignError
from medalign3d.volumes import store
from medalign3d.volumes.export import INDEX_NAME, export_cohort

AFFINE = np.array([[2.0, 0, 0, -10], [0, 2.0, 0, -20], [0, 0, 2.0, -30], [0, 0, 0, 1]])


def make_store(folder: Path, count: int = 3, simulated: bool = True) -> list[np.ndarray]:
    arrays = [np.random.default_rng(n).integers(0, 255, (5, 6, 7)).astype(np.uint8) for n in range(count)]
    rows = [
        {"image_id": f"i{n}", "path": store.write(folder, a), "verdict": "accepted", "method": "gauss-newton"}
        for n, a in enumerate(arrays)
    ]
    rows.append({"image_id": "bad", "path": "", "verdict": "quarantined", "method": ""})
    metadata = {"simulated": str(simulated).lower(), "affine": " ".join(f"{v:.6g}" for v in AFFINE.ravel())}
    files.write_parquet(folder / store.INDEX_NAME, pd.DataFrame(rows), metadata)
    return arrays


def listed(out: Path) -> list[dict[str, str]]:
    with (out / INDEX_NAME).open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_volumes_are_what_the_store_holds(tmp_path: Path) -> None:
    arrays = make_store(tmp_path / "store")
    assert export_cohort(tmp_path / "store", tmp_path / "out", workers=2) == 3
    for number, array in enumerate(arrays):
        image = nibabel.load(tmp_path / "out" / f"i{number}.nii.gz")
        assert np.array_equal(np.asarray(image.dataobj), array)
        assert image.get_data_dtype() == np.uint8
        for form, code in (image.header.get_sform(coded=True), image.header.get_qform(coded=True)):
            assert code == 4
            assert np.allclose(form, AFFINE)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert bytes(image.header["descrip"]).startswith(b"SIMULATED")
    rows = listed(tmp_path / "out")
    assert [row["image_id"] for row in rows] == ["i0", "i1", "i2"]
    for row in rows:
        assert files.sha256_file(tmp_path / "out" / row["file"]) == row["sha256"]
    again = tmp_path / "again"
    export_cohort(tmp_path / "store", again, workers=1)
    assert (again / INDEX_NAME).read_bytes() == (tmp_path / "out" / INDEX_NAME).read_bytes()


def test_a_second_run_does_what_is_new(tmp_path: Path) -> None:
    make_store(tmp_path / "store", 3)
    out = tmp_path / "out"
    export_cohort(tmp_path / "store", out, workers=1)
    assert export_cohort(tmp_path / "store", out, workers=1) == 0
    (out / "i1.nii.gz").write_bytes(b"damaged")
    (out / "mine.nii.gz").write_bytes(b"somebody else's")
    assert export_cohort(tmp_path / "store", out, workers=1) == 1
    make_store(tmp_path / "store", 2)
    assert export_cohort(tmp_path / "store", out, workers=1) == 0
    assert sorted(p.name for p in out.iterdir()) == ["i0.nii.gz", "i1.nii.gz", INDEX_NAME, "mine.nii.gz"]


def test_damage_mixing_and_rights_are_errors(tmp_path: Path) -> None:
    make_store(tmp_path / "store", 3)
    out = tmp_path / "out"
    damaged = tmp_path / "store" / pd.read_parquet(tmp_path / "store" / store.INDEX_NAME)["path"][2]
    damaged.write_bytes(b"rotten")
    with pytest.raises(InputError, match="cannot be exported") as caught:
        export_cohort(tmp_path / "store", out, workers=1)
    assert "i2" in str(caught.value)
    assert [row["image_id"] for row in listed(out)] == ["i0", "i1"], "what was written is kept"
    make_store(tmp_path / "real", 1, simulated=False)
    with pytest.raises(InputError, match="never mixed"):
        export_cohort(tmp_path / "real", out, workers=1)
    (tmp_path / "file").touch()
    with pytest.raises(MedAlignError):
        export_cohort(tmp_path / "real", tmp_path / "file" / "below", workers=1)
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(MedAlignError, match="cannot be written"):
            export_cohort(tmp_path / "real", tmp_path / "closed", workers=1)


def test_command_line(tmp_path: Path, params_text: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(tmp_path / "data" / "volumes" / "OASIS", 1)
    options = [
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
        "--params",
        str(tmp_path / "params.yaml"),
    ]
    (tmp_path / "params.yaml").write_text(params_text)
    assert cli.main(["export-volumes", *options]) == 0
    assert "OASIS: 1 volumes written" in capsys.readouterr().out
    assert (tmp_path / "out" / "OASIS" / "i0.nii.gz").is_file()
    assert cli.main(["export-volumes", *options, "--cohort", "ADNI"]) == 1
