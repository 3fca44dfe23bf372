"""The tape against dense Jacobians: on every network of the table, and on layers in every setting."""

import pytest
import torch

from afterfit.network.functional import Network
from afterfit.rows.functional import FunctionalBackend
from afterfit.rows.protocol import unit_cotangents
from afterfit.rows.tape import TapeBackend
from afterfit.rows.uses.outer import Outer
from cases import ATTENTION_CASES, NETWORK_CASES, assert_near, case_named, dense_jacobian
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

SMALL_GB = 1e-6
"""No cotangent's gradients, and no rows, fit: everything is made in parts, and again for each verb."""


@on_every_network
@pytest.mark.parametrize("batch_number", [0, -1], ids=["full", "short"])
@pytest.mark.parametrize("memory_gb", [2.0, SMALL_GB], ids=["kept", "made again"])
def test_every_verb_agrees_with_the_dense_jacobian(case, batch_number, memory_gb):
    network, batch = case.network(), case.batches[batch_number]
    backend = TapeBackend(network, memory_gb)
    rows = backend.rows(batch, some_cotangents(3))
    assert len(list(rows.parts(10**6))) == (1 if memory_gb == 2.0 else 3)
    assert_every_verb_is_dense(network, batch, rows, case.rtol)
    assert backend.coverage(batch).fraction == 1
    assert not any(backend.wrong.values()), backend.wrong


def test_one_column_goes_by_columns_in_one_part_however_little_memory_there_is():
    case = case_named("vit")
    rows = TapeBackend(case.network(), SMALL_GB).rows(case.batches[0], some_cotangents(3))
    assert [len(list(rows.parts(num_columns))) > 1 for num_columns in (1, 100)] == [False, True]


@on_every_network
def test_parts_are_the_rows_in_order(case):
    network, batch = case.network(), case.batches[0]
    rows = TapeBackend(network, SMALL_GB).rows(batch, some_cotangents(3))
    columns = by_tile(network.layout, numbers("columns", network.layout.num_weights, 7))
    assert_near(torch.cat([part.times(columns) for part in rows.parts(7)], dim=1), rows.times(columns), case.rtol)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
@pytest.mark.parametrize("num_columns", [1, 6])
def test_eager_attention_is_served_as_the_fused_one(case, num_columns):
    network, batch = case.network(attention="eager"), case.batches[0]
    rows = TapeBackend(network).rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, num_columns)
    expected_BSk = dense_rows(network, batch, rows) @ columns_Pk
    assert_near(rows.times(by_tile(network.layout, columns_Pk)), expected_BSk, case.eager_rtol)
    assert_near(joined(squared(network.layout, rows)), dense_rows(network, batch, rows).square().sum((0, 1)), 1e-5)


@on_every_network
def test_a_micro_batch_of_one_is_the_same_example_alone(case):
    network, batch = case.network(), case.examples.batch([3])
    rows = TapeBackend(network).rows(batch, some_cotangents(2))
    assert_every_verb_is_dense(network, batch, rows, case.rtol)


@on_every_network
def test_zero_cotangents_give_exact_zeros(case):
    network = case.network()
    assert_zero_cotangents_give_zeros(network, case.batches[0], TapeBackend(network), case.num_outputs)


@on_every_network
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_narrow_networks_have_float32_rows_and_float64_sums(case, dtype, rtol):
    network, exact, batch = case.network(dtype=dtype), case.network(), case.batches[0]
    rows = TapeBackend(network).rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, 4)
    product = rows.times(by_tile(network.layout, columns_Pk))
    assert product.dtype == rows.gram().dtype == torch.float64
    assert joined(squared(network.layout, rows)).dtype == torch.float32
    # A forward and a backward pass lose a factor of 100 of the unit roundoff here at most; bfloat16's is 4e-3.
    assert_near(product, rows.cotangents_BSC.double() @ dense_jacobian(exact, batch) @ columns_Pk, rtol)


@pytest.mark.parametrize("name", ["conv_net", "bert", "llama"])
def test_some_tiles_are_the_slices_of_all(name):
    network, batch = case_named(name).network(), case_named(name).batches[0]
    rows = TapeBackend(network).rows(batch, some_cotangents(2))
    chosen = network.layout.tiles[1::2]
    weights_BSk = numbers("weights", len(batch), 2, 3)
    whole, some = (transposed(network.layout, rows, weights_BSk, tiles) for tiles in (None, chosen))
    assert list(some) == [tile.name for tile in chosen]
    for tile in some:
        assert torch.equal(some[tile], whole[tile])


def test_nothing_is_left_on_the_module():
    module = case_named("bert").module()
    network, batch = Network(module), case_named("bert").batches[0]
    before = {name: dict(vars(tensor)) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    TapeBackend(network).rows(batch, some_cotangents(2)).gram()
    after = {name: dict(vars(tensor)) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    assert before == after


def test_rows_that_live_at_once_do_not_share_memory():
    case = case_named("mlp")
    network, backend = case.network(), TapeBackend(case.network())
    first, second = (backend.rows(batch, unit_cotangents) for batch in case.batches[:2])
    made = [joined(squared(network.layout, rows)) for rows in (first, second, first)]
    assert torch.equal(made[0], made[2])
    reference = FunctionalBackend(network).rows(case.batches[0], unit_cotangents)
    assert_near(made[0], joined(squared(network.layout, reference)), case.rtol)


@pytest.mark.parametrize("num_columns", [1, 40])
def test_positions_on_which_no_output_depends_are_left_out(num_columns):
    case = case_named("vit")  # its head reads the class token: above the last attention the others have no gradient
    network, batch = case.network(), case.batches[0]
    rows = TapeBackend(network).rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, num_columns)
    assert_near(rows.times(by_tile(network.layout, columns_Pk)), dense_rows(network, batch, rows) @ columns_Pk, 1e-10)
    positions = [use.inputs.shape[1] for uses in rows._met.values() for use in uses if isinstance(use, Outer)]
    assert min(positions) == 1 < max(positions)


def test_one_column_of_a_network_with_a_padding_row_goes_by_forward_mode_without_it():
    case = case_named("bert")  # its word embedding has one, which the tokens of the first micro-batch contain
    network, batch = case.network(), case.batches[0]
    layer = network.module.get_input_embeddings()
    assert layer.padding_idx is not None
    assert (batch.inputs["input_ids"] == layer.padding_idx).any()
    backend = TapeBackend(network)
    rows = backend.rows(batch, some_cotangents(3))
    columns_Pk = numbers("columns", network.layout.num_weights, 1)
    assert backend.has_forward_mode(batch)
    assert_near(rows.times(by_tile(network.layout, columns_Pk)), dense_rows(network, batch, rows) @ columns_Pk, 1e-10)
