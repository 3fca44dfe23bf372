"""One HTML page of a run that needs nothing else: no script, no font, no file beside it."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final, NamedTuple

import pyarrow as pa

from afterfit.report import pictures
from afterfit.report.metrics import lines, predictor_title, predictors
from afterfit.report.tables import number


class Picture(NamedTuple):
    """How one table of a run is shown."""

    draw: Callable[[pa.Table], str]
    title: str
    caption: str


PICTURES: Final[Mapping[str, Picture]] = {
    "scores": Picture(pictures.bars, "Scores", "The same numbers as in the table."),
    "reliability": Picture(
        pictures.reliability,
        "Reliability",
        "Of predictions made with a confidence, how many are right: below the dotted line, predictions are "
        "too sure. The area of a point and the lower panel say how many predictions there are.",
    ),
    "confidence": Picture(
        pictures.confidence,
        "Confidence in and out of distribution",
        "How sure the predictions are on data like those trained on, and on others. The less the two "
        "overlap, the better others are detected.",
    ),
    "bound": Picture(
        pictures.bound,
        "Evidence lower bound",
        "What the fit raises, after each epoch: the mean log density of the training data, less the divergence from "
        "the prior times the temperature. Where it still rises at the end, more epochs would help.",
    ),
    "spectrum": Picture(
        pictures.spectrum,
        "Spectrum",
        "Eigenvalues of the matrix that the posterior was built from, largest first.",
    ),
}


def render(run: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        run: "title", a string, and "facts", a mapping of plain values; and as tables
            "scores" (predictor, dataset, metric, value),
            "reliability" (predictor, bin_low, bin_high, confidence, accuracy, count),
            "confidence" (predictor, dataset, bin_low, bin_high, count),
            "bound" (step, elbo), "spectrum" (index, eigenvalue), "stages" (stage, seconds, peak_mb, state).
            A table that is absent or empty leaves its section out.
    """
    from jinja2 import Environment, StrictUndefined

    shown = {name: run[name] for name in (*PICTURES, "stages") if name in run and len(run[name])}
    scores = shown.get("scores")
    names = predictors(scores) if scores is not None else []
    source = files("afterfit.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(source)
    return template.render(
        title=run["title"],
        facts=[(name.replace("_", " "), _plain(value)) for name, value in run.get("facts", {}).items()],
        predictors=[(name, predictor_title(name)) for name in names],
        lines=lines(scores) if scores is not None else [],
        pictures=[
            (picture.title, picture.caption, _embedded(picture.draw(shown[name])))
            for name, picture in PICTURES.items()
            if name in shown
        ],
        stages=shown["stages"].to_pylist() if "stages" in shown else [],
        number=number,
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(part)}" for name, part in value.items())
    return str(value)


def _embedded(svg: str) -> str:
    """As a data URI: identifiers of several pictures in one document would clash."""
    return f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"
