"""Write a BIDS dataset, or add to one.

Every file is written whole or not at all. An image counts as exported when it stands beside a side-car with its id and
the hash of its source, so a run that was interrupted goes on where it stopped, and a second run writes
nothing. Files, rows and columns of others stay. Images that cannot be exported are listed with a reason and never stop
the rest; a full disk does, with the advice to run again.

Not supported: removing images from a dataset (delete the folder of the participant and its rows), sessions of other
modalities, and defacing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medalign3d.bids import description, tables
from medalign3d.bids.images import (
    IMAGE_ID_KEY,
    MNI_CODE,
    SOURCE_KEY,
    ImageTask,
    disk_is_full,
    nifti_bytes,
    write_image,
    write_pair,
)
from medalign3d.cohorts.base import image_id_of
from medalign3d.ehr.values import is_missing, records_of
from medalign3d.errors import InputError, MedAlignError
from medalign3d.files import read_json, read_parquet
from medalign3d.manifest import MARKER
from medalign3d.progress import Progress
from medalign3d.volumes import store
from medalign3d.volumes.pool import run_tasks

if TYPE_CHECKING:
    import pandas as pd

    from medalign3d.params import Params

LOCK_NAME = ".medalign3d_bids"
NOT_EXPORTED = "medalign3d_not_exported.tsv"
NORMALIZED_SPACE = "MNI152NLin2009aSym"
IMAGE_TIME_LIMIT_SECONDS = 600.0
VOLUME_KEY = "SourceVolume"
"""Key of a derivative's side-car: the digest by which the store of normalized volumes names it."""

DERIVATIVES = Path("derivatives") / "medalign3d"


@dataclass(frozen=True)
class Options:
    """What to export.

    Parameters
    ----------
    everything
        Every accepted image; by default the selected one of each visit.
    relative_dates
        Add ``days_from_first_event`` to the sessions tables. Real dates are never written.
    derivatives
        Also write the normalized volumes, where there are any, as a derivative dataset.
    overwrite
        Write images anew that are up to date.
    workers
        Processes.
    """

    everything: bool = False
    relative_dates: bool = False
    derivatives: bool = False
    overwrite: bool = False
    workers: int = 1


@dataclass
class Source:
    """Where images come from.

    Attributes
    ----------
    images
        Harmonized images (see :data:`medalign3d.ehr.schema.HARMONIZED_COLUMNS`).
    roots
        Cohort to the folder that ``source_path`` is relative to.
    simulated
        Whether the people are simulated.
    dropped
        Rows of quarantine tables of level ``image`` and severity ``drop``.
    volumes
        Folder with one store of normalized volumes per cohort, or None.
    """

    images: pd.DataFrame
    roots: Mapping[str, Path]
    simulated: bool
    dropped: pd.DataFrame
    volumes: Path | None = None


@dataclass
class Summary:
    """What an export did: numbers of images, reasons of the refused ones, duration."""

    written: int = 0
    up_to_date: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    normalized: int = 0
    seconds: float = 0.0


# -------------------------------------------------------------------------------------------------------------- sources


def _drops(quarantine: pd.DataFrame) -> pd.DataFrame:
    drops = (quarantine["level"] == "image") & (quarantine["severity"] == "drop")
    return quarantine.loc[drops, ["dataset", "key_json", "reason"]].reset_index(drop=True)


def _refuse_imitations(images: pd.DataFrame) -> None:
    """Refuse tables made without opening images, or in which rows are repeated to imitate a published table."""
    for name, wanted, setting in (
        ("images_read", "true", "ingest.read_images: true"),
        ("form", "clean", "ingest.form: clean"),
    ):
        found = str(images.attrs.get(name, wanted)).lower()
        if found != wanted:
            raise InputError(
                "these tables are not those of images on disk",
                where="metadata of the table of images",
                found=f"{name}: {found}",
                expected=f"{name}: {wanted}",
                remedy=f"set {setting} in params.yaml and read the cohort again",
            )


