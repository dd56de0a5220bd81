"""Simulated cohorts: volumes follow the prescription, files are as custodians ship them, the answer key is complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medalign3d.errors import ParameterError
from medalign3d.params import Params
from medalign3d.profiles import build_profile
from medalign3d.simulate import LAYOUTS, MARKER, plan_cohort, simulate_cohort
from medalign3d.simulate.anatomy import Anatomy, Renderer, Scan, save_template
from medalign3d.simulate.images import dicom_slices
from medalign3d.simulate.layouts import write_workbook
from medalign3d.simulate.records import add_visit, balanced_classes, draw_person, seed_of, text

REPOSITORY = Path(__file__).parents[2]
# The reasons of which nothing can be planted in a single cohort's tree are marked with another stage.
REASONS = 34


def small_params(participants: int = 2, **changes: Any) -> Params:
    """The demo parameters with few people."""
    params = build_profile("demo", project=REPOSITORY)[1]
    people = dict.fromkeys(params.simulate.participants, participants)
    simulate = params.simulate.model_copy(
        update={"participants": people, "workers": 1, "zooms_mm": 2.0, "seed": 7, "faults": True, **changes}
    )
    return params.model_copy(update={"simulate": simulate})


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template's arrays, made once."""
    folder = tmp_path_factory.mktemp("template")
    save_template(2.0, folder)
    return folder


@pytest.fixture(scope="session")
def renderer(template: Path) -> Renderer:
    """A renderer on the template."""
    return Renderer(template)


