"""What projections take, counted from sizes before anything runs: for the choice of a solver, and for the plan.

Work in float64, of Grams, factors and conjugate directions, counts twice: a core does half as many of them a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

from afterfit.linalg.gram import ROWS
from afterfit.methods.gram_blocks import gram_units
from afterfit.methods.projection.protected import Protected
from afterfit.methods.projection.solvers import Preconditioner
from afterfit.network.workbench import Outline
from afterfit.resources import GB

Solver = Literal["exact", "cg", "alternating"]

WIDE = 2.0
"""Cost of an operation in float64."""
CORE_BYTES = 8.0
EIGEN_FLOPS = 10.0
"""Of a symmetric eigenproblem, times n^3."""
FACTOR_FLOPS = 2 / 3
"""Of Cholesky with pivoting, times n^3: half of its 1/3 does not use the cache well."""
OVERHEAD = 5
"""Passes of two applications of the projector and their measurements; the whole of an exact solver's."""


class Choice(NamedTuple):
    """A solver, and the preconditioner of conjugate gradients."""

    solver: Solver
    preconditioner: Preconditioner = "none"

    @property
    def has_gram(self) -> bool:
        """Whether it factors the Gram of all rows."""
        return self.solver == "exact" or self.preconditioner == "cholesky"

    @property
    def has_blocks(self) -> bool:
        """Whether it projects on blocks of examples."""
        return self.solver == "alternating" or self.preconditioner == "sweep"

    def __str__(self) -> str:
        """As people say it."""
        return self.solver if self.preconditioner == "none" else f"{self.solver} with {self.preconditioner}"


class Measured(NamedTuple):
    """Of the worst row."""

    steps: int
    residual: float
    passes_each: int


MEASURED: Final[Mapping[Choice, Measured]] = {
    Choice("exact"): Measured(1, 1e-8, 2),
    Choice("cg", "cholesky"): Measured(25, 1e-7, 2),
    Choice("cg", "sweep"): Measured(75, 2e-4, 4),
    Choice("cg", "nystrom"): Measured(100, 2e-4, 2),
    Choice("cg"): Measured(100, 2e-4, 2),
    Choice("alternating"): Measured(100, 1e-3, 1),
}
"""Choice -> what it reached, in how many steps, with how many passes a step.

On Jacobians of real networks (a LeNet on 500 pictures, 5 000 rows; a ResNet-20 alike), whose Gram has full rank and a
spectrum that falls slowly to 4e-8 of its largest eigenvalue.
"""


