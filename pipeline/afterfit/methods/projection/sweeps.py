"""Block projections within a shard: rows of some examples at a time, each with the pseudo-inverse of its own Gram.

Shapes: b examples of a block, m = b R rows, n examples of the shard, k columns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from afterfit.algebra import Cursor, Result, Unit
from afterfit.linalg.gram import add_gram, mirrored
from afterfit.methods.projection.draws import family, zeros_like_tiles
from afterfit.methods.projection.gram import CUT_OFF
from afterfit.methods.projection.protected import OverProtected
from afterfit.methods.projection.unit_rows import ProtectedRows, UnitRows
from afterfit.network.workbench import Workbench
from afterfit.precision import CORE, one_thread
from afterfit.resources import GB
from afterfit.rows.planning import KEPT_SHARE


@dataclass(frozen=True)
class BlockFactors(OverProtected):
    """Pseudo-inverse of each block's Gram, one for each layer with rows of its own: `inverse` (L, m, m) by blocks.

    The last block of a shard may be smaller; none is left out. Cost: for each block a pass over its examples, m^2 P / 2
    multiplications in float64, and an eigenproblem; holds n m R numbers of a shard in the store.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    block_size: int

    def on(self, bench: Workbench) -> "_FactorsTask":
        """Needs the network, the training data and the lengths."""
        return _FactorsTask(self, ProtectedRows(self.protected, bench))


@dataclass(frozen=True)
class _FactorsTask:
    recipe: BlockFactors
    rows: ProtectedRows

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        blocks = self.rows.blocks(unit, self.recipe.block_size)
        position, state = cursor.resume() or (0, {})
        made = dict(state)
        for number in range(position, len(blocks)):
            made[f"inverse/{number:05d}"] = pseudo_inverse(self._gram(blocks[number]))
            cursor.reached(number + 1, len(blocks), made)
        return Result(tensors={"inverse": [(f"{unit.name}-{name[8:]}", value) for name, value in made.items()]})

    def _gram(self, indexes: Sequence[int]) -> Tensor:
        """(L, m, m) in float64, a group of tiles at a time."""
        bench = self.rows.bench
        num_rows = len(indexes) * self.rows.protected.num_cotangents(bench)
        total_Lmm = torch.zeros(self.rows.num_layers, num_rows, num_rows, dtype=CORE)
        for tiles in bench.layout.groups(num_rows * bench.state_bytes, KEPT_SHARE * bench.memory_gb * GB):
            for (_, layer, _), rows_mp in self.rows.explicit(tiles, indexes).items():
                add_gram(rows_mp, rows_mp, total_Lmm[layer])
        return torch.stack([mirrored(gram_mm) for gram_mm in total_Lmm])


def pseudo_inverse(gram_Lmm: Tensor) -> Tensor:
    """Of each, in float64; eigenvalues below the cut-off are those of dependent rows."""
    with one_thread():
        values_Lm, vectors_Lmm = torch.linalg.eigh(gram_Lmm)
        inverse_Lm = torch.where(values_Lm > CUT_OFF * values_Lm.amax(dim=1, keepdim=True), 1 / values_Lm, 0.0)
        return (vectors_Lmm * inverse_Lm[:, None]) @ vectors_Lmm.mT


