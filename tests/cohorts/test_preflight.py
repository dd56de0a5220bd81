"""``medalign3d doctor COHORT ROOT``: what is there, what is missing, what that costs; the catalogue is what is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cohort_trees import adni_image, aibl_image, params, write_csv, write_image
from conftest import Run

import medalign3d
from medalign3d.cohorts import COHORTS, ingest_cohort, nacc, oasis_tables
from medalign3d.cohorts.catalogue import CATALOGUE, GROUP_WORDS, ColumnSpec, TableSpec
from medalign3d.cohorts.preflight import Preflight, TableReport, date_in_name, preflight, render
from medalign3d.cohorts.tables import Table, header_key


@contextmanager
def asked_columns() -> Iterator[dict[str, set[tuple[str, ...]]]]:
    """Table -> the columns that readers ask for while the context is open, synonyms together."""
    asked: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    places, column = Table.places, Table.column

    def spy_places(self: Table, names: tuple[str, ...]) -> Any:
        asked[self.relative].add(tuple(names))
        return places(self, names)

    def spy_column(self: Table, *names: str) -> Any:
        asked[self.relative].add(tuple(names))
        return column(self, *names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Table, "places", spy_places)
        patch.setattr(Table, "column", spy_column)
        yield asked


VALUES = {
    "rid": "10",
    "ptid": "005_S_0010",
    "viscode": "bl",
    "viscode2": "bl",
    "examdate": "2006-01-05",
    "dx": "CN",
    "naccid": "NACC000001",
    "naccvnum": "1",
    "oasisid": "OAS30001",
    "subject": "OAS30001",
    "mr_id": "OAS30001_MR_d0001",
    "label": "OAS30001_MR_d0001",
    "adrc_adrcclinicaldata_id": "OAS30001_ClinicalData_d0001",
    "ixi_id": "IXI002",
    "loniimage": "I7",
    "studydate": "2015-01-01",
}


OASIS_NAMES = [name for names in oasis_tables.COLUMNS.values() for name in names]
DECLARED = {
    ("NACC", "UDS"): nacc.UDS_COLUMNS,
    ("NACC", "MRI"): nacc.MRI_COLUMNS,
    ("NACC", "SCAN"): nacc.SCAN_COLUMNS,
    ("OASIS", "OASIS-1"): OASIS_NAMES,
    ("OASIS", "OASIS-2"): OASIS_NAMES,
}


def table_of(path: Path, names: list[str]) -> None:
    """A table with these columns and one row."""
    write_csv(path, "|".join(names), [VALUES.get(header_key(name), "1") for name in names])


def add_absent_tables(cohort: str, root: Path) -> None:
    """Write every table of the catalogue that a tree lacks, with all its columns."""
    for report, spec in zip(preflight(cohort, root).tables, CATALOGUE[cohort], strict=True):
        if report.status in ("absent", "missing"):
            names = [column.names[0] for column in spec.columns]
            keys = {header_key(name) for name in names}
            if spec.headers:
                wanted = spec.headers[0]
                names += [key for key in sorted(wanted.all) if key not in keys]
            prefix = "aibl_" if cohort == "AIBL" else ""
            table_of(
                root / "extra" / f"{prefix}{spec.names[0] if spec.names else spec.name.replace(' ', '_')}.csv", names
            )


def older_oasis3(root: Path) -> None:
    """The XNAT export of OASIS-3's clinical tables."""
    session = "OAS30009_MR_d0010"
    write_image(root / "older" / session / "anat1" / "sub-OAS30009_ses-d0010_T1w.nii.gz", 1)
    clinical = "ADRC_ADRCCLINICALDATA ID|Subject|Age|mmse|ageAtEntry|cdr|commun|dx1|homehobb|judgment|memory|orient"
    table_of(root / "older" / "ADRC Clinical Data.csv", f"{clinical}|perscare|apoe|sumbox".split("|"))
    table_of(root / "older" / "Subjects.csv", ["Subject", "M/F", "Hand", "Education", "Race"])


