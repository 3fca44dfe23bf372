"""The fast backend: one forward pass that is watched, one backward pass for each cotangent to the layers' outputs only.

Rows are then matrix products of what each layer was given and the gradients at what it gave, made piece by piece and
contracted at once. Forward mode is not needed, so fused attention, reduced precision, checkpointing and layers on
several devices stay as they are. Per GGN column, the cost does not depend on the number of positions T:
2 P S per example and product, against 4 P T for a product by forward and reverse mode.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.layout import Tile
from afterfit.network.functional import Network
from afterfit.precision import CORE, state_dtype
from afterfit.resources import GB
from afterfit.rows.counts import by_columns, by_rows
from afterfit.rows.coverage import Coverage, coverage_of, wrong_blocks
from afterfit.rows.forward_mode import has_forward_mode, push_forward
from afterfit.rows.functional import FunctionalBackend, FunctionalRows
from afterfit.rows.protocol import Cotangents
from afterfit.rows.recording import Recording
from afterfit.rows.uses.lookup import Lookup
from afterfit.rows.uses.use import Use

SLICE_BYTES = 1 << 22
"""Of the explicit rows that are contracted at once; they stay in a cache."""
SLICE_SHARE = 0.1
"""Part of `memory_gb` that a slice never exceeds."""
KEPT_SHARE = 0.4
"""Part of `memory_gb` for explicit rows that a second verb finds ready."""
GRADIENTS_SHARE = 0.2
"""Part of `memory_gb` for the gradients at the layers' outputs, of as many cotangents as fit."""


def slice_bytes(memory_gb: float) -> int:
    """Of the explicit rows that are made and contracted at once."""
    return min(SLICE_BYTES, int(SLICE_SHARE * memory_gb * GB))