def tables_of_pipeline(data: Path, params: Params, cohorts: Sequence[str] = ()) -> Source:
    """The images of a pipeline run.

    Parameters
    ----------
    data
        The pipeline's folder ``data``.
    params
        Project parameters: where each cohort's files are.
    cohorts
        Only these; all when empty.

    Raises
    ------
    InputError
        When the tables are missing, or a cohort is not among them.
    """
    images = read_parquet(data / "ehr" / "images.parquet")
    _refuse_imitations(images)
    present = sorted(set(images["dataset"]))
    if absent := sorted(set(cohorts) - set(present)):
        raise InputError(
            "a cohort is not in the pipeline's tables",
            where=data / "ehr" / "images.parquet",
            found=", ".join(present) or "no image",
            expected=", ".join(absent),
            remedy="run the pipeline with this cohort, or give --tables (made by `medalign3d ingest`) and --root",
        )
    simulated = str(images.attrs.get("simulated")).lower() == "true"
    wanted = list(cohorts) or present
    images = images[images["dataset"].isin(wanted)].reset_index(drop=True)
    dropped = read_parquet(data / "ehr" / "quarantine.parquet")
    roots = {cohort: params.cohort_root(cohort) for cohort in wanted}
    return Source(images, roots, simulated, _drops(dropped[dropped["dataset"].isin(wanted)]), data / "volumes")


def tables_of_ingest(folder: Path, root: Path, params: Params) -> Source:
    """The images of one cohort that ``medalign3d ingest`` read, harmonized.

    Parameters
    ----------
    folder
        The folder with the tables.
    root
        The cohort's folder that they were made from.
    params
        Project parameters; sections ``harmonize`` and ``ingest`` are used.

    Raises
    ------
    InputError
        When a table or the folder is missing, or the tables hold no image.
    """
    from medalign3d.cohorts import read_ingest
    from medalign3d.ehr.harmonize import harmonize

    if not root.is_dir():
        raise InputError("no such folder", where=root, expected="the folder that the tables were made from (--root)")
    result = read_ingest(folder)
    _refuse_imitations(result.images)
    cohorts = sorted(set(result.images["dataset"]))
    if len(cohorts) != 1:
        raise InputError(
            "the tables do not hold one cohort's images", where=folder, found=", ".join(cohorts) or "no image"
        )
    simulated = str(result.images.attrs.get("simulated")).lower() == "true"
    own = params.model_copy(
        update={
            "cohorts": cohorts,
            "simulate": params.simulate.model_copy(update={"cohorts": cohorts if simulated else []}),
            "external": params.external.model_copy(update={"cohorts": [] if simulated else cohorts}),
        }
    )
    harmonized = harmonize({cohorts[0]: result}, own)
    return Source(harmonized.images, {cohorts[0]: root}, simulated, _drops(harmonized.quarantine))


# --------------------------------------------------------------------------------------------------------------- export


@dataclass
class _Image:
    row: dict[str, Any]
    name: str  # file name without extensions
    up_to_date: bool
    cells: dict[str, str]  # of the sessions table


def export(out_dir: Path, source: Source, options: Options) -> Summary:
    """Write ``source`` as a BIDS dataset into ``out_dir``, or add it to the one that is there.

    Raises
    ------
    InputError
        When the folder holds something else, or people of the other kind (simulated, real), or lies in a cohort's
        folder, or a table in it is damaged.
    MedAlignError
        When the disk is full, or another export writes there.
    """
    started = time.monotonic()
    out = Path(out_dir)
    images = source.images if options.everything else source.images[source.images["selected"]]
    rows = sorted(records_of(images), key=lambda r: (r["participant_id"], r["session_id"], r["run"], r["image_id"]))
    if not rows:
        raise InputError("there is no image to export", where=out, remedy="see the quarantine table for the reasons")
    _refuse_unfit(out, source)
    summary = Summary()
    with _locked(out):
        _remove_leftovers(out)
        try:
            _export(out, source, rows, options, summary)
        except MedAlignError as error:
            if disk_is_full(error):
                raise _disk_full(out, summary, len(rows)) from error
            raise
    summary.seconds = time.monotonic() - started
    return summary


