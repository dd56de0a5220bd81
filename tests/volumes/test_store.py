"""The store of normalized volumes and its workspace."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from volume_heads import make_head, posed

from medalign3d.errors import InputError, MedAlignError
from medalign3d.files import sha256_file
from medalign3d.params import Normalize
from medalign3d.volumes import store
from medalign3d.volumes.normalize import normalize_cohort, params_sha256
from medalign3d.volumes.quality_page import write_picture

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@settings(max_examples=60, deadline=None)
@given(array=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=3, max_dims=3, max_side=20)))
def test_what_was_written_is_read(array: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("store")
    name = store.write(folder, array)
    assert np.array_equal(store.read(folder / name, shape=array.shape), array)
    assert store.write(folder, np.asfortranarray(array)) == name
    assert len(list(folder.iterdir())) == 1


def test_names_follow_shape_and_voxels(tmp_path: Path) -> None:
    names = {store.write(tmp_path, a) for a in (ARRAY, ARRAY.reshape(4, 3, 2), ARRAY[::-1], ARRAY.copy())}
    assert len(names) == 3


def test_files_are_reproducible(tmp_path: Path) -> None:
    first = sha256_file(tmp_path / "a" / store.write(tmp_path / "a", ARRAY))
    time.sleep(1.1)  # a clock time in the file would show
    assert sha256_file(tmp_path / "b" / store.write(tmp_path / "b", ARRAY)) == first


def test_every_damage_is_found(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    array = np.clip(random.normal(100, 60, (24, 30, 24)), 0, 255).astype(np.uint8)
    path = tmp_path / store.write(tmp_path, array)
    content = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        if random.random() < 0.3:
            damaged = damaged[: random.integers(0, len(damaged))]
        else:
            place = random.integers(0, len(damaged))
            damaged[place] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(bytes(damaged))
        try:
            read = store.read(path)
        except InputError:
            continue
        assert np.array_equal(read, array), "a flipped bit outside the voxels may pass, changed voxels may not"


def test_what_is_no_volume_is_refused(tmp_path: Path) -> None:
    name = store.write(tmp_path, ARRAY)
    with pytest.raises(InputError, match="shape"):
        store.read(tmp_path / name, shape=(1, 1, 1))
    with pytest.raises(InputError, match="missing") as caught:
        store.read(tmp_path / ("0" * 32 + store.SUFFIX))
    assert str(tmp_path) not in str(caught.value), "a log may hold no path"
    (tmp_path / name).rename(tmp_path / "renamed.b2nd")
    with pytest.raises(InputError, match="damaged"):
        store.read(tmp_path / "renamed.b2nd")
    with pytest.raises(InputError, match="uint8"):
        store.write(tmp_path, ARRAY.astype(np.float32))
    with pytest.raises(InputError, match="file name"):
        store.check_id("../a")


def test_a_journal_survives_a_cut(tmp_path: Path) -> None:
    workspace = store.Workspace(tmp_path)
    name = store.write(tmp_path, ARRAY)
    workspace.record({"image_id": "a", "path": name, "scale": math.nan})
    workspace.record({"image_id": "b", "path": "", "reason": "QC_FAIL"})
    workspace.record({"image_id": "a", "path": name, "scale": 2.0})
    content = workspace.journal.read_bytes()
    workspace.journal.write_bytes(content[:-5])
    rows = workspace.rows()
    assert set(rows) == {"a", "b"}
    assert math.isnan(rows["a"]["scale"])
    workspace.record({"image_id": "c", "path": ""})  # goes on after the torn line
    assert set(workspace.rows()) == {"a", "b", "c"}
    assert workspace.has(rows["a"])
    assert workspace.has(rows["b"])
    (tmp_path / name).write_bytes(b"damaged")
    assert not workspace.has(rows["a"])
    assert not workspace.has({"path": "../../etc/passwd"})


def cohort(root: Path, count: int) -> pd.DataFrame:
    """``count`` synthetic heads as files."""
    rows = []
    root.mkdir(parents=True)
    for number in range(count):
        head = make_head(posed((3.0 * number - 9, 0, 2), (1, 2, 3)), zoom=2.0, noise=10, seed=number).volume
        name = f"{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(head.data.astype(np.int16), head.affine), root / name)
        rows.append({"image_id": f"i{number}", "source_path": name, "source_format": "nifti", "data_sha256": name})
    return pd.DataFrame(rows)


def test_store_takes_up_parameters_damage_and_new_scans(
    tmp_path: Path, params: Normalize, capsys: pytest.CaptureFixture[str]
) -> None:
    images = cohort(tmp_path / "raw", 3)
    out, work = tmp_path / "out", tmp_path / "work"

    def run(table: pd.DataFrame, settings: Normalize) -> tuple[list[str], str]:
        index = normalize_cohort(table, tmp_path / "raw", settings, out, work)
        assert {p.name for p in out.glob("*.b2nd")} == set(index["path"]) == {p.name for p in work.glob("*.b2nd")}
        return list(index["path"]), capsys.readouterr().out

    first, _ = run(images.iloc[:2], params)
    both, said = run(images, params)
    assert "2 of 3 volumes are up to date" in said
    assert both[:2] == first
    # DVC removes an output before it runs the stage again.
    shutil.rmtree(out)
    again, said = run(images, params)
    assert "3 of 3 volumes are up to date" in said
    assert again == both
    # A volume that rotted on the disk is made again.
    path = work / both[0]
    path.unlink()
    path.write_bytes(b"rotten")
    (out / both[0]).unlink()
    again, said = run(images, params)
    assert "2 of 3 volumes are up to date" in said
    assert again == both
    other, said = run(images, params.model_copy(update={"bias_correction": False}))
    assert "up to date" not in said
    assert not set(other) & set(both)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path, params: Normalize) -> None:
    """A small tmpfs fills up in the middle of the cohort; with more room the run ends as if nothing had happened."""
    images = cohort(tmp_path / "raw", 4)
    whole = normalize_cohort(images, tmp_path / "raw", params, tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").glob("*.b2nd"))
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    option = f"size={round(0.6 * size / 1024)}k"
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(small)]).returncode:
        pytest.skip("needs leave to mount a small file system")
    try:
        with pytest.raises(MedAlignError, match="the disk is full") as caught:
            normalize_cohort(images, tmp_path / "raw", params, small / "out")
        assert "what was done is kept" in str(caught.value)
        assert not (small / "out" / store.INDEX_NAME).exists()  # nobody takes a part for the whole
        kept = [p for p in (small / ".out.work").glob("*.b2nd") if np.array_equal(store.read(p), store.read(p))]
        assert 0 < len(kept) < len(images)
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        index = normalize_cohort(images, tmp_path / "raw", params, small / "out")
        assert list(index["sha256"]) == list(whole["sha256"])
        assert sha256_file(small / "out" / store.INDEX_NAME) == sha256_file(tmp_path / "whole" / store.INDEX_NAME)
    finally:
        subprocess.run(["umount", str(small)], check=True)


SCRIPT = """
import sys
from pathlib import Path
import pandas as pd
from medalign3d.params import Normalize
from medalign3d.volumes.normalize import normalize_cohort

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    images = pd.read_json(folder / "images.json", dtype=False)
    params = Normalize.model_validate_json((folder / "params.json").read_text())
    normalize_cohort(images, folder / "raw", params, folder / sys.argv[2], folder / (sys.argv[2] + "-work"))
