"""The order of the weights and their tiles, over all shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from afterfit.errors import ConfigError
from afterfit.layout import MAX_TILES, TILE_WEIGHTS, Block, Layout

shapes = st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=8)
layouts = st.builds(
    lambda shapes, tile_weights: Layout(
        tuple(Block(f"block{number}", shape) for number, shape in enumerate(shapes)), tile_weights
    ),
    shapes,
    st.integers(1, 60),
)


def numbered(layout: Layout) -> dict[str, torch.Tensor]:
    """Block-shaped tensors whose entries are their own positions in the layout."""
    tensors, start = {}, 0
    for block in layout.blocks:
        tensors[block.name] = torch.arange(start, start + block.size).reshape(block.shape)
        start += block.size
    return tensors


@given(layouts)
def test_tiles_cover_every_weight_once_and_in_order(layout):
    tensors = numbered(layout)
    cuts = [layout.cut(tensors, tile) for tile in layout.tiles]
    assert torch.equal(torch.cat(cuts), torch.arange(layout.num_weights))
    for tile, cut in zip(layout.tiles, cuts, strict=True):
        assert tile.size == len(cut) > 0
        assert tile.offset == cut[0]


@given(layouts)
def test_a_tile_exceeds_its_size_only_for_one_long_row(layout):
    rows = {block.name: block.size // (block.shape[0] if block.shape else 1) for block in layout.blocks}
    for tile in layout.tiles:
        is_one_row = len(tile.pieces) == 1 and tile.pieces[0].stop - tile.pieces[0].start == 1
        assert tile.size <= layout.tile_weights or (is_one_row and tile.size == rows[tile.pieces[0].block])


@given(layouts)
def test_small_blocks_are_never_cut(layout):
    for block in layout.blocks:
        if block.size <= layout.tile_weights:
            assert sum(piece.block == block.name for tile in layout.tiles for piece in tile.pieces) == 1


@given(layouts, st.lists(st.integers(1, 3), max_size=2).map(tuple))
def test_assemble_is_the_inverse_of_cut(layout, trailing):
    tensors = numbered(layout)
    flat = {tile.name: layout.cut(tensors, tile) for tile in layout.tiles}
    wide = {name: cut.reshape(-1, *(1 for _ in trailing)).expand(-1, *trailing) for name, cut in flat.items()}
    for name, tensor in layout.assemble(flat).items():
        assert torch.equal(tensor, tensors[name])
    for name, tensor in layout.assemble(wide).items():
        assert tensor.shape == (*tensors[name].shape, *trailing)
        assert torch.equal(tensor.reshape(-1, *trailing)[(..., *(0 for _ in trailing))], tensors[name].reshape(-1))


@given(layouts, st.integers(1, 16), st.floats(0, 2000))
def test_groups_are_aligned_runs_of_a_power_of_two_within_the_budget(layout, bytes_per_weight, budget):
    groups = layout.groups(bytes_per_weight, budget)
    assert tuple(tile for group in groups for tile in group) == layout.tiles
    run = len(groups[0])
    if len(groups) > 1:
        assert run & (run - 1) == 0
        assert all(len(group) == run for group in groups[:-1])
        assert len(groups[-1]) <= run

    def largest(length: int) -> int:
        sizes = [tile.size for tile in layout.tiles]
        return max(sum(sizes[start : start + length]) for start in range(0, len(sizes), length)) * bytes_per_weight

    if run > 1:
        assert largest(run) <= budget
    if len(groups) > 1:
        power = 1 << (run - 1).bit_length()
        assert largest(2 * power) > budget  # else longer runs would have fitted


@given(layouts)
def test_a_record_gives_the_layout_back(layout):
    again = Layout.from_record(layout.record())
    assert again == layout
    assert again.fingerprint == layout.fingerprint


def test_the_fingerprint_changes_with_names_shapes_order_and_cuts():
    first, second = Block("a", (4, 3)), Block("b", (4,))
    variants = [
        Layout((first, second), 8),
        Layout((second, first), 8),
        Layout((Block("c", (4, 3)), second), 8),
        Layout((Block("a", (3, 4)), second), 8),
        Layout((Block("a", (12,)), second), 8),
        Layout((first,), 8),
        Layout((first, second), 9),
    ]
    assert len({layout.fingerprint for layout in variants}) == len(variants)


def test_the_fingerprint_does_not_move_between_versions():
    """Artifacts in stores carry it; a change here needs a new format number."""
    assert Layout((Block("a", (4, 3)), Block("b", ())), 8).fingerprint == "4b74895a5641f939"


def test_globs_choose_weights_in_the_order_of_the_network():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert [block.name for block in Layout.of(network).blocks] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [block.name for block in Layout.of(network, "2.*").blocks] == ["2.weight", "2.bias"]
    chosen = Layout.of(network, ["2.bias", "*.weight"])
    assert [block.name for block in chosen.blocks] == ["0.weight", "2.weight", "2.bias"]
    assert chosen.num_weights == 12 + 8 + 2


def test_a_glob_that_chooses_nothing_is_refused_with_names_to_choose_from():
    with pytest.raises(
        ConfigError, match=r"'head\.\*' chooses no weights.* 4 named like 0\.weight, 0\.bias, 2\.weight"
    ):
        Layout.of(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), ["0.*", "head.*"])


def test_tied_weights_count_once():
    network = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    network[1].weight = network[0].weight
    assert [block.name for block in Layout.of(network).blocks] == ["0.weight"]


def test_large_networks_have_a_bounded_number_of_tiles():
    with torch.device("meta"):
        small, large = nn.Linear(100, 100), nn.Linear(1 << 16, 1 << 15, bias=False)
    assert Layout.of(small).tile_weights == TILE_WEIGHTS
    assert len(Layout.of(small).tiles) == 1
    assert len(Layout.of(large).tiles) <= MAX_TILES


def test_blocks_of_tiles_are_named_once_each():
    layout = Layout((Block("a", (6, 2)), Block("b", (2,)), Block("c", (2,))), 4)
    assert layout.blocks_of(layout.tiles) == ["a", "b", "c"]
    assert layout.blocks_of(layout.tiles[:2]) == ["a"]
