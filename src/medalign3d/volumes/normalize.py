"""From a head as it was scanned to a brain in MNI space as uint8: the stage ``normalize``.

read -> check -> registration -> tissue and drift -> brain mask -> gate -> (fallback -> gate) -> one resampling -> bytes

Images that come already stripped and in MNI space are recognised by their voxels and affine and pass unchanged but for
resampling and scaling. The array is interpolated once, from the scanned grid to the target grid.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medalign3d import files
from medalign3d.errors import InputError, MedAlignError, VolumeError
from medalign3d.params import Normalize
from medalign3d.progress import Progress
from medalign3d.volumes import (
    bias,
    cluster,
    fallback,
    intensity,
    mask,
    pool,
    quality,
    quality_page,
    regions,
    register,
    store,
    volumetry,
)
from medalign3d.volumes import template as mni
from medalign3d.volumes.grids import Array, Grid, Matrix, inside, reduce_to, resample
from medalign3d.volumes.read import Volume, check, read_volume

if TYPE_CHECKING:
    import pandas as pd

ALGORITHM_VERSION = 8
"""Part of every cache key: raised when the arrays that this package makes change."""

MINIMUM_GREY_WHITE_CONTRAST = 0.8
SCALE_LIMITS = (0.55, 1.45)
MAXIMUM_STRETCH = 1.8
MINIMUM_COVERAGE = 0.9
BRAIN_ML_LIMITS = (500.0, 2600.0)

MINIMUM_VENTRICLES_ML = 1.0
"""Lateral ventricles of adults hold some 3-90 mL; a smooth object that passes for a brain otherwise has none."""

SURELY_ALIGNED = 0.45
"""From this local correlation on, a stripped brain lies where the template does; below, a registration must agree."""
ALIGNED_MM, ALIGNED_ON_GRID_MM = 7.0, 12.0
"""Mean shift that a registration may find in an image that counts as already aligned; more where it lies on one of the
grids of MNI space, which says that another program put it there.

Public copies on such a grid differ from this package's registration by up to 11 mm where that program tilted a head;
they are their makers' answer and stay as they came."""

MNI_GRIDS_MM = (
    ((-90.0, 90.5), (-126.0, 90.5), (-72.0, 108.5)),
    ((-98.0, 98.0), (-134.0, 98.0), (-72.0, 116.0)),
)
"""First and last voxel's centre along x, y and z: the grids of 1 and 2 mm that FSL ships, and those of ICBM 2009."""

MAXIMUM_BLANK = 0.15
"""Share of the template's brain that may be blank in the image (none is in whole heads; ventricles are 2-9 %)."""

MISSING_SHELL_MM = (-20.0, -4.0)
MAXIMUM_MISSING_ML = 25.0
"""A blank piece so large, this deep under the surface (ventricles lie deeper), is brain that was cut off before."""

BACKGROUND_FRACTION = 0.02
"""Below this share of the 99th percentile a voxel counts as blank."""

SHARED_FOLDER_SECONDS = 90.0
"""How long a file that a machine of a cluster wrote may take to be seen here."""

Verdict = Literal["accepted", "quarantined"]


@dataclass(frozen=True)
class Normalized:
    """A normalized image.

    Attributes
    ----------
    array
        uint8 of the target shape: 1..255 in the brain, 0 outside. None when quarantined before it could be made.
    affine
        4x4, voxel index to MNI millimetres (RAS axes).
    verdict, reason, detail
        Whether the gate let it pass; if not, a quarantine reason code and what was measured.
    method
        ``gauss-newton``, ``thorough`` or ``already-normalized``.
    transform
        4x4, MNI millimetres to scanner millimetres.
    metrics
        What the gate looked at (see :class:`medalign3d.volumes.quality.Quality`), the regional volumes of an accepted
        image (see :mod:`medalign3d.volumes.volumetry`), and seconds.
    preview
        A small RGB picture of the registered head (:func:`medalign3d.volumes.quality_page.preview`); None when there is
        nothing to show.
    """

    array: NDArray[np.uint8] | None
    affine: Matrix
    verdict: Verdict
    reason: str
    detail: str
    method: str
    transform: Matrix
    metrics: dict[str, float] = field(default_factory=dict)
    preview: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class _Attempt:
    registration: register.Registration
    head: Array
    tissue: bias.Tissue | None
    mask: NDArray[np.bool_] | None
    quality: quality.Quality | None
    problem: str


