"""Archive export: the volumes of a store as ``.nii.gz`` in MNI space, for people and programs outside the pipeline.

Files are written by the BIDS export's writer: new headers with nothing but the geometry, equal input gives equal bytes.
A second run writes only what is new; what the store no longer holds is removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medalign3d import files
from medalign3d.errors import InputError
from medalign3d.progress import Progress
from medalign3d.volumes import pool, store

INDEX_NAME = "index.tsv"
TIME_LIMIT_SECONDS = 300.0
COLUMNS = ("image_id", "file", "voxels_xxh128", "sha256", "method", "simulated")

_EXPORTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*\.nii\.gz")


@dataclass(frozen=True)
class ExportTask:
    """One volume to write: where from, where to, its 4x4 affine, and whether people are simulated."""

    source: str
    target: str
    affine: tuple[tuple[float, ...], ...]
    simulated: bool


def write_volume(task: ExportTask) -> dict[str, object]:
    """Worker: write one volume.

    Returns
    -------
    ``sha256`` of the file, or ``errno`` when it could not be written, or ``damaged`` with what is wrong.
    """
    import numpy as np

    from medalign3d.bids.images import MNI_CODE, nifti_bytes
    from medalign3d.errors import MedAlignError

    try:
        array = store.read(task.source)
    except InputError as error:
        return {"damaged": error.what}
    content = nifti_bytes(array, np.array(task.affine), code=MNI_CODE, simulated=task.simulated)
    try:
        files.write_bytes(task.target, content)
    except (OSError, MedAlignError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        return {"errno": cause.errno or 0}
    return {"sha256": files.sha256_bytes(content)}


def export_cohort(store_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str], *, workers: int) -> int:
    """Write the accepted volumes of one store into ``out_dir``, as ``<image_id>.nii.gz``, and ``index.tsv``.

    Parameters
    ----------
    store_dir
        A cohort's folder that :func:`medalign3d.volumes.normalize.normalize_cohort` wrote.
    out_dir
        Made when it does not exist; a folder of an earlier export is brought up to date.
    workers
        Processes.

    Returns
    -------
    int
        How many files were written; the others were up to date.

    Raises
    ------
    InputError
        When the store has no index, a volume of it is damaged, or the folder holds volumes of another kind of people.
    MedAlignError
        When the folder cannot be written.
    """
    source, out = Path(store_dir), Path(out_dir)
    index = store.load_index(source)
    simulated = index.attrs.get("simulated") == "true"
    values = [float(v) for v in str(index.attrs["affine"]).split()]
    affine = tuple(tuple(values[start : start + 4]) for start in range(0, 16, 4))
    with store.explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        earlier = _earlier(out)
        if any(row["simulated"] != str(simulated).lower() for row in earlier.values()):
            raise InputError(
                "simulated and real people are never mixed",
                where=out,
                found="an export of the other kind",
                remedy="choose another folder",
            )
        accepted = index[index["verdict"] == "accepted"]
        rows: dict[str, dict[str, str]] = {}
        tasks: list[ExportTask] = []
        ids: list[str] = []
        for record in accepted.to_dict("records"):
            image_id, name = str(record["image_id"]), str(record["path"])
            store.check_id(image_id)
            digest = Path(name).stem
            old = earlier.get(image_id)
            row = {"image_id": image_id, "file": f"{image_id}.nii.gz", "voxels_xxh128": digest, "sha256": ""}
            rows[image_id] = row | {"method": str(record["method"]), "simulated": str(simulated).lower()}
            if old is not None and old["voxels_xxh128"] == digest and _is_whole(out / row["file"], old["sha256"]):
                rows[image_id]["sha256"] = old["sha256"]
                continue
            tasks.append(ExportTask(str(source / name), str(out / row["file"]), affine, simulated))
            ids.append(image_id)
        try:
            _write_all(tasks, ids, rows, out, workers)
        finally:  # what an interrupted run wrote is not written again
            done = [row for row in rows.values() if row["sha256"]]
            _write_index(out, done)
        keep = {row["file"] for row in done}
        for image_id in set(earlier) - set(rows):  # only files that this command wrote
            name = earlier[image_id]["file"]
            if name not in keep and _EXPORTED.fullmatch(name):
                files.remove(out / name)
    return len(tasks)


def _write_all(
    tasks: Sequence[ExportTask], ids: Sequence[str], rows: dict[str, dict[str, str]], out: Path, workers: int
) -> None:
    with Progress(f"export {out.name}", len(tasks), parallel=workers) as progress:
        for outcome in pool.run_tasks(write_volume, tasks, workers=workers, time_limit_seconds=TIME_LIMIT_SECONDS):
            image_id = ids[outcome.index]
            answer = outcome.value if outcome.status == "done" else {"damaged": f"{outcome.status}: {outcome.error}"}
            if "errno" in answer:
                raise OSError(int(answer["errno"]), "")
            if "damaged" in answer:
                raise InputError(
                    "a volume cannot be exported",
                    where=image_id,
                    found=answer["damaged"],
                    remedy="run `dvc repro -f normalize`, then export again: what was written is kept",
                )
            rows[image_id]["sha256"] = str(answer["sha256"])
            progress.advance()


def _write_index(out: Path, rows: Sequence[dict[str, str]]) -> None:
    lines = ["\t".join(COLUMNS), *("\t".join(row[name] for name in COLUMNS) for row in rows)]
    files.write_text(out / INDEX_NAME, "\n".join(lines) + "\n")


def _earlier(out: Path) -> dict[str, dict[str, str]]:
    """Rows of an earlier export's index; none when there is no such file or it is something else."""
    try:
        lines = (out / INDEX_NAME).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return {}
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        return {}
    cells = [line.split("\t") for line in lines[1:]]
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in cells if len(row) == len(COLUMNS)}


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and files.sha256_file(path) == sha256
