"""Linear layers: rows are sums of outer products over the positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.rows.counts import Counts
from afterfit.rows.uses.use import Gradients, Use, products

DIRECT_BYTES = 1 << 25
"""What a direct product may hold at once beside its operands."""


@dataclass(frozen=True, eq=False)
class Outer(Use):
    """y = a W^T over T positions: rows are sums of outer products g a^T. `transposed`: W is (in, out)."""

    inputs: Tensor  # (B, T, in)
    num_outputs: int
    transposed: bool = False

    def operand(self, dtype: torch.dtype) -> Tensor:
        """A."""
        return self.inputs.to(dtype)

    def write(self, g_S: Gradients, operand: Tensor, start: int, stop: int, into_SBp: Tensor, *, add: bool) -> None:
        """One batched product for each cotangent, over the positions."""
        num_examples, _, num_inputs = operand.shape
        for g, into_Bp in zip(g_S, into_SBp, strict=True):
            g_BTo = g.to(operand.dtype).reshape(num_examples, -1, self.num_outputs)
            if self.transposed:
                into_Bio = into_Bp.view(num_examples, stop - start, self.num_outputs)
                products(operand[:, :, start:stop].mT, g_BTo, into_Bio, add=add)
            else:
                into_Boi = into_Bp.view(num_examples, stop - start, num_inputs)
                products(g_BTo[:, :, start:stop].mT, operand, into_Boi, add=add)

    @property
    def counts(self) -> Counts:
        """Without rows it is cheaper for few positions, or for many cotangents and few columns."""
        positions, num_inputs = self.inputs.shape[1:]
        work = positions * num_inputs * self.num_outputs
        leading = num_inputs if self.transposed else self.num_outputs
        return Counts(num_inputs * self.num_outputs, work, work, positions * leading)

    def direct_times(self, g_S: Gradients, start: int, stop: int, columns_pk: Tensor) -> Tensor:
        """(S, B, k) for columns of the leading indexes start to stop, (size, k)."""
        num_examples = len(self.inputs)
        dtype, num_columns = columns_pk.dtype, columns_pk.shape[1]
        g_SBTo = self._gradients(g_S, num_examples, dtype)
        if self.transposed:  # (in, out, k): g meets the columns first
            inner, outer = g_SBTo, self.inputs[:, :, start:stop].to(dtype)
            columns_xyk = columns_pk.view(stop - start, -1, num_columns)
            total = columns_pk.new_zeros(len(g_SBTo), num_examples, num_columns)
            for row in range(stop - start):
                moved_SBTk = inner @ columns_xyk[row]
                total += torch.einsum("sbtk,bt->sbk", moved_SBTk, outer[:, :, row])
            return total
        columns_oik = columns_pk.view(stop - start, -1, num_columns)
        a_Xi = self.inputs.to(dtype).flatten(0, 1)
        at_once = max(1, DIRECT_BYTES // (len(a_Xi) * num_columns * dtype.itemsize))
        total = columns_pk.new_zeros(num_examples, len(g_SBTo), num_columns)
        for first in range(0, stop - start, at_once):
            part = columns_oik[first : first + at_once]
            moved_Xok = (a_Xi @ part.transpose(0, 1).reshape(part.shape[1], -1)).view(num_examples, -1, num_columns)
            g_BSx = g_SBTo[..., start + first : start + first + len(part)].transpose(0, 1).flatten(2)
            total += torch.bmm(g_BSx, moved_Xok)
        return total.transpose(0, 1)

    def direct_transpose(self, g_S: Gradients, start: int, stop: int, weights_SBk: Tensor, into_pk: Tensor) -> None:
        """Adds R^T W of the leading indexes start to stop."""
        num_examples = len(self.inputs)
        dtype, num_columns = into_pk.dtype, into_pk.shape[1]
        g_SBTo = self._gradients(g_S, num_examples, dtype)
        a_BTi = self.inputs.to(dtype)
        into_xyk = into_pk.view(stop - start, -1, num_columns)
        if self.transposed:
            mixed_BTok = torch.einsum("sbto,sbk->btok", g_SBTo, weights_SBk)
            a_Xi = a_BTi[:, :, start:stop].flatten(0, 1)
            into_xyk += (a_Xi.T @ mixed_BTok.flatten(0, 1).flatten(1)).view_as(into_xyk)
            return
        a_Xi = a_BTi.flatten(0, 1)
        at_once = max(1, DIRECT_BYTES // (len(a_Xi) * num_columns * dtype.itemsize))
        for first in range(0, stop - start, at_once):
            last = min(first + at_once, stop - start)
            g_BxS = g_SBTo[..., start + first : start + last].permute(1, 2, 3, 0).flatten(1, 2)
            mixed_Xy = torch.bmm(g_BxS, weights_SBk.transpose(0, 1)).view(len(a_Xi), -1)
            into_xyk[first:last] += (mixed_Xy.T @ a_Xi).view(last - first, num_columns, -1).transpose(1, 2)

    def _gradients(self, g_S: Gradients, num_examples: int, dtype: torch.dtype) -> Tensor:
        return torch.stack([g.to(dtype).reshape(num_examples, -1, self.num_outputs) for g in g_S])