@pytest.mark.parametrize("cohort", sorted(COHORTS))
def test_the_catalogue_says_what_the_readers_ask_for(small_run: Run, tmp_path: Path, cohort: str) -> None:
    root = tmp_path / "tree"
    if cohort == "IXI":
        write_image(root / "IXI002-HH-1236_T1.nii.gz", 1)
    else:
        shutil.copytree(small_run.data / "raw" / cohort, root)
    add_absent_tables(cohort, root)
    if cohort == "OASIS":
        older_oasis3(root)
    if cohort == "MIRIAD":
        write_csv(root / "without_label.csv", "MR ID|Subject|Age", ["", "miriad_188", "70"])
    before = preflight(cohort, root)
    with asked_columns() as asked:
        result = ingest_cohort(cohort, root, params(read_images=False, nacc_crosswalk=True), workers=1)
    read = set(result.sources["file"].astype(str))
    specs = {spec.name: spec for spec in CATALOGUE[cohort]}
    of_file: dict[str, list[TableSpec]] = defaultdict(list)
    for report in before.tables:
        assert report.files, f"{cohort}: no table of the kind {report.name} in the test's tree"
        for path in report.files:
            of_file[path].append(specs[report.name])
    remedy = "correct src/medalign3d/cohorts/catalogue.py and run `python docs/write_reference.py`"
    unread = {path for path in of_file if path not in read}
    assert not unread, f"doctor says that these are used, but the reader did not read them; {remedy}"
    strange = {path for path in read if path not in of_file and path.lower().endswith((".csv", ".xlsx", ".xls"))}
    assert not strange, f"the reader read tables that doctor does not know; {remedy}"
    for path, kinds in of_file.items():
        described = {header_key(name) for spec in kinds for column in spec.columns for name in column.names}
        wanted = {header_key(name) for names in asked[path] for name in names}
        assert wanted <= described, f"{cohort} {kinds[0].name}: asked for, but not described; {remedy}"
    for name, spec in specs.items():
        wanted = {
            header_key(asked_name)
            for path, kinds in of_file.items()
            if spec in kinds or cohort == "MIRIAD"  # one routine reads what it finds in any of its tables
            for names in asked[path]
            for asked_name in names
        }
        # Declared by the reader itself; some are asked for in rare cases alone.
        wanted |= {header_key(column) for column in DECLARED.get((cohort, name), ())}
        idle = [c.names[0] for c in spec.columns if not {header_key(n) for n in c.names} & wanted]
        assert not idle, f"{cohort} {name}: described, but never asked for; {remedy}"


def test_the_catalogue_is_complete_in_itself() -> None:
    assert set(CATALOGUE) == set(COHORTS)
    for cohort, specs in CATALOGUE.items():
        assert len({spec.name for spec in specs}) == len(specs)
        for spec in specs:
            assert spec.cost
            assert sum(map(bool, (spec.names, spec.headers, spec.cells))) == 1, (cohort, spec.name)
            assert spec.need in ("required", "optional", *GROUP_WORDS)


def test_columns_are_compared_without_case_and_punctuation() -> None:
    assert ColumnSpec(("MR Delay", "Delay")).is_in({"mr_delay"})
    assert not ColumnSpec(("MR Delay", "Delay")).is_in({"delays"})


@pytest.mark.parametrize("cohort", ["ADNI", "NACC", "OASIS", "AIBL", "MIRIAD"])
def test_simulated_trees_are_ready_and_say_that_they_are_simulated(small_run: Run, cohort: str) -> None:
    answer = preflight(cohort, small_run.data / "raw" / cohort)
    assert answer.complete
    assert answer.simulated
    assert answer.seconds < 10
    text = render(answer)
    assert "SIMULATED" in text
    assert "ready to ingest" in text
    assert all(len(line) <= 100 or "/" in line for line in text.splitlines())


