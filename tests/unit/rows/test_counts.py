"""What the planner counts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from afterfit.rows.counts import Counts, both_ways, by_rows, pulled, pushed
from afterfit.rows.rules import multiplications
from cases import ATTENTION_CASES, NETWORK_CASES


class Counting(TorchFunctionMode):
    """Adds up what every operation under it takes."""

    total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.total += multiplications(func, args, kwargs or {}, result)
        return result


def counted(run) -> tuple[int, int]:
    """Ours, and half of torch's own count of floating point operations."""
    with Counting() as ours, torch.no_grad():
        run()
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        run()
    return ours.total, theirs.get_total_flops() // 2


@pytest.mark.parametrize("case", NETWORK_CASES, ids=str)
def test_every_multiplication_of_a_network_is_counted(case):
    network, batch = case.network(attention="eager"), case.batches[0]
    ours, theirs = counted(lambda: network(batch.inputs))
    assert ours == theirs > 0


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_fused_attention_counts_as_much_as_the_eager_one(case):
    batch = case.batches[0]
    fused, _ = counted(lambda: case.network(attention="sdpa")(batch.inputs))
    eager, _ = counted(lambda: case.network(attention="eager")(batch.inputs))
    assert fused == eager


@pytest.mark.parametrize(
    "run",
    [
        lambda: Conv1D(5, 3)(torch.ones(2, 4, 3)),
        lambda: F.linear(input=torch.ones(2, 3), weight=torch.ones(5, 3)),
        lambda: F.conv2d(torch.ones(2, 4, 6, 6), weight=torch.ones(8, 2, 3, 3), groups=2),
        lambda: nn.Conv1d(3, 4, 2)(torch.ones(2, 3, 7)),
        lambda: torch.addmm(torch.ones(5), mat1=torch.ones(2, 3), mat2=torch.ones(3, 5)),
        lambda: torch.matmul(torch.ones(2, 3), other=torch.ones(3, 5)),
    ],
)
def test_so_is_every_way_to_write_a_product(run):
    ours, theirs = counted(run)
    assert ours == theirs > 0


def test_few_columns_go_by_columns_and_many_by_rows():
    layers = [Counts(size=64, made=64 * 10, direct=64 * 10, crossed=80)] * 3
    passed = sum(layer.made for layer in layers)
    alone = {k: pushed(passed, k) < by_rows(layers, passed, 10, k) for k in (1, 4, 8, 32, 128)}
    assert alone == {1: True, 4: True, 8: True, 32: False, 128: False}


def test_rows_that_serve_two_products_are_cheaper_than_columns_sooner():
    layers = [Counts(size=64, made=64 * 10, direct=64 * 10, crossed=80)] * 3
    passed = sum(layer.made for layer in layers)
    ways = {k: both_ways(layers, passed, 10, k, are_kept=True) for k in (1, 4, 8)}
    assert {k: columns < rows for k, (rows, columns) in ways.items()} == {1: True, 4: True, 8: False}
    again, _ = both_ways(layers, passed, 10, 8, are_kept=False)
    assert again == ways[8][0] + 10 * passed  # the rows are made again
    assert ways[8][1] == pushed(passed, 8) + pulled(passed, 8)


@pytest.mark.parametrize("num_cotangents", [1, 9, 100])
@pytest.mark.parametrize("num_columns", [1, 20, 300])
@pytest.mark.parametrize("positions", [1, 65, 4096])
def test_the_cheaper_of_both_contractions_is_taken(num_cotangents, num_columns, positions):
    num_inputs, num_outputs = 192, 768
    size = num_inputs * num_outputs
    layer = Counts(size, positions * size, positions * size, positions * num_outputs)
    with_rows = num_cotangents * (positions * size + num_columns * size)
    without = num_columns * positions * (size + num_cotangents * num_outputs)
    assert layer.contracted(num_cotangents, num_columns, are_kept=False) == min(with_rows, without)
    assert layer.prefers_direct(num_cotangents, num_columns) == (without < with_rows)
