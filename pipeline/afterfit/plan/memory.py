"""The value of `memory_gb` that would fit when a stage has run out of memory: a pure function of counts."""

import math
from collections.abc import Sequence

from afterfit.errors import ConfigError, ResourceError
from afterfit.plan.cost import Cost, check_fits, cost_of, costs
from afterfit.plan.posterior import posterior_plan
from afterfit.plan.request import FitRequest
from afterfit.plan.stage import Stage
from afterfit.training.point_estimate import PointEstimate

NUM_HALVINGS = 30
"""Values that are tried: most say at once, by their micro-batch, that they would change nothing."""


def memory_that_fits(request: FitRequest, name: str, has_gb: float | None = None) -> float | None:
    """The budget with which a stage that ran out of memory asks for less; a pure function of counts.

    It is the first of the values found by halving, each rounded down to one digit, beginning with the present budget
    or with what the device has, whichever is less, with which

    - the stage's micro-batch, if it has one, is smaller, or else what is explicit at once is half as large or less,
      and neither is larger (a micro-batch that was given stays, so then no value does); and
    - no stage is refused: each keeps within the new budget, and so within the device.

    Args:
        request: with the present budget.
        name: of the stage.
        has_gb: memory of the machine or the GPU that it ran out on; None where it is not known.

    Returns:
        GB; None if no value would do.
    """
    plan = posterior_plan(request)
    stage = next(stage for stage in plan if stage.name == name)
    before = cost_of(plan, request, name)
    has_batches = "micro_batch" in stage.context
    if before is None or not before.is_budgeted or (has_batches and _keeps_batches(request)):
        return None
    value = request.memory_gb if has_gb is None else min(request.memory_gb, has_gb)
    for _ in range(NUM_HALVINGS):
        value = one_digit_below(value / 2)
        lowered = request.with_memory(value)
        if has_batches and lowered.micro_batch > request.micro_batch:
            continue  # where rows can no longer be kept, the micro-batch may be larger
        try:
            plan = posterior_plan(lowered)
        except ConfigError:  # of a method that can do nothing within so little
            return None
        if all(stage.name != name for stage in plan):
            continue  # other solvers and runs of draws have stages of their own
        after = cost_of(plan, lowered, name)
        is_smaller = has_batches and lowered.micro_batch < request.micro_batch
        if after is not None and _asks_less(after, before, is_smaller) and _is_allowed(plan, lowered):
            return value
    return None


def one_digit_below(value: float) -> float:
    """The largest number of one decimal digit that is at most a positive value: 1.5 -> 1, 0.25 -> 0.2."""
    exponent = math.floor(math.log10(value))
    return float(f"{math.floor(value / 10.0**exponent + 1e-9)}e{exponent}")


def _keeps_batches(request: FitRequest) -> bool:
    """Whether what the network holds for a micro-batch stays as it is with any budget, though it need not."""
    return request.micro_batch > 1 and not request.has_auto_micro_batch


def _asks_less(after: Cost, before: Cost, has_smaller_batch: bool) -> bool:
    halves = 0 < after.memory_gb <= before.memory_gb / 2
    return halves or (has_smaller_batch and after.memory_gb <= before.memory_gb)


def _is_allowed(plan: Sequence[Stage], lowered: FitRequest) -> bool:
    known = {name: cost for name, cost in costs(plan, lowered).items() if cost is not None and cost.is_budgeted}
    try:
        check_fits(known, lowered.memory_gb, None, None)
    except ResourceError:
        return False
    return True


def remedy_without(request: FitRequest, name: str) -> str:
    """What helps a stage that no lower budget would, as a clause."""
    plan = posterior_plan(request)
    stage, cost = next(stage for stage in plan if stage.name == name), cost_of(plan, request, name)
    if name == "point_estimate":
        smaller = "lower `training.batch_size`" if isinstance(stage.recipe, PointEstimate) else "take a smaller network"
        return f"which does not bound it: {smaller}, or run on larger workers"
    if cost is not None and not cost.is_budgeted:
        return "which does not bound it: ask the method for fewer features, or run on larger workers"
    if "micro_batch" in stage.context and request.micro_batch > 1:
        return f"and less would not help: set `micro_batch` to {request.micro_batch // 2}, or run on larger workers"
    others = "choose fewer weights, ask the method for fewer features, or run on larger workers"
    return f"and less would not help: {others}"