@pytest.fixture(scope="session")
def trees(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five cohorts, few people, with faults."""
    folder = tmp_path_factory.mktemp("simulated")
    for cohort in LAYOUTS:
        count = 7 if cohort == "OASIS" else 2
        simulate_cohort(
            cohort,
            small_params(count, maximum_sessions=1, dicom_fraction=0.4),
            folder / "raw" / cohort,
            folder / "truth" / cohort,
            template=template,
        )
    return folder


# ------------------------------------------------------------------------------------------------------------- anatomy
def volumes(renderer: Renderer, anatomy: Anatomy) -> dict[str, float]:
    return renderer.true_volumes(anatomy, renderer.displacement(anatomy))


def test_volumes_follow_the_prescription(renderer: Renderer) -> None:
    plain = volumes(renderer, Anatomy(5))
    assert 14 < plain["ventricles_ml"] < 22
    assert 3.5 < plain["hippocampus_left_ml"] < 6.0
    atrophied = volumes(
        renderer, Anatomy(5, ventricles=0.8, hippocampus_left=-0.3, hippocampus_right=-0.1, brain=-0.04)
    )
    change = {name: np.log(atrophied[name] / plain[name]) for name in plain if plain[name] > 0}
    assert change["ventricles_ml"] == pytest.approx(0.8, abs=0.12)
    assert change["hippocampus_left_ml"] == pytest.approx(-0.3, abs=0.1)
    assert change["hippocampus_right_ml"] == pytest.approx(-0.1, abs=0.1)
    assert change["brain_ml"] == pytest.approx(-0.04, abs=0.02)
    # Atrophy happens inside the skull.
    assert abs(change["icv_ml"]) < 0.03


@pytest.mark.parametrize("region", ["ventricles", "hippocampus_left", "hippocampus_right", "brain"])
def test_volumes_are_monotonic(renderer: Renderer, region: str) -> None:
    name = f"{region}_ml"
    results = [volumes(renderer, Anatomy(6, **{region: value}))[name] for value in (-0.06, 0.0, 0.02)]  # type: ignore[arg-type]
    assert results[0] < results[1] < results[2]


def test_extreme_maps_do_not_fold(renderer: Renderer) -> None:
    from medalign3d.simulate.anatomy import BOX_MM

    extreme = Anatomy(8, ventricles=3.0, hippocampus_left=-3.0, hippocampus_right=-3.0, brain=-3.0)
    flow = renderer.displacement(extreme)[0].flip(0).numpy()
    half = (BOX_MM[:, 1] - BOX_MM[:, 0]) / 2
    millimetres = flow * half[:, None, None, None]
    steps = [2 * h / (n - 1) for h, n in zip(half, flow.shape[1:], strict=True)]
    gradient = np.stack([np.stack(np.gradient(component, *steps)) for component in millimetres])
    jacobian = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3))
    assert jacobian.min() > 0


def test_rendering_is_deterministic_and_depends_on_the_scan(renderer: Renderer) -> None:
    anatomy = Anatomy(9, lesions=0.5)
    first = renderer.render(anatomy, Scan(1))
    again = renderer.render(anatomy, Scan(1))
    other = renderer.render(anatomy, Scan(2))
    assert np.array_equal(first.data, again.data)
    assert not np.array_equal(first.data, other.data)
    assert first.truth == other.truth
    assert first.truth["white_matter_hypointensities_ml"] > 0.5


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LSA", "ASL"])
def test_orientation_changes_storage_and_not_the_head(renderer: Renderer, codes: str) -> None:
    """The same head stored along other axes, brought back to RAS, is the same picture."""
    reference = renderer.render(Anatomy(3), Scan(1, noise=0.0, bias=0.0))
    stored = renderer.render(Anatomy(3), Scan(1, axis_codes=codes, noise=0.0, bias=0.0))
    assert "".join(nib.aff2axcodes(stored.affine)) == codes
    back = nib.as_closest_canonical(nib.Nifti1Image(stored.data, stored.affine))
    assert np.allclose(back.affine, reference.affine)
    # The displacement is read on a coarser grid whose corners differ: equal up to a fraction of the contrast.
    difference = np.abs(np.asarray(back.dataobj, dtype=float) - reference.data)
    assert difference.mean() < 5


def test_skull_surrounds_the_brain(renderer: Renderer) -> None:
    """From outside to inside, an axial line meets bright scalp, dark skull, bright tissue."""
    image = renderer.render(Anatomy(3), Scan(1, noise=0.0, bias=0.0))
    to_voxel = np.linalg.inv(image.affine)
    line = [to_voxel @ np.array([x, -20.0, 20.0, 1.0]) for x in np.arange(-86.0, -30.0, 0.5)]
    profile = np.array([image.data[tuple(np.clip(np.round(p[:3]).astype(int), 0, None))] for p in line])
    scalp = int(profile[:60].argmax())
    skull = scalp + int(profile[scalp : scalp + 30].argmin())
    assert profile[scalp] > 600
    assert profile[skull] < 300
    assert profile[skull:].max() > 550


@pytest.mark.slow
def test_one_millimetre_scans(renderer: Renderer) -> None:
    image = renderer.render(Anatomy(3), Scan(1, zooms_mm=(1.0, 1.0, 1.0)))
    assert min(image.data.shape) > 150


def test_template_is_left_right_symmetric_in_volume(template: Path) -> None:
    regions = np.load(template / "regions.npy", mmap_mode="r")
    left, right = regions[1].sum(), regions[2].sum()
    assert left == pytest.approx(right, rel=0.02)


# -------------------------------------------------------------------------------------------------------------- people
def test_image_and_tests_are_independent_given_the_class() -> None:
    rows = []
    for i in range(300):
        person = draw_person(
            "ADNI", i, "", "MCI", seed=1, female=0.5, age=(74, 7), age_limits=(55, 91), progressing=0.0
        )
        visit = add_visit(person, "bl", 0)
        _, shown = person.anatomy_at(0.0, "bl")
        rows.append((shown - visit.severity, visit.cognition - visit.severity, visit.severity))
    noise = np.array(rows)
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.15
    assert noise[:, 2].mean() == pytest.approx(0.5, abs=0.03)
    assert noise[:, 0].std() == pytest.approx(0.15, abs=0.03)
    assert noise[:, 1].std() == pytest.approx(0.25, abs=0.04)


def test_scores_agree_with_each_other() -> None:
    from medalign3d.simulate.records import draw_scores

    rng = np.random.default_rng(0)
    for cognition in rng.uniform(-0.3, 1.6, 500):
        scores = draw_scores(float(cognition), 15, rng)
        assert scores.cdr_boxes is not None
        assert scores.cdr_boxes[5] != 0.5  # personal care has no score of one half
        total = scores.cdr_sum or 0.0
        low, high = {0.0: (0, 0.5), 0.5: (0.5, 4.0), 1.0: (4.5, 9.0), 2.0: (7.0, 13.0)}[scores.cdr_global or 0.0]
        assert low <= total <= high
        assert 0 <= (scores.mmse or 0) <= 30


def test_small_cohorts_keep_every_class() -> None:
    classes = balanced_classes({"NC": 0.4, "MCI": 0.3, "AD": 0.3}, 10, 3)
    assert Counter(classes) == {"NC": 4, "MCI": 3, "AD": 3}


def test_adding_people_does_not_change_the_others() -> None:
    """A person's head and scans depend on the seed and the index only."""
    few = {job.key: job for job in plan_cohort("MIRIAD", small_params(6, faults=False)).jobs}
    alone = draw_person("MIRIAD", 0, "", "AD", seed=7, female=0.5, age=(70, 7), age_limits=(55, 86))
    assert any(job.anatomy.person_seed == alone.seed for job in few.values())


def test_numbers_in_tables() -> None:
    assert [text(0.5), text(2.0), text(None), text(None, "-4")] == ["0.5", "2", "", "-4"]
    assert seed_of("a", 1) == seed_of("a", 1) != seed_of("a", 2)


# --------------------------------------------------------------------------------------------------------------- trees
def test_unknown_cohort_is_refused() -> None:
    with pytest.raises(ParameterError, match="cannot be simulated"):
        plan_cohort("IXI", small_params())


def test_every_reason_is_planted() -> None:
    reasons = set()
    for cohort in LAYOUTS:
        for fault in plan_cohort(cohort, small_params(8)).faults:
            reasons.add(fault.reason)
            assert fault.stage == ("harmonize" if fault.reason == "CROSS_COHORT_DUPLICATE" else "ingest")
    assert len(reasons) == REASONS


def test_without_faults_only_young_people_of_oasis_are_remarked() -> None:
    for cohort in LAYOUTS:
        faults = plan_cohort(cohort, small_params(12, faults=False)).faults
        assert {fault.reason for fault in faults} <= ({"NO_DIAGNOSIS"} if cohort == "OASIS" else set())
        assert {fault.severity for fault in faults} <= {"warn"}


def test_keys_are_unique_and_marker_stands_at_the_root(trees: Path) -> None:
    for cohort in LAYOUTS:
        truth = pd.read_parquet(trees / "truth" / cohort / "truth.parquet")
        assert truth.native_image_key.is_unique
        assert (trees / "raw" / cohort / MARKER).read_text(encoding="utf-8").startswith("Simulated data")


def test_truth_says_simulated(trees: Path) -> None:
    import pyarrow.parquet as pq

    metadata = pq.read_schema(trees / "truth" / "ADNI" / "truth.parquet").metadata
    assert metadata[b"simulated"] == b"true"


def test_nifti_and_analyze_headers_say_simulated(trees: Path) -> None:
    image = nib.load(next((trees / "raw" / "MIRIAD").glob("miriad_1*_AD_*_MR_1.nii")))
    assert b"simulated" in bytes(image.header["descrip"])
    header = next((trees / "raw" / "OASIS").rglob("*_sbj_111.hdr"))
    average = nib.load(header)
    assert average.shape[-1] == 1
    assert len(average.shape) == 4
    assert b"simulated" in bytes(average.header["db_name"])


def test_oasis1_is_right_under_its_fixed_convention(renderer: Renderer) -> None:
    """Rows [0 0 -1 80], [1 0 0 -128], [0 1 0 -128] for 1 mm and 256 x 256 x 160 voxels."""
    params = small_params(8, faults=False)
    job = next(job for job in plan_cohort("OASIS", params).jobs if job.format == "analyze")
    image = renderer.render(job.anatomy, job.scan)
    expected = np.array([[0, 0, -2, 80], [2, 0, 0, -128], [0, 2, 0, -128], [0, 0, 0, 1]])
    assert image.data.shape == (128, 128, 80)
    assert np.allclose(image.affine, expected)


def test_dicom_series_holds_the_same_image(renderer: Renderer) -> None:
    import io

    import pydicom

    image = renderer.render(Anatomy(4), Scan(3, axis_codes="PIR"))
    slices = [pydicom.dcmread(io.BytesIO(content)) for content in dicom_slices(image.data, image.affine, {})]
    stack = np.stack([item.pixel_array.T for item in slices], axis=-1)
    assert np.array_equal(stack, image.data)
    first = slices[0]
    directions = np.array(first.ImageOrientationPatient, dtype=float)
    affine = np.eye(4)
    affine[:3, 0] = directions[:3] * float(first.PixelSpacing[1])
    affine[:3, 1] = directions[3:] * float(first.PixelSpacing[0])
    affine[:3, 2] = np.array(slices[1].ImagePositionPatient, float) - np.array(first.ImagePositionPatient, float)
    affine[:3, 3] = np.array(first.ImagePositionPatient, float)
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ affine, image.affine, atol=1e-3)
    assert "simulated" in first.ImageComments


