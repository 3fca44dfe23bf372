"""What one use of a block makes of the gradients at its output.

S cotangents, B examples, T positions. A use is given g, for each cotangent the gradient at its output, and writes
rows of its block between two leading indexes of it: (S, B, size). Where contracting with columns first takes fewer
multiplications, the direct verbs do that without any rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afterfit.rows.counts import Counts

Gradients = Sequence[Tensor]
"""For each cotangent, the gradient at an output, shaped like it."""


@dataclass(frozen=True, eq=False)
class Use:
    """One use of one block."""

    block: str
    edge: int  # number of the place in the graph whose gradient is needed

    def narrowed(self, g_S: Gradients) -> tuple["Use", Gradients]:
        """The same with fewer positions, where the gradients of the others are zero."""
        return self, g_S

    def operand(self, dtype: torch.dtype, num_cotangents: int) -> Any:
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
        torch.baddbmm(into_Boi, left_BoT, right_BTi, out=into_Boi)
    else:
        torch.bmm(left_BoT, right_BTi, out=into_Boi)


def put(made: Tensor, into: Tensor, *, add: bool) -> None:
    """Over what is there, or added to it."""
    if add:
        into += made
    else:
        into.copy_(made)
