"""Tables in every form that people have them in."""

from __future__ import annotations

from pathlib import Path

import pytest
from cohort_trees import write_csv, write_xlsx
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign3d.cohorts.tables import find_table, header_key, list_files, load_table, read_table
from medalign3d.errors import InputError, MissingTable

ROWS = [["0010", "M", "-4.0"], ["100", "F", "29"], ["ä", "F", ""]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_delimiters_and_encodings(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = write_csv(tmp_path / "t.csv", "RID|M/F|MMSCORE", *ROWS, delimiter=delimiter, encoding=encoding)
    table = read_table(path)
    assert list(table.columns) == ["RID", "M/F", "MMSCORE"]
    assert table.to_numpy().tolist() == ROWS
    assert list(table.index) == [2, 3, 4]


def test_line_ends_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\r\n"A","B"\r\n"1","x, y"\r\n\r\n"2","two\r\nlines"\r\n')
    table = read_table(path)
    assert table["B"].tolist() == ["x, y", "two\r\nlines"]


def test_spreadsheet_equals_csv(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "t.xlsx", "RID|MMSCORE|CDR", [10, 29.0, 0.5], [100, None, 1])
    table = read_table(tmp_path / "t.xlsx")
    assert table.to_numpy().tolist() == [["10", "29", "0.5"], ["100", "", "1"]]


def test_a_spreadsheet_under_a_csv_name_is_recognised(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "t.xlsx", "RID|MMSCORE", [10, 29])
    (tmp_path / "t.xlsx").rename(tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv")["RID"].tolist() == ["10"]


def test_bad_lines_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("A,B,C\n1,2,3\n4,5,6,7\n8,9\nx\n10,11,12,,\n")
    table = load_table(path)
    assert table.frame.to_numpy().tolist() == [["1", "2", "3"], ["8", "9", ""], ["10", "11", "12"]]
    assert [bad.line for bad in table.bad_lines] == [3, 5]


def test_a_stray_quote_costs_one_line_only(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('A,B\n1,x\n2,"y\n' + "".join(f"{n},z\n" for n in range(3, 2000)))
    table = load_table(path)
    assert len(table.frame) == 1998
    assert [bad.line for bad in table.bad_lines] == [3]


def test_two_stray_quotes_do_not_swallow_the_rows_between(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('A,B\n1,"x\n2,y\n3,z\n4,"w\n5,v\n')
    table = load_table(path)
    assert set(table.frame["A"]) >= {"2", "3", "5"}
    assert {bad.line for bad in table.bad_lines} == {2, 5}


@pytest.mark.parametrize(
    "content",
    [b"", b"  \n", b"<html><body>log in</body></html>", b"\x00\x01\x02" * 100, b"PK\x03\x04damaged", b"\n\n,,\n"],
)
def test_no_table_is_an_error_that_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_table(tmp_path / "t.csv")
    assert "t.csv" in str(error.value)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=400))
def test_random_bytes_never_give_anything_but_a_table_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("random") / "t.csv"
    path.write_bytes(content)
    try:
        table = read_table(path)
    except InputError:
        return
    assert table.map(lambda cell: isinstance(cell, str)).to_numpy().all()


def test_columns_are_found_whatever_the_case_and_punctuation(tmp_path: Path) -> None:
    table = load_table(write_csv(tmp_path / "t.csv", "rid|DX.bl|Image Data ID", ["1", "CN", "I5"]))
    row = next(table.rows())
    assert row.get("RID") == "1"
    assert row.get("DX_bl") == "CN"
    assert row.get("image_data_id") == "I5"
    assert header_key("M/F") == "m_f"


def test_missing_columns_are_named_with_their_synonyms(tmp_path: Path) -> None:
    table = load_table(write_csv(tmp_path / "t.csv", "RID|VISCODE", ["1", "bl"]))
    with pytest.raises(InputError, match="MMSCORE or MMSE") as error:
        table.require(id=("RID",), score=("MMSCORE", "MMSE"))
    assert "VISCODE" in str(error.value)


def test_only_wanted_columns_are_kept(tmp_path: Path) -> None:
    table = load_table(
        write_csv(tmp_path / "t.csv", "NACCID|X|naccvnum", ["a", "b", "c"]), columns=("NACCID", "NACCVNUM")
    )
    assert list(table.frame.columns) == ["NACCID", "naccvnum"]
    assert table.all_columns == ["NACCID", "X", "naccvnum"]


# --- finding


def test_names_are_anchored_and_dot_files_ignored(tmp_path: Path) -> None:
    for name in ("OTHER_CDR.csv", "CDR_notes.csv", "._CDR.csv", "CDR.csv.bak"):
        write_csv(tmp_path / name, "RID", ["1"])
    files = list_files(tmp_path)
    with pytest.raises(MissingTable) as error:
        find_table(tmp_path, files, "CDR", prefixes=("ADNI",))
    assert "OTHER_CDR.csv" in str(error.value)
    write_csv(tmp_path / "deep" / "ADNI_CDR_17Nov2024.csv", "RID", ["1"])
    assert find_table(tmp_path, list_files(tmp_path), "CDR", prefixes=("ADNI",)) == "deep/ADNI_CDR_17Nov2024.csv"


def test_the_newest_dated_export_wins(tmp_path: Path) -> None:
    for suffix in ("17Nov2024", "02Feb2025", "30Dec2023"):
        write_csv(tmp_path / f"CDR_{suffix}.csv", "RID", [suffix])
    assert find_table(tmp_path, list_files(tmp_path), "CDR") == "CDR_02Feb2025.csv"
    write_csv(tmp_path / "aibl_cdr_28-Apr-2015.csv", "RID", ["1"])
    write_csv(tmp_path / "aibl_cdr_01-Jun-2018.csv", "RID", ["2"])
    assert find_table(tmp_path, list_files(tmp_path), "cdr", prefixes=("aibl",)) in (
        "CDR_02Feb2025.csv", "aibl_cdr_01-Jun-2018.csv"
    )  # fmt: skip


def test_undated_differing_tables_are_an_error(tmp_path: Path) -> None:
    write_csv(tmp_path / "a" / "CDR.csv", "RID", ["1"])
    write_csv(tmp_path / "b" / "CDR_17Nov2024.csv", "RID", ["2"])
    with pytest.raises(InputError, match="more than once"):
        find_table(tmp_path, list_files(tmp_path), "CDR")


def test_equal_copies_are_one_table(tmp_path: Path) -> None:
    write_csv(tmp_path / "a" / "CDR.csv", "RID", ["1"])
    write_csv(tmp_path / "b" / "CDR.csv", "RID", ["1"])
    assert find_table(tmp_path, list_files(tmp_path), "CDR") == "a/CDR.csv"


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_csv(tmp_path / "real" / "CDR.csv", "RID", ["1"])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "root")
    assert list_files(tmp_path / "root") == ["link/CDR.csv"]
    with pytest.raises(InputError):
        list_files(tmp_path / "absent")
