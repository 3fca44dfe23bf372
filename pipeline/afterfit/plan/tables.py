"""Tables that the command line prints about plans, stores and methods."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from math import inf
from typing import Any, NamedTuple

import pyarrow as pa
from rich.table import Table

from afterfit.methods import METHODS
from afterfit.plan.bench import Bench
from afterfit.plan.progress import duration
from afterfit.plan.request import Telling
from afterfit.plan.resolve import REFERENCE_FLOPS
from afterfit.plan.run import Outcome, Prepared
from afterfit.plan.sizes import Sizes
from afterfit.report.tables import scores_table, stages_table
from afterfit.resources import GB

STYLES = {"done": "green", "partial": "yellow", "missing": "dim"}


def outcome_tables(outcome: Outcome) -> Iterator[Table]:
    """Scores, if there are any, then the stages."""
    if outcome.scores is not None:
        yield scores_table(outcome.scores)
    yield stages_table(outcome.stages)


def plan_table(prepared: Prepared) -> Table:
    """Stages with key, state and cost."""
    table = Table(title=f"Plan of {prepared.config.name}", caption=_total(prepared), caption_justify="left")
    table.add_column("stage")
    table.add_column("key")
    table.add_column("state")
    for name in ("units", "FLOPs", "memory", "stored", "time"):
        table.add_column(name, justify="right")
    for stage in prepared.plan:
        state, cost = prepared.statuses[stage.name].value, prepared.costs[stage.name]
        shown = (
            ["-"] * 5
            if cost is None
            else [
                str(cost.num_units),
                amount(cost.flops, "FLOP"),
                amount(cost.memory_gb * GB, "B"),
                amount(cost.stored_bytes, "B"),
                duration(cost.seconds),
            ]
        )
        table.add_row(stage.name, stage.key, f"[{STYLES[state]}]{state}[/]", *shown)
    return table


def _total(prepared: Prepared) -> str:
    """What is under the plan: the sum of the costs, how rows are made and multiplied, where memory ran out before."""
    coverage = prepared.request.coverage
    lines = [_remaining(prepared), coverage.sentence() if coverage else "", _way(prepared), _told(prepared)]
    lines += [shortage.sentence() for shortage in prepared.shortages]
    return "\n".join(line for line in lines if line)


def _way(prepared: Prepared) -> str:
    """Which way products with the features or probes take, and what both would; nothing of stored draws."""
    if prepared.request.method.posterior == "draws":  # their solvers have products of their own
        return ""
    drawn = (getattr(stage.recipe, "num_samples", None) for stage in prepared.plan)
    sizes = replace(Sizes.of(prepared.plan, prepared.request), num_samples=next(filter(None, drawn), None))
    num_columns = sizes.num_probes or sizes.num_features
    rows, columns = sizes.ggn_ways(num_columns) if sizes.num_probes else sizes.ways(num_columns)
    if not num_columns or rows == columns:
        return ""
    backward, forward = f"{sizes.num_cotangents} backward passes", f"a pass for each of {num_columns}"
    ways = [(rows, f"by rows ({backward})"), (columns, f"by columns ({forward})")]
    (cheap, taken), (dear, other) = sorted(ways)
    told = f"Products with {num_columns} columns go {taken}: {amount(2 * cheap, 'FLOP')} an example"
    return f"{told}; {other} would take {amount(2 * dear, 'FLOP')}." if dear < inf else f"{told}."


def _told(prepared: Prepared) -> str:
    """What the method says of its own choices."""
    request = prepared.request
    if not isinstance(request.method, Telling):
        return ""
    return request.method.sentence(request.likelihood, Bench(request.bench("", {})))


def _remaining(prepared: Prepared) -> str:
    remaining = list(prepared.remaining.values())
    if not remaining:
        return "Nothing is to be done."
    known = [cost for cost in remaining if cost is not None]
    unknown = f", {len(remaining) - len(known)} of unknown cost" if len(known) < len(remaining) else ""
    return (
        f"{len(remaining)} of {len(prepared.plan)} stages to do{unknown}: "
        f"{amount(sum(cost.flops for cost in known), 'FLOP')}, at least "
        f"{duration(sum(cost.seconds for cost in known))} at {amount(REFERENCE_FLOPS, 'FLOP')}/s, "
        f"{amount(max((cost.memory_gb for cost in known), default=0.0) * GB, 'B')} besides the network, "
        f"{amount(sum(cost.stored_bytes for cost in known), 'B')} stored."
    )


def status_table(stages: pa.Table) -> Table:
    """Stages of a store: place, state, what they took and take.

    Args:
        stages: columns stage, place, state, seconds, peak_mb, num_bytes.
    """
    table = Table()
    for name in ("stage", "key", "state"):
        table.add_column(name)
    for name in ("time", "peak memory", "stored"):
        table.add_column(name, justify="right")
    for row in stages.to_pylist():
        state = row["state"]
        table.add_row(
            row["stage"],
            row["place"].rpartition("/")[2],
            f"[{STYLES[state]}]{state}[/]",
            "-" if row["seconds"] is None else duration(row["seconds"]),
            "-" if row["peak_mb"] is None else amount(row["peak_mb"] * 1e6, "B"),
            "-" if row["num_bytes"] is None else amount(row["num_bytes"], "B"),
        )
    return table


def amount(value: float, unit: str) -> str:
    """With three digits and a decimal prefix: 1.23 GB, 45 TFLOP."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} E{unit}"


class MethodField(NamedTuple):
    """One choice of a method."""

    name: str
    default: str
    meaning: str


class MethodCard(NamedTuple):
    """A method as `afterfit methods` shows it."""

    name: str
    summary: str
    source: str
    fields: list[MethodField]


def method_cards() -> Iterator[MethodCard]:
    """Every method of the table, from its docstrings."""
    for name, place in METHODS.items():
        module, _, attribute = place.partition(":")
        method: Any = getattr(import_module(module), attribute)
        lines = [line.strip() for line in (method.__doc__ or "").strip().splitlines()]
        source = next((line.removeprefix("Source:").strip() for line in lines if line.startswith("Source:")), "")
        fields = [
            MethodField(key, _default(field), " ".join((field.description or "").split()))
            for key, field in method.model_fields.items()
            if key != "name"
        ]
        yield MethodCard(name, lines[0] if lines else "", source, fields)


def _default(field: Any) -> str:
    return "needed" if field.is_required() else "none" if field.default is None else str(field.default)
