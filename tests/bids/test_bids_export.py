"""The whole way: native files -> tables -> a BIDS dataset that the official validator finds no error in."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_trees import contents, ingest, rows, run, searchable, simulate, together, validate

from medalign3d.cli import main
from medalign3d.errors import InputError, MedAlignError
from medalign3d.volumes.read import read_volume

COHORTS = ("ADNI", "NACC", "OASIS", "AIBL", "MIRIAD")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory, demo_params):
    """Each simulated cohort: folder of native files and harmonized images."""
    folder = tmp_path_factory.mktemp("cohorts")
    found = {}
    for cohort in COHORTS:
        raw = simulate(cohort, demo_params, folder / cohort)
        found[cohort] = (raw, ingest(cohort, raw, demo_params, folder / cohort / "tables"))
    return found


@pytest.fixture(scope="module")
def dataset(cohorts, tmp_path_factory):
    """All five cohorts in one dataset, every accepted image."""
    out = tmp_path_factory.mktemp("bids") / "out"
    source = together(source for _, source in cohorts.values())
    summary = run(out, source, everything=True, relative_dates=True, workers=2)
    assert summary.written == len(source.images)
    assert not summary.refused
    return out


def test_the_validator_finds_no_error(dataset, capsys):
    warnings = validate(dataset, "--max-rows", "-1")
    with capsys.disabled():
        print(f"\nwarnings of the BIDS validator: {dict(warnings)}")
    # What is left: acquisition parameters that the sources do not tell, and fields that name institutions.
    assert {code for code, _ in warnings} <= {"SIDECAR_KEY_RECOMMENDED", "JSON_KEY_RECOMMENDED"}


def test_voxels_and_places_are_those_of_the_sources(cohorts, dataset):
    formats = set()
    for cohort, (raw, source) in cohorts.items():
        for row in source.images.to_dict("records"):
            formats.add((row["source_format"], row["affine_source"], "!" in row["source_path"]))
            kind = "" if row["variant"] == "raw" else f"_acq-{row['variant']}"
            stem = f"{row['participant_id']}_{row['session_id']}{kind}_run-{row['run']:02d}_T1w"
            path = dataset / row["participant_id"] / row["session_id"] / "anat" / f"{stem}.nii.gz"
            image, original = nib.load(path), read_volume(raw, row["source_path"], row["source_format"])
            np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), original.data, err_msg=cohort)
            np.testing.assert_allclose(image.affine, original.affine, atol=1e-4)
            np.testing.assert_allclose(image.get_qform(), original.affine, atol=1e-3)
            assert image.get_data_dtype() == np.dtype(original.stored_dtype).newbyteorder("<")
            assert json.loads(path.with_name(f"{stem}.json").read_text())["Simulated"] is True
    assert {"dicom", "nifti", "nifti_pair", "analyze"} == {kind for kind, _, _ in formats}
    assert ("analyze", "assumed", False) in formats
    assert any(zipped for _, _, zipped in formats)


def test_tables_hold_the_harmonized_values(cohorts, dataset):
    people = {row["participant_id"]: row for row in rows(dataset / "participants.tsv")}
    for _, source in cohorts.values():
        for row in source.images[source.images["selected"]].to_dict("records"):
            participant, session = row["participant_id"], row["session_id"]
            assert people[participant]["sex"] == row["sex"]
            assert people[participant]["person_id"] == row["person_id"]
            table = {r["session_id"]: r for r in rows(dataset / participant / f"{participant}_sessions.tsv")}
            for name in ("mmse", "cdr_global", "dx3", "dx2"):
                if isinstance(row[name], (str, float)) and row[name] == row[name]:
                    expected = row[name] if isinstance(row[name], str) else f"{row[name]:g}"
                    assert table[session][name] == expected
            scans = rows(dataset / participant / session / f"{participant}_{session}_scans.tsv")
            assert row["image_id"] in {scan["image_id"] for scan in scans}
    described = json.loads((dataset / "participants.json").read_text())
    assert set(next(iter(people.values()))) <= {"participant_id", *described}


def test_simulated_people_are_called_simulated(dataset):
    assert "SIMULATED" in json.loads((dataset / "dataset_description.json").read_text())["Name"]
    assert "SIMULATED" in (dataset / "README.md").read_text()
    assert (dataset / "SYNTHETIC_DATA").exists()
    assert all(nib.load(p).header["descrip"].item() == b"SIMULATED" for p in dataset.glob("sub-*/ses-*/anat/*.nii.gz"))


def test_no_native_date_path_or_description_leaves(cohorts, dataset):
    everything = searchable(dataset)
    for _, source in cohorts.values():
        for row in source.images.to_dict("records"):
            secrets = [row["source_path"], row["native_image_key"] if len(row["native_image_key"]) > 6 else None]
            if hasattr(row["scan_date"], "isoformat"):
                date = row["scan_date"]
                secrets += [date.isoformat(), f"{date:%Y%m%d}", f"{date.month}/{date.day}/{date.year}"]
            for secret in secrets:
                assert secret is None or secret.encode() not in everything


def test_a_second_run_writes_nothing(cohorts, dataset):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in dataset.rglob("*") if p.is_file()}
    for _, source in cohorts.values():
        summary = run(dataset, source, everything=True, relative_dates=True)
        assert (summary.written, summary.up_to_date) == (0, len(source.images))
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in dataset.rglob("*") if p.is_file()} == before


def test_another_run_gives_the_same_bytes_in_any_order(cohorts, dataset, tmp_path):
    for part in (("MIRIAD", "OASIS"), ("AIBL", "NACC", "ADNI")):
        source = together(cohorts[cohort][1] for cohort in part)
        run(tmp_path / "again", source, everything=True, relative_dates=True, workers=1)
    one, two = contents(dataset), contents(tmp_path / "again")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_selected_images_first_and_the_rest_later(cohorts, tmp_path):
    source = cohorts["MIRIAD"][1]
    summary = run(tmp_path / "a", source)
    assert summary.written == int(source.images["selected"].sum()) < len(source.images)
    validate(tmp_path / "a")
    first = contents(tmp_path / "a")
    assert run(tmp_path / "a", source, everything=True).written == len(source.images) - summary.written
    after = contents(tmp_path / "a")
    images = [name for name in first if name.endswith((".nii.gz", "T1w.json"))]
    assert all(after[name] == first[name] for name in images)
    run(tmp_path / "b", source, everything=True)
    assert after == contents(tmp_path / "b")


def test_what_others_put_there_stays(cohorts, tmp_path):
    out = tmp_path / "out"
    source = cohorts["OASIS"][1]
    run(out, source)
    (out / "CHANGES").write_text("1.0.0 2026-01-01\n  - first\n")
    (out / "README.md").write_text("My own words about this dataset.\n" * 10)
    (out / ".bidsignore").write_text((out / ".bidsignore").read_text() + "extra/\n")
    table = (out / "participants.tsv").read_text().splitlines()
    mine = [
        table[0] + "\tmood",
        *(f"{line}\tgood" for line in table[1:]),
        "sub-99" + "\tn/a" * (table[0].count("\t")) + "\tbad",
    ]
    (out / "participants.tsv").write_text("\n".join(mine) + "\n")
    row = source.images.iloc[0]
    scan = (
        out
        / row["participant_id"]
        / row["session_id"]
        / "anat"
        / f"{row['participant_id']}_{row['session_id']}_run-01_T2w.nii.gz"
    )
    scan.write_bytes(b"another modality")
    run(out, cohorts["ADNI"][1])
    run(out, source, overwrite=True)
    assert scan.read_bytes() == b"another modality"
    assert (out / "README.md").read_text().startswith("My own words")
    assert "extra/" in (out / ".bidsignore").read_text()
    people = {row["participant_id"]: row for row in rows(out / "participants.tsv")}
    assert people["sub-99"]["mood"] == "bad"
    assert people[row["participant_id"]]["mood"] == "good"
    assert any(name.startswith("sub-ADNI") for name in people)


def test_a_foreign_image_of_the_same_name_is_not_overwritten(cohorts, tmp_path):
    source = cohorts["AIBL"][1]
    out = tmp_path / "out"
    run(out, source)
    row = source.images[source.images["selected"]].iloc[0]
    path = next((out / row["participant_id"] / row["session_id"] / "anat").glob("*_T1w.nii.gz"))
    path.write_bytes(b"somebody else's")
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text("{}")
    assert run(out, source).written == 1
    assert path.read_bytes() == b"somebody else's"


@pytest.mark.slow
def test_an_interrupted_export_goes_on(cohorts, tmp_path):
    """Killed in the middle (no chance to clean up), then run again: the same dataset as without the interruption."""
    raw, source = cohorts["MIRIAD"]
    command = [
        sys.executable,
        "-m",
        "medalign3d.cli",
        "bids",
        "--tables",
        str(raw.parent / "tables"),
        "--root",
        str(raw),
    ]
    command += ["--out", str(tmp_path / "cut"), "--all", "--workers", "1", "--params", str(tmp_path / "params.yaml")]
    from medalign3d.profiles import build_profile

    (tmp_path / "params.yaml").write_text(build_profile("demo", project=Path(__file__).parents[2])[0])
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut").glob("sub-*/ses-*/anat/*.nii.gz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.2)  # its workers end with it
    done = len(list((tmp_path / "cut").glob("sub-*/ses-*/anat/*.nii.gz")))
    leftover = tmp_path / "cut" / source.images["participant_id"][0] / ".writing-abc"
    leftover.mkdir(parents=True)
    summary = run(tmp_path / "cut", source, everything=True)
    assert summary.up_to_date + summary.written == len(source.images)
    assert summary.up_to_date >= done - 1  # the last one may have been cut before its side-car was looked at
    run(tmp_path / "whole", source, everything=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not list((tmp_path / "cut").rglob(".writing-*"))


def test_bad_images_are_listed_and_the_others_come_through(demo_params, tmp_path):
    raw = simulate("MIRIAD", demo_params, tmp_path, people=2)
    source = ingest("MIRIAD", raw, demo_params, tmp_path / "tables")
    chosen = source.images[source.images["selected"]].sort_values("image_id").to_dict("records")
    gone, cut, changed, healthy = (raw / row["source_path"] for row in chosen[:4])
    original = healthy.read_bytes()
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:5000])
    changed.write_bytes(original)  # another person's scan under this name
    summary = run(tmp_path / "out", source)
    assert summary.written == len(chosen) - 3
    listed = {row["image_id"]: row["reason"] for row in rows(tmp_path / "out" / "medalign3d_not_exported.tsv")}
    assert [listed[row["image_id"]] for row in chosen[:3]] == [
        "IMAGE_WITHOUT_FILE",
        "IMAGE_TRUNCATED",
        "AMBIGUOUS_FILE",
    ]
    assert str(tmp_path).encode() not in searchable(tmp_path / "out")
    validate(tmp_path / "out")


def test_what_was_quarantined_is_listed_with_its_reason(demo_params, tmp_path):
    raw = simulate("OASIS", demo_params, tmp_path, people=12, faults=True)
    source = ingest("OASIS", raw, demo_params, tmp_path / "tables")
    run(tmp_path / "out", source, workers=2)
    listed = rows(tmp_path / "out" / "medalign3d_not_exported.tsv")
    assert len(listed) == len(source.dropped) > 0
    assert {row["reason"] for row in listed} == set(source.dropped["reason"])
    validate(tmp_path / "out")


def test_people_of_two_kinds_are_not_mixed(cohorts, dataset, tmp_path):
    from dataclasses import replace

    source = replace(cohorts["AIBL"][1], simulated=False)
    with pytest.raises(InputError, match="must not be mixed"):
        run(dataset, source)
    run(tmp_path / "out", source)
    assert not (tmp_path / "out" / "SYNTHETIC_DATA").exists()
    assert b"SIMULATED" not in searchable(tmp_path / "out")
    validate(tmp_path / "out")
    with pytest.raises(InputError, match="must not be mixed"):
        run(tmp_path / "out", cohorts["AIBL"][1])


def test_unfit_places_are_refused(cohorts, tmp_path):
    raw, source = cohorts["AIBL"]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        run(tmp_path, source)
    with pytest.raises(InputError, match="is a file"):
        run(tmp_path / "notes.txt", source)
    with pytest.raises(InputError, match="cohort's folder"):
        run(raw / "bids", source)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt"}


def test_two_exports_into_one_folder_do_not_meet(cohorts, tmp_path):
    import fcntl

    out = tmp_path / "out"
    run(out, cohorts["AIBL"][1])
    with (out / ".medalign3d_bids").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(MedAlignError, match="another export"):
            run(out, cohorts["AIBL"][1])


def test_a_full_disk_is_told_and_the_export_goes_on_later(cohorts, tmp_path):
    source = cohorts["MIRIAD"][1]
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]).returncode:
        pytest.skip("needs leave to mount a small file system")
    try:
        with pytest.raises(MedAlignError, match="disk is full") as caught:
            run(small / "out", source, everything=True)
        assert "run the same command again" in str(caught.value)
        assert f"of {len(source.images)} images stand there whole" in str(caught.value)
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        summary = run(small / "out", source, everything=True)
        assert summary.up_to_date + summary.written == len(source.images)
        run(tmp_path / "whole", source, everything=True)
        assert contents(small / "out") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(small)], check=True)


# ------------------------------------------------------------------------------------------------------ crafted files

CANARY = "CANARYJaneDoe"
TAGS = (
    "PatientName", "PatientID", "PatientComments", "ReferringPhysicianName", "InstitutionName", "OperatorsName",
    "AccessionNumber", "StudyDescription", "ImageComments", "StationName", "DeviceSerialNumber", "ReceiveCoilName",
    "ManufacturerModelName", "SequenceName",
)  # fmt: skip


@pytest.mark.slow
def test_planted_personal_data_are_found_nowhere(demo_params, tmp_path):
    """Names in DICOM tags, NIfTI header text and extensions, side-cars, trailing bytes and table cells."""
    import pydicom

    planted = 0
    sources = []
    for cohort in ("AIBL", "MIRIAD", "OASIS", "ADNI"):
        raw = simulate(cohort, demo_params, tmp_path / cohort, people=3)
        for path in sorted(p for p in raw.rglob("*") if p.is_file()):
            name = path.name.lower()
            if name.endswith(".dcm"):
                slice_ = pydicom.dcmread(path)
                for keyword in TAGS:
                    setattr(slice_, keyword, CANARY[:16])
                slice_.PatientBirthDate = "19450312"
                slice_.save_as(path)
                planted += 1
            elif name.endswith((".nii", ".nii.gz")):
                plain = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
                content = bytearray(plain)
                content[148 : 148 + len(CANARY)] = CANARY.encode()  # descrip
                content[228 : 228 + len(CANARY)] = CANARY.encode()  # aux_file
                content[14 : 14 + len(CANARY)] = CANARY.encode()  # db_name
                content += CANARY.encode()
                path.write_bytes(gzip.compress(bytes(content)) if name.endswith(".gz") else bytes(content))
                facts = {"PatientName": CANARY, "SeriesDescription": CANARY, "ManufacturersModelName": CANARY,
                         "EchoTime": 0.004, "AcquisitionDateTime": "1945-03-12T10:00:00"}  # fmt: skip
                path.with_name(path.name.split(".nii")[0] + ".json").write_text(json.dumps(facts))
                planted += 1
            elif name.endswith(".hdr"):
                content = bytearray(path.read_bytes())
                content[148 : 148 + len(CANARY)] = CANARY.encode()
                path.write_bytes(bytes(content))
                planted += 1
        source = ingest(cohort, raw, demo_params, tmp_path / cohort / "tables")
        source.images["series_description"] = CANARY
        source.images["dx_subject_level"] = CANARY
        sources.append(source)
    assert planted > 100
    run(tmp_path / "out", together(sources), everything=True, relative_dates=True, workers=2)
    everything = searchable(tmp_path / "out")
    assert CANARY[:12].encode() not in everything
    assert b"1945" not in everything
    assert b"EchoTime" in everything
    validate(tmp_path / "out")


def test_an_extension_of_the_header_is_left_behind(demo_params, tmp_path):
    raw = simulate("MIRIAD", demo_params, tmp_path, people=1)
    path = next(raw.rglob("*.nii"))
    image = nib.load(path)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY.encode() * 20))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), tmp_path / "with.nii")
    path.unlink()
    (tmp_path / "with.nii").rename(path)
    assert CANARY.encode() in path.read_bytes()
    run(tmp_path / "out", ingest("MIRIAD", raw, demo_params, tmp_path / "tables"), everything=True)
    assert CANARY.encode() not in searchable(tmp_path / "out")


# ------------------------------------------------------------------------------------------------------- command line


def test_the_command_exports_a_pipeline_run_with_derivatives(
    cohorts, demo_params, params_text, tmp_path, monkeypatch, capsys
):
    from medalign3d.cohorts import read_ingest
    from medalign3d.ehr.harmonize import harmonize, write_harmonized
    from medalign3d.files import write_parquet
    from medalign3d.volumes import store, template

    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(params_text)
    tables = {}
    for cohort, (raw, _) in cohorts.items():
        shutil.copytree(raw.parent / "tables", f"data/cohorts/{cohort}")
        Path("data/raw").mkdir(exist_ok=True)
        os.symlink(raw, f"data/raw/{cohort}")
        tables[cohort] = read_ingest(Path(f"data/cohorts/{cohort}"))
    result = harmonize(tables, demo_params)
    write_harmonized(result, Path("data/ehr"), simulated=True)
    grid = template.target_grid(demo_params.normalize.shape, demo_params.normalize.zooms_mm)
    import pandas as pd

    for cohort in COHORTS:
        folder = Path("data/volumes") / cohort
        index = []
        for place, image_id in enumerate(result.images.loc[result.images["dataset"] == cohort, "image_id"]):
            array = np.full(grid.shape, place + 1, np.uint8)
            index.append({"image_id": image_id, "path": store.write(folder, array), "verdict": "accepted"})
        affine = " ".join(f"{v:.6g}" for v in grid.affine.ravel())
        write_parquet(folder / "index.parquet", pd.DataFrame(index), {"simulated": "true", "affine": affine})
    assert main(["bids", "--out", "out", "--cohort", "OASIS", "--cohort", "ADNI", "--derivatives"]) == 0
    assert "images/s" in capsys.readouterr().out
    assert {p.name[4:8] for p in Path("out").glob("sub-*")} == {"ADNI", "OAS1", "OAS2", "OAS3"}
    assert main(["bids", "--out", "out", "--derivatives"]) == 0
    assert "up to date" in capsys.readouterr().out
    validate(Path("out"), "-r")
    raw_images = {p.name.replace("_T1w", "") for p in Path("out").glob("sub-*/ses-*/anat/*.nii.gz")}
    normalized = list(Path("out/derivatives/medalign3d").glob("sub-*/ses-*/anat/*.nii.gz"))
    assert {p.name.replace("_space-MNI152NLin2009aSym_desc-normalized_T1w", "") for p in normalized} == raw_images
    np.testing.assert_allclose(nib.load(normalized[0]).affine, grid.affine, atol=1e-3)
    assert main(["bids", "--out", "elsewhere", "--cohort", "IXI"]) == 1
    assert "IXI" in capsys.readouterr().err


def test_wrong_use_of_the_command(tmp_path, params_text, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(params_text)
    assert main(["bids", "--out", "out", "--tables", "t"]) == 1
    assert "--root" in capsys.readouterr().err
    assert main(["bids", "--out", "out", "--tables", "t", "--root", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(["bids", "--out", "out"]) == 1
    assert "dvc repro" in capsys.readouterr().err
    assert not Path("out").exists()


def test_real_scans(real_data, demo_params, tmp_path):
    """A few real OASIS-1 and IXI scans: no error of the validator, equal voxels."""
    from medalign3d.profiles import build_profile

    for cohort, folder, tables in (("OASIS", "oasis1_mni_2mm", "*.csv"), ("IXI", "ixi_t1_2mm", "*.csv")):
        root = tmp_path / cohort
        root.mkdir()
        for path in [*sorted((real_data / folder).glob("*.nii.gz"))[:3], *(real_data / folder).glob(tables)]:
            os.symlink(path, root / path.name)
        params = build_profile("oasis1" if cohort == "OASIS" else "ixi", project=Path(__file__).parents[2])[1]
        source = ingest(cohort, root, params, tmp_path / f"{cohort}_tables", simulated=False)
        assert run(tmp_path / "out", source).written == 3
        for row in source.images.to_dict("records"):
            image = nib.load(next((tmp_path / "out" / row["participant_id"]).glob("ses-*/anat/*.nii.gz")))
            original = read_volume(root, row["source_path"])
            np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), original.data)
            np.testing.assert_allclose(image.affine, original.affine, atol=1e-4)
    validate(tmp_path / "out")
