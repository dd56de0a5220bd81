"""One self-contained page: every table and figure, quality control, limits, labels and provenance.

Nothing is loaded from outside: images are data URIs, and the page's own policy forbids everything else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medalign3d.files import write_text
from medalign3d.params import Params
from medalign3d.report.figures import Picture
from medalign3d.report.provenance import SIMULATED_WORDS, Provenance
from medalign3d.report.quality import CohortQuality
from medalign3d.report.table import Table


def data_uri(png: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode("ascii")


def _version() -> str:
    try:
        return version("medalign3d")
    except PackageNotFoundError:
        return "not installed"


def limits(params: Params) -> list[str]:
    """What the reader must know before using a number of this page."""
    shared = [
        "Not a medical device, and not validated for any clinical use.",
        f"{params.training.runs} runs; a standard deviation over so few runs is itself uncertain. Intervals over "
        "persons do not contain it.",
        "Many comparisons stand on this page and none is corrected for their number.",
    ]
    if params.simulated:
        return [
            "All people, records and scans are simulated. Accuracies depend on how the simulator was set, not on "
            "medicine; the oracle rows say what was attainable in it.",
            "The backbones are tiny models made in minutes. LoRA is not expected to beat the frozen model at this "
            "size.",
            *shared,
        ]
    special = []
    if params.split.mode == "cross_validation":
        special.append(
            "Cross-validation on one small set: choices of the recipe may have been made on the same people, so the "
            "figures are slightly optimistic. Age alone separates young adults from people with dementia: read the "
            "older population."
        )
    if all(benchmark.question in ("sex", "age_group") for benchmark in params.split.benchmarks.values()):
        special.append(
            "Sex and age group stand in for a diagnosis: this profile shows that the pipeline runs on real scans."
        )
    special.append(
        "Cohorts can share people that no table links: ADNI and NACC centres recruit for both, the centre of OASIS "
        "contributes to NACC, and OASIS-3 comes from the centre of OASIS-1 and -2. Equal voxels are found, other scans "
        "of such people are not."
    )
    return [*special, *shared]


def _lead(params: Params, provenance: Provenance) -> str:
    names = ", ".join(provenance.benchmark_label(cohort) for cohort in params.cohorts)
    people = "simulated" if provenance.simulated else "real"
    return (
        f"Profile {params.profile}: {people} people of {names}; language models "
        f"{', '.join(params.model.language.models[name].title for name in params.language_models)}. "
        "A volume and a health record go in, a question is asked, and the language model's most likely answer is "
        "counted."
    )


def write_page(
    path: Path,
    params: Params,
    provenance: Provenance,
    tables: Mapping[str, Table],
    pictures: Sequence[Picture],
    quality: Sequence[CohortQuality],
) -> Path:
    """Write the page to ``path``, atomically."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = {
        picture.name: {"name": picture.name, "caption": picture.caption, "uri": data_uri(picture.png)}
        for picture in pictures
    }
    origins = {
        "profile": params.profile,
        "people": "simulated" if provenance.simulated else "real",
        "split": f"{provenance.mode}, SHA-256 {provenance.split_sha256}",
        "code": f"medalign3d {_version()}, commit {provenance.commit}",
        "parameters": f"SHA-256 {provenance.params_sha256}",
        "metric definitions": provenance.metrics_version,
        "normalization": f"{'x'.join(map(str, params.normalize.shape))} voxels of {params.normalize.zooms_mm} mm",
        "tracked runs": f"{params.tracking.uri}, experiment {params.tracking.experiment}",
    }
    html = environment.get_template("page.html").render(
        title=provenance.title("MedAlign-3D: results"),
        lead=_lead(params, provenance),
        provenance=provenance,
        simulated_words=SIMULATED_WORDS,
        tables=dict(tables),
        pictures=shown,
        quality=list(quality),
        limits=limits(params),
        origins=origins,
    )
    write_text(path, html)
    return path
