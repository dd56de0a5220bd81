"""Thousands of malformed cells in every cohort's tables: no crash, nothing silently wrong, every refusal listed.

A simulated native tree without faults is read once. Then cells of its clinical tables are replaced by malformed ones,
many at a time, and it is read again. Every value of every visit must be the one it was before, or nothing, or what the
written text honestly says; a cell that says nothing must be listed with its file, line and column.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
from cohort_trees import by_key, params, run, write_csv, write_image
from malformed import JUNK, Cell, TableFile, malform
from test_cohort_simulated import NoAnatomy

from medalign3d.cohorts import IngestResult
from medalign3d.cohorts.aibl import FROM_SI
from medalign3d.cohorts.base import CLINICAL_COLUMNS, KEY_COLUMNS, Ingest
from medalign3d.cohorts.tables import header_key
from medalign3d.cohorts.values import parse_date
from medalign3d.errors import InputError
from medalign3d.params import Params
from medalign3d.simulate import LAYOUTS, images, simulate_cohort

SHARE = 0.12  # of the cells of a table
CELLS = 2100  # per cohort: more than 10,000 together
#: Values that follow from others; they are checked with those.
DERIVED = {"mmse_source", "cdr_global_source", "cdr_sb_source", "lm_source", "volume_source", "moca_source"}


#: (before, now): where the better source is refused, the documented weaker one may stand in.
WEAKER = {
    ("NC", "Non-DEM"),
    ("AD_DEM", "DEM"),
    ("MCI", "DEM"),
    ("MCI", "Non-DEM"),
    ("AD", "unknown"),
    ("other", "unknown"),
}
FIXED = ("sex", "handedness", "apoe_genotype", "apoe4_count", "educ_code", "ses", "dx_subject_level")


@dataclass
class Tree:
    """A native tree, what reading it gives, and its tables."""

    cohort: str
    root: Path
    pristine: Path
    tables: list[str]
    expected: IngestResult
    #: Columns (file, name) whose cells are listed when they are malformed.
    read: set[tuple[str, str]] = field(default_factory=set)

    def ingest(self) -> IngestResult:
        return run(self.cohort, self.root, read_images=False)  # the voxels stay as they are

    def restore(self, relative: str) -> TableFile:
        """Put a table back as it was."""
        (self.root / relative).unlink()
        shutil.copy(self.pristine / relative, self.root / relative)
        return TableFile(self.root, relative)


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def tree(
    request: pytest.FixtureRequest, demo_params: Params, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tree]:
    cohort, folder = request.param, tmp_path_factory.mktemp("malformed")
    people = dict.fromkeys(demo_params.simulate.participants, 20 if cohort == "OASIS" else 8)
    changes = {"faults": False, "workers": 1, "dicom_fraction": 0.0, "zooms_mm": 2.0, "participants": people}
    section = demo_params.simulate.model_copy(update=changes)
    renderer = NoAnatomy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "renderer_of", lambda _folder: renderer)
        simulate_cohort(
            cohort, demo_params.model_copy(update={"simulate": section}), folder / "raw", folder / "truth",
            template=folder,
        )  # fmt: skip
    shutil.copytree(folder / "raw", folder / "work", copy_function=os.link)
    tables = sorted(
        path.relative_to(folder / "raw").as_posix()
        for path in (folder / "raw").rglob("*")
        if path.suffix in (".csv", ".xlsx")
    )
    made = Tree(cohort, folder / "work", folder / "raw", tables, run(cohort, folder / "work", read_images=False))
    # Which columns are read is found out: with nothing but junk in it, a column that is read is listed.
    for relative in tables:
        table = made.restore(relative)
        junk = {
            (r, c): "=1+1"
            for r, row in enumerate(table.rows)
            for c, cell in enumerate(row)
            if cell != "" and header_key(table.header[c]) not in KEY_COLUMNS
        }
        table.write(junk)
        try:
            issues = made.ingest().field_issues
        except InputError:
            issues = made.expected.field_issues
        made.read |= {(relative, column) for column in issues["column"]}
        made.restore(relative)
    yield made
    shutil.rmtree(folder)


def plain(value: Any) -> Any:
    return None if value is None or value is pd.NA or (isinstance(value, float) and value != value) else value


def id_forms(row: list[str]) -> set[str]:
    """Whom a row may be about: its short cells, and parts of its labels."""
    forms = {cell for cell in row if len(cell) < 40}
    return forms | {"_".join(cell.split("_")[:n]) for cell in forms for n in (1, 2)}


def values_of(result: IngestResult) -> dict[tuple[str, str], dict[str, Any]]:
    """Clinical values by person and visit; laboratory results and history one by one."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in result.visits.to_dict("records"):
        values = {name: plain(record[name]) for name in CLINICAL_COLUMNS if name not in DERIVED}
        for group in ("labs", "history"):
            text = values.pop(group, None)
            values.update({f"{group}.{name}": value for name, value in (json.loads(text) if text else {}).items()})
        values["visit_date"] = plain(record["visit_date"])
        found[(record["native_subject_id"], record["visit_code"])] = values
    return found


