"""Conjugate gradients along secants: solves F(D) = B for an F that need not be linear, by evaluations of F alone.

F(0) = 0, and its derivative is symmetric. A step evaluates F at the end of a direction p, and the difference from what
F is known to be at the start is what a Hessian-vector product would give. For a linear F these are conjugate gradients
with preconditioning; for one that is nearly linear, as within a refit of small lambda, the steps are theirs but for the
curvature's change. What F is at the solution is interpolated, so that it is evaluated there at the end; where that was
not as expected, the steps go on from there, and F is evaluated again whenever the residual has fallen by much.

Shapes: P weights by tiles, k columns, each a problem of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afterfit.algebra import State
from afterfit.methods.queries.preconditioner import dots

FALLEN = 0.1
"""Part of a residual after which F is evaluated again, once interpolation has failed."""
Tiles = dict[str, Tensor]
Precondition = Callable[[Mapping[str, Tensor]], Tiles]


@dataclass(frozen=True)
class Secant:
    """The state between evaluations."""

    solution: Tiles  # D
    residual: Tiles  # B - F(D), as it is known
    direction: Tiles  # p, as long as the last step was, so that little is extrapolated
    scale_k: Tensor  # how many times longer it is than conjugate gradients' own
    lengths_k: Tensor  # |B|
    rho_k: Tensor  # residual times preconditioned residual
    is_running_k: Tensor
    is_positive_k: Tensor  # whether F had positive curvature along all directions so far
    checked_k: Tensor  # relative residual where F was last evaluated at D
    is_check: bool = False  # whether the next evaluation is at D
    is_fresh: bool = True  # whether the last one was
    is_wary: bool = False  # whether interpolation has failed before
    evaluations: int = 0

    @property
    def point(self) -> Tiles:
        """Where F is to be evaluated next, for an F that is not linear."""
        if self.is_check:
            return self.solution
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
            "at/scale": self.scale_k,
            "at/rho": self.rho_k,
            "at/running": self.is_running_k,
            "at/positive": self.is_positive_k,
            "at/checked": self.checked_k,
            "at/check": torch.tensor(self.is_check),
            "at/fresh": torch.tensor(self.is_fresh),
            "at/wary": torch.tensor(self.is_wary),
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
            state["at/scale"],
            state["at/lengths"],
            state["at/rho"],
            state["at/running"],
            state["at/positive"],
            state["at/checked"],
            bool(state["at/check"]),
            bool(state["at/fresh"]),
            bool(state["at/wary"]),
            int(state["at/evaluations"]),
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
        scale_k=torch.ones_like(lengths_k),
        rho_k=dots(residual, direction),
        is_running_k=lengths_k > 0,  # an output that no weight moves has no variance
        is_positive_k=torch.ones_like(lengths_k, dtype=torch.bool),
        checked_k=torch.ones_like(lengths_k),
        lengths_k=lengths_k.clamp_min(torch.finfo(lengths_k.dtype).tiny),
    )


def step(
    at: Secant,
    change: Mapping[str, Tensor],
    precondition: Precondition,
    tolerance: float,
    *,
    is_linear: bool,
    is_convex: bool,
) -> Secant:
    """Go on, given F(point) less what F(D) is known to be; of a linear F that is F(p).

    Args:
        at: where it stands.
        change: by tiles.
        precondition: M^-1.
        tolerance: of |B - F(D)| / |B|.
        is_linear: whether the recurrence is trusted, and no check is made.
        is_convex: whether a curvature that is not positive can be rounding only; such a column stops.
    """
    if at.is_check:
        return _checked(at, change, precondition, tolerance)
    curvature_k = dots(at.direction, change)
    is_bent_k = at.is_running_k & (curvature_k <= 0)
    is_sure = at.is_fresh or is_linear
    if bool(is_bent_k.any()) and not is_sure:  # from an F(D) that is only interpolated, nothing follows
        return replace(at, is_check=True, is_wary=True, evaluations=at.evaluations + 1)
    is_running_k = at.is_running_k & ~is_bent_k
    amount_k = torch.where(is_running_k, dots(at.residual, at.direction) / curvature_k.clamp_min(1e-300), 0.0)
    residual = _plus(at.residual, change, -amount_k)
    moved = replace(
        at,
        solution=_plus(at.solution, at.direction, amount_k),
        residual=residual,
        is_positive_k=at.is_positive_k if is_convex else at.is_positive_k & ~is_bent_k,
        evaluations=at.evaluations + 1,
        is_fresh=False,
    )
    relative_k = moved.relative_k
    is_running_k = is_running_k & (relative_k > tolerance)
    steepest = precondition(residual)
    conjugacy_k = torch.where(is_running_k, (-amount_k * dots(steepest, change) / at.rho_k).clamp_min(0), 0.0)
    is_far_k = is_running_k & (relative_k < FALLEN * at.checked_k)
    is_due = not bool(is_running_k.any()) or (at.is_wary and bool(is_far_k.any()))
    scale_k = torch.where(is_running_k, amount_k * at.scale_k, at.scale_k)
    direction = _plus(steepest, at.direction, conjugacy_k / at.scale_k)
    return replace(
        moved,
        direction={name: tile * scale_k.to(tile) for name, tile in direction.items()},
        scale_k=scale_k,
        rho_k=dots(residual, steepest),
        is_running_k=is_running_k,
        is_check=is_due and not is_linear,
    )


def _checked(at: Secant, excess: Mapping[str, Tensor], precondition: Precondition, tolerance: float) -> Secant:
    """After F(D) was evaluated: `excess` is by how much it is above what it was known to be."""
    residual = {name: tile - excess[name] for name, tile in at.residual.items()}
    found = replace(at, residual=residual, is_check=False, is_fresh=True, evaluations=at.evaluations + 1)
    relative_k = found.relative_k
    is_running_k = at.is_positive_k & (relative_k > tolerance)
    # The direction stays conjugate to those before, but for what was not known of the residual.
    correction = precondition({name: -tile for name, tile in excess.items()})
    return replace(
        found,
        direction=_plus(at.direction, correction, at.scale_k),
        rho_k=dots(residual, precondition(residual)),
        is_running_k=is_running_k,
        checked_k=relative_k,
        is_wary=at.is_wary or bool(is_running_k.any()),
    )


def _plus(left: Tiles, right: Mapping[str, Tensor], amount_k: Tensor) -> Tiles:
    return {name: tile + right[name] * amount_k.to(tile) for name, tile in left.items()}
