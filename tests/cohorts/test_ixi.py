"""IXI: both tables, the spreadsheet's repeated ids, names, sites and archives."""

from __future__ import annotations

import datetime
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cohort_trees import by_key, reason_names, run, write_csv, write_image, write_xlsx
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cohorts.base import native_ids, participant_id_of
from medalign3d.cohorts.ixi import subject_of
from medalign3d.errors import InputError, MissingTable

PUBLIC = (
    "IXI_ID|SEX_ID (1=m, 2=f)|HEIGHT|WEIGHT|ETHNIC_ID|MARITAL_ID|OCCUPATION_ID|QUALIFICATION_ID|DOB|DATE_AVAILABLE|"
    "STUDY_DATE|AGE"
)


def public_row(
    number: Any, sex: Any = 2, age: Any = 35.8, born: Any = "", studied: Any = "", ethnic: Any = 1
) -> list[Any]:
    return [number, sex, 164, 58, ethnic, 4, 1, 5, born, 1, studied, age]


def t1(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write_image(root / f"{name}-T1.nii.gz", seed)


def record_of(root: Path) -> tuple[dict[str, Any], list[str]]:
    result = run("IXI", root)
    records = by_key(result)
    assert len(records) == 1, reason_names(result)
    return next(iter(records.values())), reason_names(result)


@given(
    st.integers(0, 999), st.sampled_from(["IXI{:03d}", "{}", "{:03d}", "{}.0", "IXI{:03d}-HH-1236", "sub-IXI{:03d}"])
)
def test_ids_can_be_written_in_many_ways_and_turned_back(number: int, form: str) -> None:
    native = f"IXI{number:03d}"
    assert subject_of(form.format(number)) == native
    assert native_ids(participant_id_of("IXI", native)) == ("IXI", native)


@given(st.text(max_size=12))
def test_other_text_is_no_id(text: str) -> None:
    subject = subject_of(text)
    assert subject is None or len(subject) == 6


def test_sites_and_scanners_stand_in_the_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "IXI.csv", PUBLIC, public_row(14), public_row(2, sex=1), public_row(35, age=60))
    t1(tmp_path, "IXI014-HH-1236", "IXI002-Guys-0828", "IXI035-IOP-0873")
    result = run("IXI", tmp_path)
    found = {
        r["native_subject_id"]: (r["sex"], r["field_strength_t"], r["manufacturer"]) for r in by_key(result).values()
    }
    assert found == {"IXI014": ("F", 3.0, "Philips"), "IXI002": ("M", 1.5, "Philips"), "IXI035": ("F", 1.5, "GE")}
    assert by_key(result)["IXI035-IOP-0873-T1"]["age_precision"] == "integer"
    assert result.quarantine.empty


def test_a_full_row_and_its_copy_with_zeros_complete_each_other(tmp_path: Path) -> None:
    write_csv(tmp_path / "IXI.csv", PUBLIC, public_row(14, sex=0, age=0, ethnic=0), public_row(14))
    t1(tmp_path, "IXI014-HH-1236")
    record, reasons = record_of(tmp_path)
    assert (record["sex"], record["age_years"]) == ("F", pytest.approx(35.8))
    assert reasons == ["DUPLICATE_KEY_IDENTICAL"]


def test_two_rows_that_differ_on_age_give_none_and_on_sex_no_image(tmp_path: Path) -> None:
    # Two ids of the genuine spreadsheet are like this: one differs on age, one on age and sex.
    born = {"born": "1960-01-01", "studied": "2006-01-01"}
    write_csv(
        tmp_path / "IXI.csv", PUBLIC, public_row(219, age=34, **born), public_row(219, age=53, **born),
        public_row(328, sex=1, age=40), public_row(328, sex=2, age=61),
    )  # fmt: skip
    t1(tmp_path, "IXI219-Guys-0899", "IXI328-Guys-0900")
    record, reasons = record_of(tmp_path)
    assert (record["native_subject_id"], record["age_years"], record["sex"]) == ("IXI219", None, "F")
    assert reasons == ["AGE_MISSING", "DUPLICATE_KEY_CONFLICT", "DUPLICATE_KEY_CONFLICT", "SEX_CONFLICT"]


@pytest.mark.parametrize("write", [write_csv, write_xlsx])
def test_dates_stand_in_for_a_missing_age(tmp_path: Path, write: Callable[..., Path]) -> None:
    as_date = (lambda text: text) if write is write_csv else datetime.datetime.fromisoformat
    name = "IXI.csv" if write is write_csv else "IXI.xlsx"
    write(tmp_path / name, PUBLIC, public_row(14, age="", born=as_date("1970-11-20"), studied=as_date("2006-09-08")))
    t1(tmp_path, "IXI014-HH-1236")
    record, reasons = record_of(tmp_path)
    assert (record["age_years"], record["scan_date"]) == (pytest.approx(35.8, abs=0.01), datetime.date(2006, 9, 8))
    assert json.loads(record["provenance"])["values"]["age_years"]["rule"] == "STUDY_DATE - DOB"
    assert reasons == []


