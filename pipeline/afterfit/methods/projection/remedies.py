"""What would make a projection possible: each remedy is tried on the counts before it is named."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil, floor, log10

from afterfit.methods.projection.counts import MEASURED, Choice
from afterfit.methods.projection.problem import Problem

Works = Callable[[Problem], bool]
"""Whether a problem has a solver that will do."""
Options = Iterator[tuple[str, Problem]]
"""What to do, and the problem then; the nearest first."""

MOST_MEMORY = 64.0
"""Times the present budget; more is no remedy."""
STEP = 1.1
"""From one size that is tried to the next."""


def remedies(problem: Problem, works: Works, open_ones: Sequence[Choice]) -> str:
    """As clauses of a sentence: of each kind the least that helps."""
    kinds = (
        _more_memory(problem),
        _fewer_examples(problem),
        _fewer_draws(problem),
        _smaller_blocks(problem),
        _more_passes(problem, open_ones),
        _losses(problem, open_ones),
        _tolerances(problem, open_ones),
    )
    found = (next((told for told, changed in kind if works(changed)), None) for kind in kinds)
    clauses = [clause for clause in found if clause is not None]
    if not clauses:
        return "choose fewer weights with `network.choose`, or run on larger workers"
    return ", or ".join(([", ".join(clauses[:-1])] if clauses[1:] else []) + clauses[-1:])


def _more_memory(problem: Problem) -> Options:
    value = problem.outline.memory_gb
    while value < MOST_MEMORY * problem.outline.memory_gb:
        value *= STEP
        asked = two_digits(value, ceil)
        yield f"raise `memory_gb` to {asked:g}", problem.with_memory(asked)


def _fewer_examples(problem: Problem) -> Options:
    protected = problem.protected
    count = protected.count(problem.outline)
    while count > 1:
        count = min(count - 1, int(two_digits(count / STEP, floor)))
        if count < 1:
            return
        fewer = replace(problem, protected=replace(protected, num_examples=count))
        yield f"set `method.num_protected` to {count}", fewer


def _fewer_draws(problem: Problem) -> Options:
    count = problem.num_columns
    while count > 1:
        count //= 2
        yield f"set `method.draws_at_once` to {count}", replace(problem, draws_at_once=count)


def _smaller_blocks(problem: Problem) -> Options:
    size = min(problem.block_size, problem.protected.count(problem.outline))
    while size > 1:
        size //= 2
        yield f"set `method.block_size` to {size}", replace(problem, block_size=size)


def _more_passes(problem: Problem, open_ones: Sequence[Choice]) -> Options:
    for passes in sorted({problem.passes(one) for one in open_ones}):
        if passes > problem.max_passes:
            yield f"set `method.max_passes` to {passes}", replace(problem, max_passes=passes)


def _losses(problem: Problem, open_ones: Sequence[Choice]) -> Options:
    if problem.protected.kernel == "loss":
        return
    losses = replace(problem, protected=replace(problem.protected, kernel="loss"))
    yield "set `method.kernel: loss`", losses
    for told, changed in _tolerances(losses, open_ones):
        yield f"set `method.kernel: loss` and {told.removeprefix('set ')}", changed


def _tolerances(problem: Problem, open_ones: Sequence[Choice]) -> Options:
    for value in sorted({MEASURED[one].residual for one in open_ones}):
        if value > problem.tolerance:
            yield f"set `method.tolerance: {value:g}`", replace(problem, tolerance=value)


def two_digits(value: float, way: Callable[[float], int]) -> float:
    """To two digits, up or down."""
    scale = 10.0 ** (floor(log10(value)) - 1)
    return float(f"{way(round(value / scale, 9)) * scale:.2g}")