def _disk_full(out: Path, summary: Summary, total: int) -> MedAlignError:
    return MedAlignError(
        "the disk is full",
        where=out,
        found=f"{summary.written + summary.up_to_date} of {total} images stand there whole",
        expected="free space for the dataset, and for unpacking archives (TMPDIR)",
        remedy="free some space and run the same command again: it goes on where it stopped",
    )


def _refuse_unfit(out: Path, source: Source) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("the output is a file", where=out, expected="a folder")
    place = out.resolve()
    for root in source.roots.values():
        if place == root.resolve() or root.resolve() in place.parents:
            raise InputError(
                "the output lies in a cohort's folder",
                where=out,
                expected="a folder outside it: the next reading of the cohort would find the exported images",
            )
    entries = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if entries and not entries & {"dataset_description.json", LOCK_NAME}:
        raise InputError(
            "the output folder holds something else",
            where=out,
            found="files, but no dataset_description.json",
            expected="a new or empty folder, or a BIDS dataset to add to",
        )
    has_people = "participants.tsv" in entries or any(name.startswith("sub-") for name in entries)
    if has_people and (MARKER in entries) != source.simulated:
        raise InputError(
            "simulated and real people must not be mixed",
            where=out,
            found=f"{'simulated' if source.simulated else 'real'} people to add",
            expected=f"{'simulated' if MARKER in entries else 'real'} people, as in the dataset",
            remedy="export into another folder",
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_NAME).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MedAlignError(
                "another export writes into this folder", where=out, remedy="wait for it to end"
            ) from error
        yield


def _remove_leftovers(out: Path) -> None:
    """Remove the temporary folders of a run that was killed."""
    for pattern in ("", "sub-*", "sub-*/ses-*", "sub-*/ses-*/anat"):
        for base in (out, out / DERIVATIVES):
            for leftover in base.glob(f"{pattern}/.writing-*" if pattern else ".writing-*"):
                shutil.rmtree(leftover, ignore_errors=True)


def _export(out: Path, source: Source, rows: list[dict[str, Any]], options: Options, summary: Summary) -> None:
    participants = tables.read_tsv(out / "participants.tsv", "participant_id")
    _describe(out, source, rows, participants)
    people: dict[str, list[_Image]] = defaultdict(list)
    sessions: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sessions[row["participant_id"], row["session_id"]].append(row)
    for (participant, _), group in sessions.items():
        people[participant] += _plan(out, group, options)
    # Every participant of a cohort gets the same columns: those in which the cohort has any value.
    used: dict[str, set[str]] = defaultdict(set)
    for images in people.values():
        for image in images:
            used[str(image.row["dataset"])] |= {n for n, text in image.cells.items() if text != tables.MISSING}
    # Tables of others are looked at before any image is written: a damaged one is no surprise at the end.
    for participant in people:
        _session_tables(out, participant)

    exported: list[dict[str, Any]] = []
    refused: tables.Rows = {}
    pending = {name: sum(not image.up_to_date for image in images) for name, images in people.items()}
    tasks, owners = [], []
    for participant, images in people.items():
        for image in images:
            if not image.up_to_date:
                tasks.append(_task(out, source, image))
                owners.append((participant, image))

    def finish(participant: str) -> None:
        done = [image for image in people[participant] if image.row["image_id"] not in refused]
        _write_person(out, participant, done, used)
        exported.extend(image.row for image in done)

    for participant, count in pending.items():
        summary.up_to_date += len(people[participant]) - count
        if count == 0:
            finish(participant)
    with Progress("bids", len(tasks)) as progress:
        for outcome in run_tasks(
            write_image, tasks, workers=options.workers, time_limit_seconds=IMAGE_TIME_LIMIT_SECONDS
        ):
            participant, image = owners[outcome.index]
            # An unforeseen error's message may hold a path or native text: only its kind is told.
            answer = outcome.value or {"status": "refused", "reason": "IMAGE_UNREADABLE", "detail": outcome.status}
            if answer["status"] == "disk_full":
                raise _disk_full(out, summary, len(rows))
            if answer["status"] == "refused":
                summary.refused[answer["reason"]] += 1
                refused[image.row["image_id"]] = {
                    "participant_id": image.row["participant_id"],
                    "session_id": image.row["session_id"],
                    "reason": answer["reason"],
                    "detail": answer["detail"],
                }
            else:
                summary.written += 1
            pending[participant] -= 1
            if pending[participant] == 0:
                finish(participant)
            progress.advance(note=f"{sum(summary.refused.values())} not exported")
    by_person: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(exported, key=lambda r: (r["session_id"], r["run"])):
        by_person[row["participant_id"]].append(row)
    new = {participant: tables.participant_cells(group) for participant, group in by_person.items()}
    tables.write_tsv(
        out / "participants.tsv",
        "participant_id",
        tables.merge(participants, new),
        list(tables.participant_descriptions()),
        keep_empty=("age", "sex", "cohort", "person_id"),
    )
    _write_not_exported(out, source, refused, exported)
    if options.derivatives and source.volumes is not None:
        _write_derivatives(out, source, exported, people, options, summary)


