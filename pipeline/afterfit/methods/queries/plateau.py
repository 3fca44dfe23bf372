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

from afterfit.algebra import Batch, Cursor, Result, Unit, Unsaved
from afterfit.errors import NumericalError
from afterfit.methods.queries.covariance import Solving
from afterfit.methods.queries.refits import influence
from afterfit.methods.queries.response import Kind
from afterfit.methods.queries.solving import Solver, beside, zero_tiles
from afterfit.network.workbench import Outline, Workbench
from afterfit.precision import CORE

ROLE = "train"
FLAT = 0.01
"""Relative difference of variances at neighbouring lambdas, within a plateau."""


class Tried(NamedTuple):
    """Variances at each lambda."""

    variances_gk: Tensor
    residual_g: Tensor  # the worst
    is_positive_g: Tensor  # whether all refits met positive curvature only

    @property
    def is_positive(self) -> bool:
        """At the two smallest lambdas: larger ones may leave the valley."""
        return bool(self.is_positive_g[:2].all())

    def is_usable_g(self, tolerance: float) -> Tensor:
        """Lambdas whose refits went to their end; all that are positive, where none did."""
        ended_g = self.is_positive_g & (self.residual_g <= tolerance)
        return ended_g if bool(ended_g.any()) else self.is_positive_g


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

    VERSION: ClassVar[int] = 2
    verb: ClassVar[str] = "map"

    grid: tuple[float, ...]
    num_queries: int = 4
    may_fall_back: bool = False

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One; refused at once where memory does not hold one query at all lambdas."""
        self.queries_at_once(outline, len(self.grid))
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
        level = widest(recipe.grid, tried.variances_gk, tried.is_usable_g(recipe.tolerance))
        if not bool((tried.residual_g <= recipe.tolerance).any()):
            level = level._replace(decades=0.0)  # steps that were cut short do not depend on lambda
        if len(recipe.grid) > 1:
            notes.append(_told(level, tried, recipe.tolerance))
        residual = float(tried.residual_g.min())
        facts = {"kind": kind, **level._asdict(), "residual": residual, "notes": notes}
        return Result(tables={"plateau": _table(recipe.grid, tried)}, facts=facts)

    def _tried(self, kind: Kind, cursor: Cursor) -> Tried:
        recipe = replace(self.recipe, kind=kind, lambda_sd=self.recipe.grid[0])
        solver = recipe.solver(self.bench)
        fits = recipe.queries_at_once(self.bench, len(recipe.grid))
        num = min(recipe.num_queries, self.bench.num_examples(ROLE), fits)
        each = torch.tensor(recipe.grid, dtype=CORE).repeat_interleave(num)
        found = influence(solver, beside([self._chosen(solver, num)] * len(recipe.grid)), recipe.sides, each, cursor)
        shape = (len(recipe.grid), num)
        moved = found.moved(solver, self._batch(range(num))).cpu().unflatten(2, shape)
        own_gk = torch.stack(
            [moved[number, number % self.bench.num_outputs, :, number] for number in range(num)], dim=1
        )
        residual_g = found.residual_k.view(shape).amax(dim=1)
        return Tried(own_gk, residual_g, found.is_positive_k.view(shape).all(dim=1))

    def _chosen(self, solver: Solver, num: int) -> dict[str, Tensor]:
        """One output of each example, the next one of the next."""
        columns: list[dict[str, Tensor]] = []
        for number in range(num):
            one_1C1 = torch.zeros(1, self.bench.num_outputs, 1, dtype=CORE)
            one_1C1[0, number % self.bench.num_outputs] = 1
            columns.append(zero_tiles(solver.response, 1))
            solver.response.add_rows(self._batch(range(number, number + 1)), columns[-1], one_1C1)
        return beside(columns)

    def _batch(self, chosen: range) -> Batch:
        return self.bench.data(ROLE).batch(list(chosen))


def _told(level: Level, tried: Tried, tolerance: float) -> str:
    num = tried.variances_gk.shape[1]
    at = f"refits take lambda times deviation = {level.lambda_sd:.1e}"
    if not bool((tried.residual_g <= tolerance).any()):
        return f"No refit at any lambda went to its end, so that no plateau is known; {at}."
    if not level.decades:
        return f"The refits of only one lambda went to their end, so that no plateau is known; {at}."
    if level.spread > FLAT:
        return (
            f"No plateau was found: variances of {num} outputs differ by {level.spread:.1e} between lambdas; {at}. "
            "Raise `method.max_passes` or `method.rank`, or give a grid of smaller lambdas."
        )
    flat = f"differ by at most {level.spread:.1e} over {level.decades:.2g} decades of lambda"
    return f"Variances of {num} outputs {flat}; {at}."


def widest(grid: Sequence[float], variances_gk: Tensor, is_usable_g: Tensor) -> Level:
    """The longest run of lambdas with one variance, and its middle; the flattest pair where there is no run."""
    runs = list(_runs(grid, variances_gk, is_usable_g))
    flat = [run for run in runs if run.spread <= FLAT]
    if flat:
        return max(flat, key=lambda run: run.decades)
    usable = [value for value, is_usable in zip(grid, is_usable_g.tolist(), strict=True) if is_usable]
    return min(runs, key=lambda run: run.spread) if runs else Level(usable[0] if usable else grid[0], 0.0, 0.0)


def _runs(grid: Sequence[float], variances_gk: Tensor, is_usable_g: Tensor) -> Iterator[Level]:
    if len(grid) == 1:
        yield Level(grid[0], 0.0, 0.0)
    values = torch.tensor(grid, dtype=CORE).log10()
    for first in range(len(grid)):
        for last in range(first + 1, len(grid)):
            if not bool(is_usable_g[first : last + 1].all()):
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
