"""Outputs of the network itself at stored draws: in the data's order, resumed draw by draw, in the network's dtype."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from afterfit.algebra import State, Unit
from afterfit.errors import NetworkError
from afterfit.predict.sampled import SampledOutputs, moved_weights
from cases import TensorExamples, assert_near, case_named
from toy_draws import noise

CASE = case_named("mlp")
SCALE, NUM_DRAWS = 0.2, 4


@dataclass(frozen=True, eq=False)
class ByParity(TensorExamples):
    """As data with lengths: even examples first."""

    def micro_batches(self, indexes: Sequence[int], micro_batch: int) -> Sequence[Sequence[int]]:
        ordered = sorted(indexes, key=lambda index: (index % 2, index))
        return [ordered[first : first + micro_batch] for first in range(0, len(ordered), micro_batch)]

    def full_batch(self, indexes: Sequence[int]):
        return self.batch(indexes)


@dataclass
class Memory:
    """A cursor that keeps every state, and may begin anywhere."""

    begin: tuple[int, State] | None = None
    seen: dict[int, State] = field(default_factory=dict)

    def resume(self) -> tuple[int, State] | None:
        return self.begin

    def reached(self, position: int, total: int, state: State) -> None:
        assert total == NUM_DRAWS
        self.seen[position] = state


def columns(network: Any) -> dict[str, torch.Tensor]:
    return {
        tile.name: torch.stack([noise(0, tile.name, tile.size, number) for number in range(NUM_DRAWS)], dim=1)
        for tile in network.layout
    }


def task(examples: Any = CASE.examples):
    network = CASE.network()
    inputs = {
        "draws": SimpleNamespace(tiles=lambda _: columns(network)),
        "scale": SimpleNamespace(facts={"scale": SCALE}),
    }
    at_hand = {"network": network, "layout": network.layout, "memory_gb": 2.0, "micro_batch": 4}
    bench = SimpleNamespace(**at_hand, data=lambda _: examples, input=inputs.__getitem__)
    return SampledOutputs("test").on(bench)  # type: ignore[arg-type]


UNIT = Unit("shard-00000", {"start": 2, "stop": 12})


def run(cursor: Memory, examples: Any = CASE.examples) -> dict[str, torch.Tensor]:
    return {family: dict(tiles)["shard-00000"] for family, tiles in task(examples).run(UNIT, cursor).tensors.items()}


def test_micro_batches_in_another_order_come_back_in_that_of_the_data():
    plain, shuffled = run(Memory()), run(Memory(), ByParity(CASE.examples.inputs, CASE.examples.labels))
    assert plain["index"].tolist() == shuffled["index"].tolist() == list(range(2, 12))
    assert torch.equal(plain["target"], shuffled["target"])
    assert_near(shuffled["features"], plain["features"], 1e-12)  # float64, batches of another make-up
    assert plain["features"].shape == (10, 4, NUM_DRAWS)


@pytest.mark.parametrize("position", range(NUM_DRAWS + 1))
def test_an_interrupted_unit_goes_on_from_any_draw_with_the_same_bits(position):
    cursor = Memory()
    whole = run(cursor)
    begun = (position, cursor.seen[position]) if position else None
    again = Memory(begun)
    resumed = run(again)
    assert sorted(again.seen) == list(range(position + 1, NUM_DRAWS + 1))
    assert all(torch.equal(whole[family], resumed[family]) for family in whole)


def test_moved_weights_are_in_the_dtype_of_the_network_and_need_all_of_it_in_memory():
    network = CASE.network(dtype=torch.float32)
    moved = moved_weights(network, columns(network), 1, SCALE)
    assert {value.dtype for value in moved.values()} == {torch.float32}
    assert not torch.equal(moved["0.weight"], network.weights["0.weight"])
    network.weights["0.weight"] = network.weights["0.weight"].to("meta")
    with pytest.raises(NetworkError, match=r"'0.weight' is put away; set `prediction.by: linearised`"):
        moved_weights(network, {}, 0, SCALE)
