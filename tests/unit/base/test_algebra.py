"""The fixed tree of sums, resumable folds, and the small records around them."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afterfit.algebra import Batch, Result, add, batches, fold, merge_in_order, micro_batches


def joined(left: str, right: str) -> str:
    """Shows the tree: neither commutative nor associative."""
    return f"({left}{right})"


def level_by_level(items: list[str]) -> str:
    """Combine neighbours pairwise until one is left; the definition in its plainest form."""
    while len(items) > 1:
        pairs = [joined(left, right) for left, right in zip(items[::2], items[1::2], strict=False)]
        items = pairs + items[len(items) // 2 * 2 :]
    return items[0]


def leaves(num: int) -> list[str]:
    return [f"<{number}>" for number in range(num)]


@given(st.integers(1, 200))
def test_the_tree_is_the_pairwise_one(num):
    assert merge_in_order(joined, iter(leaves(num))) == level_by_level(leaves(num))


@given(st.integers(1, 200), st.integers(0, 6))
def test_merging_aligned_runs_of_a_power_of_two_beforehand_changes_nothing(num, power):
    run = 1 << power
    items = leaves(num)
    runs = [merge_in_order(joined, items[start : start + run]) for start in range(0, num, run)]
    assert merge_in_order(joined, runs) == merge_in_order(joined, items)


def test_runs_of_another_length_would_change_the_tree():
    runs = [merge_in_order(joined, leaves(9)[start : start + 3]) for start in range(0, 9, 3)]
    assert merge_in_order(joined, runs) != merge_in_order(joined, leaves(9))


def test_a_stream_is_held_one_item_a_level():
    alive = most = 0

    def stream():
        nonlocal alive, most
        for leaf in leaves(64):
            alive += 1
            most = max(most, alive)
            yield leaf

    def merge(left, right):
        nonlocal alive
        alive -= 1
        return joined(left, right)

    merge_in_order(merge, stream())
    assert most == 7  # log2(64) levels and the leaf just read


def test_one_item_is_its_own_sum_and_none_is_an_error():
    assert merge_in_order(joined, ["a"]) == "a"
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_in_order(joined, [])


def test_plain_addition_acts_tile_by_tile():
    left = {"image/0": torch.tensor([1.0, 2.0]), "image/1": torch.tensor([3.0])}
    right = {"image/0": torch.tensor([10.0, 20.0]), "image/1": torch.tensor([30.0])}
    total = add(left, right)
    assert {name: tile.tolist() for name, tile in total.items()} == {
        "image/0": [11.0, 22.0],
        "image/1": [33.0],
    }


class Trace:
    """An accumulator that remembers what it was given, in order."""

    def init(self):
        return {"seen/all": torch.zeros(0, dtype=torch.int64)}

    def accumulate(self, state, batch):
        return {"seen/all": torch.cat([state["seen/all"], torch.tensor([batch])])}

    def merge(self, left, right):
        return {"seen/all": torch.cat([left["seen/all"], right["seen/all"]])}


@dataclass
class Notes:
    """A cursor that keeps every position."""

    saved: tuple | None = None
    reached_at: list = field(default_factory=list)
    every: list = field(default_factory=list)

    def resume(self):
        return self.saved

    def reached(self, position, total, state):
        self.reached_at.append((position, total))
        self.every.append((position, state))


def run_from(saved) -> tuple[list[int], Notes]:
    notes = Notes(saved)
    state = fold(Trace(), lambda position: range(position, 6), 6, notes)
    return state["seen/all"].tolist(), notes


def test_a_fold_resumes_at_every_position_to_the_same_state():
    whole, notes = run_from(None)
    assert whole == [0, 1, 2, 3, 4, 5]
    assert notes.reached_at == [(position, 6) for position in range(1, 7)]
    for position, state in [(0, Trace().init()), *notes.every]:
        again, later = run_from((position, state))
        assert again == whole
        assert later.reached_at == notes.reached_at[position:]


class Numbers:
    """Examples that are their own indexes."""

    num_examples = 10

    def batch(self, indexes):
        chosen = torch.tensor(list(indexes))
        return Batch({"x": chosen[:, None]}, None, chosen)


@given(st.integers(0, 10), st.integers(0, 10), st.integers(1, 12))
def test_micro_batches_drop_nothing_and_keep_the_order(start, stop, micro_batch):
    made = list(batches(Numbers(), micro_batches(Numbers(), range(start, stop), micro_batch)))
    assert [int(index) for batch in made for index in batch.indexes] == list(range(start, stop))
    assert all(len(batch) == micro_batch for batch in made[:-1])
    assert all(0 < len(batch) <= micro_batch for batch in made)


def test_a_state_becomes_a_result_by_family():
    state = {"image/1": torch.ones(1), "image/2": torch.ones(2), "count/all": torch.ones(3)}
    result = Result.of_state(state, {"rank": 3})
    shape = {family: [(tile, len(tensor)) for tile, tensor in tiles] for family, tiles in result.tensors.items()}
    assert shape == {"image": [("1", 1), ("2", 2)], "count": [("all", 3)]}
    assert result.facts == {"rank": 3}


def test_a_lazy_state_is_read_tile_by_tile_only_as_its_result_is_written():
    read = []

    class Lazy(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    result = Result.of_state(Lazy({"image/0": torch.ones(1), "image/1": torch.ones(1)}))
    assert read == []
    next(iter(result.tensors["image"]))
    assert read == ["image/0"]
