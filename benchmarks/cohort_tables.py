"""How long reading full-size clinical tables takes, and how much memory: one process, one core, no images opened.

ADNI: ADNIMERGE and seven study tables of 20,000 visits each, in realistic widths. NACC: a UDS table of 20,000 or
205,000 visits x 2,000 columns, of which the reader takes the ones that it knows, and an MRI table of 12,000 rows.
The tables hold random values, are made in a temporary folder and are removed again.

Run: ``python benchmarks/cohort_tables.py [adni] [nacc] [nacc-full]`` (default: adni nacc). The target is 60 s each.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TARGET_SECONDS = 60.0
VISITS_PER_PERSON = 5
FULL_VISITS = 205_000
VISITS = 20_000
MRI_ROWS = 12_000
UDS_COLUMNS = 2000


def write(path: Path, columns: list[str], rows: Iterator[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def make_adni(root: Path, visits: int = VISITS) -> None:
    """Study tables as the archive exports them, and a list of image paths in place of the images."""
    draw = random.Random(0)
    people = visits // VISITS_PER_PERSON
    codes = ["bl", "m06", "m12", "m24", "m36"]

    def key(person: int, visit: int) -> tuple[int, str, str, str]:
        date = datetime.date(2006, 1, 1) + datetime.timedelta(days=person % 900 + 183 * visit)
        return person, f"{person % 999 + 1:03d}_S_{person:04d}", codes[visit], date.isoformat()

    def table(name: str, columns: dict[str, Callable[[], object]], filler: int) -> None:
        def rows() -> Iterator[list[object]]:
            for person in range(1, people + 1):
                for visit in range(VISITS_PER_PERSON):
                    rid, ptid, code, date = key(person, visit)
                    own = [value() for value in columns.values()]
                    yield [
                        rid,
                        ptid,
                        code,
                        code,
                        date,
                        *own,
                        *(draw.choice(("", "-4", "1", "0.5")) for _ in range(filler)),
                    ]

        names = ["RID", "PTID", "VISCODE", "VISCODE2", "EXAMDATE", *columns, *(f"X{n}" for n in range(filler))]
        write(root / "clinical" / f"{name}_17Nov2024.csv", names, rows())

    def one_of(*values: object) -> Callable[[], object]:
        return lambda: draw.choice(values)

    mmse, memory = one_of(*range(18, 31), "-4"), one_of(*range(26), "", "-1")
    rating, box = one_of(0, 0.5, 1, "-1"), one_of(0, 0.5, 1)
    table(
        "ADNIMERGE",
        {
            "DX": one_of("CN", "MCI", "Dementia", ""),
            "DX_bl": lambda: "CN",
            "AGE": lambda: 74.3,
            "PTGENDER": lambda: "Male",
            "PTEDUCAT": lambda: 16,
            "APOE4": lambda: 1,
            "MMSE": mmse,
            "CDRSB": one_of(0, 0.5, 4.5),
            "LDELTOTAL": memory,
            "MOCA": one_of(*range(10, 31)),
            "FAQ": one_of(*range(31)),
            "Hippocampus": lambda: draw.randint(4000, 9000),
            "Ventricles": lambda: draw.randint(10000, 90000),
            "WholeBrain": lambda: draw.randint(800000, 1200000),
            "ICV": lambda: draw.randint(1200000, 1800000),
            "EXAMDATE_bl": lambda: "2006-01-01",
            "COLPROT": lambda: "ADNI1",
        },
        95,
    )
    table("DXSUM", {"DIAGNOSIS": one_of(1, 2, 3, "")}, 40)
    table(
        "CDR",
        {"CDGLOBAL": rating, **dict.fromkeys(("CDMEMORY", "CDORIENT", "CDJUDGE", "CDCOMMUN", "CDHOME", "CDCARE"), box)},
        20,
    )
    table("MMSE", {"MMSCORE": mmse}, 60)
    table("NEUROBAT", {"LIMMTOTAL": memory, "LDELTOTAL": memory}, 90)
    table("PTDEMOG", {"PTGENDER": lambda: 1, "PTEDUCAT": lambda: 16, "PTDOBYY": lambda: 1932, "PTHAND": lambda: 1}, 60)
    table("LABDATA", {"RCT11": one_of(90, 101, "-1"), "RCT392": one_of(0.9, 1.1), "HMT40": one_of(13.2, "SCC09")}, 120)
    table("REGISTRY", {}, 20)
    paths = []
    for person in range(1, people + 1, 4):
        _, ptid, _, date = key(person, 0)
        paths.append(f"{ptid}/MPRAGE/{date}_10_00_00.0/I{person}/ADNI_{ptid}_MR_MPRAGE_Br_2006_S{person}_I{person}.nii")
    (root / "image_files.txt").write_text("\n".join(paths))


def make_nacc(root: Path, visits: int = VISITS) -> None:
    """The two tables of a data freeze and a list of image paths."""
    draw = random.Random(1)
    columns = [
        "NACCID",
        "NACCVNUM",
        "PACKET",
        "FORMVER",
        "VISITYR",
        "VISITMO",
        "VISITDAY",
        "SEX",
        "BIRTHMO",
        "BIRTHYR",
        "NACCAGE",
        "EDUC",
        "HANDED",
        "NACCMMSE",
        "NACCMOCA",
        "LOGIMEM",
        "MEMUNITS",
        "CDRSUM",
        "CDRGLOB",
        "NACCGDS",
        "NACCAPOE",
        "NACCNE4S",
        "NACCUDSD",
        "NACCALZD",
        "NACCALZP",
        "NACCETPR",
    ]
    filler = [
        ",".join(draw.choice(("-4", "0", "1", "8", "88", "")) for _ in range(UDS_COLUMNS - len(columns)))
        for _ in range(64)
    ]
    root.mkdir(parents=True, exist_ok=True)
    with (root / "investigator_nacc71.csv").open("w", encoding="utf-8") as stream:
        stream.write(
            ",".join([*columns[:13], *(f"X{n}" for n in range(UDS_COLUMNS - len(columns))), *columns[13:]]) + "\n"
        )
        for number in range(visits):
            person, visit = divmod(number, VISITS_PER_PERSON)
            head = [
                f"NACC{person:06d}",
                visit + 1,
                "I",
                3,
                2006 + visit,
                1 + person % 12,
                1 + person % 28,
                1 + person % 2,
                5,
                1930,
                75 + visit,
                16,
                2,
            ]
            tail = [
                draw.choice((88, 95, *range(20, 31))),
                -4,
                draw.randint(0, 25),
                draw.randint(0, 25),
                0.5,
                0.5,
                3,
                1,
                0,
                draw.randint(1, 4),
                draw.choice((0, 1, 8)),
                1,
                1,
            ]
            stream.write(",".join([*map(str, head), filler[number % 64], *map(str, tail)]) + "\n")
    mri = [
        "NACCID",
        "NACCMRFI",
        "NACCMNUM",
        "NACCVNUM",
        "NACCMRDY",
        "MRIYR",
        "MRIMO",
        "MRIDY",
        *(f"Y{n}" for n in range(180)),
    ]
    people = visits // VISITS_PER_PERSON
    write(
        root / "investigator_mri_nacc71.csv",
        mri,
        (
            [
                f"NACC{n % people:06d}",
                f"mri{n}.zip",
                n // people + 1,
                1,
                3,
                2006,
                1 + n % people % 12,
                1 + n % people % 28,
                *(["9.9999"] * 180),
            ]
            for n in range(MRI_ROWS)
        ),
    )
    (root / "image_files.txt").write_text("\n".join(f"mri/mri{n}ni/T1_{n}.nii" for n in range(0, MRI_ROWS, 4)))


def measure(cohort: str, root: Path) -> None:
    """Read a cohort and print the figures; runs in a process of its own, for its peak memory."""
    from medalign3d.cohorts import ingest_cohort
    from medalign3d.profiles import build_profile

    params = build_profile("demo", project=Path(__file__).resolve().parents[1])[1]
    params = params.model_copy(update={"ingest": params.ingest.model_copy(update={"read_images": False})})
    started = time.perf_counter(), time.process_time()
    result = ingest_cohort(cohort, root, params, workers=1)
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(path.stat().st_size for path in root.rglob("*.csv")) / 1e6
    verdict = "within" if cpu <= TARGET_SECONDS else "OVER"
    print(
        f"{cohort}: {size:,.0f} MB of tables, {len(result.visits):,} visits, {result.images_found:,} images: "
        f"{cpu:.1f} s of one core ({wall:.1f} s by the clock; {verdict} {TARGET_SECONDS:.0f} s), peak {peak:,.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["adni", "nacc"], metavar="adni|nacc|nacc-full")
    parser.add_argument("--measure", nargs=2, metavar=("COHORT", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    for what in arguments.what:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "raw"
            if what == "adni":
                make_adni(root)
            else:
                make_nacc(root, FULL_VISITS if what == "nacc-full" else VISITS)
            cohort = what.split("-")[0].upper()
            subprocess.run([sys.executable, __file__, "--measure", cohort, str(root)], check=True, env=os.environ)


if __name__ == "__main__":
    main()
