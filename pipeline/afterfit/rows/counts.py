"""What products with rows cost, counted in multiplications of one example: how the tape chooses a way.

S cotangents, k columns. A product goes by rows: a backward pass for each cotangent, rows made and contracted, or
what they are made of contracted without them, block by block. Or it goes by columns: a pass forward or back for
each, as a Jacobian-vector product takes; that is cheaper where columns are few.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Counts(NamedTuple):
    """Of one use of a block.

    Attributes:
        size: numbers of the block; S k times that contract rows with columns.
        made: S times that make the rows.
        direct: k times that, and
        crossed: S k times that contract without rows; None where that cannot be done.
    """

    size: int
    made: int = 0
    direct: int = 0
    crossed: int | None = None

    def prefers_direct(self, num_cotangents: int, num_columns: int) -> bool:
        """Whether contracting without rows takes fewer."""
        return self._without_rows(num_cotangents, num_columns) < self._with_rows(num_cotangents, num_columns)

    def contracted(self, num_cotangents: int, num_columns: int, *, are_kept: bool) -> float:
        """By the cheaper way; `are_kept` says that where rows are made, they are there already."""
        if self.prefers_direct(num_cotangents, num_columns):
            return self._without_rows(num_cotangents, num_columns)
        made = num_cotangents * self.made if are_kept else 0
        return self._with_rows(num_cotangents, num_columns) - made

    def _with_rows(self, num_cotangents: int, num_columns: int) -> float:
        return num_cotangents * (self.made + num_columns * self.size)

    def _without_rows(self, num_cotangents: int, num_columns: int) -> float:
        if self.crossed is None:
            return math.inf
        return num_columns * (self.direct + num_cotangents * self.crossed)


def by_rows(
    counts: Sequence[Counts],
    passed: float,
    num_cotangents: int,
    num_columns: int,
    *,
    has_gradients: bool = False,
    are_kept: bool = False,
) -> float:
    """Of R V or R^T W: the backward passes, unless that was done, and the contraction.

    Args:
        counts: of every use.
        passed: in a forward pass, and as many in a backward pass to the activations, or in one to the weights.
        num_cotangents: S.
        num_columns: k.
        has_gradients: whether the backward passes were done.
        are_kept: whether rows that are made are there already.
    """
    passes = 0 if has_gradients else num_cotangents * passed
    return passes + sum(each.contracted(num_cotangents, num_columns, are_kept=are_kept) for each in counts)


def pushed(passed: float, num_columns: int) -> float:
    """Of R V by forward mode: a pass for each column, of the value and its derivative through inputs and weights."""
    return 3 * num_columns * passed


def pulled(passed: float, num_columns: int) -> float:
    """Of R^T W: a backward pass for each column, to the activations and to the weights."""
    return 2 * num_columns * passed


def both_ways(
    counts: Sequence[Counts], passed: float, num_cotangents: int, num_columns: int, *, are_kept: bool
) -> tuple[float, float]:
    """Of R^T R V, by rows and by columns; `are_kept` says whether rows stay for the second product."""
    first = by_rows(counts, passed, num_cotangents, num_columns)
    second = by_rows(counts, passed, num_cotangents, num_columns, has_gradients=True, are_kept=are_kept)
    return first + second, pushed(passed, num_columns) + pulled(passed, num_columns)
