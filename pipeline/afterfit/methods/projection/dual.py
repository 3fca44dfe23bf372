"""Draws projected through the dual: rounds of passes over the shards, with a solver of K X = R D between them.

One application of the projector takes D to D - R^T X. It is applied at least twice: the second time cleans rounding,
and its first pass tells the true residual of the first.

Shapes: P_tile weights of a tile, k draws, n protected examples of a shard or of all, R rows of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from afterfit.algebra import Cursor, Progress, Result, State, Stop, Unit
from afterfit.lazy import LazyMapping
from afterfit.methods.projection.chunk import Projection, Rank
from afterfit.methods.projection.draws import Tiles, check_left, column_norms, family, joined, noise_tiles, scalar
from afterfit.methods.projection.passes import Times, TransposeTimes, fold_shard
from afterfit.methods.projection.solvers import BlockCgSolver, DualSolver, Exact, Preconditioner
from afterfit.methods.projection.sweeps import Blocks, swept_residual
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.network.workbench import Workbench
from afterfit.rows.columns import held_columns

Small = dict[str, Tensor]
"""The part of a state that is in memory."""

APPLICATIONS = 2
"""Of the projector, at least."""
GAIN = 0.5
"""An application that leaves more than this part of the residual has stalled."""
MARGIN = 0.5
"""Of the tolerance: what the recurrence's residual must reach, since the true one is a little larger."""


class Pass(IntEnum):
    """What the next pass over the shards does."""

    MEASURE = 0  # R D
    SWEEP = 1  # block projections of the residual
    COMBINE = 2  # R^T of a direction
    MULTIPLY = 3  # R of that
    SUBTRACT = 4  # R^T of the solution


