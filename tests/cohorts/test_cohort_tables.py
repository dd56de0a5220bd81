"""Tables in every form that people have them in."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
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


# --- dialects, damage, limits

# Digits and signs of other widths are read as ASCII (a test of its own): they would not come back as they were written.
CELL = st.text(
    st.characters(
        codec="utf-8", exclude_categories=["Cs", "Cc", "Cf", "Zs", "Zl", "Zp", "Nd"], exclude_characters="．，－＋／"
    )
    | st.sampled_from('a1 ,;\t"\n'),
    max_size=12,
).map(str.strip)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 9999).map(str), CELL, CELL, st.just("end")), min_size=1, max_size=8),
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quote_all=st.booleans(),
    final_line_end=st.booleans(),
    compressed=st.booleans(),
    above=st.sampled_from(["", "Exported by the archive\n", "\n\n"]),
)
def test_a_table_reads_back_the_same_in_every_dialect(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], delimiter: str, encoding: str, line_end: str,
    quote_all: bool, final_line_end: bool, compressed: bool, above: str,
) -> None:  # fmt: skip
    header = ["RID", "MMSE SCORE", "NOTE", "LAST"]
    text = io.StringIO(newline="")
    writer = csv.writer(
        text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    )
    writer.writerow(header)
    writer.writerows(rows)
    content = (above + text.getvalue()).replace("\n", line_end)
    content = content if final_line_end else content.removesuffix(line_end)
    data = content.encode(encoding)
    path = tmp_path_factory.mktemp("dialect") / "t.csv"
    path.write_bytes(gzip.compress(data) if compressed else data)
    table = load_table(path)
    assert list(table.frame.columns) == header
    expected = [[cell.replace("\n", line_end) for cell in row] for row in rows]
    assert table.frame.to_numpy().tolist() == expected
    assert table.bad_lines == []


def test_digits_and_signs_of_other_widths_are_read_as_ascii(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("RID,A,B,C\n１２,＋３．５,－４,２００６／０５／０２\n", encoding="utf-8")
    assert load_table(tmp_path / "t.csv").frame.to_numpy().tolist() == [["12", "+3.5", "-4", "2006/05/02"]]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_two_byte_text_without_a_mark_is_known_by_its_header(encoding: str, tmp_path: Path) -> None:
    # Letters whose low byte is empty stand in the half that is empty otherwise.
    (tmp_path / "t.csv").write_bytes(("RID,NOTE,LAST\n" + "1,ĀĀ,end\n" + "2," + "字" * 300 + ",end\n").encode(encoding))
    assert load_table(tmp_path / "t.csv").frame["NOTE"].tolist() == ["ĀĀ", "字" * 300]


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'Title\n\nID,NOTE,X\n1,"two\nlines",a\n\n2,"three\r\nlong\r\nlines",b\n3,plain,c\n')
    assert dict(zip(load_table(path).frame.index, load_table(path).frame["ID"], strict=True)) == {
        4: "1",
        7: "2",
        10: "3",
    }
    write_xlsx(tmp_path / "t.xlsx", "The title||", [None], ["ID", "NOTE", "X"], [1, "a", 2], [None], [2, "b", 3])
    frame = load_table(tmp_path / "t.xlsx").frame
    assert dict(zip(frame.index, frame["ID"], strict=True)) == {4: "1", 6: "2"}


def test_decimal_commas_do_not_hide_the_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ID;A;B\n" + "".join(f"{n};{n},5;0,{n}\n" for n in range(1, 30)))
    assert list(load_table(path).frame.columns) == ["ID", "A", "B"]


def test_a_download_that_was_cut_off_loses_its_last_line_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ID,MMSE,LAST\n1,28,x\n2,29,x\n3,2")
    table = load_table(path)
    assert table.frame["ID"].tolist() == ["1", "2"]
    assert [(bad.line, bad.cut_off) for bad in table.bad_lines] == [(4, True)]


def test_a_lone_short_line_is_torn_and_many_are_a_style(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ID,A,B\n" + "".join(f"{n},1,2\n" for n in range(30)) + "77,1\n" + "88,1,2\n")
    table = load_table(path)
    assert "77" not in set(table.frame["ID"])
    assert [(bad.line, bad.found) for bad in table.bad_lines] == [(32, 2)]
    path.write_text("ID,A,B\n" + "".join(f"{n},1\n" for n in range(30)) + "88,1,2\n")
    assert len(load_table(path).frame) == 31


def test_columns_of_one_name_count_where_they_agree(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "ID|MMSE|MMSE", ["1", "28", "28"], ["2", "28", "3"], ["3", "", "27"])
    table = load_table(path, columns=["ID", "MMSE"])
    assert table.frame["MMSE"].tolist() == ["28", "", "27"]
    assert table.doubtful == [(3, "MMSE")]


def test_null_characters_cost_their_cell_only(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"ID,MMSE\n1,28\x00\n2,2\x008\n3,27\n")
    assert load_table(path).frame["MMSE"].tolist() == ["28", "2\x008", "27"]


def test_digits_of_other_scripts_are_digits_and_superscripts_are_not(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", "ID|A", ["\uff11\uff12", "28\u00b2"], ["\u0663", "\u00a07\u00a0"])
    assert load_table(path).frame.to_numpy().tolist() == [["12", "28\u00b2"], ["3", "7"]]


@pytest.mark.parametrize(
    "content", [b'{"error": 401}\n', b"%PDF-1.4\n%x", b"<?xml version='1.0'?><a/>", b"\n <!-- x --><html>"]
)
def test_answers_of_a_server_are_no_tables(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match="not a table"):
        load_table(tmp_path / "t.csv")


def test_spreadsheets_with_dates_formulas_errors_and_several_sheets(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["A title that spans the table", None, None, None])
    sheet.merge_cells("A1:D1")
    sheet.append(["ID", "EXAMDATE", "MMSE", "CDR"])
    sheet.append([10, datetime.datetime(2006, 5, 3), "=1+1", 0.5])
    sheet.append(["0010", 38840, True, "#N/A"])
    book.create_sheet("second").append(["ID", "other"])
    book.save(tmp_path / "t.xlsm")
    table = load_table(tmp_path / "t.xlsm")
    assert table.frame.to_numpy().tolist() == [["10", "2006-05-03", "", "0.5"], ["0010", "38840", "True", "#N/A"]]
    assert find_table(tmp_path, ["t.xlsm"], "t") == "t.xlsm"


def test_a_wide_table_needs_memory_for_its_wanted_columns_only(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "wide.csv"
    names = ["ID", *(f"X{n}" for n in range(2000)), "MMSE"]
    row = ",".join("1234" for _ in range(2000))
    with path.open("w") as stream:
        stream.write(",".join(names) + "\n")
        stream.writelines(f"{n},{row},{n % 31}\n" for n in range(3000))
    tracemalloc.start()
    table = load_table(path, columns=["id", "mmse"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.frame.shape == (3000, 2)
    assert table.frame["MMSE"].iloc[-1] == str(2999 % 31)
    assert peak < 6e6 < path.stat().st_size


# --- dates of a column


def dates_of(tmp_path: Path, *cells: str) -> list[str | None]:
    table = load_table(write_csv(tmp_path / "t.csv", "ID|EXAMDATE", *([str(n), c] for n, c in enumerate(cells))))
    return [None if (date := row.date("EXAMDATE")[0]) is None else date.isoformat() for row in table.rows()]


def test_the_order_of_day_and_month_is_decided_by_the_whole_column(tmp_path: Path) -> None:
    assert dates_of(tmp_path, "3/5/2006", "4/30/2006") == ["2006-03-05", "2006-04-30"]
    assert dates_of(tmp_path, "3/5/2006") == ["2006-03-05"]  # as documented
    assert dates_of(tmp_path, "3/5/2006", "30/4/2006", "28/4/2006") == ["2006-05-03", "2006-04-30", "2006-04-28"]
    assert dates_of(tmp_path, "3.5.2006", "30.4.2006", "28.4.2006") == ["2006-05-03", "2006-04-30", "2006-04-28"]
    # Proofs of both orders, or one proof alone: what can be read in two ways is not read.
    assert dates_of(tmp_path, "3/5/2006", "30/4/2006", "4/30/2006") == [None, "2006-04-30", "2006-04-30"]
    assert dates_of(tmp_path, "3/5/2006", "30/4/2006") == [None, "2006-04-30"]
    # A stray form among dates of another form.
    assert dates_of(tmp_path, "3/5/2006", "2006-01-02", "2006-01-03") == [None, "2006-01-02", "2006-01-03"]
    # One slip among many proofs of the documented order.
    assert dates_of(tmp_path, "3/5/2006", "30/4/2006", *["4/30/2006"] * 40)[:2] == ["2006-03-05", None]