def by_name(answer: Preflight) -> dict[str, TableReport]:
    return {report.name: report for report in answer.tables}


# ---------------------------------------------------------------------------------------------------------- hand-made


def test_adni_without_adnimerge_before_and_after_the_renaming(tmp_path: Path) -> None:
    adni_image(tmp_path, "005_S_0010", "2006-01-10", 101, 1)
    write_csv(tmp_path / "DXSUM_17Nov2024.csv", "RID|VISCODE2|EXAMDATE|DIAGNOSIS", ["10", "bl", "2006-01-05", "1"])
    write_csv(tmp_path / "APOERES.csv", "RID|GENOTYPE", ["10", "3/4"])
    answer = preflight("ADNI", tmp_path)
    tables = by_name(answer)
    assert answer.complete
    assert tables["ADNIMERGE"].status == "absent"
    assert "rebuilt" in tables["ADNIMERGE"].cost
    assert any("rebuilt from DXSUM, APOERES" in line for line in answer.vintages)
    assert any("after the renaming" in line and "APOERES columns" in line for line in answer.vintages)
    assert tables["NEUROBAT"].status == "absent"
    assert "text loses" in tables["NEUROBAT"].cost
    assert answer.images == {"T1-weighted, NIfTI": 1}
    (tmp_path / "DXSUM_17Nov2024.csv").unlink()
    answer = preflight("ADNI", tmp_path)
    assert not answer.complete
    assert by_name(answer)["ADNIMERGE"].status == "missing"
    write_csv(
        tmp_path / "ADNIMERGE_01Jan2020.csv", "RID|PTID|VISCODE|EXAMDATE", ["10", "005_S_0010", "bl", "2006-01-05"]
    )
    report = by_name(preflight("ADNI", tmp_path))["ADNIMERGE"]
    assert report.status == "problem"
    assert report.detail == "the column DX is needed"


def test_the_newest_export_is_taken_and_undated_copies_are_a_problem(tmp_path: Path) -> None:
    adni_image(tmp_path, "005_S_0010", "2006-01-10", 101, 1)
    for date, dx in (("01Jan2020", "1"), ("17Nov2024", "2")):
        write_csv(tmp_path / f"DXSUM_{date}.csv", "RID|VISCODE2|EXAMDATE|DIAGNOSIS", ["10", "bl", "2006-01-05", dx])
    report = by_name(preflight("ADNI", tmp_path))["DXSUM"]
    assert (report.files, report.not_taken) == (["DXSUM_17Nov2024.csv"], ["DXSUM_01Jan2020.csv"])
    write_csv(tmp_path / "old" / "DXSUM.csv", "RID|VISCODE2|EXAMDATE|DIAGNOSIS", ["10", "bl", "2006-01-05", "3"])
    report = by_name(preflight("ADNI", tmp_path))["DXSUM"]
    assert report.status == "problem"
    assert "differ" in report.detail


def test_damaged_tables_archives_and_files_of_other_cohorts(tmp_path: Path) -> None:
    aibl_image(tmp_path, "10", "2007-01-05", 11, 1)
    write_csv(tmp_path / "aibl_pdxconv_28-Apr-2015.csv", "RID|SITEID|VISCODE|DXCURREN", ["10", "1", "bl", "1"])
    write_csv(tmp_path / "aibl_ptdemog_28-Apr-2015.csv", "RID|VISCODE|PTGENDER|PTDOB", ["10", "bl", 1, "/1934"])
    (tmp_path / "aibl_mmse_28-Apr-2015.csv").write_bytes(b"")
    (tmp_path / "aibl_cdr_28-Apr-2015.csv").write_text("<!DOCTYPE html><html>log in</html>")
    (tmp_path / "images.tar.gz").write_bytes(b"x")
    (tmp_path / "part1.zip").write_bytes(b"x")
    write_image(tmp_path / "OAS1_0001_MR1_mpr-1_anon.nii", 2)
    answer = preflight("AIBL", tmp_path)
    assert not answer.complete
    tables = by_name(answer)
    assert tables["mmse"].status == tables["cdr"].status == "problem"
    assert "empty" in tables["mmse"].detail
    assert "web page" in tables["cdr"].detail
    assert set(answer.damaged) == {"aibl_mmse_28-Apr-2015.csv", "aibl_cdr_28-Apr-2015.csv", "part1.zip"}
    assert answer.archives_packed == ["images.tar.gz"]
    assert answer.archives_read == 1
    assert answer.foreign == {"OASIS": ["OAS1_0001_MR1_mpr-1_anon.nii"]}
    assert answer.vintages == ["extracted 2015-04-28"]
    text = render(answer)
    assert "not ready" in text
    assert "stray" in text


