import json

import pytest

from medalign3d.errors import InputError
from medalign3d.manifest import MARKER, write_manifest


def test_real_files_are_listed_not_hashed(tmp_path):
    root = tmp_path / "cohort"
    (root / "a").mkdir(parents=True)
    (root / "a" / "scan.nii").write_bytes(b"123")
    (root / "._scan.nii").write_bytes(b"resource fork")
    write_manifest(tmp_path / "m.json", "OASIS", root, simulated=False)
    manifest = json.loads((tmp_path / "m.json").read_text())
    assert [(f["path"], f["bytes"]) for f in manifest["files"]] == [("a/scan.nii", 3)]
    assert "sha256" not in manifest["files"][0]


def test_simulated_files_are_told_apart_by_content(tmp_path):
    root = tmp_path / "cohort"
    root.mkdir()
    (root / MARKER).write_text("simulated")
    write_manifest(tmp_path / "one.json", "OASIS", root, simulated=True)
    (root / MARKER).touch()
    write_manifest(tmp_path / "two.json", "OASIS", root, simulated=True)
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()


def test_missing_empty_and_simulated_roots_are_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        write_manifest(tmp_path / "m.json", "OASIS", tmp_path / "none", simulated=False)
    root = tmp_path / "cohort"
    root.mkdir()
    with pytest.raises(InputError, match="is empty"):
        write_manifest(tmp_path / "m.json", "OASIS", root, simulated=False)
    (root / MARKER).write_text("simulated")
    with pytest.raises(InputError, match="simulated cohort stands where real people"):
        write_manifest(tmp_path / "m.json", "OASIS", root, simulated=False)
    assert not (tmp_path / "m.json").exists()
