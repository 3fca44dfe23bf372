"""The reference backend: rows of any module by plain reverse mode over a functional view of it.

One example at a time, all of its cotangents in one batched backward pass. That takes whatever autograd takes
(fused attention, data-dependent masks, checkpointing), needs no per-example rule for any layer, and on a CPU
is no slower than `vmap` over examples (ResNet-20, one thread: 17.9 against 13.7 images a second).
"""

from collections.abc import Container, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.layout import Tile
from afterfit.network.functional import Network
from afterfit.precision import CORE, state_dtype
from afterfit.resources import GB
from afterfit.rows.forward_mode import has_forward_mode, push_forward
from afterfit.rows.mixed import Passes, lowered
from afterfit.rows.protocol import Cotangents

ROWS_SHARE = 0.5
"""Part of `memory_gb` that explicit rows may take; the rest is for the model, activations and columns."""
PASS_SHARE = 0.25
"""Part of that for the gradients of one backward pass: autograd gives whole blocks, where a group may hold a part."""


class FunctionalBackend:
    """Rows by reverse mode; products by forward mode where it agrees and columns are few."""

    def __init__(self, network: Network, memory_gb: float = 2.0, arithmetic: Arithmetic = PLAIN):
        self.passes = Passes(network, arithmetic)
        self.budget = ROWS_SHARE * memory_gb * GB
        self.forward_mode = has_forward_mode(self.passes)

    def rows(self, batch: Batch, cotangents: Cotangents) -> "FunctionalRows":
        """The rows of a micro-batch, computed when a verb asks for them."""
        with torch.no_grad():
            outputs_BC = self.passes.forward(batch.inputs)
        return self.rows_at(batch, outputs_BC, cotangents(outputs_BC))

    def rows_at(self, batch: Batch, outputs_BC: Tensor, cotangents_BSC: Tensor) -> "FunctionalRows":
        """The same, where the outputs are known already."""
        return FunctionalRows(self.passes, batch, outputs_BC, cotangents_BSC, self.budget, self.forward_mode)


