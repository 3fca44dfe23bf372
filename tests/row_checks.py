"""What every test of rows needs: named numbers, tiles, and dense ground truth."""

import torch
from torch import Tensor

from afterfit.algebra import Batch
from afterfit.layout import Layout
from afterfit.network.functional import Network
from afterfit.seeds import Seed, normals
from cases import assert_near, dense_jacobian


def numbers(name: str, *shape: int) -> Tensor:
    return normals(Seed(7).child(name), *shape, dtype=torch.float64)


def some_cotangents(num: int):
    """Three, say, mixed directions an example; they differ between examples."""
    return lambda outputs_BC: numbers("cotangents", len(outputs_BC), num, outputs_BC.shape[1]).to(outputs_BC)


def by_tile(layout: Layout, columns_Pk: Tensor) -> dict[str, Tensor]:
    return {tile.name: columns_Pk[tile.offset : tile.offset + tile.size] for tile in layout.tiles}


def joined(parts) -> Tensor:
    """Tiles in the order given, along the first dimension."""
    return torch.cat([value for _, value in (parts.items() if isinstance(parts, dict) else parts)])


def zeros(layout: Layout, rows, *size: int, tiles=None) -> dict[str, Tensor]:
    """Tiles to add to."""
    return {tile.name: torch.zeros(tile.size, *size, dtype=rows.dtype) for tile in tiles or layout.tiles}


def transposed(layout: Layout, rows, weights_BSk: Tensor, tiles=None) -> dict[str, Tensor]:
    """R^T W by tile."""
    into = zeros(layout, rows, weights_BSk.shape[2], tiles=tiles)
    rows.transpose_times(weights_BSk, into)
    return into


def squared(layout: Layout, rows, tiles=None) -> dict[str, Tensor]:
    """The sum of R*R by tile."""
    into = zeros(layout, rows, tiles=tiles)
    rows.squares(into)
    return into


def dense_rows(network: Network, batch: Batch, rows) -> Tensor:
    """Cotangents times the dense Jacobian, (B, S, P)."""
    return rows.cotangents_BSC.double() @ dense_jacobian(network, batch)


def assert_every_verb_is_dense(network: Network, batch: Batch, rows, rtol: float) -> None:
    """All verbs against the dense Jacobian, with few columns and with many."""
    assert_near(rows.outputs_BC, network(batch.inputs).detach(), rtol)
    assert_every_verb_is_of(dense_rows(network, batch, rows), network.layout, rows, rtol)


def assert_every_verb_is_of(dense_BSP: Tensor, layout: Layout, rows, rtol: float) -> None:
    """All verbs against explicit rows."""
    size = dense_BSP.shape[:2]
    for num_columns in (2, 5, 40):
        columns_Pk = numbers(f"columns {num_columns}", layout.num_weights, num_columns)
        assert_near(rows.times(by_tile(layout, columns_Pk)), dense_BSP @ columns_Pk, rtol)
        weights_BSk = numbers(f"weights {num_columns}", *size, num_columns)
        expected_Pk = torch.einsum("bsp,bsk->pk", dense_BSP, weights_BSk)
        assert_near(joined(transposed(layout, rows, weights_BSk)), expected_Pk, rtol)
    assert_near(rows.gram(), dense_BSP @ dense_BSP.mT, rtol)
    assert_near(joined(squared(layout, rows)), dense_BSP.square().sum(dim=(0, 1)), rtol)
    whole_BSP = torch.cat([columns for _, columns in rows.materialise(layout.tiles)], dim=-1)
    assert_near(whole_BSP, dense_BSP, rtol)


def assert_zero_cotangents_give_zeros(network: Network, batch: Batch, backend, num_outputs: int) -> None:
    """Exactly, whatever the verb."""
    rows = backend.rows(batch, lambda outputs_BC: torch.zeros(len(outputs_BC), 2, num_outputs))
    columns = by_tile(network.layout, numbers("columns", network.layout.num_weights, 3))
    assert torch.count_nonzero(rows.times(columns)) == 0
    assert torch.count_nonzero(rows.gram()) == 0
    assert torch.count_nonzero(joined(squared(network.layout, rows))) == 0
