"""The merge tree: the shape of the law, and only what is missing of it."""

import pytest
import torch

from afterfit.algebra import Unit, add, merge_in_order
from afterfit.engine.tree import Node, Tree, Union, merged, trees
from afterfit.lazy import LazyMapping


def tree_of(size: int) -> Tree:
    return Tree("place/node/all", [Unit(str(number)) for number in range(size)])


def bracketed(tree: Tree, node: Node) -> str:
    children = tree.children(node)
    if children is None:
        return tree.units[node.number].name
    return f"({bracketed(tree, children[0])} {bracketed(tree, children[1])})"


@pytest.mark.parametrize("size", range(1, 34))
def test_the_tree_has_the_shape_of_merge_in_order(size):
    tree = tree_of(size)
    expected = merge_in_order(lambda left, right: f"({left} {right})", map(str, range(size)))
    assert bracketed(tree, tree.root) == expected


@pytest.mark.parametrize("size", range(1, 34))
def test_children_come_before_their_parents_and_neighbours_merge_as_soon_as_they_can(size):
    tree = tree_of(size)
    order = list(tree.remaining(()))
    assert len(order) == 2 * size - 1
    waiting: list[Node] = []
    for node in order:
        children = tree.children(node)
        if children:
            assert waiting[-2:] == list(children)
            del waiting[-2:]
        waiting.append(node)
    assert waiting == [tree.root]


def test_what_exists_is_used_and_nothing_below_it_is_made_again():
    tree = tree_of(6)
    existing = {tree.at(Node(2, 0)), tree.at(Node(0, 5))}
    assert list(tree.remaining(existing)) == [Node(0, 4), Node(1, 2), Node(3, 0)]
    assert list(tree.remaining({tree.at(tree.root)})) == []


def test_each_tree_name_has_a_tree_of_its_own():
    units = [Unit("a", tree="x"), Unit("b", tree="y"), Unit("c", tree="x")]
    first, second = trees("stage", units)
    assert (first.place, [unit.name for unit in first.units]) == ("stage/node/x", ["a", "c"])
    assert (second.place, [unit.name for unit in second.units]) == ("stage/node/y", ["b"])


def test_merging_reads_one_tile_of_each_side_at_a_time():
    read: list[str] = []

    def lazy(side: str, value: float) -> LazyMapping:
        def reader(name: str):
            def read_it() -> torch.Tensor:
                read.append(f"{side} {name}")
                return torch.full((2,), value)

            return read_it

        return LazyMapping({name: reader(name) for name in ("a/0", "a/1", "b/0")})

    result = merged(add, lazy("left", 1.0), lazy("right", 2.0))
    assert read == []
    tiles = iter(result.tensors["a"])
    name, tensor = next(iter(tiles))
    assert (name, tensor.tolist()) == ("0", [3.0, 3.0])
    assert read == ["left a/0", "right a/0"]
    assert [name for name, _ in tiles] == ["1"]
    assert [name for name, _ in result.tensors["b"]] == ["0"]


def test_sums_with_different_tiles_cannot_be_merged():
    with pytest.raises(ValueError, match="'a/1' is in one of them only"):
        merged(add, {"a/0": torch.ones(1)}, {"a/0": torch.ones(1), "a/1": torch.ones(1)})


def test_a_union_is_lazy_and_refuses_equal_names():
    union = Union([LazyMapping({"x/0": lambda: torch.ones(1)}), {"y/0": torch.zeros(1)}])
    assert list(union) == ["x/0", "y/0"]
    assert len(union) == 2
    assert union["x/0"].item() == 1.0
    with pytest.raises(ValueError, match="'y/0' is in the sums of two trees"):
        Union([{"y/0": torch.ones(1)}, {"y/0": torch.ones(1)}])
