"""Micro-batches as a pure function of sizes and `memory_gb`, never of the machine."""

from afterfit.layout import Layout
from afterfit.resources import GB
from afterfit.rows.tape import GRADIENTS_SHARE, KEPT_SHARE

MAX_MICRO_BATCH = 32
ENOUGH_ROWS = 16
"""With fewer rows to a product, reading the columns takes longer than multiplying."""


def micro_batch(
    layout: Layout, num_cotangents: int, memory_gb: float, bytes_per_number: int = 4, gradient_numbers: int = 0
) -> int:
    """Examples of a micro-batch: the largest power of two whose gradients and explicit rows fit, at most 32.

    Rows that cannot be kept are made again for a second verb: then only the gradients bound the micro-batch, so that
    products have many rows.

    Args:
        layout: of the chosen weights.
        num_cotangents: S.
        memory_gb: the budget.
        bytes_per_number: of rows and gradients.
        gradient_numbers: at the outputs of the layers, for one example and one cotangent.
    """
    per_example = max(num_cotangents * bytes_per_number, 1)
    kept = int(KEPT_SHARE * memory_gb * GB // (per_example * layout.num_weights))
    passed = int(GRADIENTS_SHARE * memory_gb * GB // (per_example * max(gradient_numbers, 1)))
    fits = min(kept, passed) if kept * num_cotangents >= ENOUGH_ROWS else passed
    size = 1
    while size * 2 <= min(fits, MAX_MICRO_BATCH):
        size *= 2
    return size
