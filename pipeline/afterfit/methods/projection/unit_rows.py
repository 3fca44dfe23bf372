"""Protected rows, each of length one, micro-batch by micro-batch and shard by shard.

Normalisation does not change their kernel, and without it there is no honest cut-off: well-fit examples have tiny rows,
which any cut-off on rows as they are leaves unprotected while the residual of all rows together looks excellent.

Shapes: B examples, S cotangents of one, L layers that have rows of their own (one where rows are whole), R = L S rows
of one example, k columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from afterfit.algebra import Batch, Unit, consecutive, micro_batches
from afterfit.layout import Layout, Tile
from afterfit.methods.projection.protected import Protected, layers
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE
from afterfit.resources import GB
from afterfit.rows import row_backend
from afterfit.rows.planning import KEPT_SHARE
from afterfit.rows.protocol import RowBackend, Rows


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Rows of a micro-batch over their lengths; those of length zero stay zero."""

    rows: Rows
    layout: Layout
    memory_gb: float
    layer_of: Mapping[str, int] | None  # block -> layer; None where rows are whole
    lengths_BR: Tensor | None = None

    def times(self, columns: Mapping[str, Tensor]) -> Tensor:
        """R V, (B, R, k) in float64, for V by tiles (P_tile, k)."""
        if self.layer_of is None:
            return self._scaled(self.rows.times(columns).cpu())
        total_BLSk = self._zeros(next(iter(columns.values())).shape[1])
        for tile, layer, place, rows_BSp in self._pieces(self.layout.tiles):
            total_BLSk[:, layer] += (rows_BSp @ columns[tile.name][place].to(rows_BSp)).cpu()
        return self._scaled(total_BLSk.flatten(1, 2))

    def transpose_times(self, weights_BRk: Tensor, into: Mapping[str, Tensor]) -> None:
        """Adds R^T W to the tiles given, each (P_tile, k), for W (B, R, k)."""
        scaled_BRk = self._scaled(weights_BRk)
        if self.layer_of is None:
            self.rows.transpose_times(scaled_BRk, into)
            return
        weights_BLSk = scaled_BRk.unflatten(1, (-1, self.rows.num_cotangents))
        chosen = tuple(tile for tile in self.layout.tiles if tile.name in into)
        for tile, layer, place, rows_BSp in self._pieces(chosen):
            product_pk = rows_BSp.flatten(0, 1).T @ weights_BLSk[:, layer].flatten(0, 1).to(rows_BSp)
            into[tile.name][place] += product_pk.to(into[tile.name])

    def squared_lengths(self) -> Tensor:
        """Of each row before it is normalised, (B, R) in float64."""
        if self.layer_of is None:
            return self.rows.gram().diagonal(dim1=1, dim2=2).cpu()
        total_BLS1 = self._zeros(1)
        for _, layer, _, rows_BSp in self._pieces(self.layout.tiles):
            total_BLS1[:, layer, :, 0] += rows_BSp.square().sum(dim=2).cpu()
        return total_BLS1.flatten(1)

    def explicit(self, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, int, slice, Tensor]]:
        """Tile, layer, place in the tile, and the rows there (B, S, p), of unit length."""
        scales_BLS = self._scaled(torch.ones(len(self.rows.outputs_BC), self._num_rows, 1, dtype=CORE))
        scales_BLS = scales_BLS.squeeze(2).unflatten(1, (-1, self.rows.num_cotangents))
        for tile, layer, place, rows_BSp in self._pieces(tiles):
            yield tile, layer, place, rows_BSp * scales_BLS[:, layer, :, None].to(rows_BSp)

    def _pieces(self, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, int, slice, Tensor]]:
        """The same, as they are; some tiles at a time."""
        num_bytes = self.rows.outputs_BC.element_size() * len(self.rows.outputs_BC) * self.rows.num_cotangents
        wanted = {tile.name for tile in tiles}
        for group in self.layout.groups(num_bytes, KEPT_SHARE * self.memory_gb * GB):
            if chosen := [tile for tile in group if tile.name in wanted]:
                yield from self._cut(chosen)

    def _cut(self, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, int, slice, Tensor]]:
        by_name = {tile.name: tile for tile in tiles}
        for name, rows_BSP in self.rows.materialise(tiles):
            tile = by_name[name]
            if self.layer_of is None:
                yield tile, 0, slice(None), rows_BSP
                continue
            start = 0
            for piece in tile.pieces:
                place = slice(start, start + piece.size)
                yield tile, self.layer_of[piece.block], place, rows_BSP[..., place]
                start += piece.size

    @property
    def _num_rows(self) -> int:
        return self.rows.num_cotangents * (1 if self.layer_of is None else 1 + max(self.layer_of.values()))

    def _zeros(self, num_columns: int) -> Tensor:
        shape = (len(self.rows.outputs_BC), self._num_rows, num_columns)
        return torch.zeros(shape, dtype=CORE).unflatten(1, (-1, self.rows.num_cotangents))

    def _scaled(self, values_BRk: Tensor) -> Tensor:
        if self.lengths_BR is None:
            return values_BRk
        return torch.where(self.lengths_BR > 0, 1 / self.lengths_BR, 0.0)[..., None] * values_BRk


