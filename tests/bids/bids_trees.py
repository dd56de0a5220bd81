"""Small simulated cohorts and how to look at an exported dataset."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medalign3d.bids import Options, Source, Summary, export, tables_of_ingest
from medalign3d.cohorts import ingest_cohort, write_ingest
from medalign3d.params import Params
from medalign3d.simulate import anatomy, images, simulate_cohort


class NoAnatomy:
    """A renderer that draws noise on the right grid: the export looks at files, not at brains."""

    def __init__(self, seed: int) -> None:
        self.count = itertools.count(seed)

    def render(self, _anatomy: Any, scan: Any) -> anatomy.Rendered:
        shape, affine = anatomy._scanner_grid(scan)
        data = np.zeros(shape, np.int16)
        data[shape[0] // 2] = np.random.default_rng(next(self.count)).integers(1, 500, size=shape[1:])
        names = ("ventricles_ml", "hippocampus_left_ml", "hippocampus_right_ml", "brain_ml", "icv_ml")
        truth = dict(zip(names, (30.0, 3.5, 3.5, 1150.0, 1500.0), strict=True))
        return anatomy.Rendered(data, affine, {**truth, "white_matter_hypointensities_ml": 3.0})


def simulate(
    cohort: str, params: Params, folder: Path, *, people: int = 4, dicom: float = 0.4, faults: bool = False
) -> Path:
    """A simulated cohort in its native layout; the folder of its files."""
    changes: dict[str, Any] = {"faults": faults, "workers": 1, "dicom_fraction": dicom, "zooms_mm": 2.0}
    section = params.simulate.model_copy(
        update={**changes, "participants": dict.fromkeys(params.simulate.participants, people)}
    )
    changed = params.model_copy(update={"simulate": section})
    renderer = NoAnatomy(zlib.crc32(cohort.encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "renderer_of", lambda _folder: renderer)
        simulate_cohort(cohort, changed, folder / "raw", folder / "truth", template=folder)  # type: ignore[arg-type]
    return folder / "raw"


def ingest(cohort: str, root: Path, params: Params, tables: Path, *, simulated: bool = True) -> Source:
    """A cohort's images, read, written as tables and harmonized as the command line does it."""
    write_ingest(ingest_cohort(cohort, root, params, workers=1), tables, simulated)
    return tables_of_ingest(tables, root, params)


def together(sources: Iterable[Source]) -> Source:
    """Several cohorts as one source, as a pipeline run has them."""
    every = list(sources)
    return Source(
        pd.concat([source.images for source in every], ignore_index=True),
        {cohort: root for source in every for cohort, root in source.roots.items()},
        every[0].simulated,
        pd.concat([source.dropped for source in every], ignore_index=True),
    )


def run(out: Path, source: Source, **options: Any) -> Summary:
    return export(out, source, Options(**options))


def validate(folder: Path, *arguments: str) -> Counter[tuple[str, str]]:
    """What the official validator says: (code, sub-code) of warnings, counted; errors fail the test."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed: pip install -e '.[test]'")
    answer = subprocess.run([str(validator), str(folder), "--json", *arguments], capture_output=True, text=True)
    report = json.loads(answer.stdout)
    issues = [
        issue for part in [report, *report.get("derivativesSummary", {}).values()] for issue in part["issues"]["issues"]
    ]
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert not errors, errors[:5]
    return Counter((issue["code"], issue.get("subCode", "")) for issue in issues)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset, by relative path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def searchable(folder: Path) -> bytes:
    """Names and bytes of all files, those of compressed ones decompressed too."""
    parts = []
    for name, content in contents(folder).items():
        parts += [name.encode(), content]
        if name.endswith(".gz"):
            parts.append(gzip.decompress(content))
    return b"\n".join(parts)


def rows(path: Path) -> list[dict[str, str]]:
    """A tab-separated table."""
    header, *lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]
