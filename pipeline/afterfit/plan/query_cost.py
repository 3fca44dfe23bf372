"""What the stages that answer queries will cost; see `cost`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from afterfit.algebra import Unit
from afterfit.methods.queries.amortised import PILOT
from afterfit.methods.queries.chosen import num_asked
from afterfit.methods.queries.covariance import Asking, Solving
from afterfit.plan.counted import PLACE_BYTES, Counted, row_bytes
from afterfit.plan.sizes import Sizes

EVALUATIONS = 6
"""Passes of a group of queries: on real networks from 4, of refits with many eigenpairs, to 30 without any."""
TABLE_BYTES = 5 * 8
"""Of a row of the table of queries."""


def _solved(recipe: Solving, num_columns: int, num_groups: int, sizes: Sizes) -> Counted:
    """Passes over the training data for each group; what a step holds of each column, and U."""
    count = sizes.num_examples("train")
    if recipe.kind in ("ggn", "linearised"):  # the latter takes J of where it stands too: three products for two
        each = sizes.ggn_times(count, num_columns * 3 // 2 if recipe.kind == "linearised" else num_columns, 1)
    else:  # a gradient before and after for each column; a product with the Hessian is about two
        each = 3 * sizes.forward(count) * (2 * num_columns + 1)
    steps = 4.0 * sizes.num_weights * sizes.num_features * num_columns
    columns = float(num_columns * recipe.column_bytes(sizes.num_weights, sizes.state_bytes))
    rows = row_bytes("train", sizes)
    held = columns + sizes.columns_bytes(sizes.num_features) + rows
    return Counted(EVALUATIONS * num_groups * (each + steps), held, 0.0, device_bytes=rows)


def _asked(recipe: Asking, sizes: Sizes) -> int:
    return recipe.asked(sizes.num_examples(recipe.role))


def _covariances(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    largest = max(unit.details["stop"] - unit.details["start"] for unit in units)
    asked = num_asked(recipe.outputs, sizes.num_outputs)
    counted = _solved(recipe, largest * asked * recipe.num_sides, len(units), sizes)
    outputs = sizes.num_outputs
    each = 8 * (outputs + outputs**2) + PLACE_BYTES + TABLE_BYTES * asked
    return counted._replace(stored_bytes=float(each * _asked(recipe, sizes)))


def _amortised(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    asked = PILOT if recipe.num_refits == "auto" else recipe.num_refits
    counted = _solved(recipe, (1 if recipe.is_score else asked) * recipe.num_sides, 1, sizes)
    return counted._replace(stored_bytes=float(_asked(recipe, sizes) * (8 * 3 * sizes.num_outputs + PLACE_BYTES)))


def _plateau(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    return _solved(recipe, recipe.num_queries * len(recipe.grid) * recipe.num_sides, 1, sizes)


def _small(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    return Counted(0.0, 0.0, 0.0)


def _predictions(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    outputs = sizes.num_outputs
    return Counted(0.0, 0.0, float(sizes.num_examples(recipe.role) * (8 * 4 * outputs + PLACE_BYTES)))


QUERY_COSTS: Final[Mapping[str, Callable[[Any, Sequence[Unit], Sizes], Counted]]] = {
    "QueryCovariances": _covariances,
    "AmortisedVariances": _amortised,
    "Plateau": _plateau,
    "CollectQueries": _small,
    "ScoreScale": _small,
    "QueryPredictions": _predictions,
}
"""As `COSTS`."""
