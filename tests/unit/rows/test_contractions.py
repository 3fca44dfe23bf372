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


@pytest.fixture
def compiler() -> None:
    """Skips where there is none."""
    try:
        module._check_compiler()
    except ConfigError:
        pytest.skip("a C++ compiler is needed, and this machine has none")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"])
def test_every_verb_is_the_uncompiled_one_by_whole_graphs(dtype, rtol):
    counters.clear()
    case = case_named("mlp")
    network, batch = case.network(dtype=dtype, tile_weights=1000), case.batches[0]
    plain, compiled = (row_backend(network, 2.0, Arithmetic(compiled=is_so)) for is_so in (False, True))
    first, second = (backend.rows(batch, some_cotangents(3)) for backend in (plain, compiled))
    columns = by_tile(network.layout, numbers("columns", network.layout.num_weights, 40).to(dtype))
    assert_near(second.times(columns), first.times(columns), rtol)
    made = [joined(transposed(network.layout, rows, numbers("weights", len(batch), 3, 40))) for rows in (first, second)]
    assert_near(made[1], made[0], rtol)
    assert_near(second.gram(), first.gram(), rtol)
    assert_near(joined(squared(network.layout, second)), joined(squared(network.layout, first)), rtol)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


@pytest.mark.usefixtures("compiler")
def test_bits_do_not_depend_on_the_sizes_that_came_before():
    sizes = [(8, 8), (5, 8), (1, 8), (24, 300)]
    rows = {size: numbers(f"rows {size}", *size).float() for size in sizes}

    def sums(order: list[tuple[int, int]]) -> dict[tuple[int, int], torch.Tensor]:
        module._compiled.cache_clear()
        torch._dynamo.reset()
        into = {size: torch.zeros(size[1]) for size in order}
        for size in order:
            module.Compiled().squares(rows[size], into[size])
        return into

    one, other = sums(sizes), sums(sizes[::-1])
    assert all(torch.equal(one[size], other[size]) for size in sizes)


@pytest.mark.usefixtures("compiler")
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
