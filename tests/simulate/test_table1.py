"""The simulated cohorts at the size of the published Table 1, and the table made from them."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign3d.cli import main
from medalign3d.cohorts import write_ingest
from medalign3d.cohorts.base import IngestResult
from medalign3d.cohorts.listing import LISTING_NAME
from medalign3d.ehr.harmonize import Harmonized
from medalign3d.errors import InputError, ParameterError
from medalign3d.files import read_parquet, sha256_file
from medalign3d.params import Params
from medalign3d.published_table1 import ADNI_MALE_CORRECTED, PUBLISHED, PUBLISHED_IMAGES
from medalign3d.report.make_table1 import cohort_folders, harmonize_folders, params_for, table1_of_harmonized
from medalign3d.report.table1 import table1_counts, table1_of
from medalign3d.simulate import MARKER
from medalign3d.simulate.table1 import WRITERS, simulate_table1
from medalign3d.simulate.table1.draws import exact_subset, scaled

SMALL = ("OASIS", "AIBL", "MIRIAD")


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


_MADE: dict[tuple[Path, str, tuple[str, ...]], Harmonized] = {}


def made(trees: Path, params: Params, form: str, cohorts: tuple[str, ...]) -> Harmonized:
    """The harmonized trees, made once; tests only look at them."""
    key = (trees, form, cohorts)
    if key not in _MADE:
        folders = {cohort: trees / cohort for cohort in cohorts}
        _MADE[key] = harmonize_folders(folders, params_for(params, folders, form, read_images=False))
    return _MADE[key]


@pytest.fixture(scope="module")
def small_trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three small cohorts in full, the two large ones at a tenth."""
    folder = tmp_path_factory.mktemp("table1")
    simulate_table1(folder, cohorts=SMALL)
    simulate_table1(folder, scale=0.1, cohorts=("ADNI", "NACC"))
    return folder


def check_published(cohort: str, counts: dict[str, object], scale: float = 1.0) -> None:
    """Exactly the published counts; of the two ADNI figures that contradict each other, the share."""
    published = PUBLISHED[cohort]
    for name in ("images", "female", "education", "ses", "mmse", "cdr", "logical_memory"):
        expected = getattr(published, name)
        assert counts[name] == (0 if expected is None else scaled(expected, scale)), (cohort, name)
    assert (counts["age_min"], counts["age_max"]) == (published.age_min, published.age_max), cohort
    assert set(counts["diagnoses"]) == set(published.diagnoses), cohort  # type: ignore[call-overload]
    if cohort == "ADNI":
        share = counts["female"] / counts["images"]  # type: ignore[operator]
        assert share == pytest.approx(published.female / (published.female + published.male), abs=0.005)
    elif scale == 1.0:
        assert counts["male"] == published.male


def test_published_figures_agree_with_each_other_but_for_the_misprint() -> None:
    assert sum(cohort.images for cohort in PUBLISHED.values()) == PUBLISHED_IMAGES
    for name, cohort in PUBLISHED.items():
        assert cohort.female + cohort.male == cohort.images + (100 if name == "ADNI" else 0)
    assert PUBLISHED["ADNI"].female + ADNI_MALE_CORRECTED == PUBLISHED["ADNI"].images


def test_the_emulation_has_exactly_the_published_counts(small_trees: Path, demo_params: Params) -> None:
    result = made(small_trees, demo_params, "table1_emulation", SMALL)
    assert not (result.quarantine["severity"] == "drop").any()
    for cohort, counts in table1_counts(result.images).items():
        check_published(cohort, counts)
    large = made(small_trees, demo_params, "table1_emulation", ("ADNI", "NACC"))
    for cohort, counts in table1_counts(large.images).items():
        check_published(cohort, counts, scale=0.1)


def test_clean_rows_are_acquired_scans(small_trees: Path, demo_params: Params) -> None:
    result = made(small_trees, demo_params, "clean", ("ADNI", "NACC", *SMALL))
    counts = table1_counts(result.images)
    assert counts["OASIS"]["images"] == 414 + 1364
    assert counts["OASIS"]["people"] == 414 + 150 - 116
    assert counts["MIRIAD"]["mmse"] > PUBLISHED["MIRIAD"].mmse
    assert counts["MIRIAD"]["selected"] == 523
    assert counts["NACC"]["images"] < scaled(PUBLISHED["NACC"].images, 0.1)
    assert not result.images["native_image_key"].str.contains("@").any()
    assert result.images["variant_of"].isna().all()


