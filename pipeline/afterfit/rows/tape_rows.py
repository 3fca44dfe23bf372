"""The rows of one micro-batch from its recorded forward pass: made piece by piece, and contracted at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.errors import NetworkError
from afterfit.layout import Tile
from afterfit.precision import CORE, state_dtype
from afterfit.resources import GB
from afterfit.rows.counts import Counts, both_ways, by_rows, pulled, pushed
from afterfit.rows.forward_mode import push_forward
from afterfit.rows.functional import FunctionalBackend, FunctionalRows
from afterfit.rows.mixed import lowered
from afterfit.rows.planning import KEPT_SHARE, cotangents_at_once, slice_bytes
from afterfit.rows.recording import Recording
from afterfit.rows.slices import Slice, pieces_of
from afterfit.rows.uses.lookup import Lookup
from afterfit.rows.uses.outer import Outer
from afterfit.rows.uses.use import Gradients, Use

if TYPE_CHECKING:
    from afterfit.rows.tape import TapeBackend


class _ByReverseMode(Use):
    """Stands for the uses of a block for which there is no rule."""

    @property
    def counts(self) -> Counts:
        return Counts(0)


_BY_REVERSE_MODE = _ByReverseMode("", -1)


class TapeRows:
    """See `Rows`."""

    def __init__(
        self,
        backend: TapeBackend,
        batch: Batch,
        recording: Recording,
        outputs_BC: Tensor,
        cotangents_BSC: Tensor,
        *,
        by_columns: bool | None = None,
    ):
        self.backend = backend
        self.batch = batch
        self.outputs_BC = outputs_BC.detach()
        self.cotangents_BSC = cotangents_BSC
        self.num_cotangents = cotangents_BSC.shape[1]
        self.dtype = state_dtype(backend.network.dtype)
        self.layout = backend.network.layout
        self._contract = backend.contractions
        self._by_columns = by_columns  # None: each product as is cheaper for it alone
        self._recording = recording
        self._root_BC = outputs_BC  # with its graph
        self._operands: dict[Use, Any] = {}
        self._buffers: dict[torch.device, Tensor] = {}
        self._kept: dict[int, tuple[Sequence[Use], Tensor]] = {}

    def parts(self, num_columns: int) -> Iterator[TapeRows]:
        """Runs of cotangents that fit the memory at once, with the rows that several verbs share.

        Passes for each column serve all cotangents, so then there is one run.
        """
        at_once = self._at_once(keeps=True)
        is_kept = self._fits(at_once)
        rows, columns = both_ways(*self._work, self.num_cotangents, num_columns, are_kept=is_kept)
        is_by_columns = columns < rows and self.backend.has_forward_mode(self.batch)
        return self._split_up(self.num_cotangents if is_by_columns else at_once, by_columns=is_by_columns)

    def _runs(self) -> Iterator[TapeRows]:
        """Runs of cotangents whose gradients fit the memory; these rows themselves where all do."""
        at_once = self._at_once(keeps=False)
        return iter((self,)) if at_once >= self.num_cotangents else self._split_up(at_once)

    def _split_up(self, at_once: int, *, by_columns: bool | None = None) -> Iterator[TapeRows]:
        given = (self.backend, self.batch, self._recording, self._root_BC)
        return (TapeRows(*given, part, by_columns=by_columns) for part in self.cotangents_BSC.split(at_once, dim=1))

    def _at_once(self, *, keeps: bool) -> int:
        """Cotangents of a run; `keeps` says whether explicit rows are to stay."""
        return cotangents_at_once(
            len(self.batch),
            self.num_cotangents,
            self.backend.memory_gb,
            row_bytes=len(self.batch) * self.layout.num_weights * self.dtype.itemsize if keeps else 0,
            gradient_bytes=sum(self._recording.sizes) * self.dtype.itemsize,
        )

    def _fits(self, num_cotangents: int) -> bool:
        """Whether the explicit rows of so many may stay."""
        num_rows = len(self.batch) * num_cotangents
        return num_rows * self.layout.num_weights * self.dtype.itemsize <= KEPT_SHARE * self.backend.memory_gb * GB

    @property
    def _work(self) -> tuple[Sequence[Counts], float]:
        """What products take for one example."""
        return self._recording.counts, self._recording.passed / len(self.batch)

    def times(self, columns: Mapping[str, Tensor]) -> Tensor:
        """R V, (B, S, k): see `Rows.times`."""
        num_columns = next(iter(columns.values())).shape[1]
        if self._goes_by_columns(num_columns, pushed) and self.backend.has_forward_mode(self.batch):
            return push_forward(self.backend.network, self.batch.inputs, self.cotangents_BSC, columns)
        return torch.cat([part._times(columns) for part in self._runs()], dim=1)

    def transpose_times(self, weights_BSk: Tensor, into: Mapping[str, Tensor]) -> None:
        """Adds R^T W: see `Rows.transpose_times`."""
        if self._goes_by_columns(weights_BSk.shape[2], pulled):
            self._pull_back(weights_BSk, into)
            return
        first = 0
        for part in self._runs():
            part._transpose_times(weights_BSk[:, first : first + part.num_cotangents], into)
            first += part.num_cotangents

    def squares(self, into: Mapping[str, Tensor]) -> None:
        """Adds the sum of R*R: see `Rows.squares`."""
        for part in self._runs():
            part._squares(into)

    def gram(self) -> Tensor:
        """R_b R_b^T, (B, S, S): see `Rows.gram`."""
        size = (len(self.batch), self.num_cotangents, self.num_cotangents)
        total = torch.zeros(size, dtype=CORE, device=self.outputs_BC.device)
        for rows_BSp in self._all_rows():
            total += (rows_BSp @ rows_BSp.mT).to(total.device)
        return total

    def _all_rows(self) -> Iterator[Tensor]:
        """Every row, (B, S, p), some weights at a time."""
        if len(list(self._runs())) == 1:
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
        for part in self._runs():
            chosen = slice(first, first + part.num_cotangents)
            for tile in tiles:
                for piece in part._slices(tile):
                    made_SBp = part._explicit(piece, part._uses(piece))
                    rows[tile.name][:, chosen, piece.place] = made_SBp.transpose(0, 1)
            first += part.num_cotangents
        yield from rows.items()

    def outer_product(self, block: str, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Of one cotangent, (B, r) and (B, c) where leading rows of a block are one outer product of fewer numbers."""
        uses = [] if block in self._recording.without_rule else list(self._met.get(block, ()))
        if self.num_cotangents > 1 or len(uses) != 1 or not isinstance(uses[0], Outer):
            return None
        sides = uses[0].sides(self._at(uses[0]), start, stop)
        return None if sides is None else (sides[0].to(self.dtype), sides[1].to(self.dtype))

    def explicit(self, tile: Tile, block: str) -> Tensor:
        """The columns of a block's part in a tile, (S, B, p), in memory of their own."""
        piece = next(piece for piece in pieces_of(tile) if piece.block == block)
        uses = self._uses(piece)
        if _BY_REVERSE_MODE in uses:
            return self._by_reverse_mode(piece).contiguous()
        shape = (self.num_cotangents, len(self.batch), piece.size)
        rows_SBp = torch.empty(shape, dtype=self.dtype, device=self._device_of(piece))
        self._write(piece, uses, rows_SBp)
        return rows_SBp.to(self.outputs_BC.device)

    def _goes_by_columns(self, num_columns: int, price: Callable[[float, int], float]) -> bool:
        """Whether a pass for each column is cheaper than one for each cotangent."""
        if self._by_columns is not None:
            return self._by_columns
        counts, passed = self._work
        has = {"has_gradients": "_met" in self.__dict__, "are_kept": bool(self._kept)}
        return price(passed, num_columns) < by_rows(counts, passed, self.num_cotangents, num_columns, **has)

    def _pull_back(self, weights_BSk: Tensor, into: Mapping[str, Tensor]) -> None:
        """Adds R^T W, a backward pass to the weights for each column of W."""
        root_BC, layout = self._root_BC, self.layout
        chosen = [tile for tile in layout.tiles if tile.name in into]
        wanted = set(layout.blocks_of(chosen))
        mixed_BCk = self.cotangents_BSC.to(self.dtype).mT @ weights_BSk.to(root_BC.device, self.dtype)
        for column, mixed_BC in enumerate(mixed_BCk.to(root_BC.dtype).unbind(2)):
            raised_1X, exponent_1 = self.backend.passes.raised(mixed_BC.reshape(1, -1))
            found = self._recording.to_weights(root_BC, raised_1X.view_as(mixed_BC), wanted)
            found = {block: lowered(gradient, exponent_1) for block, gradient in found.items()}
            gradients = layout.filled(found, root_BC.device)
            for tile in chosen:
                target = into[tile.name]
                target[:, column] += layout.cut(gradients, tile).to(target)

    # Of one part.

    def _times(self, columns: Mapping[str, Tensor]) -> Tensor:
        size = (self.num_cotangents, len(self.batch), next(iter(columns.values())).shape[1])
        total = torch.zeros(size, dtype=CORE, device=self.outputs_BC.device)
        for tile in self.layout.tiles:
            columns_Pk = columns[tile.name]
            for piece in pieces_of(tile):
                columns_pk = columns_Pk[piece.place].to(self._device_of(piece), self.dtype)
                made, direct = self._split(piece, size[2])
                for use in direct:
                    product = use.direct_times(self._at(use), piece.start, piece.stop, columns_pk)
                    total += product.to(total.device)
                for cut in self._cut(piece) if made else ():
                    rows_Rp = self._explicit(cut, made).flatten(0, 1)
                    self._contract.times(rows_Rp, columns_pk[cut.within(piece)], total.view(-1, size[2]))
        return total.transpose(0, 1)

    def _transpose_times(self, weights_BSk: Tensor, into: Mapping[str, Tensor]) -> None:
        weights_SBk = weights_BSk.to(self.dtype).transpose(0, 1).contiguous()
        on = {device: weights_SBk.to(device) for device in self._devices}
        for piece, into_pk in self._pieces_of(into):
            weights = on[into_pk.device]
            made, direct = self._split(piece, weights.shape[2])
            for use in direct:
                use.direct_transpose(self._at(use), piece.start, piece.stop, weights, into_pk)
            for cut in self._cut(piece) if made else ():
                rows_Rp, target = self._explicit(cut, made).flatten(0, 1), into_pk[cut.within(piece)]
                self._contract.transpose_times(rows_Rp, weights.flatten(0, 1), target)

    def _squares(self, into: Mapping[str, Tensor]) -> None:
        for piece, into_p in self._pieces_of(into):
            uses = self._uses(piece)
            if len(uses) == 1 and isinstance(uses[0], Lookup):
                uses[0].direct_squares(self._at(uses[0]), piece.start, piece.stop, into_p)
                continue
            for cut in self._cut(piece) if uses else ():
                self._contract.squares(self._explicit(cut, uses).flatten(0, 1), into_p[cut.within(piece)])

    def _pieces_of(self, into: Mapping[str, Tensor]) -> Iterator[tuple[Slice, Tensor]]:
        """Pieces with what to add to, in the layout's order: on the device of their rows, then moved."""
        for tile in self.layout.tiles:
            if tile.name not in into:
                continue
            for piece in pieces_of(tile):
                target, device = into[tile.name][piece.place], self._device_of(piece)
                if target.device == device:
                    yield piece, target
                else:
                    here = torch.zeros_like(target, device=device)
                    yield piece, here
                    target += here.to(target.device)

    def _device_of(self, piece: Slice) -> torch.device:
        """Where the rows of a slice are made: where its layer is."""
        uses = self._uses(piece)
        return self._at(uses[0])[0].device if uses and uses[0] is not _BY_REVERSE_MODE else self.outputs_BC.device

    @property
    def _devices(self) -> set[torch.device]:
        """All of these."""
        gradients = (found for uses in self._met.values() for found in uses.values())
        return {self.outputs_BC.device, *(found[0].device for found in gradients)}

    def _slices(self, tile: Tile) -> Iterator[Slice]:
        """All that is explicit at once, one after another."""
        return (cut for piece in pieces_of(tile) for cut in self._cut(piece))

    def _cut(self, piece: Slice) -> Iterator[Slice]:
        """A piece, cut so that a slice of all rows stays in a cache."""
        num_rows = len(self.batch) * self.num_cotangents
        return piece.cut(slice_bytes(self.backend.memory_gb) // (num_rows * self.dtype.itemsize))

    def _uses(self, piece: Slice) -> Sequence[Use]:
        """Those of its block; none where the outputs do not depend on it."""
        if piece.block in self._recording.without_rule:
            return [_BY_REVERSE_MODE]
        return list(self._met.get(piece.block, ()))

    def _split(self, piece: Slice, num_columns: int) -> tuple[Sequence[Use], Sequence[Use]]:
        """Uses whose rows are made, and uses that are contracted without."""
        uses = self._uses(piece)
        direct = [use for use in uses if use.counts.prefers_direct(self.num_cotangents, num_columns)]
        return [use for use in uses if use not in direct], direct

    def _explicit(self, piece: Slice, uses: Sequence[Use]) -> Tensor:
        """(S, B, size): made, or found ready."""
        if _BY_REVERSE_MODE in uses:
            return self._by_reverse_mode(piece)
        shape = (self.num_cotangents, len(self.batch), piece.size)
        kept = self._kept.get(piece.offset)
        if kept is not None and kept[0] == uses:
            return kept[1]
        num_rows = shape[0] * shape[1]
        start = piece.offset * num_rows if self._keeps else 0
        rows = self._buffer_on(self._device_of(piece))[start : start + num_rows * shape[2]].view(shape)
        self._write(piece, uses, rows)
        if self._keeps:
            self._kept[piece.offset] = (uses, rows)
        return rows

    def _write(self, piece: Slice, uses: Sequence[Use], rows_SBp: Tensor) -> None:
        if not uses:
            rows_SBp.zero_()
        for number, use in enumerate(uses):
            use.write(self._at(use), self._operand(use), piece.start, piece.stop, rows_SBp, add=number > 0)

    @cached_property
    def _keeps(self) -> bool:
        """Whether explicit rows stay for a second verb."""
        return self._fits(self.num_cotangents)

    def _buffer_on(self, device: torch.device) -> Tensor:
        """Where explicit rows are. A device's pages are taken as they are written."""
        if device not in self._buffers:
            num_rows = len(self.batch) * self.num_cotangents
            sizes = (piece.size for tile in self.layout.tiles for piece in self._slices(tile))
            numel = num_rows * (self.layout.num_weights if self._keeps else max(sizes))
            self._buffers[device] = self.backend.borrow(self, numel, self.dtype, device)
        return self._buffers[device]

    def _operand(self, use: Use) -> Any:
        """What the slices of a block share; of the last two uses."""
        if use not in self._operands:
            while len(self._operands) > 1:
                self._operands.pop(next(iter(self._operands)))
            self._operands[use] = use.operand(self.dtype, self.num_cotangents)
        return self._operands[use]

    def _at(self, use: Use) -> Gradients:
        """For each cotangent, the gradient at the use's output."""
        return self._met[use.block][use]

    @cached_property
    def _met(self) -> dict[str, dict[Use, Gradients]]:
        """Block -> its uses on which the outputs depend, each with the gradients at its output.

        One backward pass for each cotangent, to the outputs of the layers and no further; one after another: batched
        by `vmap` they take as long on a CPU, and not everything can be batched.
        """
        outputs_BC, edges = self._root_BC, self._recording.edges
        if not outputs_BC.requires_grad or not edges:
            return {}
        made: list[Sequence[Tensor | None]] = []
        for cotangents_BC in self.cotangents_BSC.to(outputs_BC).unbind(1):
            raised_BC, exponents_B = self.backend.passes.raised(cotangents_BC)
            found = self._recording.gradients(outputs_BC, edges, raised_BC)
            made.append([None if gradient is None else lowered(gradient, exponents_B) for gradient in found])
        met: dict[str, dict[Use, Gradients]] = {}
        for block, uses in self._recording.uses.items():
            for use in uses:
                if found := [gradient for gradients in made if (gradient := gradients[use.edge]) is not None]:
                    narrowed, gradients = use.narrowed(found)
                    met.setdefault(block, {})[narrowed] = gradients
        return met

    def _by_reverse_mode(self, piece: Slice) -> Tensor:
        """Rows of a block that has no rule."""
        if self.backend.network.away:
            why = self._recording.without_rule[piece.block]
            raise NetworkError(
                f"There is no rule for {piece.block!r} ({why}) in a network that is partly kept elsewhere; leave it "
                "out with `network.choose`, or load the network whole."
            )
        rows = self._reverse
        group = next(
            group for group in rows.groups if group[0].offset <= piece.offset < group[-1].offset + group[-1].size
        )
        chosen = [tile for tile in group if any(part.block in self._recording.without_rule for part in tile.pieces)]
        tile = next(tile for tile in chosen if tile.offset + piece.place.start == piece.offset)
        return dict(rows.materialise(chosen))[tile.name][:, :, piece.place].transpose(0, 1)

    @cached_property
    def _reverse(self) -> FunctionalRows:
        backend = FunctionalBackend(self.backend.network, self.backend.memory_gb, self.backend.arithmetic)
        return backend.rows_at(self.batch, self.outputs_BC, self.cotangents_BSC)