def work_zoom(zooms_mm: float) -> float:
    """Voxel size of the grid on which tissue and mask are found, for a target voxel size."""
    return 3.0 if zooms_mm >= 2.5 else 2.0


def _tame(data: Array) -> Array:
    """Make intensities start at zero and cap reconstruction spikes; the brain's own values are not touched."""
    sample = data[::3, ::3, ::3]
    low, high = (float(v) for v in np.percentile(sample, [0.5, 99.9]))
    low = min(low, 0.0)
    if not high > low:
        return data
    ceiling = low + 2.0 * (high - low)
    if low < 0 or float(data.max()) > ceiling or float(data.min()) < 0:
        return np.clip(data - np.float32(low), 0.0, np.float32(ceiling - low))
    return data


def _blank_share(head: Array, template: mni.Template) -> float:
    """Share of blank voxels just outside the template's brain."""
    ceiling = BACKGROUND_FRACTION * float(np.percentile(head, 99))
    return float((head[template.distance > 7.0] <= ceiling).mean())


def on_mni_grid(shape: Sequence[int], affine: Matrix) -> bool:
    """Whether an image's voxels lie on one of the usual grids of MNI space, whatever their size and order."""
    corners = affine[:3, :3] @ np.array([[0, n - 1] for n in shape], dtype=float) + affine[:3, 3:]
    turned = np.abs(affine[:3, :3])
    if (np.count_nonzero(turned > 1e-3 * turned.max(), axis=0) != 1).any():
        return False
    low, high = corners.min(axis=1), corners.max(axis=1)
    return any(
        all(abs(low[k] - box[k][0]) < 1.6 and abs(high[k] - box[k][1]) < 1.6 for k in range(3)) for box in MNI_GRIDS_MM
    )


def missing_ml(blank: NDArray[np.bool_], template: mni.Template) -> float:
    """Volume (mL of MNI space) of the largest blank piece in the outer brain of a registered image.

    Stripping sometimes takes a frontal lobe along. Furrows are too thin to count.
    """
    deepest, outermost = MISSING_SHELL_MM
    shell = (template.distance > deepest) & (template.distance < outermost)
    labels, count = ndimage.label(ndimage.binary_erosion(blank & shell))
    if count == 0:
        return 0.0
    return float(np.bincount(labels.ravel())[1:].max()) * float(np.prod(template.grid.zooms)) / 1000.0


def _missing(blank: NDArray[np.bool_], template: mni.Template) -> str:
    """The gate's words about a missing piece of brain; empty where none is missing."""
    lost = missing_ml(blank, template)
    return f"a piece of {lost:.0f} mL of the brain is blank" if lost > MAXIMUM_MISSING_ML else ""


def is_already_normalized(head: Array, template: mni.Template) -> tuple[bool, NDArray[np.bool_]]:
    """Whether an image, sampled on the template's grid as its affine says, is a stripped brain in MNI space.

    Returns
    -------
    The answer, and the brain's mask on that grid.
    """
    bright = float(np.percentile(head, 99))
    solid = head > BACKGROUND_FRACTION * bright
    if bright <= 0 or _blank_share(head, template) < 0.93:
        return False, solid
    solid = ndimage.binary_fill_holes(solid)
    if float(solid[template.distance < -4.0].mean()) < 0.85:
        return False, solid
    return quality.local_correlation(head, template) > 0.25, solid


