"""What cost functions give, and what they share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from afterfit.algebra import Unit
from afterfit.data.lengths import most_examples
from afterfit.plan.sizes import Sizes
from afterfit.predict.linearised import OutputFeatures

CORE_BYTES = 8
"""Of a number of a small core, float64."""
PLACE_BYTES = 2 * 8
"""Of an example's index and answer."""


class Counted(NamedTuple):
    """What a cost function returns."""

    flops: float
    explicit_bytes: float  # of the largest set of arrays that is explicit at once
    stored_bytes: float
    is_budgeted: bool = True  # whether `memory_gb` bounds what is explicit
    device_bytes: float = 0.0  # of what is explicit, the part that is where the network is; the rest is on the host


def row_bytes(role: str, sizes: Sizes) -> float:
    """Explicit rows of a micro-batch of a role, and the gradients that they are made of.

    Rows do not shrink with texts, of which more are taken together the shorter they are, within the tokens of a
    micro-batch of full length: of all the numbers of examples that may come of it, the one that holds the most counts.
    """
    request, settings = sizes.request, sizes.request.data[sizes.roles.get(role, role)].settings
    coverage, full = request.coverage, sizes.micro_batch
    if settings is None or not settings.is_ragged or coverage is None:
        return sizes.row_bytes
    held = [sizes.row_bytes]
    for count in (1 << power for power in range(most_examples(full).bit_length())):
        if count > full:
            shorter = replace(coverage, gradient_numbers=-(-coverage.gradient_numbers * full // count))
            held.append(replace(sizes, request=replace(request, micro_batch=count, coverage=shorter)).row_bytes)
    return max(held)


def features_counted(recipe: OutputFeatures, num_columns: int, units: Sequence[Unit], sizes: Sizes) -> Counted:
    """Of J V for k columns, kept for every example of a data set."""
    count, outputs = sizes.num_examples(recipe.role), sizes.num_outputs
    work = sizes.times(count, num_columns)
    numbers = count * outputs * (1 + num_columns)
    if recipe.with_kernel:
        work += 2.0 * count * outputs**2 * sizes.num_weights
        numbers += count * outputs**2
    stored = float(numbers * sizes.state_bytes + PLACE_BYTES * count)
    rows = row_bytes(recipe.role, sizes)
    return Counted(work, rows + sizes.columns_bytes(num_columns) + stored / len(units), stored, device_bytes=rows)
