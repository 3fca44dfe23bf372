"""Linear layers: rows are sums of outer products over the positions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afterfit.rows.counts import Counts
from afterfit.rows.uses.use import Gradients, Use, products

DIRECT_BYTES = 1 << 25
"""What a direct product may hold at once beside its operands."""
PROBED = 16
"""Numbers of a gradient that show that a position has one."""


@dataclass(frozen=True, eq=False)
class Outer(Use):
    """y = a W^T over T positions: rows are sums of outer products g a^T. `transposed`: W is (in, out)."""

    inputs: Tensor  # (B, T, in)
    num_outputs: int
    transposed: bool = False

    def narrowed(self, g_S: Gradients) -> tuple[Use, Gradients]:
        """Without the positions on which no output depends: above the last attention, a classifier reads one token."""
        num_examples, positions, _ = self.inputs.shape
        g_SBTo = [g.reshape(num_examples, positions, -1) for g in g_S]
        if _live(g_SBTo[0][..., :PROBED]).all():  # seen at once, as nearly always
            return self, g_S
        live_T = _live(g_SBTo[0])
        for g_BTo in g_SBTo[1:]:
            live_T |= _live(g_BTo)
        live_T[0] |= not live_T.any()
        chosen = live_T.nonzero()[:, 0]
        if 2 * len(chosen) > positions:  # not worth a copy of the gradients
            return self, g_S
        return replace(self, inputs=self.inputs[:, chosen]), [g_BTo[:, chosen] for g_BTo in g_SBTo]

    def sides(self, g_S: Gradients, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Of one cotangent and one position: what the rows are outer products of, if that is fewer numbers."""
        a_Bi, g_Bo = self.inputs.flatten(1), g_S[0].reshape(len(self.inputs), -1)
        if self.inputs.shape[1] != 1:
            return None
        left, right = (a_Bi[:, start:stop], g_Bo) if self.transposed else (g_Bo[:, start:stop], a_Bi)
        return (left, right) if left.shape[1] + right.shape[1] < left.shape[1] * right.shape[1] else None

    def operand(self, dtype: torch.dtype, num_cotangents: int) -> Tensor:
        """The inputs a."""
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
        return Counts(num_inputs * self.num_outputs, work, work, positions * self.num_outputs)

    def direct_times(self, g_S: Gradients, start: int, stop: int, columns_pk: Tensor) -> Tensor:
        """The columns meet the inputs first, some outputs at a time."""
        num_examples, num_columns = len(self.inputs), columns_pk.shape[1]
        columns_oik, a_Xi, g_SBTo = self._oriented(g_S, start, stop, columns_pk)
        total = columns_pk.new_zeros(num_examples, len(g_SBTo), num_columns)
        for outputs in self._chunks(columns_oik, len(a_Xi)):
            part_oik = columns_oik[outputs]
            moved_Xy = a_Xi @ part_oik.transpose(0, 1).reshape(a_Xi.shape[1], -1)
            g_BSx = g_SBTo[..., outputs].transpose(0, 1).flatten(2)
            total += torch.bmm(g_BSx, moved_Xy.view(num_examples, -1, num_columns))
        return total.transpose(0, 1)

    def direct_transpose(self, g_S: Gradients, start: int, stop: int, weights_SBk: Tensor, into_pk: Tensor) -> None:
        """The weights meet the gradients first, some outputs at a time."""
        into_oik, a_Xi, g_SBTo = self._oriented(g_S, start, stop, into_pk)
        weights_BSk = weights_SBk.transpose(0, 1)
        for outputs in self._chunks(into_oik, len(a_Xi)):
            g_BxS = g_SBTo[..., outputs].permute(1, 2, 3, 0).flatten(1, 2)
            mixed_Xy = torch.bmm(g_BxS, weights_BSk).view(len(a_Xi), -1)
            into_oik[outputs] += (mixed_Xy.T @ a_Xi).unflatten(0, (-1, into_oik.shape[2])).transpose(1, 2)

    def _oriented(self, g_S: Gradients, start: int, stop: int, numbers_pk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views with the outputs first, whichever way the weight lies: (out, in, k), a (B T, in), g (S, B, T, out)."""
        num_examples, dtype = len(self.inputs), numbers_pk.dtype
        numbers_xyk = numbers_pk.view(stop - start, -1, numbers_pk.shape[1])
        g_SBTo = torch.stack([g.to(dtype).reshape(num_examples, -1, self.num_outputs) for g in g_S])
        a_Xi = self.inputs.to(dtype).flatten(0, 1)
        if self.transposed:
            return numbers_xyk.transpose(0, 1), a_Xi[:, start:stop], g_SBTo
        return numbers_xyk, a_Xi, g_SBTo[..., start:stop]

    def _chunks(self, numbers_oik: Tensor, num_positions: int) -> Iterator[slice]:
        """Outputs whose products with all positions fit DIRECT_BYTES."""
        each = num_positions * numbers_oik.shape[2] * numbers_oik.element_size()
        step = max(1, DIRECT_BYTES // each)
        return (slice(first, first + step) for first in range(0, len(numbers_oik), step))


def _live(g_BTo: Tensor) -> Tensor:
    """Positions (T,) with a gradient in some example."""
    return (g_BTo != 0).any(dim=2).any(dim=0)
