"""Which solver: the one of least counted cost among those that fit the memory and are expected to reach the tolerance.

What solvers reach was measured on Jacobians of real networks (a LeNet on 500 pictures, 5 000 rows; a ResNet-20 alike),
whose Gram has full rank and a spectrum that falls slowly to 4e-8 of its largest eigenvalue.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from afterfit.errors import ConfigError
from afterfit.methods.gram_blocks import gram_units
from afterfit.methods.projection.protected import Protected
from afterfit.methods.projection.solvers import Preconditioner
from afterfit.network.workbench import Outline
from afterfit.resources import GB

Solver = Literal["exact", "cg", "alternating"]


class Choice(NamedTuple):
    """A solver, and the preconditioner of conjugate gradients."""

    solver: Solver
    preconditioner: Preconditioner = "none"


class Measured(NamedTuple):
    """Of the worst row."""

    steps: int
    residual: float
    passes_each: int


MEASURED: Final[Mapping[Choice, Measured]] = {
    Choice("exact"): Measured(1, 1e-8, 2),
    Choice("cg", "cholesky"): Measured(25, 1e-7, 2),
    Choice("cg", "sweep"): Measured(75, 2e-4, 4),
    Choice("cg", "nystrom"): Measured(100, 2e-4, 2),
    Choice("cg", "none"): Measured(100, 2e-4, 2),
    Choice("alternating"): Measured(100, 1e-3, 1),
}
"""Choice -> what it reached, in how many steps, with how many passes a step."""

OVERHEAD = 5
"""Passes of two applications and their measurements."""


@dataclass(frozen=True)
class Problem:
    """What a choice depends on."""

    outline: Outline
    protected: Protected
    num_columns: int  # k, projected together
    tolerance: float
    max_passes: int
    has_basis: bool

    @property
    def num_rows(self) -> int:
        """Of the largest Gram."""
        return self.protected.num_rows(self.outline) // self.num_layers

    @property
    def num_layers(self) -> int:
        """Grams."""
        return self.protected.num_layers(self.outline)

    def held_bytes(self, choice: Choice) -> float:
        """Of a Gram and its factor; what else is explicit is within the budget anyway."""
        wide = {Choice("exact"): 24.0, Choice("cg", "cholesky"): 8.0}.get(choice, 0.0)
        return wide * self.num_rows**2

    def flops(self, choice: Choice) -> float:
        """Counted; those in float64 count twice."""
        outline, num_rows = self.outline, self.num_rows * self.num_layers
        weights = outline.layout.num_weights
        making = outline.forward_flops * (1 + 2 * self.protected.rows_each(outline) / self.num_layers)
        one_pass = self.protected.count(outline) * making + 2.0 * self.num_rows * weights * self.num_columns
        total = one_pass * (OVERHEAD + self.passes(choice))
        if choice in (Choice("exact"), Choice("cg", "cholesky")):
            width = 2.0 if choice.solver == "exact" else 1.0
            count = self.protected.count(outline)
            units = gram_units(outline, count, self.protected.rows_each(outline) // self.num_layers)
            examples = sum(len(range(*unit.details[side])) for unit in units for side in ("left", "right"))
            total += examples * making / 2 + width * self.num_rows**2 * weights
            total += width * self.num_layers * (2 / 3 * self.num_rows**3 + 16 * self.num_rows**2 * self.num_columns)
        return total if num_rows else 0.0

    def steps(self, choice: Choice) -> int:
        """Conjugate gradients end when their directions span all rows."""
        measured = MEASURED[choice]
        whole = -(-self.num_rows * self.num_layers // self.num_columns) + 1
        return min(measured.steps, whole) if choice.solver == "cg" else measured.steps

    def passes(self, choice: Choice) -> int:
        """Over the protected examples, besides the overhead."""
        return 0 if choice.solver == "exact" else self.steps(choice) * MEASURED[choice].passes_each

    def residual(self, choice: Choice) -> float:
        """Expected within the passes; of what runs out of them, nothing is promised."""
        if choice.solver != "exact" and self.passes(choice) + OVERHEAD > self.max_passes:
            return 1.0
        ends = choice.solver == "cg" and self.steps(choice) < MEASURED[choice].steps
        return 1e-8 if ends else MEASURED[choice].residual

    def fits(self, choice: Choice) -> bool:
        """Its memory, and whether it has what it needs."""
        return self.held_bytes(choice) <= self.outline.memory_gb * GB and (
            choice.preconditioner != "nystrom" or self.has_basis
        )


def chosen(
    problem: Problem, solver: Solver | Literal["auto"], preconditioner: Preconditioner | Literal["auto"]
) -> Choice:
    """The choice that was made, with what was left to `auto`.

    What is asked for by name is taken, whatever is expected of it.

    Raises:
        ConfigError: if nothing fits the memory and is expected to reach the tolerance; names what would.
    """
    open_ones = list(_open(solver, preconditioner))
    if len(open_ones) == 1:
        return open_ones[0]
    able = [one for one in open_ones if problem.fits(one) and problem.residual(one) <= problem.tolerance]
    if not able and solver != "auto":  # asked for by name: the best preconditioner that fits
        return min((one for one in open_ones if problem.fits(one)), key=problem.residual)
    if not able:
        raise ConfigError(_sentence(problem, open_ones))
    return min(able, key=problem.flops)


def _open(solver: str, preconditioner: str) -> Iterator[Choice]:
    for choice in MEASURED:
        if solver not in ("auto", choice.solver):
            continue
        if choice.solver == "cg" and preconditioner not in ("auto", choice.preconditioner):
            continue
        yield choice


def _sentence(problem: Problem, open_ones: list[Choice]) -> str:
    needed = {one: problem.held_bytes(one) / GB for one in open_ones if MEASURED[one].residual <= problem.tolerance}
    least = min(needed.values(), default=0.0)
    best = min(problem.residual(one) for one in open_ones if problem.fits(one))
    raised = f"raise `memory_gb` to {least:.2g}, " if needed else ""
    return (
        f"No solver that fits `memory_gb: {problem.outline.memory_gb:g}` is expected to bring {problem.num_rows} rows "
        f"to `method.tolerance: {problem.tolerance:g}` within {problem.max_passes} passes; {raised}protect fewer "
        f"examples with `method.num_protected`, choose `method.kernel: loss`, or accept a tolerance of {best:.0e}."
    )
