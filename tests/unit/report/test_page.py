import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from base64 import b64decode
from html.parser import HTMLParser

import pyarrow as pa
import pytest
import torch

from afterfit.predict import scores
from afterfit.report import pictures
from afterfit.report.page import PICTURES, render
from afterfit.seeds import Seed, normals


def run() -> dict:
    """A small run whose tables come from where the real ones do."""
    probabilities = {
        (predictor, dataset): normals(Seed(1, (predictor, dataset)), 60, 4).mul(scale).softmax(dim=1)
        for predictor, scale in (("map", 4.0), ("posterior", 2.0))
        for dataset in ("test", "other")
    }
    labels = torch.arange(60) % 4
    parts = {"scores": [], "reliability": [], "confidence": []}
    for predictor in ("map", "posterior"):
        inside, outside = probabilities[predictor, "test"], probabilities[predictor, "other"]
        parts["scores"] += [
            scores.scores_as_table(predictor, "test", scores.score_table(inside, labels)),
            scores.scores_as_table(predictor, "other", scores.ood_table(inside, outside)),
        ]
        parts["reliability"].append(scores.reliability_table(inside, labels, predictor))
        parts["confidence"] += [
            scores.confidence_table(inside, predictor, "test"),
            scores.confidence_table(outside, predictor, "other"),
        ]
    return {
        "title": "ELLA <on> digits",
        "facts": {"num_weights": 123, "prior_precision": 0.5, "networks": ["a & b"]},
        **{name: pa.concat_tables(tables) for name, tables in parts.items()},
        "spectrum": pa.table({"index": [1, 2, 3], "eigenvalue": [10.0, 1.0, -1e-9]}),
        "bound": pa.table({"step": [10, 20, 30], "elbo": [-2.0, -0.9, -0.5]}),
        "stages": pa.table(
            {"stage": ["gram"], "seconds": [1.5], "peak_mb": [100.0], "state": ["done"]},
        ),
    }


class Tags(HTMLParser):
    """Checks that tags close in order, and keeps what they hold."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in ("meta", "img"):
            self.sources += [value for name, value in attrs if name == "src"]
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


def test_the_page_shows_the_tables_and_all_pictures():
    record = run()
    tags = parsed(render(record))
    assert "ELLA <on> digits" in tags.texts
    assert "a & b" in tags.texts
    value = record["scores"].to_pylist()[1]
    assert value["metric"] == "nll"
    assert f"{value['value']:.4f}" in tags.texts
    assert len(tags.sources) == len(PICTURES)


def test_the_page_stands_alone_and_its_pictures_are_svg():
    page = render(run())
    for source in parsed(page).sources:
        prefix, _, body = source.partition(",")
        assert prefix == "data:image/svg+xml;base64"
        assert ET.fromstring(b64decode(body)).tag.endswith("svg")
    outside = re.sub(r'src="data:[^"]*"', "", page)
    assert not re.search(r"https?://|<script|<link|url\(", outside)


def test_the_same_run_gives_the_same_bytes():
    assert render(run()) == render(run())


def test_a_regression_leaves_the_pictures_of_probabilities_out():
    record = run()
    shortened = {name: record[name] for name in ("title", "facts", "scores", "stages")}
    shortened["reliability"] = record["reliability"].slice(0, 0)
    page = render(shortened)
    assert "Reliability" not in page
    assert "Spectrum" not in page
    assert len(parsed(page).sources) == 1


@pytest.mark.parametrize("name", list(PICTURES))
def test_pictures_leave_the_settings_of_matplotlib_alone(name):
    import matplotlib as mpl

    before = mpl.rcParams.copy()
    PICTURES[name].draw(run()[name])
    assert mpl.rcParams.copy() == before


def test_pictures_open_no_window():
    code = (
        "import sys, pyarrow as pa\n"
        "from afterfit.report.pictures import spectrum\n"
        "spectrum(pa.table({'index': [1], 'eigenvalue': [1.0]}))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_spectrum_without_positive_eigenvalues_is_still_a_picture():
    empty = pa.table({"index": [1], "eigenvalue": [0.0]})
    assert ET.fromstring(pictures.spectrum(empty)).tag.endswith("svg")


def test_importing_the_report_imports_neither_matplotlib_nor_jinja():
    code = (
        "import sys, afterfit.report.page, afterfit.report.tables\n"
        "sys.exit(bool({'matplotlib', 'jinja2', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