@dataclass(frozen=True, kw_only=True)
class DualProjection(Projection):
    """Draws `first` to `first + num - 1` in the kernel of the protected rows: `draws` by tiles (P_tile, k).

    Facts: first, num, solver, residual (max over rows and draws of |R_i d| / |d|, after the last application), rank,
    cut_off, passes. Cost: exact: five passes over the protected examples with 2 n R P k multiplications and additions
    in each, and 8 (n R)^2 k for solving; conjugate gradients: two passes a step (four with sweeps) besides.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "iterate"

    solver: Literal["exact", "cg"]
    preconditioner: Preconditioner

    def on(self, bench: Workbench) -> "DualRounds":
        """Needs the network, the training data, the lengths, and what the solver needs."""
        return DualRounds(self, bench)


class DualRounds:
    """The rounds; see `Rounds`."""

    def __init__(self, recipe: DualProjection, bench: Workbench) -> None:
        self.recipe = recipe
        self.bench = bench
        self.rows = ProtectedRows(recipe.protected, bench)
        self._held: tuple[object, Mapping[str, Tensor]] = (None, {})

    @cached_property
    def _solver(self) -> DualSolver:
        is_exact = self.recipe.solver == "exact"
        return Exact(self.bench) if is_exact else BlockCgSolver(self.bench, self.recipe.preconditioner)

    def init(self) -> State:
        """Noise."""
        tiles = noise_tiles(self.recipe.seed, self.bench, self.recipe.numbers)
        at = {"at/passes": scalar(0), "at/residual": scalar(1), "at/applications": torch.tensor(0)}
        return joined({"draws": tiles}, at, _to(Pass.MEASURE))

    def leaf(self, state: State, unit: Unit, cursor: Cursor) -> State:
        """One shard's part of a pass."""
        kind = Pass(int(state["at/pass"]))
        if kind not in (Pass.MEASURE, Pass.MULTIPLY):
            self._held = (None, {})  # before as many columns are summed
        else:
            columns = self._columns(state, "draws" if kind is Pass.MEASURE else "columns")
            return fold_shard(Times(self.rows, unit, columns), self.rows, unit, cursor)
        first = self.rows.first(unit)
        weights_nRj = state["at/weights"][first : first + len(self.rows.indexes(unit))]
        if kind is Pass.SWEEP:
            blocks = Blocks(self.rows, unit, self.recipe.block_size)
            return {"rows/all": swept_residual(blocks, weights_nRj, cursor)}
        return fold_shard(TransposeTimes(self.rows, unit, weights_nRj), self.rows, unit, cursor)

    def _columns(self, state: State, name: str) -> Mapping[str, Tensor]:
        """Held for as long as the same state is broadcast."""
        if self._held[0] is not state:
            self._held = (None, {})
            self._held = (state, held_columns(family(state, name), self.bench.layout, self.bench.memory_gb))
        return self._held[1]

    def merge(self, left: State, right: State) -> State:
        """Rows of shards one after the other; columns added."""
        return {
            name: torch.cat([left[name], right[name]]) if name.startswith("rows/") else left[name] + right[name]
            for name in left
        }

    def advance(self, state: State, total: State) -> tuple[State, Progress]:
        """What the pass gave goes to the solver; what that wants next is the next pass."""
        kind = Pass(int(state["at/pass"]))
        made = {"passes": float(state["at/passes"]) + (2 if kind is Pass.SWEEP else 1)}
        draws, dual = {"draws": family(state, "draws")}, {"dual": family(state, "dual")}
        at = _part(state, "at/") | {"at/passes": scalar(made["passes"])}
        if kind is Pass.MEASURE:
            return self._measured(total["rows/all"], draws, _part(state, "dual/"), at)
        if kind is Pass.COMBINE:
            columns = {"columns": family(total, "columns")}
            return joined(draws | dual | columns, at | _to(Pass.MULTIPLY)), Progress(None, made)
        if kind is Pass.SUBTRACT:
            tiles = LazyMapping({tile: partial(_less, state, total, tile) for tile in draws["draws"]})
            at = at | _to(Pass.MEASURE) | {"at/applications": state["at/applications"] + 1}
            return joined({"draws": tiles} | dual, at), Progress(None, made)
        return self._asked(self._solver.take(_part(state, "dual/"), total["rows/all"]), draws, at, made)

    def _measured(self, rows_nRk: Tensor, draws: Tiles, dual: State, at: Small) -> tuple[State, Progress]:
        """The true residual: the end, or another application."""
        norms_k = column_norms(draws["draws"])
        check_left(norms_k, self.recipe.protected, self.bench)
        relative_k = rows_nRk.abs().amax(dim=(0, 1)) / norms_k if rows_nRk.numel() else torch.zeros_like(norms_k)
        residual, before = float(relative_k.max()), float(at["at/residual"])
        made = {"passes": float(at["at/passes"]), "residual": residual}
        stop = self._stop(int(at["at/applications"]), residual, before, made["passes"])
        at = at | {"at/residual": scalar(residual), "at/norms": norms_k}
        if stop is not None:
            return joined(draws, at), Progress(stop, made)
        target = min(self.recipe.tolerance, residual / 10)
        return self._asked(self._solver.begin(rows_nRk, MARGIN * target * norms_k, dual), draws, at, made)

    def _stop(self, applications: int, residual: float, before: float, passes: float) -> Stop | None:
        if applications < APPLICATIONS:
            return None
        if self.recipe.solver == "exact":
            return Stop.FINISHED
        if residual <= self.recipe.tolerance:
            return Stop.CONVERGED
        if passes >= self.recipe.max_passes:
            return Stop.BUDGET
        return Stop.STALLED if residual > GAIN * before else None

    def _asked(self, dual: State, draws: Tiles, at: Small, made: dict[str, float]) -> tuple[State, Progress]:
        """The pass that the solver asks for; where the passes run out, what it has is the solution."""
        wish = self._solver.wish(dual)
        if "dual/residual" in dual:
            norms_k = at["at/norms"]
            made["estimate"] = float((dual["dual/residual"].abs().amax(dim=0) / norms_k).max())
        weights_nRj, kind = wish.weights_nRj, Pass.SWEEP if wish.kind == "sweep" else Pass.COMBINE
        if weights_nRj is None or made["passes"] + 2 > self.recipe.max_passes:
            weights_nRj, kind = self._solver.solution(dual), Pass.SUBTRACT
        return joined(draws, dual, at | _to(kind) | {"at/weights": weights_nRj}), Progress(None, made)

    def finalise(self, state: State) -> Result:
        """The draws."""
        return self.recipe.result(state, self.recipe.solver, self._rank(), float(state["at/residual"]))

    def _rank(self) -> Rank:
        if self.recipe.solver != "exact":
            return self.recipe.most_rank(self.bench)
        found = self.bench.input("factor").facts
        return Rank(sum(value for name, value in found.items() if name.startswith("rank-")), cut_off=found["cut_off"])


def _less(state: State, total: State, tile: str) -> Tensor:
    return state[f"draws/{tile}"] - total[f"columns/{tile}"]


def _to(kind: Pass) -> Small:
    return {"at/pass": torch.tensor(int(kind))}


def _part(state: State, prefix: str) -> Small:
    """What is small of a lazy state, in memory."""
    return {name: state[name] for name in state if name.startswith(prefix)}
