import json

import pytest

from medalign3d.ehr.record import read_record
from medalign3d.ehr.text import render
from medalign3d.errors import InputError


def test_json_and_csv_give_the_same_text(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"age_years": 74, "sex": "F", "mmse": 24, "educ_years": None}))
    (tmp_path / "r.csv").write_text("age_years,sex,mmse,educ_years\n74,F,24,N/A\n", encoding="utf-8-sig")
    texts = [render(read_record(tmp_path / name)) for name in ("r.json", "r.csv")]
    assert texts == ["Age 74 years; female; MMSE 24/30."] * 2


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("r.json", "{", "not JSON"),
        ("r.json", "[1]", "not a JSON object"),
        ("r.csv", "age_years\n1\n2\n", "2 rows"),
        ("r.csv", "age\n1\n", "unknown fields"),
    ],
)
def test_bad_records_are_explained(tmp_path, name, content, part):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=part):
        read_record(tmp_path / name)


def test_missing_record(tmp_path):
    with pytest.raises(InputError, match="no such record"):
        read_record(tmp_path / "none.json")
