"""Where variances do not depend on lambda, found on a few queries; and whether the network's loss is convex enough.

lambda counts through its product with an output's standard deviation: too small and rounding drowns the difference, too
large and the loss is not a parabola over it. Between lies a plateau, decades wide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from afterfit.algebra import Batch, Cursor, Result, Unit
from afterfit.errors import NumericalError
from afterfit.methods.queries.covariance import Solving, examples_at_once
from afterfit.methods.queries.refits import influence
from afterfit.methods.queries.response import Kind
from afterfit.methods.queries.solving import Solver, Unsaved, beside, gradients_of
from afterfit.network.workbench import Outline, Workbench
from afterfit.precision import CORE

ROLE = "train"
FLAT = 0.01
"""Relative difference of variances at neighbouring lambdas, within a plateau."""


class Tried(NamedTuple):
    """Variances at each lambda."""

    variances_gk: Tensor
    residual: float
    is_positive_g: Tensor  # whether all refits met positive curvature only

    @property
    def is_positive(self) -> bool:
        """At neighbouring lambdas: too large ones leave the valley, and at too small ones rounding bends it."""
        both_g = (
            self.is_positive_g if len(self.is_positive_g) == 1 else self.is_positive_g[1:] & self.is_positive_g[:-1]
        )
        return bool(both_g.any())


class Level(NamedTuple):
    """A run of lambdas."""

    lambda_sd: float
    spread: float  # of the variances there, relative
    decades: float


@dataclass(frozen=True, kw_only=True)
class Plateau(Solving):
    """Variances of a few outputs of the training data at each lambda of a grid.

    Leaves behind facts kind (the network's), lambda_sd, spread, decades, residual; the table `plateau` (lambda_sd,
    query, variance). `exact` falls back to `linearised` where it may and the curvature is not positive, and says so.

    Cost: as of a group of queries, for each lambda.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    grid: tuple[float, ...]
    num_queries: int = 4
    may_fall_back: bool = False

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One."""
        return [Unit("all")]

    def on(self, bench: Workbench) -> _PlateauTask:
        """Needs the network, the training data, the leading eigenpairs and the prior precision."""
        return _PlateauTask(self, bench)


@dataclass(frozen=True)
class _PlateauTask:
    recipe: Plateau
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        recipe = self.recipe
        kind, notes = recipe.kind, []
        tried = self._tried(kind, Unsaved() if recipe.may_fall_back else cursor)
        if not tried.is_positive:
            said = "The loss has negative curvature at the trained weights"
            if not recipe.may_fall_back:
                raise NumericalError(
                    f"{said}, so that its inverse is no covariance; set `method.network: linearised`, or raise "
                    "`method.prior_precision`."
                )
            notes.append(f"{said}: variances are of the network linearised there.")
            kind = "linearised"
            tried = self._tried(kind, cursor)
        level = widest(recipe.grid, tried.variances_gk, tried.is_positive_g)
        notes.append(
            f"Variances of {tried.variances_gk.shape[1]} outputs differ by at most {level.spread:.1e} over "
            f"{level.decades:.2g} decades of lambda; refits take lambda times deviation = {level.lambda_sd:.1e}."
        )
        facts = {"kind": kind, **level._asdict(), "residual": tried.residual, "notes": notes}
        return Result(tables={"plateau": _table(recipe.grid, tried)}, facts=facts)

    def _tried(self, kind: Kind, cursor: Cursor) -> Tried:
        recipe = replace(self.recipe, kind=kind, lambda_sd=self.recipe.grid[0])
        solver = recipe.solver(self.bench)
        fits = examples_at_once(self.bench, recipe.num_sides * len(recipe.grid))
        num = min(recipe.num_queries, self.bench.num_examples(ROLE), fits)
        each = torch.tensor(recipe.grid, dtype=CORE).repeat_interleave(num)
        found = influence(solver, beside([self._chosen(solver, num)] * len(recipe.grid)), recipe.sides, each, cursor)
        moved = found.moved(solver, self._batch(range(num))).cpu().unflatten(2, (len(recipe.grid), num))
        own_gk = torch.stack(
            [moved[number, number % self.bench.num_outputs, :, number] for number in range(num)], dim=1
        )
        is_positive_g = found.is_positive_k.view(len(recipe.grid), num).all(dim=1)
        return Tried(own_gk, float(found.residual_k.max()), is_positive_g)

    def _chosen(self, solver: Solver, num: int) -> dict[str, Tensor]:
        """One output of each example, the next one of the next."""
        columns: list[dict[str, Tensor]] = []
        for number in range(num):
            every, _ = gradients_of(solver.response, self._batch(range(number, number + 1)))
            output = number % self.bench.num_outputs
            columns.append({name: tile[:, output : output + 1].clone() for name, tile in every.items()})
        return beside(columns)

    def _batch(self, chosen: range) -> Batch:
        return self.bench.data(ROLE).batch(list(chosen))


def widest(grid: Sequence[float], variances_gk: Tensor, is_positive_g: Tensor) -> Level:
    """The longest run of lambdas with one variance, and its middle; the flattest pair where there is no run."""
    runs = list(_runs(grid, variances_gk, is_positive_g))
    flat = [run for run in runs if run.spread <= FLAT]
    return max(flat, key=lambda run: run.decades) if flat else min(runs, key=lambda run: run.spread)


def _runs(grid: Sequence[float], variances_gk: Tensor, is_positive_g: Tensor) -> Iterator[Level]:
    if len(grid) == 1:
        yield Level(grid[0], 0.0, 0.0)
    values = torch.tensor(grid, dtype=CORE).log10()
    for first in range(len(grid)):
        for last in range(first + 1, len(grid)):
            if not bool(is_positive_g[first : last + 1].all()):
                continue
            part = variances_gk[first : last + 1]
            middle = part.median(dim=0).values
            spread = float(((part - middle).abs() / middle.abs().clamp_min(1e-300)).max())
            centre = float(10 ** ((values[first] + values[last]) / 2))
            yield Level(centre, spread, float((values[last] - values[first]).abs()))


def _table(grid: Sequence[float], tried: Tried) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"lambda_sd": lambda_sd, "query": number, "variance": float(variance)}
        for lambda_sd, variances_k in zip(grid, tried.variances_gk, strict=True)
        for number, variance in enumerate(variances_k)
    ]
    return pa.Table.from_pylist(rows)
