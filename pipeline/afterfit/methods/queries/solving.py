"""Solves for columns by passes over the training data, saved between micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.algebra import Cursor, batches, micro_batches
from afterfit.methods.queries.preconditioner import Preconditioner, dots, scaled
from afterfit.methods.queries.response import Response
from afterfit.methods.queries.secant import Kind as SecantKind
from afterfit.methods.queries.secant import Secant, begin, step
from afterfit.network.workbench import Workbench
from afterfit.precision import state_dtype

Tiles = Mapping[str, Tensor]
CHANGE = "change/"


@dataclass(frozen=True)
class Solved:
    """Columns D with F(D) = B, F the response of the data and the prior's."""

    columns: dict[str, Tensor]
    shrunk_k: Tensor  # part of each given B that it was solved for
    residual_k: Tensor  # relative
    error_k: Tensor  # bound on what is missing of B^T D, relative: r^T M0^-1 r of M0 below F; NaN where none is known
    is_positive_k: Tensor
    passes: int


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Of one worker."""

    bench: Workbench
    response: Response
    preconditioner: Preconditioner
    tolerance: float
    max_passes: int

    @property
    def is_linear(self) -> bool:
        """Whether the response is."""
        return self.response.kind in ("ggn", "hessian")

    def solve(self, rhs: Tiles, cursor: Cursor, num_sides: int = 1) -> Solved:
        """From where the cursor stands.

        Args:
            rhs: B by tiles (P_tile, k).
            cursor: its positions are micro-batches of all passes together.
            num_sides: of each query, one after another among the columns; they are solved for one part of B.

        Cost: a pass over the training data for each step, and one at each end, for as many as the slowest column takes.
        """
        data = self.bench.data("train")
        planned = micro_batches(data, range(data.num_examples), self.bench.micro_batch)
        position, saved = cursor.resume() or (0, {})
        at = Secant.of(saved) if saved else begin(rhs, self.preconditioner)
        change = {name: saved.get(CHANGE + name, torch.zeros_like(tile)) for name, tile in rhs.items()}
        is_ggn = self.response.kind in ("ggn", "linearised")
        kind = SecantKind(is_linear=self.is_linear, is_convex=is_ggn, num_sides=num_sides)
        while not at.is_done and at.evaluations < self.max_passes:
            start, move = at.move()
            first = position % len(planned)
            for batch in batches(data, planned[first:]):
                self.response.add(batch, start, move, change)
                position += 1
                if position % len(planned):
                    self._reached(cursor, position, len(planned), at, change)
            for name, tile in change.items():
                tile.add_(move[name], alpha=self.preconditioner.prior_precision)
            del start, move  # as large as all columns
            at = step(at, change, rhs, self.preconditioner, self.tolerance, kind)
            change = {name: torch.zeros_like(tile) for name, tile in rhs.items()}
            self._reached(cursor, position, len(planned), at, change)
        missing_k = dots(at.residual, self.preconditioner.low_rank()(at.residual))
        error_k = missing_k / (dots(scaled(rhs, at.shrunk_k), at.solution) + missing_k).clamp_min(1e-300)
        if not is_ggn:  # of which the preconditioner is no part
            error_k = torch.full_like(error_k, torch.nan)
        return Solved(at.solution, at.shrunk_k, at.relative_k, error_k, at.is_positive_k, at.evaluations)

    def _reached(self, cursor: Cursor, position: int, each: int, at: Secant, change: Tiles) -> None:
        kept = {CHANGE + name: tile for name, tile in change.items()}
        cursor.reached(position, max(self.max_passes * each, position), {**at.state(), **kept})


def zero_tiles(response: Response, num_columns: int) -> dict[str, Tensor]:
    """Columns of zeros."""
    dtype = state_dtype(response.network.dtype)
    return {tile.name: torch.zeros(tile.size, num_columns, dtype=dtype) for tile in response.network.layout}


def beside(parts: Sequence[Tiles]) -> dict[str, Tensor]:
    """Columns one after another."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def split(columns: Tiles, width: int) -> Iterator[dict[str, Tensor]]:
    """The inverse, for parts of one width."""
    count = next(iter(columns.values())).shape[1] // width
    for number in range(count):
        yield {name: tile[:, number * width : (number + 1) * width] for name, tile in columns.items()}
