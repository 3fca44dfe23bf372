"""Covariances of the outputs of some examples, by refits or by conjugate gradients: a stage of independent units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, Unit
from afterfit.errors import NumericalError
from afterfit.methods.queries.preconditioner import Preconditioner
from afterfit.methods.queries.refits import Influence, Sides, influence
from afterfit.methods.queries.response import Kind, response_on
from afterfit.methods.queries.solving import Solver, gradients_of
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Outline, Workbench, bound_likelihood
from afterfit.resources import GB

HELD_SHARE = 0.5
"""Part of `memory_gb` for what is held of each column."""
HELD_TENSORS = 7
"""Of a column: right-hand side, solution, residual, direction, image, and what a step makes."""


@dataclass(frozen=True, kw_only=True)
class Solving:
    """How right-hand sides are solved for."""

    likelihood: Likelihood
    kind: Kind
    sides: Sides
    tolerance: float
    max_passes: int
    lambda_sd: float | None = None  # None: as the stage `plateau` found

    @property
    def num_sides(self) -> int:
        """Columns of a query."""
        return 2 if self.sides == "two" and self.kind in ("linearised", "exact") else 1

    def solver(self, bench: Workbench) -> Solver:
        """On a worker; where a plateau was looked for, of the network that it says."""
        kind = cast(Kind, bench.input("plateau").facts["kind"]) if self.lambda_sd is None else self.kind
        preconditioner = Preconditioner.of(
            bench.input("basis"),
            bench.input("curvature"),
            float(bench.input("tuning").facts["prior_precision"]),
            bench.layout,
            bench.memory_gb,
        )
        return Solver(
            bench=bench,
            response=response_on(bench, bound_likelihood(self.likelihood, bench), kind),
            preconditioner=preconditioner,
            tolerance=self.tolerance,
            max_passes=self.max_passes,
        )

    def at(self, bench: Workbench) -> float:
        """Lambda times the standard deviation."""
        return self.lambda_sd if self.lambda_sd is not None else float(bench.input("plateau").facts["lambda_sd"])


def examples_at_once(outline: Outline, columns_each: int) -> int:
    """Whose queries are solved for together: as many as memory holds."""
    each = HELD_TENSORS * columns_each * outline.layout.num_weights * outline.state_bytes
    return max(1, int(HELD_SHARE * outline.memory_gb * GB // each))


@dataclass(frozen=True, kw_only=True)
class QueryCovariances(Solving):
    """Of the first examples of a data set: `mean` (n, C), `covariance` (n, C, C), `index`, `target` if there are any.

    A query is an output of an example. The table `queries` has for each what its covariance took and reached: example,
    output, variance, residual (relative, of the worst side), passes.

    Cost: of each group of examples some passes over the training data, with C rows an example.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    role: str
    num_examples: int | None  # None: all

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of examples."""
        total = outline.num_examples(self.role)
        total = total if self.num_examples is None else min(total, self.num_examples)
        each = examples_at_once(outline, outline.num_outputs * self.num_sides)
        return [
            Unit(f"queries-{first:08d}", {"start": first, "stop": min(first + each, total)})
            for first in range(0, total, each)
        ]

    def on(self, bench: Workbench) -> _CovarianceTask:
        """Needs the network, both data sets, the leading eigenpairs and the prior precision."""
        return _CovarianceTask(self, bench)


@dataclass(frozen=True)
class _CovarianceTask:
    recipe: QueryCovariances
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        recipe = self.recipe
        batch = self.bench.data(recipe.role).batch(list(range(unit.details["start"], unit.details["stop"])))
        answer = answered(recipe.solver(self.bench), batch, recipe.sides, recipe.at(self.bench), cursor)
        kept = {"mean": answer.mean_BC, "covariance": answer.covariance_BCC, "index": batch.indexes}
        if batch.targets is not None:
            kept["target"] = batch.targets
        return Result(
            tensors={family: [(unit.name, values)] for family, values in kept.items()},
            tables={"queries": _table(batch, answer)},
        )


class Answer(NamedTuple):
    """Of some examples, in float64."""

    mean_BC: Tensor
    covariance_BCC: Tensor
    found: Influence


def answered(solver: Solver, batch: Batch, sides: Sides, lambda_sd: float, cursor: Cursor) -> Answer:
    """Outputs and their covariance, each example's own.

    Raises:
        NumericalError: if the loss has negative curvature along a refit.
    """
    columns, outputs_BC = gradients_of(solver.response, batch)
    found = influence(solver, columns, sides, lambda_sd, cursor)
    _check_positive(found, solver.response.kind)
    num, width = outputs_BC.shape
    moved = found.moved(solver, batch).view(num, width, num, width)
    own_BCC = torch.stack([moved[number, :, number] for number in range(num)])
    return Answer(outputs_BC.double().cpu(), ((own_BCC + own_BCC.mT) / 2).cpu(), found)


def _check_positive(found: Influence, kind: str) -> None:
    failed = int((~found.is_positive_k).sum())
    if failed:
        what = "the network linearised (`method.network: linearised`)" if kind == "exact" else "`method.curvature: ggn`"
        raise NumericalError(
            f"The loss has negative curvature along the refits of {failed} of {len(found.is_positive_k)} queries, so "
            f"that the trained weights are no minimum and its inverse is no covariance; use {what}, or raise "
            "`method.prior_precision`."
        )


def _table(batch: Batch, answer: Answer) -> pa.Table:
    num, width = answer.mean_BC.shape
    columns: dict[str, Any] = {
        "index": batch.indexes.repeat_interleave(width).tolist(),
        "output": list(range(width)) * num,
        "variance": answer.covariance_BCC.diagonal(dim1=1, dim2=2).flatten().tolist(),
        "residual": answer.found.residual_k.tolist(),
        "passes": [answer.found.passes] * (num * width),
    }
    return pa.table(columns)
