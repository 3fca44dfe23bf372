"""What is to be projected, within which memory and how well: what a solver is expected to reach and to take there."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

from afterfit.methods.projection.counts import MEASURED, OVERHEAD, Choice, RowCounts
from afterfit.methods.projection.protected import Protected
from afterfit.network.workbench import Outline
from afterfit.resources import GB
from afterfit.rows.columns import COLUMNS_SHARE
from afterfit.rows.planning import GRADIENTS_SHARE, KEPT_SHARE

MOST_DRAWS = 64
"""That are projected together."""
PASS_SHARE = 1 - KEPT_SHARE - GRADIENTS_SHARE
"""Part of `memory_gb` that the rows of a pass leave to columns and dual vectors."""


def draws_together(outline: Outline, asked: int | Literal["auto"]) -> int:
    """Draws that are projected together: as asked, or as many as memory holds."""
    if asked != "auto":
        return asked
    fits = int(COLUMNS_SHARE * outline.memory_gb * GB // (outline.layout.num_weights * outline.state_bytes))
    return max(1, min(MOST_DRAWS, fits))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a choice depends on. Draws that are added later are not among `num_draws`: they change no choice."""

    outline: Outline
    protected: Protected
    num_draws: int
    draws_at_once: int | Literal["auto"] = "auto"
    tolerance: float = 1e-4
    max_passes: int = 200
    block_size: int = 50
    global_basis: int | None = None

    @cached_property
    def rows(self) -> RowCounts:
        """What the rows take."""
        return RowCounts(self.protected, self.outline)

    @cached_property
    def num_columns(self) -> int:
        """k, projected together."""
        return min(self.num_draws, draws_together(self.outline, self.draws_at_once))

    def with_memory(self, memory_gb: float) -> "Problem":
        """The same with another budget."""
        return replace(self, outline=cast(Outline, _Budget(self.outline, memory_gb)))

    def needs_basis(self, choice: Choice) -> bool:
        """Whether it lacks one."""
        return choice.preconditioner == "nystrom" and self.global_basis is None

    def fits(self, choice: Choice) -> bool:
        """Its memory, and whether it has what it needs. A Gram's units are counted only where its factor fits."""
        memory = self.outline.memory_gb * GB
        if self.needs_basis(choice) or self._factored_bytes(choice) > memory:
            return False
        return self._gram_bytes(choice) <= memory and self._pass_bytes(choice) <= PASS_SHARE * memory

    def held_bytes(self, choice: Choice) -> float:
        """At least, at once in one worker."""
        return max(self._factored_bytes(choice), self._pass_bytes(choice) / PASS_SHARE)

    def _factored_bytes(self, choice: Choice) -> float:
        if choice.has_gram:
            return self.rows.factor_bytes(is_exact=choice.solver == "exact")
        return self.rows.block_bytes(self.block_size)[0] if choice.has_blocks else 0.0

    def _gram_bytes(self, choice: Choice) -> float:
        return self.rows.gram_bytes(is_exact=choice.solver == "exact") if choice.has_gram else 0.0

    def _pass_bytes(self, choice: Choice) -> float:
        columns = float(self.outline.layout.num_weights * self.num_columns * self.outline.state_bytes)
        return columns + self.rows.dual_bytes(choice, self.num_columns, self.global_basis or 0)

    def flops(self, choice: Choice) -> float:
        """Of what is made once, and of all draws."""
        rows, columns, basis = self.rows, self.num_columns, self.global_basis or 0
        total = 0.0
        if choice.has_gram:
            is_exact = choice.solver == "exact"
            total += rows.gram_flops(is_exact=is_exact) + rows.factor_flops(is_exact=is_exact)
        if choice.has_blocks:
            total += rows.block_flops(self.block_size)
        if choice.preconditioner == "nystrom":  # the sketch of the GGN, and the image of the basis
            total += 3 * rows.one_pass(basis)
        each = rows.solve_flops(choice, columns, self.block_size, basis) + self._passes_flops(choice)
        return total + each * -(-self.num_draws // columns)

    def _passes_flops(self, choice: Choice) -> float:
        passes, sweeps = rows_passes(self.rows, choice, self.num_columns)
        return passes * self.rows.one_pass(self.num_columns) + sweeps * self.rows.one_sweep(self.num_columns)

    def passes(self, choice: Choice) -> int:
        """Of its steps; what they reached has one digit, which the few of the overhead do not change."""
        passes = self.rows.passes(choice, self.num_columns)
        return passes if choice.solver == "alternating" else passes - OVERHEAD

    def residual(self, choice: Choice) -> float:
        """Expected within the passes; of what runs out of them, nothing is promised."""
        if choice.solver != "exact" and self.passes(choice) > self.max_passes:
            return 1.0
        ends = choice.solver == "cg" and self.rows.steps(choice, self.num_columns) < MEASURED[choice].steps
        return min(1e-8, MEASURED[choice].residual) if ends else MEASURED[choice].residual

    def is_able(self, choice: Choice) -> bool:
        """Whether it fits and is expected to reach the tolerance."""
        return self.residual(choice) <= self.tolerance and self.fits(choice)


def rows_passes(rows: RowCounts, choice: Choice, num_columns: int) -> tuple[int, int]:
    """Expected products with rows of all protected examples, and sweeps of block projections."""
    steps, passes = rows.steps(choice, num_columns), rows.passes(choice, num_columns)
    if choice.solver == "alternating":
        return 0, steps
    sweeps = 2 * steps if choice.preconditioner == "sweep" else 0  # down the blocks and up
    return passes - sweeps, sweeps


@dataclass(frozen=True)
class _Budget:
    """An outline with another `memory_gb`."""

    outline: Outline
    memory_gb: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outline, name)
