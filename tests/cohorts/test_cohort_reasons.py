"""Every reason code is explained, and every image found is counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from cohort_trees import REPOSITORY, run, write_csv, write_image

from medalign3d.cohorts import QuarantineReason, read_ingest, write_ingest
from medalign3d.cohorts.reasons import EXPLANATIONS, SEVERITY_WORDS, Severity, explain_reason
from medalign3d.files import read_parquet


def test_each_of_the_34_reasons_has_its_own_meaning_and_remedy() -> None:
    assert len(QuarantineReason) == 34
    assert set(EXPLANATIONS) == set(QuarantineReason)
    assert len({explanation.meaning for explanation in EXPLANATIONS.values()}) == 34
    for code, explanation in EXPLANATIONS.items():
        for sentence in (explanation.meaning, explanation.remedy):
            assert re.fullmatch(r"[A-Z0-9`].{10,}\.", sentence), code
    assert set(SEVERITY_WORDS) == set(Severity)


def test_parameters_that_remedies_name_exist() -> None:
    text = (REPOSITORY / "params.yaml").read_text()
    named = {n for e in EXPLANATIONS.values() for n in re.findall(r"`(?:ingest|harmonize|normalize)\.(\w+)", e.remedy)}
    assert named
    assert [name for name in named if f"  {name}:" not in text] == []


def test_a_code_of_another_version_is_no_error() -> None:
    assert "no reason code" in explain_reason("NEW_CODE").meaning


def ixi(root: Path) -> Path:
    write_csv(root / "participants.csv", "IXI_ID|SEX|AGE", ["IXI014", "F", 34.24], ["IXI016", "", 30])
    write_image(root / "IXI014-HH-1236_T1.nii.gz", 1)
    write_image(root / "IXI015-HH-1237_T1.nii.gz", 2)
    write_image(root / "IXI016-HH-1238_T1.nii.gz", 3)
    write_image(root / "IXI014-HH-1236_T2.nii.gz", 4)
    return root


def test_found_lists_every_image_with_its_outcome_and_person(tmp_path: Path) -> None:
    result = run("IXI", ixi(tmp_path / "in"))
    write_ingest(result, tmp_path / "out", simulated=False)
    found = read_ingest(tmp_path / "out").found
    assert found is not None
    assert len(found) == result.images_found == 4
    rows = {row["native_image_key"]: row for row in found.to_dict("records")}
    assert rows["IXI014-HH-1236_T1"]["outcome"] == "accepted"
    assert rows["IXI015-HH-1237_T1"]["reason"] == "ID_NOT_IN_CLINICAL"
    assert rows["IXI015-HH-1237_T1"]["native_subject_id"] == "IXI015"
    assert rows["IXI016-HH-1238_T1"]["reason"] == "SEX_MISSING"
    dropped = result.quarantine[(result.quarantine["level"] == "image") & (result.quarantine["severity"] == "drop")]
    assert sorted(found["reason"].dropna()) == sorted(dropped["reason"])


def test_ingest_prints_the_sum_with_reasons(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medalign3d.cli", "ingest", "IXI", str(ixi(tmp_path / "in")), "--out"]
    answer = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, cwd=REPOSITORY)
    assert answer.returncode == 3, answer.stderr
    assert "4 images found = 1 accepted + 3 quarantined" in answer.stdout
    assert re.search(r"1\s+SEX_MISSING\s+No table", answer.stdout)
    assert max(map(len, answer.stdout.splitlines())) <= 100 + len(str(tmp_path))
    record = json.loads((tmp_path / "out" / "ingest.json").read_text())
    assert record["found"] == record["accepted"] + sum(record["quarantined"].values()) == 4
    assert record["cohort"] == "IXI"
    assert Path(record["root"]) == (tmp_path / "in").resolve()
    assert len(read_parquet(tmp_path / "out" / "images.parquet")) == 1
