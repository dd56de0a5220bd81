"""``medalign3d explain``: where every value of one image came from."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import medalign3d
from medalign3d import lineage
from medalign3d.ehr import schema
from medalign3d.ehr.label_rules import LABEL_RULES
from medalign3d.files import read_parquet
from medalign3d.results import Results, plain_records


@pytest.fixture(scope="module")
def results(small_run: Run) -> Results:
    return Results(small_run.data)


def command(run: Run, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(medalign3d.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "medalign3d.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=run.project,
        env=environment,
    )


def test_every_value_with_a_row_stands_in_that_row_of_that_table(small_run: Run, results: Results) -> None:
    """The file and row that are printed are right: the native cell there gives the value."""
    native = {
        "sex": ("PTGENDER",),
        "mmse": ("MMSE", "MMSCORE"),
        "educ_years": ("PTEDUCAT",),
        "cdr_global": ("CDGLOBAL",),
    }
    root, checked = small_run.data / "raw" / "ADNI", 0
    for row in plain_records(results.ingest("ADNI").images):
        answer = lineage.explain(results, str(row["image_id"]), small_run.params)
        for field in answer["fields"]:
            if field["name"] not in native or field["file"] is None:
                continue
            lines = list(csv.reader((root / field["file"]).read_text(encoding="utf-8-sig").splitlines()))
            cells = dict(zip(lines[0], lines[field["row"] - 1], strict=True))
            cell = next(cells[name] for name in native[field["name"]] if name in cells)
            if field["name"] == "sex":
                assert field["value"] == {"Male": "M", "Female": "F", "1": "M", "2": "F"}[cell]
            else:
                assert float(cell) == field["value"]
            assert row["native_subject_id"] in (cells.get("PTID"), None) or int(cells["RID"]) == int(
                str(row["native_subject_id"]).rsplit("_", 1)[-1]
            )
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("cohort", ["ADNI", "NACC", "OASIS", "AIBL", "MIRIAD"])
def test_every_field_is_either_explained_or_empty_with_a_reason(small_run: Run, results: Results, cohort: str) -> None:
    for row in plain_records(results.ingest(cohort).images)[:4]:
        answer = lineage.explain(results, str(row["image_id"]), small_run.params)
        shown = {field["name"] for field in answer["fields"]}
        empty = {field["name"] for field in answer["empty"]}
        assert not shown & empty
        nullable = {c.name for c in schema.HARMONIZED_COLUMNS if c.name not in ("provenance", "ehr_text", "ehr_fields")}
        assert nullable - {"labs", "history"} <= shown | empty
        assert all(item["why"] for item in answer["empty"])
        unknown = [f["name"] for f in answer["fields"] if f["rule"] == "not recorded" and f["name"] != "history"]
        assert unknown == []
        assert set(answer["text"]) == {"full", "no_cdr", "demographics_only"}
        assert not {"cdr_global", "cdr_sb"} & set(answer["text"]["no_cdr"]["fields"])
        for source in answer["sources"]:
            assert len(source["sha256"]) == 64
        known = {source["file"] for source in answer["sources"]} | set(results.found(cohort)["source_path"])
        assert {field["file"] for field in answer["fields"] if field["file"]} <= known
        text = lineage.render(answer)
        assert all(len(line) <= 100 or "/" in line for line in text.splitlines())


def test_labels_name_their_rule(small_run: Run, results: Results) -> None:
    harmonized = results.harmonized
    assert harmonized is not None
    labelled = harmonized[harmonized["dx3"].notna()]["image_id"].tolist()
    for image_id in labelled[:5]:
        answer = lineage.explain(results, image_id, small_run.params)
        rule = next(field["rule"] for field in answer["fields"] if field["name"] == "dx3")
        assert rule.split(":")[0] in LABEL_RULES
    unlabelled = harmonized[harmonized["dx3"].isna()]["image_id"].tolist()
    answer = lineage.explain(results, unlabelled[0], small_run.params)
    why = next(item["why"] for item in answer["empty"] if item["name"] == "dx3")
    assert why.split(":")[0] in LABEL_RULES


def test_the_match_lists_the_matched_visit_with_its_signed_distance(small_run: Run, results: Results) -> None:
    for row in plain_records(results.ingest("ADNI").images):
        match = lineage.explain(results, str(row["image_id"]), small_run.params)["match"]
        matched = [c for c in match["candidates"] if c["matched"]]
        assert len(matched) == 1
        assert matched[0]["delta_days"] == match["delta_days"] == row["match_delta_days"]
        assert all(
            abs(matched[0]["delta_days"]) <= abs(c["delta_days"])
            for c in match["candidates"]
            if c["delta_days"] is not None
        )


def names_of(row: dict[str, Any]) -> list[str]:
    source = str(row["source_path"])
    return [
        str(row["image_id"]),
        str(row["image_id"])[:10],
        str(row["native_image_key"]),
        source,
        f"/any/where/{source}",
    ]


def test_all_names_of_an_image_find_the_same_one(results: Results) -> None:
    for cohort in results.cohorts:
        for row in plain_records(results.ingest(cohort).images)[:3]:
            for name in names_of(row):
                assert lineage.find_image(results, name)[1]["image_id"] == row["image_id"], name
    dicom = [r for r in plain_records(results.ingest("ADNI").images) if r["source_format"] == "dicom"]
    for row in dicom:
        assert lineage.find_image(results, f"{row['source_path']}/slice_1.dcm")[1]["image_id"] == row["image_id"]


def test_numbers_are_compared_whole(results: Results) -> None:
    key = str(results.ingest("ADNI").images["native_image_key"].iloc[0])
    assert lineage.find_image(results, key.removeprefix("I"))[1]["native_image_key"] == key
    with pytest.raises(lineage.NotOneImage) as caught:
        lineage.find_image(results, key[:-1])
    assert "why-missing" in str(caught.value)
    with pytest.raises(lineage.NotOneImage) as caught:
        lineage.find_image(results, str(results.ingest("MIRIAD").images["native_subject_id"].iloc[0]))
    assert caught.value.choices


def test_the_command_prints_everything_and_json_is_the_same(small_run: Run, results: Results) -> None:
    image_id = str(results.ingest("OASIS").images["image_id"].iloc[0])
    answer = command(small_run, "explain", image_id)
    assert answer.returncode == 0, answer.stderr
    for heading in ("where each field came from", "match of scan and visit", "person", "text", "normalization",
                    "split and benchmark", "tables that were read", "demographics_only"):  # fmt: skip
        assert heading in answer.stdout
    data = json.loads(command(small_run, "explain", image_id, "--json").stdout)
    assert data["image"]["image_id"] == image_id
    assert data["split"]["split"] in ("train", "val", "test", "excluded")
    missing = command(small_run, "explain", "OAS1_9999_MR1/nothing")
    assert missing.returncode == 1
    assert "why-missing" in missing.stderr


def test_it_works_on_the_folder_of_one_ingest(small_run: Run, results: Results, tmp_path: Path) -> None:
    shutil.copytree(small_run.data / "cohorts" / "ADNI", tmp_path / "ADNI")
    alone = Results(tmp_path / "ADNI")
    assert alone.cohorts == ["ADNI"]
    whole_fields = ("dx3", "dx2", "mci_stage", "mci_course", "educ_code", "age_years")
    for row in plain_records(alone.ingest("ADNI").images):
        one = lineage.explain(alone, str(row["image_id"]), small_run.params)
        whole = lineage.explain(results, str(row["image_id"]), small_run.params)
        assert "as `harmonize` would make it" in one["record"]
        assert one["split"] is None
        assert one["normalization"] is None
        assert one["text"] == whole["text"]
        for name in whole_fields:
            values = [[f["value"] for f in answer["fields"] if f["name"] == name] for answer in (one, whole)]
            assert values[0] == values[1]


def test_a_refused_volume_and_remarks_are_shown(small_run: Run, results: Results) -> None:
    index = read_parquet(small_run.data / "volumes" / "ADNI" / "index.parquet")
    refused = str(index.loc[index["verdict"] != "accepted", "image_id"].iloc[0])
    answer = lineage.explain(results, refused, small_run.params)
    assert answer["normalization"]["reason"] == "QC_FAIL"
    assert answer["split"]["split"] == "excluded"
    assert "QC_FAIL" in answer["split"]["why"]
    remarks = [
        lineage.explain(results, str(row["image_id"]), small_run.params)["issues"]
        for row in plain_records(results.ingest("AIBL").images)
    ]
    seen = {issue["reason"] for issues in remarks for issue in issues}
    assert {"NO_DIAGNOSIS", "AGE_INCONSISTENT", "DUPLICATE_KEY_CONFLICT"} <= seen
