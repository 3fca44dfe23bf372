"""One pass over a shard's protected rows of unit length: R V, or R^T W."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from afterfit.algebra import Accumulator, Batch, Cursor, State, Unit, add, batches, fold
from afterfit.methods.projection.draws import family, zeros_like_tiles
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.precision import CORE


def fold_shard(accumulator: Accumulator, rows: ProtectedRows, unit: Unit, cursor: Cursor) -> State:
    """Accumulate the protected examples of a shard in their planned micro-batches, from where the cursor stands."""
    planned = rows.micro_batches(rows.indexes(unit))
    data = rows.bench.data("train")
    return fold(accumulator, lambda position: batches(data, planned[position:]), len(planned), cursor)


@dataclass(frozen=True)
class Times:
    """R V of one shard: `rows/all` (n, R, k), each micro-batch's where its examples are."""

    rows: ProtectedRows
    unit: Unit
    columns: Mapping[str, Tensor]

    def init(self) -> State:
        """Zeros."""
        shape = (len(self.rows.indexes(self.unit)), self.rows.protected.rows_each(self.rows.bench))
        num_columns = next(iter(self.columns.values())).shape[1]
        return {"rows/all": torch.zeros(*shape, num_columns, dtype=CORE)}

    def accumulate(self, state: State, batch: Batch) -> State:
        """One micro-batch, in place."""
        places_B = self.rows.places(batch, self.unit.details["start"])
        state["rows/all"][places_B] = self.rows.rows(batch).times(self.columns)
        return state

    def merge(self, left: State, right: State) -> State:
        """Added."""
        return add(left, right)


@dataclass(frozen=True)
class TransposeTimes:
    """R^T W of one shard: `columns` by tiles (P_tile, k)."""

    rows: ProtectedRows
    unit: Unit
    weights_nRk: Tensor

    def init(self) -> State:
        """Zeros."""
        tiles = zeros_like_tiles(self.rows.bench, self.weights_nRk.shape[2])
        return {f"columns/{name}": tile for name, tile in tiles.items()}

    def accumulate(self, state: State, batch: Batch) -> State:
        """One micro-batch, in place."""
        places_B = self.rows.places(batch, self.unit.details["start"])
        self.rows.rows(batch).transpose_times(self.weights_nRk[places_B], family(state, "columns"))
        return state

    def merge(self, left: State, right: State) -> State:
        """Added."""
        return add(left, right)