def _describe(out: Path, source: Source, rows: list[dict[str, Any]], participants: tables.Rows) -> None:
    """The files at the top of a dataset."""
    named = {row.get("cohort", "") for row in participants.values()} | {str(row["dataset"]) for row in rows}
    cohorts = [cohort for cohort in description.COHORTS if cohort in named]
    if source.simulated:
        tables.write_if_new(out / MARKER, "Simulated people, made by MedAlign-3D.\n")
    _add_lines(out / ".bidsignore", [NOT_EXPORTED, MARKER, LOCK_NAME])
    path = out / "dataset_description.json"
    old = read_json(path) if path.exists() else {}
    if not isinstance(old, dict):
        raise InputError("the dataset's description is no JSON object", where=path)
    new = description.dataset_description(cohorts, source.simulated, old)
    tables.write_if_new(path, json.dumps(new, indent=2, ensure_ascii=False) + "\n")
    readmes = [p for p in out.iterdir() if p.name.upper() in ("README", "README.MD", "README.RST", "README.TXT")]
    if all(description.README_MARK in p.read_text(encoding="utf-8", errors="replace") for p in readmes):
        tables.write_if_new(out / "README.md", description.readme(cohorts, source.simulated))
    tables.merge_json(out / "participants.json", tables.participant_descriptions())


def _add_lines(path: Path, lines: Sequence[str]) -> None:
    old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    tables.write_if_new(path, "\n".join([*old, *(line for line in lines if line not in old)]) + "\n")


