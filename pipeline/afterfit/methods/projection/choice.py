"""Which solver: the one that is counted cheapest of those that fit and are expected to reach the tolerance."""

from collections.abc import Sequence
from typing import Literal

from afterfit.errors import ConfigError
from afterfit.methods.projection.counts import MEASURED, Choice, Solver
from afterfit.methods.projection.problem import Problem
from afterfit.methods.projection.remedies import remedies
from afterfit.methods.projection.solvers import Preconditioner
from afterfit.resources import GB

Asked = tuple[Solver | Literal["auto"], Preconditioner | Literal["auto"]]
"""A solver and a preconditioner, as far as they are named. Only conjugate gradients have a preconditioner: one that is
named asks for them."""


def chosen(
    problem: Problem, solver: Solver | Literal["auto"], preconditioner: Preconditioner | Literal["auto"]
) -> Choice:
    """The choice that was made, with what was left to `auto`.

    What is asked for by name is taken, whatever is expected of it, if it fits the memory.

    Raises:
        ConfigError: if nothing fits the memory, or `auto` expects nothing to reach the tolerance; names what would.
    """
    open_ones, is_named = _open(solver, preconditioner), (solver, preconditioner) != ("auto", "auto")
    able = [one for one in open_ones if problem.is_able(one)]
    if able:
        return min(able, key=problem.flops)
    fitting = [one for one in open_ones if problem.fits(one)]
    if is_named and fitting:
        return min(fitting, key=lambda one: (problem.residual(one), problem.flops(one)))
    raise ConfigError(_refusal(problem, open_ones, is_named=is_named))


def told(problem: Problem, asked: Asked, found: Choice) -> str:
    """One sentence about the choice that was made, and about each that was not."""
    reached = problem.residual(found)
    expected = f"expected to reach {reached:.0e}" if reached < 1 else "expected to run out of passes"
    missed = f", above `method.tolerance: {problem.tolerance:g}`" if reached > problem.tolerance else ""
    named = ", as asked" if asked != ("auto", "auto") else ""
    others = "; ".join(f"{one}: {_why_not(problem, one)}" for one in MEASURED if one != found)
    rows, layers = f"{problem.rows.num_rows} rows", problem.rows.num_layers
    of_each = f" in each of {layers} layers" if problem.protected.kernel == "per_layer" else ""
    return (
        f"Projection by {found}{named}: {rows}{of_each}, {problem.num_columns} draws together, {expected}{missed}, "
        f"{problem.flops(found) / 1e12:.3g} TFLOP; {others}."
    )


def _why_not(problem: Problem, choice: Choice) -> str:
    if problem.needs_basis(choice):
        return "needs `method.global_basis`"
    if not problem.fits(choice):
        return f"needs {problem.held_bytes(choice) / GB:.3g} GB or more"
    residual = problem.residual(choice)
    if residual >= 1:
        return f"needs {problem.passes(choice)} passes"
    return f"reaches {residual:.0e}" if residual > problem.tolerance else f"{problem.flops(choice) / 1e12:.3g} TFLOP"


def _open(solver: str, preconditioner: str) -> list[Choice]:
    """Those that a configuration leaves open.

    Raises:
        ConfigError: for a preconditioner of a solver that has none.
    """
    if preconditioner != "auto" and solver not in ("auto", "cg"):
        raise ConfigError(
            f"The preconditioner {preconditioner!r} has no part in the solver {solver!r}; set `method.solver: cg`, or "
            "leave `method.preconditioner` out."
        )
    if preconditioner != "auto":
        return [one for one in MEASURED if one.solver == "cg" and one.preconditioner == preconditioner]
    return [one for one in MEASURED if solver in ("auto", one.solver)]


def _refusal(problem: Problem, open_ones: Sequence[Choice], *, is_named: bool) -> str:
    def works(changed: Problem) -> bool:
        return any(changed.fits(one) if is_named else changed.is_able(one) for one in open_ones)

    budget, rows = f"`memory_gb: {problem.outline.memory_gb:g}`", f"{problem.rows.num_rows} rows"
    if problem.rows.num_layers > 1:
        rows = f"{rows} in each of {problem.rows.num_layers} layers"
    if is_named:
        one = min(open_ones, key=problem.held_bytes)
        lead = f"The solver {one} does not fit {budget} with {rows} and {problem.num_columns} draws together"
    else:
        lead = (
            f"No solver that fits {budget} is expected to bring {rows} to `method.tolerance: {problem.tolerance:g}` "
            f"within {problem.max_passes} passes"
        )
    return f"{lead}; {remedies(problem, works, open_ones)}."
