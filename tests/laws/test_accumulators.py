"""The laws of `Accumulator` over a table of all: a new one costs one row of `ACCUMULATOR_CASES`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from afterfit.algebra import Accumulator, Batch, State, Unit, Unsaved, fold
from afterfit.arithmetic import PLAIN, Arithmetic
from afterfit.layout import Layout
from afterfit.methods.ggn_nystrom import GgnSketch, SketchSum
from afterfit.methods.projection.passes import Times, TransposeTimes
from afterfit.methods.projection.protected import Kernel, Protected
from afterfit.methods.projection.unit_rows import ProtectedRows
from afterfit.methods.subspace import CurvatureSum
from afterfit.network.functional import Network
from afterfit.precision import state_dtype
from afterfit.seeds import Seed, normals
from afterfit.training.noise import ResidualSum
from cases import NETWORK_CASES, NetworkCase, assert_near, case_named


@dataclass(frozen=True)
class Bench:
    """As much of a workbench as an accumulator looks at."""

    network: Network
    inputs: Mapping[str, Any] = field(default_factory=dict)
    memory_gb: float = 2.0
    arithmetic: Arithmetic = PLAIN
    num_outputs: int = 0
    size: int = 0

    @property
    def state_bytes(self) -> int:
        return state_dtype(self.network.dtype).itemsize

    def num_examples(self, role: str) -> int:
        return self.size

    @property
    def layout(self) -> Layout:
        return self.network.layout

    def input(self, role: str) -> Any:
        return self.inputs[role]


def sketch(case: NetworkCase, network: Network, micro_batches: Sequence[Batch]) -> Accumulator:
    recipe = GgnSketch(num_probes=5, seed=3, likelihood=case.likelihood)
    return SketchSum(recipe, Bench(network), network.layout.tiles)


def sampled_sketch(case: NetworkCase, network: Network, micro_batches: Sequence[Batch]) -> Accumulator:
    recipe = GgnSketch(num_probes=5, seed=3, likelihood=case.likelihood, num_samples=2)
    return SketchSum(recipe, Bench(network), network.layout.tiles)


def sketch_of_some_tiles(case: NetworkCase, network: Network, micro_batches: Sequence[Batch]) -> Accumulator:
    recipe = GgnSketch(num_probes=5, seed=3, likelihood=case.likelihood)
    return SketchSum(recipe, Bench(network), network.layout.tiles[1:3])


def subspace_curvature(case: NetworkCase, network: Network, micro_batches: Sequence[Batch]) -> Accumulator:
    basis = {tile.name: normals(Seed(5).child(tile.name), tile.size, 4, dtype=torch.float64) for tile in network.layout}
    bench = Bench(network, {"basis": SimpleNamespace(tiles={"basis": basis}.get)})
    return Positioned(CurvatureSum(case.likelihood, bench, len(micro_batches)), micro_batches)


def residuals(case: NetworkCase, network: Network, micro_batches: Sequence[Batch]) -> Accumulator:
    return ResidualSum(Bench(network))


def protected_rows(case: NetworkCase, network: Network, kernel: Kernel) -> tuple[ProtectedRows, Unit]:
    protected = Protected(kernel, case.likelihood)
    sizes = {"num_outputs": case.num_outputs, "size": case.num_examples}
    rows_each = protected.rows_each(Bench(network, **sizes))  # type: ignore[arg-type]
    lengths_NR = 1 + normals(Seed(6), case.num_examples, rows_each, dtype=torch.float64).square()
    bench = Bench(network, {"lengths": SimpleNamespace(tensor={"lengths": lengths_NR}.get)}, **sizes)
    return ProtectedRows(protected, bench), Unit("all", {"start": 0, "stop": case.num_examples})  # type: ignore[arg-type]


def rows_times(kernel: Kernel, case: NetworkCase, network: Network, micro_batches: Sequence[Batch]) -> Accumulator:
    rows, unit = protected_rows(case, network, kernel)
    columns = {
        tile.name: normals(Seed(7).child(tile.name), tile.size, 3, dtype=network.dtype) for tile in network.layout
    }
    return Times(rows, unit, columns)


def rows_transposed(kernel: Kernel, case: NetworkCase, network: Network, micro_batches: Sequence[Batch]) -> Accumulator:
    rows, unit = protected_rows(case, network, kernel)
    shape = (case.num_examples, rows.protected.rows_each(rows.bench), 3)
    return TransposeTimes(rows, unit, normals(Seed(8), *shape, dtype=torch.float64))


@dataclass(frozen=True)
class Positioned:
    """An accumulator of (position, batch) pairs as one of batches; each batch has one position."""

    inner: CurvatureSum
    micro_batches: Sequence[Batch]

    def init(self) -> State:
        return self.inner.init()

    def accumulate(self, state: State, batch: Batch) -> State:
        position = next(number for number, one in enumerate(self.micro_batches) if one is batch)
        return self.inner.accumulate(state, (position, batch))

    def merge(self, left: State, right: State) -> State:
        return self.inner.merge(left, right)


@dataclass(frozen=True)
class AccumulatorCase:
    name: str
    make: Callable[[NetworkCase, Network, Sequence[Batch]], Accumulator]
    likelihoods: tuple[str, ...] = ("categorical", "bernoulli", "gaussian")


ACCUMULATOR_CASES = (
    AccumulatorCase("ggn_sketch", sketch),
    AccumulatorCase("sampled_ggn_sketch", sampled_sketch),
    AccumulatorCase("ggn_sketch_of_some_tiles", sketch_of_some_tiles),
    AccumulatorCase("subspace_curvature", subspace_curvature),
    AccumulatorCase("residuals", residuals, likelihoods=("gaussian",)),
    AccumulatorCase("protected_rows_times", partial(rows_times, "predictive")),
    AccumulatorCase("layer_rows_times", partial(rows_times, "per_layer")),
    AccumulatorCase("protected_rows_transposed", partial(rows_transposed, "predictive")),
    AccumulatorCase("layer_rows_transposed", partial(rows_transposed, "per_layer")),
)

PAIRS = [
    pytest.param(one, case, id=f"{one.name}-{case}")
    for one, case in product(ACCUMULATOR_CASES, NETWORK_CASES)
    if case.likelihood.name in one.likelihoods
]
on_every_pair = pytest.mark.parametrize(("one", "case"), PAIRS)


def set_up(
    one: AccumulatorCase, case: NetworkCase, dtype: torch.dtype = torch.float64
) -> tuple[Accumulator, Callable[[Sequence[Batch]], State], list[Batch]]:
    """The accumulator, a fold of micro-batches from empty, and the micro-batches."""
    network = case.network(dtype=dtype)
    micro_batches = case.batches
    accumulator = one.make(case, network, micro_batches)

    def summed(some: Sequence[Batch]) -> State:
        return fold(accumulator, lambda position: some[position:], len(some), Unsaved())

    return accumulator, summed, micro_batches


def assert_same(actual: State, expected: State) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        assert actual[name].dtype == expected[name].dtype
        assert torch.equal(actual[name], expected[name]), name


def assert_close(actual: State, expected: State) -> None:
    """Sums of the same few numbers in another order: a few roundings of the state's own dtype."""
    assert list(actual) == list(expected)
    for name in expected:
        assert_near(actual[name], expected[name], 8 * eps_of(expected[name]))


