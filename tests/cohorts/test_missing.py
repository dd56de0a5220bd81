"""``medalign3d why-missing``: every image found is answered for, and ids are compared whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cohort_trees import adni_image, aibl_image, run, write_csv, write_image
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st

import medalign3d
from medalign3d import missing
from medalign3d.cohorts import write_ingest
from medalign3d.cohorts.base import participant_id_of
from medalign3d.cohorts.spelling import meanings
from medalign3d.files import read_json
from medalign3d.params import Params
from medalign3d.results import Results, plain_records


@pytest.fixture(scope="module")
def results(small_run: Run) -> Results:
    return Results(small_run.data)


@pytest.fixture(scope="module")
def tracer(small_run: Run, results: Results) -> missing.Tracer:
    roots = {cohort: small_run.data / "raw" / cohort for cohort in results.cohorts}
    return missing.Tracer(results, small_run.params, missing.Disk(results, small_run.params, roots))


def ask(tracer: missing.Tracer, query: str, cohort: str | None = None) -> missing.Answer:
    return missing.why_missing(tracer.results, query, tracer.params, cohort=cohort, tracer=tracer)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(medalign3d.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "medalign3d.cli", "why-missing", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )


# ------------------------------------------------------------------------------------------------------------ meanings


@pytest.mark.parametrize(
    ("query", "cohort", "subject"),
    [
        ("005_S_0223", "ADNI", "005_S_0223"),
        ("005S0223", "ADNI", "005_S_0223"),
        ("sub-ADNI005S0223", "ADNI", "005_S_0223"),
        ("941_S_12345", "ADNI", "941_S_12345"),
        ("RID 223", "ADNI", "RID223"),
        ("rid=0223", "ADNI", "RID223"),
        ("OAS1_0001", "OASIS", "OAS1_0001"),
        ("oas10001", "OASIS", "OAS1_0001"),
        ("sub-OAS20007", "OASIS", "OAS2_0007"),
        ("OAS30001", "OASIS", "OAS30001"),
        ("NACC123456", "NACC", "NACC123456"),
        ("nacc 123456", "NACC", "NACC123456"),
        ("AIBL 10", "AIBL", "10"),
        ("sub-AIBL10", "AIBL", "10"),
        ("miriad_188", "MIRIAD", "miriad_188"),
        ("MIRIAD188", "MIRIAD", "miriad_188"),
        ("IXI002", "IXI", "IXI002"),
        ("sub-IXI2", "IXI", "IXI002"),
    ],
)
def test_a_participant_in_many_spellings(query: str, cohort: str, subject: str) -> None:
    first = meanings(query)[0]
    assert (first.kind, first.cohort, first.subject) == ("subject", cohort, subject)


@pytest.mark.parametrize(
    ("query", "subject", "session"),
    [
        ("OAS1_0001_MR1", "OAS1_0001", "MR1"),
        ("OAS30001_MR_d0129", "OAS30001", "d0129"),
        ("sub-OAS30001_ses-d0129", "OAS30001", "d0129"),
        ("mri1234", None, "mri1234"),
        ("mri1234ni.zip", None, "mri1234"),
        ("miriad_188_1_MR_1", "miriad_188", "01"),
    ],
)
def test_a_session_in_many_spellings(query: str, subject: str | None, session: str) -> None:
    first = meanings(query)[0]
    assert (first.kind, first.subject, first.session) == ("session", subject, session)


NATIVE = st.one_of(
    st.tuples(st.just("ADNI"), st.from_regex(r"[0-9]{3}_S_[1-9][0-9]{3,4}", fullmatch=True)),
    st.tuples(st.just("NACC"), st.from_regex(r"NACC[0-9]{6}", fullmatch=True)),
    st.tuples(st.just("OASIS"), st.from_regex(r"OAS[12]_[0-9]{4}|OAS3[0-9]{4}", fullmatch=True)),
    st.tuples(st.just("AIBL"), st.from_regex(r"[1-9][0-9]{0,3}", fullmatch=True)),
    st.tuples(st.just("MIRIAD"), st.from_regex(r"miriad_[0-9]{3}", fullmatch=True)),
    st.tuples(st.just("IXI"), st.from_regex(r"IXI[0-9]{3}", fullmatch=True)),
)


@given(NATIVE, NATIVE)
def test_participant_labels_are_understood_and_never_mean_another_person(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    label = participant_id_of(*one)
    own = [m for m in meanings(label) if m.kind == "subject"]
    assert any(m.cohort == one[0] and m.is_subject(one[1]) for m in own)
    if one != other:
        assert not any(m.cohort == other[0] and m.is_subject(other[1]) for m in own)


@given(st.text(max_size=40))
def test_any_text_has_a_meaning(query: str) -> None:
    for meaning in meanings(query):
        assert meaning.words
        meaning.is_subject(query)


# -------------------------------------------------------------------------------------------------------------- answers


def test_every_image_found_is_answered_for_by_its_key(tracer: missing.Tracer) -> None:
    for cohort in tracer.results.cohorts:
        for row in tracer.found(cohort):
            answer = ask(tracer, str(row["native_image_key"]), cohort)
            images = [image for trace in answer.traces for image in trace.images]
            assert [image.key for image in images] == [row["native_image_key"]], row
            stop = images[0].stopped_at
            if row["outcome"] == "dropped":
                assert answer.status == "stopped"
                assert stop is not None
                assert (stop.stage, stop.reason) == ("ingest", row["reason"])
                assert stop.meaning
                assert stop.remedy
                assert stop.file
            assert images[0].steps[0].stage == "found"


def test_planted_faults_are_named(small_run: Run, tracer: missing.Tracer) -> None:
    for cohort in tracer.results.cohorts:
        for fault in read_json(small_run.data / "truth" / cohort / "faults.json"):
            if fault["level"] != "image" or fault["severity"] != "drop":
                continue
            answer = ask(tracer, fault["key"]["native_image_key"], cohort)
            stops = [image.stopped_at for trace in answer.traces for image in trace.images]
            assert [(stop.stage, stop.reason) for stop in stops if stop] == [(fault["stage"], fault["reason"])]


def test_every_source_file_is_answered_for(small_run: Run, tracer: missing.Tracer) -> None:
    for cohort in tracer.results.cohorts:
        for row in tracer.found(cohort):
            path = small_run.data / "raw" / cohort / str(row["source_path"]).split("!", 1)[0]
            answer = ask(tracer, str(path))
            keys = {image.key for trace in answer.traces for image in trace.images}
            assert row["native_image_key"] in keys, path


def test_every_participant_is_found_by_each_label(tracer: missing.Tracer) -> None:
    for cohort in tracer.results.cohorts:
        subjects = {str(r["native_subject_id"]) for r in plain_records(tracer.results.ingest(cohort).images)}
        for subject in sorted(subjects)[:4]:
            keys = {str(r["native_image_key"]) for r in tracer.found(cohort) if r["native_subject_id"] == subject}
            for label in (participant_id_of(cohort, subject), *([] if cohort == "AIBL" else [subject])):
                answer = ask(tracer, label)
                images = [image for trace in answer.traces for image in trace.images]
                assert {image.key for image in images} == keys, label


def test_stages_after_ingest_stop_images_too(small_run: Run, tracer: missing.Tracer) -> None:
    volumes = tracer.results.volumes("ADNI")
    assert volumes is not None
    refused = str(volumes.loc[volumes["verdict"] != "accepted", "image_id"].iloc[0])
    stop = ask(tracer, refused).traces[0].images[0].stopped_at
    assert stop is not None
    assert (stop.stage, stop.reason) == ("normalize", "QC_FAIL")
    images = tracer.results.ingest("MIRIAD").images
    repeat = str(images.loc[~images["selected"], "native_image_key"].iloc[0])
    stop = ask(tracer, repeat).traces[0].images[0].stopped_at
    assert stop is not None
    assert (stop.stage, stop.reason) == ("ingest", None)
    assert "another image of the visit" in stop.text


def test_a_listed_image_that_is_not_on_disk(tracer: missing.Tracer) -> None:
    quarantine = tracer.results.ingest("ADNI").quarantine
    row = quarantine[quarantine["reason"] == "IMAGE_WITHOUT_FILE"].iloc[0]
    answer = ask(tracer, json.loads(row["key_json"])["native_image_key"])
    assert answer.status == "record without image"
    assert "IMAGE_WITHOUT_FILE" in answer.traces[0].notes[0]
    assert any("MedAlign3D_T1" in line for seen in answer.searched for line in seen.in_tables)


def test_a_record_without_image_names_tables_and_rows(tracer: missing.Tracer) -> None:
    visits = tracer.results.ingest("NACC").visits["native_subject_id"]
    found = {row["native_subject_id"] for row in tracer.found("NACC")}
    alone = sorted(set(visits) - found)
    assert alone
    answer = ask(tracer, alone[0])
    assert answer.status == "record without image"
    assert answer.traces[0].visits == int((visits == alone[0]).sum())
    assert re.search(r"investigator_nacc\d+\.csv: row \d+", answer.searched[0].in_tables[0])


def test_what_was_never_seen_has_near_spellings(tracer: missing.Tracer) -> None:
    subject = str(tracer.results.ingest("OASIS").images["native_subject_id"].iloc[0])
    answer = ask(tracer, subject + "x")
    assert answer.status == "never seen"
    assert subject in answer.near
    text = missing.render(answer)
    assert subject in text
    assert "OASIS" in text


# --------------------------------------------------------------------------------------------------------- hand-made


def adni_tree(root: Path) -> Path:
    """RID 10 has an image; RID 100 has a record only; RID 1000 has an image that no table knows."""
    write_csv(
        root / "ADNIMERGE.csv",
        "RID|PTID|VISCODE|EXAMDATE|DX|DX_bl|AGE|PTGENDER|EXAMDATE_bl|COLPROT",
        ["10", "005_S_0010", "bl", "2006-01-05", "CN", "CN", "70.0", "Male", "2006-01-05", "ADNI1"],
        ["100", "005_S_0100", "bl", "2006-02-05", "MCI", "LMCI", "71.0", "Female", "2006-02-05", "ADNI1"],
    )
    adni_image(root, "005_S_0010", "2006-01-10", 101, 1)
    adni_image(root, "005_S_1000", "2006-01-10", 1010, 2)
    folder = root / "005_S_0100" / "MPRAGE" / "2006-02-06_10_00_00.0"
    folder.mkdir(parents=True)
    (folder / "I500.7z").write_bytes(b"PK\x05\x06" + bytes(18))
    return root


def traced(cohort: str, root: Path, out: Path, params: Params) -> missing.Tracer:
    write_ingest(run(cohort, root), out, simulated=False)
    results = Results(out)
    return missing.Tracer(results, params, missing.Disk(results, params, {cohort: root}))


def test_rid_10_is_not_100_and_not_1000(tmp_path: Path, demo_params: Params) -> None:
    tracer = traced("ADNI", adni_tree(tmp_path / "in"), tmp_path / "out", demo_params)
    keys = lambda query: [image.key for trace in ask(tracer, query).traces for image in trace.images]  # noqa: E731
    assert keys("RID 10") == keys("005_S_0010") == keys("RID 0010") == ["I101"]
    assert keys("RID 1000") == ["I1010"]
    assert keys("RID 1") == []
    hundred = ask(tracer, "RID 100")
    assert hundred.status == "record without image"
    assert hundred.traces[0].subjects == ["005_S_0100"]
    assert hundred.searched[0].in_tables == ["ADNIMERGE.csv: row 3 (read by the ingest)"]
    assert "packed archive" in hundred.searched[0].on_disk[0]
    thousand = ask(tracer, "005_S_1000").traces[0]
    assert thousand.visits == 0
    assert thousand.images[0].stopped_at is not None
    assert thousand.images[0].stopped_at.reason == "ID_NOT_IN_CLINICAL"


def test_aibl_10_is_not_100_nor_a_padded_folder(tmp_path: Path, demo_params: Params) -> None:
    root = tmp_path / "in"
    write_csv(root / "aibl_pdxconv.csv", "RID|SITEID|VISCODE|DXCURREN", ["10", "1", "bl", "1"], ["100", "1", "bl", "3"])
    write_csv(
        root / "aibl_ptdemog.csv", "RID|VISCODE|PTGENDER|PTDOB", ["10", "bl", 1, "/1934"], ["100", "bl", 2, "/1930"]
    )
    write_csv(root / "aibl_mrimeta.csv", "RID|VISCODE|EXAMDATE", ["10", "bl", "1/5/2007"], ["100", "bl", "1/6/2007"])
    aibl_image(root, "10", "2007-01-05", 11, 1)
    aibl_image(root, "010", "2007-01-05", 12, 2)
    tracer = traced("AIBL", root, tmp_path / "out", demo_params)
    found = ask(tracer, "AIBL 10")
    assert [image.key for image in found.traces[0].images] == ["I11"]
    assert ask(tracer, "AIBL 100").status == "record without image"
    assert ask(tracer, "10", "AIBL").traces[0].subjects == ["10"]
    padded = ask(tracer, str(root / "AIBL" / "010"))
    assert [image.stopped_at.reason for t in padded.traces for image in t.images if image.stopped_at] == [
        "ID_NOT_IN_CLINICAL"
    ]


def test_files_that_are_no_images_say_why(tmp_path: Path, demo_params: Params) -> None:
    root = adni_tree(tmp_path / "in")
    tracer = traced("ADNI", root, tmp_path / "out", demo_params)
    (root / "notes.docx").write_text("x")
    write_csv(root / "REGISTRY.csv", "RID|VISCODE", ["10", "bl"])
    late = adni_image(root, "005_S_0010", "2006-07-10", 102, 3)
    stray = write_image(root / "005_S_0010" / "scan.nii", 4)

    def advice(path: Path) -> str:
        answer = ask(tracer, str(path))
        assert answer.status == "seen but not used", path
        return " ".join(answer.searched[0].advice)

    assert "no image format" in advice(root / "notes.docx")
    assert "was not read" in advice(root / "REGISTRY.csv")
    assert "table that was read" in advice(root / "ADNIMERGE.csv")
    assert "Ingest the cohort again" in advice(late)
    assert "no image number" in advice(stray)
    assert "packed archive" in advice(root / "005_S_0100" / "MPRAGE" / "2006-02-06_10_00_00.0" / "I500.7z")
    outside = write_image(tmp_path / "elsewhere.nii", 5)
    assert "below no cohort's folder" in ask(tracer, str(outside)).understood[0]


@pytest.mark.parametrize(
    ("cohort", "path", "good"),
    [
        ("NACC", "mri/mri1234ni.zip", True),
        ("ADNI", "x.zip", False),
        ("OASIS", "OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr", True),
        ("OASIS", "random/brain.nii", False),
        ("MIRIAD", "miriad_193_1_MR_1/SCANS/SCAN1/image.nii", True),
        ("IXI", "IXI002-Guys-0828-T1.nii.gz", True),
        ("IXI", "._IXI002-Guys-0828-T1.nii.gz", False),
        ("AIBL", "AIBL/10/MPRAGE/2007-01-05_10_00_00.0/I11/a_I11.dcm", True),
    ],
)
def test_a_path_is_recognised_by_the_custodians_layout(cohort: str, path: str, good: bool) -> None:
    assert missing.recognise(cohort, path)[0] is good


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command_counts_everything(small_run: Run, results: Results) -> None:
    answer = command(small_run.project)
    assert answer.returncode == 0, answer.stderr
    for cohort in results.cohorts:
        assert re.search(rf"^{cohort}$", answer.stdout, re.MULTILINE)
    rows = json.loads(command(small_run.project, "--json").stdout)
    for row in rows:
        assert row["found"] == row["accepted"] + sum(row["quarantined"].values())
        assert row["accepted"] == row["harmonized"] + sum(row["harmonize_quarantined"].values())
    assert sum(row["harmonize_quarantined"].get("CROSS_COHORT_DUPLICATE", 0) for row in rows) == 1


def test_the_command_answers_and_its_exit_code_tells(small_run: Run, results: Results) -> None:
    images = results.ingest("OASIS").images
    good = str(images["native_subject_id"].iloc[0])
    bad = next(str(r["native_image_key"]) for r in plain_records(results.found("OASIS")) if r["outcome"] == "dropped")
    assert command(small_run.project, good).returncode == 0
    answer = command(small_run.project, good, bad)
    assert answer.returncode == 3
    assert "to do:" in answer.stdout
    assert all(len(line) <= 100 or "/" in line for line in answer.stdout.splitlines())
    never = command(small_run.project, "NACC999999", "--json")
    assert never.returncode == 1
    data = json.loads(never.stdout)[0]
    assert data["status"] == "never seen"
    assert data["searched"][0]["root"].endswith("NACC")


def test_the_command_works_on_one_ingest_and_says_when_there_is_none(small_run: Run, tmp_path: Path) -> None:
    shutil.copy(small_run.project / "params.yaml", tmp_path)
    nothing = command(tmp_path)
    assert nothing.returncode == 1
    assert "--data" in nothing.stderr
    shutil.copytree(small_run.data / "cohorts" / "MIRIAD", tmp_path / "tables")
    answer = command(tmp_path, "miriad_188", "--data", "tables")
    assert answer.returncode == 0, answer.stderr
    assert "the stage has not run here" in answer.stdout
