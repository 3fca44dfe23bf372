"""Weights that were copied for each example: class tokens, positions, norms and scales written by hand."""

from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.rows.counts import Counts
from afterfit.rows.uses.use import Gradients, Use, put


@dataclass(frozen=True, eq=False)
class Spread(Use):
    """A weight that was copied for each example: the gradient at its copies is the row."""

    leaf: Tensor
    made: Tensor | None = None  # the tensor that was copied, where that was made from the weight

    def write(self, g_S: Gradients, operand: None, start: int, stop: int, into_SBp: Tensor, *, add: bool) -> None:
        """Sums over what an example's copy was spread over, then back through what was made of the weight."""
        copied = self.leaf if self.made is None else self.made
        shape = g_S[0].shape[1:]  # of one example's copy
        own = copied.shape[1:] if copied.dim() > len(shape) else (1,) * (len(shape) - copied.dim()) + copied.shape
        rows = torch.stack([g.sum_to_size(into_SBp.shape[1], *own) for g in g_S])
        if self.made is not None:
            vectors = rows.reshape(-1, *self.made.shape)
            (rows,) = torch.autograd.grad(self.made, self.leaf, vectors, retain_graph=True, is_grads_batched=True)
        whole = rows.to(into_SBp.dtype).reshape(*into_SBp.shape[:2], *(self.leaf.shape or (1,)))
        put(whole[:, :, start:stop].flatten(2), into_SBp, add=add)

    @property
    def counts(self) -> Counts:
        """Rows are at hand."""
        return Counts(self.leaf.numel())