def test_missing_tests_follow_the_form_version_and_the_schedule(small_trees: Path, demo_params: Params) -> None:
    images = made(small_trees, demo_params, "clean", ("ADNI", "NACC", *SMALL)).images
    nacc = images[images["dataset"] == "NACC"]
    # A scan lies up to 75 days from its visit, so the half year around the change of forms is left out.
    dates = pd.to_datetime(nacc["scan_date"].astype(str))
    late, early = nacc[dates >= "2015-07-01"], nacc[dates < "2014-12-01"]
    assert late["mmse"].isna().all()
    assert late["lm_delayed"].isna().all()
    assert early["mmse"].notna().mean() > 0.8
    miriad = images[(images["dataset"] == "MIRIAD") & images["mmse"].notna()]
    assert set(miriad["visit_code"]) == {"01", "05", "07", "08", "09"}
    adni = images[images["dataset"] == "ADNI"]
    short = adni["visit_code"].isin(["m03", "m06", "m18"])
    assert adni.loc[short, "lm_delayed"].isna().mean() > adni.loc[~short, "lm_delayed"].isna().mean() + 0.3


def test_the_table_says_what_is_simulated_and_keeps_the_published_block_apart(
    small_trees: Path, demo_params: Params, tmp_path: Path
) -> None:
    result = made(small_trees, demo_params, "table1_emulation", SMALL)
    table = table1_of_harmonized(result, minimum_cell=1)
    csv, markdown, latex = (path.read_text() for path in table.write(tmp_path))
    assert "SIMULATED" in table.title
    assert "SIM-OASIS" in table.header[1]
    for text in (markdown, latex):
        assert "SIMULATED people, counted here" in text
        assert "as reported by the authors" in text
        assert "two scales" in text
    numbers = pd.read_csv(tmp_path / "table1_emulation.csv")
    assert set(numbers["block"]) == {"counted", "reported"}
    counted = numbers[numbers["block"] == "counted"]
    assert counted["simulated"].all()
    assert counted["cohort"].str.match(r"SIM-|all").all()
    assert not numbers.loc[numbers["block"] == "reported", "simulated"].any()
    assert "100 more than" not in csv + markdown  # no ADNI column, no footnote about it
    assert "100 more than" in "".join(table1_of(_like_adni(result.images), form="clean", simulated=False).notes)


def _like_adni(images: pd.DataFrame) -> pd.DataFrame:
    rows = images[images["dataset"] == "AIBL"].copy()
    rows["dataset"] = "ADNI"
    return rows


def test_small_counts_are_suppressed_and_do_not_follow_from_the_total(small_trees: Path, demo_params: Params) -> None:
    images = made(small_trees, demo_params, "clean", ("ADNI", "NACC", *SMALL)).images
    few = pd.concat([images[images["dataset"] == "AIBL"].head(3), images[images["dataset"] == "MIRIAD"]])
    table = table1_of(few, form="clean", simulated=False, minimum_cell=5)
    rows = {row[0]: row[1:] for row in table.rows[:8]}
    assert rows["images"] == ["<5", "708", "suppressed"]
    assert rows["women / men (images)"][0] == "suppressed"
    assert rows["age, range (years)"][0] == "–"