def test_nacc_says_freeze_and_form_versions(tmp_path: Path) -> None:
    head = "NACCID|NACCVNUM|NACCUDSD|FORMVER|VISITYR|VISITMO|VISITDAY"
    rows = [["NACC000001", n, 1, 2 if n < 3 else 3, 2010 + n, 1, 1] for n in range(1, 5)]
    write_csv(tmp_path / "investigator_nacc71.csv", head, *rows)
    write_csv(tmp_path / "investigator_nacc63.csv", head, *rows[:2])
    write_csv(tmp_path / "investigator_mri_nacc65.csv", "NACCID|NACCMRFI", ["NACC000001", "mri1ni.zip"])
    (tmp_path / "mri1ni.zip").write_bytes(b"x")
    answer = preflight("NACC", tmp_path)
    assert answer.vintages[0] == "UDS data freeze 71; UDS form versions among its first rows: 2 (2), 3 (2)"
    assert "another release: data freeze 65" in answer.vintages[1]
    uds = by_name(answer)["UDS"]
    assert (uds.files, uds.not_taken, uds.rows) == (["investigator_nacc71.csv"], ["investigator_nacc63.csv"], 4)
    assert answer.images == {"NIfTI session archives": 1}


def test_oasis_wants_the_table_of_the_study_whose_images_are_there(tmp_path: Path) -> None:
    write_image(tmp_path / "OAS2_RAW_PART1" / "OAS2_0001_MR1" / "RAW" / "mpr-1.nifti.hdr", 1)
    write_csv(tmp_path / "oasis_cross-sectional.csv", "ID|M/F|Age|CDR", ["OAS1_0001_MR1", "F", 70, 0])
    tables = by_name(preflight("OASIS", tmp_path))
    assert tables["OASIS-1"].status == "found"
    assert tables["OASIS-2"].status == "missing"
    assert tables["OASIS-3 CDR"].status == "absent"


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("DXSUM_17Nov2024.csv", "2024-11-17"),
        ("aibl_cdr_28-Apr-2015.csv", "2015-04-28"),
        ("x_2024-11-17.csv", "2024-11-17"),
        ("simulated_5_3_2021_14_21_7.csv", "2021-05-03"),
        ("x_99Abc2024.csv", None),
        ("x_13_13_2024.csv", None),
        ("plain.csv", None),
    ],
)
def test_dates_in_names(name: str, date: str | None) -> None:
    found = date_in_name(name)
    assert (None if found is None else found.isoformat()) == date


def test_a_large_download_takes_less_than_ten_seconds(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "ADNIMERGE.csv", "RID|PTID|VISCODE|EXAMDATE|DX", *([n, "", "bl", "", ""] for n in range(20_000))
    )
    for person in range(100):
        folder = tmp_path / f"005_S_{person:04d}" / "MPRAGE" / "2006-01-10_10_00_00.0" / f"I{person + 1}"
        folder.mkdir(parents=True)
        for number in range(200):
            (folder / f"ADNI_005_S_{person:04d}_MR_MPRAGE_br_raw_{number}_S1_I{person + 1}.dcm").touch()
    started = time.perf_counter()
    answer = preflight("ADNI", tmp_path)
    assert time.perf_counter() - started < 10
    assert answer.files == 20_001
    assert answer.images == {"T1-weighted, DICOM": 100}
    assert by_name(answer)["ADNIMERGE"].rows == 20_000


