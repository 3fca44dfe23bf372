"""Norms and biases: a weight along the last dimensions, or the channels, of an output."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.rows.counts import Counts
from afterfit.rows.uses.use import Gradients, Use, put


@dataclass(frozen=True, eq=False)
class Scale(Use):
    """y = x^ * w (or y = ... + w, without x^), w along the last dimensions or along dimension 1 of y."""

    shape: tuple[int, ...]  # of the block
    along_channels: bool = False
    inputs: Tensor | None = None  # x; None for a bias
    normalise: Callable[[Tensor], Tensor] | None = None  # from x to x^, which is made again when it is needed

    def operand(self, dtype: torch.dtype, num_cotangents: int) -> Tensor | None:
        """x^."""
        if self.inputs is None or self.normalise is None:
            return None
        return self.normalise(self.inputs).to(dtype)

    def write(
        self, g_S: Gradients, operand: Tensor | None, start: int, stop: int, into_SBp: Tensor, *, add: bool
    ) -> None:
        """Sums over all but the examples and the weight's own dimensions."""
        inner = math.prod(g_S[0].shape[2:]) if self.along_channels else 1
        shape = (into_SBp.shape[1], -1, math.prod(self.shape), inner)
        for g, into_Bp in zip(g_S, into_SBp, strict=True):
            scaled = g.to(into_Bp.dtype)
            scaled = scaled if operand is None else scaled * operand
            whole_Bx = scaled.reshape(shape).sum(dim=(1, 3))
            put(whole_Bx.unflatten(1, self.shape)[:, start:stop].flatten(1), into_Bp, add=add)

    @property
    def counts(self) -> Counts:
        """Rows are small, and their making is a sum."""
        return Counts(math.prod(self.shape))