def test_cross_cohort_twins_have_the_same_voxels(trees: Path) -> None:
    import zipfile

    fault = next(
        fault
        for fault in json.loads((trees / "truth" / "NACC" / "faults.json").read_text(encoding="utf-8"))
        if fault["reason"] == "CROSS_COHORT_DUPLICATE"
    )
    locator, name = fault["key"]["native_image_key"].split("/")
    with zipfile.ZipFile(trees / "raw" / "NACC" / "mri" / f"{locator}ni.zip") as archive:
        member = next(entry for entry in archive.namelist() if entry.endswith(name))
        twin = nib.Nifti1Image.from_bytes(archive.read(member))
    truth = pd.read_parquet(trees / "truth" / "ADNI" / "truth.parquet").set_index("fault")
    uid = truth.loc["CROSS_COHORT_DUPLICATE", "native_image_key"]
    original = nib.load(next((trees / "raw" / "ADNI").rglob(f"*_{uid}.nii")))
    assert np.array_equal(np.asarray(twin.dataobj), np.asarray(original.dataobj))


def test_linked_people_agree_in_both_releases() -> None:
    plan = plan_cohort("OASIS", small_params(40, faults=False))
    truth = pd.DataFrame([{"key": job.key, "person_seed": job.anatomy.person_seed, **job.truth} for job in plan.jobs])
    releases = truth.groupby("true_person").release.nunique()
    assert (releases > 1).sum() == 6
    assert truth.groupby("true_person").person_seed.nunique().max() == 1


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(trees: Path, template: Path, tmp_path: Path) -> None:
    for cohort in ("NACC", "AIBL"):
        params = small_params(2, maximum_sessions=1, dicom_fraction=0.4)
        simulate_cohort(cohort, params, tmp_path / "raw", tmp_path / "truth", template=template)
        assert digest(tmp_path / "raw") == digest(trees / "raw" / cohort)
        assert digest(tmp_path / "truth") == digest(trees / "truth" / cohort)
        shutil.rmtree(tmp_path / "raw")