def test_images_inside_archives_are_counted_as_the_reader_finds_them(tmp_path: Path) -> None:
    inner = "005_S_0010/MPRAGE/2006-01-10_10_00_00.0/I101/ADNI_005_S_0010_MR_MPRAGE_br_raw_{}_S1_I101.dcm"
    with zipfile.ZipFile(tmp_path / "part_1.zip", "w") as archive:
        for number in range(5):
            archive.writestr(inner.format(number), b"x")
    (tmp_path / "part_2.zip").write_bytes(b"PK damaged")
    write_csv(tmp_path / "DXSUM.csv", "RID|VISCODE2|EXAMDATE|DIAGNOSIS", ["10", "bl", "2006-01-05", "1"])
    answer = preflight("ADNI", tmp_path)
    assert answer.images == {"T1-weighted, DICOM": 1}
    assert answer.complete
    assert set(answer.damaged) == {"part_2.zip"}
    assert "part_2.zip" in render(answer)


def test_archives_of_the_other_cohorts(tmp_path: Path) -> None:
    for cohort, name in (
        ("OASIS", "OAS30001_MR_d0129/anat1/sub-OAS30001_ses-d0129_T1w.nii.gz"),
        ("MIRIAD", "miriad_188_AD_M_01_MR_1.nii"),
        ("IXI", "IXI002-Guys-0828-T1.nii.gz"),
    ):
        (tmp_path / cohort).mkdir()
        with zipfile.ZipFile(tmp_path / cohort / "images.zip", "w") as archive:
            archive.writestr(name, b"x")
        answer = preflight(cohort, tmp_path / cohort)
        assert list(answer.images) == [{"OASIS": "OASIS-3", "MIRIAD": "volumes", "IXI": "T1 volumes"}[cohort]]


def test_archives_are_opened_while_time_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        with zipfile.ZipFile(tmp_path / f"part_{number}.zip", "w") as archive:
            archive.writestr(f"miriad_188_AD_M_0{number}_MR_1.nii", b"x")
    monkeypatch.setattr("medalign3d.cohorts.preflight.ARCHIVE_SECONDS", -1.0)
    answer = preflight("MIRIAD", tmp_path)
    assert (answer.archives_unopened, answer.images) == (3, {})
    assert answer.complete
    assert "not opened" in render(answer)


def test_tables_without_images_are_ready_with_a_remark(tmp_path: Path) -> None:
    write_csv(tmp_path / "oasis_cross-sectional.csv", "ID|M/F|Age|CDR", ["OAS1_0001_MR1", "F", 70, 0])
    answer = preflight("OASIS", tmp_path)
    assert answer.complete
    assert "the tables alone are read" in render(answer)
    (tmp_path / "empty").mkdir()
    assert not preflight("OASIS", tmp_path / "empty").complete


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command_prints_the_check_and_its_exit_code_tells(small_run: Run, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(medalign3d.__file__).parents[1])}

    def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "medalign3d.cli", "doctor", *arguments],
            capture_output=True,
            text=True,
            cwd=small_run.project,
            env=environment,
        )

    good = doctor("ADNI", "data/raw/ADNI")
    assert good.returncode == 0, good.stderr
    assert "without it:" in good.stdout
    data = json.loads(doctor("ADNI", "data/raw/ADNI", "--json").stdout)
    assert data["complete"]
    assert {table["name"] for table in data["tables"]} == {spec.name for spec in CATALOGUE["ADNI"]}
    empty = doctor("NACC", str(tmp_path))
    assert empty.returncode == 1
    assert "MISSING" in empty.stdout
    nowhere = doctor("NACC", str(tmp_path / "nowhere"))
    assert nowhere.returncode == 1
    assert "is not there" in nowhere.stdout