def _judge(found: quality.Quality, params: Normalize) -> str:
    """The first problem that the gate sees, in words; empty when it lets the image pass."""
    if found.local_correlation < params.minimum_local_correlation:
        return (
            f"local correlation with the template {found.local_correlation:.2f} < {params.minimum_local_correlation:g}"
        )
    if found.grey_white_contrast < MINIMUM_GREY_WHITE_CONTRAST:
        return f"white matter does not stand out from grey matter ({found.grey_white_contrast:.2f} spreads)"
    if not SCALE_LIMITS[0] < found.scale < SCALE_LIMITS[1] or found.stretch > MAXIMUM_STRETCH:
        return f"implausible head size (scale {found.scale:.2f}, stretch {found.stretch:.2f})"
    if found.coverage < MINIMUM_COVERAGE:
        return f"only {found.coverage:.0%} of the brain lies within the image"
    if not BRAIN_ML_LIMITS[0] < found.brain_ml < BRAIN_ML_LIMITS[1]:
        return f"implausible brain volume ({found.brain_ml:.0f} mL)"
    return ""


def _attempt(
    data: Array, affine: Matrix, registration: register.Registration, template: mni.Template, params: Normalize
) -> _Attempt:
    """Tissue, mask and gate for one registration."""
    zoom = float(template.grid.zooms[0])
    small, small_affine = reduce_to(data, affine, zoom)
    head = resample(small, small_affine, template.grid, registration.transform)
    tissue = bias.fit(head, template, correct=params.bias_correction)
    if tissue is None:
        return _Attempt(registration, head, None, None, None, "nothing where the brain should be")
    if tissue.coefficients is not None:
        head = head * np.exp(-bias.drift(tissue.coefficients, template.grid))
    found_mask = mask.brain_mask(head, template, tissue)
    seen = inside(data.shape, affine, template.grid, registration.transform)
    brain = template.distance < 0
    far = template.distance > 7.0
    coverage = 1.0
    if seen is not None:
        coverage = float((seen & brain).sum() / brain.sum())
        found_mask &= seen
        far &= seen
    blank = head <= BACKGROUND_FRACTION * float(tissue.levels[2])
    if far.any() and float(blank[far].mean()) > 0.93:
        # Stripped before it came here: nothing beyond its own edge is brain.
        found_mask &= ndimage.binary_fill_holes(~blank)
    found = quality.measure(head, template, registration.transform, tissue, found_mask, coverage)
    problem = _judge(found, params)
    empty = float(blank[template.distance < -4.0].mean())
    if not problem and empty > MAXIMUM_BLANK:
        problem = f"{empty:.0%} of the brain is blank"
    problem = problem or _missing(blank, template)
    return _Attempt(registration, head, tissue, found_mask, found, problem)


def _register(data: Array, affine: Matrix, params: Normalize) -> register.Registration:
    return register.register(
        data,
        affine,
        coarse_mm=params.registration.coarse_mm,
        fine_mm=params.registration.fine_mm,
        maximum_iterations=params.registration.maximum_iterations,
    )