def test_workbooks_are_reproducible(tmp_path: Path) -> None:
    for name in ("a.xlsx", "b.xlsx"):
        write_workbook(tmp_path / name, ["ID", "CDR"], [{"ID": "OAS2_0001", "CDR": "0.5"}])
    assert (tmp_path / "a.xlsx").read_bytes() == (tmp_path / "b.xlsx").read_bytes()


def test_reading_the_trees_returns_the_answer_key(trees: Path) -> None:
    from medalign3d.cohorts import ingest_cohort

    params = small_params(2)
    for cohort in LAYOUTS:
        result = ingest_cohort(cohort, trees / "raw" / cohort, params, workers=1)
        found = Counter(
            (str(row.reason), str(row.level), json.dumps(json.loads(row.key_json), sort_keys=True))
            for row in result.quarantine.itertuples()
        )
        key = json.loads((trees / "truth" / cohort / "faults.json").read_text(encoding="utf-8"))
        expected = Counter(
            (fault["reason"], fault["level"], json.dumps(fault["key"], sort_keys=True))
            for fault in key
            if fault["stage"] == "ingest"
        )
        assert found == expected, cohort
        truth = pd.read_parquet(trees / "truth" / cohort / "truth.parquet").set_index("native_image_key")
        images = result.images.set_index("native_image_key")
        assert set(images.index) <= set(truth.index)
        assert (images.sex.astype(str) == truth.sex.reindex(images.index)).all()


@pytest.mark.parametrize("seed", [8, 9])
def test_people_whose_diagnosis_goes_back_can_be_written(tmp_path: Path, seed: int) -> None:
    """Some seeds draw a reversal (MCI to normal), which the ADNI-2 form codes as a change of its own."""
    plan = plan_cohort("ADNI", small_params(90, seed=seed))
    names = ("ventricles_ml", "hippocampus_left_ml", "hippocampus_right_ml", "brain_ml", "icv_ml")
    measured = defaultdict(lambda: dict.fromkeys(names, 1.0))
    plan.write_tables(tmp_path, measured)
    table = pd.read_csv(next(tmp_path.rglob("DXSUM*.csv")), dtype=str)
    assert set(table["DXCHANGE"]) & {"7", "8", "9"}
