"""What the stages that follow stored draws will cost; see `cost`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from afterfit.algebra import Unit
from afterfit.plan.counted import PLACE_BYTES, Counted, features_counted
from afterfit.plan.sizes import Sizes

SQUASH_FLOPS = 16.0
"""Of one output under one draw: its softmax twice, once for the mean and once for the spread, and its square."""


def _draw_features(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    return features_counted(recipe, sizes.num_chunk_draws, units, sizes)


def _sampled_outputs(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    count, draws = sizes.num_examples(recipe.role), sizes.num_chunk_draws
    stored = float(count * sizes.num_outputs * (1 + draws) * sizes.state_bytes + PLACE_BYTES * count)
    weights = 2.0 * sizes.num_weights * sizes.state_bytes  # the draw, and the network moved by it
    work = sizes.forward(count) * (draws + 1) + 2.0 * sizes.num_weights * draws * len(units)
    return Counted(work, weights + 2 * stored / len(units), stored, is_budgeted=False, device_bytes=weights)


def _collect_draws(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:  # noqa: ARG001
    return Counted(0.0, 0.0, 0.0)


def _draw_predictions(recipe: Any, units: Sequence[Unit], sizes: Sizes) -> Counted:
    count, outputs = sizes.num_examples(recipe.role), sizes.num_outputs
    numbers = float(count * outputs * sizes.num_draws)
    stored = float(count * ((4 * outputs + 1) * sizes.state_bytes + PLACE_BYTES))
    held = 3 * numbers * sizes.state_bytes / len(units)
    return Counted(SQUASH_FLOPS * numbers, held, stored, is_budgeted=False)


DRAW_COSTS: Final[Mapping[str, Callable[[Any, Sequence[Unit], Sizes], Counted]]] = {
    "DrawFeatures": _draw_features,
    "SampledOutputs": _sampled_outputs,
    "CollectDraws": _collect_draws,
    "DrawPredictions": _draw_predictions,
}
"""As `COSTS`."""
