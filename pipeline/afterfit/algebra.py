"""What a fit is made of: sums over data that any engine may split, and iterations whose steps run in order.

A *state* is a flat mapping "family/tile" -> tensor, for example {"image/00003": (P_tile, S)}. It can go into
the store as it is, and it merges tile by tile.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import pyarrow as pa
import torch
from torch import Tensor

State = Mapping[str, Tensor]
Item = TypeVar("Item")


class Batch(NamedTuple):
    """A micro-batch as the network takes it."""

    inputs: Mapping[str, Tensor]  # keyed by forward's argument names, first dimension B
    targets: Tensor | None  # (B,) labels, or (B, C) numbers; None where the data have none
    indexes: Tensor  # (B,) positions in the data set, int64

    def __len__(self) -> int:
        """B; a named tuple's own length would be its number of fields."""
        return len(self.indexes)


class Examples(Protocol):
    """A data set of known length whose examples can be had in any order, the same each time."""

    @property
    def num_examples(self) -> int:
        """N."""
        ...

    def batch(self, indexes: Sequence[int]) -> Batch:
        """These examples, in this order."""
        ...

    def targets(self) -> Tensor:
        """Labels (N,) or target numbers (N, C) of all examples, without decoding the inputs."""
        ...


@runtime_checkable
class Ragged(Protocol):
    """Examples of different lengths: a batch is as long as the longest of its examples."""

    def micro_batches(self, indexes: Sequence[int], micro_batch: int) -> Sequence[Sequence[int]]:
        """See `micro_batches`; `micro_batch` counts examples of full length."""
        ...

    def full_batch(self, indexes: Sequence[int]) -> Batch:
        """These examples, in full length."""
        ...


def consecutive(indexes: Sequence[int], micro_batch: int) -> Sequence[Sequence[int]]:
    """Runs of these examples; the last may be shorter, none is dropped."""
    return [indexes[first : first + micro_batch] for first in range(0, len(indexes), micro_batch)]


def micro_batches(examples: Examples, indexes: Sequence[int], micro_batch: int) -> Sequence[Sequence[int]]:
    """The micro-batches of these examples in their fixed order, as indexes; every example occurs once.

    They are runs in the order given, unless the examples have lengths: then those of like length are together, within
    the tokens of `micro_batch` examples of full length. Cursors count them.
    """
    is_ragged = isinstance(examples, Ragged)
    return (examples.micro_batches if is_ragged else consecutive)(indexes, micro_batch)