def normalize_volume(volume: Volume, params: Normalize) -> Normalized:
    """Normalize one image.

    Parameters
    ----------
    volume
        From :func:`medalign3d.volumes.read.read_volume`.
    params
        The section ``normalize`` of the parameters.

    Returns
    -------
    Normalized
        ``verdict`` says whether it may go on.

    Raises
    ------
    VolumeError
        When the image breaks an acceptance rule (see :func:`medalign3d.volumes.read.check`) or its brain is constant.
    """
    started = time.perf_counter()
    check(volume)
    target = mni.target_grid(params.shape, params.zooms_mm)
    template = mni.at_zoom(work_zoom(params.zooms_mm))
    data, affine = _tame(volume.data), np.asarray(volume.affine, dtype=float)

    small, small_affine = reduce_to(data, affine, float(template.grid.zooms[0]))
    glance = mni.at_zoom(8.0, register.RIM_MM + 2.0)
    already = _blank_share(resample(small, small_affine, glance.grid), glance) > 0.85
    if already:
        as_is = resample(small, small_affine, template.grid)
        already, solid = is_already_normalized(as_is, template)
    first: register.Registration | None = None
    if already and quality.local_correlation(as_is, template) < SURELY_ALIGNED:
        first = _register(data, affine, params)
        limit = ALIGNED_ON_GRID_MM if on_mni_grid(data.shape, affine) else ALIGNED_MM
        already = register.displacement_mm(first.transform, np.eye(4)) < limit
    if already:
        tissue = bias.fit(as_is, template, correct=False)
        if tissue is not None:
            found = quality.measure(as_is, template, np.eye(4), tissue, solid, 1.0)
            problem = _judge(found, params) or _missing(as_is <= BACKGROUND_FRACTION * tissue.levels[2], template)
            if not problem:
                sampled = mni.sample_averaged(data, affine, target, np.eye(4))
                ceiling = np.float32(BACKGROUND_FRACTION * np.percentile(as_is, 99))
                share = mni.sample_averaged((data > ceiling).astype(np.float32), affine, target, np.eye(4))
                brain = ndimage.binary_fill_holes(share > 0.5)
                levels = intensity.anchors(as_is, template, tissue)
                # Prepared elsewhere: its contrast stays as it is, only gain and offset change.
                array = intensity.to_bytes(sampled, brain, levels and levels.straight())
                shown = quality_page.preview(as_is, solid, template)
                same = np.eye(4)
                in_mni = volumetry.measure(data, affine, same, tissue, as_is, solid, template, head_size_known=False)
                return _result(array, target, "", "already-normalized", same, found, started, shown, in_mni)

    if first is None:
        first = _register(data, affine, params)
    attempt = _attempt(data, affine, first, template, params)
    if attempt.problem and params.fallback == "thorough":
        second = fallback.register_thoroughly(
            data, affine, coarse_mm=params.registration.coarse_mm, fine_mm=params.registration.fine_mm
        )
        retry = _attempt(data, affine, second, template, params)
        better = retry.quality is not None and (
            attempt.quality is None or retry.quality.local_correlation > attempt.quality.local_correlation
        )
        if not retry.problem or better:
            attempt = retry
    transform = attempt.registration.transform
    shown = quality_page.preview(attempt.head, attempt.mask, template)
    if attempt.tissue is None or attempt.mask is None or attempt.quality is None:
        return _result(None, target, attempt.problem, attempt.registration.method, transform, None, started, shown)
    final: NDArray[np.uint8] | None = None
    volumes: dict[str, float] = {}
    if not attempt.problem:
        levels = intensity.anchors(attempt.head, template, attempt.tissue)
        final = _final_array(data, affine, transform, target, template.grid, attempt.tissue, attempt.mask, levels)
        volumes = volumetry.measure(data, affine, transform, attempt.tissue, attempt.head, attempt.mask, template)
    problem = attempt.problem
    if volumes.get("ventricles_ml", MINIMUM_VENTRICLES_ML) < MINIMUM_VENTRICLES_ML:
        problem, final = f"no ventricles where a brain has them ({volumes['ventricles_ml']:.1f} mL)", None
    method = attempt.registration.method
    return _result(final, target, problem, method, transform, attempt.quality, started, shown, volumes)


def _final_array(
    data: Array,
    affine: Matrix,
    transform: Matrix,
    target: Grid,
    work: Grid,
    tissue: bias.Tissue,
    brain: NDArray[np.bool_],
    levels: intensity.Anchors | None,
) -> NDArray[np.uint8]:
    """The one interpolation from the scanned grid, drift removed, masked, in bytes."""
    on_target = resample(brain.astype(np.float32), work.affine, target) > 0.5
    sampled = mni.sample_averaged(data, affine, target, transform, where=on_target)
    if tissue.coefficients is not None:
        sampled *= np.exp(-bias.drift(tissue.coefficients, target))
    return intensity.to_bytes(sampled, on_target, levels)


def _result(
    array: NDArray[np.uint8] | None,
    target: Grid,
    problem: str,
    method: str,
    transform: Matrix,
    found: quality.Quality | None,
    started: float,
    preview: NDArray[np.uint8] | None = None,
    volumes: dict[str, float] | None = None,
) -> Normalized:
    metrics = {} if found is None else found.as_dict()
    metrics |= volumes or {}
    metrics["seconds"] = time.perf_counter() - started
    verdict: Verdict = "quarantined" if problem else "accepted"
    reason = "QC_FAIL" if problem else ""
    return Normalized(array, target.affine, verdict, reason, problem, method, transform, metrics, preview)