@dataclass(frozen=True)
class RowCounts:
    """Of protected rows: L Grams of N rows, P weights. FLOPs and bytes; columns, where there are any, are k."""

    protected: Protected
    outline: Outline

    @cached_property
    def num_layers(self) -> int:
        """L."""
        return self.protected.num_layers(self.outline)

    @cached_property
    def num_rows(self) -> int:
        """N, of one Gram."""
        return self.protected.num_rows(self.outline) // self.num_layers

    @property
    def rows_each(self) -> int:
        """Of one example, in one Gram."""
        return self.protected.num_cotangents(self.outline)

    @property
    def making(self) -> float:
        """Of the explicit rows of one example: a forward pass, and two more for each cotangent."""
        return self.outline.forward_flops * (1 + 2 * self.rows_each)

    def one_pass(self, num_columns: int) -> float:
        """R V or R^T W: by rows, or with a pass through the network for each column."""
        count, weights = self.protected.count(self.outline), self.outline.layout.num_weights
        by_rows = count * self.making + 2.0 * self.num_rows * weights * num_columns
        by_columns = count * self.outline.forward_flops * (1 + 3 * num_columns)
        return by_rows if self.protected.kernel == "per_layer" else min(by_rows, by_columns)

    def one_sweep(self, num_columns: int) -> float:
        """R V and R^T W of rows that are made once."""
        weights = self.outline.layout.num_weights
        return self.protected.count(self.outline) * self.making + 4.0 * self.num_rows * weights * num_columns

    def gram_flops(self, *, is_exact: bool) -> float:
        """Rows are made once for each unit that needs them."""
        sizes = {tile.name: tile.size for tile in self.outline.layout}
        made = products = 0.0
        for left, right, tiles in self._units:
            made += (left if right is None else left + right) * self.making
            entries = half_entries(left * self.rows_each) if right is None else left * right * self.rows_each**2
            products += 2.0 * entries * sum(sizes[name] for name in tiles)
        return made + (WIDE if is_exact else 1.0) * products

    def gram_bytes(self, *, is_exact: bool) -> float:
        """Of a leaf's rows and its sums; of the merge of two; of the whole matrix and a block of it."""
        sizes = {tile.name: tile.size for tile in self.outline.layout}
        width, rows_each = (8.0 if is_exact else 4.0), self.rows_each
        leaf = block = 0.0
        for left, right, tiles in self._units:
            held = left if right is None else left + right
            rows = held * rows_each * sum(sizes[name] for name in tiles) * self.outline.state_bytes
            sums = width * rows_each**2 * left * (left if right is None else right)
            leaf, block = max(leaf, rows + self.num_layers * sums), max(block, sums)
        merge = 3 * block if len(self._units) > 1 else 0.0
        return max(leaf, merge, width * float(self.num_rows) ** 2 + block)

    @cached_property
    def _units(self) -> list[tuple[int, int | None, list[str]]]:
        """Examples to the left, to the right if they are others, and the tiles."""
        units = gram_units(self.outline, self.protected.count(self.outline), self.rows_each)
        found = []
        for unit in units:
            left, right = (len(range(*unit.details[side])) for side in ("left", "right"))
            is_same = unit.details["left"] == unit.details["right"]
            found.append((left, None if is_same else right, unit.details["tiles"]))
        return found

    def factor_flops(self, *, is_exact: bool) -> float:
        """Of all Grams."""
        return (WIDE if is_exact else 1.0) * self.num_layers * FACTOR_FLOPS * float(self.num_rows) ** 3

    def factor_bytes(self, *, is_exact: bool) -> float:
        """Of one: two N x N."""
        return (16.0 if is_exact else 8.0) * float(self.num_rows) ** 2

    def block_flops(self, block_size: int) -> float:
        """Grams of the blocks and their pseudo-inverses."""
        rows, count, weights = self._block_rows(block_size), self.protected.count(self.outline), self.outline.layout
        work = 2.0 * half_entries(rows) * weights.num_weights + self.num_layers * (EIGEN_FLOPS + 2) * float(rows) ** 3
        return count * self.making + WIDE * work * self.num_rows / max(rows, 1)

    def block_bytes(self, block_size: int) -> tuple[float, float]:
        """Of a worker: all blocks of a shard, and three more of the one at hand; and of all blocks."""
        shards = [unit.cost for unit in self.protected.units(self.outline)]
        block = CORE_BYTES * self.num_layers * float(self._block_rows(block_size)) ** 2
        return block * (max(shards) / block_size + 3), block * sum(shards) / block_size

    def _block_rows(self, block_size: int) -> int:
        return min(block_size, self.protected.count(self.outline)) * self.rows_each

    def steps(self, choice: Choice, num_columns: int) -> int:
        """Expected; conjugate gradients end when their directions span all rows."""
        measured = MEASURED[choice]
        whole = -(-self.num_rows * self.num_layers // num_columns) + 1
        return min(measured.steps, whole) if choice.solver == "cg" else measured.steps

    def passes(self, choice: Choice, num_columns: int) -> int:
        """Expected, over the protected examples."""
        passes = 0 if choice.solver == "exact" else self.steps(choice, num_columns) * MEASURED[choice].passes_each
        return passes if choice.solver == "alternating" else passes + OVERHEAD

    def solve_flops(self, choice: Choice, num_columns: int, block_size: int, basis: int = 0) -> float:
        """Between the passes: triangular solves, or conjugate directions, kept conjugate to all before."""
        each, rows = float(self.num_rows), float(self.num_rows * self.num_layers)
        if choice.solver == "exact":  # twice three solves and two products
            return WIDE * self.num_layers * 20 * each**2 * num_columns
        steps = self.steps(choice, num_columns)
        blocks = WIDE * 2 * rows * self._block_rows(block_size) * num_columns
        if choice.solver == "alternating":
            return steps * blocks
        of_each = {
            "cholesky": 2 * self.num_layers * each**2 * num_columns,
            "nystrom": WIDE * 4 * rows * basis * num_columns,
            "sweep": 2 * blocks,
        }
        return WIDE * 10 * rows * num_columns**2 * steps**2 + steps * of_each.get(choice.preconditioner, 0.0)

    def dual_bytes(self, choice: Choice, num_columns: int, basis: int = 0) -> float:
        """Dual vectors, and what the solver holds beside them.

        Conjugate gradients keep N k of directions and as many of their images a step, and copy them once a step.
        """
        each, rows = float(self.num_rows), float(self.num_rows * self.num_layers)
        vectors = CORE_BYTES * rows * num_columns
        if choice.solver == "exact":
            system = 2 * CORE_BYTES * self.num_layers * each**2
            return 4 * vectors + (system if system <= self.outline.memory_gb * GB / 2 else 0.0)  # else read by tiles
        if choice.solver == "alternating":
            return 0.0
        of_each = {"cholesky": 4 * self.num_layers * each**2, "nystrom": 2 * CORE_BYTES * rows * basis}
        kept = 4 * self.steps(choice, num_columns) + 6
        return kept * vectors + of_each.get(choice.preconditioner, 0.0)


def half_entries(num_rows: int) -> float:
    """Of a symmetric product that is made by blocks of rows, up to the diagonal's."""
    return float(sum(min(ROWS, num_rows - top) * min(top + ROWS, num_rows) for top in range(0, num_rows, ROWS)))