def eps_of(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


@on_every_pair
def test_the_empty_sum_changes_nothing(one, case):
    accumulator, summed, micro_batches = set_up(one, case)
    state = summed(micro_batches)
    assert_same(accumulator.merge(accumulator.init(), state), state)
    assert_same(accumulator.merge(state, accumulator.init()), state)


@on_every_pair
def test_merging_is_associative(one, case):
    accumulator, summed, micro_batches = set_up(one, case)
    first, second, third = summed(micro_batches[:1]), summed(micro_batches[1:]), summed(micro_batches[:2])
    left = accumulator.merge(accumulator.merge(first, second), third)
    right = accumulator.merge(first, accumulator.merge(second, third))
    assert_close(left, right)


@on_every_pair
def test_accumulating_is_merging_with_one_batch(one, case):
    accumulator, summed, micro_batches = set_up(one, case)
    together = summed(micro_batches)
    apart = accumulator.merge(summed(micro_batches[:-1]), summed(micro_batches[-1:]))
    assert_close(together, apart)
    # The sum is not a constant: more data, another state.
    assert any(not torch.equal(together[name], summed(micro_batches[:1])[name]) for name in together)


@on_every_pair
def test_merging_acts_tile_by_tile(one, case):
    accumulator, summed, micro_batches = set_up(one, case)
    left, right = summed(micro_batches[:1]), summed(micro_batches[1:])
    whole = accumulator.merge(left, right)
    for name in whole:
        assert_same(accumulator.merge({name: left[name]}, {name: right[name]}), {name: whole[name]})


@on_every_pair
def test_a_fold_gives_the_same_bits_again(one, case):
    _, summed, micro_batches = set_up(one, case)
    _, again, same_batches = set_up(one, case)
    assert_same(summed(micro_batches), again(same_batches))


@pytest.mark.parametrize("one", ACCUMULATOR_CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_are_as_wide_as_the_network_or_wider(one, dtype):
    case = case_named("regression")
    _, summed, micro_batches = set_up(one, case, dtype)
    for name, tensor in summed(micro_batches).items():
        if tensor.is_floating_point():
            assert torch.finfo(tensor.dtype).bits >= torch.finfo(state_dtype(dtype)).bits, name
