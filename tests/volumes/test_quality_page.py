from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from volume_heads import make_head, posed

from medalign3d.params import Normalize
from medalign3d.volumes import quality_page
from medalign3d.volumes.normalize import INDEX_COLUMNS, normalize_volume
from medalign3d.volumes.quality_page import MASK_COLOUR, METRIC_TITLES, oddness, preview, write_page, write_picture
from medalign3d.volumes.template import at_zoom


def index_of(count: int = 12, odd: int = 5) -> pd.DataFrame:
    """An index of accepted volumes of which one lies apart, and two quarantined ones."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        row = dict.fromkeys(METRIC_TITLES, 1.0) | {
            "local_correlation": 0.7 + 0.02 * random.normal(),
            "brain_ml": 1400.0 + 60 * random.normal(),
        }
        if number == odd:
            row["local_correlation"] = 0.35
        rows.append({"image_id": f"img{number:02d}", "verdict": "accepted", "method": "gauss-newton", **row})
    nothing = {name: float("nan") for name in METRIC_TITLES}
    rows.append({"image_id": "cut", "verdict": "quarantined", "reason": "IMAGE_TRUNCATED", "detail": "ends", **nothing})
    rows.append(
        {"image_id": "apple", "verdict": "quarantined", "reason": "QC_FAIL", "detail": "no </script> brain"}
        | dict.fromkeys(METRIC_TITLES, 1.0)
        | {"local_correlation": 0.05}
    )
    table = pd.DataFrame(rows).reindex(columns=list(INDEX_COLUMNS))
    for name in ("image_id", "path", "verdict", "reason", "detail", "method"):
        table[name] = table[name].fillna("").astype(str)
    return table


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_worst_come_first(tmp_path: Path) -> None:
    page = write_page(index_of(), tmp_path, title="SIM-ADNI", simulated=True).read_text(encoding="utf-8")
    rows = data_of(page)["rows"]
    assert [row["image_id"] for row in rows[:3]] == ["apple", "cut", "img05"]
    assert rows[0]["detail"] == "no </script> brain"
    assert len(rows) == 14
    assert "14 volumes: 12 accepted, 2 quarantined (IMAGE_TRUNCATED 1, QC_FAIL 1)" in page
    assert "SIMULATED" in page
    assert "SIMULATED" not in write_page(index_of(), tmp_path, title="ADNI", simulated=False).read_text()
    assert "http" not in page.replace("http-equiv", ""), "the page loads nothing from elsewhere"


def test_page_is_reproducible(tmp_path: Path) -> None:
    first = write_page(index_of(), tmp_path, title="X", simulated=False).read_bytes()
    assert write_page(index_of(), tmp_path, title="X", simulated=False).read_bytes() == first


def test_oddness_needs_a_direction() -> None:
    index = index_of(odd=-1)
    index.loc[0, "local_correlation"] = 0.99  # better agreement than the others is not odd
    index.loc[1, "brain_ml"] = 700.0  # smaller and larger brains both are
    index.loc[2, "brain_ml"] = 2300.0
    scores = oddness(index)
    assert scores[0] < 3 < min(scores[1], scores[2])
    assert scores[index["image_id"] == "cut"].isna().all()


def test_preview_outlines_the_mask() -> None:
    template = at_zoom(2.0)
    mask = template.distance < -6.0
    picture = preview(template.t1, mask, template)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    red = (picture == MASK_COLOUR).all(axis=2)
    assert 200 < red.sum() < 3000
    without = preview(template.t1, None, template)
    assert not (without == MASK_COLOUR).all(axis=2).any()


def test_left_of_the_person_is_left_in_the_picture() -> None:
    template = at_zoom(2.0)
    left = np.broadcast_to(template.grid.coordinates()[0] < 0, template.grid.shape)
    picture = preview(np.where(left, template.t1, 0.0).astype(np.float32), None, template)
    grey = (picture.max(axis=2) == picture.min(axis=2)) * picture[:, :, 0].astype(int)
    axial = grey[:, : round(template.grid.shape[0] * 2.0 / quality_page.PIXEL_MM)]
    half = axial.shape[1] // 2
    assert axial[:, : half - 3].sum() > 20 * axial[:, half + 3 :].sum()


@pytest.mark.parametrize("brain", [True, False])
def test_every_judged_volume_has_a_picture(brain: bool, params: Normalize, tmp_path: Path) -> None:
    head = make_head(posed((6, 0, 4), (3, 2, 1)), noise=10).volume
    if not brain:
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in head.data.shape), indexing="ij"))
        noise = np.random.default_rng(0).normal(0, 1, head.data.shape)
        head.data[:] = 100.0 * (np.sqrt((grid**2).sum(axis=0)) < 0.7) + noise
    result = normalize_volume(head, params)
    assert (result.verdict == "accepted") == brain
    assert result.preview is not None
    write_picture(tmp_path, "img", result.preview)
    with Image.open(quality_page.picture_path(tmp_path, "img")) as picture:
        assert picture.size == result.preview.shape[1::-1]


def test_only_pictures_of_the_store_are_published(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    for name in ("a", "b"):
        write_picture(work, name, np.zeros((4, 4, 3), np.uint8))
    write_picture(out, "old", np.zeros((4, 4, 3), np.uint8))
    quality_page.publish_pictures(work, out, ["a", "never drawn"])
    for folder in (work, out):
        assert [path.name for path in (folder / "pictures").iterdir()] == ["a.jpg"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_page_in_a_browser(tmp_path: Path) -> None:
    page = write_page(index_of(), tmp_path / "store", title="SIM-ADNI", simulated=True)
    # The last heading that is clicked sorts; the click is made by a second copy of the page.
    clicked = page.with_name("clicked.html")
    click = '<script>document.querySelector("th[data-name=local_correlation] button").click();</script></body>'
    clicked.write_text(page.read_text(encoding="utf-8").replace("</body>", click), encoding="utf-8")
    for path, first in ((page, "apple"), (clicked, "apple")):
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        shown = re.findall(r'<tr class="(?:accepted|quarantined)"><td[^>]*>.*?</td><td class="word">([^<]+)</td>', dom)
        assert len(shown) == 14
        assert shown[0] == first
        assert "14 of 14 shown" in dom
    assert shown[1] == "img05"
    assert shown[-1] == "cut", "what was not measured stands last"
    assert 'aria-sort="ascending"' in dom
