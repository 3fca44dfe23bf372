"""The reference backend against dense Jacobians, on every network of the table."""

import pytest
import torch
from torch import nn

from afterfit.algebra import Batch
from afterfit.network.functional import Network
from afterfit.resources import GB
from afterfit.rows.functional import ROWS_SHARE, FunctionalBackend
from afterfit.rows.protocol import unit_cotangents
from cases import ATTENTION_CASES, NETWORK_CASES, TILE_WEIGHTS, assert_near, case_named, dense_jacobian, flat
from row_checks import (
    assert_every_verb_is_dense,
    assert_zero_cotangents_give_zeros,
    by_tile,
    dense_rows,
    joined,
    numbers,
    some_cotangents,
    squared,
    transposed,
)

on_every_network = pytest.mark.parametrize("case", NETWORK_CASES, ids=str)


def budget_for_groups_of(num_tiles: int, batch: Batch, num_cotangents: int) -> float:
    """`memory_gb` at which float64 rows are explicit for at most so many tiles at once."""
    return num_tiles * TILE_WEIGHTS * len(batch) * num_cotangents * 8 / (ROWS_SHARE * GB)


@on_every_network
def test_the_table_states_the_sizes_of_its_networks(case):
    network = case.network()
    assert network.layout.num_weights == case.num_weights
    assert network(case.batches[0].inputs).shape == (len(case.batches[0]), case.num_outputs)
    assert len(network.layout.tiles) >= 3


@on_every_network
@pytest.mark.parametrize("batch_number", [0, -1], ids=["full", "short"])
def test_every_verb_agrees_with_the_dense_jacobian(case, batch_number):
    network, batch = case.network(), case.batches[batch_number]
    rows = FunctionalBackend(network).rows(batch, some_cotangents(3))
    assert_every_verb_is_dense(network, batch, rows, case.rtol)


@on_every_network
def test_unit_cotangents_give_the_jacobian_itself(case):
    network, batch = case.network(), case.batches[0]
    rows = FunctionalBackend(network).rows(batch, unit_cotangents)
    whole = torch.cat([columns for _, columns in rows.materialise(network.layout.tiles)], dim=-1)
    assert_near(whole, dense_jacobian(network, batch), case.rtol)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
@pytest.mark.parametrize("num_columns", [1, 6])
def test_eager_attention_is_served_as_the_fused_one(case, num_columns):
    network, batch = case.network(attention="eager"), case.batches[0]
    rows = FunctionalBackend(network).rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, num_columns)
    expected_BSk = dense_rows(network, batch, rows) @ columns_Pk
    assert_near(rows.times(by_tile(network.layout, columns_Pk)), expected_BSk, case.eager_rtol)


@on_every_network
def test_some_tiles_are_the_slices_of_all(case):
    network, batch = case.network(), case.batches[0]
    backend = FunctionalBackend(network)
    rows, alone = (backend.rows(batch, some_cotangents(2)) for _ in range(2))  # the second never has all tiles
    layout = network.layout
    weights_BSk = numbers("weights", len(batch), 2, 3)
    whole = {
        "transpose_times": transposed(layout, rows, weights_BSk),
        "squares": squared(layout, rows),
        "materialise": dict(rows.materialise(network.layout.tiles)),
    }
    chosen = network.layout.tiles[1::2]
    some = {
        "transpose_times": transposed(layout, alone, weights_BSk, chosen),
        "squares": squared(layout, alone, chosen),
        "materialise": dict(alone.materialise(chosen)),
        "transpose_times, explicit": transposed(layout, rows, weights_BSk, chosen),
        "squares, explicit": squared(layout, rows, chosen),
    }
    for verb, parts in some.items():
        assert list(parts) == [tile.name for tile in chosen]
        for name, part in parts.items():
            assert torch.equal(part, whole[verb.split(",")[0]][name]), verb


@on_every_network
@pytest.mark.parametrize("num_columns", [1, 6])
def test_the_budget_changes_the_groups_but_not_a_bit(case, num_columns):
    network, batch = case.network(), case.batches[0]
    memory_gb = budget_for_groups_of(2, batch, num_cotangents=3)
    whole = FunctionalBackend(network).rows(batch, some_cotangents(3))
    cut = FunctionalBackend(network, memory_gb).rows(batch, some_cotangents(3))
    assert len(whole.groups) == 1
    assert len(cut.groups) > 1

    columns = by_tile(network.layout, numbers("columns", network.layout.num_weights, num_columns))
    weights_BSk = numbers("weights", len(batch), 3, num_columns)
    assert torch.equal(cut.times(columns), whole.times(columns))
    assert torch.equal(cut.gram(), whole.gram())
    assert torch.equal(joined(squared(network.layout, cut)), joined(squared(network.layout, whole)))
    assert torch.equal(
        joined(transposed(network.layout, cut, weights_BSk)), joined(transposed(network.layout, whole, weights_BSk))
    )