def near(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-4 * max(1.0, abs(other))
    return bool(one == other)


def replace_cells(table: TableFile, random: Random) -> dict[tuple[int, int], Cell]:
    chosen: dict[tuple[int, int], Cell] = {}
    for r, row in enumerate(table.rows):
        keys = [c for c, name in enumerate(table.header) if header_key(name) in KEY_COLUMNS]
        broken = random.random() < 0.05 and bool(keys)
        for c, cell in enumerate(row):
            if cell == "" or (c in keys and not broken) or (c not in keys and random.random() > SHARE):
                continue
            chosen[(r, c)] = Cell(random.choice(JUNK), junk=True) if c in keys else malform(cell, random)
    return chosen


def test_malformed_cells(tree: Tree) -> None:
    random = Random(f"malformed {tree.cohort}")
    before = values_of(tree.expected)
    replaced = 0
    wrong: list[tuple[Any, ...]] = []
    while replaced < CELLS:
        written: dict[tuple[str, int], dict[str, Cell]] = {}
        broken_rows: set[tuple[str, int]] = set()
        untouched_dates: dict[tuple[Any, Any], list[Any]] = {}
        pristine_rows: dict[tuple[Any, Any], set[str]] = {}
        for relative in tree.tables:
            table = tree.restore(relative)
            cells = replace_cells(table, random)
            lines = table.write({place: cell.text for place, cell in cells.items()})
            replaced += len(cells)
            for r, row in enumerate(table.rows):
                whole = [cell for c, cell in enumerate(row) if (r, c) not in cells]
                untouched_dates[(relative, lines[r])] = [date for cell in whole if (date := parse_date(cell)[0])]
            pristine_rows |= {(relative, lines[r]): id_forms(row) for r, row in enumerate(table.rows)}
            for (r, c), cell in cells.items():
                written.setdefault((relative, lines[r]), {})[table.header[c]] = cell
                if header_key(table.header[c]) in KEY_COLUMNS:
                    broken_rows.add((relative, lines[r]))
        result = tree.ingest()  # which also checks that found = accepted + dropped
        listed = set(
            zip(result.field_issues["source_file"], result.field_issues["source_row"], result.field_issues["column"],
                strict=True)
        )  # fmt: skip

        # Every refusal is listed with file, line and column.
        wrong += [
            ("not listed", file, line, column, cell.text[:40])
            for (file, line), row in written.items()
            for column, cell in row.items()
            if cell.junk
            and (file, line, column) not in listed
            and ((file, column) in tree.read and (file, line) not in broken_rows)
        ]
        # A row whose keys say nothing is listed, too.
        noted = {(file, line) for file, line, _ in listed} | set(
            zip(result.quarantine["source_file"], result.quarantine["source_row"], strict=True)
        )
        wrong += [
            ("row not listed", file, line, {column: cell.text[:20] for column, cell in written[(file, line)].items()})
            for file, line in broken_rows
            if file in {name for name, _ in tree.read} and "IMAGEQC" not in file and (file, line) not in noted
        ]
        # No value is silently wrong.
        sources = sources_of(result)
        for key, values in values_of(result).items():
            own = before.get(key)
            for name, value in values.items() if own is not None else ():
                if value is None or near(value, own[name]) or (own[name], value) in WEAKER:
                    continue
                place = sources[key].get(name, (None, None))
                if place in written:
                    row = written[place].values()
                    numbers = [number for cell in row for number in cell.numbers]
                    honest = [*numbers, *(date for cell in row for date in cell.dates), *untouched_dates[place]]
                    if name in ("icv_mm3", "brain_mm3"):  # OASIS: cm³, and the brain as a share of it
                        honest += [n * 1000 * (own[name] or 0) / own["icv_mm3"] for n in numbers if own["icv_mm3"]]
                    if name.startswith("labs."):  # AIBL brings results to the units of ADNI
                        honest += [round(n * factor, 3) for n in numbers for factor in FROM_SI.values()]
                else:
                    # An untouched row that stands in for a refused one: of the same person, then.
                    honest = [value] if place[0] is None or key[0] in pristine_rows[place] else []
                if not any(near(value, meaning) for meaning in honest):
                    wrong.append(("wrong value", *key, name, value, own[name], sources[key].get(name)))
        wrong += check_images(tree, result)
    for relative in tree.tables:
        tree.restore(relative)
    assert not wrong, "\n".join(map(str, [len(wrong), *wrong[:40]]))


def sources_of(result: IngestResult) -> dict[tuple[str, str], dict[str, tuple[str, int]]]:
    """File and line of every value of every visit."""
    found = {}
    for record in result.visits.to_dict("records"):
        sources = json.loads(record["provenance"])["values"]
        places = {name: (source["file"], source["row"]) for name, source in sources.items()}
        for group in ("labs", "history"):
            text = plain(record[group])
            places.update(
                {f"{group}.{name}": places.get(group, ("", 0)) for name in (json.loads(text) if text else {})}
            )
        found[(record["native_subject_id"], record["visit_code"])] = places
    return found


def check_images(tree: Tree, result: IngestResult) -> list[tuple[Any, ...]]:
    """Images keep their person; what they say is what their visit says, or what they said before."""
    visits = values_of(result)
    expected = {r["native_image_key"]: r for r in tree.expected.images.to_dict("records")}
    wrong: list[tuple[Any, ...]] = []
    for record in result.images.to_dict("records"):
        own = expected[record["native_image_key"]]
        assert record["native_subject_id"] == own["native_subject_id"]
        for name in FIXED:
            value = plain(record[name])
            if value is not None and plain(own[name]) is not None and not near(value, own[name]):
                wrong.append(("wrong person value", record["native_image_key"], name, value, own[name]))
        visit = visits.get((record["native_subject_id"], plain(record["visit_code"])))
        for name in ("mmse", "cdr_global", "moca", "dx_native"):
            value = plain(record[name])
            if value is not None and (visit is None or not near(value, visit[name])):
                wrong.append(("not of its visit", record["native_image_key"], name, value))
    return wrong


def test_a_column_that_turns_out_to_be_day_first_is_reported(tmp_path: Path) -> None:
    rows = [["1", "bl", "3/5/2006"], ["2", "bl", "30/4/2006"], ["3", "bl", "28/4/2006"], ["4", "bl", "x"]]
    write_csv(tmp_path / "aibl_cdr.csv", "RID|VISCODE|EXAMDATE", *rows)
    book = Ingest("AIBL", tmp_path, params())
    table = book.read("aibl_cdr.csv", "CDR")
    collected = book.collect(table, lambda row: (row.get("RID"), "bl"), {"date": (parse_date, ("EXAMDATE",))})
    assert {key[0]: values["date"].value.isoformat() for key, values in collected.items() if values} == {
        "1": "2006-05-03", "2": "2006-04-30", "3": "2006-04-28"
    }  # fmt: skip
    notes = [(row["reason"], row["level"], json.loads(row["key_json"])) for row in book._quarantine]
    assert ("DATE_UNPARSABLE", "table", {"file": "aibl_cdr.csv", "column": "EXAMDATE"}) in notes
    assert [(row["source_file"], row["source_row"], row["column"]) for row in book._field_issues] == [
        ("aibl_cdr.csv", 5, "EXAMDATE")
    ]


@pytest.mark.parametrize("junk", [*JUNK[::5], "28 points", "1_0", "4-", "3\u00a0 4"])
def test_junk_in_every_cell_of_ixi(tmp_path: Path, junk: str) -> None:
    columns = ["IXI_ID", "SEX_ID", "AGE"]
    good = [["2", "2", "35.8"], ["12", "1", "38.78"]]
    for column in range(3):
        root = tmp_path / str(column)
        for subject in ("002", "012"):
            write_image(root / f"IXI{subject}-Guys-0828-T1.nii", int(subject))
        bad = [[junk if c == column else cell for c, cell in enumerate(row)] for row in good[:1]]
        write_csv(root / "IXI.csv", "|".join(columns), *bad, good[1])
        result = run("IXI", root)
        listed = set(zip(result.field_issues["source_row"], result.field_issues["column"], strict=True))
        assert (2, columns[column]) in listed
        untouched = by_key(result)["IXI012-Guys-0828-T1"]
        assert (untouched["sex"], round(untouched["age_years"], 2)) == ("M", 38.78)
        own = by_key(result).get("IXI002-Guys-0828-T1", {"sex": None, "age_years": None})
        assert own["age_years"] is None or round(own["age_years"], 1) == 35.8
        assert own["sex"] in (None, "F")
