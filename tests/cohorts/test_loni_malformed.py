"""ADNI and AIBL tables full of nonsense: nothing crashes, and every value can be found in the cell that it names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from cohort_trees import run, write_csv

from medalign3d.cohorts import adni, aibl
from medalign3d.cohorts.tables import read_table
from medalign3d.cohorts.values import parse_code, parse_float, parse_whole_id

NONSENSE = [
    "", "-4", "-4.0", "-1", "999", "1e309", "NaN", "NULL", "=1+1", "2006-13-45", "31/12/2006", "12/31/2006",
    "2006/05/02", "5.2.06", "0,5", "1,234", "<200", ">1700", "x" * 300, "\u00e9", "\u221e", "-inf", "0x10",
    "005_S_0001", "bl", "m12", "M06", "sc", "nv", "v11", "3.5", "0.5", "1.0", "2", "4", "Female", "AD",
    "MCI to Dementia", "NL to", "to", "/1934", "13/1940", "2100-01-01", "1/1/1900", "'", "m999", "m-3", " ", "S12",
    "I9", "1/0", "True",
]  # fmt: skip
ADNI_TABLES = {
    "ADNIMERGE": "RID|COLPROT|PTID|VISCODE|EXAMDATE|DX_bl|AGE|PTGENDER|PTEDUCAT|APOE4|CDRSB|MMSE|LDELTOTAL|FSVERSION|"
    "IMAGEUID|FLDSTRENG|Hippocampus|EXAMDATE_bl|DX",
    "DXSUM": "PHASE|RID|PTID|VISCODE|VISCODE2|EXAMDATE|DXCURREN|DXCHANGE|DXNORM|DXMCI|DXAD|DXOTHDEM|DXDDUE|DIAGNOSIS",
    "CDR": "PHASE|RID|VISCODE|VISCODE2|VISDATE|CDMEMORY|CDORIENT|CDJUDGE|CDCOMMUN|CDHOME|CDCARE|CDGLOBAL",
    "MMSE": "PHASE|RID|VISCODE|VISCODE2|VISDATE|MMSCORE",
    "NEUROBAT": "RID|VISCODE2|LIMMTOTAL|LDELTOTAL",
    "PTDEMOG": "RID|VISCODE2|PTGENDER|PTEDUCAT|PTHAND|PTDOB|PTDOBYY|PTDOBMM",
    "APOERES": "RID|VISCODE|APGEN1|APGEN2|GENOTYPE",
    "LABDATA": "RID|VISCODE|EXAMDATE|RCT11|RCT20|HMT40",
    "REGISTRY": "PHASE|RID|VISCODE|VISCODE2|EXAMDATE",
    "MRI3META": "RID|VISCODE|EXAMDATE|FIELD_STRENGTH",
    "MAYOADIRL_MRI_IMAGEQC": "RID|loni_series|loni_image|series_quality|series_selected",
    "MPRAGEMETA": "SubjectID|Visit|MagStrength|Sequence|ScanDate|SeriesID|ImageUID|Orig/Proc",
    "T1_11_17_2024": "Image Data ID|Subject|Sex|Age|Visit|Modality|Description|Acq Date",
}
AIBL_TABLES = {
    "aibl_pdxconv": "RID|SITEID|VISCODE|DXCURREN|DXNORM|DXMCI|DXAD",
    "aibl_ptdemog": "RID|VISCODE|PTGENDER|PTDOB",
    "aibl_cdr": "RID|VISCODE|EXAMDATE|CDGLOBAL",
    "aibl_mmse": "RID|VISCODE|EXAMDATE|MMSCORE",
    "aibl_neurobat": "RID|VISCODE|EXAMDATE|LIMMTOTAL|LDELTOTAL",
    "aibl_apoeres": "RID|VISCODE|APGEN1|APGEN2",
    "aibl_labdata": "RID|VISCODE|EXAMDATE|RCT11|RCT392|HMT40|BAT126",
    "aibl_medhist": "RID|VISCODE|MHPSYCH|MH4CARD",
    "aibl_mri3meta": "RID|VISCODE|EXAMDATE|MMSMPRAGE",
    "aibl_flutemeta": "RID|VISCODE|EXAMDATE|SCANNER",
    "T1_6_1_2018": "Image Data ID|Subject|Sex|Age|Visit|Modality|Description|Acq Date",
}


def sensible(rng: random.Random, column: str, cohort: str) -> Any:
    """A legal cell of a column, so that nonsense elsewhere in the row matters."""
    key = column.upper()
    people = [1, 2, 10]
    if key == "RID":
        return rng.choice(people)
    if key in ("PTID", "SUBJECTID", "SUBJECT"):
        return f"005_S_{rng.choice(people):04d}" if cohort == "ADNI" else rng.choice(people)
    if key in ("VISCODE", "VISCODE2", "VISIT"):
        return rng.choice(["bl", "sc", "m06", "m12", "m18", "init"])
    if "DATE" in key:
        return rng.choice(["2005-09-08", "2006-03-08"] if cohort == "ADNI" else ["9/8/2005", "3/18/2007"])
    if key == "DX":
        return rng.choice(["CN", "MCI", "Dementia", ""])
    return rng.choice([0, 1, 2, 3, 28, ""])


LABELS = {
    "DX": lambda cell: adni.dx_from_words(cell)[0],
    "DIAGNOSIS": lambda cell: adni.diagnosis_parser(adni.DIAGNOSIS)(cell)[0],
    "DXCHANGE": lambda cell: adni.diagnosis_parser(adni.DXCHANGE)(cell)[0],
    "DXNORM": lambda cell: "CN" if parse_float(cell) == 1 else None,
    "DXMCI": lambda cell: "MCI" if parse_float(cell) == 1 else None,
    "DXAD": lambda cell: "Dementia" if parse_float(cell) == 1 else None,
}


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("cohort", ["ADNI", "AIBL"])
@pytest.mark.parametrize("seed", range(3))
def test_every_label_and_score_stands_in_the_cell_that_its_provenance_names(
    tmp_path: Path, cohort: str, rate: float, seed: int
) -> None:
    rng = random.Random(f"{cohort} {rate} {seed}")
    for name, columns in (ADNI_TABLES if cohort == "ADNI" else AIBL_TABLES).items():
        names = columns.split("|")
        rows = [
            [rng.choice(NONSENSE) if rng.random() < rate else sensible(rng, column, cohort) for column in names]
            for _ in range(rng.randrange(2, 12))
        ]
        write_csv(tmp_path / f"{name}.csv", columns, *rows)
    result = run(cohort, tmp_path)
    tables = {path.name: read_table(path) for path in tmp_path.glob("*.csv")}
    assert rate > 0.2 or len(result.visits)
    visits = result.visits.astype(object).where(result.visits.notna(), None)
    for visit in visits.to_dict("records"):
        sources = json.loads(visit["provenance"])["values"]
        for column in ("dx_native", "mmse", "cdr_global"):
            if visit[column] is None:
                assert column not in sources
                continue
            row = tables[sources[column]["file"]].loc[sources[column]["row"]]
            rule = sources[column]["rule"].split(" at ")[0]
            cell = row[rule]
            if column != "dx_native":
                assert parse_float(cell) == pytest.approx(visit[column])
            elif cohort == "AIBL":
                assert parse_code(cell, aibl.DIAGNOSIS)[0] == visit[column]
            else:
                assert LABELS["DIAGNOSIS" if rule == "DXCURREN" else rule](cell) == visit[column]
            named = row.get("PTID", "")
            if cohort == "ADNI" and adni.PTID.fullmatch(named):
                assert named == visit["native_subject_id"]
            else:
                assert parse_whole_id(row["RID"]) == int(visit["native_subject_id"].rsplit("_", 1)[-1])
