"""Columns V (P, k) as tiles: held in memory where they fit, read tile by tile where they do not."""

from collections.abc import Mapping

from torch import Tensor

from afterfit.layout import Layout
from afterfit.resources import GB

COLUMNS_SHARE = 0.25
"""Part of `memory_gb` that columns may take for good; the explicit rows have their own."""


def held_columns(tiles: Mapping[str, Tensor], layout: Layout, memory_gb: float) -> Mapping[str, Tensor]:
    """The same columns, in memory if the budget allows: then each is read once, not once a batch."""
    first = next(iter(tiles.values()))
    total = layout.num_weights * first.shape[1] * first.element_size()
    return dict(tiles.items()) if total <= COLUMNS_SHARE * memory_gb * GB else tiles