@on_every_network
def test_a_micro_batch_of_one_is_the_same_example_alone(case):
    network, batch = case.network(), case.examples.batch([3])
    rows = FunctionalBackend(network).rows(batch, some_cotangents(2))
    assert_near(rows.gram(), dense_rows(network, batch, rows) @ dense_rows(network, batch, rows).mT, case.rtol)
    assert rows.outputs_BC.shape == (1, case.num_outputs)


@on_every_network
def test_zero_cotangents_give_exact_zeros(case):
    network = case.network()
    assert_zero_cotangents_give_zeros(network, case.batches[0], FunctionalBackend(network), case.num_outputs)


@on_every_network
def test_float32_networks_keep_float32_rows_and_float64_sums(case):
    network, batch = case.network(dtype=torch.float32), case.batches[0]
    exact = case.network()
    rows = FunctionalBackend(network).rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, 4)
    product = rows.times(by_tile(network.layout, columns_Pk))
    assert product.dtype == rows.gram().dtype == torch.float64
    assert joined(squared(network.layout, rows)).dtype == torch.float32
    # Float32 has a unit roundoff of 6e-8; a forward and a backward pass here lose a factor of 100 at most.
    assert_near(product, rows.cotangents_BSC.double() @ dense_jacobian(exact, batch) @ columns_Pk, rtol=1e-5)


@pytest.mark.parametrize("num_columns", [1, 6])
def test_chosen_weights_are_rows_of_their_own(num_columns):
    case = case_named("mlp")
    network, batch = case.network(weights="3.*", tile_weights=10), case.batches[0]
    rows = FunctionalBackend(network).rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, num_columns)
    product = rows.times(by_tile(network.layout, columns_Pk))
    assert_near(product, dense_rows(network, batch, rows) @ columns_Pk, case.rtol)
    assert not product.requires_grad  # the other weights must not drag a graph along


class WithIdleWeights(nn.Module):
    """Scalars, and weights that the output does not depend on, as poolers and unused heads have."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.ones(5, 4))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.linear = nn.Linear(3, 2)

    def forward(self, numbers):
        return self.scale * self.linear(numbers)


@pytest.mark.parametrize("num_columns", [1, 6])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_idle_weights_have_zero_rows(num_columns, is_frozen):
    module = WithIdleWeights().double().eval().requires_grad_(not is_frozen)
    network = Network(module, tile_weights=8)
    batch = Batch({"numbers": numbers("inputs", 3, 3)}, None, torch.arange(3))
    memory_gb = budget_for_groups_of(1, batch, num_cotangents=2) * 8 / TILE_WEIGHTS
    rows = FunctionalBackend(network, memory_gb).rows(batch, some_cotangents(2))
    assert len(rows.groups) == len(network.layout.tiles)  # some groups hold idle weights only
    columns_Pk = numbers("columns", network.layout.num_weights, num_columns)
    expected = dense_rows(network, batch, rows)
    assert_near(rows.times(by_tile(network.layout, columns_Pk)), expected @ columns_Pk, 1e-12)
    assert_near(joined(squared(network.layout, rows)), expected.square().sum(dim=(0, 1)), 1e-12)


def test_a_padding_row_has_no_gradient_whatever_the_number_of_columns():
    """Forward mode would give it one; both ways must be the same rows."""
    module = nn.Sequential(nn.Embedding(3, 2, padding_idx=0), nn.Flatten(), nn.Linear(4, 3)).double().eval()
    network = Network(module)
    batch = Batch({"input": torch.tensor([[0, 1], [2, 0]])}, None, torch.arange(2))
    rows = FunctionalBackend(network).rows(batch, unit_cotangents)
    columns_Pk = numbers("columns", network.layout.num_weights, 4)
    few = rows.times(by_tile(network.layout, columns_Pk[:, :1]))
    many = rows.times(by_tile(network.layout, columns_Pk))
    assert_near(few, many[..., :1], 1e-12)
    padding_2 = torch.zeros(network.layout.num_weights, 1, dtype=torch.float64)
    padding_2[:2] = 1
    assert torch.count_nonzero(rows.times(by_tile(network.layout, padding_2))) == 0


def test_dense_vectors_and_tiles_have_one_order():
    network = case_named("conv_net").network()
    whole = flat(network.layout, network.weights)
    back = network.layout.assemble(by_tile(network.layout, whole))
    for name, weight in network.weights.items():
        assert torch.equal(back[name], weight)


@on_every_network
def test_a_backward_pass_of_fewer_cotangents_gives_the_same_bits(case):
    """Gradients of whole blocks are held by a pass: where they are too large, it takes fewer cotangents."""
    network, batch = case.network(), case.batches[0]
    whole, cut = (FunctionalBackend(network).rows(batch, some_cotangents(3)) for _ in range(2))
    cut.pass_bytes = 1.0  # one cotangent a pass
    assert torch.equal(joined(squared(network.layout, cut)), joined(squared(network.layout, whole)))
    assert torch.equal(cut.gram(), whole.gram())