class TapeBackend:
    """Rows of one network. What has no rule is computed by reverse mode over the weights, and is told."""

    def __init__(self, network: Network, memory_gb: float = 2.0):
        self.network = network
        self.memory_gb = memory_gb
        self.forward_mode = has_forward_mode(network)
        self.leaves = {name: weight.detach().requires_grad_() for name, weight in network.weights.items()}
        self._wrong: dict[str, str] | None = None  # blocks that must not be taken from the tape; None: not checked yet
        self._free: list[Tensor] = []

    def rows(self, batch: Batch, cotangents: Cotangents) -> "TapeRows":
        """One forward pass; the rest when a verb asks for it. The first micro-batch is checked by reverse mode."""
        recording, outputs_BC = self._record(batch)
        cotangents_BSC = cotangents(outputs_BC.detach())
        if self._wrong is None and len(batch) > 1:
            num_outputs = outputs_BC.shape[1]
            mixed_C = torch.linspace(1, 2, num_outputs) * (1 - 2 * (torch.arange(num_outputs) % 2))
            mixed_B1C = mixed_C.to(outputs_BC).expand(len(batch), 1, num_outputs)
            checked = TapeRows(self, batch, recording, outputs_BC, mixed_B1C)
            self._wrong = wrong_blocks(self.network, checked, batch, mixed_B1C)
        recording.without_rule |= self._wrong or {}
        return TapeRows(self, batch, recording, outputs_BC, cotangents_BSC)

    def coverage(self, batch: Batch) -> Coverage:
        """Which weights have rules in a forward pass over these examples."""
        recording, _ = self._record(batch)
        return coverage_of(self.network, recording, len(batch))

    def _record(self, batch: Batch) -> tuple[Recording, Tensor]:
        originals = {name: weight for name, weight in self.network.module.named_parameters() if name in self.leaves}
        recording = Recording(self.leaves, len(batch), originals)
        with torch.enable_grad(), recording:
            recording.mark(batch.inputs)
            outputs_BC = self.network(batch.inputs, self.leaves)
        return recording, outputs_BC

    def borrow(self, owner: object, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for as long as `owner` lives: fresh pages cost as much as the products that fill them."""
        fitting = [
            number
            for number, buffer in enumerate(self._free)
            if buffer.numel() >= numel and buffer.dtype == dtype and buffer.device == device
        ]
        if fitting:
            buffer = self._free.pop(fitting[0])
        else:
            self._free.clear()
            buffer = torch.empty(numel, dtype=dtype, device=device)
        weakref.finalize(owner, self._free.append, buffer)
        return buffer[:numel]


class Slice(NamedTuple):
    """Some leading rows of a block, in a tile: what is explicit at once where rows are not kept."""

    block: str
    start: int
    stop: int
    place: slice  # in the tile
    offset: int  # in the layout


class TapeRows:
    """See `Rows`."""

    def __init__(
        self, backend: TapeBackend, batch: Batch, recording: Recording, outputs_BC: Tensor, cotangents_BSC: Tensor
    ):
        self.backend = backend
        self.batch = batch
        self.outputs_BC = outputs_BC.detach()
        self.cotangents_BSC = cotangents_BSC
        self.num_cotangents = cotangents_BSC.shape[1]
        self.dtype = state_dtype(backend.network.dtype)
        self.layout = backend.network.layout
        self._recording = recording
        self._root_BC = outputs_BC  # with its graph
        self._operands: dict[Use, Any] = {}
        self._kept: dict[int, tuple[Sequence[Use], Tensor]] = {}

    def parts(self) -> Iterator["TapeRows"]:
        """Runs of cotangents whose gradients fit the memory at once; these rows themselves where all do."""
        whole = sum(self._recording.sizes) * self.backend.network.dtype.itemsize
        at_once = max(1, int(GRADIENTS_SHARE * self.backend.memory_gb * GB // max(whole, 1)))
        if at_once >= self.num_cotangents:
            yield self
            return
        for cotangents_BsC in self.cotangents_BSC.split(at_once, dim=1):
            yield TapeRows(self.backend, self.batch, self._recording, self._root_BC, cotangents_BsC)

    def times(self, columns: Mapping[str, Tensor]) -> Tensor:
        """R V, (B, S, k): see `Rows.times`."""
        if self.backend.forward_mode and self._goes_by_columns(next(iter(columns.values())).shape[1]):
            return push_forward(self.backend.network, self.batch.inputs, self.cotangents_BSC, columns)
        return torch.cat([part._times(columns) for part in self.parts()], dim=1)

    def transpose_times(self, weights_BSk: Tensor, into: Mapping[str, Tensor]) -> None:
        """Adds R^T W: see `Rows.transpose_times`."""
        if self._goes_by_columns(weights_BSk.shape[2]):
            self._pull_back(weights_BSk, into)
            return
        first = 0
        for part in self.parts():
            part._transpose_times(weights_BSk[:, first : first + part.num_cotangents], into)
            first += part.num_cotangents

    def squares(self, into: Mapping[str, Tensor]) -> None:
        """Adds the sum of R*R: see `Rows.squares`."""
        for part in self.parts():
            part._squares(into)

    def gram(self) -> Tensor:
        """R_b R_b^T, (B, S, S): see `Rows.gram`."""
        size = (len(self.batch), self.num_cotangents, self.num_cotangents)
        total = torch.zeros(size, dtype=CORE, device=self.outputs_BC.device)
        for rows_BSp in self._all_rows():
            total += rows_BSp @ rows_BSp.mT
        return total

    def _all_rows(self) -> Iterator[Tensor]:
        """Every row, (B, S, p), some weights at a time."""
        if len(list(self.parts())) == 1:
            for piece in (piece for tile in self.layout.tiles for piece in self._slices(tile)):
                yield self._explicit(piece, self._uses(piece)).transpose(0, 1)
            return
        row_bytes = len(self.batch) * self.num_cotangents * self.dtype.itemsize
        for group in self.layout.groups(row_bytes, KEPT_SHARE * self.backend.memory_gb * GB):
            yield from (rows_BSP for _, rows_BSP in self.materialise(group))

    def materialise(self, tiles: Sequence[Tile]) -> Iterator[tuple[str, Tensor]]:
        """The columns of these tiles, all held at once: see `Rows.materialise`."""
        size = (len(self.batch), self.num_cotangents)
        rows = {
            tile.name: torch.empty(*size, tile.size, dtype=self.dtype, device=self.outputs_BC.device) for tile in tiles
        }
        first = 0
        for part in self.parts():
            chosen = slice(first, first + part.num_cotangents)
            for tile in tiles:
                for piece in part._slices(tile):
                    made_SBp = part._explicit(piece, part._uses(piece))
                    rows[tile.name][:, chosen, piece.place] = made_SBp.transpose(0, 1)
            first += part.num_cotangents
        yield from rows.items()

    def _goes_by_columns(self, num_columns: int) -> bool:
        """Whether a pass for each column is cheaper than one for each cotangent."""
        counts = self._recording.counts
        has_gradients = "_gradients" in self.__dict__
        rows = by_rows(counts, self.num_cotangents, num_columns, has_gradients=has_gradients, are_kept=bool(self._kept))
        return by_columns(counts, num_columns) < rows

    def _pull_back(self, weights_BSk: Tensor, into: Mapping[str, Tensor]) -> None:
        """Adds R^T W, a backward pass to the weights for each column of W."""
        root_BC, layout = self._root_BC, self.layout
        chosen = [tile for tile in layout.tiles if tile.name in into]
        leaves = {name: self.backend.leaves[name] for name in layout.blocks_of(chosen)}
        if not root_BC.requires_grad:
            return
        mixed_BCk = self.cotangents_BSC.to(self.dtype).mT @ weights_BSk.to(root_BC.device, self.dtype)
        for column, mixed_BC in enumerate(mixed_BCk.to(root_BC.dtype).unbind(2)):
            found = self._recording.gradients(root_BC, list(leaves.values()), mixed_BC)
            pairs = zip(leaves.items(), found, strict=True)
            gradients = {name: torch.zeros_like(leaf) if one is None else one for (name, leaf), one in pairs}
            for tile in chosen:
                target = into[tile.name]
                target[:, column] += layout.cut(gradients, tile).to(target)

    # Of one part.

    def _times(self, columns: Mapping[str, Tensor]) -> Tensor:
        size = (self.num_cotangents, len(self.batch), next(iter(columns.values())).shape[1])
        total = torch.zeros(size, dtype=CORE, device=self.outputs_BC.device)
        for tile in self.layout.tiles:
            columns_Pk = columns[tile.name].to(total.device, self.dtype)
            for piece in self._slices(tile):
                columns_pk = columns_Pk[piece.place]
                rows_SBp, direct = self._rows_of(piece, size[2])
                if rows_SBp is not None:
                    total += rows_SBp @ columns_pk
                for use in direct:
                    total += use.direct_times(self._at(use), piece.start, piece.stop, columns_pk)
        return total.transpose(0, 1)

    def _transpose_times(self, weights_BSk: Tensor, into: Mapping[str, Tensor]) -> None:
        weights_SBk = weights_BSk.to(self.outputs_BC.device, self.dtype).transpose(0, 1).contiguous()
        for tile, into_Pk in self._landing(into):
            for piece in self._slices(tile):
                into_pk = into_Pk[piece.place]
                rows_SBp, direct = self._rows_of(piece, weights_SBk.shape[2])
                if rows_SBp is not None:
                    torch.addmm(into_pk, rows_SBp.flatten(0, 1).T, weights_SBk.flatten(0, 1), out=into_pk)
                for use in direct:
                    use.direct_transpose(self._at(use), piece.start, piece.stop, weights_SBk, into_pk)

    def _squares(self, into: Mapping[str, Tensor]) -> None:
        for tile, into_P in self._landing(into):
            for piece in self._slices(tile):
                uses, into_p = self._uses(piece), into_P[piece.place]
                if len(uses) == 1 and isinstance(uses[0], Lookup):
                    uses[0].direct_squares(self._at(uses[0]), piece.start, piece.stop, into_p)
                elif uses or piece.block in self._recording.without_rule:
                    into_p += self._explicit(piece, uses).flatten(0, 1).square().sum(dim=0)

    def _landing(self, into: Mapping[str, Tensor]) -> Iterator[tuple[Tile, Tensor]]:
        """Tiles to add to, in the layout's order; those on another device by way of one on this."""
        for tile in self.layout.tiles:
            if tile.name not in into:
                continue
            target = into[tile.name]
            here = (
                target
                if target.device == self.outputs_BC.device
                else target.new_zeros(target.shape, device=self.outputs_BC.device)
            )
            yield tile, here
            if here is not target:
                target += here.to(target.device)

    def _slices(self, tile: Tile) -> Iterator[Slice]:
        """Pieces of a tile, cut so that a slice of all rows stays in a cache."""
        num_rows = len(self.batch) * self.num_cotangents
        place = 0
        for piece in tile.pieces:
            each = piece.size // max(piece.stop - piece.start, 1)
            step = max(1, slice_bytes(self.backend.memory_gb) // (num_rows * max(each, 1) * self.dtype.itemsize))
            for start in range(piece.start, piece.stop, step):
                stop = min(start + step, piece.stop)
                size = (stop - start) * each
                yield Slice(piece.block, start, stop, slice(place, place + size), tile.offset + place)
                place += size

    def _uses(self, piece: Slice) -> Sequence[Use]:
        """Those of its block; none where the outputs do not depend on it, or reverse mode makes its rows."""
        if piece.block in self._recording.without_rule:
            return []
        uses = self._recording.uses.get(piece.block, [])
        return [use for use in uses if self._reaches(use)]

    def _rows_of(self, piece: Slice, num_columns: int) -> tuple[Tensor | None, Sequence[Use]]:
        """Explicit rows, (S, B, size), and the uses that are contracted without."""
        uses = self._uses(piece)
        direct = [use for use in uses if use.counts.prefers_direct(self.num_cotangents, num_columns)]
        made = [use for use in uses if use not in direct]
        has_rows = made or piece.block in self._recording.without_rule
        return self._explicit(piece, made) if has_rows else None, direct

    def _explicit(self, piece: Slice, uses: Sequence[Use]) -> Tensor:
        """(S, B, size): made, or found ready."""
        if piece.block in self._recording.without_rule:
            return self._by_reverse_mode(piece)
        shape = (self.num_cotangents, len(self.batch), piece.place.stop - piece.place.start)
        kept = self._kept.get(piece.offset)
        if kept is not None and kept[0] == uses:
            return kept[1]
        num_rows = shape[0] * shape[1]
        start = piece.offset * num_rows if self._keeps else 0
        rows = self._buffer[start : start + num_rows * shape[2]].view(shape)
        if not uses:
            rows.zero_()
        for number, use in enumerate(uses):
            use.write(self._at(use), self._operand(use), piece.start, piece.stop, rows, add=number > 0)
        if self._keeps:
            self._kept[piece.offset] = (uses, rows)
        return rows

    @cached_property
    def _keeps(self) -> bool:
        """Whether explicit rows stay for a second verb."""
        num_rows = len(self.batch) * self.num_cotangents
        return num_rows * self.layout.num_weights * self.dtype.itemsize <= KEPT_SHARE * self.backend.memory_gb * GB

    @cached_property
    def _buffer(self) -> Tensor:
        """Where explicit rows are."""
        num_rows = len(self.batch) * self.num_cotangents
        widest = max(piece.place.stop - piece.place.start for tile in self.layout.tiles for piece in self._slices(tile))
        numel = num_rows * (self.layout.num_weights if self._keeps else widest)
        return self.backend.borrow(self, numel, self.dtype, self.outputs_BC.device)

    def _operand(self, use: Use) -> Any:
        """What the slices of a block share; of the last two uses."""
        if use not in self._operands:
            while len(self._operands) > 1:
                self._operands.pop(next(iter(self._operands)))
            self._operands[use] = use.operand(self.dtype)
        return self._operands[use]

    def _at(self, use: Use) -> Sequence[Tensor]:
        """For each cotangent, the gradient at the use's output."""
        found = [gradients[use.edge] for gradients in self._gradients]
        return [gradient for gradient in found if gradient is not None]

    def _reaches(self, use: Use) -> bool:
        """Whether the outputs depend on the use."""
        return bool(self._gradients) and self._gradients[0][use.edge] is not None

    @cached_property
    def _gradients(self) -> Sequence[Sequence[Tensor | None]]:
        """One backward pass for each cotangent, to the outputs of the layers and no further.

        One after another: batched by `vmap` they take as long on a CPU, and not everything can be batched.
        """
        outputs_BC, edges = self._root_BC, self._recording.edges
        if not outputs_BC.requires_grad or not edges:
            return []
        return [
            self._recording.gradients(outputs_BC, edges, cotangents_BC)
            for cotangents_BC in self.cotangents_BSC.to(outputs_BC).unbind(1)
        ]

    def _by_reverse_mode(self, piece: Slice) -> Tensor:
        """Rows of a block that has no rule."""
        rows = self._reverse
        group = next(
            group for group in rows.groups if group[0].offset <= piece.offset < group[-1].offset + group[-1].size
        )
        chosen = [tile for tile in group if any(part.block in self._recording.without_rule for part in tile.pieces)]
        tile = next(tile for tile in chosen if tile.offset + piece.place.start == piece.offset)
        return dict(rows.materialise(chosen))[tile.name][:, :, piece.place].transpose(0, 1)

    @cached_property
    def _reverse(self) -> FunctionalRows:
        backend = FunctionalBackend(self.backend.network, self.backend.memory_gb)
        return backend.rows(self.batch, lambda _: self.cotangents_BSC)