def _plan(out: Path, group: list[dict[str, Any]], options: Options) -> list[_Image]:
    """File names of one session's images: those that stand there keep theirs, new ones take the next free run."""
    participant, session = group[0]["participant_id"], group[0]["session_id"]
    folder = out / participant / session / "anat"
    known: dict[str, tuple[str, str]] = {}
    taken: set[str] = set()
    for path in sorted(folder.glob("*_T1w.*")) if folder.is_dir() else []:
        name = path.name.split(".", 1)[0]
        taken.add(name)
        if path.suffix == ".json":
            side = _sidecar(path)
            if isinstance(side.get(IMAGE_ID_KEY), str):
                known[side[IMAGE_ID_KEY]] = (name, str(side.get(SOURCE_KEY)))
    planned: list[_Image] = []
    for row in group:
        name, source = known.get(row["image_id"], ("", ""))
        if not name:
            run = int(row["run"])
            while (name := _name(participant, session, str(row["variant"]), run)) in taken:
                run += 1
            taken.add(name)
        whole = (folder / f"{name}.nii.gz").is_file() and source == str(row["source_sha256"])
        cells = tables.session_cells(row, relative_dates=options.relative_dates)
        planned.append(_Image(row, name, whole and not options.overwrite, cells))
    return planned


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (InputError, OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _name(participant: str, session: str, variant: str, run: int) -> str:
    kind = "" if variant == "raw" else f"_acq-{variant}"
    return f"{participant}_{session}{kind}_run-{run:02d}_T1w"


def _task(out: Path, source: Source, image: _Image) -> ImageTask:
    row = image.row
    return ImageTask(
        image_id=str(row["image_id"]),
        root=str(source.roots[str(row["dataset"])]),
        source_path=str(row["source_path"]),
        source_format=str(row["source_format"]),
        target=str(out / row["participant_id"] / row["session_id"] / "anat" / image.name),
        shape=tuple(int(n) for n in row["shape"]),
        orientation=str(row["orientation"]),
        data_sha256="" if is_missing(row.get("data_sha256")) else str(row["data_sha256"]),
        source_sha256=str(row["source_sha256"]),
        known={
            name: None if is_missing(row.get(name)) else row[name]
            for name in ("field_strength_t", "manufacturer", "scanner_model", "series_description")
        },
        simulated=source.simulated,
    )


def _session_tables(out: Path, participant: str) -> tuple[tables.Rows, dict[str, tables.Rows]]:
    """Rows of a participant's sessions table and of each session's scans table, as they stand."""
    folder = out / participant
    sessions = tables.read_tsv(folder / f"{participant}_sessions.tsv", "session_id")
    scans = {path.parent.name: tables.read_tsv(path, "filename") for path in sorted(folder.glob("ses-*/*_scans.tsv"))}
    return sessions, scans


def _write_person(out: Path, participant: str, images: list[_Image], used: Mapping[str, set[str]]) -> None:
    """A participant's tables, once all images are there."""
    if not images:
        return
    old_sessions, old_scans = _session_tables(out, participant)
    groups: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        groups[str(image.row["session_id"])].append(image)
    sessions: tables.Rows = {}
    folder = out / participant
    for session, group in groups.items():
        first = min(group, key=lambda image: (not image.row["selected"], image.row["run"]))
        sessions[session] = first.cells
        scans = {f"anat/{image.name}.nii.gz": tables.scan_cells(image.row) for image in group}
        stem = folder / session / f"{participant}_{session}_scans"
        merged_scans = tables.merge(old_scans.get(session, {}), scans)
        tables.write_tsv(
            stem.with_suffix(".tsv"), "filename", merged_scans, tables.SCAN_COLUMNS, keep_empty=tables.SCAN_COLUMNS
        )
        tables.merge_json(stem.with_suffix(".json"), tables.scan_descriptions())
    stem = folder / f"{participant}_sessions"
    merged = tables.merge(old_sessions, sessions)
    present = {name for row in merged.values() for name, value in row.items() if value != tables.MISSING}
    kept = {"age", *present, *used[str(images[0].row["dataset"])]}
    columns = list(tables.session_descriptions())
    tables.write_tsv(stem.with_suffix(".tsv"), "session_id", merged, columns, keep_empty=kept)
    described = {name: text for name, text in tables.session_descriptions().items() if name in kept}
    tables.merge_json(stem.with_suffix(".json"), described)


def _write_not_exported(out: Path, source: Source, refused: tables.Rows, exported: list[dict[str, Any]]) -> None:
    """The list of images that are not in the dataset, each with its reason; removed when there is none."""
    path = out / NOT_EXPORTED
    rows = tables.read_tsv(path, "image_id")
    for drop in records_of(source.dropped):
        try:
            key = str(json.loads(str(drop["key_json"]))["native_image_key"])
        except (ValueError, KeyError, TypeError):
            continue
        rows[image_id_of(str(drop["dataset"]), key)] = {
            "participant_id": tables.MISSING,
            "session_id": tables.MISSING,
            "reason": str(drop["reason"]),
            "detail": f"quarantined when {drop['dataset']} was read",
        }
    rows |= refused
    for row in exported:
        rows.pop(str(row["image_id"]), None)
    if rows:
        columns = ("participant_id", "session_id", "reason", "detail")
        tables.write_tsv(path, "image_id", rows, columns, keep_empty=columns)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- derivatives


def write_normalized(task: tuple[str, str, list[list[float]], str, str, bool]) -> dict[str, str]:
    """Write one normalized volume (stored array, target, affine, name of the raw image, hash, simulated)."""
    import numpy as np

    array_path, target, affine, raw, digest, simulated = task
    try:
        array = store.read(array_path)
        content = nifti_bytes(np.asarray(array), np.array(affine), code=MNI_CODE, simulated=simulated)
        side: dict[str, Any] = {"SkullStripped": True, "Sources": [f"bids:raw:{raw}"], VOLUME_KEY: digest}
        write_pair(target, content, side | ({"Simulated": True} if simulated else {}))
    except MedAlignError as error:
        return {"status": "disk_full" if disk_is_full(error) else "refused"}
    return {"status": "written"}


def _write_derivatives(
    out: Path,
    source: Source,
    exported: list[dict[str, Any]],
    people: Mapping[str, list[_Image]],
    options: Options,
    summary: Summary,
) -> None:
    assert source.volumes is not None
    names = {image.row["image_id"]: image.name for images in people.values() for image in images}
    tasks = []
    base = out / DERIVATIVES
    for cohort in sorted({str(row["dataset"]) for row in exported}):
        folder = source.volumes / cohort
        index = store.load_index(folder)
        affine = [float(v) for v in str(index.attrs["affine"]).split()]
        grid = [affine[start : start + 4] for start in range(0, 16, 4)]
        accepted = {row["image_id"]: row for row in records_of(index) if row["verdict"] == "accepted"}
        for row in exported:
            volume = accepted.get(row["image_id"])
            if row["dataset"] != cohort or volume is None:
                continue
            place = Path(row["participant_id"]) / row["session_id"] / "anat"
            stem = names[row["image_id"]].removesuffix("_T1w")
            target = base / place / f"{stem}_space-{NORMALIZED_SPACE}_desc-normalized_T1w"
            digest = Path(str(volume["path"])).stem  # the store names volumes by their content
            done = _sidecar(target.with_suffix(".json")).get(VOLUME_KEY) == digest
            if done and target.with_suffix(".nii.gz").is_file() and not options.overwrite:
                continue
            raw = (place / f"{names[row['image_id']]}.nii.gz").as_posix()
            array = str(folder / str(volume["path"]))
            tasks.append((array, str(target), grid, raw, digest, source.simulated))
    named = {row.get("cohort", "") for row in tables.read_tsv(out / "participants.tsv", "participant_id").values()}
    cohorts = [cohort for cohort in description.COHORTS if cohort in named]
    text = json.dumps(description.derivative_description(cohorts, source.simulated), indent=2, ensure_ascii=False)
    tables.write_if_new(base / "dataset_description.json", text + "\n")
    tables.write_if_new(
        base / "README.md",
        f"# {description.dataset_name(cohorts, source.simulated)}, normalized\n\n"
        "Brain-extracted volumes in MNI space (ICBM 2009a, non-linear symmetric), uint8, made by MedAlign-3D.\n",
    )
    with Progress("bids derivatives", len(tasks)) as progress:
        for outcome in run_tasks(
            write_normalized, tasks, workers=options.workers, time_limit_seconds=IMAGE_TIME_LIMIT_SECONDS
        ):
            status = (outcome.value or {"status": "refused"})["status"]
            if status == "disk_full":
                raise _disk_full(out, summary, len(names))
            summary.normalized += status == "written"
            progress.advance()
