"""Compiled products with rows: the same to rounding, and few graphs however many layers and batches there are."""

import pytest
import torch
from torch._dynamo.utils import counters

import afterfit.rows.contractions as module
from afterfit.arithmetic import Arithmetic
from afterfit.errors import ConfigError
from afterfit.rows import ggn_diagonal, row_backend
from cases import assert_near, case_named
from row_checks import by_tile, joined, numbers, some_cotangents, squared, transposed

MOST_GRAPHS = 4
"""Of two functions, each for any sizes and for sizes of one, which torch always makes graphs of their own for."""


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"])
def test_every_verb_is_the_uncompiled_one_and_graphs_do_not_grow_with_layers_and_batches(dtype, rtol):
    counters.clear()
    for name in ("conv_net", "vit"):
        case = case_named(name)
        network, layout = case.network(dtype=dtype), case.network().layout
        plain, compiled = (row_backend(network, 2.0, Arithmetic(compiled=is_so)) for is_so in (False, True))
        for batch in case.batches:
            first, second = (backend.rows(batch, some_cotangents(3)) for backend in (plain, compiled))
            for num_columns in (1, 2, 5, 40):
                columns_Pk = numbers(f"columns {num_columns}", layout.num_weights, num_columns).to(dtype)
                products = [rows.times(by_tile(layout, columns_Pk)) for rows in (first, second)]
                assert_near(products[1], products[0], rtol)
                weights_BSk = numbers("weights", len(batch), 3, num_columns)
                made = [joined(transposed(layout, rows, weights_BSk)) for rows in (first, second)]
                assert_near(made[1], made[0], rtol)
            assert_near(second.gram(), first.gram(), rtol)
            assert_near(joined(squared(layout, second)), joined(squared(layout, first)), rtol)
    assert counters["stats"]["unique_graphs"] <= MOST_GRAPHS
    assert not counters["graph_break"]


def test_the_public_products_take_it():
    case = case_named("mlp")
    inputs = [batch.inputs for batch in case.batches]
    made, expected = (ggn_diagonal(case.module(), inputs, compiled=is_so) for is_so in (True, False))
    assert_near(made, expected, 1e-10)


def test_a_machine_without_a_compiler_is_one_sentence():
    module._check_compiler.cache_clear()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)}),
        pytest.raises(ConfigError, match=r"install g\+\+.*or remove `rows\.compiled`"),
    ):
        row_backend(case_named("mlp").network(), 2.0, Arithmetic(compiled=True))
