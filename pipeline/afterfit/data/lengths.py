"""Micro-batches of examples of different lengths: planned once from the lengths, by a budget of tokens."""

from collections.abc import Sequence

import numpy as np

STEP = 8
"""Tokens that lengths are rounded up to: fewer shapes, and sizes that matrix products like."""
MAX_EXAMPLES = 32
"""Of a micro-batch, unless the recipe takes more of full length: explicit rows do not shrink with the texts."""


def padded(lengths: np.ndarray, max_lengths: Sequence[int]) -> np.ndarray:
    """Lengths (..., R) of R texts rounded up to a multiple of `STEP`, never above their maximum (R,)."""
    return np.minimum(-(-np.maximum(lengths, 1) // STEP) * STEP, np.asarray(max_lengths))


def most_examples(micro_batch: int) -> int:
    """Of a micro-batch, however short they are; a power of two."""
    return 1 << (max(MAX_EXAMPLES, micro_batch).bit_length() - 1)


def planned_by_tokens(
    indexes: Sequence[int], lengths_NR: np.ndarray, max_lengths: Sequence[int], micro_batch: int
) -> list[list[int]]:
    """Cut some examples into micro-batches; a pure function of the lengths and the recipe.

    Examples are sorted by padded length, longest first, ties in the order given. A micro-batch is the largest power of
    two of them whose tokens, padding included, stay within those of `micro_batch` examples of full length: powers of
    two, since every other size is another shape to be checked. Within it they are in the data's order, and
    micro-batches follow each other by their first examples, so that the beginning of a shard is not its longest texts.

    Args:
        indexes: of the examples, ascending.
        lengths_NR: tokens of each example, for each of its R texts.
        max_lengths: (R,) of each text.
        micro_batch: examples of full length that fit.

    Returns:
        Indexes; every example occurs once.
    """
    sizes_NR = padded(lengths_NR, max_lengths)
    budget = micro_batch * sum(max_lengths)
    order = np.lexsort((np.arange(len(sizes_NR)), -sizes_NR.sum(axis=1)))
    most = most_examples(micro_batch)
    made: list[list[int]] = []
    while len(order):
        count = most
        while count > 1 and count * int(sizes_NR[order[:count]].max(axis=0).sum()) > budget:
            count //= 2
        made.append(sorted(indexes[int(position)] for position in order[:count]))
        order = order[count:]
    return sorted(made)
