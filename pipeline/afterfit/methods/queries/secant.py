"""Conjugate gradients along secants: solves F(D) = B for an F that need not be linear, by evaluations of F alone.

F(0) = 0, and its derivative is symmetric. A step evaluates F at the end of a direction p, and the difference from what
F is known to be at the start is what a Hessian-vector product would give. For a linear F these are conjugate gradients
with preconditioning; for one that is nearly linear, as within a refit of small lambda, the steps are theirs but for the
curvature's change. What F is at the solution is interpolated, so that it is evaluated there at the end, and the steps
go on from what that gives.

Shapes: P weights by tiles, k columns, each a problem of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from afterfit.algebra import State
from afterfit.methods.queries.preconditioner import dots

Tiles = dict[str, Tensor]
Precondition = Callable[[Mapping[str, Tensor]], Tiles]


@dataclass(frozen=True)
class Secant:
    """The state between evaluations."""

    solution: Tiles  # D
    residual: Tiles  # B - F(D), as it is known
    direction: Tiles  # p; zeros where F is to be evaluated at D itself
    rho_k: Tensor  # residual times preconditioned residual
    is_running_k: Tensor
    is_positive_k: Tensor  # whether F had positive curvature along all directions so far
    is_check: bool = False  # whether the next evaluation is at D
    evaluations: int = 0
    lengths_k: Tensor = field(default_factory=lambda: torch.ones(0))  # |B|

    @property
    def point(self) -> Tiles:
        """Where F is to be evaluated next, for an F that is not linear."""
        return {name: tile + self.direction[name] for name, tile in self.solution.items()}

    @property
    def relative_k(self) -> Tensor:
        """|B - F(D)| / |B|."""
        return dots(self.residual, self.residual).sqrt() / self.lengths_k

    def state(self) -> State:
        """As flat tensors."""
        families = {"solution": self.solution, "residual": self.residual, "direction": self.direction}
        tiles = {f"{family}/{name}": tile for family, of in families.items() for name, tile in of.items()}
        small = {
            "at/rho": self.rho_k,
            "at/running": self.is_running_k,
            "at/positive": self.is_positive_k,
            "at/check": torch.tensor(self.is_check),
            "at/evaluations": torch.tensor(self.evaluations),
            "at/lengths": self.lengths_k,
        }
        return tiles | small

    @classmethod
    def of(cls, state: State) -> Secant:
        """The inverse."""

        def family(prefix: str) -> Tiles:
            return {name.partition("/")[2]: state[name] for name in state if name.startswith(f"{prefix}/")}

        return cls(
            family("solution"),
            family("residual"),
            family("direction"),
            state["at/rho"],
            state["at/running"],
            state["at/positive"],
            bool(state["at/check"]),
            int(state["at/evaluations"]),
            state["at/lengths"],
        )


def begin(columns: Mapping[str, Tensor], precondition: Precondition) -> Secant:
    """At D = 0, where the residual is B."""
    residual = dict(columns)
    direction = precondition(residual)
    lengths_k = dots(residual, residual).sqrt()
    return Secant(
        solution={name: torch.zeros_like(tile) for name, tile in residual.items()},
        residual=residual,
        direction=direction,
        rho_k=dots(residual, direction),
        is_running_k=lengths_k > 0,  # an output that no weight moves has no variance
        is_positive_k=torch.ones_like(lengths_k, dtype=torch.bool),
        lengths_k=lengths_k.clamp_min(torch.finfo(lengths_k.dtype).tiny),
    )


def step(
    at: Secant, change: Mapping[str, Tensor], precondition: Precondition, tolerance: float, *, is_linear: bool
) -> Secant:
    """Go on, given F(point) - F(D) by tiles; of a linear F that is F(p).

    Args:
        at: where it stands.
        change: at a check F(D) itself.
        precondition: M^-1.
        tolerance: of |B - F(D)| / |B|.
        is_linear: whether the recurrence is trusted, and no check is made.
    """
    if at.is_check:
        return _checked(at, change, precondition, tolerance)
    curvature_k = dots(at.direction, change)
    is_positive_k = at.is_positive_k & ((curvature_k > 0) | ~at.is_running_k)
    is_running_k = at.is_running_k & is_positive_k
    amount_k = torch.where(is_running_k, dots(at.residual, at.direction) / curvature_k.clamp_min(1e-300), 0.0)
    solution = _plus(at.solution, at.direction, amount_k)
    residual = _plus(at.residual, change, -amount_k)
    moved = replace(
        at, solution=solution, residual=residual, is_positive_k=is_positive_k, evaluations=at.evaluations + 1
    )
    is_running_k = is_running_k & (moved.relative_k > tolerance)
    if not bool(is_running_k.any()) and not is_linear:
        nowhere = {name: torch.zeros_like(tile) for name, tile in solution.items()}
        return replace(moved, direction=nowhere, is_running_k=is_running_k, is_check=True)
    steepest = precondition(residual)
    conjugacy_k = torch.where(is_running_k, (-amount_k * dots(steepest, change) / at.rho_k).clamp_min(0), 0.0)
    return replace(
        moved,
        direction=_plus(steepest, at.direction, conjugacy_k),
        rho_k=dots(residual, steepest),
        is_running_k=is_running_k,
    )


def _checked(at: Secant, excess: Mapping[str, Tensor], precondition: Precondition, tolerance: float) -> Secant:
    """After F(D) was evaluated: `excess` is by how much it is above what it was known to be."""
    residual = {name: tile - excess[name] for name, tile in at.residual.items()}
    found = replace(at, residual=residual, is_check=False, evaluations=at.evaluations + 1)
    is_running_k = at.is_positive_k & (found.relative_k > tolerance)
    direction = precondition(residual)
    return replace(found, direction=direction, rho_k=dots(residual, direction), is_running_k=is_running_k)


def _plus(left: Tiles, right: Mapping[str, Tensor], amount_k: Tensor) -> Tiles:
    return {name: tile + right[name] * amount_k.to(tile) for name, tile in left.items()}
