"""Covariances of the outputs of some examples, by refits or by conjugate gradients: a stage of independent units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

import pyarrow as pa
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, Unit
from afterfit.errors import ResourceError
from afterfit.methods.queries.chosen import Outputs, among, completed, gradients_of, num_asked, places_of
from afterfit.methods.queries.preconditioner import Preconditioner
from afterfit.methods.queries.refits import Influence, Sides, influence
from afterfit.methods.queries.response import Kind, response_on
from afterfit.methods.queries.solving import Solver
from afterfit.network.likelihoods import Likelihood
from afterfit.network.workbench import Outline, Workbench, bound_likelihood
from afterfit.resources import GB

HELD_SHARE = 0.4
"""Part of `memory_gb` for what is held of each column."""
HELD_TENSORS = 14
"""Of a column, measured: right-hand sides; solution, residual and direction before and after a step; image, change,
what preconditioning gives, and tiles in float64."""
AT_ONCE = 8
"""Examples of a group, at most, so that workers have groups to share."""
CORE_BYTES = 8
"""Of a number where the network runs in float64."""


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

    def column_bytes(self, num_weights: int, state_bytes: int) -> int:
        """That are held of each."""
        number = state_bytes if self.kind in ("ggn", "linearised") else CORE_BYTES
        return HELD_TENSORS * num_weights * number

    def queries_at_once(self, outline: Outline, columns_each: int) -> int:
        """How many are solved for together, of as many columns each: as many as memory holds.

        Raises:
            ResourceError: if it does not hold one.
        """
        column = self.column_bytes(outline.layout.num_weights, outline.state_bytes)
        each = column * columns_each * self.num_sides
        fits = int(HELD_SHARE * outline.memory_gb * GB // each)
        if not fits:
            raise ResourceError(
                f"{columns_each * self.num_sides} refits together take {each / GB:.3g} GB, above {HELD_SHARE:g} of "
                f"`memory_gb: {outline.memory_gb:g}`; set it to {each / HELD_SHARE / GB:.3g}, or choose fewer weights "
                "with `network.choose`."
            )
        return fits


@dataclass(frozen=True, kw_only=True)
class Asking(Solving):
    """Of the first examples of a data set."""

    role: str
    num_examples: int | None  # None: all

    def asked(self, num_examples: int) -> int:
        """How many, of a data set of so many."""
        return num_examples if self.num_examples is None else min(num_examples, self.num_examples)


@dataclass(frozen=True, kw_only=True)
class QueryCovariances(Asking):
    """Of the first examples of a data set: `mean` (n, C), `covariance` (n, C, C), `index`, `target` if there are any.

    A query is an output of an example. The table `queries` has for each what its covariance took and reached: example,
    output, variance, residual (relative, of the worst side), error (a bound on what part of the variance is missing),
    passes. See `chosen` for outputs not asked about.

    Cost: of each group of examples some passes over the training data, with C rows an example.
    """

    VERSION: ClassVar[int] = 2
    verb: ClassVar[str] = "map"

    outputs: Outputs = None

    def num_queries(self, num_examples: int, num_outputs: int) -> int:
        """Of a data set."""
        return self.asked(num_examples) * num_asked(self.outputs, num_outputs)

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of examples."""
        total = self.asked(outline.num_examples(self.role))
        each = min(AT_ONCE, self.queries_at_once(outline, num_asked(self.outputs, outline.num_outputs)))
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

    @cached_property
    def solver(self) -> Solver:
        """Once a worker: it reads the eigenpairs, and may copy the network."""
        return self.recipe.solver(self.bench)

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        recipe = self.recipe
        batch = self.bench.data(recipe.role).batch(list(range(unit.details["start"], unit.details["stop"])))
        answer = answered(self.solver, batch, recipe, cursor)
        covariance_BCC = answer.covariance(self.solver, batch)
        kept = {"mean": answer.mean_BC, "covariance": covariance_BCC, "index": batch.indexes}
        if batch.targets is not None:
            kept["target"] = batch.targets
        return Result(
            tensors={family: [(unit.name, values)] for family, values in kept.items()},
            tables={"queries": _table(batch, answer)},
            facts={"tolerance": recipe.tolerance},
        )


class Answer(NamedTuple):
    """Of some examples, in float64."""

    mean_BC: Tensor
    found_BCA: Tensor  # of all outputs with those that were asked about
    places_BA: Tensor
    reached: Influence

    def covariance(self, solver: Solver, batch: Batch) -> Tensor:
        """Of all outputs, (B, C, C)."""
        return completed(solver, batch, self.found_BCA, self.places_BA)

    def of(self, outputs: Sequence[int]) -> Tensor:
        """Where just these outputs were asked about, (B, A, A) in their order."""
        order = [sorted(outputs).index(number) for number in outputs]
        return among(self.found_BCA, self.places_BA)[:, order][:, :, order]


def answered(solver: Solver, batch: Batch, recipe: QueryCovariances, cursor: Cursor) -> Answer:
    """Outputs and their covariances, each example's own.

    Raises:
        NumericalError: if the loss has negative curvature along a refit.
    """
    places_BA = places_of(solver, batch, recipe.outputs)
    columns, outputs_BC = gradients_of(solver, batch, places_BA)
    found = influence(solver, columns, recipe.sides, recipe.at(solver.bench), cursor).checked()
    return Answer(outputs_BC, found.own(solver, batch), places_BA, found)


def _table(batch: Batch, answer: Answer) -> pa.Table:
    variance_BA = among(answer.found_BCA, answer.places_BA).diagonal(dim1=1, dim2=2)
    columns: dict[str, Any] = {
        "index": batch.indexes.repeat_interleave(variance_BA.shape[1]).tolist(),
        "output": answer.places_BA.flatten().tolist(),
        "variance": variance_BA.flatten().tolist(),
        "residual": answer.reached.residual_k.tolist(),
        "error": answer.reached.error_k.tolist(),
        "passes": [answer.reached.passes] * variance_BA.numel(),
    }
    return pa.table(columns)