@dataclass(frozen=True, eq=False)
class ProtectedRows:
    """The protected rows of all shards on one worker; rows of length one where `lengths` is among the inputs."""

    protected: Protected
    bench: Workbench
    has_lengths: bool = True

    @cached_property
    def backend(self) -> RowBackend:
        """Of the whole network."""
        return row_backend(self.bench.network, self.bench.memory_gb, self.bench.arithmetic)

    @cached_property
    def layer_of(self) -> Mapping[str, int] | None:
        """Block -> layer, where each has rows of its own."""
        return layers(self.bench.layout) if self.protected.kernel == "per_layer" else None

    def indexes(self, unit: Unit) -> Sequence[int]:
        """Protected examples of a shard, ascending."""
        return self.protected.indexes(self.bench, unit.details["start"], unit.details["stop"])

    def first(self, unit: Unit) -> int:
        """How many protected examples come before a shard."""
        return int(torch.searchsorted(self.all, unit.details["start"]))

    def micro_batches(self, indexes: Sequence[int]) -> Sequence[Sequence[int]]:
        """Of some examples, planned."""
        return micro_batches(self.bench.data("train"), indexes, self.bench.micro_batch)

    def blocks(self, unit: Unit, block_size: int) -> Sequence[Sequence[int]]:
        """Examples of a shard that are projected together."""
        return consecutive(self.indexes(unit), block_size)

    def batch(self, indexes: Sequence[int]) -> Batch:
        """These examples."""
        return self.bench.data("train").batch(indexes)

    def rows(self, batch: Batch) -> UnitRows:
        """Of a micro-batch."""
        rows = self.backend.rows(batch, self.bound.cotangents(batch))
        lengths_BR = None
        if self.has_lengths:
            lengths_BR = self._lengths_NR[self.places(batch)]
        return UnitRows(rows, self.bench.layout, self.bench.memory_gb, self.layer_of, lengths_BR)

    @cached_property
    def bound(self) -> Protected:
        """What is protected, with the likelihood's noise known."""
        return self.protected.on(self.bench)

    @cached_property
    def all(self) -> Tensor:
        """Indexes of all protected examples, ascending, (n,)."""
        chosen = self.protected.indexes(self.bench, 0, self.bench.num_examples("train"))
        return torch.as_tensor(list(chosen), dtype=torch.int64)

    @cached_property
    def _lengths_NR(self) -> Tensor:
        return self.bench.input("lengths").tensor("lengths")

    @property
    def num_layers(self) -> int:
        """L."""
        return self.protected.num_layers(self.bench)

    def places(self, batch: Batch, first: int | None = None) -> Tensor:
        """Positions of a micro-batch's examples among all protected ones, counted from the example `first`."""
        places_B = torch.searchsorted(self.all, batch.indexes)
        return places_B if first is None else places_B - int(torch.searchsorted(self.all, first))

    def whole_lengths(self, batch: Batch) -> Tensor:
        """|row| of a micro-batch's rows, those of layers taken together, (B, S)."""
        lengths_BR = self._lengths_NR[self.places(batch)]
        return lengths_BR.unflatten(1, (self.num_layers, -1)).square().sum(dim=1).sqrt()

    def explicit(self, tiles: Sequence[Tile], indexes: Sequence[int]) -> Mapping[tuple[str, int, int], Tensor]:
        """(tile, layer, place in the tile) -> rows (n S, p) of some protected examples, all held at once."""
        made: dict[tuple[str, int, int], Tensor] = {}
        for planned in self.micro_batches(indexes):
            batch = self.batch(planned)
            places_B = self.places(batch, indexes[0])
            for tile, layer, place, rows_BSp in self.rows(batch).explicit(tiles):
                key = (tile.name, layer, place.start or 0)
                if key not in made:
                    made[key] = rows_BSp.new_empty(len(indexes), *rows_BSp.shape[1:], device="cpu")
                made[key][places_B] = rows_BSp.cpu()
        return {key: rows_nSp.flatten(0, 1) for key, rows_nSp in made.items()}