class Blocks:
    """The blocks of a shard, with the rows of one at a time."""

    def __init__(self, rows: ProtectedRows, unit: Unit, block_size: int) -> None:
        self.rows = rows
        self.unit = unit
        self.indexes = rows.blocks(unit, block_size)
        self._inverses = rows.bench.input("blocks").tiles("inverse")
        self._starts = [0]
        for block in self.indexes:
            self._starts.append(self._starts[-1] + len(block))

    def place(self, number: int) -> slice:
        """Where a block's examples are in the shard."""
        return slice(self._starts[number], self._starts[number + 1])

    def project(self, number: int, columns: Mapping[str, Tensor], target_bRk: Tensor | None = None) -> "Projected":
        """W with R_b (columns - R_b^T W) = target, zero by default; takes R_b^T W off the columns, in place."""
        indexes, num_columns = self.indexes[number], next(iter(columns.values())).shape[1]
        parts: Iterable[tuple[Tensor, UnitRows]] = self._parts(indexes)
        if self._fits(indexes):
            parts = list(parts)
        rows_each = self.rows.protected.rows_each(self.rows.bench)
        met_bRk = torch.zeros(len(indexes), rows_each, num_columns, dtype=CORE)
        for places_B, rows in parts:
            met_bRk[places_B] = rows.times(columns)
        wanted_bRk = met_bRk if target_bRk is None else met_bRk - target_bRk
        inverse_Lmm = self._inverses[f"{self.unit.name}-{number:05d}"]
        weights_bRk = _applied(inverse_Lmm, wanted_bRk)
        for places_B, rows in parts if isinstance(parts, list) else self._parts(indexes):
            rows.transpose_times(-weights_bRk[places_B], columns)
        return Projected(met_bRk, weights_bRk)

    def _fits(self, indexes: Sequence[int]) -> bool:
        """Whether the explicit rows of a block may stay for their second product; else they are made twice."""
        bench = self.rows.bench
        num_rows = len(indexes) * self.rows.protected.num_cotangents(bench)
        num_bytes = float(num_rows * bench.layout.num_weights * bench.state_bytes)
        return num_bytes <= KEPT_SHARE * bench.memory_gb * GB

    def _parts(self, indexes: Sequence[int]) -> Iterator[tuple[Tensor, UnitRows]]:
        """Places in the block, and rows, of one micro-batch after another."""
        for planned in self.rows.micro_batches(indexes):
            batch = self.rows.batch(planned)
            yield self.rows.places(batch, indexes[0]), self.rows.rows(batch)


@dataclass(frozen=True, eq=False)
class Projected:
    """What a block gave."""

    met_bRk: Tensor  # R_b times the columns as they were
    weights_bRk: Tensor


def _applied(inverse_Lmm: Tensor, values_bRk: Tensor) -> Tensor:
    values_bLSk = values_bRk.unflatten(1, (len(inverse_Lmm), -1))
    flat_Lmk = values_bLSk.transpose(0, 1).flatten(1, 2)
    solved_Lmk = inverse_Lmm @ flat_Lmk
    return solved_Lmk.unflatten(1, (values_bLSk.shape[0], -1)).transpose(0, 1).flatten(1, 2)


def swept_residual(blocks: Blocks, residual_nRk: Tensor, cursor: Cursor) -> Tensor:
    """M^-1 times a residual, M being the symmetric block Gauss-Seidel splitting of the shard's own Gram.

    One sweep down the blocks and one up, each block solved for what the others leave. The columns R^T W are carried
    along, so that a block costs as much as a projection of its rows.

    Source: Bjorck, Elfving (1979), doi:10.1007/BF01930845.
    """
    num_blocks = len(blocks.indexes)
    order = [*range(num_blocks), *reversed(range(num_blocks - 1))]
    resumed = cursor.resume()
    if resumed is None:
        position, weights_nRk = 0, torch.zeros_like(residual_nRk)
        columns = zeros_like_tiles(blocks.rows.bench, residual_nRk.shape[2])
    else:
        position, state = resumed
        weights_nRk = state["weights/all"]
        columns = dict(family(state, "columns"))
    for step in range(position, len(order)):
        place = blocks.place(order[step])
        # The columns hold R^T W: what is to be met is the residual, so the block's change is minus what it took off.
        made = blocks.project(order[step], columns, residual_nRk[place])
        weights_nRk[place] -= made.weights_bRk
        saved = {f"columns/{name}": tile for name, tile in columns.items()} | {"weights/all": weights_nRk}
        cursor.reached(step + 1, len(order), saved)
    return weights_nRk