"""


@pytest.mark.slow
def test_killed_runs_end_in_the_same_store(tmp_path: Path, params: Normalize) -> None:
    images = cohort(tmp_path / "raw", 6)
    images.to_json(tmp_path / "images.json")
    (tmp_path / "params.json").write_text(params.model_copy(update={"workers": 2}).model_dump_json())
    (tmp_path / "run.py").write_text(textwrap.dedent(SCRIPT))

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    whole = start("whole")
    whole.communicate(timeout=200)
    assert whole.returncode == 0
    random = np.random.default_rng(5)
    work = tmp_path / "killed-work"
    for attempt in range(6):
        before = len(list(work.glob("*.b2nd"))) if work.exists() else 0
        process = start("killed")
        # In turn: while the worker processes still start or do the first volume, and after the next one is done.
        limit = time.monotonic() + (float(random.uniform(1, 10)) if attempt % 2 == 0 else 100)
        while process.poll() is None and time.monotonic() < limit:
            if work.exists() and len(list(work.glob("*.b2nd"))) > before:
                time.sleep(float(random.uniform(0, 0.3)))
                break
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = start("killed")
    said, _ = last.communicate(timeout=200)
    assert last.returncode == 0
    assert "volumes are up to date" in said, "what was done before the last kill is not done again"
    expected = {p.relative_to(tmp_path / "whole"): sha256_file(p) for p in (tmp_path / "whole").rglob("*.*")}
    assert {p.relative_to(tmp_path / "killed"): sha256_file(p) for p in (tmp_path / "killed").rglob("*.*")} == expected
    assert any(path.name == "index.parquet" for path in expected)


def finished(folder: Path, params: Normalize, count: int) -> tuple[pd.DataFrame, store.Workspace]:
    """A table of ``count`` images and a workspace in which all of them are done."""
    workspace = store.Workspace(folder)
    rows = []
    for number in range(count):
        array = np.full((3, 3, 3), number + 1, np.uint8)
        row = {"image_id": f"i{number}", "path": store.write(folder, array), "verdict": "accepted", "reason": ""}
        row |= {"source_sha256": f"s{number}", "params_sha256": params_sha256(params)}
        workspace.record(row)
        write_picture(folder, f"i{number}", np.zeros((4, 4, 3), np.uint8))
        rows.append({"image_id": f"i{number}", "source_path": "gone", "data_sha256": f"s{number}"})
    return pd.DataFrame(rows), workspace


def inside(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_left_the_table_and_leftovers_leave_the_store(tmp_path: Path, params: Normalize) -> None:
    images, workspace = finished(tmp_path / "work", params, 3)
    out = tmp_path / "out"
    normalize_cohort(images, tmp_path, params, out, workspace.folder)
    assert len(list(out.glob("*.b2nd"))) == len(list((out / "pictures").iterdir())) == 3
    for leftover in (out, out / "pictures", workspace.folder, workspace.folder / "pictures"):
        (leftover / ".writing-abc").mkdir()
        (leftover / ".writing-abc" / "part").touch()
    index = normalize_cohort(images.iloc[:2], tmp_path, params, out, workspace.folder)
    names = [*index["path"], "index.parquet", "pictures/i0.jpg", "pictures/i1.jpg", "quality.html"]
    assert inside(out) == sorted(names)
    assert not list(tmp_path.rglob(".writing-*"))


def test_a_copy_that_was_damaged_in_the_store_is_replaced(tmp_path: Path, params: Normalize) -> None:
    images, workspace = finished(tmp_path / "work", params, 2)
    out = tmp_path / "out"
    path = out / normalize_cohort(images, tmp_path, params, out, workspace.folder)["path"][0]
    path.unlink()  # as on another file system, where it is no link
    path.write_bytes(b"rotten")
    normalize_cohort(images, tmp_path, params, out, workspace.folder)
    assert store.read(path).max() == 1


def test_the_old_index_holds_until_the_new_one_stands(
    tmp_path: Path, params: Normalize, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, workspace = finished(tmp_path / "work", params, 3)
    out = tmp_path / "out"
    normalize_cohort(images.iloc[:2], tmp_path, params, out, workspace.folder)
    images, workspace = finished(tmp_path / "work", params, 3)
    before = (out / store.INDEX_NAME).read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medalign3d.volumes.normalize.files.write_parquet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        normalize_cohort(images.iloc[1:], tmp_path, params, out, workspace.folder)
    assert (out / store.INDEX_NAME).read_bytes() == before
    for name in store.load_index(out)["path"]:
        store.read(out / name)


def test_two_runs_of_one_cohort_exclude_each_other(tmp_path: Path, params: Normalize) -> None:
    images, workspace = finished(tmp_path / "work", params, 1)
    with workspace.locked(), pytest.raises(MedAlignError, match="another run"):
        normalize_cohort(images, tmp_path, params, tmp_path / "out", workspace.folder)
    other, beside = finished(tmp_path / "other-work", params, 1)
    with workspace.locked():
        normalize_cohort(other, tmp_path, params, tmp_path / "other", beside.folder)
    normalize_cohort(images, tmp_path, params, tmp_path / "out", workspace.folder)


def test_a_store_that_cannot_be_written_is_an_error_and_no_verdict(tmp_path: Path, params: Normalize) -> None:
    images = cohort(tmp_path / "raw", 1)
    (tmp_path / "file").touch()
    with pytest.raises(MedAlignError, match="cannot be written"):
        normalize_cohort(images, tmp_path / "raw", params, tmp_path / "file" / "out")
    work = tmp_path / "work"
    work.mkdir()
    (work / "pictures").touch()  # where the worker wants to make a folder
    with pytest.raises(MedAlignError, match="cannot be written"):
        normalize_cohort(images, tmp_path / "raw", params, tmp_path / "out", work)
    assert store.Workspace(work).rows() == {}
    (work / "pictures").unlink()
    index = normalize_cohort(images, tmp_path / "raw", params, tmp_path / "out", work)
    assert list(index["verdict"]) == ["accepted"]


def test_a_volume_beyond_the_memory_limit_is_quarantined_and_tried_again(tmp_path: Path, params: Normalize) -> None:
    images = cohort(tmp_path / "raw", 1)
    small = params.model_copy(update={"memory_limit_gb": 0.05})
    index = normalize_cohort(images, tmp_path / "raw", small, tmp_path / "out", tmp_path / "work")
    assert list(index["reason"]) == ["IMAGE_UNREADABLE"]
    assert index["detail"][0].startswith("memory: needed more than the memory limit of 0.05 GB")
    index = normalize_cohort(images, tmp_path / "raw", params, tmp_path / "out", tmp_path / "work")
    assert list(index["verdict"]) == ["accepted"], "the limit is no part of what decides the arrays"


def test_other_code_on_a_worker_stops_the_run(tmp_path: Path, params: Normalize) -> None:
    from medalign3d.volumes import normalize

    row = {"image_id": "a", "path": "", "params_sha256": "other"}
    with pytest.raises(MedAlignError, match="another version"):
        normalize._check_answer(row, params_sha256(params), store.Workspace(tmp_path), params)
