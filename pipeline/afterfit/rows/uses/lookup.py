"""Embeddings: rows are zero but where an example's tokens point, so products go by tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.rows.counts import Counts
from afterfit.rows.uses.use import Gradients, Use


@dataclass(frozen=True, eq=False)
class Lookup(Use):
    """y = W[index]: rows are zero but where an example's tokens point."""

    index: Tensor  # (B, T)
    num_tokens: int
    width: int
    padding: int | None = None  # its row is never trained, and has no gradient

    def write(self, g_S: Gradients, operand: None, start: int, stop: int, into_SBp: Tensor, *, add: bool) -> None:
        """Dense rows: for Gram matrices and tests, no product needs them."""
        g_SBTd = self._gradients(g_S, into_SBp.dtype)
        rows = into_SBp.view(*into_SBp.shape[:2], stop - start, -1)
        if not add:
            rows.zero_()
        for b, chosen, places in self._tokens(start, stop):
            rows[:, b].index_add_(1, places, g_SBTd[:, b, chosen])

    @property
    def counts(self) -> Counts:
        """Rows are nearly all zeros, and never made for a product."""
        size = self.num_tokens * self.width
        return Counts(size, size, 0, self.index.shape[1] * self.width)

    def direct_times(self, g_S: Gradients, start: int, stop: int, columns_pk: Tensor) -> Tensor:
        """(S, B, k): only columns that tokens point at are read."""
        g_SBTd = self._gradients(g_S, columns_pk.dtype)
        columns = columns_pk.view(stop - start, -1, columns_pk.shape[1])
        total = columns_pk.new_zeros(len(g_S), len(self.index), columns_pk.shape[1])
        for b, chosen, places in self._tokens(start, stop):
            total[:, b] = g_SBTd[:, b, chosen].flatten(1) @ columns[places].flatten(0, 1)
        return total

    def direct_transpose(self, g_S: Gradients, start: int, stop: int, weights_SBk: Tensor, into_pk: Tensor) -> None:
        """Adds R^T W at the indexes that tokens point at."""
        g_SBTd = self._gradients(g_S, into_pk.dtype)
        into = into_pk.view(stop - start, -1, into_pk.shape[1])
        for b, chosen, places in self._tokens(start, stop):
            into.index_add_(0, places, torch.einsum("std,sk->tdk", g_SBTd[:, b, chosen], weights_SBk[:, b]))

    def direct_squares(self, g_S: Gradients, start: int, stop: int, into_p: Tensor) -> None:
        """Adds the sum of R*R: tokens that occur twice in an example add up before they are squared."""
        g_SBTd = self._gradients(g_S, into_p.dtype)
        into = into_p.view(stop - start, -1)
        for b, chosen, places in self._tokens(start, stop):
            found, inverse = places.unique(return_inverse=True)
            total = g_SBTd.new_zeros(len(g_S), len(found), g_SBTd.shape[-1])
            total.index_add_(1, inverse, g_SBTd[:, b, chosen])
            into.index_add_(0, found, total.square().sum(dim=0))

    def _gradients(self, g_S: Gradients, dtype: torch.dtype) -> Tensor:
        return torch.stack([g.to(dtype).reshape(*self.index.shape, -1) for g in g_S])

    def _tokens(self, start: int, stop: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Example, positions whose tokens lie in the range, and these tokens counted from its start."""
        inside = (self.index >= start) & (self.index < stop)
        if self.padding is not None:
            inside &= self.index != self.padding
        for b in range(len(self.index)):
            chosen = inside[b].nonzero()[:, 0]
            if len(chosen):
                yield b, chosen, self.index[b, chosen] - start
