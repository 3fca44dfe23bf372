"""How memory is shared, and micro-batches: pure functions of sizes and `memory_gb`, never of the machine."""

from afterfit.layout import Layout
from afterfit.resources import GB

SLICE_BYTES = 1 << 22
"""Of the explicit rows that are contracted at once; they stay in a cache."""
SLICE_SHARE = 0.1
"""Part of `memory_gb` that a slice never exceeds."""
KEPT_SHARE = 0.2
"""Part of `memory_gb` for explicit rows that a second verb finds ready."""
GRADIENTS_SHARE = 0.15
"""Part of `memory_gb` for the gradients at the layers' outputs, of as many cotangents as fit."""
MAX_MICRO_BATCH = 32
ENOUGH_ROWS = 16
"""With fewer rows to a product, reading the columns takes longer than multiplying."""


def slice_bytes(memory_gb: float) -> int:
    """Of the explicit rows that are made and contracted at once."""
    return min(SLICE_BYTES, int(SLICE_SHARE * memory_gb * GB))


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


def cotangents_at_once(
    num_examples: int, num_cotangents: int, memory_gb: float, *, row_bytes: int, gradient_bytes: int
) -> int:
    """Cotangents of a part: as many as have their gradients and, if they make enough rows, their rows in the memory.

    Parts are as even as can be.

    Args:
        num_examples: B.
        num_cotangents: S.
        memory_gb: the budget.
        row_bytes: of the explicit rows of one cotangent.
        gradient_bytes: at the outputs of the layers, for one cotangent.
    """
    passed = max(1, int(GRADIENTS_SHARE * memory_gb * GB // max(gradient_bytes, 1)))
    kept = int(KEPT_SHARE * memory_gb * GB // max(row_bytes, 1))
    fits = min(passed, kept) if kept * num_examples >= ENOUGH_ROWS else passed
    num_parts = -(-num_cotangents // fits)
    return -(-num_cotangents // max(num_parts, 1))