def test_trees_are_the_same_for_a_seed_and_differ_for_another(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate_table1(tmp_path / name, seed=seed, scale=0.1)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    other = hashes(tmp_path / "c")
    assert all(other[name] != digest for name, digest in hashes(tmp_path / "a").items() if name.endswith(".csv"))
    for cohort in WRITERS:
        assert (tmp_path / "a" / cohort / MARKER).is_file()
        paths = (tmp_path / "a" / cohort / LISTING_NAME).read_text().splitlines()
        assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("scale", [0.1, 0.13, 0.25, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_seed_and_size_reaches_the_large_cohorts_totals(tmp_path: Path, seed: int, scale: float) -> None:
    listed = simulate_table1(tmp_path, seed=seed, scale=scale)
    assert listed["NACC"] == scaled(PUBLISHED["NACC"].images, scale)
    assert listed["AIBL"] == scaled(PUBLISHED["AIBL"].images, scale)
    assert 0.9 * scaled(PUBLISHED["ADNI"].images, scale) < listed["ADNI"] <= scaled(PUBLISHED["ADNI"].images, scale)


def test_wrong_sizes_and_cohorts_are_refused(tmp_path: Path) -> None:
    for arguments in ({"scale": 0.01}, {"scale": float("nan")}, {"cohorts": ("IXI",)}):
        with pytest.raises(ParameterError):
            simulate_table1(tmp_path, **arguments)  # type: ignore[arg-type]


def test_real_and_simulated_folders_are_not_mixed(small_trees: Path, tmp_path: Path, demo_params: Params) -> None:
    folders = {cohort: small_trees / cohort for cohort in SMALL} | {"ADNI": tmp_path}
    with pytest.raises(InputError, match="mixed"):
        params_for(demo_params, folders, "clean", read_images=False)
    with pytest.raises(InputError, match="no cohort's folder"):
        cohort_folders(tmp_path)


def test_reading_twice_and_with_more_workers_gives_equal_files(
    small_trees: Path, tmp_path: Path, demo_params: Params
) -> None:
    from medalign3d.cohorts import ingest_cohort
    from medalign3d.ehr.harmonize import harmonize, write_harmonized

    folders = {cohort: small_trees / cohort for cohort in ("ADNI", "AIBL", "MIRIAD")}
    params = params_for(demo_params, folders, "table1_emulation", read_images=False)
    for run, workers in (("first", 1), ("second", 2)):
        tables: dict[str, IngestResult] = {}
        for cohort, folder in folders.items():
            tables[cohort] = ingest_cohort(cohort, folder, params, workers=workers)
            write_ingest(tables[cohort], tmp_path / run / cohort, simulated=True)
        write_harmonized(harmonize(tables, params), tmp_path / run / "ehr")
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")


def test_the_command_makes_the_table(
    small_trees: Path, tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for cohort in ("OASIS", "MIRIAD"):
        (data / cohort).symlink_to(small_trees / cohort)
    arguments = ["table1", "--params", str(project / "params.yaml"), "--data", str(data), "--out", str(tmp_path / "t")]
    assert main([*arguments, "--form", "table1_emulation"]) == 0
    assert "3,020" in capsys.readouterr().out
    assert read_parquet(tmp_path / "t/ehr/images.parquet").attrs["form"] == "table1_emulation"
    assert main(arguments) == 0
    assert sorted(p.name for p in (tmp_path / "t").glob("*.md")) == ["table1_clean.md", "table1_emulation.md"]
    assert main(["simulate", "--size", "table1", "--out", str(tmp_path / "s"), "--seed", "3"]) == 0
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == sorted(WRITERS)


@given(st.lists(st.integers(0, 9), min_size=5, max_size=60), st.data())
def test_exact_subset_adds_up_or_says_so(sizes: list[int], data: st.DataObject) -> None:
    # With enough units of one, every total up to the sum is reached.
    sizes = [*sizes, *([1] * 9)]
    target = data.draw(st.integers(0, sum(sizes)))
    order = data.draw(st.permutations(range(len(sizes))))
    chosen = exact_subset(sizes, target, order)
    assert sum(sizes[place] for place in chosen) == target
    with pytest.raises(ValueError, match="no units"):
        exact_subset(sizes, sum(sizes) + 1, order)


@pytest.mark.slow
def test_the_whole_table_at_full_size(tmp_path: Path, demo_params: Params) -> None:
    started = time.monotonic()
    simulate_table1(tmp_path)
    result = made(tmp_path, demo_params, "table1_emulation", tuple(WRITERS))
    print(f"simulate + ingest + harmonize of {len(result.images):,} rows: {time.monotonic() - started:.0f} s")
    counts = table1_counts(result.images)
    for cohort, own in counts.items():
        check_published(cohort, own)
    assert sum(own["images"] for own in counts.values()) == PUBLISHED_IMAGES
    assert counts["ADNI"]["male"] == ADNI_MALE_CORRECTED
