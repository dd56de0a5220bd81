"""Small trees in the custodians' layouts, written by hand for the tests of the cohort readers."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medalign3d.cohorts import IngestResult, ingest_cohort
from medalign3d.params import Params
from medalign3d.profiles import build_profile

SHAPE = (64, 64, 64)
REPOSITORY = Path(__file__).resolve().parents[2]


def params(**ingest: Any) -> Params:
    """The project's parameters with changes to section ``ingest``."""
    base = build_profile("demo", project=REPOSITORY)[1]
    return base.model_copy(update={"ingest": base.ingest.model_copy(update=ingest)})


def voxels(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 200, size=tuple(shape)).astype(np.int16)


def image_bytes(seed: int, shape: Sequence[int] = SHAPE, zoom: float = 1.5) -> bytes:
    return nib.Nifti1Image(voxels(seed, shape), np.diag([zoom, zoom, zoom, 1.0])).to_bytes()


def write_image(path: Path, seed: int, shape: Sequence[int] = SHAPE, zoom: float = 1.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels(seed, shape), np.diag([zoom, zoom, zoom, 1.0]))
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(image, path)
    else:
        kind = nib.Nifti1Pair if ".nifti." in path.name else nib.AnalyzeImage
        pair = kind(voxels(seed, shape), np.diag([zoom, zoom, zoom, 1.0]))
        header, data = io.BytesIO(), io.BytesIO()
        pair.file_map["header"].fileobj, pair.file_map["image"].fileobj = header, data
        pair.to_file_map()
        base = str(path).removesuffix(".hdr")
        Path(base + ".hdr").write_bytes(header.getvalue())
        Path(base + ".img").write_bytes(data.getvalue())
    return path


def write_csv(path: Path, columns: str, *rows: Sequence[Any], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(columns.split("|"))
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def write_xlsx(path: Path, columns: str, *rows: Sequence[Any]) -> Path:
    import openpyxl

    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.append(columns.split("|"))
    for row in rows:
        book.active.append(list(row))
    book.save(path)
    return path


def adni_image(
    root: Path, ptid: str, date: str, uid: int, seed: int, series: str = "MPR__GradWarp__B1_Correction__N3__Scaled"
) -> Path:
    folder = root / ptid / series / f"{date}_10_00_00.0" / f"I{uid}"
    return write_image(folder / f"ADNI_{ptid}_MR_{series}_Br_20060101_S{uid // 2}_I{uid}.nii", seed)


def aibl_image(root: Path, rid: str, date: str, uid: int, seed: int, series: str = "MPRAGE_ADNI_confirmed") -> Path:
    folder = root / "AIBL" / rid / series / f"{date}_10_00_00.0" / f"I{uid}"
    return write_image(folder / f"AIBL_{rid}_MR_{series}_Br_20080101_S{uid // 2}_I{uid}.nii", seed)


def nacc_session(root: Path, locator: str, members: Mapping[str, tuple[bytes, Mapping[str, Any] | None]]) -> Path:
    path = root / "mri" / f"{locator}ni.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, (content, sidecar) in members.items():
            archive.writestr(f"{locator}ni/{name}.nii", content)
            if sidecar is not None:
                archive.writestr(f"{locator}ni/{name}.json", json.dumps(sidecar))
    return path


def run(cohort: str, root: Path, workers: int = 1, **ingest: Any) -> IngestResult:
    result = ingest_cohort(cohort, root, params(**ingest), workers=workers)
    dropped = ((result.quarantine["level"] == "image") & (result.quarantine["severity"] == "drop")).sum()
    assert result.images_found == len(result.images) + dropped
    return result


def reasons(result: IngestResult) -> Counter[tuple[str, str, str]]:
    table = result.quarantine
    return Counter(zip(table["reason"], table["severity"], table["key_json"], strict=True))


def reason_names(result: IngestResult) -> list[str]:
    return sorted(result.quarantine["reason"])


def by_key(result: IngestResult) -> dict[str, dict[str, Any]]:
    table = result.images.astype(object).where(result.images.notna(), None)
    return {record["native_image_key"]: record for record in table.to_dict("records")}
