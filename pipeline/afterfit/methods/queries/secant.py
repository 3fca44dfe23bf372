"""Conjugate gradients along secants: solves F(D) = B for an F that need not be linear, by evaluations of F alone.

F(0) = 0, and its derivative is symmetric. A step evaluates F at the end of a direction p, and the difference from what
F is known to be at the start is what a Hessian-vector product would give. For a linear F these are conjugate gradients
with preconditioning; for one that is nearly linear, as within a refit of small lambda, the steps are theirs but for the
curvature's change. What F is at the solution is interpolated, so that it is evaluated there at the end; where that was
not as expected, the steps go on from there, and F is evaluated again whenever the residual has fallen by much. A column
that has gone astray, as F bends too much over it, begins again with a tenth of its B.

Shapes: P weights by tiles, k columns, each a problem of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from afterfit.algebra import State
from afterfit.methods.queries.preconditioner import dots

FALLEN = 0.1
"""Part of a residual after which F is evaluated again, once interpolation has failed."""
GROWN = 10.0
"""Times a residual after which it is; that of conjugate gradients may well grow for a while."""
ASTRAY, WRONG = 0.5, 0.1
"""A column begins again where at D the residual is above this part of B, and was off by this part of itself."""
SHRINK, SMALLEST = 0.1, 1e-5
"""Of B, each time, and in all."""
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
    is_stuck_k: Tensor  # whether rounding is in the way
    checked_k: Tensor  # relative residual where F was last evaluated at D
    ended_k: Tensor  # the same, the last time that the end was thought to be reached
    shrunk_k: Tensor  # part of the given B that is solved for
    is_check: bool = False  # whether the next evaluation is at D
    is_fresh: bool = True  # whether the last one was
    is_wary: bool = False  # whether interpolation has failed before
    evaluations: int = 0

    def point(self, *, is_linear: bool) -> Tiles:
        """Where F is to be evaluated next."""
        if self.is_check:
            return self.solution
        if is_linear:
            return self.direction
        return {name: tile + self.direction[name] for name, tile in self.solution.items()}

    @property
    def relative_k(self) -> Tensor:
        """|B - F(D)| / |B|."""
        return dots(self.residual, self.residual).sqrt() / self.lengths_k

    def state(self) -> State:
        """As flat tensors."""
        kept: State = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, dict):
                kept |= {f"{one.name}/{name}": tile for name, tile in value.items()}
            else:
                kept[f"at/{one.name}"] = torch.as_tensor(value)
        return kept

    @classmethod
    def of(cls, state: State) -> Secant:
        """The inverse."""
        kept: dict[str, Any] = {}
        for one in fields(cls):
            place = f"at/{one.name}"
            if place not in state:
                prefix = f"{one.name}/"
                kept[one.name] = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            else:  # what has a default is a plain number
                kept[one.name] = state[place] if one.default is MISSING else type(one.default)(state[place])
        return cls(**kept)


def begin(columns: Mapping[str, Tensor], precondition: Precondition) -> Secant:
    """At D = 0, where the residual is B."""
    residual = {name: tile.clone() for name, tile in columns.items()}
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
        is_stuck_k=torch.zeros_like(lengths_k, dtype=torch.bool),
        checked_k=torch.ones_like(lengths_k),
        ended_k=torch.full_like(lengths_k, torch.inf),
        shrunk_k=torch.ones_like(lengths_k),
        lengths_k=lengths_k.clamp_min(torch.finfo(lengths_k.dtype).tiny),
    )


def step(
    at: Secant,
    value: Mapping[str, Tensor],
    rhs: Mapping[str, Tensor],
    precondition: Precondition,
    tolerance: float,
    *,
    is_linear: bool,
    is_convex: bool,
) -> Secant:
    """Go on, given F where it was to be evaluated.

    Args:
        at: where it stands.
        value: F by tiles.
        rhs: B, as it was given at the beginning.
        precondition: M^-1.
        tolerance: of |B - F(D)| / |B|.
        is_linear: whether F is, and was evaluated at a direction.
        is_convex: whether a curvature that is not positive can only be rounding, or of a D that has gone astray.
    """
    at = replace(at, evaluations=at.evaluations + 1)
    change = dict(value)
    if at.is_check or not is_linear:  # less what F(D) is known to be
        change = {name: tile - (rhs[name] * at.shrunk_k.to(tile) - at.residual[name]) for name, tile in change.items()}
    if at.is_check:
        return _checked(at, change, rhs, precondition, tolerance, is_linear=is_linear)
    curvature_k = dots(at.direction, change)
    is_bent_k = at.is_running_k & ~(curvature_k > 0)
    if bool(is_bent_k.any()) and not is_linear:
        if not at.is_fresh:  # nothing follows from F(D) interpolated
            return replace(at, is_check=True, is_wary=True)
        is_astray_k = is_bent_k & (at.relative_k > ASTRAY) & (at.shrunk_k > SMALLEST) & is_convex
        if bool(is_astray_k.any()):
            return _again(at, is_astray_k, rhs, precondition)
    is_running_k = at.is_running_k & ~is_bent_k
    amount_k = torch.where(is_running_k, dots(at.residual, at.direction) / curvature_k.clamp_min(1e-300), 0.0)
    residual = _plus(at.residual, change, -amount_k)
    moved = replace(
        at,
        solution=_plus(at.solution, at.direction, amount_k),
        residual=residual,
        is_positive_k=at.is_positive_k if is_convex else at.is_positive_k & ~is_bent_k,
        is_stuck_k=at.is_stuck_k | is_bent_k,
        is_fresh=False,
    )
    relative_k = moved.relative_k
    is_running_k = is_running_k & (relative_k > tolerance)
    steepest = precondition(residual)
    conjugacy_k = torch.where(is_running_k, (-amount_k * dots(steepest, change) / at.rho_k).clamp_min(0), 0.0)
    is_far_k = is_running_k & (relative_k < FALLEN * at.checked_k)
    is_grown_k = is_running_k & (relative_k > GROWN * at.checked_k) & (not is_linear)
    is_due = not bool(is_running_k.any()) or (at.is_wary and bool(is_far_k.any())) or bool(is_grown_k.any())
    scale_k = torch.where(is_running_k, amount_k * at.scale_k, at.scale_k)
    return replace(
        moved,
        direction={
            name: (tile + at.direction[name] * (conjugacy_k / at.scale_k).to(tile)) * scale_k.to(tile)
            for name, tile in steepest.items()
        },
        scale_k=scale_k,
        rho_k=dots(residual, steepest),
        is_running_k=is_running_k,
        is_check=is_due,
    )


def _checked(
    at: Secant,
    excess: Mapping[str, Tensor],
    rhs: Mapping[str, Tensor],
    precondition: Precondition,
    tolerance: float,
    *,
    is_linear: bool,
) -> Secant:
    """After F(D) was evaluated: `excess` is by how much it is above what it was known to be."""
    believed_k = at.relative_k
    residual = {name: tile - excess[name] for name, tile in at.residual.items()}
    found = replace(at, residual=residual, is_check=False, is_fresh=True)
    relative_k = found.relative_k
    wrong_k = dots(excess, excess).sqrt() / at.lengths_k
    is_wrong_k = ~(wrong_k <= WRONG * relative_k)  # also where a number is not finite
    is_astray_k = is_wrong_k & ~(relative_k <= ASTRAY) & (at.shrunk_k > SMALLEST) & at.is_positive_k & (not is_linear)
    # Where the end was thought to be reached and the last end was no worse, rounding is in the way.
    is_stuck_k = at.is_stuck_k | ((believed_k <= tolerance) & (relative_k > tolerance) & (relative_k > at.ended_k / 2))
    is_running_k = at.is_positive_k & ~is_stuck_k & (relative_k > tolerance)
    steepest = precondition(residual)
    # The direction stays conjugate to those before, but for what was not known of the residual.
    direction = _plus(at.direction, precondition(excess), -at.scale_k)
    is_uphill_k = ~(dots(residual, direction) > 0) | ~(wrong_k <= ASTRAY)
    for name, tile in direction.items():
        chosen_k = is_uphill_k.to(tile.device)
        tile[:, chosen_k] = steepest[name][:, chosen_k]
    found = replace(
        found,
        direction=direction,
        scale_k=torch.where(is_uphill_k, 1.0, at.scale_k),
        rho_k=dots(residual, steepest),
        is_running_k=is_running_k,
        is_stuck_k=is_stuck_k,
        checked_k=relative_k,
        ended_k=torch.where(believed_k <= tolerance, relative_k, at.ended_k),
        is_wary=at.is_wary or bool(is_running_k.any()),
    )
    return _again(found, is_astray_k, rhs, precondition) if bool(is_astray_k.any()) else found


def _again(at: Secant, which_k: Tensor, rhs: Mapping[str, Tensor], precondition: Precondition) -> Secant:
    """Some columns, in place, from D = 0 with a tenth of B, along which F is straighter; from afar nothing goes on."""
    shrunk_k = torch.where(which_k, at.shrunk_k * SHRINK, at.shrunk_k)
    chosen = {name: tile[:, which_k.to(tile.device)] * shrunk_k[which_k].to(tile) for name, tile in rhs.items()}
    start = begin(chosen, precondition)
    for old, new in ((at.solution, start.solution), (at.residual, start.residual), (at.direction, start.direction)):
        for name, tile in old.items():
            tile[:, which_k.to(tile.device)] = new[name]
    return replace(
        at,
        scale_k=at.scale_k.masked_scatter(which_k, start.scale_k),
        lengths_k=at.lengths_k.masked_scatter(which_k, start.lengths_k),
        rho_k=at.rho_k.masked_scatter(which_k, start.rho_k),
        is_running_k=at.is_running_k | which_k,
        is_stuck_k=at.is_stuck_k & ~which_k,
        checked_k=at.checked_k.masked_fill(which_k, 1.0),
        ended_k=at.ended_k.masked_fill(which_k, torch.inf),
        shrunk_k=shrunk_k,
        is_check=False,
        is_fresh=False,
        is_wary=True,
    )


def _plus(left: Tiles, right: Mapping[str, Tensor], amount_k: Tensor) -> Tiles:
    return {name: tile + right[name] * amount_k.to(tile) for name, tile in left.items()}
