"""From native files to the written tables: every image accounted for, the same bytes however the files were read."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ehr_tables import make_params

from medalign3d.cohorts import ingest_cohort, read_ingest, write_ingest
from medalign3d.ehr import schema
from medalign3d.ehr.harmonize import harmonize, write_harmonized
from medalign3d.ehr.label_rules import LABEL_RULES
from medalign3d.ehr.storage import arrow_schema
from medalign3d.ehr.text import render
from medalign3d.files import read_parquet, sha256_file
from medalign3d.params import Params
from medalign3d.simulate import anatomy, images, simulate_cohort

COHORTS = ["ADNI", "NACC", "OASIS", "AIBL", "MIRIAD"]
TABLES = ["images", "persons", "visits", "quarantine", "field_issues", "sources", "counts", "checks"]


class Noise:
    """A renderer that draws noise on the right grid: tables and headers need no anatomy."""

    def __init__(self) -> None:
        self.count = itertools.count()

    def render(self, _anatomy: Any, scan: Any) -> anatomy.Rendered:
        shape, affine = anatomy._scanner_grid(scan)
        data = np.zeros(shape, np.int16)
        data[shape[0] // 2] = np.random.default_rng(next(self.count)).integers(1, 500, size=shape[1:])
        return anatomy.Rendered(data, affine, {
            "ventricles_ml": 30.0, "hippocampus_left_ml": 3.5, "hippocampus_right_ml": 3.5, "brain_ml": 1150.0,
            "icv_ml": 1500.0, "white_matter_hypointensities_ml": 3.0,
        })  # fmt: skip


def copied_in_another_order(source: Path, target: Path) -> None:
    """Copy a tree so that its files are created in reverse order."""
    files = [Path(folder, name) for folder, _, names in os.walk(source) for name in names]
    for path in sorted(files, reverse=True):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def read_and_harmonize(params: Params, raw: Path, out: Path, workers: int) -> Path:
    for cohort in COHORTS:
        result = ingest_cohort(cohort, raw / cohort, params, workers=workers)
        write_ingest(result, out / "cohorts" / cohort, simulated=True)
    tables = {cohort: read_ingest(out / "cohorts" / cohort) for cohort in COHORTS}
    write_harmonized(harmonize(tables, params), out / "ehr", simulated=True)
    return out / "ehr"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Params]:
    """Simulated cohorts with planted faults, and what became of them."""
    folder = tmp_path_factory.mktemp("harmonize")
    params = make_params(cohorts=COHORTS)
    changes = {"faults": True, "workers": 1, "dicom_fraction": 0.0, "zooms_mm": 2.0}
    section = params.simulate.model_copy(update={**changes, "participants": dict.fromkeys(COHORTS, 6)})
    params = params.model_copy(update={"simulate": section})
    with pytest.MonkeyPatch.context() as patch:
        renderer = Noise()
        patch.setattr(images, "renderer_of", lambda _folder: renderer)
        for cohort in COHORTS:
            simulate_cohort(cohort, params, folder / "raw" / cohort, folder / "truth" / cohort, template=folder)
    return read_and_harmonize(params, folder / "raw", folder / "first", workers=1), folder, params


def test_every_image_found_is_kept_or_has_a_reason(written):
    ehr, folder, _ = written
    counts = read_parquet(ehr / "counts.parquet").set_index("dataset")
    quarantine = read_parquet(ehr / "quarantine.parquet")
    kept = read_parquet(ehr / "images.parquet")
    assert counts.index.tolist() == COHORTS
    assert (counts["found"] == counts["read"] + counts["dropped_by_ingest"]).all()
    assert (counts["read"] == counts["images"] + counts["dropped_by_harmonize"]).all()
    for cohort in COHORTS:
        # Counted on disk, not from the tables that the count was made of.
        found = pq.read_table(folder / "first" / "cohorts" / cohort / "found.parquet").num_rows
        rows = quarantine[quarantine["dataset"] == cohort]
        dropped = rows[(rows["level"] == "image") & (rows["severity"] == "drop")]
        assert counts.loc[cohort, "found"] == found == (kept["dataset"] == cohort).sum() + len(dropped)
        assert dict(dropped["run_id"].value_counts()) == {
            name: count
            for name, count in (
                ("ingest", counts.loc[cohort, "dropped_by_ingest"]),
                ("harmonize", counts.loc[cohort, "dropped_by_harmonize"]),
            )
            if count
        }
    assert quarantine["reason"].notna().all()
    assert counts["dropped_by_ingest"].sum() > 0


def test_companion_tables_hold_all_cohorts(written):
    ehr, folder, _ = written
    tables = {name: read_parquet(ehr / f"{name}.parquet") for name in TABLES}
    for name in ("visits", "sources", "field_issues", "quarantine"):
        parts = {cohort: read_parquet(folder / "first" / "cohorts" / cohort / f"{name}.parquet") for cohort in COHORTS}
        whole = tables[name][tables[name]["run_id"] == "ingest"] if name == "quarantine" else tables[name]
        counts = whole["dataset"].value_counts()
        assert {cohort: len(part) for cohort, part in parts.items()} == {c: int(counts.get(c, 0)) for c in COHORTS}
    visits, kept = tables["visits"], tables["images"]
    # A visit has the label of its image, and visits without an image are there too.
    key = ["dataset", "native_subject_id", "visit_code"]
    joined = kept.merge(visits, on=key, suffixes=("", "_visit"), validate="many_to_one")
    assert len(joined) == kept["visit_code"].notna().sum()
    assert (joined["dx3"].fillna("") == joined["dx3_visit"].fillna("")).all()
    assert len(visits) > len(joined[key].drop_duplicates())
    assert set(tables["persons"]["participant_id"]) >= set(kept["participant_id"])
    for table in tables.values():
        assert table.attrs["simulated"] == "true"


def test_files_have_the_types_of_the_schema(written):
    ehr = written[0]
    for name, columns in (("images", schema.HARMONIZED_COLUMNS), ("visits", schema.VISIT_COLUMNS)):
        assert pq.read_schema(ehr / f"{name}.parquet").remove_metadata().equals(arrow_schema(columns))
    table = read_parquet(ehr / "images.parquet")
    schema.validate_images(table)
    # What is read back gives the same text, and writing it again the same cells.
    params = written[2]
    options = {"include_apoe": params.harmonize.include_apoe, "include_labs": params.harmonize.include_labs}
    assert [render(row, **options) for row in table.to_dict("records")] == table["ehr_text"].tolist()
    assert all(isinstance(cells, dict) for cells in table["labs"])
    assert any(table["labs"])
    again = schema.coerce_images(table)
    pd.testing.assert_series_equal(again["labs"].map(json.loads), table["labs"], check_dtype=False)


def test_every_image_says_where_its_labels_come_from(written):
    table = read_parquet(written[0] / "images.parquet")
    for row in table.to_dict("records"):
        values = json.loads(row["provenance"])["values"]
        for column in ("dx3", "dx2"):
            rule = LABEL_RULES[values[column]["rule"]]
            has_label = isinstance(row[column], str)
            assert rule.column == column
            assert has_label == (rule.result != "")
            if has_label:
                assert isinstance(values[column]["file"], str)
                assert values[column]["row"] is None or values[column]["row"] >= 1
        assert ("mci_course" in values) == (row["dx3"] == "MCI")
        assert ("mci_stage" in values) == (row["dx3"] == "MCI" and row["dataset"] == "ADNI")


def test_workers_and_the_order_of_files_change_nothing(written):
    ehr, folder, params = written
    copied_in_another_order(folder / "raw", folder / "raw_copy")
    again = read_and_harmonize(params, folder / "raw_copy", folder / "second", workers=2)
    names = sorted(path.name for path in ehr.iterdir())
    assert names == sorted([*(f"{name}.parquet" for name in TABLES), "data_dictionary.md"])
    assert [sha256_file(again / name) for name in names] == [sha256_file(ehr / name) for name in names]


def test_the_order_of_rows_changes_nothing(written, tmp_path):
    ehr, folder, params = written
    tables = {}
    for cohort in COHORTS:
        result = read_ingest(folder / "first" / "cohorts" / cohort)
        for name in ("images", "visits", "quarantine", "sources", "field_issues"):
            table = getattr(result, name)
            shuffled = table.sample(frac=1, random_state=5).reset_index(drop=True)
            shuffled.attrs = table.attrs
            setattr(result, name, shuffled)
        tables[cohort] = result
    write_harmonized(harmonize(tables, params), tmp_path)
    for name in TABLES:
        assert sha256_file(tmp_path / f"{name}.parquet") == sha256_file(ehr / f"{name}.parquet"), name


def test_a_cohort_of_tables_alone_has_visits_and_no_image(written, tmp_path):
    _, folder, params = written
    tables = {cohort: read_ingest(folder / "first" / "cohorts" / cohort) for cohort in COHORTS}
    tables["AIBL"].images = tables["AIBL"].images.iloc[:0]
    tables["AIBL"].quarantine = tables["AIBL"].quarantine.iloc[:0]
    tables["AIBL"].found = tables["AIBL"].found.iloc[:0]
    write_harmonized(harmonize(tables, params), tmp_path)
    counts = read_parquet(tmp_path / "counts.parquet").set_index("dataset")
    assert counts.loc["AIBL"].tolist() == [0, 0, 0, 0, 0]
    assert (read_parquet(tmp_path / "visits.parquet")["dataset"] == "AIBL").any()
    assert not (read_parquet(tmp_path / "images.parquet")["dataset"] == "AIBL").any()
    only = params.model_copy(update={"cohorts": ["AIBL"]})
    write_harmonized(harmonize({"AIBL": tables["AIBL"]}, only), tmp_path / "only")
    assert len(read_parquet(tmp_path / "only" / "images.parquet")) == 0
