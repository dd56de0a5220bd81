import errno
import json
import os

import pandas as pd
import pytest

from medalign3d.errors import InputError, MedAlignError
from medalign3d.files import (
    atomic_path,
    read_json,
    read_parquet,
    sha256_file,
    sha256_json,
    write_csv,
    write_json,
    write_parquet,
    write_text,
)


def test_failure_leaves_the_old_file_and_no_debris(tmp_path):
    target = tmp_path / "out.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(MedAlignError, match="produced nothing"), atomic_path(tmp_path / "out"):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_names_the_place_and_the_remedy(tmp_path, code):
    target = tmp_path / "out.npy"
    with pytest.raises(MedAlignError, match="disk is full") as caught, atomic_path(target):
        raise OSError(code, os.strerror(code))
    assert str(target) in str(caught.value)
    assert "dvc gc" in str(caught.value)
    assert not target.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device_is_explained(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(MedAlignError, match="disk is full"), atomic_path(target) as temporary:
        temporary.symlink_to("/dev/full")
        with temporary.open("wb", buffering=0) as stream:
            stream.write(b"x")


def test_parquet_round_trip_keeps_metadata_and_bytes(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    for name in ("one", "two"):
        write_parquet(tmp_path / name, table, {"simulated": "true"})
    assert sha256_file(tmp_path / "one") == sha256_file(tmp_path / "two")
    back = read_parquet(tmp_path / "one")
    assert back.attrs["simulated"] == "true"
    assert back["a"].tolist() == [1, 2]
    assert pd.isna(back["b"][1])


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"bad\.parquet"):
        read_parquet(tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="missing"):
        read_parquet(tmp_path / "none.parquet")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json, line 1"):
        read_json(tmp_path / "bad.json")


def test_json_and_csv(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ä"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "ä", "b": 1}
    write_csv(tmp_path / "a.csv", [{"x": 1, "y": 2}], ["y", "x"])
    assert (tmp_path / "a.csv").read_text() == "y,x\n2,1\n"


def test_json_hash_ignores_key_order():
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 2, "b": 1})
