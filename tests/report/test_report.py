"""The whole report: files, labels, the page's independence from everything outside, figures that are not empty."""

from __future__ import annotations

import io
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest

from medalign3d.report import build_report, figures, print_summary, tables
from medalign3d.report.provenance import collect
from medalign3d.report.quality import cohort_quality


@pytest.fixture(scope="module")
def report(demo_project, demo_params):
    return build_report(demo_params, demo_project)


def png_size(path) -> tuple[int, int]:
    return struct.unpack(">II", path.read_bytes()[16:24])  # type: ignore[return-value]


@pytest.mark.slow
def test_every_promised_file_is_there(report, demo_project):
    folder = demo_project / "data/report"
    for number in (1, 2, 3):
        for suffix in ("csv", "md", "tex"):
            assert (folder / f"table{number}.{suffix}").stat().st_size > 200
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"accuracy", "confusion", "roc", "reliability", "cases", "training", "image_gain"} <= names
    assert {f"normalization_{c}" for c in ("ADNI", "NACC", "OASIS", "AIBL", "MIRIAD")} <= names
    assert names == {path.stem for path in (folder / "figures").glob("*.svg")}
    for path in (folder / "figures").glob("*.png"):
        width, height = png_size(path)
        assert width > 600
        assert height > 300
    assert not list(folder.parent.glob(".writing-*"))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        for name in ("src", "href"):
            if name in values:
                self.sources.append(values[name])
        assert tag not in ("script", "link", "iframe")
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.slow
def test_the_page_stands_alone_and_is_labelled(report):
    html = report["page"].read_text(encoding="utf-8")
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert "url(" not in html
    text = " ".join(page.text)
    assert "SIMULATED" in text
    assert "not measured here" in text
    assert "Not a medical device" in text
    assert "NO_DIAGNOSIS (2)" in text
    assert "REGISTRATION_POOR (1)" in text
    for table in report["tables"].values():
        assert table.title in text


@pytest.mark.slow
def test_no_person_is_named_in_the_report(report, demo_project):
    for path in report["paths"]:
        if path.suffix in (".csv", ".md", ".tex", ".html"):
            content = (demo_project / path).read_text(encoding="utf-8")
            content = re.sub(r"data:image/png;base64,[^\"]+", "", content)
            assert not re.search(r"sub-[A-Z]+\d+", content), path


@pytest.mark.slow
def test_the_summary_prints_table_2_and_its_place(report):
    stream = io.StringIO()
    print_summary(report, stream)
    text = stream.getvalue()
    assert "data/report/table1" in text
    assert "SIM-ADNI-3x" in text
    assert "SIMULATED" in text


@pytest.mark.slow
def test_a_real_profile_makes_a_page_without_the_simulated_label(real_project):
    root, params = real_project
    report = build_report(params, root)
    html = report["page"].read_text(encoding="utf-8")
    assert "SIMULATED" not in html
    assert "SIM-" not in html
    assert "data-use agreement" in html
    assert report["metrics"]["simulated"] is False
    assert "OASIS-1 60+" in report["metrics"]


def test_cases_show_right_and_wrong_answers_of_different_people(demo_project, demo_params):
    predictions = tables.read_predictions(demo_params, demo_project)
    shown = figures.choose_cases(predictions, demo_params, 6)
    assert len(shown) == 6
    assert shown["person_id"].is_unique
    assert (shown["split"] == "zeroshot").all()
    right = shown["predicted"] == shown["truth"]
    assert right.any()
    assert not right.all()
    again = figures.choose_cases(predictions.sample(frac=1, random_state=1), demo_params, 6)
    assert again["image_id"].tolist() == shown["image_id"].tolist()


def test_roc_curve_equals_the_rank_statistic():
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.4
    score = np.round(rng.random(60) + 0.3 * positive, 1)  # with ties
    _, _, area = figures.roc_curve(positive, score)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert area == pytest.approx(np.mean(pairs))


def test_slices_put_the_top_of_the_head_up():
    volume = np.zeros((4, 5, 6), dtype=np.uint8)
    volume[:, :, 5] = 9  # the top
    sagittal, coronal, axial = figures.orthogonal_slices(volume, (1, 2, 3))
    assert sagittal.shape == (6, 5)
    assert coronal.shape == (6, 4)
    assert axial.shape == (5, 4)
    assert (sagittal[0] == 9).all()
    assert (coronal[0] == 9).all()
    front = np.zeros((4, 5, 6), dtype=np.uint8)
    front[:, 4, :] = 7
    assert (figures.orthogonal_slices(front, (1, 2, 3))[2][0] == 7).all()
    assert (figures.orthogonal_slices(front, (1, 2, 3))[0][:, 0] == 7).all()


def test_quality_counts(demo_project, demo_params):
    quality = cohort_quality("ADNI", collect(demo_params, demo_project), demo_project)
    assert quality.label == "SIM-ADNI"
    assert quality.images_read == 36
    assert quality.found == 38
    assert quality.ingest_reasons == {"NO_DIAGNOSIS": 2}
    assert quality.other_reasons == {"CSV_BAD_LINE": 1}
    assert quality.volumes_accepted == 35
    assert quality.volume_reasons == {"REGISTRATION_POOR": 1}
