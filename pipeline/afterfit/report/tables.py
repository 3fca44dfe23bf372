"""What a run prints at its end: scores of MAP against posterior, and what each stage took."""

import pyarrow as pa
from rich.table import Table

from afterfit.report.metrics import lines, predictor_title, predictors


def scores_table(scores: pa.Table) -> Table:
    """Scores side by side, the better one bold.

    Args:
        scores: columns predictor, dataset, metric, value.
    """
    names = predictors(scores)
    table = Table(title="Scores")
    table.add_column("data")
    table.add_column("score")
    for name in names:
        table.add_column(predictor_title(name), justify="right")
    previous = None
    for line in lines(scores):
        cells = [f"[bold]{line.show(name)}[/]" if name == line.best else line.show(name) for name in names]
        if previous not in (None, line.dataset):
            table.add_section()
        table.add_row("" if line.dataset == previous else line.dataset, line.metric.title, *cells)
        previous = line.dataset
    return table


def stages_table(stages: pa.Table) -> Table:
    """Seconds, peak memory and state of each stage, and the seconds of all.

    Args:
        stages: columns stage, seconds, peak_mb, state; null where a stage was skipped.
    """
    table = Table(title="Stages")
    table.add_column("stage")
    table.add_column("time (s)", justify="right")
    table.add_column("peak memory (MB)", justify="right")
    table.add_column("state")
    rows = stages.to_pylist()
    for row in rows:
        style = "dim" if row["state"] == "skipped" else None
        table.add_row(row["stage"], number(row["seconds"], 1), number(row["peak_mb"], 0), row["state"], style=style)
    table.add_section()
    table.add_row("total", number(sum(row["seconds"] or 0.0 for row in rows), 1), "", "")
    return table


def number(value: float | None, digits: int) -> str:
    """With thousands apart, or a dash for what was not measured."""
    return "-" if value is None else f"{value:,.{digits}f}"
