"""The dual Gram of the protected rows: exact in float64, or in float32 as a preconditioner; and its factor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from afterfit.algebra import Cursor, Result, State, Unit, add
from afterfit.errors import RankError
from afterfit.linalg.gram import add_gram, mirrored
from afterfit.linalg.pivoted_cholesky import pivoted_cholesky
from afterfit.methods.gram_blocks import assembled, gram_units
from afterfit.methods.projection.draws import no_kernel
from afterfit.methods.projection.protected import OverProtected
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.network.workbench import Outline, Workbench, tiles_of
from afterfit.precision import CORE, one_thread

CUT_OFF = 1e-12
"""Squared sine of the angle below which a row of unit length counts as dependent on the others.

It leaves such a row with a residual of about 1e-6 of an isotropic draw's: 1e-8.
"""
RELATIVE_SHIFT = 1e-6
"""Of a float32 Gram that is to be factored, times its largest eigenvalue."""
TILE_ROWS = 1024
"""Of a stored matrix."""


@dataclass(frozen=True)
class ProtectedGram(OverProtected):
    """K = R R^T of the protected rows, of unit length, summed over tiles; one for each layer that has its own rows.

    Leaves behind `gram-LL` by tiles of rows. Units are groups of tiles whose explicit rows fit the memory, for each
    pair of chunks of examples. Cost: a forward and S backward passes over the protected examples for each group, and
    P N^2 / 2 multiplications for N rows.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "reduce"

    is_exact: bool = True
    """float64 products; else those of float32, which are a preconditioner only."""

    def units(self, outline: Outline) -> Sequence[Unit]:
        """Groups of tiles for each pair of chunks of examples."""
        return gram_units(outline, self.protected.count(outline), self.protected.num_cotangents(outline))

    def on(self, bench: Workbench) -> "_GramReducer":
        """Needs the network, the training data and the lengths."""
        return _GramReducer(self, ProtectedRows(self.protected, bench))


@dataclass(frozen=True)
class _GramReducer:
    recipe: ProtectedGram
    rows: ProtectedRows

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        left, right = range(*unit.details["left"]), range(*unit.details["right"])
        tiles = tiles_of(self.rows.bench.layout, unit)
        indexes = self.rows.all.tolist()
        left_rows = self.rows.explicit(tiles, indexes[left.start : left.stop])
        right_rows = left_rows if left == right else self.rows.explicit(tiles, indexes[right.start : right.stop])
        num_layers, dtype = self.rows.num_layers, CORE if self.recipe.is_exact else torch.float32
        rows_each = self.rows.protected.num_cotangents(self.rows.bench)
        sums = {
            f"gram-{layer:02d}/{unit.tree}": torch.zeros(len(left) * rows_each, len(right) * rows_each, dtype=dtype)
            for layer in range(num_layers)
        }
        for (tile, layer, place), rows_Np in left_rows.items():
            add_gram(rows_Np, right_rows[tile, layer, place], sums[f"gram-{layer:02d}/{unit.tree}"])
        return sums

    def merge(self, left: State, right: State) -> State:
        return add(left, right)

    def finalise(self, state: State) -> Result:
        families = sorted({name.partition("/")[0] for name in state})
        return Result(tensors={family: self._tiles(family, state) for family in families})

    def _tiles(self, family: str, state: State) -> Iterator[tuple[str, Tensor]]:
        gram_NN = assembled({name: state[name] for name in state if name.startswith(f"{family}/")})
        yield from row_tiles(mirrored(gram_NN))


def row_tiles(matrix_NM: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A matrix by runs of its rows."""
    for number, tile_nM in enumerate(matrix_NM.split(TILE_ROWS)):
        yield f"{number:05d}", tile_nM


@dataclass(frozen=True)
class GramFactor:
    """The factor of each Gram.

    Exact: Cholesky with pivoting, `lower-LL` (R, R) by tiles of rows and `order-LL` (R,), the R rows on which all
    others depend. As a preconditioner: Cholesky in float32 of K + 1e-6 lambda_1 I.

    Cost: N^3 / 3 multiplications and additions; holds two N x N at once.
    """

    VERSION: ClassVar[int] = 1
    verb: ClassVar[str] = "map"

    is_exact: bool = True

    def units(self, outline: Outline) -> Sequence[Unit]:
        """One for each layer."""
        return [Unit(name.replace("gram", "layer"), {"gram": name}) for name in outline.input("gram").families]

    def on(self, bench: Workbench) -> "_FactorTask":
        """Needs the Gram only."""
        return _FactorTask(self, bench)


@dataclass(frozen=True)
class _FactorTask:
    recipe: GramFactor
    bench: Workbench

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        layer = unit.details["gram"].removeprefix("gram-")
        gram_NN = self.bench.input("gram").tensor(unit.details["gram"])
        num_rows = len(gram_NN)
        if not self.recipe.is_exact:
            return Result(tensors={f"lower-{layer}": row_tiles(_shifted_factor(gram_NN))})
        lower_RR, order_R = pivoted_cholesky(gram_NN, CUT_OFF)
        is_whole = len(self.bench.input("gram").families) == 1
        if is_whole and len(order_R) >= self.bench.layout.num_weights:
            raise RankError(no_kernel(num_rows, self.bench))
        return Result(
            tensors={f"lower-{layer}": row_tiles(lower_RR), f"order-{layer}": [("all", order_R)]},
            facts={f"rank-{layer}": len(order_R), "cut_off": CUT_OFF},
        )


def _shifted_factor(gram_NN: Tensor) -> Tensor:
    with one_thread():
        gram_NN.diagonal().add_(RELATIVE_SHIFT * _largest(gram_NN))
        return torch.linalg.cholesky(gram_NN)


def _largest(gram_NN: Tensor) -> float:
    """About lambda_1, by power iteration; rows of unit length point the same way more often than not."""
    vector_N = torch.ones(len(gram_NN), dtype=gram_NN.dtype)
    for _ in range(20):
        vector_N = gram_NN @ (vector_N / vector_N.norm())
    return float(vector_N.norm())