def test_participants_without_row_and_rows_without_image(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "participants.csv", "IXI_ID|SEX|AGE", ["IXI014", "F", 34.2], ["IXI900", "M", 50], ["?", "M", 5]
    )
    t1(tmp_path, "IXI014-HH-1236", "IXI077-Guys-0700")
    write_image(tmp_path / "IXI014-HH-1236-T2.nii.gz", 9)
    write_image(tmp_path / "IXI014-HH-1236-DTI-03.nii.gz", 8)
    record, reasons = record_of(tmp_path)
    assert record["native_subject_id"] == "IXI014"
    assert reasons == ["ID_NOT_IN_CLINICAL", "ID_UNPARSABLE", "IMAGE_WITHOUT_FILE", "NOT_T1", "NOT_T1"]


def test_the_same_sheet_in_two_formats_is_one_table_and_other_tables_are_an_error(tmp_path: Path) -> None:
    write_csv(tmp_path / "IXI.csv", PUBLIC, public_row(14))
    write_xlsx(tmp_path / "IXI.xlsx", PUBLIC, public_row(14))
    t1(tmp_path, "IXI014-HH-1236")
    assert record_of(tmp_path)[1] == []
    for name in ("IXI.csv", "IXI.xlsx"):
        (tmp_path / name).rename(tmp_path / f"my{name}")
    write_csv(tmp_path / "myIXI.csv", PUBLIC, public_row(14, age=20))
    with pytest.raises(InputError, match="more than once"):
        run("IXI", tmp_path)
    write_csv(tmp_path / "participants.csv", "IXI_ID|SEX|AGE", ["IXI014", "F", 34.2])
    assert record_of(tmp_path)[0]["age_years"] == pytest.approx(34.2)


def test_images_in_a_tar_are_read_and_a_compressed_tar_is_remarked_on(tmp_path: Path) -> None:
    write_csv(tmp_path / "IXI.csv", PUBLIC, public_row(14), public_row(2))
    t1(tmp_path / "made", "IXI014-HH-1236", "IXI002-Guys-0828")
    with tarfile.open(tmp_path / "IXI-T1.tar", "w") as archive:
        for path in sorted((tmp_path / "made").iterdir()):
            archive.add(path, path.name)
            path.unlink()
    with tarfile.open(tmp_path / "IXI-T2.tgz", "w:gz"):
        pass
    result = run("IXI", tmp_path)
    assert list(by_key(result)) == ["IXI002-Guys-0828-T1", "IXI014-HH-1236-T1"]
    assert reason_names(result) == ["IMAGE_WITHOUT_FILE"]
    assert "unpack" in result.quarantine["detail"][0]


def test_the_table_alone_gives_visits_and_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingTable, match="IXI_ID"):
        run("IXI", tmp_path)
    write_csv(tmp_path / "IXI.csv", PUBLIC)
    with pytest.raises(InputError, match="no IXI images"):
        run("IXI", tmp_path)
    write_csv(tmp_path / "IXI.csv", PUBLIC, public_row(14), public_row(2, sex=1, age=0))
    result = run("IXI", tmp_path)
    assert result.images.empty
    assert result.visits["native_subject_id"].tolist() == ["IXI002", "IXI014"]
    assert result.visits["sex"].tolist() == ["M", "F"]
    assert result.visits["age_years"].astype(object).where(result.visits["age_years"].notna(), None).tolist() == [
        None, pytest.approx(35.8)
    ]  # fmt: skip
    assert len(result.sources) == 1
    assert reason_names(result) == ["IMAGE_WITHOUT_FILE"] * 2


def test_real_participants_keep_the_values_of_their_own_row(real_data: Path) -> None:
    root = real_data / "ixi_t1_2mm"
    result = run("IXI", root, workers=2)
    table = pd.read_csv(root / "participants.csv", dtype=str).set_index("IXI_ID").rename(index=subject_of)
    assert len(result.images) == len(result.visits) == len(table) == 60
    for record in by_key(result).values():
        row = table.loc[record["native_subject_id"]]
        assert record["sex"] == row["SEX"]
        assert record["age_years"] == pytest.approx(float(row["AGE"]), abs=0.006)
        assert record["native_image_key"].startswith(record["native_subject_id"])
    assert result.quarantine.empty