class FunctionalRows:
    """See `Rows`. A verb costs one forward and S backward passes for each group of tiles.

    The last group stays explicit, so that a second verb on a network of one group costs only its product.
    """

    def __init__(
        self,
        passes: Passes,
        batch: Batch,
        outputs_BC: Tensor,
        cotangents_BSC: Tensor,
        budget: float,
        forward_mode: bool,
    ):
        self.passes = passes
        self.network = network = passes.network
        self.batch = batch
        self.outputs_BC = outputs_BC
        self.cotangents_BSC = cotangents_BSC
        self.num_cotangents = cotangents_BSC.shape[1]
        self.dtype = state_dtype(network.dtype)
        self.forward_mode = forward_mode
        self.pass_bytes = PASS_SHARE * budget
        row_bytes = len(batch) * self.num_cotangents * self.dtype.itemsize
        self.groups = network.layout.groups(row_bytes, budget)
        self._explicit: dict[str, Tensor] = {}

    def parts(self, num_columns: int) -> Iterator["FunctionalRows"]:
        """All rows at once: an example's passes are its own."""
        yield self

    def times(self, columns: Mapping[str, Tensor]) -> Tensor:
        """R V, (B, S, k): see `Rows.times`."""
        num_columns = next(iter(columns.values())).shape[1]
        if self.forward_mode and num_columns < self.num_cotangents:
            return push_forward(self.network, self.batch.inputs, self.cotangents_BSC, columns)
        total = torch.zeros(
            len(self.batch), self.num_cotangents, num_columns, dtype=CORE, device=self.outputs_BC.device
        )
        for name, rows_BSP in self._every_tile():
            total += rows_BSP @ columns[name].to(rows_BSP)
        return total

    def transpose_times(self, weights_BSk: Tensor, into: Mapping[str, Tensor]) -> None:
        """Adds R^T W: see `Rows.transpose_times`."""
        weights_Rk = weights_BSk.to(self.outputs_BC.device, self.dtype).flatten(0, 1)
        for name, rows_BSP in self._every_tile(into):
            into[name].add_((rows_BSP.flatten(0, 1).T @ weights_Rk).to(into[name].device))

    def gram(self) -> Tensor:
        """R_b R_b^T, (B, S, S): see `Rows.gram`."""
        size = (len(self.batch), self.num_cotangents, self.num_cotangents)
        total = torch.zeros(size, dtype=CORE, device=self.outputs_BC.device)
        for _, rows_BSP in self._every_tile():
            total += rows_BSP @ rows_BSP.mT
        return total

    def squares(self, into: Mapping[str, Tensor]) -> None:
        """Adds the sum of R*R: see `Rows.squares`."""
        for name, rows_BSP in self._every_tile(into):
            into[name].add_(rows_BSP.square().sum(dim=(0, 1)).to(into[name].device))

    def materialise(self, tiles: Sequence[Tile]) -> Iterator[tuple[str, Tensor]]:
        """The columns of these tiles: see `Rows.materialise`."""
        return self._every_tile({tile.name for tile in tiles})

    def _every_tile(self, wanted: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        for group in self.groups:
            chosen = [tile for tile in group if wanted is None or tile.name in wanted]
            if chosen:
                yield from self._explicit_rows(chosen).items()

    def _explicit_rows(self, tiles: Sequence[Tile]) -> dict[str, Tensor]:
        """(B, S, P_tile) of these tiles, by one forward and one batched backward pass an example.

        Where the whole gradients of the blocks that the tiles lie in are too large, a pass takes fewer cotangents.
        """
        if all(tile.name in self._explicit for tile in tiles):
            return {tile.name: self._explicit[tile.name] for tile in tiles}
        self._explicit = {}  # let the former group go before this one is allocated
        network, layout = self.network, self.network.layout
        shape = (len(self.batch), self.num_cotangents)
        device = self.outputs_BC.device
        rows = {tile.name: torch.zeros(*shape, tile.size, dtype=self.dtype, device=device) for tile in tiles}
        leaves = {name: network.weights[name].detach().requires_grad_() for name in layout.blocks_of(tiles)}
        at_once = max(1, int(self.pass_bytes // sum(leaf.nbytes for leaf in leaves.values())))
        for b in range(len(self.batch)):
            example = {key: value[b : b + 1] for key, value in self.batch.inputs.items()}
            with torch.enable_grad():
                output_1C = self.passes.forward(example, leaves)
            raised_SC, exponents_S = self.passes.raised(self.cotangents_BSC[b].to(output_1C))
            for first in range(0, self.num_cotangents, at_once):
                part = slice(first, min(first + at_once, self.num_cotangents))
                keep_graph = part.stop < self.num_cotangents
                of_block = _gradients(output_1C, raised_SC[part, None], leaves, keep_graph=keep_graph)
                if exponents_S is not None:
                    of_block = {
                        name: None if found is None else lowered(found, exponents_S[part])
                        for name, found in of_block.items()
                    }
                for tile in tiles:
                    _cut(of_block, tile, rows[tile.name][b, part])
        self._explicit = rows
        return rows


def _cut(of_block: Mapping[str, Tensor | None], tile: Tile, into_SP: Tensor) -> None:
    """Copy what lies in a tile; what the output does not depend on stays zero."""
    start = 0
    for piece in tile.pieces:
        block_S = of_block[piece.block]
        if block_S is not None:
            cut = block_S[:, piece.start : piece.stop] if block_S.dim() > 1 else block_S
            into_SP[:, start : start + piece.size] = cut.reshape(len(into_SP), -1)
        start += piece.size


def _gradients(
    output_1C: Tensor, cotangents_S1C: Tensor, leaves: Mapping[str, Tensor], *, keep_graph: bool
) -> dict[str, Tensor | None]:
    """Block name -> (S, *block), or None for a block that the output does not depend on."""
    if not output_1C.requires_grad:
        return dict.fromkeys(leaves)
    if len(cotangents_S1C) == 1:  # one row needs no batching, which costs more than a small network's own pass
        single = torch.autograd.grad(
            output_1C, list(leaves.values()), cotangents_S1C[0], retain_graph=keep_graph, allow_unused=True
        )
        gradients = [None if gradient is None else gradient[None] for gradient in single]
        return dict(zip(leaves, gradients, strict=True))
    # Not `materialize_grads`: it fills in zeros without the dimension S.
    gradients = torch.autograd.grad(
        output_1C,
        list(leaves.values()),
        cotangents_S1C,
        retain_graph=keep_graph,
        is_grads_batched=True,
        allow_unused=True,
    )
    return dict(zip(leaves, gradients, strict=True))
