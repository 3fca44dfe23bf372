"""Micro-batches as a pure function of sizes and `memory_gb`, never of the machine."""

from afterfit.layout import Layout
from afterfit.resources import GB
from afterfit.rows.functional import ROWS_SHARE

MAX_MICRO_BATCH = 32


def micro_batch(layout: Layout, num_cotangents: int, memory_gb: float, bytes_per_weight: int = 4) -> int:
    """Examples of a micro-batch: the largest power of two whose explicit rows make one group, at most 32.

    Where one example's rows already exceed the budget, 1: each group of tiles costs a pass over the
    micro-batch, so larger micro-batches would only mean more passes.
    """
    row_bytes = num_cotangents * layout.num_weights * bytes_per_weight
    fits = int(ROWS_SHARE * memory_gb * GB // max(row_bytes, 1))
    size = 1
    while size * 2 <= min(fits, MAX_MICRO_BATCH):
        size *= 2
    return size
