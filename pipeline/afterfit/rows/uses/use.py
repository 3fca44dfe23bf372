"""What one use of a block makes of the gradients at its output.

S cotangents, B examples, T positions. A use is given g, for each cotangent the gradient at its output, and writes
rows of its block between two leading indexes of it: (S, B, size). Where contracting with columns first takes fewer
multiplications, the direct verbs do that without any rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Gradients = Sequence[Tensor]
"""For each cotangent, the gradient at an output, shaped like it."""


class Counts(NamedTuple):
    """Multiplications of one example, for S cotangents and k columns.

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
        return self.without_rows(num_cotangents, num_columns) < self.with_rows(num_cotangents, num_columns)

    def with_rows(self, num_cotangents: int, num_columns: int, *, are_kept: bool = False) -> float:
        """To make rows, unless they are there already, and contract them."""
        return num_cotangents * ((0 if are_kept else self.made) + num_columns * self.size)

    def without_rows(self, num_cotangents: int, num_columns: int) -> float:
        """To contract what the rows are made of."""
        if self.crossed is None:
            return math.inf
        return num_columns * (self.direct + num_cotangents * self.crossed)


@dataclass(frozen=True, eq=False)
class Use:
    """One use of one block."""

    block: str
    edge: int  # number of the place in the graph whose gradient is needed

    def operand(self, dtype: torch.dtype) -> Any:
        """What all rows of the block have in common; made once for several slices."""
        return None

    def write(self, g_S: Gradients, operand: Any, start: int, stop: int, into_SBp: Tensor, *, add: bool) -> None:
        """Rows of the block's leading indexes start to stop, over what is there or added to it."""
        raise NotImplementedError

    @property
    def counts(self) -> Counts:
        """What its products cost."""
        raise NotImplementedError

    def direct_times(self, g_S: Gradients, start: int, stop: int, columns_pk: Tensor) -> Tensor:
        """R V of the leading indexes start to stop, (S, B, k)."""
        raise NotImplementedError

    def direct_transpose(self, g_S: Gradients, start: int, stop: int, weights_SBk: Tensor, into_pk: Tensor) -> None:
        """Adds R^T W of the leading indexes start to stop."""
        raise NotImplementedError


def products(left_BoT: Tensor, right_BTi: Tensor, into_Boi: Tensor, *, add: bool) -> None:
    """Batched products over what is there, or added to it."""
    if add:
        into_Boi.baddbmm_(left_BoT, right_BTi)
    else:
        torch.bmm(left_BoT, right_BTi, out=into_Boi)


def put(made: Tensor, into: Tensor, *, add: bool) -> None:
    """Over what is there, or added to it."""
    if add:
        into += made
    else:
        into.copy_(made)