# ---------------------------------------------------------------------------------------------------------------------
# cohorts

METRIC_COLUMNS = (
    "local_correlation",
    "grey_white_contrast",
    "fluid_level",
    "scale",
    "stretch",
    "coverage",
    "overlap",
    "brain_ml",
)
VOLUME_COLUMNS = (*volumetry.VOLUME_COLUMNS, *volumetry.FRACTION_COLUMNS)
INDEX_COLUMNS = (
    "image_id",
    "path",
    "sha256",
    "verdict",
    "reason",
    "detail",
    "method",
    *METRIC_COLUMNS,
    "seconds",
    *VOLUME_COLUMNS,
    *regions.REGION_COLUMNS,
    "source_sha256",
    "params_sha256",
)


def params_sha256(params: Normalize) -> str:
    """Digest of what decides the arrays: parameters, less workers, limits and cluster, and the algorithm's version."""
    deciding = params.model_dump(
        exclude={"workers", "time_limit_seconds", "memory_limit_gb", "cluster", "cluster_options"}
    )
    return files.sha256_json({"params": deciding, "version": ALGORITHM_VERSION})


@dataclass(frozen=True)
class _Task:
    image_id: str
    root: str = field(repr=False)  # what prints a task that failed, as Dask does, prints no path
    source_path: str = field(repr=False)
    source_format: str | None
    out_dir: str
    params: dict[str, Any]


