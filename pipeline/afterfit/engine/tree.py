"""The binary tree that a sum over units is taken in, and what of it is still to be done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from afterfit.algebra import Result, State, Unit


class Node(NamedTuple):
    """The sum of units number * 2^level to (number + 1) * 2^level - 1, as far as there are such units."""

    level: int
    number: int


@dataclass(frozen=True)
class Tree:
    """The tree of `algebra.merge_in_order` over some units: its shape depends only on how many there are."""

    place: str
    units: Sequence[Unit]

    @property
    def root(self) -> Node:
        """The sum of all units."""
        return self._settle(Node((len(self.units) - 1).bit_length(), 0))

    def children(self, node: Node) -> tuple[Node, Node] | None:
        """The two that make up `node`; None for a single unit."""
        if node.level == 0:
            return None
        left, right = Node(node.level - 1, 2 * node.number), Node(node.level - 1, 2 * node.number + 1)
        return self._settle(left), self._settle(right)

    def at(self, node: Node) -> str:
        """Its place in the store."""
        return f"{self.place}/{node.level}-{node.number:05d}"

    def remaining(self, existing: Collection[str]) -> Iterator[Node]:
        """Nodes still to be made, children before parents, neighbours merged as soon as both are there.

        What exists is used, and nothing below it is made again.
        """
        yield from self._below(self.root, existing)

    def _below(self, node: Node, existing: Collection[str]) -> Iterator[Node]:
        if self.at(node) in existing:
            return
        for child in self.children(node) or ():
            yield from self._below(child, existing)
        yield node

    def _settle(self, node: Node) -> Node:
        """A node without a right half is its left half: a leftover goes up unchanged."""
        while node.level and (2 * node.number + 1) << (node.level - 1) >= len(self.units):
            node = Node(node.level - 1, 2 * node.number)
        return node


def trees(place: str, units: Sequence[Unit]) -> list[Tree]:
    """One tree below `place` for each tree name, in the order in which the names first appear."""
    grouped: dict[str, list[Unit]] = {}
    for unit in units:
        grouped.setdefault(unit.tree, []).append(unit)
    return [Tree(f"{place}/node/{name}", members) for name, members in grouped.items()]


def merged(merge: Callable[[State, State], State], left: State, right: State) -> Result:
    """Two lazy states as the lazy result of their merge; two tiles are in memory at a time, and their sum."""
    if set(left) != set(right):
        odd = sorted(set(left) ^ set(right))[0]
        raise ValueError(f"Two sums of one tree have different tiles: {odd!r} is in one of them only.")

    def stream(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            total = merge({name: left[name]}, {name: right[name]})
            yield name.partition("/")[2], total[name]

    families: dict[str, list[str]] = {}
    for name in left:
        families.setdefault(name.partition("/")[0], []).append(name)
    return Result(tensors={family: stream(names) for family, names in families.items()})


class Union(Mapping[str, Tensor]):
    """Several lazy states as one.

    Raises:
        ValueError: if two of them have a tile of the same name.
    """

    def __init__(self, states: Sequence[State]) -> None:
        self._owner: dict[str, State] = {}
        for state in states:
            for name in state:
                if name in self._owner:
                    raise ValueError(f"The tile {name!r} is in the sums of two trees; name tiles by their tree.")
                self._owner[name] = state

    def __getitem__(self, name: str) -> Tensor:
        return self._owner[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def __len__(self) -> int:
        return len(self._owner)
