"""What the stages of a variational fit will cost; see `cost`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from afterfit.algebra import Unit
from afterfit.methods.natural_gradient.truncation import OVERSAMPLING, POWERS
from afterfit.plan.counted import CORE_BYTES, Counted
from afterfit.plan.sizes import Sizes
from afterfit.rows.counts import Counts

EIGEN_FLOPS = 2 * 4 / 3
"""Of some leading eigenvectors in float64, times n^3; a core does half as many of these a second."""
KEPT_FAMILIES = 3
"""Besides U: D, the mean and the momentum."""


def _natural_gradient(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    weights, rank = float(sizes.num_weights), recipe.rank
    epochs = recipe.schedule(sizes.num_examples("train"))
    rows = min(recipe.batch_size, sizes.num_examples("train")) * recipe.draws_per_step
    passes = 3 * sizes.forward(sizes.num_examples("train")) * recipe.draws_per_step * recipe.epochs
    gram, held = _gram(rows, sizes)
    update = weights * (2 * rows * (rank + 1) + 2 * rows + 6 * rank**2)  # U', squares and the mean gradient
    if recipe.truncation == "exact":
        update += gram + 2.0 * weights * rows * rank + EIGEN_FLOPS * float(rank + rows) ** 3
        core = CORE_BYTES * 4.0 * (rank + rows) ** 2
    else:
        update += (POWERS + 1) * 4.0 * weights * (rank + rows) * (rank + OVERSAMPLING)
        core = CORE_BYTES * 4.0 * (rank + rows) * (rank + OVERSAMPLING)
    state = weights * (rank + KEPT_FAMILIES) * sizes.state_bytes
    drawn = weights * recipe.draws_per_step * sizes.state_bytes
    return Counted(
        passes + epochs.num_steps * update,
        2 * state + 2 * drawn + held + core,
        weights * (rank + 2) * sizes.state_bytes,
        is_budgeted=False,
        device_bytes=2 * state + 2 * drawn + held,
    )


def _gram(num_rows: int, sizes: Sizes) -> tuple[float, float]:
    """FLOPs of G^T G, and bytes of what the gradients are held as: factors where a layer sees one position."""
    coverage = sizes.request.coverage
    flops, numbers, known = 0.0, 0.0, 0
    for counts in () if coverage is None else coverage.counts:
        each = _factors(counts) or counts.size
        flops += 2.0 * num_rows**2 * each
        numbers += float(num_rows) * each
        known += counts.size
    rest = max(sizes.num_weights - known, 0)
    return flops + 2.0 * num_rows**2 * rest, (numbers + float(num_rows) * rest) * sizes.state_bytes


def _factors(counts: Counts) -> int:
    """Numbers of the two factors of a row that is one outer product; none where it is not."""
    if counts.crossed is None or counts.made != counts.size or not counts.crossed:
        return 0
    outputs = counts.crossed
    return min(counts.size, outputs + counts.size // outputs)


def _gaussian_draws(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    rank, columns = sizes.num_features, recipe.num
    widest = max(tile.size for tile in sizes.layout)
    work = 2.0 * 2.0 * sizes.num_weights * (rank**2 + 2 * rank * columns)
    held = CORE_BYTES * (2.0 * widest * (rank + 2 * columns) + rank * (rank + 3 * columns))
    return Counted(work, held, float(sizes.num_weights * columns * sizes.state_bytes))


def _collect_gaussian(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    return Counted(0.0, 0.0, 0.0)


def _dropout_fit(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    """A second product, and its backward pass, for the variances of what comes out."""
    has_second = recipe.estimator == "local" and recipe.choices.noise == "independent"
    passes = (6 if has_second else 3) * sizes.forward(sizes.num_examples("train")) * recipe.settings.epochs
    fitted = 2 if recipe.is_fitted and recipe.choices.sharing == "weight" else 1
    weights = float(fitted * sizes.num_weights * sizes.state_bytes)
    held = 4 * weights
    if recipe.estimator == "per_example" and recipe.choices.noise == "independent":  # draws, and what made them
        slice_size = math.ceil(recipe.settings.batch_size / recipe.settings.num_slices)
        held += 2.0 * slice_size * sizes.num_weights * sizes.state_bytes
    return Counted(passes, held, weights, is_budgeted=False, device_bytes=held)


def _dropout_draws(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    drawn = float(sizes.num_weights * recipe.num * sizes.state_bytes)
    largest = max(block.size for block in sizes.layout.blocks)
    return Counted(drawn, float(2 * largest * recipe.num * sizes.state_bytes), drawn)


VARIATIONAL_COSTS: Final[Mapping[str, Callable[[Any, Sequence[Unit], Sizes], Counted]]] = {
    "NaturalGradient": _natural_gradient,
    "GaussianDraws": _gaussian_draws,
    "CollectGaussian": _collect_gaussian,
    "DropoutFit": _dropout_fit,
    "DropoutDraws": _dropout_draws,
}
"""As `COSTS`."""