def batches(examples: Examples, planned: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Planned micro-batches, one after another."""
    return map(examples.batch, planned)


def pieces_of(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of so many examples, in order; nothing is copied."""
    for first in range(0, len(batch), size):
        part = slice(first, first + size)
        targets = None if batch.targets is None else batch.targets[part]
        yield Batch({name: value[part] for name, value in batch.inputs.items()}, targets, batch.indexes[part])


def in_data_order(whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Back from the order of micro-batches: tensors (n, ...) by ascending `index` (n,), which is one of them.

    They are copied if need be.
    """
    order_n = whole["index"].argsort()
    if torch.equal(order_n, torch.arange(len(order_n))):
        return dict(whole)
    return {family: values[order_n] for family, values in whole.items()}


def full_batch(examples: Examples, indexes: Sequence[int]) -> Batch:
    """Examples in the full length that memory and work are counted for."""
    return examples.full_batch(indexes) if isinstance(examples, Ragged) else examples.batch(indexes)


@dataclass(frozen=True)
class Result:
    """What a piece of work leaves in the store. Tensors may be lazy: they are written tile by tile."""

    # family -> (tile, tensor)
    tensors: Mapping[str, Iterable[tuple[str, Tensor]]] = field(default_factory=dict)
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # plain JSON values

    @classmethod
    def of_state(cls, state: State, facts: Mapping[str, Any] | None = None) -> "Result":
        """A state as a result: one family of tensors for each prefix of its names.

        A lazy state is read as it is written, one tile at a time.
        """
        families: dict[str, list[str]] = {}
        for name in state:
            families.setdefault(name.partition("/")[0], []).append(name)

        def stream(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
            for name in names:
                yield name.partition("/")[2], state[name]

        return cls(tensors={family: stream(names) for family, names in families.items()}, facts=facts or {})


class Artifact(Protocol):
    """Something finished in the store, opened for reading; what is read is verified."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Plain values; of a union those of its parts, then its own."""
        ...

    @property
    def families(self) -> Sequence[str]:
        """Names of the families of tensors."""
        ...

    def tiles(self, family: str) -> Mapping[str, Tensor]:
        """Lazy mapping tile -> tensor, in the order written; each access reads (or maps) one tile."""
        ...

    def tensor(self, family: str) -> Tensor:
        """All tiles of a family, concatenated along the first dimension."""
        ...

    def table(self, name: str) -> pa.Table:
        """A table, whole."""
        ...

    def state(self) -> State:
        """All families as one lazy state."""
        ...


@dataclass(frozen=True, slots=True)
class Unit:
    """A named, resumable piece of work: a data shard, a group of tiles, a query."""

    name: str  # unique within the stage, fit for a path
    details: Mapping[str, Any] = field(default_factory=dict)  # plain JSON values
    tree: str = "all"  # reduce merges the units of one tree with each other, in the order given
    cost: float = 1.0  # relative, for progress and scheduling only


class Cursor(Protocol):
    """How a long unit remembers where it is. The engine decides how often a save is written."""

    def resume(self) -> tuple[int, State] | None:
        """The last saved position and state, or None at the beginning."""
        ...

    def reached(self, position: int, total: int, state: State) -> None:
        """Report progress; the state is saved when a save is due."""
        ...


class Unsaved:
    """A cursor of work that is short, or whose result is not kept."""

    def resume(self) -> None:
        """From the beginning."""

    def reached(self, position: int, total: int, state: State) -> None:
        """Nothing is saved."""


class Accumulator(Protocol):
    """A sum over data that any engine may split.

    Laws, up to rounding of the state's dtype:
        merge(init(), s) == s == merge(s, init())
        merge(a, merge(b, c)) == merge(merge(a, b), c)
        accumulate(s, x) == merge(s, accumulate(init(), x))
        merge acts tile by tile: merge({t: a[t]}, {t: b[t]}) == {t: merge(a, b)[t]}
    """

    def init(self) -> State:
        """The empty sum."""
        ...

    def accumulate(self, state: State, batch: Any) -> State:
        """Add one batch. May reuse the memory of `state`."""
        ...

    def merge(self, left: State, right: State) -> State:
        """Add two sums of disjoint data."""
        ...


class Task(Protocol):
    """Work of one unit that depends on no other unit. What a recipe's `on` gives for `map`."""

    def run(self, unit: Unit, cursor: Cursor) -> Result:
        """Do the unit."""
        ...


class Reducer(Protocol):
    """A sum over units. What a recipe's `on` gives for `reduce`."""

    def leaf(self, unit: Unit, cursor: Cursor) -> State:
        """The sum of one unit, usually `fold` of an accumulator over its batches."""
        ...

    def merge(self, left: State, right: State) -> State:
        """Add two sums; called tile by tile."""
        ...

    def finalise(self, state: State) -> Result:
        """From the total, read lazily, to what the stage leaves behind."""
        ...


class Stop(StrEnum):
    """Why an iteration ended."""

    CONVERGED = "the tolerance was reached"
    FINISHED = "all steps were made"
    BUDGET = "the step budget ran out; raise `max_rounds` or loosen `tolerance`"
    STALLED = "the residual stopped falling"


class Progress(NamedTuple):
    """Where an iteration stands after a step."""

    stop: Stop | None  # None while running
    figures: Mapping[str, float]  # e.g. {"residual": 1e-3}


class Rounds(Protocol):
    """An iteration by rounds: each round is one reduction over all units, then one small step.

    Only the state between rounds is saved. States that are given are read tile by tile from the store at each access,
    and those that are returned may be lazy too.
    """

    def init(self) -> State:
        """The state before the first round."""
        ...

    def leaf(self, state: State, unit: Unit, cursor: Cursor) -> State:
        """One unit's part of the round's sum, given the state that was broadcast."""
        ...

    def merge(self, left: State, right: State) -> State:
        """Add two parts; called tile by tile."""
        ...

    def advance(self, state: State, total: State) -> tuple[State, Progress]:
        """From the round's sum to the next state."""
        ...

    def finalise(self, state: State) -> Result:
        """From the last state to what the stage leaves behind."""
        ...


class Gang(Protocol):
    """The workers that make one step together, seen from one of them.

    The recipe fixes the number of slices; each worker runs some of them, and every sum is taken in the order
    of the slices, so the bits do not depend on how many workers there are.
    """

    num_slices: int
    mine: Sequence[int]  # slices this worker runs, ascending

    def sum(self, parts: Sequence[State]) -> State:
        """Sum over all slices, in slice order, of what each worker gives for its own slices."""
        ...

    def gather(self, parts: Sequence[State]) -> list[State]:
        """What every slice gave, in slice order, on every worker."""
        ...

    def exchange(self, parts: Sequence[Sequence[State]]) -> list[list[State]]:
        """From each of this worker's slices a state for every slice, to each of them what every slice had for it.

        Both in slice order. Nobody else gets it, and what stays with a worker is not copied.
        """
        ...


class Steps(Protocol):
    """An iteration by a gang: many short steps, each a sum over the recipe's slices."""

    num_slices: int
    num_steps: int

    def init(self) -> State:
        """The state before the first step, which may be lazy."""
        ...

    def step(self, state: State, number: int, gang: Gang) -> tuple[State, Progress]:
        """Step `number`, counted from 0; all randomness is named by it. May reuse the memory of `state`."""
        ...

    def finalise(self, state: State, progress: pa.Table) -> Result:
        """From the last state, and the figures of all steps, to what the stage leaves behind."""
        ...


@runtime_checkable
class Sharded(Protocol):
    """Steps whose state is too large for one worker: parts of it are held, and saved, by those who run a slice.

    Steps get and give the part of the state that their worker holds; `finalise` reads the whole of it, lazily.
    """

    def owner(self, name: str) -> int | None:
        """The slice whose worker holds a tensor of the state; None for what every worker holds."""
        ...


def add(left: State, right: State) -> State:
    """The usual merge: tile by tile, plain addition."""
    return {name: left[name] + right[name] for name in left}


def largest(left: State, right: State) -> State:
    """The merge of greatest values: tile by tile, entry by entry."""
    return {name: torch.maximum(left[name], right[name]) for name in left}


def fold(accumulator: Accumulator, items: Callable[[int], Iterable[Any]], total: int, cursor: Cursor) -> State:
    """Accumulate items from where the cursor stands to the end.

    Args:
        accumulator: the sum.
        items: from a position, the items from there on, in their fixed order.
        total: how many there are from position 0.
        cursor: remembers the position and the state.
    """
    position, state = cursor.resume() or (0, accumulator.init())
    for item in items(position):
        state = accumulator.accumulate(state, item)
        position += 1
        cursor.reached(position, total, state)
    return state


def merge_in_order(merge: Callable[[Item, Item], Item], items: Iterable[Item]) -> Item:
    """Combine neighbours pairwise, level by level; the shape of the tree depends only on how many there are.

    Works on a stream and holds at most one item a level. An aligned run of a power of two items can be merged
    beforehand without changing the tree.
    """
    stack: list[tuple[int, Item]] = []  # (level, item), levels falling
    for item in items:
        level = 0
        while stack and stack[-1][0] == level:
            item = merge(stack.pop()[1], item)
            level += 1
        stack.append((level, item))
    if not stack:
        raise ValueError("There is nothing to merge.")
    _, total = stack.pop()
    while stack:
        total = merge(stack.pop()[1], total)
    return total


def fold_examples(
    accumulator: Accumulator, examples: Examples, indexes: Sequence[int], micro_batch: int, cursor: Cursor
) -> State:
    """Accumulate these examples in their planned micro-batches, from where the cursor stands."""
    planned = micro_batches(examples, indexes, micro_batch)
    return fold(accumulator, lambda position: batches(examples, planned[position:]), len(planned), cursor)
