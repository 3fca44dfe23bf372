"""Solves for columns by passes over the training data, saved between micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.algebra import Cursor, batches, micro_batches
from afterfit.methods.queries.preconditioner import Preconditioner, dots, scaled
from afterfit.methods.queries.response import Response
from afterfit.methods.queries.secant import Secant, begin, step
from afterfit.network.workbench import Workbench
from afterfit.precision import state_dtype

Tiles = Mapping[str, Tensor]
IMAGE = "image/"


@dataclass(frozen=True)
class Solved:
    """Columns D with F(D) = B, F the response of the data and the prior's."""

    columns: dict[str, Tensor]
    shrunk_k: Tensor  # part of each given B that it was solved for
    residual_k: Tensor  # relative
    error_k: Tensor  # bound on what is missing of B^T D, relative: r^T M0^-1 r, of M0 below F
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

    def solve(self, rhs: Tiles, cursor: Cursor) -> Solved:
        """From where the cursor stands.

        Args:
            rhs: B by tiles (P_tile, k).
            cursor: its positions are micro-batches of all passes together.

        Cost: a pass over the training data for each step, and one at the end.
        """
        data = self.bench.data("train")
        planned = micro_batches(data, range(data.num_examples), self.bench.micro_batch)
        position, saved = cursor.resume() or (0, {})
        at = Secant.of(saved) if saved else begin(rhs, self.preconditioner)
        image = {name: saved.get(IMAGE + name, torch.zeros_like(tile)) for name, tile in rhs.items()}
        while self._goes_on(at):
            point = at.point(is_linear=self.is_linear)
            first = position % len(planned)
            for batch in batches(data, planned[first:]):
                self.response.add(batch, point, image)
                position += 1
                if position % len(planned):
                    self._reached(cursor, position, len(planned), at, image)
            self._add_prior(image, point)
            del point  # as large as all columns
            at = step(
                at,
                image,
                rhs,
                self.preconditioner,
                self.tolerance,
                is_linear=self.is_linear,
                is_convex=self.response.kind in ("ggn", "linearised"),
            )
            image = {name: torch.zeros_like(tile) for name, tile in rhs.items()}
            self._reached(cursor, position, len(planned), at, image)
        missing_k = dots(at.residual, self.preconditioner.low_rank()(at.residual))
        error_k = missing_k / (dots(scaled(rhs, at.shrunk_k), at.solution) + missing_k).clamp_min(1e-300)
        return Solved(at.solution, at.shrunk_k, at.relative_k, error_k, at.is_positive_k, at.evaluations)

    def _goes_on(self, at: Secant) -> bool:
        wants = at.is_check or bool(at.is_running_k.any())
        return wants and at.evaluations < self.max_passes

    def _reached(self, cursor: Cursor, position: int, each: int, at: Secant, image: Tiles) -> None:
        kept = {IMAGE + name: tile for name, tile in image.items()}
        cursor.reached(position, max(self.max_passes * each, position), {**at.state(), **kept})

    def _add_prior(self, image: Tiles, point: Tiles) -> None:
        for name, tile in image.items():
            tile.add_(point[name], alpha=self.preconditioner.prior_precision)


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
