from io import StringIO

import pyarrow as pa
import pytest
from rich.console import Console
from rich.table import Table

from afterfit.predict import scores
from afterfit.report.metrics import METRICS, Line, lines, metric
from afterfit.report.tables import scores_table, stages_table

SCORES = pa.table(
    {
        "predictor": ["map", "map", "map", "posterior", "posterior", "posterior", "posterior"],
        "dataset": ["test", "test", "ood", "test", "test", "ood", "ood"],
        "metric": ["accuracy", "nll", "max_probability"] * 2 + ["ood_auroc"],
        "value": [0.9, 0.5, 0.8, 0.9, 0.25, 0.6, 0.75],
    }
)


def printed(table: Table) -> list[list[str]]:
    """The cells of every printed row, marks of boldness removed."""
    console = Console(width=120, record=True, file=StringIO())
    console.print(table)
    rows = [line.strip("│┃ ") for line in console.export_text().splitlines() if line[:1] in "│┃"]
    return [[cell.strip() for cell in row.replace("┃", "│").split("│")] for row in rows]


def test_scores_stand_side_by_side():
    assert printed(scores_table(SCORES)) == [
        ["data", "score", "MAP", "posterior"],
        ["test", "accuracy", "0.9000", "0.9000"],
        ["NLL (nats)", "0.5000", "0.2500"],
        ["ood", "mean max probability", "0.8000", "0.6000"],
        ["OOD AUROC", "-", "0.7500"],
    ]


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("nll", {"map": 0.5, "posterior": 0.25}, "posterior"),
        ("accuracy", {"map": 0.92, "posterior": 0.91}, "map"),
        ("accuracy", {"map": 0.91000001, "posterior": 0.91}, None),
        ("max_probability", {"map": 0.5, "posterior": 0.25}, None),
        ("nll", {"posterior": 0.25}, None),
    ],
)
def test_the_better_predictor_is_found_where_one_is_better(name, values, best):
    assert Line("test", metric(name), values).best == best


def test_every_score_that_is_computed_has_a_title():
    import torch

    even = torch.full((2, 2), 0.5)
    computed = scores.score_table(even, torch.tensor([0, 1])) | scores.ood_table(even, even)
    computed |= scores.disagreement_table(torch.zeros(1), torch.ones(1))
    computed |= scores.regression_table(torch.zeros(1), torch.ones(1), torch.zeros(1))
    assert set(computed) == set(METRICS)


def test_an_unknown_score_is_shown_under_its_own_name():
    table = pa.table({"predictor": ["map"], "dataset": ["test"], "metric": ["my_score"], "value": [1.0]})
    assert lines(table)[0].metric.title == "my score"


def test_stages_show_what_was_measured_and_what_was_skipped():
    stages = pa.table(
        {
            "stage": ["gram", "posterior"],
            "seconds": pa.array([1234.56, None], pa.float64()),
            "peak_mb": pa.array([2048.4, None], pa.float64()),
            "state": ["done", "skipped"],
        }
    )
    assert printed(stages_table(stages)) == [
        ["stage", "time (s)", "peak memory (MB)", "state"],
        ["gram", "1,234.6", "2,048", "done"],
        ["posterior", "-", "-", "skipped"],
        ["total", "1,234.6"],
    ]
