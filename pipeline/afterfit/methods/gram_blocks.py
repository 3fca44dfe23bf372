"""A Gram of rows that are too many to be explicit at once: groups of tiles for each pair of chunks of items."""

from torch import Tensor

from afterfit.algebra import State, Unit
from afterfit.network.workbench import Outline, tile_units
from afterfit.resources import GB

EXPLICIT_SHARE = 0.75
"""Part of `memory_gb` for explicit rows of many micro-batches; the other rows of such a stage are one micro-batch."""


def gram_units(outline: Outline, num_items: int, rows_each: int = 1) -> list[Unit]:
    """Groups of tiles for each pair of chunks; one chunk where all items fit together with one tile.

    Groups are whole sub-trees of the sum over tiles.

    Args:
        outline: of the fit.
        num_items: landmarks, or examples.
        rows_each: of one item.
    """
    budget = EXPLICIT_SHARE * outline.memory_gb * GB
    widest = max(tile.size for tile in outline.layout) * outline.state_bytes * rows_each
    at_once = max(2, int(budget // widest))
    chunk = num_items if num_items <= at_once else at_once // 2
    starts = range(0, num_items, chunk)
    explicit = num_items if chunk == num_items else 2 * chunk
    groups = tile_units(outline, explicit * rows_each, EXPLICIT_SHARE)
    return [
        Unit(
            f"rows-{left:06d}-{right:06d}-{group.name}",
            {
                **group.details,
                "left": [left, min(left + chunk, num_items)],
                "right": [right, min(right + chunk, num_items)],
            },
            tree=f"{left:06d}-{right:06d}",
        )
        for left in starts
        for right in starts
        if left <= right
        for group in groups
    ]


def assembled(state: State) -> Tensor:
    """The whole symmetric Gram from its blocks ".../left-right", where left and right are first items.

    Of blocks on the diagonal the lower triangles count; each block is read once.
    """
    blocks = {tuple(int(part) for part in name.rpartition("/")[2].split("-")): name for name in state}
    if len(blocks) == 1:
        return state[next(iter(blocks.values()))]
    first = [left for left, right in sorted(blocks) if left == right]
    rows = dict(zip(first, (state[blocks[left, left]] for left in first), strict=True))
    places, size = {}, 0
    for left, block in rows.items():
        places[left] = slice(size, size + len(block))
        size += len(block)
    gram_NN = next(iter(rows.values())).new_empty(size, size)
    for (left, right), name in blocks.items():
        block = rows.pop(left) if left == right else state[name]
        gram_NN[places[left], places[right]] = block
        gram_NN[places[right], places[left]] = block if left == right else block.T
    return gram_NN