def _normalize_one(task: _Task) -> dict[str, Any]:
    """Worker: normalize and store one image; its row of the index."""
    started = time.perf_counter()
    params = Normalize.model_validate(task.params)
    row: dict[str, Any] = {"image_id": task.image_id, "path": "", "sha256": "", "method": "", "detail": ""}
    row["params_sha256"] = params_sha256(params)  # as this process' version of the code sees it
    try:
        volume = read_volume(task.root, task.source_path, task.source_format)
        result = normalize_volume(volume, params)
    except VolumeError as error:
        found = f": {error.found}" if error.found else ""
        row |= {"verdict": "quarantined", "reason": error.reason, "detail": f"{error.what}{found}"}
        row["seconds"] = time.perf_counter() - started
        return row
    row |= {"verdict": result.verdict, "reason": result.reason, "method": result.method}
    row["detail"] = "; ".join(filter(None, (result.detail, *volume.remarks)))
    row |= {name: result.metrics.get(name, float("nan")) for name in (*METRIC_COLUMNS, *VOLUME_COLUMNS)}
    if result.array is not None and result.verdict == "accepted":
        row |= regions.measure(result.array, result.affine)
    try:
        if result.preview is not None:
            quality_page.write_picture(task.out_dir, task.image_id, result.preview)
        if result.array is not None and result.verdict == "accepted":
            row["path"] = store.write(task.out_dir, result.array)
            row["sha256"] = files.sha256_file(Path(task.out_dir) / row["path"])
    except (OSError, MedAlignError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        return {"store_errno": cause.errno or 0}  # not the image's fault: the run must stop
    row["seconds"] = time.perf_counter() - started
    return row


def normalize_cohort(
    images: pd.DataFrame,
    root: str | os.PathLike[str],
    params: Normalize,
    out_dir: str | os.PathLike[str],
    work_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Normalize every image of a cohort into a store; only what is new or changed is done.

    A run that was killed goes on where it stopped: see :class:`medalign3d.volumes.store.Workspace`.

    Parameters
    ----------
    images
        Columns ``image_id``, ``source_path``, ``source_format``, ``data_sha256``; one row per image. Its
        ``attrs["simulated"]`` goes into the index's metadata.
    root
        The cohort's folder.
    params
        The section ``normalize`` of the parameters.
    out_dir
        The store: volumes, ``index.parquet``, ``pictures`` and ``quality.html``.
    work_dir
        Where finished volumes are kept between runs, on the same file system; by default beside ``out_dir``.

    Returns
    -------
    DataFrame
        The index: one row per image, columns :data:`INDEX_COLUMNS`.

    Raises
    ------
    InputError
        When an image id stands twice, or the table was made without opening the images.
    MedAlignError
        When the store cannot be written, another run works on it, or workers or cluster do not do their part. What was
        done by then is kept, and nothing is quarantined for it.
    """
    if images.attrs.get("images_read") == "false":
        raise InputError(
            "the images were listed but not read, so there is nothing to normalize",
            where="images table",
            found="images_read: false",
            expected="images_read: true",
            remedy="make the image files available, set ingest.read_images: true in params.yaml and run `dvc repro`",
        )
    mni.target_grid(params.shape, params.zooms_mm)  # a grid that cuts the brain is refused before any work
    duplicated = images["image_id"][images["image_id"].duplicated()]
    if len(duplicated):
        raise InputError("an image id stands twice", where="images table", found=duplicated.iloc[0])
    out = Path(out_dir).resolve()
    with store.explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.work") if work_dir is None else Path(work_dir)
    with store.explain_write_errors(work):
        workspace = store.Workspace(work)
        with workspace.locked():
            rows = _normalize_all(images, Path(root).resolve(), params, workspace)
            workspace.keep_only(row for row in rows if "path" in row)
            with store.explain_write_errors(out):
                return _publish(images, rows, params, workspace, out)


def _normalize_all(
    images: pd.DataFrame, root: Path, params: Normalize, workspace: store.Workspace
) -> list[dict[str, Any]]:
    """Do what the workspace does not have yet; a row of the index for every image, in any order."""
    digest = params_sha256(params)
    known = workspace.rows()
    records: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    for cells in images.to_dict("records"):
        image_id = str(cells["image_id"])
        store.check_id(image_id)
        source = cells.get("data_sha256")
        source = source if isinstance(source, str) else ""
        records.append({**{str(k): v for k, v in cells.items()}, "image_id": image_id, "data_sha256": source})
        old = known.get(image_id)
        if old is not None and source and (old["source_sha256"], old["params_sha256"]) == (source, digest):
            candidates.append(old)
    whole = workspace.have(candidates, params.workers)
    rows = [row for row, is_whole in zip(candidates, whole, strict=True) if is_whole]
    if rows:
        print(f"normalize: {len(rows)} of {len(images)} volumes are up to date", flush=True)
    done = {row["image_id"] for row in rows}
    to_do = [record for record in records if record["image_id"] not in done]
    values = params.model_dump()
    tasks = []
    for record in to_do:
        source_format = record.get("source_format")
        tasks.append(
            _Task(
                record["image_id"],
                str(root),
                str(record["source_path"]),
                source_format if isinstance(source_format, str) and source_format else None,
                str(workspace.folder),
                values,
            )
        )
    limit = round(params.memory_limit_gb * 2**30)
    workers = params.workers
    if tasks and params.cluster == cluster.LOCAL:
        workers = pool.workers_that_fit(min(workers, len(tasks)), limit)
    accepted = 0
    with Progress("normalize", len(tasks), parallel=workers) as progress:
        for outcome in cluster.run_tasks(
            _normalize_one,
            tasks,
            cluster=params.cluster,
            options=params.cluster_options,
            workers=workers,
            time_limit_seconds=params.time_limit_seconds,
            memory_limit_bytes=limit,
        ):
            record = to_do[outcome.index]
            if outcome.status == "done":
                row = outcome.value
                _check_answer(row, digest, workspace, params)
            else:
                row = {"image_id": record["image_id"], "verdict": "quarantined", "reason": "IMAGE_UNREADABLE"}
                row["detail"] = f"{outcome.status}: {outcome.error}"[:300]
            row |= {"source_sha256": record["data_sha256"], "params_sha256": digest}
            if outcome.status == "done":  # a crash or a limit may be the machine's fault: tried again next time
                workspace.record(row)
            rows.append(row)
            accepted += row["verdict"] == "accepted"
            progress.advance(note=f"{progress.done + 1 - accepted} quarantined")
    return rows


def _check_answer(row: dict[str, Any], digest: str, workspace: store.Workspace, params: Normalize) -> None:
    """Stop the run when an answer shows that a worker cannot write the store, see it, or has other code."""
    if "store_errno" in row:
        raise store.write_error(workspace.folder, OSError(row["store_errno"], ""))
    if row["params_sha256"] != digest:
        raise MedAlignError(
            "a worker runs another version of the code",
            where="params.yaml: normalize.cluster",
            expected="the version that runs here",
            remedy="install the same version on the workers and start them again",
        )
    if not row["path"] or params.cluster == cluster.LOCAL:
        return
    until = time.monotonic() + SHARED_FOLDER_SECONDS
    while not (workspace.folder / row["path"]).exists():  # network file systems may show a new file late
        if time.monotonic() > until:
            raise MedAlignError(
                "a worker's volume is not seen here",
                where=workspace.folder,
                expected="a file system that the workers share with this machine, under the same path",
                remedy="put the project on a shared file system, or set normalize.cluster: local",
            )
        time.sleep(0.2)
        os.listdir(workspace.folder)  # makes NFS look again


def _publish(
    images: pd.DataFrame, rows: list[dict[str, Any]], params: Normalize, workspace: store.Workspace, out: Path
) -> pd.DataFrame:
    """Make the store show what the workspace has; its index is written last but for the removal of what it lacks."""
    import pandas as pd

    index = pd.DataFrame(rows).reindex(columns=list(INDEX_COLUMNS))
    order = {str(image_id): place for place, image_id in enumerate(images["image_id"])}
    index = index.sort_values("image_id", key=lambda ids: ids.map(order), ignore_index=True)
    index = _typed(index)
    names = set(index.loc[index["verdict"] == "accepted", "path"])
    workspace.publish(sorted(names), out)
    quality_page.publish_pictures(workspace.folder, out, [str(image_id) for image_id in index["image_id"]])
    target = mni.target_grid(params.shape, params.zooms_mm)
    metadata = {
        "simulated": str(images.attrs.get("simulated", "false")),
        "shape": " ".join(map(str, target.shape)),
        "affine": " ".join(f"{v:.6g}" for v in target.affine.ravel()),
        "space": "MNI152 (ICBM 2009a non-linear symmetric)",
    }
    quality_page.write_page(
        index,
        out,
        title=" and ".join(sorted({str(name) for name in images.get("dataset", [])})) or "volumes",
        simulated=metadata["simulated"] == "true",
        grid_words=f"{' x '.join(map(str, target.shape))} voxels of {params.zooms_mm:g} mm",
    )
    # Clock times are returned but not stored: the same volumes give the same index, byte by byte.
    files.write_parquet(out / store.INDEX_NAME, index.drop(columns="seconds"), metadata)
    store.remove_others(out, names)
    index.attrs.update(metadata)
    return index


def _typed(index: pd.DataFrame) -> pd.DataFrame:
    """Text and float32 columns, whatever the rows held."""
    for name in (
        "image_id",
        "path",
        "sha256",
        "verdict",
        "reason",
        "detail",
        "method",
        "source_sha256",
        "params_sha256",
    ):
        index[name] = index[name].fillna("").astype(str)
    for name in (*METRIC_COLUMNS, "seconds", *VOLUME_COLUMNS, *regions.REGION_COLUMNS):
        index[name] = index[name].astype("float32")
    return index


def normalize_inputs(
    paths: Sequence[str | os.PathLike[str]], params: Normalize, out_dir: str | os.PathLike[str]
) -> pd.DataFrame:
    """Normalize single files or DICOM folders for a person at a command line.

    Writes, per input, ``<name>.nii.gz`` (uint8 in MNI space) and ``<name>.png`` (a picture to look at), and
    ``index.parquet`` (columns as :func:`normalize_cohort`, with ``path`` naming the NIfTI file).

    Parameters
    ----------
    paths
        NIfTI, NIfTI pair or Analyze files, DICOM folders, zips (also ``archive.zip!inner/path``).
    params
        The section ``normalize`` of the parameters.
    out_dir
        Made when it does not exist.

    Returns
    -------
    DataFrame
        One row per input; a refused input has ``verdict`` ``quarantined`` and a ``reason``.
    """
    import pandas as pd

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    names = unique_names([str(p) for p in paths])
    tasks = [(str(path), name, str(out), params.model_dump()) for path, name in zip(paths, names, strict=True)]
    rows: list[dict[str, Any]] = [{} for _ in tasks]
    digest = params_sha256(params)
    limit = round(params.memory_limit_gb * 2**30)
    workers = pool.workers_that_fit(min(params.workers, len(tasks)), limit)
    with Progress("normalize", len(tasks), parallel=workers) as progress:
        for outcome in pool.run_tasks(
            _normalize_input,
            tasks,
            workers=workers,
            time_limit_seconds=params.time_limit_seconds,
            memory_limit_bytes=limit,
        ):
            if outcome.status == "done":
                row = outcome.value
            else:
                row = {
                    "verdict": "quarantined",
                    "reason": "IMAGE_UNREADABLE",
                    "detail": f"{outcome.status}: {outcome.error}",
                }
            rows[outcome.index] = {"image_id": names[outcome.index], "params_sha256": digest, **row}
            progress.advance()
    index = pd.DataFrame(rows).reindex(columns=list(INDEX_COLUMNS))
    index = _typed(index)
    files.write_parquet(out / store.INDEX_NAME, index, {"simulated": "unknown"})
    return index


def unique_names(paths: Sequence[str]) -> list[str]:
    """A file name stem per path: the base name less its suffixes, numbered where two are alike.

    >>> unique_names(["a/head.nii.gz", "b/head.nii", "scan.zip!in/one.hdr"])
    ['head', 'head-2', 'one']
    """
    import re

    names: list[str] = []
    for path in paths:
        stem = path.rstrip("/").replace("!", "/").rsplit("/", 1)[-1]
        stem = re.sub(
            r"(\.nii\.gz|\.nifti\.hdr|\.nifti\.img|\.nii|\.hdr|\.img|\.zip|\.dcm)$", "", stem, flags=re.IGNORECASE
        )
        stem = re.sub(r"[^A-Za-z0-9_.\-]+", "_", stem).strip("._-") or "volume"
        name, count = stem, 1
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    return names


def _normalize_input(task: tuple[str, str, str, dict[str, Any]]) -> dict[str, Any]:
    """Worker of :func:`normalize_inputs`."""
    import nibabel

    from medalign3d.volumes import pictures

    path, name, out_dir, values = task
    params = Normalize.model_validate(values)
    started = time.perf_counter()
    outer, separator, inner = path.partition("!")
    place = Path(outer).resolve()
    try:
        volume = read_volume(place.parent, place.name + separator + inner)
        result = normalize_volume(volume, params)
    except VolumeError as error:
        found = f": {error.found}" if error.found else ""
        return {
            "verdict": "quarantined",
            "reason": error.reason,
            "detail": f"{error.what}{found}",
            "seconds": time.perf_counter() - started,
        }
    row: dict[str, Any] = {
        "verdict": result.verdict,
        "reason": result.reason,
        "detail": "; ".join(filter(None, (result.detail, *volume.remarks))),
        "method": result.method,
        "source_sha256": volume.data_sha256(),
        **{column: result.metrics.get(column, float("nan")) for column in (*METRIC_COLUMNS, *VOLUME_COLUMNS)},
    }
    out = Path(out_dir)
    if result.array is not None and result.verdict == "accepted":
        image = nibabel.Nifti1Image(result.array, result.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(result.affine, code="mni")
        image.set_qform(result.affine, code="mni")
        with files.atomic_path(out / f"{name}.nii.gz") as temporary:
            nibabel.save(image, temporary)
        row |= {"path": f"{name}.nii.gz", "sha256": files.sha256_file(out / f"{name}.nii.gz")}
        row |= regions.measure(result.array, result.affine)
    pictures.write_quality_picture(volume, result, out / f"{name}.png")
    row["seconds"] = time.perf_counter() - started
    return row
